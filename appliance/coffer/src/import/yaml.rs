//! A compose file as a tree: anchors, aliases and merge keys are written out, under bounds; and a tree as YAML.
//!
//! A declaration has none of these ([`cofferdam_declaration`] refuses them), and compose files do. Text keeps how it was written: `1.10` and
//! `yes` are texts to Compose's own reader of images and variables.

use std::collections::HashMap;
use std::fmt::Write as _;

use cofferdam_declaration::MAX_DEPTH;
use cofferdam_protocol::is_deceptive;
use granit_parser::{Event, Parser, ScalarStyle, Span};

/// With all aliases written out: a small file cannot become a large tree.
const MAX_NODES: usize = 100_000;

/// A value and the line that it stands in, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) kind: Kind,
}

/// What a value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Text {
        text: String,
        /// Without quotes: `true` may be a boolean, `~` nothing.
        plain: bool,
    },
    /// A text of a declaration as it stands there: `$` is doubled, and `${secret://…}` is a secret.
    Ready(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    pub(super) fn text(text: impl Into<String>, line: usize) -> Self {
        Self { line, kind: Kind::Text { text: text.into(), plain: false } }
    }

    /// A word that another reader of YAML may take for a number or a boolean.
    pub(super) fn plain(text: impl Into<String>, line: usize) -> Self {
        Self { line, kind: Kind::Text { text: text.into(), plain: true } }
    }

    pub(super) fn ready(text: impl Into<String>, line: usize) -> Self {
        Self { line, kind: Kind::Ready(text.into()) }
    }

    pub(super) fn list(items: Vec<Self>, line: usize) -> Self {
        Self { line, kind: Kind::List(items) }
    }

    pub(super) fn map(entries: Vec<(String, Self)>, line: usize) -> Self {
        Self { line, kind: Kind::Map(entries) }
    }

    /// The text, unless it is nothing or no text.
    pub(super) fn as_text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Text { text, plain } if !(*plain && is_nothing(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn is_nothing(&self) -> bool {
        matches!(&self.kind, Kind::Text { text, plain: true } if is_nothing(text))
    }

    pub(super) fn items(&self) -> &[Self] {
        match &self.kind {
            Kind::List(items) => items,
            _ => &[],
        }
    }

    pub(super) fn entries(&self) -> &[(String, Self)] {
        match &self.kind {
            Kind::Map(entries) => entries,
            _ => &[],
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        self.entries().iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The same, as if it stood in no line.
    pub(super) fn without_lines(mut self) -> Self {
        self.line = 0;
        self.kind = match self.kind {
            Kind::List(items) => Kind::List(items.into_iter().map(Self::without_lines).collect()),
            Kind::Map(entries) => {
                Kind::Map(entries.into_iter().map(|(key, value)| (key, value.without_lines())).collect())
            }
            text => text,
        };
        self
    }

    fn count(&self) -> usize {
        1 + match &self.kind {
            Kind::Text { .. } | Kind::Ready(_) => 0,
            Kind::List(items) => items.iter().map(Self::count).sum(),
            Kind::Map(entries) => entries.iter().map(|(_, value)| value.count()).sum(),
        }
    }
}

fn is_nothing(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// A collection that is being read.
struct Open {
    node: Node,
    anchor: usize,
    /// A key that waits for its value.
    key: Option<String>,
}

/// Reads one document. The error is a sentence with its line.
pub(super) fn read(source: &str) -> Result<Node, String> {
    let options = granit_parser::options! {
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let events = Parser::new_from_str_with_options(source, options);
    let (mut open, mut anchors, mut nodes): (Vec<Open>, HashMap<usize, Node>, usize) =
        (Vec::new(), HashMap::new(), 0);
    let mut documents = 0;
    let mut root = None;
    for event in events {
        let (event, span) = event.map_err(|error| format!("line {}: {error}", error.marker().line()))?;
        let line = line(&span);
        if let Event::Scalar(.., Some(tag))
        | Event::SequenceStart(.., Some(tag))
        | Event::MappingStart(.., Some(tag)) = &event
            && matches!(tag.suffix(), "reset" | "override")
        {
            return Err(format!(
                "line {line}: !{} is for several files: import what `docker compose config` writes of them",
                tag.suffix()
            ));
        }
        let (node, anchor) = match event {
            Event::StreamEnd => break,
            Event::DocumentStart(..) => {
                documents += 1;
                if documents > 1 {
                    return Err(format!("line {line}: a second YAML document"));
                }
                continue;
            }
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                (Node { line, kind: Kind::Text { text: text.into_owned(), plain } }, anchor)
            }
            Event::Alias(anchor) => {
                let known = anchors.get(&anchor).ok_or_else(|| format!("line {line}: an unknown alias"))?;
                nodes += known.count();
                (known.clone(), 0)
            }
            Event::SequenceStart(_, anchor, _) => {
                open.push(Open { node: Node::list(Vec::new(), line), anchor, key: None });
                continue;
            }
            Event::MappingStart(_, anchor, _) => {
                open.push(Open { node: Node::map(Vec::new(), line), anchor, key: None });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(done) => {
                    let (before, node) = (done.node.entries().len(), merged(done.node));
                    // What was merged is a copy.
                    nodes += if node.entries().len() > before { node.count() } else { 0 };
                    (node, done.anchor)
                }
                None => continue,
            },
            _ => continue,
        };
        if open.len() > MAX_DEPTH {
            return Err(format!("line {line}: nested deeper than {MAX_DEPTH} levels"));
        }
        // Its parts are counted already; what an anchor keeps is a copy.
        nodes += 1 + if anchor == 0 { 0 } else { node.count() };
        if nodes > MAX_NODES {
            return Err(format!("line {line}: more than {MAX_NODES} values, its aliases written out"));
        }
        if anchor != 0 {
            anchors.insert(anchor, node.clone());
        }
        match open.last_mut() {
            None => root = Some(node),
            Some(Open { node: Node { kind: Kind::List(items), .. }, .. }) => items.push(node),
            Some(Open { node: Node { kind: Kind::Map(entries), .. }, key, .. }) => match key.take() {
                Some(name) => entries.push((name, node)),
                None => match node.kind {
                    Kind::Text { text, .. } => *key = Some(text),
                    _ => return Err(format!("line {line}: a mapping or a list is used as a key")),
                },
            },
            Some(_) => {}
        }
    }
    root.ok_or_else(|| "the file is empty".to_owned())
}

fn line(span: &Span) -> usize {
    span.start.line().max(1)
}

/// Writes merge keys out: what the mapping says itself counts before what it merges, and the first merged before the next.
fn merged(mut node: Node) -> Node {
    let Kind::Map(entries) = &mut node.kind else { return node };
    if !entries.iter().any(|(key, _)| key == "<<") {
        return node;
    }
    let (merges, mut own): (Vec<_>, Vec<_>) =
        std::mem::take(entries).into_iter().partition(|(key, _)| key == "<<");
    for (_, merge) in merges {
        let sources = match merge.kind {
            Kind::List(items) => items,
            _ => vec![merge],
        };
        for (key, value) in sources.iter().flat_map(Node::entries) {
            if !own.iter().any(|(name, _)| name == key) {
                own.push((key.clone(), value.clone()));
            }
        }
    }
    *entries = own;
    node
}

/// Writes a mapping's entries at a depth, in block style.
pub(super) fn write(entries: &[(String, Node)], depth: usize, out: &mut String) {
    for (key, value) in entries {
        let _ = write!(out, "{:1$}{2}:", "", depth * 2, scalar(key, true));
        write_value(value, depth, out);
    }
}

fn write_value(value: &Node, depth: usize, out: &mut String) {
    let indent = depth * 2;
    match &value.kind {
        Kind::Text { text, plain } => {
            let _ = writeln!(out, " {}", scalar(text, *plain));
        }
        Kind::Ready(text) if is_block(text) => write_block(text, depth, out),
        Kind::Ready(text) => {
            let _ = writeln!(out, " {}", scalar(text, false));
        }
        Kind::List(items) if items.is_empty() => out.push_str(" []\n"),
        Kind::Map(entries) if entries.is_empty() => out.push_str(" {}\n"),
        Kind::List(items) => {
            out.push('\n');
            for item in items {
                let _ = write!(out, "{:indent$}  -", "");
                match &item.kind {
                    // A mapping in a list begins in the list's own line.
                    Kind::Map(entries) if !entries.is_empty() => {
                        let mut inner = String::new();
                        write(entries, depth + 2, &mut inner);
                        let _ = write!(out, " {}", inner.trim_start());
                    }
                    _ => write_value(item, depth + 1, out),
                }
            }
        }
        Kind::Map(entries) => {
            out.push('\n');
            write(entries, depth + 1, out);
        }
    }
}

/// Whether a text of several lines can stand in a literal block, as people read it (YAML 1.2.2 §8.1.2).
fn is_block(text: &str) -> bool {
    let ordinary =
        |c: char| c == '\n' || !(c.is_control() || is_deceptive(c) || matches!(c, '\u{2028}' | '\u{2029}'));
    text.trim_end_matches('\n').contains('\n') && text.chars().all(ordinary)
}

/// The indentation is said, so that the text's own at its beginning is its own.
fn write_block(text: &str, depth: usize, out: &mut String) {
    let body = text.trim_end_matches('\n');
    let chomping = match text.len() - body.len() {
        0 => "-",
        1 => "",
        _ => "+",
    };
    let _ = writeln!(out, " |2{chomping}");
    let text = if chomping == "+" { text } else { body };
    for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
        let indent = if line.is_empty() { 0 } else { depth * 2 + 2 };
        let _ = writeln!(out, "{:indent$}{line}", "");
    }
}

/// A text as every reader of YAML takes it: quoted, unless it is a word or was written without quotes.
fn scalar(text: &str, plain: bool) -> String {
    let word = |b: u8| b.is_ascii_alphanumeric() || b"_-./".contains(&b);
    let bare = text.bytes().all(word) && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/');
    // Words that are something else than text to some reader.
    let other = is_nothing(text)
        || text.starts_with(|c: char| c.is_ascii_digit())
        || matches!(
            text.to_ascii_lowercase().as_str(),
            "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    if bare && (plain || !other) && !(plain && is_nothing(text)) {
        return text.to_owned();
    }
    // JSON's strings are YAML's, but for what only YAML counts as the end of a line.
    let quoted = serde_json::Value::from(text).to_string();
    quoted
        .replace('\u{85}', "\\u0085")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
        .replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(node: &Node) -> String {
        let mut out = String::new();
        write(node.entries(), 0, &mut out);
        out
    }

    #[test]
    fn anchors_and_merge_keys_are_written_out_and_what_is_said_itself_counts() {
        let source = "x-base: &base\n  restart: always\n  user: a\nservices:\n  web:\n    <<: *base\n    user: b\n  \
                      api: {<<: [*base], image: x}\n";
        let root = read(source).unwrap();
        let services = root.get("services").unwrap();
        let web = services.get("web").unwrap();
        assert_eq!(web.get("user").and_then(Node::as_text), Some("b"));
        assert_eq!(web.get("restart").and_then(Node::as_text), Some("always"));
        assert_eq!(services.get("api").unwrap().entries().len(), 3);
        assert!(web.get("<<").is_none());
    }

    #[test]
    fn a_small_file_cannot_become_a_large_tree() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let _ =
                writeln!(bomb, "a{level}: &a{level} [{}]", vec![format!("*a{}", level - 1); 10].join(", "));
        }
        assert!(read(&bomb).unwrap_err().contains("more than 100000 values"));
        let deep = format!("{}x{}", "[".repeat(1000), "]".repeat(1000));
        assert!(read(&deep).is_err());
        assert!(read("a: *nobody").is_err());
        assert!(read("").is_err() && read("a: 1\n---\nb: 2").is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same_text(texts in prop::collection::vec(any::<String>(), 1..5), key in "[a-z]{1,5}") {
            let texts: Vec<_> = texts.into_iter().map(|text| text.replace('\u{feff}', "")).collect();
            let list = Node::list(texts.iter().map(|text| Node::text(text, 1)).collect(), 1);
            let root = Node::map(vec![(key.clone(), list), ("last".into(), Node::text(texts.concat(), 1))], 1);
            let out = written(&root);
            let back = read(&out).unwrap();
            let read: Vec<_> = back.get(&key).unwrap().items().iter().map(|item| match &item.kind {
                Kind::Text { text, .. } => text.clone(),
                _ => "?".into(),
            }).collect();
            prop_assert_eq!(read, texts, "{}", out);
        }

        #[test]
        fn a_block_is_read_as_the_same_text(text in "[ a:#|>-]{0,4}(\n{1,2}[ a$\u{e9}:#-]{0,6}){0,5}\n{0,3}", depth in 0..3_usize) {
            let mut node = Node::map(vec![("content".into(), Node::ready(&text, 1)), ("after".into(), Node::text("x", 1))], 1);
            for _ in 0..depth {
                node = Node::map(vec![("a".into(), node)], 1);
            }
            let out = written(&node);
            let mut back = read(&out).unwrap();
            for _ in 0..depth {
                back = back.get("a").unwrap().clone();
            }
            let Kind::Text { text: found, .. } = &back.get("content").unwrap().kind else { panic!() };
            prop_assert_eq!(found, &text, "{}", out);
            prop_assert_eq!(back.get("after").and_then(Node::as_text), Some("x"));
        }
    }
}
