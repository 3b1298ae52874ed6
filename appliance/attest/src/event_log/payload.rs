//! The payloads of RTMR3's events: JSON whose exact bytes are measured.
//!
//! The appliance writes them through [`Payload::event`] and a verifier reads them through [`Payload::read`], so
//! both sides agree on names and shapes.

use cofferdam_protocol::json::{self, JsonError};
use cofferdam_protocol::{Commit, Digest, Endpoint, ImageReference, Repository};
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

/// The declaration that was accepted, measured before its bytes are parsed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declaration {
    /// Digest of the exact bytes.
    pub digest: Digest,
    /// Where it came from: `disk`.
    pub source: String,
    /// Commit that its source claims.
    pub commit: Commit,
}

/// Whose appliance this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Appliance {
    /// GitHub repository that is its identity.
    pub repository: Repository,
    /// Digest of the declaration that says so.
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
}

/// The state that this boot runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Where it lives: `memory`.
    pub kind: String,
    /// Whether it began empty at this boot.
    pub fresh: bool,
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
impl Payload for State {
    const NAME: &'static str = "state";
}
impl Payload for Image {
    const NAME: &'static str = "image";
}
impl Payload for Launch {
    const NAME: &'static str = "launch";
}
