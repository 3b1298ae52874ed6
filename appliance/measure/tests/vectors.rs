//! The frozen vectors hold: `policy/vectors/measurement.json`, written by `examples/measurement-vectors.rs`.

#![allow(clippy::unwrap_used)]

mod common;

use common::vectors::{Vectors, image, platform};

#[test]
fn every_event_and_register_is_as_frozen() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../policy/vectors/measurement.json");
    let vectors: Vectors = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(vectors.version, 1);
    for case in &vectors.platforms {
        assert_eq!(platform(&vectors.files, case), case.expect, "{}", case.name);
    }
    for case in &vectors.images {
        assert_eq!(image(&vectors.files, case), case.expect, "{}", case.name);
    }
    // Neither kind of outcome may vanish unseen.
    let refused = |expect: &serde_json::Value| expect.get("refused").is_some();
    let platforms = vectors.platforms.iter().filter(|case| refused(&case.expect)).count();
    let images = vectors.images.iter().filter(|case| refused(&case.expect)).count();
    assert_eq!((vectors.platforms.len(), platforms, vectors.images.len(), images), (30, 21, 17, 13));
}
