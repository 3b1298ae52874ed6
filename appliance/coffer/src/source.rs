//! GitHub, the trust anchor: the newest release attestation of a repository and the declaration at its commit.

use cofferdam_attest::claims::{self, Claims};
use cofferdam_attest::evidence::{self, Evidence};
use cofferdam_attest::github::{self, GithubError};
use cofferdam_attest::release::Tag;

use zeroize::Zeroizing;

use crate::cli;
use crate::failure::{Code, Failure, Outcome, chain};
use crate::files;
use crate::trust::unix_now;
use crate::ui::printable;

/// How far this machine's clock and the appliance's may be apart, as in the default policy.
const CLOCK_SKEW_S: u64 = 300;
/// Releases come newest first, 30 a page: an attestation behind 90 newer releases is long past its validity.
const PAGES: u32 = 3;
/// What the default branch points at.
const HEAD: &str = "HEAD";
/// The declaration's place in the repository.
pub(crate) const DECLARATION: &str = "cofferdam.yaml";

/// A reader of one repository.
pub(crate) struct Source {
    client: github::Client,
    repository: claims::Repository,
}

/// A release attestation as it was found.
pub(crate) struct Release {
    pub(crate) tag: Tag,
    pub(crate) page: String,
    pub(crate) document: Vec<u8>,
    pub(crate) evidence: Evidence,
}

impl Source {
    pub(crate) fn new(repository: &str, options: &cli::Github) -> Outcome<Self> {
        let repository = claims::Repository::parse(repository)
            .ok_or_else(|| Failure::usage(format!("{repository} is not OWNER/REPO")))?;
        let ca = options.github_ca.as_ref().map(|path| files::read_text(path, 256 << 10)).transpose()?;
        let api = options.github_api.as_deref().unwrap_or(github::DEFAULT_API);
        // The token is optional: public repositories are read without one.
        let token = ["COFFER_GITHUB_TOKEN", "GITHUB_TOKEN"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()).map(Zeroizing::new));
        let client =
            github::Client::new(api, token, ca.as_deref(), concat!("coffer/", env!("CARGO_PKG_VERSION")))
                .map_err(|error| Failure::usage(format!("{api}: {}", chain(&error))))?;
        Ok(Self { client, repository })
    }

    /// The newest published release attestation. "Newest" is by the tag's time, which the evidence then has to agree
    /// with: whoever can write releases can hide a newer one, but cannot make an older one look fresh.
    pub(crate) async fn newest(&self) -> Outcome<Release> {
        let attestations = self.client.attestations(&self.repository, PAGES).await;
        let attestations = attestations.map_err(|error| self.failure("list releases", &error))?;
        // A tag from the future is nobody's: without this, one release could blind every client for good.
        let latest = claims::format_time(unix_now()?.saturating_add(CLOCK_SKEW_S)).unwrap_or_default();
        let newest = attestations.into_iter().find(|(tag, _)| tag.issued_at <= latest);
        let (tag, newest) = newest.ok_or_else(|| {
            Failure::could_not_check(format!("{} has no release attestation", self.repository))
                .hint("has the appliance published yet? `coffer status` with --endpoint shows it")
        })?;
        let asset =
            newest.assets.iter().find(|asset| asset.name == evidence::ASSET_NAME).ok_or_else(|| {
                Failure::could_not_check(format!("release {tag} has no {}", evidence::ASSET_NAME))
            })?;
        let document = self
            .client
            .download(&self.repository, asset, evidence::MAX_BYTES)
            .await
            .map_err(|error| self.failure("download the release attestation", &error))?;
        let evidence = Evidence::parse(&document).map_err(|error| {
            Failure::rejected(format!(
                "{} of release {} is malformed: {}",
                evidence::ASSET_NAME,
                newest.tag_name,
                chain(&error)
            ))
        })?;
        Ok(Release { tag, page: printable(&newest.html_url), document, evidence })
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
            return Err(Failure::rejected(format!("release {tag} has {} such files", assets.len())));
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
    pub(crate) async fn declaration(&self, claims: &Claims, commit: Option<&str>) -> Outcome<Vec<u8>> {
        let bytes = self.file(&claims.commit).await?;
        let digest = cofferdam_declaration::digest(&bytes);
        if digest != claims.declaration {
            return Err(Failure::rejected(format!(
                "declaration: the appliance measured {}, {} at {} has {digest}",
                claims.declaration, self.repository, claims.commit
            ))
            .hint("the host handed over another declaration than the repository's"));
        }
        let merged = self
            .client
            .is_on_default_branch(&self.repository, &claims.commit)
            .await
            .map_err(|error| self.failure("read the history", &error))?;
        if !merged {
            return Err(Failure::rejected(format!(
                "commit: {} is not in the history of the default branch of {}",
                claims.commit, self.repository
            )));
        }
        match commit {
            Some(commit) if commit != claims.commit => Err(Failure::rejected(format!(
                "commit: the appliance runs {}, {commit} was asked for",
                claims.commit
            ))),
            Some(_) => Ok(bytes),
            None if self.file(HEAD).await? == bytes => Ok(bytes),
            None => Err(Failure::rejected(format!(
                "commit: the appliance runs {}, whose declaration is not what the default branch of {} declares now",
                claims.commit, self.repository
            ))
            .hint(format!("start the appliance with the new declaration, or accept this one with --commit {}", claims.commit))),
        }
    }

    /// The declaration at a commit. That it is not there is an answer; that the repository cannot be seen is none.
    async fn file(&self, at: &str) -> Outcome<Vec<u8>> {
        match self.client.contents(&self.repository, DECLARATION, at).await {
            Ok(bytes) => Ok(bytes),
            Err(GithubError::NotFound) => match self.client.commit(&self.repository, HEAD).await {
                Ok(_) => Err(Failure::rejected(format!(
                    "commit: {} has no {DECLARATION} at {at}",
                    self.repository
                ))),
                Err(error) => Err(self.failure("see the repository", &error)),
            },
            Err(error) => Err(self.failure("read the declaration", &error)),
        }
    }

    fn failure(&self, what: &str, error: &GithubError) -> Failure {
        let message = format!("cannot {what} of {}: {}", self.repository, chain(error));
        match error {
            GithubError::Unauthorized(_) => {
                Failure::new(Code::NotAllowed, message).hint("a private repository needs COFFER_GITHUB_TOKEN")
            }
            _ => Failure::could_not_check(message),
        }
    }
}
