//! Who is doing what: the files in which PID 1, the shims, `egress` and `publish` say it, and the one object that an operator gets.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::certificate::CertificateStatus;
use super::change::Changes;
use super::facts::{ImageInfo, Phase, Registers};
use super::follow::FollowStatus;
use super::network::NetworkStatus;
use crate::json::{self, JsonError};
use crate::{Commit, Digest, Endpoint, Repository, SecretRef, Timestamp, TimestampMillis};

/// Bound on each of the files in bytes.
pub const MAX_FILE: usize = 64 * 1024;

/// PID 1's `status.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootStatus {
    /// Format version: 1.
    pub version: u32,
    /// The stage of the boot, then `supervise`, `parked` or `power-off`.
    pub phase: String,
    /// Why the boot stopped, when it did.
    pub parked: Option<String>,
    /// What becomes of the vault's state, in words.
    pub state: String,
    /// The roles and shims in the order in which they were started.
    pub roles: Vec<RoleStatus>,
    /// What was done about the clock last; absent while it was left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<ClockSet>,
}

impl BootStatus {
    /// Reads the file.
    ///
    /// # Errors
    /// It is too large or not of this shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        json::from_json(bytes, MAX_FILE)
    }
}

/// One role or shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleStatus {
    /// Its name as on the command line.
    pub name: String,
    /// Its process, while there is one.
    pub pid: Option<i32>,
    /// How often it was started again.
    pub restarts: u32,
    /// What it is doing.
    pub state: RoleState,
    /// Bytes of memory that are charged to it. PID 1 leaves that to whoever reads this, who can look at the role's control group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Why PID 1 ended it last, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub killed: Option<Killed>,
}

/// What a role is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoleState {
    /// It runs.
    Running,
    /// It ended and will be started again.
    Restarting,
    /// It ended, and the machine is ending too.
    Stopped,
}

impl RoleState {
    /// The word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Restarting => "restarting",
            Self::Stopped => "stopped",
        }
    }
}

/// `services/NAME/status.json`, written by the service's shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceStatus {
    /// Where it is.
    pub state: ServiceState,
    /// Secrets that hold no value yet; empty unless it waits for them.
    pub missing: Vec<SecretRef>,
    /// The workload's process, in the appliance's own counting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// How often the workload was started again.
    pub restarts: u32,
    /// How the workload last ended; 128 and the signal's number for a signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Why the workload was ended last, when it was for want of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub killed: Option<Killed>,
    /// One line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// When it came to this.
    pub since: TimestampMillis,
    /// The operator's order that was carried out last, for the shims of services that restart with this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<u32>,
    /// What it uses. Its shim leaves that to whoever reads this, who can look at the service's control group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// How its probes went; absent while it does not run, and when nothing is probed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

/// What the probes of a workload add up to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// The word for it.
    pub state: HealthState,
    /// Failures in a row that counted.
    pub failures: u32,
    /// What the last probe printed or met, redacted; at most [`MAX_HEALTH_OUTPUT`] bytes of one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

/// Bound on the output of a probe in bytes.
pub const MAX_HEALTH_OUTPUT: usize = 512;

/// Whether a workload is healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// No probe has succeeded yet.
    Starting,
    /// The last probes say so.
    Healthy,
    /// As many in a row as it takes have failed.
    Unhealthy,
}

impl HealthState {
    /// The word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// Why the kernel or PID 1 ended a workload, which by its exit code alone could have been anybody's SIGKILL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Killed {
    /// It needed more memory than its service has.
    OutOfMemory {
        /// What that is, in bytes.
        limit: u64,
    },
    /// All services together, or the machine, needed more memory than there is; this one had not used up its own.
    MachineOutOfMemory,
    /// The machine had no memory left, and had some again after the end of this one: it was counted to nobody.
    UncountedMemory,
}

impl std::fmt::Display for Killed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OutOfMemory { limit } => write!(f, "out of memory (limit {} MiB)", limit >> 20),
            Self::MachineOutOfMemory => f.write_str("the machine ran out of memory"),
            Self::UncountedMemory => f.write_str("it took memory that is counted to nobody"),
        }
    }
}

/// What a service uses, and how much of it it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Bytes of its image and its workload.
    pub memory: u64,
    /// Bytes.
    pub memory_limit: u64,
    /// Processes and threads of its workload.
    pub processes: u64,
    /// Processes and threads.
    pub processes_limit: u64,
    /// Processor time since the boot, in milliseconds.
    pub cpu_ms: u64,
    /// Thousandths of a processor; absent when it may take what the others leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus_limit: Option<u32>,
}

impl ServiceStatus {
    /// Reads the file.
    ///
    /// # Errors
    /// It is too large or not of this shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        json::from_json(bytes, MAX_FILE)
    }
}

/// Where a service is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceState {
    /// Its shim has not said anything yet, or nothing that can be read.
    Pending,
    /// Its image is being fetched; `detail` says what went wrong last, if anything.
    Pulling,
    /// Secrets are missing (`missing`), or what it waits for of another service (`detail`).
    Waiting,
    /// The container is being made.
    Starting,
    /// The workload runs.
    Running,
    /// The workload ended and will start again.
    Restarting,
    /// The workload ended and stays ended.
    Exited,
    /// An operator stopped it; it stays so until it is started, or until the next boot.
    Stopped,
    /// It cannot be started as it is; `detail` says why.
    Failed,
}

impl ServiceState {
    /// The word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Pulling => "pulling",
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// `egress/NAME.json`, written by the role `egress`: what a service wanted outside and did not get.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressStatus {
    /// How many attempts were denied or failed since the role started, those that are not listed any more included.
    pub denied: u64,
    /// The last ones that differ, the latest first; at most [`EgressStatus::MAX_LISTED`].
    pub latest: Vec<Denied>,
}

impl EgressStatus {
    /// Different attempts that are listed for one service.
    pub const MAX_LISTED: usize = 16;

    /// Reads the file.
    ///
    /// # Errors
    /// It is too large or not of this shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        json::from_json(bytes, MAX_FILE)
    }
}

/// Attempts of a service to reach one thing outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denied {
    /// What it wanted: a name, `name:port` or `address:port`. Chosen by the service, in visible ASCII, at most 320 bytes.
    pub target: String,
    /// Why it did not get it.
    pub why: DeniedWhy,
    /// How often.
    pub count: u64,
    /// When it was last.
    pub last: Timestamp,
    /// The entry of `egress` that would allow it, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<String>,
}

/// Why an attempt to reach something outside came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeniedWhy {
    /// The name is not declared; nobody outside was asked for it.
    Name,
    /// The name is declared, with another port.
    Port,
    /// An address was dialled that no name was answered with.
    Address,
    /// Something else than TCP.
    Udp,
    /// The TLS server name is not the name that was asked for.
    ServerName,
    /// What was sent is not the beginning of TLS with a server name.
    NotTls,
    /// The DNS gives the name an address that is never connected to: private, of this machine, of the cloud's own services.
    Private,
    /// The service asked for more names than are kept at a time.
    TooManyNames,
    /// The DNS did not give an address.
    Unresolved,
    /// Nobody answered at the address.
    Unreachable,
}

impl DeniedWhy {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name not declared",
            Self::Port => "port not declared",
            Self::Address => "an address instead of a name",
            Self::Udp => "not TCP",
            Self::ServerName => "TLS server name of another",
            Self::NotTls => "not TLS with a server name",
            Self::Private => "the DNS gives an address that is never connected to",
            Self::TooManyNames => "too many names",
            Self::Unresolved => "no address in the DNS",
            Self::Unreachable => "no answer from the server",
        }
    }
}

/// `publish/status.json`. `tag`, `release_url` and `expires_at` are those of the last release that was published in this boot,
/// whatever has happened since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishStatus {
    /// What the role is doing.
    pub state: PublishState,
    /// Why, or what for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Tag of the release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Its page for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_url: Option<String>,
    /// Since when the state is what it is.
    pub at: Timestamp,
    /// When the published claims cease to hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When it was last seen, or seen not, to be the newest release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked_at: Option<TimestampMillis>,
}

impl PublishStatus {
    /// Reads the file.
    ///
    /// # Errors
    /// It is too large or not of this shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        json::from_json(bytes, MAX_FILE)
    }
}

/// `publish/clock.json`, written by `publish`: what servers that are known by TLS say about the time. None is believed alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockStatus {
    /// Seconds by which the appliance's clock is ahead of what most of them say, negative when it is behind; absent while fewer than two agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead_s: Option<i64>,
    /// What each said last, at most [`ClockStatus::MAX_SOURCES`].
    pub sources: Vec<ClockSource>,
    /// When that was, by the appliance's clock.
    pub at: Timestamp,
}

/// What one server says about the time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockSource {
    /// The server.
    pub host: String,
    /// Seconds by which the appliance's clock is ahead of it.
    pub ahead_s: i64,
}

impl ClockStatus {
    /// Servers that are kept in mind.
    pub const MAX_SOURCES: usize = 8;

    /// Reads the file.
    ///
    /// # Errors
    /// It is too large or not of this shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        json::from_json(bytes, MAX_FILE)
    }
}

/// `vault/store.json`, written by `vault`: how full its store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreStatus {
    /// Secrets in it.
    pub secrets: u64,
    /// Bytes of its blocks that are in use.
    pub bytes: u64,
    /// Bytes of all its blocks.
    pub bytes_limit: u64,
}

impl StoreStatus {
    /// Reads the file.
    ///
    /// # Errors
    /// It is too large or not of this shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        json::from_json(bytes, MAX_FILE)
    }
}

/// What PID 1 has done about the clock, and when by the clock after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockSet {
    /// What.
    pub change: ClockChange,
    /// When.
    pub at: Timestamp,
}

/// A change of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockChange {
    /// How it was made, or that it was not.
    pub how: ClockHow,
    /// By how many milliseconds: positive is forward.
    pub by_ms: i64,
}

/// How the clock is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockHow {
    /// At once.
    Stepped,
    /// Over hours: it never jumps.
    Slewed,
    /// Not at all: it would be further from the host's than PID 1 goes.
    TooFar,
}

impl fmt::Display for ClockChange {
    /// After "the clock".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, tenths) = (self.by_ms.unsigned_abs() / 1000, self.by_ms.unsigned_abs() % 1000 / 100);
        let way = if self.by_ms < 0 { "back" } else { "forward" };
        match self.how {
            ClockHow::Stepped => write!(f, "was set {way} by {seconds}.{tenths} s"),
            ClockHow::Slewed => write!(f, "is slewed {way} by {seconds}.{tenths} s"),
            ClockHow::TooFar => {
                let word = if self.by_ms < 0 { "ahead" } else { "behind" };
                write!(f, "is {seconds} s {word}, too far from what the host said at boot to be set")
            }
        }
    }
}

/// What `publish` is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishState {
    /// Something that somebody else has to provide is missing.
    Waiting,
    /// A release is being made.
    Publishing,
    /// A true attestation is published.
    Published,
    /// A true attestation is published, and another machine publishes for the same repository.
    Contested,
    /// An attempt failed; there will be another.
    Failed,
}

impl PublishState {
    /// The word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Publishing => "publishing",
            Self::Published => "published",
            Self::Contested => "contested",
            Self::Failed => "failed",
        }
    }
}

/// Reply 200 of `GET` [`super::operator::STATUS`]: everything that an operator wants to see at one glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusReply {
    /// GitHub repository that is the appliance's identity.
    pub repository: Repository,
    /// Commit of the declaration.
    pub commit: Commit,
    /// Digest of the declaration's exact bytes.
    pub declaration: Digest,
    /// Where clients dial.
    pub endpoint: Endpoint,
    /// Name, release and digests of the image.
    pub image: ImageInfo,
    /// What becomes of the vault's state, in words.
    pub state: String,
    /// The measurement registers.
    pub registers: Registers,
    /// Stages of the boot with their durations, in order.
    pub phases: Vec<Phase>,
    /// The stage of the boot; null while PID 1 has said none.
    pub phase: Option<String>,
    /// The roles and shims; null while PID 1 has said nothing.
    pub roles: Option<Vec<RoleStatus>>,
    /// The services in the declaration's order.
    pub services: Vec<NamedService>,
    /// What `publish` is doing; null while it has said nothing.
    pub publish: Option<PublishStatus>,
    /// What the followed branch has; absent where the declaration follows none, or nothing was said yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<FollowStatus>,
    /// What became of declarations that were to take the place of what runs; absent while there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<Changes>,
    /// The certificate that browsers accept; absent where the declaration has none, or nothing was said yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateStatus>,
    /// The appliance's address, and where it comes from; absent while the role `network` has said nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkStatus>,
    /// What the front has counted; absent in answers of older appliances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub front: Option<FrontStatus>,
    /// How full the vault's store is; absent while that has said nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreStatus>,
    /// How far the clock is off; absent while nobody has been asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<ClockStatus>,
    /// What was done about it last; absent while it was left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_set: Option<ClockSet>,
    /// What the clock says; absent in answers of older appliances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
}

/// What the front has counted since it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrontStatus {
    /// Connections that were accepted.
    pub connections: u64,
    /// Those of them that are there now.
    pub open: u64,
    /// How often somebody did not get what they came for.
    pub refused: BTreeMap<Refusal, u64>,
    /// Quotes that were made for those who brought a nonce.
    pub quotes: u64,
    /// How many of those were answered with them.
    pub documents: u64,
}

/// Why the front refused something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// The TLS handshake failed, or took too long.
    Handshake,
    /// A connection's place was given to another one before it had asked for anything.
    Displaced,
    /// A request was answered with 401 or 403.
    NotAllowed,
    /// With another 4xx.
    Malformed,
    /// With a 5xx: there is no room, or what should answer does not.
    Unavailable,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Handshake, Self::Displaced, Self::NotAllowed, Self::Malformed, Self::Unavailable];

    /// The word in JSON and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Displaced => "displaced",
            Self::NotAllowed => "not-allowed",
            Self::Malformed => "malformed",
            Self::Unavailable => "unavailable",
        }
    }
}

/// A service's status under its name; what the shim has not said is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedService {
    /// As [`ServiceStatus::state`].
    pub state: ServiceState,
    /// As [`ServiceStatus::missing`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<Vec<SecretRef>>,
    /// As [`ServiceStatus::pid`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// As [`ServiceStatus::restarts`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<u32>,
    /// As [`ServiceStatus::exit_code`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// As [`ServiceStatus::killed`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub killed: Option<Killed>,
    /// As [`ServiceStatus::detail`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// As [`ServiceStatus::since`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<TimestampMillis>,
    /// As [`ServiceStatus::usage`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What it wanted outside and did not get; absent while that is nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressStatus>,
    /// As [`ServiceStatus::health`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// The service's name.
    pub name: String,
}

impl NamedService {
    /// The same with what PID 1 says about its shim. While that does not run, nothing of the service does, whatever the shim said
    /// last; a shim that was started again knows no end of a workload before its own first one.
    #[must_use]
    pub fn with_its_shim(self, shim: &RoleStatus) -> Self {
        if shim.state != RoleState::Running {
            let detail = shim.killed.map(|killed| format!("ended: {killed}"));
            let killed = shim.killed.or(self.killed);
            return Self {
                state: ServiceState::Restarting,
                pid: None,
                usage: None,
                health: None,
                detail,
                killed,
                ..self
            };
        }
        let killed = if self.exit_code.is_none() { shim.killed } else { self.killed };
        Self { killed, ..self }
    }

    /// The status of the service `name`, as far as its shim has said one.
    pub fn new(name: String, status: Option<ServiceStatus>) -> Self {
        match status {
            Some(status) => Self {
                detail: status.detail,
                egress: None,
                exit_code: status.exit_code,
                killed: status.killed,
                missing: Some(status.missing),
                name,
                pid: status.pid,
                restarts: Some(status.restarts),
                since: Some(status.since),
                state: status.state,
                usage: status.usage,
                health: status.health,
            },
            None => Self {
                detail: None,
                egress: None,
                exit_code: None,
                killed: None,
                missing: None,
                name,
                pid: None,
                restarts: None,
                since: None,
                state: ServiceState::Pending,
                usage: None,
                health: None,
            },
        }
    }
}
