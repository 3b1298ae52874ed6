//! The newest release attestation that verifies.
//!
//! Whoever holds the appliance's token can publish releases, so nothing on the list counts until it has been verified, and
//! nothing on it decides the answer by failing to. Candidates are tried from the newest on (by the time in the tag, which
//! the claims have to bear out), the first that is accepted is the answer, and what was passed over is said. When
//! none is accepted: "checked and false" if every candidate was judged and at least one was, "could not check" otherwise.
//!
//! Bounded in what it reads and in what it asks GitHub about, so that no list keeps it busy for ever.

use std::collections::HashMap;
use std::task::Poll;

use cofferdam_attest::appraise::{Check, Expectations, Outcome as CheckOutcome, Verdict};
use cofferdam_attest::claims::Claims;
use cofferdam_attest::evidence::{ASSET_NAME, Evidence};
use cofferdam_attest::release::Tag;
use cofferdam_github::GithubError;
use cofferdam_protocol::{Commit, Digest, Repository};

use crate::anchors::{self, Known};
use crate::failure::{Code, Failure, Outcome, chain};
use crate::source::{Anchors, CLOCK_SKEW_S, Candidate, Candidates, DECLARATION, Source};
use crate::trust::{Judged, Trust, unix_now};
use crate::ui::printable;

mod skipped;

pub(crate) use skipped::Skipped;

/// Documents that are downloaded at most, and their bytes together.
const MAX_DOWNLOADS: usize = 1_024;
const MAX_DOWNLOADED: u64 = 64 << 20;
/// Documents that are fetched at once.
const AT_ONCE: usize = 8;
/// Commits that GitHub is asked about at most. Only evidence that is accepted but for its declaration gets this far.
const MAX_COMMITS: usize = 8;

/// A release attestation after its appraisal, whatever came out.
pub(crate) struct Verified {
    pub(crate) claims: Claims,
    pub(crate) judged: Judged,
    pub(crate) checks: Vec<Check>,
    pub(crate) verdict: Verdict,
    pub(crate) tag: Tag,
    pub(crate) page: String,
    /// Whether GitHub refuses changes to the release; `None` on servers that do not say.
    pub(crate) immutable: Option<bool>,
    pub(crate) document: Vec<u8>,
}

/// What was found, and what was passed over on the way.
pub(crate) struct Found {
    /// The accepted attestation, or the newest of those that explain the verdict.
    pub(crate) verified: Verified,
    /// The answer: `Accepted` only when `verified` is.
    pub(crate) verdict: Verdict,
    pub(crate) skipped: Skipped,
    /// What would help where GitHub could not be asked.
    pub(crate) hint: Option<String>,
}

/// What one candidate came to.
enum Judgement {
    Verified(Box<Verified>),
    /// Not even evidence for its tag, or not to be had.
    Nothing(Verdict, String),
}

/// One search over the candidates of a repository.
struct Search<'a> {
    repository: &'a Repository,
    wanted: Wanted,
    trust: &'a Trust,
    source: &'a Source,
    now: u64,
    downloads: usize,
    downloaded: u64,
    /// What GitHub could not be asked about the commits so far.
    commits: HashMap<Commit, Option<String>>,
    hint: Option<String>,
    skipped: Skipped,
    /// What explains best, so far, why nothing was accepted.
    shown: Option<Verified>,
}

/// Which declaration the appliance has to run. In each case it is the repository's at the claimed commit, which is in the history of
/// the default branch.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted {
    /// What the default branch declares now.
    Current,
    /// That of a commit.
    Commit(Commit),
    /// Any: for those who ask what runs, and trust it with nothing.
    Any,
}

impl From<Option<Commit>> for Wanted {
    fn from(commit: Option<Commit>) -> Self {
        commit.map_or(Self::Current, Self::Commit)
    }
}

/// The newest release attestation of `repository` that is accepted, or why there is none.
pub(crate) async fn newest(
    repository: &Repository,
    wanted: Wanted,
    trust: &Trust,
    source: &Source,
) -> Outcome<Found> {
    let now = unix_now()?;
    let oldest = now.saturating_sub(trust.max_age_s()).saturating_sub(CLOCK_SKEW_S);
    let mut candidates = source.candidates(now, oldest).await?;
    let anchors = std::mem::take(&mut candidates.anchors);
    let (list, skipped) = current(candidates, oldest);
    let mut search = Search {
        repository,
        wanted,
        trust,
        source,
        now,
        downloads: 0,
        downloaded: 0,
        commits: HashMap::new(),
        hint: None,
        skipped,
        shown: None,
    };
    let mut left = list.into_iter();
    // Almost always the first is the answer; only when it is not are several documents fetched at once.
    let mut batch: Vec<Candidate> = left.by_ref().take(1).collect();
    while !batch.is_empty() {
        let bytes = batch.iter().map(Candidate::bytes).fold(search.downloaded, u64::saturating_add);
        if search.downloads.saturating_add(batch.len()) > MAX_DOWNLOADS || bytes > MAX_DOWNLOADED {
            search.skipped.unread = batch.len().saturating_add(left.len());
            break;
        }
        (search.downloads, search.downloaded) = (search.downloads.saturating_add(batch.len()), bytes);
        if let Some(mut verified) = search.try_all(batch).await? {
            let hint = search.anchored(&mut verified, &anchors).await;
            let verdict = verified.verdict;
            return Ok(Found { verified, verdict, skipped: search.skipped, hint });
        }
        batch = left.by_ref().take(AT_ONCE).collect();
    }
    search.without_success().await
}

impl Search<'_> {
    /// Tries candidates, which are fetched at once, from the first on; the one that is accepted, if any is.
    async fn try_all(&mut self, batch: Vec<Candidate>) -> Outcome<Option<Verified>> {
        let documents = batch.iter().map(|candidate| self.source.document(candidate)).collect();
        let documents = together(documents).await;
        for (candidate, document) in batch.into_iter().zip(documents) {
            // An appraisal computes: whatever else runs, and the caller's limit on time, have their turn in between.
            tokio::task::yield_now().await;
            let tag = candidate.tag;
            match self.judge(candidate, document).await? {
                Judgement::Verified(found) if found.verdict == Verdict::Accepted => return Ok(Some(*found)),
                Judgement::Verified(found) => {
                    self.skipped.note(tag, found.verdict, reason(&found));
                    // What could not be checked explains more than what is false: it might have been the answer.
                    let better = |old: &Verified| {
                        old.verdict == Verdict::Rejected && found.verdict == Verdict::CouldNotCheck
                    };
                    if self.shown.as_ref().is_none_or(better) {
                        self.shown = Some(*found);
                    }
                }
                Judgement::Nothing(verdict, reason) => self.skipped.note(tag, verdict, reason),
            }
        }
        Ok(None)
    }

    /// Compares what was accepted with the anchors of its state, if it has one: none of them may be newer, and none may be gone.
    async fn anchored(&self, verified: &mut Verified, anchors: &Anchors) -> Option<String> {
        let claimed = Known::of(&verified.claims);
        let continuity = claimed.continuity?;
        let asked =
            anchors::newest(None, self.repository, self.trust, self.source, (anchors, claimed), self.now);
        let judged = match asked.await {
            Ok(newest) if newest.epoch > claimed.epoch => Err(Failure::rejected(format!(
                "the state is an older copy: epoch {}, and the anchor of epoch {} is newer",
                claimed.epoch, newest.epoch
            ))),
            Ok(_) => anchors::missing(anchors, &claimed).and_then(|gone| match gone {
                Some(gone) => Err(Failure::rejected(gone)),
                None => Ok(()),
            }),
            Err(failure) => Err(failure),
        };
        let (outcome, detail, hint) = match judged {
            Ok(()) => {
                let (first, last) = (continuity.first_anchor, continuity.anchor);
                (CheckOutcome::Pass, format!("from {first} to {last}, and none is newer"), None)
            }
            Err(failure) if failure.code == Code::Rejected => {
                (CheckOutcome::Fail, failure.message, failure.hint)
            }
            Err(failure) => (CheckOutcome::CouldNotCheck, failure.message, failure.hint),
        };
        verified.checks.push(Check { name: "state_anchors", outcome, detail });
        verified.verdict = Verdict::of(&verified.checks);
        hint
    }

    /// The answer when nothing was accepted.
    async fn without_success(mut self) -> Outcome<Found> {
        let verdict = self.skipped.verdict();
        match self.shown.take() {
            Some(verified) => {
                let verified = self.complete(verified).await;
                Ok(Found { verified, verdict, skipped: self.skipped, hint: self.hint })
            }
            None => Err(self.skipped.failure(self.repository)),
        }
    }

    /// Appraises one candidate. A failure is one of GitHub as a whole, which the next candidate would meet too.
    async fn judge(
        &mut self,
        candidate: Candidate,
        document: Result<Vec<u8>, GithubError>,
    ) -> Outcome<Judgement> {
        let refused = |reason: String| Ok(Judgement::Nothing(Verdict::Rejected, reason));
        let document = match document {
            Ok(document) => document,
            Err(
                error @ (GithubError::RateLimited { .. }
                | GithubError::Timeout
                | GithubError::Unreachable(_)
                | GithubError::Unauthorized(_)),
            ) => {
                return Err(self.source.failure("download the release attestation", &error));
            }
            Err(error) => return Ok(Judgement::Nothing(Verdict::CouldNotCheck, chain(&error))),
        };
        let evidence = match Evidence::parse(&document) {
            Ok(evidence) => evidence,
            Err(error) => return refused(format!("{ASSET_NAME} is malformed: {}", chain(&error))),
        };
        let claims = match Claims::decode(&evidence.claims) {
            Ok(claims) => claims,
            Err(error) => return refused(format!("its claims are malformed: {}", chain(&error))),
        };
        if Tag::for_claims(&evidence.claims).as_ref() != Some(&candidate.tag) {
            return refused("tag: its claims are not those that the tag is of".to_owned());
        }
        // What explains a refusal is searched for the one that is shown.
        let brief = Expectations { brief: true, ..self.expectations(&candidate.tag) };
        let judged = self.trust.appraise(&evidence, &brief, self.now);
        let verdict = judged.appraisal.verdict();
        let checks = judged.appraisal.checks.clone();
        let Candidate { tag, page, immutable, .. } = candidate;
        let page = printable(&page);
        let verified = Verified { claims, judged, checks, verdict, tag, page, immutable, document };
        if verdict == Verdict::Rejected {
            return Ok(Judgement::Verified(Box::new(verified)));
        }
        Ok(Judgement::Verified(Box::new(self.declared(verified, &evidence).await)))
    }

    fn expectations(&self, tag: &Tag) -> Expectations {
        Expectations {
            repository: Some(self.repository.clone()),
            tag: Some(*tag),
            ..self.trust.expectations()
        }
    }

    /// The same attestation, compared with what the repository declares.
    async fn declared(&mut self, mut verified: Verified, evidence: &Evidence) -> Verified {
        let mut expectations = self.expectations(&verified.tag);
        let declaration = self.declaration_check(&verified.claims, &mut expectations).await;
        let judged = self.trust.appraise(evidence, &expectations, self.now);
        let mut checks = judged.appraisal.checks.clone();
        checks.push(declaration);
        verified.verdict = Verdict::of(&checks);
        (verified.judged, verified.checks) = (judged, checks);
        verified
    }

    /// For the report: the declaration of evidence that is refused anyway, so that each claim that differs is named.
    async fn complete(&mut self, verified: Verified) -> Verified {
        let asked = verified.checks.iter().any(|check| check.name == DECLARATION_CHECK);
        match Evidence::parse(&verified.document) {
            Ok(evidence) if !asked => self.declared(verified, &evidence).await,
            _ => verified,
        }
    }

    /// The repository's declaration at the claimed commit; what it says becomes an expectation, so that each claim that
    /// differs is named.
    async fn declaration_check(&mut self, claims: &Claims, expectations: &mut Expectations) -> Check {
        let check = |outcome, detail: String| Check { name: DECLARATION_CHECK, outcome, detail };
        let bytes = match self.ask(claims).await {
            Ok(bytes) => bytes,
            Err(failure) if failure.code == Code::Rejected => {
                return check(CheckOutcome::Fail, failure.message);
            }
            Err(failure) => return check(CheckOutcome::CouldNotCheck, failure.message),
        };
        let Ok(declared) = cofferdam_declaration::Declaration::parse(&bytes) else {
            let detail = format!("{DECLARATION} at {} is not a declaration", claims.commit);
            return check(CheckOutcome::Fail, detail);
        };
        expectations.declaration = Some(Digest::of(&bytes));
        expectations.endpoint = Some(declared.endpoint.clone());
        if declared.repository != claims.repository {
            return check(
                CheckOutcome::Fail,
                format!("{DECLARATION} declares {}, not {}", declared.repository, claims.repository),
            );
        }
        check(CheckOutcome::Pass, format!("{DECLARATION} at {} on the default branch", claims.commit))
    }

    /// Asks GitHub, of each commit only as long as it answers, and of so many commits at most.
    async fn ask(&mut self, claims: &Claims) -> Outcome<Vec<u8>> {
        if let Some(Some(failed)) = self.commits.get(&claims.commit) {
            return Err(Failure::could_not_check(failed.clone()));
        }
        if !self.commits.contains_key(&claims.commit) && self.commits.len() >= MAX_COMMITS {
            let message = format!("commit: {MAX_COMMITS} others were looked up, no more are");
            return Err(Failure::could_not_check(message));
        }
        let commit = match self.wanted {
            Wanted::Current => None,
            Wanted::Commit(commit) => Some(commit),
            Wanted::Any => Some(claims.commit),
        };
        let asked = self.source.declaration(claims, commit).await;
        let failed = asked.as_ref().err().filter(|failure| failure.code != Code::Rejected);
        self.hint = failed.and_then(|failure| failure.hint.clone()).or(self.hint.take());
        let failed = failed.map(|failure| failure.message.clone());
        self.commits.insert(claims.commit, failed);
        asked
    }
}

/// Does all of `work` at once; the results in its order.
async fn together<F: Future>(work: Vec<F>) -> Vec<F::Output> {
    let mut running: Vec<_> = work.into_iter().map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(|context| {
        let mut done = Poll::Ready(());
        for (one, result) in running.iter_mut().filter(|(_, result)| result.is_none()) {
            match one.as_mut().poll(context) {
                Poll::Ready(value) => *result = Some(value),
                Poll::Pending => done = Poll::Pending,
            }
        }
        done
    })
    .await;
    running.into_iter().filter_map(|(_, result)| result).collect()
}

/// Name of the check that compares with the repository.
const DECLARATION_CHECK: &str = "repository_declaration";

/// The candidates that claims of an accepted age can be behind. When there is none the newest of all is looked at, so that
/// the answer says what is wrong with it.
fn current(candidates: Candidates, oldest: u64) -> (Vec<Candidate>, Skipped) {
    let Candidates { mut list, other, future, without_document, complete, .. } = candidates;
    let recent = list.iter().take_while(|candidate| candidate.tag.issued_at.unix() >= oldest);
    let kept = recent.count().max(1).min(list.len());
    let old = list.len().saturating_sub(kept);
    list.truncate(kept);
    let mut skipped = Skipped::default();
    (skipped.other, skipped.future, skipped.without_document) = (other, future, without_document);
    (skipped.old, skipped.complete) = (old, complete);
    (list, skipped)
}

/// The first thing that is false or unknown.
fn reason(verified: &Verified) -> String {
    let wanted = match verified.verdict {
        Verdict::Rejected => CheckOutcome::Fail,
        _ => CheckOutcome::CouldNotCheck,
    };
    let check = verified.checks.iter().find(|check| check.outcome == wanted);
    check.map(|check| format!("{}: {}", check.name, check.detail)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn several_things_take_as_long_as_the_longest_and_keep_their_order() {
        let begun = tokio::time::Instant::now();
        let work = [3, 1, 2].map(|seconds| async move {
            tokio::time::sleep(std::time::Duration::from_secs(seconds)).await;
            seconds
        });
        assert_eq!(together(work.into()).await, [3, 1, 2]);
        assert_eq!(begun.elapsed().as_secs(), 3);
        assert!(together(Vec::<std::future::Ready<()>>::new()).await.is_empty());
    }
}
