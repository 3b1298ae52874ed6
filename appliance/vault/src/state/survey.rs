//! What a disk says of its state before there is a key.
//!
//! It is responsible for telling a blank disk, a state and everything else apart. It never writes, and nothing that it says is
//! authenticated but by the key that comes later.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::attempts::{self, Attempts};
use super::sheet::{Found, SHEET, Sheet};
use super::{MIN_DISK, SLOTS, STORE, StateError};
use crate::Disk;

/// Where the sheets are.
pub(super) const SHEETS: [u64; 2] = [0, 32 * 1024];
/// Where the counts of attempts are.
pub(super) const COUNTS: [u64; 2] = [SHEET as u64, 32 * 1024 + SHEET as u64];

/// What is on the disk.
#[derive(Clone, Debug)]
pub(super) enum OnDisk {
    Blank {
        /// The making of a state was cut off.
        unfinished: bool,
    },
    Sealed {
        /// The sheet that counts.
        sheet: Arc<Sheet>,
        /// The other one, where it is whole.
        other: Option<Arc<Sheet>>,
        /// The place of the one that counts: 0 or 1.
        place: usize,
    },
    Open,
}

/// Something about the disk that is in nobody's way and that somebody should know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// One sheet of key slots is damaged; it is written anew when the state opens.
    Sheet,
    /// A count of attempts is damaged, and counts as one more.
    Attempts,
    /// The making of a state was cut off.
    Unfinished,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sheet => "one of the two sheets of key slots is damaged; the other one is in force",
            Self::Attempts => "the count of wrong attempts is damaged and counts as higher",
            Self::Unfinished => "a state was being made here and was not finished: it holds nothing",
        })
    }
}

/// Reads what decides about a disk.
pub(super) fn survey(disk: &dyn Disk) -> Result<(OnDisk, Attempts), StateError> {
    let length = disk.len().map_err(StateError::Io)?;
    let too_small = StateError::TooSmall { length, least: MIN_DISK };
    if length < SLOTS.end {
        return Err(too_small);
    }
    let [first, second] = SHEETS.map(|offset| read(disk, offset, SHEET));
    let (first, second) = (Found::look(&first?), Found::look(&second?));
    let [one_count, other_count] = COUNTS.map(|offset| read(disk, offset, attempts::BLOCK));
    let attempts = Attempts::read([&one_count?, &other_count?]);
    let on_disk = decide(first, second)?;
    match &on_disk {
        OnDisk::Sealed { sheet, .. } => {
            let expected = sheet.header.length;
            if length < expected || length < MIN_DISK {
                return Err(StateError::Truncated { length, expected });
            }
            if length > expected {
                return Err(StateError::Grown { length, expected });
            }
        }
        _ if length < MIN_DISK => return Err(too_small),
        _ => {
            let [first, second] = COUNTS.map(|offset| offset..offset.saturating_add(attempts::BLOCK as u64));
            for Range { start, end } in [first, second, SLOTS.end..STORE.start] {
                let bytes = read(disk, start, usize::try_from(end.saturating_sub(start)).unwrap_or(0))?;
                if bytes.iter().any(|byte| *byte != 0) {
                    return Err(StateError::NotOurs);
                }
            }
        }
    }
    Ok((on_disk, attempts))
}

/// What two places say together.
pub(super) fn decide(first: Found, second: Found) -> Result<OnDisk, StateError> {
    let sealed = |sheet: Box<Sheet>, other: Option<Box<Sheet>>, place| OnDisk::Sealed {
        sheet: Arc::from(sheet),
        other: other.map(Arc::from),
        place,
    };
    match (first, second) {
        (Found::Format(format), _) | (_, Found::Format(format)) => Err(StateError::Format(format)),
        (Found::Altered, _) | (_, Found::Altered) => Err(StateError::Altered),
        (Found::Sheet(first), Found::Sheet(second)) => {
            let same = first.header == second.header && (first.number != second.number || first == second);
            match (same, first.number >= second.number) {
                (false, _) => Err(StateError::TwoStates),
                (true, true) => Ok(sealed(first, Some(second), 0)),
                (true, false) => Ok(sealed(second, Some(first), 1)),
            }
        }
        (Found::Sheet(sheet), _) => Ok(sealed(sheet, None, 0)),
        (_, Found::Sheet(sheet)) => Ok(sealed(sheet, None, 1)),
        (Found::Blank, Found::Blank) => Ok(OnDisk::Blank { unfinished: false }),
        // The second sheet was being written; from zeros, so that what is there of it may look like anything.
        (Found::Mark { whole: true }, _) => Ok(OnDisk::Blank { unfinished: true }),
        (Found::Mark { whole: false }, Found::Blank) => Ok(OnDisk::Blank { unfinished: true }),
        (Found::Damaged, _) | (_, Found::Damaged) => Err(StateError::Damaged),
        _ => Err(StateError::NotOurs),
    }
}

fn read(disk: &dyn Disk, offset: u64, length: usize) -> Result<Vec<u8>, StateError> {
    let mut bytes = vec![0; length];
    disk.read_at(offset, &mut bytes).map_err(|source| StateError::Unreadable { offset, source })?;
    Ok(bytes)
}
