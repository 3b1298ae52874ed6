//! What looks like a secret, and what it is called in the vault.

use std::fmt::Write as _;
use std::ops::Range;

use cofferdam_protocol::SecretRef;
use zeroize::Zeroizing;

use super::convert::name;

/// Parts of the names of variables that hold secrets.
const PARTS: [&str; 9] =
    ["PASSWORD", "PASSWD", "PASSPHRASE", "SECRET", "TOKEN", "API_KEY", "APIKEY", "PRIVATE_KEY", "CREDENTIAL"];
/// Ends of such names.
const ENDS: [&str; 4] = ["_PASS", "_PWD", "_KEY", "_SALT"];
/// Ends of names that say something about a secret and hold none.
const ABOUT: [&str; 7] = ["_FILE", "_PUBLIC_KEY", "_EXPIRY", "_EXPIRES", "_TTL", "_LENGTH", "_NAME"];

/// A secret that the declaration refers to.
#[derive(Debug)]
pub(crate) struct Secret {
    pub(crate) reference: SecretRef,
    /// Unknown where the variable that held it was not set.
    pub(crate) value: Option<Zeroizing<String>>,
}

/// The secrets of one compose file: the same value, or the same unset variable, is one secret.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    found: Vec<(String, Secret)>,
}

impl Secrets {
    /// The reference for a value, if it can have a name. `raw` is how the compose file has it, `names` the secret's name and field for a new one.
    pub(super) fn reference(
        &mut self,
        project: &str,
        names: (&str, &str),
        raw: &str,
        value: Option<String>,
    ) -> Option<SecretRef> {
        let known = self.found.iter().find(|(other, secret)| match &value {
            Some(value) => secret.value.as_ref().is_some_and(|other| other.as_str() == value),
            None => secret.value.is_none() && other == raw,
        });
        if let Some((_, secret)) = known {
            return Some(secret.reference.clone());
        }
        // Another secret of that name has another value.
        let taken =
            |reference: &SecretRef| self.found.iter().any(|(_, secret)| secret.reference == *reference);
        let (own, field) = (name(names.0, "app"), name(names.1, "value"));
        let numbered = (2..).map(|count| format!("{field}-{count}"));
        let reference = std::iter::once(field.clone())
            .chain(numbered)
            .map_while(|field| SecretRef::from_parts(project, &own, &field).ok())
            .find(|reference| !taken(reference))?;
        let secret = Secret { reference: reference.clone(), value: value.map(Zeroizing::new) };
        self.found.push((raw.to_owned(), secret));
        Some(reference)
    }

    pub(super) fn into_list(self) -> Vec<Secret> {
        self.found.into_iter().map(|(_, secret)| secret).collect()
    }
}

/// Whether a variable of this name holds a secret.
pub(super) fn secretive(variable: &str) -> bool {
    let upper = variable.to_ascii_uppercase();
    !ABOUT.iter().any(|end| upper.ends_with(end))
        && (PARTS.iter().any(|part| upper.contains(part)) || ENDS.iter().any(|end| upper.ends_with(end)))
}

/// Where the password of an address is, which may be empty (RFC 3986 §3.2.1).
pub(super) fn password_of(address: &str) -> Option<Range<usize>> {
    let start = address.find("://")? + 3;
    let rest = address.get(start..)?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let at = authority.rfind('@')?;
    let colon = authority.get(..at)?.find(':')?;
    Some(start + colon + 1..start + at)
}

/// Whether a value is an address with a password in it.
pub(super) fn has_password(value: &str) -> bool {
    password_of(value).is_some_and(|password| !password.is_empty())
}

/// The text that `|url` makes of a secret.
pub(super) fn url_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// The secret of which `|url` makes exactly this text.
pub(super) fn url_decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        out.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(out).ok().filter(|decoded| url_encoded(decoded) == text)
}

/// The line of a file at which something looks like a secret: a key, an address with a password, or a value with such a name. Comments
/// and what refers to something else (`$…`, `/path`) are none.
pub(super) fn looks_secret(text: &str) -> Option<usize> {
    let line = |line: &str| {
        let line = line.trim();
        if line.contains("PRIVATE KEY-----") {
            return true;
        }
        if line.starts_with(['#', ';']) || line.starts_with("//") || line.starts_with("--") {
            return false;
        }
        let quotes = ['"', '\'', '`', ','];
        let literal = |value: &str| {
            let value = value.trim().trim_matches(quotes).trim();
            let first = value.chars().next();
            !matches!(
                value.to_ascii_lowercase().as_str(),
                "true" | "false" | "null" | "none" | "on" | "off" | "yes" | "no"
            ) && first.is_some_and(|c| !"$/.<{[(@%".contains(c))
                && !value.bytes().all(|b| b.is_ascii_digit())
        };
        if line
            .split(|c: char| c.is_whitespace() || quotes.contains(&c))
            .any(|word| has_password(word) && !word.contains("${"))
        {
            return true;
        }
        let upper = line.to_ascii_uppercase();
        let named = ["IDENTIFIED BY '", "PASSWORD '"]
            .iter()
            .filter_map(|words| upper.find(words).map(|at| at + words.len()));
        if named.into_iter().any(|at| line.get(at..).is_some_and(|value| !value.starts_with(['$', '\'']))) {
            return true;
        }
        let (key, value) = line
            .split_once(['=', ':'])
            .or_else(|| line.split_once(char::is_whitespace))
            .unwrap_or((line, ""));
        let key = key.trim().trim_start_matches("- ").trim_matches(quotes).replace(['-', '.', ' '], "_");
        let redis = ["requirepass", "masterauth"].contains(&key.as_str());
        key.len() <= 64 && (redis || secretive(&key)) && literal(value)
    };
    text.lines().position(line).map(|at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_of_an_address_is_found_and_nothing_else_is_one() {
        for (address, password) in [
            ("postgres://app:s3cret@db/app", Some("s3cret")),
            ("redis://:s3cret@cache:6379/0", Some("s3cret")),
            ("amqp://u:p%40x@q?x=a:b@c", Some("p%40x")),
            ("http://u:@h", Some("")),
            ("http://a/b:c@d", None),
            ("http://user@h", None),
            ("a:b@c", None),
        ] {
            assert_eq!(password_of(address).and_then(|range| address.get(range)), password, "{address}");
        }
    }

    #[test]
    fn encoding_and_decoding_are_exact_or_not_at_all() {
        assert_eq!(url_encoded("p@ss/w\u{f6}rd-1"), "p%40ss%2Fw%C3%B6rd-1");
        assert_eq!(url_decoded("p%40ss%2Fw%C3%B6rd-1").as_deref(), Some("p@ss/w\u{f6}rd-1"));
        for text in ["p@ss", "p%4", "p%zz", "p%2d", "%ff", "%e4%f6"] {
            assert_eq!(url_decoded(text), None, "{text}");
        }
    }

    #[test]
    fn files_that_hold_a_secret_are_told_from_those_that_name_one() {
        for text in [
            "a\n-----BEGIN RSA PRIVATE KEY-----\n",
            "requirepass hunter2hunter2",
            "[client]\npassword = hunter2",
            "  basic_auth:\n    password: 'hunter2'",
            "{\"api_key\": \"hunter2\"}",
            "dsn postgres://u:hunter2@db/x;",
            "CREATE USER app IDENTIFIED BY 'hunter2';",
            "ALTER ROLE app WITH PASSWORD 'hunter2';",
            "spring.datasource.password=hunter2",
        ] {
            assert!(looks_secret(text).is_some(), "{text}");
        }
        for text in [
            "server { listen 80; location / { proxy_pass http://app:8080; } }",
            "ssl_certificate_key /etc/ssl/key.pem;",
            "# password = hunter2",
            "password = ${DB_PASSWORD}",
            "proxy_set_header X-Auth-Token $token;",
            "password_file: /run/secrets/x",
            "token_ttl: 60\nmax_tokens = 100",
            "CREATE TABLE t (password text);",
            "url: http://u:${PW}@h",
        ] {
            assert_eq!(looks_secret(text), None, "{text}");
        }
    }
}
