//! What the vault hands to PID 1 when the state is open: one piece of secret memory that both see.
//!
//! PID 1 makes it, all zero, gives it to the vault at descriptor 3 and looks at it when that process has ended with exit code 0:
//! nobody writes to it then. It has a fixed length and a fixed layout, so that PID 1 parses nothing.
//!
//! | bytes | |
//! |---|---|
//! | 0..32 | the vault's master key |
//! | 32..64 | SHA-256 of the slot that was opened |
//! | 64..72 | the store's epoch, little endian |
//! | 72 | 1: the state was there, 2: it was made at this boot |
//! | 73..81 | version of its lineage, little endian |
//! | 81 | 1: it opened without a statement, 2: with the one that follows |
//! | 82..114 | digest of the statement; zeros without one |
//! | 114..146 | SHA-256 of the key that signed it; zeros without one |
//! | 146..154 | number of this boot's anchor, little endian |
//! | 154..162 | number of the state's first anchor, little endian |
//! | 162 | 1: a witness was asked how new it has to be, 2: none was |
//! | 163..171 | epoch of a state that was given up, little endian; zeros without one |
//!
//! Behind that are the volumes, in the order of the declaration ([`volumes`]).
//!
//! The vault's next run finds a key of another layout there ([`launch`]): the master key, and which of the declared volumes exist.

use std::num::NonZeroU64;

use cofferdam_attest::event_log::payload::Upgrade;
use cofferdam_protocol::state::Continuity;
use cofferdam_protocol::{Digest, Fingerprint};
use cofferdam_vault::state::Opened;
use nix::errno::Errno;

use self::volumes::Sealed;
use super::sys::SecretMemory;

pub(crate) mod launch;
pub(crate) mod volumes;

/// Length of what comes before the volumes, in bytes.
const HEAD: usize = 171;
/// Length in bytes.
pub(crate) const LENGTH: usize = HEAD + volumes::LENGTH;

/// What was opened.
#[derive(Debug)]
pub(crate) struct Handover {
    /// The vault's master key.
    pub(crate) vault: SecretMemory,
    /// Which slot was opened.
    pub(crate) opened_by: Digest,
    /// The number of the store's last commit.
    pub(crate) epoch: NonZeroU64,
    /// Whether the state was made at this boot.
    pub(crate) fresh: bool,
    /// The declared volumes, in order.
    pub(crate) volumes: Vec<Sealed>,
    /// Version of its lineage.
    pub(crate) lineage: NonZeroU64,
    /// The statement that it was opened with, and what PID 1 measures of it.
    pub(crate) upgrade: Option<Upgrade>,
    /// What there is against older copies of it.
    pub(crate) continuity: Continuity,
}

/// The memory does not hold what a vault that has opened the state leaves there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandoverError {
    /// Not written, or not as a whole.
    #[error("the vault ended without handing over its key")]
    Incomplete,
    /// No memory for the key.
    #[error("cannot keep the key in memory of its own")]
    Memory(#[source] Errno),
}

/// Writes it.
pub(crate) fn write(memory: &mut SecretMemory, opened: &Opened) {
    let (with, statement, signer) = match &opened.upgrade {
        None => (1, [0; 32], [0; 32]),
        Some(upgrade) => (2, *upgrade.statement.as_bytes(), *upgrade.signer.as_bytes()),
    };
    let Continuity { anchor, first_anchor, unwitnessed, accepted_loss } = &opened.continuity;
    let parts: [&[u8]; 12] = [
        opened.keys.vault.expose(),
        opened.opened_by.as_bytes(),
        &opened.epoch.to_le_bytes(),
        &[if opened.fresh { 2 } else { 1 }],
        &opened.lineage.to_le_bytes(),
        &[with],
        &statement,
        &signer,
        &anchor.get().to_le_bytes(),
        &first_anchor.get().to_le_bytes(),
        &[if *unwitnessed { 2 } else { 1 }],
        &accepted_loss.map_or(0, NonZeroU64::get).to_le_bytes(),
    ];
    let bytes = parts.into_iter().flatten();
    let (head, table) = memory.bytes_mut().split_at_mut_checked(HEAD).unwrap_or_default();
    volumes::write(table, &opened.keys.volumes);
    head.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
}

/// Reads it, once nobody writes to it any more.
///
/// # Errors
///
/// [`HandoverError`].
pub(crate) fn read(memory: &SecretMemory) -> Result<Handover, HandoverError> {
    let incomplete = || HandoverError::Incomplete;
    let bytes: &[u8; LENGTH] = memory.bytes().try_into().map_err(|_| incomplete())?;
    let (head, table) = bytes.split_first_chunk::<HEAD>().ok_or_else(incomplete)?;
    let rest = &mut &head[..];
    let vault = take::<32>(rest)?;
    let opened_by = Digest::from(*take(rest)?);
    let epoch = number(rest)?;
    let fresh = choice(rest)?;
    let lineage = number(rest)?;
    let upgraded = choice(rest)?;
    let (statement, signer) = (Digest::from(*take(rest)?), Fingerprint::from(*take(rest)?));
    let (anchor, first_anchor) = (number(rest)?, number(rest)?);
    let unwitnessed = choice(rest)?;
    let accepted_loss = NonZeroU64::new(u64::from_le_bytes(*take(rest)?));
    Ok(Handover {
        vault: SecretMemory::holding(vault).map_err(HandoverError::Memory)?,
        opened_by,
        epoch,
        fresh,
        volumes: volumes::read(table)?,
        lineage,
        upgrade: upgraded.then_some(Upgrade { statement, version: lineage, signer }),
        continuity: Continuity { anchor, first_anchor, unwitnessed, accepted_loss },
    })
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Result<&'a [u8; N], HandoverError> {
    let (head, tail) = rest.split_first_chunk().ok_or(HandoverError::Incomplete)?;
    *rest = tail;
    Ok(head)
}

fn number(rest: &mut &[u8]) -> Result<NonZeroU64, HandoverError> {
    NonZeroU64::new(u64::from_le_bytes(*take(rest)?)).ok_or(HandoverError::Incomplete)
}

/// 1 is no and 2 is yes, so that zeros are neither.
fn choice(rest: &mut &[u8]) -> Result<bool, HandoverError> {
    match take(rest)? {
        [1] => Ok(false),
        [2] => Ok(true),
        [_] => Err(HandoverError::Incomplete),
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_vault::MasterKey;
    use cofferdam_vault::state::{StateKeys, Upgrade as Used};

    use super::*;

    fn continuity(lost: bool) -> Continuity {
        let number = |number: u64| NonZeroU64::new(number).unwrap();
        let accepted_loss = lost.then(|| number(41));
        Continuity { anchor: number(12), first_anchor: number(11), unwitnessed: lost, accepted_loss }
    }

    fn opened(fresh: bool, upgrade: Option<Used>) -> Opened {
        let vault = MasterKey::take(&mut [1; 32]);
        let keys = StateKeys { vault, volumes: Vec::new() };
        let opened_by = Digest::of(b"slot");
        let continuity = continuity(fresh);
        Opened { keys, fresh, opened_by, epoch: 7, root: [5; 32], lineage: 3, upgrade, continuity }
    }

    #[test]
    fn what_is_handed_over_is_read_again_and_nothing_else_is() {
        let mut memory = SecretMemory::new(LENGTH).unwrap();
        assert!(matches!(read(&memory), Err(HandoverError::Incomplete)));
        let used = Used { statement: Digest::of(b"statement"), signer: Fingerprint::of(&[9; 32]) };
        for (fresh, upgrade) in [(true, None), (false, Some(used)), (false, None)] {
            write(&mut memory, &opened(fresh, upgrade));
            let read = read(&memory).unwrap();
            assert_eq!((read.vault.bytes(), read.opened_by), (&[1; 32][..], Digest::of(b"slot")));
            assert_eq!((read.epoch.get(), read.fresh, read.lineage.get()), (7, fresh, 3));
            let measured = upgrade.map(|Used { statement, signer }| Upgrade {
                statement,
                version: NonZeroU64::new(3).unwrap(),
                signer,
            });
            assert_eq!(read.upgrade, measured);
            assert_eq!(read.continuity, continuity(fresh));
            assert!(!format!("{read:?}").contains("[1, 1"), "{read:?}");
        }
        let whole = memory.bytes().to_vec();
        for (place, wrong) in
            [(72, 0), (72, 3), (81, 0), (81, 3), (64, 0), (73, 0), (146, 0), (154, 0), (162, 0), (162, 3)]
        {
            memory.bytes_mut().copy_from_slice(&whole);
            memory.bytes_mut()[place] = wrong;
            assert!(matches!(read(&memory), Err(HandoverError::Incomplete)), "{place} {wrong}");
        }
        assert!(matches!(read(&SecretMemory::new(LENGTH + 1).unwrap()), Err(HandoverError::Incomplete)));
    }
}
