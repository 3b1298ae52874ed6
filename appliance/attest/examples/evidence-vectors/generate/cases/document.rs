//! The document as JSON: strict, bounded, one way to read it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Case, Text};

pub(super) fn cases(honest: &Value) -> Vec<Case> {
    let case = |name: &str, about: &str| Case::new(honest, &format!("document/{name}"), about);
    let fails = |case: Case, reason| case.fails(&["document"], reason);
    [
        vec![
            case("honest", "nothing is changed"),
            case("repository-in-another-case", "GitHub's names do not depend on case")
                .set("/expected/repository", "ACME/Shop"),
            case("largest", "a document of exactly 256 KiB").text(Text::PadTo(256 << 10)),
            case("escaped-key", "an escape is another way to write the same name")
                .text(Text::Replace { text: "\"version\"", with: "\"\\u0076ersion\"" }),
            case("trailing-white-space", "JSON white space after the object").text(Text::Append(" \r\n\t")),
        ],
        shape(&case, &fails),
        text(&case, &fails),
        parts(&case, &fails),
        events(&case, &fails),
        lists(&case, &fails),
    ]
    .concat()
}

/// A list of an object's values, in the order in which the format describes them, is not that object.
fn lists(case: New<'_>, fails: Fails<'_>) -> Vec<Case> {
    let listed = |name: &str, about: &str, at: &str, members: &[&str]| {
        let case = case(&format!("{name}-as-a-list"), about);
        let object = case.input.pointer(at).unwrap();
        let values: Vec<Value> = members.iter().map(|member| object[*member].clone()).collect();
        fails(case.set(at, values), "a list where an object belongs")
    };
    let mut whole = case("document-as-a-list", "the values of the document's members");
    let document = &whole.input["document"];
    let quote: String =
        whole.input["quote"].as_array().unwrap().iter().map(|part| part.as_str().unwrap()).collect();
    let members = ["claims", "event_log", "collateral", "image"].map(|member| document[member].clone());
    let [claims, event_log, collateral, image] = members;
    whole.input["document"] = json!([1, claims, quote, event_log, collateral, image]);
    vec![
        fails(whole, "a list where an object belongs"),
        listed(
            "event",
            "the values of an event's members",
            "/document/event_log/0",
            &["mr", "event", "digest", "payload"],
        ),
        listed(
            "image",
            "the values of the image's members",
            "/document/image",
            &["name", "release", "digests"],
        ),
        listed(
            "collateral",
            "the values of the collateral's members",
            "/document/collateral",
            &[
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
            ],
        ),
    ]
}

type New<'a> = &'a dyn Fn(&str, &str) -> Case;
type Fails<'a> = &'a dyn Fn(Case, &'static str) -> Case;

/// Members that are missing, unknown or of another type.
fn shape(case: New<'_>, fails: Fails<'_>) -> Vec<Case> {
    let unknown = [
        ("unknown-field", "/document/extra"),
        ("unknown-field-of-the-image", "/document/image/extra"),
        ("unknown-field-of-the-collateral", "/document/collateral/extra"),
        ("unknown-field-of-an-event", "/document/event_log/0/extra"),
    ];
    let missing = ["version", "claims", "event_log", "image"];
    let mut out: Vec<Case> = unknown
        .iter()
        .map(|(name, at)| {
            fails(case(name, "a member that the format does not know").set(at, 0), "unknown field")
        })
        .collect();
    out.extend(missing.iter().map(|name| {
        let about = format!("no member `{name}`");
        fails(case(&format!("without-{name}"), &about).without(&format!("/document/{name}")), "missing field")
    }));
    out.push(fails(case("without-quote", "no member `quote`").without("/quote"), "missing field"));
    out.push(fails(case("version-2", "another version").set("/document/version", 2), "version 2"));
    out.push(fails(case("version-as-text", "\"1\" is not 1").set("/document/version", "1"), "invalid type"));
    out.push(fails(
        case("version-as-fraction", "1.0 is not 1").set("/document/version", 1.0),
        "invalid type",
    ));
    out.push(fails(
        case("collateral-without-a-part", "no PCK revocation list").without("/document/collateral/pck_crl"),
        "missing field",
    ));
    out
}

/// Bytes that some parsers would take.
fn text(case: New<'_>, fails: Fails<'_>) -> Vec<Case> {
    let step = |name: &str, about: &str, step: Text, reason| fails(case(name, about).text(step), reason);
    let twice = |name: &str, about: &str, text, with| {
        fails(case(name, about).text(Text::Replace { text, with }), "duplicate")
    };
    vec![
        twice("duplicate-key", "`version` twice, with one value", "{", "{\"version\":1,"),
        twice("duplicate-key-of-an-event", "`mr` twice in one event", "\"mr\":3", "\"mr\":3,\"mr\":3"),
        fails(
            case("duplicate-digest-name", "one name twice among the image's digests")
                .set("/document/image/digests", json!({ "uki": digest() }))
                .text(Text::Replace {
                    text: "\"digests\":{",
                    with: "\"digests\":{\"uki\":\"sha256:2222222222222222222222222222222222222222222222222222222222222222\",",
                }),
            "duplicate key",
        ),
        twice(
            "duplicate-key-escaped",
            "`version` twice, once with an escaped letter",
            "{",
            "{\"\\u0076ersion\":1,",
        ),
        step(
            "version-as-exponent",
            "1e0 is not 1",
            Text::Replace { text: "\"version\":1", with: "\"version\":1e0" },
            "invalid type",
        ),
        step(
            "lone-surrogate",
            "an escape that is half of a character",
            Text::Replace { text: "\"name\":\"cofferdam\"", with: "\"name\":\"\\ud800\"" },
            "hex escape",
        ),
        step(
            "raw-line-break",
            "a line feed inside a text",
            Text::Replace { text: "\"name\":\"cofferdam\"", with: "\"name\":\"coffer\ndam\"" },
            "control character",
        ),
        step("trailing-byte", "a letter after the object", Text::Append("x"), "trailing characters"),
        step("trailing-nul", "a zero byte after the object", Text::Append("\0"), "trailing characters"),
        step("trailing-object", "a second object", Text::Append("{}"), "trailing characters"),
        step("byte-order-mark", "U+FEFF in front", Text::Prepend("\u{feff}"), "expected value"),
        step("comment", "a comment in front", Text::Prepend("// evidence\n"), "expected value"),
        step("cut", "the last byte is missing", Text::Cut(1), "EOF"),
        step("too-large", "one byte more than 256 KiB", Text::PadTo((256 << 10) + 1), "at most 262144"),
        fails(case("a-list", "a list in place of the object").set("/document", json!([])), "invalid"),
        fails(case("null", "null in place of the object").set("/document", json!(null)), "invalid type"),
    ]
}

/// Members whose contents break a bound or an encoding.
fn parts(case: New<'_>, fails: Fails<'_>) -> Vec<Case> {
    let base64 = "not standard base64";
    let with = |name: &str, about: &str, at: &str, value: Value, reason| {
        fails(case(name, about).set(&format!("/document/{at}"), value), reason)
    };
    let zeros = |bytes: usize| STANDARD.encode(vec![0; bytes]);
    let digests: Value =
        (0..65).map(|at| (format!("part-{at}"), json!(digest()))).collect::<serde_json::Map<_, _>>().into();
    vec![
        with("claims-not-base64", "a character outside the alphabet", "claims", json!("e30!"), base64),
        with("claims-without-padding", "base64 without its padding", "claims", json!("e30"), base64),
        with("claims-with-url-alphabet", "base64url", "claims", json!("-_8="), base64),
        with("claims-with-line-break", "a line feed inside the base64", "claims", json!("e3\n0="), base64),
        with(
            "claims-not-canonical",
            "bits that are not zero behind the last byte",
            "claims",
            json!("e31="),
            base64,
        ),
        fails(case("quote-not-base64", "a space inside the base64").set("/quote/1", "AA =="), base64),
        with(
            "claims-too-large",
            "more than 16 KiB",
            "claims",
            json!(zeros((16 << 10) + 1)),
            "`claims` is malformed or too large",
        ),
        fails(
            case("quote-too-large", "more than 32 KiB").set("/quote/1", zeros((32 << 10) + 1 - 702)),
            "`quote` is malformed or too large",
        ),
        with("image-without-name", "an empty name", "image/name", json!(""), "`image`"),
        with("image-name-with-control", "a control character", "image/name", json!("coffer\ndam"), "`image`"),
        with("image-release-too-long", "129 characters", "image/release", json!("1".repeat(129)), "`image`"),
        with(
            "image-digest-malformed",
            "a digest without its algorithm",
            "image/digests",
            json!({ "uki": "2".repeat(64) }),
            "`image`",
        ),
        with("image-digests-too-many", "65 digests", "image/digests", digests, "`image`"),
        with(
            "collateral-not-hex",
            "an odd number of hex digits",
            "collateral/pck_crl",
            json!("308"),
            "Odd number",
        ),
    ]
}

/// One event: its register decides which members it has.
fn events(case: New<'_>, fails: Fails<'_>) -> Vec<Case> {
    let first = "/document/event_log/0";
    let own = "/document/event_log/6";
    let too_many: Vec<Value> = (0..1025).map(|_| json!({ "mr": 3, "event": "a", "payload": "" })).collect();
    let long = |bytes: usize| "AAAA".repeat(bytes.div_ceil(3));
    let at = |event: &str, member: &str| format!("{event}/{member}");
    let name = "malformed name";
    vec![
        fails(case("event-of-register-4", "there is no RTMR4").set(&at(own, "mr"), 4), "0, 1, 2 or 3"),
        fails(
            case("event-of-register-minus-1", "a negative register").set(&at(own, "mr"), -1),
            "invalid value",
        ),
        fails(
            case("own-event-with-digest", "the digest of an event of RTMR3 is computed, never read")
                .set(&at(own, "digest"), "0".repeat(96)),
            "no digest field",
        ),
        fails(
            case("own-event-without-payload", "nothing to compute the digest from")
                .without(&at(own, "payload")),
            "needs its payload",
        ),
        fails(
            case("own-event-with-capitals", "a name that is not ours").set(&at(own, "event"), "Declaration"),
            name,
        ),
        fails(
            case("own-event-with-nul", "a zero byte could move between name and payload")
                .set(&at(own, "event"), "a\0b"),
            name,
        ),
        fails(
            case("own-event-too-long", "a payload of more than 16 KiB")
                .set(&at(own, "payload"), long((16 << 10) + 1)),
            "payload too long",
        ),
        fails(
            case("firmware-event-without-digest", "nothing to replay").without(&at(first, "digest")),
            "needs its digest",
        ),
        fails(
            case("firmware-digest-in-capitals", "hex in capitals").set(&at(first, "digest"), "AB".repeat(48)),
            "lower-case hex",
        ),
        fails(
            case("firmware-digest-of-sha256", "32 bytes in place of 48")
                .set(&at(first, "digest"), "ab".repeat(32)),
            "96 lower-case hex",
        ),
        fails(
            case("firmware-event-name", "not a type of the TCG").set(&at(first, "event"), "separator"),
            name,
        ),
        fails(
            case("firmware-event-too-long", "data of more than 1 KiB").set(&at(first, "payload"), long(1025)),
            "payload too long",
        ),
        fails(
            case("too-many-events", "1025 events").set("/document/event_log", too_many),
            "`event_log` is malformed or too large",
        ),
    ]
}

fn digest() -> String {
    format!("sha256:{}", "2".repeat(64))
}
