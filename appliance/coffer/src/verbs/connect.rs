//! `coffer connect`: a local port whose traffic reaches only the verified appliance.
//!
//! The appliance is verified once, on a connection of its own. Every connection after that has to show the attested
//! TLS key, so it ends in the same TD; with an operator's key it is then signed in on. The evidence is taken anew before it ceases to hold. What may be served and for how
//! long is the session's to say ([`crate::session`]); here it gets its listener, its clock and its verification.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cofferdam_protocol::{Digest, Endpoint};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use crate::channel::{self, SignedIn, Stream};
use crate::cli;
use crate::failure::{Failure, Outcome};
use crate::operator_key::OperatorKey;
use crate::session::{self, Local, Peer, World};
use crate::trust::unix_now;
use crate::ui::Ui;
use crate::within;

pub(crate) async fn run(
    ui: &Ui,
    options: cli::Appliance,
    wait: cli::Wait,
    listen: SocketAddr,
    port: Option<NonZeroU16>,
    key: &cli::OperatorKey,
    limit: Duration,
) -> Outcome {
    let key = operators_key(ui, key)?;
    let first = super::patiently(wait, &options.repository, async || verify(ui, &options, port, None).await);
    let peer = within(limit, first).await?;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|error| Failure::failed(format!("cannot listen on {listen}: {error}")))?;
    let bound = listener
        .local_addr()
        .map_err(|error| Failure::failed(format!("cannot listen on {listen}: {error}")))?;
    let operator = key.as_ref().map(|key| key.fingerprint());
    let mut event = json!({ "event": "listening", "address": bound.to_string(), "endpoint": peer.endpoint, "tls_key": peer.tls_key, "simulated": peer.simulated });
    if let (Some(operator), Some(event)) = (&operator, event.as_object_mut()) {
        event.insert("operator_key".to_owned(), json!(operator));
    }
    if ui.json {
        let _ = ui.line(&crate::ui::with_schema_version(event).to_string());
    } else {
        ui.note(&format!(
            "http://{bound} reaches {} ({}) and nothing else; ends with Ctrl-C",
            peer.endpoint, peer.tls_key
        ));
    }
    if let Some(operator) = operator.filter(|_| !bound.ip().is_loopback()) {
        ui.warn(&format!(
            "whoever reaches {bound} calls the services as the operator with the key {operator}"
        ));
    }
    let begun = (unix_now()?, Instant::now());
    let network = Network { ui: *ui, options, port, listener, begun, key, unknown: AtomicBool::new(false) };
    Err(session::serve(network, peer, limit).await)
}

/// The key to sign in with: the one that is named, or one in the usual places that can be used.
fn operators_key(ui: &Ui, options: &cli::OperatorKey) -> Outcome<Option<OperatorKey>> {
    match OperatorKey::load(options) {
        Ok(key) => Ok(Some(key)),
        Err(failure) if options.key.is_some() => Err(failure),
        Err(failure) => {
            ui.detail(&format!("without an operator's key: {}", failure.message));
            Ok(None)
        }
    }
}

/// The world as it is.
struct Network {
    ui: Ui,
    options: cli::Appliance,
    port: Option<NonZeroU16>,
    listener: TcpListener,
    /// The time by both clocks when the session began.
    begun: (u64, Instant),
    key: Option<OperatorKey>,
    /// Whether the appliance has said that it knows no operator with this key.
    unknown: AtomicBool,
}

impl Network {
    /// The key to sign in with on the next connection.
    fn signs_in(&self) -> Option<&OperatorKey> {
        self.key.as_ref().filter(|_| !self.unknown.load(Ordering::Relaxed))
    }
}

impl World for Network {
    type Local = TcpStream;
    type Remote = Stream;

    /// The later of both clocks: one may be set back, the other stands still while the machine sleeps.
    fn now(&self) -> u64 {
        let (unix, instant) = self.begun;
        unix.saturating_add(instant.elapsed().as_secs()).max(unix_now().unwrap_or(0))
    }

    async fn accept(&self) -> std::io::Result<TcpStream> {
        let (local, _) = self.listener.accept().await?;
        let _ = local.set_nodelay(true);
        Ok(local)
    }

    async fn verify(&self, last: &Peer) -> Outcome<Peer> {
        verify(&self.ui, &self.options, self.port, Some(last)).await
    }

    async fn dial(&self, endpoint: &Endpoint) -> Outcome<(Stream, Digest)> {
        // The session compares the key itself: another one is news to it, and not only a failure.
        let signs_in = self.signs_in().is_some();
        let dialled =
            channel::dial(endpoint, None, signs_in).await.map_err(|error| error.failure(endpoint, true))?;
        Ok((dialled.stream.into(), dialled.peer.tls_key))
    }

    async fn introduce(&self, remote: Stream, endpoint: &Endpoint) -> Outcome<Option<Stream>> {
        let Some(key) = self.signs_in() else {
            return Ok(Some(remote));
        };
        match channel::sign_in(remote, key, &endpoint.to_string()).await? {
            SignedIn::Yes(remote) => Ok(Some(*remote)),
            SignedIn::No(failure) => {
                if !self.unknown.swap(true, Ordering::Relaxed) {
                    self.ui.warn(&format!("{}; nobody is signed in from now on", failure.message));
                }
                Ok(None)
            }
        }
    }

    fn warn(&self, text: &str) {
        self.ui.warn(text);
    }

    fn failed(&self, failure: &Failure) {
        self.ui.complaint(failure);
    }
}

impl Local for TcpStream {
    fn cut(&self) {
        let _ = self.set_zero_linger();
    }
}

async fn verify(
    ui: &Ui,
    options: &cli::Appliance,
    port: Option<NonZeroU16>,
    last: Option<&Peer>,
) -> Outcome<Peer> {
    let channel = super::open(ui, options, last.map(|peer| peer.tls_key)).await?;
    let claims = &channel.claims;
    let dialled = options.endpoint.as_ref().unwrap_or(&claims.endpoint);
    let endpoint = port.map_or_else(|| dialled.clone(), |port| dialled.with_port(port));
    let expires_unix = channel.expires_unix;
    // Renewed at two thirds of what is left, so that an outage has a third of it to pass.
    let renew_unix = expires_unix.saturating_sub(expires_unix.saturating_sub(unix_now()?) / 3);
    Ok(Peer {
        endpoint,
        tls_key: claims.tls_key,
        renew_unix,
        expires_unix,
        simulated: channel.appraisal.simulated,
    })
}
