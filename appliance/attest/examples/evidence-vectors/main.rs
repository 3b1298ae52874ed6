//! Writes `evidence.json` and `applied.json` of `policy/vectors`: `cargo run -p cofferdam-attest --example evidence-vectors -- FOLDER`.
//!
//! Responsible for an honest evidence document in each and one case per way of being refused, each signed as it has to be. The
//! same bytes every time: the machine's keys come from a fixed seed, signatures are deterministic and no clock is read.
//! The expectations are written by hand beside each case, never computed: the tests compare them with what the verifier says.

mod generate;

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: evidence-vectors FOLDER");
        return ExitCode::from(2);
    };
    for (name, file) in [("evidence.json", generate::file()), ("applied.json", generate::applied())] {
        let path = folder.join(name);
        if let Err(error) = std::fs::write(&path, file) {
            eprintln!("error: cannot write {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
