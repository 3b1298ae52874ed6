//! Values that a service gets: a text, a secret, or a text with secrets in it.
//!
//! `${secret://namespace/name/field}` stands for the secret as it is, `${secret://namespace/name/field|url}` for the secret
//! percent-encoded, as a part of an address has to be. The braces are Compose's, whose variables never begin with `secret:/`. Nothing is
//! encoded unless the declaration says so: whether a text is an address cannot be told for sure, and a secret that is changed on its
//! way is another secret. The parts are put together where the value is delivered and nowhere before.

use std::collections::BTreeSet;

use cofferdam_protocol::{SECRET_SCHEME, SecretRef, WordError, shorten};
use serde::{Deserialize, Serialize};

/// Most references in one value: a file with more is a template of something else.
pub(crate) const MAX_REFERENCES: usize = 32;
/// What asks for percent-encoding.
const URL: &str = "url";

/// The value of a variable, or the content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Value {
    /// The text itself.
    Plain(String),
    /// Filled from the vault when the service starts.
    Secret(SecretRef),
    /// Texts and secrets one after another; at least one of them is a secret, and no two texts follow each other.
    Composed(Vec<Part>),
}

/// A piece of a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The text itself.
    Text(String),
    /// The secret as it is.
    Secret(SecretRef),
    /// The secret with every byte but letters, digits, `-`, `.`, `_` and `~` as `%XX` (RFC 3986 §2.1, §2.3).
    Url(SecretRef),
}

impl Part {
    /// The secret that it is.
    pub fn reference(&self) -> Option<&SecretRef> {
        match self {
            Self::Text(_) => None,
            Self::Secret(reference) | Self::Url(reference) => Some(reference),
        }
    }
}

impl Value {
    /// Every secret in it, each once, in order.
    pub fn references(&self) -> BTreeSet<&SecretRef> {
        match self {
            Self::Plain(_) => BTreeSet::new(),
            Self::Secret(reference) => BTreeSet::from([reference]),
            Self::Composed(parts) => parts.iter().filter_map(Part::reference).collect(),
        }
    }

    /// One of the simplest kind.
    pub(crate) fn of(parts: Vec<Part>) -> Self {
        match parts.as_slice() {
            [] => Self::Plain(String::new()),
            [Part::Text(text)] => Self::Plain(text.clone()),
            [Part::Secret(reference)] => Self::Secret(reference.clone()),
            _ => Self::Composed(parts),
        }
    }
}

/// Parts in the making.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    list: Vec<Part>,
}

impl Parts {
    pub(crate) fn text(&mut self, text: &str) {
        match self.list.last_mut() {
            Some(Part::Text(last)) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.list.push(Part::Text(text.to_owned())),
        }
    }

    pub(crate) fn append(&mut self, other: Self) {
        for part in other.list {
            match part {
                Part::Text(text) => self.text(&text),
                secret => self.list.push(secret),
            }
        }
    }

    /// Adds the secret that stands in `${…}`, whose scheme was seen.
    pub(crate) fn secret(&mut self, inside: &str) -> Result<(), WordError> {
        if self.list.iter().filter_map(Part::reference).count() >= MAX_REFERENCES {
            return Err(WordError::new(format!("more than {MAX_REFERENCES} secrets in one value")));
        }
        self.list.push(match inside.split_once('|') {
            None => Part::Secret(inside.parse()?),
            Some((reference, URL)) => Part::Url(reference.parse()?),
            Some((_, other)) => {
                let message = format!("`|{}` is nothing that can be done with a secret", shorten(other, 40));
                return Err(WordError::new(message)
                    .hint("write ${secret://namespace/name/field|url} for one that is percent-encoded"));
            }
        });
        Ok(())
    }

    pub(crate) fn list(&self) -> &[Part] {
        &self.list
    }

    pub(crate) fn into_list(self) -> Vec<Part> {
        self.list
    }
}

/// Whether the inside of `${…}` is a secret.
pub(crate) fn is_reference(inside: &str) -> bool {
    inside.starts_with(SECRET_SCHEME)
}
