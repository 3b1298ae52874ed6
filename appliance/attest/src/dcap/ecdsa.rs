//! ECDSA with P-256 and SHA-256: the only signatures that DCAP knows.
//!
//! aws-lc-rs verifies them, as it does everything else in the product. WebAssembly has no C code, so there RustCrypto's p256
//! does. Both get the same keys to judge, and a test compares their answers: which of them was asked decides nothing.

use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};

#[cfg(not(target_family = "wasm"))]
use native as backend;
#[cfg(target_family = "wasm")]
use pure as backend;

/// Length of an uncompressed point: its tag and two coordinates.
const POINT: usize = 65;

/// Whether `key` made `signature`, an `Ecdsa-Sig-Value` (RFC 3279 §2.2.3) in DER.
pub(super) fn verify_der(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    is_uncompressed(key) && backend::verify_der(key, message, signature)
}

/// Whether `key` made `signature`, which is r ‖ s.
pub(super) fn verify_fixed(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    is_uncompressed(key) && backend::verify_fixed(key, message, signature)
}

/// Keys are uncompressed points (SEC 1 §2.3.3), as in every certificate of Intel's: what other forms a library would read
/// as well differs from one to the other.
fn is_uncompressed(key: &[u8]) -> bool {
    key.len() == POINT && key.first() == Some(&0x04)
}

/// The same for the certificates and lists that dcap-qvl verifies.
#[derive(Debug)]
pub(super) struct EcdsaP256;

impl SignatureVerificationAlgorithm for EcdsaP256 {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        if verify_der(public_key, message, signature) { Ok(()) } else { Err(InvalidSignature) }
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P256
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_SHA256
    }
}

#[cfg(not(target_family = "wasm"))]
mod native {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    pub(super) fn verify_der(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).verify(message, signature).is_ok()
    }

    pub(super) fn verify_fixed(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key).verify(message, signature).is_ok()
    }
}

#[cfg(any(test, target_family = "wasm"))]
mod pure {
    use p256::ecdsa::signature::Verifier as _;
    use p256::ecdsa::{Signature, VerifyingKey};

    pub(super) fn verify_der(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        Signature::from_der(signature).is_ok_and(|signature| verify(key, message, &signature))
    }

    pub(super) fn verify_fixed(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        Signature::from_slice(signature).is_ok_and(|signature| verify(key, message, &signature))
    }

    fn verify(key: &[u8], message: &[u8], signature: &Signature) -> bool {
        VerifyingKey::from_sec1_bytes(key).is_ok_and(|key| key.verify(message, signature).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::signature::Signer as _;
    use p256::ecdsa::{Signature, SigningKey};
    use proptest::prelude::*;

    use super::*;

    /// Order of the curve's group, big-endian.
    const ORDER: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";

    fn signed(secret: &[u8; 32], message: &[u8]) -> Option<(Vec<u8>, Signature)> {
        let key = SigningKey::from_slice(secret).ok()?;
        let signature: Signature = key.sign(message);
        Some((key.verifying_key().to_sec1_point(false).as_bytes().to_vec(), signature))
    }

    /// What both backends say; they have to agree.
    fn agreed(key: &[u8], message: &[u8], der: &[u8], fixed: &[u8]) -> [bool; 2] {
        let native = [native::verify_der(key, message, der), native::verify_fixed(key, message, fixed)];
        let pure = [pure::verify_der(key, message, der), pure::verify_fixed(key, message, fixed)];
        assert_eq!(native, pure, "key {key:02x?} der {der:02x?} fixed {fixed:02x?}");
        native
    }

    /// A DER signature from the contents of its two integers, as they are.
    fn der(r: &[u8], s: &[u8]) -> Vec<u8> {
        let integer = |bytes: &[u8]| [&[0x02, u8::try_from(bytes.len()).unwrap()], bytes].concat();
        let both = [integer(r), integer(s)].concat();
        [&[0x30, u8::try_from(both.len()).unwrap()], both.as_slice()].concat()
    }

    #[test]
    fn numbers_at_the_edges_and_encodings_that_are_not_canonical_are_refused_by_both() {
        let (key, signature) = signed(&[7; 32], b"message").unwrap();
        let (r, s) = signature.split_bytes();
        let order = hex::decode(ORDER).unwrap();
        assert_eq!(
            agreed(&key, b"message", &signature.to_der().to_bytes(), &signature.to_bytes()),
            [true; 2]
        );
        let zero = [0_u8; 32];
        for (r, s) in
            [(zero.as_slice(), s.as_slice()), (&r, &zero), (&order, &s), (&r, &order), (&order, &order)]
        {
            let padded = |bytes: &[u8]| [&[0], bytes].concat();
            assert_eq!(agreed(&key, b"message", &der(&padded(r), &padded(s)), &[r, s].concat()), [false; 2]);
        }
        let canonical = signature.to_der().to_bytes();
        let padded = |bytes: &[u8]| [&[0, 0], bytes].concat();
        for not_canonical in [
            der(&padded(&r), &padded(&s)),
            [&canonical[..], &[0]].concat(),
            [&[0x30, 0x81], &canonical[1..]].concat(),
            [&[0x31], &canonical[1..]].concat(),
            canonical[..canonical.len() - 1].to_vec(),
            Vec::new(),
        ] {
            assert_eq!(agreed(&key, b"message", &not_canonical, &not_canonical), [false; 2]);
        }
    }

    #[test]
    fn both_signatures_of_one_message_verify_with_both() {
        // s and the order less s: neither library insists on the smaller one.
        let (key, signature) = signed(&[9; 32], b"message").unwrap();
        let other = Signature::from_scalars(signature.r().to_bytes(), (-*signature.s()).to_bytes()).unwrap();
        assert_ne!(signature, other);
        for signature in [signature, other] {
            let (der, fixed) = (signature.to_der().to_bytes(), signature.to_bytes());
            assert_eq!(agreed(&key, b"message", &der, &fixed), [true; 2]);
        }
    }

    #[test]
    fn only_uncompressed_points_are_keys() {
        let key = SigningKey::from_slice(&[5; 32]).unwrap();
        let signature: Signature = key.sign(b"message");
        let (der, fixed) = (signature.to_der().to_bytes(), signature.to_bytes());
        let verify = |key: &[u8]| [verify_der(key, b"message", &der), verify_fixed(key, b"message", &fixed)];
        let point = key.verifying_key().to_sec1_point(false).as_bytes().to_vec();
        assert_eq!(verify(&point), [true; 2]);
        let compressed = key.verifying_key().to_sec1_point(true).as_bytes().to_vec();
        assert!(native::verify_der(&compressed, b"message", &der), "a library reads it, so the rule is ours");
        assert_eq!(verify(&compressed), [false; 2]);
        let hybrid = [&[0x06 | point[64] & 1], &point[1..]].concat();
        let off_the_curve = [&point[..64], &[point[64] ^ 1]].concat();
        for wrong in [&point[..64], &hybrid, &off_the_curve, &[0x04; 65], &[0; 65], &[0], &[]] {
            assert_eq!(verify(wrong), [false; 2], "{wrong:02x?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn both_backends_decide_alike(
            secret in any::<[u8; 32]>(),
            message in proptest::collection::vec(any::<u8>(), 0..64),
            place in 0_usize..72,
            flip in any::<u8>(),
        ) {
            let Some((key, signature)) = signed(&secret, &message) else { return Ok(()) };
            let (mut der, mut fixed) = (signature.to_der().to_bytes().to_vec(), signature.to_bytes().to_vec());
            prop_assert_eq!(agreed(&key, &message, &der, &fixed), [true; 2]);
            for damaged in [&mut der, &mut fixed] {
                let place = place % damaged.len();
                damaged[place] ^= flip;
            }
            let [by_der, by_fixed] = agreed(&key, &message, &der, &fixed);
            prop_assert_eq!([by_der, by_fixed], [flip == 0; 2]);
            let mut other = key;
            let place = 1 + place % 64;
            other[place] ^= flip;
            let _ = agreed(&other, &message, &der, &fixed);
        }
    }
}
