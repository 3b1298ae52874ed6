//! The frozen vectors under `policy/vectors/`: another implementation can run the same files. A change here is a change of a
//! wire format.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cofferdam_attest::appraise::{Check, Outcome};
use cofferdam_attest::claims::{Claims, report_data};
use cofferdam_attest::ear::Ear;
use cofferdam_attest::event_log::{Event, replay};
use cofferdam_attest::operator::{open_secret, vault_public_key};
use cofferdam_attest::policy::Policy;
use cofferdam_attest::ratls;
use cofferdam_attest::release::Tag;
use cofferdam_protocol::operator::{Authorization, SealedSecret, signing_input};
use cofferdam_protocol::{Timestamp, json as strict};
use serde_json::{Value, json};
use vector::patched;
use verifier::appraised;

#[path = "../examples/evidence-vectors/generate/mod.rs"]
mod generate;
#[path = "common/vector.rs"]
mod vector;
#[path = "common/verifier.rs"]
mod verifier;

fn vectors(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policy/vectors").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a Vec<Value> {
    let list = value[name].as_array().unwrap();
    assert!(!list.is_empty(), "{name}");
    list
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap()
}

fn bytes(value: &Value, name: &str) -> Vec<u8> {
    STANDARD.decode(text(value, name)).unwrap()
}

#[test]
fn claims() {
    let file = vectors("claims.json");
    for case in list(&file, "accepted") {
        let claims = bytes(case, "claims");
        assert!(Claims::decode(&claims).is_ok(), "{}", case["name"]);
        assert_eq!(hex::encode(report_data(&claims)), text(case, "report_data"), "{}", case["name"]);
        let tag = Tag::for_claims(&claims).unwrap();
        assert_eq!(tag.to_string(), text(case, "tag"));
        assert_eq!(Tag::parse(text(case, "tag")), Some(tag));
    }
    for case in list(&file, "refused") {
        assert!(Claims::decode(&bytes(case, "claims")).is_err(), "{}", case["name"]);
    }
}

#[test]
fn event_log() {
    let file = vectors("event-log.json");
    let events: Vec<Event> = serde_json::from_value(file["events"].clone()).unwrap();
    let digests: Vec<String> = events.iter().map(|event| hex::encode(event.register_digest())).collect();
    assert_eq!(serde_json::to_value(digests).unwrap(), file["digests"]);
    let registers: Vec<String> = (0..4).map(|mr| hex::encode(replay(&events, mr))).collect();
    assert_eq!(serde_json::to_value(registers).unwrap(), file["registers"]);
    assert_eq!(serde_json::to_value(&events).unwrap(), file["events"]);
    for case in list(&file, "refused") {
        let event = strict::from_json::<Event>(case["event"].to_string().as_bytes(), 1 << 16);
        assert!(event.is_err(), "{}", case["name"]);
    }
}

#[test]
fn operator() {
    let file = vectors("operator.json");
    for case in list(&file, "requests") {
        let binding = bytes(case, "channel_binding").try_into().unwrap();
        let input = signing_input(text(case, "method"), text(case, "path"), &bytes(case, "body"), &binding);
        assert_eq!(input, bytes(case, "signing_input"));
    }
    for case in list(&file, "sealed") {
        let private: [u8; 32] = bytes(case, "private_key").try_into().unwrap();
        assert_eq!(vault_public_key(&private).unwrap().as_slice(), bytes(case, "public_key"));
        let sealed: SealedSecret = serde_json::from_value(case["sealed"].clone()).unwrap();
        assert_eq!(
            *open_secret(&private, &text(case, "reference").parse().unwrap(), &sealed).unwrap(),
            bytes(case, "value")
        );
    }
    for header in list(&file["authorization"], "accepted") {
        let header = header.as_str().unwrap();
        assert_eq!(header.parse::<Authorization>().unwrap().to_string(), header);
    }
    for header in list(&file["authorization"], "refused") {
        assert!(header.as_str().unwrap().parse::<Authorization>().is_err(), "{header}");
    }
}

#[test]
fn certificates() {
    for case in list(&vectors("ratls.json"), "certificates") {
        let der = bytes(case, "certificate");
        assert_eq!(ratls::evidence_from_certificate(&der).unwrap().unwrap(), bytes(case, "evidence"));
        assert_eq!(ratls::spki_sha256(&der).unwrap().to_string(), text(case, "spki"));
    }
}

/// Every case through the library; `coffer`'s own tests run them through the command line.
#[test]
fn evidence() {
    appraisals("evidence.json");
}

/// Likewise those of appliances that have applied a declaration after launch.
#[test]
fn applied() {
    appraisals("applied.json");
}

fn appraisals(name: &str) {
    let file = vectors(name);
    let mut wrong = Vec::new();
    for case in list(&file, "cases") {
        let input = patched(&file["input"], &case["patch"]);
        let (verdict, checks) = match appraised(&input, &case["text"]) {
            Ok(appraisal) => (serde_json::to_value(appraisal.verdict()).unwrap(), appraisal.checks),
            Err(reason) => {
                let check = Check { name: "input", outcome: Outcome::NotChecked, detail: reason };
                (Value::from("refused_input"), vec![check])
            }
        };
        let named = |outcome| -> Vec<&str> {
            checks.iter().filter(|check| check.outcome == outcome).map(|check| check.name).collect()
        };
        let expect = &case["expect"];
        let fits = verdict == expect["verdict"]
            && json!(named(Outcome::Fail)) == expect["failed"]
            && json!(named(Outcome::CouldNotCheck)) == expect["unknown"]
            && reasoned(&checks, expect);
        if !fits {
            let said: Vec<_> = checks.iter().filter(|check| check.outcome != Outcome::Pass).collect();
            wrong.push(format!("{}: expected {expect}, got {verdict}\n{said:#?}", case["name"]));
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

/// The cases of `ear.json`, which are cases of `evidence.json`: the whole claims set but for the names of program and policy.
#[test]
fn ear() {
    let evidence = vectors("evidence.json");
    for case in list(&vectors("ear.json"), "cases") {
        let name = text(case, "case");
        let of_name = list(&evidence, "cases").iter().find(|case| case["name"] == name).unwrap();
        let input = patched(&evidence["input"], &of_name["patch"]);
        let appraisal = appraised(&input, &of_name["text"]).unwrap();
        let now = text(&input, "at").parse().map(Timestamp::unix).unwrap();
        let mut ear =
            serde_json::to_value(Ear::new(&appraisal, &Policy::default(), "", now).unwrap()).unwrap();
        ear.as_object_mut().unwrap().remove("ear_verifier_id").unwrap();
        let submodule = ear["submods"]["cofferdam"].as_object_mut().unwrap();
        submodule.remove("ear_appraisal_policy_ids").unwrap();
        assert_eq!(ear, case["ear"], "{name}");
        assert_eq!(case["exit"], of_name["expect"]["exit"], "{name}");
    }
}

/// Whether a check that is false (or, when none is, could not be made) gives the reason.
fn reasoned(checks: &[Check], expect: &Value) -> bool {
    let wanted = match text(expect, "verdict") {
        "accepted" => return true,
        "rejected" => Outcome::Fail,
        "could_not_check" => Outcome::CouldNotCheck,
        _ => Outcome::NotChecked,
    };
    checks.iter().any(|check| check.outcome == wanted && check.detail.contains(text(expect, "reason")))
}

/// The exit code follows from the verdict, and every check that can fail does in some case.
#[test]
fn evidence_cases_are_complete() {
    let file = vectors("evidence.json");
    let mut failed = BTreeSet::new();
    for case in list(&file, "cases") {
        let expect = &case["expect"];
        let exits: &[u64] = match text(expect, "verdict") {
            "accepted" => &[0],
            "rejected" => &[3],
            "could_not_check" => &[6],
            _ => &[2],
        };
        assert!(exits.contains(&expect["exit"].as_u64().unwrap()), "{}", case["name"]);
        failed.extend(expect["failed"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()));
        assert_eq!(expect["reason"] == "", expect["verdict"] == "accepted", "{}", case["name"]);
    }
    // What is checked of evidence that is accepted: state on a disk has a check more.
    let accepted = list(&file, "cases").iter().filter(|case| case["expect"]["verdict"] == "accepted");
    let checked = accepted
        .flat_map(|case| appraised(&patched(&file["input"], &case["patch"]), &case["text"]).unwrap().checks);
    let all: BTreeSet<&str> = checked.map(|check| check.name).collect();
    assert_eq!(failed, all);
}

/// The files are what their generator writes: `cargo run -p cofferdam-attest --example evidence-vectors -- FOLDER`.
#[test]
fn evidence_cases_are_what_the_generator_writes() {
    for (name, made) in
        [("evidence.json", generate::file as fn() -> String), ("applied.json", generate::applied)]
    {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policy/vectors").join(name);
        let committed = std::fs::read_to_string(path).unwrap();
        let (made, again) = (made(), made());
        assert!(made == again, "another {name} each time");
        let differs = committed.lines().zip(made.lines()).position(|(old, new)| old != new);
        assert!(
            committed == made,
            "policy/vectors/{name} differs first in line {:?}",
            differs.map(|at| at + 1)
        );
        assert!(committed.len() < 1 << 20, "{} bytes", committed.len());
    }
}

/// The policy of the vectors is the default one.
#[test]
fn evidence_cases_use_the_default_policy() {
    for name in ["evidence.json", "applied.json"] {
        let policy = &vectors(name)["input"]["policy"];
        assert_eq!(Policy::parse(policy.to_string().as_bytes()).unwrap(), Policy::default());
    }
}
