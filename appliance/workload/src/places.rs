//! A number of places in which a newcomer always finds one: when all are taken, the one that has been idle longest, of the
//! holder that has most, is ended.
//!
//! Refusing the newcomer instead would let whoever came first keep everybody out, for as long as they like and at no cost. This
//! way who holds many loses some, who holds few keeps them, and a single holder keeps nobody out but themselves.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

/// So many places, shared by holders of whom nothing is known but their number of places.
#[derive(Debug)]
pub struct Places<K: Ord> {
    /// How many there are.
    most: usize,
    /// Times are milliseconds from here.
    start: Instant,
    /// Those that are taken.
    taken: Mutex<Taken<K>>,
}

/// The places that are taken, by holder and number; the lower one was taken first.
#[derive(Debug)]
struct Taken<K> {
    /// The number of the next one.
    next: u64,
    /// How many there are: at most as many as there are places.
    count: usize,
    /// Holders that have some, so that who has most is found without a look at each place: whoever comes in great numbers pays for that.
    holders: BTreeMap<K, BTreeMap<u64, Occupied>>,
}

/// One of them.
#[derive(Debug)]
struct Occupied {
    /// When it was last of use.
    used: Arc<AtomicU64>,
    /// Told when it is taken away.
    ended: Arc<Notify>,
}

/// A place; it is free again when this is dropped.
#[derive(Debug)]
pub struct Place<K: Ord + Copy> {
    /// Of which it is one.
    places: Arc<Places<K>>,
    /// Whose it is.
    holder: K,
    /// Its number.
    number: u64,
    /// When it was last of use.
    used: Arc<AtomicU64>,
}

impl<K: Ord + Copy> Places<K> {
    /// So many places.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        let taken = Mutex::new(Taken { next: 0, count: 0, holders: BTreeMap::new() });
        Arc::new(Self { most, start: Instant::now(), taken })
    }

    /// A place for `holder`. Should it be taken away again, `ended` is notified, and whoever waits for that has to end what
    /// they do in it at once.
    #[must_use]
    pub fn enter(self: &Arc<Self>, holder: K, ended: &Arc<Notify>) -> Place<K> {
        let used = Arc::new(AtomicU64::new(self.now()));
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = if taken.count >= self.most { taken.take_away(holder) } else { None };
        let number = taken.next;
        taken.next = number.wrapping_add(1);
        let place = Occupied { used: Arc::clone(&used), ended: Arc::clone(ended) };
        taken.holders.entry(holder).or_default().insert(number, place);
        taken.count = taken.count.saturating_add(1);
        drop(taken);
        if let Some(gone) = gone {
            gone.ended.notify_one();
        }
        Place { places: Arc::clone(self), holder, number, used }
    }

    /// How many are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).count
    }
}

impl<K: Ord> Places<K> {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl<K: Ord + Copy> Taken<K> {
    /// Takes the place away that `newcomer` is to have. It counts as if it had it already: nobody loses a place to one who
    /// holds as many.
    fn take_away(&mut self, newcomer: K) -> Option<Occupied> {
        let number_of = |holder: K| self.holders.get(&holder).map_or(0, BTreeMap::len);
        let counted = |holder: K| number_of(holder).saturating_add(usize::from(holder == newcomer));
        let most = self.holders.keys().map(|holder| counted(*holder)).max()?;
        let idle = |place: &Occupied| place.used.load(Ordering::Relaxed);
        let candidates = self.holders.iter().filter(|(holder, _)| counted(**holder) == most);
        let candidates = candidates.flat_map(|(holder, places)| {
            places.iter().map(move |(number, place)| (idle(place), *number, *holder))
        });
        let (_, number, holder) = candidates.min_by_key(|(idle, number, _)| (*idle, *number))?;
        self.remove(holder, number)
    }

    fn remove(&mut self, holder: K, number: u64) -> Option<Occupied> {
        let places = self.holders.get_mut(&holder)?;
        let removed = places.remove(&number)?;
        if places.is_empty() {
            self.holders.remove(&holder);
        }
        self.count = self.count.saturating_sub(1);
        Some(removed)
    }
}

impl<K: Ord + Copy> Place<K> {
    /// It is of use now.
    pub fn touch(&self) {
        self.used.store(self.places.now(), Ordering::Relaxed);
    }
}

impl<K: Ord + Copy> Drop for Place<K> {
    fn drop(&mut self) {
        // Nothing is there any more when it was taken away.
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.remove(self.holder, self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A place and how it hears of its end.
    type Held = (Place<u8>, Arc<Notify>);

    fn enter(places: &Arc<Places<u8>>, holder: u8) -> Held {
        let ended = Arc::new(Notify::new());
        (places.enter(holder, &ended), ended)
    }

    async fn has_ended(held: &Held) -> bool {
        tokio::time::timeout(Duration::ZERO, held.1.notified()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_gets_the_place_that_was_idle_longest_of_the_holder_with_most() {
        let places = Places::new(5);
        let modest = [enter(&places, 1), enter(&places, 1)];
        let mut greedy = Vec::new();
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(1)).await;
            greedy.push(enter(&places, 2));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        greedy[0].0.touch();

        let newcomer = enter(&places, 3);
        let mut ended = Vec::new();
        for held in modest.iter().chain(&greedy).chain([&newcomer]) {
            ended.push(has_ended(held).await);
        }
        assert_eq!(ended, [false, false, false, true, false, false]);
        assert_eq!(places.taken(), 5);
        drop(greedy);
        assert_eq!(places.taken(), 3);
    }

    #[tokio::test]
    async fn who_wants_more_than_the_others_have_loses_their_own() {
        let places = Places::new(4);
        let (first, second) =
            ([enter(&places, 1), enter(&places, 1)], [enter(&places, 2), enter(&places, 2)]);
        let mut more = Vec::new();
        for _ in 0..600 {
            more.push(enter(&places, 2));
        }
        assert!(has_ended(&second[0]).await && has_ended(&second[1]).await);
        assert!(!has_ended(&first[0]).await && !has_ended(&first[1]).await);
        assert_eq!(places.taken(), 4);
    }

    #[tokio::test]
    async fn the_only_place_goes_to_whoever_comes() {
        let places = Places::new(1);
        let (first, second) = (enter(&places, 1), enter(&places, 2));
        assert!(has_ended(&first).await && !has_ended(&second).await);
        drop(second);
        assert_eq!(places.taken(), 0);
    }
}
