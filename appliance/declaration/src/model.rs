//! What a declaration says, in types that only a valid declaration fills, or somebody who reads back what was filled by one.
//!
//! Everything here is a plain value: nothing is read, dialled or started. Where Compose leaves something to
//! defaults, the default is already filled in, so that no two readers can fill it in differently.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use cofferdam_protocol::state::Rollback;
use cofferdam_protocol::{
    Branch, Digest, Endpoint, HttpUrl, HttpsUrl, ImageReference, OperatorKey, RegistryHost, Repository,
    SecretRef, SignerKey,
};
use serde::{Deserialize, Serialize};

use crate::composed::Value;
use crate::depends::Dependency;
use crate::egress::Egress;
use crate::health::{Healthcheck, OnUnhealthy};
use crate::limits::{Capability, Limits, Ulimits};
use crate::on_change::OnChange;
use crate::profile::Profile;
use crate::value::{IdOrName, Signal, User};

/// A parsed and validated `cofferdam.yaml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Declaration {
    /// The appliance's identity.
    pub repository: Repository,
    /// Where clients dial; it becomes a claim.
    pub endpoint: Endpoint,
    /// Who may put secrets and read status and logs; names and keys are unique.
    pub operators: Vec<Operator>,
    /// With which tokens clients call ports that take tokens; names and hashes are unique.
    pub tokens: Vec<Token>,
    /// Whose commits of the repository count; keys and names are unique. At least one where something is followed.
    pub signers: Vec<SignerKey>,
    /// What of the repository the appliance looks at. There is a token then.
    pub follow: Option<Follow>,
    /// Where release attestations go.
    pub github: Github,
    /// Where the collateral of quotes comes from.
    pub attestation: Attestation,
    /// The certificate that browsers accept, beside the attested one.
    pub certificate: Option<Certificate>,
    /// Where the state lives, and what opens it.
    pub state: StateSource,
    /// Whether it opens where no witness says how new it has to be.
    pub rollback: Rollback,
    /// What is known about registries beyond their names in image references; hosts are unique.
    pub registries: Vec<Registry>,
    /// Bytes of the state disk that images are kept in; without it, and without a state on a disk, they lie in memory.
    pub images: Option<u64>,
    /// Directories on the state disk that services share and that outlive them, in the order of the file; names are unique. There are
    /// none without a state on a disk.
    pub volumes: Vec<Volume>,
    /// 1 to 64 services in the order of the file, which is also the order of their `image` events.
    pub services: Vec<Service>,
}

/// A person or machine that may operate the appliance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Operator {
    /// `[a-z0-9][a-z0-9._-]{0,62}`.
    pub name: String,
    /// The key that signs the operator's requests.
    pub key: OperatorKey,
}

/// A token, as far as it is known to those who check it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// `[a-z0-9][a-z0-9._-]{0,62}`: what services are told of who calls.
    pub name: String,
    /// [`AccessToken::hash`](cofferdam_protocol::AccessToken::hash).
    pub hash: Digest,
}

/// What the appliance looks at to see whether there is a newer declaration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// The branch; `main` unless the declaration names another.
    pub branch: Branch,
    /// Between two looks: 10 s to a day, a minute unless the declaration says otherwise.
    pub interval: Duration,
    /// Whether what counts there takes the place of what runs; else it is said, and nothing more.
    pub apply: bool,
}

/// The GitHub that holds the repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Github {
    /// Root of the REST API; `https://api.github.com` unless the declaration names another.
    pub api: HttpsUrl,
    /// The token that publishes releases. Without it nothing is published.
    pub token: Option<SecretRef>,
    /// PEM certificates that alone are trusted for this server; the image's bundle when absent.
    pub ca: Option<String>,
}

/// Where quotes' collateral comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attestation {
    /// Root of the provisioning certification service, without `/sgx/…`.
    pub collateral: HttpsUrl,
    /// PEM certificates that alone are trusted for this server; the image's bundle when absent.
    pub ca: Option<String>,
}

/// A certificate that browsers accept, from an authority that speaks ACME (RFC 8555).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The DNS names that it is for, 1 to 8 in lower case; unique.
    pub names: Vec<String>,
    /// The authority's directory; Let's Encrypt's unless the declaration names another.
    pub directory: HttpsUrl,
    /// Whom the authority may write to: `mailto:` URLs, at most 4.
    pub contact: Vec<String>,
    /// PEM certificates that alone are trusted for the authority's own server; the image's bundle when absent.
    pub ca: Option<String>,
}

/// Where the appliance's state lives, and what opens it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StateSource {
    /// In memory, made anew at each boot. Every declaration's that says nothing.
    #[default]
    Memory,
    /// On the state disk, under a key that operators give at each boot. There is at least one operator.
    Operator,
    /// On the state disk, under keys of 1 to [`MAX_SERVERS`](cofferdam_protocol::keyserve::MAX_SERVERS) key servers, no two with one signing key. Any one's opens it.
    /// There is at least one operator.
    Peer(Vec<KeyServer>),
}

/// A key server (`coffer keyserve`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyServer {
    /// Where it is. What it says needs no secrecy on its way, and bears its signature.
    pub url: HttpUrl,
    /// The key that signs its answers.
    pub key: OperatorKey,
    /// PEM certificates that alone are trusted for an https URL; the image's bundle when absent.
    pub ca: Option<String>,
}

/// What is known about a registry, or about a host that a registry sends to, such as its token service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    /// As it stands in image references.
    pub host: RegistryHost,
    /// PEM certificates that alone are trusted for this registry; the image's bundle when absent.
    pub ca: Option<String>,
    /// As whom images are pulled from it; anonymously when absent.
    pub login: Option<Login>,
}

/// A user of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// 1 to 255 visible ASCII characters without a colon (RFC 7617 §2).
    pub username: String,
    /// Which secret is the password or access token. It is leased for the pull alone and reaches no workload.
    pub password: SecretRef,
}

/// A directory on the state disk that outlives the services that see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// `[a-z0-9][a-z0-9._-]{0,62}`.
    pub name: String,
    /// What it takes of the state disk, in bytes: a whole number of MiB.
    pub size: u64,
}

/// What the volume is called that has so many bytes for images.
pub fn images_volume(size: u64) -> String {
    format!(".images-{}m", size >> 20)
}

/// Where a service sees a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// The volume's name.
    pub source: String,
    /// Absolute; no other volume and no tmpfs of the service goes there.
    pub target: String,
    /// Whether the service cannot write to it.
    pub read_only: bool,
    /// Whether programs in it can be executed.
    pub exec: bool,
}

/// One workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `[a-z0-9][a-z0-9_-]{0,30}`: also its host name, by which the others in its networks know it.
    pub name: String,
    /// What runs.
    pub image: ImageReference,
    /// Replaces the image's command; empty means none. `None` keeps the image's.
    pub command: Option<Vec<String>>,
    /// Replaces the image's entrypoint, and then the image's command is not used either, as in Compose.
    /// Empty means none. `None` keeps the image's.
    pub entrypoint: Option<Vec<String>>,
    /// Variables in the order of the file; names are unique.
    pub environment: Vec<(String, Value)>,
    /// Files under `/run/secrets`; targets are unique.
    pub secrets: Vec<SecretFile>,
    /// Files that it only reads, in the order of the file; targets are unique.
    pub configs: Vec<ConfigFile>,
    /// Published ports, unique over all services.
    pub ports: Vec<Port>,
    /// The networks that it is a member of, without repeats: its first interface is in the first. Empty when it has none.
    pub networks: Vec<Membership>,
    /// Lines of its `/etc/hosts` beside its own: names with their addresses.
    pub extra_hosts: Vec<(String, IpAddr)>,
    /// Where it may connect to outside of the appliance: nowhere when empty, as it is without a network. Names with their ports are unique.
    pub egress: Vec<Egress>,
    /// The services that it waits for before its first start, in the order of the file, without repeats.
    pub depends_on: Vec<Dependency>,
    /// How it is found out whether it is healthy.
    pub healthcheck: Healthcheck,
    /// What happens when it is not. It starts again only when `restart` lets it.
    pub on_unhealthy: OnUnhealthy,
    /// What happens when a secret that it was given is put again while it runs.
    pub on_change: OnChange,
    /// What happens when it ends.
    pub restart: Restart,
    /// `None` keeps the image's user.
    pub user: Option<User>,
    /// Further groups, beside those that the image gives the user.
    pub group_add: Vec<IdOrName>,
    /// Absolute; `None` keeps the image's.
    pub working_dir: Option<String>,
    /// Whether the root file system is mounted read-only.
    pub read_only: bool,
    /// Absolute paths of empty in-memory file systems; unique.
    pub tmpfs: Vec<String>,
    /// Volumes that it sees; targets are unique.
    pub volumes: Vec<VolumeMount>,
    /// What asks it to stop; `None` keeps the image's, or SIGTERM.
    pub stop_signal: Option<Signal>,
    /// How long it gets between that signal and SIGKILL. At most ten minutes.
    pub stop_grace_period: Duration,
    /// What it may use, its shim included, and its image where that lies in memory.
    pub limits: Limits,
    /// Bytes of `/dev/shm`; not 0.
    pub shm_size: u64,
    /// Resource limits of each of its processes.
    pub ulimits: Ulimits,
    /// What its processes may have of root's privileges over its own files, processes and network.
    pub capabilities: BTreeSet<Capability>,
    /// Which of the system calls and files that it may use it confines itself to.
    pub profile: Profile,
}

/// What Compose gives a service to stop in.
pub const DEFAULT_STOP_GRACE_PERIOD: Duration = Duration::from_secs(10);

/// A secret that is delivered as a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretFile {
    /// Which secret.
    pub source: SecretRef,
    /// One file name under `/run/secrets`: `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`.
    pub target: String,
}

/// A file that is declared with its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigFile {
    /// What is in it.
    pub content: Value,
    /// Absolute; nothing else of the service goes there.
    pub target: String,
    /// Whose it is; 0 to 65534.
    pub uid: u32,
    /// Of which group; 0 to 65534.
    pub gid: u32,
    /// Permission bits, at most 0o777.
    pub mode: u32,
}

/// A port of the appliance that leads to a port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// On the appliance, TLS with the attested key.
    pub published: u16,
    /// In the service's network namespace.
    pub target: u16,
    /// What the service speaks there.
    pub speaks: Speaks,
    /// Who may call it.
    pub auth: Auth,
    /// Whether the service's secrets are taken out of what it answers there, which is then HTTP/1.1 and nothing else.
    pub redact_responses: bool,
}

/// What passes between a published port and the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speaks {
    /// HTTP/1.1. Every port's unless it says otherwise.
    Http,
    /// HTTP/2 without TLS and from the first byte on (RFC 9113 §3.3).
    H2c,
    /// Bytes, for clients inside the attested TLS.
    Tcp,
    /// Bytes as they come: TLS, if it is that, is the service's own and nobody attests its key.
    Tls,
}

/// Whose requests at a published port reach the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auth {
    /// Those on a connection on which an operator has signed in. Every port's unless it says otherwise.
    Operators,
    /// Those with one of the declaration's tokens.
    Tokens,
    /// Everybody's.
    None,
}

/// A service's place in a network, whose members reach each other at every port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The network's name: declared, or `default`.
    pub network: String,
    /// Names by which the other members know it beside its own; no other member is called so. Host names in lower case.
    pub aliases: Vec<String>,
}

/// What happens when a service's process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// It stays ended.
    No,
    /// It starts again, always.
    Always,
    /// It starts again after a non-zero exit or a signal.
    OnFailure {
        /// How often in a row; without a number, without end.
        max_retries: Option<u32>,
    },
    /// Like [`Restart::Always`] until an operator stops it.
    UnlessStopped,
}

impl Declaration {
    /// What lies on the state disk beside the vault's store: the volumes of the file, and behind them the one of images. No file can
    /// declare one of that name, which has the size in it: images come again, so another size is another volume.
    pub fn sealed_volumes(&self) -> Vec<Volume> {
        let images = self.images.map(|size| Volume { name: images_volume(size), size });
        self.volumes.iter().cloned().chain(images).collect()
    }

    /// What is known about the registry of an image.
    pub fn registry_of(&self, image: &ImageReference) -> Option<&Registry> {
        self.registries.iter().find(|registry| registry.host == *image.registry())
    }

    /// Looks a service up by its name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }

    /// Every secret that one service is granted, each once, in order. Empty for an unknown name.
    pub fn references_of(&self, service: &str) -> Vec<&SecretRef> {
        self.service(service).map(Service::references).unwrap_or_default()
    }

    /// Every secret that anything in the declaration names, each once, in order.
    pub fn references(&self) -> Vec<&SecretRef> {
        let services = self.services.iter().flat_map(Service::references);
        let logins = self.registries.iter().filter_map(|registry| registry.login.as_ref());
        let appliance = self.github.token.iter().chain(logins.map(|login| &login.password));
        services.chain(appliance).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The services in an order in which each comes after all that it depends on, and otherwise as
    /// in the file. A parsed declaration has no cycle; services in one would be left out.
    pub fn start_order(&self) -> Vec<&Service> {
        let mut order = Vec::with_capacity(self.services.len());
        let mut placed = BTreeSet::new();
        while let Some(next) = self.services.iter().find(|service| {
            !placed.contains(service.name.as_str())
                && service.depends_on.iter().all(|on| placed.contains(on.service.as_str()))
        }) {
            placed.insert(next.name.as_str());
            order.push(next);
        }
        order
    }

    /// The networks that have members, each once, in order.
    pub fn networks(&self) -> BTreeSet<&str> {
        let memberships = self.services.iter().flat_map(|service| &service.networks);
        memberships.map(|membership| membership.network.as_str()).collect()
    }

    /// Which service and which of its ports answers at each published port.
    pub fn published(&self) -> BTreeMap<u16, (&Service, u16)> {
        let ports = self.services.iter().flat_map(|service| {
            service.ports.iter().map(move |port| (port.published, (service, port.target)))
        });
        ports.collect()
    }
}

impl Service {
    /// Every secret that this service is granted, each once, in order.
    pub fn references(&self) -> Vec<&SecretRef> {
        let values = self.environment.iter().map(|(_, value)| value);
        let values = values.chain(self.configs.iter().map(|config| &config.content));
        let files = self.secrets.iter().map(|file| &file.source);
        values.flat_map(Value::references).chain(files).collect::<BTreeSet<_>>().into_iter().collect()
    }
}
