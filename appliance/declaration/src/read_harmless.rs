//! Keys of Compose that say nothing here, or what is so anyway: they are checked and remarked upon, and nothing comes of them.
//!
//! What would be another service if it were left out is not among them, and neither is what weakens a wall: those keys are refused
//! where they stand.

use cofferdam_protocol::shorten;

use crate::diagnostics::Collector;
use crate::fields::{self, Fields};
use crate::read::{bounded, collect};
use crate::yaml::Kind;

/// Labels, and options of a log driver; more than anybody has.
const MAX_LABELS: usize = 256;

/// The keys of a service. `None` when one of them says what is not so.
pub(crate) fn service(fields: &Fields<'_>, errors: &mut Collector<'_>) -> Option<()> {
    let checks = [
        labels(fields, "labels", errors),
        labels(fields, "annotations", errors),
        hostname(fields, errors),
        platform(fields, errors),
        pull_policy(fields, errors),
        logging(fields, errors),
        is_off(fields, "stdin_open", "nothing can attach to a workload", errors),
        is_off(fields, "tty", "nothing can attach to a workload", errors),
        is_off(fields, "privileged", "a workload never gets privileges over the appliance", errors),
        init(fields, errors),
        is_one(fields, "scale", errors),
        security(fields, errors),
    ];
    checks.into_iter().all(|check| check.is_some()).then_some(())
}

/// The keys of `deploy`.
pub(crate) fn deploy(fields: &Fields<'_>, errors: &mut Collector<'_>) -> Option<()> {
    let mode = fields.get("mode").map_or(Some(()), |node| {
        if fields::text(node, "`mode`", errors)? == "replicated" {
            return Some(());
        }
        errors.hinted(node.place, "one service is one container", "remove it");
        None
    });
    let checks = [labels(fields, "labels", errors), mode, is_one(fields, "replicas", errors)];
    checks.into_iter().all(|check| check.is_some()).then_some(())
}

/// `name` and `labels` of a network or a volume, which Compose gives to its engine.
pub(crate) fn named(fields: &Fields<'_>, what: &str, errors: &mut Collector<'_>) -> Option<()> {
    let name = fields.get("name").map_or(Some(()), |node| {
        fields::text(node, "`name`", errors)?;
        errors.note(node.place, format!("`name` has no effect: a {what} is called by its key"), "");
        Some(())
    });
    let external = fields.get("external").map_or(Some(()), |node| {
        if !fields::boolean(node, "`external`", errors)? {
            return Some(());
        }
        errors.hinted(
            node.place,
            format!("`external` is not supported: there is no {what} outside of the declaration"),
            "remove it; it is made here",
        );
        None
    });
    let checks = [name, external, labels(fields, "labels", errors)];
    checks.into_iter().all(|check| check.is_some()).then_some(())
}

/// A mapping, or a list of `KEY=value`.
fn labels(fields: &Fields<'_>, key: &str, errors: &mut Collector<'_>) -> Option<()> {
    let Some(node) = fields.get(key) else { return Some(()) };
    let what = format!("`{key}`");
    match &node.kind {
        Kind::Map(entries) => {
            bounded(node, entries.len(), MAX_LABELS, key, errors)?;
            let single = entries.iter().map(|entry| match entry.value.kind {
                Kind::List(_) | Kind::Map(_) => {
                    fields::mismatch(&entry.value, "a label", "a text", errors);
                    None
                }
                _ => Some(()),
            });
            collect(single)?;
        }
        Kind::List(items) => {
            bounded(node, items.len(), MAX_LABELS, key, errors)?;
            collect(items.iter().map(|item| fields::text(item, "a label", errors)))?;
        }
        _ => {
            fields::mismatch(node, &what, "a mapping or a list of KEY=value", errors);
            return None;
        }
    }
    errors.note(node.place, format!("`{key}` have no effect: nothing reads them"), "");
    Some(())
}

fn hostname(fields: &Fields<'_>, errors: &mut Collector<'_>) -> Option<()> {
    let Some(node) = fields.get("hostname") else { return Some(()) };
    fields::text(node, "`hostname`", errors)?;
    errors.note(
        node.place,
        "`hostname` has no effect: a service's host name is its name",
        "for another name in its networks write `networks: {default: {aliases: [name]}}`",
    );
    Some(())
}

fn platform(fields: &Fields<'_>, errors: &mut Collector<'_>) -> Option<()> {
    let Some(node) = fields.get("platform") else { return Some(()) };
    let text = fields::text(node, "`platform`", errors)?;
    if matches!(text.as_str(), "linux/amd64" | "linux/x86_64" | "linux") {
        return Some(());
    }
    errors.hinted(
        node.place,
        format!("there is no platform {}: the appliance is linux/amd64", shorten(&text, 40)),
        "name an image of linux/amd64, and remove it",
    );
    None
}

fn pull_policy(fields: &Fields<'_>, errors: &mut Collector<'_>) -> Option<()> {
    let Some(node) = fields.get("pull_policy") else { return Some(()) };
    let text = fields::text(node, "`pull_policy`", errors)?;
    match text.as_str() {
        "build" | "never" => {
            let message =
                format!("`pull_policy: {text}` is not supported: every image is pulled by its digest");
            errors.hinted(node.place, message, "remove it");
            None
        }
        _ => {
            errors.note(
                node.place,
                "`pull_policy` has no effect: an image is pulled by its digest, once",
                "",
            );
            Some(())
        }
    }
}

fn logging(fields: &Fields<'_>, errors: &mut Collector<'_>) -> Option<()> {
    let Some(node) = fields.get("logging") else { return Some(()) };
    let entries = fields::map(node, "`logging`", errors)?;
    bounded(node, entries.len(), MAX_LABELS, "options", errors)?;
    errors.note(
        node.place,
        "`logging` has no effect: output is redacted, and the appliance keeps the last of it",
        "read it with `coffer logs`",
    );
    Some(())
}

/// A boolean that may be false.
fn is_off(fields: &Fields<'_>, key: &str, why: &str, errors: &mut Collector<'_>) -> Option<()> {
    let Some(node) = fields.get(key) else { return Some(()) };
    if !fields::boolean(node, &format!("`{key}`"), errors)? {
        return Some(());
    }
    errors.hinted(node.place, format!("`{key}` is not supported: {why}"), "remove it");
    None
}

fn init(fields: &Fields<'_>, errors: &mut Collector<'_>) -> Option<()> {
    let Some(node) = fields.get("init") else { return Some(()) };
    if !fields::boolean(node, "`init`", errors)? {
        errors.note(node.place, "`init` has no effect: the appliance takes in orphans itself", "");
    }
    Some(())
}

fn is_one(fields: &Fields<'_>, key: &str, errors: &mut Collector<'_>) -> Option<()> {
    let Some(node) = fields.get(key) else { return Some(()) };
    if fields::text(node, &format!("`{key}`"), errors)? == "1" {
        return Some(());
    }
    let message = format!("`{key}` is not supported: one service is one container");
    errors.hinted(node.place, message, "name a second service");
    None
}

/// `no-new-privileges` is so for every workload; everything else would weaken its profiles.
fn security(fields: &Fields<'_>, errors: &mut Collector<'_>) -> Option<()> {
    let Some(node) = fields.get("security_opt") else { return Some(()) };
    let items = fields::list(node, "`security_opt`", errors)?;
    bounded(node, items.len(), MAX_LABELS, "options", errors)?;
    collect(items.iter().map(|item| {
        let text = fields::text(item, "an option", errors)?;
        if matches!(text.as_str(), "no-new-privileges" | "no-new-privileges:true" | "no-new-privileges=true")
        {
            return Some(());
        }
        errors.hinted(
            item.place,
            "`security_opt` is not supported: the profiles are part of the image and cannot be weakened",
            "remove it",
        );
        None
    }))
    .map(drop)
}
