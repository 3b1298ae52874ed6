//! What time it is elsewhere: the `Date` of answers of servers that are known by TLS.
//!
//! The clock is the host's, and wrong clocks look like attacks: claims from the future, certificates that are not valid yet. So what GitHub
//! and the certification service say in answers is compared with it, and PID 1 is told what they agree on, which sets the clock
//! ([`crate::system::clock`]). Each may be wrong, and whoever holds one server's key must not be able to say what time it is: an opinion
//! needs two that agree.
//!
//! What was said is kept as a distance from the kernel's raw monotonic clock. So it stays true when the clock is set, and what somebody else
//! said before the machine stood still contradicts what is said after it: then the other one is asked again.
//!
//! The host can hold an answer back: one that took longer than [`AGREE_MS`] says nothing. It can hold all of them back, and then nobody
//! knows what time it is, as without a network.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use cofferdam_github::{Client, Said};
use cofferdam_protocol::status::{ClockSource, ClockStatus};
use cofferdam_protocol::{Timestamp, json};
use tokio::sync::{Notify, watch};

use super::collateral::Pcs;
use super::{FIRST_PAUSE, LONGEST_PAUSE};
use crate::system::clock::{LEAST_MS, Reading, SLEWED_MS};
use crate::system::files;

/// Two that differ by no more agree, and no answer that took longer counts: the time of a server's choice lies somewhere in between.
const AGREE_MS: u64 = 5_000;
/// How long what a server has said counts: the certification service is asked for documents once a day.
const COUNTS_FOR_MS: i64 = 26 * 60 * 60 * 1000;
/// From here on it is worth a line on the console.
const NOTABLE_S: u64 = 30;
/// How old what GitHub has said may become. A machine that stood still is found out after this time.
const ASK_EVERY: Duration = Duration::from_secs(5 * 60);
/// How long the certification service may take to say it in the answer to something else.
const BY_THE_WAY: Duration = Duration::from_secs(5);

/// What the servers have said.
#[derive(Debug)]
pub(crate) struct Dates {
    path: PathBuf,
    /// Where PID 1 hears.
    clock: Option<UnixDatagram>,
    /// Whether there are two servers, so that there can be an opinion.
    two: bool,
    told: Mutex<Told>,
    /// By how many milliseconds the clock is ahead, as far as that is known.
    ahead: watch::Sender<Option<i64>>,
    /// Somebody has said something that the others do not bear out.
    unsure: Notify,
}

#[derive(Debug, Default)]
struct Told {
    words: BTreeMap<String, Word>,
    warned: Option<i64>,
}

/// What one server has said last.
#[derive(Debug, Clone, Copy)]
struct Word {
    /// By how much the time there is ahead of the raw clock.
    offset_ms: i64,
    /// When that was, by the raw clock.
    raw_ms: i64,
}

impl Dates {
    /// Nobody has said anything; what they say goes into this file, and what they agree on to PID 1.
    pub(crate) fn new(path: PathBuf, clock: Option<UnixDatagram>, two: bool) -> Self {
        let (ahead, unsure) = (watch::Sender::new(None), Notify::new());
        Self { path, clock, two, told: Mutex::default(), ahead, unsure }
    }

    /// `host` has said what time it is.
    pub(crate) fn note(&self, host: &str, said: Option<Said>) {
        let Some(Said { date, asked, answered }) = said else { return };
        let took = milliseconds(answered.saturating_duration_since(asked));
        if took.unsigned_abs() > AGREE_MS {
            return;
        }
        let now = Reading::now();
        // The middle of its second, at the middle of the time that it took.
        let there_ms =
            i64::try_from(date.unix()).unwrap_or(i64::MAX).saturating_mul(1000).saturating_add(500);
        let raw_ms = now.raw_ms.saturating_sub(milliseconds(answered.elapsed())).saturating_sub(took / 2);
        self.hear(host, Word { offset_ms: there_ms.saturating_sub(raw_ms), raw_ms }, now);
    }

    fn hear(&self, host: &str, word: Word, now: Reading) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.words.len() < ClockStatus::MAX_SOURCES || told.words.contains_key(host) {
            told.words.insert(host.to_owned(), word);
        }
        self.judge(&mut told, now);
    }

    /// Compares what was said with the clock, which was set.
    pub(crate) fn look(&self) {
        self.judge(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner), Reading::now());
    }

    fn judge(&self, told: &mut Told, now: Reading) {
        told.words.retain(|_, word| now.raw_ms.saturating_sub(word.raw_ms) < COUNTS_FOR_MS);
        let mut offsets: Vec<i64> = told.words.values().map(|word| word.offset_ms).collect();
        let right = opinion(&mut offsets);
        let ahead = right.map(|right| now.offset().saturating_sub(right));
        if let (Some(right), Some(ahead), Some(clock)) = (right, ahead, &self.clock)
            && ahead.unsigned_abs() >= LEAST_MS
        {
            // PID 1 may not listen for a moment: it hears the next one.
            let _ = clock.send(&right.to_ne_bytes());
        }
        let ahead_s = ahead.map(seconds);
        told.warn(ahead_s);
        let source = |(host, word): (&String, &Word)| ClockSource {
            host: host.clone(),
            ahead_s: seconds(now.offset().saturating_sub(word.offset_ms)),
        };
        let sources: Vec<ClockSource> = told.words.iter().map(source).collect();
        let spoken = !sources.is_empty();
        let at = Timestamp::from_clock(SystemTime::now()).unwrap_or(Timestamp::EPOCH);
        let written = json::to_vec(&ClockStatus { ahead_s, sources, at }).map_err(std::io::Error::other);
        if let Err(error) = written.and_then(|bytes| files::replace(&self.path, &bytes)) {
            eprintln!("publish: cannot write {}: {error}", self.path.display());
        }
        let _ = self.ahead.send_replace(ahead);
        if ahead.is_none() && spoken {
            self.unsure.notify_one();
        }
    }

    /// Waits until the clock is right, as far as anybody knows, and for this long at most.
    pub(crate) async fn settled(&self, at_most: Duration) {
        if !self.two {
            return;
        }
        let right = |ahead: &Option<i64>| ahead.is_some_and(|ahead| ahead.unsigned_abs() <= SLEWED_MS);
        let _ = tokio::time::timeout(at_most, self.ahead.subscribe().wait_for(right)).await;
    }

    /// Sees to it that there is an opinion, for ever: GitHub is asked when it has said nothing for a while, and the certification service,
    /// which says something with each document, where it has not or says something else.
    pub(crate) async fn keep_asking(&self, github: &Client, pcs: &Pcs) {
        let mut pause = FIRST_PAUSE;
        loop {
            // Not what an earlier round was told.
            let begun = Instant::now();
            let fresh = |said: Option<Said>| said.filter(|said| said.asked >= begun);
            if self.is_due(github.host()) {
                // Also an answer that refuses says what time it is.
                let _ = github.ask_time().await;
                self.note(github.host(), fresh(github.date()));
            }
            let mut ahead = self.ahead.subscribe();
            let known = tokio::time::timeout(BY_THE_WAY, ahead.wait_for(Option::is_some)).await.is_ok();
            if !known {
                let _ = pcs.ask_time().await;
                self.note(pcs.host(), fresh(pcs.date()));
            }
            if self.ahead.borrow().is_some() {
                pause = FIRST_PAUSE;
                tokio::select! {
                    () = tokio::time::sleep(ASK_EVERY) => {}
                    () = self.unsure.notified() => {}
                }
            } else {
                tokio::time::sleep(pause).await;
                pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
            }
        }
    }

    fn is_due(&self, host: &str) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let age = |word: &Word| Reading::now().raw_ms.saturating_sub(word.raw_ms);
        told.words.get(host).is_none_or(|word| age(word) >= milliseconds(ASK_EVERY))
    }
}

impl Told {
    /// A line on the console when there is something new to say.
    fn warn(&mut self, ahead_s: Option<i64>) {
        let notable = ahead_s.filter(|ahead| ahead.unsigned_abs() >= NOTABLE_S);
        let new = |ahead: i64| self.warned.is_none_or(|before| before.abs_diff(ahead) > AGREE_MS / 1000);
        if let Some(ahead) = notable.filter(|ahead| new(*ahead)) {
            let (seconds, word) = (ahead.unsigned_abs(), if ahead > 0 { "ahead of" } else { "behind" });
            let hosts: Vec<&str> = self.words.keys().map(String::as_str).collect();
            println!("publish: the clock is {seconds} s {word} what {} say", hosts.join(" and "));
        }
        self.warned = notable;
    }
}

/// What at least two servers, and more than half of them, agree on.
fn opinion(said: &mut [i64]) -> Option<i64> {
    said.sort_unstable();
    let median = *said.get(said.len() / 2)?;
    let agree = said.iter().filter(|offset| offset.abs_diff(median) <= AGREE_MS).count();
    (agree >= 2 && agree.saturating_mul(2) > said.len()).then_some(median)
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Whole seconds, the nearest.
fn seconds(milliseconds: i64) -> i64 {
    milliseconds.saturating_add(500).div_euclid(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that is an hour ahead of the time that `there` makes of it.
    const NOW: Reading = Reading { wall_ms: 1_800_003_600_000, raw_ms: 50_000 };
    const THERE: i64 = 1_800_000_000_000 - 50_000;

    fn word(offset_ms: i64) -> Word {
        Word { offset_ms, raw_ms: NOW.raw_ms }
    }

    struct World {
        _directory: tempfile::TempDir,
        path: PathBuf,
        heard: UnixDatagram,
        dates: Dates,
    }

    impl World {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("clock.json");
            let (heard, clock) = UnixDatagram::pair().unwrap();
            heard.set_nonblocking(true).unwrap();
            let dates = Dates::new(path.clone(), Some(clock), true);
            Self { _directory: directory, path, heard, dates }
        }

        fn written(&self) -> ClockStatus {
            ClockStatus::parse(&std::fs::read(&self.path).unwrap()).unwrap()
        }

        fn heard(&self) -> Option<i64> {
            let mut bytes = [0; 8];
            self.heard.recv(&mut bytes).ok().map(|_| i64::from_ne_bytes(bytes))
        }
    }

    #[test]
    fn no_server_is_believed_alone() {
        let opinion = |said: &[i64]| super::opinion(&mut said.to_vec());
        assert_eq!(opinion(&[]), None);
        assert_eq!(opinion(&[3_600_000]), None);
        assert_eq!(opinion(&[3_600_000, 0]), None);
        assert_eq!(opinion(&[3_600_000, 3_598_000]), Some(3_600_000));
        assert_eq!(opinion(&[0, 3_600_000, 3_598_000]), Some(3_598_000));
        assert_eq!(opinion(&[0, 1_000, -90_000_000]), Some(0));
        assert_eq!(opinion(&[0, 0, 100_000, 100_000]), None);
        assert_eq!(opinion(&[i64::MIN, i64::MAX]), None);
    }

    #[test]
    fn what_servers_agree_on_is_written_down_and_pid_1_hears_it() {
        let world = World::new();
        world.dates.hear("api.github.example", word(THERE), NOW);
        assert_eq!((world.written().ahead_s, world.heard()), (None, None));
        world.dates.hear("pcs.example", word(THERE - 1_000), NOW);
        assert_eq!((world.written().ahead_s, world.written().sources.len()), (Some(3600), 2));
        assert_eq!(world.heard(), Some(THERE));
        for number in 0..100 {
            world.dates.hear(&format!("{number}.example"), word(NOW.offset()), NOW);
        }
        assert_eq!(world.written().sources.len(), ClockStatus::MAX_SOURCES);
    }

    #[test]
    fn what_was_said_stays_true_when_the_clock_is_set() {
        let world = World::new();
        world.dates.hear("api.github.example", word(THERE), NOW);
        world.dates.hear("pcs.example", word(THERE), NOW);
        assert_eq!(world.heard(), Some(THERE));
        let set = Reading { wall_ms: NOW.wall_ms - 3_600_000, ..NOW };
        world.dates.judge(&mut world.dates.told.lock().unwrap(), set);
        let said: Vec<i64> = world.written().sources.iter().map(|source| source.ahead_s).collect();
        assert_eq!((world.written().ahead_s, said), (Some(0), vec![0, 0]));
        assert_eq!(world.heard(), None, "there is nothing to set");
    }

    #[test]
    fn a_machine_that_stood_still_is_set_right_when_both_have_spoken_again() {
        let world = World::new();
        let right = Reading { wall_ms: NOW.wall_ms - 3_600_000, ..NOW };
        for host in ["api.github.example", "pcs.example"] {
            world.dates.hear(host, word(THERE), right);
        }
        assert_eq!((world.written().ahead_s, world.heard()), (Some(0), None));
        // Nothing in the machine sees it.
        let later = THERE + 45_000;
        world.dates.hear("api.github.example", word(later), right);
        assert_eq!((world.written().ahead_s, world.heard()), (None, None), "one alone sets no clock");
        world.dates.hear("pcs.example", word(later), right);
        assert_eq!((world.written().ahead_s, world.heard()), (Some(-45), Some(later)));
    }

    #[test]
    fn what_was_said_long_ago_does_not_count() {
        let world = World::new();
        world.dates.hear("pcs.example", word(THERE), NOW);
        let later = Reading { wall_ms: NOW.wall_ms + COUNTS_FOR_MS, raw_ms: NOW.raw_ms + COUNTS_FOR_MS };
        let fresh = Word { offset_ms: THERE, raw_ms: later.raw_ms };
        world.dates.hear("api.github.example", fresh, later);
        assert_eq!((world.written().ahead_s, world.written().sources.len()), (None, 1));
    }

    #[test]
    fn an_answer_that_the_host_held_back_says_nothing() {
        let world = World::new();
        let answered = Instant::now();
        let said = |host, took| {
            let date = Timestamp::from_clock(SystemTime::now()).unwrap();
            let asked = answered.checked_sub(Duration::from_secs(took)).unwrap();
            world.dates.note(host, Some(Said { date, asked, answered }));
        };
        said("api.github.example", 6);
        assert!(!world.path.exists());
        said("api.github.example", 4);
        said("pcs.example", 0);
        let ahead = world.written().ahead_s.unwrap();
        assert!((-3..=3).contains(&ahead), "{ahead}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_the_clock_waits_until_it_is_set_or_for_a_while() {
        let world = World::new();
        let at_most = Duration::from_secs(10);
        let before = tokio::time::Instant::now();
        world.dates.settled(at_most).await;
        assert_eq!(before.elapsed(), at_most);
        for host in ["api.github.example", "pcs.example"] {
            world.dates.hear(host, word(THERE), NOW);
        }
        tokio::time::timeout(at_most / 2, world.dates.settled(at_most)).await.unwrap_err();
        let set = Reading { wall_ms: NOW.wall_ms - 3_600_000, ..NOW };
        world.dates.judge(&mut world.dates.told.lock().unwrap(), set);
        tokio::time::timeout(Duration::from_millis(1), world.dates.settled(at_most)).await.unwrap();
    }
}
