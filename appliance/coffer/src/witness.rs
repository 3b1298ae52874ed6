//! How new the state has to be: what the newest release attestation that verifies says of it.
//!
//! A release is a witness of the past. So it is appraised as of the time when it was made: that it has expired since, or that the
//! repository declares something else now, takes nothing from what it saw. What the appliance is now, the connection shows. Who holds the
//! appliance's token can delete releases, and an older one is then the newest: the anchors ([`crate::anchors`]) show that, as far as one is left.

use std::num::NonZeroU64;

use cofferdam_attest::appraise::{Expectations, Verdict};
use cofferdam_attest::claims::Claims;
use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::release::Tag;
use cofferdam_protocol::Repository;
use cofferdam_protocol::unseal::GivenUp;

use crate::anchors::{self, Known};
use crate::failure::{Failure, Outcome};
use crate::source::{CLOCK_SKEW_S, Candidate, Source};
use crate::trust::{Trust, unix_now};
use crate::ui::Ui;

/// Documents that are downloaded at most.
const MAX_DOWNLOADS: usize = 16;

/// What the releases know of the state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Witness {
    /// The claim `state_epoch`; 0 where the appliance had no state on a disk, or no release tells of one.
    pub(crate) epoch: u64,
    /// The number of its last anchor, 0 where there is none.
    pub(crate) anchor: u64,
    /// An anchor that was published is gone: in words.
    pub(crate) gone: Option<String>,
    /// None was asked.
    pub(crate) unwitnessed: bool,
}

impl Witness {
    /// Nobody was asked.
    pub(crate) const NONE: Self = Self { epoch: 0, anchor: 0, gone: None, unwitnessed: true };

    /// Insists that no anchor is gone, but for somebody who accepts that.
    pub(crate) fn whole(&self, accept_loss: bool, hint: &str) -> Outcome {
        match &self.gone {
            Some(gone) if !accept_loss => Err(Failure::rejected(gone.clone()).hint(hint.to_owned())),
            _ => Ok(()),
        }
    }

    /// Giving up what is known.
    pub(crate) fn given_up(&self) -> Option<GivenUp> {
        let epoch = NonZeroU64::new(self.epoch)?;
        Some(GivenUp { epoch, anchor: self.anchor })
    }
}

/// The newest release attestation of `repository` that was true when it was made, and the anchors of its state. Where there are some and
/// none can be believed nobody knows; where there is none at all, nobody has seen a state.
pub(crate) async fn newest(
    ui: &Ui,
    repository: &Repository,
    trust: &Trust,
    source: &Source,
) -> Outcome<Witness> {
    let now = unix_now()?;
    let oldest = now.saturating_sub(trust.max_age_s()).saturating_sub(CLOCK_SKEW_S);
    let candidates = source.candidates(now, oldest).await?;
    let (anchors, there_are) = (candidates.anchors, candidates.list.len());
    let mut attested = None;
    for candidate in candidates.list.into_iter().take(MAX_DOWNLOADS) {
        let tag = candidate.tag;
        match judge(repository, trust, source, candidate, now).await? {
            Ok(known) => {
                ui.detail(&format!("{tag} attests epoch {} of the state", known.epoch));
                attested = Some(known);
                break;
            }
            Err(reason) => ui.detail(&format!("no witness: {tag}: {reason}")),
        }
    }
    let beside = (&anchors, attested.unwrap_or_default());
    let known = anchors::newest(Some(ui), repository, trust, source, beside, now).await?;
    if attested.is_none() && known == Known::default() {
        if there_are == 0 && candidates.complete && anchors.list.is_empty() {
            ui.detail("no release tells of a state");
            return Ok(Witness::default());
        }
        return Err(Failure::could_not_check(format!(
            "no release of {repository} says how new its state has to be: none of {} can be believed",
            there_are.saturating_add(anchors.list.len())
        ))
        .hint("-v shows why"));
    }
    let gone = anchors::missing(&anchors, &known)?;
    let anchor = known.continuity.map_or(0, |continuity| continuity.anchor.get());
    Ok(Witness { epoch: known.epoch, anchor, gone, unwitnessed: false })
}

/// What one release attests, or why it is no witness. A failure is one of GitHub.
async fn judge(
    repository: &Repository,
    trust: &Trust,
    source: &Source,
    candidate: Candidate,
    now: u64,
) -> Outcome<Result<Known, String>> {
    let document = source.document(&candidate).await;
    let document = document.map_err(|error| source.failure("download the release attestation", &error))?;
    let Ok(evidence) = Evidence::parse(&document) else {
        return Ok(Err("the document is malformed".to_owned()));
    };
    let Ok(claims) = Claims::decode(&evidence.claims) else {
        return Ok(Err("its claims are malformed".to_owned()));
    };
    if Tag::for_claims(&evidence.claims).as_ref() != Some(&candidate.tag) {
        return Ok(Err("its claims are not those that the tag is of".to_owned()));
    }
    let expected = Expectations {
        repository: Some(repository.clone()),
        tag: Some(candidate.tag),
        brief: true,
        ..trust.expectations()
    };
    // A tag from the future is none of the candidates, but for the clocks' difference.
    let appraisal = trust.appraise(&evidence, &expected, claims.issued_at.unix().min(now)).appraisal;
    Ok(match appraisal.verdict() {
        Verdict::Accepted => Ok(Known::of(&claims)),
        _ => Err(crate::ui::printable(&appraisal.headline())),
    })
}
