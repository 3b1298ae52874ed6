//! The claims: what the appliance says about itself, bound into the quote byte for byte.
//!
//! Nothing a client relies on is outside them. The exact bytes that were hashed travel in the evidence document;
//! they are never re-encoded before hashing, so no canonical form of JSON is needed.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha512};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::strict;

/// Largest accepted encoding in bytes; real claims are under 1 KiB.
pub const MAX_BYTES: usize = 16 * 1024;

/// Domain separator of [`report_data`]; a zero byte follows it.
const DOMAIN: &[u8] = b"cofferdam/claims/v1";

/// `report_data` of a quote: SHA-512 of the domain, a zero byte and the exact bytes of the claims.
pub fn report_data(claims: &[u8]) -> [u8; 64] {
    let mut hash = Sha512::new();
    hash.update(DOMAIN);
    hash.update([0]);
    hash.update(claims);
    hash.finalize().into()
}

/// The claims of an appliance at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// Format version: 1.
    pub version: u32,
    /// GitHub repository that is the appliance's identity, `owner/repo`.
    pub repository: String,
    /// Commit of the declaration, 40 lower-case hex digits.
    pub commit: String,
    /// Digest of the declaration's exact bytes, `sha256:<64 hex>`.
    pub declaration: String,
    /// Where clients dial, `host:port`.
    pub endpoint: String,
    /// SHA-256 of the TLS key's SubjectPublicKeyInfo DER, `sha256:<64 hex>`.
    pub tls_key: String,
    /// The vault's X25519 public key (32 bytes), base64.
    pub vault_key: String,
    /// When the claims were made, RFC 3339 in UTC with whole seconds, `2026-01-02T03:04:05Z`.
    pub issued_at: String,
    /// When they cease to hold, same shape.
    pub expires_at: String,
    /// Whether the appliance accepts no further declaration.
    pub sealed: bool,
    /// Epoch of the state that this boot opened; 0 when the state is fresh.
    pub state_epoch: u64,
    /// The relying party's nonce (16 to 64 bytes), base64; only on request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// RFC 9266 `tls-exporter` channel binding (32 bytes), base64; only on request on TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel_binding: Option<String>,
}

impl Claims {
    /// The bytes to hash and to carry.
    pub fn encode(&self) -> Vec<u8> {
        // A struct of strings, numbers and booleans always serialises; an empty vector could never pass `decode`.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Parses and checks every field's shape (not its truth).
    ///
    /// # Errors
    /// [`ClaimsError`] names the first field that is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, ClaimsError> {
        let claims: Self = strict::from_json(bytes, MAX_BYTES).map_err(ClaimsError::Json)?;
        claims.validate()?;
        Ok(claims)
    }

    /// `issued_at` in seconds since the Unix epoch.
    pub fn issued_unix(&self) -> Option<u64> {
        parse_time(&self.issued_at)
    }

    /// `expires_at` in seconds since the Unix epoch.
    pub fn expires_unix(&self) -> Option<u64> {
        parse_time(&self.expires_at)
    }

    /// The vault's public key as bytes.
    pub fn vault_key_bytes(&self) -> Option<[u8; 32]> {
        strict::unb64(&self.vault_key)?.try_into().ok()
    }

    fn validate(&self) -> Result<(), ClaimsError> {
        if self.version != 1 {
            return Err(ClaimsError::Version(self.version));
        }
        let field = |name, ok: bool| if ok { Ok(()) } else { Err(ClaimsError::Field { name }) };
        field("repository", Repository::parse(&self.repository).is_some())?;
        field("commit", strict::is_lower_hex(&self.commit, 40))?;
        field("declaration", strict::is_sha256(&self.declaration))?;
        field("endpoint", is_endpoint(&self.endpoint))?;
        field("tls_key", strict::is_sha256(&self.tls_key))?;
        field("vault_key", self.vault_key_bytes().is_some())?;
        field("issued_at", self.issued_unix().is_some())?;
        field("expires_at", self.expires_unix().is_some())?;
        let sized = |text: &Option<String>, range: std::ops::RangeInclusive<usize>| match text {
            None => true,
            Some(text) => strict::unb64(text).is_some_and(|bytes| range.contains(&bytes.len())),
        };
        field("nonce", sized(&self.nonce, 16..=64))?;
        field("channel_binding", sized(&self.channel_binding, 32..=32))
    }
}

/// A GitHub repository's name, bounded and free of path tricks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// User or organisation, 1 to 39 of `[A-Za-z0-9_-]`, not beginning with a dash.
    pub owner: String,
    /// Repository, 1 to 100 of `[A-Za-z0-9._-]`, neither `.` nor `..`.
    pub name: String,
}

impl Repository {
    /// Parses `owner/repo`; `None` when either part is not a name that GitHub could have given.
    pub fn parse(text: &str) -> Option<Self> {
        let (owner, name) = text.split_once('/')?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let owner_ok = (1..=39).contains(&owner.len()) && owner.bytes().all(plain) && !owner.starts_with('-');
        let name_ok = (1..=100).contains(&name.len())
            && name.bytes().all(|b| plain(b) || b == b'.')
            && name != "."
            && name != "..";
        (owner_ok && name_ok).then(|| Self { owner: owner.to_owned(), name: name.to_owned() })
    }
}

impl std::fmt::Display for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// Whether `text` is `host:port`: a DNS name, an IPv4 address or an IPv6 address in brackets, and a port from 1.
pub fn is_endpoint(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let port_ok = !port.starts_with('0')
        && port.len() <= 5
        && port.bytes().all(|b| b.is_ascii_digit())
        && port.parse::<u16>().is_ok();
    let host_ok = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            (1..=253).contains(&host.len())
                && host.split('.').all(|label| {
                    (1..=63).contains(&label.len())
                        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                        && !label.starts_with('-')
                        && !label.ends_with('-')
                })
        }
    };
    port_ok && host_ok
}

/// Seconds since the Unix epoch of an RFC 3339 time in UTC with whole seconds (`2026-01-02T03:04:05Z`, 20 bytes).
pub fn parse_time(text: &str) -> Option<u64> {
    if text.len() != 20 || !text.ends_with('Z') || !text.contains('T') {
        return None;
    }
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    u64::try_from(time.unix_timestamp()).ok()
}

/// The inverse of [`parse_time`]; `None` beyond the year 9999.
pub fn format_time(unix: u64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp(i64::try_from(unix).ok()?).ok()?;
    time.format(&Rfc3339).ok()
}

/// Why claims were refused.
#[derive(Debug, thiserror::Error)]
pub enum ClaimsError {
    /// Too large or not of the shape of [`Claims`].
    #[error("claims are not acceptable JSON")]
    Json(#[source] strict::JsonError),
    /// Another version of the format.
    #[error("claims of version {0}, only version 1 is known")]
    Version(u32),
    /// One field does not have its documented shape.
    #[error("claim `{name}` is malformed")]
    Field {
        /// Name of the field.
        name: &'static str,
    },
}
