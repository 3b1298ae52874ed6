//! `coffer status`: the appliance, its roles and its services.

use std::fmt::Write as _;

use hyper::StatusCode;
use serde_json::Value;

use crate::channel::refusal;
use crate::cli;
use crate::failure::{Code, Failure, Outcome};
use crate::operator_key::OperatorKey;
use crate::ui::{Tone, Ui, printable};

pub(crate) async fn run(ui: &Ui, appliance: &cli::Appliance, key: &cli::OperatorKey) -> Outcome {
    let key = OperatorKey::load(key)?;
    let mut channel = super::open(ui, appliance, None).await?;
    let reply = channel.request(&key, "GET", "/v1/status", Vec::new()).await?;
    if reply.status != StatusCode::OK {
        return Err(refusal(&reply, "no status"));
    }
    let status: Value = serde_json::from_slice(&reply.body).map_err(|error| {
        Failure::new(Code::Failed, format!("the appliance's status is malformed: {error}"))
    })?;
    ui.result(&text(ui, &status), status);
    Ok(())
}

fn text(ui: &Ui, status: &Value) -> String {
    let mut out = String::new();
    let word = |value: &Value, name: &str| {
        value.get(name).and_then(Value::as_str).map(printable).unwrap_or_default()
    };
    let _ = writeln!(
        out,
        "{}  commit {:.12}  {}",
        word(status, "repository"),
        word(status, "commit"),
        word(status, "endpoint")
    );
    let _ = writeln!(out, "state: {}", word(status, "state"));
    if let Some(publish) = status.get("publish") {
        let _ = writeln!(
            out,
            "attestation: {} {}",
            word(publish, "state"),
            [word(publish, "tag"), word(publish, "detail")].join(" ").trim()
        );
    }
    for (title, list) in [("roles", status.get("roles")), ("services", status.get("services"))] {
        let _ = writeln!(out, "{title}:");
        for entry in list.and_then(Value::as_array).into_iter().flatten() {
            let state = word(entry, "state");
            let tone = match state.as_str() {
                "running" => Tone::Good,
                "failed" => Tone::Bad,
                _ => Tone::Unsure,
            };
            let restarts = entry.get("restarts").and_then(Value::as_u64).unwrap_or(0);
            let _ = write!(
                out,
                "  {:16} {} restarts {restarts}",
                word(entry, "name"),
                ui.tone(tone, &format!("{state:10}"))
            );
            for missing in
                entry.get("missing").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
            {
                let _ = write!(out, "  missing {}", printable(missing));
            }
            let detail = word(entry, "detail");
            let _ = writeln!(out, "{}{detail}", if detail.is_empty() { "" } else { "  " });
        }
    }
    out
}
