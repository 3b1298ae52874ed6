//! The roles: what each may do is in one table, what each does in the module of its name. Beside them: the facts
//! that PID 1 writes down for them, and what several of them use.

pub(crate) mod admit;
mod bridge;
mod certificate;
pub(crate) mod clock;
mod egress;
mod evidence;
pub(crate) mod facts;
mod front;
mod gate;
mod network;
mod publish;
pub(crate) mod pull;
mod reserve;
mod shim;
mod table;
mod vault;

#[cfg(test)]
pub(crate) mod testing;

pub(crate) use self::front::untrusted_file;
pub(crate) use self::shim::WHY;
pub use self::table::{
    ADMIT, BRIDGE, CONTAINER, EGRESS, EVIDENCE, FRONT, GATE, NETWORK, PUBLISH, PULL, RESERVE, ROLES, Role,
    SHIM, VAULT,
};
pub(crate) use self::table::{Key, Starts, run};
