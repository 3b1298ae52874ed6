//! Probes of a workload's health: a program of its image inside the container, or a connection from the shim, which is in the
//! workload's network.
//!
//! # A program
//!
//! A process of the container waits for the shim's word and runs the program, one at a time. It went the workload's own way
//! into the container ([`init`](crate::init)): the same user, groups and capabilities, seccomp profile, Landlock rules, limits
//! and control group, in a user namespace of its own of the same ids. So a probe can do what the workload can and nothing
//! more, and what it takes is the service's. It is told how long the program may take and nothing else; what runs is
//! decided before the container starts.
//!
//! # What comes back
//!
//! The workload is whatever it asks, so an answer says how a service is to whoever believes the service. Neither of them sends
//! the other signals, since each is in a Landlock domain of its own. An answer is bounded, and its text goes through the redactor
//! before anybody sees it.

use std::ffi::CString;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use cofferdam_protocol::status::{Health, MAX_HEALTH_OUTPUT};
use cofferdam_protocol::visible;
use cofferdam_redact::Redactor;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, execve, pipe2, setsid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::health::{self, Check, Test};
use crate::narrow::Narrow;
use crate::sys;

/// Bytes of a program's output that are kept; Docker keeps as many.
pub const MAX_OUTPUT: usize = 4096;
/// How long a program that was ended may take to be gone.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// How often to look whether a program has ended that has closed its output, or whose children have not.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes of an HTTP answer that are read: `HTTP/1.1 200 ` and some of the reason.
const STATUS_LINE: usize = 128;

/// How a probe went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether it says healthy.
    pub succeeded: bool,
    /// What it printed or met, not redacted; at most [`MAX_OUTPUT`] bytes and a line.
    pub output: Vec<u8>,
}

impl Answer {
    fn failed(why: impl Into<String>) -> Self {
        Self { succeeded: false, output: why.into().into_bytes() }
    }
}

/// The kinds of what comes back: it exited with this code, it took too long, it could not be executed.
const EXITED: u8 = b'e';
/// See [`EXITED`].
const LATE: u8 = b't';
/// See [`EXITED`].
const BROKEN: u8 = b'x';
/// Kind, exit code (i32, little-endian), length of the output (u16, little-endian).
const HEAD: usize = 7;

/// The shim's end of the process that runs programs.
#[derive(Debug)]
pub struct Prober(tokio::net::UnixStream);

impl Prober {
    /// Of the socket whose other end that process has.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self(tokio::net::UnixStream::from_std(stream)?))
    }

    /// Has the program run.
    async fn run(&mut self, limit: Duration) -> io::Result<Answer> {
        let milliseconds = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX).max(1);
        self.0.write_all(&milliseconds.to_le_bytes()).await?;
        let mut head = [0; HEAD];
        self.0.read_exact(&mut head).await?;
        let [kind, a, b, c, d, low, high] = head;
        let length = usize::from(u16::from_le_bytes([low, high])).min(MAX_OUTPUT);
        let mut output = vec![0; length];
        self.0.read_exact(&mut output).await?;
        let code = i32::from_le_bytes([a, b, c, d]);
        let said = match kind {
            EXITED => {
                return Ok(Answer {
                    succeeded: code == 0,
                    output: named(&format!("exit code {code}"), output),
                });
            }
            LATE => format!("no answer within {limit:?}"),
            _ => "it cannot be executed".to_owned(),
        };
        Ok(Answer { succeeded: false, output: named(&said, output) })
    }
}

/// The probes of one run of a workload. They end with this.
#[derive(Debug)]
pub struct Probing {
    said: mpsc::Receiver<Health>,
    task: JoinHandle<()>,
}

impl Probing {
    /// Probes from now on. What a probe prints is shown without what `redactor` knows.
    pub fn start(
        check: Check,
        prober: Option<Prober>,
        address: Option<Ipv4Addr>,
        redactor: Redactor,
    ) -> Self {
        let (says, said) = mpsc::channel(1);
        Self { said, task: tokio::spawn(probing(check, prober, address, redactor, says)) }
    }

    /// What they add up to after the next one; never, when there are none.
    pub async fn next(probing: &mut Option<Self>) -> Health {
        match probing {
            Some(probing) => match probing.said.recv().await {
                Some(health) => health,
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn probing(
    check: Check,
    mut prober: Option<Prober>,
    address: Option<Ipv4Addr>,
    redactor: Redactor,
    says: mpsc::Sender<Health>,
) {
    let started = Instant::now();
    let mut health = health::Health::new(check.schedule);
    loop {
        tokio::time::sleep(health.wait(started.elapsed())).await;
        let answer = probe(&check.test, prober.as_mut(), address, check.schedule.timeout).await;
        health.heard(answer.succeeded, started.elapsed());
        let output = shown(&redactor, &answer.output);
        let report = Health { state: health.state(), failures: health.failures(), output };
        if says.send(report).await.is_err() {
            return;
        }
    }
}

/// What is shown of a probe's output: one line without secrets. Where it was cut off, a secret's beginning is not told from other text,
/// so what could be one is left out.
fn shown(redactor: &Redactor, output: &[u8]) -> Option<String> {
    let mut stream = redactor.stream();
    let mut clean = Vec::new();
    stream.push(output, &mut clean);
    if output.len() < MAX_OUTPUT {
        stream.finish(&mut clean);
    }
    let text = String::from_utf8_lossy(&clean);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line: String = words.chars().map(visible).collect();
    let end = line
        .char_indices()
        .map(|(at, c)| at + c.len_utf8())
        .take_while(|end| *end <= MAX_HEALTH_OUTPUT)
        .last();
    Some(line.get(..end?)?.to_owned())
}

/// What happened, before what was printed.
fn named(what: &str, output: Vec<u8>) -> Vec<u8> {
    if output.is_empty() { what.as_bytes().to_vec() } else { [what.as_bytes(), b": ", &output].concat() }
}

/// Tries once. Whatever goes wrong is a failure of the probe.
pub async fn probe(
    test: &Test,
    prober: Option<&mut Prober>,
    address: Option<Ipv4Addr>,
    limit: Duration,
) -> Answer {
    let tried = async {
        match (test, prober) {
            (Test::Program(_), Some(prober)) => prober.run(limit).await,
            (Test::Program(_), None) => Err(io::ErrorKind::NotFound.into()),
            (Test::Http { port, path }, _) => http(connect(*port, address).await?, path).await,
            (Test::Tcp { port }, _) => {
                connect(*port, address).await?;
                Ok(Answer { succeeded: true, output: Vec::new() })
            }
        }
    };
    // A program is given its time inside, and then some to be ended in.
    let patience =
        if matches!(test, Test::Program(_)) { limit.saturating_add(2 * KILL_GRACE) } else { limit };
    match tokio::time::timeout(patience, tried).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) if matches!(test, Test::Program(_)) => {
            Answer::failed("the process that runs the probe has ended")
        }
        Ok(Err(error)) => Answer::failed(error.to_string()),
        Err(_) => Answer::failed(format!("no answer within {limit:?}")),
    }
}

/// Connects to the workload where its published ports lead: on its loopback, or else at its address.
async fn connect(port: u16, address: Option<Ipv4Addr>) -> io::Result<TcpStream> {
    match TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
        Ok(stream) => Ok(stream),
        Err(error) => match address {
            Some(address) => TcpStream::connect(SocketAddr::from((address, port))).await,
            None => Err(error),
        },
    }
}

/// The status of a `GET`. Nothing else of the answer is looked at.
async fn http(mut stream: TcpStream, path: &str) -> io::Result<Answer> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: cofferdam\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut line = Vec::new();
    let mut bounded = stream.take(STATUS_LINE as u64);
    while !line.contains(&b'\n') && bounded.read_buf(&mut line).await? > 0 {}
    Ok(match status(&line) {
        Some(code) => {
            Answer { succeeded: (200..400).contains(&code), output: format!("HTTP {code}").into_bytes() }
        }
        None => Answer::failed("not an HTTP answer"),
    })
}

/// RFC 9112 §4: `HTTP/1.1 200 `, and whatever follows.
fn status(line: &[u8]) -> Option<u16> {
    let rest = line.strip_prefix(b"HTTP/1.")?.get(1..)?.strip_prefix(b" ")?;
    let digits = rest.get(..3)?;
    let ends = rest.get(3).is_none_or(|next| !next.is_ascii_digit());
    let code = std::str::from_utf8(digits).ok()?;
    code.bytes().all(|byte| byte.is_ascii_digit()).then(|| code.parse().ok())?.filter(|_| ends)
}

/// What the process in the container runs.
pub(crate) struct Program {
    /// Where it may be, in order.
    pub(crate) candidates: Vec<String>,
    /// argv.
    pub(crate) arguments: Vec<CString>,
    /// `NAME=value`.
    pub(crate) environment: Vec<CString>,
    /// The service's own profile.
    pub(crate) narrow: Narrow,
}

/// Runs the program as often as the shim asks, until the shim is gone. The caller has one thread, and is confined already.
pub(crate) fn serve(mut channel: UnixStream, program: &Program) -> io::Result<()> {
    let mut asked = [0; 4];
    loop {
        match channel.read_exact(&mut asked) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            outcome => outcome?,
        }
        let limit = Duration::from_millis(u32::from_le_bytes(asked).into());
        let (kind, code, output) = run(program, limit)?;
        let length = u16::try_from(output.len()).unwrap_or_default();
        let mut said = vec![kind];
        said.extend_from_slice(&code.to_le_bytes());
        said.extend_from_slice(&length.to_le_bytes());
        said.extend_from_slice(&output);
        channel.write_all(&said)?;
    }
}

/// Runs it once.
fn run(program: &Program, limit: Duration) -> io::Result<(u8, i32, Vec<u8>)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let Some(pid) = sys::fork()? else {
        let errno = become_program(program, &writer);
        // 126 and 127 as a shell would have it.
        sys::leave(if errno == Errno::ENOENT { 127 } else { 126 })
    };
    drop(writer);
    let deadline = Instant::now() + limit;
    let mut output = Vec::new();
    let mut open = true;
    let ended = loop {
        open = open && drain(&reader, &mut output);
        if let Some(code) = exited(pid, WaitPidFlag::WNOHANG) {
            break Some(code);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break None;
        }
        let pause = PollTimeout::try_from(LOOK.min(left)).unwrap_or(PollTimeout::ZERO);
        if open {
            let _ = poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], pause);
        } else {
            std::thread::sleep(LOOK.min(left));
        }
    };
    // What it started in its session and left behind ends with it.
    let _ = killpg(pid, Signal::SIGKILL);
    let (kind, code) = match ended {
        Some(code) => (EXITED, code),
        None => (LATE, exited(pid, WaitPidFlag::empty()).unwrap_or(-1)),
    };
    drain(&reader, &mut output);
    let kind = if kind == EXITED && matches!(code, 126 | 127) && output.is_empty() { BROKEN } else { kind };
    Ok((kind, code, output))
}

/// How it ended, once it has.
fn exited(pid: Pid, flags: WaitPidFlag) -> Option<i32> {
    match waitpid(pid, Some(flags)) {
        Ok(WaitStatus::Exited(_, code)) => Some(code),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some((signal as i32).saturating_add(128)),
        Ok(_) | Err(Errno::EINTR) => None,
        Err(_) => Some(-1),
    }
}

/// Takes what is there, and keeps the first of it. False once nothing more can come.
fn drain(reader: &OwnedFd, output: &mut Vec<u8>) -> bool {
    let mut buffer = [0; MAX_OUTPUT];
    // As much as a pipe holds, so that a program that prints without end does not keep this from looking at the clock.
    for _ in 0..16 {
        match nix::unistd::read(reader, &mut buffer) {
            Ok(0) => return false,
            Ok(count) => {
                let room = MAX_OUTPUT.saturating_sub(output.len()).min(count);
                output.extend_from_slice(buffer.get(..room).unwrap_or_default());
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return true,
            Err(_) => return false,
        }
    }
    true
}

/// The forked child's side: in a session of its own, with its output in the pipe. Returns only on failure.
fn become_program(program: &Program, output: &OwnedFd) -> Errno {
    let placed =
        setsid().and_then(|_| sys::place(output.as_fd(), 1)).and_then(|()| sys::place(output.as_fd(), 2));
    if let Err(errno) = placed {
        return errno;
    }
    if program.narrow.apply().is_err() {
        return Errno::EPERM;
    }
    let mut answer = Errno::ENOENT;
    for candidate in &program.candidates {
        let Ok(path) = CString::new(candidate.as_str()) else { continue };
        match execve(&path, &program.arguments, &program.environment) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => answer = errno,
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn what_a_probe_prints_is_one_line_without_secrets_and_without_a_secrets_beginning() {
        let redactor = Redactor::new([("token", "correct-horse-battery")]).unwrap();
        let text = |output: &[u8]| shown(&redactor, output);
        assert_eq!(
            text(b"exit code 1: no correct-horse-battery\n\x1b[31m!\n").as_deref(),
            Some("exit code 1: no [redacted:token] \u{fffd}[31m!")
        );
        assert_eq!(text(b" \n"), None);
        // As many bytes as are kept, of which the last are a secret's first.
        let mut long = b"correct-horse-battery ".repeat(MAX_OUTPUT / 22);
        long.extend_from_slice(b"correct-horse-bat");
        long.resize(MAX_OUTPUT, b' ');
        let cut = [&vec![b' '; MAX_OUTPUT - 13][..], b"correct-horse"].concat();
        assert_eq!(text(&cut), None);
        let shown = text(&long).unwrap();
        assert!(shown.len() <= MAX_HEALTH_OUTPUT && !shown.contains("correct"), "{shown}");
    }

    #[test]
    fn a_status_line_is_read_and_nothing_else_is_one() {
        for (line, code) in [
            ("HTTP/1.1 200 OK\r\n", Some(200)),
            ("HTTP/1.0 404 \r\n", Some(404)),
            ("HTTP/1.1 204", Some(204)),
            ("HTTP/1.1 2000 x", None),
            ("HTTP/2 200", None),
            ("HTTP/1.1  200", None),
            ("HTTP/1.1 +20", None),
            ("SSH-2.0-x", None),
            ("", None),
        ] {
            assert_eq!(status(line.as_bytes()), code, "{line}");
        }
    }

    /// A server that answers each connection with these bytes, and its port.
    async fn answering(bytes: &'static [u8]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut asked = [0; 256];
                let _ = stream.read(&mut asked).await;
                let _ = stream.write_all(bytes).await;
            }
        });
        port
    }

    #[tokio::test]
    async fn a_port_is_healthy_when_it_connects_and_a_path_when_it_answers() {
        const LIMIT: Duration = Duration::from_secs(5);
        let try_http = async |bytes| {
            let test = Test::Http { port: answering(bytes).await, path: "/healthz".into() };
            let answer = probe(&test, None, None, LIMIT).await;
            (answer.succeeded, String::from_utf8(answer.output).unwrap())
        };
        assert_eq!(try_http(b"HTTP/1.1 204 No Content\r\n\r\n").await, (true, "HTTP 204".into()));
        assert_eq!(try_http(b"HTTP/1.1 302 Found\r\n\r\n").await, (true, "HTTP 302".into()));
        assert_eq!(try_http(b"HTTP/1.1 503 Busy\r\n\r\n").await, (false, "HTTP 503".into()));
        assert_eq!(try_http(b"hello\n").await, (false, "not an HTTP answer".into()));
        let port = answering(b"").await;
        assert!(probe(&Test::Tcp { port }, None, None, LIMIT).await.succeeded);
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let refused = probe(&Test::Tcp { port: closed }, None, None, LIMIT).await;
        assert!(!refused.succeeded && String::from_utf8_lossy(&refused.output).contains("refused"));
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_or_never_stops_does_not_hold_a_probe() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let test = Test::Http { port, path: "/".into() };
        let answer = probe(&test, None, None, Duration::from_millis(100)).await;
        assert_eq!(answer, Answer::failed("no answer within 100ms"));
        let endless = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = endless.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = endless.accept().await.unwrap();
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        });
        let answer = probe(&Test::Http { port, path: "/".into() }, None, None, Duration::from_secs(5)).await;
        assert_eq!(answer, Answer::failed("not an HTTP answer"));
    }
}
