//! What no simulated machine makes: quotes, certificates and collateral that are wrong in one place and correctly signed.
//!
//! The keys are the simulated machine's own, derived from its seed as `tdx-sim` derives them (HKDF-SHA-256 with a counter).
//! Were that derivation ever to change there, every case below would break its chain and the tests would say so.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cofferdam_attest::evidence::Collateral;
use hkdf::Hkdf;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use serde_json::Value;
use sha2::Sha256;

/// Where the parts of a version 4 quote begin (Intel TDX DCAP Quoting Library API, appendix A.3).
pub(crate) const BODY: usize = 48;
pub(crate) const SIGNED: usize = 632;
pub(crate) const SIGNATURE: usize = 636;
pub(crate) const KEY: usize = 700;
pub(crate) const CERTIFICATION: usize = 764;
pub(crate) const QE_REPORT: usize = 770;
pub(crate) const QE_SIGNATURE: usize = 1154;
pub(crate) const QE_AUTH: usize = 1220;
pub(crate) const PCK_KIND: usize = 1252;

/// Who signs.
#[derive(Clone, Copy)]
pub(crate) enum By {
    Root,
    PlatformCa,
    TcbSigning,
    Pck,
    Attestation,
}

/// The keys of the machine with the seed of 32 bytes `seed`.
pub(crate) struct Forge {
    seed: [u8; 32],
}

impl Forge {
    pub(crate) fn new(seed: u8) -> Self {
        Self { seed: [seed; 32] }
    }

    fn key(&self, by: By) -> SigningKey {
        let label: &[u8] = match by {
            By::Root => b"root",
            By::PlatformCa => b"pck-platform-ca",
            By::TcbSigning => b"tcb-signing",
            By::Pck => b"pck",
            By::Attestation => b"attestation",
        };
        let scalars = (0..=u8::MAX).map(|attempt| {
            let info = [b"key".as_slice(), label, &[attempt]].join(&0u8);
            let mut scalar = [0u8; 32];
            let hkdf = Hkdf::<Sha256>::new(Some(b"cofferdam/tdx-sim/platform/v1"), &self.seed);
            hkdf.expand(&info, &mut scalar).unwrap();
            scalar
        });
        scalars.into_iter().find_map(|scalar| SigningKey::from_slice(&scalar).ok()).unwrap()
    }

    fn raw(&self, by: By, message: &[u8]) -> [u8; 64] {
        let signature: Signature = self.key(by).sign(message);
        signature.to_bytes().into()
    }

    /// `quote` (version 4) with its header and body changed and signed again by the attestation key.
    pub(crate) fn signed(&self, quote: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut quote = quote.to_vec();
        change(&mut quote[..SIGNED]);
        let signature = self.raw(By::Attestation, &quote[..SIGNED]);
        quote[SIGNATURE..KEY].copy_from_slice(&signature);
        quote
    }

    /// `quote` with the quoting enclave's report changed and signed again by the PCK.
    pub(crate) fn enclave(&self, quote: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut quote = quote.to_vec();
        change(&mut quote[QE_REPORT..QE_SIGNATURE]);
        let signature = self.raw(By::Pck, &quote[QE_REPORT..QE_SIGNATURE]);
        quote[QE_SIGNATURE..QE_SIGNATURE + 64].copy_from_slice(&signature);
        quote
    }

    /// `quote` (version 4) as version 5 with a body of type `kind` that goes on with `more`.
    pub(crate) fn version_5(&self, quote: &[u8], kind: u16, more: &[u8]) -> Vec<u8> {
        let mut out = quote[..BODY].to_vec();
        out[..2].copy_from_slice(&5u16.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend(u32::try_from(SIGNED - BODY + more.len()).unwrap().to_le_bytes());
        out.extend(&quote[BODY..SIGNED]);
        out.extend(more);
        let signature = self.raw(By::Attestation, &out);
        out.extend(&quote[SIGNED..SIGNATURE]);
        out.extend(signature);
        out.extend(&quote[KEY..]);
        out
    }

    /// The leaf of the PEM chain `chain` with its signed part changed, signed again by the platform CA.
    pub(crate) fn leaf(&self, chain: &str, change: impl FnOnce(&mut Vec<u8>)) -> String {
        let (begin, rest) = chain.split_once("-----END CERTIFICATE-----").unwrap();
        let base64 = begin.trim_start_matches("-----BEGIN CERTIFICATE-----").replace(['\r', '\n'], "");
        let der = STANDARD.decode(base64).unwrap();
        format!("{}{}", pem(&self.resigned(By::PlatformCa, &der, change)), rest.trim_start())
    }

    /// A certificate or revocation list with its signed part changed, signed again.
    fn resigned(&self, by: By, der: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let (whole, _) = element(der);
        let (mut signed, rest) = element(whole.contents);
        let mut contents = signed.contents.to_vec();
        change(&mut contents);
        let tbs = tlv(0x30, &contents);
        signed = element(rest).0;
        let signature: Signature = self.key(by).sign(&tbs);
        let bits = [&[0], signature.to_der().as_bytes()].concat();
        tlv(0x30, &[tbs, tlv(0x30, signed.contents), tlv(0x03, &bits)].concat())
    }

    /// The root's revocation list with the certificate of this serial number in it.
    pub(crate) fn root_crl(&self, crl: &[u8], serial: &[u8]) -> Vec<u8> {
        self.resigned(By::Root, crl, |tbs| {
            // TBSCertList (RFC 5280 §5.1): the list of revoked certificates stands before the extensions, [0].
            let mut at = 0;
            while tbs[at] != 0xa0 {
                let rest = element(&tbs[at..]).1.len();
                at = tbs.len() - rest;
            }
            let date = tlv(0x17, b"260101000000Z");
            let entry = tlv(0x30, &[tlv(0x02, serial), date].concat());
            tbs.splice(at..at, tlv(0x30, &entry));
        })
    }

    /// Collateral whose TCB info is changed and signed again.
    pub(crate) fn tcb_info(&self, collateral: &Collateral, change: impl FnOnce(&mut Value)) -> Collateral {
        let tcb_info = changed(&collateral.tcb_info, change);
        let tcb_info_signature = self.raw(By::TcbSigning, tcb_info.as_bytes()).to_vec();
        Collateral { tcb_info, tcb_info_signature, ..collateral.clone() }
    }

    /// Collateral whose QE identity is changed and signed again.
    pub(crate) fn qe_identity(&self, collateral: &Collateral, change: impl FnOnce(&mut Value)) -> Collateral {
        let qe_identity = changed(&collateral.qe_identity, change);
        let qe_identity_signature = self.raw(By::TcbSigning, qe_identity.as_bytes()).to_vec();
        Collateral { qe_identity, qe_identity_signature, ..collateral.clone() }
    }
}

/// `quote` (version 4) with other PCK certification data, its lengths made right.
pub(crate) fn with_chain(quote: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let mut out = quote[..PCK_KIND].to_vec();
    out.extend(kind.to_le_bytes());
    out.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
    out.extend(data);
    let length = |from: usize| u32::try_from(out.len() - from).unwrap().to_le_bytes();
    let (certification, signature) = (length(QE_REPORT), length(SIGNATURE));
    out[CERTIFICATION + 2..QE_REPORT].copy_from_slice(&certification);
    out[SIGNED..SIGNATURE].copy_from_slice(&signature);
    out
}

/// The serial number of the first certificate of a PEM chain.
pub(crate) fn serial(chain: &str) -> Vec<u8> {
    let body = chain.split("-----").nth(2).unwrap().replace(['\r', '\n'], "");
    let der = STANDARD.decode(body).unwrap();
    let (tbs, _) = element(element(&der).0.contents);
    // TBSCertificate (RFC 5280 §4.1): version [0], then the serial number.
    let (_, rest) = element(tbs.contents);
    element(rest).0.contents.to_vec()
}

/// 16 bytes of the SGX extensions of the leaf of a PEM chain: OID 1.2.840.113741.1.13.1.N, then OCTET STRING.
pub(crate) fn sgx_octets(chain: &str, n: u8) -> [u8; 16] {
    let der = STANDARD.decode(chain.split("-----").nth(2).unwrap().replace(['\r', '\n'], "")).unwrap();
    let head = [0x06, 0x0a, 0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01, n, 0x04, 0x10];
    let at = (0..der.len()).find(|at| der[*at..].starts_with(&head)).unwrap() + head.len();
    der[at..at + 16].try_into().unwrap()
}

/// One CERTIFICATE block.
pub(crate) fn pem(der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    let lines: Vec<&str> =
        base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Replaces the only occurrence of `from` by `to`.
pub(crate) fn replace(bytes: &mut Vec<u8>, from: &[u8], to: &[u8]) {
    let at: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
    assert_eq!(at.len(), 1, "{from:02x?} occurs {} times", at.len());
    bytes.splice(at[0]..at[0] + from.len(), to.iter().copied());
}

/// JSON text with a change. The order of keys must not depend on how serde_json was built.
fn changed(json: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut value: Value = serde_json::from_str(json).unwrap();
    change(&mut value);
    value.sort_all_objects();
    value.to_string()
}

/// One DER element.
struct Element<'a> {
    contents: &'a [u8],
}

/// The first element of `der` and what follows it.
fn element(der: &[u8]) -> (Element<'_>, &[u8]) {
    let (header, length) = match der[1] {
        short @ 0..=0x7f => (2, usize::from(short)),
        long => {
            let count = usize::from(long & 0x7f);
            (2 + count, der[2..2 + count].iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
        }
    };
    (Element { contents: &der[header..header + length] }, &der[header + length..])
}

fn tlv(tag: u8, contents: &[u8]) -> Vec<u8> {
    let length: Vec<u8> = contents.len().to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
    let head = match length.as_slice() {
        [] => vec![tag, 0],
        [short @ 0..=0x7f] => vec![tag, *short],
        long => [&[tag, 0x80 | u8::try_from(long.len()).unwrap()], long].concat(),
    };
    [head.as_slice(), contents].concat()
}
