//! Inputs of any size: a file of 1 TiB without contents is refused by its length, a device without an end behind its limit.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Every option that names a file, with the exit code of a refusal; `FILE` is the file.
const INPUTS: [(&[&str], i32); 12] = [
    (&["measure", "FILE"], 2),
    (&["measure", "--firmware", "FILE"], 2),
    (&["measure", "--mrtd", MRTD, "--explain", "FILE"], 2),
    (&["measure", "--mrtd", MRTD, "--explain", "Cargo.toml", "--reference", "FILE"], 2),
    (&["appraise", "FILE"], 3),
    (&["appraise", "--quote", "FILE"], 2),
    (&["appraise", "--quote", "Cargo.toml", "--collateral", "FILE"], 2),
    (&["appraise", "Cargo.toml", "--reference", "FILE"], 2),
    (&["appraise", "Cargo.toml", "--root", "FILE"], 2),
    (&["appraise", "Cargo.toml", "--policy", "FILE"], 2),
    (&["verify", "acme/app", "--github-ca", "FILE"], 2),
    (&["check", "FILE"], 2),
];
const MRTD: &str = "000000000000000000000000000000000000000000000000\
                    000000000000000000000000000000000000000000000000";

#[test]
fn every_input_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let sparse = folder.path().join("sparse");
    File::create(&sparse).unwrap().set_len(1 << 40).unwrap();
    for file in [sparse.to_str().unwrap(), "/dev/zero"] {
        for (arguments, code) in INPUTS {
            let arguments = arguments.iter().map(|word| if *word == "FILE" { file } else { word });
            let command: Vec<&str> = arguments.collect();
            let started = Instant::now();
            let output = Command::new(env!("CARGO_BIN_EXE_coffer"))
                .args(&command)
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .env_clear()
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
            let named = said.contains("has more than ") || said.contains(" bytes, at most ");
            assert!(named && said.contains(" bytes"), "{command:?}: {said}");
            // The largest limit, that of images, is half a gigabyte of a device.
            assert!(started.elapsed() < Duration::from_secs(60), "{command:?}: {:?}", started.elapsed());
        }
    }
}
