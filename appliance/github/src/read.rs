//! Reading: files, releases and the bytes of their assets.

use std::collections::HashSet;

use reqwest::header::ACCEPT;
use reqwest::{Method, Url};
use serde::{Deserialize, Serialize};

use super::transport::Kind;
use super::types::File;
use super::{Asset, Client, GithubError, MAX_FILE, Release, authorize, check_tag, extend};
use cofferdam_protocol::{Commit as CommitId, Digest, Repository, base64};

/// Releases asked for at once, GitHub's largest page.
pub const PAGE: usize = 100;

/// Redirects followed for one asset.
const MAX_REDIRECTS: usize = 5;

/// The releases of a repository, in whatever order GitHub lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Each one once.
    pub releases: Vec<Release>,
    /// Whether these are all, or all that were wanted; otherwise the bound on pages was reached.
    pub complete: bool,
}

/// One page of releases, as the cache keeps it.
#[derive(Serialize, Deserialize)]
struct Page {
    etag: String,
    more: bool,
    releases: Vec<Release>,
}

impl Client {
    /// The bytes of a file of at most [`MAX_FILE`] at a commit; of a symbolic link those of the file that it points to in the same
    /// repository. They cannot change, so the cache may answer.
    ///
    /// # Errors
    /// [`GithubError`]; `NotFound` when the repository, the commit or the file does not exist (or is not visible).
    pub async fn contents(
        &self,
        repository: &Repository,
        path: &str,
        at: CommitId,
    ) -> Result<Vec<u8>, GithubError> {
        let parts: Vec<&str> = path.split('/').collect();
        if path.len() > 512 || parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
            return Err(GithubError::Config("path of a file is not plain and relative"));
        }
        let mut url = self.url(repository, &["contents"], &[("ref", &at.to_string())])?;
        extend(&mut url, &parts)?;
        let name = format!("bytes of {url}");
        if let Some(known) = self.cached(&name) {
            return Ok(known);
        }
        let file: File = self.get(url).await?;
        let bytes = file.bytes()?;
        self.remember(&name, &bytes);
        Ok(bytes)
    }

    /// One page of releases (from 1) of 30; drafts are among them when the token may see them.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn releases(&self, repository: &Repository, page: u32) -> Result<Vec<Release>, GithubError> {
        self.get(self.url(repository, &["releases"], &[("per_page", "30"), ("page", &page.to_string())])?)
            .await
    }

    /// The releases on the first `pages` pages of [`PAGE`], or on fewer when those of all `wanted` tags are among them. A page that
    /// the cache holds is asked for conditionally.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn all_releases(
        &self,
        repository: &Repository,
        pages: u32,
        wanted: Option<&HashSet<String>>,
    ) -> Result<Listed, GithubError> {
        let mut missing = wanted.cloned();
        let mut releases: Vec<Release> = Vec::new();
        let mut seen = HashSet::new();
        for page in 1..=pages {
            let found = self.page_of_releases(repository, page).await?;
            // A release that is published meanwhile moves others onto the next page.
            releases.extend(found.releases.into_iter().filter(|release| seen.insert(release.id)));
            let more = found.more
                && missing.as_mut().is_none_or(|missing| {
                    // Anyone's draft may bear the tag, and is not the release of it.
                    let published =
                        |tag: &str| releases.iter().any(|release| !release.draft && release.tag_name == tag);
                    missing.retain(|tag| !published(tag));
                    !missing.is_empty()
                });
            if !more {
                return Ok(Listed { releases, complete: true });
            }
        }
        Ok(Listed { releases, complete: false })
    }

    async fn page_of_releases(&self, repository: &Repository, page: u32) -> Result<Page, GithubError> {
        let (per_page, page) = (PAGE.to_string(), page.to_string());
        let url = self.url(repository, &["releases"], &[("per_page", &per_page), ("page", &page)])?;
        let known: Option<Page> =
            self.cached(url.as_str()).and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let answer = self.send_unless(&url, known.as_ref().map(|known| known.etag.as_str())).await?;
        if answer.unchanged {
            let known =
                known.ok_or_else(|| GithubError::Malformed("an answer to another question".to_owned()))?;
            // "Unchanged" is said of this page; that a next one has come since, a full page does not show.
            return Ok(Page { more: known.more || known.releases.len() == PAGE, ..known });
        }
        let (etag, more) = (answer.etag.clone(), answer.more);
        let releases: Vec<Release> = answer.json()?;
        if releases.len() > PAGE {
            return Err(GithubError::Malformed("a page of more releases than were asked for".to_owned()));
        }
        let found = Page { etag: etag.unwrap_or_default(), more, releases };
        if !found.etag.is_empty()
            && let Ok(bytes) = serde_json::to_vec(&found)
        {
            self.remember(url.as_str(), &bytes);
        }
        Ok(found)
    }

    /// The published release of a tag.
    ///
    /// # Errors
    /// [`GithubError`]; `NotFound` when there is none.
    pub async fn release_by_tag(&self, repository: &Repository, tag: &str) -> Result<Release, GithubError> {
        check_tag(tag)?;
        self.get(self.url(repository, &["releases", "tags", tag], &[])?).await
    }

    /// A release by number, drafts too when the token may see them.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn release(&self, repository: &Repository, id: u64) -> Result<Release, GithubError> {
        self.get(self.url(repository, &["releases", &id.to_string()], &[])?).await
    }

    /// The bytes of an asset, at most `limit`; its stated size and digest have to agree with them. They are fetched where browsers
    /// fetch them, without the token, which the API's limit does not count; with a token the API is asked for what is not there,
    /// as that of a private repository is not.
    ///
    /// # Errors
    /// [`GithubError`]; `Malformed` when it is larger or not what the release says.
    pub async fn download(
        &self,
        repository: &Repository,
        asset: &Asset,
        limit: usize,
    ) -> Result<Vec<u8>, GithubError> {
        if asset.size > limit as u64 {
            return Err(GithubError::Malformed(format!(
                "asset of {} bytes, at most {limit} wanted",
                asset.size
            )));
        }
        let url = self.url(repository, &["releases", "assets", &asset.id.to_string()], &[])?;
        let name = url.to_string();
        if let Some(bytes) = self.cached(&name).and_then(|bytes| check_asset(asset, bytes).ok()) {
            return Ok(bytes);
        }
        let browsed = match self.page_of_asset(asset) {
            Some(page) => Some(self.follow(page, Kind::Storage, asset, limit).await),
            None => None,
        };
        let bytes = match browsed {
            Some(Ok(bytes)) => bytes,
            Some(Err(error)) if !self.has_token() || error.is_transient() => return Err(error),
            _ => self.follow(url, Kind::Api, asset, limit).await?,
        };
        self.remember(&name, &bytes);
        Ok(bytes)
    }

    /// Gets the bytes of an asset, wherever the server sends us for them.
    async fn follow(
        &self,
        mut url: Url,
        mut kind: Kind,
        asset: &Asset,
        limit: usize,
    ) -> Result<Vec<u8>, GithubError> {
        let mut token = self.token.clone().filter(|_| kind == Kind::Api);
        for _ in 0..=MAX_REDIRECTS {
            let request = |client: &reqwest::Client| {
                let request =
                    client.request(Method::GET, url.clone()).header(ACCEPT, "application/octet-stream");
                authorize(request, token.as_ref())
            };
            let answer = self.transport.send(kind, request, limit).await?;
            let Some(location) = answer.location else {
                return check_asset(asset, answer.body);
            };
            let next = url.join(&location).map_err(|_| GithubError::Malformed("redirect".to_owned()))?;
            if next.scheme() != "https" {
                return Err(GithubError::Malformed("redirect away from https".to_owned()));
            }
            // The storage host gets its permission in the URL; the token is none of its business.
            (token, kind, url) = (None, Kind::Storage, next);
        }
        Err(GithubError::Malformed("too many redirects".to_owned()))
    }

    /// Where browsers fetch an asset, when that is a place of this very server.
    fn page_of_asset(&self, asset: &Asset) -> Option<Url> {
        let pages = self.pages()?;
        let url = asset.browser_download_url.as_deref().and_then(|text| Url::parse(text).ok());
        url.filter(|url| url.origin() == pages.origin() && url.scheme() == "https")
    }
}

impl File {
    fn bytes(self) -> Result<Vec<u8>, GithubError> {
        if self.kind != "file" || self.encoding.as_deref() != Some("base64") {
            return Err(GithubError::Malformed("not a file, or too large for the API".to_owned()));
        }
        let text: String = self.content.unwrap_or_default().split_ascii_whitespace().collect();
        match base64::decode(&text) {
            Some(bytes) if bytes.len() <= MAX_FILE && bytes.len() as u64 == self.size => Ok(bytes),
            _ => Err(GithubError::Malformed("contents that are not base64 of the stated size".to_owned())),
        }
    }
}

fn check_asset(asset: &Asset, bytes: Vec<u8>) -> Result<Vec<u8>, GithubError> {
    let size_ok = bytes.len() as u64 == asset.size;
    let digest_ok = asset.digest.as_ref().is_none_or(|digest| *digest == Digest::of(&bytes).to_string());
    if size_ok && digest_ok {
        Ok(bytes)
    } else {
        Err(GithubError::Malformed(format!("asset {} is not what its release says", asset.name)))
    }
}
