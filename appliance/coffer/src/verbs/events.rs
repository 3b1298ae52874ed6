//! `coffer events`: what happened in an appliance, the oldest first, and on request what happens from now on.

use std::collections::BTreeMap;
use std::time::Duration;

use cofferdam_protocol::events::Event;
use cofferdam_protocol::operator::{EVENTS, EventsQuery};
use hyper::StatusCode;

use crate::channel::{Channel, refusal};
use crate::cli;
use crate::failure::{Code, Failure, Outcome, chain};
use crate::operator_key::OperatorKey;
use crate::trust::unix_now;
use crate::ui::{Ui, miss, printable, with_schema_version};
use crate::within;

/// Between two questions.
const PAUSE: Duration = Duration::from_secs(2);
/// What was answered is asked for once more for so long.
const OVERLAP_MS: u64 = 5000;

pub(crate) async fn run(ui: &Ui, options: &cli::Events, limit: Duration) -> Outcome {
    let key = OperatorKey::load(&options.key)?;
    let open = |wait| {
        super::patiently(wait, &options.appliance.repository, async || {
            super::open_to_read(ui, &options.appliance).await
        })
    };
    let milliseconds = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let query = options.since.map_or(EventsQuery::All, |span| EventsQuery::Last(milliseconds(span)));
    let first = async {
        let mut channel = open(options.wait).await?;
        let events = ask(&mut channel, &key, query).await?;
        Ok((channel, events))
    };
    let (mut channel, mut events) = within(limit, first).await?;
    let mut shown = Shown::default();
    loop {
        for event in events.iter().filter(|event| shown.is_new(event)) {
            if let Err(error) = ui.line(&line(ui, event)?) {
                miss(Err(error));
                return Ok(());
            }
        }
        if !options.follow {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
        events = match within(limit, next(&mut channel, &key, shown.query())).await {
            Ok(events) => events,
            // The connection is gone, or is no longer attested: another one, verified as the first.
            Err(failure) if matches!(failure.code, Code::CouldNotCheck | Code::NotReady) => {
                ui.detail(&format!("connecting again: {}", failure.message));
                let before = channel.claims.tls_key;
                channel = within(limit, open(cli::Wait { wait: true })).await?;
                if channel.claims.tls_key != before {
                    // It was started anew, and counts from 1 again.
                    shown = Shown::default();
                }
                within(limit, ask(&mut channel, &key, shown.query())).await?
            }
            Err(failure) => return Err(failure),
        };
    }
}

/// What comes next. The evidence holds for a time; after that nothing of this connection is believed.
async fn next(channel: &mut Channel, key: &OperatorKey, query: EventsQuery) -> Outcome<Vec<Event>> {
    if unix_now()? >= channel.expires_unix {
        return Err(Failure::could_not_check("the evidence has expired"));
    }
    ask(channel, key, query).await
}

pub(super) async fn ask(channel: &mut Channel, key: &OperatorKey, query: EventsQuery) -> Outcome<Vec<Event>> {
    let reply = channel.request(key, "GET", &format!("{EVENTS}{query}"), Vec::new()).await?;
    if reply.status != StatusCode::OK {
        return Err(refusal(&reply, "no events"));
    }
    let lines = reply.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let read = |line| {
        Event::parse(line)
            .map_err(|error| Failure::failed(format!("an event is malformed: {}", chain(&error))))
    };
    lines.map(read).collect()
}

fn line(ui: &Ui, event: &Event) -> Outcome<String> {
    if ui.json {
        let value = serde_json::to_value(event).map_err(|error| Failure::failed(chain(&error)))?;
        return Ok(with_schema_version(value).to_string());
    }
    let Event { role, service, at, event, .. } = event;
    let whose = service.as_ref().map_or_else(|| role.clone(), |service| format!("{role} {service}"));
    Ok(printable(&format!("{at}  {whose}: {event}")))
}

/// The last number that was shown of each ring. A ring that is read a moment before another one may have something to add.
#[derive(Default)]
struct Shown {
    latest: u64,
    last: BTreeMap<(String, Option<String>), u64>,
}

impl Shown {
    /// Whether it was not shown yet; it counts as shown from now on.
    fn is_new(&mut self, event: &Event) -> bool {
        self.latest = self.latest.max(event.up_ms);
        let last = self.last.entry((event.role.clone(), event.service.clone())).or_default();
        let new = event.number > *last;
        *last = event.number.max(*last);
        new
    }

    /// From when on to ask.
    fn query(&self) -> EventsQuery {
        EventsQuery::Since(self.latest.saturating_sub(OVERLAP_MS))
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_protocol::TimestampMillis;
    use cofferdam_protocol::events::Happened;

    use super::*;

    #[test]
    fn what_is_answered_twice_is_shown_once() {
        let event = |role: &str, number, up_ms| Event {
            role: role.to_owned(),
            service: None,
            number,
            at: TimestampMillis::from_clock(std::time::UNIX_EPOCH),
            up_ms,
            event: Happened::Refused { count: 1 },
        };
        let mut shown = Shown::default();
        let mut new = |events: &[Event]| events.iter().filter(|event| shown.is_new(event)).count();
        assert_eq!(new(&[event("a", 1, 5), event("a", 2, 7), event("b", 1, 7)]), 3);
        assert_eq!(new(&[event("b", 1, 7), event("b", 2, 6), event("a", 2, 7)]), 1);
        assert_eq!(new(&[event("a", 2, 7), event("b", 1, 7), event("b", 2, 6), event("a", 3, 9)]), 1);
        assert_eq!(shown.query(), EventsQuery::Since(0));
    }
}
