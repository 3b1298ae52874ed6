//! What a put costs beside one `fdatasync`, with 10, 1,000, 10,000 and 100,000 records in the store: in time, and in writes, bytes and
//! syncs, which are the same on every machine.
//!
//! `cargo run --release -p cofferdam-vault --example commit_latency [ROUNDS]`
//!
//! Both alternate in one process on the same file system: one 4 KiB block overwritten and made durable, then one put of 64
//! bytes over an existing record. Both files are written once before, as a disk has all its blocks. Of each the median, the mean (one put in a dozen carries
//! the others to the pages), and the time that one in ten is below: what else runs on the machine can only add to it. Bias: the page cache holds the files, and the disk is
//! whatever the temporary directory is on. While the store is filled, nothing is made durable.

use std::error::Error;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cofferdam_protocol::{SecretRef, SecretValue};
use cofferdam_vault::{Disk, FileDisk, Keys, MasterKey, Store};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const RECORDS: [usize; 4] = [10, 1000, 10_000, 100_000];
const STORE_MIB: u64 = 256;

/// A disk that counts what is asked of it.
#[derive(Debug)]
struct Counting {
    disk: FileDisk,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    reads: AtomicU64,
    writes: AtomicU64,
    bytes: AtomicU64,
    syncs: AtomicU64,
    /// Nothing is made durable meanwhile.
    filling: AtomicBool,
}

impl Counts {
    fn now(&self) -> [u64; 4] {
        [&self.reads, &self.writes, &self.bytes, &self.syncs].map(|count| count.load(Ordering::Relaxed))
    }
}

impl Disk for Counting {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        self.disk.read_at(offset, out)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.disk.write_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.counts.syncs.fetch_add(1, Ordering::Relaxed);
        if self.counts.filling.load(Ordering::Relaxed) { Ok(()) } else { self.disk.sync() }
    }

    fn is_blank(&self) -> io::Result<bool> {
        self.disk.is_blank()
    }
}

fn main() -> Outcome<()> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(500), |text| text.parse())?;
    let directory = tempfile::tempdir()?;
    let plain = written(&directory.path().join("plain"), 1)?;
    let file = written(&directory.path().join("store"), STORE_MIB)?;
    let keys = Keys::derive(MasterKey::take(&mut [7; 32]))?;
    let most = RECORDS.into_iter().max().unwrap_or(0);
    let counts = Arc::new(Counts::default());
    let disk = Counting { disk: FileDisk::new(file)?, counts: Arc::clone(&counts) };
    let store = Store::create(disk, keys)?.with_max_records(most);
    let mut request = 0_u64;
    for records in RECORDS {
        counts.filling.store(true, Ordering::Relaxed);
        for number in store.list().len()..records {
            put(&store, number, &mut request)?;
        }
        counts.filling.store(false, Ordering::Relaxed);
        put(&store, 0, &mut request)?;
        let (mut syncs, mut puts, before) = (Vec::new(), Vec::new(), counts.now());
        for round in 0..rounds {
            let start = Instant::now();
            plain.write_all_at(&[round as u8; 4096], (round as u64 % 256) * 4096)?;
            plain.sync_data()?;
            syncs.push(start.elapsed());
            let start = Instant::now();
            put(&store, round.wrapping_mul(7919) % records, &mut request)?;
            puts.push(start.elapsed());
        }
        let (sync, put) = (Times::of(syncs), Times::of(puts));
        println!(
            "{records:>7} records: put {:>8.1} µs, fdatasync {:>8.1} µs, ratio {:.2}, medians {:>8.1} and {:>8.1} µs, means {:>8.1} and {:>8.1} µs",
            put.tenth,
            sync.tenth,
            put.tenth / sync.tenth,
            put.median,
            sync.median,
            put.mean,
            sync.mean
        );
        let each: Vec<f64> = counts
            .now()
            .iter()
            .zip(before)
            .map(|(now, before)| (now - before) as f64 / rounds as f64)
            .collect();
        if let [reads, writes, bytes, syncs] = each[..] {
            let kib = bytes / 1024.0;
            println!(
                "        each put: {writes:.1} writes, {kib:.1} KiB, {syncs:.2} syncs, {reads:.1} blocks read"
            );
        }
    }
    Ok(())
}

fn put(store: &Store, number: usize, request: &mut u64) -> Outcome<()> {
    let reference = format!("secret://app/n{number}/f").parse::<SecretRef>()?;
    *request += 1;
    let mut id = [0; 32];
    id.iter_mut().zip(request.to_be_bytes()).for_each(|(to, from)| *to = from);
    store.put(&SecretValue::new(reference, vec![b'x'; 64]), 0, &id)?;
    Ok(())
}

/// A file of zeros whose blocks are all there.
fn written(path: &std::path::Path, mib: u64) -> Outcome<std::fs::File> {
    let mut file = std::fs::File::options().read(true).write(true).create_new(true).open(path)?;
    for _ in 0..mib {
        file.write_all(&[0; 1 << 20])?;
    }
    file.sync_all()?;
    Ok(file)
}

/// Of many times, in microseconds.
struct Times {
    tenth: f64,
    median: f64,
    mean: f64,
}

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |place: usize| times.get(place).copied().unwrap_or_default().as_secs_f64() * 1e6;
        let mean = times.iter().sum::<Duration>().as_secs_f64() * 1e6 / times.len().max(1) as f64;
        Self { tenth: at(times.len() / 10), median: at(times.len() / 2), mean }
    }
}
