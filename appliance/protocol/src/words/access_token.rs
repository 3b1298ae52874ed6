//! A token with which a client that is no operator calls a published port, and what a declaration says of it.
//!
//! A token is `cofferdam_`, 64 hex digits of random numbers and 8 of a checksum, so that those who search for leaked secrets
//! find it and know it without asking anybody. A declaration has its SHA-256 alone. That is no secret and needs no salt: 256
//! random bits are not guessed from it. What does not have this shape is refused before it is hashed, so the digest of
//! something that can be guessed lets nobody in.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::digest::Digest;
use super::error::WordError;
use super::hex;

/// Bytes of a token's random numbers.
const RANDOM: usize = 32;
/// Bytes of its checksum: the first of the SHA-256 of all that stands before it.
const CHECK: usize = 4;

/// A token. It is cleared when dropped and prints as `[redacted:token]`.
pub struct AccessToken(Zeroizing<String>);

impl AccessToken {
    /// What every token begins with.
    pub const PREFIX: &str = "cofferdam_";
    /// Bytes of every token.
    pub const LENGTH: usize = Self::PREFIX.len() + 2 * (RANDOM + CHECK);

    /// The token of these random numbers.
    pub fn from_random(random: &[u8; RANDOM]) -> Self {
        let mut text = Zeroizing::new(String::with_capacity(Self::LENGTH));
        text.push_str(Self::PREFIX);
        text.push_str(&Zeroizing::new(hex::encode(random)));
        let check = checksum(&text);
        text.push_str(&hex::encode(check));
        Self(text)
    }

    /// The token itself: for whoever made it, and nobody else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What a declaration says of it.
    pub fn hash(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }
}

fn checksum(text: &str) -> [u8; CHECK] {
    let [first, second, third, fourth, ..]: [u8; 32] = Sha256::digest(text).into();
    [first, second, third, fourth]
}

impl FromStr for AccessToken {
    type Err = WordError;

    /// What is wrong says nothing about what was read.
    fn from_str(text: &str) -> Result<Self, WordError> {
        let read = || {
            let (body, check) = text.split_at_checked(Self::LENGTH.checked_sub(2 * CHECK)?)?;
            let digits = body.strip_prefix(Self::PREFIX)?;
            let whole = hex::is_lower(digits, 2 * RANDOM) && hex::decode_array(check)? == checksum(body);
            whole.then(|| Self(Zeroizing::new(text.to_owned())))
        };
        read().ok_or_else(|| WordError::new("not a token").hint("`coffer token new NAME` makes one"))
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted:token]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_made_as_a_token_is_one_and_none_shows() {
        let token = AccessToken::from_random(&[7; 32]);
        let text = token.expose().to_owned();
        assert_eq!(text.len(), AccessToken::LENGTH);
        assert_eq!(text.parse::<AccessToken>().unwrap().hash(), token.hash());
        assert_eq!(token.hash(), Digest::of(text.as_bytes()));
        assert_eq!(format!("{token:?}"), "[redacted:token]");
        for at in 0..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[at] = if wrong[at] == b'0' { b'1' } else { b'0' };
            let wrong = String::from_utf8(wrong).unwrap();
            let error = wrong.parse::<AccessToken>().unwrap_err().to_string();
            assert!(!error.contains(AccessToken::PREFIX), "{error}");
        }
        let longer = format!("{text}0");
        let upper = text.to_uppercase();
        let shorter = text.strip_suffix(|_: char| true).unwrap();
        let bare = text.strip_prefix(AccessToken::PREFIX).unwrap();
        for wrong in ["", "cofferdam_", bare, shorter, &longer, &upper, "pässword"] {
            assert!(wrong.parse::<AccessToken>().is_err(), "{wrong}");
        }
    }
}
