//! The development GitHub (`ci/github`) with one repository of real git, for tests of this crate and of those that use it. Every request and
//! response is checked against GitHub's own description.

#![allow(dead_code, reason = "each test uses its part")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use cofferdam_attest::ratls;

/// The server, which ends with this.
pub(crate) struct Development {
    process: Child,
    /// Of the API.
    pub(crate) root: String,
    /// The only authority that its certificate is from, in PEM.
    pub(crate) ca: String,
    folder: tempfile::TempDir,
    repository: PathBuf,
}

impl Drop for Development {
    fn drop(&mut self) {
        self.stop();
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

impl Development {
    /// Starts it with one commit of one declaration on the branch `main`. `None`, saying so, where Python, git or the description is absent.
    pub(crate) fn start(repository: &str, token: &str, declaration: &str) -> Option<Self> {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let (server, contract) =
            (top.join("ci/github/server.py"), top.join("../shared/contracts/github-releases.openapi.json"));
        if !server.exists() || !contract.exists() {
            eprintln!("skipped: the development GitHub or GitHub's description is absent");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let repository = at("repositories").join(repository);
        std::fs::create_dir_all(&repository).unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let key = ratls::generate_key().unwrap();
        let certificate = ratls::certificate(&key, b"{}", &["127.0.0.1".to_owned()], now - 60, 3600).unwrap();
        let ca = pem("CERTIFICATE", &certificate);
        std::fs::write(at("server.pem"), &ca).unwrap();
        std::fs::write(at("server.key"), pem("PRIVATE KEY", &key)).unwrap();
        let mut command = Command::new("python3");
        command.arg(&server).args(["--listen", "127.0.0.1:0", "--strict-storage", "--token", token]);
        for (option, name) in [
            ("--root", "repositories"),
            ("--tls-cert", "server.pem"),
            ("--tls-key", "server.key"),
            ("--violations", "violations"),
            ("--faults", "faults"),
            ("--scenario", "scenario"),
            ("--log", "log"),
        ] {
            command.arg(option).arg(at(name));
        }
        let mut process = command.arg("--contract").arg(&contract).stdout(Stdio::piped()).spawn().ok()?;
        let mut line = String::new();
        BufReader::new(process.stdout.take()?).read_line(&mut line).unwrap();
        let root = line.trim().strip_prefix("listening on ").unwrap_or_default().to_owned();
        let started = Self { process, root, ca, folder, repository };
        if started.root.is_empty() {
            eprintln!("skipped: the development GitHub does not start (is python3-jsonschema there?)");
            return None;
        }
        std::fs::write(started.repository.join("cofferdam.yaml"), declaration).unwrap();
        started.try_git(&["init", "-q"])?;
        started.git(&["add", "."]);
        started.git(&["commit", "-q", "-m", "Begin"]);
        Some(started)
    }

    /// Ends it; whoever asks is refused from then on.
    pub(crate) fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// What the server has written, or nothing yet: `violations`, `log`.
    pub(crate) fn written(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    /// Says how the server behaves from now on: `faults`, `scenario`.
    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// A new key of this name; the line of its .pub file.
    pub(crate) fn key(&self, name: &str, kind: &str) -> String {
        let path = self.folder.path().join(name);
        let made = Command::new("ssh-keygen")
            .args(["-q", "-N", "", "-t", kind, "-C", name, "-f"])
            .arg(&path)
            .status()
            .unwrap();
        assert!(made.success());
        std::fs::read_to_string(path.with_extension("pub")).unwrap().trim().to_owned()
    }

    /// Commits a declaration to the branch that is checked out, signed with the key of this name where there is one; the commit.
    pub(crate) fn commit(&self, declaration: &str, by: Option<&str>) -> String {
        std::fs::write(self.repository.join("cofferdam.yaml"), declaration).unwrap();
        self.git(&["add", "-A"]);
        self.commit_index(by)
    }

    /// Commits what is in the index.
    pub(crate) fn commit_index(&self, by: Option<&str>) -> String {
        let key = by.map(|name| {
            let path = self.folder.path().join(name).with_extension("pub");
            format!("user.signingKey={}", path.display())
        });
        let mut arguments = vec!["-c", "gpg.format=ssh"];
        arguments.extend(key.iter().flat_map(|key| ["-c", key]));
        arguments.extend(["commit", "-q", "--allow-empty", "-m", "Declare"]);
        arguments.extend(by.map(|_| "-S"));
        self.git(&arguments);
        self.git(&["rev-parse", "HEAD"])
    }

    /// The place of the repository's files.
    pub(crate) fn files(&self) -> &Path {
        &self.repository
    }

    /// Stores an object that git would not make.
    pub(crate) fn store(&self, commit: &str) -> String {
        let path = self.folder.path().join("object");
        std::fs::write(&path, commit).unwrap();
        self.git(&["hash-object", "-t", "commit", "-w", "--literally", path.to_str().unwrap()])
    }

    fn try_git(&self, arguments: &[&str]) -> Option<String> {
        let settings = ["user.name=Test", "user.email=test@example.org", "init.defaultBranch=main"];
        let done = Command::new("git")
            .args(settings.iter().flat_map(|setting| ["-c", setting]))
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .current_dir(&self.repository)
            .stderr(Stdio::inherit())
            .output()
            .ok()?;
        let text = String::from_utf8(done.stdout).unwrap().trim().to_owned();
        done.status.success().then_some(text)
    }

    /// What git prints.
    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        self.try_git(arguments).unwrap_or_else(|| panic!("git {arguments:?}"))
    }
}
