//! Why somebody could not be reached, and what to try.
//!
//! Responsible for telling the kinds of unreachable apart, from the errors of the system, of TLS and of HTTP, and for one hint
//! for each. That the exit code is "could not check" is decided elsewhere, and no kind changes it.

use std::error::Error;
use std::io;

use cofferdam_github::{Client, GithubError};
use cofferdam_protocol::Endpoint;

/// Where proxies are named (as the HTTP client reads them).
const PROXIES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// What stood in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// The name has no address, or nobody could be asked for it.
    Name,
    /// The machine answers, and nothing listens on that port.
    Closed,
    /// There is no way there from here.
    NoRoute,
    /// No answer at all.
    Silent,
    /// The proxy in between does not answer, or refuses.
    Proxy,
    /// What answers shows a certificate that is not trusted.
    Certificate,
    /// What answers does not speak our TLS.
    Tls,
    /// The connection was cut, or something else.
    Cut,
}

impl Obstacle {
    /// The kind of `error`, which one of its sources names.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = Self::named_by(error) {
                return found;
            }
            next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                // Its source would leave out the error that it was made of.
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        Self::Cut
    }

    fn named_by(error: &(dyn Error + 'static)) -> Option<Self> {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            let certificate = matches!(error, rustls::Error::InvalidCertificate(_));
            return Some(if certificate { Self::Certificate } else { Self::Tls });
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return match error.kind() {
                io::ErrorKind::ConnectionRefused => Some(Self::Closed),
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Some(Self::NoRoute),
                io::ErrorKind::TimedOut => Some(Self::Silent),
                // The standard library has no kind for it.
                _ if error.to_string().starts_with("failed to lookup address") => Some(Self::Name),
                _ => None,
            };
        }
        let text = error.to_string();
        text.starts_with("tunnel error").then_some(Self::Proxy)
    }
}

/// What to try where GitHub, as `client` knows it, gave no answer; `None` where it did.
pub(crate) fn github_hint(error: &GithubError, client: &Client) -> Option<String> {
    let host = client.host();
    let obstacle = match error {
        GithubError::Unreachable(error) => Obstacle::of(error),
        GithubError::Timeout => Obstacle::Silent,
        GithubError::Server { .. } => return Some(format!("{host} has an outage: try again in a while")),
        _ => return None,
    };
    let named = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let proxy = PROXIES.into_iter().find(named).filter(|_| client.heeds_proxies());
    Some(hint_for_github(obstacle, host, proxy))
}

/// `proxy` is the variable that names one, where requests go out by it.
fn hint_for_github(obstacle: Obstacle, host: &str, proxy: Option<&str>) -> String {
    match (obstacle, proxy) {
        (Obstacle::Proxy, proxy) => {
            let proxy = proxy.map(|name| format!(" in {name}")).unwrap_or_default();
            format!(
                "does the proxy{proxy} run, does it let {host}:443 through, and does it want a password? NO_PROXY={host} goes around it"
            )
        }
        (Obstacle::Silent, Some(proxy)) => {
            format!("{proxy} is set: does that proxy run? NO_PROXY={host} goes around it")
        }
        (Obstacle::Silent, None) => {
            format!("does a firewall let HTTPS to {host} out? Behind a proxy, set HTTPS_PROXY")
        }
        (Obstacle::Name, _) => format!(
            "is this machine on the network? `getent hosts {host}` shows whether the name resolves; behind a proxy, set HTTPS_PROXY"
        ),
        (Obstacle::Closed, _) => {
            format!("nothing listens at {host}: is --github-api right, and does a firewall let HTTPS out?")
        }
        (Obstacle::NoRoute, _) => format!("there is no route to {host}: is this machine on the network?"),
        (Obstacle::Certificate, _) => {
            "a server or a proxy with an authority of its own: name that one with --github-ca; else check this machine's clock".to_owned()
        }
        (Obstacle::Tls, _) => {
            format!("what answers for {host} does not speak TLS: is a proxy or a portal in between?")
        }
        (Obstacle::Cut, _) => format!("the connection to {host} was cut: try again"),
    }
}

/// What to try where an appliance's `endpoint` gave no answer.
pub(crate) fn endpoint_hint(obstacle: Obstacle, endpoint: &Endpoint) -> String {
    let host = endpoint.host();
    match obstacle {
        Obstacle::Name => {
            format!("is the endpoint spelled right? `getent hosts {host}` shows whether its name resolves here")
        }
        Obstacle::Closed => {
            "the machine is there and nothing listens on that port: does the appliance run, and is the port passed on to it?".to_owned()
        }
        Obstacle::NoRoute => {
            format!("there is no route to {host}: is this machine on the network, or on that one's?")
        }
        Obstacle::Silent | Obstacle::Proxy => {
            format!("{host} does not answer: is it up, and does a firewall let that port through?")
        }
        Obstacle::Tls | Obstacle::Certificate | Obstacle::Cut => {
            "the appliance may have no attested certificate yet (try again in a minute), or something else listens there".to_owned()
        }
    }
}

#[cfg(test)]
#[path = "reach_tests.rs"]
mod tests;
