//! What PID 1 tells the roles: `facts.json`, what the declaration decides for them, resolved once; and `appliance.json`.
//!
//! PID 1 writes the file before the roles start. They read it and never the declaration: what a service is called, runs
//! as, owns, may lease and is reached at is decided in one place. Nothing in it is secret.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use cofferdam_declaration::{
    Attestation, Dependency, Follow, Github, HttpUrl, Port, Registry, SecretRef, Service, SignerKey, Token,
    Volume, VolumeMount,
};
use cofferdam_protocol::certificate::CertificateClaim;
use cofferdam_protocol::facts::{self as appliance_facts, ApplianceFacts};
use cofferdam_protocol::json::{self, JsonError};
use cofferdam_protocol::keyserve::{ServerId, server_id};
use cofferdam_protocol::state::Rollback;
use cofferdam_workload::cgroup::Group;
use cofferdam_workload::dns::Names;
use cofferdam_workload::volume;
use serde::{Deserialize, Serialize};

use crate::paths;
use crate::system::files;

/// Bound on the file in bytes: a declaration has at most 1 MiB, and JSON writes a byte of it in at most six.
const MAX_BYTES: usize = 8 << 20;

/// Before the name of a service that is to run: its shim reads [`paths::FACTS_NEXT`] and fetches its image. No service's name has a slash.
pub(crate) const NEXT: &str = "next/";

/// What each shim is given on top of its service's memory, in bytes: some 8 MiB for itself and its connections, and
/// two logs of 1 MiB each.
pub(crate) const SHIM_SHARE: u64 = 16 << 20;

/// The decisions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Facts {
    /// Whose signatures count.
    pub(crate) operators: Vec<OperatorFacts>,
    /// With which tokens clients call ports that take tokens.
    pub(crate) tokens: Vec<Token>,
    /// What of the repository is looked at, and whose commits count.
    pub(crate) follow: Option<FollowFacts>,
    /// Where releases go.
    pub(crate) github: Github,
    /// Where collateral comes from.
    pub(crate) attestation: Attestation,
    /// The certificate that browsers accept.
    pub(crate) certificate: Option<CertificateFacts>,
    /// Who releases keys of the state while it is closed, and is told how new it is.
    pub(crate) key_servers: Vec<KeyServerFacts>,
    /// Whether it opens where no witness was asked.
    pub(crate) rollback: Rollback,
    /// What is known about the registries of images.
    pub(crate) registries: Vec<Registry>,
    /// Who may lease what: the services and `publish`.
    pub(crate) grants: Vec<Grant>,
    /// The networks that have members, in the order of their names.
    pub(crate) networks: Vec<String>,
    /// What lies on the state disk beside the store: the volumes in the order of the declaration, then that of images.
    pub(crate) volumes: Vec<Volume>,
    /// The services in the order of the declaration.
    pub(crate) services: Vec<ServiceFacts>,
}

/// What of the repository is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FollowFacts {
    /// As it is declared.
    pub(crate) declared: Follow,
    /// Whose commits count; at least one.
    pub(crate) signers: Vec<SignerKey>,
}

/// The certificate that browsers accept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CertificateFacts {
    /// As it is declared.
    pub(crate) declared: cofferdam_declaration::Certificate,
    /// What is claimed of it before there is an account.
    pub(crate) claim: CertificateClaim,
    /// The request for it (PKCS #10, DER), in hex. It is the same for each certificate.
    #[serde(with = "hex")]
    pub(crate) request: Vec<u8>,
}

/// A service's place in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Place {
    /// The network's name.
    pub(crate) network: String,
    /// Where the other members reach the service, nobody else's in any network.
    pub(crate) address: Ipv4Addr,
    /// The other members' addresses.
    pub(crate) others: Vec<Ipv4Addr>,
}

/// An operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OperatorFacts {
    /// As declared.
    pub(crate) name: String,
    /// The Ed25519 public key, in hex.
    #[serde(with = "hex")]
    pub(crate) key: [u8; 32],
}

/// A key server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyServerFacts {
    /// Where it is.
    pub(crate) url: HttpUrl,
    /// The Ed25519 public key that signs its answers, in hex.
    #[serde(with = "hex")]
    pub(crate) key: [u8; 32],
    /// The only certificate authorities for an https URL, in PEM.
    pub(crate) ca: Option<String>,
}

impl KeyServerFacts {
    /// Which one it is, between `publish` and the vault.
    pub(crate) fn id(&self) -> ServerId {
        server_id(&self.key)
    }
}

/// One secret that one peer may lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Grant {
    /// The peer's uid, as the kernel tells it.
    pub(crate) uid: u32,
    /// The secret.
    pub(crate) secret: SecretRef,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServiceFacts {
    /// The host uid and gid of its shim: the first of its 65,537 ids, of which the others are its container's.
    pub(crate) uid: u32,
    /// Its place in each of its networks, in the order of the declaration.
    pub(crate) networks: Vec<Place>,
    /// Its control group: another one with another image, so that this can be pulled while that one runs.
    pub(crate) cgroup: PathBuf,
    /// Bytes of memory that its workload may use, together with its image if it pulls that and it lies in memory.
    pub(crate) memory: u64,
    /// What others see of it: status, log, sockets. Owned by its shim.
    pub(crate) directory: PathBuf,
    /// Where its shim, and nobody else, sees into the file system of its image.
    pub(crate) rootfs: PathBuf,
    /// Whether its image lies on the state disk, and not in memory.
    pub(crate) image_on_disk: bool,
    /// The service that pulls its image, and whose memory that takes: the first of the declaration with this digest.
    pub(crate) puller: String,
    /// As it is declared.
    pub(crate) declared: Service,
}

/// Why the facts are not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FactsError {
    /// The file is missing, unreadable or larger than PID 1 could have made it.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not of its shape.
    #[error("{} is not of the expected shape", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// Where and how it differs.
        #[source]
        source: JsonError,
    },
    /// It knows no service of this name.
    #[error("there is no service {0}")]
    NoService(String),
}

/// Reads `appliance.json`, what PID 1 measured and what came of it.
///
/// # Errors
///
/// [`FactsError`].
pub(crate) fn appliance(path: &Path) -> Result<ApplianceFacts, FactsError> {
    read(path, appliance_facts::MAX_BYTES, ApplianceFacts::parse)
}

/// A file of PID 1's: a role that cannot read it stops, since without it it could only guess.
fn read<T>(
    path: &Path,
    limit: usize,
    parse: impl FnOnce(&[u8]) -> Result<T, JsonError>,
) -> Result<T, FactsError> {
    let bytes = files::read_bounded(path, limit as u64)
        .map_err(|source| FactsError::Read { path: path.to_owned(), source })?;
    parse(&bytes).map_err(|source| FactsError::Shape { path: path.to_owned(), source })
}

impl Facts {
    /// Reads the file that PID 1 wrote.
    ///
    /// # Errors
    ///
    /// [`FactsError`].
    pub(crate) fn read(path: &Path) -> Result<Self, FactsError> {
        read(path, MAX_BYTES, |bytes| json::from_json(bytes, MAX_BYTES))
    }

    /// What a shim was called with: the facts that it is about, the service's name, and whether that one is to run and not running.
    ///
    /// # Errors
    ///
    /// [`FactsError`].
    pub(crate) fn of_word(word: &str) -> Result<(Self, &str, bool), FactsError> {
        match word.strip_prefix(NEXT) {
            Some(name) => Ok((Self::read(Path::new(paths::FACTS_NEXT))?, name, true)),
            None => Ok((Self::read(Path::new(paths::FACTS))?, word, false)),
        }
    }

    /// The service of this name.
    ///
    /// # Errors
    ///
    /// [`FactsError::NoService`].
    pub(crate) fn service(&self, name: &str) -> Result<&ServiceFacts, FactsError> {
        let found = self.services.iter().find(|service| service.declared.name == name);
        found.ok_or_else(|| FactsError::NoService(name.to_owned()))
    }

    /// What is known about the registry of a service's image.
    pub(crate) fn registry(&self, service: &ServiceFacts) -> Option<&Registry> {
        self.registries.iter().find(|registry| registry.host == *service.declared.image.registry())
    }

    /// The names that `service` knows: its own and those of whoever shares a network with it, in the networks that they share.
    pub(crate) fn names(&self, service: &ServiceFacts) -> Names {
        let mut names = Names::default();
        // What is in /etc/hosts too, for programs that ask the resolver first.
        names.add("localhost", Ipv4Addr::LOCALHOST);
        for place in &service.networks {
            for other in &self.services {
                let at = other.networks.iter().find(|at| at.network == place.network);
                let declared = other.declared.networks.iter().find(|at| at.network == place.network);
                let (Some(at), Some(declared)) = (at, declared) else { continue };
                names.add(&other.declared.name, at.address);
                declared.aliases.iter().for_each(|alias| names.add(alias, at.address));
            }
        }
        names
    }

    /// What `service` waits for, each with the service that it waits for, in the order of the declaration.
    pub(crate) fn dependencies<'a>(
        &'a self,
        service: &'a ServiceFacts,
    ) -> Vec<(&'a Dependency, &'a ServiceFacts)> {
        let found = service.declared.depends_on.iter();
        found.filter_map(|on| Some((on, self.service(&on.service).ok()?))).collect()
    }
}

impl ServiceFacts {
    /// Its address in the first of its networks.
    pub(crate) fn address(&self) -> Option<Ipv4Addr> {
        self.networks.first().map(|place| place.address)
    }

    /// Whether it pulls its image itself.
    pub(crate) fn pulls(&self) -> bool {
        self.puller == self.declared.name
    }

    /// What is there once its image is and nobody can change it any more.
    pub(crate) fn seal(&self) -> PathBuf {
        Path::new(paths::SEALS_DIR).join(self.declared.image.digest().hex())
    }

    /// Its control group as everybody but its shim sees it.
    pub(crate) fn group(&self) -> Group {
        self.group_at(&self.cgroup)
    }

    /// The same at another place: its shim sees it as the whole hierarchy.
    pub(crate) fn group_at(&self, place: &Path) -> Group {
        let limits = self.declared.limits;
        Group::new(place, self.memory, limits.processes(), limits.cpus).with_image_on_disk(self.image_on_disk)
    }

    /// What its whole control group may use, in bytes.
    pub(crate) fn group_memory(&self) -> u64 {
        self.memory.saturating_add(SHIM_SHARE)
    }

    /// The directory where its shim, and nobody else, sees its volumes.
    pub(crate) fn volumes_directory(&self) -> PathBuf {
        Path::new(paths::SERVICE_VOLUMES_DIR).join(&self.declared.name)
    }

    /// Its volumes in the order of the declaration: where its shim sees each, and where its container does.
    pub(crate) fn volumes(&self) -> Vec<volume::Volume> {
        let directory = self.volumes_directory();
        let mounts = self.declared.volumes.iter().enumerate();
        let volume = |(number, mount): (usize, &VolumeMount)| volume::Volume {
            // A number: two of them may show the same volume in different ways.
            source: directory.join(number.to_string()),
            target: mount.target.clone(),
            read_only: mount.read_only,
        };
        mounts.map(volume).collect()
    }

    /// What its shim is doing.
    pub(crate) fn status(&self) -> PathBuf {
        self.directory.join("status.json")
    }

    /// What happened to it.
    pub(crate) fn events(&self) -> PathBuf {
        self.directory.join("events")
    }

    /// Its redacted output as JSON lines.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// The log before that one.
    pub(crate) fn previous_log(&self) -> PathBuf {
        self.directory.join("log.1")
    }

    /// A Unix socket that its shim relays to this port inside its network: one that redacts and one that does not are two.
    pub(crate) fn socket(&self, port: &Port) -> PathBuf {
        let redacted = if port.redact_responses { "-redacted" } else { "" };
        self.directory.join(format!("port-{}{redacted}", port.target))
    }
}
