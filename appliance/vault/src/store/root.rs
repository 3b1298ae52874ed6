//! The record of a commit: what one needs to find and to prove everything else.
//!
//! ```text
//! offset  length
//!      0       8  "CFDVAULT"
//!      8       1  format, 1
//!      9       7  zero
//!     16       8  id of the master key
//!     24      16  identity of the store, random
//!     40       8  epoch: counts the commits, from 1
//!     48       8  length of the disk in blocks of 4096 bytes
//!     56       8  length in bytes of what redb sees
//!     64      64  entry of the top node
//!    128      24  nonce
//!    152      16  tag of the empty message under that nonce, with
//!                 "cofferdam/vault/store/commit/v1" 00 and bytes 0 to 127 as associated data
//! ```
//!
//! Numbers are big endian. The rest of a record's block is written as zeros and never read. A record holds no secret; every
//! byte of it is authenticated before it is used, except that magic, format and key id are looked at first to say
//! what is wrong. Its digest, SHA-256 of `"cofferdam/vault/commit/v1" 00` and the 168 bytes, is the commit's: what a witness keeps.

use sha2::{Digest as _, Sha256};

use super::DiskError;
use super::seal::{NONCE, Sealer, TAG};
use super::tree::{self, ENTRY, Entry};
use crate::keys::KEY_ID;

/// Length of a record in bytes: less than a sector, so that most disks write it whole or not at all. None has to.
pub(super) const RECORD: usize = SIGNED + NONCE + TAG;
const SIGNED: usize = 64 + ENTRY;
const MAGIC: &[u8; 8] = b"CFDVAULT";
const FORMAT: u8 = 1;
const RECORD_DOMAIN: &[u8] = b"cofferdam/vault/store/commit/v1";
const DIGEST_DOMAIN: &[u8] = b"cofferdam/vault/commit/v1";

/// Names one commit of one store: what a witness keeps, and what [`crate::Store::open`] compares with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// Identity of the store.
    pub store: [u8; 16],
    /// Counts the commits. It rises with every one, not always by one.
    pub epoch: u64,
    /// Digest of the commit's record, and through it of every byte of the store.
    pub digest: [u8; 32],
}

/// A record that authenticated.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) root: Root,
    pub(super) blocks: u64,
    pub(super) length: u64,
    pub(super) top: Option<Entry>,
}

/// What a commit says of itself.
pub(super) struct Fields<'a> {
    pub(super) key_id: [u8; KEY_ID],
    pub(super) store: [u8; 16],
    pub(super) epoch: u64,
    pub(super) blocks: u64,
    pub(super) length: u64,
    pub(super) top: Option<&'a Entry>,
}

impl Fields<'_> {
    pub(super) fn seal(&self, sealer: &Sealer, nonce: [u8; NONCE]) -> Result<[u8; RECORD], DiskError> {
        let mut signed = [0; SIGNED];
        let numbers = [self.epoch, self.blocks, self.length].map(u64::to_be_bytes);
        let fields = MAGIC.iter().copied().chain([FORMAT, 0, 0, 0, 0, 0, 0, 0]).chain(self.key_id);
        let fields =
            fields.chain(self.store).chain(numbers.into_iter().flatten()).chain(tree::encode(self.top));
        signed.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        let tag = sealer.seal(&nonce, &associated_data(&signed), &mut []).map_err(|_| DiskError::Seal)?;
        let mut record = [0; RECORD];
        let fields = signed.into_iter().chain(nonce).chain(tag);
        record.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        Ok(record)
    }
}

/// Reads and authenticates a record.
///
/// # Errors
/// The name of what is there instead.
pub(super) fn open(bytes: &[u8; RECORD], sealer: &Sealer, key_id: [u8; KEY_ID]) -> Result<Record, DiskError> {
    parse(bytes, sealer, key_id).unwrap_or(Err(DiskError::RootChanged))
}

/// `None` cannot happen: the lengths are those of the constants.
fn parse(bytes: &[u8; RECORD], sealer: &Sealer, key_id: [u8; KEY_ID]) -> Option<Result<Record, DiskError>> {
    let (signed, rest) = bytes.split_first_chunk::<SIGNED>()?;
    let (nonce, rest) = rest.split_first_chunk::<NONCE>()?;
    let (tag, _) = rest.split_first_chunk::<TAG>()?;
    let (magic, rest) = signed.split_first_chunk::<8>()?;
    let (format, rest) = rest.split_first_chunk::<8>()?;
    let (id, rest) = rest.split_first_chunk::<KEY_ID>()?;
    let (store, rest) = rest.split_first_chunk::<16>()?;
    let (epoch, rest) = rest.split_first_chunk::<8>()?;
    let (blocks, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (top, _) = rest.split_first_chunk::<ENTRY>()?;
    if bytes.iter().all(|byte| *byte == 0) {
        return Some(Err(DiskError::Absent));
    }
    if magic != MAGIC {
        return Some(Err(DiskError::NotOurs));
    }
    if format.first() != Some(&FORMAT) {
        return Some(Err(DiskError::Format(*format.first()?)));
    }
    if *id != key_id {
        return Some(Err(DiskError::OtherKey));
    }
    if sealer.open(nonce, tag, &associated_data(signed), &mut []).is_err() {
        return Some(Err(DiskError::RootChanged));
    }
    let root = Root { store: *store, epoch: u64::from_be_bytes(*epoch), digest: digest(bytes) };
    let (blocks, length) = (u64::from_be_bytes(*blocks), u64::from_be_bytes(*length));
    Some(Ok(Record { root, blocks, length, top: tree::decode(top) }))
}

pub(super) fn digest(record: &[u8; RECORD]) -> [u8; 32] {
    Sha256::new().chain_update(DIGEST_DOMAIN).chain_update([0]).chain_update(record).finalize().into()
}

fn associated_data(signed: &[u8; SIGNED]) -> Vec<u8> {
    [RECORD_DOMAIN, signed].join(&0)
}
