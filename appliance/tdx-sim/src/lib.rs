//! A simulated TDX device and the development PKI behind it.
mod certificates;
mod collateral;
mod der;
mod keys;
mod machine;
mod platform;
mod quote;

pub use collateral::{Collateral, CollateralOptions};
pub use keys::{KeyError, SEED_LENGTH, Seed};
pub use machine::{FMSPC, mrtd};
pub use platform::{Platform, PlatformError, ROOT_FILE, SEED_DISK_SERIAL, SEED_FILE, read_seed};
pub use quote::{ATTRIBUTE_DEBUG, ATTRIBUTE_SEPT_VE_DISABLE, DEFAULT_XFAM, QuoteFlaw, TdReport};
