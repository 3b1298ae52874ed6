//! What one service wanted outside and did not get: counted, and the last of it written down for operators.
//!
//! Names are the service's choice. They are kept in visible ASCII and bounded, in a list that is bounded, in a file of the role's own;
//! none is ever printed to the console.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use cofferdam_protocol::events::{self, Happened};
use cofferdam_protocol::status::{Denied, DeniedWhy, EgressStatus};
use cofferdam_protocol::{Timestamp, json};
use tokio::sync::Notify;

use crate::system::files;
use crate::system::ring::Ring;

/// Between two times that the file is written. A service that is denied all the time costs a file a second; one that is not, nothing.
const PAUSE: Duration = Duration::from_secs(1);
/// Bound on a target in bytes: two names would not fit, and nobody needs them whole.
const MAX_TARGET: usize = 320;

/// The attempts of one service.
#[derive(Debug, Default)]
pub(super) struct Denials {
    list: Mutex<List>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct List {
    total: u64,
    /// At most [`EgressStatus::MAX_LISTED`].
    kept: BTreeMap<(String, DeniedWhy), Kept>,
}

#[derive(Debug)]
struct Kept {
    count: u64,
    last: Timestamp,
    /// The number of its last attempt, which the clock does not decide.
    number: u64,
    allow: Option<String>,
}

impl Denials {
    /// Counts an attempt. `allow` is the entry of a declaration that would let it through.
    pub(super) fn add(&self, target: &str, why: DeniedWhy, allow: Option<String>) {
        let target: String =
            target.chars().map(|c| if c.is_ascii_graphic() { c } else { '?' }).take(MAX_TARGET).collect();
        let now = Timestamp::from_clock(SystemTime::now()).unwrap_or(Timestamp::EPOCH);
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.total = list.total.saturating_add(1);
        let number = list.total;
        let key = (target, why);
        if !list.kept.contains_key(&key) && list.kept.len() >= EgressStatus::MAX_LISTED {
            let oldest = list.kept.iter().min_by_key(|(_, kept)| kept.number).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| list.kept.remove(&oldest));
        }
        let kept = list.kept.entry(key).or_insert(Kept { count: 0, last: now, number, allow });
        (kept.count, kept.last, kept.number) = (kept.count.saturating_add(1), now, number);
        drop(list);
        self.changed.notify_one();
    }

    /// What there is to say by now.
    pub(super) fn status(&self) -> EgressStatus {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept: Vec<_> = list.kept.iter().collect();
        kept.sort_by_key(|(_, kept)| std::cmp::Reverse(kept.number));
        let latest = kept.into_iter().map(|((target, why), kept)| Denied {
            target: target.clone(),
            why: *why,
            count: kept.count,
            last: kept.last,
            allow: kept.allow.clone(),
        });
        EgressStatus { denied: list.total, latest: latest.collect() }
    }

    /// Writes it to `path` whenever it has changed, and the last of it to the ring beside that, until the runtime ends.
    pub(super) async fn write_to(&self, path: &Path) {
        let ring = Ring::at(ring(path));
        let mut told = 0;
        loop {
            self.changed.notified().await;
            let status = self.status();
            if let Some(last) = status.latest.first() {
                let allow = last.allow.as_deref().map(events::bounded);
                let count = status.denied.saturating_sub(told);
                told = status.denied;
                ring.tell(Happened::Denied { target: last.target.clone(), why: last.why, count, allow });
            }
            let written = json::to_vec(&status).map_err(std::io::Error::other);
            if let Err(error) = written.and_then(|bytes| files::replace(path, &bytes)) {
                eprintln!("egress: cannot write {}: {error}", path.display());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// The ring beside a service's file.
pub(crate) fn ring(path: &Path) -> PathBuf {
    path.with_extension("events")
}

#[cfg(test)]
mod tests {
    use cofferdam_protocol::status::MAX_FILE;

    use super::*;

    #[test]
    fn the_latest_are_listed_once_each_and_all_are_counted() {
        let denials = Denials::default();
        for number in 0..40 {
            denials.add(&format!("n{number}.example.org"), DeniedWhy::Name, None);
        }
        denials.add("n30.example.org", DeniedWhy::Name, None);
        denials.add("n30.example.org", DeniedWhy::Port, None);
        let status = denials.status();
        assert_eq!((status.denied, status.latest.len()), (42, EgressStatus::MAX_LISTED));
        let first: Vec<_> =
            status.latest[..3].iter().map(|one| (one.target.as_str(), one.why, one.count)).collect();
        assert_eq!(
            first,
            [
                ("n30.example.org", DeniedWhy::Port, 1),
                ("n30.example.org", DeniedWhy::Name, 2),
                ("n39.example.org", DeniedWhy::Name, 1)
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_service_chose_is_visible_bounded_and_fits_into_the_file() {
        let denials = Denials::default();
        denials.add("a\n\u{1b}[31mb\u{202e}", DeniedWhy::Name, None);
        assert_eq!(denials.status().latest[0].target, "a??[31mb?");
        let allow = format!("{}:65535", "a".repeat(253));
        for number in 0..64 {
            denials.add(
                &format!("{number:02}{}", "\"".repeat(1000)),
                DeniedWhy::ServerName,
                Some(allow.clone()),
            );
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.json");
        assert!(tokio::time::timeout(PAUSE / 2, denials.write_to(&path)).await.is_err());
        let written = std::fs::read(&path).unwrap();
        assert!(written.len() < MAX_FILE);
        assert_eq!(EgressStatus::parse(&written).unwrap(), denials.status());
        assert_eq!(denials.status().latest[0].target.len(), MAX_TARGET);
        // However many there were in a second, they are one event.
        let told = std::fs::read(ring(&path)).unwrap();
        let told = events::Entry::parse(told.strip_suffix(b"\n").unwrap()).unwrap();
        let Happened::Denied { count, target, .. } = told.event else { panic!() };
        assert_eq!((count, target), (65, denials.status().latest[0].target.clone()));
    }
}
