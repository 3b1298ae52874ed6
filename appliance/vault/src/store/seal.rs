//! How one block is encrypted and authenticated: XAES-256-GCM with a random nonce of 192 bits.
//!
//! **Why no nonce is ever used twice.** A counter would have to live on the disk, and the disk is the host's: it could be
//! put back, or a power cut could forget it, and the same counter would seal other bytes. So nonces are drawn anew for every
//! block that is ever written, and nothing about them is remembered. Plain AES-256-GCM allows 2^32 random nonces of
//! 96 bits under one key, which a busy store reaches. XAES-256-GCM (<https://c2sp.org/XAES-256-GCM>) derives a key for the
//! first half of a 192-bit nonce and uses AES-256-GCM with the second half: after 2^80 blocks the chance of one
//! repetition is still below 2^-32.

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aes::Aes256;
use aes_gcm::aes::cipher::BlockCipherEncrypt as _;
use aes_gcm::{AeadInOut as _, Aes256Gcm, KeyInit as _};
use zeroize::Zeroizing;

/// Length of a nonce in bytes.
pub(crate) const NONCE: usize = 24;
/// Length of an authentication tag in bytes.
pub(crate) const TAG: usize = 16;

/// A key that is ready to seal. Made for one commit or one read and dropped after it, so that the key's only lasting copy is
/// where [`crate::KeyMemory`] keeps it.
pub(crate) struct Sealer {
    cipher: Aes256,
    /// The subkey K1 of CMAC (NIST SP 800-38B §6.1).
    subkey: Zeroizing<[u8; 16]>,
}

/// AES-GCM refused: a length beyond its bounds, which no block has, or a tag that does not fit.
#[derive(Debug)]
pub(crate) struct Refused;

impl Sealer {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        let cipher = Aes256::new(key.into());
        let mut zero = [0; 16].into();
        cipher.encrypt_block(&mut zero);
        let value = u128::from_be_bytes(zero.into());
        let doubled = (value << 1) ^ if value >> 127 == 1 { 0x87 } else { 0 };
        Self { cipher, subkey: Zeroizing::new(doubled.to_be_bytes()) }
    }

    /// Encrypts in place and returns the tag.
    pub(crate) fn seal(
        &self,
        nonce: &[u8; NONCE],
        data: &[u8],
        bytes: &mut [u8],
    ) -> Result<[u8; TAG], Refused> {
        let (gcm, nonce) = self.derive(nonce);
        gcm.encrypt_inout_detached(&nonce.into(), data, InOutBuf::from(bytes))
            .map(Into::into)
            .map_err(|_| Refused)
    }

    /// Decrypts in place. The tag is compared in constant time, before anything is decrypted.
    pub(crate) fn open(
        &self,
        nonce: &[u8; NONCE],
        tag: &[u8; TAG],
        data: &[u8],
        bytes: &mut [u8],
    ) -> Result<(), Refused> {
        let (gcm, nonce) = self.derive(nonce);
        gcm.decrypt_inout_detached(&nonce.into(), data, InOutBuf::from(bytes), &(*tag).into())
            .map_err(|_| Refused)
    }

    /// The AES-256-GCM key for the first 12 bytes of a nonce, and the other 12.
    fn derive(&self, nonce: &[u8; NONCE]) -> (Aes256Gcm, [u8; 12]) {
        let (mut first, mut rest) = ([0; 12], [0; 12]);
        let (left, right) = nonce.split_at(12);
        first.copy_from_slice(left);
        rest.copy_from_slice(right);
        let mut key = Zeroizing::new([0; 32]);
        for (counter, half) in (1..).zip(key.chunks_exact_mut(16)) {
            let message = [0, counter, b'X', 0].into_iter().chain(first);
            let mut block = [0; 16];
            block.iter_mut().zip(message.zip(*self.subkey)).for_each(|(out, (a, b))| *out = a ^ b);
            let mut block = block.into();
            self.cipher.encrypt_block(&mut block);
            half.copy_from_slice(&block);
        }
        (Aes256Gcm::new((&*key).into()), rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two vectors of the specification.
    #[test]
    fn it_is_xaes_256_gcm() {
        for (key, data, sealed) in [
            ([1; 32], &b""[..], "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
            ([3; 32], b"c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
        ] {
            let nonce = b"ABCDEFGHIJKLMNOPQRSTUVWX";
            let sealer = Sealer::new(&key);
            let mut bytes = *b"XAES-256-GCM";
            let tag = sealer.seal(nonce, data, &mut bytes).unwrap();
            let all: String = bytes.iter().chain(&tag).map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(all, sealed);
            sealer.open(nonce, &tag, data, &mut bytes).unwrap();
            assert_eq!(&bytes, b"XAES-256-GCM");
            assert!(sealer.open(nonce, &tag, b"other data", &mut bytes).is_err());
            assert_eq!(&bytes, b"XAES-256-GCM", "nothing is decrypted that does not authenticate");
        }
    }
}
