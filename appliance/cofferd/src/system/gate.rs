//! A service's way to the role `egress`: a network namespace beside the service's own, in which every address is local.
//!
//! # Duties
//!
//! - A wire leads from the service's namespace to the gate's and is the service's default route. Whatever the service sends to an
//!   address that no member of its networks has, arrives there and goes no further: nothing is passed on, and there is no other wire.
//! - In it are a listener for each port that the service may connect to, and two sockets that see how connections begin and
//!   every datagram. The role `egress` is given these; the address that somebody dialled is the accepted connection's own.
//! - A port without a listener is refused by the kernel at once (RST, or ICMP), whatever the address.
//!
//! # Prohibitions
//!
//! - Nothing of the workload is ever in the gate's namespace: no program there takes a port, and the service keeps all of its own.
//! - IPv6 has no address here, so the service has no route for it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use cofferdam_workload::network::{Network, hardware_address};
use cofferdam_workload::sys as workload_sys;
use nix::libc::{self, sock_filter};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrIn, bind, listen, setsockopt, socket,
    sockopt,
};

use super::rtnetlink::{End, Pair, Rtnetlink};
use super::sys;

/// What the service calls its end of the wire.
pub(crate) const INTERFACE: &str = "egress";
/// What the other end is called.
const OUTER: &str = "service";
/// The wire's own addresses, the gate's and the service's: in 198.18.0.0/15, which is nobody's (RFC 2544), above those that names are
/// given.
const GATE: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 253);
const SERVICE: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 254);
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 252);
/// Connections that wait to be accepted at one port. The role accepts at once; while it is not there, this is all that piles up.
const BACKLOG: i32 = 32;
/// Of each accepted connection in each direction, in bytes; the kernel takes it twice.
pub(crate) const BUFFER: usize = 128 * 1024;
/// What is kept of what the two sockets saw, in bytes: what comes faster than it is counted is not counted.
const SEEN: usize = 64 * 1024;
/// Below /proc/sys/net, and whether a kernel without it is accepted.
const SETTINGS: [(&str, &str, bool); 3] = [
    ("ipv4/ip_forward", "0", false),
    ("ipv6/conf/default/disable_ipv6", "1", true),
    ("ipv6/conf/all/disable_ipv6", "1", true),
];

/// A namespace with the sockets in it.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Interfaces are set up through it.
    control: UdpSocket,
    kernel: Rtnetlink,
    /// In the order of [`cofferdam_protocol::egress::OPEN`].
    sockets: Vec<OwnedFd>,
}

impl Gate {
    /// Makes a gate for these ports. The calling thread is in its namespace afterwards, until it makes its service's.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub(crate) fn create(ports: &BTreeSet<u16>) -> io::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        for (name, value, optional) in SETTINGS {
            match fs::write(Path::new("/proc/sys/net").join(name), value) {
                Err(error) if optional && error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        let (control, kernel) = (UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?, Rtnetlink::open()?);
        workload_sys::interface_up(control.as_fd(), "lo")?;
        kernel.take_every_address()?;
        let mut sockets = vec![seeing(SockProtocol::Tcp)?, seeing(SockProtocol::Udp)?];
        for port in ports {
            sockets.push(listener(*port)?);
        }
        Ok(Self { control, kernel, sockets })
    }

    /// Lays the wire to the service's network, in which the calling thread is by now.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub(crate) fn join(&self, network: &Network) -> io::Result<()> {
        let (gate, service) = (hardware_address(GATE), hardware_address(SERVICE));
        self.kernel.add_pair(&Pair {
            outer: OUTER,
            end: End::Alone(gate),
            inner: INTERFACE,
            namespace: network.namespace(),
            hardware: service,
        })?;
        end(self.control.as_fd(), OUTER, (GATE, MASK), (SERVICE, service))?;
        let own = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        end(own.as_fd(), INTERFACE, (SERVICE, MASK), (GATE, gate))?;
        Ok(sys::add_default_route(own.as_fd(), GATE)?)
    }

    /// The sockets, for the role.
    pub(crate) fn sockets(&self) -> Vec<BorrowedFd<'_>> {
        self.sockets.iter().map(AsFd::as_fd).collect()
    }
}

/// Sets up one end of the wire. Whoever is at the other is written down: nobody asks (ARP).
fn end(
    control: BorrowedFd<'_>,
    name: &str,
    (address, mask): (Ipv4Addr, Ipv4Addr),
    (other, hardware): (Ipv4Addr, [u8; 6]),
) -> io::Result<()> {
    workload_sys::set_interface_address(control, name, address)?;
    workload_sys::set_interface_mask(control, name, mask)?;
    workload_sys::interface_up_without_arp(control, name)?;
    Ok(workload_sys::set_neighbour(control, name, other, hardware)?)
}

fn listener(port: u16) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    // Accepted connections inherit them.
    setsockopt(&listener, sockopt::SndBuf, &BUFFER)?;
    setsockopt(&listener, sockopt::RcvBuf, &BUFFER)?;
    bind(listener.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, port))?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}

/// A socket that is shown copies: of TCP the packets that begin a connection, of UDP all. Each with its IP header.
fn seeing(protocol: SockProtocol) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let seeing = socket(AddressFamily::Inet, SockType::Raw, flags, protocol)?;
    setsockopt(&seeing, sockopt::RcvBuf, &SEEN)?;
    if protocol == SockProtocol::Tcp {
        workload_sys::attach_filter(seeing.as_fd(), &BEGINNINGS)?;
    }
    Ok(seeing)
}

const fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    // The codes are below 2^16.
    sock_filter { code: code as u16, jt, jf, k }
}

/// Of packets with SYN and without ACK the first 64 bytes, of others nothing. A packet begins with its IP header, whose length is in
/// units of four bytes; the flags are the fourteenth byte of the TCP header.
const BEGINNINGS: [sock_filter; 6] = [
    instruction(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 0),
    instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_IND, 0, 0, 13),
    instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, 0x12),
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, 0x02),
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 64),
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
];
