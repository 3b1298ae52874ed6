//! Starts processes exactly as PID 1 does, has each look at what is left to it, and lets the supervisor keep one
//! that will not stay.
//!
//! Without libtest: starting a process as PID 1 does needs a process with one thread, and what is started is
//! this program again, with the name of a probe as its argument. Needs root; says so and passes otherwise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::cell::Cell;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use caps::Capability;
use cofferdam_protocol::Digest;
use cofferdam_workload::init::become_root;
use cofferdam_workload::pull::ImageDir;
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Uid};

use cofferd::paths;
use cofferd::roles::{ADMIT, BRIDGE, EGRESS, EVIDENCE, FRONT, GATE, NETWORK, PUBLISH, ROLES, Role, VAULT};
use cofferd::system::images::{self, Holder};
use cofferd::system::kept::KeptImages;
use cofferd::system::spawn::{Handed, Identity, KeyFile, SpawnError, Spec};
use cofferd::system::sys::{self, SecretMemory};
use cofferd::system::{spawn, supervise};

/// A directory that exists everywhere and that the probes must not see into.
const COVERED: &[&str] = &["/sys/firmware", "/nowhere/at/all"];
const BASE: u32 = 100_000 + 65_537;
const OTHER_BASE: u32 = BASE + 65_537;
const KEY: &[u8] = b"thirty-two bytes of a sealed key";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("probe-role"), None) => probe_role(),
        (Some("probe-root"), None) => probe_root(),
        (Some("probe-capability"), None) => probe_capability(),
        (Some("probe-shim"), None) => probe_shim(),
        (Some("probe-filter"), Some(role)) => probe_filter(&role),
        (Some("probe-landlock"), Some(role)) => probe_landlock(&role),
        (Some("probe-unpack"), Some(place)) => probe_unpack(Path::new(&place)),
        (Some("probe-sealed"), Some(place)) => probe_sealed(Path::new(&place)),
        (Some("probe-other"), Some(place)) => probe_other(Path::new(&place)),
        (Some("probe-stranger"), Some(place)) => probe_stranger(Path::new(&place)),
        (Some("probe-crash"), Some(file)) => return probe_crash(&file),
        (Some("probe-once"), Some(file)) => return probe_once(&file),
        (Some("probe-stay"), Some(file)) => probe_stay(&file),
        // libtest's options, and its listing.
        (Some("--list"), _) => {}
        _ => return tests(),
    }
    ExitCode::SUCCESS
}

fn tests() -> ExitCode {
    if !Uid::effective().is_root() {
        println!("SKIPPED: starting confined processes needs root");
        return ExitCode::SUCCESS;
    }
    let key = key();
    role("a role has its own uid, no capability, no network, and gets its key whole each time", || {
        for _ in 0..2 {
            run(&spec(
                "probe-role",
                Identity::Role { uid: 101, gid: 101, capabilities: &[] },
                true,
                Some(key.clone()),
            ));
        }
    });
    role("root without capabilities is not root", || {
        run(&spec("probe-root", Identity::Role { uid: 0, gid: 104, capabilities: &[] }, true, None));
    });
    role("a capability that is kept is the only one", || {
        const KEPT: &[Capability] = &[Capability::CAP_NET_BIND_SERVICE];
        run(&spec(
            "probe-capability",
            Identity::Role { uid: 102, gid: 102, capabilities: KEPT },
            false,
            None,
        ));
    });
    role(
        "a shim has an id of its own and all capabilities over its container's, and uncovers nothing",
        || {
            run(&spec("probe-shim", Identity::Shim { base: BASE }, false, None));
        },
    );
    role(
        "services of one image have one copy, in ids of their own, that nobody changes once it is there",
        images,
    );
    role(
        "an image on the disk is whole once nobody is left who could write to it, and there again",
        kept_images,
    );
    role("a child that cannot be set up says why", || {
        let identity = Identity::Role { uid: 101, gid: 101, capabilities: &[] };
        let error = spawn::spawn(&spec("zero\0inside", identity, false, None)).unwrap_err();
        assert!(matches!(&error, SpawnError::Setup(words) if words.contains("build argv")), "{error}");
        while waitpid(None, None).is_ok() {}
    });
    for name in
        [&VAULT, &FRONT, &PUBLISH, &EVIDENCE, &NETWORK, &BRIDGE, &EGRESS, &ADMIT, &GATE].map(Role::name)
    {
        role(&format!("the filter of {name} refuses what a role never does"), || {
            let identity = Identity::Role { uid: 0, gid: 0, capabilities: &[] };
            let mut spec = spec("probe-filter", identity, false, None);
            spec.arguments.push(name.to_owned());
            run(&spec);
        });
    }
    role("a role that ends is started again, later each time, and its orphans are reaped", supervision);
    role("work that is to be done once is done once, with memory and a disk that PID 1 lends", lending);
    role("what runs once answers once, and who retires or is renewed leaves the others alone", changing);
    let lsm = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    if lsm.contains("landlock") {
        role("the vault sees its own directory and no other", || {
            let identity = Identity::Role { uid: 101, gid: 101, capabilities: &[] };
            let mut spec = spec("probe-landlock", identity, false, None);
            spec.arguments.push("vault".to_owned());
            run(&spec);
        });
    } else {
        println!("SKIPPED: this kernel has no Landlock; the boot of the image tests it");
    }
    ExitCode::SUCCESS
}

fn role(what: &str, test: impl FnOnce()) {
    test();
    println!("ok: {what}");
}

fn spec(probe: &str, identity: Identity, own_network: bool, key: Option<KeyFile>) -> Spec {
    Spec {
        arguments: vec![probe.to_owned()],
        identity,
        own_network,
        covered: COVERED,
        key: key.map(Handed::Copy),
        lent: None,
        cgroup: None,
    }
}

fn run(spec: &Spec) {
    let pid = spawn::spawn(spec).unwrap();
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)), "{:?}", spec.arguments);
}

fn key() -> KeyFile {
    Rc::new(SecretMemory::holding(KEY).unwrap())
}

/// An image of two services: the first one unpacks it, both start from it, and a third one does not see it.
fn images() {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let holders = [("owner", BASE), ("other", OTHER_BASE)].map(|(name, base)| {
        let place = folder.path().join(name);
        fs::create_dir(&place).unwrap();
        Holder { place, base }
    });
    let [owner, other] = &holders;
    let complete = ImageDir::at(owner.place.join("image")).complete();
    let seal = folder.path().join("seal");
    let others = std::slice::from_ref(other);
    let root = folder.path().join("images");
    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
    let image = images::mount_image(&root, owner, others, 4 << 20, complete.clone(), seal.clone()).unwrap();
    let probe = |probe: &str, holder: &Holder, place: &Path| {
        let mut spec = spec(probe, Identity::Shim { base: holder.base }, false, None);
        spec.arguments.push(place.to_str().unwrap().to_owned());
        run(&spec);
    };
    probe("probe-other", other, &other.place);
    assert!(!image.seal().unwrap(), "nothing is there yet");
    probe("probe-unpack", owner, &owner.place);
    // Each sees the one file in its own ids.
    let metadata = holders.each_ref().map(|at| fs::metadata(at.place.join("image/rootfs/file")).unwrap());
    assert_eq!(metadata.each_ref().map(MetadataExt::uid), [BASE + 1001, OTHER_BASE + 1001]);
    assert_eq!(metadata[0].ino(), metadata[1].ino());
    assert_eq!(metadata[0].dev(), metadata[1].dev());
    let writer = fs::File::options().write(true).open(&complete).unwrap();
    assert!(!image.seal().unwrap(), "somebody still writes");
    assert!(!seal.exists());
    drop(writer);
    assert!(image.seal().unwrap() && seal.exists());
    probe("probe-sealed", owner, &owner.place);
    probe("probe-sealed", other, &other.place);
    probe("probe-other", other, &other.place);
    let stranger = Holder { place: other.place.clone(), base: OTHER_BASE + (OTHER_BASE - BASE) };
    for Holder { place, .. } in &holders {
        probe("probe-stranger", &stranger, place);
    }
    assert_eq!(fs::read(other.place.join("image/rootfs/file")).unwrap(), b"of the image");
}

/// The same on the disk, in a boot that pulls the image and in the next one, which finds it.
fn kept_images() {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let [volume, owner, other] = ["volume", "owner", "other"].map(|name| folder.path().join(name));
    for place in [&volume, &owner, &other] {
        fs::create_dir(place).unwrap();
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("volume"), &volume, Some("tmpfs"), flags, Some("size=4194304")).unwrap();
    let holders = [Holder { place: owner, base: BASE }, Holder { place: other, base: OTHER_BASE }];
    let [owner, other] = &holders;
    let probe = |probe: &str, holder: &Holder| {
        let mut spec = spec(probe, Identity::Shim { base: holder.base }, false, None);
        spec.arguments.push(holder.place.to_str().unwrap().to_owned());
        run(&spec);
    };
    let (digest, seal) = (Digest::of(b"image"), folder.path().join("seal"));
    let declared = [digest].into();
    let kept = KeptImages::open(volume.clone(), &declared).unwrap();
    assert!(!kept.has(&digest));
    let complete = ImageDir::at(kept.partial(&digest).join("image")).complete();
    let gone = Rc::new(Cell::new(false));
    let ended = Box::new({
        let gone = gone.clone();
        move || gone.get()
    });
    let others = std::slice::from_ref(other);
    let image = images::mount_kept((&kept, &digest), owner, others, ended, complete, seal.clone()).unwrap();
    probe("probe-other", other);
    gone.set(true);
    assert!(!image.seal().unwrap(), "nothing is there yet");
    probe("probe-unpack", owner);
    gone.set(false);
    assert!(!image.seal().unwrap(), "whoever pulled is still there");
    assert!(!kept.has(&digest) && !seal.exists());
    gone.set(true);
    assert!(image.seal().unwrap() && seal.exists() && kept.has(&digest));
    assert!(!kept.partial(&digest).exists());
    let sealed = || {
        for holder in &holders {
            probe("probe-sealed", holder);
            probe("probe-other", holder);
            let stranger = Holder { base: OTHER_BASE + (OTHER_BASE - BASE), ..holder.clone() };
            probe("probe-stranger", &stranger);
            let seen = fs::metadata(holder.place.join("image/rootfs/file")).unwrap();
            assert_eq!(seen.uid(), holder.base + 1001);
        }
        assert_eq!(fs::read(volume.join(digest.hex()).join("image/rootfs/file")).unwrap(), b"of the image");
    };
    sealed();
    for holder in &holders {
        umount2(&holder.place, MntFlags::MNT_DETACH).unwrap();
    }
    let kept = KeptImages::open(volume.clone(), &declared).unwrap();
    assert!(kept.has(&digest));
    kept.mount(&digest, &holders).unwrap();
    sealed();
    assert!(!KeptImages::open(volume.clone(), &[].into()).unwrap().has(&digest), "nobody names it any more");
}

fn refusal<T>(outcome: std::io::Result<T>) -> Option<Errno> {
    outcome.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw)
}

/// What a pull does: it begins anew, whatever was left, with owners of the whole range.
fn probe_unpack(place: &Path) {
    let top = fs::metadata(place).unwrap();
    assert_eq!((top.uid(), top.gid(), top.mode() & 0o7777), (0, 0, 0o700));
    let image = ImageDir::at(place.join("image"));
    assert_eq!(refusal(image.prepare()), Some(Errno::EOVERFLOW), "a shim's own id owns no file of an image");
    become_root().unwrap();
    for _ in 0..2 {
        image.prepare().unwrap();
        let file = image.rootfs().join("file");
        fs::write(&file, "of the image").unwrap();
        chown(&file, Some(1000), Some(65_534)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4000)).unwrap();
        for (id, why) in [(65_536, Errno::EOVERFLOW), (65_537, Errno::EINVAL)] {
            assert_eq!(refusal(chown(&file, Some(id), None)), Some(why), "{id} is none of a container's");
        }
        let device = mknod(&image.rootfs().join("null"), SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 3));
        assert_eq!(device, Err(Errno::EPERM));
    }
    let too_large = fs::write(image.rootfs().join("large"), vec![1; 5 << 20]);
    assert_eq!(refusal(too_large), Some(Errno::ENOSPC));
    fs::remove_file(image.rootfs().join("large")).unwrap();
    fs::write(image.complete(), "").unwrap();
}

/// Tries everything that changes a file or lets that be done again, as root of a service with all its capabilities.
fn changes_nothing(place: &Path) {
    let none = None::<&str>;
    let again = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    assert_eq!(mount(none, place, none, again, none), Err(Errno::EPERM), "the file system again for writing");
    assert_eq!(umount2(place, MntFlags::MNT_DETACH), Err(Errno::EINVAL));
    for lost in [MsFlags::MS_NOSUID, MsFlags::MS_NODEV] {
        let flags = (again | MsFlags::MS_BIND | MsFlags::MS_RDONLY).difference(lost);
        assert_eq!(mount(none, place, none, flags, none), Err(Errno::EPERM), "without {lost:?}");
    }
    // A copy of the mount is no way round it.
    let copy = Path::new("/mnt");
    mount(Some(place), copy, none, MsFlags::MS_BIND, none).unwrap();
    for place in [place, copy] {
        let _ = mount(none, place, none, again | MsFlags::MS_BIND, none);
        assert_eq!(refusal(fs::write(place.join("new"), "")), Some(Errno::EROFS));
        assert_eq!(refusal(chown(place, Some(0), Some(0))), Some(Errno::EROFS));
        let mode = fs::Permissions::from_mode(0o777);
        assert_eq!(refusal(fs::set_permissions(place, mode)), Some(Errno::EROFS));
        let unnamed = fs::File::options().write(true).custom_flags(libc::O_TMPFILE).open(place);
        assert_eq!(refusal(unnamed), Some(Errno::EROFS));
    }
    umount2(copy, MntFlags::MNT_DETACH).unwrap();
}

/// One that does not unpack never writes, before the image is there and after.
fn probe_other(place: &Path) {
    let none = None::<&str>;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    assert_eq!(mount(none, place, none, flags, none), Err(Errno::EPERM), "the mount again for writing");
    changes_nothing(place);
}

/// Once the image is sealed, its owner is as everybody. A root file system starts from it with a layer of its own.
fn probe_sealed(place: &Path) {
    changes_nothing(place);
    let lower = place.join("image/rootfs");
    let file = lower.join("file");
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (1000, 65_534, 0o4000));
    let opened = fs::File::options().write(true).open(&file);
    assert_eq!(refusal(opened), Some(Errno::EROFS));
    assert_eq!(refusal(fs::remove_file(&file)), Some(Errno::EROFS));
    assert_eq!(refusal(fs::rename(&file, lower.join("moved"))), Some(Errno::EROFS));
    assert_eq!(refusal(fs::hard_link(&file, lower.join("linked"))), Some(Errno::EROFS));
    assert_eq!(ImageDir::at(place.join("image")).prepare().unwrap_err().raw_os_error(), Some(libc::EROFS));
    mount(Some("upper"), "/mnt", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    for directory in ["/mnt/upper", "/mnt/work", "/mnt/root"] {
        fs::create_dir(directory).unwrap();
    }
    let options = format!("lowerdir={},upperdir=/mnt/upper,workdir=/mnt/work,userxattr", lower.display());
    mount(Some("root"), "/mnt/root", Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
    assert_eq!(fs::read("/mnt/root/file").unwrap(), b"of the image");
    chown("/mnt/root/file", Some(7), Some(7)).unwrap();
    fs::write("/mnt/root/file", "another").unwrap();
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!((metadata.uid(), metadata.len()), (1000, 12), "the layer above took it");
}

/// Root of a service that does not have the image.
fn probe_stranger(place: &Path) {
    assert_eq!(refusal(fs::read_dir(place)), Some(Errno::EACCES));
    assert_eq!(refusal(fs::metadata(place.join("image"))), Some(Errno::EACCES));
    assert!(fs::set_permissions(place, fs::Permissions::from_mode(0o777)).is_err());
    assert!(chown(place, Some(0), Some(0)).is_err());
}

fn supervision() {
    // As PID 1 is: what a role leaves behind becomes a child of this process.
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let starts = directory.path().join("starts");
    fs::write(&starts, "").unwrap();
    let mut supervisor = supervise::Supervisor::new().unwrap();
    let mut spec = spec("probe-crash", Identity::Role { uid: 0, gid: 0, capabilities: &[] }, false, None);
    spec.arguments.push(starts.to_str().unwrap().to_owned());
    let count = || fs::metadata(&starts).unwrap().len();
    let began = Instant::now();
    supervisor.keep("crash".to_owned(), supervise::Tier::Role, spec);
    assert!(supervisor.run_until(Duration::from_secs(10), || count() == 4), "{} starts", count());
    // 100, 200 and 400 ms lie between the four starts.
    assert!(began.elapsed() >= Duration::from_millis(700), "{:?}", began.elapsed());
    // Each run left an orphan that ends at once: none may stay behind as a zombie.
    let gone = supervisor.run_until(Duration::from_secs(5), || zombies() == 0);
    assert!(gone, "{} zombies", zombies());
}

/// It fails once, then does its work and is not started again; others go on, and end when they are released.
fn lending() {
    let directory = tempfile::tempdir().unwrap();
    let starts = directory.path().join("starts");
    fs::write(&starts, "").unwrap();
    let disk = directory.path().join("disk");
    let disk = Rc::new(fs::OpenOptions::new().read(true).write(true).create_new(true).open(disk).unwrap());
    let lent = Rc::new(SecretMemory::holding(KEY).unwrap());
    let identity = Identity::Role { uid: 0, gid: 0, capabilities: &[] };
    let mut once = spec("probe-once", identity.clone(), false, None);
    once.arguments.push(starts.to_str().unwrap().to_owned());
    (once.key, once.lent) = (Some(Handed::Shared(lent.clone())), Some(disk.clone()));
    let mut other = spec("probe-crash", identity, false, None);
    let others = directory.path().join("others");
    fs::write(&others, "").unwrap();
    other.arguments.push(others.to_str().unwrap().to_owned());

    let mut supervisor = supervise::Supervisor::new().unwrap();
    supervisor.keep("other".to_owned(), supervise::Tier::Role, other);
    supervisor.keep_until_done("once".to_owned(), supervise::Tier::Role, once);
    supervisor.run_until_done("once");
    assert_eq!(fs::read(&starts).unwrap(), b"xx", "once with exit code 7 and once with 0");
    assert_eq!(lent.bytes(), KEY.iter().rev().copied().collect::<Vec<u8>>());
    let mut written = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(&*disk, &mut written, 4096).unwrap();
    assert_eq!(&written, b"disk");
    assert!(!supervisor.run_until(Duration::from_millis(300), || fs::read(&starts).unwrap().len() > 2));

    let count = || fs::metadata(&others).unwrap().len();
    supervisor.release(&["nobody"]);
    let before = count();
    assert!(supervisor.run_until(Duration::from_secs(10), || count() > before), "released is who was named");
    supervisor.release(&["other"]);
    let before = count();
    assert!(!supervisor.run_until(Duration::from_secs(1), || count() > before));
}

/// One after the other, as a change goes.
fn changing() {
    let directory = tempfile::tempdir().unwrap();
    let spec_of = |probe: &str, file: &str| {
        let path = directory.path().join(file);
        fs::write(&path, "").unwrap();
        let mut spec = spec(probe, Identity::Role { uid: 0, gid: 0, capabilities: &[] }, false, None);
        spec.arguments.push(path.to_str().unwrap().to_owned());
        spec
    };
    let starts = |file: &str| fs::metadata(directory.path().join(file)).unwrap().len();
    let mut supervisor = supervise::Supervisor::new().unwrap();
    let soon = Duration::from_secs(10);
    for name in ["stays", "first", "second"] {
        let needs = if name == "second" { vec!["first".to_owned()] } else { Vec::new() };
        supervisor.keep_service(name.to_owned(), soon, needs, spec_of("probe-stay", name));
    }
    assert!(supervisor.run_until(soon, || starts("stays") + starts("first") + starts("second") == 3));

    let failing = vec![
        ("fails".to_owned(), spec_of("probe-once", "fails")),
        ("hangs".to_owned(), spec_of("probe-stay", "hangs")),
    ];
    let answers = supervisor.run_once(failing, Duration::from_secs(2));
    assert_eq!(answers, [Some(7), None], "its answer, and none of who had to be ended");
    assert!(!supervisor.run_until(Duration::from_millis(300), || starts("fails") + starts("hangs") > 2));

    supervisor.renew("first");
    assert!(supervisor.run_until(soon, || starts("first") == 2));
    supervisor.renew("nobody");
    supervisor.retire(&["first".to_owned(), "second".to_owned()]);
    assert!(!supervisor.run_until(Duration::from_millis(300), || starts("first") + starts("second") > 3));
    assert_eq!(starts("stays"), 1, "who is not named goes on");
    supervisor.retire(&["stays".to_owned()]);
    assert_eq!(zombies(), 0);
}

/// Notes that it started, and stays.
fn probe_stay(file: &str) {
    fs::OpenOptions::new().append(true).open(file).unwrap().write_all(b"x").unwrap();
    std::thread::sleep(Duration::from_secs(600));
}

/// Writes to what it was lent: fails the first time, and is done the second.
fn probe_once(starts: &str) -> ExitCode {
    let mut file = fs::OpenOptions::new().append(true).open(starts).unwrap();
    file.write_all(b"x").unwrap();
    if file.metadata().unwrap().len() == 1 {
        return ExitCode::from(7);
    }
    let mut lent = SecretMemory::open(sys::inherited(paths::KEY_FD).unwrap()).unwrap();
    lent.bytes_mut().reverse();
    lent.leave();
    let disk = fs::File::from(sys::inherited(paths::DISK_FD).unwrap());
    std::os::unix::fs::FileExt::write_all_at(&disk, b"disk", 4096).unwrap();
    ExitCode::SUCCESS
}

/// Children of this process that have ended and were not waited for (proc_pid_stat(5): state, parent).
fn zombies() -> usize {
    let me = std::process::id().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let stats = processes.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let is_mine = |stat: &String| {
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        fields.next() == Some("Z") && fields.next() == Some(&me)
    };
    stats.filter(is_mine).count()
}

/// Notes that it started, leaves an orphan, and fails.
fn probe_crash(file: &str) -> ExitCode {
    let mut file = fs::OpenOptions::new().append(true).open(file).unwrap();
    file.write_all(b"x").unwrap();
    match sys::fork().unwrap() {
        None => sys::leave(0),
        Some(_) => ExitCode::from(3),
    }
}

/// One line of /proc/self/status.
fn status(name: &str) -> String {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

fn listing(path: &str) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What holds for every process, whoever it is.
fn common(bounding: &str) {
    assert_eq!(status("NoNewPrivs"), "1");
    assert_eq!(status("CapBnd"), bounding);
    assert_eq!(status("SigBlk"), "0000000000000000");
    // SIGPIPE alone, by Rust's runtime. 32 and 33 are glibc's own, ignored in all that its posix_spawn starts,
    // of which this test's first process is one.
    let ignored = u64::from_str_radix(&status("SigIgn"), 16).unwrap() & !(0b11 << 31);
    assert_eq!(ignored, 1 << 12);
    assert_eq!(status("Groups"), "");
    assert_eq!(std::env::vars_os().count(), 0);
    assert_eq!(fs::read_link("/proc/self/fd/0").unwrap(), Path::new("/dev/null"));
    assert_eq!(nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CORE).unwrap(), (0, 0));
    assert_eq!(listing("/dev"), ["full", "null", "random", "tty", "urandom", "zero"]);
    // Descriptor 3 or 4 is the listing itself.
    assert!(listing("/proc/self/fd").len() <= 5, "{:?}", listing("/proc/self/fd"));
}

fn probe_role() {
    // A copy of its own: clearing it clears nobody else's, and the next run finds the same.
    let key = SecretMemory::open(sys::inherited(paths::KEY_FD).unwrap()).unwrap();
    assert_eq!(key.bytes(), KEY);
    drop(key);
    common("0000000000000000");
    assert_eq!(status("Uid"), "101\t101\t101\t101");
    assert_eq!(status("Gid"), "101\t101\t101\t101");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(set), "0000000000000000", "{set}");
    }
    assert_eq!(fs::read_dir("/sys/firmware").unwrap_err().raw_os_error(), Some(libc::EACCES));
    let network = fs::read_to_string("/proc/self/net/dev").unwrap();
    assert_eq!(network.lines().filter(|line| line.contains(':')).count(), 1, "{network}");
    assert!(network.contains("lo:"));
    assert_eq!(nix::unistd::setuid(Uid::from_raw(0)), Err(Errno::EPERM));
}

fn probe_root() {
    common("0000000000000000");
    assert_eq!(status("Uid"), "0\t0\t0\t0");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(set), "0000000000000000", "{set}");
    }
    assert_eq!(fs::read_dir("/sys/firmware").unwrap_err().raw_os_error(), Some(libc::EACCES));
    assert_eq!(umount2("/sys/firmware", MntFlags::MNT_DETACH), Err(Errno::EPERM));
    assert_eq!(nix::unistd::setgroups(&[Gid::from_raw(0)]), Err(Errno::EPERM));
}

fn probe_capability() {
    let kept = format!("{:016x}", 1_u64 << Capability::CAP_NET_BIND_SERVICE.index());
    common(&kept);
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(set), kept, "{set}");
    }
}

fn probe_shim() {
    assert_eq!(status("NoNewPrivs"), "1");
    assert_eq!(status("Uid"), "65536\t65536\t65536\t65536");
    assert_eq!(status("Gid"), "65536\t65536\t65536\t65536");
    assert_eq!(status("Groups"), "");
    for map in ["uid_map", "gid_map"] {
        let map = fs::read_to_string(format!("/proc/self/{map}")).unwrap();
        let map: Vec<&str> = map.split_whitespace().collect();
        assert_eq!(map, ["0", &(BASE + 1).to_string(), "65536", "65536", &BASE.to_string(), "1"]);
    }
    assert!(status("CapEff").ends_with("fffffffff"), "{}", status("CapEff"));
    // Locked: made by a more privileged namespace.
    assert_eq!(umount2("/sys/firmware", MntFlags::MNT_DETACH), Err(Errno::EINVAL));
    assert_eq!(umount2("/dev", MntFlags::MNT_DETACH), Err(Errno::EINVAL));
    assert_eq!(fs::read_dir("/sys/firmware").unwrap_err().raw_os_error(), Some(libc::EACCES));
    // With all capabilities here it is nobody there.
    assert!(fs::write("/proc/sys/kernel/core_pattern", "x").is_err());
    assert_eq!(fs::write("/dev/new", "").unwrap_err().raw_os_error(), Some(libc::EROFS));
    // And can do inside what a container needs: mount, change owners within its range, and nothing beyond it.
    mount(Some("none"), "/mnt", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write("/mnt/file", "x").unwrap();
    std::os::unix::fs::chown("/mnt/file", Some(65_535), Some(65_535)).unwrap();
    assert!(std::os::unix::fs::chown("/mnt/file", Some(65_537), None).is_err());
}

/// A system call with zeros for further arguments, and its refusal if it was refused.
fn attempt(number: i64, first: i64, second: i64, third: i64) -> Option<Errno> {
    attempt_with(number, [first, second, third, 0])
}

/// The same with one argument more.
#[allow(unsafe_code)]
fn attempt_with(number: i64, [first, second, third, fourth]: [i64; 4]) -> Option<Errno> {
    // SAFETY: the calls of the table do nothing with zeros but fail, and are refused before that.
    let outcome = unsafe { libc::syscall(number, first, second, third, fourth, 0_i64, 0_i64) };
    Errno::result(outcome).err()
}

/// The role of this name.
fn the(name: &str) -> &'static Role {
    ROLES.into_iter().find(|role| role.name() == name).unwrap()
}

fn probe_filter(role: &str) {
    let never: &[(&str, i64)] = &[
        ("ptrace", libc::SYS_ptrace),
        ("process_vm_readv", libc::SYS_process_vm_readv),
        ("process_vm_writev", libc::SYS_process_vm_writev),
        ("pidfd_open", libc::SYS_pidfd_open),
        ("pidfd_getfd", libc::SYS_pidfd_getfd),
        ("kcmp", libc::SYS_kcmp),
        ("bpf", libc::SYS_bpf),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("keyctl", libc::SYS_keyctl),
        ("add_key", libc::SYS_add_key),
        ("mount", libc::SYS_mount),
        ("umount2", libc::SYS_umount2),
        ("fsopen", libc::SYS_fsopen),
        ("move_mount", libc::SYS_move_mount),
        ("pivot_root", libc::SYS_pivot_root),
        ("chroot", libc::SYS_chroot),
        ("unshare", libc::SYS_unshare),
        ("setns", libc::SYS_setns),
        ("execve", libc::SYS_execve),
        ("execveat", libc::SYS_execveat),
        ("fork", libc::SYS_fork),
        ("clone3", libc::SYS_clone3),
        ("open_by_handle_at", libc::SYS_open_by_handle_at),
        ("finit_module", libc::SYS_finit_module),
        ("kexec_load", libc::SYS_kexec_load),
        ("reboot", libc::SYS_reboot),
        ("iopl", libc::SYS_iopl),
        ("personality", libc::SYS_personality),
        ("memfd_create", libc::SYS_memfd_create),
        ("setuid", libc::SYS_setuid),
        ("capset", libc::SYS_capset),
        ("seccomp", libc::SYS_seccomp),
        ("kill", libc::SYS_kill),
        ("mknod", libc::SYS_mknod),
        ("syslog", libc::SYS_syslog),
    ];
    // Without the filter the kernel looks at the arguments first: the refusals below are the filter's.
    assert_eq!(attempt(libc::SYS_process_vm_readv, 0, 0, 0), None);
    assert_eq!(attempt(libc::SYS_getpriority, 9, 0, 0), Some(Errno::EINVAL));
    the(role).policy().filter_calls(role).unwrap();
    for (name, number) in never {
        assert_eq!(attempt(*number, 0, 0, 0), Some(Errno::EPERM), "{role}: {name}");
    }
    assert_eq!(attempt(libc::SYS_getpriority, 9, 0, 0), Some(Errno::EPERM));
    // Refused by their arguments: a process instead of a thread, memory that can be executed, being read again,
    // and the families of sockets that nobody needs (AF_NETLINK, AF_KEY, AF_ALG, AF_VSOCK).
    assert_eq!(attempt(libc::SYS_clone, libc::SIGCHLD.into(), 0, 0), Some(Errno::EPERM), "{role}");
    let namespace = i64::from(libc::CLONE_THREAD | libc::CLONE_NEWUSER);
    assert_eq!(attempt(libc::SYS_clone, namespace, 0, 0), Some(Errno::EPERM), "{role}");
    assert_eq!(attempt(libc::SYS_mmap, 0, 4096, i64::from(libc::PROT_EXEC)), Some(Errno::EPERM), "{role}");
    assert_eq!(attempt(libc::SYS_mprotect, 0, 0, i64::from(libc::PROT_EXEC)), Some(Errno::EPERM), "{role}");
    assert_eq!(attempt(libc::SYS_prctl, libc::PR_SET_DUMPABLE.into(), 1, 0), Some(Errno::EPERM), "{role}");
    for family in [libc::AF_NETLINK, libc::AF_KEY, libc::AF_ALG, libc::AF_VSOCK] {
        let answer = attempt(libc::SYS_socket, family.into(), libc::SOCK_RAW.into(), 0);
        let makes_interfaces = family == libc::AF_NETLINK && role == BRIDGE.name();
        let expected = if makes_interfaces { None } else { Some(Errno::EPERM) };
        assert_eq!(answer, expected, "{role}: family {family}");
    }
    // NETLINK_AUDIT, NETLINK_NETFILTER.
    for protocol in [9, 12] {
        let refused = attempt(libc::SYS_socket, libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), protocol);
        assert_eq!(refused, Some(Errno::EPERM), "{role}: netlink {protocol}");
    }
    let networked = [FRONT.name(), PUBLISH.name(), EGRESS.name()].contains(&role);
    let stream = attempt(libc::SYS_socket, libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0);
    assert_eq!(stream.is_none(), networked, "{role}: TCP gives {stream:?}");
    // Who may have TCP and may not dial does not dial by what it sends either.
    let dials = i64::from(libc::MSG_FASTOPEN);
    // Who judges something once says it in a file, and has no socket to send anything to.
    let silent = [ADMIT.name(), GATE.name()].contains(&role);
    let refuses = silent || role == FRONT.name();
    let expected = Some(if refuses { Errno::EPERM } else { Errno::EBADF });
    assert_eq!(attempt_with(libc::SYS_sendto, [-1, 0, 0, dials]), expected, "{role}");
    assert_eq!(attempt(libc::SYS_sendmsg, -1, 0, dials), expected, "{role}");
    let expected = Some(if silent { Errno::EPERM } else { Errno::EBADF });
    assert_eq!(attempt_with(libc::SYS_sendto, [-1, 0, 0, libc::MSG_NOSIGNAL.into()]), expected, "{role}");
    let packet = attempt(libc::SYS_socket, libc::AF_PACKET.into(), 99, 0);
    assert_eq!(packet == Some(Errno::EPERM), role != NETWORK.name(), "{role}: packets give {packet:?}");
    // The i386 and x32 tables are other numbers for the same calls.
    assert_eq!(attempt(libc::SYS_ptrace | 0x4000_0000, 0, 0, 0), Some(Errno::EPERM), "{role}: x32");
    // What it needs still works.
    assert!(fs::read("/proc/self/status").is_ok(), "{role}");
}

fn probe_landlock(role: &str) {
    the(role).confine().unwrap();
    for path in ["/proc/self/environ", "/etc/passwd", "/usr", "/run"] {
        let refused =
            fs::metadata(path).and_then(|_| fs::File::open(path)).and_then(|mut file| file.read(&mut [0]));
        assert!(refused.is_err(), "{role} reads {path}");
    }
    assert!(fs::read("/dev/null").is_ok());
}
