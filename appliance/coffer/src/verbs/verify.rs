//! `coffer verify`: fetch a repository's release attestation and say what holds.

use std::fmt::Write as _;
use std::path::Path;

use cofferdam_attest::appraise::{Appraisal, Verdict};
use cofferdam_attest::event_log::payload::State;
use cofferdam_github::Requests;
use cofferdam_protocol::certificate::CertificateClaim;
use cofferdam_protocol::{Commit, Repository};
use serde_json::{Value, json};

use crate::cli;
use crate::failure::{Code, Failure, Outcome};
use crate::files;
use crate::newest::{self, Found, Verified, Wanted};
use crate::source::Source;
use crate::trust::{self, Trust};
use crate::ui::{Tone, Ui};

pub(crate) async fn run(
    ui: &Ui,
    repository: &Repository,
    save: Option<&Path>,
    commit: Option<Commit>,
    wait: cli::Wait,
    trust: &Trust,
    source: &Source,
) -> Outcome {
    let search = newest::newest(repository, commit.into(), trust, source);
    let found = super::saying(ui, &source.waiting(), search).await;
    let asked = trust.requests + source.requests();
    super::say_requests(ui, asked);
    let found = found?;
    let failure = failure(repository, &found);
    if wait.wait && failure.as_ref().is_some_and(|failure| failure.code == Code::CouldNotCheck) {
        // It is asked again; what holds then is printed.
        return failure.map_or(Ok(()), Err);
    }
    print(ui, repository, &found, asked);
    if let Some(failure) = failure {
        return Err(if ui.json { failure.rendered("") } else { failure });
    }
    if let Some(path) = save {
        files::write(path, &found.verified.document)?;
    }
    Ok(())
}

/// The newest release attestation, accepted; anything else is a failure.
pub(crate) async fn verified_release(
    ui: &Ui,
    repository: &Repository,
    wanted: Wanted,
    trust: &Trust,
    source: &Source,
) -> Outcome<Verified> {
    let search = newest::newest(repository, wanted, trust, source);
    let found = super::saying(ui, &source.waiting(), search).await?;
    match failure(repository, &found) {
        Some(failure) => Err(failure),
        None => {
            for line in found.skipped.lines() {
                ui.detail(&format!("passed over: {line}"));
            }
            Ok(found.verified)
        }
    }
}

/// Why what was found is not accepted; `None` when it is.
pub(super) fn failure(repository: &Repository, found: &Found) -> Option<Failure> {
    let verified = &found.verified;
    let what = format!("release attestation {} of {repository}", verified.tag);
    // What is shown may be false where the answer is open: something else could not be checked.
    let mut failure = match (found.verdict, verified.verdict) {
        (Verdict::CouldNotCheck, Verdict::Rejected) => {
            Failure::could_not_check(format!("{what} is refused, and not all others could be checked"))
        }
        (verdict, _) => trust::verdict_failure(verdict, &verified.checks, &what)
            .map(|failure| verified.judged.explained(failure))?,
    };
    failure.hint = failure.hint.or(found.hint.clone());
    let others = found.skipped.lines();
    for line in others.iter().filter(|line| !line.starts_with(&verified.tag.to_string())) {
        let _ = write!(failure.message, "\n  also {line}");
    }
    Some(failure)
}

fn print(ui: &Ui, repository: &Repository, found: &Found, asked: Requests) {
    let mut text = String::new();
    let verified = &found.verified;
    let claims = &verified.claims;
    if verified.judged.appraisal.simulated {
        let _ = writeln!(
            text,
            "{}",
            ui.tone(Tone::Unsure, "SIMULATED: signed under a development root, not by Intel hardware")
        );
    }
    let _ = match found.verdict {
        Verdict::Accepted => writeln!(
            text,
            "{}: {} at {}, commit {:.12}, from {} until {}",
            ui.tone(Tone::Good, "verified"),
            claims.repository,
            claims.endpoint,
            claims.commit,
            claims.issued_at,
            claims.expires_at
        ),
        refused => {
            let tone = if refused == Verdict::Rejected { Tone::Bad } else { Tone::Unsure };
            writeln!(text, "{}: {repository}", ui.tone(tone, refused.name()))
        }
    };
    if found.verdict == Verdict::Accepted {
        text.push_str(&applied(&verified.judged.appraisal));
        text.push_str(&state(&verified.judged.appraisal));
        text.extend(claims.certificate.as_ref().map(browsers));
    }
    let _ = writeln!(text, "release: {}  {}", verified.page, immutable_words(verified.immutable));
    text.push_str(&trust::report(ui, &verified.checks));
    text.push_str(&verified.judged.paragraphs());
    if found.verdict == Verdict::Accepted {
        for line in found.skipped.lines() {
            let _ = writeln!(text, "  {}  {line}", ui.tone(Tone::Unsure, "passed over"));
        }
    }
    let mut object = trust::to_json(&verified.judged, &verified.checks, found.verdict);
    if let Value::Object(members) = &mut object {
        members.insert(
            "release".to_owned(),
            json!({ "tag": verified.tag.to_string(), "url": verified.page, "immutable": verified.immutable }),
        );
        members.insert("claims".to_owned(), serde_json::to_value(claims).unwrap_or_default());
        members.insert("skipped".to_owned(), found.skipped.to_json());
        members.insert("requests".to_owned(), serde_json::to_value(asked).unwrap_or_default());
    }
    ui.result(&text, object);
}

/// How many declarations took the place of the one that booted, and which one holds; nothing where that one does.
fn applied(appraisal: &Appraisal) -> String {
    let Some(last) = appraisal.applied.last() else { return String::new() };
    let count = appraisal.applied.len();
    format!(
        "declaration: applied after launch: {count}, commit {:.12}; coffer history lists them\n",
        last.commit
    )
}

/// What the state on disk has behind it; nothing where it is in memory.
fn state(appraisal: &Appraisal) -> String {
    let Some(State::Disk { epoch, lineage, continuity, .. }) = &appraisal.state else { return String::new() };
    let continuity = continuity.map(|continuity| continuity.to_string()).unwrap_or_default();
    let opened = appraisal.upgrade.as_ref().map(|upgrade| {
        format!(", left to this image by {} with the statement {}", upgrade.signer, upgrade.statement)
    });
    format!("state: on disk, epoch {epoch}, lineage {lineage}{}{continuity}\n", opened.unwrap_or_default())
}

/// What browsers are shown instead of the attested key, and with which account certificates for it are asked for.
pub(super) fn browsers(certificate: &CertificateClaim) -> String {
    let account = match &certificate.account {
        Some(account) => format!("account {account} (its key {})", certificate.account_key),
        None => format!("no account yet at {} (its key {})", certificate.directory, certificate.account_key),
    };
    format!("browsers: key {}, {account}\n", certificate.key)
}

/// Immutable or not, the evidence is what counts; a release that can be changed can only be made to fail.
fn immutable_words(immutable: Option<bool>) -> &'static str {
    match immutable {
        Some(true) => "(immutable)",
        Some(false) => "(not immutable: who may write releases can change it)",
        None => "(GitHub does not say whether it is immutable)",
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use cofferdam_attest::event_log::payload::{Declaration, Upgrade};
    use cofferdam_protocol::state::Continuity;

    use super::*;

    #[test]
    fn what_would_not_have_been_noticed_is_shown() {
        let of = |continuity| {
            let (fresh, key, epoch, lineage) = (true, [5; 32].into(), number(42), number(1));
            let state = State::Disk { fresh, key, epoch, lineage, continuity: Some(continuity) };
            super::state(&Appraisal { state: Some(state), ..Appraisal::default() })
        };
        let plain = Continuity {
            anchor: number(3),
            first_anchor: number(1),
            unwitnessed: false,
            accepted_loss: None,
        };
        assert_eq!(of(plain), "state: on disk, epoch 42, lineage 1\n");
        assert_eq!(
            of(Continuity { unwitnessed: true, accepted_loss: Some(number(41)), ..plain }),
            "state: on disk, epoch 42, lineage 1, UNWITNESSED: an older copy would not have been noticed, the loss of the state of epoch 41 was accepted\n"
        );
    }

    #[test]
    fn what_was_applied_after_launch_is_shown() {
        assert_eq!(super::applied(&Appraisal::default()), "");
        let declaration = |byte: u8| Declaration {
            digest: [byte; 32].into(),
            source: Declaration::FROM_GITHUB.to_owned(),
            commit: format!("{byte:02x}").repeat(20).parse().unwrap(),
        };
        let applied = vec![declaration(1), declaration(2)];
        assert_eq!(
            super::applied(&Appraisal { applied, ..Appraisal::default() }),
            format!(
                "declaration: applied after launch: 2, commit {}; coffer history lists them\n",
                "02".repeat(20)
            )
        );
    }

    fn number(number: u64) -> NonZeroU64 {
        number.try_into().unwrap()
    }

    #[test]
    fn the_lineage_of_a_state_on_disk_is_shown() {
        let of = |state, upgrade| super::state(&Appraisal { state, upgrade, ..Appraisal::default() });
        assert_eq!(of(None, None), "");
        assert_eq!(of(Some(State::memory()), None), "");
        let key = [5; 32].into();
        let disk = State::Disk { fresh: false, key, epoch: number(7), lineage: number(2), continuity: None };
        assert_eq!(of(Some(disk.clone()), None), "state: on disk, epoch 7, lineage 2\n");
        let (statement, signer) = ([6; 32].into(), [0; 32].into());
        let upgrade = Upgrade { statement, version: number(2), signer };
        let (digest, key) = ("06".repeat(32), "A".repeat(43));
        assert_eq!(
            of(Some(disk), Some(upgrade)),
            format!(
                "state: on disk, epoch 7, lineage 2, left to this image by SHA256:{key} with the statement sha256:{digest}\n"
            )
        );
    }
}
