//! One register: its two logs, how far they can be used, and what of their differences is accounted for.

use cofferdam_attest::event_log::{self, Event, MAX_EVENTS, Register};
use cofferdam_attest::reference::{Alternative, PredictedEvent};
use cofferdam_protocol::hex;

use super::align::{self, Pair};
use super::{RegisterComparison, Status, render};

/// How far the log of a register can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogState {
    /// It replays to the quote's value.
    Replays,
    /// It does not.
    Contradicts,
    /// The evidence carries no events of this register.
    Absent,
    /// No events were predicted.
    NothingPredicted,
}

/// What a half predicts.
pub(super) struct Predicted<'a> {
    pub(super) events: &'a [PredictedEvent],
    pub(super) alternatives: &'a [Alternative],
    /// Only some events are predicted, others may occur between them.
    pub(super) partial: bool,
}

/// A register's two logs.
pub(super) struct Analysis<'a> {
    pub(super) mr: u8,
    pub(super) found: Register,
    pub(super) wanted: Option<Register>,
    /// Only some events are predicted, others may occur between them.
    pub(super) partial: bool,
    pub(super) log: LogState,
    /// Empty unless the log replays.
    pub(super) pairs: Vec<Pair<'a>>,
    /// Which pairs a cause accounts for.
    pub(super) explained: Vec<bool>,
}

impl<'a> Analysis<'a> {
    pub(super) fn new(
        mr: u8,
        found: &Register,
        wanted: Option<Register>,
        log: &'a [Event],
        half: &Predicted<'a>,
    ) -> Self {
        let measured: Vec<&Event> = log.iter().take(MAX_EVENTS).filter(|event| event.mr == mr).collect();
        let predicted: Vec<&PredictedEvent> =
            half.events.iter().take(MAX_EVENTS).filter(|event| event.mr == mr).collect();
        let state = if log.len() > MAX_EVENTS {
            LogState::Contradicts
        } else if measured.is_empty() {
            LogState::Absent
        } else if event_log::replay(log, mr) != *found {
            LogState::Contradicts
        } else if predicted.is_empty() {
            LogState::NothingPredicted
        } else {
            LogState::Replays
        };
        let mut pairs = if state == LogState::Replays {
            align::align(&measured, &predicted, half.alternatives)
        } else {
            Vec::new()
        };
        if half.partial {
            pairs.retain(|pair| pair.predicted.is_some());
        }
        let explained = pairs.iter().map(Pair::same).collect();
        Self { mr, found: *found, wanted, partial: half.partial, log: state, pairs, explained }
    }

    pub(super) fn name(&self) -> &'static str {
        match self.mr {
            0 => "rtmr0",
            1 => "rtmr1",
            _ => "rtmr2",
        }
    }

    pub(super) fn status(&self) -> Status {
        match self.wanted {
            Some(wanted) if wanted == self.found => Status::Equal,
            Some(_) => Status::Differs,
            None if !self.partial || self.pairs.is_empty() => Status::NoReference,
            None if self.pairs.iter().all(Pair::same) => Status::PartlyPredicted,
            None => Status::Differs,
        }
    }

    /// Whether events of this register can be named as differing.
    pub(super) fn usable(&self) -> bool {
        self.status() == Status::Differs && self.log == LogState::Replays
    }

    /// Marks the pairs that `which` picks as accounted for; whether there was one that was not before.
    pub(super) fn take(&mut self, which: impl Fn(&Pair<'a>) -> bool) -> bool {
        self.take_at(|_, pair| which(pair))
    }

    /// Like [`Self::take`], with each pair's place.
    pub(super) fn take_at(&mut self, which: impl Fn(usize, &Pair<'a>) -> bool) -> bool {
        let mut any = false;
        for (at, (pair, explained)) in self.pairs.iter().zip(&mut self.explained).enumerate() {
            if !*explained && which(at, pair) {
                *explained = true;
                any = true;
            }
        }
        any
    }

    /// Marks the first open pair that `which` picks; whether there is one.
    pub(super) fn take_one(&mut self, which: impl Fn(&Pair<'a>) -> bool) -> bool {
        let mut pairs = self.pairs.iter().zip(&mut self.explained);
        let found = pairs.find(|(pair, explained)| !**explained && which(pair));
        found.map(|(_, explained)| *explained = true).is_some()
    }

    /// The pairs that no cause accounts for.
    pub(super) fn open(&self) -> impl Iterator<Item = &Pair<'a>> {
        self.pairs.iter().zip(&self.explained).filter(|(_, explained)| !**explained).map(|(pair, _)| pair)
    }

    pub(super) fn comparison(&self) -> RegisterComparison {
        let differs = self.status() == Status::Differs;
        let (rows, omitted_rows) = if differs { render::rows(&self.pairs) } else { (Vec::new(), 0) };
        RegisterComparison {
            name: self.name(),
            status: self.status(),
            measured: hex::encode(self.found),
            expected: self.wanted.iter().map(hex::encode).collect(),
            first_divergence: differs.then(|| render::first_divergence(self)),
            rows,
            omitted_rows,
        }
    }
}
