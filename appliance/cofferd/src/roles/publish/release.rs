//! The release attestation: from evidence to a published GitHub release, and what a restart finds of it.
//!
//! The document is written to `pending.json` before GitHub hears of it and becomes `attestation.json` by renaming once it
//! is published. So a successor of a killed role knows what was under way: it removes a draft of that very tag, which
//! can only be the half-made one, and makes the release again, or finds it published and takes it as done. Anything
//! else on GitHub, drafts of other tags included, is left alone: earlier releases are never changed.

use std::io;
use std::path::{Path, PathBuf};

use cofferdam_attest::claims::Claims;
use cofferdam_attest::evidence::{ASSET_NAME, Evidence, MAX_BYTES};
use cofferdam_attest::ratls;
use cofferdam_attest::release::{AnchorTag, Tag};
use cofferdam_github::{Client, GithubError, NewAsset, NewRelease, Release};
use cofferdam_protocol::Repository;
use cofferdam_protocol::facts::ApplianceFacts;

use crate::system::files;

/// Pages of releases on which a half-made draft is looked for. It would be the newest.
const PAGES: u32 = 2;

/// A document for a release with what it says.
#[derive(Debug, Clone)]
pub(crate) struct Attestation {
    /// The exact bytes of the asset.
    pub(crate) document: Vec<u8>,
    /// The tag that belongs to the claims.
    pub(crate) tag: Tag,
    /// The claims inside.
    pub(crate) claims: Claims,
    evidence: Evidence,
}

impl Attestation {
    /// Reads a document; `None` when it is not evidence.
    pub(crate) fn parse(document: Vec<u8>) -> Option<Self> {
        let evidence = Evidence::parse(&document).ok()?;
        let claims = Claims::decode(&evidence.claims).ok()?;
        let tag = Tag::for_claims(&evidence.claims)?;
        Some(Self { document, tag, claims, evidence })
    }

    /// Reads a document from a file; `None` when there is none.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        Self::parse(files::read_bounded(path, u64::try_from(MAX_BYTES).ok()?).ok()?)
    }

    /// When it has to be replaced, in seconds since the Unix epoch: at two thirds of its validity.
    pub(crate) fn renew_at(&self) -> Option<u64> {
        let issued = self.claims.issued_at.unix();
        Some(ratls::renew_at(issued, self.claims.expires_at.unix().checked_sub(issued)?))
    }

    /// Whether it still says the truth about this boot and is not yet due for renewal. The TLS key is new with every
    /// boot, so nothing of another boot passes. A clock before `issued_at` was moved by the host: made again.
    pub(crate) fn holds(&self, appliance: &ApplianceFacts, now: u64) -> bool {
        let claims = &self.claims;
        claims.repository == appliance.repository
            && claims.commit == appliance.commit
            && claims.declaration == appliance.declaration
            && claims.endpoint == appliance.endpoint
            && claims.tls_key == appliance.tls_key
            && claims.certificate == appliance.certificate
            && self.evidence.event_log == appliance.event_log
            && self.evidence.image == appliance.image
            && claims.issued_at.unix() <= now
            && self.renew_at().is_some_and(|until| now < until)
    }
}

/// The two files of a release.
#[derive(Debug)]
pub(crate) struct ReleaseFiles {
    /// The document that is being published.
    pub(crate) pending: PathBuf,
    /// The document last published.
    pub(crate) published: PathBuf,
}

impl ReleaseFiles {
    /// Puts a document where a successor finds it.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn begin(&self, attestation: &Attestation) -> io::Result<()> {
        files::replace(&self.pending, &attestation.document)
    }

    /// Makes the pending document the published one.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn finish(&self) -> io::Result<()> {
        std::fs::rename(&self.pending, &self.published)
    }

    /// Forgets the pending document.
    pub(crate) fn discard(&self) {
        // Not there is as good as removed; anything else shows when the next one is put there.
        let _ = std::fs::remove_file(&self.pending);
    }
}

/// Publishes a document: draft, asset, published. Harmless when it is published already.
///
/// # Errors
/// What GitHub says.
pub(crate) async fn publish(client: &Client, attestation: &Attestation) -> Result<Release, GithubError> {
    let claims = &attestation.claims;
    let name = format!("Attestation of {}, {}", claims.endpoint, claims.issued_at);
    publish_as(client, attestation, attestation.tag.to_string(), name, text(attestation)).await
}

/// What became of an anchor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchoring {
    /// It is published.
    Published,
    /// Another release has its tag: of a boot that ended before it had said so, or of somebody who took the number.
    Taken,
}

/// Publishes a document once more as the anchor of its state.
///
/// # Errors
/// What GitHub says; [`GithubError::Refused`] also where the tag was that of a release that somebody removed.
pub(crate) async fn anchor(
    client: &Client,
    attestation: &Attestation,
    tag: AnchorTag,
) -> Result<Anchoring, GithubError> {
    let claims = &attestation.claims;
    let name = format!("State of {} {}: epoch {}", claims.repository, tag.number(), claims.state_epoch);
    let body = format!(
        "An anchor: a Cofferdam appliance has opened the state of `{repository}` at epoch {epoch}. Older copies of it are refused.\n\n\
         Never delete it: a number that is missing is noticed. Do not believe this page: run `coffer verify {repository}`.\n",
        repository = claims.repository,
        epoch = claims.state_epoch,
    );
    match publish_as(client, attestation, tag.to_string(), name, body).await {
        Ok(_) => Ok(Anchoring::Published),
        Err(GithubError::Refused(message)) => {
            match client.release_by_tag(&claims.repository, &tag.to_string()).await {
                Ok(_) => Ok(Anchoring::Taken),
                Err(GithubError::NotFound) => Err(GithubError::Refused(message)),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

async fn publish_as(
    client: &Client,
    attestation: &Attestation,
    tag: String,
    name: String,
    body: String,
) -> Result<Release, GithubError> {
    let claims = &attestation.claims;
    remove_half_made(client, &claims.repository, &tag).await?;
    let new = NewRelease { tag_name: tag, target_commitish: claims.commit, name, body };
    let asset = NewAsset {
        name: ASSET_NAME.to_owned(),
        content_type: "application/json",
        bytes: attestation.document.clone(),
    };
    client.publish(&claims.repository, &new, &[asset]).await
}

/// Removes drafts of this tag: only a predecessor of this role, killed while it published this very document, can have
/// made them.
async fn remove_half_made(client: &Client, repository: &Repository, tag: &str) -> Result<(), GithubError> {
    for page in 1..=PAGES {
        let releases = client.releases(repository, page).await?;
        if releases.is_empty() {
            return Ok(());
        }
        for release in releases.iter().filter(|release| release.draft && release.tag_name == tag) {
            client.delete_draft(repository, release.id).await?;
        }
    }
    Ok(())
}

/// What a person reads on the release's page. Nothing in it is to be believed without verifying the asset.
fn text(attestation: &Attestation) -> String {
    let claims = &attestation.claims;
    format!(
        "A Cofferdam appliance attests that it runs `{repository}` at commit {commit}.\n\n\
         | | |\n|---|---|\n\
         | endpoint | `{endpoint}` |\n\
         | declaration | `{declaration}` |\n\
         | TLS key | `{tls_key}` |\n\
         | valid | {issued} to {expires} |\n\n\
         `{ASSET_NAME}` holds the evidence. Do not believe this page: run `coffer verify {repository}`.\n",
        repository = claims.repository,
        commit = claims.commit,
        endpoint = claims.endpoint,
        declaration = claims.declaration,
        tls_key = claims.tls_key,
        issued = claims.issued_at,
        expires = claims.expires_at,
    )
}
