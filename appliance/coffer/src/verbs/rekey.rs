//! `coffer seal rekey`: replaces what opens the state of an appliance that runs.

use cofferdam_attest::{operator, shares};
use cofferdam_protocol::json as strict;
use cofferdam_protocol::unseal::{
    MAX_PASSPHRASE, MIN_PASSPHRASE, NewKey, OpeningKey, REKEY, RekeyRequest, Sealable as _, SecretBytes,
};
use hyper::StatusCode;
use serde_json::json;
use zeroize::Zeroizing;

use super::seal::{FirstWay, hand_out, random, secret};
use crate::channel::refusal;
use crate::cli::Rekey;
use crate::failure::{Failure, Outcome, chain};
use crate::hidden;
use crate::operator_key::OperatorKey;
use crate::seal_text::{self, SealTextError};
use crate::ui::Ui;

/// What was typed, or came on standard input: what opens the state now, and a new passphrase where one is wanted.
pub(super) fn read_keys(options: &Rekey, no_input: bool) -> Outcome<Zeroizing<Vec<u8>>> {
    let repository = &options.appliance.repository;
    let now = format!("passphrase or recovery key of {repository}");
    let new = format!("new passphrase of {repository}");
    let new = takes_passphrase(options).then_some(new.as_str());
    let typed = hidden::pair(&now, new, MAX_PASSPHRASE, no_input, "coffer seal rekey … < FILE")?;
    // A slip of the pen is said before anybody is asked.
    parts(options, &typed).map(|_| typed)
}

fn takes_passphrase(options: &Rekey) -> bool {
    !options.recovery && options.division.is_none()
}

/// What opens it now, and the new passphrase.
fn parts(options: &Rekey, typed: &[u8]) -> Outcome<(OpeningKey, Option<Zeroizing<Vec<u8>>>)> {
    let text = std::str::from_utf8(typed).map_err(|_| Failure::usage("not UTF-8"))?;
    let (now, new) = match (text.split_once('\n'), takes_passphrase(options)) {
        (Some((now, new)), true) if !new.contains('\n') => (now, Some(new)),
        (None, false) => (text, None),
        (_, true) => {
            let what = "two lines are needed: what opens the state now, and the new passphrase";
            return Err(Failure::usage(what));
        }
        (_, false) => return Err(Failure::usage("one line is needed: what opens the state now")),
    };
    let bytes = |text: &str| Zeroizing::new(text.as_bytes().to_vec());
    let key = match seal_text::parse_recovery(now) {
        Ok(recovery) => OpeningKey::Recovery { recovery: SecretBytes(Zeroizing::new(recovery.to_vec())) },
        Err(error @ SealTextError::Check) => {
            return Err(Failure::usage(format!("not a recovery key: {error}")));
        }
        Err(SealTextError::IsShare) => {
            return Err(Failure::usage("shares open the state one at a time; give the recovery key here"));
        }
        Err(_) if now.is_empty() || now.len() > MAX_PASSPHRASE => {
            return Err(Failure::usage("the first line is neither a passphrase nor a recovery key"));
        }
        Err(_) => OpeningKey::Passphrase { passphrase: SecretBytes(bytes(now)) },
    };
    match new {
        Some(new) if !(MIN_PASSPHRASE..=MAX_PASSPHRASE).contains(&new.len()) => Err(Failure::usage(format!(
            "the new passphrase has not {MIN_PASSPHRASE} to {MAX_PASSPHRASE} bytes"
        ))),
        new => Ok((key, new.map(bytes))),
    }
}

pub(super) async fn run(ui: &Ui, options: &Rekey, typed: Option<Zeroizing<Vec<u8>>>) -> Outcome {
    let operator_key = OperatorKey::load(&options.key)?;
    let typed = typed.ok_or_else(|| Failure::usage("no key"))?;
    let (key, passphrase) = parts(options, &typed)?;
    if let Some(path) = options.recovery_out.as_deref().filter(|path| path.exists()) {
        return Err(Failure::usage(format!("{} already exists", path.display())));
    }
    let mut channel = super::open(ui, &options.appliance, None).await?;
    if channel.claims.state_epoch == 0 {
        return Err(Failure::failed("the appliance keeps its state in memory: nothing opens it"));
    }
    // From here on somebody has the keys, or nothing is replaced.
    let (new, what) = if options.recovery {
        let recovery = random::<{ shares::KEY }>()?;
        hand_out(ui, options.recovery_out.as_deref(), Some(&recovery), &[])?;
        (NewKey::Recovery { recovery: secret(recovery.as_slice()) }, "recovery key")
    } else {
        let way = FirstWay::new(options.division.as_ref(), passphrase)?;
        let shares = way.shares();
        if !shares.is_empty() {
            hand_out(ui, None, None, &shares)?;
        }
        let what = if shares.is_empty() { "passphrase" } else { "shares" };
        (NewKey::Method(way.into_new()), what)
    };
    ui.note("replacing what opens the state …");
    let text = RekeyRequest { key, new }.write().map_err(|error| Failure::failed(chain(&error)))?;
    let sealed = operator::seal_key(channel.claims.vault_key.as_bytes(), &text)
        .map_err(|error| Failure::failed(format!("cannot seal the request: {}", chain(&error))))?;
    let body = strict::to_vec(&sealed).map_err(|error| Failure::failed(chain(&error)))?;
    let reply = channel.request(&operator_key, "POST", REKEY, body).await.map_err(|failure| {
        failure
            .hint("it may have been replaced: keep both, until `coffer seal rekey` or the next boot shows it")
    })?;
    if reply.status != StatusCode::NO_CONTENT {
        return Err(refusal(&reply, "nothing was replaced, and new keys that were printed open nothing"));
    }
    let words = format!("replaced: the {what} of before opens nothing any more");
    match takes_passphrase(options) {
        true => ui.result(&format!("{words}\n"), json!({ "replaced": what })),
        // The keys were the result.
        false => ui.note(&words),
    }
    Ok(())
}
