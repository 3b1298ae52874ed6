//! The store against whoever can write where it lies.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

mod common;

use cofferdam_vault::store::{MAX_RECORDS, MAX_VALUE};
use cofferdam_vault::{Store, StoreError};
use common::{Disk, PASSWORD, USER, id, keys, reference, secret};
use redb::{Database, ReadableDatabase as _, TableDefinition};

const RECORDS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("records");
const INDEX: TableDefinition<'static, (), &[u8]> = TableDefinition::new("index");

const PLAIN: &[u8] = b"correct horse battery staple";

/// A store with two records, closed.
fn two_records() -> Disk {
    let disk = Disk::default();
    let store = Store::create(disk.clone(), keys(1)).unwrap();
    store.put(&secret(PASSWORD, PLAIN), 1, &id()).unwrap();
    store.put(&secret(USER, b"some user's name"), 2, &id()).unwrap();
    disk
}

fn row(disk: &Disk, name: &str) -> Vec<u8> {
    let database = Database::builder().create_with_backend(disk.clone()).unwrap();
    let table = database.begin_read().unwrap().open_table(RECORDS).unwrap();
    table.get(name).unwrap().unwrap().value().to_vec()
}

fn index(disk: &Disk) -> Vec<u8> {
    let database = Database::builder().create_with_backend(disk.clone()).unwrap();
    let table = database.begin_read().unwrap().open_table(INDEX).unwrap();
    table.get(()).unwrap().unwrap().value().to_vec()
}

/// Changes the database as somebody could who has the file and no key.
fn tamper(disk: &Disk, change: impl FnOnce(&redb::WriteTransaction)) {
    let database = Database::builder().create_with_backend(disk.clone()).unwrap();
    let transaction = database.begin_write().unwrap();
    change(&transaction);
    transaction.commit().unwrap();
}

fn set_row(disk: &Disk, name: &str, row: &[u8]) {
    tamper(disk, |transaction| {
        transaction.open_table(RECORDS).unwrap().insert(name, row).unwrap();
    });
}

fn open(disk: &Disk) -> Result<Store, StoreError> {
    Store::open(disk.clone(), keys(1))
}

#[test]
fn a_store_keeps_what_it_was_given() {
    let disk = two_records();
    let store = open(&disk).unwrap();
    assert_eq!(store.get(&reference(PASSWORD)).unwrap().unwrap().expose(), PLAIN);
    assert!(store.get(&reference("secret://app/db/other")).unwrap().is_none());
    let entries: Vec<_> =
        store.list().into_iter().map(|e| (e.reference.to_string(), e.version, e.updated_at)).collect();
    assert_eq!(entries, [(PASSWORD.to_owned(), 1, 1), (USER.to_owned(), 1, 2)]);

    let entry = store.put(&secret(PASSWORD, b"another value"), 3, &id()).unwrap();
    assert_eq!((entry.version, entry.updated_at), (2, 3));
    store.remove(&reference(USER), &id()).unwrap();
    assert!(matches!(store.remove(&reference(USER), &id()), Err(StoreError::Missing)));
    drop(store);

    let store = open(&disk).unwrap();
    assert_eq!(store.get(&reference(PASSWORD)).unwrap().unwrap().expose(), b"another value");
    assert!(!store.contains(&reference(USER)));
    assert_eq!(store.put(&secret(USER, b"anew"), 4, &id()).unwrap().version, 1);
}

#[test]
fn no_plaintext_reaches_the_backend() {
    let disk = two_records();
    let store = open(&disk).unwrap();
    store.put(&secret(PASSWORD, &[PLAIN, PLAIN].concat()), 3, &id()).unwrap();
    drop(store);
    let bytes = disk.bytes();
    assert!(
        bytes.windows(PASSWORD.len()).any(|window| window == PASSWORD.as_bytes()),
        "names are not secret"
    );
    for part in [&PLAIN[..8], &PLAIN[8..16], b"some user's"] {
        assert!(!bytes.windows(part.len()).any(|window| window == part));
    }
}

#[test]
fn records_cannot_be_swapped_copied_or_renamed() {
    let disk = two_records();
    let (password, user) = (row(&disk, PASSWORD), row(&disk, USER));
    set_row(&disk, PASSWORD, &user);
    set_row(&disk, USER, &password);
    assert!(matches!(open(&disk), Err(StoreError::Record { .. })));

    for name in ["secret://app/db/copy", "no reference at all"] {
        let disk = two_records();
        set_row(&disk, name, &row(&disk, PASSWORD));
        assert!(matches!(open(&disk), Err(StoreError::Record { .. } | StoreError::Name(_))));
    }
}

#[test]
fn a_record_cannot_be_removed_or_brought_back() {
    let disk = two_records();
    tamper(&disk, |transaction| {
        transaction.open_table(RECORDS).unwrap().remove(USER).unwrap();
    });
    assert!(matches!(open(&disk), Err(StoreError::Altered(_))));

    let disk = two_records();
    let old = row(&disk, USER);
    open(&disk).unwrap().remove(&reference(USER), &id()).unwrap();
    set_row(&disk, USER, &old);
    assert!(matches!(open(&disk), Err(StoreError::Altered(_))));
}

#[test]
fn an_older_record_of_the_same_name_is_refused_by_the_closed_and_the_open_store() {
    let disk = two_records();
    let old = row(&disk, PASSWORD);
    open(&disk).unwrap().put(&secret(PASSWORD, b"a newer value"), 3, &id()).unwrap();
    set_row(&disk, PASSWORD, &old);
    assert!(matches!(open(&disk), Err(StoreError::Altered(_))));
}

#[test]
fn an_index_of_another_moment_does_not_fit() {
    let disk = two_records();
    let old = index(&disk);
    open(&disk).unwrap().put(&secret(PASSWORD, b"a newer value"), 3, &id()).unwrap();
    tamper(&disk, |transaction| {
        transaction.open_table(INDEX).unwrap().insert((), old.as_slice()).unwrap();
    });
    assert!(matches!(open(&disk), Err(StoreError::Altered(_))));

    tamper(&disk, |transaction| {
        transaction.open_table(INDEX).unwrap().remove(()).unwrap();
    });
    assert!(matches!(open(&disk), Err(StoreError::Altered(_))));
}

#[test]
fn every_byte_of_a_record_and_of_the_index_counts() {
    let disk = two_records();
    let (record, sealed) = (row(&disk, PASSWORD), index(&disk));
    for position in 0..record.len() {
        let mut altered = record.clone();
        altered[position] ^= 1;
        set_row(&disk, PASSWORD, &altered);
        assert!(open(&disk).is_err(), "byte {position} of the record");
    }
    set_row(&disk, PASSWORD, &record);
    for position in 0..sealed.len() {
        let mut altered = sealed.clone();
        altered[position] ^= 1;
        tamper(&disk, |transaction| {
            transaction.open_table(INDEX).unwrap().insert((), altered.as_slice()).unwrap();
        });
        assert!(open(&disk).is_err(), "byte {position} of the index");
    }
    tamper(&disk, |transaction| {
        transaction.open_table(INDEX).unwrap().insert((), sealed.as_slice()).unwrap();
    });
    assert!(open(&disk).is_ok(), "undone, it opens again");
}

/// Without optimisation only every 101st byte, in a time that one waits for; a release build tries all.
const STEP: usize = if cfg!(debug_assertions) { 101 } else { 1 };

/// One flipped byte anywhere in the file: the store opens with everything that was in it, or says that it does not. Never
/// an empty one, never a missing or older record, never a panic. Both after an orderly end and after a kill.
#[test]
fn a_flipped_byte_of_the_file_is_found_or_does_not_matter() {
    let closed = two_records().bytes();
    let killed = {
        let disk = two_records();
        let store = open(&disk).unwrap();
        store.put(&secret(PASSWORD, b"a newer value"), 3, &id()).unwrap();
        let bytes = disk.bytes();
        drop(store);
        bytes
    };
    for (file, value) in [(closed, PLAIN), (killed, &b"a newer value"[..])] {
        // Every byte of the header and of each page that holds something; of the empty rest, one here and there.
        let used = |position: &usize| {
            let page = position - position % 4096;
            *position < 4096 || file[page..file.len().min(page + 4096)].iter().any(|byte| *byte != 0)
        };
        let (mut refused, mut harmless) = (0, 0);
        for position in (0..file.len()).filter(used).step_by(STEP) {
            let mut altered = file.clone();
            altered[position] ^= 0x10;
            match open(&Disk::holding(altered)) {
                Err(_) => refused += 1,
                Ok(store) => {
                    harmless += 1;
                    let got = store.get(&reference(PASSWORD)).unwrap().unwrap();
                    assert_eq!(got.expose(), value, "byte {position}");
                    assert_eq!(store.list().len(), 2, "byte {position}");
                }
            }
        }
        // Thousands of the file's bytes matter; only every STEP-th was tried.
        assert!(refused * STEP > 1000, "{refused} refused, {harmless} harmless");
    }
}

#[test]
fn the_wrong_key_opens_nothing_and_changes_nothing() {
    let disk = two_records();
    let records = (row(&disk, PASSWORD), row(&disk, USER), index(&disk));
    assert!(matches!(Store::open(disk.clone(), keys(2)), Err(StoreError::OtherKey)));
    assert_eq!((row(&disk, PASSWORD), row(&disk, USER), index(&disk)), records);
    assert_eq!(open(&disk).unwrap().list().len(), 2);
}

#[test]
fn a_store_is_never_made_over_something() {
    let disk = two_records();
    let before = disk.bytes();
    assert!(matches!(Store::create(disk.clone(), keys(1)), Err(StoreError::Occupied)));
    assert!(matches!(Store::create(disk.clone(), keys(2)), Err(StoreError::Occupied)));
    assert_eq!(disk.bytes(), before);
    assert!(matches!(Store::create(Disk::holding(vec![0]), keys(1)), Err(StoreError::Occupied)));
}

#[test]
fn nothing_is_never_opened_as_a_store() {
    assert!(matches!(Store::open(Disk::default(), keys(1)), Err(StoreError::Absent)));
    for bytes in [
        vec![0; 1],
        vec![0; 4096],
        vec![0; 1 << 20],
        b"redb".repeat(4096),
        two_records().bytes()[..9000].to_vec(),
    ] {
        let disk = Disk::holding(bytes.clone());
        assert!(open(&disk).is_err());
        assert_eq!(disk.bytes(), bytes, "what does not open is left as it is");
    }
    // A database that is one, of somebody else.
    let disk = Disk::default();
    drop(Database::builder().create_with_backend(disk.clone()).unwrap());
    assert!(open(&disk).is_err());
}

#[test]
fn values_and_records_are_bounded() {
    let disk = Disk::default();
    let store = Store::create(disk.clone(), keys(1)).unwrap();
    assert!(store.put(&secret(PASSWORD, &vec![1; MAX_VALUE]), 0, &id()).is_ok());
    assert!(matches!(
        store.put(&secret(PASSWORD, &vec![1; MAX_VALUE + 1]), 0, &id()),
        Err(StoreError::TooLong)
    ));
    assert_eq!(store.list()[0].version, 1, "a refused put changes nothing");
    for number in 1..MAX_RECORDS {
        store.put(&secret(&format!("secret://app/n{number}/f"), b"value"), 0, &id()).unwrap();
    }
    assert!(matches!(store.put(&secret("secret://app/more/f", b"value"), 0, &id()), Err(StoreError::Full)));
    assert!(store.put(&secret(PASSWORD, b"an existing one"), 0, &id()).is_ok());
    store.remove(&reference(PASSWORD), &id()).unwrap();
    assert!(store.put(&secret("secret://app/more/f", b"value"), 0, &id()).is_ok());
    drop(store);
    assert_eq!(open(&disk).unwrap().list().len(), MAX_RECORDS);
}

#[test]
fn a_request_is_carried_out_once_also_after_a_restart() {
    let disk = two_records();
    let (first, second) = (id(), id());
    let store = open(&disk).unwrap();
    store.put(&secret(PASSWORD, b"first value"), 0, &first).unwrap();
    store.put(&secret(PASSWORD, b"second value"), 0, &second).unwrap();
    assert!(matches!(store.put(&secret(PASSWORD, b"first value"), 0, &first), Err(StoreError::Spent)));
    assert!(matches!(store.remove(&reference(PASSWORD), &second), Err(StoreError::Spent)));
    drop(store);
    let store = open(&disk).unwrap();
    assert!(matches!(store.put(&secret(PASSWORD, b"first value"), 0, &first), Err(StoreError::Spent)));
    assert_eq!(store.get(&reference(PASSWORD)).unwrap().unwrap().expose(), b"second value");
}

#[test]
fn the_memory_of_requests_cannot_be_wiped() {
    const SPENT: TableDefinition<'static, u64, [u8; 32]> = TableDefinition::new("spent");
    let disk = two_records();
    tamper(&disk, |transaction| {
        transaction.open_table(SPENT).unwrap().pop_first().unwrap();
    });
    assert!(matches!(open(&disk), Err(StoreError::Altered(_))));
}
