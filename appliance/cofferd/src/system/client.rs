//! Asking another role over its Unix socket: HTTP/1.1 with JSON, one connection per request. [`bridge`] and [`egress`] alone take
//! descriptors and speak otherwise.
//!
//! Every wait and every reply is bounded by the caller, since the other side may be hanging, restarting or
//! taken over. Connecting to a Unix socket costs some 20 µs, so nothing is kept open that would have to
//! be watched. It runs on the caller's runtime.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use cofferdam_protocol::reply::JSON;
use cofferdam_protocol::{Digest, SecretRef, SecretValue};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;
use zeroize::{Zeroize as _, Zeroizing};

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: the other role is not running, or not yet.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What connect(2) says.
        #[source]
        source: std::io::Error,
    },
    /// The other side ended the connection or does not speak HTTP.
    #[error("the exchange broke off")]
    Exchange(#[source] hyper::Error),
    /// The request cannot be written as HTTP.
    #[error("not a valid request")]
    Request(#[source] axum::http::Error),
    /// No whole reply in time.
    #[error("no reply within {0:?}")]
    Timeout(Duration),
    /// The reply is larger than the caller takes.
    #[error("the reply is larger than {0} bytes")]
    TooLarge(usize),
}

/// One request with a JSON body (none when `body` is empty). The reply's body is at most `max` bytes and is there
/// within `limit`, or it is an error.
///
/// # Errors
/// [`ClientError`]. A reply with any status is not an error.
pub async fn request(
    socket: impl AsRef<Path>,
    method: Method,
    path: &str,
    body: impl Into<Bytes>,
    max: usize,
    limit: Duration,
) -> Result<(StatusCode, Bytes), ClientError> {
    let exchange = exchange(socket.as_ref(), method, path, body.into(), max);
    let (status, body) =
        tokio::time::timeout(limit, exchange).await.map_err(|_| ClientError::Timeout(limit))??;
    Ok((status, Bytes::from_owner(body)))
}

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
    max: usize,
) -> Result<(StatusCode, Zeroizing<Vec<u8>>), ClientError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| ClientError::Connect { path: socket.to_owned(), source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::Exchange)?;
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
    if !body.is_empty() {
        request = request.header(header::CONTENT_TYPE, JSON);
    }
    let request = request.body(Body::from(body)).map_err(ClientError::Request)?;
    let asking = async {
        let response = sender.send_request(request).await.map_err(ClientError::Exchange)?;
        Ok((response.status(), collect(response.into_body(), max).await?))
    };
    // The connection makes the exchange progress; it is polled here and not in a task of its own, so that
    // nothing of it outlives the reply. When it ends first, the exchange ends with it, in error or not.
    let mut connection = std::pin::pin!(connection);
    let mut asking = std::pin::pin!(asking);
    let mut open = true;
    loop {
        tokio::select! {
            reply = &mut asking => return reply,
            ended = &mut connection, if open => {
                open = false;
                ended.map_err(ClientError::Exchange)?;
            }
        }
    }
}

/// The whole body in one buffer of the right size from the start, cleared when dropped. hyper's own read buffer is freed
/// without being cleared where parts of it are still shared; it holds nothing that this process does not hold anyway.
async fn collect(mut body: Incoming, max: usize) -> Result<Zeroizing<Vec<u8>>, ClientError> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > max {
        return Err(ClientError::TooLarge(max));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(announced));
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let Ok(data) = frame.map_err(ClientError::Exchange)?.into_data() else { continue };
        if data.len() > max - bytes.len() {
            return Err(ClientError::TooLarge(max));
        }
        bytes.extend_from_slice(&data);
        if let Ok(mut data) = data.try_into_mut() {
            data.zeroize();
        }
    }
    Ok(bytes)
}

/// Connects, sends one byte with these descriptors, and reads the answer's line, without its line feed.
async fn hand_over(
    socket: &Path,
    word: u8,
    descriptors: &[BorrowedFd<'_>],
    most: usize,
) -> io::Result<(BufReader<UnixStream>, Vec<u8>)> {
    let stream = UnixStream::connect(socket).await?;
    stream.writable().await?;
    let descriptors: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    stream.try_io(Interest::WRITABLE, || {
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let rights = if descriptors.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        Ok(sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&[word])], rights, flags, None)?)
    })?;
    let mut connection = BufReader::new(stream);
    let line = line(&mut connection, most).await?;
    Ok((connection, line))
}

/// One line of at most `most` bytes, without its line feed.
async fn line(connection: &mut BufReader<UnixStream>, most: usize) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    connection.take(most as u64).read_until(b'\n', &mut line).await?;
    if line.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}

/// Asking the role `bridge`.
pub(crate) mod bridge {
    use cofferdam_protocol::bridge::{ATTACH, Answer, MAX_ANSWER};

    use super::*;

    /// For an answer: the kernel may first have to take apart what was there before.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Why a service is not in its networks.
    #[derive(Debug, thiserror::Error)]
    pub(crate) enum AttachError {
        /// Nobody listens: the role is not running, or not yet; or it ended meanwhile.
        #[error("the role bridge cannot be asked")]
        Unreachable(#[source] io::Error),
        /// It says why.
        #[error("the role bridge refuses: {0}")]
        Refused(String),
        /// The answer is of no known shape.
        #[error("the answer of the role bridge cannot be read")]
        Malformed,
    }

    /// The service's interfaces are there for as long as this lives.
    #[derive(Debug)]
    pub(crate) struct Attached {
        connection: BufReader<UnixStream>,
    }

    impl Attached {
        /// Returns when the interfaces have gone with the role that made them.
        pub(crate) async fn gone(&mut self) {
            let _ = self.connection.read_u8().await;
        }
    }

    /// Has the interfaces of the caller's service put into `namespace`, in place of those that it had elsewhere.
    ///
    /// # Errors
    ///
    /// [`AttachError`].
    pub(crate) async fn attach(socket: &Path, namespace: BorrowedFd<'_>) -> Result<Attached, AttachError> {
        let asked = timeout(PATIENCE, hand_over(socket, ATTACH, &[namespace], MAX_ANSWER)).await;
        let (connection, line) =
            asked.map_err(io::Error::from).and_then(|asked| asked).map_err(AttachError::Unreachable)?;
        match Answer::parse(&line).map_err(|_| AttachError::Malformed)? {
            Answer::Attached(_) => Ok(Attached { connection }),
            Answer::Refused(why) => Err(AttachError::Refused(why)),
        }
    }
}

/// Asking the role `egress`.
pub(crate) mod egress {
    use std::net::Ipv4Addr;

    use cofferdam_protocol::egress::{Answer, MAX_ANSWER, OPEN, Opened, Question, parse};
    use cofferdam_protocol::json;

    use super::*;

    /// For an answer: it is made from what the role has in memory.
    const PATIENCE: Duration = Duration::from_secs(5);

    /// Why a service has no way outside.
    #[derive(Debug, thiserror::Error)]
    pub(crate) enum OpenError {
        /// Nobody listens: the role is not running, or not yet; or it ended meanwhile.
        #[error("the role egress cannot be asked")]
        Unreachable(#[source] io::Error),
        /// It says why.
        #[error("the role egress refuses: {0}")]
        Refused(String),
        /// The answer is of no known shape.
        #[error("the answer of the role egress cannot be read")]
        Malformed,
    }

    /// The role serves the service's gate for as long as this lives.
    #[derive(Debug)]
    pub(crate) struct Way {
        connection: BufReader<UnixStream>,
    }

    /// Has the role serve the sockets of a gate; without any, answer questions alone.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub(crate) async fn open(socket: &Path, sockets: &[BorrowedFd<'_>]) -> Result<Way, OpenError> {
        let asked = timeout(PATIENCE, hand_over(socket, OPEN, sockets, MAX_ANSWER)).await;
        let (connection, line) =
            asked.map_err(io::Error::from).and_then(|asked| asked).map_err(OpenError::Unreachable)?;
        match parse(&line, MAX_ANSWER).map_err(|_| OpenError::Malformed)? {
            Opened::Listeners(_) => Ok(Way { connection }),
            Opened::Refused(why) => Err(OpenError::Refused(why)),
        }
    }

    impl Way {
        /// The address that stands for a name. `None`: the service may not know it.
        ///
        /// # Errors
        ///
        /// [`OpenError`]; there is no way any more.
        pub(crate) async fn ask(&mut self, name: String) -> Result<Option<Ipv4Addr>, OpenError> {
            let mut question = json::to_vec(&Question { name }).map_err(|_| OpenError::Malformed)?;
            question.push(b'\n');
            let asking = async {
                self.connection.write_all(&question).await?;
                line(&mut self.connection, MAX_ANSWER).await
            };
            let asked = timeout(PATIENCE, asking).await;
            let line =
                asked.map_err(io::Error::from).and_then(|asked| asked).map_err(OpenError::Unreachable)?;
            match parse(&line, MAX_ANSWER).map_err(|_| OpenError::Malformed)? {
                Answer::Address(address) => Ok(Some(address)),
                Answer::Denied => Ok(None),
            }
        }

        /// Returns when the role is gone. It says nothing unasked.
        pub(crate) async fn gone(&mut self) {
            let _ = self.connection.fill_buf().await;
        }
    }
}

/// Asking the vault.
pub(crate) mod vault {
    use std::num::NonZeroU64;

    use cofferdam_protocol::certificate::{CERTIFICATE, KeptCertificate, MAX_BYTES};
    use cofferdam_protocol::json;
    use cofferdam_protocol::reply::ErrorReply;
    use cofferdam_protocol::vault::{
        ANCHORED, Anchored, CHANGED, ChangedReply, ChangedRequest, GivenOrder, LEASE, LeaseReply,
        LeaseRequest, MAX_CHANGE_WAIT_MS, MAX_ORDER_WAIT_MS, MAX_REPLY, MAX_WAIT_MS, MissingReply, ORDERS,
        OrdersRequest,
    };
    use tokio::time::Instant;

    use super::*;
    use crate::paths;

    /// What a lease brings: the values by their references. It prints as names only.
    pub(crate) type Lease = BTreeMap<SecretRef, SecretValue>;

    /// How long the vault may take beyond the wait that it was asked for.
    const GRACE: Duration = Duration::from_secs(5);
    /// Largest reply that says why not, in bytes.
    const MAX_ERROR: usize = 16 * 1024;
    /// First pause before a vault that does not answer is asked again; it doubles up to [`MAX_PAUSE`].
    const MIN_PAUSE: Duration = Duration::from_millis(20);
    /// A vault that was killed is back within about a second.
    const MAX_PAUSE: Duration = Duration::from_millis(500);

    /// Why there is no lease.
    #[derive(Debug, thiserror::Error)]
    pub(crate) enum LeaseError {
        /// These references hold no secret; the wait is over. Ask again.
        #[error("no secret yet for {}", names(.0))]
        Missing(Vec<SecretRef>),
        /// The vault refuses for good: not granted to this uid, or not a valid request.
        #[error("the vault refuses: {0}")]
        Refused(String),
        /// The vault is there and cannot serve now, or cannot be reached; the wait is over. Ask again.
        #[error("the vault cannot be asked")]
        Unreachable(#[source] ClientError),
        /// The vault is there and cannot serve now; the wait is over. Ask again.
        #[error("the vault cannot serve now: {0}")]
        Unavailable(String),
        /// The reply is not a lease.
        #[error("the vault's reply is not a lease")]
        Malformed,
    }

    /// Leases all of these references or none, waiting up to `wait` in total for those that are missing and for a vault
    /// that is being restarted. An empty list needs no vault.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub(crate) async fn lease(references: &[SecretRef], wait: Duration) -> Result<Lease, LeaseError> {
        lease_at(Path::new(paths::VAULT_SOCKET), references, wait).await
    }

    /// The same from the vault at `socket`.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub(crate) async fn lease_at(
        socket: &Path,
        references: &[SecretRef],
        wait: Duration,
    ) -> Result<Lease, LeaseError> {
        if references.is_empty() {
            return Ok(Lease::new());
        }
        let deadline = Instant::now() + wait;
        let mut pause = MIN_PAUSE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match ask(socket, references, left).await {
                Ok(lease) => return Ok(lease),
                Err(error @ (LeaseError::Refused(_) | LeaseError::Malformed)) => return Err(error),
                Err(error) => error,
            };
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            // The vault itself waited for what is missing; what could not be asked is asked again after a pause.
            if matches!(error, LeaseError::Missing(_)) {
                pause = MIN_PAUSE;
            } else {
                tokio::time::sleep(pause).await;
                pause = pause.saturating_mul(2).min(MAX_PAUSE);
            }
        }
    }

    /// What the puts and removals of these add up to: at once, or as soon as it is something else than what is `known`, or after as long as
    /// the vault waits. It is asked once.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub(crate) async fn changed(
        references: &[SecretRef],
        known: Option<&Digest>,
    ) -> Result<Digest, LeaseError> {
        let wait_ms = if known.is_some() { MAX_CHANGE_WAIT_MS } else { 0 };
        let request = ChangedRequest { references: references.to_vec(), known: known.copied(), wait_ms };
        let body = json::to_vec(&request).map_err(|_| LeaseError::Malformed)?;
        let limit = Duration::from_millis(wait_ms) + GRACE;
        let vault = Path::new(paths::VAULT_SOCKET);
        let (status, body) = super::request(vault, Method::POST, CHANGED, body, MAX_ERROR, limit)
            .await
            .map_err(LeaseError::Unreachable)?;
        match status {
            StatusCode::OK => json::from_json::<ChangedReply>(&body, MAX_ERROR)
                .map(|reply| reply.revision)
                .map_err(|_| LeaseError::Malformed),
            status => Err(LeaseError::Unavailable(
                ErrorReply::parse(&body).map_or_else(|_| status.to_string(), |reply| reply.error),
            )),
        }
    }

    /// Lets the vault know that an anchor of the state is published.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub(crate) async fn anchored(socket: &Path, number: NonZeroU64) -> Result<(), LeaseError> {
        let body = json::to_vec(&Anchored { number }).map_err(|_| LeaseError::Malformed)?;
        let (status, body) = super::request(socket, Method::POST, ANCHORED, body, MAX_ERROR, GRACE)
            .await
            .map_err(LeaseError::Unreachable)?;
        match status {
            StatusCode::NO_CONTENT => Ok(()),
            status => Err(LeaseError::Unavailable(
                ErrorReply::parse(&body).map_or_else(|_| status.to_string(), |reply| reply.error),
            )),
        }
    }

    /// What is kept of the certificate that browsers accept.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub(crate) async fn certificate(socket: &Path) -> Result<Option<KeptCertificate>, LeaseError> {
        let (status, body) = super::request(socket, Method::GET, CERTIFICATE, Bytes::new(), MAX_BYTES, GRACE)
            .await
            .map_err(LeaseError::Unreachable)?;
        match status {
            StatusCode::OK => KeptCertificate::parse(&body).map(Some).map_err(|_| LeaseError::Malformed),
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(LeaseError::Unavailable(status.to_string())),
        }
    }

    /// Has it kept.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub(crate) async fn keep_certificate(socket: &Path, kept: &KeptCertificate) -> Result<(), LeaseError> {
        let body = json::to_vec(kept).map_err(|_| LeaseError::Malformed)?;
        let (status, _) = super::request(socket, Method::PUT, CERTIFICATE, body, MAX_ERROR, GRACE)
            .await
            .map_err(LeaseError::Unreachable)?;
        match status {
            StatusCode::NO_CONTENT => Ok(()),
            status => Err(LeaseError::Unavailable(status.to_string())),
        }
    }

    /// The next order of an operator for this process's service after the order `after`; `None` when none came within `wait`.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub(crate) async fn order(after: u32, wait: Duration) -> Result<Option<GivenOrder>, LeaseError> {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).min(MAX_ORDER_WAIT_MS);
        let request = OrdersRequest { after, wait_ms };
        let body = json::to_vec(&request).map_err(|_| LeaseError::Malformed)?;
        let limit = Duration::from_millis(wait_ms) + GRACE;
        let socket = Path::new(paths::VAULT_SOCKET);
        let (status, body) = super::request(socket, Method::POST, ORDERS, body, MAX_ERROR, limit)
            .await
            .map_err(LeaseError::Unreachable)?;
        match status {
            StatusCode::OK => json::from_json(&body, MAX_ERROR).map(Some).map_err(|_| LeaseError::Malformed),
            StatusCode::NO_CONTENT => Ok(None),
            status => Err(LeaseError::Unavailable(status.to_string())),
        }
    }

    async fn ask(socket: &Path, references: &[SecretRef], wait: Duration) -> Result<Lease, LeaseError> {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).min(MAX_WAIT_MS);
        let request = LeaseRequest { references: references.to_vec(), wait_ms };
        let body = json::to_vec(&request).map_err(|_| LeaseError::Malformed)?;
        let limit = Duration::from_millis(wait_ms) + GRACE;
        let (status, body) = super::request(socket, Method::POST, LEASE, body, MAX_REPLY, limit)
            .await
            .map_err(LeaseError::Unreachable)?;
        match status {
            StatusCode::OK => LeaseReply::read(&body, references).map_err(|_| LeaseError::Malformed),
            StatusCode::CONFLICT => match json::from_json::<MissingReply>(&body, MAX_REPLY) {
                Ok(reply) => Err(LeaseError::Missing(reply.missing)),
                Err(_) => Err(LeaseError::Malformed),
            },
            status => {
                let text = ErrorReply::parse(&body).map_or_else(|_| status.to_string(), |reply| reply.error);
                if status.is_client_error() {
                    Err(LeaseError::Refused(text))
                } else {
                    Err(LeaseError::Unavailable(text))
                }
            }
        }
    }

    fn names(references: &[SecretRef]) -> String {
        references.iter().map(SecretRef::as_str).collect::<Vec<_>>().join(", ")
    }
}
