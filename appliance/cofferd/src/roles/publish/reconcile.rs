//! What should be the newest release of the repository, and what is.
//!
//! Whoever holds the token can delete the attestation, put another release above it, or publish as another machine. Clients are not misled
//! by that (they verify what they find), but they are kept from this machine, and nobody else would notice.
//!
//! | what is found | what is done |
//! |---|---|
//! | the attestation of this boot, whole, and nothing above it | nothing |
//! | it is gone, or its asset is another one | it is published again |
//! | above it, releases with the tag of an attestation that are none | it is published again, now and then |
//! | above it, the attestation of another TLS key that is in date | an alarm: two machines that publish against each other help nobody, so an operator decides |
//!
//! A quote is not verified here: the role has no roots, and clients have.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use cofferdam_attest::evidence::{ASSET_NAME, MAX_BYTES};
use cofferdam_attest::release::Tag;
use cofferdam_github::{Cache, Client, GithubError, Release};
use cofferdam_protocol::Digest;

use super::release::Attestation;

/// Pages of releases that are looked at: as many as clients do.
const PAGES: u32 = 20;
/// Releases above ours of which the document is read, the newest first.
const MAX_READ: usize = 8;
/// A tag that is further ahead than this is of no release that anybody believes.
const CLOCK_SKEW_S: u64 = 300;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Ours is the newest.
    Newest,
    /// Ours is not there as it was published, in words.
    Gone(String),
    /// Ours is there, and so are releases above it that are no attestations of this repository.
    Covered(String),
    /// Another machine says that it is the appliance.
    Claimed(String),
}

/// Looks at the releases of the repository.
///
/// # Errors
/// What GitHub says.
pub(crate) async fn look(client: &Client, ours: &Attestation, now: u64) -> Result<Found, GithubError> {
    let repository = &ours.claims.repository;
    let listed = client.all_releases(repository, PAGES, None).await?;
    let published = listed.releases.iter().filter(|release| !release.draft);
    let tagged = published.filter_map(|release| Some((Tag::parse(&release.tag_name)?, release)));
    let mut tagged: Vec<(Tag, &Release)> = tagged.collect();
    tagged.sort_by_key(|(tag, _)| std::cmp::Reverse((tag.issued_at, tag.digest)));

    let own = tagged.iter().find(|(tag, _)| *tag == ours.tag);
    let gone = match own {
        None => Some(format!("{} is gone", ours.tag)),
        Some((_, release)) if !is_whole(release, &ours.document) => Some(format!("{} was changed", ours.tag)),
        Some(_) => None,
    };
    let believable = |tag: &Tag| tag.issued_at.unix() <= now.saturating_add(CLOCK_SKEW_S);
    let above = tagged.iter().filter(|(tag, _)| tag.issued_at >= ours.tag.issued_at && *tag != ours.tag);
    let above: Vec<_> = above.filter(|(tag, _)| believable(tag)).collect();
    for (tag, release) in above.iter().take(MAX_READ) {
        if let Some(claim) = another(client, ours, tag, release, now).await? {
            return Ok(Found::Claimed(claim));
        }
    }
    Ok(match (gone, above.first()) {
        (Some(gone), _) => Found::Gone(gone),
        (None, Some((tag, _))) => Found::Covered(format!("{tag} is above it and no attestation in date")),
        (None, None) => Found::Newest,
    })
}

/// Whether the release has the document, as far as GitHub says that in its list.
fn is_whole(release: &Release, document: &[u8]) -> bool {
    let mut assets = release.assets.iter().filter(|asset| asset.name == ASSET_NAME);
    assets.next().is_some_and(|asset| {
        let digest = Digest::of(document).to_string();
        asset.size == document.len() as u64 && asset.digest.as_ref().is_none_or(|said| *said == digest)
    })
}

/// Who another machine says that it is, when the release holds the attestation of one for this repository, in date.
async fn another(
    client: &Client,
    ours: &Attestation,
    tag: &Tag,
    release: &Release,
    now: u64,
) -> Result<Option<String>, GithubError> {
    let Some(asset) = release.assets.iter().find(|asset| asset.name == ASSET_NAME) else { return Ok(None) };
    let document = match client.download(&ours.claims.repository, asset, MAX_BYTES).await {
        Ok(document) => document,
        Err(error) if error.is_transient() => return Err(error),
        // Not to be had, or not what the release says: then it is nobody's attestation.
        Err(_) => return Ok(None),
    };
    let other = Attestation::parse(document).filter(|other| {
        let claims = &other.claims;
        other.tag == *tag
            && claims.repository.is_same(&ours.claims.repository)
            && claims.tls_key != ours.claims.tls_key
            && now < claims.expires_at.unix()
    });
    Ok(other.map(|other| {
        let (endpoint, key) = (&other.claims.endpoint, &other.claims.tls_key);
        format!("another machine claims this repository: {tag}, at {endpoint}, with the TLS key {key}")
    }))
}

/// GitHub's answers since the role started, so that what has not changed is not sent again.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<BTreeMap<String, Vec<u8>>>);

/// Bound on what is remembered, in bytes: some pages of releases and documents. When it is full, everything is forgotten.
const MAX_MEMORY: usize = 8 << 20;

impl Cache for Memory {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn put(&self, key: &str, value: &[u8]) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: usize = held.values().map(Vec::len).sum();
        if bytes.saturating_add(value.len()) > MAX_MEMORY {
            held.clear();
        }
        if value.len() <= MAX_MEMORY {
            held.insert(key.to_owned(), value.to_vec());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_is_bounded() {
        let memory = Memory::default();
        for number in 0..100 {
            memory.put(&number.to_string(), &vec![0; 1 << 20]);
            let held: usize = memory.0.lock().unwrap().values().map(Vec::len).sum();
            assert!(held <= MAX_MEMORY, "{held}");
            assert!(memory.get(&number.to_string()).is_some());
        }
        memory.put("huge", &vec![0; MAX_MEMORY + 1]);
        assert!(memory.get("huge").is_none());
    }
}
