//! An appraisal as an EAT Attestation Result (draft-ietf-rats-ear-04): the claims set, in JSON, not signed.
//!
//! For relying parties that read one format for every kind of attester. It says less than an [`Appraisal`]: eight numbers
//! (draft-ietf-rats-ar4si-09 §2.3) instead of the named checks. The tier follows from the verdict alone, so that no
//! reader can come to another answer; who needs a signature wraps the set into a JWT.

use std::collections::BTreeMap;

use cofferdam_protocol::Digest;
use cofferdam_protocol::json::JsonError;
use serde::Serialize;

use crate::appraise::{Appraisal, Outcome, Verdict};
use crate::policy::Policy;

/// `eat_profile` of the draft.
const PROFILE: &str = "tag:ietf.org,2026:rats/ear#04";

/// Label of the one attester.
pub const SUBMODULE: &str = "cofferdam";

/// Values of trustworthiness claims (draft-ietf-rats-ar4si-09 §2.3.4).
mod value {
    /// Nothing is claimed: not checked, or could not be.
    pub(super) const NONE: i8 = 0;
    /// As it has to be.
    pub(super) const AFFIRMED: i8 = 2;
    /// Not known to be bad, and not affirmed either: a simulated device.
    pub(super) const WARNING: i8 = 32;
    /// Checked and false.
    pub(super) const CONTRAINDICATED: i8 = 96;
    /// A signature of the evidence does not verify.
    pub(super) const CRYPTO_FAILED: i8 = 99;
}

/// Which checks speak for which trustworthiness claim. A check that is in none of the lists speaks for `configuration`.
const CLAIMS: [(&str, &[&str]); 4] = [
    (
        "instance-identity",
        &["trust_root", "device", "repository", "tls_key", "nonce", "channel_binding", "challenge"],
    ),
    (
        "hardware",
        &[
            "quote_chain",
            "collateral",
            "quoting_enclave",
            "tcb_level",
            "tcb_status",
            "tcb_date",
            "tcb_evaluation",
            "advisories",
            "platform_flags",
            "tee_tcb_svn",
            "mr_seam",
            "qe_svn",
            "pce_svn",
        ],
    ),
    ("executables", &["mrtd", "rtmr1", "rtmr2", "firmware_log", "event_log"]),
    ("runtime-opaque", &["td_attributes", "service_td"]),
];
const REST: &str = "configuration";

/// Without these nobody knows who speaks: then nothing that the evidence says is affirmed, however well it fits.
const GENUINE: [&str; 3] = ["quote_chain", "trust_root", "collateral"];

/// Checks whose failure means that a signature or a hash of the evidence does not hold.
const CRYPTO: [&str; 4] = ["document", "quote_format", "quote_chain", "report_data"];

/// The claims set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ear {
    eat_profile: &'static str,
    /// When it was made, seconds since the Unix epoch.
    iat: u64,
    /// When what it says ceases to hold: with the accepted claims.
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
    ear_status: Tier,
    ear_verifier_id: VerifierId,
    submods: BTreeMap<&'static str, Submodule>,
}

/// Trustworthiness tiers (draft-ietf-rats-ar4si-09 §2.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Could not check.
    None,
    /// Accepted.
    Affirming,
    /// Accepted, and signed by a simulated device.
    Warning,
    /// Rejected.
    Contraindicated,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct VerifierId {
    developer: &'static str,
    build: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Submodule {
    ear_status: Tier,
    ear_trustworthiness_vector: BTreeMap<&'static str, i8>,
    ear_appraisal_policy_ids: [String; 1],
    /// The nonce inside the evidence, base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    eat_nonce: Option<String>,
    /// Checks that are false, or could not be made, by name: an extension, which readers may ignore.
    #[serde(rename = "github.com/cofferdam/cofferdam/failed")]
    failed: Vec<&'static str>,
    #[serde(rename = "github.com/cofferdam/cofferdam/unknown")]
    unknown: Vec<&'static str>,
}

impl Ear {
    /// The result of `appraisal` under `policy`, made at `now` by the program `build`.
    ///
    /// # Errors
    /// The policy cannot be written, so that it has no name.
    pub fn new(appraisal: &Appraisal, policy: &Policy, build: &str, now: u64) -> Result<Self, JsonError> {
        let named = |outcome| {
            let checks = appraisal.checks.iter().filter(|check| check.outcome == outcome);
            checks.map(|check| check.name).collect()
        };
        let tier = tier(appraisal);
        // Claims of evidence that was not accepted are nobody's.
        let accepted = appraisal.claims.as_ref().filter(|_| appraisal.verdict() == Verdict::Accepted);
        let submodule = Submodule {
            ear_status: tier,
            ear_trustworthiness_vector: vector(appraisal),
            ear_appraisal_policy_ids: [policy_id(policy)?],
            eat_nonce: accepted.and(appraisal.nonce.as_ref()).map(ToString::to_string),
            failed: named(Outcome::Fail),
            unknown: named(Outcome::CouldNotCheck),
        };
        Ok(Self {
            eat_profile: PROFILE,
            iat: now,
            exp: accepted.map(|claims| claims.expires_at.unix()),
            ear_status: tier,
            ear_verifier_id: VerifierId {
                developer: "https://github.com/cofferdam/cofferdam",
                build: build.to_owned(),
            },
            submods: BTreeMap::from([(SUBMODULE, submodule)]),
        })
    }

    /// The overall tier.
    #[must_use]
    pub fn status(&self) -> Tier {
        self.ear_status
    }
}

/// Names a policy by its contents: the digest of the complete policy as [`Policy::to_json`] writes it.
///
/// # Errors
/// The policy cannot be written.
pub fn policy_id(policy: &Policy) -> Result<String, JsonError> {
    Ok(format!("urn:cofferdam:policy:{}", Digest::of(policy.to_json()?)))
}

fn tier(appraisal: &Appraisal) -> Tier {
    match appraisal.verdict() {
        Verdict::Accepted if appraisal.simulated => Tier::Warning,
        Verdict::Accepted => Tier::Affirming,
        Verdict::Rejected => Tier::Contraindicated,
        Verdict::CouldNotCheck => Tier::None,
    }
}

/// Each trustworthiness claim by the worst of its checks. The draft's other claims (file system, storage, sourced data)
/// are not made.
fn vector(appraisal: &Appraisal) -> BTreeMap<&'static str, i8> {
    let passed = |name: &&str| appraisal.check(name).is_some_and(|check| check.outcome == Outcome::Pass);
    let genuine = GENUINE.iter().all(passed);
    let listed = |name: &str| CLAIMS.iter().any(|(_, names)| names.contains(&name));
    let of_claim = |claim: &str, name: &str| match CLAIMS.iter().find(|(known, _)| *known == claim) {
        Some((_, names)) => names.contains(&name),
        None => !listed(name),
    };
    let claims = CLAIMS.iter().map(|(claim, _)| *claim).chain([REST]);
    claims
        .map(|claim| {
            let checks = appraisal.checks.iter().filter(|check| of_claim(claim, check.name));
            let value = match worst(checks.map(|check| (check.name, check.outcome))) {
                value::AFFIRMED if !genuine => value::NONE,
                value::AFFIRMED if claim == "hardware" && appraisal.simulated => value::WARNING,
                value => value,
            };
            (claim, value)
        })
        .collect()
}

fn worst(checks: impl Iterator<Item = (&'static str, Outcome)>) -> i8 {
    let checks: Vec<_> = checks.collect();
    let any = |outcome| checks.iter().any(|(_, found)| *found == outcome);
    if checks.iter().any(|(name, found)| *found == Outcome::Fail && CRYPTO.contains(name)) {
        value::CRYPTO_FAILED
    } else if any(Outcome::Fail) {
        value::CONTRAINDICATED
    } else if any(Outcome::CouldNotCheck) || !any(Outcome::Pass) {
        value::NONE
    } else {
        value::AFFIRMED
    }
}
