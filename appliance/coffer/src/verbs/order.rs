//! `coffer restart|stop|start`: what an operator wants of one service.

use std::time::{Duration, Instant};

use cofferdam_protocol::json as strict;
use cofferdam_protocol::operator::{Order, OrderReply, order_path};
use cofferdam_protocol::status::{NamedService, ServiceState, StatusReply};
use cofferdam_protocol::vault::MAX_OPERATOR_REPLY;
use hyper::StatusCode;
use serde_json::json;

use super::logs::service;
use super::status;
use crate::channel::{Channel, refusal};
use crate::cli;
use crate::failure::{Code, Failure, Outcome, chain};
use crate::operator_key::OperatorKey;
use crate::progress;
use crate::ui::{Ui, printable};

/// How often the appliance is asked whether it is done.
const LOOK: Duration = Duration::from_millis(500);
/// A shim hears of an order at once. What its service says before that is of the time before.
const HEARD: Duration = Duration::from_secs(2);

pub(crate) async fn run(ui: &Ui, options: &cli::Order, order: Order) -> Outcome {
    let key = OperatorKey::load(&options.key)?;
    let name = service(&options.service)?;
    let mut channel = super::open_patiently(ui, &options.appliance, options.wait).await?;
    let before = if options.wait.wait { Some(status::ask(&mut channel, &key).await?) } else { None };
    let reply = channel.request(&key, "POST", &order_path(name, order), Vec::new()).await?;
    if reply.status != StatusCode::OK {
        return Err(refusal(&reply, &format!("no {}", order.as_str())));
    }
    let OrderReply { dependents, .. } =
        strict::from_json(&reply.body, MAX_OPERATOR_REPLY).map_err(|error| {
            Failure::failed(format!("it was ordered, but the answer is malformed: {}", chain(&error)))
        })?;
    let mut state = None;
    let mut text = String::new();
    if let Some(before) = before {
        for name in std::iter::once(name).chain(dependents.iter().map(String::as_str)) {
            let now = until_done(&mut channel, &key, &find(&before, name)?, order).await?;
            state.get_or_insert(now.state);
            text += &format!("{}: {}\n", printable(name), now.state.as_str());
        }
    } else {
        let done = match order {
            Order::Start => "started",
            Order::Stop => "stopped",
            Order::Restart => "restarted",
        };
        let after = if dependents.is_empty() { "" } else { ", after it " };
        text = format!("{name} is {done}{after}{}\n", printable(&dependents.join(", ")));
    }
    ui.result(&text, json!({ "service": name, "order": order, "state": state, "dependents": dependents }));
    Ok(())
}

fn find(status: &StatusReply, name: &str) -> Outcome<NamedService> {
    let found = status.services.iter().find(|service| service.name == name).cloned();
    found.ok_or_else(|| Failure::failed("there is no such service").hint("`coffer status` lists them"))
}

/// Waits until the order is carried out: the service is stopped, or runs and is healthy, since the order.
async fn until_done(
    channel: &mut Channel,
    key: &OperatorKey,
    before: &NamedService,
    order: Order,
) -> Outcome<NamedService> {
    let _doing = progress::doing(format!("waiting for {} to {}", before.name, order.as_str()));
    let begun = Instant::now();
    loop {
        let now = find(&status::ask(channel, key).await?, &before.name)?;
        if is_done(before, &now, order, begun.elapsed()) {
            return Ok(now);
        }
        if now.state == ServiceState::Failed && begun.elapsed() > HEARD {
            let why = now.detail.as_deref().map(printable).unwrap_or_default();
            return Err(Failure::new(Code::Failed, format!("{} has failed: {why}", now.name)));
        }
        progress::again_because(format!("{} is {}", now.name, now.state.as_str()));
        tokio::time::sleep(LOOK).await;
    }
}

fn is_done(before: &NamedService, now: &NamedService, order: Order, passed: Duration) -> bool {
    // A start of what runs already changes nothing.
    let heard = now.since != before.since || (order == Order::Start && passed > HEARD);
    match order {
        Order::Stop => now.state == ServiceState::Stopped,
        Order::Start | Order::Restart => heard && status::is_ready(now),
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_protocol::TimestampMillis;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn what_was_so_before_the_order_is_not_its_work() {
        let service = |state, seconds| {
            let mut service = NamedService::new("web".to_owned(), None);
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            (service.state, service.since) = (state, Some(TimestampMillis::from_clock(time)));
            service
        };
        let before = service(ServiceState::Running, 1);
        let (soon, later) = (Duration::ZERO, Duration::from_secs(3));
        assert!(!is_done(&before, &before, Order::Restart, later));
        assert!(is_done(&before, &service(ServiceState::Running, 2), Order::Restart, soon));
        assert!(!is_done(&before, &service(ServiceState::Starting, 2), Order::Restart, soon));
        assert!(!is_done(&before, &before, Order::Start, soon));
        assert!(is_done(&before, &before, Order::Start, later), "it ran already");
        assert!(!is_done(&before, &before, Order::Stop, later));
        assert!(is_done(&before, &service(ServiceState::Stopped, 2), Order::Stop, soon));
    }
}
