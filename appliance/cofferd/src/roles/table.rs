//! The table of roles: what each one is, may do and needs, once.
//!
//! PID 1 starts and supervises by it, a role confines itself by it, and the program finds its function in it. What a role does
//! is in the role's own file.

use std::path::Path;

use caps::Capability;
use cofferdam_workload::seccomp;
use landlock::AccessNet;

use super::facts::ServiceFacts;
use super::{admit, bridge, egress, evidence, front, gate, network, publish, pull, reserve, shim, vault};
use crate::paths;
use crate::system::cgroup::{self, Cgroup, CgroupError, Limits};
use crate::system::confine::{self, ConfineError, Filter, Policy, View};
use crate::system::spawn::{Handed, Identity, Spec};

/// One role.
#[derive(Debug)]
pub struct Role {
    /// Its word on the command line, in the status and in lists of processes.
    name: &'static str,
    starts: Starts,
    who: Who,
    network: Network,
    /// Directories that it does not see into.
    covered: &'static [&'static str],
    /// What it confines itself to.
    policy: Policy,
    /// The directory that it owns, and the mode of that.
    directory: Option<(&'static str, u32)>,
    /// Where other roles reach it, inside its directory.
    socket: Option<&'static str>,
    /// What it finds at descriptor 3.
    key: Option<Key>,
    /// Bytes. A role that needs more is broken, and ends instead of taking the others along. `None`: what its service may use.
    memory: Option<u64>,
    /// Threads and processes; of what runs for a service, beside its workload.
    processes: u32,
    run: Run,
}

/// Who starts a role, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Starts {
    /// PID 1, in the stage `network`.
    Network,
    /// PID 1, in the stage `launch`, in the order of the table.
    Launch,
    /// PID 1, in the stage `launch`, once for each service.
    Service,
    /// PID 1, when there is something to be judged. It does that once, and ends; one of them runs at a time.
    Once,
    /// A shim.
    Shim,
}

/// Whom a role runs as.
#[derive(Debug, Clone, Copy)]
enum Who {
    /// A uid and gid of its own, and these capabilities.
    Own { uid: u32, gid: u32, capabilities: &'static [Capability] },
    /// An id of its service's user namespace, with every capability in there and none outside.
    Service,
    /// The same with these capabilities only.
    ServiceWith(&'static [Capability]),
}

/// What a role reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    /// Nothing: it can only be reached over its socket.
    None,
    /// What the appliance reaches.
    Appliance,
    /// What the service reaches.
    Service,
}

/// A key that PID 1 hands over in a memory file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// The vault's master key.
    Vault,
    /// The private keys that TLS is served with.
    Tls,
    /// That of the account with the authority whose certificates browsers accept; not where the declaration has none.
    Account,
}

/// The role's own function.
#[derive(Debug, Clone, Copy)]
enum Run {
    /// There is one in the appliance.
    Appliance(fn(&Role) -> anyhow::Result<()>),
    /// There is one for each service, whose name is its argument.
    Service(fn(&Role, &str) -> anyhow::Result<()>),
    /// The first process of a container. The service's name is for lists of processes.
    Container(fn() -> std::io::Result<()>),
}

/// The quote device, the registers, the firmware's tables, the volumes and the images. Covered for everybody who does not need them; a
/// service sees its volumes and its image elsewhere.
const DEVICE_PATHS: &[&str] = &[
    "/sys/kernel/config/tsm",
    "/sys/devices/virtual/misc/tdx_guest",
    "/sys/firmware",
    paths::VOLUMES_DIR,
    paths::IMAGES_DIR,
];
/// What stays covered for `evidence`, which asks for quotes and never touches a register. It is root without capabilities, to whom those
/// of volumes and images belong.
const REGISTER_PATHS: &[&str] =
    &["/sys/devices/virtual/misc/tdx_guest", "/sys/firmware", paths::VOLUMES_DIR, paths::IMAGES_DIR];

/// Threads of a role: a tokio runtime and its blocking pool under load.
const PROCESSES: u32 = 128;
/// A shim and a pull have one thread each, and their runtimes a few for files.
const SERVICE_PROCESSES: u32 = 32;

/// The id that no role and no service has.
const NOBODY: u32 = 65_534;

const NO_TCP: &[AccessNet] = &[AccessNet::BindTcp, AccessNet::ConnectTcp];

macro_rules! filter {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../policy/seccomp/", $name, ".json"))
    };
}

/// DHCP: it obtains the appliance's address.
pub static NETWORK: Role = Role {
    name: "network",
    starts: Starts::Network,
    // Ports below 1024 for the DHCP client's own, packets before there is an address, and the address itself.
    who: Who::Own {
        uid: 105,
        gid: 105,
        capabilities: &[Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW, Capability::CAP_NET_BIND_SERVICE],
    },
    network: Network::Appliance,
    covered: DEVICE_PATHS,
    policy: Policy {
        filter: Filter::Own(filter!("network")),
        // Which interfaces there are.
        view: Some(View { reads: &["/sys/class/net", "/sys/devices"], writes: &[], refuses: NO_TCP }),
    },
    directory: Some((paths::NETWORK_DIR, 0o755)),
    socket: None,
    key: None,
    // One lease and a few packets.
    memory: Some(32 << 20),
    processes: 16,
    run: Run::Appliance(network::run),
};

/// The secrets.
pub static VAULT: Role = Role {
    name: "vault",
    starts: Starts::Launch,
    who: Who::Own { uid: 101, gid: 101, capabilities: &[] },
    network: Network::None,
    covered: DEVICE_PATHS,
    policy: Policy {
        filter: Filter::Own(filter!("vault")),
        view: Some(View { reads: &[paths::RUN], writes: &[], refuses: NO_TCP }),
    },
    // Anybody may connect to the socket inside, only the vault may list or create.
    directory: Some((paths::VAULT_DIR, 0o711)),
    socket: Some(paths::VAULT_SOCKET),
    key: Some(Key::Vault),
    // Its store is a file on a tmpfs, whose pages count as its own.
    memory: Some(256 << 20),
    processes: PROCESSES,
    run: Run::Appliance(vault::run),
};

/// The quote device.
pub static EVIDENCE: Role = Role {
    name: "evidence",
    starts: Starts::Launch,
    // Root without capabilities: configfs belongs to root.
    who: Who::Own { uid: 0, gid: 104, capabilities: &[] },
    network: Network::None,
    covered: REGISTER_PATHS,
    policy: Policy {
        filter: Filter::Own(filter!("evidence")),
        view: Some(View { reads: &[paths::RUN], writes: &["/sys/kernel/config/tsm"], refuses: NO_TCP }),
    },
    directory: Some((paths::EVIDENCE_DIR, 0o711)),
    socket: Some(paths::EVIDENCE_SOCKET),
    key: None,
    memory: Some(64 << 20),
    processes: PROCESSES,
    run: Run::Appliance(evidence::run),
};

/// TLS, evidence for anybody, the operators' interface, the way to the services.
pub static FRONT: Role = Role {
    name: "front",
    starts: Starts::Launch,
    who: Who::Own { uid: 102, gid: 102, capabilities: &[Capability::CAP_NET_BIND_SERVICE] },
    network: Network::Appliance,
    covered: DEVICE_PATHS,
    policy: Policy {
        filter: Filter::Own(filter!("front")),
        // Everything it passes on goes over the services' sockets. What services and roles use, their control groups say.
        view: Some(View {
            reads: &[paths::RUN, cgroup::ROLES, cgroup::SERVICES],
            writes: &[],
            refuses: &[AccessNet::ConnectTcp],
        }),
    },
    directory: None,
    socket: None,
    key: Some(Key::Tls),
    // Hundreds of TLS connections with their buffers.
    memory: Some(192 << 20),
    processes: PROCESSES,
    run: Run::Appliance(front::run),
};

/// Release attestations and collateral.
pub static PUBLISH: Role = Role {
    name: "publish",
    starts: Starts::Launch,
    who: Who::Own { uid: 103, gid: 103, capabilities: &[] },
    network: Network::Appliance,
    covered: DEVICE_PATHS,
    policy: Policy {
        filter: Filter::Own(filter!("publish")),
        // Names and certificates of the servers it talks to; outbound only.
        view: Some(View {
            reads: &[paths::RUN, "/etc", "/usr/share/ca-certificates"],
            writes: &[],
            refuses: &[AccessNet::BindTcp],
        }),
    },
    directory: Some((paths::PUBLISH_DIR, 0o755)),
    socket: Some(paths::PUBLISH_SOCKET),
    key: Some(Key::Account),
    memory: Some(96 << 20),
    processes: PROCESSES,
    run: Run::Appliance(publish::run),
};

/// The networks of the services.
pub static BRIDGE: Role = Role {
    name: "bridge",
    starts: Starts::Launch,
    // For making interfaces, and for putting them into the services' namespaces.
    who: Who::Own { uid: 106, gid: 106, capabilities: &[Capability::CAP_NET_ADMIN] },
    // The bridges are in its own namespace, where nothing has an address.
    network: Network::None,
    covered: DEVICE_PATHS,
    policy: Policy {
        filter: Filter::Own(filter!("bridge")),
        view: Some(View { reads: &[paths::RUN], writes: &[], refuses: NO_TCP }),
    },
    directory: Some((paths::BRIDGE_DIR, 0o711)),
    socket: Some(paths::BRIDGE_SOCKET),
    key: None,
    // A connection of each shim.
    memory: Some(32 << 20),
    processes: 16,
    run: Run::Appliance(bridge::run),
};

/// The services' way outside.
pub static EGRESS: Role = Role {
    name: "egress",
    starts: Starts::Launch,
    who: Who::Own { uid: 108, gid: 108, capabilities: &[] },
    network: Network::Appliance,
    covered: DEVICE_PATHS,
    policy: Policy {
        filter: Filter::Own(filter!("egress")),
        // The resolvers are among what the role `network` writes. The ports that it serves come open.
        view: Some(View { reads: &[paths::RUN], writes: &[], refuses: &[AccessNet::BindTcp] }),
    },
    directory: Some((paths::EGRESS_DIR, 0o755)),
    socket: Some(paths::EGRESS_SOCKET),
    key: None,
    // Hundreds of connections, with what the kernel keeps for them.
    memory: Some(48 << 20),
    processes: 16,
    run: Run::Appliance(egress::run),
};

/// The first to end when the machine runs out of memory.
pub static RESERVE: Role = Role {
    name: "reserve",
    starts: Starts::Launch,
    who: Who::Own { uid: 107, gid: 107, capabilities: &[] },
    network: Network::None,
    covered: DEVICE_PATHS,
    policy: Policy {
        filter: Filter::Own(filter!("reserve")),
        view: Some(View { reads: &[], writes: &[], refuses: NO_TCP }),
    },
    directory: None,
    socket: None,
    key: None,
    // What it holds, and itself.
    memory: Some(reserve::HELD as u64 + (8 << 20)),
    processes: 1,
    run: Run::Appliance(reserve::run),
};

/// Whether what `publish` found may take the place of what runs.
pub static ADMIT: Role = Role {
    name: "admit",
    starts: Starts::Once,
    who: Who::Own { uid: 109, gid: 109, capabilities: &[] },
    network: Network::None,
    covered: DEVICE_PATHS,
    policy: Policy {
        filter: Filter::Own(filter!("admit")),
        view: Some(View { reads: &[paths::RUN], writes: &[], refuses: NO_TCP }),
    },
    directory: Some((paths::ADMIT_DIR, 0o755)),
    socket: None,
    key: None,
    // Reading a declaration of 1 MiB takes 40 MiB at most, the facts that came of another one some more.
    memory: Some(96 << 20),
    processes: 1,
    run: Run::Appliance(admit::run),
};

/// Whether the services came up after a change.
pub static GATE: Role = Role {
    name: "gate",
    starts: Starts::Once,
    who: Who::Own { uid: 110, gid: 110, capabilities: &[] },
    network: Network::None,
    covered: DEVICE_PATHS,
    policy: Policy {
        filter: Filter::Own(filter!("gate")),
        view: Some(View { reads: &[paths::RUN], writes: &[], refuses: NO_TCP }),
    },
    directory: Some((paths::GATE_DIR, 0o755)),
    socket: None,
    key: None,
    // The facts that came of a declaration of 1 MiB.
    memory: Some(64 << 20),
    processes: 1,
    run: Run::Appliance(gate::run),
};

/// One service.
pub static SHIM: Role = Role {
    name: "shim",
    starts: Starts::Service,
    who: Who::Service,
    // It leaves the appliance's network for its service's, for good, when the image is there.
    network: Network::Appliance,
    covered: DEVICE_PATHS,
    // Landlock would refuse the mounts of the container that it makes.
    policy: Policy { filter: Filter::Profile(filter!("shim")), view: None },
    directory: None,
    socket: None,
    key: None,
    memory: None,
    processes: SERVICE_PROCESSES,
    run: Run::Service(shim::run),
};

/// The image of one service.
pub static PULL: Role = Role {
    name: "pull",
    starts: Starts::Shim,
    // For owning files of the range, and for replacing what an earlier layer made unwritable.
    who: Who::ServiceWith(&[Capability::CAP_CHOWN, Capability::CAP_DAC_OVERRIDE, Capability::CAP_FOWNER]),
    network: Network::Appliance,
    covered: DEVICE_PATHS,
    policy: Policy {
        filter: Filter::Profile(filter!("pull")),
        // The resolver's files may be links into the run directory, of which only the network's part is opened. It calls and is
        // never called.
        view: Some(View {
            reads: &["/etc", paths::NETWORK_DIR],
            writes: &[],
            refuses: &[AccessNet::BindTcp],
        }),
    },
    directory: None,
    socket: None,
    key: None,
    memory: None,
    processes: SERVICE_PROCESSES,
    run: Run::Service(pull::run),
};

/// The first process of one service's container.
pub static CONTAINER: Role = Role {
    name: "container",
    starts: Starts::Shim,
    who: Who::Service,
    network: Network::Service,
    covered: DEVICE_PATHS,
    // The workload's own, which the library applies when the container is built.
    policy: Policy { filter: Filter::Profile(seccomp::WORKLOAD), view: None },
    directory: None,
    socket: None,
    key: None,
    memory: None,
    processes: SERVICE_PROCESSES,
    run: Run::Container(cofferdam_workload::init::run),
};

/// All of them. Those of the stage `launch` start in this order, in which they need each other.
pub static ROLES: [&Role; 13] = [
    &NETWORK, &RESERVE, &VAULT, &EVIDENCE, &FRONT, &PUBLISH, &BRIDGE, &EGRESS, &ADMIT, &GATE, &SHIM, &PULL,
    &CONTAINER,
];

/// Runs the program as the role that its first word names, to its end. `None` when the words are no role's, or, in the first
/// process of a PID namespace, not those of one that is.
pub(crate) fn run(words: &[&str], first: bool) -> Option<anyhow::Result<()>> {
    let (name, arguments) = words.split_first()?;
    let role = ROLES.into_iter().find(|role| role.name == *name)?;
    match (role.run, arguments) {
        (Run::Container(run), [_service]) => Some(run().map_err(anyhow::Error::from)),
        (Run::Appliance(run), []) if !first => Some(run(role)),
        (Run::Service(run), [service]) if !first => Some(run(role, service)),
        _ => None,
    }
}

impl Role {
    /// Its word on the command line.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its user id as the other roles see it; `None` for what runs with its service's ids.
    pub fn uid(&self) -> Option<u32> {
        match self.who {
            Who::Own { uid, .. } => Some(uid),
            Who::Service | Who::ServiceWith(_) => None,
        }
    }

    /// What it confines itself to.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Who starts it.
    pub(crate) fn starts(&self) -> Starts {
        self.starts
    }

    /// Where other roles reach it.
    pub(crate) fn socket(&self) -> Option<&'static str> {
        self.socket
    }

    /// What it finds at descriptor 3.
    pub(crate) fn key(&self) -> Option<Key> {
        self.key
    }

    /// The directory that it owns: path, uid, gid, mode.
    pub(crate) fn directory(&self) -> Option<(&'static str, u32, u32, u32)> {
        match (self.directory, self.who) {
            (Some((path, mode)), Who::Own { uid, gid, .. }) => Some((path, uid, gid, mode)),
            _ => None,
        }
    }

    /// Bytes of memory that it may use of its own.
    pub(crate) fn memory(&self) -> Option<u64> {
        self.memory
    }

    /// Confines the calling process for good to what this role may do. To be called first, while there is one thread.
    ///
    /// # Errors
    ///
    /// [`ConfineError`]; the process may then be confined in part and has to end.
    pub fn confine(&self) -> Result<(), ConfineError> {
        self.confine_with(&[])
    }

    /// The same for a role that also writes below directories which differ from service to service.
    ///
    /// # Errors
    ///
    /// As [`Role::confine`].
    pub(crate) fn confine_with(&self, writes: &[&Path]) -> Result<(), ConfineError> {
        let own = self.directory.map(|(path, _)| Path::new(path));
        let writes: Vec<&Path> = own.into_iter().chain(writes.iter().copied()).collect();
        if let Who::ServiceWith(capabilities) = self.who {
            confine::keep_capabilities(capabilities)?;
        }
        confine::enter(self.name, &self.policy, &writes, self.socket.is_some())
    }

    /// How PID 1 starts it, with a new control group. A role of a service gets the service's name as its argument.
    ///
    /// # Errors
    ///
    /// The control group cannot be made.
    pub(crate) fn spec(
        &self,
        service: Option<&ServiceFacts>,
        key: Option<Handed>,
    ) -> Result<Spec, CgroupError> {
        let limits = Limits { memory: self.memory, processes: Some(self.processes), cpus: None };
        let (identity, cgroup) = match (self.who, service) {
            (Who::Own { uid, gid, capabilities }, _) => {
                (Identity::Role { uid, gid, capabilities }, Cgroup::role(self.name, limits)?)
            }
            (_, Some(service)) => {
                let declared = service.declared.limits;
                let limits = Limits {
                    memory: Some(service.group_memory()),
                    processes: Some(declared.processes().saturating_add(self.processes)),
                    cpus: declared.cpus,
                };
                (Identity::Shim { base: service.uid }, Cgroup::service(&service.cgroup, limits)?)
            }
            // A contradiction in the table, which a test excludes: it runs as nobody.
            (_, None) => (
                Identity::Role { uid: NOBODY, gid: NOBODY, capabilities: &[] },
                Cgroup::role(self.name, limits)?,
            ),
        };
        let words = [self.name].into_iter().chain(service.map(|service| service.declared.name.as_str()));
        Ok(Spec {
            arguments: words.map(str::to_owned).collect(),
            identity,
            own_network: self.network == Network::None,
            covered: self.covered,
            key,
            lent: None,
            cgroup: Some(cgroup),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn only_evidence_sees_the_quote_device_and_nobody_the_registers() {
        for role in ROLES {
            let sees = |path: &str| !role.covered.contains(&path);
            assert_eq!(sees("/sys/kernel/config/tsm"), role.name == EVIDENCE.name, "{}", role.name);
            assert!(!sees("/sys/devices/virtual/misc/tdx_guest"), "{}", role.name);
            assert!(!sees("/sys/firmware"), "{}", role.name);
        }
    }

    #[test]
    fn names_and_ids_are_one_roles_alone_and_above_no_services() {
        let names: BTreeSet<&str> = ROLES.iter().map(|role| role.name).collect();
        assert_eq!(names.len(), ROLES.len());
        let own = ROLES.iter().filter_map(|role| match role.who {
            Who::Own { uid, gid, .. } => Some((uid, gid)),
            _ => None,
        });
        let own: Vec<(u32, u32)> = own.collect();
        for ids in
            [own.iter().map(|ids| ids.0).collect::<BTreeSet<_>>(), own.iter().map(|ids| ids.1).collect()]
        {
            assert_eq!(ids.len(), own.len());
            assert!(ids.iter().all(|id| *id < NOBODY));
        }
        const { assert!(NOBODY < paths::SERVICE_UID_BASE) };
    }

    #[test]
    fn only_the_roles_with_a_reason_have_capabilities() {
        let with = |role: &&&Role| match role.who {
            Who::Own { capabilities, .. } => !capabilities.is_empty(),
            _ => false,
        };
        let names: Vec<&str> = ROLES.iter().filter(with).map(|role| role.name).collect();
        assert_eq!(names, [NETWORK.name, FRONT.name, BRIDGE.name]);
    }

    #[test]
    fn what_pid_1_starts_alone_has_ids_and_a_limit_of_its_own_and_the_rest_its_services() {
        for role in ROLES {
            let own = matches!(role.who, Who::Own { .. });
            let by_pid_1 = matches!(role.starts, Starts::Network | Starts::Launch | Starts::Once);
            assert_eq!(own, by_pid_1, "{}", role.name);
            assert_eq!(own, role.memory.is_some(), "{}", role.name);
            assert_eq!(own, matches!(role.run, Run::Appliance(_)), "{}", role.name);
            assert!(own || role.directory.is_none() && role.key.is_none(), "{}", role.name);
            if let Some(socket) = role.socket {
                let (directory, _) = role.directory.unwrap();
                assert!(Path::new(socket).starts_with(directory), "{}", role.name);
            }
        }
    }

    #[test]
    fn who_judges_once_has_no_network_no_key_no_socket_and_one_thread() {
        let once = ROLES.into_iter().filter(|role| role.starts == Starts::Once);
        let names: Vec<&str> = once.clone().map(|role| role.name).collect();
        assert_eq!(names, [ADMIT.name, GATE.name]);
        for role in once {
            assert_eq!((role.network, role.processes), (Network::None, 1), "{}", role.name);
            assert!(role.key.is_none() && role.socket.is_none(), "{}", role.name);
        }
    }

    #[test]
    fn words_lead_to_a_role_or_to_nothing() {
        for words in
            [&[][..], &["vault", "x"], &["shim"], &["shim", "a", "b"], &["container"], &["Vault"], &[""]]
        {
            assert!(run(words, false).is_none(), "{words:?}");
        }
        // PID 1 of the appliance is no role, whatever the kernel's command line says.
        for words in [&["vault"][..], &["pull", "web"]] {
            assert!(run(words, true).is_none(), "{words:?}");
        }
    }
}
