//! Two byte streams joined until they end, or until nothing has passed between them for too long.
//!
//! What is read is written at once, so all streams of a thread are read into the same memory, and a stream keeps only what the other
//! side has not taken. That makes large pieces cheap: a small one costs a pass through the kernel on each side, as a large one does.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// What is read at once, in bytes.
const PIECE: usize = 64 * 1024;
/// The same while all streams together keep [`MOST_KEPT`] bytes or more: what is kept of one stream at worst, then.
const SMALL_PIECE: usize = 8 * 1024;
/// Pieces that one side may send before others have their turn.
const TURN: usize = 8;
/// What all streams of a process may keep in large pieces, in bytes.
const MOST_KEPT: usize = 4 * 1024 * 1024;

/// What they keep now.
static KEPT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Where a piece is read to; nowhere before the first one.
    static READ: Cell<Box<[u8]>> = Cell::default();
}

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
        _ = carry(&mut a, &mut b) => {}
        () = activity.silence(idle) => {}
    }
}

/// Carries bytes both ways until both sides have ended or one has failed.
async fn carry<A, B>(a: &mut A, b: &mut B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut there, mut back) = (Way::default(), Way::default());
    poll_fn(|context| {
        let there = there.poll(context, a, b)?;
        let back = back.poll(context, b, a)?;
        if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    /// What was read and not yet taken.
    kept: Kept,
    /// Something was written since it was last flushed.
    unflushed: bool,
    /// Nothing more is to be read.
    ended: bool,
    /// That was passed on.
    over: bool,
}

impl Way {
    /// Ready when the end of one side was passed on to the other.
    fn poll<R, W>(
        &mut self,
        context: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut pieces = 0..TURN;
        while !self.over {
            if !self.kept.bytes().is_empty() {
                let taken = ready!(Pin::new(&mut *writer).poll_write(context, self.kept.bytes()))?;
                self.written(taken)?;
                self.kept.skip(taken);
            } else if self.ended {
                ready!(Pin::new(&mut *writer).poll_shutdown(context))?;
                self.over = true;
            } else {
                let turn_over = pieces.next().is_none();
                if turn_over {
                    context.waker().wake_by_ref();
                }
                if turn_over || self.pass(context, reader, writer)?.is_pending() {
                    return self.pause(context, writer);
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Nothing is left behind in the writer until there is more. Never ready but with an error.
    fn pause<W>(&mut self, context: &mut Context<'_>, writer: &mut W) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin,
    {
        if self.unflushed {
            ready!(Pin::new(writer).poll_flush(context))?;
            self.unflushed = false;
        }
        Poll::Pending
    }

    /// Reads a piece, writes it, and keeps what is not taken of it. Pending when there is none.
    fn pass<R, W>(
        &mut self,
        context: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> io::Result<Poll<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut memory = READ.take();
        if memory.is_empty() {
            memory = vec![0; PIECE].into();
        }
        let size = if KEPT.load(Ordering::Relaxed) < MOST_KEPT { PIECE } else { SMALL_PIECE };
        let mut piece = ReadBuf::new(memory.get_mut(..size).unwrap_or_default());
        let read = Pin::new(reader).poll_read(context, &mut piece);
        let outcome = match read {
            Poll::Ready(Ok(())) => self.pass_on(context, piece.filled(), writer).map(Poll::Ready),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(Poll::Pending),
        };
        READ.set(memory);
        outcome
    }

    fn pass_on<W>(&mut self, context: &mut Context<'_>, bytes: &[u8], writer: &mut W) -> io::Result<()>
    where
        W: AsyncWrite + Unpin,
    {
        if bytes.is_empty() {
            self.ended = true;
            return Ok(());
        }
        let taken = match Pin::new(writer).poll_write(context, bytes)? {
            Poll::Ready(taken) => {
                self.written(taken)?;
                taken
            }
            Poll::Pending => 0,
        };
        self.kept = Kept::new(bytes.get(taken..).unwrap_or_default());
        Ok(())
    }

    fn written(&mut self, taken: usize) -> io::Result<()> {
        self.unflushed = true;
        if taken == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }
}

/// Bytes that the other side has not taken, counted in [`KEPT`] until all of them are.
#[derive(Debug, Default)]
struct Kept {
    memory: Box<[u8]>,
    /// What was taken of them.
    taken: usize,
}

impl Kept {
    fn new(bytes: &[u8]) -> Self {
        KEPT.fetch_add(bytes.len(), Ordering::Relaxed);
        Self { memory: bytes.into(), taken: 0 }
    }

    fn bytes(&self) -> &[u8] {
        self.memory.get(self.taken..).unwrap_or_default()
    }

    /// So many more were taken.
    fn skip(&mut self, count: usize) {
        self.taken = self.taken.saturating_add(count);
        if self.bytes().is_empty() {
            *self = Self::default();
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        KEPT.fetch_sub(self.memory.len(), Ordering::Relaxed);
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

    #[tokio::test]
    async fn everything_passes_in_its_order_whatever_is_taken_at_once() {
        let sent: Vec<u8> = (0..3 * PIECE).map(|at| (at % 251) as u8).collect();
        for room in [1, 1000, PIECE + 1] {
            let ((mut client, a), (b, mut server)) = (duplex(2 * PIECE), duplex(room));
            let joint = tokio::spawn(join(a, b, IDLE, || {}));
            let (send, mut heard) = (sent.clone(), Vec::new());
            let writing = tokio::spawn(async move {
                client.write_all(&send).await.unwrap();
                client.shutdown().await.unwrap();
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).await.unwrap();
                answer
            });
            server.read_to_end(&mut heard).await.unwrap();
            assert!(heard == sent, "{room}");
            server.write_all(&sent).await.unwrap();
            drop(server);
            assert!(writing.await.unwrap() == sent, "{room}");
            joint.await.unwrap();
        }
    }

    #[tokio::test]
    async fn who_always_has_more_to_say_lets_others_have_their_turn() {
        let (silent, _held) = duplex(1);
        let speaker = tokio::io::join(tokio::io::repeat(0), tokio::io::sink());
        let listener = tokio::io::join(silent, tokio::io::sink());
        let passed = AtomicUsize::new(0);
        let moved = || {
            passed.fetch_add(1, Ordering::Relaxed);
        };
        let mut joint = std::pin::pin!(join(speaker, listener, IDLE, moved));
        for turn in 1..10 {
            let outcome = poll_fn(|context| Poll::Ready(joint.as_mut().poll(context))).await;
            assert!(outcome.is_pending());
            assert_eq!(passed.load(Ordering::Relaxed), turn * TURN);
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn many_that_do_not_read_are_kept_little_for() {
        const MANY: usize = 400;
        let mut held = Vec::new();
        let mut kept = 0;
        for _ in 0..MANY {
            let ((mut client, a), (b, server)) = (duplex(PIECE), duplex(1));
            let joint = tokio::spawn(join(a, b, IDLE, || {}));
            // What it takes beyond what lies between: it was read, and the other side does not take it.
            client.write_all(&[0; PIECE]).await.unwrap();
            tokio::task::yield_now().await;
            let more = vec![0; PIECE];
            let more = tokio::time::timeout(Duration::from_millis(1), client.write(&more)).await;
            kept += more.map_or(0, Result::unwrap);
            held.push((client, server, joint));
        }
        assert!(kept > MANY * SMALL_PIECE / 2, "{kept}");
        assert!(kept <= MOST_KEPT + PIECE + MANY * SMALL_PIECE, "{kept}");
    }

    #[test]
    fn the_documents_have_the_numbers_of_the_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ARCHITECTURE.md");
        let text = std::fs::read_to_string(path).unwrap().replace('\n', " ");
        let said = format!(
            "read pieces of up to {} KiB (`workload/join`), and keep of one what the other side has not taken; once that is {} MiB over all \
             connections of the process, pieces are of {} KiB",
            PIECE >> 10,
            MOST_KEPT >> 20,
            SMALL_PIECE >> 10
        );
        assert!(text.contains(&said), "{said}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_does_not_read_is_as_good_as_silent() {
        let (mut client, _server, joint) = joined();
        let writing = tokio::spawn(async move { while client.write_all(&[0; 4096]).await.is_ok() {} });
        about(joint.await.unwrap(), IDLE.open);
        writing.await.unwrap();
    }
}
