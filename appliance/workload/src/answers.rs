//! Answers of a service on their way out through a port that redacts them.
//!
//! A mask has another length than the secret in its place, so bytes cannot just be replaced: requests and answers are read
//! and written anew, as HTTP/1.1. Bodies pass through the redactor as they come and are chunked, whatever length the
//! service said; the value of each header is redacted for itself. What would be wrong about the new body is left out.
//!
//! What the redactor could not read is not asked for: no encoding and no part of a body, since half a secret in each of two
//! answers is none in either. A service that encodes all the same, and a WebSocket, become an error. Nothing passes as it
//! is: where there is no redactor, there is no answer.
//!
//! Of one answer this keeps at most [`HEAD`] bytes of either side's head or body, one piece of a body on its way, and
//! [`MAX_HELD`](cofferdam_redact::MAX_HELD) bytes that may begin a secret.
//!
//! It finds what [`cofferdam_redact`] finds. A program that means to hide a secret in its answers, or spreads one over
//! several, is not stopped.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll, ready};

use cofferdam_protocol::json;
use cofferdam_protocol::reply::{ErrorReply, JSON};
use cofferdam_redact::{Redactor, Stream};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep};

use crate::hop;
use crate::output::IDLE;

/// The longest head of a request and of an answer, in bytes: as long as `front` takes. About as much is kept of a body, each way.
pub(crate) const HEAD: usize = 32 * 1024;

/// What is taken out of requests beside the headers of one hop: what asks for an answer that could not be read or would be a part
/// of one, and the length, which is written anew.
const NOT_ASKED: [HeaderName; 7] = [
    header::TRAILER,
    header::RANGE,
    header::IF_RANGE,
    header::EXPECT,
    header::CONTENT_LENGTH,
    HeaderName::from_static("a-im"),
    HeaderName::from_static("http2-settings"),
];

/// What is taken out of answers beside the headers of one hop: what would be wrong about a body that is another now.
const NOT_TRUE: [HeaderName; 9] = [
    header::TRAILER,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
];

/// What to do about an answer that cannot be redacted.
const HINT: &str =
    "let the service answer without it, or remove redact_responses from the port in the declaration";

/// What the answers of a service are searched for: its secrets, as long as it has them.
#[derive(Debug, Clone, Default)]
pub struct Answers(Arc<RwLock<Option<Redactor>>>);

impl Answers {
    /// The workload is about to be given these.
    pub fn redact_with(&self, redactor: Redactor) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(redactor);
    }

    /// The workload has ended: until the next one nothing passes.
    pub fn forget(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What to redact with.
    ///
    /// # Errors
    ///
    /// There is no workload.
    fn redactor(&self) -> io::Result<Redactor> {
        let redactor = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        redactor.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

/// Answers the requests of one caller with what the service answers, redacted, until the caller ends or one of the two is not
/// to be understood. Each request has a connection to the service of its own, so no answer is taken for another's.
pub(crate) async fn serve<C, S, F>(caller: C, connect: impl Fn() -> F, answers: &Answers)
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>>,
{
    let service = service_fn(|request| answer(request, connect(), answers));
    let mut server = hyper::server::conn::http1::Builder::new();
    // What goes wrong between the two concerns them alone.
    let _ =
        server.max_buf_size(HEAD).max_header_size(HEAD).serve_connection(TokioIo::new(caller), service).await;
}

/// The answer to one request. An error hangs up on the caller.
async fn answer<S>(
    mut request: Request<Incoming>,
    connecting: impl Future<Output = io::Result<S>>,
    answers: &Answers,
) -> io::Result<Response<Answer>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if request.method() == Method::CONNECT || request.headers().contains_key(header::UPGRADE) {
        return refusal(
            "the request is for a WebSocket or another protocol, and answers at this port are redacted",
        );
    }
    let stream = connecting.await?;
    // Of the workload that is connected to, or of a later one, to which this connection does not lead.
    let redactor = answers.redactor()?;
    let bodiless = request.method() == Method::HEAD;
    ask_plainly(&mut request);
    let mut client = hyper::client::conn::http1::Builder::new();
    let handshake = client.max_buf_size(HEAD).max_header_size(HEAD).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(io::Error::other)?;
    let connection = Task(tokio::spawn(async move { drop(connection.await) }));
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    if let Some(refused) = unreadable(response.status(), response.headers()) {
        return refusal(refused);
    }
    let (parts, body) = response.into_parts();
    let bodiless = bodiless || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let body = match bodiless {
        true => Answer::Whole(Bytes::new()),
        false => Answer::Redacted(Box::new(Redacted {
            body,
            stream: redactor.stream(),
            silence: Box::pin(sleep(IDLE)),
            may_hold: false,
            ended: false,
            _connection: connection,
        })),
    };
    // The reason phrase is not taken over; it is the status's own.
    let mut response = Response::new(body);
    *response.status_mut() = parts.status;
    *response.headers_mut() = redacted(parts.headers, &redactor);
    Ok(response)
}

/// Makes the request one whose answer can be read.
fn ask_plainly(request: &mut Request<Incoming>) {
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    hop::remove(headers);
    for name in NOT_ASKED {
        headers.remove(name);
    }
    // Without the header every encoding would be fine (RFC 9110 §12.5.3).
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
}

/// Why an answer with this head cannot be redacted, if so.
fn unreadable(status: StatusCode, headers: &HeaderMap) -> Option<&'static str> {
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    // hyper undoes one transfer coding, the last, when that is `chunked`.
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter().map(HeaderValue::as_bytes);
    let is_chunked = |coding: Option<&[u8]>| coding.is_none_or(|name| name.eq_ignore_ascii_case(b"chunked"));
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Some("the service goes on in another protocol, and answers at this port are redacted");
    }
    if status == StatusCode::PARTIAL_CONTENT {
        return Some("the service answers with a part of something, and answers at this port are redacted");
    }
    if !encodings.all(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
        || !is_chunked(codings.next())
        || codings.next().is_some()
    {
        return Some("the service's answer is encoded, and answers at this port are redacted");
    }
    None
}

/// The headers of an answer as they go out. One whose name holds a secret is left out.
fn redacted(mut headers: HeaderMap, redactor: &Redactor) -> HeaderMap {
    hop::remove(&mut headers);
    for name in NOT_TRUE {
        headers.remove(name);
    }
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in &headers {
        let mut value = redactor.redact(value.as_bytes());
        if name == header::ETAG && !value.starts_with(b"W/") {
            // It stands for the bytes of the service's answer and not for these; that they mean the same is still so (RFC
            // 9110 §8.8.1).
            value.splice(..0, *b"W/");
        }
        let text = name.as_str().as_bytes();
        if redactor.redact(text) == text
            && let Ok(value) = HeaderValue::from_bytes(&value)
        {
            kept.append(name, value);
        }
    }
    kept
}

/// An answer instead of the service's.
fn refusal(text: &str) -> io::Result<Response<Answer>> {
    let body = json::to_vec(&ErrorReply::new(text, Some(HINT))).map_err(io::Error::other)?;
    let mut response = Response::new(Answer::Whole(body.into()));
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The body of an answer on its way out.
enum Answer {
    /// One of ours, or none.
    Whole(Bytes),
    /// The service's.
    Redacted(Box<Redacted>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = match &mut *self {
            Self::Whole(body) => {
                let body = std::mem::take(body);
                (!body.is_empty()).then_some(Ok(body))
            }
            Self::Redacted(answer) => ready!(answer.poll(context)),
        };
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_empty(),
            Self::Redacted(answer) => {
                answer.ended || (answer.body.is_end_stream() && answer.stream.held() == 0)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => SizeHint::with_exact(body.len() as u64),
            Self::Redacted(_) => SizeHint::default(),
        }
    }
}

/// The body of a service's answer.
struct Redacted {
    /// As it comes.
    body: Incoming,
    /// What it passes through.
    stream: Stream,
    /// Ends when nothing has come for a while.
    silence: Pin<Box<Sleep>>,
    /// Whether something may have to be let go then.
    may_hold: bool,
    /// Nothing more comes.
    ended: bool,
    /// What it comes over; it ends with the answer.
    _connection: Task,
}

impl Redacted {
    /// The next piece; an error when the service has not kept to its word, for what is held back then may be half a secret.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let mut out = Vec::new();
        while out.is_empty() && !self.ended {
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers are left out.
                    let Some(data) = frame.data_ref() else { continue };
                    self.stream.push(data, &mut out);
                    self.silence.as_mut().reset(Instant::now() + IDLE);
                    self.may_hold = true;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(io::Error::other(error)))),
                Poll::Ready(None) => {
                    self.ended = true;
                    self.stream.finish(&mut out);
                }
                Poll::Pending if self.may_hold => {
                    ready!(self.silence.as_mut().poll(context));
                    self.may_hold = false;
                    self.stream.idle(&mut out);
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready((!out.is_empty()).then(|| Ok(out.into())))
    }
}

/// A task that ends when this is dropped.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
#[path = "answers_tests.rs"]
mod tests;
