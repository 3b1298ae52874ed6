//! A certificate of a peer nobody knows yet: its evidence extension and its key; and what a request to it is signed with.

#![no_main]

use cofferdam_attest::ratls;
use cofferdam_protocol::operator::Authorization;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = (ratls::evidence_from_certificate(bytes), ratls::spki_sha256(bytes));
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(authorization) = text.parse::<Authorization>() {
        assert_eq!(authorization.to_string(), text);
    }
});
