//! A secret's plaintext, while it exists.

use std::fmt;

use zeroize::Zeroizing;

use super::secret_ref::SecretRef;

/// The plaintext of one secret together with its name.
///
/// It is cleared when dropped, cannot be cloned or compared by accident, and prints as
/// `[redacted:NAME]`.
pub struct SecretValue {
    reference: SecretRef,
    bytes: Zeroizing<Vec<u8>>,
}

impl SecretValue {
    /// Takes over the plaintext. The vector's whole capacity is cleared when the value is dropped.
    pub fn new(reference: SecretRef, bytes: impl Into<Zeroizing<Vec<u8>>>) -> Self {
        Self { reference, bytes: bytes.into() }
    }

    /// The name of the secret.
    pub fn reference(&self) -> &SecretRef {
        &self.reference
    }

    /// The plaintext: for the workload that leased it and the redactor that hides it, nothing else.
    pub fn expose(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[redacted:{}]", self.reference)
    }
}

impl fmt::Display for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_as_its_name_only() {
        let reference: SecretRef = "secret://app/db/password".parse().unwrap();
        let secret = SecretValue::new(reference, b"correct horse".to_vec());
        assert_eq!(
            format!("{secret:?} {secret}"),
            "[redacted:secret://app/db/password] [redacted:secret://app/db/password]"
        );
        assert_eq!(format!("{:?}", Some(secret)), "Some([redacted:secret://app/db/password])");
    }
}
