//! Claims: their shape, and their appraisal inside the honest document, whose quote commits to one text only.

#![no_main]

mod honest;

use std::sync::LazyLock;

use cofferdam_attest::appraise::{Outcome, Verdict, appraise};
use cofferdam_attest::claims::Claims;
use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::release::Tag;
use cofferdam_protocol::{Endpoint, Repository, Timestamp};
use honest::{HONEST, QUICK};
use libfuzzer_sys::fuzz_target;

/// Without collateral there is no chain to verify either.
static BARE: LazyLock<Evidence> = LazyLock::new(|| Evidence { collateral: None, ..HONEST.evidence.clone() });

fuzz_target!(|bytes: &[u8]| {
    let evidence = Evidence { claims: bytes.to_vec(), ..BARE.clone() };
    let appraisal = appraise(&evidence, &HONEST.expected, &QUICK, &HONEST.roots, HONEST.at);
    let committed = appraisal.check("report_data").is_some_and(|check| check.outcome == Outcome::Pass);
    assert_eq!(committed, bytes == HONEST.evidence.claims);
    assert_ne!(appraisal.verdict(), Verdict::Accepted);
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(time) = text.parse::<Timestamp>() {
            assert_eq!(Timestamp::from_unix(time.unix()).map(|time| time.to_string()).as_deref(), Some(text));
        }
        if let Ok(endpoint) = text.parse::<Endpoint>() {
            assert_eq!(endpoint.to_string(), text);
        }
        if let Ok(repository) = text.parse::<Repository>() {
            assert_eq!(repository.to_string(), text);
        }
        if let Some(tag) = Tag::parse(text) {
            assert_eq!(tag.to_string(), text);
        }
    }
    if let Ok(claims) = Claims::decode(bytes) {
        assert_eq!(Claims::decode(&claims.encode().unwrap()).unwrap(), claims);
        let tag = Tag::for_claims(bytes).unwrap();
        assert_eq!(tag.issued_at, claims.issued_at);
        assert_eq!(Tag::parse(&tag.to_string()), Some(tag));
    }
});
