//! `coffer appraise`: an evidence document or a bare quote, offline.

use std::path::Path;

use cofferdam_attest::appraise::{Expectations, Verdict};
use cofferdam_attest::claims::Claims;
use cofferdam_attest::ear::Ear;
use cofferdam_attest::evidence::{self, Collateral, Evidence};
use cofferdam_attest::quote;
use cofferdam_protocol::{Digest, WordError};
use serde_json::Value;

use crate::cli::{Appraise, Expected, Format};
use crate::failure::{Failure, Outcome, chain};
use crate::files;
use crate::trust::{self, Judged, Trust, named, unix_now};
use crate::ui::{Tone, Ui, printable};

/// A declaration is at most 1 MiB.
const LARGEST_DECLARATION: usize = 1 << 20;

pub(crate) fn run(ui: &Ui, given: &Appraise, trust: &Trust) -> Outcome {
    if given.show_policy {
        let json = trust.policy.to_json().map_err(|error| Failure::failed(chain(&error)))?;
        let value: Value = serde_json::from_slice(&json).unwrap_or_default();
        ui.result(&String::from_utf8_lossy(&json), value);
        return Ok(());
    }
    let now = match given.at {
        Some(at) => at.unix(),
        None => unix_now()?,
    };
    let collateral = given.collateral.as_deref().map(read_collateral).transpose()?;
    let (judged, what, claims) = match (&given.file, &given.quote) {
        (Some(path), _) => {
            let document = files::read_beginning(path, evidence::MAX_BYTES)?;
            let expectations = expectations(&given.expected, trust)?;
            let (judged, claims) = match Evidence::parse(&document) {
                Ok(mut evidence) => {
                    if collateral.is_some() {
                        evidence.collateral = collateral;
                    }
                    let claims = Claims::decode(&evidence.claims).ok();
                    (trust.appraise(&evidence, &expectations, now), claims)
                }
                Err(_) => (trust.appraise_document(&document, &expectations, now), None),
            };
            (judged, printable(&path.display().to_string()), claims)
        }
        (None, Some(path)) => {
            let bytes = files::read(path, quote::MAX_BYTES)?;
            let judged = trust.appraise_quote(&bytes, collateral.as_ref(), now);
            (judged, printable(&path.display().to_string()), None)
        }
        (None, None) => return Err(Failure::usage("name an evidence document or --quote FILE")),
    };
    match given.format {
        Format::Checks => print_checks(ui, &judged, &what, claims),
        Format::Ear => print_ear(ui, &judged, trust, now)?,
    }
    judged.accept(&what).map_err(|failure| if ui.json { failure.rendered("") } else { failure })?;
    if given.format == Format::Ear {
        ui.note(&format!("{what}: {}", judged.appraisal.verdict().name()));
    }
    Ok(())
}

/// A file that the caller names and that is no collateral says nothing about the machine: a mistake of the caller's.
fn read_collateral(path: &Path) -> Outcome<Collateral> {
    Collateral::parse(&files::read(path, evidence::MAX_BYTES)?).map_err(|error| named(path, &error))
}

fn expectations(expected: &Expected, trust: &Trust) -> Outcome<Expectations> {
    let declaration = expected.declaration.as_deref().map(declaration_digest).transpose()?;
    Ok(Expectations {
        repository: expected.repository.clone(),
        commit: expected.commit,
        declaration,
        endpoint: expected.endpoint.clone(),
        tls_key: expected.tls_key,
        nonce: expected.nonce.clone(),
        channel_binding: expected.channel_binding,
        tag: expected.tag,
        ..trust.expectations()
    })
}

/// `sha256:…` as it is, or the digest of a file.
fn declaration_digest(given: &str) -> Outcome<Digest> {
    match given.starts_with(Digest::PREFIX) {
        true => given.parse().map_err(|error: WordError| Failure::usage(format!("{given}: {error}"))),
        false => Ok(Digest::of(files::read(Path::new(given), LARGEST_DECLARATION)?)),
    }
}

fn print_checks(ui: &Ui, judged: &Judged, what: &str, claims: Option<Claims>) {
    let appraisal = &judged.appraisal;
    let mut object = trust::to_json(judged, &appraisal.checks, appraisal.verdict());
    if let (Value::Object(members), Some(claims)) = (&mut object, claims) {
        members.insert("claims".to_owned(), serde_json::to_value(claims).unwrap_or_default());
    }
    let banner = if appraisal.simulated {
        "SIMULATED: signed under a development root, not by Intel hardware\n"
    } else {
        ""
    };
    let report = trust::report(ui, &appraisal.checks);
    let verdict = appraisal.verdict();
    let tone = match verdict {
        Verdict::Accepted => Tone::Good,
        Verdict::Rejected => Tone::Bad,
        Verdict::CouldNotCheck => Tone::Unsure,
    };
    let verdict = ui.tone(tone, verdict.name());
    ui.result(&format!("{banner}{what}: {verdict}\n{report}{}", judged.paragraphs()), object);
}

/// The claims set alone: with `--json` it bears a `schema_version` more, which its readers ignore.
fn print_ear(ui: &Ui, judged: &Judged, trust: &Trust, now: u64) -> Outcome {
    let failed = |error: &dyn std::error::Error| Failure::failed(format!("cannot write the result: {error}"));
    let build = concat!("coffer ", env!("CARGO_PKG_VERSION"));
    let ear = Ear::new(&judged.appraisal, &trust.policy, build, now)
        .map_err(|error| Failure::failed(chain(&error)))?;
    let ear = serde_json::to_value(ear).map_err(|error| failed(&error))?;
    let text = serde_json::to_string_pretty(&ear).map_err(|error| failed(&error))?;
    ui.result(&format!("{text}\n"), ear);
    Ok(())
}
