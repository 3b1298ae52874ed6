//! The events that booting a UKI measures, in order.
//!
//! Sources: TCG PC Client Platform Firmware Profile 1.06, section 3.3.4 (PCR 4 and 5) and 10.4 (event types); UEFI 2.11,
//! section 38 (confidential computing: PCR 2-6 are RTMR1, 8-15 are RTMR2); the UAPI Group's "Unified Kernel Image"
//! specification with systemd-stub(7) (PCR 11); Linux `drivers/firmware/efi/libstub` (PCR 9).

use std::collections::BTreeMap;

use cofferdam_attest::event_log::{self, Event, Register};
use cofferdam_attest::evidence::ImageInfo;
use cofferdam_attest::reference::ReferenceValues;
use sha2::{Digest as _, Sha384};

use crate::pe::{Image, PeError};

/// What the firmware announces before it starts the first boot option, and around ExitBootServices.
const CALLING: &str = "Calling EFI Application from Boot Option";
const EXIT_INVOKED: &str = "Exit Boot Services Invocation";
const EXIT_DONE: &str = "Exit Boot Services Returned with Success";
/// The data of `EV_SEPARATOR`: the firmware's part ends here, without an error.
const SEPARATOR: [u8; 4] = [0; 4];

/// The sections that systemd-stub measures into PCR 11, in its order; `.pcrsig` is left out by design since it signs
/// the outcome.
const MEASURED_SECTIONS: [&str; 11] =
    [".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey", ".profile"];

/// How the firmware maps its measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// TDVF in a trust domain: one separator per register.
    Tdx,
    /// OVMF with a TPM whose log is replayed into the registers (the simulated TD): one separator per PCR, so five of
    /// them in RTMR1.
    Simulator,
}

/// The reference values of a UKI: RTMR1 and RTMR2 with their events. MRTD and RTMR0 are left open.
///
/// # Errors
/// [`MeasureError`] when the file is no UKI.
pub fn reference_values(uki: &[u8], platform: Platform) -> Result<ReferenceValues, MeasureError> {
    let events = events(uki, platform)?;
    let replay = |mr| Some(event_log::replay(&events, mr));
    let digest = format!("sha256:{}", hex::encode(sha2::Sha256::digest(uki)));
    let image = ImageInfo {
        name: "cofferdam".to_owned(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        digests: BTreeMap::from([("uki".to_owned(), digest)]),
    };
    Ok(ReferenceValues { image, mrtd: None, rtmr0: None, rtmr1: replay(1), rtmr2: replay(2), events })
}

/// The events of RTMR1 and RTMR2, each register's in the order in which it is extended.
///
/// # Errors
/// [`MeasureError`] when the file is no UKI.
pub fn events(uki: &[u8], platform: Platform) -> Result<Vec<Event>, MeasureError> {
    let image = Image::parse(uki).map_err(MeasureError::Uki)?;
    let mut events = load_events(&image, platform)?;
    events.extend(stub_events(&image)?);
    Ok(events)
}

/// RTMR1: what the firmware does and loads.
fn load_events(image: &Image<'_>, platform: Platform) -> Result<Vec<Event>, MeasureError> {
    let linux = image.section(".linux").ok_or(MeasureError::Missing(".linux"))?;
    let kernel = Image::parse(linux).map_err(MeasureError::Kernel)?;
    let separators = match platform {
        Platform::Tdx => 1,
        Platform::Simulator => 5,
    };
    let mut events = vec![of_data(1, "EV_EFI_ACTION", CALLING.as_bytes())];
    events.extend(std::iter::repeat_with(|| of_data(1, "EV_SEPARATOR", &SEPARATOR)).take(separators));
    let uki_digest = image.authenticode_sha384().map_err(MeasureError::Uki)?;
    let kernel_digest = kernel.authenticode_sha384().map_err(MeasureError::Kernel)?;
    events.push(of_digest(1, "EV_EFI_BOOT_SERVICES_APPLICATION", uki_digest));
    events.push(of_digest(1, "EV_EFI_BOOT_SERVICES_APPLICATION", kernel_digest));
    events.push(of_data(1, "EV_EFI_ACTION", EXIT_INVOKED.as_bytes()));
    events.push(of_data(1, "EV_EFI_ACTION", EXIT_DONE.as_bytes()));
    Ok(events)
}

/// RTMR2: the sections that systemd-stub measures (the name with its NUL, then the contents), then the command line
/// and the initrd as the kernel's EFI stub receives them.
fn stub_events(image: &Image<'_>) -> Result<Vec<Event>, MeasureError> {
    let mut events = Vec::new();
    for name in MEASURED_SECTIONS {
        if let Some(contents) = image.section(name) {
            let terminated = [name.as_bytes(), &[0]].concat();
            events.push(of_digest(2, "EV_IPL", Sha384::digest(&terminated).into()));
            events.push(of_digest(2, "EV_IPL", Sha384::digest(contents).into()));
        }
    }
    let cmdline = image.section(".cmdline").ok_or(MeasureError::Missing(".cmdline"))?;
    let cmdline = std::str::from_utf8(cmdline).map_err(|_| MeasureError::CommandLine)?;
    let cmdline = cmdline.trim_end_matches(['\0', '\n']);
    let wide: Vec<u8> = cmdline.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    events.push(of_digest(2, "EV_EVENT_TAG", Sha384::digest(&wide).into()));
    let initrd = image.section(".initrd").ok_or(MeasureError::Missing(".initrd"))?;
    events.push(of_digest(2, "EV_EVENT_TAG", Sha384::digest(initrd).into()));
    Ok(events)
}

/// An event whose digest is that of its data.
fn of_data(mr: u8, event: &str, data: &[u8]) -> Event {
    let digest = Some(Sha384::digest(data).into());
    Event { mr, event: event.to_owned(), digest, payload: Some(data.to_vec()) }
}

/// An event whose data says nothing about its digest.
fn of_digest(mr: u8, event: &str, digest: Register) -> Event {
    Event { mr, event: event.to_owned(), digest: Some(digest), payload: None }
}

/// Why a file's registers cannot be predicted.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The file itself.
    #[error("not a unified kernel image")]
    Uki(#[source] PeError),
    /// The kernel inside.
    #[error("section .linux holds no kernel")]
    Kernel(#[source] PeError),
    /// A section that every UKI of ours has.
    #[error("the image has no section {0}")]
    Missing(&'static str),
    /// The command line.
    #[error("section .cmdline is not UTF-8")]
    CommandLine,
}
