//! The frozen vectors of candidates: made by git and ssh-keygen, judged here without a network.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use cofferdam_github::{
    Candidate, JudgeError, MAX_CANDIDATE, MAX_FILE, MAX_PAYLOAD, MAX_SIGNATURE, MAX_TREE, SignatureError,
    judge,
};
use cofferdam_protocol::{Commit, SignerKey, base64};
use serde_json::Value;

const NAME: &str = "cofferdam.yaml";

fn vectors() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../policy/vectors/candidate.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn signers(vectors: &Value, case: &Value) -> Vec<SignerKey> {
    let key = |name: &Value| vectors["keys"][name.as_str().unwrap()].as_str().unwrap().parse().unwrap();
    case["signers"].as_array().unwrap().iter().map(key).collect()
}

fn candidate(case: &Value) -> Candidate {
    Candidate::parse(case["candidate"].to_string().as_bytes()).unwrap()
}

fn word(error: &JudgeError) -> &'static str {
    match error {
        JudgeError::Signature(SignatureError::Stranger(_)) => "stranger",
        JudgeError::Signature(SignatureError::Wrong) => "wrong",
        JudgeError::Signature(SignatureError::NotThisCommit) => "not-this-commit",
        JudgeError::Signature(SignatureError::Malformed(_)) => "malformed",
        JudgeError::Signature(other) => panic!("{other}"),
        JudgeError::OtherTree => "other-tree",
        JudgeError::Tree => "tree",
        JudgeError::Several(_) => "several",
        JudgeError::NoFile(_) => "no-file",
        JudgeError::OtherFile(_) => "other-file",
    }
}

#[test]
fn each_candidate_counts_or_is_refused_as_the_vectors_say() {
    let vectors = vectors();
    let (mut counted, mut refusals) = (0, std::collections::BTreeSet::new());
    for case in vectors["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        match judge(&candidate(case), NAME, &signers(&vectors, case)) {
            Ok((commit, file)) => {
                assert_eq!(commit.id.to_string(), case["candidate"]["commit"], "{name}");
                assert_eq!(commit.committed.unix(), case["committed"].as_u64().unwrap(), "{name}");
                let by: SignerKey =
                    vectors["keys"][case["signer"].as_str().unwrap()].as_str().unwrap().parse().unwrap();
                assert_eq!(commit.signer, by, "{name}");
                assert_eq!(base64::encode(file), case["candidate"]["file"], "{name}");
                counted += 1;
            }
            Err(error) => {
                assert_eq!(word(&error), case["refused"], "{name}: {error}");
                refusals.insert(word(&error));
            }
        }
    }
    assert_eq!((counted, refusals.len()), (9, 9), "each kind of answer has a case");
}

#[test]
fn no_text_is_a_candidate_but_the_one_that_is_written() {
    let vectors = vectors();
    for case in vectors["texts"].as_array().unwrap() {
        assert!(Candidate::parse(case["text"].as_str().unwrap().as_bytes()).is_err(), "{}", case["name"]);
    }
    let read = candidate(&vectors["cases"][0]);
    assert_eq!(Candidate::parse(&read.encode().unwrap()).unwrap(), read);
}

#[test]
fn one_changed_byte_of_any_part_is_refused() {
    let vectors = vectors();
    let case = &vectors["cases"][5];
    let signers = signers(&vectors, case);
    for part in ["payload", "signature", "tree", "file"] {
        let bytes = base64::decode(case["candidate"][part].as_str().unwrap()).unwrap();
        for at in 0..bytes.len() {
            let mut changed = case.clone();
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            changed["candidate"][part] = base64::encode(&bytes).into();
            assert!(judge(&candidate(&changed), NAME, &signers).is_err(), "{part} at {at}");
        }
    }
}

#[test]
fn the_largest_candidate_is_within_its_bound_and_a_byte_more_is_none() {
    let parts = [MAX_PAYLOAD, MAX_SIGNATURE, MAX_TREE, MAX_FILE];
    let with = |parts: [usize; 4]| {
        let [payload, signature, tree, file] = parts;
        let text = |length: usize| "a".repeat(length);
        Candidate::new(Commit::from([7; 20]), text(payload), text(signature), vec![0; tree], vec![0; file])
    };
    let largest = with(parts).unwrap().encode().unwrap();
    assert!(largest.len() <= MAX_CANDIDATE, "{} of {MAX_CANDIDATE}", largest.len());
    assert!(Candidate::parse(&largest).is_ok());
    for part in 0..4 {
        let mut parts = [1; 4];
        parts[part] = [MAX_PAYLOAD, MAX_SIGNATURE, MAX_TREE, MAX_FILE][part] + 1;
        assert!(with(parts).is_none(), "{part}");
    }
    // What is written by somebody else has the same bounds.
    let text = String::from_utf8(with([1; 4]).unwrap().encode().unwrap()).unwrap();
    for (part, most) in
        [("payload", MAX_PAYLOAD), ("signature", MAX_SIGNATURE), ("tree", MAX_TREE), ("file", MAX_FILE)]
    {
        let mut value: Value = serde_json::from_str(&text).unwrap();
        value[part] = base64::encode(vec![0; most + 1]).into();
        assert!(Candidate::parse(value.to_string().as_bytes()).is_err(), "{part}");
    }
}
