//! The role with the frozen candidates, genuine and forged, as its `publish` would bring them.

use std::os::unix::fs::symlink;

use cofferdam_declaration::{Follow, SignerKey};
use cofferdam_protocol::{Digest, json};
use serde_json::Value;

use super::super::facts::FollowFacts;
use super::super::testing;
use super::*;

const WEB: &str = "services:\n  web:\n    image: registry.example.org/acme/web@sha256:1111111111111111111111111111111111111111111111111111111111111111\n";

fn vectors() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../policy/vectors/candidate.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn signers(vectors: &Value) -> Vec<SignerKey> {
    ["alice", "bob"].map(|name| vectors["keys"][name].as_str().unwrap().parse().unwrap()).into()
}

/// An appliance of acme/room that follows a branch.
struct Room {
    folder: tempfile::TempDir,
    places: Places,
    vectors: Value,
}

impl Room {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let places = Places {
            facts: at("facts.json"),
            appliance: at("appliance.json"),
            candidate: at("candidate"),
            directory: at("admit"),
        };
        fs::create_dir(&places.directory).unwrap();
        let vectors = vectors();
        let room = Self { folder, places, vectors };
        let appliance = testing::appliance(&Digest::of(b"key"));
        fs::write(&room.places.appliance, json::to_vec(&appliance).unwrap()).unwrap();
        room.follow(Some(signers(&room.vectors)));
        room
    }

    /// The declaration that runs has these signers, or follows nothing.
    fn follow(&self, signers: Option<Vec<SignerKey>>) {
        self.follow_and_apply(signers, true);
    }

    fn follow_and_apply(&self, signers: Option<Vec<SignerKey>>, apply: bool) {
        let mut facts = testing::facts(&testing::declaration(WEB));
        let declared =
            Follow { branch: "main".parse().unwrap(), interval: std::time::Duration::from_secs(60), apply };
        facts.follow = signers.map(|signers| FollowFacts { declared, signers });
        fs::write(&self.places.facts, json::to_vec(&facts).unwrap()).unwrap();
    }

    fn case(&self, name: &str) -> Value {
        let cases = self.vectors["cases"].as_array().unwrap();
        cases.iter().find(|case| case["name"] == name).unwrap().clone()
    }

    /// `publish` brings this, and the role runs.
    fn bring(&self, candidate: &[u8]) -> Result<(), String> {
        fs::write(&self.places.candidate, candidate).unwrap();
        self.places.admit().map_err(|error| error_chain(&error))
    }

    fn bring_case(&self, name: &str) -> Result<(), String> {
        self.bring(self.case(name)["candidate"].to_string().as_bytes())
    }

    fn wrote(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.places.own(name)).ok()
    }
}

#[test]
fn a_signed_declaration_is_admitted_with_its_exact_bytes() {
    let room = Room::new();
    room.bring_case("a declaration").unwrap();
    let candidate = &room.case("a declaration")["candidate"];
    let file = cofferdam_protocol::base64::decode(candidate["file"].as_str().unwrap());
    assert_eq!(room.wrote("declaration"), file);
    let commit: cofferdam_protocol::Commit = candidate["commit"].as_str().unwrap().parse().unwrap();
    assert_eq!(room.wrote("commit").unwrap(), commit.as_bytes());
    assert_eq!(room.wrote("time").unwrap(), 1_798_761_600_u64.to_be_bytes());
    assert_eq!(room.wrote("why"), None);
}

#[test]
fn every_forged_candidate_is_refused_and_leaves_nothing_that_pid_1_reads() {
    let room = Room::new();
    let cases = room.vectors["cases"].as_array().unwrap().clone();
    let forged: Vec<&Value> = cases.iter().filter(|case| !case["refused"].is_null()).collect();
    assert!(forged.len() > 30, "{}", forged.len());
    for case in forged.into_iter().filter(|case| case["name"] != "nobody is a signer") {
        room.bring_case("a declaration").unwrap();
        let why = room.bring(case["candidate"].to_string().as_bytes()).unwrap_err();
        assert!(why.starts_with("commit ") && why.contains(" does not count: "), "{}: {why}", case["name"]);
        assert_eq!(room.wrote("declaration"), None, "{}", case["name"]);
        assert_eq!(room.wrote("commit"), None, "no signer's key has signed for it: {}", case["name"]);
    }
    for case in room.vectors["texts"].as_array().unwrap() {
        let why = room.bring(case["text"].as_str().unwrap().as_bytes()).unwrap_err();
        assert!(why.starts_with("it is no candidate"), "{}: {why}", case["name"]);
    }
    let why = room.bring(&vec![b' '; MAX_CANDIDATE + 1]).unwrap_err();
    assert!(why.starts_with("there is no candidate"), "{why}");
}

#[test]
fn what_was_signed_and_is_no_declaration_of_this_repository_is_refused_by_the_commits_name() {
    let room = Room::new();
    for (name, says) in [
        ("a declaration of another repository", "it declares another repository, acme/hall"),
        ("what is no declaration", "cofferdam.yaml:"),
        ("an empty file", "cofferdam.yaml:1:1"),
    ] {
        let why = room.bring_case(name).unwrap_err();
        assert!(why.contains(says), "{name}: {why}");
        assert_eq!(room.wrote("commit").unwrap().len(), 20, "PID 1 may say which one it is");
        assert_eq!((room.wrote("declaration"), room.wrote("time")), (None, None), "{name}");
    }
}

#[test]
fn an_older_commit_is_not_played_back_and_one_of_the_same_second_is_none() {
    let room = Room::new();
    // Nothing is known of when what the boot began with was made.
    room.bring_case("an older one").unwrap();
    room.bring_case("a later one").unwrap();
    for older in ["a declaration", "an older one"] {
        let why = room.bring_case(older).unwrap_err();
        assert!(why.contains("before the one of 2027-01-01T00:01:40Z"), "{why}");
        assert!(room.wrote("declaration").is_none());
    }
    room.bring_case("another one of the same second").unwrap();
    // A refusal has not changed what is remembered, and no candidate can.
    assert_eq!(room.wrote("time").unwrap(), 1_798_761_700_u64.to_be_bytes());
    for damaged in [&b""[..], &[0; 7], &[0; 9], &[0xff; 8]] {
        fs::write(room.places.own("time"), damaged).unwrap();
        let why = room.bring_case("a later one").unwrap_err();
        assert_eq!(why, "when the last one was admitted cannot be read");
        assert!(room.wrote("declaration").is_none());
    }
}

#[test]
fn the_signers_are_those_of_the_declaration_that_runs() {
    let room = Room::new();
    let [alice, bob] = <[SignerKey; 2]>::try_from(signers(&room.vectors)).unwrap();
    room.follow(Some(vec![alice]));
    let why = room.bring_case("a later one").unwrap_err();
    assert!(why.contains("which is no signer's key"), "{why}");
    room.follow(Some(vec![bob]));
    room.bring_case("a later one").unwrap();
    room.follow(None);
    let why = room.bring_case("a later one").unwrap_err();
    assert_eq!(why, "the declaration that runs follows no branch, or says `apply: false`");
    room.follow_and_apply(Some(signers(&room.vectors)), false);
    assert_eq!(room.bring_case("a later one").unwrap_err(), why);
}

#[test]
fn what_publish_puts_in_its_place_is_not_followed_and_holds_nobody_up() {
    let room = Room::new();
    let genuine = room.folder.path().join("genuine");
    fs::write(&genuine, room.case("a declaration")["candidate"].to_string()).unwrap();
    let refused = || {
        let why = room.places.admit().map_err(|error| error.to_string()).unwrap_err();
        assert!(why.starts_with("there is no candidate"), "{why}");
    };
    refused();
    symlink(&genuine, &room.places.candidate).unwrap();
    refused();
    fs::remove_file(&room.places.candidate).unwrap();
    // Nobody ever writes into it.
    nix::unistd::mkfifo(&room.places.candidate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused();
    fs::remove_file(&room.places.candidate).unwrap();
    fs::create_dir(&room.places.candidate).unwrap();
    refused();
    fs::remove_dir(&room.places.candidate).unwrap();
    fs::rename(&genuine, &room.places.candidate).unwrap();
    room.places.admit().unwrap();
}
