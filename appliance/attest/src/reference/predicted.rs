//! Predicted events: what will be measured and what produces it.

use std::collections::BTreeMap;

use cofferdam_protocol::hex;
use serde::{Deserialize, Serialize};

use crate::event_log::{self, Event, Register};

/// One event that firmware, boot stub or kernel will measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PredictedEvent {
    /// Register that it extends: 0, 1 or 2.
    pub mr: u8,
    /// Its type, `EV_…` (TCG PC Client Platform Firmware Profile).
    pub event: String,
    /// What the register is extended with.
    #[serde(with = "hex::array")]
    pub digest: Register,
    /// What produces it.
    pub cause: Cause,
}

/// What produces an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The TD HOB: the memory map that the hypervisor hands to the firmware.
    TdHob,
    /// The configuration firmware volume, which holds the variables that a firmware is delivered with.
    ConfigurationVolume,
    /// A variable of Secure Boot: `SecureBoot`, `PK`, `KEK`, `db`, `dbx`.
    SecureBootVariable(String),
    /// The end of the firmware's part.
    Separator,
    /// The hypervisor's instructions how to place the ACPI tables.
    AcpiLoader,
    /// The root pointer of the ACPI tables.
    AcpiRsdp,
    /// The ACPI tables themselves.
    AcpiTables,
    /// The SMBIOS tables: the machine, its processors and memory, as the operating system is told.
    SmbiosTables,
    /// `BootOrder` or `Boot####`.
    BootVariable(String),
    /// The firmware announces that it starts a boot option.
    BootAttempt,
    /// The image as a UEFI application.
    Uki,
    /// The kernel inside it, which the boot stub starts as a UEFI application.
    Kernel,
    /// The kernel takes over from the firmware.
    ExitBootServices,
    /// The name of a section of the image.
    SectionName(String),
    /// The contents of a section of the image.
    SectionContents(String),
    /// The command line as the kernel receives it.
    CommandLine,
    /// The initial file systems as the kernel receives them.
    Initrd,
    /// Anything else that a firmware measures, by its own name.
    Firmware(String),
}

impl std::fmt::Display for Cause {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TdHob => out.write_str("TD HOB (memory map)"),
            Self::ConfigurationVolume => out.write_str("configuration firmware volume"),
            Self::SecureBootVariable(name) => write!(out, "Secure Boot variable {name}"),
            Self::Separator => out.write_str("separator"),
            Self::AcpiLoader => out.write_str("ACPI table loader"),
            Self::AcpiRsdp => out.write_str("ACPI root pointer"),
            Self::AcpiTables => out.write_str("ACPI tables"),
            Self::SmbiosTables => out.write_str("SMBIOS tables"),
            Self::BootVariable(name) => write!(out, "boot variable {name}"),
            Self::BootAttempt => out.write_str("start of the boot option"),
            Self::Uki => out.write_str("the image"),
            Self::Kernel => out.write_str("kernel (.linux) of the image"),
            Self::ExitBootServices => out.write_str("exit of boot services"),
            Self::SectionName(name) => write!(out, "name of section {name}"),
            Self::SectionContents(name) => write!(out, "section {name}"),
            Self::CommandLine => out.write_str("command line handed to the kernel"),
            Self::Initrd => out.write_str("initrd handed to the kernel"),
            Self::Firmware(name) => write!(out, "firmware: {name}"),
        }
    }
}

/// A digest that is wrong in a known way: where the log shows it instead of the one predicted for `of`, `reason` is why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alternative {
    /// The predicted event.
    pub of: Cause,
    /// What is measured in its place.
    #[serde(with = "hex::array")]
    pub digest: Register,
    /// Why.
    pub reason: Reason,
}

/// Why a measurement may differ from its prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// QEMU before 10.2 writes into the kernel's setup header when it is started with `-kernel`.
    QemuHeaderPatching,
    /// The hypervisor adds and measures the firmware's pages in another order.
    PageAddOrder,
    /// Memory below 2.75 GiB is laid out in another way.
    LowMemory,
    /// The ACPI tables describe another number of processors.
    CpuCount,
    /// Another version of systemd-stub measures other sections or hands over another initrd.
    StubVersion,
    /// The command line is another one.
    CommandLine,
    /// The initrd is another one.
    Initrd,
    /// The firmware is another build.
    FirmwareBuild,
    /// Another image altogether: more than one of its parts changed.
    OtherImage,
    /// The kernel is another one, the rest of the image is the same.
    OtherKernel,
    /// The boot entry, the boot loader or the hypervisor passes another command line than the one inside the image.
    LoaderCommandLine,
    /// Another size of memory, laid out in the same way.
    MemorySize,
    /// Another version of QEMU, or other devices, with the same processors.
    Machine,
    /// Variables of Secure Boot: other keys, or switched on or off.
    SecureBoot,
    /// Boot entries of the firmware, or their order.
    BootEntries,
    /// An event that was not predicted, or a predicted one that is missing.
    OtherEvent,
    /// Values for a trust domain compared with the simulated device, or the reverse.
    BootPlatform,
    /// The image has a section that the reference's has not, or one of a name that is there already.
    SectionAdded,
    /// A section of the reference's image is missing.
    SectionRemoved,
    /// The same sections with the same contents, at other places.
    ImageLayout,
    /// Bytes behind the image's last section.
    Overlay,
    /// The checksum or the certificates in the PE header, which the firmware's digest leaves out.
    Checksum,
    /// The code of the boot stub is another one.
    StubCode,
    /// The image as a whole is another one, and nothing measured says in what.
    Tampered,
    /// A file that the boot stub takes from beside the image and adds to it.
    Addon,
    /// An event was measured earlier or later than predicted.
    EventMoved,
    /// The hypervisor handed the image to the firmware (QEMU's `-kernel`), which therefore had no boot option to announce before.
    KernelBoot,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::QemuHeaderPatching => "QEMU patched the kernel's header",
            Self::PageAddOrder => "another page-add order",
            Self::LowMemory => "memory on the other side of 2.75 GiB",
            Self::CpuCount => "another number of processors",
            Self::StubVersion => "another version of systemd-stub",
            Self::CommandLine => "another command line in the image",
            Self::Initrd => "another initrd",
            Self::FirmwareBuild => "another build of the firmware",
            Self::OtherImage => "another image",
            Self::OtherKernel => "another kernel in the image",
            Self::LoaderCommandLine => "a command line from outside of the image",
            Self::MemorySize => "another size of memory",
            Self::Machine => "another QEMU or other devices",
            Self::SecureBoot => "other Secure Boot variables",
            Self::BootEntries => "other boot entries",
            Self::OtherEvent => "an event too many or too few",
            Self::BootPlatform => "reference values of another kind of machine",
            Self::SectionAdded => "a section added to the image",
            Self::SectionRemoved => "a section removed from the image",
            Self::ImageLayout => "the image's sections moved",
            Self::Overlay => "bytes behind the image's last section",
            Self::Checksum => "another PE checksum or signature",
            Self::StubCode => "other code in the boot stub",
            Self::Tampered => "tampered or another build",
            Self::Addon => "an addon beside the image",
            Self::EventMoved => "an event in another place",
            Self::KernelBoot => "started with -kernel and not from a disk",
        })
    }
}

/// The value of register `mr` after all its predicted events.
#[must_use]
pub fn replay(events: &[PredictedEvent], mr: u8) -> Register {
    let of_register = events.iter().filter(|event| event.mr == mr);
    of_register.fold([0; 48], |register, event| event_log::extend(&register, &event.digest))
}

/// How many of the events predicted for register `mr` occur in the log in their order, and the first that does not.
pub(crate) fn occurring<'a>(
    predicted: &'a [PredictedEvent],
    measured: &[Event],
    mr: u8,
) -> (usize, Option<&'a PredictedEvent>) {
    let mut places: BTreeMap<Register, Vec<usize>> = BTreeMap::new();
    for (place, event) in measured.iter().enumerate().filter(|(_, event)| event.mr == mr) {
        places.entry(event.register_digest()).or_default().push(place);
    }
    let (mut count, mut from, mut missing) = (0_usize, 0_usize, None);
    for event in predicted.iter().filter(|event| event.mr == mr) {
        let of_digest = places.get(&event.digest).map(Vec::as_slice).unwrap_or_default();
        match of_digest.get(of_digest.partition_point(|place| *place < from)) {
            Some(place) => {
                count = count.saturating_add(1);
                from = place.saturating_add(1);
            }
            None => missing = missing.or(Some(event)),
        }
    }
    (count, missing)
}

/// How many leading events of register `mr` are as predicted.
pub(super) fn common(predicted: &[PredictedEvent], measured: &[Event], mr: u8) -> usize {
    let predicted = predicted.iter().filter(|event| event.mr == mr);
    let measured = measured.iter().filter(|event| event.mr == mr);
    predicted.zip(measured).take_while(|(one, other)| one.digest == other.register_digest()).count()
}
