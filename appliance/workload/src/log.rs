//! A service's log: redacted lines as JSON, bounded in memory and on disk.
//!
//! Each line of output becomes one line `{"at":…,"stream":…,"line":…}`. A line that is too long, or that stands
//! without its end for a while (a prompt), is written in pieces, each but the last marked `"partial":true`, so
//! that nothing is held back for ever and nothing is lost. At 1 MiB the file becomes `log.1` and a new
//! one begins, so a talkative workload costs at most twice that.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cofferdam_protocol::log::{LogLine, MAX_LINE, Stream};

use crate::status::now;

/// When a file is full, in bytes.
const ROTATE_AT: u64 = 1 << 20;

/// Writes the two files.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    previous: PathBuf,
    file: File,
    size: u64,
}

impl Log {
    /// Continues the log at `path`; a full one is moved to `previous`.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub fn open(path: &Path, previous: &Path) -> io::Result<Self> {
        let file = append(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), previous: previous.to_owned(), file, size })
    }

    fn write(&mut self, stream: Stream, line: &[u8], partial: bool) -> io::Result<()> {
        let line = String::from_utf8_lossy(line);
        let mut bytes = serde_json::to_vec(&LogLine { at: now(), stream, line, partial })?;
        bytes.push(b'\n');
        if self.size > 0 && self.size.saturating_add(bytes.len() as u64) > ROTATE_AT {
            std::fs::rename(&self.path, &self.previous)?;
            self.file = append(&self.path)?;
            self.size = 0;
        }
        // One write per line: a reader sees whole lines.
        self.file.write_all(&bytes)?;
        self.size = self.size.saturating_add(bytes.len() as u64);
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// Cuts one output, already redacted, into lines.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: Stream,
    pending: Vec<u8>,
}

impl Lines {
    /// An output of which nothing was seen yet.
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Takes more output and writes the lines that are complete or too long.
    ///
    /// # Errors
    ///
    /// The log cannot be written.
    pub(crate) fn push(&mut self, bytes: &[u8], log: &mut Log) -> io::Result<()> {
        self.pending.extend_from_slice(bytes);
        let mut start = 0_usize;
        let mut rest = self.pending.as_slice();
        loop {
            match rest.iter().take(MAX_LINE.saturating_add(1)).position(|byte| *byte == b'\n') {
                Some(end) => {
                    let (line, tail) = rest.split_at(end);
                    log.write(self.stream, line.strip_suffix(b"\r").unwrap_or(line), false)?;
                    rest = tail.get(1..).unwrap_or_default();
                    start = start.saturating_add(end).saturating_add(1);
                }
                None if rest.len() > MAX_LINE => {
                    let end = character_boundary(rest, MAX_LINE);
                    let (line, tail) = rest.split_at(end);
                    log.write(self.stream, line, true)?;
                    rest = tail;
                    start = start.saturating_add(end);
                }
                None => break,
            }
        }
        self.pending.drain(..start);
        Ok(())
    }

    /// Writes what stands without its end, because nothing came for a while.
    ///
    /// # Errors
    ///
    /// As [`Lines::push`].
    pub(crate) fn idle(&mut self, log: &mut Log) -> io::Result<()> {
        self.flush(log, true)
    }

    /// Writes what is left: nothing more will come.
    ///
    /// # Errors
    ///
    /// As [`Lines::push`].
    pub(crate) fn finish(&mut self, log: &mut Log) -> io::Result<()> {
        self.flush(log, false)
    }

    fn flush(&mut self, log: &mut Log, partial: bool) -> io::Result<()> {
        if !self.pending.is_empty() {
            log.write(self.stream, &self.pending, partial)?;
            self.pending.clear();
        }
        Ok(())
    }
}

/// The last place at or before `limit` where no UTF-8 sequence is cut (RFC 3629: at most three bytes back).
fn character_boundary(bytes: &[u8], limit: usize) -> usize {
    let is_start = |at: &usize| bytes.get(*at).is_none_or(|byte| byte & 0xC0 != 0x80);
    (limit.saturating_sub(3)..=limit).rev().find(is_start).unwrap_or(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Vec<(String, bool)> {
        let text = std::fs::read_to_string(path).unwrap();
        let line = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            (value["line"].as_str().unwrap().to_owned(), value.get("partial").is_some())
        };
        text.lines().map(line).collect()
    }

    fn log(directory: &Path) -> Log {
        Log::open(&directory.join("log"), &directory.join("log.1")).unwrap()
    }

    #[test]
    fn lines_are_whole_whatever_the_writes() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path());
        let mut lines = Lines::new(Stream::Stdout);
        for piece in [&b"one\ntw"[..], b"o\r\n", b"\n", b"\xff", b"prompt> "] {
            lines.push(piece, &mut log).unwrap();
        }
        lines.idle(&mut log).unwrap();
        lines.push(b"answer\nlast", &mut log).unwrap();
        lines.finish(&mut log).unwrap();
        let lines = read(&directory.path().join("log"));
        let expected = [
            ("one", false),
            ("two", false),
            ("", false),
            ("\u{fffd}prompt> ", true),
            ("answer", false),
            ("last", false),
        ];
        assert_eq!(lines, expected.map(|(line, partial)| (line.to_owned(), partial)));
    }

    #[test]
    fn a_line_without_end_is_cut_between_characters_and_nothing_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path());
        let mut lines = Lines::new(Stream::Stderr);
        let long = format!("{}{}", "x".repeat(MAX_LINE - 1), "ä€".repeat(9000));
        for chunk in long.as_bytes().chunks(4001) {
            lines.push(chunk, &mut log).unwrap();
        }
        lines.push(b"\n", &mut log).unwrap();
        let lines = read(&directory.path().join("log"));
        assert!(lines.len() > 2 && lines.iter().all(|(line, _)| line.len() <= MAX_LINE));
        assert_eq!(lines.iter().map(|(line, _)| line.as_str()).collect::<String>(), long);
        assert!(lines.iter().rev().skip(1).all(|(_, partial)| *partial) && !lines.last().unwrap().1);
    }

    #[test]
    fn a_full_log_rotates_and_two_files_are_the_most() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path());
        let mut lines = Lines::new(Stream::Stdout);
        let line = format!("{}\n", "y".repeat(1000));
        for _ in 0..4000 {
            lines.push(line.as_bytes(), &mut log).unwrap();
        }
        for name in ["log", "log.1"] {
            let size = std::fs::metadata(directory.path().join(name)).unwrap().len();
            assert!(size > 0 && size <= ROTATE_AT, "{name}: {size}");
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
        drop(log);
        let again = Log::open(&directory.path().join("log"), &directory.path().join("log.1")).unwrap();
        assert!(again.size > 0, "a new shim continues the file");
    }
}
