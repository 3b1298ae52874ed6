//! What somebody asks who follows a branch: where it stands, who signed that commit, and what a file of it is.
//!
//! Where a branch stands may change and is asked for conditionally: "unchanged" costs GitHub's limit nothing for those with a token. All
//! else is asked with whole names and compared with them: the commit's text is its name's, the directory the commit's, the file the
//! directory's. So what comes back is what the signer signed, whoever sent it.

use reqwest::Url;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::history::check_branch;
use super::object::{self, Tree};
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

    /// A commit whose signature one of the signers made, or why it does not count.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn signed_commit(
        &self,
        repository: &Repository,
        at: CommitId,
        signers: &[SignerKey],
    ) -> Result<Result<SignedCommit, SignatureError>, GithubError> {
        let url = self.url(repository, &["git", "commits", &at.to_string()], &[])?;
        let found: Commit = self.get(url).await?;
        let Verification { payload, signature } = found.verification;
        Ok(verify(at, payload.as_deref(), signature.as_deref(), signers))
    }

    /// The bytes of a file in the root directory of a signed commit; `None` when there is none of this name that is a regular file.
    ///
    /// # Errors
    /// [`GithubError`]; `Malformed` when what is sent is not what was signed.
    pub async fn signed_file(
        &self,
        repository: &Repository,
        commit: &SignedCommit,
        name: &str,
    ) -> Result<Option<Vec<u8>>, GithubError> {
        let url = self.url(repository, &["git", "trees", &commit.tree.to_string()], &[])?;
        let tree: Tree = self.get(url).await?;
        if tree.name() != Some(commit.tree) {
            return Err(GithubError::Malformed("a directory that is not the signed commit's".to_owned()));
        }
        let Some(file) = tree.file(name) else { return Ok(None) };
        let bytes = self.contents(repository, name, commit.id).await?;
        if object::name("blob", &bytes) != Some(file) {
            return Err(GithubError::Malformed(format!("a {name} that is not the signed commit's")));
        }
        Ok(Some(bytes))
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
