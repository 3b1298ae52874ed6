//! Follows a service from its first program to its end: every process, every system call, every file.
//!
//! By ptrace(2), from outside: nothing of the container knows that it is watched, and what makes containers is the appliance's own code,
//! unchanged. Whoever makes the container is traced first, so that no process of it is missed; it and the container's first process
//! go freely, and what the others do counts from the first program that they execute.
//!
//! Paths are those that the kernel shows of open descriptors, so links are resolved. What needs the right to change a directory counts
//! as writing to that directory.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::unistd::Pid;

use super::record::{Access, Record};
use super::sys::{self, Resume};

/// PATH_MAX of Linux.
const MAX_PATH: usize = 4096;
/// Of a path in a `sockaddr_un`.
const MAX_SOCKET_PATH: u64 = 108;
const PAGE: u64 = 4096;
/// How a stop for a system call differs from one for a signal (PTRACE_O_TRACESYSGOOD).
const SYSTEM_CALL: i32 = libc::SIGTRAP | 0x80;
/// Message queues live in a file system of their own.
const QUEUES: &str = "/dev/mqueue";

/// How far a process is from the one that makes the container, which is 0; its first process is 1.
type Depth = u8;

/// A process that is traced.
#[derive(Debug, Default)]
struct Process {
    depth: Depth,
    /// Whether it, or one that it comes from, has executed a program in the container.
    counts: bool,
    /// The call that it is in.
    call: Option<Call>,
}

/// What a system call does when it succeeds.
#[derive(Debug, Default)]
struct Call {
    /// It opens something in this way.
    opens: Option<OFlag>,
    /// What it opens is not there yet, and is made in this directory.
    creates: Option<String>,
    /// It executes this.
    executes: Option<String>,
    /// It uses these.
    uses: Vec<(Access, String)>,
}

/// Follows `shim`, which waits for `go`, until it has ended.
///
/// # Errors
///
/// The kernel refuses: it takes root, and a `ptrace_scope` below 3.
pub(super) fn follow(shim: i32, go: impl FnOnce() -> io::Result<()>) -> io::Result<Record> {
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(Pid::from_raw(shim), options)?;
    let mut tracer = Tracer::default();
    tracer.processes.insert(shim, Process::default());
    go()?;
    loop {
        let (pid, status) = sys::wait()?;
        if libc::WIFSTOPPED(status) {
            tracer.stopped(pid, libc::WSTOPSIG(status), status >> 16);
        } else {
            tracer.processes.remove(&pid);
            if pid == shim {
                return Ok(tracer.record);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Tracer {
    processes: HashMap<i32, Process>,
    /// Those that have stopped before their parents told of them.
    early: HashSet<i32>,
    record: Record,
}

impl Tracer {
    fn stopped(&mut self, pid: i32, signal: i32, event: i32) {
        if !self.processes.contains_key(&pid) {
            self.early.insert(pid);
            return;
        }
        let mut passed_on = 0;
        match event {
            0 if signal == SYSTEM_CALL => self.system_call(pid),
            0 => passed_on = signal,
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => self.born(pid),
            libc::PTRACE_EVENT_EXEC => self.executed(pid),
            _ => {}
        }
        self.resume(pid, passed_on);
    }

    fn resume(&self, pid: i32, signal: i32) {
        let watched = self.processes.get(&pid).is_some_and(|process| process.depth > 1);
        sys::resume(pid, if watched { Resume::ToSystemCall } else { Resume::Freely }, signal);
    }

    fn born(&mut self, parent: i32) {
        let child = ptrace::getevent(Pid::from_raw(parent)).ok().and_then(|child| i32::try_from(child).ok());
        let (Some(child), Some(process)) = (child, self.processes.get(&parent)) else { return };
        let (depth, counts) = (process.depth.saturating_add(1), process.counts);
        self.processes.insert(child, Process { depth, counts, call: None });
        if self.early.remove(&child) {
            self.resume(child, 0);
        }
    }

    /// A program has replaced another. The container's first process executes itself.
    fn executed(&mut self, pid: i32) {
        // Of a process with threads, the one that called has taken the first one's number.
        let before = ptrace::getevent(Pid::from_raw(pid)).ok().and_then(|before| i32::try_from(before).ok());
        let called = match before.filter(|before| *before != pid) {
            Some(before) => self.processes.remove(&before).and_then(|process| process.call),
            None => self.processes.get_mut(&pid).and_then(|process| process.call.take()),
        };
        let Some(process) = self.processes.get_mut(&pid).filter(|process| process.depth > 1) else { return };
        process.counts = true;
        // The call itself has not returned yet.
        process.call = Some(Call::default());
        self.record.call(number(libc::SYS_execve));
        if let Some(path) = called.and_then(|call| call.executes) {
            self.record.path(Access::Execute, &path);
        }
        // What is mapped is the program, or the one that a script names, and what loads it.
        for path in mapped(pid) {
            self.record.path(Access::Execute, &path);
        }
    }

    /// A process has come to a system call, or back from it.
    fn system_call(&mut self, pid: i32) {
        let Ok(registers) = ptrace::getregs(Pid::from_raw(pid)) else { return };
        let Some(process) = self.processes.get_mut(&pid) else { return };
        match process.call.take() {
            None => {
                let call = Caller { pid }.call(&registers);
                if process.counts {
                    self.record.call(registers.orig_rax);
                }
                process.call = Some(call);
            }
            Some(call) if process.counts && registers.rax.cast_signed() >= 0 => {
                if let Some(flags) = call.opens {
                    self.opened(pid, registers.rax, flags, call.creates);
                }
                for (access, path) in call.uses {
                    self.record.path(access, &path);
                }
            }
            Some(_) => {}
        }
    }

    fn opened(&mut self, pid: i32, descriptor: u64, flags: OFlag, creates: Option<String>) {
        // A pipe or a socket has no path.
        let path = link(&format!("/proc/{pid}/fd/{descriptor}")).filter(|path| path.starts_with('/'));
        let Some(path) = path else { return };
        if let Some(directory) = creates {
            self.record.path(Access::Write, &directory);
        }
        // What has no name any more is where it was: so is a file over which another one is mounted.
        let path = path.trim_end_matches(" (deleted)");
        if flags.contains(OFlag::O_PATH) {
            return;
        }
        let mode = flags & OFlag::O_ACCMODE;
        if mode != OFlag::O_WRONLY {
            self.record.path(Access::Read, path);
        }
        if mode != OFlag::O_RDONLY || flags.contains(OFlag::O_TRUNC) {
            self.record.path(Access::Write, path);
        }
    }
}

/// A system call's number, which is never negative.
fn number(call: i64) -> u64 {
    call.unsigned_abs()
}

/// A stopped process, whose memory and files are looked at.
struct Caller {
    pid: i32,
}

impl Caller {
    /// What the call that it has come to will do.
    fn call(&self, registers: &libc::user_regs_struct) -> Call {
        let (a, b, c, d) = (registers.rdi, registers.rsi, registers.rdx, registers.r10);
        // An int, in the lower half of the register.
        let int = |value: u64| (value & 0xffff_ffff) as u32;
        let fd = |value: u64| int(value).cast_signed();
        let flags = |value: u64| OFlag::from_bits_retain(fd(value));
        let mut call = Call::default();
        match i64::try_from(registers.orig_rax).unwrap_or(-1) {
            libc::SYS_open => self.opens(&mut call, libc::AT_FDCWD, a, flags(b)),
            libc::SYS_creat => {
                self.opens(&mut call, libc::AT_FDCWD, a, OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_TRUNC);
            }
            libc::SYS_openat => self.opens(&mut call, fd(a), b, flags(c)),
            libc::SYS_openat2 => {
                let bytes = self.memory(c, 8).and_then(|bytes| bytes.first_chunk().copied());
                let how = bytes.map_or(0, u64::from_le_bytes);
                self.opens(&mut call, fd(a), b, flags(how));
            }
            libc::SYS_truncate => {
                let path = self.path(a).and_then(|path| self.resolve(libc::AT_FDCWD, &path));
                call.uses.extend(path.map(|path| (Access::Write, path)));
            }
            libc::SYS_mkdir | libc::SYS_rmdir | libc::SYS_unlink | libc::SYS_mknod => {
                self.changes(&mut call, libc::AT_FDCWD, a);
            }
            libc::SYS_mkdirat | libc::SYS_unlinkat | libc::SYS_mknodat => self.changes(&mut call, fd(a), b),
            libc::SYS_symlink => self.changes(&mut call, libc::AT_FDCWD, b),
            libc::SYS_symlinkat => self.changes(&mut call, fd(b), c),
            libc::SYS_rename | libc::SYS_link => {
                self.moves(&mut call, [(libc::AT_FDCWD, a), (libc::AT_FDCWD, b)])
            }
            libc::SYS_renameat | libc::SYS_renameat2 | libc::SYS_linkat => {
                self.moves(&mut call, [(fd(a), b), (fd(c), d)]);
            }
            libc::SYS_bind => self.binds(&mut call, b, c),
            libc::SYS_execve => {
                call.executes = self.path(a).and_then(|path| self.resolve(libc::AT_FDCWD, &path));
            }
            libc::SYS_execveat => call.executes = self.path(b).and_then(|path| self.resolve(fd(a), &path)),
            libc::SYS_mq_open => {
                call.uses = [Access::Read, Access::Write].map(|access| (access, QUEUES.to_owned())).into();
            }
            _ => {}
        }
        call
    }

    fn opens(&self, call: &mut Call, directory: i32, path: u64, flags: OFlag) {
        call.opens = Some(flags);
        let Some(path) = self.path(path) else { return };
        if flags.contains(OFlag::O_TMPFILE) {
            call.uses.extend(self.resolve(directory, &path).map(|path| (Access::Write, path)));
        } else if flags.contains(OFlag::O_CREAT) && self.resolve(directory, &path).is_none() {
            call.creates = self.parent(directory, &path);
        }
    }

    /// It makes or removes something.
    fn changes(&self, call: &mut Call, directory: i32, path: u64) {
        let parent = self.path(path).and_then(|path| self.parent(directory, &path));
        call.uses.extend(parent.map(|path| (Access::Write, path)));
    }

    /// It puts something from one directory into another one, where it must not become more than it was.
    fn moves(&self, call: &mut Call, ends: [(i32, u64); 2]) {
        let parents =
            ends.map(|(directory, path)| self.path(path).and_then(|path| self.parent(directory, &path)));
        let apart = parents.iter().flatten().collect::<HashSet<_>>().len() > 1;
        for parent in parents.into_iter().flatten() {
            if apart {
                call.uses.push((Access::Read, parent.clone()));
            }
            call.uses.push((Access::Write, parent));
        }
    }

    /// It gives a socket a name in the file system.
    fn binds(&self, call: &mut Call, address: u64, length: u64) {
        let Some(bytes) = self.memory(address, length.min(MAX_SOCKET_PATH + 2)) else { return };
        let Some((family, name)) = bytes.split_first_chunk::<2>() else { return };
        let unix = i32::from(u16::from_le_bytes(*family)) == libc::AF_UNIX;
        let name = name.split(|byte| *byte == 0).next().filter(|name| unix && !name.is_empty());
        let parent = name.and_then(|name| self.parent(libc::AT_FDCWD, &String::from_utf8_lossy(name)));
        call.uses.extend(parent.map(|path| (Access::Write, path)));
    }

    fn memory(&self, address: u64, length: u64) -> Option<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(length).ok()?.min(MAX_PATH)];
        let file = File::open(format!("/proc/{}/mem", self.pid)).ok()?;
        file.read_exact_at(&mut bytes, address).ok().map(|()| bytes)
    }

    /// The text at an address, up to its zero byte. A page is read at a time, since the next one may not be there.
    fn path(&self, address: u64) -> Option<String> {
        let mut text = Vec::new();
        while text.len() < MAX_PATH {
            let at = address.checked_add(u64::try_from(text.len()).ok()?)?;
            let piece = self.memory(at, PAGE - at % PAGE)?;
            let end = piece.iter().position(|byte| *byte == 0);
            text.extend_from_slice(piece.get(..end.unwrap_or(piece.len()))?);
            if end.is_some() {
                return String::from_utf8(text).ok();
            }
        }
        None
    }

    /// Where a path leads in the container, if there is something.
    fn resolve(&self, directory: i32, path: &str) -> Option<String> {
        let absolute = if path.starts_with('/') {
            path.to_owned()
        } else {
            let base = match directory {
                libc::AT_FDCWD => link(&format!("/proc/{}/cwd", self.pid))?,
                descriptor => link(&format!("/proc/{}/fd/{descriptor}", self.pid))?,
            };
            format!("{base}/{path}")
        };
        let root = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY);
        let root = openat2(AT_FDCWD, format!("/proc/{}/root", self.pid).as_str(), root).ok()?;
        let inside = absolute.trim_start_matches('/');
        let how =
            OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let found = openat2(&root, if inside.is_empty() { "." } else { inside }, how).ok()?;
        link(&format!("/proc/self/fd/{}", found.as_raw_fd()))
    }

    /// The directory that a path's last name is in.
    fn parent(&self, directory: i32, path: &str) -> Option<String> {
        let path = path.trim_end_matches('/');
        match path.rsplit_once('/') {
            Some(("", _)) => Some("/".to_owned()),
            Some((parent, _)) => self.resolve(directory, parent),
            None => self.resolve(directory, "."),
        }
    }
}

fn link(path: &str) -> Option<String> {
    fs::read_link(path).ok()?.into_os_string().into_string().ok()
}

/// The files that a process has mapped.
fn mapped(pid: i32) -> HashSet<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let files = maps.lines().filter_map(|line| line.find('/').and_then(|at| line.get(at..)));
    files.map(str::to_owned).collect()
}
