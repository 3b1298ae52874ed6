//! The measurement registers as the kernel's TDX guest driver presents them.
//!
//! Shape (kernel ABI, `sysfs-devices-virtual-misc-tdx_guest`, Linux 6.16): one file per register,
//! `mrtd:sha384` and `rtmr0:sha384` to `rtmr3:sha384`, 48 raw bytes each. Writing exactly 48 bytes at offset 0
//! to an RTMR extends it: the new value is SHA-384(old ‖ written).
//!
//! Every extension is read back and compared with what it must be: a device that does not do as it is told
//! cannot carry evidence.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cofferdam_attest::event_log::{Event, Register, extend};
use cofferdam_protocol::facts::Registers as Values;
use cofferdam_protocol::json::JsonError;

use crate::system::files;

/// Where the driver puts the registers.
pub(crate) const MEASUREMENTS: &str = "/sys/devices/virtual/misc/tdx_guest/measurements";
/// Where a quote is asked for (kernel ABI, `configfs-tsm-report`).
pub(crate) const REPORTS: &str = "/sys/kernel/config/tsm/report";
/// The firmware's event log: the area that the ACPI table CCEL points at.
pub(crate) const FIRMWARE_LOG: &str = "/sys/firmware/acpi/tables/data/CCEL";

/// Why a register could not be read or extended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TdxError {
    /// The file is missing or refuses.
    #[error("{}", path.display())]
    File {
        /// The register's file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Not 48 bytes.
    #[error("register {0} does not hold 48 bytes")]
    Length(String),
    /// The register does not hold what the extension must have made of it.
    #[error("register 3 holds another value than the event {0} must have given it")]
    Mismatch(String),
    /// What would be measured cannot be written: nothing is measured instead.
    #[error("the event has no payload to measure")]
    Payload(#[from] JsonError),
}

/// The registers of this machine.
#[derive(Debug)]
pub(crate) struct Registers {
    directory: PathBuf,
}

impl Registers {
    /// The registers below `directory` (normally [`MEASUREMENTS`]).
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Reads one register by its name, `mrtd` or `rtmr0` to `rtmr3`.
    ///
    /// # Errors
    ///
    /// The file is missing, unreadable or of another length.
    pub(crate) fn read(&self, name: &str) -> Result<Register, TdxError> {
        let path = self.path(name);
        let bytes =
            files::read_bounded(&path, 48).map_err(|source| TdxError::File { path: path.clone(), source })?;
        bytes.try_into().map_err(|_| TdxError::Length(name.to_owned()))
    }

    /// All registers.
    ///
    /// # Errors
    ///
    /// As [`Registers::read`].
    pub(crate) fn all(&self) -> Result<Values, TdxError> {
        Ok(Values {
            mrtd: self.read("mrtd")?,
            rtmr0: self.read("rtmr0")?,
            rtmr1: self.read("rtmr1")?,
            rtmr2: self.read("rtmr2")?,
            rtmr3: self.read("rtmr3")?,
        })
    }

    /// Extends RTMR3 with one of our events and makes sure that it happened, and nothing else did: `before` is what
    /// the events so far must have made of the register.
    ///
    /// # Errors
    ///
    /// The device refuses, or the register holds another value afterwards.
    pub(crate) fn measure(&self, before: &Register, event: &Event) -> Result<(), TdxError> {
        let digest = event.register_digest();
        let expected = extend(before, &digest);
        let path = self.path("rtmr3");
        // One write of 48 bytes, as the ABI demands; never created, never truncated.
        let mut options = fs::OpenOptions::new();
        let written = options.write(true).open(&path).and_then(|mut file| file.write(&digest));
        match written {
            Ok(48) => {}
            Ok(_) => return Err(TdxError::Length("rtmr3".to_owned())),
            Err(source) => return Err(TdxError::File { path, source }),
        }
        if self.read("rtmr3")? == expected { Ok(()) } else { Err(TdxError::Mismatch(event.event.clone())) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}:sha384"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A directory with register files. Plain files do not extend: writing replaces their bytes.
    pub(crate) fn fake() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for name in ["mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"] {
            fs::write(directory.path().join(format!("{name}:sha384")), [0; 48]).unwrap();
        }
        directory
    }

    #[test]
    fn registers_are_read_whole_or_not_at_all() {
        let directory = fake();
        let registers = Registers::new(directory.path());
        assert_eq!(registers.all().unwrap().rtmr3, [0; 48]);
        for wrong in [47, 49] {
            fs::write(directory.path().join("rtmr1:sha384"), vec![0; wrong]).unwrap();
            assert!(registers.read("rtmr1").is_err(), "{wrong} bytes");
        }
        fs::remove_file(directory.path().join("rtmr2:sha384")).unwrap();
        assert!(matches!(registers.read("rtmr2"), Err(TdxError::File { .. })));
    }

    #[test]
    fn a_device_that_does_not_extend_is_found_out() {
        let directory = fake();
        let registers = Registers::new(directory.path());
        let event = Event::new("launch", b"{}".to_vec());
        // A plain file ends up holding the digest itself, which is not SHA-384(0 ‖ digest).
        assert!(
            matches!(registers.measure(&[0; 48], &event), Err(TdxError::Mismatch(name)) if name == "launch")
        );
        assert_eq!(registers.read("rtmr3").unwrap(), event.register_digest());
    }

    /// The register's file is a pipe: a thread plays the device, which holds `held`, on the other side of each open.
    fn device(path: PathBuf, held: Register) -> std::thread::JoinHandle<Register> {
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        std::thread::spawn(move || {
            let mut digest = [0_u8; 48];
            io::Read::read_exact(&mut fs::File::open(&path).unwrap(), &mut digest).unwrap();
            fs::write(&path, extend(&held, &digest)).unwrap();
            digest
        })
    }

    #[test]
    fn a_device_that_extends_is_believed() {
        let directory = fake();
        let device = device(directory.path().join("rtmr3:sha384"), [0; 48]);
        let event = Event::new("state", b"{}".to_vec());
        Registers::new(directory.path()).measure(&[0; 48], &event).unwrap();
        assert_eq!(device.join().unwrap(), event.register_digest());
    }

    #[test]
    fn an_extension_by_somebody_else_is_found_out() {
        let directory = fake();
        let device = device(directory.path().join("rtmr3:sha384"), [7; 48]);
        let event = Event::new("machine", b"{}".to_vec());
        let outcome = Registers::new(directory.path()).measure(&[0; 48], &event);
        assert!(matches!(outcome, Err(TdxError::Mismatch(_))));
        device.join().unwrap();
    }
}
