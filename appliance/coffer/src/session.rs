//! The session of `coffer connect`: what may be served, how long, and when it ends.
//!
//! Duties: accept local connections, carry each to the attested peer, renew the evidence beside that (never in its way), and
//! stop. Rules, in the order of their weight:
//!
//! 1. After a renewal that was *refused* nothing is served any more: the session ends with that refusal, and with it every
//!    open stream.
//! 2. While a renewal *could not be checked* the last evidence counts until it expires, and not a second longer. Then
//!    connections are turned away until a renewal succeeds. A reboot is no refusal: a sealed appliance, or one whose new key
//!    is not attested yet, gets nothing, and is asked again.
//! 3. A stream lives as long as the evidence it was opened under, or that which renewed it: the same TLS key.
//!
//! Clock, listener, peer and verification come in through [`World`], so that the tests own them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cofferdam_protocol::{Digest, Endpoint};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::failure::{Code, Failure, Outcome};

/// Least pause between renewals, however they came out; between those that could not be checked it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long before the evidence expires a person is warned of it; half of the time for renewals when that is less.
const WARNING_S: u64 = 120;
/// Longest sleep before the clock is read again: a laptop that was closed does not wake with old evidence.
const CLOCK_CHECK: Duration = Duration::from_secs(15);
/// A listener that fails is out of descriptors, most likely: those in use come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Most streams at once.
const MAX_STREAMS: usize = 1_024;

/// The attested peer, as of one verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) endpoint: Endpoint,
    pub(crate) tls_key: Digest,
    pub(crate) renew_unix: u64,
    pub(crate) expires_unix: u64,
    pub(crate) simulated: bool,
}

/// A local connection.
pub(crate) trait Local: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes the end of this connection show as broken off: a plain end would make half an answer look whole.
    fn cut(&self);
}

/// What the session needs from outside.
pub(crate) trait World: Send + Sync + 'static {
    type Local: Local;
    type Remote: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Seconds since the Unix epoch. Never runs backwards.
    fn now(&self) -> u64;
    /// The next local connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Local>> + Send;
    /// Verifies the appliance anew, knowing the key that was attested before.
    fn verify(&self, last: &Peer) -> impl Future<Output = Outcome<Peer>> + Send;
    /// Opens a connection to the peer; the key that the other end holds comes with it.
    fn dial(&self, endpoint: &Endpoint) -> impl Future<Output = Outcome<(Self::Remote, Digest)>> + Send;
    /// Says who is calling, on a connection to the attested peer on which nothing else was said. `None` when the peer did not want
    /// to know: then the world says nothing more of it, and a connection has to be opened anew.
    fn introduce(
        &self,
        remote: Self::Remote,
        endpoint: &Endpoint,
    ) -> impl Future<Output = Outcome<Option<Self::Remote>>> + Send;
    /// Says something that a person must not miss.
    fn warn(&self, text: &str);
    /// Says why a connection or a renewal failed.
    fn failed(&self, failure: &Failure);
}

/// What the tasks of a session share.
struct Shared<W> {
    world: W,
    /// Bound on one verification and on one dial.
    limit: Duration,
    /// Wakes the renewal before its time: somebody else answers at the endpoint.
    other_key: Notify,
    streams: AtomicUsize,
}

/// Serves until a renewal is refused; returns why.
pub(crate) async fn serve<W: World>(world: W, first: Peer, limit: Duration) -> Failure {
    let shared = Arc::new(Shared { world, limit, other_key: Notify::new(), streams: AtomicUsize::new(0) });
    let (renewed, peer) = watch::channel(first);
    let mut renewal = std::pin::pin!(renew(Arc::clone(&shared), renewed));
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            // A refusal comes before the next connection.
            biased;
            refused = &mut renewal => {
                streams.shutdown().await;
                return refused;
            }
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
            accepted = shared.world.accept(), if streams.len() < MAX_STREAMS => match accepted {
                Ok(local) => drop(streams.spawn(carry(Arc::clone(&shared), peer.clone(), local))),
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}

/// Renews the evidence for ever; returns when that was refused.
async fn renew<W: World>(shared: Arc<Shared<W>>, renewed: watch::Sender<Peer>) -> Failure {
    let world = &shared.world;
    let mut due = renewed.borrow().renew_unix;
    let mut pause = FIRST_PAUSE;
    // Before this time nobody is asked, whatever happens.
    let mut earliest = 0;
    loop {
        let peer = renewed.borrow().clone();
        wait_until_due(&shared, &peer, due, earliest).await;
        let outcome = verify(&shared, &peer).await;
        earliest = world.now().saturating_add(FIRST_PAUSE.as_secs());
        match outcome {
            Ok(fresh) => {
                if fresh.tls_key != peer.tls_key && shared.streams.load(Ordering::Relaxed) > 0 {
                    world.warn(&format!(
                        "{} has another key now; streams that are open end when the evidence for theirs expires",
                        fresh.endpoint
                    ));
                }
                (due, pause) = (fresh.renew_unix, FIRST_PAUSE);
                renewed.send_replace(fresh);
            }
            Err(failure) if may_pass(&failure) => {
                world.failed(&failure);
                world.warn(&standing(&peer, world.now()));
                due = world.now().saturating_add(pause.as_secs());
                // GitHub limits whoever does not keep to what it asks for.
                let asked = failure.retry_after.unwrap_or_default();
                earliest = earliest.max(world.now().saturating_add(asked.as_secs()));
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(failure) => return failure,
        }
    }
}

/// Whether the next renewal may succeed without anybody having lied in this one.
fn may_pass(failure: &Failure) -> bool {
    failure.after_reboot || matches!(failure.code, Code::CouldNotCheck | Code::NotReady)
}

/// One verification within the limit.
async fn verify<W: World>(shared: &Shared<W>, peer: &Peer) -> Outcome<Peer> {
    let verification = timeout(shared.limit, shared.world.verify(peer));
    warned(shared, peer, verification).await.unwrap_or_else(|_| {
        Err(Failure::could_not_check(format!("the renewal got no answer in {:?}", shared.limit)))
    })
}

/// Waits until the renewal is due, or until somebody with another key was met, but always until `earliest`.
async fn wait_until_due<W: World>(shared: &Shared<W>, peer: &Peer, due: u64, earliest: u64) {
    let due = async {
        tokio::select! {
            () = until(&shared.world, due.max(earliest)) => {}
            () = shared.other_key.notified() => {}
        }
        until(&shared.world, earliest).await;
    };
    warned(shared, peer, due).await;
}

/// Does `work`, and warns meanwhile when the evidence is about to expire.
async fn warned<W: World, T>(shared: &Shared<W>, peer: &Peer, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => done,
        () = warn_before_expiry(shared, peer) => work.await,
    }
}

/// Warns in time that evidence expires.
async fn warn_before_expiry<W: World>(shared: &Shared<W>, peer: &Peer) {
    let world = &shared.world;
    let lead = WARNING_S.min(peer.expires_unix.saturating_sub(peer.renew_unix) / 2);
    let at = peer.expires_unix.saturating_sub(lead);
    if world.now() > at {
        // Then each attempt that fails says what is left.
        return;
    }
    until(world, at).await;
    let open = shared.streams.load(Ordering::Relaxed);
    world.warn(&format!(
        "the evidence of {} expires in {} s and is not renewed yet; {open} open streams end then",
        peer.endpoint,
        peer.expires_unix.saturating_sub(world.now()),
    ));
}

/// What a renewal leaves that was neither good nor a refusal.
fn standing(peer: &Peer, now: u64) -> String {
    match peer.expires_unix.checked_sub(now).filter(|left| *left > 0) {
        Some(left) => format!("{} is served on the last evidence, for {left} s at most", peer.endpoint),
        None => {
            format!("the evidence of {} has expired: nothing is served until it is renewed", peer.endpoint)
        }
    }
}

/// Sleeps until a time of the world's clock, which may leap.
async fn until<W: World>(world: &W, unix: u64) {
    while let Some(left) = unix.checked_sub(world.now()).filter(|left| *left > 0) {
        sleep(Duration::from_secs(left).min(CLOCK_CHECK)).await;
    }
}

/// One local connection, from its beginning to its end.
async fn carry<W: World>(shared: Arc<Shared<W>>, mut peers: watch::Receiver<Peer>, local: W::Local) {
    let mut local = CutUnlessWhole { local, whole: false };
    let peer = peers.borrow_and_update().clone();
    let remote = match attach(&shared, &peer).await {
        Ok(remote) => remote,
        Err(failure) => return shared.world.failed(&failure),
    };
    let _counted = Counted::new(&shared.streams);
    let mut remote = remote;
    tokio::select! {
        biased;
        () = expiry(&shared.world, peer, &mut peers) => {
            shared.world.warn("a stream was ended: the evidence it was opened under has expired");
        }
        copied = copy_bidirectional(&mut local.local, &mut remote) => local.whole = copied.is_ok(),
    }
}

/// A connection to the attested peer, on evidence that holds.
async fn attach<W: World>(shared: &Shared<W>, peer: &Peer) -> Outcome<W::Remote> {
    let world = &shared.world;
    let expired = || {
        let expired = world.now() >= peer.expires_unix;
        expired.then(|| Failure::could_not_check(standing(peer, world.now())))
    };
    if let Some(failure) = expired() {
        return Err(failure);
    }
    let remote = match timeout(shared.limit, reach(shared, peer)).await {
        Ok(remote) => remote?,
        Err(_) => {
            let what = format!("{} does not answer within {:?}", peer.endpoint, shared.limit);
            return Err(Failure::could_not_check(what));
        }
    };
    // Dialling took its time.
    expired().map_or(Ok(remote), Err)
}

/// Dials, and says who is calling to nobody but the holder of the attested key.
async fn reach<W: World>(shared: &Shared<W>, peer: &Peer) -> Outcome<W::Remote> {
    loop {
        let (remote, tls_key) = shared.world.dial(&peer.endpoint).await?;
        if tls_key != peer.tls_key {
            shared.other_key.notify_one();
            return Err(Failure::rejected(format!(
                "tls_key: {} now shows {tls_key}, attested is {}",
                peer.endpoint, peer.tls_key
            )));
        }
        if let Some(remote) = shared.world.introduce(remote, &peer.endpoint).await? {
            return Ok(remote);
        }
    }
}

/// Waits until the evidence for `peer` has expired, as it is renewed: by evidence for the same key.
async fn expiry<W: World>(world: &W, mut peer: Peer, peers: &mut watch::Receiver<Peer>) {
    loop {
        tokio::select! {
            biased;
            changed = peers.changed() => {
                let now = peers.borrow_and_update().clone();
                if now.tls_key == peer.tls_key {
                    peer = now;
                }
                if changed.is_err() {
                    // The session is over, and ends its streams itself.
                    return until(world, peer.expires_unix).await;
                }
            }
            () = until(world, peer.expires_unix) => return,
        }
    }
}

/// A local connection that shows as cut off unless both sides came to their end.
struct CutUnlessWhole<L: Local> {
    local: L,
    whole: bool,
}

impl<L: Local> Drop for CutUnlessWhole<L> {
    fn drop(&mut self) {
        if !self.whole {
            self.local.cut();
        }
    }
}

/// Counts a stream while it is open.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
