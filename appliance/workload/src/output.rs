//! What a workload prints, on its way to the log: read, redacted, cut into lines.
//!
//! Each output has a redactor of its own, because a secret may be split over any number of writes to
//! one output and never over two. A redactor holds back what could be the beginning of a secret; after a
//! second without output it lets go of what it can, so that a prompt shows.

use std::time::Duration;

use cofferdam_protocol::log::Stream;
use cofferdam_redact::Redactor;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroize;

use crate::launch::Output;
use crate::log::{Lines, Log};

/// Silence after which what is held back is let go.
pub(crate) const IDLE: Duration = Duration::from_secs(1);
/// A pipe's default capacity.
const CHUNK: usize = 64 << 10;

/// Reads both outputs to their ends and logs them. A log that cannot be written is no reason to stop reading:
/// the workload would stand still.
pub async fn pump(output: Output, redactor: Redactor, mut log: Log) {
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
    /// When silence will have lasted long enough to let go of what is held back; `None` when nothing is.
    /// A moment and not a span: output on the other channel must not put it off.
    silent_at: Option<Instant>,
    /// A log that cannot be written is said once: the console must not fill with what a workload causes.
    complained: bool,
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
        Self { pipe, redactor, lines, buffer: vec![0; CHUNK], open: true, silent_at: None, complained: false }
    }

    /// Waits for output, or for its absence. Nothing is lost when it is cancelled.
    async fn next(&mut self) -> Event {
        let read = self.pipe.read(&mut self.buffer);
        let outcome = match self.silent_at {
            Some(moment) => timeout_at(moment, read).await,
            None => Ok(read.await),
        };
        match outcome {
            Err(_) => Event::Silence,
            Ok(Ok(count @ 1..)) => Event::Bytes(count),
            Ok(_) => Event::End,
        }
    }

    fn take(&mut self, event: Event, log: &mut Log) {
        let mut clean = Vec::new();
        let logged = match event {
            Event::Bytes(count) => {
                self.silent_at = Some(Instant::now() + IDLE);
                let bytes = self.buffer.get_mut(..count).unwrap_or_default();
                self.redactor.push(bytes, &mut clean);
                bytes.zeroize();
                self.lines.push(&clean, log)
            }
            Event::Silence => {
                self.silent_at = None;
                self.redactor.idle(&mut clean);
                self.lines.push(&clean, log).and_then(|()| self.lines.idle(log))
            }
            Event::End => {
                self.open = false;
                self.redactor.finish(&mut clean);
                self.lines.push(&clean, log).and_then(|()| self.lines.finish(log))
            }
        };
        if let Err(error) = logged
            && !std::mem::replace(&mut self.complained, true)
        {
            eprintln!("cofferd: a service's log cannot be written: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn secrets_are_cut_out_over_pauses_and_prompts_show_while_the_other_output_talks() {
        let folder = tempfile::tempdir().unwrap();
        let (path, previous) = (folder.path().join("log"), folder.path().join("log.1"));
        let (mut stdout, first) = pipe::pipe().unwrap();
        let (mut stderr, second) = pipe::pipe().unwrap();
        let redactor = Redactor::new([("token", "correct horse")]).unwrap();
        let log = Log::open(&path, &previous).unwrap();
        let pump = tokio::spawn(pump(Output { stdout: first, stderr: second }, redactor, log));
        stdout.write_all(b"token is correct").await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        stdout.write_all(b" horse\nname? ").await.unwrap();
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            stderr.write_all(b"tick\n").await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let so_far = std::fs::read_to_string(&path).unwrap();
        assert!(so_far.contains(r#""line":"token is [redacted:token]""#), "{so_far}");
        assert!(so_far.contains(r#""line":"name? ","partial":true"#), "{so_far}");
        stdout.write_all(b"the last wo").await.unwrap();
        drop((stdout, stderr));
        pump.await.unwrap();
        let all = std::fs::read_to_string(&path).unwrap();
        assert_eq!(all.matches("tick").count(), 10);
        assert!(all.contains("the last wo"), "what is no secret after all is not lost: {all}");
    }
}
