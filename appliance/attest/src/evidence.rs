//! The evidence document, `attestation.json`: one JSON object that a relying party can appraise offline.
//!
//! Strict by intent: unknown fields, duplicate keys, bytes after the object and anything above 256 KiB are refused, so that
//! two verifiers can never read the same document differently. JSON white space is not significant.

use cofferdam_protocol::base64;
use cofferdam_protocol::json::{self, JsonError};
use serde::{Deserialize, Deserializer, Serialize};

use crate::challenge::{Challenge, MAX_PATH};
use crate::claims;
use crate::event_log::{Event, MAX_EVENTS};
use crate::quote;

pub use cofferdam_protocol::evidence::{MAX_DOCUMENT as MAX_BYTES, MEDIA_TYPE};
pub use cofferdam_protocol::facts::ImageInfo;

/// Name of the release asset.
pub const ASSET_NAME: &str = "attestation.json";

/// One evidence document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The exact bytes whose hash is in the quote; decode with [`claims::Claims::decode`].
    pub claims: Vec<u8>,
    /// The quote; decode with [`quote::parse`].
    pub quote: Vec<u8>,
    /// Firmware events (registers 0-2), then our own (register 3).
    pub event_log: Vec<Event>,
    /// Intel's endorsements for the quote, when the appliance knows them.
    pub collateral: Option<Collateral>,
    /// The image that says to have booted; unproven until the registers match reference values.
    pub image: ImageInfo,
    /// The relying party's challenge, where the claims carry the root of many.
    pub challenge: Option<Challenge>,
}

/// DCAP collateral of one quote, in the JSON shape that dcap-qvl writes: PEM chains and JSON texts as strings,
/// DER and signatures as hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collateral {
    /// Issuer chain of the PCK CRL, PEM.
    pub pck_crl_issuer_chain: String,
    /// Root CA CRL, DER.
    #[serde(with = "hex")]
    pub root_ca_crl: Vec<u8>,
    /// PCK CRL, DER.
    #[serde(with = "hex")]
    pub pck_crl: Vec<u8>,
    /// Issuer chain of the TCB info, PEM.
    pub tcb_info_issuer_chain: String,
    /// TCB info, the exact JSON text that was signed.
    pub tcb_info: String,
    /// Its ECDSA P-256 signature, r ‖ s.
    #[serde(with = "hex")]
    pub tcb_info_signature: Vec<u8>,
    /// Issuer chain of the QE identity, PEM.
    pub qe_identity_issuer_chain: String,
    /// QE identity, the exact JSON text that was signed.
    pub qe_identity: String,
    /// Its ECDSA P-256 signature, r ‖ s.
    #[serde(with = "hex")]
    pub qe_identity_signature: Vec<u8>,
    /// PCK chain, PEM, for quotes that do not carry it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pck_certificate_chain: Option<String>,
}

impl Collateral {
    /// Parses a collateral file of at most [`MAX_BYTES`].
    ///
    /// # Errors
    /// [`JsonError`] when it is too large or not of this shape.
    pub fn parse(json: &[u8]) -> Result<Self, JsonError> {
        json::from_json(json, MAX_BYTES)
    }

    /// The collateral file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn to_json(&self) -> Result<Vec<u8>, JsonError> {
        json::to_vec(self)
    }
}

impl Evidence {
    /// Parses a document and checks its bounds; what it says is for [`crate::appraise`].
    ///
    /// # Errors
    /// [`EvidenceError`] says which rule of the format is broken.
    pub fn parse(json: &[u8]) -> Result<Self, EvidenceError> {
        let wire: Wire = json::from_json(json, MAX_BYTES).map_err(EvidenceError::Json)?;
        if wire.version != 1 {
            return Err(EvidenceError::Version(wire.version));
        }
        if wire.claims.len() > claims::MAX_BYTES {
            return Err(EvidenceError::Field { name: "claims" });
        }
        if wire.quote.len() > quote::MAX_BYTES {
            return Err(EvidenceError::Field { name: "quote" });
        }
        if wire.event_log.len() > MAX_EVENTS {
            return Err(EvidenceError::Field { name: "event_log" });
        }
        if !wire.image.is_bounded() {
            return Err(EvidenceError::Field { name: "image" });
        }
        if wire.challenge.as_ref().is_some_and(|challenge| challenge.path.len() > MAX_PATH) {
            return Err(EvidenceError::Field { name: "challenge" });
        }
        let Wire { claims, quote, event_log, collateral, image, challenge, .. } = wire;
        Ok(Self { claims, quote, event_log, collateral, image, challenge })
    }

    /// The document's bytes, on one line without a newline.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn to_json(&self) -> Result<Vec<u8>, JsonError> {
        let wire = Wire {
            version: 1,
            claims: self.claims.clone(),
            quote: self.quote.clone(),
            event_log: self.event_log.clone(),
            collateral: self.collateral.clone(),
            image: self.image.clone(),
            challenge: self.challenge.clone(),
        };
        json::to_vec(&wire)
    }
}

/// A document that many get, each with their own challenge: everything else is written once.
#[derive(Debug, Clone)]
pub struct Template(Vec<u8>);

impl Template {
    /// Of `evidence`, whatever challenge it has itself.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(evidence: Evidence) -> Result<Self, JsonError> {
        Evidence { challenge: None, ..evidence }.to_json().map(Self)
    }

    /// What [`Evidence::to_json`] writes of it with this challenge.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn with(&self, challenge: &Challenge) -> Result<Vec<u8>, JsonError> {
        // The challenge is the last member of the object.
        let (_end, members) = self.0.split_last().unwrap_or((&b'}', &[]));
        let challenge = json::to_vec(challenge)?;
        Ok([members, b",\"challenge\":", &challenge, b"}"].concat())
    }
}

/// The JSON shape of the document.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: u32,
    #[serde(with = "base64::bytes")]
    claims: Vec<u8>,
    #[serde(with = "base64::bytes")]
    quote: Vec<u8>,
    event_log: Vec<Event>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    collateral: Option<Collateral>,
    #[serde(deserialize_with = "image")]
    image: ImageInfo,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    challenge: Option<Challenge>,
}

/// As its type reads it, with the member's name in the reason when it does not.
fn image<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ImageInfo, D::Error> {
    ImageInfo::deserialize(deserializer)
        .map_err(|error| serde::de::Error::custom(format!("`image`: {error}")))
}

/// Why a document is not evidence.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// Too large or not of the document's shape.
    #[error("evidence is not an acceptable JSON document")]
    Json(#[source] JsonError),
    /// Another version of the format.
    #[error("evidence of version {0}, only version 1 is known")]
    Version(u32),
    /// A part breaks its own bound.
    #[error("evidence field `{name}` is malformed or too large")]
    Field {
        /// Name of the field.
        name: &'static str,
    },
}
