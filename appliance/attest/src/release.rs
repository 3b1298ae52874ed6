//! The tags of an appliance's releases.
//!
//! An anchor of its state: `state-<seven digits>`, a number that rises by one. Its release holds evidence whose claims say the same number
//! ([`Continuity::anchor`](cofferdam_protocol::state::Continuity)), so that nobody moves it to another.
//!
//! A release attestation: `attest-<UTC yyyymmddThhmmssZ>-<first 8 hex of the claims digest>`.
//!
//! The claims digest is `report_data` (what the quote commits to), and the time is `issued_at`, so a tag already says which
//! claims its release carries: a client can tell a swapped document before it looks at the quote.

use std::fmt;
use std::num::NonZeroU64;

use cofferdam_protocol::state::MAX_ANCHOR;
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

/// What an anchor's tag begins with.
const ANCHOR_PREFIX: &str = "state-";
/// How many digits follow it.
const ANCHOR_DIGITS: usize = 7;

/// The tag of an anchor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AnchorTag(NonZeroU64);

impl AnchorTag {
    /// Of this number; `None` when it has more than seven digits.
    pub fn new(number: NonZeroU64) -> Option<Self> {
        (number.get() <= MAX_ANCHOR).then_some(Self(number))
    }

    /// Parses a tag name; `None` when it is not an anchor's.
    pub fn parse(name: &str) -> Option<Self> {
        let digits = name.strip_prefix(ANCHOR_PREFIX)?;
        let plain = digits.len() == ANCHOR_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
        Some(Self(digits.parse().ok().filter(|_| plain)?))
    }

    /// Its number.
    pub fn number(self) -> NonZeroU64 {
        self.0
    }
}

impl fmt::Display for AnchorTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ANCHOR_PREFIX}{:0ANCHOR_DIGITS$}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_of_an_anchor_has_seven_digits_and_no_other_number() {
        for (number, name) in [(1, "state-0000001"), (123, "state-0000123"), (9_999_999, "state-9999999")] {
            let tag = AnchorTag::parse(name).unwrap();
            assert_eq!((tag.number().get(), tag.to_string().as_str()), (number, name));
            assert_eq!(AnchorTag::new(number.try_into().unwrap()), Some(tag));
        }
        assert_eq!(AnchorTag::new(10_000_000.try_into().unwrap()), None);
        for bad in [
            "state-0000000",
            "state-1",
            "state-000123",
            "state-00000123",
            "state-10000000",
            "state-99999999999999999999999",
            "state-+000123",
            "state--000123",
            "state-0000 23",
            "state-0x00123",
            "state-000012\u{665}",
            "State-0000123",
            "state-0000123-x",
            "state-",
            "attest-0000123",
        ] {
            assert_eq!(AnchorTag::parse(bad), None, "{bad}");
        }
    }

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
