//! The key servers of a declaration, as far as their signatures go. What they are asked is [`crate::state`]'s while the state is closed, and
//! [`crate::witness`]'s afterwards.

use std::fmt;

use cofferdam_protocol::keyserve::{ServerId, server_id};
use cofferdam_protocol::operator::Signature;
use ed25519_dalek::VerifyingKey;

use crate::KeyError;

/// One key server.
#[derive(Clone)]
pub struct KeyServer {
    /// What it is called where people read it: its address.
    pub name: String,
    id: ServerId,
    key: VerifyingKey,
}

impl KeyServer {
    /// A server with this Ed25519 public key.
    ///
    /// # Errors
    /// [`KeyError`] when no signature of that key would prove anything.
    pub fn new(name: impl Into<String>, key: &[u8; 32]) -> Result<Self, KeyError> {
        let name = name.into();
        let Some(verifying) = VerifyingKey::from_bytes(key).ok().filter(|key| !key.is_weak()) else {
            return Err(KeyError(name));
        };
        Ok(Self { id: server_id(key), key: verifying, name })
    }

    /// Which one it is.
    pub fn id(&self) -> ServerId {
        self.id
    }

    /// Whether it has signed this.
    pub(crate) fn has_signed(&self, input: &[u8], signature: &Signature) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(signature.as_bytes());
        self.key.verify_strict(input, &signature).is_ok()
    }
}

impl fmt::Debug for KeyServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyServer").field(&self.name).finish()
    }
}
