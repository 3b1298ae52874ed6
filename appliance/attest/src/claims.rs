//! The claims: what the appliance says about itself, bound into the quote byte for byte.
//!
//! Nothing a client relies on is outside them. The exact bytes that were hashed travel in the evidence document;
//! they are never re-encoded before hashing, so no canonical form of JSON is needed.

use std::str::FromStr;

use cofferdam_protocol::certificate::CertificateClaim;
use cofferdam_protocol::evidence::{ChannelBinding, Nonce, VaultKey};
use cofferdam_protocol::json::{self, JsonError};
use cofferdam_protocol::state::Continuity;
use cofferdam_protocol::{Commit, Digest, Endpoint, Repository, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha512};

use crate::challenge::Root;

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Claims {
    /// Format version: 1.
    pub version: u32,
    /// GitHub repository that is the appliance's identity.
    pub repository: Repository,
    /// Commit of the declaration.
    pub commit: Commit,
    /// Digest of the declaration's exact bytes.
    pub declaration: Digest,
    /// Where clients dial.
    pub endpoint: Endpoint,
    /// Digest of the TLS key's SubjectPublicKeyInfo DER.
    pub tls_key: Digest,
    /// The vault's X25519 public key.
    pub vault_key: VaultKey,
    /// When the claims were made.
    pub issued_at: Timestamp,
    /// When they cease to hold.
    pub expires_at: Timestamp,
    /// Whether the appliance accepts no further declaration.
    pub sealed: bool,
    /// Number of the store's commit when this boot opened the state on the disk, or made it; 0 when the state is in memory or not open.
    pub state_epoch: u64,
    /// What there is against older copies of the state; only of one on the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_continuity: Option<Continuity>,
    /// The key that browsers are shown, and the account that its certificates are asked for with; where the declaration has names for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateClaim>,
    /// The relying party's nonce; only on request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Nonce>,
    /// RFC 9266 `tls-exporter` channel binding; only on request on TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel_binding: Option<ChannelBinding>,
    /// Root of the challenges of many relying parties ([`crate::challenge`]), instead of the nonce and the binding of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub challenges: Option<Root>,
}

impl Claims {
    /// The bytes to hash and to carry.
    ///
    /// # Errors
    /// They cannot be written: nothing is hashed then.
    pub fn encode(&self) -> Result<Vec<u8>, JsonError> {
        json::to_vec(self)
    }

    /// Parses and checks every field's shape (not its truth).
    ///
    /// # Errors
    /// [`ClaimsError`] names the first field that is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, ClaimsError> {
        let wire: Wire = json::from_json(bytes, MAX_BYTES).map_err(ClaimsError::Json)?;
        if wire.version != 1 {
            return Err(ClaimsError::Version(wire.version));
        }
        if wire.challenges.is_some() && (wire.nonce.is_some() || wire.channel_binding.is_some()) {
            return Err(ClaimsError::Field { name: "challenges" });
        }
        Ok(Self {
            version: wire.version,
            repository: field("repository", &wire.repository)?,
            commit: field("commit", &wire.commit)?,
            declaration: field("declaration", &wire.declaration)?,
            endpoint: field("endpoint", &wire.endpoint)?,
            tls_key: field("tls_key", &wire.tls_key)?,
            vault_key: field("vault_key", &wire.vault_key)?,
            issued_at: field("issued_at", &wire.issued_at)?,
            expires_at: field("expires_at", &wire.expires_at)?,
            sealed: wire.sealed,
            state_epoch: wire.state_epoch,
            state_continuity: wire.state_continuity,
            certificate: wire.certificate,
            nonce: wire.nonce.map(|text| field("nonce", &text)).transpose()?,
            channel_binding: wire.channel_binding.map(|text| field("channel_binding", &text)).transpose()?,
            challenges: wire.challenges.map(|text| field("challenges", &text)).transpose()?,
        })
    }
}

/// The JSON shape of the claims, before each field is parsed: so that an error can name the field.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: u32,
    repository: String,
    commit: String,
    declaration: String,
    endpoint: String,
    tls_key: String,
    vault_key: String,
    issued_at: String,
    expires_at: String,
    sealed: bool,
    state_epoch: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state_continuity: Option<Continuity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate: Option<CertificateClaim>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    channel_binding: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    challenges: Option<String>,
}

fn field<T: FromStr>(name: &'static str, text: &str) -> Result<T, ClaimsError> {
    text.parse().map_err(|_| ClaimsError::Field { name })
}

/// Why claims were refused.
#[derive(Debug, thiserror::Error)]
pub enum ClaimsError {
    /// Too large or not of the shape of [`Claims`].
    #[error("claims are not acceptable JSON")]
    Json(#[source] JsonError),
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
