//! Records and statements against their frozen vectors, which another implementation of them has made.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

use std::cell::Cell;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cofferdam_protocol::upgrade::SignedStatement;
use cofferdam_protocol::{SecretRef, SecretValue};
use cofferdam_vault::{Keys, MasterKey, Operators, record};
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

fn statements() -> Value {
    serde_json::from_str(include_str!("../../../policy/vectors/upgrade.json")).unwrap()
}

#[track_caller]
fn statement(vector: &Value) -> SignedStatement {
    SignedStatement::parse(vector["file"].as_str().unwrap().as_bytes()).unwrap()
}

fn holds(vectors: &Value, signed: &SignedStatement) -> bool {
    let signer = Operators::new([("signer", bytes(&vectors["public_key"]).try_into().unwrap())]).unwrap();
    assert_eq!(signed.key.to_string(), vectors["key"].as_str().unwrap());
    let input = signed.statement.signing_input().unwrap();
    signer.verify(&signed.key, &signed.signature, &input).is_ok()
}

#[test]
fn statements_are_read_and_signed_as_in_the_vectors() {
    use ed25519_dalek::{Signer as _, SigningKey};
    let vectors = statements();
    let key = SigningKey::from_bytes(&bytes(&vectors["seed"]).try_into().unwrap());
    let accepted = vectors["accepted"].as_array().unwrap();
    assert_eq!(accepted.len(), 4);
    for vector in accepted {
        let signed = statement(vector);
        let input = signed.statement.signing_input().unwrap();
        assert_eq!(input, bytes(&vector["signing_input"]));
        assert_eq!(signed.statement.digest().unwrap().to_string(), vector["digest"].as_str().unwrap());
        assert_eq!(key.sign(&input).to_bytes(), *signed.signature.as_bytes());
        assert!(holds(&vectors, &signed) && signed.statement.to.is_ordered());
    }
}

#[test]
fn statements_that_the_vectors_refuse_are_refused() {
    let vectors = statements();
    let all = |name: &str| vectors[name].as_array().unwrap().clone();
    assert!(all("refused").len() > 15 && all("unordered").len() > 3 && all("forged").len() > 5);
    for vector in all("refused") {
        assert!(SignedStatement::parse(vector["file"].as_str().unwrap().as_bytes()).is_err(), "{vector}");
    }
    for vector in all("unordered") {
        let signed = statement(&vector);
        assert!(holds(&vectors, &signed) && !signed.statement.to.is_ordered(), "{vector}");
    }
    for vector in all("forged") {
        assert!(!holds(&vectors, &statement(&vector)), "{vector}");
    }
}
