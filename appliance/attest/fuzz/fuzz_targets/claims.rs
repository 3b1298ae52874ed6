//! Claims: their shape, and their appraisal inside the honest document, whose quote does not commit to them.

#![no_main]

mod honest;

use cofferdam_attest::appraise::{Verdict, appraise};
use cofferdam_attest::claims::{Claims, Repository, is_endpoint, parse_time};
use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::release::Tag;
use honest::HONEST;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let evidence = Evidence { claims: bytes.to_vec(), ..HONEST.evidence.clone() };
    let appraisal = appraise(&evidence, &HONEST.expected, &HONEST.policy, &HONEST.roots, HONEST.at);
    let honest = bytes == HONEST.evidence.claims;
    assert_eq!(appraisal.verdict() == Verdict::Accepted, honest);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = (parse_time(text), is_endpoint(text));
        if let Some(repository) = Repository::parse(text) {
            assert_eq!(repository.to_string(), text);
        }
        if let Some(tag) = Tag::parse(text) {
            assert_eq!(tag.to_string(), text);
        }
    }
    if let Ok(claims) = Claims::decode(bytes) {
        assert_eq!(Claims::decode(&claims.encode()).unwrap(), claims);
        assert!(claims.vault_key_bytes().is_some() && claims.issued_unix().is_some());
        let tag = Tag::for_claims(bytes).unwrap();
        assert_eq!(Tag::parse(&tag.to_string()), Some(tag));
    }
});
