//! What the tests of this crate and the writer of its vectors share.

pub mod synthetic;
pub mod vectors;
