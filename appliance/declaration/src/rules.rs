//! Rules that span more than one key: ports, dependencies, who may have which secret.

use std::collections::{BTreeMap, BTreeSet};

use cofferdam_protocol::shorten;

use crate::diagnostics::Collector;
use crate::keys::nearest;
use crate::model::{Github, Operator};
use crate::read_service::Read;
use crate::yaml::{Kind, Node};

/// The namespace of the appliance's own secrets, such as its GitHub token. No service is granted one: with
/// the token a talked-into workload could publish releases in the appliance's name.
pub const APPLIANCE_NAMESPACE: &str = "cofferdam";

/// Checks everything that needs all services.
pub(crate) fn check(
    services: &[Read],
    operators: &[Operator],
    github: &Github,
    github_node: Option<&Node>,
    errors: &mut Collector<'_>,
) {
    unique_ports(services, errors);
    known_dependencies(services, errors);
    no_cycles(services, errors);
    grants(services, github, errors);
    someone_can_put(services, operators, github_node, errors);
}

fn unique_ports(services: &[Read], errors: &mut Collector<'_>) {
    let mut owners = BTreeMap::new();
    for read in services {
        for (port, place) in read.service.ports.iter().zip(&read.ports) {
            if let Some(owner) = owners.insert(port.published, &read.service.name) {
                errors.error(*place, format!("port {} is published by {owner} already", port.published));
            }
        }
    }
}

fn known_dependencies(services: &[Read], errors: &mut Collector<'_>) {
    let names: BTreeSet<&str> = services.iter().map(|read| read.service.name.as_str()).collect();
    for read in services {
        for (name, place) in read.service.depends_on.iter().zip(&read.depends_on) {
            if names.contains(name.as_str()) {
                continue;
            }
            let message = format!("there is no service `{}`", shorten(name, 64));
            match nearest(name, names.iter().copied()) {
                Some(near) => errors.hinted(*place, message, format!("did you mean `{near}`?")),
                None => errors.error(*place, message),
            }
        }
    }
}

/// Reports each cycle once, at the dependency that closes it.
fn no_cycles(services: &[Read], errors: &mut Collector<'_>) {
    let by_name: BTreeMap<&str, &Read> =
        services.iter().map(|read| (read.service.name.as_str(), read)).collect();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    for start in services {
        // Depth first; a path has at most one entry per service, so it is bounded by their number.
        let mut path: Vec<(&Read, usize)> = vec![(start, 0)];
        while let Some((read, next)) = path.last_mut() {
            let read: &Read = read;
            let index = *next;
            *next += 1;
            let Some(name) = read.service.depends_on.get(index) else {
                done.insert(&read.service.name);
                path.pop();
                continue;
            };
            let Some(target) = by_name.get(name.as_str()) else { continue };
            if let Some(from) = path.iter().position(|(read, _)| read.service.name == *name) {
                let mut names: Vec<&str> =
                    path.iter().skip(from).map(|(read, _)| read.service.name.as_str()).collect();
                names.push(name);
                if let Some(place) = read.depends_on.get(index) {
                    let message = format!("services wait for each other: {}", names.join(" → "));
                    errors.hinted(
                        *place,
                        message,
                        "remove one of these dependencies; a service can retry instead",
                    );
                }
            } else if !done.contains(name.as_str()) {
                path.push((target, 0));
            }
        }
    }
}

fn grants(services: &[Read], github: &Github, errors: &mut Collector<'_>) {
    for (reference, place) in services.iter().flat_map(|read| &read.references) {
        if reference.namespace() == APPLIANCE_NAMESPACE || github.token.as_ref() == Some(reference) {
            errors.hinted(
                *place,
                "this secret is the appliance's own",
                format!("put the service's secret into a namespace other than `{APPLIANCE_NAMESPACE}`"),
            );
        }
    }
}

/// Without an operator nobody can put a secret, and what needs one waits for ever.
fn someone_can_put(
    services: &[Read],
    operators: &[Operator],
    github: Option<&Node>,
    errors: &mut Collector<'_>,
) {
    if !operators.is_empty() {
        return;
    }
    let hint = "name one: `operators: [{name: alice, key: ssh-ed25519 AAAA…}]`";
    let token = github.and_then(|node| match &node.kind {
        Kind::Map(entries) => entries.iter().find(|entry| entry.key == "token").map(|entry| entry.place),
        _ => None,
    });
    let first = services.iter().flat_map(|read| &read.references).map(|(_, place)| *place).chain(token).min();
    if let Some(place) = first {
        errors.hinted(place, "a secret is needed, and there is no operator who could put it", hint);
    }
}
