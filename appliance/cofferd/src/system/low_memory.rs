//! The machine itself ran out of memory: which service has to end, so that nobody else does.
//!
//! Each service has an amount of its own and all amounts together are there, so this takes memory that the kernel counts to
//! nobody. Taking that needs system calls: the services end one after another, the one first that spent most time in the
//! kernel since the last look, until there is memory again. The last one was it. Meanwhile all of them stand still.
//!
//! The sign is the end of the role `reserve`, which the kernel ends before any other process; what that held is what PID 1
//! acts with. Nothing here waits without a bound, and nothing here starts anything.

use std::collections::BTreeMap;
use std::time::Duration;

use cofferdam_protocol::error_chain;

use super::cgroup::Cgroup;
use super::console::say;
use super::meminfo::meminfo;

/// What has to be available again, in bytes: several times what the reserve holds.
pub(super) const ENOUGH: u64 = 64 << 20;
/// How long a service that took the machine's memory stays ended. Started at once it would do the same again.
pub(super) const HOLD: Duration = Duration::from_secs(60);
/// What ended processes held comes back as fast as the kernel can clear it, with their last or soon after it. In looks: so many
/// without anything after their end, and so many in all.
const NOTHING_CAME: u32 = 40;
const AT_MOST: u32 = 200;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What is asked of the machine and done to it; a test has one of its own.
pub(super) trait Machine {
    /// Bytes that could be had now.
    fn available(&self) -> u64;
    /// Lets the services stand still, or go on.
    fn freeze(&mut self, frozen: bool);
    /// Ends every process of the service.
    fn end(&mut self, service: &str);
    /// Whether one of them is left.
    fn populated(&self, service: &str) -> bool;
    /// Waits a moment.
    fn pause(&mut self, time: Duration);
}

/// How long each service had spent in the kernel when it was last looked at.
#[derive(Debug, Default)]
pub(super) struct KernelTimes {
    then: BTreeMap<String, Duration>,
}

/// A service that was ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    /// Its name.
    pub(super) service: String,
    /// Whether there was memory again after its end.
    pub(super) relieved: bool,
}

impl KernelTimes {
    /// Looks at the services' groups.
    pub(super) fn look<'a>(&mut self, services: impl Iterator<Item = (&'a str, &'a Cgroup)>) {
        self.then = services.map(|(name, group)| (name.to_owned(), group.kernel_time())).collect();
    }

    /// The services, the one first that spent most time in the kernel since the last look.
    pub(super) fn since<'a>(&self, services: impl Iterator<Item = (&'a str, &'a Cgroup)>) -> Vec<String> {
        self.order(services.map(|(name, group)| (name, group.kernel_time())))
    }

    fn order<'a>(&self, now: impl Iterator<Item = (&'a str, Duration)>) -> Vec<String> {
        let spent = |(name, now): (&'a str, Duration)| {
            (now.saturating_sub(self.then.get(name).copied().unwrap_or_default()), name)
        };
        let mut services: Vec<(Duration, &str)> = now.map(spent).collect();
        services.sort_by(|one, other| other.0.cmp(&one.0).then(one.1.cmp(other.1)));
        services.into_iter().map(|(_, name)| name.to_owned()).collect()
    }
}

/// Ends services in this order until there is memory again, and says which. When there is enough already, nobody ends.
pub(super) fn relieve(machine: &mut impl Machine, order: Vec<String>) -> Vec<Ended> {
    machine.freeze(true);
    let mut ended = Vec::new();
    for service in order {
        if machine.available() >= ENOUGH {
            break;
        }
        machine.end(&service);
        wait_for_memory(machine, &service);
        ended.push(Ended { service, relieved: machine.available() >= ENOUGH });
    }
    machine.freeze(false);
    ended
}

fn wait_for_memory(machine: &mut impl Machine, service: &str) {
    let (mut most, mut without) = (machine.available(), 0_u32);
    for _ in 0..AT_MOST {
        let (available, populated) = (machine.available(), machine.populated(service));
        without = if populated || available > most { 0 } else { without.saturating_add(1) };
        most = most.max(available);
        if without >= NOTHING_CAME || available >= ENOUGH && !populated {
            return;
        }
        machine.pause(LOOK_EVERY);
    }
}

/// The services of this machine, by the names of their shims, with their groups.
pub(super) struct Services<'a>(Vec<(&'a str, &'a Cgroup)>);

impl<'a> Services<'a> {
    pub(super) fn new(services: impl Iterator<Item = (&'a str, &'a Cgroup)>) -> Self {
        Self(services.collect())
    }

    fn group(&self, service: &str) -> Option<&Cgroup> {
        self.0.iter().find(|(name, _)| *name == service).map(|(_, group)| *group)
    }
}

impl Machine for Services<'_> {
    fn available(&self) -> u64 {
        // Who cannot even read this is short of memory.
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        meminfo(&text, "MemAvailable").unwrap_or_default()
    }

    fn freeze(&mut self, frozen: bool) {
        if let Err(error) = Cgroup::services().freeze(frozen) {
            say(&format!("cannot let the services stand still or go on: {}", error_chain(&error)));
        }
    }

    fn end(&mut self, service: &str) {
        if let Some(Err(error)) = self.group(service).map(Cgroup::kill) {
            say(&format!("{service}: cannot end it: {}", error_chain(&error)));
        }
    }

    fn populated(&self, service: &str) -> bool {
        self.group(service).is_some_and(Cgroup::populated)
    }

    fn pause(&mut self, time: Duration) {
        std::thread::sleep(time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A machine in which each service holds what nobody counts.
    #[derive(Default)]
    struct Simulated {
        free: u64,
        held: BTreeMap<&'static str, u64>,
        frozen: bool,
        /// Turns until what an ended service held is back.
        slow: u32,
        /// Of that, at each turn from then on.
        coming: u64,
        paused: u32,
    }

    impl Machine for Simulated {
        fn available(&self) -> u64 {
            self.free
        }

        fn freeze(&mut self, frozen: bool) {
            assert_ne!(self.frozen, frozen);
            self.frozen = frozen;
        }

        fn end(&mut self, service: &str) {
            assert!(self.frozen, "the others go on taking");
            self.coming = self.held.remove(service).unwrap_or_default();
            self.paused = 0;
        }

        fn populated(&self, _: &str) -> bool {
            self.paused < self.slow
        }

        fn pause(&mut self, _: Duration) {
            self.paused += 1;
            if self.paused >= self.slow {
                let part = self.coming.min(2 * MIB);
                self.coming -= part;
                self.free += part;
            }
        }
    }

    fn names(services: &[&str]) -> Vec<String> {
        services.iter().map(|&name| name.to_owned()).collect()
    }

    fn ended(service: &str, relieved: bool) -> Ended {
        Ended { service: service.to_owned(), relieved }
    }

    #[test]
    fn services_end_until_there_is_memory_again_and_the_last_one_was_it() {
        let held = [("busy", 8 * MIB), ("thief", 700 * MIB), ("quiet", 500 * MIB)].into();
        let mut machine = Simulated { free: 10 * MIB, held, slow: 3, ..Default::default() };
        let out = relieve(&mut machine, names(&["busy", "thief", "quiet"]));
        assert_eq!(out, [ended("busy", false), ended("thief", true)]);
        assert!(!machine.frozen && machine.held.contains_key("quiet"));
    }

    #[test]
    fn nobody_ends_when_there_is_memory_again_already_and_all_do_when_that_does_not_help() {
        let mut machine = Simulated { free: ENOUGH, held: [("web", MIB)].into(), ..Default::default() };
        assert!(relieve(&mut machine, names(&["web"])).is_empty() && machine.held.len() == 1);
        // What was taken is not a service's, or does not come back in time: it ends nevertheless.
        let mut machine = Simulated { free: 0, slow: u32::MAX, ..Default::default() };
        let out = relieve(&mut machine, names(&["a", "b"]));
        assert_eq!(out, [ended("a", false), ended("b", false)]);
        assert!(!machine.frozen && machine.paused == AT_MOST);
        let mut machine = Simulated::default();
        assert_eq!(relieve(&mut machine, names(&["a"])), [ended("a", false)]);
        assert!(machine.paused == NOTHING_CAME - 1);
    }

    #[test]
    fn memory_that_comes_back_slowly_is_waited_for_and_not_for_ever() {
        let held = [("thief", 700 * MIB), ("quiet", 0)].into();
        let mut machine = Simulated { held, slow: 100, ..Default::default() };
        assert_eq!(relieve(&mut machine, names(&["thief", "quiet"])), [ended("thief", true)]);
        assert_eq!(machine.paused, 100 + 31);
        let held = [("thief", 700 * MIB), ("quiet", 0)].into();
        let mut machine = Simulated { held, slow: 180, ..Default::default() };
        assert_eq!(relieve(&mut machine, names(&["thief"])), [ended("thief", false)]);
    }

    #[test]
    fn who_spent_most_time_in_the_kernel_since_the_last_look_is_first() {
        let seconds = Duration::from_secs;
        let then = [("old".to_owned(), seconds(900)), ("thief".to_owned(), seconds(2))].into();
        let times = KernelTimes { then };
        let now = [("old", seconds(903)), ("new", seconds(4)), ("thief", seconds(11)), ("idle", seconds(0))];
        assert_eq!(times.order(now.into_iter()), ["thief", "new", "old", "idle"]);
        // Whose group was made anew has spent less than before.
        assert_eq!(times.order([("old", seconds(1)), ("b", seconds(0))].into_iter()), ["b", "old"]);
    }
}
