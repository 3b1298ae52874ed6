//! `coffer top`: what each service uses of what it may.
//!
//! On a terminal it is shown anew until Ctrl-C; elsewhere, and as JSON, once.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use cofferdam_protocol::status::{NamedService, StatusReply, Usage};
use serde_json::json;

use super::status;
use crate::channel::Channel;
use crate::cli;
use crate::failure::{Failure, Outcome};
use crate::operator_key::OperatorKey;
use crate::trust::unix_now;
use crate::ui::Ui;
use crate::within;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);

pub(crate) async fn run(
    ui: &Ui,
    appliance: &cli::Appliance,
    wait: cli::Wait,
    key: &cli::OperatorKey,
    limit: Duration,
) -> Outcome {
    let key = OperatorKey::load(key)?;
    let first = async {
        let mut channel = super::logs::open(ui, appliance, wait).await?;
        let status = status::ask(&mut channel, &key).await?;
        Ok((channel, status))
    };
    let (mut channel, mut status) = within(limit, first).await?;
    let mut speed = Speed::default();
    speed.look(&status.services, Instant::now());
    if !ui.repaints() {
        ui.result(&table(&status.services, &speed), json!({ "services": used(&status.services) }));
        return Ok(());
    }
    let mut painted = 0;
    loop {
        painted = ui.repaint(painted, &table(&status.services, &speed));
        if crate::ui::missing().is_some() {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
        status = match look(&mut channel, &key).await {
            Ok(status) => status,
            Err(failure) => {
                ui.detail(&format!("connecting again: {}", failure.message));
                painted = 0;
                channel = within(limit, super::logs::open(ui, appliance, cli::Wait { wait: true })).await?;
                within(limit, status::ask(&mut channel, &key)).await?
            }
        };
        speed.look(&status.services, Instant::now());
    }
}

async fn look(channel: &mut Channel, key: &OperatorKey) -> Outcome<StatusReply> {
    if unix_now()? >= channel.expires_unix {
        return Err(Failure::could_not_check("the evidence has expired"));
    }
    status::ask(channel, key).await
}

/// How much of a processor each service takes, from what it has had at two looks.
#[derive(Default)]
struct Speed(BTreeMap<String, Seen>);

struct Seen {
    cpu_ms: u64,
    at: Instant,
    /// Thousandths of a processor since the look before; not known at first.
    now: Option<u64>,
}

impl Speed {
    fn look(&mut self, services: &[NamedService], at: Instant) {
        for service in services {
            let Some(Usage { cpu_ms, .. }) = service.usage else { continue };
            match self.0.get_mut(&service.name) {
                // The figure is the same until the appliance reads it again.
                Some(seen)
                    if seen.cpu_ms == cpu_ms && at.duration_since(seen.at) < Duration::from_secs(10) => {}
                Some(seen) => {
                    let passed =
                        u64::try_from(at.duration_since(seen.at).as_millis()).unwrap_or(u64::MAX).max(1);
                    let spent = cpu_ms.saturating_sub(seen.cpu_ms);
                    *seen = Seen { cpu_ms, at, now: Some(spent.saturating_mul(1000) / passed) };
                }
                None => drop(self.0.insert(service.name.clone(), Seen { cpu_ms, at, now: None })),
            }
        }
    }

    fn of(&self, name: &str) -> String {
        let now = self.0.get(name).and_then(|seen| seen.now);
        now.map_or_else(|| "-".to_owned(), |thousandths| format!("{} %", thousandths / 10))
    }
}

/// A line for each service, 59 columns with a name of 16.
fn table(services: &[NamedService], speed: &Speed) -> String {
    let width = services.iter().map(|service| service.name.len()).max().unwrap_or(0).clamp(7, 16);
    let mut text = format!(
        "{:width$}  {:>13}  {:>5}  {:>9}  {:>6}\n",
        "SERVICE", "MEMORY MiB", "CPU", "CPU TIME", "PIDS"
    );
    for service in services {
        let _ = match &service.usage {
            Some(usage) => writeln!(
                text,
                "{:width$}  {:>13}  {:>5}  {:>7} s  {:>6}",
                service.name,
                format!("{}/{}", usage.memory >> 20, usage.memory_limit >> 20),
                speed.of(&service.name),
                usage.cpu_ms / 1000,
                usage.processes,
            ),
            None => writeln!(text, "{:width$}  {:>13}", service.name, service.state.as_str()),
        };
    }
    text
}

fn used(services: &[NamedService]) -> Vec<serde_json::Value> {
    let one = |service: &NamedService| json!({ "name": service.name, "state": service.state, "usage": service.usage });
    services.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(cpu_ms: u64) -> NamedService {
        let mut service = NamedService::new("web".to_owned(), None);
        service.usage = Some(Usage {
            memory: 100 << 20,
            memory_limit: 512 << 20,
            processes: 7,
            processes_limit: 4096,
            cpu_ms,
            cpus_limit: None,
        });
        service
    }

    #[test]
    fn the_share_of_a_processor_is_that_between_two_readings() {
        let (mut speed, begun) = (Speed::default(), Instant::now());
        let mut look = |cpu_ms, seconds| {
            speed.look(&[service(cpu_ms)], begun + Duration::from_secs(seconds));
            speed.of("web")
        };
        assert_eq!(look(1000, 0), "-");
        assert_eq!(look(1000, 2), "-", "it was not read again");
        assert_eq!(look(3500, 5), "50 %");
        assert_eq!(look(3500, 7), "50 %");
        assert_eq!(look(3500, 16), "0 %", "it was, and nothing was used");
        assert_eq!(look(10, 20), "0 %", "the appliance was started anew");
    }

    #[test]
    fn a_row_fits_into_sixty_columns() {
        let mut long = service(999_999_000);
        long.name = "a-name-of-16-let".to_owned();
        let text = table(&[long, NamedService::new("db".to_owned(), None)], &Speed::default());
        assert!(text.lines().all(|line| line.len() <= 60), "{text}");
        assert!(text.contains("100/512") && text.contains("pending"), "{text}");
    }
}
