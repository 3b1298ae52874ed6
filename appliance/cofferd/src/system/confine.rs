//! What a role does to itself before it does anything else: it becomes unreadable for others of its uid,
//! confines its view of the file system (Landlock), and gives up every system call it does not need (seccomp).
//!
//! The filters are data: `policy/seccomp/ROLE.json` at the root of the repository, embedded at build,
//! one comment per group of calls, everything else refused with EPERM. They are applied here and not
//! before execve, so that they can refuse execve.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, PathFdError, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};
use nix::errno::Errno;

/// Why a role could not be confined. It must not go on then.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// There is no policy of this name.
    #[error("no policy for the role {0}")]
    Unknown(String),
    /// prctl(2) refused.
    #[error("cannot change the process's attributes")]
    Attributes(#[source] Errno),
    /// Landlock refused.
    #[error("cannot confine the view of the file system")]
    Landlock(#[from] RulesetError),
    /// A directory that the role needs is not there.
    #[error("cannot open {0}")]
    Path(String, #[source] PathFdError),
    /// The embedded policy does not compile. A test holds that it does.
    #[error("cannot compile the system call filter")]
    Filter(#[source] seccompiler::Error),
    /// The kernel did not take the filter.
    #[error("cannot install the system call filter")]
    Install(#[source] seccompiler::Error),
}

/// One role's policy.
struct Policy {
    role: &'static str,
    /// `policy/seccomp/ROLE.json`.
    filter: &'static str,
    /// Directories and files it may read.
    reads: &'static [&'static str],
    /// Directories below which it may do everything but execute.
    writes: &'static [&'static str],
    /// What it never does with TCP. The others have no network at all, or need both.
    refuses: &'static [AccessNet],
}

macro_rules! filter {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../policy/seccomp/", $name, ".json"))
    };
}

const POLICIES: [Policy; 5] = [
    Policy {
        role: "vault",
        filter: filter!("vault"),
        reads: &[RUN],
        writes: &["/run/cofferdam/vault"],
        refuses: &[AccessNet::BindTcp, AccessNet::ConnectTcp],
    },
    Policy {
        role: "front",
        filter: filter!("front"),
        reads: &[RUN],
        writes: &[],
        // Everything it passes on goes over the services' sockets.
        refuses: &[AccessNet::ConnectTcp],
    },
    Policy {
        role: "publish",
        filter: filter!("publish"),
        // Names and certificates of the servers it talks to.
        reads: &[RUN, "/etc", "/usr/share/ca-certificates"],
        writes: &["/run/cofferdam/publish"],
        // Outbound only.
        refuses: &[AccessNet::BindTcp],
    },
    Policy {
        role: "evidence",
        filter: filter!("evidence"),
        reads: &[RUN],
        writes: &["/run/cofferdam/evidence", "/sys/kernel/config/tsm"],
        refuses: &[AccessNet::BindTcp, AccessNet::ConnectTcp],
    },
    Policy {
        role: "network",
        filter: filter!("network"),
        // Which interfaces there are.
        reads: &["/sys/class/net", "/sys/devices"],
        writes: &["/run/cofferdam/network"],
        refuses: &[AccessNet::BindTcp, AccessNet::ConnectTcp],
    },
];

const RUN: &str = crate::paths::RUN;
/// What the standard library opens by itself.
const DEVICES: [&str; 2] = ["/dev/null", "/dev/urandom"];
/// The Landlock interface that the image's kernel certainly has (Linux 6.12: signals and abstract sockets are
/// scoped). An older kernel is refused, not tolerated: the guarantee is the same everywhere.
const LANDLOCK: ABI = ABI::V6;

/// Confines the calling process for good as `role`. To be called first, while there is one thread.
///
/// # Errors
///
/// [`ConfineError`]; the process may then be confined in part and has to end.
pub fn enter(role: &str) -> Result<(), ConfineError> {
    let policy = policy(role)?;
    undumpable()?;
    // For whoever lists processes: after execve of /proc/self/exe it would be "exe".
    if let Ok(name) = std::ffi::CString::new(role) {
        nix::sys::prctl::set_name(&name).map_err(ConfineError::Attributes)?;
    }
    nix::sys::prctl::set_no_new_privs().map_err(ConfineError::Attributes)?;
    landlock(policy)?;
    filter(role)
}

/// Puts the calling process under the system call filter of `role` for good.
///
/// # Errors
///
/// There is no such role, or the kernel refuses.
pub fn filter(role: &str) -> Result<(), ConfineError> {
    seccompiler::apply_filter(&compile(policy(role)?)?).map_err(ConfineError::Install)
}

/// No core file, no ptrace, and /proc/PID/{mem,environ,fd} closed to processes of the same uid. execve resets it,
/// so that each role has to say it itself.
///
/// # Errors
///
/// prctl(2) refuses.
pub(crate) fn undumpable() -> Result<(), ConfineError> {
    nix::sys::prctl::set_dumpable(false).map_err(ConfineError::Attributes)
}

fn policy(role: &str) -> Result<&'static Policy, ConfineError> {
    POLICIES.iter().find(|policy| policy.role == role).ok_or_else(|| ConfineError::Unknown(role.to_owned()))
}

fn compile(policy: &Policy) -> Result<seccompiler::BpfProgram, ConfineError> {
    let arch = seccompiler::TargetArch::x86_64;
    let mut programs =
        seccompiler::compile_from_json(policy.filter.as_bytes(), arch).map_err(ConfineError::Filter)?;
    programs.remove(policy.role).ok_or_else(|| ConfineError::Unknown(policy.role.to_owned()))
}

fn landlock(policy: &Policy) -> Result<(), ConfineError> {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let mut ruleset =
        ruleset.handle_access(AccessFs::from_all(LANDLOCK))?.scope(Scope::from_all(LANDLOCK))?;
    for access in policy.refuses {
        ruleset = ruleset.handle_access(*access)?;
    }
    let mut ruleset = ruleset.create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write =
        AccessFs::from_all(LANDLOCK) & !AccessFs::Execute & !AccessFs::MakeBlock & !AccessFs::MakeChar;
    for path in policy.reads {
        ruleset = allow(ruleset, path, read)?;
    }
    for path in policy.writes {
        ruleset = allow(ruleset, path, write)?;
    }
    for path in DEVICES {
        ruleset = allow(ruleset, path, AccessFs::ReadFile | AccessFs::WriteFile)?;
    }
    ruleset.restrict_self()?;
    Ok(())
}

fn allow(
    ruleset: landlock::RulesetCreated,
    path: &str,
    access: landlock::BitFlags<AccessFs>,
) -> Result<landlock::RulesetCreated, ConfineError> {
    // The image decides which of the optional ones exist; what is not there needs no rule.
    if !Path::new(path).exists() {
        return Ok(ruleset);
    }
    let access = if Path::new(path).is_dir() { access } else { access & AccessFs::from_file(LANDLOCK) };
    let file = PathFd::new(path).map_err(|error| ConfineError::Path(path.to_owned(), error))?;
    Ok(ruleset.add_rule(PathBeneath::new(file, access))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_policy_compiles() {
        for policy in &POLICIES {
            let program = compile(policy).unwrap();
            // The kernel's limit (BPF_MAXINSNS).
            assert!(program.len() < 4096, "{}: {} instructions", policy.role, program.len());
        }
    }

    #[test]
    fn an_unknown_role_is_not_confined_by_accident() {
        assert!(matches!(enter("shim"), Err(ConfineError::Unknown(role)) if role == "shim"));
    }

    #[test]
    fn no_role_may_execute_fork_or_reach_into_another_process() {
        let never = [
            "execve",
            "execveat",
            "fork",
            "vfork",
            "clone3",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "pidfd_getfd",
            "bpf",
            "mount",
            "unshare",
            "setns",
            "io_uring_setup",
            "userfaultfd",
            "perf_event_open",
            "keyctl",
            "open_by_handle_at",
            "kexec_load",
            "finit_module",
            "setuid",
            "chroot",
            "reboot",
        ];
        for policy in &POLICIES {
            let parsed: serde_json::Value = serde_json::from_str(policy.filter).unwrap();
            let filter = &parsed[policy.role];
            assert_eq!(filter["mismatch_action"], serde_json::json!({"errno": 1}));
            let rules = filter["filter"].as_array().unwrap();
            let allowed: Vec<&str> = rules.iter().map(|rule| rule["syscall"].as_str().unwrap()).collect();
            for name in never {
                assert!(!allowed.contains(&name), "{} allows {name}", policy.role);
            }
            assert!(rules[0]["comment"].is_string(), "the first group has no comment");
        }
    }
}
