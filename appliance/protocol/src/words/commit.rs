//! A commit of a Git repository.

use std::fmt;
use std::str::FromStr;

use super::error::WordError;
use super::hex;
use super::text::as_text;

as_text!(Commit);

/// A whole SHA-1 object name: 40 lower-case hex digits, never abbreviated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Commit([u8; 20]);

impl Commit {
    /// The 20 bytes of the object name.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl From<[u8; 20]> for Commit {
    fn from(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Commit {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        hex::decode_array(text)
            .map(Self)
            .ok_or_else(|| WordError::new("not a commit: it is not 40 lower-case hex digits"))
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Commit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_whole_and_lower_case() {
        let text = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(text.parse::<Commit>().unwrap().to_string(), text);
        for wrong in ["", "0123456", &text.to_uppercase(), &format!("{text}0"), "HEAD"] {
            assert!(wrong.parse::<Commit>().is_err(), "{wrong}");
        }
    }
}
