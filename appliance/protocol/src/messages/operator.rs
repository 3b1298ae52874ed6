//! The operators' interface, which `front` serves: what a request looks like, what its signature covers, and where what is.
//!
//! A request is bound to one TLS connection; the network-facing role relays it and can neither forge one nor read a secret in it.
//! Sealing and opening secrets is `cofferdam_attest::operator`'s: it needs cryptography that this crate does without.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::json::{self, JsonError};
use crate::{Base64Array, Base64Bytes, Fingerprint, SecretRef, WordError, is_service_name};

/// Everything under it is answered by the appliance and never by a workload (RFC 8615 well-known path).
pub const PREFIX: &str = "/.well-known/cofferdam";
/// The first word of every path below [`PREFIX`] that only operators may ask for.
pub const OPERATORS: &str = "v1";
/// `GET`: boot, registers, roles, services, publishing, as one object.
pub const STATUS: &str = "/v1/status";
/// `GET` with [`LogsQuery`]: the end of a service's log as JSON lines.
pub const LOGS: &str = "/v1/logs";
/// `POST` without a body: 202, and the release attestation is looked at now, and published again unless it is the newest release. What
/// comes of it is in the status.
pub const PUBLISH: &str = "/v1/publish";
/// `GET` with [`EventsQuery`]: what happened, as JSON lines of [`super::events::Event`], the oldest first.
pub const EVENTS: &str = "/v1/events";
/// `GET`: which secrets there are. Below it, each secret is at [`secret_path`].
pub const SECRETS: &str = "/v1/secrets";
/// `POST` without a body, at [`order_path`]: 200 with an [`OrderReply`].
pub const SERVICES: &str = "/v1/services";
/// `POST` without a body: 204, and what else is asked for on this connection is asked for by the operator, also of the services
/// whose ports take operators. A service gets no signature to see, and bodies and tunnels need none.
pub const SIGN_IN: &str = "/v1/sign-in";
/// `Upgrade` of a sign-in that is for the connection itself (RFC 9110 §7.8): 101, and what is said next is the first thing on it, in the
/// operator's name: HTTP of either version, or the bytes that the port carries.
/// The same word is the protocol (ALPN, RFC 7301) of a connection that begins so at a port where bytes are for everybody.
pub const SIGN_IN_UPGRADE: &str = "cofferdam-operator";

/// Largest secret value in bytes.
pub const MAX_SECRET: usize = 64 * 1024;
/// Largest body of a request in bytes: a sealed secret of 64 KiB is 88 KiB of base64.
pub const MAX_BODY: usize = 128 * 1024;
/// Longest path and query in bytes: a reference needs 230, a query on logs a few more.
pub const MAX_TARGET: usize = 1024;
/// Largest reply in bytes: 10,000 log lines.
pub const MAX_REPLY: usize = 32 << 20;
/// Lines of a log without `tail`, and the most that are given.
pub const TAIL: usize = 100;
/// See [`TAIL`].
pub const MAX_TAIL: usize = 10_000;
/// Media type of logs: one JSON object on each line.
pub const JSON_LINES: &str = "application/jsonl";

/// Authorization scheme of operators' requests.
pub const SCHEME: &str = "Cofferdam-Operator";

/// Domain separator of [`signing_input`]; a zero byte follows it.
const DOMAIN: &[u8] = b"cofferdam/operator/v1";

/// The tag that AES-256-GCM appends to a sealed value, in bytes.
pub const SEAL_TAG: usize = 16;

/// An Ed25519 signature.
pub type Signature = Base64Array<64>;

/// The bytes that an operator's Ed25519 key signs for one request on one connection:
/// domain 00 method 00 path-and-query 00 SHA-256(body) 00 channel binding.
pub fn signing_input(method: &str, path_and_query: &str, body: &[u8], channel_binding: &[u8; 32]) -> Vec<u8> {
    let parts: [&[u8]; 5] =
        [DOMAIN, method.as_bytes(), path_and_query.as_bytes(), &Sha256::digest(body), channel_binding];
    parts.join(&0u8)
}

/// The `Authorization` header of an operator's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authorization {
    /// Which key signed.
    pub key: Fingerprint,
    /// Its signature of [`signing_input`].
    pub signature: Signature,
}

impl FromStr for Authorization {
    type Err = WordError;

    /// Reads exactly what [`fmt::Display`] writes.
    fn from_str(value: &str) -> Result<Self, WordError> {
        let read = || {
            let rest = value.strip_prefix(SCHEME)?.strip_prefix(" key=\"")?;
            let (key, rest) = rest.split_once("\", signature=\"")?;
            Some(Self { key: key.parse().ok()?, signature: rest.strip_suffix('"')?.parse().ok()? })
        };
        read().ok_or_else(|| WordError::new("not an operator's authorization"))
    }
}

impl fmt::Display for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME} key=\"{}\", signature=\"{}\"", self.key, self.signature)
    }
}

/// A secret value sealed to a vault, as it travels in the body of a `PUT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedSecret {
    /// HPKE encapsulated key.
    pub enc: Base64Array<32>,
    /// Ciphertext and tag. A value that is too long fits, so that it can be refused as that.
    pub ciphertext: Base64Bytes<SEAL_TAG, MAX_BODY>,
}

impl SealedSecret {
    /// Reads a body.
    ///
    /// # Errors
    /// It is too large or not of this shape.
    pub fn parse(body: &[u8]) -> Result<Self, JsonError> {
        json::from_json(body, MAX_BODY)
    }
}

/// Where a secret is put and removed, below [`PREFIX`]. The parts of a reference hold only letters, digits, dots, dashes and
/// underscores: they stand in a path as they are.
pub fn secret_path(reference: &SecretRef) -> String {
    format!("{SECRETS}/{}", reference.path())
}

/// Bound on the events in one reply, in bytes: the latest of each ring.
pub const MAX_EVENTS: usize = 4 << 20;

/// The query of [`EVENTS`]: nothing, or one of the two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EventsQuery {
    /// All that there is.
    #[default]
    All,
    /// `since`: from this moment on, in milliseconds since the kernel started.
    Since(u64),
    /// `last`: those of so many milliseconds before now.
    Last(u64),
}

impl EventsQuery {
    /// Reads a query.
    ///
    /// # Errors
    /// What is wrong with the query, in words.
    pub fn parse(query: Option<&str>) -> Result<Self, &'static str> {
        let milliseconds = |text: &str| text.parse().map_err(|_| "not a number of milliseconds");
        match query.unwrap_or_default().split_once('=') {
            None if query.unwrap_or_default().is_empty() => Ok(Self::All),
            Some(("since", moment)) => milliseconds(moment).map(Self::Since),
            Some(("last", span)) => milliseconds(span).map(Self::Last),
            _ => Err("the query is not `since` or `last`"),
        }
    }
}

impl fmt::Display for EventsQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => Ok(()),
            Self::Since(moment) => write!(f, "?since={moment}"),
            Self::Last(span) => write!(f, "?last={span}"),
        }
    }
}

/// Reply 200 to an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderReply {
    /// Tells one order from another.
    pub id: u32,
    /// What was ordered.
    pub order: Order,
    /// The services that restart after this one, since they depend on it with `restart: true`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependents: Vec<String>,
}

/// What an operator wants of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// It is to run, if it does not.
    Start,
    /// It is to end, and to stay so until another order or the next boot.
    Stop,
    /// It is to end, and to run again.
    Restart,
}

impl Order {
    /// The word in paths, in JSON and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
        }
    }
}

/// Where an order for a service is given, below [`PREFIX`].
pub fn order_path(service: &str, order: Order) -> String {
    format!("{SERVICES}/{service}/{}", order.as_str())
}

/// The service and the order of a path that [`order_path`] makes.
pub fn order_of(path: &str) -> Option<(&str, Order)> {
    let (service, word) = path.strip_prefix(SERVICES)?.strip_prefix('/')?.split_once('/')?;
    let order =
        [Order::Start, Order::Stop, Order::Restart].into_iter().find(|order| order.as_str() == word)?;
    is_service_name(service).then_some((service, order))
}

/// The header of an answer to [`LOGS`] that says where in the log it ends: a [`LogPlace`].
pub const LOG_PLACE: &str = "cofferdam-log-place";
/// How long an answer to [`LOGS`] waits for a line after a [`LogPlace`], in seconds.
pub const LOG_WAIT_S: u64 = 20;

/// A place in a service's log. It means something to the appliance that gave it, until it is started anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPlace {
    /// Which file; a full one gives way to the next.
    pub file: u64,
    /// Bytes of it that come before.
    pub offset: u64,
}

impl fmt::Display for LogPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.file, self.offset)
    }
}

impl FromStr for LogPlace {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let digits =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let place = text
            .split_once('-')
            .and_then(|(file, offset)| Some(Self { file: digits(file)?, offset: digits(offset)? }));
        place.ok_or_else(|| WordError::new("not a place in a log"))
    }
}

/// The query of [`LOGS`]: `service`, `tail`, `since` and `after`, each at most once, nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogsQuery<'a> {
    /// Which service's.
    pub service: &'a str,
    /// How many lines, at most [`MAX_TAIL`].
    pub tail: usize,
    /// Only those of the last so many seconds.
    pub since: Option<u64>,
    /// Only those after this place. The answer waits for one, [`LOG_WAIT_S`] at most.
    pub after: Option<LogPlace>,
}

impl<'a> LogsQuery<'a> {
    /// Reads a query; without `tail` it is [`TAIL`].
    ///
    /// # Errors
    /// What is wrong with the query, in words.
    pub fn parse(query: Option<&'a str>) -> Result<Self, &'static str> {
        let (mut service, mut tail, mut since, mut after) = (None, None, None, None);
        for pair in query.unwrap_or_default().split('&') {
            match pair.split_once('=') {
                Some(("service", name)) if service.is_none() => service = Some(name),
                Some(("tail", count)) if tail.is_none() => {
                    tail = Some(count.parse().map_err(|_| "`tail` is not a number")?);
                }
                Some(("since", seconds)) if since.is_none() => {
                    since = Some(seconds.parse().map_err(|_| "`since` is not a number of seconds")?);
                }
                Some(("after", place)) if after.is_none() => {
                    after = Some(place.parse().map_err(|_| "`after` is not a place in a log")?);
                }
                _ => return Err("the query is not `service`, `tail`, `since` and `after`, each once"),
            }
        }
        let service = service.ok_or("`service` is missing")?;
        Ok(Self { service, tail: tail.unwrap_or(TAIL).min(MAX_TAIL), since, after })
    }
}

impl fmt::Display for LogsQuery<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service={}&tail={}", self.service, self.tail)?;
        if let Some(since) = self.since {
            write!(f, "&since={since}")?;
        }
        self.after.map_or(Ok(()), |after| write!(f, "&after={after}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_on_logs_names_a_service_and_bounds_the_lines() {
        let query = LogsQuery { service: "web", tail: 7, since: None, after: None };
        assert_eq!(query.to_string(), "service=web&tail=7");
        assert_eq!(LogsQuery::parse(Some("service=web&tail=7")), Ok(query));
        assert_eq!(LogsQuery::parse(Some("tail=7&service=web")), Ok(query));
        assert_eq!(LogsQuery::parse(Some("service=web")).unwrap().tail, TAIL);
        assert_eq!(LogsQuery::parse(Some("service=web&tail=99999")).unwrap().tail, MAX_TAIL);
        let place = LogPlace { file: 12, offset: 3456 };
        let query = LogsQuery { since: Some(600), after: Some(place), ..query };
        assert_eq!(query.to_string(), "service=web&tail=7&since=600&after=12-3456");
        assert_eq!(LogsQuery::parse(Some(&query.to_string())), Ok(query));
        for wrong in [
            "",
            "tail=7",
            "service=web&tail=x",
            "service=a&service=b",
            "service=web&x=1",
            "service",
            "service=web&since=-1",
            "service=web&since=1&since=1",
            "service=web&after=1",
            "service=web&after=+1-1",
            "service=web&after=1-x",
            "service=web&after=-",
            "service=web&after=99999999999999999999-1",
        ] {
            assert!(LogsQuery::parse(Some(wrong)).is_err(), "{wrong}");
        }
        assert!(LogsQuery::parse(None).is_err());
    }

    #[test]
    fn an_order_has_one_path() {
        for order in [Order::Start, Order::Stop, Order::Restart] {
            let path = order_path("web_1", order);
            assert_eq!(order_of(&path), Some(("web_1", order)));
            for wrong in
                [format!("{path}/"), format!("{path}x"), format!("/{path}"), path.replace("web_1", "..")]
            {
                assert_eq!(order_of(&wrong), None, "{wrong}");
            }
        }
        assert_eq!(order_of("/v1/services/web/a/stop"), None);
        assert_eq!(order_of("/v1/services//stop"), None);
    }

    #[test]
    fn a_query_on_events_says_from_when_on() {
        for (query, text) in [
            (EventsQuery::All, ""),
            (EventsQuery::Since(7), "?since=7"),
            (EventsQuery::Last(600_000), "?last=600000"),
        ] {
            assert_eq!(query.to_string(), text);
            assert_eq!(EventsQuery::parse(text.strip_prefix('?')), Ok(query));
        }
        for wrong in
            ["since", "since=", "since=-1", "since=1&last=2", "last=1h", "x=1", "since=99999999999999999999"]
        {
            assert!(EventsQuery::parse(Some(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_secret_has_one_path() {
        let reference: SecretRef = "secret://prod/db/pass.word".parse().unwrap();
        assert_eq!(secret_path(&reference), "/v1/secrets/prod/db/pass.word");
    }
}
