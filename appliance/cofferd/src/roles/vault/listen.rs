//! The vault's socket: who may hold a connection, for how long, and who is at its other end.
//!
//! The socket is open to everybody (0666). What a peer gets is decided by its uid, which the kernel took down when the
//! peer connected (SO_PEERCRED, unix(7)); nothing that a peer says about itself is asked for. axum's own accept
//! loop has no timer for request headers, so the loop is here, on hyper.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use cofferdam_declaration::MAX_SERVICES;
use cofferdam_vault::Peer;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};

use crate::paths::{SERVICE_UID_BASE, SERVICE_UID_RANGE};
use crate::roles::ROLES;
use crate::system::quota::Quota;

/// Open connections of one holder: a role, or a service with all its ids, which root of its shim can take on one by one. A
/// shim has one at a time, and one more when it is started again; the front relays eight operators' requests.
const CONNECTIONS_EACH: usize = 16;
/// Open connections of all: as many as all holders can have, so that no number of them keeps another out.
const CONNECTIONS: usize = CONNECTIONS_EACH * (MAX_SERVICES + ROLES.len());
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
    let connections = Quota::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("vault: cannot accept: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // A connection without a known peer or beyond its share is closed: the peer sees it end.
        let Some((peer, permit)) = stream.peer_cred().ok().and_then(|peer| {
            let peer = Peer { uid: peer.uid() };
            let bounds = [(None, CONNECTIONS), (Some(holder(peer.uid)), CONNECTIONS_EACH)];
            connections.take(&bounds).map(|permit| (peer, permit))
        }) else {
            continue;
        };
        let router = router.clone();
        tokio::spawn(async move {
            // What goes wrong on a connection concerns its peer alone.
            let _ = tokio::time::timeout(CONNECTION, converse(stream, peer, router)).await;
            drop(permit);
        });
    }
}

/// Who holds the connections of a peer with this uid: the role, or the service with the first of its ids.
fn holder(uid: u32) -> u32 {
    match uid.checked_sub(SERVICE_UID_BASE) {
        Some(above) => uid.saturating_sub(above % SERVICE_UID_RANGE),
        None => uid,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_holds_its_connections_under_all_its_ids() {
        let second = SERVICE_UID_BASE + SERVICE_UID_RANGE;
        for uid in [second, second + 1, second + SERVICE_UID_RANGE - 1] {
            assert_eq!(holder(uid), second);
        }
        assert_eq!(holder(SERVICE_UID_BASE), SERVICE_UID_BASE);
        assert_eq!(holder(second - 1), SERVICE_UID_BASE);
        assert_eq!([holder(0), holder(102)], [0, 102]);
    }

    #[test]
    fn no_number_of_services_keeps_a_role_out() {
        let connections = Quota::new();
        let take = |uid: u32| connections.take(&[(None, CONNECTIONS), (Some(holder(uid)), CONNECTIONS_EACH)]);
        let mut held = Vec::new();
        for service in 0..MAX_SERVICES as u32 {
            for id in 0..1000 {
                held.extend(take(SERVICE_UID_BASE + service * SERVICE_UID_RANGE + id));
            }
        }
        assert_eq!(held.len(), CONNECTIONS_EACH * MAX_SERVICES);
        let front = crate::roles::FRONT.uid().unwrap();
        assert!((0..CONNECTIONS_EACH).all(|_| take(front).map(|permit| held.push(permit)).is_some()));
    }

    #[test]
    fn the_documents_have_the_numbers_of_the_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ARCHITECTURE.md");
        let row = format!("| connections to `vault` | {CONNECTIONS} | role or service: {CONNECTIONS_EACH} |");
        assert!(std::fs::read_to_string(path).unwrap().contains(&row), "{row}");
    }
}
