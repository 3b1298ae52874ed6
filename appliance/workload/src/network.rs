//! A service's network: a namespace of its own, in which its shim is too.
//!
//! There is a loopback, and one interface for each network of the service, which a process with more rights puts in; there
//! is no route but to these networks. Who is a member of one is decided before anything runs, so nobody asks who has an
//! address (ARP): the table of neighbours is written once. The kernel has one such table for the whole machine, and a
//! workload that asks for address after address would fill it for everybody.
//!
//! The shim's only listeners in it are the [`resolver`](crate::resolver)'s. It makes no abstract Unix socket, which the
//! workload could reach as well.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::sched::{CloneFlags, unshare};

use crate::sys;

/// Of the calling thread, which shows the namespace that it is in.
const SELF: &str = "/proc/thread-self/ns/net";
/// A network has a /16.
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 0, 0);

/// Settings of the namespace below /proc/sys/net: name, value, and whether a kernel without it is accepted.
const SETTINGS: [(&str, &str, bool); 4] = [
    // Any user of the service may listen at any port of it.
    ("ipv4/ip_unprivileged_port_start", "0", false),
    // A service with two networks is no way from one to the other: it passes nothing on, and takes a packet only from where
    // it would answer it to.
    ("ipv4/ip_forward", "0", false),
    ("ipv4/conf/all/rp_filter", "1", false),
    // Of the interfaces that are put in. The loopback keeps ::1, where programs listen.
    ("ipv6/conf/default/disable_ipv6", "1", true),
];

/// The network namespace of a service.
#[derive(Debug)]
pub struct Network(File);

impl Network {
    /// Leaves the network that the calling thread is in for good and makes the service's.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn create() -> io::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        for (name, value, optional) in SETTINGS {
            match fs::write(Path::new("/proc/sys/net").join(name), value) {
                Err(error) if optional && error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        sys::interface_up(socket()?.as_fd(), "lo")?;
        Ok(Self(File::open(SELF)?))
    }

    /// The namespace, for whoever puts interfaces into it.
    pub fn namespace(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Gives the interface `eth{index}` of the calling thread's network its address, brings it up, and makes the other members of
/// the network its only neighbours.
///
/// # Errors
///
/// It is not there, or the caller may not.
pub fn configure(index: usize, address: Ipv4Addr, members: &[Ipv4Addr]) -> io::Result<()> {
    let (socket, name) = (socket()?, interface(index));
    sys::set_interface_address(socket.as_fd(), &name, address)?;
    sys::set_interface_mask(socket.as_fd(), &name, MASK)?;
    // Changing this flag forgets all neighbours, so it comes first.
    sys::interface_up_without_arp(socket.as_fd(), &name)?;
    for member in members {
        sys::set_neighbour(socket.as_fd(), &name, *member, hardware_address(*member))?;
    }
    Ok(())
}

/// The hardware address of whoever has this address: locally administered (the second bit), and different for different
/// addresses.
pub fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [2, 0, a, b, c, d]
}

/// What the interface of a service's network is called, by the network's place in the service's list.
pub fn interface(index: usize) -> String {
    format!("eth{index}")
}

/// Interfaces are set up through a socket of whatever kind (netdevice(7)).
fn socket() -> io::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_of_one_interface_and_differ_as_addresses_do() {
        let of = |last| hardware_address(Ipv4Addr::new(10, 1, 1, last));
        assert_eq!(of(7), [2, 0, 10, 1, 1, 7]);
        assert_eq!(of(7)[0] & 3, 2, "local, and of one interface");
        assert_ne!(of(7), of(8));
    }
}
