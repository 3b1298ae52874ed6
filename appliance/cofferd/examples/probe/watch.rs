//! A program that reads a secret again when its directory changes, as servers do that reload certificates.

use std::ffi::{CString, c_char, c_int};
use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;

unsafe extern "C" {
    fn inotify_init1(flags: c_int) -> c_int;
    fn inotify_add_watch(fd: c_int, path: *const c_char, mask: u32) -> c_int;
}

/// A file was moved into the directory (inotify(7)).
const IN_MOVED_TO: u32 = 0x80;

/// Prints how long the file is, once and whenever it was replaced.
pub(crate) fn run(directory: &str, name: &str) -> Option<()> {
    let path = CString::new(directory).ok()?;
    // SAFETY: a number in, a number out.
    let fd = unsafe { inotify_init1(0) };
    // SAFETY: the path is terminated and outlives the call.
    if fd < 0 || unsafe { inotify_add_watch(fd, path.as_ptr(), IN_MOVED_TO) } < 0 {
        return None;
    }
    // SAFETY: the call made it just now and nobody else has it.
    let mut events = unsafe { File::from_raw_fd(fd) };
    loop {
        println!("{} bytes -", std::fs::read(format!("{directory}/{name}")).ok()?.len());
        if events.read(&mut [0; 4096]).ok()? == 0 {
            return None;
        }
    }
}
