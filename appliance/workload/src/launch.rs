//! The shim's side of a container: starts its init, talks to it, and hears how the workload ends.
//!
//! Everything here runs on one thread, because clone(2) without execve is only sound there (the parent's
//! other threads would leave their locks behind); [`sys::clone_into`] refuses otherwise.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::stat::{Mode, fchmod};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Gid, Uid, execve, fchown, pipe2};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use crate::delivery::{Delivery, Plan};
use crate::init::{CONTROL, DELIVERY, MAX_MESSAGE, Message, PLAN, PROBE};
use crate::probe::Prober;
use crate::restart::End;
use crate::seccomp::Profile;
use crate::secret_files::SecretFiles;
use crate::{OUTSIDE_ID, sys};

/// Building a container takes some 50 ms, and a few seconds under software emulation on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Why there is no container.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A call of the shim's own failed.
    #[error("cannot {0}")]
    Step(&'static str, #[source] io::Error),
    /// Init ended or said something else than it should.
    #[error("the container's first process ended before the workload started")]
    Lost,
    /// Nothing happened for too long.
    #[error("the container did not start within {0:?}")]
    Slow(Duration),
    /// Init said why.
    #[error("{reason}")]
    Failed {
        /// As a shell would have it.
        code: i32,
        /// One line for people.
        reason: String,
    },
}

fn step<T, E: Into<io::Error>>(name: &'static str, outcome: Result<T, E>) -> Result<T, LaunchError> {
    outcome.map_err(|source| LaunchError::Step(name, source.into()))
}

/// A running container. Dropping it kills it.
#[derive(Debug)]
pub struct Container {
    init: Init,
    control: tokio::net::UnixStream,
    /// What was received beyond the last message.
    pending: Vec<u8>,
    workload: OwnedFd,
    secrets: SecretFiles,
    prober: Option<Prober>,
}

/// What the workload prints.
#[derive(Debug)]
pub struct Output {
    /// Its standard output.
    pub stdout: pipe::Receiver,
    /// Its standard error.
    pub stderr: pipe::Receiver,
}

/// The container's first process; killed and reaped when dropped.
#[derive(Debug)]
struct Init {
    pidfd: AsyncFd<OwnedFd>,
    reaped: bool,
}

/// Starts a container in the caller's network, and in the control group if one is given, and returns once the workload was
/// executed. `program` is argv with which the caller's own binary, executed anew, calls [`init::run`](crate::init::run).
///
/// # Errors
///
/// [`LaunchError`]; nothing of the container is left then.
pub async fn start(
    program: &[&str],
    plan: &Plan,
    delivery: &Delivery,
    group: Option<BorrowedFd<'_>>,
) -> Result<(Container, Output), LaunchError> {
    let (ours, theirs) = step("make a socket", UnixStream::pair())?;
    step("prepare a socket", ours.set_nonblocking(true))?;
    let (stdout, child_stdout) = output()?;
    let (stderr, child_stderr) = output()?;
    let (probes, probed) = step("make a socket", UnixStream::pair())?;
    let prober = plan.probe.is_some().then(|| Prober::new(probes)).transpose();
    let prober = step("watch the probes", prober)?;
    let calls = step("compile its system calls", Profile::workload().map_err(io::Error::other))?;
    let inherited = [
        step("open /dev/null", File::open("/dev/null"))?.into(),
        child_stdout,
        child_stderr,
        theirs.into(),
        step("store the delivery", delivery.store())?,
        step("store the plan", plan.store(calls))?,
        probed.into(),
    ];
    let namespaces = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    let Some((_, pidfd)) = step("clone", sys::clone_into(namespaces, group))? else {
        let Err(_) = become_init(program, &inherited);
        // The socket closes with the process: that is the message.
        sys::leave(126)
    };
    let init = Init { pidfd: step("watch the container", sys::watch(pidfd))?, reaped: false };
    drop(inherited);
    let control = step("watch the container", tokio::net::UnixStream::from_std(ours))?;
    let mut listener = Listener { control, pending: Vec::new() };
    let first = tokio::time::timeout(START_TIMEOUT, listener.next()).await;
    match first.map_err(|_| LaunchError::Slow(START_TIMEOUT))?? {
        Some((Message::Started, descriptors)) => {
            let [workload, secrets] = descriptors.try_into().map_err(|_| LaunchError::Lost)?;
            let secrets = SecretFiles::new(secrets, plan.uid, plan.gid);
            let Listener { control, pending } = listener;
            let container = Container { init, control, pending, workload, secrets, prober };
            Ok((container, Output { stdout, stderr }))
        }
        Some((Message::Failed { code, reason }, _)) => Err(LaunchError::Failed { code, reason }),
        _ => Err(LaunchError::Lost),
    }
}

/// A pipe for one of the workload's outputs. `/dev/stdout` opens for writing, whoever the workload becomes, and for reading to
/// nobody: another process of the container would see lines that are not redacted yet, and take them away.
fn output() -> Result<(pipe::Receiver, OwnedFd), LaunchError> {
    let (reader, writer) = step("make a pipe", pipe2(OFlag::O_CLOEXEC))?;
    let (uid, gid) = (Uid::from_raw(OUTSIDE_ID), Gid::from_raw(OUTSIDE_ID));
    step("own the pipe", fchown(&writer, Some(uid), Some(gid)))?;
    step("close the pipe to readers", fchmod(&writer, Mode::from_bits_truncate(0o222)))?;
    Ok((step("watch the pipe", pipe::Receiver::from_owned_fd(reader))?, writer))
}

/// The cloned child's side: places what init finds and executes this binary anew. Returns only on failure.
fn become_init(program: &[&str], inherited: &[OwnedFd; 7]) -> Result<Infallible, Errno> {
    // First out of the way of the numbers that they go to, which may be taken by one of them.
    let mut moved = Vec::with_capacity(inherited.len());
    for descriptor in inherited {
        moved.push(sys::duplicate_above(descriptor.as_fd(), PROBE)?);
    }
    sys::close_on_exec_from(0)?;
    for (source, target) in moved.iter().zip([0, 1, 2, CONTROL, DELIVERY, PLAN, PROBE]) {
        sys::place(source.as_fd(), target)?;
    }
    sys::default_signals();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    let argv: Result<Vec<CString>, _> = program.iter().map(|word| CString::new(*word)).collect();
    let argv = argv.map_err(|_| Errno::EINVAL)?;
    execve::<CString, CString>(c"/proc/self/exe", &argv, &[])
}

/// Reads init's messages.
struct Listener {
    control: tokio::net::UnixStream,
    pending: Vec<u8>,
}

impl Listener {
    /// The next message and the descriptors that came with it; `None` when init has closed its end.
    async fn next(&mut self) -> Result<Option<(Message, Vec<OwnedFd>)>, LaunchError> {
        let mut descriptors = Vec::new();
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                let message = serde_json::from_slice(&line).map_err(|_| LaunchError::Lost)?;
                return Ok(Some((message, descriptors)));
            }
            if self.pending.len() > MAX_MESSAGE {
                return Err(LaunchError::Lost);
            }
            step("hear from the container", self.control.readable().await)?;
            let mut buffer = [0_u8; MAX_MESSAGE];
            let receive = || Ok(sys::receive_many(self.control.as_fd(), &mut buffer)?);
            match self.control.try_io(Interest::READABLE, receive) {
                Ok((0, _)) => return Ok(None),
                Ok((count, came)) => {
                    self.pending.extend_from_slice(buffer.get(..count).unwrap_or_default());
                    descriptors.extend(came);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return step("hear from the container", Err(error)),
            }
        }
    }
}

impl Container {
    /// The workload's process id in the shim's own PID namespace; `None` once it has ended.
    pub fn pid(&self) -> Option<i32> {
        use std::os::fd::AsRawFd;
        let info =
            std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.workload.as_raw_fd())).ok()?;
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
        Some(pid).filter(|pid| *pid > 0)
    }

    /// What has the plan's probe run, once.
    pub fn prober(&mut self) -> Option<Prober> {
        self.prober.take()
    }

    /// Sends a signal to the workload's own process. One that has ended is past caring.
    pub fn signal(&self, signal: i32) {
        let _ = sys::send_signal(self.workload.as_fd(), signal);
    }

    /// Puts one of the plan's secret files anew: it is whole at every moment.
    ///
    /// # Errors
    ///
    /// What the file system says; the file is as before.
    pub fn replace_secret(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.secrets.put(name, content)
    }

    /// Ends the whole container at once.
    pub fn kill(&self) {
        self.init.kill();
    }

    /// Waits until the workload has ended and nothing is left of the container.
    ///
    /// # Errors
    ///
    /// The shim cannot wait. Cancelling is fine: call it again.
    pub async fn ended(&mut self) -> Result<End, LaunchError> {
        // A message, if there was one, is there before init's end.
        drop(step("watch the container", self.init.pidfd.readable().await)?);
        let mut end = End::Signalled(nix::libc::SIGKILL);
        let mut buffer = [0_u8; MAX_MESSAGE];
        while let Ok((count @ 1.., _)) = sys::receive(self.control.as_fd(), &mut buffer) {
            self.pending.extend_from_slice(buffer.get(..count).unwrap_or_default());
        }
        for line in self.pending.split(|byte| *byte == b'\n') {
            if let Ok(Message::Ended(said)) = serde_json::from_slice(line) {
                end = said;
            }
        }
        self.init.reap();
        Ok(end)
    }
}

impl Init {
    fn kill(&self) {
        let _ = sys::send_signal(self.pidfd.as_fd(), nix::libc::SIGKILL);
    }

    fn reap(&mut self) {
        let status = waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED);
        self.reaped = !matches!(status, Err(Errno::EINTR) | Ok(WaitStatus::StillAlive));
    }
}

impl Drop for Init {
    /// Ends the container and takes its first process in, so that none is left half-dead.
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            self.reap();
        }
    }
}
