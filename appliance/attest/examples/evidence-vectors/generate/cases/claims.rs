//! The claims: shape, commitment, agreement with the log and with what the relying party expects, time.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cofferdam_attest::challenge::{Challenge, MAX_PATH, Tree, leaf};
use cofferdam_attest::claims::{Claims, report_data};
use cofferdam_attest::event_log::Event;
use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::release::Tag;
use cofferdam_protocol::evidence::Nonce;
use serde_json::{Value, json};
use tdx_sim::TdReport;

use super::Case;
use super::common::{self, Fixture, NOW};

pub(super) fn cases(honest: &Value) -> Vec<Case> {
    [
        shape(honest),
        tampered(honest),
        contradicted(honest),
        expected(honest),
        challenges(honest),
        times(honest),
    ]
    .concat()
}

fn nines(text: &str) -> String {
    format!("{text}{}", "9".repeat(if text.is_empty() { 40 } else { 64 }))
}

/// Evidence whose quote commits to exactly these bytes.
fn committed(claims: &[u8]) -> Evidence {
    let fixture = Fixture::default();
    let report = TdReport::new(common::registers(&fixture.events), report_data(claims));
    Evidence { claims: claims.to_vec(), quote: fixture.platform.quote(&report), ..fixture.evidence() }
}

/// The claims' values in the order in which the format describes them.
fn listed(claims: &Claims) -> Value {
    json!([
        claims.version,
        claims.repository,
        claims.commit,
        claims.declaration,
        claims.endpoint,
        claims.tls_key,
        claims.vault_key,
        claims.issued_at,
        claims.expires_at,
        claims.sealed,
        claims.state_epoch,
        claims.nonce,
        claims.channel_binding,
    ])
}

/// Evidence of an appliance that claims this.
fn claimed(change: impl FnOnce(&mut Claims)) -> Evidence {
    let mut fixture = Fixture::default();
    change(&mut fixture.claims);
    fixture.evidence()
}

/// Committed to, and malformed all the same.
fn shape(honest: &Value) -> Vec<Case> {
    let with = |name: &str, about: &str, bytes: &[u8], reason| {
        Case::new(honest, &format!("claims/{name}"), about)
            .evidence(&committed(bytes))
            .fails(&["claims"], reason)
    };
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_slice(&common::claims().encode().unwrap()).unwrap();
        change(&mut value);
        value.sort_all_objects();
        value.to_string().into_bytes()
    };
    let text = String::from_utf8(common::claims().encode().unwrap()).unwrap();
    let field = |name: &'static str, value: Value| changed(&|claims| claims[name] = value.clone());
    let mut out = vec![
        with("not-json", "no JSON", b"acme/shop", "not acceptable JSON"),
        with("empty", "no byte", b"", "not acceptable JSON"),
        with(
            "trailing-byte",
            "a byte after the object",
            format!("{text}x").as_bytes(),
            "trailing characters",
        ),
        with(
            "duplicate-key",
            "`sealed` twice",
            text.replacen('{', "{\"sealed\":false,", 1).as_bytes(),
            "duplicate field",
        ),
        with(
            "unknown-field",
            "a member that the format does not know",
            &changed(&|c| c["extra"] = json!(1)),
            "unknown field",
        ),
        with(
            "missing-field",
            "no `state_epoch`",
            &changed(&|c| drop(c.as_object_mut().unwrap().remove("state_epoch"))),
            "missing field",
        ),
        with("version-2", "another version", &field("version", json!(2)), "version 2"),
        with(
            "as-a-list",
            "the values of its members",
            listed(&common::claims()).to_string().as_bytes(),
            "a list where an object belongs",
        ),
    ];
    let malformed = [
        ("repository", json!("acme/../shop")),
        ("commit", json!("2".repeat(39))),
        ("declaration", json!("1".repeat(64))),
        ("endpoint", json!("shop.example")),
        ("tls_key", json!(format!("sha256:{}", "A".repeat(64)))),
        ("vault_key", json!(STANDARD.encode([0; 31]))),
        ("issued_at", json!("2027-01-15T07:50:00+00:00")),
        ("expires_at", json!("2027-01-16 07:50:00Z")),
        ("nonce", json!(STANDARD.encode([1; 15]))),
        ("channel_binding", json!(STANDARD.encode([1; 31]))),
    ];
    out.extend(malformed.into_iter().map(|(name, value)| {
        let (case, about) = (format!("{}-malformed", name.replace('_', "-")), format!("`{name}` is {value}"));
        with(&case, &about, &field(name, value), reason_of(name))
    }));
    out.push(
        Case::new(
            honest,
            "claims/other-order",
            "another order of keys and white space: the bytes count, not their form",
        )
        .evidence(&committed(format!(" {}\n", String::from_utf8(changed(&|_| {})).unwrap()).as_bytes())),
    );
    out
}

fn reason_of(name: &str) -> &'static str {
    match name {
        "repository" => "claim `repository` is malformed",
        "commit" => "claim `commit` is malformed",
        "declaration" => "claim `declaration` is malformed",
        "endpoint" => "claim `endpoint` is malformed",
        "tls_key" => "claim `tls_key` is malformed",
        "vault_key" => "claim `vault_key` is malformed",
        "issued_at" => "claim `issued_at` is malformed",
        "expires_at" => "claim `expires_at` is malformed",
        "nonce" => "claim `nonce` is malformed",
        _ => "claim `channel_binding` is malformed",
    }
}

/// Changed after the quote was made, as somebody who edits `attestation.json` would.
fn tampered(honest: &Value) -> Vec<Case> {
    let bytes = |name: &str, about: &str, claims: Vec<u8>, failed: &[&'static str], reason| {
        let evidence = Evidence { claims, ..Fixture::default().evidence() };
        Case::new(honest, &format!("report-data/{name}"), about).evidence(&evidence).fails(failed, reason)
    };
    let with = |name: &str, change: fn(&mut Claims), failed: &[&'static str], reason| {
        let mut claims = common::claims();
        change(&mut claims);
        bytes(
            name,
            &format!("`{}` was changed", name.replace('-', "_")),
            claims.encode().unwrap(),
            failed,
            reason,
        )
    };
    vec![
        with(
            "repository",
            |c| c.repository = common::word("mallory/shop"),
            &["report_data", "repository"],
            "repository was changed",
        ),
        with(
            "commit",
            |c| c.commit = common::word(&nines("")),
            &["report_data", "commit"],
            "commit was changed",
        ),
        with(
            "declaration",
            |c| c.declaration = common::word(&nines("sha256:")),
            &["report_data", "declaration"],
            "declaration was changed",
        ),
        with(
            "endpoint",
            |c| c.endpoint = common::word("mallory.example:443"),
            &["report_data", "endpoint"],
            "endpoint was changed",
        ),
        with(
            "tls-key",
            |c| c.tls_key = common::word(&nines("sha256:")),
            &["report_data", "tls_key"],
            "tls_key was changed",
        ),
        with("vault-key", |c| c.vault_key = [9; 32].into(), &["report_data"], "vault_key"),
        with("state-epoch", |c| c.state_epoch = 7, &["report_data"], "state_epoch"),
        with("sealed", |c| c.sealed = true, &["report_data", "sealed"], "does not commit"),
        with(
            "issued-at",
            |c| c.issued_at = common::time(NOW - 17),
            &["report_data"],
            "issued_at was changed",
        ),
        with(
            "expires-at",
            |c| c.expires_at = common::time(NOW + 3 * 86_400),
            &["report_data"],
            "expires_at was changed",
        ),
        bytes(
            "white-space",
            "a space behind the claims",
            [common::claims().encode().unwrap(), b" ".to_vec()].concat(),
            &["report_data"],
            "does not commit",
        ),
        bytes(
            "malformed",
            "changed into something that is no claims",
            b"{}".to_vec(),
            &["report_data", "claims"],
            "the quote does not commit to these claims",
        ),
    ]
}

/// Committed to, but not what was measured.
fn contradicted(honest: &Value) -> Vec<Case> {
    let with = |name: &str, about: &str, evidence: &Evidence| {
        Case::new(honest, &format!("claims/{name}"), about).evidence(evidence)
    };
    let differs = |claim: &'static str, change: fn(&mut Claims), reason| {
        let name = format!("{}-not-measured", claim.replace('_', "-"));
        with(&name, "another value than in the event log", &claimed(change)).fails(&[claim], reason)
    };
    let sealed = |claim: bool| {
        let mut fixture = Fixture::default();
        fixture.claims.sealed = claim;
        fixture.events.push(Event::new("sealed", "{}"));
        fixture.evidence()
    };
    let both = Case::new(
        honest,
        "claims/repository-not-expected",
        "measured so, but not the repository that was asked for",
    )
    .set("/expected/repository", "acme/other")
    .fails(&["repository"], "is acme/shop, expected acme/other");
    let nobody = Case::new(
        honest,
        "claims/repository-not-asked-for",
        "nothing is expected: the log and the claims agree",
    )
    .without("/expected/repository");
    vec![
        both,
        nobody,
        with(
            "repository-replaced",
            "claims, quote and expectation agree, the log does not",
            &claimed(|c| c.repository = common::word("mallory/shop")),
        )
        .set("/expected/repository", "mallory/shop")
        .fails(&["repository"], "the event log says acme/shop"),
        differs("commit", |c| c.commit = common::word(&nines("")), "the event log says 2222"),
        differs(
            "declaration",
            |c| c.declaration = common::word(&nines("sha256:")),
            "the event log says sha256:1111",
        ),
        differs(
            "endpoint",
            |c| c.endpoint = common::word("mallory.example:443"),
            "the event log says shop.example:8443",
        ),
        differs("tls_key", |c| c.tls_key = common::word(&nines("sha256:")), "the event log says sha256:3333"),
        with("sealed", "claimed and measured", &sealed(true)),
        with("sealed-not-measured", "claimed and not measured", &claimed(|c| c.sealed = true))
            .fails(&["sealed"], "claimed true, the event log says false"),
        with("sealed-not-claimed", "measured and not claimed", &sealed(false))
            .fails(&["sealed"], "claimed false, the event log says true"),
    ]
}

/// One quote over the challenges of many: five, the third of which is the relying party's.
fn challenges(honest: &Value) -> Vec<Case> {
    let nonce = |number: u8| Nonce::new(vec![number; 16]).unwrap();
    let binding = |number: u8| Some([0x40 + number; 32].into());
    let tree =
        |count: u8| Tree::new((1..=count).map(|n| leaf(&nonce(n), binding(n).as_ref())).collect()).unwrap();
    let of = |tree: &Tree, number: u8| Challenge {
        nonce: nonce(number),
        channel_binding: binding(number),
        index: u32::from(number) - 1,
        path: tree.path(u32::from(number) - 1),
    };
    let five = tree(5);
    let ours = of(&five, 3);
    let with = |name: &str, about: &str, challenge: Option<Challenge>| {
        let evidence = Evidence { challenge, ..claimed(|claims| claims.challenges = Some(five.root())) };
        Case::new(honest, &format!("challenge/{name}"), about)
            .evidence(&evidence)
            .set("/expected/nonce", STANDARD.encode([3; 16]))
            .set("/expected/channel_binding", STANDARD.encode([0x43; 32]))
    };
    let shape = |name: &str, about: &str, challenge: Value| {
        Case::new(honest, &format!("challenge/{name}"), about)
            .evidence(&claimed(|claims| claims.challenges = Some(five.root())))
            .set("/document/challenge", challenge)
            .fails(&["document"], "evidence")
    };
    let written = |change: &dyn Fn(&mut Value)| {
        let mut value = serde_json::to_value(&ours).unwrap();
        change(&mut value);
        value
    };
    let lost = &["challenge", "nonce", "channel_binding"];
    let forged = |name: &str, about: &str, change: &dyn Fn(&mut Challenge)| {
        let mut challenge = ours.clone();
        change(&mut challenge);
        with(name, about, Some(challenge)).fails(lost, "does not lead to the root")
    };
    let both = claimed(|claims| {
        claims.challenges = Some(five.root());
        claims.nonce = Some(nonce(3));
    });
    vec![
        with(
            "one-of-five",
            "the nonce and the binding are under the root that the claims carry",
            Some(ours.clone()),
        ),
        with("another-of-five", "under the root, and somebody else's", Some(of(&five, 4)))
            .fails(&["nonce", "channel_binding"], "expected AwMD"),
        Case::new(honest, "challenge/only-one", "a tree of a single challenge: the root is its leaf")
            .evidence(&Evidence {
                challenge: Some(of(&tree(1), 1)),
                ..claimed(|claims| claims.challenges = Some(tree(1).root()))
            })
            .set("/expected/nonce", STANDARD.encode([1; 16])),
        with("absent", "the claims carry the root of many, and the document none of them", None)
            .fails(lost, "none of them"),
        Case::new(
            honest,
            "challenge/without-root",
            "the document carries a challenge, and the claims no root",
        )
        .evidence(&Evidence { challenge: Some(ours.clone()), ..claimed(|_| ()) })
        .fails(&["challenge"], "no root"),
        Case::new(honest, "challenge/beside-a-nonce", "the root of many, and the nonce of one")
            .evidence(&Evidence { challenge: Some(ours.clone()), ..both })
            .fails(&["claims"], "challenges"),
        Case::new(honest, "challenge/of-another-tree", "a path that leads to the root of another quote")
            .evidence(&Evidence {
                challenge: Some(of(&tree(6), 3)),
                ..claimed(|claims| claims.challenges = Some(five.root()))
            })
            .fails(&["challenge"], "does not lead to the root"),
        forged("other-index", "the same siblings, to be put on other sides", &|c| c.index ^= 1),
        forged("higher-index", "an index beyond the tree, with the same low bits", &|c| c.index |= 8),
        forged("last-index", "the largest index", &|c| c.index = u32::MAX),
        forged("other-nonce", "a nonce that was not asked over", &|c| c.nonce = nonce(9)),
        forged("longer-nonce", "the nonce with a byte more", &|c| c.nonce = Nonce::new(vec![3; 17]).unwrap()),
        forged("other-binding", "a binding that was not asked over", &|c| c.channel_binding = binding(9)),
        forged("no-binding", "the binding is left out", &|c| c.channel_binding = None),
        forged("changed-sibling", "one bit of a sibling", &|c| {
            let mut sibling = *c.path[1].as_bytes();
            sibling[31] ^= 1;
            c.path[1] = sibling.into();
        }),
        forged("swapped-siblings", "two siblings in each other's place", &|c| c.path.swap(0, 1)),
        forged("shorter-path", "the last sibling is left out", &|c| c.path.truncate(2)),
        forged("longer-path", "one sibling more", &|c| c.path.push([0; 32].into())),
        forged("no-path", "no sibling at all", &|c| c.path.clear()),
        forged("longest-path", "as long as a path may be", &|c| c.path.resize(MAX_PATH, [0; 32].into())),
        forged("padding", "what fills the tree up is nobody's challenge", &|c| {
            c.index = 5;
            c.path = five.path(5);
        }),
        forged("node-as-leaf", "two children of a node as a nonce", &|c| {
            let children = [*five.path(1)[0].as_bytes(), *five.path(0)[0].as_bytes()].concat();
            c.nonce = Nonce::new(children).unwrap();
            c.channel_binding = None;
            c.index = 0;
            c.path = five.path(0).split_off(1);
        }),
        shape(
            "too-long-path",
            "a path beyond the bound",
            written(&|value| {
                value["path"] = json!(vec![STANDARD.encode([0; 32]); MAX_PATH + 1]);
            }),
        ),
        shape(
            "short-sibling",
            "a sibling of 31 bytes",
            written(&|value| {
                value["path"][0] = json!(STANDARD.encode([0; 31]));
            }),
        ),
        shape("unknown-member", "a member that nobody knows", written(&|value| value["x"] = json!(1))),
        shape("negative-index", "an index below zero", written(&|value| value["index"] = json!(-1))),
        shape(
            "short-nonce",
            "a nonce of 15 bytes",
            written(&|value| {
                value["nonce"] = json!(STANDARD.encode([3; 15]));
            }),
        ),
    ]
}

/// Committed to and measured, but not what the relying party knows from elsewhere.
fn expected(honest: &Value) -> Vec<Case> {
    let case = |name: &str, about: &str| Case::new(honest, &format!("expected/{name}"), about);
    let claims = common::claims();
    let differs = |claim: &'static str, value: String, reason| {
        let at = format!("/expected/{claim}");
        case(&claim.replace('_', "-"), "another value is expected").set(&at, value).fails(&[claim], reason)
    };
    let on_request = claimed(|c| {
        c.nonce = Some(common::word(&STANDARD.encode([1; 16])));
        c.channel_binding = Some([2; 32].into());
    });
    let fresh = |name: &str, about: &str, nonce: u8, binding: u8| {
        case(name, about)
            .evidence(&on_request)
            .set("/expected/nonce", STANDARD.encode([nonce; 16]))
            .set("/expected/channel_binding", STANDARD.encode([binding; 32]))
    };
    let tag = Tag::for_claims(&claims.encode().unwrap()).unwrap().to_string();
    let (time, digest) = tag.rsplit_once('-').unwrap();
    let earlier = tag.replace(&claims.issued_at.compact(), "20270115T074959Z");
    assert_ne!(earlier, tag);
    assert_ne!(digest, "00000000");
    vec![
        case("everything", "each claim is known from elsewhere")
            .set("/expected/commit", claims.commit.to_string())
            .set("/expected/declaration", claims.declaration.to_string())
            .set("/expected/endpoint", claims.endpoint.to_string())
            .set("/expected/tls_key", claims.tls_key.to_string())
            .set("/expected/tag", tag.clone()),
        differs("commit", nines(""), "expected 9999"),
        differs("declaration", nines("sha256:"), "expected sha256:9999"),
        differs("endpoint", "other.example:1".to_owned(), "expected other.example:1"),
        differs("tls_key", nines("sha256:"), "expected sha256:9999"),
        fresh("nonce-and-binding", "evidence on request", 1, 2),
        fresh("nonce-of-another", "evidence that somebody else asked for", 3, 2)
            .fails(&["nonce"], "expected AwMD"),
        fresh("binding-of-another", "evidence that was relayed from another connection", 1, 3)
            .fails(&["channel_binding"], "expected AwMD"),
        case("nonce-absent", "evidence that nobody asked for")
            .set("/expected/nonce", STANDARD.encode([1; 16]))
            .fails(&["nonce"], "is absent"),
        case("binding-absent", "evidence that is bound to no connection")
            .set("/expected/channel_binding", STANDARD.encode([1; 32]))
            .fails(&["channel_binding"], "is absent"),
        case("tag-of-other-claims", "a release whose tag names other claims")
            .set("/expected/tag", format!("{time}-00000000"))
            .fails(&["claims"], "the release's tag says 00000000"),
        case("tag-of-another-time", "a release whose tag says another time")
            .set("/expected/tag", earlier)
            .fails(&["issued_at"], "the release's tag says 2027-01-15T07:49:59Z"),
    ]
}

fn times(honest: &Value) -> Vec<Case> {
    let with = |name: &str, about: &str, issued: u64, expires: u64| {
        let evidence = claimed(|claims| {
            claims.issued_at = common::time(issued);
            claims.expires_at = common::time(expires);
        });
        Case::new(honest, &format!("time/{name}"), about).evidence(&evidence)
    };
    let day = 86_400;
    vec![
        with("clock-ahead", "issued 300 s from now", NOW + 300, NOW + day),
        with("from-the-future", "issued 301 s from now", NOW + 301, NOW + day)
            .fails(&["issued_at"], "in the future"),
        with("clock-behind", "expired 300 s ago", NOW - day, NOW - 300),
        with("expired", "expired 301 s ago", NOW - day, NOW - 301).fails(&["expires_at"], "has passed"),
        with("oldest", "a week old", NOW - 7 * day, NOW - 1),
        with("too-old", "a week and a second old", NOW - 7 * day - 1, NOW - 2)
            .fails(&["issued_at"], "at most 604800 s allowed"),
        with("longest", "valid for a week", NOW - 10, NOW - 10 + 7 * day),
        with("too-long", "valid for a week and a second", NOW - 10, NOW - 9 + 7 * day)
            .fails(&["expires_at"], "valid for 604801 s"),
        with("no-validity", "expires when it was issued", NOW - 10, NOW - 10)
            .fails(&["expires_at"], "is not after issued_at"),
        with("reversed", "expires before it was issued", NOW - 10, NOW - 20)
            .fails(&["expires_at"], "is not after issued_at"),
    ]
}
