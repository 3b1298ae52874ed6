//! What is mounted before `cofferd` starts. It mounts only what is not mounted yet, so all of this stays; flags and
//! options are those that it would have chosen itself.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use super::{ACPI_TABLES, InitError, system};
use crate::firmware;

const LOCKED: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);

/// The kernel's own file systems.
pub(super) fn base() -> Result<(), InitError> {
    attach("proc", "/proc", LOCKED, None)?;
    attach("sysfs", "/sys", LOCKED, None)?;
    attach("devtmpfs", "/dev", DEVICES, Some("mode=0755"))?;
    attach("securityfs", "/sys/kernel/security", LOCKED, None)?;
    attach("configfs", "/sys/kernel/config", LOCKED, None)
}

/// The firmware's tables as a TD has them: the table CCEL and, below `data`, the log that it announces. Both are
/// root's to read only, as the kernel has them. What else the firmware put there is hidden; nobody here reads it.
pub(super) fn ccel(log: &[u8]) -> Result<(), InitError> {
    attach("tmpfs", ACPI_TABLES, LOCKED, Some("mode=0755,size=4m"))?;
    let tables = Path::new(ACPI_TABLES);
    let data = tables.join("data");
    fs::create_dir(&data).map_err(system(format!("make {}", data.display())))?;
    present(&tables.join("CCEL"), &firmware::ccel_table(log.len()))?;
    present(&data.join("CCEL"), log)?;
    let sealed = LOCKED | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, ACPI_TABLES, None::<&str>, sealed, None::<&str>)
        .map_err(|errno| system(format!("seal {ACPI_TABLES}"))(errno.into()))
}

fn present(path: &Path, bytes: &[u8]) -> Result<(), InitError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(system(format!("write {}", path.display())))
}

fn attach(kind: &str, target: &str, flags: MsFlags, options: Option<&str>) -> Result<(), InitError> {
    if !Path::new(target).is_dir() {
        fs::create_dir_all(target).map_err(system(format!("make {target}")))?;
    }
    mount(Some(kind), target, Some(kind), flags, options)
        .map_err(|errno| system(format!("mount {kind} on {target}"))(errno.into()))
}
