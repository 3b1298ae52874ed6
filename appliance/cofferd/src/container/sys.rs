//! The unsafe code of the workload side: system calls that neither the standard library nor nix has.
//!
//! Each function is as small as the call, checks its result, and says why it is sound.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;

/// Like fork(2), but the child is in new namespaces and, when `cgroup` is given, in that control group from
/// its first instruction (clone3(2), CLONE_INTO_CGROUP, Linux 5.7). `None` in the child; in the parent
/// the child's id and a pidfd of it.
///
/// # Errors
///
/// What clone3(2) says. `EBUSY` when the caller has a second thread.
pub(super) fn clone_into(
    namespaces: CloneFlags,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Option<(Pid, OwnedFd)>, Errno> {
    if std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count) != 1 {
        return Err(Errno::EBUSY);
    }
    let mut pidfd: RawFd = -1;
    // The libc crate's constant has the wrong type (include/uapi/linux/sched.h).
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let into_cgroup = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    let mut arguments = libc::clone_args {
        // The flags are non-negative bit masks.
        flags: u64::from(namespaces.bits().unsigned_abs()) | libc::CLONE_PIDFD as u64 | into_cgroup,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |group| group.as_raw_fd() as u64),
    };
    // SAFETY: the structure has the kernel's layout and its size is passed along; the pidfd's pointer is valid
    // for the call. Without CLONE_VM and with no stack given the child runs on a copy of this memory, as
    // after fork, and the process has one thread (checked above), so no lock is held by a missing thread.
    let outcome = unsafe {
        libc::syscall(libc::SYS_clone3, std::ptr::from_mut(&mut arguments), size_of::<libc::clone_args>())
    };
    match Errno::result(outcome)? {
        0 => Ok(None),
        pid => {
            // SAFETY: on success the kernel wrote a new descriptor, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some((Pid::from_raw(i32::try_from(pid).map_err(|_| Errno::EOVERFLOW)?), pidfd)))
        }
    }
}

/// A copy of the mount at `path`, attached nowhere (open_tree(2) with OPEN_TREE_CLONE, Linux 5.2).
///
/// # Errors
///
/// What open_tree(2) says; needs CAP_SYS_ADMIN over the mount namespace.
pub(super) fn detached_copy(path: &CStr) -> Result<OwnedFd, Errno> {
    // OPEN_TREE_CLONE is 1; OPEN_TREE_CLOEXEC is O_CLOEXEC (include/uapi/linux/mount.h).
    let flags = 1 | libc::O_CLOEXEC;
    // SAFETY: the path is terminated and outlives the call; the rest are numbers.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// Attaches a detached mount at `path` (move_mount(2), Linux 5.2).
///
/// # Errors
///
/// What move_mount(2) says.
pub(super) fn attach(mount: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    // MOVE_MOUNT_F_EMPTY_PATH: the descriptor itself is the source (include/uapi/linux/mount.h). A symbolic
    // link at the target's end is not followed, since MOVE_MOUNT_T_SYMLINKS is absent.
    const EMPTY_PATH: libc::c_uint = 4;
    // SAFETY: both strings are terminated and outlive the call; the descriptor is borrowed, hence open.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            EMPTY_PATH,
        )
    };
    Errno::result(outcome).map(drop)
}

/// A descriptor that stands for a child of the caller, which cannot be reused as its number can (pidfd_open(2)).
///
/// # Errors
///
/// What pidfd_open(2) says.
pub(super) fn pidfd(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: two numbers; the descriptor that comes back is close-on-exec and nobody else's.
    let outcome = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    owned(outcome)
}

/// Sends `signal` (a number, signal(7)) to the process behind a pidfd.
///
/// # Errors
///
/// `ESRCH` when it has ended; what pidfd_send_signal(2) says.
pub(super) fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    let no_information = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is borrowed, hence open; a null pointer asks for the usual siginfo.
    let outcome =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_information, 0) };
    Errno::result(outcome).map(drop)
}

/// Reads from a Unix socket into `buffer`, and takes at most one descriptor that comes along.
///
/// # Errors
///
/// What recvmsg(2) says.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [std::io::IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut received = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            for descriptor in descriptors {
                // SAFETY: the kernel just made the descriptor for this process; nobody else owns it.
                received = Some(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
        }
    }
    Ok((message.bytes, received))
}

/// A descriptor that the runtime waits for.
///
/// # Errors
///
/// The kernel cannot watch such a descriptor.
pub(super) fn watch(descriptor: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd refers to the same open descriptor for as long as it exists, and AsyncFd keeps it
    // from being taken out while it is registered.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

/// A copy of a descriptor with a number above `number`, close-on-exec.
///
/// # Errors
///
/// No descriptors left.
pub(super) fn duplicate_above(descriptor: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd, Errno> {
    let least = number.checked_add(1).ok_or(Errno::EINVAL)?;
    // SAFETY: the descriptor is borrowed, hence open; the copy is new and nobody else's.
    owned(libc::c_long::from(unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) }))
}

fn owned(outcome: libc::c_long) -> Result<OwnedFd, Errno> {
    let descriptor = RawFd::try_from(Errno::result(outcome)?).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: called only with the answer of a call that makes a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_cloned() {
        std::thread::scope(|scope| {
            let (keep, wait) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || wait.recv());
            assert_eq!(clone_into(CloneFlags::empty(), None).err(), Some(Errno::EBUSY));
            drop(keep);
        });
    }
}
