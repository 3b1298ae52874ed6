//! `.env` files and `${…}`, as Compose reads both.

use std::collections::BTreeMap;

/// Depth of defaults within defaults.
const MAX_NESTING: usize = 16;
/// Of one filled text; a declaration takes no longer one. A variable that is made of others could double with each line.
const MAX_FILLED: usize = 64 << 10;
/// Of all values of one file.
const MAX_VALUES: usize = 1 << 20;

/// Reads a `.env` file: `KEY=value` lines with keys as `is_key` has them, `export` before it, comments, single quotes for a text as it is, double quotes with `\n`,
/// `\"` and `$` in them. Values may use the variables before them.
///
/// # Errors
///
/// A sentence with its line.
pub(crate) fn env_file(
    source: &str,
    known: &BTreeMap<String, String>,
    is_key: impl Fn(&str) -> bool,
) -> Result<Vec<(String, String)>, String> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut scope = known.clone();
    let mut rest = source.trim_start_matches('\u{feff}');
    let (mut number, mut total) = (0, 0_usize);
    while !rest.is_empty() {
        number += 1;
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let text = line.trim_start();
        let text = text.strip_prefix("export ").map_or(text, str::trim_start);
        if text.trim_end().is_empty() || text.starts_with('#') {
            rest = after;
            continue;
        }
        let began = number;
        let wrong = |why: &str| format!("line {began}: {why}");
        let (name, value) = text.split_once('=').ok_or_else(|| wrong("not KEY=value"))?;
        let name = name.trim();
        if !is_key(name) {
            return Err(wrong("what stands before the `=` is no name"));
        }
        let value = value.trim_start_matches([' ', '\t']);
        let value = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                // A quoted value may go on in the next lines.
                let start = rest.len() - after.len() - usize::from(rest.len() != line.len());
                let offset = start - value.len() + 1;
                let body = rest.get(offset..).unwrap_or_default();
                let end = closing(body, quote).ok_or_else(|| wrong("a quote that is not closed"))?;
                let inner = body.get(..end).unwrap_or_default();
                number += inner.matches('\n').count();
                let tail = body.get(end + 1..).unwrap_or_default();
                let (tail, next) = tail.split_once('\n').unwrap_or((tail, ""));
                if !tail.trim().is_empty() && !tail.trim_start().starts_with('#') {
                    return Err(wrong("something stands after the closing quote"));
                }
                rest = next;
                if quote == '"' { fill(&unescaped(inner), &scope)?.text } else { inner.to_owned() }
            }
            _ => {
                rest = after;
                let value = value.split_once(" #").map_or(value, |(value, _)| value).trim_end();
                fill(value, &scope)?.text
            }
        };
        total = total.saturating_add(value.len());
        if total > MAX_VALUES {
            return Err(wrong("the values so far have more than 1 MiB"));
        }
        scope.insert(name.to_owned(), value.clone());
        found.push((name.to_owned(), value));
    }
    Ok(found)
}

fn closing(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if c == quote && !escaped {
            return Some(at);
        }
        escaped = quote == '"' && c == '\\' && !escaped;
    }
    None
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => match chars.next() {
                Some('n') => out.push('\n'),
                Some('r') => out.push('\r'),
                Some('t') => out.push('\t'),
                Some('$') => out.push_str("$$"),
                Some(other) => out.push(other),
                None => out.push('\\'),
            },
            (c, false) => out.push(c),
        }
    }
    out
}

/// A text with its variables filled.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filled {
    pub(super) text: String,
    /// What it was put together from.
    pub(super) pieces: Vec<Piece>,
    /// The variables that were asked for.
    pub(super) used: Vec<String>,
    /// Those of them that nobody set and that have no default: empty, as in Compose.
    pub(super) unset: Vec<String>,
    /// Those that have to be set and are not, each with what the compose file says about it.
    pub(super) missing: Vec<(String, String)>,
}

/// A part of a filled text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) text: String,
    /// The variable that it is the value of, or the default.
    pub(super) variable: Option<String>,
    /// Whether its value is known: a variable that nobody set has none.
    pub(super) known: bool,
}

/// Fills `$NAME` and `${NAME}` with their operators (`:-` `-` `:?` `?` `:+` `+`); `$$` is a `$`.
///
/// # Errors
///
/// A sentence: not such an expression, or a variable that has to be set.
pub(super) fn fill(text: &str, variables: &BTreeMap<String, String>) -> Result<Filled, String> {
    let filled = fill_known(text, variables)?;
    match filled.missing.first() {
        Some((name, why)) => Err(has_to_be_set(name, why)),
        None => Ok(filled),
    }
}

/// The same, where a variable that has to be set and is not is told in [`Filled::missing`].
///
/// # Errors
///
/// A sentence: not such an expression.
pub(super) fn fill_known(text: &str, variables: &BTreeMap<String, String>) -> Result<Filled, String> {
    let mut filled = Filled::default();
    fill_into(text, variables, &mut filled, 0)?;
    Ok(filled)
}

/// Why a text cannot be filled.
pub(super) fn has_to_be_set(name: &str, why: &str) -> String {
    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
    format!("the variable {name} has to be set{why}")
}

impl Filled {
    fn add(&mut self, text: &str, depth: usize) {
        self.text.push_str(text);
        match self.pieces.last_mut() {
            _ if depth > 0 || text.is_empty() => {}
            Some(Piece { text: last, variable: None, .. }) => last.push_str(text),
            _ => self.pieces.push(Piece { text: text.to_owned(), variable: None, known: true }),
        }
    }

    /// Marks what was added since then as one variable's, at the top.
    fn variable(&mut self, name: &str, depth: usize, since: (usize, usize)) {
        if depth > 0 {
            return;
        }
        let (text, unknown) = since;
        let text = self.text.get(text..).unwrap_or_default().to_owned();
        let known = self.unset.len() + self.missing.len() == unknown;
        self.pieces.push(Piece { text, variable: Some(name.to_owned()), known });
    }

    fn so_far(&self) -> (usize, usize) {
        (self.text.len(), self.unset.len() + self.missing.len())
    }
}

fn fill_into(
    text: &str,
    variables: &BTreeMap<String, String>,
    filled: &mut Filled,
    depth: usize,
) -> Result<(), String> {
    if depth > MAX_NESTING {
        return Err("`${…}` is nested too deeply".to_owned());
    }
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        if filled.text.len() > MAX_FILLED {
            return Err("it would have more than 64 KiB, its variables filled in".to_owned());
        }
        filled.add(before, depth);
        if let Some(after) = after.strip_prefix('$') {
            filled.add("$", depth);
            rest = after;
        } else if let Some(after) = after.strip_prefix('{') {
            let end = brace(after).ok_or_else(|| "`${` without its `}`".to_owned())?;
            let (inside, after) = (after.get(..end), after.get(end + 1..));
            braced(inside.unwrap_or_default(), variables, filled, depth)?;
            rest = after.unwrap_or_default();
        } else {
            let length = after.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
            let (name, after) = after.split_at(length);
            if is_name(name) {
                let since = filled.so_far();
                named(name, variables, filled);
                filled.variable(name, depth, since);
            } else {
                filled.add("$", depth);
                filled.add(name, depth);
            }
            rest = after;
        }
    }
    filled.add(rest, depth);
    Ok(())
}

/// The place of the `}` that closes.
fn brace(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut last = ' ';
    for (at, c) in text.char_indices() {
        match c {
            '{' if last == '$' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
        last = c;
    }
    None
}

fn braced(
    inside: &str,
    variables: &BTreeMap<String, String>,
    filled: &mut Filled,
    depth: usize,
) -> Result<(), String> {
    let length = inside.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
    let (name, operator) = inside.split_at(length);
    if !is_name(name) {
        return Err(format!("`${{{inside}}}` does not begin with a variable's name"));
    }
    let (colon, operator) = match operator.strip_prefix(':') {
        Some(rest) => (true, rest),
        None => (false, operator),
    };
    let value = variables.get(name).filter(|value| !colon || !value.is_empty());
    let mut chars = operator.chars();
    let kind = chars.next();
    let word = chars.as_str();
    let since = filled.so_far();
    match (kind, value) {
        (None, _) if !colon => named(name, variables, filled),
        (Some('-' | '?'), Some(value)) => {
            filled.used.push(name.to_owned());
            filled.text.push_str(value);
        }
        (Some('-'), None) => {
            filled.used.push(name.to_owned());
            fill_into(word, variables, filled, depth + 1)?;
        }
        (Some('?'), None) => {
            filled.used.push(name.to_owned());
            filled.missing.push((name.to_owned(), word.to_owned()));
        }
        (Some('+'), Some(_)) => fill_into(word, variables, filled, depth + 1)?,
        (Some('+'), None) => {}
        _ => return Err(format!("`${{{inside}}}` is not an expression that Compose knows")),
    }
    filled.variable(name, depth, since);
    Ok(())
}

fn named(name: &str, variables: &BTreeMap<String, String>, filled: &mut Filled) {
    filled.used.push(name.to_owned());
    match variables.get(name) {
        Some(value) => filled.text.push_str(value),
        None => filled.unset.push(name.to_owned()),
    }
}

/// Whether this can be a variable's name.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> BTreeMap<String, String> {
        [("A", "one"), ("EMPTY", ""), ("D", "a$b")].map(|(name, value)| (name.into(), value.into())).into()
    }

    #[test]
    fn expressions_are_filled_as_compose_does() {
        for (text, expected) in [
            ("$A-${A}", "one-one"),
            ("$$A $${A}", "$A ${A}"),
            ("${EMPTY:-x}${EMPTY-x}", "x"),
            ("${NO:-${A}}", "one"),
            ("${NO:-a}b}", "ab}"),
            ("${NO-}", ""),
            ("${A:+yes}${EMPTY:+yes}${EMPTY+set}${NO+no}", "yesset"),
            ("${A:?needed}", "one"),
            ("$D", "a$b"),
            ("100$ and $1", "100$ and $1"),
            ("postgres://u:${A}@db/x", "postgres://u:one@db/x"),
        ] {
            assert_eq!(fill(text, &known()).unwrap().text, expected, "{text}");
        }
        let filled = fill("${NO}/$A", &known()).unwrap();
        assert_eq!((filled.used, filled.unset), (vec!["NO".into(), "A".into()], vec!["NO".to_owned()]));
        for (text, why) in
            [("${NO:?say}", "say"), ("${A", "without"), ("${}", "name"), ("${A!x}", "expression")]
        {
            assert!(fill(text, &known()).unwrap_err().contains(why), "{text}");
        }
        let long = BTreeMap::from([("A".to_owned(), "x".repeat(MAX_FILLED))]);
        assert!(fill(&"$A".repeat(100_000), &long).unwrap_err().contains("64 KiB"));
        let deep = "${X:-".repeat(40) + &"}".repeat(40);
        assert!(fill(&deep, &known()).is_err());
    }

    #[test]
    fn a_file_of_variables_is_read_as_compose_does() {
        let source = "# first\n\nexport A=one # comment\nB=\"two $A\\n\\$A\" # x\nC='as $A is'\nD=a#b\nE=\nF=\"two\nlines\"\nG = ${A:-x}\n";
        let found = env_file(source, &BTreeMap::new(), is_name).unwrap();
        let expected = [
            ("A", "one"),
            ("B", "two one\n$A"),
            ("C", "as $A is"),
            ("D", "a#b"),
            ("E", ""),
            ("F", "two\nlines"),
            ("G", "one"),
        ];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        // Each line twice the one before; and many that are each within their bound.
        let mut doubling = "A0=xxxxxxxx\n".to_owned();
        doubling.extend((1..40).map(|line| format!("A{line}=$A{0}$A{0}\n", line - 1)));
        let wide = format!("A={}\n", "x".repeat(60_000)) + &"B=$A\n".repeat(1000);
        for (source, why) in [(doubling, "64 KiB"), (wide, "1 MiB")] {
            assert!(env_file(&source, &BTreeMap::new(), is_name).unwrap_err().contains(why));
        }
        for (source, why) in [
            ("A=1\nB", "line 2"),
            ("A='x", "not closed"),
            ("1=x", "name"),
            ("A='x' y", "after the closing quote"),
        ] {
            assert!(env_file(source, &BTreeMap::new(), is_name).unwrap_err().contains(why), "{source}");
        }
    }
}
