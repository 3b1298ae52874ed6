//! Images by tag become images by digest.

use std::collections::BTreeMap;

use cofferdam_protocol::{ImageReference, RegistryHost};
use cofferdam_registry::{Access, Patience, Registry, base, image};

use super::Logins;
use crate::failure::chain;

/// An image as a compose file names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Image {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Image {
    /// Reads Docker's short and long names: without a registry an image is Docker Hub's, without a tag it is `latest`.
    pub(super) fn read(text: &str) -> Self {
        let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
        let (host, rest) = match name.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
            _ => ("docker.io", name),
        };
        let (path, tag) = rest.rsplit_once(':').map_or((rest, None), |(path, tag)| (path, Some(tag)));
        let hub = matches!(host, "docker.io" | "index.docker.io");
        let path = if hub && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
        Self { host: host.to_owned(), path, tag: tag.map(str::to_owned), digest: digest.map(str::to_owned) }
    }

    /// Its registry.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// As it stands in a declaration, at this digest.
    pub(super) fn at(&self, digest: &str) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        format!("{}/{}{tag}@{digest}", self.host, self.path)
    }

    /// As it stands in a declaration, if the compose file has its digest.
    pub(super) fn pinned(&self) -> Option<String> {
        self.digest.as_ref().map(|digest| self.at(digest))
    }
}

impl std::fmt::Display for Image {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}/{}:{}", self.host, self.path, self.tag.as_deref().unwrap_or("latest"))
    }
}

/// What an image's tag leads to now, as it stands in a declaration. `ca` are certificates (PEM) that alone are trusted for
/// registries; `logins` say as whom they are asked. The error is a sentence.
///
/// # Errors
///
/// Its name, the registry, or no image for linux/amd64.
pub(crate) async fn resolve(wanted: &Image, ca: Option<&str>, logins: &Logins) -> Result<String, String> {
    let host: RegistryHost = wanted.host.parse().map_err(|_| format!("{} is no registry", wanted.host))?;
    let credentials = logins.of(&wanted.host);
    let access = Access { registry: ca.map(str::to_owned), credentials, ..Access::default() };
    let resolved = async {
        let mut registry =
            Registry::new(&base(&host), &wanted.path, access, Patience::default()).map_err(|e| chain(&e))?;
        let tag = wanted.tag.as_deref().unwrap_or("latest");
        let (digest, bytes) = registry.tagged(tag).await.map_err(|error| chain(&error))?;
        image::manifest(&bytes).map_err(|error| chain(&error))?;
        Ok::<_, String>(digest)
    };
    let digest = resolved.await?;
    let reference = wanted.at(&digest.to_string());
    reference.parse::<ImageReference>().map_err(|error| error.message)?;
    Ok(reference)
}

/// What is known of each image.
pub(super) type Resolved = BTreeMap<Image, Result<String, String>>;
