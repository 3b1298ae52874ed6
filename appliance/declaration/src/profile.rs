//! A service's own profile: which of the system calls and files that every service may use this one uses.
//!
//! It only narrows. The calls are names of those that the profile of all services allows (`policy/seccomp/workload.json`), whose
//! rules about arguments stay in force, and the paths are looked up inside the service's own root. So there is no text that would give a
//! service more than it has without one.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use cofferdam_protocol::shorten;
use serde::{Deserialize, Serialize};

use crate::diagnostics::{Collector, Place};
use crate::fields::{self, Fields};
use crate::keys::{self, nearest};
use crate::read::{bounded, collect, optional};
use crate::read_service::{absolute, below};
use crate::yaml::Node;

/// More than there are system calls.
const MAX_SYSTEM_CALLS: usize = 512;
/// Paths in each of the lists: directories say more than this many files would.
pub const MAX_PROFILE_PATHS: usize = 256;

/// What a service confines itself to. Neither part is narrowed when it is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Profile {
    /// Names of system calls that a service may make; every other one is refused.
    pub system_calls: Option<BTreeSet<String>>,
    /// Files that it may use; every other one is closed.
    pub paths: Option<Paths>,
}

/// Absolute paths by what may be done there. A directory stands for all that lies below it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Paths {
    /// Reading files and listing directories.
    pub read: Vec<String>,
    /// Writing, making, renaming and removing files and directories.
    pub write: Vec<String>,
    /// Executing programs, which are read for that.
    pub execute: Vec<String>,
}

/// What a service may call at most, and what is refused to every service, by name.
struct Known {
    allowed: BTreeSet<String>,
    refused: BTreeSet<String>,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let text = include_str!("../../../policy/seccomp/workload.json");
    // A text that does not parse, which a test excludes, allows nothing.
    let data: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let groups = || data.get("groups").and_then(serde_json::Value::as_array).into_iter().flatten();
    let names = |list: &str| {
        let lists = groups().filter_map(|group| group.get(list)?.as_array());
        lists.flatten().filter_map(serde_json::Value::as_str).map(str::to_owned).collect()
    };
    Known { allowed: names("allow"), refused: names("refuse") }
});

/// The system calls that a service may make unless its profile says less.
pub fn known_system_calls() -> &'static BTreeSet<String> {
    &KNOWN.allowed
}

pub(crate) fn read(node: &Node, errors: &mut Collector<'_>) -> Option<Profile> {
    let fields = Fields::open(node, "`profile`", keys::PROFILE, &[], errors)?;
    let system_calls = fields.get("system_calls").map(|node| system_calls(node, errors));
    let paths = fields.get("paths").map(|node| paths(node, errors));
    Some(Profile { system_calls: optional(system_calls)?, paths: optional(paths)? })
}

fn system_calls(node: &Node, errors: &mut Collector<'_>) -> Option<BTreeSet<String>> {
    let items = fields::list(node, "`system_calls`", errors)?;
    bounded(node, items.len(), MAX_SYSTEM_CALLS, "system calls", errors)?;
    let mut names = BTreeSet::new();
    for item in items {
        let name = fields::text(item, "a system call", errors);
        let name = name.and_then(|name| system_call(name, item.place, errors));
        if let Some(name) = name
            && !names.insert(name)
        {
            errors.error(item.place, "this system call is given twice");
        }
    }
    Some(names)
}

fn system_call(name: String, place: Place, errors: &mut Collector<'_>) -> Option<String> {
    if KNOWN.allowed.contains(&name) {
        return Some(name);
    }
    let shown = shorten(&name, 64);
    if KNOWN.refused.contains(&name) {
        let message = format!("`{shown}` is refused to every service, and a profile only narrows");
        errors.hinted(place, message, "remove it");
        return None;
    }
    let message = format!("`{shown}` is not a system call that a service may make");
    match nearest(&name, KNOWN.allowed.iter().map(String::as_str)) {
        Some(near) => errors.hinted(place, message, format!("did you mean `{near}`?")),
        None => errors.hinted(place, message, "they are in policy/seccomp/workload.json"),
    }
    None
}

fn paths(node: &Node, errors: &mut Collector<'_>) -> Option<Paths> {
    let fields = Fields::open(node, "`paths`", keys::PROFILE_PATHS, &[], errors)?;
    let mut list = |key: &str| fields.get(key).map_or(Some(Vec::new()), |node| path_list(node, errors));
    let (read, write, execute) = (list("read"), list("write"), list("execute"));
    let paths = Paths { read: read?, write: write?, execute: execute? };
    if paths.execute.is_empty() {
        let message = "nothing may be executed, the service's own program neither";
        errors.hinted(node.place, message, "name its program and what loads it under `execute`");
        return None;
    }
    Some(paths)
}

fn path_list(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<String>> {
    let items = fields::list(node, "a list of paths", errors)?;
    bounded(node, items.len(), MAX_PROFILE_PATHS, "paths", errors)?;
    let mut seen = BTreeSet::new();
    collect(items.iter().map(|item| {
        let path = absolute(fields::text(item, "a path", errors)?, item.place, "a path", errors)?;
        if !seen.insert(path.clone()) {
            errors.error(item.place, "this path is given twice");
            return None;
        }
        Some(path)
    }))
}

impl Paths {
    /// Whether something may be done at this path or below it.
    pub(crate) fn reach(&self, target: &str) -> bool {
        let mut all = self.read.iter().chain(&self.write).chain(&self.execute);
        all.any(|path| path == "/" || below(target, path) || below(path, target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_profile_can_name_is_what_services_may_call() {
        assert!(KNOWN.allowed.len() > 250 && KNOWN.allowed.contains("openat"));
        for name in ["mount", "bpf", "ptrace", "io_uring_setup", "unshare"] {
            assert!(KNOWN.refused.contains(name) && !KNOWN.allowed.contains(name), "{name}");
        }
        // Allowed with rules about its arguments.
        assert!(KNOWN.allowed.contains("socket") && !KNOWN.refused.contains("socket"));
        assert!(!KNOWN.allowed.contains("clone3") && !KNOWN.refused.contains("clone3"));
    }
}
