//! The appraisal policy: commented data that says what is acceptable, read strictly.
//!
//! The default is `policy/appraisal.jsonc` at the repository's root, embedded when this crate is built. JSON with
//! comments: a line whose first characters are `//` is a comment (no JSON string can span lines, so no such line is data).
//! A file is complete, or says `"extends": "default"` and only what differs, so that a later default reaches it. A value
//! that could have no effect is refused when the file is read.

use std::fmt;
use std::sync::LazyLock;

use cofferdam_protocol::hex;
use cofferdam_protocol::json::{self, JsonError};
use serde_json::Value;

use crate::event_log::Register;

mod wire;

use wire::{Overrides, Wire};

/// Largest accepted policy file in bytes.
pub const MAX_BYTES: usize = 64 * 1024;

/// The text of the default policy.
pub const DEFAULT_TEXT: &str = include_str!("../../../policy/appraisal.jsonc");

/// What a verifier demands; each field is explained in the default policy's comments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Accepted TCB statuses.
    pub tcb_statuses: Vec<String>,
    /// Advisories that refuse a platform.
    pub rejected_advisories: Vec<String>,
    /// Advisories that may apply to a platform.
    pub tolerated_advisories: Accepted<String>,
    /// Least `tcbEvaluationDataNumber`.
    pub min_tcb_evaluation_data_number: u32,
    /// Least date of the platform's TCB level, seconds since the Unix epoch.
    pub min_tcb_date: Option<u64>,
    /// For how long after that date an earlier level still passes, seconds.
    pub tcb_date_grace_s: u64,
    /// Least TEE_TCB_SVN, component by component.
    pub min_tee_tcb_svn: [u8; 16],
    /// Least security version of the TDX module (component 0 of TEE_TCB_SVN).
    pub min_tdx_module_svn: u8,
    /// Least security version of the quoting enclave.
    pub min_qe_svn: u16,
    /// Least security version of the provisioning certification enclave.
    pub min_pce_svn: u16,
    /// Accepted measurements of the TDX module.
    pub accepted_mr_seam: Accepted<Register>,
    /// Accepted machines.
    pub accepted_devices: Accepted<Device>,
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

/// An allow-list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted<T> {
    /// Nothing is demanded.
    Any,
    /// One of these.
    Only(Vec<T>),
}

/// What identifies a machine in its PCK certificate (Intel SGX PCK Certificate and CRL Profile, SGX extensions).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// PPID: belongs to the processor package that makes the quotes and never changes.
    Ppid([u8; 16]),
    /// Platform instance id: belongs to a multi-package platform as it was registered; absent in certificates of the
    /// processor CA, and another one after the platform was set up anew.
    Instance([u8; 16]),
}

impl fmt::Display for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ppid(id) => write!(out, "ppid:{}", hex::encode(id)),
            Self::Instance(id) => write!(out, "instance:{}", hex::encode(id)),
        }
    }
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
    /// [`PolicyError`] names the field that is missing, unknown, out of its range or without effect.
    pub fn parse(text: &[u8]) -> Result<Self, PolicyError> {
        let json = without_comments(text)?;
        let extends = |json: &[u8]| {
            let text: Option<Value> = serde_json::from_slice(json).ok();
            text.is_some_and(|text| text.get("extends").is_some())
        };
        if json.len() > MAX_BYTES || !extends(&json) {
            return complete(&json)?.check();
        }
        let overrides: Overrides = json::from_json(&json, MAX_BYTES).map_err(PolicyError::Json)?;
        overrides.over(complete(&without_comments(DEFAULT_TEXT.as_bytes())?)?)?.check()
    }

    /// The policy as a complete file, indented, with a final newline.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn to_json(&self) -> Result<Vec<u8>, JsonError> {
        json::to_vec_pretty(&Wire::from(self))
    }

    /// Accepts no quote at all.
    fn nothing() -> Self {
        Self {
            tcb_statuses: Vec::new(),
            rejected_advisories: Vec::new(),
            tolerated_advisories: Accepted::Only(Vec::new()),
            min_tcb_evaluation_data_number: u32::MAX,
            min_tcb_date: None,
            tcb_date_grace_s: 0,
            min_tee_tcb_svn: [u8::MAX; 16],
            min_tdx_module_svn: u8::MAX,
            min_qe_svn: u16::MAX,
            min_pce_svn: u16::MAX,
            accepted_mr_seam: Accepted::Only(Vec::new()),
            accepted_devices: Accepted::Only(Vec::new()),
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
            required_registers: Vec::new(),
            allowed_events: Vec::new(),
            max_validity_s: 0,
            max_age_s: 0,
            clock_skew_s: 0,
        }
    }
}

/// Comment lines become empty lines, so that the parser's line numbers stay true.
fn without_comments(text: &[u8]) -> Result<Vec<u8>, PolicyError> {
    let text = std::str::from_utf8(text).map_err(|_| PolicyError::Encoding)?;
    let json: Vec<&str> =
        text.lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line }).collect();
    Ok(json.join("\n").into_bytes())
}

fn complete(json: &[u8]) -> Result<Wire, PolicyError> {
    json::from_json(json, MAX_BYTES).map_err(PolicyError::Json)
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
    /// A value that could have no effect, or that no policy can allow.
    #[error("policy field `{name}` cannot be `{value}`: {why}")]
    Never {
        /// Name of the field.
        name: &'static str,
        /// The offending value.
        value: String,
        /// Why.
        why: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quote::attributes;

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
        assert!(matches!(change("\"PKS\"", "\"DEBUG\""), Err(PolicyError::Never { .. })));
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

    /// `{"version": 1, "extends": "default", …}`.
    fn overriding(more: &str) -> Result<Policy, PolicyError> {
        Policy::parse(format!("// ours\n{{\"version\": 1, \"extends\": \"default\"{more}}}").as_bytes())
    }

    #[test]
    fn overrides_replace_single_fields_of_the_default() {
        assert_eq!(overriding("").unwrap(), Policy::default());
        let changed = overriding(", \"allow_smt\": false, \"max_age_s\": 60").unwrap();
        assert_eq!(changed, Policy { allow_smt: false, max_age_s: 60, ..Policy::default() });
        assert!(matches!(overriding(", \"allow_smp\": false"), Err(PolicyError::Json(_))));
        assert!(matches!(overriding(", \"max_age_s\": 1, \"max_age_s\": 1"), Err(PolicyError::Json(_))));
        let other = Policy::parse(br#"{"version": 1, "extends": "other"}"#);
        assert!(matches!(other, Err(PolicyError::Value { name: "extends", .. })));
        assert!(matches!(Policy::parse(br#"{"extends": "default"}"#), Err(PolicyError::Json(_))));
        assert!(matches!(Policy::parse(br#"[1, "default"]"#), Err(PolicyError::Json(_))));
    }

    #[test]
    fn a_field_that_would_do_nothing_is_refused() {
        for (field, value) in [
            ("allow_service_td", "true"),
            ("td_attributes_allowed", "[\"SEPT_VE_DISABLE\", \"MIGRATABLE\"]"),
            ("td_attributes_allowed", "[\"SEPT_VE_DISABLE\", \"SERVTD_EXT\"]"),
            ("td_attributes_allowed", "[\"SEPT_VE_DISABLE\", \"PROFILING\"]"),
            ("td_attributes_allowed", "[\"SEPT_VE_DISABLE\", \"DEBUG\"]"),
            ("td_attributes_required", "[]"),
            ("td_attributes_required", "[\"PKS\"]"),
            ("tcb_date_grace_s", "1"),
        ] {
            match overriding(&format!(", \"{field}\": {value}")) {
                Err(PolicyError::Never { name, .. }) => assert_eq!(name, field, "{value}"),
                other => panic!("{field} {value}: {other:?}"),
            }
        }
        let both = ", \"rejected_advisories\": [\"INTEL-SA-1\"], \"tolerated_advisories\": [\"INTEL-SA-1\"]";
        assert!(matches!(overriding(both), Err(PolicyError::Never { name: "tolerated_advisories", .. })));
    }

    #[test]
    fn a_policy_is_written_as_it_is_read() {
        let id = "0123456789abcdef0123456789abcdef";
        let every = format!(
            ", \"min_tcb_date\": \"2025-05-14T00:00:00Z\", \"tcb_date_grace_s\": 9, \"min_tee_tcb_svn\": \"{id}\", \
             \"min_tdx_module_svn\": 5, \"min_qe_svn\": 4, \"min_pce_svn\": 11, \"mr_owner\": \"{0}\", \
             \"accepted_mr_seam\": [\"{0}\"], \"accepted_devices\": [\"ppid:{id}\", \"instance:{id}\"], \
             \"tolerated_advisories\": [\"INTEL-SA-00837\"]",
            "ab".repeat(48)
        );
        for policy in [Policy::default(), overriding(&every).unwrap()] {
            assert_eq!(Policy::parse(&policy.to_json().unwrap()).unwrap(), policy);
        }
        for bad in
            ["[\"ppid:01\"]", "[\"*\", \"*\"]", "[\"fmspc:{id}\"]", "[\"ABCDEF6789abcdef0123456789abcdef\"]"]
        {
            assert!(overriding(&format!(", \"accepted_devices\": {bad}")).is_err(), "{bad}");
        }
    }
}
