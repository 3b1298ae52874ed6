//! The vault's HTTP interface. It knows no socket: the listener says who the peer is.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{Extension, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use cofferdam_protocol::SecretRef;
use cofferdam_protocol::certificate::{CERTIFICATE, KeptCertificate, MAX_CHAIN};
use cofferdam_protocol::keyserve::{PEER, PeerNews};
use cofferdam_protocol::reply::{ErrorReply, JSON};
use cofferdam_protocol::unseal::REKEY;
use cofferdam_protocol::vault::{
    ANCHORED, Anchored, CHANGED, ChangedReply, ChangedRequest, KEY, KeyReply, LEASE, LeaseReply,
    LeaseRequest, MAX_CHANGE_WAIT_MS, MAX_ORDER_WAIT_MS, MAX_REFERENCES, MAX_REQUEST, MAX_WAIT_MS,
    MissingReply, OPERATOR, ORDERS, OperatorRequest, OrdersRequest,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::audit::{Audit, Operation};
use crate::{LeaseError, Vault, request};

/// How long a peer may take to send a body. It is local and a body is at most 128 KiB: a second would do.
const BODY_TIME: Duration = Duration::from_secs(5);

/// Who is on the other end of the connection. The listener puts it into each request's extensions, from SO_PEERCRED;
/// without it every route that needs it answers 500.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The peer's effective uid when it connected.
    pub uid: u32,
}

/// `GET` [`KEY`], `GET` and `PUT` [`CERTIFICATE`], `POST` [`LEASE`], [`CHANGED`], [`OPERATOR`], [`ANCHORED`], [`ORDERS`] and [`PEER`]; everything else is 404 or 405.
pub fn router(vault: Arc<Vault>) -> Router {
    Router::new()
        .route(KEY, get(key))
        .route(LEASE, post(lease))
        .route(CHANGED, post(changed))
        .route(OPERATOR, post(operator))
        .route(ANCHORED, post(anchored))
        .route(CERTIFICATE, get(certificate).put(keep_certificate))
        .route(ORDERS, post(orders))
        .route(PEER, post(peer))
        .fallback(async || problem(StatusCode::NOT_FOUND, "there is no such resource", None))
        .method_not_allowed_fallback(async || {
            problem(StatusCode::METHOD_NOT_ALLOWED, "the resource does not have this method", None)
        })
        .with_state(vault)
}

async fn key(State(vault): State<Arc<Vault>>) -> Response {
    json(StatusCode::OK, &KeyReply { public_key: vault.public_key().into() })
}

/// 404 for everybody but the one who publishes.
async fn anchored(State(vault): State<Arc<Vault>>, Extension(peer): Extension<Peer>, body: Body) -> Response {
    if peer.uid != vault.rules.publish_uid {
        return problem(StatusCode::NOT_FOUND, "there is no such resource", None);
    }
    let Anchored { number } = match read(body).await {
        Ok(anchored) => anchored,
        Err(response) => return response,
    };
    let status = match vault.store.anchored(number.get()) {
        Ok(()) => StatusCode::NO_CONTENT,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    vault.audit(&Audit {
        uid: peer.uid,
        operation: Operation::Anchored,
        operator: None,
        references: &[],
        service: None,
        status: status.as_u16(),
    });
    match status {
        StatusCode::NO_CONTENT => status.into_response(),
        _ => problem(status, "the store failed", None),
    }
}

/// What is kept of the certificate that browsers accept; 404 for everybody but the one who orders it.
async fn certificate(State(vault): State<Arc<Vault>>, Extension(peer): Extension<Peer>) -> Response {
    let kept = vault.store.certificate().filter(|_| peer.uid == vault.rules.publish_uid);
    match kept {
        Some(kept) => ([(header::CONTENT_TYPE, JSON)], Body::from(kept)).into_response(),
        None => problem(StatusCode::NOT_FOUND, "there is no such resource", None),
    }
}

/// The same to be kept. Nothing in it is secret, and nothing of it is believed by whoever serves it.
async fn keep_certificate(
    State(vault): State<Arc<Vault>>,
    Extension(peer): Extension<Peer>,
    body: Body,
) -> Response {
    if peer.uid != vault.rules.publish_uid {
        return problem(StatusCode::NOT_FOUND, "there is no such resource", None);
    }
    let kept: KeptCertificate = match read(body).await {
        Ok(kept) => kept,
        Err(response) => return response,
    };
    if kept.chain.len() > MAX_CHAIN {
        return problem(StatusCode::PAYLOAD_TOO_LARGE, "the chain of certificates is too large", None);
    }
    let written =
        cofferdam_protocol::json::to_vec(&kept).ok().map(|bytes| vault.store.keep_certificate(bytes));
    match written {
        Some(Ok(())) => StatusCode::NO_CONTENT.into_response(),
        _ => problem(StatusCode::SERVICE_UNAVAILABLE, "the store failed", None),
    }
}

/// What the key servers are told; 404 for everybody but the one who speaks for them.
async fn peer(State(vault): State<Arc<Vault>>, Extension(peer): Extension<Peer>, body: Body) -> Response {
    let told = vault.told.as_ref().filter(|_| peer.uid == vault.rules.publish_uid);
    let Some(told) = told else {
        return problem(StatusCode::NOT_FOUND, "there is no such resource", None);
    };
    let news: PeerNews = match read(body).await {
        Ok(news) => news,
        Err(response) => return response,
    };
    match told.news(&vault.store, &news) {
        Ok(reply) => json(StatusCode::OK, &reply),
        Err(error) => problem(StatusCode::CONFLICT, &error.to_string(), None),
    }
}

async fn lease(State(vault): State<Arc<Vault>>, Extension(peer): Extension<Peer>, body: Body) -> Response {
    let request: LeaseRequest = match read(body).await {
        Ok(request) => request,
        Err(response) => return response,
    };
    let references = match asked(request.references, request.wait_ms, MAX_WAIT_MS) {
        Ok(references) => references,
        Err((error, hint)) => return problem(StatusCode::BAD_REQUEST, &error, hint),
    };
    let outcome = vault.lease(peer.uid, &references, Duration::from_millis(request.wait_ms)).await;
    let response = match outcome {
        Ok(values) => match LeaseReply::write(&values).map(Bytes::from_owner) {
            Some(body) => ([(header::CONTENT_TYPE, JSON)], Body::from(body)).into_response(),
            None => problem(StatusCode::SERVICE_UNAVAILABLE, "the answer cannot be written", None),
        },
        Err(LeaseError::Missing(missing)) => json(StatusCode::CONFLICT, &MissingReply { missing }),
        Err(error) => refused(&error),
    };
    vault.audit(&Audit {
        uid: peer.uid,
        operation: Operation::Lease,
        operator: None,
        references: &references,
        service: None,
        status: response.status().as_u16(),
    });
    response
}

/// Waits for a change. What is granted is heard of often and says nothing new, so only refusals are audited.
async fn changed(State(vault): State<Arc<Vault>>, Extension(peer): Extension<Peer>, body: Body) -> Response {
    let request: ChangedRequest = match read(body).await {
        Ok(request) => request,
        Err(response) => return response,
    };
    let references = match asked(request.references, request.wait_ms, MAX_CHANGE_WAIT_MS) {
        Ok(references) => references,
        Err((error, hint)) => return problem(StatusCode::BAD_REQUEST, &error, hint),
    };
    let wait = Duration::from_millis(request.wait_ms);
    match vault.changed(peer.uid, &references, request.known.as_ref(), wait).await {
        Ok(revision) => json(StatusCode::OK, &ChangedReply { revision }),
        Err(error) => {
            let response = refused(&error);
            vault.audit(&Audit {
                uid: peer.uid,
                operation: Operation::Changed,
                operator: None,
                references: &references,
                service: None,
                status: response.status().as_u16(),
            });
            response
        }
    }
}

/// What is wrong with a request, and what to do instead.
type Wrong = (String, Option<&'static str>);

/// The references of a request, each once and in order, when there are not too many of them and the wait is not too long.
fn asked(mut references: Vec<SecretRef>, wait_ms: u64, longest: u64) -> Result<Vec<SecretRef>, Wrong> {
    if wait_ms > longest {
        let error = format!("wait_ms is more than {longest}");
        return Err((error, Some("ask again to wait longer")));
    }
    if references.is_empty() || references.len() > MAX_REFERENCES {
        return Err((format!("a request is for 1 to {MAX_REFERENCES} references"), None));
    }
    references.sort_unstable();
    references.dedup();
    Ok(references)
}

fn refused(error: &LeaseError) -> Response {
    let (status, hint) = match error {
        LeaseError::NotGranted(_) => (
            StatusCode::FORBIDDEN,
            Some("a service leases only what its own part of the declaration refers to"),
        ),
        _ => (StatusCode::SERVICE_UNAVAILABLE, None),
    };
    problem(status, &error.to_string(), hint)
}

/// Not audited: the order is, when it is given.
async fn orders(State(vault): State<Arc<Vault>>, Extension(peer): Extension<Peer>, body: Body) -> Response {
    let OrdersRequest { after, wait_ms } = match read(body).await {
        Ok(request) => request,
        Err(response) => return response,
    };
    if wait_ms > MAX_ORDER_WAIT_MS {
        let error = format!("wait_ms is more than {MAX_ORDER_WAIT_MS}");
        return problem(StatusCode::BAD_REQUEST, &error, Some("ask again to wait longer"));
    }
    if !vault.rules.services.values().any(|uid| *uid == peer.uid) {
        return problem(StatusCode::NOT_FOUND, "there is no such resource", None);
    }
    match vault.order(peer.uid, after, Duration::from_millis(wait_ms)).await {
        Ok(Some(order)) => json(StatusCode::OK, &order),
        Ok(None) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, &error.to_string(), None),
    }
}

async fn operator(State(vault): State<Arc<Vault>>, Extension(peer): Extension<Peer>, body: Body) -> Response {
    let request: OperatorRequest = match read(body).await {
        Ok(request) => request,
        Err(response) => return response,
    };
    let answer = if is_slow(&request) {
        // In a thread of its own, and to its end: passphrases take seconds.
        match tokio::task::spawn_blocking(move || vault.operate(peer.uid, &request)).await {
            Ok(answer) => answer,
            Err(_) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    } else {
        vault.operate(peer.uid, &request)
    };
    if answer.body.is_empty() {
        return answer.status.into_response();
    }
    (answer.status, [(header::CONTENT_TYPE, JSON)], answer.body).into_response()
}

fn is_slow(request: &OperatorRequest) -> bool {
    request::target(&request.path).0 == REKEY
}

/// Reads a bounded body within [`BODY_TIME`] and parses it; the error is the answer.
pub(crate) async fn read<T: DeserializeOwned>(body: Body) -> Result<T, Response> {
    let body = match tokio::time::timeout(BODY_TIME, collect(body)).await {
        Err(_) => return Err(problem(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time", None)),
        Ok(None) => {
            let error = format!("the body is longer than {MAX_REQUEST} bytes or was cut off");
            return Err(problem(StatusCode::PAYLOAD_TOO_LARGE, &error, None));
        }
        Ok(Some(body)) => body,
    };
    // Place only: the parser's own words would repeat parts of the input.
    serde_json::from_slice(&body).map_err(|error| {
        let error = format!("malformed request at line {} column {}", error.line(), error.column());
        problem(StatusCode::BAD_REQUEST, &error, None)
    })
}

async fn collect(mut body: Body) -> Option<Vec<u8>> {
    if body.size_hint().lower() > MAX_REQUEST as u64 {
        return None;
    }
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        if let Ok(data) = frame.ok()?.into_data() {
            if data.len() > MAX_REQUEST - bytes.len() {
                return None;
            }
            bytes.extend_from_slice(&data);
        }
    }
    Some(bytes)
}

pub(crate) fn problem(status: StatusCode, error: &str, hint: Option<&str>) -> Response {
    json(status, &ErrorReply::new(error, hint))
}

pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(body) => (status, [(header::CONTENT_TYPE, JSON)], body).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
