//! Services in network namespaces of their own, each with its gate, and servers and a resolver on the loopback of the test's: everything
//! between a service's connect(2) and the server's accept(2) is the real thing.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use cofferdam_attest::ratls;
use cofferdam_declaration::Egress;
use cofferdam_protocol::status::{Denied, DeniedWhy};
use cofferdam_workload::network::Network;
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};

use super::hello::tests::{server as server_hello, written};
use super::*;
use crate::roles::clock;
use crate::roles::testing::{declaration, facts};
use crate::system::client::egress as client;
use crate::system::gate::Gate;

const PATIENCE: Duration = Duration::from_secs(20);
const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Where a server is that a name has moved to.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// What the tests' servers are at may be connected to, and nothing else that is inside.
fn permitted(address: Ipv4Addr) -> bool {
    [LOCALHOST, ELSEWHERE].contains(&address) || is_outside(address)
}

/// A resolver that says what it is told, for a second, and remembers what it was asked.
#[derive(Clone, Default)]
struct Zone(Arc<Mutex<Answers>>);

#[derive(Default)]
struct Answers {
    names: BTreeMap<String, Vec<Ipv4Addr>>,
    asked: Vec<String>,
}

impl Zone {
    fn set(&self, name: &str, addresses: &[Ipv4Addr]) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .names
            .insert(name.to_owned(), addresses.to_vec());
    }

    fn asked(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).asked.clone()
    }

    /// Serves on a port of the system's choice.
    fn serve(&self) -> u16 {
        let socket = UdpSocket::bind((LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let zone = self.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((count, from)) = socket.recv_from(&mut buffer) {
                let (mut message, mut labels, mut at) = (buffer[..count].to_vec(), Vec::new(), 12);
                while message[at] != 0 {
                    let end = at + 1 + usize::from(message[at]);
                    labels.push(String::from_utf8(message[at + 1..end].to_vec()).unwrap());
                    at = end;
                }
                let mut zone = zone.0.lock().unwrap();
                zone.asked.push(labels.join("."));
                let addresses = zone.names.get(&labels.join(".")).cloned();
                message[2..4].copy_from_slice(if addresses.is_some() {
                    &[0x81, 0x80]
                } else {
                    &[0x81, 0x83]
                });
                for address in addresses.into_iter().flatten() {
                    message[7] += 1;
                    message.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
                    message.extend_from_slice(&address.octets());
                }
                socket.send_to(&message, from).unwrap();
            }
        });
        port
    }
}

/// The role with two services, `web` with these destinations and `alone` with none.
struct Room {
    outlets: Arc<Outlets>,
    zone: Zone,
    _folder: tempfile::TempDir,
}

impl Room {
    fn new(egress: &[String], places: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let zone = Zone::default();
        let resolvers = folder.path().join("resolv.conf");
        std::fs::write(&resolvers, "nameserver 127.0.0.1\n").unwrap();
        let dialer = Dialer::new(Resolvers::new(&resolvers).at_port(zone.serve()), permitted);
        let image = format!("r.example/a@sha256:{}", "0".repeat(64));
        let text = format!(
            "services:\n  web:\n    image: {image}\n    egress: {egress:?}\n  other:\n    image: {image}\n    egress: {egress:?}\n  \
             alone:\n    image: {image}\n"
        );
        let mut outlets = Outlets::new(&facts(&declaration(&text)), dialer, folder.path());
        Arc::get_mut(&mut outlets).unwrap().places = Places::new(places);
        Self { outlets, zone, _folder: folder }
    }

    fn tenant(&self, name: &str) -> (u32, Arc<Tenant>) {
        let found = self.outlets.tenants.iter().find(|(_, tenant)| tenant.name == name).unwrap();
        (*found.0, Arc::clone(found.1))
    }

    /// Waits until something was denied, and says it without its time.
    async fn denied(&self, service: &str, target: &str, why: DeniedWhy) -> Denied {
        let (_, tenant) = self.tenant(service);
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let status = tenant.denials.status();
            if let Some(found) = status.latest.iter().find(|one| one.target == target && one.why == why) {
                return found.clone();
            }
            assert!(tokio::time::Instant::now() < end, "{target} {why:?} is not among {:?}", status.latest);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A service: a thread in its network, and the role's side of its gate.
struct Service {
    tasks: Option<Sender<Box<dyn FnOnce() + Send>>>,
    thread: Option<JoinHandle<()>>,
    tenant: Arc<Tenant>,
    _serving: JoinSet<()>,
    alive: Option<watch::Sender<()>>,
}

impl Service {
    /// `None` where namespaces cannot be made.
    fn start(room: &Room, name: &str, ports: &[u16]) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: making network namespaces needs root");
            return None;
        }
        let (tasks, queue): (_, Receiver<Box<dyn FnOnce() + Send>>) = channel();
        let (made, gate) = channel();
        let ports: BTreeSet<u16> = ports.iter().copied().collect();
        let thread = std::thread::spawn(move || {
            let gate = Gate::create(&ports).unwrap();
            let network = Network::create().unwrap();
            gate.join(&network).unwrap();
            let sockets = gate.sockets().into_iter().map(|socket| socket.try_clone_to_owned().unwrap());
            made.send(sockets.collect::<Vec<OwnedFd>>()).unwrap();
            queue.iter().for_each(|task| task());
        });
        let sockets = gate.recv().unwrap();
        let (uid, tenant) = room.tenant(name);
        let (mut serving, (alive, living)) = (JoinSet::new(), watch::channel(()));
        room.outlets.open(uid, &tenant, sockets, &mut serving, &living).unwrap();
        Some(Self { tasks: Some(tasks), thread: Some(thread), tenant, _serving: serving, alive: Some(alive) })
    }

    /// Does something in the service's network.
    async fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, outcome) = tokio::sync::oneshot::channel();
        let task = move || drop(done.send(task()));
        self.tasks.as_ref().unwrap().send(Box::new(task)).unwrap();
        tokio::time::timeout(PATIENCE, outcome).await.expect("an end").unwrap()
    }

    /// Where the service is told that a name is.
    fn address(&self, name: &str) -> Ipv4Addr {
        self.tenant.address(name).unwrap_or_else(|| panic!("{name} is denied"))
    }

    async fn connect(&self, address: impl Into<std::net::IpAddr>, port: u16) -> io::Result<TcpStream> {
        let address = SocketAddr::from((address.into(), port));
        self.run(move || TcpStream::connect_timeout(&address, Duration::from_secs(5))).await
    }

    /// Connects where the role ends it at once, which this side hears while it connects or when it reads.
    async fn is_reset(&self, address: Ipv4Addr, port: u16) {
        let heard = self.run(move || {
            TcpStream::connect_timeout(&(address, port).into(), Duration::from_secs(5))?.read(&mut [0])
        });
        assert_eq!(kind(heard.await), io::ErrorKind::ConnectionReset, "{address}:{port}");
    }

    /// Says TLS for `server` to an address, and gives what it hears.
    async fn tls(&self, address: Ipv4Addr, port: u16, server: &str, ca: &str) -> io::Result<String> {
        let (server, ca) = (server.to_owned(), ca.to_owned());
        self.run(move || {
            let stream = TcpStream::connect_timeout(&(address, port).into(), Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let name = ServerName::try_from(server).unwrap();
            let session = rustls::ClientConnection::new(trusting(&ca), name).unwrap();
            let mut stream = rustls::StreamOwned::new(session, stream);
            let mut heard = String::new();
            stream.read_to_string(&mut heard)?;
            Ok(heard)
        })
        .await
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.tasks = None;
        self.thread.take().map(JoinHandle::join);
    }
}

/// A client that trusts this certificate alone.
fn trusting(ca: &str) -> Arc<rustls::ClientConfig> {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

/// A server of TLS for both names at each address of `at`, on one port, that says where it is and ends. Its port, the certificate,
/// and how many have come. With `retry` it wants another hello than clients send first.
fn tls_servers(at: &[Ipv4Addr], retry: bool) -> (u16, String, Arc<Mutex<Vec<Option<String>>>>) {
    let key = ratls::generate_key().unwrap();
    let names = ["api.example.org", "neighbour.example.org"].map(str::to_owned);
    let certificate = ratls::certificate(&key, b"{}", &names, clock::unix_now() - 60, 3600).unwrap();
    let body = cofferdam_protocol::base64::encode(&certificate);
    let ca = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    if retry {
        provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::SECP384R1];
    }
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.into()], PrivatePkcs8KeyDer::from(key.to_vec()).into())
        .unwrap();
    let config = Arc::new(config);
    let come = Arc::new(Mutex::new(Vec::new()));
    let mut port = 0;
    for address in at {
        let listener = std::net::TcpListener::bind((*address, port)).unwrap();
        port = listener.local_addr().unwrap().port();
        let (config, come, address) = (Arc::clone(&config), Arc::clone(&come), *address);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                while session.is_handshaking() && session.complete_io(&mut stream).is_ok() {}
                come.lock().unwrap().push(session.server_name().map(str::to_owned));
                let _ = session.writer().write_all(format!("{address}").as_bytes());
                session.send_close_notify();
                while session.wants_write() && session.write_tls(&mut stream).is_ok() {}
            }
        });
    }
    (port, ca, come)
}

/// A server that repeats what it hears.
fn echo() -> u16 {
    let listener = std::net::TcpListener::bind((LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut reader = stream.try_clone().unwrap();
                let _ = io::copy(&mut reader, &mut stream);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    port
}

fn kind<T: std::fmt::Debug>(outcome: io::Result<T>) -> io::ErrorKind {
    outcome.unwrap_err().kind()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_name_is_reached_by_tls_for_that_very_name_and_followed_when_it_moves() {
    let (port, ca, come) = tls_servers(&[LOCALHOST, ELSEWHERE], false);
    let room = Room::new(&[format!("api.example.org:{port}")], 64);
    let Some(web) = Service::start(&room, "web", &[port]) else { return };
    room.zone.set("api.example.org", &[LOCALHOST]);
    let api = web.address("api.example.org");
    assert_eq!(web.tls(api, port, "api.example.org", &ca).await.unwrap(), "127.0.0.1");
    // The neighbour is at the same address, and has a certificate of the same server.
    let refused = web.tls(api, port, "neighbour.example.org", &ca).await.unwrap_err();
    assert!(refused.to_string().contains("AccessDenied"), "{refused}");
    let denied = room
        .denied("web", &format!("neighbour.example.org:{port}@api.example.org"), DeniedWhy::ServerName)
        .await;
    assert_eq!(denied.allow, Some(format!("neighbour.example.org:{port}")));
    assert_eq!(
        *come.lock().unwrap(),
        [Some("api.example.org".to_owned())],
        "nobody was told of the neighbour"
    );
    // It moves, and moves to where nothing is ever connected to (rebinding), in its answer or in a part of it.
    room.zone.set("api.example.org", &[ELSEWHERE]);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(web.tls(api, port, "api.example.org", &ca).await.unwrap(), "127.0.0.2");
    for inside in [[169, 254, 169, 254], [10, 0, 0, 1], [127, 0, 0, 3], [168, 63, 129, 16]] {
        room.zone.set("api.example.org", &[Ipv4Addr::from(inside)]);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert!(web.tls(api, port, "api.example.org", &ca).await.is_err(), "{inside:?}");
    }
    assert_eq!(room.denied("web", &format!("api.example.org:{port}"), DeniedWhy::Private).await.count, 4);
    room.zone.set("api.example.org", &[Ipv4Addr::new(10, 0, 0, 1), LOCALHOST]);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(web.tls(api, port, "api.example.org", &ca).await.unwrap(), "127.0.0.1");
    assert_eq!(come.lock().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_declared_is_refused_at_once_and_counted() {
    let port = echo();
    let room = Room::new(&[format!("api.example.org:{port}"), "*.wild.example.org:1".to_owned()], 64);
    let Some(web) = Service::start(&room, "web", &[port, 1]) else { return };
    let api = web.address("api.example.org");
    // Another port of the name.
    assert_eq!(kind(web.connect(api, 9).await), io::ErrorKind::ConnectionRefused);
    let denied = room.denied("web", "api.example.org:9", DeniedWhy::Port).await;
    assert_eq!(denied.allow.as_deref(), Some("api.example.org:9"));
    // Addresses, at a port where nobody listens and at one where somebody does; metadata; the gate's own.
    for address in
        ["203.0.113.7", "169.254.169.254", "10.77.1.1", "8.8.8.8", "198.18.200.1", "198.19.255.253"]
    {
        let address: Ipv4Addr = address.parse().unwrap();
        assert_eq!(kind(web.connect(address, 80).await), io::ErrorKind::ConnectionRefused, "{address}");
        let denied = room.denied("web", &format!("{address}:80"), DeniedWhy::Address).await;
        assert_eq!(denied.allow, None);
        web.is_reset(address, port).await;
        room.denied("web", &format!("{address}:{port}"), DeniedWhy::Address).await;
    }
    // A name at the port of another.
    let wild = web.address("a.wild.example.org");
    web.is_reset(wild, port).await;
    room.denied("web", &format!("a.wild.example.org:{port}"), DeniedWhy::Port).await;
    // QUIC, and a resolver of its own choice.
    for (address, port, target) in
        [(api, 443, "api.example.org:443/udp"), (Ipv4Addr::new(8, 8, 8, 8), 53, "8.8.8.8:53/udp")]
    {
        let heard = web.run(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect((address, port))?;
            socket.send(b"hello")?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            socket.recv(&mut [0])
        });
        assert_eq!(kind(heard.await), io::ErrorKind::ConnectionRefused, "{target}");
        room.denied("web", target, DeniedWhy::Udp).await;
    }
    // There is no way for IPv6.
    let six: std::net::Ipv6Addr = "2001:db8::1".parse().unwrap();
    assert!(matches!(
        kind(web.connect(six, 443).await),
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
    ));
    // Not TLS, where TLS is declared.
    let mut stream = web.connect(api, port).await.unwrap();
    let heard = web.run(move || {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: api.example.org\r\n\r\n")?;
        stream.read(&mut [0])
    });
    assert_eq!(kind(heard.await), io::ErrorKind::ConnectionReset);
    let denied = room.denied("web", &format!("api.example.org:{port}"), DeniedWhy::NotTls).await;
    assert_eq!(denied.allow, Some(format!("api.example.org:{port}/tcp")));
    assert_eq!(room.zone.asked(), [""; 0], "nobody outside was asked for anything");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_declared_leaves_no_trace_outside() {
    let room = Room::new(&["*.example.org:443".to_owned()], 64);
    let (_, web) = room.tenant("web");
    for name in ["c2VjcmV0.evil.example.net", "a.b.example.org", "example.org", "x\u{1b}[2J.example.org.evil"]
    {
        assert_eq!(web.address(name), None, "{name}");
    }
    let (_, alone) = room.tenant("alone");
    assert_eq!(alone.address("api.example.org"), None);
    let denied = room.denied("alone", "api.example.org", DeniedWhy::Name).await;
    assert_eq!(denied.allow.as_deref(), Some("api.example.org:443"));
    let denied = room.denied("web", "x?[2J.example.org.evil", DeniedWhy::Name).await;
    assert_eq!(denied.allow, None);
    assert!(web.address("api.example.org").is_some());
    for number in 0..2000 {
        web.address(&format!("n{number}.example.org"));
    }
    room.denied("web", "n1999.example.org", DeniedWhy::TooManyNames).await;
    assert_eq!(room.zone.asked(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_wants_another_hello_gets_one_for_the_same_name_alone() {
    let (port, ca, come) = tls_servers(&[LOCALHOST], true);
    // This one answers every hello with the wish for another, and says what it was sent then.
    let scripted = std::net::TcpListener::bind((LOCALHOST, 0)).unwrap();
    let other = scripted.local_addr().unwrap().port();
    let (heard, hearing) = channel();
    std::thread::spawn(move || {
        for mut stream in scripted.incoming().flatten() {
            let mut hello = vec![0; written("api.example.org").len()];
            stream.read_exact(&mut hello).unwrap();
            stream.write_all(&server_hello(hello::RETRY)).unwrap();
            let mut more = Vec::new();
            let _ = stream.read_to_end(&mut more);
            heard.send(more).unwrap();
        }
    });
    let room = Room::new(&[format!("api.example.org:{port}"), format!("api.example.org:{other}")], 64);
    let Some(web) = Service::start(&room, "web", &[port, other]) else { return };
    room.zone.set("api.example.org", &[LOCALHOST]);
    let api = web.address("api.example.org");
    assert_eq!(web.tls(api, port, "api.example.org", &ca).await.unwrap(), "127.0.0.1");
    assert_eq!(come.lock().unwrap().len(), 1);
    // Sent together: the second one waits for the server's answer, and is judged before it passes.
    let (first, second) = (written("api.example.org"), written("neighbour.example.org"));
    let mut stream = web.connect(api, other).await.unwrap();
    let answer = web.run(move || {
        stream.write_all(&[first, second].concat()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    });
    assert!(answer.await.ends_with(&hello::ACCESS_DENIED));
    room.denied("web", &format!("neighbour.example.org:{other}@api.example.org"), DeniedWhy::ServerName)
        .await;
    assert_eq!(hearing.recv_timeout(PATIENCE).unwrap(), b"", "the server has not seen it");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_bytes_pass_where_it_says_so_with_ends_and_back_pressure() {
    let (port, silent) = (echo(), std::net::TcpListener::bind((LOCALHOST, 0)).unwrap());
    let unread = silent.local_addr().unwrap().port();
    let room = Room::new(&[format!("db.example.net:{port}/tcp"), format!("db.example.net:{unread}/tcp")], 64);
    let Some(web) = Service::start(&room, "web", &[port, unread]) else { return };
    room.zone.set("db.example.net", &[LOCALHOST]);
    let db = web.address("db.example.net");
    let mut stream = web.connect(db, port).await.unwrap();
    let heard = web.run(move || {
        let sent: Vec<u8> = (0..1_u32 << 20).map(|number| (number % 251) as u8).collect();
        let mut writer = stream.try_clone().unwrap();
        let said = sent.clone();
        let thread = std::thread::spawn(move || {
            writer.write_all(&said).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        thread.join().unwrap();
        heard == sent
    });
    assert!(heard.await, "all of it comes back, after the end of what was said");
    // A server that does not read.
    let mut stream = web.connect(db, unread).await.unwrap();
    let passed = web.run(move || {
        stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut passed = 0_usize;
        while let Ok(count) = stream.write(&[0; 16 * 1024]) {
            passed += count;
            assert!(passed < 8 << 20, "more than what both connections may keep");
        }
        passed
    });
    assert!(passed.await > 0);
    drop(silent);
    // The name is there, and nobody at it.
    web.is_reset(db, unread).await;
    room.denied("web", &format!("db.example.net:{unread}"), DeniedWhy::Unreachable).await;
    room.zone.0.lock().unwrap().names.clear();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    web.is_reset(db, port).await;
    room.denied("web", &format!("db.example.net:{port}"), DeniedWhy::Unresolved).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greedy_service_keeps_no_other_from_its_connections() {
    let port = echo();
    let room = Room::new(&[format!("db.example.net:{port}/tcp")], 8);
    let Some(web) = Service::start(&room, "web", &[port]) else { return };
    let Some(other) = Service::start(&room, "other", &[port]) else { return };
    room.zone.set("db.example.net", &[LOCALHOST]);
    // An address means something in its own gate alone.
    let address = other.address("db.example.net");
    web.is_reset(address, port).await;
    let exchange = |mut stream: TcpStream| {
        move || {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.write_all(b"ping").unwrap();
            let mut heard = [0; 4];
            (stream.read_exact(&mut heard).is_ok() && heard == *b"ping").then_some(stream)
        }
    };
    let mut modest = Vec::new();
    for _ in 0..3 {
        let stream = other.connect(address, port).await.unwrap();
        modest.push(other.run(exchange(stream)).await.unwrap());
    }
    let target = web.address("db.example.net");
    let greedy =
        web.run(move || (0..60).map(|_| TcpStream::connect((target, port)).unwrap()).collect::<Vec<_>>());
    let greedy = greedy.await;
    for stream in modest {
        assert!(other.run(exchange(stream)).await.is_some(), "what was there before is left alone");
    }
    let newcomer = other.connect(address, port).await.unwrap();
    assert!(other.run(exchange(newcomer)).await.is_some());
    assert!(room.outlets.places.taken() <= 8);
    drop(greedy);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_end_with_the_gate() {
    let port = echo();
    let room = Room::new(&[format!("db.example.net:{port}/tcp")], 8);
    let Some(mut web) = Service::start(&room, "web", &[port]) else { return };
    room.zone.set("db.example.net", &[LOCALHOST]);
    let mut stream = web.connect(web.address("db.example.net"), port).await.unwrap();
    let mut stream = web
        .run(move || {
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            stream
        })
        .await;
    web.alive = None;
    let end = web.run(move || stream.read(&mut [0])).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

#[tokio::test]
async fn over_the_socket_shims_alone_are_served_with_their_own_ports() {
    let room = Room::new(&["*.example.org:443".to_owned()], 8);
    let (_, tenant) = room.tenant("web");
    let own = nix::unistd::geteuid().as_raw();
    let folder = tempfile::tempdir().unwrap();
    let (path, stranger) = (folder.path().join("egress.sock"), folder.path().join("stranger.sock"));
    let outlets = |tenants| {
        let dialer = Dialer::new(Resolvers::new("/nonexistent"), is_outside);
        Arc::new(Outlets { tenants, dialer, places: Places::new(1) })
    };
    tokio::spawn(serve(unix::bind(&path).unwrap(), outlets([(own, tenant)].into())));
    tokio::spawn(serve(unix::bind(&stranger).unwrap(), outlets(BTreeMap::new())));
    let mut way = client::open(&path, &[]).await.unwrap();
    assert_eq!(way.ask("api.example.org".to_owned()).await.unwrap(), Some(Ipv4Addr::new(198, 18, 0, 1)));
    assert_eq!(way.ask("api.example.net".to_owned()).await.unwrap(), None);
    assert!(timeout(Duration::from_millis(200), way.gone()).await.is_err(), "it lasts");
    // A port that the service may not connect to; a descriptor that is no socket.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let sockets = [null.as_fd(), null.as_fd(), listener.as_fd()];
    let refused = client::open(&path, &sockets).await.unwrap_err().to_string();
    let port = listener.local_addr().unwrap().port();
    assert_eq!(refused, format!("the role egress refuses: the service may not connect to port {port}"));
    let refused = client::open(&path, &[null.as_fd(); 3]).await.unwrap_err().to_string();
    assert!(
        refused.starts_with("the role egress refuses: a descriptor is no socket of a gate: "),
        "{refused}"
    );
    for nonsense in [&b"x"[..], b"{\"name\":1}\n"] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(nonsense).await.unwrap();
        // What was not read may turn the end behind it into a reset.
        let expected = b"{\"refused\":\"that is not a request\"}\n";
        let mut answer = vec![0; expected.len()];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, expected);
    }
    // A question without an end, or that is none, ends the conversation.
    for nonsense in [vec![b'a'; 2 * MAX_QUESTION], b"{\"name\":1}\n".to_vec()] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(&[OPEN]).await.unwrap();
        let mut answer = [0; 16];
        stream.read_exact(&mut answer).await.unwrap();
        let _ = stream.write_all(&nonsense).await;
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.len() < 16, "{rest:?}");
    }
    assert!(client::open(&stranger, &[]).await.is_err(), "who is no shim is not even heard");
}

#[test]
fn the_documents_have_the_numbers_of_the_code() {
    let read =
        |name: &str| std::fs::read_to_string(format!("{}/../../{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (architecture, network) = (read("ARCHITECTURE.md"), read("docs/network.md"));
    assert!(architecture.contains(&format!("| connections of services to the outside | {CONNECTIONS} |")));
    assert!(architecture.contains(&format!(
        "has addresses for | {},{:03} |",
        names::MOST / 1000,
        names::MOST % 1000
    )));
    let [hello, dial, answer] = [tenant::HELLO, dial::PATIENCE, tenant::ANSWER].map(|time| time.as_secs());
    let said = format!(
        "has {hello} s for the beginning of TLS; the server {dial} s to be connected to and {answer} s to answer it"
    );
    assert!(architecture.contains(&said), "{said}");
    assert!(network.contains(&format!("Services share {CONNECTIONS} connections to the outside")));
}

#[test]
fn a_tenant_may_connect_to_the_ports_of_its_destinations() {
    let declared: Vec<Egress> =
        ["a.example.org:443", "b.example.org:5432/tcp"].iter().map(|text| text.parse().unwrap()).collect();
    let tenant = Tenant::new("web", &declared);
    assert_eq!([443, 5432, 80].map(|port| tenant.may_connect_to(port)), [true, true, false]);
}
