//! A vault that is killed in the middle of its work, and the one that is started after it.
//!
//! The test starts itself again as a child that puts secrets without end into a store on a file and says
//! after each what it has put; kills it at a moment of no choosing, after as many puts as each round wants; and opens the store.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

mod common;

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use cofferdam_vault::{DiskError, FileDisk, Store, StoreError};
use common::{PASSWORD, id, keys, reference, secret};

/// Names the directory to the child; a person who runs the tests does not set it.
const DIRECTORY: &str = "COFFERDAM_VAULT_KILL_TEST";

fn disk(path: &Path) -> FileDisk {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    file.set_len(4 << 20).unwrap();
    FileDisk::new(file).unwrap()
}

fn value(version: u64) -> Vec<u8> {
    format!("the secret in version {version}").into_bytes()
}

/// The child's work; without the variable it is no test and passes.
#[test]
fn child() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let path = Path::new(&directory).join("store");
    let store = if path.exists() {
        Store::open(disk(&path), keys(1), None).unwrap()
    } else {
        Store::create(disk(&path), keys(1)).unwrap()
    };
    let mut version = store.list().first().map_or(0, |entry| entry.version);
    loop {
        version += 1;
        let entry = store.put(&secret(PASSWORD, &value(version)), 0, &id()).unwrap();
        assert_eq!(entry.version, version);
        println!("put {version}");
    }
}

#[test]
fn what_was_put_is_there_after_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let mut last = 0;
    for round in 0..10_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let (put, puts) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            let versions = BufReader::new(output).lines().map_while(Result::ok);
            let versions = versions.filter_map(|line| line.strip_prefix("put ")?.parse::<u64>().ok());
            versions.inspect(|_| put.send(()).unwrap_or_default()).last()
        });
        // The first is killed while it is being made, or soon after.
        for _ in 0..round {
            puts.recv_timeout(Duration::from_secs(60)).expect("the child puts");
        }
        std::thread::sleep(Duration::from_micros(if round == 0 { 20_000 } else { 1370 * round }));
        child.kill().unwrap();
        child.wait().unwrap();
        let said = reader.join().unwrap().unwrap_or(last);
        if !path.exists() {
            continue;
        }
        let store = match Store::open(disk(&path), keys(1), None) {
            Ok(store) => store,
            // Killed while it was being made: the role makes it under another name until it is whole.
            Err(error) if said == 0 => {
                assert!(!matches!(error, StoreError::Disk(DiskError::OtherKey)));
                std::fs::remove_file(&path).unwrap();
                continue;
            }
            Err(error) => panic!("round {round}: {error}"),
        };
        let version = store.list().first().map_or(0, |entry| entry.version);
        // What was said is there; what was being put when the kill came may be.
        assert!(version == said || version == said + 1, "round {round}: said {said}, there is {version}");
        assert!(version >= last);
        if version > 0 {
            assert_eq!(store.get(&reference(PASSWORD)).unwrap().unwrap().expose(), value(version));
        }
        last = version;
    }
    assert!(last >= (1..10).sum(), "only {last} puts in all rounds");
}
