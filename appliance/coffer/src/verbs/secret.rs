//! `coffer secret put|list|rm`: on a verified connection, sealed to the vault's attested key.

use std::fmt::Write as _;

use cofferdam_attest::operator;
use cofferdam_protocol::operator::{MAX_SECRET, SECRETS, secret_path};
use cofferdam_protocol::vault::{MAX_OPERATOR_REPLY, SecretsReply};
use cofferdam_protocol::{SecretRef, json as strict};
use hyper::StatusCode;
use serde_json::json;
use zeroize::Zeroizing;

use crate::channel::refusal;
use crate::cli::Secret;
use crate::failure::{Failure, Outcome, chain};
use crate::hidden;
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
