//! Firmware event logs: the CCEL of a TD and the event log of a TPM, both in the TCG crypto-agile format.
//!
//! Shapes: TCG PC Client Platform Firmware Profile 1.06 §10 (`TCG_PCClientPCREvent` for the first, SHA-1 shaped
//! header event that holds `TCG_EfiSpecIDEvent`; then `TCG_PCR_EVENT2`), UEFI 2.11 §38.4.1 for the register
//! index of confidential guests (1-4 are RTMR0-3). The log comes from the host's reach: every length is checked
//! against the bytes that are there before anything is allocated.

use crate::event_log::{Event, MAX_FIRMWARE_PAYLOAD, Register};

/// Largest accepted log in bytes; a CCEL area is 64 to 256 KiB.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Most accepted entries.
pub const MAX_ENTRIES: usize = 4096;

/// `EV_NO_ACTION`: informative, never extended.
const EV_NO_ACTION: u32 = 3;
const ALG_SHA384: u16 = 0x000c;
const SPEC_ID: &[u8; 16] = b"Spec ID Event03\0";

/// One entry of a TD's log with its full data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Register: 0-3 for RTMR0-3.
    pub mr: u8,
    /// Event type (TCG PFP §10.4.1).
    pub event_type: u32,
    /// SHA-384 digest that the register was extended with.
    pub digest: Register,
    /// Event data.
    pub data: Vec<u8>,
}

impl LogEntry {
    /// The entry as it travels in an evidence document: data longer than [`MAX_FIRMWARE_PAYLOAD`] is left out.
    pub fn event(&self) -> Event {
        let payload = (self.data.len() <= MAX_FIRMWARE_PAYLOAD).then(|| self.data.clone());
        Event { mr: self.mr, event: type_name(self.event_type), digest: Some(self.digest), payload }
    }
}

/// One entry of a TPM's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TpmEvent {
    /// Platform configuration register, 0-23.
    pub pcr: u32,
    /// Event type (TCG PFP §10.4.1).
    pub event_type: u32,
    /// Digest of the SHA-384 bank.
    pub digest: Register,
    /// Event data.
    pub data: Vec<u8>,
}

/// Parses a CCEL into events of registers 0-3; entries of type `EV_NO_ACTION` extend nothing and are left out.
///
/// # Errors
/// [`CcelError`] when the log is not well formed; what follows its end (zeros or ones) is ignored.
pub fn parse(log: &[u8]) -> Result<Vec<Event>, CcelError> {
    Ok(parse_entries(log)?.iter().map(LogEntry::event).collect())
}

/// Like [`parse`], with each entry's numeric type and full data.
///
/// # Errors
/// As [`parse`].
pub fn parse_entries(log: &[u8]) -> Result<Vec<LogEntry>, CcelError> {
    let mut out = Vec::new();
    for raw in parse_raw(log)? {
        if raw.event_type == EV_NO_ACTION {
            continue;
        }
        let mr = match raw.index {
            1..=4 => (raw.index - 1) as u8,
            other => return Err(CcelError::Register(other)),
        };
        out.push(LogEntry { mr, event_type: raw.event_type, digest: raw.digest, data: raw.data });
    }
    Ok(out)
}

/// Parses a TPM's log (`binary_bios_measurements`) for its SHA-384 bank; `EV_NO_ACTION` entries are left out.
///
/// # Errors
/// [`CcelError::NoSha384`] when the TPM has no SHA-384 bank, else as [`parse`].
pub fn parse_tpm(log: &[u8]) -> Result<Vec<TpmEvent>, CcelError> {
    let mut out = Vec::new();
    for raw in parse_raw(log)? {
        if raw.event_type == EV_NO_ACTION {
            continue;
        }
        if raw.index > 23 {
            return Err(CcelError::Register(raw.index));
        }
        out.push(TpmEvent { pcr: raw.index, event_type: raw.event_type, digest: raw.digest, data: raw.data });
    }
    Ok(out)
}

/// Writes a CCEL that holds `entries`: the specification header, then one SHA-384 entry each.
pub fn write(entries: &[LogEntry]) -> Vec<u8> {
    let mut out = Vec::new();
    // TCG_EfiSpecIDEvent: signature, platform class 0, version 2.0 errata 0, uintn size 2 (64 bit), one algorithm.
    let mut spec = SPEC_ID.to_vec();
    spec.extend_from_slice(&[0, 0, 0, 0, 0, 2, 0, 2]);
    spec.extend_from_slice(&1u32.to_le_bytes());
    spec.extend_from_slice(&ALG_SHA384.to_le_bytes());
    spec.extend_from_slice(&48u16.to_le_bytes());
    spec.push(0);
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(&EV_NO_ACTION.to_le_bytes());
    out.extend_from_slice(&[0; 20]);
    out.extend_from_slice(&length(&spec).to_le_bytes());
    out.extend_from_slice(&spec);
    for entry in entries {
        out.extend_from_slice(&(u32::from(entry.mr) + 1).to_le_bytes());
        out.extend_from_slice(&entry.event_type.to_le_bytes());
        out.extend_from_slice(&1u32.to_le_bytes());
        out.extend_from_slice(&ALG_SHA384.to_le_bytes());
        out.extend_from_slice(&entry.digest);
        out.extend_from_slice(&length(&entry.data).to_le_bytes());
        out.extend_from_slice(&entry.data);
    }
    out
}

/// A length field; data beyond 4 GiB cannot occur ([`MAX_BYTES`]) and would be refused by every reader.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// The TCG name of an event type, `EV_0x…` for one without a name here.
pub fn type_name(event_type: u32) -> String {
    match TYPES.iter().find(|(number, _)| *number == event_type) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("EV_0x{event_type:08X}"),
    }
}

/// The inverse of [`type_name`].
pub fn type_number(name: &str) -> Option<u32> {
    match TYPES.iter().find(|(_, known)| *known == name) {
        Some((number, _)) => Some(*number),
        None => u32::from_str_radix(name.strip_prefix("EV_0x")?, 16).ok(),
    }
}

/// TCG PC Client Platform Firmware Profile 1.06, §10.4.1, table 27.
const TYPES: &[(u32, &str)] = &[
    (0x0000_0000, "EV_PREBOOT_CERT"),
    (0x0000_0001, "EV_POST_CODE"),
    (0x0000_0003, "EV_NO_ACTION"),
    (0x0000_0004, "EV_SEPARATOR"),
    (0x0000_0005, "EV_ACTION"),
    (0x0000_0006, "EV_EVENT_TAG"),
    (0x0000_0007, "EV_S_CRTM_CONTENTS"),
    (0x0000_0008, "EV_S_CRTM_VERSION"),
    (0x0000_0009, "EV_CPU_MICROCODE"),
    (0x0000_000a, "EV_PLATFORM_CONFIG_FLAGS"),
    (0x0000_000b, "EV_TABLE_OF_DEVICES"),
    (0x0000_000c, "EV_COMPACT_HASH"),
    (0x0000_000d, "EV_IPL"),
    (0x0000_000e, "EV_IPL_PARTITION_DATA"),
    (0x0000_000f, "EV_NONHOST_CODE"),
    (0x0000_0010, "EV_NONHOST_CONFIG"),
    (0x0000_0011, "EV_NONHOST_INFO"),
    (0x0000_0012, "EV_OMIT_BOOT_DEVICE_EVENTS"),
    (0x0000_0013, "EV_POST_CODE2"),
    (0x8000_0001, "EV_EFI_VARIABLE_DRIVER_CONFIG"),
    (0x8000_0002, "EV_EFI_VARIABLE_BOOT"),
    (0x8000_0003, "EV_EFI_BOOT_SERVICES_APPLICATION"),
    (0x8000_0004, "EV_EFI_BOOT_SERVICES_DRIVER"),
    (0x8000_0005, "EV_EFI_RUNTIME_SERVICES_DRIVER"),
    (0x8000_0006, "EV_EFI_GPT_EVENT"),
    (0x8000_0007, "EV_EFI_ACTION"),
    (0x8000_0008, "EV_EFI_PLATFORM_FIRMWARE_BLOB"),
    (0x8000_0009, "EV_EFI_HANDOFF_TABLES"),
    (0x8000_000a, "EV_EFI_PLATFORM_FIRMWARE_BLOB2"),
    (0x8000_000b, "EV_EFI_HANDOFF_TABLES2"),
    (0x8000_000c, "EV_EFI_VARIABLE_BOOT2"),
    (0x8000_000d, "EV_EFI_GPT_EVENT2"),
    (0x8000_0010, "EV_EFI_HCRTM_EVENT"),
    (0x8000_00e0, "EV_EFI_VARIABLE_AUTHORITY"),
    (0x8000_00e1, "EV_EFI_SPDM_FIRMWARE_BLOB"),
    (0x8000_00e2, "EV_EFI_SPDM_FIRMWARE_CONFIG"),
];

/// An entry before its register index is interpreted.
struct RawEntry {
    index: u32,
    event_type: u32,
    digest: Register,
    data: Vec<u8>,
}

fn parse_raw(log: &[u8]) -> Result<Vec<RawEntry>, CcelError> {
    if log.len() > MAX_BYTES {
        return Err(CcelError::TooLarge(log.len()));
    }
    let mut rest = Reader { bytes: log };
    let algorithms = read_header(&mut rest)?;
    let mut out = Vec::new();
    while !rest.at_end() {
        if out.len() == MAX_ENTRIES {
            return Err(CcelError::TooMany);
        }
        out.push(read_entry(&mut rest, &algorithms)?);
    }
    Ok(out)
}

/// Reads the header event and returns the digest sizes that it declares, as (algorithm, bytes).
fn read_header(rest: &mut Reader<'_>) -> Result<Vec<(u16, usize)>, CcelError> {
    rest.u32()?; // register index: nothing is extended
    if rest.u32()? != EV_NO_ACTION {
        return Err(CcelError::Header);
    }
    rest.take(20)?; // SHA-1 digest, all zero by definition
    let size = rest.u32()?;
    let mut spec = Reader { bytes: rest.take(size as usize)? };
    if spec.take(16)? != SPEC_ID {
        return Err(CcelError::Header);
    }
    spec.take(8)?; // platform class, version, errata, uintn size
    let count = spec.u32()?;
    if !(1..=8).contains(&count) {
        return Err(CcelError::Header);
    }
    let mut algorithms = Vec::new();
    for _ in 0..count {
        algorithms.push((spec.u16()?, usize::from(spec.u16()?)));
    }
    match algorithms.iter().find(|(algorithm, _)| *algorithm == ALG_SHA384) {
        Some((_, 48)) => Ok(algorithms),
        Some(_) => Err(CcelError::Header),
        None => Err(CcelError::NoSha384),
    }
}

fn read_entry(rest: &mut Reader<'_>, algorithms: &[(u16, usize)]) -> Result<RawEntry, CcelError> {
    let index = rest.u32()?;
    let event_type = rest.u32()?;
    let count = rest.u32()?;
    if count as usize > algorithms.len() {
        return Err(CcelError::Digests);
    }
    let mut sha384 = None;
    for _ in 0..count {
        let algorithm = rest.u16()?;
        let (_, size) = algorithms.iter().find(|(known, _)| *known == algorithm).ok_or(CcelError::Digests)?;
        let digest = rest.take(*size)?;
        if algorithm == ALG_SHA384 && sha384.replace(digest).is_some() {
            return Err(CcelError::Digests);
        }
    }
    let digest = sha384.and_then(|bytes| bytes.try_into().ok()).ok_or(CcelError::Digests)?;
    let size = rest.u32()?;
    let data = rest.take(size as usize)?.to_vec();
    Ok(RawEntry { index, event_type, digest, data })
}

/// A cursor that cannot run past its end.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Whether the log ends here: nothing left, or only the filling of the log area (all zero or all ones).
    fn at_end(&self) -> bool {
        self.bytes.iter().all(|b| *b == 0) || self.bytes.iter().all(|b| *b == 0xff)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], CcelError> {
        let (head, tail) = self.bytes.split_at_checked(count).ok_or(CcelError::Truncated)?;
        self.bytes = tail;
        Ok(head)
    }

    fn u16(&mut self) -> Result<u16, CcelError> {
        let bytes = self.take(2)?.try_into().map_err(|_| CcelError::Truncated)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn u32(&mut self) -> Result<u32, CcelError> {
        let bytes = self.take(4)?.try_into().map_err(|_| CcelError::Truncated)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

/// Why a firmware log was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CcelError {
    /// Larger than [`MAX_BYTES`].
    #[error("firmware log of {0} bytes, at most {MAX_BYTES} allowed")]
    TooLarge(usize),
    /// More than [`MAX_ENTRIES`].
    #[error("firmware log with more than {MAX_ENTRIES} entries")]
    TooMany,
    /// A length points beyond the end.
    #[error("firmware log ends inside an entry")]
    Truncated,
    /// The first event is not a well-formed specification header.
    #[error("firmware log does not begin with a crypto-agile header")]
    Header,
    /// The log has no SHA-384 digests.
    #[error("firmware log has no SHA-384 digests")]
    NoSha384,
    /// An entry's digests are not the ones that the header declares.
    #[error("firmware log entry with undeclared, repeated or missing digests")]
    Digests,
    /// An index that names no register.
    #[error("firmware log entry for register index {0}")]
    Register(u32),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{event_log, fixtures, quote};

    #[test]
    fn a_hardware_log_replays_to_its_quote() {
        let Some((log, raw)) = fixtures::cos_113() else { return };
        let quote = quote::parse(quote::trim_padding(&raw).unwrap()).unwrap();
        let events = parse(&log).unwrap();
        for mr in 0..4u8 {
            assert_eq!(
                hex::encode(event_log::replay(&events, mr)),
                hex::encode(quote.rtmr[usize::from(mr)]),
                "RTMR{mr}, {} events",
                events.iter().filter(|e| e.mr == mr).count()
            );
        }
    }
}
