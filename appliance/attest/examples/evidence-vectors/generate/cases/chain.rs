//! The chain: root, PCK certificate, quoting enclave, attestation key, quote.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cofferdam_attest::evidence::Evidence;
use serde_json::Value;
use tdx_sim::QuoteFlaw;

use super::Case;
use super::common::{self, Fixture};
use super::forge::{self, Forge};

pub(super) fn cases(honest: &Value) -> Vec<Case> {
    [roots(honest), flaws(honest), tampered(honest), signed(honest), certificates(honest)].concat()
}

fn roots(honest: &Value) -> Vec<Case> {
    let case = |name: &str, about: &str| Case::new(honest, &format!("trust-root/{name}"), about);
    let other = common::platform(2).root_pem();
    let intel = include_str!("../../../../../../policy/intel-sgx-root-ca.pem");
    vec![
        case("not-named", "Intel's root alone: a simulated TD proves nothing")
            .set("/roots", Vec::<Value>::new())
            .fails(&["trust_root"], "untrusted root"),
        case("another-named", "the root of another simulated machine")
            .set("/roots", vec![other.clone()])
            .fails(&["trust_root"], "untrusted root"),
        case("intel-named", "Intel's root named once more")
            .set("/roots", vec![intel.to_owned()])
            .fails(&["trust_root"], "untrusted root"),
        case("two-named", "another machine's root and this one's")
            .set("/roots", vec![other, honest["roots"][0].as_str().unwrap().to_owned()]),
    ]
}

fn with(honest: &Value, name: &str, about: &str, quote: Vec<u8>) -> Case {
    let evidence = Evidence { quote, ..Fixture::default().evidence() };
    Case::new(honest, &format!("quote-chain/{name}"), about).evidence(&evidence)
}

/// Links that belong to another machine.
fn flaws(honest: &Value) -> Vec<Case> {
    let fixture = Fixture::default();
    let with = |name: &str, about: &str, flaw| {
        with(honest, name, about, fixture.platform.flawed_quote(&fixture.report(), flaw).unwrap())
    };
    let chain = &["quote_chain"];
    vec![
        with("foreign-pck", "the chain of another machine, under another root", QuoteFlaw::ForeignPck)
            .fails(&["trust_root"], "untrusted root"),
        with("foreign-pck-key", "the QE report is signed by another machine's PCK", QuoteFlaw::ForeignPckKey)
            .fails(chain, "Signature is invalid for qe_report"),
        with(
            "qe-binding-broken",
            "the QE report commits to another attestation key",
            QuoteFlaw::BrokenQeBinding,
        )
        .fails(chain, "QE report hash mismatch"),
        with(
            "foreign-attestation-key",
            "another key signed the body than the quote names",
            QuoteFlaw::ForeignAttestationKey,
        )
        .fails(chain, "report signature is invalid"),
        with("debug-qe", "the quoting enclave runs in debug mode", QuoteFlaw::DebugQe)
            .fails(&["quoting_enclave"], "QE report validation failed"),
    ]
}

/// One bit changed after signing.
fn tampered(honest: &Value) -> Vec<Case> {
    let quote = Fixture::default().evidence().quote;
    let flip = |name: &str, about: &str, at: usize, failed: &[&'static str], reason| {
        let mut quote = quote.clone();
        quote[at] ^= 1;
        with(honest, &format!("tampered-{name}"), about, quote).fails(failed, reason)
    };
    let chain = &["quote_chain"];
    let invalid = "report signature is invalid";
    let body = forge::BODY;
    vec![
        flip("header", "the quoting enclave's identifier", 28, chain, invalid),
        flip("qe-vendor", "the quoting enclave's vendor", 12, chain, "Unknown QE vendor"),
        flip("mrseam", "the TDX module's measurement", body + 16, chain, invalid),
        flip("mrtd", "the firmware's measurement", body + 136, &["quote_chain", "mrtd"], invalid),
        flip(
            "rtmr0",
            "the machine's measurement",
            body + 328,
            &["quote_chain", "firmware_log", "rtmr0"],
            invalid,
        ),
        flip(
            "rtmr1",
            "the kernel's measurement",
            body + 376,
            &["quote_chain", "firmware_log", "rtmr1"],
            invalid,
        ),
        flip(
            "rtmr2",
            "the command line's measurement",
            body + 424,
            &["quote_chain", "firmware_log", "rtmr2"],
            invalid,
        ),
        flip("rtmr3", "the appliance's own measurement", body + 472, &["quote_chain", "event_log"], invalid),
        flip(
            "report-data",
            "the commitment to the claims",
            body + 520,
            &["quote_chain", "report_data"],
            invalid,
        ),
        flip("signature", "the signature of the body", forge::SIGNATURE + 40, chain, "invalid"),
        flip("attestation-key", "the attestation key", forge::KEY + 5, chain, "QE report hash mismatch"),
        flip("qe-report", "the QE report", forge::QE_REPORT, chain, "Signature is invalid for qe_report"),
        flip(
            "qe-signature",
            "the signature of the QE report",
            forge::QE_SIGNATURE + 40,
            chain,
            "Signature is invalid for qe_report",
        ),
        flip(
            "qe-authentication-data",
            "what the QE hashes with the key",
            forge::QE_AUTH,
            chain,
            "QE report hash mismatch",
        ),
    ]
}

/// Signed, but by a platform that says something else than its endorsements.
fn signed(honest: &Value) -> Vec<Case> {
    let quote = Fixture::default().evidence().quote;
    let forge = Forge::new(1);
    let body = |name: &str, about: &str, change: fn(&mut [u8]), reason| {
        with(honest, name, about, forge.signed(&quote, change)).fails(&["tcb_level"], reason)
    };
    let qe = |name: &str, about: &str, change: fn(&mut [u8]), reason| {
        with(honest, name, about, forge.enclave(&quote, change)).fails(&["quoting_enclave"], reason)
    };
    vec![
        body("qe-vendor", "a quoting enclave that is not Intel's", |q| q[12] = 0, "Unknown QE vendor")
            .fails(&["quote_chain"], "Unknown QE vendor"),
        body(
            "module-signer",
            "a TDX module that Intel did not sign",
            |q| q[forge::BODY + 64] = 1,
            "MRSIGNER mismatch",
        ),
        body(
            "module-attributes",
            "a TDX module with attributes",
            |q| q[forge::BODY + 112] = 1,
            "SEAMATTRIBUTES",
        ),
        body(
            "module-unknown",
            "a major version of the TDX module that the TCB info does not know",
            |q| q[forge::BODY + 1] = 9,
            "TDX",
        ),
        body("module-too-old", "a TDX module below every TCB level", |q| q[forge::BODY] = 1, "TCB level"),
        qe("qe-signer", "a quoting enclave of another signer", |r| r[128] ^= 1, "QE MRSIGNER mismatch"),
        qe("qe-product", "another enclave of that signer", |r| r[256] ^= 1, "QE ISVPRODID mismatch"),
        qe(
            "qe-too-old",
            "a quoting enclave below every TCB level",
            |r| r[258] = 1,
            "below minimum required 4",
        ),
        qe("qe-miscselect", "other state in the enclave's frames", |r| r[16] = 1, "MISCSELECT mismatch"),
        qe("qe-attributes", "other attributes of the enclave", |r| r[48] |= 0x20, "ATTRIBUTES mismatch"),
    ]
}

/// The PCK certificate and its chain, which travel in the quote and are covered by no signature of the quote.
fn certificates(honest: &Value) -> Vec<Case> {
    let fixture = Fixture::default();
    let evidence = fixture.evidence();
    let chain = fixture.platform.pck_chain_pem();
    let forge = Forge::new(1);
    let kind = |name: &str, about: &str, kind: u16, data: &[u8], reason| {
        with(honest, name, about, forge::with_chain(&evidence.quote, kind, data))
            .fails(&["quote_chain"], reason)
    };
    let pem = |name: &str, about: &str, pem: &str, reason| kind(name, about, 5, pem.as_bytes(), reason);
    let blocks: Vec<String> = chain
        .split_inclusive("-----END CERTIFICATE-----")
        .map(|block| block.trim().to_owned() + "\n")
        .take(3)
        .collect();
    let [leaf, ca, root] = [&blocks[0], &blocks[1], &blocks[2]];
    let leaf_der = STANDARD.decode(leaf.split("-----").nth(2).unwrap().replace(['\r', '\n'], "")).unwrap();
    let mut broken = leaf_der.clone();
    *broken.last_mut().unwrap() ^= 1;
    let fmspc = forge.leaf(&chain, |tbs| forge::replace(tbs, b"SIMTDX", b"SIMTDY"));
    let expired = forge.leaf(&chain, |tbs| forge::replace(tbs, b"491231235959Z", b"260101000000Z"));
    // Component 1 is 3 in every TCB level of the machine: OID 1.2.840.113741.1.13.1.2.1, then INTEGER; and CPUSVN as a whole.
    let older = forge.leaf(&chain, |tbs| {
        let svn = [0x04, 0x10, 3, 3, 2, 2, 4, 1, 0, 5];
        forge::replace(tbs, &svn, &[&svn[..2], &[2], &svn[3..]].concat());
        let oid = [0x06, 0x0b, 0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01, 0x02, 0x01, 0x02, 0x01];
        forge::replace(tbs, &[oid.as_slice(), &[3]].concat(), &[oid.as_slice(), &[2]].concat());
    });
    let in_collateral = |kind: u16| {
        let mut evidence = evidence.clone();
        evidence.quote = forge::with_chain(&evidence.quote, kind, b"");
        evidence.collateral.as_mut().unwrap().pck_certificate_chain = Some(chain.clone());
        evidence
    };
    let named = |name: &str, about: &str, evidence: &Evidence| {
        Case::new(honest, &format!("quote-chain/{name}"), about).evidence(evidence)
    };
    vec![
        named(
            "pck-chain-in-collateral",
            "a quote with certification data of type 3, its chain in the collateral",
            &in_collateral(3),
        ),
        kind(
            "pck-chain-nowhere",
            "certification data of type 3, and no chain in the collateral",
            3,
            b"",
            "without a PCK certificate chain",
        )
        .unknown(&["quote_chain"], "without a PCK certificate chain"),
        with(
            honest,
            "pck-chain-without-root",
            "leaf and CA: the root is named anyway",
            forge::with_chain(&evidence.quote, 5, format!("{leaf}{ca}").as_bytes()),
        ),
        pem("pck-alone", "the leaf alone", leaf, "of 1 certificates"),
        pem(
            "pck-chain-of-four",
            "one certificate too many",
            &format!("{leaf}{ca}{root}{root}"),
            "of 4 certificates",
        ),
        with(
            honest,
            "pck-chain-reversed",
            "the leaf last",
            forge::with_chain(&evidence.quote, 5, format!("{root}{ca}{leaf}").as_bytes()),
        )
        .fails(&["trust_root"], "untrusted root: SIMULATED SGX PCK Platform CA"),
        pem(
            "pck-chain-with-text",
            "a remark between the certificates",
            &format!("{leaf}a remark\n{ca}{root}"),
            "malformed",
        ),
        pem("pck-chain-not-base64", "a dash in the base64", &chain.replacen("MII", "MI-", 1), "malformed"),
        pem("pck-chain-empty", "no certificate", "", "of 0 certificates"),
        pem(
            "pck-signature",
            "the CA did not sign the PCK certificate",
            &format!("{}{ca}{root}", forge::pem(&broken)),
            "nvalid",
        ),
        pem("pck-expired", "the PCK certificate has expired", &expired, "xpired"),
        pem(
            "pck-of-another-processor",
            "a PCK certificate for another FMSPC than the TCB info",
            &fmspc,
            "Fmspc mismatch",
        )
        .unknown(&["tcb_level"], "for another platform: FMSPC 53494d544458"),
        with(
            honest,
            "pck-older",
            "a PCK certificate for an older microcode",
            forge::with_chain(&evidence.quote, 5, older.as_bytes()),
        )
        .fails(&["tcb_level"], "No matching TCB level"),
    ]
}
