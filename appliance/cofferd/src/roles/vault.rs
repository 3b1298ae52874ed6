//! The role that keeps the secrets: the only process that holds the vault's keys.
//!
//! PID 1 starts it with a copy of the master key at descriptor 3, in memory that the kernel itself does not map; the keys that
//! it derives lie in such memory too. It takes the key, closes the descriptor, confines itself, reads who may lease
//! what and whose signatures count, opens its store and serves its socket. It has no network.
//!
//! The store is a part of the state disk, which PID 1 lends at descriptor 4. Without one it is a file of ciphertext on a tmpfs, so
//! that it outlives this process and not the machine. A store that does not open is never replaced: the role then stays, answers
//! every request with the reason, and holds no key that opens anything.
//!
//! While the state disk is closed, it serves operators, hears what the key server says, and waits for who opens it ([`sealed`]).

mod listen;
mod sealed;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::Router;
use axum::http::StatusCode;
use cofferdam_declaration::Volume;
use cofferdam_protocol::SecretRef;
use cofferdam_protocol::events::{Happened, MAX_REFERENCES};
use cofferdam_protocol::reply::{ErrorReply, JSON};
use cofferdam_protocol::state::State;
use cofferdam_protocol::status::StoreStatus;
use cofferdam_protocol::vault::Affected;
use cofferdam_protocol::{error_chain, json};
use cofferdam_vault::state::{Boot, STORE, Sealed};
use cofferdam_vault::{
    Audit, Disk as _, DiskError, FileDisk, Grants, KeyServer, Keys, Operation, Operators, Rules, Store,
    StoreError, Vault, Wanted, router,
};
use tokio::net::UnixListener;

use self::sealed::Told;
use crate::paths;
use crate::roles::clock::unix_now;
use crate::roles::facts::{self, Facts, KeyServerFacts, ServiceFacts};
use crate::roles::{FRONT, PUBLISH, Role};
use crate::system::handover::launch;
use crate::system::ring::Ring;
use crate::system::sys::{self, SecretKeys, SecretMemory};
use crate::system::{confine, files, unix};

/// Entries about requests that were refused, in each [`FLOOD_WINDOW`]. Anybody on the network can cause them, and the console is slow
/// and the ring bounded.
const FLOOD_LINES: u32 = 10;
/// See [`FLOOD_LINES`].
const FLOOD_WINDOW: Duration = Duration::from_secs(10);

/// Length of the store's file in bytes. It has as many secrets of the largest size as there may be, which redb keeps in
/// 128 KiB each. What was never written of it takes no memory.
const STORE_SIZE: u64 = 256 * 1024 * 1024;

/// Runs the role until it is killed.
///
/// # Errors
/// When the key is not there, the role cannot be confined, the declaration cannot be read or the socket not be made.
/// A store that cannot be reached is one too, and PID 1 tries again; a store that was reached and does not open is
/// not: the role serves its refusal.
pub(crate) fn run(role: &Role) -> anyhow::Result<()> {
    // Before the key is in this process's memory.
    confine::undumpable().context("cannot become unreadable for others")?;
    // Both before anything else is opened, which could get one of their numbers.
    let handed = sys::inherited(paths::KEY_FD).context("no key at descriptor 3")?;
    let disk = sys::inherited(paths::DISK_FD).ok().map(File::from);
    let handed = SecretMemory::open(handed).context("what is at descriptor 3 is no key")?;
    let memory = SecretKeys::new().context("no memory for the keys")?;
    role.confine().context("cannot confine the role")?;
    let facts = Facts::read(Path::new(paths::FACTS))?;
    let rules = rules(&facts)?;
    let appliance = facts::appliance(Path::new(paths::APPLIANCE))?;
    let state = appliance.state;
    if state == State::Sealed {
        let volumes = facts.volumes.into_iter().map(|volume| Wanted { name: volume.name, size: volume.size });
        let disk = disk.context("no disk at descriptor 4")?;
        let told =
            Told { key_servers: facts.key_servers, volumes: volumes.collect(), rollback: facts.rollback };
        return sealed::run(appliance, rules, told, disk, handed);
    }
    let (key, existing) = launch::take(handed).context("what is at descriptor 3 is no key")?;
    let keys = Keys::derive_into(Box::new(memory), key)?;
    let (mut slots, boot) = (None, sealed::boot(&appliance));
    let opened = match (state, disk) {
        (State::Open { epoch, .. }, Some(disk)) => FileDisk::new(disk).map_err(unusable).and_then(|disk| {
            let disk = Arc::new(disk);
            slots = key_slots(disk.clone(), boot, rules.operators.clone());
            open_disk(disk, keys, epoch)
        }),
        (State::Memory, None) => open(Path::new(paths::VAULT_STORE), keys),
        _ => anyhow::bail!("a state disk where there is none to be, or none where there is"),
    };
    let opened = opened.and_then(|store| record(store, &facts.volumes, existing));
    let service = match opened {
        Ok(store) => {
            println!("vault: {} secrets; state: {state}", store.list().len());
            let audit = audit_sink(&rules);
            let store = store.telling(|status| told(Path::new(paths::VAULT_STATUS), status));
            let vault = Vault::new(store, rules, unix_now, audit);
            let servers = key_servers(&facts.key_servers)?;
            let vault = vault.with_key_servers(appliance.repository, servers);
            router(Arc::new(match slots {
                Some(slots) => vault.with_slots(slots),
                None => vault,
            }))
        }
        Err(error) if error.may_pass() => return Err(error).context("cannot open the store"),
        Err(error) => {
            let reason = format!("{:#}", anyhow::Error::new(error));
            println!("vault: parked: {reason}");
            parked(&reason, state)?
        }
    };
    runtime()?.block_on(async {
        let listener = listener()?;
        listen::serve(listener, service).await;
        Ok(())
    })
}

/// Writes down how full the store is. A figure that cannot be written keeps no secret from being put.
fn told(path: &Path, status: StoreStatus) {
    let written = json::to_vec(&status).map_err(io::Error::other);
    if let Err(error) = written.and_then(|bytes| files::replace(path, &bytes)) {
        eprintln!("vault: cannot write {}: {error}", path.display());
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

fn listener() -> anyhow::Result<UnixListener> {
    let socket = paths::VAULT_SOCKET;
    unix::bind(Path::new(socket)).with_context(|| format!("cannot listen on {socket}"))
}

/// Remembers which volumes exist, and says that it has: from then on services may write to them.
fn record(store: Store, declared: &[Volume], existing: u32) -> Result<Store, StoreError> {
    if existing != 0 {
        let bits = (0..u32::BITS).map(|bit| existing >> bit & 1 == 1);
        let volumes = declared.iter().zip(bits).filter(|(_, exists)| *exists);
        store.volumes_made(volumes.map(|(volume, _)| volume.name.as_str()))?;
        fs::write(paths::VAULT_VOLUMES, b"").map_err(unusable)?;
    }
    Ok(store)
}

/// Who may do what: who leases which secret, to whom a change of one matters, and whose signatures count.
fn rules(facts: &Facts) -> anyhow::Result<Rules> {
    let mut grants = Grants::default();
    for grant in &facts.grants {
        grants.allow(grant.uid, grant.secret.clone());
    }
    let mut affected: BTreeMap<SecretRef, Vec<Affected>> = BTreeMap::new();
    for service in &facts.services {
        let on_change = service.declared.on_change.to_string();
        for reference in service.declared.references() {
            let service = service.declared.name.clone();
            let at = affected.entry(reference.clone()).or_default();
            at.push(Affected { service, on_change: on_change.clone() });
        }
    }
    let operators = facts.operators.iter().map(|operator| (operator.name.as_str(), operator.key));
    Ok(Rules {
        grants,
        affected,
        operators: Operators::new(operators)?,
        front_uid: FRONT.uid().context("the front has no uid of its own")?,
        publish_uid: PUBLISH.uid().context("publish has no uid of its own")?,
        services: facts.services.iter().map(|service| (service.declared.name.clone(), service.uid)).collect(),
        restarts_with: facts.services.iter().filter_map(restarts_with).collect(),
        min_value: cofferdam_redact::MIN_SECRET,
    })
}

/// A service with those that it restarts with, if there are any.
fn restarts_with(service: &ServiceFacts) -> Option<(String, BTreeSet<String>)> {
    let with = service.declared.depends_on.iter().filter(|on| on.restart);
    let with: BTreeSet<String> = with.map(|on| on.service.clone()).collect();
    (!with.is_empty()).then(|| (service.declared.name.clone(), with))
}

/// The key slots of the state, for operators to change. The vault does its work without them, where the host has damaged them since.
fn key_slots(disk: Arc<FileDisk>, boot: Boot, operators: Operators) -> Option<Sealed> {
    let length = disk.len().unwrap_or(0);
    let whole = cofferdam_vault::Window::new(disk, 0..length).ok()?;
    let found = Sealed::find(whole, boot, operators, FRONT.uid()?, |_| {});
    found
        .inspect_err(|error| eprintln!("vault: the key slots cannot be changed: {}", error_chain(error)))
        .ok()
}

fn key_servers(facts: &[KeyServerFacts]) -> anyhow::Result<Vec<KeyServer>> {
    let server = |server: &KeyServerFacts| Ok(KeyServer::new(server.url.to_string(), &server.key)?);
    facts.iter().map(server).collect()
}

/// Opens the store on the state disk: not one that is older than what PID 1 measured.
fn open_disk(disk: Arc<FileDisk>, keys: Keys, measured: u64) -> Result<Store, StoreError> {
    let store = Store::open(cofferdam_vault::Window::new(disk, STORE).map_err(unusable)?, keys, None)?;
    match store.root().epoch {
        found if found < measured => Err(DiskError::OlderThan { found, expected: measured }.into()),
        _ => Ok(store),
    }
}

/// Opens the store, or makes it where there is none. A store is made beside its place and moved there when it is whole, so that
/// a vault killed in between leaves nothing that later fails to open.
fn open(path: &Path, keys: Keys) -> Result<Store, StoreError> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => return Store::open(disk(file)?, keys, None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(unusable(error)),
    }
    let unfinished = path.with_extension("new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unusable(error)),
        _ => {}
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)
        .map_err(unusable)?;
    file.set_len(STORE_SIZE).map_err(unusable)?;
    let store = Store::create(disk(file)?, keys)?;
    fs::rename(&unfinished, path).map_err(unusable)?;
    Ok(store)
}

fn disk(file: File) -> Result<FileDisk, StoreError> {
    FileDisk::new(file).map_err(unusable)
}

fn unusable(error: io::Error) -> StoreError {
    DiskError::Io(error).into()
}

/// Answers everything with the reason why there is no vault.
fn parked(reason: &str, state: State) -> anyhow::Result<Router> {
    let hint = match state {
        State::Memory => {
            "nothing was changed or lost by this; to start over with an empty vault restart the appliance"
        }
        State::Sealed | State::Open { .. } => {
            "nothing on the state disk was changed by this; attach the disk that belongs to this appliance and restart it"
        }
    };
    let body = json::to_vec(&ErrorReply::new(format!("the vault is parked: {reason}"), Some(hint)))?;
    Ok(Router::new().fallback(async move || {
        (StatusCode::SERVICE_UNAVAILABLE, [(axum::http::header::CONTENT_TYPE, JSON)], body)
    }))
}

/// Where the audit goes.
fn audit_sink(rules: &Rules) -> impl Fn(&Audit<'_>) + Send + Sync + 'static {
    Lines::new(Path::new(paths::VAULT_EVENTS), &rules.services).sink()
}

/// The ring of what a service asked for, beside the vault's own. No service is called so that it is another file.
pub(crate) fn ring(events: &Path, service: &str) -> PathBuf {
    events.with_file_name(format!("{service}.events"))
}

/// Writes the audit down, and on the console only what is no matter of course. What each service asks for has a ring of its own, so that
/// no service that starts again and again, and no shim that has fallen, takes the place of what operators and others did.
struct Lines {
    own: Journal,
    services: BTreeMap<u32, Journal>,
}

/// A ring, and what was refused to those whose it is; of that there are no more than [`FLOOD_LINES`].
struct Journal {
    ring: Ring,
    window: Mutex<Option<Window>>,
}

struct Window {
    since: Instant,
    written: u32,
    dropped: u32,
}

impl Lines {
    fn new(events: &Path, services: &BTreeMap<String, u32>) -> Self {
        let told = |path: PathBuf| Journal { ring: Ring::at(path), window: Mutex::default() };
        let services = services.iter().map(|(name, uid)| (*uid, told(ring(events, name)))).collect();
        Self { own: told(events.to_owned()), services }
    }

    fn of(&self, event: &Audit<'_>) -> &Journal {
        self.services.get(&event.uid).unwrap_or(&self.own)
    }

    fn sink(self) -> impl Fn(&Audit<'_>) + Send + Sync + 'static {
        move |event| {
            for happened in self.happened(event, Instant::now()) {
                if on_console(event) {
                    eprintln!("vault: audit: {happened}");
                }
                self.of(event).ring.tell(happened);
            }
        }
    }

    fn happened(&self, event: &Audit<'_>, now: Instant) -> Vec<Happened> {
        let mut happened = Vec::new();
        if is_matter_of_course(event) {
            return happened;
        }
        if is_refused(event) {
            let mut window = self.of(event).window.lock().unwrap_or_else(PoisonError::into_inner);
            let window = window.get_or_insert(Window { since: now, written: 0, dropped: 0 });
            if now.saturating_duration_since(window.since) >= FLOOD_WINDOW {
                if window.dropped > 0 {
                    happened.push(Happened::Refused { count: window.dropped });
                }
                *window = Window { since: now, written: 0, dropped: 0 };
            }
            if window.written >= FLOOD_LINES {
                window.dropped = window.dropped.saturating_add(1);
                return happened;
            }
            window.written += 1;
        }
        let references: Vec<_> = event.references.iter().take(MAX_REFERENCES).cloned().collect();
        happened.push(Happened::Audit {
            operation: event.operation.as_str().to_owned(),
            uid: event.uid,
            operator: event.operator,
            further: event.references.len().saturating_sub(references.len()),
            references,
            service: event.service.map(str::to_owned),
            status: event.status,
        });
        happened
    }
}

fn is_refused(event: &Audit<'_>) -> bool {
    event.status >= 400
}

/// What only looks, and asks again: an operator's client does once in a second, and a service whose secret is missing.
fn is_matter_of_course(event: &Audit<'_>) -> bool {
    match event.operation {
        Operation::Allow | Operation::List | Operation::SealStatus => !is_refused(event),
        Operation::Lease => event.status == StatusCode::CONFLICT.as_u16(),
        _ => false,
    }
}

/// What the host and whoever stands at the machine may see: refusals, orders for services, and what becomes of the state.
fn on_console(event: &Audit<'_>) -> bool {
    use Operation::{CreateState, GiveShare, OpenState, Order, Rekey, Unseal, UpgradeState};
    let rare = matches!(
        event.operation,
        CreateState | GiveShare | OpenState | Order(_) | Rekey | Unseal | UpgradeState
    );
    rare || is_refused(event)
}

#[cfg(test)]
mod tests;
