//! Byte relays between a service's network namespace and the rest of the appliance.
//!
//! The shim is the only way into a service's network and out of it: it answers a Unix socket for each published
//! port and connects to the service, and it listens under the addresses of the services that this one
//! depends on and connects to their Unix sockets. It copies bytes and looks at none.
//!
//! All relays of a shim share a number of places ([`Connections`]). When all are taken, the connection that was silent longest,
//! of the caller that has most, ends for the next one: no caller keeps another out, and a pool of a thousand connections to a
//! database is its owner's own trouble.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::Notify;

use crate::join::{Idle, join};
use crate::network::Network;
use crate::places::{Place, Places};

/// Connections of all relays of a shim at a time: as many as the front passes on to one service, and nearly as many again. Two
/// descriptors each, and up to about 400 KiB in buffers of both sockets when one side does not read.
const CONNECTIONS: usize = 512;
/// Of each TCP socket, in bytes and in each direction; the kernel takes it twice. The other end is on the same machine, so
/// more would not make it faster, and without a bound one connection that nobody reads from holds six MiB.
const BUFFER: u32 = 64 * 1024;
/// Silence in both directions after which a connection is forgotten. Pools keep idle connections to databases for as long as these
/// let them (MySQL's `wait_timeout`: 8 h), and who listens for notifications is silent for hours, so nothing shorter would
/// do; when places are needed, the rule of [`Connections`] finds the silent ones much earlier.
///
/// After one side's end the other has an answer to give or nothing: the front waits as long for one.
const IDLE: Idle = Idle { open: Duration::from_secs(8 * 3600), half_closed: Duration::from_secs(300) };
/// A program that was just executed may take a moment to listen; a caller waits that long for it.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is tried meanwhile.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
/// After an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that wait to be accepted, as tokio has it for its own listeners.
const BACKLOG: u32 = 1024;

/// Who has connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Caller {
    /// Another role's process: the front, or the shim of a service that depends on this one. Their uids are not known in
    /// this one's user namespace.
    Process(i32),
    /// The service itself, towards a dependency.
    Own(Ipv4Addr, u16),
}

/// The connections of all relays of a shim.
#[derive(Debug, Clone)]
pub struct Connections(Arc<Places<Caller>>);

impl Default for Connections {
    fn default() -> Self {
        Self(Places::new(CONNECTIONS))
    }
}

impl Connections {
    /// Relays for `caller` in a task of its own, as long as there is a place for it.
    fn serve<C, S, F>(&self, caller: Caller, stream: C, connect: impl Fn() -> F + Send + 'static)
    where
        C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: AsyncRead + AsyncWrite + Unpin + Send,
        F: Future<Output = io::Result<S>> + Send,
    {
        let ended = Arc::new(Notify::new());
        let place = self.0.enter(caller, &ended);
        tokio::spawn(async move {
            tokio::select! {
                () = ended.notified() => {}
                () = relay(stream, &place, connect) => {}
            }
        });
    }
}

/// Answers the Unix socket at `path` by connecting to `port` of the service's loopback, until the runtime ends.
///
/// # Errors
///
/// The socket cannot be made.
pub fn publish(path: &Path, port: u16, network: &Arc<Network>, connections: &Connections) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Whoever may reach the directory may connect: it is what the service publishes.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let (network, connections) = (Arc::clone(network), connections.clone());
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            if let Some(process) = stream.peer_cred().ok().and_then(|peer| peer.pid()) {
                let network = Arc::clone(&network);
                let reach = move || reach(Arc::clone(&network), target);
                connections.serve(Caller::Process(process), stream, reach);
            }
            // Whoever has just lost their place lets go of it before the next one comes.
            tokio::task::yield_now().await;
        }
    });
    Ok(())
}

/// Connects to an address of the service's network.
async fn reach(network: Arc<Network>, target: SocketAddr) -> io::Result<TcpStream> {
    network.enter()?;
    let socket = TcpSocket::new_v4();
    // Without a pause in between: everything else on this thread belongs to the shim's own network.
    network.leave()?;
    let socket = socket?;
    socket.set_nodelay(true)?;
    bound(&socket)?;
    socket.connect(target).await
}

/// Bounds what the kernel keeps for a connection.
fn bound(socket: &TcpSocket) -> io::Result<()> {
    socket.set_send_buffer_size(BUFFER)?;
    socket.set_recv_buffer_size(BUFFER)
}

/// Listens at `address` and `port` of the shim's network and connects to the Unix socket at `path`, until
/// the runtime ends.
///
/// # Errors
///
/// The address cannot be bound.
pub async fn lead(address: Ipv4Addr, port: u16, path: PathBuf, connections: &Connections) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    bound(&socket)?;
    socket.bind((address, port).into())?;
    let listener = socket.listen(BACKLOG)?;
    let connections = connections.clone();
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let _ = stream.set_nodelay(true);
            let path = path.clone();
            connections.serve(Caller::Own(address, port), stream, move || UnixStream::connect(path.clone()));
            tokio::task::yield_now().await;
        }
    });
    Ok(())
}

/// Connects the caller with the other side, or hangs up on it when there is none.
async fn relay<S, F>(
    caller: impl AsyncRead + AsyncWrite + Unpin,
    place: &Place<Caller>,
    connect: impl Fn() -> F,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = io::Result<S>>,
{
    let patience = tokio::time::Instant::now() + CONNECT_PATIENCE;
    let other = loop {
        match connect().await {
            Ok(other) => break other,
            Err(_) if tokio::time::Instant::now() < patience => tokio::time::sleep(CONNECT_PAUSE).await,
            Err(_) => return,
        }
    };
    join(caller, other, IDLE, || place.touch()).await;
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn here() -> Arc<Network> {
        Arc::new(Network::here().unwrap())
    }

    #[tokio::test]
    async fn bytes_pass_both_relays_and_ends_are_passed_on() {
        let connections = Connections::default();
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("port-1");
        let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
        publish(&socket, service.local_addr().unwrap().port(), &here(), &connections).unwrap();
        let free = TcpListener::bind("127.1.0.7:0").await.unwrap().local_addr().unwrap().port();
        lead(Ipv4Addr::new(127, 1, 0, 7), free, socket, &connections).await.unwrap();

        let mut caller = TcpStream::connect(("127.1.0.7", free)).await.unwrap();
        caller.write_all(b"ping").await.unwrap();
        caller.shutdown().await.unwrap();
        let (mut served, _) = service.accept().await.unwrap();
        let mut heard = Vec::new();
        served.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"ping");
        served.write_all(b"pong").await.unwrap();
        drop(served);
        let mut answer = Vec::new();
        caller.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"pong");
    }

    #[tokio::test]
    async fn a_service_that_does_not_listen_hangs_up() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("port-1");
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        publish(&socket, nobody, &here(), &Connections::default()).unwrap();
        let mut caller = UnixStream::connect(&socket).await.unwrap();
        let mut answer = Vec::new();
        assert_eq!(caller.read_to_end(&mut answer).await.unwrap(), 0);
    }

    /// A service that repeats what it hears, and the port at which it does.
    async fn echo() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
        });
        port
    }

    /// Whether what is said there comes back.
    async fn answers(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> bool {
        let mut heard = [0; 4];
        let exchange = async {
            stream.write_all(b"ping").await?;
            stream.read_exact(&mut heard).await
        };
        let exchange = tokio::time::timeout(Duration::from_secs(60), exchange).await.expect("an end");
        exchange.is_ok() && heard == *b"ping"
    }

    /// Where the other caller of the next test, which is another process, dials.
    const DIAL: &str = "RELAY_TEST_DIAL";

    #[tokio::test]
    async fn six_hundred_idle_connections_of_one_caller_do_not_hinder_another() {
        if let Some(path) = std::env::var_os(DIAL) {
            // The other caller: it takes all that it can get, says so, and keeps it until it is ended.
            let mut greedy = Vec::new();
            for _ in 0..600 {
                greedy.push(UnixStream::connect(&path).await.unwrap());
            }
            assert!(answers(greedy.last_mut().unwrap()).await, "a newcomer is let in");
            fs::write(Path::new(&path).with_extension("taken"), "").unwrap();
            return std::future::pending().await;
        }
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("port-1");
        let connections = Connections::default();
        publish(&socket, echo().await, &here(), &connections).unwrap();
        let mut own = Vec::new();
        for _ in 0..3 {
            own.push(UnixStream::connect(&socket).await.unwrap());
            assert!(answers(own.last_mut().unwrap()).await);
        }
        let this = "relay::tests::six_hundred_idle_connections_of_one_caller_do_not_hinder_another";
        let mut other = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", this])
            .env(DIAL, &socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let taken = tokio::time::timeout(Duration::from_secs(60), async {
            while !socket.with_extension("taken").exists() {
                assert!(other.try_wait().unwrap().is_none(), "the other caller has failed");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        taken.await.unwrap();
        assert_eq!(connections.0.taken(), CONNECTIONS);
        for stream in &mut own {
            assert!(answers(stream).await, "what was there before is left alone");
        }
        for _ in 0..20 {
            let mut newcomer = UnixStream::connect(&socket).await.unwrap();
            assert!(answers(&mut newcomer).await);
            own.push(newcomer);
        }
        assert_eq!(connections.0.taken(), CONNECTIONS);
        other.kill().unwrap();
        other.wait().unwrap();
        let freed = tokio::time::timeout(Duration::from_secs(60), async {
            while connections.0.taken() > own.len() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        freed.await.unwrap();
    }

    #[tokio::test]
    async fn a_service_that_opens_too_many_to_one_dependency_loses_those_that_were_silent_longest() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("port-1");
        let (outside, inside) = (Connections(Places::new(64)), Connections(Places::new(16)));
        publish(&socket, echo().await, &here(), &outside).unwrap();
        let mut ports = Vec::new();
        for host in [8, 9] {
            let address = Ipv4Addr::new(127, 1, 0, host);
            let free = TcpListener::bind((address, 0)).await.unwrap().local_addr().unwrap();
            lead(address, free.port(), socket.clone(), &inside).await.unwrap();
            ports.push(free);
        }
        let mut database = TcpStream::connect(ports[1]).await.unwrap();
        assert!(answers(&mut database).await);
        let mut leaked = Vec::new();
        for _ in 0..40 {
            leaked.push(TcpStream::connect(ports[0]).await.unwrap());
            assert!(answers(leaked.last_mut().unwrap()).await);
            // The first is of use all the time.
            assert!(answers(&mut leaked[0]).await);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(inside.0.taken(), 16);
        assert!(answers(&mut database).await, "the other dependency's is left alone");
        assert!(answers(&mut leaked[0]).await && answers(&mut leaked[39]).await);
        assert!(!answers(&mut leaked[1]).await);
    }

    #[tokio::test]
    async fn what_the_kernel_keeps_for_a_connection_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("port-1");
        let service = TcpSocket::new_v4().unwrap();
        bound(&service).unwrap();
        service.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let service = service.listen(1).unwrap();
        let port = service.local_addr().unwrap().port();
        publish(&socket, port, &here(), &Connections::default()).unwrap();
        let mut caller = UnixStream::connect(&socket).await.unwrap();
        let (_silent, _) = service.accept().await.unwrap();
        // The service never reads; its own buffer is as small.
        let mut passed: usize = 0;
        while let Ok(written) =
            tokio::time::timeout(Duration::from_secs(1), caller.write(&[0; 16 * 1024])).await
        {
            passed += written.unwrap();
            assert!(passed < 1 << 20, "more than both sockets and the relay may keep");
        }
    }

    #[test]
    fn the_documents_have_the_numbers_of_the_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ARCHITECTURE.md");
        let text = fs::read_to_string(path).unwrap();
        let (hours, half) = (IDLE.open.as_secs() / 3600, IDLE.half_closed.as_secs());
        for said in [
            format!("| connections of a shim's relays | {CONNECTIONS} |"),
            format!("after {hours} h without a byte in either direction, or {half} s after one side's end"),
        ] {
            assert!(text.contains(&said), "{said}");
        }
    }
}
