//! Writing: a release from draft to published, so that an immutable one covers all of its assets.

use reqwest::Method;
use reqwest::Url;
use reqwest::header::CONTENT_TYPE;
use serde::Serialize;

use super::transport::{self, Kind};
use super::{Asset, Client, GithubError, MAX_JSON, NewAsset, NewRelease, Release, api, authorize};
use cofferdam_protocol::{Digest, Repository};

/// An attestation never takes the place of the project's own release under `/releases/latest`.
const NOT_LATEST: &str = "false";

impl Client {
    /// Publishes a release: draft, then assets, then published, so that an immutable release covers all assets. When a
    /// step fails the draft is removed (as far as the server lets us) and nothing is public. When a release of that
    /// tag with the same assets is already published it is returned, so that repeating a call is harmless.
    ///
    /// # Errors
    /// [`GithubError`] of the step that failed.
    pub async fn publish(
        &self,
        repository: &Repository,
        new: &NewRelease,
        assets: &[NewAsset],
    ) -> Result<Release, GithubError> {
        match self.release_by_tag(repository, &new.tag_name).await {
            Ok(release) if assets.iter().all(|asset| holds(&release, asset)) => return Ok(release),
            Ok(_) => return Err(GithubError::Refused("another release has this tag".to_owned())),
            Err(GithubError::NotFound) => {}
            Err(error) => return Err(error),
        }
        let draft = self.create_draft(repository, new).await?;
        match self.fill(repository, &draft, assets).await {
            Ok(release) => Ok(release),
            Err(error) => {
                // Best effort: an abandoned draft is invisible to everybody without write access.
                let _ = self.delete_draft(repository, draft.id).await;
                Err(error)
            }
        }
    }

    /// Creates a draft release.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn create_draft(
        &self,
        repository: &Repository,
        new: &NewRelease,
    ) -> Result<Release, GithubError> {
        #[derive(Serialize)]
        struct Body<'a> {
            #[serde(flatten)]
            new: &'a NewRelease,
            draft: bool,
            make_latest: &'static str,
        }
        let url = self.url(repository, &["releases"], &[])?;
        self.write(Method::POST, url, &Body { new, draft: true, make_latest: NOT_LATEST }).await
    }

    /// Uploads a file to a draft.
    ///
    /// # Errors
    /// [`GithubError`]; `Malformed` when the server names an upload host that does not belong to it.
    pub async fn upload(
        &self,
        repository: &Repository,
        release: &Release,
        asset: &NewAsset,
    ) -> Result<Asset, GithubError> {
        let url = self.upload_url(release, &asset.name)?;
        let request = |client: &reqwest::Client| {
            let request = client.request(Method::POST, url.clone()).header(CONTENT_TYPE, asset.content_type);
            authorize(api(request), self.token.as_ref()).body(asset.bytes.clone())
        };
        match self.transport.send(Kind::Api, request, MAX_JSON).await.and_then(transport::Answer::json) {
            // A first attempt may have arrived although its answer did not.
            Err(GithubError::Refused(message)) => {
                let now = self.release(repository, release.id).await?;
                let there = now.assets.iter().find(|known| is_copy(known, asset)).cloned();
                there.ok_or(GithubError::Refused(message))
            }
            other => other,
        }
    }

    /// Publishes a draft.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn publish_draft(&self, repository: &Repository, id: u64) -> Result<Release, GithubError> {
        #[derive(Serialize)]
        struct Body {
            draft: bool,
            make_latest: &'static str,
        }
        let url = self.url(repository, &["releases", &id.to_string()], &[])?;
        match self.write(Method::PATCH, url, &Body { draft: false, make_latest: NOT_LATEST }).await {
            // A published release may be immutable, also towards the attempt that published it.
            Err(GithubError::Refused(message)) => {
                let now = self.release(repository, id).await?;
                if now.draft { Err(GithubError::Refused(message)) } else { Ok(now) }
            }
            other => other,
        }
    }

    /// Deletes a draft; refuses to touch a published release.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn delete_draft(&self, repository: &Repository, id: u64) -> Result<(), GithubError> {
        if !self.release(repository, id).await?.draft {
            return Err(GithubError::Refused("the release is published".to_owned()));
        }
        let url = self.url(repository, &["releases", &id.to_string()], &[])?;
        let request = |client: &reqwest::Client| {
            authorize(api(client.request(Method::DELETE, url.clone())), self.token.as_ref())
        };
        self.transport.send(Kind::Api, request, MAX_JSON).await.map(|_| ())
    }

    async fn fill(
        &self,
        repository: &Repository,
        draft: &Release,
        assets: &[NewAsset],
    ) -> Result<Release, GithubError> {
        for asset in assets {
            let uploaded = self.upload(repository, draft, asset).await?;
            if !is_copy(&uploaded, asset) {
                return Err(GithubError::Malformed(format!("asset {} arrived damaged", asset.name)));
            }
        }
        self.publish_draft(repository, draft.id).await
    }

    async fn write<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        body: &impl Serialize,
    ) -> Result<T, GithubError> {
        let body = serde_json::to_vec(body).map_err(|_| GithubError::Config("request does not serialise"))?;
        let request = |client: &reqwest::Client| {
            let request =
                client.request(method.clone(), url.clone()).header(CONTENT_TYPE, "application/json");
            authorize(api(request), self.token.as_ref()).body(body.clone())
        };
        self.transport.send(Kind::Api, request, MAX_JSON).await?.json()
    }

    /// The upload URL from the release's template. It has to be the API's own host or its `uploads.` sibling, because
    /// the token goes there.
    fn upload_url(&self, release: &Release, name: &str) -> Result<Url, GithubError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if !(1..=100).contains(&name.len()) || !name.bytes().all(plain) {
            return Err(GithubError::Config("asset name is not plain"));
        }
        let (base, _) = release.upload_url.split_once('{').unwrap_or((&release.upload_url, ""));
        let mut url = Url::parse(base).map_err(|_| GithubError::Malformed("upload URL".to_owned()))?;
        let (ours, theirs) = (self.root.host_str().unwrap_or(""), url.host_str().unwrap_or(""));
        let sibling = match (ours.strip_prefix("api."), theirs.strip_prefix("uploads.")) {
            (Some(a), Some(b)) => a == b,
            _ => false,
        };
        let same = ours == theirs && self.root.port_or_known_default() == url.port_or_known_default();
        if url.scheme() != "https" || !(same || sibling) {
            return Err(GithubError::Malformed("upload URL of a foreign host".to_owned()));
        }
        url.query_pairs_mut().clear().append_pair("name", name);
        Ok(url)
    }
}

fn holds(release: &Release, new: &NewAsset) -> bool {
    release.assets.iter().any(|known| is_copy(known, new))
}

fn is_copy(known: &Asset, new: &NewAsset) -> bool {
    known.name == new.name
        && known.size == new.bytes.len() as u64
        && known.digest.as_ref().is_none_or(|digest| *digest == Digest::of(&new.bytes).to_string())
}
