//! Opening: which commit is the present one, and whether everything of it is there.
//!
//! It writes nothing, so that what does not open is left as it was found. See `pages` for the rules.

use std::sync::Arc;

use super::DiskError;
use super::disk::Disk;
use super::pages::{FIRST, Pages, SETTLED, State, read};
use super::root::{self, RECORD, Record, Root};
use super::seal::Sealer;
use super::tree::{self, BLOCK, Entry, FANOUT, MAX_PAGES, TOP, Tree};
use crate::Keys;

/// A page or node that is not what its parent says.
struct Damage {
    error: DiskError,
    /// The commit that wrote what should be there.
    epoch: u64,
}

impl Pages {
    /// Opens a store and authenticates all of it. `expected` is the last commit that somebody else knows of.
    pub(super) fn open(
        disk: Box<dyn Disk>,
        keys: Arc<Keys>,
        expected: Option<&Root>,
    ) -> Result<Self, DiskError> {
        let sealer = Sealer::new(keys.pages());
        let length = disk.len().map_err(DiskError::Io)?;
        let records = [0, 1, SETTLED].map(|block| record(&*disk, length, block, &sealer, &keys));
        // A record that cannot be read says nothing; then nothing is concluded from the others.
        let records = readable(records)?;
        let highest = records.iter().flatten().map(|record| record.root.epoch).max();
        let [first, second, settled] = records;
        let (slot, newest, other) = match (first, second) {
            (Ok(first), Ok(second)) if first.root.epoch >= second.root.epoch => (0, first, Some(second)),
            (Ok(first), Ok(second)) => (1, second, Some(first)),
            (Ok(first), Err(_)) => (0, first, None),
            (Err(_), Ok(second)) => (1, second, None),
            // A store whose two records are gone was one as long as the copy shows it.
            (Err(_), Err(_)) if settled.is_ok() => return Err(DiskError::RootChanged),
            (Err(one), Err(two)) => {
                return Err(DiskError::most_telling([one, two].into_iter().chain(settled.err())));
            }
        };
        let settled = settled.ok().map_or(0, |record| record.root.epoch);
        if settled > newest.root.epoch {
            return Err(DiskError::RootChanged);
        }
        same_length(&newest, length)?;
        let known = expected.filter(|expected| expected.store == newest.root.store);
        let durable = settled.max(known.map_or(0, |expected| expected.epoch));
        let (slot, present, tree) = match walk(&*disk, &sealer, &newest) {
            Ok(tree) => {
                if durable < newest.root.epoch {
                    // It is all there, and after a mere kill perhaps only in the kernel's memory. The next commit may
                    // overwrite what the commit before it has.
                    disk.sync().map_err(DiskError::Io)?;
                }
                (slot, newest, tree)
            }
            Err(Damage { error, epoch }) if epoch < newest.root.epoch || durable >= newest.root.epoch => {
                return Err(error);
            }
            Err(Damage { error, .. }) => {
                let Some(before) = other.filter(|other| before(other, &newest)) else {
                    return Err(if newest.root.epoch == 1 { DiskError::Unfinished } else { error });
                };
                let tree = walk(&*disk, &sealer, &before).map_err(|damage| damage.error)?;
                (1 - slot, before, tree)
            }
        };
        expected.map_or(Ok(()), |expected| compare(&present.root, expected))?;
        let next = highest.and_then(|epoch| epoch.checked_add(1)).ok_or(DiskError::Exhausted)?;
        let state = State::new(tree, present.root, slot, next, present.blocks, present.length);
        let state = state.with_journal(present.journal);
        Ok(Self::new(disk, keys, state))
    }
}

/// Whether one record is of an earlier commit of the same store as another.
fn before(one: &Record, other: &Record) -> bool {
    one.root.store == other.root.store && one.root.epoch < other.root.epoch && one.blocks == other.blocks
}

fn record(
    disk: &dyn Disk,
    length: u64,
    block: u64,
    sealer: &Sealer,
    keys: &Keys,
) -> Result<Record, DiskError> {
    let offset = block.saturating_mul(BLOCK as u64);
    let mut bytes = [0; BLOCK];
    // Of a disk that was cut off as much as there is.
    let there = usize::try_from(length.saturating_sub(offset)).unwrap_or(BLOCK).min(BLOCK);
    let part = bytes.get_mut(..there).filter(|part| part.len() >= RECORD);
    let Some(part) = part else {
        return Err(if length == 0 { DiskError::Absent } else { DiskError::NotOurs });
    };
    disk.read_at(offset, part).map_err(|source| DiskError::Unreadable { block, source })?;
    root::open(part, sealer, keys.id())
}

type Records = [Result<Record, DiskError>; 3];

fn readable(records: Records) -> Result<Records, DiskError> {
    let [first, second, settled] = records;
    Ok([passing(first)?, passing(second)?, passing(settled)?])
}

/// An error of reading is one of all; what was read and is no record is not.
fn passing(record: Result<Record, DiskError>) -> Result<Result<Record, DiskError>, DiskError> {
    match record {
        Err(error) if error.may_pass() => Err(error),
        record => Ok(record),
    }
}

fn same_length(record: &Record, length: u64) -> Result<(), DiskError> {
    let expected = record.blocks.saturating_mul(BLOCK as u64);
    if length < expected {
        return Err(DiskError::Truncated { length, expected });
    }
    // Less than a block more is what a disk has whose length is no multiple of one.
    if length >= expected.saturating_add(BLOCK as u64) {
        return Err(DiskError::Grown { length, expected });
    }
    Ok(())
}

/// Whether what was found is not older than what is known of it, and not another's.
fn compare(found: &Root, expected: &Root) -> Result<(), DiskError> {
    if found.store != expected.store {
        return Err(DiskError::AnotherStore);
    }
    if found.epoch < expected.epoch {
        return Err(DiskError::OlderThan { found: found.epoch, expected: expected.epoch });
    }
    if found.epoch == expected.epoch && found.digest != expected.digest {
        return Err(DiskError::Diverged(found.epoch));
    }
    Ok(())
}

/// Reads everything under a record.
fn walk(disk: &dyn Disk, sealer: &Sealer, record: &Record) -> Result<Tree, Damage> {
    let mut tree = Tree::default();
    tree.set(TOP, 0, record.top);
    let mut parents: Vec<(u64, Entry)> = record.top.iter().map(|top| (0, *top)).collect();
    for level in (0..=TOP).rev() {
        let mut next = Vec::new();
        for (index, entry) in parents {
            let damage = |error| Damage { error, epoch: entry.epoch };
            // An authentic entry says neither; then a bug of the writer is not followed either.
            if entry.block < FIRST || index >= MAX_PAGES {
                return Err(damage(DiskError::NodeChanged { level, index, block: entry.block }));
            }
            let bytes = read(disk, sealer, &record.root.store, level, index, &entry).map_err(damage)?;
            let Some(below) = level.checked_sub(1) else { continue };
            for (number, child) in (0..).zip(tree::children(&bytes)) {
                let Some(child) = child else { continue };
                let child_index = index.saturating_mul(FANOUT as u64).saturating_add(number);
                tree.set(below, child_index, Some(child));
                next.push((child_index, child));
            }
        }
        parents = next;
    }
    Ok(tree)
}
