//! One line of a service's log, as it stands in the file and as an operator gets it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::TimestampMillis;
use crate::json::{self, JsonError};

/// The longest piece of a line, in bytes before JSON's escapes.
pub const MAX_LINE: usize = 16 << 10;

/// Bound on one line of the file in bytes: each byte of a piece may have become `\u0000`.
pub const MAX_ENCODED: usize = 6 * MAX_LINE + 256;

/// A line of output, already redacted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLine<'a> {
    /// When it came, by the host's clock.
    pub at: TimestampMillis,
    /// Where it came from.
    pub stream: Stream,
    /// Its text without the line's end.
    pub line: Cow<'a, str>,
    /// Whether the line goes on in the next piece.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

impl LogLine<'_> {
    /// Reads one line of a log.
    ///
    /// # Errors
    /// It is too long or not of this shape.
    pub fn parse(bytes: &[u8]) -> Result<LogLine<'static>, JsonError> {
        json::from_json(bytes, MAX_ENCODED)
    }
}

/// Which output a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}
