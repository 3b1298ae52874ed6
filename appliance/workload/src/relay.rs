//! Byte relays from the appliance to a service: the way to its published ports.
//!
//! The shim answers a Unix socket for each published port and connects to the service, in whose network it is. It copies
//! bytes and looks at none, but at a port that redacts [`answers`](crate::answers). Services reach each other over their
//! networks, without it.
//!
//! All relays of a shim share a number of places ([`Connections`]). When all are taken, the connection that was silent longest,
//! of the caller that has most, ends for the next one: no caller keeps another out.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UnixListener};
use tokio::sync::Notify;

use crate::answers::{self, Answers};
use crate::join::{Activity, Idle, Observed, join};
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

/// Who has connections: another role's process. Their uids are not known in this one's user namespace.
type Caller = i32;

/// The connections of all relays of a shim.
#[derive(Debug, Clone)]
pub struct Connections(Arc<Places<Caller>>);

impl Default for Connections {
    fn default() -> Self {
        Self(Places::new(CONNECTIONS))
    }
}

impl Connections {
    /// Relays for `caller` in a task of its own, as long as there is a place for it; with `answers`, redacts what the service
    /// answers.
    fn serve<C, S, F>(
        &self,
        caller: Caller,
        stream: C,
        connect: impl Fn() -> F + Send + Sync + 'static,
        answers: Option<Answers>,
    ) where
        C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = io::Result<S>> + Send,
    {
        let ended = Arc::new(Notify::new());
        let place = self.0.enter(caller, &ended);
        tokio::spawn(async move {
            let conversation = async {
                match answers {
                    None => relay(stream, &place, connect).await,
                    Some(answers) => redact(stream, &place, connect, &answers).await,
                }
            };
            tokio::select! {
                () = ended.notified() => {}
                () = conversation => {}
            }
        });
    }
}

/// Answers the Unix socket at `path` by connecting to `port` of the service, until the runtime ends: on its loopback, or else at
/// `address`, where a program listens that asked for its own host's address. With `answers`, what the service answers is
/// HTTP/1.1 and redacted, and nothing else passes.
///
/// # Errors
///
/// The socket cannot be made.
pub fn publish(
    path: &Path,
    port: u16,
    address: Option<Ipv4Addr>,
    connections: &Connections,
    answers: Option<&Answers>,
) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Whoever may reach the directory may connect: it is what the service publishes.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    let targets =
        [Some(Ipv4Addr::LOCALHOST), address].map(|address| Some(SocketAddr::from((address?, port))));
    let (connections, answers) = (connections.clone(), answers.cloned());
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            if let Some(process) = stream.peer_cred().ok().and_then(|peer| peer.pid()) {
                connections.serve(process, stream, move || reach(targets), answers.clone());
            }
            // Whoever has just lost their place lets go of it before the next one comes.
            tokio::task::yield_now().await;
        }
    });
    Ok(())
}

/// Connects to the first of these addresses that answers.
async fn reach(targets: [Option<SocketAddr>; 2]) -> io::Result<TcpStream> {
    let mut answer = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for target in targets.into_iter().flatten() {
        let socket = TcpSocket::new_v4()?;
        socket.set_nodelay(true)?;
        bound(&socket)?;
        match socket.connect(target).await {
            Ok(stream) => return Ok(stream),
            Err(error) => answer = error,
        }
    }
    Err(answer)
}

/// Bounds what the kernel keeps for a connection.
fn bound(socket: &TcpSocket) -> io::Result<()> {
    socket.set_send_buffer_size(BUFFER)?;
    socket.set_recv_buffer_size(BUFFER)
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
    let Ok(other) = patiently(connect).await else { return };
    join(caller, other, IDLE, || place.touch()).await;
}

/// Answers the caller with what the other side answers, redacted, or hangs up on it when there is none.
async fn redact<S, F>(
    caller: impl AsyncRead + AsyncWrite + Unpin,
    place: &Place<Caller>,
    connect: impl Fn() -> F,
    answers: &Answers,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>>,
{
    let (activity, moved) = (Activity::new(), || place.touch());
    let caller = Observed::new(caller, &activity, &moved);
    tokio::select! {
        () = answers::serve(caller, || patiently(&connect), answers) => {}
        () = activity.silence(IDLE) => {}
    }
}

/// Connects, again and again for a while.
async fn patiently<S, F: Future<Output = io::Result<S>>>(connect: impl Fn() -> F) -> io::Result<S> {
    let patience = tokio::time::Instant::now() + CONNECT_PATIENCE;
    loop {
        match connect().await {
            Err(_) if tokio::time::Instant::now() < patience => tokio::time::sleep(CONNECT_PAUSE).await,
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UnixStream};

    use super::*;

    /// A service of one answer that listens at `listens`, published by one that has `address`.
    async fn answered(listens: &str, address: Option<Ipv4Addr>) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("port-1");
        let service = TcpListener::bind((listens, 0)).await.unwrap();
        let port = service.local_addr().unwrap().port();
        publish(&socket, port, address, &Connections::default(), None).unwrap();
        let mut caller = UnixStream::connect(&socket).await.unwrap();
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
        answer
    }

    #[tokio::test]
    async fn bytes_pass_and_ends_are_passed_on_wherever_the_service_listens() {
        let own = Ipv4Addr::new(127, 1, 0, 7);
        assert_eq!(answered("127.0.0.1", None).await, b"pong");
        assert_eq!(answered("127.0.0.1", Some(own)).await, b"pong");
        assert_eq!(answered("127.1.0.7", Some(own)).await, b"pong");
        assert_eq!(answered("0.0.0.0", Some(own)).await, b"pong");
    }

    #[tokio::test]
    async fn a_service_that_does_not_listen_hangs_up() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("port-1");
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        publish(&socket, nobody, None, &Connections::default(), None).unwrap();
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
        publish(&socket, echo().await, None, &connections, None).unwrap();
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
    async fn callers_of_a_port_that_redacts_share_the_places_of_all_others() {
        let directory = tempfile::tempdir().unwrap();
        let (plain, redacted) = (directory.path().join("plain"), directory.path().join("redacted"));
        let (connections, answers) = (Connections::default(), Answers::default());
        let port = echo().await;
        publish(&plain, port, None, &connections, None).unwrap();
        publish(&redacted, port, None, &connections, Some(&answers)).unwrap();
        let mut first = UnixStream::connect(&redacted).await.unwrap();
        let mut others = Vec::new();
        for _ in 0..CONNECTIONS {
            others.push(UnixStream::connect(&plain).await.unwrap());
            tokio::task::yield_now().await;
        }
        let end = tokio::time::timeout(Duration::from_secs(60), first.read(&mut [0])).await;
        assert_eq!(end.expect("its place was needed").unwrap(), 0);
        assert_eq!(connections.0.taken(), CONNECTIONS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_redacts_forgets_a_silent_connection_when_others_do() {
        let (mut caller, near) = tokio::io::duplex(1024);
        let place = Places::new(1).enter(0, &Arc::new(Notify::new()));
        let start = tokio::time::Instant::now();
        let nobody = || async { Err::<TcpStream, _>(io::ErrorKind::ConnectionRefused.into()) };
        redact(near, &place, nobody, &Answers::default()).await;
        assert!(start.elapsed() >= IDLE.open && start.elapsed() < IDLE.open + Duration::from_secs(1));
        assert_eq!(caller.read(&mut [0]).await.unwrap(), 0);
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
        publish(&socket, port, None, &Connections::default(), None).unwrap();
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
