//! Reading published ports, in Compose's short and long form.
//!
//! Compose publishes on the machine's addresses; here a port is open on the appliance's one. `127.0.0.1` stands for "not for
//! everybody": such a port is one for operators, whom `coffer connect` lets in at their own 127.0.0.1.

use cofferdam_protocol::{WordError, parse_port, shorten};

use crate::diagnostics::{Collector, Place};
use crate::fields::{self, Fields};
use crate::keys;
use crate::model::{Auth, Port, Speaks};
use crate::read::{bounded, collect};
use crate::yaml::{Kind, Node};

const MAX_PORTS: usize = 32;

/// Whom an address before a port lets in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Everywhere,
    Loopback,
}

/// Reads `ports`; a range is as many ports.
pub(crate) fn ports(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<(Port, Place)>> {
    let items = fields::list(node, "`ports`", errors)?;
    bounded(node, items.len(), MAX_PORTS, "ports", errors)?;
    let read = items.iter().map(|item| {
        let (ports, at) = match &item.kind {
            Kind::Map(_) => long(item, errors)?,
            _ => {
                let text = fields::text(item, "a port", errors)?;
                fields::checked(item, short(&text), errors)?
            }
        };
        if at == At::Loopback {
            errors.note(
                item.place,
                "a port at 127.0.0.1 is one for operators, at the appliance's address",
                "`coffer connect` opens it at an operator's own 127.0.0.1",
            );
        }
        Some(ports.into_iter().map(|port| (port, item.place)).collect::<Vec<_>>())
    });
    let ports: Vec<_> = collect(read)?.into_iter().flatten().collect();
    bounded(node, ports.len(), MAX_PORTS, "ports", errors)?;
    Some(ports)
}

fn only_tcp() -> WordError {
    WordError::new("only TCP ports can be published: clients reach them over TLS")
}

/// `[ADDRESS:]PUBLISHED:TARGET`, each a port or a range.
fn short(text: &str) -> Result<(Vec<Port>, At), WordError> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if protocol != "tcp" {
        return Err(only_tcp());
    }
    let Some((rest, target)) = ports.rsplit_once(':') else {
        let example = shorten(ports, 12);
        return Err(WordError::new("the port on the appliance is not given")
            .hint(format!("write \"PUBLISHED:{example}\", for example \"443:{example}\"")));
    };
    let (at, published) = match rest.rsplit_once(':') {
        Some((address, published)) => (at(address)?, published),
        None => (At::Everywhere, rest),
    };
    let (published, target) = (range(published)?, range(target)?);
    let pairs = pairs(published, target)?;
    let port = |(published, target)| Port {
        published,
        target,
        speaks: Speaks::Http,
        auth: Auth::Operators,
        redact_responses: false,
    };
    Ok((pairs.into_iter().map(port).collect(), at))
}

fn at(address: &str) -> Result<At, WordError> {
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    match bare {
        "127.0.0.1" | "::1" | "localhost" => Ok(At::Loopback),
        "0.0.0.0" | "::" => Ok(At::Everywhere),
        _ => Err(WordError::new("a port at an address of its own: the appliance has one address")
            .hint("write \"443:8080\"")),
    }
}

/// First and last.
fn range(text: &str) -> Result<(u16, u16), WordError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (parse_port(first)?, parse_port(last)?);
    if first > last {
        return Err(WordError::new("the range of ports ends before it begins"));
    }
    Ok((first, last))
}

fn pairs(published: (u16, u16), target: (u16, u16)) -> Result<Vec<(u16, u16)>, WordError> {
    if published.1 - published.0 != target.1 - target.0 {
        return Err(WordError::new("the two ranges of ports are not equally long")
            .hint("write as many ports on both sides, for example \"8000-8002:80-82\""));
    }
    Ok((published.0..=published.1).zip(target.0..=target.1).take(MAX_PORTS + 1).collect())
}

fn long(node: &Node, errors: &mut Collector<'_>) -> Option<(Vec<Port>, At)> {
    let fields = Fields::open(node, "a port", keys::PORT, &[], errors)?;
    let number = |key: &str, errors: &mut Collector<'_>| {
        let node = fields.require(key, "write {published: 443, target: 8080}", errors)?;
        let text = fields::text(node, "a port", errors)?;
        fields::checked(node, range(&text), errors).map(|range| (range, node))
    };
    let (published, target) = (number("published", errors), number("target", errors));
    if let Some(node) = fields.get("protocol")
        && fields::text(node, "`protocol`", errors)? != "tcp"
    {
        errors.value(node.place, only_tcp());
        return None;
    }
    let speaks = speaks(&fields, errors);
    let auth_node = fields.get("auth");
    let auth = auth_node.map_or(Some(Auth::Operators), |node| auth(node, errors));
    let redact_node = fields.get("redact_responses");
    let redact = redact_node.map_or(Some(false), |node| fields::boolean(node, "`redact_responses`", errors));
    let at = fields.get("host_ip").map_or(Some(At::Everywhere), |node| {
        let text = fields::text(node, "`host_ip`", errors)?;
        fields::checked(node, at(&text), errors)
    });
    for key in ["mode", "name"] {
        if let Some(node) = fields.get(key) {
            fields::text(node, &format!("`{key}`"), errors)?;
            errors.note(node.place, format!("`{key}` of a port has no effect"), "");
        }
    }
    let ((published, node), (target, _)) = (published?, target?);
    let pairs = fields::checked(node, pairs(published, target), errors)?;
    let (speaks, auth, redact_responses, at) = (speaks?, auth?, redact?, at?);
    if let (true, true, Some(node)) = (redact_responses, speaks != Speaks::Http, redact_node) {
        errors.hinted(
            node.place,
            "only answers in HTTP/1.1 are redacted",
            "remove `redact_responses`, or `app_protocol` and `tls`",
        );
        return None;
    }
    let refused = match (speaks, auth) {
        (Speaks::Tcp, Auth::Tokens) => Some("`tcp` has no place for a token"),
        (Speaks::Tls, Auth::Tokens | Auth::Operators) => {
            Some("nobody is asked who they are where TLS is passed through")
        }
        _ => None,
    };
    if let Some(message) = refused {
        let hint = match speaks {
            Speaks::Tls => "write `auth: none` if everybody may connect, or let TLS end here: remove `tls`",
            _ => "write `auth: operators`, for `coffer connect`, or `auth: none` if everybody may connect",
        };
        errors.hinted(auth_node.map_or(node.place, |node| node.place), message, hint);
        return None;
    }
    if let (At::Loopback, Auth::Tokens | Auth::None, Some(node)) = (at, auth, auth_node) {
        errors.hinted(
            node.place,
            "a port at 127.0.0.1 is one for operators, and this lets others in",
            "remove `host_ip`, or `auth`",
        );
        return None;
    }
    let port = |(published, target)| Port { published, target, speaks, auth, redact_responses };
    Some((pairs.into_iter().map(port).collect(), at))
}

/// `app_protocol` and `tls` together.
fn speaks(fields: &Fields<'_>, errors: &mut Collector<'_>) -> Option<Speaks> {
    let protocol = match fields.get("app_protocol") {
        None => Speaks::Http,
        Some(node) => match fields::text(node, "`app_protocol`", errors)?.as_str() {
            "http" => Speaks::Http,
            "h2c" => Speaks::H2c,
            "tcp" => Speaks::Tcp,
            _ => {
                errors.hinted(
                    node.place,
                    "not what a published port can carry",
                    "one of http (also without `app_protocol`), h2c (HTTP/2 without TLS, for gRPC), tcp (any bytes)",
                );
                return None;
            }
        },
    };
    let Some(node) = fields.get("tls") else { return Some(protocol) };
    match (fields::text(node, "`tls`", errors)?.as_str(), protocol) {
        ("terminate", _) => Some(protocol),
        ("passthrough", Speaks::Tcp) => Some(Speaks::Tls),
        ("passthrough", _) => {
            errors.hinted(
                node.place,
                "what is passed through is not read",
                "write `app_protocol: tcp` beside it",
            );
            None
        }
        _ => {
            errors.hinted(
                node.place,
                "not a way to end TLS",
                "one of terminate (also without `tls`: at the appliance, with the attested key), passthrough (at the service)",
            );
            None
        }
    }
}

fn auth(node: &Node, errors: &mut Collector<'_>) -> Option<Auth> {
    match fields::text(node, "`auth`", errors)?.as_str() {
        "operators" => Some(Auth::Operators),
        "tokens" => Some(Auth::Tokens),
        "none" => Some(Auth::None),
        _ => {
            errors.hinted(
                node.place,
                "not a kind of callers",
                "one of operators (also without `auth`), tokens, none (everybody)",
            );
            None
        }
    }
}
