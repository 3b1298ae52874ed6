//! What a workload does to the files of its image, which other services have too.
//!
//! | request | what happens |
//! |---|---|
//! | `/file?path=P` | its size, owner, group, mode and the sum of its bytes, as JSON |
//! | `/spoil?path=P` | changes it in all ways that there are; what each was answered, as JSON |

use std::ffi::{CString, c_long};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

/// The answer to one of the requests above.
pub(crate) fn answer(path: &str, parameter: impl Fn(&str) -> Option<String>) -> Option<String> {
    let file = parameter("path").unwrap_or_default();
    Some(match path {
        "/file" => look(Path::new(&file)).unwrap_or_else(|error| format!("[{:?}]\n", crate::text(&error))),
        "/spoil" => {
            let said = spoil(Path::new(&file)).into_iter();
            let said = said.map(|(name, outcome)| {
                let answer = outcome.err().map_or("ok".to_owned(), |error| crate::text(&error));
                format!("{name:?}:{answer:?}")
            });
            format!("{{{}}}\n", said.collect::<Vec<_>>().join(","))
        }
        _ => return None,
    })
}

fn look(path: &Path) -> io::Result<String> {
    let metadata = fs::metadata(path)?;
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut sum = 0_u64;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => sum += buffer[..count].iter().map(|byte| u64::from(*byte)).sum::<u64>(),
        }
    }
    let (size, mode) = (metadata.len(), metadata.mode() & 0o7777);
    Ok(format!("[{size},{},{},{mode},{sum}]\n", metadata.uid(), metadata.gid()))
}

/// In this order: what comes later finds what came before.
fn spoil(path: &Path) -> Vec<(&'static str, io::Result<()>)> {
    let moved = path.with_extension("moved");
    let linked = path.with_extension("linked");
    vec![
        ("write", File::options().write(true).open(path).and_then(|mut file| file.write_all(b"spoilt"))),
        ("map", mapped(path)),
        ("punch", File::options().write(true).open(path).and_then(|file| punch(&file))),
        ("chmod", fs::set_permissions(path, Permissions::from_mode(0o777))),
        ("setxattr", setxattr(path)),
        ("chown", chown(path, Some(7), Some(7))),
        ("link", fs::hard_link(path, linked)),
        ("move", fs::rename(path, &moved)),
        ("replace", fs::write(path, "another")),
    ]
}

/// Writes through shared memory of a file that is open for reading alone, and of one that is open for both.
fn mapped(path: &Path) -> io::Result<()> {
    let reader = File::open(path)?;
    // mmap: one page, PROT_READ | PROT_WRITE, MAP_SHARED.
    let write = |file: &File| {
        // SAFETY: the kernel chooses the address of the new mapping, which nothing else refers to.
        let address = unsafe {
            crate::syscall(
                9,
                0 as c_long,
                4096 as c_long,
                3 as c_long,
                1 as c_long,
                file.as_raw_fd(),
                0 as c_long,
            )
        };
        if address < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a page that was just mapped for writing, of a file that is not empty.
        unsafe { std::ptr::write_volatile(address as *mut u8, b'!') };
        Ok(())
    };
    if write(&reader).is_ok() {
        return Ok(());
    }
    write(&File::options().read(true).write(true).open(path)?)
}

fn punch(file: &File) -> io::Result<()> {
    // fallocate: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE.
    // SAFETY: numbers only.
    unsafe { done(crate::syscall(285, file.as_raw_fd(), 3, 0 as c_long, 4096 as c_long)) }
}

fn setxattr(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: all three are terminated or of the length given, and outlive the call.
    unsafe {
        done(crate::syscall(188, path.as_ptr(), c"user.spoilt".as_ptr(), c"1".as_ptr(), 1 as c_long, 0))
    }
}

fn done(result: c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
