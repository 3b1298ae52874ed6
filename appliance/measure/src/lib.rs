#![doc = include_str!("../README.md")]

mod bytes;
mod guid;
pub mod mrtd;
pub mod pe;
pub mod tdvf;
pub mod uki;

pub use uki::{MeasureError, image_reference};
