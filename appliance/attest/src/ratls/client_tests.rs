//! The verifier against a TLS server on loopback, which may be anybody's.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::client::Resumption;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ServerConnection;
use rustls::{ServerConfig, Stream, SupportedProtocolVersion};

use super::super::{MAX_LIFETIME, certificate, generate_key, key_sha256};
use super::*;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A key and its certificate, valid for an hour from `from`.
fn identity(from: u64) -> (Vec<u8>, Vec<u8>) {
    let key = generate_key().unwrap();
    let certificate = certificate(&key, b"{}", &["appliance.example".to_owned()], from, 3600).unwrap();
    (key.to_vec(), certificate)
}

/// A server's configuration as rustls makes it by itself, with session tickets.
fn config(key: &[u8], certificate: &[u8], version: &'static SupportedProtocolVersion) -> ServerConfig {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
    ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(certificate.to_vec())], key)
        .unwrap()
}

/// Serves as many connections as it is asked to; what comes back is the channel binding of each that was made.
fn serve(config: ServerConfig, connections: usize) -> (SocketAddr, JoinHandle<Vec<[u8; 32]>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let config = Arc::new(config);
    let serving = std::thread::spawn(move || {
        let mut bindings = Vec::new();
        for _ in 0..connections {
            let (mut tcp, _) = listener.accept().unwrap();
            let mut connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = Stream::new(&mut connection, &mut tcp);
            // A client that refuses says so instead of going on.
            if stream.write_all(b"x").and_then(|()| stream.read(&mut [0; 1])).is_ok() {
                let binding = connection.export_keying_material([0; 32], CHANNEL_BINDING_LABEL, Some(&[]));
                bindings.push(binding.unwrap());
            }
        }
        bindings
    });
    (address, serving)
}

/// A handshake, and one byte from the server, so that what it sends behind the handshake has been read.
fn connect(config: &Arc<ClientConfig>, address: SocketAddr) -> std::io::Result<ClientConnection> {
    let mut tcp = TcpStream::connect(address)?;
    let name = ServerName::try_from("appliance.example").unwrap();
    let mut connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut stream = Stream::new(&mut connection, &mut tcp);
    stream.read_exact(&mut [0; 1])?;
    stream.write_all(b"y")?;
    Ok(connection)
}

/// Connects once to a server that shows `certificate`.
fn attempt(
    (key, certificate): &(Vec<u8>, Vec<u8>),
    pin: Option<Digest>,
) -> (std::io::Result<ClientConnection>, Vec<[u8; 32]>) {
    let (address, serving) = serve(config(key, certificate, &rustls::version::TLS13), 1);
    let connected = connect(&Arc::new(client_config(pin).unwrap()), address);
    (connected, serving.join().unwrap())
}

/// The reason for which the same is refused.
fn refusal(identity: &(Vec<u8>, Vec<u8>), pin: Option<Digest>) -> Option<Refusal> {
    let (connected, bindings) = attempt(identity, pin);
    assert_eq!(bindings, [[0; 32]; 0], "nothing was served");
    Refusal::behind(&connected.unwrap_err()).cloned()
}

#[test]
fn the_other_end_is_known_by_its_key_and_the_channel_by_its_binding() {
    let shown = identity(now() - 60);
    let key = key_sha256(&shown.0).unwrap();
    for pin in [None, Some(key)] {
        let (connected, bindings) = attempt(&shown, pin);
        let peer = peer(&connected.unwrap()).unwrap();
        assert_eq!(peer.tls_key, key);
        assert_eq!(bindings, [<[u8; 32]>::from(peer.channel_binding)]);
    }
    let (first, second) = (attempt(&shown, None).1, attempt(&shown, None).1);
    assert_ne!(first, second, "each connection has its own binding");
}

#[test]
fn another_key_than_the_attested_one_is_refused_by_name() {
    let (shown, attested) = (identity(now() - 60), generate_key().unwrap());
    let (found, pinned) = (key_sha256(&shown.0).unwrap(), key_sha256(&attested).unwrap());
    let refused = refusal(&shown, Some(pinned));
    assert_eq!(refused, Some(Refusal::OtherKey { found, pinned }));
    // The same where the certificate's time is over as well.
    let expired = identity(now() - MAX_LIFETIME);
    let found = key_sha256(&expired.0).unwrap();
    assert_eq!(refusal(&expired, Some(pinned)), Some(Refusal::OtherKey { found, pinned }));
}

#[test]
fn a_certificate_outside_its_time_is_refused_with_both_times() {
    let from = now() - 3600 - SKEW - 60;
    let expired = identity(from);
    for pin in [None, Some(key_sha256(&expired.0).unwrap())] {
        let refused = refusal(&expired, pin).unwrap();
        assert!(refused.is_about_time());
        assert!(matches!(refused, Refusal::Expired { until, now } if until == from + 3600 && now > until));
        assert!(refused.to_string().starts_with("its certificate was valid until 20"), "{refused}");
    }
    let from = now() + SKEW + 60;
    let refused = refusal(&identity(from), None).unwrap();
    assert!(refused.is_about_time());
    assert!(matches!(refused, Refusal::NotYetValid { from: begins, now } if begins == from && now < from));
}

#[test]
fn clocks_may_differ_by_five_minutes() {
    for from in [now() - 3600 - SKEW + 60, now() + SKEW - 60] {
        assert!(attempt(&identity(from), None).0.is_ok());
    }
}

#[test]
fn whoever_shows_a_certificate_has_to_hold_its_key() {
    let (attested, stranger) = (identity(now() - 60), identity(now() - 60));
    let (address, serving) = serve(
        ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Borrowed(Arc::new(rustls::sign::CertifiedKey::new(
                vec![CertificateDer::from(attested.1.clone())],
                provider::sign::any_ecdsa_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(stranger.0)))
                    .unwrap(),
            ))))),
        1,
    );
    let pin = key_sha256(&attested.0).unwrap();
    let error = connect(&Arc::new(client_config(Some(pin)).unwrap()), address).unwrap_err();
    assert_eq!(serving.join().unwrap(), [[0; 32]; 0]);
    let rustls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    assert_eq!(rustls, Some(&rustls::Error::InvalidCertificate(CertificateError::BadSignature)));
    assert_eq!(Refusal::behind(&error), None);
}

/// Shows a certificate and signs with whatever key it has.
#[derive(Debug)]
struct Borrowed(Arc<rustls::sign::CertifiedKey>);

impl rustls::server::ResolvesServerCert for Borrowed {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[test]
fn a_session_is_never_resumed_though_the_server_offers_it() {
    let (key, certificate) = identity(now() - 60);
    let ours = client_config(None).unwrap();
    // The same client but for resumption: the server does offer it, and a resumed session is refused all the same.
    let mut careless = client_config(None).unwrap();
    careless.resumption = Resumption::in_memory_sessions(4);
    for (client, resumed) in [(ours, false), (careless, true)] {
        let (address, serving) = serve(config(&key, &certificate, &rustls::version::TLS13), 2);
        let client = Arc::new(client);
        assert!(peer(&connect(&client, address).unwrap()).is_ok());
        let second = connect(&client, address).unwrap();
        serving.join().unwrap();
        assert_eq!(second.handshake_kind() == Some(HandshakeKind::Resumed), resumed);
        assert_eq!(peer(&second).err(), resumed.then_some(Refusal::Resumed));
    }
}

#[test]
fn older_tls_and_something_else_than_tls_are_refused() {
    let (key, certificate) = identity(now() - 60);
    let (address, serving) = serve(config(&key, &certificate, &rustls::version::TLS12), 1);
    let client = Arc::new(client_config(None).unwrap());
    assert!(connect(&client, address).is_err());
    assert_eq!(serving.join().unwrap(), [[0; 32]; 0]);
    let unfinished =
        ClientConnection::new(client, ServerName::try_from("appliance.example").unwrap()).unwrap();
    assert_eq!(peer(&unfinished), Err(Refusal::NoCertificate));
}

#[test]
fn what_is_no_certificate_is_malformed() {
    let verifier = KeyVerifier { pin: None, crypto: Arc::new(provider::default_provider()) };
    assert_eq!(verifier.judge(b"junk", now()), Err(Refusal::Malformed));
}
