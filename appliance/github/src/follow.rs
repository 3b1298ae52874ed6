//! What somebody asks who follows a branch: where it stands, who signed that commit, and what a file of it is.
//!
//! Where a branch stands may change and is asked for conditionally: "unchanged" costs GitHub's limit nothing for those with a token. All
//! else is asked with whole names, and makes a [`Candidate`] that [`judge`](super::judge) compares with them: so what counts is what the
//! signer signed, whoever sent it.

use reqwest::Url;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::candidate::Candidate;
use super::history::check_branch;
use super::object::{Named, Tree, named};
use super::signed::{SignatureError, SignedCommit, verify};
use super::{Client, GithubError, extend};
use cofferdam_protocol::{Commit as CommitId, Repository, SignerKey};

/// An answer that is asked for again, as the cache keeps it.
#[derive(Serialize, Deserialize)]
struct Kept<T> {
    etag: String,
    answer: T,
}

/// A ref.
#[derive(Serialize, Deserialize)]
struct Ref {
    #[serde(rename = "ref")]
    name: String,
    object: Object,
}

#[derive(Serialize, Deserialize)]
struct Object {
    #[serde(rename = "type")]
    kind: String,
    sha: CommitId,
}

/// Of a commit, what its signature is judged by.
#[derive(Deserialize)]
struct Commit {
    verification: Verification,
}

#[derive(Deserialize)]
struct Verification {
    payload: Option<String>,
    signature: Option<String>,
}

/// The two texts that GitHub sends of a commit, not judged yet.
#[derive(Debug, Clone)]
pub struct CommitText {
    commit: CommitId,
    payload: Option<String>,
    signature: Option<String>,
}

impl CommitText {
    /// Whether one of the signers signed it.
    ///
    /// # Errors
    /// Why it does not count.
    pub fn verify(&self, signers: &[SignerKey]) -> Result<SignedCommit, SignatureError> {
        verify(self.commit, self.payload.as_deref(), self.signature.as_deref(), signers)
    }
}

impl Client {
    /// Where a branch stands, by the whole name of its ref. Asked conditionally when the cache knows an answer.
    ///
    /// # Errors
    /// [`GithubError`]; `NotFound` when there is no such branch, or no such repository that the token shows.
    pub async fn branch(&self, repository: &Repository, branch: &str) -> Result<CommitId, GithubError> {
        check_branch(branch)?;
        let mut url = self.url(repository, &["git", "ref", "heads"], &[])?;
        extend(&mut url, &branch.split('/').collect::<Vec<_>>())?;
        let found: Ref = self.get_changed(url).await?;
        if found.name != format!("refs/heads/{branch}") || found.object.kind != "commit" {
            return Err(GithubError::Malformed("another ref than was asked for".to_owned()));
        }
        Ok(found.object.sha)
    }

    /// The texts of a commit, which say who signed it.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn commit_text(
        &self,
        repository: &Repository,
        commit: CommitId,
    ) -> Result<CommitText, GithubError> {
        let url = self.url(repository, &["git", "commits", &commit.to_string()], &[])?;
        let found: Commit = self.get(url).await?;
        let Verification { payload, signature } = found.verification;
        Ok(CommitText { commit, payload, signature })
    }

    /// What is said to prove that a file is in the root directory of a commit that counts. Nothing of it is judged here.
    ///
    /// # Errors
    /// [`GithubError`]; `Malformed` when something is larger than a candidate holds, or missing.
    pub async fn candidate(
        &self,
        repository: &Repository,
        text: CommitText,
        commit: &SignedCommit,
        name: &str,
    ) -> Result<Candidate, GithubError> {
        let url = self.url(repository, &["git", "trees", &commit.tree.to_string()], &[])?;
        let tree: Tree = self.get(url).await?;
        let malformed = |what: &str| GithubError::Malformed(what.to_owned());
        let tree = tree.object().ok_or_else(|| malformed("a directory with entries missing"))?;
        let file = match named(&tree, name) {
            Some(Named::File(_)) => self.contents(repository, name, commit.id).await?,
            // Which is what will be said of it.
            Some(Named::None | Named::Several) | None => Vec::new(),
        };
        let CommitText { commit, payload, signature } = text;
        let (payload, signature) = (payload.unwrap_or_default(), signature.unwrap_or_default());
        Candidate::new(commit, payload, signature, tree, file)
            .ok_or_else(|| malformed("a commit that is larger than its bounds"))
    }

    /// An answer that may change. What the cache knows is asked for conditionally.
    async fn get_changed<T: Serialize + DeserializeOwned>(&self, url: Url) -> Result<T, GithubError> {
        let known: Option<Kept<T>> =
            self.cached(url.as_str()).and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let answer = self.send_unless(&url, known.as_ref().map(|known| known.etag.as_str())).await?;
        if answer.unchanged {
            let known = known.map(|known| known.answer);
            return known.ok_or_else(|| GithubError::Malformed("an answer to another question".to_owned()));
        }
        let etag = answer.etag.clone();
        let answer: T = answer.json()?;
        if let Some(etag) = etag {
            let kept = Kept { etag, answer };
            if let Ok(bytes) = serde_json::to_vec(&kept) {
                self.remember(url.as_str(), &bytes);
            }
            return Ok(kept.answer);
        }
        Ok(answer)
    }
}
