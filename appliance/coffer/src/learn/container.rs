//! The side of a recording that makes the service's container, as a shim of the appliance does it.
//!
//! It is this program executed anew, which has one thread and a user namespace of its own, and does what it is told line by line over its
//! standard input. What it says are lines, too: [`Said`].

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use caps::CapSet;
use cofferdam_declaration::{ImageReference, SecretRef, Service, Signal};
use cofferdam_redact::Redactor;
use cofferdam_registry::image::RunConfig;
use cofferdam_registry::{Access, Credentials};
use cofferdam_workload::config::Config;
use cofferdam_workload::delivery::Plan;
use cofferdam_workload::dns::Names;
use cofferdam_workload::health::{Check, Test};
use cofferdam_workload::launch::{self, Container, Output};
use cofferdam_workload::network::Network;
use cofferdam_workload::probe::Probing;
use cofferdam_workload::pull::{self, ImageDir};
use cofferdam_workload::resolver::{self, Resolver};
use cofferdam_workload::unpack::Room;
use cofferdam_workload::volume::Volume;
use cofferdam_workload::{SHIM_ID, environment, user};
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt};
use tokio::net::unix::pipe;
use zeroize::Zeroizing;

use super::INIT;
use crate::failure::{Failure, Outcome, chain};

/// What an image may have, which lies in memory here.
const MOST: u64 = 8 << 30;
/// What the service may write, which does so as well.
const WRITABLE: u64 = 1 << 30;
const CHUNK: usize = 64 << 10;
/// This machine, in the network that QEMU gives its guests.
const FROM_THE_GUEST: &str = "10.0.2.2:";

/// What to run.
#[derive(Serialize, Deserialize)]
pub(super) struct Job {
    /// With the directories `root` and one for each volume.
    pub(super) folder: PathBuf,
    pub(super) service: Service,
    /// Certificates that alone are trusted for the image's registry.
    pub(super) ca: Option<String>,
    pub(super) login: Option<Credentials>,
    pub(super) secrets: Vec<(SecretRef, Zeroizing<String>)>,
}

/// What happened.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    /// It waits for the ids of its user namespace.
    Unmapped,
    /// The image is there, and it waits to be traced. Where the service's ports are on this machine.
    Ready { ports: BTreeMap<u16, u16> },
    /// The service runs.
    Started,
    /// It has ended with this code, as a shell counts; whether it had been told to.
    Ended { code: i32, asked: bool },
}

/// The name of a volume's directory.
pub(super) fn volume(index: usize) -> String {
    format!("volume-{index}")
}

fn say(said: &Said) -> Outcome {
    let line = serde_json::to_string(said).map_err(|error| Failure::failed(error.to_string()))?;
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(failed("cannot answer"))
}

fn failed<E: Into<io::Error>>(what: &str) -> impl Fn(E) -> Failure {
    move |error| Failure::failed(format!("{what}: {}", error.into()))
}

/// The next line of what to do. Whoever tells may be gone.
fn told() -> Outcome<String> {
    let mut line = String::new();
    match io::stdin().lock().read_line(&mut line).map_err(failed("cannot hear what to do"))? {
        0 => Err(Failure::failed("nobody says what to do")),
        _ => Ok(line),
    }
}

pub(super) fn run() -> Outcome {
    let job: Job = serde_json::from_str(&Zeroizing::new(told()?))
        .map_err(|error| Failure::failed(format!("not a job: {error}")))?;
    let listeners = listeners(&job.service)?;
    enter_namespace()?;
    let image = ImageDir::at(job.folder.join("root/image"));
    let config = fetch(&job, &image)?;
    let volumes = volumes(&job)?;
    become_shim()?;
    let network = Network::create().map_err(failed("cannot make the service's network"))?;
    let ports = listeners.iter().map(|(port, listener)| {
        listener.local_addr().map(|address| (*port, address.port())).map_err(failed("cannot listen"))
    });
    say(&Said::Ready { ports: ports.collect::<Outcome<_>>()? })?;
    told()?;
    let runtime = runtime()?;
    let ended = runtime.block_on(serve(&job, &image, &config, volumes, listeners));
    drop(network);
    ended
}

fn runtime() -> Outcome<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(failed("cannot start"))
}

/// Where the service's ports are on this machine: at the same number if that is free.
fn listeners(service: &Service) -> Outcome<Vec<(u16, TcpListener)>> {
    let listen = |port: u16| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let listener = listener.or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let listener = listener.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        Ok((port, listener.map_err(failed("cannot listen"))?))
    };
    let targets: std::collections::BTreeSet<u16> = service.ports.iter().map(|port| port.target).collect();
    targets.into_iter().map(listen).collect()
}

/// Becomes root of a user namespace of its own.
fn enter_namespace() -> Outcome {
    let namespaces = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC;
    unshare(namespaces).map_err(failed("cannot make a user namespace"))?;
    say(&Said::Unmapped)?;
    told()?;
    setgroups(&[]).map_err(failed("cannot leave the groups"))?;
    become_id(0)?;
    nix::sys::prctl::set_no_new_privs().map_err(failed("cannot set no_new_privs"))?;
    let none = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).map_err(failed("cannot make mounts private"))
}

fn become_id(id: u32) -> Outcome {
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    setresgid(group, group, group).map_err(failed("cannot change the group"))?;
    setresuid(user, user, user).map_err(failed("cannot change the user"))
}

/// Becomes the id that makes containers, with all capabilities.
fn become_shim() -> Outcome {
    let caps = |error: caps::errors::CapsError| Failure::failed(format!("cannot keep capabilities: {error}"));
    let all = caps::read(None, CapSet::Permitted).map_err(caps)?;
    caps::securebits::set_keepcaps(true).map_err(caps)?;
    become_id(SHIM_ID)?;
    for set in [CapSet::Effective, CapSet::Inheritable, CapSet::Ambient] {
        caps::set(None, set, &all).map_err(caps)?;
    }
    Ok(())
}

fn in_memory(path: &std::path::Path) -> Outcome {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("coffer"), path, Some("tmpfs"), flags, Some("mode=755")).map_err(failed("cannot mount"))
}

/// The image, unpacked into memory. Threads that the fetching needed are gone afterwards.
fn fetch(job: &Job, image: &ImageDir) -> Outcome<RunConfig> {
    in_memory(&job.folder.join("root"))?;
    image.prepare().map_err(failed("cannot make the image's directory"))?;
    let login = job.login.as_ref();
    let login =
        login.map(|login| Credentials { username: login.username.clone(), password: login.password.clone() });
    let access = Access { registry: job.ca.clone(), credentials: login, ..Access::default() };
    let from = here(&job.service.image)?;
    let pulled = runtime()?.block_on(pull::pull(&from, access, image, Room::Memory(MOST), true));
    pulled.map_err(|error| {
        let message = format!("cannot pull {}: {}", job.service.image, chain(&error));
        if error.is_transient() { Failure::could_not_check(message) } else { Failure::failed(message) }
    })?;
    let config = image.finished(&job.service.image.digest());
    config.ok_or_else(|| Failure::failed("the pulled image cannot be read back"))
}

/// Where an image is for this machine, which the appliance that `coffer up --simulate` starts knows by an address of QEMU's.
fn here(image: &ImageReference) -> Outcome<ImageReference> {
    match image.to_string().strip_prefix(FROM_THE_GUEST) {
        Some(rest) => format!("127.0.0.1:{rest}").parse().map_err(|_| Failure::failed("no image")),
        None => Ok(image.clone()),
    }
}

fn volumes(job: &Job) -> Outcome<Vec<Volume>> {
    let one = |(index, declared): (usize, &cofferdam_declaration::VolumeMount)| {
        let source = job.folder.join(volume(index));
        in_memory(&source)?;
        Ok(Volume { source, target: declared.target.clone(), read_only: declared.read_only })
    };
    job.service.volumes.iter().enumerate().map(one).collect()
}

async fn serve(
    job: &Job,
    image: &ImageDir,
    config: &RunConfig,
    volumes: Vec<Volume>,
    listeners: Vec<(u16, TcpListener)>,
) -> Outcome {
    let service = &job.service;
    let resolver =
        Resolver::bind(resolver::ADDRESS).await.map_err(failed("cannot listen as the resolver"))?;
    let mut names = Names::default();
    names.add(&service.name, Ipv4Addr::LOCALHOST);
    resolver.serve(tokio::sync::watch::channel(names).1, None);
    for (port, listener) in listeners {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed("cannot listen"))?;
        tokio::spawn(relay(listener, port));
    }
    let value = |name: &SecretRef| {
        let found = job.secrets.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| Zeroizing::new(value.as_bytes().to_vec()))
    };
    let wrong = |error: &dyn std::error::Error| Failure::failed(chain(error));
    let shown = environment::redacted(service, value).map_err(|error| wrong(&error))?;
    let redactor = Redactor::new(shown.iter().map(|(name, value)| (name.clone(), value.as_slice())));
    let redactor = redactor.map_err(|error| wrong(&error))?;
    let rootfs = image.rootfs();
    let root = nix::fcntl::open(&rootfs, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let root = root.map_err(failed("cannot open the image"))?;
    let account = user::resolve(&root, service.user.as_ref(), &config.user, &service.group_add);
    let account = account.map_err(|error| wrong(&error))?;
    let check = Check::of(&service.healthcheck, &config.health);
    let plan = plan(service, config, &account, rootfs, volumes, check.as_ref())?;
    let delivery =
        environment::deliver(service, config, &account.home, value).map_err(|error| wrong(&error))?;
    let started = launch::start(INIT, &plan, &delivery, None).await;
    let (mut container, output) = started.map_err(|error| wrong(&error))?;
    say(&Said::Started)?;
    let printing = tokio::spawn(print(output, redactor.clone()));
    let mut probing = check.map(|check| Probing::start(check, container.prober(), None, redactor));
    let (code, asked) = until_told(&mut container, &mut probing, service, config).await?;
    let _ = printing.await;
    say(&Said::Ended { code, asked })
}

/// Waits for the service's end, which comes when somebody asks for it at the latest.
async fn until_told(
    container: &mut Container,
    probing: &mut Option<Probing>,
    service: &Service,
    config: &RunConfig,
) -> Outcome<(i32, bool)> {
    let lost = |error: launch::LaunchError| Failure::failed(chain(&error));
    // Not the blocking reader of `told`, which would need a thread.
    let stdin = std::os::fd::AsFd::as_fd(&io::stdin()).try_clone_to_owned().map_err(failed("cannot hear"))?;
    let stdin = pipe::Receiver::from_owned_fd(stdin).map_err(failed("cannot hear"))?;
    let mut lines = tokio::io::BufReader::new(stdin).lines();
    loop {
        tokio::select! {
            end = container.ended() => return Ok((end.map_err(lost)?.code(), false)),
            _ = lines.next_line() => break,
            _ = Probing::next(probing) => {}
        }
    }
    let default = Signal::TERM;
    let signal = service.stop_signal.unwrap_or_else(|| config.stop_signal.parse().unwrap_or(default));
    container.signal(signal.number());
    let grace = service.stop_grace_period.max(Duration::from_secs(1));
    if let Ok(end) = tokio::time::timeout(grace, container.ended()).await {
        return Ok((end.map_err(lost)?.code(), true));
    }
    container.kill();
    Ok((container.ended().await.map_err(lost)?.code(), true))
}

fn plan(
    service: &Service,
    image: &RunConfig,
    account: &user::Account,
    rootfs: PathBuf,
    volumes: Vec<Volume>,
    check: Option<&Check>,
) -> Outcome<Plan> {
    let directory = service.working_dir.as_deref().unwrap_or(&image.working_dir);
    let further: String = service.extra_hosts.iter().map(|(name, at)| format!("{at} {name}\n")).collect();
    let config = |config: &cofferdam_declaration::ConfigFile| Config {
        target: config.target.clone(),
        uid: config.uid,
        gid: config.gid,
        mode: config.mode,
    };
    Ok(Plan {
        rootfs,
        hostname: service.name.clone(),
        hosts: format!("127.0.0.1 localhost\n::1 localhost\n127.0.0.1 {}\n{further}", service.name),
        read_only: service.read_only,
        writable: WRITABLE,
        memory: service.limits.memory.unwrap_or(WRITABLE),
        shm_size: service.shm_size,
        ulimits: service.ulimits,
        tmpfs: service.tmpfs.clone(),
        volumes,
        configs: service.configs.iter().map(config).collect(),
        arguments: environment::arguments(service, image).map_err(|error| Failure::failed(chain(&error)))?,
        probe: check.and_then(|check| match &check.test {
            Test::Program(words) => Some(words.clone()),
            _ => None,
        }),
        working_dir: if directory.starts_with('/') { directory } else { "/" }.to_owned(),
        uid: account.uid,
        gid: account.gid,
        capabilities: service.capabilities.clone(),
        groups: account.groups.clone(),
        // What it has now is what is to be found out anew.
        profile: cofferdam_declaration::Profile::default(),
    })
}

/// Leads connections of this machine to the service.
async fn relay(listener: tokio::net::TcpListener, port: u16) {
    while let Ok((mut outside, _)) = listener.accept().await {
        tokio::spawn(async move {
            if let Ok(mut inside) = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            }
        });
    }
}

/// Shows what the service prints, without its secrets.
async fn print(mut output: Output, redactor: Redactor) {
    tokio::join!(copy(&mut output.stdout, &redactor), copy(&mut output.stderr, &redactor));
}

async fn copy(pipe: &mut pipe::Receiver, redactor: &Redactor) {
    let mut stream = redactor.stream();
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = pipe.read(&mut buffer).await.unwrap_or(0);
        let mut clean = Vec::new();
        match buffer.get(..count).filter(|bytes| !bytes.is_empty()) {
            Some(bytes) => stream.push(bytes, &mut clean),
            None => stream.finish(&mut clean),
        }
        let text: String = String::from_utf8_lossy(&clean)
            .chars()
            .map(|c| if c == '\n' { c } else { cofferdam_protocol::visible(c) })
            .collect();
        let _ = io::stderr().write_all(text.as_bytes());
        if count == 0 {
            return;
        }
    }
}

/// Makes the directories that the child mounts into.
pub(super) fn directories(folder: &std::path::Path, volumes: usize) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o711))?;
    fs::create_dir(folder.join("root"))?;
    (0..volumes).try_for_each(|index| fs::create_dir(folder.join(volume(index))))
}
