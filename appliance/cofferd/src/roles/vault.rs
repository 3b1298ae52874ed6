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

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::Router;
use axum::http::StatusCode;
use cofferdam_declaration::Volume;
use cofferdam_protocol::reply::{ErrorReply, JSON};
use cofferdam_protocol::state::State;
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
use crate::roles::facts::{self, Facts, KeyServerFacts};
use crate::roles::{FRONT, PUBLISH, Role};
use crate::system::handover::launch;
use crate::system::sys::{self, SecretKeys, SecretMemory};
use crate::system::{confine, unix};

/// Lines about requests that nobody authenticated, in each [`FLOOD_WINDOW`]. Anybody on the network can cause them, and the
/// console is slow.
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
            let vault = Vault::new(store, rules, unix_now, Lines::default().sink());
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

/// Who may do what: who leases which secret, and whose signatures count.
fn rules(facts: &Facts) -> anyhow::Result<Rules> {
    let mut grants = Grants::default();
    for grant in &facts.grants {
        grants.allow(grant.uid, grant.secret.clone());
    }
    let operators = facts.operators.iter().map(|operator| (operator.name.as_str(), operator.key));
    Ok(Rules {
        grants,
        operators: Operators::new(operators)?,
        front_uid: FRONT.uid().context("the front has no uid of its own")?,
        publish_uid: PUBLISH.uid().context("publish has no uid of its own")?,
        services: facts.services.iter().map(|service| (service.declared.name.clone(), service.uid)).collect(),
        min_value: cofferdam_redact::MIN_SECRET,
    })
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

/// Writes audit lines to the console, and not more than [`FLOOD_LINES`] that a stranger caused.
#[derive(Default)]
struct Lines(Mutex<Option<Window>>);

struct Window {
    since: Instant,
    written: u32,
    dropped: u32,
}

impl Lines {
    fn sink(self) -> impl Fn(&Audit<'_>) + Send + Sync + 'static {
        move |event| {
            for line in self.lines(event, Instant::now()) {
                eprintln!("vault: {line}");
            }
        }
    }

    fn lines(&self, event: &Audit<'_>, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        if event.operation == Operation::Authenticate {
            let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let window = window.get_or_insert(Window { since: now, written: 0, dropped: 0 });
            if now.saturating_duration_since(window.since) >= FLOOD_WINDOW {
                if window.dropped > 0 {
                    lines.push(format!("audit: {} further requests were not authenticated", window.dropped));
                }
                *window = Window { since: now, written: 0, dropped: 0 };
            }
            if window.written >= FLOOD_LINES {
                window.dropped = window.dropped.saturating_add(1);
                return lines;
            }
            window.written += 1;
        }
        lines.push(event.to_string());
        lines
    }
}

#[cfg(test)]
mod tests;
