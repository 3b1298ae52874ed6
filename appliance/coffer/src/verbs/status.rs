//! `coffer status`: the appliance, its roles and its services.

use std::fmt::Write as _;

use cofferdam_protocol::json;
use cofferdam_protocol::operator::{MAX_REPLY, STATUS};
use cofferdam_protocol::status::{RoleState, ServiceState, StatusReply};
use hyper::StatusCode;

use crate::channel::refusal;
use crate::cli;
use crate::failure::{Failure, Outcome, chain};
use crate::operator_key::OperatorKey;
use crate::ui::{Tone, Ui, printable};

pub(crate) async fn run(ui: &Ui, appliance: &cli::Appliance, key: &cli::OperatorKey) -> Outcome {
    let key = OperatorKey::load(key)?;
    let mut channel = super::open(ui, appliance, None).await?;
    let reply = channel.request(&key, "GET", STATUS, Vec::new()).await?;
    if reply.status != StatusCode::OK {
        return Err(refusal(&reply, "no status"));
    }
    let malformed = |error: &dyn std::error::Error| {
        Failure::failed(format!("the appliance's status is malformed: {}", chain(error)))
    };
    let status: StatusReply = json::from_json(&reply.body, MAX_REPLY).map_err(|error| malformed(&error))?;
    let shown = serde_json::to_value(&status).map_err(|error| malformed(&error))?;
    ui.result(&text(ui, &status), shown);
    Ok(())
}

fn text(ui: &Ui, status: &StatusReply) -> String {
    let mut out = String::new();
    let _ =
        writeln!(out, "{}  commit {:.12}  {}", status.repository, status.commit.to_string(), status.endpoint);
    let _ = writeln!(out, "state: {}", printable(&status.state));
    if let Some(publish) = &status.publish {
        let tag = publish.tag.as_deref().map(printable).unwrap_or_default();
        let detail = publish.detail.as_deref().map(printable).unwrap_or_default();
        let _ = writeln!(out, "attestation: {} {}", publish.state.as_str(), format!("{tag} {detail}").trim());
    }
    let _ = writeln!(out, "roles:");
    for role in status.roles.iter().flatten() {
        let tone = if role.state == RoleState::Running { Tone::Good } else { Tone::Unsure };
        let _ = writeln!(out, "{}", row(ui, &role.name, tone, role.state.as_str(), role.restarts));
    }
    let _ = writeln!(out, "services:");
    for service in &status.services {
        let tone = match service.state {
            ServiceState::Running => Tone::Good,
            ServiceState::Failed => Tone::Bad,
            _ => Tone::Unsure,
        };
        let restarts = service.restarts.unwrap_or(0);
        let _ = write!(out, "{}", row(ui, &service.name, tone, service.state.as_str(), restarts));
        for missing in service.missing.iter().flatten() {
            let _ = write!(out, "  missing {missing}");
        }
        let detail = service.detail.as_deref().map(printable).unwrap_or_default();
        let _ = writeln!(out, "{}{detail}", if detail.is_empty() { "" } else { "  " });
    }
    out
}

/// The beginning of a line: name, state and restarts.
fn row(ui: &Ui, name: &str, tone: Tone, state: &str, restarts: u32) -> String {
    format!("  {:16} {} restarts {restarts}", printable(name), ui.tone(tone, &format!("{state:10}")))
}
