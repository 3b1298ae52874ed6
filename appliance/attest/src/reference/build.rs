//! From what an image was built, and with what.

use std::collections::BTreeMap;

use cofferdam_protocol::{Commit, Digest, json};
use serde::{Deserialize, Serialize};

/// Who wants the same bits needs the same of all of this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// Commit of the source tree.
    pub commit: Commit,
    /// Whether the tree differed from that commit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub modified: bool,
    /// Digest over every file that the image is made of, see `ci/measurements`.
    pub inputs: Digest,
    /// Compilers and image builder, version by name.
    #[serde(deserialize_with = "json::unique_map")]
    pub toolchain: BTreeMap<String, String>,
    /// Distribution packages that compiled or entered the image, version by name.
    #[serde(deserialize_with = "json::unique_map")]
    pub packages: BTreeMap<String, String>,
    /// Time of the package archive's snapshot, `20261122T000000Z`; absent when it was the live archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
}
