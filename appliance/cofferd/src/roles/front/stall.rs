//! Streams and bodies that do not wait for ever for a peer that has stopped.
//!
//! A peer may be slow; it may not stand still in the middle of something while it holds a place, nor move a byte now
//! and then for the look of it. Waiting for the next request or for a workload's answer is bounded elsewhere.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Bytes in a second by which a peer that was waited for makes up for it. The slowest links that people still use carry
/// ten times as much.
pub(super) const RATE: u32 = 256;

/// Patience with a peer. Waiting uses it up, and what the peer moves restores it, never beyond the limit: so one pause
/// may take the whole limit, and a peer that is slow for long has to keep to [`RATE`].
#[derive(Debug)]
pub(crate) struct Stall {
    limit: Duration,
    left: Duration,
    timer: Pin<Box<Sleep>>,
    /// Since when something is pending.
    since: Option<Instant>,
    /// Set when something else has moved that is as good.
    other: Option<Arc<AtomicBool>>,
}

impl Stall {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, left: limit, timer: Box::pin(tokio::time::sleep(limit)), since: None, other: None }
    }

    /// Passes `outcome` on; an error instead of pending once there is no patience left. `bytes` says how many were moved.
    pub(crate) fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<T>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<Result<T, io::Error>> {
        if let Poll::Ready(value) = outcome {
            if let Some(since) = self.since.take() {
                let moved = u32::try_from(bytes(&value)).unwrap_or(u32::MAX);
                let restored = Duration::from_secs(u64::from(moved)) / RATE;
                let left = self.left.saturating_sub(since.elapsed());
                self.left = left.saturating_add(restored).min(self.limit);
            }
            return Poll::Ready(Ok(value));
        }
        if self.since.is_none() {
            let now = Instant::now();
            self.since = Some(now);
            self.timer.as_mut().reset(now + self.left);
        }
        ready!(self.timer.as_mut().poll(context));
        while self.other.as_ref().is_some_and(|other| other.swap(false, Ordering::Relaxed)) {
            let now = Instant::now();
            (self.left, self.since) = (self.limit, Some(now));
            self.timer.as_mut().reset(now + self.limit);
            ready!(self.timer.as_mut().poll(context));
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// A stream whose peer has to keep reading what is written to it.
#[derive(Debug)]
pub(crate) struct StallTimeoutStream<S> {
    inner: S,
    stall: Stall,
}

impl<S> StallTimeoutStream<S> {
    /// Gives the peer `limit` to take what is written.
    pub(crate) fn new(inner: S, limit: Duration) -> Self {
        Self { inner, stall: Stall::new(limit) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for StallTimeoutStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for StallTimeoutStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(context, bytes);
        let taken = |written: &io::Result<usize>| written.as_ref().copied().unwrap_or(0);
        self.stall.watch(context, outcome, taken).map(|outcome| outcome.flatten())
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(context);
        self.stall.watch(context, outcome, |_| 0).map(|outcome| outcome.flatten())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_shutdown(context);
        self.stall.watch(context, outcome, |_| 0).map(|outcome| outcome.flatten())
    }
}

/// A body whose sender has to keep sending. `G` is given back when the body ends or is dropped: a place in a
/// queue, for instance.
#[derive(Debug)]
pub(crate) struct StallTimeoutBody<B, G> {
    inner: B,
    stall: Option<Stall>,
    _guard: G,
}

impl<B, G> StallTimeoutBody<B, G> {
    /// Gives the sender `limit` to go on, or for ever when it is `None`.
    pub(crate) fn new(inner: B, limit: Option<Duration>, guard: G) -> Self {
        Self { inner, stall: limit.map(Stall::new), _guard: guard }
    }

    /// Goes on waiting as long as `other` is set again and again.
    pub(crate) fn or_while(mut self, other: Arc<AtomicBool>) -> Self {
        if let Some(stall) = &mut self.stall {
            stall.other = Some(other);
        }
        self
    }
}

impl<B, G> Body for StallTimeoutBody<B, G>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    G: Unpin,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let outcome = Pin::new(&mut self.inner).poll_frame(context);
        let outcome = match &mut self.stall {
            None => outcome.map(Ok),
            Some(stall) => stall.watch(context, outcome, |frame| match frame {
                Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
                _ => 0,
            }),
        };
        outcome.map(|outcome| match outcome {
            Ok(frame) => frame.map(|frame| frame.map_err(Into::into)),
            Err(stalled) => Some(Err(stalled.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// Writes without end to a peer that takes `bytes` after each pause; says how long it lasted, an hour at most.
    async fn writes_last(bytes: usize, pause: Duration) -> Duration {
        let (near, mut far) = duplex(64);
        let start = Instant::now();
        let taking = tokio::spawn(async move {
            let mut piece = vec![0; bytes];
            while start.elapsed() < Duration::from_secs(3600) && far.read_exact(&mut piece).await.is_ok() {
                tokio::time::sleep(pause).await;
            }
        });
        let mut stream = StallTimeoutStream::new(near, LIMIT);
        while stream.write_all(&[0; 1024]).await.is_ok() {}
        taking.abort();
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_byte_now_and_then_is_not_waited_for_for_ever() {
        let lasted = writes_last(1, Duration::from_secs(50)).await;
        assert!((LIMIT..LIMIT * 2).contains(&lasted), "{lasted:?}");
        let lasted = writes_last(64, Duration::from_secs(1)).await;
        assert!((LIMIT..LIMIT * 2).contains(&lasted), "a quarter of the rate: {lasted:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_and_steady_is_waited_for() {
        assert!(writes_last(1024, Duration::from_secs(2)).await >= Duration::from_secs(3600));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_pause_once_and_not_trickle() {
        let body = |pieces: usize, pause: u64| {
            let sleep = Box::pin(tokio::time::sleep(Duration::ZERO));
            let frames = Trickle { left: pieces, pause: Duration::from_secs(pause), sleep };
            collect(StallTimeoutBody::new(frames, Some(Duration::from_secs(30)), ()))
        };
        assert_eq!(body(2, 29).await, Some(2));
        assert_eq!(body(2, 31).await, None);
        assert_eq!(body(100, 5).await, None);
    }

    async fn collect<B: Body<Data = Bytes> + Unpin>(mut body: B) -> Option<usize> {
        let mut bytes = 0;
        while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
        {
            bytes += frame.ok()?.into_data().ok()?.len();
        }
        Some(bytes)
    }

    /// A body of so many bytes, each a frame of its own, with a pause between two.
    struct Trickle {
        left: usize,
        pause: Duration,
        sleep: Pin<Box<Sleep>>,
    }

    impl Body for Trickle {
        type Data = Bytes;
        type Error = io::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
            ready!(self.sleep.as_mut().poll(context));
            self.left = match self.left.checked_sub(1) {
                None => return Poll::Ready(None),
                Some(left) => left,
            };
            if self.left > 0 {
                let next = Instant::now() + self.pause;
                self.sleep.as_mut().reset(next);
            }
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
        }
    }
}
