//! Every path under `/run/cofferdam` and every id that more than one role relies on, once.
//!
//! PID 1 makes `/run/cofferdam` (a tmpfs, root, 0755) and the directories below it with the owners
//! named here; a role writes only inside the directory it owns. Nothing here touches a file.

use std::path::PathBuf;

/// The tmpfs that holds everything the roles share. Root, 0755.
pub const RUN: &str = "/run/cofferdam";
/// What PID 1 measured and decided, for the roles to read. 0644, replaced atomically, written before the roles start.
pub const APPLIANCE: &str = "/run/cofferdam/appliance.json";
/// The exact bytes of the measured declaration. 0644.
pub const DECLARATION: &str = "/run/cofferdam/declaration.yaml";
/// What PID 1 knows of its roles: name, pid, restarts, state. 0644.
pub const STATUS: &str = "/run/cofferdam/status.json";

/// Owned by `vault`, 0711: anybody may connect to the socket inside, only the vault may list or create.
pub const VAULT_DIR: &str = "/run/cofferdam/vault";
/// The vault's socket, 0666: SO_PEERCRED decides who may ask for what.
pub const VAULT_SOCKET: &str = "/run/cofferdam/vault/vault.sock";
/// The vault's records: a redb file of ciphertext, 0600, in memory because the tmpfs is.
pub const VAULT_STORE: &str = "/run/cofferdam/vault/store.redb";

/// Owned by `evidence`, 0711.
pub const EVIDENCE_DIR: &str = "/run/cofferdam/evidence";
/// The socket of the only holder of the quote device, 0666: SO_PEERCRED decides.
pub const EVIDENCE_SOCKET: &str = "/run/cofferdam/evidence/evidence.sock";

/// Owned by `publish`, 0755.
pub const PUBLISH_DIR: &str = "/run/cofferdam/publish";
/// The collateral last fetched. 0644.
pub const PUBLISH_COLLATERAL: &str = "/run/cofferdam/publish/collateral.json";
/// The evidence document last published. 0644.
pub const PUBLISH_ATTESTATION: &str = "/run/cofferdam/publish/attestation.json";
/// What `publish` is doing. 0644.
pub const PUBLISH_STATUS: &str = "/run/cofferdam/publish/status.json";

/// Owned by `network`, 0755.
pub const NETWORK_DIR: &str = "/run/cofferdam/network";
/// The lease in use, written by `network`; that it exists is the sign that there is an address. 0644.
pub const NETWORK_LEASE: &str = "/run/cofferdam/network/lease.json";
/// What `/etc/resolv.conf` points to. 0644.
pub const NETWORK_RESOLVER: &str = "/run/cofferdam/network/resolv.conf";

/// One tmpfs per service for its image, owned by its shim's uid, 0700, nosuid, nodev.
pub const ROOTFS_DIR: &str = "/run/cofferdam/rootfs";

/// One directory per service, each owned by its shim's uid, 0755.
pub const SERVICES_DIR: &str = "/run/cofferdam/services";

/// The descriptor at which a role finds its key: `vault` the master key, `front` the TLS key. The first one after the
/// standard three.
pub const KEY_FD: i32 = 3;

/// Host ids of service 0 start here: well above every id of the image.
pub const SERVICE_UID_BASE: u32 = 100_000;
/// Each service owns this many host ids, so that a container has the full 16-bit range.
pub const SERVICE_UID_RANGE: u32 = 65_536;

/// The host uid (and gid) that is root inside the container of the service at `index`, counted from 0
/// in declaration order. The declaration holds at most 32 services, so this cannot overflow.
pub fn service_uid(index: u32) -> u32 {
    SERVICE_UID_BASE.saturating_add(index.saturating_mul(SERVICE_UID_RANGE))
}

/// `services/NAME/`. Service names are validated by the declaration: they cannot leave the directory.
pub fn service_dir(name: &str) -> PathBuf {
    PathBuf::from(SERVICES_DIR).join(name)
}

/// `rootfs/NAME/`.
pub fn service_rootfs(name: &str) -> PathBuf {
    PathBuf::from(ROOTFS_DIR).join(name)
}

/// `services/NAME/status.json`.
pub fn service_status(name: &str) -> PathBuf {
    service_dir(name).join("status.json")
}

/// `services/NAME/log`: redacted output as JSON lines.
pub fn service_log(name: &str) -> PathBuf {
    service_dir(name).join("log")
}

/// `services/NAME/log.1`: the previous log.
pub fn service_log_previous(name: &str) -> PathBuf {
    service_dir(name).join("log.1")
}

/// `services/NAME/port-N`: a Unix socket that the shim relays to port N inside the service's network.
pub fn service_port(name: &str, port: u16) -> PathBuf {
    service_dir(name).join(format!("port-{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_services_files_are_below_its_name() {
        assert_eq!(service_log_previous("web"), PathBuf::from("/run/cofferdam/services/web/log.1"));
        assert_eq!(service_port("web", 8080), PathBuf::from("/run/cofferdam/services/web/port-8080"));
    }
}
