//! The appliance: PID 1 and its roles, one binary.
//!
//! Without an argument it is PID 1 and boots; with one it is the role of that name, which only
//! PID 1 (or, for `pull`, a shim) starts. A role is re-executed from `/proc/self/exe`, so that no
//! memory of PID 1 is shared with it.

mod boot;
mod cgroup;
mod client;
mod confine;
mod console;
mod container;
mod files;
mod paths;
mod power;
mod roles;
mod spawn;
mod supervise;
mod sys;
mod tdx;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let role = arguments.next();
    let rest: Vec<String> = arguments.collect();
    let outcome = match (role.as_deref(), rest.as_slice()) {
        (None, []) if std::process::id() == 1 => boot::run(),
        (Some("vault"), []) => roles::vault::run(),
        (Some("front"), []) => roles::front::run(),
        (Some("publish"), []) => roles::publish::run(),
        (Some("evidence"), []) => roles::evidence::run(),
        (Some("network"), []) => roles::network::run(),
        (Some("shim"), [name]) => roles::shim::run(name),
        (Some("pull"), [name]) => roles::pull::run(name),
        (Some("container"), [name]) => container::init::run(name),
        _ => Err(anyhow::anyhow!("cofferd is started by the kernel as PID 1; its roles are started by PID 1")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cofferd: {error:#}");
            ExitCode::FAILURE
        }
    }
}
