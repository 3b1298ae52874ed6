//! Where a service may connect to outside of the appliance: names and ports, never addresses.
//!
//! A name is a name of the DNS with at least one dot, so that it is never a service's own. `*.` at its beginning stands for one
//! label, as in a certificate. What is reached there is TLS with this very name, unless the entry says `/tcp`.

use std::fmt;
use std::str::FromStr;

use cofferdam_protocol::{WordError, parse_port, shorten};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::diagnostics::{Collector, Place};
use crate::fields;
use crate::model::Membership;
use crate::read::{bounded, collect};
use crate::yaml::Node;

/// Entries of one service.
pub const MAX_EGRESS: usize = 64;
/// Different ports of one service: each is a listener that the appliance keeps for it.
pub const MAX_EGRESS_PORTS: usize = 16;
/// A name of the DNS (RFC 1035 §2.3.4, without the root's dot) and one of its labels.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;
const WILDCARD: &str = "*.";

/// One destination: `api.example.org:443`, `*.example.org:443`, `db.example.net:5432/tcp`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Egress {
    /// In lower case; with `*.` before it for all names of one label more.
    name: String,
    port: u16,
    carries: Carries,
}

/// What passes to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Carries {
    /// TLS whose server name is the destination's.
    Tls,
    /// Any bytes.
    Tcp,
}

impl Egress {
    /// The port, 1 to 65535.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What passes.
    pub fn carries(&self) -> Carries {
        self.carries
    }

    /// Whether it stands for all names of one label more than it has.
    pub fn is_wildcard(&self) -> bool {
        self.name.starts_with(WILDCARD)
    }

    /// Whether a name in lower case is this destination's.
    pub fn covers(&self, name: &str) -> bool {
        match self.name.strip_prefix(WILDCARD) {
            None => self.name == name,
            Some(parent) => {
                name.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent)
            }
        }
    }
}

/// Whether a text is a host name in lower case with at least one dot that no resolver takes for an address (RFC 1123 §2.1): what a
/// destination can be called.
pub fn is_destination(text: &str) -> bool {
    let label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x");
    text.len() <= MAX_NAME && text.contains('.') && text.split('.').all(label) && !number
}

impl FromStr for Egress {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let wrong = |why: &str| {
            WordError::new(format!("not a destination: {why}"))
                .hint("write the name and the port, for example api.example.org:443, or db.example.net:5432/tcp without TLS")
        };
        if text.contains("://") {
            return Err(wrong("it is a URL"));
        }
        let (rest, carries) = match text.split_once('/') {
            None => (text, Carries::Tls),
            Some((rest, "tcp")) => (rest, Carries::Tcp),
            Some((_, "udp")) => {
                return Err(WordError::new("no UDP leaves the appliance")
                    .hint("leave `/udp` out: what speaks QUIC speaks TLS over TCP too"));
            }
            Some(_) => return Err(wrong("after the `/` comes `tcp` or nothing")),
        };
        let (name, port) = rest.rsplit_once(':').ok_or_else(|| wrong("there is no port"))?;
        let port = parse_port(port).map_err(|error| wrong(&error.message))?;
        if name.parse::<std::net::Ipv4Addr>().is_ok() || name.contains([':', '[']) {
            return Err(WordError::new("a destination is a name, and this is an address")
                .hint("write the server's name: an address is shared by many, and moves"));
        }
        if name.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(wrong("the name has upper-case letters"));
        }
        let parent = name.strip_prefix(WILDCARD);
        if parent.unwrap_or(name).contains('*') {
            return Err(WordError::new("`*` stands for the whole first label of a name")
                .hint("write *.example.org:443 for all names of one label more"));
        }
        if parent.is_some_and(|parent| !parent.contains('.')) {
            return Err(wrong("behind `*.` there are at least two labels"));
        }
        if !name.contains('.') {
            return Err(WordError::new(format!(
                "`{}` is no name of the DNS: there is no dot in it",
                shorten(name, 64)
            ))
            .hint("services of one network reach each other without `egress`"));
        }
        if name.len() > MAX_NAME || !is_destination(parent.unwrap_or(name)) {
            return Err(wrong("the name is not a host name in lower case"));
        }
        Ok(Self { name: name.to_owned(), port, carries })
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.port)?;
        match self.carries {
            Carries::Tls => Ok(()),
            Carries::Tcp => f.write_str("/tcp"),
        }
    }
}

impl Serialize for Egress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Egress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Reads a service's `egress`.
pub(crate) fn read(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<Egress>> {
    let items = fields::list(node, "`egress`", errors)?;
    bounded(node, items.len(), MAX_EGRESS, "destinations", errors)?;
    let read: Option<Vec<(Egress, Place)>> =
        collect(items.iter().map(|item| Some((fields::parse(item, "a destination", errors)?, item.place))));
    let mut known: Vec<Egress> = Vec::new();
    let mut ports = std::collections::BTreeSet::new();
    for (egress, place) in read? {
        if known.iter().any(|other| (&other.name, other.port) == (&egress.name, egress.port)) {
            errors.error(place, format!("{}:{} is given twice", egress.name, egress.port));
            return None;
        }
        ports.insert(egress.port);
        if ports.len() > MAX_EGRESS_PORTS {
            errors.error(place, format!("more than {MAX_EGRESS_PORTS} different ports of destinations"));
            return None;
        }
        known.push(egress);
    }
    Some(known)
}

/// A service without a network has no way to one.
pub(crate) fn needs_a_network(
    node: Option<&Node>,
    egress: &[Egress],
    networks: &[Membership],
    errors: &mut Collector<'_>,
) -> Option<()> {
    let Some(node) = node.filter(|_| networks.is_empty() && !egress.is_empty()) else { return Some(()) };
    errors.hinted(node.place, "`egress` stands beside `network_mode: none`", "remove one of the two");
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_reads_back_as_it_was_written() {
        for text in [
            "api.openai.com:443",
            "*.example.org:443",
            "db.example.net:5432/tcp",
            "xn--bcher-kva.example:8443",
        ] {
            assert_eq!(text.parse::<Egress>().unwrap().to_string(), text);
        }
        let raw: Egress = "db.example.net:5432/tcp".parse().unwrap();
        assert_eq!((raw.port(), raw.carries()), (5432, Carries::Tcp));
        assert_eq!("api.openai.com:443".parse::<Egress>().unwrap().carries(), Carries::Tls);
    }

    #[test]
    fn what_is_no_name_with_a_port_is_refused() {
        let long = format!("{}.org:443", "a".repeat(64));
        for (text, why) in [
            ("https://api.example.org:443", "it is a URL"),
            ("api.example.org", "there is no port"),
            ("api.example.org:0", "1 to 65535"),
            ("api.example.org:https", "1 to 65535"),
            ("api.example.org:443/udp", "no UDP"),
            ("api.example.org:443/v1", "after the `/`"),
            ("API.example.org:443", "upper-case"),
            ("203.0.113.7:443", "this is an address"),
            ("[2001:db8::1]:443", "this is an address"),
            ("2001:db8::1:443", "this is an address"),
            ("0x7f.1:443", "not a host name"),
            ("api.0x7f:443", "not a host name"),
            ("1.2.3:443", "not a host name"),
            ("localhost:443", "no dot"),
            ("db:5432/tcp", "no dot"),
            ("*:443", "the whole first label"),
            ("*.org:443", "at least two labels"),
            ("api.*.org:443", "the whole first label"),
            ("a*.example.org:443", "the whole first label"),
            ("*.*.example.org:443", "the whole first label"),
            ("-a.example.org:443", "not a host name"),
            ("a..example.org:443", "not a host name"),
            ("example.org.:443", "not a host name"),
            ("a_b.example.org:443", "not a host name"),
            ("bücher.example:443", "not a host name"),
            (&long, "not a host name"),
            (":443", "no dot"),
            ("", "there is no port"),
        ] {
            let error = text.parse::<Egress>().unwrap_err();
            assert!(error.message.contains(why), "{text}: {}", error.message);
        }
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        let covers = |text: &str, name: &str| text.parse::<Egress>().unwrap().covers(name);
        assert!(covers("*.example.org:443", "api.example.org"));
        for name in
            ["example.org", "a.b.example.org", ".example.org", "apiexample.org", "api.example.org.evil.net"]
        {
            assert!(!covers("*.example.org:443", name), "{name}");
        }
        assert!(covers("api.example.org:443", "api.example.org"));
        assert!(!covers("api.example.org:443", "x.api.example.org"));
    }
}
