//! `coffer logs`: a service's output, already redacted inside the appliance.

use cofferdam_protocol::log::LogLine;
use cofferdam_protocol::operator::{LOGS, LogsQuery, MAX_TAIL};
use hyper::StatusCode;

use crate::channel::refusal;
use crate::cli;
use crate::failure::{Code, Failure, Outcome, chain};
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
    let mut channel = super::open_to_read(ui, appliance).await?;
    if channel.appraisal.is_before_launch() {
        let sealed = "the appliance is sealed: it waits for its state to be opened, and no service runs";
        return Err(
            Failure::new(Code::NotReady, sealed).hint(format!("coffer unseal {}", appliance.repository))
        );
    }
    let query = LogsQuery { service, tail: usize::try_from(tail).unwrap_or(MAX_TAIL) };
    let reply = channel.request(&key, "GET", &format!("{LOGS}?{query}"), Vec::new()).await?;
    if reply.status != StatusCode::OK {
        return Err(refusal(&reply, "no logs"));
    }
    for raw in reply.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let malformed = |error: &dyn std::error::Error| {
            Failure::failed(format!("a line of the log is malformed: {}", chain(error)))
        };
        let entry = LogLine::parse(raw).map_err(|error| malformed(&error))?;
        let shown = if ui.json {
            with_schema_version(serde_json::to_value(&entry).map_err(|error| malformed(&error))?).to_string()
        } else {
            printable(&entry.line)
        };
        if let Err(error) = ui.line(&shown) {
            crate::ui::miss(Err(error));
            break;
        }
    }
    Ok(())
}
