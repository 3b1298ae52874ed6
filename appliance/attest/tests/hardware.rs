//! Quotes of real machines, when the fixtures lie beside the checkout: the real chain verifies, and no byte of it may change.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;

use cofferdam_attest::appraise::{Appraisal, Outcome, Roots, Verdict, appraise_quote};
use cofferdam_attest::evidence::Collateral;
use cofferdam_attest::policy::Policy;
use cofferdam_attest::{ccel, event_log, quote};

/// 2025-07-01T00:00:00Z, inside the collateral's validity.
const AT: u64 = 1_751_328_000;

fn fixture(name: &str) -> Option<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures/tdx-hardware");
    let bytes = std::fs::read(root.join(name)).ok();
    if bytes.is_none() {
        eprintln!("skipped: {name} absent");
    }
    bytes
}

fn phala() -> Option<(Vec<u8>, Collateral)> {
    let raw = fixture("phala-sample/tdx_quote")?;
    let collateral = fixture("phala-sample/tdx_quote_collateral.json")?;
    Some((raw, Collateral::parse(&collateral).unwrap()))
}

fn appraised(raw: &[u8], collateral: &Collateral, at: u64) -> Appraisal {
    appraise_quote(raw, Some(collateral), &Policy::default(), &Roots::intel(), at)
}

#[test]
fn a_machine_in_production_is_accepted() {
    let Some((raw, collateral)) = phala() else { return };
    let appraisal = appraised(&raw, &collateral, AT);
    assert_eq!(appraisal.verdict(), Verdict::Accepted, "{:#?}", appraisal.checks);
    assert!(!appraisal.simulated);
    assert_eq!(appraisal.headline(), "accepted");
    let platform = appraisal.platform.unwrap();
    assert_eq!(platform.tcb_status, "UpToDate");
    let facts = appraisal.quote.unwrap();
    assert_eq!(facts.td_attribute_names, "SEPT_VE_DISABLE");
    assert_eq!(facts.xfam_names, "X87 SSE AVX AVX512 PKRU AMX");
}

#[test]
fn outside_its_time_or_without_collateral_it_is_not() {
    let Some((raw, collateral)) = phala() else { return };
    assert_eq!(appraised(&raw, &collateral, AT - 365 * 86_400).verdict(), Verdict::Rejected);
    let expired = appraised(&raw, &collateral, AT + 60 * 86_400);
    assert_eq!(expired.verdict(), Verdict::CouldNotCheck, "{:#?}", expired.checks);
    assert!(expired.check("quote_chain").is_some_and(|check| check.outcome == Outcome::Pass));
    let unknown = appraise_quote(&raw, None, &Policy::default(), &Roots::intel(), AT);
    assert_eq!(unknown.verdict(), Verdict::CouldNotCheck);
    assert!(unknown.check("quote_chain").is_some_and(|check| check.outcome == Outcome::CouldNotCheck));
}

#[test]
fn every_byte_of_it_matters() {
    let Some((raw, collateral)) = phala() else { return };
    let exact = quote::trim_padding(&raw).unwrap().to_vec();
    for at in 0..exact.len() {
        let mut damaged = exact.clone();
        damaged[at] ^= 0x10;
        let verdict = appraised(&damaged, &collateral, AT).verdict();
        assert_eq!(verdict, Verdict::Rejected, "byte {at} of {}", exact.len());
    }
    for length in (0..exact.len()).step_by(97) {
        assert_eq!(appraised(&exact[..length], &collateral, AT).verdict(), Verdict::Rejected, "{length}");
    }
    let longer = [exact.as_slice(), b"x"].concat();
    assert_eq!(appraised(&longer, &collateral, AT).verdict(), Verdict::Rejected);
}

#[test]
fn a_firmware_log_replays_to_its_quote() {
    let Some(log) = fixture("google-cos-113/ccel_data.dat") else { return };
    let Some(raw) = fixture("google-cos-113/cos-113-tdx-quote.dat") else { return };
    assert!(quote::parse(&raw).is_err(), "padding is not part of a quote");
    let quote = quote::parse(quote::trim_padding(&raw).unwrap()).unwrap();
    let events = ccel::parse(&log).unwrap();
    for mr in 0..4u8 {
        assert_eq!(event_log::replay(&events, mr), quote.rtmr[usize::from(mr)], "RTMR{mr}");
    }
    let entries = ccel::parse_entries(&log).unwrap();
    assert_eq!(ccel::parse_entries(&ccel::write(&entries)).unwrap(), entries);
}
