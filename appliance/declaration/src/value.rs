//! The small values of a declaration: each is parsed once, into a type that cannot hold anything else.
//!
//! A parser here takes the text of one scalar and says in a [`WordError`] what is wrong with it and, where
//! it knows, what to write instead. It knows nothing of YAML; the place is added by whoever read the file.
//! Every length is bounded, because each of these texts ends in a claim, a file name, a URL or a log line.

use std::str::FromStr;
use std::time::Duration;

use cofferdam_protocol::{WordError, parse_decimal};
use serde::{Deserialize, Serialize};

/// A signal by its number on x86-64 Linux (`signal(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Signal(i32);

impl Signal {
    /// `SIGTERM`, what a service is stopped with unless it says otherwise.
    pub const TERM: Self = Self(15);

    /// The number that `kill(2)` takes.
    pub fn number(self) -> i32 {
        self.0
    }
}

impl FromStr for Signal {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        // The signals that a program can be asked to end with; SIGSTOP and SIGCONT would only hang it.
        const NAMES: &[(&str, i32)] = &[
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
        let bare = text.strip_prefix("SIG").unwrap_or(text);
        NAMES
            .iter()
            .find(|(name, number)| *name == bare || number.to_string() == text)
            .map(|(_, number)| Self(*number))
            .ok_or_else(|| {
                let names = NAMES.iter().map(|(name, _)| format!("SIG{name}")).collect::<Vec<_>>();
                WordError::new("not a signal that can stop a service")
                    .hint(format!("one of {}", names.join(", ")))
            })
    }
}

/// Numeric user and group inside the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct User {
    /// 0 to 65535: a service's user namespace maps 65536 ids.
    pub uid: u32,
    /// The group; the image's default for the uid when it is not given.
    pub gid: Option<u32>,
}

impl FromStr for User {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let wrong = || {
            WordError::new("not a numeric user of 0 to 65535")
                .hint("write \"uid\" or \"uid:gid\", for example \"1000:1000\"; names live in the image, which is not open yet")
        };
        let id = |text: &str| parse_decimal(text).filter(|id| *id <= 65535).ok_or_else(wrong);
        Ok(match text.split_once(':') {
            Some((uid, gid)) => Self { uid: id(uid)?, gid: Some(id(gid)?) },
            None => Self { uid: id(text)?, gid: None },
        })
    }
}

/// Reads a Compose duration such as `10s`, `1m30s` or `500ms`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, WordError> {
    // Longer than this and a power-off would wait for one service past any operator's patience.
    const MAX: Duration = Duration::from_secs(600);
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
    if total > MAX {
        return Err(wrong("it is longer than ten minutes"));
    }
    Ok(total)
}
