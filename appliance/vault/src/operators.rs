//! Who may change what the vault holds: the operators whose keys the measured declaration names.
//!
//! The vault checks signatures itself. The front, which faces the network, only relays: it can neither
//! make a request nor move one to another connection, since the signature covers the connection's
//! channel binding.

use std::collections::BTreeMap;

use cofferdam_protocol::Fingerprint;
use cofferdam_protocol::operator::{Signature, signing_input};
use ed25519_dalek::VerifyingKey;

/// The operators, by the fingerprint of their key.
#[derive(Clone, Debug, Default)]
pub struct Operators(BTreeMap<Fingerprint, Operator>);

/// One operator.
#[derive(Clone, Debug)]
pub struct Operator {
    /// The name in the declaration.
    pub name: String,
    /// Fingerprint of the key.
    pub fingerprint: Fingerprint,
    key: VerifyingKey,
}

/// A request as it was signed.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// The HTTP method.
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// The body.
    pub body: &'a [u8],
    /// RFC 9266 channel binding of the connection.
    pub channel_binding: &'a [u8; 32],
}

/// A key of the declaration that is no usable Ed25519 key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key of operator {0} is not a usable ed25519 key")]
pub struct KeyError(pub String);

/// Why a request is not an operator's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthenticationError {
    /// The declaration names no operator with this key.
    #[error("the key is not that of an operator in the measured declaration")]
    UnknownKey,
    /// The signature is not that key's over this request on this connection.
    #[error("the signature does not match this request on this connection")]
    Signature,
}

impl Operators {
    /// Builds the set from names and raw Ed25519 public keys (32 bytes, RFC 8032 §5.1.5).
    ///
    /// # Errors
    /// [`KeyError`] for bytes that are no point of the curve, and for points of small order, with which a signature can
    /// be valid for every message.
    pub fn new<'a>(keys: impl IntoIterator<Item = (&'a str, [u8; 32])>) -> Result<Self, KeyError> {
        let mut operators = BTreeMap::new();
        for (name, bytes) in keys {
            let key = VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError(name.to_owned()))?;
            if key.is_weak() {
                return Err(KeyError(name.to_owned()));
            }
            let fingerprint = Fingerprint::of(&bytes);
            operators.insert(fingerprint, Operator { name: name.to_owned(), fingerprint, key });
        }
        Ok(Self(operators))
    }

    /// The raw public keys, ascending.
    pub fn keys(&self) -> Vec<[u8; 32]> {
        let mut keys: Vec<[u8; 32]> = self.0.values().map(|operator| operator.key.to_bytes()).collect();
        keys.sort_unstable();
        keys
    }

    /// Finds the operator who signed the request. Verification is strict (RFC 8032 without the cofactor, canonical
    /// encodings only), so that a signature has exactly one form and can be remembered.
    ///
    /// # Errors
    /// [`AuthenticationError`].
    pub fn authenticate(
        &self,
        fingerprint: &Fingerprint,
        signature: &Signature,
        request: Signed<'_>,
    ) -> Result<&Operator, AuthenticationError> {
        let input = signing_input(request.method, request.path, request.body, request.channel_binding);
        self.verify(fingerprint, signature, &input)
    }

    /// Finds the operator who signed these bytes, which say themselves what they are for. As strict as [`Operators::authenticate`].
    ///
    /// # Errors
    /// [`AuthenticationError`].
    pub fn verify(
        &self,
        fingerprint: &Fingerprint,
        signature: &Signature,
        input: &[u8],
    ) -> Result<&Operator, AuthenticationError> {
        let operator = self.0.get(fingerprint).ok_or(AuthenticationError::UnknownKey)?;
        operator
            .key
            .verify_strict(input, &ed25519_dalek::Signature::from_bytes(signature.as_bytes()))
            .map_err(|_| AuthenticationError::Signature)?;
        Ok(operator)
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;

    #[test]
    fn weak_and_impossible_keys_are_refused() {
        // The neutral element: every signature with S = 0, R = 0 would verify leniently.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        assert_eq!(Operators::new([("mallory", neutral)]).unwrap_err(), KeyError("mallory".into()));
        assert!(Operators::new([("zero", [0; 32])]).is_err());
        let mut off_curve = [0; 32];
        off_curve[0] = 2;
        assert!(Operators::new([("off", off_curve)]).is_err());
    }

    #[test]
    fn a_signature_is_for_one_request_on_one_connection() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let other = SigningKey::from_bytes(&[4; 32]);
        let public = key.verifying_key().to_bytes();
        let operators = Operators::new([("alice", public)]).unwrap();
        let request =
            Signed { method: "PUT", path: "/v1/secrets/a/b/c", body: b"body", channel_binding: &[9; 32] };
        let sign = |key: &SigningKey, signed: Signed<'_>| {
            key.sign(&signing_input(signed.method, signed.path, signed.body, signed.channel_binding))
                .to_bytes()
        };
        let good = sign(&key, request);
        let check = |signature: &[u8; 64], request| {
            operators
                .authenticate(&Fingerprint::of(&public), &Signature::from(*signature), request)
                .map(|operator| operator.name.clone())
        };
        assert_eq!(check(&good, request).unwrap(), "alice");

        let refused = Err(AuthenticationError::Signature);
        for altered in [
            Signed { method: "DELETE", ..request },
            Signed { path: "/v1/secrets/a/b/d", ..request },
            Signed { path: "/v1/secrets/a/b/c?", ..request },
            Signed { body: b"bodx", ..request },
            Signed { body: b"", ..request },
            Signed { channel_binding: &[8; 32], ..request },
        ] {
            assert_eq!(check(&good, altered), refused, "{altered:?}");
        }
        assert_eq!(check(&sign(&other, request), request), refused);
        assert_eq!(
            operators
                .authenticate(
                    &Fingerprint::of(&other.verifying_key().to_bytes()),
                    &Signature::from(good),
                    request
                )
                .map(|_| ()),
            Err(AuthenticationError::UnknownKey)
        );
        for position in 0..64 {
            let mut altered = good;
            altered[position] ^= 0x20;
            assert_eq!(check(&altered, request), refused, "byte {position}");
        }
    }
}
