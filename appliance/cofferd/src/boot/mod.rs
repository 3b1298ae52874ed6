//! The boot: stages in a fixed order, each named for the guarantee that holds after it.
//!
//! | stage | guarantee |
//! |---|---|
//! | `mount` | the kernel's file systems are there, hardened, and nothing that was there before is covered |
//! | `measure` | what the host passed is in RTMR3, in the order of the event log, and was parsed only after that |
//! | `network` | there is an address, obtained by a process that can do nothing else |
//! | `unseal` | the state is open, or made; how it is kept, and what opened it, is measured. Until then no service runs |
//! | `launch` | the launch boundary is measured; roles and services run |
//!
//! What runs then may be followed by another declaration, without a boot ([`change`]).
//!
//! A stage hands its result to the next by value, so that none can run before what it needs. A stage that
//! fails parks the appliance: one clear last line, no shell, no reboot.

mod attached;
mod change;
mod disk;
mod keys;
mod launch;
mod measure;
mod mount;
mod network;
mod numbers;
mod partition;
mod services;
mod unseal;
mod volumes;

use std::error::Error;
use std::time::{Duration, Instant};

use cofferdam_protocol::change::Changes;
use cofferdam_protocol::error_chain;
use cofferdam_protocol::facts::Phase;
use nix::sys::reboot::set_cad_enabled;

use self::launch::Running;
use crate::system::console::say;
use crate::system::power::PowerButtons;
use crate::system::supervise::Supervisor;

/// Why the boot stopped: the last line on the console.
struct Parked {
    stage: &'static str,
    why: String,
}

/// What the stages share: the loop that runs while they wait, and the durations so far.
struct Boot {
    supervisor: Supervisor,
    phases: Vec<Phase>,
}

/// Boots the appliance and runs it until the machine ends. `words` are what the kernel passed on of its command
/// line: nothing there is for PID 1, and what it does not know it does not ignore.
pub(crate) fn run(words: &[&str]) -> ! {
    let supervisor = match Supervisor::new() {
        Ok(supervisor) => supervisor,
        Err(error) => stuck(&error_chain(&error)),
    };
    // Ctrl-alt-del is SIGINT from now on. Refused only to a process that is not privileged, which PID 1 is.
    let _ = set_cad_enabled(false);
    if let Some(word) = words.first() {
        supervisor
            .park("mount", &format!("unknown word on the kernel command line: {}", word.escape_debug()));
    }
    let mut boot = Boot { supervisor, phases: Vec::new() };
    match stages(&mut boot) {
        Ok(running) => {
            boot.supervisor.enter("supervise");
            say(&format!("launched; state: {}", boot.supervisor.state()));
            let why = supervise(&mut boot, running);
            boot.supervisor.park("supervise", &why)
        }
        Err(Parked { stage, why }) => boot.supervisor.park(stage, &why),
    }
}

/// Runs the appliance, and makes run what follows. Returns only with the line to park with.
fn supervise(boot: &mut Boot, mut running: Running) -> String {
    let mut past = Changes::default();
    loop {
        boot.supervisor.run_until_rung();
        if let Err(why) = change::turn(boot, &mut running, &mut past) {
            return why;
        }
    }
}

fn stages(boot: &mut Boot) -> Result<Running, Parked> {
    boot.stage("mount", |_| mount::establish())?;
    boot.supervisor.watch(PowerButtons::find("/sys/class/input".as_ref(), "/dev/input".as_ref()));
    let mut measured = boot.stage("measure", |_| measure::establish())?;
    let settings = measured.delivered.network.as_ref();
    boot.stage("network", |boot| network::establish(&mut boot.supervisor, settings))?;
    let unsealed = boot.stage("unseal", |boot| unseal::establish(boot, &mut measured))?;
    boot.supervisor.state_is(unsealed.state.to_string());
    let mut running = boot.stage("launch", |boot| launch::establish(boot, measured, unsealed))?;
    // Once more, now that the last stage's duration is known.
    let published = running.launched.publish(&boot.phases);
    published.map_err(|error| Parked { stage: "launch", why: error_chain(&error) })?;
    Ok(running)
}

impl Boot {
    /// Runs one stage, times it, and turns its failure into the line to park with.
    fn stage<T, E: Error>(
        &mut self,
        stage: &'static str,
        establish: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, Parked> {
        self.supervisor.enter(stage);
        let started = Instant::now();
        let outcome = establish(self).map_err(|error| Parked { stage, why: error_chain(&error) })?;
        let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        say(&format!("{stage}: {ms} ms"));
        self.phases.push(Phase { name: stage.to_owned(), ms });
        Ok(outcome)
    }
}

/// Without signals there is no loop to park in. PID 1 must not end, or the kernel would panic.
fn stuck(why: &str) -> ! {
    say(&format!("parked in stage mount: {why}"));
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// What the roles read about a declaration while the state is closed.
#[cfg(test)]
pub(crate) fn waiting_facts(declaration: &cofferdam_declaration::Declaration) -> crate::roles::facts::Facts {
    services::before_launch(declaration)
}

/// What PID 1 makes a certificate for browsers with: the key of it, the account's, and what everybody may know.
#[cfg(test)]
pub(crate) fn certificate_keys(
    declared: &cofferdam_declaration::Certificate,
) -> (zeroize::Zeroizing<Vec<u8>>, zeroize::Zeroizing<Vec<u8>>, crate::roles::facts::CertificateFacts) {
    let (tls, _) = keys::tls().unwrap_or_else(|error| panic!("{error}"));
    let master = keys::master().unwrap_or_else(|error| panic!("{error}"));
    let made = keys::certificate(declared, &master, &tls).unwrap_or_else(|error| panic!("{error}"));
    let browser = made.front.bytes().strip_prefix(tls.bytes()).unwrap_or_default().to_vec();
    (browser.into(), made.account.bytes().to_vec().into(), made.facts)
}

/// What the roles read about a declaration in the first boot of an appliance.
#[cfg(test)]
pub(crate) fn first_facts(declaration: &cofferdam_declaration::Declaration) -> crate::roles::facts::Facts {
    services::resolve(declaration, &mut numbers::Numbers::default(), 1 << 30)
        .unwrap_or_else(|error| panic!("{error}"))
}
