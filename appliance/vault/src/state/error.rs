//! What can be wrong with a state and with an attempt to open it, by name.

use std::io;

use super::LineageError;
use crate::StoreError;

/// Why a state is not found, made or opened. No variant holds a byte of a key.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// What is there is neither a state nor zeros.
    #[error("what is on the state disk is not a state of an appliance, and it is not overwritten")]
    NotOurs,
    /// A format that this version does not know.
    #[error("the state has the unknown format {0}")]
    Format(u8),
    /// Neither sheet of key slots has the digest that it says it has.
    #[error("both sheets of key slots are damaged")]
    Damaged,
    /// A sheet says what no appliance writes, or does not authenticate with the key that it gave.
    #[error("the key slots were altered")]
    Altered,
    /// The two sheets are of two states.
    #[error("the two sheets of key slots are not of one state")]
    TwoStates,
    /// No disk for a state.
    #[error("a state disk of {length} bytes is too small: it takes at least {least}")]
    TooSmall {
        /// Its length.
        length: u64,
        /// What it has to have.
        least: u64,
    },
    /// The disk is shorter than when the state was made.
    #[error("the state disk was cut: {length} bytes instead of {expected}")]
    Truncated {
        /// Its length.
        length: u64,
        /// The length that the state was made for.
        expected: u64,
    },
    /// The disk is longer than when the state was made.
    #[error(
        "the state disk has grown: {length} bytes instead of {expected}, and a state does not grow with it"
    )]
    Grown {
        /// Its length.
        length: u64,
        /// The length that the state was made for.
        expected: u64,
    },
    /// A part of the key slots cannot be read.
    #[error("the state disk cannot be read at {offset}")]
    Unreadable {
        /// First byte of what was asked for.
        offset: u64,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
    /// The disk as a whole cannot be used.
    #[error("the state disk is not usable")]
    Io(#[source] io::Error),
    /// The disk does not take a change. Without it no attempt is made: it would not be counted.
    #[error("the state disk does not take a change")]
    Write(#[source] io::Error),
    /// The state is not this appliance's to open, or a statement does not make it so.
    #[error(transparent)]
    Lineage(#[from] LineageError),
    /// There is nothing to open.
    #[error("the state disk is blank")]
    Blank,
    /// There is something already.
    #[error("there is a state already, and it is not overwritten")]
    Occupied,
    /// The key slots are zeros, and what belongs behind them is not.
    #[error("the key slots are blank, but where the store goes there is something: it is not overwritten")]
    Leftover,
    /// This boot has opened or made the state.
    #[error("the state is open")]
    Open,
    /// No slot of this kind.
    #[error("the state has no such way to open it")]
    NoSuchWay,
    /// The slot does not open with this passphrase.
    #[error("the passphrase does not open the state")]
    WrongPassphrase,
    /// The slot does not open with this recovery key.
    #[error("the recovery key does not open the state")]
    WrongRecovery,
    /// The slot does not open with what the shares give: one of them is corrupted.
    #[error("the shares do not open the state: at least one of them is not as it was made")]
    WrongShares,
    /// A share of another division.
    #[error("the share belongs to another set than the one that opens this state")]
    OtherSet,
    /// A share of a number that there is not.
    #[error("there is no share {index}: the set has {shares}")]
    NoSuchShare {
        /// The share's number.
        index: u8,
        /// How many there are.
        shares: u8,
    },
    /// A share of this number was given before.
    #[error("share {0} was given already")]
    ShareTwice(u8),
    /// The wait after a wrong attempt is not over.
    #[error("the next attempt is in {} s", ms.div_ceil(1000))]
    Wait {
        /// Milliseconds left.
        ms: u64,
    },
    /// Another attempt is being made.
    #[error("another attempt is under way")]
    Busy,
    /// This very request was carried out before.
    #[error("this request was already carried out")]
    Spent,
    /// A passphrase that is too short, too long, or no text.
    #[error("a passphrase is a text of {least} to {most} bytes")]
    Passphrase {
        /// Fewest bytes.
        least: usize,
        /// Most bytes.
        most: usize,
    },
    /// A key or share of another length than 32 bytes.
    #[error("a key or share is 32 bytes")]
    KeyLength,
    /// Numbers of shares that make no division.
    #[error("{threshold} of {shares} shares is no division of a key")]
    Shares {
        /// How many are needed.
        threshold: u8,
        /// How many there are.
        shares: u8,
    },
    /// A name of the image that does not fit a slot.
    #[error("the image's release is not a text of 1 to {0} characters")]
    Release(usize),
    /// It is whole, and older than what is known of it.
    #[error("the state is an older copy: commit {found}, and commit {expected} was attested")]
    OlderCopy {
        /// Epoch of what is there.
        found: u64,
        /// Epoch that is known.
        expected: u64,
    },
    /// Nobody has said how new it has to be, and the declaration requires that.
    #[error("no witness was asked how new the state has to be, and the declaration requires one")]
    Unwitnessed,
    /// None come after those of the state that is given up.
    #[error("no epoch or no anchor can come after those that are given up")]
    NoNumber,
    /// The key server knows another state than this one.
    #[error("this is another state than the one of epoch {epoch} that the key server knows")]
    OtherState {
        /// Of the one that it knows.
        epoch: u64,
    },
    /// The key server knows another commit of the same number.
    #[error("the state disk was copied: another copy of it has reached commit {epoch} as well")]
    Copied {
        /// The commit's number.
        epoch: u64,
    },
    /// The declaration names none, or not this one.
    #[error("the declaration names no such key server")]
    NoKeyServer,
    /// A state cannot be made without its key.
    #[error("there is no key of the key server {server} yet: {why}")]
    NoPeer {
        /// Which.
        server: String,
        /// Why.
        why: String,
    },
    /// Fewer servers have answered than have to know of each opening.
    #[error(
        "{answered} of {all} key servers have answered, and it takes {quorum} to know how new the state has to be"
    )]
    TooFewServers {
        /// How many have.
        answered: usize,
        /// How many have to.
        quorum: usize,
        /// How many are declared.
        all: usize,
    },
    /// They open a state, and it is not the one that is open.
    #[error("the key slots on the disk are another state's than the one that is open")]
    OtherSlots,
    /// The key slots were changed since.
    #[error(
        "older key slots: they had been changed {sheet} times, and {store} times when the state was last in use"
    )]
    OlderSlots {
        /// How often, as the sheet says.
        sheet: u64,
        /// How often, as the store says.
        store: u64,
    },
    /// Not from the declared server, or not for this boot.
    #[error("the answer is not signed by that key server for this appliance")]
    PeerSignature,
    /// Its key is another one than the state was made with.
    #[error("the key of the key server does not open the state")]
    WrongPeer,
    /// The key slots are whole, and the store behind them is not.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is not the memory that the passphrase takes.
    #[error("not enough memory for the passphrase: {kib} KiB")]
    Memory {
        /// How much.
        kib: u32,
    },
    /// The system's random number generator failed.
    #[error("no random numbers from the system")]
    Random,
    /// A cipher or hash refused, which none does with the lengths that are used.
    #[error("a key cannot be derived or wrapped")]
    Derive,
}

impl StateError {
    /// Whether trying again may succeed: nothing was learned about what is on the disk.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreadable { .. } | Self::Io(_) | Self::Busy | Self::Wait { .. } | Self::Random => true,
            Self::Store(error) => error.may_pass(),
            _ => false,
        }
    }
}
