//! The only unsafe code of this library: system calls that neither the standard library nor nix offers safely.
//!
//! Each function is as small as the call, checks its result, and says why it is sound. What a program needs that starts
//! processes of its own (descriptors, signals, leaving) or sets up an interface is public.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{ForkResult, Pid};
use tokio::io::unix::AsyncFd;

/// Like fork(2), but the child is in new namespaces and, when `cgroup` is given, in that control group from
/// its first instruction (clone3(2), CLONE_INTO_CGROUP, Linux 5.7). `None` in the child; in the parent
/// the child's id and a pidfd of it.
///
/// # Errors
///
/// What clone3(2) says. `EBUSY` when the caller has a second thread.
pub(crate) fn clone_into(
    namespaces: CloneFlags,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Option<(Pid, OwnedFd)>, Errno> {
    if thread_count()? != 1 {
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
pub fn detached_copy(path: &CStr) -> Result<OwnedFd, Errno> {
    // OPEN_TREE_CLONE is 1; OPEN_TREE_CLOEXEC is O_CLOEXEC (include/uapi/linux/mount.h).
    let flags = 1 | libc::O_CLOEXEC;
    // SAFETY: the path is terminated and outlives the call; the rest are numbers.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// What a copy of a mount is beside what the original is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnFlags {
    /// Nothing is written through it.
    pub read_only: bool,
    /// No program in it is executed.
    pub no_exec: bool,
}

/// Shows the files of a detached mount under the ids of a user namespace: what is 0 in the file system is 0 there
/// (mount_setattr(2) with MOUNT_ATTR_IDMAP, Linux 5.12; tmpfs has it since 6.3).
///
/// # Errors
///
/// What mount_setattr(2) says; needs CAP_SYS_ADMIN where the file system was made and over the user namespace.
pub fn map_ids_of(mount: BorrowedFd<'_>, ids: BorrowedFd<'_>, own: OwnFlags) -> Result<(), Errno> {
    let set = |wanted, flag| if wanted { flag } else { 0 };
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP
            | set(own.read_only, libc::MOUNT_ATTR_RDONLY)
            | set(own.no_exec, libc::MOUNT_ATTR_NOEXEC),
        attr_clr: 0,
        propagation: 0,
        userns_fd: ids.as_raw_fd().try_into().map_err(|_| Errno::EBADF)?,
    };
    // SAFETY: the string is terminated and the structure fully initialised, both outlive the call, which reads no more than the size
    // given; the descriptors are borrowed, hence open.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(&attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(outcome).map(drop)
}

/// Attaches a detached mount at `path` (move_mount(2), Linux 5.2).
///
/// # Errors
///
/// What move_mount(2) says.
pub fn attach(mount: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
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

/// Attaches a detached mount over the directory that a descriptor stands for, wherever its path leads by now.
///
/// # Errors
///
/// As [`attach`].
pub(crate) fn attach_to(mount: BorrowedFd<'_>, directory: BorrowedFd<'_>) -> Result<(), Errno> {
    // MOVE_MOUNT_F_EMPTY_PATH and MOVE_MOUNT_T_EMPTY_PATH (include/uapi/linux/mount.h).
    const EMPTY_PATHS: libc::c_uint = 4 | 0x40;
    // SAFETY: both strings are terminated constants; the descriptors are borrowed, hence open.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            directory.as_raw_fd(),
            c"".as_ptr(),
            EMPTY_PATHS,
        )
    };
    Errno::result(outcome).map(drop)
}

/// A descriptor that stands for a child of the caller, which cannot be reused as its number can (pidfd_open(2)).
///
/// # Errors
///
/// What pidfd_open(2) says.
pub(crate) fn pidfd(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: two numbers; the descriptor that comes back is close-on-exec and nobody else's.
    let outcome = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    owned(outcome)
}

/// Sends `signal` (a number, signal(7)) to the process behind a pidfd.
///
/// # Errors
///
/// `ESRCH` when it has ended; what pidfd_send_signal(2) says.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
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
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Errno> {
    let (count, mut received) = receive_in(socket, buffer, nix::cmsg_space!([RawFd; 1]))?;
    Ok((count, received.pop()))
}

/// The same for as many descriptors as a message of [`egress`](cofferdam_protocol::egress) has at most.
///
/// # Errors
///
/// What recvmsg(2) says.
pub fn receive_many(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    receive_in(socket, buffer, nix::cmsg_space!([RawFd; cofferdam_protocol::egress::MAX_DESCRIPTORS]))
}

/// Those that do not fit into `space` are closed by the kernel.
fn receive_in(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    mut space: Vec<u8>,
) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut parts = [std::io::IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut received = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            for descriptor in descriptors {
                // SAFETY: the kernel just made the descriptor for this process; nobody else owns it.
                received.push(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
        }
    }
    Ok((message.bytes, received))
}

/// Has a socket receive only what this program of the classic packet filter lets through (socket(7), `SO_ATTACH_FILTER`).
///
/// # Errors
///
/// What setsockopt(2) says: `EINVAL` for a program that the kernel does not accept.
pub fn attach_filter(socket: BorrowedFd<'_>, program: &[libc::sock_filter]) -> Result<(), Errno> {
    let len = program.len().try_into().map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let size = size_of::<libc::sock_fprog>().try_into().map_err(|_| Errno::EINVAL)?;
    // SAFETY: the structure has the kernel's layout and names `len` instructions of a slice that outlives the call; the kernel only
    // reads both and copies them.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::from_ref(&program).cast(),
            size,
        )
    };
    Errno::result(outcome).map(drop)
}

/// A descriptor that the runtime waits for.
///
/// # Errors
///
/// The kernel cannot watch such a descriptor.
pub fn watch(descriptor: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd refers to the same open descriptor for as long as it exists, and AsyncFd keeps it
    // from being taken out while it is registered.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

/// A copy of a descriptor with a number above `number`, close-on-exec.
///
/// # Errors
///
/// No descriptors left.
pub(crate) fn duplicate_above(descriptor: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd, Errno> {
    let least = number.checked_add(1).ok_or(Errno::EINVAL)?;
    // SAFETY: the descriptor is borrowed, hence open; the copy is new and nobody else's.
    owned(libc::c_long::from(unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) }))
}

fn owned(outcome: libc::c_long) -> Result<OwnedFd, Errno> {
    let descriptor = RawFd::try_from(Errno::result(outcome)?).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: called only with the answer of a call that makes a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Forks the calling process. `None` in the child, the child's id in the parent.
///
/// # Errors
///
/// What fork(2) says: out of memory or process ids. `EBUSY` when the caller has a second thread.
pub fn fork() -> Result<Option<Pid>, Errno> {
    if thread_count()? != 1 {
        return Err(Errno::EBUSY);
    }
    // SAFETY: the process has exactly one thread (checked above), so no lock can be held by a
    // thread that does not exist in the child.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// The number of threads of this process. Counted only when /proc is there: before it is mounted,
/// nothing that could start one has run.
fn thread_count() -> Result<usize, Errno> {
    match std::fs::read_dir("/proc/self/task") {
        Ok(tasks) => Ok(tasks.count()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(1),
        Err(_) => Err(Errno::EIO),
    }
}

/// Ends the process at once: no destructor, no buffered output. For a forked child whose setup failed: it
/// shares what the destructors would touch with its parent.
pub fn leave(code: i32) -> ! {
    // SAFETY: _exit(2) takes a number and does not return.
    unsafe { libc::_exit(code) }
}

/// Gives every signal its default action again. An ignored signal would stay ignored over execve.
pub fn default_signals() {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            continue;
        }
        // SAFETY: installs no handler, only the default action. The two that cannot be changed are left out,
        // and a failure would leave the default that a fresh PID 1 starts with.
        let _ = unsafe { nix::sys::signal::sigaction(signal, &default) };
    }
}

/// Puts `source` at descriptor number `target`, inherited over execve.
///
/// # Errors
///
/// What dup3(2) and fcntl(2) say.
pub fn place(source: BorrowedFd<'_>, target: RawFd) -> Result<(), Errno> {
    if source.as_raw_fd() == target {
        // SAFETY: F_SETFD with a constant on a descriptor that is borrowed, hence open.
        return Errno::result(unsafe { libc::fcntl(target, libc::F_SETFD, 0) }).map(drop);
    }
    // SAFETY: both are plain numbers; whatever was open at `target` is replaced, which is what the
    // caller asks for. Callers do so only with 0-4 in a child about to execve, or with 0-2 in PID 1.
    Errno::result(unsafe { libc::dup2(source.as_raw_fd(), target) }).map(drop)
}

/// Another descriptor of the same file, at the first free number from `first` on, closed on execve.
///
/// # Errors
///
/// What fcntl(2) says of F_DUPFD_CLOEXEC.
pub fn duplicate(file: BorrowedFd<'_>, first: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the descriptor is borrowed, hence open; what comes back is new and nobody else's.
    unsafe {
        let made = Errno::result(libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, first))?;
        Ok(OwnedFd::from_raw_fd(made))
    }
}

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
///
/// What close_range(2) says (Linux 5.11).
pub fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: CLOSE_RANGE_CLOEXEC closes nothing now, it only sets flags.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(done).map(drop)
}

/// Takes the descriptor that whoever executed this program left open at `number` for it.
///
/// # Errors
///
/// `EBADF` when nothing is open there.
pub fn inherited(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: F_SETFD changes a flag or fails with EBADF.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the descriptor is open (checked above). It was placed for exactly this caller and a role
    // takes it once, before it opens anything, so nothing else owns the number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Kernel `struct ifreq` with an address in its union (netdevice(7)): 40 bytes on x86-64.
#[repr(C)]
struct AddressRequest {
    name: [u8; 16],
    address: libc::sockaddr_in,
    rest: [u8; 8],
}

/// Kernel `struct ifreq` with a number in its union.
#[repr(C)]
struct NumberRequest {
    name: [u8; 16],
    value: i32,
    rest: [u8; 20],
}

fn interface_name(name: &str) -> Result<[u8; 16], Errno> {
    let mut field = [0_u8; 16];
    // The last byte stays zero: the kernel wants a terminated name.
    match field.get_mut(..name.len()) {
        Some(head) if name.len() < 16 => head.copy_from_slice(name.as_bytes()),
        _ => return Err(Errno::ENAMETOOLONG),
    }
    Ok(field)
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
        sin_zero: [0; 8],
    }
}

fn set_address(
    socket: BorrowedFd<'_>,
    request: libc::c_ulong,
    name: &str,
    address: Ipv4Addr,
) -> Result<(), Errno> {
    let argument =
        AddressRequest { name: interface_name(name)?, address: socket_address(address), rest: [0; 8] };
    // SAFETY: the argument is a fully initialised ifreq of the kernel's size that outlives the call; the
    // requests used here only read it. The cast is for musl, whose ioctl takes an int.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), request as _, &argument) }).map(drop)
}

/// Sets an interface's IPv4 address (`SIOCSIFADDR`). Address 0.0.0.0 removes it.
///
/// # Errors
///
/// What netdevice(7) says; needs CAP_NET_ADMIN.
pub fn set_interface_address(socket: BorrowedFd<'_>, name: &str, address: Ipv4Addr) -> Result<(), Errno> {
    set_address(socket, SIOCSIFADDR, name, address)
}

/// Sets an interface's netmask (`SIOCSIFNETMASK`).
///
/// # Errors
///
/// As [`set_interface_address`].
pub fn set_interface_mask(socket: BorrowedFd<'_>, name: &str, mask: Ipv4Addr) -> Result<(), Errno> {
    set_address(socket, SIOCSIFNETMASK, name, mask)
}

/// Sets an interface's MTU in bytes (`SIOCSIFMTU`).
///
/// # Errors
///
/// As [`set_interface_address`].
pub fn set_interface_mtu(socket: BorrowedFd<'_>, name: &str, bytes: u16) -> Result<(), Errno> {
    let argument = NumberRequest { name: interface_name(name)?, value: i32::from(bytes), rest: [0; 20] };
    // SAFETY: as in `set_address`.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCSIFMTU as _, &argument) }).map(drop)
}

/// Brings an interface up (`SIOCSIFFLAGS` with IFF_UP | IFF_RUNNING).
///
/// # Errors
///
/// As [`set_interface_address`].
pub fn interface_up(socket: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    set_flags(socket, name, libc::IFF_UP | libc::IFF_RUNNING)
}

/// The same for an interface that neither asks nor answers who has an address (IFF_NOARP): see [`set_neighbour`].
///
/// # Errors
///
/// As [`set_interface_address`].
pub fn interface_up_without_arp(socket: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    set_flags(socket, name, libc::IFF_UP | libc::IFF_RUNNING | libc::IFF_NOARP)
}

fn set_flags(socket: BorrowedFd<'_>, name: &str, value: i32) -> Result<(), Errno> {
    // ifr_flags is a short at the start of the union; little-endian, so a small int reads the same.
    let argument = NumberRequest { name: interface_name(name)?, value, rest: [0; 20] };
    // SAFETY: as in `set_address`.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCSIFFLAGS as _, &argument) }).map(drop)
}

/// Kernel `struct arpreq` (arp(7)): 68 bytes.
#[repr(C)]
struct NeighbourRequest {
    protocol_address: libc::sockaddr_in,
    hardware_family: u16,
    hardware_address: [u8; 14],
    flags: i32,
    mask: [u8; 16],
    device: [u8; 16],
}

/// Says for good which hardware address a neighbour on an interface has (`SIOCSARP`, ATF_COM | ATF_PERM).
///
/// # Errors
///
/// What arp(7) says; needs CAP_NET_ADMIN.
pub fn set_neighbour(
    socket: BorrowedFd<'_>,
    interface: &str,
    address: Ipv4Addr,
    hardware: [u8; 6],
) -> Result<(), Errno> {
    let mut hardware_address = [0; 14];
    for (to, from) in hardware_address.iter_mut().zip(hardware) {
        *to = from;
    }
    let argument = NeighbourRequest {
        protocol_address: socket_address(address),
        hardware_family: libc::ARPHRD_ETHER,
        hardware_address,
        flags: 0x02 | 0x04,
        mask: [0; 16],
        device: interface_name(interface)?,
    };
    // SAFETY: the argument is a fully initialised arpreq of the kernel's size (a test holds it) that outlives the call,
    // which only reads it.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCSARP as _, &argument) }).map(drop)
}

// include/uapi/linux/sockios.h; the libc crate does not name all of them.
const SIOCSIFFLAGS: libc::c_ulong = 0x8914;
const SIOCSIFADDR: libc::c_ulong = 0x8916;
const SIOCSIFNETMASK: libc::c_ulong = 0x891C;
const SIOCSIFMTU: libc::c_ulong = 0x8922;
const SIOCSARP: libc::c_ulong = 0x8955;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_bounded_and_terminated() {
        assert_eq!(interface_name("eth0").unwrap()[..5], *b"eth0\0");
        assert_eq!(interface_name("fifteen-letters").unwrap()[15], 0);
        assert_eq!(interface_name("sixteen-letters!"), Err(Errno::ENAMETOOLONG));
    }

    #[test]
    fn requests_have_the_kernels_size() {
        assert_eq!(size_of::<AddressRequest>(), 40);
        assert_eq!(size_of::<NumberRequest>(), 40);
        assert_eq!(size_of::<NeighbourRequest>(), size_of::<libc::arpreq>());
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_not_taken() {
        assert_eq!(inherited(1_000_000).unwrap_err(), Errno::EBADF);
    }

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
