//! The role `network`: obtains an IPv4 address by DHCP, keeps it, and tells the others; or takes the one that the host has set.
//!
//! Its own process because PID 1 parses nothing that comes over a network. The protocol (RFC 2131: states, timers,
//! packets) is mozim's; this file decides what of an answer is believed. The server is the host's, so
//! an answer can at most be wrong in ways that a host could be anyway: it names one address, one mask, one
//! gateway, a few resolvers and an MTU, each checked; static routes, names and boot files are not asked for.
//!
//! Nothing that a network does ends it: it asks for as long as it takes, and says what is the matter.
//!
//! It writes `lease.json`, `resolv.conf` and `status.json` into its directory and nothing else.

mod heard;
mod interface;
mod report;

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context;
use cofferdam_protocol::network::{Ipv4Error, Ipv4Settings, MAX_RESOLVERS, MTU, is_host};
use mozim::{DhcpV4Client, DhcpV4Config, DhcpV4Lease, DhcpV4State};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use self::heard::HEARD;
use self::interface::Interface;
use self::report::Report;
use crate::paths;
use crate::roles::Role;
use crate::system::{files, sys};

/// The options that are asked for (RFC 2132): mask, router, resolvers, MTU. Not routes (121), which can be many and overlap.
const OPTIONS: [u8; 4] = [1, 3, 6, 26];
/// The network driver finds its device within milliseconds; emulation makes that a second.
const INTERFACE_WITHIN: Duration = Duration::from_secs(10);
/// A DHCP server answers within a second or two: after this long without an address it is said that none does.
const SAID_AFTER: Duration = Duration::from_secs(8);
/// After an error or a refusal, before starting over: a host that answers nonsense does not keep the processor busy.
const RETRY: Duration = Duration::from_secs(2);
/// A shorter lease would have the client talk without end. Real servers give minutes to days.
const MIN_LEASE_SECONDS: u32 = 60;

/// What is used of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lease {
    settings: Ipv4Settings,
    server: Ipv4Addr,
    seconds: u32,
}

/// What is believed to be wrong with an answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum LeaseError {
    #[error("the mask {0} is not a prefix")]
    Mask(Ipv4Addr),
    #[error(transparent)]
    Settings(#[from] Ipv4Error),
    #[error("a lease of {0} s is too short")]
    Short(u32),
}

/// What the client came to.
enum Step {
    /// It has a lease, a new one or the same for longer.
    Leased(Result<Lease, LeaseError>),
    /// The lease ran out, and no server has renewed it.
    RanOut,
    /// A server refuses the address (DHCPNAK).
    Refused,
    /// It is on its way.
    Further,
    /// It cannot go on as it is.
    Failed(String),
}

/// Runs the role until it is ended.
///
/// # Errors
///
/// It cannot be confined, there is no network interface, or the kernel refuses what is done to it.
pub(crate) fn run(role: &Role) -> anyhow::Result<()> {
    role.confine().context("cannot confine the role")?;
    HEARD.listen().map_err(|_| anyhow::anyhow!("somebody else listens to the DHCP client"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let mut report = Report::new(paths::NETWORK_STATUS.into());
    let settings = settings(Path::new(paths::NETWORK_SETTINGS))?;
    let interface = interface::find(Path::new("/sys/class/net"), INTERFACE_WITHIN)
        .inspect_err(|error| report.none(&format!("{error:#}")))?;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .context("cannot open a socket to configure the interface")?;
    sys::interface_up(socket.as_fd(), &interface.name).context("cannot bring the interface up")?;
    runtime.block_on(async {
        match settings {
            Some(settings) => {
                change(socket.as_fd(), &interface.name, None, Some(&settings))?;
                report.set_by_the_host(settings);
                std::future::pending().await
            }
            None => keep(socket.as_fd(), &interface, &mut report).await,
        }
    })
}

/// The address that the host has set, which PID 1 has measured and checked.
fn settings(path: &Path) -> anyhow::Result<Option<Ipv4Settings>> {
    match files::read_bounded(path, 4096) {
        Ok(bytes) => Ok(Some(Ipv4Settings::parse(&bytes).context("PID 1 has written no settings")?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("cannot read the address that the host has set"),
    }
}

async fn keep(socket: BorrowedFd<'_>, interface: &Interface, report: &mut Report) -> anyhow::Result<()> {
    let mut client = client(interface).await?;
    let mut current: Option<Ipv4Settings> = None;
    loop {
        let (lease, why) = match step(&mut client, current.is_none(), report).await {
            Step::Further => continue,
            Step::Leased(Ok(lease)) => (Some(lease), String::new()),
            Step::Leased(Err(error)) => (None, format!("the DHCP server's answer is not used: {error}")),
            Step::RanOut => (None, "the lease ran out and was not renewed".to_owned()),
            Step::Refused => (None, "the DHCP server refuses the address (NAK)".to_owned()),
            Step::Failed(why) => (None, why),
        };
        let settings = lease.as_ref().map(|lease| lease.settings.clone());
        if settings != current {
            change(socket, &interface.name, current.as_ref(), settings.as_ref())?;
            current = settings;
        }
        match lease {
            Some(lease) => report.leased(lease.settings, lease.server, lease.seconds),
            None => {
                report.none(&why);
                client.clean_up();
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Lets the client go one step on. While there is no address (`without`), what keeps it from one is said.
async fn step(client: &mut DhcpV4Client, without: bool, report: &mut Report) -> Step {
    let mut run = pin!(client.run());
    loop {
        tokio::select! {
            state = &mut run => return match state {
                Ok(DhcpV4State::Done(lease)) => Step::Leased(judge(&lease)),
                Ok(DhcpV4State::InitReboot) => Step::RanOut,
                Ok(_) => Step::Further,
                Err(error) => Step::Failed(error.to_string()),
            },
            () = HEARD.refused() => return Step::Refused,
            () = tokio::time::sleep(SAID_AFTER), if without => {
                let heard = HEARD.take().map(|line| format!(" ({line})")).unwrap_or_default();
                report.none(&format!("no DHCP server gives an address{heard}"));
            }
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

/// What of an answer is used. One wrong value refuses the whole: half an answer is none. A resolver or an MTU that is odd is left out.
fn judge(lease: &DhcpV4Lease) -> Result<Lease, LeaseError> {
    let mask = u32::from(lease.subnet_mask);
    let prefix = mask.leading_ones();
    if mask.count_ones() != prefix {
        return Err(LeaseError::Mask(lease.subnet_mask));
    }
    let resolvers = lease.dns_srvs.iter().flatten().copied();
    let settings = Ipv4Settings {
        address: lease.yiaddr,
        prefix: u8::try_from(prefix).unwrap_or(32),
        gateway: lease.gateways.as_ref().and_then(|gateways| gateways.first().copied()),
        resolvers: resolvers.filter(|resolver| is_host(*resolver)).take(MAX_RESOLVERS).collect(),
        mtu: lease.mtu.filter(|mtu| MTU.contains(mtu)),
    };
    settings.check()?;
    if lease.lease_time_sec < MIN_LEASE_SECONDS {
        return Err(LeaseError::Short(lease.lease_time_sec));
    }
    Ok(Lease { settings, server: lease.srv_id, seconds: lease.lease_time_sec })
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0)
}

/// Moves the interface from one address to the next, and says so in the files.
fn change(
    socket: BorrowedFd<'_>,
    interface: &str,
    old: Option<&Ipv4Settings>,
    new: Option<&Ipv4Settings>,
) -> anyhow::Result<()> {
    let same_path = |a: &Ipv4Settings, b: &Ipv4Settings| {
        (a.address, a.prefix, a.gateway) == (b.address, b.prefix, b.gateway)
    };
    if !old.zip(new).is_some_and(|(old, new)| same_path(old, new)) {
        // Taking the address away takes its routes along.
        if old.is_some() {
            sys::set_interface_address(socket, interface, Ipv4Addr::UNSPECIFIED)
                .context("cannot remove the address")?;
        }
        if let Some(settings) = new {
            configure(socket, interface, settings)?;
        }
    }
    match new {
        Some(settings) => tell(Path::new(paths::NETWORK_DIR), settings),
        None => {
            let _ = fs::remove_file(paths::NETWORK_LEASE);
            Ok(())
        }
    }
}

fn configure(socket: BorrowedFd<'_>, interface: &str, settings: &Ipv4Settings) -> anyhow::Result<()> {
    sys::set_interface_address(socket, interface, settings.address).context("cannot set the address")?;
    let mask = mask(settings.prefix);
    sys::set_interface_mask(socket, interface, mask.into()).context("cannot set the mask")?;
    if let Some(mtu) = settings.mtu {
        sys::set_interface_mtu(socket, interface, mtu).context("cannot set the MTU")?;
    }
    if let Some(gateway) = settings.gateway {
        let near = u32::from(gateway) & mask == u32::from(settings.address) & mask;
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
fn tell(directory: &Path, settings: &Ipv4Settings) -> anyhow::Result<()> {
    let resolvers: String =
        settings.resolvers.iter().map(|resolver| format!("nameserver {resolver}\n")).collect();
    files::replace(directory.join("resolv.conf"), resolvers.as_bytes())
        .context("cannot write resolv.conf")?;
    let json = serde_json::to_vec(settings).context("cannot encode the lease")?;
    files::replace(directory.join("lease.json"), &json).context("cannot write lease.json")
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
        let Lease { settings: lease, server, seconds } = judge(&answer()).unwrap();
        assert_eq!((server, seconds), (Ipv4Addr::new(10, 0, 2, 2), 86_400));
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
            assert_eq!(judge(&lease), Err(Ipv4Error::Address(address).into()));
            let mut lease = answer();
            lease.gateways = Some(vec![address]);
            assert_eq!(judge(&lease), Err(Ipv4Error::Gateway(address).into()));
        }
        for mask in ["0.0.0.0", "255.0.255.0", "254.0.0.0", "0.0.0.255"] {
            let mut lease = answer();
            lease.subnet_mask = mask.parse().unwrap();
            let refused = judge(&lease).unwrap_err();
            assert!(
                matches!(refused, LeaseError::Mask(_) | LeaseError::Settings(Ipv4Error::Prefix(_))),
                "{mask}"
            );
        }
        let mut lease = answer();
        lease.gateways = Some(vec![lease.yiaddr]);
        assert_eq!(judge(&lease), Err(Ipv4Error::Gateway(lease.yiaddr).into()));
        let mut lease = answer();
        lease.lease_time_sec = 59;
        assert_eq!(judge(&lease), Err(LeaseError::Short(59)));
    }

    #[test]
    fn what_is_not_essential_is_left_out_when_it_is_odd() {
        let mut lease = answer();
        lease.gateways = None;
        lease.mtu = Some(68);
        let loopback = Ipv4Addr::LOCALHOST;
        lease.dns_srvs = Some([vec![loopback], vec![Ipv4Addr::new(9, 9, 9, 9); 50]].concat());
        let judged = judge(&lease).unwrap().settings;
        assert_eq!((judged.gateway, judged.mtu), (None, None));
        assert_eq!(judged.resolvers, vec![Ipv4Addr::new(9, 9, 9, 9); MAX_RESOLVERS]);
        lease.mtu = Some(1460);
        assert_eq!(judge(&lease).unwrap().settings.mtu, Some(1460));
    }

    #[test]
    fn masks_are_made_of_prefixes() {
        assert_eq!([mask(0), mask(8), mask(24), mask(32)], [0, 0xFF00_0000, 0xFFFF_FF00, u32::MAX]);
    }

    #[test]
    fn the_lease_is_told_in_two_files() {
        let directory = tempfile::tempdir().unwrap();
        tell(directory.path(), &judge(&answer()).unwrap().settings).unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(read("resolv.conf"), "nameserver 10.0.2.3\n");
        let json: serde_json::Value = serde_json::from_str(&read("lease.json")).unwrap();
        assert_eq!(json["address"], "10.0.2.15");
        assert_eq!(json["prefix"], 24);
    }
}
