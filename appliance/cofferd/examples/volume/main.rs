//! A first program for a machine that tries sealed volumes: `ci/tests/test_volumes.py` and `ci/bench` start the image's kernel with it.
//!
//! The words after `--` on the kernel's command line are done in their order; each says `volume: WORD: ok` with what there is to say, or
//! `volume: WORD: error: why`, and the next one is done all the same. Fields of a word are separated by commas, lengths are in MiB.
//!
//! | word | what happens |
//! |---|---|
//! | `make,NAME,DISK,OFFSET,LENGTH,KEY` | makes a volume on /dev/DISK with a key of 32 times this byte, and mounts it |
//! | `open,NAME,DISK,OFFSET,LENGTH,KEY` | opens and mounts one |
//! | `fill,NAME,LENGTH,SEED` | writes files: a large one, and many small ones in directories; all of it is on the disk then |
//! | `verify,NAME,LENGTH,SEED` | reads those files again and compares |
//! | `overwrite,NAME,LENGTH,SEED` | writes those files anew, each block at its place |
//! | `load,NAME` | writes file after file, each flushed, until that fails; says how many there are |
//! | `loaded,NAME,COUNT` | reads the first of those files again and compares |
//! | `keep,NAME` | writes a file that is on the disk when this is done, and goes on with another one |
//! | `kept,NAME` | reads that file again |
//! | `where,NAME` | the first block of the large file, as the file system numbers them |
//! | `written,DISK` | how many sectors have been written to the disk since the start |
//! | `nodes` | mode and owner of the device mapper's node and of each device that it made |
//! | `memory` | what is available, in KiB |
//! | `held,NAME` | tries to have the volume's device for writing while it is mounted |
//! | `close,NAME` | unmounts it and removes its device |
//! | `fsck,NAME,DISK,OFFSET,LENGTH,KEY` | opens the device without mounting it, and has /e2fsck judge it |
//! | `bench,CIPHER,DISK,LENGTH` | throughput of a volume's device with that cipher (`aegis`, `xts-hmac`), or of the disk itself (`plain`) |
//! | `off` | the machine ends |

// It is a test: it panics when the machine itself does not work.
#![allow(unsafe_code, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cofferd::system::volume::{Cipher, Region, Sealed, Volume};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

mod bench;

const MIB: u64 = 1 << 20;
const SMALL_FILES: u64 = 400;
const CHUNK: usize = 1 << 20;
const LOADED: usize = 16 << 10;
const MOST_LOADED: u64 = 100_000;
const LARGE: &str = "large";
const KEPT: &[u8] = b"on the disk";

type Outcome = Result<String, Box<dyn Error>>;

fn main() {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/mnt")] {
        fs::create_dir_all(at).expect("a directory");
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>).expect("a mount");
    }
    let console = OpenOptions::new().write(true).open("/dev/console").expect("the console");
    let mut volumes = BTreeMap::new();
    for word in std::env::args().skip(1) {
        let outcome = match run(&word, &mut volumes) {
            Ok(said) => format!("volume: {word}: ok {said}"),
            Err(error) => {
                let mut text = format!("volume: {word}: error: {error}");
                let mut cause = error.source();
                while let Some(source) = cause {
                    let _ = write!(text, ": {source}");
                    cause = source.source();
                }
                text
            }
        };
        writeln!(&console, "{outcome}").expect("the console");
    }
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn run(word: &str, volumes: &mut BTreeMap<String, Volume>) -> Outcome {
    let fields: Vec<&str> = word.split(',').collect();
    let at = |name: &str| PathBuf::from("/mnt").join(name);
    match *fields.as_slice() {
        [verb @ ("make" | "open"), name, disk, offset, length, key] => {
            let begun = Instant::now();
            let (disk, key) = (device(disk)?, [key.parse()?; 32]);
            let region = Region { name, disk: &disk, offset: mib(offset)?, length: mib(length)? };
            fs::create_dir_all(at(name))?;
            let volume = if verb == "make" {
                Volume::make(region, &key, Cipher::Aegis, "/volume-template".as_ref(), &at(name))?
            } else {
                Volume::open(region, &key, Cipher::Aegis, &at(name))?
            };
            volumes.insert(name.to_owned(), volume);
            let entries = fs::read_dir(at(name))?.count();
            Ok(format!("{} ms, {entries} entries", begun.elapsed().as_millis()))
        }
        ["fill", name, length, seed] => fill(&at(name), mib(length)?, seed.parse()?, true),
        ["verify", name, length, seed] => verify(&at(name), mib(length)?, seed.parse()?),
        ["overwrite", name, length, seed] => fill(&at(name), mib(length)?, seed.parse()?, false),
        ["load", name] => {
            println!("volume: {word} begins");
            load(&at(name))
        }
        ["loaded", name, count] => loaded(&at(name), count.parse()?),
        ["keep", name] => keep(&at(name)),
        ["kept", name] => match fs::read(at(name).join("kept"))? == KEPT {
            true => Ok(String::new()),
            false => Err("it is another one".into()),
        },
        ["where", name] => first_block(&at(name).join(LARGE)),
        ["written", disk] => {
            let line = fs::read_to_string(format!("/sys/block/{disk}/stat"))?;
            Ok(line.split_whitespace().nth(6).ok_or("no such field")?.to_owned())
        }
        ["nodes"] => nodes(),
        ["memory"] => {
            let text = fs::read_to_string("/proc/meminfo")?;
            let line = text.lines().find(|line| line.starts_with("MemAvailable:")).ok_or("no such line")?;
            Ok(line.split_whitespace().nth(1).ok_or("no such field")?.to_owned())
        }
        ["held", name] => {
            let device = fs::read_to_string("/proc/mounts")?;
            let line =
                device.lines().find(|line| line.contains(&format!(" /mnt/{name} "))).ok_or("not mounted")?;
            let device = line.split(' ').next().ok_or("no device")?;
            match OpenOptions::new().write(true).open(device) {
                Ok(_) => Err("it was opened".into()),
                Err(error) => Ok(error.to_string()),
            }
        }
        ["close", name] => {
            volumes.remove(name).ok_or("no such volume")?.close()?;
            Ok(String::new())
        }
        ["fsck", name, disk, offset, length, key] => {
            let (disk, key) = (device(disk)?, [key.parse()?; 32]);
            let region = Region { name, disk: &disk, offset: mib(offset)?, length: mib(length)? };
            let sealed = Sealed::open(region, &key, Cipher::Aegis)?;
            let judged = Command::new("/e2fsck").arg("-fn").arg(sealed.path()).output()?;
            let text = String::from_utf8_lossy(&judged.stdout).replace('\n', "; ");
            sealed.close()?;
            if judged.status.success() { Ok(text) } else { Err(format!("{}: {text}", judged.status).into()) }
        }
        ["bench", cipher, disk, length] => bench::run(cipher, &device(disk)?, disk, mib(length)?),
        ["off"] => {
            // The console's last words are still under way.
            std::thread::sleep(Duration::from_millis(500));
            reboot(RebootMode::RB_POWER_OFF)?;
            Ok(String::new())
        }
        _ => Err("unknown".into()),
    }
}

fn nodes() -> Outcome {
    let made = fs::read_dir("/dev")?.filter_map(|entry| Some(entry.ok()?.path()));
    let made = made.filter(|path| path.to_string_lossy().starts_with("/dev/dm-"));
    let mut text = String::new();
    for path in made.chain([PathBuf::from("/dev/mapper/control")]) {
        let about = fs::metadata(&path)?;
        write!(text, "{} {:o} {}:{}; ", path.display(), about.mode() & 0o7777, about.uid(), about.gid())?;
    }
    Ok(text)
}

fn device(name: &str) -> Result<File, std::io::Error> {
    OpenOptions::new().read(true).write(true).open(Path::new("/dev").join(name))
}

fn mib(text: &str) -> Result<u64, std::num::ParseIntError> {
    Ok(text.parse::<u64>()? * MIB)
}

/// Bytes that follow from the seed (splitmix64), so that nobody has to remember them.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buffer: &mut [u8]) {
        for bytes in buffer.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.0;
            word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            bytes.copy_from_slice(&(word ^ word >> 31).to_le_bytes()[..bytes.len()]);
        }
    }
}

/// Path, seed and length of each small file.
fn small(root: &Path, seed: u64) -> impl Iterator<Item = (PathBuf, u64, usize)> {
    (0..SMALL_FILES).map(move |number| {
        let path = root.join(format!("d{}", number % 20)).join(format!("f{number}"));
        (path, seed ^ (number + 1) << 20, (number * 37 % 20_000) as usize)
    })
}

fn fill(root: &Path, length: u64, seed: u64, anew: bool) -> Outcome {
    let open = |path: &Path| OpenOptions::new().write(true).create(true).truncate(anew).open(path);
    let mut large = open(&root.join(LARGE))?;
    let (mut noise, mut buffer) = (Noise(seed), vec![0; CHUNK]);
    for _ in 0..length / MIB {
        noise.fill(&mut buffer);
        large.write_all(&buffer)?;
    }
    for (path, seed, length) in small(root, seed) {
        fs::create_dir_all(path.parent().ok_or("no parent")?)?;
        Noise(seed).fill(&mut buffer[..length]);
        open(&path)?.write_all(&buffer[..length])?;
    }
    nix::unistd::syncfs(&large)?;
    Ok(format!("{SMALL_FILES} small files"))
}

/// Path and content of one file of a load.
fn loaded_file(root: &Path, number: u64) -> (PathBuf, Vec<u8>) {
    let mut content = vec![0; LOADED];
    Noise(number).fill(&mut content);
    (root.join(format!("load-{number}")), content)
}

fn load(root: &Path) -> Outcome {
    let directory = File::open(root)?;
    let write = |number| {
        let (path, content) = loaded_file(root, number);
        let mut file = File::create(path)?;
        file.write_all(&content)?;
        file.sync_all()?;
        directory.sync_all()
    };
    for number in 0..MOST_LOADED {
        if let Err(error) = write(number) {
            return Ok(format!("{number} files, then {error}"));
        }
    }
    Err("nothing has failed".into())
}

fn loaded(root: &Path, count: u64) -> Outcome {
    for number in 0..count {
        let (path, content) = loaded_file(root, number);
        if fs::read(&path)? != content {
            return Err(format!("{} is another one", path.display()).into());
        }
    }
    Ok(String::new())
}

fn verify(root: &Path, length: u64, seed: u64) -> Outcome {
    // What is in memory would be compared with itself.
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let mut large = File::open(root.join(LARGE))?;
    let (mut noise, mut expected, mut read) = (Noise(seed), vec![0; CHUNK], vec![0; CHUNK]);
    for at in 0..length / MIB {
        noise.fill(&mut expected);
        large.read_exact(&mut read)?;
        if read != expected {
            return Err(format!("MiB {at} of the large file is another one").into());
        }
    }
    for (path, seed, length) in small(root, seed) {
        Noise(seed).fill(&mut expected[..length]);
        if fs::read(&path)? != expected[..length] {
            return Err(format!("{} is another one", path.display()).into());
        }
    }
    Ok(String::new())
}

fn keep(root: &Path) -> Outcome {
    let mut kept = File::create(root.join("kept"))?;
    kept.write_all(KEPT)?;
    kept.sync_all()?;
    File::open(root)?.sync_all()?;
    File::create(root.join("under way"))?.write_all(&[7; CHUNK])?;
    Ok(String::new())
}

/// FIBMAP (include/uapi/linux/fs.h).
fn first_block(file: &Path) -> Outcome {
    let file = File::open(file)?;
    let mut block: i32 = 0;
    // SAFETY: the request reads and writes one integer.
    let outcome = unsafe { nix::libc::ioctl(file.as_raw_fd(), 1, &mut block) };
    nix::errno::Errno::result(outcome)?;
    Ok(block.to_string())
}
