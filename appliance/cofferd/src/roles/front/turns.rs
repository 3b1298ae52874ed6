//! Processor time for strangers: one source after the other, and never all processors.
//!
//! A TLS handshake and a document cost about a millisecond each. Who asks for thousands of them would have everybody else wait behind
//! them: tasks run in the order in which they came. So whoever is about to cost something takes a turn, of which there is one at a
//! time; the sources take it one after the other, however many connections each has. A stranger waits for as many turns as there are
//! other sources, not as there are other requests, and half of the machine's two processors, or more, are left to requests that are
//! under way: operators', and services'.
//!
//! Sources from which an operator or a client with a token has come lately go first. An address can be shared with somebody hostile, so it
//! opens nothing; and the known take turns among themselves as well.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::source::Source;

/// How long a source is known.
const KNOWN_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// Sources that are known at one time; the one that was longest away is forgotten.
const MAX_KNOWN: usize = 256;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: bool,
    known: BTreeMap<Source, Instant>,
    first: Queue,
    others: Queue,
}

/// Sources in the order in which they take turns, each with those who wait.
#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<Source>,
    waiting: BTreeMap<Source, VecDeque<oneshot::Sender<Turn>>>,
}

/// It is somebody's turn until this is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Option<Arc<Turns>>);

impl Turns {
    /// Nobody's.
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Waits for a turn. Given up by dropping the future.
    pub(crate) async fn take(self: &Arc<Self>, source: Source) -> Turn {
        let waiting = {
            let mut state = self.lock();
            if !state.taken {
                state.taken = true;
                return Turn(Some(Arc::clone(self)));
            }
            let (given, waiting) = oneshot::channel();
            let known = state.is_known(source);
            let queue = if known { &mut state.first } else { &mut state.others };
            queue.push(source, given);
            waiting
        };
        // A turn is handed on until somebody takes it, so whoever waits gets one: what stands here for the other case is nobody's.
        waiting.await.unwrap_or(Turn(None))
    }

    /// Somebody who may ask has come from this source.
    pub(crate) fn know(&self, source: Source) {
        let mut state = self.lock();
        state.known.insert(source, Instant::now());
        if state.known.len() > MAX_KNOWN {
            let oldest = state.known.iter().min_by_key(|(_, seen)| **seen).map(|(source, _)| *source);
            oldest.map(|oldest| state.known.remove(&oldest));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_known(&self, source: Source) -> bool {
        self.known.get(&source).is_some_and(|seen| seen.elapsed() < KNOWN_FOR)
    }
}

impl Queue {
    fn push(&mut self, source: Source, given: oneshot::Sender<Turn>) {
        let waiting = self.waiting.entry(source).or_default();
        if waiting.is_empty() {
            self.order.push_back(source);
        }
        waiting.push_back(given);
    }

    /// Who has waited longest of the source whose turn it is; the source then waits behind the others.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        loop {
            let source = self.order.pop_front()?;
            let Some(waiting) = self.waiting.get_mut(&source) else { continue };
            // Those who have gone away wait no longer.
            while waiting.front().is_some_and(oneshot::Sender::is_closed) {
                waiting.pop_front();
            }
            let next = waiting.pop_front();
            if waiting.is_empty() {
                self.waiting.remove(&source);
            } else {
                self.order.push_back(source);
            }
            if next.is_some() {
                return next;
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turns) = self.0.take() else { return };
        loop {
            let next = {
                let mut state = turns.lock();
                let next = state.first.next().or_else(|| state.others.next());
                state.taken = next.is_some();
                next
            };
            let Some(next) = next else { return };
            match next.send(Self(Some(Arc::clone(&turns)))) {
                Ok(()) => return,
                // They went away in this very moment: it goes on from here and not from a drop inside of the drop.
                Err(mut turn) => turn.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn source(number: u32) -> Source {
        std::net::IpAddr::from(Ipv4Addr::from_bits(number)).into()
    }

    /// Lets so many of a source wait; each says that it has had its turn.
    async fn crowd(turns: &Arc<Turns>, number: u32, count: usize, had: &Arc<Mutex<Vec<u32>>>) {
        for _ in 0..count {
            let (turns, had) = (Arc::clone(turns), Arc::clone(had));
            tokio::spawn(async move {
                let _turn = turns.take(source(number)).await;
                had.lock().unwrap().push(number);
            });
        }
        tokio::task::yield_now().await;
    }

    #[tokio::test]
    async fn a_newcomer_waits_for_the_other_sources_and_not_for_their_numbers() {
        let (turns, had) = (Turns::new(), Arc::default());
        let held = turns.take(source(0)).await;
        for number in 1..=8 {
            crowd(&turns, number, 500, &had).await;
        }
        crowd(&turns, 9, 1, &had).await;
        let waiting = || turns.lock().others.waiting.values().map(VecDeque::len).sum::<usize>();
        while waiting() < 8 * 500 + 1 {
            tokio::task::yield_now().await;
        }
        drop(held);
        while had.lock().unwrap().len() < 8 * 500 + 1 {
            tokio::task::yield_now().await;
        }
        let had = had.lock().unwrap();
        assert!(had.iter().position(|number| *number == 9).unwrap() <= 8, "{:?}", &had[..20]);
        assert_eq!(waiting(), 0);
        assert!(turns.lock().others.order.is_empty());
    }

    #[tokio::test]
    async fn the_known_go_first_and_leave_the_others_their_turn() {
        let (turns, had) = (Turns::new(), Arc::default());
        turns.know(source(9));
        let held = turns.take(source(0)).await;
        crowd(&turns, 1, 10, &had).await;
        crowd(&turns, 9, 2, &had).await;
        drop(held);
        while had.lock().unwrap().len() < 12 {
            tokio::task::yield_now().await;
        }
        assert_eq!(had.lock().unwrap()[..2], [9, 9]);
    }

    #[tokio::test]
    async fn who_goes_away_takes_no_turn_along() {
        let turns = Turns::new();
        let held = turns.take(source(0)).await;
        for round in 0..50 {
            let gone = tokio::spawn({
                let turns = Arc::clone(&turns);
                async move { drop(turns.take(source(round)).await) }
            });
            tokio::task::yield_now().await;
            gone.abort();
        }
        // Given, and not yet looked at when it is dropped.
        let mut given = Box::pin(turns.take(source(1)));
        assert!(tokio::time::timeout(Duration::ZERO, &mut given).await.is_err());
        drop(held);
        drop(given);
        tokio::time::timeout(Duration::from_secs(5), turns.take(source(2))).await.unwrap();
    }

    #[tokio::test]
    async fn the_known_are_bounded() {
        let turns = Turns::new();
        for number in 0..100_000 {
            turns.know(source(number));
        }
        assert_eq!(turns.lock().known.len(), MAX_KNOWN);
        assert!(turns.lock().is_known(source(99_999)));
    }
}
