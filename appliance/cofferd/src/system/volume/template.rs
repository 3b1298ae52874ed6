//! An empty file system of 12 MiB, whose blocks that are not zeros are a file of the image (image/volume-template).
//!
//! All of it is written, zeros too: no block of it is ever read before it was written. Nor is the last block of the device,
//! which the kernel reads before it lets the file system grow.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};

use super::geometry::BLOCK;

/// Blocks of the file system.
const BLOCKS: u32 = 3072;
/// A record: the block's number, little endian, and the block. In ascending order.
const RECORD: usize = 4 + BLOCK as usize;
/// Longest file.
pub(super) const LONGEST: u64 = BLOCKS as u64 * RECORD as u64;
/// Bytes of the file system.
pub(super) const LENGTH: u64 = BLOCKS as u64 * BLOCK;

/// The blocks of an empty file system.
pub(super) struct Template(Vec<u8>);

impl Template {
    /// Reads what image/volume-template wrote. `None` when it is nothing of that kind.
    pub(super) fn new(file: &[u8]) -> Option<Self> {
        if file.is_empty() || !file.len().is_multiple_of(RECORD) || file.len() as u64 > LONGEST {
            return None;
        }
        let mut image = vec![0; LENGTH as usize];
        let mut next = 0;
        for record in file.chunks_exact(RECORD) {
            let (number, block) = record.split_first_chunk::<4>()?;
            let number = u32::from_le_bytes(*number);
            if number < next || number >= BLOCKS {
                return None;
            }
            let at = number as usize * BLOCK as usize;
            image.get_mut(at..)?.get_mut(..block.len())?.copy_from_slice(block);
            next = number + 1;
        }
        Some(Self(image))
    }

    /// Writes it to a device of so many bytes.
    pub(super) fn write(&self, device: &mut File, length: u64) -> io::Result<()> {
        device.write_all(&self.0)?;
        let last = length.checked_sub(BLOCK).ok_or(io::ErrorKind::InvalidInput)?;
        if last >= LENGTH {
            device.seek(SeekFrom::Start(last))?;
            device.write_all(&[0; BLOCK as usize])?;
        }
        device.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u32, byte: u8) -> Vec<u8> {
        let mut record = number.to_le_bytes().to_vec();
        record.resize(RECORD, byte);
        record
    }

    #[test]
    fn all_blocks_are_written_and_the_last_one_of_the_device() {
        let template = Template::new(&[record(1, 0xaa), record(3071, 0xbb)].concat()).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![0xff; LENGTH as usize + 3 * 4096]).unwrap();
        file.rewind().unwrap();
        template.write(&mut file, LENGTH + 3 * 4096).unwrap();
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        io::Read::read_to_end(&mut file, &mut bytes).unwrap();
        let blocks: Vec<u8> = bytes.chunks(4096).map(|block| block[4095]).collect();
        assert_eq!((blocks[0], blocks[1], blocks[2], blocks[3070], blocks[3071]), (0, 0xaa, 0, 0, 0xbb));
        assert_eq!(blocks[3072..], [0xff, 0xff, 0]);
    }

    #[test]
    fn what_is_no_template_is_refused() {
        let bad = [
            Vec::new(),
            record(3072, 1),
            [record(5, 1), record(5, 1)].concat(),
            [record(5, 1), record(4, 1)].concat(),
            record(0, 1)[..4099].to_vec(),
            vec![0; RECORD * 3073],
        ];
        for (number, file) in bad.iter().enumerate() {
            assert!(Template::new(file).is_none(), "{number}");
        }
    }
}
