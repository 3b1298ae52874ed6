//! The roles: one file each, named as on the command line.

pub(crate) mod appliance;
pub(crate) mod clock;
pub(crate) mod evidence;
pub(crate) mod front;
pub(crate) mod network;
pub(crate) mod publish;
pub(crate) mod pull;
pub(crate) mod shim;
pub(crate) mod vault;

#[cfg(test)]
pub(crate) mod testing;
