#![doc = include_str!("../README.md")]

pub mod acpi;
mod bytes;
pub mod difference;
pub mod disk;
pub mod explain;
pub mod firmware;
mod guid;
pub mod hob;
pub mod mrtd;
pub mod pe;
mod qemu;
pub mod smbios;
pub mod stub;
pub mod tdvf;
pub mod uki;
pub mod variables;

pub use acpi::AcpiTables;
pub use firmware::{FirmwareError, platform_reference};
pub use uki::{MeasureError, image_reference};

#[cfg(test)]
#[path = "../tests/common/synthetic.rs"]
mod synthetic;
