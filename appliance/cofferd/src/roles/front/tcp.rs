//! Ports that carry bytes: what a client sends goes to the service as it is, and back.
//!
//! TLS ends here, with the attested key, or at the service where the port says `tls: passthrough`. Nobody can be asked for a token in
//! somebody else's protocol, so such a port is for operators, who sign in before the first byte, or for everybody.

use tokio::io::{AsyncRead, AsyncWrite};

use cofferdam_workload::join::{Idle, join};
use std::time::Duration;

use super::listen::Peer;
use super::proxy::Backend;
use super::upstream;

/// Connections at one port. Of those the longest silent one, of the source that has most, ends for the next one.
pub(super) const CONNECTIONS: usize = 128;

/// Silence after which a connection is forgotten: as long as the shim's relay keeps it.
pub(super) const IDLE: Idle =
    Idle { open: Duration::from_secs(8 * 3600), half_closed: Duration::from_secs(300) };

/// Speaks the bytes of one connection, or hangs up when there is no service.
pub(crate) async fn carry<S>(stream: S, peer: &Peer, backend: &Backend)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let held = peer.connection.enter(&backend.connections);
    let Some(service) = upstream::connect(backend).await else { return };
    join(stream, service, IDLE, || held.place().touch()).await;
}
