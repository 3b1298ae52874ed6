//! `appliance.json`: what PID 1 measured and decided, as the roles read it.
//!
//! PID 1 writes the file before the roles start and replaces it atomically, so a reader sees one whole
//! version. A role that cannot read it stops: without these facts it could only guess.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use cofferdam_attest::event_log::Event;
use cofferdam_attest::evidence::ImageInfo;
use serde::{Deserialize, Serialize};

use super::state::State;

/// Bound on the file in bytes: the event log of 32 services and a long firmware log is well under a third of it.
const MAX_BYTES: u64 = 1024 * 1024;

/// The facts of this boot.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Appliance {
    /// GitHub repository that is the appliance's identity, `owner/repo`.
    pub(crate) repository: String,
    /// Commit of the declaration, 40 lower-case hex digits.
    pub(crate) commit: String,
    /// Digest of the declaration's exact bytes, `sha256:<64 hex>`.
    pub(crate) declaration: String,
    /// Where clients dial, `host:port`.
    pub(crate) endpoint: String,
    /// SHA-256 of the TLS key's SubjectPublicKeyInfo DER, `sha256:<64 hex>`.
    pub(crate) tls_key: String,
    /// How this boot's state is kept.
    pub(crate) state: State,
    /// The firmware's events and ours, in the order in which they were measured.
    pub(crate) event_log: Vec<Event>,
    /// Stages of the boot with their durations, in order.
    pub(crate) phases: Vec<Phase>,
    /// `mrtd`, `rtmr0` to `rtmr3`: 96 hex digits each.
    pub(crate) registers: BTreeMap<String, String>,
    /// Name, release and digests of the image.
    pub(crate) image: ImageInfo,
}

/// One stage of the boot.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Phase {
    /// The stage's name.
    pub(crate) name: String,
    /// How long it took, in milliseconds.
    pub(crate) ms: u64,
}

/// Why the facts of this boot are not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplianceError {
    /// The file is missing or unreadable.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The file is larger than PID 1 could have made it.
    #[error("{} is larger than {MAX_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not of the shape of [`Appliance`].
    #[error("{} is not of the expected shape", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// Where and how it differs.
        #[source]
        source: serde_json::Error,
    },
}

impl Appliance {
    /// Reads the file that PID 1 wrote.
    ///
    /// # Errors
    /// When it cannot be read, is too large or not of this shape.
    pub(crate) fn read(path: &Path) -> Result<Self, ApplianceError> {
        let read = |source| ApplianceError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_BYTES.saturating_add(1)).read_to_end(&mut bytes))
            .map_err(read)?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
            return Err(ApplianceError::TooLarge { path: path.to_owned() });
        }
        serde_json::from_slice(&bytes)
            .map_err(|source| ApplianceError::Shape { path: path.to_owned(), source })
    }
}
