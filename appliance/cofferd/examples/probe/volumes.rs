//! What a workload keeps in a volume, and what it tries there.
//!
//! | request | what happens |
//! |---|---|
//! | `/volume/put?path=P&text=T` | replaces a file as a whole; answers when it is on the disk |
//! | `/volume/append?path=P&text=T` | appends a line; answers when it is on the disk |
//! | `/volume/read?path=P` | the file |
//! | `/volume/names?path=P` | the names in a directory, as JSON |
//! | `/volume/attempts?path=P` | what no service does in a directory of a volume; what each was answered, as JSON |

use std::ffi::{CString, c_int, c_long};
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

/// The answer to one of the requests above.
pub(crate) fn answer(path: &str, parameter: impl Fn(&str) -> Option<String>) -> Option<String> {
    let named = parameter("path").unwrap_or_default();
    let named = Path::new(&named);
    let text = parameter("text").unwrap_or_default();
    let done = match path {
        "/volume/put" => put(named, &text),
        "/volume/append" => append(named, &text),
        "/volume/read" => fs::read_to_string(named),
        "/volume/names" => names(named),
        "/volume/attempts" => Ok(attempts(named)),
        _ => return None,
    };
    Some(done.unwrap_or_else(|error| format!("error {}\n", crate::text(&error))))
}

fn put(path: &Path, text: &str) -> io::Result<String> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(path))?.sync_all()?;
    Ok("put\n".to_owned())
}

fn append(path: &Path, text: &str) -> io::Result<String> {
    let mut file = File::options().append(true).create(true).open(path)?;
    file.write_all(format!("{text}\n").as_bytes())?;
    file.sync_data()?;
    Ok("appended\n".to_owned())
}

fn names(path: &Path) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(crate::list(names.iter().map(|name| crate::quoted(name))))
}

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}
const MKNOD: c_long = 133;
const MOUNT: c_long = 165;
const REMOUNT: c_int = 32;

fn attempts(directory: &Path) -> String {
    let program = directory.join("program");
    let copied = fs::copy("/probe", &program)
        .and_then(|_| fs::set_permissions(&program, Permissions::from_mode(0o6755)));
    let said = [
        ("copy", copied),
        ("execute", Command::new(&program).arg("--version").status().map(drop)),
        ("device", device(&directory.join("null"))),
        ("remount", remount(directory)),
        ("outside", chown(&program, Some(65_535), None)),
        ("other", other(directory)),
    ];
    let said = said.map(|(name, outcome)| {
        let answer = outcome.err().map_or("ok".to_owned(), |error| crate::text(&error));
        format!("{name:?}:{answer:?}")
    });
    format!("{{{}}}\n", said.join(","))
}

/// Where PID 1 has volumes, and where other services' are.
fn other(directory: &Path) -> io::Result<()> {
    let own = fs::metadata(directory)?.dev();
    for path in ["/run/cofferdam/volumes", "/run/cofferdam/service-volumes", "/run/cofferdam"] {
        if fs::metadata(path).is_ok_and(|found| found.dev() != own) {
            return Ok(());
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// A character device of mode 0666: 1, 3.
fn device(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: the path is terminated and outlives the call; the rest are numbers.
    match unsafe { syscall(MKNOD, path.as_ptr(), 0o20666_usize, 0x103_usize) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn remount(directory: &Path) -> io::Result<()> {
    let path = CString::new(directory.as_os_str().as_encoded_bytes())?;
    // SAFETY: as in `device`; no file system, no type and no options are named.
    match unsafe {
        syscall(MOUNT, c"none".as_ptr(), path.as_ptr(), c"".as_ptr(), c_long::from(REMOUNT), 0_usize)
    } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
