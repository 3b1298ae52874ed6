//! The SMBIOS tables: what newer firmware measures of how the machine is described to its operating system.
//!
//! Responsible for reading a table as firmware installed it, for naming another processor in it, and for leaving out what the
//! firmware leaves out when it measures: serial numbers, asset tags, the machine's UUID, numbers of cores. A table that firmware
//! would not read in one way is refused. It computes no table: QEMU and the firmware make it, `ci/acpi-tables` takes it.
//! Sources: DMTF DSP0134 3.7, sections 6.1.2 and 6.1.3 (structures, strings), 7 (fields); edk2 `SmbiosMeasurementDxe` (what is
//! left out), `SmbiosDxe` (handles, end of the table); QEMU `hw/smbios/smbios.c` (what depends on the host's processor).

use std::collections::BTreeSet;
use std::ops::Range;

use cofferdam_attest::reference::ProcessorId;

use crate::bytes::{CutOff, array, slice, u16_at};

/// Type, length of the formatted part, handle.
const HEADER: usize = 4;
/// Higher handles are reserved; the firmware gives this one to the end of the table.
const LAST_HANDLE: u16 = 0xfeff;
const END_OF_TABLE: u8 = 127;
const PROCESSOR: u8 = 4;
/// Where the identification lies in a structure of type [`PROCESSOR`].
const PROCESSOR_ID: Range<usize> = 8..16;
/// From here on types are manufacturers' own.
const OEM: u8 = 128;

/// What is left out of a structure.
enum LeftOut {
    Nothing,
    /// Everything behind the header.
    Everything,
    /// Single fields.
    Fields(&'static [Field]),
}

/// A field that is left out where the structure is long enough to have it.
enum Field {
    /// The number of a string at this offset: zero, and the string is spaces.
    Text(usize),
    /// Zeros at this offset, so many.
    Number(usize, usize),
}

/// What the firmware leaves out, by the structure's type.
const fn left_out(kind: u8) -> LeftOut {
    use Field::{Number, Text};
    LeftOut::Fields(match kind {
        // System: serial number, UUID, what woke it.
        1 => &[Text(0x07), Number(0x08, 16), Number(0x18, 1)],
        // Board: serial number, location.
        2 => &[Text(0x07), Text(0x0a)],
        // Chassis: serial number, asset tag.
        3 => &[Text(0x07), Text(0x08)],
        // Processor: serial number, asset tag, part number, numbers of cores and threads (twice), voltage, speed.
        PROCESSOR => &[
            Text(0x20),
            Text(0x21),
            Text(0x22),
            Number(0x23, 1),
            Number(0x24, 1),
            Number(0x25, 1),
            Number(0x2a, 2),
            Number(0x2c, 2),
            Number(0x2e, 2),
            Number(0x11, 1),
            Number(0x16, 2),
        ],
        // Memory device: serial number, asset tag, part number.
        17 => &[Text(0x18), Text(0x19), Text(0x1a)],
        // Battery: serial number (twice), date of manufacture.
        22 => &[Text(0x07), Number(0x10, 2), Number(0x12, 2)],
        // Reset: how often.
        23 => &[Number(0x05, 2)],
        // Cooling device: nominal speed.
        27 => &[Number(0x0c, 2)],
        // Power supply: serial number, asset tag, model.
        39 => &[Text(0x08), Text(0x09), Text(0x0a)],
        // OEM strings, logs of events and errors, boot integrity.
        11 | 15 | 18 | 31 | 33 | OEM.. => return LeftOut::Everything,
        _ => return LeftOut::Nothing,
    })
}

/// What is measured of a table that was read and is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smbios {
    measured: Vec<u8>,
    /// Where processors' identifications lie in it; nothing of them is left out.
    processors: Vec<usize>,
}

impl Smbios {
    /// Reads a table with everything up to and including its end.
    ///
    /// # Errors
    /// [`SmbiosError`] when it is cut off, ambiguous, or goes on behind its end.
    pub fn parse(table: &[u8]) -> Result<Self, SmbiosError> {
        let mut found = Self { measured: Vec::with_capacity(table.len()), processors: Vec::new() };
        let mut handles = BTreeSet::new();
        loop {
            let at = found.measured.len();
            let cut = |CutOff(within)| SmbiosError::CutOff(at.saturating_add(within));
            let structure = Structure::parse(table.get(at..).unwrap_or_default()).map_err(cut)?;
            let handle = u16_at(structure.bytes, 2).map_err(cut)?;
            // The firmware refuses such a structure and goes on without it.
            if handle > LAST_HANDLE || !handles.insert(handle) {
                return Err(SmbiosError::Handle(handle));
            }
            if structure.kind == PROCESSOR && structure.formatted >= PROCESSOR_ID.end {
                found.processors.push(at.saturating_add(PROCESSOR_ID.start));
            }
            // Every structure has a header and the strings' end at least, so the table's size bounds the rounds.
            found.measured.extend(structure.measured()?);
            if structure.kind == END_OF_TABLE {
                break;
            }
        }
        let end = found.measured.len();
        if end == table.len() { Ok(found) } else { Err(SmbiosError::Behind(end)) }
    }

    /// Whether it names a processor.
    #[must_use]
    pub fn names_processor(&self) -> bool {
        !self.processors.is_empty()
    }

    /// The same of a machine with this processor.
    #[must_use]
    pub fn with_processor(mut self, id: ProcessorId) -> Self {
        for at in &self.processors {
            let end = at.saturating_add(id.0.len());
            if let Some(field) = self.measured.get_mut(*at..end) {
                field.copy_from_slice(&id.0);
            }
        }
        self
    }

    /// The bytes whose digest the firmware extends.
    #[must_use]
    pub fn measured(&self) -> &[u8] {
        &self.measured
    }
}

/// One structure of a table.
struct Structure<'a> {
    kind: u8,
    /// Length of the formatted part; the strings are behind it.
    formatted: usize,
    bytes: &'a [u8],
}

impl<'a> Structure<'a> {
    /// Reads the structure that `table` begins with.
    fn parse(table: &'a [u8]) -> Result<Self, CutOff> {
        let [kind, length] = array(table, 0)?;
        let formatted = usize::from(length);
        if formatted < HEADER {
            return Err(CutOff(1));
        }
        slice(table, 0, formatted)?;
        // A string has a byte at least: two zeros end the row of them, also where there are none.
        let strings = table.get(formatted..).unwrap_or_default();
        let end = strings.windows(2).position(|pair| pair == [0, 0]).ok_or(CutOff(formatted))?;
        if end > 0 && strings.first() == Some(&0) {
            return Err(CutOff(formatted));
        }
        let length = formatted.saturating_add(end).saturating_add(2);
        Ok(Self { kind, formatted, bytes: slice(table, 0, length)? })
    }

    /// The structure without what is left out.
    fn measured(&self) -> Result<Vec<u8>, SmbiosError> {
        let mut bytes = self.bytes.to_vec();
        match left_out(self.kind) {
            LeftOut::Nothing => {}
            LeftOut::Everything => bytes.iter_mut().skip(HEADER).for_each(|byte| *byte = 0),
            LeftOut::Fields(fields) => {
                for field in fields {
                    self.leave_out(field, &mut bytes)?;
                }
            }
        }
        Ok(bytes)
    }

    fn leave_out(&self, field: &Field, bytes: &mut [u8]) -> Result<(), SmbiosError> {
        let (at, size) = match field {
            Field::Text(at) => (*at, 1),
            Field::Number(at, size) => (*at, *size),
        };
        let end = at.saturating_add(size);
        if end > self.formatted {
            return Ok(());
        }
        let value = bytes.get_mut(at..end).unwrap_or_default();
        let number = value.first().copied().unwrap_or_default();
        value.fill(0);
        if matches!(field, Field::Text(_)) && number != 0 {
            let text = self.string(number).ok_or(SmbiosError::NoString { kind: self.kind, number })?;
            bytes.get_mut(text).unwrap_or_default().fill(b' ');
        }
        Ok(())
    }

    /// Where the string of that number lies; the first is 1.
    fn string(&self, number: u8) -> Option<Range<usize>> {
        let mut start = self.formatted;
        for _ in 1..number {
            start = self.string_at(start)?.end.checked_add(1)?;
        }
        self.string_at(start)
    }

    fn string_at(&self, start: usize) -> Option<Range<usize>> {
        let length = self.bytes.get(start..)?.iter().position(|byte| *byte == 0)?;
        // The row's end looks like a string without a byte.
        (length > 0).then_some(start..start.checked_add(length)?)
    }
}

/// Why a table was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SmbiosError {
    /// A structure without its end, or of an impossible length.
    #[error("the SMBIOS table is cut off, or a length in it is wrong: offset {0}")]
    CutOff(usize),
    /// A handle that is reserved, or there twice.
    #[error("the SMBIOS table has a structure with the handle {0:#06x}, which is reserved or taken")]
    Handle(u16),
    /// A field names a string that the structure does not have.
    #[error("the SMBIOS table has a structure of type {kind} without the string {number} that it names")]
    NoString {
        /// The structure's type.
        kind: u8,
        /// The string.
        number: u8,
    },
    /// Something behind the end.
    #[error("the SMBIOS table goes on behind its end: offset {0}")]
    Behind(usize),
}
