//! A simulated TDX device and the development PKI behind it: for the `simulator` image and for tests, never for the
//! production image.
//!
//! It fakes the *device*, never the software: files that Linux's TDX guest driver would present, with the driver's
//! semantics, and quotes that the real verifier checks link by link under a root that nobody trusts unless it is
//! named. Everything that a person may read says `SIMULATED`.
//!
//! | module | is |
//! |---|---|
//! | this one | a machine ([`Platform`]): seed → keys, certificates, quotes ([`TdReport`]), collateral; and how to break each ([`QuoteFlaw`], [`CollateralOptions`]) |
//! | [`pccs`] | that machine's provisioning certification service (`tdx-sim pccs`) |
//! | [`firmware`] | TPM event log → RTMR0-2 and a CCEL |
//! | [`device`] | the two device directories as FUSE file systems |
//! | [`control`] | the second serial port: a test's way to kill a role |
//! | [`init`] | PID 1 of the simulator's image until it hands over to the unchanged `cofferd` |
//!
//! # Where the secret lies
//! A machine is 32 random bytes, `platform.seed`. They belong to the host, as the fuses of a processor do, and reach
//! the guest as a read-only virtio-blk disk with the serial [`SEED_DISK_SERIAL`]. The device process keeps them in
//! memory only; nothing of the appliance reads them. Whoever has them can make any quote of this machine: that is
//! what a simulator is, and why no client accepts its root unasked.

mod certificates;
mod collateral;
pub mod control;
mod der;
pub mod device;
pub mod firmware;
pub mod init;
mod keys;
mod machine;
pub mod pccs;
mod platform;
mod quote;

pub use collateral::{Collateral, CollateralOptions};
pub use keys::{KeyError, SEED_LENGTH, Seed};
pub use machine::{FMSPC, mrtd};
pub use platform::{Platform, PlatformError, ROOT_FILE, SEED_DISK_SERIAL, SEED_FILE, read_seed};
pub use quote::{ATTRIBUTE_DEBUG, ATTRIBUTE_SEPT_VE_DISABLE, DEFAULT_XFAM, QuoteFlaw, TdReport};
