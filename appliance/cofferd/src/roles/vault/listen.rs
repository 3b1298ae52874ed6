//! The vault's socket: who may hold a connection, for how long, and who is at its other end.
//!
//! The socket is open to everybody (0666). What a peer gets is decided by its uid, which the kernel took down when the
//! peer connected (SO_PEERCRED, unix(7)); nothing that a peer says about itself is asked for. axum's own accept
//! loop has no timer for request headers, so the loop is here, on hyper.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use cofferdam_vault::Peer;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};

/// Open connections of all peers: 32 shims, three roles, and room for each one's restarts.
const CONNECTIONS: usize = 256;
/// Open connections of one peer, so that one that has been taken over cannot keep the others out. The front relays
/// operators' requests, one connection each.
const CONNECTIONS_PER_PEER: usize = 32;
/// For the headers of a request, and for the silence between two. A local peer writes them at once.
const HEADERS: Duration = Duration::from_secs(5);
/// For a whole connection: the longest wait of a lease, and the time to take the largest reply.
const CONNECTION: Duration = Duration::from_secs(120);
/// hyper's buffer for headers and small bodies, in bytes. A request has three headers.
const BUFFER: usize = 16 * 1024;
/// Pause after accept(2) failed: out of descriptors, for which somebody else has to let go.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until the task is dropped.
pub(super) async fn serve(listener: UnixListener, router: Router) {
    let places = Places::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("vault: cannot accept: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // A connection without a known peer or without a place is closed: the peer sees it end.
        let Some((peer, place)) = stream.peer_cred().ok().and_then(|peer| {
            let peer = Peer { uid: peer.uid() };
            places.take(peer.uid).map(|place| (peer, place))
        }) else {
            continue;
        };
        let router = router.clone();
        tokio::spawn(async move {
            // What goes wrong on a connection concerns its peer alone.
            let _ = tokio::time::timeout(CONNECTION, converse(stream, peer, router)).await;
            drop(place);
        });
    }
}

async fn converse(stream: UnixStream, peer: Peer, router: Router) -> Result<(), hyper::Error> {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        router.call(request.map(Body::new))
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// Open connections by peer.
#[derive(Clone, Default)]
struct Places(Arc<Mutex<BTreeMap<u32, usize>>>);

/// One open connection; its place is free again when this is dropped.
struct Place {
    places: Places,
    uid: u32,
}

impl Places {
    fn take(&self, uid: u32) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = counts.values().sum();
        let own = counts.get(&uid).copied().unwrap_or(0);
        if all >= CONNECTIONS || own >= CONNECTIONS_PER_PEER {
            return None;
        }
        counts.insert(uid, own + 1);
        Some(Place { places: self.clone(), uid })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get(&self.uid).copied() {
            Some(own) if own > 1 => counts.insert(self.uid, own - 1),
            _ => counts.remove(&self.uid),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_cannot_take_the_places_of_all() {
        let places = Places::default();
        let held: Vec<_> = std::iter::from_fn(|| places.take(100_000)).collect();
        assert_eq!(held.len(), CONNECTIONS_PER_PEER);
        let other = places.take(165_536).unwrap();
        drop(held);
        drop(other);
        assert!(places.0.lock().unwrap().is_empty());

        let all: Vec<_> = (0..).map_while(|uid| places.take(uid)).collect();
        assert_eq!(all.len(), CONNECTIONS);
    }
}
