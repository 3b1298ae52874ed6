//! Listeners: TCP, TLS, HTTP/1.1, and every bound that a hostile peer runs into.
//!
//! axum's own accept loop offers no timer for request headers, so the loop is here, on hyper. A peer holds a
//! permit only while it makes progress: the handshake, the headers and the silence between requests are timed; what
//! is written to it must be taken. The number of connections is fixed, over all and for each source; a connection for
//! which there is no permit is closed at once, so that a client that has used up its own keeps nobody waiting behind it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::site::Site;
use super::source::Source;
use super::stall::StallTimeoutStream;
use super::tls;
use crate::system::quota::{Permit, Quota};

/// Bounds on what a peer may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Open connections over all ports. Each costs up to about 100 KiB.
    pub(crate) connections: usize,
    /// Of these, for one source. A load balancer is one source too: enough for the traffic of a whole site, and it
    /// takes four of them to shut the door.
    pub(crate) per_source: usize,
    /// From the TCP connection to the end of the TLS handshake.
    pub(crate) handshake: Duration,
    /// For the headers of a request, counted from the end of the previous one: also the longest silence of a
    /// kept-alive connection.
    pub(crate) headers: Duration,
    /// For a peer to take something that was written to it.
    pub(crate) write: Duration,
    /// Request line and headers, in bytes.
    pub(crate) header_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            per_source: 128,
            handshake: Duration::from_secs(10),
            headers: Duration::from_secs(15),
            write: Duration::from_secs(60),
            header_bytes: 32 * 1024,
        }
    }
}

/// How long a connection may be without a sign of life before the kernel asks, how often it asks, and how many
/// unanswered questions end it. A workload may leave an answer open for hours: only this notices that the
/// peer has vanished meanwhile.
const SILENT: u32 = 60;
const ASK_EVERY: u32 = 15;
const ASK_TIMES: u32 = 4;

/// Who is at the other end of a connection, and which connection it is.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// The address it came from, as TCP says.
    pub(crate) address: SocketAddr,
    /// The published port that it dialled.
    pub(crate) port: u16,
    /// RFC 9266 `tls-exporter` of this connection.
    pub(crate) channel_binding: [u8; 32],
    /// Its permit: whoever keeps the connection beyond HTTP, for a tunnel, keeps this with it.
    pub(crate) permit: Arc<Permit<Source>>,
}

/// The connections that all listeners share.
pub(crate) fn connections(limits: &Limits) -> Arc<Quota<Source>> {
    Quota::new(limits.connections, limits.per_source)
}

/// Serves one published port until the task is dropped.
pub(crate) async fn serve(
    listener: TcpListener,
    port: u16,
    acceptor: TlsAcceptor,
    limits: Limits,
    connections: Arc<Quota<Source>>,
    site: Arc<Site>,
) {
    let mut failing = false;
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => {
                failing = false;
                accepted
            }
            Err(error) => {
                // Out of descriptors, or a peer that is gone already: neither is a reason to stop.
                if !std::mem::replace(&mut failing, true) {
                    eprintln!("front: cannot accept on port {port}: {error}");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(permit) = connections.take(Source::from(address.ip())) else { continue };
        let (acceptor, site) = (acceptor.clone(), Arc::clone(&site));
        tokio::spawn(converse(stream, address, port, Arc::new(permit), acceptor, limits, site));
    }
}

/// One connection from handshake to end. What goes wrong on it concerns its peer alone.
async fn converse(
    stream: TcpStream,
    address: SocketAddr,
    port: u16,
    permit: Arc<Permit<Source>>,
    acceptor: TlsAcceptor,
    limits: Limits,
    site: Arc<Site>,
) {
    if prepare(&stream).is_err() {
        return;
    }
    let Ok(Ok(stream)) = tokio::time::timeout(limits.handshake, acceptor.accept(stream)).await else {
        return;
    };
    let Some(channel_binding) = tls::channel_binding(stream.get_ref().1) else { return };
    let peer = Peer { address, port, channel_binding, permit };

    let service = service_fn(move |request| {
        let (site, peer) = (Arc::clone(&site), peer.clone());
        async move { Ok::<_, Infallible>(site.answer(peer, request).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.headers)
        .max_buf_size(limits.header_bytes)
        .serve_connection(TokioIo::new(StallTimeoutStream::new(stream, limits.write)), service)
        .with_upgrades()
        .await;
}

/// Options of an accepted connection.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    // Without it a small answer waits for the peer's delayed acknowledgement.
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &SILENT)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &ASK_EVERY)?;
    setsockopt(stream, sockopt::TcpKeepCount, &ASK_TIMES)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;

    use super::*;

    #[tokio::test]
    async fn vanished_peers_are_noticed_by_the_kernel() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        prepare(&stream).unwrap();
        assert!(stream.nodelay().unwrap());
        assert!(getsockopt(&stream, sockopt::KeepAlive).unwrap());
        let idle = getsockopt(&stream, sockopt::TcpKeepIdle).unwrap();
        let interval = getsockopt(&stream, sockopt::TcpKeepInterval).unwrap();
        let count = getsockopt(&stream, sockopt::TcpKeepCount).unwrap();
        assert!(idle + interval * count <= 120, "within two minutes");
    }
}
