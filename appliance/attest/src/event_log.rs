//! The event log and its replay: what was measured, in which order, and what the registers must therefore hold.
//!
//! The shape of one event is [`cofferdam_protocol::event`]'s.

use cofferdam_protocol::json;
use sha2::{Digest as _, Sha384};

pub use cofferdam_protocol::event::{
    Event, MAX_EVENTS, MAX_FIRMWARE_PAYLOAD, MAX_PAYLOAD, Register, event_digest, is_name,
};

use payload::{Declaration, Payload as _};

pub mod payload;

/// Most declarations that one boot applies: more than fit into [`MAX_LOG`], so that a verifier has an end of its own.
pub const MAX_APPLIED: usize = 128;

/// Most bytes of a log, as it is written in a document and without what firmware measured in full, that an appliance lets it grow to:
/// quote and claims fit beside it into a certificate ([`crate::ratls::MAX_EVIDENCE`]). Some 75 changes of one service.
pub const MAX_LOG: usize = 44 << 10;

/// Whether a log has room for these events, which belong to further declarations. An appliance whose log has none applies nothing
/// more before its next boot: with evidence that no certificate holds nobody could connect.
#[must_use]
pub fn has_room(log: &[Event], more: &[Event]) -> bool {
    let short = |event: &Event| match event.digest {
        // A certificate that is too small for it leaves this payload out.
        Some(_) => Event { payload: None, ..event.clone() },
        None => event.clone(),
    };
    let whole: Vec<Event> = log.iter().chain(more).map(short).collect();
    let declarations = whole.iter().filter(|event| event.mr == 3 && event.event == Declaration::NAME).count();
    // The first of them is the boot's.
    declarations <= MAX_APPLIED + 1
        && whole.len() <= MAX_EVENTS
        && json::to_vec(&whole).is_ok_and(|bytes| bytes.len() <= MAX_LOG)
}

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
