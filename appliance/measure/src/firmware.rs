//! The platform half: what a firmware on a machine of a given shape makes MRTD and RTMR0 say.
//!
//! Responsible for the order of RTMR0's events as TDVF makes them, and for saying what of them nobody can know beforehand; it
//! never guesses. The order (edk2 `OvmfPkg/IntelTdx`): in SEC the TD HOB and the configuration volume, then, since 2025, files of
//! fw_cfg; when variables can be written the Secure Boot policy and its separator; when PCI devices have their addresses the ACPI
//! tables; at the first boot attempt, since 2025, the SMBIOS tables, then the boot variables. An image that is checked by Secure Boot
//! adds the key that vouched for it.

use cofferdam_attest::event_log::Register;
use cofferdam_attest::reference::{
    Alternative, Cause, FirmwareInfo, MachineShape, PlatformReference, PredictedEvent, Reason, replay,
};
use sha2::{Digest as _, Sha384};

use crate::acpi::{AcpiError, AcpiTables};
use crate::hob::{self, HobError};
use crate::mrtd;
use crate::smbios::Smbios;
use crate::tdvf::{SectionKind, Tdvf, TdvfError};
use crate::variables::{self, DATABASE, ENABLE, GLOBAL, Variable, VariablesError};

/// Builds for TDX alone (edk2 `OvmfPkg/IntelTdx`) hold this text uncompressed: they measure all that is predicted here, and always
/// have. Builds for all machines (`OvmfPkgX64`) measure it since edk2-stable202302, and nothing in the file tells them apart.
const MEASURING_MARK: &[u8] = b"TdxTable\0";
/// Firmware that holds this text measures files of fw_cfg before anything else (edk2 `QemuFwCfgCacheInit.c`), and SMBIOS tables
/// (`SmbiosMeasurementDxe`): both came with edk2-stable202505. Only this one lies uncompressed in the file.
const CACHE_MARK: &[u8] = b"QEMU FW CFG\0";
/// The Secure Boot policy in the order in which it is measured, behind the variable SecureBoot.
const POLICY: [(&str, [u8; 16]); 4] = [("PK", GLOBAL), ("KEK", GLOBAL), ("db", DATABASE), ("dbx", DATABASE)];
/// Measured when it is there.
const TIMESTAMPS: &str = "dbt";

/// A prediction with what is missing from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prediction {
    /// MRTD, RTMR0 when nothing is open, and the events that are known.
    pub reference: PlatformReference,
    /// Why RTMR0 is not there; empty when it is.
    pub open: Vec<Open>,
}

/// Why RTMR0 is not determined.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Open {
    /// Not a build for TDX alone.
    #[error(
        "the firmware is a build for all machines: from before 2023-02 it measures nothing, later ones what is predicted, and the \
         file does not say which it is"
    )]
    Build,
    /// `--acpi` was not given.
    #[error("the ACPI tables and boot variables of this machine are not given: ci/acpi-tables writes them")]
    Tables,
    /// The tables were taken without boot variables.
    #[error("the boot variables of this machine are not given: ci/acpi-tables writes them")]
    BootVariables,
    /// A firmware that is delivered without keys may know Secure Boot or not.
    #[error(
        "the firmware is delivered without keys: whether it has a variable SecureBoot shows only when it runs"
    )]
    SecureBootUnknown,
    /// The policy is on.
    #[error(
        "Secure Boot is on: the firmware starts no unsigned image and measures the key that vouches for a signed one"
    )]
    SecureBootOn,
    /// The tables were taken without the SMBIOS tables, which newer firmware measures.
    #[error(
        "the firmware measures the SMBIOS tables (edk2 of 2025-05 or later), and those of this machine are not given: \
         ci/acpi-tables writes them"
    )]
    Smbios,
    /// `--processor` was not given.
    #[error(
        "the firmware measures the SMBIOS tables, in which QEMU names the host's processor: --processor says which it is"
    )]
    Processor,
    /// The store.
    #[error("the variables that the firmware is delivered with are not known: {0}")]
    Variables(VariablesError),
}

/// The platform half of the reference values; see [`predict`] for what is missing from it and why.
///
/// # Errors
/// As [`predict`].
pub fn platform_reference(
    firmware: &[u8],
    name: &str,
    shape: &MachineShape,
    acpi: Option<&AcpiTables>,
) -> Result<PlatformReference, FirmwareError> {
    predict(firmware, name, shape, acpi).map(|prediction| prediction.reference)
}

/// Predicts MRTD and RTMR0 of the firmware file `firmware` on a machine of this shape.
///
/// # Errors
/// [`FirmwareError`] when the file is no TDX firmware, does not fit the machine, or the tables are another machine's.
pub fn predict(
    firmware: &[u8],
    name: &str,
    shape: &MachineShape,
    acpi: Option<&AcpiTables>,
) -> Result<Prediction, FirmwareError> {
    let tdvf = Tdvf::parse(firmware).map_err(FirmwareError::Tdvf)?;
    let memory =
        shape.memory_mib.checked_mul(1 << 20).ok_or(FirmwareError::Hob(HobError::TooMuch(u64::MAX)))?;
    let list = hob::measured(&tdvf, memory).map_err(FirmwareError::Hob)?;
    let configuration = tdvf.raw(tdvf.only(SectionKind::Cfv).map_err(FirmwareError::Tdvf)?);
    let sha256 = cofferdam_protocol::Digest::of(firmware);
    if let Some(acpi) = acpi {
        acpi.check(shape).map_err(FirmwareError::Acpi)?;
        acpi.check_firmware(&sha256).map_err(FirmwareError::Acpi)?;
    }
    let holds = |mark: &[u8]| firmware.windows(mark.len()).any(|window| window == mark);
    let mut open = Vec::new();
    if !holds(MEASURING_MARK) {
        open.push(Open::Build);
    }
    let mut events = vec![
        of_data("EV_EFI_HANDOFF_TABLES2", &list, Cause::TdHob),
        of_data("EV_EFI_PLATFORM_FIRMWARE_BLOB2", configuration, Cause::ConfigurationVolume),
    ];
    let newer = holds(CACHE_MARK);
    if newer {
        events.extend(acpi.map(AcpiTables::cached_events).unwrap_or_default());
    }
    policy_events(configuration, acpi, &mut events, &mut open);
    events.push(of_data("EV_SEPARATOR", &[0; 4], Cause::Separator));
    machine_events(acpi, shape, newer, &mut events, &mut open)?;
    let other = hob::other_class(&tdvf, memory).map(|list| Alternative {
        of: Cause::TdHob,
        digest: Sha384::digest(list).into(),
        reason: Reason::LowMemory,
    });
    let mut machine = shape.clone();
    if let Some(acpi) = acpi {
        machine.qemu.clone_from(&acpi.machine().qemu);
    }
    if events.iter().all(|event| event.cause != Cause::SmbiosTables) {
        machine.processor = None;
    }
    let reference = PlatformReference {
        name: name.to_owned(),
        simulated: false,
        firmware: Some(FirmwareInfo { sha256, file: name.to_owned(), package: None, version: None }),
        machine: Some(machine),
        mrtd: mrtd::mrtd(&tdvf),
        rtmr0: open.is_empty().then(|| replay(&events, 0)),
        events,
        alternatives: other.into_iter().collect(),
    };
    Ok(Prediction { reference, open })
}

/// What follows from the machine: ACPI tables, SMBIOS tables when the firmware is `newer`, boot variables.
fn machine_events(
    acpi: Option<&AcpiTables>,
    shape: &MachineShape,
    newer: bool,
    events: &mut Vec<PredictedEvent>,
    open: &mut Vec<Open>,
) -> Result<(), FirmwareError> {
    let Some(acpi) = acpi else {
        open.push(Open::Tables);
        if newer && shape.processor.is_none() {
            open.push(Open::Processor);
        }
        return Ok(());
    };
    events.extend(acpi.events().map_err(FirmwareError::Acpi)?);
    match acpi.smbios() {
        // The tables name the processor that QEMU emulated when they were taken.
        Some(smbios) if smbios.names_processor() => match shape.processor {
            Some(id) => events.push(smbios_event(&smbios.clone().with_processor(id))),
            None => open.push(Open::Processor),
        },
        Some(smbios) => events.push(smbios_event(smbios)),
        None if newer => open.push(Open::Smbios),
        None => {}
    }
    let boot = acpi.boot_events().map_err(FirmwareError::Acpi)?;
    if boot.is_empty() {
        open.push(Open::BootVariables);
    }
    events.extend(boot);
    Ok(())
}

fn smbios_event(smbios: &Smbios) -> PredictedEvent {
    of_data("EV_EFI_HANDOFF_TABLES", smbios.measured(), Cause::SmbiosTables)
}

/// The Secure Boot policy, from the store that the firmware is delivered with.
fn policy_events(
    configuration: &[u8],
    acpi: Option<&AcpiTables>,
    events: &mut Vec<PredictedEvent>,
    open: &mut Vec<Open>,
) {
    let stored = match variables::parse(configuration) {
        Ok(stored) => stored,
        Err(error) => return open.push(Open::Variables(error)),
    };
    let state = acpi.and_then(AcpiTables::secure_boot).or_else(|| secure_boot(&stored));
    match state {
        Some(state) => events.push(policy_event("SecureBoot", &GLOBAL, state)),
        None => open.push(Open::SecureBootUnknown),
    }
    // A firmware without the variable has no Secure Boot and does not look into the store.
    let ignored = state == Some(&[]);
    for (name, owner) in POLICY {
        let value = variables::get(&stored, name, &owner).filter(|_| !ignored).unwrap_or_default();
        if state.is_some() || value.is_empty() {
            events.push(policy_event(name, &owner, value));
        }
    }
    if let Some(value) =
        variables::get(&stored, TIMESTAMPS, &DATABASE).filter(|_| state.is_some() && !ignored)
    {
        events.push(policy_event(TIMESTAMPS, &DATABASE, value));
    }
    if state == Some(&[1]) {
        open.push(Open::SecureBootOn);
    }
}

/// The value that firmware with Secure Boot gives to the variable SecureBoot: on when a platform key is there, unless it was
/// switched off (edk2 `SecurityPkg/Library/AuthVariableLib`). Without a platform key the firmware may be one without Secure Boot.
fn secure_boot(stored: &[Variable<'_>]) -> Option<&'static [u8]> {
    variables::get(stored, "PK", &GLOBAL).filter(|key| !key.is_empty())?;
    match variables::get(stored, "SecureBootEnable", &ENABLE) {
        None | Some([1]) => Some(&[1]),
        Some(_) => Some(&[0]),
    }
}

fn policy_event(name: &str, owner: &[u8; 16], value: &[u8]) -> PredictedEvent {
    let data = variables::event_data(name, owner, value);
    of_data("EV_EFI_VARIABLE_DRIVER_CONFIG", &data, Cause::SecureBootVariable(name.to_owned()))
}

fn of_data(event: &str, data: &[u8], cause: Cause) -> PredictedEvent {
    let digest: Register = Sha384::digest(data).into();
    PredictedEvent { mr: 0, event: event.to_owned(), digest, cause }
}

/// Why a platform cannot be predicted.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// The file.
    #[error("not a firmware for trust domains")]
    Tdvf(#[source] TdvfError),
    /// The machine's memory.
    #[error("the firmware does not fit the machine's memory")]
    Hob(#[source] HobError),
    /// The tables.
    #[error("the ACPI tables are not usable")]
    Acpi(#[source] AcpiError),
}
