//! From the firmware's measurements in a TPM to the registers and the log of a TD.
//!
//! The mapping is TDVF's (Intel "TDX Virtual Firmware Design Guide" §8.1; UEFI 2.11 §38.4.1): PCR 1 and 7 → RTMR0,
//! 2-6 → RTMR1, 8-15 → RTMR2. PCR 0 holds the firmware's own code, which a TD has in MRTD instead, so it is dropped.
//! Before anything is believed, the log's replay is compared with what the TPM itself holds.

use cofferdam_attest::ccel::{self, CcelError, LogEntry, TpmEvent};
use cofferdam_attest::event_log::{Register, extend};
use thiserror::Error;

/// PCRs that firmware and boot loader use; 16-23 are for debugging and late launch.
pub const PCRS: u32 = 16;
/// The register that Linux' integrity measurement keeps for itself: it is extended after the firmware is done and
/// has no place in the firmware's log.
const IMA_PCR: u32 = 10;

/// What the firmware measured, as a TD has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// RTMR0-3; RTMR3 is zero.
    pub rtmr: [Register; 4],
    /// The same as a log in CCEL format.
    pub ccel: Vec<u8>,
    /// How many events were kept.
    pub events: usize,
}

/// Why the firmware's measurements are not believed.
#[derive(Debug, Error)]
pub enum FirmwareError {
    /// The TPM's log.
    #[error("the firmware's log cannot be read")]
    Log(#[from] CcelError),
    /// A log without a single event of the registers that matter.
    #[error("the firmware measured nothing: was it started with a TPM?")]
    Empty,
    /// A register holds something else than its log says.
    #[error("PCR {pcr} holds {held}, its log says {replayed}")]
    Mismatch {
        /// Which.
        pcr: u32,
        /// What the TPM holds, hex.
        held: String,
        /// What the log leads to, hex.
        replayed: String,
    },
    /// A register's value could not be had.
    #[error("PCR {0} cannot be read")]
    Missing(u32),
    /// Events in a register that the kernel extends as well, so that nobody could tell them apart.
    #[error("the firmware used PCR {IMA_PCR}, which is the kernel's")]
    Ima,
}

/// Replays the TPM log `log`, compares it with the TPM's SHA-384 registers (`pcr(n)` gives the value of PCR n) and
/// maps it.
///
/// # Errors
/// [`FirmwareError`] when any of the registers 0-15 does not hold what the log says.
pub fn replay(log: &[u8], pcr: impl Fn(u32) -> Option<Register>) -> Result<Firmware, FirmwareError> {
    let events = ccel::parse_tpm(log)?;
    for number in 0..PCRS {
        let of_this = events.iter().filter(|event| event.pcr == number);
        if number == IMA_PCR {
            if of_this.count() > 0 {
                return Err(FirmwareError::Ima);
            }
            continue;
        }
        let replayed = of_this.fold([0; 48], |register, event| extend(&register, &event.digest));
        let held = pcr(number).ok_or(FirmwareError::Missing(number))?;
        if replayed != held {
            let (held, replayed) = (hex::encode(held), hex::encode(replayed));
            return Err(FirmwareError::Mismatch { pcr: number, held, replayed });
        }
    }
    map(&events)
}

fn map(events: &[TpmEvent]) -> Result<Firmware, FirmwareError> {
    let mut rtmr = [[0; 48]; 4];
    let mut entries = Vec::new();
    for event in events {
        let Some(mr) = register_of(event.pcr) else { continue };
        if let Some(register) = rtmr.get_mut(usize::from(mr)) {
            *register = extend(register, &event.digest);
        }
        let data = event.data.clone();
        entries.push(LogEntry { mr, event_type: event.event_type, digest: event.digest, data });
    }
    if entries.is_empty() {
        return Err(FirmwareError::Empty);
    }
    Ok(Firmware { rtmr, ccel: ccel::write(&entries), events: entries.len() })
}

/// The run-time register that stands for a PCR, as TDVF maps them.
pub fn register_of(pcr: u32) -> Option<u8> {
    match pcr {
        1 | 7 => Some(0),
        2..=6 => Some(1),
        8..=15 => Some(2),
        _ => None,
    }
}

/// The ACPI table that announces a CCEL of `length` bytes (UEFI 2.11 §38.4.1 and ACPI 6.5 §5.2.34): 36 bytes of
/// header, confidential computing type 2 (TDX), reserved, minimum length and address. There is no memory area
/// behind it, so its address is 0; readers take the log from the kernel's `data/CCEL`.
pub fn ccel_table(length: usize) -> Vec<u8> {
    let mut table = Vec::with_capacity(56);
    table.extend(b"CCEL");
    table.extend(56u32.to_le_bytes());
    table.extend([1, 0]); // revision, checksum (below)
    table.extend(b"COFFDM"); // OEM id, OEM table id, OEM revision
    table.extend(b"SIMULATE");
    table.extend(1u32.to_le_bytes());
    table.extend(b"CFDM"); // creator id and revision
    table.extend(1u32.to_le_bytes());
    table.extend([2, 0, 0, 0]); // type TDX, subtype, reserved
    table.extend((length as u64).to_le_bytes());
    table.extend(0u64.to_le_bytes());
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = table.get_mut(9) {
        *checksum = sum.wrapping_neg();
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TPM log with the header of a TPM that has a SHA-256 and a SHA-384 bank.
    fn log(events: &[(u32, u8)]) -> Vec<u8> {
        let mut spec = b"Spec ID Event03\0".to_vec();
        spec.extend([0, 0, 0, 0, 0, 2, 0, 2]);
        spec.extend(2u32.to_le_bytes());
        spec.extend([0x0b, 0, 32, 0, 0x0c, 0, 48, 0, 0]);
        let mut log = 0u32.to_le_bytes().to_vec();
        log.extend(3u32.to_le_bytes());
        log.extend([0; 20]);
        log.extend((spec.len() as u32).to_le_bytes());
        log.extend(spec);
        for (pcr, byte) in events {
            log.extend(pcr.to_le_bytes());
            log.extend(4u32.to_le_bytes());
            log.extend(2u32.to_le_bytes());
            log.extend([0x0b, 0]);
            log.extend([0xee; 32]);
            log.extend([0x0c, 0]);
            log.extend([*byte; 48]);
            log.extend(3u32.to_le_bytes());
            log.extend(b"abc");
        }
        log
    }

    fn tpm(events: &[(u32, u8)]) -> impl Fn(u32) -> Option<Register> {
        let events = events.to_vec();
        move |number| {
            let of_this = events.iter().filter(|(pcr, _)| *pcr == number);
            Some(of_this.fold([0; 48], |register, (_, byte)| extend(&register, &[*byte; 48])))
        }
    }

    const EVENTS: [(u32, u8); 6] = [(0, 1), (7, 2), (1, 3), (4, 4), (11, 5), (2, 6)];

    #[test]
    fn registers_take_the_events_of_their_pcrs_in_the_logs_order() {
        let firmware = replay(&log(&EVENTS), tpm(&EVENTS)).unwrap();
        let zero = [0; 48];
        let two = |a: u8, b: u8| extend(&extend(&zero, &[a; 48]), &[b; 48]);
        assert_eq!(firmware.rtmr, [two(2, 3), two(4, 6), extend(&zero, &[5; 48]), zero]);
        assert_eq!(firmware.events, 5);
        // A verifier that replays the log comes to the same registers.
        let events = ccel::parse(&firmware.ccel).unwrap();
        for mr in 0..4u8 {
            let replayed = cofferdam_attest::event_log::replay(&events, mr);
            assert_eq!(replayed, firmware.rtmr[usize::from(mr)], "RTMR{mr}");
        }
        assert_eq!(events[0].payload.as_deref(), Some(&b"abc"[..]));
    }

    #[test]
    fn a_tpm_that_says_otherwise_is_believed_over_the_log() {
        for pcr in (0..PCRS).filter(|pcr| *pcr != IMA_PCR) {
            let truth = tpm(&EVENTS);
            let lying = |number| if number == pcr { Some([0xaa; 48]) } else { truth(number) };
            let error = replay(&log(&EVENTS), lying).unwrap_err();
            assert!(matches!(error, FirmwareError::Mismatch { pcr: found, .. } if found == pcr), "{error}");
        }
        assert!(matches!(replay(&log(&EVENTS), |_| None), Err(FirmwareError::Missing(0))));
    }

    #[test]
    fn the_kernels_own_pcr_may_differ_but_not_be_the_firmwares() {
        let truth = tpm(&EVENTS);
        let with_ima = |number| if number == 10 { Some([0xaa; 48]) } else { truth(number) };
        assert!(replay(&log(&EVENTS), with_ima).is_ok());
        assert!(matches!(replay(&log(&[(10, 1)]), tpm(&[(10, 1)])), Err(FirmwareError::Ima)));
    }

    #[test]
    fn a_log_of_nothing_is_refused() {
        assert!(matches!(replay(&log(&[(0, 1)]), tpm(&[(0, 1)])), Err(FirmwareError::Empty)));
        assert!(matches!(replay(&[], tpm(&[])), Err(FirmwareError::Log(_))));
    }

    #[test]
    fn the_table_sums_to_zero() {
        let table = ccel_table(0x1234);
        assert_eq!(table.len(), 56);
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(table[36], 2);
        assert_eq!(table[40..48], 0x1234u64.to_le_bytes());
    }
}
