//! Volumes of a state: they get their places as it is made or opened, keep them, and have a key of their own.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

mod common;

use std::sync::Arc;

use cofferdam_protocol::unseal::SealDisk;
use cofferdam_vault::state::{MIN_DISK, Opened, STORE, Sealed, StateError};
use cofferdam_vault::{Keys, Store, StoreError, VolumeError, Wanted, Window};
use common::state::*;

const MIB: u64 = 1 << 20;
const ROOM: u64 = 100;

fn disk() -> SparseDisk {
    SparseDisk::new(MIN_DISK + ROOM * MIB)
}

fn with(disk: &SparseDisk, wanted: &[(&str, u64)]) -> Sealed {
    let wanted = wanted.iter().map(|(name, mib)| Wanted { name: (*name).to_owned(), size: mib * MIB });
    find(disk).unwrap().with_volumes(wanted.collect())
}

fn opened(sealed: &Sealed) -> Opened {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(sealed.opened())
}

/// Offset in MiB, whether it was made, and the key of each.
type Places = Vec<(u64, bool, [u8; 32])>;

fn places(opened: &Opened) -> Places {
    let of = opened.keys.volumes.iter();
    of.map(|known| ((known.volume.offset - STORE.end) / MIB, known.volume.made, **known.key)).collect()
}

fn open(disk: &SparseDisk, wanted: &[(&str, u64)]) -> Result<Places, StateError> {
    let sealed = with(disk, wanted);
    sealed.unseal(&recovery(&RECOVERY))?;
    Ok(places(&opened(&sealed)))
}

fn store(disk: &SparseDisk, opened: Opened) -> Store {
    let place = Window::new(Arc::new(disk.clone()), STORE).unwrap();
    Store::open(place, Keys::derive(opened.keys.vault).unwrap(), None).unwrap()
}

fn made_with(wanted: &[(&str, u64)]) -> (SparseDisk, Places) {
    let disk = disk();
    let sealed = with(&disk, wanted);
    sealed.unseal(&create_request()).unwrap();
    let places = places(&opened(&sealed));
    (disk, places)
}

#[test]
fn places_and_keys_stay_whatever_is_declared_later() {
    let (disk, made) = made_with(&[("a", 40), ("b", 30)]);
    assert_eq!([made[0].0, made[1].0], [0, 40]);
    assert_ne!(made[0].2, made[1].2, "each has a key of its own");
    // Not declared any more, and back again; a new one goes behind, in any order of the declaration.
    assert_eq!(open(&disk, &[("b", 30)]).unwrap(), [made[1]]);
    let three = open(&disk, &[("c", 30), ("b", 30), ("a", 40)]).unwrap();
    assert_eq!((three[0].0, &three[1..]), (70, &[made[1], made[0]][..]));
    assert!(matches!(open(&disk, &[]), Ok(none) if none.is_empty()));
    assert_eq!(open(&disk, &[("c", 30)]).unwrap(), three[..1]);
    // Another state has other keys at the same places.
    let (_, other) = made_with(&[("a", 40)]);
    assert!(other[0].0 == made[0].0 && other[0].2 != made[0].2);
}

#[test]
fn a_volume_is_made_once_and_a_store_from_before_volumes_opens() {
    let disk = disk();
    find(&disk).unwrap().unseal(&create_request()).unwrap();
    let first = open(&disk, &[("a", 1), ("b", 1)]).unwrap();
    assert!(!first[0].1 && !first[1].1);
    let sealed = with(&disk, &[("a", 1), ("b", 1)]);
    sealed.unseal(&recovery(&RECOVERY)).unwrap();
    let store = store(&disk, opened(&sealed));
    let epoch = store.root().epoch;
    store.volumes_made(["b"].into_iter()).unwrap();
    assert_eq!(store.root().epoch, epoch + 1);
    // Said again, as after a restart of the role: nothing to commit.
    store.volumes_made(["b"].into_iter()).unwrap();
    store.volumes_made(std::iter::empty()).unwrap();
    assert_eq!(store.root().epoch, epoch + 1);
    let unknown = store.volumes_made(["b", "c"].into_iter()).unwrap_err();
    assert!(matches!(unknown, StoreError::Volume(VolumeError::Table(_))));
    drop(store);
    let again = open(&disk, &[("a", 1), ("b", 1)]).unwrap();
    assert_eq!([again[0].1, again[1].1], [false, true]);
}

#[test]
fn without_room_or_with_another_size_the_state_stays_closed_and_as_it_was() {
    let empty = disk();
    let sealed = with(&empty, &[("a", 60), ("b", 41)]);
    let error = sealed.unseal(&create_request()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no room for the volume b: it takes 41 MiB, and of the state disk's free 40 MiB the largest piece has 40"
    );
    assert!(empty.same(&disk()), "nothing was written to a blank disk");
    assert_eq!(sealed.status().disk, SealDisk::Blank);

    let (disk, _) = made_with(&[("a", 60)]);
    let refused = |wanted: &[(&str, u64)]| {
        let before = disk.bytes(STORE_START, 4 << 20);
        let sealed = with(&disk, wanted);
        let error = sealed.unseal(&recovery(&RECOVERY)).unwrap_err();
        assert_eq!(disk.bytes(STORE_START, 4 << 20), before, "the store is as it was");
        assert_eq!(sealed.status().disk, SealDisk::Sealed);
        error
    };
    for size in [59, 61] {
        let text = format!(
            "the volume a has 60 MiB, and {size} MiB are declared: the size of a volume does not change"
        );
        assert_eq!(refused(&[("b", 1), ("a", size)]).to_string(), text);
    }
    let error = refused(&[("b", 1), ("c", 40)]);
    assert!(matches!(error, StateError::Store(StoreError::Volume(VolumeError::NoRoom { .. }))));
    // What was refused left no place behind.
    assert_eq!(open(&disk, &[("d", 40)]).unwrap()[0].0, 60);
}

/// The power is cut after each write of an opening that gives places: each volume has its place afterwards, and one place only.
#[test]
fn a_power_cut_while_places_are_given_gives_none_twice() {
    let (start, made) = made_with(&[("a", 40)]);
    let wanted = [("b", 20), ("a", 40), ("c", 40)];
    let mut cut = 0;
    for writes in 0.. {
        let disk = start.copy();
        disk.with(|disk| disk.writes = writes);
        let outcome = open(&disk, &wanted);
        disk.with(|disk| disk.writes = usize::MAX);
        let Ok(after) = outcome else {
            cut += 1;
            // The attempt was counted; the host can set the count back.
            for count in [28 * 1024, 60 * 1024] {
                cofferdam_vault::Disk::write_at(&disk, count, &[0; 4096]).unwrap();
            }
            let after = open(&disk, &wanted).unwrap();
            assert_eq!([after[0].0, after[1].0, after[2].0], [40, 0, 60]);
            assert_eq!(after[1], made[0]);
            assert_eq!(open(&disk, &wanted).unwrap(), after);
            continue;
        };
        assert_eq!(open(&disk, &wanted).unwrap(), after);
        break;
    }
    assert!(cut >= 6, "{cut}");
}
