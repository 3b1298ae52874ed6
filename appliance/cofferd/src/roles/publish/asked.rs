//! Where an operator's `coffer publish` arrives: `front`, which has checked the signature, connects, and that is all it says.
//!
//! Nothing is read, so nothing can be wrong with it. What comes of it stands in the status.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::Notify;

/// Pause after accept(2) failed, and between two that are heard: whoever has taken over `front` gets no more than this.
const PAUSE: Duration = Duration::from_secs(1);

/// Tells `asked` of each connection by `uid`, until the task is dropped.
pub(super) async fn listen(listener: UnixListener, uid: u32, asked: Arc<Notify>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if stream.peer_cred().is_ok_and(|peer| peer.uid() == uid) => asked.notify_one(),
            Ok(_) => {}
            Err(error) => eprintln!("publish: cannot accept: {error}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
