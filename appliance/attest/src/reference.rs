//! Reference values: what the registers of a released image must hold, predicted from its parts.
//!
//! They come from `measurements/` or from `coffer measure`, never from the machine that is appraised. The predicted events
//! travel along so that a mismatch can be explained by the first event that differs.

use serde::{Deserialize, Serialize};

use crate::event_log::{self, Event, MAX_EVENTS, Register};
use crate::evidence::ImageInfo;
use crate::strict::{self, JsonError};

/// Largest accepted file in bytes.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Reference values of one image on one firmware (and, for RTMR0, one machine shape).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferenceValues {
    /// The image that they belong to.
    pub image: ImageInfo,
    /// Initial contents: the firmware.
    pub mrtd: Option<Register>,
    /// Firmware configuration, ACPI tables, variables: depends on the machine's shape.
    pub rtmr0: Option<Register>,
    /// The kernel image and what firmware loads.
    pub rtmr1: Option<Register>,
    /// Command line and sections that the boot stub measures.
    pub rtmr2: Option<Register>,
    /// Predicted events of registers 0-2, in order. Where a register has events, they replay to its value.
    pub events: Vec<Event>,
}

impl ReferenceValues {
    /// The value for `mrtd`, `rtmr0`, `rtmr1` or `rtmr2`.
    pub fn register(&self, name: &str) -> Option<&Register> {
        match name {
            "mrtd" => self.mrtd.as_ref(),
            "rtmr0" => self.rtmr0.as_ref(),
            "rtmr1" => self.rtmr1.as_ref(),
            "rtmr2" => self.rtmr2.as_ref(),
            _ => None,
        }
    }

    /// Parses a file of at most [`MAX_BYTES`].
    ///
    /// # Errors
    /// [`ReferenceError`], also when the events of a register do not replay to its value.
    pub fn parse(json: &[u8]) -> Result<Self, ReferenceError> {
        let wire: Wire = strict::from_json(json, MAX_BYTES).map_err(ReferenceError::Json)?;
        if wire.version != 1 {
            return Err(ReferenceError::Version(wire.version));
        }
        if wire.events.len() > MAX_EVENTS || wire.events.iter().any(|event| event.mr > 2) {
            return Err(ReferenceError::Events);
        }
        let Wire { image, mrtd, rtmr0, rtmr1, rtmr2, events, .. } = wire;
        let values = Self { image, mrtd, rtmr0, rtmr1, rtmr2, events };
        for (mr, name) in [(0, "rtmr0"), (1, "rtmr1"), (2, "rtmr2")] {
            let replayed = event_log::replay(&values.events, mr);
            let has_events = values.events.iter().any(|event| event.mr == mr);
            if has_events && values.register(name).is_some_and(|value| *value != replayed) {
                return Err(ReferenceError::Replay { name });
            }
        }
        Ok(values)
    }

    /// The file: indented JSON with a final newline, fit for `measurements/`.
    pub fn to_json(&self) -> Vec<u8> {
        let wire = Wire {
            version: 1,
            image: self.image.clone(),
            mrtd: self.mrtd,
            rtmr0: self.rtmr0,
            rtmr1: self.rtmr1,
            rtmr2: self.rtmr2,
            events: self.events.clone(),
        };
        let mut json = serde_json::to_vec_pretty(&wire).unwrap_or_default();
        json.push(b'\n');
        json
    }
}

/// The JSON shape of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: u32,
    image: ImageInfo,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "strict::register_option")]
    mrtd: Option<Register>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "strict::register_option")]
    rtmr0: Option<Register>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "strict::register_option")]
    rtmr1: Option<Register>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "strict::register_option")]
    rtmr2: Option<Register>,
    events: Vec<Event>,
}

/// Why a file of reference values was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// Too large or not of the file's shape.
    #[error("reference values are not an acceptable JSON document")]
    Json(#[source] JsonError),
    /// Another version of the format.
    #[error("reference values of version {0}, only version 1 is known")]
    Version(u32),
    /// Too many events, or events of a register that is not predicted.
    #[error("reference values hold too many events or events of register 3")]
    Events,
    /// The file contradicts itself.
    #[error("predicted events do not replay to the value of {name}")]
    Replay {
        /// The register.
        name: &'static str,
    },
}
