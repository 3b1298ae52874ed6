//! What `ci/bench` puts into a machine that it measures, by the standard library alone.
//!
//! As `/init` it is the init that does nothing: it says when it started, how long the processor had nothing to do until
//! then, and what its stat calls took. As `/observer`, which the command line names as the first program, it executes the
//! image's own first program in its place; a child of it writes down how long the processor had nothing to do, and says
//! every few seconds how much memory PID 1 and each role have, how often they woke, and how many files are open. The kernel has no PSS (`smaps`) on purpose.
//! With the word `dial=ADDRESS:PORT` it takes what a server there sends, again and again.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

const STATS: usize = 100_000;
/// The clock of the appliance's own lines.
const CLOCK_BOOTTIME: i32 = 7;
/// Between two looks at how idle the processor was, while the appliance boots.
const SAMPLE: Duration = Duration::from_millis(10);
/// Longer than a boot takes, so that nothing else is in it.
const PERIOD: Duration = Duration::from_secs(5);
/// The kernel hands it over in the environment.
const DIAL: &str = "dial";

unsafe extern "C" {
    fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
    fn fork() -> i32;
    fn mount(source: *const u8, target: *const u8, kind: *const u8, flags: u64, data: *const u8) -> i32;
}

fn main() {
    let mut arguments = std::env::args();
    if arguments.next().as_deref() == Some("/init") {
        empty()
    }
    observe(arguments)
}

fn empty() -> ! {
    let launched = uptime();
    let _ = fs::create_dir("/proc");
    // SAFETY: three words that end in a zero byte.
    unsafe {
        mount(c"proc".as_ptr().cast(), c"/proc".as_ptr().cast(), c"proc".as_ptr().cast(), 0, std::ptr::null())
    };
    let idle = idle().unwrap_or_default();
    println!("[{:5}.{:03}] empty: launched, idle {idle} us", launched / 1_000_000, launched / 1000 % 1000);
    let begun = Instant::now();
    let found = (0..STATS).filter(|_| fs::metadata("/init").is_ok()).count();
    println!("empty: {found} stat calls took {} us", begun.elapsed().as_micros());
    loop {
        sleep(PERIOD);
    }
}

fn observe(arguments: impl Iterator<Item = String>) {
    // SAFETY: there is one thread.
    if unsafe { fork() } == 0 {
        let mut samples = String::new();
        while uptime() < PERIOD.as_micros() as i64 {
            if let Some(idle) = idle() {
                let _ = write!(samples, "{}[{},{idle}]", if samples.is_empty() { "" } else { "," }, uptime());
            }
            sleep(SAMPLE);
        }
        println!("idle: {samples}\nidle: all");
        if let Ok(address) = std::env::var(DIAL) {
            std::thread::spawn(move || dial(&address));
        }
        loop {
            sleep(PERIOD);
            println!("memory: {{{}}}\ndescriptors: {}", memory().join(","), descriptors());
        }
    }
    // The kernel's words go on to it, as they would without this program.
    let first = if Path::new("/tdx-sim").exists() { "/tdx-sim" } else { "/init" };
    let Err::<Infallible, _>(error) = Err(Command::new(first).args(arguments).env_remove(DIAL).exec());
    println!("observer: {first}: {error}");
}

/// Takes what the server sends when it does, and says how much came.
fn dial(address: &str) -> ! {
    loop {
        if let Ok(mut stream) = TcpStream::connect(address) {
            let (mut block, mut bytes) = (vec![0_u8; 64 << 10], 0_usize);
            let _ = stream.write_all(b"plain");
            while let Ok(count @ 1..) = stream.read(&mut block) {
                bytes += count;
            }
            let _ = write!(stream, "{bytes}");
        }
        sleep(SAMPLE);
    }
}

/// Microseconds since the kernel started.
fn uptime() -> i64 {
    let mut time = [0_i64; 2];
    // SAFETY: a timespec of two longs.
    unsafe { clock_gettime(CLOCK_BOOTTIME, &mut time) };
    time[0] * 1_000_000 + time[1] / 1000
}

/// Microseconds in which the processor had nothing to do, in steps of ten milliseconds; `None` before /proc is there.
fn idle() -> Option<i64> {
    let times = fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = times.split_whitespace().nth(1)?.parse().ok()?;
    Some((seconds * 1e6) as i64)
}

/// Open files of the whole machine (proc_sys_fs(5), file-nr).
fn descriptors() -> u64 {
    let text = fs::read_to_string("/proc/sys/fs/file-nr").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or_default()
}

/// `"role":[anonymous KiB, shared KiB, wake-ups]` of PID 1, named `init`, and of its children that run the same program.
fn memory() -> Vec<String> {
    let program =
        |pid: &str| fs::metadata(format!("/proc/{pid}/exe")).map(|about| (about.dev(), about.ino())).ok();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let same = processes.filter(|pid| pid.parse::<u32>().is_ok() && program(pid) == program("1"));
    let mut found: Vec<String> = same.filter_map(|pid| row(&pid)).collect();
    found.sort();
    found
}

/// How often a process's threads were waited for and went on since this program began to look (proc_pid_status(5),
/// voluntary_ctxt_switches). A thread takes its count along when it ends, so counts are added up from look to look.
fn wakeups(pid: &str) -> u64 {
    static COUNTED: Mutex<BTreeMap<String, (u64, BTreeMap<OsString, u64>)>> = Mutex::new(BTreeMap::new());
    let mut counted = COUNTED.lock().unwrap_or_else(PoisonError::into_inner);
    let (sum, before) = counted.entry(pid.to_owned()).or_default();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let waited = |thread: fs::DirEntry| {
        let status = fs::read_to_string(thread.path().join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        Some((thread.file_name(), line.trim().parse::<u64>().ok()?))
    };
    let now: BTreeMap<OsString, u64> = threads.filter_map(waited).collect();
    for (thread, count) in &now {
        // A thread's number is given again: then it counts from nothing.
        let known = before.get(thread).filter(|known| *known <= count);
        *sum += count - known.unwrap_or(&0);
    }
    *before = now;
    *sum
}

fn row(pid: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    let name = match (pid, field("PPid:")?) {
        ("1", _) => "init".to_owned(),
        (_, 1) => {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            line.trim_end_matches('\0').split('\0').skip(1).collect::<Vec<_>>().join(" ")
        }
        _ => return None,
    };
    let shared = field("RssFile:")? + field("RssShmem:")?;
    Some(format!("{name:?}:[{},{shared},{}]", field("RssAnon:")?, wakeups(pid)))
}
