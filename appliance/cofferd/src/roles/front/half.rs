//! A client that has said all that it will say and waits for the answer: `close_notify` after the request, as of a script that closes its
//! output.
//!
//! hyper ends what is under way when a client's end comes, since one that has gone looks the same. So the end is kept from it from the last
//! byte of a request to that of the answer, and for a bounded time: a client without an end would hold its place no shorter. Whoever is
//! really gone is found out by the first thing that is written to it. An end of TCP without one of TLS is none of these: that connection is
//! over.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Whether all of a request is there, and its answer is not.
#[derive(Debug, Clone, Default)]
pub(crate) struct Owed(Arc<Mutex<Answer>>);

#[derive(Debug, Default)]
struct Answer {
    owed: bool,
    /// Who waits for the end meanwhile: hyper does not ask again of itself.
    reader: Option<Waker>,
}

impl Owed {
    fn lock(&self) -> MutexGuard<'_, Answer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of a request that has come. What is returned beside it is kept until the answer has been written.
    pub(crate) fn from(&self, body: Incoming) -> (Asked, Owing) {
        let asked = Asked { inner: body, owed: self.clone() };
        asked.note(asked.inner.is_end_stream());
        (asked, Owing(self.clone()))
    }
}

/// An answer is owed until this is dropped.
#[derive(Debug)]
pub(crate) struct Owing(Owed);

impl Drop for Owing {
    fn drop(&mut self) {
        let mut answer = self.0.lock();
        answer.owed = false;
        let reader = answer.reader.take();
        drop(answer);
        reader.into_iter().for_each(Waker::wake);
    }
}

/// A request's body, of which it is noted that it has ended.
#[derive(Debug)]
pub(crate) struct Asked {
    inner: Incoming,
    owed: Owed,
}

impl Asked {
    fn note(&self, ended: bool) {
        if ended {
            self.owed.lock().owed = true;
        }
    }
}

impl Body for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        self.note(frame.is_none() || self.inner.is_end_stream());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A stream whose end is not said while an answer is owed.
#[derive(Debug)]
pub(crate) struct HalfClosable<S> {
    inner: S,
    owed: Owed,
    limit: Duration,
    /// Set at the end: when it is said although an answer is owed.
    ended: Option<Pin<Box<Sleep>>>,
}

impl<S> HalfClosable<S> {
    /// After its end, `limit` may pass until a part of the answer is written, and between two.
    pub(crate) fn new(inner: S, owed: Owed, limit: Duration) -> Self {
        Self { inner, owed, limit, ended: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HalfClosable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ended.is_none() {
            let before = buffer.remaining();
            ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
            if before == 0 || buffer.remaining() < before {
                return Poll::Ready(Ok(()));
            }
        }
        let mut answer = self.owed.lock();
        if !answer.owed {
            return Poll::Ready(Ok(()));
        }
        answer.reader = Some(context.waker().clone());
        drop(answer);
        let limit = self.limit;
        let timer = self.ended.get_or_insert_with(|| Box::pin(sleep(limit)));
        timer.as_mut().poll(context).map(Ok)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HalfClosable<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(context, bytes));
        let limit = self.limit;
        if let Some(timer) = &mut self.ended {
            timer.as_mut().reset(Instant::now() + limit);
        }
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
