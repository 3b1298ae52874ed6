//! Reading the keys of one service.
//!
//! Compose's words keep Compose's meaning. Where Compose has a short and a long form, both read into the same
//! type; where one of the forms would let a value come from somewhere else than the declaration, it is refused.

use std::collections::BTreeSet;
use std::time::Duration;

use cofferdam_protocol::{SECRET_SCHEME, SecretRef, WordError, parse_decimal, parse_port, shorten};

use crate::diagnostics::{Collector, Place};
use crate::egress;
use crate::fields::{self, Fields};
use crate::keys;
use crate::model::{Auth, DEFAULT_STOP_GRACE_PERIOD, Port, Restart, SecretFile, Service, Value};
use crate::read::{bounded, collect, optional};
use crate::read_limits::{self, Resources};
use crate::read_network;
use crate::read_volumes;
use crate::value::{IdOrName, parse_duration};
use crate::yaml::{Entry, Kind, Node};

/// The kernel's MAX_ARG_STRLEN is 128 KiB for one argument or variable; half leaves room for the name.
const MAX_TEXT: usize = 64 * 1024;
const MAX_ARGUMENTS: usize = 256;
const MAX_VARIABLES: usize = 256;
const MAX_SECRET_FILES: usize = 64;
const MAX_PORTS: usize = 32;
const MAX_TMPFS: usize = 16;
const MAX_DEPENDENCIES: usize = 32;
const MAX_GROUPS: usize = 32;
/// What the appliance mounts itself; a file system over one of these would hide it.
pub(crate) const TAKEN: [&str; 4] = ["/proc", "/sys", "/dev", "/run/secrets"];
/// PATH_MAX of Linux, with its NUL.
const MAX_PATH: usize = 4095;

/// A service with the places that later rules may complain about.
pub(crate) struct Read {
    pub(crate) service: Service,
    /// Of each port, in order.
    pub(crate) ports: Vec<Place>,
    /// Of each membership, in order; of the default network's when the file does not say it, the service has none.
    pub(crate) networks: Vec<Option<Place>>,
    /// Of each volume, in order.
    pub(crate) volumes: Vec<Place>,
    /// Of each dependency, in order.
    pub(crate) depends_on: Vec<Place>,
    /// Of each reference to a secret.
    pub(crate) references: Vec<(SecretRef, Place)>,
}

/// Reads one service. `None` when anything in it was refused.
pub(crate) fn service(name: &str, node: &Node, errors: &mut Collector<'_>) -> Option<Read> {
    let fields = Fields::open(node, "a service", keys::SERVICE, keys::UNSUPPORTED_SERVICE, errors)?;
    let mut references = Vec::new();
    let image = fields
        .require("image", "write `image: registry/name@sha256:…`", errors)
        .and_then(|node| fields::parse(node, "`image`", errors));
    let command = fields.get("command").map(|node| arguments(node, "`command`", errors));
    let entrypoint = fields.get("entrypoint").map(|node| arguments(node, "`entrypoint`", errors));
    let environment = or_empty(fields.get("environment"), |node| environment(node, &mut references, errors));
    let secrets = or_empty(fields.get("secrets"), |node| secret_files(node, &mut references, errors));
    let ports = or_empty(fields.get("ports"), |node| ports(node, errors));
    let exposed = fields.get("expose").map_or(Some(()), |node| read_network::exposed(node, errors));
    let networks = read_network::memberships(&fields, errors);
    let egress = or_empty(fields.get("egress"), |node| egress::read(node, errors));
    let depends_on = or_empty(fields.get("depends_on"), |node| dependencies(node, errors));
    let restart = fields.get("restart").map_or(Some(Restart::Always), |node| restart(node, errors));
    let user = fields.get("user").map(|node| fields::parse(node, "`user`", errors));
    let group_add = or_empty(fields.get("group_add"), |node| groups(node, errors));
    let working_dir = fields.get("working_dir").map(|node| path(node, "`working_dir`", errors));
    let read_only =
        fields.get("read_only").map_or(Some(false), |node| fields::boolean(node, "`read_only`", errors));
    let tmpfs = or_empty(fields.get("tmpfs"), |node| tmpfs(node, errors));
    let volumes = or_empty(fields.get("volumes"), |node| read_volumes::mounts(node, errors));
    let stop_signal = fields.get("stop_signal").map(|node| fields::parse(node, "`stop_signal`", errors));
    let stop_grace_period = fields
        .get("stop_grace_period")
        .map_or(Some(DEFAULT_STOP_GRACE_PERIOD), |node| duration(node, errors));
    let resources = read_limits::resources(&fields, errors);
    let (ports, port_places) = ports?.into_iter().unzip();
    exposed?;
    let (networks, network_places): (Vec<_>, _) = networks?.into_iter().unzip();
    let egress = egress?;
    egress::needs_a_network(fields.get("egress"), &egress, &networks, errors)?;
    let (depends_on, dependency_places) = depends_on?.into_iter().unzip();
    let (volumes, volume_places) = volumes?.into_iter().unzip();
    let Resources { limits, shm_size, ulimits, capabilities } = resources?;
    let service = Service {
        name: name.to_owned(),
        image: image?,
        command: optional(command)?,
        entrypoint: optional(entrypoint)?,
        environment: environment?,
        secrets: secrets?,
        ports,
        networks,
        egress,
        depends_on,
        restart: restart?,
        user: optional(user)?,
        group_add: group_add?,
        working_dir: optional(working_dir)?,
        read_only: read_only?,
        tmpfs: tmpfs?,
        volumes,
        stop_signal: optional(stop_signal)?,
        stop_grace_period: stop_grace_period?,
        limits,
        shm_size,
        ulimits,
        capabilities,
    };
    Some(Read {
        service,
        ports: port_places,
        networks: network_places,
        volumes: volume_places,
        depends_on: dependency_places,
        references,
    })
}

fn or_empty<T>(node: Option<&Node>, read: impl FnOnce(&Node) -> Option<Vec<T>>) -> Option<Vec<T>> {
    node.map_or(Some(Vec::new()), read)
}

/// A list of arguments, or one word. A line that a shell would have to split is refused: there is no shell,
/// and Compose's own splitting rules differ from every shell's.
fn arguments(node: &Node, what: &str, errors: &mut Collector<'_>) -> Option<Vec<String>> {
    if let Kind::Scalar { .. } = &node.kind {
        let word = argument(node, what, errors)?;
        let needs_a_shell = |c: char| c.is_whitespace() || "\"'\\`*?[]{}()<>|&;#~!".contains(c);
        if word.is_empty() || word.contains(needs_a_shell) {
            let hint = match word.contains(['"', '\'', '\\']) {
                true => "write a list, one item for each argument: [\"program\", \"argument\"]".to_owned(),
                false => {
                    let words: Vec<_> = word.split_whitespace().map(|word| format!("{word:?}")).collect();
                    format!("write a list: [{}]", shorten(&words.join(", "), 160))
                }
            };
            errors.hinted(node.place, format!("{what} is a line for a shell, and there is no shell"), hint);
            return None;
        }
        return Some(vec![word]);
    }
    let items = fields::list(node, what, errors)?;
    bounded(node, items.len(), MAX_ARGUMENTS, "arguments", errors)?;
    collect(items.iter().map(|item| argument(item, "an argument", errors)))
}

fn argument(node: &Node, what: &str, errors: &mut Collector<'_>) -> Option<String> {
    let text = long_text(node, what, errors)?;
    if text.contains(SECRET_SCHEME) {
        errors.hinted(
            node.place,
            "a secret in an argument, which every process can read",
            "give it under `environment` or as a file under `secrets`",
        );
        return None;
    }
    Some(text)
}

fn long_text(node: &Node, what: &str, errors: &mut Collector<'_>) -> Option<String> {
    let text = fields::text(node, what, errors)?;
    if text.len() > MAX_TEXT {
        errors.error(node.place, format!("{what} is longer than 64 KiB"));
        return None;
    }
    Some(text)
}

/// A mapping, or a list of `KEY=value`.
fn environment(
    node: &Node,
    references: &mut Vec<(SecretRef, Place)>,
    errors: &mut Collector<'_>,
) -> Option<Vec<(String, Value)>> {
    let mut names = BTreeSet::new();
    let mut variable = |name: &str, place: Place, value: &Node, text: String, errors: &mut Collector<'_>| {
        let name_ok = (1..=255).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && !name.starts_with(|c: char| c.is_ascii_digit());
        if !name_ok {
            errors.hinted(
                place,
                format!("`{}` is not a variable's name", shorten(name, 64)),
                "letters, digits and _, not starting with a digit",
            );
            return None;
        }
        if !names.insert(name.to_owned()) {
            errors.error(place, format!("the variable `{}` is given twice", shorten(name, 64)));
            return None;
        }
        let value = variable_value(value, text, errors)?;
        if let Value::Secret(reference) = &value {
            references.push((reference.clone(), place));
        }
        Some((name.to_owned(), value))
    };
    match &node.kind {
        Kind::Map(entries) => {
            bounded(node, entries.len(), MAX_VARIABLES, "variables", errors)?;
            collect(entries.iter().map(|Entry { key, place, value }| {
                let text = value_text(value, key, errors)?;
                variable(key, *place, value, text, errors)
            }))
        }
        Kind::List(items) => {
            bounded(node, items.len(), MAX_VARIABLES, "variables", errors)?;
            collect(items.iter().map(|item| {
                let text = long_text(item, "a variable", errors)?;
                match text.split_once('=') {
                    Some((name, value)) => variable(name, item.place, item, value.to_owned(), errors),
                    None => {
                        no_value(item.place, &text, errors);
                        None
                    }
                }
            }))
        }
        _ => {
            fields::mismatch(node, "`environment`", "a mapping or a list of KEY=value", errors);
            None
        }
    }
}

fn value_text(node: &Node, name: &str, errors: &mut Collector<'_>) -> Option<String> {
    if let Kind::Scalar { text, plain: true } = &node.kind
        && fields::is_null(text)
    {
        no_value(node.place, name, errors);
        return None;
    }
    long_text(node, "a variable's value", errors)
}

/// In Compose, a variable without a value is taken from the shell that runs it.
fn no_value(place: Place, name: &str, errors: &mut Collector<'_>) {
    let name = shorten(name, 64);
    errors.hinted(
        place,
        format!("the variable `{name}` has no value, and there is no environment to take one from"),
        format!("write {name}: \"\" for an empty one, or {name}: secret://namespace/name/field"),
    );
}

fn variable_value(node: &Node, text: String, errors: &mut Collector<'_>) -> Option<Value> {
    if text.starts_with(SECRET_SCHEME) {
        return fields::checked(node, text.parse().map(Value::Secret), errors);
    }
    if text.contains(SECRET_SCHEME) {
        errors.hinted(
            node.place,
            "a secret's reference inside a longer value",
            "a reference is the whole value: put the whole text into the vault",
        );
        return None;
    }
    Some(Value::Plain(text))
}

fn secret_files(
    node: &Node,
    references: &mut Vec<(SecretRef, Place)>,
    errors: &mut Collector<'_>,
) -> Option<Vec<SecretFile>> {
    let items = fields::list(node, "`secrets`", errors)?;
    bounded(node, items.len(), MAX_SECRET_FILES, "secrets", errors)?;
    let mut targets = BTreeSet::new();
    let read = items.iter().map(|item| {
        let (source, target) = match &item.kind {
            Kind::Map(_) => {
                let fields =
                    Fields::open(item, "a secret", keys::SECRET_FILE, keys::UNSUPPORTED_SECRET, errors)?;
                let source = fields
                    .require("source", "write `source: secret://namespace/name/field`", errors)
                    .and_then(|node| fields::parse::<SecretRef>(node, "`source`", errors));
                let target = fields.get("target").map(|node| file_name(node, errors));
                (source?, optional(target)?)
            }
            _ => (fields::parse::<SecretRef>(item, "a secret", errors)?, None),
        };
        let target = target.unwrap_or_else(|| source.default_target());
        if !targets.insert(target.clone()) {
            errors.hinted(
                item.place,
                format!("a second secret goes to /run/secrets/{target}"),
                format!("write {{source: {source}, target: another-name}}"),
            );
            return None;
        }
        references.push((source.clone(), item.place));
        Some(SecretFile { source, target })
    });
    collect(read)
}

/// One name under `/run/secrets`; a path would let a declaration choose where a secret is written.
fn file_name(node: &Node, errors: &mut Collector<'_>) -> Option<String> {
    let text = fields::text(node, "`target`", errors)?;
    let ok = (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    if !ok {
        errors.hinted(
            node.place,
            "`target` is not a file name",
            "1 to 128 letters, digits, . _ - for a file in /run/secrets, not starting with . or -",
        );
        return None;
    }
    Some(text)
}

fn ports(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<(Port, Place)>> {
    let items = fields::list(node, "`ports`", errors)?;
    bounded(node, items.len(), MAX_PORTS, "ports", errors)?;
    let read = items.iter().map(|item| {
        let port = match &item.kind {
            Kind::Map(_) => long_port(item, errors)?,
            _ => {
                let text = fields::text(item, "a port", errors)?;
                fields::checked(item, short_port(&text), errors)?
            }
        };
        Some((port, item.place))
    });
    collect(read)
}

fn short_port(text: &str) -> Result<Port, WordError> {
    let (pair, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if protocol != "tcp" {
        return Err(WordError::new("only TCP ports can be published: clients reach them over TLS"));
    }
    if pair.contains('-') {
        return Err(WordError::new("ranges of ports are not supported").hint("write one entry for each port"));
    }
    match pair.split(':').collect::<Vec<_>>().as_slice() {
        [published, target] => Ok(Port {
            published: parse_port(published)?,
            target: parse_port(target)?,
            auth: Auth::Operators,
            redact_responses: false,
        }),
        [target] => Err(WordError::new("the port on the appliance is not given")
            .hint(format!("write \"PUBLISHED:{0}\", for example \"443:{0}\"", shorten(target, 12)))),
        _ => Err(WordError::new("not PUBLISHED:TARGET").hint(
            "write \"443:8080\"; a published port is open on the appliance's address, so no address is given",
        )),
    }
}

fn long_port(node: &Node, errors: &mut Collector<'_>) -> Option<Port> {
    let fields = Fields::open(node, "a port", keys::PORT, keys::UNSUPPORTED_PORT, errors)?;
    let number = |key: &str, errors: &mut Collector<'_>| {
        let node = fields.require(key, "write {published: 443, target: 8080}", errors)?;
        let text = fields::text(node, "a port", errors)?;
        fields::checked(node, parse_port(&text), errors)
    };
    let (published, target) = (number("published", errors), number("target", errors));
    if let Some(node) = fields.get("protocol")
        && fields::text(node, "`protocol`", errors)? != "tcp"
    {
        errors.error(node.place, "only TCP ports can be published: clients reach them over TLS");
        return None;
    }
    let auth = fields.get("auth").map_or(Some(Auth::Operators), |node| auth(node, errors));
    let redact = fields
        .get("redact_responses")
        .map_or(Some(false), |node| fields::boolean(node, "`redact_responses`", errors));
    Some(Port { published: published?, target: target?, auth: auth?, redact_responses: redact? })
}

fn auth(node: &Node, errors: &mut Collector<'_>) -> Option<Auth> {
    match fields::text(node, "`auth`", errors)?.as_str() {
        "operators" => Some(Auth::Operators),
        "tokens" => Some(Auth::Tokens),
        "none" => Some(Auth::None),
        _ => {
            errors.hinted(
                node.place,
                "not a kind of callers",
                "one of operators (also without `auth`), tokens, none (everybody)",
            );
            None
        }
    }
}

/// A list of names, or a mapping from names to the condition `service_started`.
fn dependencies(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<(String, Place)>> {
    let names: Option<Vec<(String, Place)>> = match &node.kind {
        Kind::Map(entries) => {
            bounded(node, entries.len(), MAX_DEPENDENCIES, "dependencies", errors)?;
            collect(entries.iter().map(|entry| {
                condition(&entry.value, errors)?;
                Some((entry.key.clone(), entry.place))
            }))
        }
        Kind::List(items) => {
            bounded(node, items.len(), MAX_DEPENDENCIES, "dependencies", errors)?;
            collect(items.iter().map(|item| Some((fields::text(item, "a dependency", errors)?, item.place))))
        }
        _ => {
            fields::mismatch(node, "`depends_on`", "a list of services", errors);
            None
        }
    };
    let mut seen = BTreeSet::new();
    let mut names = names?;
    names.retain(|(name, _)| seen.insert(name.clone()));
    Some(names)
}

fn condition(node: &Node, errors: &mut Collector<'_>) -> Option<()> {
    let fields = Fields::open(node, "a dependency", keys::DEPENDENCY, keys::UNSUPPORTED_DEPENDENCY, errors)?;
    let node = fields.require("condition", "write `condition: service_started`", errors)?;
    match fields::text(node, "`condition`", errors)?.as_str() {
        "service_started" => Some(()),
        "service_healthy" | "service_completed_successfully" => {
            errors.hinted(
                node.place,
                "this condition is not supported yet",
                "write `condition: service_started`, and let the service retry until the other answers",
            );
            None
        }
        _ => {
            errors.hinted(node.place, "not a condition", "write `condition: service_started`");
            None
        }
    }
}

/// One of a few words, so it is read as written: `no` without quotes is a boolean to YAML 1.1, and means the same.
fn restart(node: &Node, errors: &mut Collector<'_>) -> Option<Restart> {
    let Kind::Scalar { text, .. } = &node.kind else {
        fields::mismatch(node, "`restart`", "a restart policy", errors);
        return None;
    };
    let read = match text.as_str() {
        "no" => Some(Restart::No),
        "always" => Some(Restart::Always),
        "unless-stopped" => Some(Restart::UnlessStopped),
        "on-failure" => Some(Restart::OnFailure { max_retries: None }),
        _ => text
            .strip_prefix("on-failure:")
            .and_then(parse_decimal)
            .map(|retries| Restart::OnFailure { max_retries: Some(retries) }),
    };
    if read.is_none() {
        errors.hinted(
            node.place,
            "not a restart policy",
            "one of no, always, on-failure, on-failure:N, unless-stopped",
        );
    }
    read
}

fn groups(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<IdOrName>> {
    let items = fields::list(node, "`group_add`", errors)?;
    bounded(node, items.len(), MAX_GROUPS, "groups", errors)?;
    collect(items.iter().map(|item| fields::parse(item, "a group", errors)))
}

fn tmpfs(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<String>> {
    let single = std::slice::from_ref(node);
    let items = match &node.kind {
        Kind::Scalar { .. } => single,
        _ => fields::list(node, "`tmpfs`", errors)?,
    };
    bounded(node, items.len(), MAX_TMPFS, "file systems", errors)?;
    let mut seen = BTreeSet::new();
    let read = items.iter().map(|item| {
        let path = path(item, "`tmpfs`", errors)?;
        if path.contains(':') {
            errors.hinted(item.place, "options of a tmpfs are not supported yet", "write the path alone");
            return None;
        }
        if path == "/" || path == "/run" || TAKEN.iter().any(|taken| below(&path, taken)) {
            errors.error(item.place, "the appliance mounts this path itself");
            return None;
        }
        if !seen.insert(path.clone()) {
            errors.error(item.place, "this path is given twice");
            return None;
        }
        Some(path)
    });
    collect(read)
}

/// Whether a path is this directory or in it.
pub(crate) fn below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub(crate) fn path(node: &Node, what: &str, errors: &mut Collector<'_>) -> Option<String> {
    absolute(fields::text(node, what, errors)?, node.place, what, errors)
}

/// An absolute path in its shortest form: no `.`, no `..`, no doubled slash, none at the end.
pub(crate) fn absolute(text: String, place: Place, what: &str, errors: &mut Collector<'_>) -> Option<String> {
    let parts_ok = text
        .strip_prefix('/')
        .is_some_and(|rest| rest.is_empty() || rest.split('/').all(|part| !matches!(part, "" | "." | "..")));
    if !parts_ok || text.len() > MAX_PATH || text.contains(char::is_control) {
        errors.hinted(
            place,
            format!("{what} is not an absolute path"),
            "it starts with / and has no . or .. parts, no double slash and no slash at its end",
        );
        return None;
    }
    Some(text)
}

fn duration(node: &Node, errors: &mut Collector<'_>) -> Option<Duration> {
    let text = fields::text(node, "`stop_grace_period`", errors)?;
    fields::checked(node, parse_duration(&text), errors)
}
