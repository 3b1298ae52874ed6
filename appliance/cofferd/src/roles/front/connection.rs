//! Where a connection is counted, from accept(2) to its end.
//!
//! Until a request is complete nobody knows what a connection is for: it waits, with all the others, and so does one that is
//! kept alive between two requests. A request moves it to the places of what was asked for, until the answer has been
//! taken. So what is going on in the services leaves nobody without a place to ask, and the appliance's own interface
//! has places that nothing else takes.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use cofferdam_workload::places::{Place, Places};
use hyper::upgrade::OnUpgrade;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::source::Source;
use super::stall::StallTimeoutBody;
use super::upstream::Upstream;

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Whose it is.
    source: Source,
    /// The places of those that wait.
    waiting: Arc<Places<Source>>,
    /// What it does.
    now: Mutex<Now>,
    /// Told when its place was given to another.
    ended: Arc<Notify>,
    /// Told when nothing is under way any more, or nothing more is to come.
    changed: Notify,
    /// Who has signed in on it.
    operator: OnceLock<String>,
    /// What comes after a sign-in that asked for the connection itself.
    next: Mutex<Option<OnUpgrade>>,
    /// Its client's connections to the service.
    upstream: Arc<Upstream>,
}

#[derive(Debug)]
struct Now {
    /// Its own place among those that wait, while it does.
    place: Option<Place<Source>>,
    /// Requests under way, of which HTTP/2 has several.
    under_way: usize,
    /// Since when there is none.
    since: Instant,
    /// Nothing more is to come on it.
    closing: bool,
}

/// What a request holds until its answer has been taken. Its connection, if it lasts, then waits again.
#[derive(Debug)]
pub(crate) struct Away<P> {
    connection: Weak<Connection>,
    place: P,
}

impl<P> Away<P> {
    /// What is held.
    pub(crate) fn place(&self) -> &P {
        &self.place
    }
}

impl Connection {
    /// A connection that waits.
    pub(crate) fn new(source: Source, waiting: &Arc<Places<Source>>) -> Arc<Self> {
        let ended = Arc::new(Notify::new());
        let place = Some(waiting.enter(source, &ended));
        Arc::new(Self {
            source,
            waiting: Arc::clone(waiting),
            now: Mutex::new(Now { place, under_way: 0, since: Instant::now(), closing: false }),
            ended,
            changed: Notify::new(),
            operator: OnceLock::new(),
            next: Mutex::default(),
            upstream: Arc::default(),
        })
    }

    /// The operator who has signed in on it.
    pub(crate) fn operator(&self) -> Option<&str> {
        self.operator.get().map(String::as_str)
    }

    /// What comes on it is this operator's from now on; false when it is another's.
    pub(crate) fn sign_in(&self, operator: &str) -> bool {
        self.operator.get_or_init(|| operator.to_owned()) == operator
    }

    /// Whose it is.
    pub(crate) fn source(&self) -> Source {
        self.source
    }

    /// Its client's connections to the service behind the port.
    pub(crate) fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// What was said is over; `stream` is what comes next.
    pub(crate) fn go_on(&self, stream: OnUpgrade) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
    }

    /// What comes next, if something does.
    pub(crate) fn next(&self) -> Option<OnUpgrade> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Returns when its place was given to another: the connection has to end.
    pub(crate) async fn ended(&self) {
        self.ended.notified().await;
    }

    /// Nothing more is to come on it than what is under way.
    pub(crate) fn close(&self) {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).closing = true;
        self.changed.notify_one();
    }

    /// Returns when that was said, or when no request was under way for `limit`.
    pub(crate) async fn over(&self, limit: Duration) {
        loop {
            let (closing, end) = {
                let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
                (now.closing, (now.under_way == 0).then_some(now.since + limit))
            };
            match end {
                _ if closing => return,
                Some(end) if Instant::now() >= end => return,
                Some(end) => tokio::select! {
                    () = sleep_until(end) => {}
                    () = self.changed.notified() => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    /// Gives up its place among those that wait for one of these.
    pub(crate) fn enter(self: &Arc<Self>, places: &Arc<Places<Source>>) -> Away<Place<Source>> {
        self.leave(places.enter(self.source, &self.ended))
    }

    /// Gives up its place among those that wait, for as long as `place` is held.
    pub(crate) fn leave<P>(self: &Arc<Self>, place: P) -> Away<P> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.under_way = now.under_way.saturating_add(1);
        let former = now.place.take();
        // A place that is given up is dropped outside of the lock.
        drop(now);
        drop(former);
        Away { connection: Arc::downgrade(self), place }
    }

    fn come_back(&self) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.under_way = now.under_way.saturating_sub(1);
        if now.under_way == 0 {
            now.since = Instant::now();
            now.place = Some(self.waiting.enter(self.source, &self.ended));
            self.changed.notify_one();
        }
    }
}

impl<P> Drop for Away<P> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.upgrade() {
            connection.come_back();
        }
    }
}

/// The answer, which keeps `held` until it has been written or given up.
pub(crate) fn hold<P: Send + Unpin + 'static>(response: Response<Body>, held: P) -> Response<Body> {
    response.map(|body| Body::new(StallTimeoutBody::new(body, None, held)))
}
