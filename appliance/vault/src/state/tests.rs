//! Every byte of the sheets, and every way in which a write of one can be cut off.

use super::key::{self, Cost, Secret, StateKey, secret};
use super::lineage::Current;
use super::sheet::{self, Found, Header, SHEET, Sheet};
use super::slot::{Image, Set, Slot, Way};
use super::survey::{OnDisk, decide};
use super::*;
use crate::Operators;

/// What a digest vouches for, and the digest.
const SIGNED: usize = 6184;

/// The Ed25519 public key of RFC 8032's first test.
const OPERATOR: [u8; 32] = [
    0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a, 0x0e,
    0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
];

struct Made {
    header: Header,
    current: Current,
    state: StateKey,
    recovery: Secret,
    sheets: [Vec<u8>; 2],
}

/// A state with all three ways, on two sheets.
fn made() -> Made {
    let boot = Boot {
        repository: "acme/shop".parse().unwrap(),
        mrtd: [1; 48],
        rtmr: [[2; 48], [3; 48], [4; 48]],
        release: "v0.1.0".into(),
    };
    let operators = Operators::new([("alice", OPERATOR)]).unwrap();
    let current = Current::first(&boot, &operators);
    let header = Header { identity: [7; 16], length: MIN_DISK, repository: boot.repository.clone() };
    let mut state = StateKey(secret());
    state.0.fill(9);
    let recovery = key::recovery_key(&[5; 32], &[6; 16]).unwrap();
    let ways = [
        (Way::Recovery, recovery.clone()),
        (Way::Passphrase(Cost::new(8192, 1).unwrap()), secret()),
        (Way::Shares(Set::new([8; 8], 2, 3).unwrap()), secret()),
    ];
    let slots: Vec<Slot> = ways
        .into_iter()
        .map(|(way, key)| {
            let image = Image::of(&boot).unwrap();
            Slot::seal(way, [6; 16], image, [1; 24], &header.write(), &key, &state).unwrap()
        })
        .collect();
    let sheet_key = state.sheet().unwrap();
    let sheets = [2, 1].map(|number| {
        let nonce = [number as u8; 24];
        Sheet::seal(header.clone(), number, current.clone(), (0, slots.clone()), nonce, &sheet_key)
            .unwrap()
            .write()
    });
    Made { header, current, state, recovery, sheets }
}

fn look(sheets: &[Vec<u8>; 2]) -> Result<OnDisk, StateError> {
    let [first, second] = sheets;
    decide(Found::look(first), Found::look(second))
}

/// Opens with the recovery key as [`Sealed::unseal`] does: the slot, and then both sheets.
fn opens(made: &Made, on_disk: &OnDisk) -> bool {
    let OnDisk::Sealed { sheet, other, .. } = on_disk else { return false };
    let recovery = sheet.slots.iter().find(|slot| slot.way == Way::Recovery);
    let Some(state) = recovery.and_then(|slot| slot.open(&sheet.header.write(), &made.recovery)) else {
        return false;
    };
    assert_eq!(state.0, made.state.0);
    let key = state.sheet().unwrap();
    [Some(sheet), other.as_ref()].into_iter().flatten().all(|sheet| sheet.verify(&key))
}

#[test]
fn a_sheet_is_read_as_it_was_written() {
    let made = made();
    let found = look(&made.sheets).unwrap();
    assert!(opens(&made, &found));
    let OnDisk::Sealed { sheet, other: Some(_), place: 0 } = found else { panic!("{found:?}") };
    assert_eq!((sheet.write(), sheet.number, &sheet.header), (made.sheets[0].clone(), 2, &made.header));
}

#[test]
fn no_byte_of_a_sheet_changes_unnoticed() {
    let made = made();
    for place in 0..2 {
        let mut sheets = made.sheets.clone();
        for byte in 0..SHEET {
            sheets[place][byte] ^= 0x20;
            match look(&sheets) {
                Ok(OnDisk::Sealed { other: None, place: whole, .. }) => assert_eq!(whole, 1 - place),
                Ok(found) => panic!("{place} {byte}: {found:?}"),
                Err(error) => assert!(matches!(error, StateError::Format(_)), "{place} {byte}: {error}"),
            }
            sheets[place][byte] ^= 0x20;
        }
    }
}

/// A host that knows the format makes the digest right again.
#[test]
fn no_byte_of_a_sheet_changes_with_its_digest() {
    let made = made();
    for place in 0..2 {
        for byte in 0..SIGNED {
            let mut sheets = made.sheets.clone();
            sheets[place][byte] ^= 0x01;
            let digest = sheet::digest(&sheets[place][..SIGNED]);
            sheets[place][SIGNED..SIGNED + 32].copy_from_slice(&digest);
            match look(&sheets) {
                // The other one is in force, and that is said.
                Ok(OnDisk::Sealed { other: None, .. }) => assert!(byte < 16, "{place} {byte}"),
                Ok(found) => assert!(!opens(&made, &found), "{place} {byte}"),
                Err(StateError::Altered | StateError::TwoStates | StateError::Format(_)) => {}
                Err(error) => panic!("{place} {byte}: {error}"),
            }
        }
    }
}

#[test]
fn two_sheets_of_two_states_are_no_state() {
    let made = made();
    let mut other = made.header.clone();
    other.identity = [8; 16];
    let Ok(OnDisk::Sealed { sheet, .. }) = look(&made.sheets) else { panic!("no sheet") };
    let key = made.state.sheet().unwrap();
    let of = |header: &Header, number| {
        let (current, slots) = (made.current.clone(), (0, sheet.slots.clone()));
        Sheet::seal(header.clone(), number, current, slots, [1; 24], &key).unwrap().write()
    };
    let stranger = of(&other, 1);
    assert!(matches!(look(&[made.sheets[0].clone(), stranger]), Err(StateError::TwoStates)));
    // One number, two contents.
    let twin = of(&made.header, 2);
    assert!(matches!(look(&[made.sheets[0].clone(), twin]), Err(StateError::TwoStates)));
}

/// A write of a sheet that is cut off anywhere leaves the other one, whichever was there before.
#[test]
fn a_torn_sheet_leaves_the_other() {
    let made = made();
    let older: Vec<u8> = made.sheets[1].clone();
    let whole = |found: &OnDisk| opens(&made, found);
    let cuts = (0..SIGNED + 64).chain((SIGNED..=SHEET).step_by(997));
    for cut in cuts.step_by(3) {
        for before in [vec![0; SHEET], sheet::mark(), older.clone()] {
            let torn = [&made.sheets[0][..cut], &before[cut..]].concat();
            assert!(whole(&look(&[torn.clone(), older.clone()]).unwrap()), "{cut}");
            assert!(whole(&look(&[older.clone(), torn]).unwrap()), "{cut}");
        }
    }
}

/// Each step of making a state, cut off anywhere: a state that opens, or one that can be made anew.
#[test]
fn a_state_that_was_not_finished_is_made_anew() {
    let made = made();
    let (blank, mark) = (vec![0; SHEET], sheet::mark());
    let unfinished = |sheets| matches!(look(&sheets), Ok(OnDisk::Blank { unfinished: true }));
    for cut in 1..=16 {
        let torn = [&mark[..cut], &blank[cut..]].concat();
        assert!(unfinished([torn, blank.clone()]), "{cut}");
    }
    assert!(matches!(look(&[blank.clone(), blank.clone()]), Ok(OnDisk::Blank { unfinished: false })));
    for cut in 0..SHEET {
        if !(cut < SIGNED + 64 || cut % 997 == 0) {
            continue;
        }
        let front = [&made.sheets[1][..cut], &blank[cut..]].concat();
        let back = [&blank[..cut], &made.sheets[1][cut..]].concat();
        for torn in [front, back] {
            let finished = torn == made.sheets[1];
            let found = look(&[mark.clone(), torn]).unwrap();
            assert!(finished && opens(&made, &found) || matches!(found, OnDisk::Blank { unfinished: true }));
        }
    }
    // Without the whole mark nothing that is not zero is ours to overwrite.
    let torn = [&mark[..15], &blank[15..]].concat();
    for [first, second] in [
        [torn, vec![1; SHEET]],
        [blank.clone(), vec![1; SHEET]],
        [vec![1; SHEET], blank.clone()],
        [blank.clone(), mark.clone()],
        [vec![0xff; SHEET], vec![1; SHEET]],
    ] {
        assert!(matches!(look(&[first, second]), Err(StateError::NotOurs)));
    }
    let mut damaged = made.sheets[0].clone();
    damaged[1700] = 1;
    assert!(matches!(look(&[damaged.clone(), blank]), Err(StateError::Damaged)));
    assert!(matches!(look(&[damaged.clone(), damaged]), Err(StateError::Damaged)));
}

#[test]
fn a_slot_asks_for_no_more_than_it_may() {
    let made = made();
    let Ok(OnDisk::Sealed { sheet, .. }) = look(&made.sheets) else { panic!("no sheet") };
    let [_, passphrase, shares] = [0, 1, 2].map(|place: usize| sheet.slots[place].write());
    let with = |slot: &[u8], at: usize, value: &[u8]| {
        let mut slot = slot.to_vec();
        slot[at..at + value.len()].copy_from_slice(value);
        Slot::read(&slot)
    };
    assert!(with(&passphrase, 0, &[1]).is_some() && with(&shares, 0, &[2]).is_some());
    for memory in [0, 1, 8191, 128 * 1024 + 1, u32::MAX] {
        assert_eq!(with(&passphrase, 4, &memory.to_be_bytes()), None, "{memory}");
    }
    for passes in [0, 17, u32::MAX] {
        assert_eq!(with(&passphrase, 8, &passes.to_be_bytes()), None, "{passes}");
    }
    for (at, value) in
        [(12, 2), (3, 0x10), (0, 0), (0, 4), (1, 1), (16, 1), (248, 0), (248, 64), (250, 7), (511, 1)]
    {
        let value = if at == 12 { vec![0, 0, 0, value] } else { vec![value] };
        assert_eq!(with(&passphrase, at, &value), None, "{at}");
    }
    for (threshold, number) in [(0, 3), (1, 3), (4, 3), (2, 17), (255, 255)] {
        assert_eq!(with(&shares, 1, &[threshold, number]), None, "{threshold} of {number}");
    }
}

proptest::proptest! {
    /// Whatever stands there: no panic, and what is taken for a sheet is the only way to write it.
    #[test]
    fn any_bytes_have_a_name(
        bytes in proptest::collection::vec(proptest::num::u8::ANY, SHEET),
        from_made in proptest::bool::ANY,
        at in 0_usize..SIGNED,
        fix in proptest::bool::ANY,
    ) {
        let mut sheet = bytes;
        if from_made {
            let whole = made().sheets[0].clone();
            let end = (at + 40).min(SIGNED);
            let changed = sheet[at..end].to_vec();
            sheet = whole;
            sheet[at..end].copy_from_slice(&changed);
        }
        if fix {
            let digest = sheet::digest(&sheet[..SIGNED]);
            sheet[SIGNED..SIGNED + 32].copy_from_slice(&digest);
        }
        if let Found::Sheet(found) = Found::look(&sheet) {
            assert_eq!(found.write(), sheet);
        }
    }
}
