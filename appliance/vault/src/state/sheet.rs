//! A sheet of key slots: everything that one has to read to open a state.
//!
//! ```text
//! offset  length
//!      0       8  "CFDSTATE"
//!      8       1  format, 2
//!      9       7  zero
//!     16      16  identity of the state, random
//!     32       8  length of the disk in bytes
//!     40       1  length of the name of the repository that made it
//!     41     151  the name, OWNER/REPO
//!    192       8  number of the sheet: the higher one counts
//!    200       1  number of slots, 1 to 8
//!    201       7  zero
//!    208       8  how often the slots were changed since the state was made
//!    216      40  zero
//!    256    1424  who may open the state now (see `lineage`)
//!   1680     368  zero
//!   2048    4096  eight slots of 512 bytes; those that there are not are zero
//!   6144      24  nonce
//!   6168      16  tag of the empty message under that nonce: XAES-256-GCM with the key "sheet" and
//!                 "cofferdam/state/sheet/v2" 00 and bytes 0 to 6143 as associated data
//!   6184      32  SHA-256 of "cofferdam/state/damage/v1" 00 and bytes 0 to 6183
//!   6216   22456  zero
//! ```
//!
//! Numbers are big endian. Bytes 0 to 191 are the header that each slot authenticates: it never changes as long as the state is this one, so
//! that a sheet can be written anew without the keys of its slots.
//!
//! The digest proves nothing: whoever changes a byte can change it as well. It tells damage and a write that was cut off from
//! everything else, before there is a key. What a sheet with a right digest says is believed when a slot has opened and the tag is right.

use cofferdam_protocol::Repository;
use sha2::{Digest as _, Sha256};

use super::StateError;
use super::key::{Secret, random};
use super::lineage::Current;
use super::slot::{SLOT, Slot, take};
use crate::store::seal::{NONCE, Sealer, TAG};

/// Length of a sheet in bytes.
pub(super) const SHEET: usize = 28 * 1024;
/// Most slots.
pub(super) const MAX_SLOTS: usize = 8;
const HEADER: usize = 192;
const CHANGES: usize = 208;
const LINEAGE: usize = 256;
const FIXED: usize = 2048;
const SIGNED: usize = FIXED + MAX_SLOTS * SLOT;
const MAGIC: &[u8; 8] = b"CFDSTATE";
const FORMAT: u8 = 2;
const REPOSITORY: usize = 151;
const SHEET_DOMAIN: &[u8] = b"cofferdam/state/sheet/v2";
const DAMAGE_DOMAIN: &[u8] = b"cofferdam/state/damage/v1";

/// Stands where the first sheet will be while a state is being made.
const MARK: &[u8; 16] = b"CFD makes state\n";

/// What is in the place of a sheet.
#[derive(Debug)]
pub(super) enum Found {
    /// Zeros.
    Blank,
    /// A state was being made, or, where not `whole`, the first thing of it was being written.
    Mark { whole: bool },
    /// A sheet with the right digest.
    Sheet(Box<Sheet>),
    /// Ours, and the digest is not right.
    Damaged,
    /// The digest is right, and it says what no appliance writes.
    Altered,
    /// Ours, in a format that is not known.
    Format(u8),
    /// Anything else.
    Foreign,
}

/// What every slot authenticates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) identity: [u8; 16],
    /// Of the disk, in bytes.
    pub(super) length: u64,
    /// Of the appliance that made the state.
    pub(super) repository: Repository,
}

/// A sheet as it was read or made; only [`Sheet::verify`] says whether all of it is true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sheet {
    pub(super) header: Header,
    pub(super) number: u64,
    pub(super) current: Current,
    pub(super) changes: u64,
    pub(super) slots: Vec<Slot>,
    nonce: [u8; NONCE],
    tag: [u8; TAG],
}

impl Header {
    pub(super) fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SHEET);
        bytes.extend_from_slice(MAGIC);
        bytes.extend([FORMAT, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(self.identity.iter().chain(&self.length.to_be_bytes()));
        // GitHub's names have at most 140 characters.
        let name = self.repository.to_string();
        bytes.push(u8::try_from(name.len()).unwrap_or(0));
        bytes.extend(name.bytes().take(REPOSITORY));
        bytes.resize(HEADER, 0);
        bytes
    }
}

impl Sheet {
    /// Makes a sheet and authenticates it with the key "sheet".
    pub(super) fn seal(
        header: Header,
        number: u64,
        current: Current,
        (changes, slots): (u64, Vec<Slot>),
        nonce: [u8; NONCE],
        key: &Secret,
    ) -> Result<Self, StateError> {
        let mut sheet = Self { header, number, current, changes, slots, nonce, tag: [0; TAG] };
        let data = associated_data(&sheet.signed());
        sheet.tag = Sealer::new(key).seal(&nonce, &data, &mut []).map_err(|_| StateError::Derive)?;
        Ok(sheet)
    }

    /// The one that comes after it, with another successor or other slots.
    pub(super) fn next(
        &self,
        current: Option<&Current>,
        slots: Option<Vec<Slot>>,
        key: &Secret,
    ) -> Result<Self, StateError> {
        let number = self.number.checked_add(1).ok_or(StateError::Altered)?;
        let slots = match slots {
            Some(slots) => (self.changes.checked_add(1).ok_or(StateError::Altered)?, slots),
            None => (self.changes, self.slots.clone()),
        };
        let current = current.unwrap_or(&self.current).clone();
        let mut nonce = [0; _];
        random(&mut nonce)?;
        Self::seal(self.header.clone(), number, current, slots, nonce, key)
    }

    /// Whether every byte is as the holder of the state key left it.
    pub(super) fn verify(&self, key: &Secret) -> bool {
        let data = associated_data(&self.signed());
        Sealer::new(key).open(&self.nonce, &self.tag, &data, &mut []).is_ok()
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let mut bytes = self.signed();
        bytes.extend(self.nonce.iter().chain(&self.tag));
        let digest = digest(&bytes);
        bytes.extend(digest);
        bytes.resize(SHEET, 0);
        bytes
    }

    fn signed(&self) -> Vec<u8> {
        let mut bytes = self.header.write();
        bytes.extend(self.number.to_be_bytes());
        bytes.push(u8::try_from(self.slots.len()).unwrap_or(0));
        bytes.resize(CHANGES, 0);
        bytes.extend(self.changes.to_be_bytes());
        bytes.resize(LINEAGE, 0);
        bytes.extend(self.current.write());
        bytes.resize(FIXED, 0);
        for slot in self.slots.iter().take(MAX_SLOTS) {
            bytes.extend(slot.write());
        }
        bytes.resize(SIGNED, 0);
        bytes
    }

    /// Reads what the digest vouches for; `None` for anything that [`Sheet::write`] does not write.
    fn read(bytes: &[u8]) -> Option<Self> {
        let rest = &mut &*bytes;
        let _: [u8; 16] = take(rest)?;
        let (identity, length) = (take(rest)?, u64::from_be_bytes(take(rest)?));
        let [name_length] = take(rest)?;
        let name: [u8; REPOSITORY] = take(rest)?;
        let name = name.get(..usize::from(name_length)).and_then(|name| str::from_utf8(name).ok())?;
        let header = Header { identity, length, repository: name.parse().ok()? };
        let number = u64::from_be_bytes(take(rest)?);
        let [count] = take(rest)?;
        let _: [u8; 7] = take(rest)?;
        let changes = u64::from_be_bytes(take(rest)?);
        let current = Current::read(&mut bytes.get(LINEAGE..)?)?;
        let slots = bytes.get(FIXED..SIGNED)?;
        let slots = slots.as_chunks::<SLOT>().0.iter().take(usize::from(count));
        let slots = slots.map(|slot| Slot::read(slot)).collect::<Option<Vec<_>>>()?;
        let rest = &mut bytes.get(SIGNED..)?;
        let (nonce, tag) = (take(rest)?, take(rest)?);
        let sheet = Self { header, number, current, changes, slots, nonce, tag };
        (!sheet.slots.is_empty() && sheet.write() == bytes).then_some(sheet)
    }
}

impl Found {
    /// What these [`SHEET`] bytes are.
    pub(super) fn look(bytes: &[u8]) -> Self {
        if bytes.iter().all(|byte| *byte == 0) {
            return Self::Blank;
        }
        if let Some(whole) = looks_marked(bytes) {
            return Self::Mark { whole };
        }
        let rest = &mut &*bytes;
        if take(rest) != Some(*MAGIC) {
            return Self::Foreign;
        }
        match take(rest) {
            // None has 0: a write from zeros that was cut off there. Its digest is not right.
            Some([FORMAT | 0]) => {}
            Some([format]) => return Self::Format(format),
            None => return Self::Foreign,
        }
        let (signed, rest) = bytes.split_at_checked(SIGNED + NONCE + TAG).unwrap_or((bytes, &[]));
        let (found, zeros) = rest.split_at_checked(32).unwrap_or((&[], rest));
        if digest(signed) != found || zeros.iter().any(|byte| *byte != 0) {
            return Self::Damaged;
        }
        Sheet::read(bytes).map_or(Self::Altered, |sheet| Self::Sheet(Box::new(sheet)))
    }
}

/// The sheet's place while a state is being made.
pub(super) fn mark() -> Vec<u8> {
    let mut bytes = MARK.to_vec();
    bytes.resize(SHEET, 0);
    bytes
}

/// Whether it is [`mark`], or zeros over which a part of it was written.
fn looks_marked(bytes: &[u8]) -> Option<bool> {
    let (mark, rest) = bytes.split_first_chunk::<16>()?;
    let torn = mark.iter().zip(MARK).all(|(byte, whole)| *byte == 0 || byte == whole);
    (torn && rest.iter().all(|byte| *byte == 0)).then_some(mark == MARK)
}

pub(super) fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(DAMAGE_DOMAIN).chain_update([0]).chain_update(bytes).finalize().into()
}

fn associated_data(signed: &[u8]) -> Vec<u8> {
    [SHEET_DOMAIN, signed].join(&0)
}
