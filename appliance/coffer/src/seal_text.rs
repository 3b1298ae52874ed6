//! The recovery key of a state, and a share of its key, as text: what a person prints, keeps and types again.
//!
//! ```text
//! cofferdam-recovery-1-KEY-CHECK
//! cofferdam-share-1-SET-INDEX-SHARE-CHECK
//! ```
//!
//! KEY and SHARE are 32 bytes and SET is 8, in lower-case hex; INDEX is a decimal number from 1. CHECK is the first four bytes of the
//! SHA-256 of all that stands before its dash. So a slip of the pen is found here, before anything is sent, and what is wrong is said
//! without a word of what was read. Upper case and white space around the text are forgiven. Both kinds are cleared when dropped and
//! neither prints.

use cofferdam_attest::shares::{KEY, Share};
use cofferdam_protocol::unseal::MAX_SHARES;
use cofferdam_protocol::{Base64Array, Digest, hex, parse_decimal};
use zeroize::Zeroizing;

const RECOVERY: &str = "cofferdam-recovery-1-";
const SHARE: &str = "cofferdam-share-1-";
/// Bytes of the checksum.
const CHECK: usize = 4;
/// Longest text, with room for white space around it.
pub(crate) const MAX_TEXT: usize = 256;

/// A recovery key.
pub(crate) type Recovery = Zeroizing<[u8; KEY]>;
/// The division that a share belongs to.
pub(crate) type Set = Base64Array<8>;

/// Why a text is no such key. It says nothing about what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealTextError {
    /// A share where a recovery key is wanted.
    #[error("this is a share, and a recovery key is wanted")]
    IsShare,
    /// The other way round.
    #[error("this is a recovery key, and a share is wanted")]
    IsRecovery,
    /// The beginning of a kind, and another checksum.
    #[error("there is a mistake in it: its checksum is another one")]
    Check,
    /// Neither.
    #[error("not a text of the form {0}")]
    Shape(&'static str),
}

/// The text of a recovery key.
pub(crate) fn recovery(key: &[u8; KEY]) -> Zeroizing<String> {
    let digits = Zeroizing::new(hex::encode(key));
    checked(&[RECOVERY, &digits])
}

/// The text of a share.
pub(crate) fn share(set: &Set, share: &Share) -> Zeroizing<String> {
    let digits = Zeroizing::new(hex::encode(*share.bytes));
    checked(&[SHARE, &hex::encode(set.as_bytes()), "-", &share.index.to_string(), "-", &digits])
}

/// Reads a recovery key.
///
/// # Errors
/// [`SealTextError`].
pub(crate) fn parse_recovery(text: &str) -> Result<Recovery, SealTextError> {
    let text = normal(text);
    if text.starts_with(SHARE) {
        return Err(SealTextError::IsShare);
    }
    let shape = SealTextError::Shape("cofferdam-recovery-1-…");
    let digits = body(&text, RECOVERY, shape)?;
    hex::decode_array(digits).map(Zeroizing::new).ok_or(shape)
}

/// Reads a share.
///
/// # Errors
/// [`SealTextError`].
pub(crate) fn parse_share(text: &str) -> Result<(Set, Share), SealTextError> {
    let text = normal(text);
    if text.starts_with(RECOVERY) {
        return Err(SealTextError::IsRecovery);
    }
    let shape = SealTextError::Shape("cofferdam-share-1-…");
    let body = body(&text, SHARE, shape)?;
    let read = || {
        let mut parts = body.split('-');
        let (set, index, digits) = (parts.next()?, parts.next()?, parts.next()?);
        let index =
            u8::try_from(parse_decimal(index)?).ok().filter(|index| (1..=MAX_SHARES).contains(index))?;
        let set: [u8; 8] = hex::decode_array(set)?;
        let bytes = Zeroizing::new(hex::decode_array(digits)?);
        parts.next().is_none().then_some((set.into(), Share { index, bytes }))
    };
    read().ok_or(shape)
}

/// All parts and their checksum; of full length from the start, so that growing leaves no copy behind.
fn checked(parts: &[&str]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_TEXT));
    parts.iter().for_each(|part| text.push_str(part));
    let check = check(&text);
    text.push('-');
    text.push_str(&check);
    text
}

fn check(text: &str) -> String {
    Digest::of(text).hex().chars().take(2 * CHECK).collect()
}

fn normal(text: &str) -> Zeroizing<String> {
    Zeroizing::new(text.trim().to_ascii_lowercase())
}

/// What stands between the beginning of its kind and a checksum that is right.
fn body<'t>(text: &'t str, kind: &str, shape: SealTextError) -> Result<&'t str, SealTextError> {
    let rest = text.strip_prefix(kind).ok_or(shape)?;
    let (body, found) = rest.rsplit_once('-').ok_or(shape)?;
    let whole = text.strip_suffix(found).and_then(|text| text.strip_suffix('-')).ok_or(shape)?;
    if check(whole) == found { Ok(body) } else { Err(SealTextError::Check) }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../policy/vectors/seal-keys.json");

    fn vectors() -> Value {
        serde_json::from_slice(&std::fs::read(VECTORS).unwrap()).unwrap()
    }

    #[test]
    fn the_texts_are_the_frozen_ones() {
        let vectors = vectors();
        let of = |name: &str| vectors[name].as_array().unwrap().clone();
        let text = |case: &Value, name: &str| case[name].as_str().unwrap().to_owned();
        for case in of("recovery") {
            let key: [u8; 32] = hex::decode_array(&text(&case, "key")).unwrap();
            assert_eq!(*recovery(&key), text(&case, "text"));
            assert_eq!(*parse_recovery(&text(&case, "text")).unwrap(), key);
        }
        for case in of("shares") {
            let set: [u8; 8] = hex::decode_array(&text(&case, "set")).unwrap();
            let bytes = Zeroizing::new(hex::decode_array(&text(&case, "share")).unwrap());
            let index = case["index"].as_u64().unwrap().try_into().unwrap();
            let made = Share { index, bytes };
            assert_eq!(*share(&set.into(), &made), text(&case, "text"));
            let (read_set, read) = parse_share(&text(&case, "text")).unwrap();
            assert_eq!((read_set.as_bytes(), read.index), (&set, index));
            assert_eq!(*read.bytes, *made.bytes);
        }
        let refused = of("refused");
        assert!(refused.len() >= 10);
        for case in refused {
            let text = case.as_str().unwrap();
            assert!(parse_recovery(text).is_err() && parse_share(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_wrong_character_is_found_and_the_other_kind_is_named() {
        let key = recovery(&[7; 32]);
        let set = [1, 2, 3, 4, 5, 6, 7, 8].into();
        let one = share(&set, &Share { index: 12, bytes: Zeroizing::new([9; 32]) });
        assert_eq!(parse_recovery(&one).unwrap_err(), SealTextError::IsShare);
        assert_eq!(parse_share(&key).unwrap_err(), SealTextError::IsRecovery);
        for at in 0..key.len() {
            let mut wrong = key.as_bytes().to_vec();
            wrong[at] = if wrong[at] == b'0' { b'1' } else { b'0' };
            assert!(parse_recovery(std::str::from_utf8(&wrong).unwrap()).is_err(), "{at}");
        }
        for at in 0..one.len() {
            let mut wrong = one.as_bytes().to_vec();
            wrong[at] = if wrong[at] == b'0' { b'1' } else { b'0' };
            assert!(parse_share(std::str::from_utf8(&wrong).unwrap()).is_err(), "{at}");
        }
        let digits = RECOVERY.len() + 3;
        let mut swapped = key.as_bytes().to_vec();
        swapped[digits] = b'f';
        assert_eq!(parse_recovery(std::str::from_utf8(&swapped).unwrap()).unwrap_err(), SealTextError::Check);
        assert!(parse_recovery(&format!("  {}\n", key.to_ascii_uppercase())).is_ok());
        let printed = format!("{:?} {:?}", parse_share(&one).unwrap().1, SealTextError::Check);
        assert!(!printed.contains("0909"), "{printed}");
    }
}
