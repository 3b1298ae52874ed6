//! `coffer seal init|status`: makes a state on a blank disk, and shows whether it is open.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use cofferdam_attest::event_log::payload::State;
use cofferdam_attest::shares;
use cofferdam_protocol::hex;
use cofferdam_protocol::unseal::{
    self, MAX_PASSPHRASE, MIN_PASSPHRASE, Method, NewMethod, SealDisk, SealStatus, SecretBytes, UnsealRequest,
};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::sealed::{Found, Target, open_result, printed};
use super::unseal::lost;
use crate::cli::{self, Division, SealInit};
use crate::failure::{Code, Failure, Outcome, chain};
use crate::files;
use crate::hidden;
use crate::operator_key::OperatorKey;
use crate::seal_text::{self, Set};
use crate::ui::{Ui, printable};
use crate::within;
use crate::witness::Witness;

/// A new passphrase: asked for twice where somebody is asked.
pub(super) fn read_passphrase(options: &SealInit, no_input: bool) -> Outcome<Zeroizing<Vec<u8>>> {
    let repository = &options.appliance.repository;
    let what = format!("new passphrase of {repository}");
    let typed = hidden::line(&what, MAX_PASSPHRASE, no_input, "coffer seal init … < FILE, or --shares")?;
    if typed.len() < MIN_PASSPHRASE {
        return Err(Failure::usage(format!("the passphrase has less than {MIN_PASSPHRASE} bytes")));
    }
    if hidden::is_asked() && *hidden::line("once more", MAX_PASSPHRASE, no_input, "")? != *typed {
        return Err(Failure::usage("these were two passphrases"));
    }
    Ok(typed)
}

pub(super) async fn init(
    ui: &Ui,
    options: &SealInit,
    passphrase: Option<Zeroizing<Vec<u8>>>,
    limit: Duration,
) -> Outcome {
    let key = OperatorKey::load(&options.key)?;
    let repository = &options.appliance.repository;
    if let Some(path) = options.recovery_out.as_deref().filter(|path| path.exists()) {
        return Err(Failure::usage(format!("{} already exists", path.display())));
    }
    let method = match options.peer {
        true => FirstWay::Peer,
        false => FirstWay::new(options.division.as_ref(), passphrase)?,
    };
    let target =
        within(limit, Target::find(ui, &options.appliance, options.elsewhere.declaration.as_deref())).await?;
    let found = within(limit, target.look(&key)).await?;
    target.introduce(&found);
    let waiting = blank(found, repository)?;
    let witnessed = key_servers(&waiting.status, options.peer)?;
    let witness = within(limit, target.witness(&options.elsewhere, waiting.status.rollback)).await?;
    let witness = Witness { epoch: witness.epoch.max(witnessed), ..witness };
    if witness.epoch > 0 && !options.accept_loss {
        let by_peer = if options.peer { " --peer" } else { "" };
        return Err(lost(witness.epoch, &format!("coffer seal init {repository}{by_peer}")));
    }
    // The connection may be gone since, and keys of an appliance that is gone are of no use.
    let mut waiting = blank(within(limit, target.look(&key)).await?, repository)?;
    let recovery = random::<{ shares::KEY }>()?;
    // From here on somebody has the keys, or nothing is sealed.
    hand_out(ui, options.recovery_out.as_deref(), Some(&recovery), &method.shares())?;
    ui.note("making the state …");
    let said = unseal::Witness { unwitnessed: witness.unwitnessed, gives_up: witness.given_up() };
    let (method, recovery) = (method.into_new(), secret(recovery.as_slice()));
    let request = UnsealRequest::Create { method, recovery, witness: said };
    let sent = within(
        limit,
        waiting.send(&key, &request, "the state was not made, and the printed keys open nothing"),
    );
    match sent.await?.map(|status| status.disk) {
        Some(SealDisk::Open) => ui.note("the state is made; the appliance launches …"),
        Some(SealDisk::Sealed) if options.peer => {
            ui.note("the state is made; a key server opens it, and the appliance launches …");
        }
        None => ui.note("no answer came; looking whether the state was made: keep the printed keys …"),
        Some(_) => return Err(Failure::failed("the appliance took the keys, and its state is not open")),
    }
    let epoch = target.launched(&key, options.peer, limit).await?;
    // The keys were the result.
    ui.note(open_result(epoch).0.trim_end());
    Ok(())
}

pub(super) async fn status(ui: &Ui, appliance: &cli::Appliance, key: &cli::OperatorKey) -> Outcome {
    let key = OperatorKey::load(key)?;
    let target = Target::find(ui, appliance, None).await?;
    let found = target.look(&key).await?;
    target.introduce(&found);
    let witness = target.releases().await;
    if let Err(failure) = &witness {
        ui.warn(&format!("no witness can be asked: {}", failure.message));
    }
    let witness = witness.ok();
    let (witness_line, witness_value) = witness.as_ref().map(witness_result).unwrap_or_default();
    let waiting = match found {
        Found::Launched { epoch, channel } => {
            let (mut text, mut value) = open_result(epoch);
            if let Some(State::Disk { lineage, continuity, .. }) = &channel.appraisal.state {
                let _ = writeln!(text, "lineage {lineage}");
                set(&mut value, "lineage", json!({ "version": lineage }));
                let _ = continuity.map(|continuity| {
                    let said = continuity.to_string();
                    set(&mut value, "continuity", serde_json::to_value(continuity).unwrap_or_default());
                    writeln!(text, "anchor {}{said}", continuity.anchor)
                });
            }
            text.push_str(&witness_line);
            set(&mut value, "witness", witness_value);
            ui.result(&text, value);
            return witness.map_or(Ok(()), |witness| is_present(ui, &witness, epoch));
        }
        Found::Waiting(waiting) => waiting,
    };
    let status = &waiting.status;
    let mut value = to_json(status);
    set(&mut value, "witness", witness_value);
    ui.result(&(table(status) + &witness_line), value);
    let repository = &appliance.repository;
    if let Some(gone) = witness.and_then(|witness| witness.gone) {
        let hint = format!(
            "`coffer unseal {repository} --accept-loss` goes on, which the appliance measures and attests"
        );
        return Err(printed(ui, Failure::rejected(gone).hint(hint)));
    }
    let needs_statement = status.lineage.as_ref().is_some_and(|lineage| lineage.needs_statement.is_some());
    let (what, hint) = match status.disk {
        SealDisk::Blank => {
            let by_peer = if status.peers.is_empty() { "" } else { " --peer" };
            ("the state disk is blank", format!("coffer seal init {repository}{by_peer}"))
        }
        SealDisk::Sealed if needs_statement => (
            "the state is sealed, and not left to this appliance",
            format!(
                "coffer seal allow-upgrade {repository} -o FILE, then coffer unseal {repository} --upgrade FILE"
            ),
        ),
        SealDisk::Sealed if !status.peers.is_empty() => (
            "the state is sealed",
            format!("a key server opens it; without one: coffer unseal {repository} --recovery"),
        ),
        SealDisk::Sealed => ("the state is sealed", format!("coffer unseal {repository}")),
        SealDisk::Open => return Ok(()),
    };
    Err(printed(ui, Failure::new(Code::NotReady, what).hint(hint)))
}

/// A running appliance's state must not be older than what a witness knows.
fn is_present(ui: &Ui, witness: &Witness, epoch: u64) -> Outcome {
    let failure = match &witness.gone {
        Some(gone) => Failure::rejected(gone.clone()),
        None if epoch > 0 && witness.epoch > epoch => Failure::rejected(format!(
            "the state is an older copy: it opened at epoch {epoch}, and a witness knows epoch {}",
            witness.epoch
        ))
        .hint("end the appliance, and start it with the disk that it ran with last"),
        None => return Ok(()),
    };
    Err(printed(ui, failure))
}

/// What the releases know, in a line and as an object.
fn witness_result(witness: &Witness) -> (String, Value) {
    let anchor = match witness.anchor {
        0 => String::new(),
        number => format!(", anchor {number}"),
    };
    let text = match witness.epoch {
        0 => "witness: the releases know of no state\n".to_owned(),
        epoch => format!("witness: the releases know epoch {epoch}{anchor}\n"),
    };
    (text, json!({ "epoch": witness.epoch, "anchor": witness.anchor, "gone": witness.gone }))
}

/// The first way to open the new state.
pub(super) enum FirstWay {
    Passphrase(Zeroizing<Vec<u8>>),
    Peer,
    Shares { key: Zeroizing<[u8; shares::KEY]>, set: Set, threshold: u8, shares: Vec<shares::Share> },
}

impl FirstWay {
    pub(super) fn new(division: Option<&Division>, passphrase: Option<Zeroizing<Vec<u8>>>) -> Outcome<Self> {
        let Some(Division { shares, threshold }) = division else {
            let passphrase = passphrase.ok_or_else(|| Failure::usage("no passphrase"))?;
            return Ok(Self::Passphrase(passphrase));
        };
        if threshold > shares {
            return Err(Failure::usage(format!("{threshold} of {shares} shares cannot be given")));
        }
        let key = random::<{ shares::KEY }>()?;
        let set = *random::<8>()?;
        let divided = shares::split(&key, *threshold, *shares, getrandom::fill)
            .map_err(|error| Failure::failed(format!("cannot divide the key: {}", chain(&error))))?;
        Ok(Self::Shares { key, set: set.into(), threshold: *threshold, shares: divided })
    }

    pub(super) fn shares(&self) -> Vec<Zeroizing<String>> {
        match self {
            Self::Passphrase(_) | Self::Peer => Vec::new(),
            Self::Shares { set, shares, .. } => {
                shares.iter().map(|share| seal_text::share(set, share)).collect()
            }
        }
    }

    pub(super) fn into_new(self) -> NewMethod {
        match self {
            Self::Passphrase(passphrase) => NewMethod::Passphrase { passphrase: SecretBytes(passphrase) },
            Self::Peer => NewMethod::Peer {},
            Self::Shares { key, set, threshold, shares } => {
                // At most 16, as the command line says.
                let shares = u8::try_from(shares.len()).unwrap_or(u8::MAX);
                NewMethod::Shares { key: secret(key.as_slice()), set, threshold, shares }
            }
        }
    }
}

/// The newest that the key servers know of a state, 0 for nothing; insists that the appliance has their keys, or none where they are not to open
/// the state.
fn key_servers(status: &SealStatus, wanted: bool) -> Outcome<u64> {
    match (status.peers.is_empty(), wanted) {
        (true, false) => return Ok(0),
        (true, true) => {
            return Err(Failure::failed("the declaration names no key server")
                .hint("declare `state: {provider: peer, peers: […]}`, or leave out --peer"));
        }
        (false, false) => {
            return Err(Failure::usage("the declaration names key servers that open the state")
                .hint("say --peer, or declare `state: {provider: operator}`"));
        }
        (false, true) => {}
    }
    if let Some(peer) = status.peers.iter().find(|peer| !peer.has_key) {
        let why = peer.trouble.as_deref().unwrap_or("it has not answered yet");
        let (server, why) = (printable(&peer.server), printable(why));
        let what = format!("no key of the key server {server}, and a state is made with all of them: {why}");
        return Err(Failure::new(Code::NotReady, what)
            .hint("its console says what to do; the appliance asks again by itself"));
    }
    Ok(status.peers.iter().filter_map(|peer| peer.epoch).max().unwrap_or(0))
}

/// An appliance that waits with a blank disk.
fn blank(found: Found, repository: &cofferdam_protocol::Repository) -> Outcome<Box<super::sealed::Waiting>> {
    let waiting = match found {
        Found::Launched { epoch: 0, .. } => {
            return Err(Failure::failed("the appliance keeps its state in memory, as its declaration says")
                .hint("declare `state: {provider: operator}`, attach a state disk and start it again"));
        }
        Found::Launched { .. } => return Err(Failure::failed("there is a state, and it is open")),
        Found::Waiting(waiting) => waiting,
    };
    match waiting.status.disk {
        SealDisk::Blank => Ok(waiting),
        SealDisk::Sealed => Err(Failure::failed("there is a state on the disk, and it is not overwritten")
            .hint(format!("coffer unseal {repository}"))),
        SealDisk::Open => Err(Failure::failed("there is a state, and it is open")),
    }
}

/// Gives the operator new keys, which are nowhere else.
pub(super) fn hand_out(
    ui: &Ui,
    recovery_out: Option<&Path>,
    recovery: Option<&[u8; shares::KEY]>,
    shares: &[Zeroizing<String>],
) -> Outcome {
    let unsealed = |error: std::io::Error| {
        Failure::failed(format!("the keys cannot be written, so nothing was sealed: {error}"))
    };
    let recovery = recovery.map(seal_text::recovery);
    let mut text = Zeroizing::new(String::with_capacity((shares.len() + 1) * (seal_text::MAX_TEXT + 1)));
    let mut object = json!({ "shares": shares.iter().map(|share| share.as_str()).collect::<Vec<_>>() });
    match (recovery_out, &recovery) {
        (Some(path), Some(recovery)) => {
            let line = Zeroizing::new(format!("{}\n", **recovery));
            files::write_new(path, line.as_bytes()).map_err(|failure| Failure {
                message: format!("{}: nothing was sealed", failure.message),
                ..failure
            })?;
            set(&mut object, "recovery_file", json!(path));
        }
        (None, Some(recovery)) => {
            let _ = writeln!(text, "{}", **recovery);
            set(&mut object, "recovery", json!(recovery.as_str()));
        }
        (_, None) => {}
    }
    for share in shares {
        let _ = writeln!(text, "{}", **share);
    }
    if ui.json || !text.is_empty() {
        ui.only_copy(&text, object).map_err(unsealed)?;
    }
    let printed = recovery.is_some() && recovery_out.is_none();
    match recovery_out {
        Some(path) => {
            ui.note(&format!("the recovery key is in {}: keep it where this machine is not", path.display()));
        }
        None if printed => ui.note(
            "the first line is the recovery key: it opens the state when everything else is lost. Keep it",
        ),
        None => {}
    }
    if !shares.is_empty() {
        let lines = if printed { "each other line" } else { "each line" };
        ui.note(&format!("{lines} is a share: give each to somebody else"));
    }
    Ok(())
}

fn set(object: &mut Value, name: &str, value: Value) {
    if let Value::Object(members) = object {
        members.insert(name.to_owned(), value);
    }
}

pub(super) fn secret(bytes: &[u8]) -> SecretBytes {
    SecretBytes(Zeroizing::new(bytes.to_vec()))
}

pub(super) fn random<const N: usize>() -> Outcome<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(bytes.as_mut_slice())
        .map_err(|_| Failure::failed("the system gives no random numbers"))?;
    Ok(bytes)
}

fn word(disk: SealDisk) -> &'static str {
    match disk {
        SealDisk::Blank => "blank",
        SealDisk::Sealed => "sealed",
        SealDisk::Open => "open",
    }
}

fn table(status: &SealStatus) -> String {
    let mut text = format!("{}\n", word(status.disk));
    for method in &status.methods {
        let _ = match method {
            Method::Passphrase => writeln!(text, "  passphrase"),
            Method::Recovery => writeln!(text, "  recovery key"),
            Method::Peer => writeln!(text, "  key server"),
            Method::Shares { set, threshold, shares, given } => {
                let set = hex::encode(set.as_bytes());
                writeln!(text, "  shares        {given} given, {threshold} of {shares} open it, set {set}")
            }
        };
    }
    for peer in &status.peers {
        let key = if peer.has_key { "its key is there" } else { "no key of it yet" };
        let known = peer.epoch.map(|epoch| format!("; it knows epoch {epoch}")).unwrap_or_default();
        let trouble = peer.trouble.as_deref().map(|trouble| format!("\n  {}", printable(trouble)));
        let (server, trouble) = (printable(&peer.server), trouble.unwrap_or_default());
        let _ = writeln!(text, "key server {server}: {key}{known}{trouble}");
    }
    if let Some(why) = &status.unopened {
        let _ = writeln!(text, "their keys do not open it: {}", printable(why));
    }
    if status.wait_ms > 0 {
        let _ = writeln!(text, "the next attempt is looked at in {} s", status.wait_ms.div_ceil(1000));
    }
    if let Some(lineage) = &status.lineage {
        let (repository, release) = (&lineage.repository, printable(&lineage.release));
        let _ = writeln!(text, "lineage {} of {repository}, image {release}", lineage.version);
        let registers = [("MRTD", &lineage.mrtd), ("RTMR1", &lineage.rtmr1), ("RTMR2", &lineage.rtmr2)];
        for (name, value) in registers {
            let _ = writeln!(text, "  {name:8}  {}", hex::encode(value));
        }
        for key in &lineage.operators {
            let _ = writeln!(text, "  operator  {key}");
        }
        if let Some(why) = &lineage.needs_statement {
            let _ = writeln!(text, "it opens here with a statement only: {}", printable(why));
        }
    }
    text
}

fn to_json(status: &SealStatus) -> Value {
    let methods = serde_json::to_value(&status.methods).unwrap_or_default();
    let mut object = json!({ "state": word(status.disk), "methods": methods, "wait_ms": status.wait_ms });
    if !status.peers.is_empty() {
        set(&mut object, "peers", serde_json::to_value(&status.peers).unwrap_or_default());
        set(&mut object, "unopened", json!(status.unopened));
    }
    if let Some(lineage) = &status.lineage {
        set(&mut object, "lineage", serde_json::to_value(lineage).unwrap_or_default());
    }
    object
}
