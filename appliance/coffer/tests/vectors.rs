//! The frozen vectors under `policy/vectors/` that have a verb, through the public command line: what a script sees is what they say.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

#[path = "../../attest/tests/common/vector.rs"]
mod vector;

fn vectors(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policy/vectors").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
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
    appraisals("evidence.json", 300);
}

#[test]
fn applied() {
    appraisals("applied.json", 30);
}

/// Every case of a file, of which there are at least so many.
fn appraisals(name: &str, least: usize) {
    let file = vectors(name);
    let cases = file["cases"].as_array().unwrap();
    assert!(cases.len() >= least, "{} cases", cases.len());
    // Two at a time: each is a process of its own.
    let (even, odd): (Vec<_>, Vec<_>) = cases.iter().enumerate().partition(|(at, _)| at % 2 == 0);
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let threads = [even, odd].map(|half| {
            scope
                .spawn(|| half.into_iter().filter_map(|(_, case)| difference(&file["input"], case)).collect())
        });
        threads.into_iter().flat_map(|thread| -> Vec<String> { thread.join().unwrap() }).collect()
    });
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
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
    let exit = &expect["exit"];
    compare("exit code", json!(output.status.code()), exit);
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
        // An input of the caller's that is unusable: no appraisal to print.
        error => {
            compare("verdict", json!("refused_input"), &expect["verdict"]);
            compare("code in the error", error["code"].clone(), exit);
            let told = error["message"].as_str().unwrap().contains(reason);
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
    for (name, value) in input["expected"].as_object().unwrap() {
        option(&format!("--{}", name.replace('_', "-")), value.as_str().unwrap().to_owned());
    }
    out
}

/// Without `--policy` the built-in policy applies, which is the vectors'.
#[test]
fn evidence_under_the_built_in_policy() {
    let file = vectors("evidence.json");
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = arguments(folder.path(), &file["input"], &Value::Null);
    let at = arguments.iter().position(|argument| argument == "--policy").unwrap();
    arguments.drain(at..at + 2);
    let (output, printed) = coffer(&arguments);
    assert_eq!((output.status.code(), printed["verdict"].as_str()), (Some(0), Some("accepted")));
    assert_eq!(printed["simulated"], true);
}

/// Firmware on a machine: MRTD, RTMR0 and their events.
#[test]
fn measurements_of_firmware() {
    let file = vectors("measurement.json");
    let cases = file["platforms"].as_array().unwrap();
    assert!(cases.len() > 20, "{} cases", cases.len());
    for case in cases {
        let folder = tempfile::tempdir().unwrap();
        // The values bear the file's name.
        let firmware = changed(folder.path(), "synthetic", &file["files"], case);
        let memory = format!("{}M", case["memory_mib"]);
        let mut arguments =
            ["measure", "--firmware", &firmware, "--memory", &memory].map(str::to_owned).to_vec();
        arguments.extend(["--cpus".to_owned(), case["cpus"].to_string()]);
        if let Value::Object(tables) = &case["tables"] {
            arguments.extend(["--acpi".to_owned(), acpi(folder.path(), tables, case)]);
        }
        if let Some(processor) = case["processor"].as_str() {
            arguments.extend(["--processor".to_owned(), processor.to_owned()]);
        }
        measured(&arguments, "platform", case);
    }
}

/// Images: RTMR1, RTMR2 and their events, for each way of booting.
#[test]
fn measurements_of_images() {
    let file = vectors("measurement.json");
    let cases = file["images"].as_array().unwrap();
    assert!(cases.len() > 10, "{} cases", cases.len());
    for case in cases {
        let folder = tempfile::tempdir().unwrap();
        let image = changed(folder.path(), "synthetic.efi", &file["files"], case);
        let ways = ["tdx", "simulator", "tdx-kernel", "simulator-kernel"].map(|way| ["--boot", way]);
        let arguments = [&["measure", &image][..], ways.as_flattened()].concat();
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        measured(&arguments, "image", case);
    }
}

/// Runs one case and compares the half that is printed, or the refusal.
fn measured(arguments: &[String], half: &str, case: &Value) {
    let (name, expect) = (&case["name"], &case["expect"]);
    let run = |json: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coffer"));
        command.env_clear().args(json.then_some("--json")).args(arguments).output().unwrap()
    };
    let output = run(true);
    let Some(refused) = expect["refused"].as_str() else {
        let mut printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        if half == "image" {
            // The version of this program is no property of the image.
            printed[half]["image"]["release"] = json!("0");
        }
        assert_eq!((output.status.code(), &printed[half]), (Some(0), &expect["reference"]), "{name}");
        let notes = String::from_utf8(run(false).stderr).unwrap();
        for open in expect["open"].as_array().into_iter().flatten() {
            assert!(notes.contains(open.as_str().unwrap()), "{name}: {notes}");
        }
        return;
    };
    if output.status.code() == Some(2) {
        // A size that the option itself does not take: the command line is wrong before any file is read.
        assert!(case["memory_mib"].as_u64().is_some_and(|memory| memory > 1 << 40), "{name}");
        return;
    }
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &printed["error"]["code"]), (Some(1), &json!(1)), "{name}");
    assert!(printed["error"]["message"].as_str().unwrap().ends_with(refused), "{name}: {printed}");
}

/// The file of a case with the case's bytes written into it.
fn changed(folder: &Path, name: &str, files: &Value, case: &Value) -> String {
    let mut bytes = STANDARD.decode(files[case["file"].as_str().unwrap()].as_str().unwrap()).unwrap();
    for put in case["put"].as_array().unwrap() {
        let at = usize::try_from(put[0].as_u64().unwrap()).unwrap();
        let change = hex::decode(put[1].as_str().unwrap()).unwrap();
        bytes[at..at + change.len()].copy_from_slice(&change);
    }
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A directory as `ci/acpi-tables` writes it: each file under its name, a dash for a slash, and what the machine was.
fn acpi(folder: &Path, tables: &serde_json::Map<String, Value>, case: &Value) -> String {
    let path = folder.join("acpi");
    std::fs::create_dir(&path).unwrap();
    let machine = json!({
        "qemu": "10.0.2", "memory_mib": case["memory_mib"], "cpus": case["cpus"], "arguments": [],
    });
    std::fs::write(path.join("machine.json"), machine.to_string()).unwrap();
    for (name, contents) in tables {
        let contents = STANDARD.decode(contents.as_str().unwrap()).unwrap();
        std::fs::write(path.join(name.replace('/', "-")), contents).unwrap();
    }
    path.to_str().unwrap().to_owned()
}
