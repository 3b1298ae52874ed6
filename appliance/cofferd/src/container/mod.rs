//! Workloads: what they are made of and what holds them.
//!
//! A service's shim owns this code's two halves. On its own side it pulls the image ([`registry`],
//! [`unpack`], [`guard`]), decides what runs ([`environment`], [`user`]) and starts a container
//! ([`launch`]); inside, as first process of the container, the same binary builds the file system
//! ([`rootfs`]) and becomes the workload ([`init`]).
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

pub(crate) mod cgroup;
pub(crate) mod delivery;
pub(crate) mod environment;
pub(crate) mod guard;
pub(crate) mod image;
pub(crate) mod init;
pub(crate) mod launch;
pub(crate) mod log;
pub(crate) mod network;
pub(crate) mod output;
pub(crate) mod registry;
pub(crate) mod relay;
pub(crate) mod restart;
pub(crate) mod rootfs;
pub(crate) mod seccomp;
pub(crate) mod status;
mod sys;
pub(crate) mod unpack;
pub(crate) mod user;

/// The id of the service's range that no process of a container ever has: owner of the execute-only files and
/// identity of the container's init. The last of the 65536, which as (u16)-1 is no usual id of anything.
pub(crate) const GUARD_ID: u32 = 65_535;
