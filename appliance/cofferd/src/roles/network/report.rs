//! `network/status.json`, and the same on the console when it is news.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::SystemTime;

use cofferdam_protocol::events::{self, Happened};
use cofferdam_protocol::network::{Ipv4Settings, NetworkState, NetworkStatus};
use cofferdam_protocol::{Timestamp, json};

use crate::system::files;
use crate::system::ring::Ring;

/// Bound on the detail in characters.
const MAX_DETAIL: usize = 240;

/// The status with the file that shows it.
#[derive(Debug)]
pub(super) struct Report {
    path: PathBuf,
    status: NetworkStatus,
    events: Ring,
}

impl Report {
    /// Nothing is known yet.
    pub(super) fn new(path: PathBuf) -> Self {
        let status = NetworkStatus {
            state: NetworkState::Asking,
            detail: None,
            settings: None,
            server: None,
            lease_s: None,
            lost: 0,
            since: now(),
        };
        let events = Ring::at(path.with_file_name("events"));
        Self { path, status, events }
    }

    /// There is no address, and why.
    pub(super) fn none(&mut self, why: &str) {
        let (state, lost) = match self.status.state {
            NetworkState::Leased => (NetworkState::Lost, self.status.lost.saturating_add(1)),
            state => (state, self.status.lost),
        };
        let detail: String = why.chars().filter(|c| !c.is_control()).take(MAX_DETAIL).collect();
        let detail = Some(detail);
        self.say(NetworkStatus {
            state,
            detail,
            settings: None,
            server: None,
            lease_s: None,
            lost,
            since: now(),
        });
    }

    /// There is one, for so many seconds.
    pub(super) fn leased(&mut self, settings: Ipv4Settings, server: Ipv4Addr, seconds: u32) {
        self.say(NetworkStatus {
            state: NetworkState::Leased,
            detail: None,
            settings: Some(settings),
            server: Some(server),
            lease_s: Some(seconds),
            lost: self.status.lost,
            since: now(),
        });
    }

    /// There is the one that the host has set.
    pub(super) fn set_by_the_host(&mut self, settings: Ipv4Settings) {
        let (state, settings) = (NetworkState::Static, Some(settings));
        self.say(NetworkStatus {
            state,
            detail: None,
            settings,
            server: None,
            lease_s: None,
            lost: 0,
            since: now(),
        });
    }

    /// Takes over what is new, and when that is.
    fn say(&mut self, status: NetworkStatus) {
        let same = NetworkStatus { since: status.since, ..self.status.clone() } == status;
        if !same {
            println!("network: {}", line(&status));
            let address = status.settings.as_ref().map(|settings| events::bounded(&settings.to_string()));
            let detail = status.detail.as_deref().map(events::bounded);
            self.events.tell(Happened::Address { address, detail });
            self.status = status;
        }
        let written = json::to_vec(&self.status).map_err(io::Error::other);
        if let Err(error) = written.and_then(|bytes| files::replace(&self.path, &bytes)) {
            eprintln!("network: cannot write {}: {error}", self.path.display());
        }
    }
}

fn line(status: &NetworkStatus) -> String {
    let mut line = status.state.as_str().to_owned();
    if let Some(settings) = &status.settings {
        line = format!("{line}: {settings}");
    }
    if let (Some(server), Some(seconds)) = (status.server, status.lease_s) {
        line = format!("{line}, from the DHCP server {server} for {seconds} s");
    }
    match &status.detail {
        Some(detail) => format!("{line}: {detail}"),
        None => line,
    }
}

fn now() -> Timestamp {
    Timestamp::from_clock(SystemTime::now()).unwrap_or(Timestamp::EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_loss_and_return_are_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("status.json");
        let read = || NetworkStatus::parse(&std::fs::read(&path).unwrap()).unwrap();
        let settings: Ipv4Settings = "address=10.0.2.15/24 gateway=10.0.2.2".parse().unwrap();
        let server = Ipv4Addr::new(10, 0, 2, 2);
        let mut report = Report::new(path.clone());
        report.none("no DHCP server gives an address\u{1b}[2J");
        let said = read();
        assert_eq!((said.state, said.lost), (NetworkState::Asking, 0));
        assert_eq!(said.detail.as_deref(), Some("no DHCP server gives an address[2J"));
        report.leased(settings.clone(), server, 60);
        let said = read();
        assert_eq!(
            (said.state, said.settings.as_ref(), said.lease_s),
            (NetworkState::Leased, Some(&settings), Some(60))
        );
        assert!(line(&said).contains("10.0.2.15/24") && line(&said).contains("for 60 s"));
        for _ in 0..3 {
            report.none("the DHCP server refuses the address (NAK)");
        }
        let said = read();
        assert_eq!((said.state, said.lost, said.settings), (NetworkState::Lost, 1, None));
        report.leased(settings, server, 60);
        report.none("the lease ran out and was not renewed");
        assert_eq!(read().lost, 2);
    }
}
