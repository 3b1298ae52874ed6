//! The reverse proxy: from a published port to the service that publishes it. Outside HTTP/1.1 or HTTP/2, as the client likes;
//! inside HTTP/1.1, or HTTP/2 where the port says `h2c`.
//!
//! hyper parses the request and writes a new one ([`outgoing`]), over a connection of this client to the service
//! ([`upstream`](super::upstream)).

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Request, Response, StatusCode, Version, header};
use cofferdam_declaration::{Auth, Speaks};
use cofferdam_protocol::SecretRef;
use cofferdam_protocol::status::{MAX_FILE, ServiceState, ServiceStatus};
use cofferdam_workload::hop;
use cofferdam_workload::join::{Idle, join};
use cofferdam_workload::places::Places;
use hyper::body::{Frame, SizeHint};
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;

use super::connection::{Away, hold};
use super::listen::Peer;
use super::outgoing::{self, Outgoing, is_websocket};
use super::requests::{Bounds, Permit, Requests};
use super::source::Source;
use super::upstream::{Answer, Failed};
use super::{reply, untrusted_file};

/// How long a tunnel may be silent in both directions. WebSocket clients ping more often than that. One side's end is the
/// end of a WebSocket: what the other still says comes at once.
pub(super) const TUNNEL_IDLE: Idle =
    Idle { open: Duration::from_secs(300), half_closed: Duration::from_secs(60) };

/// Where a published port leads.
#[derive(Debug, Clone)]
pub(crate) struct Backend {
    /// The service's name.
    pub(crate) service: Arc<str>,
    /// Who may call it at this port.
    pub(crate) auth: Auth,
    /// What it speaks there.
    pub(crate) speaks: Speaks,
    /// The shim's socket for the port inside the service.
    pub(crate) socket: PathBuf,
    /// The uid that listens there when it is the service's shim.
    pub(crate) uid: u32,
    /// The shim's account of the service's state.
    pub(crate) status: PathBuf,
    /// Places of connections that are kept for a next request.
    pub(crate) kept: Arc<Semaphore>,
    /// Places of clients' connections at a port that carries bytes.
    pub(crate) connections: Arc<Places<Source>>,
}

/// What an answer or a tunnel holds until it ends.
type Held = Away<Permit>;

/// The proxy over all ports.
#[derive(Debug)]
pub(crate) struct Proxy {
    requests: Requests,
}

impl Proxy {
    /// A proxy with so many places.
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { requests: Requests::new(bounds) }
    }

    /// Forwards one request, in the name of `caller`, and returns the service's answer, or an error that says the service's state.
    pub(crate) async fn forward(
        &self,
        backend: &Backend,
        peer: Peer,
        caller: Option<HeaderValue>,
        request: Request<Body>,
    ) -> Response<Body> {
        let Some(permit) = self.requests.take(&backend.service, peer.connection.source()) else {
            let text = format!("service {} has too many requests to answer", backend.service);
            return reply::later(StatusCode::SERVICE_UNAVAILABLE, &text, 1);
        };
        let held = peer.connection.leave(permit);
        let h2 = backend.speaks == Speaks::H2c;
        let outgoing = match outgoing::outgoing(request, &peer, caller, h2) {
            Ok(outgoing) => outgoing,
            Err(reason) => return reply::error(StatusCode::BAD_REQUEST, reason, None),
        };
        exchange(backend, &peer, outgoing, held).await
    }
}

/// Sends the request and hands the answer on as it comes.
async fn exchange(backend: &Backend, peer: &Peer, outgoing: Outgoing, held: Held) -> Response<Body> {
    let Outgoing { request, tunnel, repeatable, body } = outgoing;
    let upstream = peer.connection.upstream();
    let sent = match backend.speaks {
        Speaks::H2c => upstream.send_h2(backend, request).await,
        _ => upstream.send(backend, request, repeatable).await,
    };
    let response = match (sent, body.failure()) {
        (Ok(response), _) => response,
        (Err(_), Some((status, text))) => return reply::error(status, text, None),
        (Err(Failed::Unreachable), None) => return unavailable(backend),
        (Err(Failed::Broken), None) => return broken(backend),
        (Err(Failed::Late), None) => {
            let text = format!("service {} did not answer in time", backend.service);
            return reply::error(StatusCode::GATEWAY_TIMEOUT, &text, None);
        }
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switch(backend, response, tunnel, held);
    }
    let (mut parts, answer) = response.into_parts();
    // A length beside a transfer coding is void (RFC 9112 §6.3); hyper has decoded the coding.
    if parts.headers.contains_key(header::TRANSFER_ENCODING) {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    hop::remove(&mut parts.headers);
    parts.version = Version::HTTP_11;
    let body = match repeatable {
        true => Body::new(answer),
        false => Body::new(Noted { inner: answer, note: Arc::clone(body.answered()) }),
    };
    hold(Response::from_parts(parts, body), held)
}

/// Joins both sides of a WebSocket that the service has granted.
fn switch(
    backend: &Backend,
    mut response: Response<Answer>,
    tunnel: Option<hyper::upgrade::OnUpgrade>,
    held: Held,
) -> Response<Body> {
    let Some(client) = tunnel.filter(|_| is_websocket(response.headers())) else {
        return broken(backend);
    };
    let service = hyper::upgrade::on(&mut response);
    tokio::spawn(tunnel_between(client, service, held));
    let mut parts = response.into_parts().0;
    hop::remove(&mut parts.headers);
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    parts.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    Response::from_parts(parts, Body::empty())
}

/// An answer of which it is noted that it goes on.
struct Noted {
    inner: Answer,
    note: Arc<AtomicBool>,
}

impl hyper::body::Body for Noted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        self.note.store(true, Ordering::Relaxed);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Joins both sides until they have ended or are silent for too long.
async fn tunnel_between(client: hyper::upgrade::OnUpgrade, service: hyper::upgrade::OnUpgrade, held: Held) {
    let (Ok(client), Ok(service)) = tokio::join!(client, service) else { return };
    join(TokioIo::new(client), TokioIo::new(service), TUNNEL_IDLE, || {}).await;
    drop(held);
}

/// 503: nobody listens for the service; says what its shim last said about it.
fn unavailable(backend: &Backend) -> Response<Body> {
    let text = match service_state(backend) {
        Some((state, missing)) if !missing.is_empty() => {
            let missing: Vec<&str> = missing.iter().map(SecretRef::as_str).collect();
            format!("service {} is {}: {} missing", backend.service, state.as_str(), missing.join(", "))
        }
        Some((state, _)) => {
            format!("service {} is {} and does not accept connections", backend.service, state.as_str())
        }
        None => format!("service {} has not started", backend.service),
    };
    let mut response =
        reply::error(StatusCode::SERVICE_UNAVAILABLE, &text, Some("`coffer status` shows every service"));
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// The service accepted and then did not answer in HTTP. 502 when it is running, as far as its shim knows; else 503,
/// for the shim accepts in the place of a service that is about to start.
fn broken(backend: &Backend) -> Response<Body> {
    match service_state(backend) {
        Some((ServiceState::Running, _)) => {
            let text = format!("service {} closed the connection without a complete answer", backend.service);
            reply::error(StatusCode::BAD_GATEWAY, &text, Some("`coffer logs` shows what the service says"))
        }
        _ => unavailable(backend),
    }
}

/// The part of a service's status that is told to whoever finds it not answering: where it is, and some of the secrets that
/// are missing.
fn service_state(backend: &Backend) -> Option<(ServiceState, Vec<SecretRef>)> {
    // Written by a shim, which is trusted with its own service only: bounded, no links, nothing but words.
    let status = ServiceStatus::parse(&untrusted_file::contents(&backend.status, MAX_FILE as u64)?).ok()?;
    let missing = status.missing.into_iter().take(8).collect();
    Some((status.state, missing))
}
