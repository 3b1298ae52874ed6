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
//!
//! Behind that are the volumes, in the order of the declaration ([`volumes`]).
//!
//! The vault's next run finds a key of another layout there ([`launch`]): the master key, and which of the declared volumes exist.

use std::num::NonZeroU64;

use cofferdam_protocol::Digest;
use cofferdam_vault::state::VolumeKey;
use nix::errno::Errno;

use self::volumes::Sealed;
use super::sys::SecretMemory;

pub(crate) mod launch;
pub(crate) mod volumes;

/// Length of what comes before the volumes, in bytes.
const HEAD: usize = 73;
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

/// Writes it: the last byte last.
pub(crate) fn write(
    memory: &mut SecretMemory,
    vault: &[u8; 32],
    opened_by: &Digest,
    epoch: u64,
    fresh: bool,
    volumes: &[VolumeKey],
) {
    let parts: [&[u8]; 4] =
        [vault, opened_by.as_bytes(), &epoch.to_le_bytes(), if fresh { &[2] } else { &[1] }];
    let bytes = parts.into_iter().flatten();
    let (head, table) = memory.bytes_mut().split_at_mut_checked(HEAD).unwrap_or_default();
    volumes::write(table, volumes);
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
    let (vault, rest) = head.split_first_chunk::<32>().ok_or_else(incomplete)?;
    let (opened_by, rest) = rest.split_first_chunk::<32>().ok_or_else(incomplete)?;
    let (epoch, rest) = rest.split_first_chunk::<8>().ok_or_else(incomplete)?;
    let fresh = match rest {
        [1] => false,
        [2] => true,
        _ => return Err(incomplete()),
    };
    Ok(Handover {
        vault: SecretMemory::holding(vault).map_err(HandoverError::Memory)?,
        opened_by: Digest::from(*opened_by),
        epoch: NonZeroU64::new(u64::from_le_bytes(*epoch)).ok_or_else(incomplete)?,
        fresh,
        volumes: volumes::read(table)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_over_is_read_again_and_nothing_else_is() {
        let mut memory = SecretMemory::new(LENGTH).unwrap();
        assert!(matches!(read(&memory), Err(HandoverError::Incomplete)));
        let digest = Digest::of(b"slot");
        for fresh in [true, false] {
            write(&mut memory, &[1; 32], &digest, 7, fresh, &[]);
            let read = read(&memory).unwrap();
            assert_eq!((read.vault.bytes(), read.opened_by), (&[1; 32][..], digest));
            assert_eq!((read.epoch.get(), read.fresh), (7, fresh));
            assert!(!format!("{read:?}").contains("[1, 1"), "{read:?}");
        }
        memory.bytes_mut()[72] = 3;
        assert!(matches!(read(&memory), Err(HandoverError::Incomplete)));
        assert!(matches!(read(&SecretMemory::new(LENGTH + 1).unwrap()), Err(HandoverError::Incomplete)));
    }
}
