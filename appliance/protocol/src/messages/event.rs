//! One measured event, as it stands in the event log of evidence and of the facts of a boot.
//!
//! RTMR3 carries Cofferdam's own events; their digest is always computed from name and payload, never taken from
//! the log. RTMR0-2 carry the firmware's log (CCEL), whose digests cover bytes that the log does not always hold.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha384};

/// A measurement register: a SHA-384 digest.
pub type Register = [u8; 48];

/// Most events of a log; a firmware log has about 40, an appliance adds six and one per service.
pub const MAX_EVENTS: usize = 1024;

/// Largest payload of one of our own events in bytes.
pub const MAX_PAYLOAD: usize = 16 * 1024;

/// Largest payload of a firmware event that travels in the log in bytes; a longer one is left out.
pub const MAX_FIRMWARE_PAYLOAD: usize = 1024;

/// Domain separator of the digest of our own events; a zero byte follows it.
const DOMAIN: &[u8] = b"cofferdam/event/v1";

/// One measured event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Register that it extends: 0-3 for RTMR0-3.
    pub mr: u8,
    /// Name: `declaration`, `launch`, … for register 3, `EV_…` (TCG PC Client Platform Firmware Profile) for 0-2.
    pub event: String,
    /// What the register was extended with: given by the firmware's log, absent for our own events.
    pub digest: Option<Register>,
    /// The event's data: always present in our own events, absent when longer than
    /// [`MAX_FIRMWARE_PAYLOAD`] in the firmware's.
    pub payload: Option<Vec<u8>>,
}

impl Event {
    /// One of our own events, for RTMR3. The name must satisfy [`is_name`], else a verifier refuses the log.
    pub fn new(name: impl Into<String>, payload: impl Into<Vec<u8>>) -> Self {
        Self { mr: 3, event: name.into(), digest: None, payload: Some(payload.into()) }
    }

    /// What the register is extended with.
    pub fn register_digest(&self) -> Register {
        match self.digest {
            Some(digest) => digest,
            None => event_digest(&self.event, self.payload.as_deref().unwrap_or_default()),
        }
    }
}

/// SHA-384 of the domain, a zero byte, the name, a zero byte and the payload.
pub fn event_digest(name: &str, payload: &[u8]) -> Register {
    let mut hash = Sha384::new();
    hash.update(DOMAIN);
    hash.update([0]);
    hash.update(name.as_bytes());
    hash.update([0]);
    hash.update(payload);
    hash.finalize().into()
}

/// Whether `name` may name one of our own events: 1 to 32 of `[a-z0-9-]`, beginning with a letter. A zero byte
/// could otherwise move between name and payload without changing the digest.
pub fn is_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_firmware_name(name: &str) -> bool {
    (4..=64).contains(&name.len())
        && name.starts_with("EV_")
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The JSON shape of an event; the rules that depend on the register are checked in `TryFrom`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    mr: u8,
    event: String,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::hex::array_option")]
    digest: Option<Register>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::base64::bytes_option")]
    payload: Option<Vec<u8>>,
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Wire { mr: self.mr, event: self.event.clone(), digest: self.digest, payload: self.payload.clone() }
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Wire { mr, event, digest, payload } = Wire::deserialize(deserializer)?;
        let length = payload.as_ref().map(Vec::len);
        match mr {
            3 if !is_name(&event) => Err(D::Error::custom("malformed name of an event of register 3")),
            3 if digest.is_some() => Err(D::Error::custom("an event of register 3 has no digest field")),
            3 if length.is_none() => Err(D::Error::custom("an event of register 3 needs its payload")),
            3 if length > Some(MAX_PAYLOAD) => Err(D::Error::custom("payload too long")),
            0..=2 if !is_firmware_name(&event) => Err(D::Error::custom("malformed name of a firmware event")),
            0..=2 if digest.is_none() => Err(D::Error::custom("a firmware event needs its digest")),
            0..=2 if length > Some(MAX_FIRMWARE_PAYLOAD) => Err(D::Error::custom("payload too long")),
            0..=3 => Ok(Self { mr, event, digest, payload }),
            _ => Err(D::Error::custom("a register is 0, 1, 2 or 3")),
        }
    }
}
