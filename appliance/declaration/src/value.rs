//! The small values of a declaration: each is parsed once, into a type that cannot hold anything else.
//!
//! A parser here takes the text of one scalar and says in a [`WordError`] what is wrong with it and, where
//! it knows, what to write instead. It knows nothing of YAML; the place is added by whoever read the file.
//! Every length is bounded, because each of these texts ends in a claim, a file name, a URL or a log line.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use cofferdam_protocol::{WordError, parse_decimal};
use serde::{Deserialize, Serialize};

/// The signals that a program can be asked to end with; SIGSTOP and SIGCONT would only hang it.
const SIGNALS: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ABRT", 6),
    ("KILL", 9),
    ("USR1", 10),
    ("USR2", 12),
    ("ALRM", 14),
    ("TERM", 15),
    ("WINCH", 28),
];

/// A signal by its number on x86-64 Linux (`signal(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Signal(i32);

impl Signal {
    /// `SIGTERM`, what a service is stopped with unless it says otherwise.
    pub const TERM: Self = Self(15);
    /// `SIGKILL`, which ends a process at once.
    pub const KILL: Self = Self(9);

    /// The number that `kill(2)` takes.
    pub fn number(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Signal {
    /// As a declaration names it, without `SIG`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIGNALS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => self.0.fmt(f),
        }
    }
}

impl FromStr for Signal {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let bare = text.strip_prefix("SIG").unwrap_or(text);
        SIGNALS
            .iter()
            .find(|(name, number)| *name == bare || number.to_string() == text)
            .map(|(_, number)| Self(*number))
            .ok_or_else(|| {
                let names = SIGNALS.iter().map(|(name, _)| format!("SIG{name}")).collect::<Vec<_>>();
                WordError::new("not a signal that can stop a service")
                    .hint(format!("one of {}", names.join(", ")))
            })
    }
}

/// A user or a group inside the container, as a declaration names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdOrName {
    /// 0 to 65534: a service's user namespace maps 65536 ids, and the last one is nobody's.
    Id(u32),
    /// One that the image's own files know: `[A-Za-z_][A-Za-z0-9._-]{0,63}`.
    Name(String),
}

impl FromStr for IdOrName {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let is_name = (1..=64).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        match parse_decimal(text).filter(|id| *id <= 65534) {
            Some(id) => Ok(Self::Id(id)),
            None if is_name => Ok(Self::Name(text.to_owned())),
            None => Err(WordError::new("neither a number of 0 to 65534 nor a name")
                .hint("a name has letters, digits, . _ - and starts with a letter or _")),
        }
    }
}

/// Whom a service runs as.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct User {
    /// The user.
    pub user: IdOrName,
    /// The group. Without one it is the user's own, and the user's further groups come along.
    pub group: Option<IdOrName>,
}

impl fmt::Display for IdOrName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.group {
            Some(group) => write!(f, "{}:{group}", self.user),
            None => self.user.fmt(f),
        }
    }
}

impl FromStr for User {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let part = |text: &str| {
            text.parse().map_err(|_| {
                WordError::new("not a user: a number of 0 to 65534, or a name that the image knows")
                    .hint("write \"user\" or \"user:group\", for example \"1000:1000\" or \"www-data\"")
            })
        };
        Ok(match text.split_once(':') {
            Some((user, group)) => Self { user: part(user)?, group: Some(part(group)?) },
            None => Self { user: part(text)?, group: None },
        })
    }
}

/// Reads a Compose duration such as `10s`, `1m30s` or `500ms`, of ten minutes at most: longer than this and a power-off would wait
/// for one service past any operator's patience.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, WordError> {
    parse_duration_below(text, Duration::from_secs(600))
}

/// Reads one of `most` at most.
pub(crate) fn parse_duration_below(text: &str, most: Duration) -> Result<Duration, WordError> {
    let wrong =
        |why: &str| WordError::new(format!("not a duration: {why}")).hint("for example 10s, 1m30s or 500ms");
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(wrong("it is empty"));
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at_checked(digits).ok_or_else(|| wrong("it does not read"))?;
        let units = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at_checked(units).ok_or_else(|| wrong("it does not read"))?;
        let number = number.parse::<u32>().map_err(|_| wrong("a number is missing or too large"))?;
        let one = match unit {
            "us" => Duration::from_micros(1),
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(wrong("it needs a unit: us, ms, s, m or h")),
        };
        total = one
            .checked_mul(number)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(|| wrong("it is too large"))?;
        rest = tail;
    }
    if total > most {
        let minutes = most.as_secs() / 60;
        let most = if minutes == 10 { "ten minutes".to_owned() } else { format!("{} hours", minutes / 60) };
        return Err(wrong(&format!("it is longer than {most}")));
    }
    Ok(total)
}
