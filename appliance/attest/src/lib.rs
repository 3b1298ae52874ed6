//! Evidence of a Cofferdam appliance: what it looks like, how it is made and how it is appraised.
//!
//! Responsible for every format that a relying party reads (claims, event log, quote, evidence document,
//! RA-TLS certificate, reference values, appraisal policy) and for the one answer that matters: accepted,
//! rejected, or could not check. The command line, the appliance and the simulator share this code, so what the
//! appliance writes and what a client accepts cannot drift apart. It builds for WebAssembly, too, so that a browser decides alike:
//! `ci/wasm` runs the frozen vectors there.
//!
//! It never reads a clock, a file or a socket: bytes, times and trust roots come in as arguments. With the feature `tls`, for
//! programs that speak TLS, [`ratls`] also makes certificates and verifies them for rustls.

pub mod appraise;
pub mod ccel;
pub mod challenge;
pub mod claims;
pub mod dcap;
pub mod ear;
pub mod event_log;
pub mod evidence;
pub mod keyserve;
pub mod operator;
pub mod policy;
pub mod quote;
pub mod ratls;
pub mod reference;
pub mod release;
pub mod shares;

#[cfg(test)]
mod fixtures;
