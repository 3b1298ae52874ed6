//! What the quote says about its TD and the platform under it, against the policy.

use crate::appraise::Appraisal;
use crate::claims::format_time;
use crate::dcap::Platform;
use crate::event_log::Register;
use crate::policy::Policy;
use crate::quote::{Quote, attributes, xfam};

/// Attributes, XFAM, host-chosen identities, service TD.
pub(super) fn attributes(appraisal: &mut Appraisal, quote: &Quote, policy: &Policy) {
    let value = quote.td_attributes;
    let mut problems = Vec::new();
    if value & attributes::DEBUG != 0 {
        problems.push("DEBUG is set: the host can read the TD".to_owned());
    }
    let missing = policy.td_attributes_required & !value;
    if missing != 0 {
        problems.push(format!("{} is not set", attributes::describe(missing)));
    }
    let refused = value & !policy.td_attributes_allowed & !attributes::DEBUG;
    if refused != 0 {
        problems.push(format!("{} must not be set", attributes::describe(refused)));
    }
    appraisal.require("td_attributes", attributes::describe(value), &problems);

    let mut problems = Vec::new();
    let missing = policy.xfam_required & !quote.xfam;
    if missing != 0 {
        problems.push(format!("{} is not set", xfam::describe(missing)));
    }
    let refused = quote.xfam & !policy.xfam_allowed;
    if refused != 0 {
        problems.push(format!("{} must not be set", xfam::describe(refused)));
    }
    appraisal.require("xfam", xfam::describe(quote.xfam), &problems);

    host_identity(appraisal, "mr_config_id", &quote.mr_config_id, &policy.mr_config_id);
    host_identity(appraisal, "mr_owner", &quote.mr_owner, &policy.mr_owner);
    host_identity(appraisal, "mr_owner_config", &quote.mr_owner_config, &policy.mr_owner_config);

    match quote.mr_service_td.filter(|hash| *hash != [0; 48]) {
        Some(hash) if !policy.allow_service_td => {
            appraisal.fail("service_td", format!("bound to service TDs {}", hex::encode(hash)));
        }
        Some(hash) => appraisal.pass("service_td", hex::encode(hash)),
        None => appraisal.pass("service_td", "none"),
    }
}

fn host_identity(appraisal: &mut Appraisal, name: &'static str, found: &Register, demanded: &Register) {
    let text = |value: &Register| {
        if *value == [0; 48] { "zero".to_owned() } else { hex::encode(value) }
    };
    if found == demanded {
        appraisal.pass(name, text(found));
    } else {
        appraisal.fail(name, format!("is {}, must be {}", text(found), text(demanded)));
    }
}

/// The verified platform: whose root, which TCB status, which flags.
pub(super) fn check(appraisal: &mut Appraisal, found: Platform, policy: &Policy) {
    appraisal.pass(
        "quote_chain",
        "root, PCK certificate, quoting enclave, attestation key, TCB info, QE identity, revocation lists",
    );
    appraisal.simulated = found.simulated;
    if found.simulated {
        appraisal.pass("trust_root", format!("SIMULATED: development root {}, not Intel's", found.root));
    } else {
        appraisal.pass("trust_root", "Intel SGX Root CA");
    }
    let expires = format_time(found.collateral_expires).unwrap_or_default();
    appraisal.pass("collateral", format!("valid until {expires}"));

    let advisories = if found.advisories.is_empty() {
        String::new()
    } else {
        format!(" ({})", found.advisories.join(", "))
    };
    let status = format!("{}{advisories}", found.tcb_status);
    if policy.tcb_statuses.contains(&found.tcb_status) {
        appraisal.pass("tcb_status", status);
    } else {
        appraisal.fail("tcb_status", format!("{status}; accepted: {}", policy.tcb_statuses.join(", ")));
    }
    let rejected: Vec<String> = found
        .advisories
        .iter()
        .filter(|id| policy.rejected_advisories.iter().any(|no| no.eq_ignore_ascii_case(id)))
        .map(|id| format!("{id} applies"))
        .collect();
    appraisal.require("advisories", "none that the policy rejects", &rejected);

    let number = found.tcb_evaluation_data_number;
    let least = policy.min_tcb_evaluation_data_number;
    let old = (number < least).then(|| format!("{number}, at least {least} demanded"));
    appraisal.require("tcb_evaluation", number.to_string(), old.as_slice());

    let flags = [
        ("dynamic platform", found.dynamic_platform, policy.allow_dynamic_platform),
        ("cached keys", found.cached_keys, policy.allow_cached_keys),
        ("SMT", found.smt_enabled, policy.allow_smt),
    ];
    let set: Vec<&str> =
        flags.iter().filter(|(_, flag, _)| *flag == Some(true)).map(|(name, ..)| *name).collect();
    let refused: Vec<String> = flags
        .iter()
        .filter(|(_, flag, allowed)| *flag == Some(true) && !allowed)
        .map(|(name, ..)| format!("{name} is not allowed"))
        .collect();
    let detail = if set.is_empty() { "none".to_owned() } else { set.join(", ") };
    appraisal.require("platform_flags", detail, &refused);
    appraisal.platform = Some(found);
}
