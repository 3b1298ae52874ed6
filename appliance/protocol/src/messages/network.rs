//! The appliance's IPv4 network: as the host may set it by hand, and as the role `network` says that it is.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::status::MAX_FILE;
use crate::json::{self, JsonError};
use crate::{Timestamp, WordError};

/// What a resolver configuration can hold (resolv.conf(5), MAXNS).
pub const MAX_RESOLVERS: usize = 3;
/// IPv6's minimum, so that TLS never crawls in tiny packets; and the largest that virtio carries unfragmented.
pub const MTU: std::ops::RangeInclusive<u16> = 1280..=9216;
/// Longest text of [`Ipv4Settings`] in bytes: every member at its longest is 123.
pub const MAX_TEXT: usize = 160;

/// An address with all that belongs to it.
///
/// Its text is `address=10.0.0.5/24 gateway=10.0.0.1 resolvers=10.0.0.2,10.0.0.3 mtu=1400`, of which all but the address may be left out:
/// in this order, each once, with one space between two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ipv4Settings {
    /// The appliance's own.
    pub address: Ipv4Addr,
    /// Bits of it that name the network, 8 to 32.
    pub prefix: u8,
    /// The way to everywhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Who is asked for names, at most [`MAX_RESOLVERS`].
    pub resolvers: Vec<Ipv4Addr>,
    /// Largest packet in bytes, within [`MTU`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

/// What is wrong with settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ipv4Error {
    /// The address.
    #[error("the address {0} is not one of a host")]
    Address(Ipv4Addr),
    /// The prefix.
    #[error("the prefix {0} is not 8 to 32 bits long")]
    Prefix(u8),
    /// The gateway.
    #[error("the gateway {0} is not the address of another host")]
    Gateway(Ipv4Addr),
    /// A resolver.
    #[error("the resolver {0} is not the address of a host")]
    Resolver(Ipv4Addr),
    /// Their number.
    #[error("there are more than {MAX_RESOLVERS} resolvers")]
    Resolvers,
    /// The MTU.
    #[error("the MTU {0} is not between {first} and {last}", first = MTU.start(), last = MTU.end())]
    Mtu(u16),
}

impl Ipv4Settings {
    /// Whether a machine can have them.
    ///
    /// # Errors
    /// The first that it cannot have.
    pub fn check(&self) -> Result<(), Ipv4Error> {
        if !is_host(self.address) {
            return Err(Ipv4Error::Address(self.address));
        }
        if !(8..=32).contains(&self.prefix) {
            return Err(Ipv4Error::Prefix(self.prefix));
        }
        if let Some(gateway) = self.gateway.filter(|gateway| !is_host(*gateway) || *gateway == self.address) {
            return Err(Ipv4Error::Gateway(gateway));
        }
        if let Some(resolver) = self.resolvers.iter().find(|resolver| !is_host(**resolver)) {
            return Err(Ipv4Error::Resolver(*resolver));
        }
        if self.resolvers.len() > MAX_RESOLVERS {
            return Err(Ipv4Error::Resolvers);
        }
        match self.mtu {
            Some(mtu) if !MTU.contains(&mtu) => Err(Ipv4Error::Mtu(mtu)),
            _ => Ok(()),
        }
    }

    /// Reads the file that PID 1 writes for the role.
    ///
    /// # Errors
    /// It is too large or not of this shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        json::from_json(bytes, MAX_FILE)
    }
}

/// An address that one machine on a network can have.
pub fn is_host(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    // 0/8 is "this network" (RFC 1122), 240/4 is reserved and ends with the broadcast address.
    first != 0 && first < 240 && !address.is_loopback() && !address.is_multicast() && !address.is_link_local()
}

impl fmt::Display for Ipv4Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address={}/{}", self.address, self.prefix)?;
        if let Some(gateway) = self.gateway {
            write!(f, " gateway={gateway}")?;
        }
        for (number, resolver) in self.resolvers.iter().enumerate() {
            write!(f, "{}{resolver}", if number == 0 { " resolvers=" } else { "," })?;
        }
        match self.mtu {
            Some(mtu) => write!(f, " mtu={mtu}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Ipv4Settings {
    type Err = WordError;

    /// Reads exactly what [`fmt::Display`] writes: a key that is unknown, repeated or out of order is refused, and so is a number with
    /// more than one way to write it.
    fn from_str(text: &str) -> Result<Self, WordError> {
        let settings = read(text).filter(|settings| text.len() <= MAX_TEXT && settings.to_string() == text);
        let settings = settings.ok_or_else(|| {
            WordError::new("not address=A.B.C.D/BITS [gateway=A.B.C.D] [resolvers=A.B.C.D,…] [mtu=BYTES]")
        })?;
        settings.check().map_err(|error| WordError::new(error.to_string()))?;
        Ok(settings)
    }
}

fn read(text: &str) -> Option<Ipv4Settings> {
    let mut settings = Ipv4Settings {
        address: Ipv4Addr::UNSPECIFIED,
        prefix: 0,
        gateway: None,
        resolvers: Vec::new(),
        mtu: None,
    };
    for word in text.split(' ') {
        match word.split_once('=')? {
            ("address", value) => {
                let (address, prefix) = value.split_once('/')?;
                (settings.address, settings.prefix) = (address.parse().ok()?, prefix.parse().ok()?);
            }
            ("gateway", value) => settings.gateway = Some(value.parse().ok()?),
            ("resolvers", value) => {
                settings.resolvers = value.split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
            }
            ("mtu", value) => settings.mtu = Some(value.parse().ok()?),
            _ => return None,
        }
    }
    Some(settings)
}

/// `network/status.json`, written by the role `network`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkStatus {
    /// Where it is.
    pub state: NetworkState,
    /// Why, in one line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What the interface has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<Ipv4Settings>,
    /// The DHCP server that gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Ipv4Addr>,
    /// For how long, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_s: Option<u32>,
    /// How often a lease was lost since the role started.
    pub lost: u32,
    /// Since when the state is what it is.
    pub since: Timestamp,
}

impl NetworkStatus {
    /// Reads the file.
    ///
    /// # Errors
    /// It is too large or not of this shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        json::from_json(bytes, MAX_FILE)
    }
}

/// Whether there is an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkState {
    /// None yet; a DHCP server is asked for one.
    Asking,
    /// There is one from a DHCP server.
    Leased,
    /// There was one; a DHCP server is asked for another.
    Lost,
    /// There is one that the host has set, and that is measured.
    Static,
}

impl NetworkState {
    /// The word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Asking => "asking",
            Self::Leased => "leased",
            Self::Lost => "lost",
            Self::Static => "static",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_one_text() {
        for text in [
            "address=10.0.0.5/24",
            "address=10.0.0.5/32 gateway=10.1.0.1",
            "address=10.0.0.5/24 gateway=10.0.0.1 resolvers=10.0.0.2 mtu=1400",
            "address=110.120.130.140/24 gateway=110.120.130.141 resolvers=110.120.130.142,110.120.130.143,110.120.130.144 mtu=9216",
        ] {
            let settings: Ipv4Settings = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(settings.to_string(), text);
        }
    }

    #[test]
    fn every_other_text_is_refused() {
        for text in [
            "",
            "10.0.0.5/24",
            "address=10.0.0.5",
            "address=10.0.0.5/24 ",
            " address=10.0.0.5/24",
            "address=10.0.0.5/24  mtu=1400",
            "address=10.0.0.5/024",
            "address=10.0.0.5/+24",
            "address=10.0.0.5/33",
            "address=10.0.0.5/7",
            "address=010.0.0.5/24",
            "address=127.0.0.1/8",
            "address=0.0.0.0/8",
            "address=224.0.0.1/8",
            "address=169.254.169.254/16",
            "address=255.255.255.255/32",
            "gateway=10.0.0.1",
            "gateway=10.0.0.1 address=10.0.0.5/24",
            "address=10.0.0.5/24 address=10.0.0.6/24",
            "address=10.0.0.5/24 gateway=10.0.0.1 gateway=10.0.0.2",
            "address=10.0.0.5/24 gateway=10.0.0.5",
            "address=10.0.0.5/24 gateway=127.0.0.1",
            "address=10.0.0.5/24 resolvers=",
            "address=10.0.0.5/24 resolvers=10.0.0.2,",
            "address=10.0.0.5/24 resolvers=127.0.0.53",
            "address=10.0.0.5/24 resolvers=1.1.1.1,2.2.2.2,3.3.3.3,4.4.4.4",
            "address=10.0.0.5/24 mtu=68",
            "address=10.0.0.5/24 mtu=01400",
            "address=10.0.0.5/24 mtu=99999",
            "address=10.0.0.5/24 routes=0.0.0.0/0",
            "address=10.0.0.5/24 ADDRESS=10.0.0.6/24",
            "address=fe80::1/64",
            "address=10.0.0.5/24\nmtu=1400",
        ] {
            assert!(text.parse::<Ipv4Settings>().is_err(), "{text:?}");
        }
    }
}
