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
use caps::{CapSet, Capability, CapsHashSet};
use cofferdam_declaration::Declaration;
use cofferdam_workload::pull::{self, Access, ImageDir, PullError};
use cofferdam_workload::seccomp::Profile;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr,
};
use serde::{Deserialize, Serialize};

use crate::paths;
use crate::system::{confine, files};

/// The image's CA bundle.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Debian's bundle has some 220 KiB.
const MAX_BUNDLE: u64 = 4 << 20;
/// For owning files of the range, and for replacing what an earlier layer made unwritable.
const KEPT: [Capability; 3] = [Capability::CAP_CHOWN, Capability::CAP_DAC_OVERRIDE, Capability::CAP_FOWNER];

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
pub(crate) fn image_dir(service: &str) -> ImageDir {
    // Not below the service's directory: /run is noexec.
    ImageDir::at(paths::service_rootfs(service).join("image"))
}

/// Pulls the image of the service `name`, says on standard output how that went, and ends.
pub(crate) fn run(name: &str) -> anyhow::Result<()> {
    let bytes = files::read_bounded(paths::DECLARATION, cofferdam_declaration::MAX_BYTES as u64)
        .context("cannot read the declaration")?;
    let declaration = Declaration::parse(&bytes).context("cannot parse the declaration")?;
    let service = declaration.service(name).context("the declaration has no such service")?;
    let registry = declaration.registries.iter().find(|registry| registry.host == *service.image.registry());
    let access = Access {
        bundle: files::read_bounded(BUNDLE, MAX_BUNDLE).unwrap_or_default(),
        registry: registry.and_then(|registry| registry.ca.clone()),
        hosts: std::collections::BTreeMap::new(),
        credentials: None,
    };
    let directory = image_dir(name);
    directory.prepare().context("cannot make the image's directory")?;
    confine_to(directory.path())?;
    // A second installation of the same provider is refused, and is the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pulled = runtime.block_on(pull::pull(&service.image, access, &directory, true));
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

fn confine_to(directory: &Path) -> anyhow::Result<()> {
    confine::undumpable()?;
    let kept: CapsHashSet = KEPT.into_iter().collect();
    for capability in caps::runtime::thread_all_supported().difference(&kept) {
        caps::drop(None, CapSet::Bounding, *capability).context("cannot drop capabilities")?;
    }
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        caps::clear(None, set).context("cannot drop capabilities")?;
    }
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept).context("cannot drop capabilities")?;
    }
    nix::sys::prctl::set_no_new_privs().context("cannot set no_new_privs")?;
    landlock(directory).context("cannot confine the view of the file system")?;
    Profile::pull()?.apply()?;
    Ok(())
}

fn landlock(directory: &Path) -> anyhow::Result<()> {
    let abi = ABI::V5;
    let everything = AccessFs::from_all(abi);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write =
        everything & !AccessFs::Execute & !AccessFs::MakeChar & !AccessFs::MakeBlock & !AccessFs::MakeSock;
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let mut ruleset = ruleset
        .handle_access(everything)?
        // It calls and is never called.
        .handle_access(AccessNet::BindTcp)?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new(directory)?, write))?;
    // The resolver's files may be links into the run directory, of which only the network's part is opened.
    for path in ["/etc", "/run/cofferdam/network", "/proc/meminfo"] {
        if let Ok(file) = PathFd::new(path) {
            let access = if Path::new(path).is_dir() { read } else { AccessFs::ReadFile.into() };
            ruleset = ruleset.add_rule(PathBeneath::new(file, access))?;
        }
    }
    ruleset.restrict_self()?;
    Ok(())
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
