//! The roles: one file each, named as on the command line.

pub(crate) mod appliance;
pub(crate) mod clock;
pub(crate) mod vault;
pub(crate) mod front;
pub(crate) mod publish;
pub(crate) mod evidence;
pub(crate) mod network;
pub(crate) mod shim;
pub(crate) mod pull;

#[cfg(test)]
pub(crate) mod testing;
