//! The event log and its replay: what was measured, in which order, and what the registers must therefore hold.
//!
//! The shape of one event is [`cofferdam_protocol::event`]'s.

use sha2::{Digest as _, Sha384};

pub use cofferdam_protocol::event::{
    Event, MAX_EVENTS, MAX_FIRMWARE_PAYLOAD, MAX_PAYLOAD, Register, event_digest, is_name,
};

pub mod payload;

/// The register's next value: SHA-384(register ‖ digest), as `TDG.MR.RTMR.EXTEND` computes it.
pub fn extend(register: &Register, digest: &Register) -> Register {
    let mut hash = Sha384::new();
    hash.update(register);
    hash.update(digest);
    hash.finalize().into()
}

/// The value of register `mr` after all its events, starting from zero.
pub fn replay(events: &[Event], mr: u8) -> Register {
    events.iter().filter(|e| e.mr == mr).fold([0; 48], |register, e| extend(&register, &e.register_digest()))
}
