//! Seccomp profiles: from the commented data in `policy/seccomp/` to the programs that the kernel runs.
//!
//! A profile becomes two filters, because one filter has one answer for everything it does not
//! match. The first knows the calls and answers ENOSYS to the rest; the second answers EPERM to the
//! refused ones. The kernel runs both and takes the stricter answer (seccomp(2), "most restrictive").
//! Both check the architecture first. Names are resolved by seccompiler's own table, so a
//! misspelt call is an error and not a hole.

use seccompiler::{BpfProgram, TargetArch};
use serde::Deserialize;
use serde_json::{Value, json};

/// What a workload may do.
pub const WORKLOAD: &str = include_str!("../../../policy/seccomp/workload.json");

/// Why a profile could not be made or applied.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The embedded data is not a profile.
    #[error("the seccomp profile does not parse")]
    Parse(#[source] serde_json::Error),
    /// A condition with none or several of `is`, `is_not` and `has`.
    #[error("a condition of the seccomp profile is not one comparison")]
    Condition,
    /// seccompiler refused the rules: a call that it does not know, or contradicting rules.
    #[error("the seccomp profile does not compile")]
    Compile(#[source] seccompiler::Error),
    /// The kernel refused the filter.
    #[error("the kernel refuses the seccomp filter")]
    Apply(#[source] seccompiler::Error),
}

/// A compiled profile, ready to be applied without allocating.
#[derive(Debug)]
pub struct Profile {
    filters: [BpfProgram; 2],
}

impl Profile {
    /// The profile of workloads.
    ///
    /// # Errors
    ///
    /// The embedded data is wrong, which a test excludes.
    pub fn workload() -> Result<Self, SeccompError> {
        Self::parse(WORKLOAD)
    }

    /// A profile from its text, a file of `policy/seccomp`.
    ///
    /// # Errors
    ///
    /// The text is not a profile, or names a call that there is not.
    pub fn parse(text: &str) -> Result<Self, SeccompError> {
        let data: Data = serde_json::from_str(text).map_err(SeccompError::Parse)?;
        let mut known: Vec<Value> = data
            .groups
            .iter()
            .flat_map(|group| &group.allow)
            .map(|call| json!({ "syscall": call }))
            .collect();
        let mut refused = Vec::new();
        for refusal in data.groups.iter().flat_map(|group| &group.refuse) {
            match refusal {
                Refusal::Always(call) => {
                    // Known too: EPERM is the answer to give, not the first filter's ENOSYS.
                    known.push(json!({ "syscall": call }));
                    refused.push(json!({ "syscall": call }));
                }
                Refusal::When { call, when } => {
                    let conditions = when.iter().map(Condition::compile).collect::<Result<Vec<_>, _>>()?;
                    refused.push(json!({ "syscall": call, "args": conditions }));
                }
            }
        }
        let (unknown, forbidden) =
            (json!({ "errno": nix::libc::ENOSYS }), json!({ "errno": nix::libc::EPERM }));
        Ok(Self {
            filters: [
                compile(
                    &json!({ "mismatch_action": "allow", "match_action": forbidden, "filter": refused }),
                )?,
                compile(&json!({ "mismatch_action": unknown, "match_action": "allow", "filter": known }))?,
            ],
        })
    }

    /// Puts the calling thread, and all it starts from now on, under the profile.
    ///
    /// # Errors
    ///
    /// `no_new_privs` is not set, or a profile is in force already that forbids another one.
    pub fn apply(&self) -> Result<(), SeccompError> {
        // Sent in this order because the kernel prefers the answer of the filter installed last when
        // two answers weigh the same: an unknown call says ENOSYS.
        self.filters
            .iter()
            .try_for_each(|filter| seccompiler::apply_filter(filter))
            .map_err(SeccompError::Apply)
    }
}

/// A filter that refuses calls of the workload's profile, and allows nothing that another filter refuses.
#[derive(Debug)]
pub(crate) struct Refusing(Option<BpfProgram>);

impl Refusing {
    /// Refuses every call of the workload's profile but those to `keep`, as the profile refuses (EPERM). A call that the profile does
    /// not know keeps its answer.
    ///
    /// # Errors
    ///
    /// The embedded data is wrong, which a test excludes.
    pub(crate) fn all_but(keep: impl Fn(&str) -> bool) -> Result<Self, SeccompError> {
        let data: Data = serde_json::from_str(WORKLOAD).map_err(SeccompError::Parse)?;
        let calls = data.groups.iter().flat_map(|group| &group.allow).filter(|call| !keep(call));
        let calls: Vec<Value> = calls.map(|call| json!({ "syscall": call })).collect();
        if calls.is_empty() {
            return Ok(Self(None));
        }
        let forbidden = json!({ "errno": nix::libc::EPERM });
        let filter = json!({ "mismatch_action": "allow", "match_action": forbidden, "filter": calls });
        Ok(Self(Some(compile(&filter)?)))
    }

    /// Puts the calling thread, and all it starts from now on, under the filter.
    ///
    /// # Errors
    ///
    /// As [`Profile::apply`].
    pub(crate) fn apply(&self) -> Result<(), SeccompError> {
        match &self.0 {
            Some(filter) => seccompiler::apply_filter(filter).map_err(SeccompError::Apply),
            None => Ok(()),
        }
    }
}

fn compile(filter: &Value) -> Result<BpfProgram, SeccompError> {
    let map = json!({ "filter": filter }).to_string();
    let mut programs =
        seccompiler::compile_from_json(map.as_bytes(), TargetArch::x86_64).map_err(SeccompError::Compile)?;
    Ok(programs.remove("filter").unwrap_or_default())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    #[serde(rename = "about")]
    _about: String,
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "why")]
    _why: String,
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    refuse: Vec<Refusal>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Refusal {
    Always(String),
    When { call: String, when: Vec<Condition> },
}

/// One comparison of one argument. All of a call's comparisons have to hold.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    arg: u8,
    is: Option<u32>,
    is_not: Option<u32>,
    /// All of these bits are set.
    has: Option<u32>,
}

impl Condition {
    /// Every argument compared here is an int to the kernel, which ignores the upper half of the register: so
    /// does the comparison, or a caller could hide a value behind rubbish there.
    fn compile(&self) -> Result<Value, SeccompError> {
        let (operator, value) = match (self.is, self.is_not, self.has) {
            (Some(value), None, None) => (json!("eq"), value),
            (None, Some(value), None) => (json!("ne"), value),
            (None, None, Some(bits)) => (json!({ "masked_eq": bits }), bits),
            _ => return Err(SeccompError::Condition),
        };
        Ok(json!({ "index": self.arg, "type": "dword", "op": operator, "val": value }))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    // Those of the roles that make containers and fetch images.
    const SHIM: &str = include_str!("../../../policy/seccomp/shim.json");
    const PULL: &str = include_str!("../../../policy/seccomp/pull.json");

    #[test]
    fn the_profiles_compile_and_every_group_says_why() {
        for text in [WORKLOAD, SHIM, PULL] {
            let profile = Profile::parse(text).unwrap();
            assert!(profile.filters.iter().all(|filter| filter.len() > 10));
            let data: Value = serde_json::from_str(text).unwrap();
            for group in data["groups"].as_array().unwrap() {
                assert!(group["why"].as_str().unwrap().len() > 20, "{group}");
            }
        }
    }

    #[test]
    fn a_service_names_exactly_the_calls_of_the_profile() {
        let data: Data = serde_json::from_str(WORKLOAD).unwrap();
        let allowed: BTreeSet<String> = data.groups.into_iter().flat_map(|group| group.allow).collect();
        assert_eq!(&allowed, cofferdam_declaration::known_system_calls());
        for call in crate::narrow::ALWAYS {
            assert!(allowed.contains(call), "{call}");
        }
        assert!(Refusing::all_but(|_| true).unwrap().0.is_none());
        assert!(Refusing::all_but(|_| false).unwrap().0.unwrap().len() > allowed.len());
    }

    #[test]
    fn no_call_is_both_allowed_and_refused() {
        for text in [WORKLOAD, SHIM, PULL] {
            let data: Data = serde_json::from_str(text).unwrap();
            let mut seen = BTreeSet::new();
            let allowed = data.groups.iter().flat_map(|group| &group.allow);
            let refused =
                data.groups.iter().flat_map(|group| &group.refuse).filter_map(|refusal| match refusal {
                    Refusal::Always(call) => Some(call),
                    Refusal::When { .. } => None,
                });
            for call in allowed.chain(refused) {
                assert!(seen.insert(call), "{call} stands twice");
            }
        }
    }

    #[test]
    fn a_shim_may_call_whatever_it_starts_may_call() {
        let allowed = |text: &str| -> BTreeSet<String> {
            let data: Data = serde_json::from_str(text).unwrap();
            data.groups.into_iter().flat_map(|group| group.allow).collect()
        };
        let shim = allowed(SHIM);
        for text in [WORKLOAD, PULL] {
            let more: Vec<String> = allowed(text).difference(&shim).cloned().collect();
            assert!(more.is_empty(), "{more:?}");
        }
    }

    #[test]
    fn a_profile_with_a_mistake_is_refused() {
        let with = |group: &str| format!(r#"{{"about":"x","groups":[{{"name":"n","why":"w",{group}}}]}}"#);
        let parse = |group: &str| Profile::parse(&with(group));
        assert!(parse(r#""allow":["read"],"refuse":["ptrace"]"#).is_ok());
        assert!(matches!(parse(r#""allow":["raed"],"refuse":["ptrace"]"#), Err(SeccompError::Compile(_))));
        let both = r#""refuse":[{"call":"prctl","when":[{"arg":0,"is":1,"is_not":2}]}]"#;
        assert!(matches!(parse(both), Err(SeccompError::Condition)));
        assert!(matches!(parse(r#""permit":["read"]"#), Err(SeccompError::Parse(_))));
    }
}
