//! Bridges and interfaces on this machine's kernel, in namespaces made for it. Needs root and a kernel with bridges; says what
//! is missing and passes otherwise.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use cofferdam_workload::network::{Network, configure};
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::roles::testing::{declaration, facts};
use crate::system::client::bridge as client;

/// Nobody's: the namespaces of a test belong to the user namespace that the test runs in.
const NOT_OURS: Owner = (0, 0);

const SERVICES: &str = "networks: {back: {}}\nservices:\n  web:\n    image: r.example/a@sha256:DIGEST\n    networks: [default, back]\n  \
                        db:\n    image: r.example/a@sha256:DIGEST\n    networks: [back]\n  \
                        other:\n    image: r.example/a@sha256:DIGEST\n";

fn three() -> Facts {
    facts(&declaration(&SERVICES.replace("DIGEST", &"0".repeat(64))))
}

/// A thread that is in the network of one service, and does there what it is told.
struct Inside {
    tasks: Option<Sender<Box<dyn FnOnce() + Send>>>,
    thread: Option<JoinHandle<()>>,
    namespace: OwnedFd,
}

impl Inside {
    /// In a network as a shim makes it.
    fn service() -> Self {
        Self::enter(|| Network::create().unwrap().namespace().try_clone_to_owned().unwrap())
    }

    fn enter(enter: impl FnOnce() -> OwnedFd + Send + 'static) -> Self {
        let (tasks, queue): (_, Receiver<Box<dyn FnOnce() + Send>>) = channel();
        let (made, namespace) = channel();
        let thread = std::thread::spawn(move || {
            made.send(enter()).unwrap();
            queue.iter().for_each(|task| task());
        });
        Self { tasks: Some(tasks), thread: Some(thread), namespace: namespace.recv().unwrap() }
    }

    fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, outcome) = channel();
        let task = move || done.send(task()).unwrap();
        self.tasks.as_ref().unwrap().send(Box::new(task)).unwrap();
        outcome.recv().unwrap()
    }

    /// What a shim does after it was attached.
    fn address(&self, service: &crate::roles::facts::ServiceFacts) {
        for (index, place) in service.networks.iter().cloned().enumerate() {
            self.run(move || configure(index, place.address, &place.others)).unwrap();
        }
    }

    /// Listens at an address, and answers everybody with `word`.
    fn listen(&self, address: Ipv4Addr, port: u16, word: &'static [u8]) {
        let listener = self.run(move || TcpListener::bind((address, port))).unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.write_all(word);
            }
        });
    }

    /// What is heard there, or why nothing is.
    fn hear(&self, address: Ipv4Addr, port: u16) -> io::Result<Vec<u8>> {
        self.run(move || {
            let mut stream =
                TcpStream::connect_timeout(&SocketAddr::from((address, port)), Duration::from_secs(5))?;
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard)?;
            Ok(heard)
        })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.tasks = None;
        self.thread.take().map(JoinHandle::join);
    }
}

/// The bridges of these facts, made in a namespace that lives as long as the thread. `None` where that cannot be.
fn bridges(facts: &Facts, own: Owner) -> Option<(Inside, Bridges)> {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: making network namespaces needs root");
        return None;
    }
    let inside = Inside::enter(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap().into()
    });
    let known = facts.clone();
    let made = inside.run(move || Bridges::make(&known, own));
    match made {
        Ok(made) => Some((inside, made)),
        Err(error)
            if format!("{error:#}").contains("EOPNOTSUPP")
                || format!("{error:#}").contains("os error 95") =>
        {
            println!("SKIPPED: this kernel has no bridges");
            None
        }
        Err(error) => panic!("{error:#}"),
    }
}

#[test]
fn members_of_a_network_reach_each_other_at_every_port_and_nobody_else() {
    let facts = three();
    let Some((_keeper, bridges)) = bridges(&facts, NOT_OURS) else { return };
    let of = |name: &str| facts.service(name).unwrap().clone();
    let (web, db, other) = (of("web"), of("db"), of("other"));
    let insides = [&web, &db, &other].map(|service| {
        let inside = Inside::service();
        assert_eq!(bridges.attach(service.uid, inside.namespace.as_fd()).unwrap(), service.networks.len());
        inside.address(service);
        inside
    });
    let [in_web, in_db, in_other] = &insides;
    let at = |service: &crate::roles::facts::ServiceFacts, index: usize| service.networks[index].address;
    in_db.listen(Ipv4Addr::UNSPECIFIED, 80, b"db");
    in_db.listen(Ipv4Addr::UNSPECIFIED, 54_321, b"any port");
    in_web.listen(at(&web, 1), 81, b"for back alone");
    in_other.listen(Ipv4Addr::UNSPECIFIED, 80, b"other");
    assert_eq!(in_web.hear(at(&db, 0), 80).unwrap(), b"db");
    assert_eq!(in_web.hear(at(&db, 0), 54_321).unwrap(), b"any port");
    assert_eq!(in_web.hear(at(&other, 0), 80).unwrap(), b"other");
    assert_eq!(in_db.hear(at(&web, 1), 81).unwrap(), b"for back alone");
    // Between networks there is nothing, also not through the service that is in both, and no way out.
    let unreachable = |outcome: io::Result<Vec<u8>>| outcome.unwrap_err().raw_os_error();
    for address in [at(&db, 0), at(&web, 1), Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(10, 9, 9, 9)] {
        assert_eq!(unreachable(in_other.hear(address, 80)), Some(nix::libc::ENETUNREACH), "{address}");
    }
    // Past the routing table, over the interface itself: what is sent there reaches nobody, and no more places in the
    // machine's one table of neighbours are taken by it than by silence.
    for address in [at(&db, 0), at(&web, 1), Ipv4Addr::new(10, 1, 77, 77)] {
        let outcome = in_other.run(move || over_eth0(address, 81));
        assert_eq!(outcome.unwrap_err().raw_os_error(), Some(nix::libc::EINPROGRESS), "{address}");
    }
    in_other.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        for number in 0..5000_u16 {
            let [high, low] = number.to_be_bytes();
            // An address that no service has, and soon no neighbour is remembered for.
            socket.send_to(b"x", (Ipv4Addr::new(10, 1, 100 + high, low), 9)).unwrap();
        }
    });
    assert_eq!(in_web.hear(at(&other, 0), 80).unwrap(), b"other");
    assert_eq!(in_db.hear(at(&web, 1), 81).unwrap(), b"for back alone");
    // An address that is another's is not taken, for a packet either.
    let taken = at(&db, 0);
    assert!(in_web.run(move || UdpSocket::bind((taken, 0))).is_err());
    // Nothing has an address of IPv6 but the loopback.
    let addresses =
        in_web.run(|| std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default());
    assert!(addresses.lines().all(|line| line.ends_with(" lo")), "{addresses}");
}

/// Connects with SO_BINDTODEVICE, which any user may ask for and which makes the kernel take every address for a neighbour's.
/// After a second without an answer the error is EINPROGRESS.
fn over_eth0(address: Ipv4Addr, port: u16) -> io::Result<()> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt,
    };
    use nix::sys::time::{TimeVal, TimeValLike as _};
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::BindToDevice, &"eth0".into())?;
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::seconds(1))?;
    Ok(connect(socket.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(address, port)))?)
}

#[test]
fn a_shim_that_starts_again_has_its_service_attached_anew() {
    let facts = three();
    let Some((_keeper, bridges)) = bridges(&facts, NOT_OURS) else { return };
    let (web, db) = (facts.service("web").unwrap(), facts.service("db").unwrap());
    let in_web = Inside::service();
    bridges.attach(web.uid, in_web.namespace.as_fd()).unwrap();
    in_web.address(web);
    let address = db.networks[0].address;
    let old = Inside::service();
    for word in [&b"first"[..], b"second"] {
        let new = Inside::service();
        bridges.attach(db.uid, new.namespace.as_fd()).unwrap();
        new.address(db);
        new.listen(address, 5432, word);
        // At once: the hardware address is what it was, so nobody has to forget one.
        assert_eq!(in_web.hear(address, 5432).unwrap(), word);
    }
    // Twice into the same namespace.
    for _ in 0..2 {
        bridges.attach(db.uid, old.namespace.as_fd()).unwrap();
    }
    old.address(db);
}

#[test]
fn only_shims_are_served_and_only_with_a_namespace_of_their_own() {
    let facts = three();
    let appliance = owner(&std::fs::metadata("/proc/self/ns/user").unwrap());
    let Some((_keeper, bridges)) = bridges(&facts, appliance) else { return };
    let inside = Inside::service();
    let refused =
        |uid: u32, namespace: BorrowedFd<'_>| bridges.attach(uid, namespace).unwrap_err().to_string();
    let web = facts.service("web").unwrap().uid;
    // Root, a role, an id inside of a container, one that is nobody's.
    for uid in [0, 102, web + 1, web + 1000, web + 65_535, 4_000_000_000] {
        assert_eq!(refused(uid, inside.namespace.as_fd()), format!("the peer {uid} is no shim"));
    }
    // This namespace belongs to the user namespace of the test, as the appliance's belong to the appliance's.
    assert_eq!(refused(web, inside.namespace.as_fd()), "the namespace is the appliance's own");
    let null = File::open("/dev/null").unwrap();
    assert_eq!(refused(web, null.as_fd()), "the descriptor is no namespace");
}

#[tokio::test]
async fn over_the_socket_a_request_has_an_answer_and_nonsense_an_end() {
    // By the test's own uid, which is no shim's.
    let facts = three();
    let Some((_keeper, bridges)) = bridges(&facts, NOT_OURS) else { return };
    let mut bridges = bridges;
    let web = bridges.seats.remove(&facts.service("web").unwrap().uid).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (path, stranger) = (folder.path().join("bridge.sock"), folder.path().join("stranger.sock"));
    let inside = Inside::service();
    bridges.seats.insert(nix::unistd::geteuid().as_raw(), web);
    tokio::spawn(serve(unix::bind(&path).unwrap(), Arc::new(bridges)));
    let mut attached = client::attach(&path, inside.namespace.as_fd()).await.unwrap();
    assert!(timeout(Duration::from_millis(200), attached.gone()).await.is_err(), "it lasts");
    assert!(inside.run(|| configure(1, Ipv4Addr::new(10, 9, 9, 9), &[])).is_ok());
    for nonsense in [&b"a"[..], b"x", b"{\"attach\":1}"] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(nonsense).await.unwrap();
        let expected = b"{\"refused\":\"that is not a request\"}\n";
        let mut answer = vec![0; expected.len()];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, expected);
        // What was not read may turn the end into a reset.
        assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
    }
    // Who is no shim is not even heard.
    let strangers = Arc::new(self::bridges(&facts, NOT_OURS).unwrap().1);
    tokio::spawn(serve(unix::bind(&stranger).unwrap(), strangers));
    assert!(client::attach(&stranger, inside.namespace.as_fd()).await.is_err());
}
