//! Parts of a service's log.
//!
//! A shim writes whole lines, one write each, to `log`, which becomes `log.1` when it is full. What is read here is not trusted: a line
//! counts when it begins an object and ends with a line feed.

use std::path::Path;
use std::time::{Duration, SystemTime};

use cofferdam_protocol::TimestampMillis;
use cofferdam_protocol::log::LogLine;
use cofferdam_protocol::operator::{LOG_WAIT_S, LogPlace};
use tokio::time::{Instant, sleep};

use super::untrusted_file::{self, Part};

/// Bytes of each file that are looked at; a shim rotates at 1 MiB.
const BYTES: u64 = 1280 * 1024;
/// How often it is looked whether a log goes on: a person does not notice it.
const LOOK: Duration = Duration::from_millis(250);

/// Lines, and where the log goes on.
#[derive(Debug)]
pub(super) struct Excerpt {
    pub(super) lines: Vec<u8>,
    pub(super) place: LogPlace,
}

/// The last `count` lines over both files, of the last `since` seconds.
pub(super) fn end(directory: &Path, count: usize, since: Option<u64>) -> Excerpt {
    // The present log first: if it is rotated in between, lines are seen twice rather than not at all.
    let present = untrusted_file::part(&directory.join("log"), None, BYTES);
    let place = place(present.as_ref());
    let present = present.map(|part| part.bytes).unwrap_or_default();
    let present = lines(&present);
    let previous = match count.saturating_sub(present.len()) {
        0 => None,
        _ => untrusted_file::part(&directory.join("log.1"), None, BYTES),
    };
    let previous = previous.map(|part| part.bytes).unwrap_or_default();
    let mut all = lines(&previous);
    all.extend(present);
    let first = since.map(|seconds| ago(Duration::from_secs(seconds)));
    if let Some(first) = first {
        all.retain(|line| LogLine::parse(line.trim_ascii_end()).is_ok_and(|line| line.at >= first));
    }
    let skipped = all.len().saturating_sub(count);
    Excerpt { lines: all.into_iter().skip(skipped).collect::<Vec<_>>().concat(), place }
}

/// The lines after a place, once there are any, or none after a while.
pub(super) async fn after(directory: &Path, place: LogPlace) -> Excerpt {
    let deadline = Instant::now() + Duration::from_secs(LOG_WAIT_S);
    loop {
        let found = now_after(directory, place);
        if !found.lines.is_empty() || Instant::now() >= deadline {
            return found;
        }
        sleep(LOOK).await;
    }
}

/// Where neither file is the one of the place it has been rotated twice meanwhile: all that is left comes after it.
fn now_after(directory: &Path, after: LogPlace) -> Excerpt {
    let known = Some((after.file, after.offset));
    let present = untrusted_file::part(&directory.join("log"), known, BYTES);
    let goes_on = present.as_ref().is_none_or(|part| part.file == after.file);
    let previous = if goes_on { None } else { untrusted_file::part(&directory.join("log.1"), known, BYTES) };
    let place = if present.is_some() { place(present.as_ref()) } else { after };
    let parts = previous.into_iter().chain(present);
    Excerpt { lines: parts.flat_map(|part| lines(&part.bytes).concat()).collect(), place }
}

/// Behind the last whole line of a part; before everything where there is no log yet.
fn place(part: Option<&Part>) -> LogPlace {
    part.map_or(LogPlace { file: 0, offset: 0 }, |part| {
        let whole =
            part.bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last.saturating_add(1));
        LogPlace { file: part.file, offset: part.start.saturating_add(whole as u64) }
    })
}

/// Lines with their newline. A line without one is still being written; one that does not begin an object was cut
/// at the start by the bound.
fn lines(text: &[u8]) -> Vec<&[u8]> {
    text.split_inclusive(|b| *b == b'\n').filter(|l| l.ends_with(b"\n") && l.starts_with(b"{")).collect()
}

/// So long ago, by the clock that stamped the lines.
fn ago(time: Duration) -> TimestampMillis {
    TimestampMillis::from_clock(SystemTime::now().checked_sub(time).unwrap_or(SystemTime::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: usize) -> String {
        let at = serde_json::to_value(ago(Duration::from_secs(1000 - 10 * n as u64))).unwrap();
        format!("{{\"at\":{at},\"stream\":\"stdout\",\"line\":\"{n}\"}}\n")
    }

    fn of(range: std::ops::Range<usize>) -> String {
        range.map(line).collect()
    }

    fn numbers(excerpt: &Excerpt) -> Vec<String> {
        let line = |line: &[u8]| LogLine::parse(line).unwrap().line.into_owned();
        excerpt.lines.split(|byte| *byte == b'\n').filter(|text| !text.is_empty()).map(line).collect()
    }

    #[test]
    fn what_is_older_is_left_out() {
        let room = tempfile::tempdir().unwrap();
        std::fs::write(room.path().join("log.1"), of(0..50)).unwrap();
        std::fs::write(room.path().join("log"), of(50..99)).unwrap();
        assert_eq!(numbers(&end(room.path(), 1000, Some(45))), ["96", "97", "98"]);
        assert_eq!(numbers(&end(room.path(), 2, Some(45))), ["97", "98"]);
        assert_eq!(numbers(&end(room.path(), 1000, Some(505))).len(), 49);
        assert_eq!(numbers(&end(room.path(), 1000, Some(u64::MAX))).len(), 99);
        assert!(numbers(&end(room.path(), 1000, Some(0))).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_is_followed_over_rotations_and_no_line_comes_twice_or_never() {
        let room = tempfile::tempdir().unwrap();
        let (log, previous) = (room.path().join("log"), room.path().join("log.1"));
        let append = |text: &str| {
            use std::io::Write as _;
            let file = std::fs::OpenOptions::new().append(true).create(true).open(&log);
            file.unwrap().write_all(text.as_bytes()).unwrap();
        };
        let mut seen = end(room.path(), 10, None);
        assert_eq!(seen.place, LogPlace { file: 0, offset: 0 });
        append(&of(0..2));
        seen = after(room.path(), seen.place).await;
        assert_eq!(numbers(&seen), ["0", "1"]);
        let begun = Instant::now();
        append("{\"at\"");
        seen = after(room.path(), seen.place).await;
        assert!(seen.lines.is_empty() && begun.elapsed() >= Duration::from_secs(LOG_WAIT_S));
        append(line(2).strip_prefix("{\"at\"").unwrap());
        std::fs::rename(&log, &previous).unwrap();
        append(&of(3..5));
        seen = after(room.path(), seen.place).await;
        assert_eq!(numbers(&seen), ["2", "3", "4"]);
        // Rotated twice meanwhile: what is left.
        std::fs::write(room.path().join("fresh"), of(11..12)).unwrap();
        std::fs::write(&previous, of(10..11)).unwrap();
        std::fs::rename(room.path().join("fresh"), &log).unwrap();
        seen = after(room.path(), seen.place).await;
        assert!(numbers(&seen).ends_with(&["11".to_owned()]));
    }
}
