//! The tag of a release attestation: `attest-<UTC yyyymmddThhmmssZ>-<first 8 hex of the claims digest>`.
//!
//! The claims digest is `report_data` (what the quote commits to), and the time is `issued_at`, so a tag already says which
//! claims its release carries: a client can tell a swapped document before it looks at the quote.

use std::fmt;

use cofferdam_protocol::{Timestamp, hex};

use crate::claims::{self, Claims};

/// What a tag begins with.
const PREFIX: &str = "attest-";

/// A parsed tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// Time of the claims, [`Claims::issued_at`].
    pub issued_at: Timestamp,
    /// Beginning of the claims digest.
    pub digest: DigestPrefix,
}

/// The first 4 bytes of [`claims::report_data`], in text 8 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DigestPrefix(pub [u8; 4]);

impl DigestPrefix {
    /// That of the exact bytes of claims.
    pub fn of(claims: &[u8]) -> Self {
        let [a, b, c, d, ..] = claims::report_data(claims);
        Self([a, b, c, d])
    }
}

impl fmt::Display for DigestPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for DigestPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Tag {
    /// The tag for the exact bytes of claims; `None` when they do not decode.
    pub fn for_claims(bytes: &[u8]) -> Option<Self> {
        let claims = Claims::decode(bytes).ok()?;
        Some(Self { issued_at: claims.issued_at, digest: DigestPrefix::of(bytes) })
    }

    /// Parses a tag name; `None` when it is not a release attestation's.
    pub fn parse(name: &str) -> Option<Self> {
        let (time, digest) = name.strip_prefix(PREFIX)?.split_once('-')?;
        Some(Self {
            issued_at: Timestamp::from_compact(time)?,
            digest: DigestPrefix(hex::decode_array(digest)?),
        })
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}", self.issued_at.compact(), self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_round_trip_and_nothing_else_parses() {
        let name = "attest-20260102T030405Z-0a1b2c3d";
        let tag = Tag::parse(name).unwrap();
        assert_eq!(tag.issued_at.to_string(), "2026-01-02T03:04:05Z");
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
