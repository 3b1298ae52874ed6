//! The role that fetches one service's image: it has the network and no secret of the workload.
//!
//! A shim starts it before it leases anything for the workload and waits for its answer, one JSON object on standard output.
//! On standard input it gets the registry's user and password, when the image is not pulled anonymously.
//! It runs as root of the service's container with three capabilities (to own and replace
//! files of the range), sees only the service's image directory (Landlock), and may open
//! no Unix socket (seccomp), because the vault would take it for the shim. So an image that breaks the
//! unpacking gains the files of that image, which it has anyway, and the registry's password when there is one: give
//! the appliance a user that may only read.

use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::Context;
use cofferdam_protocol::{error_chain, read};
use cofferdam_workload::cgroup::enter_image;
use cofferdam_workload::init::{become_root, may_be_ended};
use cofferdam_workload::pull::{self, Access, Credentials, ImageDir, PullError};
use cofferdam_workload::unpack::Room;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Role;
use super::facts::{Facts, ServiceFacts};
use crate::system::{cgroup, files};

/// The image's CA bundle.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Debian's bundle has some 220 KiB.
const MAX_BUNDLE: u64 = 4 << 20;

/// Longest password of a registry, in bytes. Tokens have up to some 2 KiB.
pub(crate) const MAX_PASSWORD: usize = 4096;
/// Of the JSON object with it: no byte becomes more than six, and the user's name has at most 255. It fits into a pipe, so that a
/// shim never waits for its child to read.
const MAX_CREDENTIALS: usize = 32 << 10;

/// How a pull ended; the shim reads it from standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Answer {
    /// `None` when the image is there.
    pub(crate) error: Option<String>,
    /// Whether the same pull could succeed soon without anybody changing anything.
    pub(crate) transient: bool,
}

/// Where the image of a service is unpacked, as that service sees it.
pub(crate) fn image_dir(service: &ServiceFacts) -> ImageDir {
    // Not below the service's directory: /run is noexec.
    image_in(&service.rootfs)
}

/// The same in what its file system has at the top.
pub(crate) fn image_in(top: &Path) -> ImageDir {
    ImageDir::at(top.join("image"))
}

/// Pulls the image of the service that `word` names, says on standard output how that went, and ends.
///
/// # Errors
///
/// The role cannot be confined, or what PID 1 wrote down for it cannot be read. A pull that fails is an answer.
pub(crate) fn run(role: &Role, word: &str) -> anyhow::Result<()> {
    let (facts, name, _) = Facts::of_word(word)?;
    let service = facts.service(name)?;
    let hosts = facts.registries.iter().filter_map(|known| Some((known.host.to_string(), known.ca.clone()?)));
    let access = Access {
        bundle: Some(files::read_bounded(BUNDLE, MAX_BUNDLE).unwrap_or_default()),
        registry: facts.registry(service).and_then(|registry| registry.ca.clone()),
        hosts: hosts.collect(),
        credentials: credentials(io::stdin().lock())?,
    };
    may_be_ended().context("cannot be one that may be ended for its memory")?;
    // What is unpacked from here on is charged to the service's image, and not to the shim.
    if Path::new(cgroup::MOUNT).join("cgroup.controllers").exists() {
        enter_image(Path::new(cgroup::MOUNT)).context("cannot enter the image's control group")?;
    }
    // What is unpacked belongs to root of the container, unless the image names somebody else.
    become_root().context("cannot become root of the container")?;
    let directory = image_dir(service);
    directory.prepare().context("cannot make the image's directory")?;
    let room = if service.image_on_disk {
        Room::Disk(directory.free().context("cannot see how much room is left for images")?)
    } else {
        Room::Memory(service.memory)
    };
    role.confine_with(&[directory.path()]).context("cannot confine the role")?;
    // A second installation of the same provider is refused, and is the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pulled = runtime.block_on(pull::pull(&service.declared.image, access, &directory, room, true));
    let answer = match &pulled {
        Ok(()) => Answer { error: None, transient: false },
        Err(error) => Answer { error: Some(line(error)), transient: error.is_transient() },
    };
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &answer)?;
    out.flush()?;
    Ok(())
}

/// As whom to pull; nothing at all stands for nobody.
fn credentials(input: impl Read) -> anyhow::Result<Option<Credentials>> {
    // What the reading of too much needs is there, so that the buffer does not grow.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_CREDENTIALS + 1));
    read::bounded_into(input, MAX_CREDENTIALS as u64, &mut bytes).context("cannot hear as whom to pull")?;
    if bytes.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&bytes).map(Some).context("what the shim says is no user and password")
}

/// The error with its causes, on one line and bounded: part of it may be a registry's own words.
fn line(error: &PullError) -> String {
    error_chain(error).chars().map(|c| if c.is_control() { ' ' } else { c }).take(600).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_whole_or_an_error_and_nothing_is_nobody() {
        let sent =
            Credentials { username: "u".repeat(255), password: Zeroizing::new("\u{1}".repeat(MAX_PASSWORD)) };
        let bytes = serde_json::to_vec(&sent).unwrap();
        assert!(bytes.len() < MAX_CREDENTIALS);
        let heard = credentials(bytes.as_slice()).unwrap().unwrap();
        assert_eq!((heard.username, heard.password), (sent.username, sent.password));
        assert!(credentials(io::empty()).unwrap().is_none());
        assert!(credentials(&bytes[..bytes.len() - 1]).is_err());
        assert!(credentials(io::repeat(b' ')).is_err());
    }

    #[test]
    fn errors_are_one_bounded_line() {
        let error = PullError::Write(io::Error::other("a\nb\u{1b}[2J".repeat(500)));
        let line = line(&error);
        assert!(line.chars().count() <= 600 && !line.chars().any(char::is_control), "{line}");
    }
}
