//! Device-mapper (Documentation/admin-guide/device-mapper): block devices that are made of others.
//!
//! # Duties
//!
//! - One mapping is made in one step: created, its table loaded, *the loaded table read back and compared, every byte of it*, and only then
//!   resumed. A target may have taken parameters from the disk below instead of those that it was given; then the mapping is removed again
//!   and nothing was ever read or written through it.
//! - A mapping that is dropped is removed.
//!
//! # Prohibitions
//!
//! - A table holds keys: it is in no message and no error, and every buffer that held one is cleared, here and in the kernel.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::rc::Rc;

use nix::errno::Errno;
use zeroize::Zeroizing;

use super::sys::{MAPPER_HEADER, mapper_request};

const CONTROL: &str = "/dev/mapper/control";

// Numbers and flags of include/uapi/linux/dm-ioctl.h.
const CREATE: u8 = 3;
const REMOVE: u8 = 4;
const SUSPEND: u8 = 6;
const LOAD: u8 = 9;
const STATUS: u8 = 12;
/// The oldest interface that has all of these (Linux 2.6.38).
const VERSION: [u32; 3] = [4, 19, 0];
const STATUS_TABLE: u32 = 1 << 4;
const INACTIVE_PRESENT: u32 = 1 << 6;
const BUFFER_FULL: u32 = 1 << 8;
const QUERY_INACTIVE: u32 = 1 << 12;
const SECURE_DATA: u32 = 1 << 15;

// Where the fields of `struct dm_ioctl` are.
const DATA_START: usize = 16;
const TARGETS: usize = 20;
const FLAGS: usize = 28;
const DEVICE: usize = 40;
const NAME: usize = 48;
/// `DM_NAME_LEN`, with the zero at its end.
const NAME_LENGTH: usize = 128;
/// `struct dm_target_spec`: two words of place and length, status, the next one's place, the type's name.
const SPEC: usize = 40;
const TYPE: std::ops::Range<usize> = 24..40;
/// Of any request: header, one target and its parameters, of which the longest has some 400 characters.
const BUFFER: usize = 2048;

/// Why there is no such mapping.
#[derive(Debug, thiserror::Error)]
pub enum MapperError {
    /// The kernel has no device-mapper, or it is not for this process.
    #[error("cannot reach the device mapper")]
    Control(#[source] std::io::Error),
    /// A request failed.
    #[error("cannot {step} the mapping {name}")]
    Request {
        /// Which one.
        step: &'static str,
        /// Of which mapping.
        name: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// A table or a name is longer than any of ours.
    #[error("a table or a name of a mapping is too long")]
    Long,
    /// What was loaded is not what was asked for.
    #[error("the mapping {0} came out with parameters of the disk instead of ours")]
    Altered(String),
}

/// What a mapping does: one target over its whole length.
#[derive(Debug)]
pub struct Target {
    /// The target's name.
    pub kind: &'static str,
    /// Length in sectors of 512 bytes.
    pub sectors: u64,
    /// The parameters, as the kernel itself would print them.
    pub parameters: Zeroizing<String>,
}

/// The device mapper.
#[derive(Debug)]
pub struct Mapper {
    control: File,
}

/// A block device of its own; removed when dropped.
#[derive(Debug)]
pub struct Mapping {
    mapper: Rc<Mapper>,
    name: String,
    device: u64,
    removed: bool,
}

impl Mapper {
    /// # Errors
    ///
    /// [`MapperError::Control`].
    pub fn open() -> Result<Rc<Self>, MapperError> {
        let control = OpenOptions::new().read(true).write(true).open(CONTROL);
        Ok(Rc::new(Self { control: control.map_err(MapperError::Control)? }))
    }

    /// Makes a mapping, in use from now on.
    ///
    /// # Errors
    ///
    /// [`MapperError`]; there is no mapping then.
    pub fn map(self: &Rc<Self>, name: &str, target: &Target) -> Result<Mapping, MapperError> {
        let created = self.request("create", CREATE, name, 0, None)?;
        let device = created.number(DEVICE)?;
        let mapping = Mapping { mapper: self.clone(), name: name.to_owned(), device, removed: false };
        self.request("load", LOAD, name, SECURE_DATA, Some(target))?;
        let flags = STATUS_TABLE | QUERY_INACTIVE | SECURE_DATA;
        if !self.request("read back", STATUS, name, flags, None)?.holds(target)? {
            return Err(MapperError::Altered(name.to_owned()));
        }
        self.request("resume", SUSPEND, name, 0, None)?;
        Ok(mapping)
    }

    fn request(
        &self,
        step: &'static str,
        command: u8,
        name: &str,
        flags: u32,
        target: Option<&Target>,
    ) -> Result<Buffer, MapperError> {
        let mut buffer = Buffer::new(name, flags)?;
        if let Some(target) = target {
            buffer.add(target)?;
        }
        mapper_request(self.control.as_fd(), command, buffer.0.as_mut_slice())
            .map_err(|source| MapperError::Request { step, name: name.to_owned(), source })?;
        Ok(buffer)
    }
}

impl Mapping {
    /// Where it is.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/dm-{}", nix::sys::stat::minor(self.device)))
    }

    /// As tables name it.
    pub fn number(&self) -> String {
        number(self.device)
    }

    /// Removes it.
    ///
    /// # Errors
    ///
    /// [`MapperError::Request`]: somebody still has it open.
    pub fn remove(mut self) -> Result<(), MapperError> {
        self.removed = true;
        self.mapper.request("remove", REMOVE, &self.name, 0, None).map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if !self.removed {
            // There is nobody to tell; the mapping's holder would have called `remove`.
            let _ = self.mapper.request("remove", REMOVE, &self.name, 0, None);
        }
    }
}

/// A device as tables name it.
pub(crate) fn number(device: u64) -> String {
    format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device))
}

/// One request and its answer; cleared when dropped.
struct Buffer(Zeroizing<Vec<u8>>);

impl Buffer {
    fn new(name: &str, flags: u32) -> Result<Self, MapperError> {
        let mut buffer = Self(Zeroizing::new(vec![0; BUFFER]));
        for (part, place) in VERSION.iter().zip([0, 4, 8]) {
            buffer.put(place, &part.to_ne_bytes())?;
        }
        buffer.put(DATA_START, &(MAPPER_HEADER as u32).to_ne_bytes())?;
        buffer.put(FLAGS, &flags.to_ne_bytes())?;
        if name.is_empty() || name.len() >= NAME_LENGTH {
            return Err(MapperError::Long);
        }
        buffer.put(NAME, name.as_bytes())?;
        Ok(buffer)
    }

    /// The one target of a table.
    fn add(&mut self, target: &Target) -> Result<(), MapperError> {
        self.put(TARGETS, &1_u32.to_ne_bytes())?;
        self.put(MAPPER_HEADER + 8, &target.sectors.to_ne_bytes())?;
        if target.kind.len() >= TYPE.len() || target.parameters.len() >= BUFFER - MAPPER_HEADER - SPEC {
            return Err(MapperError::Long);
        }
        self.put(MAPPER_HEADER + TYPE.start, target.kind.as_bytes())?;
        self.put(MAPPER_HEADER + SPEC, target.parameters.as_bytes())
    }

    /// Whether the answer is a table that has not been resumed yet, with exactly this target.
    fn holds(&self, target: &Target) -> Result<bool, MapperError> {
        let flags = self.word(FLAGS)?;
        let start = usize::try_from(self.word(DATA_START)?).map_err(|_| MapperError::Long)?;
        let spec = self.0.get(start..).unwrap_or_default();
        let mut expected = Zeroizing::new(vec![0; SPEC]);
        expected.get_mut(8..16).ok_or(MapperError::Long)?.copy_from_slice(&target.sectors.to_ne_bytes());
        let kind = expected.get_mut(TYPE.start..).and_then(|place| place.get_mut(..target.kind.len()));
        kind.ok_or(MapperError::Long)?.copy_from_slice(target.kind.as_bytes());
        let parameters = spec.get(SPEC..).and_then(|rest| rest.get(..=target.parameters.len()));
        // Its end counts too: a table that only begins like ours is another one. The place of the next one is of no consequence.
        Ok(flags & (INACTIVE_PRESENT | BUFFER_FULL) == INACTIVE_PRESENT
            && self.word(TARGETS)? == 1
            && spec.get(..20) == expected.get(..20)
            && spec.get(TYPE) == expected.get(TYPE)
            && parameters.and_then(<[u8]>::split_last) == Some((&0, target.parameters.as_bytes())))
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> Result<(), MapperError> {
        let place = self.0.get_mut(at..).and_then(|place| place.get_mut(..bytes.len()));
        place.ok_or(MapperError::Long)?.copy_from_slice(bytes);
        Ok(())
    }

    fn word(&self, at: usize) -> Result<u32, MapperError> {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk::<4>());
        Ok(u32::from_ne_bytes(*bytes.ok_or(MapperError::Long)?))
    }

    fn number(&self, at: usize) -> Result<u64, MapperError> {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk::<8>());
        Ok(u64::from_ne_bytes(*bytes.ok_or(MapperError::Long)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(parameters: &str) -> Target {
        Target { kind: "linear", sectors: 2048, parameters: Zeroizing::new(parameters.to_owned()) }
    }

    /// What the kernel would answer about a table with this target.
    fn answer(target: &Target) -> Buffer {
        let mut buffer = Buffer::new("a", INACTIVE_PRESENT).unwrap();
        buffer.add(target).unwrap();
        buffer
    }

    #[test]
    fn a_table_is_ours_when_every_byte_of_it_is() {
        let ours = target("254:0 0");
        assert!(answer(&ours).holds(&ours).unwrap());
        for other in ["254:0 1", "254:0 0 fix_hmac", "254:0 ", ""] {
            assert!(!answer(&target(other)).holds(&ours).unwrap(), "{other}");
        }
        let mut longer = target("254:0 0");
        longer.sectors = 2049;
        assert!(!answer(&longer).holds(&ours).unwrap());
        let mut another = target("254:0 0");
        another.kind = "linearly";
        assert!(!answer(&another).holds(&ours).unwrap());
    }

    #[test]
    fn an_answer_that_is_no_inactive_table_or_not_whole_is_not_ours() {
        let ours = target("254:0 0");
        for (at, value) in
            [(FLAGS, 0), (FLAGS, INACTIVE_PRESENT | BUFFER_FULL), (TARGETS, 2), (DATA_START, u32::MAX)]
        {
            let mut buffer = answer(&ours);
            buffer.put(at, &value.to_ne_bytes()).unwrap();
            assert!(!buffer.holds(&ours).unwrap(), "{at} {value}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(matches!(Buffer::new("", 0), Err(MapperError::Long)));
        assert!(matches!(Buffer::new(&"n".repeat(128), 0), Err(MapperError::Long)));
        assert!(Buffer::new(&"n".repeat(127), 0).is_ok());
        let long = target(&"p".repeat(BUFFER));
        assert!(matches!(Buffer::new("a", 0).unwrap().add(&long), Err(MapperError::Long)));
    }
}
