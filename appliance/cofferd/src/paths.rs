//! Every path under `/run/cofferdam` and every id that more than one role relies on, once.
//!
//! PID 1 makes `/run/cofferdam` (a tmpfs, root, 0755) and the directories below it with the owners
//! named here; a role writes only inside the directory it owns. Nothing here touches a file.

/// The tmpfs that holds everything the roles share. Root, 0755.
pub const RUN: &str = "/run/cofferdam";
/// What PID 1 measured and decided, for the roles to read. 0644, replaced atomically, written before the roles start.
pub const APPLIANCE: &str = "/run/cofferdam/appliance.json";
/// What the declaration decides for the roles, as PID 1 resolved it. 0644, written before the roles start.
pub const FACTS: &str = "/run/cofferdam/facts.json";
/// The same of a declaration that has not taken effect yet. 0644, written before its images are pulled.
pub const FACTS_NEXT: &str = "/run/cofferdam/facts-next.json";
/// What became of the declarations that were to take effect. 0644.
pub const CHANGES: &str = "/run/cofferdam/changes.json";
/// What happened to PID 1's roles: a ring (`system/ring`). 0644. Roles have one called `events` in their own directories.
pub const EVENTS: &str = "/run/cofferdam/events";
/// What PID 1 knows of its roles: name, pid, restarts, state. 0644.
pub const STATUS: &str = "/run/cofferdam/status.json";

/// Owned by `vault`, 0711: anybody may connect to the socket inside, only the vault may list or create.
pub const VAULT_DIR: &str = "/run/cofferdam/vault";
/// The vault's socket, 0666: SO_PEERCRED decides who may ask for what.
pub const VAULT_SOCKET: &str = "/run/cofferdam/vault/vault.sock";
/// What the vault was asked for: a ring (`system/ring`). 0644.
pub const VAULT_EVENTS: &str = "/run/cofferdam/vault/events";
/// The vault's records: a redb file of ciphertext, 0600, in memory because the tmpfs is.
pub const VAULT_STORE: &str = "/run/cofferdam/vault/store";

/// How full it is. 0644.
pub const VAULT_STATUS: &str = "/run/cofferdam/vault/store.json";

/// Says that the vault has recorded the volumes that were made at this boot.
pub const VAULT_VOLUMES: &str = "/run/cofferdam/vault/volumes";

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
/// Where `front` says that an operator asks, 0666: SO_PEERCRED decides.
pub const PUBLISH_SOCKET: &str = "/run/cofferdam/publish/publish.sock";
/// What `publish` is doing. 0644.
pub const PUBLISH_STATUS: &str = "/run/cofferdam/publish/status.json";

/// What becomes of the certificate that browsers accept. 0644.
pub const PUBLISH_CERTIFICATE: &str = "/run/cofferdam/publish/certificate.json";
/// The chain of that certificate, in PEM. 0644.
pub const PUBLISH_CHAIN: &str = "/run/cofferdam/publish/chain.pem";
/// What its authority is to be answered, while it asks. 0644.
pub const PUBLISH_CHALLENGES: &str = "/run/cofferdam/publish/challenges.json";

/// The commit that may take the place of what runs, with what proves it. 0644.
pub const CANDIDATE: &str = "/run/cofferdam/publish/candidate";
/// Where `publish` says that there is one: a FIFO that PID 1 makes.
pub const BELL: &str = "/run/cofferdam/publish/bell";

/// Owned by `admit`, 0755: what it has to say of the candidate, for PID 1.
pub const ADMIT_DIR: &str = "/run/cofferdam/admit";

/// Owned by `gate`, 0755: why services did not come up, for PID 1.
pub const GATE_DIR: &str = "/run/cofferdam/gate";

/// Owned by `network`, 0755.
pub const NETWORK_DIR: &str = "/run/cofferdam/network";
/// The address in use, written by `network`; that it exists is the sign that there is one. 0644.
pub const NETWORK_LEASE: &str = "/run/cofferdam/network/lease.json";
/// The address that the host has set, written by PID 1 before the role starts; not there when DHCP gives one. 0644.
pub const NETWORK_SETTINGS: &str = "/run/cofferdam/network/settings.json";
/// What `network` is doing. 0644.
pub const NETWORK_STATUS: &str = "/run/cofferdam/network/status.json";
/// What `/etc/resolv.conf` points to. 0644.
pub const NETWORK_RESOLVER: &str = "/run/cofferdam/network/resolv.conf";

/// Owned by `bridge`, 0711.
pub const BRIDGE_DIR: &str = "/run/cofferdam/bridge";
/// Where shims have their services joined to their networks, 0666: SO_PEERCRED decides.
pub const BRIDGE_SOCKET: &str = "/run/cofferdam/bridge/bridge.sock";

/// Owned by `egress`, 0755: the socket, and a file for each service that was denied something.
pub const EGRESS_DIR: &str = "/run/cofferdam/egress";
/// Where shims hand over their services' gates and ask for names, 0666: SO_PEERCRED decides.
pub const EGRESS_SOCKET: &str = "/run/cofferdam/egress/egress.sock";

/// Where each service sees the file system of its image, in its own ids: 0700, nosuid, nodev. Services with the same image see
/// the same one.
pub const ROOTFS_DIR: &str = "/run/cofferdam/rootfs";
/// Where PID 1 has each image that lies in memory, in a directory of its digest. Root, 0700: services have mounts of their own.
pub const IMAGES_DIR: &str = "/run/cofferdam/images";
/// A directory for each service whose image is being fetched for what is to run. Root, 0755.
pub const FETCH_DIR: &str = "/run/cofferdam/fetch";
/// A file for each image that is there and that nobody can change any more, named by its digest in hex. Root, 0755.
pub const SEALS_DIR: &str = "/run/cofferdam/seals";

/// Where PID 1 mounts each volume, in a directory of its name. Root, 0700: services have mounts of their own.
pub const VOLUMES_DIR: &str = "/run/cofferdam/volumes";
/// The digest of this program, `sha256:HEX` and the end of a line, part of the image.
pub const PROGRAM_DIGEST: &str = "/usr/lib/cofferd.sha256";
/// The blocks of an empty file system, part of the image.
pub const VOLUME_TEMPLATE: &str = "/usr/lib/volume-template";
/// Where each service sees its volumes in its own ids: a directory of its shim's, 0700, and in it one mount for each.
pub const SERVICE_VOLUMES_DIR: &str = "/run/cofferdam/service-volumes";

/// One directory per service, each owned by its shim's uid, 0755.
pub const SERVICES_DIR: &str = "/run/cofferdam/services";

/// The descriptor at which a role finds its key: `vault` the master key, `front` the TLS keys, `publish` that of its ACME account. The first one after the
/// standard three.
pub const KEY_FD: i32 = 3;
/// The descriptor at which a role finds what it is lent.
pub const LENT_FD: i32 = 4;
/// What `vault` is lent: the state disk, when there is one.
pub const DISK_FD: i32 = LENT_FD;
/// What `publish` is lent: the socket at which PID 1 hears what time it is.
pub const CLOCK_FD: i32 = LENT_FD;

/// Host ids of service 0 start here: well above every id of the image.
pub const SERVICE_UID_BASE: u32 = 100_000;
/// Each service owns this many host ids: one for its shim, then the full 16-bit range of a container.
pub const SERVICE_UID_RANGE: u32 = 65_537;
