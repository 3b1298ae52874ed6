//! `coffer logs`: a service's output, already redacted inside the appliance.

use std::time::Duration;

use cofferdam_protocol::is_service_name;
use cofferdam_protocol::log::LogLine;
use cofferdam_protocol::operator::{LOGS, LogsQuery, MAX_TAIL, TAIL};
use hyper::StatusCode;

use crate::channel::{Channel, Reply, refusal};
use crate::cli;
use crate::failure::{Code, Failure, Outcome, chain};
use crate::operator_key::OperatorKey;
use crate::trust::unix_now;
use crate::ui::{Ui, printable, with_schema_version};
use crate::within;

pub(crate) async fn run(ui: &Ui, options: &cli::Logs, limit: Duration) -> Outcome {
    let key = OperatorKey::load(&options.key)?;
    let service = service(&options.service)?;
    let since = options.since.map(|since| since.as_secs());
    // Who says how far back, means all of it.
    let tail = options.tail.map_or(if since.is_some() { MAX_TAIL } else { TAIL }, |tail| tail as usize);
    let mut query = LogsQuery { service, tail, since, after: None };
    let open = |wait| open(ui, &options.appliance, wait);
    let first = async {
        let mut channel = open(options.wait).await?;
        let reply = channel.request(&key, "GET", &format!("{LOGS}?{query}"), Vec::new()).await?;
        Ok((channel, lines_of(reply)?))
    };
    let (mut channel, mut reply) = within(limit, first).await?;
    loop {
        if !print(ui, &reply)? || !options.follow {
            return Ok(());
        }
        let place =
            reply.log_place.ok_or_else(|| Failure::failed("the appliance's logs cannot be followed"))?;
        query = LogsQuery { tail: MAX_TAIL, since: None, after: Some(place), ..query };
        reply = match next(&mut channel, &key, &query).await {
            Ok(reply) => reply,
            // The connection is gone, or is no longer attested: another one, verified as the first.
            Err(failure) if matches!(failure.code, Code::CouldNotCheck | Code::NotReady) => {
                ui.detail(&format!("connecting again: {}", failure.message));
                channel = within(limit, open(cli::Wait { wait: true })).await?;
                within(limit, next(&mut channel, &key, &query)).await?
            }
            Err(failure) => return Err(failure),
        };
    }
}

/// A channel to an appliance whose services run; no quote is made for it.
pub(super) async fn open(ui: &Ui, appliance: &cli::Appliance, wait: cli::Wait) -> Outcome<Channel> {
    let launched = async || {
        let channel = super::open_to_read(ui, appliance).await?;
        if channel.appraisal.is_before_launch() {
            let sealed = "the appliance is sealed: it waits for its state to be opened, and no service runs";
            return Err(
                Failure::new(Code::NotReady, sealed).hint(format!("coffer unseal {}", appliance.repository))
            );
        }
        Ok(channel)
    };
    super::patiently(wait, &appliance.repository, launched).await
}

/// What comes next. The evidence holds for a time; after that nothing of this connection is believed.
async fn next(channel: &mut Channel, key: &OperatorKey, query: &LogsQuery<'_>) -> Outcome<Reply> {
    if unix_now()? >= channel.expires_unix {
        return Err(Failure::could_not_check("the evidence has expired"));
    }
    lines_of(channel.ask(key, "GET", &format!("{LOGS}?{query}"), Vec::new()).await?)
}

/// The appliance knows which services exist; the name only has to be one that a path can carry.
pub(super) fn service(name: &str) -> Outcome<&str> {
    match is_service_name(name) {
        true => Ok(name),
        false => Err(Failure::usage(format!("{} is not the name of a service", printable(name)))),
    }
}

fn lines_of(reply: Reply) -> Outcome<Reply> {
    if reply.status == StatusCode::OK { Ok(reply) } else { Err(refusal(&reply, "no logs")) }
}

/// Prints the lines. False when nobody reads them.
fn print(ui: &Ui, reply: &Reply) -> Outcome<bool> {
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
            return Ok(false);
        }
    }
    Ok(true)
}
