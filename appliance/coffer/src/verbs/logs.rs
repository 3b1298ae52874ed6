//! `coffer logs`: a service's output, already redacted inside the appliance.

use hyper::StatusCode;
use serde_json::Value;

use crate::channel::refusal;
use crate::cli;
use crate::failure::{Failure, Outcome};
use crate::operator_key::OperatorKey;
use crate::ui::{Ui, printable, with_schema_version};

pub(crate) async fn run(
    ui: &Ui,
    appliance: &cli::Appliance,
    service: &str,
    tail: u32,
    key: &cli::OperatorKey,
) -> Outcome {
    // The appliance knows which services exist; the name only has to be one that a path can carry.
    if service.is_empty()
        || !service.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    {
        return Err(Failure::usage(format!("{service} is not the name of a service")));
    }
    let key = OperatorKey::load(key)?;
    let mut channel = super::open(ui, appliance, None).await?;
    let reply =
        channel.request(&key, "GET", &format!("/v1/logs?service={service}&tail={tail}"), Vec::new()).await?;
    if reply.status != StatusCode::OK {
        return Err(refusal(&reply, "no logs"));
    }
    for raw in reply.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let entry: Value = serde_json::from_slice(raw)
            .map_err(|error| Failure::failed(format!("a line of the log is malformed: {error}")))?;
        let shown = if ui.json {
            with_schema_version(entry).to_string()
        } else {
            printable(entry.get("line").and_then(Value::as_str).unwrap_or_default())
        };
        if ui.line(&shown).is_err() {
            break;
        }
    }
    Ok(())
}
