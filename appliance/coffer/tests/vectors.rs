//! The frozen vectors under `policy/vectors/`, through the public command line: what a script sees is what they say.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

#[path = "../../attest/tests/common/vector.rs"]
mod vector;

/// What `coffer appraise` answers to a file that it does not even read whole, in place of the vector's exit code.
const NOT_READ: (&str, i32) = ("document/too-large", 2);

fn vectors(name: &str) -> Option<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policy/vectors").join(name);
    Some(serde_json::from_slice(&std::fs::read(path).ok()?).unwrap())
}

/// `coffer` with nothing of this environment, and what it printed on stdout as JSON.
fn coffer(arguments: &[String]) -> (Output, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_coffer")).env_clear().args(arguments).output().unwrap();
    let printed = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{arguments:?}: {error}: {}", String::from_utf8_lossy(&output.stderr));
    });
    (output, printed)
}

#[test]
fn evidence() {
    let file = vectors("evidence.json").unwrap();
    let cases = file["cases"].as_array().unwrap();
    assert!(cases.len() > 300, "{} cases", cases.len());
    // A case that expects what no option names is run by the library's tests alone.
    let (run, skipped): (Vec<&Value>, Vec<&Value>) = cases.iter().partition(|case| {
        let input = vector::patched(&file["input"], &case["patch"]);
        input["expected"].as_object().unwrap().keys().all(|name| name == "repository")
    });
    for case in &skipped {
        assert!(case["name"].as_str().unwrap().starts_with("expected/"), "{}", case["name"]);
    }
    // Two at a time: each is a process of its own.
    let (even, odd): (Vec<_>, Vec<_>) = run.iter().enumerate().partition(|(at, _)| at % 2 == 0);
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let threads = [even, odd].map(|half| {
            scope
                .spawn(|| half.into_iter().filter_map(|(_, case)| difference(&file["input"], case)).collect())
        });
        threads.into_iter().flat_map(|thread| -> Vec<String> { thread.join().unwrap() }).collect()
    });
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), run.len(), wrong.join("\n"));
}

/// Runs one case; what is not as expected, in words.
fn difference(input: &Value, case: &Value) -> Option<String> {
    let (name, expect) = (case["name"].as_str().unwrap(), &case["expect"]);
    let folder = tempfile::tempdir().unwrap();
    let input = vector::patched(input, &case["patch"]);
    let (output, printed) = coffer(&arguments(folder.path(), &input, &case["text"]));
    let mut problems = Vec::new();
    let mut compare = |what: &str, found: Value, wanted: &Value| {
        if found != *wanted {
            problems.push(format!("{name}: {what} is {found}, not {wanted}"));
        }
    };
    let exit = if name == NOT_READ.0 { json!(NOT_READ.1) } else { expect["exit"].clone() };
    compare("exit code", json!(output.status.code()), &exit);
    let reason = expect["reason"].as_str().unwrap();
    match &printed["error"] {
        Value::Null => {
            compare("verdict", printed["verdict"].clone(), &expect["verdict"]);
            for (outcome, wanted) in [("fail", "failed"), ("could_not_check", "unknown")] {
                let checks = printed["checks"].as_array().unwrap().iter();
                let names =
                    checks.filter(|check| check["outcome"] == outcome).map(|check| check["name"].clone());
                compare(wanted, names.collect(), &expect[wanted]);
            }
            let told = printed["checks"].to_string().contains(json!(reason).to_string().trim_matches('"'));
            compare("reason given", json!(told), &json!(true));
            let refused = printed["refused_because"].as_array().unwrap().len();
            compare("reasons", json!(refused), &json!(expect["failed"].as_array().unwrap().len()));
        }
        // No evidence, or an input of the caller's that is unusable: no appraisal to print.
        error => {
            let document = expect["failed"] == json!(["document"]);
            compare(
                "refused before the appraisal",
                json!(true),
                &json!(document || expect["verdict"] == "refused_input"),
            );
            compare("code in the error", error["code"].clone(), &exit);
            let told = error["message"].as_str().unwrap().contains(reason) || name == NOT_READ.0;
            compare(&format!("reason given by {error}"), json!(told), &json!(true));
        }
    }
    (!problems.is_empty()).then(|| problems.join("\n"))
}

/// Writes the files of one case and names them on the command line.
fn arguments(folder: &Path, input: &Value, steps: &Value) -> Vec<String> {
    let write = |name: &str, bytes: &[u8]| -> String {
        let path: PathBuf = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let mut out = vec!["--json".to_owned(), "appraise".to_owned()];
    out.push(write("attestation.json", &vector::document(input, steps)));
    let mut option = |name: &str, value: String| out.extend([name.to_owned(), value]);
    option("--at", input["at"].as_str().unwrap().to_owned());
    option("--policy", write("policy.json", input["policy"].to_string().as_bytes()));
    let roots: String = input["roots"].as_array().unwrap().iter().map(|pem| pem.as_str().unwrap()).collect();
    if !roots.is_empty() {
        option("--root", write("root.pem", roots.as_bytes()));
    }
    for (at, half) in input["references"].as_array().unwrap().iter().enumerate() {
        option("--reference", write(&format!("reference-{at}.json"), half.to_string().as_bytes()));
    }
    if !input["collateral"].is_null() {
        option("--collateral", write("collateral.json", input["collateral"].to_string().as_bytes()));
    }
    if let Some(repository) = input["expected"]["repository"].as_str() {
        option("--repository", repository.to_owned());
    }
    out
}

/// Without `--policy` the built-in policy applies, which is the vectors'.
#[test]
fn evidence_under_the_built_in_policy() {
    let file = vectors("evidence.json").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = arguments(folder.path(), &file["input"], &Value::Null);
    let at = arguments.iter().position(|argument| argument == "--policy").unwrap();
    arguments.drain(at..at + 2);
    let (output, printed) = coffer(&arguments);
    assert_eq!((output.status.code(), printed["verdict"].as_str()), (Some(0), Some("accepted")));
    assert_eq!(printed["simulated"], true);
}
