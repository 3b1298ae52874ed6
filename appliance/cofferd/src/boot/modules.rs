//! Stage `modules`: loads the image's kernel modules, then shuts that door.
//!
//! The list is part of the measured image: `/modules/load`, one file name per line, relative to
//! `/modules`, dependencies first. A leading `?` marks a module whose device may be absent (ENODEV).
//! The kernel checks each module's signature itself; nothing is looked up, nothing is loaded on demand.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use super::mount::{self, MountError};
use crate::files;

/// Where the image keeps its modules.
const DIRECTORY: &str = "/modules";
/// `MODULE_INIT_COMPRESSED_FILE` (include/uapi/linux/module.h): the kernel decompresses.
const COMPRESSED: ModuleInitFlags = ModuleInitFlags::from_bits_retain(4);
/// The image has some twenty modules.
const MAX_LIST_BYTES: u64 = 16 * 1024;

/// Why the stage failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModulesError {
    /// The list cannot be read.
    #[error("cannot read the list of modules")]
    List(#[source] io::Error),
    /// A line of the list is not a module's file name.
    #[error("line {0} of the list of modules is not a file name")]
    Line(usize),
    /// A module's file cannot be opened.
    #[error("cannot open the module {0}")]
    Open(String, #[source] io::Error),
    /// The kernel refused a module.
    #[error("cannot load the module {0}")]
    Load(String, #[source] Errno),
    /// What follows loading failed.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// One line of the list.
#[derive(Debug, PartialEq, Eq)]
struct Module<'a> {
    file: &'a str,
    device_may_be_absent: bool,
}

/// Loads everything on the list, mounts configfs, and forbids further modules until the machine ends.
///
/// # Errors
///
/// [`ModulesError`].
pub(crate) fn establish() -> Result<(), ModulesError> {
    let directory = Path::new(DIRECTORY);
    let list = files::read_bounded(directory.join("load"), MAX_LIST_BYTES).map_err(ModulesError::List)?;
    let list = String::from_utf8(list).map_err(|_| ModulesError::Line(1))?;
    for module in parse(&list)? {
        load(directory, &module)?;
    }
    mount::attach_configfs()?;
    mount::lock("kernel/modules_disabled")?;
    Ok(())
}

fn load(directory: &Path, module: &Module<'_>) -> Result<(), ModulesError> {
    let file = File::open(directory.join(module.file))
        .map_err(|error| ModulesError::Open(module.file.to_owned(), error))?;
    let flags = if module.file.ends_with(".ko") { ModuleInitFlags::empty() } else { COMPRESSED };
    match finit_module(&file, c"", flags) {
        // EEXIST: it is there already, built in or loaded before PID 1 started.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(Errno::ENODEV) if module.device_may_be_absent => Ok(()),
        Err(error) => Err(ModulesError::Load(module.file.to_owned(), error)),
    }
}

fn parse(list: &str) -> Result<Vec<Module<'_>>, ModulesError> {
    let lines = list.lines().enumerate().filter(|(_, line)| !line.is_empty());
    lines
        .map(|(index, line)| {
            let file = line.strip_prefix('?').unwrap_or(line);
            let module = Module { file, device_may_be_absent: file.len() < line.len() };
            if is_module_name(file) { Ok(module) } else { Err(ModulesError::Line(index.saturating_add(1))) }
        })
        .collect()
}

/// A plain file name that ends as a module's does.
fn is_module_name(file: &str) -> bool {
    let stem = file.strip_suffix(".ko.xz").or_else(|| file.strip_suffix(".ko"));
    stem.is_some_and(|stem| {
        !stem.is_empty() && stem.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_in_order_with_its_marks() {
        let parsed = parse("virtio_blk.ko.xz\n\n?tdx-guest.ko.xz\nevdev.ko\n").unwrap();
        let module = |file, device_may_be_absent| Module { file, device_may_be_absent };
        let expected =
            [module("virtio_blk.ko.xz", false), module("tdx-guest.ko.xz", true), module("evdev.ko", false)];
        assert_eq!(parsed, expected);
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn what_is_not_a_modules_file_name_is_refused_with_its_line() {
        for wrong in ["../x.ko", "a/b.ko", ".ko", "x.so", "x.ko.gz", "x.ko ", "# x.ko", "??x.ko", "?"] {
            let list = format!("virtio_net.ko\n{wrong}\n");
            assert!(matches!(parse(&list), Err(ModulesError::Line(2))), "{wrong}");
        }
    }

    #[test]
    fn a_missing_module_is_named() {
        let module = Module { file: "nowhere.ko", device_may_be_absent: true };
        let error = load(Path::new("/nonexistent"), &module).unwrap_err();
        assert_eq!(error.to_string(), "cannot open the module nowhere.ko");
    }
}
