//! `coffer appraise`: an evidence document or a bare quote, offline.

use std::path::PathBuf;

use cofferdam_attest::appraise::Expectations;
use cofferdam_attest::claims;
use cofferdam_attest::evidence::{self, Collateral, Evidence};
use cofferdam_attest::quote;
use serde_json::Value;

use crate::failure::{Failure, Outcome, chain};
use crate::files;
use crate::trust::{self, Trust, unix_now};
use crate::ui::{Ui, printable};

/// What the command line named.
pub(crate) struct Given {
    pub(crate) file: Option<PathBuf>,
    pub(crate) quote: Option<PathBuf>,
    pub(crate) collateral: Option<PathBuf>,
    pub(crate) at: Option<String>,
    pub(crate) repository: Option<String>,
}

pub(crate) fn run(ui: &Ui, given: &Given, trust: &Trust) -> Outcome {
    let now = match &given.at {
        Some(text) => claims::parse_time(text).ok_or_else(|| {
            Failure::usage(format!("{text} is not a time")).hint("a time looks like 2026-01-02T03:04:05Z")
        })?,
        None => unix_now()?,
    };
    let collateral = given.collateral.as_ref().map(|path| -> Outcome<Collateral> {
        Collateral::parse(&files::read(path, evidence::MAX_BYTES)?)
            .map_err(|error| Failure::rejected(format!("{}: {}", path.display(), chain(&error))))
    });
    let collateral = collateral.transpose()?;
    let (judged, what, claims) = match (&given.file, &given.quote) {
        (Some(path), _) => {
            let document = files::read_beginning(path, evidence::MAX_BYTES)?;
            let expectations = Expectations { repository: given.repository.clone(), ..trust.expectations() };
            let (judged, claims) = match Evidence::parse(&document) {
                Ok(mut evidence) => {
                    if collateral.is_some() {
                        evidence.collateral = collateral;
                    }
                    let claims = claims::Claims::decode(&evidence.claims).ok();
                    (trust.appraise(&evidence, &expectations, now), claims)
                }
                Err(_) => (trust.appraise_document(&document, &expectations, now), None),
            };
            (judged, printable(&path.display().to_string()), claims)
        }
        (None, Some(path)) => {
            let bytes = files::read(path, quote::MAX_BYTES)?;
            (
                trust.appraise_quote(&bytes, collateral.as_ref(), now),
                printable(&path.display().to_string()),
                None,
            )
        }
        (None, None) => return Err(Failure::usage("name an evidence document or --quote FILE")),
    };
    let appraisal = &judged.appraisal;
    let verdict = appraisal.verdict();
    let mut object = trust::to_json(&judged, &appraisal.checks, verdict);
    if let (Value::Object(members), Some(claims)) = (&mut object, claims) {
        members.insert("claims".to_owned(), serde_json::to_value(claims).unwrap_or_default());
    }
    let banner = if appraisal.simulated {
        "SIMULATED: signed under a development root, not by Intel hardware\n"
    } else {
        ""
    };
    let report = trust::report(ui, &appraisal.checks);
    ui.result(&format!("{banner}{what}\n{report}{}", judged.paragraphs()), object);
    judged.accept(&what).map_err(|failure| if ui.json { failure.rendered("") } else { failure })?;
    ui.note(&format!("{what}: {}", trust::verdict_name(verdict)));
    Ok(())
}
