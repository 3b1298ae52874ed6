//! The TD HOB: the list of memory that QEMU hands to the firmware, which the firmware measures before it uses it.
//!
//! Responsible for laying that list out as QEMU does for a q35 machine of a given size. Sources: UEFI Platform Initialization 1.8,
//! volume 3, section 5 (hand-off blocks); QEMU `hw/i386/tdvf-hob.c` (layout), `target/i386/kvm/tdx.c` (which memory
//! is accepted), `hw/i386/pc_q35.c` (where memory above 2.75 GiB is split); edk2 `OvmfPkg/IntelTdx/TdxHelperLib` (the digest covers
//! the list up to, not including, its end block).

use std::ops::Range;

use crate::tdvf::{SectionKind, Tdvf, TdvfError};

/// q35 gives a machine of this size or more only [`LOW_MEMORY`] below 4 GiB.
pub const SPLIT: u64 = 0xb000_0000;
const LOW_MEMORY: u64 = 0x8000_0000;
/// Where the rest lies.
const HIGH_MEMORY: u64 = 1 << 32;
/// QEMU moves memory further up on some processors when it reaches near 1 TiB; none of that is predicted.
const MOST_MEMORY: u64 = 1000 << 30;

/// EFI_HOB_TYPE_HANDOFF and its length and version.
const HANDOFF: u16 = 1;
const HANDOFF_LENGTH: u16 = 56;
const HANDOFF_VERSION: u32 = 9;
/// EFI_HOB_TYPE_RESOURCE_DESCRIPTOR and its length.
const RESOURCE: u16 = 3;
const RESOURCE_LENGTH: u16 = 48;
/// EFI_RESOURCE_SYSTEM_MEMORY: added at build time. EFI_RESOURCE_MEMORY_UNACCEPTED: for the guest to accept.
const ACCEPTED: u32 = 0;
const UNACCEPTED: u32 = 7;
/// Present, initialized, tested.
const ATTRIBUTES: u32 = 7;
/// Length of the end block, which is behind what is measured.
const END_LENGTH: u64 = 8;

/// The bytes of the list that the firmware measures, for a machine with `memory` bytes.
///
/// # Errors
/// [`HobError`] when the memory does not hold what the firmware describes.
pub fn measured(firmware: &Tdvf<'_>, memory: u64) -> Result<Vec<u8>, HobError> {
    layout(firmware, memory, memory >= SPLIT)
}

/// Like [`measured`], as if the machine's memory were split as that of a machine in the other class of sizes: what a verifier
/// sees who took 2.75 GiB for more or less than it is. `None` when that layout cannot be.
#[must_use]
pub fn other_class(firmware: &Tdvf<'_>, memory: u64) -> Option<Vec<u8>> {
    let split = memory < SPLIT;
    if split && memory <= LOW_MEMORY {
        return None;
    }
    layout(firmware, memory, split).ok()
}

fn layout(firmware: &Tdvf<'_>, memory: u64, split: bool) -> Result<Vec<u8>, HobError> {
    if memory > MOST_MEMORY {
        return Err(HobError::TooMuch(memory));
    }
    let list = firmware.only(SectionKind::TdHob).map_err(HobError::Firmware)?;
    let mut resources = Vec::new();
    let (low, high) = if split { (LOW_MEMORY, memory.saturating_sub(LOW_MEMORY)) } else { (memory, 0) };
    accept(firmware, 0..low, &mut resources)?;
    if high > 0 {
        resources.push((UNACCEPTED, HIGH_MEMORY..HIGH_MEMORY.saturating_add(high)));
    }
    let blocks = u64::try_from(resources.len()).unwrap_or(u64::MAX);
    let length = u64::from(HANDOFF_LENGTH)
        .saturating_add(blocks.saturating_mul(u64::from(RESOURCE_LENGTH)))
        .saturating_add(END_LENGTH);
    if length > list.memory.end.saturating_sub(list.memory.start) {
        return Err(HobError::NoRoom);
    }
    let mut out = Vec::new();
    block(&mut out, HANDOFF, HANDOFF_LENGTH);
    out.extend_from_slice(&HANDOFF_VERSION.to_le_bytes());
    // Boot mode and four limits of memory, all left to the firmware.
    out.extend_from_slice(&[0; 4 + 4 * 8]);
    out.extend_from_slice(&list.memory.start.saturating_add(length).to_le_bytes());
    for (kind, range) in resources {
        block(&mut out, RESOURCE, RESOURCE_LENGTH);
        out.extend_from_slice(&[0; 16]);
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&ATTRIBUTES.to_le_bytes());
        out.extend_from_slice(&range.start.to_le_bytes());
        out.extend_from_slice(&range.end.saturating_sub(range.start).to_le_bytes());
    }
    Ok(out)
}

/// Splits low memory at what QEMU adds at build time. Sections are whole, sorted here, and do not overlap.
fn accept(
    firmware: &Tdvf<'_>,
    low: Range<u64>,
    resources: &mut Vec<(u32, Range<u64>)>,
) -> Result<(), HobError> {
    let added = |kind| matches!(kind, SectionKind::TdHob | SectionKind::TempMem);
    let sections = firmware.sections().iter().filter(|section| added(section.kind));
    let mut ranges: Vec<Range<u64>> = sections.map(|section| section.memory.clone()).collect();
    ranges.sort_by_key(|range| range.start);
    let mut at = low.start;
    for range in ranges {
        if range.end > low.end {
            return Err(HobError::Outside(range.end));
        }
        if range.start > at {
            resources.push((UNACCEPTED, at..range.start));
        }
        at = range.end;
        resources.push((ACCEPTED, range));
    }
    if at < low.end {
        resources.push((UNACCEPTED, at..low.end));
    }
    Ok(())
}

/// A block's header: type, length, reserved.
fn block(out: &mut Vec<u8>, kind: u16, length: u16) {
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
}

/// Why there is no list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HobError {
    /// The firmware has no place for it.
    #[error("the firmware has no single place for the list of memory")]
    Firmware(#[source] TdvfError),
    /// A section outside of the machine's memory below 4 GiB.
    #[error("the firmware needs memory up to {0:#x}, more than the machine has below 4 GiB")]
    Outside(u64),
    /// More memory than is predicted.
    #[error("{0} bytes of memory are more than is predicted")]
    TooMuch(u64),
    /// The list does not fit its section.
    #[error("the list of memory does not fit the section that the firmware has for it")]
    NoRoom,
}
