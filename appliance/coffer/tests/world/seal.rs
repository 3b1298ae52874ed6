//! The state of an appliance that waits: what its vault answers, with real keys sealed to it.

use cofferdam_attest::operator;
use cofferdam_attest::shares::{self, Share};
use cofferdam_protocol::state::Rollback;
use cofferdam_protocol::unseal::{
    Lineage, Method, NewMethod, OpeningKey, PeerStatus, SealDisk, SealStatus, Sealable as _, SealedKey,
    UnsealRequest, Witness,
};
use cofferdam_protocol::upgrade::SignedStatement;
use cofferdam_protocol::{Base64Array, base64};
use zeroize::Zeroizing;

use super::Told;

pub const PASSPHRASE: &str = "correct horse battery";
pub const RECOVERY: [u8; 32] = [7; 32];
pub const SET: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

/// One state.
pub struct Seal {
    private: Zeroizing<[u8; 32]>,
    public: [u8; 32],
    disk: SealDisk,
    epoch: u64,
    passphrase: Option<Vec<u8>>,
    /// The key that is divided, how many shares are needed and how many there are.
    divided: Option<([u8; 32], Base64Array<8>, u8, u8)>,
    recovery: Vec<u8>,
    given: Vec<Share>,
    wait_ms: u64,
    /// How many keys were sent.
    pub keys: usize,
    /// Who may open it, as the status says.
    pub lineage: Option<Lineage>,
    /// The statement that came with a key.
    pub upgrade: Option<SignedStatement>,
    /// Whether the connection is closed instead of an answer to a key.
    pub breaks: bool,
    /// Whether `front` has given the vault up before it answers a key.
    pub late: bool,
    /// What there is of key servers.
    pub peers: Vec<PeerStatus>,
    /// What the declaration says of witnesses.
    pub rollback: Rollback,
    /// What an operator said of them.
    pub told: Option<Witness>,
}

impl Seal {
    pub fn blank() -> Self {
        let (private, public) = operator::generate_vault_key();
        Self {
            private,
            public,
            disk: SealDisk::Blank,
            epoch: 0,
            passphrase: None,
            divided: None,
            recovery: Vec::new(),
            given: Vec::new(),
            wait_ms: 0,
            keys: 0,
            lineage: None,
            upgrade: None,
            breaks: false,
            late: false,
            peers: Vec::new(),
            rollback: Rollback::Require,
            told: None,
        }
    }

    /// Sealed with a passphrase, last written at this epoch.
    pub fn passphrase(epoch: u64) -> Self {
        let (passphrase, recovery) = (Some(PASSPHRASE.into()), RECOVERY.to_vec());
        Self { disk: SealDisk::Sealed, epoch, passphrase, recovery, ..Self::blank() }
    }

    /// Blank, with a key server that knows this epoch, or with what stands in the way of it.
    pub fn peer(known: Result<u64, &str>) -> Self {
        let server = "http://keys.example:7443".to_owned();
        let peer = match known {
            Ok(epoch) => {
                let epoch = Some(epoch).filter(|epoch| *epoch > 0);
                PeerStatus { server, has_key: true, epoch, trouble: None }
            }
            Err(trouble) => {
                PeerStatus { server, has_key: false, epoch: None, trouble: Some(trouble.to_owned()) }
            }
        };
        let other =
            PeerStatus { server: "http://other.example".into(), has_key: true, epoch: None, trouble: None };
        Self { peers: vec![other, peer], ..Self::blank() }
    }

    /// Sealed with two of three shares.
    pub fn shares(epoch: u64) -> Self {
        let divided = Some(([9; 32], SET.into(), 2, 3));
        Self { disk: SealDisk::Sealed, epoch, divided, recovery: RECOVERY.to_vec(), ..Self::blank() }
    }

    pub fn public_key(&self) -> String {
        base64::encode(self.public)
    }

    fn status(&self) -> SealStatus {
        let sealed = self.disk == SealDisk::Sealed;
        let shares = self.divided.map(|(_, set, threshold, shares)| Method::Shares {
            set,
            threshold,
            shares,
            given: self.given.len().try_into().unwrap(),
        });
        let passphrase = self.passphrase.as_ref().map(|_| Method::Passphrase);
        let methods = passphrase.into_iter().chain(shares).chain([Method::Recovery]);
        let methods = methods.filter(|_| sealed).collect();
        SealStatus {
            disk: self.disk,
            methods,
            wait_ms: self.wait_ms,
            lineage: self.lineage.clone().filter(|_| sealed),
            peers: self.peers.clone(),
            unopened: None,
            rollback: self.rollback,
        }
    }

    /// The answer to a body: without one the status is asked for. What opens the state launches the appliance.
    pub fn answer(&mut self, body: &[u8], told: &mut Told) -> Option<(&'static str, Vec<u8>)> {
        if !body.is_empty() {
            self.keys += 1;
            let sealed = SealedKey::parse(body).ok()?;
            let text = operator::open_key(&self.private, &sealed).ok()?;
            if let Some((status, words)) = self.carry_out(UnsealRequest::parse(&text).ok()?) {
                return Some((status, words.into()));
            }
            self.wait_ms = 0;
            if self.disk == SealDisk::Open {
                (told.launched, told.epoch) = (true, self.epoch);
            }
            if self.breaks {
                return None;
            }
            if self.late {
                return Some((
                    "504 Gateway Timeout",
                    br#"{"error":"the vault has not answered in time"}"#.to_vec(),
                ));
            }
        }
        Some(("200 OK", serde_json::to_vec(&self.status()).ok()?))
    }

    fn carry_out(&mut self, request: UnsealRequest) -> Option<(&'static str, &'static str)> {
        let (key, at_least) = match request {
            UnsealRequest::Create { method, recovery, witness } => {
                assert_eq!(self.disk, SealDisk::Blank);
                self.told = Some(witness);
                self.recovery = recovery.0.to_vec();
                match method {
                    NewMethod::Passphrase { passphrase } => self.passphrase = Some(passphrase.0.to_vec()),
                    NewMethod::Shares { key, set, threshold, shares } => {
                        self.divided = Some((key.0[..].try_into().unwrap(), set, threshold, shares));
                    }
                    NewMethod::Peer {} => {
                        assert!(!self.peers.is_empty() && self.peers.iter().all(|peer| peer.has_key));
                    }
                }
                let after = witness.gives_up.map_or(0, |given_up| given_up.epoch.get());
                (self.disk, self.epoch) = (SealDisk::Open, after + 1);
                return None;
            }
            UnsealRequest::Open { key, at_least, witness, upgrade } => {
                self.told = Some(witness);
                self.upgrade = upgrade.map(|signed| *signed);
                (key, at_least)
            }
        };
        if self.lineage.as_ref().is_some_and(|lineage| lineage.needs_statement.is_some())
            && self.upgrade.is_none()
        {
            return Some(("503 Service Unavailable", r#"{"error":"sealed by another image"}"#));
        }
        let opens = match key {
            OpeningKey::Passphrase { passphrase } => Some(&*passphrase.0) == self.passphrase.as_ref(),
            OpeningKey::Recovery { recovery } => *recovery.0 == self.recovery,
            OpeningKey::Share { set, index, share } => {
                let (key, own, threshold, _) = self.divided.unwrap();
                if set != own {
                    let words = r#"{"error":"the share belongs to another set than the one that opens this state","hint":"coffer seal status shows the set and how many were given"}"#;
                    return Some(("409 Conflict", words));
                }
                self.given.push(Share { index, bytes: Zeroizing::new(share.0[..].try_into().unwrap()) });
                if self.given.len() < usize::from(threshold) {
                    return None;
                }
                let given = std::mem::take(&mut self.given);
                shares::combine(&given).is_ok_and(|combined| *combined == key)
            }
        };
        if !opens {
            self.wait_ms = 1000;
            let words = r#"{"error":"the key does not open the state","hint":"check it"}"#;
            return Some(("403 Forbidden", words));
        }
        if self.epoch < at_least {
            let words = r#"{"error":"the state is an older copy","hint":"attach the disk that the appliance ran with last"}"#;
            return Some(("412 Precondition Failed", words));
        }
        let after = self.told.and_then(|told| told.gives_up).map_or(0, |given_up| given_up.epoch.get());
        self.disk = SealDisk::Open;
        self.epoch = self.epoch.max(after) + 1;
        None
    }
}
