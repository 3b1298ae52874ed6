//! What can be wrong with a store's disk, by name.

use std::io;

/// Why a store's disk is not opened, or not changed. No variant holds a byte of it.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A store is made only where every byte is zero.
    #[error("there is already something here, and it is not overwritten")]
    Occupied,
    /// The places of the records hold zeros, or there are none.
    #[error("there is no store here")]
    Absent,
    /// What is there is no store.
    #[error("what is here is not a store of the vault")]
    NotOurs,
    /// A format that this version does not know.
    #[error("the store has the unknown format {0}")]
    Format(u8),
    /// Sealed under another master key.
    #[error("the store was sealed under another master key")]
    OtherKey,
    /// It was never whole: its first commit was not acknowledged.
    #[error("the store was never finished: it holds nothing yet")]
    Unfinished,
    /// A record does not authenticate, or the newest one is missing.
    #[error("the store was altered: the record of its last commit")]
    RootChanged,
    /// A page is not the one that was last written there: altered, zeroed, moved, an older one, or another store's.
    #[error("the store was altered: page {index} (block {block} of its disk)")]
    PageChanged {
        /// Which page.
        index: u64,
        /// Where it should be.
        block: u64,
    },
    /// A node of the tree over the pages is not the one that was last written there.
    #[error("the store was altered: node {index} of level {level} (block {block} of its disk)")]
    NodeChanged {
        /// 1 is just above the pages.
        level: usize,
        /// Which node of the level.
        index: u64,
        /// Where it should be.
        block: u64,
    },
    /// It is whole, and older than what is known of it.
    #[error("the store is an older copy: commit {found}, and commit {expected} was acknowledged")]
    OlderThan {
        /// Epoch of what is there.
        found: u64,
        /// Epoch that is known.
        expected: u64,
    },
    /// The same epoch with other content: two appliances went on from one copy.
    #[error("the store is another one than the known commit {0}")]
    Diverged(u64),
    /// Under the same key, but not the known store.
    #[error("this is another store than the known one")]
    AnotherStore,
    /// The disk is shorter than when the store was made.
    #[error("the store's disk was cut: {length} bytes instead of {expected}")]
    Truncated {
        /// Its length.
        length: u64,
        /// The length that the store was made for.
        expected: u64,
    },
    /// The disk is longer than when the store was made.
    #[error(
        "the store's disk has grown: {length} bytes instead of {expected}, and a store does not grow with it"
    )]
    Grown {
        /// Its length.
        length: u64,
        /// The length that the store was made for.
        expected: u64,
    },
    /// Too short for a store.
    #[error("a disk of {0} bytes is too small for a store")]
    TooSmall(u64),
    /// Longer than a store can fill.
    #[error("a disk of {0} bytes is larger than a store can be")]
    TooLarge(u64),
    /// No block is free for what is to be stored.
    #[error("the store's disk is full")]
    Full,
    /// A block cannot be read.
    #[error("block {block} of the store's disk cannot be read")]
    Unreadable {
        /// Which block.
        block: u64,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
    /// A commit could not be written. The one before is in force; after a restart it may be this one.
    #[error("the store's disk does not take the change")]
    Write(#[source] io::Error),
    /// The disk as a whole cannot be used.
    #[error("the store's disk is not usable")]
    Io(#[source] io::Error),
    /// The system's random number generator failed.
    #[error("no random numbers from the system")]
    Random,
    /// The cipher refused, which it does for no block.
    #[error("a block cannot be sealed")]
    Seal,
    /// The counter of commits at its end.
    #[error("the store has no further commit")]
    Exhausted,
}

impl DiskError {
    /// Whether trying again may succeed: nothing was learned about the content.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Unreadable { .. })
    }

    /// Of what is wrong with the places of the records, what says most about the disk.
    pub(super) fn most_telling(errors: impl IntoIterator<Item = Self>) -> Self {
        let rank = |error: &Self| match error {
            Self::Absent => 0,
            Self::NotOurs => 1,
            Self::RootChanged => 2,
            Self::Format(_) => 3,
            Self::OtherKey => 4,
            _ => 5,
        };
        errors.into_iter().max_by_key(rank).unwrap_or(Self::Absent)
    }
}
