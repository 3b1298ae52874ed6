//! What the simulator takes from the machine: the seed's disk, the TPM.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cofferdam_attest::ccel;
use cofferdam_attest::event_log::Register;

use super::{InitError, read_bounded, system};
use crate::keys::Seed;
use crate::platform::{SEED_DISK_SERIAL, read_seed};

/// How long devices may take to appear after their drivers are there.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

const FIRMWARE_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
const PCRS: &str = "/sys/class/tpm/tpm0/pcr-sha384";

/// Reads the seed from its disk and then takes the disk from its driver, so that nothing that runs later can read it.
pub(super) fn take_seed() -> Result<Seed, InitError> {
    let disk = wait_for(|| match seed_disks(Path::new("/sys/block")).as_slice() {
        [disk] => Ok(disk.clone()),
        disks => Err(InitError::SeedDisk(disks.len())),
    })?;
    let name = disk.file_name().unwrap_or_default();
    let device = Path::new("/dev").join(name);
    // devtmpfs may make the node a moment after sysfs shows the disk.
    let seed = wait_for(|| Ok(read_seed(&device)?))?;

    let bus_name = fs::read_link(disk.join("device")).map_err(system("find the seed's device"))?;
    let driver = disk.join("device/driver/unbind");
    let bus_name = bus_name.file_name().unwrap_or_default();
    fs::write(&driver, bus_name.as_encoded_bytes()).map_err(system("take the seed's disk away"))?;
    Ok(seed)
}

/// Disks below `block` that carry the seed's serial (virtio-blk shows it as an attribute).
fn seed_disks(block: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(block) else { return Vec::new() };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|disk| {
            let serial = read_bounded(&disk.join("serial"), 64).unwrap_or_default();
            String::from_utf8_lossy(&serial).trim() == SEED_DISK_SERIAL
        })
        .collect()
}

/// The TPM's log of what the firmware measured.
pub(super) fn firmware_log() -> Result<Vec<u8>, InitError> {
    wait_for(|| match read_bounded(Path::new(FIRMWARE_LOG), ccel::MAX_BYTES as u64) {
        Ok(log) => Ok(log),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(InitError::NoLog(FIRMWARE_LOG)),
        Err(error) => Err(system("read the firmware's log")(error)),
    })
}

/// The SHA-384 value of a PCR, from the TPM itself.
pub(super) fn pcr(number: u32) -> Option<Register> {
    let text = read_bounded(&Path::new(PCRS).join(number.to_string()), 128).ok()?;
    let mut register = [0; 48];
    hex::decode_to_slice(text.trim_ascii(), &mut register).ok()?;
    Some(register)
}

/// Tries until it works or [`PATIENCE`] is over, and gives the last error then.
fn wait_for<T>(attempt: impl Fn() -> Result<T, InitError>) -> Result<T, InitError> {
    let begin = Instant::now();
    loop {
        match attempt() {
            Err(_) if begin.elapsed() < PATIENCE => sleep(POLL),
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_disk_is_found_by_its_serial() {
        let block = tempfile::tempdir().unwrap();
        for (disk, serial) in
            [("vda", Some("cofferdam-decl\n")), ("vdb", Some("tdx-sim-seed\n")), ("loop0", None)]
        {
            fs::create_dir(block.path().join(disk)).unwrap();
            if let Some(serial) = serial {
                fs::write(block.path().join(disk).join("serial"), serial).unwrap();
            }
        }
        assert_eq!(seed_disks(block.path()), [block.path().join("vdb")]);
        fs::write(block.path().join("vda/serial"), "tdx-sim-seed").unwrap();
        assert_eq!(seed_disks(block.path()).len(), 2);
        assert!(seed_disks(Path::new("/nonexistent")).is_empty());
    }
}
