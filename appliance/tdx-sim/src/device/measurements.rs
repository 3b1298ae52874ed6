//! `/sys/devices/virtual/misc`: the measurement registers of the TDX guest driver.
//!
//! ABI: Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest (Linux 6.16 and later). A register that has a
//! hash algorithm carries its name: `mrtd:sha384`, `rtmr0:sha384`; MRCONFIGID, MROWNER and MROWNERCONFIG do not. A
//! write extends and must be 48 bytes at offset 0; sysfs cuts what lies beyond the attribute's 48 bytes.
//!
//! One difference is on purpose: the driver makes RTMR0 and RTMR1 writable too; here only RTMR2 and RTMR3 are,
//! since nothing after the firmware may touch the firmware's registers.

use nix::errno::Errno;

use super::Td;
use super::node::{Node, ROOT, Tree, window};
use crate::machine;

/// Bytes of a register.
const SIZE: u64 = 48;
const DEVICE: u64 = 2;
const MEASUREMENTS: u64 = 3;
/// Inode number of the first register.
const FIRST: u64 = 16;

/// File names in the driver's order; the index tells which register it is.
const FILES: [&str; 8] = [
    "rtmr0:sha384",
    "rtmr1:sha384",
    "rtmr2:sha384",
    "rtmr3:sha384",
    "mrtd:sha384",
    "mrconfigid",
    "mrowner",
    "mrownerconfig",
];

/// The tree below `/sys/devices/virtual/misc`.
pub struct Measurements {
    td: Td,
}

impl Measurements {
    /// The registers of `td`.
    pub fn new(td: Td) -> Self {
        Self { td }
    }

    fn content(&self, index: usize) -> [u8; 48] {
        match (self.td.rtmr().get(index), index) {
            (Some(register), _) => *register,
            (None, 4) => machine::mrtd(),
            // The simulated host gives no configuration and names no owner.
            (None, _) => [0; 48],
        }
    }
}

fn register(index: usize) -> Node {
    let mode = if matches!(index, 2 | 3) { 0o644 } else { 0o444 };
    Node::file(FIRST.saturating_add(index as u64), mode, SIZE)
}

fn index(ino: u64) -> Result<usize, Errno> {
    let index = ino.checked_sub(FIRST).and_then(|index| usize::try_from(index).ok());
    index.filter(|index| *index < FILES.len()).ok_or(Errno::ENOENT)
}

impl Tree for Measurements {
    fn lookup(&self, parent: u64, name: &str) -> Result<Node, Errno> {
        let children = self.children(parent)?;
        children.into_iter().find(|(_, child)| child == name).map(|(node, _)| node).ok_or(Errno::ENOENT)
    }

    fn node(&self, ino: u64) -> Result<Node, Errno> {
        match ino {
            ROOT | DEVICE | MEASUREMENTS => Ok(Node::directory(ino)),
            _ => index(ino).map(register),
        }
    }

    fn children(&self, ino: u64) -> Result<Vec<(Node, String)>, Errno> {
        match ino {
            ROOT => Ok(vec![(Node::directory(DEVICE), "tdx_guest".to_owned())]),
            DEVICE => Ok(vec![(Node::directory(MEASUREMENTS), "measurements".to_owned())]),
            MEASUREMENTS => Ok(FILES
                .iter()
                .enumerate()
                .map(|(index, name)| (register(index), (*name).to_owned()))
                .collect()),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn read(&self, ino: u64, _handle: u64, offset: u64, size: usize) -> Result<Vec<u8>, Errno> {
        Ok(window(&self.content(index(ino)?), offset, size))
    }

    fn write(&self, ino: u64, _handle: u64, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let index = index(ino)?;
        if offset >= SIZE || data.is_empty() {
            return Ok(0); // sysfs: beyond the end of the attribute nothing is taken
        }
        match (offset, data.first_chunk::<48>()) {
            (0, Some(digest)) if self.td.extend(index, digest) => Ok(digest.len()),
            (0, Some(_)) => Err(Errno::EACCES),
            _ => Err(Errno::EINVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_attest::event_log::extend;

    use super::*;
    use crate::keys::Seed;
    use crate::platform::Platform;

    fn tree() -> Measurements {
        let platform = Platform::from_seed(Seed::from_bytes(&[1; 32]).unwrap()).unwrap();
        Measurements::new(Td::new(platform, [[1; 48], [2; 48], [3; 48], [0; 48]]))
    }

    fn ino(tree: &Measurements, name: &str) -> u64 {
        tree.lookup(MEASUREMENTS, name).unwrap().ino
    }

    #[test]
    fn the_tree_is_the_drivers() {
        let tree = tree();
        let device = tree.lookup(ROOT, "tdx_guest").unwrap();
        let directory = tree.lookup(device.ino, "measurements").unwrap();
        let names: Vec<String> =
            tree.children(directory.ino).unwrap().into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, FILES);
        for (name, mode) in [("rtmr0:sha384", 0o444), ("rtmr2:sha384", 0o644), ("mrtd:sha384", 0o444)] {
            let node = tree.lookup(MEASUREMENTS, name).unwrap();
            assert_eq!((node.mode, node.size), (mode, 48), "{name}");
        }
        assert_eq!(tree.lookup(MEASUREMENTS, "rtmr4:sha384").unwrap_err(), Errno::ENOENT);
        assert_eq!(tree.make_directory(ROOT, "x").unwrap_err(), Errno::EPERM);
    }

    #[test]
    fn registers_read_and_extend() {
        let tree = tree();
        assert_eq!(tree.read(ino(&tree, "mrtd:sha384"), 0, 0, 4096).unwrap(), machine::mrtd());
        assert_eq!(tree.read(ino(&tree, "mrowner"), 0, 0, 4096).unwrap(), [0; 48]);
        assert_eq!(tree.read(ino(&tree, "rtmr1:sha384"), 0, 40, 4096).unwrap(), [2; 8]);

        let rtmr3 = ino(&tree, "rtmr3:sha384");
        assert_eq!(tree.write(rtmr3, 0, 0, &[9; 48]).unwrap(), 48);
        let once = extend(&[0; 48], &[9; 48]);
        assert_eq!(tree.read(rtmr3, 0, 0, 48).unwrap(), once);
        assert_eq!(tree.write(ino(&tree, "rtmr2:sha384"), 0, 0, &[9; 48]).unwrap(), 48);
        assert_eq!(tree.td.rtmr(), [[1; 48], [2; 48], extend(&[3; 48], &[9; 48]), once]);
    }

    #[test]
    fn anything_but_48_bytes_at_the_beginning_of_rtmr2_or_3_changes_nothing() {
        let tree = tree();
        let before = tree.td.rtmr();
        for (name, offset, length, errno) in [
            ("rtmr3:sha384", 0, 47, Errno::EINVAL),
            ("rtmr3:sha384", 1, 47, Errno::EINVAL),
            ("rtmr0:sha384", 0, 48, Errno::EACCES),
            ("rtmr1:sha384", 0, 48, Errno::EACCES),
            ("mrtd:sha384", 0, 48, Errno::EACCES),
            ("mrowner", 0, 48, Errno::EACCES),
        ] {
            let error = tree.write(ino(&tree, name), 0, offset, &vec![9; length]).unwrap_err();
            assert_eq!(error, errno, "{name} {offset} {length}");
        }
        assert_eq!(tree.write(ino(&tree, "rtmr3:sha384"), 0, 48, &[9; 48]).unwrap(), 0);
        assert_eq!(tree.td.rtmr(), before);
    }
}
