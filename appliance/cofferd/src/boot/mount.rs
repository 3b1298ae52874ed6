//! Stage `mount`: the kernel's file systems, hardened.
//!
//! Only what is not mounted already: what was put there before PID 1 started stays. Nothing is mounted
//! from a disk, so no byte of the host's choosing is parsed by a file system driver.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use cofferdam_declaration::MAX_SERVICES;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, umask};

use crate::paths;
use crate::roles::{ROLES, Role, Starts};
use crate::system::cgroup::{self, CgroupError, Limits};
use crate::system::meminfo::meminfo;
use crate::system::sys;

/// Why the stage failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    /// mount(2) refused.
    #[error("cannot mount {0}")]
    Mount(&'static str, #[source] Errno),
    /// The list of mounts cannot be read.
    #[error("cannot read the list of mounts")]
    List(#[source] io::Error),
    /// A directory, device or kernel setting refused.
    #[error("cannot set up {0}")]
    File(String, #[source] io::Error),
    /// Less memory than the roles alone may use.
    #[error("this machine has {} MiB of memory, of which {} MiB are for the appliance itself", all >> 20, reserved >> 20)]
    Small {
        /// The machine's, in bytes.
        all: u64,
        /// What services cannot have, in bytes.
        reserved: u64,
    },
    /// Control groups cannot be made.
    #[error("cannot set up control groups")]
    Cgroup(#[from] CgroupError),
}

/// One file system.
struct Entry {
    target: &'static str,
    kind: &'static str,
    flags: MsFlags,
    options: &'static str,
}

const LOCKED: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);

/// Where roles and services leave what others read.
const RUN: &str = "/run";

const ENTRIES: [Entry; 9] = [
    Entry { target: "/proc", kind: "proc", flags: LOCKED, options: "" },
    Entry { target: "/sys", kind: "sysfs", flags: LOCKED, options: "" },
    Entry { target: "/dev", kind: "devtmpfs", flags: DEVICES, options: "mode=0755" },
    Entry { target: "/dev/pts", kind: "devpts", flags: DEVICES, options: "mode=0600,ptmxmode=0000" },
    // Its size is added: see `run_bytes`.
    Entry { target: RUN, kind: "tmpfs", flags: LOCKED, options: "mode=0755" },
    // Used by nobody.
    Entry { target: "/tmp", kind: "tmpfs", flags: LOCKED, options: "mode=1777,size=16m" },
    Entry { target: "/sys/kernel/security", kind: "securityfs", flags: LOCKED, options: "" },
    // nsdelegate: a service cannot move its processes out of its own groups.
    Entry {
        target: cgroup::MOUNT,
        kind: "cgroup2",
        flags: LOCKED,
        options: "nsdelegate,memory_recursiveprot",
    },
    // The kernel's object file system, of which TSM reports are a part.
    Entry { target: "/sys/kernel/config", kind: "configfs", flags: LOCKED, options: "" },
];

/// One kernel setting below /proc/sys: name, value, and whether a kernel without it is accepted.
struct Setting {
    name: &'static str,
    value: &'static str,
    optional: bool,
}

const fn must(name: &'static str, value: &'static str) -> Setting {
    Setting { name, value, optional: false }
}

/// Settings of drivers and options that a kernel may be built without: what they restrict is absent then.
const fn may(name: &'static str, value: &'static str) -> Setting {
    Setting { name, value, optional: true }
}

const SETTINGS: &[Setting] = &[
    // Core files hold secrets: no name for them, and none of processes that changed their identity.
    must("kernel/core_pattern", ""),
    must("fs/suid_dumpable", "0"),
    // Kernel addresses and messages are of no use to a role, and of much use to an exploit.
    must("kernel/kptr_restrict", "2"),
    must("kernel/dmesg_restrict", "1"),
    may("kernel/perf_event_paranoid", "3"),
    // No process reads or steers another: 3 cannot be taken back, and with our patch it covers reading (see cofferdam_workload).
    must("kernel/yama/ptrace_scope", "3"),
    // Interfaces that nothing here uses. The image's kernel has no module loader; another would lose its.
    may("kernel/modules_disabled", "1"),
    may("kernel/unprivileged_bpf_disabled", "1"),
    may("net/core/bpf_jit_harden", "2"),
    may("kernel/io_uring_disabled", "2"),
    may("vm/unprivileged_userfaultfd", "0"),
    may("kernel/kexec_load_disabled", "1"),
    may("kernel/sysrq", "0"),
    may("dev/tty/ldisc_autoload", "0"),
    may("dev/tty/legacy_tiocsti", "0"),
    // For each user: a service's own, that of its workload, and those of earlier runs that are not gone yet. Made by the shim and the
    // container's first process; the filters of workloads and of the other roles know no call that makes one.
    must("user/max_user_namespaces", "128"),
    may("kernel/unprivileged_userns_clone", "1"),
    // What counts for the whole machine is out of reach: each of these costs memory that its service is charged for, and
    // processes have a limit of their own in each group.
    must("fs/file-max", "9223372036854775807"),
    must("kernel/pid_max", "4194304"),
    must("kernel/threads-max", "4194304"),
    may("kernel/pty/max", "1048576"),
    // When the machine itself runs out, the largest workload is ended, with all of its service: see `last_to_be_ended`.
    must("vm/oom_kill_allocating_task", "0"),
    must("vm/panic_on_oom", "0"),
    // Addresses hard to guess; no mapping at zero.
    must("kernel/randomize_va_space", "2"),
    must("vm/mmap_min_addr", "65536"),
    // Links and pipes in shared directories cannot redirect another role's writes.
    must("fs/protected_symlinks", "1"),
    must("fs/protected_hardlinks", "1"),
    must("fs/protected_fifos", "2"),
    must("fs/protected_regular", "2"),
    // The network is the host's: no redirects, no routes by request, no addresses by advertisement.
    may("net/ipv4/tcp_syncookies", "1"),
    // How many wait to be let in, at most, where a role asks for as many.
    must("net/core/somaxconn", "4096"),
    may("net/ipv4/conf/all/accept_redirects", "0"),
    may("net/ipv4/conf/default/accept_redirects", "0"),
    may("net/ipv4/conf/all/send_redirects", "0"),
    may("net/ipv4/conf/default/send_redirects", "0"),
    may("net/ipv4/conf/all/accept_source_route", "0"),
    may("net/ipv4/conf/default/accept_source_route", "0"),
    may("net/ipv4/conf/all/rp_filter", "1"),
    may("net/ipv4/conf/default/rp_filter", "1"),
    may("net/ipv6/conf/all/accept_ra", "0"),
    may("net/ipv6/conf/default/accept_ra", "0"),
    may("net/ipv6/conf/all/accept_redirects", "0"),
    may("net/ipv6/conf/default/accept_redirects", "0"),
    // A message above "error" on the console would end up between PID 1's lines.
    may("kernel/printk", "3 4 1 3"),
];

/// For the kernel and PID 1, beside the roles.
const KERNEL_BYTES: u64 = 64 << 20;
/// A service's two logs of 1 MiB each, its status and its sockets.
const SERVICE_FILES: u64 = 3 << 20;
/// The facts and the status that PID 1 writes.
const OWN_FILES: u64 = 16 << 20;

/// Mounts, opens the console, hardens, and makes the parents of all control groups.
///
/// # Errors
///
/// [`MountError`].
pub(crate) fn establish() -> Result<(), MountError> {
    umask(Mode::from_bits_truncate(0o022));
    for entry in &ENTRIES {
        let size = if entry.target == RUN { format!(",size={}", run_bytes()) } else { String::new() };
        attach(entry, &size)?;
    }
    open_console()?;
    for setting in SETTINGS {
        apply(Path::new("/proc/sys"), setting)?;
    }
    let services = Limits { memory: Some(services_bytes()?), ..Limits::default() };
    cgroup::prepare(cgroup::MOUNT.as_ref(), roles_bytes(), services)?;
    directory(paths::RUN)
}

/// What the roles may use together, each up to its own limit, of those that judge something once the one that may use most. Whatever
/// the services do, this much is left to them.
fn roles_bytes() -> u64 {
    let limits = |once: bool| {
        let roles = ROLES.into_iter().filter(move |role| (role.starts() == Starts::Once) == once);
        roles.filter_map(Role::memory)
    };
    limits(false).sum::<u64>().saturating_add(limits(true).max().unwrap_or_default())
}

/// What the services cannot have.
fn reserved_bytes() -> u64 {
    roles_bytes().saturating_add(KERNEL_BYTES)
}

/// What all services may use together: what is left to them of the machine.
///
/// # Errors
///
/// [`MountError::Small`]; /proc/meminfo is not as it has always been.
pub(super) fn services_bytes() -> Result<u64, MountError> {
    let (all, reserved) = (memory_bytes()?, reserved_bytes());
    all.checked_sub(reserved).ok_or(MountError::Small { all, reserved })
}

/// The size of /run: a role that writes there meets its own limit, which counts these pages too, before the others find
/// it full. It is a bound and takes no memory by itself.
fn run_bytes() -> u64 {
    let services = SERVICE_FILES.saturating_mul(MAX_SERVICES as u64);
    roles_bytes().saturating_add(services).saturating_add(OWN_FILES)
}

/// Memory of the machine in bytes, as the kernel counts it.
///
/// # Errors
///
/// /proc/meminfo is not as it has always been.
pub(super) fn memory_bytes() -> Result<u64, MountError> {
    let text = fs::read_to_string("/proc/meminfo").map_err(file("/proc/meminfo"))?;
    meminfo(&text, "MemTotal").ok_or_else(|| file("/proc/meminfo")(io::ErrorKind::InvalidData.into()))
}

fn attach(entry: &Entry, more: &str) -> Result<(), MountError> {
    // Without /proc there is no list, and then nothing but the initramfs is mounted that PID 1 cares for.
    let mounted = match fs::read_to_string("/proc/self/mountinfo") {
        Ok(list) => mount_points(&list).any(|point| point == entry.target),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(MountError::List(error)),
    };
    if mounted {
        return Ok(());
    }
    if !Path::new(entry.target).is_dir() {
        directory(entry.target)?;
    }
    let options = format!("{}{more}", entry.options);
    let options = (!options.is_empty()).then_some(options.as_str());
    mount(Some(entry.kind), entry.target, Some(entry.kind), entry.flags, options)
        .map_err(|error| MountError::Mount(entry.target, error))
}

/// The mount points of a mountinfo list (proc_pid_mountinfo(5)): the fifth field, with octal escapes.
fn mount_points(list: &str) -> impl Iterator<Item = String> {
    list.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape)
}

/// Undoes the kernel's `\NNN` for space, tab, newline and backslash.
fn unescape(field: &str) -> String {
    let mut text = String::new();
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (code, after.get(3..)) {
            (Some(code), Some(tail)) => {
                text.push(char::from(code));
                rest = tail;
            }
            _ => {
                text.push('\\');
                rest = after;
            }
        }
    }
    text.push_str(rest);
    text
}

/// Descriptors 0 to 2 of PID 1, which every role inherits: nothing to read, and the console to write.
fn open_console() -> Result<(), MountError> {
    let null = fs::File::open("/dev/null").map_err(file("/dev/null"))?;
    // Not the controlling terminal: opened by a session leader without one, /dev/console never becomes it.
    let console = fs::OpenOptions::new().write(true).open("/dev/console").map_err(file("/dev/console"))?;
    for (source, target) in [(null.as_fd(), 0), (console.as_fd(), 1), (console.as_fd(), 2)] {
        sys::place(source, target).map_err(|errno| file("the console")(errno.into()))?;
    }
    Ok(())
}

fn apply(root: &Path, setting: &Setting) -> Result<(), MountError> {
    let path = root.join(setting.name);
    let text = format!("{}\n", setting.value);
    let written = fs::OpenOptions::new().write(true).open(path);
    match written.and_then(|mut opened| io::Write::write_all(&mut opened, text.as_bytes())) {
        Err(error) if setting.optional && error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(file(setting.name)),
    }
}

fn directory(path: &str) -> Result<(), MountError> {
    fs::create_dir_all(path).map_err(file(path))
}

fn file(name: &str) -> impl FnOnce(io::Error) -> MountError {
    let name = name.to_owned();
    move |source| MountError::File(name, source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::{ADMIT, GATE};

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let list = "22 1 0:20 / /proc rw,nosuid shared:5 - proc proc rw\n\
                    23 1 0:21 / /sys rw - sysfs sysfs rw\n\
                    40 23 0:40 / /mnt/a\\040b\\134 rw - tmpfs none rw\n\
                    short line\n";
        let points: Vec<String> = mount_points(list).collect();
        assert_eq!(points, ["/proc", "/sys", "/mnt/a b\\"]);
        assert_eq!(unescape("/a\\9"), "/a\\9");
        assert_eq!(unescape("/a\\1"), "/a\\1");
    }

    #[test]
    fn the_machines_own_list_has_its_root() {
        let list = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(mount_points(&list).any(|point| point == "/"));
    }

    #[test]
    fn every_role_meets_its_own_limit_before_run_is_full_or_the_machine_is() {
        let limits: Vec<u64> = ROLES.into_iter().filter_map(Role::memory).collect();
        assert_eq!(limits.len(), 10);
        // One of `admit` and `gate` runs at a time.
        let least = GATE.memory().min(ADMIT.memory()).unwrap();
        let sum = limits.iter().sum::<u64>() - least;
        assert_eq!(sum, roles_bytes());
        assert!(run_bytes() >= sum + 32 * 2 * (1 << 20), "{}", run_bytes());
        assert!(reserved_bytes() > sum);
        // The least machine that is worth having.
        assert!(reserved_bytes() < 1 << 30, "{}", reserved_bytes());
    }

    #[test]
    fn a_setting_that_must_be_there_is_missed_and_one_that_may_is_not() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("kernel")).unwrap();
        fs::write(root.path().join("kernel/a"), "").unwrap();
        apply(root.path(), &must("kernel/a", "1")).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("kernel/a")).unwrap(), "1\n");
        apply(root.path(), &may("kernel/b", "1")).unwrap();
        let error = apply(root.path(), &must("kernel/b", "1")).unwrap_err();
        assert_eq!(error.to_string(), "cannot set up kernel/b");
    }
}
