//! The verified channel: one TLS connection whose other end has proved what it is.
//!
//! Responsible for dialling, taking evidence on that very connection (the nonce and the RFC 9266 channel binding are
//! claims of its quote) and then carrying HTTP requests over it. The certificate itself is never trusted: its key
//! must be the attested one. Nothing is sent before the appraisal accepted the other end except the request for
//! evidence, so a man in the middle, who cannot produce evidence for his own connection, gets nothing.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cofferdam_attest::appraise::{Appraisal, Expectations};
use cofferdam_attest::claims::Claims;
use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::ratls;
use cofferdam_protocol::evidence::{self, CHANNEL_BINDING_LABEL, ChannelBinding, Nonce};
use cofferdam_protocol::operator::{MAX_REPLY, PREFIX};
use cofferdam_protocol::reply::{ErrorReply, JSON};
use cofferdam_protocol::{Digest, Endpoint, Repository};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::failure::{Code, Failure, Outcome, chain};
use crate::operator_key::OperatorKey;
use crate::trust::{Trust, holds_until, unix_now};

/// A busy appliance is asked this often, and after this pause: its own limits refill within a second.
const BUSY_ATTEMPTS: u32 = 5;
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// A connection to an appliance that was verified on it.
pub(crate) struct Channel {
    sender: http1::SendRequest<Full<Bytes>>,
    host: String,
    binding: ChannelBinding,
    pub(crate) claims: Claims,
    pub(crate) appraisal: Appraisal,
    /// When the appraisal ceases to hold, seconds since the Unix epoch.
    pub(crate) expires_unix: u64,
}

/// One answer.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// No reply, or none that can be read.
struct Broken {
    what: String,
    /// Whether the peer did answer, but with something else than HTTP or with too much of it.
    answered: bool,
}

/// A TLS connection, not yet verified: the key that the other end holds, and the channel's binding.
pub(crate) struct Dialled {
    pub(crate) stream: TlsStream<TcpStream>,
    /// Digest of the SubjectPublicKeyInfo that the other end proved to hold.
    pub(crate) tls_key: Digest,
    binding: ChannelBinding,
}

/// Opens a TLS 1.3 connection to `endpoint`.
pub(crate) async fn dial(endpoint: &Endpoint) -> Outcome<Dialled> {
    let unreachable = |what: &str, error: &dyn std::error::Error| {
        Failure::could_not_check(format!("cannot {what} {endpoint}: {}", chain(error)))
            .hint("is the appliance running, and is the endpoint reachable from here?")
    };
    let host = endpoint.host();
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Failure::usage(format!("{host} is not a host name or an address")))?;
    let tcp = TcpStream::connect((host, endpoint.port())).await.map_err(|error| unreachable("reach", &error))?;
    tcp.set_nodelay(true).map_err(|error| unreachable("set up", &error))?;
    let seen = Arc::new(SeenKey::new());
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unreachable("prepare TLS for", &error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&seen) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .map_err(|error| unreachable("speak TLS with", &error))?;
    let binding = stream
        .get_ref()
        .1
        .export_keying_material([0_u8; 32], CHANNEL_BINDING_LABEL, Some(&[]))
        .map(ChannelBinding::from)
        .map_err(|error| unreachable("bind the channel of", &error))?;
    let tls_key =
        seen.take().ok_or_else(|| Failure::rejected(format!("{endpoint} showed no certificate")))?;
    Ok(Dialled { stream, tls_key, binding })
}

impl Channel {
    /// Dials `endpoint` and verifies the appliance on that connection. With the claims of a release attestation it has to
    /// be the very machine that published it: another one, be it as genuine, holds other keys. With a key that is attested for
    /// this endpoint, by a release attestation or earlier (`known`), something else than evidence is a false answer; without
    /// one nobody knows who answers.
    pub(crate) async fn open(
        endpoint: &Endpoint,
        repository: &Repository,
        trust: &Trust,
        release: Option<&Claims>,
        known: Option<Digest>,
    ) -> Outcome<Self> {
        let Dialled { stream, tls_key, binding } = dial(endpoint).await?;
        if let Some(release) = release
            && release.tls_key != tls_key
        {
            return Err(Failure::rejected(format!(
                "tls_key: {endpoint} shows {tls_key}, the release attestation says {}",
                release.tls_key
            ))
            .hint("after a reboot, wait for the new release attestation, or name --endpoint to begin anew"));
        }
        let lost = |error: hyper::Error| Failure::could_not_check(format!("{endpoint}: {}", chain(&error)));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        // Ends by itself when `sender` is dropped or the peer closes.
        tokio::spawn(connection);
        let mut nonce = [0_u8; 32];
        getrandom::fill(&mut nonce).map_err(|_| Failure::failed("the system gives no random numbers"))?;
        let nonce = Nonce::new(nonce.to_vec()).map_err(|error| Failure::failed(error.message))?;
        let path = evidence::target(&nonce);
        let expected = release.is_some() || known.is_some();
        let reply = ask_for_evidence(&mut sender, &endpoint.to_string(), &path).await;
        let evidence = evidence_in(reply, &endpoint.to_string(), expected)?;
        let expectations = Expectations {
            repository: Some(repository.clone()),
            tls_key: Some(tls_key),
            nonce: Some(nonce),
            channel_binding: Some(binding),
            commit: release.map(|claims| claims.commit),
            declaration: release.map(|claims| claims.declaration),
            endpoint: release.map(|claims| claims.endpoint.clone()),
            ..trust.expectations()
        };
        let judged = trust.appraise(&evidence, &expectations, unix_now()?);
        judged.accept(&endpoint.to_string())?;
        let appraisal = judged.appraisal;
        let claims = Claims::decode(&evidence.claims).map_err(|error| {
            Failure::rejected(format!("the claims of {endpoint} are malformed: {}", chain(&error)))
        })?;
        if release.is_some_and(|release| release.vault_key != claims.vault_key) {
            return Err(Failure::rejected(format!(
                "vault_key: {endpoint} has another than the release attestation says"
            )));
        }
        let expires_unix = holds_until(&claims, &appraisal, trust.max_age_s());
        Ok(Self { sender, host: endpoint.to_string(), binding, claims, appraisal, expires_unix })
    }

    /// One request of the operator API, signed for this connection.
    pub(crate) async fn request(
        &mut self,
        key: &OperatorKey,
        method: &str,
        path: &str,
        body: Vec<u8>,
    ) -> Outcome<Reply> {
        let path = format!("{PREFIX}{path}");
        let authorization = key.authorization(method, &path, &body, self.binding.as_bytes());
        exchange(&mut self.sender, &self.host, method, &path, body.into(), Some(authorization), MAX_REPLY)
            .await
            .map_err(|broken| Failure::could_not_check(broken.what))
    }
}

/// The evidence in an answer. A peer whom nothing vouches for may choose neither our exit code nor our words; where an appliance is
/// attested (`expected`) an answer that is none is false, unless it says that it has none at the moment.
fn evidence_in(reply: Result<Reply, Broken>, endpoint: &str, expected: bool) -> Outcome<Evidence> {
    let no_evidence = |false_answer: bool, what: String| {
        if expected && false_answer { Failure::rejected(what) } else { Failure::could_not_check(what) }
    };
    let reply = reply.map_err(|broken| no_evidence(broken.answered, broken.what))?;
    if reply.status != StatusCode::OK {
        let later = reply.status.is_server_error() || reply.status == StatusCode::TOO_MANY_REQUESTS;
        return Err(no_evidence(!later, format!("{endpoint} gave no evidence ({})", reply.status)));
    }
    Evidence::parse(&reply.body).map_err(|error| {
        no_evidence(true, format!("the evidence of {endpoint} is malformed: {}", chain(&error)))
    })
}

/// Asks for evidence; while the appliance is busy or not ready it is asked again, a few times.
async fn ask_for_evidence(
    sender: &mut http1::SendRequest<Full<Bytes>>,
    endpoint: &str,
    path: &str,
) -> Result<Reply, Broken> {
    let mut attempt = 1;
    loop {
        let reply = exchange(sender, endpoint, "GET", path, Bytes::new(), None, evidence::MAX_DOCUMENT).await?;
        let busy = matches!(reply.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        if !busy || attempt == BUSY_ATTEMPTS {
            return Ok(reply);
        }
        attempt += 1;
        tokio::time::sleep(BUSY_PAUSE).await;
    }
}

async fn exchange(
    sender: &mut http1::SendRequest<Full<Bytes>>,
    host: &str,
    method: &str,
    path: &str,
    body: Bytes,
    authorization: Option<String>,
    largest: usize,
) -> Result<Reply, Broken> {
    let lost =
        |error: &dyn std::error::Error| Broken { what: format!("{host}: {}", chain(error)), answered: false };
    let mut request =
        Request::builder().method(method).uri(path).header("host", host).header("user-agent", "coffer");
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    if !body.is_empty() {
        request = request.header("content-type", JSON);
    }
    let request = request.body(Full::new(body)).map_err(|error| lost(&error))?;
    let response = sender.send_request(request).await;
    let response = response.map_err(|error| Broken { answered: error.is_parse(), ..lost(&error) })?;
    let status = response.status();
    let body = Limited::new(response.into_body(), largest)
        .collect()
        .await
        .map_err(|error| Broken {
            what: format!("{host}: the reply broke off: {error}"),
            answered: error.is::<LengthLimitError>(),
        })?
        .to_bytes();
    Ok(Reply { status, body })
}

/// The failure that an error reply stands for, with its status.
pub(crate) fn refusal(reply: &Reply, what: &str) -> Failure {
    let (code, generic) = match reply.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => (Code::NotAllowed, "not allowed"),
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => (Code::NotReady, "not ready"),
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => (Code::Usage, "refused"),
        _ => (Code::Failed, "failed"),
    };
    match ErrorReply::parse(&reply.body) {
        Ok(body) => {
            let failure = Failure::new(code, format!("{what}: {}", crate::ui::printable(&body.error)));
            match body.hint {
                Some(hint) => failure.hint(crate::ui::printable(&hint)),
                None => failure,
            }
        }
        Err(_) => Failure::new(code, format!("{what}: {generic} ({})", reply.status)),
    }
}

/// Accepts any certificate but insists that the peer holds its key, and remembers which key that is.
#[derive(Debug)]
struct SeenKey {
    key: Mutex<Option<Digest>>,
    provider: rustls::crypto::CryptoProvider,
}

impl SeenKey {
    fn new() -> Self {
        Self { key: Mutex::new(None), provider: rustls::crypto::aws_lc_rs::default_provider() }
    }

    fn take(&self) -> Option<Digest> {
        self.key.lock().ok()?.take()
    }
}

impl ServerCertVerifier for SeenKey {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let key = ratls::spki_sha256(certificate).map_err(|error| TlsError::General(chain(&error)))?;
        let key = key.parse::<Digest>().map_err(|error| TlsError::General(chain(&error)))?;
        *self.key.lock().map_err(|_| TlsError::General("poisoned".to_owned()))? = Some(key);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_nothing_vouches_for_does_not_choose_the_exit_code() {
        let reply = |status, body: &'static str| Reply { status, body: Bytes::from_static(body.as_bytes()) };
        let html = "<html>welcome to the network</html>";
        for (status, body, unknown, attested) in [
            (StatusCode::OK, html, Code::CouldNotCheck, Code::Rejected),
            (StatusCode::OK, "", Code::CouldNotCheck, Code::Rejected),
            (StatusCode::OK, "{}", Code::CouldNotCheck, Code::Rejected),
            (StatusCode::NOT_FOUND, html, Code::CouldNotCheck, Code::Rejected),
            (StatusCode::FOUND, html, Code::CouldNotCheck, Code::Rejected),
            (StatusCode::SERVICE_UNAVAILABLE, "", Code::CouldNotCheck, Code::CouldNotCheck),
            (StatusCode::TOO_MANY_REQUESTS, "", Code::CouldNotCheck, Code::CouldNotCheck),
            (StatusCode::BAD_GATEWAY, html, Code::CouldNotCheck, Code::CouldNotCheck),
        ] {
            for (expected, code) in [(false, unknown), (true, attested)] {
                let failure = evidence_in(Ok(reply(status, body)), "h:1", expected).unwrap_err();
                assert_eq!(failure.code, code, "{status} {body} {expected}");
                assert!(!failure.message.contains("welcome"));
            }
        }
        for (answered, expected, code) in [
            (true, true, Code::Rejected),
            (true, false, Code::CouldNotCheck),
            (false, true, Code::CouldNotCheck),
            (false, false, Code::CouldNotCheck),
        ] {
            let broken = Broken { what: "not HTTP".to_owned(), answered };
            assert_eq!(evidence_in(Err(broken), "h:1", expected).unwrap_err().code, code);
        }
    }
}
