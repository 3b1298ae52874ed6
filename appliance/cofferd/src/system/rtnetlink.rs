//! The few words of rtnetlink(7) with which interfaces are made: bridges, and pairs of virtual interfaces that join them or two
//! namespaces; and the route by which every address is this machine's.
//!
//! One request at a time, each acknowledged by the kernel before the next. It acts in the network namespace in which the
//! socket was opened.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// Making an interface takes microseconds, and longer while the kernel takes a namespace with interfaces apart.
const PATIENCE_SECONDS: i64 = 10;

// include/uapi/linux/{netlink,rtnetlink,if_link,veth}.h
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWROUTE: u16 = 24;
/// NLM_F_REQUEST, NLM_F_ACK.
const REQUEST: u16 = 0x1 | 0x4;
/// NLM_F_EXCL, NLM_F_CREATE: it must not be there yet.
const CREATE: u16 = 0x200 | 0x400;
const NLMSG_ERROR: u16 = 2;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = 1;
const RTA_OIF: u16 = 4;
/// AF_INET; prefixes of no length, so every address; RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_HOST, RTN_LOCAL (`struct rtmsg`).
const EVERY_ADDRESS_IS_LOCAL: [u8; 8] = [2, 0, 0, 0, 254, 4, 254, 2];
/// The loopback's index in every network namespace (LOOPBACK_IFINDEX).
const LOOPBACK: u32 = 1;

/// A socket to the kernel's routing part.
#[derive(Debug)]
pub(crate) struct Rtnetlink(OwnedFd);

/// A pair of virtual interfaces of which one end is here and the other in somebody's namespace.
#[derive(Debug)]
pub(crate) struct Pair<'a> {
    /// What the end here is called.
    pub(crate) outer: &'a str,
    /// What that end is: at the bridge with this index, or nobody's and with this hardware address.
    pub(crate) end: End,
    /// What the other end is called.
    pub(crate) inner: &'a str,
    /// Where it is.
    pub(crate) namespace: BorrowedFd<'a>,
    /// Its hardware address, which its neighbours know.
    pub(crate) hardware: [u8; 6],
}

/// See [`Pair::end`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    /// At a bridge.
    Bridge(u32),
    /// By itself.
    Alone([u8; 6]),
}

impl Rtnetlink {
    /// Opens the socket.
    ///
    /// # Errors
    ///
    /// What socket(2) says.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
        Ok(Self(socket))
    }

    /// Makes a bridge with this index, and brings it up.
    ///
    /// # Errors
    ///
    /// The name or the index is taken; the kernel has no bridges.
    pub(crate) fn add_bridge(&self, index: u32, name: &str) -> io::Result<()> {
        let mut body = link(index, true);
        attribute(&mut body, IFLA_IFNAME, &text(name));
        attribute(&mut body, IFLA_LINKINFO, &kind("bridge", None));
        self.ask(RTM_NEWLINK, CREATE, &body)
    }

    /// Makes every address that no other route covers one of this machine: packets to it end here, whoever sends them (route type
    /// `local`, over the loopback, which has to be up).
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub(crate) fn take_every_address(&self) -> io::Result<()> {
        let mut body = EVERY_ADDRESS_IS_LOCAL.to_vec();
        // rtm_flags.
        body.extend_from_slice(&0_u32.to_ne_bytes());
        attribute(&mut body, RTA_OIF, &LOOPBACK.to_ne_bytes());
        self.ask(RTM_NEWROUTE, CREATE, &body)
    }

    /// Makes a pair; the end here is up, the other is its new owner's to bring up.
    ///
    /// # Errors
    ///
    /// A name is taken; the descriptor is no network namespace; the kernel has no virtual interfaces.
    pub(crate) fn add_pair(&self, pair: &Pair<'_>) -> io::Result<()> {
        let namespace = u32::try_from(pair.namespace.as_raw_fd()).map_err(|_| Errno::EBADF)?;
        let mut peer = link(0, false);
        attribute(&mut peer, IFLA_IFNAME, &text(pair.inner));
        attribute(&mut peer, IFLA_ADDRESS, &pair.hardware);
        attribute(&mut peer, IFLA_NET_NS_FD, &namespace.to_ne_bytes());
        let mut data = Vec::new();
        attribute(&mut data, VETH_INFO_PEER, &peer);
        let mut body = link(0, true);
        attribute(&mut body, IFLA_IFNAME, &text(pair.outer));
        match pair.end {
            End::Bridge(index) => attribute(&mut body, IFLA_MASTER, &index.to_ne_bytes()),
            End::Alone(hardware) => attribute(&mut body, IFLA_ADDRESS, &hardware),
        }
        attribute(&mut body, IFLA_LINKINFO, &kind("veth", Some(&data)));
        self.ask(RTM_NEWLINK, CREATE, &body)
    }

    /// Removes an interface, and the other end of its pair with it. One that is not there is no error.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        let mut body = link(0, false);
        attribute(&mut body, IFLA_IFNAME, &text(name));
        match self.ask(RTM_DELLINK, 0, &body) {
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(()),
            other => other,
        }
    }

    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let message = request(kind, flags, body);
        sendto(self.0.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        // An error repeats the request; the whole of both is some 300 bytes.
        let mut answer = [0_u8; 4096];
        let count = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        match acknowledged(answer.get(..count).unwrap_or_default()) {
            Some(0) => Ok(()),
            Some(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    // The header has 16 bytes.
    let length = u32::try_from(body.len().saturating_add(16)).unwrap_or_default();
    let mut message = length.to_ne_bytes().to_vec();
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
    // Sequence number 1; port 0, the kernel's to fill in.
    message.extend_from_slice(&1_u32.to_ne_bytes());
    message.extend_from_slice(&0_u32.to_ne_bytes());
    message.extend_from_slice(body);
    message
}

/// `struct ifinfomsg`: family, type, index (0 is the kernel's to choose), flags, and which flags are meant.
fn link(index: u32, up: bool) -> Vec<u8> {
    let up = if up { IFF_UP } else { 0 };
    [0, index, up, up].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn kind(name: &str, data: Option<&[u8]>) -> Vec<u8> {
    let mut info = Vec::new();
    attribute(&mut info, IFLA_INFO_KIND, name.as_bytes());
    if let Some(data) = data {
        attribute(&mut info, IFLA_INFO_DATA, data);
    }
    info
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
        let request = request(RTM_NEWLINK, CREATE, &link(7, true));
        assert_eq!(request.len(), 32);
        assert_eq!(u32::from_ne_bytes(request[..4].try_into().unwrap()), 32);
        assert_eq!(request[20..], [7, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
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
