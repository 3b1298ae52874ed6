//! Connecting to a name: looked up, checked and dialled in one step, so that no answer of the DNS comes between.
//!
//! Addresses that lead back into the appliance, into its network or to the cloud's own services are never connected to, whatever the DNS
//! says. IPv4 only: what the appliance has, and what no mapped address can hide behind.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use cofferdam_protocol::status::DeniedWhy;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::lookup::{Found, Resolvers};
use crate::system::gate::BUFFER;

/// For one address.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Addresses that are tried.
const MAX_TRIED: usize = 4;

/// Networks that nothing outside is in, as address and length of the prefix. IANA's registry of special-purpose addresses
/// (RFC 6890), and where clouds have services for their machines.
const NEVER: [(Ipv4Addr, u32); 14] = [
    // This network; private (RFC 1918), shared (RFC 6598: carriers, and metadata at 100.100.100.200).
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    // This machine; the link, with metadata at 169.254.169.254.
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    // Of protocols, with metadata at 192.0.0.192; relays to IPv6; between test machines, where the gates' own addresses are.
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    // Azure's services for its machines, at a public address.
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    // Multicast; reserved, and broadcast.
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
    (Ipv4Addr::new(255, 255, 255, 255), 32),
];

/// Whether an address can be somebody's outside.
pub(super) fn is_outside(address: Ipv4Addr) -> bool {
    let bits = u32::from(address);
    NEVER.iter().all(|(network, length)| (bits ^ u32::from(*network)).leading_zeros() < *length)
}

/// How names are reached.
#[derive(Debug)]
pub(super) struct Dialer {
    resolvers: Resolvers,
    permitted: fn(Ipv4Addr) -> bool,
}

impl Dialer {
    /// With these resolvers, and addresses that are [permitted](is_outside).
    pub(super) fn new(resolvers: Resolvers, permitted: fn(Ipv4Addr) -> bool) -> Self {
        Self { resolvers, permitted }
    }

    /// Looks a name up.
    ///
    /// # Errors
    ///
    /// [`DeniedWhy::Unresolved`].
    pub(super) async fn look_up(&self, name: &str) -> Result<Found, DeniedWhy> {
        self.resolvers.addresses(name).await.map_err(|_| DeniedWhy::Unresolved)
    }

    /// Connects to one of these addresses that may be connected to.
    ///
    /// # Errors
    ///
    /// [`DeniedWhy::Private`] when there is none, [`DeniedWhy::Unreachable`] when none answers.
    pub(super) async fn connect(&self, addresses: &[Ipv4Addr], port: u16) -> Result<TcpStream, DeniedWhy> {
        let mut why = DeniedWhy::Private;
        let permitted = addresses.iter().filter(|address| (self.permitted)(**address));
        for address in permitted.take(MAX_TRIED) {
            match timeout(PATIENCE, dial((*address, port).into())).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(_)) | Err(_) => why = DeniedWhy::Unreachable,
            }
        }
        Err(why)
    }
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_nodelay(true)?;
    // As of the service's own connection: what one side does not read is not read from the other either.
    let buffer = u32::try_from(BUFFER).unwrap_or(u32::MAX);
    socket.set_send_buffer_size(buffer)?;
    socket.set_recv_buffer_size(buffer)?;
    socket.connect(address).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_inside_are_never_connected_to() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.100.100.200",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.0.1",
            "168.63.129.16",
            "169.254.169.254",
            "169.254.170.2",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.254",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!is_outside(address.parse().unwrap()), "{address}");
        }
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.0.0.1",
            "128.0.0.1",
            "168.63.129.15",
            "168.63.129.17",
            "169.253.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "192.167.0.1",
            "198.17.0.1",
            "198.20.0.1",
            "203.0.113.1",
            "223.255.255.255",
        ] {
            assert!(is_outside(address.parse().unwrap()), "{address}");
        }
    }

    #[tokio::test]
    async fn of_several_addresses_only_those_outside_are_tried() {
        let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dialer = Dialer::new(Resolvers::new("/nonexistent"), |address| address != Ipv4Addr::LOCALHOST);
        let (inside, outside) = (Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2));
        let nobody = Ipv4Addr::new(127, 0, 0, 3);
        assert_eq!(dialer.connect(&[inside], port).await.unwrap_err(), DeniedWhy::Private);
        assert_eq!(dialer.connect(&[inside, nobody], port).await.unwrap_err(), DeniedWhy::Unreachable);
        let stream = dialer.connect(&[inside, nobody, outside], port).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), (outside, port).into());
        assert_eq!(dialer.look_up("api.example.org").await.unwrap_err(), DeniedWhy::Unresolved);
    }
}
