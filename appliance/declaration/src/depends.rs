//! What a service waits for: `depends_on` in Compose's short and long form.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::diagnostics::{Collector, Place};
use crate::fields::{self, Fields};
use crate::keys;
use crate::read::{bounded, collect};
use crate::yaml::{Kind, Node};

const MAX_DEPENDENCIES: usize = 32;

/// A service that another one waits for before its first start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// Its name.
    pub service: String,
    /// What is waited for.
    pub condition: Condition,
    /// Whether it is waited for without end. Otherwise the one that waits goes on when this one has failed.
    pub required: bool,
    /// Whether an operator's restart of it restarts the one that waits, too.
    pub restart: bool,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// It has been started, whatever became of it.
    Started,
    /// It is healthy.
    Healthy,
    /// It ended with exit code 0.
    Completed,
}

/// Reads `depends_on`: a list of names, or a mapping from names to conditions.
pub(crate) fn read(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<(Dependency, Place)>> {
    let plain = |service: String| Dependency {
        service,
        condition: Condition::Started,
        required: true,
        restart: false,
    };
    let read: Option<Vec<(Dependency, Place)>> = match &node.kind {
        Kind::Map(entries) => {
            bounded(node, entries.len(), MAX_DEPENDENCIES, "dependencies", errors)?;
            collect(entries.iter().map(|entry| {
                let dependency = long(plain(entry.key.clone()), &entry.value, errors)?;
                Some((dependency, entry.place))
            }))
        }
        Kind::List(items) => {
            bounded(node, items.len(), MAX_DEPENDENCIES, "dependencies", errors)?;
            collect(
                items
                    .iter()
                    .map(|item| Some((plain(fields::text(item, "a dependency", errors)?), item.place))),
            )
        }
        _ => {
            fields::mismatch(node, "`depends_on`", "a list of services", errors);
            None
        }
    };
    let mut seen = BTreeSet::new();
    let mut read = read?;
    read.retain(|(dependency, _)| seen.insert(dependency.service.clone()));
    Some(read)
}

fn long(plain: Dependency, node: &Node, errors: &mut Collector<'_>) -> Option<Dependency> {
    let fields = Fields::open(node, "a dependency", keys::DEPENDENCY, &[], errors)?;
    let condition = fields
        .require("condition", "write `condition: service_started`", errors)
        .and_then(|node| condition(node, errors));
    let mut flag = |key: &str, otherwise: bool| {
        fields.get(key).map_or(Some(otherwise), |node| fields::boolean(node, &format!("`{key}`"), errors))
    };
    let (restart, required) = (flag("restart", false), flag("required", true));
    Some(Dependency { condition: condition?, required: required?, restart: restart?, ..plain })
}

fn condition(node: &Node, errors: &mut Collector<'_>) -> Option<Condition> {
    match fields::text(node, "`condition`", errors)?.as_str() {
        "service_started" => Some(Condition::Started),
        "service_healthy" => Some(Condition::Healthy),
        "service_completed_successfully" => Some(Condition::Completed),
        _ => {
            errors.hinted(
                node.place,
                "not a condition",
                "one of service_started, service_healthy, service_completed_successfully",
            );
            None
        }
    }
}
