//! The only unsafe code of `cofferd`: system calls that neither the standard library nor nix offers safely.
//!
//! Each function is as small as the call, checks its result, and says why it is sound. Everything
//! above this file is safe Rust.

#![allow(unsafe_code)]

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::unistd::{ForkResult, Pid};

/// Forks the calling process. `None` in the child, the child's id in the parent.
///
/// # Errors
///
/// What fork(2) says: out of memory or process ids. `EBUSY` when the caller has a second thread.
pub(crate) fn fork() -> Result<Option<Pid>, Errno> {
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
/// PID 1 has not run any code that could start one.
fn thread_count() -> Result<usize, Errno> {
    match std::fs::read_dir("/proc/self/task") {
        Ok(tasks) => Ok(tasks.count()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(1),
        Err(_) => Err(Errno::EIO),
    }
}

/// Ends the process at once: no destructor, no buffered output. For a forked child whose setup failed: it
/// shares what the destructors would touch with its parent.
pub(crate) fn leave(code: i32) -> ! {
    // SAFETY: _exit(2) takes a number and does not return.
    unsafe { libc::_exit(code) }
}

/// Gives every signal its default action again. An ignored signal would stay ignored over execve.
pub(crate) fn default_signals() {
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
pub(crate) fn place(source: BorrowedFd<'_>, target: RawFd) -> Result<(), Errno> {
    if source.as_raw_fd() == target {
        // SAFETY: F_SETFD with a constant on a descriptor that is borrowed, hence open.
        return Errno::result(unsafe { libc::fcntl(target, libc::F_SETFD, 0) }).map(drop);
    }
    // SAFETY: both are plain numbers; whatever was open at `target` is replaced, which is what the
    // caller asks for. Callers do so only with 0-3 in a child about to execve, or with 0-2 in PID 1.
    Errno::result(unsafe { libc::dup2(source.as_raw_fd(), target) }).map(drop)
}

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
///
/// What close_range(2) says (Linux 5.11).
pub(crate) fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: CLOSE_RANGE_CLOEXEC closes nothing now, it only sets flags.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(done).map(drop)
}

/// Takes the descriptor that PID 1 left open at `number` for this role.
///
/// # Errors
///
/// `EBADF` when nothing is open there.
pub(crate) fn inherited(number: RawFd) -> Result<OwnedFd, Errno> {
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
pub(crate) fn set_interface_address(
    socket: BorrowedFd<'_>,
    name: &str,
    address: Ipv4Addr,
) -> Result<(), Errno> {
    set_address(socket, SIOCSIFADDR, name, address)
}

/// Sets an interface's netmask (`SIOCSIFNETMASK`).
///
/// # Errors
///
/// As [`set_interface_address`].
pub(crate) fn set_interface_mask(socket: BorrowedFd<'_>, name: &str, mask: Ipv4Addr) -> Result<(), Errno> {
    set_address(socket, SIOCSIFNETMASK, name, mask)
}

/// Sets an interface's MTU in bytes (`SIOCSIFMTU`).
///
/// # Errors
///
/// As [`set_interface_address`].
pub(crate) fn set_interface_mtu(socket: BorrowedFd<'_>, name: &str, bytes: u16) -> Result<(), Errno> {
    let argument = NumberRequest { name: interface_name(name)?, value: i32::from(bytes), rest: [0; 20] };
    // SAFETY: as in `set_address`.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCSIFMTU as _, &argument) }).map(drop)
}

/// Brings an interface up (`SIOCSIFFLAGS` with IFF_UP | IFF_RUNNING).
///
/// # Errors
///
/// As [`set_interface_address`].
pub(crate) fn interface_up(socket: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    // ifr_flags is a short at the start of the union; little-endian, so a small int reads the same.
    let value = libc::IFF_UP | libc::IFF_RUNNING;
    let argument = NumberRequest { name: interface_name(name)?, value, rest: [0; 20] };
    // SAFETY: as in `set_address`.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCSIFFLAGS as _, &argument) }).map(drop)
}

/// Adds the default route over `gateway` (`SIOCADDRT`). `EEXIST` when there is one already.
///
/// # Errors
///
/// As [`set_interface_address`]; `ENETUNREACH` when the gateway is on no connected network.
pub(crate) fn add_default_route(socket: BorrowedFd<'_>, gateway: Ipv4Addr) -> Result<(), Errno> {
    let any = Ipv4Addr::UNSPECIFIED;
    request_route(socket, &RouteEntry::new(any, any, gateway, RTF_UP | RTF_GATEWAY))
}

/// Adds a route to one host that is reached directly over an interface (`SIOCADDRT` with a device).
///
/// # Errors
///
/// As [`add_default_route`].
pub(crate) fn add_link_route(socket: BorrowedFd<'_>, host: Ipv4Addr, interface: &str) -> Result<(), Errno> {
    let name = interface_name(interface)?;
    let mut entry = RouteEntry::new(host, Ipv4Addr::BROADCAST, Ipv4Addr::UNSPECIFIED, RTF_UP | RTF_HOST);
    entry.device = name.as_ptr() as u64;
    // The name outlives the call, as the request's safety note asks for.
    request_route(socket, &entry)
}

/// Kernel `struct rtentry` (include/uapi/linux/route.h) on x86-64. Pointers and paddings are zero words.
#[repr(C)]
struct RouteEntry {
    pad1: u64,
    destination: libc::sockaddr_in,
    gateway: libc::sockaddr_in,
    mask: libc::sockaddr_in,
    flags: u16,
    pad2: [u16; 3],
    pad3: [u64; 2],
    metric: i16,
    pad4: [u16; 3],
    device: u64,
    mtu: u64,
    window: u64,
    round_trip: u16,
}

// include/uapi/linux/sockios.h; the libc crate does not name all of them.
const SIOCADDRT: libc::c_ulong = 0x890B;
const SIOCSIFFLAGS: libc::c_ulong = 0x8914;
const SIOCSIFADDR: libc::c_ulong = 0x8916;
const SIOCSIFNETMASK: libc::c_ulong = 0x891C;
const SIOCSIFMTU: libc::c_ulong = 0x8922;
// include/uapi/linux/route.h.
const RTF_UP: u16 = 0x0001;
const RTF_GATEWAY: u16 = 0x0002;
const RTF_HOST: u16 = 0x0004;

impl RouteEntry {
    fn new(destination: Ipv4Addr, mask: Ipv4Addr, gateway: Ipv4Addr, flags: u16) -> Self {
        Self {
            pad1: 0,
            destination: socket_address(destination),
            gateway: socket_address(gateway),
            mask: socket_address(mask),
            flags,
            pad2: [0; 3],
            pad3: [0; 2],
            metric: 0,
            pad4: [0; 3],
            device: 0,
            mtu: 0,
            window: 0,
            round_trip: 0,
        }
    }
}

fn request_route(socket: BorrowedFd<'_>, entry: &RouteEntry) -> Result<(), Errno> {
    // SAFETY: the entry is fully initialised, has the kernel's layout (a test holds its size), outlives the
    // call, and the kernel only reads it. Its only pointer is null or a terminated name that the one
    // caller who sets it keeps alive; a wrong one would be EFAULT, not a stray write.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCADDRT as _, entry) }).map(drop)
}

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
        assert_eq!(size_of::<RouteEntry>(), 120);
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_not_taken() {
        assert_eq!(inherited(1_000_000).unwrap_err(), Errno::EBADF);
    }
}
