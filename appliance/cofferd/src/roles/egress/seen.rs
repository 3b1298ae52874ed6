//! What a gate's two sockets see: how connections to ports begin that nobody listens at, and datagrams. The kernel has refused them
//! already; here they are only read and counted.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;

use crate::system::sys;

/// Packets that are read before others get their turn.
const BATCH: usize = 64;
/// And the pause then: a service that sends without end is counted up to some thousand a second, and costs no more.
const PAUSE: Duration = Duration::from_millis(50);
/// Of a packet: both headers.
const HEAD: usize = 64;

/// Where a packet went.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) address: Ipv4Addr,
    pub(super) port: u16,
}

/// Calls `note` for what the socket sees, until the task ends or the socket breaks.
pub(super) async fn watch(socket: OwnedFd, note: impl Fn(Seen)) {
    let Ok(socket) = sys::watch(socket) else { return };
    loop {
        for _ in 0..BATCH {
            let mut packet = [0; HEAD];
            let received = socket.async_io(Interest::READABLE, |socket| {
                Ok(recv(socket.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT)?)
            });
            let Ok(count) = received.await else { return };
            if let Some(seen) = packet.get(..count).and_then(read) {
                note(seen);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Destination and port of an IPv4 packet with TCP or UDP; not of a later fragment.
fn read(packet: &[u8]) -> Option<Seen> {
    let first = *packet.first()?;
    let header = usize::from(first & 15).checked_mul(4).filter(|length| *length >= 20)?;
    let fragment = u16::from_be_bytes(*packet.get(6..)?.first_chunk()?) & 0x1fff;
    if first >> 4 != 4 || fragment != 0 {
        return None;
    }
    let address: [u8; 4] = *packet.get(16..)?.first_chunk()?;
    let port = packet.get(header.checked_add(2)?..)?.first_chunk()?;
    Some(Seen { address: address.into(), port: u16::from_be_bytes(*port) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> Vec<u8> {
        let mut packet = vec![0x46, 0, 0, 44, 0, 0, 0x40, 0, 64, 6, 0, 0, 198, 19, 255, 254, 203, 0, 113, 7];
        packet.extend_from_slice(&[1, 1, 1, 1]);
        packet.extend_from_slice(&[0x80, 1, 0x1f, 0x90]);
        packet
    }

    #[test]
    fn where_a_packet_went_is_read_behind_options_and_not_of_a_fragment() {
        let seen = Seen { address: Ipv4Addr::new(203, 0, 113, 7), port: 8080 };
        assert_eq!(read(&packet()), Some(seen));
        let changed = |at: usize, to: u8| {
            let mut packet = packet();
            packet[at] = to;
            read(&packet)
        };
        assert_eq!(changed(0, 0x66), None);
        assert_eq!(changed(0, 0x44), None);
        assert_eq!(changed(0, 0x4f), None);
        assert_eq!(changed(7, 1), None);
        assert_eq!(read(&packet()[..26]), None);
        assert_eq!(read(&[]), None);
    }
}
