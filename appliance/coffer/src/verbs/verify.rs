//! `coffer verify`: fetch a repository's release attestation and say what holds.

use std::fmt::Write as _;
use std::path::Path;

use cofferdam_attest::appraise::{Check, Expectations, Outcome as CheckOutcome, Verdict};
use cofferdam_attest::claims::Claims;
use serde_json::{Value, json};

use crate::failure::{Code, Failure, Outcome, chain};
use crate::files;
use crate::source::{self, DECLARATION, Source};
use crate::trust::{self, Judged, Trust, unix_now};
use crate::ui::{Tone, Ui};

/// A release attestation after its appraisal, whatever came out.
pub(crate) struct Verified {
    pub(crate) claims: Claims,
    judged: Judged,
    checks: Vec<Check>,
    verdict: Verdict,
    release: source::Release,
}

pub(crate) async fn run(
    ui: &Ui,
    repository: &str,
    save: Option<&Path>,
    commit: Option<&str>,
    trust: &Trust,
    source: &Source,
) -> Outcome {
    let verified = appraise_newest(repository, commit, trust, source).await?;
    print(ui, repository, &verified);
    if let Some(failure) = failure(repository, &verified) {
        return Err(if ui.json { failure.rendered("") } else { failure });
    }
    if let Some(path) = save {
        files::write(path, &verified.release.document)?;
    }
    Ok(())
}

/// The newest release attestation, accepted; anything else is a failure.
pub(crate) async fn verified_release(
    repository: &str,
    commit: Option<&str>,
    trust: &Trust,
    source: &Source,
) -> Outcome<Verified> {
    let verified = appraise_newest(repository, commit, trust, source).await?;
    failure(repository, &verified).map_or(Ok(verified), Err)
}

async fn appraise_newest(
    repository: &str,
    commit: Option<&str>,
    trust: &Trust,
    source: &Source,
) -> Outcome<Verified> {
    let release = source.newest().await?;
    let claims = Claims::decode(&release.evidence.claims).map_err(|error| {
        Failure::rejected(format!("the claims of release {} are malformed: {}", release.tag, chain(&error)))
    })?;
    let mut expectations = Expectations {
        repository: Some(repository.to_owned()),
        tag: Some(release.tag.clone()),
        ..trust.expectations()
    };
    let declaration = declaration_check(source, &claims, commit, &mut expectations).await;
    let judged = trust.appraise(&release.evidence, &expectations, unix_now()?);
    let mut checks = judged.appraisal.checks.clone();
    checks.push(declaration);
    let any = |outcome| checks.iter().any(|check| check.outcome == outcome);
    let verdict = match judged.appraisal.verdict() {
        _ if any(CheckOutcome::Fail) => Verdict::Rejected,
        Verdict::Accepted if any(CheckOutcome::CouldNotCheck) => Verdict::CouldNotCheck,
        verdict => verdict,
    };
    Ok(Verified { claims, judged, checks, verdict, release })
}

/// The repository's declaration at the claimed commit; what it says becomes an expectation, so that each claim that
/// differs is named.
async fn declaration_check(
    source: &Source,
    claims: &Claims,
    commit: Option<&str>,
    expectations: &mut Expectations,
) -> Check {
    let check = |outcome, detail: String| Check { name: "repository_declaration", outcome, detail };
    let bytes = match source.declaration(claims, commit).await {
        Ok(bytes) => bytes,
        Err(failure) if failure.code == Code::Rejected => return check(CheckOutcome::Fail, failure.message),
        Err(failure) => return check(CheckOutcome::CouldNotCheck, failure.message),
    };
    let Ok(declared) = cofferdam_declaration::Declaration::parse(&bytes) else {
        return check(CheckOutcome::Fail, format!("{DECLARATION} at {} is not a declaration", claims.commit));
    };
    expectations.declaration = Some(cofferdam_declaration::digest(&bytes));
    expectations.endpoint = Some(declared.endpoint.to_string());
    if declared.repository.to_string() != claims.repository {
        return check(
            CheckOutcome::Fail,
            format!("{DECLARATION} declares {}, not {}", declared.repository, claims.repository),
        );
    }
    check(CheckOutcome::Pass, format!("{DECLARATION} at {} on the default branch", claims.commit))
}

fn failure(repository: &str, verified: &Verified) -> Option<Failure> {
    let what = format!("release attestation {} of {repository}", verified.release.tag);
    trust::verdict_failure(verified.verdict, &verified.checks, &what)
        .map(|failure| verified.judged.explained(failure))
}

fn print(ui: &Ui, repository: &str, verified: &Verified) {
    let mut text = String::new();
    let claims = &verified.claims;
    if verified.judged.appraisal.simulated {
        let _ = writeln!(
            text,
            "{}",
            ui.tone(Tone::Unsure, "SIMULATED: signed under a development root, not by Intel hardware")
        );
    }
    let _ = writeln!(text, "{repository}  {}", verified.release.page);
    text.push_str(&trust::report(ui, &verified.checks));
    text.push_str(&verified.judged.paragraphs());
    if verified.verdict == Verdict::Accepted {
        let _ = writeln!(
            text,
            "{}: {} at {}, commit {:.12}, from {} until {}",
            ui.tone(Tone::Good, "verified"),
            claims.repository,
            claims.endpoint,
            claims.commit,
            claims.issued_at,
            claims.expires_at
        );
    }
    let mut object = trust::to_json(&verified.judged, &verified.checks, verified.verdict);
    if let Value::Object(members) = &mut object {
        members.insert(
            "release".to_owned(),
            json!({ "tag": verified.release.tag.to_string(), "url": verified.release.page }),
        );
        members.insert("claims".to_owned(), serde_json::to_value(claims).unwrap_or_default());
    }
    ui.result(&text, object);
}
