//! The records at rest: a redb database of sealed records and one sealed index.
//!
//! The store is handed a storage backend and never opens a file, so that memory, a file or a disk
//! are the caller's choice. Everything it writes is ciphertext, except the references themselves.
//!
//! **What the index is for.** A record proves what it is, not that it is still there or still the latest.
//! The index, rewritten and sealed in the same transaction as every change, holds a digest over all records.
//! So a record that was removed, brought back, or replaced by an older one of the same name makes the
//! store unopenable. What no content of a store can show is that the *whole* store is an older copy
//! of itself; that needs a counter outside of it (the claim `state_epoch`).
//!
//! **What it never does.** It never starts empty in a place where something is: [`Store::create`] refuses a
//! backend that holds bytes, [`Store::open`] one that holds none or anything that does not authenticate as a whole.
//! It never repairs by forgetting: commits are two-phase, so that redb has no older state to fall back to.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cofferdam_protocol::{SecretRef, SecretValue, WordError};
use redb::{
    Builder, Database, Durability, ReadTransaction, ReadableDatabase as _, ReadableTable as _,
    StorageBackend, TableDefinition, WriteTransaction,
};
use sha2::{Digest as _, Sha256};

use crate::Keys;
use crate::record::{self, RecordError};

/// Most records in a store: 32 services with 31 secrets each. It bounds memory and the time to open.
pub const MAX_RECORDS: usize = 1000;
/// Longest value in bytes: the longest that travels sealed.
pub const MAX_VALUE: usize = cofferdam_protocol::operator::MAX_SECRET;
/// How many carried-out requests are remembered against replay; the oldest is then forgotten.
/// 16,384 of 40 bytes: far more changes than an appliance sees between two boots, well under 1 MiB.
pub const MAX_SPENT: usize = 16_384;

const RECORDS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("records");
/// Order of arrival → digest of a request that changed something.
const SPENT: TableDefinition<'static, u64, [u8; 32]> = TableDefinition::new("spent");
const INDEX: TableDefinition<'static, (), &[u8]> = TableDefinition::new("index");

const INDEX_DOMAIN: &[u8] = b"cofferdam/vault/index/v1";
/// redb's page cache in bytes. Its default is 1 GiB; a whole store of ordinary size fits in this.
const CACHE: usize = 4 * 1024 * 1024;

/// The open store.
#[derive(Debug)]
pub struct Store {
    database: Database,
    keys: Keys,
    state: Mutex<State>,
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
    /// [`Store::create`] where something already is.
    #[error("there is already a store here, and it is not overwritten")]
    Occupied,
    /// [`Store::open`] where nothing is.
    #[error("there is no store here")]
    Absent,
    /// The database itself is damaged or cannot be read or written.
    #[error("the store's database is damaged or not readable")]
    Database(#[source] Box<redb::Error>),
    /// The bytes cannot be read.
    #[error("the store is not readable")]
    Io(#[source] std::io::Error),
    /// The store belongs to another master key.
    #[error("the store was sealed under another master key")]
    OtherKey,
    /// The index does not authenticate or does not describe the records.
    #[error("the store was altered: {0}")]
    Altered(&'static str),
    /// One record does not authenticate.
    #[error("the store was altered: {reference}")]
    Record {
        /// Which record.
        reference: SecretRef,
        /// What is wrong with it.
        #[source]
        source: RecordError,
    },
    /// A record under a name that is none.
    #[error("the store was altered: a record has an impossible name")]
    Name(#[source] WordError),
    /// A new record could not be sealed.
    #[error("the secret cannot be sealed")]
    Seal(#[source] RecordError),
    /// [`MAX_RECORDS`] reached.
    #[error("the store holds {MAX_RECORDS} secrets and takes no further one")]
    Full,
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
    /// Whether trying again may succeed: another process still has the store open, or it could not be read at all. Everything
    /// else says something about the store's content, which will not change by itself.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Io(_) => true,
            Self::Database(error) => match &**error {
                redb::Error::DatabaseAlreadyOpen => true,
                // redb says of a file that is no database, or ends too early, in the words of I/O.
                redb::Error::Io(error) => {
                    !matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof)
                }
                _ => false,
            },
            _ => false,
        }
    }
}

/// The index in memory. Changed only after the transaction that says the same has been committed.
#[derive(Clone, Debug, Default)]
struct State {
    /// Counts the changes of the store.
    generation: u64,
    records: BTreeMap<SecretRef, Row>,
    spent: BTreeSet<RequestId>,
    /// Key of the next row in [`SPENT`].
    next_spent: u64,
}

#[derive(Clone, Debug)]
struct Row {
    version: u64,
    updated_at: u64,
    /// SHA-256 of the sealed record.
    digest: [u8; 32],
}

impl Store {
    /// Makes a store where there is nothing yet.
    ///
    /// # Errors
    /// [`StoreError::Occupied`] when the backend holds a single byte.
    pub fn create(backend: impl StorageBackend, keys: Keys) -> Result<Self, StoreError> {
        if backend.len().map_err(StoreError::Io)? != 0 {
            return Err(StoreError::Occupied);
        }
        let database = builder().create_with_backend(backend).map_err(database)?;
        let state = State::default();
        let store = Self { database, keys, state: Mutex::new(state.clone()) };
        let transaction = store.write()?;
        transaction.open_table(RECORDS).map_err(database_error)?;
        transaction.open_table(SPENT).map_err(database_error)?;
        store.commit(transaction, &state)?;
        Ok(store)
    }

    /// Opens a store and authenticates all of it.
    ///
    /// # Errors
    /// [`StoreError`] when any byte that matters is not as this key left it. What the store holds is
    /// then not changed.
    pub fn open(backend: impl StorageBackend, keys: Keys) -> Result<Self, StoreError> {
        if backend.len().map_err(StoreError::Io)? == 0 {
            return Err(StoreError::Absent);
        }
        let database = builder().create_with_backend(backend).map_err(database)?;
        let state = State::load(&database.begin_read().map_err(database_error)?, &keys)?;
        Ok(Self { database, keys, state: Mutex::new(state) })
    }

    /// The keys of this store.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Stores a value under its reference, replacing an earlier one.
    ///
    /// `request` is remembered in the same transaction, so that the change and the memory of it
    /// cannot come apart.
    ///
    /// # Errors
    /// [`StoreError::Spent`], [`StoreError::TooLong`], [`StoreError::Full`], or a failure of the database;
    /// nothing has changed then.
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
        let mut next = state.clone();
        let previous = next.records.get(secret.reference()).map(|row| row.version);
        if previous.is_none() && next.records.len() >= MAX_RECORDS {
            return Err(StoreError::Full);
        }
        let version = previous.unwrap_or(0).checked_add(1).ok_or(StoreError::Exhausted)?;
        let sealed = record::seal(&self.keys, secret, version, updated_at, getrandom::fill)
            .map_err(StoreError::Seal)?;
        next.records.insert(secret.reference().clone(), Row { version, updated_at, digest: digest(&sealed) });

        let transaction = self.write()?;
        next.spend(&transaction, request)?;
        {
            let mut records = transaction.open_table(RECORDS).map_err(database_error)?;
            records.insert(secret.reference().as_str(), sealed.as_slice()).map_err(database_error)?;
        }
        next.advance();
        self.commit(transaction, &next)?;
        *state = next;
        Ok(Entry { reference: secret.reference().clone(), version, updated_at })
    }

    /// Removes a record.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when there is none, [`StoreError::Spent`], or a failure of the database; nothing has
    /// changed then.
    pub fn remove(&self, reference: &SecretRef, request: &RequestId) -> Result<(), StoreError> {
        let mut state = self.lock();
        let mut next = state.clone();
        if next.spent.contains(request) {
            return Err(StoreError::Spent);
        }
        next.records.remove(reference).ok_or(StoreError::Missing)?;
        let transaction = self.write()?;
        next.spend(&transaction, request)?;
        {
            let mut records = transaction.open_table(RECORDS).map_err(database_error)?;
            records.remove(reference.as_str()).map_err(database_error)?;
        }
        next.advance();
        self.commit(transaction, &next)?;
        *state = next;
        Ok(())
    }

    /// The latest value under a reference, or `None`.
    ///
    /// # Errors
    /// [`StoreError::Altered`] or [`StoreError::Record`] when the record is not the one that was last put.
    pub fn get(&self, reference: &SecretRef) -> Result<Option<SecretValue>, StoreError> {
        // Held to the end, so that no put comes between the digest and the record it belongs to.
        let state = self.lock();
        let Some(expected) = state.records.get(reference).map(|row| row.digest) else { return Ok(None) };
        let transaction = self.database.begin_read().map_err(database_error)?;
        let records = transaction.open_table(RECORDS).map_err(database_error)?;
        let sealed = records.get(reference.as_str()).map_err(database_error)?;
        let sealed = sealed.ok_or(StoreError::Altered("a record has vanished"))?;
        if digest(sealed.value()) != expected {
            return Err(StoreError::Altered("a record is not the one last put"));
        }
        let (_, secret) = record::open(&self.keys, reference, sealed.value())
            .map_err(|source| StoreError::Record { reference: reference.clone(), source })?;
        Ok(Some(secret))
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

    fn write(&self) -> Result<WriteTransaction, StoreError> {
        let mut transaction = self.database.begin_write().map_err(database_error)?;
        transaction.set_two_phase_commit(true);
        transaction.set_durability(Durability::Immediate).map_err(database_error)?;
        Ok(transaction)
    }

    fn commit(&self, transaction: WriteTransaction, state: &State) -> Result<(), StoreError> {
        {
            let mut index = transaction.open_table(INDEX).map_err(database_error)?;
            let sealed = state.seal(&self.keys)?;
            index.insert((), sealed.as_slice()).map_err(database_error)?;
        }
        transaction.commit().map_err(database_error)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is replaced as a whole after a commit, so a panic elsewhere cannot have left half of one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Reads and authenticates everything.
    fn load(transaction: &ReadTransaction, keys: &Keys) -> Result<Self, StoreError> {
        let mut state = Self::default();
        let index = transaction.open_table(INDEX).map_err(database_error)?;
        let index = index.get(()).map_err(database_error)?.ok_or(StoreError::Altered("it has no index"))?;
        let (generation, expected) = unseal_index(index.value(), keys)?;
        state.generation = generation;

        for row in transaction.open_table(RECORDS).map_err(database_error)?.iter().map_err(database_error)? {
            let (name, sealed) = row.map_err(database_error)?;
            let reference = name.value().parse::<SecretRef>().map_err(StoreError::Name)?;
            let (header, _) = record::open(keys, &reference, sealed.value())
                .map_err(|source| StoreError::Record { reference: reference.clone(), source })?;
            let row = Row {
                version: header.version,
                updated_at: header.updated_at,
                digest: digest(sealed.value()),
            };
            state.records.insert(reference, row);
        }
        for row in transaction.open_table(SPENT).map_err(database_error)?.iter().map_err(database_error)? {
            let (key, request) = row.map_err(database_error)?;
            state.next_spent = key.value().saturating_add(1);
            state.spent.insert(request.value());
        }
        if state.digest() != expected {
            return Err(StoreError::Altered("its records are not those of its index"));
        }
        Ok(state)
    }

    /// Counts a change.
    fn advance(&mut self) {
        self.generation = self.generation.saturating_add(1);
    }

    /// Remembers a request, forgetting the oldest beyond [`MAX_SPENT`].
    fn spend(&mut self, transaction: &WriteTransaction, request: &RequestId) -> Result<(), StoreError> {
        if !self.spent.insert(*request) {
            return Err(StoreError::Spent);
        }
        let mut table = transaction.open_table(SPENT).map_err(database_error)?;
        table.insert(self.next_spent, *request).map_err(database_error)?;
        self.next_spent = self.next_spent.saturating_add(1);
        while self.spent.len() > MAX_SPENT {
            let oldest = table.pop_first().map_err(database_error)?.map(|(_, request)| request.value());
            let Some(oldest) = oldest else { break };
            self.spent.remove(&oldest);
        }
        Ok(())
    }

    /// Over every record's name and sealed bytes, in order, and every remembered request. Names are of variable length,
    /// but hold no 00; digests are of fixed length; so the input is unambiguous.
    fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (reference, row) in &self.records {
            hash.update(reference.as_str());
            hash.update([0]);
            hash.update(row.digest);
        }
        hash.update([0]);
        for request in &self.spent {
            hash.update(request);
        }
        hash.finalize().into()
    }

    /// `key id (8) ‖ nonce (12) ‖ AES-256-GCM(generation (8, big endian) ‖ digest (32))`, authenticated with
    /// `"cofferdam/vault/index/v1" 00 key id`.
    fn seal(&self, keys: &Keys) -> Result<Vec<u8>, StoreError> {
        let mut nonce = [0; 12];
        getrandom::fill(&mut nonce).map_err(|_| StoreError::Seal(RecordError::Random))?;
        let plain = [&self.generation.to_be_bytes()[..], &self.digest()].concat();
        let sealed = record::aes_seal(keys.index(), &nonce, &plain, &index_data(&keys.id()))
            .map_err(StoreError::Seal)?;
        Ok([&keys.id()[..], &nonce, &sealed].concat())
    }
}

/// Returns generation and digest.
fn unseal_index(sealed: &[u8], keys: &Keys) -> Result<(u64, [u8; 32]), StoreError> {
    const CUT: StoreError = StoreError::Altered("its index is cut short");
    let (id, rest) = sealed.split_first_chunk().ok_or(CUT)?;
    if *id != keys.id() {
        return Err(StoreError::OtherKey);
    }
    let (nonce, rest) = rest.split_first_chunk().ok_or(CUT)?;
    let plain = record::aes_open(keys.index(), nonce, rest, &index_data(id))
        .map_err(|_| StoreError::Altered("its index does not authenticate"))?;
    let (generation, digest) = plain.split_first_chunk().ok_or(CUT)?;
    Ok((u64::from_be_bytes(*generation), digest.try_into().map_err(|_| CUT)?))
}

fn index_data(key_id: &[u8]) -> Vec<u8> {
    [INDEX_DOMAIN, key_id].join(&0)
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Checks every page's checksum when it opens, because redb may otherwise trust, or panic on, a page that was altered.
fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    builder
}

fn database(error: redb::DatabaseError) -> StoreError {
    database_error(error)
}

fn database_error(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Database(Box::new(error.into()))
}

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;

    use super::*;
    use crate::MasterKey;

    #[test]
    fn of_too_many_requests_the_oldest_is_forgotten() {
        let keys = Keys::derive(MasterKey::take(&mut [1; 32])).unwrap();
        let store = Store::create(InMemoryBackend::new(), keys).unwrap();
        let request = |number: u64| {
            let mut id = [0xFF; 32];
            // Descending, so that the first that came is not the first in order.
            id[..8].copy_from_slice(&(u64::MAX - number).to_be_bytes());
            id
        };
        let mut state = State::default();
        let transaction = store.write().unwrap();
        for number in 0..MAX_SPENT as u64 {
            state.spend(&transaction, &request(number)).unwrap();
        }
        store.commit(transaction, &state).unwrap();
        *store.lock() = state;

        let secret = SecretValue::new("secret://a/b/c".parse::<SecretRef>().unwrap(), b"value".to_vec());
        let put = |number| store.put(&secret, 0, &request(number)).map(|entry| entry.version);
        assert!(matches!(put(0), Err(StoreError::Spent)));
        assert_eq!(put(MAX_SPENT as u64).unwrap(), 1);
        assert!(matches!(put(1), Err(StoreError::Spent)));
        assert_eq!(put(0).unwrap(), 2);
        let state = store.lock();
        assert_eq!((state.spent.len(), state.next_spent), (MAX_SPENT, MAX_SPENT as u64 + 2));
    }
}
