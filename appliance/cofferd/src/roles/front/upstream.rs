//! Connections to a service: made, kept for a moment and used again.
//!
//! Each belongs to one client's connection and ends with it, so what a service says out of turn, or leaves unread of a request,
//! reaches nobody but the client whose request it was. And one is kept only between requests that have no body and may be sent
//! twice (RFC 9110 §9.2.2): when the service has closed it meanwhile, the request goes over a new one, and no client
//! notices. A service whose port is `h2c` has one connection for each client's, with all of its requests.
//!
//! A service can reach `front` only by answering: the socket counts only when the process that listens on it has the uid
//! of that service's shim, so a shim that puts a link to another socket in its place gains nothing.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, Response, StatusCode};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use super::proxy::Backend;

/// How long the shim's socket may take to accept.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long a workload may take until its answer begins. Long polls are common; an hour is not.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(300);

/// How long a connection is kept without a request, at least; and at most twice as long. A service with a process for each
/// connection waits in vain meanwhile, and all close idle ones themselves after two seconds or more.
pub(super) const KEPT: Duration = Duration::from_secs(1);

/// Connections to one service that are kept at one time.
pub(super) const KEPT_BY_SERVICE: usize = 64;

/// What is kept of a service's answer while the client takes it, in bytes; the head of one has to fit as well.
const ANSWER_BUFFER: usize = 32 * 1024;

/// What a service that speaks HTTP/2 may send before it is taken, in bytes: for one answer, and for all of a client.
const STREAM_WINDOW: u32 = 64 * 1024;
const CLIENT_WINDOW: u32 = 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    /// Nobody listens for the service, or somebody else does.
    Unreachable,
    /// It accepted, and did not answer in HTTP.
    Broken,
    /// It did not begin an answer in time.
    Late,
}

/// The connections of one client to the service behind the port that it dialled.
#[derive(Debug, Default)]
pub(crate) struct Upstream {
    kept: Mutex<Kept>,
    /// The one that speaks HTTP/2.
    shared: tokio::sync::Mutex<Option<http2::SendRequest<Body>>>,
}

/// Connections without a request.
#[derive(Debug, Default)]
struct Kept {
    idle: Vec<Idle>,
    /// Whether somebody looks after those that nobody needs any more.
    swept: bool,
}

#[derive(Debug)]
struct Idle {
    since: Instant,
    sender: http1::SendRequest<Body>,
    _place: OwnedSemaphorePermit,
}

/// Places of kept connections; each service has its own.
pub(super) fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(KEPT_BY_SERVICE))
}

/// Connects to the service's shim; `None` when it is not there or somebody else is.
pub(crate) async fn connect(backend: &Backend) -> Option<UnixStream> {
    let stream = timeout(CONNECT_LIMIT, UnixStream::connect(&backend.socket)).await.ok()?.ok()?;
    (stream.peer_cred().ok()?.uid() == backend.uid).then_some(stream)
}

impl Upstream {
    /// The answer to a request in HTTP/1.1. `repeatable`: it has no body, and may be sent twice.
    pub(crate) async fn send(
        self: &Arc<Self>,
        backend: &Backend,
        mut request: Request<Body>,
        repeatable: bool,
    ) -> Result<Response<Answer>, Failed> {
        if repeatable && let Some(mut sender) = self.take().await {
            let again = copy(&request);
            match timeout(ANSWER_LIMIT, sender.send_request(request)).await {
                Ok(Ok(response)) => return Ok(self.lend(response, sender, &backend.kept)),
                Ok(Err(_)) => request = again,
                Err(_) => return Err(Failed::Late),
            }
        }
        let stream = connect(backend).await.ok_or(Failed::Unreachable)?;
        let mut client = http1::Builder::new();
        let client = client.max_buf_size(ANSWER_BUFFER).max_header_size(ANSWER_BUFFER);
        let handshake = client.handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|_| Failed::Unreachable)?;
        tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        match timeout(ANSWER_LIMIT, sender.send_request(request)).await {
            Ok(Ok(response)) if repeatable => Ok(self.lend(response, sender, &backend.kept)),
            Ok(Ok(response)) => Ok(response.map(Answer::of)),
            Ok(Err(_)) => Err(Failed::Broken),
            Err(_) => Err(Failed::Late),
        }
    }

    /// The answer to a request in HTTP/2, with prior knowledge (RFC 9113 §3.3).
    pub(crate) async fn send_h2(
        &self,
        backend: &Backend,
        request: Request<Body>,
    ) -> Result<Response<Answer>, Failed> {
        let asking = async {
            let mut sender = self.shared(backend).await?;
            sender.ready().await.map_err(|_| Failed::Broken)?;
            sender.send_request(request).await.map_err(|_| Failed::Broken)
        };
        let response = timeout(ANSWER_LIMIT, asking).await.map_err(|_| Failed::Late)??;
        Ok(response.map(Answer::of))
    }

    async fn shared(&self, backend: &Backend) -> Result<http2::SendRequest<Body>, Failed> {
        let mut shared = self.shared.lock().await;
        if let Some(sender) = shared.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = connect(backend).await.ok_or(Failed::Unreachable)?;
        let mut client = http2::Builder::new(TokioExecutor::new());
        let client = client
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CLIENT_WINDOW)
            .max_send_buf_size(ANSWER_BUFFER)
            .max_header_list_size(u32::try_from(ANSWER_BUFFER).unwrap_or(u32::MAX));
        let (sender, connection) =
            client.handshake(TokioIo::new(stream)).await.map_err(|_| Failed::Broken)?;
        // Ends with the last sender and the last answer.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        *shared = Some(sender.clone());
        Ok(sender)
    }

    /// A kept connection that is still open, as far as is known.
    async fn take(&self) -> Option<http1::SendRequest<Body>> {
        loop {
            let mut idle = self.kept.lock().unwrap_or_else(PoisonError::into_inner).idle.pop()?;
            // Its answer was read to the end, so it is ready or closed in a moment.
            if idle.sender.ready().await.is_ok() {
                return Some(idle.sender);
            }
        }
    }

    fn lend(
        self: &Arc<Self>,
        response: Response<Incoming>,
        sender: http1::SendRequest<Body>,
        places: &Arc<Semaphore>,
    ) -> Response<Answer> {
        let lent = (response.status() != StatusCode::SWITCHING_PROTOCOLS).then(|| Lent {
            sender,
            of: Arc::downgrade(self),
            places: Arc::clone(places),
        });
        response.map(|body| Answer { body, ended: false, lent })
    }

    fn keep(self: &Arc<Self>, sender: http1::SendRequest<Body>, places: Arc<Semaphore>) {
        let (Ok(place), Ok(runtime)) = (places.try_acquire_owned(), Handle::try_current()) else { return };
        if sender.is_closed() {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.idle.push(Idle { since: Instant::now(), sender, _place: place });
        if !std::mem::replace(&mut kept.swept, true) {
            runtime.spawn(sweep(Arc::downgrade(self)));
        }
    }
}

/// Closes what was not used for a while, until nothing is left.
async fn sweep(of: Weak<Upstream>) {
    loop {
        sleep(KEPT).await;
        let Some(of) = of.upgrade() else { return };
        let mut kept = of.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.idle.retain(|idle| idle.since.elapsed() < KEPT && !idle.sender.is_closed());
        if kept.idle.is_empty() {
            kept.swept = false;
            return;
        }
    }
}

/// The same request once more. It has no body.
fn copy(request: &Request<Body>) -> Request<Body> {
    let mut copy = Request::new(Body::empty());
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    copy
}

/// The body of a service's answer. Read to its end, it leaves the connection to the next request.
#[derive(Debug)]
pub(crate) struct Answer {
    body: Incoming,
    ended: bool,
    lent: Option<Lent>,
}

#[derive(Debug)]
struct Lent {
    sender: http1::SendRequest<Body>,
    of: Weak<Upstream>,
    places: Arc<Semaphore>,
}

impl Answer {
    /// One whose connection is not kept.
    fn of(body: Incoming) -> Self {
        Self { body, ended: false, lent: None }
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        self.ended = frame.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if (self.ended || self.body.is_end_stream())
            && let Some(lent) = self.lent.take()
            && let Some(of) = lent.of.upgrade()
        {
            of.keep(lent.sender, lent.places);
        }
    }
}
