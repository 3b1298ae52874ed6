//! `coffer history`: the declarations that this boot has run, and what was published before.
//!
//! The first list is proven: it is in the log of the newest release attestation that verifies. The second is what GitHub has:
//! each of the newest is appraised at the time that it claims, which shows that a genuine appliance said so and not when. What was
//! removed is not in it.

use std::fmt::Write as _;

use cofferdam_attest::appraise::{Expectations, Verdict};
use cofferdam_attest::claims::Claims;
use cofferdam_attest::event_log::payload::{Declaration, Payload as _};
use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::release::Tag;
use cofferdam_protocol::Repository;
use serde_json::{Value, json};

use super::verify;
use crate::cli;
use crate::failure::{Failure, Outcome, chain};
use crate::newest::Wanted;
use crate::source::{Candidate, Source};
use crate::trust::{Trust, unix_now};
use crate::ui::{Tone, Ui, printable};

/// Earlier releases that are fetched and appraised; a fetch each.
const MAX_CHECKED: usize = 16;
/// Earlier releases that are listed.
const MAX_LISTED: usize = 256;

pub(crate) async fn run(
    ui: &Ui,
    repository: &Repository,
    trust: &cli::Trust,
    github: &cli::Github,
) -> Outcome {
    let trust = Trust::load(trust, github).await?;
    let source = Source::new(repository, github)?;
    let verified = verify::verified_release(ui, repository, Wanted::Any, &trust, &source).await?;
    let simulated = verified.judged.appraisal.simulated;
    crate::ui::is_simulated(simulated);
    if simulated {
        ui.warn("SIMULATED: this appliance runs on a simulated TDX device");
    }
    let evidence = Evidence::parse(&verified.document).map_err(|error| Failure::failed(chain(&error)))?;
    let boot: Vec<Declaration> = evidence.event_log.iter().filter_map(Declaration::read).collect();
    let listed = source.candidates(unix_now()?, 0).await?;
    let complete = listed.complete;
    let mut before = listed.list;
    before.retain(|candidate| {
        candidate.tag != verified.tag && candidate.tag.issued_at <= verified.tag.issued_at
    });
    let further = before.len().saturating_sub(MAX_LISTED);
    before.truncate(MAX_LISTED);
    let mut earlier = Vec::with_capacity(before.len());
    for (at, candidate) in before.into_iter().enumerate() {
        let found = if at < MAX_CHECKED {
            checked(repository, &trust, &source, &candidate).await
        } else {
            Earlier::unchecked(&candidate, format!("not checked: only the newest {MAX_CHECKED} are"))
        };
        earlier.push(found);
    }
    super::say_requests(ui, trust.requests + source.requests());

    let mut text = format!("this boot, from release {} (checked):\n", verified.tag);
    for (at, declaration) in boot.iter().enumerate() {
        let runs = if at + 1 == boot.len() { ui.tone(Tone::Good, "  runs") } else { String::new() };
        let _ = writeln!(
            text,
            "  {}  {}  {}  {}{runs}",
            at + 1,
            declaration.commit,
            declaration.digest,
            printable(&declaration.source)
        );
    }
    if !earlier.is_empty() {
        text.push_str("published before:\n");
    }
    for one in &earlier {
        let commit = one.claims.as_ref().map(|claims| format!("  {}", claims.commit)).unwrap_or_default();
        let tone = if one.checked { Tone::Good } else { Tone::Unsure };
        let _ = writeln!(text, "  {}{commit}  {}", one.tag, ui.tone(tone, &one.detail));
    }
    if further > 0 || !complete {
        text.push_str("  and earlier ones, which are not listed\n");
    }
    let declarations: Vec<Value> = boot
        .iter()
        .map(|one| json!({ "commit": one.commit, "declaration": one.digest, "source": one.source }))
        .collect();
    let earlier: Vec<Value> = earlier.iter().map(Earlier::to_json).collect();
    ui.result(
        &text,
        json!({
            "repository": repository, "release": verified.tag.to_string(), "simulated": simulated,
            "declarations": declarations, "earlier": earlier, "complete": complete && further == 0,
        }),
    );
    Ok(())
}

/// A release before the newest one.
struct Earlier {
    tag: Tag,
    page: String,
    checked: bool,
    /// `checked`, or why not.
    detail: String,
    /// Of evidence that was accepted.
    claims: Option<Claims>,
}

impl Earlier {
    fn unchecked(candidate: &Candidate, detail: String) -> Self {
        let (tag, page) = (candidate.tag, printable(&candidate.page));
        Self { tag, page, checked: false, detail: printable(&detail), claims: None }
    }

    fn to_json(&self) -> Value {
        let claimed = |claims: &Claims| json!({ "commit": claims.commit, "declaration": claims.declaration });
        json!({
            "tag": self.tag.to_string(), "url": self.page, "checked": self.checked, "detail": self.detail,
            "claims": self.claims.as_ref().map(claimed),
        })
    }
}

/// Appraises one at the time that it claims. Whether the repository had that declaration is not asked.
async fn checked(repository: &Repository, trust: &Trust, source: &Source, candidate: &Candidate) -> Earlier {
    let not = |why: String| Earlier::unchecked(candidate, format!("not checked: {why}"));
    let document = match source.document(candidate).await {
        Ok(document) => document,
        Err(error) => return not(chain(&error)),
    };
    let (evidence, claims) = match Evidence::parse(&document).map(|evidence| {
        let claims = Claims::decode(&evidence.claims);
        (evidence, claims)
    }) {
        Ok((evidence, Ok(claims))) => (evidence, claims),
        Ok((_, Err(error))) => return not(chain(&error)),
        Err(error) => return not(chain(&error)),
    };
    let expectations = Expectations {
        repository: Some(repository.clone()),
        tag: Some(candidate.tag),
        brief: true,
        ..trust.expectations()
    };
    // An appraisal computes: the caller's limit on time has its turn in between.
    tokio::task::yield_now().await;
    let judged = trust.appraise(&evidence, &expectations, claims.issued_at.unix());
    match judged.appraisal.verdict() {
        Verdict::Accepted => Earlier {
            checked: true,
            claims: Some(claims),
            ..Earlier::unchecked(candidate, "checked at the time that it claims".to_owned())
        },
        Verdict::Rejected => {
            let why = judged.appraisal.failures().next();
            let why = why.map(|check| format!("{}: {}", check.name, check.detail)).unwrap_or_default();
            Earlier::unchecked(candidate, format!("refused: {why}"))
        }
        Verdict::CouldNotCheck => not(judged.appraisal.headline()),
    }
}
