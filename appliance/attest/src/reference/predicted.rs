//! Predicted events: what will be measured and what produces it.

use serde::{Deserialize, Serialize};

use crate::event_log::{self, Event, Register};
use crate::strict;

/// One event that firmware, boot stub or kernel will measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PredictedEvent {
    /// Register that it extends: 0, 1 or 2.
    pub mr: u8,
    /// Its type, `EV_…` (TCG PC Client Platform Firmware Profile).
    pub event: String,
    /// What the register is extended with.
    #[serde(with = "strict::register_hex")]
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

/// A digest that is wrong in a known way: where the log shows it in place of the one predicted for `of`, `reason` is why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alternative {
    /// The predicted event.
    pub of: Cause,
    /// What is measured in its place.
    #[serde(with = "strict::register_hex")]
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
}

/// The value of register `mr` after all its predicted events.
#[must_use]
pub fn replay(events: &[PredictedEvent], mr: u8) -> Register {
    let of_register = events.iter().filter(|event| event.mr == mr);
    of_register.fold([0; 48], |register, event| event_log::extend(&register, &event.digest))
}

/// How many leading events of register `mr` are as predicted.
pub(super) fn common(predicted: &[PredictedEvent], measured: &[Event], mr: u8) -> usize {
    let predicted = predicted.iter().filter(|event| event.mr == mr);
    let measured = measured.iter().filter(|event| event.mr == mr);
    predicted.zip(measured).take_while(|(one, other)| one.digest == other.register_digest()).count()
}
