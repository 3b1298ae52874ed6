//! The vector files: one honest input, and cases that each change it in one way.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "run by hand or by a test; a panic is its error message"
)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cofferdam_attest::evidence::{Collateral, Evidence};
use cofferdam_attest::policy;
use cofferdam_attest::reference::Half;
use serde::Serialize;
use serde_json::{Value, json};

mod cases;
#[path = "../../../tests/common/mod.rs"]
mod common;
mod forge;
mod patch;

use common::Fixture;

/// When everything is appraised, unless a case says otherwise: [`common::NOW`].
const AT: &str = "2027-01-15T08:00:00Z";

/// `policy/vectors/evidence.json`.
pub(crate) fn file() -> String {
    let honest = honest(&Fixture::default());
    written(&honest, &cases::all(&honest))
}

/// `policy/vectors/applied.json`: of an appliance that has applied a declaration after launch.
pub(crate) fn applied() -> String {
    let honest = honest(&cases::applied::fixture());
    written(&honest, &cases::applied::cases(&honest))
}

fn written(honest: &Value, cases: &[Case]) -> String {
    let mut out = String::from("{\n");
    let mut member = |name: &str, value: &str, last: bool| {
        out.push_str(&format!(" {}: {value}{}\n", json!(name), if last { "" } else { "," }));
    };
    member("format", "\"cofferdam appraisal of evidence\"", false);
    member("version", "1", false);
    member("about", "\"README.md beside this file says how to run it\"", false);
    member("input", &indented(honest), false);
    // One line per case, so that a change shows as the case that it changes.
    let lines: Vec<String> = cases
        .iter()
        .map(|case| {
            let patch = patch::between(honest, &case.input);
            let line =
                Line { name: &case.name, about: &case.about, patch, text: &case.text, expect: &case.expect };
            format!("  {}", serde_json::to_string(&line).unwrap())
        })
        .collect();
    member("cases", &format!("[\n{}\n ]", lines.join(",\n")), true);
    out.push_str("}\n");
    out
}

/// One line of the file.
#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    about: &'a str,
    patch: Vec<patch::Operation>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    text: &'a [Text],
    expect: &'a Expect,
}

/// One way of being accepted, refused or unknown.
#[derive(Clone)]
struct Case {
    name: String,
    about: String,
    input: Value,
    text: Vec<Text>,
    expect: Expect,
}

/// A step on the document's bytes, for what no JSON value can say.
#[derive(Clone, Serialize)]
#[serde(rename_all = "snake_case")]
enum Text {
    /// The first occurrence of one text gives way to another.
    Replace { text: &'static str, with: &'static str },
    /// In front of the document.
    Prepend(&'static str),
    /// Behind it.
    Append(&'static str),
    /// So many bytes less at the end.
    Cut(usize),
    /// Spaces at the end until the document has so many bytes.
    PadTo(usize),
}

/// What has to come out.
#[derive(Clone, Default, Serialize)]
struct Expect {
    /// `accepted`, `rejected`, `could_not_check`; or `refused_input` when the appraisal does not even begin.
    verdict: &'static str,
    /// Exit code of `coffer appraise`.
    exit: u8,
    /// Checks that are false, in their order.
    failed: Vec<&'static str>,
    /// Checks that could not be made, in their order.
    unknown: Vec<&'static str>,
    /// Part of the reason that this implementation gives.
    reason: &'static str,
}

/// The input that is accepted; its members are what a relying party brings.
fn honest(fixture: &Fixture) -> Value {
    let reference = common::reference();
    let halves = [Half::Image(reference.images[0].clone()), Half::Platform(reference.platforms[0].clone())];
    let halves: Vec<Value> = halves.iter().map(|half| value(&half.to_json().unwrap())).collect();
    let policy: String =
        policy::DEFAULT_TEXT.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let (document, quote) = document(&fixture.evidence());
    json!({
        "at": AT,
        "document": document,
        "quote": quote,
        "collateral": null,
        "references": halves,
        "roots": [fixture.platform.root_pem()],
        "policy": value(policy.as_bytes()),
        "expected": { "repository": "acme/shop" },
    })
}

fn value(json: &[u8]) -> Value {
    serde_json::from_slice(json).unwrap()
}

/// The document without its quote, and the quote's base64 in two parts: header, body and signature (and two bytes of the
/// attestation key, to make the first part's length a multiple of three), then what is the same in nearly every case.
fn document(evidence: &Evidence) -> (Value, Value) {
    let mut document = value(&evidence.to_json().unwrap());
    document.as_object_mut().unwrap().remove("quote");
    let (first, second) = evidence.quote.split_at(evidence.quote.len().min(forge::KEY + 2));
    (document, json!([STANDARD.encode(first), STANDARD.encode(second)]))
}

fn collateral(collateral: &Collateral) -> Value {
    value(&collateral.to_json().unwrap())
}

/// The value with its keys sorted, whatever serde_json was built with, one space deep per level below the file's.
fn indented(object: &Value) -> String {
    let mut object = object.clone();
    object.sort_all_objects();
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    object.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).unwrap();
    String::from_utf8(out).unwrap().replace('\n', "\n ")
}

impl Case {
    /// The honest input under a name; accepted until something else is said.
    fn new(honest: &Value, name: &str, about: &str) -> Self {
        let expect = Expect { verdict: "accepted", ..Expect::default() };
        Self { name: name.to_owned(), about: about.to_owned(), input: honest.clone(), text: vec![], expect }
    }

    /// With this evidence document.
    fn evidence(mut self, evidence: &Evidence) -> Self {
        (self.input["document"], self.input["quote"]) = document(evidence);
        self
    }

    /// With another value at a JSON pointer, which is there already or whose parent is an object.
    fn set(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match self.input.pointer_mut(pointer) {
            Some(at) => *at = value.into(),
            None => self.input.pointer_mut(parent).unwrap()[key] = value.into(),
        }
        self
    }

    /// Without the member of an object.
    fn without(mut self, pointer: &str) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        self.input.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key).unwrap();
        self
    }

    fn text(mut self, step: Text) -> Self {
        self.text.push(step);
        self
    }

    /// Exactly these checks are false.
    fn fails(mut self, failed: &[&'static str], reason: &'static str) -> Self {
        self.expect =
            Expect { verdict: "rejected", exit: 3, failed: failed.to_vec(), reason, ..Expect::default() };
        self
    }

    /// Exactly these checks could not be made, and none is false.
    fn unknown(mut self, unknown: &[&'static str], reason: &'static str) -> Self {
        let verdict = "could_not_check";
        self.expect = Expect { verdict, exit: 6, unknown: unknown.to_vec(), reason, ..Expect::default() };
        self
    }

    /// Besides those that are false, these could not be made.
    fn and_unknown(mut self, unknown: &[&'static str]) -> Self {
        self.expect.unknown = unknown.to_vec();
        self
    }

    /// What the relying party brings is unusable: no appraisal, and this exit code.
    fn refused(mut self, exit: u8, reason: &'static str) -> Self {
        self.expect = Expect { verdict: "refused_input", exit, reason, ..Expect::default() };
        self
    }
}
