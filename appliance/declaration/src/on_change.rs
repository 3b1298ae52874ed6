//! What happens to a running service when a secret that it was given is put again.
//!
//! Files can be rewritten under a running program, variables cannot: who reads a secret from a variable has to start again.

use std::fmt;

use cofferdam_protocol::WordError;
use serde::{Deserialize, Serialize};

use crate::diagnostics::Collector;
use crate::fields;
use crate::value::Signal;
use crate::yaml::Node;

/// What happens to a running service when a secret that it was given is put again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnChange {
    /// It keeps what it has until it starts again, as with Compose.
    #[default]
    Nothing,
    /// Its files are rewritten, which a program that watches them is told of (inotify).
    Notify,
    /// Its files are rewritten, then its first process gets this signal.
    Signal(Signal),
    /// It is stopped and started with what is stored then, whatever `restart` says.
    Restart,
}

impl OnChange {
    /// Whether files are rewritten while the service runs.
    pub fn rewrites(self) -> bool {
        matches!(self, Self::Notify | Self::Signal(_))
    }
}

impl fmt::Display for OnChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Notify => f.write_str("notify"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Restart => f.write_str("restart"),
        }
    }
}

/// Reads `on_change`.
pub(crate) fn read(node: &Node, errors: &mut Collector<'_>) -> Option<OnChange> {
    let text = fields::text(node, "`on_change`", errors)?;
    let read = match text.as_str() {
        "nothing" => Ok(OnChange::Nothing),
        "notify" => Ok(OnChange::Notify),
        "restart" => Ok(OnChange::Restart),
        other => match other.strip_prefix("signal ").map(str::parse) {
            Some(Ok(signal)) if signal == Signal::KILL => {
                Err(WordError::new("a signal that no program can take").hint("write restart"))
            }
            Some(Ok(signal)) => Ok(OnChange::Signal(signal)),
            _ => Err(WordError::new("not what can happen when a secret changes")
                .hint("write restart, notify, nothing or `signal NAME`, for example `signal HUP`")),
        },
    };
    fields::checked(node, read, errors)
}
