//! When a service is healthy: Compose's `healthcheck`, and two probes that need no program in the image.
//!
//! What is left out is the image's, and after that Docker's default; that is decided where the image is known.

use std::time::Duration;

use cofferdam_protocol::{SECRET_SCHEME, WordError, parse_decimal, parse_port};
use serde::{Deserialize, Serialize};

use crate::diagnostics::Collector;
use crate::fields::{self, Fields};
use crate::keys;
use crate::read::{bounded, collect, optional};
use crate::read_limits::number;
use crate::value::parse_duration_below;
use crate::yaml::{Kind, Node};

/// Longest interval and start period: a day.
const MOST_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Shortest interval: a probe is a process.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);
/// Longest time of one probe.
const MOST_TIMEOUT: Duration = Duration::from_secs(600);
const MOST_RETRIES: u32 = 1000;
const MOST_ARGUMENTS: usize = 256;
const MOST_TEXT: usize = 64 * 1024;

/// How it is found out whether a service is healthy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Healthcheck {
    /// What is tried.
    pub probe: Probe,
    /// Between the end of a probe and the next one.
    pub interval: Option<Duration>,
    /// How long one may take.
    pub timeout: Option<Duration>,
    /// Failures in a row that make a service unhealthy; not 0.
    pub retries: Option<u32>,
    /// How long failures do not count after a start, until the first success.
    pub start_period: Option<Duration>,
    /// The interval in that time.
    pub start_interval: Option<Duration>,
}

/// What is tried to find out whether a service is healthy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// What the image says, if it says anything.
    #[default]
    Image,
    /// Nothing, whatever the image says.
    Off,
    /// This program ends with exit code 0; not empty.
    Command(Vec<String>),
    /// `/bin/sh -c` with this text does.
    Shell(String),
    /// A `GET` of this path at this port of the service is answered with 200 to 399.
    Http {
        /// Of the service.
        port: u16,
        /// Begins with a slash; visible ASCII.
        path: String,
    },
    /// This port of the service takes connections.
    Tcp {
        /// Of the service.
        port: u16,
    },
}

/// What happens when a service becomes unhealthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnhealthy {
    /// It is said, as with Compose.
    #[default]
    Nothing,
    /// It is stopped, and `restart` decides as after a failure.
    Restart,
}

/// Reads `healthcheck`.
pub(crate) fn read(node: &Node, errors: &mut Collector<'_>) -> Option<Healthcheck> {
    let fields = Fields::open(node, "`healthcheck`", keys::HEALTHCHECK, &[], errors)?;
    let probe = probe(&fields, node, errors);
    let interval = duration(&fields, "interval", LEAST_INTERVAL, MOST_INTERVAL, errors);
    let timeout = duration(&fields, "timeout", Duration::from_millis(1), MOST_TIMEOUT, errors);
    let start_period = duration(&fields, "start_period", Duration::ZERO, MOST_INTERVAL, errors);
    let start_interval = duration(&fields, "start_interval", LEAST_INTERVAL, MOST_INTERVAL, errors);
    let retries = fields.get("retries").map(|node| number(node, "`retries`", parse_retries, errors));
    Some(Healthcheck {
        probe: probe?,
        interval: interval?,
        timeout: timeout?,
        retries: optional(retries)?,
        start_period: start_period?,
        start_interval: start_interval?,
    })
}

/// Reads `on_unhealthy`.
pub(crate) fn on_unhealthy(node: &Node, errors: &mut Collector<'_>) -> Option<OnUnhealthy> {
    match fields::text(node, "`on_unhealthy`", errors)?.as_str() {
        "restart" => Some(OnUnhealthy::Restart),
        "nothing" => Some(OnUnhealthy::Nothing),
        _ => {
            errors.hinted(
                node.place,
                "not what can happen to an unhealthy service",
                "write restart or nothing",
            );
            None
        }
    }
}

/// The one probe of a check.
fn probe(fields: &Fields<'_>, node: &Node, errors: &mut Collector<'_>) -> Option<Probe> {
    let off = fields.get("disable").map_or(Some(false), |node| fields::boolean(node, "`disable`", errors))?;
    let given: Vec<&str> =
        ["test", "http", "tcp"].into_iter().filter(|key| fields.get(key).is_some()).collect();
    if let [first, second, ..] = given.as_slice() {
        errors.hinted(node.place, format!("`{first}` and `{second}` at once"), "write one of them");
        return None;
    }
    if off {
        return Some(Probe::Off);
    }
    if let Some(node) = fields.get("test") {
        return test(node, errors);
    }
    if let Some(node) = fields.get("http") {
        let text = fields::text(node, "`http`", errors)?;
        return fields::checked(node, http(&text), errors);
    }
    if let Some(node) = fields.get("tcp") {
        let text = fields::text(node, "`tcp`", errors)?;
        return Some(Probe::Tcp { port: fields::checked(node, parse_port(&text), errors)? });
    }
    Some(Probe::Image)
}

/// `[NONE]`, `[CMD, …]`, `[CMD-SHELL, text]`, or a text for a shell.
fn test(node: &Node, errors: &mut Collector<'_>) -> Option<Probe> {
    const FORMS: &str = "write [CMD, program, argument], [CMD-SHELL, line] or [NONE]";
    if let Kind::Scalar { .. } | Kind::Composed(_) = &node.kind {
        let line = argument(node, errors)?;
        return match line.as_str() {
            "" => {
                errors.hinted(node.place, "an empty test", FORMS);
                None
            }
            "NONE" => Some(Probe::Off),
            _ => Some(Probe::Shell(line)),
        };
    }
    let items = fields::list(node, "`test`", errors)?;
    bounded(node, items.len(), MOST_ARGUMENTS, "arguments", errors)?;
    let mut words: Vec<String> = collect(items.iter().map(|item| argument(item, errors)))?;
    let first = if words.is_empty() { String::new() } else { words.remove(0) };
    match (first.as_str(), words.as_slice()) {
        ("NONE", []) => Some(Probe::Off),
        ("CMD", [program, ..]) if !program.is_empty() => Some(Probe::Command(words)),
        ("CMD-SHELL", [line]) if !line.is_empty() => Some(Probe::Shell(line.clone())),
        _ => {
            errors.hinted(node.place, "not a test of health", FORMS);
            None
        }
    }
}

fn argument(node: &Node, errors: &mut Collector<'_>) -> Option<String> {
    let text = match &node.kind {
        Kind::Composed(_) => None,
        _ => Some(fields::text(node, "an argument", errors)?),
    };
    if text.as_ref().is_some_and(|text| text.len() > MOST_TEXT) {
        errors.error(node.place, "an argument is longer than 64 KiB");
        return None;
    }
    let text = text.filter(|text| !text.contains(SECRET_SCHEME));
    if text.is_none() {
        errors.hinted(
            node.place,
            "a secret in an argument, which every process can read",
            "give it under `environment`; the test has the service's variables",
        );
    }
    text
}

/// `PORT` or `PORT/path`.
fn http(text: &str) -> Result<Probe, WordError> {
    let (port, path) = text.split_once('/').unwrap_or((text, ""));
    let port = parse_port(port).map_err(|error| error.hint("write 8080, or 8080/healthz"))?;
    if path.len() > 1024 || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(WordError::new("not the path of a URL").hint("at most 1024 visible ASCII characters"));
    }
    Ok(Probe::Http { port, path: format!("/{path}") })
}

/// A time of at least and at most so much, where the key is there. The outer `None` stands for a mistake.
pub(crate) fn duration(
    fields: &Fields<'_>,
    key: &str,
    least: Duration,
    most: Duration,
    errors: &mut Collector<'_>,
) -> Option<Option<Duration>> {
    let Some(node) = fields.get(key) else { return Some(None) };
    let text = fields::text(node, &format!("`{key}`"), errors)?;
    let parsed = parse_duration_below(&text, most).and_then(|duration| {
        if duration < least {
            return Err(WordError::new(format!("`{key}` is shorter than {least:?}")));
        }
        Ok(duration)
    });
    fields::checked(node, parsed, errors).map(Some)
}

fn parse_retries(text: &str) -> Result<u32, WordError> {
    parse_decimal(text)
        .filter(|retries| (1..=MOST_RETRIES).contains(retries))
        .ok_or_else(|| WordError::new(format!("not a number of retries: 1 to {MOST_RETRIES}")))
}
