//! The records at rest: a redb database of sealed records on pages that are sealed as a whole.
//!
//! The store is handed a [`Disk`] and never opens a file, so that memory, a file or a disk are the caller's choice.
//! Everything it writes is ciphertext but for the records of its commits, which hold nothing secret.
//!
//! **Two layers.** A record proves what it is (see [`crate::record`]). That it is still there, and the latest, is proved by the
//! pages under redb (see `pages`): a tree over all of them, with one [`Root`] for each commit. So a record that was
//! removed, brought back, or replaced by an older one makes the store unopenable. That the *whole* store is an older copy
//! of itself shows only beside a [`Root`] that somebody else has kept.
//!
//! **A small change** is in the record of its commit alone, and goes to the pages together with others later (see `journal`): one write
//! instead of a dozen blocks.
//!
//! **Reading.** The sealed records and the remembered requests are in memory from the moment that the store is open. A disk that
//! fails or vanishes later ends the changes and not the leases.
//!
//! **What it never does.** It never starts empty in a place where something is: [`Store::create`] refuses a
//! disk that holds a byte, [`Store::open`] one that holds nothing or anything that does not authenticate as a whole, and
//! leaves it as it is. It never repairs by forgetting what was acknowledged.

mod disk;
mod error;
mod free;
mod journal;
mod open;
mod pages;
mod root;
pub(crate) mod seal;
mod tree;
#[cfg(test)]
mod vectors;
pub(crate) mod volumes;
#[cfg(test)]
mod volumes_tests;
mod witnessing;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cofferdam_protocol::status::StoreStatus;
use cofferdam_protocol::{Digest, SecretRef, SecretValue, WordError};
use redb::{
    Builder, Database, Durability, ReadTransaction, ReadableDatabase as _, ReadableTable as _,
    ReadableTableMetadata as _, TableDefinition, TableError, WriteTransaction,
};
use sha2::{Digest as _, Sha256};

pub use self::disk::{Disk, FileDisk, MemoryDisk, Window};
pub use self::error::DiskError;
use self::journal::Operation;
use self::pages::{Backend, Pages, Reserve};
pub use self::root::Root;
pub use self::volumes::{Volume, VolumeError, Wanted};
pub(crate) use self::witnessing::{Witnesses, Witnessing};
use crate::Keys;
use crate::record::{self, RecordError};

/// Most records in a store: 64 services with 15 secrets each. It bounds memory and the time to open.
pub const MAX_RECORDS: usize = 1000;
/// Longest value in bytes: the longest that travels sealed.
pub const MAX_VALUE: usize = cofferdam_protocol::operator::MAX_SECRET;
/// How many carried-out requests are remembered against replay; the oldest is then forgotten.
/// 16,384 of 40 bytes: far more changes than an appliance sees between two boots, well under 1 MiB.
pub const MAX_SPENT: usize = 16_384;

const RECORDS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("records");
/// Order of arrival → digest of a request that changed something.
const SPENT: TableDefinition<'static, u64, [u8; 32]> = TableDefinition::new("spent");

/// The highest version of the lineage that has opened the state.
const LINEAGE: TableDefinition<'static, (), u64> = TableDefinition::new("lineage");
/// The number of the first anchor that belongs to this state, and of the last that was published.
const ANCHORS: TableDefinition<'static, (), (u64, u64)> = TableDefinition::new("anchors");
/// The certificate that browsers accept, as `publish` has it kept.
const CERTIFICATE: TableDefinition<'static, (), &[u8]> = TableDefinition::new("certificate");
/// How often the key slots had been changed when the state was last opened, or since.
const SLOTS: TableDefinition<'static, (), u64> = TableDefinition::new("slots");
/// How often the state was opened.
const OPENINGS: TableDefinition<'static, (), u64> = TableDefinition::new("openings");

/// redb's page cache in bytes. Its default is 1 GiB; a whole store of ordinary size fits in this.
const CACHE: usize = 4 * 1024 * 1024;

/// The open store.
pub struct Store {
    pages: Arc<Pages>,
    keys: Arc<Keys>,
    max_records: usize,
    state: Mutex<State>,
    /// Who hears how full it is.
    told: Option<Box<dyn Fn(StoreStatus) + Send + Sync>>,
}

/// What is known of one record without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name of the record.
    pub reference: SecretRef,
    /// Counts the puts under this name since it was last absent, from 1.
    pub version: u64,
    /// Unix seconds of the wall clock at the put.
    pub updated_at: u64,
}

/// Identifies one operator request, so that it is carried out at most once: a digest of its signature.
pub type RequestId = [u8; 32];

/// Why the store did not do what it was asked. No variant holds a value.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is not this store, not as it was left, or does not work.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The database on authentic pages is not one that this version can use.
    #[error("the store's database is not usable")]
    Database(#[source] Box<redb::Error>),
    /// One record does not open under its name.
    #[error("the store was altered: {reference}")]
    Record {
        /// Which record.
        reference: SecretRef,
        /// What is wrong with it.
        #[source]
        source: RecordError,
    },
    /// The present commit's journal is none.
    #[error("the store was altered: the journal of its last commit cannot be read")]
    Journal,
    /// A record under a name that is none.
    #[error("the store was altered: a record has an impossible name")]
    Name(#[source] WordError),
    /// A new record could not be sealed.
    #[error("the secret cannot be sealed")]
    Seal(#[source] RecordError),
    /// A volume has no place.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// As many records as there may be.
    #[error("the store holds {0} secrets and takes no further one")]
    Full(usize),
    /// Longer than [`MAX_VALUE`].
    #[error("the value is longer than {MAX_VALUE} bytes")]
    TooLong,
    /// This very request was carried out before.
    #[error("this request was already carried out")]
    Spent,
    /// There is no such record.
    #[error("there is no such secret")]
    Missing,
    /// A version counter at its end.
    #[error("the secret has no further version")]
    Exhausted,
}

impl StoreError {
    /// Whether trying again may succeed: the disk could not be read at all. Everything else says something about the store's
    /// content, which will not change by itself.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Disk(error) if error.may_pass())
    }
}

/// What the store holds. Changed only after the commit that says the same.
struct State {
    /// None after a failure, until the next change opens it again as the present commit left it.
    database: Option<Database>,
    records: BTreeMap<SecretRef, Row>,
    spent: Spent,
    /// Changes of records that are acknowledged and not in the database yet.
    journal: Vec<Operation>,
    lineage: u64,
    slots: u64,
    anchors: Anchors,
    certificate: Option<Vec<u8>>,
    witnesses: Option<Witnesses>,
}

/// What holds from an opening of the state on.
pub(crate) struct Opening {
    /// Version of its lineage.
    pub(crate) lineage: u64,
    /// How often its key slots were changed.
    pub(crate) slots: u64,
    /// Who is told of its commits, where somebody is.
    pub(crate) witnessing: Option<Witnessing>,
}

/// The numbers of a state's anchors: releases that each of its boots publishes one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchors {
    /// The first that belongs to this state.
    pub first: u64,
    /// The last that was published, one less than `first` before there was one.
    pub published: u64,
}

impl Default for Anchors {
    fn default() -> Self {
        Self { first: 1, published: 0 }
    }
}

#[derive(Default)]
struct Spent {
    requests: BTreeSet<RequestId>,
    /// Key of the next row in [`SPENT`].
    next: u64,
}

struct Row {
    version: u64,
    updated_at: u64,
    sealed: Box<[u8]>,
}

impl Row {
    /// What a record says of itself, when it is one under this key.
    fn of(reference: &SecretRef, sealed: &[u8], keys: &Keys) -> Result<Self, StoreError> {
        let header = record::decode_header(sealed)
            .and_then(
                |header| if header.key_id == keys.id() { Ok(header) } else { Err(RecordError::OtherKey) },
            )
            .map_err(|source| StoreError::Record { reference: reference.clone(), source })?;
        Ok(Self { version: header.version, updated_at: header.updated_at, sealed: sealed.into() })
    }
}

impl Store {
    /// Makes a store on a disk of zeros. It is there as a whole when this returns.
    ///
    /// # Errors
    /// [`DiskError::Occupied`] when the disk holds a single byte, another [`DiskError`] when it cannot be used.
    pub fn create(disk: impl Disk, keys: Keys) -> Result<Self, StoreError> {
        let keys = Arc::new(keys);
        let pages = Arc::new(Pages::create(Box::new(disk), keys.clone())?);
        let state = State {
            database: None,
            records: BTreeMap::new(),
            spent: Spent::default(),
            journal: Vec::new(),
            lineage: 0,
            slots: 0,
            anchors: Anchors::default(),
            certificate: None,
            witnesses: None,
        };
        let store = Self { pages, keys, max_records: MAX_RECORDS, state: Mutex::new(state), told: None };
        store.change(&mut store.lock(), Reserve::Stays, |transaction| {
            transaction.open_table(RECORDS).map_err(database_error)?;
            transaction.open_table(SPENT).map_err(database_error)?;
            Ok(())
        })?;
        Ok(store)
    }

    /// Opens a store and authenticates all of it. With `expected`, the last commit that somebody else knows of, also that it
    /// is not older than that.
    ///
    /// # Errors
    /// [`DiskError`] when any byte that matters is not as this key left it. Nothing is written.
    pub fn open(disk: impl Disk, keys: Keys, expected: Option<&Root>) -> Result<Self, StoreError> {
        let keys = Arc::new(keys);
        let pages = Arc::new(Pages::open(Box::new(disk), keys.clone(), expected)?);
        let database = open_database(&pages)?;
        let transaction = database.begin_read().map_err(database_error)?;
        let records = load_records(&transaction, &keys)?;
        let spent = load_spent(&transaction)?;
        let lineage = load_number(&transaction, LINEAGE)?;
        let slots = load_number(&transaction, SLOTS)?;
        let anchors = load_anchors(&transaction)?;
        let certificate = load_certificate(&transaction)?;
        let witnesses = witnessing::load(&transaction)?;
        drop(transaction);
        let mut state = State {
            database: Some(database),
            records,
            spent,
            journal: Vec::new(),
            lineage,
            slots,
            anchors,
            certificate,
            witnesses,
        };
        for operation in journal::decode(&pages.journal()).ok_or(StoreError::Journal)? {
            state.take_in(&operation, row_of(&operation, &keys)?);
            state.journal.push(operation);
        }
        Ok(Self { pages, keys, max_records: MAX_RECORDS, state: Mutex::new(state), told: None })
    }

    /// The same with another bound than [`MAX_RECORDS`].
    #[must_use]
    pub fn with_max_records(mut self, most: usize) -> Self {
        self.max_records = most;
        self
    }

    /// The same, which says how full it is: now, and after each change of a secret.
    #[must_use]
    pub fn telling(mut self, told: impl Fn(StoreStatus) + Send + Sync + 'static) -> Self {
        told(self.status(&self.lock()));
        self.told = Some(Box::new(told));
        self
    }

    fn status(&self, state: &State) -> StoreStatus {
        let (bytes, bytes_limit) = self.pages.used();
        StoreStatus { secrets: state.records.len() as u64, bytes, bytes_limit }
    }

    /// The keys of this store.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The present commit: what a witness keeps.
    pub fn root(&self) -> Root {
        self.pages.root()
    }

    /// Stores a value under its reference, replacing an earlier one.
    ///
    /// `request` is remembered in the same commit, so that the change and the memory of it cannot come apart.
    ///
    /// # Errors
    /// [`StoreError::Spent`], [`StoreError::TooLong`], [`StoreError::Full`], or a [`DiskError`]; nothing has changed then, but
    /// for what [`DiskError::Write`] says.
    pub fn put(
        &self,
        secret: &SecretValue,
        updated_at: u64,
        request: &RequestId,
    ) -> Result<Entry, StoreError> {
        if secret.expose().len() > MAX_VALUE {
            return Err(StoreError::TooLong);
        }
        let mut state = self.lock();
        state.spent.refuse(request)?;
        let reference = secret.reference();
        let previous = state.records.get(reference).map(|row| row.version);
        if previous.is_none() && state.records.len() >= self.max_records {
            return Err(StoreError::Full(self.max_records));
        }
        let version = previous.unwrap_or(0).checked_add(1).ok_or(StoreError::Exhausted)?;
        let sealed = record::seal(&self.keys, secret, version, updated_at, getrandom::fill)
            .map_err(StoreError::Seal)?;
        let sealed = Some(sealed.into());
        let operation = Operation { request: *request, reference: reference.clone(), sealed };
        self.carry_out(&mut state, Reserve::Stays, operation)?;
        Ok(Entry { reference: reference.clone(), version, updated_at })
    }

    /// Removes a record.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when there is none, [`StoreError::Spent`], or a [`DiskError`]; nothing has changed then, but for what
    /// [`DiskError::Write`] says.
    pub fn remove(&self, reference: &SecretRef, request: &RequestId) -> Result<(), StoreError> {
        let mut state = self.lock();
        state.spent.refuse(request)?;
        if !state.records.contains_key(reference) {
            return Err(StoreError::Missing);
        }
        let operation = Operation { request: *request, reference: reference.clone(), sealed: None };
        self.carry_out(&mut state, Reserve::Used, operation)
    }

    /// Makes a commit that says that the state was opened once more, so that a copy from before has a lower epoch than what was opened, and
    /// than what is attested from now on; and what else holds from then on.
    pub(crate) fn count_opening(&self, opening: &Opening) -> Result<(), StoreError> {
        let mut state = self.lock();
        let Opening { lineage, slots, witnessing } = opening;
        let witnesses = witnessing.as_ref().map(|now| now.after(state.witnesses.as_ref()));
        self.change(&mut state, Reserve::Used, |transaction| {
            let mut table = transaction.open_table(OPENINGS).map_err(database_error)?;
            let before = table.get(()).map_err(database_error)?.map_or(0, |count| count.value());
            let count = before.checked_add(1).ok_or(StoreError::Exhausted)?;
            table.insert((), count).map_err(database_error)?;
            set_number(transaction, LINEAGE, *lineage)?;
            set_number(transaction, SLOTS, *slots)?;
            witnessing::set(transaction, witnesses.as_ref())
        })?;
        (state.lineage, state.slots, state.witnesses) = (*lineage, *slots, witnesses);
        Ok(())
    }

    /// The version of the lineage at the last opening, 0 before there was one.
    pub(crate) fn lineage(&self) -> u64 {
        self.lock().lineage
    }

    /// How often the key slots have been changed: a sheet that says less is an older one.
    pub(crate) fn slot_changes(&self) -> u64 {
        self.lock().slots
    }

    /// Remembers how often the key slots have been changed, before what they were opens nothing any more.
    pub(crate) fn slots_changed(&self, changes: u64) -> Result<(), StoreError> {
        let mut state = self.lock();
        self.change(&mut state, Reserve::Used, |transaction| set_number(transaction, SLOTS, changes))?;
        state.slots = changes;
        Ok(())
    }

    /// Whom to tell of the state's commits.
    pub(crate) fn witnesses(&self) -> Option<Witnesses> {
        self.lock().witnesses.clone()
    }

    /// The numbers of the state's anchors.
    pub fn anchors(&self) -> Anchors {
        self.lock().anchors
    }

    /// Remembers that the anchor of this number is published. Only the next one counts: what is known already changes nothing, and what
    /// would leave a gap is not believed.
    ///
    /// # Errors
    /// A [`DiskError`].
    pub fn anchored(&self, number: u64) -> Result<(), StoreError> {
        let mut state = self.lock();
        match state.anchors.published.checked_add(1) {
            Some(next) if next == number => {
                let anchors = Anchors { published: number, ..state.anchors };
                self.set_anchors(&mut state, anchors)
            }
            _ => Ok(()),
        }
    }

    /// What was kept of the certificate that browsers accept.
    pub fn certificate(&self) -> Option<Vec<u8>> {
        self.lock().certificate.clone()
    }

    /// Keeps it in the place of what was kept before. What is the same is not written again.
    ///
    /// # Errors
    /// A [`DiskError`].
    pub fn keep_certificate(&self, bytes: Vec<u8>) -> Result<(), StoreError> {
        let mut state = self.lock();
        if state.certificate.as_ref() == Some(&bytes) {
            return Ok(());
        }
        self.change(&mut state, Reserve::Used, |transaction| {
            let mut table = transaction.open_table(CERTIFICATE).map_err(database_error)?;
            table.insert((), bytes.as_slice()).map_err(database_error)?;
            Ok(())
        })?;
        state.certificate = Some(bytes);
        Ok(())
    }

    /// Comes after a state that is given up: the next commit has a higher epoch than that one's, the next anchor a higher number, and those
    /// before belong to it no more.
    ///
    /// # Errors
    /// A [`DiskError`], [`DiskError::Exhausted`] when there are no such numbers.
    pub fn give_up(&self, epoch: u64, anchor: u64) -> Result<(), StoreError> {
        let mut state = self.lock();
        self.pages.skip_past(epoch)?;
        let published = state.anchors.published.max(anchor);
        let first = published.checked_add(1).ok_or(StoreError::Exhausted)?;
        self.set_anchors(&mut state, Anchors { first, published })
    }

    fn set_anchors(&self, state: &mut State, anchors: Anchors) -> Result<(), StoreError> {
        self.change(state, Reserve::Used, |transaction| {
            let mut table = transaction.open_table(ANCHORS).map_err(database_error)?;
            table.insert((), (anchors.first, anchors.published)).map_err(database_error)?;
            Ok(())
        })?;
        state.anchors = anchors;
        Ok(())
    }

    /// The latest value under a reference, or `None`.
    ///
    /// # Errors
    /// [`StoreError::Record`] when the record is not one of this name.
    pub fn get(&self, reference: &SecretRef) -> Result<Option<SecretValue>, StoreError> {
        let state = self.lock();
        let Some(row) = state.records.get(reference) else { return Ok(None) };
        let (_, secret) = record::open(&self.keys, reference, &row.sealed)
            .map_err(|source| StoreError::Record { reference: reference.clone(), source })?;
        Ok(Some(secret))
    }

    /// What all puts and removals of these add up to: another digest after each of them.
    pub fn revision(&self, references: &[SecretRef]) -> Digest {
        let state = self.lock();
        let mut hash = Sha256::new();
        for reference in references {
            let put = state.records.get(reference).and_then(|row| record::put_of(&row.sealed));
            hash.update(reference.as_str());
            // No reference has a zero byte, and all puts are of one length.
            hash.update([0, u8::from(put.is_some())]);
            hash.update(put.unwrap_or_default());
        }
        Digest::from(<[u8; 32]>::from(hash.finalize()))
    }

    /// Whether there is a record under a reference.
    pub fn contains(&self, reference: &SecretRef) -> bool {
        self.lock().records.contains_key(reference)
    }

    /// What is stored, in the order of the references; never a value or a part of one.
    pub fn list(&self) -> Vec<Entry> {
        self.lock()
            .records
            .iter()
            .map(|(reference, row)| Entry {
                reference: reference.clone(),
                version: row.version,
                updated_at: row.updated_at,
            })
            .collect()
    }

    /// Makes one commit of a change of a record: in the journal, or in the database where that has no room for it.
    fn carry_out(&self, state: &mut State, reserve: Reserve, operation: Operation) -> Result<(), StoreError> {
        let row = row_of(&operation, &self.keys)?;
        if operation.encode().map_or(Ok(false), |bytes| self.pages.append(&bytes))? {
            state.take_in(&operation, row);
            state.journal.push(operation);
        } else {
            let number = state.spent.next;
            let forgotten =
                self.change(state, reserve, |transaction| carry(transaction, number, &operation))?;
            state.take_in(&operation, row);
            state.spent.forget(&forgotten);
        }
        if let Some(told) = &self.told {
            told(self.status(state));
        }
        Ok(())
    }

    /// Makes one commit of the journal and of what `work` does. When that fails anywhere, the database is closed and what it wrote forgotten:
    /// redb believes in a commit that the pages have not made, or refuses everything after a single error.
    fn change<T>(
        &self,
        state: &mut State,
        reserve: Reserve,
        work: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let database = state.database.take().map_or_else(|| open_database(&self.pages), Ok)?;
        let first = state.spent.next.saturating_sub(state.journal.len() as u64);
        let both = |transaction: &WriteTransaction| {
            let mut forgotten = Vec::new();
            for (number, operation) in (first..).zip(&state.journal) {
                forgotten.extend(carry(transaction, number, operation)?);
            }
            Ok((work(transaction)?, forgotten))
        };
        match transact(&database, both).and_then(|done| Ok(self.pages.commit(reserve).map(|()| done)?)) {
            Ok((done, forgotten)) => {
                state.database = Some(database);
                state.journal.clear();
                state.spent.forget(&forgotten);
                Ok(done)
            }
            Err(error) => {
                drop(database);
                self.pages.discard();
                Err(error)
            }
        }
    }

    /// Reads the database as the present commit left it.
    fn read<T>(
        &self,
        state: &mut State,
        work: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let database = state.database.take().map_or_else(|| open_database(&self.pages), Ok)?;
        let done = database.begin_read().map_err(database_error).and_then(|transaction| work(&transaction));
        state.database = Some(database);
        done
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is changed after a commit by what cannot fail, so a panic elsewhere cannot have left half of it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("records", &self.lock().records.len()).finish_non_exhaustive()
    }
}

impl Spent {
    fn refuse(&self, request: &RequestId) -> Result<(), StoreError> {
        if self.requests.contains(request) { Err(StoreError::Spent) } else { Ok(()) }
    }

    fn remember(&mut self, request: &RequestId) {
        self.requests.insert(*request);
        self.next = self.next.saturating_add(1);
    }

    fn forget(&mut self, requests: &[RequestId]) {
        for request in requests {
            self.requests.remove(request);
        }
    }
}

impl State {
    /// What an acknowledged change means for what is read.
    fn take_in(&mut self, operation: &Operation, row: Option<Row>) {
        self.spent.remember(&operation.request);
        match row {
            Some(row) => self.records.insert(operation.reference.clone(), row),
            None => self.records.remove(&operation.reference),
        };
    }
}

fn transact<T>(
    database: &Database,
    work: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mut transaction = database.begin_write().map_err(database_error)?;
    transaction.set_durability(Durability::Immediate).map_err(database_error)?;
    let done = work(&transaction)?;
    transaction.commit().map_err(database_error)?;
    Ok(done)
}

/// Makes a change in the database, and returns the requests that are forgotten for it.
fn carry(
    transaction: &WriteTransaction,
    number: u64,
    operation: &Operation,
) -> Result<Vec<RequestId>, StoreError> {
    let mut records = transaction.open_table(RECORDS).map_err(database_error)?;
    let name = operation.reference.as_str();
    match &operation.sealed {
        Some(sealed) => records.insert(name, &sealed[..]).map_err(database_error)?,
        None => records.remove(name).map_err(database_error)?,
    };
    drop(records);
    spend(transaction, number, &operation.request)
}

/// The record that a change leaves under its name.
fn row_of(operation: &Operation, keys: &Keys) -> Result<Option<Row>, StoreError> {
    let row = operation.sealed.as_deref().map(|sealed| Row::of(&operation.reference, sealed, keys));
    row.transpose()
}

/// Remembers a request as the row of this number and returns the oldest ones, forgotten beyond [`MAX_SPENT`].
fn spend(
    transaction: &WriteTransaction,
    number: u64,
    request: &RequestId,
) -> Result<Vec<RequestId>, StoreError> {
    let mut table = transaction.open_table(SPENT).map_err(database_error)?;
    table.insert(number, *request).map_err(database_error)?;
    let mut forgotten = Vec::new();
    while table.len().map_err(database_error)? > MAX_SPENT as u64 {
        let oldest = table.pop_first().map_err(database_error)?.map(|(_, request)| request.value());
        forgotten.push(oldest.ok_or(StoreError::Exhausted)?);
    }
    Ok(forgotten)
}

fn load_records(transaction: &ReadTransaction, keys: &Keys) -> Result<BTreeMap<SecretRef, Row>, StoreError> {
    let mut records = BTreeMap::new();
    for row in transaction.open_table(RECORDS).map_err(database_error)?.iter().map_err(database_error)? {
        let (name, sealed) = row.map_err(database_error)?;
        let reference = name.value().parse::<SecretRef>().map_err(StoreError::Name)?;
        let row = Row::of(&reference, sealed.value(), keys)?;
        records.insert(reference, row);
    }
    Ok(records)
}

fn load_spent(transaction: &ReadTransaction) -> Result<Spent, StoreError> {
    let mut spent = Spent::default();
    for row in transaction.open_table(SPENT).map_err(database_error)?.iter().map_err(database_error)? {
        let (number, request) = row.map_err(database_error)?;
        spent.next = number.value().saturating_add(1);
        spent.requests.insert(request.value());
    }
    Ok(spent)
}

fn set_number(
    transaction: &WriteTransaction,
    table: TableDefinition<'static, (), u64>,
    number: u64,
) -> Result<(), StoreError> {
    let mut table = transaction.open_table(table).map_err(database_error)?;
    table.insert((), number).map_err(database_error)?;
    Ok(())
}

/// A table's only number, 0 where there is none.
fn load_number(
    transaction: &ReadTransaction,
    table: TableDefinition<'static, (), u64>,
) -> Result<u64, StoreError> {
    match transaction.open_table(table) {
        Ok(table) => Ok(table.get(()).map_err(database_error)?.map_or(0, |number| number.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(0),
        Err(error) => Err(database_error(error)),
    }
}

fn load_anchors(transaction: &ReadTransaction) -> Result<Anchors, StoreError> {
    match transaction.open_table(ANCHORS) {
        Ok(table) => {
            let row = table.get(()).map_err(database_error)?.map(|row| row.value());
            Ok(row.map_or_else(Anchors::default, |(first, published)| Anchors { first, published }))
        }
        Err(TableError::TableDoesNotExist(_)) => Ok(Anchors::default()),
        Err(error) => Err(database_error(error)),
    }
}

fn load_certificate(transaction: &ReadTransaction) -> Result<Option<Vec<u8>>, StoreError> {
    match transaction.open_table(CERTIFICATE) {
        Ok(table) => Ok(table.get(()).map_err(database_error)?.map(|row| row.value().to_vec())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(database_error(error)),
    }
}

/// redb on the pages as they are now.
fn open_database(pages: &Arc<Pages>) -> Result<Database, StoreError> {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE);
    builder.create_with_backend(Backend(pages.clone())).map_err(database_error)
}

/// What a page said goes through redb as an error of I/O.
fn database_error(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Io(error) => match error.downcast::<DiskError>() {
            Ok(error) => StoreError::Disk(error),
            Err(error) => StoreError::Database(Box::new(redb::Error::Io(error))),
        },
        error => StoreError::Database(Box::new(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MasterKey;

    #[test]
    fn of_too_many_requests_the_oldest_is_forgotten() {
        let keys = || Keys::derive(MasterKey::take(&mut [1; 32])).unwrap();
        let disk = MemoryDisk::new(8 << 20);
        let store = Store::create(disk.clone(), keys()).unwrap();
        let request = |number: u64| {
            let mut id = [0xFF; 32];
            // Descending, so that the first that came is not the first in order.
            id[..8].copy_from_slice(&(u64::MAX - number).to_be_bytes());
            id
        };
        let fill = |transaction: &WriteTransaction| {
            (0..MAX_SPENT as u64)
                .try_for_each(|number| spend(transaction, number, &request(number)).map(drop))
        };
        store.change(&mut store.lock(), Reserve::Stays, fill).unwrap();
        drop(store);

        let store = Store::open(disk.clone(), keys(), None).unwrap();
        // Too long for the journal, so that each goes to the database at once.
        let secret = SecretValue::new("secret://a/b/c".parse::<SecretRef>().unwrap(), vec![1; 4000]);
        let put = |number| store.put(&secret, 0, &request(number)).map(|entry| entry.version);
        assert!(matches!(put(0), Err(StoreError::Spent)));
        assert_eq!(put(MAX_SPENT as u64).unwrap(), 1);
        assert!(matches!(put(1), Err(StoreError::Spent)));
        assert_eq!(put(0).unwrap(), 2);
        let spent = |store: &Store| {
            let state = store.lock();
            (state.spent.requests.len(), state.spent.next)
        };
        assert_eq!(spent(&store), (MAX_SPENT, MAX_SPENT as u64 + 2));
        drop(store);
        assert_eq!(spent(&Store::open(disk, keys(), None).unwrap()), (MAX_SPENT, MAX_SPENT as u64 + 2));
    }
}
