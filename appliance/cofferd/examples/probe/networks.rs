//! What a workload sees of its networks, and what it tries to take there that is another's.
//!
//! | request | what happens |
//! |---|---|
//! | `/names?name=N` | the addresses of a name, as JSON |
//! | `/own-network` | interfaces with an address, destinations of routes, the resolver, as JSON |
//! | `/take?address=A&port=P` | attempts to listen there and to send from there, by all that a socket can be asked for |
//! | `/past-routes?host=H&port=P` | connects over the interface itself, whatever the routes say |

use std::ffi::{c_int, c_long};
use std::io;
use std::net::{Ipv4Addr, ToSocketAddrs};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

// x86-64.
const SOCKET: c_long = 41;
const CONNECT: c_long = 42;
const BIND: c_long = 49;
const LISTEN: c_long = 50;
const SETSOCKOPT: c_long = 54;
const STREAM: c_long = 1;
const DATAGRAM: c_long = 2;
/// Level and option: SO_REUSEADDR, SO_REUSEPORT, IP_FREEBIND, IP_TRANSPARENT.
const WAYS: [(&str, c_long, c_long); 4] =
    [("reuseaddr", 1, 2), ("reuseport", 1, 15), ("freebind", 0, 15), ("transparent", 0, 19)];

/// The answer to one of the requests above.
pub(crate) fn answer(path: &str, parameter: impl Fn(&str) -> Option<String>) -> Option<String> {
    let port = || parameter("port").and_then(|port| port.parse().ok()).unwrap_or(8080_u16);
    let list = |items: Vec<String>| {
        let items: Vec<String> = items.iter().map(|item| format!("{item:?}")).collect();
        format!("[{}]\n", items.join(","))
    };
    Some(match path {
        "/names" => {
            let name = parameter("name").unwrap_or_default();
            let found = (name.as_str(), 1).to_socket_addrs();
            let found = found.map(|all| all.map(|one| one.ip().to_string()).collect::<Vec<_>>());
            list(found.unwrap_or_default())
        }
        "/own-network" => list(own_network()),
        "/take" => {
            let address = parameter("address").and_then(|address| address.parse().ok());
            list(take(address.unwrap_or(Ipv4Addr::UNSPECIFIED), port()))
        }
        "/past-routes" => {
            let host = parameter("host").and_then(|host| host.parse().ok());
            let outcome = past_routes(host.unwrap_or(Ipv4Addr::LOCALHOST), port());
            list(vec![outcome.map_or_else(|error| crate::text(&error), |()| "ok".to_owned())])
        }
        _ => return None,
    })
}

fn own_network() -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let number = |text: &str| {
        let number = u32::from_str_radix(text, 16).unwrap_or_default();
        Ipv4Addr::from(number.swap_bytes()).to_string()
    };
    // Interface, destination, gateway, … (proc_pid_net(5)).
    let routes = read("/proc/net/route");
    let routes = routes.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (interface, to, over) = (fields.next()?, fields.next()?, fields.next()?);
        Some(format!("route {interface} {} over {}", number(to), number(over)))
    });
    let six = read("/proc/net/if_inet6");
    let six =
        six.lines().filter_map(|line| line.split_whitespace().last()).map(|name| format!("inet6 {name}"));
    let resolver = read("/etc/resolv.conf");
    let resolver = resolver.lines().map(str::to_owned);
    routes.chain(six).chain(resolver).collect()
}

/// Each way of asking for the address, with its answer.
fn take(address: Ipv4Addr, port: u16) -> Vec<String> {
    let kinds = [("tcp", STREAM), ("udp", DATAGRAM)];
    let ways = [None].into_iter().chain(WAYS.into_iter().map(Some));
    ways.flat_map(|way| {
        kinds.into_iter().map(move |(name, kind)| {
            let outcome = socket(kind).and_then(|socket| {
                if let Some((_, level, option)) = way {
                    set(&socket, level, option, &1_i32.to_ne_bytes())?;
                }
                bind(&socket, address, port)?;
                if kind == STREAM {
                    return call(&[LISTEN, socket.as_raw_fd().into(), 1]).map(drop);
                }
                // To whoever is at the first address of the network: what counts is whether it leaves.
                connect(&socket, Ipv4Addr::new(10, 1, 1, 1), 9)
            });
            let outcome = outcome.map_or_else(|error| crate::text(&error), |()| "ok".to_owned());
            format!("{name} {}: {outcome}", way.map_or("plain", |(way, ..)| way))
        })
    })
    .collect()
}

/// SO_BINDTODEVICE needs no right, and has the kernel take every address for a neighbour's.
fn past_routes(host: Ipv4Addr, port: u16) -> io::Result<()> {
    let socket = socket(STREAM)?;
    set(&socket, 1, 25, b"eth0\0")?;
    // SO_SNDTIMEO: after two seconds without an answer the error is EINPROGRESS.
    set(&socket, 1, 21, &[2_i64, 0].map(i64::to_ne_bytes).concat())?;
    connect(&socket, host, port)
}

fn call(words: &[c_long]) -> io::Result<c_long> {
    let at = |index: usize| words.get(index).copied().unwrap_or_default();
    // SAFETY: numbers, or pointers to values that outlive the call and have the size that it reads.
    let outcome = unsafe { syscall(at(0), at(1), at(2), at(3), at(4), at(5)) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}

fn socket(kind: c_long) -> io::Result<OwnedFd> {
    let descriptor = call(&[SOCKET, 2, kind, 0])?;
    // SAFETY: the call made it just now and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as c_int) })
}

fn set(socket: &OwnedFd, level: c_long, option: c_long, value: &[u8]) -> io::Result<()> {
    let length = value.len() as c_long;
    call(&[SETSOCKOPT, socket.as_raw_fd().into(), level, option, value.as_ptr() as c_long, length]).map(drop)
}

/// `struct sockaddr_in`.
fn socket_address(address: Ipv4Addr, port: u16) -> [u8; 16] {
    let mut bytes = [0_u8; 16];
    bytes[..2].copy_from_slice(&2_u16.to_ne_bytes());
    bytes[2..4].copy_from_slice(&port.to_be_bytes());
    bytes[4..8].copy_from_slice(&address.octets());
    bytes
}

fn bind(socket: &OwnedFd, address: Ipv4Addr, port: u16) -> io::Result<()> {
    let address = socket_address(address, port);
    call(&[BIND, socket.as_raw_fd().into(), address.as_ptr() as c_long, 16]).map(drop)
}

fn connect(socket: &OwnedFd, address: Ipv4Addr, port: u16) -> io::Result<()> {
    let address = socket_address(address, port);
    call(&[CONNECT, socket.as_raw_fd().into(), address.as_ptr() as c_long, 16]).map(drop)
}
