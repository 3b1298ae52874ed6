//! Two byte streams joined until they end, or until nothing has passed between them for too long.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// How long nothing may pass in either direction.
#[derive(Debug, Clone, Copy)]
pub struct Idle {
    /// While both sides may still send.
    pub open: Duration,
    /// Once one of them has ended: it waits for an answer or it is forgotten.
    pub half_closed: Duration,
}

/// Carries bytes both ways until both sides have ended, one has failed, or nothing has passed for as long as `idle` says.
/// The end of one side is passed on and leaves the other open. `moved` is called whenever something has passed.
pub async fn join<A, B>(a: A, mut b: B, idle: Idle, moved: impl Fn())
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let activity = Activity::new();
    // Every byte is read from this side or written to it, so it is enough to look at one.
    let mut a = Observed::new(a, &activity, &moved);
    tokio::select! {
        // Either side may fail at any time; that is no error of the join.
        _ = copy_bidirectional(&mut a, &mut b) => {}
        () = activity.silence(idle) => {}
    }
}

/// What has happened on a stream.
pub(crate) struct Activity {
    /// Times are milliseconds from here.
    start: Instant,
    /// When something passed last.
    last: AtomicU64,
    /// One side has ended.
    half_closed: AtomicBool,
    /// Told when that becomes so.
    changed: Notify,
}

impl Activity {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            last: AtomicU64::new(0),
            half_closed: AtomicBool::new(false),
            changed: Notify::new(),
        }
    }

    fn now(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    fn half_close(&self) {
        if !self.half_closed.swap(true, Ordering::Relaxed) {
            self.now();
            self.changed.notify_one();
        }
    }

    /// Returns when nothing has passed for too long.
    pub(crate) async fn silence(&self, idle: Idle) {
        loop {
            let limit = if self.half_closed.load(Ordering::Relaxed) { idle.half_closed } else { idle.open };
            let until = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit;
            if Instant::now() >= until {
                return;
            }
            tokio::select! {
                () = sleep_until(until) => {}
                () = self.changed.notified() => {}
            }
        }
    }
}

/// A stream whose movements are noted.
pub(crate) struct Observed<'a, S, F> {
    /// The stream.
    inner: S,
    /// Where they are noted.
    activity: &'a Activity,
    /// Who else wants to know.
    moved: &'a F,
}

impl<'a, S, F: Fn()> Observed<'a, S, F> {
    /// Has `activity` note what passes, and calls `moved` then.
    pub(crate) fn new(inner: S, activity: &'a Activity, moved: &'a F) -> Self {
        Self { inner, activity, moved }
    }

    fn note(&self, bytes: usize) {
        if bytes > 0 {
            self.activity.now();
            (self.moved)();
        }
    }
}

impl<S: AsyncRead + Unpin, F: Fn()> AsyncRead for Observed<'_, S, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        let count = buffer.filled().len().saturating_sub(before);
        self.note(count);
        if count == 0 {
            self.activity.half_close();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin, F: Fn()> AsyncWrite for Observed<'_, S, F> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.inner).poll_write(context, bytes))?;
        self.note(count);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The other side has ended: that is passed on to this one.
        self.activity.half_close();
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::*;

    const IDLE: Idle = Idle { open: Duration::from_secs(3600), half_closed: Duration::from_secs(60) };

    /// Both far ends, and the joint with the time that it lasted.
    fn joined() -> (DuplexStream, DuplexStream, JoinHandle<Duration>) {
        let ((client, a), (b, server)) = (duplex(1024), duplex(1024));
        let start = Instant::now();
        let joint = tokio::spawn(async move {
            join(a, b, IDLE, || {}).await;
            start.elapsed()
        });
        (client, server, joint)
    }

    /// Within a second of this, for the clock of timers has milliseconds.
    fn about(lasted: Duration, expected: Duration) {
        assert!(
            lasted >= expected && lasted < expected + Duration::from_secs(1),
            "{lasted:?}, not {expected:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn silence_in_both_directions_ends_it_and_a_byte_in_either_does_not() {
        let (mut client, mut server, joint) = joined();
        for _ in 0..3 {
            tokio::time::sleep(IDLE.open - Duration::from_secs(1)).await;
            client.write_all(b"x").await.unwrap();
            server.read_exact(&mut [0]).await.unwrap();
            tokio::time::sleep(IDLE.open - Duration::from_secs(1)).await;
            server.write_all(b"y").await.unwrap();
            client.read_exact(&mut [0]).await.unwrap();
        }
        about(joint.await.unwrap(), IDLE.open * 7 - Duration::from_secs(6));
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn half_closed_it_lasts_as_long_as_the_other_half_is_of_use() {
        for client_ends in [true, false] {
            let (client, server, joint) = joined();
            let (mut ending, mut other) = if client_ends { (client, server) } else { (server, client) };
            tokio::time::sleep(IDLE.open / 2).await;
            ending.shutdown().await.unwrap();
            assert_eq!(other.read(&mut [0]).await.unwrap(), 0, "the end is passed on");
            for _ in 0..10 {
                tokio::time::sleep(IDLE.half_closed / 2).await;
                other.write_all(b"answer").await.unwrap();
                ending.read_exact(&mut [0; 6]).await.unwrap();
            }
            about(joint.await.unwrap(), IDLE.open / 2 + IDLE.half_closed * 6);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_does_not_read_is_as_good_as_silent() {
        let (mut client, _server, joint) = joined();
        let writing = tokio::spawn(async move { while client.write_all(&[0; 4096]).await.is_ok() {} });
        about(joint.await.unwrap(), IDLE.open);
        writing.await.unwrap();
    }
}
