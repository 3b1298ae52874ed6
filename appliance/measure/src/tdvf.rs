//! The metadata that a TDX firmware (TDVF) carries about itself: which parts of the file go where in memory.
//!
//! Responsible for finding and checking that description within a firmware file (FD). It loads nothing and measures
//! nothing; [`crate::mrtd`] and [`crate::hob`] do. A description that host software reads in different ways (parts
//! that overlap, raw data shorter than its memory, kinds that QEMU refuses) is an error, because no single measurement
//! follows from it.
//!
//! Sources: Intel "TDX Virtual Firmware Design Guide" (344991), section 11 (descriptor, section types, attributes);
//! the table of GUIDs at the end of OVMF's reset vector, 32 bytes before the end of the file, whose last entry is the
//! footer; QEMU `hw/i386/tdvf.c` and `hw/i386/pc_sysfw_ovmf.c` for what a host accepts.

use std::ops::Range;

use crate::bytes::{CutOff, add, array, offset_at, slice, u16_at, u32_at, u64_at};
use crate::guid::guid;

/// Pages are 4 KiB: TDH.MEM.PAGE.ADD knows no other size.
pub const PAGE: u64 = 4096;

/// Largest firmware that is read: QEMU maps at most 16 MiB below 4 GiB for q35.
pub const MAX_FIRMWARE: usize = 16 << 20;

/// Most sections; firmware has six to nine.
const MOST_SECTIONS: usize = 64;
/// Most memory that all sections describe together; firmware describes a few MiB. Bounds the work for MRTD.
const MOST_MEMORY: u64 = 256 << 20;
/// Addresses end below the shared bit of a guest with 4-level paging.
const ADDRESS_END: u64 = 1 << 47;

/// The table of GUIDs ends this far before the end of the file, and its footer is its last entry.
const TABLE_TAIL: usize = 32;
const TABLE_FOOTER: [u8; 16] =
    guid(0x96b5_82de, 0x1fb2, 0x45f7, [0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d]);
/// The entry whose data is the descriptor's distance from the end of the file.
const METADATA_OFFSET: [u8; 16] =
    guid(0xe47a_6535, 0x984a, 0x4798, [0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2]);
/// An entry of the table ends in its length (2 bytes, itself included) and its GUID (16).
const ENTRY_TAIL: usize = 18;
/// Most entries of the table; OVMF has six.
const MOST_ENTRIES: usize = 64;

const SIGNATURE: &[u8] = b"TDVF";
const VERSION: u32 = 1;
const DESCRIPTOR_LENGTH: usize = 16;
const SECTION_LENGTH: usize = 32;

/// Attribute bit 0: the section's contents are extended into MRTD.
const EXTEND: u32 = 1;

/// What a section is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SectionKind {
    /// Boot firmware volume: code, from the file.
    Bfv,
    /// Configuration firmware volume: the variable store, from the file.
    Cfv,
    /// Where the host writes the list of memory (TD HOB); added unmeasured.
    TdHob,
    /// Stacks, page tables, mailbox: zeros, added unmeasured.
    TempMem,
}

/// One section of the metadata, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// What it is for.
    pub kind: SectionKind,
    /// Its bytes in the file; empty for memory that is not from the file.
    pub raw: Range<usize>,
    /// Where it lies in guest-physical memory, in bytes; whole pages.
    pub memory: Range<u64>,
    /// Whether its contents are extended into MRTD.
    pub extended: bool,
}

/// A firmware file with its metadata; borrows the file.
#[derive(Debug, Clone)]
pub struct Tdvf<'a> {
    bytes: &'a [u8],
    sections: Vec<Section>,
}

impl<'a> Tdvf<'a> {
    /// Parses a firmware file of at most [`MAX_FIRMWARE`] bytes.
    ///
    /// # Errors
    /// [`TdvfError`] when the file has no metadata for TDX or metadata that is not unambiguous.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TdvfError> {
        if bytes.len() > MAX_FIRMWARE {
            return Err(TdvfError::TooLarge(bytes.len()));
        }
        let descriptor = bytes.len().checked_sub(descriptor_distance(bytes)?).ok_or(TdvfError::Descriptor)?;
        if slice(bytes, descriptor, SIGNATURE.len())? != SIGNATURE {
            return Err(TdvfError::Descriptor);
        }
        let length = offset_at(bytes, add(descriptor, 4)?)?;
        let version = u32_at(bytes, add(descriptor, 8)?)?;
        let count = offset_at(bytes, add(descriptor, 12)?)?;
        if version != VERSION {
            return Err(TdvfError::Version(version));
        }
        if count > MOST_SECTIONS {
            return Err(TdvfError::TooManySections(count));
        }
        // QEMU wants at least two sections and exactly their length.
        if count < 2 || length != DESCRIPTOR_LENGTH.saturating_add(count.saturating_mul(SECTION_LENGTH)) {
            return Err(TdvfError::Descriptor);
        }
        let table =
            slice(bytes, add(descriptor, DESCRIPTOR_LENGTH)?, length.saturating_sub(DESCRIPTOR_LENGTH))?;
        let mut sections = Vec::with_capacity(count);
        for (index, entry) in table.chunks_exact(SECTION_LENGTH).enumerate() {
            sections.push(section(bytes, entry, index)?);
        }
        check_together(&sections)?;
        Ok(Self { bytes, sections })
    }

    /// The sections in the order of the metadata, which is the order in which they are added.
    #[must_use]
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// A section's bytes in the file.
    #[must_use]
    pub fn raw(&self, section: &Section) -> &'a [u8] {
        self.bytes.get(section.raw.clone()).unwrap_or_default()
    }

    /// The only section of a kind that a firmware has once.
    ///
    /// # Errors
    /// [`TdvfError::NotOne`] when there is none or more than one.
    pub fn only(&self, kind: SectionKind) -> Result<&Section, TdvfError> {
        let mut found = self.sections.iter().filter(|section| section.kind == kind);
        match (found.next(), found.next()) {
            (Some(section), None) => Ok(section),
            _ => Err(TdvfError::NotOne(kind)),
        }
    }
}

/// How far before the end of the file the descriptor lies, from the table of GUIDs.
fn descriptor_distance(bytes: &[u8]) -> Result<usize, TdvfError> {
    let end = bytes.len().checked_sub(TABLE_TAIL).ok_or(TdvfError::NoTable)?;
    let footer = end.checked_sub(ENTRY_TAIL).ok_or(TdvfError::NoTable)?;
    if array::<16>(bytes, add(footer, 2)?)? != TABLE_FOOTER {
        return Err(TdvfError::NoTable);
    }
    let length = usize::from(u16_at(bytes, footer)?);
    let start = end.checked_sub(length).ok_or(TdvfError::Table)?;
    let mut at = footer;
    for _ in 0..MOST_ENTRIES {
        if at <= start {
            return Err(TdvfError::NoMetadata);
        }
        let tail = at.checked_sub(ENTRY_TAIL).filter(|tail| *tail >= start).ok_or(TdvfError::Table)?;
        let length = usize::from(u16_at(bytes, tail)?);
        if length < ENTRY_TAIL {
            return Err(TdvfError::Table);
        }
        let entry = at.checked_sub(length).filter(|entry| *entry >= start).ok_or(TdvfError::Table)?;
        if array::<16>(bytes, add(tail, 2)?)? == METADATA_OFFSET {
            if length != ENTRY_TAIL.saturating_add(4) {
                return Err(TdvfError::Table);
            }
            return Ok(offset_at(bytes, entry)?);
        }
        at = entry;
    }
    Err(TdvfError::Table)
}

/// One entry of the metadata, checked by itself.
fn section(bytes: &[u8], entry: &[u8], index: usize) -> Result<Section, TdvfError> {
    let start = offset_at(entry, 0)?;
    let length = offset_at(entry, 4)?;
    let address = u64_at(entry, 8)?;
    let size = u64_at(entry, 16)?;
    let kind = match u32_at(entry, 24)? {
        0 => SectionKind::Bfv,
        1 => SectionKind::Cfv,
        2 => SectionKind::TdHob,
        3 => SectionKind::TempMem,
        other => return Err(TdvfError::Kind { index, kind: other }),
    };
    let attributes = u32_at(entry, 28)?;
    if attributes & !EXTEND != 0 {
        return Err(TdvfError::Attributes { index, attributes });
    }
    let from_file = matches!(kind, SectionKind::Bfv | SectionKind::Cfv);
    let extended = attributes & EXTEND != 0;
    if !address.is_multiple_of(PAGE) || !size.is_multiple_of(PAGE) || size == 0 {
        return Err(TdvfError::Pages(index));
    }
    let end = address.checked_add(size).filter(|end| *end <= ADDRESS_END).ok_or(TdvfError::Address(index))?;
    if from_file {
        // KVM copies whole pages from the file's mapping, so both must be whole pages of the same number.
        if u64::try_from(length) != Ok(size) || !start.is_multiple_of(PAGE as usize) {
            return Err(TdvfError::Raw(index));
        }
        slice(bytes, start, length)?;
    } else if length != 0 || extended {
        return Err(TdvfError::Raw(index));
    }
    let raw = if from_file { start..add(start, length)? } else { 0..0 };
    Ok(Section { kind, raw, memory: address..end, extended })
}

/// What must hold between sections.
fn check_together(sections: &[Section]) -> Result<(), TdvfError> {
    let mut total = 0_u64;
    for section in sections {
        total = total.saturating_add(section.memory.end.saturating_sub(section.memory.start));
    }
    if total > MOST_MEMORY {
        return Err(TdvfError::TooMuchMemory(total));
    }
    let mut by_memory: Vec<Range<u64>> = sections.iter().map(|section| section.memory.clone()).collect();
    by_memory.sort_by_key(|range| range.start);
    let mut by_file: Vec<Range<usize>> =
        sections.iter().map(|section| section.raw.clone()).filter(|raw| !raw.is_empty()).collect();
    by_file.sort_by_key(|range| range.start);
    let memory = by_memory.iter().zip(by_memory.iter().skip(1)).any(|(one, next)| next.start < one.end);
    let file = by_file.iter().zip(by_file.iter().skip(1)).any(|(one, next)| next.start < one.end);
    if memory || file { Err(TdvfError::Overlap) } else { Ok(()) }
}

impl From<CutOff> for TdvfError {
    fn from(CutOff(at): CutOff) -> Self {
        Self::CutOff(at)
    }
}

/// Why a file is no firmware that can be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TdvfError {
    /// Larger than [`MAX_FIRMWARE`].
    #[error("firmware of {0} bytes, at most {MAX_FIRMWARE} are mapped")]
    TooLarge(usize),
    /// The table of GUIDs is missing.
    #[error(
        "no OVMF table of GUIDs at the end of the file: not an OVMF firmware, or its variable store alone"
    )]
    NoTable,
    /// The table of GUIDs contradicts itself.
    #[error("the table of GUIDs at the end of the file is malformed")]
    Table,
    /// The table has no entry for TDX.
    #[error("the firmware has no TDX metadata: it was not built for trust domains")]
    NoMetadata,
    /// No signature where the table points, or lengths that do not fit.
    #[error("the TDVF descriptor is malformed")]
    Descriptor,
    /// Only version 1 is defined.
    #[error("TDVF descriptor of version {0}, only version 1 is known")]
    Version(u32),
    /// More than any firmware has.
    #[error("{0} TDVF sections are more than a firmware has")]
    TooManySections(usize),
    /// A field points past the end of the file.
    #[error("the firmware is cut off, or a field points outside of it: offset {0}")]
    CutOff(usize),
    /// QEMU refuses it.
    #[error("TDVF section {index} is of type {kind}, which QEMU does not load")]
    Kind {
        /// Position in the metadata.
        index: usize,
        /// The type.
        kind: u32,
    },
    /// Attributes that hosts treat differently (PAGE.AUG) or that are undefined.
    #[error("TDVF section {index} has the attributes {attributes:#x}, which hosts treat differently")]
    Attributes {
        /// Position in the metadata.
        index: usize,
        /// The attributes.
        attributes: u32,
    },
    /// No whole number of pages.
    #[error("TDVF section {0} is not made of whole pages")]
    Pages(usize),
    /// Beyond private memory.
    #[error("TDVF section {0} ends outside of private memory")]
    Address(usize),
    /// The bytes from the file do not fill the memory, or memory without bytes is said to have or extend some.
    #[error("TDVF section {0} has raw data that does not match its memory")]
    Raw(usize),
    /// Sections share memory or bytes of the file.
    #[error("TDVF sections overlap")]
    Overlap,
    /// More than [`MOST_MEMORY`].
    #[error("TDVF sections describe {0} bytes of memory, more than a firmware needs")]
    TooMuchMemory(u64),
    /// A kind of section that must be there once.
    #[error("the firmware has not exactly one section of kind {0:?}")]
    NotOne(SectionKind),
}
