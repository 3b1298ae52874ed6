//! What the quote says about its TD and the platform under it, against the policy.

use cofferdam_protocol::{Timestamp, hex};

use crate::appraise::{Appraisal, Outcome};
use crate::dcap::{DcapError, Platform, Stage};
use crate::event_log::Register;
use crate::policy::{Accepted, Device, Policy};
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
        Some(hash) => appraisal.fail("service_td", format!("bound to service TDs {}", hex::encode(hash))),
        None => appraisal.pass("service_td", "none"),
    }
    module(appraisal, quote, policy);
}

/// Which TDX module runs the TD. The quote's signature covers it; the TCB info judges it as well.
fn module(appraisal: &mut Appraisal, quote: &Quote, policy: &Policy) {
    let svn = quote.tee_tcb_svn;
    let [module_svn, module_version, ..] = svn;
    let mut problems = Vec::new();
    if let Some(at) = svn.iter().zip(&policy.min_tee_tcb_svn).position(|(found, least)| found < least) {
        let least = hex::encode(policy.min_tee_tcb_svn);
        problems.push(format!("{} is less than {least} in component {at}", hex::encode(svn)));
    }
    if module_svn < policy.min_tdx_module_svn {
        let least = policy.min_tdx_module_svn;
        problems.push(format!("TDX module of version {module_svn}, at least {least} demanded"));
    }
    let detail = format!("{}: TDX module TDX_{module_version:02X} of version {module_svn}", hex::encode(svn));
    let demanded = policy.min_tee_tcb_svn != [0; 16] || policy.min_tdx_module_svn > 0;
    appraisal.demand("tee_tcb_svn", demanded, detail, &problems);

    let found = hex::encode(quote.mr_seam);
    let unknown = match &policy.accepted_mr_seam {
        Accepted::Only(known) if !known.contains(&quote.mr_seam) => {
            Some(format!("{found} is not among the accepted TDX modules"))
        }
        _ => None,
    };
    let demanded = policy.accepted_mr_seam != Accepted::Any;
    appraisal.demand("mr_seam", demanded, found, unknown.as_slice());
}

/// A quote that is not genuine, or of which nobody can tell; each part that was reached under its own name.
pub(super) fn refused(appraisal: &mut Appraisal, error: &DcapError) {
    let stage = match error {
        DcapError::UnknownRoot { .. } => return appraisal.fail("trust_root", error.to_string()),
        DcapError::Broken { stage, .. } | DcapError::OtherPlatform { stage, .. } => *stage,
        DcapError::Expired(_) => Stage::Collateral,
        DcapError::Pem
        | DcapError::ChainLength(_)
        | DcapError::NoPckChain(_)
        | DcapError::MisnamedChain(_) => Stage::Chain,
    };
    let (name, signed) = match stage {
        Stage::Chain => ("quote_chain", false),
        Stage::Collateral => ("collateral", false),
        Stage::Enclave => ("quoting_enclave", false),
        Stage::Level => ("tcb_level", false),
        // The last things that are looked at: everything else holds.
        Stage::Attributes => ("td_attributes", true),
        Stage::ServiceTd => ("service_td", true),
    };
    if signed || matches!(error, DcapError::OtherPlatform { stage: Stage::Level, .. }) {
        appraisal.pass("quote_chain", SIGNED);
    }
    let outcome = if error.is_false() { Outcome::Fail } else { Outcome::CouldNotCheck };
    if let DcapError::Expired(_) = error {
        appraisal.push(
            "quote_chain",
            outcome,
            "revocation: the collateral never held at one time as a whole",
        );
    }
    // The policy's own check of the same may have said so already.
    if appraisal.check(name).is_none_or(|check| check.outcome != Outcome::Fail) {
        appraisal.push(name, outcome, error.to_string());
    }
}

/// What `quote_chain` stands for.
const SIGNED: &str = "signed from the root to the quote, and nothing on the way is revoked";

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
pub(super) fn check(appraisal: &mut Appraisal, found: Platform, policy: &Policy, now: u64) {
    appraisal.pass("quote_chain", SIGNED);
    appraisal.simulated = found.simulated;
    if found.simulated {
        appraisal.pass("trust_root", format!("SIMULATED: development root {}, not Intel's", found.root));
    } else {
        appraisal.pass("trust_root", "Intel SGX Root CA");
    }
    let expires = Timestamp::shown(found.collateral_expires);
    match &found.expired {
        Some(expired) => {
            let detail = format!("{expired}; what follows is as of {expires}");
            appraisal.push("collateral", Outcome::CouldNotCheck, detail);
        }
        None => appraisal.pass("collateral", format!("valid until {expires}")),
    }
    tcb(appraisal, &found, policy);
    tcb_date(appraisal, &found, policy, now);
    enclaves(appraisal, &found, policy);
    flags(appraisal, &found, policy);
    device(appraisal, &found, policy);
    appraisal.platform = Some(found);
}

/// The level that Intel's TCB info gives the platform, and what is known against it.
fn tcb(appraisal: &mut Appraisal, found: &Platform, policy: &Policy) {
    let detail = format!(
        "FMSPC {}, CPUSVN {}, PCESVN {}: level of {:.10}",
        found.fmspc, found.cpu_svn, found.pce_svn, found.tcb_date
    );
    appraisal.pass("tcb_level", detail);
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
    let rejected = |id: &str| policy.rejected_advisories.iter().any(|no| no.eq_ignore_ascii_case(id));
    let tolerated = |id: &str| match &policy.tolerated_advisories {
        Accepted::Any => true,
        Accepted::Only(known) => known.iter().any(|yes| yes.eq_ignore_ascii_case(id)),
    };
    let problems: Vec<String> = found
        .advisories
        .iter()
        .filter_map(|id| match (rejected(id), tolerated(id)) {
            (true, _) => Some(format!("{id} applies")),
            (false, false) => Some(format!("{id} applies and is not tolerated")),
            (false, true) => None,
        })
        .collect();
    let detail = if found.advisories.is_empty() {
        "none applies".to_owned()
    } else {
        format!("{}: none that the policy rejects", found.advisories.join(", "))
    };
    appraisal.require("advisories", detail, &problems);

    let number = found.tcb_evaluation_data_number;
    let least = policy.min_tcb_evaluation_data_number;
    let old = (number < least).then(|| format!("{number}, at least {least} demanded"));
    appraisal.require("tcb_evaluation", number.to_string(), old.as_slice());
}

/// The date of the platform's level. Below the least one it passes for as long as the policy gives hosts to update.
fn tcb_date(appraisal: &mut Appraisal, found: &Platform, policy: &Policy, now: u64) {
    let date = &found.tcb_date;
    let Some(least) = policy.min_tcb_date else {
        return appraisal.push("tcb_date", Outcome::NotChecked, format!("{date}; none is demanded"));
    };
    let wanted = Timestamp::shown(least);
    let end = least.saturating_add(policy.tcb_date_grace_s);
    let until = Timestamp::shown(end);
    match date.parse().ok().map(Timestamp::unix) {
        Some(level) if level >= least => appraisal.pass("tcb_date", date.clone()),
        Some(_) if policy.tcb_date_grace_s > 0 && now <= end => {
            appraisal.pass("tcb_date", format!("{date}, before {wanted}; tolerated until {until}"));
        }
        _ => appraisal.fail("tcb_date", format!("{date}, at least {wanted} demanded")),
    }
}

/// Quoting enclave and provisioning certification enclave.
fn enclaves(appraisal: &mut Appraisal, found: &Platform, policy: &Policy) {
    let (qe, pce) = (found.qe_svn, found.pce_svn);
    let detail = format!("version {qe}, {}, level of {:.10}", found.qe_tcb_status, found.qe_tcb_date);
    appraisal.pass("quoting_enclave", detail);
    for (name, svn, least) in [("qe_svn", qe, policy.min_qe_svn), ("pce_svn", pce, policy.min_pce_svn)] {
        let old = (svn < least).then(|| format!("{svn}, at least {least} demanded"));
        appraisal.demand(name, least > 0, svn.to_string(), old.as_slice());
    }
}

/// Which machine it is.
fn device(appraisal: &mut Appraisal, found: &Platform, policy: &Policy) {
    let instance = found.platform_instance_id.as_deref();
    let detail = match instance {
        Some(instance) => format!("ppid:{}, instance:{instance}", found.ppid),
        None => format!("ppid:{}", found.ppid),
    };
    let is = |device: &Device| match device {
        Device::Ppid(id) => found.ppid == hex::encode(id),
        Device::Instance(id) => instance.is_some_and(|found| found == hex::encode(id)),
    };
    let problem = match &policy.accepted_devices {
        Accepted::Only(known) if !known.iter().any(is) => {
            Some(format!("{detail} is not among the accepted machines"))
        }
        _ => None,
    };
    appraisal.demand("device", policy.accepted_devices != Accepted::Any, detail, problem.as_slice());
}

/// Flags of the PCK certificate.
fn flags(appraisal: &mut Appraisal, found: &Platform, policy: &Policy) {
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
}
