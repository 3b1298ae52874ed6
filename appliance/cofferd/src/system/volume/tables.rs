//! The three tables of a volume and the keys in them.
//!
//! ```text
//! the volume's key (32 bytes)
//!  └ HKDF-SHA256, salt "cofferdam/volume/v1" (RFC 5869)
//!     ├ info "blocks"         the cipher of the blocks
//!     ├ info "journal mac"    authenticates dm-integrity's superblock and the sector numbers in its journal
//!     └ info "journal crypt"  hides what is in the journal
//! ```
//!
//! A table is written as the kernel prints it, in its order and with its defaults, so that what is read back can be compared with it.

use std::fmt::Write as _;

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::{hkdf, hmac};
use zeroize::Zeroizing;

use super::geometry::{BLOCK, Geometry, INTERLEAVE_SECTORS};
use crate::system::mapper::Target;

const SALT: &[u8] = b"cofferdam/volume/v1";
/// Longer than any table, so that none is ever moved and left behind.
const TABLE: usize = 1024;
/// The longest key of a cipher in bytes.
const LONGEST: usize = 96;

/// What a volume's blocks are sealed with. Both have a random number for each write of a block, which is kept with the tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// AEGIS-128: what volumes have.
    Aegis,
    /// AES-XTS with HMAC-SHA256: what it is measured against.
    XtsHmac,
}

impl Cipher {
    fn name(self) -> &'static str {
        match self {
            Self::Aegis => "capi:aegis128-random",
            Self::XtsHmac => "capi:authenc(hmac(sha256),xts(aes))-random",
        }
    }

    fn key(self) -> usize {
        match self {
            Self::Aegis => 16,
            Self::XtsHmac => LONGEST,
        }
    }

    /// Random number and tag, in bytes.
    pub(super) fn tag(self) -> u64 {
        match self {
            Self::Aegis => 32,
            Self::XtsHmac => 48,
        }
    }
}

/// What a volume's keys are derived from.
pub(super) struct Keys(hkdf::Prk);

/// How many bytes.
struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Keys {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(key))
    }

    /// Fills `key` with what this name stands for.
    fn fill(&self, name: &str, key: &mut [u8]) -> Result<(), Unspecified> {
        self.0.expand(&[name.as_bytes()], Length(key.len()))?.fill(key)
    }

    fn add(&self, name: &str, length: usize, table: &mut String) -> Result<(), Unspecified> {
        let mut key = Zeroizing::new([0; LONGEST]);
        let key = key.get_mut(..length).ok_or(Unspecified)?;
        self.fill(name, key)?;
        key.iter().try_for_each(|byte| write!(table, "{byte:02x}")).map_err(|_| Unspecified)
    }

    /// With which dm-integrity authenticates its superblock.
    pub(super) fn superblock(&self) -> Result<hmac::Key, Unspecified> {
        let mut key = Zeroizing::new([0; 32]);
        self.fill("journal mac", key.as_mut_slice())?;
        Ok(hmac::Key::new(hmac::HMAC_SHA256, key.as_slice()))
    }

    /// The region of the disk that the volume is in.
    pub(super) fn place(disk: &str, start: u64, sectors: u64) -> Target {
        let parameters = Zeroizing::new(format!("{disk} {start}"));
        Target { kind: "linear", sectors, parameters }
    }

    /// dm-integrity on that region: it keeps the tags, and each write whole.
    pub(super) fn integrity(&self, device: &str, geometry: &Geometry) -> Result<Target, Unspecified> {
        let mut table = Zeroizing::new(String::with_capacity(TABLE));
        let (tag, journal) = (geometry.tag(), geometry.journal_sectors());
        let _ = write!(
            table,
            "{device} 0 {tag} J 10 block_size:{BLOCK} interleave_sectors:{INTERLEAVE_SECTORS} buffer_sectors:128 \
             journal_sectors:{journal} journal_watermark:50 commit_time:10000 fix_padding fix_hmac journal_crypt:ctr(aes):"
        );
        self.add("journal crypt", 32, &mut table)?;
        table.push_str(" journal_mac:hmac(sha256):");
        self.add("journal mac", 32, &mut table)?;
        Ok(Target { kind: "integrity", sectors: geometry.provided(), parameters: table })
    }

    /// dm-crypt on that: each block encrypted and authenticated with its number.
    pub(super) fn crypt(
        &self,
        device: &str,
        cipher: Cipher,
        geometry: &Geometry,
    ) -> Result<Target, Unspecified> {
        let mut table = Zeroizing::new(String::with_capacity(TABLE));
        let _ = write!(table, "{} ", cipher.name());
        self.add("blocks", cipher.key(), &mut table)?;
        let tag = geometry.tag();
        let _ = write!(table, " 0 {device} 0 2 integrity:{tag}:aead sector_size:{BLOCK}");
        Ok(Target { kind: "crypt", sectors: geometry.provided(), parameters: table })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frozen: a volume that was made opens under every later version. The keys are from another implementation of RFC 5869.
    #[test]
    fn tables_and_keys_are_as_they_were() {
        let keys = Keys::new(&[7; 32]);
        let geometry = Geometry::new(2 << 20, 32).unwrap();
        let table = keys.integrity("252:0", &geometry).unwrap();
        assert_eq!((table.kind, table.sectors), ("integrity", geometry.provided()));
        let expected = "252:0 0 32 J 10 block_size:4096 interleave_sectors:32768 buffer_sectors:128 journal_sectors:3960 \
                        journal_watermark:50 commit_time:10000 fix_padding fix_hmac \
                        journal_crypt:ctr(aes):2ceab556cd2f7345371bcce24b1c82a67ae87aa9f9e73c34b2e02dd48ed28117 \
                        journal_mac:hmac(sha256):a311b243a02772f20f3295d7cfab5edebe401c6d84364bd7245dd71c10af9a24";
        assert_eq!(*table.parameters, expected);
        let table = keys.crypt("252:1", Cipher::Aegis, &geometry).unwrap();
        let expected = "capi:aegis128-random ecaad3490b01b758b5b617f77a29e00f 0 252:1 0 2 integrity:32:aead sector_size:4096";
        assert_eq!(
            (table.kind, table.sectors, table.parameters.as_str()),
            ("crypt", geometry.provided(), expected)
        );
        let geometry = Geometry::new(2 << 20, 48).unwrap();
        let table = keys.crypt("252:1", Cipher::XtsHmac, &geometry).unwrap();
        assert!(table.parameters.len() < TABLE && table.parameters.capacity() == TABLE);
    }

    #[test]
    fn another_key_or_name_is_another_key() {
        let (mut one, mut two) = ([0; 32], [0; 32]);
        Keys::new(&[7; 32]).fill("blocks", &mut one).unwrap();
        Keys::new(&[8; 32]).fill("blocks", &mut two).unwrap();
        assert_ne!(one, two);
        Keys::new(&[7; 32]).fill("journal mac", &mut two).unwrap();
        assert_ne!(one, two);
    }
}
