//! What happened, of all rings (`system/ring`), in the order in which it did.
//!
//! An entry says nothing about who wrote it: that is where its ring lies. What is no entry is passed over.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use axum::body::Body;
use axum::http::{Response, StatusCode};
use cofferdam_protocol::events::{Entry, Event};
use cofferdam_protocol::json;
use cofferdam_protocol::operator::{EventsQuery, JSON_LINES, MAX_EVENTS};

use super::{reply as replies, untrusted_file};
use crate::paths;
use crate::roles::facts::ServiceFacts;
use crate::roles::{EGRESS, NETWORK, PUBLISH, SHIM, VAULT, egress, vault};
use crate::system::console::since_boot;
use crate::system::ring;

/// A ring, and whose it is.
#[derive(Debug)]
pub(crate) struct Source {
    role: &'static str,
    service: Option<String>,
    path: PathBuf,
}

impl Source {
    pub(crate) fn new(role: &'static str, service: Option<&str>, path: PathBuf) -> Self {
        Self { role, service: service.map(str::to_owned), path }
    }
}

/// All rings of an appliance with these services.
pub(crate) fn sources(services: &[ServiceFacts]) -> Vec<Source> {
    let own =
        |role: &'static str, directory: &str| Source::new(role, None, Path::new(directory).join("events"));
    let mut all = vec![
        Source::new("init", None, PathBuf::from(paths::EVENTS)),
        own(NETWORK.name(), paths::NETWORK_DIR),
        Source::new(VAULT.name(), None, PathBuf::from(paths::VAULT_EVENTS)),
        own(PUBLISH.name(), paths::PUBLISH_DIR),
    ];
    for service in services {
        let name = Some(service.declared.name.as_str());
        all.push(Source::new(SHIM.name(), name, service.events()));
        let asked = vault::ring(Path::new(paths::VAULT_EVENTS), &service.declared.name);
        all.push(Source::new(VAULT.name(), name, asked));
        let denied = egress::status(Path::new(paths::EGRESS_DIR), &service.declared.name);
        all.push(Source::new(EGRESS.name(), name, egress::ring(&denied)));
    }
    all
}

/// The latest of them, the oldest first. Each ring has an equal part of the answer, so that what happens often in one takes nothing
/// of another's.
pub(crate) fn reply(sources: &[Source], query: Option<&str>) -> Response<Body> {
    let now = u64::try_from(since_boot().as_millis()).unwrap_or(u64::MAX);
    let since = match EventsQuery::parse(query) {
        Ok(EventsQuery::All) => 0,
        Ok(EventsQuery::Since(moment)) => moment,
        Ok(EventsQuery::Last(span)) => now.saturating_sub(span),
        Err(reason) => {
            let hint = "ask with ?since=MILLISECONDS of the machine's uptime, or ?last=MILLISECONDS";
            return replies::error(StatusCode::BAD_REQUEST, reason, Some(hint));
        }
    };
    let share = MAX_EVENTS.checked_div(sources.len()).unwrap_or_default();
    let mut lines: Vec<Line> = sources
        .iter()
        .enumerate()
        .flat_map(|(index, source)| told(index, source, since..=now, share))
        .collect();
    lines.sort_unstable_by_key(|line| (line.up_ms, line.source, line.number));
    let body = lines.into_iter().map(|line| line.text).collect::<Vec<_>>().concat();
    replies::typed(StatusCode::OK, body, JSON_LINES)
}

/// A line of the answer, and where it belongs.
struct Line {
    up_ms: u64,
    source: usize,
    number: u64,
    text: Vec<u8>,
}

/// The last entries of one ring in this time, as far as they fit into so many bytes, the latest first.
fn told(index: usize, source: &Source, time: RangeInclusive<u64>, share: usize) -> Vec<Line> {
    // The older file last: if the ring goes on in between, entries are seen twice instead of not at all.
    let files = [source.path.clone(), ring::previous(&source.path)];
    let (mut lines, mut size): (Vec<Line>, usize) = (Vec::new(), 0);
    for path in files {
        let bytes = untrusted_file::part(&path, None, ring::READ).map(|part| part.bytes).unwrap_or_default();
        for entry in bytes.rsplit(|byte| *byte == b'\n').filter_map(|line| Entry::parse(line).ok()) {
            let Entry { number, at, up_ms, event } = entry;
            if up_ms < *time.start() {
                return lines;
            }
            // Later than now is nothing that happened: it would hide from whoever goes on after it what others tell.
            if up_ms > *time.end() || lines.last().is_some_and(|later| later.number <= number) {
                continue;
            }
            let (role, service) = (source.role.to_owned(), source.service.clone());
            let Ok(mut text) = json::to_vec(&Event { role, service, number, at, up_ms, event }) else {
                continue;
            };
            text.push(b'\n');
            size = size.saturating_add(text.len());
            if size > share {
                return lines;
            }
            lines.push(Line { up_ms, source: index, number, text });
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use cofferdam_protocol::events::Happened;

    use super::*;
    use crate::system::ring::Ring;

    async fn answered(sources: &[Source], query: Option<&str>) -> Vec<Event> {
        let response = reply(sources, query);
        assert_eq!(response.status(), StatusCode::OK);
        let body = axum::body::to_bytes(response.into_body(), 1 << 30).await.unwrap();
        let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| Event::parse(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn events_come_in_order_with_whose_they_are_and_whatever_else_a_role_writes_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let sources = [
            Source::new("vault", None, path("vault")),
            Source::new("shim", Some("web"), path("web")),
            Source::new("shim", Some("db"), path("none")),
        ];
        let (vault, web) = (Ring::at(path("vault")), Ring::at(path("web")));
        for count in 0..900 {
            let ring = if count % 3 == 0 { &vault } else { &web };
            ring.tell(Happened::Refused { count });
            if count % 100 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
        let all = answered(&sources, None).await;
        let moments: Vec<u64> = all.iter().map(|event| event.up_ms).collect();
        assert!(moments.is_sorted() && all.len() > 600, "{}", all.len());
        let of = |service: Option<&'static str>| {
            all.iter().filter(move |event| event.service.as_deref() == service)
        };
        assert_eq!(of(None).count(), 300);
        assert!(of(None).all(|event| event.role == "vault"));
        assert_eq!(of(Some("web")).next_back().unwrap().number, 600);
        // From a moment on, and what is no entry, a link and a directory say nothing.
        let last = all.last().unwrap().up_ms;
        let late = answered(&sources, Some(&format!("since={last}"))).await;
        assert!(!late.is_empty() && late.iter().all(|event| event.up_ms == last));
        assert_eq!(answered(&sources, Some("last=86400000")).await.len(), all.len());
        std::fs::write(path("web"), b"{\"number\":1}\n\xff\n[]\nhalf").unwrap();
        std::fs::remove_file(path("web.1")).ok();
        std::os::unix::fs::symlink(path("vault"), path("none")).unwrap();
        assert_eq!(answered(&sources, None).await.len(), 300);
        let refused = reply(&sources, Some("since=x"));
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    }

    #[tokio::test]
    async fn a_role_that_has_fallen_hides_nothing_of_another_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: String| folder.path().join(name);
        // As many rings as there may be, all but one full to the brim.
        let services: Vec<String> =
            (0..3 * cofferdam_declaration::MAX_SERVICES).map(|n| format!("s{n}")).collect();
        let mut sources = vec![Source::new("vault", None, path("vault".into()))];
        let mut full = Vec::new();
        while full.len() < 32 << 10 {
            let number = full.len() + 1;
            let line = format!(
                "{{\"number\":{number},\"at\":\"2026-01-02T03:04:05.678Z\",\"up_ms\":2,\"event\":{{\"kind\":\"refused\",\"count\":1}}}}\n"
            );
            full.extend_from_slice(line.as_bytes());
        }
        for service in &services {
            std::fs::write(path(service.clone()), &full).unwrap();
            std::fs::write(ring::previous(&path(service.clone())), &full).unwrap();
            sources.push(Source::new("shim", Some(service), path(service.clone())));
        }
        let early = full.iter().position(|byte| *byte == b'\n').unwrap();
        let early = String::from_utf8(full[..=early].to_vec()).unwrap().replace("\"up_ms\":2", "\"up_ms\":1");
        std::fs::write(path("vault".into()), early).unwrap();
        let all = answered(&sources, None).await;
        assert_eq!((all[0].role.as_str(), all[0].up_ms), ("vault", 1));
        for service in &services {
            assert!(all.iter().filter(|event| event.service.as_ref() == Some(service)).count() > 50);
        }
        // What is said to happen later than now would be the last for ever.
        let late = String::from_utf8(full[..150].to_vec()).unwrap();
        let late = late.lines().next().unwrap().replace("\"up_ms\":2", &format!("\"up_ms\":{}", u64::MAX));
        std::fs::write(path("s0".into()), format!("{late}\n")).unwrap();
        std::fs::remove_file(ring::previous(&path("s0".into()))).unwrap();
        let all = answered(&sources, None).await;
        assert!(all.iter().all(|event| event.up_ms <= 2));
    }
}
