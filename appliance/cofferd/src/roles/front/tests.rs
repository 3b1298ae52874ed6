//! The front as a whole: a client with TLS on one side; evidence, vault and a workload on Unix sockets on the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use cofferdam_attest::appraise::{self, Expectations, Outcome, Verdict};
use cofferdam_attest::challenge::Challenge;
use cofferdam_attest::claims::Claims;
use cofferdam_attest::dcap::Roots;
use cofferdam_attest::evidence::{Evidence, MEDIA_TYPE};
use cofferdam_attest::policy::Policy;
use cofferdam_attest::{event_log, ratls};
use cofferdam_declaration::{Auth, MAX_SERVICES, Speaks, Token};
use cofferdam_protocol::evidence::Nonce;
use cofferdam_protocol::operator::{Authorization, PREFIX, signing_input};
use cofferdam_protocol::{AccessToken, Digest, Fingerprint, base64};
use cofferdam_workload::cgroup::Group;
use cofferdam_workload::places::Places;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::sign::SigningKey as TlsSigningKey;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::auth::Callers;
use super::browser::Browser;
use super::counts::Counts;
use super::evidence::EvidenceClient;
use super::listen::{self, Limits};
use super::operator::{Operators, Records};
use super::proxy::{Backend, Proxy};
use super::requests::Bounds;
use super::site::{Own, Site};
use super::source::Source;
use super::tls::{self, Identity, TlsKey};
use super::turns::Turns;
use super::{tcp, upstream};
use crate::roles::clock::{self, Moment, Steps};
use crate::roles::evidence::tests::start as start_evidence;
use crate::roles::facts::{CertificateFacts, OperatorFacts};
use crate::roles::testing::{appliance, declaration, facts, platform, quote, respond, serve_unix};
use crate::system::sys::SecretMemory;

/// The ports that the workloads publish, as far as the declaration goes: tests listen where the system lets them.
pub(super) const PUBLISHED: u16 = 443;
/// See [`PUBLISHED`]: that of the other service.
pub(super) const OTHER: u16 = 8444;

/// See [`PUBLISHED`]: the first service's, for operators.
pub(super) const FOR_OPERATORS: u16 = 8445;
/// See [`PUBLISHED`]: the first service's, for clients with a token.
pub(super) const FOR_TOKENS: u16 = 8446;
/// See [`PUBLISHED`]: the first service's, which speaks HTTP/2 there.
pub(super) const H2C: u16 = 8447;
/// See [`PUBLISHED`]: the first service's bytes, for operators.
pub(super) const BYTES_FOR_OPERATORS: u16 = 8448;
/// See [`PUBLISHED`]: the first service's bytes, for everybody.
pub(super) const BYTES: u16 = 8449;
/// See [`PUBLISHED`]: the first service's bytes, TLS being its own.
pub(super) const PASSED: u16 = 8450;

pub(super) fn me() -> u32 {
    nix::unistd::getuid().as_raw()
}

/// A whole front and everything around it.
pub(super) struct Room {
    directory: TempDir,
    /// Where [`PUBLISHED`] is served.
    pub(super) address: SocketAddr,
    pub(super) site: Arc<Site>,
    limits: Limits,
    acceptor: TlsAcceptor,
    /// Connections without a complete request.
    pub(super) waiting: Arc<Places<Source>>,
    identity: Arc<Identity>,
    key: TlsKey,
    pub(super) tls_key: Digest,
    /// Requests that the vault was asked about.
    asked: Arc<Mutex<Vec<Value>>>,
    /// Quotes that were made.
    pub(super) quotes: Arc<AtomicUsize>,
}

impl Room {
    pub(super) async fn open() -> Self {
        Self::with(Limits::default(), Bounds::default()).await
    }

    pub(super) async fn with(limits: Limits, bounds: Bounds) -> Self {
        Self::made(limits, bounds, None).await
    }

    /// With a certificate for browsers, whose files are in `publish/` of the room.
    pub(super) async fn showing(facts: &CertificateFacts, signing: Arc<dyn TlsSigningKey>) -> Self {
        Self::made(Limits::default(), Bounds::default(), Some((facts, signing))).await
    }

    async fn made(
        limits: Limits,
        bounds: Bounds,
        certificate: Option<(&CertificateFacts, Arc<dyn TlsSigningKey>)>,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let pkcs8 = ratls::generate_key().unwrap();
        let tls_key = ratls::key_sha256(&pkcs8).unwrap();
        let facts = appliance(&tls_key);
        std::fs::write(root.join("appliance.json"), serde_json::to_vec(&facts).unwrap()).unwrap();
        let (machine, events) = (platform(), facts.event_log);
        let quotes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&quotes);
        let evidence = start_evidence(root, &[], vec![me()], move |data| {
            counted.fetch_add(1, Ordering::Relaxed);
            quote(&machine, &events, data)
        });

        let asked = Arc::new(Mutex::new(Vec::new()));
        start_vault(&root.join("vault.sock"), Arc::clone(&asked));
        std::fs::create_dir_all(root.join("services/web")).unwrap();
        std::fs::create_dir_all(root.join("services/db")).unwrap();
        std::fs::create_dir_all(root.join("publish")).unwrap();
        let backend = Backend {
            service: "web".into(),
            auth: Auth::None,
            speaks: Speaks::Http,
            socket: root.join("services/web/port-8080"),
            uid: me(),
            status: root.join("services/web/status.json"),
            kept: upstream::places(),
            connections: Places::new(tcp::CONNECTIONS),
        };
        let other =
            Backend { service: "db".into(), socket: root.join("services/db/port-8080"), ..backend.clone() };
        let closed = |auth| Backend { auth, ..backend.clone() };
        let speaking = |speaks, auth| Backend { speaks, ..closed(auth) };
        let backends = BTreeMap::from([
            (FOR_OPERATORS, closed(Auth::Operators)),
            (FOR_TOKENS, closed(Auth::Tokens)),
            (H2C, speaking(Speaks::H2c, Auth::None)),
            (BYTES_FOR_OPERATORS, speaking(Speaks::Tcp, Auth::Operators)),
            (BYTES, speaking(Speaks::Tcp, Auth::None)),
            (PASSED, speaking(Speaks::Tls, Auth::None)),
            (PUBLISHED, backend),
            (OTHER, other),
        ]);
        let counts = Arc::<Counts>::default();
        let records = Records {
            counts: Arc::clone(&counts),
            appliance: root.join("appliance.json"),
            roles: root.join("status.json"),
            publish: root.join("publish/status.json"),
            network: root.join("network/status.json"),
            store: root.join("vault/store.json"),
            egress: root.join("egress"),
            services: vec![
                ("web".into(), root.join("services/web")),
                ("db".into(), root.join("services/db")),
            ],
            rings: vec![super::events::Source::new("vault", None, root.join("events"))],
            groups: BTreeMap::from([("web".into(), Group::new(&root.join("cgroup"), 64 << 20, 7, None))]),
            role_groups: root.join("cgroup"),
        };
        let site = Arc::new(Site {
            evidence: EvidenceClient::new(evidence, root.join("publish/collateral.json"), Arc::default()),
            operators: Operators::new(root.join("vault.sock"), root.join("publish.sock"), records),
            callers: callers(),
            backends,
            proxy: Proxy::new(bounds),
            counts,
            own: Own::default(),
            attested_key: certificate.as_ref().map(|_| key_of(&pkcs8).digest().unwrap()),
            browser: certificate.map(|(facts, signing)| {
                let (chain, challenges) =
                    (root.join("publish/chain.pem"), root.join("publish/challenges.json"));
                Browser::new(facts, signing, &chain, &challenges).unwrap()
            }),
        });
        let key = key_of(&pkcs8);
        let identity = Arc::new(Identity::default());
        let until = super::attest(&site.evidence, &key, &identity).await;
        assert!(!until.has_come());

        let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(Arc::clone(&identity), true).unwrap()));
        let (waiting, address) = (Places::new(limits.waiting), SocketAddr::from(([0; 4], 0)));
        let mut room = Self {
            directory,
            address,
            site,
            limits,
            acceptor,
            waiting,
            identity,
            key,
            tls_key,
            asked,
            quotes,
        };
        room.address = room.listen(PUBLISHED, &room.site).await;
        room
    }

    /// Serves `site` as if at this port.
    pub(super) async fn listen(&self, port: u16, site: &Arc<Site>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (acceptor, waiting, site) = (self.acceptor.clone(), Arc::clone(&self.waiting), Arc::clone(site));
        tokio::spawn(listen::serve(listener, port, acceptor, self.limits, waiting, site));
        address
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) async fn dial(&self) -> TlsStream<TcpStream> {
        dial(self.address, Some(self.tls_key)).await.unwrap()
    }

    pub(super) async fn client(&self) -> Client {
        Client::over(self.dial().await).await
    }

    /// A workload that answers from a closure.
    pub(super) fn workload<F>(&self, answer: F)
    where
        F: Fn(Request<Bytes>) -> Response<Body> + Send + Sync + 'static,
    {
        serve_unix(&self.path("services/web/port-8080"), move |request| {
            let response = answer(request);
            async move { response }
        });
    }
}

/// A vault that knows one operator, approves status and logs, and repeats what else it is asked.
fn start_vault(socket: &Path, asked: Arc<Mutex<Vec<Value>>>) {
    let operator = operator().verifying_key();
    serve_unix(socket, move |request| {
        assert_eq!((request.method(), request.uri().path()), (&Method::POST, "/v1/operator"));
        let question: Value = serde_json::from_slice(request.body()).unwrap();
        asked.lock().unwrap().push(question.clone());
        let response = judge(&operator, &question);
        async move { response }
    });
}

fn judge(operator: &VerifyingKey, question: &Value) -> Response<Body> {
    let text = |name: &str| question[name].as_str().unwrap().to_owned();
    let bytes = |name: &str| base64::decode(text(name)).unwrap();
    let binding: [u8; 32] = bytes("channel_binding").try_into().unwrap();
    let signature: [u8; 64] = bytes("signature").try_into().unwrap();
    let input = signing_input(&text("method"), &text("path"), &bytes("body"), &binding);
    if operator.verify_strict(&input, &signature.into()).is_err() {
        return respond(
            403,
            json!({"error": "the signature does not match this request on this connection"}),
        );
    }
    let path = text("path");
    match path.strip_prefix(PREFIX).unwrap() {
        "/v1/status" => respond(204, json!({})),
        path if path.starts_with("/v1/logs") => respond(204, json!({})),
        "/v1/secrets" => respond(200, json!({"secrets": []})),
        _ => respond(404, json!({"error": "no such thing", "hint": "look elsewhere"})),
    }
}

pub(super) fn operator() -> SigningKey {
    SigningKey::from_bytes(&[5; 32])
}

/// Another one, whom the vault of these tests does not know.
pub(super) fn second_operator() -> SigningKey {
    SigningKey::from_bytes(&[55; 32])
}

/// The declaration's token `ci`; it has another one besides.
pub(super) fn token() -> AccessToken {
    AccessToken::from_random(&[9; 32])
}

fn callers() -> Callers {
    let of = |name: &str, key: SigningKey| OperatorFacts {
        name: name.to_owned(),
        key: key.verifying_key().to_bytes(),
    };
    let tokens = [("ci", token()), ("phone", AccessToken::from_random(&[8; 32]))]
        .map(|(name, token)| Token { name: name.to_owned(), hash: token.hash() });
    Callers::new(&[of("alice", operator()), of("bob", second_operator())], &tokens, Turns::new()).unwrap()
}

pub(super) async fn dial(address: SocketAddr, pin: Option<Digest>) -> std::io::Result<TlsStream<TcpStream>> {
    shake_hands(TcpStream::connect(address).await?, pin).await
}

pub(super) async fn shake_hands(
    stream: TcpStream,
    pin: Option<Digest>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let config = ratls::client_config(pin).unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Dials as another source: the whole of 127/8 is this machine.
pub(super) async fn dial_from(source: [u8; 4], address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((source, 0)))?;
    shake_hands(socket.connect(address).await?, None).await
}

fn exporter(stream: &TlsStream<TcpStream>) -> [u8; 32] {
    stream.get_ref().1.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(b"")).unwrap()
}

/// HTTP over one TLS connection.
pub(super) struct Client {
    sender: hyper::client::conn::http1::SendRequest<Body>,
    pub(super) binding: [u8; 32],
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(super) fn error(&self) -> String {
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

impl Client {
    pub(super) async fn over(stream: TlsStream<TcpStream>) -> Self {
        let binding = exporter(&stream);
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Self { sender, binding }
    }

    pub(super) async fn send(&mut self, request: Request<Body>) -> Answer {
        let (parts, body) = self.sender.send_request(request).await.unwrap().into_parts();
        let body = axum::body::to_bytes(Body::new(body), 1 << 24).await.unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// The status of an answer; nothing when the connection is ended.
    pub(super) async fn try_get(&mut self, path: &str) -> Option<StatusCode> {
        let request = Request::get(path).header(header::HOST, "room.example").body(Body::empty()).unwrap();
        let (parts, body) = self.sender.send_request(request).await.ok()?.into_parts();
        axum::body::to_bytes(Body::new(body), 1 << 24).await.ok()?;
        Some(parts.status)
    }

    pub(super) async fn get(&mut self, path: &str) -> Answer {
        let request = Request::get(path).header(header::HOST, "room.example").body(Body::empty()).unwrap();
        self.send(request).await
    }

    pub(super) async fn signed(
        &mut self,
        key: &SigningKey,
        method: Method,
        path: &str,
        body: &[u8],
    ) -> Answer {
        let path = format!("{PREFIX}{path}");
        let signature =
            key.sign(&signing_input(method.as_str(), &path, body, &self.binding)).to_bytes().into();
        let fingerprint = Fingerprint::of(&key.verifying_key().to_bytes());
        let authorization = Authorization { key: fingerprint, signature }.to_string();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "room.example")
            .header(header::AUTHORIZATION, authorization)
            .body(Body::from(body.to_vec()))
            .unwrap();
        self.send(request).await
    }
}

// The attested identity.

#[tokio::test]
async fn the_certificate_carries_evidence_about_its_own_key() {
    let room = Room::open().await;
    let stream = room.dial().await;
    let connection = stream.get_ref().1;
    assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let certificate = connection.peer_certificates().unwrap()[0].clone();
    assert_eq!(ratls::spki_sha256(&certificate).unwrap(), room.tls_key);
    let evidence = ratls::evidence_from_certificate(&certificate).unwrap().unwrap();
    let evidence = Evidence::parse(&evidence).unwrap();
    let claims = Claims::decode(&evidence.claims).unwrap();
    assert_eq!(claims.tls_key, room.tls_key);
    assert_eq!((claims.nonce, claims.channel_binding), (None, None));
}

#[tokio::test]
async fn older_tls_is_refused() {
    let room = Room::open().await;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let stream = TcpStream::connect(room.address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let error = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
}

#[tokio::test]
async fn an_expired_certificate_is_not_shown() {
    let room = Room::open().await;
    room.identity.replace(vec![0x30], &room.key, Moment::at(clock::unix_now()));
    assert!(dial(room.address, None).await.is_err());
    super::attest(&room.site.evidence, &room.key, &room.identity).await;
    room.dial().await;
}

#[tokio::test]
async fn without_evidence_there_is_no_certificate_and_with_it_there_is() {
    let directory = tempfile::tempdir().unwrap();
    let pkcs8 = ratls::generate_key().unwrap();
    let facts = appliance(&ratls::key_sha256(&pkcs8).unwrap());
    std::fs::write(directory.path().join("appliance.json"), serde_json::to_vec(&facts).unwrap()).unwrap();
    let key = key_of(&pkcs8);
    let client = EvidenceClient::new(
        directory.path().join("evidence.sock"),
        directory.path().join("collateral.json"),
        Arc::default(),
    );
    let identity = Identity::default();
    let waiting = super::attest(&client, &key, &identity);
    assert!(tokio::time::timeout(Duration::from_millis(400), waiting).await.is_err());
    assert_eq!(client.answer(None, &[0; 32]).await.status(), StatusCode::SERVICE_UNAVAILABLE);

    let (machine, events) = (platform(), facts.event_log);
    start_evidence(directory.path(), &[], vec![me()], move |data| quote(&machine, &events, data));
    super::attest(&client, &key, &identity).await;
    assert_eq!(client.answer(None, &[0; 32]).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn evidence_about_another_key_makes_no_certificate() {
    let room = Room::open().await;
    let other = key_of(&ratls::generate_key().unwrap());
    let error = super::attempt(&room.site.evidence, &other, &room.identity).await.unwrap_err();
    assert!(matches!(error, super::AttestError::OtherKey), "{error}");
}

/// The key as `front` holds it.
fn key_of(pkcs8: &[u8]) -> TlsKey {
    TlsKey::from_pkcs8(SecretMemory::holding(pkcs8).unwrap()).unwrap()
}

#[test]
fn a_key_comes_in_memory_for_keys_or_not_at_all() {
    let pkcs8 = ratls::generate_key().unwrap();
    let descriptor = |bytes: &[u8]| SecretMemory::holding(bytes).map(std::mem::ManuallyDrop::new).unwrap();
    let handed = descriptor(&pkcs8);
    let key = TlsKey::inherited(handed.file().try_clone_to_owned().unwrap()).unwrap();
    assert_eq!(key.pkcs8(), pkcs8.as_slice());
    assert_eq!(format!("{key:?}"), "[redacted:tls-key]");
    let other = descriptor(b"no key");
    assert!(TlsKey::inherited(other.file().try_clone_to_owned().unwrap()).is_err());
    let mut plain = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut plain, &pkcs8).unwrap();
    assert!(TlsKey::inherited(plain.into()).is_err());
}

#[tokio::test]
async fn a_large_firmware_log_and_all_services_that_there_may_be_still_fit_into_the_certificate() {
    let room = Room::open().await;
    let (mut evidence, claims) = room.site.evidence.fetch(&Default::default()).await.unwrap();
    let firmware = json!({"mr": 0, "event": "EV_EFI_VARIABLE_DRIVER_CONFIG", "digest": "ab".repeat(48),
        "payload": base64::encode([7; 1000])});
    let firmware: event_log::Event = serde_json::from_value(firmware).unwrap();
    evidence.event_log.extend(std::iter::repeat_n(firmware, 100));
    // 160 bytes each, as the declaration bounds them together.
    let service = "a-name-of-a-service-of-31-bytes";
    let image =
        format!("registry.example.org/organisation/repository-name-1234567@sha256:{}", "0".repeat(64));
    assert_eq!(service.len() + image.len(), 160);
    let payload = json!({"service": service, "reference": image}).to_string();
    evidence
        .event_log
        .extend(std::iter::repeat_n(event_log::Event::new("image", payload.as_bytes()), MAX_SERVICES));
    let names = json!({"services": vec![service; MAX_SERVICES]}).to_string();
    evidence.event_log.push(event_log::Event::new("launch", names.as_bytes()));
    assert!(evidence.to_json().unwrap().len() > ratls::MAX_EVIDENCE);
    let issued = claims.issued_at.unix();
    let certificate =
        super::certificate(evidence, &"[::1]:443".parse().unwrap(), &room.key, issued, 3600).unwrap();
    let carried = ratls::evidence_from_certificate(&certificate).unwrap().unwrap();
    let carried = Evidence::parse(&carried).unwrap();
    assert_eq!(carried.event_log.len(), 105 + MAX_SERVICES + 1);
    assert!(carried.event_log.iter().all(|event| event.payload.is_some() == (event.mr == 3)));
}

#[tokio::test]
async fn the_certificate_is_renewed_at_two_thirds_and_shown_from_then_on() {
    let room = Room::open().await;
    let shown = async || room.dial().await.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let first = shown().await;
    assert_eq!(shown().await, first);
    // Claims of another second are other claims.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let due = Moment::at(clock::unix_now());
    let renewing = super::renew(&room.site.evidence, &room.key, &room.identity, due, Steps::made().1);
    assert!(
        tokio::time::timeout(Duration::from_secs(1), renewing).await.is_err(),
        "once, not in a tight loop"
    );
    let second = shown().await;
    // And at once when the clock is set.
    let (later, (set, steps)) = (Moment::at(clock::unix_now() + 3600), Steps::made());
    set.send_modify(|count| *count += 1);
    let renewing = super::renew(&room.site.evidence, &room.key, &room.identity, later, steps);
    tokio::time::timeout(Duration::from_secs(1), renewing).await.unwrap_err();
    assert_ne!(shown().await, second);
    let second = shown().await;
    assert_ne!(second, first);
    let carried = ratls::evidence_from_certificate(&second).unwrap().unwrap();
    let handed_out = room.client().await.get(&format!("{PREFIX}/evidence")).await;
    assert_eq!(Evidence::parse(&carried).unwrap().claims, Evidence::parse(&handed_out.body).unwrap().claims);
}

// Evidence on request.

/// What a careful client expects on this connection.
fn expectations(room: &Room, nonce: &[u8], binding: [u8; 32]) -> Expectations {
    Expectations {
        repository: Some("acme/room".parse().unwrap()),
        tls_key: Some(room.tls_key),
        nonce: Some(Nonce::new(nonce.to_vec()).unwrap()),
        channel_binding: Some(binding.into()),
        ..Expectations::default()
    }
}

fn judge_evidence(body: &[u8], expected: &Expectations) -> appraise::Appraisal {
    let evidence = Evidence::parse(body).unwrap();
    let roots = Roots::intel().with_pem(&platform().root_pem()).unwrap();
    appraise::appraise(&evidence, expected, &Policy::default(), &roots, clock::unix_now())
}

fn write_collateral(room: &Room) {
    let collateral = platform().collateral(clock::unix_now(), Default::default()).unwrap();
    std::fs::write(room.path("publish/collateral.json"), collateral.to_json().unwrap()).unwrap();
}

#[tokio::test]
async fn fresh_evidence_is_bound_to_nonce_and_connection_and_verifies() {
    let room = Room::open().await;
    write_collateral(&room);
    let mut client = room.client().await;
    let nonce = [0xfb; 32];
    let answer = client.get(&format!("{PREFIX}/evidence?nonce={}", base64::encode_url(nonce))).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers[header::CONTENT_TYPE], MEDIA_TYPE);
    let claims = Claims::decode(&Evidence::parse(&answer.body).unwrap().claims).unwrap();
    assert_eq!(claims.channel_binding, Some(client.binding.into()), "exporter of client and server");
    assert_eq!(claims.nonce.unwrap().as_bytes(), nonce);
    let appraisal = judge_evidence(&answer.body, &expectations(&room, &nonce, client.binding));
    assert_eq!(appraisal.failures().collect::<Vec<_>>(), Vec::<&appraise::Check>::new());
    for name in ["quote_chain", "report_data", "nonce", "channel_binding", "tls_key", "event_log"] {
        assert_eq!(appraisal.check(name).unwrap().outcome, Outcome::Pass, "{name}");
    }
    // Without reference values the firmware's registers have nothing to be compared with.
    assert_eq!(appraisal.verdict(), Verdict::CouldNotCheck);

    let other = room.client().await;
    assert_ne!(other.binding, client.binding);
}

#[tokio::test]
async fn evidence_relayed_onto_another_connection_is_refused() {
    let room = Room::open().await;
    write_collateral(&room);
    // The man in the middle has a key of his own, passes the nonce on and hands back what he gets.
    let own = ratls::generate_key().unwrap();
    let his_key = ratls::key_sha256(&own).unwrap();
    let identity = Arc::new(Identity::default());
    let certificate =
        ratls::certificate(&own, b"{}", &["127.0.0.1".into()], clock::unix_now(), 3600).unwrap();
    identity.replace(certificate, &key_of(&own), Moment::at(u64::MAX));
    let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(identity, true).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let middle = listener.local_addr().unwrap();
    let behind = room.address;
    tokio::spawn(async move {
        let mut client = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        let mut server = dial(behind, None).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });

    let stream = dial(middle, None).await.unwrap();
    let shown = ratls::spki_sha256(&stream.get_ref().1.peer_certificates().unwrap()[0]).unwrap();
    assert_eq!(shown, his_key);
    let mut client = Client::over(stream).await;
    let nonce = [3; 16];
    let answer = client.get(&format!("{PREFIX}/evidence?nonce={}", base64::encode_url(nonce))).await;
    assert_eq!(answer.status, StatusCode::OK, "the evidence itself is genuine");
    let expected = Expectations { tls_key: Some(shown), ..expectations(&room, &nonce, client.binding) };
    let appraisal = judge_evidence(&answer.body, &expected);
    assert_eq!(appraisal.verdict(), Verdict::Rejected);
    let failed: Vec<_> = appraisal.failures().map(|check| check.name).collect();
    assert!(failed.contains(&"channel_binding") && failed.contains(&"tls_key"), "{failed:?}");
    assert_eq!(
        appraisal.check("nonce").unwrap().outcome,
        Outcome::Pass,
        "a nonce alone would not have helped"
    );
}

#[tokio::test]
async fn evidence_without_a_nonce_is_that_of_the_certificate_and_gets_collateral_when_there_is_some() {
    let room = Room::open().await;
    let mut client = room.client().await;
    let path = format!("{PREFIX}/evidence");
    let bare = Evidence::parse(&client.get(&path).await.body).unwrap();
    assert!(bare.collateral.is_none());
    write_collateral(&room);
    let full = Evidence::parse(&client.get(&path).await.body).unwrap();
    assert!(full.collateral.is_some());
    assert_eq!((full.claims, full.quote), (bare.claims, bare.quote));
    std::fs::write(room.path("publish/collateral.json"), "garbage").unwrap();
    assert!(Evidence::parse(&client.get(&path).await.body).unwrap().collateral.is_none());
}

#[tokio::test]
async fn malformed_nonces_are_refused() {
    let room = Room::open().await;
    let mut client = room.client().await;
    let long = base64::encode_url([0; 65]);
    for query in [
        "nonce=",
        "nonce=AAAA",
        "nonce=%00",
        "x=1",
        "nonce=AAAAAAAAAAAAAAAAAAAAAA&x",
        &format!("nonce={long}"),
    ] {
        let answer = client.get(&format!("{PREFIX}/evidence?{query}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
        assert!(answer.json()["hint"].as_str().unwrap().contains("base64url"));
    }
    let request =
        Request::post(format!("{PREFIX}/evidence")).header("host", "x").body(Body::empty()).unwrap();
    assert_eq!(client.send(request).await.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_ask_at_once_share_a_quote_and_each_can_verify_it() {
    const MANY: u8 = 60;
    let room = Room::open().await;
    write_collateral(&room);
    let mut clients = Vec::new();
    for _ in 0..MANY {
        clients.push(room.client().await);
    }
    let before = room.quotes.load(Ordering::Relaxed);
    let mut asking = tokio::task::JoinSet::new();
    for (number, mut client) in (0..MANY).zip(clients) {
        asking.spawn(async move {
            let nonce = [number; 16];
            let path = format!("{PREFIX}/evidence?nonce={}", base64::encode_url(nonce));
            (client.get(&path).await, nonce, client.binding)
        });
    }
    let answers = asking.join_all().await;
    let quotes = room.quotes.load(Ordering::Relaxed) - before;
    assert!(quotes <= usize::from(MANY) / 3, "{quotes} quotes for {MANY}");

    let mut shared = 0;
    for (answer, nonce, binding) in &answers {
        assert_eq!(answer.status, StatusCode::OK);
        let appraisal = judge_evidence(&answer.body, &expectations(&room, nonce, *binding));
        assert_eq!(appraisal.failures().collect::<Vec<_>>(), Vec::<&appraise::Check>::new());
        for name in ["report_data", "nonce", "channel_binding"] {
            assert_eq!(appraisal.check(name).unwrap().outcome, Outcome::Pass, "{name}");
        }
        let evidence = Evidence::parse(&answer.body).unwrap();
        let of_many = Claims::decode(&evidence.claims).unwrap().challenges.is_some();
        assert_eq!(evidence.challenge.is_some(), of_many);
        shared += usize::from(of_many);
    }
    assert!(shared > 0);

    // What was made for another's connection, or over another's nonce, is not one's own, although the quote is the same.
    let evidence: Vec<Evidence> =
        answers.iter().map(|(answer, ..)| Evidence::parse(&answer.body).unwrap()).collect();
    let of = |at: &usize| evidence[*at].challenge.is_some();
    let pair: Vec<usize> = (0..evidence.len()).filter(of).collect();
    let (one, other) = (
        pair[0],
        *pair.iter().find(|at| evidence[**at].claims == evidence[pair[0]].claims && **at != pair[0]).unwrap(),
    );
    let (answer, nonce, _) = &answers[one];
    let (_, other_nonce, other_binding) = &answers[other];
    let fails = |body: &[u8], nonce: &[u8], binding, name: &str| {
        let appraisal = judge_evidence(body, &expectations(&room, nonce, binding));
        assert_eq!(appraisal.verdict(), Verdict::Rejected);
        assert!(appraisal.failures().any(|check| check.name == name), "{name}");
    };
    fails(&answer.body, nonce, *other_binding, "channel_binding");
    fails(&answer.body, other_nonce, *other_binding, "nonce");
    let forged = Evidence {
        challenge: evidence[other]
            .challenge
            .clone()
            .map(|challenge| Challenge { index: challenge.index ^ 1, ..challenge }),
        ..evidence[one].clone()
    };
    fails(&forged.to_json().unwrap(), other_nonce, *other_binding, "challenge");
    let bare = Evidence { challenge: None, ..evidence[one].clone() };
    fails(&bare.to_json().unwrap(), nonce, *other_binding, "challenge");
}

#[tokio::test]
async fn who_asks_alone_has_a_quote_of_their_own_and_who_goes_away_holds_up_nobody() {
    let room = Room::open().await;
    let mut client = room.client().await;
    for number in 0..3 {
        let path = format!("{PREFIX}/evidence?nonce={}", base64::encode_url([number; 16]));
        let evidence = Evidence::parse(&client.get(&path).await.body).unwrap();
        assert!(evidence.challenge.is_none());
        // Somebody asks and is gone before there is an answer.
        let mut gone = room.dial().await;
        let path = format!("{PREFIX}/evidence?nonce={}", base64::encode_url([99; 16]));
        gone.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        drop(gone);
    }
    assert_eq!(client.get(&format!("{PREFIX}/evidence")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn without_the_evidence_role_who_asks_is_told_when_to_come_back() {
    let room = Room::open().await;
    std::fs::remove_file(room.path("evidence.sock")).unwrap();
    let path = format!("{PREFIX}/evidence?nonce={}", base64::encode_url([1; 16]));
    let answer = room.client().await.get(&path).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers[header::RETRY_AFTER].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    // What is read of the appliance by an operator needs no quote.
    let status = room.client().await.signed(&operator(), Method::GET, "/v1/status", b"").await;
    assert_eq!(status.status, StatusCode::OK);
}

// The operators' interface.

#[tokio::test]
async fn operators_requests_reach_the_vault_as_they_were_signed() {
    let room = Room::open().await;
    let mut client = room.client().await;
    let answer = client.signed(&operator(), Method::GET, "/v1/secrets", b"").await;
    assert_eq!((answer.status, answer.json()), (StatusCode::OK, json!({"secrets": []})));
    let answer = client.signed(&operator(), Method::PUT, "/v1/secrets/a/b/c?x=%20", b"{\"enc\":1}").await;
    assert_eq!((answer.status, answer.error()), (StatusCode::NOT_FOUND, "no such thing".into()));
    assert_eq!(answer.json()["hint"], "look elsewhere");

    let asked = room.asked.lock().unwrap().clone();
    let mut keys: Vec<_> = asked[1].as_object().unwrap().keys().cloned().collect();
    keys.sort();
    assert_eq!(keys, ["body", "channel_binding", "key", "method", "path", "signature"]);
    assert_eq!(asked[1]["method"], "PUT");
    assert_eq!(asked[1]["path"], format!("{PREFIX}/v1/secrets/a/b/c?x=%20"));
    assert_eq!(asked[1]["body"], base64::encode(b"{\"enc\":1}"));
    assert_eq!(asked[1]["channel_binding"], base64::encode(client.binding));
}

#[tokio::test]
async fn only_operators_see_status_logs_and_events() {
    let room = Room::open().await;
    let mut client = room.client().await;
    for path in ["/v1/status", "/v1/logs?service=web", "/v1/events", "/v1/secrets", "/v1/anything"] {
        let answer = client.get(&format!("{PREFIX}{path}")).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
        let stranger = SigningKey::from_bytes(&[6; 32]);
        let answer = client.signed(&stranger, Method::GET, path, b"").await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    for authorization in
        ["", "Bearer x", "Cofferdam-Operator", "Cofferdam-Operator key=\"x\", signature=\"y\""]
    {
        let request = Request::get(format!("{PREFIX}/v1/status"))
            .header("host", "x")
            .header(header::AUTHORIZATION, authorization)
            .body(Body::empty())
            .unwrap();
        assert_eq!(client.send(request).await.status, StatusCode::UNAUTHORIZED, "{authorization}");
    }
    // A signature made for one connection is nothing on another.
    let signature = operator()
        .sign(&signing_input("GET", &format!("{PREFIX}/v1/status"), b"", &client.binding))
        .to_bytes()
        .into();
    let key = Fingerprint::of(&operator().verifying_key().to_bytes());
    let request = Request::get(format!("{PREFIX}/v1/status"))
        .header("host", "x")
        .header(header::AUTHORIZATION, Authorization { key, signature }.to_string())
        .body(Body::empty())
        .unwrap();
    assert_eq!(room.client().await.send(request).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn status_is_what_the_roles_have_written() {
    let room = Room::open().await;
    std::fs::write(
        room.path("status.json"),
        r#"{"version":1,"phase":"supervise","state":"in memory only, lost at power-off","roles":[{"name":"vault","pid":7,"restarts":1,"state":"running"}]}"#,
    )
    .unwrap();
    let web =
        r#"{"state":"waiting","missing":["secret://a/b/c"],"restarts":2,"since":"2026-01-01T00:00:00.000Z"}"#;
    std::fs::write(room.path("services/web/status.json"), web).unwrap();
    std::fs::write(
        room.path("publish/status.json"),
        r#"{"state":"published","tag":"attest-x","at":"2026-01-01T00:00:00Z"}"#,
    )
    .unwrap();
    let denied = r#"{"denied":1,"latest":[{"target":"a.example.org","why":"name","count":1,"last":"2026-01-01T00:00:00Z","allow":"a.example.org:443"}]}"#;
    std::fs::create_dir(room.path("egress")).unwrap();
    std::fs::write(room.path("egress/web.json"), denied).unwrap();
    std::fs::create_dir_all(room.path("cgroup/shim")).unwrap();
    std::fs::create_dir(room.path("cgroup/vault")).unwrap();
    std::fs::write(room.path("cgroup/vault/memory.current"), "4096\n").unwrap();
    for (file, content) in
        [("memory.current", "100\n"), ("shim/memory.current", "30\n"), ("cpu.stat", "usage_usec 5000\n")]
    {
        std::fs::write(room.path("cgroup").join(file), content).unwrap();
    }
    let answer = room.client().await.signed(&operator(), Method::GET, "/v1/status", b"").await;
    assert_eq!(answer.status, StatusCode::OK);
    let status = answer.json();
    let usage =
        json!({"memory": 70, "memory_limit": 64 << 20, "processes": 0, "processes_limit": 7, "cpu_ms": 5});
    assert_eq!(status["services"][0]["usage"], usage);
    assert_eq!(status["services"][0]["egress"]["latest"][0]["allow"], "a.example.org:443");
    assert_eq!(status["state"], "in memory only, lost at power-off");
    assert_eq!(status["repository"], "acme/room");
    assert_eq!(status["phases"], json!([{"name": "mount", "ms": 3}]));
    assert_eq!(status["registers"]["mrtd"], "00".repeat(48));
    assert_eq!(status["roles"][0]["name"], "vault");
    assert_eq!(status["roles"][0]["memory"], 4096);
    assert_eq!(status["services"][0]["name"], "web");
    assert_eq!(status["services"][0]["missing"], json!(["secret://a/b/c"]));
    assert_eq!(status["services"][1], json!({"name": "db", "state": "pending"}));
    assert_eq!(status["publish"]["tag"], "attest-x");
}

#[tokio::test]
async fn a_service_without_its_shim_does_not_run_whatever_the_shim_said_last() {
    let room = Room::open().await;
    let web = r#"{"state":"running","missing":[],"pid":9,"restarts":2,"since":"2026-01-01T00:00:00.000Z"}"#;
    std::fs::write(room.path("services/web/status.json"), web).unwrap();
    let seen = async |shim: &str| {
        let roles =
            format!(r#"{{"version":1,"phase":"supervise","state":"in memory only","roles":[{shim}]}}"#);
        std::fs::write(room.path("status.json"), roles).unwrap();
        let answer = room.client().await.signed(&operator(), Method::GET, "/v1/status", b"").await;
        answer.json()["services"][0].clone()
    };
    let status = seen(r#"{"name":"shim web","pid":7,"restarts":0,"state":"running"}"#).await;
    assert_eq!((&status["state"], &status["pid"]), (&json!("running"), &json!(9)));
    let status =
        seen(r#"{"name":"shim web","restarts":0,"state":"restarting","killed":{"why":"uncounted-memory"}}"#)
            .await;
    assert_eq!(
        status,
        json!({"name": "web", "state": "restarting", "missing": [], "restarts": 2,
            "killed": {"why": "uncounted-memory"}, "detail": "ended: it took memory that is counted to nobody",
            "since": "2026-01-01T00:00:00.000Z"})
    );
    // Once it runs again, its new shim knows nothing of that, until a workload of its own has ended.
    let again = r#"{"name":"shim web","pid":8,"restarts":1,"state":"running","killed":{"why":"machine-out-of-memory"}}"#;
    let status = seen(again).await;
    assert_eq!(
        (&status["state"], &status["killed"]["why"]),
        (&json!("running"), &json!("machine-out-of-memory"))
    );
    let web = r#"{"state":"running","missing":[],"restarts":1,"exit_code":137,"since":"2026-01-01T00:00:00.000Z",
        "killed":{"why":"out-of-memory","limit":1048576}}"#;
    std::fs::write(room.path("services/web/status.json"), web).unwrap();
    assert_eq!(seen(again).await["killed"], json!({"why": "out-of-memory", "limit": 1_048_576}));
    let web =
        r#"{"state":"exited","missing":[],"restarts":1,"exit_code":0,"since":"2026-01-01T00:00:00.000Z"}"#;
    std::fs::write(room.path("services/web/status.json"), web).unwrap();
    assert!(seen(again).await.get("killed").is_none());
}

#[tokio::test]
async fn logs_are_the_last_whole_lines_over_a_rotation() {
    let room = Room::open().await;
    let line = |n: usize| format!("{{\"line\":\"{n}\"}}\n");
    let old: String = (0..5).map(line).collect();
    let new: String = (5..8).map(line).collect();
    std::fs::write(room.path("services/web/log.1"), old).unwrap();
    std::fs::write(room.path("services/web/log"), new + "{\"line\":\"unfini").unwrap();
    let mut client = room.client().await;
    let mut tail = async |query: &str| {
        let answer = client.signed(&operator(), Method::GET, &format!("/v1/logs?{query}"), b"").await;
        (answer.status, String::from_utf8(answer.body.to_vec()).unwrap())
    };
    let lines = |range: std::ops::Range<usize>| range.map(line).collect::<String>();
    assert_eq!(tail("service=web&tail=2").await, (StatusCode::OK, lines(6..8)));
    assert_eq!(tail("tail=4&service=web").await, (StatusCode::OK, lines(4..8)));
    assert_eq!(tail("service=web").await, (StatusCode::OK, lines(0..8)));
    assert_eq!(tail("service=web&tail=0").await, (StatusCode::OK, String::new()));
    assert_eq!(tail("service=web&tail=99999999").await, (StatusCode::OK, lines(0..8)));
    assert_eq!(tail("service=db").await, (StatusCode::OK, String::new()));
    for bad in [
        "",
        "tail=1",
        "service=web&tail=x",
        "service=web&service=db",
        "service=web&tail=-1",
        "service=web&follow=1",
    ] {
        assert_eq!(tail(bad).await.0, StatusCode::BAD_REQUEST, "{bad}");
    }
    for unknown in ["service=..", "service=web/../db", "service=/etc", "service=", "service=%2e%2e"] {
        assert_eq!(tail(unknown).await.0, StatusCode::NOT_FOUND, "{unknown}");
    }
}

#[tokio::test]
async fn a_log_that_is_a_link_is_not_followed() {
    let room = Room::open().await;
    std::fs::write(room.path("secret"), "{\"line\":\"hidden\"}\n").unwrap();
    std::os::unix::fs::symlink(room.path("secret"), room.path("services/web/log")).unwrap();
    nix::unistd::mkfifo(&room.path("services/web/log.1"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let answer = room.client().await.signed(&operator(), Method::GET, "/v1/logs?service=web", b"").await;
    assert_eq!((answer.status, answer.body), (StatusCode::OK, Bytes::new()));
}

#[tokio::test]
async fn a_body_beyond_the_largest_secret_is_refused() {
    let room = Room::open().await;
    let mut client = room.client().await;
    let answer = client.signed(&operator(), Method::PUT, "/v1/secrets/a/b/c", &vec![b'x'; 200 * 1024]).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    // Larger than the vault reads once it is in base64, and so refused for the same reason.
    let mut client = room.client().await;
    let answer = client.signed(&operator(), Method::PUT, "/v1/secrets/a/b/c", &vec![b'x'; 110 * 1024]).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(room.asked.lock().unwrap().is_empty());
    let answer = client.signed(&operator(), Method::PUT, "/v1/secrets/a/b/c", &vec![b'x'; 90 * 1024]).await;
    assert_eq!(answer.error(), "no such thing");
}

/// Sends `count` operators' requests at once; returns the status of each.
async fn operate(room: &Room, count: usize) -> Vec<StatusCode> {
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..count {
        let mut client = room.client().await;
        asking.spawn(async move { client.signed(&operator(), Method::GET, "/v1/secrets", b"").await.status });
    }
    asking.join_all().await
}

#[tokio::test]
async fn operators_wait_for_each_other_and_not_for_ever() {
    let room = Room::open().await;
    std::fs::remove_file(room.path("vault.sock")).unwrap();
    serve_unix(&room.path("vault.sock"), |_| async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        respond(200, json!({"secrets": []}))
    });
    assert_eq!(operate(&room, 20).await, [StatusCode::OK; 20]);

    std::fs::remove_file(room.path("vault.sock")).unwrap();
    serve_unix(&room.path("vault.sock"), |_| async {
        tokio::time::sleep(Duration::from_secs(8)).await;
        respond(200, json!({"secrets": []}))
    });
    let answers = operate(&room, 12).await;
    let refused = answers.iter().filter(|status| **status == StatusCode::SERVICE_UNAVAILABLE).count();
    assert_eq!(refused, 4, "{answers:?}");
}

#[tokio::test]
async fn a_vault_that_is_away_is_said_so_and_what_reads_goes_without_it() {
    let room = Room::open().await;
    std::fs::remove_file(room.path("vault.sock")).unwrap();
    std::fs::write(room.path("services/web/log"), "{\"line\":\"1\"}\n").unwrap();
    let answer = room.client().await.signed(&operator(), Method::GET, "/v1/secrets", b"").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers.contains_key(header::RETRY_AFTER));
    for path in ["/v1/status", "/v1/logs?service=web", "/v1/events"] {
        let answer = room.client().await.signed(&operator(), Method::GET, path, b"").await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        let answer = room.client().await.signed(&operator(), Method::POST, path, b"").await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
    }
    assert!(room.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_forged_signature_waits_for_nobody_and_reaches_nobody() {
    let room = Room::open().await;
    std::fs::remove_file(room.path("vault.sock")).unwrap();
    serve_unix(&room.path("vault.sock"), |_| std::future::pending::<Response<Body>>());
    // As many as the vault is asked about at one time hang there.
    let mut hanging = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut client = room.client().await;
        hanging.spawn(async move { client.signed(&operator(), Method::GET, "/v1/secrets", b"").await });
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let stranger = SigningKey::from_bytes(&[6; 32]);
    let began = std::time::Instant::now();
    for (method, path) in
        [(Method::GET, "/v1/status"), (Method::PUT, "/v1/secrets/a/b/c"), (Method::POST, "/v1/publish")]
    {
        let mut client = room.client().await;
        assert_eq!(
            client.signed(&stranger, method, path, b"x").await.status,
            StatusCode::UNAUTHORIZED,
            "{path}"
        );
    }
    let status = room.client().await.signed(&operator(), Method::GET, "/v1/status", b"").await;
    assert_eq!(status.status, StatusCode::OK);
    assert!(began.elapsed() < Duration::from_secs(4), "nothing of this has waited for a place");
}

#[tokio::test]
async fn publish_is_asked_by_operators_alone() {
    let room = Room::open().await;
    let mut client = room.client().await;
    let answer = client.signed(&operator(), Method::POST, "/v1/publish", b"").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "the role is away");
    let listener = tokio::net::UnixListener::bind(room.path("publish.sock")).unwrap();
    let answer = client.signed(&operator(), Method::POST, "/v1/publish", b"").await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    tokio::time::timeout(Duration::from_secs(5), listener.accept()).await.unwrap().unwrap();
    let stranger = SigningKey::from_bytes(&[6; 32]);
    assert_eq!(
        client.signed(&stranger, Method::POST, "/v1/publish", b"").await.status,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        client.signed(&operator(), Method::GET, "/v1/publish", b"").await.status,
        StatusCode::METHOD_NOT_ALLOWED
    );
    let more = tokio::time::timeout(Duration::from_millis(200), listener.accept()).await;
    assert!(more.is_err(), "nobody else is heard");
    assert!(room.asked.lock().unwrap().is_empty());
}

// The way to the services.

/// Answers with what arrived.
pub(super) fn mirror(request: Request<Bytes>) -> Response<Body> {
    let headers: Vec<(String, String)> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    let seen = json!({
        "method": request.method().as_str(),
        "target": request.uri().to_string(),
        "headers": headers,
        "body": String::from_utf8_lossy(request.body()),
    });
    let mut response = respond(200, seen);
    response.headers_mut().insert("connection", "x-private".parse().unwrap());
    response.headers_mut().insert("x-private", "1".parse().unwrap());
    response.headers_mut().insert("keep-alive", "timeout=5".parse().unwrap());
    response.headers_mut().insert("x-public", "2".parse().unwrap());
    response
}

fn values(seen: &Value, name: &str) -> Vec<String> {
    let headers = seen["headers"].as_array().unwrap().iter();
    let same = headers.filter(|pair| pair[0] == name);
    same.map(|pair| pair[1].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn requests_reach_the_workload_without_what_belongs_to_the_hop() {
    let room = Room::open().await;
    room.workload(mirror);
    let request = Request::post("/a/b?c=d%20e")
        .header(header::HOST, "room.example")
        .header("connection", "keep-alive, X-Listed, host, content-length")
        .header("x-listed", "1")
        .header("proxy", "http://6.6.6.6")
        .header("x_forwarded_for", "6.6.6.6")
        .header("x_cofferdam_caller", "operator:alice")
        .header("transfer_encoding", "chunked")
        .header("content_length", "0")
        .header("keep_alive", "1")
        .header("keep-alive", "timeout=5")
        .header("te", "trailers, deflate")
        .header("proxy-authorization", "x")
        .header("x-forwarded-for", "6.6.6.6")
        .header("x-forwarded-proto", "http")
        .header("x-forwarded-server", "evil")
        .header("forwarded", "for=6.6.6.6")
        .header("x-real-ip", "6.6.6.6")
        .header("expect", "100-continue")
        .header("x-kept", "1")
        .header("x-kept", "2")
        .body(Body::from("hello"))
        .unwrap();
    let answer = room.client().await.send(request).await;
    assert_eq!(answer.status, StatusCode::OK);
    let seen = answer.json();
    assert_eq!((&seen["method"], &seen["target"]), (&json!("POST"), &json!("/a/b?c=d%20e")));
    assert_eq!(seen["body"], "hello");
    assert_eq!(values(&seen, "content-length"), ["5"]);
    assert_eq!(values(&seen, "host"), ["room.example"]);
    assert_eq!(values(&seen, "x-kept"), ["1", "2"]);
    assert_eq!(values(&seen, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(values(&seen, "x-forwarded-proto"), ["https"]);
    assert_eq!(values(&seen, "x-forwarded-host"), ["room.example"]);
    // The next hop is told that trailers may come, and nothing else of this one.
    assert_eq!(
        (values(&seen, "te"), values(&seen, "connection")),
        (vec!["trailers".into()], vec!["te".into()])
    );
    let gone = [
        "x-listed",
        "keep-alive",
        "proxy",
        "x_forwarded_for",
        "x_cofferdam_caller",
        "transfer_encoding",
        "content_length",
        "keep_alive",
        "proxy-authorization",
        "x-forwarded-server",
        "forwarded",
        "x-real-ip",
        "expect",
        "transfer-encoding",
    ];
    for name in gone {
        assert_eq!(values(&seen, name), Vec::<String>::new(), "{name}");
    }
    assert_eq!(answer.headers["x-public"], "2");
    assert!(!answer.headers.contains_key("x-private") && !answer.headers.contains_key("keep-alive"));
}

#[tokio::test]
async fn the_appliances_paths_never_reach_the_workload() {
    let room = Room::open().await;
    room.workload(|_| panic!("it did"));
    let mut client = room.client().await;
    for path in [
        PREFIX.to_owned(),
        format!("{PREFIX}/"),
        format!("{PREFIX}/evidence/"),
        format!("{PREFIX}/nothing"),
        format!("{PREFIX}/../../app"),
        format!("/{PREFIX}/evidence"),
        "/.well-known/%63offerdam/evidence".to_owned(),
        "/app/%2e%2e/.well-known/cofferdam/v1/status".to_owned(),
    ] {
        let answer = client.get(&path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
    }
}

/// Sends raw bytes over TLS and reads the head of the answer, or until the end when there is none.
pub(super) async fn raw(room: &Room, bytes: &[u8]) -> String {
    let mut stream = room.dial().await;
    stream.write_all(bytes).await.unwrap();
    let mut answer = String::new();
    let mut buffer = [0; 4096];
    while !answer.contains("\r\n\r\n") {
        match tokio::time::timeout(Duration::from_secs(10), stream.read(&mut buffer))
            .await
            .expect("an answer or an end")
        {
            Ok(count) if count > 0 => answer.push_str(&String::from_utf8_lossy(&buffer[..count])),
            _ => break,
        }
    }
    answer
}

#[tokio::test]
async fn ambiguous_requests_do_not_smuggle_a_second_one() {
    let room = Room::open().await;
    let targets = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&targets);
    room.workload(move |request| {
        seen.lock().unwrap().push(request.uri().to_string());
        mirror(request)
    });
    for request in [
        // Both lengths; the coding counts or the request is refused, and the rest is no request of its own in between.
        "POST /one HTTP/1.1\r\nhost: x\r\ncontent-length: 45\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: x\r\nx: y\r\n\r\n",
        "POST /two HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcde",
        "POST /three HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST /four HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /five HTTP/1.1\r\nhost : x\r\n\r\n",
        "GET /six HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        "GET /seven HTTP/1.1\r\n\r\n",
        "GET http://x/eight HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n",
        "GET /nine HTTP/1.1\r\nhost: \r\n\r\n",
        "GET /ten HTTP/1.1\r\nhost: user@x\r\n\r\n",
        "GET /eleven HTTP/1.1\r\nhost: x:99999\r\n\r\n",
        "GET /twelve HTTP/1.1\r\nhost: x/y\r\n\r\n",
        "GET /thirteen HTTP/1.1\r\nhost: x, y\r\n\r\n",
        "POST /fourteen HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "CONNECT evil.example:443 HTTP/1.1\r\nhost: x\r\n\r\n",
    ] {
        let answer = raw(&room, request.as_bytes()).await;
        let first = answer.lines().next().unwrap_or_default().to_owned();
        if !request.starts_with("POST /one") {
            assert!(
                first.starts_with("HTTP/1.1 400") || first.starts_with("HTTP/1.0 400"),
                "{request}: {first}"
            );
        }
    }
    // Time for a second request to come through, if one did.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let targets = targets.lock().unwrap().clone();
    assert!(targets.iter().all(|target| target == "/one"), "{targets:?}");
    for host in ["x", "x:8443", "192.0.2.1", "[::1]:443", "xn--bcher-kva.example"] {
        let answer = raw(&room, format!("GET /one HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
}

#[tokio::test]
async fn bodies_stream_in_both_directions() {
    let room = Room::open().await;
    let socket = room.path("services/web/port-8080");
    // A workload that repeats each piece as it comes, below HTTP's notice.
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let echo = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
            Ok::<_, std::convert::Infallible>(Response::new(Body::new(request.into_body())))
        });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), echo).await;
    });
    let mut stream = room.dial().await;
    stream
        .write_all(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        .await
        .unwrap();
    let mut seen = String::new();
    while !seen.contains("abc") {
        let mut buffer = [0; 1024];
        let count =
            tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(count > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    stream.write_all(b"3\r\ndef\r\n0\r\n\r\n").await.unwrap();
    while !seen.contains("def") {
        let mut buffer = [0; 1024];
        let count =
            tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(count > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
}

#[tokio::test]
async fn head_keeps_the_length_and_has_no_body() {
    let room = Room::open().await;
    room.workload(|request| {
        assert_eq!(request.method(), Method::HEAD);
        Response::builder().header(header::CONTENT_LENGTH, "1234").body(Body::empty()).unwrap()
    });
    let request = Request::head("/").header("host", "x").body(Body::empty()).unwrap();
    let answer = room.client().await.send(request).await;
    assert_eq!(
        (answer.status, &answer.headers[header::CONTENT_LENGTH]),
        (StatusCode::OK, &"1234".parse().unwrap())
    );
}

#[tokio::test]
async fn websockets_are_tunnelled_and_other_upgrades_are_not() {
    let room = Room::open().await;
    serve_unix(&room.path("services/web/port-8080"), |mut request| async move {
        if request.headers().get(header::UPGRADE).is_none() {
            return respond(200, json!({"upgraded": false}));
        }
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgraded.await.unwrap());
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.unwrap();
            heard.reverse();
            stream.write_all(&heard).await.unwrap();
        });
        Response::builder()
            .status(101)
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, "websocket")
            .header("sec-websocket-accept", "x")
            .body(Body::empty())
            .unwrap()
    });
    let upgrade = |protocol: &str| {
        Request::get("/socket")
            .header("host", "x")
            .header("connection", "Upgrade")
            .header("upgrade", protocol)
            .body(Body::empty())
            .unwrap()
    };
    let mut client = room.client().await;
    let mut response = client.sender.send_request(upgrade("websocket")).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["sec-websocket-accept"], "x");
    let mut tunnel = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    tunnel.write_all(b"abcd").await.unwrap();
    // The end of one direction does not cut the other off.
    tunnel.shutdown().await.unwrap();
    let mut back = Vec::new();
    tokio::time::timeout(Duration::from_secs(5), tunnel.read_to_end(&mut back)).await.unwrap().unwrap();
    assert_eq!(back, b"dcba");

    let answer = room.client().await.send(upgrade("h2c")).await;
    assert_eq!((answer.status, answer.json()), (StatusCode::OK, json!({"upgraded": false})));
}

#[tokio::test]
async fn a_service_that_does_not_answer_is_described() {
    let room = Room::open().await;
    let mut client = room.client().await;
    let answer = client.get("/").await;
    assert_eq!(
        (answer.status, answer.error()),
        (StatusCode::SERVICE_UNAVAILABLE, "service web has not started".into())
    );
    let waiting = r#"{"state":"waiting","missing":["secret://app/db/password"],"restarts":0,"since":"2026-01-01T00:00:00.000Z"}"#;
    std::fs::write(room.path("services/web/status.json"), waiting).unwrap();
    let answer = client.get("/").await;
    assert_eq!(answer.error(), "service web is waiting: secret://app/db/password missing");
    assert!(answer.headers.contains_key(header::RETRY_AFTER));

    let listener = tokio::net::UnixListener::bind(room.path("services/web/port-8080")).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"SSH-2.0-not-http\r\n").await;
        }
    });
    let answer = client.get("/").await;
    assert_eq!(
        answer.status,
        StatusCode::SERVICE_UNAVAILABLE,
        "the shim accepts for a service that has not started"
    );
    let running =
        r#"{"state":"running","missing":[],"pid":9,"restarts":0,"since":"2026-01-01T00:00:00.000Z"}"#;
    std::fs::write(room.path("services/web/status.json"), running).unwrap();
    let answer = client.get("/").await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(answer.error(), "service web closed the connection without a complete answer");
}

#[tokio::test]
async fn a_socket_that_is_not_the_shims_is_not_spoken_to() {
    let room = Room::open().await;
    // A shim that has fallen puts a link to the evidence socket where its own should be: with the front's uid a
    // request there would get evidence with a channel binding of the attacker's choice.
    std::os::unix::fs::symlink(room.path("evidence.sock"), room.path("services/web/port-8080")).unwrap();
    let backend = Backend { uid: me() + 1, ..room.site.backends[&PUBLISHED].clone() };
    let site = Site {
        callers: callers(),
        evidence: EvidenceClient::new(
            room.path("evidence.sock"),
            room.path("publish/collateral.json"),
            Arc::default(),
        ),
        operators: Operators::new(
            room.path("vault.sock"),
            room.path("publish.sock"),
            Records {
                counts: Arc::default(),
                appliance: room.path("appliance.json"),
                roles: room.path("status.json"),
                publish: room.path("publish/status.json"),
                network: room.path("network/status.json"),
                store: room.path("vault/store.json"),
                egress: room.path("egress"),
                services: Vec::new(),
                groups: BTreeMap::new(),
                role_groups: room.path("none"),
                rings: Vec::new(),
            },
        ),
        backends: BTreeMap::from([(PUBLISHED, backend)]),
        proxy: Proxy::new(Bounds::default()),
        counts: Arc::default(),
        own: Own::default(),
        browser: None,
        attested_key: None,
    };
    let address = room.listen(PUBLISHED, &Arc::new(site)).await;
    let mut client = Client::over(dial(address, None).await.unwrap()).await;
    let request = Request::post("/v1/evidence").header("host", "x").body(Body::from("{}")).unwrap();
    assert_eq!(client.send(request).await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_port_that_nobody_publishes_serves_the_appliance_only() {
    let room = Room::open().await;
    let address = room.listen(9443, &room.site).await;
    let mut client = Client::over(dial(address, None).await.unwrap()).await;
    assert_eq!(client.get("/").await.status, StatusCode::NOT_FOUND);
    assert_eq!(client.get(&format!("{PREFIX}/evidence")).await.status, StatusCode::OK);
}

#[test]
fn a_port_that_redacts_has_a_way_of_its_own_to_the_service() {
    let ports =
        "{published: 443, target: 80, redact_responses: true}, {published: 444, target: 80}, '445:80'";
    let text = format!(
        "services:\n  web:\n    image: r.example/a@sha256:{}\n    ports: [{ports}]\n",
        "0".repeat(64)
    );
    let site = super::site(&facts(&declaration(&text)), &key_of(&ratls::generate_key().unwrap())).unwrap();
    let socket = |port: u16| site.backends[&port].socket.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!([443, 444, 445].map(socket), ["port-80-redacted", "port-80", "port-80"]);
}
