//! Reading one node as what it should be, and saying at its place what it is instead.
//!
//! Scalars are read from their text, never through YAML's guesses. A plain scalar that other readers of YAML
//! would take for something else than its text (`no`, `0777`, `22:22`, `1.10`, `2001-01-01`) is refused where a text
//! is wanted, so that the person who reviewed the file, Compose and the appliance all see the same value.

use std::str::FromStr;

use cofferdam_protocol::{WordError, shorten};

use crate::diagnostics::{Collector, Place};
use crate::keys::{NOT_YET, Unsupported, nearest};
use crate::yaml::{Entry, Kind, Node};

/// The keys of one mapping, taken one by one; what is left at the end is an error.
pub(crate) struct Fields<'n> {
    place: Place,
    what: &'static str,
    known: &'static [&'static str],
    entries: &'n [Entry],
}

impl<'n> Fields<'n> {
    /// Opens a mapping, refusing every key outside `known`. `what` completes "… is not a key of …".
    pub(crate) fn open(
        node: &'n Node,
        what: &'static str,
        known: &'static [&'static str],
        unsupported: &[Unsupported],
        errors: &mut Collector<'_>,
    ) -> Option<Self> {
        let entries = map(node, what, errors)?;
        for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            unknown_key(entry, what, known, unsupported, errors);
        }
        Some(Self { place: node.place, what, known, entries })
    }

    /// The value of an optional key.
    pub(crate) fn get(&self, key: &str) -> Option<&'n Node> {
        debug_assert!(self.known.contains(&key), "{key} is not in the list of known keys");
        self.entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
    }

    /// Whether a key is there, known or not.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key)
    }

    /// The value of a key that has to be there; an error at the mapping when it is not.
    pub(crate) fn require(&self, key: &str, hint: &str, errors: &mut Collector<'_>) -> Option<&'n Node> {
        let found = self.get(key);
        if found.is_none() {
            errors.hinted(self.place, format!("{} has no `{key}`", self.what), hint);
        }
        found
    }
}

fn unknown_key(
    entry: &Entry,
    what: &str,
    known: &[&'static str],
    unsupported: &[Unsupported],
    errors: &mut Collector<'_>,
) {
    let key = shorten(&entry.key, 64);
    if let Some((_, why, instead)) = unsupported.iter().find(|(name, ..)| *name == entry.key) {
        let separator = if *why == NOT_YET { "" } else { ":" };
        errors.hinted(entry.place, format!("`{key}` is not supported{separator} {why}"), *instead);
    } else if !entry.key.starts_with("x-") {
        // Extension keys are for other programs, as in Compose.
        let message = format!("`{key}` is not a key of {what}");
        match nearest(&entry.key, known.iter().copied()) {
            Some(name) => errors.hinted(entry.place, message, format!("did you mean `{name}`?")),
            None => errors.hinted(entry.place, message, format!("its keys are {}", known.join(", "))),
        }
    }
}

/// The entries of a mapping.
pub(crate) fn map<'n>(node: &'n Node, what: &str, errors: &mut Collector<'_>) -> Option<&'n [Entry]> {
    match &node.kind {
        Kind::Map(entries) => Some(entries),
        _ => {
            mismatch(node, what, "a mapping", errors);
            None
        }
    }
}

/// The items of a list.
pub(crate) fn list<'n>(node: &'n Node, what: &str, errors: &mut Collector<'_>) -> Option<&'n [Node]> {
    match &node.kind {
        Kind::List(items) => Some(items),
        _ => {
            mismatch(node, what, "a list", errors);
            None
        }
    }
}

/// Says what was found in place of what is needed; silent about what was already reported.
pub(crate) fn mismatch(node: &Node, what: &str, needed: &str, errors: &mut Collector<'_>) {
    let found = match &node.kind {
        Kind::Refused => return,
        Kind::Scalar { text, plain: true, .. } if is_null(text) => "nothing",
        Kind::Scalar { .. } => "a single value",
        Kind::Composed(_) => "a text with a secret in it",
        Kind::List(_) => "a list",
        Kind::Map(_) => "a mapping",
    };
    errors.error(node.place, format!("{what} has to be {needed}, and here is {found}"));
}

/// The text of a scalar, for a key whose value other readers of YAML must see in the same way.
pub(crate) fn text(node: &Node, what: &str, errors: &mut Collector<'_>) -> Option<String> {
    let Kind::Scalar { text, plain, .. } = &node.kind else {
        mismatch(node, what, "a text", errors);
        return None;
    };
    if *plain {
        if is_null(text) {
            errors.hinted(node.place, format!("{what} has no value"), "for an empty text write \"\"");
            return None;
        }
        if let Some(other) = misreading(text) {
            errors.hinted(
                node.place,
                format!("`{}` without quotes is {other} to some readers of YAML", shorten(text, 40)),
                format!("write \"{}\"", shorten(text, 40)),
            );
            return None;
        }
    }
    if text.contains('\0') {
        errors.error(node.place, format!("{what} has a NUL character"));
        return None;
    }
    Some(text.clone())
}

/// A scalar that is one of this crate's small values.
pub(crate) fn parse<T: FromStr<Err = WordError>>(
    node: &Node,
    what: &str,
    errors: &mut Collector<'_>,
) -> Option<T> {
    let text = text(node, what, errors)?;
    checked(node, text.parse(), errors)
}

/// The value, or its error at the node's place.
pub(crate) fn checked<T>(node: &Node, result: Result<T, WordError>, errors: &mut Collector<'_>) -> Option<T> {
    result.map_err(|error| errors.value(node.place, error)).ok()
}

/// `true` or `false`, written so.
pub(crate) fn boolean(node: &Node, what: &str, errors: &mut Collector<'_>) -> Option<bool> {
    match &node.kind {
        Kind::Scalar { text, plain, filled } if (*plain || *filled) && text == "true" => Some(true),
        Kind::Scalar { text, plain, filled } if (*plain || *filled) && text == "false" => Some(false),
        Kind::Scalar { .. } => {
            errors.hinted(
                node.place,
                format!("{what} is not a boolean"),
                "write true or false, without quotes",
            );
            None
        }
        _ => {
            mismatch(node, what, "true or false", errors);
            None
        }
    }
}

/// Whether a plain scalar is YAML's null.
pub(crate) fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// What a plain scalar is to some reader of YAML 1.1 or 1.2, when that is not the text itself. Decimal
/// integers in their shortest form are the same to everybody and pass.
fn misreading(text: &str) -> Option<&'static str> {
    let lower = text.to_ascii_lowercase();
    if matches!(lower.as_str(), "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n") {
        return Some("a boolean");
    }
    let unsigned = lower.strip_prefix(['-', '+']).unwrap_or(&lower);
    if matches!(unsigned, ".inf" | ".nan") || matches!(text, "=") {
        return Some("something else");
    }
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let radix = [("0x", 16), ("0o", 8), ("0b", 2)];
    if radix.iter().any(|(prefix, radix)| {
        unsigned
            .strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_digit(*radix) || c == '_'))
    }) {
        return Some("a number in another notation");
    }
    if digits(unsigned) {
        let shortest = (unsigned == "0" || !unsigned.starts_with('0')) && !unsigned.contains('_');
        return if shortest && !text.starts_with('+') { None } else { Some("another number") };
    }
    // Base 60, as YAML 1.1 reads 22:22: parts after the first are below 60.
    let mut parts = unsigned.split(':');
    if parts.next().is_some_and(digits) && unsigned.contains(':') {
        let sixty = |part: &str| {
            let whole = part.split('.').next().unwrap_or_default();
            whole.len() <= 2 && whole.parse::<u8>().is_ok_and(|n| n < 60)
        };
        return if parts.all(sixty) { Some("a number in base 60") } else { None };
    }
    let float = unsigned.bytes().all(|b| b.is_ascii_digit() || b"._e+-".contains(&b))
        && (unsigned.replace('_', "").parse::<f64>().is_ok());
    if float {
        return Some("a fraction");
    }
    let date: Vec<&str> = unsigned.split(['t', ' ']).next().unwrap_or_default().split('-').collect();
    if let [year, month, day] = date.as_slice()
        && year.len() == 4
        && [year, month, day].into_iter().all(|part| digits(part))
        && month.len() <= 2
        && day.len() <= 2
    {
        return Some("a date");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_scalar_that_others_misread_is_known() {
        for text in [
            "no",
            "No",
            "NO",
            "on",
            "off",
            "y",
            "true",
            "False",
            "0777",
            "08",
            "0o17",
            "0x1F",
            "0b11",
            "1_000",
            "+1",
            "22:22",
            "1:30:00",
            "1.10",
            "1e3",
            ".5",
            "1.",
            "-.inf",
            ".NaN",
            "2001-12-14",
            "=",
            "190:20:30.15",
        ] {
            assert!(misreading(text).is_some(), "{text}");
        }
        for text in [
            "0",
            "1",
            "8080",
            "-1",
            "443:8080",
            "1000:1000",
            "127.0.0.1",
            "1.2.3",
            "10s",
            "abc",
            "nope",
            "1a",
            "0xZZ",
            "127.0.0.1:8443",
            "10:70",
            "2001-12",
            "x",
            "12 monkeys",
        ] {
            assert_eq!(misreading(text), None, "{text}");
        }
    }
}
