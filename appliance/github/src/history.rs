//! Commits: where the default branch stands, and whether another commit is in its history.
//!
//! Never asks with a name that a ref could shadow: whoever may push can make a branch or a tag that is called `HEAD` or like the
//! default branch. The head is read once, by the whole name of its ref, and everything else is asked with whole commits.

use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use reqwest::{Method, Url};
use serde::{Deserialize, Serialize};

use super::transport::Kind;
use super::{Client, Commit, GithubError, authorize, extend};
use cofferdam_protocol::{Commit as CommitId, Repository};

/// Largest accepted comparison in bytes: it carries the patches of up to 300 files.
const MAX_COMPARISON: usize = 16 * 1024 * 1024;

/// Largest accepted answer of git's protocol in bytes: about ten thousand tags.
const MAX_REFS: usize = 1024 * 1024;

/// Bound on asking by git's protocol: its host may be out of reach where the API's is not.
const GIT_ATTEMPT: Duration = Duration::from_secs(8);

/// The request `ls-refs` for HEAD, what it points to, and the tags of release attestations (gitprotocol-v2), each line with its
/// length in front.
const LS_REFS: &str = "0014command=ls-refs\n0001000csymrefs\n0014ref-prefix HEAD\n\
                       0021ref-prefix refs/tags/attest-\n0000";

/// The default branch and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its name without `refs/heads/`.
    pub branch: String,
    /// Its commit.
    pub commit: CommitId,
    /// All tags that begin with `attest-`, when the server said them: each published release has one, not each has a release.
    pub tags: Option<Vec<String>>,
}

/// How two commits are related. Which files differ is not read: GitHub names a symbolic link only when the link itself differs,
/// and follows it when it is asked for the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// Their best common ancestor. It is the base itself exactly when the base is in the history of the head.
    pub merge_base: CommitId,
}

impl Client {
    /// What a commit says about itself.
    ///
    /// # Errors
    /// [`GithubError`]; `NotFound` or `Refused` when there is none.
    pub async fn commit(&self, repository: &Repository, at: CommitId) -> Result<Commit, GithubError> {
        let found: Commit = self.get(self.url(repository, &["commits", &at.to_string()], &[])?).await?;
        if found.sha != at {
            return Err(GithubError::Malformed("another commit than was asked for".to_owned()));
        }
        Ok(found)
    }

    /// The default branch and its head, by one request of git's own protocol, which the API's limit does not count: the server
    /// says what its HEAD points to, by the ref's whole name. When that fails, for whatever reason, the API is asked, in two.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn default_head(&self, repository: &Repository) -> Result<Head, GithubError> {
        match self.head_by_git(repository).await {
            Ok(head) => Ok(head),
            Err(_) => self.head_by_api(repository).await,
        }
    }

    async fn head_by_git(&self, repository: &Repository) -> Result<Head, GithubError> {
        let url = self.git_url(repository)?;
        let request = |client: &reqwest::Client| {
            // GitHub tells git's clients from browsers by their name.
            let request = client
                .request(Method::POST, url.clone())
                .header(USER_AGENT, format!("git/{}", self.user_agent))
                .header(CONTENT_TYPE, "application/x-git-upload-pack-request")
                .header(ACCEPT, "application/x-git-upload-pack-result")
                .header("Git-Protocol", "version=2");
            authorize(request, self.git_token.as_ref()).body(LS_REFS)
        };
        let answer = tokio::time::timeout(GIT_ATTEMPT, self.transport.send(Kind::Git, request, MAX_REFS));
        let answer = answer.await.unwrap_or(Err(GithubError::Timeout))?;
        if answer.location.is_some() {
            return Err(GithubError::Moved);
        }
        parse_head(&answer.body).ok_or_else(|| GithubError::Malformed("no default branch".to_owned()))
    }

    async fn head_by_api(&self, repository: &Repository) -> Result<Head, GithubError> {
        #[derive(Deserialize)]
        struct Named {
            default_branch: String,
        }
        let Named { default_branch: branch } = self.get(self.url(repository, &[], &[])?).await?;
        let commit = self.branch(repository, &branch).await?;
        Ok(Head { branch, commit, tags: None })
    }

    /// How `base` and `head` are related, both whole commits. A comparison cannot change, so the cache may answer.
    ///
    /// # Errors
    /// [`GithubError`]; `Unrelated` when they have no common ancestor, `NotFound` when GitHub does not say why it has no answer.
    pub async fn compare(
        &self,
        repository: &Repository,
        base: CommitId,
        head: CommitId,
    ) -> Result<Comparison, GithubError> {
        // The list of commits is not needed: the shortest page of it.
        let span = format!("{base}...{head}");
        let url = self.url(repository, &["compare", &span], &[("per_page", "1"), ("page", "1")])?;
        let known = self.cached(url.as_str()).and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(known) = known {
            return Ok(known);
        }
        let answer: Compared = self.get_up_to(url.clone(), MAX_COMPARISON).await?;
        let comparison = answer.check(base)?;
        if let Ok(bytes) = serde_json::to_vec(&comparison) {
            self.remember(url.as_str(), &bytes);
        }
        Ok(comparison)
    }

    /// Where git's protocol is spoken for a repository.
    fn git_url(&self, repository: &Repository) -> Result<Url, GithubError> {
        let mut url = self.pages().ok_or(GithubError::Config("where git is spoken is not known"))?;
        extend(&mut url, &[repository.owner(), &format!("{}.git", repository.name()), "git-upload-pack"])?;
        Ok(url)
    }
}

/// The JSON shape of a comparison.
#[derive(Deserialize)]
struct Compared {
    status: String,
    base_commit: Named,
    merge_base_commit: Named,
}

#[derive(Deserialize)]
struct Named {
    sha: CommitId,
}

impl Compared {
    /// The comparison, when it is one with `base` and does not contradict itself.
    fn check(self, base: CommitId) -> Result<Comparison, GithubError> {
        let merge_base = self.merge_base_commit.sha;
        let within = matches!(self.status.as_str(), "ahead" | "identical");
        if self.base_commit.sha != base || within != (merge_base == base) {
            return Err(GithubError::Malformed("a comparison that contradicts itself".to_owned()));
        }
        Ok(Comparison { merge_base })
    }
}

/// Lines with their length in four hex digits in front, and then the end, `0000`: one that says what HEAD is,
/// `<commit> HEAD symref-target:refs/heads/<branch>`, and one for each tag, `<object> refs/tags/<name>`.
fn parse_head(body: &[u8]) -> Option<Head> {
    let mut rest = std::str::from_utf8(body).ok()?;
    let (mut head, mut tags) = (None, Vec::new());
    while rest != "0000" {
        let (length, tail) = rest.split_at_checked(4)?;
        let length = usize::from_str_radix(length, 16).ok()?.checked_sub(4).filter(|length| *length > 0)?;
        let (line, tail) = tail.split_at_checked(length)?;
        rest = tail;
        let mut words = line.trim_end_matches('\n').split(' ');
        let (object, name) = (words.next()?, words.next()?);
        let object: CommitId = object.parse().ok()?;
        match (name.strip_prefix("refs/tags/"), words.next()) {
            (Some(tag), _) => tags.push(tag.to_owned()),
            (None, Some(target)) if name == "HEAD" && head.is_none() => {
                let branch = target.strip_prefix("symref-target:refs/heads/")?;
                check_branch(branch).ok()?;
                head = Some((branch.to_owned(), object));
            }
            // What was not asked for.
            (None, _) => return None,
        }
    }
    head.map(|(branch, commit)| Head { branch, commit, tags: Some(tags) })
}

/// A branch's name goes into a path and onto a terminal.
pub(crate) fn check_branch(name: &str) -> Result<(), GithubError> {
    let fine = (1..=255).contains(&name.len())
        && !name.chars().any(|c| c.is_control() || c.is_whitespace())
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if fine { Ok(()) } else { Err(GithubError::Malformed("name of a branch".to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_the_request_states_its_length() {
        let mut rest = LS_REFS;
        let mut lines = Vec::new();
        while let Some((length, tail)) = rest.split_at_checked(4) {
            let length = usize::from_str_radix(length, 16).unwrap();
            let (line, tail) = if length < 4 { ("", tail) } else { tail.split_at(length - 4) };
            lines.push(line);
            rest = tail;
        }
        assert_eq!(rest, "");
        let prefixes = ["ref-prefix HEAD\n", "ref-prefix refs/tags/attest-\n"];
        assert_eq!(lines, ["command=ls-refs\n", "", "symrefs\n", prefixes[0], prefixes[1], ""]);
    }

    #[test]
    fn the_head_is_read_by_the_whole_name_of_its_ref_or_not_at_all() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let line = |text: &str| format!("{:04x}{text}", text.len() + 4);
        let good = line(&format!("{commit} HEAD symref-target:refs/heads/release/1\n")) + "0000";
        let head = |tags: &[&str]| Head {
            branch: "release/1".to_owned(),
            commit: commit.parse().unwrap(),
            tags: Some(tags.iter().map(|tag| (*tag).to_owned()).collect()),
        };
        assert_eq!(parse_head(good.as_bytes()), Some(head(&[])));
        let tag = |name: &str| line(&format!("{commit} refs/tags/{name}\n"));
        let tagged = good.replace("0000", "") + &tag("attest-1") + &tag("attest-2") + "0000";
        assert_eq!(parse_head(tagged.as_bytes()), Some(head(&["attest-1", "attest-2"])));
        assert_eq!(parse_head((tag("attest-1") + "0000").as_bytes()), None, "tags alone are no head");
        for bad in [
            String::new(),
            "0000".to_owned(),
            "0003".to_owned(),
            "zzzz".to_owned(),
            "0004".to_owned() + &good,
            good.replace("0000", "") + &good,
            line(&format!("{commit} HEAD\n")) + "0000",
            line(&format!("{commit} HEAD symref-target:refs/tags/main\n")) + "0000",
            line(&format!("{commit} refs/heads/HEAD symref-target:refs/heads/main\n")) + "0000",
            line(&format!("{commit} HEAD symref-target:refs/heads/../x\n")) + "0000",
            line("ERR access denied") + "0000",
            good.replace(commit, "HEAD"),
            good.replace("0000", ""),
            good.clone() + "x",
        ] {
            assert_eq!(parse_head(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_comparison_is_of_what_was_asked_or_refused() {
        let (base, other) = (CommitId::from([0xaa; 20]), CommitId::from([0xbb; 20]));
        let answer = |status: &str, of: CommitId, merge_base: CommitId| Compared {
            status: status.to_owned(),
            base_commit: Named { sha: of },
            merge_base_commit: Named { sha: merge_base },
        };
        for (status, merge_base) in
            [("ahead", base), ("identical", base), ("behind", other), ("diverged", other)]
        {
            assert_eq!(answer(status, base, merge_base).check(base).unwrap().merge_base, merge_base);
        }
        for (status, of, merge_base) in [
            ("ahead", other, base),
            ("ahead", base, other),
            ("behind", base, base),
            ("diverged", base, base),
            ("new", base, base),
        ] {
            assert!(answer(status, of, merge_base).check(base).is_err(), "{status}");
        }
    }
}
