//! The operators' interface.
//!
//! Every signature is judged here, with the keys of the declaration, before a request takes anything that others could want. What
//! only reads (status, logs and events, from what the roles have written down), and `publish`, is then answered without the vault, so that an
//! operator learns why it is dead. Everything else is the vault's: it gets method, path, body, signature and this connection's channel
//! binding, and judges them itself, so that a `front` that has fallen changes nothing. A secret passes sealed to the vault's key; `front`
//! cannot read it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, Response, StatusCode};
use cofferdam_protocol::certificate::CertificateStatus;
use cofferdam_protocol::change::Changes;
use cofferdam_protocol::follow::FollowStatus;
use cofferdam_protocol::json::{self, JsonError};
use cofferdam_protocol::network::NetworkStatus;
use cofferdam_protocol::operator::{
    EVENTS, JSON_LINES, LOG_PLACE, LOGS, LogsQuery, MAX_BODY, PUBLISH, STATUS,
};
use cofferdam_protocol::status::{
    BootStatus, ClockStatus, EgressStatus, MAX_FILE, NamedService, PublishStatus, ServiceStatus, StatusReply,
    StoreStatus,
};
use cofferdam_protocol::unseal::{REKEY, UNSEAL};
use cofferdam_protocol::vault::{MAX_OPERATOR_REPLY, MAX_REQUEST, OPERATOR, OperatorRequest};
use cofferdam_protocol::{Base64Bytes, Timestamp, error_chain};
use cofferdam_vault::AuthenticationError;
use cofferdam_workload::cgroup::Group;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use super::auth::Callers;
use super::counts::Counts;
use super::events::{self, Source};
use super::listen::Peer;
use super::{auth, logs, reply, untrusted_file};
use crate::roles::{SHIM, egress, facts};
use crate::system::client::{self, ClientError};

/// How long a body may take to arrive.
const BODY_LIMIT: Duration = Duration::from_secs(20);

/// How long the vault may take.
const VAULT_LIMIT: Duration = Duration::from_secs(20);

/// How long it may take to make or open the state: a passphrase's Argon2id, and reading the whole store, on a processor that is busy.
const UNSEAL_LIMIT: Duration = Duration::from_secs(300);

/// Requests that the vault is asked about at one time. Operators are people and scripts.
const REQUESTS: usize = 8;

/// Requests that wait for a log to go on, at one time.
const FOLLOWERS: usize = 16;

/// How long a request waits until it is one of these.
const PERMIT_LIMIT: Duration = Duration::from_secs(5);

/// The files that status and logs are made of.
#[derive(Debug)]
pub(crate) struct Records {
    /// What the front itself has counted.
    pub(crate) counts: Arc<Counts>,
    /// `appliance.json`.
    pub(crate) appliance: PathBuf,
    /// PID 1's `status.json`.
    pub(crate) roles: PathBuf,
    /// `publish/status.json`.
    pub(crate) publish: PathBuf,
    /// `network/status.json`.
    pub(crate) network: PathBuf,
    /// `vault/store.json`.
    pub(crate) store: PathBuf,
    /// Where the role `egress` says what services were denied.
    pub(crate) egress: PathBuf,
    /// Each service of the declaration, in its order, with its directory.
    pub(crate) services: Vec<(String, PathBuf)>,
    /// Their control groups by their names.
    pub(crate) groups: BTreeMap<String, Group>,
    /// Where the control group of each role is, under its name.
    pub(crate) role_groups: PathBuf,
    /// What happened to whom.
    pub(crate) rings: Vec<Source>,
}

/// The operators' interface.
#[derive(Debug)]
pub(crate) struct Operators {
    vault: PathBuf,
    publish: PathBuf,
    records: Records,
    requests: Semaphore,
    followers: Semaphore,
}

impl Operators {
    /// The interface in front of the vault at `vault`, and of the role that listens at `publish` for being asked.
    pub(crate) fn new(vault: PathBuf, publish: PathBuf, records: Records) -> Self {
        Self {
            vault,
            publish,
            records,
            requests: Semaphore::new(REQUESTS),
            followers: Semaphore::new(FOLLOWERS),
        }
    }

    /// Answers a request whose path, after the prefix, is `path`.
    pub(crate) async fn answer(
        &self,
        callers: &Callers,
        path: &str,
        peer: Peer,
        request: Request<Body>,
    ) -> Response<Body> {
        let Some(authorization) = auth::operators(request.headers()) else {
            return reply::error(
                StatusCode::UNAUTHORIZED,
                "an operator's signature is needed",
                Some("use `coffer` with the key that the declaration names"),
            );
        };
        // The body first: whoever lets it come slowly holds his connection and nothing else.
        let (parts, body) = request.into_parts();
        let body = match tokio::time::timeout(BODY_LIMIT, axum::body::to_bytes(body, MAX_BODY)).await {
            Ok(Ok(body)) => body,
            Ok(Err(_)) => return too_large(),
            Err(_) => return reply::error(StatusCode::REQUEST_TIMEOUT, "the body came too slowly", None),
        };
        if let Err(error) = callers.authenticate(&authorization, &parts.method, &parts.uri, &body, &peer) {
            let hint = match error {
                AuthenticationError::UnknownKey => "use a key listed under operators in cofferdam.yaml",
                AuthenticationError::Signature => "sign each request anew for the connection that carries it",
            };
            return reply::error(StatusCode::UNAUTHORIZED, &error.to_string(), Some(hint));
        }
        match (&parts.method, path) {
            (&Method::GET, STATUS) => return self.records.status(),
            (&Method::GET, LOGS) => return self.records.logs(parts.uri.query(), &self.followers).await,
            (&Method::GET, EVENTS) => return events::reply(&self.records.rings, parts.uri.query()),
            (&Method::POST, PUBLISH) => return self.publish().await,
            (_, STATUS | LOGS | EVENTS | PUBLISH) => {
                let text = "the resource does not have this method";
                return reply::error(StatusCode::METHOD_NOT_ALLOWED, text, None);
            }
            _ => {}
        }
        let Ok(Ok(_permit)) = tokio::time::timeout(PERMIT_LIMIT, self.requests.acquire()).await else {
            return reply::later(StatusCode::SERVICE_UNAVAILABLE, "too many operators at once", 1);
        };
        let Ok(body) = Base64Bytes::new(body.to_vec()) else { return too_large() };
        let question = OperatorRequest {
            method: parts.method.to_string(),
            path: parts.uri.path_and_query().map_or("", |target| target.as_str()).to_owned(),
            body,
            channel_binding: peer.channel_binding.into(),
            key: authorization.key,
            signature: authorization.signature,
        };
        let limit = if matches!(path, UNSEAL | REKEY) { UNSEAL_LIMIT } else { VAULT_LIMIT };
        let (status, answer) = match self.ask(&question, limit).await {
            Ok(answered) => answered,
            Err(response) => return response,
        };
        if status != StatusCode::NO_CONTENT {
            return reply::json(status, answer);
        }
        reply::empty(StatusCode::NO_CONTENT)
    }

    /// Lets the role `publish` know that it is asked for. That somebody connects is all there is to know.
    async fn publish(&self) -> Response<Body> {
        match UnixStream::connect(&self.publish).await {
            Ok(_) => reply::empty(StatusCode::ACCEPTED),
            Err(_) => reply::later(StatusCode::SERVICE_UNAVAILABLE, "the role `publish` does not answer", 1),
        }
    }

    async fn ask(
        &self,
        question: &OperatorRequest,
        limit: Duration,
    ) -> Result<(StatusCode, axum::body::Bytes), Response<Body>> {
        // Not printed: anybody can make this happen as often as he likes, and PID 1 says when the vault is gone.
        let unreachable = || reply::later(StatusCode::SERVICE_UNAVAILABLE, "the vault does not answer", 1);
        let body = json::to_vec(question).map_err(|_| unreachable())?;
        // The vault would hang up on the rest of it.
        if body.len() > MAX_REQUEST {
            return Err(too_large());
        }
        client::request(&self.vault, Method::POST, OPERATOR, body, MAX_OPERATOR_REPLY, limit).await.map_err(
            |error| match error {
                ClientError::Timeout(_) => reply::error(
                    StatusCode::GATEWAY_TIMEOUT,
                    "the vault has not answered in time: whether it does what was asked is not known",
                    Some("look before you ask again"),
                ),
                _ => unreachable(),
            },
        )
    }
}

/// 413 for a body that is no sealed secret: longer, or it ended early.
fn too_large() -> Response<Body> {
    reply::error(
        StatusCode::PAYLOAD_TOO_LARGE,
        "the body is larger than a sealed secret, or was cut off",
        Some("a secret value is at most 64 KiB"),
    )
}

impl Records {
    /// Everything an operator wants to see at one glance, as one object.
    fn status(&self) -> Response<Body> {
        let appliance = match facts::appliance(&self.appliance) {
            Ok(appliance) => appliance,
            Err(error) => {
                return reply::error(StatusCode::SERVICE_UNAVAILABLE, &error_chain(&error), None);
            }
        };
        let boot = written(&self.roles, BootStatus::parse);
        let clock_set = boot.as_ref().and_then(|boot| boot.clock);
        let (phase, mut roles) = boot.map(|boot| (boot.phase, boot.roles)).unzip();
        for role in roles.iter_mut().flatten() {
            let current = self.role_groups.join(&role.name).join("memory.current");
            role.memory = std::fs::read_to_string(current).ok().and_then(|text| text.trim().parse().ok());
        }
        let services = self.services.iter().map(|(name, directory)| {
            let status = written(&directory.join("status.json"), ServiceStatus::parse);
            let mut service = NamedService::new(name.clone(), status);
            service.egress = written(&egress::status(&self.egress, name), EgressStatus::parse);
            service.usage = self.groups.get(name).and_then(|group| group.usage().ok());
            let shim = format!("{} {name}", SHIM.name());
            match roles.iter().flatten().find(|role| role.name == shim) {
                Some(shim) => service.with_its_shim(shim),
                None => service,
            }
        });
        let services = services.collect();
        let status = StatusReply {
            commit: appliance.commit,
            declaration: appliance.declaration,
            endpoint: appliance.endpoint,
            image: appliance.image,
            front: Some(self.counts.status()),
            network: written(&self.network, NetworkStatus::parse),
            store: written(&self.store, StoreStatus::parse),
            clock: written(&self.publish.with_file_name("clock.json"), ClockStatus::parse),
            clock_set,
            time: Timestamp::from_clock(SystemTime::now()),
            phase,
            phases: appliance.phases,
            publish: written(&self.publish, PublishStatus::parse),
            follow: written(&self.publish.with_file_name("follow.json"), FollowStatus::parse),
            changes: written(&self.roles.with_file_name("changes.json"), Changes::parse),
            certificate: written(&self.publish.with_file_name("certificate.json"), CertificateStatus::parse),
            registers: appliance.registers,
            repository: appliance.repository,
            roles,
            services,
            state: appliance.state.to_string(),
        };
        match json::to_vec(&status) {
            Ok(body) => reply::json(StatusCode::OK, body),
            Err(error) => reply::error(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string(), None),
        }
    }

    /// A part of a service's log as JSON lines, oldest first.
    async fn logs(&self, query: Option<&str>, followers: &Semaphore) -> Response<Body> {
        let asked = match LogsQuery::parse(query) {
            Ok(asked) => asked,
            Err(reason) => {
                let hint = "ask with ?service=NAME&tail=N";
                return reply::error(StatusCode::BAD_REQUEST, reason, Some(hint));
            }
        };
        // Only names that the declaration has become paths.
        let Some((_, directory)) = self.services.iter().find(|(known, _)| known == asked.service) else {
            let known: Vec<&str> = self.services.iter().map(|(name, _)| name.as_str()).collect();
            let hint = format!("the declaration has {}", known.join(", "));
            return reply::error(StatusCode::NOT_FOUND, "there is no such service", Some(&hint));
        };
        let excerpt = match asked.after {
            None => logs::end(directory, asked.tail, asked.since),
            Some(place) => {
                let Ok(_place) = followers.try_acquire() else {
                    return reply::later(StatusCode::SERVICE_UNAVAILABLE, "too many follow a log", 5);
                };
                logs::after(directory, place).await
            }
        };
        let mut response = reply::typed(StatusCode::OK, excerpt.lines, JSON_LINES);
        if let Ok(place) = HeaderValue::from_str(&excerpt.place.to_string()) {
            response.headers_mut().insert(LOG_PLACE, place);
        }
        response
    }
}

/// What another role has written; `None` when there is nothing of that shape.
fn written<T>(path: &Path, parse: impl Fn(&[u8]) -> Result<T, JsonError>) -> Option<T> {
    parse(&untrusted_file::contents(path, MAX_FILE as u64)?).ok()
}
