//! What the tests share: keys, an operator, a disk, a vault.

#![allow(dead_code, reason = "each test file uses its own part")]

use cofferdam_attest::operator::seal_secret;
use cofferdam_protocol::operator::signing_input;
use cofferdam_protocol::vault::OperatorRequest;
use cofferdam_protocol::{Base64Bytes, Fingerprint, SecretRef, SecretValue};
use cofferdam_vault::{Grants, Keys, MasterKey, MemoryDisk, Operators, Rules, Store, Vault};
use ed25519_dalek::{Signer as _, SigningKey};

/// The front's uid in these tests.
pub(crate) const FRONT: u32 = 102;
/// A service's uid in these tests; it is granted `secret://app/db/password` and `secret://app/db/user`.
pub(crate) const SERVICE: u32 = 100_000;
/// Shortest value that is accepted in these tests.
pub(crate) const MIN: usize = 8;
/// The time in these tests: 2023-11-14T22:13:20Z.
pub(crate) const NOW: u64 = 1_700_000_000;

pub(crate) const PASSWORD: &str = "secret://app/db/password";
pub(crate) const USER: &str = "secret://app/db/user";

pub(crate) fn keys(byte: u8) -> Keys {
    Keys::derive(MasterKey::take(&mut [byte; 32])).unwrap()
}

pub(crate) fn reference(text: &str) -> SecretRef {
    text.parse().unwrap()
}

pub(crate) fn secret(name: &str, value: &[u8]) -> SecretValue {
    SecretValue::new(reference(name), value.to_vec())
}

/// A request id that no other call has returned.
pub(crate) fn id() -> [u8; 32] {
    let mut id = [0; 32];
    getrandom::fill(&mut id).unwrap();
    id
}

/// A disk of zeros that is large enough for what these tests store.
pub(crate) fn disk() -> MemoryDisk {
    MemoryDisk::new(16 << 20)
}

pub(crate) fn operator_key() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

pub(crate) fn rules() -> Rules {
    let mut grants = Grants::default();
    grants.allow(SERVICE, reference(PASSWORD));
    grants.allow(SERVICE, reference(USER));
    let operators = Operators::new([("alice", operator_key().verifying_key().to_bytes())]).unwrap();
    Rules { grants, operators, front_uid: FRONT, min_value: MIN }
}

/// A vault with a fresh store on `disk` and nothing in it.
pub(crate) fn vault(disk: &MemoryDisk) -> Vault {
    Vault::new(Store::create(disk.clone(), keys(1)).unwrap(), rules(), || NOW, |_| {})
}

/// A request as an honest operator sends it over the front, on the connection with this channel binding.
pub(crate) fn signed(method: &str, path: &str, body: &[u8], binding: &[u8; 32]) -> OperatorRequest {
    signed_by(&operator_key(), method, path, body, binding)
}

pub(crate) fn signed_by(
    key: &SigningKey,
    method: &str,
    path: &str,
    body: &[u8],
    binding: &[u8; 32],
) -> OperatorRequest {
    let signature = key.sign(&signing_input(method, path, body, binding));
    OperatorRequest {
        method: method.into(),
        path: path.into(),
        body: Base64Bytes::new(body.to_vec()).unwrap(),
        channel_binding: (*binding).into(),
        key: Fingerprint::of(&key.verifying_key().to_bytes()),
        signature: signature.to_bytes().into(),
    }
}

/// The body of a put.
pub(crate) fn sealed(vault: &Vault, name: &str, value: &[u8]) -> Vec<u8> {
    serde_json::to_vec(&seal_secret(&vault.public_key(), &reference(name), value).unwrap()).unwrap()
}

/// The operator API's path of a secret.
pub(crate) fn path(name: &str) -> String {
    format!("/.well-known/cofferdam/v1/secrets/{}", name.strip_prefix("secret://").unwrap())
}

/// A put on a connection of its own.
pub(crate) fn put(vault: &Vault, name: &str, value: &[u8]) -> cofferdam_vault::Answer {
    let body = sealed(vault, name, value);
    vault.operate(FRONT, &signed("PUT", &path(name), &body, &id()))
}
