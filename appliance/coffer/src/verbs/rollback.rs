//! `coffer rollback`: makes the declaration's file what it was, for a signer to commit and push.
//!
//! The way back is a commit like any other, since versions only move forward. Which declaration ran is taken from the log of the newest
//! release attestation that verifies, and the bytes are those of its digest. Nothing is asked of the appliance, and no commit is made: whose
//! signature it needs is not `coffer`'s to say.

use std::path::Path;

use cofferdam_attest::event_log::payload::{Declaration as Measured, Payload as _};
use cofferdam_declaration::{Change, Declaration};
use cofferdam_protocol::{Commit, Digest};
use serde_json::json;

use super::plan::{Next, Outlook, Running, lines};
use super::up;
use crate::cli;
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::source::{DECLARATION, Source};
use crate::ui::Ui;

pub(crate) async fn run(ui: &Ui, options: &cli::Rollback) -> Outcome {
    let file = options.file.as_deref().unwrap_or(Path::new(DECLARATION));
    let now = Next::read(ui, file)?;
    // It is overwritten: what no commit has would be lost.
    up::committed(file, &now.bytes)?;
    let repository = now.declaration.repository.clone();
    let running = Running::of(ui, &repository, &options.trust, &options.github).await?;
    let (commit, digest) = target(options.to, &now, &running)?;
    let source = Source::new(&repository, &options.github)?;
    let bytes = source.declared(Some(commit)).await?;
    if digest.is_some_and(|digest| digest != Digest::of(&bytes)) {
        return Err(Failure::could_not_check(format!(
            "GitHub has another {DECLARATION} at {commit} than the one that the appliance measured"
        )));
    }
    if bytes == now.bytes {
        return Err(Failure::failed(format!("{} is what commit {commit} has already", now.name)));
    }
    let back = Declaration::parse(&bytes).map_err(|_| {
        Failure::failed(format!("{DECLARATION} at {commit} is nothing that this coffer can read"))
    })?;
    let change = Change::between(&running.declaration, &back);
    let events = Err("RTMR3 depends on the commit: `coffer plan` says it once that is made".to_owned());
    let outlook = Outlook::of(&change, &running.declaration, None, events);
    files::write(file, &bytes)?;
    let text = format!("{} is what commit {commit} has; of what runs that changes\n", now.name)
        + &lines(ui, &change, &outlook)
        + &format!(
            "next: git commit -S -m 'Back to {commit:.12}' {} && git push\n",
            now.name,
            commit = commit.to_string()
        );
    let object = json!({
        "repository": repository, "file": now.name, "commit": commit, "declaration": Digest::of(&bytes),
        "running": { "commit": running.verified.claims.commit, "declaration": running.verified.claims.declaration },
        "change": change, "applies": outlook.name(), "because": outlook.because, "signers": outlook.signers,
    });
    ui.result(&text, object);
    Ok(())
}

/// Where to go back to: what was asked for; else what runs, where the file is something else, which the appliance did not take or went back
/// from; else what ran before that in this boot.
fn target(to: Option<Commit>, now: &Next, running: &Running) -> Outcome<(Commit, Option<Digest>)> {
    let claims = &running.verified.claims;
    if let Some(commit) = to {
        return Ok((commit, None));
    }
    if now.digest != claims.declaration {
        return Ok((claims.commit, Some(claims.declaration)));
    }
    let measured: Vec<Measured> = running.log.iter().filter_map(Measured::read).collect();
    let before = measured.iter().rev().find(|one| one.digest != claims.declaration);
    before.map(|one| (one.commit, Some(one.digest))).ok_or_else(|| {
        Failure::failed("the appliance has run no other declaration in this boot")
            .hint("name a commit with --to; `coffer history OWNER/REPO` lists earlier ones")
    })
}
