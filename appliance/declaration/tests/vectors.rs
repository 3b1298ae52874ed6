//! The frozen vectors of the declaration's format, run against the parser and against the JSON Schema.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use cofferdam_declaration::{Declaration, json_schema};

fn vectors() -> serde_json::Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../policy/vectors/declaration.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn cases(vectors: &serde_json::Value, group: &str) -> Vec<(String, String, serde_json::Value)> {
    let text = |case: &serde_json::Value, key: &str| case[key].as_str().unwrap().to_owned();
    let cases = vectors[group].as_array().unwrap();
    assert!(cases.len() >= 10, "{group}");
    cases.iter().map(|case| (text(case, "name"), text(case, "yaml"), case.clone())).collect()
}

/// What another reader of YAML 1.2 sees, for judging by the schema.
fn as_json(yaml: &str) -> Option<serde_json::Value> {
    serde_saphyr::from_str_with_options(yaml, serde_saphyr::options! { strict_booleans: true }).ok()
}

#[test]
fn accepted_vectors_are_accepted_by_the_parser_and_by_the_schema() {
    let schema = jsonschema::validator_for(&json_schema()).unwrap();
    for (name, yaml, _) in cases(&vectors(), "accepted") {
        if let Err(errors) = Declaration::parse(yaml.as_bytes()) {
            panic!("{name}\n{errors}");
        }
        let json = as_json(&yaml).unwrap_or_else(|| panic!("{name}"));
        if let Err(error) = schema.validate(&json) {
            panic!("{name}: {error} at {}", error.instance_path());
        }
    }
}

#[test]
fn refused_vectors_are_refused_for_the_reason_and_at_the_place_they_name() {
    for (name, yaml, case) in cases(&vectors(), "refused") {
        let Err(errors) = Declaration::parse(yaml.as_bytes()) else { panic!("{name} is accepted") };
        let found: Vec<_> = errors
            .iter()
            .map(|error| serde_json::json!({"line": error.line, "column": error.column, "message": error.message}))
            .collect();
        assert_eq!(serde_json::Value::from(found), case["errors"], "{name}");
    }
}

#[test]
fn the_schema_refuses_what_a_schema_can_express() {
    let schema = jsonschema::validator_for(&json_schema()).unwrap();
    let mut refused = 0;
    let mut missed = Vec::new();
    for (name, yaml, case) in cases(&vectors(), "refused") {
        let accepted = as_json(&yaml).is_some_and(|json| schema.is_valid(&json));
        if case["schema_refuses"] == true {
            refused += 1;
            if accepted {
                missed.push(name);
            }
        }
    }
    assert!(missed.is_empty() && refused > 50, "{refused} {missed:?}");
}
