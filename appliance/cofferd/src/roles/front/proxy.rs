//! The reverse proxy: from a published port to the service that publishes it, HTTP/1.1 on both sides.
//!
//! hyper parses the request and writes a new one, so a request means the same on both sides: body lengths are
//! computed, never copied. Headers that belong to one hop stay on it, and what a client says about
//! its own address is removed before ours is set. A service can reach `front` only by answering: the socket counts
//! only when the process that listens on it has the uid of that service's shim, so a shim that puts a link to
//! another socket in its place gains nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
};
use cofferdam_declaration::Auth;
use cofferdam_protocol::SecretRef;
use cofferdam_protocol::status::{MAX_FILE, ServiceState, ServiceStatus};
use cofferdam_workload::hop;
use cofferdam_workload::join::{Idle, join};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::auth::CALLER;
use super::connection::{Away, hold};
use super::listen::Peer;
use super::requests::{Bounds, Permit, Requests};
use super::stall::StallTimeoutBody;
use super::{reply, untrusted_file};

/// How long the shim's socket may take to accept.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long a workload may take until its answer begins. Long polls are common; an hour is not.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(300);

/// How long a client may pause inside a request's body, all pauses together for which it does not make up.
pub(super) const BODY_LIMIT: Duration = Duration::from_secs(30);

/// How long a tunnel may be silent in both directions. WebSocket clients ping more often than that. One side's end is the
/// end of a WebSocket: what the other still says comes at once.
pub(super) const TUNNEL_IDLE: Idle =
    Idle { open: Duration::from_secs(300), half_closed: Duration::from_secs(60) };

/// What is kept of a service's answer while the client takes it, in bytes; the head of one has to fit as well.
const ANSWER_BUFFER: usize = 32 * 1024;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Where a published port leads.
#[derive(Debug, Clone)]
pub(crate) struct Backend {
    /// The service's name.
    pub(crate) service: Arc<str>,
    /// Who may call it at this port.
    pub(crate) auth: Auth,
    /// The shim's socket for the port inside the service.
    pub(crate) socket: PathBuf,
    /// The uid that listens there when it is the service's shim.
    pub(crate) uid: u32,
    /// The shim's account of the service's state.
    pub(crate) status: PathBuf,
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
        request: Request<Incoming>,
    ) -> Response<Body> {
        let Some(permit) = self.requests.take(&backend.service, peer.connection.source()) else {
            let text = format!("service {} has too many requests to answer", backend.service);
            return reply::later(StatusCode::SERVICE_UNAVAILABLE, &text, 1);
        };
        let held = peer.connection.leave(permit);
        let (request, tunnel) = match outgoing(request, &peer, caller) {
            Ok(prepared) => prepared,
            Err(reason) => return reply::error(StatusCode::BAD_REQUEST, reason, None),
        };
        let Some(stream) = connect(backend).await else { return unavailable(backend) };
        exchange(backend, stream, request, tunnel, held).await
    }
}

/// Connects to the service's shim; `None` when it is not there or somebody else is.
async fn connect(backend: &Backend) -> Option<UnixStream> {
    let stream =
        tokio::time::timeout(CONNECT_LIMIT, UnixStream::connect(&backend.socket)).await.ok()?.ok()?;
    (stream.peer_cred().ok()?.uid() == backend.uid).then_some(stream)
}

/// The client's side of a tunnel, when it asked for one.
type Tunnel = Option<hyper::upgrade::OnUpgrade>;

/// The request as the service gets it.
fn outgoing(
    mut request: Request<Incoming>,
    peer: &Peer,
    caller: Option<HeaderValue>,
) -> Result<(Request<Body>, Tunnel), &'static str> {
    if request.method() == Method::CONNECT {
        return Err("this is not a forward proxy");
    }
    let host = match (
        request.headers().get_all(header::HOST).iter().collect::<Vec<_>>().as_slice(),
        request.uri().authority(),
    ) {
        ([host], None) => (*host).clone(),
        // RFC 9112 §3.2.2: the authority of an absolute target replaces the header.
        (_, Some(authority)) => {
            HeaderValue::from_str(authority.as_str()).map_err(|_| "the request's target is malformed")?
        }
        _ => return Err("a request has exactly one Host"),
    };
    let upgrade = is_websocket(request.headers());
    let tunnel = upgrade.then(|| hyper::upgrade::on(&mut request));

    let (mut parts, body) = request.into_parts();
    // An absolute target becomes a path: the service is the origin.
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    parts.uri = Uri::try_from(target).map_err(|_| "the request's target is malformed")?;
    parts.version = Version::HTTP_11;
    parts.extensions.clear();

    let headers = &mut parts.headers;
    hop::remove(headers);
    remove_forwarded(headers);
    // hyper states the length of what it sends; `Expect` was answered on this hop.
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::EXPECT);
    headers.insert(header::HOST, host.clone());
    if let Ok(address) = HeaderValue::from_str(&peer.address.ip().to_canonical().to_string()) {
        headers.insert(FORWARDED_FOR, address);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("https"));
    headers.insert(FORWARDED_HOST, host);
    if let Some(caller) = caller {
        headers.insert(CALLER, caller);
    }
    if upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    let body = Body::new(StallTimeoutBody::new(body, Some(BODY_LIMIT), ()));
    Ok((Request::from_parts(parts, body), tunnel))
}

/// Sends the request and hands the answer on as it comes.
async fn exchange(
    backend: &Backend,
    stream: UnixStream,
    request: Request<Body>,
    tunnel: Tunnel,
    held: Held,
) -> Response<Body> {
    let mut client = hyper::client::conn::http1::Builder::new();
    let client = client.max_buf_size(ANSWER_BUFFER).max_header_size(ANSWER_BUFFER);
    let handshake = client.handshake(TokioIo::new(stream));
    let Ok((mut sender, connection)) = handshake.await else { return unavailable(backend) };
    tokio::spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    let mut response = match tokio::time::timeout(ANSWER_LIMIT, sender.send_request(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => return broken(backend),
        Err(_) => {
            let text = format!("service {} did not answer in time", backend.service);
            return reply::error(StatusCode::GATEWAY_TIMEOUT, &text, None);
        }
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = tunnel.filter(|_| is_websocket(response.headers())) else {
            return broken(backend);
        };
        let service = hyper::upgrade::on(&mut response);
        tokio::spawn(tunnel_between(client, service, held));
        let mut parts = response.into_parts().0;
        hop::remove(&mut parts.headers);
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        return Response::from_parts(parts, Body::empty());
    }
    let (mut parts, body) = response.into_parts();
    // A length beside a transfer coding is void (RFC 9112 §6.3); hyper has decoded the coding.
    if parts.headers.contains_key(header::TRANSFER_ENCODING) {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    hop::remove(&mut parts.headers);
    parts.version = Version::HTTP_11;
    hold(Response::from_parts(parts, Body::new(body)), held)
}

/// Joins both sides until they have ended or are silent for too long.
async fn tunnel_between(client: hyper::upgrade::OnUpgrade, service: hyper::upgrade::OnUpgrade, held: Held) {
    let (Ok(client), Ok(service)) = tokio::join!(client, service) else { return };
    join(TokioIo::new(client), TokioIo::new(service), TUNNEL_IDLE, || {}).await;
    drop(held);
}

/// Whether the headers ask for, or grant, a WebSocket: the only upgrade that is passed on.
fn is_websocket(headers: &HeaderMap) -> bool {
    let names = |name, wanted: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|token| token.trim().eq_ignore_ascii_case(wanted))
    };
    names(header::CONNECTION, "upgrade") && names(header::UPGRADE, "websocket")
}

/// Removes every statement about earlier hops and callers: the first hop that can be believed is this one. A name is also removed
/// in the spellings that become the same variable in CGI and WSGI, where `_` stands for `-`.
fn remove_forwarded(headers: &mut HeaderMap) {
    let claimed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str().replace('_', "-");
            name.starts_with("x-forwarded")
                || name.starts_with("x-cofferdam")
                || matches!(name.as_str(), "forwarded" | "x-real-ip" | "x-client-ip" | "via")
        })
        .cloned()
        .collect();
    for name in &claimed {
        headers.remove(name);
    }
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
