//! Permits that are counted under several headings at once, each with a bound of its own: one peer, one address or one
//! service keeps the others out of nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// How many permits there are under each heading.
#[derive(Debug)]
pub(crate) struct Quota<K: Ord> {
    /// Those headings that have some: never more than a permit has times the permits that there are.
    held: Mutex<BTreeMap<K, usize>>,
}

/// One permit; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Permit<K: Ord> {
    quota: Arc<Quota<K>>,
    counted: Vec<K>,
}

impl<K: Ord + Clone> Quota<K> {
    /// No permit is taken.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { held: Mutex::default() })
    }

    /// A permit that counts under each of these headings, or nothing when one of them has as many as its bound. Never waits.
    pub(crate) fn take(self: &Arc<Self>, bounds: &[(K, usize)]) -> Option<Permit<K>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if bounds.iter().any(|(heading, bound)| held.get(heading).copied().unwrap_or(0) >= *bound) {
            return None;
        }
        let counted: Vec<K> = bounds.iter().map(|(heading, _)| heading.clone()).collect();
        for heading in &counted {
            let count = held.entry(heading.clone()).or_default();
            *count = count.saturating_add(1);
        }
        Some(Permit { quota: Arc::clone(self), counted })
    }
}

impl<K: Ord> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut held = self.quota.held.lock().unwrap_or_else(PoisonError::into_inner);
        for heading in &self.counted {
            match held.get_mut(heading) {
                Some(count) if *count > 1 => *count = count.saturating_sub(1),
                _ => drop(held.remove(heading)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_cannot_take_the_permits_of_all() {
        let quota = Quota::new();
        let take = |holder| quota.take(&[(None, 5), (Some(holder), 3)]);
        let held: Vec<_> = std::iter::from_fn(|| take(1)).collect();
        assert_eq!(held.len(), 3);
        let others: Vec<_> = std::iter::from_fn(|| take(2)).collect();
        assert_eq!(others.len(), 2, "the bound over all holds as well");
        drop(held);
        assert!(take(1).is_some());
        drop(others);
        assert!(quota.held.lock().unwrap().is_empty());
    }
}
