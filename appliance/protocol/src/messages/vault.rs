//! What travels over the vault's socket: HTTP/1.1 with JSON bodies.
//!
//! Unknown fields, duplicate keys and trailing bytes are refused. Byte strings are base64, standard alphabet with padding.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::evidence::{ChannelBinding, VaultKey};
use super::operator::{MAX_BODY, Order, Signature};
use crate::{Base64Bytes, Digest, Fingerprint, SecretRef, SecretValue, Timestamp, base64, json};

/// `GET`: the vault's public key.
pub const KEY: &str = "/v1/key";
/// `POST`: a lease of secrets.
pub const LEASE: &str = "/v1/lease";
/// `POST`: waits until secrets are not what they were, with a [`ChangedRequest`].
pub const CHANGED: &str = "/v1/changed";
/// `POST`: a request of an operator, relayed.
pub const OPERATOR: &str = "/v1/operator";

/// `POST`, by `publish` alone: an [`Anchored`]. The reply is 204.
pub const ANCHORED: &str = "/v1/anchored";

/// `POST`, by the shims: the next order for the peer's own service. 200 with a [`GivenOrder`], or 204 when the wait is over without one.
pub const ORDERS: &str = "/v1/orders";

/// Longest time that a shim waits for an order, in milliseconds.
pub const MAX_ORDER_WAIT_MS: u64 = 300_000;

/// Longest time that a lease waits for missing secrets, in milliseconds. A client that wants to wait longer asks again.
pub const MAX_WAIT_MS: u64 = 30_000;
/// Longest time that [`CHANGED`] waits, in milliseconds: less than a connection may last.
pub const MAX_CHANGE_WAIT_MS: u64 = 90_000;
/// Most references in one lease.
pub const MAX_REFERENCES: usize = 64;
/// Largest request body in bytes: a sealed secret of 64 KiB is 117 KiB after two times base64, the rest is small.
pub const MAX_REQUEST: usize = 128 * 1024;
/// Largest reply to a lease in bytes: [`MAX_REFERENCES`] values of 64 KiB in base64, with their names.
pub const MAX_REPLY: usize = 6 * 1024 * 1024;
/// Largest reply to an operator in bytes: a listing of references.
pub const MAX_OPERATOR_REPLY: usize = 1024 * 1024;

/// Reply of `GET` [`KEY`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyReply {
    /// The key to which secrets are sealed: the claim `vault_key`.
    pub public_key: VaultKey,
}

/// Body of `POST` [`ANCHORED`]: an anchor of the state is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchored {
    /// Its number.
    pub number: NonZeroU64,
}

/// Body of `POST` [`ORDERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrdersRequest {
    /// The last order that is known; 0 when none is.
    pub after: u32,
    /// How long to wait for another one, in milliseconds, at most [`MAX_ORDER_WAIT_MS`].
    pub wait_ms: u64,
}

/// An operator's order for a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GivenOrder {
    /// Tells one order from another; never 0. Services that restart together hear of it under one number.
    pub id: u32,
    /// What is wanted.
    pub order: Order,
    /// The services that it depends on and that are restarted before it; empty unless it restarts because they do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
}

/// Body of `POST` [`LEASE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// What to lease: all of it or nothing. At most [`MAX_REFERENCES`].
    pub references: Vec<SecretRef>,
    /// How long to wait for what is missing, in milliseconds, at most [`MAX_WAIT_MS`].
    #[serde(default)]
    pub wait_ms: u64,
}

/// Reply 200 of `POST` [`LEASE`], `{"values":{"secret://…":"base64",…}}`. The values stay in the buffer that the reply came in.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseReply<'a> {
    #[serde(borrow, deserialize_with = "json::unique_map")]
    values: BTreeMap<SecretRef, &'a str>,
}

/// A body that is not the reply to the lease that was asked for. It says nothing about the body, which may hold secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the lease that was asked for")]
pub struct LeaseReplyError;

impl LeaseReply<'_> {
    /// Reads the values of exactly these references. No copy of a value is made before it is decoded, and that one is cleared
    /// when dropped; clearing `body` is for the caller.
    ///
    /// # Errors
    /// [`LeaseReplyError`].
    pub fn read(
        body: &[u8],
        references: &[SecretRef],
    ) -> Result<BTreeMap<SecretRef, SecretValue>, LeaseReplyError> {
        let reply: LeaseReply<'_> = serde_json::from_slice(body).map_err(|_| LeaseReplyError)?;
        let mut values = BTreeMap::new();
        for reference in references {
            let text = reply.values.get(reference).ok_or(LeaseReplyError)?;
            let value = base64::decode(text).map(Zeroizing::new).ok_or(LeaseReplyError)?;
            values.insert(reference.clone(), SecretValue::new(reference.clone(), value));
        }
        if values.len() == reply.values.len() { Ok(values) } else { Err(LeaseReplyError) }
    }

    /// Writes a reply in one buffer of the right size from the start, which is cleared when dropped; a serializer would leave
    /// copies of the values behind as it grows. `None` when the length is beyond what memory can hold.
    pub fn write(values: &[SecretValue]) -> Option<Zeroizing<Vec<u8>>> {
        const OPEN: &[u8] = b"{\"values\":{";
        const CLOSE: &[u8] = b"}}";
        let mut length = OPEN.len().checked_add(CLOSE.len())?;
        for value in values {
            // Two pairs of quotes, a colon, a comma.
            let name = value.reference().as_str().len().checked_add(6)?;
            length = length.checked_add(name)?.checked_add(base64::encoded_len(value.expose().len())?)?;
        }
        let mut buffer = Zeroizing::new(Vec::with_capacity(length));
        buffer.extend_from_slice(OPEN);
        for (position, value) in values.iter().enumerate() {
            if position > 0 {
                buffer.push(b',');
            }
            // A reference holds nothing that JSON escapes.
            buffer.push(b'"');
            buffer.extend_from_slice(value.reference().as_str().as_bytes());
            buffer.extend_from_slice(b"\":\"");
            let start = buffer.len();
            buffer.resize(start.checked_add(base64::encoded_len(value.expose().len())?)?, 0);
            base64::encode_into(value.expose(), buffer.get_mut(start..)?)?;
            buffer.push(b'"');
        }
        buffer.extend_from_slice(CLOSE);
        Some(buffer)
    }
}

/// Body of `POST` [`CHANGED`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangedRequest {
    /// Which secrets: 1 to [`MAX_REFERENCES`], all granted to whoever asks.
    pub references: Vec<SecretRef>,
    /// What the last answer said of the same references. Without it the answer comes at once.
    pub known: Option<Digest>,
    /// How long to wait for another answer than that, in milliseconds, at most [`MAX_CHANGE_WAIT_MS`].
    pub wait_ms: u64,
}

/// Reply 200 of `POST` [`CHANGED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangedReply {
    /// Another one after each put and each removal of one of them, of the same value too. It says nothing about values.
    pub revision: Digest,
}

/// Reply 409 of `POST` [`LEASE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MissingReply {
    /// The references that hold no secret yet, sorted.
    pub missing: Vec<SecretRef>,
}

/// Body of `POST` [`OPERATOR`]: one request of an operator, as the front received it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorRequest {
    /// The HTTP method, as sent and as signed: the vault judges it.
    pub method: String,
    /// The request target (path and query), as sent and as signed: the vault judges it.
    pub path: String,
    /// The body, as sent.
    pub body: Base64Bytes<0, MAX_BODY>,
    /// Binding of the connection on which the request came.
    pub channel_binding: ChannelBinding,
    /// Which key signed.
    pub key: Fingerprint,
    /// Its signature of [`super::operator::signing_input`].
    pub signature: Signature,
}

/// Reply 200 of `GET` [`super::operator::SECRETS`] to an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretsReply {
    /// What is stored, sorted by reference; never a value or a part of one.
    pub secrets: Vec<SecretEntry>,
}

/// One stored secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretEntry {
    /// Its name.
    pub reference: SecretRef,
    /// Counts the puts since it was last absent, from 1.
    pub version: u64,
    /// When it was put. The wall clock is the host's: for people only.
    pub updated_at: Timestamp,
}

/// Reply 200 when a secret is put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredReply {
    /// What is stored now.
    pub secret: SecretEntry,
    /// The services that are given it, in the order of the declaration.
    pub services: Vec<Affected>,
}

/// A service that is given a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Affected {
    /// Its name.
    pub service: String,
    /// What happens to it when the secret changes while it runs, as a declaration says it: `nothing`, `notify`, `signal HUP` or `restart`.
    pub on_change: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_read_as_it_was_written_and_only_as_it_was_asked_for() {
        let [one, two]: [SecretRef; 2] =
            ["secret://a/b/one", "secret://a/b/two"].map(|text| text.parse().unwrap());
        let values =
            [SecretValue::new(one.clone(), b"first".to_vec()), SecretValue::new(two.clone(), vec![0; 1000])];
        let body = LeaseReply::write(&values).unwrap();
        assert_eq!(body.capacity(), body.len() + 1, "one buffer from the start; the last value has no comma");
        let read = LeaseReply::read(&body, &[one.clone(), two.clone()]).unwrap();
        assert_eq!((read[&one].expose(), read[&two].expose()), (&b"first"[..], &[0; 1000][..]));
        assert!(LeaseReply::read(&body, std::slice::from_ref(&one)).is_err(), "more than was asked for");
        let three = "secret://a/b/three".parse().unwrap();
        assert!(LeaseReply::read(&body, &[one, two, three]).is_err(), "less than was asked for");
    }
}
