//! Writes `policy/vectors/evidence.json`: `cargo run -p cofferdam-attest --example evidence-vectors -- FILE`.
//!
//! Responsible for one honest evidence document and one case per way of being refused, each signed as it has to be. The
//! same bytes every time: the machine's keys come from a fixed seed, signatures are deterministic and no clock is read.
//! The expectations are written by hand beside each case, never computed: the tests compare them with what the verifier says.

mod generate;

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: evidence-vectors FILE");
        return ExitCode::from(2);
    };
    match std::fs::write(&path, generate::file()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: cannot write {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}
