//! Policies other than the default one: they allow more, or demand more.

use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::quote::attributes;
use serde_json::{Value, json};
use tdx_sim::{CollateralOptions, TdReport};

use super::Case;
use super::common::{self, Fixture};
use super::forge::{self, Forge};

pub(super) fn cases(honest: &Value) -> Vec<Case> {
    [
        platform(honest),
        minimums(honest),
        machines(honest),
        overrides(honest),
        flags(honest),
        td(honest),
        registers(honest),
        times(honest),
    ]
    .concat()
}

fn case(honest: &Value, name: &str, about: &str) -> Case {
    Case::new(honest, &format!("policy/{name}"), about)
}

fn platform(honest: &Value) -> Vec<Case> {
    let options = CollateralOptions { out_of_date: true, ..CollateralOptions::default() };
    let old = Fixture { options, ..Fixture::default() }.evidence();
    let collateral = Fixture::default().evidence().collateral.unwrap();
    let advised =
        Forge::new(1).tcb_info(&collateral, |v| v["tcbLevels"][0]["advisoryIDs"] = json!(["INTEL-SA-00999"]));
    let advised = Evidence { collateral: Some(advised), ..Fixture::default().evidence() };
    let statuses = "/policy/tcb_statuses";
    let advisories = "/policy/rejected_advisories";
    let number = "/policy/min_tcb_evaluation_data_number";
    vec![
        case(honest, "out-of-date-allowed", "OutOfDate among the accepted statuses")
            .evidence(&old)
            .set(statuses, json!(["UpToDate", "OutOfDate"])),
        case(honest, "no-status", "no status is accepted")
            .set(statuses, json!([]))
            .fails(&["tcb_status"], "UpToDate; accepted:"),
        case(honest, "other-advisory", "an advisory applies that is not among the rejected ones")
            .evidence(&advised)
            .set(advisories, json!(["INTEL-SA-00001"])),
        case(honest, "rejected-advisory", "a rejected advisory applies to a platform that is up to date")
            .evidence(&advised)
            .set(advisories, json!(["INTEL-SA-00999"]))
            .fails(&["advisories"], "INTEL-SA-00999 applies"),
        case(honest, "evaluation-number", "the collateral's number is the least accepted").set(number, 17),
        case(honest, "evaluation-number-too-low", "collateral from before a TCB recovery")
            .set(number, 18)
            .fails(&["tcb_evaluation"], "17, at least 18 demanded"),
    ]
}

/// Least versions and dates. The machine has TEE_TCB_SVN 05 01 02, PCESVN 11, a quoting enclave of version 4 and a TCB
/// level of 2025-05-14; it is appraised on 2027-01-15 at 08:00.
fn minimums(honest: &Value) -> Vec<Case> {
    let at_least = |name: &str, about: &str, field: &str, value: Value| {
        case(honest, name, about).set(&format!("/policy/{field}"), value)
    };
    let svn = |head: &str| json!(format!("{head}{}", "0".repeat(32 - head.len())));
    let late = |name: &str, about: &str, grace: u64| {
        case(honest, name, about)
            .set("/policy/min_tcb_date", "2027-01-01T00:00:00Z")
            .set("/policy/tcb_date_grace_s", grace)
    };
    // From 2027-01-01 00:00 to the appraisal.
    let elapsed = 14 * 86_400 + 8 * 3600;
    vec![
        at_least("tee-tcb-svn", "exactly what is demanded", "min_tee_tcb_svn", svn("050102")),
        at_least("tee-tcb-svn-too-low", "one component too low", "min_tee_tcb_svn", svn("050103"))
            .fails(&["tee_tcb_svn"], "in component 2"),
        at_least("module-svn", "exactly what is demanded", "min_tdx_module_svn", json!(5)),
        at_least("module-svn-too-low", "an older TDX module", "min_tdx_module_svn", json!(6))
            .fails(&["tee_tcb_svn"], "TDX module of version 5, at least 6 demanded"),
        at_least("qe-svn", "exactly what is demanded", "min_qe_svn", json!(4)),
        at_least("qe-svn-too-low", "an older quoting enclave", "min_qe_svn", json!(5))
            .fails(&["qe_svn"], "4, at least 5 demanded"),
        at_least("pce-svn", "exactly what is demanded", "min_pce_svn", json!(11)),
        at_least("pce-svn-too-low", "an older provisioning certification enclave", "min_pce_svn", json!(12))
            .fails(&["pce_svn"], "11, at least 12 demanded"),
        at_least("tcb-date", "exactly what is demanded", "min_tcb_date", json!("2025-05-14T00:00:00Z")),
        at_least("tcb-date-too-early", "a second too early", "min_tcb_date", json!("2025-05-14T00:00:01Z"))
            .fails(&["tcb_date"], "at least 2025-05-14T00:00:01Z demanded"),
        late("tcb-date-in-grace", "too early, and hosts still have this second to update", elapsed),
        late("tcb-date-after-grace", "too early, and the time to update is over", elapsed - 1)
            .fails(&["tcb_date"], "at least 2027-01-01T00:00:00Z demanded"),
    ]
}

/// Which TDX module, which machine, and which advisories.
fn machines(honest: &Value) -> Vec<Case> {
    let fixture = Fixture::default();
    let evidence = fixture.evidence();
    let seam = hex::encode(&evidence.quote[forge::BODY + 16..forge::BODY + 64]);
    let chain = fixture.platform.pck_chain_pem();
    let ppid = format!("ppid:{}", hex::encode(forge::sgx_octets(&chain, 1)));
    let instance = format!("instance:{}", hex::encode(forge::sgx_octets(&chain, 6)));
    let (other, other_seam) = (format!("ppid:{}", "0".repeat(32)), "11".repeat(48));
    let collateral = evidence.collateral.clone().unwrap();
    let advised = Forge::new(1).tcb_info(&collateral, |v| {
        v["tcbLevels"][0]["advisoryIDs"] = json!(["INTEL-SA-00999", "INTEL-SA-00998"]);
    });
    let advised = Evidence { collateral: Some(advised), ..evidence };
    let accepted =
        |name: &str, about: &str, field: &str, list: Value| case(honest, name, about).set(field, list);
    let devices = "/policy/accepted_devices";
    let seams = "/policy/accepted_mr_seam";
    let tolerated = "/policy/tolerated_advisories";
    vec![
        accepted("mr-seam", "one of the accepted modules", seams, json!([other_seam, seam])),
        accepted("mr-seam-of-another", "another module is accepted", seams, json!([other_seam]))
            .fails(&["mr_seam"], "not among the accepted"),
        accepted("mr-seam-none", "no module is accepted", seams, json!([]))
            .fails(&["mr_seam"], "not among the accepted"),
        accepted("device-by-ppid", "one of the accepted machines", devices, json!([other, ppid])),
        accepted("device-by-instance", "the accepted platform", devices, json!([instance])),
        accepted("device-of-another", "another machine is accepted", devices, json!([other]))
            .fails(&["device"], "not among the accepted"),
        accepted(
            "device-of-another-kind",
            "the right bytes under another name",
            devices,
            json!([ppid.replace("ppid", "instance")]),
        )
        .fails(&["device"], "not among the accepted"),
        accepted(
            "advisories-tolerated",
            "both advisories are named",
            tolerated,
            json!(["INTEL-SA-00998", "INTEL-SA-00999"]),
        )
        .evidence(&advised),
        accepted("advisory-not-tolerated", "one of two is named", tolerated, json!(["INTEL-SA-00999"]))
            .evidence(&advised)
            .fails(&["advisories"], "INTEL-SA-00998 applies and is not tolerated"),
        accepted("advisories-none", "none is tolerated, and none applies", tolerated, json!([])),
    ]
}

/// The default policy plus what differs.
fn overrides(honest: &Value) -> Vec<Case> {
    let extends = |name: &str, about: &str, more: Value| {
        let mut policy = json!({ "version": 1, "extends": "default" });
        policy.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        case(honest, name, about).set("/policy", policy)
    };
    let mut first = case(honest, "without-later-fields", "complete before these fields were added");
    for later in [
        "tolerated_advisories",
        "min_tcb_date",
        "tcb_date_grace_s",
        "min_tee_tcb_svn",
        "min_tdx_module_svn",
        "min_qe_svn",
        "min_pce_svn",
        "accepted_mr_seam",
        "accepted_devices",
    ] {
        first = first.without(&format!("/policy/{later}"));
    }
    vec![
        first,
        extends("extends", "the default policy and nothing else", json!({})),
        extends("extends-and-differs", "one field differs", json!({ "max_age_s": 599 }))
            .fails(&["issued_at"], "600 s ago, at most 599 s allowed"),
        extends("extends-and-keeps", "the others are those of the default", json!({ "max_age_s": 599 }))
            .set("/references", json!([]))
            .fails(&["issued_at"], "600 s ago, at most 599 s allowed")
            .and_unknown(&["mrtd", "rtmr1", "rtmr2"]),
    ]
}

/// Flags of the PCK certificate (OID 1.2.840.113741.1.13.1.7.N, then BOOLEAN).
fn flags(honest: &Value) -> Vec<Case> {
    let fixture = Fixture::default();
    let evidence = fixture.evidence();
    let flagged = |flag: u8| {
        let chain = Forge::new(1).leaf(&fixture.platform.pck_chain_pem(), |tbs| {
            let oid =
                [0x06, 0x0b, 0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01, 0x07, flag, 0x01, 0x01];
            forge::replace(tbs, &[oid.as_slice(), &[0x00]].concat(), &[oid.as_slice(), &[0xff]].concat());
        });
        Evidence { quote: forge::with_chain(&evidence.quote, 5, chain.as_bytes()), ..evidence.clone() }
    };
    let flags = [
        (1, "dynamic-platform", "allow_dynamic_platform", "dynamic platform is not allowed"),
        (2, "cached-keys", "allow_cached_keys", "cached keys is not allowed"),
        (3, "smt", "allow_smt", "SMT is not allowed"),
    ];
    flags
        .into_iter()
        .flat_map(|(flag, name, field, reason)| {
            let at = format!("/policy/{field}");
            [
                case(
                    honest,
                    &format!("{name}-allowed"),
                    "a flag of the PCK certificate that the default policy allows",
                )
                .evidence(&flagged(flag)),
                case(honest, &format!("{name}-refused"), "the same flag, not allowed")
                    .evidence(&flagged(flag))
                    .set(&at, false)
                    .fails(&["platform_flags"], reason),
                case(honest, &format!("{name}-absent"), "not allowed, and not set").set(&at, false),
            ]
        })
        .collect()
}

fn td(honest: &Value) -> Vec<Case> {
    let seven = "07".repeat(48);
    let changed =
        |change_report: fn(&mut TdReport)| Fixture { change_report, ..Fixture::default() }.evidence();
    let identities = [
        ("mr-config-id", "/policy/mr_config_id", changed(|r| r.mr_config_id = [7; 48]), "mr_config_id"),
        ("mr-owner", "/policy/mr_owner", changed(|r| r.mr_owner = [7; 48]), "mr_owner"),
        (
            "mr-owner-config",
            "/policy/mr_owner_config",
            changed(|r| r.mr_owner_config = [7; 48]),
            "mr_owner_config",
        ),
    ];
    let mut out: Vec<Case> = identities
        .into_iter()
        .flat_map(|(name, at, evidence, check)| {
            [
                case(honest, &format!("{name}-demanded"), "another value than zero is demanded and there")
                    .evidence(&evidence)
                    .set(at, seven.clone()),
                case(honest, &format!("{name}-demanded-but-zero"), "it is demanded and not there")
                    .set(at, seven.clone())
                    .fails(&[check], "is zero, must be 0707"),
            ]
        })
        .collect();
    out.extend([
        case(honest, "attribute-allowed", "PKS is allowed and set")
            .evidence(&changed(|r| r.td_attributes |= attributes::PKS)),
        case(honest, "attribute-required", "PKS is required and not set")
            .set("/policy/td_attributes_required", json!(["SEPT_VE_DISABLE", "PKS"]))
            .fails(&["td_attributes"], "PKS is not set"),
        case(honest, "attribute-not-allowed", "nothing is allowed")
            .set("/policy/td_attributes_required", json!([]))
            .set("/policy/td_attributes_allowed", json!([]))
            .refused(2, "every policy demands SEPT_VE_DISABLE"),
        case(honest, "xfam-required", "AMX is required and not set")
            .set("/policy/xfam_required", json!(["X87", "SSE", "AMX"]))
            .fails(&["xfam"], "AMX is not set"),
        case(honest, "xfam-not-allowed", "AVX512 is set and no longer allowed")
            .set("/policy/xfam_allowed", json!(["X87", "SSE", "AVX"]))
            .fails(&["xfam"], "AVX512 must not be set"),
        case(honest, "debug-never", "no policy accepts DEBUG: the field does not take it")
            .set("/policy/td_attributes_allowed", json!(["DEBUG", "SEPT_VE_DISABLE"]))
            .refused(2, "DEBUG"),
    ]);
    out
}

fn registers(honest: &Value) -> Vec<Case> {
    let required = "/policy/required_registers";
    let undetermined = |name: &str, about: &str| {
        let mut case = case(honest, name, about);
        case.input["references"][1].as_object_mut().unwrap().remove("rtmr0");
        case
    };
    vec![
        case(honest, "rtmr0-required", "RTMR0 is required, and there is a value")
            .set(required, json!(["mrtd", "rtmr0", "rtmr1", "rtmr2"])),
        undetermined(
            "rtmr0-required-but-undetermined",
            "RTMR0 is required, and its events are known only in part",
        )
        .set(required, json!(["mrtd", "rtmr0", "rtmr1", "rtmr2"]))
        .unknown(&["rtmr0"], "not determined"),
        undetermined("rtmr0-undetermined", "RTMR0 is not required, and its events are known only in part"),
        case(honest, "nothing-required", "no register is required, and there are no reference values")
            .set(required, json!([]))
            .set("/references", json!([])),
        case(honest, "wrong-but-not-required", "a value that is there is compared, required or not")
            .set(required, json!([]))
            .set("/references/1/mrtd/0/value", "11".repeat(48))
            .fails(&["mrtd"], "reference for simulator is 1111"),
    ]
}

fn times(honest: &Value) -> Vec<Case> {
    // The honest claims are ten minutes old and valid for a day.
    vec![
        case(honest, "max-age", "as old as allowed").set("/policy/max_age_s", 600),
        case(honest, "max-age-passed", "older than allowed")
            .set("/policy/max_age_s", 599)
            .fails(&["issued_at"], "600 s ago, at most 599 s allowed"),
        case(honest, "max-validity", "valid for as long as allowed").set("/policy/max_validity_s", 86_400),
        case(honest, "max-validity-passed", "valid for longer than allowed")
            .set("/policy/max_validity_s", 86_399)
            .fails(&["expires_at"], "valid for 86400 s, at most 86399 s allowed"),
        case(honest, "no-clock-skew", "claims a second from the future, without tolerance")
            .evidence(&Fixture { claims: issued(1), ..Fixture::default() }.evidence())
            .set("/policy/clock_skew_s", 0)
            .fails(&["issued_at"], "in the future"),
    ]
}

/// Claims that were issued so many seconds after the appraisal.
fn issued(later: u64) -> cofferdam_attest::claims::Claims {
    let issued_at = common::time(common::NOW + later);
    cofferdam_attest::claims::Claims { issued_at, ..common::claims() }
}
