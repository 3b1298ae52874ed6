//! Appraisal from end to end: honest evidence is accepted, and every kind of damage is refused by the check that it breaks.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::string_slice)]

mod common;

use cofferdam_attest::appraise::{
    Appraisal, Expectations, Outcome, Roots, Verdict, appraise, appraise_document, appraise_quote,
};
use cofferdam_attest::challenge::{Challenge, Tree, leaf};
use cofferdam_attest::claims::Claims;
use cofferdam_attest::event_log::payload::{Declaration, Image, Payload as _, State};
use cofferdam_attest::event_log::{Event, MAX_APPLIED, MAX_FIRMWARE_PAYLOAD, event_digest, has_room};
use cofferdam_attest::evidence::{Collateral, Evidence, Template};
use cofferdam_attest::policy::Policy;
use cofferdam_attest::quote::attributes;
use cofferdam_attest::ratls;
use cofferdam_attest::reference::{BootPlatform, PlatformReference, ReferenceValues};
use cofferdam_attest::release::Tag;
use cofferdam_protocol::evidence::Nonce;
use cofferdam_protocol::state::Continuity;
use common::{Fixture, NOW, detail, failed, names, own_events, platform, time, word};
use tdx_sim::{CollateralOptions, QuoteFlaw, TdReport};

#[test]
fn honest_evidence_is_accepted_and_says_simulated() {
    let fixture = Fixture::default();
    let appraisal = fixture.appraise(&fixture.evidence());
    assert_eq!(appraisal.verdict(), Verdict::Accepted, "{:#?}", appraisal.checks);
    assert!(appraisal.simulated);
    assert_eq!(appraisal.headline(), "SIMULATED: accepted");
    assert!(detail(&appraisal, "trust_root").contains("SIMULATED"));
    let json = serde_json::to_value(&appraisal).unwrap();
    assert_eq!(json["quote"]["mrtd"], hex::encode(tdx_sim::mrtd()));
    assert_eq!(json["platform"]["tcb_status"], "UpToDate");
    assert_eq!(json["checks"][0]["outcome"], "pass");
}

#[test]
fn the_simulators_root_counts_only_when_it_is_named() {
    let fixture = Fixture::default();
    let evidence = fixture.evidence();
    let with = |roots: &Roots| appraise(&evidence, &fixture.expectations(), &Policy::default(), roots, NOW);
    let unnamed = with(&Roots::intel());
    assert_eq!(failed(&unnamed), ["trust_root"]);
    assert_eq!(unnamed.verdict(), Verdict::Rejected);
    assert!(!unnamed.simulated);
    assert_eq!(failed(&with(&common::roots(&platform(2)))), ["trust_root"]);
    assert!(Roots::intel().with_pem("no pem").is_err());
    assert!(Roots::intel().with_pem(&fixture.platform.pck_chain_pem()).is_err(), "only roots are roots");
}

#[test]
fn a_broken_chain_is_rejected_whichever_link_breaks() {
    let fixture = Fixture::default();
    for (flaw, check) in [
        (QuoteFlaw::ForeignPck, "trust_root"),
        (QuoteFlaw::ForeignPckKey, "quote_chain"),
        (QuoteFlaw::BrokenQeBinding, "quote_chain"),
        (QuoteFlaw::ForeignAttestationKey, "quote_chain"),
        (QuoteFlaw::DebugQe, "quoting_enclave"),
    ] {
        let mut evidence = fixture.evidence();
        evidence.quote = fixture.platform.flawed_quote(&fixture.report(), flaw).unwrap();
        assert_eq!(failed(&fixture.appraise(&evidence)), [check], "{flaw:?}");
    }
    let mut evidence = fixture.evidence();
    evidence.quote = fixture.platform.flawed_quote(&fixture.report(), QuoteFlaw::TamperedBody).unwrap();
    assert!(failed(&fixture.appraise(&evidence)).contains(&"quote_chain"));
}

#[test]
fn revoked_is_false_and_expired_or_missing_collateral_is_unknown() {
    let none = CollateralOptions::default();
    for (options, check) in [
        (CollateralOptions { revoked_pck: true, ..none }, "quote_chain"),
        (CollateralOptions { revoked_tcb: true, ..none }, "tcb_level"),
    ] {
        let fixture = Fixture { options, ..Fixture::default() };
        assert_eq!(failed(&fixture.appraise(&fixture.evidence())), [check], "{options:?}");
    }
    for options in [
        CollateralOptions { expired_tcb_info: true, ..none },
        CollateralOptions { expired_qe_identity: true, ..none },
        CollateralOptions { expired_pck_crl: true, ..none },
        CollateralOptions { expired_root_crl: true, ..none },
    ] {
        let fixture = Fixture { options, ..Fixture::default() };
        let appraisal = fixture.appraise(&fixture.evidence());
        assert_eq!(appraisal.verdict(), Verdict::CouldNotCheck, "{options:?}");
        assert_eq!(names(&appraisal, Outcome::CouldNotCheck), ["quote_chain", "collateral"], "{options:?}");
        assert!(detail(&appraisal, "collateral").contains("expired (2027-01-14T08:00:00Z)"));
    }
    let fixture = Fixture::default();
    let evidence = Evidence { collateral: None, ..fixture.evidence() };
    let appraisal = fixture.appraise(&evidence);
    assert_eq!(appraisal.verdict(), Verdict::CouldNotCheck);
    assert_eq!(names(&appraisal, Outcome::CouldNotCheck), ["quote_chain"]);
    assert!(appraisal.headline().starts_with("could not check"));
}

#[test]
fn a_revocation_list_has_expired_in_the_very_second_of_its_next_update() {
    let fixture = Fixture::default();
    let evidence = fixture.evidence();
    let ends = fixture.appraise(&evidence).platform.unwrap().collateral_expires;
    for (now, outcome) in [(ends - 1, Outcome::Pass), (ends, Outcome::CouldNotCheck)] {
        let roots = common::roots(&fixture.platform);
        let appraisal = appraise(&evidence, &fixture.expectations(), &Policy::default(), &roots, now);
        let collateral = appraisal.check("collateral").unwrap();
        assert_eq!(collateral.outcome, outcome, "{}", collateral.detail);
        let chain = appraisal.check("quote_chain").unwrap();
        assert_eq!(chain.outcome, Outcome::Pass, "{}", chain.detail);
    }
}

#[test]
fn expired_collateral_still_finds_what_was_false_when_it_held() {
    let expired = CollateralOptions::expired();
    let fixture = Fixture { options: expired, ..Fixture::default() };
    let mut evidence = fixture.evidence();
    let appraisal = fixture.appraise(&evidence);
    assert_eq!(appraisal.verdict(), Verdict::CouldNotCheck);
    assert_eq!(names(&appraisal, Outcome::CouldNotCheck), ["collateral"]);
    assert!(detail(&appraisal, "collateral").ends_with("as of 2027-01-14T08:00:00Z"));
    assert!(appraisal.simulated && appraisal.platform.is_some_and(|platform| platform.expired.is_some()));

    evidence.quote = fixture.platform.flawed_quote(&fixture.report(), QuoteFlaw::ForeignPckKey).unwrap();
    assert_eq!(failed(&fixture.appraise(&evidence)), ["quote_chain"]);
    let old = Fixture { options: CollateralOptions { out_of_date: true, ..expired }, ..Fixture::default() };
    assert_eq!(failed(&old.appraise(&old.evidence())), ["tcb_status"]);
}

#[test]
fn a_forged_quote_is_false_whatever_the_collateral_can_tell() {
    let fixture = Fixture::default();
    let in_part = CollateralOptions { expired_qe_identity: true, ..CollateralOptions::default() };
    let in_part = common::collateral(&fixture.platform, in_part);
    for collateral in [None, Some(in_part)] {
        for (flaw, why) in [
            (QuoteFlaw::ForeignPckKey, "the PCK did not sign"),
            (QuoteFlaw::BrokenQeBinding, "does not name the attestation key"),
            (QuoteFlaw::ForeignAttestationKey, "the attestation key did not sign"),
        ] {
            let quote = fixture.platform.flawed_quote(&fixture.report(), flaw).unwrap();
            let evidence = Evidence { quote, collateral: collateral.clone(), ..fixture.evidence() };
            let appraisal = fixture.appraise(&evidence);
            assert_eq!(failed(&appraisal), ["quote_chain"], "{flaw:?}");
            assert!(detail(&appraisal, "quote_chain").contains(why), "{}", detail(&appraisal, "quote_chain"));
        }
        let evidence = Evidence { collateral, ..fixture.evidence() };
        let unnamed = appraise(&evidence, &fixture.expectations(), &Policy::default(), &Roots::intel(), NOW);
        assert_eq!(failed(&unnamed), ["trust_root"]);
    }
}

#[test]
fn a_pck_chain_that_is_nowhere_is_unknown() {
    let fixture = Fixture::default();
    let mut evidence = fixture.evidence();
    // The kind of the PCK certification data, and no data: the lengths of two containers shrink with it.
    let mut quote = evidence.quote[..1252].to_vec();
    quote.extend([3, 0, 0, 0, 0, 0]);
    let length = |from: usize| u32::try_from(quote.len() - from).unwrap().to_le_bytes();
    let (certification, signature) = (length(770), length(636));
    quote[766..770].copy_from_slice(&certification);
    quote[632..636].copy_from_slice(&signature);
    evidence.quote = quote;
    let appraisal = fixture.appraise(&evidence);
    assert_eq!(appraisal.verdict(), Verdict::CouldNotCheck);
    assert_eq!(names(&appraisal, Outcome::CouldNotCheck), ["quote_chain"]);
    evidence.collateral.as_mut().unwrap().pck_certificate_chain = Some(fixture.platform.pck_chain_pem());
    assert_eq!(fixture.appraise(&evidence).verdict(), Verdict::Accepted);
}

#[test]
fn the_issuer_chain_of_the_revocation_list_is_read() {
    let fixture = Fixture::default();
    let honest = fixture.evidence().collateral.unwrap();
    let chain = honest.pck_crl_issuer_chain.clone();
    let end = "-----END CERTIFICATE-----\n";
    let ca = chain.split_inclusive(end).next().unwrap().to_owned();
    let root = fixture.platform.root_pem();
    let with = |pck_crl_issuer_chain: String| {
        let collateral = Some(Collateral { pck_crl_issuer_chain, ..honest.clone() });
        fixture.appraise(&Evidence { collateral, ..fixture.evidence() })
    };
    assert_eq!(with(ca.clone()).verdict(), Verdict::Accepted);
    for (chain, why) in [
        (String::new(), "names nobody"),
        ("x".to_owned(), "malformed"),
        (root.clone(), "does not begin with the issuer"),
        (honest.tcb_info_issuer_chain.clone(), "does not begin with the issuer"),
        (format!("{ca}{ca}"), "more than the issuer and the root"),
        (format!("{chain}{root}"), "more than the issuer and the root"),
        (format!("{ca}{}", platform(2).root_pem()), "more than the issuer and the root"),
    ] {
        let appraisal = with(chain);
        assert_eq!(failed(&appraisal), ["quote_chain"], "{why}");
        assert!(detail(&appraisal, "quote_chain").contains(why), "{}", detail(&appraisal, "quote_chain"));
    }
}

#[test]
fn collateral_of_another_machine_or_with_a_changed_byte_is_rejected() {
    let fixture = Fixture::default();
    let mut evidence = fixture.evidence();
    evidence.collateral = Some(common::collateral(&platform(2), CollateralOptions::default()));
    assert_eq!(failed(&fixture.appraise(&evidence)), ["quote_chain"]);
    let honest = fixture.evidence().collateral.unwrap();
    let changes: [fn(&mut cofferdam_attest::evidence::Collateral); 5] = [
        |c| c.tcb_info = c.tcb_info.replace("UpToDate", "OutOfDate"),
        |c| c.qe_identity = c.qe_identity.replace("TD_QE", "TD_QF"),
        |c| c.tcb_info_signature[5] ^= 1,
        |c| c.qe_identity_signature[5] ^= 1,
        |c| *c.pck_crl.last_mut().unwrap() ^= 1,
    ];
    for change in changes {
        let mut changed = honest.clone();
        change(&mut changed);
        assert_ne!(changed, honest);
        let evidence = Evidence { collateral: Some(changed), ..fixture.evidence() };
        assert_eq!(failed(&fixture.appraise(&evidence)), ["quote_chain"]);
    }
}

#[test]
fn an_outdated_platform_is_rejected_unless_the_policy_says_otherwise() {
    let fixture = Fixture {
        options: CollateralOptions { out_of_date: true, ..Default::default() },
        ..Fixture::default()
    };
    let evidence = fixture.evidence();
    let strict = fixture.appraise(&evidence);
    assert_eq!(failed(&strict), ["tcb_status"]);
    assert!(detail(&strict, "tcb_status").starts_with("OutOfDate"));
    let mut policy = Policy::default();
    policy.tcb_statuses.push("OutOfDate".into());
    let with = |policy: &Policy| {
        appraise(&evidence, &fixture.expectations(), policy, &common::roots(&fixture.platform), NOW)
    };
    assert_eq!(with(&policy).verdict(), Verdict::Accepted);
    policy.rejected_advisories = with(&policy).platform.unwrap().advisories;
    assert!(!policy.rejected_advisories.is_empty());
    assert_eq!(failed(&with(&policy)), ["advisories"]);
    let demanding = Policy { min_tcb_evaluation_data_number: 1_000, ..Policy::default() };
    assert!(failed(&with(&demanding)).contains(&"tcb_evaluation"));
}

#[test]
fn td_attributes_and_host_chosen_identities_are_checked() {
    type Change = fn(&mut TdReport);
    let cases: [(Change, &str, &str); 9] = [
        (|r| r.td_attributes |= attributes::DEBUG, "td_attributes", "DEBUG"),
        (|r| r.td_attributes &= !attributes::SEPT_VE_DISABLE, "td_attributes", "SEPT_VE_DISABLE is not set"),
        (|r| r.td_attributes |= attributes::MIGRATABLE, "td_attributes", "MIGRATABLE"),
        (|r| r.td_attributes |= 1 << 4, "td_attributes", "PROFILING"),
        (|r| r.td_attributes |= 1 << 40, "td_attributes", "RESERVED"),
        (|r| r.xfam |= 1 << 8, "xfam", "PT"),
        (|r| r.xfam &= !1, "xfam", "X87 is not set"),
        (|r| r.mr_config_id = [7; 48], "mr_config_id", "must be zero"),
        (|r| r.mr_owner = [7; 48], "mr_owner", "must be zero"),
    ];
    for (change_report, check, why) in cases {
        let fixture = Fixture { change_report, ..Fixture::default() };
        let appraisal = fixture.appraise(&fixture.evidence());
        assert_eq!(appraisal.verdict(), Verdict::Rejected, "{check} {why}");
        assert!(failed(&appraisal).contains(&check), "{check}: {:?}", failed(&appraisal));
        assert!(detail(&appraisal, check).contains(why), "{}", detail(&appraisal, check));
    }
}

#[test]
fn a_quote_of_another_length_is_rejected() {
    let fixture = Fixture::default();
    let honest = fixture.evidence();
    for extra in [&b"\0"[..], b"x", &[0; 64]] {
        let quote = [honest.quote.as_slice(), extra].concat();
        let appraisal = fixture.appraise(&Evidence { quote, ..honest.clone() });
        assert!(detail(&appraisal, "quote_format").contains("after the end"));
        assert_eq!(appraisal.verdict(), Verdict::Rejected);
    }
    for length in [0, 1, 47, 48, 631, 635, 636, honest.quote.len() - 1] {
        let quote = honest.quote[..length].to_vec();
        let appraisal = fixture.appraise(&Evidence { quote, ..honest.clone() });
        assert!(failed(&appraisal).contains(&"quote_format"), "{length}");
    }
}

#[test]
fn a_changed_image_names_the_register_and_the_event() {
    let mut fixture = Fixture::default();
    fixture.events[2].digest = Some([0x33; 48]);
    let appraisal = fixture.appraise(&fixture.evidence());
    assert_eq!(failed(&appraisal), ["rtmr1"]);
    let why = detail(&appraisal, "rtmr1");
    assert!(
        why.contains("event 1 of RTMR1: EV_EFI_BOOT_SERVICES_APPLICATION (firmware: BOOTX64.EFI)"),
        "{why}"
    );

    let mut fixture = Fixture::default();
    fixture.events[5].digest = Some([0x66; 48]);
    let why = detail(&fixture.appraise(&fixture.evidence()), "rtmr2").to_owned();
    assert!(why.contains("event 2 of RTMR2: EV_IPL (firmware: .initrd)"), "{why}");

    let mut fixture = Fixture::default();
    fixture.events.remove(5);
    let why = detail(&fixture.appraise(&fixture.evidence()), "rtmr2").to_owned();
    assert!(why.contains("event 2 of RTMR2 is missing: EV_IPL (firmware: .initrd)"), "{why}");

    let mut fixture = Fixture::default();
    let extra =
        Event { digest: Some([9; 48]), payload: Some(b".cmdline".to_vec()), ..fixture.events[5].clone() };
    fixture.events.insert(6, extra);
    let why = detail(&fixture.appraise(&fixture.evidence()), "rtmr2").to_owned();
    assert!(why.contains("event 3 of RTMR2 was not predicted: EV_IPL (.cmdline)"), "{why}");
}

#[test]
fn a_firmware_log_that_does_not_replay_names_no_event() {
    let mut fixture = Fixture::default();
    fixture.events[2].digest = Some([0x33; 48]);
    let mut evidence = fixture.evidence();
    evidence.event_log[2].digest = Some([3; 48]);
    let appraisal = fixture.appraise(&evidence);
    assert_eq!(failed(&appraisal), ["firmware_log", "rtmr1"]);
    assert!(detail(&appraisal, "rtmr1").contains("no event can be named"));
    assert!(detail(&appraisal, "firmware_log").contains("RTMR1"));
}

#[test]
fn reference_values_that_are_missing_are_unknown_not_false() {
    let fixture = Fixture::default();
    let evidence = fixture.evidence();
    let none = Expectations { reference: ReferenceValues::default(), ..fixture.expectations() };
    let appraisal = fixture.appraise_with(&evidence, &none);
    assert_eq!(appraisal.verdict(), Verdict::CouldNotCheck);
    assert_eq!(names(&appraisal, Outcome::CouldNotCheck), ["mrtd", "rtmr1", "rtmr2"]);
    assert_eq!(appraisal.check("rtmr0").unwrap().outcome, Outcome::NotChecked);
    let mut expected = fixture.expectations();
    expected.reference.platforms[0].mrtd[0].value = [1; 48];
    assert_eq!(failed(&fixture.appraise_with(&evidence, &expected)), ["mrtd"]);
}

#[test]
fn values_of_a_simulated_device_are_never_compared_with_hardware_nor_the_reverse() {
    let fixture = Fixture::default();
    let mut expected = fixture.expectations();
    expected.reference.platforms[0].simulated = false;
    expected.reference.images[0].boots[0].platform = BootPlatform::Tdx;
    let appraisal = fixture.appraise_with(&fixture.evidence(), &expected);
    assert_eq!(appraisal.verdict(), Verdict::CouldNotCheck);
    assert_eq!(names(&appraisal, Outcome::CouldNotCheck), ["mrtd", "rtmr1", "rtmr2"]);
}

#[test]
fn registers_of_two_images_or_platforms_never_add_up_to_one() {
    let fixture = Fixture::default();
    let mut expected = fixture.expectations();
    // Two images: one has the right RTMR1, the other the right RTMR2.
    let mut other = expected.reference.images[0].clone();
    expected.reference.images[0].boots[0].rtmr1 = [1; 48];
    other.boots[0].rtmr2 = [2; 48];
    expected.reference.images.push(other);
    let appraisal = fixture.appraise_with(&fixture.evidence(), &expected);
    assert_eq!(failed(&appraisal).len(), 1, "{:?}", failed(&appraisal));
    // Two platforms: one has the right MRTD, the other the right RTMR0.
    let mut expected = fixture.expectations();
    let mut other = expected.reference.platforms[0].clone();
    expected.reference.platforms[0].mrtd[0].value = [1; 48];
    other.rtmr0 = Some([2; 48]);
    expected.reference.platforms.push(other);
    assert_eq!(failed(&fixture.appraise_with(&fixture.evidence(), &expected)), ["rtmr0"]);
    // The right ones among others are found wherever they stand.
    let mut expected = fixture.expectations();
    for wrong in [1, 2, 3] {
        let mut image = expected.reference.images[0].clone();
        (image.boots[0].rtmr1, image.boots[0].rtmr2) = ([wrong; 48], [wrong; 48]);
        let mut platform = expected.reference.platforms[0].clone();
        platform.mrtd[0].value = [wrong; 48];
        expected.reference.images.insert(usize::from(wrong % 2), image);
        expected.reference.platforms.insert(usize::from(wrong % 2), platform);
    }
    assert_eq!(fixture.appraise_with(&fixture.evidence(), &expected).verdict(), Verdict::Accepted);
}

#[test]
fn a_platform_that_is_determined_in_part_can_refuse_but_not_vouch() {
    let fixture = Fixture::default();
    let mut expected = fixture.expectations();
    expected.reference.platforms[0].rtmr0 = None;
    let appraisal = fixture.appraise_with(&fixture.evidence(), &expected);
    assert_eq!(appraisal.check("rtmr0").unwrap().outcome, Outcome::NotChecked);
    assert!(detail(&appraisal, "rtmr0").contains("as predicted"));
    expected.reference.platforms[0].events[0].digest = [7; 48];
    let appraisal = fixture.appraise_with(&fixture.evidence(), &expected);
    assert_eq!(failed(&appraisal), ["rtmr0"]);
    assert!(detail(&appraisal, "rtmr0").contains("lacks the predicted"));
}

#[test]
fn of_platforms_with_one_mrtd_the_one_that_fits_is_found_in_any_order() {
    let fixture = Fixture::default();
    let mut partial = fixture.expectations().reference.platforms[0].clone();
    partial.rtmr0 = None;
    // The first event of the log is not predicted, as a firmware's half for any machine leaves out the memory map.
    partial.events.remove(0);
    let mut other = partial.clone();
    other.events[0].digest = [7; 48];
    for platforms in [[partial.clone(), other.clone()], [other, partial]] {
        let mut expected = fixture.expectations();
        expected.reference.platforms = platforms.to_vec();
        let appraisal = fixture.appraise_with(&fixture.evidence(), &expected);
        assert_eq!(failed(&appraisal), Vec::<&str>::new());
        assert!(detail(&appraisal, "rtmr0").starts_with("1 events are as predicted"));
    }
}

#[test]
fn a_half_for_another_machine_shape_does_not_stand_in_the_way_of_one_that_fits() {
    let fixture = Fixture::default();
    let exact = fixture.expectations().reference.platforms[0].clone();
    let partial = PlatformReference { rtmr0: None, ..exact.clone() };
    let wrong = PlatformReference { rtmr0: Some([2; 48]), ..exact.clone() };
    let appraise = |platforms: &[&PlatformReference]| {
        let mut expected = fixture.expectations();
        expected.reference.platforms = platforms.iter().copied().cloned().collect();
        fixture.appraise_with(&fixture.evidence(), &expected)
    };
    for platforms in [[&wrong, &partial], [&partial, &wrong]] {
        let appraisal = appraise(&platforms);
        assert_eq!(appraisal.verdict(), Verdict::Accepted);
        assert_eq!(appraisal.check("rtmr0").unwrap().outcome, Outcome::NotChecked);
    }
    assert_eq!(failed(&appraise(&[&wrong])), ["rtmr0"]);
    for platforms in [[&exact, &partial, &wrong], [&wrong, &partial, &exact]] {
        assert_eq!(appraise(&platforms).check("rtmr0").unwrap().outcome, Outcome::Pass);
    }
}

#[test]
fn leaving_the_firmware_log_out_spares_nobody_the_comparison() {
    let fixture = Fixture::default();
    let mut expected = fixture.expectations();
    expected.reference.platforms[0].rtmr0 = None;
    let mut evidence = fixture.evidence();
    evidence.event_log.retain(|event| event.mr == 3);
    let appraisal = fixture.appraise_with(&evidence, &expected);
    assert_eq!(appraisal.verdict(), Verdict::CouldNotCheck);
    assert_eq!(names(&appraisal, Outcome::CouldNotCheck), ["rtmr0"]);
}

#[test]
fn a_log_that_was_reordered_cut_or_extended_is_rejected() {
    let fixture = Fixture::default();
    let honest = fixture.evidence();
    let with = |change: &dyn Fn(&mut Vec<Event>)| {
        let mut evidence = honest.clone();
        change(&mut evidence.event_log);
        fixture.appraise(&evidence)
    };
    let last = honest.event_log.len() - 1;
    for at in 6..=last {
        let appraisal = with(&|log| {
            log.remove(at);
        });
        assert!(failed(&appraisal).contains(&"event_log"), "without event {at}");
        let appraisal = with(&|log| log[at].payload.as_mut().unwrap().push(b' '));
        assert!(failed(&appraisal).contains(&"event_log"), "event {at} changed");
        if at < last {
            let appraisal = with(&|log| log.swap(at, at + 1));
            assert!(failed(&appraisal).contains(&"event_log"), "events {at} and {} swapped", at + 1);
            assert!(failed(&appraisal).contains(&"event_order"), "order {at}");
        }
    }
    let extended = with(&|log| log.push(Event::new("sealed", "{}")));
    assert!(failed(&extended).contains(&"event_log"));
    let doubled = with(&|log| log.push(log[last].clone()));
    assert!(failed(&doubled).contains(&"event_log"));
    let emptied = with(&|log| log.clear());
    assert!(failed(&emptied).contains(&"event_log"));
    let interleaved = with(&|log| log.swap(0, 6));
    assert!(failed(&interleaved).contains(&"event_order"));
    for at in 0..6 {
        let appraisal = with(&|log| {
            log.remove(at);
        });
        assert!(failed(&appraisal).contains(&"firmware_log"), "without firmware event {at}");
    }
}

#[test]
fn a_log_that_replays_but_breaks_the_rules_is_rejected() {
    let with = |own: Vec<Event>| {
        let fixture = Fixture { events: [common::firmware_events(), own].concat(), ..Fixture::default() };
        fixture.appraise(&fixture.evidence())
    };
    let own = own_events;
    let (declaration, launch) = (own()[0].clone(), own()[5].clone());
    let cases: Vec<(Vec<Event>, &str)> = vec![
        (own()[..5].to_vec(), "no `launch`"),
        ([own(), vec![launch.clone()]].concat(), "`launch` after the launch boundary"),
        ([own(), vec![Event::new("upgrade", "{}")]].concat(), "`upgrade` after the launch boundary"),
        ([own(), vec![own()[4].clone()]].concat(), "`image` after the launch boundary"),
        ([vec![launch], own()[..5].to_vec()].concat(), "`launch` before `declaration`"),
        (
            [own()[1..2].to_vec(), vec![declaration], own()[2..].to_vec()].concat(),
            "where `declaration` belongs",
        ),
        (
            [own()[..4].to_vec(), vec![Event::new("debug", "{}")], own()[4..].to_vec()].concat(),
            "unknown event `debug`",
        ),
        ([own()[..3].to_vec(), own()[4..].to_vec()].concat(), "before `state`"),
    ];
    for (events, why) in cases {
        let appraisal = with(events);
        assert!(failed(&appraisal).contains(&"event_order"), "{why}: {:?}", failed(&appraisal));
        assert!(detail(&appraisal, "event_order").contains(why), "{}", detail(&appraisal, "event_order"));
        assert!(!failed(&appraisal).contains(&"event_log"));
    }
    let mut borrowed = own();
    borrowed[5].digest = Some(borrowed[5].register_digest());
    borrowed[5].payload = Some(b"{}".to_vec());
    assert!(failed(&with(borrowed)).contains(&"event_order"));
    let mut foreign = own();
    foreign[1] = common::appliance(&common::DIGEST.replace('1', "4")).event().unwrap();
    assert_eq!(failed(&with(foreign)), ["event_payloads"]);
    let mut malformed = own();
    malformed[2] = Event::new("machine", r#"{"cpus":2,"memory_mib":2048,"extra":1}"#);
    assert_eq!(failed(&with(malformed)), ["event_payloads"]);
    let mut unmeasured = own();
    unmeasured.remove(4);
    assert_eq!(failed(&with(unmeasured)), ["event_payloads"]);
}

/// What a declaration measures that is applied after launch.
fn applied(number: usize) -> [Event; 2] {
    let digest = format!("sha256:{number:064x}");
    let commit = common::word(&format!("{number:040x}"));
    let reference = common::word(&format!("registry.example/web@{digest}"));
    [
        Declaration { digest: common::word(&digest), source: "github".into(), commit }.event().unwrap(),
        Image { service: "web".into(), reference }.event().unwrap(),
    ]
}

/// An appliance that has applied so many.
fn after(changes: usize) -> Fixture {
    let mut fixture = Fixture::default();
    fixture.events.extend((1..=changes).flat_map(applied));
    fixture.claims.declaration = common::word(&format!("sha256:{changes:064x}"));
    fixture.claims.commit = common::word(&format!("{changes:040x}"));
    fixture
}

#[test]
fn declarations_that_are_applied_after_launch_are_told_and_have_an_end() {
    // Whatever the repository has at the claimed commit.
    let appraised = |fixture: &Fixture| {
        let expected = Expectations { commit: None, declaration: None, ..fixture.expectations() };
        fixture.appraise_with(&fixture.evidence(), &expected)
    };
    let appraisal = appraised(&after(2));
    assert_eq!(appraisal.verdict(), Verdict::Accepted, "{:?}", failed(&appraisal));
    let commits: Vec<String> = appraisal.applied.iter().map(|applied| applied.commit.to_string()).collect();
    assert_eq!(commits, [format!("{:040x}", 1), format!("{:040x}", 2)]);
    let told = format!("launch; declarations applied after launch: 2, commit {}", commits[1]);
    assert!(detail(&appraisal, "event_order").ends_with(&told), "{}", detail(&appraisal, "event_order"));
    assert!(appraised(&Fixture::default()).applied.is_empty());

    assert_eq!(appraised(&after(MAX_APPLIED)).verdict(), Verdict::Accepted);
    let appraisal = appraised(&after(300));
    assert_eq!(failed(&appraisal), ["event_order"]);
    assert!(detail(&appraisal, "event_order").contains("300 declarations applied after launch"));
}

#[test]
fn a_log_has_room_for_what_a_certificate_holds() {
    let booted = Fixture::default();
    let room = (1..300).take_while(|number| has_room(&after(number - 1).events, &applied(*number))).count();
    assert!((75..MAX_APPLIED).contains(&room), "{room}");
    // What firmware measured is no matter: a certificate leaves it out where it has to.
    let mut full = after(room);
    for event in full.events.iter_mut().filter(|event| event.mr < 3) {
        event.payload = Some(vec![7; MAX_FIRMWARE_PAYLOAD]);
    }
    assert!(has_room(&full.events, &[]));
    // The largest quote and claims of any appliance fit beside it.
    let short = |event: &mut Event| {
        event.payload = event.payload.take().filter(|_| event.digest.is_none());
    };
    full.events.iter_mut().for_each(short);
    let evidence = Evidence { collateral: None, ..full.evidence() };
    let length = evidence.to_json().unwrap().len();
    assert!(length + 4096 < ratls::MAX_EVIDENCE, "{length}");
    assert!(!has_room(&booted.events, &(1..=MAX_APPLIED + 1).flat_map(applied).collect::<Vec<_>>()));
}

#[test]
fn sealed_is_what_was_measured() {
    let mut fixture = Fixture::default();
    fixture.claims.sealed = true;
    assert_eq!(failed(&fixture.appraise(&fixture.evidence())), ["sealed"]);
    fixture.events.push(Event::new("sealed", "{}"));
    assert_eq!(fixture.appraise(&fixture.evidence()).verdict(), Verdict::Accepted);
    fixture.claims.sealed = false;
    assert_eq!(failed(&fixture.appraise(&fixture.evidence())), ["sealed"]);
}

#[test]
fn an_allowed_foreign_event_passes_before_the_boundary_only() {
    let policy = Policy { allowed_events: vec!["debug".into(), "upgrade".into()], ..Policy::default() };
    let with = |at: usize, name: &str| {
        let mut own = own_events();
        own.insert(at, Event::new(name, "{}"));
        let fixture = Fixture { events: [common::firmware_events(), own].concat(), ..Fixture::default() };
        let roots = common::roots(&fixture.platform);
        appraise(&fixture.evidence(), &fixture.expectations(), &policy, &roots, NOW).verdict()
    };
    assert_eq!(with(2, "debug"), Verdict::Accepted);
    assert_eq!(with(6, "debug"), Verdict::Rejected);
    assert_eq!(with(6, "upgrade"), Verdict::Rejected, "no policy allows it after the launch boundary");
}

/// Changes one claim after the quote was made, as somebody who edits `attestation.json` would.
fn tampered(change: impl Fn(&mut Claims), expected: &dyn Fn(&Fixture) -> Expectations) -> Appraisal {
    let fixture = Fixture::default();
    let mut evidence = fixture.evidence();
    let mut claims = fixture.claims.clone();
    change(&mut claims);
    evidence.claims = claims.encode().unwrap();
    fixture.appraise_with(&evidence, &expected(&fixture))
}

#[test]
fn a_tampered_claim_is_rejected_by_its_name() {
    type Change = fn(&mut Claims);
    let cases: [(&str, Change); 5] = [
        ("repository", |c| c.repository = word("mallory/shop")),
        ("commit", |c| c.commit = [0x99; 20].into()),
        ("declaration", |c| c.declaration = [0x99; 32].into()),
        ("endpoint", |c| c.endpoint = word("mallory.example:443")),
        ("tls_key", |c| c.tls_key = [0x99; 32].into()),
    ];
    for (name, change) in cases {
        let appraisal = tampered(change, &Fixture::expectations);
        assert_eq!(failed(&appraisal), ["report_data", name]);
        let why = detail(&appraisal, "report_data");
        assert!(why.ends_with(&format!(": {name} was changed")), "{why}");
    }
}

#[test]
fn a_brief_appraisal_has_the_same_verdict_and_looks_at_the_cheapest_first() {
    let brief = |fixture: &Fixture| Expectations { brief: true, ..fixture.expectations() };
    let fixture = Fixture::default();
    let evidence = fixture.evidence();
    let accepted = fixture.appraise_with(&evidence, &brief(&fixture));
    assert_eq!(accepted.checks, fixture.appraise(&evidence).checks);
    let appraisal = tampered(|claims| claims.endpoint = word("thief.example:443"), &brief);
    assert_eq!(appraisal.verdict(), Verdict::Rejected);
    assert_eq!(failed(&appraisal), ["report_data"]);
    assert_eq!(appraisal.checks.len(), 1, "neither the chain nor the log: {:#?}", appraisal.checks);
}

#[test]
fn a_tampered_claim_is_named_offline_where_the_event_log_knows_it() {
    let offline = |_: &Fixture| Expectations::default();
    type Change = fn(&mut Claims);
    let cases: [(&str, Change); 5] = [
        ("repository", |c| c.repository = word("mallory/shop")),
        ("commit", |c| c.commit = [0x99; 20].into()),
        ("declaration", |c| c.declaration = [0x99; 32].into()),
        ("endpoint", |c| c.endpoint = word("mallory.example:443")),
        ("tls_key", |c| c.tls_key = [0x99; 32].into()),
    ];
    for (name, change) in cases {
        assert_eq!(failed(&tampered(change, &offline)), ["report_data", name]);
    }
    let suspected = tampered(|c| c.state_epoch = 7, &offline);
    assert_eq!(failed(&suspected), ["report_data"]);
    let why = detail(&suspected, "report_data");
    assert!(why.contains("state_epoch") && why.contains("vault_key") && !why.contains("endpoint"), "{why}");
}

#[test]
fn a_tampered_time_is_named_even_offline() {
    let offline = |_: &Fixture| Expectations::default();
    let later = |c: &mut Claims| c.expires_at = time(NOW + 3 * 86_400);
    assert!(detail(&tampered(later, &offline), "report_data").ends_with("expires_at was changed"));
    let fresher = |c: &mut Claims| c.issued_at = time(NOW - 17);
    assert!(detail(&tampered(fresher, &offline), "report_data").ends_with("issued_at was changed"));
    let tagged = |fixture: &Fixture| Expectations {
        tag: Tag::for_claims(&fixture.claims.encode().unwrap()),
        ..Expectations::default()
    };
    assert_eq!(failed(&tampered(fresher, &tagged)), ["report_data", "claims", "issued_at"]);
}

#[test]
fn claims_that_the_quote_commits_to_still_have_to_be_the_expected_ones() {
    let fixture = Fixture::default();
    let evidence = fixture.evidence();
    type Change = fn(&mut Expectations);
    let cases: [(&str, Change); 8] = [
        ("repository", |e| e.repository = Some(word("acme/other"))),
        ("commit", |e| e.commit = Some([0x88; 20].into())),
        ("declaration", |e| e.declaration = Some([0x88; 32].into())),
        ("endpoint", |e| e.endpoint = Some(word("other.example:1"))),
        ("tls_key", |e| e.tls_key = Some([0x88; 32].into())),
        ("nonce", |e| e.nonce = Some(Nonce::new(vec![1; 32]).unwrap())),
        ("channel_binding", |e| e.channel_binding = Some([1; 32].into())),
        ("claims", |e| e.tag = Tag::parse("attest-20270115T075000Z-00000000")),
    ];
    for (name, change) in cases {
        let mut expected = fixture.expectations();
        change(&mut expected);
        assert_eq!(failed(&fixture.appraise_with(&evidence, &expected)), [name]);
    }
}

#[test]
fn nonce_and_channel_binding_are_bound_through_the_claims() {
    let mut fixture = Fixture::default();
    fixture.claims.nonce = Some(word("AQEBAQEBAQEBAQEBAQEBAQ=="));
    fixture.claims.channel_binding = Some(word("AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="));
    let evidence = fixture.evidence();
    let expected = |nonce: u8, binding: u8| Expectations {
        nonce: Some(Nonce::new(vec![nonce; 16]).unwrap()),
        channel_binding: Some([binding; 32].into()),
        ..fixture.expectations()
    };
    assert_eq!(fixture.appraise_with(&evidence, &expected(1, 2)).verdict(), Verdict::Accepted);
    assert_eq!(failed(&fixture.appraise_with(&evidence, &expected(3, 2))), ["nonce"]);
    assert_eq!(failed(&fixture.appraise_with(&evidence, &expected(1, 3))), ["channel_binding"]);
}

#[test]
fn a_document_of_many_is_what_each_would_have_been_written() {
    let nonce = Nonce::new(vec![7; 64]).unwrap();
    let tree = Tree::new(
        (0..600_u16).map(|n| leaf(&Nonce::new(n.to_be_bytes().repeat(32)).unwrap(), None)).collect(),
    );
    let tree = tree.unwrap();
    let mut fixture = Fixture::default();
    fixture.claims.challenges = Some(tree.root());
    let challenge =
        Challenge { nonce, channel_binding: Some([1; 32].into()), index: 599, path: tree.path(599) };
    let evidence = Evidence { challenge: Some(challenge.clone()), ..fixture.evidence() };
    let written = Template::new(evidence.clone()).unwrap().with(&challenge).unwrap();
    assert_eq!(written, evidence.to_json().unwrap());
    assert_eq!(Evidence::parse(&written).unwrap(), evidence);
    let challenge = serde_json::to_vec(&challenge).unwrap();
    assert!(challenge.len() < 1000, "what a document leaves room for: {}", challenge.len());
}

/// An appliance that waits to be unsealed, with the claims that a client on its connection asked for.
fn waiting() -> Fixture {
    let events = [common::firmware_events(), own_events()[..3].to_vec()].concat();
    let mut fixture = Fixture { events, ..Fixture::default() };
    fixture.claims.nonce = Some(Nonce::new(vec![1; 16]).unwrap());
    fixture.claims.channel_binding = Some([2; 32].into());
    fixture
}

/// What such a client expects.
fn on_the_connection(fixture: &Fixture) -> Expectations {
    Expectations {
        before_launch: true,
        nonce: Some(Nonce::new(vec![1; 16]).unwrap()),
        channel_binding: Some([2; 32].into()),
        ..fixture.expectations()
    }
}

#[test]
fn evidence_from_before_the_launch_counts_only_where_it_is_expected_and_on_its_own_connection() {
    let fixture = waiting();
    let evidence = fixture.evidence();
    let expected = on_the_connection(&fixture);
    let appraisal = fixture.appraise_with(&evidence, &expected);
    assert_eq!(appraisal.verdict(), Verdict::Accepted, "{}", appraisal.headline());
    assert!(appraisal.is_before_launch());

    let unexpected = Expectations { before_launch: false, ..expected.clone() };
    let appraisal = fixture.appraise_with(&evidence, &unexpected);
    assert_eq!(failed(&appraisal), ["event_order"]);
    assert!(!appraisal.is_before_launch());

    type Change = fn(&mut Expectations);
    let unbound: [(&str, Change); 3] = [
        ("nonce", |e| e.nonce = None),
        ("channel binding", |e| e.channel_binding = None),
        ("TLS key", |e| e.tls_key = None),
    ];
    for (what, change) in unbound {
        let mut expected = expected.clone();
        change(&mut expected);
        let appraisal = fixture.appraise_with(&evidence, &expected);
        assert_eq!(failed(&appraisal), ["before_launch"], "{what}");
        assert!(detail(&appraisal, "before_launch").contains(what), "{what}");
    }
    let mallory = Expectations { tls_key: Some([9; 32].into()), ..expected.clone() };
    assert_eq!(failed(&fixture.appraise_with(&evidence, &mallory)), ["tls_key"]);
    let relayed = Expectations { channel_binding: Some([9; 32].into()), ..expected };
    assert_eq!(failed(&fixture.appraise_with(&evidence, &relayed)), ["channel_binding"]);
}

/// What is sent can be opened by the vault in the claims alone, whoever relays it.
#[test]
fn for_what_is_sealed_to_the_vault_key_a_nonce_suffices_and_nothing_less() {
    let mut fixture = waiting();
    fixture.claims.channel_binding = None;
    let evidence = fixture.evidence();
    let expected = Expectations {
        before_launch: true,
        sealed_to_vault_key: true,
        nonce: Some(Nonce::new(vec![1; 16]).unwrap()),
        tls_key: None,
        ..fixture.expectations()
    };
    let appraisal = fixture.appraise_with(&evidence, &expected);
    assert_eq!(appraisal.verdict(), Verdict::Accepted, "{}", appraisal.headline());
    assert!(appraisal.is_before_launch());
    let other = Expectations { nonce: Some(Nonce::new(vec![2; 16]).unwrap()), ..expected.clone() };
    assert_eq!(failed(&fixture.appraise_with(&evidence, &other)), ["nonce"]);
    let none = Expectations { nonce: None, ..expected.clone() };
    assert_eq!(failed(&fixture.appraise_with(&evidence, &none)), ["before_launch"]);
    let not_expected = Expectations { before_launch: false, ..expected.clone() };
    assert_eq!(failed(&fixture.appraise_with(&evidence, &not_expected)), ["event_order"]);
    let as_release = Expectations { tag: Tag::for_claims(&evidence.claims), ..expected };
    assert_eq!(failed(&fixture.appraise_with(&evidence, &as_release)), ["before_launch"]);
}

#[test]
fn a_release_attestation_is_never_of_an_appliance_that_waits() {
    let fixture = waiting();
    let evidence = fixture.evidence();
    let tag = Tag::for_claims(&evidence.claims);
    assert!(tag.is_some());
    let as_release = Expectations { tag, ..fixture.expectations() };
    assert_eq!(failed(&fixture.appraise_with(&evidence, &as_release)), ["event_order"]);
    let careless = Expectations { tag, ..on_the_connection(&fixture) };
    let appraisal = fixture.appraise_with(&evidence, &careless);
    assert_eq!(failed(&appraisal), ["before_launch"]);
    assert!(detail(&appraisal, "before_launch").contains("release attestation"));
}

#[test]
fn a_launched_appliance_cannot_pass_for_one_that_waits() {
    let fixture = waiting();
    let expected = on_the_connection(&fixture);
    let launched = Fixture { events: [common::firmware_events(), own_events()].concat(), ..waiting() };
    let appraisal = launched.appraise_with(&launched.evidence(), &expected);
    assert_eq!(appraisal.verdict(), Verdict::Accepted, "who asks for either takes both");
    assert!(!appraisal.is_before_launch());
    for cut in 1..=3 {
        let mut evidence = launched.evidence();
        evidence.event_log.truncate(evidence.event_log.len() - cut);
        let failed = failed(&launched.appraise_with(&evidence, &expected));
        assert!(failed.contains(&"event_log"), "without its last {cut} events: {failed:?}");
    }
    // Measured so, but no appliance shows evidence there.
    let own = own_events();
    let mut early = own[..3].to_vec();
    early.push(Event::new("debug", "{}"));
    let places: [Vec<Event>; 6] = [
        own[..2].to_vec(),
        own[..4].to_vec(),
        own[..5].to_vec(),
        [&own[..3], &own[4..5]].concat(),
        vec![own[0].clone(), own[2].clone(), own[1].clone()],
        early,
    ];
    for own in places {
        let fixture = Fixture { events: [common::firmware_events(), own.clone()].concat(), ..waiting() };
        let appraisal = fixture.appraise_with(&fixture.evidence(), &expected);
        let names: Vec<&str> = own.iter().map(|event| event.event.as_str()).collect();
        assert!(failed(&appraisal).contains(&"event_order"), "{names:?}");
    }
}

#[test]
fn the_epoch_of_a_state_on_disk_is_the_one_that_was_measured() {
    let with = |state: Event, epoch: u64| {
        let mut own = own_events();
        own[3] = state;
        let mut fixture = Fixture { events: [common::firmware_events(), own].concat(), ..Fixture::default() };
        fixture.claims.state_epoch = epoch;
        fixture
    };
    let disk = |epoch: u64| {
        let key = [5; 32].into();
        let (fresh, lineage) = (epoch == 1, 1.try_into().unwrap());
        State::Disk { fresh, key, epoch: epoch.try_into().unwrap(), lineage, continuity: None }
            .event()
            .unwrap()
    };
    for epoch in [1, 7] {
        let fixture = with(disk(epoch), epoch);
        assert_eq!(fixture.appraise(&fixture.evidence()).verdict(), Verdict::Accepted);
    }
    for (measured, claimed) in [(7, 6), (7, 8), (7, 0)] {
        let fixture = with(disk(measured), claimed);
        assert_eq!(failed(&fixture.appraise(&fixture.evidence())), ["state_epoch"]);
    }
    // Changed after the quote was made: the event log says what it was.
    let fixture = with(disk(7), 7);
    let mut evidence = fixture.evidence();
    let claims = Claims { state_epoch: 9, ..fixture.claims.clone() };
    evidence.claims = claims.encode().unwrap();
    let appraisal = fixture.appraise(&evidence);
    assert_eq!(failed(&appraisal), ["report_data", "state_epoch"]);
    assert!(detail(&appraisal, "report_data").ends_with("state_epoch was changed"));
}

/// What there is against older copies is measured, and claimed as it was measured.
#[test]
fn the_continuity_of_a_state_is_the_one_that_was_measured() {
    let number = |number: u64| number.try_into().unwrap();
    let plain =
        Continuity { anchor: number(3), first_anchor: number(1), unwitnessed: false, accepted_loss: None };
    let lost = Continuity { accepted_loss: Some(number(6)), ..plain };
    let with = |measured: Option<Continuity>, claimed: Option<Continuity>| {
        let mut own = own_events();
        let (key, fresh) = ([5; 32].into(), false);
        let (epoch, lineage) = (number(7), number(1));
        own[3] = State::Disk { fresh, key, epoch, lineage, continuity: measured }.event().unwrap();
        let mut fixture = Fixture { events: [common::firmware_events(), own].concat(), ..Fixture::default() };
        (fixture.claims.state_epoch, fixture.claims.state_continuity) = (7, claimed);
        fixture
    };
    for continuity in [None, Some(plain), Some(lost), Some(Continuity { unwitnessed: true, ..plain })] {
        let fixture = with(continuity, continuity);
        assert_eq!(fixture.appraise(&fixture.evidence()).verdict(), Verdict::Accepted, "{continuity:?}");
    }
    let more = Continuity { anchor: number(4), ..plain };
    for (measured, claimed) in [
        (Some(lost), Some(plain)),
        (Some(plain), Some(lost)),
        (Some(plain), None),
        (None, Some(plain)),
        (Some(plain), Some(more)),
    ] {
        let fixture = with(measured, claimed);
        let failed = failed(&fixture.appraise(&fixture.evidence()));
        assert_eq!(failed, ["state_continuity"], "{measured:?} {claimed:?}");
    }
    // State in memory has none.
    let mut memory = Fixture::default();
    memory.claims.state_continuity = Some(plain);
    assert_eq!(failed(&memory.appraise(&memory.evidence())), ["state_continuity"]);
    // Changed after the quote was made.
    let fixture = with(Some(lost), Some(lost));
    let mut evidence = fixture.evidence();
    evidence.claims = Claims { state_continuity: Some(plain), ..fixture.claims.clone() }.encode().unwrap();
    let appraisal = fixture.appraise(&evidence);
    assert_eq!(failed(&appraisal), ["report_data", "state_continuity"]);
    assert!(detail(&appraisal, "report_data").ends_with("state_continuity was changed"));
    // Numbers that no appliance gives.
    let none = Continuity { first_anchor: number(4), ..plain };
    let fixture = with(Some(none), Some(none));
    assert_eq!(failed(&fixture.appraise(&fixture.evidence())), ["event_payloads"]);
}

#[test]
fn claims_are_refused_outside_their_time() {
    let with = |issued: u64, expires: u64| {
        let mut fixture = Fixture::default();
        fixture.claims.issued_at = time(issued);
        fixture.claims.expires_at = time(expires);
        failed(&fixture.appraise(&fixture.evidence()))
    };
    assert!(with(NOW + 299, NOW + 86_400).is_empty());
    assert_eq!(with(NOW + 301, NOW + 86_400), ["issued_at"]);
    assert!(with(NOW - 86_400, NOW - 299).is_empty());
    assert_eq!(with(NOW - 86_400, NOW - 301), ["expires_at"]);
    assert_eq!(with(NOW - 10, NOW - 10), ["expires_at"]);
    assert_eq!(with(NOW - 10, NOW + 604_800), ["expires_at"]);
    assert_eq!(with(NOW - 604_801, NOW - 1), ["issued_at"]);
}

#[test]
fn every_bit_of_a_quote_matters() {
    let fixture = Fixture::default();
    let honest = fixture.evidence();
    let roots = common::roots(&fixture.platform);
    let collateral = honest.collateral.clone().unwrap();
    for at in 0..honest.quote.len() {
        for flip in [0x01, 0x80] {
            let mut quote = honest.quote.clone();
            quote[at] ^= flip;
            let appraisal = appraise_quote(&quote, Some(&collateral), &Policy::default(), &roots, NOW);
            assert_eq!(appraisal.verdict(), Verdict::Rejected, "byte {at} xor {flip:#x}");
        }
    }
}

#[test]
fn a_document_is_read_strictly() {
    let fixture = Fixture::default();
    let roots = common::roots(&fixture.platform);
    let with =
        |json: &[u8]| appraise_document(json, &fixture.expectations(), &Policy::default(), &roots, NOW);
    let honest = fixture.evidence().to_json().unwrap();
    assert_eq!(with(&honest).verdict(), Verdict::Accepted);
    assert_eq!(Evidence::parse(&honest).unwrap(), fixture.evidence());
    let text = String::from_utf8(honest).unwrap();
    let pretty = serde_json::to_string_pretty(&serde_json::from_str::<serde_json::Value>(&text).unwrap());
    assert_eq!(with(format!("{}\n", pretty.unwrap()).as_bytes()).verdict(), Verdict::Accepted);
    for damaged in [
        text.replacen("{\"version\":1", "{\"version\":2", 1),
        text.replacen("{\"version\":1", "{\"version\":1,\"extra\":0", 1),
        text.replacen("{\"version\":1", "{\"version\":1,\"version\":1", 1),
        text.replacen("\"release\"", "\"release\":\"0.1.0\",\"release\"", 1),
        text.replacen("\"mr\":3", "\"mr\":4", 1),
        text.replacen("\"mr\":3,", "\"mr\":3,\"digest\":\"00\",", 1),
        format!("{text}x"),
        format!("{text}{text}"),
        format!("{text}\0"),
        text[..text.len() - 1].to_owned(),
        format!("{text}{}", " ".repeat(256 * 1024)),
        String::new(),
        "[]".to_owned(),
    ] {
        assert_ne!(damaged, text);
        let appraisal = with(damaged.as_bytes());
        assert_eq!(failed(&appraisal), ["document"]);
        assert_eq!(appraisal.verdict(), Verdict::Rejected);
    }
}

#[test]
fn a_payload_cannot_borrow_from_its_name() {
    assert_ne!(event_digest("launch", b"{}"), event_digest("launch\0{", b"}"));
    let json = br#"{"mr":3,"event":"launch\u0000","payload":"e30="}"#;
    assert!(serde_json::from_slice::<Event>(json).is_err());
}
