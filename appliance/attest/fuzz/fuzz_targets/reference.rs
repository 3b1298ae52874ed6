//! A file of reference values, and the honest document appraised against it.

#![no_main]

mod honest;

use cofferdam_attest::appraise::{Expectations, appraise};
use cofferdam_attest::reference::{self, Half, ReferenceValues};
use honest::{HONEST, bound};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(half) = Half::parse(bytes) else { return };
    let json = half.to_json().unwrap();
    if json.len() <= reference::MAX_BYTES {
        assert_eq!(Half::parse(&json).unwrap(), half);
    }
    // Alone and beside the right ones.
    for mut values in [ReferenceValues::default(), HONEST.expected.reference.clone()] {
        values.add(half.clone()).unwrap();
        let expected = Expectations { reference: values, ..HONEST.expected.clone() };
        let evidence = &HONEST.evidence;
        bound(&appraise(evidence, &expected, &HONEST.policy, &HONEST.roots, HONEST.at), evidence);
    }
});
