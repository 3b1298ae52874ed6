//! The payloads of RTMR3's events: JSON whose exact bytes are measured.
//!
//! The appliance writes them through [`Payload::event`] and a verifier reads them through [`Payload::read`], so
//! both sides agree on names and shapes.

use std::num::NonZeroU64;

use cofferdam_protocol::json::{self, JsonError};
use cofferdam_protocol::network::Ipv4Settings;
use cofferdam_protocol::state::Continuity;
use cofferdam_protocol::{Commit, Digest, Endpoint, Fingerprint, ImageReference, Repository};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Event, MAX_PAYLOAD};

/// A payload that belongs to exactly one event name.
pub trait Payload: Serialize + DeserializeOwned {
    /// Name of the event.
    const NAME: &'static str;

    /// The event to measure and to log.
    ///
    /// # Errors
    /// The payload cannot be written: nothing is measured then.
    fn event(&self) -> Result<Event, JsonError> {
        Ok(Event::new(Self::NAME, json::to_vec(self)?))
    }

    /// Reads the payload of `event`; `None` when it is another event or malformed.
    fn read(event: &Event) -> Option<Self> {
        if event.mr != 3 || event.event != Self::NAME {
            return None;
        }
        json::from_json(event.payload.as_deref()?, MAX_PAYLOAD).ok()
    }
}

/// A declaration that was accepted, measured before it takes effect. The first one's event opens the log, before its bytes are
/// parsed; one that is applied at run time follows the launch boundary, and one [`Image`] for each of its services follows it. The
/// last one holds, and is what the claims say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declaration {
    /// Digest of the exact bytes.
    pub digest: Digest,
    /// Where it came from: [`Declaration::FROM_DISK`] or [`Declaration::FROM_GITHUB`].
    pub source: String,
    /// Commit that its source claims. From GitHub, one of the declaration before it has signed for that.
    pub commit: Commit,
}

impl Declaration {
    /// The host's disk: at boot, and never later.
    pub const FROM_DISK: &str = "disk";
    /// A signed commit of the followed repository, or the declaration that one had taken the place of: behind the launch boundary,
    /// and never before it.
    pub const FROM_GITHUB: &str = "github";
}

/// What a declaration measures that is applied at run time, in order: itself, and the image of each of its services in its order.
/// `coffer plan` predicts RTMR3 by it.
///
/// # Errors
/// A payload cannot be written.
pub fn applied<'a>(
    digest: Digest,
    commit: Commit,
    services: impl IntoIterator<Item = (&'a str, &'a ImageReference)>,
) -> Result<Vec<Event>, JsonError> {
    let declaration = Declaration { digest, source: Declaration::FROM_GITHUB.to_owned(), commit }.event();
    let image = |(service, reference): (&str, &ImageReference)| {
        Image { service: service.to_owned(), reference: reference.clone() }.event()
    };
    std::iter::once(declaration).chain(services.into_iter().map(image)).collect()
}

/// Whose appliance this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Appliance {
    /// GitHub repository that is its identity.
    pub repository: Repository,
    /// Digest of the declaration that says so: the first one's. Those that are applied later say the same of both.
    pub declaration: Digest,
    /// Where clients dial. The verifier compares it with the claim of the same name, so that a changed
    /// claim is named and not merely refused.
    pub endpoint: Endpoint,
}

/// Parameters that the host chose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The address that the host has set. Without it one comes from a DHCP server, which decides nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Ipv4Settings>,
}

/// The state that this boot runs on. Its `kind` says which members there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", deny_unknown_fields)]
pub enum State {
    /// In memory.
    Memory {
        /// It began empty at this boot: always true.
        #[serde(deserialize_with = "always")]
        fresh: bool,
    },
    /// On a disk, which this boot opened before anything used it.
    Disk {
        /// Whether it was made at this boot.
        fresh: bool,
        /// What opened it: SHA-256 of the key slot, which is no secret.
        key: Digest,
        /// Number of the store's commit when it was opened: the claim `state_epoch`. 0 is what state in memory claims.
        epoch: NonZeroU64,
        /// Version of its lineage: it rises with each statement that let another image, repository or operators open it.
        lineage: NonZeroU64,
        /// What there is against older copies of it: the claim `state_continuity`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        continuity: Option<Continuity>,
    },
}

impl State {
    /// State in memory, as it is at every boot.
    pub fn memory() -> Self {
        Self::Memory { fresh: true }
    }
}

/// The statement that let this boot open the state, right before [`State`]: only where one was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upgrade {
    /// Digest of what was signed ([`cofferdam_protocol::upgrade`]).
    pub statement: Digest,
    /// The version that it gave the lineage.
    pub version: NonZeroU64,
    /// The operator's key that signed.
    pub signer: Fingerprint,
}

/// State in memory that is not fresh would be state from nowhere.
fn always<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match bool::deserialize(deserializer)? {
        true => Ok(true),
        false => Err(serde::de::Error::custom("state in memory is fresh")),
    }
}

/// One workload image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Service that runs it.
    pub service: String,
    /// Reference by digest.
    pub reference: ImageReference,
}

/// The launch boundary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// Names of the services, in the declaration's order.
    pub services: Vec<String>,
    /// Digest of the TLS key's SubjectPublicKeyInfo: the key is made before the launch boundary, so no
    /// later process can bring its own. The verifier compares it with the claim of the same name.
    pub tls_key: Digest,
}

impl Payload for Declaration {
    const NAME: &'static str = "declaration";
}
impl Payload for Appliance {
    const NAME: &'static str = "appliance";
}
impl Payload for Machine {
    const NAME: &'static str = "machine";
}
impl Payload for Upgrade {
    const NAME: &'static str = "upgrade";
}
impl Payload for State {
    const NAME: &'static str = "state";
}
impl Payload for Image {
    const NAME: &'static str = "image";
}
impl Payload for Launch {
    const NAME: &'static str = "launch";
}
