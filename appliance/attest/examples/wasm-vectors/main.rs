//! The verifier as a WebAssembly module that runs the frozen vectors: what a browser would load, and the proof that it decides
//! as the native build does. `ci/wasm` builds it and runs `run.mjs` beside this file, which compares.
//!
//! Responsible for doing what each vector asks and for saying what came out. It never sees an expectation's use: comparing is its
//! caller's. A module has no imports, so it reads no clock, no file and no random number; whatever would, traps.
//!
//! Bytes go in and out one by one, so that no function takes an address: [`push`] the name of a file of vectors, a zero byte and
//! its contents, then [`run`], then [`at`] for each byte of the answer, a JSON list with one member for each vector.

#![allow(unsafe_code, reason = "a function's name is exported, nothing else")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a trap fails the test")]

use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cofferdam_attest::appraise::Outcome;
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

#[path = "../../tests/common/vector.rs"]
mod vector;
#[path = "../../tests/common/verifier.rs"]
mod verifier;

static INPUT: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static OUTPUT: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Takes one more byte of the input.
#[unsafe(no_mangle)]
pub extern "C" fn push(byte: u8) {
    INPUT.lock().unwrap().push(byte);
}

/// Runs the vectors of the input, which is taken; the length of the answer.
#[unsafe(no_mangle)]
pub extern "C" fn run() -> usize {
    let input = std::mem::take(&mut *INPUT.lock().unwrap());
    let zero = input.iter().position(|byte| *byte == 0).unwrap();
    let file: Value = serde_json::from_slice(&input[zero + 1..]).unwrap();
    let answer = match &input[..zero] {
        b"evidence.json" | b"applied.json" => each(&file["cases"], |case| evidence(&file["input"], case)),
        b"claims.json" => both(&file, claims),
        b"event-log.json" => event_log(&file),
        b"ratls.json" => each(&file["certificates"], certificate),
        b"operator.json" => operator(&file),
        other => panic!("no vectors of {other:?}"),
    };
    let mut output = OUTPUT.lock().unwrap();
    *output = answer.to_string().into_bytes();
    output.len()
}

/// A byte of the answer.
#[unsafe(no_mangle)]
pub extern "C" fn at(place: usize) -> u8 {
    OUTPUT.lock().unwrap()[place]
}

fn each(list: &Value, what: impl Fn(&Value) -> Value) -> Value {
    list.as_array().unwrap().iter().map(what).collect()
}

/// The accepted cases of a file, then the refused ones.
fn both(file: &Value, what: impl Fn(&Value) -> Value) -> Value {
    let lists = ["accepted", "refused"].map(|name| file[name].as_array().unwrap());
    lists.into_iter().flatten().map(what).collect()
}

fn bytes(value: &Value, name: &str) -> Vec<u8> {
    STANDARD.decode(value[name].as_str().unwrap()).unwrap()
}

/// Verdict, checks and attestation result; `refused_input` where what the relying party brought is unusable.
fn evidence(honest: &Value, case: &Value) -> Value {
    let input = vector::patched(honest, &case["patch"]);
    let appraisal = match verifier::appraised(&input, &case["text"]) {
        Ok(appraisal) => appraisal,
        Err(reason) => {
            return json!({ "verdict": "refused_input", "failed": [], "unknown": [], "reasons": [reason] });
        }
    };
    let of = |outcome| appraisal.checks.iter().filter(move |check| check.outcome == outcome);
    let named = |outcome| of(outcome).map(|check| check.name).collect::<Vec<_>>();
    let reasons: Vec<&str> = [Outcome::Fail, Outcome::CouldNotCheck]
        .into_iter()
        .flat_map(of)
        .map(|check| check.detail.as_str())
        .collect();
    let now = input["at"].as_str().unwrap().parse().map(Timestamp::unix).unwrap();
    json!({
        "verdict": appraisal.verdict(),
        "failed": named(Outcome::Fail),
        "unknown": named(Outcome::CouldNotCheck),
        "reasons": reasons,
        "ear": Ear::new(&appraisal, &Policy::default(), "", now).unwrap(),
    })
}

/// `report_data` and tag, or null for claims that are none.
fn claims(case: &Value) -> Value {
    let claims = bytes(case, "claims");
    match Claims::decode(&claims) {
        Ok(_) => json!({
            "report_data": hex::encode(report_data(&claims)),
            "tag": Tag::for_claims(&claims).unwrap().to_string(),
        }),
        Err(_) => Value::Null,
    }
}

/// Digests and registers, then for each refused event whether it is one.
fn event_log(file: &Value) -> Value {
    let events: Vec<Event> = serde_json::from_value(file["events"].clone()).unwrap();
    let digests: Vec<String> = events.iter().map(|event| hex::encode(event.register_digest())).collect();
    let registers: Vec<String> = (0..4).map(|mr| hex::encode(replay(&events, mr))).collect();
    let refused = each(&file["refused"], |case| {
        strict::from_json::<Event>(case["event"].to_string().as_bytes(), 1 << 16).is_ok().into()
    });
    json!([digests, registers, refused])
}

fn certificate(case: &Value) -> Value {
    let der = bytes(case, "certificate");
    let evidence = ratls::evidence_from_certificate(&der).unwrap().map(|bytes| STANDARD.encode(bytes));
    json!({ "evidence": evidence, "spki": ratls::spki_sha256(&der).unwrap() })
}

/// What is signed, then what a vault opens, then which headers are any.
fn operator(file: &Value) -> Value {
    let requests = each(&file["requests"], |case| {
        let [method, path] = ["method", "path"].map(|name| case[name].as_str().unwrap());
        let binding = bytes(case, "channel_binding").try_into().unwrap();
        STANDARD.encode(signing_input(method, path, &bytes(case, "body"), &binding)).into()
    });
    let sealed = each(&file["sealed"], |case| {
        let private: [u8; 32] = bytes(case, "private_key").try_into().unwrap();
        let sealed: SealedSecret = serde_json::from_value(case["sealed"].clone()).unwrap();
        let value =
            open_secret(&private, &case["reference"].as_str().unwrap().parse().unwrap(), &sealed).unwrap();
        json!({
            "public_key": STANDARD.encode(vault_public_key(&private).unwrap()),
            "value": STANDARD.encode(&*value),
        })
    });
    let headers = both(&file["authorization"], |header| {
        header.as_str().unwrap().parse::<Authorization>().ok().map(|header| header.to_string()).into()
    });
    json!([requests, sealed, headers])
}
