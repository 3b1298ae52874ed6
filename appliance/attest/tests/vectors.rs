//! The frozen vectors under `policy/vectors/`: another implementation can run the same files. A change here is a change of a
//! wire format.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cofferdam_attest::appraise::{Expectations, Outcome, Roots, Verdict, appraise_document};
use cofferdam_attest::claims::{Claims, report_data};
use cofferdam_attest::event_log::{Event, replay};
use cofferdam_attest::operator::{Authorization, SealedSecret, open_secret, signing_input, vault_public_key};
use cofferdam_attest::policy::Policy;
use cofferdam_attest::ratls;
use cofferdam_attest::reference::{Half, ReferenceValues};
use cofferdam_attest::release::Tag;
use serde_json::Value;

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
        assert!(serde_json::from_value::<Event>(case["event"].clone()).is_err(), "{}", case["name"]);
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
        assert_eq!(*open_secret(&private, text(case, "reference"), &sealed).unwrap(), bytes(case, "value"));
    }
    for header in list(&file["authorization"], "accepted") {
        let header = header.as_str().unwrap();
        assert_eq!(Authorization::parse(header).unwrap().to_string(), header);
    }
    for header in list(&file["authorization"], "refused") {
        assert_eq!(Authorization::parse(header.as_str().unwrap()), None, "{header}");
    }
}

#[test]
fn certificates() {
    for case in list(&vectors("ratls.json"), "certificates") {
        let der = bytes(case, "certificate");
        assert_eq!(ratls::evidence_from_certificate(&der).unwrap().unwrap(), bytes(case, "evidence"));
        assert_eq!(ratls::spki_sha256(&der).unwrap(), text(case, "spki"));
    }
}

#[test]
fn evidence() {
    let file = vectors("evidence.json");
    let roots = Roots::intel().with_pem(text(&file, "root")).unwrap();
    let mut reference = ReferenceValues::default();
    for half in list(&file, "references") {
        reference.add(Half::parse(&serde_json::to_vec(half).unwrap()).unwrap()).unwrap();
    }
    let expected = Expectations { reference, ..Expectations::default() };
    let at = file["at"].as_u64().unwrap();
    let appraise =
        |document: &str| appraise_document(document.as_bytes(), &expected, &Policy::default(), &roots, at);
    let document = text(&file, "document");
    assert_eq!(appraise(document).verdict(), Verdict::Accepted);
    for change in list(&file, "changes") {
        let changed = document.replacen(text(change, "replace"), text(change, "with"), 1);
        let appraisal = appraise(&changed);
        assert_eq!(appraisal.verdict(), Verdict::Rejected, "{}", change["name"]);
        let failed: Vec<&str> = appraisal
            .checks
            .iter()
            .filter(|check| check.outcome == Outcome::Fail)
            .map(|check| check.name)
            .collect();
        assert_eq!(serde_json::to_value(failed).unwrap(), change["failed"], "{}", change["name"]);
    }
}
