//! The client against the development GitHub, which checks every request and response against GitHub's own description.
//! Skipped, saying so, where Python, git or the description is absent.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod development;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cofferdam_github::{
    Cache, Candidate, Client, GithubError, JudgeError, NewAsset, NewRelease, SignatureError, judge,
};
use cofferdam_protocol::{Commit, Repository, SignerKey};
use zeroize::Zeroizing;

use development::Development;

fn client_of(development: &Development, token: Option<&str>) -> Client {
    let token = token.map(|token| Zeroizing::new(token.to_owned()));
    Client::new(&development.root, token, Some(&development.ca), "cofferdam-test/1")
        .unwrap()
        .with_deadline(Duration::from_secs(10))
}

#[tokio::test]
async fn a_release_attestation_goes_up_and_comes_back_as_github_describes_it() {
    let Some(development) = Development::start("acme/shop", "dev-token", "version: 1\n") else { return };
    let repository: Repository = "acme/shop".parse().unwrap();
    let client = client_of(&development, Some("dev-token"));
    let head = client.default_head(&repository).await.unwrap();
    let commit = client.commit(&repository, head.commit).await.unwrap();
    let file = client.contents(&repository, "cofferdam.yaml", commit.sha).await.unwrap();
    assert_eq!(file, b"version: 1\n");
    for (client, asked) in [(&client, 2), (&client_of(&development, None), 1)] {
        let head = client.default_head(&repository).await.unwrap();
        assert_eq!((head.branch.as_str(), &head.commit), ("main", &commit.sha));
        assert_eq!(client.requests().git, asked);
    }
    let same = client.compare(&repository, commit.sha, commit.sha).await.unwrap();
    assert_eq!(same.merge_base, commit.sha);
    let unknown = client.compare(&repository, Commit::from([0; 20]), commit.sha).await;
    assert!(matches!(unknown, Err(GithubError::NotFound)));
    let missing = client.contents(&repository, "missing.yaml", commit.sha).await;
    assert!(matches!(missing, Err(GithubError::NotFound)));
    let new = NewRelease {
        tag_name: "attest-20260102T030405Z-0a1b2c3d".into(),
        target_commitish: commit.sha,
        name: "Attestation".into(),
        body: "Evidence of one boot.".into(),
    };
    let bytes: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    let asset =
        NewAsset { name: "attestation.json".into(), content_type: "application/json", bytes: bytes.clone() };
    let release = client.publish(&repository, &new, std::slice::from_ref(&asset)).await.unwrap();
    assert!(!release.draft);
    assert_eq!(client.publish(&repository, &new, &[asset]).await.unwrap().id, release.id);

    let anybody = client_of(&development, None);
    let found = anybody.all_releases(&repository, 2, None).await.unwrap();
    assert!(found.complete && found.releases.len() == 1);
    let listed = &found.releases[0];
    assert_eq!((listed.tag_name.as_str(), listed.immutable), (new.tag_name.as_str(), Some(true)));
    assert_eq!(anybody.release_by_tag(&repository, &new.tag_name).await.unwrap().id, release.id);
    for client in [&client, &anybody] {
        let downloaded = client.download(&repository, &listed.assets[0], 256 * 1024).await.unwrap();
        assert_eq!(downloaded, bytes);
    }

    // A published release has its tag in git.
    let head = anybody.default_head(&repository).await.unwrap();
    assert_eq!(head.tags.unwrap(), std::slice::from_ref(&new.tag_name));

    let wrong = client_of(&development, Some("wrong")).create_draft(&repository, &new).await;
    assert!(matches!(wrong, Err(GithubError::Unauthorized(_))));
    assert!(matches!(client.delete_draft(&repository, release.id).await, Err(GithubError::Refused(_))));
    assert_eq!(development.written("violations"), "");
}

/// What is asked for a second time, the memory for what was answered.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<String, Vec<u8>>>);

impl Cache for Memory {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.0.lock().unwrap().get(key).cloned()
    }

    fn put(&self, key: &str, value: &[u8]) {
        self.0.lock().unwrap().insert(key.to_owned(), value.to_vec());
    }
}

#[tokio::test]
async fn a_branch_is_followed_to_the_bytes_that_its_signer_signed() {
    let Some(development) = Development::start("acme/shop", "dev-token", "version: 1\n") else { return };
    let repository: Repository = "acme/shop".parse().unwrap();
    let client = client_of(&development, Some("dev-token")).with_cache(Arc::<Memory>::default());
    let signer: SignerKey = development.key("alice", "ed25519").parse().unwrap();
    let signers = [signer];
    let unsigned = client.branch(&repository, "main").await.unwrap();
    let found = client.commit_text(&repository, unsigned).await.unwrap();
    assert_eq!(found.verify(&signers), Err(SignatureError::Unsigned));
    std::fs::create_dir(development.files().join("below")).unwrap();
    std::fs::write(development.files().join("below/program"), "é\n").unwrap();
    std::os::unix::fs::symlink("cofferdam.yaml", development.files().join("link.yaml")).unwrap();
    let made = development.commit("version: 1 # signed\n", Some("alice"));
    let head = client.branch(&repository, "main").await.unwrap();
    assert_eq!(head.to_string(), made);
    let unchanged = client.requests().unchanged;
    assert_eq!(client.branch(&repository, "main").await.unwrap(), head);
    assert_eq!(client.requests().unchanged, unchanged + 1);
    let text = client.commit_text(&repository, head).await.unwrap();
    let commit = text.verify(&signers).unwrap();
    assert_eq!((commit.parents.as_slice(), &commit.signer), ([unsigned].as_slice(), &signers[0]));
    assert_eq!(commit.committed.unix().to_string(), development.git(&["show", "-s", "--format=%ct"]));
    let file = "cofferdam.yaml";
    let candidate = client.candidate(&repository, text.clone(), &commit, file).await.unwrap();
    let read = Candidate::parse(&candidate.encode().unwrap()).unwrap();
    let judged = judge(&read, file, &signers);
    assert_eq!(judged, Ok((commit.clone(), b"version: 1 # signed\n".to_vec())));
    let stranger: SignerKey = development.key("mallory", "ed25519").parse().unwrap();
    let refused = judge(&read, file, &[stranger]);
    assert!(matches!(refused, Err(JudgeError::Signature(SignatureError::Stranger(_)))), "{refused:?}");
    for other in ["link.yaml", "below", "gone.yaml"] {
        let candidate = client.candidate(&repository, text.clone(), &commit, other).await.unwrap();
        assert_eq!(judge(&candidate, other, &signers), Err(JudgeError::NoFile(other.to_owned())));
    }
    let none = client.branch(&repository, "gone").await;
    assert!(matches!(none, Err(GithubError::NotFound)), "{none:?}");
    assert_eq!(development.written("violations"), "");
}
