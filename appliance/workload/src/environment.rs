//! What runs and with which variables: the image's configuration under the declaration's, as Compose merges them.

use cofferdam_declaration::{Part, SecretRef, Service, Value};
use cofferdam_redact::MAX_SECRET;
use zeroize::Zeroizing;

use crate::delivery::Delivery;
use cofferdam_registry::image::RunConfig;

/// What a container has when its image says nothing: Docker's default, in which images are tested.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// MAX_ARG_STRLEN: the kernel refuses a longer variable (execve(2)).
const MAX_VARIABLE: usize = 128 << 10;
/// Of a config with its secrets in place; its text alone has 64 KiB at most.
const MAX_CONFIG: usize = 256 << 10;

/// Why a service cannot be started as it is declared.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// Neither the declaration nor the image says what to run.
    #[error("neither the declaration nor the image names a command")]
    NoCommand,
    /// execve takes strings that end at a zero byte.
    #[error(
        "the value of {0} holds a zero byte, so it cannot be a variable; deliver it as a file under `secrets`"
    )]
    ZeroByte(String),
    /// execve takes at most 128 KiB for one variable.
    #[error("the value of {0} is too long for a variable; deliver it as a file under `secrets`")]
    TooLong(String),
    /// A config with long secrets in it.
    #[error("the config at {0} has more than 256 KiB, its secrets in place")]
    LongConfig(String),
    /// The lease did not bring a value that it should have.
    #[error("no value for {0}")]
    Missing(SecretRef),
}

/// The command line: entrypoint and command, where an entrypoint in the declaration drops the image's command.
///
/// # Errors
///
/// [`EnvironmentError::NoCommand`].
pub fn arguments(service: &Service, image: &RunConfig) -> Result<Vec<String>, EnvironmentError> {
    let (entrypoint, default) = match &service.entrypoint {
        Some(own) => (own, &[][..]),
        None => (&image.entrypoint, image.cmd.as_slice()),
    };
    let command = service.command.as_deref().unwrap_or(default);
    let words: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    if words.first().is_none_or(String::is_empty) { Err(EnvironmentError::NoCommand) } else { Ok(words) }
}

/// The variables and files with their secrets in place. Later sources win: defaults, image, declaration.
/// `home` is the user's home directory; `value` gives the leased value of a reference.
///
/// # Errors
///
/// A value is missing or cannot be a variable. The error names it and does not show it.
pub fn deliver(
    service: &Service,
    image: &RunConfig,
    home: &str,
    mut value: impl FnMut(&SecretRef) -> Option<Zeroizing<Vec<u8>>>,
) -> Result<Delivery, EnvironmentError> {
    let plain = |text: &str| Zeroizing::new(text.as_bytes().to_vec());
    let mut delivery = Delivery::default();
    let mut set = |name: &str, value: Zeroizing<Vec<u8>>| match delivery
        .environment
        .iter_mut()
        .find(|(known, _)| known == name)
    {
        Some((_, old)) => *old = value,
        None => delivery.environment.push((name.to_owned(), value)),
    };
    set("PATH", plain(PATH));
    set("HOSTNAME", plain(&service.name));
    set("HOME", plain(home));
    for variable in &image.env {
        let (name, text) = variable.split_once('=').unwrap_or((variable, ""));
        if !name.is_empty() {
            set(name, plain(text));
        }
    }
    for (name, declared) in &service.environment {
        let value = filled(declared, &mut value)?;
        if value.contains(&0) {
            return Err(EnvironmentError::ZeroByte(name.clone()));
        }
        // The name, `=`, the value and the zero byte at the end.
        if name.len() + value.len() + 2 > MAX_VARIABLE {
            return Err(EnvironmentError::TooLong(name.clone()));
        }
        set(name, value);
    }
    for file in &service.secrets {
        let content = value(&file.source).ok_or_else(|| EnvironmentError::Missing(file.source.clone()))?;
        delivery.files.push((file.target.clone(), content));
    }
    for config in &service.configs {
        let content = filled(&config.content, &mut value)?;
        if content.len() > MAX_CONFIG {
            return Err(EnvironmentError::LongConfig(config.target.clone()));
        }
        delivery.configs.push((config.target.clone(), content));
    }
    Ok(delivery)
}

/// A value with the name that is shown in its place.
pub type Shown = (String, Zeroizing<Vec<u8>>);

/// What is to be taken out of whatever the service says, each with the name that is shown instead: its secrets; those that are
/// percent-encoded, as they then are; and whole variables that were put together.
///
/// The whole is not redundant: a program may encode it once more, and then a part of it has another form than where it stands alone.
///
/// # Errors
///
/// A value is missing.
pub fn redacted(
    service: &Service,
    mut value: impl FnMut(&SecretRef) -> Option<Zeroizing<Vec<u8>>>,
) -> Result<Vec<Shown>, EnvironmentError> {
    let mut found = Vec::new();
    for reference in service.references() {
        found.push((reference.to_string(), leased(reference, &mut value)?));
    }
    let variables = service.environment.iter().map(|(name, value)| (Some(name), value));
    for (name, declared) in variables.chain(service.configs.iter().map(|config| (None, &config.content))) {
        let Value::Composed(parts) = declared else { continue };
        for reference in
            parts.iter().filter_map(|part| if let Part::Url(secret) = part { Some(secret) } else { None })
        {
            let (plain, encoded) =
                (leased(reference, &mut value)?, url_encoded(&leased(reference, &mut value)?));
            if plain != encoded && encoded.len() <= MAX_SECRET {
                found.push((reference.to_string(), encoded));
            }
        }
        let Some(name) = name else { continue };
        // Lines of a longer text are no secrets by themselves.
        let whole = filled(declared, &mut value)?;
        if whole.len() <= MAX_SECRET && !whole.contains(&b'\n') {
            found.push((name.clone(), whole));
        }
    }
    Ok(found)
}

/// A value with its secrets in place. All memory that held them is cleared.
fn filled(
    declared: &Value,
    value: &mut impl FnMut(&SecretRef) -> Option<Zeroizing<Vec<u8>>>,
) -> Result<Zeroizing<Vec<u8>>, EnvironmentError> {
    match declared {
        Value::Plain(text) => Ok(Zeroizing::new(text.as_bytes().to_vec())),
        Value::Secret(reference) => leased(reference, value),
        Value::Composed(parts) => {
            let mut pieces = Vec::with_capacity(parts.len());
            for part in parts {
                pieces.push(match part {
                    Part::Text(text) => Zeroizing::new(text.as_bytes().to_vec()),
                    Part::Secret(reference) => leased(reference, value)?,
                    Part::Url(reference) => url_encoded(&leased(reference, value)?),
                });
            }
            // Of the right size from the start: growing would leave copies behind.
            let mut whole = Zeroizing::new(Vec::with_capacity(pieces.iter().map(|piece| piece.len()).sum()));
            pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
            Ok(whole)
        }
    }
}

fn leased(
    reference: &SecretRef,
    value: &mut impl FnMut(&SecretRef) -> Option<Zeroizing<Vec<u8>>>,
) -> Result<Zeroizing<Vec<u8>>, EnvironmentError> {
    value(reference).ok_or_else(|| EnvironmentError::Missing(reference.clone()))
}

/// Every byte but the unreserved ones as `%XX` (RFC 3986 §2.1, §2.3).
fn url_encoded(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or_default();
    let mut out = Zeroizing::new(Vec::with_capacity(bytes.len() * 3));
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            out.push(*byte);
        } else {
            out.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(yaml: &str) -> Service {
        let digest = "0".repeat(64);
        let text = format!(
            "version: 1\nrepository: octo/app\nendpoint: api.example.org:443\noperators:\n  - name: alice\n    key: {KEY}\n\
             services:\n  web:\n    image: registry.example.org/app@sha256:{digest}\n{yaml}"
        );
        let declaration = cofferdam_declaration::Declaration::parse(text.as_bytes());
        declaration.unwrap_or_else(|error| panic!("{error}")).services.remove(0)
    }

    /// A public key of the test's own; nobody holds its private half.
    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn image() -> RunConfig {
        RunConfig {
            env: vec!["PATH=/opt/bin".into(), "A=image".into(), "B=image=x".into(), "=odd".into()],
            entrypoint: vec!["/entry".into()],
            cmd: vec!["serve".into()],
            ..RunConfig::default()
        }
    }

    fn text(delivery: &Delivery, name: &str) -> Option<String> {
        let (_, value) = delivery.environment.iter().find(|(known, _)| known == name)?;
        Some(String::from_utf8_lossy(value).into_owned())
    }

    #[test]
    fn the_command_line_follows_compose() {
        let line = |yaml: &str| arguments(&service(yaml), &image()).map(|words| words.join(" "));
        assert_eq!(line("").unwrap(), "/entry serve");
        assert_eq!(line("    command: [other, x]\n").unwrap(), "/entry other x");
        assert_eq!(line("    entrypoint: [/own]\n").unwrap(), "/own");
        assert_eq!(line("    entrypoint: [/own]\n    command: [x]\n").unwrap(), "/own x");
        assert!(matches!(arguments(&service(""), &RunConfig::default()), Err(EnvironmentError::NoCommand)));
    }

    #[test]
    fn the_declaration_wins_over_the_image_and_the_image_over_the_defaults() {
        let service = service("    environment:\n      A: own\n      TOKEN: secret://app/api/token\n");
        let delivery = deliver(&service, &image(), "/home/app", |reference| {
            (reference.to_string() == "secret://app/api/token").then(|| Zeroizing::new(b"s3cret".to_vec()))
        })
        .unwrap();
        for (name, expected) in [
            ("PATH", "/opt/bin"),
            ("A", "own"),
            ("B", "image=x"),
            ("TOKEN", "s3cret"),
            ("HOME", "/home/app"),
            ("HOSTNAME", "web"),
        ] {
            assert_eq!(text(&delivery, name).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(text(&delivery, ""), None);
    }

    const ADDRESS: &str = "    environment:\n      URL: postgres://app:${secret://app/db/password|url}@db/${secret://app/db/name}\n      \
                           LIST: \"$${x}\"\n    configs: [conf]\nconfigs: {conf: {content: \"pw=${secret://app/db/password}\\n\"}}\n";

    fn of_the_vault(reference: &SecretRef) -> Option<Zeroizing<Vec<u8>>> {
        let text = match reference.field() {
            "password" => "p@ss/w\u{f6}rd",
            "name" => "orders-db",
            _ => return None,
        };
        Some(Zeroizing::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn secrets_are_put_into_their_texts_and_nothing_is_encoded_unasked() {
        let delivery = deliver(&service(ADDRESS), &image(), "/", of_the_vault).unwrap();
        assert_eq!(text(&delivery, "URL").unwrap(), "postgres://app:p%40ss%2Fw%C3%B6rd@db/orders-db");
        assert_eq!(text(&delivery, "LIST").unwrap(), "${x}");
        let expected = ("/conf".to_owned(), Zeroizing::new("pw=p@ss/w\u{f6}rd\n".as_bytes().to_vec()));
        assert_eq!(delivery.configs, [expected]);
        let missing = deliver(&service(ADDRESS), &image(), "/", |_| None);
        assert!(matches!(missing, Err(EnvironmentError::Missing(_))));
    }

    #[test]
    fn the_whole_its_parts_and_their_encodings_are_all_taken_out_of_outputs() {
        let known = redacted(&service(ADDRESS), of_the_vault).unwrap();
        let redactor = cofferdam_redact::Redactor::new(known).unwrap();
        let said = |text: &str| String::from_utf8(redactor.redact(text.as_bytes())).unwrap();
        let whole = "postgres://app:p%40ss%2Fw%C3%B6rd@db/orders-db";
        assert_eq!(said(&format!("dialling {whole} now")), "dialling [redacted:URL] now");
        for (text, hidden) in [
            ("postgres://app:p%40ss%2Fw%C3%B6rd@other/x", "w%C3%B6rd"),
            ("psql: p@ss/w\u{f6}rd and orders-db", "p@ss"),
            ("psql: p@ss/w\u{f6}rd and orders-db", "orders-db"),
            ("config: pw=p@ss/w\u{f6}rd", "p@ss"),
        ] {
            let said = said(text);
            assert!(!said.contains(hidden) && said.contains("[redacted:secret://app/db/"), "{said}");
        }
        // Encoded once more as a whole, as in an HTTP header, and at any offset.
        for before in ["", "x", "xy"] {
            let encoded = cofferdam_protocol::base64::encode(format!("{before}{whole}").as_bytes());
            assert!(said(&encoded).contains("[redacted:URL]"), "{}", said(&encoded));
        }
        let missing = redacted(&service(ADDRESS), |_| None);
        assert!(matches!(missing, Err(EnvironmentError::Missing(_))));
    }

    #[test]
    fn a_config_that_long_secrets_make_too_long_is_named_and_not_shown() {
        let parts = "${secret://app/x/y}".repeat(5);
        let service = service(&format!("    configs: [conf]\nconfigs: {{conf: {{content: \"{parts}\"}}}}\n"));
        let long = |_: &SecretRef| Some(Zeroizing::new(vec![b'x'; 60 << 10]));
        let error = deliver(&service, &image(), "/", long).unwrap_err().to_string();
        assert!(error.contains("/conf") && !error.contains("xx"), "{error}");
    }

    #[test]
    fn a_value_that_cannot_be_a_variable_is_named_and_not_shown() {
        let service = service("    environment:\n      TOKEN: secret://app/api/token\n");
        let error =
            deliver(&service, &image(), "/", |_| Some(Zeroizing::new(b"s3\0cret".to_vec()))).unwrap_err();
        assert!(error.to_string().contains("TOKEN") && !error.to_string().contains("s3"), "{error}");
        let long = deliver(&service, &image(), "/", |_| Some(Zeroizing::new(vec![b'x'; MAX_VARIABLE])));
        assert!(matches!(long, Err(EnvironmentError::TooLong(_))));
        assert!(matches!(deliver(&service, &image(), "/", |_| None), Err(EnvironmentError::Missing(_))));
    }

    #[test]
    fn a_secret_file_may_hold_anything() {
        let service =
            service("    secrets:\n      - source: secret://app/tls/key\n        target: tls.key\n");
        let delivery = deliver(&service, &image(), "/", |_| Some(Zeroizing::new(vec![0, 255]))).unwrap();
        assert_eq!(delivery.files, [("tls.key".to_owned(), Zeroizing::new(vec![0, 255]))]);
    }
}
