//! A number of permits, of which each holder gets a part: one peer or one address keeps the others out of nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// So many permits for all, and so many of them for each holder.
#[derive(Debug)]
pub(crate) struct Quota<K: Ord> {
    all: usize,
    each: usize,
    /// Permits held, by those who hold some: never more entries than `all`.
    held: Mutex<BTreeMap<K, usize>>,
}

/// One permit; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Permit<K: Ord + Copy> {
    quota: Arc<Quota<K>>,
    holder: K,
}

impl<K: Ord + Copy> Quota<K> {
    /// So many permits, and so many of them for each holder.
    pub(crate) fn new(all: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { all, each, held: Mutex::default() })
    }

    /// A permit for `holder`, or nothing when it has its share or all are taken. Never waits.
    pub(crate) fn take(self: &Arc<Self>, holder: K) -> Option<Permit<K>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = held.values().sum();
        let own = held.get(&holder).copied().unwrap_or(0);
        if all >= self.all || own >= self.each {
            return None;
        }
        held.insert(holder, own.saturating_add(1));
        Some(Permit { quota: Arc::clone(self), holder })
    }
}

impl<K: Ord + Copy> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut held = self.quota.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.get(&self.holder).copied() {
            Some(own) if own > 1 => held.insert(self.holder, own.saturating_sub(1)),
            _ => held.remove(&self.holder),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_cannot_take_the_permits_of_all() {
        let quota = Quota::new(5, 3);
        let held: Vec<_> = std::iter::from_fn(|| quota.take(1)).collect();
        assert_eq!(held.len(), 3);
        let others: Vec<_> = std::iter::from_fn(|| quota.take(2)).collect();
        assert_eq!(others.len(), 2, "the bound over all holds as well");
        drop(held);
        assert!(quota.take(1).is_some());
        drop(others);
        assert!(quota.held.lock().unwrap().is_empty());
    }
}
