//! A status as OpenMetrics 1.0 text. Names and labels are a contract: dashboards and alerts are made of them (docs/client.md).

use std::fmt;

use cofferdam_protocol::follow::Found;
use cofferdam_protocol::network::NetworkState;
use cofferdam_protocol::status::{
    FrontStatus, HealthState, NamedService, PublishState, RoleState, ServiceState, StatusReply, StoreStatus,
    Usage,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

const SERVICE_STATES: [ServiceState; 9] = [
    ServiceState::Pending,
    ServiceState::Pulling,
    ServiceState::Waiting,
    ServiceState::Starting,
    ServiceState::Running,
    ServiceState::Restarting,
    ServiceState::Exited,
    ServiceState::Stopped,
    ServiceState::Failed,
];
const PUBLISH_STATES: [PublishState; 5] = [
    PublishState::Waiting,
    PublishState::Publishing,
    PublishState::Published,
    PublishState::Contested,
    PublishState::Failed,
];
const NETWORK_STATES: [NetworkState; 4] =
    [NetworkState::Asking, NetworkState::Leased, NetworkState::Lost, NetworkState::Static];

/// The whole answer to a scrape; `expires` is when the evidence behind it ceases to hold, in seconds since the Unix epoch.
pub(super) fn text(status: &StatusReply, expires: u64) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("cofferdam");
    registry.register_collector(Box::new(Figures(families(status, expires))));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

type Labels = Vec<(&'static str, String)>;

/// One metric with its rows.
#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    /// Whether it only grows; a gauge otherwise.
    counts: bool,
    rows: Vec<(Labels, f64)>,
}

#[derive(Debug)]
struct Figures(Vec<Family>);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // One that has no row says nothing, and its name alone would be taken for a figure that is gone.
        for family in self.0.iter().filter(|family| !family.rows.is_empty()) {
            let kind = if family.counts { MetricType::Counter } else { MetricType::Gauge };
            let mut metric =
                encoder.encode_descriptor(family.name, family.help, family.unit.as_ref(), kind)?;
            for (labels, value) in &family.rows {
                let row = metric.encode_family(labels)?;
                match family.counts {
                    true => ConstCounter::new(*value).encode(row)?,
                    false => ConstGauge::new(*value).encode(row)?,
                }
            }
        }
        Ok(())
    }
}

fn gauge(name: &'static str, help: &'static str, rows: Vec<(Labels, f64)>) -> Family {
    Family { name, help, unit: None, counts: false, rows }
}

fn counter(name: &'static str, help: &'static str, rows: Vec<(Labels, f64)>) -> Family {
    Family { counts: true, ..gauge(name, help, rows) }
}

impl Family {
    fn in_unit(self, unit: Unit) -> Self {
        Self { unit: Some(unit), ..self }
    }
}

/// A row for each state, 1 for the one that is: an alert can name a state that was never seen.
fn states<T: PartialEq + Copy>(
    labels: &Labels,
    all: &[T],
    is: T,
    word: fn(T) -> &'static str,
) -> Vec<(Labels, f64)> {
    let row = |state: &T| {
        let labels = labels.iter().cloned().chain([("state", word(*state).to_owned())]);
        (labels.collect(), if *state == is { 1.0 } else { 0.0 })
    };
    all.iter().map(row).collect()
}

/// Exact up to 2⁵³; bytes and seconds stay far below.
#[expect(clippy::cast_precision_loss, reason = "an OpenMetrics value is a double")]
fn number(value: u64) -> f64 {
    value as f64
}

fn flag(is: bool) -> f64 {
    if is { 1.0 } else { 0.0 }
}

fn families(status: &StatusReply, expires: u64) -> Vec<Family> {
    let mut all = appliance(status, expires);
    all.extend(status.front.iter().flat_map(front));
    all.extend(status.store.iter().flat_map(store));
    all.extend(roles(status));
    all.extend(services(&status.services));
    all
}

fn appliance(status: &StatusReply, expires: u64) -> Vec<Family> {
    let publish = status.publish.as_ref();
    let network = status.network.as_ref();
    let none = Labels::new;
    let info = vec![
        ("repository", status.repository.to_string()),
        ("commit", status.commit.to_string()),
        ("declaration", status.declaration.to_string()),
    ];
    let boot =
        status.phases.iter().map(|phase| (vec![("phase", phase.name.clone())], number(phase.ms) / 1000.0));
    let published = publish.map(|it| states(&none(), &PUBLISH_STATES, it.state, PublishState::as_str));
    let follow = status.follow.as_ref().map(|it| states(&none(), &Found::STATES, it.found.as_str(), |it| it));
    let changes = status.changes.iter().flat_map(|it| it.counts.named());
    let changes = changes
        .map(|(outcome, count)| (vec![("outcome", outcome.as_str().to_owned())], number(count)))
        .collect();
    let reached = network.map(|it| states(&none(), &NETWORK_STATES, it.state, NetworkState::as_str));
    let lease = network.and_then(|it| it.lease_s).map(|seconds| (none(), f64::from(seconds)));
    let certificate = status.certificate.as_ref().and_then(|it| it.expires_at);
    let certificate = certificate.map(|at| (none(), number(at.unix())));
    let lost = network.map(|it| (none(), f64::from(it.lost)));
    let release = publish.and_then(|it| it.expires_at).map(|at| (none(), number(at.unix())));
    #[expect(clippy::cast_precision_loss, reason = "an OpenMetrics value is a double")]
    let ahead = status.clock.as_ref().and_then(|clock| clock.ahead_s).map(|seconds| (none(), seconds as f64));
    vec![
        gauge("appliance", "What the appliance runs; always 1.", vec![(info, 1.0)]),
        gauge("boot_phase", "How long a stage of the boot took.", boot.collect()).in_unit(Unit::Seconds),
        gauge(
            "evidence_expiry_timestamp",
            "When the evidence behind these figures ceases to hold, since the Unix epoch.",
            vec![(none(), number(expires))],
        )
        .in_unit(Unit::Seconds),
        gauge(
            "publish_state",
            "Whether the release attestation is published.",
            published.unwrap_or_default(),
        ),
        gauge(
            "follow_state",
            "What the head of the followed branch is to what runs.",
            follow.unwrap_or_default(),
        ),
        counter("changes", "Declarations that were to take the place of what ran, since the boot.", changes),
        gauge(
            "release_expiry_timestamp",
            "When the published attestation ceases to hold, since the Unix epoch.",
            release.into_iter().collect(),
        )
        .in_unit(Unit::Seconds),
        gauge(
            "certificate_expiry_timestamp",
            "When the certificate that browsers accept ceases to hold, since the Unix epoch.",
            certificate.into_iter().collect(),
        )
        .in_unit(Unit::Seconds),
        gauge("network_state", "Whether there is an address.", reached.unwrap_or_default()),
        gauge("network_lease", "For how long the address was leased.", lease.into_iter().collect())
            .in_unit(Unit::Seconds),
        counter(
            "network_leases_lost",
            "Leases that were lost since the role started.",
            lost.into_iter().collect(),
        ),
        gauge(
            "clock_ahead",
            "How far the clock is ahead of what most servers say; negative when it is behind.",
            ahead.into_iter().collect(),
        )
        .in_unit(Unit::Seconds),
    ]
}

fn front(front: &FrontStatus) -> Vec<Family> {
    let one = |value: u64| vec![(Labels::new(), number(value))];
    let refused = front.refused.iter();
    let refused = refused.map(|(why, count)| (vec![("reason", why.as_str().to_owned())], number(*count)));
    vec![
        counter("connections", "Connections that the front accepted.", one(front.connections)),
        gauge("connections_open", "Those that are there now.", one(front.open)),
        counter(
            "refused",
            "How often somebody did not get from the front what they came for.",
            refused.collect(),
        ),
        counter("quotes", "Quotes for those who brought a nonce.", one(front.quotes)),
        counter("evidence_documents", "How many of those were answered with them.", one(front.documents)),
    ]
}

fn store(store: &StoreStatus) -> Vec<Family> {
    let one = |value: u64| vec![(Labels::new(), number(value))];
    let bytes = gauge("store", "Bytes of the vault's store that are in use.", one(store.bytes));
    let limit = gauge("store_limit", "Bytes of the vault's store.", one(store.bytes_limit));
    vec![
        gauge("store_secrets", "Secrets in the vault.", one(store.secrets)),
        bytes.in_unit(Unit::Bytes),
        limit.in_unit(Unit::Bytes),
    ]
}

fn roles(status: &StatusReply) -> Vec<Family> {
    let roles = status.roles.as_deref().unwrap_or_default();
    let named = |name: &str| vec![("role", name.to_owned())];
    let running = roles.iter().map(|role| (named(&role.name), flag(role.state == RoleState::Running)));
    let restarts = roles.iter().map(|role| (named(&role.name), f64::from(role.restarts)));
    let memory = roles.iter().filter_map(|role| Some((named(&role.name), number(role.memory?))));
    vec![
        gauge("role_running", "Whether a role of the appliance runs.", running.collect()),
        counter("role_restarts", "How often a role was started again.", restarts.collect()),
        gauge("role_memory", "Memory that is charged to a role.", memory.collect()).in_unit(Unit::Bytes),
    ]
}

fn services(services: &[NamedService]) -> Vec<Family> {
    let named = |service: &NamedService| vec![("service", service.name.clone())];
    let each = |value: &dyn Fn(&NamedService) -> Option<f64>| -> Vec<(Labels, f64)> {
        services.iter().filter_map(|service| Some((named(service), value(service)?))).collect()
    };
    let usage = |value: fn(&Usage) -> f64| each(&|service| service.usage.as_ref().map(value));
    let state = services
        .iter()
        .flat_map(|service| states(&named(service), &SERVICE_STATES, service.state, ServiceState::as_str));
    vec![
        gauge("service_state", "Where a service is on its way.", state.collect()),
        gauge(
            "service_healthy",
            "Whether the last probes of a service say so; of those alone that are probed.",
            each(&|service| service.health.as_ref().map(|it| flag(it.state == HealthState::Healthy))),
        ),
        counter(
            "service_restarts",
            "How often a workload was started again.",
            each(&|service| service.restarts.map(f64::from)),
        ),
        gauge(
            "service_exit_code",
            "How a workload last ended; 128 and the number of a signal.",
            each(&|service| service.exit_code.map(f64::from)),
        ),
        gauge("service_memory", "Memory of image and workload.", usage(|it| number(it.memory)))
            .in_unit(Unit::Bytes),
        gauge("service_memory_limit", "The most of it.", usage(|it| number(it.memory_limit)))
            .in_unit(Unit::Bytes),
        gauge("service_processes", "Processes and threads.", usage(|it| number(it.processes))),
        gauge("service_processes_limit", "The most of them.", usage(|it| number(it.processes_limit))),
        counter("service_cpu", "Processor time since the boot.", usage(|it| number(it.cpu_ms) / 1000.0))
            .in_unit(Unit::Seconds),
        counter(
            "service_egress_denied",
            "What a service wanted outside and did not get, since the role `egress` started.",
            each(&|service| service.egress.as_ref().map(|it| number(it.denied))),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use cofferdam_protocol::json;

    use super::*;

    #[test]
    fn a_status_becomes_text_of_openmetrics() {
        let zero = "00".repeat(48);
        let registers = ["mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"];
        let registers = registers.map(|name| format!("{name:?}:{zero:?}")).join(",");
        let status = format!(
            r#"{{"repository":"acme/shop","commit":"{commit}","declaration":"sha256:{digest}","endpoint":"192.0.2.1:443",
            "image":{{"name":"x","release":"0.1.0","digests":{{}}}},"state":"sealed","registers":{{{registers}}},"phases":[{{"name":"mount","ms":30}}],
            "phase":"supervise","roles":[{{"name":"vault","pid":7,"restarts":2,"state":"running","memory":4096}}],"services":[
            {{"name":"web","state":"running","restarts":1,"usage":{{"memory":1048576,"memory_limit":2097152,"processes":3,"processes_limit":9,"cpu_ms":1500}},
            "health":{{"state":"unhealthy","failures":3}}}},{{"name":"db","state":"failed"}}],
            "store":{{"secrets":3,"bytes":40960,"bytes_limit":268435456}},
            "publish":{{"state":"published","at":"2026-01-01T00:00:00Z","expires_at":"2026-01-02T00:00:00Z"}},
            "follow":{{"branch":"main","found":{{"state":"current","commit":"{commit}"}},"at":"2026-01-01T00:00:00Z"}},
            "changes":{{"counts":{{"applied":2,"refused":1,"rolled-back":0}},"changes":[]}},
            "front":{{"connections":9,"open":2,"refused":{{"handshake":4,"not-allowed":1}},"quotes":3,"documents":700}}}}"#,
            commit = "a".repeat(40),
            digest = "b".repeat(64),
        );
        let status: StatusReply = json::from_json(status.as_bytes(), 65536).unwrap();
        let text = text(&status, 1_767_225_600).unwrap();
        for line in [
            "cofferdam_connections_total 9.0",
            "cofferdam_connections_open 2.0",
            r#"cofferdam_refused_total{reason="handshake"} 4.0"#,
            "cofferdam_quotes_total 3.0",
            "cofferdam_store_secrets 3.0",
            "cofferdam_store_bytes 40960.0",
            "cofferdam_store_limit_bytes 268435456.0",
            "cofferdam_evidence_documents_total 700.0",
            r#"cofferdam_service_state{service="web",state="running"} 1.0"#,
            r#"cofferdam_service_state{service="db",state="running"} 0.0"#,
            r#"cofferdam_service_state{service="db",state="failed"} 1.0"#,
            r#"cofferdam_service_healthy{service="web"} 0.0"#,
            r#"cofferdam_service_restarts_total{service="web"} 1.0"#,
            r#"cofferdam_service_memory_bytes{service="web"} 1048576.0"#,
            r#"cofferdam_service_cpu_seconds_total{service="web"} 1.5"#,
            r#"cofferdam_role_memory_bytes{role="vault"} 4096.0"#,
            r#"cofferdam_role_restarts_total{role="vault"} 2.0"#,
            r#"cofferdam_publish_state{state="published"} 1.0"#,
            r#"cofferdam_follow_state{state="current"} 1.0"#,
            r#"cofferdam_follow_state{state="newer"} 0.0"#,
            r#"cofferdam_changes_total{outcome="applied"} 2.0"#,
            r#"cofferdam_changes_total{outcome="rolled-back"} 0.0"#,
            "cofferdam_release_expiry_timestamp_seconds 1767312000.0",
            r#"cofferdam_boot_phase_seconds{phase="mount"} 0.03"#,
            "# TYPE cofferdam_service_cpu_seconds counter",
            "# UNIT cofferdam_service_memory_bytes bytes",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
        let documented = include_str!("../../../../../docs/operating.md");
        for line in text.lines() {
            let Some(name) = line.strip_prefix("# TYPE cofferdam_").and_then(|rest| rest.split(' ').next())
            else {
                continue;
            };
            assert!(documented.contains(&format!("`{name}")), "docs/operating.md does not have {name}");
        }
        assert!(!text.contains("clock_ahead"), "what is not known has no row: {text}");
    }
}
