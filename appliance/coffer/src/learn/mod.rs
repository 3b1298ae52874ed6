//! `coffer up --learn`: runs one service on this machine, records what it does, and writes that down as its profile.
//!
//! The container is the appliance's own: the same library makes it from the same image, with the same walls. What differs is outside of
//! it, a process that traces it ([`tracer`]). That can only be here: the appliance's kernel lets nobody look into another process, whoever
//! asks, and `cofferd` has no code for it and no switch. Therefore the recorder is part of this program, which no image holds.
//!
//! Recording is not enforcing: a service under record has every right that services have.

mod calls;
mod container;
mod edit;
mod record;
mod sys;
mod tracer;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use cofferdam_declaration::{Declaration, MAX_BYTES, Profile, SECRET_SCHEME, Service};
use cofferdam_registry::Credentials;
use cofferdam_workload::{OUTSIDE_ID, SHIM_ID};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use self::container::{Job, Said};
use self::record::Record;
use crate::cli;
use crate::failure::{Code, Failure, Outcome};
use crate::files;
use crate::progress;
use crate::ui::Ui;
use crate::verbs::{check, secret};

/// argv of this program as the process that makes the container.
const SHIM: [&str; 2] = ["coffer", "learn-shim"];
/// And as the container's first process.
const INIT: &[&str] = &["coffer", "learn-container"];
/// The first of the 65,537 ids of this machine that a recorded service gets. Nobody else's by custom (systemd's containers begin above).
const IDS: u32 = 400_000;
/// Certificates of a registry.
const MAX_CA: usize = 64 << 10;
/// File systems that each service has to itself: what lies there comes and goes.
const OWN: [&str; 6] = ["/proc", "/sys", "/dev/pts", "/dev/shm", "/dev/mqueue", "/run/secrets"];

/// The processes that a recording consists of; `None` where this is the command line.
pub(crate) fn inside() -> Option<ExitCode> {
    let word = std::env::args().nth(1)?;
    let outcome = match word.as_str() {
        _ if Some(&word.as_str()) == INIT.get(1) => {
            cofferdam_workload::init::run().map_err(|error| Failure::failed(error.to_string()))
        }
        _ if Some(&word.as_str()) == SHIM.get(1) => container::run(),
        _ => return None,
    };
    Some(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            Ui::new(false, false, false).failure(&failure);
            ExitCode::from(failure.code as u8)
        }
    })
}

/// Records `name` of the declaration.
pub(crate) async fn run(ui: &Ui, options: &cli::Up, name: &str) -> Outcome {
    let bytes = files::read_or_stdin(&options.declaration, MAX_BYTES)?;
    let file = options.declaration.display().to_string();
    let declaration = Declaration::parse(&bytes).map_err(|mistakes| check::not_valid(&mistakes, &file))?;
    let service = declaration.service(name).ok_or_else(|| {
        let known: Vec<&str> = declaration.services.iter().map(|service| service.name.as_str()).collect();
        Failure::usage(format!("{file} has no service `{name}`")).hint(format!("it has {}", known.join(", ")))
    })?;
    let job = job(&declaration, service, options)?;
    if !nix::unistd::Uid::effective().is_root() {
        return Err(Failure::failed("making a container on this machine takes root").hint("run it with sudo"));
    }
    let (record, succeeded) = Recording::start(ui, job).await?.until(&options.command).await?;
    if let Some(why) = succeeded {
        return Err(Failure::failed(format!("{why}; nothing is written")));
    }
    if record.is_empty() {
        return Err(Failure::failed(format!("{name} did nothing; nothing is written")));
    }
    if !record.is_whole() {
        ui.warn("more paths than can be kept: the profile lacks some");
    }
    let own = service.volumes.iter().map(|volume| &volume.target).chain(&service.tmpfs).cloned();
    let own: Vec<String> = own.chain(OWN.map(str::to_owned)).collect();
    let profile = record.profile(&own);
    write(ui, options, &String::from_utf8_lossy(&bytes), name, &profile)
}

fn write(ui: &Ui, options: &cli::Up, text: &str, name: &str, profile: &Profile) -> Outcome {
    let object = json!({ "service": name, "profile": profile });
    if options.print || options.declaration == Path::new("-") {
        ui.result(&edit::rendered(profile, 0), object);
        return Ok(());
    }
    let file = options.declaration.display();
    let edited = edit::with_profile(text, name, profile).ok_or_else(|| {
        Failure::failed(format!("{name} is not written in {file} as a key on each line"))
            .hint("--print shows the profile, to be put there by hand")
    })?;
    files::write(&options.declaration, edited.as_bytes())?;
    let paths = profile.paths.clone().unwrap_or_default();
    let calls = profile.system_calls.as_ref().map_or(0, std::collections::BTreeSet::len);
    let said = format!(
        "{file}: {name} has a profile of {calls} system calls; it reads {} paths, writes {}, executes {}\nnext:\n  \
         git diff {file}    # what it does is what you wanted\n  coffer up --simulate {file}\n",
        paths.read.len(),
        paths.write.len(),
        paths.execute.len()
    );
    ui.result(&said, object);
    Ok(())
}

fn job(declaration: &Declaration, service: &Service, options: &cli::Up) -> Outcome<Job> {
    let secrets = options.secrets.as_deref().map(secret::values_of).transpose()?.unwrap_or_default();
    let registry = declaration.registry_of(&service.image);
    let login = registry.and_then(|registry| registry.login.as_ref());
    let needed = service.references().into_iter().chain(login.map(|login| &login.password));
    let missing: Vec<String> = needed
        .filter(|name| !secrets.iter().any(|(known, _)| known == *name))
        .map(|name| name.to_string().trim_start_matches(SECRET_SCHEME).to_owned())
        .collect();
    if !missing.is_empty() {
        return Err(Failure::usage(format!("no value for {}", missing.join(", "))).hint(
            "--secrets FILE has them, a line NAMESPACE/NAME/FIELD=value for each; invented ones will do",
        ));
    }
    let login = login.and_then(|login| {
        let (_, password) = secrets.iter().find(|(known, _)| *known == login.password)?;
        Some(Credentials { username: login.username.clone(), password: password.clone() })
    });
    let host = service.image.registry().to_string();
    let given = options.registry.iter().find_map(|given| given.strip_prefix(&host)?.strip_prefix('='));
    let given = given.map(|path| files::read_text(Path::new(path), MAX_CA)).transpose()?;
    Ok(Job {
        folder: std::env::temp_dir().join(format!("coffer-learn-{}", std::process::id())),
        service: service.clone(),
        ca: given.or_else(|| registry.and_then(|registry| registry.ca.clone())),
        login,
        secrets,
    })
}

/// The folder of a recording; gone with this.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // What was mounted in it was so for the container's maker alone, and is gone with that.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A service that runs and is recorded.
struct Recording {
    child: Child,
    tell: File,
    said: mpsc::Receiver<Said>,
    record: oneshot::Receiver<io::Result<Record>>,
    ports: BTreeMap<u16, u16>,
    _folder: Folder,
}

fn failed(what: &str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::failed(format!("{what}: {error}"))
}

impl Recording {
    /// Returns once the service runs.
    async fn start(ui: &Ui, job: Job) -> Outcome<Self> {
        fs::create_dir(&job.folder).map_err(failed("cannot make a folder"))?;
        let folder = Folder(job.folder.clone());
        container::directories(&job.folder, job.service.volumes.len())
            .map_err(failed("cannot make a folder"))?;
        let mut command = Command::new("/proc/self/exe");
        command.args(SHIM.get(1..).unwrap_or_default()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(failed("cannot start"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::failed("cannot talk to the process that makes the container"));
        };
        let mut tell = File::from(std::os::fd::OwnedFd::from(input));
        let mut said = heard(output);
        let job_line = serde_json::to_string(&job).map(Zeroizing::new);
        let job_line = job_line.map_err(|error| Failure::failed(error.to_string()))?;
        let told = tell.write_all(job_line.as_bytes()).and_then(|()| tell.write_all(b"\n"));
        told.map_err(failed("cannot say what to run"))?;
        let Some(Said::Unmapped) = said.recv().await else { return Err(ended_early(&mut child)) };
        for map in ["uid_map", "gid_map"] {
            let ids = format!("0 {} {}\n{SHIM_ID} {IDS} 1\n", IDS + 1, OUTSIDE_ID + 1);
            fs::write(format!("/proc/{}/{map}", child.id()), ids).map_err(failed("cannot map ids"))?;
        }
        tell.write_all(b"mapped\n").map_err(failed("cannot go on"))?;
        let doing = progress::doing("fetching the image");
        let Some(Said::Ready { ports }) = said.recv().await else { return Err(ended_early(&mut child)) };
        drop(doing);
        let pid = i32::try_from(child.id()).map_err(|_| Failure::failed("no process"))?;
        let mut go = tell.try_clone().map_err(failed("cannot go on"))?;
        let (sends, record) = oneshot::channel();
        // All of ptrace(2) is for the thread that began it.
        std::thread::spawn(move || sends.send(tracer::follow(pid, || go.write_all(b"go\n"))));
        let doing = progress::doing("starting the service");
        let Some(Said::Started) = said.recv().await else { return Err(ended_early(&mut child)) };
        drop(doing);
        for (port, here) in &ports {
            ui.note(&format!("{}: port {port} is 127.0.0.1:{here}", job.service.name));
        }
        Ok(Self { child, tell, said, record, ports, _folder: folder })
    }

    /// Runs what uses the service, or waits for Enter, and ends it. What was seen, and why it is not what was wanted, if so.
    async fn until(mut self, command: &[String]) -> Outcome<(Record, Option<String>)> {
        let exercise = self.exercise(command)?;
        let (mut why, mut ended) = (None, None);
        tokio::select! {
            outcome = exercise => why = outcome.unwrap_or_else(|_| Some("the command was lost".to_owned())),
            said = self.said.recv() => ended = Some(said),
        }
        let ended = match ended {
            Some(ended) => ended,
            None => {
                // It may just have ended by itself.
                let _ = self.tell.write_all(b"stop\n");
                self.said.recv().await
            }
        };
        let Some(Said::Ended { code, asked }) = ended else { return Err(ended_early(&mut self.child)) };
        if !asked && code != 0 {
            why = Some(format!("the service ended by itself, with exit code {code}"));
        }
        let record = self.record.await.map_err(|_| Failure::failed("the recording was lost"))?;
        let record = record.map_err(|error| {
            Failure::failed(format!("cannot trace the service: {error}"))
                .hint("kernel.yama.ptrace_scope has to be below 3 on this machine")
        })?;
        Ok((record, why))
    }

    /// What uses the service: it ends with why that did not succeed, if so.
    fn exercise(&self, command: &[String]) -> Outcome<oneshot::Receiver<Option<String>>> {
        let (sends, ended) = oneshot::channel();
        let Some((program, arguments)) = command.split_first() else {
            progress::make_way();
            let _ = writeln!(
                io::stderr(),
                "recording: use the service now, in every way that it is used; Enter ends it"
            );
            // A thread, because a read of the terminal cannot be given up.
            std::thread::spawn(move || {
                let _ = io::stdin().lock().read_line(&mut String::new());
                sends.send(None)
            });
            return Ok(ended);
        };
        let mut command = Command::new(program);
        command.args(arguments);
        command.envs(self.ports.iter().map(|(port, here)| (format!("COFFER_PORT_{port}"), here.to_string())));
        // What it prints is no result of this command.
        command.stdout(io::stderr());
        let mut child = command
            .spawn()
            .map_err(|error| Failure::new(Code::Usage, format!("cannot execute {program}: {error}")))?;
        let program = program.clone();
        std::thread::spawn(move || {
            sends.send(match child.wait() {
                Ok(status) if status.success() => None,
                Ok(status) => Some(format!("{program} failed ({status})")),
                Err(error) => Some(format!("{program}: {error}")),
            })
        });
        Ok(ended)
    }
}

/// What the process that makes the container says, as it comes.
fn heard(output: impl io::Read + Send + 'static) -> mpsc::Receiver<Said> {
    let (says, said) = mpsc::channel(8);
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines() {
            let said = line.ok().and_then(|line| serde_json::from_str(&line).ok());
            if said.is_none_or(|said| says.blocking_send(said).is_err()) {
                return;
            }
        }
    });
    said
}

/// That process has said why, and ended.
fn ended_early(child: &mut Child) -> Failure {
    let code = child.wait().ok().and_then(|status| status.code());
    let code = if code == Some(Code::CouldNotCheck as i32) { Code::CouldNotCheck } else { Code::Failed };
    Failure::new(code, "the service could not be run; nothing is written")
}
