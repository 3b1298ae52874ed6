//! The frozen vectors of redaction.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use cofferdam_redact::{RedactError, Redactor};

fn vectors() -> serde_json::Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../policy/vectors/redact.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn every_vector_comes_out_as_written_down() {
    let mut failed = Vec::new();
    let vectors = vectors();
    let cases = vectors["vectors"].as_array().unwrap();
    assert!(cases.len() > 50);
    for case in cases {
        let secrets = case["secrets"].as_object().unwrap();
        let redactor =
            Redactor::new(secrets.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap())))
                .unwrap();
        let mut stream = redactor.stream();
        let mut out = Vec::new();
        for piece in case["pieces"].as_array().unwrap() {
            match piece.as_str() {
                Some(text) => stream.push(text.as_bytes(), &mut out),
                None => stream.idle(&mut out),
            }
        }
        let at_once = String::from_utf8_lossy(&out).into_owned();
        stream.finish(&mut out);
        let out = String::from_utf8_lossy(&out).into_owned();
        if out != case["output"] || case.get("at_once").is_some_and(|expected| *expected != at_once) {
            failed.push(format!(
                "{}\n  expected {}\n  found    {out:?}\n  at once  {at_once:?}",
                case["name"], case["output"]
            ));
        }
    }
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}

#[test]
fn secrets_too_short_are_refused() {
    for case in vectors()["refused"].as_array().unwrap() {
        let refused = Redactor::new([("name", case["secret"].as_str().unwrap())]);
        assert!(matches!(refused, Err(RedactError::TooShort { .. })), "{}", case["name"]);
    }
}
