//! The honest input of `policy/vectors/evidence.json`, for targets that change one part of it.

#![allow(dead_code, reason = "no target uses all of it")]

use std::sync::LazyLock;

use cofferdam_attest::appraise::{Appraisal, Expectations, Roots, Verdict};
use cofferdam_attest::claims::report_data;
use cofferdam_attest::event_log::replay;
use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::policy::Policy;
use cofferdam_attest::quote;
use cofferdam_attest::reference::Half;
use serde_json::Value;

/// What a relying party brings, and what it is shown.
pub struct Honest {
    pub at: u64,
    pub evidence: Evidence,
    pub expected: Expectations,
    pub policy: Policy,
    pub roots: Roots,
}

pub static HONEST: LazyLock<Honest> = LazyLock::new(|| {
    let file: Value = serde_json::from_str(include_str!("../../../../policy/vectors/evidence.json")).unwrap();
    let input = &file["input"];
    let mut document = input["document"].clone();
    let parts = input["quote"].as_array().unwrap();
    document["quote"] = parts.iter().map(|part| part.as_str().unwrap()).collect::<String>().into();
    let mut expected =
        Expectations { repository: Some("acme/shop".parse().unwrap()), ..Expectations::default() };
    for half in input["references"].as_array().unwrap() {
        expected.reference.add(Half::parse(half.to_string().as_bytes()).unwrap()).unwrap();
    }
    Honest {
        at: input["at"].as_str().unwrap().parse::<cofferdam_protocol::Timestamp>().unwrap().unix(),
        evidence: Evidence::parse(document.to_string().as_bytes()).unwrap(),
        expected,
        // A claim that was changed is searched for by trying every validity up to the longest: a day is as good as a
        // week to find mistakes, and seven times as fast.
        policy: Policy { max_validity_s: 86_400, ..Policy::default() },
        roots: Roots::intel().with_pem(input["roots"][0].as_str().unwrap()).unwrap(),
    }
});

/// A policy under which there is little to search for, and nothing is accepted: many more inputs a second.
pub static QUICK: LazyLock<Policy> = LazyLock::new(|| Policy { max_validity_s: 600, ..Policy::default() });

/// Whatever the bytes were: what is accepted is bound to its quote.
pub fn bound(appraisal: &Appraisal, evidence: &Evidence) {
    if appraisal.verdict() == Verdict::Accepted {
        let quote = quote::parse(&evidence.quote).unwrap();
        assert_eq!(quote.report_data, report_data(&evidence.claims));
        assert_eq!(quote.rtmr[3], replay(&evidence.event_log, 3));
        assert!(appraisal.simulated);
        assert!(appraisal.claims.as_ref().is_some_and(|claims| claims.repository.to_string() == "acme/shop"));
    }
    // Both are printed and must hold whatever came in.
    let _ = (appraisal.headline(), serde_json::to_vec(appraisal).unwrap());
}
