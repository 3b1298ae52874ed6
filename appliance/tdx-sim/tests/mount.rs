//! Both device directories as a process sees them: mounted, through the kernel. Needs root and /dev/fuse.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use cofferdam_attest::event_log::extend;
use common::{NOW, parsed, platform, verify};
use nix::errno::Errno;
use tdx_sim::CollateralOptions;
use tdx_sim::device::measurements::Measurements;
use tdx_sim::device::report::Reports;
use tdx_sim::device::{Td, fuse};

const RTMR: [[u8; 48]; 4] = [[1; 48], [2; 48], [3; 48], [0; 48]];

/// Says whether the kernel lets us mount; when not, which of the two is missing.
fn can_mount() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let device = Path::new("/dev/fuse").exists();
    if !root || !device {
        eprintln!("skipped: root: {root}, /dev/fuse: {device}");
    }
    root && device
}

/// Takes the mount away and waits for its thread. Lazily: a child that another test is just starting may still hold a
/// copy of one of our descriptors.
fn end(session: fuser::BackgroundSession, target: &Path) {
    nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH).unwrap();
    session.join().unwrap();
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    Errno::from_raw(result.unwrap_err().raw_os_error().unwrap())
}

#[test]
fn reports_are_made_through_the_file_system() {
    if !can_mount() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let td = Td::new(platform(1), RTMR);
    let session = fuse::mount(Reports::new(td.clone()), "tdx-sim-test", directory.path()).unwrap();

    let entry = directory.path().join("request");
    fs::create_dir(&entry).unwrap();
    assert_eq!(errno(fs::create_dir(&entry)), Errno::EEXIST);
    let mut names: Vec<_> = fs::read_dir(&entry)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["generation", "inblob", "outblob", "provider"]);
    for (name, mode) in [("inblob", 0o200), ("outblob", 0o444), ("generation", 0o444), ("provider", 0o444)] {
        let metadata = fs::metadata(entry.join(name)).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (mode, 0, 0), "{name}");
    }

    assert_eq!(fs::read_to_string(entry.join("provider")).unwrap(), "tdx_guest\n");
    assert_eq!(fs::read_to_string(entry.join("generation")).unwrap(), "0\n");
    assert_eq!(errno(fs::read(entry.join("outblob"))), Errno::EINVAL);
    // The same as `fs::write`: open with O_CREAT and O_TRUNC, write, close.
    fs::write(entry.join("inblob"), [9; 64]).unwrap();
    assert_eq!(fs::read_to_string(entry.join("generation")).unwrap(), "1\n");
    let quote = fs::read(entry.join("outblob")).unwrap();

    let root = platform(1).root_der();
    let collateral = parsed(&platform(1).collateral(NOW, CollateralOptions::default()).unwrap());
    let verified = verify(root, &quote, &collateral, NOW).unwrap();
    let report = verified.report.as_td10().unwrap();
    assert_eq!((report.report_data, report.rt_mr2), ([9; 64], [3; 48]));

    // In parts, and from the middle, through one descriptor: the same bytes.
    let mut file = File::open(entry.join("outblob")).unwrap();
    let mut part = [0; 100];
    file.seek(SeekFrom::Start(632)).unwrap();
    file.read_exact(&mut part).unwrap();
    assert_eq!(part[..], quote[632..732]);
    drop(file);

    assert_eq!(errno(fs::write(entry.join("inblob"), [9; 65])), Errno::EFBIG);
    assert_eq!(errno(File::open(entry.join("inblob"))), Errno::EACCES);
    assert_eq!(errno(OpenOptions::new().write(true).open(entry.join("outblob"))), Errno::EACCES);
    assert!(File::create(entry.join("other")).is_err());
    assert!(fs::remove_file(entry.join("inblob")).is_err());

    fs::remove_dir(&entry).unwrap();
    assert_eq!(errno(fs::read(entry.join("provider"))), Errno::ENOENT);
    assert_eq!(errno(fs::remove_dir(&entry)), Errno::ENOENT);
    end(session, directory.path());
}

#[test]
fn registers_are_read_and_extended_through_the_file_system() {
    if !can_mount() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let td = Td::new(platform(1), RTMR);
    let session = fuse::mount(Measurements::new(td.clone()), "tdx-sim-test", directory.path()).unwrap();
    let measurements = directory.path().join("tdx_guest/measurements");

    assert_eq!(fs::read(measurements.join("mrtd:sha384")).unwrap(), tdx_sim::mrtd());
    assert_eq!(fs::read(measurements.join("rtmr0:sha384")).unwrap(), RTMR[0]);
    assert_eq!(fs::read(measurements.join("mrconfigid")).unwrap(), [0; 48]);
    assert_eq!(fs::metadata(measurements.join("rtmr3:sha384")).unwrap().len(), 48);

    let rtmr3 = measurements.join("rtmr3:sha384");
    let file = OpenOptions::new().read(true).write(true).open(&rtmr3).unwrap();
    assert_eq!((&file).write(&[7; 48]).unwrap(), 48);
    let mut value = [0; 48];
    file.read_exact_at(&mut value, 0).unwrap();
    assert_eq!(value, extend(&[0; 48], &[7; 48]));
    assert_eq!(value, td.rtmr()[3]);
    assert_eq!(errno(file.write_at(&[7; 47], 0)), Errno::EINVAL);
    assert_eq!(errno(file.write_at(&[7; 47], 1)), Errno::EINVAL);
    assert_eq!(fs::read(&rtmr3).unwrap(), value);
    drop(file);
    // Written anew by path, as a shell would: extended again.
    fs::write(&rtmr3, [8; 48]).unwrap();
    assert_eq!(fs::read(&rtmr3).unwrap(), extend(&value, &[8; 48]));

    for name in ["rtmr0:sha384", "rtmr1:sha384", "mrtd:sha384", "mrowner"] {
        let opened = OpenOptions::new().write(true).open(measurements.join(name));
        assert_eq!(errno(opened), Errno::EACCES, "{name}");
    }
    assert_eq!(errno(fs::create_dir(measurements.join("x"))), Errno::EPERM);
    assert_eq!(td.rtmr()[..3], RTMR[..3]);
    end(session, directory.path());
}

#[test]
fn another_user_may_look_and_not_touch() {
    if !can_mount() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let target = directory.path().join("misc");
    fs::create_dir(&target).unwrap();
    let td = Td::new(platform(1), RTMR);
    let session = fuse::mount(Measurements::new(td.clone()), "tdx-sim-test", &target).unwrap();
    let rtmr3 = target.join("tdx_guest/measurements/rtmr3:sha384");
    let as_nobody = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments);
        std::os::unix::process::CommandExt::uid(&mut command, 65534);
        std::os::unix::process::CommandExt::gid(&mut command, 65534);
        command.output().unwrap().status.success()
    };
    let path = rtmr3.to_str().unwrap();
    assert!(as_nobody("cat", &[path]));
    assert!(!as_nobody("dd", &["if=/dev/zero", "bs=48", "count=1", &format!("of={path}")]));
    assert_eq!(td.rtmr(), RTMR);
    end(session, &target);
}
