//! One stream of output on its way through the redactor.
//!
//! What is kept between two calls is exactly the part of the output that begins a pattern: the matcher's answer for
//! a place depends only on what follows it, so the kept bytes are looked at again together with what comes next.
//! Part of the kept bytes may have been written already, either as they are (because nothing came for a
//! while) or as a mask (because a match reaches into them); they are kept so that the rest of a secret is still known
//! as such, and are never written twice.

use std::sync::Arc;

use zeroize::{Zeroize, Zeroizing};

use crate::Redactor;
use crate::base64::Tail;
use crate::decode::{Skip, skip};
use crate::matcher::{Begun, Found, Match, Matcher};

/// What is left of half a secret or more when the output ends is masked, from this many symbols on: shorter
/// ones are words that stand at the end of other texts too.
const LONG_PARTIAL: usize = 8;

/// The most that a stream holds back, in bytes. A pattern has at most 108 symbols (hexadecimal of a piece). Each takes at most 26
/// bytes (a character beyond U+FFFF in JSON, its backslashes doubled three times) and stands at most 273 after the one before it: twice
/// [`MAX_GAP`](crate::MAX_GAP) and an escape for ESC between the two halves. Behind the last, `MAX_GAP` of line breaks.
pub const MAX_HELD: usize = 32 * 1024;

/// How much of the input is copied behind what was kept: several times what is usually kept.
const BRIDGE: usize = 512;

/// Redacts one stream. Made by [`crate::Redactor::stream`]; its memory is zeroized when it is dropped.
pub struct Stream {
    redactor: Redactor,
    /// The redactor's, as of the last look.
    matcher: Arc<Matcher>,
    /// From the first byte that may still become part of a match.
    kept: Zeroizing<Vec<u8>>,
    /// How many of the kept bytes are accounted for in what was written.
    written: usize,
    /// The names in the mask that was written last, when nothing was written after it.
    mask: Vec<u32>,
    /// The end of an encoding whose mask was written last.
    ending: Option<Ending>,
    found: Found,
}

/// What may follow a match of base64 and belongs to it: the character with the secret's last bits, and padding.
#[derive(Debug, Clone, Copy)]
struct Ending {
    tail: Option<Tail>,
    padding: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    More,
    Pause,
    End,
}

impl Stream {
    pub(crate) fn new(redactor: Redactor) -> Self {
        let matcher = redactor.matcher();
        let (kept, mask, found) = (Zeroizing::new(Vec::new()), Vec::new(), Found::default());
        Self { redactor, matcher, kept, written: 0, mask, ending: None, found }
    }

    /// Takes what the workload wrote and appends to `out` what of it may be shown.
    ///
    /// Everything is appended except the bytes at the end that begin a secret or an encoding of one. Of these, one
    /// or two symbols before a line break are appended too, so that ordinary lines come out whole.
    pub fn push(&mut self, input: &[u8], out: &mut Vec<u8>) {
        if self.ending.is_some() {
            // What ends the encoding that was masked last is accounted for, and may begin something all the same.
            self.written = self.kept.len() + ending_length(&mut self.ending, input);
        }
        let mut taken = 0;
        while taken < input.len() {
            // What was kept is joined with a little of the input. What is then kept lies within the input, so the rest
            // need not be copied.
            if self.kept.len() > taken {
                let end = not_after_a_break(input, taken + BRIDGE);
                let mut data = Zeroizing::new(Vec::with_capacity(self.kept.len() + end - taken));
                data.extend_from_slice(&self.kept);
                data.extend_from_slice(input.get(taken..end).unwrap_or_default());
                self.process(&data, Until::More, out);
                taken = end;
            } else {
                let from = taken - self.kept.len();
                self.process(input.get(from..).unwrap_or_default(), Until::More, out);
                taken = input.len();
            }
        }
    }

    /// To be called when nothing has arrived for about a second: shows what is held back when it is no more than two
    /// bytes of a secret, so that a prompt does not wait for ever because it ends in a secret's first letter. Should
    /// the rest arrive later it is still masked.
    ///
    /// A longer beginning stays held back: whoever writes half a secret, pauses and writes the other half would
    /// otherwise have written all of it. When a line break follows, up to a quarter of the secret is shown.
    pub fn idle(&mut self, out: &mut Vec<u8>) {
        if !self.kept.is_empty() {
            let data = std::mem::take(&mut self.kept);
            self.process(&data, Until::Pause, out);
        }
    }

    /// To be called at the end of the output: shows what is held back, except that a beginning of at least half a
    /// secret and at least eight symbols is masked like the whole. The stream is then as new.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        let data = std::mem::take(&mut self.kept);
        self.process(&data, Until::End, out);
        self.kept.zeroize();
        self.written = 0;
        self.mask.clear();
        self.ending = None;
    }

    /// How many bytes are held back at the moment.
    pub fn held(&self) -> usize {
        self.kept.len() - self.written
    }

    fn process(&mut self, data: &[u8], until: Until, out: &mut Vec<u8>) {
        let matcher = self.redactor.matcher();
        if !Arc::ptr_eq(&matcher, &self.matcher) {
            // Names have other numbers in it.
            self.mask.clear();
            self.matcher = matcher;
        }
        let mut found = std::mem::take(&mut self.found);
        self.matcher.find(data, &mut found);
        let (keep, hold) = match until {
            Until::End => {
                self.mask_long_partials(data, &mut found);
                (data.len(), data.len())
            }
            Until::More | Until::Pause => self.ends(data, until, &found.begun),
        };
        self.write(data, hold, &found.matches, out);
        self.written = self.written.saturating_sub(keep);
        let rest = Zeroizing::new(data.get(keep..).unwrap_or_default().to_vec());
        self.kept = rest;
        self.found = found;
    }

    /// From where on bytes have to be kept, and from where on they have to be held back.
    fn ends(&self, data: &[u8], until: Until, begun: &[Begun]) -> (usize, usize) {
        let keep = begun.first().map_or(data.len(), |first| first.start);
        let held = begun.iter().find(|begun| {
            let Some(pattern) = self.matcher.patterns.get(begun.pattern) else { return false };
            let symbols = self.matcher.patterns.symbols(pattern).len();
            match until {
                Until::More => !(begun.broken && begun.symbols <= pattern.two_bytes),
                Until::Pause | Until::End => !pattern.may_be_shown(begun, symbols),
            }
        });
        (keep, held.map_or(data.len(), |held| held.start))
    }

    /// Turns what the end cuts into matches when it is most of a secret.
    fn mask_long_partials(&self, data: &[u8], found: &mut Found) {
        for begun in &found.begun {
            let Some(pattern) = self.matcher.patterns.get(begun.pattern) else { continue };
            let symbols = self.matcher.patterns.symbols(pattern).len();
            if begun.symbols == symbols || (begun.symbols >= LONG_PARTIAL && begun.symbols * 2 >= symbols) {
                let text =
                    || data.iter().rposition(|b| !matches!(b, b'\r' | b'\n')).map_or(0, |last| last + 1);
                let end = begun.end.unwrap_or_else(text);
                found.matches.push(Match { start: begun.start, end, pattern: begun.pattern });
            }
        }
        found.matches.sort_unstable();
    }

    /// Writes everything before `hold`, and the masks of all matches that begin before it.
    fn write(&mut self, data: &[u8], hold: usize, matches: &[Match], out: &mut Vec<u8>) {
        let mut cursor = self.written;
        // Of the matches so far, the furthest end and where that match starts: what lies within it is part of it.
        let mut furthest = (0, 0);
        for (index, found) in matches.iter().enumerate() {
            if found.start >= hold {
                break;
            }
            // Of several matches from one place, the longest comes last.
            let longer = matches.iter().skip(index + 1).take_while(|other| other.start == found.start);
            let (end, start) = furthest;
            let is_part = found.end < end || (found.end == end && found.start > start);
            if is_part || found.end <= self.written || longer.into_iter().any(|other| other.end > found.end) {
                continue;
            }
            furthest = (found.end, found.start);
            let Some(pattern) = self.matcher.patterns.get(found.pattern) else { continue };
            if found.start > cursor {
                out.extend_from_slice(data.get(cursor..found.start).unwrap_or_default());
                self.mask.clear();
                cursor = found.start;
            }
            if !self.mask.contains(&pattern.name) {
                self.mask.push(pattern.name);
                out.extend_from_slice(b"[redacted:");
                out.extend_from_slice(self.matcher.patterns.name(pattern.name).as_bytes());
                out.push(b']');
            }
            if found.end > cursor {
                keep_colours(data.get(cursor..found.end).unwrap_or_default(), out);
                cursor = found.end;
                let base64 = pattern.class == crate::pattern::Class::Base64;
                self.ending = base64.then_some(Ending { tail: pattern.tail, padding: 2 });
                cursor += ending_length(&mut self.ending, data.get(cursor..).unwrap_or_default());
            }
        }
        if cursor < hold {
            out.extend_from_slice(data.get(cursor..hold).unwrap_or_default());
            self.mask.clear();
            self.ending = None;
            cursor = hold;
        }
        if cursor < data.len() {
            self.ending = None;
        }
        self.written = cursor;
    }
}

/// The next place from `end` on that does not follow a line break, so that where the input is cut for processing makes no
/// difference to what comes out.
fn not_after_a_break(input: &[u8], end: usize) -> usize {
    let rest = input.get(end.saturating_sub(1)..).unwrap_or_default();
    let breaks = rest.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    input.len().min(end + breaks)
}

/// How many bytes belong to an ending, which is left as what may still come.
fn ending_length(ending: &mut Option<Ending>, data: &[u8]) -> usize {
    let mut length = 0;
    for byte in data {
        match ending {
            Some(Ending { tail: Some(tail), padding }) if tail.begins(*byte) => {
                *ending = Some(Ending { tail: None, padding: *padding });
            }
            Some(Ending { padding: 1.., .. }) if *byte == b'=' => {
                *ending = ending.map(|ending| Ending { tail: None, padding: ending.padding - 1 });
            }
            _ => {
                *ending = None;
                break;
            }
        }
        length += 1;
    }
    length
}

/// Writes the colours that a mask would otherwise swallow (ECMA-48 SGR: `ESC [ … m`) and nothing else.
fn keep_colours(masked: &[u8], out: &mut Vec<u8>) {
    for at in memchr::memchr_iter(0x1b, masked) {
        if let Skip::To(end) = skip(masked, at)
            && let Some(sequence) = masked.get(at..end)
            && let Some(parameters) = sequence.strip_prefix(b"\x1b[").and_then(|rest| rest.strip_suffix(b"m"))
            && parameters.iter().all(|b| b.is_ascii_digit() || matches!(b, b';' | b':'))
        {
            out.extend_from_slice(sequence);
        }
    }
}
