//! The program of the library `cofferd`; see there.

use std::process::ExitCode;

use dlmalloc::GlobalDlmalloc;

/// Instead of musl's, which gives a buffer of a request back to the kernel when it is free and asks for the next one, a system call
/// each. It has one lock, which a fork finds open: this program forks with one thread only (`cofferdam_workload::sys::fork`).
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

fn main() -> ExitCode {
    let words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    cofferd::run(&words)
}
