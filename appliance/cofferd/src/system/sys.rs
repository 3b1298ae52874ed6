//! The only unsafe code of `cofferd`: system calls that neither the standard library, nix nor
//! [`cofferdam_workload::sys`] offers safely.
//!
//! Each function is as small as the call, checks its result, and says why it is sound. Everything
//! above this file is safe Rust.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::SockaddrIn;

mod clock;
mod mapper;
mod secret;

pub(crate) use self::clock::{slew_clock, step_clock};
pub(crate) use self::mapper::{MAPPER_HEADER, mapper_request, resize_ext4};
pub use self::secret::{SecretKeys, SecretMemory};
pub use cofferdam_workload::sys::{
    OwnFlags, attach, close_on_exec_from, default_signals, detached_copy, duplicate, fork, inherited,
    interface_up, leave, map_ids_of, place, receive, receive_many, set_interface_address, set_interface_mask,
    set_interface_mtu, watch,
};

/// The user namespace that a namespace belongs to (ioctl_ns(2)): whoever has rights there has them over it.
///
/// # Errors
///
/// `ENOTTY` when the descriptor is no namespace's, `EPERM` when it belongs to one that the caller is below.
pub(crate) fn owning_user_namespace(namespace: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: the descriptor is borrowed, hence open. The request has no argument. What answers it with success is a
    // namespace, since no other kind of file knows the number; it makes a descriptor that nobody else owns.
    unsafe {
        let made = Errno::result(libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS as _))?;
        Ok(OwnedFd::from_raw_fd(made))
    }
}

// include/uapi/linux/nsfs.h: _IO(0xb7, 1).
const NS_GET_USERNS: libc::c_ulong = 0xb701;

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
    let name = CString::new(interface).map_err(|_| Errno::EINVAL)?;
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

// include/uapi/linux/sockios.h; the libc crate does not name it.
const SIOCADDRT: libc::c_ulong = 0x890B;
// include/uapi/linux/route.h.
const RTF_UP: u16 = 0x0001;
const RTF_GATEWAY: u16 = 0x0002;
const RTF_HOST: u16 = 0x0004;

fn socket_address(address: Ipv4Addr) -> libc::sockaddr_in {
    *SockaddrIn::from(SocketAddrV4::new(address, 0)).as_ref()
}

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
    fn a_route_has_the_kernels_size() {
        assert_eq!(size_of::<RouteEntry>(), 120);
    }
}
