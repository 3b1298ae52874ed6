//! What a workload reaches outside of the appliance, and how it is refused.
//!
//! | request | what happens |
//! |---|---|
//! | `/outside?host=H&port=P&server=N` | connects, begins TLS for the server N (without N: says something else), and tells what it hears or what refuses it |
//! | `/outside-udp?host=H&port=P` | the same with one datagram |
//! | `/received?host=H&port=P` | says `relay`, takes all that comes, and says how much that was (`ci/bench`) |

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// The answer to one of the requests above.
pub(crate) fn answer(path: &str, parameter: impl Fn(&str) -> Option<String>) -> Option<String> {
    let host = parameter("host").unwrap_or_default();
    let port = parameter("port").and_then(|port| port.parse().ok()).unwrap_or(443_u16);
    let outcome = match path {
        "/outside" => tcp(&host, port, parameter("server").as_deref()),
        "/outside-udp" => udp(&host, port),
        "/received" => received(&host, port),
        _ => return None,
    };
    let heard = outcome.unwrap_or_else(|error| match error.raw_os_error() {
        Some(_) => crate::text(&error),
        None => format!("{:?}", error.kind()),
    });
    Some(format!("{heard}\n"))
}

fn address(host: &str, port: u16) -> io::Result<SocketAddr> {
    (host, port).to_socket_addrs()?.next().ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn tcp(host: &str, port: u16, server: Option<&str>) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address(host, port)?, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    match server {
        Some(server) => stream.write_all(&hello(server))?,
        None => stream.write_all(b"this is not TLS\n")?,
    }
    heard(stream)
}

fn received(host: &str, port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address(host, port)?, PATIENCE)?;
    stream.write_all(b"relay")?;
    let (mut block, mut bytes) = (vec![0_u8; 64 << 10], 0_usize);
    loop {
        match stream.read(&mut block)? {
            0 => break,
            count => bytes += count,
        }
    }
    write!(stream, "{bytes}")?;
    Ok(bytes.to_string())
}

fn heard(stream: impl io::Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    stream.take(1024).read_to_end(&mut bytes)?;
    Ok(match bytes.as_slice() {
        // A fatal alert: access_denied.
        [21, 3, 3, 0, 2, 2, 49] => "access denied".to_owned(),
        [] => "nothing".to_owned(),
        other => String::from_utf8_lossy(other).into_owned(),
    })
}

fn udp(host: &str, port: u16) -> io::Result<String> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(address(host, port)?)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"hello")?;
    let mut buffer = [0; 512];
    let count = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
}

/// The least ClientHello that names a server.
fn hello(server: &str) -> Vec<u8> {
    let sized = |data: &[u8]| [&(data.len() as u16).to_be_bytes(), data].concat();
    let name = sized(&[&[0][..], &sized(server.as_bytes())].concat());
    let extensions = sized(&[&[0, 0][..], &sized(&name)].concat());
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &extensions].concat();
    let message = [&[1, 0][..], &sized(&body)].concat();
    [&[22, 3, 1][..], &sized(&message)].concat()
}
