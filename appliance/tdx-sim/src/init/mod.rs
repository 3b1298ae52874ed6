//! PID 1 of the simulator's image, until it hands over to the unchanged `cofferd`.
//!
//! Duties, in this order: mount what is needed to see the machine; read the seed and then make its disk unreachable;
//! replay the firmware's log; start the device process; put the log where a TD has it; become `cofferd`.
//! Prohibitions: it measures nothing of its own, decides nothing about the appliance, passes it no argument and no
//! variable that the kernel did not give. When something is missing it parks: an image that would present registers
//! nobody measured is worse than none.

mod machine;
mod mounts;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam_attest::event_log::Register;
use nix::sys::prctl;
use nix::sys::signal::SigSet;
use nix::unistd;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::control;
use crate::device::measurements::Measurements;
use crate::device::report::Reports;
use crate::device::{Td, fuse};
use crate::firmware::{self, Firmware, FirmwareError};
use crate::keys::{SEED_LENGTH, Seed};
use crate::platform::{Platform, PlatformError};

/// The unchanged appliance, where both images have it.
pub const COFFERD: &str = "/init";
/// Where TSM reports are asked for.
pub const REPORTS: &str = "/sys/kernel/config/tsm/report";
/// What is covered to present the measurement registers: sysfs takes no new directory, so its parent's parent must be.
pub const MISC: &str = "/sys/devices/virtual/misc";
/// Where the kernel shows the firmware's tables, CCEL among them.
pub const ACPI_TABLES: &str = "/sys/firmware/acpi/tables";

/// The argument that makes this program the device process.
pub const DEVICE_ARGUMENT: &str = "device";
/// What the device process says when both directories are there.
const READY: &[u8] = b"ready\n";

/// Why the simulator parks.
#[derive(Debug, Error)]
pub enum InitError {
    /// A system call or file.
    #[error("{what}")]
    System {
        /// What was to be done.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// There is no disk with the platform's seed, or more than one.
    #[error(
        "{0} disks have the serial {serial}, expected one: attach platform.seed as a read-only virtio-blk disk",
        serial = crate::SEED_DISK_SERIAL
    )]
    SeedDisk(usize),
    /// The seed is unusable.
    #[error("the platform seed cannot be used")]
    Platform(#[from] PlatformError),
    /// The firmware's measurements are unusable.
    #[error("the firmware's measurements cannot be used")]
    Firmware(#[from] FirmwareError),
    /// The kernel has no log of a TPM.
    #[error("no firmware log at {0}: start through UEFI firmware with a TPM that has a SHA-384 bank")]
    NoLog(&'static str),
    /// The device process ended or said something else than it should.
    #[error("the device process did not become ready")]
    Device,
}

pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> InitError {
    let what = what.into();
    move |source| InitError::System { what, source }
}

/// Does everything up to the hand-over and does not return but for an error, after which the caller [`park`]s.
pub fn run(arguments: impl Iterator<Item = String>) -> InitError {
    match prepare() {
        Err(error) => error,
        Ok(()) => {
            let error = Command::new(COFFERD).args(arguments).exec();
            system(format!("start {COFFERD}"))(error)
        }
    }
}

/// Stays for ever: PID 1 must not end, and there is nothing to go on with.
pub fn park() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn prepare() -> Result<(), InitError> {
    let begin = Instant::now();
    mounts::base()?;
    let seed = machine::take_seed()?;
    let log = machine::firmware_log()?;
    let firmware = firmware::replay(&log, machine::pcr)?;

    start_device(&seed, &firmware)?;
    mounts::ccel(&firmware.ccel)?;
    announce(&firmware, begin.elapsed());
    Ok(())
}

/// The one line by which everybody who reads the console knows what this machine is.
fn announce(firmware: &Firmware, took: Duration) {
    let short = |register: &Register| hex::encode(register).chars().take(12).collect::<String>();
    let [rtmr0, rtmr1, rtmr2, _] = firmware.rtmr.each_ref().map(short);
    let line = format!(
        "SIMULATED TDX device: {} firmware events replayed as the TPM has them, RTMR0 {rtmr0}, RTMR1 {rtmr1}, \
         RTMR2 {rtmr2}; ready after {} ms; its quotes are worth nothing outside development\n",
        firmware.events,
        took.as_millis()
    );
    // Nobody is there to hear that the console is gone.
    let _ = io::stdout().write_all(line.as_bytes());
}

/// Starts the device process and waits until both directories are presented. It gets seed and registers over a pipe
/// and stays as PID 1's child.
fn start_device(seed: &Seed, firmware: &Firmware) -> Result<(), InitError> {
    let mut child = Command::new("/proc/self/exe")
        .arg(DEVICE_ARGUMENT)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(system("start the device process"))?;
    let mut pipe = child.stdin.take().ok_or(InitError::Device)?;
    let sent = pipe
        .write_all(seed.expose())
        .and_then(|()| firmware.rtmr.iter().try_for_each(|register| pipe.write_all(register)));
    drop(pipe);
    sent.map_err(system("hand the device process its registers"))?;

    let mut answer = Vec::new();
    let mut stdout = child.stdout.take().ok_or(InitError::Device)?.take(READY.len() as u64);
    stdout.read_to_end(&mut answer).map_err(system("hear from the device process"))?;
    if answer == READY { Ok(()) } else { Err(InitError::Device) }
}

/// The device process: presents the device until the machine ends.
///
/// Reads seed and registers from standard input, mounts both directories, says `ready` on standard output. Every signal
/// is blocked, so that it outlives the appliance's orderly end and goes with SIGKILL only; its memory is closed to
/// debuggers and core files because it holds the seed.
pub fn device() -> Result<(), InitError> {
    prctl::set_dumpable(false).map_err(|errno| system("close the device's memory")(errno.into()))?;
    SigSet::all().thread_block().map_err(|errno| system("block signals")(errno.into()))?;
    unistd::setsid().map_err(|errno| system("leave PID 1's session")(errno.into()))?;
    // Without the device no service could be attested any more: others are killed first when memory is short.
    std::fs::write("/proc/self/oom_score_adj", "-1000")
        .map_err(system("protect the device from the OOM killer"))?;

    let (seed, rtmr) = receive(&mut io::stdin())?;
    let td = Td::new(Platform::from_seed(seed)?, rtmr);
    let _reports = fuse::mount(Reports::new(td.clone()), "tdx-sim", Path::new(REPORTS))
        .map_err(system(format!("cover {REPORTS}")))?;
    let _registers = fuse::mount(Measurements::new(td), "tdx-sim", Path::new(MISC))
        .map_err(system(format!("cover {MISC}")))?;

    // Without a second serial port this thread ends at once, and nobody misses it.
    std::thread::spawn(control::serve);

    let mut stdout = io::stdout();
    stdout.write_all(READY).and_then(|()| stdout.flush()).map_err(system("report readiness"))?;
    park()
}

/// Seed, then RTMR0-3.
fn receive(from: &mut impl Read) -> Result<(Seed, [Register; 4]), InitError> {
    let what = "receive the seed and the registers";
    let mut seed = Zeroizing::new([0u8; SEED_LENGTH]);
    from.read_exact(seed.as_mut()).map_err(system(what))?;
    let seed = Seed::from_bytes(seed.as_ref()).map_err(PlatformError::from)?;
    let mut rtmr = [[0u8; 48]; 4];
    for register in &mut rtmr {
        from.read_exact(register).map_err(system(what))?;
    }
    Ok((seed, rtmr))
}

/// Reads a file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    cofferdam_protocol::read::bounded(File::open(path)?, limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_process_takes_a_seed_and_four_registers() {
        let mut sent = vec![7u8; 32];
        for register in 0..4u8 {
            sent.extend([register; 48]);
        }
        let (seed, rtmr) = receive(&mut sent.as_slice()).unwrap();
        assert_eq!(seed.expose(), &[7; 32]);
        assert_eq!(rtmr, [[0; 48], [1; 48], [2; 48], [3; 48]]);
        sent.pop();
        assert!(receive(&mut sent.as_slice()).is_err());
    }

    #[test]
    fn a_file_is_read_to_its_bound() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, [1; 10]).unwrap();
        assert_eq!(read_bounded(&path, 10).unwrap().len(), 10);
        assert!(read_bounded(&path, 9).is_err());
    }
}
