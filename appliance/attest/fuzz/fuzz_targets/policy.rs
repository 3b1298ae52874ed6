//! An appraisal policy, and the honest document appraised under it.

#![no_main]

mod honest;

use cofferdam_attest::appraise::appraise;
use cofferdam_attest::policy::Policy;
use cofferdam_attest::quote::attributes;
use honest::{HONEST, bound};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(policy) = Policy::parse(bytes) else { return };
    let never = attributes::DEBUG | attributes::PROFILING | attributes::MIGRATABLE | attributes::SERVTD_EXT;
    assert_eq!(policy.td_attributes_allowed & never, 0);
    assert_ne!(policy.td_attributes_required & attributes::SEPT_VE_DISABLE, 0);
    assert_eq!(Policy::parse(&policy.to_json().unwrap()).unwrap(), policy);
    let evidence = &HONEST.evidence;
    bound(&appraise(evidence, &HONEST.expected, &policy, &HONEST.roots, HONEST.at), evidence);
});
