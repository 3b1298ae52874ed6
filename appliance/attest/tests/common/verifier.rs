//! The relying party of a case of `policy/vectors/evidence.json`.

#![allow(clippy::unwrap_used)]

use cofferdam_attest::appraise::{Appraisal, Expectations, Roots, appraise, appraise_document};
use cofferdam_attest::evidence::{Collateral, Evidence};
use cofferdam_attest::policy::Policy;
use cofferdam_attest::reference::Half;
use cofferdam_attest::release::Tag;
use cofferdam_protocol::Timestamp;
use serde_json::Value;

/// Appraises a vector's input as `coffer appraise` does; an error when what the relying party brought is unusable.
pub(crate) fn appraised(input: &Value, steps: &Value) -> Result<Appraisal, String> {
    let words = |error: &dyn std::error::Error| match error.source() {
        Some(source) => match source.source() {
            Some(deeper) => format!("{error}: {source}: {deeper}"),
            None => format!("{error}: {source}"),
        },
        None => error.to_string(),
    };
    let policy = Policy::parse(input["policy"].to_string().as_bytes()).map_err(|error| words(&error))?;
    let pem: String = input["roots"].as_array().unwrap().iter().map(|pem| pem.as_str().unwrap()).collect();
    let roots = if pem.is_empty() {
        Roots::intel()
    } else {
        Roots::intel().with_pem(&pem).map_err(|error| words(&error))?
    };
    let mut expected = expectations(&input["expected"]);
    for half in input["references"].as_array().unwrap() {
        let half = Half::parse(half.to_string().as_bytes()).map_err(|error| words(&error))?;
        expected.reference.add(half).map_err(|error| words(&error))?;
    }
    let now = input["at"].as_str().unwrap().parse().map(Timestamp::unix).unwrap();
    let document = super::vector::document(input, steps);
    let given = match &input["collateral"] {
        Value::Null => None,
        given => Some(Collateral::parse(given.to_string().as_bytes()).map_err(|error| words(&error))?),
    };
    let mut appraisal = appraise_document(&document, &expected, &policy, &roots, now);
    if let (Ok(mut evidence), Some(given)) = (Evidence::parse(&document), given) {
        evidence.collateral = Some(given);
        let document = appraisal.checks.remove(0);
        appraisal = appraise(&evidence, &expected, &policy, &roots, now);
        appraisal.checks.insert(0, document);
    }
    Ok(appraisal)
}

fn expectations(members: &Value) -> Expectations {
    fn member<T: std::str::FromStr<Err: std::fmt::Debug>>(members: &Value, name: &str) -> Option<T> {
        members[name].as_str().map(|text| text.parse().unwrap())
    }
    Expectations {
        repository: member(members, "repository"),
        commit: member(members, "commit"),
        endpoint: member(members, "endpoint"),
        tls_key: member(members, "tls_key"),
        nonce: member(members, "nonce"),
        channel_binding: member(members, "channel_binding"),
        declaration: member(members, "declaration"),
        tag: members["tag"].as_str().map(|tag| Tag::parse(tag).unwrap()),
        ..Expectations::default()
    }
}
