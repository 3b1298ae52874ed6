//! The resolver of a service's network: the shim's two sockets at 127.0.0.11, and who may keep them busy.
//!
//! It is bound before the workload exists, so that no process of the service can answer instead of it. It answers from a
//! table that its owner replaces, asks one other process for what is not in it ([`Question`]), and reaches nothing. Its clients are the service's own processes and hostile: a datagram costs
//! one answer, and connections are few and short.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::dns::{Answered, Names, Outside, UDP_LIMIT};

/// Where Docker's resolver is as well. Of the loopback, so no other member of a network can send to it.
pub const ADDRESS: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);
/// `/etc/resolv.conf`. ndots:0 has a name without a dot asked for as it is.
pub const RESOLV_CONF: &str = "nameserver 127.0.0.11\noptions ndots:0\n";

/// Connections at a time; the next one waits in the listener's queue. Programs use them for long answers only.
const CONNECTIONS: usize = 16;
/// For one question and its answer.
const EXCHANGE: Duration = Duration::from_secs(5);
/// Questions over one connection.
const QUESTIONS: usize = 32;
/// Datagrams that wait for an answer about a name outside. Who gets none asks again.
const WAITING: usize = 64;
/// For that answer.
const OUTSIDE: Duration = Duration::from_secs(3);
/// After an error of a socket: out of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// A question for a name that may be one outside.
#[derive(Debug)]
pub struct Question {
    /// In lower case, with a dot in it. Chosen by the workload.
    pub name: String,
    /// Where the answer goes: the address to give, or that there is no such name. Dropped, nobody can say.
    pub answer: oneshot::Sender<Option<Ipv4Addr>>,
}

/// Whoever knows names outside; nobody where a service has no network.
pub type Asked = Option<mpsc::Sender<Question>>;

/// The sockets, bound and not yet served.
#[derive(Debug)]
pub struct Resolver {
    datagrams: UdpSocket,
    connections: TcpListener,
}

impl Resolver {
    /// Takes the port in the network that the caller is in.
    ///
    /// # Errors
    ///
    /// It is taken, or the caller may not.
    pub async fn bind((address, port): (Ipv4Addr, u16)) -> io::Result<Self> {
        let datagrams = UdpSocket::bind((address, port)).await?;
        let port = datagrams.local_addr()?.port();
        Ok(Self { datagrams, connections: TcpListener::bind((address, port)).await? })
    }

    /// Answers from `names` as they are by then, and for names outside as `asked` does, until the runtime ends.
    pub fn serve(self, names: watch::Receiver<Names>, asked: Asked) {
        let table = Arc::new(Table { names, asked });
        tokio::spawn(datagrams(self.datagrams, Arc::clone(&table)));
        tokio::spawn(connections(self.connections, table));
    }
}

/// What is answered from.
struct Table {
    /// The names of services.
    names: watch::Receiver<Names>,
    /// The others.
    asked: Asked,
}

impl Table {
    /// The answer about a name outside.
    async fn ask(&self, outside: Outside) -> Vec<u8> {
        let Some(asked) = &self.asked else { return outside.none() };
        let (answer, answered) = oneshot::channel();
        let asking = async {
            asked.send(Question { name: outside.name.clone(), answer }).await.ok()?;
            answered.await.ok()
        };
        match timeout(OUTSIDE, asking).await {
            Ok(Some(Some(address))) => outside.address(address),
            Ok(Some(None)) => outside.none(),
            Ok(None) | Err(_) => outside.failed(),
        }
    }
}

async fn datagrams(socket: UdpSocket, table: Arc<Table>) {
    let (socket, waiting) = (Arc::new(socket), Arc::new(Semaphore::new(WAITING)));
    // A longer message is cut: its question stands at its beginning.
    let mut buffer = [0_u8; UDP_LIMIT];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((count, from)) => {
                let answered =
                    table.names.borrow().answer(buffer.get(..count).unwrap_or_default(), UDP_LIMIT);
                match answered {
                    // Whoever does not take the answer asks again.
                    Some(Answered::Whole(answer)) => drop(socket.try_send_to(&answer, from)),
                    Some(Answered::Outside(outside)) => {
                        let Ok(place) = Arc::clone(&waiting).try_acquire_owned() else { continue };
                        let (socket, table) = (Arc::clone(&socket), Arc::clone(&table));
                        tokio::spawn(async move {
                            let _ = socket.try_send_to(&table.ask(outside).await, from);
                            drop(place);
                        });
                    }
                    None => {}
                }
            }
            // What an answer to somebody who is gone came to is reported here too.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn connections(listener: TcpListener, table: Arc<Table>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((mut caller, _)) => {
                let table = Arc::clone(&table);
                tokio::spawn(async move {
                    for _ in 0..QUESTIONS {
                        if !matches!(timeout(EXCHANGE, exchange(&mut caller, &table)).await, Ok(Ok(true))) {
                            break;
                        }
                    }
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// One question and its answer, each behind its length (RFC 1035 §4.2.2). Whether there may be another.
async fn exchange(caller: &mut TcpStream, table: &Table) -> io::Result<bool> {
    let mut message = [0_u8; UDP_LIMIT];
    let length = usize::from(caller.read_u16().await?);
    let Some(message) = message.get_mut(..length) else { return Ok(false) };
    caller.read_exact(message).await?;
    let answered = table.names.borrow().answer(message, usize::from(u16::MAX));
    let answer = match answered {
        None => return Ok(false),
        Some(Answered::Whole(answer)) => answer,
        Some(Answered::Outside(outside)) => table.ask(outside).await,
    };
    let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    caller.write_all(&[&length.to_be_bytes(), answer.as_slice()].concat()).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The address of `db`, and of `all` more than a datagram holds.
    fn names() -> Names {
        let mut names = Names::default();
        names.add("db", Ipv4Addr::new(10, 1, 1, 1));
        (1..=100).for_each(|last| names.add("all", Ipv4Addr::new(10, 1, 2, last)));
        names
    }

    fn question(name: &str) -> Vec<u8> {
        let mut message = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
        for label in name.split('.') {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend_from_slice(label.as_bytes());
        }
        message.extend_from_slice(b"\x00\x00\x01\x00\x01");
        message
    }

    async fn started() -> (Ipv4Addr, u16) {
        served(None).await
    }

    async fn served(asked: Asked) -> (Ipv4Addr, u16) {
        // A port that is free for datagrams may be taken for streams: then another one.
        let resolver = loop {
            match Resolver::bind((Ipv4Addr::LOCALHOST, 0)).await {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                bound => break bound.unwrap(),
            }
        };
        let port = resolver.datagrams.local_addr().unwrap().port();
        resolver.serve(watch::channel(names()).1, asked);
        (Ipv4Addr::LOCALHOST, port)
    }

    async fn over_tcp(stream: &mut TcpStream, name: &str) -> Vec<u8> {
        let message = question(name);
        let length = u16::try_from(message.len()).unwrap().to_be_bytes();
        stream.write_all(&[&length[..], &message].concat()).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn names_are_told_over_udp_and_what_is_long_over_tcp() {
        let address = started().await;
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(address).await.unwrap();
        client.send(b"nonsense").await.unwrap();
        let mut answer = [0_u8; 600];
        for (name, truncated) in [("db", 0), ("all", 2)] {
            client.send(&question(name)).await.unwrap();
            let count = client.recv(&mut answer).await.unwrap();
            assert_eq!((answer[1], answer[2] & 2), (7, truncated), "{name}");
            assert_eq!(count > 500, truncated > 0);
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert_eq!(over_tcp(&mut stream, "db").await[7], 1);
        assert_eq!(over_tcp(&mut stream, "all").await[7], 100);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_and_greedy_callers_make_room_for_others() {
        let address = started().await;
        let mut idle = Vec::new();
        for _ in 0..3 * CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert_eq!(over_tcp(&mut stream, "db").await[7], 1, "behind forty-eight that say nothing");
        let mut greedy = TcpStream::connect(address).await.unwrap();
        for _ in 0..QUESTIONS {
            over_tcp(&mut greedy, "db").await;
        }
        assert!(greedy.read_u16().await.is_err(), "a connection has an end");
        let mut long = TcpStream::connect(address).await.unwrap();
        long.write_all(&u16::MAX.to_be_bytes()).await.unwrap();
        assert!(long.read_u16().await.is_err(), "a message has a bound");
    }

    #[tokio::test(start_paused = true)]
    async fn names_outside_are_asked_for_and_do_not_hold_up_those_of_services() {
        let (asked, mut questions) = mpsc::channel(1);
        let address = served(Some(asked)).await;
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(address).await.unwrap();
        // Nobody answers these: as many as may wait, and more.
        for _ in 0..2 * WAITING {
            client.send(&question("silence.example.org")).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut answer = [0_u8; 600];
        client.send(&question("db")).await.unwrap();
        let mut failed = 0;
        loop {
            client.recv(&mut answer).await.unwrap();
            match answer[3] & 15 {
                0 => break,
                2 => failed += 1,
                other => panic!("code {other}"),
            }
        }
        assert_eq!(failed, 0, "the service's name is answered before those are given up");
        for _ in 0..WAITING {
            client.recv(&mut answer).await.unwrap();
            assert_eq!(answer[3] & 15, 2);
        }
        tokio::spawn(async move {
            while let Some(Question { name, answer }) = questions.recv().await {
                let known = name == "api.example.org";
                let _ = answer.send(known.then_some(Ipv4Addr::new(198, 18, 0, 1)));
            }
        });
        let mut stream = TcpStream::connect(address).await.unwrap();
        for (name, code, count) in [("api.example.org", 0, 1), ("other.example.org", 3, 0)] {
            client.send(&question(name)).await.unwrap();
            client.recv(&mut answer).await.unwrap();
            assert_eq!((answer[3] & 15, answer[7]), (code, count), "{name}");
            let answer = over_tcp(&mut stream, name).await;
            assert_eq!((answer[3] & 15, answer[7]), (code, count), "{name}");
        }
    }

    #[tokio::test]
    async fn nobody_takes_the_port_while_it_is_served() {
        let (address, port) = started().await;
        for other in [address, Ipv4Addr::UNSPECIFIED] {
            assert!(UdpSocket::bind((other, port)).await.is_err(), "{other}");
            // tokio asks for SO_REUSEADDR here, as an attacker would.
            assert!(TcpListener::bind((other, port)).await.is_err(), "{other}");
        }
    }
}
