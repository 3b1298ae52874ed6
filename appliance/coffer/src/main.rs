//! The operator's and the client's command line.

mod anchors;
mod cache;
mod channel;
mod cli;
mod failure;
mod files;
mod fold;
mod hidden;
mod import;
mod keyserve;
mod learn;
mod local;
mod newest;
mod operator_key;
mod progress;
mod reach;
mod references;
mod seal_text;
mod session;
mod source;
mod trust;
mod ui;
mod verbs;
mod witness;

use std::error::Error as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use clap::error::ErrorKind;
use cofferdam_protocol::WordError;

use crate::failure::{Code, Failure, Outcome};
use crate::ui::Ui;

/// What a shell reports for a process that SIGINT ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    if let Some(code) = learn::inside() {
        return code;
    }
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    let ui = Ui::new(cli.global.json, cli.global.quiet, cli.global.verbose);
    let begun = Instant::now();
    let ended = main_exec(cli, &ui);
    progress::make_way();
    ui.detail(&format!("took {:.1} s", begun.elapsed().as_secs_f64()));
    match ended {
        Ok(()) => ui::missing().map_or(ExitCode::SUCCESS, |error| unwritten(&ui, error)),
        Err(Ended::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(Ended::Failed(failure)) => {
            ui.failure(&failure);
            ExitCode::from(failure.code as u8)
        }
    }
}

/// Help and version go to stdout with 0, everything else to stderr with 2, and as an object to stdout where one was asked for.
fn misused(error: &clap::Error) -> ExitCode {
    let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let ui = Ui::new(!help && cli::wants_json(), false, false);
    let printed = error.print();
    let hint = hint(error);
    if ui.json {
        let text = error.render().to_string();
        // The first paragraph: what is wrong, and with which options.
        let words: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
        let words = words.join(" ").trim_start_matches("error: ").to_owned();
        let failure = Failure { hint: hint.map(str::to_owned), ..Failure::usage(words) };
        ui.error_object(&failure);
    }
    if let Some(hint) = hint {
        // As for the print itself: whoever closed the pipe does not want it.
        let _ = writeln!(std::io::stderr(), "hint: {hint}");
    }
    match printed {
        Err(error) if help && error.kind() != std::io::ErrorKind::BrokenPipe => unwritten(&ui, &error),
        _ if help => ExitCode::SUCCESS,
        _ => ExitCode::from(Code::Usage as u8),
    }
}

/// The work was done, and what it came to is nowhere.
fn unwritten(ui: &Ui, error: &std::io::Error) -> ExitCode {
    ui.complaint(&Failure::failed(format!("cannot write the output: {error}")));
    ExitCode::from(Code::Failed as u8)
}

/// What to write where a word of the command line is wrong.
fn hint(error: &clap::Error) -> Option<&str> {
    error.source()?.downcast_ref::<WordError>()?.hint.as_deref()
}

/// Why the run ended early.
enum Ended {
    Interrupted,
    Failed(Failure),
}

fn main_exec(cli: cli::Cli, ui: &Ui) -> Result<(), Ended> {
    let value = verbs::secret(&cli).map_err(Ended::Failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Ended::Failed(Failure::failed(format!("cannot start: {error}"))))?;
    runtime.block_on(async {
        tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => Err(Ended::Interrupted),
            outcome = verbs::run(cli, ui, value) => outcome.map_err(Ended::Failed),
        }
    })
}

/// Runs `work`, giving up after `limit` with "could not check", what was being waited for and what it last came to.
pub(crate) async fn within<T>(
    limit: std::time::Duration,
    work: impl Future<Output = Outcome<T>>,
) -> Outcome<T> {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => done,
        // `work` still knows what it was doing.
        () = tokio::time::sleep(limit) => Err(gave_up(limit)),
    }
}

/// The failure of work that took longer than `limit`.
pub(crate) fn gave_up(limit: std::time::Duration) -> Failure {
    let what = progress::waited_for().map(|what| format!(" of {}", ui::printable(&what))).unwrap_or_default();
    Failure::could_not_check(format!("gave up after {limit:?}{what}")).hint("--timeout sets the limit")
}
