//! The sealed secret engine of a Cofferdam appliance.
//!
//! It is responsible for keeping secrets so that only their owner gets them: records sealed one by one
//! ([`record`]) in a store that authenticates as a whole ([`store`]), leased to the peers that the declaration names
//! ([`Grants`]) and changed by nobody but the declaration's operators ([`Operators`]).
//!
//! It never opens a file or a socket, reads a clock or starts a process: the disk, the peer's
//! identity, the time and the place where audit lines go come in as arguments. It never hands a secret to
//! an operator, and it never decides anything by what a client says about itself. What travels over its socket is
//! [`cofferdam_protocol::vault`]'s.
//!
//! Secrets are not compared anywhere in here. What is compared in secret are authentication tags, in constant time, by
//! the libraries that make them.
//!
//! ```text
//! operator ──sealed (HPKE)──▶ front ──▶ POST /v1/operator ─▶ operate ─▶ store ─▶ redb ─▶ sealed pages ─▶ any disk
//! shim, publish ────────────────────▶ POST /v1/lease ────▶ lease ───▶ store
//! publish ──────────────────────────▶ POST /v1/peer ─────▶ state, witness: what key servers say and are told
//! evidence ─────────────────────────▶ GET /v1/key
//! ```

mod audit;
mod grants;
mod key_server;
mod keys;
mod operate;
mod operators;
mod orders;
pub mod record;
mod request;
mod router;
pub mod state;
pub mod store;
mod vault;
mod witness;

pub use audit::{Audit, Operation};
pub use grants::Grants;
pub use key_server::KeyServer;
pub use keys::{DeriveError, KeyMemory, Keys, MasterKey, UnsealError};
pub use operators::{AuthenticationError, KeyError, Operator, Operators, Signed};
pub use request::Answer;
pub use router::{Peer, router};
pub use store::{
    Disk, DiskError, Entry, FileDisk, MemoryDisk, Root, Store, StoreError, Volume, VolumeError, Wanted,
    Window,
};
pub use vault::{LeaseError, MAX_WAITERS, MAX_WAITERS_PER_PEER, Rules, Vault};
