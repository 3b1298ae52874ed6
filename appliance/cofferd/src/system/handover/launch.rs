//! What the vault finds at descriptor 3 when it is to serve: its master key, and which of the declared volumes exist by now.
//!
//! | bytes | |
//! |---|---|
//! | 0..32 | the master key |
//! | 32..36 | one bit for each declared volume, the first one's is the lowest, little endian |

use cofferdam_vault::MasterKey;
use nix::errno::Errno;

use crate::system::sys::SecretMemory;

/// Length in bytes.
pub(crate) const LENGTH: usize = 36;

/// Writes it into memory of that length.
pub(crate) fn write(memory: &mut SecretMemory, key: impl FnOnce(&mut [u8; 32]), volumes: u32) {
    if let Some((place, rest)) = memory.bytes_mut().split_first_chunk_mut::<32>() {
        key(place);
        rest.iter_mut().zip(volumes.to_le_bytes()).for_each(|(place, byte)| *place = byte);
    }
}

/// New memory with a key and these volumes.
///
/// # Errors
///
/// No memory of that kind.
pub(crate) fn holding(key: &SecretMemory, volumes: u32) -> Result<SecretMemory, Errno> {
    let mut memory = SecretMemory::new(LENGTH)?;
    write(&mut memory, |place| place.iter_mut().zip(key.bytes()).for_each(|(to, from)| *to = *from), volumes);
    Ok(memory)
}

/// Takes the key out of the memory, which is cleared by that. `None` for memory of another length.
pub(crate) fn take(mut memory: SecretMemory) -> Option<(MasterKey, u32)> {
    let memory: &mut [u8; LENGTH] = memory.bytes_mut().try_into().ok()?;
    let (key, volumes) = memory.split_first_chunk_mut::<32>()?;
    let volumes: &[u8; 4] = (&*volumes).try_into().ok()?;
    Some((MasterKey::take(key), u32::from_le_bytes(*volumes)))
}

/// The bits of the first so many volumes.
pub(crate) fn first(count: usize) -> u32 {
    u32::try_from((1_u64 << count.min(32)) - 1).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_once_with_the_volumes_that_exist() {
        for (count, bits) in [(0, 0), (1, 1), (5, 31), (32, u32::MAX), (33, u32::MAX)] {
            let mut memory = SecretMemory::new(LENGTH).unwrap();
            write(&mut memory, |key| key.fill(7), first(count));
            let (key, volumes) = take(memory).unwrap();
            assert_eq!((key.expose(), volumes), (&[7; 32], bits));
        }
        assert!(take(SecretMemory::new(32).unwrap()).is_none());
    }
}
