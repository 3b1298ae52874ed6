//! Answers that `front` gives itself: JSON, and errors with a cause and, where there is one, a remedy.

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, StatusCode, header};
use cofferdam_protocol::reply::{ErrorReply, JSON};

/// Of an answer: the front itself refuses, and no service does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnError;

/// A JSON document as it is.
pub(crate) fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    typed(status, body, JSON)
}

/// A body of the given media type that nobody may keep.
pub(crate) fn typed(status: StatusCode, body: impl Into<Bytes>, media_type: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// `{"error":…,"hint":…?}`.
pub(crate) fn error(status: StatusCode, error: &str, hint: Option<&str>) -> Response<Body> {
    let mut response = match cofferdam_protocol::json::to_vec(&ErrorReply::new(error, hint)) {
        Ok(body) => json(status, body),
        // Two strings always serialise; were that to fail, an answer without words is still a refusal.
        Err(_) => json(StatusCode::INTERNAL_SERVER_ERROR, Bytes::new()),
    };
    response.extensions_mut().insert(OwnError);
    response
}

/// An [`error`] that goes away by itself; `seconds` is when to ask again.
pub(crate) fn later(status: StatusCode, text: &str, seconds: u64) -> Response<Body> {
    let mut response = error(status, text, None);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}
