//! The role that runs one service: it fetches the image, leases the secrets, makes the container, and
//! passes on what it prints with the secrets taken out, and what it answers at the ports that say so.
//!
//! # Duties
//!
//! - Nothing of the service starts before everything that it needs is there; until then the status says what
//!   is missing.
//! - The image is pulled by a child that ends before the first secret of the workload is leased. The registry's password is
//!   leased for that child alone, and the workload does not exist yet. Of the services with one image the first pulls it, and the
//!   others wait; all wait until PID 1 has sealed it.
//! - It leaves the appliance's network for good before the workload exists, and has its service joined to the networks of the
//!   declaration. It answers the service's questions for names of services, from a table; those for others the role `egress` decides,
//!   which carries what leaves the appliance.
//! - It waits for the services that this one depends on, has it probed, and says whether it is healthy.
//! - It holds this service's secrets and no other, unreadable for others, and only while the workload
//!   runs: each start leases anew. What a change does to a running workload, `on_change` says ([`changes`]).
//! - With the word `next/NAME` it fetches the image of a service that is to run, and ends ([`facts::NEXT`]). That shim has no network of a
//!   service and leases nothing but the registry's password.
//! - It stops, starts and restarts its service as operators order, whose orders the vault has checked and passes on. Such an order
//!   comes before what a change does.
//! - It waits for its own children only, and ends with nothing of its container left.
//!
//! # Prohibitions
//!
//! - It has one thread, always: it clones (see [`launch`]).
//! - It parses nothing that the workload prints. What it relays, it does not look at, but HTTP at a port that redacts.
//! - It prints nothing that came from the workload to the console.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use cofferdam_declaration::{ConfigFile, Dependency, Egress, Login, OnChange, OnUnhealthy, Service};
use cofferdam_protocol::events::{self, Happened};
use cofferdam_protocol::status::{Health, HealthState, Killed, ServiceState, ServiceStatus};
use cofferdam_protocol::{Digest, SecretRef};
use cofferdam_registry::image::RunConfig;
use cofferdam_workload::answers::Answers;
use cofferdam_workload::cgroup::{Group, Leaf};
use cofferdam_workload::config::Config;
use cofferdam_workload::delivery::{Delivery, Plan};
use cofferdam_workload::depend;
use cofferdam_workload::dns::Names;
use cofferdam_workload::health::{Check, Test};
use cofferdam_workload::launch::{self, Container, LaunchError};
use cofferdam_workload::log::Log;
use cofferdam_workload::network::{self, Network};
use cofferdam_workload::probe::Probing;
use cofferdam_workload::pull::{Credentials, ImageDir, PullError};
use cofferdam_workload::resolver::{self, Resolver};
use cofferdam_workload::restart::{End, Policy};
use cofferdam_workload::status::Reporter;
use cofferdam_workload::unpack::Room;
use cofferdam_workload::user::{self, Account};
use cofferdam_workload::{environment, output, relay};
use nix::fcntl::OFlag;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use zeroize::Zeroizing;

use self::changes::{Changes, Given};
use self::orders::{Orders, Other};
use super::facts::{Facts, Place, ServiceFacts};
use super::pull::{Answer, MAX_PASSWORD, image_dir};
use super::{CONTAINER, PULL, Role};
use crate::paths;
use crate::system::client::bridge::{self, Attached};
use crate::system::client::vault::{Lease, LeaseError, changed, lease};
use crate::system::gate::Gate;
use crate::system::ring::Ring;
use crate::system::{cgroup, files};

mod changes;
mod orders;
mod outside;

/// One question to the vault; the answer to a missing secret comes as soon as it is put.
const LEASE_WAIT: Duration = Duration::from_secs(25);
/// The first question: a vault that is just starting is given the time to.
const LEASE_FIRST: Duration = Duration::from_millis(500);
/// Between two questions when the vault refuses or is not there.
const LEASE_PAUSE: Duration = Duration::from_secs(5);
/// How often to look whether PID 1 has sealed the image, and whether another service has pulled it.
const SEAL_PAUSE: Duration = Duration::from_millis(50);
/// How often the services that this one depends on are looked at.
const DEPENDENCY_PAUSE: Duration = Duration::from_millis(200);
/// Pulls of an image that is to run before it is said that it cannot be had: half a minute with the waits between them.
const FETCH_TRIES: u32 = 6;
/// Where it is said why an image cannot be had, in the directory of whoever fetches.
pub(crate) const WHY: &str = "why";
/// Between two questions to the roles `egress` and `bridge`: they are started before the shims, and again when they have died.
const JOIN_PAUSE: Duration = Duration::from_millis(200);
/// The first wait after a pull that failed; doubles.
const PULL_FIRST: Duration = Duration::from_secs(1);
/// The longest wait: an image that is wrong may be put right at the registry.
const PULL_LONGEST: Duration = Duration::from_secs(60);
/// A pull's answer is one line; what a broken child says beyond it is not read.
const MAX_ANSWER: u64 = 4096;
/// Output that is still in the pipes when a container ends is there at once.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs the service that `word` names until PID 1 says SIGTERM, or fetches its image.
///
/// # Errors
///
/// The role cannot be confined, what PID 1 wrote down for it cannot be read, or the image that it was to fetch cannot be had.
pub(crate) fn run(role: &Role, word: &str) -> anyhow::Result<()> {
    role.confine().context("cannot confine the role")?;
    let (facts, name, fetches) = Facts::of_word(word)?;
    let own = facts.service(name)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let dependencies = facts.dependencies(own);
        let others = dependencies.iter().filter(|(on, _)| on.restart).map(|(on, other)| Other {
            on: (*on).clone(),
            status: other.status(),
            grace: other.declared.stop_grace_period,
        });
        let orders = Orders::listen(others.collect());
        let mut shim = Shim {
            word,
            fetches,
            own,
            service: &own.declared,
            login: facts.registry(own).and_then(|registry| registry.login.as_ref()),
            dependencies,
            names: watch::Sender::new(facts.names(own)),
            group: group(own),
            status: Reporter::new(own.status()),
            events: Ring::at(own.events()),
            said: None,
            stop: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            orders,
            heeds: false,
            restarts: 0,
            last: None,
            carried_out: None,
            killed: None,
            answers: Answers::default(),
        };
        let done = if fetches { shim.fetch().await } else { shim.live().await };
        match done {
            Ok(()) | Err(Interrupt::Stopped | Interrupt::Ordered) => Ok(()),
            Err(Interrupt::Failed(error)) => Err(error),
        }
    })
}

struct Shim<'a> {
    /// What it was called with.
    word: &'a str,
    /// Whether it ends once the image is there.
    fetches: bool,
    /// What PID 1 decided for the service.
    own: &'a ServiceFacts,
    /// The part of it that is declared.
    service: &'a Service,
    /// As whom its image is pulled.
    login: Option<&'a Login>,
    dependencies: Vec<(&'a Dependency, &'a ServiceFacts)>,
    /// What the resolver tells the service.
    names: watch::Sender<Names>,
    /// The service's control group. PID 1 does not come up without the hierarchy; only the tests' host has none.
    group: Option<Group>,
    status: Reporter,
    /// What happened to it.
    events: Ring,
    /// The last of it.
    said: Option<Happened>,
    stop: Signal,
    orders: Orders,
    /// Whether an order interrupts what is waited for: once image and network are there, for those are made once.
    heeds: bool,
    restarts: u32,
    last: Option<End>,
    /// The order after which it was started, or could not be.
    carried_out: Option<u32>,
    killed: Option<Killed>,
    /// What its answers at the ports that redact are searched for.
    answers: Answers,
}

/// Why a step of the shim has no value.
#[derive(Debug, thiserror::Error)]
enum Interrupt {
    /// PID 1 said SIGTERM.
    #[error("the shim was told to stop")]
    Stopped,
    /// An operator wants something else of the service.
    #[error("an operator ordered it")]
    Ordered,
    /// It cannot go on.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

impl Shim<'_> {
    /// Fetches the image and ends. PID 1 shows operators the file `why` when that comes to nothing.
    async fn fetch(&mut self) -> Result<(), Interrupt> {
        let fetched = self.image().await.map(drop);
        if let Err(Interrupt::Failed(error)) = &fetched {
            let why = format!("{}: {error:#}", self.service.name);
            files::replace(self.own.directory.join(WHY), why.as_bytes()).context("cannot say why")?;
        }
        fetched
    }

    /// From nothing to the last restart. Returns when it was told to stop.
    async fn live(&mut self) -> Result<(), Interrupt> {
        let image = self.image().await?;
        self.join().await?;
        let leaf = match self.group.as_ref().map(Group::workload).transpose() {
            Ok(leaf) => leaf,
            Err(error) => return self.give_up(&error.into()).await,
        };
        if let Err(error) = self.publish() {
            return self.give_up(&error).await;
        }
        self.heeds = true;
        let mut policy = Policy::new(self.service.restart);
        loop {
            match self.round(&image, leaf.as_ref(), &mut policy).await {
                Err(Interrupt::Ordered) => policy = Policy::new(self.service.restart),
                done => done?,
            }
        }
    }

    /// One run of the workload, with what comes before it, and the wait after it. While the service is to be stopped it is the wait alone.
    async fn round(
        &mut self,
        image: &RunConfig,
        leaf: Option<&Leaf>,
        policy: &mut Policy,
    ) -> Result<(), Interrupt> {
        if self.orders.is_stopped() {
            self.report(ServiceState::Stopped, |_| {})?;
            return self.until(std::future::pending()).await;
        }
        let mut secrets = self.secrets().await?;
        // As with Compose, only before the first start: one that ends is started again whatever has become of the others.
        if self.last.is_none() && self.dependencies().await? {
            secrets = self.secrets().await?;
        }
        let started = Instant::now();
        let Some((end, reason)) = self.run_once(image, secrets, leaf).await? else {
            self.restarts = self.restarts.saturating_add(1);
            return Ok(());
        };
        let Some(wait) = policy.next(end, started.elapsed()) else {
            let state = if reason.is_some() { ServiceState::Failed } else { ServiceState::Exited };
            self.report(state, |status| status.detail = reason)?;
            return self.until(std::future::pending()).await;
        };
        self.report(ServiceState::Restarting, |status| {
            status.detail = Some(reason.unwrap_or_else(|| format!("again in {wait:?}")));
        })?;
        self.until(sleep(wait)).await?;
        self.restarts = self.restarts.saturating_add(1);
        Ok(())
    }

    /// From the start of the workload to its end: how it ended, and why that was not its own doing. `None` when it was ended to be started
    /// with other secrets.
    async fn run_once(
        &mut self,
        image: &RunConfig,
        secrets: Secrets,
        leaf: Option<&Leaf>,
    ) -> Result<Option<(End, Option<String>)>, Interrupt> {
        let group = self.group.clone();
        let counted = || group.as_ref().zip(leaf).map(|(group, leaf)| group.out_of_memory(leaf));
        let before = counted();
        let ended = match self.start(image, secrets, leaf).await {
            Ok(running) => self.watch(running).await,
            Err(failure) => {
                self.carried_out = self.orders.taken();
                let code = failure.downcast_ref().map_or(126, |error| match error {
                    LaunchError::Failed { code, .. } => *code,
                    _ => 126,
                });
                Ok(Ended::NotStarted(End::Exited(code), format!("{failure:#}")))
            }
        };
        self.answers.forget();
        let mut changed = false;
        let (end, reason) = match ended? {
            Ended::ByItself(end) => (end, None),
            Ended::Changed(end) => {
                changed = true;
                (end, None)
            }
            // What it was ended for is a failure, whatever it says itself.
            Ended::Unhealthy(End::Exited(0)) => (End::Exited(1), Some("it was unhealthy".to_owned())),
            Ended::Unhealthy(end) => (end, Some("it was unhealthy".to_owned())),
            Ended::NotStarted(end, reason) => (end, Some(reason)),
        };
        self.last = Some(end);
        self.killed = counted().zip(before).and_then(|(now, before)| now.since(&before));
        if let Some(killed) = self.killed {
            eprintln!("cofferd: {}: killed: {killed}", self.own.declared.name);
        }
        Ok((!changed).then_some((end, reason)))
    }

    fn report(&mut self, state: ServiceState, change: impl FnOnce(&mut ServiceStatus)) -> anyhow::Result<()> {
        let (restarts, exit_code, killed) = (self.restarts, self.last.map(End::code), self.killed);
        let order = self.carried_out;
        let mut detail = None;
        let reported = self.status.report(state, |status| {
            status.restarts = restarts;
            status.exit_code = exit_code;
            status.killed = killed;
            status.order = order;
            change(status);
            detail = status.detail.as_deref().map(events::bounded);
        });
        let happened = Happened::Service { state, exit_code, killed, detail };
        if self.said.as_ref() != Some(&happened) {
            self.said = Some(happened.clone());
            self.events.tell(happened);
        }
        reported.context("cannot write the status")
    }

    /// Says why the service cannot be started, and stays: another start would meet the same, it is the declaration that has
    /// to change.
    async fn give_up(&mut self, error: &anyhow::Error) -> Result<(), Interrupt> {
        self.report(ServiceState::Failed, |status| status.detail = Some(format!("{error:#}")))?;
        self.stop.recv().await;
        Ok(())
    }

    /// What was waited for, unless PID 1 says to stop meanwhile, or an operator wants something else.
    async fn until<T>(&mut self, waited: impl Future<Output = T>) -> Result<T, Interrupt> {
        tokio::select! {
            _ = self.stop.recv() => Err(Interrupt::Stopped),
            () = self.orders.changed(), if self.heeds => Err(Interrupt::Ordered),
            value = waited => Ok(value),
        }
    }

    /// Waits until the image is there and sealed; pulls it, again and again until it is, unless another service does.
    async fn image(&mut self) -> Result<RunConfig, Interrupt> {
        let directory = image_dir(self.own);
        let digest = self.service.image.digest();
        if !self.own.seal().exists() {
            if self.own.pulls() {
                self.pull(&directory, &digest).await?;
                if self.own.image_on_disk {
                    // It is kept once nobody has it for writing. The next shim sees it like those of the other services.
                    return Err(Interrupt::Stopped);
                }
            } else {
                let detail = format!("the image that {} pulls is not there yet", self.own.puller);
                self.report(ServiceState::Waiting, |status| status.detail = Some(detail))?;
            }
        }
        while !self.own.seal().exists() {
            self.until(sleep(SEAL_PAUSE)).await?;
        }
        if let Some(config) = directory.finished(&digest) {
            return Ok(config);
        }
        self.give_up(&anyhow::anyhow!("the pulled image cannot be read back")).await?;
        Err(Interrupt::Stopped)
    }

    /// Pulls the image into its directory.
    async fn pull(&mut self, directory: &ImageDir, digest: &Digest) -> Result<(), Interrupt> {
        let (mut wait, mut tries) = (PULL_FIRST, 0_u32);
        while directory.finished(digest).is_none() {
            let credentials = self.credentials().await?;
            self.report(ServiceState::Pulling, |_| {})?;
            let answer = match credentials {
                Err(reason) => Answer { error: Some(reason), transient: false },
                Ok(credentials) => {
                    let pulled = pull(self.own, self.word, self.group.clone(), credentials);
                    let pulled = self.until(pulled).await?;
                    pulled
                        .unwrap_or_else(|error| Answer { error: Some(format!("{error:#}")), transient: true })
                }
            };
            if directory.finished(digest).is_some() {
                break;
            }
            let state = if answer.transient { ServiceState::Pulling } else { ServiceState::Failed };
            let detail = answer.error.unwrap_or_else(|| "the pulled image cannot be read back".to_owned());
            tries = tries.saturating_add(1);
            if self.fetches && (!answer.transient || tries >= FETCH_TRIES) {
                return Err(Interrupt::Failed(anyhow::anyhow!(detail)));
            }
            self.report(state, |status| status.detail = Some(detail))?;
            self.until(sleep(wait)).await?;
            wait = wait.saturating_mul(2).min(PULL_LONGEST);
        }
        Ok(())
    }

    /// As whom the image is pulled: leased anew for each pull, so that a password that was wrong can be put right.
    async fn credentials(&mut self) -> Result<Result<Option<Credentials>, String>, Interrupt> {
        let Some(login) = self.login else { return Ok(Ok(None)) };
        let lease = self.lease(vec![&login.password]).await?;
        let value = lease.values().next().context("the vault leased nothing")?;
        Ok(registry_user(login, value.expose()).map(Some))
    }

    /// Leases the service's secrets, with what is stored of them where a change of that matters while the service runs.
    async fn secrets(&mut self) -> Result<Secrets, Interrupt> {
        let changing = self.changing();
        loop {
            let lease = self.lease(self.service.references()).await?;
            if changing.is_empty() {
                return Ok((lease, None));
            }
            // It may have waited long. Leased once more after asking, a put in between is heard of.
            match self.until(changed(&changing, None)).await? {
                Ok(known) => return Ok((self.lease(self.service.references()).await?, Some(known))),
                Err(_) => self.until(sleep(LEASE_PAUSE)).await?,
            }
        }
    }

    /// The secrets whose changes matter while the service runs.
    fn changing(&self) -> Vec<SecretRef> {
        match self.service.on_change {
            OnChange::Nothing => Vec::new(),
            _ => self.service.references().into_iter().cloned().collect(),
        }
    }

    /// Leases all of these; waits for as long as one is missing.
    async fn lease(&mut self, references: Vec<&SecretRef>) -> Result<Lease, Interrupt> {
        let references: Vec<_> = references.into_iter().cloned().collect();
        // The first answer comes at once, so that the status says soon what is missing.
        let mut wait = LEASE_FIRST;
        loop {
            let error = match self.until(lease(&references, wait)).await? {
                Ok(lease) => return Ok(lease),
                Err(error) => error,
            };
            wait = LEASE_WAIT;
            let pause = match error {
                LeaseError::Missing(missing) => {
                    self.report(ServiceState::Waiting, |status| status.missing = missing)?;
                    Duration::ZERO
                }
                error => {
                    let state = match error {
                        LeaseError::Refused(_) | LeaseError::Malformed => ServiceState::Failed,
                        _ => ServiceState::Waiting,
                    };
                    let detail = format!("{:#}", anyhow::Error::new(error));
                    self.report(state, |status| status.detail = Some(detail))?;
                    LEASE_PAUSE
                }
            };
            self.until(sleep(pause)).await?;
        }
    }

    /// Waits until every service that this one depends on is where it waits for it to be. True when it had to wait.
    async fn dependencies(&mut self) -> Result<bool, Interrupt> {
        let mut waited = false;
        loop {
            let late = self
                .dependencies
                .iter()
                .filter_map(|(on, other)| depend::waits(on, said(&other.status()).as_ref()));
            let late: Vec<String> = late.collect();
            if late.is_empty() {
                return Ok(waited);
            }
            waited = true;
            self.report(ServiceState::Waiting, |status| status.detail = Some(late.join("; ")))?;
            self.until(sleep(DEPENDENCY_PAUSE)).await?;
        }
    }

    /// Makes the service's network, in which this process stays, and its way outside, takes the resolver's place in it, and waits until
    /// the service is in the networks of the declaration. It is brought back there when the role that keeps them has died.
    async fn join(&mut self) -> Result<(), Interrupt> {
        let ports: BTreeSet<u16> = self.service.egress.iter().map(Egress::port).collect();
        let gate = (!ports.is_empty()).then(|| Gate::create(&ports)).transpose();
        let gate = gate.context("cannot make the service's way outside")?;
        let network = Network::create().context("cannot make the service's network")?;
        if let Some(gate) = &gate {
            gate.join(&network).context("cannot lead the service's network to its way outside")?;
        }
        let resolver = Resolver::bind(resolver::ADDRESS).await.context("cannot listen as the resolver")?;
        if self.own.networks.is_empty() {
            resolver.serve(self.names.subscribe(), None);
            return Ok(());
        }
        let way = loop {
            match self.until(outside::open(gate.as_ref())).await? {
                Ok(way) => break way,
                Err(error) => self.not_joined(&error.into()).await?,
            }
        };
        resolver.serve(self.names.subscribe(), Some(outside::answer(way, gate)));
        loop {
            match self.until(attach(&network, &self.own.networks)).await? {
                Ok(attached) => {
                    let (name, names) = (self.service.name.clone(), self.names.clone());
                    tokio::spawn(stay(attached, network, self.own.networks.clone(), name, names));
                    return Ok(());
                }
                Err(error) => self.not_joined(&error).await?,
            }
        }
    }

    /// Says why the service is not in its networks yet, and waits for a moment.
    async fn not_joined(&mut self, error: &anyhow::Error) -> Result<(), Interrupt> {
        self.report(ServiceState::Waiting, |status| status.detail = Some(format!("{error:#}")))?;
        self.until(sleep(JOIN_PAUSE)).await
    }

    /// The ways in to the service's published ports, made once: they outlive a restart of the workload. Where answers are
    /// redacted, nobody gets one that is not.
    fn publish(&self) -> anyhow::Result<()> {
        let connections = relay::Connections::default();
        let ways: BTreeMap<_, _> =
            self.service.ports.iter().map(|port| (self.own.socket(port), port)).collect();
        for (path, port) in ways {
            let answers = port.redact_responses.then_some(&self.answers);
            relay::publish(&path, port.target, self.own.address(), &connections, answers)
                .with_context(|| format!("cannot publish port {}", port.target))?;
        }
        Ok(())
    }

    /// Makes the container and what reads its output.
    async fn start(
        &mut self,
        image: &RunConfig,
        (lease, known): Secrets,
        group: Option<&Leaf>,
    ) -> anyhow::Result<Running> {
        self.report(ServiceState::Starting, |_| {})?;
        let rootfs = image_dir(self.own).rootfs();
        let root =
            nix::fcntl::open(&rootfs, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
                .context("cannot open the image")?;
        let account = user::resolve(&root, self.service.user.as_ref(), &image.user, &self.service.group_add)?;
        let check = Check::of(&self.service.healthcheck, &image.health);
        let plan = self.plan(image, &account, rootfs, check.as_ref())?;
        let delivery = self.deliver(image, &account, &lease)?;
        // A value that cannot be told from other text is not handed out.
        let given = Given::new(lease, self.service)?;
        let redactor = given.redactor().clone();
        let name = &self.service.name;
        let log = Log::open(&self.own.log(), &self.own.previous_log()).context("cannot open the log")?;
        let descriptor = group.map(Leaf::descriptor);
        self.answers.redact_with(redactor.clone());
        let (mut container, output) =
            launch::start(&["cofferd", CONTAINER.name(), name], &plan, &delivery, descriptor).await?;
        drop(delivery);
        let pid = container.pid();
        let probing = check.map(|check| {
            let (probe, address) = (container.prober(), self.own.address());
            Probing::start(check, probe, address, redactor.clone())
        });
        let health =
            probing.as_ref().map(|_| Health { state: HealthState::Starting, failures: 0, output: None });
        self.carried_out = self.orders.taken();
        self.report(ServiceState::Running, |status| {
            status.pid = pid;
            status.health = health;
        })?;
        let output = tokio::spawn(output::pump(output, redactor, log));
        let changes = known.map(|known| Changes::watch(self.changing(), known));
        let stop_signal = stop_signal(self.service, image);
        Ok(Running { container, output, stop_signal, probing, given, changes })
    }

    fn plan(
        &self,
        image: &RunConfig,
        account: &Account,
        rootfs: std::path::PathBuf,
        check: Option<&Check>,
    ) -> anyhow::Result<Plan> {
        let working_dir = self.service.working_dir.as_deref().unwrap_or(&image.working_dir);
        let working_dir = if working_dir.starts_with('/') { working_dir } else { "/" };
        Ok(Plan {
            rootfs,
            hostname: self.service.name.clone(),
            hosts: hosts(self.own),
            read_only: self.service.read_only,
            writable: self.own.memory / 2,
            memory: self.own.memory,
            shm_size: self.service.shm_size,
            ulimits: self.service.ulimits,
            tmpfs: self.service.tmpfs.clone(),
            volumes: self.own.volumes(),
            configs: self.service.configs.iter().map(placed).collect(),
            arguments: environment::arguments(self.service, image)?,
            probe: check.and_then(|check| match &check.test {
                Test::Program(words) => Some(words.clone()),
                _ => None,
            }),
            working_dir: working_dir.to_owned(),
            uid: account.uid,
            gid: account.gid,
            capabilities: self.service.capabilities.clone(),
            groups: account.groups.clone(),
            profile: self.service.profile.clone(),
        })
    }

    fn deliver(&self, image: &RunConfig, account: &Account, lease: &Lease) -> anyhow::Result<Delivery> {
        Ok(environment::deliver(self.service, image, &account.home, |name| leased(lease, name))?)
    }

    /// Waits for the workload's end; on the word to stop, and when it is unhealthy and that is to end it, ends it in order.
    async fn watch(&mut self, mut running: Running) -> Result<Ended, Interrupt> {
        let mut known = None;
        let ended = loop {
            let Running { container, probing, changes, .. } = &mut running;
            let event = async {
                tokio::select! {
                    end = container.ended() => Event::Ended(end),
                    health = Probing::next(probing) => Event::Health(health),
                    lease = Changes::next(changes) => Event::Changed(lease),
                }
            };
            match self.until(event).await {
                Ok(Event::Ended(end)) => {
                    break Ok(Ended::ByItself(end.context("cannot wait for the workload")?));
                }
                Ok(Event::Health(health)) => {
                    let unhealthy = health.state == HealthState::Unhealthy;
                    if known != Some(health.state) {
                        known = Some(health.state);
                        self.events.tell(Happened::Health { state: health.state });
                    }
                    self.status.health(health).context("cannot write the status")?;
                    if unhealthy && self.service.on_unhealthy == OnUnhealthy::Restart {
                        break self.stop(&mut running).await.map(Ended::Unhealthy);
                    }
                }
                Ok(Event::Changed(lease)) => {
                    let on_change = self.service.on_change.to_string();
                    self.events.tell(Happened::SecretsChanged { on_change });
                    if !self.adopt(&mut running, lease) {
                        break self.stop(&mut running).await.map(Ended::Changed);
                    }
                }
                Err(interrupt) => {
                    self.last = Some(self.stop(&mut running).await?);
                    break Err(interrupt);
                }
            }
        };
        drop(running.probing);
        // The container is gone, so its pipes end: everything in them is still to be logged.
        let _ = timeout(DRAIN, running.output).await;
        ended
    }

    /// Gives changed secrets to the running workload. False: it has to start anew to have them.
    fn adopt(&self, running: &mut Running, lease: Lease) -> bool {
        if !self.service.on_change.rewrites() {
            return false;
        }
        let Ok(new) = running.given.change(lease, self.service) else { return false };
        let written = self.service.secrets.iter().filter(|file| new.contains(&file.source)).all(|file| {
            let value = running.given.value(&file.source);
            value.is_some_and(|value| running.container.replace_secret(&file.target, value.expose()).is_ok())
        });
        if let (true, OnChange::Signal(signal)) = (written, self.service.on_change) {
            running.container.signal(signal.number());
        }
        written
    }

    /// Ends the workload: with its signal, and after its grace at once.
    async fn stop(&self, running: &mut Running) -> Result<End, Interrupt> {
        running.container.signal(running.stop_signal);
        let grace = self.service.stop_grace_period;
        let ended = match timeout(grace, running.container.ended()).await {
            Ok(ended) => ended,
            Err(_) => {
                running.container.kill();
                running.container.ended().await
            }
        };
        Ok(ended.context("cannot wait for the workload")?)
    }
}

/// What was leased, and what was stored of it then, where that is looked at again.
type Secrets = (Lease, Option<Digest>);

/// How a run of the workload came to its end.
enum Ended {
    /// It ended.
    ByItself(End),
    /// It was ended because it was unhealthy.
    Unhealthy(End),
    /// It could not be started, and why.
    NotStarted(End, String),
    /// It was ended because its secrets changed.
    Changed(End),
}

/// What happens while a workload runs.
enum Event {
    Ended(Result<End, LaunchError>),
    Health(Health),
    Changed(Lease),
}

struct Running {
    container: Container,
    output: tokio::task::JoinHandle<()>,
    stop_signal: i32,
    probing: Option<Probing>,
    given: Given,
    changes: Option<Changes>,
}

fn leased(lease: &Lease, name: &SecretRef) -> Option<Zeroizing<Vec<u8>>> {
    Some(Zeroizing::new(lease.get(name)?.expose().to_vec()))
}

/// Where a config goes; its content is delivered.
fn placed(config: &ConfigFile) -> Config {
    Config { target: config.target.clone(), uid: config.uid, gid: config.gid, mode: config.mode }
}

/// The declaration's signal, or the image's, or SIGTERM; also when the image names one that cannot stop a service.
fn stop_signal(service: &Service, image: &RunConfig) -> i32 {
    let default = cofferdam_declaration::Signal::TERM;
    service.stop_signal.unwrap_or_else(|| image.stop_signal.parse().unwrap_or(default)).number()
}

/// `/etc/hosts` of a service: itself, and what it declares. It is its first address there, which a server that binds to its own name
/// listens at.
fn hosts(own: &ServiceFacts) -> String {
    let address = own.address().unwrap_or(Ipv4Addr::LOCALHOST);
    let further = own.declared.extra_hosts.iter().map(|(name, address)| format!("{address} {name}\n"));
    let further: String = further.collect();
    format!("127.0.0.1 localhost\n::1 localhost\n{address} {}\n{further}", own.declared.name)
}

/// Has an interface for each network put into the service's namespace and gives each its address.
async fn attach(network: &Network, places: &[Place]) -> anyhow::Result<Attached> {
    let attached = bridge::attach(Path::new(paths::BRIDGE_SOCKET), network.namespace()).await?;
    for (index, place) in places.iter().enumerate() {
        network::configure(index, place.address, &place.others)
            .with_context(|| format!("cannot set the address in the network {}", place.network))?;
    }
    Ok(attached)
}

/// Attaches again whenever the interfaces have gone: to the networks as they are by then, since who else is in them may be why.
async fn stay(
    mut attached: Attached,
    network: Network,
    mut places: Vec<Place>,
    name: String,
    names: watch::Sender<Names>,
) {
    loop {
        attached.gone().await;
        attached = loop {
            // Only its neighbours may differ: of what else is new, PID 1 starts another shim.
            if let Ok(facts) = Facts::read(Path::new(paths::FACTS))
                && let Ok(own) = facts.service(&name)
            {
                places.clone_from(&own.networks);
                names.send_replace(facts.names(own));
            }
            match attach(&network, &places).await {
                Ok(attached) => break attached,
                Err(_) => sleep(JOIN_PAUSE).await,
            }
        };
    }
}

/// What another service's shim says of it. What cannot be read says nothing.
fn said(path: &Path) -> Option<ServiceStatus> {
    let bytes = files::read_bounded(path, 64 << 10).ok()?;
    ServiceStatus::parse(&bytes).ok()
}

fn group(own: &ServiceFacts) -> Option<Group> {
    let mount = Path::new(cgroup::MOUNT);
    mount.join("cgroup.controllers").exists().then(|| own.group_at(mount))
}

/// The user of a registry with the password that the vault holds.
fn registry_user(login: &Login, password: &[u8]) -> Result<Credentials, String> {
    let refused = |why: &str| Err(format!("{} is no password: {why}", login.password));
    let Ok(text) = std::str::from_utf8(password) else { return refused("it is not UTF-8") };
    if text.len() > MAX_PASSWORD {
        return refused(&format!("it is longer than {MAX_PASSWORD} bytes"));
    }
    if text.chars().any(char::is_control) {
        return refused("there is a control character in it, such as a line break at its end");
    }
    Ok(Credentials { username: login.username.clone(), password: Zeroizing::new(text.to_owned()) })
}

/// Runs one pull to its end, in a group of its own. The child dies with this future.
async fn pull(
    own: &ServiceFacts,
    word: &str,
    group: Option<Group>,
    credentials: Option<Credentials>,
) -> anyhow::Result<Answer> {
    let leaf =
        group.as_ref().map(Group::image).transpose().context("cannot make the pull's control group")?;
    let counted = || group.as_ref().zip(leaf.as_ref()).map(|(group, leaf)| group.out_of_memory(leaf));
    let before = counted();
    let (writer, mut reader) = pipe::pipe().context("cannot make a pipe")?;
    let mut command = Command::new("/proc/self/exe");
    let input = if credentials.is_some() { Stdio::piped() } else { Stdio::null() };
    command.args([PULL.name(), word]).env_clear().stdin(input);
    command.stdout(writer.into_blocking_fd().context("cannot make a pipe")?);
    let mut child = Child(command.spawn().context("cannot start the pull")?);
    // The command holds the pipe's writing end.
    drop(command);
    if let (Some(credentials), Some(mut input)) = (credentials, child.0.stdin.take()) {
        // It fits into the pipe; a child that is gone already says why below.
        let said =
            Zeroizing::new(serde_json::to_vec(&credentials).context("cannot write down as whom to pull")?);
        let _ = input.write_all(&said);
    }
    let mut said = Vec::new();
    (&mut reader).take(MAX_ANSWER).read_to_end(&mut said).await.context("cannot hear from the pull")?;
    let status = child.wait()?;
    match counted().zip(before).and_then(|(now, before)| now.since(&before)) {
        Some(Killed::OutOfMemory { .. }) => {
            return Ok(Answer {
                error: Some(PullError::NoRoom(Room::Memory(own.memory)).to_string()),
                transient: false,
            });
        }
        Some(killed) => return Ok(Answer { error: Some(killed.to_string()), transient: true }),
        None => {}
    }
    serde_json::from_slice(&said).with_context(|| format!("the pull ended without an answer ({status})"))
}

/// A child that is ended and taken in when it is dropped.
struct Child(std::process::Child);

impl Child {
    /// Its output has ended, so its end is near.
    fn wait(&mut self) -> io::Result<ExitStatus> {
        self.0.wait()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::testing::{declaration, facts};

    #[test]
    fn a_secret_that_cannot_be_a_password_is_said_to_be_none() {
        let login =
            Login { username: "deploy".into(), password: "secret://registry/x/password".parse().unwrap() };
        let user = registry_user(&login, "pä:ss".as_bytes()).unwrap();
        assert_eq!((user.username.as_str(), user.password.as_str()), ("deploy", "pä:ss"));
        for (password, why) in [
            (b"line\n".to_vec(), "line break"),
            (vec![0xff], "UTF-8"),
            (vec![b'a'; MAX_PASSWORD + 1], "longer"),
        ] {
            let error = registry_user(&login, &password).unwrap_err();
            assert!(error.contains(why) && error.contains("secret://registry/x/password"), "{error}");
            assert!(!error.contains("line\n"));
        }
    }

    #[test]
    fn hosts_name_the_service_alone() {
        let text = "services:\n  db:\n    image: r.example/db@sha256:DIGEST\n  web:\n    image: r.example/web@sha256:DIGEST\n    \
                    extra_hosts: [\"idp:127.0.0.1\", \"v6=[::1]\"]\n  alone:\n    image: r.example/o@sha256:DIGEST\n    network_mode: none\n";
        let facts = facts(&declaration(&text.replace("DIGEST", &"0".repeat(64))));
        let of = |name: &str| hosts(facts.service(name).unwrap());
        assert_eq!(of("web"), "127.0.0.1 localhost\n::1 localhost\n10.1.1.2 web\n127.0.0.1 idp\n::1 v6\n");
        assert_eq!(of("alone"), "127.0.0.1 localhost\n::1 localhost\n127.0.0.1 alone\n");
    }
}
