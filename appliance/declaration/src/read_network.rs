//! Reading networks: those that the file declares, those that a service is a member of, and the ports that it exposes.
//!
//! A network is what it is in Compose without a way out: its members reach each other at every port, by name and by
//! alias, and nobody else. A service that names none is a member of `default`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cofferdam_protocol::{WordError, is_name, parse_port, shorten};

use crate::diagnostics::{Collector, Place};
use crate::fields::{self, Fields};
use crate::keys;
use crate::model::Membership;
use crate::read::{bounded, collect};
use crate::read_harmless;
use crate::yaml::{Entry, Kind, Node};

/// The network of a service that names none, as in Compose.
pub(crate) const DEFAULT: &str = "default";

/// As many as services: more would have no members.
const MAX_NETWORKS: usize = 32;
/// Each is an interface of the service's.
const MAX_MEMBERSHIPS: usize = 8;
const MAX_ALIASES: usize = 16;
const MAX_EXPOSED: usize = 64;
const MAX_EXTRA_HOSTS: usize = 32;
/// A name of the DNS (RFC 1035 §2.3.4, without the root's dot) and one of its labels.
const MAX_ALIAS: usize = 253;
const MAX_LABEL: usize = 63;

/// Reads the file's own `networks`: the names, each with nothing or what Compose says of a bridge without a way out.
pub(crate) fn declared(node: &Node, errors: &mut Collector<'_>) -> Option<BTreeSet<String>> {
    let entries = fields::map(node, "`networks`", errors)?;
    bounded(node, entries.len(), MAX_NETWORKS, "networks", errors)?;
    let read = collect(entries.iter().map(|entry| {
        let described = is_nothing(&entry.value) || describe(&entry.value, errors).is_some();
        let named = network_name(entry, errors);
        if described { named } else { None }
    }));
    Some(read?.into_iter().collect())
}

fn describe(node: &Node, errors: &mut Collector<'_>) -> Option<()> {
    let fields = Fields::open(node, "a network", keys::NETWORK, keys::UNSUPPORTED_NETWORK, errors)?;
    let driver = fields.get("driver").map(|node| {
        if fields::text(node, "`driver`", errors)? == "bridge" {
            return Some(());
        }
        errors.hinted(
            node.place,
            "every network is a bridge of the appliance's kernel",
            "remove it, or write `driver: bridge`",
        );
        None
    });
    let internal = fields.get("internal").map(|node| {
        if !fields::boolean(node, "`internal`", errors)? {
            errors.note(
                node.place,
                "`internal: false` has no effect: the way out of the appliance is each service's own",
                "`egress: [\"api.example.org:443\"]` in the service opens one, `ports` publishes a port",
            );
        }
        Some(())
    });
    let attachable = fields.get("attachable").map(|node| fields::boolean(node, "`attachable`", errors));
    let named = read_harmless::named(&fields, "network", errors);
    let complete = driver != Some(None) && internal != Some(None) && attachable != Some(None);
    named.filter(|()| complete)
}

fn network_name(entry: &Entry, errors: &mut Collector<'_>) -> Option<String> {
    if !is_name(&entry.key) {
        errors.error(
            entry.place,
            "a network's name is 1 to 63 of a-z 0-9 . _ - and starts with a letter or a digit",
        );
        return None;
    }
    Some(entry.key.clone())
}

/// The networks of a service, with their places. `None` inside when the file does not say.
pub(crate) fn memberships(
    service: &Fields<'_>,
    errors: &mut Collector<'_>,
) -> Option<Vec<(Membership, Option<Place>)>> {
    match (service.get("networks"), service.get("network_mode")) {
        (None, None) => Some(vec![(Membership { network: DEFAULT.to_owned(), aliases: Vec::new() }, None)]),
        (Some(node), None) => named(node, errors),
        (None, Some(node)) => mode(node, errors),
        (Some(_), Some(node)) => {
            errors.hinted(
                node.place,
                "`network_mode` stands beside `networks`",
                "remove it; a service is a member of the networks that it names",
            );
            None
        }
    }
}

/// `none` is the one mode that takes nothing from the walls.
fn mode(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<(Membership, Option<Place>)>> {
    let text = fields::text(node, "`network_mode`", errors)?;
    if text == "none" {
        return Some(Vec::new());
    }
    let hint = match text.as_str() {
        "host" => "remove it; `ports` publishes a port of the service",
        "bridge" => "remove it; without `networks` a service is a member of the default network",
        _ => "remove it; name a network of both under `networks`, where they reach each other by their names",
    };
    errors.hinted(
        node.place,
        "this `network_mode` is not supported: a service never shares a namespace with another or with the appliance",
        hint,
    );
    None
}

fn named(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<(Membership, Option<Place>)>> {
    let read: Option<Vec<(Membership, Option<Place>)>> = match &node.kind {
        Kind::Map(entries) => {
            bounded(node, entries.len(), MAX_MEMBERSHIPS, "networks of one service", errors)?;
            collect(entries.iter().map(|entry| {
                let aliases =
                    if is_nothing(&entry.value) { Vec::new() } else { membership(&entry.value, errors)? };
                Some((Membership { network: entry.key.clone(), aliases }, Some(entry.place)))
            }))
        }
        Kind::List(items) => {
            bounded(node, items.len(), MAX_MEMBERSHIPS, "networks of one service", errors)?;
            let mut seen = BTreeSet::new();
            collect(items.iter().map(|item| {
                let network = fields::text(item, "a network", errors)?;
                if !seen.insert(network.clone()) {
                    errors
                        .error(item.place, format!("the network `{}` is named twice", shorten(&network, 64)));
                    return None;
                }
                Some((Membership { network, aliases: Vec::new() }, Some(item.place)))
            }))
        }
        _ => {
            fields::mismatch(node, "`networks`", "a list of networks, or a mapping from them", errors);
            None
        }
    };
    let read = read?;
    if read.is_empty() {
        errors.hinted(
            node.place,
            "no network is named",
            "leave `networks` out for the default network, or write `network_mode: none`",
        );
        return None;
    }
    Some(read)
}

fn membership(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<String>> {
    let fields =
        Fields::open(node, "a service's network", keys::MEMBERSHIP, keys::UNSUPPORTED_MEMBERSHIP, errors)?;
    let Some(node) = fields.get("aliases") else { return Some(Vec::new()) };
    let items = fields::list(node, "`aliases`", errors)?;
    bounded(node, items.len(), MAX_ALIASES, "aliases", errors)?;
    let read: Option<Vec<String>> = collect(items.iter().map(|item| alias(item, errors)));
    let mut seen = BTreeSet::new();
    let mut read = read?;
    read.retain(|alias| seen.insert(alias.clone()));
    Some(read)
}

/// A host name in lower case, which may have dots.
pub(crate) fn alias(node: &Node, errors: &mut Collector<'_>) -> Option<String> {
    let text = fields::text(node, "an alias", errors)?;
    if !is_host_name(&text) {
        errors.hinted(
            node.place,
            format!("`{}` is not a name that a service can have", shorten(&text, 64)),
            "labels of a-z 0-9 - and _ with dots between them, not an address and not localhost",
        );
        return None;
    }
    Some(text)
}

/// Labels of lower-case letters, digits, - and _ with dots between them.
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // What reads as an address is never asked for as a name.
    let number = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    text.len() <= MAX_ALIAS && text.split('.').all(label) && !number && text != "localhost"
}

/// Gives a service a further name in each of its networks.
pub(crate) fn also_called(networks: &mut [Membership], service: &str, alias: &str) {
    for at in networks {
        if alias != service && !at.aliases.iter().any(|known| known == alias) {
            at.aliases.push(alias.to_owned());
        }
    }
}

/// A mapping from names to addresses, or a list of `NAME=ADDRESS` or `NAME:ADDRESS`.
pub(crate) fn extra_hosts(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<(String, IpAddr)>> {
    let entries: Vec<(String, String, Place)> = match &node.kind {
        Kind::Map(entries) => collect(entries.iter().map(|entry| {
            Some((entry.key.clone(), fields::text(&entry.value, "an address", errors)?, entry.value.place))
        }))?,
        Kind::List(items) => collect(items.iter().map(|item| {
            let text = fields::text(item, "a name with its address", errors)?;
            let Some((name, address)) = text.split_once(['=', ':']) else {
                errors.hinted(item.place, "a name without an address", "write \"name=127.0.0.1\"");
                return None;
            };
            Some((name.to_owned(), address.to_owned(), item.place))
        }))?,
        _ => {
            fields::mismatch(node, "`extra_hosts`", "a mapping or a list of NAME=ADDRESS", errors);
            return None;
        }
    };
    bounded(node, entries.len(), MAX_EXTRA_HOSTS, "further hosts", errors)?;
    collect(entries.into_iter().map(|(name, address, place)| {
        if !is_host_name(&name.to_ascii_lowercase()) {
            errors.error(place, format!("`{}` is not a name of a host", shorten(&name, 64)));
            return None;
        }
        let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&address);
        let Ok(address) = bare.parse() else {
            let (message, hint) = if address == "host-gateway" {
                ("a service has no way to the host".to_owned(), "remove it")
            } else {
                (format!("`{}` is not an address", shorten(&address, 64)), "write \"name=127.0.0.1\"")
            };
            errors.hinted(place, message, hint);
            return None;
        };
        Some((name, address))
    }))
}

/// `expose` says what is so anyway: every port is open to the members of the service's networks. It is checked and informs.
pub(crate) fn exposed(node: &Node, errors: &mut Collector<'_>) -> Option<()> {
    let items = fields::list(node, "`expose`", errors)?;
    bounded(node, items.len(), MAX_EXPOSED, "exposed ports", errors)?;
    let read: Option<Vec<()>> = collect(items.iter().map(|item| {
        let text = fields::text(item, "a port", errors)?;
        fields::checked(item, exposed_port(&text), errors)
    }));
    read.map(|_| ())
}

/// `PORT`, `FIRST-LAST`, either with `/tcp` or `/udp`.
fn exposed_port(text: &str) -> Result<(), WordError> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !matches!(protocol, "tcp" | "udp") {
        return Err(WordError::new("not a protocol of ports").hint("write tcp or udp"));
    }
    if ports.contains(':') {
        return Err(WordError::new("an exposed port is not published").hint("publish it with `ports`"));
    }
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    if parse_port(first)? > parse_port(last)? {
        return Err(WordError::new("the range of ports ends before it begins"));
    }
    Ok(())
}

/// In YAML `backend:` alone is null: a network as it is by default.
fn is_nothing(node: &Node) -> bool {
    matches!(&node.kind, Kind::Scalar { text, plain: true, .. } if fields::is_null(text))
}
