//! The words that say where something is: endpoints, registries, images, URLs.
//!
//! A host's text is canonical, because it is compared byte by byte in claims and against certificates: lower
//! case, and an address in the one form that every resolver reads alike.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use super::digest::Digest;
use super::error::WordError;
use super::text::{as_text, parse_decimal, shorten};

as_text!(Endpoint, RegistryHost, ImageReference, HttpsUrl, HttpUrl);

/// Where clients reach the appliance: `host:port`. It becomes a claim, so its text is canonical.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    /// A lower-case DNS name, an IPv4 address, or an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port, 1 to 65535.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Another port of the same host.
    #[must_use]
    pub fn with_port(&self, port: NonZeroU16) -> Self {
        Self { host: self.host.clone(), port: port.get() }
    }
}

impl FromStr for Endpoint {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let wrong = |why: String| {
            WordError::new(format!("not an endpoint: {why}"))
                .hint("write the host and the port that clients dial, for example api.example.org:443")
        };
        if text.contains("://") {
            return Err(wrong("it is a URL".into()));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("there is no port".into()))?;
        let port = parse_port(port).map_err(|error| wrong(error.message))?;
        let host = parse_host(host).map_err(|error| wrong(error.message))?;
        Ok(Self { host, port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A registry's `host` or `host:port`, as it stands in image references.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryHost(String);

impl RegistryHost {
    /// The text, with the port when one was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RegistryHost {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let wrong = |why: String| {
            WordError::new(format!("not a registry's host: {why}"))
                .hint("write host or host:port, for example ghcr.io or registry.example.org:5000")
        };
        if text.contains('/') {
            return Err(wrong("it has a `/`".into()));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !text.ends_with(']') => (host, Some(port)),
            _ => (text, None),
        };
        parse_host(host).map_err(|error| wrong(error.message))?;
        if let Some(port) = port {
            parse_port(port).map_err(|error| wrong(error.message))?;
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for RegistryHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An OCI image pinned by digest. Its text is `registry/repository@sha256:…`: a tag that was written
/// next to the digest is a note for readers and is not part of it, since nothing verifies a tag.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageReference {
    registry: RegistryHost,
    repository: String,
    digest: Digest,
}

impl ImageReference {
    /// The registry, `host` or `host:port`.
    pub fn registry(&self) -> &RegistryHost {
        &self.registry
    }

    /// The path within the registry, for example `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Digest of the image's manifest or index.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

impl FromStr for ImageReference {
    type Err = WordError;

    /// The grammar of the OCI distribution specification ("Pulling manifests"), with the registry and
    /// the digest required.
    fn from_str(text: &str) -> Result<Self, WordError> {
        let Some((name, digest)) = text.split_once('@') else {
            return Err(WordError::new("the image is not pinned by a digest").hint(
                "write registry/name@sha256:<64 hex>; `skopeo inspect docker://IMAGE` prints the digest",
            ));
        };
        if !digest.starts_with(Digest::PREFIX) {
            return Err(WordError::new("the image's digest is not a sha256 digest"));
        }
        let digest = digest
            .parse()
            .map_err(|_| WordError::new("the image's digest is not 64 lower-case hexadecimal digits"))?;
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
            _ => {
                return Err(WordError::new("the image's registry is not named").hint(format!(
                    "there is no default registry; for Docker Hub write docker.io/{}{}",
                    if name.contains('/') { "" } else { "library/" },
                    shorten(text, 160),
                )));
            }
        };
        let registry = registry.parse()?;
        let path = match path.rsplit_once(':') {
            Some((path, tag)) => {
                let tag_ok = (1..=128).contains(&tag.len())
                    && !tag.starts_with(['.', '-'])
                    && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
                if !tag_ok {
                    return Err(WordError::new("the image's tag is not a tag"));
                }
                path
            }
            None => path,
        };
        if path.len() > 255 || !path.split('/').all(is_repository_component) {
            return Err(WordError::new("the image's name is not an OCI repository name").hint(
                "it is lower case: letters, digits, and single . _ - between them, parts joined by /",
            ));
        }
        Ok(Self { registry, repository: path.to_owned(), digest })
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.registry, self.repository, self.digest)
    }
}

/// An `https://` URL without user, query or fragment and without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpsUrl(String);

impl HttpsUrl {
    /// Scheme, host and port, as they are written.
    pub fn origin(&self) -> &str {
        let end = self.0.bytes().enumerate().filter(|(_, byte)| *byte == b'/').nth(2);
        end.and_then(|(end, _)| self.0.get(..end)).unwrap_or(&self.0)
    }

    /// The whole text, for example `https://ghe.example.org/api/v3`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HttpsUrl {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let wrong = |why: &str| WordError::new(format!("not an https URL: {why}"));
        let rest = text.strip_prefix("https://").ok_or_else(|| wrong("it does not start with https://"))?;
        check_url(rest).map(|rest| Self(format!("https://{rest}"))).map_err(wrong)
    }
}

/// An `http://` or `https://` URL of the same shape as [`HttpsUrl`]: for what needs no secrecy on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpUrl(String);

impl HttpUrl {
    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is one of TLS.
    pub fn is_https(&self) -> bool {
        self.0.starts_with("https://")
    }
}

impl FromStr for HttpUrl {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let wrong = |why: &str| WordError::new(format!("not an http or https URL: {why}"));
        let found =
            ["http://", "https://"].into_iter().find_map(|scheme| Some((scheme, text.strip_prefix(scheme)?)));
        let (scheme, rest) = found.ok_or_else(|| wrong("it does not start with http:// or https://"))?;
        check_url(rest).map(|rest| Self(format!("{scheme}{rest}"))).map_err(wrong)
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What follows the scheme of a URL without user, query or fragment; without a slash at its end.
fn check_url(rest: &str) -> Result<&str, &'static str> {
    if rest.len() > 1016 {
        return Err("it is longer than 1024 bytes");
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (authority, path) = match rest.split_once('/') {
        Some((authority, path)) => (authority, Some(path)),
        None => (rest, None),
    };
    if authority.contains('@') {
        return Err("it has a user or a password");
    }
    if authority.parse::<RegistryHost>().is_err() {
        return Err("its host is not a lower-case name or an address, with or without a port");
    }
    let path_ok = path.is_none_or(|path| {
        path.split('/').all(|part| {
            !matches!(part, "" | "." | "..")
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
        })
    });
    if !path_ok {
        return Err("its path has more than letters, digits, - . _ ~ and single slashes");
    }
    Ok(rest)
}

impl fmt::Display for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A TCP port, 1 to 65535, in decimal.
///
/// # Errors
/// Anything else.
pub fn parse_port(text: &str) -> Result<u16, WordError> {
    parse_decimal(text)
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .ok_or_else(|| WordError::new("a port is a decimal number from 1 to 65535"))
}

/// A host in canonical text: a lower-case DNS name (RFC 1123), IPv4, or bracketed IPv6 (returned bare).
fn parse_host(text: &str) -> Result<String, WordError> {
    if let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        let address: std::net::Ipv6Addr =
            inner.parse().map_err(|_| WordError::new("the brackets hold no IPv6 address"))?;
        if address.to_string() != inner {
            return Err(WordError::new(format!("the IPv6 address is not in its shortest form, {address}")));
        }
        return Ok(inner.to_owned());
    }
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(WordError::new("the host has upper-case letters"));
    }
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() > 253 || !text.split('.').all(label_ok) {
        return Err(WordError::new("the host is neither a DNS name nor an address"));
    }
    // A name whose last label is a number is an IPv4 address to every resolver, in strange notations too.
    let last_is_number = text
        .rsplit('.')
        .next()
        .is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()) || label.starts_with("0x"));
    if last_is_number && text.parse::<std::net::Ipv4Addr>().is_err() {
        return Err(WordError::new("the host is not an IPv4 address in its usual form"));
    }
    Ok(text.to_owned())
}

/// One part of an OCI repository name: alphanumerics joined by `.`, `_`, `__` or any number of `-`.
fn is_repository_component(part: &str) -> bool {
    let mut separator = String::new();
    let mut after_alphanumeric = false;
    for c in part.chars() {
        match c {
            'a'..='z' | '0'..='9' => {
                if !separator.is_empty() && !after_alphanumeric {
                    return false;
                }
                let known = matches!(separator.as_str(), "" | "." | "_" | "__")
                    || separator.bytes().all(|b| b == b'-');
                if !known {
                    return false;
                }
                separator.clear();
                after_alphanumeric = true;
            }
            '.' | '_' | '-' => separator.push(c),
            _ => return false,
        }
    }
    after_alphanumeric && separator.is_empty()
}
