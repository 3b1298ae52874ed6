//! The tag of a release attestation: `attest-<UTC yyyymmddThhmmssZ>-<first 8 hex of the claims digest>`.
//!
//! The claims digest is `report_data` (what the quote commits to), and the time is `issued_at`, so a tag already says which
//! claims its release carries: a client can tell a swapped document before it looks at the quote.

use std::fmt;

use crate::claims::{self, Claims};

/// A parsed tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Time of the claims, RFC 3339 as in [`Claims::issued_at`].
    pub issued_at: String,
    /// First 8 hex digits of the claims digest.
    pub digest: String,
}

/// First 8 hex digits of [`claims::report_data`].
pub fn digest_prefix(claims: &[u8]) -> String {
    let mut digest = hex::encode(claims::report_data(claims));
    digest.truncate(8);
    digest
}

impl Tag {
    /// The tag for the exact bytes of claims; `None` when they do not decode.
    pub fn for_claims(bytes: &[u8]) -> Option<Self> {
        let claims = Claims::decode(bytes).ok()?;
        Some(Self { issued_at: claims.issued_at, digest: digest_prefix(bytes) })
    }

    /// Parses a tag name; `None` when it is not a release attestation's.
    pub fn parse(name: &str) -> Option<Self> {
        let (time, digest) = name.strip_prefix("attest-")?.split_once('-')?;
        let hex = digest.len() == 8 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !hex || time.len() != 16 || !time.is_ascii() {
            return None;
        }
        let part = |range| time.get(range);
        let issued_at = format!(
            "{}-{}-{}T{}:{}:{}Z",
            part(0..4)?,
            part(4..6)?,
            part(6..8)?,
            part(9..11)?,
            part(11..13)?,
            part(13..15)?
        );
        let tag = Self { issued_at, digest: digest.to_owned() };
        (claims::parse_time(&tag.issued_at).is_some() && tag.to_string() == name).then_some(tag)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attest-{}-{}", self.issued_at.replace(['-', ':'], ""), self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_round_trip_and_nothing_else_parses() {
        let name = "attest-20260102T030405Z-0a1b2c3d";
        let tag = Tag::parse(name).unwrap();
        assert_eq!(tag.issued_at, "2026-01-02T03:04:05Z");
        assert_eq!(tag.to_string(), name);
        for bad in [
            "attest-20260102T030405Z-0A1b2c3d",
            "attest-20260102T030405Z-0a1b2c3",
            "attest-20260102T030405-0a1b2c3d",
            "attest-20261302T030405Z-0a1b2c3d",
            "attest-20260102T030405Z-0a1b2c3d-x",
            "attest-2026-01-02T03Z-0a1b2c3d",
            "v1.0.0",
            "attest-é0260102T03040Z-0a1b2c3d",
        ] {
            assert_eq!(Tag::parse(bad), None, "{bad}");
        }
    }
}
