//! One attempt to open a state: which slot, with which key; and how many wrong ones there were, so that the wait after one does not end
//! with a power cut.
//!
//! ```text
//! offset  length
//!      0       8  "CFDTRIES"
//!      8       1  format, 1
//!      9       7  zero
//!     16       8  number of the block: the higher one counts
//!     24       4  wrong attempts since the last right one
//!     28       4  zero
//!     32      32  SHA-256 of "cofferdam/state/attempts/v1" 00 and bytes 0 to 31
//!     64    4032  zero
//! ```
//!
//! Two such blocks are written in turn; zeros stand for none. No key covers them, since they are there before one is: a host can put
//! them back, and what bounds guessing then is Argon2id. A block that is neither of the two forms counts as one more wrong attempt than the
//! other one says, since a write that was cut off looks like that; where both are neither, the wait is the longest.

use std::time::Duration;

use cofferdam_attest::shares::{self, Share};
use cofferdam_protocol::unseal::{MAX_PASSPHRASE, MIN_PASSPHRASE, OpeningKey, SecretBytes};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::key::{self, Secret};
use super::sealed::milliseconds;
use super::sheet::Sheet;
use super::slot::{Set, Slot, Way, take};
use super::survey::COUNTS;
use super::{Sealed, StateError};

/// Length of a block in bytes.
pub(super) const BLOCK: usize = 4096;
const MAGIC: &[u8; 8] = b"CFDTRIES";
const FORMAT: u8 = 1;
const DOMAIN: &[u8] = b"cofferdam/state/attempts/v1";
/// The longest wait, and the number of wrong attempts that it takes: 2^9 s is more.
const LONGEST: Duration = Duration::from_secs(5 * 60);
const MOST: u32 = 10;

/// The count as it is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attempts {
    pub(super) wrong: u32,
    number: u64,
    /// The place of the next block: 0 or 1.
    pub(super) next: usize,
    /// A block was none.
    pub(super) damaged: bool,
}

impl Attempts {
    /// Reads the two blocks.
    pub(super) fn read(blocks: [&[u8]; 2]) -> Self {
        let [first, second] = blocks.map(parse);
        match (first, second) {
            (Some(first), Some(second)) => {
                let (newest, next) = if first > second { (first, 1) } else { (second, 0) };
                Self { number: newest.0, wrong: newest.1, next, damaged: false }
            }
            (Some(whole), None) => Self::after(whole, 1),
            (None, Some(whole)) => Self::after(whole, 0),
            (None, None) => Self { number: u64::MAX / 2, wrong: MOST, next: 0, damaged: true },
        }
    }

    fn after((number, wrong): (u64, u32), next: usize) -> Self {
        Self { number: number.saturating_add(1), wrong: wrong.saturating_add(1), next, damaged: true }
    }

    /// The block for another count, and what is known when it is written.
    pub(super) fn write(&self, wrong: u32) -> (Vec<u8>, Self) {
        let number = self.number.saturating_add(1);
        let mut bytes = Vec::with_capacity(BLOCK);
        bytes.extend_from_slice(MAGIC);
        bytes.extend([FORMAT, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(number.to_be_bytes().into_iter().chain(wrong.to_be_bytes()).chain([0; 4]));
        let digest = digest(&bytes);
        bytes.extend(digest);
        bytes.resize(BLOCK, 0);
        (bytes, Self { wrong, number, next: 1 - self.next.min(1), damaged: self.damaged })
    }

    /// How long nobody may try after so many wrong attempts: 1 s, 2 s, 4 s, … five minutes.
    pub(super) fn wait(&self) -> Duration {
        match self.wrong {
            0 => Duration::ZERO,
            wrong => Duration::from_secs(1_u64 << (wrong - 1).min(MOST)).min(LONGEST),
        }
    }
}

/// Number and count.
fn parse(block: &[u8]) -> Option<(u64, u32)> {
    if block.iter().all(|byte| *byte == 0) {
        return Some((0, 0));
    }
    let (signed, found) = block.split_at_checked(32)?;
    let (found, zeros) = found.split_at_checked(32)?;
    let rest = &mut &*signed;
    let known = take(rest)? == *MAGIC && take(rest)? == [FORMAT, 0, 0, 0, 0, 0, 0, 0];
    let (number, wrong) = (u64::from_be_bytes(take(rest)?), u32::from_be_bytes(take(rest)?));
    let whole = known && digest(signed) == found && zeros.iter().all(|byte| *byte == 0);
    (whole && take(rest)? == [0; 4]).then_some((number, wrong))
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(DOMAIN).chain_update([0]).chain_update(bytes).finalize().into()
}

/// A slot, the key to try it with, and what it means when it does not open.
pub(super) type Try = (Slot, Secret, fn() -> StateError);

impl Sealed {
    pub(super) fn wait_is_over(&self) -> Result<(), StateError> {
        match self.lock().until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Ok(()),
            left => Err(StateError::Wait { ms: milliseconds(left) }),
        }
    }

    /// The slot that is tried, with its key and the error if it does not open; `None` while there are too few shares. Counts the attempt.
    pub(super) fn slot_key(&self, sheet: &Sheet, key: &OpeningKey) -> Result<Option<Try>, StateError> {
        let find = |kind: fn(&Way) -> bool| {
            sheet.slots.iter().find(|slot| kind(&slot.way)).cloned().ok_or(StateError::NoSuchWay)
        };
        let tried = match key {
            OpeningKey::Passphrase { passphrase } => {
                let slot = find(|way| matches!(way, Way::Passphrase(_)))?;
                let Way::Passphrase(cost) = slot.way else { return Err(StateError::NoSuchWay) };
                let passphrase = check_passphrase(passphrase)?;
                self.count()?;
                let key = key::passphrase_key(passphrase, &slot.salt, cost)?;
                (slot, key, (|| StateError::WrongPassphrase) as fn() -> _)
            }
            OpeningKey::Recovery { recovery } => {
                let slot = find(|way| matches!(way, Way::Recovery))?;
                let recovery = key_bytes(recovery)?;
                self.count()?;
                let key = key::recovery_key(recovery, &slot.salt)?;
                (slot, key, (|| StateError::WrongRecovery) as fn() -> _)
            }
            OpeningKey::Share { set, index, share } => {
                let slot = find(|way| matches!(way, Way::Shares(_)))?;
                let Way::Shares(division) = slot.way else { return Err(StateError::NoSuchWay) };
                let Some(given) = self.give(division, set.as_bytes(), *index, share)? else {
                    return Ok(None);
                };
                self.count()?;
                let whole = shares::combine(&given).map_err(|_| StateError::WrongShares)?;
                let key = key::shares_key(&whole, &slot.salt)?;
                (slot, key, (|| StateError::WrongShares) as fn() -> _)
            }
        };
        Ok(Some(tried))
    }

    /// Takes a share; returns all of them, which are forgotten here, when they are enough.
    fn give(
        &self,
        division: Set,
        set: &[u8; 8],
        index: u8,
        share: &SecretBytes,
    ) -> Result<Option<Vec<Share>>, StateError> {
        if *set != division.id {
            return Err(StateError::OtherSet);
        }
        if index == 0 || index > division.shares {
            return Err(StateError::NoSuchShare { index, shares: division.shares });
        }
        let bytes = Zeroizing::new(*key_bytes(share)?);
        let given = &mut self.lock().given;
        if given.iter().any(|share| share.index == index) {
            return Err(StateError::ShareTwice(index));
        }
        given.push(Share { index, bytes });
        let enough = given.len() >= usize::from(division.threshold);
        Ok(enough.then(|| std::mem::take(given)))
    }

    /// Counts an attempt as a wrong one before it is made.
    fn count(&self) -> Result<(), StateError> {
        let wrong = self.lock().attempts.wrong.saturating_add(1);
        self.set_count(wrong)
    }

    pub(super) fn set_count(&self, wrong: u32) -> Result<(), StateError> {
        let attempts = self.lock().attempts;
        let (block, after) = attempts.write(wrong);
        self.put(COUNTS, attempts.next, &block)?;
        self.lock().attempts = after;
        Ok(())
    }
}

pub(super) fn check_passphrase(passphrase: &SecretBytes) -> Result<&[u8], StateError> {
    let bytes = passphrase.0.as_slice();
    if !(MIN_PASSPHRASE..=MAX_PASSPHRASE).contains(&bytes.len()) || str::from_utf8(bytes).is_err() {
        return Err(StateError::Passphrase { least: MIN_PASSPHRASE, most: MAX_PASSPHRASE });
    }
    Ok(bytes)
}

pub(super) fn key_bytes(bytes: &SecretBytes) -> Result<&[u8; 32], StateError> {
    bytes.0.as_slice().try_into().map_err(|_| StateError::KeyLength)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(disk: &mut [Vec<u8>; 2], wrong: u32) -> Attempts {
        let found = Attempts::read([&disk[0], &disk[1]]);
        let (block, after) = found.write(wrong);
        disk[found.next] = block;
        assert_eq!(Attempts::read([&disk[0], &disk[1]]), after);
        after
    }

    fn blank() -> [Vec<u8>; 2] {
        [vec![0; BLOCK], vec![0; BLOCK]]
    }

    #[test]
    fn waits_double_up_to_five_minutes() {
        let mut disk = blank();
        let waits: Vec<u64> = (0..13).map(|wrong| written(&mut disk, wrong).wait().as_secs()).collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        let most = Attempts { wrong: u32::MAX, number: 1, next: 0, damaged: false };
        assert_eq!(most.wait(), LONGEST);
    }

    #[test]
    fn a_write_that_was_cut_off_counts_as_made() {
        let mut disk = blank();
        for wrong in 1..5 {
            let before = disk.clone();
            let place = Attempts::read([&disk[0], &disk[1]]).next;
            let new = written(&mut disk, wrong);
            for cut in 0..64 {
                let mut torn = before.clone();
                torn[place][..cut].copy_from_slice(&disk[place][..cut]);
                let found = Attempts::read([&torn[0], &torn[1]]);
                // All of the former count or at least the new one, never less.
                assert!(found.wrong == wrong - 1 && !found.damaged || found.wrong >= wrong, "{wrong} {cut}");
                assert!(found.wrong <= new.wrong);
            }
        }
    }

    #[test]
    fn no_changed_byte_shortens_the_wait() {
        let mut disk = blank();
        written(&mut disk, 3);
        written(&mut disk, 4);
        for place in 0..2 {
            for byte in 0..BLOCK {
                let mut changed = disk.clone();
                changed[place][byte] ^= 0x10;
                let found = Attempts::read([&changed[0], &changed[1]]);
                assert!(found.damaged && found.wrong >= 4, "{place} {byte} {found:?}");
            }
        }
        let garbage = vec![0xA5; BLOCK];
        assert_eq!(Attempts::read([&garbage, &garbage]).wait(), LONGEST);
    }
}
