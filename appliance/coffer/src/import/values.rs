//! Variables of services: what is a secret in them becomes a reference, and the rest stays as it is.

use std::ops::Range;

use super::convert::{Converter, Entries, MAX_FILE};
use super::secrets::{has_password, password_of, secretive, url_decoded, url_encoded};
use super::text_inside;
use super::variables::{Filled, Piece, env_file, has_to_be_set, is_name};
use super::yaml::Node;

/// Shorter ones are told from nothing else in an output, so the vault takes none.
const MIN_SECRET: usize = 4;

impl Converter<'_> {
    /// `env_file` and `environment`, of which the second counts.
    pub(super) fn environment(&mut self, service: &str, node: &Node) -> Entries {
        let mut out: Entries = Vec::new();
        let mut set = |key: String, value: Node| match out.iter_mut().find(|(name, _)| *name == key) {
            Some((_, old)) => *old = value,
            None => out.push((key, value)),
        };
        if let Some(files) = node.get("env_file") {
            let files = if files.items().is_empty() { std::slice::from_ref(files) } else { files.items() };
            for file in files {
                for (key, value) in self.variables_of(service, file) {
                    let value = self.literal(service, &key, value, file.line);
                    set(key, value);
                }
            }
        }
        let Some(environment) = node.get("environment") else { return out };
        for (key, value) in environment.entries() {
            let raw = if value.is_nothing() { None } else { value.as_text() };
            if let Some(value) = self.variable(service, key, raw, value.line) {
                set(key.clone(), value);
            }
        }
        for item in environment.items() {
            let Some(text) = item.as_text() else { continue };
            let (key, raw) = text.split_once('=').map_or((text, None), |(key, raw)| (key, Some(raw)));
            if let Some(value) = self.variable(service, key, raw, item.line) {
                set(key.to_owned(), value);
            }
        }
        out
    }

    fn variables_of(&mut self, service: &str, file: &Node) -> Vec<(String, String)> {
        let path = file.as_text().or_else(|| file.get("path").and_then(Node::as_text)).unwrap_or_default();
        let optional = file.get("required").and_then(Node::as_text) == Some("false");
        let path = self.fill(path, file.line).text;
        let read = text_inside(&self.compose.folder, &path, MAX_FILE)
            .and_then(|text| env_file(&text, &self.compose.variables, is_name));
        match read {
            Ok(variables) => {
                let count = variables.len();
                self.change(
                    file.line,
                    format!(
                        "services.{service}.env_file: {count} variables of `{path}` stand under `environment`"
                    ),
                );
                variables
            }
            Err(why) if optional => {
                self.drop(file.line, format!("services.{service}.env_file: {why}"));
                Vec::new()
            }
            Err(why) => {
                self.decide(file.line, format!("services.{service}.env_file: {why}"));
                Vec::new()
            }
        }
    }

    /// A variable as it stands in a file of variables: filled already.
    fn literal(&mut self, service: &str, key: &str, value: String, line: usize) -> Node {
        let piece = Piece { text: value.clone(), variable: None, known: true };
        let filled = Filled { text: value, pieces: vec![piece], ..Filled::default() };
        self.valued(service, key, &filled, line)
    }

    /// A variable of `environment`; without a value it is taken from the files of variables, as Compose takes it from the shell.
    fn variable(&mut self, service: &str, key: &str, raw: Option<&str>, line: usize) -> Option<Node> {
        let own = format!("${{{key}}}");
        let Some(raw) = raw else {
            if !self.compose.variables.contains_key(key) && !secretive(key) {
                self.decide(line, format!("services.{service}.environment: {key} has no value, and is not set: name a file with `--env-file`"));
                return None;
            }
            return self.variable(service, key, Some(&own), line);
        };
        match self.within_bounds(raw) {
            Ok(filled) => Some(self.valued(service, key, &filled, line)),
            Err(why) => {
                self.decide(line, format!("services.{service}.environment.{key}: {why}"));
                None
            }
        }
    }

    /// A variable whose text is known, as far as its variables are set.
    fn valued(&mut self, service: &str, key: &str, filled: &Filled, line: usize) -> Node {
        let at = format!("services.{service}.environment.{key}");
        let secret = |piece: &Piece| {
            piece.variable.as_deref().is_some_and(secretive) && !(piece.known && piece.text.is_empty())
        };
        let number = !filled.text.is_empty() && filled.text.bytes().all(|b| b.is_ascii_digit());
        let word = number || matches!(filled.text.as_str(), "true" | "false");
        let unknown = filled.pieces.iter().any(|piece| !piece.known);
        let named = secretive(key) && (!word || password(key)) && (unknown || !filled.text.is_empty());
        let address = filled.text.contains("://");
        let parts = filled.pieces.iter().any(secret) || has_password(&filled.text);
        if parts
            && (address || !named)
            && let Some(segments) = segments(filled)
        {
            return self.composed(&at, (service, key), segments, line);
        }
        if named || parts {
            return self.whole(&at, (service, key), filled, line);
        }
        self.unset(filled, line);
        Node::text(filled.text.clone(), line)
    }

    /// A value that is a secret from its beginning to its end.
    fn whole(&mut self, at: &str, names: (&str, &str), filled: &Filled, line: usize) -> Node {
        // The same variable of the person is the same secret wherever it is used alone.
        let (names, raw) = match filled.pieces.as_slice() {
            [Piece { variable: Some(variable), .. }] => {
                (("env", variable.as_str()), format!("${{{variable}}}"))
            }
            _ => (names, at.to_owned()),
        };
        let unknown = filled.pieces.iter().any(|piece| !piece.known);
        let value = (!unknown).then(|| filled.text.clone());
        match self.secret(at, names, &raw, value, line) {
            Some(reference) => Node::text(reference, line),
            None => Node::text(String::new(), line),
        }
    }

    /// A text in which secrets may stand, such as a config's.
    pub(super) fn text_of(&mut self, raw: &str, at: &str, line: usize) -> Option<Node> {
        let filled = match self.within_bounds(raw) {
            Ok(filled) => filled,
            Err(why) => {
                self.decide(line, format!("{at}: {why}"));
                return None;
            }
        };
        match segments(&filled) {
            Some(segments) if segments.iter().any(|segment| segment.secret) => {
                Some(self.composed(at, ("env", "value"), segments, line))
            }
            _ => {
                self.unset(&filled, line);
                Some(Node::ready(filled.text.replace('$', "$$"), line))
            }
        }
    }

    /// A text with secrets in it.
    fn composed(&mut self, at: &str, names: (&str, &str), segments: Vec<Segment>, line: usize) -> Node {
        if let [Segment { variable: Some(variable), text, known, secret: true, .. }] = segments.as_slice() {
            let value = known.then(|| text.clone());
            let reference = self.secret(at, ("env", variable), &format!("${{{variable}}}"), value, line);
            return Node::text(reference.unwrap_or_default(), line);
        }
        let mut out = String::new();
        for segment in &segments {
            if !segment.secret {
                out.push_str(&segment.text.replace('$', "$$"));
                if let (Some(variable), false) = (&segment.variable, segment.known) {
                    self.not_set(variable, line);
                }
                continue;
            }
            let (mut value, mut url) = (segment.known.then(|| segment.text.clone()), false);
            if segment.in_address {
                // Only where nothing of what Compose makes of it changes.
                let decoded = value.as_deref().and_then(url_decoded);
                match (&segment.variable, decoded) {
                    (None, Some(decoded)) => (value, url) = (Some(decoded), true),
                    _ => url = value.as_deref().is_none_or(|value| url_encoded(value) == value),
                }
            }
            let names = segment.variable.as_deref().map_or(names, |variable| ("env", variable));
            let raw = segment.variable.as_ref().map_or(at.to_owned(), |variable| format!("${{{variable}}}"));
            if let Some(reference) = self.secret(at, names, &raw, value, line) {
                out.push_str(&format!("${{{reference}{}}}", if url { "|url" } else { "" }));
            }
        }
        Node::ready(out, line)
    }

    /// The reference of a secret.
    fn secret(
        &mut self,
        at: &str,
        names: (&str, &str),
        raw: &str,
        value: Option<String>,
        line: usize,
    ) -> Option<String> {
        let unknown = value.is_none();
        let short = value.as_ref().is_some_and(|value| value.len() < MIN_SECRET);
        let Some(reference) = self.secrets.reference(&self.compose.project, names, raw, value) else {
            self.decide(line, format!("{at}: a secret that has no name here"));
            return None;
        };
        if short {
            self.decide(line, format!("{at}: {reference} has fewer than {MIN_SECRET} bytes, which the vault does not take: choose a longer one"));
        }
        let note = if unknown { ", whose value is not known here" } else { "" };
        self.change(line, format!("{at}: {reference}{note}"));
        Some(reference.to_string())
    }

    /// Says which variables are not set, each once: empty, as in Compose, or refused.
    pub(super) fn unset(&mut self, filled: &Filled, line: usize) {
        for unset in &filled.unset {
            self.not_set(unset, line);
        }
        for (name, why) in &filled.missing {
            self.decide(line, format!("{}: name a file with `--env-file`", has_to_be_set(name, why)));
        }
    }

    fn not_set(&mut self, variable: &str, line: usize) {
        if self.not_set.insert(variable.to_owned()) {
            self.decide(
                line,
                format!("{variable} is not set, and is empty here: name a file with `--env-file`"),
            );
        }
    }

    /// Takes note of passwords that stand alone, so that an address with the same one refers to the same secret by its name.
    pub(super) fn known_passwords(&mut self, service: &str, node: &Node) {
        let entries = node.entries().iter().filter_map(|(key, value)| Some((key.as_str(), value.as_text()?)));
        let items = node.items().iter().filter_map(|item| item.as_text()?.split_once('='));
        for (key, raw) in entries.chain(items) {
            if password(key) && secretive(key) && !raw.is_empty() && !raw.contains('$') {
                let value = Some(raw.to_owned());
                let _ = self.secrets.reference(&self.compose.project, (service, key), key, value);
            }
        }
    }
}

/// A part of a value.
#[derive(Debug, Clone)]
struct Segment {
    text: String,
    variable: Option<String>,
    known: bool,
    secret: bool,
    /// Whether it is the password of an address.
    in_address: bool,
}

/// The value in parts, of which each is a secret or has none in it. `None` when a password is put together from several.
fn segments(filled: &Filled) -> Option<Vec<Segment>> {
    let password = password_of(&filled.text);
    let mut start = 0;
    let mut out = Vec::new();
    let mut found = password.clone().is_none_or(|password| password.is_empty());
    for Piece { text, variable, known } in &filled.pieces {
        let range = start..start + text.len();
        start = range.end;
        let all = password.as_ref() == Some(&range);
        let part = |text: &str, secret| Segment {
            text: text.to_owned(),
            variable: variable.clone(),
            known: *known,
            secret,
            in_address: secret && password.is_some(),
        };
        if variable.as_deref().is_some_and(secretive) && !(*known && text.is_empty())
            || (all && !text.is_empty())
        {
            found |= all;
            out.push(Segment { in_address: all, ..part(text, true) });
            continue;
        }
        match password
            .clone()
            .filter(|password| !password.is_empty())
            .and_then(|password| within(&password, &range))
        {
            Some(inner) => {
                found = true;
                let parts = [(0..inner.start, false), (inner.clone(), true), (inner.end..text.len(), false)];
                for (range, secret) in parts {
                    let text = text.get(range)?;
                    if !text.is_empty() {
                        // What was cut out is not the variable's value.
                        out.push(Segment { variable: None, ..part(text, secret) });
                    }
                }
            }
            None => out.push(part(text, false)),
        }
    }
    found.then_some(out)
}

/// Where a range lies in another one, counted from its beginning.
fn within(inner: &Range<usize>, outer: &Range<usize>) -> Option<Range<usize>> {
    (outer.start <= inner.start && inner.end <= outer.end)
        .then(|| inner.start - outer.start..inner.end - outer.start)
}

/// Whether a number or a boolean can be the secret of a variable of this name.
fn password(variable: &str) -> bool {
    variable.to_ascii_uppercase().contains("PASS")
}
