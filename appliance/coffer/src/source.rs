//! GitHub, the trust anchor: the release attestations of a repository and the declaration at a commit.
//!
//! Each fact is asked for once in a run. What GitHub does not say is "could not check"; only what it does say can be false.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cofferdam_attest::claims::Claims;
use cofferdam_attest::evidence;
use cofferdam_attest::release::{AnchorTag, Tag};
use cofferdam_github::{self as github, Asset, GithubError, Head, Requests};
use cofferdam_protocol::{Commit, Digest, Repository};
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use crate::anchors::MAX_ANCHORS;
use crate::cache::DiskCache;
use crate::cli;
use crate::failure::{Cause, Code, Failure, Outcome, chain};
use crate::files;
use crate::progress;
use crate::reach::github_hint;

/// How far this machine's clock and the appliance's may be apart, as in the default policy.
pub(crate) const CLOCK_SKEW_S: u64 = 300;
/// Pages of releases that are looked at, of [`github::PAGE`] each: GitHub promises no order, so the newest may be on the last.
pub(crate) const MAX_PAGES: u32 = 20;
/// The declaration's place in the repository.
pub(crate) const DECLARATION: &str = "cofferdam.yaml";

/// A reader of one repository.
pub(crate) struct Source {
    client: github::Client,
    repository: Repository,
    head: OnceCell<Head>,
    /// How long GitHub asked to wait at most, in seconds.
    asked_to_wait: AtomicU64,
}

/// A release that looks like a release attestation.
pub(crate) struct Candidate {
    pub(crate) tag: Tag,
    pub(crate) page: String,
    pub(crate) immutable: Option<bool>,
    asset: Asset,
}

impl Candidate {
    /// Length of its document in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.asset.size
    }
}

/// What a list of releases holds.
#[derive(Default)]
pub(crate) struct Candidates {
    /// By the time in the tag, newest first.
    pub(crate) list: Vec<Candidate>,
    /// Releases that are no attestations by their tags.
    pub(crate) other: usize,
    /// Tags of a time to come.
    pub(crate) future: usize,
    /// Releases without the document, or with one that is too large.
    pub(crate) without_document: usize,
    /// Whether these are all releases; otherwise the bound on pages was reached.
    pub(crate) complete: bool,
    /// Anchors of the state.
    pub(crate) anchors: Anchors,
}

/// The anchors among the releases of a list.
#[derive(Default)]
pub(crate) struct Anchors {
    /// By their numbers; without a document where there is none of a size that evidence can have.
    pub(crate) list: BTreeMap<AnchorTag, Option<Asset>>,
    /// Whether the list was looked through to its end, or as far as git's tags say that there are any.
    pub(crate) complete: bool,
}

impl Source {
    pub(crate) fn new(repository: &Repository, options: &cli::Github) -> Outcome<Self> {
        let repository = repository.clone();
        let ca = options.github_ca.as_ref().map(|path| files::read_text(path, 256 << 10)).transpose()?;
        let api = options.github_api.as_deref().unwrap_or(github::DEFAULT_API);
        // The token is optional: public repositories are read without one.
        let token = ["COFFER_GITHUB_TOKEN", "GITHUB_TOKEN"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()).map(Zeroizing::new));
        let client =
            github::Client::new(api, token, ca.as_deref(), concat!("coffer/", env!("CARGO_PKG_VERSION")))
                .map_err(|error| Failure::usage(format!("{api}: {}", chain(&error))))?
                .with_cache(Arc::new(DiskCache::of_user()))
                .on_retry(|error| progress::again_because(chain(error)));
        Ok(Self { client, repository, head: OnceCell::new(), asked_to_wait: AtomicU64::new(0) })
    }

    /// What was asked so far.
    pub(crate) fn requests(&self) -> Requests {
        self.client.requests()
    }

    /// What is being waited for while it is asked.
    pub(crate) fn waiting(&self) -> String {
        format!("waiting for {}, which is asked about {}", self.client.host(), self.repository)
    }

    /// How long GitHub asked to wait, if it did: an answer that became one check of many says it no more.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let seconds = self.asked_to_wait.load(Ordering::Relaxed);
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    /// The releases that may be release attestations at the time `now`, newest first. Whoever can write releases can add to
    /// this list; what is on it has to prove itself. Those older than `oldest` matter only when there is no other: as soon as all
    /// that matter are found (git says which tags there are), no further pages are read. Where GitHub could not be reached for
    /// these, by git or the API, it is not asked once more.
    pub(crate) async fn candidates(&self, now: u64, oldest: u64) -> Outcome<Candidates> {
        let tags = match self.asked_head().await {
            Ok(head) => head.tags.as_deref(),
            Err(error @ (GithubError::Unreachable(_) | GithubError::Timeout)) => {
                return Err(self.failure("list releases", &error));
            }
            Err(_) => None,
        };
        let wanted = tags.map(|tags| wanted(tags, now, oldest));
        let listed = self.client.all_releases(&self.repository, MAX_PAGES, wanted.as_ref()).await;
        let listed = listed.map_err(|error| self.failure("list releases", &error))?;
        Ok(sort(listed, now))
    }

    /// The document of an anchor.
    pub(crate) async fn anchor(&self, asset: &Asset) -> Result<Vec<u8>, GithubError> {
        self.client.download(&self.repository, asset, evidence::MAX_BYTES).await
    }

    /// The document of a candidate.
    pub(crate) async fn document(&self, candidate: &Candidate) -> Result<Vec<u8>, GithubError> {
        self.client.download(&self.repository, &candidate.asset, evidence::MAX_BYTES).await
    }

    /// The assets of the release `tag` whose names are `wanted`, by name, at most `most` of at most `limit` bytes each.
    pub(crate) async fn assets(
        &self,
        tag: &str,
        wanted: impl Fn(&str) -> bool,
        limit: usize,
        most: usize,
    ) -> Outcome<Vec<(String, Vec<u8>)>> {
        let release = self.client.release_by_tag(&self.repository, tag).await;
        let release = release.map_err(|error| self.failure(&format!("find release {tag}"), &error))?;
        let assets: Vec<_> = release.assets.iter().filter(|asset| wanted(&asset.name)).collect();
        if assets.len() > most {
            return Err(Failure::could_not_check(format!(
                "release {tag} has {} such files, at most {most} are read",
                assets.len()
            )));
        }
        let mut found = Vec::with_capacity(assets.len());
        for asset in assets {
            let bytes = self.client.download(&self.repository, asset, limit).await;
            let bytes = bytes.map_err(|error| self.failure(&format!("download {}", asset.name), &error))?;
            found.push((asset.name.clone(), bytes));
        }
        Ok(found)
    }

    /// Compares the measured declaration with the repository's. It has to be the bytes at the claimed commit; that commit
    /// has to be in the history of the default branch, because GitHub also serves commits of forks under the parent's
    /// name; and the default branch has to declare the same now, because a host can start an old declaration, with an
    /// operator who has left since. Who wants an older one names its `commit`.
    ///
    /// Returns the declaration's bytes.
    pub(crate) async fn declaration(&self, claims: &Claims, commit: Option<Commit>) -> Outcome<Vec<u8>> {
        let _doing = progress::doing(self.waiting());
        if let Some(commit) = commit.filter(|commit| *commit != claims.commit) {
            return Err(Failure::rejected(format!(
                "commit: the appliance runs {}, {commit} was asked for",
                claims.commit
            )));
        }
        let head = self.head().await?;
        self.in_history(claims.commit, head).await?;
        let bytes = self.file(claims.commit).await?;
        let digest = Digest::of(&bytes);
        if digest != claims.declaration {
            return Err(Failure::rejected(format!(
                "declaration: the appliance measured {}, {} at {} has {digest}",
                claims.declaration, self.repository, claims.commit
            ))
            .hint("the host handed over another declaration than the repository's"));
        }
        // The bytes, and not whether git names the file as changed: a symbolic link stays the same when its target changes.
        let settled = commit.is_some() || head.commit == claims.commit;
        if settled || self.file(head.commit).await? == bytes {
            return Ok(bytes);
        }
        Err(Failure::rejected(format!(
            "commit: the appliance runs {}, whose declaration is not what the default branch of {} declares now",
            claims.commit, self.repository
        ))
        .hint(format!(
            "start the appliance with the new declaration, or accept this one with --commit {}",
            claims.commit
        )))
    }

    /// What the default branch declares now, or what `commit` declares. Whether that is in the branch's history, and what the appliance
    /// runs, [`Source::declaration`] says.
    pub(crate) async fn declared(&self, commit: Option<Commit>) -> Outcome<Vec<u8>> {
        match commit {
            Some(commit) => self.file(commit).await,
            None => self.file(self.head().await?.commit).await,
        }
    }

    /// Insists that `commit` is in the history of the default branch.
    async fn in_history(&self, commit: Commit, head: &Head) -> Outcome {
        if head.commit == commit {
            return Ok(());
        }
        let foreign = || {
            Failure::rejected(format!(
                "commit: {commit} is not in the history of the default branch of {}",
                self.repository
            ))
        };
        match self.client.compare(&self.repository, commit, head.commit).await {
            Ok(found) if found.merge_base == commit => Ok(()),
            Ok(_) | Err(GithubError::Unrelated) => Err(foreign()),
            // GitHub does not say why. That there is no such commit it says only when that one is asked for.
            Err(GithubError::NotFound) => match self.client.commit(&self.repository, commit).await {
                Err(GithubError::Refused(_)) => Err(foreign()),
                Err(error) => Err(self.failure("read the history", &error)),
                Ok(_) => Err(self.failure("read the history", &GithubError::NotFound)),
            },
            Err(error) => Err(self.failure("read the history", &error)),
        }
    }

    /// The head of the default branch, asked for once.
    async fn head(&self) -> Outcome<&Head> {
        self.asked_head().await.map_err(|error| self.failure("find the default branch", &error))
    }

    async fn asked_head(&self) -> Result<&Head, GithubError> {
        self.head.get_or_try_init(|| self.client.default_head(&self.repository)).await
    }

    /// The declaration at a whole commit. That it is not there is an answer; that the commit cannot be seen is none.
    async fn file(&self, at: Commit) -> Outcome<Vec<u8>> {
        match self.client.contents(&self.repository, DECLARATION, at).await {
            Ok(bytes) => Ok(bytes),
            Err(GithubError::NotFound) => match self.client.commit(&self.repository, at).await {
                Ok(_) => Err(Failure::rejected(format!(
                    "commit: {} has no {DECLARATION} at {at}",
                    self.repository
                ))),
                Err(error) => Err(self.failure("see the repository", &error)),
            },
            Err(error) => Err(self.failure("read the declaration", &error)),
        }
    }

    /// What GitHub's answer means for this run.
    pub(crate) fn failure(&self, what: &str, error: &GithubError) -> Failure {
        let mut failure = self.in_words(what, error);
        if let GithubError::RateLimited { retry_after, .. } = error {
            self.asked_to_wait.fetch_max(retry_after.as_secs(), Ordering::Relaxed);
            failure.retry_after = Some(*retry_after);
        }
        failure
    }

    fn in_words(&self, what: &str, error: &GithubError) -> Failure {
        let cause = match error {
            GithubError::RateLimited { .. } => Some(Cause::GithubLimit),
            GithubError::Unreachable(_) | GithubError::Timeout | GithubError::Server { .. } => {
                Some(Cause::GithubAway)
            }
            _ => None,
        };
        Failure { cause, ..self.hinted(what, error) }
    }

    fn hinted(&self, what: &str, error: &GithubError) -> Failure {
        let message = format!("cannot {what} of {}: {}", self.repository, chain(error));
        match error {
            GithubError::Unauthorized(_) => {
                Failure::new(Code::NotAllowed, message).hint("a private repository needs COFFER_GITHUB_TOKEN")
            }
            GithubError::RateLimited { resets_at: Some(_), .. } if !self.client.has_token() => {
                Failure::could_not_check(message)
                    .hint("set a token in COFFER_GITHUB_TOKEN: with any, also one without rights, GitHub allows 5,000 requests an hour instead of 60")
            }
            _ => {
                let hint = github_hint(error, &self.client);
                Failure { hint, ..Failure::could_not_check(message) }
            }
        }
    }
}

/// The tags whose releases may be the answer: those of the time that counts, or else the newest; and the last anchors.
fn wanted(tags: &[String], now: u64, oldest: u64) -> HashSet<String> {
    let mut anchors: Vec<AnchorTag> = tags.iter().filter_map(|name| AnchorTag::parse(name)).collect();
    anchors.sort_unstable_by(|a, b| b.cmp(a));
    let anchors = anchors.into_iter().take(MAX_ANCHORS).map(|tag| tag.to_string());
    let issued = |name: &String| Some(Tag::parse(name)?.issued_at.unix());
    let past = tags.iter().filter_map(|name| Some((issued(name)?, name)));
    let past: Vec<(u64, &String)> =
        past.filter(|(issued, _)| *issued <= now.saturating_add(CLOCK_SKEW_S)).collect();
    let newest = past.iter().map(|(issued, _)| *issued).max().unwrap_or(0);
    let least = oldest.min(newest);
    let past = past.into_iter().filter(|(issued, _)| *issued >= least).map(|(_, name)| name.clone());
    past.chain(anchors).collect()
}

/// Sorts releases into those that may be attestations and the others. Drafts are nobody's word yet.
fn sort(listed: github::Listed, now: u64) -> Candidates {
    // A tag from the future is nobody's: without this, one release could blind every client for good.
    let latest = now.saturating_add(CLOCK_SKEW_S);
    let mut found = Candidates { complete: listed.complete, ..Candidates::default() };
    found.anchors.complete = listed.complete;
    for release in listed.releases.into_iter().filter(|release| !release.draft) {
        let fits = |asset: &Asset| {
            asset.name == evidence::ASSET_NAME && (1..=evidence::MAX_BYTES as u64).contains(&asset.size)
        };
        if let Some(tag) = AnchorTag::parse(&release.tag_name) {
            found.anchors.list.insert(tag, release.assets.into_iter().find(fits));
            continue;
        }
        let Some(tag) = Tag::parse(&release.tag_name) else {
            found.other += 1;
            continue;
        };
        match release.assets.into_iter().find(fits) {
            _ if tag.issued_at.unix() > latest => found.future += 1,
            None => found.without_document += 1,
            Some(asset) => found.list.push(Candidate {
                tag,
                page: release.html_url,
                immutable: release.immutable,
                asset,
            }),
        }
    }
    found.list.sort_by(|a, b| b.tag.issued_at.cmp(&a.tag.issued_at).then(a.tag.digest.cmp(&b.tag.digest)));
    found
}

#[cfg(test)]
mod tests {
    use cofferdam_protocol::Timestamp;

    use super::*;

    const NOW: &str = "2026-06-01T12:00:00Z";

    fn now() -> u64 {
        NOW.parse().map(Timestamp::unix).unwrap()
    }

    fn release(tag: &str, draft: bool, assets: &[(&str, u64)]) -> github::Release {
        let asset = |(name, size): &(&str, u64)| Asset {
            id: 1,
            name: (*name).to_owned(),
            size: *size,
            digest: None,
            browser_download_url: None,
        };
        github::Release {
            id: 1,
            tag_name: tag.to_owned(),
            target_commitish: "main".to_owned(),
            draft,
            immutable: Some(true),
            created_at: NOW.to_owned(),
            published_at: None,
            html_url: "https://h/".to_owned(),
            upload_url: "https://h/".to_owned(),
            assets: assets.iter().map(asset).collect(),
        }
    }

    #[test]
    fn candidates_are_published_timely_and_carry_a_document_newest_first() {
        let document: &[(&str, u64)] = &[("attestation.json", 5000)];
        let releases = vec![
            release("attest-20260601T110000Z-00000001", false, document),
            release("attest-20260601T115900Z-00000002", false, &[("x", 1), ("attestation.json", 5000)]),
            release("attest-20260601T120459Z-00000003", false, document),
            release("attest-20260601T120501Z-00000004", false, document),
            release("attest-29991231T235959Z-00000005", false, document),
            release("attest-20260601T115959Z-00000006", true, document),
            release("attest-20260601T115959Z-00000007", false, &[]),
            release("attest-20260601T115959Z-00000008", false, &[("attestation.json", 0)]),
            release("attest-20260601T115959Z-00000009", false, &[("attestation.json", 256 * 1024 + 1)]),
            release("attest-20260601T115959Z-0000000A", false, document),
            release("v1.0.0", false, document),
        ];
        let listed = github::Listed { releases, complete: true };
        let found = sort(listed, now());
        let digests: Vec<String> =
            found.list.iter().map(|candidate| candidate.tag.digest.to_string()).collect();
        assert_eq!(digests, ["00000003", "00000002", "00000001"]);
        assert_eq!((found.other, found.future, found.without_document), (2, 2, 3));
        assert!(found.complete);
    }

    #[tokio::test]
    async fn a_github_out_of_reach_is_could_not_check_with_what_to_try() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let client = github::Client::new(&format!("https://{closed}/api/v3"), None, None, "coffer").unwrap();
        let source = Source {
            client: client.with_deadline(Duration::from_millis(100)),
            repository: "acme/shop".parse().unwrap(),
            head: OnceCell::new(),
            asked_to_wait: AtomicU64::new(0),
        };
        let failure = source.candidates(0, 0).await.err().unwrap();
        assert_eq!(failure.code, Code::CouldNotCheck);
        assert!(failure.message.starts_with("cannot list releases of acme/shop: GitHub is unreachable"));
        assert!(failure.hint.unwrap().contains("--github-api"));
    }

    /// A listener that lets no further connection in: its queue is full, and what comes then is dropped.
    fn dropping() -> (std::net::SocketAddr, Vec<std::net::TcpStream>, tokio::net::TcpListener) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let moment = Duration::from_millis(200);
        let full = std::iter::from_fn(|| std::net::TcpStream::connect_timeout(&address, moment).ok());
        (address, full.take(64).collect(), listener)
    }

    #[tokio::test(start_paused = true)]
    async fn that_github_is_out_of_reach_is_known_within_ten_seconds() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (drops, _queue, _listener) = dropping();
        for (address, hint) in [(closed, "--github-api"), (drops, "firewall")] {
            let root = format!("https://{address}/api/v3");
            let client = github::Client::new(&root, None, None, "coffer").unwrap();
            let source = Source {
                client,
                repository: "acme/shop".parse().unwrap(),
                head: OnceCell::new(),
                asked_to_wait: AtomicU64::new(0),
            };
            let begun = tokio::time::Instant::now();
            let failure = source.candidates(0, 0).await.err().unwrap();
            assert_eq!(failure.code, Code::CouldNotCheck);
            assert!(failure.hint.as_ref().unwrap().contains(hint), "{failure:?}");
            assert!(begun.elapsed() <= Duration::from_secs(10), "{:?} at {address}", begun.elapsed());
            let asked = source.requests();
            assert!(asked.git >= 1 && asked.api >= 1, "both ways are tried: {asked:?}");
        }
    }

    #[test]
    fn the_tags_that_matter_are_those_of_the_time_that_counts_or_else_the_newest() {
        let now = now();
        let tags = ["20260601T120000Z", "20260601T110000Z", "20260501T110000Z", "20270101T000000Z", "junk"]
            .map(|time| format!("attest-{time}-00000000"));
        let of = |times: &[&str]| -> HashSet<String> {
            times.iter().map(|time| format!("attest-{time}-00000000")).collect()
        };
        assert_eq!(wanted(&tags, now, now - 86_400), of(&["20260601T120000Z", "20260601T110000Z"]));
        assert_eq!(wanted(&tags[2..], now, now - 86_400), of(&["20260501T110000Z"]));
        assert_eq!(wanted(&tags[3..], now, now - 86_400), of(&[]));
    }
}
