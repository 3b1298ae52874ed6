//! Who may open a state: the image, repository and operators that it was left to, or those that a statement names.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

mod common;

use cofferdam_protocol::unseal::{OpeningKey, SealDisk, UnsealRequest, Witness};
use cofferdam_protocol::upgrade::{SignedStatement, Statement, Successor};
use cofferdam_protocol::{Fingerprint, base64};
use cofferdam_vault::state::{Boot, Cost, LineageError, MIN_DISK, Notice, Opened, STORE, Sealed, StateError};
use cofferdam_vault::{Keys, Operators, Store, Window};
use common::state::*;
use common::{FRONT, operator_key, secret};
use ed25519_dalek::{Signer as _, SigningKey};

const SHEETS: [u64; 2] = [0, 32 * 1024];
const SHEET: usize = 28 * 1024;

/// One appliance: what boots, and whose declaration it runs.
#[derive(Clone)]
struct Side {
    boot: Boot,
    operators: Vec<SigningKey>,
}

/// The image that makes the state.
fn a() -> Side {
    Side { boot: boot(), operators: vec![operator_key()] }
}

/// The next one.
fn b() -> Side {
    let mut b = a();
    b.boot.rtmr[2] = [0xB2; 48];
    b.boot.release = "v0.2.0".into();
    b
}

fn stranger() -> SigningKey {
    SigningKey::from_bytes(&[0x66; 32])
}

impl Side {
    fn find(&self, disk: &SparseDisk) -> Result<Sealed, StateError> {
        let keys: Vec<[u8; 32]> = self.operators.iter().map(|key| key.verifying_key().to_bytes()).collect();
        let operators = Operators::new(keys.iter().map(|key| ("somebody", *key))).unwrap();
        let sealed = Sealed::find(disk.clone(), self.boot.clone(), operators, FRONT, |_| {})?;
        Ok(sealed.with_cost(Cost::new(8192, 1).unwrap()))
    }

    fn made(&self) -> SparseDisk {
        let disk = SparseDisk::new(MIN_DISK);
        self.find(&disk).unwrap().unseal(&create_request()).unwrap();
        disk
    }

    fn open(&self, disk: &SparseDisk, upgrade: Option<&SignedStatement>) -> Result<Opened, StateError> {
        let sealed = self.find(disk)?;
        sealed.unseal(&opening(upgrade))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        Ok(runtime.block_on(sealed.opened()))
    }

    /// Refused with this error, and the disk stays as it is.
    #[track_caller]
    fn refused(&self, disk: &SparseDisk, upgrade: Option<&SignedStatement>) -> LineageError {
        let before = disk.copy();
        let error = self.open(disk, upgrade).unwrap_err();
        assert!(disk.same(&before), "{error}");
        let StateError::Lineage(error) = error else { panic!("{error:?}") };
        error
    }

    /// What lets this side open a state of [`a`]'s repository.
    fn allowed(&self, version: u64) -> Statement {
        let mut operators: Vec<_> =
            self.operators.iter().map(|key| key.verifying_key().to_bytes().into()).collect();
        operators.sort_by_key(|key: &cofferdam_protocol::Base64Array<32>| *key.as_bytes());
        let [_, rtmr1, rtmr2] = self.boot.rtmr;
        let (repository, mrtd) = (self.boot.repository.clone(), self.boot.mrtd);
        let to = Successor { repository, mrtd, rtmr1, rtmr2, operators };
        Statement { version, from: a().boot.repository, to }
    }

    fn statement(&self, version: u64) -> SignedStatement {
        signed(&operator_key(), self.allowed(version))
    }
}

fn signed(key: &SigningKey, statement: Statement) -> SignedStatement {
    let signature = key.sign(&statement.signing_input().unwrap()).to_bytes().into();
    SignedStatement { statement, key: Fingerprint::of(&key.verifying_key().to_bytes()), signature }
}

fn opening(upgrade: Option<&SignedStatement>) -> UnsealRequest {
    let key = OpeningKey::Recovery { recovery: secret_bytes(RECOVERY) };
    UnsealRequest::Open {
        key,
        at_least: 0,
        witness: Witness::default(),
        upgrade: upgrade.cloned().map(Box::new),
    }
}

fn sheets(disk: &SparseDisk) -> [Vec<u8>; 2] {
    SHEETS.map(|place| disk.bytes(place, SHEET))
}

fn put_back(disk: &SparseDisk, sheets: &[Vec<u8>; 2]) {
    use cofferdam_vault::Disk as _;
    SHEETS.iter().zip(sheets).for_each(|(place, sheet)| disk.write_at(*place, sheet).unwrap());
}

#[test]
fn the_next_image_opens_with_a_statement_and_the_one_before_does_not_any_more() {
    let disk = a().made();
    let made = a().open(&disk, None).unwrap();
    assert_eq!((made.lineage, made.upgrade), (1, None));
    let text = b().refused(&disk, None).to_string();
    assert_eq!(text, "the state was sealed by another image, v0.1.0: its RTMR2 is not this one's");

    let statement = b().statement(2);
    let opened = b().open(&disk, Some(&statement)).unwrap();
    assert_eq!(opened.lineage, 2);
    let upgrade = opened.upgrade.unwrap();
    assert_eq!((upgrade.statement, upgrade.signer), (statement.statement.digest().unwrap(), statement.key));
    assert_eq!(opened.keys.vault.expose(), made.keys.vault.expose(), "the same state");
    assert!(b().find(&disk).unwrap().notices().is_empty());

    // From now on it is B's.
    let again = b().open(&disk, None).unwrap();
    assert_eq!((again.lineage, again.upgrade), (2, None));
    let other = LineageError::OtherImage { release: "v0.2.0".into(), register: "RTMR2" };
    assert_eq!(a().refused(&disk, None), other);
    // The statement is used up, for both.
    let version = |statement, state| LineageError::Version { statement, state };
    assert_eq!(b().refused(&disk, Some(&statement)), version(2, 2));
    assert_eq!(a().refused(&disk, Some(&a().statement(1))), version(1, 2));
    assert_eq!(a().refused(&disk, Some(&a().statement(2))), version(2, 2));
    assert_eq!(a().refused(&disk, Some(&a().statement(0))), version(0, 2));
    // A way back is another statement.
    assert_eq!(a().open(&disk, Some(&a().statement(9))).unwrap().lineage, 9);
    assert_eq!(b().refused(&disk, Some(&b().statement(9))), version(9, 9));
    assert_eq!(a().open(&disk, None).unwrap().lineage, 9);
}

#[test]
fn each_measurement_counts_and_the_machines_shape_does_not() {
    let disk = a().made();
    type Change = dyn Fn(&mut Boot);
    let changes: [(&'static str, &Change); 3] = [
        ("MRTD", &|boot| boot.mrtd[47] ^= 1),
        ("RTMR1", &|boot| boot.rtmr[1][0] ^= 1),
        ("RTMR2", &|boot| boot.rtmr[2][0] ^= 1),
    ];
    for (register, change) in changes {
        let mut side = a();
        change(&mut side.boot);
        let other = LineageError::OtherImage { release: "v0.1.0".into(), register };
        assert_eq!(side.refused(&disk, None), other);
        // A statement for the image that is there already, or for a third one.
        assert_eq!(side.refused(&disk, Some(&a().statement(2))), LineageError::ToImage { register });
        let mut third = side.allowed(2);
        third.to.rtmr2[5] ^= 1;
        let third = signed(&operator_key(), third);
        assert!(matches!(side.refused(&disk, Some(&third)), LineageError::ToImage { .. }));
        side.open(&disk.copy(), Some(&side.statement(2))).unwrap();
    }
    // More memory, another name of the same image, another case of the repository's name: the same appliance.
    let mut same = a();
    same.boot.rtmr[0] = [9; 48];
    same.boot.release = "v0.1.1".into();
    same.boot.repository = "Acme/Shop".parse().unwrap();
    same.open(&disk, None).unwrap();
    for release in ["", "two words", "line\n", "\u{e9}", &"x".repeat(64)] {
        let mut side = a();
        side.boot.release = release.into();
        assert!(matches!(side.find(&disk).unwrap_err(), StateError::Release(63)));
    }
}

#[test]
fn only_an_operator_of_the_state_allows_it() {
    let disk = a().made();
    let by_stranger = signed(&stranger(), b().allowed(2));
    assert_eq!(b().refused(&disk, Some(&by_stranger)), LineageError::Stranger(by_stranger.key));
    // Said to be the operator's, which it is not.
    let claimed = SignedStatement { key: b().statement(2).key, ..by_stranger.clone() };
    assert_eq!(b().refused(&disk, Some(&claimed)), LineageError::Signature);
    // Signed, and changed behind that.
    let mut changed = b().statement(2);
    changed.statement.version = 3;
    assert_eq!(b().refused(&disk, Some(&changed)), LineageError::Signature);
    for byte in 0..64 {
        let mut signature = *b().statement(2).signature.as_bytes();
        signature[byte] ^= 0x20;
        let altered = SignedStatement { signature: signature.into(), ..b().statement(2) };
        assert_eq!(b().refused(&disk, Some(&altered)), LineageError::Signature, "{byte}");
    }
    // A stranger whose own declaration names themselves is no operator of the state.
    let mut theirs = b();
    theirs.operators = vec![stranger()];
    let statement = signed(&stranger(), theirs.allowed(2));
    assert_eq!(theirs.refused(&disk, Some(&statement)), LineageError::Stranger(statement.key));
    // A signature for something else that an operator signs is none for this.
    let request = cofferdam_protocol::operator::signing_input("POST", "/v1/unseal", b"", &[0; 32]);
    let signature = operator_key().sign(&request).to_bytes().into();
    let moved = SignedStatement { signature, ..b().statement(2) };
    assert_eq!(b().refused(&disk, Some(&moved)), LineageError::Signature);
}

#[test]
fn another_repository_opens_with_a_statement_only() {
    let disk = a().made();
    let mut renamed = a();
    renamed.boot.repository = "acme/store".parse().unwrap();
    let error = renamed.refused(&disk, None);
    assert_eq!(error.to_string(), "the state was sealed by an appliance of acme/shop");
    // A statement for A's name, and one about another state.
    let to = LineageError::ToRepository("acme/shop".parse().unwrap());
    assert_eq!(renamed.refused(&disk, Some(&b().statement(2))), to);
    let mut about = renamed.allowed(2);
    about.from = "acme/other".parse().unwrap();
    let about = signed(&operator_key(), about);
    assert!(matches!(renamed.refused(&disk, Some(&about)), LineageError::From { .. }));
    assert_eq!(renamed.open(&disk, Some(&renamed.statement(2))).unwrap().lineage, 2);
    renamed.open(&disk, None).unwrap();
    let other = LineageError::OtherRepository("acme/store".parse().unwrap());
    assert_eq!(a().refused(&disk, None), other);
    // It is about the state of the new name from now on.
    assert!(matches!(a().refused(&disk, Some(&a().statement(3))), LineageError::From { .. }));
}

#[test]
fn other_operators_open_with_a_statement_of_one_of_the_old_ones_only() {
    let disk = a().made();
    let mut more = a();
    more.operators = vec![stranger(), operator_key()];
    let mut less = a();
    less.operators = vec![stranger()];
    for side in [&more, &less] {
        assert_eq!(side.refused(&disk, None), LineageError::OtherOperators);
        assert_eq!(side.refused(&disk, Some(&a().statement(2))), LineageError::ToOperators);
        let own = signed(&stranger(), side.allowed(2));
        assert!(matches!(side.refused(&disk, Some(&own)), LineageError::Stranger(_)));
    }
    // The operators of a statement are in order and none twice; otherwise they are no declaration's.
    let mut twice = more.allowed(2);
    twice.to.operators.reverse();
    assert_eq!(more.refused(&disk, Some(&signed(&operator_key(), twice))), LineageError::ToOperators);
    more.open(&disk, Some(&more.statement(2))).unwrap();
    // Each of them counts now, and then only the new one.
    let next = signed(&stranger(), less.allowed(3));
    assert_eq!(less.open(&disk, Some(&next)).unwrap().upgrade.unwrap().signer, next.key);
    assert!(matches!(a().refused(&disk, Some(&a().statement(4))), LineageError::Stranger(_)));
    assert_eq!(a().refused(&disk, None), LineageError::OtherOperators);
}

#[test]
fn older_sheets_beside_a_newer_store_open_nothing() {
    let disk = a().made();
    let old = sheets(&disk);
    b().open(&disk, Some(&b().statement(2))).unwrap();
    let new = sheets(&disk);
    assert_eq!(new[0], new[1]);
    put_back(&disk, &old);
    let before = disk.copy();
    let older = LineageError::OlderSheet { sheet: 1, store: 2 };
    let name = |error: StateError| match error {
        StateError::Lineage(error) => error,
        error => panic!("{error:?}"),
    };
    assert_eq!(name(a().open(&disk, None).unwrap_err()), older);
    assert_eq!(name(b().open(&disk, Some(&b().statement(3))).unwrap_err()), older);
    assert_eq!(sheets(&disk), sheets(&before), "nothing but the count of attempts has changed");
    // One of each: the newer one counts, and the older one is replaced.
    for place in 0..2 {
        let mut one_of_each = new.clone();
        one_of_each[place] = old[place].clone();
        put_back(&disk, &one_of_each);
        assert!(matches!(a().refused(&disk, None), LineageError::OtherImage { .. }));
        b().open(&disk, None).unwrap();
        assert_eq!(sheets(&disk), new);
    }
}

/// Every write of an opening with a statement is the last one: then the state is A's or B's as before, or B's without the statement.
#[test]
fn a_power_cut_while_a_statement_is_used_leaves_a_state_that_opens() {
    let made = a().made();
    a().open(&made, None).unwrap();
    let (mut before, mut after) = (0, 0);
    for writes in 0.. {
        let disk = made.copy();
        disk.with(|disk| disk.writes = writes);
        let outcome = b().open(&disk, Some(&b().statement(2)));
        disk.with(|disk| disk.writes = usize::MAX);
        forget_attempts(&disk);
        match b().open(&disk.copy(), None) {
            Ok(opened) => {
                after += 1;
                assert_eq!(opened.lineage, 2);
                assert!(matches!(a().refused(&disk, None), LineageError::OtherImage { .. }));
            }
            Err(StateError::Lineage(LineageError::OtherImage { .. })) => {
                before += 1;
                assert!(outcome.is_err());
                a().open(&disk.copy(), None).unwrap();
                b().open(&disk, Some(&b().statement(2))).unwrap();
            }
            Err(error) => panic!("{writes}: {error}"),
        }
        if outcome.is_ok() {
            assert_eq!(sheets(&disk)[0], sheets(&disk)[1]);
            break;
        }
        // In the same boot as well.
        let sealed = b().find(&disk).unwrap();
        assert!(sealed.notices().iter().all(|notice| *notice == Notice::Sheet), "{:?}", sealed.notices());
    }
    assert!(before >= 3 && after >= 5, "{before} {after}");
}

/// A write of the new sheet that is torn anywhere leaves the old one.
#[test]
fn a_torn_sheet_of_a_statement_leaves_the_old_one() {
    let made = a().made();
    let old = sheets(&made);
    let upgraded = made.copy();
    b().open(&upgraded, Some(&b().statement(2))).unwrap();
    let new = sheets(&upgraded)[0].clone();
    let place = 1;
    for cut in (0..6216).step_by(61) {
        let disk = made.copy();
        let mut torn = old.clone();
        torn[place] = [&new[..cut], &old[place][cut..]].concat();
        put_back(&disk, &torn);
        a().open(&disk.copy(), None).unwrap();
        b().open(&disk, Some(&b().statement(2))).unwrap();
    }
}

/// The disk fails in the middle and works again: the same appliance goes on with what is there.
#[test]
fn a_failed_write_of_a_statement_is_looked_at_anew() {
    let disk = a().made();
    let sealed = b().find(&disk).unwrap();
    // The attempt, the attempt taken back, the sheet; not the store.
    disk.with(|disk| disk.writes = 3);
    assert!(matches!(sealed.unseal(&opening(Some(&b().statement(2)))), Err(StateError::Store(_))));
    disk.with(|disk| disk.writes = usize::MAX);
    let lineage = sealed.status().lineage.unwrap();
    assert_eq!((lineage.version, lineage.needs_statement), (2, None));
    assert_eq!(sealed.unseal(&opening(None)).unwrap().disk, SealDisk::Open);
}

#[test]
fn a_refusal_costs_no_attempt_and_comes_before_the_share() {
    let (disk, shares) = made_with_shares();
    let before = disk.copy();
    let sealed = b().find(&disk).unwrap();
    let with = |place: usize, upgrade: Option<SignedStatement>| {
        let share = secret_bytes(*shares[place].bytes);
        let key = OpeningKey::Share { set: SET.into(), index: shares[place].index, share };
        sealed.unseal(&UnsealRequest::Open {
            key,
            at_least: 0,
            witness: Witness::default(),
            upgrade: upgrade.map(Box::new),
        })
    };
    for place in 0..3 {
        assert!(matches!(with(place, None), Err(StateError::Lineage(LineageError::OtherImage { .. }))));
    }
    assert!(disk.same(&before));
    // Each share comes with the statement.
    for place in 0..2 {
        assert_eq!(with(place, Some(b().statement(2))).unwrap().disk, SealDisk::Sealed);
    }
    assert!(with(2, None).is_err());
    assert_eq!(with(2, Some(b().statement(2))).unwrap().disk, SealDisk::Open);
}

#[test]
fn the_status_says_who_may_open_it() {
    let disk = a().made();
    let lineage = |side: &Side| side.find(&disk).unwrap().status().lineage.unwrap();
    let own = lineage(&a());
    assert_eq!((own.version, own.release.as_str(), own.needs_statement.as_deref()), (1, "v0.1.0", None));
    assert_eq!(own.repository, a().boot.repository);
    assert_eq!([own.mrtd, own.rtmr1, own.rtmr2], [[1; 48], [3; 48], [4; 48]]);
    assert_eq!(own.operators, [Fingerprint::of(&operator_key().verifying_key().to_bytes())]);
    let why = "the state was sealed by another image, v0.1.0: its RTMR2 is not this one's";
    assert_eq!(lineage(&b()).needs_statement.as_deref(), Some(why));
    let blank = a().find(&SparseDisk::new(MIN_DISK)).unwrap().status();
    assert_eq!((blank.disk, blank.lineage), (SealDisk::Blank, None));
}

/// A whole disk of the first format with a lineage, as it was written then: made by A, left to B, with a secret. Another format has
/// a disk of its own, and this one goes on to open.
#[test]
fn the_disk_of_the_vectors_opens() {
    let text = include_str!("../../../policy/vectors/state-disk.json");
    let vector: serde_json::Value = serde_json::from_str(text).unwrap();
    let disk = SparseDisk::new(vector["length"].as_str().unwrap().parse().unwrap());
    let pieces = vector["pieces"].as_array().unwrap();
    assert!(pieces.len() > 8);
    for piece in pieces {
        use cofferdam_vault::Disk as _;
        let offset = piece["offset"].as_str().unwrap().parse().unwrap();
        disk.write_at(offset, &base64::decode(piece["bytes"].as_str().unwrap()).unwrap()).unwrap();
    }
    assert!(b().find(&disk).unwrap().notices().is_empty());
    assert!(matches!(a().refused(&disk, None), LineageError::OtherImage { .. }));
    let opened = b().open(&disk, None).unwrap();
    assert_eq!((opened.lineage, opened.fresh), (2, false));
    let place = Window::new(std::sync::Arc::new(disk), STORE).unwrap();
    let store = Store::open(place, Keys::derive(opened.keys.vault).unwrap(), None).unwrap();
    let value = store.get(&"secret://app/db/password".parse().unwrap()).unwrap().unwrap();
    assert_eq!(value.expose(), b"correct horse");
    assert_eq!(store.list().len(), 1);
}

/// Writes the disk of [`the_disk_of_the_vectors_opens`]: for a new format, beside the ones that there are.
#[test]
#[ignore = "writes a new disk to the file that STATE_DISK names"]
fn a_disk_is_written_for_the_vectors() {
    let disk = a().made();
    let opened = b().open(&disk, Some(&b().statement(2))).unwrap();
    let place = Window::new(std::sync::Arc::new(disk.clone()), STORE).unwrap();
    let store = Store::open(place, Keys::derive(opened.keys.vault).unwrap(), None).unwrap();
    store.put(&secret("secret://app/db/password", b"correct horse"), 0, &[1; 32]).unwrap();
    drop(store);
    let pieces = disk.pieces();
    let pieces = pieces.iter().map(
        |(offset, bytes)| serde_json::json!({ "offset": offset.to_string(), "bytes": base64::encode(bytes) }),
    );
    let about = "A disk of length bytes: zeros, but for these pieces. Its state was made by the image, repository and operator of \
        tests/lineage.rs with a passphrase (\"correct horse battery staple\") and a recovery key (32 bytes of 0x52), left to the next \
        image with a statement, which gave its lineage the version 2, and holds secret://app/db/password, \"correct horse\". Bytes are \
        base64, 64-bit numbers are texts.";
    let vector = serde_json::json!({
        "format": "a state disk with key slots of version 2",
        "about": about,
        "length": MIN_DISK.to_string(),
        "pieces": pieces.collect::<Vec<_>>(),
    });
    let text = format!("{}\n", serde_json::to_string_pretty(&vector).unwrap());
    std::fs::write(std::env::var_os("STATE_DISK").unwrap(), text).unwrap();
}

fn forget_attempts(disk: &SparseDisk) {
    use cofferdam_vault::Disk as _;
    [28 * 1024, 60 * 1024].iter().for_each(|place| disk.write_at(*place, &[0; 4096]).unwrap());
}
