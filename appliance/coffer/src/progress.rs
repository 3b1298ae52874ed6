//! What a command is waiting for.
//!
//! On a terminal it is shown after a second without a word, on one line of stderr that goes away before anything else is printed. When a
//! time limit ends a command, its message says what was being waited for, and what the last attempt came to.

use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After so long without a word a person wonders what is being waited for.
const SILENCE: Duration = Duration::from_secs(1);
/// How often the line is looked after; seconds are shown.
const TICK: Duration = Duration::from_millis(200);

static NOW: Mutex<Now> =
    Mutex::new(Now { shown: false, drawn: None, spoken: None, steps: Vec::new(), last: None });

/// What is going on, innermost last.
struct Now {
    /// Whether there is a person to show it to.
    shown: bool,
    /// The seconds that stand on the terminal.
    drawn: Option<u64>,
    /// When something was last printed.
    spoken: Option<Instant>,
    steps: Vec<Step>,
    /// What the last attempt came to.
    last: Option<String>,
}

struct Step {
    what: String,
    begun: Instant,
}

/// A step; it is over when this is dropped.
pub(crate) struct Doing(usize);

impl Drop for Doing {
    fn drop(&mut self) {
        let mut now = now();
        now.steps.truncate(self.0);
        if now.steps.is_empty() {
            now.last = None;
        }
        now.erase();
    }
}

/// Begins a step, in words that follow "…": `asking shop.example:443 for evidence`.
pub(crate) fn doing(what: impl Into<String>) -> Doing {
    let mut now = now();
    let at = now.steps.len();
    now.steps.push(Step { what: what.into(), begun: Instant::now() });
    Doing(at)
}

/// Says why an attempt is made once more.
pub(crate) fn again_because(cause: impl Into<String>) {
    now().last = Some(cause.into());
}

/// What is being waited for, and what the last attempt came to.
pub(crate) fn waited_for() -> Option<String> {
    let now = now();
    let step = now.steps.last()?;
    Some(match &now.last {
        Some(last) => format!("{}; the last attempt: {last}", step.what),
        None => step.what.clone(),
    })
}

/// Whether steps are shown.
pub(crate) fn is_shown() -> bool {
    now().shown
}

/// Shows steps on the terminal at stderr from now on.
pub(crate) fn show() {
    now().shown = true;
    // A thread, because measuring and passphrases keep the other one busy. It ends with the process.
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(TICK);
            now().draw();
        }
    });
}

/// Clears the line: something is printed, or the command ends.
pub(crate) fn make_way() {
    let mut now = now();
    now.spoken = Some(Instant::now());
    now.erase();
}

fn now() -> MutexGuard<'static, Now> {
    NOW.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Now {
    fn draw(&mut self) {
        let Some(step) = self.steps.last().filter(|_| self.shown) else { return };
        let waited = step.begun.elapsed();
        let silent = self.spoken.map_or(waited, |spoken| spoken.elapsed().min(waited));
        if silent < SILENCE || self.drawn == Some(waited.as_secs()) {
            return;
        }
        let last = self.last.as_deref().map(|last| format!("; {last}")).unwrap_or_default();
        let line = crate::ui::printable(&format!("… {} ({} s){last}", step.what, waited.as_secs()));
        let width = crate::ui::width_of(&std::io::stderr()).unwrap_or(80).saturating_sub(1);
        let line: String = line.chars().take(width).collect();
        self.drawn = Some(waited.as_secs());
        let _ = write!(std::io::stderr().lock(), "\r\u{1b}[K{line}");
    }

    fn erase(&mut self) {
        if self.drawn.take().is_some() {
            let _ = write!(std::io::stderr().lock(), "\r\u{1b}[K");
        }
    }
}
