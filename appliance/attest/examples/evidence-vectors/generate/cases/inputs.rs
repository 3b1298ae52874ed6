//! What the relying party brings is read strictly too: unusable, it ends the appraisal before it begins.

use serde_json::{Value, json};

use super::Case;
use super::common;

pub(super) fn cases(honest: &Value) -> Vec<Case> {
    let case = |name: &str, about: &str| Case::new(honest, &format!("input/{name}"), about);
    let set = |name: &str, about: &str, at: &str, value: Value, reason| {
        case(name, about).set(at, value).refused(2, reason)
    };
    // A field whose value no verifier could heed.
    let never = |name: &str, about: &str, field: &str, value: Value| {
        case(&format!("policy-never-{name}"), about)
            .set(&format!("/policy/{field}"), value)
            .refused(2, "cannot be")
    };
    let leaf = {
        let chain = common::Fixture::default().platform.pck_chain_pem();
        chain.split_inclusive("-----END CERTIFICATE-----").next().unwrap().to_owned() + "\n"
    };
    let image = "/references/0";
    let boot = "/references/0/boots/0";
    // With the source, which is left out where it is a disk.
    let mut boot_as_a_list =
        values(&honest["references"][0]["boots"][0], &["platform", "rtmr1", "rtmr2", "events"]);
    boot_as_a_list.insert(1, json!("disk"));
    let platform = "/references/1";
    let at = |half: &str, member: &str| format!("{half}/{member}");
    vec![
        set(
            "reference-rtmr1-does-not-replay",
            "RTMR1 is not what its events make",
            &at(boot, "rtmr1"),
            json!("11".repeat(48)),
            "do not replay to the value of rtmr1",
        ),
        set(
            "reference-rtmr2-does-not-replay",
            "RTMR2 is not what its events make",
            &at(boot, "rtmr2"),
            json!("11".repeat(48)),
            "do not replay to the value of rtmr2",
        ),
        set(
            "reference-rtmr0-does-not-replay",
            "RTMR0 is not what its events make",
            &at(platform, "rtmr0"),
            json!("11".repeat(48)),
            "do not replay to the value of rtmr0",
        ),
        set(
            "reference-image-with-rtmr0",
            "an image half that speaks of RTMR0",
            &at(boot, "events/0/mr"),
            json!(0),
            "another half's register",
        ),
        set(
            "reference-image-with-rtmr3",
            "an image half that speaks of RTMR3",
            &at(boot, "events/0/mr"),
            json!(3),
            "another half's register",
        ),
        set(
            "reference-platform-with-rtmr1",
            "a platform half that speaks of RTMR1",
            &at(platform, "events/0/mr"),
            json!(1),
            "another half's register",
        ),
        set(
            "reference-of-unknown-kind",
            "neither half",
            &at(image, "kind"),
            json!("cofferdam-image/v2"),
            "unknown variant",
        ),
        case("reference-without-kind", "nobody knows which half")
            .without(&at(image, "kind"))
            .refused(2, "missing field"),
        set(
            "reference-unknown-field",
            "a member that the format does not know",
            &at(image, "extra"),
            json!(1),
            "unknown field",
        ),
        set(
            "reference-without-boot",
            "an image that boots nowhere",
            &at(image, "boots"),
            json!([]),
            "no boot at all",
        ),
        set(
            "reference-without-mrtd",
            "a platform without MRTD",
            &at(platform, "mrtd"),
            json!([]),
            "no MRTD at all",
        ),
        set(
            "reference-in-capitals",
            "hex in capitals",
            &at(platform, "mrtd/0/value"),
            json!("AB".repeat(48)),
            "lower-case hex",
        ),
        set("policy-version-2", "another version", "/policy/version", json!(2), "version 2"),
        set(
            "policy-unknown-field",
            "a demand that this verifier does not know",
            "/policy/extra",
            json!(1),
            "unknown field",
        ),
        case("policy-missing-field", "a policy never says less than its author thinks")
            .without("/policy/allow_smt")
            .refused(2, "missing field"),
        set(
            "policy-unknown-status",
            "a TCB status that cannot be accepted",
            "/policy/tcb_statuses",
            json!(["UpToDate", "Revoked"]),
            "Revoked",
        ),
        set(
            "policy-unknown-register",
            "a register that is not compared",
            "/policy/required_registers",
            json!(["rtmr3"]),
            "rtmr3",
        ),
        set(
            "policy-unknown-attribute",
            "an attribute without a name",
            "/policy/td_attributes_allowed",
            json!(["SEPT_VE_DISABLE", "BIT40"]),
            "BIT40",
        ),
        set(
            "policy-unknown-feature",
            "a feature without a name",
            "/policy/xfam_allowed",
            json!(["AVX1024"]),
            "AVX1024",
        ),
        set(
            "policy-identity",
            "an identity that is neither zero nor a register",
            "/policy/mr_owner",
            json!("none"),
            "none",
        ),
        set(
            "policy-event",
            "an event's name that cannot occur",
            "/policy/allowed_events",
            json!(["Debug"]),
            "Debug",
        ),
        set(
            "policy-advisory",
            "an advisory that Intel never numbered",
            "/policy/rejected_advisories",
            json!(["CVE-2024-1"]),
            "CVE-2024-1",
        ),
        set("root-not-pem", "no PEM", "/roots", json!(["root"]), "trust roots"),
        set(
            "root-not-self-signed",
            "a certificate that is no root",
            "/roots",
            json!([leaf]),
            "not a self-signed",
        ),
        case("collateral-unknown-field", "given collateral is as strict as the document's")
            .set("/collateral", honest["document"]["collateral"].clone())
            .set("/collateral/extra", 1)
            .refused(2, "unknown field"),
        case("collateral-as-a-list", "the values of its members")
            .set("/collateral", values(&honest["document"]["collateral"], &COLLATERAL))
            .refused(2, "a list where an object belongs"),
        case("reference-boot-as-a-list", "the values of its members")
            .set(boot, boot_as_a_list)
            .refused(2, "a list where an object belongs"),
        case("policy-as-a-list", "the values of its members, by chance or by hand")
            .set("/policy", values(&honest["policy"], &POLICY))
            .refused(2, "a list where an object belongs"),
        case("policy-extends-unknown", "overrides of a policy that nobody knows")
            .set("/policy", json!({ "version": 1, "extends": "strict" }))
            .refused(2, "strict"),
        case("policy-extends-unknown-field", "an override of a field that does not exist")
            .set("/policy", json!({ "version": 1, "extends": "default", "allow_smp": true }))
            .refused(2, "unknown field"),
        never("service-td", "no evidence says which service TD it is", "allow_service_td", json!(true)),
        never("migratable", "no evidence says which migration TD it is", ALLOWED, allowed("MIGRATABLE")),
        never("servtd-ext", "no evidence says which service TD it is", ALLOWED, allowed("SERVTD_EXT")),
        never("profiling", "the host can profile the TD", ALLOWED, allowed("PROFILING")),
        never(
            "nothing-required",
            "SEPT_VE_DISABLE is demanded whatever a policy says",
            "td_attributes_required",
            json!([]),
        ),
        never("grace-for-nothing", "a time after a date that is not there", "tcb_date_grace_s", json!(60)),
    ]
}

const ALLOWED: &str = "td_attributes_allowed";

fn allowed(attribute: &str) -> Value {
    json!(["SEPT_VE_DISABLE", attribute])
}

/// In the order of the formats' descriptions.
const COLLATERAL: [&str; 10] = [
    "pck_crl_issuer_chain",
    "root_ca_crl",
    "pck_crl",
    "tcb_info_issuer_chain",
    "tcb_info",
    "tcb_info_signature",
    "qe_identity_issuer_chain",
    "qe_identity",
    "qe_identity_signature",
    "pck_certificate_chain",
];
const POLICY: [&str; 29] = [
    "version",
    "tcb_statuses",
    "rejected_advisories",
    "tolerated_advisories",
    "min_tcb_evaluation_data_number",
    "min_tcb_date",
    "tcb_date_grace_s",
    "min_tee_tcb_svn",
    "min_tdx_module_svn",
    "min_qe_svn",
    "min_pce_svn",
    "accepted_mr_seam",
    "accepted_devices",
    "allow_dynamic_platform",
    "allow_cached_keys",
    "allow_smt",
    "td_attributes_required",
    "td_attributes_allowed",
    "xfam_required",
    "xfam_allowed",
    "mr_config_id",
    "mr_owner",
    "mr_owner_config",
    "allow_service_td",
    "required_registers",
    "allowed_events",
    "max_validity_s",
    "max_age_s",
    "clock_skew_s",
];

fn values(object: &Value, members: &[&str]) -> Vec<Value> {
    members.iter().map(|member| object[*member].clone()).collect()
}
