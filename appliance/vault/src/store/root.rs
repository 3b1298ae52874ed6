//! The record of a commit: what one needs to find and to prove everything else.
//!
//! ```text
//! offset  length
//!      0       8  "CFDVAULT"
//!      8       1  format: 1, or 2 when there is a journal
//!      9       2  length of the journal, n
//!     11       5  zero
//!     16       8  id of the master key
//!     24      16  identity of the store, random
//!     40       8  epoch: counts the commits, from 1
//!     48       8  length of the disk in blocks of 4096 bytes
//!     56       8  length in bytes of what redb sees
//!     64      64  entry of the top node
//!    128      24  nonce
//!    152      16  tag of the journal under that nonce, with
//!                 "cofferdam/vault/store/commit/v1" 00 and bytes 0 to 127 as associated data
//!    168       n  the journal, encrypted: what this commit says beside the pages (see `journal`)
//! ```
//!
//! Numbers are big endian. The rest of a record's block is written as zeros and never read. Every byte that is read
//! is authenticated before it is used, except that magic, format, length and key id are looked at first to find the end and to say
//! what is wrong. Its digest, SHA-256 of `"cofferdam/vault/commit/v1" 00` and the 168 + n bytes, is the commit's: what a witness keeps.

use sha2::{Digest as _, Sha256};

use super::DiskError;
use super::seal::{NONCE, Sealer, TAG};
use super::tree::{self, BLOCK, ENTRY, Entry};
use crate::keys::KEY_ID;

/// Length of a record without a journal in bytes: less than a sector, so that most disks write it whole or not at all. None has to.
pub(super) const RECORD: usize = SIGNED + NONCE + TAG;
const SIGNED: usize = 64 + ENTRY;
/// Longest journal in bytes: the record stays within a block.
pub(super) const JOURNAL: usize = BLOCK - RECORD;
const MAGIC: &[u8; 8] = b"CFDVAULT";
const FORMAT: u8 = 1;
const WITH_JOURNAL: u8 = 2;
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
    pub(super) journal: Vec<u8>,
}

/// What a commit says of itself.
pub(super) struct Fields<'a> {
    pub(super) key_id: [u8; KEY_ID],
    pub(super) store: [u8; 16],
    pub(super) epoch: u64,
    pub(super) blocks: u64,
    pub(super) length: u64,
    pub(super) top: Option<&'a Entry>,
    /// At most [`JOURNAL`] bytes.
    pub(super) journal: &'a [u8],
}

impl Fields<'_> {
    /// The block that holds the record.
    pub(super) fn seal(&self, sealer: &Sealer, nonce: [u8; NONCE]) -> Result<Box<[u8; BLOCK]>, DiskError> {
        let length = u16::try_from(self.journal.len()).map_err(|_| DiskError::Seal)?;
        let format = if length == 0 { FORMAT } else { WITH_JOURNAL };
        let mut signed = [0; SIGNED];
        let numbers = [self.epoch, self.blocks, self.length].map(u64::to_be_bytes);
        let fields = MAGIC.iter().copied().chain([format]).chain(length.to_be_bytes()).chain([0; 5]);
        let fields = fields.chain(self.key_id).chain(self.store);
        let fields = fields.chain(numbers.into_iter().flatten()).chain(tree::encode(self.top));
        signed.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        let mut journal = self.journal.to_vec();
        let tag =
            sealer.seal(&nonce, &associated_data(&signed), &mut journal).map_err(|_| DiskError::Seal)?;
        let mut block = Box::new([0; BLOCK]);
        let record = [&signed[..], &nonce, &tag, &journal].concat();
        block.get_mut(..record.len()).ok_or(DiskError::Seal)?.copy_from_slice(&record);
        Ok(block)
    }
}

/// Reads and authenticates a record at the beginning of these bytes.
///
/// # Errors
/// The name of what is there instead.
pub(super) fn open(bytes: &[u8], sealer: &Sealer, key_id: [u8; KEY_ID]) -> Result<Record, DiskError> {
    parse(bytes, sealer, key_id).unwrap_or(Err(DiskError::NotOurs))
}

/// `None` for fewer bytes than a record says that it has.
fn parse(bytes: &[u8], sealer: &Sealer, key_id: [u8; KEY_ID]) -> Option<Result<Record, DiskError>> {
    let (signed, rest) = bytes.split_first_chunk::<SIGNED>()?;
    let (nonce, rest) = rest.split_first_chunk::<NONCE>()?;
    let (tag, rest) = rest.split_first_chunk::<TAG>()?;
    let (magic, fields) = signed.split_first_chunk::<8>()?;
    let (format, fields) = fields.split_first_chunk::<8>()?;
    let (id, fields) = fields.split_first_chunk::<KEY_ID>()?;
    let (store, fields) = fields.split_first_chunk::<16>()?;
    let (epoch, fields) = fields.split_first_chunk::<8>()?;
    let (blocks, fields) = fields.split_first_chunk::<8>()?;
    let (length, fields) = fields.split_first_chunk::<8>()?;
    let (top, _) = fields.split_first_chunk::<ENTRY>()?;
    if bytes.get(..RECORD)?.iter().all(|byte| *byte == 0) {
        return Some(Err(DiskError::Absent));
    }
    if magic != MAGIC {
        return Some(Err(DiskError::NotOurs));
    }
    let journal_length = match format {
        [FORMAT, ..] => 0,
        [WITH_JOURNAL, high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
        [other, ..] => return Some(Err(DiskError::Format(*other))),
    };
    if *id != key_id {
        return Some(Err(DiskError::OtherKey));
    }
    if journal_length > JOURNAL || (journal_length == 0) != (format.first() == Some(&FORMAT)) {
        return Some(Err(DiskError::RootChanged));
    }
    let mut journal = rest.get(..journal_length)?.to_vec();
    if sealer.open(nonce, tag, &associated_data(signed), &mut journal).is_err() {
        return Some(Err(DiskError::RootChanged));
    }
    let digest = digest_of(bytes.get(..RECORD.checked_add(journal_length)?)?);
    let root = Root { store: *store, epoch: u64::from_be_bytes(*epoch), digest };
    let (blocks, length) = (u64::from_be_bytes(*blocks), u64::from_be_bytes(*length));
    Some(Ok(Record { root, blocks, length, top: tree::decode(top), journal }))
}

/// The digest of a block's record with a journal of this length.
pub(super) fn digest(block: &[u8; BLOCK], journal: usize) -> [u8; 32] {
    digest_of(block.get(..RECORD.saturating_add(journal)).unwrap_or(block))
}

fn digest_of(record: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(DIGEST_DOMAIN).chain_update([0]).chain_update(record).finalize().into()
}

fn associated_data(signed: &[u8; SIGNED]) -> Vec<u8> {
    [RECORD_DOMAIN, signed].join(&0)
}
