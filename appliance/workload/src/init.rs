//! The first process of a container: it builds the container, starts the workload in it, and waits.
//!
//! It is the shim's binary executed anew, so nothing of the shim's memory comes along. What is secret reaches it only as an
//! unread descriptor that it passes on: the forked child reads it, writes the secret files, and
//! becomes the workload. Before that child executes anything, this process gives up every
//! capability, takes the id that nobody has, and comes under the workload's own seccomp profile.
//!
//! The child leaves for a user namespace of its own, below the container's, in which [`OUTSIDE_ID`] does not exist. Mounts,
//! processes and network belong to the namespaces of the container, so a capability that root of the workload has
//! there reaches files and processes of the workload and nothing else.
//!
//! Where a program finds out whether the workload is healthy, a second child goes the same way and waits for the shim's word to
//! execute it ([`probe`]).
//!
//! Why it stays: the first process of a PID namespace inherits every orphan and ignores signals that
//! it has no handler for. Programs are rarely written for that, so the workload is the second
//! process, and this one reaps. It forwards no signals: the shim holds a pidfd of the workload. When the workload
//! ends, this process says how and ends too, and the kernel ends everything else in the namespace. When the shim
//! dies, the kernel ends this process (PR_SET_PDEATHSIG), and with it the container.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};
use cofferdam_declaration::{Ulimit, Ulimits};
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, chdir, execve, setgroups, setresgid, setresuid, setsid, write};
use serde::{Deserialize, Serialize};

use crate::delivery::{Delivery, Plan};
use crate::narrow::{Narrow, NarrowError};
use crate::restart::End;
use crate::rootfs::{self, Held, SECRETS};
use crate::seccomp::Profile;
use crate::secret_files::SecretFiles;
use crate::{OUTSIDE_ID, config, probe, sys};

/// The descriptors that the shim places: its control socket, the delivery, the plan, and the socket of the probes.
pub(crate) const CONTROL: i32 = 3;
/// See [`CONTROL`].
pub(crate) const DELIVERY: i32 = 4;
/// See [`CONTROL`].
pub(crate) const PLAN: i32 = 5;
/// See [`CONTROL`].
pub(crate) const PROBE: i32 = 6;
/// Open files of a process whose service declares nothing.
const OPEN_FILES: u64 = 4096;
/// Bytes that such a process may keep in memory: the kernel's default.
const LOCKED_MEMORY: u64 = 8 << 20;
/// Bound on one message to the shim, in bytes.
pub(crate) const MAX_MESSAGE: usize = 4096;

/// The Landlock interface that the image's kernel certainly has (Linux 6.12: signals and abstract sockets are scoped).
pub(crate) const LANDLOCK: ABI = ABI::V6;

/// What init tells the shim, one JSON object to a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Message {
    /// The workload was executed; a pidfd of it comes along, and the mount of its secret files.
    Started,
    /// It could not be.
    Failed {
        /// As a shell would have it: 127 not found, 126 otherwise.
        code: i32,
        /// One line for people.
        reason: String,
    },
    /// The workload ended.
    Ended(End),
}

/// Why there is no workload.
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error("cannot {0}")]
    Step(&'static str, #[source] io::Error),
    #[error(transparent)]
    Rootfs(#[from] rootfs::RootfsError),
    #[error(transparent)]
    Seccomp(#[from] crate::seccomp::SeccompError),
    #[error("cannot set up Landlock")]
    Landlock(#[from] landlock::RulesetError),
    #[error("cannot confine it to its profile")]
    Profile(#[from] NarrowError),
    #[error("cannot drop capabilities")]
    Capabilities(#[source] caps::errors::CapsError),
    #[error("{reason}")]
    Workload { code: i32, reason: String },
}

fn step<T, E: Into<io::Error>>(name: &'static str, outcome: Result<T, E>) -> Result<T, InitError> {
    outcome.map_err(|source| InitError::Step(name, source.into()))
}

/// Is the first process of a container. It takes its descriptors from [`launch::start`](crate::launch::start), which
/// executed it, and answers over one of them.
///
/// # Errors
///
/// A descriptor is not there: the process was started by somebody else.
pub fn run() -> io::Result<()> {
    let control = UnixStream::from(sys::inherited(CONTROL)?);
    let delivery = sys::inherited(DELIVERY)?;
    let plan = sys::inherited(PLAN)?;
    let probes = UnixStream::from(sys::inherited(PROBE)?);
    let message = match start(&control, delivery, plan, probes) {
        Ok(end) => Message::Ended(end),
        Err(error) => {
            let code = if let InitError::Workload { code, .. } = error { code } else { 126 };
            Message::Failed { code, reason: format!("{:#}", anyhow::Error::new(error)) }
        }
    };
    // A shim that is gone needs no answer.
    let _ = say(&control, &message, &[]);
    Ok(())
}

fn say(control: &UnixStream, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let descriptors: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let rights = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
    sendmsg::<()>(control.as_raw_fd(), &[IoSlice::new(&line)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

fn start(
    control: &UnixStream,
    delivery: OwnedFd,
    plan: OwnedFd,
    probes: UnixStream,
) -> Result<End, InitError> {
    step("become root of the container", become_root())?;
    step("close itself to others", prctl::set_dumpable(false))?;
    step("be one that may be ended for its memory", may_be_ended())?;
    tie_to(control)?;
    umask(Mode::from_bits_truncate(0o022));
    let (plan, profile) = step("read the plan", Plan::load(plan))?;
    let Held { secrets, places } = rootfs::enter(&plan)?;
    // Neither end survives execve.
    let (mut ours, mut theirs) = step("make a socket", UnixStream::pair())?;
    match step("fork", sys::fork())? {
        None => {
            drop(ours);
            let files = SecretFiles::new(secrets, plan.uid, plan.gid);
            let Err(error) = become_workload(&plan, &profile, delivery, files, &places, &mut theirs);
            let (code, reason) = match error {
                InitError::Workload { code, reason } => (code, reason),
                other => (126, format!("{:#}", anyhow::Error::new(other))),
            };
            let said = [&[FAILED], code.to_le_bytes().as_slice(), reason.as_bytes()].concat();
            // The standard library sends, which a profile may close; write(2) none can.
            let _ = write(&theirs, &said);
            sys::leave(code)
        }
        Some(pid) => {
            drop((theirs, places));
            heard(&mut ours)?;
            step("map the ids of the workload", map_ids(pid))?;
            if let Some(words) = &plan.probe {
                let closed = [&ours.as_fd(), &secrets.as_fd()].map(AsRawFd::as_raw_fd);
                start_prober(&plan, words, &profile, delivery, probes, closed)?;
            } else {
                drop((delivery, probes));
            }
            // From here on the children alone hold what is secret.
            shed(&profile, control)?;
            let pidfd = step("hold the workload", sys::pidfd(pid))?;
            step("let the workload go", ours.write_all(&[GO]))?;
            heard(&mut ours)?;
            let started = say(control, &Message::Started, &[pidfd.as_fd(), secrets.as_fd()]);
            step("tell the shim", started)?;
            drop(secrets);
            reap(pid)
        }
    }
}

/// Forks the process that runs the probes ([`probe`]), and waits until it is confined. It has none of the descriptors in `closed`.
fn start_prober(
    plan: &Plan,
    words: &[String],
    profile: &Profile,
    delivery: OwnedFd,
    probes: UnixStream,
    closed: [RawFd; 2],
) -> Result<(), InitError> {
    let (mut ours, mut theirs) = step("make a socket", UnixStream::pair())?;
    let Some(pid) = step("fork", sys::fork())? else {
        // What init and the shim, and init and the workload say to each other is not for this one.
        let mut closed = [CONTROL].into_iter().chain(closed);
        let closed = closed.try_for_each(nix::unistd::close);
        drop(ours);
        let confined = step("let go of init's sockets", closed)
            .and_then(|()| become_prober(plan, words, profile, delivery, &mut theirs));
        if let Err(error) = &confined {
            let reason = format!("cannot start the probes: {:#}", anyhow::Error::msg(error.to_string()));
            let said = [&[FAILED], 126_i32.to_le_bytes().as_slice(), reason.as_bytes()].concat();
            let _ = theirs.write_all(&said);
        }
        drop(theirs);
        // A shim that is gone, or that the workload has ended, needs no answer.
        let _ = confined.map(|program| probe::serve(probes, &program));
        sys::leave(0)
    };
    drop((delivery, theirs, probes));
    heard(&mut ours)?;
    step("map the ids of the probes", map_ids(pid))?;
    step("let the probes go", ours.write_all(&[GO]))?;
    heard(&mut ours)
}

/// The side of the process that runs the probes: it goes the workload's way, and executes nothing yet.
fn become_prober(
    plan: &Plan,
    words: &[String],
    profile: &Profile,
    delivery: OwnedFd,
    channel: &mut UnixStream,
) -> Result<probe::Program, InitError> {
    // The pipes belong to the workload: their end is its end.
    let null = step("open /dev/null", File::options().read(true).write(true).open("/dev/null"))?;
    for target in 0..=2 {
        step("let go of the output", sys::place(null.as_fd(), target))?;
    }
    step("start a session", setsid())?;
    let delivery = step("read the delivery", Delivery::load(delivery))?;
    let program = probe::Program {
        candidates: candidates(words, &delivery),
        arguments: step("name the arguments", strings(words))?,
        environment: variables(&delivery)?,
        narrow: Narrow::prepare(&plan.profile)?,
    };
    confine(plan, profile, channel)?;
    Ok(program)
}

/// What init and the forked child say to each other: the child waits in its user namespace for its ids; go on; it failed, with
/// its exit code (i32, little-endian) and the reason.
const UNMAPPED: u8 = b'u';
/// See [`UNMAPPED`].
const GO: u8 = b'g';
/// See [`UNMAPPED`].
const FAILED: u8 = b'f';

/// Hears from the child: that it waits, or, when its end is closed by execve, nothing.
fn heard(channel: &mut UnixStream) -> Result<(), InitError> {
    let mut first = [0];
    if step("hear from the workload", channel.read(&mut first))? == 0 || first == [UNMAPPED] {
        return Ok(());
    }
    let mut said = Vec::new();
    step("hear from the workload", channel.take(MAX_MESSAGE as u64 / 2).read_to_end(&mut said))?;
    let (code, reason) = said.split_first_chunk().unwrap_or((&[126, 0, 0, 0], b"the workload was lost"));
    Err(InitError::Workload {
        code: i32::from_le_bytes(*code),
        reason: String::from_utf8_lossy(reason).into_owned(),
    })
}

/// Gives the workload's user namespace every id of the container but [`OUTSIDE_ID`].
fn map_ids(pid: Pid) -> io::Result<()> {
    let map = format!("0 0 {OUTSIDE_ID}\n");
    fs::write(format!("/proc/{pid}/uid_map"), &map)?;
    fs::write(format!("/proc/{pid}/gid_map"), &map)
}

/// Becomes root of the container, to whom its files belong: whoever starts this process is [`SHIM_ID`](crate::SHIM_ID). Its capabilities
/// stay; what prctl(2) says about dumps and the parent's death does not.
///
/// # Errors
///
/// It takes CAP_SETGID and CAP_SETUID.
pub fn become_root() -> io::Result<()> {
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(group, group, group)?;
    Ok(setresuid(user, user, user)?)
}

/// Undoes what protects the shim when memory runs out. A process without CAP_SYS_RESOURCE cannot take it back, because the shim's own
/// lower bound is 0 (`oom_score_adj_min` in the kernel's fs/proc/base.c).
pub fn may_be_ended() -> io::Result<()> {
    const SCORE: &str = "/proc/self/oom_score_adj";
    if fs::read_to_string(SCORE)?.starts_with('-') { fs::write(SCORE, "0") } else { Ok(()) }
}

/// Ends this process when its parent does. Asked for before looking whether the parent is still there, or
/// a death in between would go unnoticed.
fn tie_to(control: &UnixStream) -> Result<(), InitError> {
    step("be tied to the shim", prctl::set_pdeathsig(Signal::SIGKILL))?;
    let mut poll_for = [PollFd::new(control.as_fd(), PollFlags::empty())];
    step("look for the shim", poll(&mut poll_for, PollTimeout::ZERO))?;
    let [polled] = &poll_for;
    if polled.revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)) {
        return step("find the shim", Err(io::Error::from(io::ErrorKind::BrokenPipe)));
    }
    Ok(())
}

/// Gives up everything: what stays is a process that can wait and answer.
fn shed(profile: &Profile, control: &UnixStream) -> Result<(), InitError> {
    // The pipes belong to the workload: their end is its end.
    let null = step("open /dev/null", File::options().read(true).write(true).open("/dev/null"))?;
    for target in 0..=2 {
        step("let go of the output", sys::place(null.as_fd(), target))?;
    }
    identity(OUTSIDE_ID, OUTSIDE_ID, &[], &[])?;
    // Changing the id undid both of these.
    step("close itself to others", prctl::set_dumpable(false))?;
    tie_to(control)?;
    step("set no_new_privs", prctl::set_no_new_privs())?;
    Ok(profile.apply()?)
}

/// Waits until the workload ends, and takes in every orphan on the way.
fn reap(workload: Pid) -> Result<End, InitError> {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == workload => return Ok(End::Exited(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == workload => {
                return Ok(End::Signalled(signal as i32));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return step("wait for the workload", Err(errno)),
        }
    }
}

/// Becomes `uid` and `gid`, in these supplementary groups alone. Root keeps these capabilities, everybody else none, now and after any
/// execve.
fn identity(uid: u32, gid: u32, groups: &[u32], kept: &[Capability]) -> Result<(), InitError> {
    let kept: CapsHashSet = kept.iter().copied().collect();
    for capability in caps::runtime::thread_all_supported().difference(&kept) {
        caps::drop(None, CapSet::Bounding, *capability).map_err(InitError::Capabilities)?;
    }
    let groups: Vec<_> = groups.iter().copied().map(Gid::from_raw).collect();
    step("set the groups", setgroups(&groups))?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    step("change the group", setresgid(gid, gid, gid))?;
    step("change the user", setresuid(uid, uid, uid))?;
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        caps::clear(None, set).map_err(InitError::Capabilities)?;
    }
    // The change of the id leaves root all that it had.
    let kept = if uid.is_root() { kept } else { CapsHashSet::new() };
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept).map_err(InitError::Capabilities)?;
    }
    Ok(())
}

/// The child's side. Returns only on failure.
fn become_workload(
    plan: &Plan,
    profile: &Profile,
    delivery: OwnedFd,
    files: SecretFiles,
    places: &[OwnedFd],
    channel: &mut UnixStream,
) -> Result<std::convert::Infallible, InitError> {
    step("start a session", setsid())?;
    let delivery = step("read the delivery", Delivery::load(delivery))?;
    for (name, content) in &delivery.files {
        step("write a secret file", files.put(name, content))?;
    }
    drop(files);
    rootfs::lock_secrets()?;
    step(
        "lay the configs over their places",
        config::fill(&plan.configs, &delivery.configs, places, SECRETS),
    )?;
    let environment = variables(&delivery)?;
    let arguments = step("name the arguments", strings(&plan.arguments))?;
    let candidates = candidates(&plan.arguments, &delivery);
    let narrow = Narrow::prepare(&plan.profile)?;
    confine(plan, profile, channel)?;
    narrow.apply()?;
    let mut answer = Errno::ENOENT;
    for candidate in candidates {
        let Ok(path) = CString::new(candidate) else { continue };
        match execve(&path, &arguments, &environment) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => answer = errno,
        }
    }
    let code = if answer == Errno::ENOENT { 127 } else { 126 };
    let program = plan.arguments.first().map(String::as_str).unwrap_or_default();
    Err(InitError::Workload {
        code,
        reason: format!("cannot execute {:?}: {}", cofferdam_registry::image::short(program), answer.desc()),
    })
}

/// Takes from this process all that a workload does not have: after this it can do what a program of the workload can, and
/// what it executes cannot do more.
fn confine(plan: &Plan, profile: &Profile, channel: &mut UnixStream) -> Result<(), InitError> {
    // A core file would hold the secrets.
    step("forbid core files", setrlimit(Resource::RLIMIT_CORE, 0, 0))?;
    // Before the user namespace, whose users together get no more than this process has when it makes it.
    step("set the declared limits", limit(&plan.ulimits))?;
    sys::default_signals();
    step("keep descriptors to itself", sys::close_on_exec_from(3))?;
    step("leave for a user namespace", unshare(CloneFlags::CLONE_NEWUSER))?;
    step("wait for init", channel.write_all(&[UNMAPPED]).and_then(|()| channel.read_exact(&mut [0])))?;
    let kept: Vec<Capability> = plan.capabilities.iter().copied().map(kernels).collect();
    identity(plan.uid, plan.gid, &plan.groups, &kept)?;
    chdir(plan.working_dir.as_str()).map_err(|errno| InitError::Workload {
        code: 126,
        reason: format!("cannot enter the working directory {:?}: {}", plan.working_dir, errno.desc()),
    })?;
    step("set no_new_privs", prctl::set_no_new_privs())?;
    stay_below(Path::new("/"))?;
    Ok(profile.apply()?)
}

/// The kernel's word for a capability of the declaration.
fn kernels(declared: cofferdam_declaration::Capability) -> Capability {
    use cofferdam_declaration::Capability as Declared;
    match declared {
        Declared::Chown => Capability::CAP_CHOWN,
        Declared::DacOverride => Capability::CAP_DAC_OVERRIDE,
        Declared::Fowner => Capability::CAP_FOWNER,
        Declared::Fsetid => Capability::CAP_FSETID,
        Declared::Kill => Capability::CAP_KILL,
        Declared::Setgid => Capability::CAP_SETGID,
        Declared::Setuid => Capability::CAP_SETUID,
        Declared::Setpcap => Capability::CAP_SETPCAP,
        Declared::NetBindService => Capability::CAP_NET_BIND_SERVICE,
    }
}

/// A second wall beside the namespaces (Landlock): whoever finds a way out of the root directory still opens nothing there, and
/// whoever finds a device node somewhere cannot steer it.
fn stay_below(root: &Path) -> Result<(), InitError> {
    let all = AccessFs::from_all(LANDLOCK);
    let below = all & !(AccessFs::MakeBlock | AccessFs::MakeChar | AccessFs::IoctlDev);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(all)?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?;
    // Queues are opened by a mount of the kernel's own, which only this file system's root stands for.
    let rules =
        [(root, below), (Path::new("/dev"), below | AccessFs::IoctlDev), (Path::new("/dev/mqueue"), below)];
    for (path, access) in rules.into_iter().filter(|(path, _)| path.exists()) {
        let directory = step("open the root", PathFd::new(path).map_err(io::Error::other))?;
        ruleset = ruleset.add_rule(PathBeneath::new(directory, access))?;
    }
    ruleset.restrict_self()?;
    Ok(())
}

/// Sets what the declaration says, or what a workload has without it. The shim has at least as much of each.
fn limit(declared: &Ulimits) -> Result<(), Errno> {
    let limits = [
        (Resource::RLIMIT_NOFILE, declared.nofile, Some(OPEN_FILES)),
        (Resource::RLIMIT_NPROC, declared.nproc, None),
        (Resource::RLIMIT_MEMLOCK, declared.memlock, Some(LOCKED_MEMORY)),
    ];
    for (resource, declared, otherwise) in limits {
        let (_, most) = getrlimit(resource)?;
        let otherwise = otherwise.map(|both| Ulimit { soft: both.min(most), hard: both.min(most) });
        if let Some(limit) = declared.or(otherwise) {
            setrlimit(resource, limit.soft, limit.hard)?;
        }
    }
    Ok(())
}

/// `NAME=value` for each variable. execve replaces this memory, copies included.
fn variables(delivery: &Delivery) -> Result<Vec<CString>, InitError> {
    let line = |(name, value): &(String, zeroize::Zeroizing<Vec<u8>>)| {
        let mut line = Vec::with_capacity(name.len() + value.len() + 2);
        line.extend_from_slice(name.as_bytes());
        line.push(b'=');
        line.extend_from_slice(value);
        // The error would hold the value.
        CString::new(line).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
    };
    step("name the variables", delivery.environment.iter().map(line).collect())
}

fn strings(words: &[String]) -> io::Result<Vec<CString>> {
    words.iter().map(|word| CString::new(word.as_str()).map_err(io::Error::from)).collect()
}

/// Where the program may be: as named, or in each directory of the workload's own PATH.
fn candidates(words: &[String], delivery: &Delivery) -> Vec<String> {
    let program = words.first().map(String::as_str).unwrap_or_default();
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let path =
        delivery.environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_slice());
    let path = String::from_utf8_lossy(path.unwrap_or_default());
    // An empty part means the working directory to a shell; here it means nothing.
    path.split(':')
        .filter(|directory| !directory.is_empty())
        .map(|directory| format!("{directory}/{program}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A way out of the root directory, as a thread that never was in one.
    #[test]
    fn what_is_not_below_the_root_stays_closed_to_whoever_sees_it() {
        let root = tempfile::tempdir().unwrap();
        let (inside, outside) = (root.path().join("inside"), tempfile::NamedTempFile::new().unwrap());
        fs::write(&inside, "x").unwrap();
        // Landlock and no_new_privs are a thread's own.
        let thread = std::thread::spawn(move || {
            prctl::set_no_new_privs().unwrap();
            stay_below(root.path()).unwrap();
            assert_eq!(fs::read(&inside).unwrap(), b"x");
            fs::write(root.path().join("another"), "y").unwrap();
            fs::read("/dev/null").unwrap();
            let refused = |outcome: io::Result<Vec<u8>>| outcome.unwrap_err().raw_os_error();
            assert_eq!(refused(fs::read(outside.path())), Some(Errno::EACCES as i32));
            assert_eq!(refused(fs::read("/proc/self/environ")), Some(Errno::EACCES as i32));
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_capability_is_the_kernels_of_the_same_name() {
        for declared in cofferdam_declaration::Capability::ALL {
            assert_eq!(kernels(declared).to_string(), format!("CAP_{}", declared.name()));
        }
    }

    #[test]
    fn the_child_is_heard_to_wait_to_go_on_and_to_fail() {
        let said = |bytes: &[u8]| {
            let (mut ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(bytes).unwrap();
            drop(theirs);
            heard(&mut ours)
        };
        assert!(said(b"").is_ok() && said(b"u").is_ok());
        let Err(InitError::Workload { code, reason }) = said(b"f\x7f\0\0\0not there") else { panic!() };
        assert_eq!((code, reason.as_str()), (127, "not there"));
        let Err(InitError::Workload { code: 126, reason }) = said(b"f") else { panic!() };
        assert_eq!(reason, "the workload was lost");
    }
}
