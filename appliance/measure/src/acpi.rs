//! What QEMU and the firmware make of a machine's shape and measure: ACPI and SMBIOS tables, other files of fw_cfg, boot variables.
//!
//! Responsible for reading the folder that `ci/acpi-tables` writes and for the events that follow from its files. QEMU generates the
//! tables from its version, the machine and what firmware configured, so they are taken from a run of both and never
//! computed here. Sources: edk2 `OvmfPkg/Library/AcpiPlatformLib` (the loader script is measured, then every file that it allocates,
//! in its order), `OvmfPkg/Library/QemuFwCfgLib/QemuFwCfgCacheInit.c` (further files, since 2025), `OvmfPkg/Tcg/TdTcg2Dxe` (boot
//! variables); QEMU `hw/acpi/bios-linker-loader.c` (the script's entries).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use cofferdam_attest::event_log::Register;
use cofferdam_attest::reference::{Cause, MachineShape, PredictedEvent};
use cofferdam_protocol::Digest;
use serde::Deserialize;
use sha2::{Digest as _, Sha384};

use crate::bytes::u32_at;
use crate::smbios::{Smbios, SmbiosError};

const LOADER: &str = "etc/table-loader";
const RSDP: &str = "etc/acpi/rsdp";
const TABLES: &str = "etc/acpi/tables";
const BOOT_ORDER: &str = "BootOrder";
const SECURE_BOOT: &str = "SecureBoot";
/// The SMBIOS table as the firmware installed it: QEMU's structures and what the firmware adds.
const SMBIOS: &str = "smbios";
/// What firmware with the cache measures, in its order, with the length that a file must have to be taken at all.
const CACHED: [(&str, Option<usize>); 6] = [
    ("etc/extra-pci-roots", Some(8)),
    ("BootMenu", Some(2)),
    ("etc/boot-menu-wait", Some(2)),
    ("etc/reserved-memory-end", Some(8)),
    ("opt/ovmf/X-PciMmio64Mb", None),
    ("bootorder", None),
];

/// Largest file; the tables have 128 KiB.
const LARGEST: usize = 1 << 20;
/// Most boot options; a machine of ours has two.
const MOST_OPTIONS: usize = 64;
/// An entry of the loader's script: command (4), file name (56), alignment, zone.
const ENTRY: usize = 128;
const NAME: usize = 56;
const ALLOCATE: u32 = 1;
/// Most entries; QEMU writes about thirty.
const MOST_ENTRIES: usize = 1024;
/// Most files that it allocates; QEMU has up to five.
const MOST_FILES: usize = 16;

/// The files of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiTables {
    machine: MachineShape,
    firmware: Option<Digest>,
    files: BTreeMap<String, Vec<u8>>,
    smbios: Option<Smbios>,
}

/// `machine.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Machine {
    qemu: String,
    memory_mib: u64,
    cpus: u32,
    #[serde(default)]
    firmware: Option<Digest>,
    #[serde(rename = "arguments")]
    _arguments: Vec<String>,
}

impl AcpiTables {
    /// Reads a folder written by `ci/acpi-tables`.
    ///
    /// # Errors
    /// [`AcpiError`] when a file that every machine has is missing, or one is too large or malformed.
    pub fn read(folder: &Path) -> Result<Self, AcpiError> {
        let machine =
            read(folder, "machine.json")?.ok_or_else(|| AcpiError::Missing("machine.json".into()))?;
        let mut files = BTreeMap::new();
        let mut take = |name: &str| -> Result<(), AcpiError> {
            if let Some(bytes) = read(folder, &name.replace('/', "-"))? {
                files.insert(name.to_owned(), bytes);
            }
            Ok(())
        };
        for name in [LOADER, BOOT_ORDER, SECURE_BOOT, SMBIOS] {
            take(name)?;
        }
        for (name, _) in CACHED {
            take(name)?;
        }
        let loader = files.get(LOADER).cloned().unwrap_or_default();
        for name in allocated(&loader)? {
            if let Some(bytes) = read(folder, &name.replace('/', "-"))? {
                files.insert(name.to_owned(), bytes);
            }
        }
        let order = files.get(BOOT_ORDER).cloned().unwrap_or_default();
        for name in options(&order)? {
            if let Some(bytes) = read(folder, &name)? {
                files.insert(name, bytes);
            }
        }
        Self::new(&machine, files)
    }

    /// From the contents of `machine.json` and of the files, by their fw_cfg names or variable names.
    ///
    /// # Errors
    /// As [`AcpiTables::read`].
    pub fn new(machine: &[u8], files: BTreeMap<String, Vec<u8>>) -> Result<Self, AcpiError> {
        let Machine { qemu, memory_mib, cpus, firmware, .. } =
            serde_json::from_slice(machine).map_err(AcpiError::Machine)?;
        let machine = MachineShape { memory_mib, cpus, qemu: Some(qemu), processor: None };
        let smbios =
            files.get(SMBIOS).map(|table| Smbios::parse(table)).transpose().map_err(AcpiError::Smbios)?;
        let tables = Self { machine, firmware, files, smbios };
        tables.events()?;
        tables.boot_events()?;
        Ok(tables)
    }

    /// The machine that they are of.
    #[must_use]
    pub fn machine(&self) -> &MachineShape {
        &self.machine
    }

    /// Refuses tables of another machine: other memory, another number of processors, another version of QEMU (`10.0` stands
    /// for all of `10.0.x`).
    ///
    /// # Errors
    /// [`AcpiError::OtherMachine`].
    pub fn check(&self, shape: &MachineShape) -> Result<(), AcpiError> {
        let other = |what, wanted: String, found: String| AcpiError::OtherMachine { what, wanted, found };
        let own = &self.machine;
        if own.memory_mib != shape.memory_mib {
            return Err(other("MiB of memory", shape.memory_mib.to_string(), own.memory_mib.to_string()));
        }
        if own.cpus != shape.cpus {
            return Err(other("processors", shape.cpus.to_string(), own.cpus.to_string()));
        }
        let found = own.qemu.as_deref().unwrap_or_default();
        match &shape.qemu {
            Some(wanted) if !is_version(found, wanted) => {
                Err(other("as version of QEMU", wanted.clone(), found.to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Refuses tables that another firmware left, when they say which it was; `sha256` is the digest of the file.
    pub(crate) fn check_firmware(&self, sha256: &Digest) -> Result<(), AcpiError> {
        match &self.firmware {
            Some(other) if other != sha256 => Err(AcpiError::OtherFirmware(*other)),
            _ => Ok(()),
        }
    }

    /// The events of the tables: the loader's script, then the files that it allocates.
    pub(crate) fn events(&self) -> Result<Vec<PredictedEvent>, AcpiError> {
        let loader = self.file(LOADER)?;
        let mut events = vec![event("EV_PLATFORM_CONFIG_FLAGS", loader, Cause::AcpiLoader)];
        for name in allocated(loader)? {
            let cause = match name {
                RSDP => Cause::AcpiRsdp,
                TABLES => Cause::AcpiTables,
                other => Cause::Firmware(other.to_owned()),
            };
            events.push(event("EV_PLATFORM_CONFIG_FLAGS", self.file(name)?, cause));
        }
        Ok(events)
    }

    /// The events of the files that newer firmware measures first of all.
    pub(crate) fn cached_events(&self) -> Vec<PredictedEvent> {
        let mut events = Vec::new();
        for (name, length) in CACHED {
            let file = self.files.get(name).filter(|file| !file.is_empty());
            if let Some(file) = file.filter(|file| length.is_none_or(|length| file.len() == length)) {
                events.push(event("EV_PLATFORM_CONFIG_FLAGS", file, Cause::Firmware(name.to_owned())));
            }
        }
        events
    }

    /// The events of BootOrder and of the options that it names; none when the firmware left none.
    pub(crate) fn boot_events(&self) -> Result<Vec<PredictedEvent>, AcpiError> {
        let Some(order) = self.files.get(BOOT_ORDER) else { return Ok(Vec::new()) };
        let cause = |name: &str| Cause::BootVariable(name.to_owned());
        let mut events = vec![event("EV_EFI_VARIABLE_BOOT", order, cause(BOOT_ORDER))];
        for name in options(order)? {
            // An option that is named and missing is passed over by the firmware, too.
            if let Some(option) = self.files.get(&name) {
                events.push(event("EV_EFI_VARIABLE_BOOT", option, cause(&name)));
            }
        }
        Ok(events)
    }

    /// The SMBIOS table, when the firmware measures one.
    pub(crate) fn smbios(&self) -> Option<&Smbios> {
        self.smbios.as_ref()
    }

    /// The variable SecureBoot as the firmware set it; empty when it has no such variable, `None` when nobody looked.
    pub(crate) fn secure_boot(&self) -> Option<&[u8]> {
        self.files.get(SECURE_BOOT).map(Vec::as_slice)
    }

    fn file(&self, name: &str) -> Result<&[u8], AcpiError> {
        self.files.get(name).map(Vec::as_slice).ok_or_else(|| AcpiError::Missing(name.to_owned()))
    }
}

/// The names of the files that a loader's script allocates, in its order.
fn allocated(loader: &[u8]) -> Result<Vec<&str>, AcpiError> {
    if !loader.len().is_multiple_of(ENTRY) || loader.len() / ENTRY > MOST_ENTRIES {
        return Err(AcpiError::Loader);
    }
    let mut names = Vec::new();
    for entry in loader.chunks_exact(ENTRY) {
        if u32_at(entry, 0).map_err(|_| AcpiError::Loader)? != ALLOCATE {
            continue;
        }
        let name = entry.get(4..4 + NAME).unwrap_or_default();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = std::str::from_utf8(name).map_err(|_| AcpiError::Loader)?;
        // A file is allocated once; the same one over and over would cost a hash of it each time.
        if names.contains(&name) || names.len() >= MOST_FILES {
            return Err(AcpiError::Loader);
        }
        names.push(name);
    }
    Ok(names)
}

/// The names of the options in a BootOrder.
fn options(order: &[u8]) -> Result<Vec<String>, AcpiError> {
    if !order.len().is_multiple_of(2) || order.len() / 2 > MOST_OPTIONS {
        return Err(AcpiError::BootOrder);
    }
    let numbers = order.chunks_exact(2).filter_map(|pair| pair.try_into().ok().map(u16::from_le_bytes));
    Ok(numbers.map(|number| format!("Boot{number:04X}")).collect())
}

/// Whether `found` is `wanted` or a patch level of it.
fn is_version(found: &str, wanted: &str) -> bool {
    found.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn event(kind: &str, data: &[u8], cause: Cause) -> PredictedEvent {
    let digest: Register = Sha384::digest(data).into();
    PredictedEvent { mr: 0, event: kind.to_owned(), digest, cause }
}

/// A file of at most [`LARGEST`] bytes, `None` when there is none.
fn read(folder: &Path, name: &str) -> Result<Option<Vec<u8>>, AcpiError> {
    let failed = |source| AcpiError::Read { name: name.to_owned(), source };
    let file = match File::open(folder.join(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let about = file.metadata().map_err(failed)?;
    if about.is_file() && about.len() > LARGEST as u64 {
        return Err(AcpiError::TooLarge(name.to_owned()));
    }
    match cofferdam_protocol::read::bounded(file, LARGEST as u64) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => {
            Err(AcpiError::TooLarge(name.to_owned()))
        }
        Err(error) => Err(failed(error)),
    }
}

/// Why a folder of tables was refused.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// A file cannot be read.
    #[error("cannot read {name}")]
    Read {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that must be there.
    #[error("there is no {0}")]
    Missing(String),
    /// Larger than any machine's.
    #[error("{0} has more than {most} bytes, the most that is read of a machine's", most = LARGEST)]
    TooLarge(String),
    /// `machine.json`.
    #[error("machine.json is malformed")]
    Machine(#[source] serde_json::Error),
    /// The loader's script.
    #[error("etc/table-loader is malformed")]
    Loader,
    /// BootOrder.
    #[error("BootOrder is malformed")]
    BootOrder,
    /// The SMBIOS table.
    #[error("smbios is malformed")]
    Smbios(#[source] SmbiosError),
    /// Boot variables and device registers are another firmware's.
    #[error("the tables were taken with another firmware, {0}")]
    OtherFirmware(Digest),
    /// They are of another machine than the one asked for.
    #[error("the tables are of a machine with {found} {what}, not {wanted}")]
    OtherMachine {
        /// What differs.
        what: &'static str,
        /// What was asked for.
        wanted: String,
        /// What the tables are of.
        found: String,
    },
}
