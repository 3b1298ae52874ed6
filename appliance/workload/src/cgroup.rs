//! The leaf control group of a service's container (cgroup-v2, "Delegation").
//!
//! PID 1 hands the shim a group of its own, seen at the mount's root, with the shim in the leaf `shim`. The container
//! gets the leaf `workload`: its processes can be counted, bounded and ended together, and an exhausted
//! workload is ended instead of its shim.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// Enough for any server, too few for a fork bomb to hurt the neighbours.
const MAX_PROCESSES: u64 = 4096;
/// The part, in percent, of what all services may use that one workload may take. It meets this limit before the services meet
/// theirs, so that it is the one that is ended, and neither its shim nor a neighbour.
const MEMORY_PERCENT: u64 = 90;

/// The container's group.
#[derive(Debug)]
pub struct Leaf {
    path: PathBuf,
    directory: File,
}

impl Leaf {
    /// Makes the leaf below `mount` and ends whatever an earlier container left in it. `total` is what all
    /// services may use together, in bytes.
    ///
    /// # Errors
    ///
    /// The hierarchy is not there or was not delegated.
    pub fn create(mount: &Path, total: u64) -> io::Result<Self> {
        write(&mount.join("cgroup.subtree_control"), "+memory +pids")?;
        let path = mount.join("workload");
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        write(&path.join("pids.max"), &MAX_PROCESSES.to_string())?;
        write(&path.join("memory.max"), &(total / 100 * MEMORY_PERCENT).to_string())?;
        let leaf = Self { directory: File::open(&path)?, path };
        leaf.kill()?;
        Ok(leaf)
    }

    /// Ends every process in the group.
    ///
    /// # Errors
    ///
    /// The kernel is older than 5.14.
    pub fn kill(&self) -> io::Result<()> {
        write(&self.path.join("cgroup.kill"), "1")
    }

    /// The directory, for a child that starts in the group.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_meets_its_limit_before_the_services_meet_theirs() {
        let mount = tempfile::tempdir().unwrap();
        let leaf = mount.path().join("workload");
        fs::create_dir(&leaf).unwrap();
        let files =
            ["cgroup.subtree_control", "workload/pids.max", "workload/memory.max", "workload/cgroup.kill"];
        for file in files {
            fs::write(mount.path().join(file), "").unwrap();
        }
        let total = 1 << 30;
        Leaf::create(mount.path(), total).unwrap();
        let limit: u64 = fs::read_to_string(leaf.join("memory.max")).unwrap().parse().unwrap();
        assert!(limit < total && limit > total / 2, "{limit}");
        assert_eq!(fs::read_to_string(leaf.join("cgroup.kill")).unwrap(), "1");
    }
}
