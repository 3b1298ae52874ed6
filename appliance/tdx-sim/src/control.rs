//! A test's hand inside the simulated machine: the second serial port kills a role of the appliance when asked, and counts descriptors.
//!
//! The appliance has no such door and no switch to open one; yet a test must see what happens when a role dies. So the
//! hand belongs to the simulated *machine*, which exists in no production image. It can change one thing, as
//! every host can do to the whole machine anyway: end a process. It is not there unless the host attached a second serial port.
//!
//! Protocol: one line in, one line of JSON out. `kill ROLE` (`kill vault`, `kill shim web`) sends SIGKILL to the process
//! that PID 1 started as `cofferd ROLE`: `{"killed":true,"pid":N}` or `{"killed":false,"error":"…"}`. `descriptors`
//! answers how many descriptors each role has open: `{"killed":false,"descriptors":{"vault":N,"shim web":N,…}}`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{O_NOCTTY, O_NONBLOCK};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{ControlFlags, SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::Pid;
use serde::Serialize;

/// The second serial port.
pub const PORT: &str = "/dev/ttyS1";
/// Longest request in bytes.
const MAX_LINE: u64 = 256;
/// Longest command line that is looked at, in bytes; a role's is a few words.
const MAX_COMMAND: u64 = 4096;

/// An answer.
#[derive(Debug, Default, Serialize, PartialEq, Eq)]
struct Answer {
    killed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    descriptors: Option<BTreeMap<String, u64>>,
}

/// Serves requests from the port until it goes away. Returns at once when there is no such port.
///
/// # Errors
/// What the port said at the end; the caller may ignore it.
pub fn serve() -> io::Result<()> {
    // Opened without waiting for a carrier, which is then declared to be of no interest; reads wait again.
    let flags = O_NOCTTY | O_NONBLOCK;
    let port = OpenOptions::new().read(true).write(true).custom_flags(flags).open(PORT)?;
    let mut settings = tcgetattr(&port)?;
    cfmakeraw(&mut settings);
    settings.control_flags.insert(ControlFlags::CLOCAL);
    tcsetattr(&port, SetArg::TCSANOW, &settings)?;
    fcntl(&port, FcntlArg::F_SETFL(OFlag::empty()))?;
    converse(&port, &port, Path::new("/proc"))
}

fn converse(from: impl Read, mut to: impl Write, proc: &Path) -> io::Result<()> {
    let mut from = BufReader::new(from);
    loop {
        let mut line = Vec::new();
        if from.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&line);
        let mut answer = serde_json::to_vec(&handle(&line, proc))?;
        answer.push(b'\n');
        to.write_all(&answer)?;
        to.flush()?;
    }
}

fn handle(line: &str, proc: &Path) -> Answer {
    let refused = |error: String| Answer { error: Some(error), ..Answer::default() };
    if line.trim() == "descriptors" {
        return Answer { descriptors: Some(descriptors(proc)), ..Answer::default() };
    }
    let Some(role) = line.trim().strip_prefix("kill ") else {
        return refused("the request is: kill ROLE, or: descriptors".to_owned());
    };
    let pids = role_processes(proc, role);
    match pids.as_slice() {
        [pid] => match kill(Pid::from_raw(*pid), Signal::SIGKILL) {
            Ok(()) => Answer { killed: true, pid: Some(*pid), ..Answer::default() },
            Err(errno) => refused(format!("process {pid}: {errno}")),
        },
        other => refused(format!("{} processes run as {role}, expected one", other.len())),
    }
}

/// Children of PID 1 that were started as `cofferd` with `role` as their arguments.
fn role_processes(proc: &Path, role: &str) -> Vec<i32> {
    roles(proc).into_iter().filter(|(_, words)| words == role).map(|(pid, _)| pid).collect()
}

/// How many descriptors each role has open: the size of `/proc/PID/fd`, since Linux 6.2 (proc_pid_fd(5)), which needs no look into the process.
fn descriptors(proc: &Path) -> BTreeMap<String, u64> {
    let open = |pid: i32| fs::metadata(proc.join(pid.to_string()).join("fd")).map(|about| about.len());
    roles(proc).into_iter().filter_map(|(pid, words)| Some((words, open(pid).ok()?))).collect()
}

/// Children of PID 1 that were started as `cofferd`, and their arguments. What a process executes cannot be looked up: the
/// kernel lets nobody read another process. A workload is no child of PID 1, whatever it calls itself.
fn roles(proc: &Path) -> Vec<(i32, String)> {
    let Ok(entries) = fs::read_dir(proc) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid > 1)
        .filter_map(|pid| {
            let process = proc.join(pid.to_string());
            let role = arguments(&process).filter(|_| parent(&process) == Some(1))?;
            Some((pid, role))
        })
        .collect()
}

/// The fourth field of `stat` (proc_pid_stat(5)); the second may hold anything, so it is counted from its end.
fn parent(process: &Path) -> Option<i32> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// The words after the program's name, separated by spaces; `None` when that is another.
fn arguments(process: &Path) -> Option<String> {
    let mut line = String::new();
    File::open(process.join("cmdline")).ok()?.take(MAX_COMMAND).read_to_string(&mut line).ok()?;
    let words: Vec<&str> = line.trim_end_matches('\0').split('\0').collect();
    words.split_first().filter(|(program, _)| **program == "cofferd").map(|(_, words)| words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A /proc with PID 1 and these processes: (pid, parent, command line).
    fn fake(processes: &[(i32, i32, &str)]) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        for (pid, parent, command) in [(1, 0, "/init")].iter().chain(processes) {
            let directory = proc.path().join(pid.to_string());
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("stat"), format!("{pid} (a) b) S {parent} 1 1 0")).unwrap();
            fs::write(directory.join("cmdline"), command.replace(' ', "\0") + "\0").unwrap();
        }
        proc
    }

    #[test]
    fn a_role_is_found_by_its_words_and_its_parent() {
        let proc = fake(&[
            (20, 1, "cofferd vault"),
            (21, 1, "cofferd shim web"),
            (22, 21, "cofferd shim web"),
            (23, 1, "probe front"),
            (24, 1, "cofferd front"),
            (25, 1, "tdx-sim device"),
        ]);
        assert_eq!(role_processes(proc.path(), "vault"), [20]);
        assert_eq!(role_processes(proc.path(), "shim web"), [21]);
        assert_eq!(role_processes(proc.path(), "front"), [24]);
        for none in ["shim", "web", "device", "", "publish"] {
            assert!(role_processes(proc.path(), none).is_empty(), "{none:?}");
        }
    }

    #[test]
    fn what_it_cannot_do_it_says() {
        let proc = fake(&[(20, 1, "cofferd vault"), (21, 1, "cofferd vault")]);
        for (line, error) in [
            ("kill vault\n", "2 processes run as vault, expected one"),
            ("kill front\n", "0 processes run as front, expected one"),
            ("read vault\n", "the request is: kill ROLE, or: descriptors"),
            ("\n", "the request is: kill ROLE, or: descriptors"),
        ] {
            let expected = Answer { error: Some(error.to_owned()), ..Answer::default() };
            assert_eq!(handle(line, proc.path()), expected);
        }
    }

    #[test]
    fn requests_are_answered_line_by_line() {
        let proc = fake(&[]);
        let mut out = Vec::new();
        converse(&b"kill a\nnonsense\n"[..], &mut out, proc.path()).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], r#"{"killed":false,"error":"0 processes run as a, expected one"}"#);
    }

    #[test]
    fn open_descriptors_are_counted_by_role() {
        let proc =
            fake(&[(20, 1, "cofferd vault"), (21, 1, "cofferd shim web"), (22, 21, "cofferd shim web")]);
        for pid in [20, 21, 22] {
            fs::create_dir(proc.path().join(pid.to_string()).join("fd")).unwrap();
        }
        let size = fs::metadata(proc.path().join("20/fd")).unwrap().len();
        let answer = handle("descriptors\n", proc.path());
        let counted = [("shim web".to_owned(), size), ("vault".to_owned(), size)];
        assert_eq!(answer, Answer { descriptors: Some(counted.into()), ..Answer::default() });
    }

    #[test]
    fn a_process_is_really_killed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        let proc = fake(&[(pid, 1, "cofferd vault")]);
        let answer = handle("kill vault", proc.path());
        assert_eq!(answer, Answer { killed: true, pid: Some(pid), ..Answer::default() });
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }
}
