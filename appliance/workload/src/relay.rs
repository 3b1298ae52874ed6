//! Byte relays from the appliance to a service: the way to its published ports.
//!
//! The shim answers a Unix socket for each published port and connects to the service, in whose network it is. It copies
//! bytes and looks at none. Services reach each other over their networks, without it.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::network::Network;

/// Connections of one relay at a time; the next one waits in the listener's queue. Two descriptors each.
const MAX_CONNECTIONS: usize = 512;
/// A program that was just executed may take a moment to listen; a caller waits that long for it.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is tried meanwhile.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
/// After an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers the Unix socket at `path` by connecting to `port` of the service's loopback, until the runtime ends.
///
/// # Errors
///
/// The socket cannot be made.
pub fn publish(path: &Path, port: u16, network: &Arc<Network>) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Whoever may reach the directory may connect: it is what the service publishes.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let network = Arc::clone(network);
    tokio::spawn(async move {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((caller, _)) => {
                    let network = Arc::clone(&network);
                    tokio::spawn(serve(caller, slot, move || reach(Arc::clone(&network), target)));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
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
    socket.connect(target).await
}

/// Listens at `address` and `port` of the shim's network and connects to the Unix socket at `path`, until
/// the runtime ends.
///
/// # Errors
///
/// The address cannot be bound.
pub async fn lead(address: Ipv4Addr, port: u16, path: PathBuf) -> io::Result<()> {
    let listener = TcpListener::bind((address, port)).await?;
    tokio::spawn(async move {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((caller, _)) => {
                    let _ = caller.set_nodelay(true);
                    let path = path.clone();
                    tokio::spawn(serve(caller, slot, move || UnixStream::connect(path.clone())));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    });
    Ok(())
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

    use super::*;

    fn here() -> Arc<Network> {
        Arc::new(Network::here().unwrap())
    }

    #[tokio::test]
    async fn bytes_pass_both_relays_and_ends_are_passed_on() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("port-1");
        let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
        publish(&socket, service.local_addr().unwrap().port(), &here()).unwrap();
        let free = TcpListener::bind("127.1.0.7:0").await.unwrap().local_addr().unwrap().port();
        lead(Ipv4Addr::new(127, 1, 0, 7), free, socket).await.unwrap();

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
        publish(&socket, nobody, &here()).unwrap();
        let mut caller = UnixStream::connect(&socket).await.unwrap();
        let mut answer = Vec::new();
        assert_eq!(caller.read_to_end(&mut answer).await.unwrap(), 0);
    }
}
