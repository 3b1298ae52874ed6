//! `${…}` and `$$` as Compose reads them, where there is no environment.
//!
//! What runs is decided by the measured bytes alone. So a variable is never set here: one that has a default has that, which
//! stands in the file, and one that only somebody's environment could fill is an error at its place. Keys are not filled, as in
//! Compose. Nothing grows: what a variable becomes is a part of its own text.
//!
//! `${secret://…}` is found here too, since `$$` has to be read in the same step, and is left as a part of the value
//! ([`crate::composed`]).

use cofferdam_protocol::{SECRET_SCHEME, WordError, shorten};

use crate::composed::{Part, Parts, is_reference};
use crate::diagnostics::{Collector, Place};
use crate::yaml::{Kind, Node};

/// Defaults in defaults; nobody writes more than two.
const MAX_DEPTH: usize = 8;
/// What Compose fills. Elsewhere a text with a `$` may be a credential that was pasted, so its line is not shown.
const COMPOSE: [&str; 4] = ["services", "networks", "volumes", "configs"];
/// Parts of the names of variables that hold secrets.
const SECRETIVE: [&str; 6] = ["PASSWORD", "PASSWD", "SECRET", "TOKEN", "API_KEY", "PRIVATE_KEY"];

/// Fills every value of the tree. One that cannot be filled is reported and becomes [`Kind::Refused`].
pub(crate) fn fill(root: &mut Node, errors: &mut Collector<'_>) {
    let Kind::Map(entries) = &mut root.kind else { return };
    for entry in entries {
        let shown = COMPOSE.contains(&entry.key.as_str());
        fill_node(&mut entry.value, shown, errors);
    }
}

/// The tree is bounded in depth by the reader.
fn fill_node(node: &mut Node, shown: bool, errors: &mut Collector<'_>) {
    let place = node.place;
    match &mut node.kind {
        Kind::List(items) => items.iter_mut().for_each(|item| fill_node(item, shown, errors)),
        Kind::Map(entries) => {
            entries.iter_mut().for_each(|entry| fill_node(&mut entry.value, shown, errors));
        }
        Kind::Scalar { text, plain, filled } if text.contains('$') => {
            let mut defaults = Vec::new();
            match expand(text, 0, &mut defaults).map(Parts::into_list) {
                Ok(parts) => {
                    defaults.iter().for_each(|default| remark(default, place, errors));
                    *filled = !defaults.is_empty();
                    let new = match parts.as_slice() {
                        [] => String::new(),
                        [Part::Text(text)] => text.clone(),
                        // Alone it is what it is without braces.
                        [Part::Secret(reference)] => reference.to_string(),
                        _ => {
                            node.kind = Kind::Composed(parts);
                            return;
                        }
                    };
                    // Whoever reads `${…}` in YAML sees a text, whatever becomes of it.
                    *plain = *plain && !*filled;
                    *text = new;
                }
                Err(error) => {
                    if shown {
                        errors.value(place, error);
                    } else {
                        errors.hidden(place, error);
                    }
                    node.kind = Kind::Refused;
                }
            }
        }
        Kind::Scalar { .. } | Kind::Composed(_) | Kind::Refused => {}
    }
}

/// A variable with what it is without an environment.
struct Unset {
    name: String,
    /// Whether it is a text that is not empty and no secret.
    known: bool,
}

fn remark(default: &Unset, place: Place, errors: &mut Collector<'_>) {
    let name = default.name.to_ascii_uppercase();
    if default.known && SECRETIVE.iter().any(|part| name.contains(part)) {
        let message = format!(
            "`{}` is its default, which everybody knows who reads the declaration",
            shorten(&default.name, 64)
        );
        errors.warning(
            place,
            message,
            "write secret://namespace/name/field, and put it with `coffer secret put`",
        );
        return;
    }
    errors.note(
        place,
        "a variable is its default: a declaration takes nothing from an environment",
        "write the value where another one is meant",
    );
}

/// The text without variables.
fn expand(text: &str, depth: usize, defaults: &mut Vec<Unset>) -> Result<Parts, WordError> {
    if depth > MAX_DEPTH {
        return Err(WordError::new("defaults of variables in one another, deeper than 8 levels"));
    }
    let mut out = Parts::default();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.text(before);
        if let Some(after) = after.strip_prefix('$') {
            out.text("$");
            rest = after;
        } else if let Some(body) = after.strip_prefix('{') {
            let (body, after) = braced(body)?;
            if is_reference(body) {
                out.secret(body)?;
            } else {
                out.append(variable(body, depth, defaults)?);
            }
            rest = after;
        } else {
            let (name, _) = name(after);
            let error = if name.is_empty() { lone() } else { unset(name) };
            return Err(error.hint(
                "write the value, or $$ for a dollar sign; a secret is secret://namespace/name/field",
            ));
        }
    }
    out.text(rest);
    Ok(out)
}

/// What stands up to the brace that closes this variable, and what follows.
fn braced(text: &str) -> Result<(&str, &str), WordError> {
    let mut open = 1_usize;
    let mut before = '\0';
    for (at, c) in text.char_indices() {
        match c {
            '{' if before == '$' => open = open.saturating_add(1),
            '}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open == 0 {
            let (body, rest) = text.split_at_checked(at).ok_or_else(lone)?;
            return Ok((body, rest.strip_prefix('}').unwrap_or(rest)));
        }
        before = c;
    }
    Err(WordError::new("a `${` that is not closed").hint("write $$ for a dollar sign"))
}

/// What a variable is that is not set: `NAME-default`, `NAME:-default`, and nothing for `NAME+other`.
fn variable(body: &str, depth: usize, defaults: &mut Vec<Unset>) -> Result<Parts, WordError> {
    let (name, rest) = name(body);
    if name.is_empty() {
        return Err(lone());
    }
    let operator = rest.strip_prefix(':').unwrap_or(rest);
    let value = if let Some(default) = operator.strip_prefix('-') {
        expand(default, depth + 1, defaults)?
    } else if operator.starts_with('+') {
        Parts::default()
    } else if operator.starts_with('?') || rest.is_empty() {
        return Err(unset(name));
    } else {
        return Err(lone());
    };
    let known = matches!(value.list(), [Part::Text(text)] if !text.starts_with(SECRET_SCHEME));
    defaults.push(Unset { name: name.to_owned(), known });
    Ok(value)
}

/// The name at the beginning of a text, which may be empty.
fn name(text: &str) -> (&str, &str) {
    let letters = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return ("", text);
    }
    let end = text.find(|c| !letters(c)).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or(("", text))
}

fn unset(name: &str) -> WordError {
    let message =
        format!("`{}` would come from somebody's environment, and a declaration has none", shorten(name, 64));
    WordError::new(message).hint(
        "write the value, or for a secret secret://namespace/name/field; `coffer import` fills in a compose file's",
    )
}

fn lone() -> WordError {
    WordError::new("a `$` that is no variable").hint("write $$ for a dollar sign")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> Result<String, WordError> {
        let shown = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Secret(reference) => format!("<{}>", reference.path()),
            Part::Url(reference) => format!("<{}|url>", reference.path()),
        };
        Ok(expand(text, 0, &mut Vec::new())?.list().iter().map(shown).collect())
    }

    #[test]
    fn a_variable_is_its_default_and_a_dollar_is_doubled() {
        for (text, value) in [
            ("a$$b$$$$", "a$b$$"),
            ("$${HOME}", "${HOME}"),
            ("${A:-b}", "b"),
            ("${A-b}", "b"),
            ("x${A:-}y", "xy"),
            ("${A:+b}", ""),
            ("${A+b}", ""),
            ("${A:-${B:-c}d}e", "cde"),
            ("${_a1:-$$x}", "$x"),
            ("${A:-http://[::1]:80/?q={1}", "http://[::1]:80/?q={1"),
            ("${A:-secret://a/b/c}", "secret://a/b/c"),
            ("${secret://a/b/c}", "<a/b/c>"),
            ("u:${secret://a/b/c}@${B:-db}/x", "u:<a/b/c>@db/x"),
            ("$$${secret://a/b/c|url}$$", "$<a/b/c|url>$"),
            ("$${secret://a/b/c}", "${secret://a/b/c}"),
            ("${A:-x${secret://a/b/c}y}z", "x<a/b/c>yz"),
        ] {
            assert_eq!(filled(text).as_deref(), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_only_an_environment_could_fill_is_an_error() {
        for (text, why) in [
            ("$A", "`A` would come from"),
            ("${A}", "`A` would come from"),
            ("${A:?say it}", "`A` would come from"),
            ("${A:-${B}}", "`B` would come from"),
            ("$", "no variable"),
            ("a$", "no variable"),
            ("$$$", "no variable"),
            ("$1", "no variable"),
            ("${}", "no variable"),
            ("${A/b/c}", "no variable"),
            ("${A", "not closed"),
            ("${A:-${B:-c}", "not closed"),
            ("${secret://a/b}", "not a secret's reference"),
            ("${secret://a/b/c", "not closed"),
            ("${secret://a/b/c|base64}", "`|base64` is nothing"),
            ("${secret://a/b/c|}", "nothing that can be done"),
            ("${secret://a/b/c:-x}", "not a secret's reference"),
            ("${secret:?x}", "`secret` would come from"),
        ] {
            let error = filled(text).unwrap_err();
            assert!(error.message.contains(why), "{text}: {}", error.message);
        }
        let deep = format!("{}x{}", "${A:-".repeat(40), "}".repeat(40));
        assert!(filled(&deep).unwrap_err().message.contains("deeper"));
    }
}
