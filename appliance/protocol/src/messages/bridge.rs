//! What a shim and the role `bridge` say to each other: one byte with the service's network namespace (SCM_RIGHTS), and an answer.
//!
//! Who asks is told by the kernel. The connection then stays open: its end tells the shim that the interfaces are gone.

use serde::{Deserialize, Serialize};

use crate::json::{self, JsonError};

/// The byte that the namespace's descriptor comes with.
pub const ATTACH: u8 = b'a';

/// Bound on an answer in bytes, its line feed included.
pub const MAX_ANSWER: usize = 1024;

/// The answer: one JSON object and a line feed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Answer {
    /// So many interfaces are there, `eth0` first, not yet up.
    Attached(u32),
    /// There are none, and why.
    Refused(String),
}

impl Answer {
    /// Reads an answer.
    ///
    /// # Errors
    /// It is too large or not of this shape.
    pub fn parse(line: &[u8]) -> Result<Self, JsonError> {
        json::from_json(line, MAX_ANSWER)
    }
}
