//! Running one workload: what it is made of and what holds it.
//!
//! Responsible for image, root file system, namespaces, seccomp, delivery of secrets, output and restarts of one service. It
//! knows no vault and no appliance: secrets come as values, places as paths, and whoever calls needs to be [`SHIM_ID`] of a
//! user namespace with 65,537 ids, with all capabilities there, and a process with one thread, not a child of anybody in particular.
//!
//! The calling process owns this code's two halves. On its own side it pulls the image ([`pull`], [`unpack`]), decides what runs ([`environment`], [`user`]) and starts a container
//! ([`launch`]); inside, as first process of the container, the same binary builds the file system
//! (`rootfs`) and becomes the workload ([`init`]).
//!
//! # What keeps a workload's secret from another process of the same user
//!
//! Everything that reads another process (`/proc/PID/environ`, `mem`, `maps`, `fd`, ptrace, `process_vm_*`, `pidfd_getfd`) is
//! refused by the appliance's kernel, whoever asks and whatever the programs are: it runs with Yama's `ptrace_scope` 3,
//! which with our patch covers reading as well (image/kernel/patches). A process's memory is open to its own threads
//! only. The secrets of a workload are as safe from its siblings as the files that its programs are made of: who may
//! change those decides what runs next. They are as the image has them at each start.

// What other modules use says what it is.
#![warn(clippy::missing_docs_in_private_items)]

pub mod answers;
pub mod cgroup;
pub mod config;
pub mod delivery;
pub mod depend;
pub mod dns;
pub mod environment;
pub mod files;
pub mod health;
pub mod hop;
pub mod init;
pub mod join;
pub mod launch;
pub mod log;
mod narrow;
pub mod network;
pub mod output;
pub mod places;
pub mod probe;
pub mod pull;
pub mod relay;
pub mod resolver;
pub mod restart;
mod rootfs;
pub mod seccomp;
mod secret_files;
pub mod status;
pub mod sys;
pub mod unpack;
pub mod user;
pub mod volume;

/// The id of a container that does not exist in its workload's user namespace: identity of the container's first process
/// and owner of the pipes that the workload prints to, so that no capability of the workload reaches either. The last of
/// the 65536, which as (u16)-1 is no usual id of anything.
pub const OUTSIDE_ID: u32 = 65_535;
/// The id of the process that makes containers, in the same user namespace as they are: the first beyond those of a container. What
/// belongs to it belongs to nobody of a workload.
pub const SHIM_ID: u32 = OUTSIDE_ID + 1;
