"""XAES-256-GCM by its specification (c2sp.org/XAES-256-GCM), for the makers of vectors."""

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def block(key, data):
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return cipher.update(data) + cipher.finalize()


def xaes(key, nonce, plain, data):
    """(ciphertext, tag)"""
    left = int.from_bytes(block(key, bytes(16)), "big")
    doubled = (left << 1) % 2**128 ^ (0x87 if left >> 127 else 0)
    subkey = doubled.to_bytes(16, "big")
    halves = (bytes([0, counter]) + b"X\0" + nonce[:12] for counter in (1, 2))
    derived = b"".join(
        block(key, bytes(one ^ other for one, other in zip(half, subkey, strict=True)))
        for half in halves
    )
    sealed = AESGCM(derived).encrypt(nonce[12:], plain, data)
    return sealed[:-16], sealed[-16:]


# The specification's own vector.
SEALED = xaes(bytes([1]) * 32, b"ABCDEFGHIJKLMNOPQRSTUVWX", b"XAES-256-GCM", b"")
assert b"".join(SEALED).hex() == "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"
