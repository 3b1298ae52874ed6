//! What time it is elsewhere: the `Date` of answers of servers that are known by TLS.
//!
//! The clock is the host's, and wrong clocks look like attacks: claims from the future, certificates that are not valid yet. So what GitHub
//! and the certification service say in answers that are asked for anyway is compared with it. Each may be wrong, and whoever holds
//! one server's key must not be able to say what time it is: an opinion needs two that agree.
//!
//! It is said, and nothing is done: no clock is set.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use cofferdam_protocol::status::{ClockSource, ClockStatus};
use cofferdam_protocol::{Timestamp, json, unix_seconds};
use tokio::time::Instant;

use crate::system::files;

/// Two that differ by no more agree: whole seconds, and the time that an answer takes.
const AGREE_S: u64 = 5;
/// How long what a server has said counts.
const COUNTS_FOR: Duration = Duration::from_secs(26 * 60 * 60);
/// From here on it is worth a line on the console.
const NOTABLE_S: u64 = 30;

/// What the servers have said.
#[derive(Debug)]
pub(crate) struct Dates {
    path: PathBuf,
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    hosts: BTreeMap<String, (i64, Instant)>,
    warned: Option<i64>,
}

impl Dates {
    /// Nobody has said anything; what they say goes into this file.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, said: Mutex::default() }
    }

    /// `host` has said that it is `date` when this machine's clock said `here`.
    pub(crate) fn note(&self, host: &str, date: Timestamp, here: SystemTime) {
        let ahead = i64::try_from(unix_seconds(here))
            .unwrap_or(i64::MAX)
            .saturating_sub(i64::try_from(date.unix()).unwrap_or(i64::MAX));
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.hosts.retain(|_, (_, heard)| heard.elapsed() < COUNTS_FOR);
        if said.hosts.len() < ClockStatus::MAX_SOURCES || said.hosts.contains_key(host) {
            said.hosts.insert(host.to_owned(), (ahead, Instant::now()));
        }
        let sources = said
            .hosts
            .iter()
            .map(|(host, (ahead_s, _))| ClockSource { host: host.clone(), ahead_s: *ahead_s });
        let sources: Vec<ClockSource> = sources.collect();
        let ahead_s = opinion(&sources);
        let notable = ahead_s.filter(|ahead| ahead.unsigned_abs() >= NOTABLE_S);
        if let Some(ahead) =
            notable.filter(|ahead| said.warned.is_none_or(|before| before.abs_diff(*ahead) > AGREE_S))
        {
            let (seconds, word) = (ahead.unsigned_abs(), if ahead > 0 { "ahead of" } else { "behind" });
            println!("publish: the clock is {seconds} s {word} what servers say: the host has to set it");
        }
        said.warned = notable;
        let at = Timestamp::from_clock(here).unwrap_or(Timestamp::EPOCH);
        let written = json::to_vec(&ClockStatus { ahead_s, sources, at }).map_err(std::io::Error::other);
        if let Err(error) = written.and_then(|bytes| files::replace(&self.path, &bytes)) {
            eprintln!("publish: cannot write {}: {error}", self.path.display());
        }
    }
}

/// What at least two servers, and more than half of them, agree on.
fn opinion(sources: &[ClockSource]) -> Option<i64> {
    let mut said: Vec<i64> = sources.iter().map(|source| source.ahead_s).collect();
    said.sort_unstable();
    let median = *said.get(said.len() / 2)?;
    let agree = said.iter().filter(|ahead| ahead.abs_diff(median) <= AGREE_S).count();
    (agree >= 2 && agree.saturating_mul(2) > said.len()).then_some(median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_server_is_believed_alone() {
        let opinion = |said: &[i64]| {
            let source = |ahead_s: &i64| ClockSource { host: "h".to_owned(), ahead_s: *ahead_s };
            super::opinion(&said.iter().map(source).collect::<Vec<_>>())
        };
        assert_eq!(opinion(&[]), None);
        assert_eq!(opinion(&[3600]), None);
        assert_eq!(opinion(&[3600, 0]), None);
        assert_eq!(opinion(&[3600, 3598]), Some(3600));
        assert_eq!(opinion(&[0, 3600, 3598]), Some(3598));
        assert_eq!(opinion(&[0, 1, -90_000]), Some(0));
        assert_eq!(opinion(&[0, 0, 100, 100]), None);
        assert_eq!(opinion(&[i64::MIN, i64::MAX]), None);
    }

    #[test]
    fn what_servers_say_is_written_down_and_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clock.json");
        let dates = Dates::new(path.clone());
        let read = || ClockStatus::parse(&std::fs::read(&path).unwrap()).unwrap();
        let here = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let there = |behind: u64| Timestamp::from_unix(1_800_000_000 - behind).unwrap();
        dates.note("api.github.example", there(3600), here);
        assert_eq!(read().ahead_s, None);
        dates.note("pcs.example", there(3599), here);
        assert_eq!((read().ahead_s, read().sources.len()), (Some(3600), 2));
        for number in 0..100 {
            dates.note(&format!("{number}.example"), there(0), here);
        }
        assert_eq!(read().sources.len(), ClockStatus::MAX_SOURCES);
    }
}
