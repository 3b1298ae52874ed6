//! The quote: its exact layout, and what it says about its TD. The quotes of [`td`] are signed as they stand.

use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::quote::attributes;
use serde_json::{Value, json};
use tdx_sim::TdReport;

use super::Case;
use super::common::Fixture;
use super::forge::{self, Forge};

pub(super) fn cases(honest: &Value) -> Vec<Case> {
    [layout(honest), td(honest), versions(honest)].concat()
}

/// Lengths and kinds. Without a quote nothing commits to the claims either.
fn layout(honest: &Value) -> Vec<Case> {
    let evidence = Fixture::default().evidence();
    let quote = evidence.quote.clone();
    let with = |name: &str, about: &str, quote: Vec<u8>, reason| {
        Case::new(honest, &format!("quote/{name}"), about)
            .evidence(&Evidence { quote, ..evidence.clone() })
            .fails(&["quote_format", "report_data"], reason)
    };
    let cut = |length: usize| quote[..length].to_vec();
    let longer = |more: &[u8]| [quote.as_slice(), more].concat();
    let put = |at: usize, bytes: &[u8]| {
        let mut quote = quote.clone();
        quote[at..at + bytes.len()].copy_from_slice(bytes);
        quote
    };
    // One byte more inside a container, whose length says so; the lengths inside do not.
    let grown = |at: usize| {
        let mut quote = longer(b"x");
        let length = u32::from_le_bytes(quote[at..at + 4].try_into().unwrap()) + 1;
        quote[at..at + 4].copy_from_slice(&length.to_le_bytes());
        quote
    };
    let both = {
        let mut quote = grown(forge::SIGNED);
        let length =
            u32::from_le_bytes(quote[forge::CERTIFICATION + 2..forge::QE_REPORT].try_into().unwrap()) + 1;
        quote[forge::CERTIFICATION + 2..forge::QE_REPORT].copy_from_slice(&length.to_le_bytes());
        quote
    };
    let descriptor = Forge::new(1).version_5(&quote, 5, &[]);
    let size = Forge::new(1).version_5(&quote, 3, &[]);
    vec![
        with("empty", "no byte", vec![], "truncated in its header"),
        with("truncated-in-header", "47 bytes", cut(47), "truncated in its header"),
        with("truncated-in-body", "631 bytes", cut(631), "truncated in its TD report"),
        with("truncated-in-length", "635 bytes", cut(635), "truncated in its signature length"),
        with("truncated-in-signature", "700 bytes", cut(700), "truncated in its signature data"),
        with(
            "truncated-by-one",
            "the last byte is missing",
            cut(quote.len() - 1),
            "truncated in its signature data",
        ),
        with("padded", "a zero byte at the end", longer(&[0]), "1 bytes after the end"),
        with("extended", "64 bytes at the end", longer(&[0x20; 64]), "64 bytes after the end"),
        with(
            "excess-in-signature",
            "a byte after the certification data",
            grown(forge::SIGNED),
            "signature data",
        ),
        with("excess-in-certification", "a byte after the PCK chain", both, "end of the certification data"),
        with("signature-length-of-4-gib", "a length near 2^32", put(forge::SIGNED, &[0xff; 4]), "truncated"),
        with("version-3", "version 3 (SGX)", put(0, &[3, 0]), "version 3"),
        with("version-6", "version 6", put(0, &[6, 0]), "version 6"),
        with("key-type-3", "ECDSA with P-384", put(2, &[3, 0]), "key type 3"),
        with("sgx", "TEE type 0", put(4, &[0; 4]), "not TDX"),
        with(
            "certification-type-5",
            "a PCK chain where the QE report belongs",
            put(forge::CERTIFICATION, &[5, 0]),
            "certification data of type 5",
        ),
        with("version-5-unknown-body", "version 5 with a body of type 5", descriptor, "TD report of type 5"),
        with("version-5-other-size", "version 5: a TDX 1.5 body of 584 bytes", size, "type 3 with 584 bytes"),
    ]
}

/// Honest quotes of TDs that nobody should trust.
fn td(honest: &Value) -> Vec<Case> {
    type Change = fn(&mut TdReport);
    let with = |name: &str, about: &str, change_report: Change, failed: &[&'static str], reason| {
        let fixture = Fixture { change_report, ..Fixture::default() };
        Case::new(honest, &format!("td/{name}"), about).evidence(&fixture.evidence()).fails(failed, reason)
    };
    let attributes_alone = &["td_attributes"];
    vec![
        with(
            "debug",
            "the host can read the TD",
            |r| r.td_attributes |= attributes::DEBUG,
            attributes_alone,
            "DEBUG is set",
        ),
        with(
            "profiling",
            "the host can profile the TD",
            |r| r.td_attributes |= 1 << 4,
            attributes_alone,
            "PROFILING must not be set",
        ),
        with(
            "migratable",
            "a migration TD is trusted too",
            |r| r.td_attributes |= attributes::MIGRATABLE,
            attributes_alone,
            "MIGRATABLE must not be set",
        ),
        with(
            "servtd-ext",
            "a service TD is trusted too",
            |r| r.td_attributes |= attributes::SERVTD_EXT,
            attributes_alone,
            "SERVTD_EXT must not be set",
        ),
        with(
            "reserved-attribute",
            "bit 40 has no meaning",
            |r| r.td_attributes |= 1 << 40,
            attributes_alone,
            "RESERVED(0x10000000000) must not be set",
        ),
        with(
            "without-sept-ve-disable",
            "exceptions wherever the host likes",
            |r| r.td_attributes &= !attributes::SEPT_VE_DISABLE,
            attributes_alone,
            "SEPT_VE_DISABLE is not set",
        ),
        with(
            "tpa",
            "a TDX Connect provisioning agent",
            |r| r.td_attributes |= attributes::TPA,
            attributes_alone,
            "TPA must not be set",
        ),
        with("xfam-pt", "processor trace", |r| r.xfam |= 1 << 8, &["xfam"], "PT must not be set"),
        with("xfam-lbr", "last branch records", |r| r.xfam |= 1 << 15, &["xfam"], "LBR must not be set"),
        with(
            "xfam-pasid",
            "process address space ids",
            |r| r.xfam |= 1 << 10,
            &["xfam"],
            "PASID must not be set",
        ),
        with("xfam-reserved", "bit 63 has no meaning", |r| r.xfam |= 1 << 63, &["xfam"], "RESERVED"),
        with(
            "xfam-without-x87",
            "a bit that the module fixes to one",
            |r| r.xfam &= !1,
            &["xfam"],
            "X87 is not set",
        ),
        with(
            "mr-config-id",
            "an identity that the host chose",
            |r| r.mr_config_id = [7; 48],
            &["mr_config_id"],
            "must be zero",
        ),
        with(
            "mr-owner",
            "an owner that the host chose",
            |r| r.mr_owner = [7; 48],
            &["mr_owner"],
            "must be zero",
        ),
        with(
            "mr-owner-config",
            "an owner's configuration that the host chose",
            |r| r.mr_owner_config[47] = 1,
            &["mr_owner_config"],
            "must be zero",
        ),
    ]
}

/// Version 5, whose body says what it is.
fn versions(honest: &Value) -> Vec<Case> {
    let evidence = Fixture::default().evidence();
    let forge = Forge::new(1);
    let with = |name: &str, about: &str, kind: u16, more: &[u8]| {
        let quote = forge.version_5(&evidence.quote, kind, more);
        Case::new(honest, &format!("quote/{name}"), about).evidence(&Evidence { quote, ..evidence.clone() })
    };
    // TEE_TCB_SVN_2, then MRSERVICETD.
    let svn: [u8; 16] = evidence.quote[forge::BODY..forge::BODY + 16].try_into().unwrap();
    let bound = [svn.as_slice(), &[7; 48]].concat();
    let newer = [&[svn[0] + 1], &svn[1..], &[0; 48]].concat();
    let relaunch = {
        let collateral = forge.tcb_info(evidence.collateral.as_ref().unwrap(), |info| {
            let levels = &mut info["tdxModuleIdentities"][0]["tcbLevels"];
            let (mut new, mut old) = (levels[0].clone(), levels[0].clone());
            new["tcb"]["isvsvn"] = json!(svn[0] + 1);
            old["tcbStatus"] = json!("OutOfDate");
            *levels = json!([new, old]);
        });
        let quote = forge.version_5(&evidence.quote, 3, &newer);
        let evidence = Evidence { quote, collateral: Some(collateral), ..evidence.clone() };
        Case::new(honest, "tcb/relaunch-advised", "launched by an old TDX module that was updated since")
            .evidence(&evidence)
            .fails(&["tcb_status"], "TDRelaunchAdvised")
    };
    vec![
        with("version-5-tdx-1.0", "version 5 with a TDX 1.0 body", 2, &[]),
        with("version-5-tdx-1.5", "version 5 with a TDX 1.5 body", 3, &[svn.as_slice(), &[0; 48]].concat()),
        with(
            "version-5-updated-module",
            "a TDX module that was updated since the TD was launched",
            3,
            &newer,
        ),
        with(
            "version-5-extended",
            "version 5 with an extended TDX 1.5 body, all zero behind the TCB",
            4,
            &[svn.as_slice(), &[0; 285]].concat(),
        ),
        relaunch,
        with("service-td", "a TD that is bound to a service TD", 3, &bound)
            .fails(&["service_td"], "bound to service TDs 0707"),
    ]
}
