//! A request as the service gets it: parsed and written anew, so that it means the same on both sides.
//!
//! Body lengths are computed, never copied. Headers that belong to one hop stay on it, and what a client says about its own
//! address is removed before ours is set; also in trailers, which some servers take for headers.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::uri::{Authority, Scheme};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header};
use cofferdam_workload::hop;
use hyper::body::{Body as _, Frame, SizeHint};

use super::auth::CALLER;
use super::listen::Peer;
use super::proxy::TUNNEL_IDLE;
use super::stall::StallTimeoutBody;

/// How long a client may pause inside a request's body, all pauses together for which it does not make up.
pub(super) const BODY_LIMIT: Duration = Duration::from_secs(30);

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What becomes of a request.
pub(crate) struct Outgoing {
    pub(crate) request: Request<Body>,
    /// The client's side of a tunnel, when it asked for one.
    pub(crate) tunnel: Option<hyper::upgrade::OnUpgrade>,
    /// Whether it has no body and may be sent twice.
    pub(crate) repeatable: bool,
    /// How its body failed, if it did.
    pub(crate) body: Arc<BodyState>,
}

/// What is known about a request's body from outside.
#[derive(Debug, Default)]
pub(crate) struct BodyState {
    failed: AtomicU8,
    /// Something of the answer has come since the body was last asked.
    answered: Arc<AtomicBool>,
}

const MALFORMED: u8 = 1;
const SLOW: u8 = 2;

impl BodyState {
    /// Status and words for a client whose body could not be passed on.
    pub(crate) fn failure(&self) -> Option<(StatusCode, &'static str)> {
        match self.failed.load(Ordering::Relaxed) {
            MALFORMED => Some((StatusCode::BAD_REQUEST, "the request's body is malformed or was cut off")),
            SLOW => Some((StatusCode::REQUEST_TIMEOUT, "the request's body came too slowly")),
            _ => None,
        }
    }

    /// Something of the answer has come.
    pub(crate) fn answered(&self) -> &Arc<AtomicBool> {
        &self.answered
    }
}

/// The request as the service gets it, in HTTP/1.1 or, with `h2`, in HTTP/2.
///
/// # Errors
/// What is wrong about it.
pub(crate) fn outgoing(
    mut request: Request<Body>,
    peer: &Peer,
    caller: Option<HeaderValue>,
    h2: bool,
) -> Result<Outgoing, &'static str> {
    if request.method() == Method::CONNECT {
        return Err("this is not a forward proxy");
    }
    let host = host(&request)?;
    let upgrade = !h2 && is_websocket(request.headers());
    let tunnel = upgrade.then(|| hyper::upgrade::on(&mut request));
    let repeatable = !upgrade
        && matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS)
        && request.body().is_end_stream();

    let (mut parts, body) = request.into_parts();
    // An absolute target becomes a path: the service is the origin. In HTTP/2 it has an authority beside it.
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    parts.uri = match h2 {
        false => Uri::try_from(target).map_err(Into::into),
        true => Uri::builder().scheme(Scheme::HTTP).authority(host.as_bytes()).path_and_query(target).build(),
    }
    .map_err(|_| "the request's target is malformed")?;
    parts.version = if h2 { Version::HTTP_2 } else { Version::HTTP_11 };
    parts.extensions.clear();

    let headers = &mut parts.headers;
    let trailers = takes_trailers(headers);
    hop::remove(headers);
    remove_claims(headers);
    // It was answered on this hop.
    headers.remove(header::EXPECT);
    join_cookies(headers);
    clean_announcement(headers);
    if h2 {
        headers.remove(header::HOST);
    } else {
        headers.insert(header::HOST, host.clone());
    }
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
    } else if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        if !h2 {
            headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
        }
    }
    let state = Arc::new(BodyState::default());
    let body = match repeatable {
        true => Body::empty(),
        false => Body::new(RequestBody { inner: patient(body, h2, &state), state: Arc::clone(&state) }),
    };
    Ok(Outgoing { request: Request::from_parts(parts, body), tunnel, repeatable, body: state })
}

/// A client's body with the patience that there is with it. A call in HTTP/2 may be a conversation, of which either side's words
/// show that it goes on.
fn patient(body: Body, h2: bool, state: &BodyState) -> StallTimeoutBody<Body, ()> {
    if h2 {
        let body = StallTimeoutBody::new(body, Some(TUNNEL_IDLE.open), ());
        return body.or_while(Arc::clone(&state.answered));
    }
    StallTimeoutBody::new(body, Some(BODY_LIMIT), ())
}

/// The host that a request is for: `name`, `name:port` and nothing else.
fn host(request: &Request<Body>) -> Result<HeaderValue, &'static str> {
    const ONE: &str = "a request has exactly one Host";
    const MALFORMED: &str = "Host is not a name or an address with or without a port";
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (stated, further) = (hosts.next(), hosts.next());
    let host = match (stated, request.uri().authority()) {
        _ if further.is_some() => return Err(ONE),
        (Some(host), None) => host.clone(),
        // RFC 9113 §8.3.1: the two are the same.
        (Some(host), Some(authority))
            if request.version() == Version::HTTP_2 && host.as_bytes() != authority.as_str().as_bytes() =>
        {
            return Err(ONE);
        }
        // RFC 9112 §3.2.2: the authority of an absolute target replaces the header.
        (_, Some(authority)) => HeaderValue::from_str(authority.as_str()).map_err(|_| MALFORMED)?,
        (None, None) => return Err(ONE),
    };
    let authority = Authority::try_from(host.as_bytes()).map_err(|_| MALFORMED)?;
    let name = authority.host();
    let port = authority.as_str().strip_prefix(name).ok_or(MALFORMED)?;
    let port = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    if name.is_empty() || !port {
        return Err(MALFORMED);
    }
    Ok(host)
}

/// Whether the client says that it keeps trailers.
fn takes_trailers(headers: &HeaderMap) -> bool {
    has_token(headers, &header::TE, "trailers")
}

/// Whether the headers ask for, or grant, a WebSocket: the only upgrade that is passed on.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    has_token(headers, &header::CONNECTION, "upgrade") && has_token(headers, &header::UPGRADE, "websocket")
}

fn has_token(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(wanted))
}

/// HTTP/2 splits the cookies that HTTP/1.1 has in one header (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(cookie) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, cookie);
    }
}

/// Removes every statement about earlier hops and callers: the first hop that can be believed is this one. A name is also removed
/// in the spellings that become the same variable in CGI and WSGI, where `_` stands for `-`; and `Proxy`, which becomes
/// a variable that programs take for their own configuration. Lengths are hyper's to state.
fn remove_claims(headers: &mut HeaderMap) {
    hop::remove_if(headers, |name| {
        let name = name.as_ref();
        name.starts_with("x-forwarded")
            || name.starts_with("x-cofferdam")
            || matches!(name, "forwarded" | "x-real-ip" | "x-client-ip" | "via" | "proxy" | "content-length")
    });
}

/// Leaves no announcement of a trailer that is taken out.
fn clean_announcement(headers: &mut HeaderMap) {
    let values = headers.get_all(header::TRAILER).iter().filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok());
    let mut announced: HeaderMap =
        names.map(|name: HeaderName| (name, HeaderValue::from_static(""))).collect();
    clean_trailers(&mut announced);
    let names: Vec<&str> = announced.keys().map(HeaderName::as_str).collect();
    match HeaderValue::from_str(&names.join(", ")) {
        Ok(names) if !names.is_empty() => drop(headers.insert(header::TRAILER, names)),
        _ => drop(headers.remove(header::TRAILER)),
    }
}

/// Takes out of trailers what may not be in any (RFC 9110 §6.5.1), and what may not be said in headers.
fn clean_trailers(trailers: &mut HeaderMap) {
    hop::remove(trailers);
    remove_claims(trailers);
    for name in [
        header::HOST,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::CONTENT_RANGE,
        header::TRAILER,
        header::AUTHORIZATION,
        header::COOKIE,
        header::EXPECT,
    ] {
        trailers.remove(name);
    }
}

/// The body of a request on its way to the service.
struct RequestBody {
    inner: StallTimeoutBody<Body, ()>,
    state: Arc<BodyState>,
}

impl hyper::body::Body for RequestBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        match &mut frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    clean_trailers(trailers);
                }
            }
            Some(Err(error)) => {
                let how = if error.is::<std::io::Error>() { SLOW } else { MALFORMED };
                self.state.failed.store(how, Ordering::Relaxed);
            }
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
