//! `coffer up` and `coffer down`: an appliance on this machine.
//!
//! `--simulate` starts `ci/simulate` of a checkout: a simulated platform, a development GitHub with the declaration, and the machine in
//! QEMU. Then it does what a person would do: makes the state where there is one, hands over the GitHub token and the secrets on the
//! verified channel, waits for the release attestation, verifies it, and leaves a `coffer connect` behind. On a TDX host it starts the
//! production image with the declaration as it is committed; GitHub, its token and the reference values are the user's own there.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cofferdam_declaration::{Declaration, MAX_BYTES, StateSource};
use cofferdam_protocol::status::{NamedService, ServiceState};
use cofferdam_protocol::{Commit, Endpoint, Repository, SecretRef, hex};
use serde::Deserialize;
use serde_json::json;
use tokio::time::sleep;
use zeroize::Zeroizing;

use super::sealed::Target;
use super::{check, seal, secret, status, verify};
use crate::channel::Channel;
use crate::cli;
use crate::failure::{Code, Failure, Outcome};
use crate::files;
use crate::learn;
use crate::local::{Local, absolute, checkout};
use crate::newest::Wanted;
use crate::operator_key::OperatorKey;
use crate::progress;
use crate::source::Source;
use crate::trust::Trust;
use crate::ui::Ui;
use crate::within;

/// How often it is looked whether something is there.
const LOOK: Duration = Duration::from_millis(300);
/// The appliance's own port, which is open whatever its services publish.
const ALWAYS: u16 = 443;
/// Below it a port is root's alone.
const UNPRIVILEGED: u16 = 1024;
/// What is the appliance's 443 here when the declaration's endpoint cannot be.
const ENDPOINT: u16 = 8443;
/// The first port at which `coffer connect` may listen, and how many are tried.
const LISTEN: u16 = 8080;
const PORTS: usize = 100;
/// Of a state disk, what the store and what lies before it take, and more: 257 are enough.
const STORE_MIB: u64 = 1024;
/// For the state to be made and the appliance to launch, under emulation.
const STATE_LIMIT: Duration = Duration::from_secs(600);
/// Where the machine's own log is when it has something to say about its end.
const LAST_LINES: usize = 12;
/// Where KVM says whether this host starts trust domains.
const TDX: &str = "/sys/module/kvm_intel/parameters/tdx";

/// What `ci/simulate` says of its world.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Simulated {
    repository: Repository,
    commit: Commit,
    endpoint: Endpoint,
    references: PathBuf,
    root: PathBuf,
    github_api: String,
    github_ca: PathBuf,
    github_token: Zeroizing<String>,
    sealed: bool,
}

pub(crate) async fn run(ui: &Ui, options: &cli::Up, limit: Duration) -> Outcome {
    if let Some(service) = &options.learn {
        return learn::run(ui, options, service).await;
    }
    let bytes = files::read(&options.declaration, MAX_BYTES)?;
    let name = options.declaration.display().to_string();
    let declaration = Declaration::parse(&bytes).map_err(|mistakes| check::not_valid(&mistakes, &name))?;
    let key = operators_key(&declaration, options)?;
    let checkout = checkout(options.checkout.as_deref())?;
    let image = image(options, &checkout)?;
    let secrets = options.secrets.as_deref().map(secret::values_of).transpose()?.unwrap_or_default();
    let ports = Ports::of(&declaration, options)?;
    let commit = if options.simulate { None } else { Some(committed(&options.declaration, &bytes)?) };
    let local = Local::of(&declaration.repository)?;
    local.create()?;
    // Whoever interrupts this wants nothing left behind.
    let mut left = Left { local: Some(&local) };
    let up = Up { ui, options, declaration: &declaration, key, checkout, image, ports, local: &local };
    let outcome = within(limit, async {
        match commit {
            None => up.simulated(&secrets).await,
            Some(commit) => up.trust_domain(commit).await,
        }
    });
    outcome.await.inspect_err(|_| ui.note("ending what was started …"))?;
    left.local = None;
    Ok(())
}

/// Ends what was started here unless it is to stay.
struct Left<'a> {
    local: Option<&'a Local>,
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        if let Some(local) = self.local {
            let _doing = progress::doing("ending what was started");
            // The command has failed already, and says why.
            let _ = local.end();
        }
    }
}

struct Up<'a> {
    ui: &'a Ui,
    options: &'a cli::Up,
    declaration: &'a Declaration,
    key: OperatorKey,
    checkout: PathBuf,
    image: PathBuf,
    ports: Ports,
    local: &'a Local,
}

/// How the appliance's ports are reached from this machine.
struct Ports {
    /// The one that is the appliance's 443.
    endpoint: u16,
    /// The published ones beside it, the same here and there.
    published: Vec<u16>,
    /// The one that `coffer connect` reaches, if it is not the endpoint's.
    connect: Option<u16>,
    /// Where `coffer connect` listens.
    listen: SocketAddr,
}

impl Ports {
    fn of(declaration: &Declaration, options: &cli::Up) -> Outcome<Self> {
        let declared = &declaration.endpoint;
        let usual = if declared.port() < UNPRIVILEGED { ENDPOINT } else { declared.port() };
        let endpoint = options.port.map_or(usual, std::num::NonZeroU16::get);
        let ports =
            || declaration.services.iter().flat_map(|service| &service.ports).map(|port| port.published);
        let mut published: Vec<u16> = ports().filter(|port| *port != ALWAYS).collect();
        published.sort_unstable();
        published.dedup();
        for port in published.iter().chain([&endpoint]) {
            free(
                SocketAddr::from((Ipv4Addr::LOCALHOST, *port)),
                "--port names another one for the appliance's 443",
            )?;
        }
        let connect = if ports().any(|port| port == ALWAYS) { None } else { ports().next() };
        let listen = match options.listen {
            Some(listen) => free(listen, "--listen 127.0.0.1:0 takes one that is free")?,
            None => (LISTEN..)
                .take(PORTS)
                .filter(|port| *port != endpoint && !published.contains(port))
                .find_map(|port| free(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "").ok())
                .ok_or_else(|| {
                    Failure::failed("no port is free to listen on").hint("name one with --listen ADDR")
                })?,
        };
        Ok(Self { endpoint, published, connect, listen })
    }

    /// For `ci/boot` and `ci/simulate`.
    fn options(&self) -> Vec<String> {
        let forward = |port: &u16| ["--forward".to_owned(), format!("{port}:{port}")];
        let forwards = self.published.iter().flat_map(forward);
        ["--port".to_owned(), self.endpoint.to_string()].into_iter().chain(forwards).collect()
    }
}

impl Up<'_> {
    async fn simulated(&self, secrets: &[(SecretRef, Zeroizing<String>)]) -> Outcome {
        let world = self.world().await?;
        crate::ui::is_simulated(true);
        let appliance = world.appliance(Some(world.endpoint.clone()));
        if self.waits(&world) {
            let text = format!(
                "SIMULATED: {} waits for its state at {}\nnext:\n{}",
                world.repository,
                world.endpoint,
                self.next(&world, &["seal init", "unseal"])
            );
            self.ui.result(&text, self.object(&world, "sealed", &[]));
            return Ok(());
        }
        if world.sealed {
            self.make_state(&world).await?;
        }
        let mut channel = super::patiently(PATIENT, &world.repository, async || {
            super::open(self.ui, &appliance, None).await
        })
        .await?;
        let token = "secret://cofferdam/github/token".parse().map_err(|_| Failure::failed("no name"))?;
        secret::put(&mut channel, &self.key, &token, world.github_token.as_bytes()).await?;
        for (name, value) in secrets {
            secret::put(&mut channel, &self.key, name, value.as_bytes()).await?;
        }
        let appliance = world.appliance(None);
        self.verified(&appliance).await?;
        // The appliance does not keep a silent connection for as long as that may take.
        drop(channel);
        let mut channel = super::open(self.ui, &appliance, None).await?;
        let services = self.settled(&mut channel).await?;
        self.connect(&appliance)?;
        self.ui.result(&self.report(&world, &services), self.object(&world, "running", &services));
        Ok(())
    }

    /// Whether a state has to be opened that is not for this command to make.
    fn waits(&self, world: &Simulated) -> bool {
        world.sealed && self.declaration.state != StateSource::Operator
    }

    /// Makes the state on the new disk. Both end with `coffer down`, so nobody is asked for a passphrase.
    async fn make_state(&self, world: &Simulated) -> Outcome {
        let _doing = progress::doing("making the state");
        let mut quiet = *self.ui;
        (quiet.json, quiet.quiet) = (false, true);
        let options = cli::SealInit {
            appliance: world.appliance(Some(world.endpoint.clone())),
            division: None,
            peer: false,
            recovery_out: Some(self.local.path("recovery.key")),
            accept_loss: false,
            elsewhere: cli::Elsewhere { without_witness: false, declaration: None },
            key: cli::OperatorKey { key: self.options.key.key.clone() },
        };
        // The front has no certificate in the first moment.
        super::patiently(PATIENT, &world.repository, async || {
            let target = Target::find(&quiet, &options.appliance, None).await?;
            target.look(&self.key).await.map(drop)
        })
        .await?;
        let passphrase = Zeroizing::new(hex::encode(seal::random::<32>()?.as_slice()).into_bytes());
        seal::init(&quiet, &options, Some(passphrase), STATE_LIMIT).await
    }

    /// How large a state disk the declaration needs, in MiB, when it needs one. It takes what is written to it.
    fn disk(&self) -> Option<u64> {
        let volumes = self.declaration.sealed_volumes();
        let sizes = volumes.iter().map(|volume| volume.size >> 20);
        (self.declaration.state != StateSource::Memory).then(|| STORE_MIB.saturating_add(sizes.sum()))
    }

    /// Starts the world and waits until its machine has launched.
    async fn world(&self) -> Outcome<Simulated> {
        let tools = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.to_owned()));
        let tools = tools.filter(|folder| folder.join("tdx-sim").is_file()).ok_or_else(|| {
            Failure::usage("tdx-sim is not beside coffer").hint("cargo build -p coffer -p tdx-sim")
        })?;
        let mut command = Command::new(self.checkout.join("ci/simulate"));
        command.arg(&self.local.folder).arg("--declaration").arg(absolute(&self.options.declaration)?);
        command.args(["--repository", &self.declaration.repository.to_string()]);
        command.arg("--image").arg(&self.image).arg("--tools").arg(tools);
        command.args(self.ports.options()).args(["--memory", &self.options.memory]);
        command.args(["--cpus", &self.options.cpus.to_string()]);
        command.args(self.options.registry.iter().flat_map(|registry| ["--registry", registry]));
        if let Some(mib) = self.disk() {
            command.args(["--disk", &mib.to_string()]);
        }
        let mut child = self.local.start("simulate", &mut command)?;
        loop {
            if let Some(text) = self.local.text("up.json") {
                return serde_json::from_str(&text)
                    .map_err(|error| Failure::failed(format!("ci/simulate: {error}")));
            }
            let log = self.local.text("simulate.log").unwrap_or_default();
            if let Ok(Some(ended)) = child.try_wait() {
                return Err(Failure::failed(format!(
                    "the simulated machine did not come up ({ended})\n{}",
                    last_lines(&log)
                )));
            }
            let step = log.lines().rev().find_map(|line| line.strip_prefix("step: "));
            let _doing = progress::doing(step.unwrap_or("starting"));
            sleep(LOOK * 4).await;
        }
    }

    /// Boots the production image as a trust domain and verifies what answers.
    async fn trust_domain(&self, commit: Commit) -> Outcome {
        let mut command = Command::new(self.checkout.join("ci/boot"));
        command.arg("--tdx").arg(&self.image).arg("--declaration").arg(absolute(&self.options.declaration)?);
        command.args(["--commit", &commit.to_string()]).args(self.ports.options());
        command.args(["--memory", &self.options.memory, "--cpus", &self.options.cpus.to_string()]);
        command.arg("--dir").arg(self.local.path("machine"));
        if let Some(mib) = self.disk() {
            command.arg("--state").arg(self.local.path("state.img"));
            command.args(["--state-mib", &mib.to_string()]);
        }
        let mut child = self.local.start("machine", &mut command)?;
        let endpoint: Endpoint = format!("127.0.0.1:{}", self.ports.endpoint)
            .parse()
            .map_err(|_| Failure::failed("no endpoint"))?;
        let options = cli::Appliance {
            repository: self.declaration.repository.clone(),
            endpoint: Some(endpoint.clone()),
            commit: Some(commit),
            trust: self.options.trust.clone(),
            github: self.options.github.clone(),
        };
        super::patiently(PATIENT, &options.repository, async || {
            if let Ok(Some(ended)) = child.try_wait() {
                let log = self.local.text("machine.log").unwrap_or_default();
                return Err(Failure::failed(format!(
                    "the machine has ended ({ended})\n{}",
                    last_lines(&log)
                )));
            }
            super::open_to_read(self.ui, &options).await
        })
        .await?;
        let repository = &options.repository;
        let text = format!(
            "{repository} runs as a trust domain at {endpoint}, verified on a connection to it\nnext:\n  \
             coffer seal init {repository} --endpoint {endpoint}      # with a state on a disk\n  \
             coffer secret put {repository} cofferdam/github/token --endpoint {endpoint}\n  \
             coffer verify {repository} --wait\n  coffer down {repository}\n"
        );
        self.ui.result(
            &text,
            json!({ "repository": repository, "endpoint": endpoint, "commit": commit, "state": "running" }),
        );
        Ok(())
    }

    /// The newest release attestation, accepted.
    async fn verified(&self, appliance: &cli::Appliance) -> Outcome {
        let found = super::patiently(PATIENT, &appliance.repository, async || {
            let trust = Trust::load(&appliance.trust, &appliance.github).await?;
            let source = Source::new(&appliance.repository, &appliance.github)?;
            verify::verified_release(self.ui, &appliance.repository, Wanted::Current, &trust, &source).await
        });
        let found = found.await?;
        self.ui.detail(&format!("verified {}", found.tag));
        Ok(())
    }

    /// The services once all of them are ready, have failed, or wait for what only a person can give.
    async fn settled(&self, channel: &mut Channel) -> Outcome<Vec<NamedService>> {
        let _doing = progress::doing("waiting for the services");
        loop {
            let services = status::ask(channel, &self.key).await?.services;
            let waits =
                |service: &NamedService| service.missing.as_ref().is_some_and(|missing| !missing.is_empty());
            let settled = |service: &NamedService| {
                status::is_ready(service)
                    || waits(service)
                    || matches!(service.state, ServiceState::Failed | ServiceState::Exited)
            };
            // One that waits for another is settled when nothing moves but it.
            let moving =
                services.iter().find(|service| !settled(service) && service.state != ServiceState::Waiting);
            let stuck = services.iter().any(|service| !status::is_ready(service) && settled(service));
            if !services.is_empty() && (services.iter().all(settled) || (moving.is_none() && stuck)) {
                return Ok(services);
            }
            if let Some(late) = services.iter().find(|service| !settled(service)) {
                progress::again_because(format!("{} is {}", late.name, late.state.as_str()));
            }
            sleep(LOOK * 3).await;
        }
    }

    /// Leaves a `coffer connect` behind.
    fn connect(&self, appliance: &cli::Appliance) -> Outcome {
        let own = std::env::current_exe().map_err(|error| Failure::failed(format!("no program: {error}")))?;
        let mut command = Command::new(own);
        command.args(["connect", &appliance.repository.to_string(), "--wait"]);
        command.args(["--listen", &self.ports.listen.to_string()]);
        if let Some(port) = self.ports.connect {
            command.args(["--port", &port.to_string()]);
        }
        for reference in &appliance.trust.reference {
            command.args(["--reference", reference]);
        }
        if let Some(root) = &appliance.trust.root {
            command.arg("--root").arg(root);
        }
        if let (Some(api), Some(ca)) = (&appliance.github.github_api, &appliance.github.github_ca) {
            command.args(["--github-api", api]).arg("--github-ca").arg(ca);
        }
        if let Some(key) = &self.options.key.key {
            command.arg("--key").arg(absolute(key)?);
        }
        // Ctrl-C in this terminal is not meant for it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        self.local.start("connect", &mut command).map(drop)
    }

    fn report(&self, world: &Simulated, services: &[NamedService]) -> String {
        let mut text = format!(
            "SIMULATED: {} runs at {} on a simulated TDX device, and is verified\n",
            world.repository, world.endpoint
        );
        for service in services {
            let _ = writeln!(text, "  {:16} {}", service.name, service.state.as_str());
            for missing in service.missing.iter().flatten() {
                let _ = writeln!(text, "    missing {missing}");
            }
            let detail = service.detail.as_deref().filter(|_| !status::is_ready(service));
            if let Some(detail) = detail {
                let _ = writeln!(text, "    {}", crate::ui::printable(detail));
            }
        }
        let _ =
            write!(text, "http://{} is the appliance, for you as its operator\nnext:\n", self.ports.listen);
        text.push_str(&self.next(world, &["status", "logs -f", "secret put"]));
        text
    }

    /// Commands to go on with.
    fn next(&self, world: &Simulated, verbs: &[&str]) -> String {
        let repository = &world.repository;
        let mut text = format!(
            "  export COFFER_REFERENCE={} COFFER_GITHUB_API={} COFFER_GITHUB_CA={}\n",
            world.references.display(),
            world.github_api,
            world.github_ca.display()
        );
        let root = format!("--root {}", world.root.display());
        for verb in verbs {
            let (verb, rest) = match *verb {
                "logs -f" => ("logs", " SERVICE -f"),
                "secret put" => ("secret put", " NAMESPACE/NAME/FIELD"),
                verb => (verb, ""),
            };
            let endpoint =
                if self.waits(world) { format!(" --endpoint {}", world.endpoint) } else { String::new() };
            let _ = writeln!(text, "  coffer {verb} {repository}{rest}{endpoint} {root}");
        }
        let _ = writeln!(text, "  coffer down {repository}");
        text
    }

    fn object(&self, world: &Simulated, state: &str, services: &[NamedService]) -> serde_json::Value {
        json!({
            "repository": world.repository, "commit": world.commit, "endpoint": world.endpoint, "state": state,
            "services": services, "listen": (state == "running").then_some(self.ports.listen),
            "reference": world.references, "root": world.root, "github_api": world.github_api, "github_ca": world.github_ca,
        })
    }
}

/// Everything here is waited for.
const PATIENT: cli::Wait = cli::Wait { wait: true };

impl Simulated {
    fn appliance(&self, endpoint: Option<Endpoint>) -> cli::Appliance {
        cli::Appliance {
            repository: self.repository.clone(),
            endpoint,
            commit: None,
            trust: cli::Trust {
                reference: vec![self.references.display().to_string()],
                root: Some(self.root.clone()),
                ..cli::Trust::default()
            },
            github: cli::Github {
                github_api: Some(self.github_api.clone()),
                github_ca: Some(self.github_ca.clone()),
                ..cli::Github::default()
            },
        }
    }
}

/// The operator's key, which the declaration has to name.
fn operators_key(declaration: &Declaration, options: &cli::Up) -> Outcome<OperatorKey> {
    let key = OperatorKey::load(&options.key)?;
    let known = declaration.operators.iter().any(|operator| operator.key.fingerprint() == key.fingerprint());
    if known {
        return Ok(key);
    }
    let why = format!("the declaration names no operator with the key {}", key.fingerprint());
    Err(Failure::new(Code::NotAllowed, why)
        .hint("name the operator's key with --key FILE, or add it under `operators`"))
}

/// The image: the one that is named, or the one of the checkout, or beside this program.
fn image(options: &cli::Up, checkout: &Path) -> Outcome<PathBuf> {
    if let Some(path) = &options.image {
        return absolute(path);
    }
    if !options.simulate && !std::fs::read_to_string(TDX).is_ok_and(|text| text.starts_with(['Y', '1'])) {
        return Err(Failure::failed("this machine is no TDX host")
            .hint("coffer up --simulate boots an appliance on a simulated TDX device"));
    }
    let (name, profile) = match options.simulate {
        true => ("cofferdam-simulator.efi", " --profile simulator"),
        false => ("cofferdam.efi", ""),
    };
    let beside = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.join(name)));
    let found = [Some(checkout.join(name)), beside].into_iter().flatten().find(|path| path.is_file());
    found.ok_or_else(|| {
        Failure::usage(format!("there is no {name}, neither in {} nor beside coffer", checkout.display()))
            .hint(format!("build it there with `ci/mkosi{profile} build`, or name one with --image FILE"))
    })
}

/// An address that nobody listens at.
fn free(listen: SocketAddr, hint: &str) -> Outcome<SocketAddr> {
    let bound = std::net::TcpListener::bind(listen).and_then(|listener| listener.local_addr());
    bound.map_err(|error| Failure::failed(format!("cannot listen on {listen}: {error}")).hint(hint))
}

/// The commit whose declaration this is.
pub(super) fn committed(path: &Path, bytes: &[u8]) -> Outcome<Commit> {
    let path = absolute(path)?;
    let (folder, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
    let git = |arguments: &[&str]| {
        let done = Command::new("git").arg("-C").arg(folder).args(arguments).output().ok()?;
        done.status.success().then_some(done.stdout)
    };
    let none = |why: &str| {
        Failure::usage(format!("{}: {why}", path.display())).hint("commit and push it: clients read it there")
    };
    let head = git(&["rev-parse", "HEAD"]).ok_or_else(|| none("it is in no git repository"))?;
    let there = git(&["show", &format!("HEAD:./{}", name.to_string_lossy())]);
    if there.as_deref() != Some(bytes) {
        return Err(none("it is not what the last commit has"));
    }
    String::from_utf8_lossy(&head).trim().parse().map_err(|_| none("git names no commit"))
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.starts_with("step: ")).collect();
    let skipped = lines.len().saturating_sub(LAST_LINES);
    let line = |line: &&str| format!("  {}", crate::ui::printable(line));
    lines.iter().skip(skipped).map(line).collect::<Vec<_>>().join("\n")
}

/// Ends the appliance that `coffer up` has started, and removes what it left.
pub(crate) fn down(ui: &Ui, repository: Option<&Repository>) -> Outcome {
    let mut existing = Local::existing()?;
    existing.retain(|local| repository.is_none_or(|wanted| *wanted == local.repository));
    let local = match (&existing[..], repository) {
        ([local], _) => local,
        ([], Some(repository)) => return Err(Failure::failed(format!("{repository} is not up here"))),
        ([], None) => return Err(Failure::failed("nothing is up here")),
        (several, _) => {
            let names: Vec<String> = several.iter().map(|local| local.repository.to_string()).collect();
            return Err(Failure::usage(format!("name one of {}", names.join(", "))));
        }
    };
    let _doing = progress::doing(format!("ending {}", local.repository));
    local.end()?;
    ui.result(
        &format!("{} is down\n", local.repository),
        json!({ "repository": local.repository, "state": "down" }),
    );
    Ok(())
}
