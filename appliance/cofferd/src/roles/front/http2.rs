//! HTTP/2 to clients (RFC 9113), with the bounds that HTTP/1.1 has.
//!
//! Written on the `h2` crate instead of hyper's server, which hands a piece of an answer over as soon as the client's window has room
//! for one byte of it: what is left would lie here for a client who takes nothing, when nobody counts the request any more.
//! Here no byte of an answer leaves its place before the client has room for it.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use cofferdam_workload::hop;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use hyper::body::{Body as _, Frame};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::gather::Gather;
use super::listen::{Limits, Peer};
use super::reply;
use super::site::Site;
use super::stall::Stall;

/// Requests on one connection at a time, as few as RFC 9113 §6.5.2 has nothing against. Each costs up to about 2 KiB beside what
/// it holds a place for.
pub(super) const STREAMS: u32 = 100;

/// What a client may send of bodies before a service takes it, in bytes: of one request, and of all on a connection.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;

/// How many more requests a client may give up than it takes answers, on one connection. To ask and to give up costs it next to nothing,
/// and a service something each time (CVE-2023-44487).
pub(super) const GIVEN_UP: usize = 100;

/// Headers of one request, as many as in HTTP/1.1.
const HEADERS: usize = 100;

/// Serves one connection to its end.
pub(super) async fn serve<S>(stream: S, peer: &Peer, limits: Limits, site: &Arc<Site>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut server = Builder::new();
    let handshake = server
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake::<_, Bytes>(Gather::new(stream));
    let Ok(Ok(connection)) = timeout(limits.headers, handshake).await else { return };
    converse(connection, peer, limits, site).await;
}

async fn converse<S>(mut connection: Connection<S, Bytes>, peer: &Peer, limits: Limits, site: &Arc<Site>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // They end with the connection.
    let mut requests = JoinSet::new();
    let mut end: Option<Instant> = None;
    let mut given_up = 0_usize;
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    requests.spawn(answer(request, respond, peer.clone(), limits, Arc::clone(site)));
                }
                _ => return,
            },
            Some(fate) = requests.join_next() => {
                given_up = match fate {
                    Ok(Fate::GivenUp) => given_up.saturating_add(1),
                    _ => given_up.saturating_sub(1),
                };
                if given_up > GIVEN_UP {
                    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                }
            }
            () = peer.connection.over(limits.silence), if end.is_none() => {
                connection.graceful_shutdown();
                end = Some(Instant::now() + limits.write);
            }
            () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => return,
        }
    }
}

/// What came of a request.
enum Fate {
    /// The client gave it up before the answer began.
    GivenUp,
    /// Anything else.
    Answered,
}

/// One request and its answer, until one of both sides gives it up.
async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    peer: Peer,
    limits: Limits,
    site: Arc<Site>,
) -> Fate {
    let without_body = request.method() == Method::HEAD;
    let request = request.map(|body| Body::new(Received(body)));
    let response = if request.headers().len() > HEADERS {
        reply::error(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the request has too many headers", None)
    } else {
        // In a box of its own, which is empty by the time that the client is waited for.
        let answer = Box::pin(site.answer(peer, request));
        tokio::select! {
            response = answer => response,
            _ = std::future::poll_fn(|context| respond.poll_reset(context)) => return Fate::GivenUp,
        }
    };
    let (mut parts, body) = response.into_parts();
    hop::remove(&mut parts.headers);
    let ended = without_body || body.is_end_stream();
    let head = Response::from_parts(parts, ());
    if let Ok(stream) = respond.send_response(head, ended)
        && !ended
    {
        send(body, stream, Stall::new(limits.write)).await;
    }
    Fate::Answered
}

/// Sends a body as the client takes it.
async fn send(body: Body, mut stream: SendStream<Bytes>, mut patience: Stall) {
    let mut body = pin!(body);
    loop {
        let frame = tokio::select! {
            frame = std::future::poll_fn(|context| body.as_mut().poll_frame(context)) => frame,
            _ = std::future::poll_fn(|context| stream.poll_reset(context)) => return,
        };
        let sent = match frame.map(|frame| frame.map(Frame::into_data)) {
            Some(Ok(Ok(data))) => {
                // The end goes with the last piece, where it is known to be that.
                let last = body.is_end_stream() && !data.is_empty();
                let sent = send_data(data, last, &mut stream, &mut patience).await;
                if last && sent.is_some() {
                    return;
                }
                sent
            }
            Some(Ok(Err(frame))) => match frame.into_trailers() {
                Ok(mut trailers) => {
                    hop::remove(&mut trailers);
                    let _ = stream.send_trailers(trailers);
                    return;
                }
                // There is no third kind.
                Err(_) => Some(()),
            },
            None => {
                let _ = stream.send_data(Bytes::new(), true);
                return;
            }
            Some(Err(_)) => None,
        };
        if sent.is_none() {
            return stream.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}

/// Sends a piece; `None` when the client is gone, or has not made room for too long.
async fn send_data(
    mut data: Bytes,
    last: bool,
    stream: &mut SendStream<Bytes>,
    patience: &mut Stall,
) -> Option<()> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = std::future::poll_fn(|context| {
            let outcome = match stream.capacity() {
                0 => stream.poll_capacity(context),
                room => Poll::Ready(Some(Ok(room))),
            };
            patience.watch(context, outcome, |room| match room {
                Some(Ok(room)) => *room,
                _ => 0,
            })
        });
        let room = room.await.ok()??.ok()?;
        if room > 0 {
            let piece = data.split_to(room.min(data.len()));
            stream.send_data(piece, last && data.is_empty()).ok()?;
        }
    }
    Some(())
}

/// The body of a request.
struct Received(RecvStream);

impl hyper::body::Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if let Some(data) = ready!(self.0.poll_data(context)) {
            let data = data?;
            // Who asks has taken what came before.
            self.0.flow_control().release_capacity(data.len())?;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers: Option<HeaderMap> = ready!(self.0.poll_trailers(context))?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}
