//! The conversion itself, key by key.

use std::collections::{BTreeMap, BTreeSet};

use cofferdam_declaration::unsupported_in_service;
use cofferdam_protocol::{Digest, shorten};

use super::images::{Image, Resolved};
use super::secrets::{Secrets, has_password, secretive};
use super::variables::{Filled, env_file, fill, is_name};
use super::yaml::{self, Kind, Node};
use super::{Compose, Imported, Remark, inside, text_inside};

/// A file of variables, or of a secret.
const MAX_FILE: u64 = 256 << 10;
/// Of all texts together, their variables filled in: a declaration has 1 MiB.
const MAX_FILLED: usize = 8 << 20;
/// What a volume gets: Compose's have no size.
const VOLUME_SIZE: &str = "1gb";

type Entries = Vec<(String, Node)>;

struct Converter<'a> {
    compose: &'a Compose,
    resolved: &'a Resolved,
    /// Services that are left out, since they wait for a profile.
    left_out: BTreeSet<String>,
    volumes: BTreeSet<String>,
    /// Bytes of all texts that were filled.
    filled: usize,
    secrets: Secrets,
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

/// The images that services name.
pub(super) fn images(root: &Node, variables: &BTreeMap<String, String>) -> Vec<Image> {
    let services = root.get("services").map(Node::entries).unwrap_or_default();
    let named = services.iter().filter_map(|(_, service)| {
        let text = service.get("image").and_then(Node::as_text)?;
        fill(text, variables).ok().map(|filled| Image::read(&filled.text))
    });
    named.collect::<BTreeSet<_>>().into_iter().collect()
}

pub(super) fn compose(compose: &Compose, resolved: &Resolved) -> Imported {
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
    let kept: Vec<_> = kept.cloned().collect();
    let converted: Entries =
        kept.iter().map(|(name, service)| (name.clone(), converter.service(name, service))).collect();
    let networks = converter.networks();
    converter.top();
    let body = converter.body(networks, converted);
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
    fn change(&mut self, line: usize, what: impl Into<String>) {
        self.changed.push(Remark { line, what: what.into() });
    }

    fn drop(&mut self, line: usize, what: impl Into<String>) {
        self.dropped.push(Remark { line, what: what.into() });
    }

    fn decide(&mut self, line: usize, what: impl Into<String>) {
        self.decide.push(Remark { line, what: what.into() });
    }

    fn within_bounds(&mut self, text: &str) -> Result<Filled, String> {
        if self.filled > MAX_FILLED {
            return Err("the texts before have more than 8 MiB, their variables filled in".to_owned());
        }
        let filled = fill(text, &self.compose.variables)?;
        self.filled = self.filled.saturating_add(filled.text.len());
        Ok(filled)
    }

    /// A text with its variables filled. What is not set is empty, as in Compose, and said.
    fn fill(&mut self, text: &str, line: usize) -> Filled {
        match self.within_bounds(text) {
            Ok(filled) => {
                for unset in &filled.unset {
                    self.decide(
                        line,
                        format!("{unset} is not set, and is empty here: name a file with `--env-file`"),
                    );
                }
                filled
            }
            Err(why) => {
                self.decide(line, why);
                Filled { text: String::new(), ..Filled::default() }
            }
        }
    }

    /// A value with all its texts filled. A secret in it is not: a declaration is for everybody to read.
    fn filled(&mut self, node: &Node) -> Node {
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
            Kind::List(items) => Node::list(items.iter().map(|item| self.filled(item)).collect(), node.line),
            Kind::Map(entries) => Node::map(
                entries.iter().map(|(key, value)| (key.clone(), self.filled(value))).collect(),
                node.line,
            ),
        }
    }

    fn service(&mut self, name: &str, service: &Node) -> Node {
        let mut out: Entries = vec![("image".to_owned(), self.image(name, service))];
        let mut tmpfs = Vec::new();
        let environment = self.environment(name, service);
        if !environment.is_empty() {
            out.push(("environment".to_owned(), Node::map(environment, service.line)));
        }
        for (key, value) in service.entries() {
            let at = format!("services.{name}.{key}");
            let converted = match key.as_str() {
                "image" | "environment" | "env_file" | "build" | "profiles" => None,
                "ports" => Some(self.ports(&at, value)),
                "volumes" => Some(self.mounts(name, &at, value, &mut tmpfs)),
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

    /// `env_file` and `environment`, of which the second counts.
    fn environment(&mut self, service: &str, node: &Node) -> Entries {
        let mut out: Entries = Vec::new();
        let mut set = |key: String, value: Node| match out.iter_mut().find(|(name, _)| *name == key) {
            Some((_, old)) => *old = value,
            None => out.push((key, value)),
        };
        if let Some(files) = node.get("env_file") {
            let files = if files.items().is_empty() { std::slice::from_ref(files) } else { files.items() };
            for file in files {
                for (key, value) in self.variables_of(service, file) {
                    let value = self.literal(service, &key, value, file.line);
                    set(key, value);
                }
            }
        }
        let Some(environment) = node.get("environment") else { return out };
        for (key, value) in environment.entries() {
            let raw = if value.is_nothing() { None } else { value.as_text() };
            if let Some(value) = self.variable(service, key, raw, value.line) {
                set(key.clone(), value);
            }
        }
        for item in environment.items() {
            let Some(text) = item.as_text() else { continue };
            let (key, raw) = text.split_once('=').map_or((text, None), |(key, raw)| (key, Some(raw)));
            if let Some(value) = self.variable(service, key, raw, item.line) {
                set(key.to_owned(), value);
            }
        }
        out
    }

    fn variables_of(&mut self, service: &str, file: &Node) -> Vec<(String, String)> {
        let path = file.as_text().or_else(|| file.get("path").and_then(Node::as_text)).unwrap_or_default();
        let optional = file.get("required").and_then(Node::as_text) == Some("false");
        let path = self.fill(path, file.line).text;
        let read = text_inside(&self.compose.folder, &path, MAX_FILE)
            .and_then(|text| env_file(&text, &self.compose.variables, is_name));
        match read {
            Ok(variables) => {
                let count = variables.len();
                self.change(
                    file.line,
                    format!(
                        "services.{service}.env_file: {count} variables of `{path}` stand under `environment`"
                    ),
                );
                variables
            }
            Err(why) if optional => {
                self.drop(file.line, format!("services.{service}.env_file: {why}"));
                Vec::new()
            }
            Err(why) => {
                self.decide(file.line, format!("services.{service}.env_file: {why}"));
                Vec::new()
            }
        }
    }

    /// A variable as it stands in a file of variables: filled already.
    fn literal(&mut self, service: &str, key: &str, value: String, line: usize) -> Node {
        if (secretive(key) || has_password(&value)) && !value.is_empty() {
            let raw = value.clone();
            return self.secret(service, key, (service, key), &raw, Some(value), line);
        }
        Node::text(value, line)
    }

    /// A variable of `environment`; without a value it is taken from the files of variables, as Compose takes it from the shell.
    fn variable(&mut self, service: &str, key: &str, raw: Option<&str>, line: usize) -> Option<Node> {
        let own = format!("${{{key}}}");
        let Some(raw) = raw else {
            if !self.compose.variables.contains_key(key) && !secretive(key) {
                self.decide(line, format!("services.{service}.environment: {key} has no value, and is not set: name a file with `--env-file`"));
                return None;
            }
            return self.variable(service, key, Some(&own), line);
        };
        let filled = match self.within_bounds(raw) {
            Ok(filled) => filled,
            // It has to be set: in the vault.
            Err(_) if secretive(key) && raw.starts_with("${") => {
                return Some(self.secret(service, key, (service, key), raw, None, line));
            }
            Err(why) => {
                self.decide(line, format!("services.{service}.environment.{key}: {why}"));
                return None;
            }
        };
        let used = filled.used.iter().any(|variable| secretive(variable));
        let number = !filled.text.is_empty() && filled.text.bytes().all(|b| b.is_ascii_digit());
        let word = number || matches!(filled.text.as_str(), "true" | "false");
        let secret = used || has_password(&filled.text) || (secretive(key) && (!word || password(key)));
        if !secret || (filled.text.is_empty() && filled.unset.is_empty()) {
            let filled = self.fill(raw, line);
            return Some(Node::text(filled.text, line));
        }
        // The same variable of the person is the same secret wherever it is used alone.
        let alone = match filled.used.as_slice() {
            [one] if raw.starts_with("${") || raw.starts_with(&format!("${one}")) => {
                let only = fill(&format!("${{{one}-}}"), &self.compose.variables).unwrap_or_default();
                (only.text == filled.text).then(|| one.clone())
            }
            _ => None,
        };
        let value = filled.unset.is_empty().then_some(filled.text);
        let names = alone.as_deref().map_or((service, key), |variable| ("env", variable));
        Some(self.secret(service, key, names, raw, value, line))
    }

    fn secret(
        &mut self,
        service: &str,
        key: &str,
        names: (&str, &str),
        raw: &str,
        value: Option<String>,
        line: usize,
    ) -> Node {
        let unknown = value.is_none();
        let Some(reference) = self.secrets.reference(&self.compose.project, names, raw, value) else {
            self.decide(
                line,
                format!("services.{service}.environment.{key}: a secret that has no name here"),
            );
            return Node::text(String::new(), line);
        };
        let note = if unknown { ", whose value is not known here" } else { "" };
        self.change(line, format!("services.{service}.environment.{key}: {reference}{note}"));
        Node::text(reference.to_string(), line)
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

    fn mounts(&mut self, service: &str, at: &str, node: &Node, tmpfs: &mut Vec<Node>) -> Node {
        let mut out = Vec::new();
        for item in node.items() {
            let item = self.filled(item);
            let get = |key: &str| item.get(key).and_then(Node::as_text).unwrap_or_default().to_owned();
            let (kind, source, target, read_only) = match item.as_text() {
                Some(text) => {
                    let parts: Vec<_> = text.split(':').collect();
                    match parts.as_slice() {
                        [target] => (String::new(), String::new(), (*target).to_owned(), false),
                        [source, target, options @ ..] => {
                            let read_only = options.iter().any(|list| list.split(',').any(|one| one == "ro"));
                            (String::new(), (*source).to_owned(), (*target).to_owned(), read_only)
                        }
                        [] => continue,
                    }
                }
                None => (get("type"), get("source"), get("target"), get("read_only") == "true"),
            };
            let line = item.line;
            if kind == "tmpfs" || source.is_empty() {
                self.change(
                    line,
                    format!(
                        "{at}: {target} is a tmpfs: a volume without a name does not outlive its container"
                    ),
                );
                tmpfs.push(Node::text(target, line));
            } else if kind == "bind" || source.starts_with(['.', '/', '~', '$']) {
                if let Some(volume) = self.bind(service, at, &source, &target, line) {
                    out.push(mount(&volume, &target, read_only, line));
                }
            } else {
                let volume = self.volume(at, &source, line);
                out.push(mount(&volume, &target, read_only, line));
            }
        }
        Node::list(out, node.line)
    }

    fn volume(&mut self, at: &str, source: &str, line: usize) -> String {
        let volume = name(source, "data");
        if volume != source {
            self.change(line, format!("{at}: the volume {source} is called {volume}"));
        }
        self.volumes.insert(volume.clone());
        volume
    }

    /// A path of the host: a directory for data becomes a volume; a file is nothing that an appliance has.
    fn bind(&mut self, service: &str, at: &str, source: &str, target: &str, line: usize) -> Option<String> {
        if matches!(source, "/etc/localtime" | "/etc/timezone") {
            self.drop(line, format!("{at}: {source}: set the variable TZ instead"));
            return None;
        }
        if source.ends_with("docker.sock") {
            self.drop(line, format!("{at}: {source}: there is no container engine inside"));
            self.decide(line, format!("services.{service}: what needs Docker's socket does not work here"));
            return None;
        }
        let last = source.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
        let found = inside(&self.compose.folder, source).ok();
        let is_file = found.as_ref().is_some_and(|path| path.is_file());
        let full =
            found.as_ref().is_some_and(|path| path.read_dir().is_ok_and(|mut files| files.next().is_some()));
        let looks_like_a_file = last.trim_start_matches('.').contains('.')
            || target.rsplit('/').next().is_some_and(|name| name.contains('.'));
        if is_file || full || (found.is_none() && looks_like_a_file) {
            self.drop(line, format!("{at}: {source}: a service never sees the host's files"));
            self.decide(line, format!("services.{service}: put `{source}` into its image at {target}"));
            return None;
        }
        let volume = name(&format!("{service}-{}", last.trim_start_matches(['.', '~'])), "data");
        self.change(line, format!("{at}: {source} becomes the volume {volume}, empty at first"));
        self.volumes.insert(volume.clone());
        Some(volume)
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
                Kind::List(items.into_iter().filter(|item| item.as_text().is_some_and(kept)).collect())
            }
            Kind::Map(entries) => Kind::Map(entries.into_iter().filter(|(name, _)| kept(name)).collect()),
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
                "services" | "networks" | "secrets" | "version" | "name" => {}
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

    fn body(&mut self, networks: Entries, services: Entries) -> String {
        let mut out = String::new();
        let mut entries: Entries = Vec::new();
        if !self.volumes.is_empty() {
            let count = self.volumes.len();
            self.change(0, format!("volumes: {count} on the state disk, {VOLUME_SIZE} each: `size` says otherwise, `state` how the disk is opened"));
            entries.push((
                "state".to_owned(),
                Node::map(vec![("provider".to_owned(), Node::text("operator", 0))], 0),
            ));
            let size = || Node::map(vec![("size".to_owned(), Node::plain(VOLUME_SIZE, 0))], 0);
            let volumes = self.volumes.iter().map(|volume| (volume.clone(), size())).collect();
            entries.push(("volumes".to_owned(), Node::map(volumes, 0)));
        }
        if !networks.is_empty() {
            entries.push(("networks".to_owned(), Node::map(networks, 0)));
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
        Kind::List(items) => Kind::List(items.into_iter().map(escaped).collect()),
        Kind::Map(entries) => {
            Kind::Map(entries.into_iter().map(|(key, value)| (key, escaped(value))).collect())
        }
    };
    Node { line: node.line, kind }
}

fn mount(volume: &str, target: &str, read_only: bool, line: usize) -> Node {
    Node::text(format!("{volume}:{target}{}", if read_only { ":ro" } else { "" }), line)
}

fn is_empty(node: &Node) -> bool {
    match &node.kind {
        Kind::Text { .. } => false,
        Kind::List(items) => items.is_empty(),
        Kind::Map(entries) => entries.is_empty(),
    }
}

/// Whether a number or a boolean can be the secret of a variable of this name.
fn password(variable: &str) -> bool {
    variable.to_ascii_uppercase().contains("PASS")
}
