//! The role that holds some memory and is the first that the kernel ends when the machine runs out: PID 1 learns of it by
//! its end, and acts with what it held (`system/low_memory`).
//!
//! It does nothing else and reads nothing.

use std::fs;
use std::hint::black_box;

use anyhow::Context as _;

use super::Role;

/// How much, in bytes: for PID 1 to read some small files and end a service, while other processors go on taking
/// until they stand still.
pub(super) const HELD: usize = 16 << 20;
/// The kernel's smallest page: each is there only when something was written.
const PAGE: usize = 4096;

/// Runs the role until it is killed.
///
/// # Errors
///
/// It cannot be confined or become the first to be ended.
pub(crate) fn run(role: &Role) -> anyhow::Result<()> {
    fs::write("/proc/self/oom_score_adj", "1000").context("cannot be the first to be ended")?;
    role.confine().context("cannot confine the role")?;
    let mut held = vec![0_u8; HELD];
    held.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    loop {
        std::thread::park();
        black_box(&held);
    }
}
