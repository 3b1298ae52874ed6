//! What travels over the vault's socket: HTTP/1.1 with JSON bodies.
//!
//! Unknown fields, duplicate keys and trailing bytes are refused. Byte strings are base64, standard
//! alphabet with padding.

use serde::{Deserialize, Serialize};

use crate::Reference;

/// Longest time that a lease waits for missing secrets, in milliseconds. A client that wants to wait longer asks again.
pub const MAX_WAIT_MS: u64 = 30_000;
/// Most references in one lease.
pub const MAX_REFERENCES: usize = 64;
/// Largest request body in bytes: a sealed secret of 64 KiB is 117 KiB after two times base64, the rest is small.
pub const MAX_REQUEST: usize = 128 * 1024;
/// Largest reply in bytes: [`MAX_REFERENCES`] values of 64 KiB in base64, with their names.
pub const MAX_REPLY: usize = 6 * 1024 * 1024;

/// Reply of `GET /v1/key`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyReply {
    /// The X25519 public key (32 bytes) to which secrets are sealed: the claim `vault_key`.
    pub public_key: String,
}

/// Body of `POST /v1/lease`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// What to lease: all of it or nothing. At most [`MAX_REFERENCES`].
    pub references: Vec<Reference>,
    /// How long to wait for what is missing, in milliseconds, at most [`MAX_WAIT_MS`].
    #[serde(default)]
    pub wait_ms: u64,
}

/// Reply 409 of `POST /v1/lease`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MissingReply {
    /// The references that hold no secret yet, sorted.
    pub missing: Vec<Reference>,
}

/// Body of `POST /v1/operator`: one request of an operator, as the front received it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorRequest {
    /// The HTTP method, as sent.
    pub method: String,
    /// The request target (path and query), as sent and as signed.
    pub path: String,
    /// The body, as sent.
    pub body: String,
    /// RFC 9266 channel binding (32 bytes) of the connection on which the request came.
    pub channel_binding: String,
    /// Fingerprint of the operator's key, `SHA256:…` as OpenSSH prints it.
    pub key: String,
    /// Ed25519 signature (64 bytes) over `cofferdam_attest::operator::signing_input`.
    pub signature: String,
}

/// Reply 200 of `GET /v1/secrets` to an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretsReply {
    /// What is stored, sorted by reference; never a value or a part of one.
    pub secrets: Vec<SecretEntry>,
}

/// One stored secret; also the reply 200 of `PUT /v1/secrets/…`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretEntry {
    /// Its name.
    pub reference: Reference,
    /// Counts the puts since it was last absent, from 1.
    pub version: u64,
    /// RFC 3339 in UTC, seconds. The wall clock is the host's: for people only.
    pub updated_at: String,
}

/// Every other reply above 399.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorReply {
    /// What is wrong.
    pub error: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}
