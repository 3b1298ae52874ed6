//! `coffer secret put|list|rm`: on a verified connection, sealed to the vault's attested key.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use cofferdam_attest::operator;
use cofferdam_protocol::operator::{MAX_SECRET, SECRETS, secret_path};
use cofferdam_protocol::vault::{Affected, MAX_OPERATOR_REPLY, SecretsReply, StoredReply};
use cofferdam_protocol::{SECRET_SCHEME, SecretRef, json as strict};
use hyper::StatusCode;
use serde_json::json;
use zeroize::Zeroizing;

use crate::channel::{Channel, refusal};
use crate::cli::Secret;
use crate::failure::{Failure, Outcome, chain};
use crate::files;
use crate::hidden;
use crate::import::env_file;
use crate::operator_key::OperatorKey;
use crate::ui::{Ui, printable};

/// A file of secrets.
const MAX_FILE: usize = 4 << 20;

pub(crate) async fn run(ui: &Ui, action: Secret, value: Option<Zeroizing<Vec<u8>>>) -> Outcome {
    match action {
        Secret::Put { appliance, wait, name: Some(name), key, .. } => {
            let key = OperatorKey::load(&key)?;
            let value = value.ok_or_else(|| Failure::usage("no value"))?;
            let mut channel = super::open_patiently(ui, &appliance, wait).await?;
            let services = put(&mut channel, &key, &name, &value).await?;
            let text = format!("stored {name}\n{}", consequences(&services));
            ui.result(&text, json!({ "stored": name, "services": services }));
            Ok(())
        }
        Secret::Put { appliance, wait, name: None, env_file, key, .. } => {
            let key = OperatorKey::load(&key)?;
            let path = env_file.ok_or_else(|| Failure::usage("no secret is named"))?;
            let values = values_of(&path)?;
            let mut channel = super::open_patiently(ui, &appliance, wait).await?;
            let mut services = Vec::new();
            for (stored, (name, value)) in values.iter().enumerate() {
                let affected =
                    put(&mut channel, &key, name, value.as_bytes()).await.map_err(|failure| Failure {
                        message: format!(
                            "{name}: {} ({stored} of {} are stored)",
                            failure.message,
                            values.len()
                        ),
                        ..failure
                    })?;
                services.extend(affected);
                ui.note(&format!("stored {name}"));
            }
            services.sort_by(|one, other| one.service.cmp(&other.service));
            services.dedup();
            let names: Vec<_> = values.iter().map(|(name, _)| name).collect();
            let text = format!("stored {} secrets\n{}", names.len(), consequences(&services));
            ui.result(&text, json!({ "stored": names, "services": services }));
            Ok(())
        }
        Secret::List { appliance, wait, key } => {
            let key = OperatorKey::load(&key)?;
            let mut channel = super::open_patiently(ui, &appliance, wait).await?;
            let reply = channel.request(&key, "GET", SECRETS, Vec::new()).await?;
            if reply.status != StatusCode::OK {
                return Err(refusal(&reply, "the secrets were not listed"));
            }
            let list: SecretsReply = strict::from_json(&reply.body, MAX_OPERATOR_REPLY).map_err(|error| {
                Failure::failed(format!("the appliance's list is malformed: {}", chain(&error)))
            })?;
            let mut text = String::new();
            for secret in &list.secrets {
                let _ =
                    writeln!(text, "{}  version {}  {}", secret.reference, secret.version, secret.updated_at);
            }
            ui.result(&text, json!({ "secrets": list.secrets }));
            Ok(())
        }
        Secret::Rm { appliance, wait, name, key, .. } => {
            let key = OperatorKey::load(&key)?;
            let mut channel = super::open_patiently(ui, &appliance, wait).await?;
            let reply = channel.request(&key, "DELETE", &secret_path(&name), Vec::new()).await?;
            if !reply.status.is_success() {
                return Err(refusal(&reply, "the secret was not removed"));
            }
            ui.result(&format!("removed {name}\n"), json!({ "removed": name }));
            Ok(())
        }
    }
}

/// Seals one value to the vault and stores it. Which services are given it.
pub(super) async fn put(
    channel: &mut Channel,
    key: &OperatorKey,
    name: &SecretRef,
    value: &[u8],
) -> Outcome<Vec<Affected>> {
    let sealed = operator::seal_secret(channel.claims.vault_key.as_bytes(), name, value)
        .map_err(|error| Failure::failed(format!("cannot seal the secret: {}", chain(&error))))?;
    let body = strict::to_vec(&sealed).map_err(|error| Failure::failed(chain(&error)))?;
    let reply = channel.request(key, "PUT", &secret_path(name), body).await?;
    if !reply.status.is_success() {
        return Err(refusal(&reply, "the secret was not stored"));
    }
    let stored: StoredReply = strict::from_json(&reply.body, MAX_OPERATOR_REPLY).map_err(|error| {
        Failure::failed(format!("the secret is stored, but the answer is malformed: {}", chain(&error)))
    })?;
    Ok(stored.services)
}

/// What the services do about it that are given a secret, a line for each.
fn consequences(services: &[Affected]) -> String {
    let line = |answer: &Affected| {
        let (service, on_change) = (printable(&answer.service), printable(&answer.on_change));
        match on_change.as_str() {
            "nothing" => format!("{service} keeps what it was given until it starts again\n"),
            "notify" => format!("{service} gets its files anew, if it is running\n"),
            "restart" => format!("{service} restarts, if it is running\n"),
            other => format!("{service} gets its files anew and the {other}, if it is running\n"),
        }
    };
    services.iter().map(line).collect()
}

/// The secrets of a file, all of which can be stored as far as that can be known here.
pub(crate) fn values_of(path: &Path) -> Outcome<Vec<(SecretRef, Zeroizing<String>)>> {
    let bytes = files::read_secret(path, MAX_FILE)?;
    let at = |why: String| Failure::usage(format!("{}: {why}", path.display()));
    let text = std::str::from_utf8(&bytes).map_err(|_| at("it is not UTF-8".to_owned()))?;
    let read = env_file(text, &BTreeMap::new(), |key| reference(key).is_some()).map_err(|why| {
        at(why).hint("each line is NAMESPACE/NAME/FIELD=value; `coffer import --secrets` writes such a file")
    })?;
    if read.is_empty() {
        return Err(at("it has no secrets".to_owned()));
    }
    let known = |(key, value): (String, String)| {
        let value = Zeroizing::new(value);
        let name = reference(&key).ok_or_else(|| at(format!("`{key}` is no secret's name")))?;
        match value.len() {
            0 => Err(at(format!("{name} has no value"))),
            1..=MAX_SECRET => Ok((name, value)),
            _ => Err(at(format!("{name} has more than {MAX_SECRET} bytes"))),
        }
    };
    read.into_iter().map(known).collect()
}

/// A secret's name, with `secret://` or without.
fn reference(text: &str) -> Option<SecretRef> {
    text.parse().or_else(|_| format!("{SECRET_SCHEME}{text}").parse()).ok()
}

/// The namespace of what the appliance itself needs, such as the token with which it publishes.
const OWN: &str = "cofferdam";

/// Whether a secret is removed: a person is asked before the appliance loses one of its own.
pub(crate) fn may_be_removed(name: &SecretRef, no_input: bool) -> Outcome {
    if !name.path().starts_with(&format!("{OWN}/")) {
        return Ok(());
    }
    let what = format!(
        "{name} is the appliance's own: without its token it publishes no attestation, and clients stop"
    );
    if no_input || !hidden::is_asked() {
        return Err(Failure::usage(what).hint("--yes removes it without a question"));
    }
    match hidden::yes(&format!("{what}. Remove it?"))? {
        true => Ok(()),
        false => Err(Failure::failed("nothing was removed")),
    }
}

/// The value from standard input, or asked for on a terminal without showing it.
pub(crate) fn read_value(
    name: &SecretRef,
    keep_newline: bool,
    no_input: bool,
) -> Outcome<Zeroizing<Vec<u8>>> {
    let limit = MAX_SECRET;
    let hint = "printf %s \"$VALUE\" | coffer secret put …";
    let mut value = hidden::read(&format!("value of {name}"), limit, no_input, hint)?;
    if !keep_newline && value.last() == Some(&b'\n') {
        value.pop();
    }
    if value.is_empty() {
        return Err(Failure::usage("the value is empty"));
    }
    if value.len() > limit {
        return Err(Failure::usage(format!("the value has more than {limit} bytes")));
    }
    Ok(value)
}
