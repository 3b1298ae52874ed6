//! The conversion itself, key by key.

use std::collections::{BTreeMap, BTreeSet};

use cofferdam_declaration::unsupported_in_service;
use cofferdam_protocol::{Digest, shorten};

use super::images::{Image, Resolved};
use super::mounts::Configs;
use super::secrets::{Secrets, has_password, secretive};
use super::variables::{Filled, fill, fill_known};
use super::yaml::{self, Kind, Node};
use super::{Compose, Imported, Logins, Remark, text_inside};

/// A file of variables, or of a secret.
pub(super) const MAX_FILE: u64 = 256 << 10;
/// Of all texts together, their variables filled in: a declaration has 1 MiB.
const MAX_FILLED: usize = 8 << 20;
/// What a volume gets: Compose's have no size.
const VOLUME_SIZE: &str = "1gb";
/// What of the same disk images are kept in: about a dozen of the usual size.
const IMAGES_SIZE: &str = "4gb";

pub(super) type Entries = Vec<(String, Node)>;

pub(super) struct Converter<'a> {
    pub(super) compose: &'a Compose,
    resolved: &'a Resolved,
    /// Services that are left out, since they wait for a profile.
    left_out: BTreeSet<String>,
    pub(super) volumes: BTreeSet<String>,
    pub(super) configs: Configs,
    /// Variables of which it was said that they are not set.
    pub(super) not_set: BTreeSet<String>,
    /// Bytes of all texts that were filled.
    filled: usize,
    pub(super) secrets: Secrets,
    changed: Vec<Remark>,
    dropped: Vec<Remark>,
    decide: Vec<Remark>,
}

/// A name as a declaration has them: lower case, and `-` for what cannot stand in one.
pub(super) fn name(text: &str, otherwise: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let fits = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = lower.chars().map(fits).take(60).collect();
    let name = name.trim_start_matches(['.', '_', '-']);
    if name.is_empty() { otherwise.to_owned() } else { name.to_owned() }
}

/// A service's name: host names are in lower case, and are asked for in any.
fn lower(name: &str) -> String {
    name.to_ascii_lowercase()
}

/// The images that services name.
pub(super) fn images(root: &Node, variables: &BTreeMap<String, String>) -> Vec<Image> {
    let services = root.get("services").map(Node::entries).unwrap_or_default();
    let named = services.iter().filter_map(|(_, service)| {
        let text = service.get("image").and_then(Node::as_text)?;
        fill(text, variables).ok().map(|filled| Image::read(&filled.text))
    });
    named.collect::<BTreeSet<_>>().into_iter().collect()
}

pub(super) fn compose(compose: &Compose, resolved: &Resolved, logins: &Logins) -> Imported {
    let services = compose.root.get("services").map(Node::entries).unwrap_or_default();
    let waits = |(name, service): &(String, Node)| {
        let profiles = service.get("profiles").filter(|profiles| !profiles.items().is_empty());
        profiles.map(|profiles| (name.clone(), profiles.line))
    };
    let left_out: BTreeMap<_, _> = services.iter().filter_map(waits).collect();
    let mut converter = Converter {
        compose,
        resolved,
        left_out: left_out.keys().cloned().collect(),
        volumes: BTreeSet::new(),
        configs: Configs::default(),
        not_set: BTreeSet::new(),
        filled: 0,
        secrets: Secrets::default(),
        changed: Vec::new(),
        dropped: Vec::new(),
        decide: Vec::new(),
    };
    for (name, line) in &left_out {
        converter.drop(*line, format!("services.{name}: it runs with a profile only"));
    }
    let kept = services.iter().filter(|(name, _)| !converter.left_out.contains(name));
    let kept: Vec<(String, Node)> = kept.map(|(name, service)| (lower(name), service.clone())).collect();
    for (name, service) in services.iter().filter(|(name, _)| lower(name) != *name) {
        converter.change(
            service.line,
            format!("services.{name} is called {}, which is the same name to who asks for it", lower(name)),
        );
    }
    for (name, service) in &kept {
        if let Some(environment) = service.get("environment") {
            converter.known_passwords(name, environment);
        }
    }
    let converted: Entries =
        kept.iter().map(|(name, service)| (name.clone(), converter.service(name, service))).collect();
    let networks = converter.networks();
    converter.top();
    let registries = converter.registries(logins);
    let body = converter.body(registries, networks, converted);
    Imported {
        body,
        services: kept.into_iter().map(|(name, _)| name).collect(),
        changed: converter.changed,
        dropped: converter.dropped,
        decide: converter.decide,
        secrets: converter.secrets.into_list(),
    }
}

impl Converter<'_> {
    pub(super) fn change(&mut self, line: usize, what: impl Into<String>) {
        self.changed.push(Remark { line, what: what.into() });
    }

    pub(super) fn drop(&mut self, line: usize, what: impl Into<String>) {
        self.dropped.push(Remark { line, what: what.into() });
    }

    pub(super) fn decide(&mut self, line: usize, what: impl Into<String>) {
        self.decide.push(Remark { line, what: what.into() });
    }

    pub(super) fn within_bounds(&mut self, text: &str) -> Result<Filled, String> {
        if self.filled > MAX_FILLED {
            return Err("the texts before have more than 8 MiB, their variables filled in".to_owned());
        }
        let filled = fill_known(text, &self.compose.variables)?;
        self.filled = self.filled.saturating_add(filled.text.len());
        Ok(filled)
    }

    /// A text with its variables filled. What is not set is empty, as in Compose, and said.
    pub(super) fn fill(&mut self, text: &str, line: usize) -> Filled {
        match self.within_bounds(text) {
            Ok(filled) => {
                self.unset(&filled, line);
                filled
            }
            Err(why) => {
                self.decide(line, why);
                Filled { text: String::new(), ..Filled::default() }
            }
        }
    }

    /// A value with all its texts filled. A secret in it is not: a declaration is for everybody to read.
    pub(super) fn filled(&mut self, node: &Node) -> Node {
        match &node.kind {
            Kind::Text { text, plain } => {
                let filled = self.fill(text, node.line);
                let secret =
                    filled.used.iter().any(|variable| secretive(variable)) || has_password(&filled.text);
                if secret && !filled.text.is_empty() {
                    self.decide(
                        node.line,
                        "a secret outside of `environment`: give it to the program as a variable or a file",
                    );
                    return Node::text(text.clone(), node.line);
                }
                Node { line: node.line, kind: Kind::Text { text: filled.text, plain: *plain } }
            }
            Kind::Ready(_) => node.clone(),
            Kind::List(items) => Node::list(items.iter().map(|item| self.filled(item)).collect(), node.line),
            Kind::Map(entries) => Node::map(
                entries.iter().map(|(key, value)| (key.clone(), self.filled(value))).collect(),
                node.line,
            ),
        }
    }

    fn service(&mut self, name: &str, service: &Node) -> Node {
        let mut out: Entries = vec![("image".to_owned(), self.image(name, service))];
        let (mut tmpfs, mut configs) = (Vec::new(), Vec::new());
        let built = service.get("build").is_some();
        let environment = self.environment(name, service);
        if !environment.is_empty() {
            out.push(("environment".to_owned(), Node::map(environment, service.line)));
        }
        for (key, value) in service.entries() {
            let at = format!("services.{name}.{key}");
            let converted = match key.as_str() {
                "image" | "environment" | "env_file" | "build" | "profiles" => None,
                "ports" => Some(self.ports(&at, value)),
                "volumes" => Some(self.mounts(name, built, value, &mut tmpfs, &mut configs)),
                "configs" => {
                    let seen = self.service_configs(name, value);
                    configs.extend(seen);
                    None
                }
                "secrets" => Some(self.secret_files(&at, value)),
                "depends_on" => Some(self.dependencies(value)),
                "deploy" => self.deploy(&at, value),
                "networks" => Some(self.memberships(&at, value)),
                "links" => {
                    self.links(name, &at, value);
                    None
                }
                "network_mode" if value.as_text() == Some("bridge") => {
                    self.drop(value.line, format!("{at}: a network of its own is what every service has"));
                    None
                }
                "network_mode" if value.as_text() != Some("none") => {
                    self.drop(value.line, format!("{at}: a service is in networks of the appliance"));
                    self.decide(value.line, format!("{at}: publish with `ports` what is to be reached"));
                    None
                }
                "stdin_open" | "tty" if value.as_text() == Some("true") => {
                    self.drop(value.line, format!("{at}: nothing can attach to a workload"));
                    None
                }
                "privileged" if value.as_text() == Some("true") => {
                    self.drop(value.line, format!("{at}: no service has more than its own capabilities"));
                    None
                }
                key => match unsupported_in_service(key) {
                    Some((why, instead)) => {
                        self.drop(value.line, format!("{at}: {why}; {instead}"));
                        None
                    }
                    None => Some(self.filled(value)),
                },
            };
            if let Some(converted) = converted.filter(|node| !is_empty(node)) {
                out.push((key.clone(), converted));
            }
        }
        if !configs.is_empty() {
            out.push(("configs".to_owned(), Node::list(configs, service.line)));
        }
        if !tmpfs.is_empty() {
            match out.iter_mut().find(|(key, _)| key == "tmpfs") {
                Some((_, Node { kind: Kind::List(items), .. })) => items.extend(tmpfs),
                Some((_, one)) => {
                    let first = std::iter::once(one.clone());
                    *one = Node::list(first.chain(tmpfs).collect(), one.line);
                }
                None => out.push(("tmpfs".to_owned(), Node::list(tmpfs, service.line))),
            }
        }
        Node::map(out, service.line)
    }

    fn image(&mut self, name: &str, service: &Node) -> Node {
        let zeros = Digest::from([0; 32]).to_string();
        let build = service.get("build");
        let Some((text, line)) = service.get("image").and_then(|node| Some((node.as_text()?, node.line)))
        else {
            let line = build.map_or(service.line, |build| build.line);
            let image = format!(
                "registry.example.org/{}/{}",
                self.compose.project,
                super::convert::name(name, "app")
            );
            self.decide(line, format!("services.{name}: nothing is built inside the appliance: build and push it, for example as {image}, and write its digest"));
            return Node::text(format!("{image}@{zeros}"), line);
        };
        if let Some(build) = build {
            self.change(build.line, format!("services.{name}.build: the image that was pushed counts"));
        }
        let filled = self.fill(text, line);
        let image = Image::read(&filled.text);
        let pinned = image.pinned().map(Ok);
        match pinned.as_ref().or_else(|| self.resolved.get(&image)) {
            Some(Ok(reference)) => {
                if pinned.is_none() {
                    self.change(line, format!("services.{name}.image: {image} is {reference}"));
                }
                Node::text(reference.clone(), line)
            }
            other => {
                let why = match other {
                    Some(Err(why)) => why.as_str(),
                    _ => "the registry was not asked",
                };
                self.decide(line, format!("services.{name}.image: no digest of {image}: {why}"));
                Node::text(image.at(&zeros), line)
            }
        }
    }

    fn ports(&mut self, at: &str, node: &Node) -> Node {
        let mut out = Vec::new();
        for item in node.items() {
            let item = self.filled(item);
            let text = item.as_text().unwrap_or_default();
            let protocol = text.split_once('/').map_or("tcp", |(_, protocol)| protocol);
            let long = item.get("protocol").and_then(Node::as_text);
            if protocol != "tcp" || long.is_some_and(|protocol| protocol != "tcp") {
                self.drop(item.line, format!("{at}: clients reach the appliance over TLS, and UDP has none"));
            } else if !text.is_empty() && !text.contains(':') {
                let port = text.trim_end_matches("/tcp");
                self.change(
                    item.line,
                    format!("{at}: {port} is published as {port}; Compose draws a number"),
                );
                out.push(Node::text(format!("{port}:{port}"), item.line));
            } else {
                out.push(item);
            }
        }
        Node::list(out, node.line)
    }

    fn secret_files(&mut self, at: &str, node: &Node) -> Node {
        let mut out = Vec::new();
        for item in node.items() {
            let get = |key: &str| item.get(key).and_then(Node::as_text);
            let Some(source) = item.as_text().or_else(|| get("source")).map(str::to_owned) else { continue };
            let target = get("target").unwrap_or(&source).trim_start_matches("/run/secrets/").to_owned();
            let value = self.secret_value(&source, item.line);
            let Some(reference) =
                self.secrets.reference(&self.compose.project, (&source, "value"), &source, value)
            else {
                continue;
            };
            self.change(item.line, format!("{at}: {source} is {reference}, at /run/secrets/{target}"));
            let entry = |key: &str, text: String| (key.to_owned(), Node::text(text, item.line));
            out.push(Node::map(
                vec![entry("source", reference.to_string()), entry("target", target)],
                item.line,
            ));
        }
        Node::list(out, node.line)
    }

    /// What a secret of the whole file is, if that can be read here.
    fn secret_value(&mut self, name: &str, line: usize) -> Option<String> {
        let declared = self.compose.root.get("secrets").and_then(|secrets| secrets.get(name)).cloned();
        let Some(declared) = declared else {
            self.decide(line, format!("there is no secret `{}` under `secrets`", shorten(name, 64)));
            return None;
        };
        if let Some(variable) = declared.get("environment").and_then(Node::as_text) {
            return self.compose.variables.get(variable).cloned();
        }
        let path = declared.get("file").and_then(Node::as_text)?;
        let path = self.fill(path, declared.line).text;
        match text_inside(&self.compose.folder, &path, MAX_FILE) {
            Ok(text) => Some(text),
            Err(why) => {
                self.decide(declared.line, format!("secrets.{name}: {why}"));
                None
            }
        }
    }

    fn dependencies(&mut self, node: &Node) -> Node {
        let filled = self.filled(node);
        let kept = |name: &str| !self.left_out.contains(name);
        let kind = match filled.kind {
            Kind::List(items) => {
                let names = items.iter().filter_map(|item| Some((item.as_text()?, item.line)));
                let kept = names.filter(|(name, _)| kept(name));
                Kind::List(kept.map(|(name, line)| Node::text(lower(name), line)).collect())
            }
            Kind::Map(entries) => {
                let kept = entries.into_iter().filter(|(name, _)| kept(name));
                Kind::Map(kept.map(|(name, on)| (lower(&name), on)).collect())
            }
            other => other,
        };
        Node { line: node.line, kind }
    }

    /// Limits stay; all else is for swarms.
    fn deploy(&mut self, at: &str, node: &Node) -> Option<Node> {
        let limits = node.get("resources").and_then(|resources| resources.get("limits")).cloned();
        for (key, value) in node.entries().iter().filter(|(key, _)| key != "resources") {
            self.drop(value.line, format!("{at}.{key}: it is for swarms"));
        }
        let known = |(key, _): &(String, Node)| matches!(key.as_str(), "cpus" | "memory" | "pids");
        let limits = self.filled(&limits?);
        let limits =
            Node::map(limits.entries().iter().filter(|entry| known(entry)).cloned().collect(), node.line);
        if is_empty(&limits) {
            return None;
        }
        let resources = Node::map(vec![("limits".to_owned(), limits)], node.line);
        Some(Node::map(vec![("resources".to_owned(), resources)], node.line))
    }

    /// Names and aliases stay; the appliance gives out the addresses.
    fn memberships(&mut self, at: &str, node: &Node) -> Node {
        let filled = self.filled(node);
        let Kind::Map(entries) = &filled.kind else { return filled };
        let mut out = Vec::new();
        for (network, membership) in entries {
            for (key, value) in membership.entries().iter().filter(|(key, _)| key != "aliases") {
                self.drop(value.line, format!("{at}.{network}.{key}: the appliance gives out the addresses"));
            }
            let aliases = membership.get("aliases").cloned();
            let aliases = aliases.map(|aliases| ("aliases".to_owned(), aliases)).into_iter().collect();
            out.push((network.clone(), Node::map(aliases, membership.line)));
        }
        Node::map(out, node.line)
    }

    fn links(&mut self, name: &str, at: &str, node: &Node) {
        for item in node.items() {
            let text = item.as_text().unwrap_or_default();
            match text.split_once(':') {
                Some((service, alias)) if service != alias => {
                    self.decide(item.line, format!("services.{name}: give {service} the name {alias}: `networks: {{default: {{aliases: [{alias}]}}}}` in {service}"));
                }
                _ => self.drop(item.line, format!("{at}: {text} is known by its name anyway")),
            }
        }
    }

    /// The registries of the images at which there is a login: the appliance needs it, too.
    fn registries(&mut self, logins: &Logins) -> Vec<Node> {
        let images = images(&self.compose.root, &self.compose.variables);
        let hosts: BTreeSet<String> = images.iter().map(|image| image.host().to_owned()).collect();
        let mut out = Vec::new();
        for host in hosts {
            let Some(login) = logins.of(&host) else { continue };
            let password = Some(login.password.to_string());
            let names = (host.as_str(), "password");
            let Some(secret) = self.secrets.reference(&self.compose.project, names, &host, password) else {
                continue;
            };
            self.change(
                0,
                format!("registries: images of {host} are pulled as {}, with {secret}", login.username),
            );
            let entry = |key: &str, text: &str| (key.to_owned(), Node::text(text, 0));
            let entries =
                [("host", host.as_str()), ("username", &login.username), ("password", secret.as_str())];
            out.push(Node::map(entries.map(|(key, text)| entry(key, text)).into(), 0));
        }
        out
    }

    fn networks(&mut self) -> Entries {
        let Some(networks) = self.compose.root.get("networks") else { return Vec::new() };
        let mut out = Vec::new();
        for (name, network) in networks.entries() {
            for (key, value) in network.entries() {
                match key.as_str() {
                    "internal" => {}
                    "external" => self.change(
                        value.line,
                        format!("networks.{name}: a network of the appliance, not one from outside"),
                    ),
                    _ => self.drop(
                        value.line,
                        format!("networks.{name}.{key}: every network is a bridge inside the appliance"),
                    ),
                }
            }
            out.push((name.clone(), Node::map(Vec::new(), network.line)));
        }
        // Every declaration has it.
        out.retain(|(name, _)| name != "default");
        out
    }

    /// What else stands beside the services.
    fn top(&mut self) {
        for (key, value) in self.compose.root.entries() {
            match key.as_str() {
                "services" | "networks" | "secrets" | "configs" | "version" | "name" => {}
                "volumes" => {
                    for (name, volume) in value.entries() {
                        for (key, value) in
                            volume.entries().iter().filter(|(key, _)| key != "name" && key != "labels")
                        {
                            self.drop(
                                value.line,
                                format!("volumes.{name}.{key}: a volume is a part of the state disk"),
                            );
                        }
                    }
                }
                key if key.starts_with("x-") => {}
                "include" => {
                    self.decide(value.line, "include: import one file: `docker compose config` writes it")
                }
                key => self.drop(value.line, format!("{key}: a declaration has no such part")),
            }
        }
    }

    fn body(&mut self, registries: Vec<Node>, networks: Entries, services: Entries) -> String {
        let mut out = String::new();
        let mut entries: Entries = Vec::new();
        if !self.volumes.is_empty() {
            let count = self.volumes.len();
            self.change(0, format!("volumes: {count} on the state disk, {VOLUME_SIZE} each: `size` says otherwise, `state` how the disk is opened"));
            self.change(
                0,
                format!("images: kept on the state disk, in {IMAGES_SIZE}: `state.images` says otherwise"),
            );
            let state = vec![
                ("provider".to_owned(), Node::text("operator", 0)),
                ("images".to_owned(), Node::plain(IMAGES_SIZE, 0)),
            ];
            entries.push(("state".to_owned(), Node::map(state, 0)));
            let size = || Node::map(vec![("size".to_owned(), Node::plain(VOLUME_SIZE, 0))], 0);
            let volumes = self.volumes.iter().map(|volume| (volume.clone(), size())).collect();
            entries.push(("volumes".to_owned(), Node::map(volumes, 0)));
        }
        if !registries.is_empty() {
            entries.push(("registries".to_owned(), Node::list(registries, 0)));
        }
        if !networks.is_empty() {
            entries.push(("networks".to_owned(), Node::map(networks, 0)));
        }
        let configs = std::mem::take(&mut self.configs).into_entries();
        if !configs.is_empty() {
            entries.push(("configs".to_owned(), Node::map(configs, 0)));
        }
        entries.push(("services".to_owned(), Node::map(services, 0)));
        let entries: Entries = entries.into_iter().map(|(key, node)| (key, escaped(node))).collect();
        yaml::write(&entries, 0, &mut out);
        out
    }
}

/// A declaration fills `${…}` from its own defaults: what is filled here already has to stay as it is.
fn escaped(node: Node) -> Node {
    let kind = match node.kind {
        Kind::Text { text, plain } => Kind::Text { text: text.replace('$', "$$"), plain },
        Kind::Ready(text) => Kind::Ready(text),
        Kind::List(items) => Kind::List(items.into_iter().map(escaped).collect()),
        Kind::Map(entries) => {
            Kind::Map(entries.into_iter().map(|(key, value)| (key, escaped(value))).collect())
        }
    };
    Node { line: node.line, kind }
}

fn is_empty(node: &Node) -> bool {
    match &node.kind {
        Kind::Text { .. } | Kind::Ready(_) => false,
        Kind::List(items) => items.is_empty(),
        Kind::Map(entries) => entries.is_empty(),
    }
}
