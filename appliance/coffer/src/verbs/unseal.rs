//! `coffer unseal`: gives an appliance that waits what opens its state.

use std::time::Duration;

use cofferdam_protocol::unseal::{
    self, MAX_PASSPHRASE, Method, OpeningKey, SealDisk, SecretBytes, UnsealRequest,
};
use serde_json::json;
use tokio::time::sleep;
use zeroize::Zeroizing;

use super::allow_upgrade;
use super::sealed::{Found, Target, Waiting, open_result};
use crate::cli::Unseal;
use crate::failure::{Code, Failure, Outcome};
use crate::hidden;
use crate::operator_key::OperatorKey;
use crate::seal_text::{self, SealTextError};
use crate::ui::{Ui, printable};
use crate::within;
use crate::witness::Witness;

/// What was typed, or came on standard input.
pub(super) fn read_key(options: &Unseal, no_input: bool) -> Outcome<Zeroizing<Vec<u8>>> {
    let repository = &options.appliance.repository;
    let (what, limit) = match way(options) {
        Way::Passphrase => (format!("passphrase of {repository}"), MAX_PASSPHRASE),
        Way::Recovery => (format!("recovery key of {repository}"), seal_text::MAX_TEXT),
        Way::Share => (format!("share of {repository}"), seal_text::MAX_TEXT),
    };
    let typed = hidden::line(&what, limit, no_input, "coffer unseal … < FILE")?;
    // A slip of the pen is said before anybody is asked.
    key_of(way(options), &typed).map(|_| typed)
}

pub(super) async fn run(
    ui: &Ui,
    options: &Unseal,
    typed: Option<Zeroizing<Vec<u8>>>,
    limit: Duration,
) -> Outcome {
    let key = OperatorKey::load(&options.key)?;
    let typed = typed.ok_or_else(|| Failure::usage("no key"))?;
    let upgrade = options.upgrade.as_deref().map(allow_upgrade::read).transpose()?;
    let repository = &options.appliance.repository;
    let target =
        within(limit, Target::find(ui, &options.appliance, options.elsewhere.declaration.as_deref())).await?;
    let found = within(limit, target.look(&key)).await?;
    target.introduce(&found);
    let mut waiting = match found {
        Found::Waiting(waiting) => waiting,
        Found::Launched { epoch, .. } => {
            ui.note("the appliance has launched already");
            let (text, value) = open_result(epoch);
            ui.result(&text, value);
            return Ok(());
        }
    };
    let witness = within(limit, target.witness(&options.elsewhere, waiting.status.rollback)).await?;
    let peer = waiting.status.peers.iter().filter_map(|peer| peer.epoch).max().unwrap_or(0);
    let witness = Witness { epoch: witness.epoch.max(peer), ..witness };
    let accepts =
        format!("coffer unseal {repository} --accept-loss goes on, which the appliance measures and attests");
    witness.whole(options.accept_loss, &accepts)?;
    has_way(&waiting, way(options), witness.epoch, repository)?;
    if upgrade.is_none() {
        needs_no_statement(&waiting, repository)?;
    }
    if waiting.status.disk != SealDisk::Open {
        if let Some(ms) = Some(waiting.status.wait_ms).filter(|ms| *ms > 0) {
            ui.note(&format!("waiting {} s: there were wrong attempts", ms.div_ceil(1000)));
            sleep(Duration::from_millis(ms)).await;
        }
        // Where something was waited for meanwhile the connection may be gone.
        if let Found::Waiting(again) = within(limit, target.look(&key)).await? {
            waiting = again;
        }
        ui.note(match way(options) {
            Way::Passphrase => "opening the state with the passphrase …",
            Way::Recovery => "opening the state with the recovery key …",
            Way::Share => "giving the share …",
        });
        let (at_least, said) = said(&witness, options.accept_loss);
        let key_given = key_of(way(options), &typed)?;
        let request = UnsealRequest::Open { key: key_given, at_least, witness: said, upgrade };
        let sent = within(limit, waiting.send(&key, &request, "the state was not opened")).await?;
        match sent.as_ref().map(|status| status.disk) {
            Some(SealDisk::Open) => ui.note("the state is open; the appliance launches …"),
            // Which it was, the appliance shows.
            None => ui.note("no answer came; looking whether the state is open …"),
            Some(_) => return more_shares(ui, sent.iter().flat_map(|status| &status.methods)),
        }
    }
    let (text, value) = open_result(target.launched(&key, false, limit).await?);
    ui.result(&text, value);
    Ok(())
}

/// What the appliance is told of witnesses. Who accepts a loss opens whatever is there, and it comes after what is lost.
fn said(witness: &Witness, accept_loss: bool) -> (u64, unseal::Witness) {
    let gives_up = witness.given_up().filter(|_| accept_loss);
    let at_least = if gives_up.is_some() { 0 } else { witness.epoch };
    (at_least, unseal::Witness { unwitnessed: witness.unwitnessed, gives_up })
}

/// The ways to open a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Passphrase,
    Recovery,
    Share,
}

fn way(options: &Unseal) -> Way {
    match (options.recovery, options.share) {
        (true, _) => Way::Recovery,
        (_, true) => Way::Share,
        _ => Way::Passphrase,
    }
}

fn key_of(way: Way, typed: &[u8]) -> Outcome<OpeningKey> {
    let text = std::str::from_utf8(typed).map_err(|_| Failure::usage("not UTF-8"))?;
    let bytes = |bytes: &[u8]| SecretBytes(Zeroizing::new(bytes.to_vec()));
    let wrong = |what: &str, error: SealTextError| {
        let failure = Failure::usage(format!("not a {what}: {error}"));
        match error {
            SealTextError::IsShare => failure.hint("a share is given with --share"),
            SealTextError::IsRecovery => failure.hint("the recovery key is given with --recovery"),
            SealTextError::Check | SealTextError::Shape(_) => failure,
        }
    };
    match way {
        Way::Passphrase => Ok(OpeningKey::Passphrase { passphrase: bytes(typed) }),
        Way::Recovery => {
            let key = seal_text::parse_recovery(text).map_err(|error| wrong("recovery key", error))?;
            Ok(OpeningKey::Recovery { recovery: bytes(key.as_slice()) })
        }
        Way::Share => {
            let (set, share) = seal_text::parse_share(text).map_err(|error| wrong("share", error))?;
            Ok(OpeningKey::Share { set, index: share.index, share: bytes(share.bytes.as_slice()) })
        }
    }
}

/// Insists that there is something to open, and that it has this way.
fn has_way(
    waiting: &Waiting,
    way: Way,
    at_least: u64,
    repository: &cofferdam_protocol::Repository,
) -> Outcome {
    let by_peer = if waiting.status.peers.is_empty() { "" } else { " --peer" };
    let hint = format!("coffer seal init {repository}{by_peer}");
    match waiting.status.disk {
        SealDisk::Open => return Ok(()),
        SealDisk::Blank if at_least > 0 => return Err(lost(at_least, &hint)),
        SealDisk::Blank => {
            return Err(
                Failure::new(Code::NotReady, "the state disk is blank: there is nothing to open").hint(hint)
            );
        }
        SealDisk::Sealed => {}
    }
    let is = |method: &Method| match method {
        Method::Passphrase => way == Way::Passphrase,
        Method::Shares { .. } => way == Way::Share,
        Method::Recovery => way == Way::Recovery,
        // It opens the state by itself.
        Method::Peer => false,
    };
    if waiting.status.methods.iter().any(is) {
        return Ok(());
    }
    let ways = waiting.status.methods.iter().map(|method| match method {
        Method::Passphrase => "a passphrase",
        Method::Shares { .. } => "shares (--share)",
        Method::Recovery => "the recovery key (--recovery)",
        Method::Peer => "a key server, by itself",
    });
    let ways: Vec<&str> = ways.collect();
    Err(Failure::usage(format!("this state is not opened so; it opens with {}", ways.join(" or "))))
}

/// Without a statement no key is sent to an appliance that would refuse it.
fn needs_no_statement(waiting: &Waiting, repository: &cofferdam_protocol::Repository) -> Outcome {
    let why = waiting.status.lineage.as_ref().and_then(|lineage| lineage.needs_statement.as_ref());
    why.map_or(Ok(()), |why| {
        Err(Failure::new(Code::NotReady, printable(why)).hint(format!(
            "an operator of the state allows it: coffer seal allow-upgrade {repository} -o FILE, then coffer unseal {repository} --upgrade FILE"
        )))
    })
}

/// A blank disk where there was a state: another disk, or one that was erased.
pub(super) fn lost(epoch: u64, init: &str) -> Failure {
    Failure::rejected(format!(
        "the state disk is blank, and a release attests a state of epoch {epoch}: it is another disk, or it was erased"
    ))
    .hint(format!("attach the disk that the appliance ran with; `{init} --accept-loss` gives up what it held"))
}

/// A share was taken, and does not suffice.
fn more_shares<'m>(ui: &Ui, mut methods: impl Iterator<Item = &'m Method>) -> Outcome {
    let counted = methods.find_map(|method| match method {
        Method::Shares { threshold, given, .. } => Some((*given, *threshold)),
        _ => None,
    });
    let Some((given, threshold)) = counted else {
        return Err(Failure::failed("the appliance took the key, and its state is not open"));
    };
    ui.result(
        &format!("share given: {given} of {threshold}; still sealed\n"),
        json!({ "state": "sealed", "given": given, "threshold": threshold }),
    );
    Ok(())
}
