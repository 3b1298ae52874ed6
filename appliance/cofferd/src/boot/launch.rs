//! Stage `launch`: the launch boundary is measured, then the roles and the services start.
//!
//! After the `launch` event no measured input of the boot can change: it names the services, and the TLS key
//! that every evidence document claims. The keys are made here and live in memory only.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use caps::Capability;
use cofferdam_attest::event_log::payload;
use cofferdam_declaration::Service;
use cofferdam_protocol::facts::{ApplianceFacts, ImageInfo, Phase};
use cofferdam_protocol::json::{self, JsonError};
use cofferdam_protocol::Digest;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::Boot;
use super::keys::{self, KeyError, Sealed};
use super::measure::Measured;
use crate::paths;
use crate::system::cgroup::{Cgroup, CgroupError, Limits};
use crate::system::console::say;
use crate::system::files;
use crate::system::spawn::{DEVICE_PATHS, Identity, REGISTER_PATHS, Spec};
use crate::system::supervise::Tier;
use crate::system::tdx::TdxError;

/// Why the stage failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// A register.
    #[error("cannot measure the launch")]
    Registers(#[from] TdxError),
    /// A key.
    #[error("cannot make the keys")]
    Keys(#[from] KeyError),
    /// A control group.
    #[error("cannot make the control groups")]
    Cgroup(#[from] CgroupError),
    /// A file or directory.
    #[error("cannot set up {0}")]
    File(String, #[source] io::Error),
    /// A service's file system.
    #[error("cannot mount {0}")]
    Mount(String, #[source] Errno),
    /// The facts of this boot cannot be written as JSON.
    #[error("cannot encode the facts of this boot")]
    Encode(#[source] JsonError),
}

/// The facts of this boot, as the roles read them.
pub(crate) struct Launched {
    appliance: ApplianceFacts,
}

impl Launched {
    /// Replaces `appliance.json`, with the durations known by now.
    ///
    /// # Errors
    ///
    /// The file.
    pub(crate) fn publish(mut self, phases: &[Phase]) -> Result<(), LaunchError> {
        self.appliance.phases = phases.to_vec();
        self.write()
    }

    fn write(&self) -> Result<(), LaunchError> {
        let json = json::to_vec(&self.appliance).map_err(LaunchError::Encode)?;
        files::replace(paths::APPLIANCE, &json).map_err(file(paths::APPLIANCE))
    }
}

/// One role that runs beside the services.
struct Role {
    name: &'static str,
    uid: u32,
    gid: u32,
    capabilities: &'static [Capability],
    /// Without a network it can only be reached over its socket.
    own_network: bool,
    covered: &'static [&'static str],
    /// Where the roles after it reach it.
    socket: Option<&'static str>,
    /// Bytes. A role that needs more is broken, and ends instead of taking the others along.
    memory: u64,
}

/// The vault opens its store and the evidence role asks for a key: well below this even under emulation.
const REACHABLE_WITHIN: Duration = Duration::from_secs(5);
/// Threads and processes of a role: a tokio runtime and its blocking pool under load.
const PROCESSES: u32 = 128;
/// Of one service: a database with a process per connection fits, a fork bomb does not spread.
const SERVICE_PROCESSES: u32 = 4096;

const ROLES: [Role; 4] = [
    // Its store is a file on a tmpfs, whose pages count as its own.
    Role {
        name: "vault",
        uid: paths::VAULT_UID,
        gid: paths::VAULT_UID,
        capabilities: &[],
        own_network: true,
        covered: &DEVICE_PATHS,
        socket: Some(paths::VAULT_SOCKET),
        memory: 256 << 20,
    },
    Role {
        name: "evidence",
        uid: paths::EVIDENCE_UID,
        gid: paths::EVIDENCE_GID,
        capabilities: &[],
        own_network: true,
        covered: &REGISTER_PATHS,
        socket: Some(paths::EVIDENCE_SOCKET),
        memory: 64 << 20,
    },
    // Hundreds of TLS connections with their buffers.
    Role {
        name: "front",
        uid: paths::FRONT_UID,
        gid: paths::FRONT_UID,
        capabilities: &[Capability::CAP_NET_BIND_SERVICE],
        own_network: false,
        covered: &DEVICE_PATHS,
        socket: None,
        memory: 192 << 20,
    },
    Role {
        name: "publish",
        uid: paths::PUBLISH_UID,
        gid: paths::PUBLISH_UID,
        capabilities: &[],
        own_network: false,
        covered: &DEVICE_PATHS,
        socket: None,
        memory: 96 << 20,
    },
];

/// Directories below /run/cofferdam: owner, group, mode (see `paths`).
const DIRECTORIES: [(&str, u32, u32, u32); 5] = [
    (paths::VAULT_DIR, paths::VAULT_UID, paths::VAULT_UID, 0o711),
    (paths::EVIDENCE_DIR, paths::EVIDENCE_UID, paths::EVIDENCE_GID, 0o711),
    (paths::PUBLISH_DIR, paths::PUBLISH_UID, paths::PUBLISH_UID, 0o755),
    (paths::SERVICES_DIR, 0, 0, 0o755),
    (paths::ROOTFS_DIR, 0, 0, 0o755),
];

/// Measures the launch boundary and starts everything.
///
/// # Errors
///
/// [`LaunchError`].
pub(super) fn establish(boot: &mut Boot, mut measured: Measured) -> Result<Launched, LaunchError> {
    let (tls, tls_key) = keys::tls()?;
    let vault = keys::master()?;
    let services = measured.declaration.services.clone();
    for Service { name, image, .. } in &services {
        measured.measure(&payload::Image { service: name.clone(), reference: image.clone() })?;
    }
    let names = services.iter().map(|service| service.name.clone()).collect();
    measured.measure(&payload::Launch { services: names, tls_key })?;

    for (path, uid, gid, mode) in DIRECTORIES {
        directory(path, uid, gid, mode)?;
    }
    files::replace(paths::DECLARATION, &measured.delivered.bytes).map_err(file(paths::DECLARATION))?;
    let launched = Launched { appliance: facts(measured, tls_key, boot.phases.clone())? };
    launched.write()?;
    for (name, value) in launched.appliance.registers.named() {
        say(&format!("{name} {}", hex::encode(value)));
    }

    // In the order in which they need each other, each given a moment to be reachable: a role that finds nobody
    // would wait and ask again, which costs more. One that is not up in time does not hold up the rest.
    for role in &ROLES {
        let key = match role.name {
            "vault" => Some(vault.clone()),
            "front" => Some(tls.clone()),
            _ => None,
        };
        boot.supervisor.keep(role.name.to_owned(), Tier::Role, role.spec(key)?);
        if let Some(socket) = role.socket.map(Path::new) {
            boot.supervisor.run_until(REACHABLE_WITHIN, || socket.exists());
        }
    }
    for (index, service) in (0_u32..).zip(&services) {
        let spec = shim(index, service)?;
        let tier = Tier::Service { grace: service.stop_grace_period };
        boot.supervisor.keep(format!("shim {}", service.name), tier, spec);
    }
    Ok(launched)
}

fn facts(measured: Measured, tls_key: Digest, phases: Vec<Phase>) -> Result<ApplianceFacts, LaunchError> {
    let Measured { registers, log, delivered, declaration } = measured;
    Ok(ApplianceFacts {
        repository: declaration.repository,
        commit: delivered.commit,
        declaration: Digest::of(&delivered.bytes),
        endpoint: declaration.endpoint,
        tls_key,
        event_log: log,
        phases,
        registers: registers.all()?,
        image: ImageInfo {
            name: "cofferdam".to_owned(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            digests: [("cofferd".to_owned(), own_digest()?)].into(),
        },
    })
}

/// Digest of the program that is running.
fn own_digest() -> Result<Digest, LaunchError> {
    let program = fs::File::open("/proc/self/exe").map_err(file("/proc/self/exe"))?;
    Digest::of_reader(program).map_err(file("/proc/self/exe"))
}

impl Role {
    fn spec(&self, key: Option<Sealed>) -> Result<Spec, CgroupError> {
        let limits = Limits { memory: Some(self.memory), processes: Some(PROCESSES) };
        Ok(Spec {
            arguments: vec![self.name.to_owned()],
            identity: Identity::Role { uid: self.uid, gid: self.gid, capabilities: self.capabilities },
            own_network: self.own_network,
            covered: self.covered,
            key,
            cgroup: Some(Cgroup::role(self.name, limits)?),
        })
    }
}

/// The service's directory, the file system for its image, and what its shim starts as.
fn shim(index: u32, service: &Service) -> Result<Spec, LaunchError> {
    let base = paths::service_uid(index);
    let shown = paths::service_dir(&service.name);
    directory(&shown.to_string_lossy(), base, base, 0o755)?;
    let root = paths::service_rootfs(&service.name);
    let root = root.to_string_lossy();
    directory(&root, base, base, 0o700)?;
    // Its own tmpfs: /run is noexec, and one service's image cannot fill another's. Its pages count as the
    // service's, whose control group bounds them.
    let options = format!("mode=0700,uid={base},gid={base}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("rootfs"), root.as_ref(), Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(|error| LaunchError::Mount(root.to_string(), error))?;
    let limits = Limits { memory: None, processes: Some(SERVICE_PROCESSES) };
    Ok(Spec {
        arguments: vec!["shim".to_owned(), service.name.clone()],
        identity: Identity::Shim { base },
        own_network: false,
        covered: &DEVICE_PATHS,
        key: None,
        cgroup: Some(Cgroup::service(&service.name, limits)?),
    })
}

fn directory(path: &str, uid: u32, gid: u32, mode: u32) -> Result<(), LaunchError> {
    fs::create_dir_all(path).map_err(file(path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(file(path))?;
    chown(path, Some(uid), Some(gid)).map_err(file(path))
}

fn file(path: &str) -> impl FnOnce(io::Error) -> LaunchError {
    let path = path.to_owned();
    move |source| LaunchError::File(path, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_evidence_sees_the_quote_device_and_nobody_the_registers() {
        for role in &ROLES {
            let sees = |path: &str| !role.covered.contains(&path);
            assert_eq!(sees("/sys/kernel/config/tsm"), role.name == "evidence", "{}", role.name);
            assert!(!sees("/sys/devices/virtual/misc/tdx_guest"), "{}", role.name);
            assert!(!sees("/sys/firmware"), "{}", role.name);
        }
    }

    #[test]
    fn roles_have_ids_of_their_own_and_only_the_front_a_capability() {
        let mut ids: Vec<u32> = ROLES.iter().map(|role| role.gid).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), ROLES.len());
        for role in &ROLES {
            assert_eq!(role.capabilities.is_empty(), role.name != "front", "{}", role.name);
        }
    }
}
