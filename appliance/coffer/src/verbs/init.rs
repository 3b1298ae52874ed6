//! `coffer init`: a first declaration and an operator's key.

use std::io::Write as _;
use std::path::Path;

use cofferdam_declaration::SCHEMA_ID;
use cofferdam_protocol::{Digest, Endpoint, ImageReference, Repository};
use serde_json::json;

use crate::cli;
use crate::failure::{Failure, Outcome};
use crate::operator_key::OperatorKey;
use crate::ui::Ui;

pub(crate) fn run(
    ui: &Ui,
    repository: &Repository,
    endpoint: &Endpoint,
    file: &Path,
    key: &cli::OperatorKey,
) -> Outcome {
    if file.exists() {
        return Err(
            Failure::usage(format!("{} already exists", file.display())).hint("`coffer check` checks it")
        );
    }
    let (key, path, new) = OperatorKey::load_or_create(key)?;
    let text = declaration(repository, endpoint, &key.public_line);
    let failed = |error: std::io::Error| Failure::failed(format!("cannot write {}: {error}", file.display()));
    let mut out = std::fs::OpenOptions::new().write(true).create_new(true).open(file).map_err(failed)?;
    out.write_all(text.as_bytes()).map_err(failed)?;
    let made = if new { "made" } else { "using" };
    ui.result(
        &format!(
            "wrote {}\n{made} the operator's key {} ({})\n",
            file.display(),
            path.display(),
            key.fingerprint()
        ),
        json!({ "declaration": file, "key": path, "key_is_new": new, "fingerprint": key.fingerprint() }),
    );
    Ok(())
}

/// What stands before the services: whose appliance it is and where.
pub(super) fn head(repository: &Repository, endpoint: &Endpoint, key: &str) -> String {
    format!(
        "# yaml-language-server: $schema={SCHEMA_ID}\n\
         version: 1\n\
         repository: {repository}\n\
         # Where clients dial.\n\
         endpoint: {}\n\
         # Who may put secrets and read status and logs.\n\
         operators:\n\
         \x20 - name: me\n\
         \x20   key: {}\n\
         # With a token the appliance publishes its release attestations.\n\
         github:\n\
         \x20 token: secret://cofferdam/github/token\n",
        endpoint_in_yaml(endpoint),
        key_in_yaml(key),
    )
}

/// A declaration that `coffer check` accepts, for someone to go on from.
fn declaration(repository: &Repository, endpoint: &Endpoint, key: &str) -> String {
    format!(
        "{}\
         # For state that survives a reboot, on a disk that operators open at each boot: state: {{provider: operator}}\n\
         services:\n\
         \x20 web:\n\
         \x20   # By digest: `skopeo inspect docker://IMAGE --format '{{{{.Digest}}}}'`\n\
         \x20   image: {}\n\
         \x20   # For operators, through `coffer connect`; for everybody: {{published: 443, target: 8080, auth: none}}\n\
         \x20   ports: [\"443:8080\"]\n",
        head(repository, endpoint, key),
        image(repository),
    )
}

/// An address in brackets is a list to YAML unless it is quoted.
fn endpoint_in_yaml(endpoint: &Endpoint) -> String {
    let text = endpoint.to_string();
    if text.starts_with('[') { format!("\"{text}\"") } else { text }
}

/// The key's line without its comment where that would need quotes: it is no more than a note.
fn key_in_yaml(line: &str) -> String {
    let mut words = line.trim_end().splitn(3, ' ');
    let key: Vec<&str> = words.by_ref().take(2).collect();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"@._+-".contains(&b);
    let comment =
        words.next().filter(|text| text.split(' ').all(|word| !word.is_empty() && word.bytes().all(plain)));
    key.into_iter().chain(comment).collect::<Vec<_>>().join(" ")
}

/// Where the image may be: images are named in lower case, and not every repository's name is one of an image.
fn image(repository: &Repository) -> String {
    let named = |path: &str| format!("registry.example.org/{path}@{}", Digest::from([0; 32]));
    let own = named(&repository.to_string().to_ascii_lowercase());
    if own.parse::<ImageReference>().is_ok() { own } else { named("acme/web") }
}

#[cfg(test)]
mod tests {
    use cofferdam_declaration::Declaration;
    use cofferdam_protocol::OperatorKey;
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICyX0eyQaT2Xashj0uUd3xx2oTMlmdpFery3R+dPA9yz";

    fn endpoints() -> impl Strategy<Value = String> {
        let host = prop_oneof![
            "[a-z0-9]{1,8}(-[a-z0-9]{1,8}){0,2}(\\.[a-z0-9]{1,8}){0,3}",
            any::<std::net::Ipv4Addr>().prop_map(|address| address.to_string()),
            any::<std::net::Ipv6Addr>().prop_map(|address| format!("[{address}]")),
        ];
        (host, 1..=u16::MAX).prop_map(|(host, port)| format!("{host}:{port}"))
    }

    proptest! {
        #[test]
        fn init_never_writes_what_check_refuses(
            repository in "[A-Za-z0-9]{1,6}(-[A-Za-z0-9]{1,6}){0,3}/[A-Za-z0-9._-]{1,30}",
            endpoint in endpoints(),
            comment in prop_oneof![Just(String::new()), " [a-z@]{1,10}", " .{0,40}", " [ #:'\"\\[\\]{}&*!|>%$-]{1,10}"],
        ) {
            let line = format!("{KEY}{comment}");
            // What is none of these words `init` refuses before it writes anything.
            let (Ok(repository), Ok(endpoint), Ok(key)) =
                (repository.parse::<Repository>(), endpoint.parse::<Endpoint>(), line.parse::<OperatorKey>())
            else {
                return Ok(());
            };
            let text = declaration(&repository, &endpoint, &line);
            let declared = Declaration::parse(text.as_bytes());
            prop_assert!(declared.is_ok(), "{text}\n{}", declared.unwrap_err());
            let declared = declared.unwrap();
            prop_assert_eq!((&declared.repository, &declared.endpoint), (&repository, &endpoint));
            prop_assert_eq!(declared.operators[0].key.public(), key.public());
        }
    }

    #[test]
    fn names_that_only_github_takes_do_not_end_in_an_image() {
        for name in ["Acme/Shop", "acme/.github", "acme/a__b", "acme/-", "acme/a..b", "acme/_"] {
            let repository = name.parse().unwrap();
            let text = declaration(&repository, &"[::1]:8443".parse().unwrap(), KEY);
            assert!(Declaration::parse(text.as_bytes()).is_ok(), "{text}");
        }
        assert!(
            image(&"Acme/Shop".parse().unwrap()).starts_with("registry.example.org/acme/shop@sha256:0000")
        );
    }
}
