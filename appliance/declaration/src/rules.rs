//! Rules that span more than one key: ports, networks, dependencies, who may have which secret.

use std::collections::{BTreeMap, BTreeSet};

use cofferdam_protocol::{Digest, Endpoint, shorten};

use crate::depends::Condition;
use crate::diagnostics::{Collector, Place};
use crate::health::{OnUnhealthy, Probe};
use crate::keys::nearest;
use crate::model::{
    Auth, Github, Membership, Operator, Port, Restart, Service, Speaks, StateSource, Token, Volume,
};
use crate::read::ReadRegistry;
use crate::read_network::DEFAULT;
use crate::read_service::Read;
use crate::read_volumes::MAX_VOLUMES;
use crate::yaml::{Kind, Node};

/// The namespace of the appliance's own secrets, such as its GitHub token. No service is granted one: with
/// the token a talked-into workload could publish releases in the appliance's name.
pub const APPLIANCE_NAMESPACE: &str = "cofferdam";

/// What the appliance itself needs secrets for.
pub(crate) struct Own<'a> {
    pub(crate) github: &'a Github,
    pub(crate) github_node: Option<&'a Node>,
    pub(crate) registries: &'a [ReadRegistry],
}

/// Checks everything that needs all services.
pub(crate) fn check(services: &[Read], operators: &[Operator], own: &Own<'_>, errors: &mut Collector<'_>) {
    unique_ports(services, errors);
    known_dependencies(services, errors);
    no_cycles(services, errors);
    conditions_can_be_met(services, errors);
    unhealthy_can_restart(services, errors);
    fit_into_evidence(services, errors);
    grants(services, own, errors);
    someone_can_put(services, operators, own, errors);
}

/// Bytes of all names and images together, 160 for each service: each is an event of the log, which a certificate carries whole, and
/// certificates are bounded (`attest::ratls`).
const MAX_MEASURED: usize = 10 * 1024;

fn fit_into_evidence(services: &[Read], errors: &mut Collector<'_>) {
    let mut measured = 0;
    for read in services {
        measured += read.service.name.len() + read.service.image.to_string().len();
        if measured > MAX_MEASURED {
            errors.hinted(
                read.image,
                "the names and images of the services have more than 10 KiB together",
                "use shorter names, or fewer services",
            );
            return;
        }
    }
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

/// Checks that the networks that services name are declared, and that nobody in one is called what somebody else is.
pub(crate) fn networks(services: &[Read], declared: &BTreeSet<String>, errors: &mut Collector<'_>) {
    for read in services {
        for (membership, place) in read.service.networks.iter().zip(&read.networks) {
            // The default network, which nobody has to name, has no place; then an alias is the name of a container.
            let Some(place) = place.as_ref().or(read.container_name.as_ref()) else { continue };
            let name = membership.network.as_str();
            if name != DEFAULT && !declared.contains(name) {
                let message = format!("there is no network `{}`", shorten(name, 64));
                match nearest(name, declared.iter().map(String::as_str)) {
                    Some(near) => errors.hinted(*place, message, format!("did you mean `{near}`?")),
                    None => {
                        errors.hinted(*place, message, "declare it beside `services`: `networks: {name: {}}`")
                    }
                }
            }
            let others = services.iter().map(|other| &other.service);
            let others = others.filter(|other| other.name != read.service.name);
            let members = others.filter(|other| other.networks.iter().any(|at| at.network == *name));
            for taken in members.filter(|other| membership.aliases.contains(&other.name)) {
                errors.hinted(
                    *place,
                    format!("the alias `{}` is another service's name", taken.name),
                    "an alias may be shared by services, and is no service's own name",
                );
            }
        }
    }
}

/// Ports at which something else than HTTP usually listens, and which public compose files publish all the same.
const NOT_HTTP: [u16; 11] = [22, 25, 1433, 1883, 3306, 5432, 5672, 6379, 9092, 11_211, 27_017];

/// What a declaration may say and hardly means.
pub(crate) fn remarks(services: &[Read], errors: &mut Collector<'_>) {
    for read in services {
        if read.service.image.digest() == Digest::from([0; 32]) {
            errors.warning(
                read.image,
                "the image's digest is all zeros, which no image has",
                "`skopeo inspect docker://IMAGE --format '{{.Digest}}'` prints the digest",
            );
        }
        for (on, place) in read.service.depends_on.iter().zip(&read.depends_on) {
            let name = &on.service;
            let Some(other) = services.iter().find(|other| other.service.name == *name) else { continue };
            if on.condition == Condition::Healthy && other.service.healthcheck.probe == Probe::Image {
                errors.warning(
                    *place,
                    format!(
                        "{name} has no `healthcheck`: {} waits for ever if its image has none either",
                        read.service.name
                    ),
                    "declare one, for example `healthcheck: {tcp: 5432}`",
                );
            }
            let shared = |at: &Membership| other.service.networks.iter().any(|its| its.network == at.network);
            if !read.service.networks.iter().any(shared) {
                errors.warning(
                    *place,
                    format!("{} cannot reach {name}: they share no network", read.service.name),
                    "name one network in both under `networks`",
                );
            }
        }
        if let Some(place) = read.on_change {
            heard_of(&read.service, place, errors);
        }
        if let Some(place) = read.profile {
            shut_out(&read.service, place, errors);
        }
        for (port, place) in read.service.ports.iter().zip(&read.ports) {
            if port.speaks == Speaks::Http && NOT_HTTP.contains(&port.target) {
                errors.warning(
                    *place,
                    format!(
                        "a published port is TLS outside and HTTP inside, which port {} rarely speaks",
                        port.target
                    ),
                    format!(
                        "remove it: the services in its networks reach it at every port anyway; or write \
                         {{published: {}, target: {}, app_protocol: tcp}} for operators outside",
                        port.published, port.target
                    ),
                );
            }
            match (port.speaks, port.auth) {
                (Speaks::Tcp, Auth::None) => errors.warning(
                    *place,
                    format!("everybody can connect to port {} of {}", port.target, read.service.name),
                    "write `auth: operators` unless the service itself asks who they are",
                ),
                (Speaks::Tls, _) => errors.warning(
                    *place,
                    format!(
                        "everybody can connect to port {} of {}, and nobody attests the key that it shows",
                        port.target, read.service.name
                    ),
                    "remove `tls` to end TLS at the appliance, with the attested key",
                ),
                _ => {}
            }
        }
    }
}

/// Remarks upon an `on_change` that changes nothing.
fn heard_of(service: &Service, place: Place, errors: &mut Collector<'_>) {
    if service.references().is_empty() {
        errors.warning(place, "it has no secrets that could change", "remove it");
    } else if service.on_change.rewrites() && service.secrets.is_empty() {
        errors.warning(
            place,
            "its secrets are in variables or configs, which a running program keeps",
            "write `on_change: restart`, or give them as files under `secrets`",
        );
    }
}

/// Remarks upon a `profile` that closes what the service is given beside it.
fn shut_out(service: &Service, place: Place, errors: &mut Collector<'_>) {
    let Some(paths) = &service.profile.paths else { return };
    let secrets = service.secrets.iter().map(|secret| format!("/run/secrets/{}", secret.target));
    let configs = service.configs.iter().map(|config| config.target.clone());
    let volumes = service.volumes.iter().map(|volume| volume.target.clone());
    for target in secrets.chain(configs).chain(volumes).chain(service.tmpfs.iter().cloned()) {
        if !paths.reach(&target) {
            let message = format!("{} is given {target}, which its profile closes", service.name);
            errors.warning(place, message, "name it under `profile.paths`, or take it away");
        }
    }
}

/// Checks that the volumes that services see are declared, and that no tmpfs goes to the same path.
pub(crate) fn volumes(services: &[Read], declared: &[Volume], errors: &mut Collector<'_>) {
    let names = || declared.iter().map(|volume| volume.name.as_str());
    for read in services {
        for (mount, place) in read.service.volumes.iter().zip(&read.volumes) {
            let source = mount.source.as_str();
            if !names().any(|name| name == source) {
                let message = format!("there is no volume `{}`", shorten(source, 64));
                let hint = match nearest(source, names()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "declare it beside `services`: `volumes: {name: {size: 1gb}}`".to_owned(),
                };
                errors.hinted(*place, message, hint);
            }
            if read.service.tmpfs.contains(&mount.target) {
                errors.error(*place, "a tmpfs goes to the same path");
            }
        }
    }
}

/// Volumes lie on the state disk.
pub(crate) fn volumes_have_a_disk(
    state: &StateSource,
    volumes: &[Volume],
    place: Place,
    errors: &mut Collector<'_>,
) {
    if *state == StateSource::Memory && !volumes.is_empty() {
        let hint =
            "write `state: {provider: operator}`; for files that may be lost use `tmpfs` in the service";
        errors.hinted(place, "volumes lie on a state disk, and the state is in memory", hint);
    }
}

/// Images take the place of one volume.
pub(crate) fn volumes_and_images(
    images: Option<u64>,
    volumes: &[Volume],
    place: Place,
    errors: &mut Collector<'_>,
) {
    if images.is_some() && volumes.len() >= MAX_VOLUMES {
        let message = format!("with `images` in `state` there are at most {} volumes", MAX_VOLUMES - 1);
        errors.hinted(place, message, "remove a volume, or `images`: they are then in memory");
    }
}

/// The services with what each waits for: not for one that is not declared and need not be, as in Compose; and a job that somebody waits
/// for to complete is tried until it does, when it says nothing else.
pub(crate) fn dependencies(mut services: Vec<Read>, errors: &mut Collector<'_>) -> Vec<Read> {
    let names: BTreeSet<String> = services.iter().map(|read| read.service.name.clone()).collect();
    let mut jobs = BTreeSet::new();
    for read in &mut services {
        let all = std::mem::take(&mut read.service.depends_on)
            .into_iter()
            .zip(std::mem::take(&mut read.depends_on));
        for (on, place) in all {
            if !on.required && !names.contains(&on.service) {
                errors.note(
                    place,
                    format!("there is no service `{}`, and none is required", shorten(&on.service, 64)),
                    "",
                );
                continue;
            }
            if on.condition == Condition::Completed {
                jobs.insert(on.service.clone());
            }
            read.service.depends_on.push(on);
            read.depends_on.push(place);
        }
    }
    for job in services.iter_mut().filter(|read| jobs.contains(&read.service.name) && read.restart.is_none())
    {
        job.service.restart = Restart::OnFailure { max_retries: None };
    }
    services
}

fn conditions_can_be_met(services: &[Read], errors: &mut Collector<'_>) {
    for read in services {
        for (on, place) in read.service.depends_on.iter().zip(&read.depends_on) {
            let Some(other) = services.iter().find(|other| other.service.name == on.service) else {
                continue;
            };
            let name = &on.service;
            match (on.condition, other.service.restart, &other.service.healthcheck.probe) {
                (Condition::Completed, Restart::Always | Restart::UnlessStopped, _) => errors.hinted(
                    *place,
                    format!("{name} starts again whenever it ends, so it never completes"),
                    format!("write `restart: on-failure` in {name}"),
                ),
                (Condition::Healthy, _, Probe::Off) => errors.hinted(
                    *place,
                    format!("{name} is never healthy: its health check is off"),
                    format!("declare one in {name}, for example `healthcheck: {{tcp: 5432}}`"),
                ),
                _ => {}
            }
        }
    }
}

fn unhealthy_can_restart(services: &[Read], errors: &mut Collector<'_>) {
    for read in services {
        let Some(place) = read.on_unhealthy.filter(|_| read.service.on_unhealthy == OnUnhealthy::Restart)
        else {
            continue;
        };
        if read.service.restart == Restart::No {
            errors.hinted(place, "`restart: no` lets it start no second time", "write `restart: always`");
        } else if read.service.healthcheck.probe == Probe::Off {
            errors.hinted(place, "it is never unhealthy: its health check is off", "remove it");
        }
    }
}

fn known_dependencies(services: &[Read], errors: &mut Collector<'_>) {
    let names: BTreeSet<&str> = services.iter().map(|read| read.service.name.as_str()).collect();
    for read in services {
        for (on, place) in read.service.depends_on.iter().zip(&read.depends_on) {
            let name = &on.service;
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
            let Some(name) = read.service.depends_on.get(index).map(|on| &on.service) else {
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

fn grants(services: &[Read], own: &Own<'_>, errors: &mut Collector<'_>) {
    let logins =
        own.registries.iter().filter_map(|read| Some((read.registry.login.as_ref()?, read.password?)));
    let logins: Vec<_> = logins.map(|(login, place)| (&login.password, place)).collect();
    let references = services.iter().flat_map(|read| &read.references);
    // The shim leases a registry's password, so this holds for it as for what the workload gets.
    for (reference, place) in references
        .clone()
        .map(|(reference, place)| (reference, place))
        .chain(logins.iter().map(|(reference, place)| (*reference, place)))
    {
        if reference.namespace() == APPLIANCE_NAMESPACE || own.github.token.as_ref() == Some(reference) {
            errors.hinted(
                *place,
                "this secret is the appliance's own",
                format!("put it into a namespace other than `{APPLIANCE_NAMESPACE}`"),
            );
        }
    }
    for (reference, place) in references {
        if logins.iter().any(|(password, _)| *password == reference) {
            let hint = "a workload gets no registry's password: put what it needs under another name";
            errors.hinted(*place, "this secret is a registry's password", hint);
        }
    }
}

/// A port that takes operators or tokens leads nowhere when there are none.
pub(crate) fn someone_can_call(
    services: &[Read],
    operators: &[Operator],
    tokens: &[Token],
    errors: &mut Collector<'_>,
) {
    let ports = services.iter().flat_map(|read| read.service.ports.iter().zip(&read.ports));
    for (port, place) in ports {
        let Port { published, target, auth, .. } = port;
        match auth {
            Auth::Operators if operators.is_empty() => errors.hinted(
                *place,
                format!("port {published} is for operators, and there is none"),
                format!("name one under `operators`, or write {{published: {published}, target: {target}, auth: none}} for everybody"),
            ),
            Auth::Tokens if tokens.is_empty() => errors.hinted(
                *place,
                format!("port {published} is for clients with a token, and there is none"),
                "make one with `coffer token new NAME` and name its hash: `tokens: [{name: …, hash: sha256:…}]`",
            ),
            _ => {}
        }
    }
}

/// The appliance's own interface stays where clients look for it: at its endpoint, and at 443.
pub(crate) fn own_ports(services: &[Read], endpoint: &Endpoint, errors: &mut Collector<'_>) {
    let ports = services.iter().flat_map(|read| read.service.ports.iter().zip(&read.ports));
    for (port, place) in ports {
        let raw = matches!((port.speaks, port.auth), (Speaks::Tcp, Auth::None) | (Speaks::Tls, _));
        if raw && [443, endpoint.port()].contains(&port.published) {
            errors.hinted(
                *place,
                format!("port {} is where the appliance shows its evidence", port.published),
                "publish bytes for everybody at another port",
            );
        }
    }
}

/// A state that operators open or make stays closed for ever when there is none.
pub(crate) fn someone_can_unseal(
    state: &StateSource,
    operators: &[Operator],
    place: Place,
    errors: &mut Collector<'_>,
) {
    if *state != StateSource::Memory && operators.is_empty() {
        let hint = "name one: `operators: [{name: alice, key: ssh-ed25519 AAAA…}]`";
        let message = match state {
            StateSource::Peer(_) => "the state is made by an operator, and there is none",
            _ => "the state is opened by operators, and there is none",
        };
        errors.hinted(place, message, hint);
    }
}

/// Without an operator nobody can put a secret, and what needs one waits for ever.
fn someone_can_put(services: &[Read], operators: &[Operator], own: &Own<'_>, errors: &mut Collector<'_>) {
    if !operators.is_empty() {
        return;
    }
    let hint = "name one: `operators: [{name: alice, key: ssh-ed25519 AAAA…}]`";
    let token = own.github_node.and_then(|node| match &node.kind {
        Kind::Map(entries) => entries.iter().find(|entry| entry.key == "token").map(|entry| entry.place),
        _ => None,
    });
    let passwords = own.registries.iter().filter_map(|read| read.password);
    let references = services.iter().flat_map(|read| &read.references).map(|(_, place)| *place);
    let places: Vec<Place> = references.chain(token).chain(passwords).collect();
    if let Some(place) = places.into_iter().min() {
        errors.hinted(place, "a secret is needed, and there is no operator who could put it", hint);
    }
}
