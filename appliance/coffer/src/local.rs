//! What `coffer up` runs on this machine: its folder, its processes, and how they end.
//!
//! One folder for each repository, which only its user can read. It holds a file that names the processes; a process is ended when its
//! number and its start are those that stand there, so that nobody else's is, whatever became of the number.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam_protocol::Repository;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::cache::state_place;
use crate::failure::{Failure, Outcome};
use crate::files;

/// The processes of a folder.
const PROCESSES: &str = "processes.json";
/// The largest file here that is read.
const LARGEST: usize = 256 << 10;
/// A machine is given half a minute to power off before its power is cut.
const ENDING: Duration = Duration::from_secs(60);
/// How often it is looked whether a process has ended.
const LOOK: Duration = Duration::from_millis(100);

/// A process that was started here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Process {
    /// What it is, for people.
    pub(crate) name: String,
    pid: i32,
    /// When it was started, in clock ticks since the boot of this machine (proc(5), field 22).
    started: u64,
}

impl Process {
    fn of(name: &str, pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        Some(Self { name: name.to_owned(), pid, started: started(pid)? })
    }

    /// Whether it is still there, as itself.
    pub(crate) fn runs(&self) -> bool {
        started(self.pid) == Some(self.started)
    }

    fn signal(&self, signal: Signal) {
        if self.runs() {
            // It may have ended since: then it has what is wanted.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// When the process with this number was started; `None` when there is none, or one that has ended and was not waited for.
fn started(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    (state != "Z" && state != "X").then(|| fields.nth(18)?.parse().ok())?
}

/// The folder of one appliance on this machine.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) folder: PathBuf,
    pub(crate) repository: Repository,
}

impl Local {
    /// Where it is, or would be.
    pub(crate) fn of(repository: &Repository) -> Outcome<Self> {
        // No part of a repository's name has a plus sign.
        let name = repository.to_string().replace('/', "+");
        Ok(Self { folder: all()?.join(name), repository: repository.clone() })
    }

    /// Those that there are.
    pub(crate) fn existing() -> Outcome<Vec<Self>> {
        let Ok(entries) = std::fs::read_dir(all()?) else { return Ok(Vec::new()) };
        let named = |entry: std::fs::DirEntry| {
            let repository = entry.file_name().to_str()?.replace('+', "/").parse().ok()?;
            Some(Self { folder: entry.path(), repository })
        };
        Ok(entries.flatten().filter_map(named).collect())
    }

    /// Makes the folder. One of an earlier run of which nothing runs any more is replaced.
    pub(crate) fn create(&self) -> Outcome {
        if self.folder.exists() {
            if let Some(process) = self.processes()?.into_iter().find(Process::runs) {
                return Err(Failure::failed(format!("{} is up already ({})", self.repository, process.name))
                    .hint(format!("coffer down {}", self.repository)));
            }
            self.remove()?;
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        made.map_err(|error| Failure::failed(format!("cannot make {}: {error}", self.folder.display())))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file here as text; `None` when there is none.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        files::read_text(&self.path(name), LARGEST).ok()
    }

    /// Starts a process that outlives this one. What it prints goes to `NAME.log`.
    pub(crate) fn start(&self, name: &str, command: &mut Command) -> Outcome<std::process::Child> {
        let failed = |error: std::io::Error| Failure::failed(format!("cannot start {name}: {error}"));
        let log = File::create(self.path(&format!("{name}.log"))).map_err(failed)?;
        let errors = log.try_clone().map_err(failed)?;
        let child = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().map_err(failed)?;
        let mut processes = self.processes()?;
        processes.extend(Process::of(name, child.id()));
        let json = serde_json::to_vec(&processes).map_err(|error| Failure::failed(error.to_string()))?;
        files::write(&self.path(PROCESSES), &json)?;
        Ok(child)
    }

    /// The processes that were started here, the first one first.
    pub(crate) fn processes(&self) -> Outcome<Vec<Process>> {
        let path = self.path(PROCESSES);
        if !path.exists() {
            return Ok(Vec::new());
        }
        serde_json::from_slice(&files::read(&path, LARGEST)?)
            .map_err(|error| Failure::failed(format!("{}: {error}", path.display())))
    }

    /// Ends what was started here, the last one first, and removes the folder.
    pub(crate) fn end(&self) -> Outcome {
        let processes = self.processes()?;
        for process in processes.iter().rev() {
            process.signal(Signal::SIGTERM);
            let deadline = Instant::now() + ENDING;
            while process.runs() && Instant::now() < deadline {
                std::thread::sleep(LOOK);
            }
            if process.runs() {
                return Err(Failure::failed(format!(
                    "{} (process {}) has not ended in {ENDING:?}",
                    process.name, process.pid
                ))
                .hint(format!("look at {} before you end it yourself", self.folder.display())));
            }
        }
        self.remove()
    }

    fn remove(&self) -> Outcome {
        std::fs::remove_dir_all(&self.folder)
            .map_err(|error| Failure::failed(format!("cannot remove {}: {error}", self.folder.display())))
    }
}

/// The folder of all of them.
fn all() -> Outcome<PathBuf> {
    let state = state_place().ok_or_else(|| Failure::usage("HOME is not set"))?;
    Ok(state.join("coffer/up"))
}

/// A checkout of Cofferdam: the one that is named, or one that this program or the present directory is in.
pub(crate) fn checkout(named: Option<&Path>) -> Outcome<PathBuf> {
    let is_one = |folder: &&Path| folder.join("ci/simulate").is_file() && folder.join("ci/boot").is_file();
    if let Some(folder) = named {
        let found = Some(folder).filter(is_one);
        let none = || Failure::usage(format!("{} is no checkout of Cofferdam", folder.display()));
        return absolute(found.ok_or_else(none)?);
    }
    let places = [std::env::current_exe().ok(), std::env::current_dir().ok()];
    let found = places.iter().flatten().find_map(|place| place.ancestors().find(is_one));
    let found = found.ok_or_else(|| {
        Failure::usage("a machine is started by ci/boot of a checkout of Cofferdam, and there is none here")
            .hint("git clone https://github.com/cofferdam/cofferdam, and name it with --checkout DIR")
    })?;
    absolute(found)
}

/// A path that means the same in every directory.
pub(crate) fn absolute(path: &Path) -> Outcome<PathBuf> {
    path.canonicalize().map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(folder: &Path) -> Local {
        Local { folder: folder.join("acme+shop"), repository: "acme/shop".parse().unwrap() }
    }

    #[test]
    fn what_was_started_is_ended_and_nothing_else() {
        let room = tempfile::tempdir().unwrap();
        let local = local(room.path());
        local.create().unwrap();
        let mut child = local.start("sleeper", Command::new("sleep").arg("600")).unwrap();
        let [process] = &local.processes().unwrap()[..] else { panic!() };
        assert!(process.runs());
        let again = local.create().unwrap_err();
        assert_eq!(again.hint.as_deref(), Some("coffer down acme/shop"));
        // The number of somebody else's process, which began at another time.
        let other = Process { started: process.started.wrapping_add(1), ..process.clone() };
        assert!(!other.runs());
        other.signal(Signal::SIGKILL);
        assert!(process.runs());
        local.end().unwrap();
        assert!(!local.folder.exists() && !process.runs());
        child.wait().unwrap();
    }

    #[test]
    fn only_its_user_reads_the_folder_and_what_is_left_of_a_dead_run_is_replaced() {
        use std::os::unix::fs::PermissionsExt as _;
        let room = tempfile::tempdir().unwrap();
        let local = local(room.path());
        local.create().unwrap();
        assert_eq!(std::fs::metadata(&local.folder).unwrap().permissions().mode() & 0o777, 0o700);
        local.start("true", &mut Command::new("true")).unwrap().wait().unwrap();
        std::fs::write(local.path("left"), "over").unwrap();
        local.create().unwrap();
        assert!(local.text("left").is_none());
    }
}
