//! From bytes to a tree of YAML nodes with places, under strict bounds.
//!
//! What comes out has only mappings with plain names as keys, lists, and scalars that still know how they were
//! written. Everything in YAML that lets two readers see two things is refused here: anchors, aliases, merge
//! keys, tags, directives, several documents, duplicate keys, tabs, invisible characters. The parser
//! below this is an event parser: nothing is expanded, so a small file cannot become a large tree.

use std::collections::BTreeMap;

use cofferdam_protocol::{is_deceptive, shorten};
use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span, StrInput};

use crate::composed::Part;
use crate::diagnostics::{Collector, Place};

/// A declaration is a page or two of text; this is far above any and far below what hurts.
pub const MAX_BYTES: usize = 1024 * 1024;
/// Nesting of mappings and lists; a declaration needs six.
pub const MAX_DEPTH: usize = 64;
/// Nodes in the tree, so that memory stays in proportion: 1 MiB of `[,,,` is a million nodes.
const MAX_NODES: usize = 100_000;

/// A node at its place.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) kind: Kind,
}

/// What a node is.
#[derive(Debug)]
pub(crate) enum Kind {
    Scalar {
        text: String,
        /// Written without quotes, so other readers of YAML may take it for a number or a boolean.
        plain: bool,
        /// A `${…}` in it was replaced by what the file itself says ([`crate::variables`]).
        filled: bool,
    },
    /// A text with secrets in it, as `${secret://…}` ([`crate::variables`]).
    Composed(Vec<Part>),
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// An alias: already reported, nothing can be said about it.
    Refused,
}

/// A key with its value.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) place: Place,
    pub(crate) value: Node,
}

/// Checks what can be said about the bytes alone. The text, or the one error that ends it.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, crate::Diagnostics> {
    let fail = |place, message: String, hint: &str| Err(crate::Diagnostics::single(place, message, hint));
    let first = Place { line: 1, column: 1, width: 1 };
    if bytes.len() > MAX_BYTES {
        return fail(first, format!("the declaration has {} bytes", bytes.len()), "at most 1 MiB is read");
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => {
            let before = String::from_utf8_lossy(bytes.get(..error.valid_up_to()).unwrap_or_default());
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            let place = Place { line, column, width: 1 };
            fail(place, "the declaration is not UTF-8".into(), "save the file with UTF-8 encoding")
        }
    }
}

/// Reads the one document of a file. Errors go to `errors`; `None` when no tree could be made.
pub(crate) fn read(source: &str, errors: &mut Collector<'_>) -> Option<Node> {
    check_characters(source, errors);
    if !errors.is_empty() {
        return None;
    }
    let mut options = granit_parser::options! {
        disallow_directives: true,
        emit_unresolved_aliases: true,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    options.set_emit_comments(false);
    let mut reader = Reader {
        events: Parser::new_from_str_with_options(source, options),
        source,
        errors,
        nodes: 0,
        aliases_reported: false,
    };
    reader.document()
}

/// Refuses control and deceptive characters anywhere: a declaration is reviewed by people, and what
/// they approve has to be what is read. One error per kind, at its first place.
fn check_characters(source: &str, errors: &mut Collector<'_>) {
    let (mut tabs, mut controls, mut deceptive) = (0_usize, 0_usize, 0_usize);
    for (index, line) in source.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        for (column, c) in line.chars().enumerate() {
            let place = Place { line: index + 1, column: column + 1, width: 1 };
            if c == '\t' {
                tabs += 1;
                if tabs == 1 {
                    errors.hinted(
                        place,
                        "a tab character",
                        "indent with spaces; inside double quotes write \\t",
                    );
                }
            } else if c.is_control() {
                controls += 1;
                if controls == 1 {
                    let message = format!("a control character, U+{:04X}", u32::from(c));
                    errors.hinted(
                        place,
                        message,
                        "inside double quotes write it as an escape, for example \\x1b",
                    );
                }
            } else if is_deceptive(c) {
                deceptive += 1;
                if deceptive == 1 {
                    let message = format!("an invisible character, U+{:04X}", u32::from(c));
                    errors.hinted(
                        place,
                        message,
                        "it can make a line read as something else; remove it, or write an escape inside double quotes",
                    );
                }
            }
        }
    }
}

struct Reader<'s, 'e, 'c> {
    events: Parser<'s, StrInput<'s>>,
    source: &'s str,
    errors: &'e mut Collector<'c>,
    nodes: usize,
    aliases_reported: bool,
}

/// A collection that is being read.
enum Open {
    List(Place, Vec<Node>),
    Map { place: Place, entries: Vec<Entry>, seen: BTreeMap<String, usize>, key: Option<Key> },
}

/// A key that waits for its value; `None` when the key was refused and its value is dropped with it.
type Key = Option<(String, Place)>;

impl<'s> Reader<'s, '_, '_> {
    fn document(&mut self) -> Option<Node> {
        let mut open: Vec<Open> = Vec::new();
        let mut root = None;
        let mut documents = 0;
        loop {
            let (event, span) = match self.events.next()? {
                Ok(next) => next,
                Err(error) => {
                    self.scan_error(&error);
                    return None;
                }
            };
            let place = self.place(&span);
            let node = match event {
                Event::StreamEnd => break,
                Event::DocumentStart(..) => {
                    documents += 1;
                    if documents > 1 {
                        self.errors.hinted(
                            place,
                            "a second YAML document",
                            "a declaration is one document; remove what follows `---`",
                        );
                        return None;
                    }
                    continue;
                }
                Event::Scalar(text, style, anchor, tag) => {
                    self.refuse_properties(place, anchor, tag.is_some(), &span);
                    let plain = style == ScalarStyle::Plain;
                    Node { place, kind: Kind::Scalar { text: text.into_owned(), plain, filled: false } }
                }
                Event::Alias(_) | Event::UnresolvedAlias(_) => {
                    self.refuse_alias(place);
                    Node { place, kind: Kind::Refused }
                }
                Event::SequenceStart(_, anchor, tag) => {
                    self.refuse_properties(place, anchor, tag.is_some(), &span);
                    self.descend(place, open.len())?;
                    open.push(Open::List(place, Vec::new()));
                    continue;
                }
                Event::MappingStart(_, anchor, tag) => {
                    self.refuse_properties(place, anchor, tag.is_some(), &span);
                    self.descend(place, open.len())?;
                    open.push(Open::Map { place, entries: Vec::new(), seen: BTreeMap::new(), key: None });
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => match open.pop()? {
                    Open::List(place, items) => Node { place, kind: Kind::List(items) },
                    Open::Map { place, entries, .. } => Node { place, kind: Kind::Map(entries) },
                },
                _ => continue,
            };
            self.count(place)?;
            match open.last_mut() {
                None => root = Some(node),
                Some(Open::List(_, items)) => items.push(node),
                Some(Open::Map { entries, seen, key, .. }) => match key.take() {
                    None => *key = Some(self.key(node, seen)),
                    Some(None) => {}
                    Some(Some((key, place))) => entries.push(Entry { key, place, value: node }),
                },
            }
        }
        root
    }

    /// A node in a key's position becomes a key, or an error.
    fn key(&mut self, node: Node, seen: &mut BTreeMap<String, usize>) -> Key {
        let Kind::Scalar { text, plain, .. } = node.kind else {
            if !matches!(node.kind, Kind::Refused) {
                self.errors.error(node.place, "a mapping or a list is used as a key");
            }
            return None;
        };
        if plain && text == "<<" {
            self.errors.hinted(
                node.place,
                "a merge key",
                "write the keys out, or let `coffer import` do it: what is measured and what is read are the same text",
            );
            return None;
        }
        if text.is_empty() {
            self.errors.error(node.place, "an empty key");
            return None;
        }
        if let Some(first) = seen.get(&text) {
            let message = format!("the key `{}` is given twice", shorten(&text, 64));
            self.errors.hinted(node.place, message, format!("it is first given in line {first}"));
            return None;
        }
        seen.insert(text.clone(), node.place.line);
        Some((text, node.place))
    }

    fn refuse_properties(&mut self, place: Place, anchor: usize, tagged: bool, span: &Span) {
        if anchor != 0 {
            self.refuse_alias(place);
        }
        if tagged {
            let place = span.tag_span().map_or(place, |span| self.place(&span));
            self.errors.hinted(
                place,
                "a YAML tag",
                "remove it; to make a number or a boolean a text, quote it",
            );
        }
    }

    /// Anchors and aliases are reported once: a file that uses them uses many.
    fn refuse_alias(&mut self, place: Place) {
        if !std::mem::replace(&mut self.aliases_reported, true) {
            self.errors.hinted(
                place,
                "an anchor or an alias",
                "write the value out, or let `coffer import` do it: what is measured and what is read are the same text",
            );
        }
    }

    fn descend(&mut self, place: Place, depth: usize) -> Option<()> {
        if depth >= MAX_DEPTH {
            self.errors.error(place, format!("nested deeper than {MAX_DEPTH} levels"));
            return None;
        }
        Some(())
    }

    fn count(&mut self, place: Place) -> Option<()> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            self.errors.error(place, format!("more than {MAX_NODES} values"));
            return None;
        }
        Some(())
    }

    fn scan_error(&mut self, error: &ScanError) {
        let marker = error.marker();
        let place = Place { line: marker.line().max(1), column: marker.col() + 1, width: 1 };
        match error.kind() {
            ErrorKind::RecursionLimitExceeded => {
                self.errors.error(place, format!("nested deeper than {MAX_DEPTH} levels"));
            }
            ErrorKind::DirectiveDisallowed => {
                self.errors.hinted(place, "a YAML directive", "remove the line that starts with %");
            }
            ErrorKind::MappingValueNotAllowed => self.errors.hinted(
                place,
                "not YAML: a `:` where no value may follow",
                "quote a text that has `: ` in it, and check the indentation above",
            ),
            ErrorKind::InvalidQuotedScalarIndent => {
                self.errors.hinted(
                    place,
                    "not YAML: a quoted text goes on without indentation",
                    "is a quote above not closed?",
                );
            }
            ErrorKind::UnclosedQuotedScalar => self.errors.error(place, "not YAML: a quote is not closed"),
            kind => self.errors.error(place, format!("not YAML: {kind}")),
        }
    }

    /// Where a node starts, and how much of its first line it covers.
    fn place(&self, span: &Span) -> Place {
        let covered = span.slice(self.source).unwrap_or_default();
        let width = covered.split('\n').next().unwrap_or_default().trim_end().chars().count();
        Place { line: span.start.line().max(1), column: span.start.col() + 1, width: width.max(1) }
    }
}
