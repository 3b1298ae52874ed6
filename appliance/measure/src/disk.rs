//! The disk that an image is started from: firmware measures its partition table before it starts a program from it.
//!
//! Source: TCG PC Client Platform Firmware Profile 1.06, section 10.2.4 (`UEFI_GPT_DATA`, PCR 5, which is in RTMR1); UEFI 2.11,
//! section 5.3 (the table).

use cofferdam_attest::reference::{BootSource, Cause, ImageReference, PredictedEvent, replay};
use sha2::{Digest as _, Sha384};

use crate::bytes::{CutOff, array, offset_at, slice, u32_at, u64_at};

/// As much of a disk as [`start_from`] looks at: the old table, the header, and 32 sectors of entries.
pub const BEGINNING: usize = 34 * SECTOR;

const SECTOR: usize = 512;
const HEADER_LENGTH: usize = 92;
const ENTRY_LENGTH: usize = 128;
/// Where the header has its own checksum, which counts as zero in it.
const CHECKSUM: std::ops::Range<usize> = 16..20;

/// Adds to every boot from a disk what the firmware measures of this one.
///
/// # Errors
/// [`DiskError`] when firmware would start nothing from it.
pub fn start_from(image: &mut ImageReference, disk: &[u8]) -> Result<(), DiskError> {
    let digest = Sha384::digest(event_data(disk)?).into();
    for boot in image.boots.iter_mut().filter(|boot| boot.source == BootSource::Disk) {
        let at = boot.events.iter().position(|event| event.cause == Cause::Uki).unwrap_or(0);
        let event = PredictedEvent {
            mr: 1,
            event: "EV_EFI_GPT_EVENT".to_owned(),
            digest,
            cause: Cause::Firmware("partition table of the disk".to_owned()),
        };
        boot.events.insert(at, event);
        boot.rtmr1 = replay(&boot.events, 1);
    }
    Ok(())
}

/// The header, the number of entries in use, and these.
fn event_data(disk: &[u8]) -> Result<Vec<u8>, DiskError> {
    let header = slice(disk, SECTOR, HEADER_LENGTH)?;
    if slice(header, 0, 8)? != b"EFI PART" {
        return Err(DiskError::None);
    }
    let shape = (offset_at(header, 12)?, u64_at(header, 72)?, offset_at(header, 84)?);
    let count = offset_at(header, 80)?;
    if shape != (HEADER_LENGTH, 2, ENTRY_LENGTH) || count > (BEGINNING - 2 * SECTOR) / ENTRY_LENGTH {
        return Err(DiskError::Shape);
    }
    let entries = slice(disk, 2 * SECTOR, count.saturating_mul(ENTRY_LENGTH))?;
    let mut checked = header.to_vec();
    checked.get_mut(CHECKSUM).ok_or(CutOff(SECTOR))?.fill(0);
    if crc32(&checked) != u32_at(header, CHECKSUM.start)? || crc32(entries) != u32_at(header, 88)? {
        return Err(DiskError::Checksum);
    }
    let used = |entry: &&[u8]| array::<16>(entry, 0).is_ok_and(|kind| kind != [0; 16]);
    let used: Vec<&[u8]> = entries.chunks_exact(ENTRY_LENGTH).filter(used).collect();
    let number = u64::try_from(used.len()).map_err(|_| DiskError::Shape)?;
    Ok([header, &number.to_le_bytes(), &used.concat()].concat())
}

/// CRC-32 as the table has it, bit by bit: it is asked for 16 KiB.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ if sum & 1 == 1 { 0xEDB8_8320 } else { 0 })
    })
}

/// Why firmware would start nothing from a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Another format.
    #[error("the disk has no GUID partition table with sectors of 512 bytes")]
    None,
    /// A table that firmware may take and this does not.
    #[error("the partition table is laid out in a way that is not predicted")]
    Shape,
    /// Damaged.
    #[error("the partition table's checksums are wrong")]
    Checksum,
    /// Too short.
    #[error("the disk ends within its partition table")]
    CutOff,
}

impl From<CutOff> for DiskError {
    fn from(_: CutOff) -> Self {
        Self::CutOff
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::uki;
    use crate::uki::image_reference;

    /// A disk with entries of these kinds, as `image/gce/disk` lays it out.
    fn disk(kinds: &[u8]) -> Vec<u8> {
        let mut entries = vec![0; 128 * ENTRY_LENGTH];
        for (entry, kind) in entries.chunks_exact_mut(ENTRY_LENGTH).zip(kinds) {
            entry[..16].fill(*kind);
            entry[127] = 9;
        }
        let mut header = vec![0; SECTOR];
        header[..8].copy_from_slice(b"EFI PART");
        header[12] = 92;
        header[72] = 2;
        header[80] = 128;
        header[84] = 128;
        header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
        let sum = crc32(&header[..HEADER_LENGTH]);
        header[CHECKSUM].copy_from_slice(&sum.to_le_bytes());
        [vec![0; SECTOR], header, entries].concat()
    }

    #[test]
    fn the_table_is_measured_before_the_image_and_by_the_entries_in_use() {
        let bytes = uki(b"a\0", b"initrd");
        let plain = image_reference(&bytes, None).unwrap();
        let mut image = plain.clone();
        start_from(&mut image, &disk(&[7, 0, 8])).unwrap();
        for (boot, before) in image.boots.iter().zip(&plain.boots) {
            let table = boot.events.iter().position(|event| event.event == "EV_EFI_GPT_EVENT");
            if boot.source == BootSource::Hypervisor {
                assert_eq!((table, boot.rtmr1), (None, before.rtmr1));
                continue;
            }
            assert_eq!(boot.events[table.unwrap() + 1].cause, Cause::Uki);
            assert_ne!(boot.rtmr1, before.rtmr1);
            assert_eq!((boot.rtmr1, boot.rtmr2), (replay(&boot.events, 1), before.rtmr2));
        }
        let data = event_data(&disk(&[7, 0, 8])).unwrap();
        assert_eq!(data.len(), HEADER_LENGTH + 8 + 2 * ENTRY_LENGTH);
        assert_eq!((data[HEADER_LENGTH], data[HEADER_LENGTH + 8], data[data.len() - 128]), (2, 7, 8));
    }

    #[test]
    fn what_firmware_does_not_start_from_is_refused() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        let good = disk(&[7]);
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut disk = good.clone();
            change(&mut disk);
            event_data(&disk).unwrap_err()
        };
        assert!(matches!(refused(&|disk| disk[SECTOR] = b'e'), DiskError::None));
        for at in [12, 72, 82, 83, 84] {
            assert!(matches!(refused(&|disk| disk[SECTOR + at] ^= 1), DiskError::Shape), "{at}");
        }
        for at in [SECTOR + 17, SECTOR + 60, 2 * SECTOR + 1, good.len() - 1] {
            assert!(matches!(refused(&|disk| disk[at] ^= 1), DiskError::Checksum), "{at}");
        }
        for length in [0, SECTOR, SECTOR + 91, good.len() - 1] {
            assert!(matches!(refused(&|disk| disk.truncate(length)), DiskError::CutOff), "{length}");
        }
    }
}
