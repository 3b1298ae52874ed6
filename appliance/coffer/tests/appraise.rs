//! `coffer appraise` as scripts and people see it: what is trusted and who named it, policies, EAR, offline challenges.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

#[allow(dead_code, reason = "no case is patched here")]
#[path = "../../attest/tests/common/vector.rs"]
mod vector;

/// The honest input of the vectors as files, for one command after the other.
struct World {
    folder: tempfile::TempDir,
    at: String,
}

impl World {
    fn new() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policy/vectors/evidence.json");
        let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let input = &file["input"];
        let world =
            Self { folder: tempfile::tempdir().unwrap(), at: input["at"].as_str().unwrap().to_owned() };
        world.write("attestation.json", &vector::document(input, &Value::Null));
        world.write("root.pem", input["roots"][0].as_str().unwrap().as_bytes());
        std::fs::create_dir(world.path("references")).unwrap();
        for (at, half) in input["references"].as_array().unwrap().iter().enumerate() {
            world.write(&format!("references/{at}.json"), half.to_string().as_bytes());
        }
        world
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// `coffer appraise` with nothing of this environment but `environment`.
    fn run(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coffer"));
        command.env_clear().envs(environment.iter().copied()).arg("appraise").args(arguments);
        command.output().unwrap()
    }

    /// Appraises the honest document.
    fn appraise(&self, environment: &[(&str, &str)], more: &[&str]) -> Output {
        let (document, root) = (self.path("attestation.json"), self.path("root.pem"));
        let arguments = [&[&*document, "--at", &*self.at, "--root", &*root], more].concat();
        self.run(environment, &arguments)
    }
}

fn parsed(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn what_decides_trust_is_shown_with_who_named_it() {
    let world = World::new();
    let references = world.path("references");
    let environment = [
        ("COFFER_REFERENCE", references.as_str()),
        ("COFFER_GITHUB_API", "https://github.example/api/v3"),
        ("COFFER_GITHUB_CA", "/nowhere/ca.pem"),
    ];
    let output = world.appraise(&environment, &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let trust = parsed(&output)["trust"].clone();
    assert_eq!(trust["reference"], json!([{ "value": references, "from": "environment" }]));
    let api = json!({ "value": "https://github.example/api/v3", "from": "environment" });
    assert_eq!(trust["github_api"], api);
    assert_eq!(trust["github_ca"], json!({ "value": "/nowhere/ca.pem", "from": "environment" }));
    assert_eq!(trust["root"], json!([{ "value": world.path("root.pem"), "from": "flag" }]));
    assert_eq!(trust["policy"]["value"], "built-in");
    assert_eq!(trust["policy"]["from"], "default");

    let output = world.appraise(&environment, &[]);
    let printed = text(&output.stdout);
    assert!(printed.contains(&format!("reference values {references} (from COFFER_REFERENCE)")), "{printed}");
    assert!(printed.contains("https://github.example/api/v3 (from COFFER_GITHUB_API)"), "{printed}");
    assert!(printed.contains("/nowhere/ca.pem (from COFFER_GITHUB_CA)"), "{printed}");

    // The command line outweighs the environment, and nothing is taken from nowhere.
    let output = world.appraise(&[("COFFER_REFERENCE", "/nowhere")], &["--json", "--reference", &references]);
    assert_eq!(parsed(&output)["trust"]["reference"], json!([{ "value": references, "from": "flag" }]));
    let output = world.appraise(&[], &["--json"]);
    assert_eq!(output.status.code(), Some(6));
    let trust = parsed(&output)["trust"].clone();
    assert_eq!(trust.get("reference"), None);
    assert_eq!(trust["github_api"], json!({ "value": "https://api.github.com", "from": "default" }));
}

#[test]
fn where_the_key_of_the_cache_is_belongs_to_what_is_trusted() {
    let world = World::new();
    let references = world.path("references");
    let environment = [("COFFER_REFERENCE", references.as_str()), ("XDG_STATE_HOME", "/nowhere/state")];
    let key = "/nowhere/state/coffer/cache.key";
    let output = world.appraise(&environment, &["--json"]);
    assert_eq!(parsed(&output)["trust"]["cache_key"], json!({ "value": key, "from": "environment" }));
    let output = world.appraise(&environment, &[]);
    let printed = text(&output.stdout);
    assert!(printed.contains(&format!("{key} (from XDG_STATE_HOME)")), "{printed}");

    let environment = [("HOME", "/home/somebody"), ("XDG_STATE_HOME", "state")];
    let output = world.appraise(&environment, &["--json"]);
    let key = "/home/somebody/.local/state/coffer/cache.key";
    assert_eq!(parsed(&output)["trust"]["cache_key"], json!({ "value": key, "from": "default" }));
}

#[test]
fn neither_root_nor_policy_come_from_the_environment() {
    let world = World::new();
    let (root, references) = (world.path("root.pem"), world.path("references"));
    world.write("policy.json", br#"{"version": 1, "extends": "default", "max_age_s": 1}"#);
    let policy = world.path("policy.json");
    let environment = [("COFFER_ROOT", root.as_str()), ("COFFER_POLICY", policy.as_str())];
    let document = world.path("attestation.json");
    let arguments = ["--json", &document, "--at", &world.at, "--reference", &references];
    let output = world.run(&environment, &arguments);
    let printed = parsed(&output);
    assert_eq!(printed["refused_because"][0]["check"], "trust_root");
    assert_eq!(printed["trust"]["policy"]["value"], "built-in");
}

#[test]
fn a_symbolic_link_under_reference_is_refused() {
    let world = World::new();
    let references = world.path("references");
    let elsewhere = tempfile::tempdir().unwrap();
    for name in ["more", "more.json", "readme"] {
        let link = world.path(&format!("references/{name}"));
        std::os::unix::fs::symlink(elsewhere.path(), &link).unwrap();
        let output = world.appraise(&[], &["--reference", &references]);
        assert_eq!(output.status.code(), Some(2), "{name}");
        assert!(text(&output.stderr).contains("is a symbolic link"), "{}", text(&output.stderr));
        std::fs::remove_file(&link).unwrap();
    }
    assert_eq!(world.appraise(&[], &["--reference", &references]).status.code(), Some(0));
}

#[test]
fn a_collateral_file_that_does_not_parse_is_a_mistake_of_the_caller() {
    let world = World::new();
    let (collateral, references) = (world.path("collateral.json"), world.path("references"));
    for bytes in ["", "not JSON", "{}", "[]"] {
        world.write("collateral.json", bytes.as_bytes());
        let output = world.appraise(&[], &["--reference", &references, "--collateral", &collateral]);
        assert_eq!(output.status.code(), Some(2), "{bytes}");
        assert!(text(&output.stderr).contains("collateral.json"), "{}", text(&output.stderr));
    }
}

#[test]
fn the_effective_policy_is_printed_complete() {
    let world = World::new();
    world.write(
        "policy.json",
        b"// stricter\n{\"version\": 1, \"extends\": \"default\", \"allow_smt\": false}",
    );
    let policy = world.path("policy.json");
    let built_in = world.run(&[], &["--show-policy"]);
    let mut expected = parsed(&built_in);
    assert_eq!(expected["tcb_statuses"], json!(["UpToDate"]));
    let shown = world.run(&[], &["--show-policy", "--policy", &policy]);
    expected["allow_smt"] = json!(false);
    assert_eq!((shown.status.code(), parsed(&shown)), (Some(0), expected.clone()));
    // What is printed is a policy file that means the same.
    world.write("shown.json", &shown.stdout);
    let again = world.run(&[], &["--show-policy", "--policy", &world.path("shown.json"), "--json"]);
    expected["schema_version"] = json!(1);
    assert_eq!(parsed(&again), expected);
    let output = world.run(&[], &["--show-policy", &world.path("attestation.json")]);
    assert_eq!(output.status.code(), Some(2), "it appraises nothing");
}

#[test]
fn an_appraisal_is_also_an_ear() {
    let world = World::new();
    let references = world.path("references");
    let format = ["--format", "ear", "--reference", &references];
    let output = world.appraise(&[], &format);
    let ear = parsed(&output);
    assert_eq!((output.status.code(), ear["ear_status"].as_str()), (Some(0), Some("warning")));
    assert_eq!(ear["eat_profile"], "tag:ietf.org,2026:rats/ear#04");
    assert_eq!(ear.get("schema_version"), None);
    let shown = world.run(&[], &["--show-policy"]);
    assert!(!shown.stdout.is_empty());
    assert!(ear["submods"]["cofferdam"]["ear_appraisal_policy_ids"][0].as_str().unwrap().contains("sha256:"));

    let output = world.appraise(&[], &[&format[..], &["--repository", "acme/other", "--json"]].concat());
    let ear = parsed(&output);
    assert_eq!((output.status.code(), ear["ear_status"].as_str()), (Some(3), Some("contraindicated")));
    assert_eq!(ear["schema_version"], 1);
    let output = world.appraise(&[], &["--format", "ear"]);
    assert_eq!((output.status.code(), parsed(&output)["ear_status"].as_str()), (Some(6), Some("none")));
    assert!(text(&output.stderr).starts_with("error: "), "{}", text(&output.stderr));
}
