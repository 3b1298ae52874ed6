//! Byte relays from the appliance to a service: the way to its published ports.
//!
//! The shim answers a Unix socket for each published port and connects to the service, in whose network it is. It copies
//! bytes and looks at none. Services reach each other over their networks, without it.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpSocket, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections of one relay at a time; the next one waits in the listener's queue. Two descriptors each.
const MAX_CONNECTIONS: usize = 512;
/// A program that was just executed may take a moment to listen; a caller waits that long for it.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is tried meanwhile.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
/// After an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers the Unix socket at `path` by connecting to `port` of the service, until the runtime ends: on its loopback, or else at
/// `address`, where a program listens that asked for its own host's address.
///
/// # Errors
///
/// The socket cannot be made.
pub fn publish(path: &Path, port: u16, address: Option<Ipv4Addr>) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Whoever may reach the directory may connect: it is what the service publishes.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    let targets =
        [Some(Ipv4Addr::LOCALHOST), address].map(|address| Some(SocketAddr::from((address?, port))));
    tokio::spawn(async move {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((caller, _)) => {
                    tokio::spawn(serve(caller, slot, move || reach(targets)));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
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
        match socket.connect(target).await {
            Ok(stream) => return Ok(stream),
            Err(error) => answer = error,
        }
    }
    Err(answer)
}

/// Connects the caller with the other side, or hangs up on it when there is none.
async fn serve<C, S, F>(mut caller: C, slot: OwnedSemaphorePermit, connect: impl Fn() -> F)
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = io::Result<S>>,
{
    let patience = tokio::time::Instant::now() + CONNECT_PATIENCE;
    let mut other = loop {
        match connect().await {
            Ok(other) => break other,
            Err(_) if tokio::time::Instant::now() < patience => tokio::time::sleep(CONNECT_PAUSE).await,
            Err(_) => return,
        }
    };
    // Either side may end at any time; that is not an error of the relay.
    let _ = copy_bidirectional(&mut caller, &mut other).await;
    drop(slot);
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UnixStream};

    use super::*;

    /// A service of one answer that listens at `listens`, published by one that has `address`.
    async fn answered(listens: &str, address: Option<Ipv4Addr>) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("port-1");
        let service = TcpListener::bind((listens, 0)).await.unwrap();
        publish(&socket, service.local_addr().unwrap().port(), address).unwrap();
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
        publish(&socket, nobody, None).unwrap();
        let mut caller = UnixStream::connect(&socket).await.unwrap();
        let mut answer = Vec::new();
        assert_eq!(caller.read_to_end(&mut answer).await.unwrap(), 0);
    }
}
