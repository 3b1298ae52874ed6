//! The operator's and the client's command line.

mod anchors;
mod cache;
mod channel;
mod cli;
mod failure;
mod files;
mod hidden;
mod import;
mod keyserve;
mod newest;
mod operator_key;
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

use clap::Parser as _;
use clap::error::ErrorKind;
use cofferdam_protocol::WordError;

use crate::failure::{Code, Failure, Outcome};
use crate::ui::Ui;

/// What a shell reports for a process that SIGINT ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout with 0, everything else to stderr with 2.
            let printed = error.print();
            if let Some(hint) = hint(&error) {
                // As for the print itself: whoever closed the pipe does not want it.
                let _ = writeln!(std::io::stderr(), "hint: {hint}");
            }
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match printed {
                    Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                        unwritten(&Ui::new(false, false, false), &error)
                    }
                    _ => ExitCode::SUCCESS,
                },
                _ => ExitCode::from(Code::Usage as u8),
            };
        }
    };
    let ui = Ui::new(cli.global.json, cli.global.quiet, cli.global.verbose);
    match main_exec(cli, &ui) {
        Ok(()) => ui::missing().map_or(ExitCode::SUCCESS, |error| unwritten(&ui, error)),
        Err(Ended::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(Ended::Failed(failure)) => {
            ui.failure(&failure);
            ExitCode::from(failure.code as u8)
        }
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

/// Runs `work`, giving up after `limit` with "could not check".
pub(crate) async fn within<T>(
    limit: std::time::Duration,
    work: impl Future<Output = Outcome<T>>,
) -> Outcome<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        Err(Failure::could_not_check(format!("gave up after {limit:?}")).hint("--timeout sets the limit"))
    })
}
