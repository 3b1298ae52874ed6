//! What looks like a secret, and what it is called in the vault.

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

/// Whether a value is an address with a password in it (RFC 3986 §3.2.1).
pub(super) fn has_password(value: &str) -> bool {
    let Some((_, rest)) = value.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let Some((user, _)) = authority.rsplit_once('@') else { return false };
    user.split_once(':').is_some_and(|(_, password)| !password.is_empty())
}
