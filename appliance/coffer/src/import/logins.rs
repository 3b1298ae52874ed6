//! As whom registries are asked: the logins that `docker login` has written down, if a person names that file.

use std::collections::BTreeMap;

use cofferdam_protocol::base64;
use cofferdam_registry::Credentials;
use serde::Deserialize;
use zeroize::Zeroizing;

/// Docker's file. It has many more keys, which say nothing here.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    /// `user:password` in base64. Absent where a credential helper has it.
    #[serde(default)]
    auth: String,
}

/// Users of registries by `host` or `host:port`.
#[derive(Default)]
pub(crate) struct Logins(BTreeMap<String, Credentials>);

impl Logins {
    /// Reads Docker's `config.json`.
    ///
    /// # Errors
    ///
    /// A sentence without any of its values.
    pub(crate) fn read(json: &[u8]) -> Result<Self, String> {
        // The error would show the text around it.
        let config: Config =
            serde_json::from_slice(json).map_err(|_| "it is not Docker's config.json".to_owned())?;
        let mut logins = BTreeMap::new();
        for (address, auth) in config.auths {
            let auth = Zeroizing::new(auth.auth);
            if auth.is_empty() {
                continue;
            }
            let bytes = base64::decode(auth.as_bytes()).map(Zeroizing::new);
            let text = bytes.as_ref().and_then(|bytes| std::str::from_utf8(bytes).ok());
            let (username, password) = text
                .and_then(|text| text.split_once(':'))
                .ok_or_else(|| "an `auth` in it is not user:password in base64".to_owned())?;
            let password = Zeroizing::new(password.trim_end_matches('\0').to_owned());
            logins.insert(host(&address).to_owned(), Credentials { username: username.to_owned(), password });
        }
        Ok(Self(logins))
    }

    /// The login at a registry.
    pub(crate) fn of(&self, host: &str) -> Option<Credentials> {
        let found = self.0.get(host)?;
        Some(Credentials { username: found.username.clone(), password: found.password.clone() })
    }
}

/// What an image's name has: Docker writes down an address for its own registry, and for some others.
fn host(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    match rest.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_read_as_docker_writes_them_and_nothing_is_shown() {
        let auth = base64::encode("deploy:pa:ss");
        let json = format!(
            r#"{{"auths": {{"https://index.docker.io/v1/": {{"auth": "{auth}"}}, "r.example:5000": {{"auth": "{auth}"}},
            "helped.example": {{}}}}, "credsStore": "desktop", "HttpHeaders": {{}}}}"#
        );
        let logins = Logins::read(json.as_bytes()).unwrap();
        for host in ["docker.io", "r.example:5000"] {
            let login = logins.of(host).unwrap();
            assert_eq!((login.username.as_str(), login.password.as_str()), ("deploy", "pa:ss"));
        }
        assert!(logins.of("helped.example").is_none() && logins.of("r.example").is_none());
        assert!(Logins::read(b"{}").unwrap().of("docker.io").is_none());
        for wrong in [
            "7",
            "{\"auths\": {\"a\": {\"auth\": \"aHVudGVyMg==\"}}}",
            "{\"auths\": {\"a\": {\"auth\": \"hunter2!\"}}}",
            "hunter2",
        ] {
            let Err(error) = Logins::read(wrong.as_bytes()) else { panic!("{wrong}") };
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
