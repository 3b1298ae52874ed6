//! The verified channel: one TLS connection whose other end has proved what it is.
//!
//! Responsible for dialling, taking evidence on that very connection (the nonce and the RFC 9266 channel binding are
//! claims of its quote) and then carrying HTTP requests over it. The certificate itself is never trusted: it has to be valid
//! now, and its key must be the attested one ([`ratls`] verifies that). Nothing is sent before the appraisal accepted the other
//! end except the request for evidence, so whoever sits in the middle, and cannot produce evidence for a connection of their
//! own, gets nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use cofferdam_attest::appraise::{Appraisal, Expectations};
use cofferdam_attest::claims::Claims;
use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::ratls::{self, Refusal};
use cofferdam_protocol::certificate::ATTESTED;
use cofferdam_protocol::evidence::{self, ChannelBinding, Nonce};
use cofferdam_protocol::operator::{LOG_PLACE, LogPlace, MAX_REPLY, PREFIX, SIGN_IN, SIGN_IN_UPGRADE};
use cofferdam_protocol::reply::{ErrorReply, JSON};
use cofferdam_protocol::{Digest, Endpoint, Repository};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::failure::{Cause, Code, Failure, Outcome, chain};
use crate::newest::Verified;
use crate::operator_key::OperatorKey;
use crate::progress;
use crate::reach::{Obstacle, endpoint_hint};
use crate::trust::{Trust, holds_until, unix_now};

/// ALPN's name of what is spoken on a connection.
const HTTP_1_1: &str = "http/1.1";

/// A busy appliance is asked this often, and after as long as it says (`Retry-After`), within these bounds.
const BUSY_ATTEMPTS: u32 = 5;
const BUSY_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Bound on connecting, before TLS.
const CONNECT: Duration = Duration::from_secs(10);

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

/// Which appliances are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Those that have launched what they run.
    Launched,
    /// Those that wait to be unsealed as well: only their operators have anything to say to them.
    Waiting,
}

/// What comes of signing in.
pub(crate) enum SignedIn {
    /// What is asked for on this connection is the operator's.
    Yes(Box<Stream>),
    /// The appliance knows no operator with this key, or does not know what this is. The connection is spent.
    No(Failure),
}

/// A connection to an appliance, with what it has said already.
pub(crate) struct Stream {
    begin: Bytes,
    tls: TlsStream<TcpStream>,
}

impl From<TlsStream<TcpStream>> for Stream {
    fn from(tls: TlsStream<TcpStream>) -> Self {
        Self { begin: Bytes::new(), tls }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.begin.is_empty() {
            return Pin::new(&mut self.tls).poll_read(context, buffer);
        }
        let count = self.begin.len().min(buffer.remaining());
        buffer.put_slice(&self.begin.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(context)
    }
}

/// One answer.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    /// Where a log goes on.
    pub(crate) log_place: Option<LogPlace>,
    pub(crate) body: Bytes,
    /// How long not to ask again (`Retry-After`).
    pub(crate) retry_after: Option<Duration>,
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
    pub(crate) peer: ratls::Peer,
}

/// Why there is no connection.
pub(crate) enum NotDialled {
    /// Nobody was reached, or nobody who speaks TLS.
    Failed(Failure),
    /// Somebody was, and is not taken for an appliance.
    Refused(Refusal),
}

impl NotDialled {
    /// The failure for `endpoint`. Where a key is attested (`expected`) a refusal is false; without one nobody knows who answered.
    pub(crate) fn failure(self, endpoint: &Endpoint, expected: bool) -> Failure {
        let refusal = match self {
            Self::Failed(failure) => return failure,
            Self::Refused(refusal) => refusal,
        };
        if let Refusal::OtherKey { found, pinned } = &refusal {
            return Failure::rejected(format!(
                "tls_key: {endpoint} shows {found}, the release attestation says {pinned}"
            ))
            .after_reboot()
            .hint("after a reboot, wait for the new release attestation, or name --endpoint to begin anew");
        }
        let what = format!("{endpoint} is refused: {refusal}");
        let failure = if expected { Failure::rejected(what) } else { Failure::could_not_check(what) };
        if refusal.is_about_time() {
            failure
                .because_of(Cause::Times)
                .hint("check the clock here (`date -u`) and that of the appliance's host")
        } else {
            failure
        }
    }
}

/// Opens a TLS 1.3 connection to `endpoint`. With `pin` it has to be the holder of that key. `signs_in` says that [`sign_in`]
/// comes next.
pub(crate) async fn dial(
    endpoint: &Endpoint,
    pin: Option<Digest>,
    signs_in: bool,
) -> Result<Dialled, NotDialled> {
    let _doing = progress::doing(format!("waiting for {endpoint} to take the connection"));
    let unreachable = |what: &str, error: &(dyn std::error::Error + 'static)| {
        NotDialled::Failed(
            Failure::could_not_check(format!("cannot {what} {endpoint}: {}", chain(error)))
                .because_of(Cause::EndpointAway)
                .hint(endpoint_hint(Obstacle::of(error), endpoint)),
        )
    };
    let usage = |words: String| NotDialled::Failed(Failure::usage(words));
    let host = endpoint.host();
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| usage(format!("{host} is not a host name or an address")))?;
    let mut config = ratls::client_config(pin).map_err(|error| {
        NotDialled::Failed(Failure::failed(format!("cannot prepare TLS: {}", chain(&error))))
    })?;
    // The name that is dialled may be one for which browsers are shown another certificate.
    config.alpn_protocols = match signs_in {
        true => vec![SIGN_IN_UPGRADE.into()],
        false => vec![ATTESTED.into(), HTTP_1_1.into()],
    };
    let silent = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    let tcp = timeout(CONNECT, TcpStream::connect((host, endpoint.port()))).await.map_err(silent).flatten();
    let tcp = tcp.map_err(|error| unreachable("reach", &error))?;
    tcp.set_nodelay(true).map_err(|error| unreachable("set up", &error))?;
    let stream =
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(
            |error| match Refusal::behind(&error) {
                Some(refusal) => NotDialled::Refused(refusal.clone()),
                None => unreachable("speak TLS with", &error),
            },
        )?;
    let peer = ratls::peer(stream.get_ref().1).map_err(NotDialled::Refused)?;
    Ok(Dialled { stream, peer })
}

impl Channel {
    /// Dials the holder of the key that a verified release attests, and takes no evidence on that connection: whoever holds the key is the
    /// trust domain that the release is of. For what is only read, it costs no quote and is answered when none can be had. `None` when
    /// another key answers: an appliance that waits for its state, perhaps, which [`Channel::open`] finds out.
    pub(crate) async fn pinned(
        endpoint: &Endpoint,
        release: &Verified,
        trust: &Trust,
    ) -> Outcome<Option<Self>> {
        let claims = release.claims.clone();
        let Dialled { stream, peer } = match dial(endpoint, Some(claims.tls_key), false).await {
            Ok(dialled) => dialled,
            Err(NotDialled::Refused(Refusal::OtherKey { .. })) => return Ok(None),
            Err(error) => return Err(error.failure(endpoint, true)),
        };
        let sender = speak(stream, endpoint).await?;
        let appraisal = release.judged.appraisal.clone();
        let expires_unix = holds_until(&claims, &appraisal, trust.max_age_s());
        let (host, binding) = (endpoint.to_string(), peer.channel_binding);
        Ok(Some(Self { sender, host, binding, claims, appraisal, expires_unix }))
    }

    /// Dials `endpoint` and verifies the appliance on that connection. With the claims of a release attestation it has to
    /// be the very machine that published it: another one, be it as genuine, holds other keys. With a key that is attested for
    /// this endpoint, by a release attestation or earlier (`known`), something else than evidence is a false answer; without
    /// one nobody knows who answers. An appliance that waits to be unsealed holds keys that no release can attest: it is known by its
    /// evidence alone, and taken or named as `stage` says.
    pub(crate) async fn open(
        endpoint: &Endpoint,
        repository: &Repository,
        trust: &Trust,
        release: Option<&Claims>,
        known: Option<Digest>,
        stage: Stage,
    ) -> Outcome<Self> {
        let expected = release.is_some() || known.is_some();
        let channel = match dial(endpoint, release.map(|claims| claims.tls_key), false).await {
            Ok(dialled) => Self::verify(dialled, endpoint, repository, trust, release, expected).await?,
            Err(other @ NotDialled::Refused(Refusal::OtherKey { .. })) => {
                let other = other.failure(endpoint, expected);
                match dial(endpoint, None, false).await {
                    Ok(dialled) => {
                        Self::verify(dialled, endpoint, repository, trust, release, expected).await
                    }
                    Err(error) => Err(error.failure(endpoint, expected)),
                }
                .ok()
                .filter(|channel| channel.appraisal.is_before_launch())
                .ok_or(other)?
            }
            Err(error) => return Err(error.failure(endpoint, expected)),
        };
        if channel.appraisal.is_before_launch() && stage == Stage::Launched {
            return Err(Failure::new(
                Code::NotReady,
                format!("{endpoint} is sealed: it waits for its state to be opened"),
            )
            .hint(format!("coffer unseal {repository}")));
        }
        Ok(channel)
    }

    /// Takes evidence on a connection, and insists that it is accepted.
    async fn verify(
        dialled: Dialled,
        endpoint: &Endpoint,
        repository: &Repository,
        trust: &Trust,
        release: Option<&Claims>,
        expected: bool,
    ) -> Outcome<Self> {
        let Dialled { stream, peer } = dialled;
        let mut sender = speak(stream, endpoint).await?;
        let mut nonce = [0_u8; 32];
        getrandom::fill(&mut nonce).map_err(|_| Failure::failed("the system gives no random numbers"))?;
        let nonce = Nonce::new(nonce.to_vec()).map_err(|error| Failure::failed(error.message))?;
        let shown = endpoint.to_string();
        let asking = progress::doing(format!("waiting for the evidence of {endpoint}"));
        let reply = ask_for_evidence(&mut sender, &shown, &evidence::target(&nonce)).await;
        drop(asking);
        let evidence = evidence_in(reply, &shown, expected)?;
        let expectations = Expectations {
            repository: Some(repository.clone()),
            tls_key: Some(peer.tls_key),
            nonce: Some(nonce),
            channel_binding: Some(peer.channel_binding),
            commit: release.map(|claims| claims.commit),
            declaration: release.map(|claims| claims.declaration),
            endpoint: release.map(|claims| claims.endpoint.clone()),
            before_launch: true,
            ..trust.expectations()
        };
        let judged = trust.appraise(&evidence, &expectations, unix_now()?);
        judged.accept(&shown)?;
        let appraisal = judged.appraisal;
        let claims = Claims::decode(&evidence.claims).map_err(|error| {
            Failure::rejected(format!("the claims of {endpoint} are malformed: {}", chain(&error)))
        })?;
        // Before the launch the key is that of this start.
        let pinned = release.filter(|_| !appraisal.is_before_launch());
        if pinned.is_some_and(|release| release.vault_key != claims.vault_key) {
            return Err(Failure::rejected(format!(
                "vault_key: {endpoint} has another than the release attestation says"
            )));
        }
        let expires_unix = holds_until(&claims, &appraisal, trust.max_age_s());
        let binding = peer.channel_binding;
        Ok(Self { sender, host: shown, binding, claims, appraisal, expires_unix })
    }

    /// One request of the operator API, signed for this connection.
    pub(crate) async fn request(
        &mut self,
        key: &OperatorKey,
        method: &str,
        path: &str,
        body: Vec<u8>,
    ) -> Outcome<Reply> {
        let _doing = progress::doing(format!("waiting for the answer of {}", self.host));
        self.ask(key, method, path, body).await
    }

    /// As [`Channel::request`], of which nobody wonders that the answer takes its time.
    pub(crate) async fn ask(
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

/// HTTP on a connection. It ends by itself when the sender is dropped or the peer closes.
async fn speak(
    stream: TlsStream<TcpStream>,
    endpoint: &Endpoint,
) -> Outcome<http1::SendRequest<Full<Bytes>>> {
    let lost = |error: hyper::Error| Failure::could_not_check(format!("{endpoint}: {}", chain(&error)));
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Signs in as an operator on a connection to an appliance whose key is attested. Nothing else has been said on it, and what is
/// said on it afterwards is the operator's.
pub(crate) async fn sign_in(stream: Stream, key: &OperatorKey, host: &str) -> Outcome<SignedIn> {
    let lost = |error: hyper::Error| Failure::could_not_check(format!("{host}: {}", chain(&error)));
    let peer = ratls::peer(stream.tls.get_ref().1)
        .map_err(|refusal| Failure::could_not_check(format!("{host}: {refusal}")))?;
    let path = format!("{PREFIX}{SIGN_IN}");
    let authorization = key.authorization("POST", &path, b"", peer.channel_binding.as_bytes());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    let request = Request::post(&path)
        .header("host", host)
        .header("user-agent", "coffer")
        .header("authorization", authorization)
        // What the local client says next is the first thing on the connection: it may be HTTP/2, or no HTTP at all.
        .header("connection", "upgrade")
        .header("upgrade", SIGN_IN_UPGRADE)
        .body(Full::<Bytes>::default())
        .map_err(|error| Failure::failed(chain(&error)))?;
    tokio::spawn(connection.with_upgrades());
    let mut response = sender.send_request(request).await.map_err(lost)?;
    let status = response.status();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        let next = hyper::upgrade::on(&mut response).await.map_err(lost)?;
        let next = next.downcast::<TokioIo<Stream>>();
        let next = next.map_err(|_| Failure::failed("the connection is another than it was"))?;
        // A service that speaks first may have said something already.
        return Ok(SignedIn::Yes(Box::new(Stream { begin: next.read_buf, ..next.io.into_inner() })));
    }
    let body = Limited::new(response.into_body(), MAX_REPLY).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let refused = refusal(&Reply { status, log_place: None, body, retry_after: None }, "not signed in");
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Ok(SignedIn::No(refused)),
        _ => Err(refused),
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
        let failure = no_evidence(!later, format!("{endpoint} gave no evidence ({})", reply.status));
        return Err(Failure { retry_after: reply.retry_after.filter(|_| later), ..failure });
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
        let reply =
            exchange(sender, endpoint, "GET", path, Bytes::new(), None, evidence::MAX_DOCUMENT).await?;
        let busy = matches!(reply.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        if !busy || attempt == BUSY_ATTEMPTS {
            return Ok(reply);
        }
        attempt += 1;
        progress::again_because(format!("{endpoint} answered {}", reply.status));
        tokio::time::sleep(pause(reply.retry_after)).await;
    }
}

/// As long as an appliance asks for, within our own bounds: it may be anybody who answers.
fn pause(retry_after: Option<Duration>) -> Duration {
    retry_after.unwrap_or_default().clamp(BUSY_PAUSE, LONGEST_PAUSE)
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
    let seconds = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
    let retry_after = seconds.map(Duration::from_secs);
    let log_place = response.headers().get(LOG_PLACE).and_then(|place| place.to_str().ok()?.parse().ok());
    let body = Limited::new(response.into_body(), largest)
        .collect()
        .await
        .map_err(|error| Broken {
            what: format!("{host}: the reply broke off: {error}"),
            answered: error.is::<LengthLimitError>(),
        })?
        .to_bytes();
    Ok(Reply { status, log_place, body, retry_after })
}

/// The failure that an error reply stands for, with its status.
pub(crate) fn refusal(reply: &Reply, what: &str) -> Failure {
    let (code, generic) = match reply.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => (Code::NotAllowed, "not allowed"),
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => (Code::NotReady, "not ready"),
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => (Code::Usage, "refused"),
        StatusCode::PRECONDITION_FAILED => (Code::Rejected, "refused"),
        StatusCode::GATEWAY_TIMEOUT => (Code::CouldNotCheck, "no answer in time"),
        _ => (Code::Failed, "failed"),
    };
    let failure = match ErrorReply::parse(&reply.body) {
        Ok(body) => {
            let failure = Failure::new(code, format!("{what}: {}", crate::ui::printable(&body.error)));
            match body.hint {
                Some(hint) => failure.hint(crate::ui::printable(&hint)),
                None => failure,
            }
        }
        Err(_) => Failure::new(code, format!("{what}: {generic} ({})", reply.status)),
    };
    Failure { retry_after: reply.retry_after, ..failure }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_nothing_vouches_for_does_not_choose_the_exit_code() {
        let reply = |status, body: &'static str| Reply {
            status,
            log_place: None,
            body: Bytes::from_static(body.as_bytes()),
            retry_after: Some(Duration::from_secs(7)),
        };
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

    #[test]
    fn whoever_is_busy_says_for_how_long_within_bounds() {
        let asked = |seconds: Option<u64>| pause(seconds.map(Duration::from_secs)).as_secs();
        assert_eq!([None, Some(0), Some(7), Some(u64::MAX)].map(asked), [1, 1, 7, 15]);
    }
}
