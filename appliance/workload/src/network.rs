//! A service's network: a loopback of its own, and a wire to its shim when it depends on others.
//!
//! There is no way out of it but the shim. A service that depends on others is in a network namespace apart from
//! its shim's, joined by a pair of virtual interfaces: the shim listens at its end under one address for each
//! dependency. In one shared namespace it could not, because a program that listens on every address of a port takes
//! it on all of them, and services like to use the same port. Nothing is forwarded; the two ends are all there is.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use crate::sys;

/// The shim's end of the wire, and the service's.
const OUTER: &str = "shim";
/// See [`OUTER`]: what a program expects an interface to be called.
const INNER: &str = "eth0";
/// The service's own address on the wire.
const OWN: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 254);
/// Link-local (RFC 3927): never routed, and no registry or operator uses it for anything else.
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 0, 0);

/// The network namespaces of a service.
#[derive(Debug)]
pub struct Network {
    /// The shim's.
    home: File,
    /// The service's, when it is another.
    inner: Option<File>,
}

impl Network {
    /// Leaves the network that the caller is in for good and makes the service's. `dependencies` are the addresses under which
    /// it sees the services that it depends on: link-local ones, each another, none of them its own end's (169.254.1.254).
    ///
    /// # Errors
    ///
    /// The kernel refuses, or has no virtual interfaces (module veth).
    pub fn create(dependencies: &[Ipv4Addr]) -> io::Result<Self> {
        let (home, _) = namespace()?;
        if dependencies.is_empty() {
            return Ok(Self { home, inner: None });
        }
        let (inner, inside) = namespace()?;
        setns(&home, CloneFlags::CLONE_NEWNET)?;
        wire(&inner)?;
        let outside = UdpSocket::bind("0.0.0.0:0")?;
        for (index, address) in dependencies.iter().enumerate() {
            // Further addresses of one interface have names of their own (netdevice(7), aliases).
            let alias = format!("{OUTER}:{index}");
            sys::set_interface_address(outside.as_fd(), &alias, *address)?;
            sys::set_interface_mask(outside.as_fd(), &alias, MASK)?;
        }
        sys::interface_up(outside.as_fd(), OUTER)?;
        sys::set_interface_address(inside.as_fd(), INNER, OWN)?;
        sys::set_interface_mask(inside.as_fd(), INNER, MASK)?;
        sys::interface_up(inside.as_fd(), INNER)?;
        Ok(Self { home, inner: Some(inner) })
    }

    /// For tests: the network that the caller is in, for shim and service alike.
    #[cfg(test)]
    pub(crate) fn here() -> io::Result<Self> {
        Ok(Self { home: File::open(SELF)?, inner: None })
    }

    /// Makes the calling thread's next sockets and children the service's.
    ///
    /// # Errors
    ///
    /// setns(2) refuses.
    pub(crate) fn enter(&self) -> io::Result<()> {
        self.inner.iter().try_for_each(|inner| Ok(setns(inner, CloneFlags::CLONE_NEWNET)?))
    }

    /// Makes them the shim's again.
    ///
    /// # Errors
    ///
    /// setns(2) refuses; the caller must then end, being where it should not be.
    pub(crate) fn leave(&self) -> io::Result<()> {
        if self.inner.is_some() { Ok(setns(&self.home, CloneFlags::CLONE_NEWNET)?) } else { Ok(()) }
    }
}

const SELF: &str = "/proc/self/ns/net";

/// Enters a new namespace with its loopback up. Gives it, and a socket in it, which stays in it.
fn namespace() -> io::Result<(File, UdpSocket)> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    sys::interface_up(socket.as_fd(), "lo")?;
    Ok((File::open(SELF)?, socket))
}

// include/uapi/linux/{netlink,rtnetlink,if_link,veth}.h
const RTM_NEWLINK: u16 = 16;
/// NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE.
const FLAGS: u16 = 0x1 | 0x4 | 0x200 | 0x400;
const NLMSG_ERROR: u16 = 2;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
/// `struct ifinfomsg`, all zero: nothing is asked beyond the attributes.
const LINK: [u8; 16] = [0; 16];

/// Makes the pair of interfaces, one end here and one in `inner` (rtnetlink(7)).
fn wire(inner: &File) -> io::Result<()> {
    let route =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    let descriptor = u32::try_from(inner.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    sendto(route.as_raw_fd(), &request(descriptor), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0_u8; 4096];
    let count = recv(route.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    match acknowledged(answer.get(..count).unwrap_or_default()) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn request(peer: u32) -> Vec<u8> {
    let mut data = LINK.to_vec();
    attribute(&mut data, IFLA_IFNAME, &text(INNER));
    attribute(&mut data, IFLA_NET_NS_FD, &peer.to_ne_bytes());
    let mut inner = Vec::new();
    attribute(&mut inner, VETH_INFO_PEER, &data);
    let mut info = Vec::new();
    attribute(&mut info, IFLA_INFO_KIND, b"veth");
    attribute(&mut info, IFLA_INFO_DATA, &inner);
    let mut body = LINK.to_vec();
    attribute(&mut body, IFLA_IFNAME, &text(OUTER));
    attribute(&mut body, IFLA_LINKINFO, &info);
    // The header has 16 bytes; the whole message some 120.
    let length = u32::try_from(body.len().saturating_add(16)).unwrap_or_default();
    let mut message = length.to_ne_bytes().to_vec();
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&FLAGS.to_ne_bytes());
    // Sequence number 1; port 0, the kernel's to fill in.
    message.extend_from_slice(&1_u32.to_ne_bytes());
    message.extend_from_slice(&0_u32.to_ne_bytes());
    message.extend_from_slice(&body);
    message
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

/// Appends length, type and value, padded to four bytes (the length counts no padding).
fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len().saturating_add(4)).unwrap_or_default();
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The error of an acknowledgement: 0, or a negative errno.
fn acknowledged(message: &[u8]) -> Option<i32> {
    let kind: [u8; 2] = message.get(4..6)?.try_into().ok()?;
    let error: [u8; 4] = message.get(16..20)?.try_into().ok()?;
    (u16::from_ne_bytes(kind) == NLMSG_ERROR).then(|| i32::from_ne_bytes(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_counted() {
        let mut message = Vec::new();
        attribute(&mut message, 3, b"lo\0");
        assert_eq!(message, [7, 0, 3, 0, b'l', b'o', 0, 0]);
        let request = request(9);
        assert_eq!(request.len() % 4, 0);
        assert_eq!(u32::from_ne_bytes(request[..4].try_into().unwrap()) as usize, request.len());
    }

    #[test]
    fn an_answer_is_an_acknowledgement_or_nothing() {
        let mut answer = vec![0_u8; 36];
        answer[4] = 2;
        assert_eq!(acknowledged(&answer), Some(0));
        answer[16..20].copy_from_slice(&(-95_i32).to_ne_bytes());
        assert_eq!(acknowledged(&answer), Some(-95));
        assert_eq!(acknowledged(&answer[..18]), None);
        answer[4] = 16;
        assert_eq!(acknowledged(&answer), None);
    }
}
