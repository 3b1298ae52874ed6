//! Collateral: Intel's endorsements for the platform, at the time of appraisal.

use cofferdam_attest::evidence::{Collateral, Evidence};
use serde_json::{Value, json};
use tdx_sim::{CollateralOptions, QuoteFlaw};

use super::common::{self, Fixture};
use super::forge::{self, Forge};
use super::{Case, collateral};

pub(super) fn cases(honest: &Value) -> Vec<Case> {
    [
        places(honest),
        dates(honest),
        future(honest),
        issuers(honest),
        revoked(honest),
        tampered(honest),
        signed(honest),
        statuses(honest),
    ]
    .concat()
}

fn case(honest: &Value, name: &str, about: &str) -> Case {
    Case::new(honest, &format!("collateral/{name}"), about)
}

fn with(honest: &Value, name: &str, about: &str, collateral: Collateral) -> Case {
    let evidence = Evidence { collateral: Some(collateral), ..Fixture::default().evidence() };
    case(honest, name, about).evidence(&evidence)
}

fn healthy() -> Collateral {
    Fixture::default().evidence().collateral.unwrap()
}

fn made(options: CollateralOptions) -> Collateral {
    common::collateral(&common::platform(1), options)
}

/// In the document, beside it, or nowhere.
fn places(honest: &Value) -> Vec<Case> {
    let expired = made(CollateralOptions::expired());
    let in_part = made(CollateralOptions { expired_tcb_info: true, ..CollateralOptions::default() });
    let forged = {
        let fixture = Fixture::default();
        let quote = fixture.platform.flawed_quote(&fixture.report(), QuoteFlaw::ForeignPckKey).unwrap();
        Evidence { quote, ..fixture.evidence() }
    };
    vec![
        case(honest, "missing", "neither in the document nor given")
            .without("/document/collateral")
            .unknown(&["quote_chain"], "no collateral"),
        case(honest, "null", "null says as much as nothing")
            .set("/document/collateral", json!(null))
            .unknown(&["quote_chain"], "no collateral"),
        case(honest, "given", "not in the document but given")
            .without("/document/collateral")
            .set("/collateral", collateral(&healthy())),
        with(honest, "given-in-its-place", "expired in the document, given afresh", expired.clone())
            .set("/collateral", collateral(&healthy())),
        case(honest, "given-and-expired", "fresh in the document, given expired")
            .set("/collateral", collateral(&expired))
            .unknown(&["collateral"], "xpired"),
        case(honest, "missing-and-forged", "no collateral is needed to see that nobody signed the quote")
            .evidence(&Evidence { collateral: None, ..forged.clone() })
            .fails(&["quote_chain"], "did not sign the quoting enclave's report"),
        case(honest, "missing-and-root-not-named", "nor that its root is nobody's")
            .without("/document/collateral")
            .set("/roots", Vec::<Value>::new())
            .fails(&["trust_root"], "untrusted root"),
        case(honest, "expired-in-part-and-forged", "what is false outweighs what has expired")
            .evidence(&Evidence { collateral: Some(in_part), ..forged })
            .fails(&["quote_chain"], "did not sign the quoting enclave's report"),
        case(honest, "missing-and-false", "what is false outweighs what could not be checked")
            .without("/document/collateral")
            .set("/expected/repository", "acme/other")
            .fails(&["repository"], "expected acme/other")
            .and_unknown(&["quote_chain"]),
    ]
}

fn dates(honest: &Value) -> Vec<Case> {
    let none = CollateralOptions::default();
    let expired = |name: &str, about: &str, options, reason| {
        with(honest, name, about, made(options)).unknown(&["quote_chain", "collateral"], reason)
    };
    // Valid for 30 days; the claims are over by then as well.
    let late = &["issued_at", "expires_at"];
    vec![
        expired(
            "expired-tcb-info",
            "the TCB info ended yesterday",
            CollateralOptions { expired_tcb_info: true, ..none },
            "TCBInfo expired",
        ),
        expired(
            "expired-qe-identity",
            "the QE identity ended yesterday",
            CollateralOptions { expired_qe_identity: true, ..none },
            "QE Identity expired",
        ),
        expired(
            "expired-pck-crl",
            "the PCK's revocation list ended yesterday",
            CollateralOptions { expired_pck_crl: true, ..none },
            "revocation list expired",
        ),
        expired(
            "expired-root-crl",
            "the root's revocation list ended yesterday",
            CollateralOptions { expired_root_crl: true, ..none },
            "revocation list expired",
        ),
        case(honest, "too-late", "40 days later")
            .set("/at", "2027-02-24T08:00:00Z")
            .fails(late, "604800 s allowed")
            .and_unknown(&["collateral"]),
        case(honest, "too-early", "a day before it was issued")
            .set("/at", "2027-01-14T08:00:00Z")
            .fails(&["collateral", "issued_at"], "TCBInfo issue date is in the future"),
    ]
}

/// Signed by the right key, and not valid yet; or no longer, all of it, so that it can be told what it said when it was.
fn future(honest: &Value) -> Vec<Case> {
    let platform = common::platform(1);
    let tomorrow = platform.collateral(common::NOW + 86_400, CollateralOptions::default()).unwrap();
    let expired = CollateralOptions::expired();
    let out_of_date = made(CollateralOptions { out_of_date: true, ..expired });
    let foreign = {
        let fixture = Fixture::default();
        let quote = fixture.platform.flawed_quote(&fixture.report(), QuoteFlaw::ForeignPckKey).unwrap();
        Evidence { quote, collateral: Some(made(expired)), ..fixture.evidence() }
    };
    vec![
        with(
            honest,
            "root-crl-from-tomorrow",
            "the root's revocation list was issued in the future",
            Collateral { root_ca_crl: tomorrow.root_ca_crl, ..healthy() },
        )
        .fails(&["collateral"], "root's revocation list issue date is in the future"),
        with(
            honest,
            "pck-crl-from-tomorrow",
            "the PCK's revocation list was issued in the future",
            Collateral { pck_crl: tomorrow.pck_crl, ..healthy() },
        )
        .fails(&["collateral"], "PCK's revocation list issue date is in the future"),
        with(honest, "expired", "everything ended yesterday", made(expired))
            .unknown(&["collateral"], "TCBInfo expired"),
        with(
            honest,
            "expired-and-out-of-date",
            "it ended yesterday and was not good enough then",
            out_of_date,
        )
        .fails(&["tcb_status"], "OutOfDate")
        .and_unknown(&["collateral"]),
        case(honest, "expired-and-false", "it ended yesterday, and the quote was never genuine")
            .evidence(&foreign)
            .fails(&["quote_chain"], "Signature is invalid for qe_report"),
    ]
}

/// Who vouches for the revocation list of the PCK certificates: read, although the PCK chain says it again.
fn issuers(honest: &Value) -> Vec<Case> {
    let chain = healthy().pck_crl_issuer_chain;
    let ca = chain.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap().to_owned();
    let (root, other) = (common::platform(1).root_pem(), common::platform(2).root_pem());
    let with = |name: &str, about: &str, chain: &str| {
        let collateral = Collateral { pck_crl_issuer_chain: chain.to_owned(), ..healthy() };
        with(honest, &format!("crl-issuer-{name}"), about, collateral)
    };
    let fails = |case: Case, reason| case.fails(&["quote_chain"], reason);
    vec![
        with("without-root", "the CA alone: the root is named anyway", &ca),
        fails(with("nobody", "no certificate", ""), "names nobody"),
        fails(with("garbage", "no PEM", "garbage"), "malformed"),
        fails(with("root", "the root in the CA's place", &root), "does not begin with the issuer"),
        fails(
            with("tcb-signer", "the signer of the TCB info", &healthy().tcb_info_issuer_chain),
            "does not begin with the issuer",
        ),
        fails(
            with("another-root", "the CA and another machine's root", &format!("{ca}{other}")),
            "more than the issuer and the root",
        ),
        fails(
            with("longer", "the root twice", &format!("{chain}{root}")),
            "more than the issuer and the root",
        ),
    ]
}

fn revoked(honest: &Value) -> Vec<Case> {
    let fixture = Fixture::default();
    let forge = Forge::new(1);
    let honest_collateral = healthy();
    let root_crl = |chain: &str| {
        let root_ca_crl = forge.root_crl(&honest_collateral.root_ca_crl, &forge::serial(chain));
        Collateral { root_ca_crl, ..honest_collateral.clone() }
    };
    let chain = fixture.platform.pck_chain_pem();
    let ca = chain.split_inclusive("-----END CERTIFICATE-----").nth(1).unwrap();
    let no = CollateralOptions::default();
    let fails = |case: Case, reason| case.fails(&["quote_chain"], reason);
    vec![
        fails(
            with(
                honest,
                "revoked-pck",
                "the PCK certificate is on its revocation list",
                made(CollateralOptions { revoked_pck: true, ..no }),
            ),
            "Revoked",
        ),
        fails(
            with(
                honest,
                "revoked-platform-ca",
                "the PCK's CA is on the root's revocation list",
                root_crl(ca),
            ),
            "Revoked",
        ),
        fails(
            with(
                honest,
                "revoked-tcb-signer",
                "the signer of the TCB info is on the root's revocation list",
                root_crl(&honest_collateral.tcb_info_issuer_chain),
            ),
            "Revoked",
        ),
        fails(
            with(
                honest,
                "revoked-root",
                "the root is on its own revocation list",
                root_crl(&fixture.platform.root_pem()),
            ),
            "Revoked",
        ),
        fails(
            with(
                honest,
                "revoked-tcb",
                "the platform's TCB level is revoked",
                made(CollateralOptions { revoked_tcb: true, ..no }),
            ),
            "Revoked",
        )
        .fails(&["tcb_level"], "Revoked"),
    ]
}

/// Not what was signed, or signed by another.
fn tampered(honest: &Value) -> Vec<Case> {
    let change = |name: &str, about: &str, change: &dyn Fn(&mut Collateral), reason| {
        let mut collateral = healthy();
        change(&mut collateral);
        with(honest, name, about, collateral).fails(&["quote_chain"], reason)
    };
    let other = common::collateral(&common::platform(2), CollateralOptions::default());
    let chain = Fixture::default().platform.pck_chain_pem();
    vec![
        change(
            "tampered-tcb-info",
            "one status was changed",
            &|c| c.tcb_info = c.tcb_info.replacen("OutOfDate", "UpToDate", 1),
            "Signature is invalid for tcb_info",
        ),
        change(
            "tampered-qe-identity",
            "the least version was lowered",
            &|c| c.qe_identity = c.qe_identity.replacen("\"isvsvn\":4", "\"isvsvn\":1", 1),
            "Signature is invalid for qe_identity",
        ),
        change(
            "reformatted-tcb-info",
            "white space: another text than the signed one",
            &|c| c.tcb_info.push(' '),
            "Signature is invalid for tcb_info",
        ),
        change(
            "tampered-tcb-signature",
            "one bit of a signature",
            &|c| c.tcb_info_signature[5] ^= 1,
            "Signature is invalid for tcb_info",
        ),
        change(
            "tampered-qe-signature",
            "one bit of a signature",
            &|c| c.qe_identity_signature[5] ^= 1,
            "Signature is invalid for qe_identity",
        ),
        change(
            "short-signature",
            "63 bytes",
            &|c| c.tcb_info_signature.truncate(63),
            "Signature is invalid for tcb_info",
        ),
        change(
            "tampered-pck-crl",
            "one bit of its signature",
            &|c| *c.pck_crl.last_mut().unwrap() ^= 1,
            "InvalidCrlSignature",
        ),
        change(
            "tampered-root-crl",
            "one bit of its signature",
            &|c| *c.root_ca_crl.last_mut().unwrap() ^= 1,
            "Failed to parse root CA CRL",
        ),
        change(
            "swapped-crls",
            "each revocation list in the other's place",
            &|c| std::mem::swap(&mut c.pck_crl, &mut c.root_ca_crl),
            "Failed to parse root CA CRL",
        ),
        change(
            "pck-crl-of-the-root",
            "a list that says nothing about the PCK",
            &|c| c.pck_crl = c.root_ca_crl.clone(),
            "UnknownRevocationStatus",
        )
        .unknown(&["quote_chain"], "revocation list is for another platform"),
        change("empty-crl", "no list at all", &|c| c.pck_crl.clear(), "Failed to parse PCK CRL"),
        change(
            "tcb-info-by-the-pck",
            "TCB info under the PCK's chain",
            &|c| c.tcb_info_issuer_chain = chain.clone(),
            "signer must be issued directly by the root",
        ),
        change(
            "without-issuer-chain",
            "nobody vouches for the TCB info",
            &|c| c.tcb_info_issuer_chain.clear(),
            "too short for TCB Info",
        ),
        change(
            "of-another-machine",
            "signed under another root",
            &|c| *c = other.clone(),
            "Failed to parse root CA CRL",
        ),
    ]
}

/// Signed by the right key, for something else.
fn signed(honest: &Value) -> Vec<Case> {
    let forge = Forge::new(1);
    let tcb = |name: &str, about: &str, change: fn(&mut Value), reason| {
        with(honest, name, about, forge.tcb_info(&healthy(), change)).fails(&["tcb_level"], reason)
    };
    let qe = |name: &str, about: &str, change: fn(&mut Value), reason| {
        with(honest, name, about, forge.qe_identity(&healthy(), change)).fails(&["quoting_enclave"], reason)
    };
    vec![
        tcb("tcb-info-of-sgx", "the TCB info of SGX", |v| v["id"] = json!("SGX"), "non-TDX TCB info"),
        tcb("tcb-info-version-2", "a version without TDX", |v| v["version"] = json!(2), "non-TDX TCB info"),
        tcb(
            "tcb-info-of-another-processor",
            "another FMSPC",
            |v| v["fmspc"] = json!("00906ED50000"),
            "Fmspc mismatch",
        )
        .unknown(&["tcb_level"], "for another platform: FMSPC 00906ed50000"),
        tcb(
            "tcb-info-from-tomorrow",
            "issued in the future",
            |v| v["issueDate"] = json!("2027-01-16T08:00:00Z"),
            "in the future",
        )
        .fails(&["collateral"], "in the future"),
        tcb(
            "tcb-info-without-levels",
            "no TCB level fits",
            |v| v["tcbLevels"] = json!([]),
            "No matching TCB level",
        ),
        tcb(
            "tcb-info-without-module",
            "no word about the TDX module",
            |v| drop(v.as_object_mut().unwrap().remove("tdxModule")),
            "tdxModule",
        ),
        tcb(
            "module-revoked",
            "the TDX module's level is revoked",
            |v| v["tdxModuleIdentities"][0]["tcbLevels"][0]["tcbStatus"] = json!("Revoked"),
            "Revoked",
        ),
        tcb(
            "status-unknown",
            "a TCB status that Intel never defined",
            |v| v["tcbLevels"][0]["tcbStatus"] = json!("Fine"),
            "unknown variant `Fine`",
        ),
        qe(
            "qe-identity-of-sgx",
            "the identity of the SGX quoting enclave",
            |v| v["id"] = json!("QE"),
            "QE Identity id",
        ),
        qe(
            "qe-identity-from-tomorrow",
            "issued in the future",
            |v| v["issueDate"] = json!("2027-01-16T08:00:00Z"),
            "in the future",
        )
        .fails(&["collateral"], "in the future"),
        qe(
            "qe-identity-for-another-signer",
            "another enclave",
            |v| v["mrsigner"] = json!("AB".repeat(32)),
            "QE MRSIGNER mismatch",
        ),
        qe(
            "qe-revoked",
            "the quoting enclave's level is revoked",
            |v| v["tcbLevels"][0]["tcbStatus"] = json!("Revoked"),
            "Revoked",
        )
        .fails(&["tcb_level"], "Revoked"),
    ]
}

/// A genuine platform in a state that the default policy does not accept.
fn statuses(honest: &Value) -> Vec<Case> {
    let forge = Forge::new(1);
    let case = |name: &str, about: &str, collateral: Collateral, reason| {
        let evidence = Evidence { collateral: Some(collateral), ..Fixture::default().evidence() };
        Case::new(honest, &format!("tcb/{name}"), about).evidence(&evidence).fails(&["tcb_status"], reason)
    };
    let platform = |name: &str, status: &'static str| {
        let collateral = forge.tcb_info(&healthy(), |v| v["tcbLevels"][0]["tcbStatus"] = json!(status));
        case(name, &format!("the platform's level is {status}"), collateral, status)
    };
    let module = forge.tcb_info(&healthy(), |v| {
        v["tdxModuleIdentities"][0]["tcbLevels"][0]["tcbStatus"] = json!("OutOfDate")
    });
    let enclave = forge.qe_identity(&healthy(), |v| v["tcbLevels"][0]["tcbStatus"] = json!("OutOfDate"));
    let options = CollateralOptions { out_of_date: true, ..CollateralOptions::default() };
    vec![
        case(
            "out-of-date",
            "a newer level exists, this one has an advisory",
            made(options),
            "OutOfDate (SIMULATED-SA-00001)",
        ),
        platform("sw-hardening-needed", "SWHardeningNeeded"),
        platform("configuration-needed", "ConfigurationNeeded"),
        platform("configuration-and-sw-hardening-needed", "ConfigurationAndSWHardeningNeeded"),
        platform("out-of-date-configuration-needed", "OutOfDateConfigurationNeeded"),
        case("module-out-of-date", "the TDX module's level is OutOfDate", module, "OutOfDate"),
        case("qe-out-of-date", "the quoting enclave's level is OutOfDate", enclave, "OutOfDate"),
    ]
}
