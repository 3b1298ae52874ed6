//! The control group of a service as its shim sees it (cgroup-v2, "Delegation").
//!
//! PID 1 hands the shim a group of its own, seen at the mount's root, with the shim in the leaf `shim`. The shim makes two
//! more leaves: `image` for the pull, to which the pages of the unpacked image stay charged, and `workload`
//! for the container. So an exhausted pull or workload is ended instead of the shim, and ended whole; what each uses can
//! be read, and why it was ended.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use cofferdam_protocol::status::{Killed, Usage};

/// The pull has one thread, and its runtime a few for names and files.
const PULL_PROCESSES: u32 = 32;
/// A container's first process, beside the workload's.
const INIT: u32 = 1;
/// With less than this no program starts, in bytes.
const LEAST_WORKLOAD: u64 = 4 << 20;

/// Why there is no group for a workload.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The hierarchy is not there or was not delegated.
    #[error("cannot make the workload's control group")]
    File(#[from] io::Error),
    /// The image leaves nothing.
    #[error("the image takes {} of the service's {} MiB of memory: raise `mem_limit`", taken.div_ceil(1 << 20), memory >> 20)]
    Full {
        /// What is charged to the service already, in bytes.
        taken: u64,
        /// What the service may use, in bytes.
        memory: u64,
    },
}

/// The service's own group.
#[derive(Debug, Clone)]
pub struct Group {
    mount: PathBuf,
    memory: u64,
    processes: u32,
    cpus: Option<u32>,
    on_disk: bool,
}

/// One of its leaves.
#[derive(Debug)]
pub struct Leaf {
    path: PathBuf,
    directory: File,
}

/// What the kernel has counted (cgroup-v2, `memory.events`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfMemory {
    /// Processes of the leaf that were ended because there was no memory.
    ended: u64,
    /// How often the service's own limit left none.
    own: u64,
    /// What that is, in bytes.
    limit: u64,
}

impl Group {
    /// The group at `mount`, whose image and workload may use `memory` bytes together; its workload may have `processes`, and
    /// has `cpus` thousandths of a processor.
    pub fn new(mount: &Path, memory: u64, processes: u32, cpus: Option<u32>) -> Self {
        Self { mount: mount.to_owned(), memory, processes, cpus, on_disk: false }
    }

    /// The same where the image lies on a disk: it takes nothing of the memory that the kernel could not take back.
    #[must_use]
    pub fn with_image_on_disk(self, on_disk: bool) -> Self {
        Self { on_disk, ..self }
    }

    /// The leaf in which the image is pulled.
    ///
    /// # Errors
    ///
    /// The hierarchy is not there or was not delegated.
    pub fn image(&self) -> io::Result<Leaf> {
        Leaf::create(self.mount.join("image"), self.memory, PULL_PROCESSES)
    }

    /// The leaf of the container, with what the image leaves of the memory. Whatever an earlier container left in it is ended.
    ///
    /// # Errors
    ///
    /// [`GroupError`].
    pub fn workload(&self) -> Result<Leaf, GroupError> {
        let taken = if self.on_disk { 0 } else { self.used()? };
        let left = self.memory.saturating_sub(taken);
        if left < LEAST_WORKLOAD {
            return Err(GroupError::Full { taken, memory: self.memory });
        }
        let processes = self.processes.saturating_add(INIT);
        Ok(Leaf::create(self.mount.join("workload"), left, processes)?)
    }

    /// What the service uses of what it may.
    ///
    /// # Errors
    ///
    /// The hierarchy is not there.
    pub fn usage(&self) -> io::Result<Usage> {
        let cpu = read(&self.mount.join("cpu.stat"))?;
        let microseconds = entry(&cpu, "usage_usec").unwrap_or_default();
        // Without a container there is no leaf, and nothing runs in it.
        let processes = number(&self.mount.join("workload/pids.current")).unwrap_or_default();
        Ok(Usage {
            memory: self.used()?,
            memory_limit: self.memory,
            processes: processes.saturating_sub(INIT.into()),
            processes_limit: self.processes.into(),
            cpu_ms: microseconds / 1000,
            cpus_limit: self.cpus,
        })
    }

    /// What the kernel has ended in a leaf for want of memory so far.
    pub fn out_of_memory(&self, leaf: &Leaf) -> OutOfMemory {
        // An unreadable group has ended none.
        let events = |group: &Path, key: &str| {
            let text = read(&group.join("memory.events")).ok();
            text.and_then(|events| entry(&events, key)).unwrap_or_default()
        };
        // The first counts processes, whoever was short of memory; the second how often this group or one below was.
        OutOfMemory {
            ended: events(&leaf.path, "oom_kill"),
            own: events(&self.mount, "oom"),
            limit: self.memory,
        }
    }

    /// What is charged to the service and not to its shim, in bytes.
    fn used(&self) -> io::Result<u64> {
        let all = number(&self.mount.join("memory.current"))?;
        Ok(all.saturating_sub(number(&self.mount.join("shim/memory.current"))?))
    }
}

impl Leaf {
    fn create(path: PathBuf, memory: u64, processes: u32) -> io::Result<Self> {
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        write(&path.join("pids.max"), &processes.to_string())?;
        write(&path.join("memory.max"), &memory.to_string())?;
        // Half of a database is worse than none: whoever runs out of memory is ended whole.
        write(&path.join("memory.oom.group"), "1")?;
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

impl OutOfMemory {
    /// Why somebody in the leaf was ended since `before`, when it was for this.
    #[must_use]
    pub fn since(&self, before: &Self) -> Option<Killed> {
        let own = self.own > before.own;
        let killed = if own { Killed::OutOfMemory { limit: self.limit } } else { Killed::MachineOutOfMemory };
        (self.ended > before.ended).then_some(killed)
    }
}

/// Moves the calling process into the leaf for the image, which [`Group::image`] has made.
///
/// # Errors
///
/// The hierarchy is not there or was not delegated.
pub fn enter_image(mount: &Path) -> io::Result<()> {
    write(&mount.join("image/cgroup.procs"), "0")
}

/// The number after `key` in a file of lines `key number`.
fn entry(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

fn number(path: &Path) -> io::Result<u64> {
    read(path)?.trim().parse().map_err(|_| named(path)(io::ErrorKind::InvalidData.into()))
}

fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map_err(named(path))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(named(path))
}

fn named(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A delegated group of which `image` and `shim` bytes are used.
    fn delegated(image: u64, shim: u64) -> tempfile::TempDir {
        let mount = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| fs::write(mount.path().join(file), text).unwrap();
        put("memory.current", &format!("{}\n", image + shim));
        put("cpu.stat", "usage_usec 1500999\nuser_usec 1\n");
        for leaf in ["shim", "image", "workload"] {
            fs::create_dir(mount.path().join(leaf)).unwrap();
            for file in ["pids.max", "memory.max", "memory.oom.group", "cgroup.kill", "cgroup.procs"] {
                put(&format!("{leaf}/{file}"), "");
            }
        }
        put("shim/memory.current", &format!("{shim}\n"));
        put("workload/pids.current", "8\n");
        mount
    }

    #[test]
    fn a_workload_gets_what_the_image_leaves_and_is_ended_whole() {
        let mount = delegated(100 * MIB, 6 * MIB);
        let group = Group::new(mount.path(), 512 * MIB, 100, Some(500));
        group.workload().unwrap();
        group.image().unwrap();
        let read = |file: &str| fs::read_to_string(mount.path().join(file)).unwrap();
        assert_eq!(read("workload/memory.max"), (412 * MIB).to_string());
        assert_eq!(read("image/memory.max"), (512 * MIB).to_string());
        assert_eq!((read("workload/pids.max"), read("image/pids.max")), ("101".into(), "32".into()));
        for leaf in ["workload", "image"] {
            assert_eq!(read(&format!("{leaf}/memory.oom.group")), "1");
            assert_eq!(read(&format!("{leaf}/cgroup.kill")), "1");
        }
        enter_image(mount.path()).unwrap();
        assert_eq!(read("image/cgroup.procs"), "0");
    }

    #[test]
    fn an_image_that_leaves_nothing_is_said_to_and_what_to_do() {
        let mount = delegated(509 * MIB, 6 * MIB);
        let error = Group::new(mount.path(), 512 * MIB, 100, None).workload().unwrap_err();
        assert_eq!(
            error.to_string(),
            "the image takes 509 of the service's 512 MiB of memory: raise `mem_limit`"
        );
    }

    #[test]
    fn usage_is_the_services_without_its_shim() {
        let mount = delegated(100 * MIB, 6 * MIB);
        let group = Group::new(mount.path(), 512 * MIB, 100, Some(500));
        let expected = Usage {
            memory: 100 * MIB,
            memory_limit: 512 * MIB,
            processes: 7,
            processes_limit: 100,
            cpu_ms: 1500,
            cpus_limit: Some(500),
        };
        assert_eq!(group.usage().unwrap(), expected);
        // No container yet.
        fs::remove_dir_all(mount.path().join("workload")).unwrap();
        assert_eq!(group.usage().unwrap(), Usage { processes: 0, ..expected });
        assert!(Group::new(&mount.path().join("none"), 1, 1, None).usage().is_err());
    }

    #[test]
    fn what_the_kernel_ended_for_the_services_limit_and_for_the_machine_is_told_apart() {
        let mount = delegated(0, 0);
        let group = Group::new(mount.path(), 512 * MIB, 100, None);
        let leaf = group.workload().unwrap();
        let before = group.out_of_memory(&leaf);
        assert_eq!(group.out_of_memory(&leaf).since(&before), None);
        let counted = |file: &str, oom: u64, killed: u64| {
            let events = format!("low 0\nhigh 0\nmax 12\noom {oom}\noom_kill {killed}\noom_group_kill 1\n");
            fs::write(mount.path().join(file), events).unwrap();
            group.out_of_memory(&leaf)
        };
        // The limit of somebody above: nothing of this service was short, and the kernel chose it all the same.
        let machine = counted("workload/memory.events", 0, 3);
        assert_eq!(machine.since(&before), Some(Killed::MachineOutOfMemory));
        assert_eq!(machine.since(&machine), None);
        // Its own, whether it was the workload's leaf that was full or all of the service.
        counted("workload/memory.events", 0, 4);
        let own = counted("memory.events", 1, 4);
        assert_eq!(own.since(&machine), Some(Killed::OutOfMemory { limit: 512 * MIB }));
        // It came to its limit and nobody of the workload was ended.
        let own = counted("memory.events", 2, 4);
        assert_eq!(counted("memory.events", 3, 4).since(&own), None);
    }
}
