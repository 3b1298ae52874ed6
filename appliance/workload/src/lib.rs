//! Running one workload: what it is made of and what holds it.
//!
//! Responsible for image, root file system, namespaces, seccomp, delivery of secrets, output and restarts of one service. It
//! knows no vault and no appliance: secrets come as values, places as paths, and whoever calls needs to be root of a
//! user namespace (with a range of 65,536 ids) and a process with one thread, not a child of anybody in particular.
//!
//! The calling process owns this code's two halves. On its own side it pulls the image ([`pull`], [`unpack`],
//! [`guard`]), decides what runs ([`environment`], [`user`]) and starts a container
//! ([`launch`]); inside, as first process of the container, the same binary builds the file system
//! (`rootfs`) and becomes the workload ([`init`]).
//!
//! # What keeps a workload's secret from another process of the same user
//!
//! Everything that reads another process (`/proc/PID/environ`, `mem`, `maps`, ptrace, `process_vm_*`,
//! `pidfd_getfd`) asks whether the target's memory is dumpable. `execve` sets that anew, so a
//! `PR_SET_DUMPABLE` before it is lost, and the workload cannot be asked to do it after. But `execve`
//! itself leaves memory non-dumpable when the program, or the interpreter (`PT_INTERP`) that loads it,
//! is a file that the caller may execute and not read (`would_dump` in the kernel's fs/exec.c). So
//! the image is unpacked with two kinds of files execute-only, owned by an id of the range that nobody has
//! ([`GUARD_ID`], mode 0711): every ELF interpreter, which covers every dynamically linked program, and
//! every statically linked program. Dynamically linked programs stay readable, because many (single-file
//! bundles of Node, Bun, Deno, Python) read themselves. Children forked without execve share the property,
//! scripts have that of their interpreter, and the seccomp profile refuses to set it back.
//!
//! What this does not cover: a static program that the workload brings along or writes itself. It is
//! dumpable like on any machine; whatever it was not given it still cannot reach. And a linker inside the
//! container cannot read the ELF interpreter, so C programs are linked elsewhere.

// What other modules use says what it is.
#![warn(clippy::missing_docs_in_private_items)]

pub mod cgroup;
pub mod delivery;
pub mod environment;
pub mod files;
pub mod guard;
pub mod image;
pub mod init;
pub mod join;
pub mod launch;
pub mod log;
pub mod network;
pub mod output;
pub mod places;
pub mod pull;
mod registry;
pub mod relay;
pub mod restart;
mod rootfs;
pub mod seccomp;
pub mod status;
pub mod sys;
pub mod unpack;
pub mod user;

/// The id of the service's range that no process of a container ever has: owner of the execute-only files and
/// identity of the container's init. The last of the 65536, which as (u16)-1 is no usual id of anything.
pub const GUARD_ID: u32 = 65_535;
