//! The JSON shape of a policy: complete, or as overrides of the default one.

use cofferdam_protocol::{Timestamp, hex};
use serde::{Deserialize, Serialize};

use super::{Accepted, Device, Policy, PolicyError};
use crate::event_log::{self, Register};
use crate::quote::{attributes, xfam};

/// Statuses that Intel defines (PCS API v4 `tcbStatus`, and DCAP's relaunch advice for TDX 1.5). `Revoked` is absent: no policy can accept it.
const STATUSES: &[&str] = &[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
];

/// In an allow-list: everything.
const ANY: &str = "*";
/// Where a minimum or an identity may stand: nothing is demanded.
const NONE: &str = "none";

/// TD attributes that no policy can allow, and why.
const NEVER_ALLOWED: [(u64, &str, &str); 4] = [
    (attributes::DEBUG, "DEBUG", "the host can read the TD"),
    (attributes::PROFILING, "PROFILING", "the host can profile the TD"),
    (attributes::MIGRATABLE, "MIGRATABLE", "a migration TD is trusted too, and no evidence says which"),
    (attributes::SERVTD_EXT, "SERVTD_EXT", "a service TD is trusted too, and no evidence says which"),
];

/// Each field once, for both shapes. Fields with a default came later than the format's first version: a complete policy
/// without them demands what it demanded before.
macro_rules! shapes {
    ($($(#[$attribute:meta])* $name:ident: $kind:ty,)*) => {
        /// A complete policy.
        #[derive(Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct Wire {
            version: u32,
            $($(#[$attribute])* $name: $kind,)*
        }

        /// What differs from the default policy.
        #[derive(Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct Overrides {
            version: u32,
            extends: String,
            $(#[serde(default, skip_serializing_if = "Option::is_none")] $name: Option<$kind>,)*
        }

        impl Overrides {
            /// The default policy with these fields instead of its own.
            pub(super) fn over(self, default: Wire) -> Result<Wire, PolicyError> {
                if self.extends != "default" {
                    return Err(PolicyError::Value { name: "extends", value: self.extends });
                }
                Ok(Wire { version: self.version, $($name: self.$name.unwrap_or(default.$name),)* })
            }
        }
    };
}

shapes! {
    tcb_statuses: Vec<String>,
    rejected_advisories: Vec<String>,
    #[serde(default = "any")]
    tolerated_advisories: Vec<String>,
    min_tcb_evaluation_data_number: u32,
    #[serde(default = "none")]
    min_tcb_date: String,
    #[serde(default)]
    tcb_date_grace_s: u64,
    #[serde(default = "none")]
    min_tee_tcb_svn: String,
    #[serde(default)]
    min_tdx_module_svn: u8,
    #[serde(default)]
    min_qe_svn: u16,
    #[serde(default)]
    min_pce_svn: u16,
    #[serde(default = "any")]
    accepted_mr_seam: Vec<String>,
    #[serde(default = "any")]
    accepted_devices: Vec<String>,
    allow_dynamic_platform: bool,
    allow_cached_keys: bool,
    allow_smt: bool,
    td_attributes_required: Vec<String>,
    td_attributes_allowed: Vec<String>,
    xfam_required: Vec<String>,
    xfam_allowed: Vec<String>,
    mr_config_id: String,
    mr_owner: String,
    mr_owner_config: String,
    allow_service_td: bool,
    required_registers: Vec<String>,
    allowed_events: Vec<String>,
    max_validity_s: u64,
    max_age_s: u64,
    clock_skew_s: u64,
}

fn any() -> Vec<String> {
    vec![ANY.to_owned()]
}

fn none() -> String {
    NONE.to_owned()
}

impl Wire {
    /// The policy that these fields make.
    pub(super) fn check(self) -> Result<Policy, PolicyError> {
        if self.version != 1 {
            return Err(PolicyError::Version(self.version));
        }
        self.check_names()?;
        self.check_effect()?;
        Ok(Policy {
            td_attributes_required: bits(
                "td_attributes_required",
                &self.td_attributes_required,
                attributes::NAMES,
            )?,
            td_attributes_allowed: bits(
                "td_attributes_allowed",
                &self.td_attributes_allowed,
                attributes::NAMES,
            )?,
            xfam_required: bits("xfam_required", &self.xfam_required, xfam::NAMES)?,
            xfam_allowed: bits("xfam_allowed", &self.xfam_allowed, xfam::NAMES)?,
            mr_config_id: demanded("mr_config_id", &self.mr_config_id)?,
            mr_owner: demanded("mr_owner", &self.mr_owner)?,
            mr_owner_config: demanded("mr_owner_config", &self.mr_owner_config)?,
            min_tcb_date: match self.min_tcb_date.as_str() {
                NONE => None,
                date => Some(date.parse().map_err(|_| value("min_tcb_date", date)).map(Timestamp::unix)?),
            },
            tcb_date_grace_s: self.tcb_date_grace_s,
            min_tee_tcb_svn: match self.min_tee_tcb_svn.as_str() {
                NONE => [0; 16],
                svn => hex::decode_array(svn).ok_or_else(|| value("min_tee_tcb_svn", svn))?,
            },
            min_tdx_module_svn: self.min_tdx_module_svn,
            min_qe_svn: self.min_qe_svn,
            min_pce_svn: self.min_pce_svn,
            accepted_mr_seam: accepted("accepted_mr_seam", &self.accepted_mr_seam, hex::decode_array)?,
            accepted_devices: accepted("accepted_devices", &self.accepted_devices, device)?,
            tolerated_advisories: accepted("tolerated_advisories", &self.tolerated_advisories, |text| {
                is_advisory(text).then(|| text.to_owned())
            })?,
            tcb_statuses: self.tcb_statuses,
            rejected_advisories: self.rejected_advisories,
            min_tcb_evaluation_data_number: self.min_tcb_evaluation_data_number,
            allow_dynamic_platform: self.allow_dynamic_platform,
            allow_cached_keys: self.allow_cached_keys,
            allow_smt: self.allow_smt,
            required_registers: self.required_registers,
            allowed_events: self.allowed_events,
            max_validity_s: self.max_validity_s,
            max_age_s: self.max_age_s,
            clock_skew_s: self.clock_skew_s,
        })
    }

    /// Every value is one that its field knows.
    fn check_names(&self) -> Result<(), PolicyError> {
        let known =
            |name, list: &[String], ok: &dyn Fn(&str) -> bool| match list.iter().find(|text| !ok(text)) {
                Some(text) => Err(value(name, text)),
                None => Ok(()),
            };
        known("tcb_statuses", &self.tcb_statuses, &|text| STATUSES.contains(&text))?;
        known("rejected_advisories", &self.rejected_advisories, &is_advisory)?;
        known("required_registers", &self.required_registers, &|text| {
            matches!(text, "mrtd" | "rtmr0" | "rtmr1" | "rtmr2")
        })?;
        known("allowed_events", &self.allowed_events, &event_log::is_name)
    }

    /// No field says what could have no effect: its author would believe in a demand or a permission that nobody heeds.
    fn check_effect(&self) -> Result<(), PolicyError> {
        let never = |name, value: &str, why| PolicyError::Never { name, value: value.to_owned(), why };
        for (_, attribute, why) in NEVER_ALLOWED {
            if self.td_attributes_allowed.iter().any(|name| name == attribute) {
                return Err(never("td_attributes_allowed", attribute, why));
            }
        }
        if !self.td_attributes_required.iter().any(|name| name == "SEPT_VE_DISABLE") {
            let listed = self.td_attributes_required.join(", ");
            let why = "every policy demands SEPT_VE_DISABLE, so it has to be named";
            return Err(never("td_attributes_required", &format!("[{listed}]"), why));
        }
        if self.allow_service_td {
            let why = "a service TD is trusted too, and no evidence says which";
            return Err(never("allow_service_td", "true", why));
        }
        if self.tcb_date_grace_s > 0 && self.min_tcb_date == NONE {
            let why = "there is no `min_tcb_date` to be late for";
            return Err(never("tcb_date_grace_s", &self.tcb_date_grace_s.to_string(), why));
        }
        let rejected = |id: &&String| self.rejected_advisories.iter().any(|no| no.eq_ignore_ascii_case(id));
        if let Some(id) = self.tolerated_advisories.iter().find(rejected) {
            return Err(never("tolerated_advisories", id, "`rejected_advisories` names it too"));
        }
        Ok(())
    }
}

impl From<&Policy> for Wire {
    fn from(policy: &Policy) -> Self {
        let texts = |names: &[(u64, &str)], value: u64| -> Vec<String> {
            names.iter().filter(|(bit, _)| value & bit == *bit).map(|(_, name)| (*name).to_owned()).collect()
        };
        let identity = |value: &Register| {
            if *value == [0; 48] { "zero".to_owned() } else { hex::encode(value) }
        };
        Self {
            version: 1,
            tcb_statuses: policy.tcb_statuses.clone(),
            rejected_advisories: policy.rejected_advisories.clone(),
            tolerated_advisories: listed(&policy.tolerated_advisories, String::clone),
            min_tcb_evaluation_data_number: policy.min_tcb_evaluation_data_number,
            min_tcb_date: policy
                .min_tcb_date
                .and_then(Timestamp::from_unix)
                .map_or_else(none, |date| date.to_string()),
            tcb_date_grace_s: policy.tcb_date_grace_s,
            min_tee_tcb_svn: match policy.min_tee_tcb_svn {
                svn if svn == [0; 16] => none(),
                svn => hex::encode(svn),
            },
            min_tdx_module_svn: policy.min_tdx_module_svn,
            min_qe_svn: policy.min_qe_svn,
            min_pce_svn: policy.min_pce_svn,
            accepted_mr_seam: listed(&policy.accepted_mr_seam, |mr_seam| hex::encode(mr_seam)),
            accepted_devices: listed(&policy.accepted_devices, Device::to_string),
            allow_dynamic_platform: policy.allow_dynamic_platform,
            allow_cached_keys: policy.allow_cached_keys,
            allow_smt: policy.allow_smt,
            td_attributes_required: texts(attributes::NAMES, policy.td_attributes_required),
            td_attributes_allowed: texts(attributes::NAMES, policy.td_attributes_allowed),
            xfam_required: texts(xfam::NAMES, policy.xfam_required),
            xfam_allowed: texts(xfam::NAMES, policy.xfam_allowed),
            mr_config_id: identity(&policy.mr_config_id),
            mr_owner: identity(&policy.mr_owner),
            mr_owner_config: identity(&policy.mr_owner_config),
            allow_service_td: false,
            required_registers: policy.required_registers.clone(),
            allowed_events: policy.allowed_events.clone(),
            max_validity_s: policy.max_validity_s,
            max_age_s: policy.max_age_s,
            clock_skew_s: policy.clock_skew_s,
        }
    }
}

fn value(name: &'static str, text: &str) -> PolicyError {
    PolicyError::Value { name, value: text.to_owned() }
}

/// `INTEL-SA-` and a number.
fn is_advisory(text: &str) -> bool {
    let number = text.strip_prefix("INTEL-SA-");
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The bits that `list` names.
fn bits(name: &'static str, list: &[String], names: &[(u64, &str)]) -> Result<u64, PolicyError> {
    list.iter().try_fold(0, |mask, text| match names.iter().find(|(_, known)| known == text) {
        Some((bit, _)) => Ok(mask | bit),
        None => Err(value(name, text)),
    })
}

/// A demanded register value: `zero` or 96 hex digits.
fn demanded(name: &'static str, text: &str) -> Result<Register, PolicyError> {
    match text {
        "zero" => Ok([0; 48]),
        digits => hex::decode_array(digits).ok_or_else(|| value(name, digits)),
    }
}

/// An allow-list: `*` alone, or values.
fn accepted<T>(
    name: &'static str,
    list: &[String],
    read: impl Fn(&str) -> Option<T>,
) -> Result<Accepted<T>, PolicyError> {
    match list {
        [all] if all == ANY => Ok(Accepted::Any),
        list => {
            let read: Result<Vec<T>, PolicyError> =
                list.iter().map(|text| read(text).ok_or_else(|| value(name, text))).collect();
            read.map(Accepted::Only)
        }
    }
}

fn listed<T>(accepted: &Accepted<T>, write: impl Fn(&T) -> String) -> Vec<String> {
    match accepted {
        Accepted::Any => any(),
        Accepted::Only(values) => values.iter().map(write).collect(),
    }
}

/// `ppid:` or `instance:` and 32 hex digits.
fn device(text: &str) -> Option<Device> {
    match text.split_once(':')? {
        ("ppid", id) => hex::decode_array(id).map(Device::Ppid),
        ("instance", id) => hex::decode_array(id).map(Device::Instance),
        _ => None,
    }
}
