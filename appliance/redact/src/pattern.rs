//! From secrets to the symbol strings that are searched for.
//!
//! A pattern is what one encoding makes of one piece of a secret, without anything that depends on what stands
//! around it: in base64 a secret at offset 0, 1 or 2 (mod 3) of a longer text has characters in its middle that are
//! the same whatever its neighbours are, and those are the pattern. How an escape, a line wrap or a colour in between
//! is read is not multiplied out here; the matcher does that.

use std::ops::Range;

use zeroize::Zeroizing;

use crate::RedactError;
use crate::base64::{self, Alphabet, Tail};

/// A secret longer than this is searched for in overlapping pieces, so that a match never needs more than
/// about a hundred characters of context and the part of a truncated secret is masked too.
const PIECE: usize = 54;
/// From one piece's start to the next: a multiple of 3, so that all pieces have the same base64 alignment, and
/// short of [`PIECE`], so that the characters a piece shares with its neighbours are in one of them.
const STEP: usize = 48;
/// A line of a multi-line secret is searched for alone when it has this many bytes: shorter ones are brackets,
/// indentation and words that stand in other texts too.
const MIN_LINE: usize = 12;
/// Secrets up to this size, in bytes, are searched for in twice-encoded base64, whose patterns take 30 times their size.
pub const MAX_TWICE: usize = 4096;
/// Fewer symbols of twice-encoded base64 than this occur by chance.
const MIN_TWICE: usize = 8;
/// The bytes in one line of base64 at 76 and at 64 columns (MIME, RFC 2045; PEM, RFC 7468).
const LINES_OF_BASE64: [usize; 2] = [57, 48];

/// How the symbols of a pattern compare with bytes of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// The bytes of the secret without its line breaks.
    Text,
    /// Characters of base64; `-` and `_` of the URL-safe alphabet are written as `+` and `/`.
    Base64,
    /// Lower-case hexadecimal digits.
    Hex,
}

/// One string to search for. Its symbols are in [`Patterns::symbols`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    at: Range<usize>,
    pub(crate) class: Class,
    /// Index into the names.
    pub(crate) name: u32,
    /// How many symbols carry no more than two bytes of the secret.
    pub(crate) two_bytes: usize,
    /// The bits of the secret in the base64 character after the pattern.
    pub(crate) tail: Option<Tail>,
}

/// All patterns of a set of secrets.
pub(crate) struct Patterns {
    arena: Zeroizing<Vec<u8>>,
    list: Vec<Pattern>,
    names: Vec<String>,
}

impl Patterns {
    /// Expands every secret. The number of patterns grows with the secrets' total size.
    pub(crate) fn new<N: Into<String>, V: AsRef<[u8]>>(
        secrets: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self, RedactError> {
        let mut drafts = Vec::new();
        let mut names = Vec::new();
        for (name, value) in secrets {
            let name = check_name(name.into())?;
            let id = u32::try_from(names.len()).unwrap_or(u32::MAX);
            if names.len() >= crate::MAX_SECRETS {
                return Err(RedactError::TooMany);
            }
            expand(&name, id, value.as_ref(), &mut drafts)?;
            names.push(name);
        }
        drafts.sort_by(|a, b| a.key().cmp(&b.key()));
        drafts.dedup_by(|a, b| a.key() == b.key());
        let total = drafts.iter().map(|draft| draft.symbols.len()).sum();
        let mut arena = Zeroizing::new(Vec::with_capacity(total));
        let list = drafts.iter().map(|draft| {
            let start = arena.len();
            arena.extend_from_slice(&draft.symbols);
            Pattern {
                at: start..arena.len(),
                class: draft.class,
                name: draft.name,
                two_bytes: draft.two_bytes,
                tail: draft.tail,
            }
        });
        let list = list.collect();
        Ok(Self { arena, list, names })
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn get(&self, id: u32) -> Option<&Pattern> {
        self.list.get(usize::try_from(id).ok()?)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Pattern)> {
        (0_u32..).zip(&self.list)
    }

    pub(crate) fn symbols(&self, pattern: &Pattern) -> &[u8] {
        self.arena.get(pattern.at.clone()).unwrap_or_default()
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn name(&self, id: u32) -> &str {
        usize::try_from(id).ok().and_then(|id| self.names.get(id)).map_or("", String::as_str)
    }
}

/// Whether a byte of the output is this symbol as it stands, without any escape.
pub(crate) fn accepts(class: Class, symbol: u8, byte: u8) -> bool {
    match class {
        // In a form's body a space is a plus (application/x-www-form-urlencoded).
        Class::Text => byte == symbol || (symbol == b' ' && byte == b'+'),
        Class::Base64 => base64::fold(byte) == symbol,
        Class::Hex => byte.to_ascii_lowercase() == symbol,
    }
}

/// Every byte that [`accepts`] takes for a symbol.
pub(crate) fn spellings(class: Class, symbol: u8) -> impl Iterator<Item = u8> {
    let second = match (class, symbol) {
        (Class::Text, b' ') => b'+',
        (Class::Base64, b'+') => b'-',
        (Class::Base64, b'/') => b'_',
        (Class::Hex, _) => symbol.to_ascii_uppercase(),
        _ => symbol,
    };
    std::iter::once(symbol).chain((second != symbol).then_some(second))
}

struct Draft {
    symbols: Zeroizing<Vec<u8>>,
    class: Class,
    name: u32,
    two_bytes: usize,
    tail: Option<Tail>,
}

impl Draft {
    fn key(&self) -> (u32, Class, &[u8], usize, Option<Tail>) {
        (self.name, self.class, &self.symbols, self.two_bytes, self.tail)
    }
}

fn check_name(name: String) -> Result<String, RedactError> {
    // The name is printed into the output, so it must not be able to do more there than be read.
    let ok = (1..=256).contains(&name.len()) && !name.chars().any(|c| c.is_control() || c == '[' || c == ']');
    if ok { Ok(name) } else { Err(RedactError::Name) }
}

fn expand(name: &str, id: u32, value: &[u8], drafts: &mut Vec<Draft>) -> Result<(), RedactError> {
    if value.len() > crate::MAX_SECRET {
        return Err(RedactError::TooLong { name: name.to_owned() });
    }
    // A file's last line break is not part of the secret and is not printed with it.
    let end = value.iter().rposition(|b| !is_break(*b)).map_or(0, |last| last + 1);
    let value = value.get(..end).unwrap_or_default();
    let text = without_breaks(value);
    if text.len() < crate::MIN_SECRET {
        return Err(RedactError::TooShort { name: name.to_owned() });
    }
    let mut add = |symbols: Zeroizing<Vec<u8>>, class, two_bytes, tail| {
        drafts.push(Draft { symbols, class, name: id, two_bytes, tail });
    };
    for section in sections(value, &text) {
        for piece in pieces(section.len(), PIECE, STEP) {
            add(whole_characters(&section, piece), Class::Text, 2, None);
        }
    }
    for bytes in line_break_variants(value) {
        encoded(&bytes, &mut add);
        if bytes.len() <= MAX_TWICE {
            twice(&bytes, &mut add);
        }
    }
    if value.contains(&b'\n') {
        for line in value.split(|b| is_break(*b)) {
            if line.len() < MIN_LINE || is_frame(line) {
                continue;
            }
            for piece in pieces(line.len(), PIECE, STEP) {
                add(whole_characters(line, piece), Class::Text, 2, None);
            }
            encoded(line, &mut add);
        }
    }
    Ok(())
}

/// Base64 in its three alignments, and hexadecimal.
fn encoded(bytes: &[u8], add: &mut impl FnMut(Zeroizing<Vec<u8>>, Class, usize, Option<Tail>)) {
    for piece in pieces(bytes.len(), PIECE, STEP) {
        let piece = slice(bytes, piece);
        for alignment in 0..3 {
            let (symbols, tail) = base64::middle(&piece, alignment, Alphabet::Standard);
            // Six bits each.
            add(symbols, Class::Base64, 2, tail);
        }
        // Four bits each.
        add(hexadecimal(&piece), Class::Hex, 4, None);
    }
}

/// Base64 of base64. The inner text may be wrapped at 76 or 64 columns, so the pieces are its lines.
fn twice(bytes: &[u8], add: &mut impl FnMut(Zeroizing<Vec<u8>>, Class, usize, Option<Tail>)) {
    for line in LINES_OF_BASE64 {
        for start in (0..bytes.len()).step_by(line) {
            let piece = slice(bytes, start..bytes.len().min(start + line));
            for inner in 0..3 {
                for alphabet in [Alphabet::Standard, Alphabet::UrlSafe] {
                    let (inner, _) = base64::middle(&piece, inner, alphabet);
                    for outer in 0..3 {
                        let (symbols, tail) = base64::middle(&inner, outer, Alphabet::Standard);
                        if symbols.len() >= MIN_TWICE {
                            // Four and a half bits each.
                            add(symbols, Class::Base64, 3, tail);
                        }
                    }
                }
            }
        }
        if bytes.len() <= line {
            break;
        }
    }
}

/// Where to cut: the whole when it is short, otherwise overlapping pieces of which the last ends at the end.
fn pieces(len: usize, size: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    let size = size.min(len);
    let last = len - size;
    (0..last).step_by(step).chain([last]).map(move |start| start..start + size)
}

/// A piece that begins with a whole character, since an escape such as `\u00e9` stands for a whole one. Where it
/// ends does not matter.
fn whole_characters(text: &[u8], range: Range<usize>) -> Zeroizing<Vec<u8>> {
    let continues = |at: &usize| text.get(*at).is_some_and(|b| b & 0xc0 == 0x80);
    // A character has at most three bytes after its first (RFC 3629).
    let back = (0..range.start).rev().take(3);
    let start = if continues(&range.start) { back.into_iter().find(|at| !continues(at)) } else { None };
    slice(text, start.unwrap_or(range.start)..range.end)
}

fn slice(bytes: &[u8], range: Range<usize>) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(bytes.get(range).unwrap_or_default().to_vec())
}

/// The text between the frames of PEM blocks; the whole text when there are none.
fn sections(value: &[u8], text: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    let lines = value.split(|b| is_break(*b)).collect::<Vec<_>>();
    let sections: Vec<_> = lines
        .split(|line| is_frame(line))
        .map(|lines| Zeroizing::new(lines.concat()))
        .filter(|section| section.len() >= crate::MIN_SECRET)
        .collect();
    if sections.is_empty() { vec![slice(text, 0..text.len())] } else { sections }
}

/// The frame of a PEM block is in every PEM block (RFC 7468) and is no secret.
fn is_frame(line: &[u8]) -> bool {
    line.starts_with(b"-----BEGIN ") || line.starts_with(b"-----END ")
}

fn is_break(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

fn without_breaks(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut text = Zeroizing::new(Vec::with_capacity(bytes.len()));
    text.extend(bytes.iter().copied().filter(|b| !is_break(*b)));
    text
}

/// The bytes as they are, with LF, and with CRLF, where that makes a difference.
fn line_break_variants(value: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    let mut variants = vec![slice(value, 0..value.len())];
    if value.contains(&b'\n') {
        let mut lf = Zeroizing::new(Vec::with_capacity(value.len()));
        let mut crlf = Zeroizing::new(Vec::with_capacity(value.len() * 2));
        for (index, byte) in value.iter().enumerate() {
            if *byte == b'\r' && value.get(index + 1) == Some(&b'\n') {
                continue;
            }
            if *byte == b'\n' {
                crlf.push(b'\r');
            }
            lf.push(*byte);
            crlf.push(*byte);
        }
        variants.extend([lf, crlf]);
    }
    variants
}

fn hexadecimal(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    let digit = |nibble: u8| if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
    let mut symbols = Zeroizing::new(Vec::with_capacity(bytes.len() * 2));
    symbols.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
    symbols
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_everything_and_overlap() {
        for len in [4, 53, 54, 55, 101, 102, 103, 150, 1000] {
            let ranges: Vec<_> = pieces(len, PIECE, STEP).collect();
            assert_eq!(ranges[0].start, 0);
            assert_eq!(ranges.last().unwrap().end, len);
            for pair in ranges.windows(2) {
                assert!(pair[1].start + 6 <= pair[0].end && pair[0].start < pair[1].start, "{len} {pair:?}");
            }
        }
    }

    #[test]
    fn a_name_cannot_write_to_a_terminal() {
        for name in ["", "a\x1b[2J", "a\nb", "a]", &"x".repeat(257)] {
            assert!(matches!(Patterns::new([(name, "secret")]), Err(RedactError::Name)), "{name:?}");
        }
    }
}
