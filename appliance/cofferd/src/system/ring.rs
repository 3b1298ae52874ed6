//! What happened to a role, numbered and bounded: two files on the run directory, of which the older one is given up when the newer
//! one is full.
//!
//! Nobody waits for it and nothing fails for its sake: an entry that cannot be written is lost, and its number shows that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use cofferdam_protocol::events::{Entry, Happened};
use cofferdam_protocol::{TimestampMillis, json};

use super::console::since_boot;
use super::files;

/// When a file is full, in bytes: a few hundred entries.
const FULL: u64 = 32 * 1024;

/// The file that the other one was before it was full.
pub(crate) fn previous(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// Bytes of one of the two files that are worth reading.
pub(crate) const READ: u64 = FULL + cofferdam_protocol::events::MAX_ENTRY as u64;

/// A ring, which goes on where the one before it at this path ended.
#[derive(Debug)]
pub(crate) struct Ring {
    path: PathBuf,
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    file: File,
    size: u64,
    next: u64,
}

impl Ring {
    /// The ring at `path`, whose directory may come later.
    pub(crate) fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), open: Mutex::new(None) }
    }

    /// Writes down what happened just now.
    pub(crate) fn tell(&self, event: Happened) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.is_none() {
            *open = self.reopen().ok();
        }
        if let Some(open) = open.as_mut() {
            let _ = self.append(open, event);
        }
    }

    fn append(&self, open: &mut Open, event: Happened) -> io::Result<()> {
        let number = open.next;
        open.next = number.saturating_add(1);
        let at = TimestampMillis::from_clock(SystemTime::now());
        let up_ms = u64::try_from(since_boot().as_millis()).unwrap_or(u64::MAX);
        let mut line = json::to_vec(&Entry { number, at, up_ms, event }).map_err(io::Error::other)?;
        line.push(b'\n');
        if open.size.saturating_add(line.len() as u64) > FULL {
            fs::rename(&self.path, previous(&self.path))?;
            open.file = file(&self.path)?;
            open.size = 0;
        }
        // One write per line: a reader sees whole lines.
        open.file.write_all(&line)?;
        open.size = open.size.saturating_add(line.len() as u64);
        Ok(())
    }

    /// Goes on behind the last number, also of a process before this one.
    fn reopen(&self) -> io::Result<Open> {
        let last = |path: &Path| {
            let bytes = files::read_bounded(path, READ).ok()?;
            let lines = bytes.split(|byte| *byte == b'\n').rev();
            lines.filter_map(|line| Entry::parse(line).ok()).next().map(|entry| entry.number)
        };
        let number = last(&self.path).or_else(|| last(&previous(&self.path))).unwrap_or_default();
        let mut file = file(&self.path)?;
        let mut size = file.metadata()?.len();
        if size > 0 {
            // A line that was cut off stays one, and the next one is whole.
            file.write_all(b"\n")?;
            size = size.saturating_add(1);
        }
        Ok(Open { file, size, next: number.saturating_add(1) })
    }
}

fn file(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o644).open(path)
}

#[cfg(test)]
mod tests {
    use cofferdam_protocol::status::PublishState;

    use super::*;

    fn told(path: &Path) -> Vec<Entry> {
        let text = [previous(path), path.to_owned()].map(|path| fs::read(path).unwrap_or_default()).concat();
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| Entry::parse(line).unwrap()).collect()
    }

    #[test]
    fn numbers_go_on_over_restarts_and_the_oldest_entries_are_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("late/events");
        let early = Ring::at(&path);
        early.tell(Happened::Refused { count: 0 });
        fs::create_dir(folder.path().join("late")).unwrap();
        early.tell(Happened::Refused { count: 1 });
        for count in 2..2000 {
            Ring::at(&path).tell(Happened::Refused { count });
        }
        let entries = told(&path);
        let numbers: Vec<u64> = entries.iter().map(|entry| entry.number).collect();
        assert_eq!(*numbers.last().unwrap(), 1999);
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "nothing is missing in between");
        assert!((300..1500).contains(&numbers.len()), "{}", numbers.len());
        for path in [previous(&path), path] {
            assert!(fs::metadata(path).unwrap().len() <= FULL);
        }
    }

    #[test]
    fn a_text_that_looks_like_an_entry_is_a_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let forged = "\n{\"number\":9,\"at\":\"2026-01-02T03:04:05.678Z\",\"up_ms\":1,\"event\":{\"kind\":\"refused\",\"count\":1}}\n";
        Ring::at(&path)
            .tell(Happened::Publish { state: PublishState::Failed, detail: Some(forged.to_owned()) });
        Ring::at(&path).tell(Happened::Refused { count: 2 });
        let numbers: Vec<u64> = told(&path).iter().map(|entry| entry.number).collect();
        assert_eq!(numbers, [1, 2]);
    }

    #[test]
    fn what_is_no_entry_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        Ring::at(&path).tell(Happened::Refused { count: 1 });
        File::options().append(true).open(&path).unwrap().write_all(b"{\"number\":99}\nhalf").unwrap();
        Ring::at(&path).tell(Happened::Refused { count: 2 });
        let text = fs::read(&path).unwrap();
        let last = text.split(|byte| *byte == b'\n').filter_map(|line| Entry::parse(line).ok()).next_back();
        assert_eq!(last.unwrap().number, 2);
    }
}
