//! Which measured event stands for which predicted one.
//!
//! Events whose digest occurs once on either side are fixed points, as far as they keep their order; between two of them
//! the few others are matched by type and name. An attacker writes the log, so the work is bounded: sorting for the fixed
//! points, and a table for a stretch only up to [`MAX_TABLE`] cells, behind which events are paired one by one. A poor
//! alignment costs clarity and nothing else.

use std::collections::HashMap;

use cofferdam_attest::event_log::{Event, Register};
use cofferdam_attest::reference::{Alternative, Cause, PredictedEvent};

use super::label;

/// Largest table for one stretch, in cells: a boot loader that measures its whole script beside a boot of ours.
const MAX_TABLE: usize = 65_536;

/// A row of the comparison; at least one side is there. Indices count from zero within the register.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    pub(super) measured: Option<(usize, &'a Event)>,
    pub(super) predicted: Option<(usize, &'a PredictedEvent)>,
}

impl Pair<'_> {
    /// Whether the event is as predicted.
    pub(super) fn same(&self) -> bool {
        match (self.measured, self.predicted) {
            (Some((_, measured)), Some((_, predicted))) => measured.register_digest() == predicted.digest,
            _ => false,
        }
    }
}

/// Pairs the events of one register, in order.
pub(super) fn align<'a>(
    measured: &[&'a Event],
    predicted: &[&'a PredictedEvent],
    alternatives: &[Alternative],
) -> Vec<Pair<'a>> {
    let digests: Vec<Register> = measured.iter().map(|event| event.register_digest()).collect();
    let labels: Vec<Option<String>> = measured.iter().map(|event| label::of(event)).collect();
    let variants: HashMap<Register, &Cause> =
        alternatives.iter().map(|alternative| (alternative.digest, &alternative.of)).collect();
    let known: Vec<Option<&Cause>> = digests.iter().map(|digest| variants.get(digest).copied()).collect();
    let sides = Sides { measured, digests: &digests, labels: &labels, known: &known, predicted };
    let mut pairs = Vec::with_capacity(measured.len().saturating_add(predicted.len()));
    let (mut m, mut p) = (0, 0);
    let mut anchors = fixed_points(&digests, predicted);
    anchors.push((measured.len(), predicted.len()));
    for (next_m, next_p) in anchors {
        sides.stretch((m, next_m), (p, next_p), &mut pairs);
        if next_m < measured.len() || next_p < predicted.len() {
            pairs.push(sides.pair(Some(next_m), Some(next_p)));
        }
        (m, p) = (next_m.saturating_add(1), next_p.saturating_add(1));
    }
    pairs
}

/// The common beginning, then every digest that both sides have once, as far as the order agrees.
fn fixed_points(digests: &[Register], predicted: &[&PredictedEvent]) -> Vec<(usize, usize)> {
    let beginning =
        digests.iter().zip(predicted).take_while(|(digest, event)| **digest == event.digest).count();
    let mut points: Vec<(usize, usize)> = (0..beginning).map(|at| (at, at)).collect();
    let mut seen: HashMap<Register, (u32, usize)> = HashMap::new();
    for (at, event) in predicted.iter().enumerate().skip(beginning) {
        let entry = seen.entry(event.digest).or_insert((0, at));
        entry.0 = entry.0.saturating_add(1);
    }
    let mut times: HashMap<Register, u32> = HashMap::new();
    for digest in digests.iter().skip(beginning) {
        let count = times.entry(*digest).or_insert(0);
        *count = count.saturating_add(1);
    }
    let unique: Vec<(usize, usize)> = digests
        .iter()
        .enumerate()
        .skip(beginning)
        .filter(|(_, digest)| times.get(*digest) == Some(&1))
        .filter_map(|(at, digest)| match seen.get(digest) {
            Some((1, other)) => Some((at, *other)),
            _ => None,
        })
        .collect();
    points.extend(longest_increasing(&unique));
    points
}

/// The longest part of `points` (first numbers ascending) whose second numbers ascend too: patience sorting.
fn longest_increasing(points: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let mut tails: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = Vec::with_capacity(points.len());
    let second = |index: &usize| points.get(*index).map(|point| point.1);
    for (index, point) in points.iter().enumerate() {
        let place = tails.partition_point(|tail| second(tail) < Some(point.1));
        before.push(place.checked_sub(1).and_then(|place| tails.get(place).copied()));
        match tails.get_mut(place) {
            Some(tail) => *tail = index,
            None => tails.push(index),
        }
    }
    let mut out = Vec::with_capacity(tails.len());
    let mut at = tails.last().copied();
    while let Some(index) = at {
        out.extend(points.get(index));
        at = before.get(index).copied().flatten();
    }
    out.reverse();
    out
}

/// Both sides, with what is needed of each measured event more than once.
struct Sides<'s, 'a> {
    measured: &'s [&'a Event],
    digests: &'s [Register],
    labels: &'s [Option<String>],
    /// Which predicted event the measured one is a known variant of.
    known: &'s [Option<&'s Cause>],
    predicted: &'s [&'a PredictedEvent],
}

impl<'a> Sides<'_, 'a> {
    fn pair(&self, measured: Option<usize>, predicted: Option<usize>) -> Pair<'a> {
        Pair {
            measured: measured.and_then(|at| Some((at, *self.measured.get(at)?))),
            predicted: predicted.and_then(|at| Some((at, *self.predicted.get(at)?))),
        }
    }

    /// How well two events go together: 0 not at all.
    fn likeness(&self, m: usize, p: usize) -> u16 {
        let (Some(measured), Some(predicted)) = (self.measured.get(m), self.predicted.get(p)) else {
            return 0;
        };
        if self.digests.get(m) == Some(&predicted.digest) {
            return 8;
        }
        if self.known.get(m).copied().flatten() == Some(&predicted.cause) {
            return 6;
        }
        // The name of a section is fixed: with another digest it is another section.
        if measured.event != predicted.event || matches!(predicted.cause, Cause::SectionName(_)) {
            return 0;
        }
        match (self.labels.get(m).and_then(Option::as_deref), label::of_cause(&predicted.cause)) {
            (Some(label), Some(name)) if label == name => 4,
            (Some(_), Some(_)) => 0,
            _ => 2,
        }
    }

    /// The events between two fixed points.
    fn stretch(&self, m: (usize, usize), p: (usize, usize), pairs: &mut Vec<Pair<'a>>) {
        let (rows, columns) = (m.1.saturating_sub(m.0), p.1.saturating_sub(p.0));
        if rows.saturating_add(1).saturating_mul(columns.saturating_add(1)) > MAX_TABLE {
            let both = rows.min(columns);
            for at in 0..rows.max(columns) {
                let (one, other) = (m.0.saturating_add(at), p.0.saturating_add(at));
                if at < both && self.likeness(one, other) > 0 {
                    pairs.push(self.pair(Some(one), Some(other)));
                    continue;
                }
                pairs.extend((at < columns).then(|| self.pair(None, Some(other))));
                pairs.extend((at < rows).then(|| self.pair(Some(one), None)));
            }
            return;
        }
        let table = self.table(m, p);
        let value = |row: usize, column: usize| table.get(row).and_then(|row| row.get(column)).copied();
        let (mut row, mut column) = (0, 0);
        while row < rows || column < columns {
            let (one, other) = (m.0.saturating_add(row), p.0.saturating_add(column));
            let (below, right) = (row.saturating_add(1), column.saturating_add(1));
            let likeness = if row < rows && column < columns { self.likeness(one, other) } else { 0 };
            let here = value(row, column);
            if likeness > 0 && here == value(below, right).map(|rest| rest.saturating_add(likeness)) {
                pairs.push(self.pair(Some(one), Some(other)));
                (row, column) = (below, right);
            } else if column < columns && (row >= rows || here == value(row, right)) {
                pairs.push(self.pair(None, Some(other)));
                column = right;
            } else {
                pairs.push(self.pair(Some(one), None));
                row = below;
            }
        }
    }

    /// For each place in the stretch the best total likeness of what follows it.
    fn table(&self, m: (usize, usize), p: (usize, usize)) -> Vec<Vec<u16>> {
        let (rows, columns) = (m.1.saturating_sub(m.0), p.1.saturating_sub(p.0));
        let mut table: Vec<Vec<u16>> = vec![vec![0; columns.saturating_add(1)]];
        for row in (0..rows).rev() {
            let mut line = vec![0_u16; columns.saturating_add(1)];
            let below = table.last().cloned().unwrap_or_default();
            let mut right = 0;
            for column in (0..columns).rev() {
                let likeness = self.likeness(m.0.saturating_add(row), p.0.saturating_add(column));
                let under = below.get(column).copied().unwrap_or_default();
                let both = below.get(column.saturating_add(1)).copied().unwrap_or_default();
                let paired = if likeness > 0 { both.saturating_add(likeness) } else { 0 };
                right = paired.max(under).max(right);
                if let Some(cell) = line.get_mut(column) {
                    *cell = right;
                }
            }
            table.push(line);
        }
        table.reverse();
        table
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn measured(digest: u8) -> Event {
        let payload = Some(vec![digest % 3; 4]);
        let event = ["EV_IPL", "EV_ACTION"][usize::from(digest / 4 % 2)].to_owned();
        Event { mr: 1, event, digest: Some([digest; 48]), payload }
    }

    fn predicted(digest: u8) -> PredictedEvent {
        let event = ["EV_IPL", "EV_ACTION"][usize::from(digest / 4 % 2)].to_owned();
        PredictedEvent { mr: 1, event, digest: [digest; 48], cause: Cause::Separator }
    }

    proptest! {
        /// No event is lost, doubled or moved, whatever the two logs hold.
        #[test]
        fn every_event_is_there_once_and_in_order(
            one in prop::collection::vec(0_u8..24, 0..60),
            other in prop::collection::vec(0_u8..24, 0..60),
        ) {
            let (one, other): (Vec<Event>, Vec<PredictedEvent>) =
                (one.into_iter().map(measured).collect(), other.into_iter().map(predicted).collect());
            let (one, other): (Vec<&Event>, Vec<&PredictedEvent>) = (one.iter().collect(), other.iter().collect());
            let pairs = align(&one, &other, &[]);
            let at: Vec<usize> = pairs.iter().filter_map(|pair| pair.measured).map(|(at, _)| at).collect();
            prop_assert_eq!(at, (0..one.len()).collect::<Vec<_>>());
            let at: Vec<usize> = pairs.iter().filter_map(|pair| pair.predicted).map(|(at, _)| at).collect();
            prop_assert_eq!(at, (0..other.len()).collect::<Vec<_>>());
            prop_assert!(pairs.iter().all(|pair| pair.measured.is_some() || pair.predicted.is_some()));
        }
    }

    /// A stretch that is too large for a table still ends, and pairs what it can.
    #[test]
    fn a_large_stretch_is_paired_one_by_one() {
        let one: Vec<Event> = (0..1024).map(|_| measured(1)).collect();
        let other: Vec<PredictedEvent> = (0..1000).map(|_| predicted(2)).collect();
        let (one, other): (Vec<&Event>, Vec<&PredictedEvent>) =
            (one.iter().collect(), other.iter().collect());
        let pairs = align(&one, &other, &[]);
        assert_eq!(pairs.len(), 1024);
        assert_eq!(
            pairs.iter().filter(|pair| pair.measured.is_some() && pair.predicted.is_some()).count(),
            1000
        );
    }

    #[test]
    fn the_longest_common_order_counts() {
        let points = [(0, 5), (1, 1), (2, 6), (3, 2), (4, 3), (5, 0)];
        assert_eq!(longest_increasing(&points), [(1, 1), (3, 2), (4, 3)]);
        assert_eq!(longest_increasing(&[]), []);
    }
}
