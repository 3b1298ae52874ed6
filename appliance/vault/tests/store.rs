//! The store against whoever can write where it lies.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cofferdam_vault::store::{MAX_RECORDS, MAX_VALUE};
use cofferdam_vault::{Disk, DiskError, FileDisk, MemoryDisk, Root, Store, StoreError};
use common::{PASSWORD, USER, id, keys, reference, secret};
use proptest::prelude::*;

const PLAIN: &[u8] = b"correct horse battery staple";
const NEWER: &[u8] = b"a newer value";
const BLOCK: usize = 4096;

/// Zeros, and few enough of them for tests that try every block. Too few for a journal, so that every change is one of pages.
fn disk() -> MemoryDisk {
    MemoryDisk::new(256 * BLOCK)
}

/// Enough for a journal.
fn roomy() -> MemoryDisk {
    MemoryDisk::new(1024 * BLOCK)
}

/// A store with two records, closed.
fn two_records() -> MemoryDisk {
    let disk = disk();
    let store = Store::create(disk.clone(), keys(1)).unwrap();
    store.put(&secret(PASSWORD, PLAIN), 1, &id()).unwrap();
    store.put(&secret(USER, b"some user's name"), 2, &id()).unwrap();
    disk
}

fn open(disk: &MemoryDisk) -> Result<Store, StoreError> {
    Store::open(disk.clone(), keys(1), None)
}

/// Opens these bytes, which are left as they are when they do not open.
fn open_bytes(bytes: &[u8], expected: Option<&Root>) -> Result<Store, DiskError> {
    let disk = MemoryDisk::holding(bytes.to_vec());
    match Store::open(disk.clone(), keys(1), expected) {
        Ok(store) => Ok(store),
        Err(StoreError::Disk(error)) => {
            assert!(disk.bytes() == bytes, "what does not open was changed: {error}");
            Err(error)
        }
        Err(error) => panic!("{error}"),
    }
}

/// The blocks that hold something.
fn used(bytes: &[u8]) -> Vec<usize> {
    (0..bytes.len() / BLOCK).filter(|block| block_of(bytes, *block).iter().any(|byte| *byte != 0)).collect()
}

fn block_of(bytes: &[u8], block: usize) -> &[u8] {
    &bytes[block * BLOCK..(block + 1) * BLOCK]
}

fn with_block(bytes: &[u8], block: usize, content: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[block * BLOCK..(block + 1) * BLOCK].copy_from_slice(content);
    bytes
}

fn is_changed(error: &DiskError) -> bool {
    matches!(error, DiskError::PageChanged { .. } | DiskError::NodeChanged { .. })
}

/// The blocks of pages and nodes of the present commit: those whose damage is found.
fn live(bytes: &[u8]) -> Vec<usize> {
    let damaged = |block: &usize| {
        let mut altered = bytes.to_vec();
        altered[block * BLOCK] ^= 1;
        open_bytes(&altered, None).is_err()
    };
    used(bytes).into_iter().filter(|block| *block >= 3).filter(damaged).collect()
}

#[test]
fn how_full_it_is_is_told_after_each_change() {
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let hears = Arc::clone(&told);
    let store = Store::create(disk(), keys(1)).unwrap();
    let store = store.telling(move |status| hears.lock().unwrap().push(status));
    let large = [7; MAX_VALUE];
    store.put(&secret(PASSWORD, &large), 1, &id()).unwrap();
    store.put(&secret(PASSWORD, &large), 2, &id()).unwrap();
    store.remove(&reference(PASSWORD), &id()).unwrap();
    assert!(matches!(store.remove(&reference(PASSWORD), &id()), Err(StoreError::Missing)));
    let told = told.lock().unwrap();
    assert_eq!(told.iter().map(|status| status.secrets).collect::<Vec<_>>(), [0, 1, 1, 0]);
    assert!(told.iter().all(|status| status.bytes_limit == 256 * BLOCK as u64));
    assert!(told[1].bytes >= told[0].bytes + MAX_VALUE as u64, "{told:?}");
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
fn neither_values_nor_names_reach_the_disk() {
    let disk = two_records();
    let store = open(&disk).unwrap();
    store.put(&secret(PASSWORD, &[PLAIN, PLAIN].concat()), 3, &id()).unwrap();
    drop(store);
    let bytes = disk.bytes();
    for part in [PASSWORD.as_bytes(), b"secret://", &PLAIN[..8], &PLAIN[8..16], b"some user's", b"redb"] {
        assert!(!bytes.windows(part.len()).any(|window| window == part));
    }
}

#[test]
fn every_commit_has_a_root_of_its_own() {
    let store = Store::create(disk(), keys(1)).unwrap();
    let first = store.root();
    store.put(&secret(PASSWORD, PLAIN), 1, &id()).unwrap();
    let second = store.root();
    store.remove(&reference(PASSWORD), &id()).unwrap();
    let third = store.root();
    assert_eq!((first.epoch, second.epoch, third.epoch), (1, 2, 3));
    assert_eq!((first.store, second.store), (second.store, third.store));
    assert!(first.digest != second.digest && second.digest != third.digest && first.digest != third.digest);
    // What is refused is no commit.
    assert!(store.remove(&reference(PASSWORD), &id()).is_err());
    assert_eq!(store.root(), third);
    assert_ne!(Store::create(disk(), keys(1)).unwrap().root().store, first.store);
}

#[test]
fn a_root_of_another_time_or_store_does_not_fit() {
    let disk = two_records();
    let (old, old_root) = (disk.bytes(), open(&disk).unwrap().root());
    open(&disk).unwrap().put(&secret(PASSWORD, NEWER), 3, &id()).unwrap();
    let (new, new_root) = (disk.bytes(), open(&disk).unwrap().root());

    assert_eq!(open_bytes(&new, Some(&new_root)).unwrap().root(), new_root);
    // Whoever kept an older root missed a commit; what is there is newer.
    assert_eq!(open_bytes(&new, Some(&old_root)).unwrap().root(), new_root);
    let error = open_bytes(&old, Some(&new_root)).unwrap_err();
    let (found, expected) = (old_root.epoch, new_root.epoch);
    assert!(
        matches!(error, DiskError::OlderThan { found: f, expected: e } if (f, e) == (found, expected)),
        "{error}"
    );

    // The older copy went on without the newer one.
    let fork = MemoryDisk::holding(old);
    open(&fork).unwrap().put(&secret(PASSWORD, NEWER), 3, &id()).unwrap();
    let error = open_bytes(&fork.bytes(), Some(&new_root)).unwrap_err();
    assert!(matches!(error, DiskError::Diverged(epoch) if epoch == new_root.epoch), "{error}");

    let error = open_bytes(&two_records().bytes(), Some(&new_root)).unwrap_err();
    assert!(matches!(error, DiskError::AnotherStore), "{error}");
}

/// The nonce, the identity and the place count: the same content under the same key is another ciphertext.
#[test]
fn a_repeated_commit_never_repeats_a_block() {
    let disk = two_records();
    let before = disk.bytes();
    let request = id();
    let after: Vec<_> = (0..2)
        .map(|_| {
            let copy = MemoryDisk::holding(before.clone());
            open(&copy).unwrap().put(&secret(PASSWORD, NEWER), 3, &request).unwrap();
            copy.bytes()
        })
        .collect();
    let changed: Vec<_> =
        used(&after[0]).into_iter().filter(|b| block_of(&after[0], *b) != block_of(&before, *b)).collect();
    assert!(changed.len() > 5, "{changed:?}");
    for block in changed {
        assert_ne!(block_of(&after[0], block), block_of(&after[1], block), "block {block}");
    }
}

#[test]
fn one_flipped_bit_in_any_block_is_refused_by_name() {
    let bytes = two_records().bytes();
    let root = open_bytes(&bytes, None).unwrap().root();
    let (mut pages, mut nodes, mut records, mut harmless) = (0, 0, 0, Vec::new());
    for block in used(&bytes) {
        for position in [0, 24, 41, 100, 130, 160, 167, 168, 2000, 4095] {
            let mut altered = bytes.clone();
            altered[block * BLOCK + position] ^= 0x10;
            match open_bytes(&altered, None) {
                Err(DiskError::PageChanged { block: named, .. }) => {
                    assert_eq!(named as usize, block);
                    pages += 1;
                }
                Err(DiskError::NodeChanged { block: named, .. }) => {
                    assert_eq!(named as usize, block);
                    nodes += 1;
                }
                Err(DiskError::RootChanged) => {
                    assert!(block < 2, "{block}");
                    records += 1;
                }
                Err(error) => panic!("block {block}: {error}"),
                Ok(store) => {
                    // It is not of the present commit, or the end of a block of records, which nothing reads.
                    assert_eq!(store.root(), root, "block {block}");
                    assert_eq!(store.get(&reference(PASSWORD)).unwrap().unwrap().expose(), PLAIN);
                    harmless.push((block, position));
                }
            }
        }
    }
    // All of four nodes and of some pages, and the seven bytes of the one present record.
    assert!(nodes == 40 && pages >= 40 && records == 7, "{pages} {nodes} {records}");
    let live = live(&bytes);
    assert!(harmless.iter().all(|(block, _)| !live.contains(block)));
}

/// Without optimisation only every 499th byte, in a time that one waits for; a release build tries all.
const STEP: usize = if cfg!(debug_assertions) { 499 } else { 1 };

/// Whatever one byte is changed: the store opens with everything that was in it, or says that it does not.
#[test]
fn a_changed_byte_is_found_or_does_not_matter() {
    let bytes = two_records().bytes();
    let root = open_bytes(&bytes, None).unwrap().root();
    let (mut refused, mut harmless) = (0, 0);
    for position in
        used(&bytes).into_iter().flat_map(|block| block * BLOCK..(block + 1) * BLOCK).step_by(STEP)
    {
        let mut altered = bytes.clone();
        altered[position] = altered[position].wrapping_add(1);
        match open_bytes(&altered, None) {
            Err(_) => refused += 1,
            Ok(store) => {
                harmless += 1;
                assert_eq!(store.root(), root, "byte {position}");
            }
        }
    }
    assert!(refused * STEP > 8 * BLOCK, "{refused} refused, {harmless} harmless");
}

#[test]
fn swapped_zeroed_and_older_blocks_are_refused_by_name() {
    let disk = two_records();
    let old = disk.bytes();
    open(&disk).unwrap().put(&secret(PASSWORD, NEWER), 3, &id()).unwrap();
    open(&disk).unwrap().put(&secret(PASSWORD, PLAIN), 4, &id()).unwrap();
    let bytes = disk.bytes();
    let live = live(&bytes);
    assert!(live.len() > 8);
    for (position, block) in live.iter().enumerate() {
        let other = live[(position + 1) % live.len()];
        let swapped = with_block(&bytes, *block, block_of(&bytes, other));
        let swapped = with_block(&swapped, other, block_of(&bytes, *block));
        let zeroed = with_block(&bytes, *block, &[0; BLOCK]);
        let elsewhere = with_block(&bytes, *block, block_of(&two_records().bytes(), *block));
        for altered in [swapped, zeroed, elsewhere] {
            let error = open_bytes(&altered, None).unwrap_err();
            assert!(is_changed(&error), "block {block}: {error}");
        }
        let older = with_block(&bytes, *block, block_of(&old, *block));
        match open_bytes(&older, None) {
            Err(error) => assert!(is_changed(&error), "block {block}: {error}"),
            Ok(_) => assert_eq!(block_of(&old, *block), block_of(&bytes, *block), "block {block}"),
        }
    }
    // The record of the commit before over the present one, and over both places.
    let present = (0..2).find(|block| block_of(&bytes, *block) == block_of(&bytes, 2)).unwrap();
    let before = block_of(&bytes, 1 - present);
    for content in [before, &[0; BLOCK]] {
        let altered = with_block(&bytes, present, content);
        assert!(matches!(open_bytes(&altered, None), Err(DiskError::RootChanged)));
    }
}

#[test]
fn without_a_whole_newest_record_the_commit_before_is_noticed() {
    let disk = two_records();
    let before = open(&disk).unwrap().root();
    open(&disk).unwrap().put(&secret(PASSWORD, NEWER), 3, &id()).unwrap();
    let bytes = disk.bytes();
    let root = open(&disk).unwrap().root();
    // What a host can do that damages the copy too: it looks like a commit that was cut off by a power cut.
    let present = (0..2).find(|block| block_of(&bytes, *block) == block_of(&bytes, 2)).unwrap();
    let altered = with_block(&with_block(&bytes, 2, &[0; BLOCK]), present, &[0; BLOCK]);
    assert_eq!(open_bytes(&altered, None).unwrap().root(), before);
    let error = open_bytes(&altered, Some(&root)).unwrap_err();
    assert!(matches!(error, DiskError::OlderThan { .. }), "{error}");
    // And with a witness a damaged page of the last commit is what it is.
    let no_copy = with_block(&bytes, 2, &[0; BLOCK]);
    let newest = *live(&bytes)
        .iter()
        .find(|b| open_bytes(&with_block(&no_copy, **b, &[1; BLOCK]), None).is_ok())
        .unwrap();
    let torn = with_block(&no_copy, newest, &[1; BLOCK]);
    assert_eq!(open_bytes(&torn, None).unwrap().root(), before);
    assert!(is_changed(&open_bytes(&torn, Some(&root)).unwrap_err()));
}

#[test]
fn a_disk_of_another_length_is_refused_by_name() {
    let bytes = two_records().bytes();
    for length in [bytes.len() - BLOCK, bytes.len() - 1, 40 * BLOCK, 168] {
        let error = open_bytes(&bytes[..length], None).unwrap_err();
        assert!(matches!(error, DiskError::Truncated { .. }), "{length}: {error}");
    }
    let mut grown = bytes.clone();
    grown.resize(bytes.len() + BLOCK, 0);
    assert!(matches!(open_bytes(&grown, None), Err(DiskError::Grown { .. })));
    assert!(matches!(open_bytes(&[], None), Err(DiskError::Absent)));
    assert!(matches!(open_bytes(&bytes[..167], None), Err(DiskError::NotOurs)));

    for (length, blank) in [(0, true), (BLOCK, true), (255 * BLOCK, true), (256 * BLOCK, false)] {
        let made = Store::create(MemoryDisk::new(length), keys(1));
        assert_eq!(matches!(made, Err(StoreError::Disk(DiskError::TooSmall(_)))), blank, "{length}");
    }
    let made = Store::create(Faulty { length: Some(1 << 63), ..Faulty::over(disk()) }, keys(1));
    assert!(matches!(made, Err(StoreError::Disk(DiskError::TooLarge(_)))));
    let opened = Store::open(Faulty { length: Some(1 << 63), ..Faulty::over(two_records()) }, keys(1), None);
    assert!(matches!(opened, Err(StoreError::Disk(DiskError::Grown { .. }))));
}

#[test]
fn the_wrong_key_opens_nothing_and_changes_nothing() {
    let disk = two_records();
    let bytes = disk.bytes();
    let error = Store::open(disk.clone(), keys(2), None).unwrap_err();
    assert!(matches!(error, StoreError::Disk(DiskError::OtherKey)));
    assert!(!error.may_pass());
    assert_eq!(disk.bytes(), bytes);
    assert_eq!(open(&disk).unwrap().list().len(), 2);
}

#[test]
fn a_store_is_never_made_over_something() {
    let disk = two_records();
    let before = disk.bytes();
    for key in [1, 2] {
        let made = Store::create(disk.clone(), keys(key));
        assert!(matches!(made, Err(StoreError::Disk(DiskError::Occupied))));
    }
    assert_eq!(disk.bytes(), before);
    let mut one_byte = vec![0; 256 * BLOCK];
    one_byte[200 * BLOCK] = 1;
    let made = Store::create(MemoryDisk::holding(one_byte), keys(1));
    assert!(matches!(made, Err(StoreError::Disk(DiskError::Occupied))));
}

#[test]
fn nothing_is_never_opened_as_a_store() {
    assert!(matches!(open_bytes(&vec![0; 1 << 20], None), Err(DiskError::Absent)));
    for bytes in [vec![1; 1], vec![0x5A; 4096], b"redb".repeat(1 << 18), b"CFDVAULX".repeat(1 << 17)] {
        assert!(matches!(open_bytes(&bytes, None), Err(DiskError::NotOurs)));
    }
    let mut unknown = two_records().bytes();
    for block in 0..3 {
        unknown[block * BLOCK + 8] = 3;
    }
    assert!(matches!(open_bytes(&unknown, None), Err(DiskError::Format(3))));
}

#[test]
fn values_and_records_are_bounded() {
    let disk = MemoryDisk::new(4 << 20);
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
    assert!(matches!(
        store.put(&secret("secret://app/more/f", b"value"), 0, &id()),
        Err(StoreError::Full(1000))
    ));
    assert!(store.put(&secret(PASSWORD, b"an existing one"), 0, &id()).is_ok());
    store.remove(&reference(PASSWORD), &id()).unwrap();
    assert!(store.put(&secret("secret://app/more/f", b"value"), 0, &id()).is_ok());
    drop(store);
    assert_eq!(open(&disk).unwrap().list().len(), MAX_RECORDS);
}

#[test]
fn a_full_disk_refuses_what_grows_and_takes_what_shrinks() {
    let disk = MemoryDisk::new(6 << 20);
    let store = Store::create(disk.clone(), keys(1)).unwrap();
    let name = |number| format!("secret://app/n{number}/f");
    let value = vec![1; MAX_VALUE];
    let mut number = 0;
    let error = loop {
        match store.put(&secret(&name(number), &value), 0, &id()) {
            Ok(_) => number += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Disk(DiskError::Full)), "{error}");
    assert!(number > 10, "{number}");
    let (root, bytes) = (store.root(), disk.bytes());
    assert!(store.put(&secret(&name(number), &value), 0, &id()).is_err());
    assert_eq!((store.root(), disk.bytes() == bytes), (root, true), "a refused put writes nothing");
    assert_eq!(open_bytes(&bytes, Some(&root)).unwrap().list().len(), number);

    // Everything can be removed, and what was removed makes room.
    for gone in 0..number {
        store.remove(&reference(&name(gone)), &id()).unwrap();
    }
    for again in 0..number {
        store
            .put(&secret(&name(again), &value), 0, &id())
            .unwrap_or_else(|e| panic!("{again} of {number}: {e}"));
    }
    drop(store);
    assert_eq!(open(&disk).unwrap().list().len(), number);
}

/// A disk with faults.
#[derive(Clone, Debug)]
struct Faulty {
    disk: MemoryDisk,
    length: Option<u64>,
    /// Reads and writes that touch this block fail.
    block: Arc<AtomicU64>,
    /// Writes fail.
    read_only: bool,
    writes: Arc<AtomicU64>,
}

impl Faulty {
    fn over(disk: MemoryDisk) -> Self {
        let (block, writes) = (Arc::new(AtomicU64::new(u64::MAX)), Arc::default());
        Self { disk, length: None, block, read_only: false, writes }
    }

    fn touches(&self, offset: u64, length: usize) -> io::Result<()> {
        let block = self.block.load(Ordering::Relaxed);
        let blocks = offset / BLOCK as u64..(offset + length as u64).div_ceil(BLOCK as u64);
        if blocks.contains(&block) { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }
}

impl Disk for Faulty {
    fn len(&self) -> io::Result<u64> {
        self.length.map_or_else(|| self.disk.len(), Ok)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.touches(offset, out.len())?;
        self.disk.read_at(offset, out)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.touches(offset, bytes.len())?;
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.disk.write_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn small_changes_are_in_the_record_alone_and_go_to_the_pages_with_the_next_that_is_not() {
    let disk = roomy();
    let store = Store::create(disk.clone(), keys(1)).unwrap();
    let made = disk.bytes();
    let name = |number: usize| format!("secret://app/n{number}/f");
    let changed = |bytes: &[u8]| {
        used(bytes).into_iter().filter(|block| block_of(bytes, *block) != block_of(&made, *block)).max()
    };
    for number in 0..8 {
        store.put(&secret(&name(number), PLAIN), 1, &id()).unwrap();
    }
    store.remove(&reference(&name(0)), &id()).unwrap();
    let last = id();
    store.put(&secret(&name(1), NEWER), 2, &last).unwrap();
    assert!(changed(&disk.bytes()) <= Some(2), "records and nothing else");

    let root = store.root();
    drop(store);
    let store = open_bytes(&disk.bytes(), Some(&root)).unwrap();
    assert_eq!((store.root(), root.epoch), (root, 11), "each change is a commit");
    assert_eq!(store.list().iter().map(|entry| entry.version).collect::<Vec<_>>(), [2, 1, 1, 1, 1, 1, 1]);
    assert_eq!(store.get(&reference(&name(1))).unwrap().unwrap().expose(), NEWER);
    assert!(matches!(store.put(&secret(&name(1), NEWER), 2, &last), Err(StoreError::Spent)));

    // What has no room there is a commit of pages, and with it all before.
    let disk = MemoryDisk::holding(disk.bytes());
    let store = open(&disk).unwrap();
    store.put(&secret(&name(9), &[1; 4000]), 3, &id()).unwrap();
    assert!(changed(&disk.bytes()) > Some(2));
    let listed = store.list();
    assert_eq!((listed.len(), store.root().epoch), (8, 12));
    drop(store);
    let store = open(&disk).unwrap();
    assert_eq!(store.list(), listed);
    assert!(matches!(store.put(&secret(&name(1), NEWER), 2, &last), Err(StoreError::Spent)));
}

#[test]
fn the_journal_is_no_less_guarded_than_the_pages() {
    let disk = roomy();
    let store = Store::create(disk.clone(), keys(1)).unwrap();
    store.put(&secret(PASSWORD, PLAIN), 1, &id()).unwrap();
    let (older, older_root) = (disk.bytes(), store.root());
    store.put(&secret(PASSWORD, NEWER), 2, &id()).unwrap();
    let (bytes, root) = (disk.bytes(), store.root());
    drop(store);
    let present = (0..2).find(|block| block_of(&bytes, *block) == block_of(&bytes, 2)).unwrap();
    let end = block_of(&bytes, present).iter().rposition(|byte| *byte != 0).unwrap();
    assert!(end > 400);
    for position in 0..=end {
        let mut altered = bytes.clone();
        altered[present * BLOCK + position] ^= 1;
        let error = open_bytes(&altered, None).unwrap_err();
        assert!(matches!(error, DiskError::RootChanged), "byte {position}: {error}");
    }
    // The record before in the present one's place, zeros, and a disk that ends within it.
    for content in [block_of(&older, 1 - present), block_of(&bytes, 1 - present), &[0; BLOCK]] {
        let altered = with_block(&bytes, present, content);
        assert!(matches!(open_bytes(&altered, None), Err(DiskError::RootChanged)));
    }
    assert!(matches!(open_bytes(&bytes[..BLOCK - 1], None), Err(DiskError::Truncated { .. })));
    // A whole older copy is what a witness knows.
    assert_eq!(open_bytes(&older, None).unwrap().root(), older_root);
    let error = open_bytes(&older, Some(&root)).unwrap_err();
    assert!(matches!(error, DiskError::OlderThan { .. }), "{error}");
    // Names and values are not in it in the clear.
    for part in [PASSWORD.as_bytes(), b"secret://", NEWER, PLAIN] {
        assert!(!bytes.windows(part.len()).any(|window| window == part));
    }
}

#[test]
fn a_journal_never_takes_the_blocks_that_it_needs_later() {
    let disk = MemoryDisk::new(700 * BLOCK);
    let store = Store::create(disk.clone(), keys(1)).unwrap();
    let name = |number: usize| format!("secret://app/n{number}/f");
    let mut number = 0;
    // Of all lengths, so that some go to the journal until the disk is full.
    let error = loop {
        let length = if number % 3 == 0 { 9000 } else { 20 };
        match store.put(&secret(&name(number), &vec![1; length]), 0, &id()) {
            Ok(_) => number += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Disk(DiskError::Full)), "{error}");
    let root = store.root();
    drop(store);
    let store = Store::open(disk.clone(), keys(1), Some(&root)).unwrap();
    assert_eq!(store.list().len(), number);
    (0..number).for_each(|gone| store.remove(&reference(&name(gone)), &id()).unwrap());
    assert!(open(&MemoryDisk::holding(disk.bytes())).unwrap().list().is_empty());
}

#[test]
fn a_write_that_fails_leaves_the_journal_as_it_was() {
    let disk = roomy();
    let store = Store::create(disk.clone(), keys(1)).unwrap();
    store.put(&secret(PASSWORD, PLAIN), 1, &id()).unwrap();
    drop(store);
    let faulty = Faulty::over(disk.clone());
    let store = Store::open(faulty.clone(), keys(1), None).unwrap();
    let before = store.root();
    for block in 0..2 {
        faulty.block.store(block, Ordering::Relaxed);
        match store.put(&secret(PASSWORD, NEWER), 2, &id()) {
            Ok(_) => assert_ne!(store.root(), before),
            Err(StoreError::Disk(DiskError::Write(_))) => {
                assert_eq!(store.root(), before);
                assert_eq!(store.get(&reference(PASSWORD)).unwrap().unwrap().expose(), PLAIN);
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    faulty.block.store(u64::MAX, Ordering::Relaxed);
    store.put(&secret(USER, b"after it"), 3, &id()).unwrap();
    let reopened = open_bytes(&disk.bytes(), Some(&store.root())).unwrap();
    assert_eq!(reopened.list(), store.list());
}

/// A run of blocks, the record, and its copy; where the free blocks lie scattered the run may be in parts.
#[test]
fn a_change_is_a_few_writes_however_many_records_there_are() {
    let disk = Faulty::over(MemoryDisk::new(2048 * BLOCK));
    let store = Store::create(disk.clone(), keys(1)).unwrap();
    let put = |number: usize| {
        let mut request = [0; 32];
        request[..8].copy_from_slice(&disk.writes.load(Ordering::Relaxed).to_be_bytes());
        store.put(&secret(&format!("secret://app/n{number}/f"), PLAIN), 0, &request).unwrap();
    };
    (0..600).for_each(put);
    let before = disk.writes.load(Ordering::Relaxed);
    (0..600).for_each(|round| put(round * 331 % 600));
    let writes = disk.writes.load(Ordering::Relaxed) - before;
    assert!(writes <= 600 * 7 / 2, "{writes} for 600 puts");
}

#[test]
fn a_read_only_disk_is_read_and_not_written() {
    let disk = two_records();
    let bytes = disk.bytes();
    let store = Store::open(Faulty { read_only: true, ..Faulty::over(disk.clone()) }, keys(1), None).unwrap();
    let root = store.root();
    for _ in 0..2 {
        let error = store.put(&secret(PASSWORD, NEWER), 3, &id()).unwrap_err();
        assert!(matches!(error, StoreError::Disk(DiskError::Write(_))), "{error}");
        assert_eq!(store.get(&reference(PASSWORD)).unwrap().unwrap().expose(), PLAIN);
    }
    assert_eq!(store.root(), root);
    assert_eq!(disk.bytes(), bytes);
    let made = Store::create(Faulty { read_only: true, ..Faulty::over(MemoryDisk::new(4 << 20)) }, keys(1));
    assert!(matches!(made, Err(StoreError::Disk(DiskError::Write(_)))));
}

#[test]
fn a_block_that_cannot_be_read_is_not_taken_for_an_altered_one() {
    let disk = two_records();
    let bytes = disk.bytes();
    for block in live(&bytes).into_iter().chain(0..3) {
        let faulty = Faulty::over(disk.clone());
        faulty.block.store(block as u64, Ordering::Relaxed);
        let error = Store::open(faulty, keys(1), None).unwrap_err();
        assert!(error.may_pass());
        assert!(
            matches!(error, StoreError::Disk(DiskError::Unreadable { block: named, .. }) if named as usize == block),
            "{error}"
        );
    }
    assert_eq!(disk.bytes(), bytes);
}

#[test]
fn a_block_that_fails_under_load_ends_the_changes_that_need_it_and_no_lease() {
    let disk = two_records();
    let faulty = Faulty::over(disk.clone());
    let store = Store::open(faulty.clone(), keys(1), None).unwrap();
    let mut failed = 0;
    for block in 0..64 {
        faulty.block.store(block, Ordering::Relaxed);
        let before = store.root();
        match store.put(&secret(PASSWORD, format!("value {block}").as_bytes()), 3, &id()) {
            Ok(_) => {}
            Err(StoreError::Disk(DiskError::Write(_) | DiskError::Unreadable { .. })) => {
                failed += 1;
                assert_eq!(store.root(), before);
            }
            Err(error) => panic!("{error}"),
        }
        assert!(store.get(&reference(PASSWORD)).unwrap().is_some());
        assert_eq!(store.get(&reference(USER)).unwrap().unwrap().expose(), b"some user's name");
        // The fault passes: everything goes on from the last commit.
        faulty.block.store(u64::MAX, Ordering::Relaxed);
        let value = format!("value {block} at last");
        store.put(&secret(PASSWORD, value.as_bytes()), 3, &id()).unwrap();
        let reopened = open_bytes(&disk.bytes(), Some(&store.root())).unwrap();
        assert_eq!(reopened.get(&reference(PASSWORD)).unwrap().unwrap().expose(), value.as_bytes());
    }
    assert!(failed > 5, "{failed}");
}

#[test]
fn a_page_that_is_altered_while_the_store_is_open_is_not_used() {
    let disk = two_records();
    let live = live(&disk.bytes());
    let store = open(&disk).unwrap();
    for block in live {
        disk.write_at((block * BLOCK) as u64, &[7; BLOCK]).unwrap();
    }
    // What was opened is in memory; a change that needs a page from the disk is refused by name.
    assert_eq!(store.get(&reference(PASSWORD)).unwrap().unwrap().expose(), PLAIN);
    let outcomes: Vec<_> = (0..3).map(|_| store.put(&secret(USER, NEWER), 3, &id())).collect();
    for error in outcomes.into_iter().filter_map(Result::err) {
        assert!(matches!(&error, StoreError::Disk(error) if is_changed(error)), "{error}");
    }
    assert_eq!(store.get(&reference(PASSWORD)).unwrap().unwrap().expose(), PLAIN);
    assert!(open(&disk).is_err());
}

#[test]
fn a_file_holds_one_store_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let file = || {
        std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).unwrap()
    };
    file().set_len(4 << 20).unwrap();
    let store = Store::create(FileDisk::new(file()).unwrap(), keys(1)).unwrap();
    store.put(&secret(PASSWORD, PLAIN), 1, &id()).unwrap();
    assert_eq!(FileDisk::new(file()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let root = store.root();
    drop(store);
    let store = Store::open(FileDisk::new(file()).unwrap(), keys(1), Some(&root)).unwrap();
    assert_eq!(store.get(&reference(PASSWORD)).unwrap().unwrap().expose(), PLAIN);
    drop(store);
    let read_only = std::fs::File::open(&path).unwrap();
    assert_eq!(Store::open(FileDisk::new(read_only).unwrap(), keys(1), Some(&root)).unwrap().root(), root);
    let made = Store::create(FileDisk::new(file()).unwrap(), keys(1));
    assert!(matches!(made, Err(StoreError::Disk(DiskError::Occupied))));
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]
    /// Whatever is put and removed, also across restarts, is what a map would hold.
    #[test]
    fn a_store_is_a_map(steps in prop::collection::vec((0_u8..4, 0_u8..12, 0_usize..20_000), 1..40)) {
        let disk = MemoryDisk::new(8 << 20);
        let mut store = Store::create(disk.clone(), keys(1)).unwrap();
        let mut model = std::collections::BTreeMap::new();
        for (kind, name, length) in steps {
            let name = reference(&format!("secret://app/n{name}/f"));
            match kind {
                0 => {
                    prop_assert_eq!(store.remove(&name, &id()).is_ok(), model.remove(&name).is_some());
                }
                1 => {
                    let root = store.root();
                    drop(store);
                    store = Store::open(disk.clone(), keys(1), Some(&root)).unwrap();
                    prop_assert_eq!(store.root(), root);
                }
                _ => {
                    let value = vec![u8::try_from(length % 251).unwrap(); length];
                    store.put(&secret(name.as_str(), &value), 0, &id()).unwrap();
                    model.insert(name, value);
                }
            }
        }
        prop_assert_eq!(store.list().len(), model.len());
        for (name, value) in model {
            let held = store.get(&name).unwrap().unwrap();
            prop_assert_eq!(held.expose(), &value[..]);
        }
    }
}
