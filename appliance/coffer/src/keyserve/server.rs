//! The key server's port: HTTP/1.1, one request on each connection, everything bounded.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use cofferdam_attest::evidence;
use cofferdam_protocol::keyserve::{
    self, EpochReport, MAX_DETAIL, MAX_MESSAGE, NONCE, RELEASE, REPORT, Refusal, Refused,
};
use cofferdam_protocol::reply::JSON;
use cofferdam_protocol::{Repository, json};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::limits::{Address, Connections, Requests};
use super::{No, Server};

/// For the head of a request.
const HEAD: Duration = Duration::from_secs(5);
/// For a whole connection: an evidence document on a slow line, and what GitHub is asked meanwhile.
const CONNECTION: Duration = Duration::from_secs(30);
/// For the rest of a request once its head is there.
const BODY: Duration = Duration::from_secs(10);
/// hyper's buffer for heads, in bytes.
const BUFFER: usize = 16 * 1024;
/// Evidence that is appraised at once; each takes some milliseconds of processor time.
const APPRAISED: usize = 2;
/// Pause after accept(2) failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Something that the operator hears of.
#[derive(Debug, Clone)]
pub(crate) enum Notice {
    /// A key was released.
    Released {
        from: SocketAddr,
        repository: Repository,
        epoch: Option<u64>,
        /// The version of the statement that went with it.
        upgrade: Option<u64>,
        simulated: bool,
    },
    /// A state has opened, or has a later commit.
    Opened { from: SocketAddr, repository: Repository, epoch: u64, fresh: bool },
    /// No.
    Refused { from: SocketAddr, repository: Option<Repository>, refused: Refused },
}

struct Port {
    server: Server,
    requests: Requests,
    appraised: Semaphore,
    notify: Box<dyn Fn(Notice)>,
}

/// Serves until the task is dropped. Every released key, every report and every refusal is a notice.
pub(crate) async fn serve(listener: TcpListener, server: Server, notify: impl Fn(Notice) + 'static) {
    let port = Port {
        server,
        requests: Requests::default(),
        appraised: Semaphore::new(APPRAISED),
        notify: Box::new(notify),
    };
    let (port, connections) = (Rc::new(port), Connections::default());
    let local = tokio::task::LocalSet::new();
    let accepting = async {
        loop {
            let Ok((stream, from)) = listener.accept().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            // Beyond its share a connection is closed: whoever made it sees it end.
            let Some(place) = connections.take(Address::of(from.ip())) else { continue };
            let port = Rc::clone(&port);
            tokio::task::spawn_local(async move {
                let _ = tokio::time::timeout(CONNECTION, converse(stream, from, port)).await;
                drop(place);
            });
        }
    };
    local.run_until(accepting).await
}

/// One connection. What goes wrong on it concerns nobody else.
async fn converse(stream: TcpStream, from: SocketAddr, port: Rc<Port>) {
    let service = service_fn(move |request| {
        let port = Rc::clone(&port);
        async move { Ok::<_, Infallible>(port.answer(request, from).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

impl Port {
    async fn answer(&self, request: Request<Incoming>, from: SocketAddr) -> Response<Full<Bytes>> {
        let answered = match self.requests.count(Address::of(from.ip()), Instant::now()) {
            true => self.answered(request, from).await,
            false => Err(super::no(None, Refusal::Busy, "too many requests from this address")),
        };
        answered.unwrap_or_else(|No { repository, mut refused }| {
            refused.detail = refused.detail.chars().take(MAX_DETAIL).collect();
            let response = reply(status(refused.refused), &refused);
            (self.notify)(Notice::Refused { from, repository, refused });
            response
        })
    }

    async fn answered(
        &self,
        request: Request<Incoming>,
        from: SocketAddr,
    ) -> Result<Response<Full<Bytes>>, No> {
        let path = request.uri().path().to_owned();
        if request.method() != Method::POST {
            return Err(super::no(None, Refusal::Request, "every request of this interface is a POST"));
        }
        match path.as_str() {
            NONCE => {
                body(request, 0).await?;
                let nonce = self.server.nonce(Address::of(from.ip()), Instant::now())?;
                Ok(reply(StatusCode::OK, &nonce))
            }
            RELEASE => {
                let document = body(request, evidence::MAX_BYTES).await?;
                let Ok(_place) = self.appraised.acquire().await else {
                    return Err(super::no(None, Refusal::Busy, "the server ends"));
                };
                let released = self.server.release(&document, Instant::now()).await?;
                (self.notify)(Notice::Released {
                    from,
                    repository: released.repository,
                    epoch: released.answer.witnessed.map(|known| known.epoch),
                    upgrade: released.answer.upgrade.as_ref().map(|signed| signed.statement.version),
                    simulated: released.simulated,
                });
                Ok(reply(StatusCode::OK, &released.answer))
            }
            REPORT => {
                let body = body(request, MAX_MESSAGE).await?;
                let report: EpochReport = keyserve::parse(&body)
                    .map_err(|_| super::no(None, Refusal::Request, "the body is no report"))?;
                let ack = self.server.report(&report)?;
                (self.notify)(Notice::Opened {
                    from,
                    repository: report.repository,
                    epoch: report.opened.epoch,
                    fresh: report.fresh,
                });
                Ok(reply(StatusCode::OK, &ack))
            }
            _ => Err(super::no(None, Refusal::Request, "there is no such resource")),
        }
    }
}

/// The body, of at most so many bytes and within its time.
async fn body(request: Request<Incoming>, limit: usize) -> Result<Bytes, No> {
    let collected = tokio::time::timeout(BODY, Limited::new(request.into_body(), limit).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(super::no(None, Refusal::Request, format!("the body has more than {limit} bytes")))
        }
        Ok(Err(_)) => Err(super::no(None, Refusal::Request, "the body is not whole")),
        Err(_) => Err(super::no(None, Refusal::Request, "the body came too slowly")),
    }
}

fn status(refused: Refusal) -> StatusCode {
    match refused {
        Refusal::Request => StatusCode::BAD_REQUEST,
        Refusal::Busy => StatusCode::TOO_MANY_REQUESTS,
        Refusal::CouldNotCheck => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::Nonce | Refusal::Epoch | Refusal::State => StatusCode::CONFLICT,
        _ => StatusCode::FORBIDDEN,
    }
}

fn reply(status: StatusCode, message: &impl Serialize) -> Response<Full<Bytes>> {
    // A message of ours always serialises; were that to fail, an answer without words is still none.
    let (status, body) = match json::to_vec(message) {
        Ok(body) => (status, body),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, Vec::new()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
    }
    response
}
