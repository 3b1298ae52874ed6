//! The frozen vectors of signed commits: made by git and ssh-keygen, judged here.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use cofferdam_github::{MAX_PAYLOAD, MAX_SIGNATURE, SignatureError, verify};
use cofferdam_protocol::{Commit, SignerKey};
use serde_json::Value;

fn vectors() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../policy/vectors/signed-commit.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn keys(vectors: &Value, names: &Value) -> Vec<SignerKey> {
    let key = |name: &Value| vectors["keys"][name.as_str().unwrap()].as_str().unwrap().parse().unwrap();
    names.as_array().unwrap().iter().map(key).collect()
}

fn word(error: &SignatureError) -> &'static str {
    match error {
        SignatureError::Unsigned => "unsigned",
        SignatureError::Foreign(_) => "foreign",
        SignatureError::Stranger(_) => "stranger",
        SignatureError::Namespace(_) => "namespace",
        SignatureError::Wrong => "wrong",
        SignatureError::Armor => "armor",
        SignatureError::NotThisCommit => "not-this-commit",
        SignatureError::Malformed(_) => "malformed",
        SignatureError::TooLarge => "too-large",
    }
}

#[test]
fn each_commit_counts_or_is_refused_as_the_vectors_say() {
    let vectors = vectors();
    let cases = vectors["cases"].as_array().unwrap();
    let (mut counted, mut refusals) = (0, std::collections::BTreeSet::new());
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let commit: Commit = case["commit"].as_str().unwrap().parse().unwrap();
        let signers = keys(&vectors, &case["signers"]);
        match verify(commit, case["payload"].as_str(), case["signature"].as_str(), &signers) {
            Ok(found) => {
                let parents: Vec<String> = found.parents.iter().map(ToString::to_string).collect();
                assert_eq!(serde_json::json!(parents), case["parents"], "{name}");
                assert_eq!(found.tree.to_string(), case["tree"], "{name}");
                assert_eq!(
                    vec![found.signer],
                    keys(&vectors, &serde_json::json!([case["signer"]])),
                    "{name}"
                );
                counted += 1;
            }
            Err(error) => {
                assert_eq!(word(&error), case["refused"], "{name}: {error}");
                refusals.insert(word(&error));
            }
        }
    }
    assert_eq!((counted, refusals.len()), (7, 9), "each kind of answer has a case");
}

#[test]
fn a_commit_that_counts_does_not_count_with_one_byte_changed() {
    let vectors = vectors();
    for case in vectors["cases"].as_array().unwrap().iter().filter(|case| !case["signer"].is_null()) {
        let commit: Commit = case["commit"].as_str().unwrap().parse().unwrap();
        let signers = keys(&vectors, &case["signers"]);
        let (payload, signature) = (case["payload"].as_str().unwrap(), case["signature"].as_str().unwrap());
        let flip = |text: &str, at: usize| {
            let mut bytes = text.as_bytes().to_vec();
            bytes[at] ^= 1;
            String::from_utf8(bytes).ok()
        };
        for at in (0..payload.len()).step_by(7) {
            let Some(changed) = flip(payload, at) else { continue };
            assert!(verify(commit, Some(&changed), Some(signature), &signers).is_err(), "{at}");
        }
        for at in 0..signature.len() {
            let Some(changed) = flip(signature, at) else { continue };
            assert!(verify(commit, Some(payload), Some(&changed), &signers).is_err(), "{at}");
            // Without its last end of line it is the same.
            let cut = signature.get(..at.min(signature.len() - 2)).unwrap();
            assert!(verify(commit, Some(payload), Some(cut), &signers).is_err(), "{at}");
        }
        let other = Commit::from([7; 20]);
        let found = verify(other, Some(payload), Some(signature), &signers);
        assert_eq!(found, Err(SignatureError::NotThisCommit));
    }
}

#[test]
fn what_is_larger_than_its_bound_is_refused_before_it_is_read() {
    let vectors = vectors();
    let case = &vectors["cases"][0];
    let (payload, signature) = (case["payload"].as_str().unwrap(), case["signature"].as_str().unwrap());
    let signers = keys(&vectors, &case["signers"]);
    let (long, armor) =
        (payload.to_owned() + &"a".repeat(MAX_PAYLOAD), signature.repeat(MAX_SIGNATURE / 100));
    for (payload, signature) in [(long.as_str(), signature), (payload, armor.as_str())] {
        let found = verify(Commit::from([0; 20]), Some(payload), Some(signature), &signers);
        assert_eq!(found, Err(SignatureError::TooLarge));
    }
    assert_eq!(verify(Commit::from([0; 20]), Some(payload), None, &signers), Err(SignatureError::Unsigned));
    assert_eq!(verify(Commit::from([0; 20]), None, Some(signature), &signers), Err(SignatureError::Unsigned));
}
