//! The certificate that browsers accept, beside the attested one: what is claimed of it, what `publish` tells `front` about it, and what
//! the vault keeps of it.

use serde::{Deserialize, Serialize};

use crate::json::{self, JsonError};
use crate::{Digest, HttpsUrl, Thumbprint, Timestamp};

/// `GET` and `PUT` at the vault, by `publish` alone: a [`KeptCertificate`]. 404 while there is none; the answer to `PUT` is 204.
pub const CERTIFICATE: &str = "/v1/certificate";

/// ALPN's name of the protocol in which a certificate authority asks for proof of a name (RFC 8737 §6.2).
pub const ACME_TLS: &[u8] = b"acme-tls/1";

/// ALPN's name by which a client asks for the attested certificate, whatever name it dials.
pub const ATTESTED: &[u8] = b"cofferdam-attested";

/// The header that says the digest of the attested key's SubjectPublicKeyInfo, in every answer of an appliance with such a certificate.
pub const ATTESTED_KEY: &str = "cofferdam-attested-key";

/// Largest chain of certificates in bytes of PEM.
pub const MAX_CHAIN: usize = 48 * 1024;

/// Bound on each of the messages in bytes: a chain, whose line feeds JSON writes in two bytes, and little else.
pub const MAX_BYTES: usize = 64 * 1024;

/// Most names in one certificate.
pub const MAX_NAMES: usize = 8;

/// The claim `certificate`: the key that browsers are shown, and the account that its certificates are asked for with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateClaim {
    /// Digest of the key's SubjectPublicKeyInfo DER. It outlives each certificate.
    pub key: Digest,
    /// The directory of the certificate authority (RFC 8555 §7.1.1).
    pub directory: HttpsUrl,
    /// Thumbprint of the account's key.
    pub account_key: Thumbprint,
    /// The account: what a CAA record names as `accounturi` (RFC 8657 §3). Absent while the authority has not said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<HttpsUrl>,
}

/// What the vault keeps, so that a boot that opens its state again asks for nothing that it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptCertificate {
    /// The authority that it is of.
    pub directory: HttpsUrl,
    /// The account there.
    pub account: HttpsUrl,
    /// Certificates in PEM, the appliance's own first.
    pub chain: String,
}

impl KeptCertificate {
    /// Reads it.
    ///
    /// # Errors
    /// It is too large or not of this shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        json::from_json(bytes, MAX_BYTES)
    }
}

/// `publish/challenges.json`: what a certificate authority is to be answered. Only there while an order is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenges {
    /// One for each name.
    pub challenges: Vec<Challenge>,
    /// When they are over, whatever has become of the order.
    pub until: Timestamp,
}

/// What shows that a name is the account's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// The name, in lower case.
    pub name: String,
    /// SHA-256 of the key authorization (RFC 8737 §3).
    pub authorization: Digest,
}

impl Challenges {
    /// Reads the file.
    ///
    /// # Errors
    /// It is too large or not of this shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        json::from_json(bytes, MAX_BYTES)
    }
}

/// `publish/certificate.json`: what becomes of the certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateStatus {
    /// What is being done.
    pub state: CertificateState,
    /// Why, or what for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The names that it is for.
    pub names: Vec<String>,
    /// The key, and the account.
    pub claim: CertificateClaim,
    /// Since when the state is what it is.
    pub at: Timestamp,
    /// Until when the certificate that browsers are shown is valid; absent while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

impl CertificateStatus {
    /// Reads the file.
    ///
    /// # Errors
    /// It is too large or not of this shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        json::from_json(bytes, MAX_BYTES)
    }
}

/// What is being done about the certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CertificateState {
    /// One is being ordered.
    Ordering,
    /// There is one, and it is not yet due for renewal.
    Valid,
    /// The last attempt failed; there will be another.
    Failed,
}

impl CertificateState {
    /// The word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ordering => "ordering",
            Self::Valid => "valid",
            Self::Failed => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_chain_fits_into_what_the_vault_keeps() {
        let url: HttpsUrl = format!("https://a.example/{}", "a".repeat(900)).parse().unwrap();
        let line = format!("{}\n", "A".repeat(64));
        let chain = line.repeat(MAX_CHAIN / line.len());
        let kept = KeptCertificate { directory: url.clone(), account: url, chain };
        assert_eq!(KeptCertificate::parse(&json::to_vec(&kept).unwrap()).unwrap(), kept);
    }
}
