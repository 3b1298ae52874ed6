//! How a secret is named: `secret://<namespace>/<name>/<field>`.
//!
//! A [`Reference`] can only be made by parsing, so a name that has not been validated cannot reach
//! the store, a file name or a log line.

use std::fmt;

use serde::{Deserialize, Serialize};

const SCHEME: &str = "secret://";
/// Longest namespace, name or field, in bytes: the length of a DNS label, as elsewhere in a declaration.
const MAX_PART: usize = 63;

/// A validated reference: three parts of `[a-z0-9][a-z0-9._-]{0,62}`, so at most 200 bytes of ASCII.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference(String);

/// Why a text is not a reference. The text itself is not repeated: it may be a secret put in the wrong place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// It does not begin with `secret://`.
    #[error("a reference begins with secret://")]
    Scheme,
    /// It has not exactly three parts.
    #[error("a reference has the form secret://namespace/name/field")]
    Parts,
    /// The named part holds something else than the allowed characters, or is empty, or too long.
    #[error(
        "the {0} of a reference is 1 to 63 characters of a-z, 0-9, dot, dash and underscore, and begins with a letter or a digit"
    )]
    Part(&'static str),
}

impl Reference {
    /// Parses the written form.
    ///
    /// # Errors
    /// [`ReferenceError`] when the text is anything else than three valid parts behind the scheme.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let path = text.strip_prefix(SCHEME).ok_or(ReferenceError::Scheme)?;
        let mut parts = path.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(namespace), Some(name), Some(field), None) => Self::from_parts(namespace, name, field),
            _ => Err(ReferenceError::Parts),
        }
    }

    /// Builds a reference from its three parts.
    ///
    /// # Errors
    /// [`ReferenceError::Part`] naming the first part that is not valid.
    pub fn from_parts(namespace: &str, name: &str, field: &str) -> Result<Self, ReferenceError> {
        for (part, what) in [(namespace, "namespace"), (name, "name"), (field, "field")] {
            if !is_part(part) {
                return Err(ReferenceError::Part(what));
            }
        }
        Ok(Self(format!("{SCHEME}{namespace}/{name}/{field}")))
    }

    /// The written form, `secret://…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.0
    }
}

fn is_part(part: &str) -> bool {
    let mut bytes = part.bytes();
    let begins = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    part.len() <= MAX_PART
        && bytes.next().is_some_and(begins)
        && bytes.all(|byte| begins(byte) || matches!(byte, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_survives_being_written_and_read() {
        let reference = Reference::parse("secret://cofferdam/github/token").unwrap();
        assert_eq!(reference.as_str(), "secret://cofferdam/github/token");
        assert_eq!(Reference::from_parts("cofferdam", "github", "token").unwrap(), reference);
        let json = serde_json::to_string(&reference).unwrap();
        assert_eq!(serde_json::from_str::<Reference>(&json).unwrap(), reference);
    }

    #[test]
    fn everything_else_is_refused() {
        let long = format!("secret://a/{}/c", "b".repeat(64));
        for text in [
            "",
            "secret://",
            "secret:///",
            "secret://a",
            "secret://a/b",
            "secret://a/b/",
            "secret://a/b/c/",
            "secret://a/b/c/d",
            "secret://a//c",
            "secret://A/b/c",
            "secret://a/b/..",
            "secret://../b/c",
            "secret://a/.b/c",
            "secret://a/-b/c",
            "secret://a/b%2f/c",
            "secret://a/b c/d",
            "secret://a/b/c\n",
            "secret://a/b/c\0",
            "secret://a/ü/c",
            "SECRET://a/b/c",
            "a/b/c",
            " secret://a/b/c",
            &long,
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?} was accepted");
        }
        assert!(Reference::parse(&format!("secret://a/{}/c", "b".repeat(63))).is_ok());
    }
}
