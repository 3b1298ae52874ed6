//! Asking the appliance's own resolver for the addresses of a name (RFC 1035): IPv4, since the appliance has no other.
//!
//! What comes back is hostile: whoever answers, and whoever is on the way. Messages, records, names, aliases, addresses and
//! waits are bounded. A question goes out only for a name that a service may connect to, and only when it does.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::system::files;

/// Of `resolv.conf`, in bytes; the role `network` writes three lines.
const MAX_CONFIGURATION: u64 = 4096;
/// As resolvers do (resolv.conf(5), MAXNS).
const MAX_RESOLVERS: usize = 3;
/// For one answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often all resolvers are asked.
const ROUNDS: usize = 2;
/// An answer over UDP without EDNS (RFC 1035 §4.2.1), and over TCP.
const MAX_DATAGRAM: usize = 512;
const MAX_MESSAGE: usize = 16 * 1024;
const MAX_RECORDS: u16 = 64;
const MAX_ALIASES: usize = 8;
const MAX_ADDRESSES: usize = 16;
/// Pointers in one name. Each leads back, so there is an end anyway; longer chains are nobody's.
const MAX_POINTERS: usize = 16;
/// How long an answer holds, whatever it says itself.
const LEAST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
const PORT: u16 = 53;
const A: u16 = 1;
const CNAME: u16 = 5;
const IN: u16 = 1;

/// What a name has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// At least one.
    pub(super) addresses: Vec<Ipv4Addr>,
    /// How long that holds.
    pub(super) holds: Duration,
}

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookupError {
    /// There is nobody to ask.
    #[error("no resolver is known")]
    NoResolver,
    /// Nobody answered, or nothing that could be understood.
    #[error("no resolver has answered")]
    Silent(#[source] io::Error),
    /// There is no such name, or it has no address.
    #[error("the name has no address")]
    None,
}

/// The resolvers, as the role `network` writes them down.
#[derive(Debug)]
pub(super) struct Resolvers {
    /// `resolv.conf`, read for each question: a lease may bring others.
    configuration: PathBuf,
    port: u16,
}

impl Resolvers {
    /// Those of this file.
    pub(super) fn new(configuration: impl AsRef<Path>) -> Self {
        Self { configuration: configuration.as_ref().to_owned(), port: PORT }
    }

    /// The same at another port.
    #[cfg(test)]
    pub(super) fn at_port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// Asks for the addresses of a name.
    ///
    /// # Errors
    ///
    /// [`LookupError`].
    pub(super) async fn addresses(&self, name: &str) -> Result<Found, LookupError> {
        let resolvers = self.known();
        let mut last = LookupError::NoResolver;
        for resolver in resolvers.iter().cycle().take(resolvers.len().saturating_mul(ROUNDS)) {
            match timeout(PATIENCE, ask(*resolver, name))
                .await
                .map_err(io::Error::from)
                .and_then(|asked| asked)
            {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => return Err(LookupError::None),
                Err(error) => last = LookupError::Silent(error),
            }
        }
        Err(last)
    }

    fn known(&self) -> Vec<SocketAddr> {
        let bytes = files::read_bounded(&self.configuration, MAX_CONFIGURATION).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let addresses = text.lines().filter_map(|line| line.strip_prefix("nameserver "));
        let addresses = addresses.filter_map(|address| address.trim().parse::<Ipv4Addr>().ok());
        addresses.map(|address| (address, self.port).into()).take(MAX_RESOLVERS).collect()
    }
}

/// Asks one resolver. `None`: it says that there is nothing.
async fn ask(resolver: SocketAddr, name: &str) -> io::Result<Option<Found>> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(|error| io::Error::other(error.to_string()))?;
    let question = question(id, name).ok_or(io::ErrorKind::InvalidInput)?;
    // A port of the kernel's choice, and answers from this resolver alone.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(&question).await?;
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        let count = socket.recv(&mut buffer).await?;
        match read(buffer.get(..count).unwrap_or_default(), &question) {
            // Somebody else's, or nonsense: the right one may still come.
            Err(Unfit::Malformed) => {}
            Err(Unfit::Truncated) => return over_tcp(resolver, &question).await,
            Err(Unfit::Refused) => return Err(io::ErrorKind::ConnectionRefused.into()),
            Ok(found) => return Ok(found),
        }
    }
}

async fn over_tcp(resolver: SocketAddr, question: &[u8]) -> io::Result<Option<Found>> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(question.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    read(&message, question).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// A message with one question for the addresses of a name, with recursion. `None` for what is no name.
fn question(id: [u8; 2], name: &str) -> Option<Vec<u8>> {
    let mut message = [&id[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&A.to_be_bytes());
    message.extend_from_slice(&IN.to_be_bytes());
    Some(message)
}

/// Why a message answers nothing.
#[derive(Debug, PartialEq, Eq)]
enum Unfit {
    /// It is no answer to this question.
    Malformed,
    /// There is more, over TCP.
    Truncated,
    /// The resolver does not want to.
    Refused,
}

/// One record of an answer.
struct Record {
    name: String,
    kind: u16,
    seconds: u32,
    data: Data,
}

enum Data {
    Address(Ipv4Addr),
    Alias(String),
    Other,
}

/// The addresses in the answer to this question; `None` when it says that there are none.
fn read(message: &[u8], question: &[u8]) -> Result<Option<Found>, Unfit> {
    let number = |at: usize| number16(message, at).ok_or(Unfit::Malformed);
    let flags = number(2)?;
    let asked = question.get(12..).unwrap_or_default();
    let repeated = message.get(12..question.len()).ok_or(Unfit::Malformed)?;
    // The same id, an answer to a query, one question, and that the same.
    if message.get(..2) != question.get(..2)
        || flags & 0xf800 != 0x8000
        || number(4)? != 1
        || !repeated.eq_ignore_ascii_case(asked)
    {
        return Err(Unfit::Malformed);
    }
    if flags & 0x0200 != 0 {
        return Err(Unfit::Truncated);
    }
    match flags & 15 {
        0 => {}
        3 => return Ok(None),
        _ => return Err(Unfit::Refused),
    }
    let mut records = Vec::new();
    let mut at = question.len();
    for _ in 0..number(6)?.min(MAX_RECORDS) {
        let (record, end) = record(message, at).ok_or(Unfit::Malformed)?;
        records.push(record);
        at = end;
    }
    let (name, _) = name(message, 12).ok_or(Unfit::Malformed)?;
    Ok(follow(name, &records))
}

/// The addresses of a name, and of what it is another name for.
fn follow(mut name: String, records: &[Record]) -> Option<Found> {
    let mut holds = LONGEST;
    for _ in 0..=MAX_ALIASES {
        let of = || records.iter().filter(|record| record.name == name);
        let mut addresses = Vec::new();
        for record in of() {
            if let (A, Data::Address(address)) = (record.kind, &record.data) {
                addresses.push(*address);
                holds = holds.min(Duration::from_secs(record.seconds.into()));
            }
        }
        if !addresses.is_empty() {
            addresses.truncate(MAX_ADDRESSES);
            return Some(Found { addresses, holds: holds.max(LEAST) });
        }
        let alias = of().find_map(|record| match &record.data {
            Data::Alias(alias) => Some((alias.clone(), record.seconds)),
            _ => None,
        });
        let (next, seconds) = alias?;
        holds = holds.min(Duration::from_secs(seconds.into()));
        name = next;
    }
    None
}

/// The record at a place of a message, and where it ends.
fn record(message: &[u8], at: usize) -> Option<(Record, usize)> {
    let (owner, at) = name(message, at)?;
    let (kind, class) = (number16(message, at)?, number16(message, at.checked_add(2)?)?);
    let seconds = [number16(message, at.checked_add(4)?)?, number16(message, at.checked_add(6)?)?];
    let seconds = u32::from(seconds[0]) << 16 | u32::from(seconds[1]);
    let length = usize::from(number16(message, at.checked_add(8)?)?);
    let start = at.checked_add(10)?;
    let end = start.checked_add(length)?;
    let bytes = message.get(start..end)?;
    let data = match kind {
        A if class == IN => Data::Address(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        CNAME if class == IN => Data::Alias(name(message, start)?.0),
        _ => Data::Other,
    };
    // A time with its first bit set is none (RFC 2181 §8).
    let seconds = if seconds > i32::MAX.unsigned_abs() { 0 } else { seconds };
    Some((Record { name: owner, kind, seconds, data }, end))
}

/// The name at a place of a message, in lower case, and where it ends there.
fn name(message: &[u8], start: usize) -> Option<(String, usize)> {
    let (mut name, mut at, mut end, mut pointers) = (String::new(), start, None, 0_usize);
    loop {
        let length = *message.get(at)?;
        let next = at.checked_add(1)?;
        match length >> 6 {
            0 if length == 0 => return Some((name, end.unwrap_or(next))),
            0 => {
                let stop = next.checked_add(length.into())?;
                let label = message.get(next..stop)?;
                // A dot inside a label would be another name's text.
                let label = std::str::from_utf8(label).ok().filter(|label| !label.contains('.'))?;
                if !name.is_empty() {
                    name.push('.');
                }
                name.push_str(&label.to_ascii_lowercase());
                if name.len() > 253 {
                    return None;
                }
                at = stop;
            }
            3 => {
                let target = usize::from(number16(message, at)? & 0x3fff);
                pointers = pointers.checked_add(1).filter(|count| *count <= MAX_POINTERS)?;
                end.get_or_insert(next.checked_add(1)?);
                // Only back, so that there is no circle.
                at = Some(target).filter(|target| *target < at)?;
            }
            _ => return None,
        }
    }
}

fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAME: &str = "api.example.org";

    fn asked() -> Vec<u8> {
        question([7, 9], NAME).unwrap()
    }

    /// An answer with these records, each `(owner, kind, seconds, data)`.
    fn answer(records: &[(&[u8], u16, u32, &[u8])]) -> Vec<u8> {
        let mut message = asked();
        message[2] = 0x81;
        message[3] = 0x80;
        message[7] = u8::try_from(records.len()).unwrap();
        for (owner, kind, seconds, data) in records {
            message.extend_from_slice(owner);
            message.extend_from_slice(&kind.to_be_bytes());
            message.extend_from_slice(&IN.to_be_bytes());
            message.extend_from_slice(&seconds.to_be_bytes());
            message.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
            message.extend_from_slice(data);
        }
        message
    }

    /// A pointer to the question's name.
    const OWNER: &[u8] = &[0xc0, 12];
    const EDGE: &[u8] = b"\x04EDGE\x03cdn\x03net\0";

    fn found(addresses: &[[u8; 4]], seconds: u64) -> Option<Found> {
        let addresses = addresses.iter().map(|address| Ipv4Addr::from(*address)).collect();
        Some(Found { addresses, holds: Duration::from_secs(seconds) })
    }

    #[test]
    fn addresses_and_aliases_are_followed_for_as_long_as_the_shortest_holds() {
        let one = answer(&[(OWNER, A, 60, &[203, 0, 113, 1]), (OWNER, A, 30, &[203, 0, 113, 2])]);
        assert_eq!(read(&one, &asked()), Ok(found(&[[203, 0, 113, 1], [203, 0, 113, 2]], 30)));
        let alias =
            answer(&[(OWNER, CNAME, 20, EDGE), (b"\x04edge\x03cdn\x03net\0", A, 9, &[203, 0, 113, 3])]);
        assert_eq!(read(&alias, &asked()), Ok(found(&[[203, 0, 113, 3]], 9)));
        for (seconds, holds) in [(0, 1), (86_400, 300), (u32::MAX, 1)] {
            let one = answer(&[(OWNER, A, seconds, &[203, 0, 113, 1])]);
            assert_eq!(read(&one, &asked()), Ok(found(&[[203, 0, 113, 1]], holds)), "{seconds}");
        }
    }

    #[test]
    fn what_is_not_about_the_name_is_left_out() {
        let stray = answer(&[(EDGE, A, 60, &[203, 0, 113, 9])]);
        assert_eq!(read(&stray, &asked()), Ok(None));
        let circle = answer(&[(OWNER, CNAME, 60, OWNER)]);
        assert_eq!(read(&circle, &asked()), Ok(None));
        assert_eq!(read(&answer(&[(OWNER, 28, 60, &[0; 16])]), &asked()), Ok(None));
        assert_eq!(read(&answer(&[]), &asked()), Ok(None));
    }

    #[test]
    fn an_answer_to_another_question_is_none() {
        let good = answer(&[(OWNER, A, 60, &[203, 0, 113, 1])]);
        let changed = |at: usize, to: u8| {
            let mut message = good.clone();
            message[at] = to;
            read(&message, &asked())
        };
        assert_eq!(changed(0, 8), Err(Unfit::Malformed), "another id");
        assert_eq!(changed(2, 1), Err(Unfit::Malformed), "a question");
        assert_eq!(changed(13, b'b'), Err(Unfit::Malformed), "another name");
        assert_eq!(changed(5, 2), Err(Unfit::Malformed), "two questions");
        assert_eq!(changed(2, 0x83), Err(Unfit::Truncated));
        assert_eq!(changed(3, 0x83), Ok(None), "no such name");
        assert_eq!(changed(3, 0x85), Err(Unfit::Refused));
        assert_eq!(changed(13, b'A'), read(&good, &asked()), "case is nothing");
        assert_eq!(read(&good[..good.len() - 1], &asked()), Err(Unfit::Malformed));
        // A pointer to itself, and a chain of them.
        let circle = answer(&[(&[0xc0, 33], A, 60, &[1, 2, 3, 4])]);
        assert_eq!(read(&circle, &asked()), Err(Unfit::Malformed));
    }

    #[tokio::test]
    async fn a_resolver_is_asked_over_udp_and_over_tcp_when_there_is_more() {
        let datagrams = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = datagrams.local_addr().unwrap().port();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (count, from) = datagrams.recv_from(&mut buffer).await.unwrap();
                // First what somebody else could send, then the answer.
                let _ = datagrams.send_to(b"nonsense", from).await;
                let mut message = buffer[..count].to_vec();
                (message[2], message[3]) = (0x83, 0x80);
                datagrams.send_to(&message, from).await.unwrap();
            }
        });
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut message = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut message).await.unwrap();
            let mut answered = answer(&[(OWNER, A, 60, &[203, 0, 113, 1])]);
            answered[..2].copy_from_slice(&message[..2]);
            stream.write_u16(u16::try_from(answered.len()).unwrap()).await.unwrap();
            stream.write_all(&answered).await.unwrap();
        });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let resolvers = Resolvers::new(&path).at_port(port);
        assert!(matches!(resolvers.addresses(NAME).await, Err(LookupError::NoResolver)));
        std::fs::write(&path, "# none\nnameserver ::1\nnameserver 127.0.0.1\n").unwrap();
        assert_eq!(resolvers.addresses(NAME).await.ok(), found(&[[203, 0, 113, 1]], 60));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn whatever_comes_back_is_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..400), from in 0_usize..33) {
            let mut message = answer(&[(OWNER, CNAME, 20, EDGE), (OWNER, A, 60, &[203, 0, 113, 1])]);
            message.truncate(from.max(12));
            message.extend_from_slice(&bytes);
            if let Ok(Some(found)) = read(&message, &asked()) {
                prop_assert!((1..=MAX_ADDRESSES).contains(&found.addresses.len()));
                prop_assert!(found.holds >= LEAST && found.holds <= LONGEST);
            }
        }
    }
}
