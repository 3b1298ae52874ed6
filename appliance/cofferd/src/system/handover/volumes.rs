//! The part of what the vault hands over that says where the volumes lie and what they are sealed with.
//!
//! As many entries as there may be volumes, the first ones in the order of the declaration, the rest zeros. Of each:
//!
//! | bytes | |
//! |---|---|
//! | 0..8 | first byte on the disk, little endian |
//! | 8..16 | length in bytes, little endian |
//! | 16..48 | its key |
//! | 48 | 0: no volume, 1: it is to be made, 2: it exists |

use cofferdam_declaration::MAX_VOLUMES;
use cofferdam_vault::state::VolumeKey;

use super::HandoverError;
use crate::system::sys::SecretMemory;

/// Length of one entry in bytes.
const ENTRY: usize = 49;
/// Length of all of them.
pub(super) const LENGTH: usize = ENTRY * MAX_VOLUMES;

/// A volume that is to be made or opened.
#[derive(Debug)]
pub(crate) struct Sealed {
    /// First byte on the disk.
    pub(crate) offset: u64,
    /// Length in bytes.
    pub(crate) length: u64,
    /// 32 bytes.
    pub(crate) key: SecretMemory,
    /// Whether it exists.
    pub(crate) made: bool,
}

/// Writes them into memory of zeros.
pub(super) fn write(memory: &mut [u8], volumes: &[VolumeKey]) {
    for (entry, VolumeKey { volume, key }) in memory.as_chunks_mut::<ENTRY>().0.iter_mut().zip(volumes) {
        let (offset, length) = (volume.offset.to_le_bytes(), volume.length.to_le_bytes());
        let parts: [&[u8]; 4] = [&offset, &length, key.as_slice(), if volume.made { &[2] } else { &[1] }];
        let bytes = parts.into_iter().flatten();
        entry.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
    }
}

/// Reads those that there are.
///
/// # Errors
///
/// [`HandoverError`].
pub(super) fn read(memory: &[u8]) -> Result<Vec<Sealed>, HandoverError> {
    let (entries, rest) = memory.as_chunks::<ENTRY>();
    let there = |entry: &&[u8; ENTRY]| entry.iter().any(|byte| *byte != 0);
    let volumes = entries.iter().take_while(there).map(entry).collect::<Result<Vec<_>, _>>()?;
    let zeros = !entries.iter().skip(volumes.len()).any(|entry| there(&entry)) && rest.is_empty();
    if zeros { Ok(volumes) } else { Err(HandoverError::Incomplete) }
}

fn entry(bytes: &[u8; ENTRY]) -> Result<Sealed, HandoverError> {
    let incomplete = || HandoverError::Incomplete;
    let (offset, rest) = bytes.split_first_chunk().ok_or_else(incomplete)?;
    let (length, rest) = rest.split_first_chunk().ok_or_else(incomplete)?;
    let (key, rest) = rest.split_first_chunk::<32>().ok_or_else(incomplete)?;
    let made = match rest {
        [1] => false,
        [2] => true,
        _ => return Err(incomplete()),
    };
    Ok(Sealed {
        offset: u64::from_le_bytes(*offset),
        length: u64::from_le_bytes(*length),
        key: SecretMemory::holding(key).map_err(HandoverError::Memory)?,
        made,
    })
}

#[cfg(test)]
mod tests {
    use cofferdam_vault::Volume;

    use super::*;

    fn volume(number: u8, made: bool) -> VolumeKey {
        let offset = u64::from(number) << 20;
        let volume = Volume { offset, length: 1 << 40, id: [0; 16], made };
        VolumeKey { volume, key: Box::new([number; 32].into()) }
    }

    #[test]
    fn volumes_are_read_as_they_were_written_up_to_as_many_as_there_may_be() {
        for count in [0, 1, 2, 32] {
            let written: Vec<VolumeKey> = (1..=count).map(|number| volume(number, number % 2 == 0)).collect();
            let mut memory = vec![0; LENGTH];
            write(&mut memory, &written);
            let read = read(&memory).unwrap();
            assert_eq!(read.len(), written.len());
            for (read, VolumeKey { volume, key }) in read.iter().zip(&written) {
                assert_eq!(
                    (read.offset, read.length, read.made),
                    (volume.offset, volume.length, volume.made)
                );
                assert_eq!(read.key.bytes(), key.as_slice());
            }
            assert!(!format!("{read:?}").contains("[1, 1"), "{read:?}");
        }
    }

    #[test]
    fn an_entry_behind_a_gap_or_without_a_right_end_is_none() {
        let mut memory = vec![0; LENGTH];
        write(&mut memory, &[volume(1, true), volume(2, false)]);
        let whole = memory.clone();
        for (place, wrong) in [(48, 0), (48, 3), (97, 0), (97, 255), (3 * ENTRY, 1)] {
            memory.copy_from_slice(&whole);
            memory[place] = wrong;
            assert!(read(&memory).is_err(), "{place}");
        }
        memory.copy_from_slice(&whole);
        memory[..ENTRY].fill(0);
        assert!(read(&memory).is_err());
        assert!(read(&whole[..100]).is_err());
    }
}
