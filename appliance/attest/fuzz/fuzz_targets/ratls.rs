//! A certificate of a peer nobody knows yet: its evidence extension and its key; and what a request to it is signed with.

#![no_main]

use cofferdam_attest::operator::Authorization;
use cofferdam_attest::ratls;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = (ratls::evidence_from_certificate(bytes), ratls::spki_sha256(bytes));
    if let Some(authorization) = std::str::from_utf8(bytes).ok().and_then(Authorization::parse) {
        let text = authorization.to_string();
        assert_eq!(Authorization::parse(&text).map(|again| again.to_string()), Some(text));
    }
});
