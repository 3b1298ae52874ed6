//! What a shim and the role `egress` say to each other: one byte with the sockets of its service's gate (SCM_RIGHTS), an answer, and
//! then questions for names.
//!
//! Who asks is told by the kernel. The connection stays open: its end tells the shim that the role is gone, and the role
//! that the gate is.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::json::{self, JsonError};

/// The byte that the gate's descriptors come with: the socket that sees TCP, the one that sees UDP, then the listeners. A service that
/// may connect nowhere has no gate and sends none.
pub const OPEN: u8 = b'o';

/// Descriptors at most: two that see, and a listener for each port that a declaration can name.
pub const MAX_DESCRIPTORS: usize = 2 + 16;

/// Bound on a question in bytes, its line feed included: a name of the DNS in escapes of JSON.
pub const MAX_QUESTION: usize = 2048;

/// Bound on an answer in bytes, its line feed included.
pub const MAX_ANSWER: usize = 1024;

/// The answer to [`OPEN`]: one JSON object and a line feed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Opened {
    /// So many listeners are served.
    Listeners(u32),
    /// None is, and why.
    Refused(String),
}

/// What a service asked for: one JSON object and a line feed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// In lower case, with a dot in it.
    pub name: String,
}

/// The answer to a question, in the order of the questions: one JSON object and a line feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Answer {
    /// The address that stands for the name, in this service's gate alone.
    Address(Ipv4Addr),
    /// It is not declared.
    Denied,
}

/// Reads one of these lines, without its line feed, of at most `most` bytes.
///
/// # Errors
/// It is too large or not of this shape.
pub fn parse<T: serde::de::DeserializeOwned + Serialize>(line: &[u8], most: usize) -> Result<T, JsonError> {
    json::from_json(line, most)
}
