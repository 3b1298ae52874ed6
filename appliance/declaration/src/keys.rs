//! Which keys a declaration has, and what to say about those that Compose has and it does not.
//!
//! A Compose user meets these messages first, so each says why the key is absent here and what takes its
//! place. A key that is in neither list is a slip of the pen: it is refused with the nearest known one.

/// Keys of the file itself.
pub(crate) const TOP: &[&str] = &[
    "version",
    "name",
    "repository",
    "endpoint",
    "operators",
    "tokens",
    "signers",
    "follow",
    "github",
    "attestation",
    "certificate",
    "state",
    "registries",
    "networks",
    "volumes",
    "configs",
    "services",
];
/// Keys of one operator.
pub(crate) const OPERATOR: &[&str] = &["name", "key"];
/// Keys of one token.
pub(crate) const TOKEN: &[&str] = &["name", "hash"];
/// Keys of `follow`.
pub(crate) const FOLLOW: &[&str] = &["branch", "interval", "apply"];
/// Keys of `github`.
pub(crate) const GITHUB: &[&str] = &["api", "token", "ca"];
/// Keys of `attestation`.
pub(crate) const ATTESTATION: &[&str] = &["collateral", "ca"];
/// Keys of `certificate`.
pub(crate) const CERTIFICATE: &[&str] = &["names", "directory", "contact", "terms_agreed", "ca"];
/// Keys of `state`.
pub(crate) const STATE: &[&str] = &["provider", "peers", "rollback", "images"];
/// Keys of one key server.
pub(crate) const PEER: &[&str] = &["url", "key", "ca"];
/// Keys of one registry.
pub(crate) const REGISTRY: &[&str] = &["host", "ca", "username", "password"];
/// Keys of one service.
pub(crate) const SERVICE: &[&str] = &[
    "image",
    "command",
    "entrypoint",
    "environment",
    "secrets",
    "configs",
    "ports",
    "expose",
    "networks",
    "network_mode",
    "egress",
    "depends_on",
    "healthcheck",
    "on_unhealthy",
    "on_change",
    "restart",
    "user",
    "group_add",
    "working_dir",
    "read_only",
    "tmpfs",
    "volumes",
    "stop_signal",
    "stop_grace_period",
    "deploy",
    "mem_limit",
    "cpus",
    "pids_limit",
    "shm_size",
    "ulimits",
    "cap_add",
    "cap_drop",
    "profile",
    "extra_hosts",
    "container_name",
    "hostname",
    "platform",
    "labels",
    "annotations",
    "pull_policy",
    "logging",
    "stdin_open",
    "tty",
    "privileged",
    "init",
    "scale",
    "security_opt",
];
/// Keys of `deploy`.
pub(crate) const DEPLOY: &[&str] = &["resources", "labels", "mode", "replicas"];
/// Keys of `deploy.resources`.
pub(crate) const RESOURCES: &[&str] = &["limits"];
/// Keys of `deploy.resources.limits`.
pub(crate) const LIMITS: &[&str] = &["cpus", "memory", "pids"];
/// Keys of `ulimits`.
pub(crate) const ULIMITS: &[&str] = &["nofile", "nproc", "memlock", "core"];
/// Keys of one of `ulimits` in its long form.
pub(crate) const ULIMIT: &[&str] = &["soft", "hard"];
/// Keys of `profile`.
pub(crate) const PROFILE: &[&str] = &["system_calls", "paths"];
/// Keys of `profile.paths`.
pub(crate) const PROFILE_PATHS: &[&str] = &["read", "write", "execute"];
/// Keys of one secret file.
pub(crate) const SECRET_FILE: &[&str] = &["source", "target"];
/// Keys of one config.
pub(crate) const CONFIG: &[&str] = &["content", "external", "name", "labels"];
/// Keys of where a service sees one, in its long form.
pub(crate) const CONFIG_FILE: &[&str] = &["source", "target", "uid", "gid", "mode"];
/// Keys of one port in its long form.
pub(crate) const PORT: &[&str] = &[
    "published",
    "target",
    "protocol",
    "app_protocol",
    "tls",
    "auth",
    "redact_responses",
    "host_ip",
    "mode",
    "name",
];
/// Keys of one network.
pub(crate) const NETWORK: &[&str] = &["driver", "internal", "attachable", "external", "name", "labels"];
/// Keys of a service's membership in one.
pub(crate) const MEMBERSHIP: &[&str] = &["aliases"];
/// Keys of one volume.
pub(crate) const VOLUME: &[&str] = &["size", "driver", "external", "name", "labels"];
/// Keys of where a service sees one, in its long form.
pub(crate) const VOLUME_MOUNT: &[&str] = &["type", "source", "target", "read_only", "exec", "volume"];
/// Keys of one dependency in its long form.
pub(crate) const DEPENDENCY: &[&str] = &["condition", "restart", "required"];
/// Keys of `healthcheck`.
pub(crate) const HEALTHCHECK: &[&str] =
    &["test", "http", "tcp", "interval", "timeout", "retries", "start_period", "start_interval", "disable"];

/// Why a service of a declaration does not have a key of Compose's, and what to do instead. `None` for a key that it has, or that Compose
/// does not know.
pub fn unsupported_in_service(key: &str) -> Option<(&'static str, &'static str)> {
    let found = UNSUPPORTED_SERVICE.iter().find(|(name, ..)| *name == key);
    found.map(|(_, why, instead)| (*why, *instead))
}

/// A Compose key that is refused: its name, why, and what to do instead.
pub(crate) type Unsupported = (&'static str, &'static str, &'static str);

const REMOVE: &str = "remove it";
const SERVICES_NETWORK: &str =
    "remove it; a service reaches the others in its `networks` by their names and `aliases`";
const ONE_NAME: &str =
    "use the other service's name, or give it one: `networks: {default: {aliases: [name]}}` in that service";
/// Completes "… is not supported" alone: there is no more to say than that it will be.
pub(crate) const NOT_YET: &str = "yet";
const ADDRESSES: &str = "the appliance gives out the addresses";
const NAMES: &str = "the appliance answers a service's questions for names";
const DESTINATIONS: &str = "remove it; name what the service may reach: `egress: [\"api.example.org:443\"]`";
const ONE_KIND: &str = "every network is a bridge inside the appliance";
const CPUS: &str = "write `cpus`, for example \"0.5\"";
const MEMORY: &str = "write `mem_limit`, for example 512m";
const FOR_WINDOWS: &str = "it is for Windows containers";

/// Compose keys of the whole file.
pub(crate) const UNSUPPORTED_TOP: &[Unsupported] = &[
    ("include", "a declaration is one file, so that one digest says what runs", "write the services here"),
    (
        "secrets",
        "secrets are in the vault, not in files beside the declaration",
        "name them in the service: `secrets: [secret://namespace/name/field]`",
    ),
    ("models", NOT_YET, REMOVE),
];

/// Compose keys of one service.
pub(crate) const UNSUPPORTED_SERVICE: &[Unsupported] = &[
    ("attach", "every service's output goes to `coffer logs`", REMOVE),
    ("blkio_config", "the disk is divided by the sizes of volumes", "give the service a volume of its own"),
    (
        "build",
        "nothing is built inside the appliance: an image is verified by its digest",
        "push the image and write `image: registry/name@sha256:…`",
    ),
    ("cgroup", "a service never leaves its own cgroup", REMOVE),
    ("cgroup_parent", "a service never leaves its own cgroup", REMOVE),
    ("cpu_count", FOR_WINDOWS, CPUS),
    ("cpu_percent", FOR_WINDOWS, CPUS),
    ("cpu_period", "`cpus` says the same in one number", CPUS),
    ("cpu_quota", "`cpus` says the same in one number", CPUS),
    ("cpu_rt_period", "a service never runs before the appliance", CPUS),
    ("cpu_rt_runtime", "a service never runs before the appliance", CPUS),
    ("cpu_shares", NOT_YET, CPUS),
    ("cpuset", NOT_YET, CPUS),
    ("credential_spec", FOR_WINDOWS, REMOVE),
    ("develop", "nothing is built inside the appliance", REMOVE),
    ("device_cgroup_rules", "a workload never sees a device, least of all the quote device", REMOVE),
    ("devices", "a workload never sees a device, least of all the quote device", REMOVE),
    ("dns", NAMES, DESTINATIONS),
    ("dns_opt", NAMES, REMOVE),
    ("dns_search", NAMES, REMOVE),
    ("domainname", "a service's host name is its name", REMOVE),
    (
        "env_file",
        "the declaration is the only measured input, so values beside it would be unmeasured",
        "write the values under `environment`, and secrets as secret://namespace/name/field",
    ),
    (
        "extends",
        "a declaration is one file, so that one digest says what runs",
        "write the service's keys here",
    ),
    ("external_links", "there is nothing outside to link to", SERVICES_NETWORK),
    ("gpus", "a workload never sees a device", REMOVE),
    ("interface_name", "a service's interfaces are eth0, eth1, … in the order of its networks", REMOVE),
    ("ipc", "a service never shares a namespace", REMOVE),
    ("isolation", FOR_WINDOWS, REMOVE),
    ("label_file", "nothing reads labels", REMOVE),
    ("links", "it is Compose's old way: in a network every service is known by its name", ONE_NAME),
    ("mac_address", ADDRESSES, REMOVE),
    ("mem_reservation", "a service's memory is its own: its limit is also what is kept for it", MEMORY),
    ("mem_swappiness", "there is no swap", REMOVE),
    ("memswap_limit", "there is no swap", MEMORY),
    ("models", NOT_YET, REMOVE),
    ("oom_kill_disable", "a service that needs more than its memory is ended", MEMORY),
    ("oom_score_adj", "a service that needs more than its memory is ended, and no other one", MEMORY),
    ("pid", "a service never shares a namespace", REMOVE),
    ("post_start", "nothing can enter a running workload", "do it in the image's own command"),
    ("pre_stop", "nothing can enter a running workload", "handle `stop_signal` in the program"),
    (
        "profiles",
        "what a declaration names runs: one digest, one set of services",
        "keep another declaration",
    ),
    ("provider", "nothing runs outside containers", REMOVE),
    ("runtime", "there is one runtime", REMOVE),
    ("storage_opt", "files outside volumes lie in memory, which `mem_limit` bounds", MEMORY),
    ("sysctls", "kernel parameters belong to the image", REMOVE),
    ("use_api_socket", "there is no container engine inside", REMOVE),
    ("userns_mode", "every service has a user namespace of its own", REMOVE),
    ("uts", "a service never shares a namespace", REMOVE),
    (
        "volumes_from",
        "a service sees the volumes that it names",
        "name them under `volumes` in both services",
    ),
];

/// Compose keys of `deploy`.
pub(crate) const UNSUPPORTED_DEPLOY: &[Unsupported] = &[
    ("endpoint_mode", "one service is one container", REMOVE),
    ("job_mode", "one service is one container", REMOVE),
    ("placement", "there is one appliance", REMOVE),
    (
        "restart_policy",
        "it is for swarms",
        "write `restart` in the service, for example `restart: on-failure:3`",
    ),
    ("rollback_config", "it is for swarms", REMOVE),
    ("update_config", "it is for swarms", REMOVE),
];

/// Compose keys of `deploy.resources`.
pub(crate) const UNSUPPORTED_RESOURCES: &[Unsupported] = &[(
    "reservations",
    "a service's memory is its own: its limit is also what is kept for it",
    "write `limits: {memory: 512m}`",
)];

/// Compose keys of `deploy.resources.limits`.
pub(crate) const UNSUPPORTED_LIMITS: &[Unsupported] = &[
    ("devices", "a workload never sees a device", REMOVE),
    ("generic_resources", "a workload never sees a device", REMOVE),
];

const NO_ULIMIT: &str = "not one that a service can set";
const BY_MEMORY: &str = "`mem_limit` bounds all that a service takes";

/// What else `getrlimit(2)` knows.
pub(crate) const UNSUPPORTED_ULIMITS: &[Unsupported] = &[
    ("as", BY_MEMORY, MEMORY),
    ("cpu", NO_ULIMIT, CPUS),
    ("data", BY_MEMORY, MEMORY),
    ("fsize", BY_MEMORY, MEMORY),
    ("locks", NO_ULIMIT, REMOVE),
    ("msgqueue", NO_ULIMIT, REMOVE),
    ("nice", NO_ULIMIT, REMOVE),
    ("rss", BY_MEMORY, MEMORY),
    ("rtprio", NO_ULIMIT, REMOVE),
    ("rttime", NO_ULIMIT, REMOVE),
    ("sigpending", NO_ULIMIT, REMOVE),
    ("stack", BY_MEMORY, MEMORY),
];

/// Compose keys of one secret.
pub(crate) const UNSUPPORTED_SECRET: &[Unsupported] = &[
    ("uid", "a secret's file belongs to the service's own user", REMOVE),
    ("gid", "a secret's file belongs to the service's own user", REMOVE),
    (
        "mode",
        "a secret's file is readable by the service's own user, and by all users of a service that starts as root",
        REMOVE,
    ),
];

/// Compose keys of one network.
pub(crate) const UNSUPPORTED_NETWORK: &[Unsupported] = &[
    ("driver_opts", ONE_KIND, REMOVE),
    ("enable_ipv4", "networks are IPv4", REMOVE),
    ("enable_ipv6", "networks are IPv4", REMOVE),
    ("ipam", ADDRESSES, "use names; every service has one"),
];

/// Compose keys of one volume.
pub(crate) const UNSUPPORTED_VOLUME: &[Unsupported] =
    &[("driver_opts", "every volume is a part of the state disk", "write its size: `size: 2gb`")];

/// Compose keys of one config.
pub(crate) const UNSUPPORTED_CONFIG: &[Unsupported] = &[
    (
        "file",
        "a declaration is one file, so that one digest says what runs",
        "write the file's text: `content: |`",
    ),
    ("environment", "a declaration takes nothing from an environment", "write the text: `content: |`"),
    ("template_driver", "it is for swarms", REMOVE),
];

/// Compose keys of where a service sees one.
pub(crate) const UNSUPPORTED_VOLUME_MOUNT: &[Unsupported] = &[
    (
        "bind",
        "a service never sees the host's files",
        "write `type: volume`, and name the volume as `source`",
    ),
    ("consistency", "there is one kind of volume", REMOVE),
    ("image", "a service sees the files of its own image", "put the files into the service's image"),
    ("tmpfs", "it is an option of another type", "name the path under `tmpfs` in the service"),
];

/// Compose keys of `volume` there.
pub(crate) const UNSUPPORTED_VOLUME_OPTIONS: &[Unsupported] = &[
    ("labels", "nothing reads them", "use a comment"),
    ("nocopy", "an empty volume takes over what the image has at its target", REMOVE),
    ("subpath", NOT_YET, "declare a volume of its own"),
];

/// Compose keys of a service's membership in one.
pub(crate) const UNSUPPORTED_MEMBERSHIP: &[Unsupported] = &[
    ("driver_opts", ONE_KIND, REMOVE),
    ("gw_priority", "no network has a way out", REMOVE),
    ("interface_name", "a service's interfaces are eth0, eth1, … in the order of its networks", REMOVE),
    ("ipv4_address", ADDRESSES, "use the service's name, or an alias"),
    ("ipv6_address", "networks are IPv4", "use the service's name, or an alias"),
    ("link_local_ips", ADDRESSES, "use the service's name, or an alias"),
    ("mac_address", ADDRESSES, REMOVE),
    ("priority", "networks are in the order in which they stand here", "put the first one first"),
];

/// The known name that is nearest to a misspelt one, when one is near.
pub(crate) fn nearest<'n>(wrong: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    // Names here have at most 31 characters; a longer text is no misspelling of one.
    if wrong.len() > 40 {
        return None;
    }
    let close = |name: &str| if name.len() < 5 { 1 } else { 2 };
    known
        .into_iter()
        .map(|name| (distance(wrong, name), name))
        .filter(|(distance, name)| *distance <= close(name))
        .min()
        .map(|(_, name)| name)
}

/// Edits between two texts: insertions, deletions, replacements and swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
            let mut best =
                (at(&above, j + 1) + 1).min(at(&row, j) + 1).min(at(&above, j) + usize::from(x != y));
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_finds_its_neighbour() {
        assert_eq!(nearest("enviroment", SERVICE.iter().copied()), Some("environment"));
        assert_eq!(nearest("iamge", SERVICE.iter().copied()), Some("image"));
        assert_eq!(nearest("prots", SERVICE.iter().copied()), Some("ports"));
        assert_eq!(nearest("kubernetes", SERVICE.iter().copied()), None);
    }

    #[test]
    fn no_key_is_both_known_and_refused() {
        let pairs = [
            (TOP, UNSUPPORTED_TOP),
            (SERVICE, UNSUPPORTED_SERVICE),
            (SECRET_FILE, UNSUPPORTED_SECRET),
            (NETWORK, UNSUPPORTED_NETWORK),
            (MEMBERSHIP, UNSUPPORTED_MEMBERSHIP),
            (VOLUME, UNSUPPORTED_VOLUME),
            (VOLUME_MOUNT, UNSUPPORTED_VOLUME_MOUNT),
            (CONFIG, UNSUPPORTED_CONFIG),
            (DEPLOY, UNSUPPORTED_DEPLOY),
            (RESOURCES, UNSUPPORTED_RESOURCES),
            (LIMITS, UNSUPPORTED_LIMITS),
            (ULIMITS, UNSUPPORTED_ULIMITS),
        ];
        for (known, refused) in pairs {
            for (key, ..) in refused {
                assert!(!known.contains(key), "{key}");
            }
        }
    }
}
