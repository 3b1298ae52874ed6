//! PID 1's loop: keeps the roles running, reaps every orphan, ends the machine in order.
//!
//! # Duties
//!
//! - It is the only caller of wait4 in PID 1: one call site, [`Supervisor::reap`], for the roles and for every orphan. A
//!   second one would steal exit codes. Shims and containers wait for their own children only.
//! - A role that ends is started again, later and later while it keeps ending. Before that, what is left
//!   in its control group is killed: no workload outlives its shim.
//! - An image that was pulled is sealed ([`images`](super::images)): nobody changes it after that.
//! - Every change of a role's state is in `/run/cofferdam/status.json`, replaced atomically, and every end in `/run/cofferdam/events`.
//! - What time servers agree on, the role `publish` says, and it sets the clock within bounds ([`super::clock`]).
//! - When the machine runs out of memory, it ends the service that took it ([`super::low_memory`]), and holds that one back.
//! - SIGTERM, SIGINT (ctrl-alt-del), SIGPWR and the power button end the machine: services first, each after those that depend
//!   on it and with the time its declaration gives it ([`super::stopping`]), then the roles, then whatever is left.
//!
//! # Prohibitions
//!
//! - It never blocks on one role: it waits in poll(2) with a bound, and for a starting child's setup with a bound. Without memory
//!   it waits for what an ended service held, ten seconds at most for each.
//! - It parses nothing that came over a network and nothing that a role wrote: what time it is comes as one number.
//! - It never starts anything but `cofferd`, and never gives up: a parked appliance still reaps and
//!   still obeys the power button.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use cofferdam_protocol::events::Happened;
use cofferdam_protocol::status::{BootStatus, ClockSet, Killed, RoleState, RoleStatus};
use cofferdam_protocol::{Timestamp, error_chain, json};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sync};

use crate::paths;
use crate::system::bell::Bell;
use crate::system::cgroup::Cgroup;
use crate::system::clock::Clock;
use crate::system::console::say;
use crate::system::files;
use crate::system::images::PendingImage;
use crate::system::low_memory::{self, Ended, KernelTimes, Services};
use crate::system::power::PowerButtons;
use crate::system::ring::Ring;
use crate::system::spawn::{self, Spec};
use crate::system::stopping::{Step, Stopping};

/// The first wait before a restart: long enough that a role that dies at once does not fill the
/// console, short enough that nobody notices one crash.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// The longest wait. A role is promised back within 5 s of its death, and starting one takes some seconds under software emulation;
/// one that ends at each start has the processor for a few hundredths of the time.
const BACKOFF_MAX: Duration = Duration::from_millis(1600);
/// A role that ran this long was sound: its next end is a new event, not the same crash again.
const STABLE: Duration = Duration::from_secs(10);
/// How often to look again whether a killed group is empty, which takes a moment, and whether an image is there.
const LINGER: Duration = Duration::from_millis(50);
/// How often to look for a file that somebody else makes.
const POLL: Duration = Duration::from_millis(5);
/// The loop wakes at least this often, although every event it knows also wakes it.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// What a shim needs on top of its container's grace to notice, kill and flush the log.
const SHIM_MARGIN: Duration = Duration::from_secs(3);
/// No declaration may hold up a power-off longer: hosts give up after a few minutes.
const GRACE_MAX: Duration = Duration::from_secs(120);
/// Roles keep no state that a longer wait could save.
const ROLE_GRACE: Duration = Duration::from_secs(3);
/// What SIGKILL leaves behind is gone within a scheduler tick or never.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// Why the supervisor could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// Signals cannot be received.
    #[error("cannot receive signals")]
    Signals(#[source] Errno),
    /// Nobody could say what time it is.
    #[error("cannot make a socket for the clock")]
    Clock(#[source] io::Error),
}

/// When a process is told to end at shutdown. In this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// A shim: its container gets `grace` between SIGTERM and SIGKILL.
    Service {
        /// The service's `stop_grace_period`.
        grace: Duration,
    },
    /// A role of the appliance.
    Role,
    /// The one whose end by SIGKILL says that the machine ran out of memory.
    Reserve,
}

/// The delay before each restart: doubles while the role keeps ending, starts over once it was stable.
#[derive(Debug, Default)]
struct Backoff {
    next: Option<Duration>,
}

impl Backoff {
    /// The delay after a run that lasted `ran`.
    fn after(&mut self, ran: Duration) -> Duration {
        let delay = match self.next {
            Some(delay) if ran < STABLE => delay,
            _ => BACKOFF_FIRST,
        };
        self.next = Some(delay.saturating_mul(2).min(BACKOFF_MAX));
        delay
    }
}

/// Until when a process is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lasts {
    /// For ever.
    Always,
    /// Until it has ended with exit code 0.
    UntilDone,
    /// Not at all: how it ended is its answer.
    Once,
}

/// A process that is kept running.
struct Kept {
    name: String,
    tier: Tier,
    spec: Spec,
    pid: Option<Pid>,
    started: Instant,
    due: Option<Instant>,
    runs: u32,
    backoff: Backoff,
    /// Not before then, whatever the backoff says.
    held_until: Option<Instant>,
    /// Why PID 1 is ending it, until it has ended.
    ending: Option<Killed>,
    /// Why PID 1 ended it last, if it was PID 1.
    killed: Option<Killed>,
    /// Until when it is started again.
    lasts: Lasts,
    /// It is not started again once it has ended.
    leaving: bool,
    /// The names of those that end after it.
    needs: Vec<String>,
}

/// PID 1's view of its children.
pub struct Supervisor {
    signals: SignalFd,
    power: PowerButtons,
    kept: Vec<Kept>,
    unsealed: Vec<PendingImage>,
    phase: &'static str,
    /// How the appliance's state is kept, for people.
    state: String,
    parked: Option<String>,
    ending: bool,
    changed: bool,
    times: KernelTimes,
    looked: Instant,
    /// The machine ran out of memory, and nothing was done about it yet.
    short: bool,
    clock: Clock,
    /// What was done about the clock last.
    clock_set: Option<ClockSet>,
    /// What happened.
    events: Ring,
    /// What is done last, when no process is left.
    last: Vec<Box<dyn FnOnce()>>,
    /// With which exit codes those ended that run once; none: they were ended by a signal.
    answers: Vec<(String, Option<i32>)>,
    /// Where the role `publish` says that there is something to admit.
    bell: Option<Bell>,
}

impl Supervisor {
    /// Blocks the signals that the loop receives by descriptor.
    ///
    /// # Errors
    ///
    /// No descriptor for signals, or no socket.
    pub fn new() -> Result<Self, SuperviseError> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGPWR] {
            mask.add(signal);
        }
        mask.thread_block().map_err(SuperviseError::Signals)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&mask, flags).map_err(SuperviseError::Signals)?;
        let power = PowerButtons::none();
        Ok(Self {
            signals,
            power,
            kept: Vec::new(),
            unsealed: Vec::new(),
            phase: "mount",
            state: "not opened yet".to_owned(),
            parked: None,
            ending: false,
            changed: false,
            times: KernelTimes::default(),
            looked: Instant::now(),
            short: false,
            clock: Clock::of_host().map_err(SuperviseError::Clock)?,
            clock_set: None,
            events: Ring::at(paths::EVENTS),
            last: Vec::new(),
            answers: Vec::new(),
            bell: None,
        })
    }

    /// Names the phase for the status.
    pub(crate) fn enter(&mut self, phase: &'static str) {
        self.phase = phase;
        self.changed = true;
        self.publish();
    }

    /// Says from now on that the appliance's state is kept like this.
    pub(crate) fn state_is(&mut self, state: String) {
        self.state = state;
        self.changed = true;
    }

    /// How the appliance's state is kept, for people.
    pub(crate) fn state(&self) -> &str {
        &self.state
    }

    /// What the role that asks servers for the time is lent.
    pub(crate) fn clock(&self) -> Rc<File> {
        self.clock.lent()
    }

    /// Listens to these power buttons from now on.
    pub(crate) fn watch(&mut self, power: PowerButtons) {
        self.power = power;
    }

    /// Does this at the machine's end, when no process is left; what came last first.
    pub(crate) fn at_the_end(&mut self, last: impl FnOnce() + 'static) {
        self.last.push(Box::new(last));
    }

    /// Seals this image as soon as it is there.
    pub(crate) fn seal(&mut self, image: PendingImage) {
        self.unsealed.push(image);
    }

    /// Waits no longer for the image with this seal.
    pub(crate) fn forget_image(&mut self, seal: &Path) {
        self.unsealed.retain(|image| image.seal_path() != seal);
    }

    /// Starts a process and keeps it running from now on. One that does not even start is tried again later.
    pub fn keep(&mut self, name: String, tier: Tier, spec: Spec) {
        self.add(Kept::new(name, tier, spec, Lasts::Always));
    }

    /// The same for a service, which ends before those that it needs: names as here.
    pub fn keep_service(&mut self, name: String, grace: Duration, needs: Vec<String>, spec: Spec) {
        let kept = Kept::new(name, Tier::Service { grace }, spec, Lasts::Always);
        self.add(Kept { needs, ..kept });
    }

    /// The same until it has ended with exit code 0.
    pub fn keep_until_done(&mut self, name: String, tier: Tier, spec: Spec) {
        self.add(Kept::new(name, tier, spec, Lasts::UntilDone));
    }

    /// Starts processes that run once, and runs the loop until all of them have ended, or `limit` has passed; those that are left are ended
    /// then. Which exit code each had, in this order; none: it was ended by a signal.
    pub fn run_once(&mut self, started: Vec<(String, Spec)>, limit: Duration) -> Vec<Option<i32>> {
        let names: Vec<String> = started.iter().map(|(name, _)| name.clone()).collect();
        for (name, spec) in started {
            self.add(Kept::new(name, Tier::Role, spec, Lasts::Once));
        }
        let deadline = Instant::now() + limit;
        let runs = |kept: &[Kept]| kept.iter().any(|kept| names.contains(&kept.name));
        while runs(&self.kept) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.retire(&names);
                break;
            }
            self.turn(left);
        }
        let answers = std::mem::take(&mut self.answers);
        let of = |name: &String| answers.iter().find(|(other, _)| other == name).and_then(|(_, code)| *code);
        names.iter().map(of).collect()
    }

    /// Ends those of these names, services each after those that need it and with their grace, and forgets them. Everybody else goes on as
    /// ever.
    pub fn retire(&mut self, names: &[String]) {
        for kept in self.kept.iter_mut().filter(|kept| names.contains(&kept.name)) {
            kept.leaving = true;
            kept.due = None;
        }
        let leaving = self.kept.iter().filter(|kept| kept.leaving);
        let told: Vec<_> =
            leaving.map(|kept| (kept.name.as_str(), kept.tier.grace(), kept.needs.as_slice())).collect();
        let mut stopping = Stopping::new(&told, GRACE_MAX);
        drop(told);
        let began = Instant::now();
        loop {
            let leaving = || self.kept.iter().filter(|kept| kept.leaving);
            let gone = leaving().enumerate().filter(|(_, kept)| kept.pid.is_none());
            gone.for_each(|(index, _)| stopping.ended(index));
            if stopping.done() {
                break;
            }
            for (index, step) in stopping.due(began.elapsed()) {
                let Some(kept) = leaving().nth(index) else { continue };
                kept.take(step);
            }
            self.turn(LINGER);
        }
        // What its process left is killed by then, and its group is to be empty for whoever comes after it.
        let groups = self.kept.iter().filter(|kept| kept.leaving).filter_map(|kept| kept.spec.cgroup.clone());
        let groups: Vec<Cgroup> = groups.collect();
        self.kept.retain(|kept| !kept.leaving);
        self.run_until(KILL_GRACE, || !groups.iter().any(Cgroup::populated));
        self.changed = true;
        self.publish();
    }

    /// Ends the one of this name and starts it again at once. Without one, nothing.
    pub fn renew(&mut self, name: &str) {
        let Some(kept) = self.kept.iter_mut().find(|kept| kept.name == name) else { return };
        let (tier, spec) = (kept.tier, kept.spec.clone());
        let runs = kept.runs;
        self.retire(&[name.to_owned()]);
        self.add(Kept { runs, ..Kept::new(name.to_owned(), tier, spec, Lasts::Always) });
    }

    /// Hears this from now on.
    pub(crate) fn hear(&mut self, bell: Bell) {
        self.bell = Some(bell);
    }

    /// What happened, for operators.
    pub(crate) fn tell(&mut self, event: Happened) {
        self.events.tell(event);
    }

    /// Runs the loop until the role `publish` has rung.
    pub(crate) fn run_until_rung(&mut self) {
        while !self.bell.as_mut().is_some_and(|bell| bell.rang(Instant::now())) {
            self.turn(HEARTBEAT);
        }
    }

    fn add(&mut self, kept: Kept) {
        self.kept.push(kept);
        self.start_due();
        self.publish();
    }

    /// Runs the loop for as long as nobody of this name is done.
    pub fn run_until_done(&mut self, name: &str) {
        while self.kept.iter().any(|kept| kept.name == name) {
            self.turn(HEARTBEAT);
        }
    }

    /// Ends those whose names these are and forgets them; everybody else goes on.
    pub fn release(&mut self, names: &[&str]) {
        let named = |kept: &Kept| names.contains(&kept.name.as_str());
        self.end(named, ROLE_GRACE);
        self.kept.retain(|kept| !named(kept));
        self.ending = false;
        let now = Instant::now();
        for kept in self.kept.iter_mut().filter(|kept| kept.pid.is_none()) {
            kept.due = Some(now);
        }
        self.changed = true;
        self.publish();
    }

    /// Runs the loop until `done` says so or `limit` has passed. True when it was done.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            if done() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.turn(left.min(POLL));
        }
    }

    /// The loop. Never returns: the way out is the machine's end.
    fn run(mut self) -> ! {
        loop {
            self.turn(HEARTBEAT);
        }
    }

    /// Ends every role, says why in one last line, and stays: reaping, and obeying the power button.
    pub(crate) fn park(mut self, stage: &str, why: &str) -> ! {
        self.parked = Some(format!("parked in stage {stage}: {why}"));
        self.end(|_| true, ROLE_GRACE);
        self.kept.clear();
        self.unsealed.clear();
        self.enter("parked");
        say(&format!("parked in stage {stage}: {why}"));
        self.run()
    }

    /// One wait, and everything it brought.
    fn turn(&mut self, at_most: Duration) {
        let pressed = self.wait(at_most);
        let ordered = self.receive();
        self.reap();
        if pressed || ordered {
            self.power_off(if pressed { "power button" } else { "signal" });
        }
        self.set_clock();
        if std::mem::take(&mut self.short) {
            self.relieve();
        }
        if self.looked.elapsed() >= HEARTBEAT {
            self.look();
        }
        self.seal_pulled();
        self.start_due();
        self.publish();
    }

    /// Sets the clock, if `publish` has said what it should be.
    fn set_clock(&mut self) {
        match self.clock.turn(Instant::now()) {
            Ok(None) => {}
            Ok(Some(change)) => {
                let event = Happened::Clock { change };
                say(&event.to_string());
                self.events.tell(event);
                let at = Timestamp::from_clock(SystemTime::now()).unwrap_or(Timestamp::EPOCH);
                self.clock_set = Some(ClockSet { change, at });
                self.changed = true;
            }
            Err(error) => say(&format!("cannot set the clock: {error}")),
        }
    }

    /// Seals what has been pulled since the last time. One that cannot be is tried again, and said to be so once.
    fn seal_pulled(&mut self) {
        self.unsealed.retain_mut(|image| match image.seal() {
            Ok(sealed) => !sealed,
            Err(error) => {
                if !std::mem::replace(&mut image.reported, true) {
                    say(&error_chain(&error));
                }
                true
            }
        });
    }

    /// Waits for a signal, the power button, a restart that is due, or the time. True when the button was pressed.
    fn wait(&mut self, at_most: Duration) -> bool {
        let now = Instant::now();
        let due = self.kept.iter().filter_map(|kept| kept.due).min();
        // A pull cannot wake PID 1: its images are looked at.
        let at_most = if self.unsealed.is_empty() { at_most } else { at_most.min(LINGER) };
        let at_most = self.clock.deaf_for(now).map_or(at_most, |left| left.min(at_most));
        let deaf = self.bell.as_ref().and_then(|bell| bell.deaf_for(now));
        let at_most = deaf.map_or(at_most, |left| left.min(at_most));
        let wait = due.map_or(at_most, |due| due.saturating_duration_since(now).min(at_most));
        // Rounded up: a wait of 0.4 ms must not become a spin of zero.
        let milliseconds = wait.as_millis().saturating_add(1).min(60_000) as u16;
        let mut descriptors = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        descriptors.extend(self.clock.descriptor(now).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let bell = self.bell.as_ref().and_then(|bell| bell.descriptor(now));
        descriptors.extend(bell.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        descriptors.extend(self.power.descriptors().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // EINTR cannot come (all handled signals are blocked) and would only mean another turn.
        let _ = poll(&mut descriptors, PollTimeout::from(milliseconds));
        drop(descriptors);
        self.power.pressed()
    }

    /// Empties the signal descriptor. True when one of them orders the machine to end.
    fn receive(&mut self) -> bool {
        let mut ordered = false;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            ordered |= i32::try_from(signal.ssi_signo).is_ok_and(|number| number != Signal::SIGCHLD as i32);
        }
        ordered
    }

    /// The only call of wait4: takes every ended child, kept or orphan. True while there are more to come.
    fn reap(&mut self) -> bool {
        loop {
            let (pid, how) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if self.is_done(pid, Some(code)) => continue,
                Ok(WaitStatus::Signaled(pid, _, _)) if self.is_done(pid, None) => continue,
                Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exit code {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    self.short |= signal == Signal::SIGKILL && self.is_reserve(pid) && !self.ending;
                    (pid, format!("{signal}"))
                }
                Ok(WaitStatus::StillAlive) => return true,
                Err(_) => return false,
                Ok(_) => continue,
            };
            self.ended(pid, &how, Instant::now());
        }
    }

    /// Forgets the one whose work is over with this process. What is left in its control group is killed.
    fn is_done(&mut self, pid: Pid, code: Option<i32>) -> bool {
        let over = |kept: &Kept| match kept.lasts {
            Lasts::Always => false,
            Lasts::UntilDone => code == Some(0),
            Lasts::Once => !kept.leaving,
        };
        let ended = |kept: &Kept| kept.pid == Some(pid) && over(kept);
        let Some(at) = self.kept.iter().position(ended) else { return false };
        let done = self.kept.remove(at);
        if done.lasts == Lasts::Once {
            self.answers.push((done.name.clone(), code));
        }
        done.kill_group();
        self.changed = true;
        true
    }

    fn is_reserve(&self, pid: Pid) -> bool {
        self.kept.iter().any(|kept| kept.pid == Some(pid) && kept.tier == Tier::Reserve)
    }

    /// Remembers how long each service has spent in the kernel by now.
    fn look(&mut self) {
        self.times.look(services(&self.kept));
        self.looked = Instant::now();
    }

    /// Ends the service that took the machine's memory, and holds it back for a while.
    fn relieve(&mut self) {
        say("the machine ran out of memory");
        let order = self.times.since(services(&self.kept));
        for Ended { service, relieved } in
            low_memory::relieve(&mut Services::new(services(&self.kept)), order)
        {
            let killed = if relieved { Killed::UncountedMemory } else { Killed::MachineOutOfMemory };
            say(&format!("{service}: ended: {killed}"));
            self.events.tell(Happened::OutOfMemory { name: service.clone(), killed });
            if let Some(kept) = self.kept.iter_mut().find(|kept| kept.name == service) {
                kept.held_until = relieved.then(|| Instant::now() + low_memory::HOLD);
                kept.ending = Some(killed);
            }
        }
        self.look();
        self.changed = true;
    }

    fn ended(&mut self, pid: Pid, how: &str, now: Instant) {
        let Some(kept) = self.kept.iter_mut().find(|kept| kept.pid == Some(pid)) else {
            return;
        };
        kept.pid = None;
        kept.killed = kept.ending.take();
        self.changed = true;
        let delay = kept.backoff.after(now.saturating_duration_since(kept.started));
        let held = kept.held_until.take().map(|until| until.saturating_duration_since(now));
        let delay = delay.max(held.unwrap_or_default());
        let again = !self.ending && !kept.leaving;
        kept.due = again.then(|| now + delay);
        kept.kill_group();
        if kept.leaving {
            return;
        }
        let again_ms = again.then(|| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        let event = Happened::RoleEnded { name: kept.name.clone(), how: how.to_owned(), again_ms };
        say(&event.to_string());
        self.events.tell(event);
    }

    /// Starts what is due. A group that still holds a process delays its own role only.
    fn start_due(&mut self) {
        let now = Instant::now();
        for kept in self.kept.iter_mut().filter(|kept| kept.due.is_some_and(|due| due <= now)) {
            self.changed = true;
            if let Some(group) = &kept.spec.cgroup {
                let emptied = if group.populated() {
                    group.kill().map(|()| false)
                } else {
                    group.clear().map(|()| true)
                };
                if !matches!(emptied, Ok(true)) {
                    kept.due = Some(now + LINGER);
                    continue;
                }
            }
            match spawn::spawn(&kept.spec) {
                Ok(pid) => {
                    kept.runs = kept.runs.saturating_add(1);
                    kept.pid = Some(pid);
                    kept.started = now;
                    kept.due = None;
                }
                Err(error) => {
                    let delay = kept.backoff.after(Duration::ZERO);
                    kept.due = Some(now + delay);
                    say(&format!(
                        "{}: {}, again in {} ms",
                        kept.name,
                        error_chain(&error),
                        delay.as_millis()
                    ));
                }
            }
        }
    }

    /// Writes the status when something changed. Before /run is there, there is nowhere to write it.
    fn publish(&mut self) {
        if !self.changed {
            return;
        }
        let status = BootStatus {
            version: 1,
            phase: self.phase.to_owned(),
            parked: self.parked.clone(),
            state: self.state.clone(),
            roles: self.kept.iter().map(Kept::status).collect(),
            clock: self.clock_set,
        };
        if let Ok(json) = json::to_vec(&status)
            && files::replace(paths::STATUS, &json).is_ok()
        {
            self.changed = false;
        }
    }

    /// Services, then roles, then the rest, then what they wrote to, then the machine.
    fn power_off(&mut self, why: &str) -> ! {
        say(&format!("power-off: {why}"));
        self.enter("power-off");
        self.end_services();
        self.end(|_| true, ROLE_GRACE);
        // Everything that is left is an orphan nobody counts on.
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        let deadline = Instant::now() + KILL_GRACE;
        while Instant::now() < deadline && self.reap() {
            std::thread::sleep(LINGER);
        }
        self.last.drain(..).rev().for_each(|last| last());
        sync();
        say("power-off");
        loop {
            // Returns only on failure; then there is nothing better to do than to try again.
            let Err(error) = reboot(RebootMode::RB_POWER_OFF);
            say(&format!("cannot power off: {error}"));
            std::thread::sleep(HEARTBEAT);
        }
    }

    /// Ends the services, each after those that need it. Nothing is restarted meanwhile.
    fn end_services(&mut self) {
        self.ending = true;
        self.kept.iter_mut().for_each(|kept| kept.due = None);
        let is_service = |kept: &&Kept| matches!(kept.tier, Tier::Service { .. });
        let services = self.kept.iter().filter(is_service);
        let services: Vec<_> =
            services.map(|kept| (kept.name.as_str(), kept.tier.grace(), kept.needs.as_slice())).collect();
        let mut stopping = Stopping::new(&services, GRACE_MAX);
        drop(services);
        let began = Instant::now();
        loop {
            let running: Vec<Option<Pid>> =
                self.kept.iter().filter(is_service).map(|kept| kept.pid).collect();
            let gone = running.iter().enumerate().filter(|(_, pid)| pid.is_none());
            gone.for_each(|(index, _)| stopping.ended(index));
            if stopping.done() {
                return;
            }
            for (index, step) in stopping.due(began.elapsed()) {
                let Some(kept) = self.kept.iter().filter(is_service).nth(index) else { continue };
                kept.take(step);
            }
            self.wait(LINGER);
            self.receive();
            self.reap();
            self.publish();
        }
    }

    /// Asks those whom `which` picks to end, waits up to `grace`, kills the rest. Nothing is restarted meanwhile.
    fn end(&mut self, which: impl Fn(&Kept) -> bool, grace: Duration) {
        self.ending = true;
        self.kept.iter_mut().for_each(|kept| kept.due = None);
        for pid in self.kept.iter().filter(|kept| which(kept)).filter_map(|kept| kept.pid) {
            // ESRCH: it ended by itself a moment ago.
            let _ = kill(pid, Signal::SIGTERM);
        }
        let deadline = Instant::now() + grace;
        while Instant::now() < deadline && self.kept.iter().any(|kept| which(kept) && kept.pid.is_some()) {
            self.wait(LINGER);
            self.receive();
            self.reap();
            self.publish();
        }
        for kept in self.kept.iter().filter(|kept| which(kept)) {
            if let Some(pid) = kept.pid {
                let _ = kill(pid, Signal::SIGKILL);
            }
            if let Some(group) = &kept.spec.cgroup {
                let _ = group.kill();
            }
        }
    }
}

/// The services among what is kept, by the names of their shims, with their groups.
fn services(kept: &[Kept]) -> impl Iterator<Item = (&str, &Cgroup)> {
    let services = kept.iter().filter(|kept| matches!(kept.tier, Tier::Service { .. }));
    services.filter_map(|kept| Some((kept.name.as_str(), kept.spec.cgroup.as_ref()?)))
}

impl Kept {
    fn new(name: String, tier: Tier, spec: Spec, lasts: Lasts) -> Self {
        let now = Instant::now();
        Self {
            name,
            tier,
            spec,
            pid: None,
            started: now,
            due: Some(now),
            runs: 0,
            backoff: Backoff::default(),
            held_until: None,
            ending: None,
            killed: None,
            lasts,
            leaving: false,
            needs: Vec::new(),
        }
    }

    /// One step on its way to its end.
    fn take(&self, step: Step) {
        let signal = if step == Step::Tell { Signal::SIGTERM } else { Signal::SIGKILL };
        // ESRCH: it ended by itself a moment ago.
        let _ = self.pid.map(|pid| kill(pid, signal));
        if step == Step::Kill {
            self.kill_group();
        }
    }

    /// Kills what its process left in its control group.
    fn kill_group(&self) {
        if let Some(group) = &self.spec.cgroup
            && let Err(error) = group.kill()
        {
            say(&format!("{}: cannot kill what it left: {error}", self.name));
        }
    }

    fn status(&self) -> RoleStatus {
        let state = match (self.pid, self.due) {
            (Some(_), _) => RoleState::Running,
            (None, Some(_)) => RoleState::Restarting,
            (None, None) => RoleState::Stopped,
        };
        let pid = self.pid.map(Pid::as_raw);
        let restarts = self.runs.saturating_sub(1);
        RoleStatus { name: self.name.clone(), pid, restarts, state, memory: None, killed: self.killed }
    }
}

impl Tier {
    fn grace(self) -> Duration {
        match self {
            Self::Service { grace } => grace.saturating_add(SHIM_MARGIN).min(GRACE_MAX),
            Self::Role | Self::Reserve => ROLE_GRACE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_its_end_and_starts_over_after_a_sound_run() {
        let mut backoff = Backoff::default();
        let crash = Duration::from_millis(5);
        let delays: Vec<u128> = (0..8).map(|_| backoff.after(crash).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 1600, 1600, 1600]);
        assert_eq!(backoff.after(STABLE), BACKOFF_FIRST);
        assert_eq!(backoff.after(crash), BACKOFF_FIRST * 2);
    }

    #[test]
    fn a_service_gets_its_grace_and_no_declaration_delays_for_ever() {
        assert_eq!(Tier::Service { grace: Duration::from_secs(10) }.grace(), Duration::from_secs(13));
        assert_eq!(Tier::Service { grace: Duration::from_secs(9_999) }.grace(), GRACE_MAX);
        assert_eq!(Tier::Service { grace: Duration::MAX }.grace(), GRACE_MAX);
        assert_eq!(Tier::Role.grace(), ROLE_GRACE);
    }
}
