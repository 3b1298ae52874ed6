//! The beginning of TLS as a client sends it: whose server name it asks for.
//!
//! Reads records and the ClientHello in them (RFC 8446 §4.1.2, §5.1; RFC 5246 §7.4.1.2; RFC 6066 §3) from a client that wants to be
//! misread: what another reader could understand differently is refused. A hello is alone in its records, names one server, and
//! that once. Nothing of it is changed, and nothing of it is kept.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// A hello with its records' headers. Those of browsers with post-quantum shares have 2 KiB.
const MAX_HELLO: usize = 16 * 1024;
/// Records before a second hello: early data that the server has not taken (RFC 8446 §4.2.10), and a change_cipher_spec.
const MAX_BEFORE: usize = 64;
/// Alerts before a server's answer: older ones warn of a name that they do not know.
const MAX_ALERTS: usize = 4;
/// A record's payload: 2^14, and what encryption adds (RFC 8446 §5.2).
const MAX_RECORD: usize = (1 << 14) + 256;
const HEADER: usize = 5;
/// Content types (RFC 8446 §5.1).
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// Handshake types (RFC 8446 §4).
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
/// What the beginning of a ServerHello takes: type, length, version, random.
const SERVER_BEGINNING: usize = 1 + 3 + 2 + 32;
/// The random of a ServerHello that asks for another ClientHello (RFC 8446 §4.1.3).
pub(super) const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
    0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];
/// A fatal alert: access_denied (RFC 8446 §6.2).
pub(super) const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// What a client began with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// The records, as they came.
    pub(super) bytes: Vec<u8>,
    /// The server's name in lower case.
    pub(super) server: String,
}

/// Why there is no hello.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelloError {
    /// It is not TLS, or cannot be understood in one way only.
    #[error("this is not the beginning of TLS")]
    Malformed,
    /// It names no server.
    #[error("the beginning of TLS names no server")]
    Nameless,
    /// The connection ended or broke.
    #[error("the connection ended")]
    Io(#[from] io::Error),
}

/// Reads the first hello of a client.
///
/// # Errors
///
/// [`HelloError`].
pub(super) async fn first(client: &mut (impl AsyncRead + Unpin)) -> Result<Hello, HelloError> {
    let record = record(client).await?;
    hello(record, client).await
}

/// Passes on what a client may send after a server has asked for another hello, up to that one.
///
/// # Errors
///
/// [`HelloError`].
pub(super) async fn second(
    client: &mut (impl AsyncRead + Unpin),
    server: &mut (impl AsyncWrite + Unpin),
) -> Result<Hello, HelloError> {
    for _ in 0..MAX_BEFORE {
        let record = record(client).await?;
        match record.first() {
            Some(&(CHANGE_CIPHER_SPEC | APPLICATION_DATA)) => server.write_all(&record).await?,
            _ => return hello(record, client).await,
        }
    }
    Err(HelloError::Malformed)
}

/// Passes on the beginning of a server's answer. Whether it asks for another hello; then the whole record was passed on.
///
/// # Errors
///
/// [`HelloError`].
pub(super) async fn answer(
    server: &mut (impl AsyncRead + Unpin),
    client: &mut (impl AsyncWrite + Unpin),
) -> Result<bool, HelloError> {
    for _ in 0..=MAX_ALERTS {
        let mut head = [0; HEADER];
        server.read_exact(&mut head).await?;
        match head {
            // A warning, behind which the answer comes, or the end.
            [ALERT, _, _, 0, 2] => {
                let mut alert = [0; 2];
                server.read_exact(&mut alert).await?;
                client.write_all(&[&head[..], &alert].concat()).await?;
            }
            [HANDSHAKE, ..] => return server_hello(head, server, client).await,
            // Nothing of TLS.
            _ => {
                client.write_all(&head).await?;
                return Ok(false);
            }
        }
    }
    Err(HelloError::Malformed)
}

/// Passes on the beginning of what is in a record with this header, and all of it when it asks for another hello.
async fn server_hello(
    head: [u8; HEADER],
    server: &mut (impl AsyncRead + Unpin),
    client: &mut (impl AsyncWrite + Unpin),
) -> Result<bool, HelloError> {
    let [.., high, low] = head;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let rest =
        length.checked_sub(SERVER_BEGINNING).filter(|_| length <= MAX_RECORD).ok_or(HelloError::Malformed)?;
    let mut beginning = [0; SERVER_BEGINNING];
    server.read_exact(&mut beginning).await?;
    client.write_all(&[&head[..], &beginning].concat()).await?;
    let retry = beginning.first() == Some(&SERVER_HELLO) && beginning.ends_with(&RETRY);
    if retry {
        let mut rest = vec![0; rest];
        server.read_exact(&mut rest).await?;
        client.write_all(&rest).await?;
    }
    Ok(retry)
}

/// A record with its header.
async fn record(client: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, HelloError> {
    let mut record = vec![0; HEADER];
    client.read_exact(&mut record).await?;
    let &[kind, major, _, high, low] = record.as_slice() else { return Err(HelloError::Malformed) };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let known = [CHANGE_CIPHER_SPEC, HANDSHAKE, APPLICATION_DATA].contains(&kind);
    if !known || major != 3 || length == 0 || length > MAX_RECORD {
        return Err(HelloError::Malformed);
    }
    record.resize(HEADER.saturating_add(length), 0);
    client.read_exact(record.get_mut(HEADER..).unwrap_or_default()).await?;
    Ok(record)
}

/// The hello that begins with this record.
async fn hello(first: Vec<u8>, client: &mut (impl AsyncRead + Unpin)) -> Result<Hello, HelloError> {
    let (mut bytes, mut message, mut next) = (Vec::new(), Vec::new(), first);
    loop {
        if next.first() != Some(&HANDSHAKE) {
            return Err(HelloError::Malformed);
        }
        message.extend_from_slice(next.get(HEADER..).unwrap_or_default());
        bytes.append(&mut next);
        if let &[kind, a, b, c, ..] = message.as_slice() {
            let length =
                usize::try_from(u32::from_be_bytes([0, a, b, c])).map_err(|_| HelloError::Malformed)?;
            let whole = length.saturating_add(4);
            // More than the hello in its records would be a second one that nobody has looked at.
            if kind != CLIENT_HELLO || whole > MAX_HELLO || message.len() > whole {
                return Err(HelloError::Malformed);
            }
            if message.len() == whole {
                break;
            }
        }
        if bytes.len() > MAX_HELLO {
            return Err(HelloError::Malformed);
        }
        next = record(client).await?;
    }
    let server = server_name(message.get(4..).unwrap_or_default())?;
    Ok(Hello { bytes, server })
}

/// The server's name in the body of a ClientHello.
fn server_name(body: &[u8]) -> Result<String, HelloError> {
    let mut body = Reader(body);
    // legacy_version, random; legacy_session_id, cipher_suites, legacy_compression_methods.
    body.take(2 + 32)?;
    body.vector8()?;
    body.vector16()?;
    body.vector8()?;
    if body.0.is_empty() {
        return Err(HelloError::Nameless);
    }
    let mut extensions = Reader(body.vector16()?);
    body.end()?;
    let mut names = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number16()?;
        let data = extensions.vector16()?;
        // server_name.
        if kind == 0 && names.replace(data).is_some() {
            return Err(HelloError::Malformed);
        }
    }
    let mut extension = Reader(names.ok_or(HelloError::Nameless)?);
    let mut list = Reader(extension.vector16()?);
    extension.end()?;
    // One name, and of the only kind that there is: host_name.
    if list.take(1)? != [0] {
        return Err(HelloError::Malformed);
    }
    let name = list.vector16()?;
    list.end()?;
    let text = name.iter().all(u8::is_ascii_graphic) && (1..=253).contains(&name.len());
    match std::str::from_utf8(name) {
        Ok(name) if text => Ok(name.to_ascii_lowercase()),
        _ => Err(HelloError::Malformed),
    }
}

/// What is left to read.
struct Reader<'m>(&'m [u8]);

impl<'m> Reader<'m> {
    fn take(&mut self, count: usize) -> Result<&'m [u8], HelloError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(HelloError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number16(&mut self) -> Result<u16, HelloError> {
        match self.take(2)? {
            &[high, low] => Ok(u16::from_be_bytes([high, low])),
            _ => Err(HelloError::Malformed),
        }
    }

    /// What stands behind its length, of one byte.
    fn vector8(&mut self) -> Result<&'m [u8], HelloError> {
        let length = self.take(1)?.first().copied().unwrap_or_default();
        self.take(length.into())
    }

    /// The same, of two.
    fn vector16(&mut self) -> Result<&'m [u8], HelloError> {
        let length = self.number16()?;
        self.take(length.into())
    }

    fn end(&self) -> Result<(), HelloError> {
        if self.0.is_empty() { Ok(()) } else { Err(HelloError::Malformed) }
    }
}

#[cfg(test)]
pub(super) mod tests;
