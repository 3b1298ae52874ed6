//! Another declaration takes the place of the one that runs, without a boot.
//!
//! `publish` finds a commit of the followed branch and rings; who says whether it counts is the role `admit`, which judges all of it anew and
//! believes nobody. What that has let in goes through these steps, of which each is either done as a whole or undone:
//!
//! | step | when it does not work |
//! |---|---|
//! | what differs, and whether it fits into this machine | refused; nothing was measured, nothing has stopped |
//! | the images that are not there are fetched and sealed, beside what runs | the same |
//! | `declaration` and each `image` are measured, and claimed from then on | the appliance parks: a register contradicts |
//! | what is gone or differs ends; roles that decide by what differs start again; what is new starts | the previous declaration, measured again |
//! | the role `gate` says that every service is up | the same |
//! | what only the previous one had is taken away | it is said on the console |
//!
//! There is one change at a time, and the loop of PID 1 goes on meanwhile. A power cut leaves what the next boot makes of its own
//! declaration and of the branch. What came of each change is in `changes.json`. A commit that was refused, or was gone back from, is not
//! tried again, whoever offers it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cofferdam_attest::event_log::{Event, has_room, payload};
use cofferdam_declaration::{Change as Differs, Declaration, MAX_BYTES};
use cofferdam_protocol::change::{Change, Changes, Outcome};
use cofferdam_protocol::events::{self, Happened};
use cofferdam_protocol::{Commit, Digest, Timestamp, error_chain, json};

use super::Boot;
use super::launch::{self, LaunchError, Running};
use super::services::{self, ResolveError};
use crate::paths;
use crate::roles::facts::{Facts, Grant, NEXT, ServiceFacts};
use crate::roles::{ADMIT, BRIDGE, EGRESS, FRONT, GATE, PUBLISH, Role, SHIM, VAULT, WHY, untrusted_file};
use crate::system::cgroup::{self, Cgroup, CgroupError};
use crate::system::console::say;
use crate::system::tdx::TdxError;
use crate::system::{files, images};

/// For judging one commit: a signature, a few hashes, and a parser that takes well below a second for 1 MiB.
const ADMIT_LIMIT: Duration = Duration::from_secs(60);
/// For fetching the images of a change. Some GiB over a slow line; then the registry is said not to give them.
const FETCH_LIMIT: Duration = Duration::from_secs(15 * 60);
/// For sealing what was fetched, which is looked at twenty times a second.
const SEAL_LIMIT: Duration = Duration::from_secs(60);
/// For the role that waits for the services: it has a limit of its own below this.
const GATE_LIMIT: Duration = Duration::from_secs(10 * 60);
/// Most that is read of a reason.
const MAX_WHY: u64 = 2048;
/// A commit's name.
const COMMIT_BYTES: u64 = 20;

/// Why a change does not come about.
#[derive(Debug, thiserror::Error)]
enum ChangeError {
    /// Only a boot reads these keys.
    #[error("it changes {0}, which takes a boot: start the machine with this declaration")]
    Boot(String),
    /// The machine.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A service that stays would have less memory than it uses.
    #[error("{service} uses {} MiB and would have {} MiB: declare its `mem_limit`", used.div_ceil(1 << 20), left >> 20)]
    Memory {
        /// Which one.
        service: String,
        /// In bytes.
        used: u64,
        /// In bytes.
        left: u64,
    },
    /// Every change makes the log longer.
    #[error("the event log is full: start the machine anew")]
    LogFull,
    /// The password of a registry goes where a declaration sends it that was measured.
    #[error(
        "the image of {0} needs a login that the running declaration does not have: declare it under `registries` in a commit before"
    )]
    Login(String),
    /// Images.
    #[error("the images cannot be fetched: {0}")]
    Fetch(String),
    /// The services did not come up.
    #[error("{0}")]
    Gate(String),
    /// Something of the machine.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A register.
    #[error("cannot measure the declaration")]
    Registers(#[from] TdxError),
    /// A control group.
    #[error("cannot make a control group")]
    Cgroup(#[from] CgroupError),
}

/// A declaration with where it comes from.
#[derive(Clone)]
struct Declared {
    declaration: Declaration,
    digest: Digest,
    commit: Commit,
    facts: Facts,
}

/// Looks at what `publish` offers, and makes it run if it counts.
///
/// # Errors
///
/// The line to park with: a register could not be extended, or what ran before cannot run any more.
pub(super) fn turn(boot: &mut Boot, running: &mut Running, past: &mut Changes) -> Result<(), String> {
    let admitted = match admit(boot) {
        Ok(admitted) => admitted,
        Err(why) => {
            say(&format!("admit: {why}"));
            return Ok(());
        }
    };
    let (bytes, commit) = admitted;
    let digest = Digest::of(&bytes);
    if digest == running.launched.appliance.declaration || past.is_final(&commit) {
        return Ok(());
    }
    let outcome = change(boot, running, &bytes, commit);
    let (outcome, detail) = match outcome {
        Ok(()) => (Outcome::Applied, None),
        Err(Failed { outcome, why, park: false }) => (outcome, Some(events::bounded(&why))),
        Err(Failed { why, .. }) => return Err(why),
    };
    let at = Timestamp::from_clock(SystemTime::now()).unwrap_or(Timestamp::EPOCH);
    let change = Change { commit, declaration: digest, at, outcome, detail };
    say(&change.to_string());
    boot.supervisor.tell(Happened::Change { change: change.clone() });
    past.add(change);
    let written = json::to_vec(past).map_err(io::Error::other);
    if let Err(error) = written.and_then(|bytes| files::replace(paths::CHANGES, &bytes)) {
        say(&format!("cannot write {}: {error}", paths::CHANGES));
    }
    if outcome != Outcome::Refused {
        // It reads the facts when it starts, and attests what runs now.
        boot.supervisor.renew(PUBLISH.name());
    }
    Ok(())
}

/// How a change came to nothing.
struct Failed {
    outcome: Outcome,
    why: String,
    /// What ran before does not run either.
    park: bool,
}

impl From<ChangeError> for Failed {
    /// Before anything was measured.
    fn from(error: ChangeError) -> Self {
        Self { outcome: Outcome::Refused, why: error_chain(&error), park: false }
    }
}

/// The bytes of a declaration that a signer has signed, and the commit that has them.
fn admit(boot: &mut Boot) -> Result<(Vec<u8>, Commit), String> {
    let own = Path::new(paths::ADMIT_DIR);
    let spec = ADMIT.spec(None, None).map_err(|error| error_chain(&error))?;
    // Whatever it wrote before is of another one.
    for name in ["declaration", "commit", WHY] {
        let _ = fs::remove_file(own.join(name));
    }
    match boot.supervisor.run_once(vec![(ADMIT.name().to_owned(), spec)], ADMIT_LIMIT).first() {
        Some(Some(0)) => {}
        _ => return Err(why(own)),
    }
    // Of others, who could have put something else in its place: no link is followed, and nothing is waited for.
    let read = |name: &str, limit: u64| {
        untrusted_file::contents(&own.join(name), limit).ok_or_else(|| format!("there is no {name} of it"))
    };
    let bytes = read("declaration", MAX_BYTES as u64)?;
    let commit = read("commit", COMMIT_BYTES)?;
    let commit: [u8; 20] = commit.try_into().map_err(|_| "it is not said which commit".to_owned())?;
    Ok((bytes, Commit::from(commit)))
}

/// What whoever owns this directory says that it could not do.
fn why(directory: &Path) -> String {
    let said = untrusted_file::contents(&directory.join(WHY), MAX_WHY).unwrap_or_default();
    let said = events::bounded(&String::from_utf8_lossy(&said));
    if said.is_empty() { "it did not say why".to_owned() } else { said }
}

/// The whole way, and back where that has to be.
fn change(boot: &mut Boot, running: &mut Running, bytes: &[u8], commit: Commit) -> Result<(), Failed> {
    let declaration = Declaration::parse(bytes).map_err(|_| Failed {
        outcome: Outcome::Refused,
        why: "it is no declaration".to_owned(),
        park: false,
    })?;
    let previous = Declared {
        declaration: running.measured.declaration.clone(),
        digest: running.launched.appliance.declaration,
        commit: running.launched.appliance.commit,
        facts: running.facts.clone(),
    };
    let differs = Differs::between(&previous.declaration, &declaration);
    if !differs.boot.is_empty() {
        return Err(ChangeError::Boot(differs.boot.join(", ")).into());
    }
    let mut numbers = running.numbers.clone();
    let mut facts =
        services::resolve(&declaration, &mut numbers, running.memory).map_err(ChangeError::from)?;
    facts.certificate = previous.facts.certificate.clone();
    fits(running, &facts)?;
    let next = Declared { declaration, digest: Digest::of(bytes), commit, facts };
    say(&format!("commit {:.12}: {}", commit.to_string(), outline(&differs)));
    // From here on its numbers are given out, whatever becomes of it.
    running.numbers = numbers;
    if let Err(error) = fetch(boot, running, &next) {
        take_back(boot, running, &previous);
        tidy(boot, running, &next.facts, &previous.facts);
        return Err(error.into());
    }
    let switched = switch(boot, running, &previous, &next).and_then(|()| gate(boot, &previous, &next));
    let Err(error) = switched else {
        tidy(boot, running, &previous.facts, &next.facts);
        return Ok(());
    };
    let why = error_chain(&error);
    say(&format!("commit {:.12}: {why}; going back", commit.to_string()));
    match switch(boot, running, &next, &previous) {
        Ok(()) => {
            tidy(boot, running, &next.facts, &previous.facts);
            Err(Failed { outcome: Outcome::RolledBack, why, park: false })
        }
        Err(error) => {
            let why = format!("{why}; the previous declaration cannot run either: {}", error_chain(&error));
            Err(Failed { outcome: Outcome::RolledBack, why, park: true })
        }
    }
}

/// What is about to change, in one line.
fn outline(differs: &Differs) -> String {
    let Differs { boot: _, rest, added, removed, changed } = differs;
    let changed: Vec<String> =
        changed.iter().map(|one| format!("~{} ({})", one.name, one.keys.join(", "))).collect();
    let signed = |sign: char, names: &[String]| -> Vec<String> {
        names.iter().map(|name| format!("{sign}{name}")).collect()
    };
    let rest = rest.iter().map(|key| (*key).to_owned()).collect();
    [signed('+', added), signed('-', removed), changed, rest].concat().join(", ")
}

/// Whether there is room: for the services that stay, and in the event log.
fn fits(running: &Running, facts: &Facts) -> Result<(), ChangeError> {
    for service in &facts.services {
        let Ok(before) = running.facts.service(&service.declared.name) else { continue };
        if before.declared != service.declared || service.memory >= before.memory {
            continue;
        }
        let used = before.group().usage().map_or(0, |usage| usage.memory);
        if used > service.memory {
            let service_name = service.declared.name.clone();
            return Err(ChangeError::Memory { service: service_name, used, left: service.memory });
        }
    }
    if log_has_room(&running.measured.log, facts, &running.facts) {
        Ok(())
    } else {
        Err(ChangeError::LogFull)
    }
}

/// Whether the event log has room for the way there, and for the way back if it has to be.
fn log_has_room(log: &[Event], there: &Facts, back: &Facts) -> bool {
    let group = |facts: &Facts| {
        let services = facts.services.iter().map(|service| &service.declared);
        let images = services.map(|service| (service.name.as_str(), &service.image));
        // Each digest and each commit is as long as this one.
        payload::applied(Digest::of(b""), Commit::from([0; 20]), images)
    };
    match (group(there), group(back)) {
        (Ok(there), Ok(back)) => has_room(log, &[there, back].concat()),
        _ => false,
    }
}

/// Has the images pulled that are not there, and waits until nobody can change them any more.
fn fetch(boot: &mut Boot, running: &mut Running, next: &Declared) -> Result<(), ChangeError> {
    let places: BTreeSet<PathBuf> =
        running.facts.services.iter().map(|service| service.rootfs.clone()).collect();
    let new: Vec<&ServiceFacts> =
        next.facts.services.iter().filter(|service| !places.contains(&service.rootfs)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let digests = running.facts.services.iter().map(|service| service.declared.image.digest());
    let there: BTreeSet<Digest> = digests.collect();
    launch::places(&new)?;
    let used = Cgroup::services().memory();
    launch::images(
        boot,
        running.kept.as_ref(),
        &new,
        &running.facts.services,
        running.memory.saturating_sub(used),
    )?;
    let pulling: Vec<&ServiceFacts> = new
        .into_iter()
        .filter(|service| {
            service.pulls() && !there.contains(&service.declared.image.digest()) && !service.seal().exists()
        })
        .collect();
    if pulling.is_empty() {
        return Ok(());
    }
    lend_logins(boot, running, &next.facts, &pulling)?;
    // It reads and writes beside the service that it is for.
    let beside = |service: &ServiceFacts| ServiceFacts {
        directory: Path::new(paths::FETCH_DIR).join(&service.declared.name),
        ..service.clone()
    };
    let mut facts = next.facts.clone();
    facts.services = facts.services.iter().map(beside).collect();
    launch::write_facts(paths::FACTS_NEXT, &facts)?;
    let mut started = Vec::new();
    for service in facts.services.iter().filter(|service| pulling.iter().any(|one| one.uid == service.uid)) {
        files::directory(&service.directory, service.uid, service.uid, 0o755)
            .map_err(|error| ChangeError::Fetch(error.to_string()))?;
        let mut spec = SHIM.spec(Some(service), None)?;
        let word = format!("{NEXT}{}", service.declared.name);
        spec.arguments = vec![SHIM.name().to_owned(), word.clone()];
        started.push((launch::shim(&word), spec));
    }
    let answers = boot.supervisor.run_once(started, FETCH_LIMIT);
    for (service, answer) in pulling.iter().zip(answers) {
        if answer != Some(0) {
            let said = why(&Path::new(paths::FETCH_DIR).join(&service.declared.name));
            return Err(ChangeError::Fetch(said));
        }
    }
    let sealed =
        boot.supervisor.run_until(SEAL_LIMIT, || pulling.iter().all(|service| service.seal().exists()));
    if sealed { Ok(()) } else { Err(ChangeError::Fetch("somebody still writes to one of them".to_owned())) }
}

/// Lets those that pull lease the passwords that they need for it: only where a declaration that was measured sends that one to that
/// registry.
fn lend_logins(
    boot: &mut Boot,
    running: &mut Running,
    next: &Facts,
    pulling: &[&ServiceFacts],
) -> Result<(), ChangeError> {
    let mut lent = Vec::new();
    for service in pulling {
        let wanted = next.registry(service).and_then(|registry| registry.login.as_ref());
        let Some(wanted) = wanted else { continue };
        let known = running.facts.registry(service).and_then(|registry| registry.login.as_ref());
        if known != Some(wanted) {
            return Err(ChangeError::Login(service.declared.name.clone()));
        }
        let grant = Grant { uid: service.uid, secret: wanted.password.clone() };
        if !running.facts.grants.contains(&grant) {
            lent.push(grant);
        }
    }
    if lent.is_empty() {
        return Ok(());
    }
    running.facts.grants.extend(lent);
    launch::write_facts(paths::FACTS, &running.facts)?;
    renew(boot, &VAULT);
    Ok(())
}

/// Takes back what was lent.
fn take_back(boot: &mut Boot, running: &mut Running, previous: &Declared) {
    if running.facts.grants == previous.facts.grants {
        return;
    }
    running.facts = previous.facts.clone();
    if let Err(error) = launch::write_facts(paths::FACTS, &running.facts) {
        say(&error_chain(&error));
    }
    renew(boot, &VAULT);
}

/// Measures `to` and makes it run instead of `from`, and whatever neither changes goes on.
fn switch(boot: &mut Boot, running: &mut Running, from: &Declared, to: &Declared) -> Result<(), ChangeError> {
    let differs = Differs::between(&from.declaration, &to.declaration);
    let changed: Vec<&str> = differs.changed.iter().map(|one| one.name.as_str()).collect();
    let (digest, commit) = (to.digest, to.commit);
    let source = payload::Declaration::FROM_GITHUB.to_owned();
    running.measured.measure(&payload::Declaration { digest, source, commit })?;
    launch::measure_images(&mut running.measured, &to.facts)?;
    let appliance = &mut running.launched.appliance;
    (appliance.commit, appliance.declaration) = (commit, digest);
    appliance.event_log.clone_from(&running.measured.log);
    appliance.registers = running.measured.registers.all()?;
    running.measured.declaration = to.declaration.clone();
    let before = std::mem::replace(&mut running.facts, to.facts.clone());
    launch::write_facts(paths::FACTS, &running.facts)?;
    running.launched.write()?;

    let ends = |name: &str| changed.contains(&name) || differs.removed.iter().any(|gone| gone == name);
    let ending: Vec<&ServiceFacts> =
        from.facts.services.iter().filter(|one| ends(&one.declared.name)).collect();
    let names: Vec<String> = ending.iter().map(|service| launch::shim(&service.declared.name)).collect();
    boot.supervisor.retire(&names);
    for service in &ending {
        service.volumes().iter().for_each(|volume| images::unmount(&volume.source));
        // Or the next one would be taken to be where this one was.
        let _ = fs::remove_file(service.status());
    }
    for role in [&VAULT, &FRONT, &BRIDGE, &EGRESS] {
        if decides(role, &before) != decides(role, &to.facts) {
            renew(boot, role);
        }
    }
    let starts = |name: &str| changed.contains(&name) || differs.added.iter().any(|new| new == name);
    let (starting, staying): (Vec<&ServiceFacts>, Vec<&ServiceFacts>) =
        to.facts.services.iter().partition(|service| starts(&service.declared.name));
    for service in staying {
        // Its group has the limits of the facts from here on.
        SHIM.spec(Some(service), None)?;
    }
    launch::start(boot, &starting)?;
    Ok(())
}

/// What a role decides by, of the facts: it starts again when that differs. `publish` does after each change, and the others of the appliance
/// read nothing of it.
fn decides(role: &Role, facts: &Facts) -> impl PartialEq {
    let is = |other: &Role| role.name() == other.name();
    let seen = |seen: &ServiceFacts| {
        let declared = &seen.declared;
        if is(&VAULT) {
            // Who it is, with whom it is started again, and what a change of which secret does to it.
            let on_change = declared.on_change.to_string();
            return json::to_vec(&(
                &declared.name,
                seen.uid,
                &declared.depends_on,
                on_change,
                declared.references(),
            ));
        }
        if is(&BRIDGE) {
            // Shims read the names of those that they share a network with when they are attached.
            return json::to_vec(&(&declared.name, seen.uid, &seen.networks, &declared.networks));
        }
        if is(&EGRESS) {
            return json::to_vec(&(&declared.name, seen.uid, &declared.egress, &seen.networks));
        }
        json::to_vec(&(
            (&declared.name, seen.uid, &seen.networks, &seen.cgroup, seen.memory),
            (&declared.ports, &declared.limits, &declared.restart, &declared.depends_on),
        ))
    };
    let services: Vec<Option<Vec<u8>>> = facts.services.iter().map(|service| seen(service).ok()).collect();
    let grants = is(&VAULT).then(|| facts.grants.clone());
    let networks = is(&BRIDGE).then(|| facts.networks.clone());
    let operators = (is(&VAULT) || is(&FRONT)).then(|| facts.operators.clone());
    let tokens = is(&FRONT).then(|| facts.tokens.clone());
    (services, grants, networks, operators, tokens)
}

/// Starts a role again, and gives it a moment to be reachable.
fn renew(boot: &mut Boot, role: &'static Role) {
    if let Some(socket) = role.socket() {
        // Whoever finds one is to find somebody behind it.
        let _ = fs::remove_file(socket);
    }
    boot.supervisor.renew(role.name());
    launch::await_socket(boot, role);
}

/// Waits until every service that was started for it is up.
fn gate(boot: &mut Boot, previous: &Declared, next: &Declared) -> Result<(), ChangeError> {
    let mut started = next.facts.clone();
    started.services.retain(|service| {
        let before = previous.facts.service(&service.declared.name);
        before.map_or(true, |before| before.declared != service.declared)
    });
    launch::write_facts(paths::FACTS_NEXT, &started)?;
    let own = Path::new(paths::GATE_DIR);
    let _ = fs::remove_file(own.join(WHY));
    let spec = GATE.spec(None, None)?;
    match boot.supervisor.run_once(vec![(GATE.name().to_owned(), spec)], GATE_LIMIT).first() {
        Some(Some(0)) => Ok(()),
        _ => Err(ChangeError::Gate(why(own))),
    }
}

/// Takes away what `gone` has and `stays` has not: mounts, control groups, directories, and images that no service has any more. What cannot be
/// taken away is said, and is in nobody's way but that of memory.
fn tidy(boot: &mut Boot, running: &Running, gone: &Facts, stays: &Facts) {
    let attempt = |path: &Path, outcome: io::Result<()>| match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => say(&format!("{}: {error}", path.display())),
        _ => {}
    };
    for service in &gone.services {
        if !stays.services.iter().any(|other| other.rootfs == service.rootfs) {
            images::unmount(&service.rootfs);
            attempt(&service.rootfs, fs::remove_dir(&service.rootfs));
            attempt(&service.cgroup, cgroup::remove(&service.cgroup).map_err(io::Error::other));
        }
        if stays.service(&service.declared.name).is_err() {
            attempt(&service.directory, fs::remove_dir_all(&service.directory));
        }
        let fetched = Path::new(paths::FETCH_DIR).join(&service.declared.name);
        attempt(&fetched, fs::remove_dir_all(&fetched));
        let digest = service.declared.image.digest();
        if !stays.services.iter().any(|other| other.declared.image.digest() == digest) {
            boot.supervisor.forget_image(&service.seal());
            attempt(&service.seal(), fs::remove_file(service.seal()));
            let root = launch::image_root(&digest);
            match &running.kept {
                Some(kept) => attempt(&root, kept.remove(&digest)),
                None if root.is_dir() => attempt(&root, images::remove(&root).map_err(io::Error::other)),
                None => {}
            }
        }
    }
    for service in &stays.services {
        let fetched = Path::new(paths::FETCH_DIR).join(&service.declared.name);
        attempt(&fetched, fs::remove_dir_all(&fetched));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::numbers::Numbers;
    use crate::roles::testing::declaration;

    /// Two services in one network, after these replacements.
    fn declared(changes: &[(&str, &str)]) -> Declaration {
        let mut text = "services:\n  web:\n    image: r.example/a@sha256:AAAA\n    environment: {A: one}\n    ports: [\"8080:80\"]\n  \
                        db:\n    image: r.example/b@sha256:BBBB\n    secrets: [secret://app/db/key]\n"
            .to_owned();
        for (old, new) in changes {
            assert!(text.contains(old), "{old}");
            text = text.replace(old, new);
        }
        let digests = [("AAAA", "a"), ("BBBB", "b"), ("CCCC", "c")];
        declaration(&digests.iter().fold(text, |text, (name, digit)| text.replace(name, &digit.repeat(64))))
    }

    /// Which roles start again, and what is said of the change.
    fn restarts(changes: &[(&str, &str)]) -> (Vec<&'static str>, String) {
        let (before, after) = (declared(&[]), declared(changes));
        let mut numbers = Numbers::default();
        let mut facts = |declaration: &Declaration| {
            services::resolve(declaration, &mut numbers, 4 << 30).unwrap_or_else(|error| panic!("{error}"))
        };
        let (old, new) = (facts(&before), facts(&after));
        let roles = [&VAULT, &FRONT, &BRIDGE, &EGRESS].into_iter();
        let restarts = roles.filter(|role| decides(role, &old) != decides(role, &new));
        (restarts.map(Role::name).collect(), outline(&Differs::between(&before, &after)))
    }

    #[test]
    fn a_role_starts_again_when_what_it_decides_by_differs_and_only_then() {
        /// What is replaced, which roles start again, and what is said.
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a str);
        let cases: [Case<'_>; 7] = [
            (&[], &[], ""),
            (&[("A: one", "A: two")], &[], "~web (environment)"),
            (&[("a@sha256:AAAA", "a@sha256:CCCC")], &["front"], "~web (image)"),
            (&[("8080:80", "8081:80")], &["front"], "~web (ports)"),
            (&[("app/db/key", "app/db/other")], &["vault"], "~db (secrets)"),
            (
                &[("    secrets:", "    networks: {default: {aliases: [store]}}\n    secrets:")],
                &["bridge"],
                "~db (networks)",
            ),
            (
                &[("  db:", "  new:\n    image: r.example/c@sha256:CCCC\n  db:")],
                &["vault", "front", "bridge", "egress"],
                "+new",
            ),
        ];
        for (changes, roles, said) in cases {
            assert_eq!(restarts(changes), (roles.to_vec(), said.to_owned()), "{changes:?}");
        }
    }

    #[test]
    fn a_service_has_other_places_with_another_image_and_those_that_it_had_without() {
        let mut numbers = Numbers::default();
        let mut web = |changes: &[(&str, &str)]| {
            let facts = services::resolve(&declared(changes), &mut numbers, 4 << 30).unwrap();
            facts.service("web").unwrap().clone()
        };
        let (first, same) = (web(&[]), web(&[("A: one", "A: two")]));
        assert_eq!((&first.rootfs, &first.cgroup), (&same.rootfs, &same.cgroup));
        let other = web(&[("a@sha256:AAAA", "a@sha256:CCCC")]);
        assert!(first.rootfs != other.rootfs && first.cgroup != other.cgroup && first.seal() != other.seal());
        assert_eq!((first.uid, &first.directory), (other.uid, &other.directory), "it is the same service");
    }

    #[test]
    fn what_others_write_as_their_reason_is_one_bounded_line() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(why(folder.path()), "it did not say why");
        fs::write(folder.path().join(WHY), b"web: \x1b[2J\nfailed \xff").unwrap();
        assert_eq!(why(folder.path()), "web: ?[2J?failed \u{fffd}");
        fs::write(folder.path().join(WHY), vec![b'a'; 1 << 20]).unwrap();
        assert_eq!(why(folder.path()), "it did not say why");
        // A shim that fell cannot hold PID 1 up, nor have it read something else.
        let place = folder.path().join(WHY);
        fs::remove_file(&place).unwrap();
        nix::unistd::mkfifo(&place, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(why(folder.path()), "it did not say why");
        fs::remove_file(&place).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &place).unwrap();
        assert_eq!(why(folder.path()), "it did not say why");
    }
}
