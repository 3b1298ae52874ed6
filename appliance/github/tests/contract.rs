//! The client against the development GitHub, which checks every request and response against GitHub's own description.
//! Skipped, saying so, where Python, git or the description is absent.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use cofferdam_attest::ratls;
use cofferdam_github::{Client, GithubError, NewAsset, NewRelease};
use cofferdam_protocol::{Commit, Repository};
use zeroize::Zeroizing;

struct Development {
    process: Child,
    root: String,
    ca: String,
    violations: PathBuf,
    folder: tempfile::TempDir,
}

impl Drop for Development {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn git(folder: &Path, arguments: &[&str]) -> Option<()> {
    let identity =
        ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main"];
    let status =
        Command::new("git").args(identity).args(arguments).current_dir(folder).stdout(Stdio::null()).status();
    status.ok().filter(|status| status.success()).map(|_| ())
}

fn start() -> Option<Development> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let server = manifest.join("../../ci/github/server.py");
    let contract = manifest.join("../../../shared/contracts/github-releases.openapi.json");
    if !server.exists() || !contract.exists() {
        eprintln!("skipped: the development GitHub or GitHub's description is absent");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repositories/acme/shop");
    std::fs::create_dir_all(&repository).unwrap();
    std::fs::write(repository.join("cofferdam.yaml"), "version: 1\n").unwrap();
    let made = git(&repository, &["init", "-q"])
        .and_then(|()| git(&repository, &["add", "."]))
        .and_then(|()| git(&repository, &["commit", "-q", "-m", "Begin"]));
    if made.is_none() {
        eprintln!("skipped: git absent");
        return None;
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let key = ratls::generate_key().unwrap();
    let certificate = ratls::certificate(&key, b"{}", &["127.0.0.1".to_owned()], now - 60, 3600).unwrap();
    let ca = pem("CERTIFICATE", &certificate);
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("server.pem"), &ca).unwrap();
    std::fs::write(at("server.key"), pem("PRIVATE KEY", &key)).unwrap();
    let mut process = Command::new("python3")
        .arg(&server)
        .args(["--listen", "127.0.0.1:0", "--token", "dev-token", "--strict-storage", "--root"])
        .arg(at("repositories"))
        .arg("--tls-cert")
        .arg(at("server.pem"))
        .arg("--tls-key")
        .arg(at("server.key"))
        .arg("--contract")
        .arg(&contract)
        .arg("--violations")
        .arg(at("violations"))
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let mut line = String::new();
    BufReader::new(process.stdout.take()?).read_line(&mut line).unwrap();
    let Some(root) = line.trim().strip_prefix("listening on ").map(str::to_owned) else {
        let _ = process.kill();
        let _ = process.wait();
        eprintln!("skipped: the development GitHub does not start (is python3-jsonschema there?)");
        return None;
    };
    Some(Development { process, root, ca, violations: at("violations"), folder })
}

impl Development {
    fn client(&self, token: Option<&str>) -> Client {
        let token = token.map(|token| Zeroizing::new(token.to_owned()));
        Client::new(&self.root, token, Some(&self.ca), "cofferdam-test/1")
            .unwrap()
            .with_deadline(Duration::from_secs(10))
    }
}

#[tokio::test]
async fn a_release_attestation_goes_up_and_comes_back_as_github_describes_it() {
    let Some(development) = start() else { return };
    let repository: Repository = "acme/shop".parse().unwrap();
    let client = development.client(Some("dev-token"));
    let head = client.default_head(&repository).await.unwrap();
    let commit = client.commit(&repository, head.commit).await.unwrap();
    let file = client.contents(&repository, "cofferdam.yaml", commit.sha).await.unwrap();
    assert_eq!(file, b"version: 1\n");
    for (client, asked) in [(&client, 2), (&development.client(None), 1)] {
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

    let anybody = development.client(None);
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

    let wrong = development.client(Some("wrong")).create_draft(&repository, &new).await;
    assert!(matches!(wrong, Err(GithubError::Unauthorized(_))));
    assert!(matches!(client.delete_draft(&repository, release.id).await, Err(GithubError::Refused(_))));
    let violations = std::fs::read_to_string(&development.violations).unwrap_or_default();
    assert_eq!(violations, "", "in {}", development.folder.path().display());
}
