//! The blocks that the present commit does not use.
//!
//! It is responsible for giving a commit blocks that are neighbours where it can, so that the disk is asked for one write and not for
//! one for each block. It never gives a block away twice, and knows nothing of what is in them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Runs of free blocks: each as long as can be.
#[derive(Debug, Default)]
pub(super) struct Free {
    /// First block → how many.
    runs: BTreeMap<u64, u64>,
    /// The same as how many and first block.
    lengths: BTreeSet<(u64, u64)>,
    count: u64,
}

impl Free {
    /// The blocks of a range that are not used.
    pub(super) fn between(used: &BTreeSet<u64>, range: Range<u64>) -> Self {
        let mut free = Self::default();
        let mut start = range.start;
        for block in used.range(range.clone()).copied().chain([range.end]) {
            free.insert(start, block.saturating_sub(start));
            start = block.saturating_add(1);
        }
        free
    }

    /// Takes so many blocks, or as many as there are: of the shortest run that has them all, else of the longest ones. The lowest is the
    /// last.
    pub(super) fn take(&mut self, many: usize) -> Vec<u64> {
        let mut taken = Vec::new();
        while let Some(missing) = many.checked_sub(taken.len()).filter(|missing| *missing > 0) {
            let missing = missing as u64;
            let enough = self.lengths.range((missing, 0)..).next();
            let Some((length, start)) = enough.or_else(|| self.lengths.last()).copied() else { break };
            self.remove(start, length);
            let part = missing.min(length);
            taken.extend(start..start.saturating_add(part));
            self.insert(start.saturating_add(part), length.saturating_sub(part));
        }
        taken.sort_unstable_by(|one, other| other.cmp(one));
        taken
    }

    /// Takes blocks back.
    pub(super) fn give(&mut self, blocks: impl IntoIterator<Item = u64>) {
        for block in blocks {
            let (mut start, mut length) = (block, 1);
            if let Some((&before, &many)) = self.runs.range(..block).next_back()
                && before.saturating_add(many) == block
            {
                self.remove(before, many);
                (start, length) = (before, many.saturating_add(1));
            }
            if let Some(&many) = self.runs.get(&block.saturating_add(1)) {
                self.remove(block.saturating_add(1), many);
                length = length.saturating_add(many);
            }
            self.insert(start, length);
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    fn insert(&mut self, start: u64, length: u64) {
        if length > 0 {
            self.runs.insert(start, length);
            self.lengths.insert((length, start));
            self.count = self.count.saturating_add(length);
        }
    }

    fn remove(&mut self, start: u64, length: u64) {
        self.runs.remove(&start);
        self.lengths.remove(&(length, start));
        self.count = self.count.saturating_sub(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_run_with_enough_is_taken_and_else_the_longest_ones() {
        let used = BTreeSet::from([3, 6, 10, 12]);
        let mut free = Free::between(&used, 3..16);
        assert_eq!(free.count(), 9);
        assert_eq!(free.take(2), [5, 4]);
        assert_eq!(free.take(2), [8, 7]);
        assert_eq!(free.take(4), [15, 14, 13, 9]);
        assert_eq!(free.take(4), [11]);
        assert_eq!((free.take(1), free.count()), (vec![], 0));
    }

    #[test]
    fn what_comes_back_joins_its_neighbours() {
        let mut free = Free::between(&BTreeSet::new(), 3..11);
        let taken = free.take(8);
        assert_eq!(taken, [10, 9, 8, 7, 6, 5, 4, 3]);
        for block in [4, 6, 9, 5, 10, 3] {
            free.give([block]);
        }
        assert_eq!(free.runs, BTreeMap::from([(3, 4), (9, 2)]));
        assert_eq!(free.lengths, BTreeSet::from([(4, 3), (2, 9)]));
        free.give([8, 7]);
        assert_eq!((free.runs, free.count), (BTreeMap::from([(3, 8)]), 8));
    }
}
