//! What runs and with which variables: the image's configuration under the declaration's, as Compose merges them.

use cofferdam_declaration::{SecretRef, Service, Value};
use zeroize::Zeroizing;

use crate::delivery::Delivery;
use cofferdam_registry::image::RunConfig;

/// What a container has when its image says nothing: Docker's default, in which images are tested.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// MAX_ARG_STRLEN: the kernel refuses a longer variable (execve(2)).
const MAX_VARIABLE: usize = 128 << 10;

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
        let value = match declared {
            Value::Plain(text) => plain(text),
            Value::Secret(reference) => {
                value(reference).ok_or_else(|| EnvironmentError::Missing(reference.clone()))?
            }
        };
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
    Ok(delivery)
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
