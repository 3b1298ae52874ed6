//! `coffer secret put|list|rm`: on a verified connection, sealed to the vault's attested key.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Read as _};

use cofferdam_attest::operator;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use zeroize::Zeroizing;

use crate::channel::refusal;
use crate::cli::Secret;
use crate::failure::{Failure, Outcome, chain};
use crate::operator_key::OperatorKey;
use crate::ui::{Ui, printable};

pub(crate) async fn run(ui: &Ui, action: Secret, value: Option<Zeroizing<Vec<u8>>>) -> Outcome {
    match action {
        Secret::Put { appliance, name, key, .. } => {
            let reference = super::reference(&name)?;
            let key = OperatorKey::load(&key)?;
            let value = value.ok_or_else(|| Failure::usage("no value"))?;
            let mut channel = super::open(ui, &appliance, None).await?;
            let vault_key =
                channel.claims.vault_key_bytes().ok_or_else(|| Failure::rejected("vault_key: not a key"))?;
            let sealed = operator::seal_secret(&vault_key, &reference.to_string(), &value)
                .map_err(|error| Failure::failed(format!("cannot seal the secret: {}", chain(&error))))?;
            let body = serde_json::to_vec(&sealed).map_err(|error| Failure::failed(error.to_string()))?;
            let reply = channel.request(&key, "PUT", &path(&reference), body).await?;
            if !reply.status.is_success() {
                return Err(refusal(&reply, "the secret was not stored"));
            }
            ui.result(&format!("stored {reference}\n"), json!({ "stored": reference.to_string() }));
            Ok(())
        }
        Secret::List { appliance, key } => {
            let key = OperatorKey::load(&key)?;
            let mut channel = super::open(ui, &appliance, None).await?;
            let reply = channel.request(&key, "GET", "/v1/secrets", Vec::new()).await?;
            if reply.status != StatusCode::OK {
                return Err(refusal(&reply, "the secrets were not listed"));
            }
            let list: List = serde_json::from_slice(&reply.body)
                .map_err(|error| Failure::failed(format!("the appliance's list is malformed: {error}")))?;
            let mut text = String::new();
            for secret in &list.secrets {
                let _ = writeln!(
                    text,
                    "{}  version {}  {}",
                    printable(&secret.reference),
                    secret.version,
                    printable(&secret.updated_at)
                );
            }
            ui.result(&text, json!({ "secrets": list.secrets }));
            Ok(())
        }
        Secret::Rm { appliance, name, key } => {
            let reference = super::reference(&name)?;
            let key = OperatorKey::load(&key)?;
            let mut channel = super::open(ui, &appliance, None).await?;
            let reply = channel.request(&key, "DELETE", &path(&reference), Vec::new()).await?;
            if !reply.status.is_success() {
                return Err(refusal(&reply, "the secret was not removed"));
            }
            ui.result(&format!("removed {reference}\n"), json!({ "removed": reference.to_string() }));
            Ok(())
        }
    }
}

#[derive(Deserialize)]
struct List {
    secrets: Vec<Listed>,
}

#[derive(Deserialize, Serialize)]
struct Listed {
    reference: String,
    version: u64,
    updated_at: String,
}

/// The parts of a reference hold only letters, digits, dots, dashes and underscores: they stand in a path as they are.
fn path(reference: &cofferdam_declaration::SecretRef) -> String {
    let text = reference.to_string();
    format!("/v1/secrets/{}", text.strip_prefix("secret://").unwrap_or(&text))
}

/// The value from standard input, or asked for on a terminal without showing it.
pub(crate) fn read_value(name: &str, keep_newline: bool, no_input: bool) -> Outcome<Zeroizing<Vec<u8>>> {
    let limit = operator::MAX_SECRET;
    let mut value = if std::io::stdin().is_terminal() {
        if no_input {
            return Err(Failure::usage("the value is read from standard input")
                .hint("printf %s \"$VALUE\" | coffer secret put …"));
        }
        let typed = rpassword::prompt_password(format!("value of {name}: "))
            .map_err(|error| Failure::failed(format!("cannot ask for the value: {error}")))?;
        Zeroizing::new(typed.into_bytes())
    } else {
        let mut bytes = Zeroizing::new(Vec::with_capacity(limit.saturating_add(2)));
        let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(2);
        std::io::stdin()
            .lock()
            .take(most)
            .read_to_end(&mut bytes)
            .map_err(|error| Failure::failed(format!("cannot read the value: {error}")))?;
        bytes
    };
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
