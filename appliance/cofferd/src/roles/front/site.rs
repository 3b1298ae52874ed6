//! What is where: the appliance's own prefix, and everything else to the service behind the port.
//!
//! | below `/.well-known/cofferdam` | who | answer |
//! |---|---|---|
//! | `GET /evidence` | anybody | the evidence behind the present certificate |
//! | `GET /evidence?nonce=BASE64URL` | anybody | fresh evidence over the nonce (16 to 64 bytes) and this connection's channel binding, alone or in the claims' root of many; 503 with `Retry-After` |
//! | `GET /v1/status` | operators | boot, registers, roles, services, publishing, as one object |
//! | `GET /v1/logs?service=NAME[&tail=N]` | operators | the last N lines (100, at most 10,000) as JSON lines |
//! | `GET /v1/events[?since=MS]` | operators | what happened, as JSON lines |
//! | `POST /v1/publish` | operators | 202: the release attestation is looked at now, and published again unless it is the newest release |
//! | `POST /v1/sign-in` | operators | 204: the connection is theirs from then on, also for ports that take operators; 101 for who asks to begin anew on it |
//! | everything else under `/v1/` | operators | what the vault says |
//!
//! Errors are `{"error":…,"hint":…?}`. Every published port serves the same; 443 does so always.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, Response, StatusCode};
use cofferdam_declaration::{Auth, Speaks};
use cofferdam_protocol::certificate::ATTESTED_KEY;
use cofferdam_protocol::evidence;
use cofferdam_protocol::operator::{OPERATORS, PREFIX, SIGN_IN};
use cofferdam_workload::places::Places;

use super::auth::Callers;
use super::browser::Browser;
use super::connection::hold;
use super::counts::Counts;
use super::evidence::EvidenceClient;
use super::listen::Peer;
use super::operator::Operators;
use super::proxy::{Backend, Proxy};
use super::reply;
use super::source::Source;

/// Times that percent-encoding is undone when a path is checked for [`PREFIX`] in disguise. Frameworks decode
/// once, careless stacks twice.
const DECODINGS: usize = 3;

/// Requests for evidence that are answered at one time, and operators' requests. Nothing else takes these places, and when
/// all are taken the oldest request of the source that has most ends: none takes longer than a minute when all is well,
/// so it is one that is slow on purpose.
pub(super) const EVIDENCE_REQUESTS: usize = 256;
pub(super) const OPERATORS_REQUESTS: usize = 64;

/// The whole of what `front` answers.
#[derive(Debug)]
pub(crate) struct Site {
    /// Evidence for anybody.
    pub(crate) evidence: EvidenceClient,
    /// The operators' interface.
    pub(crate) operators: Operators,
    /// Who may call ports that are not everybody's.
    pub(crate) callers: Callers,
    /// The services behind the published ports.
    pub(crate) backends: BTreeMap<u16, Backend>,
    /// The way to them.
    pub(crate) proxy: Proxy,
    /// The places of the appliance's own interface.
    pub(crate) own: Own,
    /// What operators are told of all that.
    pub(crate) counts: Arc<Counts>,
    /// The certificate that browsers accept.
    pub(crate) browser: Option<Browser>,
    /// The digest of the attested key, for those who are not shown it.
    pub(crate) attested_key: Option<HeaderValue>,
}

/// Places of the appliance's own interface.
#[derive(Debug)]
pub(crate) struct Own {
    evidence: Arc<Places<Source>>,
    operators: Arc<Places<Source>>,
}

impl Default for Own {
    fn default() -> Self {
        Self { evidence: Places::new(EVIDENCE_REQUESTS), operators: Places::new(OPERATORS_REQUESTS) }
    }
}

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    /// Below the prefix; holds the rest of the path.
    Own(&'a str),
    /// To the service behind the port.
    Service,
    /// Nowhere: a server that reads paths generously could take it for ours.
    Disguised,
}

impl Site {
    /// Whether clients at this port choose a version of HTTP.
    pub(crate) fn carries_http(&self, port: u16) -> bool {
        self.backends.get(&port).is_none_or(|backend| backend.speaks != Speaks::Tcp)
    }

    /// The service whose own TLS a port passes on.
    pub(crate) fn passed_through(&self, port: u16) -> Option<&Backend> {
        self.backends.get(&port).filter(|backend| backend.speaks == Speaks::Tls)
    }

    /// The service that gets the bytes of this peer as they are: of everybody's, or of the operator's who has signed in.
    pub(crate) fn carries_bytes(&self, peer: &Peer) -> Option<&Backend> {
        self.backends.get(&peer.port).filter(|backend| {
            let admitted = match backend.auth {
                Auth::None => true,
                Auth::Operators => peer.connection.operator().is_some(),
                Auth::Tokens => false,
            };
            backend.speaks == Speaks::Tcp && admitted
        })
    }

    /// Answers one request. Of the attested key nobody says anything but the appliance itself.
    pub(crate) async fn answer(&self, peer: Peer, request: Request<Body>) -> Response<Body> {
        let mut response = self.route(peer, request).await;
        if response.extensions_mut().remove::<reply::OwnError>().is_some() {
            self.counts.answered(response.status());
        }
        match &self.attested_key {
            Some(key) => drop(response.headers_mut().insert(ATTESTED_KEY, key.clone())),
            None => drop(response.headers_mut().remove(ATTESTED_KEY)),
        }
        response
    }

    async fn route(&self, peer: Peer, mut request: Request<Body>) -> Response<Body> {
        match place(request.uri().path()) {
            Place::Own(evidence::PATH) => {
                if request.method() != Method::GET {
                    return reply::error(StatusCode::METHOD_NOT_ALLOWED, "evidence is read with GET", None);
                }
                let held = peer.connection.enter(&self.own.evidence);
                // A turn for what the request costs; nobody's while it waits for its quote.
                drop(self.callers.turns().take(peer.connection.source()).await);
                let answer = self.evidence.answer(request.uri().query(), &peer.channel_binding);
                hold(answer.await, held)
            }
            Place::Own(SIGN_IN) => self.callers.sign_in(&peer, request),
            Place::Own(path) if is_operators(path) => {
                let held = peer.connection.enter(&self.own.operators);
                let path = path.to_owned();
                hold(self.operators.answer(&self.callers, &path, peer, request).await, held)
            }
            Place::Own(_) => {
                let hint = "evidence is at /.well-known/cofferdam/evidence, the operators' interface at /.well-known/cofferdam/v1/";
                reply::error(StatusCode::NOT_FOUND, "there is nothing at this path", Some(hint))
            }
            Place::Disguised => reply::error(
                StatusCode::NOT_FOUND,
                "this path belongs to the appliance and is misspelt",
                None,
            ),
            Place::Service => match self.backends.get(&peer.port) {
                Some(backend) if backend.speaks == Speaks::Tcp => reply::error(
                    StatusCode::NOT_FOUND,
                    &format!(
                        "service {} takes no HTTP here, only the bytes of an operator who has signed in",
                        backend.service
                    ),
                    Some("use `coffer connect` with the key of an operator that the declaration names"),
                ),
                Some(backend) => {
                    match self.callers.admit(backend.auth, &backend.service, &peer, &mut request) {
                        Ok(caller) => self.proxy.forward(backend, peer, caller, request).await,
                        Err(answer) => *answer,
                    }
                }
                None => reply::error(StatusCode::NOT_FOUND, "no service publishes this port", None),
            },
        }
    }
}

fn place(path: &str) -> Place<'_> {
    match path.strip_prefix(PREFIX) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => return Place::Own(rest),
        _ => {}
    }
    let mut reading = path.as_bytes().to_vec();
    for _ in 0..=DECODINGS {
        if leads_to_prefix(&reading) {
            return Place::Disguised;
        }
        let decoded = percent_decode(&reading);
        if decoded == reading {
            break;
        }
        reading = decoded;
    }
    Place::Service
}

/// Whether a generous server would find the prefix at the start of this path: repeated, backward and
/// parametrised slashes, dot segments and letter case are all read in the appliance's favour.
fn leads_to_prefix(path: &[u8]) -> bool {
    let mut segments: Vec<Vec<u8>> = Vec::new();
    for segment in path.split(|b| matches!(b, b'/' | b'\\')) {
        let name: Vec<u8> = segment
            .iter()
            .take_while(|b| **b != b';' && **b != 0)
            .filter(|b| !b.is_ascii_control() && **b != b' ')
            .map(u8::to_ascii_lowercase)
            .collect();
        match name.as_slice() {
            b"" | b"." => {}
            b".." => drop(segments.pop()),
            _ => segments.push(name),
        }
    }
    segments.starts_with(&[b".well-known".to_vec(), b"cofferdam".to_vec()])
}

fn percent_decode(path: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        let pair = (*byte == b'%').then(|| tail.get(..2)).flatten();
        let value = pair
            .and_then(|pair| std::str::from_utf8(pair).ok())
            .filter(|pair| pair.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match value {
            Some(value) => {
                decoded.push(value);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => decoded.push(*byte),
        }
    }
    decoded
}

/// Whether there is something below the operators' word.
fn is_operators(path: &str) -> bool {
    let words = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    words.is_some_and(|(first, _)| first == OPERATORS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_the_appliances_however_it_is_written() {
        assert_eq!(place("/.well-known/cofferdam"), Place::Own(""));
        assert_eq!(place("/.well-known/cofferdam/evidence"), Place::Own("/evidence"));
        assert_eq!(place("/.well-known/cofferdam/../../app"), Place::Own("/../../app"));
        for path in [
            "//.well-known/cofferdam/evidence",
            "/.well-known//cofferdam",
            "/./.well-known/cofferdam/v1/status",
            "/app/../.well-known/cofferdam/evidence",
            "/app/..;/.well-known/cofferdam/evidence",
            "/%2ewell-known/cofferdam/evidence",
            "/%2Ewell-known%2fcofferdam/evidence",
            "/%252ewell-known/cofferdam",
            "/.well-known\\cofferdam",
            "/.well-known/%63offerdam",
            "/.well-known/cofferdam;x=1/evidence",
            "/.Well-Known/Cofferdam/evidence",
            "/%2e%2e/.well-known/cofferdam",
        ] {
            assert_eq!(place(path), Place::Disguised, "{path}");
        }
    }

    #[test]
    fn every_other_path_is_the_services() {
        for path in [
            "/",
            "/app",
            "/.well-known/acme-challenge/x",
            "/.well-known/cofferdamage",
            "/x/.well-known/cofferdam",
            "/%",
            "/%zz",
            "/a%2fb",
        ] {
            assert_eq!(place(path), Place::Service, "{path}");
        }
    }
}
