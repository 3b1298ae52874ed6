//! The formats against their frozen vectors, which another implementation of them has made.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cofferdam_attest::shares::{self, Share};
use serde_json::Value;

use super::attempts::{self, Attempts};
use super::key::{self, Cost, StateKey, secret};
use super::lineage::Current;
use super::sheet::{Found, Header, SHEET, Sheet};
use super::slot::{Image, Set, Slot, Way};

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../../policy/vectors/state-slots.json")).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_str().unwrap().parse().unwrap()
}

fn padded(value: &Value, length: usize) -> Vec<u8> {
    let mut bytes = bytes(value);
    bytes.resize(length, 0);
    bytes
}

fn state_key(vectors: &Value) -> StateKey {
    let mut key = secret();
    key.copy_from_slice(&bytes(&vectors["state_key"]));
    StateKey(key)
}

fn header(vectors: &Value) -> Header {
    Header {
        identity: array(&vectors["identity"]),
        length: number(&vectors["disk_length"]),
        repository: vectors["repository"].as_str().unwrap().parse().unwrap(),
    }
}

fn current(vectors: &Value, vector: &Value) -> Current {
    Current {
        version: number(&vector["version"]),
        repository: vector["repository"].as_str().unwrap().parse().unwrap(),
        mrtd: array(&vectors["mrtd"]),
        rtmr: [1, 2].map(|place| array(&vectors["rtmr"][place])),
        release: vector["release"].as_str().unwrap().into(),
        operators: vector["operators"].as_array().unwrap().iter().map(array).collect(),
    }
}

fn slots(vectors: &Value) -> Vec<Slot> {
    let slots = vectors["slots"].as_array().unwrap();
    assert_eq!(slots.len(), 4);
    slots.iter().map(|slot| Slot::read(&bytes(&slot["slot"])).unwrap()).collect()
}

#[test]
fn keys_are_those_of_the_vectors() {
    let vectors = vectors();
    let key = state_key(&vectors);
    let derived = &vectors["derived"];
    assert_eq!(key.vault().unwrap().expose(), &array(&derived["vault"]));
    assert_eq!(**key.volumes().unwrap(), array(&derived["volumes"]));
    assert_eq!(**key.sheet().unwrap(), array(&derived["sheet"]));
}

#[test]
fn slots_are_written_and_opened_as_in_the_vectors() {
    let vectors = vectors();
    let (state, header) = (state_key(&vectors), header(&vectors).write());
    assert_eq!(header, bytes(&vectors["header"]));
    let image = Image {
        mrtd: array(&vectors["mrtd"]),
        rtmr: [0, 1, 2].map(|place| array(&vectors["rtmr"][place])),
        release: vectors["release"].as_str().unwrap().into(),
    };
    for vector in vectors["slots"].as_array().unwrap() {
        let salt = array(&vector["salt"]);
        let small = |name: &str| vector[name].as_u64().unwrap() as u32;
        let (way, key) = match vector["kind"].as_str().unwrap() {
            "passphrase" => {
                let cost = Cost::new(small("memory_kib"), small("passes")).unwrap();
                let key = key::passphrase_key(&bytes(&vector["passphrase"]), &salt, cost).unwrap();
                (Way::Passphrase(cost), key)
            }
            "shares" => {
                let (threshold, shares) = (small("threshold") as u8, small("shares") as u8);
                let set = Set::new(array(&vector["set"]), threshold, shares).unwrap();
                (Way::Shares(set), key::shares_key(&array(&vector["shared_key"]), &salt).unwrap())
            }
            "peer" => {
                let key = key::peer_key(&array(&vector["server_key"]), &salt).unwrap();
                (Way::Peer(array(&vector["server"])), key)
            }
            _ => (Way::Recovery, key::recovery_key(&array(&vector["recovery"]), &salt).unwrap()),
        };
        assert_eq!(**key, array(&vector["key"]), "{way:?}");
        let nonce = array(&vector["nonce"]);
        let slot = Slot::seal(way, salt, image.clone(), nonce, &header, &key, &state).unwrap();
        assert_eq!(slot.write(), bytes(&vector["slot"]), "{way:?}");
        let read = Slot::read(&bytes(&vector["slot"])).unwrap();
        assert_eq!(read.open(&header, &key).unwrap().0, state.0);
        assert!(read.open(&header, &secret()).is_none());
    }
}

#[test]
fn sheets_are_written_and_read_as_in_the_vectors() {
    let vectors = vectors();
    let key = state_key(&vectors).sheet().unwrap();
    for vector in vectors["sheets"].as_array().unwrap() {
        let (number, nonce) = (number(&vector["number"]), array(&vector["nonce"]));
        let current = current(&vectors, &vector["current"]);
        // Absent where they are as they were made.
        let changes = vector.get("changes").map_or(0, self::number);
        let slots = (changes, slots(&vectors));
        let sheet = Sheet::seal(header(&vectors), number, current, slots, nonce, &key).unwrap();
        let written = padded(&vector["sheet"], SHEET);
        assert_eq!(sheet.write(), written);
        let Found::Sheet(found) = Found::look(&written) else { panic!("{number} is no sheet") };
        assert!(found.verify(&key) && !found.verify(&secret()));
        assert_eq!(*found, sheet);
    }
}

#[test]
fn what_the_vectors_refuse_is_refused() {
    let vectors = vectors();
    let refused = vectors["refused"].as_array().unwrap();
    assert!(refused.len() > 10);
    for vector in refused {
        let found = Found::look(&padded(&vector["sheet"], SHEET));
        let damaged = vector["why"] == "the digest is not right";
        assert!(
            matches!((&found, damaged), (Found::Altered, false) | (Found::Damaged, true)),
            "{vector} {found:?}"
        );
    }
}

#[test]
fn shares_are_those_of_the_vectors() {
    let vectors = vectors();
    let key = array(&vectors["slots"][1]["shared_key"]);
    let coefficients: Vec<u8> = vectors["coefficients"].as_array().unwrap().iter().flat_map(bytes).collect();
    let drawn = |buffer: &mut [u8]| {
        buffer.copy_from_slice(&coefficients);
        Ok::<(), ()>(())
    };
    let divided = shares::split(&key, 3, 5, drawn).unwrap();
    let expected = vectors["shares"].as_array().unwrap();
    assert_eq!(divided.len(), expected.len());
    for (share, vector) in divided.iter().zip(expected) {
        assert_eq!(u64::from(share.index), vector["index"].as_u64().unwrap());
        assert_eq!(*share.bytes, array(&vector["share"]));
    }
    let some: Vec<Share> = [4, 0, 2].map(|place: usize| divided[place].clone()).into();
    assert_eq!(*shares::combine(&some).unwrap(), key);
}

#[test]
fn attempts_are_those_of_the_vectors() {
    let vectors = vectors();
    for vector in vectors["attempts"].as_array().unwrap() {
        let block = padded(&vector["block"], attempts::BLOCK);
        let wrong = vector["wrong"].as_u64().unwrap() as u32;
        let found = Attempts::read([&block, &vec![0; attempts::BLOCK]]);
        assert_eq!((found.wrong, found.next, found.damaged), (wrong, 1, false));
        if number(&vector["number"]) == 1 {
            let none = vec![0; attempts::BLOCK];
            assert_eq!(Attempts::read([&none, &none]).write(wrong).0, block);
        }
    }
}
