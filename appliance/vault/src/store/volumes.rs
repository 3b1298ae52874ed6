//! Where volumes lie on the state disk: a table in the store, so that nobody but the vault decides it and an old one is noticed.
//!
//! It is responsible for places, and for what is known of each; it reads and writes nothing of a volume. A place is given once and
//! stays: a volume that is not declared any more keeps its place and its content, and no place is ever a part of another.
//!
//! One row for each, under the volume's name:
//!
//! ```text
//! offset  length
//!      0       8  first byte on the disk, big endian: a multiple of 1 MiB, from 257 MiB on
//!      8       8  length in bytes, big endian: a multiple of 1 MiB
//!     16      16  id, random: the volume's key is derived from it
//!     32       1  1: there is a file system in it, 0: it was never made
//! ```

use std::collections::BTreeMap;

use redb::{ReadableTable as _, TableDefinition};

use super::pages::Reserve;
use super::{Store, StoreError, database_error};

/// Places are made of pieces of so many bytes.
const UNIT: u64 = 1024 * 1024;
/// First byte that a volume can have: behind the vault's store.
const START: u64 = crate::state::STORE.end;
/// Most rows: declared ones and forgotten ones together.
const MAX_ROWS: usize = 1024;
const ROW: usize = 33;
const ID: usize = 16;

const VOLUMES: TableDefinition<'static, &str, [u8; ROW]> = TableDefinition::new("volumes");

/// A volume that is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Its length in bytes: a multiple of 1 MiB, and not 0.
    pub size: u64,
}

/// A volume with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// First byte on the disk.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// What its key is derived from, together with the state's key for volumes.
    pub id: [u8; ID],
    /// Whether there is a file system in it.
    pub made: bool,
}

/// Why a volume has no place.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No gap is large enough.
    #[error(
        "there is no room for the volume {name}: it takes {} MiB, and of the state disk's free {} MiB the largest piece has {}",
        wanted >> 20, free >> 20, largest >> 20
    )]
    NoRoom {
        /// Its name.
        name: String,
        /// Bytes that it takes.
        wanted: u64,
        /// Free bytes.
        free: u64,
        /// Bytes of the largest gap.
        largest: u64,
    },
    /// It has a place, of another size.
    #[error(
        "the volume {name} has {} MiB, and {} MiB are declared: the size of a volume does not change",
        there >> 20, declared >> 20
    )]
    SizeChanged {
        /// Its name.
        name: String,
        /// Bytes that it has.
        there: u64,
        /// Bytes that are declared.
        declared: u64,
    },
    /// A size that no volume has: whoever asked did not read a declaration.
    #[error("the volume {0} has no whole number of MiB")]
    Size(String),
    /// The table is full of volumes that are not declared any more.
    #[error("the state knows {MAX_ROWS} volumes and takes no further one")]
    TooMany,
    /// A row says what none does, or two of them overlap.
    #[error("the table of volumes is not as the vault writes it: {0}")]
    Table(String),
    /// The system's random number generator failed.
    #[error("no random numbers from the system")]
    Random,
}

pub(crate) type Table = BTreeMap<String, Volume>;

impl Store {
    /// Says where each of these volumes lies, of which those that had no place get one, all in one commit. `end` is the length of the
    /// state disk.
    ///
    /// # Errors
    /// [`VolumeError`], and nothing has changed; a [`DiskError`](super::DiskError).
    pub fn place_volumes(&self, wanted: &[Wanted], end: u64) -> Result<Vec<Volume>, StoreError> {
        let mut state = self.lock();
        let mut table = self.volumes(&mut state)?;
        let placed = place(&mut table, wanted, end, &mut |id| getrandom::fill(id).is_ok())?;
        if placed.iter().any(|(_, new)| *new) {
            self.write_volumes(&mut state, &table)?;
        }
        Ok(placed.into_iter().map(|(volume, _)| volume).collect())
    }

    /// Remembers that there is a file system in each of these volumes.
    ///
    /// # Errors
    /// [`VolumeError::Table`] when one of them has no place, and nothing has changed; a [`DiskError`](super::DiskError).
    pub fn volumes_made<'n>(&self, names: impl Iterator<Item = &'n str>) -> Result<(), StoreError> {
        let mut state = self.lock();
        let mut table = self.volumes(&mut state)?;
        let mut changed = false;
        for name in names {
            let unknown = || VolumeError::Table(format!("{name} is not in it"));
            let volume = table.get_mut(name).ok_or_else(unknown)?;
            changed |= !std::mem::replace(&mut volume.made, true);
        }
        if changed { self.write_volumes(&mut state, &table) } else { Ok(()) }
    }

    fn volumes(&self, state: &mut super::State) -> Result<Table, StoreError> {
        let mut table = Table::new();
        let rows = self.read(state, |transaction| {
            let rows = match transaction.open_table(VOLUMES) {
                // No state had volumes before there was one.
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                rows => rows.map_err(database_error)?,
            };
            let rows = rows.iter().map_err(database_error)?;
            rows.map(|row| {
                row.map(|(name, row)| (name.value().to_owned(), row.value())).map_err(database_error)
            })
            .collect::<Result<Vec<_>, _>>()
        })?;
        for (name, row) in rows {
            let volume = decode(&row).ok_or_else(|| VolumeError::Table(name.clone()))?;
            table.insert(name, volume);
        }
        Ok(table)
    }

    fn write_volumes(&self, state: &mut super::State, table: &Table) -> Result<(), StoreError> {
        self.change(state, Reserve::Used, |transaction| {
            let mut rows = transaction.open_table(VOLUMES).map_err(database_error)?;
            for (name, volume) in table {
                rows.insert(name.as_str(), encode(volume)).map_err(database_error)?;
            }
            Ok(())
        })
    }
}

/// Finds a place for each that has none: the first gap that it fits into. Says for each whether its place is new.
pub(crate) fn place(
    table: &mut Table,
    wanted: &[Wanted],
    end: u64,
    random: &mut dyn FnMut(&mut [u8]) -> bool,
) -> Result<Vec<(Volume, bool)>, VolumeError> {
    let gaps = |table: &Table| gaps(table, end);
    gaps(table)?;
    let mut placed = Vec::new();
    for Wanted { name, size } in wanted {
        if let Some(volume) = table.get(name) {
            if volume.length != *size {
                let (name, there, declared) = (name.clone(), volume.length, *size);
                return Err(VolumeError::SizeChanged { name, there, declared });
            }
            placed.push((volume.clone(), false));
            continue;
        }
        if *size == 0 || size % UNIT != 0 {
            return Err(VolumeError::Size(name.clone()));
        }
        if table.len() >= MAX_ROWS {
            return Err(VolumeError::TooMany);
        }
        let gaps = gaps(table)?;
        let Some((offset, _)) = gaps.iter().find(|(_, length)| length >= size) else {
            let lengths = || gaps.iter().map(|(_, length)| *length);
            let (free, largest) = (lengths().sum(), lengths().max().unwrap_or(0));
            return Err(VolumeError::NoRoom { name: name.clone(), wanted: *size, free, largest });
        };
        let mut id = [0; ID];
        if !random(&mut id) {
            return Err(VolumeError::Random);
        }
        let volume = Volume { offset: *offset, length: *size, id, made: false };
        table.insert(name.clone(), volume.clone());
        placed.push((volume, true));
    }
    Ok(placed)
}

/// What is free, as offsets and lengths in order.
fn gaps(table: &Table, end: u64) -> Result<Vec<(u64, u64)>, VolumeError> {
    let end = end - end % UNIT;
    let mut taken: Vec<(u64, u64, &str)> =
        table.iter().map(|(name, volume)| (volume.offset, volume.length, name.as_str())).collect();
    taken.sort_unstable();
    let mut gaps = Vec::new();
    let mut next = START;
    for (offset, length, name) in taken.into_iter().chain([(end.max(START), 0, "")]) {
        let free = offset.checked_sub(next);
        let after = offset.checked_add(length).filter(|after| *after <= end.max(START));
        let (Some(free), Some(after)) = (free, after) else {
            return Err(VolumeError::Table(format!("{name} has no place of its own")));
        };
        if free > 0 {
            gaps.push((next, free));
        }
        next = after;
    }
    Ok(gaps)
}

pub(crate) fn encode(volume: &Volume) -> [u8; ROW] {
    let mut row = [0; ROW];
    let Volume { offset, length, id, made } = volume;
    let fields =
        offset.to_be_bytes().into_iter().chain(length.to_be_bytes()).chain(*id).chain([u8::from(*made)]);
    row.iter_mut().zip(fields).for_each(|(place, byte)| *place = byte);
    row
}

/// `None` for what [`encode`] does not write.
pub(crate) fn decode(row: &[u8; ROW]) -> Option<Volume> {
    let (offset, rest) = row.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (id, rest) = rest.split_first_chunk()?;
    let (offset, length) = (u64::from_be_bytes(*offset), u64::from_be_bytes(*length));
    let made = match rest {
        [0] => false,
        [1] => true,
        _ => return None,
    };
    let whole = offset % UNIT == 0 && length % UNIT == 0 && length > 0;
    whole.then_some(Volume { offset, length, id: *id, made })
}
