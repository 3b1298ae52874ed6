//! The words of an appliance, and every message that crosses a socket or stands in a file of facts, each defined once.
//!
//! It is responsible for what a value may be ([`Repository`], [`Digest`], [`SecretRef`], …) and for the shape, the bounds and
//! the routes of each message, so that both ends of a socket are compiled from one definition. It never reads or writes anything
//! but its arguments, knows no clock, no async runtime and no crypto provider: the appliance, the command line, a gateway and a
//! browser use the same code.

mod messages;
mod words;

pub use messages::{
    bridge, certificate, change, egress, event, events, evidence, facts, follow, keyserve, log, network,
    operator, reply, state, status, unseal, upgrade, vault,
};
pub use words::*;
