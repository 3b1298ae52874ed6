//! Starting a role: the same binary again, in a process that has lost everything the role does not need.
//!
//! The child sheds in this order, because each step needs what a later one takes away: its place in
//! the control groups (the parent moves it), the paths it must not see, the namespaces, the descriptors,
//! the limits, the capabilities, the identity, the way back (`no_new_privs`). Then it executes
//! `/proc/self/exe`, so that no byte of PID 1's memory comes along. A role's seccomp filter and
//! Landlock rules are the role's own first act (`confine`), so that they can forbid execve.
//!
//! A shim is different in one point: it leaves for a new user namespace whose ids are the service's own range, with
//! all capabilities there and none outside. Its own id there is none of its container's ([`SHIM_ID`]).
//!
//! Nothing here waits for a process: only `supervise` does. A child that fails says why over a
//! socket and exits; PID 1 reaps it like any other.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use caps::{CapSet, Capability, CapsHashSet};
use cofferdam_declaration::{MAX_NOFILE, MAX_PIDS};
use cofferdam_workload::SHIM_ID;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};
use nix::unistd::{Gid, Pid, Uid, execve, setgroups, setresgid, setresuid, setsid};

use crate::paths;
use crate::system::cgroup::{Cgroup, CgroupError};
use crate::system::sys::{self, SecretMemory};

/// The whole setup is a few system calls; under software emulation they take some 50 ms. A child
/// that says nothing for this long is broken, and PID 1 must not stand still with it.
const SETUP_TIMEOUT: Duration = Duration::from_secs(10);
/// A failure's text is one line.
const MAX_FAILURE_BYTES: u64 = 1024;
/// Enough for a few hundred connections of a front; a leak of descriptors ends the role, not the machine.
const OPEN_FILES: u64 = 4096;

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// fork(2) refused.
    #[error("cannot fork")]
    Fork(#[source] Errno),
    /// The socket between parent and child broke, or the child said nothing in time.
    #[error("lost the child during its setup")]
    Channel(#[source] io::Error),
    /// The control group refused.
    #[error("cannot place the process in its control group")]
    Cgroup(#[source] CgroupError),
    /// The kernel refused the map of the user namespace.
    #[error("cannot map the ids of the user namespace")]
    Map(#[source] io::Error),
    /// The child's own words: the step and the kernel's answer.
    #[error("{0}")]
    Setup(String),
}

/// Who the process is.
#[derive(Debug, Clone)]
pub enum Identity {
    /// A role with its own uid and gid and these capabilities (ambient, so that they survive execve).
    Role {
        /// Host uid.
        uid: u32,
        /// Host gid.
        gid: u32,
        /// The only capabilities it keeps.
        capabilities: &'static [Capability],
    },
    /// The owner of a user namespace over the host ids `base ..= base + 65536`.
    Shim {
        /// Its own host uid and gid. The next one is root of its container.
        base: u32,
    },
}

/// A key that outlives the role's process.
pub type KeyFile = Rc<SecretMemory>;

/// What a role finds at descriptor 3.
#[derive(Debug, Clone)]
pub enum Handed {
    /// A copy of a key: what one run of the role does to it does not reach the next.
    Copy(KeyFile),
    /// The very memory, for the role to write to. PID 1 looks at it once the role has ended.
    Shared(KeyFile),
}

/// Everything that decides what a started process is and sees.
#[derive(Debug, Clone)]
pub struct Spec {
    /// argv after `cofferd`.
    pub arguments: Vec<String>,
    /// Who it is.
    pub identity: Identity,
    /// A network namespace of its own, with nothing in it.
    pub own_network: bool,
    /// Directories it must not see into.
    pub covered: &'static [&'static str],
    /// What it finds at descriptor 3.
    pub key: Option<Handed>,
    /// What it finds open at descriptor 4.
    pub lent: Option<Rc<fs::File>>,
    /// Its control group. Only tests on a host without control groups leave it out.
    pub cgroup: Option<Cgroup>,
}

/// Starts a process as `spec` says and returns when it has executed.
///
/// # Errors
///
/// [`SpawnError`]; the child, if there was one, is killed and left to the reaper.
pub fn spawn(spec: &Spec) -> Result<Pid, SpawnError> {
    let (ours, theirs) = UnixStream::pair().map_err(SpawnError::Channel)?;
    match sys::fork().map_err(SpawnError::Fork)? {
        None => {
            drop(ours);
            speak(spec, &theirs);
            // 126: "found but could not be executed", as shells have it.
            sys::leave(126)
        }
        Some(pid) => {
            drop(theirs);
            let started = accompany(spec, pid, &ours);
            if started.is_err() {
                // It may have left on its own already; then there is nothing to kill.
                let _ = kill(pid, Signal::SIGKILL);
            }
            started.map(|()| pid)
        }
    }
}

/// The child's side, from the fork on. Returns only when something failed, having told PID 1 what.
fn speak(spec: &Spec, channel: &UnixStream) {
    let moved = move_away(channel).unwrap_or_default();
    let mut channel = moved.as_ref().unwrap_or(channel);
    let Err(failure) = become_role(spec, &mut channel);
    let _ = channel.write_all(failure.to_string().as_bytes());
}

/// The parent's side: moves the child into its group, maps its ids, waits for its execve.
fn accompany(spec: &Spec, pid: Pid, mut channel: &UnixStream) -> Result<(), SpawnError> {
    channel.set_read_timeout(Some(SETUP_TIMEOUT)).map_err(SpawnError::Channel)?;
    if let Some(group) = &spec.cgroup {
        group.adopt(pid).map_err(SpawnError::Cgroup)?;
    }
    channel.write_all(b"g").map_err(SpawnError::Channel)?;
    if let Identity::Shim { base } = spec.identity {
        let mut unshared = [0_u8; 1];
        channel.read_exact(&mut unshared).map_err(SpawnError::Channel)?;
        if unshared != *b"u" {
            return Err(SpawnError::Setup(words(&unshared, channel)));
        }
        map_ids(pid, &service_ids(base)).map_err(SpawnError::Map)?;
        if let Some(group) = &spec.cgroup {
            group.delegate(base, pid).map_err(SpawnError::Cgroup)?;
        }
        channel.write_all(b"g").map_err(SpawnError::Channel)?;
    }
    // execve closes the child's end: no word means success.
    let words = words(&[], channel);
    if words.is_empty() { Ok(()) } else { Err(SpawnError::Setup(words)) }
}

/// What the child said, from its first bytes on. A broken or silent channel is said to be one.
fn words(first: &[u8], channel: &UnixStream) -> String {
    let mut all = first.to_vec();
    match channel.take(MAX_FAILURE_BYTES).read_to_end(&mut all) {
        Ok(_) => String::from_utf8_lossy(&all).into_owned(),
        Err(error) => format!("the child did not finish its setup: {error}"),
    }
}

/// The ids of the container of the service whose first host id is `base`: the whole 16-bit range.
pub(super) fn container_ids(base: u32) -> String {
    format!("0 {} {SHIM_ID}\n", base.saturating_add(1))
}

/// All ids of that service.
fn service_ids(base: u32) -> String {
    format!("{}{SHIM_ID} {base} 1\n", container_ids(base))
}

/// Maps the ids of a process's new namespace. Written by PID 1, which is privileged outside, so setgroups(2) stays possible
/// inside (user_namespaces(7)).
pub(super) fn map_ids(pid: Pid, map: &str) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/uid_map"), map)?;
    fs::write(format!("/proc/{pid}/gid_map"), map)
}

/// A step of the child's setup that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {source}")]
struct StepError {
    step: String,
    source: io::Error,
}

fn step<T, E: Into<io::Error>>(step: &str, outcome: Result<T, E>) -> Result<T, StepError> {
    outcome.map_err(|source| StepError { step: step.to_owned(), source: source.into() })
}

/// The child's side. Returns only on failure.
fn become_role(spec: &Spec, channel: &mut &UnixStream) -> Result<std::convert::Infallible, StepError> {
    wait(channel)?;
    sys::default_signals();
    step("unblock signals", sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None))?;
    step("start a session", setsid())?;
    umask(Mode::from_bits_truncate(0o022));
    last_to_be_ended()?;
    narrow_view(spec)?;
    descriptors(spec)?;
    limit(&spec.identity)?;
    match spec.identity {
        Identity::Role { uid, gid, capabilities } => shed(uid, gid, capabilities)?,
        Identity::Shim { base } => enter_user_namespace(base, channel)?,
    }
    step("set no_new_privs", nix::sys::prctl::set_no_new_privs())?;
    execute(&spec.arguments)
}

/// A key and what is lent go to descriptors 3 and 4: a channel that happens to be there moves to another number. The old
/// one stays open, so that the number is not given out again.
fn move_away(channel: &UnixStream) -> io::Result<Option<UnixStream>> {
    let in_the_way = channel.as_raw_fd() <= paths::LENT_FD;
    if in_the_way { Ok(Some(beyond(channel)?.into())) } else { Ok(None) }
}

/// The same file at a number where nothing is handed over.
fn beyond(file: &impl AsFd) -> Result<OwnedFd, Errno> {
    sys::duplicate(file.as_fd(), paths::LENT_FD.saturating_add(1))
}

fn wait(channel: &mut &UnixStream) -> Result<(), StepError> {
    let mut go = [0_u8; 1];
    step("hear from PID 1", channel.read_exact(&mut go))
}

/// A mount namespace in which the covered paths are empty and /dev holds five harmless devices. Made
/// while still real root: a user namespace below cannot uncover it (mount_namespaces(7), locked mounts).
fn narrow_view(spec: &Spec) -> Result<(), StepError> {
    let mut namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC;
    if spec.own_network {
        namespaces |= CloneFlags::CLONE_NEWNET;
    }
    step("leave PID 1's namespaces", unshare(namespaces))?;
    step("make mounts private", mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE))?;
    for path in spec.covered {
        // What is not there needs no cover, and cannot appear later: modules are locked by then.
        if Path::new(path).is_dir() {
            let flags = MsFlags::MS_RDONLY | NO_PRIVILEGES | MsFlags::MS_NOEXEC;
            let options = Some("mode=000,size=0,nr_inodes=1");
            step(&format!("cover {path}"), mount(Some("none"), *path, Some("tmpfs"), flags, options))?;
        }
    }
    narrow_devices()
}

const NONE: Option<&str> = None;
const NO_PRIVILEGES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// name, major, minor of the devices a role may open (Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

fn narrow_devices() -> Result<(), StepError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    step(
        "make /dev",
        mount(Some("dev"), "/dev", Some("tmpfs"), flags, Some("mode=755,size=64k,nr_inodes=32")),
    )?;
    let before = umask(Mode::empty());
    for (name, major, minor) in DEVICES {
        let path = Path::new("/dev").join(name);
        let made = mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor));
        step(&format!("make /dev/{name}"), made)?;
    }
    umask(before);
    let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    step("lock /dev", mount(NONE, "/dev", NONE, flags, NONE))
}

/// When memory runs out the kernel ends this process only if there is no workload. At its own limit it is still ended: one that
/// cannot be ended at all would wait there for ever. Through the older file, which leaves the lower bound of the value as
/// it is (fs/proc/base.c): what a shim starts gives up the protection and cannot take it back. -16 becomes -941 of 1000.
fn last_to_be_ended() -> Result<(), StepError> {
    // PID 1 has it; only tests run in places where root does not.
    if !capability_step(caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE))? {
        return Ok(());
    }
    step("be the last when memory runs out", fs::write("/proc/self/oom_adj", "-16"))
}

fn limit(identity: &Identity) -> Result<(), StepError> {
    // A core file would hold the role's secrets.
    step("forbid core files", setrlimit(Resource::RLIMIT_CORE, 0, 0))?;
    step("limit open files", setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES))?;
    if matches!(identity, Identity::Shim { .. })
        && capability_step(caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE))?
    {
        // What a declaration may give its workload under `ulimits`, which nobody can raise later.
        let pids = MAX_PIDS.into();
        step("grant open files", setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, MAX_NOFILE))?;
        step("grant processes", setrlimit(Resource::RLIMIT_NPROC, pids, pids))?;
        // Locked or not, it is the service's own memory, and there is no swap.
        step("grant memory", setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY))?;
    }
    Ok(())
}

/// Becomes the role's user with exactly these capabilities, here and after execve. The bounding set is
/// cut first, so that even root (`evidence`) gains nothing from executing (capabilities(7)).
fn shed(uid: u32, gid: u32, capabilities: &[Capability]) -> Result<(), StepError> {
    let kept: CapsHashSet = capabilities.iter().copied().collect();
    for capability in caps::runtime::thread_all_supported() {
        if !kept.contains(&capability) {
            capability_step(caps::drop(None, CapSet::Bounding, capability))?;
        }
    }
    capability_step(caps::securebits::set_keepcaps(true))?;
    step("drop groups", setgroups(&[]))?;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    step("change group", setresgid(group, group, group))?;
    step("change user", setresuid(user, user, user))?;
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient] {
        capability_step(caps::set(None, set, &kept))?;
    }
    Ok(())
}

fn capability_step<T>(outcome: Result<T, caps::errors::CapsError>) -> Result<T, StepError> {
    step("drop capabilities", outcome.map_err(io::Error::other))
}

/// Leaves for a new user namespace, with its own view of the control groups. Ambient capabilities are what stays over execve to
/// whoever is not root there (capabilities(7)). The namespace is made by the service's own id: what
/// the kernel counts for each user is counted for each service (`ucounts`, kernel/ucount.c).
fn enter_user_namespace(base: u32, channel: &mut &UnixStream) -> Result<(), StepError> {
    let (owner, group) = (Uid::from_raw(base), Gid::from_raw(base));
    capability_step(caps::securebits::set_keepcaps(true))?;
    step("drop groups", setgroups(&[]))?;
    step("change group", setresgid(group, group, group))?;
    step("change user", setresuid(owner, owner, owner))?;
    let permitted = capability_step(caps::read(None, CapSet::Permitted))?;
    capability_step(caps::set(None, CapSet::Effective, &permitted))?;
    let namespaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    step("enter a user namespace", unshare(namespaces))?;
    step("tell PID 1", channel.write_all(b"u"))?;
    wait(channel)?;
    let all = capability_step(caps::read(None, CapSet::Permitted))?;
    for set in [CapSet::Inheritable, CapSet::Ambient] {
        capability_step(caps::set(None, set, &all))?;
    }
    if Path::new(crate::system::cgroup::MOUNT).join("cgroup.controllers").exists() {
        // The kernel refuses a file system on top of itself, even with another root: something in between.
        let flags = NO_PRIVILEGES | MsFlags::MS_NOEXEC;
        for (kind, options) in [("tmpfs", Some("size=0,nr_inodes=1")), ("cgroup2", None)] {
            let made = mount(Some(kind), crate::system::cgroup::MOUNT, Some(kind), flags, options);
            step("see its own control groups only", made)?;
        }
    }
    Ok(())
}

/// 0 is /dev/null, 1 and 2 stay the console, 3 is the key and 4 what is lent, if there is one; everything else closes on execve.
fn descriptors(spec: &Spec) -> Result<(), StepError> {
    let null = step("open /dev/null", fs::File::open("/dev/null"))?;
    step("place standard input", sys::place(null.as_fd(), 0))?;
    step("mark descriptors", sys::close_on_exec_from(3))?;
    // First each to where the other is not placed.
    let lent = spec.lent.as_ref().map(beyond).transpose();
    let lent = step("hold what is lent", lent)?;
    let key = match &spec.key {
        Some(Handed::Copy(key)) => {
            let copy = step("copy the key", key.copy())?;
            let file = step("hold the key", beyond(&copy.file()))?;
            copy.leave();
            Some(file)
        }
        Some(Handed::Shared(key)) => Some(step("hold the key", beyond(&key.file()))?),
        None => None,
    };
    for (file, number) in [(key, paths::KEY_FD), (lent, paths::LENT_FD)] {
        if let Some(file) = file {
            step("place a descriptor", sys::place(file.as_fd(), number))?;
        }
    }
    Ok(())
}

fn execute(arguments: &[String]) -> Result<std::convert::Infallible, StepError> {
    let words = std::iter::once("cofferd").chain(arguments.iter().map(String::as_str));
    let argv: Result<Vec<CString>, _> = words.map(CString::new).collect();
    let argv = step("build argv", argv)?;
    // An empty environment: what a role needs it reads from its files.
    step("execute cofferd", execve::<CString, CString>(c"/proc/self/exe", &argv, &[]))
}
