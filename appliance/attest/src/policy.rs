//! The appraisal policy: commented data that says what is acceptable, read strictly.
//!
//! The default is `policy/appraisal.jsonc` at the repository's root, embedded when this crate is built. JSON with
//! comments: a line whose first characters are `//` is a comment (no JSON string can span lines, so no such line is data).

use std::sync::LazyLock;

use serde::Deserialize;

use crate::event_log::{self, Register};
use crate::quote::{attributes, xfam};
use crate::strict::{self, JsonError};

/// Largest accepted policy file in bytes.
pub const MAX_BYTES: usize = 64 * 1024;

/// The text of the default policy.
pub const DEFAULT_TEXT: &str = include_str!("../../../policy/appraisal.jsonc");

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

/// What a verifier demands; each field is explained in the default policy's comments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Accepted TCB statuses.
    pub tcb_statuses: Vec<String>,
    /// Advisories that refuse a platform.
    pub rejected_advisories: Vec<String>,
    /// Least `tcbEvaluationDataNumber`.
    pub min_tcb_evaluation_data_number: u32,
    /// Whether dynamic platforms pass.
    pub allow_dynamic_platform: bool,
    /// Whether platforms with cached keys pass.
    pub allow_cached_keys: bool,
    /// Whether platforms with SMT pass.
    pub allow_smt: bool,
    /// TD attribute bits that must be set.
    pub td_attributes_required: u64,
    /// TD attribute bits that may be set.
    pub td_attributes_allowed: u64,
    /// XFAM bits that must be set.
    pub xfam_required: u64,
    /// XFAM bits that may be set.
    pub xfam_allowed: u64,
    /// Demanded MRCONFIGID.
    pub mr_config_id: Register,
    /// Demanded MROWNER.
    pub mr_owner: Register,
    /// Demanded MROWNERCONFIG.
    pub mr_owner_config: Register,
    /// Whether a TD bound to service TDs passes.
    pub allow_service_td: bool,
    /// Registers that need a reference value: `mrtd`, `rtmr0`, `rtmr1`, `rtmr2`.
    pub required_registers: Vec<String>,
    /// Foreign event names that may occur before the launch boundary.
    pub allowed_events: Vec<String>,
    /// Longest `expires_at - issued_at` in seconds.
    pub max_validity_s: u64,
    /// Greatest age of claims in seconds.
    pub max_age_s: u64,
    /// Tolerated difference of clocks in seconds.
    pub clock_skew_s: u64,
}

static DEFAULT: LazyLock<Option<Policy>> = LazyLock::new(|| Policy::parse(DEFAULT_TEXT.as_bytes()).ok());

impl Default for Policy {
    /// The embedded policy. A test proves that it parses; were it ever not to, nothing would be accepted.
    fn default() -> Self {
        DEFAULT.clone().unwrap_or_else(Self::nothing)
    }
}

impl Policy {
    /// Parses a policy file of at most [`MAX_BYTES`].
    ///
    /// # Errors
    /// [`PolicyError`] names the field that is missing, unknown or out of its range.
    pub fn parse(text: &[u8]) -> Result<Self, PolicyError> {
        let text = std::str::from_utf8(text).map_err(|_| PolicyError::Encoding)?;
        // Comment lines become empty lines, so that the parser's line numbers stay true.
        let json: Vec<&str> =
            text.lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line }).collect();
        let wire: Wire =
            strict::from_json(json.join("\n").as_bytes(), MAX_BYTES).map_err(PolicyError::Json)?;
        if wire.version != 1 {
            return Err(PolicyError::Version(wire.version));
        }
        wire.check()
    }

    /// Accepts no quote at all.
    fn nothing() -> Self {
        Self {
            tcb_statuses: Vec::new(),
            rejected_advisories: Vec::new(),
            min_tcb_evaluation_data_number: u32::MAX,
            allow_dynamic_platform: false,
            allow_cached_keys: false,
            allow_smt: false,
            td_attributes_required: u64::MAX,
            td_attributes_allowed: 0,
            xfam_required: u64::MAX,
            xfam_allowed: 0,
            mr_config_id: [0; 48],
            mr_owner: [0; 48],
            mr_owner_config: [0; 48],
            allow_service_td: false,
            required_registers: Vec::new(),
            allowed_events: Vec::new(),
            max_validity_s: 0,
            max_age_s: 0,
            clock_skew_s: 0,
        }
    }
}

/// The JSON shape of a policy.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: u32,
    tcb_statuses: Vec<String>,
    rejected_advisories: Vec<String>,
    min_tcb_evaluation_data_number: u32,
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

impl Wire {
    fn check(self) -> Result<Policy, PolicyError> {
        let known = |name, list: &[String], ok: &dyn Fn(&str) -> bool| match list
            .iter()
            .find(|value| !ok(value.as_str()))
        {
            Some(value) => Err(PolicyError::Value { name, value: value.clone() }),
            None => Ok(()),
        };
        known("tcb_statuses", &self.tcb_statuses, &|s| STATUSES.contains(&s))?;
        known("rejected_advisories", &self.rejected_advisories, &|s| s.starts_with("INTEL-SA-"))?;
        known("required_registers", &self.required_registers, &|s| {
            matches!(s, "mrtd" | "rtmr0" | "rtmr1" | "rtmr2")
        })?;
        known("allowed_events", &self.allowed_events, &event_log::is_name)?;
        let policy = Policy {
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
            tcb_statuses: self.tcb_statuses,
            rejected_advisories: self.rejected_advisories,
            min_tcb_evaluation_data_number: self.min_tcb_evaluation_data_number,
            allow_dynamic_platform: self.allow_dynamic_platform,
            allow_cached_keys: self.allow_cached_keys,
            allow_smt: self.allow_smt,
            allow_service_td: self.allow_service_td,
            required_registers: self.required_registers,
            allowed_events: self.allowed_events,
            max_validity_s: self.max_validity_s,
            max_age_s: self.max_age_s,
            clock_skew_s: self.clock_skew_s,
        };
        if policy.td_attributes_allowed & attributes::DEBUG != 0 {
            return Err(PolicyError::Value { name: "td_attributes_allowed", value: "DEBUG".to_owned() });
        }
        Ok(policy)
    }
}

/// The bits that `list` names.
fn bits(name: &'static str, list: &[String], names: &[(u64, &str)]) -> Result<u64, PolicyError> {
    list.iter().try_fold(0, |mask, value| match names.iter().find(|(_, known)| known == value) {
        Some((bit, _)) => Ok(mask | bit),
        None => Err(PolicyError::Value { name, value: value.clone() }),
    })
}

/// A demanded register value: `zero` or 96 hex digits.
fn demanded(name: &'static str, text: &str) -> Result<Register, PolicyError> {
    match text {
        "zero" => Ok([0; 48]),
        hex => strict::register(hex).ok_or_else(|| PolicyError::Value { name, value: hex.to_owned() }),
    }
}

/// Why a policy file was refused.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not UTF-8.
    #[error("policy is not UTF-8")]
    Encoding,
    /// Too large or not of the shape of a policy.
    #[error("policy is not acceptable JSON with comment lines")]
    Json(#[source] JsonError),
    /// Another version of the format.
    #[error("policy of version {0}, only version 1 is known")]
    Version(u32),
    /// A value that the field does not know or does not allow.
    #[error("policy field `{name}` does not allow `{value}`")]
    Value {
        /// Name of the field.
        name: &'static str,
        /// The offending value.
        value: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_parses_and_is_strict() {
        let policy = Policy::parse(DEFAULT_TEXT.as_bytes()).unwrap();
        assert_eq!(policy, Policy::default());
        assert_eq!(policy.tcb_statuses, ["UpToDate"]);
        assert_eq!(policy.td_attributes_allowed & attributes::DEBUG, 0);
        assert_eq!(policy.td_attributes_allowed & attributes::MIGRATABLE, 0);
        assert_ne!(policy.td_attributes_required & attributes::SEPT_VE_DISABLE, 0);
        assert_eq!(policy.required_registers, ["mrtd", "rtmr1", "rtmr2"]);
    }

    #[test]
    fn a_policy_that_is_not_understood_is_refused() {
        let change = |from: &str, to: &str| {
            let text = DEFAULT_TEXT.replacen(from, to, 1);
            assert_ne!(text, DEFAULT_TEXT, "{from}");
            Policy::parse(text.as_bytes())
        };
        assert!(matches!(change("\"version\": 1", "\"version\": 2"), Err(PolicyError::Version(2))));
        assert!(matches!(change("\"allow_smt\"", "\"allow_smp\""), Err(PolicyError::Json(_))));
        assert!(matches!(change("\"allow_smt\": true,", ""), Err(PolicyError::Json(_))));
        assert!(matches!(change("[\"UpToDate\"]", "[\"Revoked\"]"), Err(PolicyError::Value { .. })));
        assert!(matches!(change("\"PKS\"", "\"DEBUG\""), Err(PolicyError::Value { .. })));
        assert!(matches!(change("\"mrtd\"", "\"rtmr3\""), Err(PolicyError::Value { .. })));
        assert!(matches!(change("\"zero\"", "\"none\""), Err(PolicyError::Value { .. })));
        assert!(matches!(Policy::parse(&[0xff]), Err(PolicyError::Encoding)));
    }

    #[test]
    fn the_fallback_accepts_nothing() {
        let nothing = Policy::nothing();
        assert!(nothing.tcb_statuses.is_empty());
        assert_ne!(nothing.td_attributes_required & !nothing.td_attributes_allowed, 0);
    }
}
