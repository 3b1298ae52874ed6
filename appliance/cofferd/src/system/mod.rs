//! What the appliance asks of the kernel, and what its processes ask of each other.
//!
//! The only place in `cofferd` with unsafe code ([`sys`]). Nothing here knows a role or a stage of the boot: what
//! differs from one to the next comes in as an argument.

pub(crate) mod bell;
pub mod cgroup;
pub mod client;
pub(crate) mod clock;
pub mod confine;
pub(crate) mod console;
pub(crate) mod gate;
pub(crate) mod handover;
pub mod images;
pub mod kept;
mod low_memory;
pub mod mapper;
pub(crate) mod meminfo;
pub(crate) mod power;
pub(crate) mod quota;
pub(crate) mod ring;
pub(crate) mod rtnetlink;
pub mod spawn;
mod stopping;
pub mod supervise;
pub mod sys;
pub(crate) mod tdx;
pub(crate) mod unix;
pub mod volume;

pub(crate) use cofferdam_workload::files;
