//! Where in the output the patterns are: whole, and begun at its end.
//!
//! A pattern is at a place when its symbols can be read from there one after the other, each as it stands or as an
//! escape, with colours and line breaks in between. The answer depends on the bytes from that place on
//! and on nothing before them, so output may be cut anywhere and looked at again from any place.

use std::collections::BTreeSet;

use crate::decode::{MAX_GAP, Reading, Skip, escapes, is_special, skip};
use crate::index::{GROUP, HEX_SEPARATORS, Index, MAX_STRIDE};
use crate::pattern::{Class, Pattern, Patterns, accepts};

/// Readings of one place are few unless a secret consists of backslashes; then this ends the search.
const MAX_STATES: usize = 4096;
/// The same for the readings of four symbols.
const MAX_GROUPS: usize = 256;

/// A pattern that is in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Match {
    pub(crate) start: usize,
    /// After the last byte.
    pub(crate) end: usize,
    pub(crate) pattern: u32,
}

/// A pattern that the end of the output cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Begun {
    pub(crate) start: usize,
    /// How many of its symbols were read; none when an escape may be the first, all when the last may be longer.
    pub(crate) symbols: usize,
    /// Whether they stand before a line break with which the output ends.
    pub(crate) broken: bool,
    /// Where the secret ends if nothing else comes; `None`: where the output ends.
    pub(crate) end: Option<usize>,
    pub(crate) pattern: u32,
}

/// Everything found in one stretch of output.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) matches: Vec<Match>,
    pub(crate) begun: Vec<Begun>,
}

enum Outcome {
    No,
    Match(usize),
    Begun { symbols: usize, broken: bool, end: Option<usize> },
}

pub(crate) struct Matcher {
    pub(crate) patterns: Patterns,
    index: Index,
}

impl Matcher {
    pub(crate) fn new(patterns: Patterns) -> Self {
        let index = Index::new(&patterns);
        Self { patterns, index }
    }

    /// Finds every match and every begun pattern, sorted by their start.
    pub(crate) fn find(&self, data: &[u8], found: &mut Found) {
        found.matches.clear();
        found.begun.clear();
        if self.patterns.len() == 0 {
            return;
        }
        let mut search = Search { matcher: self, data, quiet_end: quiet_end(data), found };
        search.samples();
        search.near_escapes();
        search.near_line_breaks();
        search.at_the_end();
        found.matches.sort_unstable();
        found.matches.dedup();
        found.begun.sort_unstable();
        found.begun.dedup();
    }

    /// Finds the same by trying every pattern at every place: what `find` has to agree with.
    #[cfg(test)]
    pub(crate) fn find_slowly(&self, data: &[u8], found: &mut Found) {
        found.matches.clear();
        found.begun.clear();
        let mut search = Search { matcher: self, data, quiet_end: data.len(), found };
        for start in 0..data.len() {
            for (id, _) in self.patterns.iter() {
                search.verify(id, start);
            }
        }
        found.matches.sort_unstable();
        found.begun.sort_unstable();
    }
}

struct Search<'m, 'd, 'f> {
    matcher: &'m Matcher,
    data: &'d [u8],
    /// From here on there are only line breaks.
    quiet_end: usize,
    found: &'f mut Found,
}

impl Search<'_, '_, '_> {
    /// Patterns whose first bytes are as they stand.
    fn samples(&mut self) {
        let index = &self.matcher.index;
        let data = self.data;
        let mut at = 0;
        // The usual distance, four at a time: this loop sees every byte of clean output.
        if index.stride() == MAX_STRIDE {
            while let Some(stretch) =
                data.get(at..).and_then(<[u8]>::first_chunk::<{ 3 * MAX_STRIDE + GROUP }>)
            {
                let group = |offset: usize| match stretch.get(offset..offset + GROUP) {
                    Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
                    _ => 0,
                };
                let groups = [group(0), group(MAX_STRIDE), group(2 * MAX_STRIDE), group(3 * MAX_STRIDE)];
                let [a, b, c, d] = groups.map(|group| index.may_contain(group));
                if a | b | c | d {
                    for (count, group) in groups.into_iter().enumerate() {
                        if index.may_contain(group) {
                            self.sampled(group, at + count * MAX_STRIDE);
                        }
                    }
                }
                at += 4 * MAX_STRIDE;
            }
        }
        while let Some(&[a, b, c, d]) = data.get(at..).and_then(<[u8]>::first_chunk::<GROUP>) {
            let group = u32::from_le_bytes([a, b, c, d]);
            if index.may_contain(group) {
                self.sampled(group, at);
            }
            at += index.stride();
        }
    }

    #[cold]
    fn sampled(&mut self, group: u32, at: usize) {
        let matcher = self.matcher;
        for place in matcher.index.places(group) {
            if let Some(start) = at.checked_sub(place.offset) {
                self.verify(place.pattern, start);
            }
        }
    }

    /// Patterns that have an escape or a colour among their first symbols.
    fn near_escapes(&mut self) {
        let mut looked = 0;
        for at in memchr::memchr3_iter(b'%', b'\\', 0x1b, self.data) {
            self.near(at, &mut looked);
        }
        if self.matcher.index.quotes {
            looked = 0;
            for at in memchr::memchr_iter(b'\'', self.data) {
                self.near(at, &mut looked);
            }
        }
    }

    /// Looks at every place from which an escape is within reach, each once: before `looked` all were.
    fn near(&mut self, at: usize, looked: &mut usize) {
        // One more than the reach: `'\''` begins a byte before its backslash.
        let from = at.saturating_sub(self.matcher.index.reach());
        for start in from.max(*looked)..=at {
            self.look(start);
        }
        *looked = at + 1;
    }

    /// Patterns that have a line break among their first symbols.
    fn near_line_breaks(&mut self) {
        let data = self.data;
        let (mut looked, mut last) = (0, None);
        for at in memchr::memchr2_iter(b'\n', b'\r', data) {
            // Of several line breaks in a row, the first looks past the others.
            if at > 0 && last.replace(at) == Some(at - 1) {
                continue;
            }
            if !self.near_line_break(at, looked) {
                for start in at.saturating_sub(self.matcher.index.reach()).max(looked)..at {
                    self.look(start);
                }
            }
            looked = at + 1;
        }
    }

    /// Looks at the places before a usual line break without reading, as if it were not there. Where an
    /// escape comes first, [`Self::near_escapes`] looks; `false` where one or another line break comes after.
    #[inline]
    fn near_line_break(&mut self, at: usize, last: usize) -> bool {
        const BEFORE: usize = 8;
        let data = self.data;
        let (before, rest) = data.split_at_checked(at).unwrap_or((data, &[]));
        let after = match rest {
            [b'\r', b'\n', after @ ..] | [_, after @ ..] => after,
            [] => rest,
        };
        let (Some(before), Some(&[a, b, c, d])) =
            (before.last_chunk::<BEFORE>(), after.first_chunk::<GROUP>())
        else {
            return false;
        };
        if last + BEFORE > at || ![a, b, c].iter().all(is_simple) {
            return false;
        }
        let joined =
            u128::from(u64::from_le_bytes(*before)) | u128::from(u32::from_le_bytes([a, b, c, d])) << 64;
        for offset in 0..BEFORE {
            let group = (joined >> (8 * offset)) as u32;
            if self.matcher.index.may_contain(group) {
                self.looked(group, at - BEFORE + offset);
            }
        }
        true
    }

    /// Looks whether a pattern may begin here, reading escapes.
    fn look(&mut self, start: usize) {
        // What begins near the end is looked at there.
        if start + self.matcher.index.reach() >= self.data.len() {
            return;
        }
        let Some(&[a, b, c, d]) = self.data.get(start..).and_then(<[u8]>::first_chunk::<GROUP>) else {
            return;
        };
        let group = u32::from_le_bytes([a, b, c, d]);
        let simple = [a, b, c, d].iter().take_while(|b| is_simple(b)).count();
        if !self.matcher.index.may_begin(group, u32::try_from(simple).unwrap_or(0)) {
            return;
        }
        if simple == GROUP {
            if self.matcher.index.may_contain(group) {
                self.looked(group, start);
            }
            return;
        }
        let escaped = matches!(a, b'%' | b'\\');
        if !escaped && self.matcher.index.beginning_with(a).is_empty() {
            return;
        }
        let matcher = self.matcher;
        let mut groups = Groups { data: self.data, index: &matcher.index, budget: MAX_GROUPS, cut: false };
        groups.read(start, start, 0, 0, &mut |group| {
            if matcher.index.may_contain(group) {
                self.looked(group, start);
            }
        });
        if groups.cut {
            self.begins_here(start);
        }
    }

    #[cold]
    fn looked(&mut self, group: u32, start: usize) {
        let matcher = self.matcher;
        for place in matcher.index.places(group).filter(|place| place.offset == 0) {
            self.verify(place.pattern, start);
        }
    }

    /// Patterns that may begin so close to the end that no group of theirs is whole.
    fn at_the_end(&mut self) {
        for start in self.data.len().saturating_sub(self.matcher.index.reach())..self.data.len() {
            self.begins_here(start);
        }
    }

    /// Tries every pattern that can begin with what stands here.
    fn begins_here(&mut self, start: usize) {
        let Some(byte) = self.data.get(start) else { return };
        let matcher = self.matcher;
        if matches!(byte, b'%' | b'\\') {
            for (id, _) in matcher.patterns.iter() {
                self.verify(id, start);
            }
        } else {
            let ids = matcher.index.beginning_with(*byte);
            let rest = self.data.get(start..self.quiet_end).unwrap_or_default();
            // One byte before the end begins them all alike, so one stands for them.
            if let ([first, ..], 1, true) = (ids, rest.len(), is_simple(byte)) {
                let broken = self.quiet_end < self.data.len();
                self.found.begun.push(Begun { start, symbols: 1, broken, end: None, pattern: *first });
                return;
            }
            let mut group = [0; GROUP];
            let simple = rest
                .iter()
                .take(GROUP)
                .take_while(|b| is_simple(b))
                .zip(&mut group)
                .map(|(from, to)| *to = *from);
            let simple = u32::try_from(simple.count()).unwrap_or(0);
            if matcher.index.may_begin(u32::from_le_bytes(group), simple) {
                for id in ids {
                    self.verify(*id, start);
                }
            }
        }
    }

    fn verify(&mut self, id: u32, start: usize) {
        let Some(pattern) = self.matcher.patterns.get(id) else { return };
        let symbols = self.matcher.patterns.symbols(pattern);
        match read(pattern.class, symbols, self.data, start, self.quiet_end) {
            Outcome::No => {}
            Outcome::Match(end) => self.found.matches.push(Match { start, end, pattern: id }),
            Outcome::Begun { symbols, broken, end } => {
                self.found.begun.push(Begun { start, symbols, broken, end, pattern: id });
            }
        }
    }
}

/// Where the line breaks at the end begin.
fn quiet_end(data: &[u8]) -> usize {
    data.iter().rposition(|b| !matches!(b, b'\r' | b'\n')).map_or(0, |last| last + 1)
}

/// Reads a pattern's symbols from `start` on, in every way they may be written.
fn read(class: Class, symbols: &[u8], data: &[u8], start: usize, quiet_end: usize) -> Outcome {
    let (mut index, mut at) = (0, start);
    let plain = |index: &mut usize, at: &mut usize| -> Option<Outcome> {
        loop {
            let Some(symbol) = symbols.get(*index) else { return Some(Outcome::Match(*at)) };
            if *index > 0 && *at >= quiet_end && data.len() - quiet_end <= MAX_GAP {
                return Some(Outcome::Begun { symbols: *index, broken: *at < data.len(), end: None });
            }
            let Some(byte) = data.get(*at) else { return Some(Outcome::No) };
            if needs_care(class, *symbol, *byte, *index) {
                return None;
            }
            if !accepts(class, *symbol, *byte) {
                return Some(Outcome::No);
            }
            *index += 1;
            *at += 1;
        }
    };
    if let Some(outcome) = plain(&mut index, &mut at) {
        return outcome;
    }
    // Ordered by symbol, then by place: when the first whole reading comes, all others are there, and the last is the longest.
    let mut states = BTreeSet::from([(index, at)]);
    let mut begun: Option<(usize, bool)> = None;
    let mut count = 0;
    while let Some((mut index, mut at)) = states.pop_first() {
        if states.is_empty() {
            match plain(&mut index, &mut at) {
                None => {}
                Some(Outcome::Match(end)) => return whole(class, symbols, data, end, begun.is_some()),
                Some(Outcome::Begun { symbols, broken, .. }) => {
                    begun = begun.max(Some((symbols, broken)));
                    break;
                }
                Some(Outcome::No) => break,
            }
        }
        let Some(symbol) = symbols.get(index) else {
            let longest = states.last().map_or(at, |(_, last)| at.max(*last));
            return whole(class, symbols, data, longest, begun.is_some());
        };
        count += 1;
        if count > MAX_STATES {
            break;
        }
        let from = at;
        // Every place where the next symbol may stand, and whether a separator comes before it.
        let mut places = vec![(at, false)];
        while let Some((at, separated)) = places.pop() {
            let Some(byte) = data.get(at) else {
                let broken = data.last().is_some_and(|b| matches!(b, b'\r' | b'\n'));
                begun = begun.max((index > 0).then_some((index, broken)));
                continue;
            };
            if accepts(class, *symbol, *byte) {
                states.insert((index + 1, at + 1));
            }
            let cut = escapes(data, at, &mut |reading| {
                let rest = symbols.get(index..).unwrap_or_default();
                // A pattern may end within a character.
                let length = reading.bytes().len().min(rest.len());
                let fits =
                    rest.iter().zip(reading.bytes()).all(|(symbol, byte)| accepts(class, *symbol, *byte));
                if fits {
                    states.insert((index + length, reading.next));
                }
            });
            if cut {
                begun = begun.max(Some((index, false)));
            }
            if index == 0 || at - from > MAX_GAP {
                continue;
            }
            match skip(data, at) {
                Skip::To(next) => places.push((next, separated)),
                Skip::Cut => begun = begun.max(Some((index, false))),
                Skip::No => {}
            }
            if class == Class::Hex && index.is_multiple_of(2) && !separated {
                for separator in HEX_SEPARATORS.into_iter().skip(1) {
                    let here = data.get(at..data.len().min(at + separator.len())).unwrap_or_default();
                    if here == separator {
                        places.push((at + separator.len(), true));
                    } else if separator.starts_with(here) {
                        begun = begun.max(Some((index, false)));
                    }
                }
            }
        }
    }
    begun.map_or(Outcome::No, |(symbols, broken)| Outcome::Begun { symbols, broken, end: None })
}

/// The longest reading is the secret: a shorter one takes what begins an escape for what it stands for, as `\u` of `\u005c`, and would
/// leave the rest of it. While another reading is `open`, cut by the end of the output, it may still become longer.
fn whole(class: Class, symbols: &[u8], data: &[u8], end: usize, open: bool) -> Outcome {
    match ending(class, symbols, data, end) {
        Outcome::Match(end) if open => {
            Outcome::Begun { symbols: symbols.len(), broken: false, end: Some(end) }
        }
        outcome => outcome,
    }
}

/// A last symbol that was read as it stands may have been the first byte of its own escape: `%` of `%25`.
fn ending(class: Class, symbols: &[u8], data: &[u8], end: usize) -> Outcome {
    let (Some(last), Some(at)) = (symbols.last(), end.checked_sub(1)) else { return Outcome::Match(end) };
    if !data.get(at).is_some_and(|byte| byte == last && !is_simple(byte)) {
        return Outcome::Match(end);
    }
    let mut longest = end;
    let cut = escapes(data, at, &mut |reading| {
        if matches!(reading.bytes(), [byte] if accepts(class, *last, *byte)) {
            longest = longest.max(reading.next);
        }
    });
    if cut {
        Outcome::Begun { symbols: symbols.len(), broken: false, end: None }
    } else {
        Outcome::Match(longest)
    }
}

/// Whether a byte has to be read in more than one way.
#[inline]
fn needs_care(class: Class, symbol: u8, byte: u8, index: usize) -> bool {
    if is_special(byte) {
        return true;
    }
    match class {
        Class::Text => byte == b'\'' && symbol == b'\'',
        Class::Base64 => false,
        Class::Hex => index > 0 && index.is_multiple_of(2) && matches!(byte, b':' | b' ' | b'-' | b','),
    }
}

/// Whether a byte stands for itself alone.
#[inline]
fn is_simple(byte: &u8) -> bool {
    !is_special(*byte) && *byte != b'\''
}

/// Reads every group of four symbols that can stand at a place.
struct Groups<'d> {
    data: &'d [u8],
    index: &'d Index,
    /// Readings multiply; when this is used up every pattern is tried.
    budget: usize,
    /// The data ends before a group is whole, or the budget was too small.
    cut: bool,
}

impl Groups<'_> {
    fn read(&mut self, from: usize, at: usize, group: u32, count: u32, found: &mut impl FnMut(u32)) {
        if count == 4 {
            found(group);
            return;
        }
        if !self.index.may_begin(group, count) {
            return;
        }
        let (Some(byte), true) = (self.data.get(at), self.budget > 0) else {
            self.cut = true;
            return;
        };
        self.budget -= 1;
        // A pattern has no line breaks.
        if !matches!(byte, b'\r' | b'\n') {
            let group = group | u32::from(*byte) << (8 * count);
            self.read(at + 1, at + 1, group, count + 1, found);
        }
        if is_simple(byte) {
            return;
        }
        let mut readings = [None::<Reading>; 8];
        let mut free = readings.iter_mut();
        let cut = escapes(self.data, at, &mut |reading| {
            if let Some(slot) = free.next() {
                *slot = Some(reading);
            }
        });
        self.cut |= cut;
        for reading in readings.into_iter().flatten() {
            let (mut group, mut count) = (group, count);
            for byte in reading.bytes().iter().take((4 - count) as usize) {
                group |= u32::from(*byte) << (8 * count);
                count += 1;
            }
            self.read(reading.next, reading.next, group, count, found);
        }
        if count > 0 && at - from <= MAX_GAP {
            match skip(self.data, at) {
                Skip::To(next) => self.read(from, next, group, count, found),
                Skip::Cut => self.cut = true,
                Skip::No => {}
            }
        }
    }
}

impl Pattern {
    /// Whether a begun pattern may be shown when nothing else arrives for a while. Two bytes of a secret may.
    /// When a line break follows, so may a quarter of it: a line that is over is not kept from a
    /// reader because it ends in a word with which a secret begins.
    pub(crate) fn may_be_shown(&self, begun: &Begun, symbols: usize) -> bool {
        begun.symbols <= self.two_bytes || (begun.broken && begun.symbols * 4 <= symbols)
    }
}
