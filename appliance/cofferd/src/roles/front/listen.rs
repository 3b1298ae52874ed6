//! Listeners: TCP, TLS, HTTP/1.1, and every bound that a hostile peer runs into.
//!
//! axum's own accept loop offers no timer for request headers, so the loop is here, on hyper. A peer keeps its place
//! only while it makes progress: the handshake, the headers and the silence between requests are timed; what is
//! written to it must be taken. The number of connections is fixed, and a newcomer is let in all the same: in the stage
//! before a request is complete the oldest connection of the source that has most ends for it. That stage is short for
//! everybody who means well, so only those who do not, or who are many, come to its end.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use cofferdam_protocol::certificate::ACME_TLS;
use cofferdam_protocol::status::Refusal;
use cofferdam_workload::places::Places;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use super::connection::{Connection, hold};
use super::half::{HalfClosable, Owed};
use super::site::Site;
use super::source::Source;
use super::stall::StallTimeoutStream;
use super::{http2, tcp, tls};

/// With what a client that speaks HTTP/2 begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bounds on what a peer may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections over all ports without a complete request: in their handshake, in their headers, or kept alive. Each
    /// costs up to about 50 KiB, and 16 KiB more when it speaks HTTP/2 and takes nothing. A load balancer keeps some hundred alive.
    pub(crate) waiting: usize,
    /// From the TCP connection to the end of the TLS handshake.
    pub(crate) handshake: Duration,
    /// For the headers of a request, counted from the end of the previous one: also the longest silence of a
    /// kept-alive connection.
    pub(crate) headers: Duration,
    /// How long a connection that speaks HTTP/2 may be without a request. Clients keep them for the next one.
    pub(crate) silence: Duration,
    /// For a peer to take something that was written to it.
    pub(crate) write: Duration,
    /// For the answer to go on, to a client that has said its end.
    pub(crate) half_closed: Duration,
    /// Request line and headers, in bytes.
    pub(crate) header_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            waiting: 512,
            handshake: Duration::from_secs(10),
            headers: Duration::from_secs(15),
            silence: Duration::from_secs(120),
            write: Duration::from_secs(60),
            half_closed: Duration::from_secs(60),
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
    /// Where the connection is counted.
    pub(crate) connection: Arc<Connection>,
}

/// Serves one published port until the task is dropped. All ports share the places of connections that wait.
pub(crate) async fn serve(
    listener: TcpListener,
    port: u16,
    acceptor: TlsAcceptor,
    limits: Limits,
    waiting: Arc<Places<Source>>,
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
        let connection = Connection::new(Source::from(address.ip()), &waiting);
        let (acceptor, site) = (acceptor.clone(), Arc::clone(&site));
        let open = site.counts.opened();
        tokio::spawn(async move {
            let counts = Arc::clone(&site.counts);
            let conversation = converse(stream, address, port, &connection, acceptor, limits, site);
            tokio::select! {
                () = connection.ended() => counts.refused(Refusal::Displaced),
                () = conversation => {}
            }
            drop(open);
        });
        // Whoever has just lost their place lets go of what they hold before the next one is let in.
        tokio::task::yield_now().await;
    }
}

/// One connection from handshake to end. What goes wrong on it concerns its peer alone.
async fn converse(
    stream: TcpStream,
    address: SocketAddr,
    port: u16,
    connection: &Arc<Connection>,
    acceptor: TlsAcceptor,
    limits: Limits,
    site: Arc<Site>,
) {
    if prepare(&stream).is_err() {
        return;
    }
    // Below TLS, where what the peer has taken is known to the byte.
    let stream = StallTimeoutStream::new(stream, limits.write);
    let peer = |channel_binding| Peer { address, port, channel_binding, connection: Arc::clone(connection) };
    if let Some(backend) = site.passed_through(port) {
        return tcp::carry(stream, &peer([0; 32]), backend).await;
    }
    let shaking = shake_hands(stream, port, &acceptor, &site, connection.source());
    let Ok(Ok(stream)) = timeout(limits.handshake, shaking).await else {
        return site.counts.refused(Refusal::Handshake);
    };
    let Some(channel_binding) = tls::channel_binding(stream.get_ref().1) else { return };
    let peer = peer(channel_binding);
    match stream.get_ref().1.alpn_protocol() {
        // The handshake was the whole of it (RFC 8737 §3).
        Some(ACME_TLS) => return,
        Some(tls::SIGNS_IN) => http1(stream, &peer, limits, &site).await,
        chosen => {
            let h2 = chosen == Some(tls::HTTP_2);
            speak(stream, h2, &peer, limits, &site).await;
        }
    }
    // Who has signed in for the connection itself begins anew on it.
    let Some(next) = connection.next() else { return };
    let Ok(stream) = next.await else { return };
    let mut stream = TokioIo::new(stream);
    if site.carries_bytes(&peer).is_some() {
        return speak(stream, false, &peer, limits, &site).await;
    }
    let mut head = Vec::new();
    let Ok(Ok(h2)) = timeout(limits.headers, begins_http_2(&mut stream, &mut head)).await else { return };
    let (reader, writer) = tokio::io::split(stream);
    let stream = tokio::io::join(std::io::Cursor::new(head).chain(reader), writer);
    speak(stream, h2, &peer, limits, &site).await;
}

/// Whether a client says that it speaks HTTP/2. `head` is what it has said.
async fn begins_http_2(stream: &mut (impl AsyncRead + Unpin), head: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut piece = [0; PREFACE.len()];
    while PREFACE.starts_with(head) && head.len() < PREFACE.len() {
        let room = piece.get_mut(head.len()..).unwrap_or_default();
        let count = stream.read(room).await?;
        if count == 0 {
            break;
        }
        head.extend_from_slice(room.get(..count).unwrap_or_default());
    }
    Ok(head == PREFACE)
}

/// Serves what comes on a connection as its port says.
async fn speak<S>(stream: S, h2: bool, peer: &Peer, limits: Limits, site: &Arc<Site>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if let Some(backend) = site.carries_bytes(peer) {
        tcp::carry(stream, peer, backend).await;
    } else if h2 {
        http2::serve(stream, peer, limits, site).await;
    } else {
        http1(stream, peer, limits, site).await;
    }
}

async fn http1<S>(stream: S, peer: &Peer, limits: Limits, site: &Arc<Site>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let owed = Owed::default();
    let stream = HalfClosable::new(stream, owed.clone(), limits.half_closed);
    let service = service_fn(move |request: Request<Incoming>| {
        let (site, peer) = (Arc::clone(site), peer.clone());
        let (head, body) = request.into_parts();
        let (body, owing) = owed.from(body);
        let request = Request::from_parts(head, Body::new(body));
        async move { Ok::<_, Infallible>(hold(site.answer(peer, request).await, owing)) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.headers)
        .max_buf_size(limits.header_bytes)
        // Of itself the buffer takes up to twice as much when it arrives at once.
        .max_header_size(limits.header_bytes)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}

/// The TLS handshake, with the certificate for this client. What it costs, key exchange and signature, is done when the whole of the client's greeting is there, in the source's
/// turn; the turn ends when the client has to say something.
async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    port: u16,
    acceptor: &TlsAcceptor,
    site: &Site,
    source: Source,
) -> std::io::Result<TlsStream<S>> {
    let greeted = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    let turn = site.callers.turns().take(source).await;
    let browser = site.browser.as_ref();
    let config = browser.and_then(|browser| browser.config(&greeted.client_hello(), site.carries_http(port)));
    let config = config.unwrap_or_else(|| Arc::clone(acceptor.config()));
    let mut answered = pin!(greeted.into_stream(config));
    let answer = poll_fn(|context| Poll::Ready(answered.as_mut().poll(context))).await;
    drop(turn);
    match answer {
        Poll::Ready(stream) => stream,
        Poll::Pending => answered.await,
    }
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
