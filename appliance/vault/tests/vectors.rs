//! The record format against its frozen vectors, which another implementation of it has made.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

use std::cell::Cell;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cofferdam_protocol::{SecretRef, SecretValue};
use cofferdam_vault::{Keys, MasterKey, record};
use serde_json::Value;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../policy/vectors/vault-record.json")).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_str().unwrap().parse().unwrap()
}

fn keys(vectors: &Value) -> Keys {
    Keys::derive(MasterKey::take(&mut bytes(&vectors["master_key"]).try_into().unwrap())).unwrap()
}

#[test]
fn keys_are_those_of_the_vectors() {
    let vectors = vectors();
    assert_eq!(keys(&vectors).id(), *bytes(&vectors["key_id"]));
    assert_eq!(keys(&vectors).public_key(), *bytes(&vectors["public_key"]));
}

#[test]
fn records_are_written_and_read_as_in_the_vectors() {
    let vectors = vectors();
    let keys = keys(&vectors);
    for vector in vectors["records"].as_array().unwrap() {
        let reference = vector["reference"].as_str().unwrap().parse::<SecretRef>().unwrap();
        let (version, updated_at) = (number(&vector["version"]), number(&vector["updated_at"]));
        let (header, value) = record::open(&keys, &reference, &bytes(&vector["record"])).unwrap();
        assert_eq!((header.version, header.updated_at), (version, updated_at));
        assert_eq!(value.expose(), bytes(&vector["value"]));

        // The random numbers in the order in which they are drawn.
        let drawn = ["data_key", "key_nonce", "value_nonce"].map(|name| bytes(&vector[name]));
        let next = Cell::new(0);
        let random = |buffer: &mut [u8]| {
            buffer.copy_from_slice(&drawn[next.replace(next.get() + 1)]);
            Ok(())
        };
        let secret = SecretValue::new(reference, bytes(&vector["value"]));
        let written = record::seal(&keys, &secret, version, updated_at, random).unwrap();
        assert_eq!(written, bytes(&vector["record"]), "{secret}");
    }
}

#[test]
fn what_the_vectors_refuse_is_refused() {
    let vectors = vectors();
    let keys = keys(&vectors);
    let refused = vectors["refused"].as_array().unwrap();
    assert!(refused.len() > 10);
    for vector in refused {
        let reference = vector["reference"].as_str().unwrap().parse::<SecretRef>().unwrap();
        assert!(record::open(&keys, &reference, &bytes(&vector["record"])).is_err(), "{}", vector["why"]);
    }
}
