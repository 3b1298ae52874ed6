//! The role that fetches one service's image: it has the network and no secret.
//!
//! A shim starts it before it leases anything and waits for its answer, one JSON object on standard output.
//! It runs as root of the service's user namespace with three capabilities (to own and replace
//! files of the range), sees only the service's image directory (Landlock), and may open
//! no Unix socket (seccomp), because the vault would take it for the shim. So an image that breaks the
//! unpacking gains the files of that image, which it has anyway.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use cofferdam_workload::pull::{self, Access, ImageDir, PullError};
use serde::{Deserialize, Serialize};

use super::Role;
use super::facts::{Facts, ServiceFacts};
use crate::paths;
use crate::system::files;

/// The image's CA bundle.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Debian's bundle has some 220 KiB.
const MAX_BUNDLE: u64 = 4 << 20;

/// How a pull ended; the shim reads it from standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Answer {
    /// `None` when the image is there.
    pub(crate) error: Option<String>,
    /// Whether the same pull could succeed soon without anybody changing anything.
    pub(crate) transient: bool,
}

/// Where the image of a service is unpacked.
pub(crate) fn image_dir(service: &ServiceFacts) -> ImageDir {
    // Not below the service's directory: /run is noexec.
    ImageDir::at(service.rootfs.join("image"))
}

/// Pulls the image of the service `name`, says on standard output how that went, and ends.
///
/// # Errors
///
/// The role cannot be confined, or what PID 1 wrote down for it cannot be read. A pull that fails is an answer.
pub(crate) fn run(role: &Role, name: &str) -> anyhow::Result<()> {
    let facts = Facts::read(Path::new(paths::FACTS))?;
    let service = facts.service(name)?;
    let host = service.declared.image.registry();
    let registry = facts.registries.iter().find(|registry| registry.host == *host);
    let access = Access {
        bundle: files::read_bounded(BUNDLE, MAX_BUNDLE).unwrap_or_default(),
        registry: registry.and_then(|registry| registry.ca.clone()),
        hosts: std::collections::BTreeMap::new(),
        credentials: None,
    };
    let directory = image_dir(service);
    directory.prepare().context("cannot make the image's directory")?;
    role.confine_with(&[directory.path()]).context("cannot confine the role")?;
    // A second installation of the same provider is refused, and is the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pulled = runtime.block_on(pull::pull(&service.declared.image, access, &directory, true));
    let answer = match &pulled {
        Ok(()) => Answer { error: None, transient: false },
        Err(error) => Answer { error: Some(chain(error)), transient: error.is_transient() },
    };
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &answer)?;
    out.flush()?;
    Ok(())
}

/// The error with its causes, on one line and bounded: part of it may be a registry's own words.
fn chain(error: &PullError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(600).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_bounded_line() {
        let error = PullError::Write(io::Error::other("a\nb\u{1b}[2J".repeat(500)));
        let line = chain(&error);
        assert!(line.chars().count() <= 600 && !line.chars().any(char::is_control), "{line}");
    }
}
