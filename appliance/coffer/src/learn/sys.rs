//! Two calls that nix offers for named signals only. A program's threads send each other nameless ones (real-time signals), and one that
//! is not passed on would change what is recorded.

#![allow(unsafe_code)]

use std::io;

use nix::libc;

/// How a stopped process goes on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Resume {
    /// Until its next system call.
    ToSystemCall,
    /// Until something happens to it.
    Freely,
}

/// Lets a process that the calling thread traces go on, with this signal or none (0). One that is gone by now needs nothing.
pub(super) fn resume(pid: i32, how: Resume, signal: i32) {
    let request = match how {
        Resume::ToSystemCall => libc::PTRACE_SYSCALL,
        Resume::Freely => libc::PTRACE_CONT,
    };
    // SAFETY: neither request reads or writes memory of this process: the third argument is ignored, the fourth is a number (ptrace(2)).
    unsafe { libc::ptrace(request, pid, 0_usize, usize::try_from(signal).unwrap_or_default()) };
}

/// What happened next to a process that the calling thread traces, as waitpid(2) puts it.
///
/// # Errors
///
/// There is none.
pub(super) fn wait() -> io::Result<(i32, i32)> {
    loop {
        let mut status = 0;
        // SAFETY: the pointer is valid for the call. Only children of this very thread are waited for, so nobody else's are taken.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        match pid {
            1.. => return Ok((pid, status)),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
