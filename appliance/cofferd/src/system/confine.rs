//! What a role does to itself before it does anything else: it becomes unreadable for others of its uid,
//! confines its view of the file system (Landlock), and gives up every system call it does not need (seccomp).
//!
//! What a role may do comes in as a [`Policy`]. Filters are applied here and not before execve, so that they can refuse execve.

use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};
use cofferdam_workload::seccomp::{Profile, SeccompError};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, PathFdError,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};
use nix::errno::Errno;

/// Why a role could not be confined. It must not go on then.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// prctl(2) refused.
    #[error("cannot change the process's attributes")]
    Attributes(#[source] Errno),
    /// Capabilities could not be given up.
    #[error("cannot drop capabilities")]
    Capabilities(#[source] caps::errors::CapsError),
    /// Landlock refused.
    #[error("cannot confine the view of the file system")]
    Landlock(#[from] RulesetError),
    /// A directory that the role needs is not there.
    #[error("cannot open {0}")]
    Path(String, #[source] PathFdError),
    /// The embedded policy does not compile. A test holds that it does.
    #[error("cannot compile the system call filter")]
    Filter(#[source] seccompiler::Error),
    /// The embedded policy is another role's. A test holds that it is not.
    #[error("the system call filter is not that of {0}")]
    OtherFilter(String),
    /// The kernel did not take the filter.
    #[error("cannot install the system call filter")]
    Install(#[source] seccompiler::Error),
    /// The same for a filter in the form of workloads.
    #[error(transparent)]
    Profile(#[from] SeccompError),
}

/// What a role may do.
#[derive(Debug)]
pub struct Policy {
    /// The system calls.
    pub(crate) filter: Filter,
    /// The files, beside what the role's own directories are. `None` for a role that mounts, which Landlock refuses.
    pub(crate) view: Option<View>,
}

/// The text of a file in `policy/seccomp`, embedded at build.
#[derive(Debug)]
pub(crate) enum Filter {
    /// For one role: what is not named is refused with EPERM, execve too.
    Own(&'static str),
    /// For a role that executes others, which then are under it too: unknown calls do not exist (ENOSYS).
    Profile(&'static str),
}

/// What a role sees of the file system, and what it never does with TCP.
#[derive(Debug)]
pub(crate) struct View {
    /// Directories and files it may read.
    pub(crate) reads: &'static [&'static str],
    /// Directories below which it may do everything but execute.
    pub(crate) writes: &'static [&'static str],
    /// What it never does with TCP. The others have no network at all, or need both.
    pub(crate) refuses: &'static [AccessNet],
}

/// What the standard library opens by itself.
const DEVICES: [&str; 2] = ["/dev/null", "/dev/urandom"];
/// The Landlock interface that the image's kernel certainly has (Linux 6.12: signals and abstract sockets are
/// scoped). An older kernel is refused, not tolerated: the guarantee is the same everywhere.
const LANDLOCK: ABI = ABI::V6;

/// Confines the calling process for good as the role `name`, which also writes below the directories `writes` and, when
/// `sockets` says so, makes sockets there. To be called first, while there is one thread.
///
/// # Errors
///
/// [`ConfineError`]; the process may then be confined in part and has to end.
pub(crate) fn enter(
    name: &str,
    policy: &Policy,
    writes: &[&Path],
    sockets: bool,
) -> Result<(), ConfineError> {
    undumpable()?;
    // For whoever lists processes: after execve of /proc/self/exe it would be "exe".
    if let Ok(name) = std::ffi::CString::new(name) {
        nix::sys::prctl::set_name(&name).map_err(ConfineError::Attributes)?;
    }
    nix::sys::prctl::set_no_new_privs().map_err(ConfineError::Attributes)?;
    if let Some(view) = &policy.view {
        view.restrict(writes, sockets)?;
    }
    policy.filter_calls(name)
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

/// Gives up every capability but these, in the user namespace that the caller is in, here and after any execve.
///
/// # Errors
///
/// [`ConfineError::Capabilities`].
pub(crate) fn keep_capabilities(kept: &[Capability]) -> Result<(), ConfineError> {
    let kept: CapsHashSet = kept.iter().copied().collect();
    let drop = || -> Result<(), caps::errors::CapsError> {
        for capability in caps::runtime::thread_all_supported().difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
        for set in [CapSet::Ambient, CapSet::Inheritable] {
            caps::clear(None, set)?;
        }
        for set in [CapSet::Effective, CapSet::Permitted] {
            caps::set(None, set, &kept)?;
        }
        Ok(())
    };
    drop().map_err(ConfineError::Capabilities)
}

impl Policy {
    /// Puts the calling process under the system call filter of the role `name` for good. Needs `no_new_privs`.
    ///
    /// # Errors
    ///
    /// The filter does not compile, or the kernel refuses it.
    pub fn filter_calls(&self, name: &str) -> Result<(), ConfineError> {
        match self.filter {
            Filter::Own(text) => {
                seccompiler::apply_filter(&compile(name, text)?).map_err(ConfineError::Install)
            }
            Filter::Profile(text) => Ok(Profile::parse(text)?.apply()?),
        }
    }
}

fn compile(name: &str, text: &str) -> Result<seccompiler::BpfProgram, ConfineError> {
    let arch = seccompiler::TargetArch::x86_64;
    let mut programs = seccompiler::compile_from_json(text.as_bytes(), arch).map_err(ConfineError::Filter)?;
    programs.remove(name).ok_or_else(|| ConfineError::OtherFilter(name.to_owned()))
}

impl View {
    /// The one set-up of Landlock, the same for every role but for what its table says.
    fn restrict(&self, writes: &[&Path], sockets: bool) -> Result<(), ConfineError> {
        let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        let mut ruleset =
            ruleset.handle_access(AccessFs::from_all(LANDLOCK))?.scope(Scope::from_all(LANDLOCK))?;
        for access in self.refuses {
            ruleset = ruleset.handle_access(*access)?;
        }
        let mut ruleset = ruleset.create()?;
        for path in self.reads {
            ruleset = allow(ruleset, Path::new(path), AccessFs::ReadFile | AccessFs::ReadDir)?;
        }
        for path in self.writes.iter().map(Path::new).chain(writes.iter().copied()) {
            ruleset = allow(ruleset, path, written(sockets))?;
        }
        for path in DEVICES {
            ruleset = allow(ruleset, Path::new(path), AccessFs::ReadFile | AccessFs::WriteFile)?;
        }
        ruleset.restrict_self()?;
        Ok(())
    }
}

/// Everything but executing and making devices; sockets only for those who serve one.
fn written(sockets: bool) -> BitFlags<AccessFs> {
    let all = AccessFs::from_all(LANDLOCK) & !AccessFs::Execute & !AccessFs::MakeBlock & !AccessFs::MakeChar;
    if sockets { all } else { all & !AccessFs::MakeSock }
}

fn allow(
    ruleset: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, ConfineError> {
    // The image decides which of the optional ones exist; what is not there needs no rule.
    if !path.exists() {
        return Ok(ruleset);
    }
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(LANDLOCK) };
    let file = PathFd::new(path).map_err(|error| ConfineError::Path(path.display().to_string(), error))?;
    Ok(ruleset.add_rule(PathBeneath::new(file, access))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::ROLES;

    fn own_filters() -> impl Iterator<Item = (&'static str, &'static str)> {
        ROLES.into_iter().filter_map(|role| match role.policy().filter {
            Filter::Own(text) => Some((role.name(), text)),
            Filter::Profile(_) => None,
        })
    }

    #[test]
    fn every_embedded_filter_compiles_and_is_its_roles() {
        for (name, text) in own_filters() {
            // The kernel's limit (BPF_MAXINSNS).
            let program = compile(name, text).unwrap();
            assert!(program.len() < 4096, "{name}: {} instructions", program.len());
            assert!(matches!(compile("another", text), Err(ConfineError::OtherFilter(_))));
        }
        assert_eq!(own_filters().count(), 10);
        for role in ROLES {
            if let Filter::Profile(text) = role.policy().filter {
                Profile::parse(text).unwrap();
            }
        }
    }

    #[test]
    fn every_view_is_set_up_the_same_and_only_who_serves_a_socket_makes_one() {
        assert!(written(true).contains(AccessFs::MakeSock));
        for sockets in [true, false] {
            let access = written(sockets);
            assert!(!access.intersects(AccessFs::Execute | AccessFs::MakeBlock | AccessFs::MakeChar));
            assert_eq!(access.contains(AccessFs::MakeSock), sockets);
        }
        // Landlock refuses to mount, so whoever goes without it has to: the shim and what it makes.
        let without = ROLES.into_iter().filter(|role| role.policy().view.is_none());
        assert_eq!(without.map(|role| role.name()).collect::<Vec<_>>(), ["shim", "container"]);
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
        for (role, text) in own_filters() {
            let parsed: serde_json::Value = serde_json::from_str(text).unwrap();
            let filter = &parsed[role];
            assert_eq!(filter["mismatch_action"], serde_json::json!({"errno": 1}));
            let rules = filter["filter"].as_array().unwrap();
            let allowed: Vec<&str> = rules.iter().map(|rule| rule["syscall"].as_str().unwrap()).collect();
            for name in never {
                assert!(!allowed.contains(&name), "{role} allows {name}");
            }
            assert!(rules[0]["comment"].is_string(), "the first group has no comment");
        }
    }
}
