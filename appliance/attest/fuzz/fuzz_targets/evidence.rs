//! An evidence document from its bytes to its verdict.

#![no_main]

mod honest;

use cofferdam_attest::appraise::appraise_document;
use cofferdam_attest::evidence::Evidence;
use honest::{HONEST, bound};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let appraisal = appraise_document(bytes, &HONEST.expected, &HONEST.policy, &HONEST.roots, HONEST.at);
    let Ok(evidence) = Evidence::parse(bytes) else {
        assert_eq!(appraisal.checks.len(), 1);
        return;
    };
    bound(&appraisal, &evidence);
    assert_eq!(Evidence::parse(&evidence.to_json().unwrap()).unwrap(), evidence);
});
