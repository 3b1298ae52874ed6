//! The JSON Schema of a declaration, for editors.
//!
//! It describes the shape of the file, and every pattern and bound that a schema can express; the parser stays
//! the judge, since no schema can say that ports are unique or that dependencies have no cycle. The types here
//! exist to be described and are never filled; a test holds their keys against the parser's.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::Value;

/// Where the schema of this tree lies, for editors: the first line that `coffer init` writes names it.
pub const SCHEMA_ID: &str =
    "https://raw.githubusercontent.com/cofferdam/cofferdam/main/policy/declaration.schema.json";

/// The JSON Schema (draft 2020-12) of `cofferdam.yaml`.
pub fn json_schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(Declaration);
    schema.insert("$id".into(), SCHEMA_ID.into());
    schema.insert("title".into(), "Cofferdam declaration".into());
    let mut schema = schema.to_value();
    without_null(&mut schema);
    for_other_programs(&mut schema);
    if let Some(Value::Object(definitions)) = schema.get_mut("$defs") {
        definitions.values_mut().for_each(with_variables);
    }
    schema
}

/// Every mapping may have extension keys, which nothing here reads.
fn for_other_programs(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(for_other_programs),
        Value::Object(object) => {
            if object.get("additionalProperties") == Some(&Value::Bool(false)) {
                object.insert("patternProperties".into(), serde_json::json!({ "^x-": true }));
            }
            object.values_mut().for_each(for_other_programs);
        }
        _ => {}
    }
}

/// A value with a variable may become anything.
fn with_variables(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(with_variables),
        Value::Object(object) => {
            if let Some(Value::String(pattern)) = object.get_mut("pattern") {
                *pattern = format!(r"({pattern})|\$\{{");
            }
            for (key, value) in object.iter_mut() {
                if key != "propertyNames" {
                    with_variables(value);
                }
            }
        }
        _ => {}
    }
}

/// An optional key may be absent; it may not be null, as schemars takes an `Option` to mean.
fn without_null(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(without_null),
        Value::Object(object) => {
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    object.insert("type".into(), only);
                }
            }
            if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
                choices.retain(|choice| choice.get("type").is_none_or(|name| name != "null"));
            }
            object.values_mut().for_each(without_null);
        }
        _ => {}
    }
}

/// What an appliance runs, for whom, and who operates it.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Declaration {
    /// The version of this format.
    version: Version,
    /// Has no effect.
    name: Option<String>,
    /// The appliance's identity: one GitHub repository, owner/repo.
    #[schemars(regex(pattern = r"^[A-Za-z0-9](-?[A-Za-z0-9]){0,38}/[A-Za-z0-9._-]{1,100}$"))]
    repository: String,
    /// The host and the port that clients dial; it becomes a claim.
    #[schemars(regex(pattern = r"^([a-z0-9.-]+|\[[0-9a-f:.]+\]):[1-9][0-9]{0,4}$"))]
    endpoint: String,
    /// Who may put secrets and read status and logs.
    #[schemars(length(max = 32))]
    operators: Option<Vec<Operator>>,
    /// Tokens of clients that are no operators, for ports with `auth: tokens`.
    #[schemars(length(max = 256))]
    tokens: Option<Vec<Token>>,
    /// Whose commits of the repository count: lines of .pub files, each with a key and a name of its own.
    #[schemars(length(max = 32))]
    signers: Option<Vec<Signer>>,
    /// What of the repository the appliance looks at; it needs `signers` and `github.token`.
    follow: Option<Follow>,
    /// Where release attestations go.
    github: Option<Github>,
    /// Where the collateral of quotes comes from.
    attestation: Option<Attestation>,
    /// The certificate that browsers accept, beside the attested one.
    certificate: Option<Certificate>,
    /// Where the state lives, and what opens it; in memory, and lost at power-off, unless this says otherwise.
    state: Option<State>,
    /// Registries that need their own certificate authority.
    #[schemars(length(max = 32))]
    registries: Option<Vec<Registry>>,
    /// Networks by name; `default` needs no declaration.
    #[schemars(extend("maxProperties" = 32, "propertyNames" = {"pattern": "^[a-z0-9][a-z0-9._-]{0,62}$"}))]
    networks: Option<BTreeMap<String, OrNothing<Network>>>,
    /// Directories on the state disk that services share and that outlive them, by name; they need `state`.
    #[schemars(extend("maxProperties" = 32, "propertyNames" = {"pattern": "^[a-z0-9][a-z0-9._-]{0,62}$"}))]
    volumes: Option<BTreeMap<String, OrNothing<Volume>>>,
    /// Small files by name, whose content stands here; services name those that they see.
    #[schemars(extend("maxProperties" = 64, "propertyNames" = {"pattern": "^[a-z0-9][a-z0-9._-]{0,62}$"}))]
    configs: Option<BTreeMap<String, Config>>,
    /// What runs, by name.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 64, "propertyNames" = {"pattern": "^[a-z0-9][a-z0-9_-]{0,30}$"}))]
    services: BTreeMap<String, Service>,
}

/// `1`
struct Version;

impl JsonSchema for Version {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Version".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "oneOf": [
            { "const": 1 },
            { "description": "Compose's, without effect", "type": "string", "pattern": "^[23](\\..*)?$" },
            { "type": "number", "minimum": 2.1, "exclusiveMaximum": 4, "not": { "type": "integer" } },
        ]})
    }
}

/// A person or machine that may operate the appliance.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Operator {
    /// A unique name.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9._-]{0,62}$"))]
    name: String,
    /// One line of an ed25519 .pub file.
    #[schemars(regex(pattern = r"^ssh-ed25519 [A-Za-z0-9+/=]+( .*)?$"), length(max = 1024))]
    key: String,
}

/// A token; `coffer token new NAME` makes one.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Token {
    /// A unique name; services are told it.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9._-]{0,62}$"))]
    name: String,
    /// SHA-256 of the token.
    #[schemars(regex(pattern = "^sha256:[0-9a-f]{64}$"))]
    hash: String,
}

/// One line of an ed25519 or ecdsa (P-256) .pub file; the text behind the key is the signer's name.
#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "described, never filled")]
struct Signer(
    #[schemars(
        regex(pattern = r"^(ssh-ed25519|ecdsa-sha2-nistp256) [A-Za-z0-9+/=]+( .*)?$"),
        length(max = 1024)
    )]
    String,
);

/// What the appliance looks at to see whether there is a newer declaration.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Follow {
    /// The branch, `main` unless given.
    #[schemars(regex(pattern = r"^[^\s~^:?*\[\\-][^\s~^:?*\[\\]*$"), length(max = 200))]
    branch: Option<String>,
    /// Between two looks, 1m unless given; 10s to 24h.
    interval: Option<Time>,
    /// Whether what counts there takes the place of what runs, as it does unless this is false.
    apply: Option<bool>,
}

/// The GitHub that holds the repository.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Github {
    /// Root of the REST API; `https://HOST/api/v3` for GitHub Enterprise Server.
    api: Option<Url>,
    /// The token that publishes releases; without it nothing is published.
    token: Option<Reference>,
    /// PEM certificates that alone are trusted for this server.
    ca: Option<Pem>,
}

/// Where the collateral of quotes comes from.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Attestation {
    /// Root of the provisioning certification service.
    collateral: Option<Url>,
    /// PEM certificates that alone are trusted for this server.
    ca: Option<Pem>,
}

/// A certificate that browsers accept, from an authority that speaks ACME.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Certificate {
    /// The DNS names that browsers dial, in lower case.
    #[schemars(
        length(min = 1, max = 8),
        inner(regex(pattern = r"^[a-z0-9-]+(\.[a-z0-9-]+)+$"), length(max = 253))
    )]
    names: Vec<String>,
    /// The authority's directory; Let's Encrypt's without this.
    directory: Option<Url>,
    /// Whom the authority may write to.
    #[schemars(length(max = 4), inner(regex(pattern = r"^mailto:[^@]+@[^@]+$")))]
    contact: Option<Vec<String>>,
    /// That you agree to the authority's terms of service.
    #[schemars(extend("const" = true))]
    terms_agreed: bool,
    /// PEM certificates that alone are trusted for the authority's own server.
    ca: Option<Pem>,
}

/// State on a disk, and what opens it.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct State {
    /// `operator`: operators open it at each boot, with `coffer unseal`. `peer`: key servers release their keys to the appliance, and any one's opens it.
    #[schemars(regex(pattern = "^(operator|peer)$"))]
    provider: String,
    /// The key servers of `provider: peer`.
    #[schemars(length(min = 1, max = 5))]
    peers: Option<Vec<Peer>>,
    /// What holds where no witness says how new the state has to be. `require`, as without this: it stays closed. `warn`: it opens, and that is said.
    #[schemars(regex(pattern = "^(require|warn)$"))]
    rollback: Option<String>,
    /// How much of the state disk images are kept in, unpacked, so that a boot pulls none that was there before: 64m to 1t. Without it they are in memory.
    images: Option<Size>,
}

/// A key server: `coffer keyserve`.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Peer {
    /// Where it is.
    #[schemars(regex(pattern = r"^https?://[^@?#]+$"), length(max = 1024))]
    url: String,
    /// The public half of its key: one line of an ed25519 .pub file.
    #[schemars(regex(pattern = r"^ssh-ed25519 [A-Za-z0-9+/=]+( .*)?$"), length(max = 1024))]
    key: String,
    /// PEM certificates that alone are trusted for an https URL.
    ca: Option<Pem>,
}

/// What is known about a registry, or about a host that a registry sends to, such as its token service.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Registry {
    /// host or host:port, as in image references.
    #[schemars(regex(pattern = r"^([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?$"))]
    host: String,
    /// PEM certificates that alone are trusted for this registry.
    ca: Option<Pem>,
    /// As whom images are pulled; only together with `password`.
    #[schemars(regex(pattern = r"^[!-9;-~]{1,255}$"))]
    username: Option<String>,
    /// The password or access token of `username`.
    password: Option<Reference>,
}

/// One workload.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Service {
    /// An OCI image, pinned by digest; Docker Hub's when no registry is named.
    #[schemars(regex(
        pattern = r"^([^/@]+/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?@sha256:[0-9a-f]{64}$"
    ))]
    image: String,
    /// Replaces the image's command: a list, or a line that is split at its spaces and quotes, without a shell.
    command: Option<OrNothing<Arguments>>,
    /// Replaces the image's entrypoint and then also its command: a list, or a line.
    entrypoint: Option<OrNothing<Arguments>>,
    /// Variables; a value may be a secret's reference, or have some in it as ${secret://namespace/name/field}.
    environment: Option<Environment>,
    /// Files under /run/secrets.
    #[schemars(length(max = 64))]
    secrets: Option<Vec<Secret>>,
    /// Files that are declared under `configs`, read-only.
    #[schemars(length(max = 64))]
    configs: Option<Vec<ServiceConfig>>,
    /// Ports of the appliance that lead to ports of the service: TLS outside, HTTP inside. For operators unless `auth` says
    /// otherwise.
    #[schemars(length(max = 32))]
    ports: Option<Vec<Port>>,
    /// Ports that the other members of its networks use; every port is open to them.
    #[schemars(length(max = 64))]
    expose: Option<Vec<ExposedPort>>,
    /// Networks whose other members reach it and are reached, by name; the default network unless given.
    networks: Option<Memberships>,
    /// `none` for no network at all.
    #[schemars(regex(pattern = "^none$"))]
    network_mode: Option<String>,
    /// Where it may connect to outside of the appliance: NAME:PORT for TLS with this server name, NAME:PORT/tcp for any bytes; `*.`
    /// stands for one label. Nowhere unless given.
    #[schemars(length(max = 64))]
    egress: Option<Vec<Destination>>,
    /// Services that start first.
    depends_on: Option<Dependencies>,
    /// How it is found out whether it is healthy; the image's way unless given.
    healthcheck: Option<Healthcheck>,
    /// What happens when it becomes unhealthy: nothing unless given.
    #[schemars(regex(pattern = "^(nothing|restart)$"))]
    on_unhealthy: Option<String>,
    /// What happens when a secret that it was given is put again: nothing unless given. `signal` names a signal, as in `signal HUP`.
    #[schemars(regex(
        pattern = r"^(nothing|notify|restart|signal (SIG)?(HUP|INT|QUIT|ABRT|USR1|USR2|ALRM|TERM|WINCH)|signal (1|2|3|6|10|12|14|15|28))$"
    ))]
    on_change: Option<String>,
    /// What happens when it ends; always, unless said otherwise.
    #[schemars(regex(pattern = r"^(no|always|unless-stopped|on-failure(:(0|[1-9][0-9]*))?)$"))]
    restart: Option<String>,
    /// user or user:group, each a number or a name that the image knows.
    user: Option<User>,
    /// Further groups, numbers or names that the image knows.
    #[schemars(length(max = 32))]
    group_add: Option<Vec<Group>>,
    /// Absolute path.
    working_dir: Option<AbsolutePath>,
    /// Whether the root file system is mounted read-only.
    read_only: Option<bool>,
    /// Empty file systems in memory.
    tmpfs: Option<Tmpfs>,
    /// Volumes that it sees, `NAME:/target` or in full.
    #[schemars(length(max = 32))]
    volumes: Option<Vec<ServiceVolume>>,
    /// What asks it to stop, for example SIGTERM.
    #[schemars(regex(pattern = r"^((SIG)?(HUP|INT|QUIT|ABRT|KILL|USR1|USR2|ALRM|TERM|WINCH))$"))]
    stop_signal: Option<String>,
    /// How long it may take, at most ten minutes, for example 10s.
    #[schemars(regex(pattern = r"^([0-9]+(us|ms|s|m|h))+$"))]
    stop_grace_period: Option<String>,
    /// Only its `resources.limits`.
    deploy: Option<Deploy>,
    /// Memory that the service may use, its image included unless that lies on the state disk, for example 512m; an equal share of what the others leave
    /// without it.
    mem_limit: Option<Size>,
    /// Processors that it may use, for example 0.5.
    cpus: Option<Cpus>,
    /// Processes and threads; 4096 without it.
    pids_limit: Option<Pids>,
    /// Size of /dev/shm; 64m without it.
    shm_size: Option<Size>,
    /// Resource limits of each process.
    ulimits: Option<Ulimits>,
    /// Capabilities that `cap_drop` would take away; a service has all nine without either.
    #[schemars(length(max = 64))]
    cap_add: Option<Vec<Added>>,
    /// Capabilities that the service does without, or ALL.
    #[schemars(length(max = 64))]
    cap_drop: Option<Vec<Dropped>>,
    /// The system calls and files that it uses, of those that it may: everything else is refused. `coffer up --learn` records one.
    profile: Option<Profile>,
    /// Further lines of its /etc/hosts.
    extra_hosts: Option<ExtraHosts>,
    /// Another name of the service in its networks.
    container_name: Option<String>,
    /// Has no effect: the host name is the service's name.
    hostname: Option<String>,
    /// The appliance is linux/amd64.
    #[schemars(regex(pattern = "^linux(/amd64|/x86_64)?$"))]
    platform: Option<String>,
    /// Have no effect.
    labels: Option<Labels>,
    /// Have no effect.
    annotations: Option<Labels>,
    /// Has no effect: an image is pulled by its digest, once.
    pull_policy: Option<String>,
    /// Has no effect: `coffer logs` shows the output.
    logging: Option<BTreeMap<String, Value>>,
    #[schemars(extend("const" = false))]
    stdin_open: Option<bool>,
    #[schemars(extend("const" = false))]
    tty: Option<bool>,
    #[schemars(extend("const" = false))]
    privileged: Option<bool>,
    /// Has no effect: the appliance takes in orphans itself.
    init: Option<bool>,
    /// One service is one container.
    scale: Option<One>,
    /// `no-new-privileges`, which is so anyway.
    security_opt: Option<Vec<NoNewPrivileges>>,
}

/// What a service confines itself to. It only narrows.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Profile {
    /// System calls by name; all others are refused. Those that end a program and execute the first are always there.
    #[schemars(length(max = 512), extend("uniqueItems" = true))]
    system_calls: Option<Vec<SystemCall>>,
    /// Files; all others are closed.
    paths: Option<ProfilePaths>,
}

/// A system call that services may make.
struct SystemCall;

impl JsonSchema for SystemCall {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SystemCall".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "enum": crate::profile::known_system_calls() })
    }
}

/// Absolute paths by what may be done there; a directory stands for all below it.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct ProfilePaths {
    /// Reading files and listing directories.
    #[schemars(length(max = 256), extend("uniqueItems" = true))]
    read: Option<Vec<AbsolutePath>>,
    /// Writing, making, renaming and removing.
    #[schemars(length(max = 256), extend("uniqueItems" = true))]
    write: Option<Vec<AbsolutePath>>,
    /// Executing: the service's program, what loads it, and what it starts.
    #[schemars(length(min = 1, max = 256), extend("uniqueItems" = true))]
    execute: Vec<AbsolutePath>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum ExtraHosts {
    Map(BTreeMap<String, String>),
    List(#[schemars(length(max = 32))] Vec<String>),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum Labels {
    Map(#[schemars(extend("maxProperties" = 256))] BTreeMap<String, Value>),
    List(#[schemars(length(max = 256))] Vec<String>),
}

/// `1`
struct One;

impl JsonSchema for One {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "One".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "enum": [1, "1"] })
    }
}

#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "described, never filled")]
struct NoNewPrivileges(#[schemars(regex(pattern = "^no-new-privileges([:=]true)?$"))] String);

/// The part of Compose's `deploy` that says something here.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Deploy {
    resources: Option<Resources>,
    /// Have no effect.
    labels: Option<Labels>,
    #[schemars(regex(pattern = "^replicated$"))]
    mode: Option<String>,
    replicas: Option<One>,
}

/// What a service may use.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Resources {
    limits: Option<Limits>,
}

/// The same as `cpus`, `mem_limit` and `pids_limit` of the service.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Limits {
    cpus: Option<Cpus>,
    memory: Option<Size>,
    pids: Option<Pids>,
}

/// Bytes, or a number with the unit b, k, m, g or t.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum Size {
    Text(
        #[schemars(regex(
            pattern = r"^((0|[1-9][0-9]*)[bB]?|(0|[1-9][0-9]*)(\.[0-9]{1,3})?[kKmMgGtT]([iI]?[bB])?)$"
        ))]
        String,
    ),
    Bytes(#[schemars(range(max = 70368744177664_u64))] u64),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum Cpus {
    Text(#[schemars(regex(pattern = r"^(0|[1-9][0-9]{0,3})(\.[0-9]{1,3})?$"))] String),
    Number(#[schemars(range(min = 0.01, max = 4096))] f64),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum Pids {
    Text(#[schemars(regex(pattern = "^[1-9][0-9]{0,4}$"))] String),
    Number(#[schemars(range(min = 1, max = 32768))] u32),
}

/// Of each process of the workload.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Ulimits {
    /// Open files, at most 1048576.
    nofile: Option<Ulimit>,
    /// Processes and threads of one user, at most 32768.
    nproc: Option<Ulimit>,
    /// Bytes that stay in memory; -1 for all that the service has.
    memlock: Option<Ulimit>,
    /// A core file would hold the workload's secrets: 0.
    core: Option<Ulimit>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum Ulimit {
    Both(UlimitNumber),
    Pair(UlimitPair),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct UlimitPair {
    soft: UlimitNumber,
    hard: UlimitNumber,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum UlimitNumber {
    Text(#[schemars(regex(pattern = "^(-1|0|[1-9][0-9]{0,18})$"))] String),
    Number(#[schemars(range(min = -1))] i64),
}

#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "described, never filled")]
struct Added(
    #[schemars(regex(
        pattern = r"^((CAP_)?(CHOWN|DAC_OVERRIDE|FOWNER|FSETID|KILL|SETGID|SETUID|SETPCAP|NET_BIND_SERVICE)|(cap_)?(chown|dac_override|fowner|fsetid|kill|setgid|setuid|setpcap|net_bind_service))$"
    ))]
    String,
);

#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "described, never filled")]
struct Dropped(
    #[schemars(regex(
        pattern = r"^(ALL|all|(CAP_)?(CHOWN|DAC_OVERRIDE|FOWNER|FSETID|KILL|SETGID|SETUID|SETPCAP|NET_BIND_SERVICE)|(cap_)?(chown|dac_override|fowner|fsetid|kill|setgid|setuid|setpcap|net_bind_service))$"
    ))]
    String,
);

#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "described, never filled")]
struct Url(
    #[schemars(regex(pattern = r"^https://[^?#@]+$"), length(max = 1024))]
    String,
);

#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "described, never filled")]
struct Reference(
    #[schemars(regex(pattern = r"^secret://[a-z0-9][a-z0-9._-]{0,62}(/[a-z0-9][a-z0-9._-]{0,62}){2}$"))]
    String,
);

#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "described, never filled")]
struct Pem(#[schemars(regex(pattern = r"^\s*-----BEGIN CERTIFICATE-----"), length(max = 65536))] String);

#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "described, never filled")]
struct AbsolutePath(#[schemars(regex(pattern = r"^/"), length(max = 4095))] String);

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum Arguments {
    Line(TextOrNumber),
    List(#[schemars(length(max = 256))] Vec<TextOrNumber>),
}

/// A whole number without quotes is read as its text.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum TextOrNumber {
    Text(String),
    Number(i64),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum Environment {
    Map(
        #[schemars(extend("maxProperties" = 256, "propertyNames" = {"pattern": "^[A-Za-z_][A-Za-z0-9_.-]{0,254}$"}))]
         BTreeMap<String, VariableValue>,
    ),
    List(#[schemars(length(max = 256))] Vec<Assignment>),
}

#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "described, never filled")]
struct Assignment(#[schemars(regex(pattern = r"^[A-Za-z_][A-Za-z0-9_.-]{0,254}="))] String);

/// A whole number or a boolean without quotes is read as its text.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum VariableValue {
    Text(String),
    Number(i64),
    Boolean(bool),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum Secret {
    Reference(Reference),
    File(SecretFile),
}

/// A secret under a file name of its own.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct SecretFile {
    source: Reference,
    /// One file name under /run/secrets; name.field unless given.
    #[schemars(regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"))]
    target: Option<String>,
}

/// A small file.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Config {
    /// Its text, at most 64 KiB; may have secrets in it as ${secret://namespace/name/field}.
    content: String,
    #[schemars(extend("const" = false))]
    external: Option<bool>,
    /// Has no effect.
    name: Option<String>,
    /// Have no effect.
    labels: Option<Labels>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum ServiceConfig {
    Short(String),
    Long(ConfigFile),
}

/// Where a service sees a config.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct ConfigFile {
    /// The config's name.
    source: String,
    /// Its path in the service; /NAME unless given.
    target: Option<AbsolutePath>,
    /// Whose it is; 0 unless given.
    uid: Option<Id>,
    /// Of which group; 0 unless given.
    gid: Option<Id>,
    /// Octal, with a 0 in front; 0444 unless given.
    mode: Option<Mode>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum Id {
    Text(#[schemars(regex(pattern = "^(0|[1-9][0-9]{0,4})$"))] String),
    Number(#[schemars(range(max = 65534))] u32),
}

/// A number without quotes is decimal to readers of YAML 1.2, whatever stands in front.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum Mode {
    Text(#[schemars(regex(pattern = "^0o?[0-7]{3,4}$"))] String),
    Number(#[schemars(range(max = 777))] u32),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum Port {
    Short(
        #[schemars(regex(
            pattern = r"^(([0-9.]+|\[[0-9a-f:]+\]|localhost):)?[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?:[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?(/tcp)?$"
        ))]
        String,
    ),
    Long(LongPort),
}

/// A published port in full.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct LongPort {
    published: PortNumber,
    target: PortNumber,
    #[schemars(regex(pattern = "^tcp$"))]
    protocol: Option<String>,
    /// What the service speaks: HTTP/1.1 unless said otherwise, HTTP/2 without TLS (for gRPC), or any bytes.
    #[schemars(regex(pattern = "^(http|h2c|tcp)$"))]
    app_protocol: Option<String>,
    /// Where TLS ends: at the appliance with the attested key unless said otherwise, or, with `app_protocol: tcp` and `auth: none`, at the
    /// service.
    #[schemars(regex(pattern = "^(terminate|passthrough)$"))]
    tls: Option<String>,
    /// Whose requests reach the service: operators' unless said otherwise, clients' with one of the `tokens`, or, with none,
    /// everybody's.
    #[schemars(regex(pattern = "^(operators|tokens|none)$"))]
    auth: Option<String>,
    /// Whether the service's secrets are taken out of its answers at this port; false unless given. The answers are then
    /// HTTP/1.1 without compression, ranges and WebSockets.
    redact_responses: Option<bool>,
    /// 127.0.0.1 for a port that is for operators alone.
    host_ip: Option<String>,
    /// Has no effect.
    mode: Option<String>,
    /// Has no effect.
    name: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum PortNumber {
    Text(#[schemars(regex(pattern = "^[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?$"))] String),
    Number(#[schemars(range(min = 1, max = 65535))] u32),
}

/// A bridge that leads nowhere but to its members.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Network {
    #[schemars(regex(pattern = "^bridge$"))]
    driver: Option<String>,
    internal: Option<bool>,
    attachable: Option<bool>,
    #[schemars(extend("const" = false))]
    external: Option<bool>,
    /// Has no effect.
    name: Option<String>,
    /// Have no effect.
    labels: Option<Labels>,
}

/// A part of the state disk.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Volume {
    /// 64m to 1t; 1g unless given. It cannot be changed later.
    size: Option<Size>,
    #[schemars(regex(pattern = "^local$"))]
    driver: Option<String>,
    #[schemars(extend("const" = false))]
    external: Option<bool>,
    /// Has no effect.
    name: Option<String>,
    /// Have no effect.
    labels: Option<Labels>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum ServiceVolume {
    Short(#[schemars(regex(pattern = r"^[a-z0-9][a-z0-9._-]{0,62}:/[^:]+(:r[ow])?$"))] String),
    Long(VolumeMount),
}

/// Where a service sees a volume, in full.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct VolumeMount {
    #[schemars(regex(pattern = "^volume$"))]
    r#type: String,
    /// The volume's name.
    source: String,
    target: AbsolutePath,
    /// Whether the service cannot write to it; false unless given.
    read_only: Option<bool>,
    /// Whether programs in it can be executed; false unless given.
    exec: Option<bool>,
    volume: Option<VolumeOptions>,
}

/// Nothing that Compose has here is supported.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct VolumeOptions {}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum Memberships {
    List(#[schemars(length(min = 1, max = 8))] Vec<String>),
    Map(
        #[schemars(extend("minProperties" = 1, "maxProperties" = 8))] BTreeMap<String, OrNothing<Membership>>,
    ),
}

/// A service's place in a network.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Membership {
    /// Further names of the service there.
    #[schemars(length(max = 16))]
    aliases: Option<Vec<Alias>>,
}

#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "described, never filled")]
struct Alias(
    #[schemars(
        regex(
            pattern = r"^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*$"
        ),
        length(max = 253)
    )]
    String,
);

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum ExposedPort {
    Text(#[schemars(regex(pattern = "^[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?(/(tcp|udp))?$"))] String),
    Number(#[schemars(range(min = 1, max = 65535))] u32),
}

#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "described, never filled")]
struct Destination(
    #[schemars(
        regex(
            pattern = r"^(\*\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?:[1-9][0-9]{0,4}(/tcp)?$"
        ),
        length(max = 263)
    )]
    String,
);

/// What Compose's short form leaves empty: `backend:`.
struct OrNothing<T>(std::marker::PhantomData<T>);

impl<T: JsonSchema> JsonSchema for OrNothing<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("{}OrNothing", T::schema_name()).into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "oneOf": [{ "type": "null" }, generator.subschema_for::<T>()] })
    }
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum Dependencies {
    List(#[schemars(length(max = 32))] Vec<String>),
    Map(#[schemars(extend("maxProperties" = 32))] BTreeMap<String, Dependency>),
}

/// A dependency in full.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Dependency {
    #[schemars(regex(pattern = "^service_(started|healthy|completed_successfully)$"))]
    condition: String,
    /// Whether an operator's restart of the other one restarts this one, too. False unless given.
    restart: Option<bool>,
    /// Whether it waits without end; otherwise it goes on when the other one failed or is not declared. True unless given.
    required: Option<bool>,
}

/// How it is found out whether a service is healthy.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "described, never filled")]
struct Healthcheck {
    /// [CMD, program, argument], [CMD-SHELL, line], [NONE], or a line for a shell.
    test: Option<Arguments>,
    /// Instead of `test`: PORT or PORT/path of the service, which is healthy when it answers with 200 to 399.
    http: Option<HttpProbe>,
    /// Instead of `test`: a port of the service, which is healthy when it takes connections.
    tcp: Option<PortNumber>,
    /// Between two probes, 30s unless given.
    interval: Option<Time>,
    /// Of one probe, 30s unless given.
    timeout: Option<Time>,
    /// Failures in a row that make it unhealthy, 3 unless given.
    retries: Option<Retries>,
    /// How long failures do not count after a start; 0s unless given.
    start_period: Option<Time>,
    /// Between two probes in that time, 5s unless given.
    start_interval: Option<Time>,
    /// No probe, whatever the image says.
    disable: Option<bool>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum HttpProbe {
    Text(#[schemars(regex(pattern = "^[1-9][0-9]{0,4}(/.*)?$"))] String),
    Port(#[schemars(range(min = 1, max = 65535))] u32),
}

#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "described, never filled")]
struct Time(#[schemars(regex(pattern = r"^([0-9]+(us|ms|s|m|h))+$"))] String);

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum Retries {
    Text(#[schemars(regex(pattern = "^[1-9][0-9]{0,3}$"))] String),
    Number(#[schemars(range(min = 1, max = 1000))] u32),
}

/// A user or a group: a number or a name.
const ID_OR_NAME: &str = "(0|[1-9][0-9]{0,4}|[A-Za-z_][A-Za-z0-9._-]{0,63})";

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum User {
    Text(#[schemars(regex(pattern = format!("^{ID_OR_NAME}(:{ID_OR_NAME})?$")))] String),
    Number(#[schemars(range(max = 65534))] u32),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum Group {
    Text(#[schemars(regex(pattern = format!("^{ID_OR_NAME}$")))] String),
    Number(#[schemars(range(max = 65534))] u32),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "described, never filled")]
enum Tmpfs {
    One(AbsolutePath),
    List(#[schemars(length(max = 16))] Vec<AbsolutePath>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys;

    /// The schema's types and the parser's lists of keys are two texts; this holds them together.
    #[test]
    fn the_schema_has_the_keys_that_the_parser_reads() {
        let schema = json_schema();
        let keys_at = |pointer: &str| -> Vec<String> {
            let object = schema.pointer(pointer).and_then(|value| value["properties"].as_object());
            let mut keys: Vec<String> =
                object.unwrap_or_else(|| panic!("{pointer}")).keys().cloned().collect();
            keys.sort();
            keys
        };
        let sorted = |known: &[&str]| {
            let mut keys: Vec<String> = known.iter().map(ToString::to_string).collect();
            keys.sort();
            keys
        };
        assert_eq!(keys_at(""), sorted(keys::TOP));
        assert_eq!(keys_at("/$defs/Operator"), sorted(keys::OPERATOR));
        assert_eq!(keys_at("/$defs/Token"), sorted(keys::TOKEN));
        assert_eq!(keys_at("/$defs/Follow"), sorted(keys::FOLLOW));
        assert_eq!(keys_at("/$defs/Github"), sorted(keys::GITHUB));
        assert_eq!(keys_at("/$defs/Attestation"), sorted(keys::ATTESTATION));
        assert_eq!(keys_at("/$defs/Certificate"), sorted(keys::CERTIFICATE));
        assert_eq!(keys_at("/$defs/State"), sorted(keys::STATE));
        assert_eq!(keys_at("/$defs/Peer"), sorted(keys::PEER));
        assert_eq!(keys_at("/$defs/Registry"), sorted(keys::REGISTRY));
        assert_eq!(keys_at("/$defs/Service"), sorted(keys::SERVICE));
        assert_eq!(keys_at("/$defs/SecretFile"), sorted(keys::SECRET_FILE));
        assert_eq!(keys_at("/$defs/Config"), sorted(keys::CONFIG));
        assert_eq!(keys_at("/$defs/ConfigFile"), sorted(keys::CONFIG_FILE));
        assert_eq!(keys_at("/$defs/LongPort"), sorted(keys::PORT));
        assert_eq!(keys_at("/$defs/Network"), sorted(keys::NETWORK));
        assert_eq!(keys_at("/$defs/Membership"), sorted(keys::MEMBERSHIP));
        assert_eq!(keys_at("/$defs/Volume"), sorted(keys::VOLUME));
        assert_eq!(keys_at("/$defs/VolumeMount"), sorted(keys::VOLUME_MOUNT));
        assert_eq!(keys_at("/$defs/Dependency"), sorted(keys::DEPENDENCY));
        assert_eq!(keys_at("/$defs/Healthcheck"), sorted(keys::HEALTHCHECK));
        assert_eq!(keys_at("/$defs/Deploy"), sorted(keys::DEPLOY));
        assert_eq!(keys_at("/$defs/Resources"), sorted(keys::RESOURCES));
        assert_eq!(keys_at("/$defs/Limits"), sorted(keys::LIMITS));
        assert_eq!(keys_at("/$defs/Ulimits"), sorted(keys::ULIMITS));
        assert_eq!(keys_at("/$defs/UlimitPair"), sorted(keys::ULIMIT));
        assert_eq!(keys_at("/$defs/Profile"), sorted(keys::PROFILE));
        assert_eq!(keys_at("/$defs/ProfilePaths"), sorted(keys::PROFILE_PATHS));
    }
}
