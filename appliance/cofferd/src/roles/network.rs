//! The role `network`: obtains an IPv4 address by DHCP, keeps it, and tells the others.
//!
//! Its own process because PID 1 parses nothing that comes over a network. The protocol (RFC 2131: states, timers,
//! packets) is mozim's; this file decides what of an answer is believed. The server is the host's, so
//! an answer can at most be wrong in ways that a host could be anyway: it names one address, one mask, one
//! gateway, a few resolvers and an MTU, each checked; static routes, names and boot files are not asked for.
//!
//! It writes `lease.json` and `resolv.conf` into its directory and nothing else.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use mozim::{DhcpV4Client, DhcpV4Config, DhcpV4Lease, DhcpV4State};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde::Serialize;

use crate::paths;
use crate::roles::Role;
use crate::system::{files, sys};

/// The options that are asked for (RFC 2132): mask, router, resolvers, MTU. Not routes (121), which can be many and overlap.
const OPTIONS: [u8; 4] = [1, 3, 6, 26];
/// The network driver finds its device within milliseconds; emulation makes that a second.
const INTERFACE_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// After an error, before starting over: a host that answers nonsense does not keep the processor busy.
const RETRY: Duration = Duration::from_secs(2);
/// A shorter lease would have the client talk without end. Real servers give minutes to days.
const MIN_LEASE_SECONDS: u32 = 60;
/// What a resolver configuration can hold (resolv.conf(5), MAXNS).
const MAX_RESOLVERS: usize = 3;
/// IPv6's minimum, so that TLS never crawls in tiny packets; and the largest that virtio carries unfragmented.
const MTU: std::ops::RangeInclusive<u16> = 1280..=9216;

/// What is used of a lease, and what `lease.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Lease {
    interface: String,
    address: Ipv4Addr,
    prefix: u8,
    gateway: Option<Ipv4Addr>,
    resolvers: Vec<Ipv4Addr>,
    mtu: Option<u16>,
    server: Ipv4Addr,
    seconds: u32,
}

/// What is believed to be wrong with an answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum LeaseError {
    #[error("the address {0} is not one of a host")]
    Address(Ipv4Addr),
    #[error("the mask {0} is not a prefix of 8 to 32 bits")]
    Mask(Ipv4Addr),
    #[error("the gateway {0} is not the address of another host")]
    Gateway(Ipv4Addr),
    #[error("a lease of {0} s is too short")]
    Short(u32),
}

/// Runs the role until it is ended.
///
/// # Errors
///
/// It cannot be confined, or there is no network interface.
pub(crate) fn run(role: &Role) -> anyhow::Result<()> {
    role.confine().context("cannot confine the role")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let interface = find(Path::new("/sys/class/net"), INTERFACE_WITHIN)?;
    runtime.block_on(keep(&interface))
}

/// An interface as sysfs describes it.
#[derive(Debug, PartialEq, Eq)]
struct Interface {
    name: String,
    index: u32,
    mac: [u8; 6],
}

async fn keep(interface: &Interface) -> anyhow::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .context("cannot open a socket to configure the interface")?;
    sys::interface_up(socket.as_fd(), &interface.name).context("cannot bring the interface up")?;
    let mut client = client(interface).await?;
    let mut current: Option<Lease> = None;
    loop {
        let outcome = match client.run().await {
            Ok(DhcpV4State::Done(lease)) => {
                judge(&interface.name, &lease).map(Some).map_err(anyhow::Error::from)
            }
            // The last lease ran out without a renewal: its address is no longer ours.
            Ok(DhcpV4State::InitReboot) => Ok(None),
            Ok(_) => continue,
            Err(error) => Err(anyhow::anyhow!("{error}")),
        };
        let applied = outcome.and_then(|lease| {
            if lease != current {
                change(socket.as_fd(), &interface.name, current.as_ref(), lease.as_ref())?;
                current = lease;
            }
            Ok(())
        });
        if let Err(error) = applied {
            eprintln!("network: {error:#}");
            client.clean_up();
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn client(interface: &Interface) -> anyhow::Result<DhcpV4Client> {
    let mut config = DhcpV4Config::new(&interface.name);
    config.set_iface_index(interface.index);
    config.set_iface_mac_raw(&interface.mac).map_err(|error| anyhow::anyhow!("{error}"))?;
    config.use_mac_as_client_id().override_request_dhcp_opts(&OPTIONS);
    DhcpV4Client::init(config, None).await.map_err(|error| anyhow::anyhow!("cannot start DHCP: {error}"))
}

/// What of an answer is used. One wrong value refuses the whole: half an answer is none.
fn judge(interface: &str, lease: &DhcpV4Lease) -> Result<Lease, LeaseError> {
    let address = lease.yiaddr;
    if !is_host(address) {
        return Err(LeaseError::Address(address));
    }
    let mask = u32::from(lease.subnet_mask);
    let prefix = mask.leading_ones();
    if mask.count_ones() != prefix || prefix < 8 {
        return Err(LeaseError::Mask(lease.subnet_mask));
    }
    let gateway = lease.gateways.as_ref().and_then(|gateways| gateways.first().copied());
    if let Some(gateway) = gateway.filter(|gateway| !is_host(*gateway) || *gateway == address) {
        return Err(LeaseError::Gateway(gateway));
    }
    if lease.lease_time_sec < MIN_LEASE_SECONDS {
        return Err(LeaseError::Short(lease.lease_time_sec));
    }
    let resolvers = lease.dns_srvs.iter().flatten().copied();
    Ok(Lease {
        interface: interface.to_owned(),
        address,
        prefix: u8::try_from(prefix).unwrap_or(32),
        gateway,
        resolvers: resolvers.filter(|resolver| is_host(*resolver)).take(MAX_RESOLVERS).collect(),
        mtu: lease.mtu.filter(|mtu| MTU.contains(mtu)),
        server: lease.srv_id,
        seconds: lease.lease_time_sec,
    })
}

/// An address that one machine on a network can have.
fn is_host(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    // 0/8 is "this network" (RFC 1122), 240/4 is reserved and ends with the broadcast address.
    first != 0 && first < 240 && !address.is_loopback() && !address.is_multicast() && !address.is_link_local()
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0)
}

/// Moves the interface from one lease to the next, and says so in the files.
fn change(
    socket: std::os::fd::BorrowedFd<'_>,
    interface: &str,
    old: Option<&Lease>,
    new: Option<&Lease>,
) -> anyhow::Result<()> {
    let same_path =
        |a: &Lease, b: &Lease| (a.address, a.prefix, a.gateway) == (b.address, b.prefix, b.gateway);
    if !old.zip(new).is_some_and(|(old, new)| same_path(old, new)) {
        // Taking the address away takes its routes along.
        if old.is_some() {
            sys::set_interface_address(socket, interface, Ipv4Addr::UNSPECIFIED)
                .context("cannot remove the address")?;
        }
        if let Some(lease) = new {
            configure(socket, lease)?;
        }
    }
    match new {
        Some(lease) => tell(Path::new(paths::NETWORK_DIR), lease),
        None => {
            let _ = fs::remove_file(paths::NETWORK_LEASE);
            Ok(())
        }
    }
}

fn configure(socket: std::os::fd::BorrowedFd<'_>, lease: &Lease) -> anyhow::Result<()> {
    let interface = &lease.interface;
    sys::set_interface_address(socket, interface, lease.address).context("cannot set the address")?;
    let mask = mask(lease.prefix);
    sys::set_interface_mask(socket, interface, mask.into()).context("cannot set the mask")?;
    if let Some(mtu) = lease.mtu {
        sys::set_interface_mtu(socket, interface, mtu).context("cannot set the MTU")?;
    }
    if let Some(gateway) = lease.gateway {
        let near = u32::from(gateway) & mask == u32::from(lease.address) & mask;
        // Clouds hand out /32 with a gateway beyond it: reach that one over the link first.
        if !near {
            present(sys::add_link_route(socket, gateway, interface))
                .context("cannot set the route to the gateway")?;
        }
        present(sys::add_default_route(socket, gateway)).context("cannot set the default route")?;
    }
    Ok(())
}

/// A route that is there already is as good as one just made: this role may have been restarted.
fn present(outcome: Result<(), Errno>) -> Result<(), Errno> {
    outcome.or_else(|error| if error == Errno::EEXIST { Ok(()) } else { Err(error) })
}

/// Writes the files: the resolver's first, because the lease's says that everything is there.
fn tell(directory: &Path, lease: &Lease) -> anyhow::Result<()> {
    let resolvers: String =
        lease.resolvers.iter().map(|resolver| format!("nameserver {resolver}\n")).collect();
    files::replace(directory.join("resolv.conf"), resolvers.as_bytes())
        .context("cannot write resolv.conf")?;
    let json = serde_json::to_vec(lease).context("cannot encode the lease")?;
    files::replace(directory.join("lease.json"), &json).context("cannot write lease.json")
}

/// The Ethernet interface with the lowest index. Waits for one to appear.
fn find(class: &Path, limit: Duration) -> anyhow::Result<Interface> {
    let deadline = Instant::now() + limit;
    loop {
        let mut found = ethernets(class).context("cannot list the network interfaces")?;
        found.sort_by_key(|interface| interface.index);
        match found.into_iter().next() {
            Some(interface) => return Ok(interface),
            None if Instant::now() < deadline => std::thread::sleep(LOOK_EVERY),
            None => anyhow::bail!("no network interface"),
        }
    }
}

fn ethernets(class: &Path) -> std::io::Result<Vec<Interface>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(class)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let read = |file: &str| fs::read_to_string(class.join(&name).join(file)).unwrap_or_default();
        // ARPHRD_ETHER (include/uapi/linux/if_arp.h); the loopback is 772.
        let (kind, index, mac) = (read("type"), read("ifindex"), read("address"));
        let (Ok(index), Some(mac)) = (index.trim().parse(), parse_mac(mac.trim())) else { continue };
        if kind.trim() == "1" {
            found.push(Interface { name, index, mac });
        }
    }
    Ok(found)
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|pair| u8::from_str_radix(pair, 16).ok()).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> DhcpV4Lease {
        let mut lease = DhcpV4Lease::default();
        lease.yiaddr = Ipv4Addr::new(10, 0, 2, 15);
        lease.subnet_mask = Ipv4Addr::new(255, 255, 255, 0);
        lease.gateways = Some(vec![Ipv4Addr::new(10, 0, 2, 2), Ipv4Addr::new(10, 0, 2, 9)]);
        lease.dns_srvs = Some(vec![Ipv4Addr::new(10, 0, 2, 3)]);
        lease.srv_id = Ipv4Addr::new(10, 0, 2, 2);
        lease.lease_time_sec = 86_400;
        lease
    }

    #[test]
    fn an_ordinary_answer_is_used() {
        let lease = judge("eth0", &answer()).unwrap();
        assert_eq!(lease.prefix, 24);
        assert_eq!(lease.gateway, Some(Ipv4Addr::new(10, 0, 2, 2)));
        assert_eq!(lease.resolvers, [Ipv4Addr::new(10, 0, 2, 3)]);
        assert_eq!(lease.mtu, None);
    }

    #[test]
    fn a_hostile_answer_is_refused() {
        for address in
            ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "169.254.1.1", "255.255.255.255", "240.0.0.1"]
        {
            let address: Ipv4Addr = address.parse().unwrap();
            let mut lease = answer();
            lease.yiaddr = address;
            assert_eq!(judge("eth0", &lease), Err(LeaseError::Address(address)));
            let mut lease = answer();
            lease.gateways = Some(vec![address]);
            assert_eq!(judge("eth0", &lease), Err(LeaseError::Gateway(address)));
        }
        for mask in ["0.0.0.0", "255.0.255.0", "254.0.0.0", "0.0.0.255"] {
            let mut lease = answer();
            lease.subnet_mask = mask.parse().unwrap();
            assert!(matches!(judge("eth0", &lease), Err(LeaseError::Mask(_))), "{mask}");
        }
        let mut lease = answer();
        lease.gateways = Some(vec![lease.yiaddr]);
        assert!(matches!(judge("eth0", &lease), Err(LeaseError::Gateway(_))));
        let mut lease = answer();
        lease.lease_time_sec = 59;
        assert_eq!(judge("eth0", &lease), Err(LeaseError::Short(59)));
    }

    #[test]
    fn what_is_not_essential_is_left_out_when_it_is_odd() {
        let mut lease = answer();
        lease.gateways = None;
        lease.mtu = Some(68);
        let loopback = Ipv4Addr::LOCALHOST;
        lease.dns_srvs = Some([vec![loopback], vec![Ipv4Addr::new(9, 9, 9, 9); 50]].concat());
        let judged = judge("eth0", &lease).unwrap();
        assert_eq!((judged.gateway, judged.mtu), (None, None));
        assert_eq!(judged.resolvers, vec![Ipv4Addr::new(9, 9, 9, 9); MAX_RESOLVERS]);
        lease.mtu = Some(1460);
        assert_eq!(judge("eth0", &lease).unwrap().mtu, Some(1460));
    }

    #[test]
    fn masks_are_made_of_prefixes() {
        assert_eq!([mask(0), mask(8), mask(24), mask(32)], [0, 0xFF00_0000, 0xFFFF_FF00, u32::MAX]);
    }

    #[test]
    fn the_lease_is_told_in_two_files() {
        let directory = tempfile::tempdir().unwrap();
        tell(directory.path(), &judge("eth0", &answer()).unwrap()).unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(read("resolv.conf"), "nameserver 10.0.2.3\n");
        let json: serde_json::Value = serde_json::from_str(&read("lease.json")).unwrap();
        assert_eq!(json["address"], "10.0.2.15");
        assert_eq!(json["prefix"], 24);
    }

    #[test]
    fn the_lowest_ethernet_interface_is_chosen() {
        let root = tempfile::tempdir().unwrap();
        let add = |name: &str, kind: &str, index: &str, mac: &str| {
            let path = root.path().join(name);
            fs::create_dir(&path).unwrap();
            for (file, text) in [("type", kind), ("ifindex", index), ("address", mac)] {
                fs::write(path.join(file), format!("{text}\n")).unwrap();
            }
        };
        add("lo", "772", "1", "00:00:00:00:00:00");
        assert!(find(root.path(), Duration::ZERO).is_err());
        add("eth1", "1", "10", "52:54:00:00:00:02");
        add("eth0", "1", "9", "52:54:00:12:34:56");
        add("bad0", "1", "2", "52:54:00:12:34");
        let found = find(root.path(), Duration::ZERO).unwrap();
        assert_eq!(
            (found.name.as_str(), found.index, found.mac),
            ("eth0", 9, [0x52, 0x54, 0, 0x12, 0x34, 0x56])
        );
    }
}
