//! Asking for evidence: a client asks `front` with a nonce in the query, `front` and `publish` ask the evidence role over its socket.
//!
//! `front` may have many clients answered by one quote: it asks over the root of a tree of their challenges (`cofferdam_attest::challenge`).
//!
//! The answer is the evidence document in each case; its format is `cofferdam_attest::evidence`'s.

use serde::{Deserialize, Serialize};

use crate::json::{self, JsonError};
use crate::{Base64Array, Base64Bytes, base64};

use super::operator::PREFIX;

/// Where the evidence role takes requests (`POST`).
pub const ROUTE: &str = "/v1/evidence";

/// Where `front` answers anybody, below [`PREFIX`] (`GET`).
pub const PATH: &str = "/evidence";

/// Largest evidence document in bytes.
pub const MAX_DOCUMENT: usize = 256 * 1024;

/// Media type of the evidence document, as carried in RA-TLS certificates and HTTP.
pub const MEDIA_TYPE: &str = "application/vnd.cofferdam.evidence+json";

/// Largest request to the evidence role in bytes: two short base64 texts.
pub const MAX_REQUEST: usize = 1024;

/// RFC 9266 label of the TLS exporter; the context is empty and the length 32 bytes.
pub const CHANNEL_BINDING_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// What a relying party sends so that the evidence is fresh: 16 to 64 random bytes.
pub type Nonce = Base64Bytes<16, 64>;

/// RFC 9266 `tls-exporter` binding of one connection.
pub type ChannelBinding = Base64Array<32>;

/// The vault's X25519 public key, to which secrets are sealed.
pub type VaultKey = Base64Array<32>;

/// Body of `POST` [`ROUTE`]: what a caller may choose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceRequest {
    /// The relying party's nonce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Nonce>,
    /// The binding of the relying party's connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel_binding: Option<ChannelBinding>,
    /// Root of the challenges of many relying parties, instead of those two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenges: Option<Base64Array<32>>,
}

impl EvidenceRequest {
    /// Reads a request's body.
    ///
    /// # Errors
    /// It is too large or not of this shape.
    pub fn parse(body: &[u8]) -> Result<Self, JsonError> {
        json::from_json(body, MAX_REQUEST)
    }
}

/// The path and query with which a client asks `front` for fresh evidence.
pub fn target(nonce: &Nonce) -> String {
    format!("{PREFIX}{PATH}?nonce={}", base64::encode_url(nonce.as_bytes()))
}

/// The nonce in the query of `GET` [`PATH`]: `nonce=` and base64url, padded or not; `None` without a query.
///
/// # Errors
/// What is wrong with the query, in words.
pub fn parse_query(query: Option<&str>) -> Result<Option<Nonce>, &'static str> {
    let Some(query) = query else { return Ok(None) };
    let value = query.strip_prefix("nonce=").ok_or("the query is not `nonce=…`")?;
    // 64 bytes are 88 characters with padding, which a client may have percent-encoded.
    if value.len() > 96 {
        return Err("the nonce is longer than 64 bytes");
    }
    let value = value.replace("%3D", "=").replace("%3d", "=");
    let nonce = base64::decode_url(value).ok_or("the nonce is not base64url")?;
    Nonce::new(nonce).map(Some).map_err(|_| "the nonce is not 16 to 64 bytes long")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_one_nonce_or_nothing() {
        let zeros = Nonce::new(vec![0; 16]).unwrap();
        assert_eq!(parse_query(None), Ok(None));
        for query in [
            "nonce=AAAAAAAAAAAAAAAAAAAAAA",
            "nonce=AAAAAAAAAAAAAAAAAAAAAA==",
            "nonce=AAAAAAAAAAAAAAAAAAAAAA%3D%3D",
        ] {
            assert_eq!(parse_query(Some(query)), Ok(Some(zeros.clone())), "{query}");
        }
        assert_eq!(target(&zeros), "/.well-known/cofferdam/evidence?nonce=AAAAAAAAAAAAAAAAAAAAAA");
        let long = format!("nonce={}", "A".repeat(87));
        for bad in [
            "",
            "nonce",
            "nonce=",
            "nonce=AAAA",
            "nonce=+/+/AAAAAAAAAAAAAAAAAA",
            "nonce=AAAAAAAAAAAAAAAAAAAAAA&nonce=AAAAAAAAAAAAAAAAAAAAAA",
            "x=1&nonce=AAAAAAAAAAAAAAAAAAAAAA",
            long.as_str(),
        ] {
            assert!(parse_query(Some(bad)).is_err(), "{bad}");
        }
    }
}
