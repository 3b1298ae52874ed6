//! Stage `launch`: the launch boundary is measured, then the roles and the services start.
//!
//! After the `launch` event no measured input of the boot can change: it names the services, and the TLS key
//! that every evidence document claims.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use cofferdam_attest::event_log::payload;
use cofferdam_declaration::{Service, images_volume};
use cofferdam_protocol::Digest;
use cofferdam_protocol::certificate::CertificateClaim;
use cofferdam_protocol::facts::{ApplianceFacts, ImageInfo, Phase};
use cofferdam_protocol::json::{self, JsonError};
use cofferdam_protocol::state::State;

use super::Boot;
use super::keys::{self, KeyError};
use super::measure::Measured;
use super::mount::{self as mounts, MountError};
use super::numbers::Numbers;
use super::services::{self, ResolveError};
use super::unseal::Unsealed;
use crate::paths;
use crate::roles::facts::{Facts, ServiceFacts};
use crate::roles::pull::{image_dir, image_in};
use crate::roles::{Key, PUBLISH, RESERVE, ROLES, Role, SHIM, Starts, VAULT};
use crate::system::bell::Bell;
use crate::system::cgroup::{self, CgroupError};
use crate::system::console::say;
use crate::system::files;
use crate::system::images::{self, Holder, PendingImage};
use crate::system::kept::KeptImages;
use crate::system::spawn::Handed;
use crate::system::supervise::Tier;
use crate::system::sys::OwnFlags;
use crate::system::tdx::TdxError;
use crate::system::volume::KERNEL_BYTES;

/// Why the stage failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// A register.
    #[error("cannot measure the launch")]
    Registers(#[from] TdxError),
    /// A control group.
    #[error("cannot make the control groups")]
    Cgroup(#[from] CgroupError),
    /// The keys of the certificate that browsers accept.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A file or directory.
    #[error("cannot set up {0}")]
    File(String, #[source] io::Error),
    /// The file system of an image.
    #[error(transparent)]
    Image(#[from] images::MountError),
    /// The machine's memory.
    #[error(transparent)]
    Memory(#[from] MountError),
    /// The services.
    #[error(transparent)]
    Services(#[from] ResolveError),
    /// The facts of this boot cannot be written as JSON.
    #[error("cannot encode the facts of this boot")]
    Encode(#[source] JsonError),
}

/// What runs, and what a change of that needs ([`change`](super::change)).
pub(crate) struct Running {
    /// What was measured up to now.
    pub(super) measured: Measured,
    /// The facts of this boot, as everybody reads them.
    pub(super) launched: Launched,
    /// What the roles read about the declaration.
    pub(super) facts: Facts,
    /// The services and networks that had a number in this boot.
    pub(super) numbers: Numbers,
    /// What all services may use together, in bytes.
    pub(super) memory: u64,
    /// Where images lie on the disk.
    pub(super) kept: Option<KeptImages>,
}

/// The facts of this boot, as the roles read them.
pub(crate) struct Launched {
    pub(super) appliance: ApplianceFacts,
}

impl Launched {
    /// Replaces `appliance.json`, with the durations known by now.
    ///
    /// # Errors
    ///
    /// The file.
    pub(crate) fn publish(&mut self, phases: &[Phase]) -> Result<(), LaunchError> {
        self.appliance.phases = phases.to_vec();
        self.write()
    }

    pub(super) fn write(&self) -> Result<(), LaunchError> {
        let json = json::to_vec(&self.appliance).map_err(LaunchError::Encode)?;
        files::replace(paths::APPLIANCE, &json).map_err(file(paths::APPLIANCE))
    }
}

/// The vault opens its store and the evidence role asks for a key: well below this even under emulation.
const REACHABLE_WITHIN: Duration = Duration::from_secs(5);

/// A digest is 71 bytes of text.
const MAX_DIGEST_BYTES: u64 = 128;

/// Directories below /run/cofferdam that belong to no role.
const DIRECTORIES: [&str; 5] =
    [paths::SERVICES_DIR, paths::SERVICE_VOLUMES_DIR, paths::ROOTFS_DIR, paths::SEALS_DIR, paths::FETCH_DIR];

/// Measures the launch boundary and starts everything.
///
/// # Errors
///
/// [`LaunchError`].
pub(super) fn establish(
    boot: &mut Boot,
    mut measured: Measured,
    unsealed: Unsealed,
) -> Result<Running, LaunchError> {
    let Unsealed { state, disk, vault_key, new_volumes, tls, tls_key, mut numbers } = unsealed;
    let kernel = KERNEL_BYTES.saturating_mul(measured.declaration.sealed_volumes().len() as u64);
    let memory = mounts::services_bytes()?.saturating_sub(kernel);
    let mut facts = services::resolve(&measured.declaration, &mut numbers, memory)?;
    let declared = measured.declaration.certificate.as_ref();
    let certificate = declared.map(|declared| keys::certificate(declared, &vault_key, &tls)).transpose()?;
    facts.certificate = certificate.as_ref().map(|keys| keys.facts.clone());
    let claim = certificate.as_ref().map(|keys| keys.facts.claim.clone());
    measure_images(&mut measured, &facts)?;
    let names = facts.services.iter().map(|service| service.declared.name.clone()).collect();
    measured.measure(&payload::Launch { services: names, tls_key })?;

    for path in DIRECTORIES {
        files::directory(path, 0, 0, 0o755).map_err(file(path))?;
    }
    files::directory(paths::IMAGES_DIR, 0, 0, 0o700).map_err(file(paths::IMAGES_DIR))?;
    let launched = Launched { appliance: appliance(&measured, tls_key, claim, state, boot.phases.clone())? };
    prepare(&facts, &launched)?;
    hang_bell(boot);
    for (name, value) in launched.appliance.registers.named() {
        say(&format!("{name} {}", hex::encode(value)));
    }

    // In the order in which they need each other, each given a moment to be reachable: a role that finds nobody
    // would wait and ask again, which costs more. One that is not up in time does not hold up the rest.
    for role in ROLES.into_iter().filter(|role| role.starts() == Starts::Launch) {
        let key = role.key().and_then(|key| match key {
            Key::Vault => Some(vault_key.clone()),
            Key::Tls => Some(certificate.as_ref().map_or(&tls, |keys| &keys.front).clone()),
            Key::Account => certificate.as_ref().map(|keys| keys.account.clone()),
        });
        let mut spec = role.spec(None, key.map(Handed::Copy))?;
        spec.lent = lent(boot, role, disk.as_ref());
        let tier = if role.name() == RESERVE.name() { Tier::Reserve } else { Tier::Role };
        boot.supervisor.keep(role.name().to_owned(), tier, spec);
        await_socket(boot, role);
    }
    let kept = measured.declaration.images.map(|size| kept(size, &facts.services)).transpose()?;
    let all: Vec<&ServiceFacts> = facts.services.iter().collect();
    places(&all)?;
    images(boot, kept.as_ref(), &all, &[], u64::MAX)?;
    if new_volumes {
        await_record(boot);
    }
    start(boot, &all)?;
    Ok(Running { measured, launched, facts, numbers, memory, kept })
}

/// Measures which image each service has.
///
/// # Errors
///
/// A register.
pub(super) fn measure_images(measured: &mut Measured, facts: &Facts) -> Result<(), TdxError> {
    for ServiceFacts { declared: Service { name, image, .. }, .. } in &facts.services {
        measured.measure(&payload::Image { service: name.clone(), reference: image.clone() })?;
    }
    Ok(())
}

/// Listens to `publish` from now on, which may have something to admit. Without that what runs stays what runs.
fn hang_bell(boot: &mut Boot) {
    // That of the role before the launch, or what it has put there.
    let _ = fs::remove_file(paths::BELL);
    match Bell::hang(paths::BELL.as_ref(), PUBLISH.uid().unwrap_or_default()) {
        Ok(bell) => boot.supervisor.hear(bell),
        Err(error) => say(&format!("no declaration can follow this one: {}: {error}", paths::BELL)),
    }
}

/// Makes the directories where services find their images: only before they are shown there.
///
/// # Errors
///
/// A directory.
pub(super) fn places(services: &[&ServiceFacts]) -> Result<(), LaunchError> {
    let place = |service: &&ServiceFacts| {
        files::directory(&service.rootfs, 0, 0, 0o700).map_err(file(&service.rootfs))
    };
    services.iter().try_for_each(place)
}

/// The name of a service's shim among what is kept running.
pub(super) fn shim(name: &str) -> String {
    format!("{} {name}", SHIM.name())
}

/// Gives services their directories, shows them their volumes and starts their shims.
///
/// # Errors
///
/// A directory, a volume or a control group.
pub(super) fn start(boot: &mut Boot, services: &[&ServiceFacts]) -> Result<(), LaunchError> {
    for service in services {
        let uid = service.uid;
        files::directory(&service.directory, uid, uid, 0o755).map_err(file(&service.directory))?;
    }
    let mounts = services.iter().map(|service| volumes(service)).collect::<Result<Vec<_>, _>>()?;
    boot.supervisor.at_the_end(move || mounts.iter().flatten().for_each(|place| images::unmount(place)));
    for service in services {
        let spec = SHIM.spec(Some(service), None)?;
        let needs = service.declared.depends_on.iter().map(|on| shim(&on.service)).collect();
        let grace = service.declared.stop_grace_period;
        boot.supervisor.keep_service(shim(&service.declared.name), grace, needs, spec);
    }
    Ok(())
}

/// Waits until the vault has recorded the volumes that were made at this boot: at the next one it would say of a volume that it does not
/// know that it is to be made, and what a service had written would be gone.
fn await_record(boot: &mut Boot) {
    let recorded = Path::new(paths::VAULT_VOLUMES);
    while !boot.supervisor.run_until(REACHABLE_WITHIN, || recorded.exists()) {
        say("no service starts before the vault has recorded the volumes that were made");
    }
}

/// Mounts the volumes of a service where its shim finds them, and says where.
fn volumes(service: &ServiceFacts) -> Result<Vec<PathBuf>, LaunchError> {
    if service.declared.volumes.is_empty() {
        return Ok(Vec::new());
    }
    let (directory, uid) = (service.volumes_directory(), service.uid);
    files::directory(&directory, uid, uid, 0o700).map_err(file(&directory))?;
    let places = service.volumes().into_iter().map(|volume| volume.source);
    let mounted = service.declared.volumes.iter().zip(places).map(|(declared, place)| {
        files::directory(&place, 0, 0, 0o700).map_err(file(&place))?;
        let holder = Holder { place, base: uid };
        let own = OwnFlags { read_only: declared.read_only, no_exec: !declared.exec };
        images::mount_for(&Path::new(paths::VOLUMES_DIR).join(&declared.source), &holder, own)?;
        Ok(holder.place)
    });
    mounted.collect()
}

/// Makes what roles find when they start: their directories, `facts.json` and `appliance.json`.
///
/// # Errors
///
/// A file or directory.
pub(super) fn prepare(facts: &Facts, launched: &Launched) -> Result<(), LaunchError> {
    for (path, uid, gid, mode) in ROLES.into_iter().filter_map(Role::directory) {
        files::directory(path, uid, gid, mode).map_err(file(path))?;
    }
    write_facts(paths::FACTS, facts)?;
    launched.write()
}

/// Replaces one of the files of what the declaration decides.
///
/// # Errors
///
/// The file.
pub(super) fn write_facts(path: &'static str, facts: &Facts) -> Result<(), LaunchError> {
    let json = json::to_vec(facts).map_err(LaunchError::Encode)?;
    files::replace(path, &json).map_err(file(path))
}

/// What a role finds at descriptor 4: the vault the state disk, `publish` where PID 1 hears what time it is.
pub(super) fn lent(boot: &Boot, role: &Role, disk: Option<&Rc<fs::File>>) -> Option<Rc<fs::File>> {
    match role.name() {
        name if name == VAULT.name() => disk.cloned(),
        name if name == PUBLISH.name() => Some(boot.supervisor.clock()),
        _ => None,
    }
}

/// Gives a role a moment to be reachable.
pub(super) fn await_socket(boot: &mut Boot, role: &Role) {
    if let Some(socket) = role.socket().map(Path::new) {
        boot.supervisor.run_until(REACHABLE_WITHIN, || socket.exists());
    }
}

/// What is known of this boot by now.
///
/// # Errors
///
/// The registers, or the file with the program's digest.
pub(super) fn appliance(
    measured: &Measured,
    tls_key: Digest,
    certificate: Option<CertificateClaim>,
    state: State,
    phases: Vec<Phase>,
) -> Result<ApplianceFacts, LaunchError> {
    let Measured { registers, log, delivered, declaration } = measured;
    Ok(ApplianceFacts {
        repository: declaration.repository.clone(),
        commit: delivered.commit,
        declaration: Digest::of(&delivered.bytes),
        endpoint: declaration.endpoint.clone(),
        tls_key,
        certificate,
        state,
        event_log: log.clone(),
        phases,
        registers: registers.all()?,
        image: ImageInfo {
            name: "cofferdam".to_owned(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            digests: [("cofferd".to_owned(), own_digest()?)].into(),
        },
    })
}

/// Digest of the program that is running, which the build has written beside it. Not computed: the firmware measures both together, and
/// ten megabytes take as long as all other work of this stage.
fn own_digest() -> Result<Digest, LaunchError> {
    let read = || {
        let bytes = files::read_bounded(paths::PROGRAM_DIGEST, MAX_DIGEST_BYTES)?;
        let text = std::str::from_utf8(&bytes).map_err(io::Error::other)?;
        text.trim_end().parse().map_err(io::Error::other)
    };
    read().map_err(file(paths::PROGRAM_DIGEST))
}

/// Shows each of `services` its image: one that is there, for somebody who `has` it or on the disk, is shown as it is; the others are to be
/// pulled by their owners, in at most `room` bytes of memory, and are sealed then.
///
/// # Errors
///
/// [`LaunchError`].
pub(super) fn images(
    boot: &mut Boot,
    kept: Option<&KeptImages>,
    services: &[&ServiceFacts],
    has: &[ServiceFacts],
    room: u64,
) -> Result<(), LaunchError> {
    if kept.is_some() {
        let places: Vec<PathBuf> = services.iter().map(|service| service.rootfs.clone()).collect();
        boot.supervisor.at_the_end(move || places.iter().for_each(|place| images::unmount(place)));
    }
    let mut done: Vec<Digest> = Vec::new();
    for service in services {
        let digest = service.declared.image.digest();
        if done.contains(&digest) {
            continue;
        }
        done.push(digest);
        let holders: Vec<&&ServiceFacts> =
            services.iter().filter(|other| other.declared.image.digest() == digest).collect();
        if has.iter().any(|other| other.declared.image.digest() == digest) {
            show(&digest, kept, &holders)?;
        } else if let Some(image) = image(&holders, kept, room)? {
            boot.supervisor.seal(image);
        }
    }
    Ok(())
}

/// Shows services an image that is there, or that somebody else is pulling.
fn show(digest: &Digest, kept: Option<&KeptImages>, services: &[&&ServiceFacts]) -> Result<(), LaunchError> {
    let holders: Vec<Holder> = services.iter().map(|service| holder(service)).collect();
    match kept {
        Some(kept) => kept.mount(digest, &holders)?,
        None => {
            let root = image_root(digest);
            for holder in &holders {
                images::mount_for(&root, holder, images::READ_ONLY)?;
            }
        }
    }
    Ok(())
}

/// Where PID 1 has an image that lies in memory.
pub(super) fn image_root(digest: &Digest) -> PathBuf {
    Path::new(paths::IMAGES_DIR).join(digest.hex())
}

fn holder(service: &ServiceFacts) -> Holder {
    Holder { place: service.rootfs.clone(), base: service.uid }
}

/// The images that the disk has of those that are declared.
fn kept(size: u64, services: &[ServiceFacts]) -> Result<KeptImages, LaunchError> {
    let root = Path::new(paths::VOLUMES_DIR).join(images_volume(size));
    let declared = services.iter().map(|service| service.declared.image.digest()).collect();
    KeptImages::open(root.clone(), &declared).map_err(file(&root))
}

/// The file system of an image for all services that have it, of which one pulls it; `None` when it need not be pulled. Not on /run, which is
/// noexec. In memory its pages count as the owner's, whose control group bounds them; without a size it would hold half of the machine's
/// memory and no more.
fn image(
    services: &[&&ServiceFacts],
    kept: Option<&KeptImages>,
    room: u64,
) -> Result<Option<PendingImage>, LaunchError> {
    let Some(owner) = services.iter().find(|service| service.pulls()) else { return Ok(None) };
    let others = services.iter().filter(|other| !other.pulls());
    let (own, others): (Holder, Vec<Holder>) = (holder(owner), others.map(|other| holder(other)).collect());
    let digest = owner.declared.image.digest();
    let Some(kept) = kept else {
        let root = image_root(&digest);
        files::directory(&root, 0, 0, 0o700).map_err(file(&root))?;
        let (size, complete) = (owner.memory.min(room), image_dir(owner).complete());
        return Ok(Some(images::mount_image(&root, &own, &others, size, complete, owner.seal())?));
    };
    if kept.has(&digest) {
        show(&digest, Some(kept), services)?;
        fs::write(owner.seal(), b"").map_err(file(&owner.seal()))?;
        say(&format!("image {digest}: kept on the disk"));
        return Ok(None);
    }
    let group = owner.cgroup.clone();
    let ended = Box::new(move || !cgroup::populated(&group));
    let complete = image_in(&kept.partial(&digest)).complete();
    say(&format!("image {digest}: to be pulled onto the disk"));
    Ok(Some(images::mount_kept((kept, &digest), &own, &others, ended, complete, owner.seal())?))
}

fn file(path: &(impl AsRef<Path> + ?Sized)) -> impl FnOnce(io::Error) -> LaunchError {
    let path = path.as_ref().display().to_string();
    move |source| LaunchError::File(path, source)
}
