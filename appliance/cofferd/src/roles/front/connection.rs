//! Where a connection is counted, from accept(2) to its end.
//!
//! Until a request is complete nobody knows what a connection is for: it waits, with all the others, and so does one that is
//! kept alive between two requests. A request moves it to the places of what was asked for, until the answer has been
//! taken. So what is going on in the services leaves nobody without a place to ask, and the appliance's own interface
//! has places that nothing else takes.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use axum::body::Body;
use axum::http::Response;
use cofferdam_workload::places::{Place, Places};
use tokio::sync::Notify;

use super::source::Source;
use super::stall::StallTimeoutBody;

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Whose it is.
    source: Source,
    /// The places of those that wait.
    waiting: Arc<Places<Source>>,
    /// Its own there, while it waits.
    place: Mutex<Option<Place<Source>>>,
    /// Told when its place was given to another.
    ended: Arc<Notify>,
    /// Who has signed in on it.
    operator: OnceLock<String>,
}

/// What a request holds until its answer has been taken. Its connection, if it lasts, then waits again.
#[derive(Debug)]
pub(crate) struct Away<P> {
    connection: Weak<Connection>,
    _place: P,
}

impl Connection {
    /// A connection that waits.
    pub(crate) fn new(source: Source, waiting: &Arc<Places<Source>>) -> Arc<Self> {
        let ended = Arc::new(Notify::new());
        let place = Mutex::new(Some(waiting.enter(source, &ended)));
        Arc::new(Self { source, waiting: Arc::clone(waiting), place, ended, operator: OnceLock::new() })
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

    /// Returns when its place was given to another: the connection has to end.
    pub(crate) async fn ended(&self) {
        self.ended.notified().await;
    }

    /// Gives up its place among those that wait for one of these.
    pub(crate) fn enter(self: &Arc<Self>, places: &Arc<Places<Source>>) -> Away<Place<Source>> {
        self.leave(places.enter(self.source, &self.ended))
    }

    /// Gives up its place among those that wait, for as long as `place` is held.
    pub(crate) fn leave<P>(self: &Arc<Self>, place: P) -> Away<P> {
        self.put(None);
        Away { connection: Arc::downgrade(self), _place: place }
    }

    fn put(&self, place: Option<Place<Source>>) {
        // A place that is given up is dropped outside of the lock.
        let former =
            std::mem::replace(&mut *self.place.lock().unwrap_or_else(PoisonError::into_inner), place);
        drop(former);
    }
}

impl<P> Drop for Away<P> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.upgrade() {
            connection.put(Some(connection.waiting.enter(connection.source, &connection.ended)));
        }
    }
}

/// The answer, which keeps `held` until it has been written or given up.
pub(crate) fn hold<P: Send + Unpin + 'static>(response: Response<Body>, held: P) -> Response<Body> {
    response.map(|body| Body::new(StallTimeoutBody::new(body, None, held)))
}
