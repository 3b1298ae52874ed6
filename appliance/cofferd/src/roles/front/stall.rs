//! Streams and bodies that do not wait for ever for a peer that has stopped.
//!
//! A peer may be slow; it may not stand still in the middle of something while it holds a place. Waiting for the
//! next request or for a workload's answer is bounded elsewhere.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// A stall that is measured: armed when something is pending, disarmed when it moves.
#[derive(Debug)]
struct Stall {
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    armed: bool,
}

impl Stall {
    fn new(limit: Duration) -> Self {
        Self { limit, timer: Box::pin(tokio::time::sleep(limit)), armed: false }
    }

    /// Passes `outcome` on; an error instead of pending once that has lasted for the limit.
    fn watch<T>(&mut self, context: &mut Context<'_>, outcome: Poll<T>) -> Poll<Result<T, io::Error>> {
        if let Poll::Ready(value) = outcome {
            self.armed = false;
            return Poll::Ready(Ok(value));
        }
        if !self.armed {
            self.armed = true;
            self.timer.as_mut().reset(Instant::now() + self.limit);
        }
        ready!(self.timer.as_mut().poll(context));
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
    /// Gives the peer `limit` to take each piece that is written.
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
        self.stall.watch(context, outcome).map(|outcome| outcome.flatten())
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(context);
        self.stall.watch(context, outcome).map(|outcome| outcome.flatten())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_shutdown(context);
        self.stall.watch(context, outcome).map(|outcome| outcome.flatten())
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
    /// Gives the sender `limit` for each frame, or for ever when it is `None`.
    pub(crate) fn new(inner: B, limit: Option<Duration>, guard: G) -> Self {
        Self { inner, stall: limit.map(Stall::new), _guard: guard }
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
            Some(stall) => stall.watch(context, outcome),
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
