//! Replacing what opens a state that is open: the former way opens nothing afterwards, whatever the host keeps of the slots and whenever the
//! power goes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

mod common;

use std::sync::Arc;

use cofferdam_attest::operator::seal_key;
use cofferdam_attest::shares;
use cofferdam_protocol::unseal::{
    MAX_PASSPHRASE, Method, NewKey, NewMethod, OpeningKey, RekeyRequest, SealDisk, Sealable as _,
};
use cofferdam_vault::state::{Cost, MIN_DISK, STORE, Sealed, StateError};
use cofferdam_vault::{Answer, Disk as _, Grants, Keys, MasterKey, Rules, Store, Vault, Window};
use common::state::*;
use common::{FRONT, NOW, PUBLISH, id, signed};

const OTHER: &str = "another long passphrase";
const NEW_RECOVERY: [u8; 32] = [0x77; 32];

/// A state that is open, as the vault holds it after the launch.
struct Running {
    store: Store,
    slots: Sealed,
}

fn run(disk: &SparseDisk, request: &cofferdam_protocol::unseal::UnsealRequest) -> Running {
    let sealed = find(disk).unwrap();
    sealed.unseal(request).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut key = *runtime.block_on(sealed.opened()).keys.vault.expose();
    let keys = Keys::derive(MasterKey::take(&mut key)).unwrap();
    let store = Store::open(Window::new(Arc::new(disk.clone()), STORE).unwrap(), keys, None).unwrap();
    Running { store, slots: find(disk).unwrap().with_cost(Cost::new(8192, 1).unwrap()) }
}

fn by_passphrase(text: &str) -> OpeningKey {
    OpeningKey::Passphrase { passphrase: secret_bytes(text) }
}

fn new_passphrase(text: &str) -> NewKey {
    NewKey::Method(NewMethod::Passphrase { passphrase: secret_bytes(text) })
}

impl Running {
    fn rekey(&self, key: OpeningKey, new: NewKey) -> Result<(), StateError> {
        self.slots.rekey(&self.store, &RekeyRequest { key, new })
    }
}

fn opens(disk: &SparseDisk, request: &cofferdam_protocol::unseal::UnsealRequest) -> Result<(), StateError> {
    // On a copy: attempts are counted there.
    find(&disk.copy()).unwrap().unseal(request).map(drop)
}

/// The key slots of a disk, as a host keeps them.
fn slots_of(disk: &SparseDisk) -> [Vec<u8>; 2] {
    [0, 32 * 1024].map(|place| disk.bytes(place, 28 * 1024))
}

fn put_back(disk: &SparseDisk, slots: &[Vec<u8>; 2]) {
    for (place, bytes) in [0, 32 * 1024].into_iter().zip(slots) {
        disk.write_at(place, bytes).unwrap();
    }
}

#[test]
fn a_new_passphrase_opens_the_state_and_the_former_one_nothing_not_even_with_the_slots_of_before() {
    let disk = made();
    let running = run(&disk, &passphrase(PASSPHRASE));
    let before = slots_of(&disk);
    running.rekey(by_passphrase(PASSPHRASE), new_passphrase(OTHER)).unwrap();
    drop(running);
    assert!(matches!(opens(&disk, &passphrase(PASSPHRASE)), Err(StateError::WrongPassphrase)));
    opens(&disk, &passphrase(OTHER)).unwrap();
    opens(&disk, &recovery(&RECOVERY)).unwrap();
    // The host puts one or both of the sheets back.
    for place in [0, 1] {
        let one = disk.copy();
        let mut slots = slots_of(&disk);
        slots[place].clone_from(&before[place]);
        put_back(&one, &slots);
        assert!(opens(&one, &passphrase(PASSPHRASE)).is_err());
        opens(&one, &passphrase(OTHER)).unwrap();
        // And destroys the other one.
        slots[1 - place] = vec![0xEE; 28 * 1024];
        put_back(&one, &slots);
        assert!(opens(&one, &passphrase(PASSPHRASE)).is_err());
    }
    put_back(&disk, &before);
    let refused = opens(&disk, &passphrase(PASSPHRASE));
    assert!(matches!(refused, Err(StateError::OlderSlots { sheet: 0, store: 1 })), "{refused:?}");
}

#[test]
fn shares_take_the_place_of_the_passphrase_and_a_new_recovery_key_of_the_old_one() {
    let disk = made();
    let running = run(&disk, &passphrase(PASSPHRASE));
    let key = [0x4c; 32];
    let method = NewMethod::Shares { key: secret_bytes(key), set: SET.into(), threshold: 2, shares: 3 };
    running.rekey(by_passphrase(PASSPHRASE), NewKey::Method(method)).unwrap();
    let recovery_key = || OpeningKey::Recovery { recovery: secret_bytes(RECOVERY) };
    running.rekey(recovery_key(), NewKey::Recovery { recovery: secret_bytes(NEW_RECOVERY) }).unwrap();
    let ways = [Method::Shares { set: SET.into(), threshold: 2, shares: 3, given: 0 }, Method::Recovery];
    assert_eq!(find(&disk).unwrap().status().methods, ways);
    assert!(matches!(opens(&disk, &passphrase(PASSPHRASE)), Err(StateError::NoSuchWay)));
    assert!(matches!(opens(&disk, &recovery(&RECOVERY)), Err(StateError::WrongRecovery)));
    opens(&disk, &recovery(&NEW_RECOVERY)).unwrap();
    let divided = shares::split(&key, 2, 3, getrandom::fill).unwrap();
    let sealed = find(&disk.copy()).unwrap();
    for given in &divided[..2] {
        sealed.unseal(&share(SET, given.index, &*given.bytes)).unwrap();
    }
    assert_eq!(sealed.status().disk, SealDisk::Open);
    let gone = running.rekey(recovery_key(), new_passphrase(OTHER));
    assert!(matches!(gone, Err(StateError::WrongRecovery)), "{gone:?}");
}

#[test]
fn a_wrong_key_replaces_nothing_and_makes_the_next_one_wait() {
    let disk = made();
    let running = run(&disk, &passphrase(PASSPHRASE));
    let before = slots_of(&disk);
    let wrong = running.rekey(by_passphrase("not this passphrase"), new_passphrase(OTHER));
    assert!(matches!(wrong, Err(StateError::WrongPassphrase)), "{wrong:?}");
    let next = running.rekey(by_passphrase(PASSPHRASE), new_passphrase(OTHER));
    assert!(matches!(next, Err(StateError::Wait { .. })), "{next:?}");
    assert_eq!(slots_of(&disk), before);
    let running = run(&made(), &passphrase(PASSPHRASE));
    for (key, new) in [
        (
            OpeningKey::Share { set: SET.into(), index: 1, share: secret_bytes([1; 32]) },
            new_passphrase(OTHER),
        ),
        (by_passphrase(PASSPHRASE), NewKey::Method(NewMethod::Peer {})),
        (by_passphrase(PASSPHRASE), new_passphrase("short")),
        (by_passphrase(PASSPHRASE), new_passphrase(&"x".repeat(MAX_PASSPHRASE + 1))),
        (by_passphrase(PASSPHRASE), NewKey::Recovery { recovery: secret_bytes([1; 31]) }),
    ] {
        assert!(running.rekey(key, new).is_err());
    }
    running.rekey(by_passphrase(PASSPHRASE), new_passphrase(OTHER)).unwrap();
}

/// The host puts another state's slots on the disk of one that runs: one of which it knows the passphrase.
#[test]
fn the_slots_of_another_state_are_not_changed() {
    let disk = made();
    let running = run(&disk, &passphrase(PASSPHRASE));
    put_back(&disk, &slots_of(&made()));
    let swapped = Running { slots: find(&disk).unwrap(), ..running };
    let refused = swapped.rekey(by_passphrase(PASSPHRASE), new_passphrase(OTHER));
    assert!(matches!(refused, Err(StateError::OtherSlots)), "{refused:?}");
}

/// The power goes at each write, and each write may be torn.
#[test]
fn after_a_power_cut_exactly_one_of_both_opens_the_state_and_after_an_answer_the_new_one() {
    let made = made();
    // So that the store has a commit of an opening, as every state that runs.
    drop(run(&made, &passphrase(PASSPHRASE)));
    let mut answered = 0;
    for writes in 0..1000 {
        let disk = made.copy();
        let running = run(&disk, &passphrase(PASSPHRASE));
        disk.with(|disk| disk.writes = writes);
        let outcome = running.rekey(by_passphrase(PASSPHRASE), new_passphrase(OTHER));
        disk.with(|disk| disk.writes = usize::MAX);
        drop(running);
        let (old, new) = (opens(&disk, &passphrase(PASSPHRASE)), opens(&disk, &passphrase(OTHER)));
        // A wait is left of an attempt that was counted and not taken back; the recovery key says that all is whole.
        if !matches!(old, Err(StateError::Wait { .. })) {
            assert!(old.is_ok() != new.is_ok(), "after {writes} writes: {old:?} {new:?}");
        }
        if outcome.is_ok() {
            assert!(new.is_ok(), "after {writes} writes: {new:?}");
            answered += 1;
            if answered == 3 {
                return;
            }
        }
    }
    panic!("it never ended");
}

/// Each byte of the sheet that is being written may be the last that reached the disk.
#[test]
fn a_torn_sheet_leaves_the_former_way_or_the_new_one() {
    let disk = made();
    let running = run(&disk, &passphrase(PASSPHRASE));
    let before = slots_of(&disk);
    running.rekey(by_passphrase(PASSPHRASE), new_passphrase(OTHER)).unwrap();
    let after = slots_of(&disk);
    drop(running);
    // The first write goes over the older sheet, the second over the other one.
    let first = if before[0] == after[0] { 1 } else { usize::from(number(&before[0]) > number(&before[1])) };
    for cut in (0..6300).step_by(97) {
        let mut torn = after.clone();
        torn[1 - first].clone_from(&before[1 - first]);
        torn[1 - first][..cut].copy_from_slice(&after[1 - first][..cut]);
        let copy = disk.copy();
        put_back(&copy, &torn);
        // The store has committed: the new one opens it, the former one nothing.
        opens(&copy, &passphrase(OTHER)).unwrap();
        assert!(opens(&copy, &passphrase(PASSPHRASE)).is_err(), "{cut}");
    }
}

/// The number of a sheet.
fn number(sheet: &[u8]) -> u64 {
    u64::from_be_bytes(sheet[192..200].try_into().unwrap())
}

/// The way of an operator's request.
fn vault(disk: &SparseDisk) -> Vault {
    let Running { store, slots } = run(disk, &passphrase(PASSPHRASE));
    let rules = Rules {
        grants: Grants::default(),
        affected: [].into(),
        operators: operators(),
        front_uid: FRONT,
        publish_uid: PUBLISH,
        services: [].into(),
        restarts_with: [].into(),
        min_value: common::MIN,
    };
    Vault::new(store, rules, || NOW, |_| {}).with_slots(slots)
}

fn ask(vault: &Vault, key: [u8; 32], request: &RekeyRequest) -> Answer {
    let sealed = seal_key(&key, &request.write().unwrap()).unwrap();
    let body = serde_json::to_vec(&sealed).unwrap();
    vault.operate(FRONT, &signed("POST", "/v1/seal/rekey", &body, &id()))
}

#[test]
fn operators_ask_for_it_sealed_to_the_vault_and_each_request_counts_once() {
    let disk = SparseDisk::new(MIN_DISK);
    find(&disk).unwrap().unseal(&create_request()).unwrap();
    let vault = vault(&disk);
    let request = || RekeyRequest { key: by_passphrase(PASSPHRASE), new: new_passphrase(OTHER) };
    assert_eq!(ask(&vault, [9; 32], &request()).status, 400, "sealed to somebody else");
    assert_eq!(vault.operate(FRONT, &signed("GET", "/v1/seal/rekey", b"", &id())).status, 405);
    assert_eq!(vault.operate(FRONT + 1, &signed("POST", "/v1/seal/rekey", b"", &id())).status, 403);
    let body =
        serde_json::to_vec(&seal_key(&vault.public_key(), &request().write().unwrap()).unwrap()).unwrap();
    let sent = signed("POST", "/v1/seal/rekey", &body, &id());
    assert_eq!(vault.operate(FRONT, &sent).status, 204);
    assert_eq!(vault.operate(FRONT, &sent).status, 409, "a front sends it again");
    assert_eq!(ask(&vault, vault.public_key(), &request()).status, 403, "the former passphrase");
    opens(&disk, &recovery(&RECOVERY))
        .unwrap_or_else(|error| assert!(matches!(error, StateError::Wait { .. })));
    // In memory there is nothing to replace.
    let memory = common::vault(&common::disk());
    assert_eq!(ask(&memory, memory.public_key(), &request()).status, 409);
}
