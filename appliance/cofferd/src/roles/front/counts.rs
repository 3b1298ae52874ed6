//! What the front has counted since it started, for operators: how much, and of whom nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::StatusCode;
use cofferdam_protocol::status::{FrontStatus, Refusal};

/// The counters.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    opened: AtomicU64,
    closed: AtomicU64,
    quotes: AtomicU64,
    documents: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
}

/// A connection that is counted as open until this is dropped.
#[derive(Debug)]
pub(crate) struct Open(Arc<Counts>);

impl Drop for Open {
    fn drop(&mut self) {
        add(&self.0.closed, 1);
    }
}

impl Counts {
    /// A connection was accepted.
    pub(crate) fn opened(self: &Arc<Self>) -> Open {
        add(&self.opened, 1);
        Open(Arc::clone(self))
    }

    /// Somebody did not get what they came for.
    pub(crate) fn refused(&self, why: Refusal) {
        let counted = Refusal::ALL.iter().zip(&self.refused).find(|(one, _)| **one == why);
        if let Some((_, count)) = counted {
            add(count, 1);
        }
    }

    /// The front itself answered with this status.
    pub(crate) fn answered(&self, status: StatusCode) {
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.refused(Refusal::NotAllowed),
            status if status.is_client_error() => self.refused(Refusal::Malformed),
            status if status.is_server_error() => self.refused(Refusal::Unavailable),
            _ => {}
        }
    }

    /// A quote was made for so many who asked.
    pub(crate) fn quoted(&self, documents: usize) {
        add(&self.quotes, 1);
        add(&self.documents, u64::try_from(documents).unwrap_or(u64::MAX));
    }

    /// All of them.
    pub(crate) fn status(&self) -> FrontStatus {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let closed = read(&self.closed);
        let connections = read(&self.opened);
        let refused: BTreeMap<Refusal, u64> =
            Refusal::ALL.into_iter().zip(self.refused.iter().map(read)).collect();
        let (quotes, documents) = (read(&self.quotes), read(&self.documents));
        FrontStatus { connections, open: connections.saturating_sub(closed), refused, quotes, documents }
    }
}

fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_where_it_belongs() {
        let counts = Arc::new(Counts::default());
        let (one, two) = (counts.opened(), counts.opened());
        drop(one);
        counts.refused(Refusal::Handshake);
        counts.quoted(300);
        counts.quoted(1);
        for status in [200, 401, 403, 404, 413, 502, 503] {
            counts.answered(StatusCode::from_u16(status).unwrap());
        }
        let status = counts.status();
        assert_eq!((status.connections, status.open, status.quotes, status.documents), (2, 1, 2, 301));
        let refused = [
            (Refusal::Handshake, 1),
            (Refusal::Displaced, 0),
            (Refusal::NotAllowed, 2),
            (Refusal::Malformed, 2),
            (Refusal::Unavailable, 2),
        ];
        assert_eq!(status.refused, BTreeMap::from(refused));
        drop(two);
        assert_eq!(counts.status().open, 0);
    }
}
