//! A development GitHub with one repository, the evidence of a simulated appliance, and `coffer` as a person runs it.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use cofferdam_attest::claims::{Claims, report_data};
use cofferdam_attest::event_log::Event;
use cofferdam_attest::event_log::payload::{
    Appliance, Declaration, Image, Launch, Machine, Payload as _, State,
};
use cofferdam_attest::evidence::{Collateral, Evidence};
use cofferdam_attest::ratls;
use cofferdam_attest::reference::Half;
use cofferdam_attest::release::{DigestPrefix, Tag};
use cofferdam_protocol::evidence::Nonce;
use cofferdam_protocol::state::Continuity;
use cofferdam_protocol::{Digest, base64};
use serde_json::{Value, json};
use tdx_sim::{CollateralOptions, TdReport};

pub mod appliance;
pub mod seal;
#[path = "../../../attest/tests/common/mod.rs"]
pub mod simulated;

use simulated::{time, word};

pub const REPOSITORY: &str = "acme/shop";
pub const TOKEN: &str = "development-token";

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// What an appliance claims, and what its evidence is made from.
#[derive(Clone)]
pub struct Told {
    pub commit: String,
    pub declaration: String,
    pub endpoint: String,
    pub tls_key: String,
    pub vault_key: String,
    pub issued: u64,
    pub validity: u64,
    pub nonce: Option<Vec<u8>>,
    pub binding: Option<[u8; 32]>,
    /// Whether it is over the launch boundary; else it waits to be unsealed.
    pub launched: bool,
    /// Commit and declaration that it booted with, where it has applied another since, and what that measured.
    pub booted: Option<(String, String)>,
    pub applied: Vec<Event>,
    /// Epoch of its state on disk; 0 in memory.
    pub epoch: u64,
    /// Version of that state's lineage.
    pub lineage: u64,
    /// What there is against older copies of that state.
    pub continuity: Option<Continuity>,
    pub repository: String,
    /// The digest's first byte of the kernel that was measured.
    pub kernel: u8,
    pub options: CollateralOptions,
}

impl Told {
    /// What the kernel was measured as.
    pub fn kernel_digest(&self) -> [u8; 48] {
        let mut digest = simulated::firmware_events()[4].digest.unwrap();
        digest[0] = self.kernel;
        digest
    }

    /// The evidence document.
    pub fn document(&self) -> Vec<u8> {
        let platform = simulated::platform(1);
        let (commit, declaration) =
            self.booted.clone().unwrap_or_else(|| (self.commit.clone(), self.declaration.clone()));
        let own = [
            Declaration { digest: word(&declaration), source: "disk".into(), commit: word(&commit) }.event(),
            Appliance {
                repository: word(&self.repository),
                declaration: word(&declaration),
                endpoint: word(&self.endpoint),
            }
            .event(),
            Machine { cpus: 2, memory_mib: 2048, network: None }.event(),
            match std::num::NonZeroU64::new(self.epoch) {
                None => State::memory(),
                Some(epoch) => {
                    let (key, lineage) = (word(simulated::DIGEST), self.lineage.try_into().unwrap());
                    State::Disk { fresh: false, key, epoch, lineage, continuity: self.continuity }
                }
            }
            .event(),
            Image {
                service: "web".into(),
                reference: word(&format!("registry.example/web@{}", simulated::DIGEST)),
            }
            .event(),
            Launch { services: vec!["web".into()], tls_key: word(&self.tls_key) }.event(),
        ]
        .map(Result::unwrap);
        let own = if self.launched { &own[..] } else { &own[..3] };
        let mut firmware = simulated::firmware_events();
        firmware[4].digest = Some(self.kernel_digest());
        let event_log = [&firmware[..], own, &self.applied].concat();
        let claims = Claims {
            repository: word(&self.repository),
            commit: word(&self.commit),
            declaration: word(&self.declaration),
            endpoint: word(&self.endpoint),
            tls_key: word(&self.tls_key),
            vault_key: word(&self.vault_key),
            issued_at: time(self.issued),
            expires_at: time(self.issued + self.validity),
            nonce: self.nonce.clone().map(|nonce| Nonce::new(nonce).unwrap()),
            channel_binding: self.binding.map(Into::into),
            state_epoch: if self.launched { self.epoch } else { 0 },
            state_continuity: self.continuity.filter(|_| self.launched && self.epoch > 0),
            certificate: None,
            ..simulated::claims()
        }
        .encode()
        .unwrap();
        let report = TdReport::new(simulated::registers(&event_log), report_data(&claims));
        let collateral = platform.collateral(self.issued, self.options).unwrap().to_json().unwrap();
        let evidence = Evidence {
            quote: platform.quote(&report),
            claims,
            event_log,
            collateral: Some(Collateral::parse(collateral.as_bytes()).unwrap()),
            image: simulated::image(),
            challenge: None,
        };
        evidence.to_json().unwrap()
    }
}

/// The tag of a document, or of nothing that has one.
pub fn tag_of(document: &[u8]) -> String {
    let claims = Evidence::parse(document).unwrap().claims;
    Tag::for_claims(&claims).unwrap().to_string()
}

/// A tag of a release attestation that was issued at this time.
pub fn tag_at(issued: u64, n: usize) -> String {
    let digest = DigestPrefix(u32::try_from(n).unwrap().to_be_bytes());
    Tag { issued_at: time(issued), digest }.to_string()
}

/// The GitHub, the repository and the user's home.
pub struct World {
    pub folder: tempfile::TempDir,
    server: Option<Child>,
    pub api: String,
    releases: Vec<Value>,
    next_id: u64,
    pub endpoint: String,
    /// GitHub's own API description judges each request and answer.
    pub judged: bool,
    pub token: Option<&'static str>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop();
        let violations = std::fs::read_to_string(self.at("violations")).unwrap_or_default();
        if !std::thread::panicking() {
            assert_eq!(violations, "", "GitHub's own description");
        }
    }
}

impl World {
    /// A repository whose default branch declares an appliance; no release yet. `None`, saying so, without Python or git.
    pub fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let ready = |program: &str, argument: &str| {
            Command::new(program).arg(argument).output().is_ok_and(|output| output.status.success())
        };
        if !(ready("python3", "--version") && ready("git", "--version")) {
            eprintln!("skipped: python3 or git is absent");
            return None;
        }
        let key = ratls::generate_key().unwrap();
        let certificate =
            ratls::certificate(&key, b"{}", &["127.0.0.1".to_owned()], now() - 60, 86_400).unwrap();
        std::fs::write(folder.path().join("ca.pem"), pem("CERTIFICATE", &certificate)).unwrap();
        std::fs::write(folder.path().join("server.key"), pem("PRIVATE KEY", &key)).unwrap();
        std::fs::write(folder.path().join("root.pem"), simulated::platform(1).root_pem()).unwrap();
        let references = simulated::reference();
        let halves =
            [Half::Image(references.images[0].clone()), Half::Platform(references.platforms[0].clone())];
        for (n, half) in halves.iter().enumerate() {
            std::fs::write(folder.path().join(format!("reference-{n}.json")), half.to_json().unwrap())
                .unwrap();
        }
        let world = Self {
            folder,
            server: None,
            api: String::new(),
            releases: Vec::new(),
            next_id: 1,
            endpoint: "shop.example:8443".to_owned(),
            judged: true,
            token: None,
        };
        std::fs::create_dir_all(world.repository()).unwrap();
        world.git(&["init", "-q", "-b", "main"]);
        Some(world)
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    // -- the repository ---------------------------------------------------------------------------

    pub fn repository(&self) -> PathBuf {
        self.at("repositories").join(REPOSITORY)
    }

    pub fn git(&self, arguments: &[&str]) -> String {
        let identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "gc.auto=0"];
        let output = Command::new("git")
            .args(identity)
            .args(arguments)
            .current_dir(self.repository())
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn declaration(&self, operator: &str) -> String {
        format!(
            "version: 1\nrepository: {REPOSITORY}\nendpoint: {}\noperators:\n  - name: {operator}\n    key: \
             ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL3eMexUl4rWPV2mlvLRouVrCagc04WaQr3bjVft2JOy alice@laptop\n\
             services:\n  web:\n    image: registry.example/web@{}\n",
            self.endpoint,
            simulated::DIGEST
        )
    }

    /// Takes over the default branch of another world's repository, and its fork.
    pub fn clone_of(&self, other: &Self) {
        let from = other.repository();
        self.git(&["fetch", "-q", from.to_str().unwrap(), "refs/heads/main"]);
        self.git(&["reset", "-q", "--hard", "FETCH_HEAD"]);
        if !other.git(&["for-each-ref", "refs/heads/fork"]).is_empty() {
            self.git(&["fetch", "-q", from.to_str().unwrap(), "refs/heads/fork:refs/heads/fork"]);
        }
    }

    /// Commits a declaration of this operator to the branch that is checked out.
    pub fn declare(&self, operator: &str) -> String {
        self.commit("cofferdam.yaml", &self.declaration(operator))
    }

    pub fn commit(&self, file: &str, text: &str) -> String {
        std::fs::write(self.repository().join(file), text).unwrap();
        self.git(&["add", file]);
        self.git(&["commit", "-q", "--allow-empty", "-m", "change"]);
        self.git(&["rev-parse", "HEAD"])
    }

    // -- the releases -----------------------------------------------------------------------------

    /// What an honest appliance tells at this commit, issued so many seconds ago.
    pub fn told(&self, commit: &str, operator: &str, age: u64) -> Told {
        Told {
            commit: commit.to_owned(),
            declaration: Digest::of(self.declaration(operator)).to_string(),
            endpoint: self.endpoint.clone(),
            tls_key: simulated::key().to_string(),
            vault_key: simulated::claims().vault_key.to_string(),
            issued: now() - age,
            validity: 86_400,
            nonce: None,
            binding: None,
            launched: true,
            booted: None,
            applied: Vec::new(),
            epoch: 0,
            lineage: 1,
            continuity: None,
            repository: REPOSITORY.to_owned(),
            kernel: 5,
            options: CollateralOptions::default(),
        }
    }

    /// Adds a published release; before [`World::start`].
    pub fn release(&mut self, tag: &str, assets: &[(&str, &[u8])]) {
        let mut number = || {
            self.next_id += 1;
            self.next_id - 1
        };
        let id = number();
        let at = time(now());
        let asset = |(name, bytes): &(&str, &[u8])| {
            json!({
                "id": number(), "name": name, "label": null, "size": bytes.len(), "at": at,
                "content_type": "application/json", "data": base64::encode(bytes),
                "digest": Digest::of(bytes),
            })
        };
        let assets: Vec<Value> = assets.iter().map(asset).collect();
        self.releases.push(json!({
            "repository": REPOSITORY, "id": id, "tag_name": tag, "target_commitish": "main", "name": tag, "body": "",
            // The date of a commit, the same for each release of it.
            "draft": false, "prerelease": false, "created_at": "2026-01-01T00:00:00Z", "published_at": at,
            "updated_at": at, "assets": assets,
        }));
    }

    /// Takes back what was released; before [`World::start`].
    pub fn forget_releases(&mut self) {
        self.releases.clear();
    }

    /// Publishes evidence under its tag; before [`World::start`].
    pub fn attest(&mut self, told: &Told) -> String {
        let document = told.document();
        let tag = tag_of(&document);
        self.release(&tag, &[("attestation.json", &document)]);
        tag
    }

    // -- the server -------------------------------------------------------------------------------

    /// Starts GitHub with what was released so far, or starts it anew, at the same place.
    pub fn start(&mut self) {
        let state = json!({ "entries": self.releases, "next_id": self.next_id });
        std::fs::write(self.at("state"), state.to_string()).unwrap();
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let port =
            self.api.split(':').nth(2).and_then(|rest| rest.split('/').next()).unwrap_or("0").to_owned();
        let mut command = Command::new("python3");
        command.arg(manifest.join("../../ci/github/server.py")).args([
            "--listen",
            &format!("127.0.0.1:{port}"),
            "--token",
            TOKEN,
            "--strict-storage",
        ]);
        for (option, name) in [
            ("--root", "repositories"),
            ("--tls-cert", "ca.pem"),
            ("--tls-key", "server.key"),
            ("--state", "state"),
            ("--scenario", "scenario"),
            ("--faults", "faults"),
            ("--log", "log"),
        ] {
            command.arg(option).arg(self.at(name));
        }
        let contract = manifest.join("../../../shared/contracts/github-releases.openapi.json");
        if self.judged && contract.exists() {
            command.arg("--contract").arg(contract).arg("--violations").arg(self.at("violations"));
        }
        let mut server = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.server = Some(server);
        self.api = line.trim().strip_prefix("listening on ").expect("GitHub starts").to_owned();
    }

    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    pub fn scenario(&self, scenario: Value) {
        std::fs::write(self.at("scenario"), scenario.to_string()).unwrap();
    }

    pub fn faults(&self, faults: Value) {
        std::fs::write(self.at("faults"), faults.to_string()).unwrap();
    }

    /// What GitHub was asked since the last call.
    pub fn asked(&self) -> Vec<Value> {
        // A line is written after its answer was sent.
        std::thread::sleep(std::time::Duration::from_millis(200));
        let log = std::fs::read_to_string(self.at("log")).unwrap_or_default();
        let _ = std::fs::remove_file(self.at("log"));
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// How many requests of each kind: API, git, storage.
    pub fn counted(&self) -> [usize; 3] {
        let asked = self.asked();
        ["api", "git", "storage"].map(|kind| asked.iter().filter(|entry| entry["kind"] == kind).count())
    }

    // -- coffer -----------------------------------------------------------------------------------

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coffer"));
        command.env_clear().env("HOME", self.at("home")).args(arguments);
        for n in 0..2 {
            command.arg("--reference").arg(self.at(&format!("reference-{n}.json")));
        }
        command.arg("--root").arg(self.at("root.pem")).arg("--github-ca").arg(self.at("ca.pem"));
        command.args(["--github-api", &self.api]);
        if let Some(token) = self.token {
            command.env("COFFER_GITHUB_TOKEN", token);
        }
        command
    }

    /// `coffer verify`; the exit code, what it printed as JSON, and all of what it said.
    pub fn verify(&self, more: &[&str]) -> (i32, Value, String) {
        let output = self.command(&[&["verify", REPOSITORY, "--json"], more].concat()).output().unwrap();
        let printed = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code().unwrap(), printed, said(&output))
    }

    /// The cache's files, by name.
    pub fn cached(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.at("home/.cache/coffer/github"));
        let mut files: Vec<PathBuf> =
            entries.into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    pub fn forget(&self) {
        let _ = std::fs::remove_dir_all(self.at("home"));
    }
}

pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
