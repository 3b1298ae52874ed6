//! How new the state has to be: what the newest release attestation that verifies says of it.
//!
//! A release is a witness of the past. So it is appraised as of the time when it was made: that it has expired since, or that the
//! repository declares something else now, takes nothing from what it saw. What the appliance is now, the connection shows. Who holds the
//! appliance's token can delete releases, and an older one is then the newest.

use cofferdam_attest::appraise::{Expectations, Verdict};
use cofferdam_attest::claims::Claims;
use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::release::Tag;
use cofferdam_protocol::Repository;

use crate::failure::{Failure, Outcome};
use crate::source::{CLOCK_SKEW_S, Candidate, Source};
use crate::trust::{Trust, unix_now};
use crate::ui::Ui;

/// Documents that are downloaded at most.
const MAX_DOWNLOADS: usize = 16;

/// What the releases know of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Witness {
    /// The claim `state_epoch`; 0 where the appliance had no state on a disk, or no release tells of one.
    pub(crate) epoch: u64,
}

/// The newest release attestation of `repository` that was true when it was made. Where there are some and none can be believed nobody
/// knows; where there is none at all, nobody has seen a state.
pub(crate) async fn newest(
    ui: &Ui,
    repository: &Repository,
    trust: &Trust,
    source: &Source,
) -> Outcome<Witness> {
    let now = unix_now()?;
    let oldest = now.saturating_sub(trust.max_age_s()).saturating_sub(CLOCK_SKEW_S);
    let candidates = source.candidates(now, oldest).await?;
    let there_are = candidates.list.len();
    for candidate in candidates.list.into_iter().take(MAX_DOWNLOADS) {
        let tag = candidate.tag;
        match judge(repository, trust, source, candidate, now).await? {
            Ok(epoch) => {
                ui.detail(&format!("{tag} attests epoch {epoch} of the state"));
                return Ok(Witness { epoch });
            }
            Err(reason) => ui.detail(&format!("no witness: {tag}: {reason}")),
        }
    }
    if there_are == 0 && candidates.complete {
        ui.detail("no release attestation tells of a state");
        return Ok(Witness { epoch: 0 });
    }
    Err(Failure::could_not_check(format!(
        "no release attestation of {repository} says how new its state has to be: none of {there_are} can be believed"
    ))
    .hint("-v shows why; --without-witness goes on, and does not notice an older copy of the disk"))
}

/// The epoch that one release attests, or why it is no witness. A failure is one of GitHub.
async fn judge(
    repository: &Repository,
    trust: &Trust,
    source: &Source,
    candidate: Candidate,
    now: u64,
) -> Outcome<Result<u64, String>> {
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
        Verdict::Accepted => Ok(claims.state_epoch),
        _ => Err(crate::ui::printable(&appraisal.headline())),
    })
}
