//! Which of the host's disks is which.
//!
//! The host's word for it is not measured and need not be: a declaration is measured from whatever disk it came, and a state opens with
//! its key or not at all. There is one disk for each purpose, or the boot ends here.
//!
//! A virtio disk has a serial that says what it is for. Clouds attach disks as NVMe namespaces, whose serials are the cloud's and whose
//! order is the driver's, so these are told apart by their first bytes: a declaration begins like one, what firmware starts an image from
//! has a partition table, which nobody reads here, and the one that is left is for the state.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::disk::MAGIC;

/// Drivers find their disks within milliseconds; emulation makes that a second.
const APPEARS_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// More NVMe disks than a machine of ours has use for; each costs a read.
const MAX_NAMESPACES: usize = 64;
/// Begins the second sector of a disk with a GUID partition table (UEFI 2.11, section 5.3.2).
const TABLE: &[u8] = b"EFI PART";
const TABLE_AT: usize = 512;

/// What a disk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Declaration,
    State,
}

impl Purpose {
    /// What the host has to call a virtio disk (at most 20 bytes).
    fn serial(self) -> &'static str {
        match self {
            Self::Declaration => "cofferdam-decl",
            Self::State => "cofferdam-state",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Declaration => {
                f.write_str("virtio disk with the serial cofferdam-decl or NVMe disk with a declaration")
            }
            Self::State => f.write_str(
                "virtio disk with the serial cofferdam-state or NVMe disk beside those of image and declaration",
            ),
        }
    }
}

/// What it is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bus {
    Virtio,
    Nvme,
}

/// A disk that was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Attached {
    pub(super) device: PathBuf,
    pub(super) bus: Bus,
}

/// Why there is no disk for a purpose.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachedError {
    /// None appeared.
    #[error("no {0}")]
    Missing(Purpose),
    /// More than one: which of them counts must not be a guess.
    #[error("more than one {0}")]
    Ambiguous(Purpose),
    /// Not a machine of ours.
    #[error("more than {MAX_NAMESPACES} NVMe disks")]
    TooMany,
    /// The kernel's list, or the beginning of a disk.
    #[error("cannot look at the disks")]
    Look(#[source] io::Error),
}

/// The one disk for this purpose, which may still have to appear.
///
/// # Errors
///
/// [`AttachedError`].
pub(super) fn find(purpose: Purpose) -> Result<Attached, AttachedError> {
    find_in(purpose, Path::new("/sys/class/block"), Path::new("/dev"), APPEARS_WITHIN)
}

fn find_in(
    purpose: Purpose,
    class: &Path,
    devices: &Path,
    limit: Duration,
) -> Result<Attached, AttachedError> {
    let deadline = Instant::now() + limit;
    loop {
        let mut found = look(purpose, class, devices)?;
        match (found.pop(), found.is_empty()) {
            (Some(disk), true) => return Ok(disk),
            (Some(_), false) => return Err(AttachedError::Ambiguous(purpose)),
            (None, _) if Instant::now() < deadline => std::thread::sleep(LOOK_EVERY),
            (None, _) => return Err(AttachedError::Missing(purpose)),
        }
    }
}

/// The disks that are there for this purpose now.
fn look(purpose: Purpose, class: &Path, devices: &Path) -> Result<Vec<Attached>, AttachedError> {
    let (mut found, mut namespaces) = (Vec::new(), 0_usize);
    for name in names(class).map_err(AttachedError::Look)? {
        let device = devices.join(&name);
        if is_namespace(&name) {
            namespaces = namespaces.saturating_add(1);
            if namespaces > MAX_NAMESPACES {
                return Err(AttachedError::TooMany);
            }
            if used_for(&device).map_err(AttachedError::Look)? == Some(purpose) {
                found.push(Attached { device, bus: Bus::Nvme });
            }
        } else if name.starts_with("vd") {
            // Partitions have no serial of their own.
            let serial = fs::read_to_string(class.join(&name).join("serial"));
            if serial.is_ok_and(|serial| serial.trim_end() == purpose.serial()) {
                found.push(Attached { device, bus: Bus::Virtio });
            }
        }
    }
    Ok(found)
}

/// Names of the disks. Before a driver is there, there may be no class at all.
fn names(class: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(class) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

/// `nvme`, the controller's number, `n`, the namespace's.
fn is_namespace(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = name.strip_prefix("nvme").and_then(|rest| rest.split_once('n'));
    numbers.is_some_and(|(controller, namespace)| number(controller) && number(namespace))
}

/// By its first bytes; none is the one that firmware has started.
fn used_for(device: &Path) -> io::Result<Option<Purpose>> {
    let mut first = [0; TABLE_AT + TABLE.len()];
    File::open(device)?.read_exact(&mut first)?;
    Ok(if first.starts_with(MAGIC.as_bytes()) {
        Some(Purpose::Declaration)
    } else if first.ends_with(TABLE) {
        None
    } else {
        Some(Purpose::State)
    })
}

/// Whether the host takes no writes to a disk: the kernel opens it for writing all the same.
pub(super) fn is_read_only(device: &Path) -> io::Result<bool> {
    read_only(device, Path::new("/sys/class/block"))
}

fn read_only(device: &Path, class: &Path) -> io::Result<bool> {
    let name = device.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(fs::read_to_string(class.join(name).join("ro"))?.trim_end() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Disks as the kernel lists them.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            for folder in ["class", "dev"] {
                fs::create_dir(root.path().join(folder)).unwrap();
            }
            Self(root)
        }

        fn virtio(&self, name: &str, serial: &str) {
            let class = self.0.path().join("class").join(name);
            fs::create_dir(&class).unwrap();
            fs::write(class.join("serial"), serial).unwrap();
        }

        fn nvme(&self, name: &str, begins: &[u8]) {
            fs::create_dir(self.0.path().join("class").join(name)).unwrap();
            let mut bytes = begins.to_vec();
            bytes.resize(4096, 0);
            fs::write(self.0.path().join("dev").join(name), bytes).unwrap();
        }

        fn find(&self, purpose: Purpose) -> Result<(String, Bus), AttachedError> {
            let path = self.0.path();
            let found = find_in(purpose, &path.join("class"), &path.join("dev"), Duration::ZERO)?;
            let name = found.device.strip_prefix(path.join("dev")).unwrap();
            Ok((name.to_str().unwrap().to_owned(), found.bus))
        }
    }

    fn partitioned() -> Vec<u8> {
        [&[0xEE; TABLE_AT], TABLE].concat()
    }

    #[test]
    fn a_virtio_disk_is_found_by_its_serial_exactly_once() {
        let machine = Machine::new();
        let missing = || matches!(machine.find(Purpose::Declaration), Err(AttachedError::Missing(_)));
        assert!(missing());
        machine.virtio("vda", "something-else");
        machine.virtio("sda", "cofferdam-decl");
        fs::create_dir(machine.0.path().join("class/vda1")).unwrap();
        assert!(missing());
        machine.virtio("vdb", "cofferdam-decl\n");
        assert_eq!(machine.find(Purpose::Declaration).unwrap(), ("vdb".to_owned(), Bus::Virtio));
        assert!(matches!(machine.find(Purpose::State), Err(AttachedError::Missing(Purpose::State))));
        machine.virtio("vdc", "cofferdam-decl");
        assert!(matches!(machine.find(Purpose::Declaration), Err(AttachedError::Ambiguous(_))));
    }

    #[test]
    fn nvme_disks_are_told_apart_by_their_first_bytes_in_any_order() {
        let declaration = format!("{MAGIC} ");
        for names in [["nvme0n1", "nvme0n2", "nvme0n3"], ["nvme1n1", "nvme0n12", "nvme0n1"]] {
            let machine = Machine::new();
            machine.nvme(names[0], &partitioned());
            machine.nvme(names[1], declaration.as_bytes());
            assert!(matches!(machine.find(Purpose::State), Err(AttachedError::Missing(_))));
            machine.nvme(names[2], &[0x5A; 100]);
            let found = |name: &str| (name.to_owned(), Bus::Nvme);
            assert_eq!(machine.find(Purpose::Declaration).unwrap(), found(names[1]));
            assert_eq!(machine.find(Purpose::State).unwrap(), found(names[2]));
        }
    }

    #[test]
    fn a_host_that_offers_two_disks_for_a_purpose_gets_none_used() {
        let machine = Machine::new();
        machine.nvme("nvme0n1", MAGIC.as_bytes());
        machine.nvme("nvme0n2", &[]);
        machine.virtio("vda", "cofferdam-decl");
        assert!(matches!(machine.find(Purpose::Declaration), Err(AttachedError::Ambiguous(_))));
        machine.nvme("nvme1n1", b"somebody's file system");
        assert!(matches!(machine.find(Purpose::State), Err(AttachedError::Ambiguous(_))));
    }

    #[test]
    fn what_is_no_whole_namespace_is_passed_over_and_their_number_is_bounded() {
        let machine = Machine::new();
        for name in ["nvme0", "nvme0n", "nvmen1", "nvme0n1p1", "nvme0c0n1", "xnvme0n1", "nvme0n+1"] {
            machine.nvme(name, MAGIC.as_bytes());
        }
        assert!(matches!(machine.find(Purpose::Declaration), Err(AttachedError::Missing(_))));
        for number in 0..=MAX_NAMESPACES {
            machine.nvme(&format!("nvme0n{number}"), &partitioned());
        }
        assert!(matches!(machine.find(Purpose::Declaration), Err(AttachedError::TooMany)));
    }

    #[test]
    fn a_disk_that_cannot_be_read_is_not_taken_for_another() {
        let machine = Machine::new();
        machine.nvme("nvme0n1", MAGIC.as_bytes());
        machine.nvme("nvme0n2", &[]);
        File::create(machine.0.path().join("dev/nvme0n2")).unwrap();
        assert!(matches!(machine.find(Purpose::Declaration), Err(AttachedError::Look(_))));
    }

    #[test]
    fn a_class_that_does_not_exist_yet_is_waited_for() {
        let limit = Duration::from_millis(30);
        let found = find_in(Purpose::State, Path::new("/nonexistent"), Path::new("/dev"), limit);
        assert!(matches!(found, Err(AttachedError::Missing(_))));
    }

    #[test]
    fn a_disk_that_takes_no_writes_is_known() {
        let class = tempfile::tempdir().unwrap();
        fs::create_dir(class.path().join("vdb")).unwrap();
        let ro = |device: &str| read_only(Path::new(device), class.path());
        for (said, expected) in [("0\n", false), ("1\n", true)] {
            fs::write(class.path().join("vdb/ro"), said).unwrap();
            assert_eq!(ro("/dev/vdb").unwrap(), expected);
        }
        assert!(ro("/dev/vdc").is_err());
    }
}
