//! tdx-sim
fn main() {}
