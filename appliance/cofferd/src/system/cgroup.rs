//! Control groups (v2): what each role and each service may use at most, and how all of it is ended at once.
//!
//! Layout below the mount: `cofferdam/ROLE` for the roles, `services/NAME` for the services. A service's
//! group is delegated to its shim (Documentation/admin-guide/cgroup-v2.rst, "Delegation"): the shim runs
//! in the leaf `services/NAME/shim`, because a group with processes of its own cannot hand controllers
//! to its children, and makes one more leaf for the container.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

/// Where PID 1 mounts the hierarchy.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";
/// Without these an exhausted role or workload would take the appliance with it.
const REQUIRED: [&str; 2] = ["memory", "pids"];
/// Fairness only: used when the kernel has it.
const OPTIONAL: [&str; 1] = ["cpu"];

/// A shim makes one level, a container with its own groups some more. A deeper tree is not removed,
/// which keeps that service down and nothing else.
const MAX_DEPTH: usize = 16;

/// Why a control group could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file of the hierarchy refused.
    #[error("{path}")]
    File {
        /// The file.
        path: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel lacks a controller that a limit needs.
    #[error("the kernel has no {0} controller")]
    NoController(&'static str),
}

/// The most that a group may use. `None` leaves the kernel's "max".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes, page cache and tmpfs pages included.
    pub(crate) memory: Option<u64>,
    /// Processes and threads.
    pub(crate) processes: Option<u32>,
}

/// One group of the hierarchy, made on construction.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
}

/// Where the group of a service is.
pub(crate) fn of_service(name: &str) -> PathBuf {
    Path::new(MOUNT).join("services").join(name)
}

/// Enables the controllers at the top and makes the parents of all groups.
///
/// # Errors
///
/// A controller is missing, or a file refuses.
pub(crate) fn prepare(mount: &Path, services: Limits) -> Result<(), CgroupError> {
    enable(mount)?;
    for (parent, limits) in [("cofferdam", Limits { memory: None, processes: None }), ("services", services)]
    {
        let group = Cgroup::create(mount.join(parent), limits)?;
        enable(&group.path)?;
    }
    Ok(())
}

fn enable(group: &Path) -> Result<(), CgroupError> {
    let listed = fs::read_to_string(group.join("cgroup.controllers")).map_err(at(group))?;
    let available = |name: &str| listed.split_whitespace().any(|word| word == name);
    if let Some(missing) = REQUIRED.into_iter().find(|name| !available(name)) {
        return Err(CgroupError::NoController(missing));
    }
    let wanted = REQUIRED.into_iter().chain(OPTIONAL).filter(|name| available(name));
    let wanted: Vec<String> = wanted.map(|name| format!("+{name}")).collect();
    write(&group.join("cgroup.subtree_control"), &wanted.join(" "))
}

impl Cgroup {
    /// Makes the group of a role.
    pub(crate) fn role(name: &str, limits: Limits) -> Result<Self, CgroupError> {
        Self::create(Path::new(MOUNT).join("cofferdam").join(name), limits)
    }

    /// Makes the group of a service, at the place that [`of_service`] gives it.
    pub(crate) fn service(path: &Path, limits: Limits) -> Result<Self, CgroupError> {
        Self::create(path.to_owned(), limits)
    }

    fn create(path: PathBuf, limits: Limits) -> Result<Self, CgroupError> {
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(&path)(error)),
            _ => {}
        }
        if let Some(bytes) = limits.memory {
            write(&path.join("memory.max"), &bytes.to_string())?;
        }
        if let Some(count) = limits.processes {
            write(&path.join("pids.max"), &count.to_string())?;
        }
        Ok(Self { path })
    }

    /// Moves a process in.
    pub(crate) fn adopt(&self, pid: Pid) -> Result<(), CgroupError> {
        write(&self.path.join("cgroup.procs"), &pid.to_string())
    }

    /// Hands the group to `owner` (host uid and gid) and makes its leaf `shim`, which also belongs to it.
    pub(crate) fn delegate(&self, owner: u32) -> Result<Self, CgroupError> {
        let leaf = Self::create(self.path.join("shim"), Limits { memory: None, processes: None })?;
        for group in [&self.path, &leaf.path] {
            for file in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
                let path = if file.is_empty() { group.clone() } else { group.join(file) };
                chown(&path, Some(owner), Some(owner)).map_err(at(&path))?;
            }
        }
        Ok(leaf)
    }

    /// Ends every process in the group and below, by SIGKILL, without a race (`cgroup.kill`, Linux 5.14).
    pub(crate) fn kill(&self) -> Result<(), CgroupError> {
        write(&self.path.join("cgroup.kill"), "1")
    }

    /// Removes the groups below and takes their controllers back, so that the group can hold a process of
    /// its own again. Only after [`Cgroup::populated`] says no.
    pub(crate) fn clear(&self) -> Result<(), CgroupError> {
        remove_children(&self.path, MAX_DEPTH)?;
        let control = self.path.join("cgroup.subtree_control");
        let enabled = fs::read_to_string(&control).map_err(at(&control))?;
        for name in enabled.split_whitespace() {
            write(&control, &format!("-{name}"))?;
        }
        Ok(())
    }

    /// Whether the group or one below holds a process. An unreadable group counts as populated.
    pub(crate) fn populated(&self) -> bool {
        match fs::read_to_string(self.path.join("cgroup.events")) {
            Ok(events) => !events.lines().any(|line| line == "populated 0"),
            Err(_) => true,
        }
    }
}

fn remove_children(group: &Path, depth: usize) -> Result<(), CgroupError> {
    for entry in fs::read_dir(group).map_err(at(group))? {
        let entry = entry.map_err(at(group))?;
        let path = entry.path();
        if entry.file_type().map_err(at(&path))?.is_dir() {
            if depth > 0 {
                remove_children(&path, depth.saturating_sub(1))?;
            }
            fs::remove_dir(&path).map_err(at(&path))?;
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    // No creation: these files exist or the kernel lacks the feature.
    let written = fs::OpenOptions::new().write(true).open(path);
    written.and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes())).map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.display().to_string();
    move |source| CgroupError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with the files that the kernel would put into a group.
    fn fake(path: &Path, controllers: &str) {
        fs::create_dir_all(path).unwrap();
        fs::write(path.join("cgroup.controllers"), controllers).unwrap();
        for file in ["cgroup.subtree_control", "memory.max", "pids.max", "cgroup.procs", "cgroup.kill"] {
            fs::write(path.join(file), "").unwrap();
        }
    }

    #[test]
    fn limits_are_written_and_the_parents_made() {
        let root = tempfile::tempdir().unwrap();
        for group in ["", "cofferdam", "services"] {
            fake(&root.path().join(group), "cpuset cpu io memory pids");
        }
        prepare(root.path(), Limits { memory: Some(1 << 30), processes: Some(99) }).unwrap();
        let read = |file: &str| fs::read_to_string(root.path().join(file)).unwrap();
        assert_eq!(read("services/memory.max"), "1073741824");
        assert_eq!(read("services/pids.max"), "99");
        assert_eq!(read("cofferdam/memory.max"), "");
        assert_eq!(read("cgroup.subtree_control"), "+memory +pids +cpu");
    }

    #[test]
    fn a_missing_controller_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        fake(root.path(), "cpu memory");
        let error = prepare(root.path(), Limits { memory: None, processes: None }).unwrap_err();
        assert!(matches!(error, CgroupError::NoController("pids")), "{error}");
    }

    #[test]
    fn a_group_counts_as_populated_until_it_says_otherwise() {
        let root = tempfile::tempdir().unwrap();
        let group = Cgroup { path: root.path().into() };
        assert!(group.populated());
        fs::write(root.path().join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        assert!(group.populated());
        fs::write(root.path().join("cgroup.events"), "populated 0\nfrozen 0\n").unwrap();
        assert!(!group.populated());
    }
}
