//! The certificate that browsers accept: who is shown it, who is not, and a whole order at a real authority (Pebble).

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, Request, Response};
use cofferdam_attest::ratls;
use cofferdam_declaration::Certificate;
use cofferdam_protocol::certificate::{
    ACME_TLS, ATTESTED, ATTESTED_KEY, CertificateState, CertificateStatus, Challenge, Challenges,
    KeptCertificate,
};
use cofferdam_protocol::{Digest, Timestamp};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

use super::super::publish::Paths;
use super::super::publish::acme::AccountKey;
use super::super::publish::certificate::Keeper;
use super::tests::{Client, Room};
use super::tls::SIGNS_IN;
use crate::roles::facts::CertificateFacts;
use crate::roles::testing::serve_unix;
use crate::system::ring::Ring;

const NAME: &str = "shop.example.test";

fn declared(directory: &str, ca: Option<String>) -> Certificate {
    Certificate {
        names: vec![NAME.to_owned(), "www.example.test".to_owned()],
        directory: directory.parse().unwrap(),
        contact: vec!["mailto:ops@example.test".to_owned()],
        ca,
    }
}

/// A room that can show a certificate; the key of that, and the account's.
async fn room(declared: &Certificate) -> (Room, Zeroizing<Vec<u8>>, Zeroizing<Vec<u8>>, CertificateFacts) {
    let (browser, account, facts) = crate::boot::certificate_keys(declared);
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(browser.as_slice()));
    let signing = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der).unwrap();
    (Room::showing(&facts, signing).await, browser, account, facts)
}

/// A certificate for a key and names, as an authority could give it.
fn chain(key: &[u8], names: &[&str], from: u64) -> String {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    pem(&ratls::certificate(key, b"{}", &names, from, 3600).unwrap())
}

fn pem(der: &[u8]) -> String {
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        cofferdam_protocol::base64::encode(der)
    )
}

fn now() -> u64 {
    crate::roles::clock::unix_now()
}

fn replace(room: &Room, name: &str, bytes: impl AsRef<[u8]>) {
    crate::system::files::replace(room.path(&format!("publish/{name}")), bytes.as_ref()).unwrap();
}

/// A client that looks at what it is shown by itself: a library refuses the extension of a challenge, which is critical.
#[derive(Debug)]
struct Looks;

impl ServerCertVerifier for Looks {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// Dials by a name with these protocols; `None` when that is refused.
async fn greet(room: &Room, name: &str, alpn: &[&[u8]]) -> Option<TlsStream<TcpStream>> {
    let mut config = ratls::client_config(None).unwrap();
    config.dangerous().set_certificate_verifier(Arc::new(Looks));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TcpStream::connect(room.address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()
}

/// Which key answers.
async fn key(room: &Room, name: &str, alpn: &[&[u8]]) -> Option<Digest> {
    let stream = greet(room, name, alpn).await?;
    Some(ratls::spki_sha256(&stream.get_ref().1.peer_certificates().unwrap()[0]).unwrap())
}

#[tokio::test]
async fn a_browser_is_shown_its_certificate_and_coffer_the_attested_one() {
    let (room, browser, _, facts) = room(&declared("https://ca.example/dir", None)).await;
    let (attested, shown) = (Some(room.tls_key), Some(facts.claim.key));
    assert_eq!(key(&room, NAME, &[]).await, attested, "there is no other one yet");
    let names = [NAME, "www.example.test"];
    for wrong in [
        "junk".to_owned(),
        String::new(),
        chain(&ratls::generate_key().unwrap(), &names, now() - 60),
        chain(&browser, &[NAME], now() - 60),
        chain(&browser, &[NAME, "www.example.test", "other.example.test"], now() - 60),
        chain(&browser, &names, now() - 7200),
        chain(&browser, &names, now() + 600),
        chain(&browser, &names, now() - 60).repeat(9),
    ] {
        replace(&room, "chain.pem", wrong);
        assert_eq!(key(&room, NAME, &[]).await, attested);
    }
    replace(&room, "chain.pem", chain(&browser, &names, now() - 60));
    for name in [NAME, "SHOP.Example.TEST", "www.example.test"] {
        let protocols: [Vec<&[u8]>; 3] = [vec![], vec![b"h2"], vec![b"h2", b"http/1.1"]];
        for alpn in &protocols {
            assert_eq!(key(&room, name, alpn).await, shown, "{name}");
        }
        assert_eq!(key(&room, name, &[ATTESTED, b"http/1.1"]).await, attested, "coffer");
        assert_eq!(key(&room, name, &[b"h2", ATTESTED]).await, attested);
        assert_eq!(key(&room, name, &[SIGNS_IN]).await, attested);
    }
    for name in ["127.0.0.1", "example.test", "x.shop.example.test", "other.example.test"] {
        assert_eq!(key(&room, name, &[b"h2", b"http/1.1"]).await, attested, "{name}");
    }
    // What comes after it and is no certificate for this key takes nothing away.
    replace(&room, "chain.pem", chain(&ratls::generate_key().unwrap(), &names, now() - 60));
    assert_eq!(key(&room, NAME, &[]).await, shown);
}

#[tokio::test]
async fn an_answer_says_the_attested_key_whatever_the_service_says() {
    let (room, browser, _, facts) = room(&declared("https://ca.example/dir", None)).await;
    replace(&room, "chain.pem", chain(&browser, &[NAME, "www.example.test"], now() - 60));
    room.workload(|_| {
        let forged =
            Response::builder().header(ATTESTED_KEY, "sha256:forged").header("Cofferdam-Attested-Key", "x");
        forged.body(Body::from("hello")).unwrap()
    });
    let stream = greet(&room, NAME, &[b"http/1.1"]).await.unwrap();
    let found = ratls::spki_sha256(&stream.get_ref().1.peer_certificates().unwrap()[0]).unwrap();
    assert_eq!(found, facts.claim.key);
    let mut client = Client::over(stream).await;
    for path in ["/", "/.well-known/cofferdam/evidence", "/.well-known/cofferdam/nothing"] {
        let answer = client.get(path).await;
        let said: Vec<_> = answer.headers.get_all(ATTESTED_KEY).iter().collect();
        assert_eq!(said, [room.tls_key.to_string().as_str()], "{path}");
    }
    // Without a certificate for browsers nobody says it, nor does a service.
    let room = Room::open().await;
    room.workload(|_| Response::builder().header(ATTESTED_KEY, "sha256:forged").body(Body::empty()).unwrap());
    assert!(!room.client().await.get("/").await.headers.contains_key(ATTESTED_KEY));
}

#[tokio::test]
async fn only_while_an_order_is_under_way_a_challenge_is_answered() {
    let (room, browser, _, _) = room(&declared("https://ca.example/dir", None)).await;
    replace(&room, "chain.pem", chain(&browser, &[NAME, "www.example.test"], now() - 60));
    assert!(greet(&room, NAME, &[ACME_TLS]).await.is_none(), "nobody asks");
    let challenge = Challenge { name: NAME.to_owned(), authorization: [7; 32].into() };
    let asked = |until| {
        let until = Timestamp::from_unix(until).unwrap();
        serde_json::to_vec(&Challenges { challenges: vec![challenge.clone()], until }).unwrap()
    };
    replace(&room, "challenges.json", asked(now() + 60));
    for _ in 0..2 {
        let mut stream = greet(&room, NAME, &[ACME_TLS]).await.unwrap();
        let (_, connection) = stream.get_ref();
        assert_eq!(connection.alpn_protocol(), Some(ACME_TLS));
        let shown = connection.peer_certificates().unwrap()[0].to_vec();
        assert_eq!(ratls::dns_names(&shown).unwrap(), [NAME]);
        let digest = [[4, 32].as_slice(), &[7; 32]].concat();
        assert!(shown.windows(34).any(|part| part == digest));
        // Nothing is spoken on it.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty());
    }
    assert!(greet(&room, "www.example.test", &[ACME_TLS]).await.is_none(), "another name");
    assert!(greet(&room, "127.0.0.1", &[ACME_TLS]).await.is_none());
    assert_ne!(
        greet(&room, NAME, &[ACME_TLS, b"http/1.1"]).await.unwrap().get_ref().1.alpn_protocol(),
        Some(ACME_TLS),
        "an authority names that protocol alone"
    );
    for over in [asked(now() - 1), b"junk".to_vec(), vec![b' '; 100_000]] {
        replace(&room, "challenges.json", over);
        assert!(greet(&room, NAME, &[ACME_TLS]).await.is_none());
    }
}

#[tokio::test]
async fn a_flood_of_challenges_and_strange_greetings_keep_nobody_out() {
    let (room, browser, _, facts) = room(&declared("https://ca.example/dir", None)).await;
    replace(&room, "chain.pem", chain(&browser, &[NAME, "www.example.test"], now() - 60));
    let room = Arc::new(room);
    let flood = (0..300).map(|_| {
        let room = Arc::clone(&room);
        tokio::spawn(async move { greet(&room, NAME, &[ACME_TLS]).await.is_none() })
    });
    let flood: Vec<_> = flood.collect();
    // A greeting whose server name has 10 kB: it is valid as a record, and no name.
    let mut strange = TcpStream::connect(room.address).await.unwrap();
    strange.write_all(&greeting(&"a".repeat(10_000))).await.unwrap();
    let begun = Instant::now();
    assert_eq!(key(&room, NAME, &[b"h2"]).await, Some(facts.claim.key));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    for refused in flood {
        assert!(refused.await.unwrap());
    }
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), strange.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.first().is_none_or(|kind| *kind == 21), "an alert at most");
    assert_eq!(key(&room, NAME, &[]).await, Some(facts.claim.key));
}

/// The record of a ClientHello (RFC 8446 §4.1.2) with this server name and one cipher suite.
fn greeting(name: &str) -> Vec<u8> {
    let sized = |width: usize, bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        [&length[4 - width..], bytes].concat()
    };
    let names = sized(2, &[&[0][..], &sized(2, name.as_bytes())].concat());
    let extensions = sized(2, &[&[0, 0][..], &sized(2, &names), &[0, 43, 0, 3, 2, 3, 4]].concat());
    let body = [&[3, 3][..], &[1; 32], &[0], &[0, 2, 0x13, 0x01], &[1, 0], &extensions].concat();
    let hello = [&[1][..], &sized(3, &body)].concat();
    [&[22, 3, 1][..], &sized(2, &hello)].concat()
}

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// Pebble, which checks names at this port. Returns its directory and the authority of its own server.
async fn pebble(at: &Path, port: u16) -> (Vec<Running>, String, String) {
    let (api, management, dns) = (free_port().await, free_port().await, free_port().await);
    let key = ratls::generate_key().unwrap();
    let names = ["127.0.0.1".to_owned()];
    let ca = pem(&ratls::certificate(&key, b"{}", &names, now() - 60, 3600).unwrap());
    let body = cofferdam_protocol::base64::encode(&*key);
    std::fs::write(
        at.join("key.pem"),
        format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n"),
    )
    .unwrap();
    std::fs::write(at.join("cert.pem"), &ca).unwrap();
    let config = serde_json::json!({ "pebble": {
        "listenAddress": format!("127.0.0.1:{api}"), "managementListenAddress": format!("127.0.0.1:{management}"),
        "certificate": at.join("cert.pem"), "privateKey": at.join("key.pem"), "httpPort": 1, "tlsPort": port,
    }});
    std::fs::write(at.join("pebble.json"), config.to_string()).unwrap();
    let quiet = |command: &mut Command| {
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Running(started.expect("Debian's package pebble, which ci/install installs"))
    };
    let mut names = Command::new("pebble-challtestsrv");
    names.args([
        "-defaultIPv4",
        "127.0.0.1",
        "-defaultIPv6",
        "",
        "-http01",
        "",
        "-https01",
        "",
        "-tlsalpn01",
        "",
    ]);
    names.arg("-dns01").arg(format!("127.0.0.1:{dns}"));
    names.arg("-management").arg(format!("127.0.0.1:{}", free_port().await));
    let mut authority = Command::new("pebble");
    authority.arg("-config").arg(at.join("pebble.json")).arg("-dnsserver").arg(format!("127.0.0.1:{dns}"));
    authority.arg("-strict").env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_WFE_NONCEREJECT", "20");
    let running = vec![quiet(&mut names), quiet(&mut authority)];
    for port in [api, management] {
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "pebble does not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    (running, format!("https://127.0.0.1:{api}/dir"), ca)
}

fn status(room: &Room) -> Option<CertificateStatus> {
    CertificateStatus::parse(&std::fs::read(room.path("publish/certificate.json")).ok()?).ok()
}

async fn until(room: &Room, wanted: CertificateState) -> CertificateStatus {
    let begun = Instant::now();
    loop {
        match status(room) {
            Some(status) if status.state == wanted => return status,
            other => assert!(begun.elapsed() < Duration::from_secs(60), "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_real_authority_gives_a_certificate_that_is_kept() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    // The room has to listen before the authority knows where: so the facts are made for a directory that comes later.
    let port = free_port().await;
    let (_running, url, ca) = pebble(directory.path(), port).await;
    let (room, _, account, facts) = room(&declared(&url, Some(ca))).await;
    relay(port, room.address).await;

    let kept: Arc<Mutex<Option<Vec<u8>>>> = Arc::default();
    let (vault, store) = (directory.path().join("vault.sock"), Arc::clone(&kept));
    serve_unix(&vault, move |request: Request<axum::body::Bytes>| {
        let mut kept = store.lock().unwrap();
        let answer = match (request.method(), kept.as_ref()) {
            (&Method::PUT, _) => {
                *kept = Some(request.body().to_vec());
                (204, Vec::new())
            }
            (_, Some(bytes)) => (200, bytes.clone()),
            (_, None) => (404, Vec::new()),
        };
        async move { Response::builder().status(answer.0).body(Body::from(answer.1)).unwrap() }
    });
    let paths = Paths {
        appliance: room.path("appliance.json"),
        changes: room.path("changes.json"),
        directory: room.path("publish"),
        evidence: room.path("evidence.sock"),
        vault,
        bundle: room.path("none"),
    };
    let keep = |facts: CertificateFacts| {
        let (found, known) = watch::channel(None);
        let key = AccountKey::new(&account).unwrap();
        let events = Arc::new(Ring::at(room.path("publish/events")));
        let keeper = Keeper::new(facts, key, paths.clone(), events, found);
        (tokio::spawn(keeper.with(room.address, Duration::from_secs(1)).keep()), known)
    };

    let (keeping, known) = keep(facts.clone());
    let done = until(&room, CertificateState::Valid).await;
    assert!(!room.path("publish/challenges.json").exists(), "the order is over");
    assert_eq!(done.claim.account, *known.borrow());
    let said = done.claim.account.clone().unwrap();
    assert!(said.as_str().starts_with(facts.declared.directory.origin()), "{said}");
    assert_eq!(key(&room, NAME, &[b"h2"]).await, Some(facts.claim.key));
    assert_eq!(key(&room, NAME, &[ATTESTED, b"http/1.1"]).await, Some(room.tls_key));
    assert_eq!(
        crate::roles::certificate::claim(Some(facts.claim.clone()), &room.path("publish/certificate.json")),
        Some(done.claim.clone())
    );
    keeping.abort();

    // Another start of the role, or of the machine with its state, orders nothing.
    let first = KeptCertificate::parse(kept.lock().unwrap().as_ref().unwrap()).unwrap();
    std::fs::remove_file(room.path("publish/certificate.json")).unwrap();
    std::fs::remove_file(room.path("publish/chain.pem")).unwrap();
    let (keeping, known) = keep(facts.clone());
    let again = until(&room, CertificateState::Valid).await;
    assert_eq!((again.claim.account, again.expires_at), (Some(said.clone()), done.expires_at));
    assert_eq!(*known.borrow(), Some(said.clone()));
    assert_eq!(KeptCertificate::parse(kept.lock().unwrap().as_ref().unwrap()).unwrap(), first);
    keeping.abort();

    // With other names there is another certificate, with the same account.
    let mut other = facts.clone();
    other.declared.names.truncate(1);
    std::fs::remove_file(room.path("publish/certificate.json")).unwrap();
    let (keeping, _known) = keep(other);
    let failed = until(&room, CertificateState::Failed).await;
    // The request was not made for them, and the authority notices.
    assert!(failed.detail.unwrap().contains("the authority answers"));
    assert_eq!(failed.claim.account, Some(said));
    keeping.abort();
}

/// What comes at a port goes to an address.
async fn relay(port: u16, to: std::net::SocketAddr) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut from, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut to = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
}
