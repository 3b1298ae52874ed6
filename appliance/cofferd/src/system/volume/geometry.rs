//! Where dm-integrity puts what, and the superblock that says so.
//!
//! The driver reads a superblock whatever it is told and follows it: flags in it turn checks off, and one of zeros makes it write a new
//! one. So the block is compared here, before the driver sees it, with the only one that can be right: every byte of it follows
//! from the volume's length, but for the salt, and all of it is authenticated with a key of the volume.
//!
//! Layout and rules: drivers/md/dm-integrity.c, `struct superblock`, `calculate_journal_section_size`, `calculate_device_limits`.

use aws_lc_rs::hmac;

/// Bytes of a block: one tag is for one.
pub(super) const BLOCK: u64 = 4096;
/// Sectors of a block; also of the superblock's place.
const BLOCK_SECTORS: u64 = BLOCK / SECTOR;
const SECTOR: u64 = 512;
/// The journal, at most, in sectors: the kernel keeps three copies of it in memory.
pub(super) const JOURNAL_SECTORS: u64 = 2 << 11;
/// Sectors of data between two runs of tags.
pub(super) const INTERLEAVE_SECTORS: u64 = 1 << INTERLEAVE;
const INTERLEAVE: u32 = 15;
/// Bytes of a sector of the journal that are neither its commit number nor its part of the authentication.
const JOURNAL_SPACE: u64 = 496;

/// `SB_FLAG_HAVE_JOURNAL_MAC`, `SB_FLAG_FIXED_PADDING`, `SB_FLAG_FIXED_HMAC`.
const FLAGS: u32 = 0x01 | 0x08 | 0x10;
/// The names of all flags, by their bits.
const FLAG_NAMES: [&str; 7] =
    ["journal_mac", "recalculating", "dirty_bitmap", "fix_padding", "fix_hmac", "inline", "discard_keyed"];
const VERSION: u8 = 5;
const SALT: std::ops::Range<usize> = 48..64;
/// Where the first sector's authentication begins.
const MAC: usize = 480;

/// The superblock's block.
pub(super) type Block = [u8; BLOCK as usize];

/// Why a superblock is not the volume's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// All zeros.
    #[error("its superblock is all zeros, and there was one")]
    Blank,
    /// Something else.
    #[error("there is something else where its superblock was")]
    Foreign,
    /// Another version.
    #[error("its superblock has version {0} instead of {VERSION}")]
    Version(u8),
    /// A flag.
    #[error("its superblock {}", flags(*.0))]
    Flags(u32),
    /// A number that decides where things are, or a byte that is always zero.
    #[error("its superblock has another {0}")]
    Geometry(&'static str),
    /// It is right in form.
    #[error("its superblock is not authentic: of another volume, or changed, or the key is another one")]
    Authentication,
}

/// The places inside a volume's region, which follow from its length and the length of a tag alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    tag: u64,
    sections: u64,
    section_sectors: u64,
    metadata_run: u64,
    provided: u64,
}

impl Geometry {
    /// Of a region of so many sectors. `None` when nothing is left for data.
    pub(super) fn new(sectors: u64, tag: u64) -> Option<Self> {
        // An entry: the sector's number, the last words of eight sectors, the tag.
        let entry = (8 + 8 * BLOCK_SECTORS).checked_add(tag)?.next_multiple_of(8);
        let entries = JOURNAL_SPACE.checked_div(entry)? * BLOCK_SECTORS;
        let section_sectors = entries * BLOCK_SECTORS + BLOCK_SECTORS;
        let sections = (JOURNAL_SECTORS / section_sectors).max(1);
        let metadata_run = (tag << (INTERLEAVE - 3)).next_multiple_of(BLOCK) / SECTOR;
        let mut geometry = Self { tag, sections, section_sectors, metadata_run, provided: 0 };
        for bit in (3..63).rev() {
            let more = geometry.provided | 1 << bit;
            if geometry.place(more - 1).is_some_and(|place| place < sectors) {
                geometry.provided = more;
            }
        }
        (geometry.provided > 0).then_some(geometry)
    }

    /// Sectors of data.
    pub(super) fn provided(&self) -> u64 {
        self.provided
    }

    /// Sectors of the journal, as they come out.
    pub(super) fn journal_sectors(&self) -> u64 {
        self.sections.saturating_mul(self.section_sectors)
    }

    /// Bytes of a tag.
    pub(super) fn tag(&self) -> u64 {
        self.tag
    }

    /// The sector of the region that a sector of data lies in.
    fn place(&self, sector: u64) -> Option<u64> {
        let runs = (sector >> INTERLEAVE).checked_add(1)?.checked_mul(self.metadata_run)?;
        sector.checked_add(runs)?.checked_add(BLOCK_SECTORS)?.checked_add(self.journal_sectors())
    }

    /// What the superblock begins with: all up to the salt.
    fn head(&self) -> [u8; SALT.start] {
        let mut head = [0; SALT.start];
        let fields: [&[u8]; 8] = [
            b"integrt\0",
            &[VERSION, INTERLEAVE as u8],
            &(self.tag as u16).to_le_bytes(),
            &(self.sections as u32).to_le_bytes(),
            &self.provided.to_le_bytes(),
            &FLAGS.to_le_bytes(),
            // Sectors of a block, and blocks of a bit of the bitmap that this mode does not use; both as powers of two.
            &[3, 12],
            &[0; 18],
        ];
        head.iter_mut().zip(fields.into_iter().flatten()).for_each(|(place, byte)| *place = *byte);
        head
    }

    /// Compares a superblock with the only one that this volume can have, and authenticates it with the key of its journal.
    ///
    /// # Errors
    ///
    /// [`SuperblockError`], the first difference in the order of its variants.
    pub(super) fn check(&self, block: &Block, key: &hmac::Key) -> Result<(), SuperblockError> {
        let expected = self.head();
        let field = |range: std::ops::Range<usize>| block.get(range.clone()) == expected.get(range);
        if block.iter().all(|byte| *byte == 0) {
            return Err(SuperblockError::Blank);
        }
        if !field(0..8) {
            return Err(SuperblockError::Foreign);
        }
        let [_, _, _, _, _, _, _, _, version, ..] = *block;
        if version != VERSION {
            return Err(SuperblockError::Version(version));
        }
        let flags =
            block.get(24..).and_then(|rest| rest.first_chunk()).map(|bytes| u32::from_le_bytes(*bytes));
        if flags != Some(FLAGS) {
            return Err(SuperblockError::Flags(flags.unwrap_or_default()));
        }
        let rest = [
            (9..10, "interleave"),
            (10..12, "length of a tag"),
            (12..16, "length of the journal"),
            (16..24, "length"),
            (28..29, "block size"),
            (29..48, "byte that is always the same"),
        ];
        if let Some((_, name)) = rest.into_iter().find(|(range, _)| !field(range.clone())) {
            return Err(SuperblockError::Geometry(name));
        }
        let (Some(signed), Some(mac)) = (block.get(..MAC), block.get(MAC..SECTOR as usize)) else {
            return Err(SuperblockError::Foreign);
        };
        let zeros = [block.get(SALT.end..MAC), block.get(SECTOR as usize..)];
        if zeros.into_iter().flatten().flatten().any(|byte| *byte != 0) {
            return Err(SuperblockError::Geometry("byte that is always zero"));
        }
        hmac::verify(key, signed, mac).map_err(|_| SuperblockError::Authentication)
    }
}

/// The difference between these flags and ours, in words.
fn flags(found: u32) -> String {
    let named = |bits: u32| {
        let known = FLAG_NAMES.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 1);
        let mut names: Vec<String> = known.map(|(_, name)| (*name).to_owned()).collect();
        if bits >> FLAG_NAMES.len() != 0 {
            names.push(format!("{:#x}", bits >> FLAG_NAMES.len() << FLAG_NAMES.len()));
        }
        names.join(", ")
    };
    match (FLAGS & !found, found & !FLAGS) {
        (0, more) => format!("has the flag {} besides", named(more)),
        (less, 0) => format!("lacks the flag {}", named(less)),
        (less, more) => format!("lacks the flag {} and has {} besides", named(less), named(more)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &[byte; 32])
    }

    /// As the kernel writes it.
    fn superblock(geometry: &Geometry) -> Block {
        let mut block = [0; BLOCK as usize];
        block[..48].copy_from_slice(&geometry.head());
        block[SALT].fill(0x5a);
        sign(&mut block, &key(1));
        block
    }

    fn sign(block: &mut Block, key: &hmac::Key) {
        let mac = hmac::sign(key, &block[..MAC]);
        block[MAC..512].copy_from_slice(mac.as_ref());
    }

    #[test]
    fn data_ends_where_the_region_does() {
        for sectors in [40_000, 1 << 17, (1 << 21) + 8, 20 << 21, 1 << 31] {
            let geometry = Geometry::new(sectors, 32).unwrap();
            assert!(geometry.place(geometry.provided - 1).unwrap() < sectors);
            assert!(geometry.place(geometry.provided + 7).unwrap() >= sectors, "{sectors}");
            assert_eq!(geometry.provided % 8, 0);
        }
        assert!(Geometry::new(0, 32).is_none());
        assert!(Geometry::new(JOURNAL_SECTORS, 32).is_none());
        assert!(Geometry::new(u64::MAX, 32).is_some());
    }

    #[test]
    fn the_journal_of_both_ciphers_is_as_the_kernel_divides_it() {
        let short = Geometry::new(1 << 21, 32).unwrap();
        assert_eq!((short.section_sectors, short.sections, short.metadata_run), (264, 15, 256));
        let long = Geometry::new(1 << 21, 48).unwrap();
        assert_eq!((long.section_sectors, long.sections, long.metadata_run), (264, 15, 384));
    }

    #[test]
    fn every_byte_of_a_superblock_counts() {
        let geometry = Geometry::new(1 << 21, 32).unwrap();
        let ours = superblock(&geometry);
        assert_eq!(geometry.check(&ours, &key(1)), Ok(()));
        for at in 0..ours.len() {
            let mut block = ours;
            block[at] ^= 1;
            assert!(geometry.check(&block, &key(1)).is_err(), "{at}");
        }
    }

    #[test]
    fn each_difference_has_its_name_even_when_it_is_signed() {
        let geometry = Geometry::new(1 << 21, 32).unwrap();
        let change = |at: usize, bits: u8| {
            let mut block = superblock(&geometry);
            block[at] ^= bits;
            sign(&mut block, &key(1));
            geometry.check(&block, &key(1)).unwrap_err()
        };
        assert_eq!(change(0, 1), SuperblockError::Foreign);
        assert_eq!(change(8, 1), SuperblockError::Version(4));
        assert_eq!(change(24, 0x10).to_string(), "its superblock lacks the flag fix_hmac");
        assert_eq!(
            change(24, 0x06).to_string(),
            "its superblock has the flag recalculating, dirty_bitmap besides"
        );
        assert_eq!(
            change(24, 0x50).to_string(),
            "its superblock lacks the flag fix_hmac and has discard_keyed besides"
        );
        assert_eq!(change(25, 0x02).to_string(), "its superblock has the flag 0x200 besides");
        for (at, name) in
            [(9, "interleave"), (10, "length of a tag"), (12, "length of the journal"), (17, "length")]
        {
            assert_eq!(change(at, 1), SuperblockError::Geometry(name));
        }
        assert_eq!(change(28, 1), SuperblockError::Geometry("block size"));
        assert_eq!(change(32, 1), SuperblockError::Geometry("byte that is always the same"));
        assert_eq!(change(64, 1), SuperblockError::Geometry("byte that is always zero"));
        assert_eq!(geometry.check(&[0; BLOCK as usize], &key(1)), Err(SuperblockError::Blank));
        assert_eq!(geometry.check(&superblock(&geometry), &key(2)), Err(SuperblockError::Authentication));
        let other = Geometry::new(1 << 22, 32).unwrap();
        assert_eq!(other.check(&superblock(&geometry), &key(1)), Err(SuperblockError::Geometry("length")));
    }
}
