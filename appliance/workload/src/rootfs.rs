//! The file system of a container, built by its first process in its own mount namespace.
//!
//! The root is the unpacked image under an empty layer that takes what is written and ends with the container: each start finds
//! the image as it was pulled, whatever an earlier run did to its own files.
//!
//! It becomes the root before anything is mounted into it, so no link in the image
//! can lead a mount or a file astray: what it could reach is already gone. `pivot_root` refuses the kernel's initial
//! root, on which the appliance lives; moving the new root over the old one and entering it does the same for a
//! process that can neither mount nor chroot afterwards.
//!
//! # What a workload sees
//!
//! - `/proc`: its own process namespace; what describes or steers the machine is masked or read-only, and `meminfo` is that of the
//!   service.
//! - `/sys`: no sysfs at all. The measurement registers, the quote interface and the firmware's tables are
//!   there, and a service needs none of it; an empty tmpfs says only which CPUs there are, because
//!   C libraries and runtimes ask.
//! - `/dev`: six harmless devices, pseudo-terminals, shared memory, message queues. Read-only itself.
//! - volumes, each a mount of its own (see [`volume`]), and configs, each a read-only one (see [`config`]);
//! - `/run/secrets`: its secret files, in memory, for its user only (for all of the container's when it starts as root). The workload's
//!   process writes them, and later the shim ([`secret_files`](crate::secret_files)).
//! - no setuid program gains anything and no device node opens anywhere else (nosuid, nodev).

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot, sethostname};

use crate::config::{self, Config};
use crate::delivery::Plan;
use crate::resolver::RESOLV_CONF;
use crate::sys;
use crate::volume::{self, Taken};

/// Where secret files are.
pub(crate) const SECRETS: &str = "/run/secrets";

/// Harmless to everybody (Documentation/admin-guide/devices.txt).
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Files of /proc that describe the machine or the kernel; each becomes /dev/null.
const MASKED_FILES: [&str; 34] = [
    "/proc/buddyinfo",
    "/proc/config.gz",
    "/proc/diskstats",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/locks",
    "/proc/modules",
    "/proc/pagetypeinfo",
    "/proc/partitions",
    "/proc/sched_debug",
    "/proc/schedstat",
    "/proc/slabinfo",
    "/proc/softirqs",
    // Counters of the whole machine, by which two services could talk to each other.
    "/proc/sys/fs/aio-nr",
    "/proc/sys/fs/dentry-state",
    "/proc/sys/fs/file-nr",
    "/proc/sys/fs/inode-nr",
    "/proc/sys/fs/inode-state",
    "/proc/sys/kernel/pty/nr",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
    "/proc/vmstat",
    "/proc/zoneinfo",
];
/// Directories of /proc with the same content; each becomes empty.
const MASKED_DIRECTORIES: [&str; 5] =
    ["/proc/acpi", "/proc/asound", "/proc/driver", "/proc/dynamic_debug", "/proc/scsi"];
/// What of /proc programs may read and must not write.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// What C libraries and runtimes read to count CPUs.
const CPU_FILES: [&str; 3] = ["online", "possible", "present"];
const CPU: &str = "/sys/devices/system/cpu";

const NONE: Option<&str> = None;
const NO_PRIVILEGES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const DATA_ONLY: MsFlags = NO_PRIVILEGES.union(MsFlags::MS_NOEXEC);

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub(crate) struct RootfsError {
    step: String,
    #[source]
    source: io::Error,
}

fn step<T, E: Into<io::Error>>(step: impl Into<String>, outcome: Result<T, E>) -> Result<T, RootfsError> {
    outcome.map_err(|source| RootfsError { step: step.into(), source: source.into() })
}

/// What of the root file system is held by its descriptors.
pub(crate) struct Held {
    /// The mount of the secret files once more, which stays writable for whoever has it.
    pub(crate) secrets: OwnedFd,
    /// The places of the plan's configs, in order.
    pub(crate) places: Vec<OwnedFd>,
}

/// Makes the plan's root file system the only one that this process can see.
///
/// # Errors
///
/// The step and what the kernel said. The process is then in no usable state and has to end.
pub(crate) fn enter(plan: &Plan) -> Result<Held, RootfsError> {
    step("make mounts private", mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE))?;
    // Taken along from the outside, as mounts that are attached nowhere.
    let mut devices = Vec::new();
    for name in DEVICES {
        let path = path_of(&format!("/dev/{name}"))?;
        devices.push((name, step(format!("take /dev/{name} along"), sys::detached_copy(&path))?));
    }
    let cpus: Vec<_> = CPU_FILES.iter().map(|name| (name, fs::read(format!("{CPU}/{name}")))).collect();

    let volumes = step("take the volumes along", volume::take(&plan.volumes))?;

    become_root(&fresh_root(plan)?)?;
    step("set the host name", sethostname(&plan.hostname))?;
    tmpfs("/dev", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=755,size=64k")?;
    for (name, device) in devices {
        let path = format!("/dev/{name}");
        step(format!("make {path}"), fs::write(&path, b""))?;
        step(format!("attach {path}"), sys::attach(std::os::fd::AsFd::as_fd(&device), &path_of(&path)?))?;
    }
    terminals_and_memory(plan)?;
    process_files(plan.memory)?;
    tmpfs("/sys", DATA_ONLY, "mode=755,size=64k")?;
    step("make the list of CPUs", fs::DirBuilder::new().recursive(true).create(CPU))?;
    for (name, content) in cpus {
        if let Ok(content) = content {
            step("write the list of CPUs", fs::write(format!("{CPU}/{name}"), content))?;
        }
    }
    read_only("/sys", DATA_ONLY)?;
    read_only("/dev", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)?;
    network_files(plan)?;
    data(plan, &volumes)?;
    let places = places(plan)?;
    directories(SECRETS)?;
    let mode = if plan.uid == 0 { 555 } else { 500 };
    let options = format!("mode={mode},uid={},gid={},size=16m", plan.uid, plan.gid);
    mounted(SECRETS, "tmpfs", DATA_ONLY, &options)?;
    let secrets = step("hold the secret files", sys::detached_copy(&path_of(SECRETS)?))?;
    directories(&plan.working_dir)?;
    if plan.read_only {
        read_only("/", NO_PRIVILEGES)?;
    }
    Ok(Held { secrets, places })
}

/// Makes a place for each config, in the volumes too, which are there by now.
fn places(plan: &Plan) -> Result<Vec<OwnedFd>, RootfsError> {
    let place = |config: &Config| {
        let target = config.target.as_str();
        let in_volume = plan.volumes.iter().any(|volume| Path::new(target).starts_with(&volume.target));
        directories(target.rsplit_once('/').map_or("/", |(parent, _)| parent))?;
        step(format!("make a place for the config at {target}"), config::place(config, in_volume))
    };
    plan.configs.iter().map(place).collect()
}

/// Mounts what the plan says beside the root: in-memory file systems, and volumes.
fn data(plan: &Plan, volumes: &[Taken<'_>]) -> Result<(), RootfsError> {
    let temporary = plan.tmpfs.iter().map(|path| (path.as_str(), None));
    let mut all: Vec<_> =
        temporary.chain(volumes.iter().map(|volume| (volume.target(), Some(volume)))).collect();
    // A parent before what lies below it.
    all.sort_by_key(|(path, _)| *path);
    for (path, volume) in all {
        directories(path)?;
        match volume {
            None => mounted(path, "tmpfs", DATA_ONLY, "mode=1777")?,
            Some(volume) => step(format!("attach the volume at {path}"), volume.attach())?,
        }
    }
    Ok(())
}

/// Locks the secret files: after this nobody of the container changes them, not even their owner.
pub(crate) fn lock_secrets() -> Result<(), RootfsError> {
    read_only(SECRETS, DATA_ONLY)
}

/// Lays an empty tmpfs over the image (Documentation/filesystems/overlayfs.rst) and says where the result is. The image's own directory
/// is covered by that tmpfs, so it is named by its descriptor from here on.
fn fresh_root(plan: &Plan) -> Result<PathBuf, RootfsError> {
    let image = step("open the image", File::open(&plan.rootfs))?;
    let top = step("look at the image", image.metadata())?;
    let options = format!("mode=0700,size={}", plan.writable);
    let made = mount(Some("writable"), &plan.rootfs, Some("tmpfs"), NO_PRIVILEGES, Some(options.as_str()));
    step("make the writable layer", made)?;
    let [upper, work, root] = ["upper", "work", "root"].map(|name| plan.rootfs.join(name));
    for directory in [&upper, &work, &root] {
        step("make the writable layer", fs::create_dir(directory))?;
    }
    // The root directory itself is the upper layer's.
    step("own the writable layer", chown(&upper, Some(top.uid()), Some(top.gid())))?;
    step("set the mode of the root", fs::set_permissions(&upper, top.permissions()))?;
    let options = format!(
        "lowerdir=/proc/self/fd/{},upperdir={},workdir={},userxattr",
        image.as_raw_fd(),
        upper.display(),
        work.display()
    );
    let made = mount(Some("root"), &root, Some("overlay"), NO_PRIVILEGES, Some(options.as_str()));
    step("lay the writable layer over the image", made)?;
    Ok(root)
}

fn become_root(rootfs: &Path) -> Result<(), RootfsError> {
    step("go to the root", chdir(rootfs))?;
    step("move the root", mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE))?;
    step("enter the root", chroot("."))?;
    step("go to the root", chdir("/"))
}

fn terminals_and_memory(plan: &Plan) -> Result<(), RootfsError> {
    let shared_memory = format!("mode=1777,size={}", plan.shm_size);
    for (path, kind, flags, options) in [
        (
            "/dev/pts",
            "devpts",
            MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            "newinstance,ptmxmode=0666,mode=0620,gid=5,max=1024",
        ),
        ("/dev/shm", "tmpfs", DATA_ONLY, shared_memory.as_str()),
        ("/dev/mqueue", "mqueue", DATA_ONLY, ""),
    ] {
        directories(path)?;
        match mounted(path, kind, flags, options) {
            // A kernel without POSIX message queues has none to isolate.
            Err(error) if kind == "mqueue" && error.source.raw_os_error() == Some(Errno::ENODEV as i32) => {}
            other => other?,
        }
    }
    for (target, link) in [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ] {
        step(format!("link /dev/{link}"), symlink(target, Path::new("/dev").join(link)))?;
    }
    Ok(())
}

fn process_files(memory: u64) -> Result<(), RootfsError> {
    own_directory("/proc")?;
    mounted("/proc", "proc", DATA_ONLY, "")?;
    // First, because this covers what lies below.
    for path in READ_ONLY.into_iter().filter(|path| Path::new(path).exists()) {
        step(format!("bind {path}"), mount(Some(path), path, NONE, MsFlags::MS_BIND, NONE))?;
        read_only(path, DATA_ONLY)?;
    }
    for path in MASKED_FILES.into_iter().filter(|path| Path::new(path).exists()) {
        step(format!("mask {path}"), mount(Some("/dev/null"), path, NONE, MsFlags::MS_BIND, NONE))?;
    }
    for path in MASKED_DIRECTORIES.into_iter().filter(|path| Path::new(path).is_dir()) {
        mounted(path, "tmpfs", DATA_ONLY | MsFlags::MS_RDONLY, "mode=555,size=0,nr_inodes=1")?;
    }
    own_meminfo(memory)
}

/// `/proc/meminfo` with what the service may take. Runtimes size heaps by it, and the machine's own would let two services talk.
fn own_meminfo(memory: u64) -> Result<(), RootfsError> {
    // On the tmpfs that is still writable; the mount keeps the file when its name has gone.
    let (place, path) = ("/dev/meminfo", "/proc/meminfo");
    step(format!("write {path}"), fs::write(place, meminfo(memory)))?;
    step(format!("bind {path}"), mount(Some(place), path, NONE, MsFlags::MS_BIND, NONE))?;
    read_only(path, DATA_ONLY)?;
    step(format!("write {path}"), fs::remove_file(place))
}

/// In the form of proc_meminfo(5), in KiB. What is used by now is not said: `cgroup` files are not there, and it would be out of date.
fn meminfo(memory: u64) -> String {
    let all = memory >> 10;
    [("MemTotal", all), ("MemFree", all), ("MemAvailable", all), ("Buffers", 0), ("Cached", 0)]
        .into_iter()
        .chain([("SwapCached", 0), ("SwapTotal", 0), ("SwapFree", 0), ("Shmem", 0), ("SReclaimable", 0)])
        .map(|(name, kib)| format!("{:<16}{kib:>8} kB\n", format!("{name}:")))
        .collect()
}

/// The files that Docker writes too. Names of other services are the resolver's to tell.
fn network_files(plan: &Plan) -> Result<(), RootfsError> {
    directories("/etc")?;
    for (path, content) in [
        ("/etc/hosts", plan.hosts.as_str()),
        ("/etc/hostname", &format!("{}\n", plan.hostname)),
        ("/etc/resolv.conf", RESOLV_CONF),
    ] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                step(format!("replace {path}"), Err(error))?
            }
            _ => step(format!("write {path}"), fs::write(path, content))?,
        }
    }
    Ok(())
}

/// A new tmpfs at a directory that is a directory and no link.
fn tmpfs(path: &str, flags: MsFlags, options: &str) -> Result<(), RootfsError> {
    own_directory(path)?;
    mounted(path, "tmpfs", flags, options)
}

fn mounted(path: &str, kind: &str, flags: MsFlags, options: &str) -> Result<(), RootfsError> {
    step(format!("mount {path}"), mount(Some(kind), path, Some(kind), flags, Some(options)))
}

fn read_only(path: &str, flags: MsFlags) -> Result<(), RootfsError> {
    let flags = flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    step(format!("make {path} read-only"), mount(NONE, path, NONE, flags, NONE))
}

/// Makes a directory at the top if it is missing, and refuses a link in its place: an image must not decide
/// where /proc, /sys and /dev are.
fn own_directory(path: &str) -> Result<(), RootfsError> {
    directories(path)?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    step(format!("use {path} of the image"), openat2(AT_FDCWD, path, how)).map(drop)
}

/// Makes a directory and those above it. A link on the way leads to somewhere inside the new root.
fn directories(path: &str) -> Result<(), RootfsError> {
    step(format!("make the directory {path}"), fs::DirBuilder::new().recursive(true).mode(0o755).create(path))
}

fn path_of(path: &str) -> Result<CString, RootfsError> {
    step("name a path", CString::new(path).map_err(io::Error::from))
}
