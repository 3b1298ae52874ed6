//! The operators' interface, which `front` serves: what a request looks like, what its signature covers, and where what is.
//!
//! A request is bound to one TLS connection; the network-facing role relays it and can neither forge one nor read a secret in it.
//! Sealing and opening secrets is `cofferdam_attest::operator`'s: it needs cryptography that this crate does without.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::json::{self, JsonError};
use crate::{Base64Array, Base64Bytes, Fingerprint, SecretRef, WordError};

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
/// `GET`: which secrets there are. Below it, each secret is at [`secret_path`].
pub const SECRETS: &str = "/v1/secrets";
/// `POST` without a body: 204, and what else is asked for on this connection is asked for by the operator, also of the services
/// whose ports take operators. A service gets no signature to see, and bodies and tunnels need none.
pub const SIGN_IN: &str = "/v1/sign-in";

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

/// The query of [`LOGS`]: `service` and `tail`, each at most once, nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogsQuery<'a> {
    /// Which service's.
    pub service: &'a str,
    /// How many lines, at most [`MAX_TAIL`].
    pub tail: usize,
}

impl<'a> LogsQuery<'a> {
    /// Reads a query; without `tail` it is [`TAIL`].
    ///
    /// # Errors
    /// What is wrong with the query, in words.
    pub fn parse(query: Option<&'a str>) -> Result<Self, &'static str> {
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
        Ok(Self { service, tail: tail.unwrap_or(TAIL).min(MAX_TAIL) })
    }
}

impl fmt::Display for LogsQuery<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service={}&tail={}", self.service, self.tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_on_logs_names_a_service_and_bounds_the_lines() {
        let query = LogsQuery { service: "web", tail: 7 };
        assert_eq!(query.to_string(), "service=web&tail=7");
        assert_eq!(LogsQuery::parse(Some("service=web&tail=7")), Ok(query));
        assert_eq!(LogsQuery::parse(Some("tail=7&service=web")), Ok(query));
        assert_eq!(LogsQuery::parse(Some("service=web")).unwrap().tail, TAIL);
        assert_eq!(LogsQuery::parse(Some("service=web&tail=99999")).unwrap().tail, MAX_TAIL);
        for wrong in ["", "tail=7", "service=web&tail=x", "service=a&service=b", "service=web&x=1", "service"]
        {
            assert!(LogsQuery::parse(Some(wrong)).is_err(), "{wrong}");
        }
        assert!(LogsQuery::parse(None).is_err());
    }

    #[test]
    fn a_secret_has_one_path() {
        let reference: SecretRef = "secret://prod/db/pass.word".parse().unwrap();
        assert_eq!(secret_path(&reference), "/v1/secrets/prod/db/pass.word");
    }
}
