//! The state of an appliance on a disk of the host: found, made and opened, or refused by name.
//!
//! It is responsible for the key slots, for what opens them, and for the way from an operator's request to the [`StateKeys`]. It never keeps a
//! key that has opened something, never overwrites what it does not know, and never decides that a state is lost: a disk that
//! does not open is left as it is, but for the count of attempts.
//!
//! # The disk
//!
//! ```text
//! bytes                what
//! 0       .. 28 KiB    a sheet of key slots (see `sheet`, `slot`)
//! 28 KiB  .. 32 KiB    count of wrong attempts (see `attempts`)
//! 32 KiB  .. 60 KiB    the other sheet
//! 60 KiB  .. 64 KiB    the other count
//! 64 KiB  .. 1 MiB     zeros
//! 1 MiB   .. 257 MiB   the vault's store (see [`crate::store`])
//! 257 MiB ..           volumes; nothing here reads or writes there
//! ```
//!
//! Everything that is read is the host's and counts as hostile until it authenticates. Numbers that decide about memory or time are
//! bounded before they are used.
//!
//! # What can be told apart, and when
//!
//! Without a key, by [`Sealed::find`]: zeros, something foreign, an unknown format, another length of the disk, and
//! damage, since a sheet holds a digest of itself. The digest is no authentication: who changes a byte on purpose changes
//! the digest as well. Then the slot that is tried does not open, and that cannot be told from a wrong passphrase or key, nor
//! should it.
//!
//! Also without a key, by [`Sealed::unseal`]: another image, another repository or other operators than the state was left to (see `lineage`).
//! They open it with a statement of one of its operators. What the sheet says of that is believed for the refusal alone: before
//! anything is handed over the sheet has authenticated.
//!
//! With a key that opens a slot: any other byte of either sheet that is not as the appliance wrote it ([`StateError::Altered`]), after that
//! the whole store, by its own names, and sheets from before a statement or a change of slots beside a store from after it.
//!
//! What cannot be seen here: that all of the disk is an older copy of itself. For that an operator says what is known of it
//! (`at_least`).
//!
//! # A statement
//!
//! The sheet that says who may open the state from now on goes over the older one; then the store commits the version; then the same sheet goes
//! over the other one. Each is durable before the next one begins. After the first write the state is its successor's, who opens it without
//! the statement: the newer sheet counts. As long as the store has not committed, nothing was handed to it, and who destroys the newer sheet has
//! the older one in force. From then on a sheet of a lower version than the store's opens nothing.
//!
//! # Making a state
//!
//! Where the first MiB and the store's place are zeros: a mark in the place of the first sheet, the store, the second sheet, the first
//! sheet over the mark; each is durable before the next one begins. Both sheets are there before anybody is told. So after a power
//! cut there is a sheet, and the state opens, or there is a mark and no sheet, and nothing was ever acknowledged: then it is
//! made anew, and what there is of a store is overwritten.
//!
//! The mark is authenticated by nothing; there is no key yet that could. A host that writes one over a real state makes it look
//! unfinished, and an operator who then asks for a new state overwrites the old one. The host can have the same with zeros over the whole
//! disk. In either case the operator is told of a blank disk where a state was attested, and that is where it has to be noticed: a
//! blank disk is never made into a state without an operator's request. A mark with anything else but a torn write beside it is foreign.
//!
//! # Attempts
//!
//! An attempt is counted on the disk before it is made, and the count is taken back when it was right, so that a power cut in between does
//! not save it. Each wrong one doubles the wait before the next, on the monotonic clock, from one second to five minutes; a restart waits again.

mod attempts;
mod create;
mod error;
mod http;
mod key;
mod lineage;
mod open;
mod peer;
mod rekey;
mod sealed;
mod sheet;
mod slot;
mod survey;

use std::fmt;
use std::ops::Range;

use cofferdam_protocol::state::Continuity;
use cofferdam_protocol::{Digest, Fingerprint, Repository};
use zeroize::Zeroizing;

pub use self::error::StateError;
pub(crate) use self::http::refuse;
pub use self::http::sealed_router;
pub use self::key::Cost;
#[cfg(test)]
pub(crate) use self::key::volume_key;
pub use self::lineage::LineageError;
pub use self::sealed::Sealed;
pub use self::survey::Notice;
use crate::{MasterKey, Volume};

/// The key slots and the count of attempts.
pub const SLOTS: Range<u64> = 0..64 * 1024;
/// The vault's store: for [`crate::Window::new`].
pub const STORE: Range<u64> = MIB..257 * MIB;
/// Shortest disk that takes a state, in bytes.
pub const MIN_DISK: u64 = STORE.end;
/// Longest name of a release in characters.
pub const MAX_RELEASE: usize = 63;

const MIB: u64 = 1024 * 1024;

/// What is known of the appliance that opens or makes a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The repository of its declaration.
    pub repository: Repository,
    /// MRTD.
    pub mrtd: [u8; 48],
    /// RTMR0, RTMR1 and RTMR2 as firmware and kernel left them.
    pub rtmr: [[u8; 48]; 3],
    /// What the image calls itself: for people, 1 to [`MAX_RELEASE`] printable characters without spaces.
    pub release: String,
}

/// The keys of an open state.
pub struct StateKeys {
    /// The vault's.
    pub vault: MasterKey,
    /// Of each volume that was asked for, in that order ([`Sealed::with_volumes`]).
    pub volumes: Vec<VolumeKey>,
}

/// A volume and what it is sealed with.
pub struct VolumeKey {
    /// Where it lies.
    pub volume: Volume,
    /// Its key.
    pub key: Box<Zeroizing<[u8; 32]>>,
}

impl fmt::Debug for StateKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted:state keys]")
    }
}

/// An open state.
#[derive(Debug)]
pub struct Opened {
    /// Its keys.
    pub keys: StateKeys,
    /// Whether it was made just now.
    pub fresh: bool,
    /// What opened it: SHA-256 of the slot's bytes. Nothing secret.
    pub opened_by: Digest,
    /// Of the store's present commit.
    pub epoch: u64,
    /// That commit's digest.
    pub root: [u8; 32],
    /// Version of the lineage: it rises with each statement.
    pub lineage: u64,
    /// The statement that let this boot open it, where one did.
    pub upgrade: Option<Upgrade>,
    /// What there is against older copies of it.
    pub continuity: Continuity,
}

/// A statement that was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// Which one.
    pub statement: Digest,
    /// Whose signature counted.
    pub signer: Fingerprint,
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
