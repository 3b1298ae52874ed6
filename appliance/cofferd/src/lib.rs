//! The appliance: PID 1 and its roles, one program.
//!
//! Without an argument it is PID 1 and boots; with one it is the role of that name, which only
//! PID 1 (or, for `pull` and `container`, a shim) starts. A role is re-executed from `/proc/self/exe`, so that no
//! memory of PID 1 is shared with it.
//!
//! [`system`] is what is asked of the kernel, `boot` brings the machine from the kernel to its roles, [`roles`] holds these.

// What other modules use says what it is.
#![warn(clippy::missing_docs_in_private_items)]

mod boot;
pub mod paths;
pub mod roles;
pub mod system;

use std::process::ExitCode;

/// Runs the program with its arguments, without its name, to its end.
pub fn run(words: &[String]) -> ExitCode {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let first = std::process::id() == 1;
    // The first process of a container is number 1 as well, in its own namespace.
    let outcome = match roles::run(&words, first) {
        Some(outcome) => outcome,
        None if first => boot::run(&words),
        None => {
            Err(anyhow::anyhow!("cofferd is started by the kernel as PID 1; its roles are started by PID 1"))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cofferd: {error:#}");
            ExitCode::FAILURE
        }
    }
}
