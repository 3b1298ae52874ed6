//! What an error looks like, from whichever role.

use serde::{Deserialize, Serialize};

use crate::json::{self, JsonError};

/// Media type of all replies but evidence and logs.
pub const JSON: &str = "application/json";

/// Largest error that is read, in bytes.
pub const MAX_ERROR: usize = 64 * 1024;

/// The body of every reply above 399 that says why in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorReply {
    /// What is wrong.
    pub error: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ErrorReply {
    /// An error, with what to do about it where that is known.
    pub fn new(error: impl Into<String>, hint: Option<&str>) -> Self {
        Self { error: error.into(), hint: hint.map(str::to_owned) }
    }

    /// Reads the body of a reply.
    ///
    /// # Errors
    /// It is too large or not of this shape: from something else than a role of ours.
    pub fn parse(body: &[u8]) -> Result<Self, JsonError> {
        json::from_json(body, MAX_ERROR)
    }
}
