//! Frames of HTTP/2 on their way into TLS: those that are ready at one time leave together.
//!
//! The `h2` crate flushes after each piece of an answer, so eight small answers would be eight records of TLS and eight system calls. Here a
//! flush right after a write waits until the connection has been looked at once more, and by then it has written whatever else was ready.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What leaves together, in bytes: a record of TLS (RFC 8446 §5.1).
const MOST: usize = 16 * 1024;

/// A stream whose small writes are gathered.
#[derive(Debug)]
pub(super) struct Gather<S> {
    inner: S,
    /// Written, and not yet given to `inner`.
    gathered: Vec<u8>,
    /// How much of it was.
    given: usize,
    /// Something was written since it was last to be flushed.
    written: bool,
    /// The peer has said something. What comes before may be what it waits for.
    begun: bool,
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    /// Nothing was written yet.
    pub(super) fn new(inner: S) -> Self {
        Self { inner, gathered: Vec::new(), given: 0, written: false, begun: false }
    }

    fn give(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(left @ [_, ..]) = self.gathered.get(self.given..) {
            match ready!(Pin::new(&mut self.inner).poll_write(context, left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.given = self.given.saturating_add(count),
            }
        }
        // A connection without anything to say has no memory for it.
        (self.gathered, self.given) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        self.begun = true;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= MOST {
            ready!(self.give(context))?;
        }
        let room = MOST.saturating_sub(self.gathered.len());
        self.gathered.reserve_exact(room);
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.gathered.extend_from_slice(taken);
        self.written = true;
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.written) && self.begun {
            context.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        ready!(self.give(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.give(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use super::*;

    /// A peer that says nothing, and takes this many bytes.
    struct Peer {
        room: usize,
        taken: Vec<usize>,
    }

    impl AsyncRead for Peer {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Peer {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let count = bytes.len().min(self.room);
            if count == 0 {
                return Poll::Pending;
            }
            self.room -= count;
            self.taken.push(count);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn gather(room: usize, begun: bool) -> Gather<Peer> {
        let mut gather = Gather::new(Peer { room, taken: Vec::new() });
        if begun {
            let mut context = Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut gather).poll_read(&mut context, &mut ReadBuf::new(&mut [0])).is_ready());
        }
        gather
    }

    fn write(gather: &mut Gather<Peer>, bytes: &[u8], context: &mut Context<'_>) -> Option<usize> {
        match Pin::new(gather).poll_write(context, bytes) {
            Poll::Ready(count) => Some(count.unwrap()),
            Poll::Pending => None,
        }
    }

    fn flush(gather: &mut Gather<Peer>, context: &mut Context<'_>) -> bool {
        Pin::new(gather).poll_flush(context).is_ready()
    }

    #[test]
    fn what_is_written_before_the_connection_is_looked_at_again_leaves_together() {
        let (woken, mut gather) = (Arc::new(Woken::default()), gather(usize::MAX, true));
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        for _ in 0..8 {
            assert_eq!(write(&mut gather, &[0; 1000], &mut context), Some(1000));
            assert!(flush(&mut gather, &mut context));
        }
        assert_eq!(gather.inner.taken, [0; 0]);
        assert!(woken.0.load(Ordering::Relaxed) > 0, "somebody looks at it again");
        assert!(flush(&mut gather, &mut context));
        assert_eq!(gather.inner.taken, [8000]);
        assert_eq!(gather.gathered.capacity(), 0);
    }

    #[test]
    fn the_first_words_do_not_wait_for_the_peers() {
        let (mut gather, mut context) = (gather(usize::MAX, false), Context::from_waker(Waker::noop()));
        assert_eq!(write(&mut gather, &[0; 9], &mut context), Some(9));
        assert!(flush(&mut gather, &mut context));
        assert_eq!(gather.inner.taken, [9]);
    }

    #[test]
    fn no_more_than_a_record_is_kept_for_a_peer_that_takes_nothing() {
        let (mut gather, mut context) = (gather(10, true), Context::from_waker(Waker::noop()));
        assert_eq!(write(&mut gather, &[0; 2 * MOST], &mut context), Some(MOST));
        assert_eq!(write(&mut gather, &[0; 1], &mut context), None);
        assert!(flush(&mut gather, &mut context) && !flush(&mut gather, &mut context));
        gather.inner.room = usize::MAX;
        assert!(flush(&mut gather, &mut context));
        assert_eq!(gather.inner.taken, [10, MOST - 10]);
    }
}
