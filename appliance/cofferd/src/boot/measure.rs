//! Stage `measure`: everything that the host passed goes into RTMR3, and only then is it looked at.
//!
//! Order (design, "Event log"): `declaration`, before its bytes are parsed; then `appliance` and `machine`. `state` follows in
//! the stage `unseal`, `image` and `launch` in the stage of that name. The firmware's own log is read here and must
//! replay to RTMR0-2: evidence whose log does not explain its registers would convince nobody.

use std::fs;
use std::io;
use std::path::Path;

use cofferdam_attest::ccel::{self, CcelError};
use cofferdam_attest::event_log::payload::{self, Payload};
use cofferdam_attest::event_log::{Event, replay};
use cofferdam_declaration::Declaration;
use cofferdam_protocol::Digest;
use cofferdam_protocol::facts::Registers as Values;

use super::disk::{self, Delivered, DiskError};
use super::mount::{self, MountError};
use crate::system::console::say;
use crate::system::files;
use crate::system::tdx::{FIRMWARE_LOG, MEASUREMENTS, REPORTS, Registers, TdxError};

/// Most processors that are believed: the kernel's own limit on x86-64 is 8192.
const MAX_CPUS: u32 = 8192;

/// Why the stage failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeasureError {
    /// This machine is not a TD, or its kernel has no driver for it.
    #[error("there is no {0}: this machine is not a trust domain")]
    NoDevice(&'static str),
    /// A register.
    #[error("cannot use the measurement registers")]
    Registers(#[from] TdxError),
    /// Something extended RTMR3 before PID 1, so the event log could not explain it.
    #[error("register 3 is not empty at the start")]
    NotEmpty,
    /// The firmware's log cannot be read.
    #[error("cannot read the firmware's event log")]
    FirmwareLog(#[source] io::Error),
    /// The firmware's log is malformed.
    #[error("the firmware's event log is malformed")]
    Malformed(#[from] CcelError),
    /// The firmware's log does not lead to the register's value.
    #[error("the firmware's event log does not explain register {0}")]
    Unexplained(u8),
    /// There is no declaration.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The declaration is wrong; the diagnostics are on the console.
    #[error("the declaration has {0} error(s), listed above")]
    Declaration(usize),
    /// The machine's memory is not known.
    #[error(transparent)]
    Memory(#[from] MountError),
    /// The machine's processors are not known.
    #[error("cannot count the processors")]
    Processors(#[source] io::Error),
}

/// What holds after this stage: the registers with everything in them so far, and the parsed declaration.
#[derive(Debug)]
pub(crate) struct Measured {
    /// The registers, for the events to come.
    pub(crate) registers: Registers,
    /// The firmware's events and ours, in order.
    pub(crate) log: Vec<Event>,
    /// What the host delivered.
    pub(crate) delivered: Delivered,
    /// What it means.
    pub(crate) declaration: Declaration,
}

impl Measured {
    /// Extends RTMR3 with an event and appends it to the log.
    ///
    /// # Errors
    ///
    /// The register.
    pub(crate) fn measure(&mut self, payload: &impl Payload) -> Result<(), TdxError> {
        measure(&self.registers, &mut self.log, payload)
    }
}

/// Establishes the measurements.
///
/// # Errors
///
/// [`MeasureError`].
pub(crate) fn establish() -> Result<Measured, MeasureError> {
    for path in [REPORTS, MEASUREMENTS] {
        if !Path::new(path).is_dir() {
            return Err(MeasureError::NoDevice(path));
        }
    }
    let registers = Registers::new(MEASUREMENTS.as_ref());
    if registers.read("rtmr3")? != [0; 48] {
        return Err(MeasureError::NotEmpty);
    }
    let firmware =
        files::read_bounded(FIRMWARE_LOG, ccel::MAX_BYTES as u64).map_err(MeasureError::FirmwareLog)?;
    let mut log = ccel::parse(&firmware)?;
    explain(&log, &registers.all()?)?;

    let delivered = disk::declaration()?;
    let digest = Digest::of(&delivered.bytes);
    let source = "disk".to_owned();
    let commit = delivered.commit;
    measure(&registers, &mut log, &payload::Declaration { digest, source, commit })?;
    let declaration = parse(&delivered.bytes)?;

    let repository = declaration.repository.clone();
    let endpoint = declaration.endpoint.clone();
    measure(&registers, &mut log, &payload::Appliance { repository, declaration: digest, endpoint })?;
    let memory_mib = mount::memory_bytes()? >> 20;
    let (cpus, network) = (processors()?, delivered.network.clone());
    measure(&registers, &mut log, &payload::Machine { cpus, memory_mib, network })?;
    Ok(Measured { registers, log, delivered, declaration })
}

fn measure(registers: &Registers, log: &mut Vec<Event>, payload: &impl Payload) -> Result<(), TdxError> {
    let event = payload.event()?;
    registers.measure(&replay(log, 3), &event)?;
    log.push(event);
    Ok(())
}

/// The log has to lead to exactly what registers 0 to 2 hold.
fn explain(log: &[Event], registers: &Values) -> Result<(), MeasureError> {
    for (mr, held) in [(0, registers.rtmr0), (1, registers.rtmr1), (2, registers.rtmr2)] {
        if held != replay(log, mr) {
            return Err(MeasureError::Unexplained(mr));
        }
    }
    Ok(())
}

fn parse(bytes: &[u8]) -> Result<Declaration, MeasureError> {
    Declaration::parse(bytes).map_err(|diagnostics| {
        for line in diagnostics.render("cofferdam.yaml").lines() {
            say(line);
        }
        MeasureError::Declaration(diagnostics.iter().count())
    })
}

fn processors() -> Result<u32, MeasureError> {
    let text = fs::read_to_string("/sys/devices/system/cpu/online").map_err(MeasureError::Processors)?;
    count_cpus(&text).ok_or_else(|| MeasureError::Processors(io::ErrorKind::InvalidData.into()))
}

/// Counts a list like `0-3,8` (Documentation/admin-guide/cputopology.rst).
fn count_cpus(list: &str) -> Option<u32> {
    let mut count = 0_u32;
    for range in list.trim_end().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    (1..=MAX_CPUS).contains(&count).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_from_the_kernels_list() {
        assert_eq!(count_cpus("0\n"), Some(1));
        assert_eq!(count_cpus("0-1\n"), Some(2));
        assert_eq!(count_cpus("0-3,8,10-11\n"), Some(7));
        for wrong in ["", "x", "3-1", "0-4294967295", "0-9000", "1,", "-1"] {
            assert_eq!(count_cpus(wrong), None, "{wrong:?}");
        }
        assert!(processors().unwrap() >= 1);
    }

    #[test]
    fn a_log_that_leads_elsewhere_is_named_by_its_register() {
        let event = Event { mr: 1, event: "EV_IPL".to_owned(), digest: Some([7; 48]), payload: None };
        let log = vec![event];
        let zero = [0; 48];
        let mut registers = Values { mrtd: zero, rtmr0: zero, rtmr1: zero, rtmr2: zero, rtmr3: zero };
        assert!(matches!(explain(&log, &registers), Err(MeasureError::Unexplained(1))));
        registers.rtmr1 = replay(&log, 1);
        explain(&log, &registers).unwrap();
        registers.rtmr2 = [7; 48];
        assert!(matches!(explain(&log, &registers), Err(MeasureError::Unexplained(2))));
    }

    #[test]
    fn a_wrong_declaration_is_counted() {
        assert!(matches!(parse(b"\tversion: 1\n"), Err(MeasureError::Declaration(1..))));
    }
}
