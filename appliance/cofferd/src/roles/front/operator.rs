//! The operators' interface.
//!
//! `front` decides nothing about operators: it hands method, path, body, signature and this connection's channel
//! binding to the vault, which knows their keys. What the vault does not execute itself it approves with 204, and
//! then `front` answers from what the roles have written down: status and logs. A secret passes sealed to the
//! vault's key; `front` cannot read it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cofferdam_attest::operator::Authorization;
use hyper::body::Incoming;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use super::listen::Peer;
use super::{foreign, reply};
use crate::roles::appliance::Appliance;

/// Largest body in bytes: a sealed secret of 64 KiB is 88 KiB of base64.
const MAX_BODY: usize = 128 * 1024;

/// How long a body may take to arrive.
const BODY_LIMIT: Duration = Duration::from_secs(20);

/// How long the vault may take.
const VAULT_LIMIT: Duration = Duration::from_secs(20);

/// Largest answer of the vault in bytes: a listing of references.
const MAX_ANSWER: usize = 1024 * 1024;

/// Requests that the vault is asked about at one time. Operators are people and scripts.
const REQUESTS: usize = 8;

/// How long a request waits until it is one of these. Strangers' requests are among them, for only the vault can
/// tell; it refuses one in a moment.
const PLACE_LIMIT: Duration = Duration::from_secs(5);

/// Lines of a log without `tail`, and the most that can be asked for.
const TAIL: usize = 100;
const MAX_TAIL: usize = 10_000;

/// Bytes of each log file that are looked at; a shim rotates at 1 MiB.
const LOG_BYTES: u64 = 1280 * 1024;

/// The files that status and logs are made of.
#[derive(Debug)]
pub(crate) struct Records {
    /// `appliance.json`.
    pub(crate) appliance: PathBuf,
    /// PID 1's `status.json`.
    pub(crate) roles: PathBuf,
    /// `publish/status.json`.
    pub(crate) publish: PathBuf,
    /// Each service of the declaration, in its order, with its directory.
    pub(crate) services: Vec<(String, PathBuf)>,
}

/// The operators' interface.
#[derive(Debug)]
pub(crate) struct Operators {
    vault: PathBuf,
    records: Records,
    places: Semaphore,
}

/// What the vault is asked.
#[derive(Serialize)]
struct Question<'a> {
    method: &'a str,
    path: &'a str,
    body: String,
    channel_binding: String,
    key: &'a str,
    signature: String,
}

impl Operators {
    /// The interface in front of the vault at `vault`.
    pub(crate) fn new(vault: PathBuf, records: Records) -> Self {
        Self { vault, records, places: Semaphore::new(REQUESTS) }
    }

    /// Answers a request whose path, after the prefix, is `path`.
    pub(crate) async fn answer(&self, path: &str, peer: Peer, request: Request<Incoming>) -> Response<Body> {
        let Some(authorization) = authorization(&request) else {
            return reply::error(
                StatusCode::UNAUTHORIZED,
                "an operator's signature is needed",
                Some("use `coffer` with the key that the declaration names"),
            );
        };
        // The body first: whoever lets it come slowly holds his connection and nothing else.
        let (parts, body) = request.into_parts();
        let body =
            match tokio::time::timeout(BODY_LIMIT, axum::body::to_bytes(Body::new(body), MAX_BODY)).await {
                Ok(Ok(body)) => body,
                Ok(Err(_)) => {
                    return reply::error(
                        StatusCode::PAYLOAD_TOO_LARGE,
                        "the body is larger than a sealed secret, or was cut off",
                        Some("a secret value is at most 64 KiB"),
                    );
                }
                Err(_) => return reply::error(StatusCode::REQUEST_TIMEOUT, "the body came too slowly", None),
            };
        let Ok(Ok(_place)) = tokio::time::timeout(PLACE_LIMIT, self.places.acquire()).await else {
            return reply::later(StatusCode::SERVICE_UNAVAILABLE, "too many operators at once", 1);
        };
        let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
        let question = Question {
            method: parts.method.as_str(),
            path: target,
            body: STANDARD.encode(&body),
            channel_binding: STANDARD.encode(peer.channel_binding),
            key: &authorization.key,
            signature: STANDARD.encode(authorization.signature),
        };
        let (status, answer) = match self.ask(&question).await {
            Ok(answered) => answered,
            Err(response) => return response,
        };
        if status != StatusCode::NO_CONTENT {
            return reply::json(status, answer);
        }
        match (&parts.method, path) {
            (&Method::GET, "/v1/status") => self.records.status(),
            (&Method::GET, "/v1/logs") => self.records.logs(parts.uri.query()),
            _ => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            }
        }
    }

    async fn ask(&self, question: &Question<'_>) -> Result<(StatusCode, axum::body::Bytes), Response<Body>> {
        // Not printed: anybody can make this happen as often as he likes, and PID 1 says when the vault is gone.
        let unreachable = || reply::later(StatusCode::SERVICE_UNAVAILABLE, "the vault does not answer", 1);
        let body = serde_json::to_vec(question).map_err(|_| unreachable())?;
        crate::system::client::request(
            &self.vault,
            Method::POST,
            "/v1/operator",
            body,
            MAX_ANSWER,
            VAULT_LIMIT,
        )
        .await
        .map_err(|_| unreachable())
    }
}

/// The one `Authorization` header, when it is of our scheme.
fn authorization(request: &Request<Incoming>) -> Option<Authorization> {
    let mut values = request.headers().get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    Authorization::parse(value)
}

impl Records {
    /// Everything an operator wants to see at one glance, as one object.
    fn status(&self) -> Response<Body> {
        let appliance = match Appliance::read(&self.appliance) {
            Ok(appliance) => appliance,
            Err(error) => {
                return reply::error(StatusCode::SERVICE_UNAVAILABLE, &error.to_string(), None);
            }
        };
        let services: Vec<Value> = self
            .services
            .iter()
            .map(|(name, directory)| {
                let mut status = match document(&directory.join("status.json")) {
                    Some(Value::Object(status)) => status,
                    _ => Map::from_iter([("state".to_owned(), json!("pending"))]),
                };
                status.insert("name".to_owned(), json!(name));
                Value::Object(status)
            })
            .collect();
        let boot = document(&self.roles).unwrap_or_default();
        let status = json!({
            "repository": appliance.repository,
            "commit": appliance.commit,
            "declaration": appliance.declaration,
            "endpoint": appliance.endpoint,
            "image": appliance.image,
            "state": appliance.state.to_string(),
            "registers": appliance.registers,
            "phases": appliance.phases,
            "phase": boot.get("phase"),
            "roles": boot.get("roles"),
            "services": services,
            "publish": document(&self.publish),
        });
        reply::json(StatusCode::OK, status.to_string())
    }

    /// The end of a service's log as JSON lines, oldest first.
    fn logs(&self, query: Option<&str>) -> Response<Body> {
        let (name, tail) = match parse_query(query) {
            Ok(asked) => asked,
            Err(reason) => {
                let hint = "ask with ?service=NAME&tail=N";
                return reply::error(StatusCode::BAD_REQUEST, reason, Some(hint));
            }
        };
        // Only names that the declaration has become paths.
        let Some((_, directory)) = self.services.iter().find(|(known, _)| known == name) else {
            let known: Vec<&str> = self.services.iter().map(|(name, _)| name.as_str()).collect();
            let hint = format!("the declaration has {}", known.join(", "));
            return reply::error(StatusCode::NOT_FOUND, "there is no such service", Some(&hint));
        };
        reply::typed(StatusCode::OK, last_lines(directory, tail), "application/jsonl")
    }
}

/// A JSON document that another role has written; `None` when there is none.
fn document(path: &Path) -> Option<Value> {
    serde_json::from_slice(&foreign::read(path, foreign::STATUS_LIMIT)?).ok()
}

/// `service` and `tail`, each at most once, nothing else.
fn parse_query(query: Option<&str>) -> Result<(&str, usize), &'static str> {
    let mut service = None;
    let mut tail = None;
    for pair in query.unwrap_or_default().split('&') {
        match pair.split_once('=') {
            Some(("service", name)) if service.is_none() => service = Some(name),
            Some(("tail", count)) if tail.is_none() => {
                tail = Some(count.parse().map_err(|_| "`tail` is not a number")?);
            }
            _ => return Err("the query is not `service` and `tail`, each once"),
        }
    }
    let service = service.ok_or("`service` is missing")?;
    Ok((service, tail.unwrap_or(TAIL).min(MAX_TAIL)))
}

/// The last `count` complete lines over the present and the previous log.
fn last_lines(directory: &Path, count: usize) -> Vec<u8> {
    // The present log first: if it is rotated in between, lines are seen twice rather than not at all.
    let present = foreign::read_end(&directory.join("log"), LOG_BYTES).unwrap_or_default();
    let present = lines(&present);
    let missing = count.saturating_sub(present.len());
    let previous = match missing {
        0 => Vec::new(),
        _ => foreign::read_end(&directory.join("log.1"), LOG_BYTES).unwrap_or_default(),
    };
    let previous = lines(&previous);
    let skip = |lines: &[&[u8]], keep: usize| lines.len().saturating_sub(keep);
    let old = previous.iter().skip(skip(&previous, missing));
    let new = present.iter().skip(skip(&present, count));
    old.chain(new).copied().collect::<Vec<_>>().concat()
}

/// Lines with their newline. A line without one is still being written; one that does not begin an object was cut
/// at the start by the bound.
fn lines(text: &[u8]) -> Vec<&[u8]> {
    text.split_inclusive(|b| *b == b'\n').filter(|l| l.ends_with(b"\n") && l.starts_with(b"{")).collect()
}
