//! What GitHub's answers and requests look like, reduced to what is used. GitHub adds fields as it likes: unknown ones are ignored.

use cofferdam_protocol::Commit as CommitId;
use serde::{Deserialize, Serialize};

/// A published or draft release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Number that the API knows it by.
    pub id: u64,
    /// Name of its tag.
    pub tag_name: String,
    /// Branch or commit that the tag is made from.
    pub target_commitish: String,
    /// Whether it is not published yet.
    pub draft: bool,
    /// Whether GitHub refuses changes to it; absent on servers that do not know immutable releases.
    #[serde(default)]
    pub immutable: Option<bool>,
    /// The date of its commit, RFC 3339: not when the release was made, and nothing that lists are in the order of.
    pub created_at: String,
    /// When it was published, RFC 3339.
    pub published_at: Option<String>,
    /// Page for people.
    pub html_url: String,
    /// URI template for uploads.
    pub upload_url: String,
    /// Its files.
    pub assets: Vec<Asset>,
}

/// A file of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asset {
    /// Number that the API knows it by.
    pub id: u64,
    /// File name.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// `sha256:<64 hex>`, when the server computes it.
    #[serde(default)]
    pub digest: Option<String>,
    /// Where browsers fetch it.
    #[serde(default)]
    pub browser_download_url: Option<String>,
}

/// A commit.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Commit {
    /// Its whole name.
    pub sha: CommitId,
    /// What it says about itself.
    pub commit: CommitDetail,
}

/// The part of a commit that git itself stores.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct CommitDetail {
    /// Message.
    pub message: String,
    /// Who committed it, and when.
    pub committer: Option<Signature>,
}

/// A committer as git records it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Signature {
    /// When, RFC 3339.
    pub date: Option<String>,
}

/// A release to be made.
#[derive(Debug, Clone, Serialize)]
pub struct NewRelease {
    /// Name of the tag to make.
    pub tag_name: String,
    /// Commit to tag.
    pub target_commitish: CommitId,
    /// Title.
    pub name: String,
    /// Text.
    pub body: String,
}

/// A file to upload.
#[derive(Debug, Clone)]
pub struct NewAsset {
    /// File name: 1 to 100 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// Media type.
    pub content_type: &'static str,
    /// Contents.
    pub bytes: Vec<u8>,
}

/// The JSON shape of a file.
#[derive(Deserialize)]
pub(super) struct File {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) size: u64,
    pub(super) encoding: Option<String>,
    pub(super) content: Option<String>,
}
