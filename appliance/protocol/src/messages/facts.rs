//! `appliance.json`: what PID 1 measured and decided, as the roles read it.
//!
//! PID 1 writes the file before the roles start and replaces it atomically, so a reader sees one whole version.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::certificate::CertificateClaim;
use super::event::{Event, Register};
use super::state::State;
use crate::json::{self, JsonError};
use crate::{Commit, Digest, Endpoint, Repository, hex};

/// Bound on the file in bytes: the event log of 64 services and a long firmware log is well under a third of it.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Most parts of an image whose digests are said.
const MAX_PARTS: usize = 64;

/// Longest name of an image, of its release and of its parts, in bytes.
const MAX_NAME: usize = 128;

/// The facts of this boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplianceFacts {
    /// GitHub repository that is the appliance's identity.
    pub repository: Repository,
    /// Commit of the declaration.
    pub commit: Commit,
    /// Digest of the declaration's exact bytes.
    pub declaration: Digest,
    /// Where clients dial.
    pub endpoint: Endpoint,
    /// Digest of the TLS key's SubjectPublicKeyInfo DER.
    pub tls_key: Digest,
    /// The certificate that browsers accept, without the account's URL; where the declaration has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateClaim>,
    /// How this boot's state is kept.
    pub state: State,
    /// The firmware's events and ours, in the order in which they were measured.
    pub event_log: Vec<Event>,
    /// Stages of the boot with their durations, in order.
    pub phases: Vec<Phase>,
    /// The measurement registers.
    pub registers: Registers,
    /// Name, release and digests of the image.
    pub image: ImageInfo,
}

impl ApplianceFacts {
    /// Reads the file.
    ///
    /// # Errors
    /// It is larger than PID 1 could have made it, or not of this shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        json::from_json(bytes, MAX_BYTES)
    }
}

/// One stage of the boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// The stage's name.
    pub name: String,
    /// How long it took, in milliseconds.
    pub ms: u64,
}

/// The measurement registers of a trust domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registers {
    /// MRTD: the memory that the domain started with.
    #[serde(with = "hex::array")]
    pub mrtd: Register,
    /// RTMR0: the firmware's configuration.
    #[serde(with = "hex::array")]
    pub rtmr0: Register,
    /// RTMR1: what the firmware started.
    #[serde(with = "hex::array")]
    pub rtmr1: Register,
    /// RTMR2: the command line and the initramfs.
    #[serde(with = "hex::array")]
    pub rtmr2: Register,
    /// RTMR3: the appliance's own events.
    #[serde(with = "hex::array")]
    pub rtmr3: Register,
}

impl Registers {
    /// All of them by name, MRTD first.
    pub fn named(&self) -> [(&'static str, &Register); 5] {
        [
            ("mrtd", &self.mrtd),
            ("rtmr0", &self.rtmr0),
            ("rtmr1", &self.rtmr1),
            ("rtmr2", &self.rtmr2),
            ("rtmr3", &self.rtmr3),
        ]
    }
}

/// What the appliance says about its image. A hint for finding reference values, never a proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageInfo {
    /// Name of the image: `cofferdam`.
    pub name: String,
    /// Its release, `0.1.0`.
    pub release: String,
    /// Digests of its parts by name.
    #[serde(deserialize_with = "json::unique_map")]
    pub digests: BTreeMap<String, Digest>,
}

impl ImageInfo {
    /// Whether there are not too many parts and every name is 1 to 128 printable ASCII characters.
    pub fn is_bounded(&self) -> bool {
        let named = |text: &str| {
            (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
        };
        named(&self.name)
            && named(&self.release)
            && self.digests.len() <= MAX_PARTS
            && self.digests.keys().all(|name| named(name))
    }
}
