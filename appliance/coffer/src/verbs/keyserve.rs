//! `coffer keyserve`: a key server, and the appliances that it has keys for.

use std::cell::Cell;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam_declaration::MAX_BYTES;
use cofferdam_protocol::keyserve::{Refusal, Refused};
use cofferdam_protocol::upgrade::{self, SignedStatement};
use cofferdam_protocol::{Digest, Repository};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::cli::{self, KeyserveAction, Serve};
use crate::failure::{Failure, Outcome, chain};
use crate::files;
use crate::keyserve::{self, MOST_DECLARATIONS, Notice, Server, Store};
use crate::operator_key::OperatorKey;
use crate::trust::Trust;
use crate::ui::{Ui, with_schema_version};
use crate::within;

/// Lines about what a stranger can cause, in each [`FLOOD_WINDOW`].
const FLOOD_LINES: u32 = 10;
/// See [`FLOOD_LINES`].
const FLOOD_WINDOW: Duration = Duration::from_secs(10);

pub(super) async fn run(ui: &Ui, options: cli::Keyserve, limit: Duration) -> Outcome {
    match options.action {
        Some(KeyserveAction::Add { repository, declaration, data }) => {
            add(ui, &Store::open(&data.data)?, &repository, &declaration)
        }
        Some(KeyserveAction::List { data }) => list(ui, &Store::open(&data.data)?),
        Some(KeyserveAction::Forget { repository, data }) => {
            forget(ui, &Store::open(&data.data)?, &repository)
        }
        Some(KeyserveAction::Upgrade { repository, statement, data }) => {
            upgrade(ui, &Store::open(&data.data)?, &repository, &statement)
        }
        None => serve(ui, options.serve, limit).await,
    }
}

async fn serve(ui: &Ui, options: Serve, limit: Duration) -> Outcome {
    // The command line has both, or none of this.
    let (Some(data), Some(key)) = (&options.data, options.key) else {
        return Err(Failure::usage("a key server takes --data and --key"));
    };
    let key = OperatorKey::load(&cli::OperatorKey { key: Some(key) })?;
    let store = Store::open(data)?;
    let _alone = store.serve()?;
    for added in &options.add {
        store.add(&added.repository, added.declaration.into_iter().collect())?;
    }
    // What is damaged is said now and not when an appliance waits.
    let appliances = store.all()?.len();
    let trust = within(limit, Trust::load(&options.trust, &options.github)).await?;
    if trust.has_no_reference() {
        return Err(Failure::usage("no reference values: no appliance would get its key").hint(
            "name what genuine appliances measure with --reference: a directory, files, or a release",
        ));
    }
    let failed =
        |error: std::io::Error| Failure::failed(format!("cannot listen on {}: {error}", options.listen));
    let listener = TcpListener::bind(options.listen).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    if options.trust.root.is_some() {
        ui.warn("SIMULATED: keys are also released to simulated devices of the root that was named");
    }
    ui.detail(trust.inputs.lines().trim_end());
    if appliances == 0 {
        ui.warn("no appliance was added yet: coffer keyserve add OWNER/REPO --data DIR");
    }
    if ui.json {
        let event = json!({
            "event": "listening", "address": bound.to_string(), "key": key.public_line, "appliances": appliances,
        });
        let _ = ui.line(&with_schema_version(event).to_string());
    } else {
        ui.note(&format!(
            "http://{bound} releases keys to {appliances} appliances; ends with Ctrl-C. A declaration names it:\n\
             state: {{provider: peer, peers: [{{url: \"http://…\", key: {}}}]}}",
            key.public_line
        ));
    }
    let console = Console { ui: *ui, window: Cell::new((Instant::now(), 0)) };
    keyserve::serve(listener, Server::new(trust, options.github, key, store), move |notice| {
        console.show(&notice);
    })
    .await;
    Ok(())
}

fn add(ui: &Ui, store: &Store, repository: &Repository, files: &[PathBuf]) -> Outcome {
    if files.len() > MOST_DECLARATIONS {
        return Err(Failure::usage(format!("at most {MOST_DECLARATIONS} declarations are given")));
    }
    let digests = files.iter().map(|path| files::read(path, MAX_BYTES).map(Digest::of));
    let digests: Vec<Digest> = digests.collect::<Outcome<_>>()?;
    let new = store.add(repository, digests.clone())?;
    let how = if new { "added" } else { "changed" };
    let declared = match digests.len() {
        0 => "what the default branch declares".to_owned(),
        count => format!("one of {count} given declarations"),
    };
    ui.result(
        &format!("{repository} {how}: it gets its key with {declared}\n"),
        json!({ "repository": repository, "new": new, "declarations": digests }),
    );
    Ok(())
}

fn list(ui: &Ui, store: &Store) -> Outcome {
    let (mut text, mut values) = (String::new(), Vec::new());
    for appliance in store.all()? {
        let key = match (&appliance.key(), appliance.first_released) {
            (None, _) => "no key yet".to_owned(),
            (_, Some(at)) => format!("key since {at}"),
            _ => "key".to_owned(),
        };
        let state = match (appliance.witnessed, appliance.reported) {
            (None, _) => "no state reported".to_owned(),
            (Some(known), Some(at)) => format!("state of epoch {}, reported {at}", known.epoch),
            (Some(known), None) => format!("state of epoch {}", known.epoch),
        };
        let declared = match appliance.declarations.len() {
            0 => "declaration of the default branch".to_owned(),
            count => format!("one of {count} given declarations"),
        };
        let waits = appliance.upgrade.as_ref().map(|signed| signed.statement.version);
        let waits = waits.filter(|version| appliance.lineage.is_none_or(|lineage| lineage < *version));
        let upgrade =
            waits.map_or_else(String::new, |version| format!("; a statement for version {version}"));
        let _ = writeln!(text, "{}  {key}; {state}; {declared}{upgrade}", appliance.repository);
        values.push(json!({
            "repository": appliance.repository, "has_key": appliance.key().is_some(),
            "first_released": appliance.first_released, "witnessed": appliance.witnessed,
            "reported": appliance.reported, "declarations": appliance.declarations,
            "lineage": appliance.lineage, "upgrade": waits,
        }));
    }
    ui.result(&text, json!({ "appliances": values }));
    Ok(())
}

fn upgrade(ui: &Ui, store: &Store, repository: &Repository, file: &Path) -> Outcome {
    let signed = SignedStatement::parse(&files::read(file, upgrade::MAX_BYTES)?)
        .map_err(|error| Failure::usage(format!("{} is no statement: {}", file.display(), chain(&error))))?;
    let (version, to) = (signed.statement.version, &signed.statement.to);
    if !signed.statement.from.is_same(repository) || !to.repository.is_same(repository) {
        let (from, to) = (&signed.statement.from, &to.repository);
        return Err(Failure::usage(format!("the statement lets an appliance of {to} open a state of {from}"))
            .hint("a state goes to another repository with the recovery key: coffer unseal --recovery --upgrade FILE"));
    }
    if !to.is_ordered() {
        return Err(Failure::usage("the operators of the statement are not in order"));
    }
    let known = store.update(repository, |appliance| {
        let lineage = appliance.lineage.unwrap_or(1);
        if version <= lineage {
            return Err(Failure::usage(format!(
                "the statement is for version {version}, and the state is at version {lineage} already"
            ))
            .hint("coffer seal allow-upgrade signs one for the version above it"));
        }
        appliance.upgrade = Some(signed.clone());
        Ok((true, ()))
    })?;
    known.ok_or_else(|| Failure::usage(format!("{repository} was not added")))?;
    ui.result(
        &format!("{repository}: the image of the statement opens the state as version {version}, and no earlier one after it\n"),
        json!({ "repository": repository, "version": version }),
    );
    Ok(())
}

fn forget(ui: &Ui, store: &Store, repository: &Repository) -> Outcome {
    let known = store.update(repository, |appliance| {
        (appliance.reported, appliance.lineage) = (None, None);
        let known = appliance.witnessed.take();
        Ok((known.is_some(), known))
    })?;
    let Some(known) = known else {
        return Err(Failure::usage(format!("{repository} was not added")));
    };
    let epoch = known.map(|known| known.epoch);
    let text = match epoch {
        Some(epoch) => format!("{repository}: epoch {epoch} is forgotten; its key is kept\n"),
        None => format!("{repository}: no state was reported\n"),
    };
    ui.result(&text, json!({ "repository": repository, "forgotten": epoch }));
    Ok(())
}

/// Where notices go, a line each.
struct Console {
    ui: Ui,
    /// Since when how many lines were written that anybody can cause.
    window: Cell<(Instant, u32)>,
}

impl Console {
    fn show(&self, notice: &Notice) {
        if let Notice::Refused { repository, .. } = notice
            && !self.has_room(repository.is_some(), Instant::now())
        {
            return;
        }
        if self.ui.json {
            let _ = self.ui.line(&with_schema_version(value(notice)).to_string());
        } else {
            self.ui.text(&format!("{}\n", line(notice)));
        }
    }

    /// Whether a refusal is written. The first that is not says so.
    fn has_room(&self, named: bool, now: Instant) -> bool {
        let (mut since, mut written) = self.window.get();
        if now.saturating_duration_since(since) >= FLOOD_WINDOW {
            (since, written) = (now, 0);
        }
        // Those that name an appliance have as many lines again: garbage does not hide them.
        let most = if named { 2 * FLOOD_LINES } else { FLOOD_LINES };
        self.window.set((since, written.saturating_add(1)));
        if written == most {
            self.ui.warn("more requests were refused than are shown");
        }
        written < most
    }
}

fn line(notice: &Notice) -> String {
    match notice {
        Notice::Released { from, repository, epoch, upgrade, simulated } => {
            let simulated = if *simulated { "SIMULATED: " } else { "" };
            let known =
                epoch.map_or("no state is known".to_owned(), |epoch| format!("epoch {epoch} is known"));
            let statement = upgrade
                .map_or_else(String::new, |version| format!(" with the statement for version {version}"));
            format!("{simulated}{repository} from {}: key released{statement}; {known}", from.ip())
        }
        Notice::Opened { from, repository, epoch, fresh } => {
            let what = if *fresh { "a new state" } else { "the state" };
            format!("{repository} from {}: {what} is at epoch {epoch}", from.ip())
        }
        Notice::Refused { from, repository, refused: Refused { refused, detail } } => {
            let who = repository.as_ref().map_or("somebody".to_owned(), ToString::to_string);
            format!("{who} from {}: refused: {refused}: {detail}; {}", from.ip(), advice(*refused))
        }
    }
}

fn value(notice: &Notice) -> Value {
    match notice {
        Notice::Released { from, repository, epoch, upgrade, simulated } => json!({
            "event": "released", "from": from.ip(), "repository": repository, "epoch": epoch, "upgrade": upgrade,
            "simulated": simulated,
        }),
        Notice::Opened { from, repository, epoch, fresh } => json!({
            "event": "opened", "from": from.ip(), "repository": repository, "epoch": epoch, "fresh": fresh,
        }),
        Notice::Refused { from, repository, refused } => json!({
            "event": "refused", "from": from.ip(), "repository": repository, "refused": refused.refused,
            "detail": refused.detail, "advice": advice(refused.refused),
        }),
    }
}

/// What the operator may do about it.
fn advice(refused: Refusal) -> &'static str {
    match refused {
        Refusal::Repository => "if it is yours: coffer keyserve add OWNER/REPO --data DIR",
        Refusal::Measurement => "if you trust that image: name its reference values with --reference",
        Refusal::Declaration => {
            "if that declaration is yours: commit it, or coffer keyserve add --declaration FILE"
        }
        Refusal::Tcb => {
            "update the host's microcode, TDX module or quoting enclave, or say what is acceptable with --policy"
        }
        Refusal::Root => "a simulated device counts only with --root FILE",
        Refusal::Stale => "look at the clocks of both machines; the appliance fetches collateral by itself",
        Refusal::Nonce => "nothing: the appliance asks again",
        Refusal::Launched => "nothing: an appliance that has launched needs no key",
        Refusal::Evidence => "nothing: no appliance of ours writes that",
        Refusal::Lineage => {
            "start the image that the last statement names; to go back: coffer seal allow-upgrade for a version above it"
        }
        Refusal::Epoch => {
            "attach the disk that the appliance ran with last, or coffer keyserve forget OWNER/REPO"
        }
        Refusal::State => {
            "end all but one copy of the appliance; coffer keyserve forget OWNER/REPO lets the next one in"
        }
        Refusal::Report => "nothing: it is not from an appliance that has this server's key",
        Refusal::CouldNotCheck => {
            "make GitHub reachable, or give declarations: coffer keyserve add --declaration FILE"
        }
        Refusal::Busy | Refusal::Request => "nothing, unless it goes on: then a firewall",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_that_anybody_can_cause_do_not_flood_the_console_or_hide_the_others() {
        let now = Instant::now();
        let console = Console { ui: Ui::new(false, true, false), window: Cell::new((now, 0)) };
        let shown = |named, at| (0..100).filter(|_| console.has_room(named, at)).count();
        assert_eq!(shown(false, now), 10);
        assert_eq!(shown(true, now + FLOOD_WINDOW), 20);
        let later = now + 2 * FLOOD_WINDOW;
        assert_eq!((0..10).filter(|_| console.has_room(false, later)).count(), 10);
        assert!(console.has_room(true, later), "one that names an appliance");
    }
}
