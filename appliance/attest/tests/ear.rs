//! EAT Attestation Results: what another verifier's reader finds in them, and that they never say more than the verdict.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use cofferdam_attest::appraise::{Appraisal, Roots, Verdict, appraise, appraise_document, appraise_quote};
use cofferdam_attest::ear::{Ear, Tier, policy_id};
use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::policy::Policy;
use cofferdam_attest::quote::attributes;
use common::{Fixture, NOW};
use serde_json::{Value, json};
use tdx_sim::QuoteFlaw;

fn ear(appraisal: &Appraisal) -> (Tier, Value) {
    let ear = Ear::new(appraisal, &Policy::default(), "test 1", NOW).unwrap();
    (ear.status(), serde_json::to_value(&ear).unwrap())
}

fn vector(json: &Value) -> &Value {
    &json["submods"]["cofferdam"]["ear_trustworthiness_vector"]
}

#[test]
fn an_accepted_simulated_machine_is_a_warning_with_every_mandatory_claim() {
    let fixture = Fixture::default();
    let (tier, json) = ear(&fixture.appraise(&fixture.evidence()));
    assert_eq!(tier, Tier::Warning);
    assert_eq!(json["eat_profile"], "tag:ietf.org,2026:rats/ear#04");
    assert_eq!(json["iat"], NOW);
    assert_eq!(json["exp"], fixture.claims.expires_at.unix());
    assert_eq!(json["ear_status"], "warning");
    assert_eq!(json["ear_verifier_id"]["build"], "test 1");
    let submodule = &json["submods"]["cofferdam"];
    assert_eq!(submodule["ear_status"], "warning");
    assert_eq!(submodule["ear_appraisal_policy_ids"], json!([policy_id(&Policy::default()).unwrap()]));
    let expected = json!({
        "instance-identity": 2, "hardware": 32, "executables": 2, "configuration": 2, "runtime-opaque": 2,
    });
    assert_eq!(*vector(&json), expected);
}

#[test]
fn a_policy_is_named_by_what_it_demands() {
    let other = Policy { max_age_s: 1, ..Policy::default() };
    assert_ne!(policy_id(&other).unwrap(), policy_id(&Policy::default()).unwrap());
    assert_eq!(
        policy_id(&Policy::parse(&Policy::default().to_json().unwrap()).unwrap()).unwrap(),
        policy_id(&Policy::default()).unwrap()
    );
}

#[test]
fn what_is_false_is_contraindicated_where_it_belongs() {
    let fixture = Fixture { change_report: |r| r.td_attributes |= attributes::DEBUG, ..Fixture::default() };
    let (tier, json) = ear(&fixture.appraise(&fixture.evidence()));
    assert_eq!((tier, &vector(&json)["runtime-opaque"]), (Tier::Contraindicated, &json!(96)));
    assert!(json.get("exp").is_none(), "nobody's claims");

    let mut fixture = Fixture::default();
    fixture.events[2].digest = Some([0x33; 48]);
    let (tier, json) = ear(&fixture.appraise(&fixture.evidence()));
    assert_eq!((tier, &vector(&json)["executables"]), (Tier::Contraindicated, &json!(96)));

    let fixture = Fixture::default();
    let quote = fixture.platform.flawed_quote(&fixture.report(), QuoteFlaw::ForeignPckKey).unwrap();
    let (tier, json) = ear(&fixture.appraise(&Evidence { quote, ..fixture.evidence() }));
    assert_eq!((tier, &vector(&json)["hardware"]), (Tier::Contraindicated, &json!(99)));
    assert_eq!(json["submods"]["cofferdam"]["github.com/cofferdam/cofferdam/failed"], json!(["quote_chain"]));
}

#[test]
fn what_could_not_be_checked_claims_nothing() {
    let fixture = Fixture::default();
    let evidence = Evidence { collateral: None, ..fixture.evidence() };
    let (tier, json) = ear(&fixture.appraise(&evidence));
    assert_eq!(
        (tier, &json["ear_status"], &vector(&json)["hardware"]),
        (Tier::None, &json!("none"), &json!(0))
    );
    assert_eq!(
        json["submods"]["cofferdam"]["github.com/cofferdam/cofferdam/unknown"],
        json!(["quote_chain"])
    );
}

#[test]
fn garbage_and_bare_quotes_have_results_too() {
    let fixture = Fixture::default();
    let roots = common::roots(&fixture.platform);
    let garbage = appraise_document(b"{}", &fixture.expectations(), &Policy::default(), &roots, NOW);
    assert_eq!(ear(&garbage).0, Tier::Contraindicated);
    let evidence = fixture.evidence();
    let bare = appraise_quote(&evidence.quote, evidence.collateral.as_ref(), &Policy::default(), &roots, NOW);
    let (tier, json) = ear(&bare);
    assert_eq!(bare.verdict(), Verdict::Accepted);
    assert_eq!((tier, &vector(&json)["executables"]), (Tier::Warning, &json!(0)));
    let unnamed = appraise(&evidence, &fixture.expectations(), &Policy::default(), &Roots::intel(), NOW);
    assert_eq!(vector(&ear(&unnamed).1)["instance-identity"], 96);
}

/// `ear_status` is never better than the worst claim of the vector (draft-ietf-rats-ear-04 §3.1).
#[test]
fn no_status_is_better_than_its_worst_claim() {
    let fixture = Fixture::default();
    for at in (0..fixture.evidence().quote.len()).step_by(211) {
        let mut evidence = fixture.evidence();
        evidence.quote[at] ^= 1;
        let (tier, json) = ear(&fixture.appraise(&evidence));
        let worst = vector(&json).as_object().unwrap().values().map(|v| v.as_i64().unwrap()).max().unwrap();
        let least = match worst {
            96.. => Tier::Contraindicated,
            32.. => Tier::Warning,
            _ => tier,
        };
        assert_eq!(tier, least, "byte {at}: {json}");
    }
}
