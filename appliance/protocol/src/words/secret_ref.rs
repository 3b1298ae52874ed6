//! How a secret is named: `secret://<namespace>/<name>/<field>`.
//!
//! A [`SecretRef`] can only be made by parsing, so a name that has not been validated cannot reach the store, a file name or
//! a log line.

use std::fmt;
use std::str::FromStr;

use super::error::WordError;
use super::text::{as_text, is_name};

as_text!(SecretRef);

/// What marks a secret's reference; the same in a declaration and in an env file.
pub const SECRET_SCHEME: &str = "secret://";

/// A validated reference: three parts of `[a-z0-9][a-z0-9._-]{0,62}`, so at most 200 bytes of ASCII. In the order of its text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretRef(String);

impl SecretRef {
    /// Builds a reference from its three parts.
    ///
    /// # Errors
    /// A part is not valid.
    pub fn from_parts(namespace: &str, name: &str, field: &str) -> Result<Self, WordError> {
        if ![namespace, name, field].into_iter().all(is_name) {
            return Err(wrong("each part is 1 to 63 of a-z 0-9 . _ - and starts with a letter or a digit"));
        }
        Ok(Self(format!("{SECRET_SCHEME}{namespace}/{name}/{field}")))
    }

    /// The written form, `secret://…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The written form without the scheme, `namespace/name/field`: the end of a secret's path in the operators' interface.
    pub fn path(&self) -> &str {
        self.0.strip_prefix(SECRET_SCHEME).unwrap_or_default()
    }

    /// The namespace that holds the secret.
    pub fn namespace(&self) -> &str {
        self.part(0)
    }

    /// The secret's name within its namespace.
    pub fn name(&self) -> &str {
        self.part(1)
    }

    /// The one value within the secret.
    pub fn field(&self) -> &str {
        self.part(2)
    }

    /// The name of the file under `/run/secrets` when the declaration gives none: `name.field`.
    pub fn default_target(&self) -> String {
        format!("{}.{}", self.name(), self.field())
    }

    fn part(&self, position: usize) -> &str {
        self.path().split('/').nth(position).unwrap_or_default()
    }
}

impl FromStr for SecretRef {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let path =
            text.strip_prefix(SECRET_SCHEME).ok_or_else(|| wrong("it does not start with secret://"))?;
        let mut parts = path.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(namespace), Some(name), Some(field), None) => Self::from_parts(namespace, name, field),
            _ => Err(wrong("it needs exactly a namespace, a name and a field")),
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn wrong(why: &str) -> WordError {
    WordError::new(format!("not a secret's reference: {why}"))
        .hint("write secret://namespace/name/field, for example secret://prod/database/password")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_survives_being_written_and_read() {
        let reference: SecretRef = "secret://cofferdam/github/token".parse().unwrap();
        assert_eq!(reference.as_str(), "secret://cofferdam/github/token");
        assert_eq!(reference.path(), "cofferdam/github/token");
        assert_eq!(
            (reference.namespace(), reference.name(), reference.field()),
            ("cofferdam", "github", "token")
        );
        assert_eq!(reference.default_target(), "github.token");
        assert_eq!(SecretRef::from_parts("cofferdam", "github", "token").unwrap(), reference);
        let json = serde_json::to_string(&reference).unwrap();
        assert_eq!(serde_json::from_str::<SecretRef>(&json).unwrap(), reference);
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
            assert!(text.parse::<SecretRef>().is_err(), "{text:?} was accepted");
        }
        assert!(format!("secret://a/{}/c", "b".repeat(63)).parse::<SecretRef>().is_ok());
    }

    #[test]
    fn the_text_is_not_repeated_in_the_error() {
        let error = "hunter2hunter2".parse::<SecretRef>().unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"));
    }
}
