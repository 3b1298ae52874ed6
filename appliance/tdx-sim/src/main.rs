//! `tdx-sim`: makes simulated machines, speaks for them, and is PID 1 of the simulator's image.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    // As PID 1 the arguments are the kernel command line's left-overs: they are cofferd's to see, not ours.
    if std::process::id() == 1 {
        let error = tdx_sim::init::run(arguments.into_iter().skip(1));
        eprintln!("SIMULATED TDX device: parked: {:#}", anyhow::Error::from(error));
        tdx_sim::init::park();
    }
    match cli::Cli::parse_from(arguments).run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
