//! The state on a disk: made, opened, and everything that is refused, each by its name.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

mod common;

use cofferdam_protocol::unseal::{Method, NewMethod, SealDisk, UnsealRequest};
use cofferdam_vault::state::{MIN_DISK, STORE, Sealed, StateError};
use cofferdam_vault::{Keys, Store, Window};
use common::state::*;
use common::{id, secret};

#[track_caller]
fn refused(sealed: &Sealed, request: &UnsealRequest) -> StateError {
    sealed.unseal(request).unwrap_err()
}

fn opened(sealed: &Sealed) -> cofferdam_vault::state::Opened {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(sealed.opened())
}

/// Puts a secret into the store of an open state, and says its epoch.
fn put(disk: &SparseDisk, sealed: &Sealed) -> u64 {
    let place = Window::new(std::sync::Arc::new(disk.clone()), STORE).unwrap();
    let keys = Keys::derive(opened(sealed).keys.vault).unwrap();
    let store = Store::open(place, keys, None).unwrap();
    store.put(&secret("secret://a/b/c", b"value"), 0, &id()).unwrap();
    store.root().epoch
}

#[test]
fn a_state_is_made_and_opens_with_each_way() {
    let disk = SparseDisk::new(MIN_DISK);
    let sealed = find(&disk).unwrap();
    let status = sealed.status();
    assert_eq!((status.disk, status.methods.len(), status.wait_ms), (SealDisk::Blank, 0, 0));
    assert!(sealed.notices().is_empty());
    let status = sealed.unseal(&create_request()).unwrap();
    assert_eq!((status.disk, status.methods.len()), (SealDisk::Open, 0));
    let made = opened(&sealed);
    assert!(made.fresh && made.epoch > 0);
    assert!(matches!(refused(&sealed, &create_request()), StateError::Open));

    let mut by = Vec::new();
    for request in [passphrase(PASSPHRASE), recovery(&RECOVERY)] {
        let sealed = find(&disk).unwrap();
        assert_eq!(sealed.status().methods, [Method::Passphrase, Method::Recovery]);
        assert!(sealed.notices().is_empty());
        assert_eq!(sealed.unseal(&request).unwrap().disk, SealDisk::Open);
        let again = opened(&sealed);
        assert!(!again.fresh);
        assert_eq!(again.keys.vault.expose(), made.keys.vault.expose());
        assert_eq!(*again.keys.volumes, *made.keys.volumes);
        assert_eq!(again.epoch, made.epoch);
        by.push(again.opened_by);
        assert_eq!(format!("{:?}", again.keys), "[redacted:state keys]");
    }
    assert_eq!(by[0], made.opened_by);
    assert_ne!(by[1], by[0], "what opened it is told apart");
}

#[test]
fn a_state_with_shares_opens_with_enough_of_them() {
    let (disk, shares) = made_with_shares();
    for choice in [[0, 1, 2], [4, 2, 0], [3, 1, 4]] {
        let sealed = find(&disk).unwrap();
        for (given, place) in (1..).zip(choice) {
            let share = common::state::share(SET, shares[place].index, &*shares[place].bytes);
            let status = sealed.unseal(&share).unwrap();
            if given < 3 {
                let count = Method::Shares { set: SET.into(), threshold: 3, shares: 5, given };
                assert_eq!((status.disk, status.methods[0]), (SealDisk::Sealed, count));
            } else {
                assert_eq!(status.disk, SealDisk::Open);
            }
        }
        assert!(!opened(&sealed).fresh);
    }
}

#[test]
fn what_a_secret_was_put_into_opens_again_and_an_older_copy_does_not() {
    let disk = made();
    let old = disk.copy();
    let sealed = find(&disk).unwrap();
    sealed.unseal(&recovery(&RECOVERY)).unwrap();
    let epoch = put(&disk, &sealed);
    let sealed = find(&disk).unwrap();
    sealed.unseal(&at_least(epoch)).unwrap();
    assert_eq!(opened(&sealed).epoch, epoch);
    let sealed = find(&old).unwrap();
    let error = refused(&sealed, &at_least(epoch));
    assert!(matches!(error, StateError::OlderCopy { found, expected } if found < epoch && expected == epoch));
    assert_eq!(sealed.status().disk, SealDisk::Sealed);
    assert!(matches!(refused(&find(&disk).unwrap(), &at_least(epoch + 1)), StateError::OlderCopy { .. }));
}

#[test]
fn a_blank_disk_opens_with_nothing_and_a_state_is_not_made_over_one() {
    let disk = SparseDisk::new(MIN_DISK);
    let sealed = find(&disk).unwrap();
    assert!(matches!(refused(&sealed, &passphrase(PASSPHRASE)), StateError::Blank));
    let disk = made();
    let before = disk.copy();
    assert!(matches!(refused(&find(&disk).unwrap(), &create_request()), StateError::Occupied));
    assert!(disk.same(&before));
}

#[test]
fn what_no_state_can_have_is_refused_before_anything_is_written() {
    let long = "x".repeat(1025);
    let method = |text: &str| NewMethod::Passphrase { passphrase: secret_bytes(text) };
    let shares = |threshold, shares| NewMethod::Shares {
        key: secret_bytes([1; 32]),
        set: SET.into(),
        threshold,
        shares,
    };
    let disk = SparseDisk::new(MIN_DISK);
    let sealed = find(&disk).unwrap();
    let create = |method, recovery: &[u8]| {
        let request = UnsealRequest::Create { method, recovery: secret_bytes(recovery) };
        refused(&sealed, &request)
    };
    for text in ["", "elevenbytes", &long] {
        assert!(matches!(create(method(text), &RECOVERY), StateError::Passphrase { .. }));
    }
    let binary = NewMethod::Passphrase { passphrase: secret_bytes([0xff; 20]) };
    assert!(matches!(create(binary, &RECOVERY), StateError::Passphrase { .. }));
    for length in [0, 31, 33] {
        assert!(matches!(create(method(PASSPHRASE), &vec![1; length]), StateError::KeyLength));
    }
    let short = NewMethod::Shares { key: secret_bytes([1; 31]), set: SET.into(), threshold: 2, shares: 3 };
    assert!(matches!(create(short, &RECOVERY), StateError::KeyLength));
    for (threshold, number) in [(0, 0), (1, 3), (4, 3), (2, 17), (17, 17), (255, 255)] {
        assert!(matches!(create(shares(threshold, number), &RECOVERY), StateError::Shares { .. }));
    }
    assert!(disk.same(&SparseDisk::new(MIN_DISK)));
}

#[test]
fn wrong_keys_have_their_names_and_say_no_more() {
    let (disk, shares) = made_with_shares();
    let sealed = find(&disk).unwrap();
    let give = |set, index, bytes: &[u8]| sealed.unseal(&share(set, index, bytes));
    assert!(matches!(refused(&sealed, &passphrase(PASSPHRASE)), StateError::NoSuchWay));
    assert!(matches!(give(*b"another.", 1, &[1; 32]), Err(StateError::OtherSet)));
    for index in [0, 6, 255] {
        assert!(matches!(give(SET, index, &[1; 32]), Err(StateError::NoSuchShare { .. })));
    }
    assert!(matches!(give(SET, 1, &[1; 31]), Err(StateError::KeyLength)));
    give(SET, 1, &*shares[0].bytes).unwrap();
    assert!(matches!(give(SET, 1, &*shares[0].bytes), Err(StateError::ShareTwice(1))));
    // One that was corrupted shows when they are enough, and all are forgotten.
    let mut corrupted = shares[1].bytes.clone();
    corrupted[31] ^= 1;
    give(SET, 2, &*corrupted).unwrap();
    assert!(matches!(give(SET, 3, &*shares[2].bytes), Err(StateError::WrongShares)));
    let given = sealed.status().methods[0];
    assert!(matches!(given, Method::Shares { given: 0, .. }));
    assert!(matches!(give(SET, 1, &*shares[0].bytes), Err(StateError::Wait { ms: 1..=1000 })));

    let sealed = find(&made()).unwrap();
    assert!(matches!(refused(&sealed, &share(SET, 1, &[1; 32])), StateError::NoSuchWay));
    assert!(matches!(refused(&sealed, &passphrase("too short")), StateError::Passphrase { .. }));
    assert!(matches!(refused(&sealed, &recovery(&[0x53; 32])), StateError::WrongRecovery));
    let sealed = find(&made()).unwrap();
    let wrong = refused(&sealed, &passphrase("correct horse battery stapler"));
    assert!(matches!(wrong, StateError::WrongPassphrase));
    assert_eq!(wrong.to_string(), "the passphrase does not open the state");
}
