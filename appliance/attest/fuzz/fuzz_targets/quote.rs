//! A quote: its layout, and its appraisal under the honest collateral, bare and inside the honest document.

#![no_main]

mod honest;

use cofferdam_attest::appraise::{appraise, appraise_quote};
use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::quote;
use honest::{HONEST, QUICK, bound};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let collateral = HONEST.evidence.collateral.as_ref();
    let _ = appraise_quote(bytes, collateral, &HONEST.policy, &HONEST.roots, HONEST.at).headline();
    // The chain was verified once; the registers, the log and the claims need no collateral.
    let evidence = Evidence { quote: bytes.to_vec(), collateral: None, ..HONEST.evidence.clone() };
    bound(&appraise(&evidence, &HONEST.expected, &QUICK, &HONEST.roots, HONEST.at), &evidence);
    if quote::parse(bytes).is_ok() {
        // There is one encoding: not a byte less, not a byte more, and only zeros may be cut off.
        assert_eq!(quote::trim_padding(bytes), Ok(bytes));
        assert!(bytes.split_last().is_some_and(|(_, less)| quote::parse(less).is_err()));
        for more in [0, 1] {
            let longer = [bytes, &[more]].concat();
            assert!(quote::parse(&longer).is_err());
            let too_large = longer.len() > quote::MAX_BYTES;
            assert_eq!(quote::trim_padding(&longer).is_ok(), more == 0 && !too_large);
        }
    }
});
