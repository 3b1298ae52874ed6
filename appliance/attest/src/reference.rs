//! Reference values: what the registers of a genuine appliance must hold, predicted from files.
//!
//! They come in halves that change for different reasons and are published by different people. The image half depends on the
//! image's bytes alone (RTMR1, RTMR2); the platform half on firmware and machine shape (MRTD, RTMR0). Each is a JSON
//! file of its own, fit for signing; a verifier is given any number of them. Neither is ever read from the machine that
//! is appraised. The predicted events travel along, each with what produces it, so that a mismatch can be explained.
//! What only a simulated TD produces is marked so, and is never compared with hardware.

use cofferdam_protocol::json::{self, JsonError};
use cofferdam_protocol::{Digest, hex};
use serde::{Deserialize, Serialize};

use crate::event_log::{Event, MAX_EVENTS, Register};
use crate::evidence::ImageInfo;

mod build;
mod predicted;
mod processor;

pub use build::Build;
pub(crate) use predicted::occurring;
pub use predicted::{Alternative, Cause, PredictedEvent, Reason, replay};
pub use processor::{ProcessorId, ProcessorIdError};

/// Largest accepted file in bytes.
pub const MAX_BYTES: usize = 1024 * 1024;
/// Most halves that are compared at once; a directory of references holds a few.
pub const MAX_HALVES: usize = 256;
/// Most boot paths of one image, page orders of one firmware, or alternatives of one half.
const MAX_VARIANTS: usize = 64;

/// Everything that a verifier was given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReferenceValues {
    /// Image halves.
    pub images: Vec<ImageReference>,
    /// Platform halves.
    pub platforms: Vec<PlatformReference>,
}

/// The portable half: what an image measures wherever it boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageReference {
    /// Name, release and digests of the image and its parts (`uki`, `kernel`, `initrd`, `command_line`, …).
    pub image: ImageInfo,
    /// Length of the file in bytes. Firmware logs it beside the digest, without measuring it: fit for explanations only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// From what it was built and with what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// One per way of booting it.
    pub boots: Vec<Boot>,
    /// Digests that are wrong in known ways.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Alternative>,
}

/// RTMR1 and RTMR2 of one way of booting an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// What measures.
    pub platform: BootPlatform,
    /// From where the firmware has the image.
    #[serde(default, skip_serializing_if = "BootSource::is_disk")]
    pub source: BootSource,
    /// What the firmware loads.
    #[serde(with = "hex::array")]
    pub rtmr1: Register,
    /// What boot stub and kernel measure.
    #[serde(with = "hex::array")]
    pub rtmr2: Register,
    /// The events of both, in order.
    pub events: Vec<PredictedEvent>,
}

/// How firmware maps its measurements to registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootPlatform {
    /// TDVF in a trust domain.
    Tdx,
    /// OVMF with a software TPM below the simulated TDX device.
    Simulator,
}

/// From where the firmware has the image, which decides what it announces before it starts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootSource {
    /// A boot option: a file on a disk.
    #[default]
    Disk,
    /// The hypervisor (QEMU's `-kernel` with the whole image): loaded before any boot option is tried.
    Hypervisor,
}

impl BootSource {
    fn is_disk(&self) -> bool {
        *self == Self::Disk
    }
}

/// The platform half: what firmware and machine shape measure whatever they boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlatformReference {
    /// For people: `debian-ovmf-inteltdx`.
    pub name: String,
    /// Whether this is the simulated device, whose MRTD is a constant and proves nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
    /// The firmware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<FirmwareInfo>,
    /// The machine that RTMR0 is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineShape>,
    /// MRTD, one value per order in which a hypervisor may add the firmware's pages.
    pub mrtd: Vec<Mrtd>,
    /// RTMR0, where firmware and shape determine all of it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex::array_option")]
    pub rtmr0: Option<Register>,
    /// The events of RTMR0 that are determined, in order; all of them when `rtmr0` is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<PredictedEvent>,
    /// Digests that are wrong in known ways.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Alternative>,
}

/// Which firmware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirmwareInfo {
    /// Digest of the firmware file.
    pub sha256: Digest,
    /// Its file name.
    pub file: String,
    /// The distribution's package that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
    /// That package's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// What of a machine reaches RTMR0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineShape {
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual processors.
    pub cpus: u32,
    /// QEMU's version, `10.0` or longer, when the values depend on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<String>,
    /// The processor that SMBIOS names, when the values depend on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor: Option<ProcessorId>,
}

/// MRTD for one page-add order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mrtd {
    /// The order.
    pub order: PageOrder,
    /// The value.
    #[serde(with = "hex::array")]
    pub value: Register,
}

/// In which order a hypervisor adds and measures the firmware's pages (TDH.MEM.PAGE.ADD, TDH.MR.EXTEND).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PageOrder {
    /// Each page is added and measured before the next one (KVM in Linux 6.16 and newer).
    SinglePass,
    /// All pages of a section are added, then all are measured (KVM before it was merged into Linux).
    TwoPass,
    /// Nobody knows: the value was named by a person.
    Stated,
}

impl PageOrder {
    /// For people.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::SinglePass => "each page added and measured in turn",
            Self::TwoPass => "all pages of a section added, then measured",
            Self::Stated => "order not known",
        }
    }
}

/// One file, told apart by its `kind`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum Half {
    /// An image's.
    #[serde(rename = "cofferdam-image/v1")]
    Image(ImageReference),
    /// A platform's.
    #[serde(rename = "cofferdam-platform/v1")]
    Platform(PlatformReference),
}

impl Half {
    /// Parses a file of at most [`MAX_BYTES`].
    ///
    /// # Errors
    /// [`ReferenceError`], also when the events of a register do not replay to its value.
    pub fn parse(json: &[u8]) -> Result<Self, ReferenceError> {
        let half: Self = json::from_json(json, MAX_BYTES).map_err(ReferenceError::Json)?;
        match &half {
            Self::Image(image) => image.check()?,
            Self::Platform(platform) => platform.check()?,
        }
        Ok(half)
    }

    /// The file: indented JSON with a final newline, the same bytes for the same values.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn to_json(&self) -> Result<Vec<u8>, JsonError> {
        json::to_vec_pretty(self)
    }
}

impl ReferenceValues {
    /// Adds one half.
    ///
    /// # Errors
    /// [`ReferenceError::TooMany`] behind [`MAX_HALVES`].
    pub fn add(&mut self, half: Half) -> Result<(), ReferenceError> {
        if self.images.len().saturating_add(self.platforms.len()) >= MAX_HALVES {
            return Err(ReferenceError::TooMany("halves"));
        }
        match half {
            Half::Image(image) => self.images.push(image),
            Half::Platform(platform) => self.platforms.push(platform),
        }
        Ok(())
    }

    /// The boot path whose registers these are; without one, that with the longest common beginning of events, to explain
    /// the difference. `None` when no image half fits a TD that is `simulated` or not; any fits where that is not known.
    #[must_use]
    pub fn boot(
        &self,
        simulated: Option<bool>,
        (rtmr1, rtmr2): (&Register, &Register),
        log: &[Event],
    ) -> Option<(&ImageReference, &Boot)> {
        let boots = self.images.iter().flat_map(|image| image.boots.iter().map(move |boot| (image, boot)));
        boots
            .filter(|(_, boot)| simulated.is_none_or(|is| (boot.platform == BootPlatform::Simulator) == is))
            .max_by_key(|(_, boot)| {
                let equal = usize::from(boot.rtmr1 == *rtmr1) + usize::from(boot.rtmr2 == *rtmr2);
                (equal, [1, 2].into_iter().map(|mr| predicted::common(&boot.events, log, mr)).sum::<usize>())
            })
    }

    /// The platform with this MRTD; without one, the nearest. Among platforms of one MRTD those that RTMR0 does not
    /// contradict come first, and of them those that determine it: a half for another machine shape never stands in the
    /// way of one that fits, so that a further reference never turns an acceptance into a refusal. Then by how many of the
    /// events occur. `None` when no platform half fits a TD that is `simulated` or not; any fits where that is not known.
    #[must_use]
    pub fn platform(
        &self,
        simulated: Option<bool>,
        mrtd: &Register,
        rtmr0: &Register,
        log: &[Event],
    ) -> Option<&PlatformReference> {
        let fitting =
            self.platforms.iter().filter(|platform| simulated.is_none_or(|is| platform.simulated == is));
        fitting.max_by_key(|platform| {
            let known = platform.order(mrtd).is_some();
            let (count, missing) = predicted::occurring(&platform.events, log, 0);
            let right = platform.rtmr0.map_or(missing.is_none(), |value| value == *rtmr0);
            (known, right, platform.rtmr0.is_some(), count)
        })
    }
}

impl ImageReference {
    /// Bounds, and that the events of every boot replay to its registers.
    fn check(&self) -> Result<(), ReferenceError> {
        if self.boots.is_empty() || self.boots.len() > MAX_VARIANTS || self.alternatives.len() > MAX_VARIANTS
        {
            return Err(ReferenceError::TooMany("boots or alternatives, or no boot at all"));
        }
        for boot in &self.boots {
            if boot.events.len() > MAX_EVENTS || boot.events.iter().any(|event| !(1..=2).contains(&event.mr))
            {
                return Err(ReferenceError::Events);
            }
            for (mr, name, value) in [(1, "rtmr1", &boot.rtmr1), (2, "rtmr2", &boot.rtmr2)] {
                if predicted::replay(&boot.events, mr) != *value {
                    return Err(ReferenceError::Replay { name });
                }
            }
        }
        Ok(())
    }
}

impl PlatformReference {
    /// The order that produces this MRTD.
    #[must_use]
    pub fn order(&self, mrtd: &Register) -> Option<PageOrder> {
        self.mrtd.iter().find(|known| known.value == *mrtd).map(|known| known.order)
    }

    /// Bounds, and that the events replay to RTMR0.
    fn check(&self) -> Result<(), ReferenceError> {
        if self.mrtd.is_empty() || self.mrtd.len() > MAX_VARIANTS || self.alternatives.len() > MAX_VARIANTS {
            return Err(ReferenceError::TooMany("MRTDs or alternatives, or no MRTD at all"));
        }
        if self.events.len() > MAX_EVENTS || self.events.iter().any(|event| event.mr != 0) {
            return Err(ReferenceError::Events);
        }
        if self.rtmr0.is_some_and(|value| predicted::replay(&self.events, 0) != value) {
            return Err(ReferenceError::Replay { name: "rtmr0" });
        }
        Ok(())
    }
}

/// Why a file of reference values was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// Too large or not of the file's shape.
    #[error("reference values are not an acceptable JSON document")]
    Json(#[source] JsonError),
    /// More of something than any image or platform has.
    #[error("too many {0}")]
    TooMany(&'static str),
    /// Too many events, or events of a register of the other half.
    #[error("reference values hold too many events, or events of another half's register")]
    Events,
    /// The file contradicts itself.
    #[error("predicted events do not replay to the value of {name}")]
    Replay {
        /// The register.
        name: &'static str,
    },
}
