//! Everything that a person or a script sees.
//!
//! Rules: data goes to stdout, everything else to stderr. With `--json` stdout carries exactly one object with
//! `schema_version` (JSON lines for streams), also when the command fails. Colour only on a terminal and never with
//! `NO_COLOR`. Text from outside is printed with its control characters escaped, so that no server can steer the
//! terminal. On a terminal lines are folded to its width ([`fold`]); elsewhere they are as long as they are, for `grep`.

use std::io::{IsTerminal, Write as _};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::fold::fold;
use crate::progress;

/// Version of the JSON that `--json` prints.
const SCHEMA_VERSION: u32 = 1;

/// Below so many columns folding makes nothing better.
const NARROWEST: usize = 20;

/// Why output is missing that somebody still waits for.
static MISSING: OnceLock<std::io::Error> = OnceLock::new();

/// Why a result or a text could not be written. A reader that closed the pipe is no reason: they want no more.
pub(crate) fn missing() -> Option<&'static std::io::Error> {
    MISSING.get()
}

/// Whether the device behind this run's answers is simulated, once that is known.
static SIMULATED: OnceLock<bool> = OnceLock::new();

/// Says it in every object from now on.
pub(crate) fn is_simulated(simulated: bool) {
    // A command asks one appliance.
    let _ = SIMULATED.set(simulated);
}

/// The columns of the terminal behind a stream; `None` where there is none.
pub(crate) fn width_of(stream: &(impl AsFd + IsTerminal)) -> Option<usize> {
    if !stream.is_terminal() {
        return None;
    }
    let (width, _) = terminal_size::terminal_size_of(stream)?;
    // A terminal that does not know its width says zero.
    Some(usize::from(width.0)).filter(|width| *width >= NARROWEST)
}

/// Whether the terminal knows no escape sequences.
fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// Remembers it.
pub(crate) fn miss(outcome: std::io::Result<()>) {
    if let Err(error) = outcome
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        // The first one says why.
        let _ = MISSING.set(error);
    }
}

/// How this run talks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ui {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    verbose: bool,
    colour: bool,
}

/// The colours that are used, each for one meaning.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tone {
    Good,
    Bad,
    Unsure,
    Faint,
}

impl Ui {
    pub(crate) fn new(json: bool, quiet: bool, verbose: bool) -> Self {
        if !json && !quiet && std::io::stderr().is_terminal() && !is_dumb() {
            progress::show();
        }
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) || is_dumb();
        Self { json, quiet, verbose, colour: !no_colour && std::io::stdout().is_terminal() }
    }

    /// The result of a command: `text` for a person, `value` (an object) for a script.
    pub(crate) fn result(&self, text: &str, value: Value) {
        miss(self.only_copy(text, value));
    }

    /// The same for a result that is nowhere else: whoever does not get it has to hear that.
    pub(crate) fn only_copy(&self, text: &str, value: Value) -> std::io::Result<()> {
        match width_of(&std::io::stdout()) {
            _ if self.json => self.line(&with_schema_version(value).to_string()),
            Some(width) => written(&fold(text, width)),
            None => written(text),
        }
    }

    /// What is the same for a person and for a script.
    pub(crate) fn text(&self, text: &str) {
        miss(written(text));
    }

    /// One line of a stream, as it is.
    pub(crate) fn line(&self, line: &str) -> std::io::Result<()> {
        progress::make_way();
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush())
    }

    /// Whether what is shown can be shown anew in its place.
    pub(crate) fn repaints(&self) -> bool {
        !self.json && !is_dumb() && width_of(&std::io::stdout()).is_some()
    }

    /// Shows `text` in the place of the last `lines` lines; returns how many it has.
    pub(crate) fn repaint(&self, lines: usize, text: &str) -> usize {
        let width = width_of(&std::io::stdout());
        let text = width.map_or_else(|| text.to_owned(), |width| fold(text, width));
        let up = if lines > 0 { format!("\u{1b}[{lines}A\u{1b}[J") } else { String::new() };
        miss(written(&(up + &text)));
        text.lines().count()
    }

    /// Progress and remarks for a person.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet && !self.json {
            complain(text);
        }
    }

    /// What a person must not miss, whatever was asked for: always printed.
    pub(crate) fn warn(&self, text: &str) {
        complain(text);
    }

    /// What only `-v` shows.
    pub(crate) fn detail(&self, text: &str) {
        if self.verbose && !self.json {
            complain(text);
        }
    }

    pub(crate) fn failure(&self, failure: &Failure) {
        if self.json && failure.rendered.is_none() {
            self.error_object(failure);
        }
        self.complaint(failure);
    }

    /// A failure as a script gets it.
    pub(crate) fn error_object(&self, failure: &Failure) {
        let error = json!({ "code": failure.code as u8, "message": failure.message, "hint": failure.hint });
        let _ = self.line(&with_schema_version(json!({ "error": error })).to_string());
    }

    /// A failure that does not end the command.
    pub(crate) fn complaint(&self, failure: &Failure) {
        let lines = |text: &str| text.lines().map(printable).collect::<Vec<_>>().join("\n");
        match &failure.rendered {
            Some(text) if text.is_empty() => {}
            Some(text) => complain(text.trim_end()),
            // The message's own lines are ours; what came from outside was made printable when it was put in.
            None => complain(&format!("error: {}", lines(&failure.message))),
        }
        if let Some(hint) = &failure.hint {
            complain(&format!("hint: {}", lines(hint)));
        }
    }

    pub(crate) fn tone(&self, tone: Tone, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "1;31",
            Tone::Unsure => "33",
            Tone::Faint => "2",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// A line on stderr. That nobody reads it any more changes nothing about what has to be done, or about the exit code.
fn complain(line: &str) {
    progress::make_way();
    let stderr = std::io::stderr();
    let folded = width_of(&stderr).map(|width| fold(line, width));
    let _ = writeln!(stderr.lock(), "{}", folded.as_deref().unwrap_or(line));
}

/// `value` with `schema_version` in front of its own members.
pub(crate) fn with_schema_version(value: Value) -> Value {
    let mut object = serde_json::Map::new();
    object.insert("schema_version".to_owned(), SCHEMA_VERSION.into());
    if let Some(simulated) = SIMULATED.get() {
        object.insert("simulated".to_owned(), (*simulated).into());
    }
    match value {
        Value::Object(members) => object.extend(members),
        other => drop(object.insert("value".to_owned(), other)),
    }
    Value::Object(object)
}

/// What reorders the text around it on a terminal (Unicode's explicit directional formatting characters).
const DIRECTIONS: [char; 12] = [
    '\u{61c}', '\u{200e}', '\u{200f}', '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}',
    '\u{2066}', '\u{2067}', '\u{2068}', '\u{2069}',
];

/// Text from outside with control characters escaped, line feeds too: it can neither steer the terminal nor forge a line.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if (character.is_control() && character != '\t') || DIRECTIONS.contains(&character) {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

fn written(text: &str) -> std::io::Result<()> {
    progress::make_way();
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\u{9b}c\td\n"), "a\\u{1b}[2Jb\\u{9b}c\td\\n");
    }

    #[test]
    fn the_schema_version_comes_with_every_object() {
        assert_eq!(with_schema_version(json!({"a": 1})), json!({"schema_version": 1, "a": 1}));
        assert_eq!(with_schema_version(json!([1])), json!({"schema_version": 1, "value": [1]}));
    }
}
