//! The state on a disk: made, opened, and everything that is refused, each by its name.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

mod common;

use cofferdam_protocol::state::{Continuity, MAX_ANCHOR, Rollback};
use cofferdam_protocol::unseal::{GivenUp, Method, NewMethod, SealDisk, UnsealRequest, Witness};
use cofferdam_vault::state::{MIN_DISK, Notice, STORE, Sealed, StateError};
use cofferdam_vault::{Disk as _, DiskError, Keys, Store, StoreError, Window};
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

    let (mut by, mut epoch) = (Vec::new(), made.epoch);
    for request in [passphrase(PASSPHRASE), recovery(&RECOVERY)] {
        let sealed = find(&disk).unwrap();
        assert_eq!(sealed.status().methods, [Method::Passphrase, Method::Recovery]);
        assert!(sealed.notices().is_empty());
        assert_eq!(sealed.unseal(&request).unwrap().disk, SealDisk::Open);
        let again = opened(&sealed);
        assert!(!again.fresh);
        assert_eq!(again.keys.vault.expose(), made.keys.vault.expose());
        assert_eq!(again.epoch, epoch + 1, "each opening is a commit");
        epoch = again.epoch;
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
    let unchanged = disk.copy();
    sealed.unseal(&at_least(epoch)).unwrap();
    let opened = opened(&sealed).epoch;
    assert_eq!(opened, epoch + 1);
    // Nothing but the opening tells this copy from the disk.
    let error = refused(&find(&unchanged).unwrap(), &at_least(opened));
    assert!(matches!(error, StateError::OlderCopy { found, .. } if found == epoch));
    let sealed = find(&old).unwrap();
    let error = refused(&sealed, &at_least(epoch));
    assert!(matches!(error, StateError::OlderCopy { found, expected } if found < epoch && expected == epoch));
    assert_eq!(sealed.status().disk, SealDisk::Sealed);
    assert!(matches!(refused(&find(&disk).unwrap(), &at_least(opened + 1)), StateError::OlderCopy { .. }));
}

/// The declaration says what holds where no witness was asked, also against an operator's own client.
#[test]
fn without_a_witness_a_state_opens_and_is_made_only_where_that_is_declared() {
    let nobody = Witness { unwitnessed: true, ..Witness::default() };
    let UnsealRequest::Create { method, recovery, .. } = create_request() else { panic!() };
    let create = UnsealRequest::Create { method, recovery, witness: nobody };
    let blank = SparseDisk::new(MIN_DISK);
    let before = blank.copy();
    assert!(matches!(refused(&find(&blank).unwrap(), &create), StateError::Unwitnessed));
    assert!(blank.same(&before));
    let warned = |disk: &SparseDisk| find(disk).unwrap().with_rollback(Rollback::Warn);
    let sealed = warned(&blank);
    assert_eq!(sealed.status().rollback, Rollback::Warn);
    sealed.unseal(&create).unwrap();
    assert!(opened(&sealed).continuity.unwitnessed);

    let disk = made();
    let before = disk.copy();
    // Also with a wrong key, which is not looked at.
    for _ in 0..3 {
        assert!(matches!(refused(&find(&disk).unwrap(), &told(nobody)), StateError::Unwitnessed));
    }
    assert!(disk.same(&before));
    let sealed = warned(&disk);
    sealed.unseal(&told(nobody)).unwrap();
    assert!(opened(&sealed).continuity.unwitnessed);
    // The next one was witnessed again.
    let sealed = warned(&disk);
    sealed.unseal(&told(Witness::default())).unwrap();
    assert!(!opened(&sealed).continuity.unwitnessed);
    // An older copy is refused with either word.
    let sealed = warned(&disk);
    assert!(matches!(refused(&sealed, &at_least(99)), StateError::OlderCopy { .. }));
}

/// Whoever gives a state up has one that comes after it in every number: no witness takes it for the older one.
#[test]
fn a_state_comes_after_the_one_that_is_given_up() {
    let number = |number: u64| std::num::NonZeroU64::new(number).unwrap();
    let loss = |epoch: u64, anchor: u64| Witness {
        gives_up: Some(GivenUp { epoch: number(epoch), anchor }),
        ..Witness::default()
    };
    // On a blank disk.
    let disk = SparseDisk::new(MIN_DISK);
    let UnsealRequest::Create { method, recovery, .. } = create_request() else { panic!() };
    let sealed = find(&disk).unwrap();
    sealed.unseal(&UnsealRequest::Create { method, recovery, witness: loss(41, 6) }).unwrap();
    let fresh = opened(&sealed);
    assert!(fresh.fresh && fresh.epoch > 41, "{}", fresh.epoch);
    let expected = Continuity {
        anchor: number(7),
        first_anchor: number(7),
        unwitnessed: false,
        accepted_loss: Some(number(41)),
    };
    assert_eq!(fresh.continuity, expected);
    // It is no loss of the next boot's; where its anchors begin stays.
    let older = disk.copy();
    let sealed = find(&disk).unwrap();
    sealed.unseal(&at_least(fresh.epoch)).unwrap();
    let next = opened(&sealed);
    assert!(next.epoch > fresh.epoch);
    assert_eq!(next.continuity, Continuity { accepted_loss: None, ..expected });

    // An older copy, on purpose.
    let sealed = find(&older).unwrap();
    assert!(matches!(refused(&sealed, &at_least(next.epoch)), StateError::OlderCopy { .. }));
    sealed.unseal(&told(loss(next.epoch, 9))).unwrap();
    let copy = opened(&sealed);
    assert!(copy.epoch > next.epoch, "{} {}", copy.epoch, next.epoch);
    let (anchor, first_anchor) = (number(10), number(10));
    assert_eq!(
        copy.continuity,
        Continuity { anchor, first_anchor, accepted_loss: Some(number(next.epoch)), ..expected }
    );

    // Numbers that nothing can come after.
    for (epoch, anchor) in [(u64::MAX, 1), (1 << 62, 1), (99, u64::MAX), (99, MAX_ANCHOR)] {
        let before = older.copy();
        assert!(matches!(refused(&find(&older).unwrap(), &told(loss(epoch, anchor))), StateError::NoNumber));
        assert!(older.same(&before));
    }
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
        let request =
            UnsealRequest::Create { method, recovery: secret_bytes(recovery), witness: Witness::default() };
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

#[test]
fn what_is_no_state_disk_has_a_name_and_stays_as_it_is() {
    let named = |change: &dyn Fn(&SparseDisk)| {
        let disk = made();
        change(&disk);
        let before = disk.copy();
        let error = find(&disk).unwrap_err();
        assert!(disk.same(&before), "{error}");
        error
    };
    let write = |offset: u64, bytes: &[u8]| {
        let bytes = bytes.to_vec();
        move |disk: &SparseDisk| disk.write_at(offset, &bytes).unwrap()
    };
    let both = |offset: u64, byte: u8| {
        move |disk: &SparseDisk| {
            for sheet in [0, 32 * 1024] {
                disk.write_at(sheet + offset, &[byte]).unwrap();
            }
        }
    };
    let length = |length: u64| move |disk: &SparseDisk| disk.with(|disk| disk.length = length);
    assert!(matches!(named(&both(0, b'X')), StateError::NotOurs));
    for format in [1, 3] {
        assert!(matches!(named(&both(8, format)), StateError::Format(found) if found == format));
    }
    assert!(matches!(named(&both(2600, 0xA5)), StateError::Damaged));
    let cut = named(&length(100 << 20));
    assert!(matches!(cut, StateError::Truncated { length, expected: MIN_DISK } if length == 100 << 20));
    assert!(matches!(named(&length(MIN_DISK - 1)), StateError::Truncated { .. }));
    for long in [MIN_DISK + 1, 1 << 40, 1 << 63, u64::MAX] {
        assert!(matches!(named(&length(long)), StateError::Grown { length, .. } if length == long));
    }
    for short in [0, 1, 512, 64 * 1024 - 1] {
        assert!(matches!(named(&length(short)), StateError::TooSmall { .. }), "{short}");
    }
    for bad in [0, 28 * 1024, 40 * 1024, 64 * 1024 - 1] {
        let error = named(&|disk: &SparseDisk| disk.with(|disk| disk.unreadable = Some(bad)));
        assert!(matches!(error, StateError::Unreadable { .. }) && error.may_pass());
    }
    // What is in the way of a new state.
    for offset in [0, 30 * 1024, 33 * 1024, 64 * 1024, (1 << 20) - 1] {
        let disk = SparseDisk::new(MIN_DISK);
        write(offset, &[1])(&disk);
        assert!(matches!(find(&disk).unwrap_err(), StateError::NotOurs), "{offset}");
    }
    assert!(matches!(find(&SparseDisk::new(MIN_DISK - 1)).unwrap_err(), StateError::TooSmall { .. }));
    for offset in [STORE_START, STORE.end - 1] {
        let disk = SparseDisk::new(MIN_DISK);
        write(offset, &[1])(&disk);
        let before = disk.copy();
        let sealed = find(&disk).unwrap();
        assert!(matches!(refused(&sealed, &create_request()), StateError::Leftover));
        assert!(disk.same(&before));
    }
}

#[test]
fn one_damaged_sheet_is_noticed_and_written_anew() {
    for place in [0_u64, 32 * 1024] {
        let disk = made();
        let whole = disk.bytes(place ^ (32 * 1024), 28 * 1024);
        disk.write_at(place + 1000, &[0xA5; 512]).unwrap();
        let sealed = find(&disk).unwrap();
        assert_eq!(sealed.notices(), [Notice::Sheet]);
        refused(&sealed, &recovery(&[1; 32]));
        assert_eq!(find(&disk).unwrap().notices(), [Notice::Sheet], "a wrong key mends nothing");
        let sealed = find(&disk.copy()).unwrap();
        assert!(matches!(refused(&sealed, &recovery(&RECOVERY)), StateError::Wait { .. }));
        // The count is the host's to put back.
        for count in [28 * 1024, 60 * 1024] {
            disk.write_at(count, &[0; 4096]).unwrap();
        }
        find(&disk).unwrap().unseal(&recovery(&RECOVERY)).unwrap();
        assert_eq!(disk.bytes(place, 28 * 1024), whole);
        assert!(find(&disk).unwrap().notices().is_empty());
    }
}

#[test]
fn a_wait_survives_a_restart_and_ends_with_the_right_key() {
    let disk = made();
    for seconds in [1, 2, 4, 8] {
        let sealed = find(&disk).unwrap();
        let waited = sealed.status().wait_ms;
        assert!(waited <= seconds * 500 && waited + 200 > seconds / 2 * 1000, "{waited} {seconds}");
        // The next one waits out the former: the clock is the runtime's, so another disk's count is written instead.
        let clock = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        clock.unwrap().block_on(async {
            let sealed = find(&disk).unwrap();
            if seconds > 1 {
                assert!(matches!(refused(&sealed, &recovery(&RECOVERY)), StateError::Wait { .. }));
            }
            tokio::time::advance(std::time::Duration::from_millis(sealed.status().wait_ms)).await;
            assert!(matches!(refused(&sealed, &recovery(&[1; 32])), StateError::WrongRecovery));
            assert_eq!(sealed.status().wait_ms, seconds * 1000);
            assert!(matches!(refused(&sealed, &recovery(&RECOVERY)), StateError::Wait { .. }));
        });
    }
    let clock = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    clock.unwrap().block_on(async {
        let sealed = find(&disk).unwrap();
        assert_eq!(sealed.status().wait_ms, 8000);
        tokio::time::advance(std::time::Duration::from_secs(8)).await;
        sealed.unseal(&recovery(&RECOVERY)).unwrap();
    });
    assert_eq!(find(&disk).unwrap().status().wait_ms, 0);
}

/// A power cut in the middle of an attempt does not save it, and without the count there is no attempt.
#[test]
fn an_attempt_is_counted_before_it_is_made() {
    let disk = made();
    disk.with(|disk| disk.writes = 0);
    assert!(matches!(refused(&find(&disk).unwrap(), &recovery(&RECOVERY)), StateError::Write(_)));
    disk.with(|disk| disk.writes = 1);
    // The right key, and the count cannot be taken back.
    assert!(matches!(refused(&find(&disk).unwrap(), &recovery(&RECOVERY)), StateError::Write(_)));
    disk.with(|disk| disk.writes = usize::MAX);
    assert!(find(&disk).unwrap().status().wait_ms > 500);
}

/// Making a state is cut off after each of its writes. Then there is a state that opens, or it is made anew.
#[test]
fn a_power_cut_while_a_state_is_made_costs_nothing() {
    let (mut unfinished, mut there) = (0, 0);
    for writes in 0.. {
        let disk = SparseDisk::new(MIN_DISK);
        disk.with(|disk| disk.writes = writes);
        let outcome = find(&disk).unwrap().unseal(&create_request());
        disk.with(|disk| disk.writes = usize::MAX);
        let sealed = find(&disk).unwrap();
        match sealed.status().disk {
            SealDisk::Blank => {
                assert!(outcome.is_err());
                unfinished += usize::from(sealed.notices() == [Notice::Unfinished]);
                sealed.unseal(&create_request()).unwrap();
                let sealed = find(&disk).unwrap();
                sealed.unseal(&recovery(&RECOVERY)).unwrap();
                put(&disk, &sealed);
            }
            _ => {
                there += 1;
                sealed.unseal(&recovery(&RECOVERY)).unwrap();
            }
        }
        if outcome.is_ok() {
            break;
        }
    }
    assert!(unfinished >= 3 && there >= 2, "{unfinished} {there}");
}

#[test]
fn the_store_behind_the_slots_has_its_own_names() {
    let disk = made();
    disk.write_at(STORE_START + 3 * 4096, &[0; 4096]).unwrap();
    for block in [0, 1, 2] {
        disk.write_at(STORE_START + block * 4096, &[0; 4096]).unwrap();
    }
    let error = refused(&find(&disk).unwrap(), &recovery(&RECOVERY));
    assert!(matches!(error, StateError::Store(StoreError::Disk(DiskError::Absent))), "{error}");
    // The store of another state.
    let (disk, other) = (made(), made());
    let store = other.bytes(STORE_START, 1 << 20);
    disk.write_at(STORE_START, &store).unwrap();
    let error = refused(&find(&disk).unwrap(), &recovery(&RECOVERY));
    assert!(matches!(error, StateError::Store(StoreError::Disk(DiskError::OtherKey))), "{error}");
}

#[test]
fn nothing_that_is_secret_is_printed() {
    let sealed = find(&made()).unwrap();
    let mut printed = format!("{sealed:?} {:?}", create_request());
    for request in [passphrase("correct horse battery stapler"), recovery(&[0x53; 32])] {
        let error = sealed.unseal(&request).unwrap_err();
        printed += &format!(" {request:?} {error:?} {error}");
    }
    for secret in ["horse", "stapler", "83, 83", "SSSS", "UlJS"] {
        assert!(!printed.contains(secret), "{printed}");
    }
}
