//! Reading `configs`: files whose content stands in the declaration, and where a service sees them.
//!
//! As in Compose, where a config may also come from somewhere else: a file, a variable, a swarm. Here it is measured with the
//! declaration, so its text stands there.

use std::collections::{BTreeMap, BTreeSet};

use cofferdam_protocol::{WordError, is_name, shorten};

use crate::composed::{Part, Value};
use crate::diagnostics::{Collector, Place};
use crate::fields::{self, Fields};
use crate::keys::{self, nearest};
use crate::model::ConfigFile;
use crate::read::{bounded, collect, optional};
use crate::read_harmless;
use crate::read_service::{Read, below, path, value};
use crate::read_volumes::reserved_path;
use crate::yaml::{Entry, Kind, Node};

/// Most bytes of one config: a variable, too, has no more.
pub const MAX_CONFIG: usize = 64 << 10;
/// Most configs of a declaration, and of a service.
pub const MAX_CONFIGS: usize = 64;
/// Most bytes of the configs of all services, each counted for each service that sees it.
pub const MAX_CONFIGS_TOTAL: usize = 512 << 10;

/// What Compose gives a config that says nothing.
const DEFAULT_MODE: u32 = 0o444;
const MAX_MODE: u32 = 0o777;
/// A service's user namespace maps no more ids to its workload.
const MAX_ID: u32 = 65534;

/// A config by its name, with its place.
pub(crate) type Declared = BTreeMap<String, (Value, Place)>;

/// Where a service sees one.
pub(crate) struct Mount {
    source: String,
    /// Without its content.
    file: ConfigFile,
    place: Place,
}

/// Reads the file's own `configs`.
pub(crate) fn declared(node: &Node, errors: &mut Collector<'_>) -> Option<Declared> {
    let entries = fields::map(node, "`configs`", errors)?;
    bounded(node, entries.len(), MAX_CONFIGS, "configs", errors)?;
    let read = collect(entries.iter().map(|Entry { key, place, value: node }| {
        let fields = Fields::open(node, "a config", keys::CONFIG, keys::UNSUPPORTED_CONFIG, errors)?;
        let content = fields
            .require("content", "write `content: |` and the file's text below it, indented", errors)
            .and_then(|node| value(node, "`content`", errors));
        let named = read_harmless::named(&fields, "config", errors);
        if !is_name(key) {
            errors.error(
                *place,
                "a config's name is 1 to 63 of a-z 0-9 . _ - and starts with a letter or a digit",
            );
            return None;
        }
        named?;
        Some((key.clone(), (content?, *place)))
    }));
    Some(read?.into_iter().collect())
}

/// Reads where a service sees configs: names, or entries in full.
pub(crate) fn mounts(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<Mount>> {
    let items = fields::list(node, "`configs`", errors)?;
    bounded(node, items.len(), MAX_CONFIGS, "configs", errors)?;
    let mut targets = BTreeSet::new();
    collect(items.iter().map(|item| {
        let mount = match &item.kind {
            Kind::Map(_) => long(item, errors)?,
            _ => {
                let source = fields::text(item, "a config", errors)?;
                let target = format!("/{source}");
                let file = ConfigFile {
                    content: Value::Plain(String::new()),
                    target,
                    uid: 0,
                    gid: 0,
                    mode: DEFAULT_MODE,
                };
                Mount { source, file, place: item.place }
            }
        };
        if reserved_path(&mount.file.target) {
            let hint = "`extra_hosts` adds names to /etc/hosts; secret files have `secrets`";
            errors.hinted(mount.place, "the appliance puts a file of its own there", hint);
            return None;
        }
        if !targets.insert(mount.file.target.clone()) {
            errors.error(mount.place, format!("a second config goes to {}", shorten(&mount.file.target, 64)));
            return None;
        }
        Some(mount)
    }))
}

fn long(node: &Node, errors: &mut Collector<'_>) -> Option<Mount> {
    let fields = Fields::open(node, "a service's config", keys::CONFIG_FILE, &[], errors)?;
    let source = fields
        .require("source", "write `source: NAME`, a config that is declared beside `services`", errors)
        .and_then(|node| fields::text(node, "`source`", errors));
    let target = fields.get("target").map(|node| path(node, "`target`", errors));
    let mut id = |key: &'static str| {
        fields.get(key).map_or(Some(0), |node| {
            let text = fields::text(node, &format!("`{key}`"), errors)?;
            let id = cofferdam_protocol::parse_decimal(&text).filter(|id| *id <= MAX_ID);
            let wrong = || WordError::new(format!("`{key}` is not a number of 0 to {MAX_ID}"));
            fields::checked(node, id.ok_or_else(wrong), errors)
        })
    };
    let (uid, gid) = (id("uid"), id("gid"));
    let mode = fields.get("mode").map_or(Some(DEFAULT_MODE), |node| mode(node, errors));
    let (source, target) = (source?, optional(target)?);
    let target = target.unwrap_or_else(|| format!("/{source}"));
    let file = ConfigFile { content: Value::Plain(String::new()), target, uid: uid?, gid: gid?, mode: mode? };
    Some(Mount { source, file, place: node.place })
}

/// Octal digits after a 0: other readers of YAML take a number without that to be decimal.
fn mode(node: &Node, errors: &mut Collector<'_>) -> Option<u32> {
    let Kind::Scalar { text, .. } = &node.kind else {
        fields::mismatch(node, "`mode`", "permission bits", errors);
        return None;
    };
    let digits = text.strip_prefix("0o").or_else(|| text.strip_prefix('0'));
    let digits =
        digits.filter(|digits| (3..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()));
    let mode = digits.and_then(|digits| u32::from_str_radix(digits, 8).ok()).filter(|mode| *mode <= MAX_MODE);
    if mode.is_none() {
        errors.hinted(
            node.place,
            "not the permission bits of a file: they are octal, begin with a 0, and are 0777 at most",
            "for example 0444, or 0755 for a program",
        );
    }
    mode
}

/// Gives every service the content of its configs, and its references with that.
pub(crate) fn resolve(services: &mut [Read], declared: &Declared, errors: &mut Collector<'_>) {
    let names = services.iter().flat_map(|read| &read.configs).map(|mount| mount.source.as_str());
    let names: BTreeSet<&str> = names.collect();
    for (name, (_, place)) in declared.iter().filter(|(name, _)| !names.contains(name.as_str())) {
        let message = format!("no service has the config `{name}`");
        errors.note(*place, message, "name it in a service, or remove it");
    }
    let mut total = 0_usize;
    for read in services.iter_mut() {
        for Mount { source, mut file, place } in std::mem::take(&mut read.configs) {
            let Some((content, _)) = declared.get(&source) else {
                let message = format!("there is no config `{}`", shorten(&source, 64));
                match nearest(&source, declared.keys().map(String::as_str)) {
                    Some(near) => errors.hinted(place, message, format!("did you mean `{near}`?")),
                    None => {
                        let hint = "declare it beside `services`: `configs: {name: {content: \"…\"}}`";
                        errors.hinted(place, message, hint);
                    }
                }
                continue;
            };
            let service = &read.service;
            let mounted = service.volumes.iter().map(|volume| &volume.target).chain(&service.tmpfs);
            if let Some(other) = mounted.into_iter().find(|other| below(other, &file.target)) {
                errors.error(
                    place,
                    format!("a volume or a tmpfs goes to {}, and a file is no directory", shorten(other, 64)),
                );
            }
            total = total.saturating_add(length(content));
            if total > MAX_CONFIGS_TOTAL {
                errors.hinted(
                    place,
                    "the configs of all services have more than 512 KiB",
                    "put large files into the image",
                );
                return;
            }
            read.references.extend(content.references().into_iter().map(|secret| (secret.clone(), place)));
            file.content = content.clone();
            read.service.configs.push(file);
        }
    }
}

/// Bytes of the texts in a value.
fn length(value: &Value) -> usize {
    match value {
        Value::Plain(text) => text.len(),
        Value::Secret(_) => 0,
        Value::Composed(parts) => {
            let texts = parts.iter().map(|part| if let Part::Text(text) = part { text.len() } else { 0 });
            texts.fold(0, usize::saturating_add)
        }
    }
}
