//! Seccomp profiles: from the commented data in `policy/seccomp/` to the programs that the kernel runs.
//!
//! A profile becomes two filters. The first answers EPERM to the calls that are refused for what they ask, by their arguments. The
//! second looks at a call's number alone: it knows the calls, answers EPERM to those that are always refused, and ENOSYS to the rest.
//! The kernel runs both and takes the stricter answer (seccomp(2), "most restrictive"). Both check the architecture first. Names are
//! resolved by seccompiler's own table, so a misspelt call is an error and not a hole.
//!
//! seccompiler asks about one call after the other: two thousand instructions, which the kernel checks, translates and tries for each call
//! that there is, in each process that takes them. So what depends on the number alone is asked by halves here, of ranges of numbers.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use nix::libc;
use seccompiler::{BpfProgram, TargetArch, sock_filter};
use serde::{Deserialize, Serialize};
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
    /// More ranges of calls than one jump passes over.
    #[error("the seccomp profile is too long")]
    Long,
    /// The kernel refused the filter.
    #[error("the kernel refuses the seccomp filter")]
    Apply(#[source] seccompiler::Error),
}

/// What the second filter answers.
const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;
/// See [`ALLOWED`].
const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
/// See [`ALLOWED`].
const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();

/// A compiled profile, ready to be applied without allocating. It passes from one process to another as its instructions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[Vec<Instruction>; 2]", into = "[Vec<Instruction>; 2]")]
pub struct Profile {
    filters: [BpfProgram; 2],
}

/// `code`, `jt`, `jf` and `k` of a `sock_filter`.
type Instruction = (u16, u8, u8, u32);

impl From<[Vec<Instruction>; 2]> for Profile {
    fn from(filters: [Vec<Instruction>; 2]) -> Self {
        let read = |(code, jt, jf, k)| sock_filter { code, jt, jf, k };
        Self { filters: filters.map(|filter| filter.into_iter().map(read).collect()) }
    }
}

impl From<Profile> for [Vec<Instruction>; 2] {
    fn from(profile: Profile) -> Self {
        let written = |one: sock_filter| (one.code, one.jt, one.jf, one.k);
        profile.filters.map(|filter| filter.into_iter().map(written).collect())
    }
}

impl Profile {
    /// The profile of workloads, compiled once in a process: that takes millions of instructions.
    ///
    /// # Errors
    ///
    /// The embedded data is wrong, which a test excludes.
    pub fn workload() -> Result<&'static Self, SeccompError> {
        static COMPILED: OnceLock<Profile> = OnceLock::new();
        match COMPILED.get() {
            Some(profile) => Ok(profile),
            None => {
                let profile = Self::parse(WORKLOAD)?;
                Ok(COMPILED.get_or_init(|| profile))
            }
        }
    }

    /// A profile from its text, a file of `policy/seccomp`.
    ///
    /// # Errors
    ///
    /// The text is not a profile, or names a call that there is not.
    pub fn parse(text: &str) -> Result<Self, SeccompError> {
        let data: Data = serde_json::from_str(text).map_err(SeccompError::Parse)?;
        let allowed: Vec<&str> =
            data.groups.iter().flat_map(|group| &group.allow).map(String::as_str).collect();
        let (mut always, mut sometimes) = (Vec::new(), Vec::new());
        for refusal in data.groups.iter().flat_map(|group| &group.refuse) {
            match refusal {
                Refusal::Always(call) => always.push(call.as_str()),
                Refusal::When { call, when } => {
                    let conditions = when.iter().map(Condition::compile).collect::<Result<Vec<_>, _>>()?;
                    sometimes.push(json!({ "syscall": call, "args": conditions }));
                }
            }
        }
        let known = decide(UNKNOWN, &[(ALLOWED, &allowed), (REFUSED, &always)])?;
        Ok(Self { filters: [compile(&sometimes)?, known] })
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
        let calls = data.groups.iter().flat_map(|group| &group.allow).map(String::as_str);
        let calls: Vec<&str> = calls.filter(|call| !keep(call)).collect();
        if calls.is_empty() {
            return Ok(Self(None));
        }
        Ok(Self(Some(decide(ALLOWED, &[(REFUSED, &calls)])?)))
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

/// A filter that refuses what these rules match and allows the rest.
fn compile(rules: &[Value]) -> Result<BpfProgram, SeccompError> {
    let refused = json!({ "errno": libc::EPERM });
    let filter = json!({ "mismatch_action": "allow", "match_action": refused, "filter": rules });
    let map = json!({ "filter": filter }).to_string();
    let mut programs =
        seccompiler::compile_from_json(map.as_bytes(), TargetArch::x86_64).map_err(SeccompError::Compile)?;
    Ok(programs.remove("filter").unwrap_or_default())
}

/// Instructions with which a filter of seccompiler's begins: they end a process that calls by another architecture's numbers.
const HEAD: usize = 3;
/// The first member of `seccomp_data` is the call's number (BPF_LD | BPF_W | BPF_ABS of linux/bpf_common.h).
const LOAD_NUMBER: sock_filter = sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 };
/// BPF_JMP | BPF_JEQ | BPF_K.
const IS: u16 = 0x15;
/// BPF_JMP | BPF_JGE | BPF_K.
const AT_LEAST: u16 = 0x35;
/// BPF_RET | BPF_K.
const ANSWER: u16 = 0x06;

/// A filter with an answer for each of these lists of calls, and for every other call.
fn decide(otherwise: u32, answers: &[(u32, &[&str])]) -> Result<BpfProgram, SeccompError> {
    let mut by_number = BTreeMap::new();
    for (answer, calls) in answers {
        let rules: Vec<Value> = calls.iter().map(|call| json!({ "syscall": call })).collect();
        // The numbers are what the filter compares with: seccompiler has no other way to ask for them.
        let compared = compile(&rules)?.into_iter().skip(HEAD).filter(|one| one.code == IS);
        by_number.extend(compared.map(|one| (one.k, *answer)));
    }
    let mut ranges = vec![(0, otherwise)];
    for (number, answer) in by_number {
        begin(&mut ranges, number, answer);
        begin(&mut ranges, number.saturating_add(1), otherwise);
    }
    let mut program: BpfProgram = compile(&[])?.into_iter().take(HEAD).collect();
    program.push(LOAD_NUMBER);
    halve(&ranges, &mut program)?;
    Ok(program)
}

/// From `number` on the answer is this one. No range before it begins later, and none lasts on beside one of the same answer.
fn begin(ranges: &mut Vec<(u32, u32)>, number: u32, answer: u32) {
    ranges.pop_if(|(start, _)| *start == number);
    if ranges.last().is_none_or(|(_, before)| *before != answer) {
        ranges.push((number, answer));
    }
}

/// Finds the range of the number that is loaded.
fn halve(ranges: &[(u32, u32)], program: &mut BpfProgram) -> Result<(), SeccompError> {
    let (low, high) = ranges.split_at(ranges.len().div_ceil(2));
    let (Some((_, answer)), first_high) = (low.first(), high.first()) else { return Ok(()) };
    let Some((first_high, _)) = first_high else {
        program.push(sock_filter { code: ANSWER, jt: 0, jf: 0, k: *answer });
        return Ok(());
    };
    let mut lower = Vec::new();
    halve(low, &mut lower)?;
    let jt = u8::try_from(lower.len()).map_err(|_| SeccompError::Long)?;
    program.push(sock_filter { code: AT_LEAST, jt, jf: 0, k: *first_high });
    program.append(&mut lower);
    halve(high, program)
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
            Profile::parse(text).unwrap();
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
        let (all, one) =
            (Refusing::all_but(|_| false).unwrap().0, Refusing::all_but(|call| call == "read").unwrap().0);
        let (all, one) = (all.unwrap(), one.unwrap());
        let refused = |filter: &BpfProgram| {
            (0..NUMBERS).filter(|number| answer(filter, X86_64, *number, [0; 6]) == REFUSED).count()
        };
        assert_eq!((refused(&all), refused(&one)), (allowed.len(), allowed.len() - 1));
        assert_eq!(answer(&one, X86_64, 0, [0; 6]), ALLOWED);
    }

    /// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_I386`.
    const X86_64: u32 = 0xc000_003e;
    const I386: u32 = 0x4000_0003;
    /// More than there are calls.
    const NUMBERS: u32 = 1024;
    /// The bit of x32 calls.
    const X32: u32 = 1 << 30;

    /// What the kernel would take from a filter.
    fn answer(filter: &BpfProgram, architecture: u32, number: u32, arguments: [u32; 6]) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let one = &filter[at];
            at += 1;
            let jump = |holds: bool| usize::from(if holds { one.jt } else { one.jf });
            match one.code {
                0x20 => {
                    loaded = match one.k {
                        0 => number,
                        4 => architecture,
                        // The lower half of an argument; the upper one has rubbish.
                        offset if (offset - 16) % 8 == 0 => arguments[(offset as usize - 16) / 8],
                        _ => 0xdead_beef,
                    }
                }
                0x54 => loaded &= one.k,
                0x05 => at += one.k as usize,
                IS => at += jump(loaded == one.k),
                AT_LEAST => at += jump(loaded >= one.k),
                ANSWER => return one.k,
                code => panic!("{code:#x}"),
            }
        }
    }

    /// What it takes from several: the strictest, and of those that weigh the same the one installed last (seccomp(2)).
    fn answer_of_all(filters: &[BpfProgram], architecture: u32, number: u32, arguments: [u32; 6]) -> u32 {
        let weigh = |answer: u32| (answer & 0xffff_0000).cast_signed();
        let answers = filters.iter().map(|filter| answer(filter, architecture, number, arguments));
        answers.reduce(|before, next| if weigh(next) <= weigh(before) { next } else { before }).unwrap()
    }

    /// The filters as seccompiler alone makes them, of one rule for each call.
    fn call_by_call(text: &str) -> [BpfProgram; 2] {
        let data: Value = serde_json::from_str(text).unwrap();
        let (mut known, mut refused) = (Vec::new(), Vec::new());
        for group in data["groups"].as_array().unwrap() {
            for call in group["allow"].as_array().into_iter().flatten() {
                known.push(json!({ "syscall": call }));
            }
            for refusal in group["refuse"].as_array().into_iter().flatten() {
                if refusal.is_string() {
                    known.push(json!({ "syscall": refusal }));
                    refused.push(json!({ "syscall": refusal }));
                    continue;
                }
                let when: Vec<Condition> = serde_json::from_value(refusal["when"].clone()).unwrap();
                let when: Vec<Value> = when.iter().map(|one| one.compile().unwrap()).collect();
                refused.push(json!({ "syscall": refusal["call"], "args": when }));
            }
        }
        let filter = json!({ "filter": {
            "mismatch_action": { "errno": libc::ENOSYS }, "match_action": "allow", "filter": known,
        } });
        let mut known =
            seccompiler::compile_from_json(filter.to_string().as_bytes(), TargetArch::x86_64).unwrap();
        [compile(&refused).unwrap(), known.remove("filter").unwrap()]
    }

    #[test]
    fn every_call_has_the_answer_that_it_has_when_calls_are_asked_about_one_by_one() {
        let mut arguments = vec![[0; 6], [u32::MAX; 6]];
        let values = (0..32).map(|bit| 1 << bit).chain([2, 3, 10, 16, 17, 21522, 21532]);
        for value in values {
            arguments.extend([
                [value, 0, 0, 0, 0, 0],
                [value; 6],
                [4, value, 1, 0, 0, 0],
                [16, 2, value, 0, 0, 0],
            ]);
        }
        let numbers: Vec<u32> =
            (0..NUMBERS).flat_map(|number| [number, number | X32]).chain([u32::MAX, u32::MAX >> 1]).collect();
        for text in [WORKLOAD, SHIM, PULL] {
            let (ours, others) = (Profile::parse(text).unwrap().filters, call_by_call(text));
            let mut seen = BTreeSet::new();
            for (number, arguments) in
                numbers.iter().flat_map(|number| arguments.iter().map(move |one| (*number, *one)))
            {
                let answers = [&ours, &others].map(|one| answer_of_all(one, X86_64, number, arguments));
                assert_eq!(answers[0], answers[1], "{number} {arguments:?}");
                seen.insert(answers[0]);
            }
            assert_eq!(seen, BTreeSet::from([ALLOWED, REFUSED, UNKNOWN]));
            assert_eq!(answer_of_all(&ours, I386, 1, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
            let [len, before] = [&ours, &others].map(|one| one.iter().map(Vec::len).sum::<usize>());
            assert!(len * 2 < before, "{len} instructions instead of {before}");
        }
    }

    #[test]
    fn calls_of_no_kind_and_all_kinds_of_neighbours_are_told_apart() {
        let with = |allow: &[&str], refuse: &[&str]| {
            decide(UNKNOWN, &[(ALLOWED, allow), (REFUSED, refuse)]).unwrap()
        };
        // Their numbers are 0, 1, 2 and 3.
        for (allow, refuse, expected) in [
            (&[][..], &[][..], [UNKNOWN; 5]),
            (&["read"], &[], [ALLOWED, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]),
            (&[], &["read", "write", "close"], [REFUSED, REFUSED, UNKNOWN, REFUSED, UNKNOWN]),
            (&["close", "read"], &["write"], [ALLOWED, REFUSED, UNKNOWN, ALLOWED, UNKNOWN]),
            (&["write", "open"], &["close"], [UNKNOWN, ALLOWED, ALLOWED, REFUSED, UNKNOWN]),
        ] {
            let filter = with(allow, refuse);
            let answers = [0, 1, 2, 3, 4].map(|number| answer(&filter, X86_64, number, [0; 6]));
            assert_eq!(answers, expected, "{allow:?} {refuse:?}");
            for number in [X32, u32::MAX] {
                assert_eq!(answer(&filter, X86_64, number, [0; 6]), UNKNOWN);
            }
            assert_eq!(answer(&filter, I386, 0, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
        }
    }

    #[test]
    fn a_profile_is_the_same_in_another_process() {
        let profile = Profile::workload().unwrap();
        let sent = serde_json::to_vec(profile).unwrap();
        assert_eq!(&serde_json::from_slice::<Profile>(&sent).unwrap(), profile);
        assert!(std::ptr::eq(profile, Profile::workload().unwrap()), "compiled once");
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
