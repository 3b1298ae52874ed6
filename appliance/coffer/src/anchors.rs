//! Anchors: what an appliance's boots have left of its state, one numbered release for each, beside what a release attestation says of it.
//!
//! An anchor counts when its evidence verifies as of its own time and claims the number of its tag, so that nobody makes a newer one of an
//! older one. Who may write releases can remove them: of the numbers that an appliance says were published each has to be there, the
//! last [`WINDOW`] of them at least. A number that is none, or whose release does not verify, is passed over, and hides nothing but
//! itself: when more than [`MAX_JUDGED`] do, nobody knows what is behind them.

use std::collections::BTreeSet;

use cofferdam_attest::appraise::{Expectations, Verdict};
use cofferdam_attest::claims::Claims;
use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::release::AnchorTag;
use cofferdam_protocol::Repository;
use cofferdam_protocol::state::Continuity;

use crate::failure::{Failure, Outcome};
use crate::source::{Anchors, Source};
use crate::trust::Trust;
use crate::ui::{Ui, printable};

/// Anchors whose evidence is judged at most.
const MAX_JUDGED: usize = 16;
/// So many numbers before the newest have to be there.
const WINDOW: u64 = 32;
/// Anchors that are looked for at most, from the highest number on: there is room for as many that are none.
pub(crate) const MAX_ANCHORS: usize = 64;

/// What is known of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Known {
    /// Its highest epoch; 0 where nobody has seen one.
    pub(crate) epoch: u64,
    /// What was claimed with it.
    pub(crate) continuity: Option<Continuity>,
}

impl Known {
    pub(crate) fn of(claims: &Claims) -> Self {
        Self { epoch: claims.state_epoch, continuity: claims.state_continuity }
    }

    fn anchor(&self) -> u64 {
        self.continuity.map_or(0, |continuity| continuity.anchor.get())
    }
}

/// The newest of what a release attestation says (`attested`) and the anchors above its own. A failure is one of GitHub, or that nobody knows.
pub(crate) async fn newest(
    ui: Option<&Ui>,
    repository: &Repository,
    trust: &Trust,
    source: &Source,
    (anchors, attested): (&Anchors, Known),
    now: u64,
) -> Outcome<Known> {
    let above = |tag: &AnchorTag| tag.number().get() > attested.anchor();
    let candidates = anchors.list.iter().rev().filter(|(tag, _)| above(tag));
    let mut judged = 0;
    for (tag, asset) in candidates {
        let Some(asset) = asset else { continue };
        if judged == MAX_JUDGED {
            return Err(Failure::could_not_check(format!(
                "{MAX_JUDGED} anchors of the state of {repository} are none, and not all others were looked at"
            ))
            .hint("see who may write releases of the repository, and remove those that are not the appliance's"));
        }
        judged += 1;
        let document = source.anchor(asset).await;
        let document = document.map_err(|error| source.failure("download an anchor", &error))?;
        match judge(repository, trust, *tag, &document, now) {
            Ok(known) => {
                if let Some(ui) = ui {
                    ui.detail(&format!("{tag} attests epoch {} of the state", known.epoch));
                }
                return Ok(if known.epoch > attested.epoch { known } else { attested });
            }
            Err(reason) => {
                if let Some(ui) = ui {
                    ui.detail(&format!("no witness: {tag}: {reason}"));
                }
            }
        }
    }
    Ok(attested)
}

/// The numbers that were published and are gone, of the last [`WINDOW`]: in words, and what to do about it. `Err` when the list is not whole.
pub(crate) fn missing(anchors: &Anchors, known: &Known) -> Outcome<Option<String>> {
    let Some(continuity) = known.continuity else { return Ok(None) };
    let (first, end) = (continuity.first_anchor.get(), continuity.anchor.get());
    let there: BTreeSet<u64> = anchors.list.keys().map(|tag| tag.number().get()).collect();
    let gone: Vec<u64> =
        (first.max(end.saturating_sub(WINDOW))..end).filter(|number| !there.contains(number)).collect();
    let Some(number) = gone.first() else { return Ok(None) };
    let tag = std::num::NonZeroU64::new(*number).and_then(AnchorTag::new);
    let tag = tag.map(|tag| tag.to_string()).unwrap_or_default();
    if !anchors.complete {
        return Err(Failure::could_not_check(format!(
            "the anchor {tag} of the state is not among the releases that were looked at"
        )));
    }
    let more = if gone.len() > 1 { format!(", and {} more", gone.len() - 1) } else { String::new() };
    Ok(Some(format!("the anchor {tag} of the state was published and is gone{more}: a witness was removed")))
}

/// What an anchor's evidence says, or why it is none.
fn judge(
    repository: &Repository,
    trust: &Trust,
    tag: AnchorTag,
    document: &[u8],
    now: u64,
) -> Result<Known, String> {
    let evidence = Evidence::parse(document).map_err(|_| "the document is malformed".to_owned())?;
    let claims = Claims::decode(&evidence.claims).map_err(|_| "its claims are malformed".to_owned())?;
    let claimed = claims.state_continuity.map(|continuity| continuity.anchor);
    if claimed != Some(tag.number()) {
        return Err("its claims are not those of this anchor".to_owned());
    }
    let expected = Expectations { repository: Some(repository.clone()), brief: true, ..trust.expectations() };
    let appraisal = trust.appraise(&evidence, &expected, claims.issued_at.unix().min(now)).appraisal;
    match appraisal.verdict() {
        Verdict::Accepted => Ok(Known::of(&claims)),
        _ => Err(printable(&appraisal.headline())),
    }
}
