//! Follows a branch of the repository: whether a commit counts, and whether it declares something else than what runs.
//!
//! | of the head of the branch it is asked | else |
//! |---|---|
//! | is it what runs, or what counted before | |
//! | did a signer sign it | refused |
//! | is what runs in its history, and what counted last in this boot | refused: versions only move forward |
//! | is the file in its root directory the one that was signed (`cofferdam_github::judge`) | there is no answer |
//! | is that a declaration of this repository | refused |
//!
//! What counts and is something else it offers once (`offer`), where the declaration that runs does not say `apply: false`; whether that takes the
//! place of what runs is not decided here. What cannot be asked leaves what was found before as it is, and is said beside it. GitHub is believed as
//! to where the branch stands and how commits are related, and never as to who signed something or what a commit contains. So whoever can write to
//! the branch, or answers in GitHub's place, can hide a commit, and make none count.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cofferdam_github::{Candidate, Client, GithubError, JudgeError, SignatureError, judge};
use cofferdam_protocol::events::{self, Happened};
use cofferdam_protocol::follow::{self, FollowStatus, Found, Why};
use cofferdam_protocol::{
    Branch, Commit, Digest, Repository, SecretRef, Timestamp, TimestampMillis, error_chain, json,
};

use super::dates::Dates;
use super::offer::{OfferError, offer};
use super::reconcile::Memory;
use super::{
    CLOCK_WAIT, FIRST_PAUSE, LEASE_WAIT, LONGEST_IMPOSED, LONGEST_PAUSE, Paths, PublishError, Settings,
};
use crate::roles::admit::{DECLARATION, declared};
use crate::roles::facts::{self, FactsError, FollowFacts};
use crate::system::files;
use crate::system::ring::Ring;

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Running {
    repository: Repository,
    commit: Commit,
    declaration: Digest,
}

/// Why nobody knows where the branch stands.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("the facts of this boot are not available")]
    Appliance(#[from] FactsError),
    #[error(transparent)]
    Client(#[from] PublishError),
    #[error("there is no branch {0} in the repository, or the token does not show it")]
    NoBranch(Branch),
    #[error("commit {0}, with which the head has to be compared, is not in the repository")]
    NoCommit(Commit),
    #[error("the branch cannot be looked at")]
    Github(#[from] GithubError),
    #[error("GitHub sends something else than was signed")]
    Other(#[source] JudgeError),
    #[error("what counts is not applied")]
    Offer(#[from] OfferError),
}

/// The loop that looks.
pub(super) struct Follower {
    follow: FollowFacts,
    settings: Settings,
    paths: Paths,
    status: StatusFile,
    memory: Arc<Memory>,
    /// What ran when the head was judged: beside something else it is judged anew.
    judged_beside: Option<Running>,
    /// GitHub with the token, until something is wrong with it.
    client: Option<Client>,
    dates: Arc<Dates>,
}

impl Follower {
    pub(super) fn new(
        follow: FollowFacts,
        settings: Settings,
        paths: Paths,
        dates: Arc<Dates>,
        events: Arc<Ring>,
    ) -> Self {
        let status = StatusFile::open(&paths, &follow, events);
        Self {
            follow,
            settings,
            paths,
            status,
            memory: Arc::default(),
            judged_beside: None,
            client: None,
            dates,
        }
    }

    /// Looks at the branch at the declared times, for ever.
    pub(super) async fn keep_looking(mut self, token: &SecretRef) {
        let interval = self.follow.declared.interval;
        let mut pause = FIRST_PAUSE;
        self.dates.settled(CLOCK_WAIT).await;
        loop {
            let wait = match self.turn(token).await {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    interval
                }
                Err(error) => {
                    self.status.problem(&error_chain(&error));
                    let imposed = match &error {
                        // The vault waits the next time.
                        FollowError::Client(PublishError::NoToken(_)) => continue,
                        FollowError::Github(GithubError::RateLimited { retry_after, .. }) => *retry_after,
                        _ => Duration::ZERO,
                    };
                    let wait = pause.max(imposed).min(LONGEST_IMPOSED);
                    pause = pause.saturating_mul(2).min(LONGEST_PAUSE.max(interval));
                    wait
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// One look, and what comes of it.
    async fn turn(&mut self, token: &SecretRef) -> Result<(), FollowError> {
        let (found, candidate) = self.look(token).await?;
        self.status.found(found);
        let Some(candidate) = candidate.filter(|_| self.follow.declared.apply) else { return Ok(()) };
        match offer(&self.paths, &candidate) {
            Ok(true) => {
                println!("publish: follow {}: the appliance is told of it", self.status.status.branch);
            }
            Ok(false) => {}
            Err(error) => {
                // The next look makes a candidate again.
                self.judged_beside = None;
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// What the head of the branch is to what runs, and when that is found out the proof of what may take its place.
    async fn look(&mut self, token: &SecretRef) -> Result<(Found, Option<Candidate>), FollowError> {
        let appliance = facts::appliance(&self.paths.appliance)?;
        let running = Running {
            repository: appliance.repository,
            commit: appliance.commit,
            declaration: appliance.declaration,
        };
        let client = match self.client.take() {
            Some(client) => client,
            None => {
                // Said before the wait, not after it.
                let wait = if self.status.status.problem.is_some() { LEASE_WAIT } else { Duration::ZERO };
                let token = super::lease(&self.paths, token, wait).await?;
                super::github(&self.settings, &self.paths, token, Arc::clone(&self.memory))?
            }
        };
        let found = self.judge(&client, &running).await;
        if found.is_ok() {
            self.judged_beside = Some(running);
        }
        if matches!(found, Err(FollowError::Other(_))) {
            // What was kept of GitHub's answers may be what was wrong.
            self.memory = Arc::default();
        }
        self.dates.note(client.host(), client.date());
        let keep = match &found {
            Ok(_) => true,
            // Else another token may show more.
            Err(error) => matches!(error, FollowError::Github(error) if error.is_transient()),
        };
        self.client = Some(client).filter(|_| keep);
        found
    }

    async fn judge(
        &self,
        client: &Client,
        running: &Running,
    ) -> Result<(Found, Option<Candidate>), FollowError> {
        let only = |found| Ok((found, None));
        let branch = &self.follow.declared.branch;
        let commit = match client.branch(&running.repository, branch.as_str()).await {
            Err(GithubError::NotFound) => return Err(FollowError::NoBranch(branch.clone())),
            found => found?,
        };
        let known = &self.status.status;
        let newest = known.newest.filter(|newest| *newest != running.commit);
        match &known.found {
            // Whoever answers may have sent something else.
            Found::Refused { why: Why::Signature, .. } => {}
            found if found.commit() == Some(commit) && self.judged_beside.as_ref() == Some(running) => {
                return only(found.clone());
            }
            _ => {}
        }
        if commit == running.commit && newest.is_none() {
            return only(Found::Current { commit });
        }
        let text = client.commit_text(&running.repository, commit).await?;
        let signed = match text.verify(&self.follow.signers) {
            Ok(signed) => signed,
            Err(error) => return only(refused(commit, why(&error), &error.to_string())),
        };
        for base in [Some(running.commit), newest].into_iter().flatten() {
            if !is_ahead(client, &running.repository, base, commit).await? {
                let what = if base == running.commit { "what runs" } else { "the last commit that counted" };
                let detail = format!("{what} ({base:.12}) is not in its history", base = base.to_string());
                return only(refused(commit, Why::NotForward, &detail));
            }
        }
        let candidate = client.candidate(&running.repository, text, &signed, DECLARATION).await?;
        let (signed, bytes) = match judge(&candidate, DECLARATION, &self.follow.signers) {
            Ok(judged) => judged,
            Err(JudgeError::Signature(error)) => {
                return only(refused(commit, why(&error), &error.to_string()));
            }
            Err(error @ (JudgeError::OtherTree | JudgeError::OtherFile(_))) => {
                return Err(FollowError::Other(error));
            }
            Err(error @ (JudgeError::Tree | JudgeError::Several(_) | JudgeError::NoFile(_))) => {
                return only(refused(commit, Why::Declaration, &error.to_string()));
            }
        };
        let declaration = Digest::of(&bytes);
        if declaration == running.declaration {
            return only(Found::Current { commit });
        }
        if let Err(error) = declared(&bytes, &running.repository) {
            return only(refused(commit, Why::Declaration, &error.to_string()));
        }
        let signer = events::bounded(&signed.signer.name());
        Ok((Found::Newer { commit, signer, declaration }, Some(candidate)))
    }
}

/// Whether `base` is in the history of `head`.
async fn is_ahead(
    client: &Client,
    repository: &Repository,
    base: Commit,
    head: Commit,
) -> Result<bool, FollowError> {
    match client.compare(repository, base, head).await {
        Ok(comparison) => Ok(comparison.merge_base == base),
        Err(GithubError::Unrelated) => Ok(false),
        Err(GithubError::NotFound) => Err(FollowError::NoCommit(base)),
        Err(error) => Err(error.into()),
    }
}

fn refused(commit: Commit, why: Why, detail: &str) -> Found {
    Found::Refused { commit, why, detail: events::bounded(detail) }
}

fn why(error: &SignatureError) -> Why {
    match error {
        SignatureError::Unsigned => Why::Unsigned,
        SignatureError::Foreign(_) => Why::OtherSignature,
        SignatureError::Stranger(_) => Why::Stranger,
        SignatureError::Namespace(_)
        | SignatureError::Wrong
        | SignatureError::Armor
        | SignatureError::NotThisCommit
        | SignatureError::Malformed(_)
        | SignatureError::TooLarge => Why::Signature,
    }
}

/// The status with the file that shows it.
#[derive(Debug)]
struct StatusFile {
    path: std::path::PathBuf,
    status: FollowStatus,
    events: Arc<Ring>,
}

impl StatusFile {
    /// Takes up what a predecessor of this boot has found: nothing that counted is forgotten when the role starts again.
    fn open(paths: &Paths, follow: &FollowFacts, events: Arc<Ring>) -> Self {
        let path = paths.own("follow.json");
        let previous = files::read_bounded(&path, follow::MAX_BYTES as u64).ok();
        let previous = previous.and_then(|bytes| FollowStatus::parse(&bytes).ok());
        let fresh = FollowStatus {
            branch: follow.declared.branch.clone(),
            apply: follow.declared.apply,
            found: Found::Unknown,
            at: now(),
            newest: None,
            checked_at: None,
            problem: None,
        };
        // Another declaration may follow another branch, of which nothing is known.
        let previous = previous.filter(|previous| previous.branch == fresh.branch);
        let status =
            previous.map_or(fresh, |previous| FollowStatus { apply: follow.declared.apply, ..previous });
        let opened = Self { path, status, events };
        opened.write();
        opened
    }

    /// Says what a look came to. Told and printed too when it is new.
    fn found(&mut self, found: Found) {
        if let Found::Newer { commit, .. } | Found::Current { commit } = found {
            self.status.newest = Some(commit);
        }
        if self.status.found != found {
            println!("publish: follow {}: {found}", self.status.branch);
            self.events.tell(Happened::Follow { found: found.clone() });
            self.status.at = now();
            self.status.found = found;
        }
        self.status.problem = None;
        self.status.checked_at = Some(TimestampMillis::from_clock(SystemTime::now()));
        self.write();
    }

    /// Says why a look came to nothing.
    fn problem(&mut self, detail: &str) {
        let detail = Some(events::bounded(detail));
        if self.status.problem != detail {
            eprintln!("publish: follow {}: {}", self.status.branch, detail.as_deref().unwrap_or_default());
            self.status.problem = detail;
            self.write();
        }
    }

    fn write(&self) {
        let written = json::to_vec(&self.status).map_err(std::io::Error::other);
        if let Err(error) = written.and_then(|bytes| files::replace(&self.path, &bytes)) {
            eprintln!("publish: cannot write {}: {error}", self.path.display());
        }
    }
}

fn now() -> Timestamp {
    Timestamp::from_clock(SystemTime::now()).unwrap_or(Timestamp::EPOCH)
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
