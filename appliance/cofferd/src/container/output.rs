//! What a workload prints, on its way to the log: read, redacted, cut into lines.
//!
//! Each output has a redactor of its own, because a secret may be split over any number of writes to
//! one output and never over two. A redactor holds back what could be the beginning of a secret; after a
//! second without output it lets go of what it can, so that a prompt shows.

use std::io;
use std::time::Duration;

use cofferdam_redact::{RedactError, Redactor};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::timeout;
use zeroize::Zeroize;

use super::launch::Output;
use super::log::{Lines, Log, Stream};
use crate::client::vault::Lease;
use crate::paths;

/// Silence after which what is held back is let go.
const IDLE: Duration = Duration::from_secs(1);
/// A pipe's default capacity.
const CHUNK: usize = 64 << 10;

/// Continues the service's log.
///
/// # Errors
///
/// The file cannot be opened.
pub(crate) fn open_log(service: &str) -> io::Result<Log> {
    Log::open(&paths::service_log(service), &paths::service_log_previous(service))
}

/// A redactor for everything that was leased.
///
/// # Errors
///
/// A value that cannot be told from other text. What cannot be redacted is not handed out.
pub(crate) fn redactor(lease: &Lease) -> Result<Redactor, RedactError> {
    Redactor::new(lease.iter().map(|(reference, value)| (reference.as_str(), value.expose())))
}

/// Reads both outputs to their ends and logs them. A log that cannot be written is no reason to stop reading:
/// the workload would stand still.
pub(crate) async fn pump(output: Output, redactor: Redactor, mut log: Log) {
    let mut stdout = Channel::new(output.stdout, redactor.stream(), Stream::Stdout);
    let mut stderr = Channel::new(output.stderr, redactor.stream(), Stream::Stderr);
    while stdout.open || stderr.open {
        tokio::select! {
            event = stdout.next(), if stdout.open => stdout.take(event, &mut log),
            event = stderr.next(), if stderr.open => stderr.take(event, &mut log),
        }
    }
}

/// One output.
struct Channel {
    pipe: pipe::Receiver,
    redactor: cofferdam_redact::Stream,
    lines: Lines,
    buffer: Vec<u8>,
    open: bool,
    /// Something may be held back, so silence has a meaning.
    fresh: bool,
}

/// What a pipe brought.
enum Event {
    Bytes(usize),
    Silence,
    End,
}

impl Channel {
    fn new(pipe: pipe::Receiver, redactor: cofferdam_redact::Stream, stream: Stream) -> Self {
        let lines = Lines::new(stream);
        Self { pipe, redactor, lines, buffer: vec![0; CHUNK], open: true, fresh: false }
    }

    /// Waits for output, or for its absence. Nothing is lost when it is cancelled.
    async fn next(&mut self) -> Event {
        let limit = if self.fresh { IDLE } else { Duration::MAX };
        match timeout(limit, self.pipe.read(&mut self.buffer)).await {
            Err(_) => Event::Silence,
            Ok(Ok(count @ 1..)) => Event::Bytes(count),
            Ok(_) => Event::End,
        }
    }

    fn take(&mut self, event: Event, log: &mut Log) {
        let mut clean = Vec::new();
        let logged = match event {
            Event::Bytes(count) => {
                self.fresh = true;
                let bytes = self.buffer.get_mut(..count).unwrap_or_default();
                self.redactor.push(bytes, &mut clean);
                bytes.zeroize();
                self.lines.push(&clean, log)
            }
            Event::Silence => {
                self.fresh = false;
                self.redactor.idle(&mut clean);
                self.lines.push(&clean, log).and_then(|()| self.lines.idle(log))
            }
            Event::End => {
                self.open = false;
                self.redactor.finish(&mut clean);
                self.lines.push(&clean, log).and_then(|()| self.lines.finish(log))
            }
        };
        if let Err(error) = logged {
            eprintln!("cofferd: a service's log cannot be written: {error}");
        }
    }
}
