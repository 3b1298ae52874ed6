//! `certificate`: names for which browsers are shown a certificate that they accept.

use std::collections::BTreeSet;

use cofferdam_protocol::certificate::MAX_NAMES;
use cofferdam_protocol::{Endpoint, WordError, shorten};

use crate::diagnostics::Collector;
use crate::fields::{self, Fields};
use crate::keys;
use crate::model::Certificate;
use crate::read::{bounded, collect, optional, pem, url};
use crate::yaml::Node;

/// Let's Encrypt's.
const DEFAULT_DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// More people than this have a list that all of them read.
const MAX_CONTACTS: usize = 4;
/// Longest address of one (RFC 5321 §4.5.3.1.3).
const MAX_CONTACT: usize = 254;

/// Reads the section.
pub(crate) fn certificate(node: &Node, errors: &mut Collector<'_>) -> Option<Certificate> {
    let fields = Fields::open(node, "`certificate`", keys::CERTIFICATE, &[], errors)?;
    let names = fields
        .require("names", "write `names: [app.example.org]`, as browsers dial it", errors)
        .and_then(|node| names(node, errors));
    let directory = url(fields.get("directory"), "`directory`", DEFAULT_DIRECTORY, errors);
    let contact = fields.get("contact").map_or(Some(Vec::new()), |node| contacts(node, errors));
    let agreed = agreed(&fields, errors);
    let ca = fields.get("ca").map(|node| pem(node, errors));
    agreed?;
    Some(Certificate { names: names?, directory: directory?, contact: contact?, ca: optional(ca)? })
}

/// Nobody agrees to an authority's terms by leaving something out.
fn agreed(fields: &Fields<'_>, errors: &mut Collector<'_>) -> Option<()> {
    let hint = "read the authority's terms of service, and write `terms_agreed: true` if you agree to them";
    let node = fields.require("terms_agreed", hint, errors)?;
    if fields::boolean(node, "`terms_agreed`", errors)? {
        return Some(());
    }
    errors.hinted(
        node.place,
        "an authority gives no certificate to whoever does not agree to its terms",
        hint,
    );
    None
}

fn names(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<String>> {
    let items = fields::list(node, "`names`", errors)?;
    bounded(node, items.len(), MAX_NAMES, "names", errors)?;
    if items.is_empty() {
        errors.hinted(node.place, "`names` names nothing", "write `names: [app.example.org]`");
        return None;
    }
    let mut known = BTreeSet::new();
    let read = items.iter().map(|item| {
        let name = fields::text(item, "a name", errors)?;
        let name = fields::checked(item, dns_name(&name).map(|()| name), errors)?;
        if !known.insert(name.clone()) {
            errors.error(item.place, format!("{name} is named twice"));
            return None;
        }
        Some(name)
    });
    collect(read)
}

/// A name that an authority can ask for over TLS.
fn dns_name(name: &str) -> Result<(), WordError> {
    if name.starts_with("*.") {
        return Err(WordError::new(
            "a certificate for a wildcard takes a proof in the DNS, which is not made here",
        )
        .hint("name each of the names, at most eight"));
    }
    let endpoint: Endpoint = format!("{name}:443").parse().map_err(|_| {
        WordError::new(format!("{} is not a DNS name in lower case", shorten(name, 80)))
            .hint("write a name as `app.example.org`, without scheme, port and path")
    })?;
    if endpoint.host().parse::<std::net::IpAddr>().is_ok() || !name.contains('.') {
        return Err(WordError::new(format!(
            "{} is no name that an authority could ask about",
            shorten(name, 80)
        ))
        .hint("write a whole DNS name, as `app.example.org`"));
    }
    Ok(())
}

fn contacts(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<String>> {
    let items = fields::list(node, "`contact`", errors)?;
    bounded(node, items.len(), MAX_CONTACTS, "contacts", errors)?;
    let read = items.iter().map(|item| {
        let text = fields::text(item, "a contact", errors)?;
        fields::checked(item, mailto(&text).map(|()| text), errors)
    });
    collect(read)
}

fn mailto(text: &str) -> Result<(), WordError> {
    let address = text.strip_prefix("mailto:").filter(|address| {
        // One address and no header fields (RFC 8555 §7.3).
        let plain =
            address.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b',' | b'?' | b'"' | b'<' | b'>'));
        let parts = address.split_once('@');
        plain
            && address.len() <= MAX_CONTACT
            && parts.is_some_and(|(who, host)| !who.is_empty() && !host.is_empty())
    });
    address.map(|_| ()).ok_or_else(|| {
        WordError::new(format!("{} is not a contact", shorten(text, 80)))
            .hint("write `mailto:ops@example.org`")
    })
}

#[cfg(test)]
mod tests {
    use crate::Declaration;

    fn read(section: &str) -> Result<Declaration, String> {
        let digest = "0".repeat(64);
        let text = format!(
            "version: 1\nrepository: octo/app\nendpoint: app.example.org:443\n{section}\nservices:\n  web:\n    image: r.example/web@sha256:{digest}\n"
        );
        Declaration::parse(text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_certificate_has_names_and_an_authority() {
        let read_one = read(
            "certificate: {names: [app.example.org, www.example.org], contact: ['mailto:ops@example.org'], terms_agreed: true}",
        );
        let certificate = read_one.unwrap().certificate.unwrap();
        assert_eq!(certificate.names, ["app.example.org", "www.example.org"]);
        assert_eq!(certificate.directory.as_str(), "https://acme-v02.api.letsencrypt.org/directory");
        assert_eq!(certificate.contact, ["mailto:ops@example.org"]);
        assert_eq!(read("").unwrap().certificate, None);
    }

    #[test]
    fn what_no_authority_takes_is_refused_at_its_place() {
        let agreed = "terms_agreed: true";
        for (section, says) in [
            ("names: [app.example.org]".to_owned(), "has no `terms_agreed`"),
            ("names: [app.example.org], terms_agreed: false".to_owned(), "does not agree"),
            (agreed.to_owned(), "has no `names`"),
            (format!("names: [], {agreed}"), "names nothing"),
            (format!("names: ['*.example.org'], {agreed}"), "wildcard"),
            (format!("names: [App.example.org], {agreed}"), "lower case"),
            (format!("names: [192.0.2.1], {agreed}"), "could ask about"),
            (format!("names: [localhost], {agreed}"), "could ask about"),
            (format!("names: ['https://app.example.org'], {agreed}"), "lower case"),
            (format!("names: [a.example, a.example], {agreed}"), "twice"),
            (format!("names: [a.b, b.b, c.b, d.b, e.b, f.b, g.b, h.b, i.b], {agreed}"), "at most 8"),
            (format!("names: [a.example], contact: [ops@example.org], {agreed}"), "not a contact"),
            (format!("names: [a.example], contact: ['mailto:a@b,c@d'], {agreed}"), "not a contact"),
            (format!("names: [a.example], directory: 'http://ca.example/dir', {agreed}"), "https"),
            (format!("names: [a.example], email: x, {agreed}"), "email"),
        ] {
            let error = read(&format!("certificate: {{{section}}}")).unwrap_err();
            assert!(error.contains(says), "{section}: {error}");
            assert!(error.contains(":4:"), "{section}: {error}");
        }
    }
}
