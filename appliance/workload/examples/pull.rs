//! Pulls an image as the role `pull` does, into a directory, for `ci/bench`: `pull REFERENCE CA.pem DIRECTORY`.
//!
//! Prints `{"us":…,"peak_kib":…}`: how long it took, and the most memory that the process had (`VmHWM`, proc_pid_status(5)).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::time::Instant;

use cofferdam_protocol::ImageReference;
use cofferdam_workload::pull::{Access, ImageDir, pull};
use cofferdam_workload::unpack::Room;

/// Bytes that the image may take.
const ROOM: Room = Room::Memory(4 << 30);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [reference, ca, directory] = words.as_slice() else {
        panic!("usage: pull REFERENCE CA.pem DIRECTORY")
    };
    let image: ImageReference = reference.parse().unwrap();
    let access = Access { registry: Some(fs::read_to_string(ca).unwrap()), ..Access::default() };
    let directory = ImageDir::at(directory.into());
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let begun = Instant::now();
    directory.prepare().unwrap();
    runtime.block_on(pull(&image, access, &directory, ROOM, true)).unwrap();
    let us = begun.elapsed().as_micros();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    println!("{{\"us\":{us},\"peak_kib\":{}}}", peak.trim().trim_end_matches(" kB"));
}
