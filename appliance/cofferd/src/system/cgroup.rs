//! Control groups (v2): what each role and each service may use at most, and how all of it is ended at once.
//!
//! Layout below the mount: `cofferdam/ROLE` for the roles, `services/NAME-DIGEST` for the services with their images, of which
//! each has memory that no other can take. A service's group is delegated to its shim (Documentation/admin-guide/cgroup-v2.rst,
//! "Delegation"): the shim runs in the leaf `shim`, because a group with processes of its own cannot
//! hand controllers to its children, and makes two more leaves: `image` for the pull, to which the pages of the
//! unpacked image stay charged, and `workload` for the container. The limits of the service and of its shim are PID 1's.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Pid;

/// Where PID 1 mounts the hierarchy.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";
/// Where the groups of the roles are.
pub(crate) const ROLES: &str = "/sys/fs/cgroup/cofferdam";
/// Where the groups of all services are.
pub(crate) const SERVICES: &str = "/sys/fs/cgroup/services";
/// Without these an exhausted role or workload would take the appliance with it, and `cpus` would be a promise.
const REQUIRED: [&str; 3] = ["memory", "pids", "cpu"];
/// Of processor time that is contended, the roles get ten parts to the services' one (the kernel's default is 100): an
/// operator is answered while every service spins.
const ROLES_WEIGHT: u32 = 1000;
/// In which processor time is counted, in microseconds: the kernel's default.
const CPU_PERIOD: u64 = 100_000;
/// What a shim may use of its service's memory before the kernel slows it down, in bytes. Ordinary ones use some 8 MiB;
/// one that leases many large secrets and serves hundreds of connections stays below this. It is no hard bound, because nothing
/// ends a shim for its memory: at one it would stand still in a page fault for ever. The hard one is the whole service's, and
/// it is the workload that is ended there.
const SHIM_MEMORY: u64 = 64 << 20;
/// Threads and processes of a shim: one thread, the runtime's few for files, and a pull on its way into its own group.
const SHIM_PROCESSES: u32 = 32;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Limits {
    /// Bytes, page cache and tmpfs pages included.
    pub(crate) memory: Option<u64>,
    /// Processes and threads.
    pub(crate) processes: Option<u32>,
    /// Thousandths of a processor.
    pub(crate) cpus: Option<u32>,
}

/// One group of the hierarchy, made on construction.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
}

/// Where the group of a service with one image is.
pub(crate) fn of_service(instance: &str) -> PathBuf {
    Path::new(SERVICES).join(instance)
}

/// Enables the controllers at the top and makes the parents of all groups: the roles', to which `roles` bytes are left
/// whatever the services do, and the services'.
///
/// # Errors
///
/// A controller is missing, or a file refuses.
pub(crate) fn prepare(mount: &Path, roles: u64, services: Limits) -> Result<(), CgroupError> {
    enable(mount)?;
    let cofferdam = Cgroup::create(mount.join("cofferdam"), Limits::default())?;
    write(&cofferdam.path.join("memory.min"), &roles.to_string())?;
    write(&cofferdam.path.join("cpu.weight"), &ROLES_WEIGHT.to_string())?;
    for group in [cofferdam, Cgroup::create(mount.join("services"), services)?] {
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
    let wanted = REQUIRED.map(|name| format!("+{name}"));
    write(&group.join("cgroup.subtree_control"), &wanted.join(" "))
}

impl Cgroup {
    /// Makes the group of a role.
    pub(crate) fn role(name: &str, limits: Limits) -> Result<Self, CgroupError> {
        Self::create(Path::new(ROLES).join(name), limits)
    }

    /// The group above all services.
    pub(crate) fn services() -> Self {
        Self { path: SERVICES.into() }
    }

    /// Makes the group of a service, at the place that [`of_service`] gives it.
    pub(crate) fn service(path: &Path, limits: Limits) -> Result<Self, CgroupError> {
        Self::create(path.to_owned(), limits)
    }

    fn create(path: PathBuf, limits: Limits) -> Result<Self, CgroupError> {
        let group = Self { path };
        group.make()?;
        group.bound(limits)?;
        Ok(group)
    }

    fn make(&self) -> Result<(), CgroupError> {
        match fs::create_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at(&self.path)(error)),
            _ => Ok(()),
        }
    }

    fn bound(&self, limits: Limits) -> Result<(), CgroupError> {
        if let Some(bytes) = limits.memory {
            write(&self.path.join("memory.max"), &bytes.to_string())?;
        }
        if let Some(count) = limits.processes {
            write(&self.path.join("pids.max"), &count.to_string())?;
        }
        if let Some(thousandths) = limits.cpus {
            let quota = u64::from(thousandths) * CPU_PERIOD / 1000;
            write(&self.path.join("cpu.max"), &format!("{quota} {CPU_PERIOD}"))?;
        }
        Ok(())
    }

    /// Moves a process in.
    pub(crate) fn adopt(&self, pid: Pid) -> Result<(), CgroupError> {
        write(&self.path.join("cgroup.procs"), &pid.to_string())
    }

    /// Hands the group to `owner` (host uid and gid), moves the shim into its leaf `shim`, and bounds that leaf. Its limits
    /// stay PID 1's: only what moves processes belongs to the owner.
    pub(crate) fn delegate(&self, owner: u32, shim: Pid) -> Result<(), CgroupError> {
        let leaf = Self { path: self.path.join("shim") };
        leaf.make()?;
        for group in [&self.path, &leaf.path] {
            for file in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
                let path = if file.is_empty() { group.clone() } else { group.join(file) };
                chown(&path, Some(owner), Some(owner)).map_err(at(&path))?;
            }
        }
        leaf.adopt(shim)?;
        // Only a group without processes of its own has controllers to hand out.
        enable(&self.path)?;
        write(&leaf.path.join("memory.high"), &SHIM_MEMORY.to_string())?;
        leaf.bound(Limits { processes: Some(SHIM_PROCESSES), ..Limits::default() })
    }

    /// Ends every process in the group and below, by SIGKILL, without a race (`cgroup.kill`, Linux 5.14).
    pub(crate) fn kill(&self) -> Result<(), CgroupError> {
        write(&self.path.join("cgroup.kill"), "1")
    }

    /// Lets every process in the group and below stand still on its way out of the kernel, or go on (`cgroup.freeze`,
    /// Linux 5.2).
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        write(&self.path.join("cgroup.freeze"), if frozen { "1" } else { "0" })
    }

    /// Bytes of memory that the group and those below use. Zero when it cannot be told.
    pub(crate) fn memory(&self) -> u64 {
        let text = fs::read_to_string(self.path.join("memory.current")).unwrap_or_default();
        text.trim_end().parse().unwrap_or_default()
    }

    /// Processor time that the group and those below have spent in the kernel. Zero when it cannot be told.
    pub(crate) fn kernel_time(&self) -> Duration {
        let text = fs::read_to_string(self.path.join("cpu.stat")).unwrap_or_default();
        let micros = text.lines().find_map(|line| line.strip_prefix("system_usec ")?.parse().ok());
        Duration::from_micros(micros.unwrap_or_default())
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
        populated(&self.path)
    }
}

/// The same of the group at this place.
pub(crate) fn populated(group: &Path) -> bool {
    match fs::read_to_string(group.join("cgroup.events")) {
        Ok(events) => !events.lines().any(|line| line == "populated 0"),
        Err(_) => true,
    }
}

/// Removes the group at this place, and those below, once no process is left in them.
pub(crate) fn remove(group: &Path) -> Result<(), CgroupError> {
    if !group.exists() {
        return Ok(());
    }
    remove_children(group, MAX_DEPTH)?;
    fs::remove_dir(group).map_err(at(group))
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
        for file in [
            "cgroup.subtree_control",
            "cgroup.procs",
            "cgroup.threads",
            "cgroup.kill",
            "memory.max",
            "memory.high",
            "memory.min",
            "pids.max",
            "cpu.max",
            "cpu.weight",
        ] {
            fs::write(path.join(file), "").unwrap();
        }
    }

    #[test]
    fn limits_are_written_and_the_parents_made() {
        let root = tempfile::tempdir().unwrap();
        for group in ["", "cofferdam", "services"] {
            fake(&root.path().join(group), "cpuset cpu io memory pids");
        }
        let services = Limits { memory: Some(1 << 30), ..Limits::default() };
        prepare(root.path(), 640 << 20, services).unwrap();
        let read = |file: &str| fs::read_to_string(root.path().join(file)).unwrap();
        assert_eq!(read("services/memory.max"), "1073741824");
        assert_eq!(read("services/pids.max"), "");
        assert_eq!(read("services/memory.min"), "");
        assert_eq!(read("cofferdam/memory.max"), "");
        assert_eq!(read("cofferdam/memory.min"), "671088640");
        assert_eq!(read("cofferdam/cpu.weight"), "1000");
        assert_eq!(read("cgroup.subtree_control"), "+memory +pids +cpu");
    }

    #[test]
    fn a_service_is_bounded_and_its_shim_on_its_own() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("web");
        for group in ["", "shim"] {
            fake(&path.join(group), "cpu memory pids");
        }
        let limits = Limits { memory: Some(512 << 20), processes: Some(100), cpus: Some(1500) };
        let group = Cgroup::service(&path, limits).unwrap();
        group.delegate(nix::unistd::getuid().as_raw(), Pid::from_raw(7)).unwrap();
        let read = |file: &str| fs::read_to_string(path.join(file)).unwrap();
        assert_eq!((read("memory.max"), read("pids.max")), ("536870912".into(), "100".into()));
        assert_eq!(read("cpu.max"), "150000 100000");
        assert_eq!((read("shim/memory.high"), read("shim/pids.max")), ("67108864".into(), "32".into()));
        assert_eq!(read("shim/memory.max"), "");
        assert_eq!((read("cgroup.procs"), read("shim/cgroup.procs")), (String::new(), "7".into()));
        assert_eq!(read("cgroup.subtree_control"), "+memory +pids +cpu");
    }

    #[test]
    fn a_missing_controller_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        for (listed, missing) in [("cpu memory", "pids"), ("memory pids", "cpu"), ("cpu pids", "memory")] {
            fake(root.path(), listed);
            let error = prepare(root.path(), 0, Limits::default()).unwrap_err();
            assert!(matches!(error, CgroupError::NoController(name) if name == missing), "{error}");
        }
    }

    #[test]
    fn the_time_in_the_kernel_is_read_and_zero_when_it_cannot_be() {
        let root = tempfile::tempdir().unwrap();
        let group = Cgroup { path: root.path().into() };
        assert_eq!(group.kernel_time(), Duration::ZERO);
        fs::write(root.path().join("cpu.stat"), "usage_usec 9000000\nuser_usec 5\nsystem_usec 2500000\n")
            .unwrap();
        assert_eq!(group.kernel_time(), Duration::from_millis(2500));
        assert_eq!(group.memory(), 0);
        fs::write(root.path().join("memory.current"), "4096\n").unwrap();
        assert_eq!(group.memory(), 4096);
        fs::write(root.path().join("cgroup.freeze"), "").unwrap();
        group.freeze(true).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("cgroup.freeze")).unwrap(), "1");
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
