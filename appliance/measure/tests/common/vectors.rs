//! The frozen vectors: what a case is, and what the library makes of it.

#![allow(dead_code, clippy::unwrap_used, unreachable_pub)]

use std::collections::BTreeMap;
use std::error::Error;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cofferdam_attest::reference::{Half, MachineShape, ProcessorId};
use cofferdam_measure::AcpiTables;
use cofferdam_measure::firmware::predict;
use cofferdam_measure::uki::image_reference;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The file: `policy/vectors/measurement.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vectors {
    pub format: String,
    pub version: u32,
    pub about: String,
    /// Files by name, base64; the cases change bytes of them.
    pub files: BTreeMap<String, String>,
    pub platforms: Vec<PlatformCase>,
    pub images: Vec<ImageCase>,
}

/// A firmware on a machine.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlatformCase {
    pub name: String,
    pub file: String,
    /// Offset and hexadecimal bytes that are written there.
    pub put: Vec<(usize, String)>,
    pub memory_mib: u64,
    pub cpus: u32,
    /// What `ci/acpi-tables` would have written, base64 by name; null when nothing is given.
    pub tables: Option<BTreeMap<String, String>>,
    /// The processor that the SMBIOS tables shall name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor: Option<ProcessorId>,
    pub expect: Value,
}

/// An image.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageCase {
    pub name: String,
    pub file: String,
    pub put: Vec<(usize, String)>,
    pub expect: Value,
}

pub fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The file of a case with its changes.
fn changed(files: &BTreeMap<String, String>, file: &str, put: &[(usize, String)]) -> Vec<u8> {
    let mut bytes = STANDARD.decode(&files[file]).unwrap();
    for (at, change) in put {
        super::synthetic::put(&mut bytes, *at, &hex::decode(change).unwrap());
    }
    bytes
}

/// What the library says: the half with what is open, or why it is refused.
pub fn platform(files: &BTreeMap<String, String>, case: &PlatformCase) -> Value {
    let firmware = changed(files, &case.file, &case.put);
    let machine =
        json!({"qemu": "10.0.2", "memory_mib": case.memory_mib, "cpus": case.cpus, "arguments": []});
    let tables = case.tables.as_ref().map(|tables| {
        let decoded =
            tables.iter().map(|(name, text)| (name.clone(), STANDARD.decode(text).unwrap())).collect();
        AcpiTables::new(machine.to_string().as_bytes(), decoded).unwrap()
    });
    let shape =
        MachineShape { memory_mib: case.memory_mib, cpus: case.cpus, qemu: None, processor: case.processor };
    match predict(&firmware, "synthetic", &shape, tables.as_ref()) {
        Ok(prediction) => {
            let open: Vec<String> = prediction.open.iter().map(ToString::to_string).collect();
            json!({"reference": Half::Platform(prediction.reference), "open": open})
        }
        Err(error) => json!({"refused": chain(&error)}),
    }
}

/// As [`platform`], for an image.
pub fn image(files: &BTreeMap<String, String>, case: &ImageCase) -> Value {
    match image_reference(&changed(files, &case.file, &case.put), None) {
        Ok(mut reference) => {
            // The version of this program is no property of the image.
            reference.image.release = "0".to_owned();
            json!({"reference": Half::Image(reference)})
        }
        Err(error) => json!({"refused": chain(&error)}),
    }
}

fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
