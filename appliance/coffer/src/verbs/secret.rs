//! `coffer secret put|list|rm`: on a verified connection, sealed to the vault's attested key.

use std::fmt::Write as _;
use std::io::IsTerminal as _;

use cofferdam_attest::operator;
use cofferdam_protocol::operator::{MAX_SECRET, SECRETS, secret_path};
use cofferdam_protocol::vault::{MAX_OPERATOR_REPLY, SecretsReply};
use cofferdam_protocol::{SecretRef, json as strict, read};
use hyper::StatusCode;
use serde_json::json;
use zeroize::Zeroizing;

use crate::channel::refusal;
use crate::cli::Secret;
use crate::failure::{Failure, Outcome, chain};
use crate::operator_key::OperatorKey;
use crate::ui::Ui;

pub(crate) async fn run(ui: &Ui, action: Secret, value: Option<Zeroizing<Vec<u8>>>) -> Outcome {
    match action {
        Secret::Put { appliance, name, key, .. } => {
            let key = OperatorKey::load(&key)?;
            let value = value.ok_or_else(|| Failure::usage("no value"))?;
            let mut channel = super::open(ui, &appliance, None).await?;
            let sealed = operator::seal_secret(channel.claims.vault_key.as_bytes(), &name, &value)
                .map_err(|error| Failure::failed(format!("cannot seal the secret: {}", chain(&error))))?;
            let body = strict::to_vec(&sealed).map_err(|error| Failure::failed(chain(&error)))?;
            let reply = channel.request(&key, "PUT", &secret_path(&name), body).await?;
            if !reply.status.is_success() {
                return Err(refusal(&reply, "the secret was not stored"));
            }
            ui.result(&format!("stored {name}\n"), json!({ "stored": name }));
            Ok(())
        }
        Secret::List { appliance, key } => {
            let key = OperatorKey::load(&key)?;
            let mut channel = super::open(ui, &appliance, None).await?;
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
        Secret::Rm { appliance, name, key } => {
            let key = OperatorKey::load(&key)?;
            let mut channel = super::open(ui, &appliance, None).await?;
            let reply = channel.request(&key, "DELETE", &secret_path(&name), Vec::new()).await?;
            if !reply.status.is_success() {
                return Err(refusal(&reply, "the secret was not removed"));
            }
            ui.result(&format!("removed {name}\n"), json!({ "removed": name }));
            Ok(())
        }
    }
}

/// The value from standard input, or asked for on a terminal without showing it.
pub(crate) fn read_value(
    name: &SecretRef,
    keep_newline: bool,
    no_input: bool,
) -> Outcome<Zeroizing<Vec<u8>>> {
    let limit = MAX_SECRET;
    let mut value = if std::io::stdin().is_terminal() {
        if no_input {
            return Err(Failure::usage("the value is read from standard input")
                .hint("printf %s \"$VALUE\" | coffer secret put …"));
        }
        let typed = rpassword::prompt_password(format!("value of {name}: "))
            .map_err(|error| Failure::failed(format!("cannot ask for the value: {error}")))?;
        Zeroizing::new(typed.into_bytes())
    } else {
        // With a line feed at the end, which is cut off. What is longer still is cut here and refused below.
        let mut bytes = Zeroizing::new(Vec::with_capacity(limit.saturating_add(2)));
        let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        match read::bounded_into(std::io::stdin().lock(), most, &mut bytes) {
            Err(error) if error.kind() != std::io::ErrorKind::FileTooLarge => {
                return Err(Failure::failed(format!("cannot read the value: {error}")));
            }
            _ => bytes,
        }
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
