//! Throughput of a device by direct I/O, without a file system: in sequence by 1 MiB, at random places by 4 KiB with eight threads.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cofferd::system::volume::{Cipher, Region, Sealed};
use nix::libc::O_DIRECT;

use crate::{MIB, Noise, Outcome};

const THREADS: u64 = 8;
const LARGE: usize = 1 << 20;
const SMALL: usize = 4096;
/// Of each measurement.
const SECONDS: Duration = Duration::from_secs(2);

/// Memory that a device can read and write itself.
#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; SMALL]);

/// `write`, `read` (in sequence) and `random-write`, `random-read`, in KiB a second.
pub(crate) fn run(cipher: &str, disk: &File, name: &str, length: u64) -> Outcome {
    let region = Region { name: "bench", disk, offset: MIB, length };
    let sealed = match cipher {
        "plain" => None,
        "aegis" => Some(Sealed::make(region, &[1; 32], Cipher::Aegis)?),
        "xts-hmac" => Some(Sealed::make(region, &[1; 32], Cipher::XtsHmac)?),
        _ => return Err("unknown cipher".into()),
    };
    let path = sealed.as_ref().map_or_else(|| Path::new("/dev").join(name), Sealed::path);
    // All of it is written before anything is read.
    let end = sealed.as_ref().map_or(length, Sealed::length) / MIB * MIB;
    let mut figures = Vec::new();
    let whole = sequence(&path, end, true, None)?;
    for (label, writes) in [("write", true), ("read", false)] {
        figures.push((label, sequence(&path, end, writes, Some(SECONDS))?));
    }
    for (label, writes) in [("random-write", true), ("random-read", false)] {
        figures.push((label, random(&path, end, writes)?));
    }
    if let Some(sealed) = sealed {
        sealed.close()?;
    }
    let figures: Vec<String> = figures.iter().map(|(label, rate)| format!("{label}={rate}")).collect();
    Ok(format!("{} whole={whole}", figures.join(" ")))
}

fn open(path: &PathBuf) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(path)
}

fn rate(bytes: u64, begun: Instant) -> u64 {
    (bytes as f64 / 1024.0 / begun.elapsed().as_secs_f64()) as u64
}

/// From the beginning, over and over until the time is up, or once. A flush at the end is part of it.
fn sequence(path: &PathBuf, end: u64, writes: bool, limit: Option<Duration>) -> Result<u64, std::io::Error> {
    let file = open(path)?;
    let mut pages = vec![Page([0; SMALL]); LARGE / SMALL];
    pages.iter_mut().enumerate().for_each(|(number, page)| Noise(number as u64).fill(&mut page.0));
    // SAFETY: pages are arrays of bytes, one after the other.
    let bytes = unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast::<u8>(), LARGE) };
    let (begun, mut at, mut done) = (Instant::now(), 0, 0);
    loop {
        if writes {
            file.write_all_at(bytes, at)?;
        } else {
            file.read_exact_at(bytes, at)?;
        }
        done += LARGE as u64;
        at += LARGE as u64;
        if at >= end {
            at = 0;
        }
        if limit.map_or(at == 0, |limit| begun.elapsed() >= limit) {
            break;
        }
    }
    if writes {
        file.sync_data()?;
    }
    Ok(rate(done, begun))
}

fn random(path: &PathBuf, end: u64, writes: bool) -> Result<u64, std::io::Error> {
    let (begun, done) = (Instant::now(), AtomicU64::new(0));
    let work = &|thread: u64| -> Result<(), std::io::Error> {
        let file = open(path)?;
        let (mut noise, mut page, mut place) = (Noise(thread), Box::new(Page([0; SMALL])), [0; 8]);
        while begun.elapsed() < SECONDS {
            noise.fill(&mut place);
            let at = u64::from_le_bytes(place) % (end / SMALL as u64) * SMALL as u64;
            if writes {
                page.0[..8].copy_from_slice(&place);
                file.write_all_at(&page.0, at)?;
            } else {
                file.read_exact_at(&mut page.0, at)?;
            }
            done.fetch_add(SMALL as u64, Ordering::Relaxed);
        }
        if writes { file.sync_data() } else { Ok(()) }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a thread"))
    })?;
    Ok(rate(done.load(Ordering::Relaxed), begun))
}
