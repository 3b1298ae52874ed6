//! Reading the keys of one service.
//!
//! Compose's words keep Compose's meaning. Where Compose has a short and a long form, both read into the same
//! type; where one of the forms would let a value come from somewhere else than the declaration, it is refused.

use std::collections::BTreeSet;
use std::time::Duration;

use cofferdam_protocol::{SECRET_SCHEME, SecretRef, parse_decimal, shorten};

use crate::ImageReference;
use crate::composed::{Part, Value};
use crate::depends;
use crate::diagnostics::{Collector, Place};
use crate::egress;
use crate::fields::{self, Fields};
use crate::health::{self, Healthcheck, OnUnhealthy};
use crate::keys;
use crate::model::{DEFAULT_STOP_GRACE_PERIOD, Membership, Restart, SecretFile, Service};
use crate::on_change::{self, OnChange};
use crate::profile::{self, Profile};
use crate::read::{bounded, collect, optional};
use crate::read_configs;
use crate::read_harmless;
use crate::read_limits::{self, Resources};
use crate::read_network;
use crate::read_ports;
use crate::read_volumes;
use crate::shell_words;
use crate::value::{IdOrName, parse_duration};
use crate::yaml::{Entry, Kind, Node};

/// The kernel's MAX_ARG_STRLEN is 128 KiB for one argument or variable; half leaves room for the name.
const MAX_TEXT: usize = 64 * 1024;
const MAX_ARGUMENTS: usize = 256;
const MAX_VARIABLES: usize = 256;
const MAX_SECRET_FILES: usize = 64;
const MAX_TMPFS: usize = 16;
const MAX_GROUPS: usize = 32;
/// What the appliance mounts itself; a file system over one of these would hide it.
pub(crate) const TAKEN: [&str; 4] = ["/proc", "/sys", "/dev", "/run/secrets"];
/// PATH_MAX of Linux, with its NUL.
const MAX_PATH: usize = 4095;

/// A service with the places that later rules may complain about.
pub(crate) struct Read {
    pub(crate) service: Service,
    pub(crate) image: Place,
    pub(crate) container_name: Option<Place>,
    /// Of each port, in order.
    pub(crate) ports: Vec<Place>,
    /// Of each membership, in order; of the default network's when the file does not say it, the service has none.
    pub(crate) networks: Vec<Option<Place>>,
    /// Of each volume, in order.
    pub(crate) volumes: Vec<Place>,
    /// Of each dependency, in order.
    pub(crate) depends_on: Vec<Place>,
    pub(crate) restart: Option<Place>,
    pub(crate) on_unhealthy: Option<Place>,
    pub(crate) on_change: Option<Place>,
    pub(crate) profile: Option<Place>,
    /// The configs that it sees, until they have their content.
    pub(crate) configs: Vec<read_configs::Mount>,
    /// Of each reference to a secret.
    pub(crate) references: Vec<(SecretRef, Place)>,
}

/// Reads one service. `None` when anything in it was refused.
pub(crate) fn service(name: &str, node: &Node, errors: &mut Collector<'_>) -> Option<Read> {
    let fields = Fields::open(node, "a service", keys::SERVICE, keys::UNSUPPORTED_SERVICE, errors)?;
    let mut references = Vec::new();
    let image_place = fields.get("image").map_or(node.place, |node| node.place);
    // What stands there instead has been said about `build`.
    let built = fields.has("build") && !fields.has("image");
    let image_node =
        if built { None } else { fields.require("image", "write `image: registry/name@sha256:…`", errors) };
    let image = image_node.and_then(|node| image(node, errors));
    let command = fields.get("command").map_or(Some(None), |node| arguments(node, "`command`", errors));
    let entrypoint =
        fields.get("entrypoint").map_or(Some(None), |node| arguments(node, "`entrypoint`", errors));
    let environment = or_empty(fields.get("environment"), |node| environment(node, &mut references, errors));
    let secrets = or_empty(fields.get("secrets"), |node| secret_files(node, &mut references, errors));
    let configs = or_empty(fields.get("configs"), |node| read_configs::mounts(node, errors));
    let ports = or_empty(fields.get("ports"), |node| read_ports::ports(node, errors));
    let exposed = fields.get("expose").map_or(Some(()), |node| read_network::exposed(node, errors));
    let networks = read_network::memberships(&fields, errors);
    let container_name =
        fields.get("container_name").map(|node| (read_network::alias(node, errors), node.place));
    let extra_hosts = or_empty(fields.get("extra_hosts"), |node| read_network::extra_hosts(node, errors));
    let egress = or_empty(fields.get("egress"), |node| egress::read(node, errors));
    let depends_on = or_empty(fields.get("depends_on"), |node| depends::read(node, errors));
    let healthcheck =
        fields.get("healthcheck").map_or(Some(Healthcheck::default()), |node| health::read(node, errors));
    let on_unhealthy = fields
        .get("on_unhealthy")
        .map_or(Some(OnUnhealthy::Nothing), |node| health::on_unhealthy(node, errors));
    let on_change =
        fields.get("on_change").map_or(Some(OnChange::Nothing), |node| on_change::read(node, errors));
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
    let profile = fields.get("profile").map_or(Some(Profile::default()), |node| profile::read(node, errors));
    let harmless = read_harmless::service(&fields, errors);
    let (ports, port_places) = ports?.into_iter().unzip();
    exposed?;
    harmless?;
    let (mut networks, network_places): (Vec<Membership>, _) = networks?.into_iter().unzip();
    let container_name = container_name.map(|(alias, place)| Some((alias?, place)));
    let container_name = optional(container_name)?;
    if let Some((alias, _)) = &container_name {
        read_network::also_called(&mut networks, name, alias);
    }
    let egress = egress?;
    egress::needs_a_network(fields.get("egress"), &egress, &networks, errors)?;
    let (depends_on, dependency_places) = depends_on?.into_iter().unzip();
    let (volumes, volume_places) = volumes?.into_iter().unzip();
    let Resources { limits, shm_size, ulimits, capabilities } = resources?;
    let service = Service {
        name: name.to_owned(),
        image: image?,
        command: command?,
        entrypoint: entrypoint?,
        environment: environment?,
        secrets: secrets?,
        configs: Vec::new(),
        ports,
        networks,
        extra_hosts: extra_hosts?,
        egress,
        depends_on,
        healthcheck: healthcheck?,
        on_unhealthy: on_unhealthy?,
        on_change: on_change?,
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
        profile: profile?,
    };
    Some(Read {
        service,
        image: image_place,
        container_name: container_name.map(|(_, place)| place),
        ports: port_places,
        networks: network_places,
        volumes: volume_places,
        depends_on: dependency_places,
        restart: fields.get("restart").map(|node| node.place),
        on_unhealthy: fields.get("on_unhealthy").map(|node| node.place),
        on_change: fields.get("on_change").map(|node| node.place),
        profile: fields.get("profile").map(|node| node.place),
        configs: configs?,
        references,
    })
}

fn or_empty<T>(node: Option<&Node>, read: impl FnOnce(&Node) -> Option<Vec<T>>) -> Option<Vec<T>> {
    node.map_or(Some(Vec::new()), read)
}

/// An image as Docker names it: without a registry it is Docker Hub's, where one part alone is one of the library's.
fn image(node: &Node, errors: &mut Collector<'_>) -> Option<ImageReference> {
    let text = fields::text(node, "`image`", errors)?;
    let name = text.split('@').next().unwrap_or_default();
    let full = match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => text,
        // Without a digest it is refused as it stands.
        _ if !text.contains('@') => text,
        Some(_) => format!("docker.io/{text}"),
        None => format!("docker.io/library/{text}"),
    };
    fields::checked(node, full.parse(), errors)
}

/// A list of arguments, or a line that is split as Compose does. Nothing at all keeps the image's, as in Compose.
fn arguments(node: &Node, what: &str, errors: &mut Collector<'_>) -> Option<Option<Vec<String>>> {
    if matches!(&node.kind, Kind::Scalar { text, plain: true, .. } if fields::is_null(text)) {
        return Some(None);
    }
    if let Kind::Scalar { .. } | Kind::Composed(_) = &node.kind {
        let line = argument(node, what, errors)?;
        let words = fields::checked(node, shell_words::split(&line), errors)?;
        bounded(node, words.len(), MAX_ARGUMENTS, "arguments", errors)?;
        return Some(Some(words));
    }
    let items = fields::list(node, what, errors)?;
    bounded(node, items.len(), MAX_ARGUMENTS, "arguments", errors)?;
    collect(items.iter().map(|item| argument(item, "an argument", errors))).map(Some)
}

fn argument(node: &Node, what: &str, errors: &mut Collector<'_>) -> Option<String> {
    let text = match &node.kind {
        Kind::Composed(_) => None,
        _ => Some(long_text(node, what, errors)?),
    };
    let text = text.filter(|text| !text.contains(SECRET_SCHEME));
    if text.is_none() {
        errors.hinted(
            node.place,
            "a secret in an argument, which every process can read",
            "give it under `environment` or as a file under `secrets`",
        );
    }
    text
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
    let mut variable = |name: &str, place: Place, value: Value, errors: &mut Collector<'_>| {
        let name_ok = (1..=255).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
            && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !name_ok {
            errors.hinted(
                place,
                format!("`{}` is not a variable's name", shorten(name, 64)),
                "letters, digits, _ . and -, starting with a letter or _",
            );
            return None;
        }
        if !names.insert(name.to_owned()) {
            errors.error(place, format!("the variable `{}` is given twice", shorten(name, 64)));
            return None;
        }
        references.extend(value.references().into_iter().map(|reference| (reference.clone(), place)));
        Some((name.to_owned(), value))
    };
    match &node.kind {
        Kind::Map(entries) => {
            bounded(node, entries.len(), MAX_VARIABLES, "variables", errors)?;
            collect(entries.iter().map(|Entry { key, place, value }| {
                let value = variable_value(value, key, errors)?;
                variable(key, *place, value, errors)
            }))
        }
        Kind::List(items) => {
            bounded(node, items.len(), MAX_VARIABLES, "variables", errors)?;
            collect(items.iter().map(|item| {
                let (name, value) = assignment(item, errors)?;
                variable(&name, item.place, value, errors)
            }))
        }
        _ => {
            fields::mismatch(node, "`environment`", "a mapping or a list of KEY=value", errors);
            None
        }
    }
}

/// `NAME=value`, with secrets in the value or without.
fn assignment(node: &Node, errors: &mut Collector<'_>) -> Option<(String, Value)> {
    let assigned = match &node.kind {
        Kind::Composed(parts) => {
            composed(node, parts, "a variable", errors)?.split_first().and_then(|(first, rest)| {
                let Part::Text(text) = first else { return None };
                let (name, text) = text.split_once('=')?;
                let text = (!text.is_empty()).then(|| Part::Text(text.to_owned()));
                Some((
                    name.to_owned(),
                    Some(Value::of(text.into_iter().chain(rest.iter().cloned()).collect())),
                ))
            })
        }
        _ => {
            let text = long_text(node, "a variable", errors)?;
            let Some((name, text)) = text.split_once('=') else {
                no_value(node.place, &text, errors);
                return None;
            };
            Some((name.to_owned(), plain(node, text, errors)))
        }
    };
    if assigned.is_none() {
        let first = if let Kind::Composed(parts) = &node.kind { parts.first() } else { None };
        no_value(node.place, if let Some(Part::Text(text)) = first { text } else { "" }, errors);
    }
    let (name, value) = assigned?;
    Some((name, value?))
}

fn variable_value(node: &Node, name: &str, errors: &mut Collector<'_>) -> Option<Value> {
    if let Kind::Scalar { text, plain: true, .. } = &node.kind {
        if fields::is_null(text) {
            no_value(node.place, name, errors);
            return None;
        }
        // A boolean to every reader of YAML, which Compose passes on as this text.
        if matches!(text.as_str(), "true" | "false") {
            return Some(Value::Plain(text.clone()));
        }
    }
    value(node, "a variable's value", errors)
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

/// A text, a secret, or a text with secrets in it.
pub(crate) fn value(node: &Node, what: &str, errors: &mut Collector<'_>) -> Option<Value> {
    match &node.kind {
        Kind::Composed(parts) => composed(node, parts, what, errors).map(|parts| Value::of(parts.to_vec())),
        _ => plain(node, &long_text(node, what, errors)?, errors),
    }
}

/// The parts of a text with secrets in it, as far as they can be a value.
fn composed<'p>(
    node: &Node,
    parts: &'p [Part],
    what: &str,
    errors: &mut Collector<'_>,
) -> Option<&'p [Part]> {
    let texts =
        || parts.iter().filter_map(|part| if let Part::Text(text) = part { Some(text) } else { None });
    if texts().map(String::len).fold(0, usize::saturating_add) > MAX_TEXT {
        errors.error(node.place, format!("{what} is longer than 64 KiB"));
        return None;
    }
    if texts().any(|text| text.contains('\0')) {
        errors.error(node.place, format!("{what} has a NUL character"));
        return None;
    }
    if texts().any(|text| text.contains(SECRET_SCHEME)) {
        inside_a_text(node, errors);
        return None;
    }
    Some(parts)
}

/// A text, or a secret's reference and nothing else.
fn plain(node: &Node, text: &str, errors: &mut Collector<'_>) -> Option<Value> {
    if text.starts_with(SECRET_SCHEME) {
        return fields::checked(node, text.parse().map(Value::Secret), errors);
    }
    if text.contains(SECRET_SCHEME) {
        inside_a_text(node, errors);
        return None;
    }
    Some(Value::Plain(text.to_owned()))
}

fn inside_a_text(node: &Node, errors: &mut Collector<'_>) {
    errors.hinted(
        node.place,
        "a secret's reference inside a longer value",
        "write ${secret://namespace/name/field}, and in an address ${secret://namespace/name/field|url}",
    );
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
