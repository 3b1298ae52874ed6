//! What the tests share: keys, an operator, a disk, a vault.

#![allow(dead_code, reason = "each test file uses its own part")]

use cofferdam_attest::operator::seal_secret;
use cofferdam_protocol::operator::signing_input;
use cofferdam_protocol::vault::{Affected, OperatorRequest};
use cofferdam_protocol::{Base64Bytes, Fingerprint, SecretRef, SecretValue};
use cofferdam_vault::{Grants, Keys, MasterKey, MemoryDisk, Operators, Rules, Store, Vault};
use ed25519_dalek::{Signer as _, SigningKey};

/// The front's uid in these tests.
pub(crate) const FRONT: u32 = 102;
/// Who says which anchors are published.
pub(crate) const PUBLISH: u32 = 103;
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
    let services = [("web".to_owned(), SERVICE)].into();
    let web = Affected { service: "web".into(), on_change: "restart".into() };
    let affected = [(reference(PASSWORD), vec![web])].into();
    Rules {
        grants,
        affected,
        operators,
        front_uid: FRONT,
        publish_uid: PUBLISH,
        services,
        restarts_with: [].into(),
        min_value: MIN,
    }
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

/// What the tests of a state share.
pub(crate) mod state {
    use std::io;
    use std::sync::{Arc, Mutex};

    use cofferdam_attest::shares::{self, Share};
    use cofferdam_protocol::unseal::{NewMethod, OpeningKey, SecretBytes, UnsealRequest, Witness};
    use cofferdam_vault::state::{Boot, Cost, MIN_DISK, STORE, Sealed, StateError};
    use cofferdam_vault::{Disk, Operators};
    use zeroize::Zeroizing;

    use super::{FRONT, operator_key};

    pub(crate) const PASSPHRASE: &str = "correct horse battery staple";
    pub(crate) const RECOVERY: [u8; 32] = [0x52; 32];
    pub(crate) const SET: [u8; 8] = *b"one set.";
    const PIECE: usize = 4096;

    /// Zeros that take no memory until something is written. Clones share the bytes.
    #[derive(Clone, Debug)]
    pub(crate) struct SparseDisk(Arc<Mutex<Sparse>>);

    #[derive(Clone, Debug)]
    pub(crate) struct Sparse {
        pub(crate) length: u64,
        pieces: std::collections::BTreeMap<u64, Vec<u8>>,
        /// Writes that are still taken.
        pub(crate) writes: usize,
        /// An offset that cannot be read.
        pub(crate) unreadable: Option<u64>,
    }

    impl SparseDisk {
        pub(crate) fn new(length: u64) -> Self {
            let pieces = std::collections::BTreeMap::new();
            Self(Arc::new(Mutex::new(Sparse { length, pieces, writes: usize::MAX, unreadable: None })))
        }

        /// A disk of the same content that goes its own way.
        pub(crate) fn copy(&self) -> Self {
            Self(Arc::new(Mutex::new(self.0.lock().unwrap().clone())))
        }

        pub(crate) fn with(&self, change: impl FnOnce(&mut Sparse)) {
            change(&mut self.0.lock().unwrap());
        }

        pub(crate) fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
            let mut bytes = vec![0; length];
            self.read_at(offset, &mut bytes).unwrap();
            bytes
        }

        /// What is not zero: offsets and [`PIECE`] bytes each.
        pub(crate) fn pieces(&self) -> Vec<(u64, Vec<u8>)> {
            let disk = self.0.lock().unwrap();
            let held = disk.pieces.iter().filter(|(_, piece)| piece.iter().any(|byte| *byte != 0));
            held.map(|(place, piece)| (*place * PIECE as u64, piece.clone())).collect()
        }

        pub(crate) fn same(&self, other: &Self) -> bool {
            self.len().unwrap() == other.len().unwrap() && self.pieces() == other.pieces()
        }
    }

    impl Disk for SparseDisk {
        fn len(&self) -> io::Result<u64> {
            Ok(self.0.lock().unwrap().length)
        }

        fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            let disk = self.0.lock().unwrap();
            let end = offset.checked_add(out.len() as u64).filter(|end| *end <= disk.length);
            let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
            if disk.unreadable.is_some_and(|bad| (offset..end).contains(&bad)) {
                return Err(io::Error::other("a block that cannot be read"));
            }
            out.fill(0);
            let first = offset / PIECE as u64;
            for (place, piece) in disk.pieces.range(first..=end / PIECE as u64) {
                let start = place * PIECE as u64;
                let (from, to) = (start.max(offset), (start + PIECE as u64).min(end));
                if from < to {
                    let part = &piece[(from - start) as usize..(to - start) as usize];
                    out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
                }
            }
            Ok(())
        }

        fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            let mut disk = self.0.lock().unwrap();
            if offset + bytes.len() as u64 > disk.length {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.writes = disk.writes.checked_sub(1).ok_or(io::ErrorKind::ReadOnlyFilesystem)?;
            let mut done = 0;
            while done < bytes.len() {
                let at = offset + done as u64;
                let start = (at % PIECE as u64) as usize;
                let take = (PIECE - start).min(bytes.len() - done);
                let piece = disk.pieces.entry(at / PIECE as u64).or_insert_with(|| vec![0; PIECE]);
                piece[start..start + take].copy_from_slice(&bytes[done..done + take]);
                done += take;
            }
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }

        /// Without reading a quarter of a gigabyte of nothing.
        fn is_blank(&self) -> io::Result<bool> {
            Ok(self.0.lock().unwrap().pieces.values().flatten().all(|byte| *byte == 0))
        }
    }

    pub(crate) fn boot() -> Boot {
        Boot {
            repository: "acme/shop".parse().unwrap(),
            mrtd: [1; 48],
            rtmr: [[2; 48], [3; 48], [4; 48]],
            release: "v0.1.0".into(),
        }
    }

    pub(crate) fn operators() -> Operators {
        Operators::new([("alice", operator_key().verifying_key().to_bytes())]).unwrap()
    }

    pub(crate) fn find_as(disk: &SparseDisk, boot: Boot) -> Result<Sealed, StateError> {
        let sealed = Sealed::find(disk.clone(), boot, operators(), FRONT, |_| {})?;
        Ok(sealed.with_cost(Cost::new(8192, 1).unwrap()))
    }

    pub(crate) fn find(disk: &SparseDisk) -> Result<Sealed, StateError> {
        find_as(disk, boot())
    }

    pub(crate) fn secret_bytes(bytes: impl AsRef<[u8]>) -> SecretBytes {
        SecretBytes(Zeroizing::new(bytes.as_ref().to_vec()))
    }

    pub(crate) fn create_request() -> UnsealRequest {
        let method = NewMethod::Passphrase { passphrase: secret_bytes(PASSPHRASE) };
        UnsealRequest::Create { method, recovery: secret_bytes(RECOVERY), witness: Witness::default() }
    }

    pub(crate) fn passphrase(text: &str) -> UnsealRequest {
        UnsealRequest::Open {
            key: OpeningKey::Passphrase { passphrase: secret_bytes(text) },
            at_least: 0,
            witness: Witness::default(),
            upgrade: None,
        }
    }

    pub(crate) fn recovery(key: &[u8]) -> UnsealRequest {
        UnsealRequest::Open {
            key: OpeningKey::Recovery { recovery: secret_bytes(key) },
            at_least: 0,
            witness: Witness::default(),
            upgrade: None,
        }
    }

    pub(crate) fn at_least(epoch: u64) -> UnsealRequest {
        let key = OpeningKey::Recovery { recovery: secret_bytes(RECOVERY) };
        UnsealRequest::Open { key, at_least: epoch, witness: Witness::default(), upgrade: None }
    }

    /// Opens with the recovery key, saying this of witnesses.
    pub(crate) fn told(witness: Witness) -> UnsealRequest {
        let key = OpeningKey::Recovery { recovery: secret_bytes(RECOVERY) };
        UnsealRequest::Open { key, at_least: 0, witness, upgrade: None }
    }

    pub(crate) fn share(set: [u8; 8], index: u8, bytes: &[u8]) -> UnsealRequest {
        let key = OpeningKey::Share { set: set.into(), index, share: secret_bytes(bytes) };
        UnsealRequest::Open { key, at_least: 0, witness: Witness::default(), upgrade: None }
    }

    /// A disk with a state under a passphrase and the recovery key.
    pub(crate) fn made() -> SparseDisk {
        let disk = SparseDisk::new(MIN_DISK);
        find(&disk).unwrap().unseal(&create_request()).unwrap();
        disk
    }

    /// A disk with a state under three of five shares, and the shares.
    pub(crate) fn made_with_shares() -> (SparseDisk, Vec<Share>) {
        let disk = SparseDisk::new(MIN_DISK);
        let key = [0x4b; 32];
        let method = NewMethod::Shares { key: secret_bytes(key), set: SET.into(), threshold: 3, shares: 5 };
        let request =
            UnsealRequest::Create { method, recovery: secret_bytes(RECOVERY), witness: Witness::default() };
        find(&disk).unwrap().unseal(&request).unwrap();
        (disk, shares::split(&key, 3, 5, getrandom::fill).unwrap())
    }

    pub(crate) const STORE_START: u64 = STORE.start;
}
