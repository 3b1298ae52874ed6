#![doc = include_str!("../README.md")]

pub mod pe;
pub mod uki;

pub use uki::{MeasureError, Platform, reference_values};
