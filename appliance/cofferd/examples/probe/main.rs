//! A workload that tries what a workload must not be able to do, and says how it went.
//!
//! It serves HTTP on port 8080 (`PORT`), and on those that `ALSO` lists, tells what it hears at port `HEARS` (`heard`), and needs the standard library only, so it also builds by
//! itself: `rustc --edition 2024 -O --target x86_64-unknown-linux-musl appliance/cofferd/examples/probe/main.rs`.
//!
//! | request | what happens |
//! |---|---|
//! | `/` | a greeting |
//! | `/env-keys` | names of its variables, as JSON |
//! | `/whoami` | what /proc/self/status says about its rights, as JSON |
//! | `/secret-is?value=V` | whether the variable `GREETING_SECRET` has that value |
//! | `/secret-files` | names and sizes below /run/secrets, as JSON |
//! | `/leak` | prints the secret in every disguise that a careless program might use |
//! | `/tell` | answers with the secret in a header and, in two writes, in the body |
//! | `/slow-prompt` | prints a prompt without an end of line, and nothing after it |
//! | `/print?line=TEXT` | prints a line |
//! | `/attack?pid=N` | from a second process of the same user, attempts against process N (default: this one) |
//! | `/exhaust?kind=K&seconds=N` | a process that takes all of a kind and keeps it; what stopped it, or that it still goes on after N seconds |
//! | `/release` | ends that process and all that it made |
//! | `/sick`, `/well` | the program of its health check makes processes as long as it can; no more |
//! | `/dependency?host=H&port=P&ask=/…` | what another service answers to `GET /…` |
//! | what `networks`, `outside`, `layers` and `volumes` list | its networks, what it reaches outside, the files of its image and its volumes, and attempts there |
//! | `/stat?count=N` | how many of N stat calls found this program, and how many microseconds they took, as JSON |
//! | `/exit?code=N`, `/crash` | ends; the first says so before |
//!
//! An attempt is `{"name":…,"refused":true,"answer":"EPERM"}`; `"answer"` is `ok` where it was let through.

// This program is the attacker: it makes the raw system calls that the appliance has to refuse. It may also panic.
#![allow(unsafe_code, clippy::indexing_slicing)]

use std::ffi::{CString, c_char, c_int, c_long, c_void};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

mod exhaust;
mod heard;
mod layers;
mod networks;
mod outside;
mod volumes;
mod watch;

const SECRET: &str = "GREETING_SECRET";
/// From when this is there, `sick` makes processes as long as it can.
const SICK: &str = "/tmp/sick";
/// The process that `/exhaust` started last.
static EXHAUSTING: Mutex<Option<Child>> = Mutex::new(None);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "attack", pid] => {
            print!("{}", attack(pid.parse().unwrap_or(1)));
            return ExitCode::SUCCESS;
        }
        // What is run to find out whether this is healthy: it says what no one is to see.
        [_, "healthy"] => {
            println!("{}", std::env::var("GREETING_SECRET").unwrap_or_default());
            return ExitCode::SUCCESS;
        }
        [_, "watch", directory, name] => {
            return watch::run(directory, name).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
        }
        // The same that turns on its own service, from when it is told to.
        [_, "sick"] => {
            if Path::new(SICK).exists() {
                exhaust::run("processes");
            }
            return ExitCode::SUCCESS;
        }
        [_, "exhaust", kind] => {
            exhaust::run(kind);
            return ExitCode::SUCCESS;
        }
        // A victim for its siblings.
        [_, "exhaust"] => {
            std::thread::sleep(Duration::from_secs(900));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    if let Some(port) = std::env::var("HEARS").ok().and_then(|port| port.parse().ok()) {
        std::thread::spawn(move || heard::listen(port));
    }
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(8080_u16);
    for also in std::env::var("ALSO").unwrap_or_default().split_whitespace() {
        let also = also.parse().unwrap_or(port);
        std::thread::spawn(move || listen(also));
    }
    listen(port)
}

fn listen(port: u16) -> ExitCode {
    match TcpListener::bind(("0.0.0.0", port)) {
        Ok(listener) => {
            println!("probe listens on port {port}");
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || serve(stream));
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("probe cannot listen: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(mut stream: TcpStream) {
    let mut reader = BufReader::new(match stream.try_clone() {
        Ok(stream) => stream.take(64 << 10),
        Err(_) => return,
    });
    let mut request = String::new();
    if reader.read_line(&mut request).is_err() {
        return;
    }
    let mut headers = Vec::new();
    let mut header = String::new();
    while reader.read_line(&mut header).is_ok_and(|count| count > 2) {
        headers.push(header.trim_end().to_lowercase());
        header.clear();
    }
    let target = request.split(' ').nth(1).unwrap_or("/").to_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let (status, body) = match path {
        "/headers" => ("200 OK", list(headers.iter().map(|header| quoted(header)))),
        "/stream" => return stream_mib(stream, query),
        "/tell" => return tell(stream),
        _ => answer(path, query),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
}

/// Tells its secret to whoever asks, with a pause in the middle of it, and in base64.
fn tell(mut stream: TcpStream) {
    let secret = std::env::var(SECRET).unwrap_or_default();
    let (half, rest) = secret.split_at(secret.len() / 2);
    let encoded = base64(secret.as_bytes());
    let length = "told:  \n".len() + secret.len() + encoded.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\nX-Told: {secret}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    let _ = stream.write_all(format!("{head}told: {half}").as_bytes());
    std::thread::sleep(Duration::from_millis(1200));
    let _ = stream.write_all(format!("{rest} {encoded}\n").as_bytes());
}

fn answer(path: &str, query: &str) -> (&'static str, String) {
    let parameter = |name: &str| {
        query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, v)| v.to_owned())
    };
    let body = match path {
        "/" => {
            let name = std::env::var("HOSTNAME").unwrap_or_default();
            format!("{} from {name}\n", std::env::var("GREETING").unwrap_or_else(|_| "hello".to_owned()))
        }
        "/env-keys" => list(std::env::vars_os().map(|(name, _)| quoted(&name.to_string_lossy()))),
        "/whoami" => whoami(),
        "/secret-is" => format!("{}\n", std::env::var(SECRET).ok() == parameter("value")),
        "/secret-files" => secret_files(),
        "/leak" => {
            leak();
            "leaked\n".to_owned()
        }
        "/slow-prompt" => {
            print!("What is your name? ");
            let _ = std::io::stdout().flush();
            "asked\n".to_owned()
        }
        "/print" => {
            println!("{}", parameter("line").unwrap_or_default());
            "printed\n".to_owned()
        }
        "/attack" => {
            let pid = parameter("pid").unwrap_or_else(|| std::process::id().to_string());
            let child = Command::new("/proc/self/exe")
                .args(["attack", &pid])
                .env_clear()
                .stderr(Stdio::inherit())
                .output();
            match child {
                Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
                Err(error) => format!("{{\"error\":{}}}\n", quoted(&error.to_string())),
            }
        }
        "/kinds" => list(exhaust::KINDS.iter().map(|kind| quoted(kind))),
        "/exhaust" => {
            let seconds = parameter("seconds").and_then(|text| text.parse().ok()).unwrap_or(10);
            exhausted(&parameter("kind").unwrap_or_default(), Duration::from_secs(seconds))
        }
        "/sick" => format!("{:?}\n", std::fs::write(SICK, "")),
        "/well" => format!("{:?}\n", std::fs::remove_file(SICK)),
        "/release" => {
            release();
            "released\n".to_owned()
        }
        "/dependency" => {
            let host = parameter("host").unwrap_or_default();
            let port = parameter("port").and_then(|port| port.parse().ok()).unwrap_or(8080);
            let asked = parameter("ask").unwrap_or_else(|| "/".to_owned());
            return match fetch(&host, port, &asked) {
                Ok(text) => ("200 OK", text),
                Err(error) => ("502 Bad Gateway", format!("{error}\n")),
            };
        }
        "/throughput" => {
            let host = parameter("host").unwrap_or_default();
            let begun = Instant::now();
            let bytes = received(&host, &parameter("mib").unwrap_or_default()).unwrap_or(0);
            list([bytes.to_string(), begun.elapsed().as_micros().to_string()].into_iter())
        }
        "/stat" => {
            let count: u32 = parameter("count").and_then(|count| count.parse().ok()).unwrap_or(1);
            let begun = Instant::now();
            let found = (0..count).filter(|_| std::fs::metadata("/probe").is_ok()).count();
            list([found.to_string(), begun.elapsed().as_micros().to_string()].into_iter())
        }
        "/exit" => {
            let code = parameter("code").and_then(|code| code.parse().ok()).unwrap_or(0);
            println!("probe ends");
            // SAFETY: exit_group(2) with a number.
            unsafe { syscall(231, code as c_long) };
            String::new()
        }
        "/crash" => std::process::abort(),
        _ => match networks::answer(path, parameter)
            .or_else(|| outside::answer(path, parameter))
            .or_else(|| layers::answer(path, parameter))
            .or_else(|| volumes::answer(path, parameter))
        {
            Some(body) => body,
            None => return ("404 Not Found", "no such probe\n".to_owned()),
        },
    };
    ("200 OK", body)
}

/// Starts the process that exhausts, in a session of its own, and waits until it says that it holds all there is.
fn exhausted(kind: &str, within: Duration) -> String {
    release();
    let mut command = Command::new("/proc/self/exe");
    command.args(["exhaust", kind]).env_clear().stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = match command.process_group(0).spawn() {
        Ok(child) => child,
        Err(error) => return format!("{{\"error\":{}}}\n", quoted(&error.to_string())),
    };
    let output = child.stdout.take();
    *EXHAUSTING.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
    let (said, hear) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = output.map(|output| BufReader::new(output).read_line(&mut line));
        let _ = said.send(line);
    });
    let line = hear.recv_timeout(within).unwrap_or_else(|_| "0 time".to_owned());
    let (count, why) = line.trim().split_once(' ').unwrap_or(("0", "ended"));
    format!("{{\"count\":{count},\"stopped\":{}}}\n", quoted(why))
}

fn release() {
    let Some(mut child) = EXHAUSTING.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    // SAFETY: numbers only; the group is the child's, which is not waited for yet.
    unsafe { syscall(62, -(child.id() as c_long), 9 as c_long) };
    let _ = child.wait();
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]\n", items.collect::<Vec<_>>().join(","))
}

fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if u32::from(c) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn whoami() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let wanted =
        ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];
    let fields =
        status.lines().filter_map(|line| line.split_once(':')).filter(|(key, _)| wanted.contains(key));
    let fields: Vec<String> = fields
        .map(|(key, value)| {
            let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
            format!("{}:{}", quoted(key), quoted(&value))
        })
        .collect();
    format!("{{{}}}\n", fields.join(","))
}

fn secret_files() -> String {
    let files = std::fs::read_dir("/run/secrets").into_iter().flatten().flatten();
    list(files.map(|file| {
        let size = std::fs::read(file.path()).map(|content| content.len().to_string());
        let size = size.unwrap_or_else(|error| quoted(&error.to_string()));
        format!("{{\"name\":{},\"size\":{size}}}", quoted(&file.file_name().to_string_lossy()))
    }))
}

fn fetch(host: &str, port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((host, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(64 << 10).read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// Answers with as many MiB of zeros as `query` says, at most 1,024, and no more than the other end takes.
fn stream_mib(mut stream: TcpStream, query: &str) {
    let mib: u32 = query.strip_prefix("mib=").and_then(|text| text.parse().ok()).unwrap_or(1).min(1024);
    let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n");
    let block = vec![0_u8; 64 << 10];
    for _ in 0..mib * 16 {
        if stream.write_all(&block).is_err() {
            return;
        }
    }
}

/// How many bytes another service, or this one itself, sends when it is asked for so many MiB.
fn received(host: &str, mib: &str) -> std::io::Result<u64> {
    let mut stream = TcpStream::connect((host, 8080))?;
    write!(stream, "GET /stream?mib={mib} HTTP/1.0\r\n\r\n")?;
    let (mut block, mut bytes) = (vec![0_u8; 64 << 10], 0_u64);
    loop {
        match stream.read(&mut block)? {
            0 => return Ok(bytes),
            count => bytes += count as u64,
        }
    }
}

/// Prints the secret as it is and in disguise, each between words that have to survive.
fn leak() {
    let secret = std::env::var(SECRET).unwrap_or_default();
    let bytes = secret.as_bytes();
    println!("plain: {secret} :end");
    eprintln!("to stderr: {secret} :end");
    let (front, back) = secret.split_at(secret.len() / 2);
    let mut out = std::io::stdout().lock();
    let _ = write!(out, "in two writes: {front}");
    let _ = out.flush();
    std::thread::sleep(Duration::from_millis(500));
    let _ = writeln!(out, "{back} :end");
    for shift in 0..3 {
        let shifted = [&b"xyz"[..shift], bytes, &b"."[..]].concat();
        let _ = writeln!(out, "base64, shifted by {shift}: {} :end", base64(&shifted));
    }
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let _ = writeln!(out, "hex: {hex} :end");
    let _ = writeln!(out, "upper-case hex: {} :end", hex.to_uppercase());
    let percent: String = bytes.iter().map(|byte| format!("%{byte:02X}")).collect();
    let _ = writeln!(out, "percent-encoded: {percent} :end");
    let _ = writeln!(out, "after the leak");
    let _ = out.flush();
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let mut group = [0_u8; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for position in 0..4 {
            if position <= chunk.len() {
                out.push(char::from(ALPHABET[(bits >> (18 - 6 * position)) as usize & 63]));
            } else {
                out.push('=');
            }
        }
    }
    out
}

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn openat(directory: c_int, path: *const c_char, flags: c_int, ...) -> c_int;
    fn read(descriptor: c_int, buffer: *mut c_void, count: usize) -> isize;
    fn close(descriptor: c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
}

type Outcome = Result<(), String>;

/// The table of attempts against `pid`, as JSON.
fn attack(pid: c_long) -> String {
    let mut table: Vec<(String, Outcome)> = Vec::new();
    let mut attempt = |name: &str, outcome: Outcome| table.push((name.to_owned(), outcome));
    for file in [
        "environ",
        "mem",
        "maps",
        "smaps",
        "auxv",
        "io",
        "syscall",
        "exe",
        "cwd/.",
        "root/.",
        "fd/1",
        "map_files/.",
    ] {
        attempt(&format!("/proc/PID/{file}"), readable(&format!("/proc/{pid}/{file}")));
    }
    attempt("/proc//PID//environ", readable(&format!("/proc//{pid}//environ")));
    attempt("/proc/PID/task/PID/environ", readable(&format!("/proc/{pid}/task/{pid}/environ")));
    attempt("environ by a directory's descriptor", by_descriptor(pid));
    attempt("environ by a relative path", by_relative_path(pid));
    attempt("environ of a forked child", with_child(|child| readable(&format!("/proc/{child}/environ"))));
    attempt("mem of a forked child", with_child(|child| readable(&format!("/proc/{child}/mem"))));
    attempt("environ of a copied program", with_copy(|child| readable(&format!("/proc/{child}/environ"))));
    attempt("mem of a copied program", with_copy(|child| readable(&format!("/proc/{child}/mem"))));
    attempt(
        "environ of a program in memory",
        with_memory(|child| readable(&format!("/proc/{child}/environ"))),
    );
    attempt("maps of a program in memory", with_memory(|child| readable(&format!("/proc/{child}/maps"))));
    attempt("a file of a program in memory", with_memory(|child| readable(&format!("/proc/{child}/fd/0"))));
    attempt("ptrace attach", call(&[101, 16, pid, 0, 0]));
    attempt("ptrace seize", call(&[101, 0x4206, pid, 0, 0]));
    attempt("process_vm_readv", vm(310, pid));
    attempt("process_vm_writev", vm(311, pid));
    attempt("pidfd_getfd", pidfd_getfd(pid));
    attempt("process_madvise", call(&[440, -1, 0, 0, 0, 0]));
    attempt("kcmp", call(&[312, pid, pid, 2, 0, 0]));
    attempt("perf_event_open", call(&[298, 0, pid, -1, -1, 0]));
    attempt("prctl dumpable", call(&[157, 4, 1, 0, 0, 0]));
    attempt("raise the core limit", core_limit());
    attempt("core dump", core_dump());
    attempt("signal the first process", call(&[62, 1, 0]));
    sockets_and_paths(&mut attempt);
    calls(&mut attempt);
    let rows = table.iter().map(|(name, outcome)| {
        let answer = outcome.as_ref().map_or_else(String::as_str, |()| "ok");
        format!(
            "{{\"name\":{},\"refused\":{},\"answer\":{}}}",
            quoted(name),
            outcome.is_err(),
            quoted(answer)
        )
    });
    list(rows)
}

fn sockets_and_paths(attempt: &mut impl FnMut(&str, Outcome)) {
    for path in ["/run/cofferdam/vault/vault.sock", "/proc/1/root/run/cofferdam/vault/vault.sock"] {
        let connected = std::os::unix::net::UnixStream::connect(path);
        attempt(&format!("connect {path}"), connected.map(drop).map_err(|error| text(&error)));
    }
    for path in [
        "/run/cofferdam/evidence/evidence.sock",
        "/run/cofferdam/services",
        "/proc/1/root/run/secrets",
        "/proc/1/environ",
        "/dev/tdx_guest",
        "/dev/mem",
        "/dev/kmsg",
        "/dev/mapper/control",
        "/dev/dm-0",
        "/dev/vda",
        "/proc/1/root/dev/mapper/control",
        "/run/cofferdam/volumes",
        "/sys/block",
        "/sys/kernel/config/tsm/report",
        "/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3",
        "/sys/firmware/acpi/tables/CCEL",
        "/sys/firmware/acpi/tables/data/CCEL",
        "/sys/kernel/security",
        "/proc/kcore",
        "/proc/keys",
        "/proc/kallsyms",
        "/proc/kmsg",
    ] {
        attempt(&format!("read {path}"), readable(path));
    }
    for path in [
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/sys/x",
        "/dev/x",
    ] {
        attempt(&format!("write {path}"), writable(path));
    }
    attempt(
        "new quote request",
        std::fs::create_dir("/sys/kernel/config/tsm/report/x").map_err(|error| text(&error)),
    );
    for path in ["/proc/self/fd/2", "/dev/stderr"] {
        attempt(&format!("read what is printed by {path}"), opens(path, true));
        attempt(&format!("open {path} to readers"), chmod(Path::new(path)));
    }
    for path in [
        "/proc/sys/fs/file-nr",
        "/proc/sys/fs/inode-nr",
        "/proc/sys/fs/dentry-state",
        "/proc/sys/fs/aio-nr",
        "/proc/sys/kernel/pty/nr",
        "/proc/locks",
        "/proc/softirqs",
        "/proc/schedstat",
    ] {
        attempt(&format!("read {path}"), readable(path));
    }
    for path in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/fs/file-max", "/proc/sys/vm/overcommit_memory"] {
        attempt(&format!("write {path}"), writable(path));
    }
    attempt("be kept when memory runs out", lower_oom_score());
    for (name, id) in [("outer", 65_535), ("shim's", 65_536)] {
        let own = std::os::unix::fs::chown("/", Some(id), None);
        attempt(&format!("own a file by the {name} id"), own.map_err(|error| text(&error)));
    }
    attempt("connect out of the appliance", outside());
    for (name, family) in
        [("ALG", 38), ("PACKET", 17), ("VSOCK", 40), ("KEY", 15), ("RXRPC", 33), ("TIPC", 30), ("CAN", 29)]
    {
        attempt(&format!("socket {name}"), call(&[41, family, 2, 0]));
    }
    attempt("socket NETLINK audit", call(&[41, 16, 3, 9]));
    attempt("socket NETLINK netfilter", call(&[41, 16, 3, 12]));
}

fn calls(attempt: &mut impl FnMut(&str, Outcome)) {
    const NEWUSER: c_long = 0x1000_0000;
    attempt("unshare user", call(&[272, NEWUSER]));
    attempt("unshare net", call(&[272, 0x4000_0000]));
    attempt("clone user", call(&[56, NEWUSER | 17, 0, 0, 0, 0]));
    attempt("clone3", call(&[435, 0, 0]));
    attempt("setns", call(&[308, -1, 0]));
    attempt("io_uring_setup", call(&[425, 1, 0]));
    attempt("bpf", call(&[321, 0, 0, 0]));
    attempt("userfaultfd", call(&[323, 0]));
    attempt("keyctl", call(&[250, 0, -3, 0, 0, 0]));
    attempt("add_key", call(&[248, 0, 0, 0, 0, 0]));
    attempt("request_key", call(&[249, 0, 0, 0, 0]));
    attempt("open_by_handle_at", call(&[304, -100, 0, 0]));
    attempt("name_to_handle_at", call(&[303, -100, 0, 0, 0, 0]));
    attempt("mount", call(&[165, 0, 0, 0, 0, 0]));
    attempt("umount", call(&[166, 0, 0]));
    attempt("fsopen", call(&[430, 0, 0]));
    attempt("open_tree", call(&[428, -100, 0, 0]));
    attempt("move_mount", call(&[429, -1, 0, -1, 0, 0]));
    attempt("pivot_root", call(&[155, 0, 0]));
    attempt("chroot", call(&[161, 0]));
    attempt("init_module", call(&[175, 0, 0, 0]));
    attempt("kexec_load", call(&[246, 0, 0, 0, 0]));
    attempt("reboot", call(&[169, 0, 0, 0, 0]));
    attempt("personality without randomisation", call(&[135, 0x0004_0000]));
    attempt("sethostname", call(&[170, 1, 1]));
    attempt("settimeofday", call(&[164, 0, 0]));
    attempt("clock_settime", call(&[227, 0, 0]));
    attempt("syslog", call(&[103, 2, 0, 0]));
    attempt("TIOCSTI", call(&[16, 0, 0x5412, 0]));
    attempt("mknod a device", mknod());
    for (name, id) in [("outer", 65_535_u32), ("shim's", 65_536)] {
        let number = c_long::from(id);
        attempt(&format!("become the {name} id"), with_child_status(|| call(&[117, number, number, number])));
        let join = || call(&[116, 1, [id].as_ptr() as c_long]);
        attempt(&format!("join the {name} group"), with_child_status(join));
    }
    first_process(attempt);
    attempt("raise capabilities", raise_capabilities());
    attempt("io_setup", call(&[206, 1, 0]));
    attempt("vmsplice", call(&[278, 1, 0, 0, 0]));
    attempt("tee", call(&[276, 0, 1, 1, 0]));
    attempt("remap_file_pages", call(&[216, 0, 0, 0, 0, 0]));
    attempt("mount overlay", mount("overlay"));
    attempt("mount tmpfs", mount("tmpfs"));
    attempt("mount proc", mount("proc"));
    attempt("remount the root", call(&[165, 0, c"/".as_ptr() as c_long, 0, 0x20, 0]));
    attempt("bind the root again for writing", call(&[165, 0, c"/".as_ptr() as c_long, 0, 0x1020, 0]));
    let attributes = [0_u64, 1, 0, 0];
    let attributes = attributes.as_ptr() as c_long;
    attempt("mount_setattr", call(&[442, -100, c"/".as_ptr() as c_long, 0, attributes, 32]));
    attempt("open_tree_attr", call(&[467, -100, c"/".as_ptr() as c_long, 1, attributes, 32]));
    attempt("fspick", call(&[433, -100, c"/".as_ptr() as c_long, 0]));
    attempt("swapon", call(&[167, 0, 0]));
    attempt("quotactl", call(&[179, 0, 0, 0, 0]));
    attempt("acct", call(&[163, 0]));
    attempt("iopl", call(&[172, 3]));
    attempt("raw socket", call(&[41, 2, 3, 255]));
    attempt("bring an interface down", interface_down());
    attempt("x32 getpid", call(&[0x4000_0000 | 39]));
    attempt("a call that does not exist", call(&[9999]));
    attempt("i386 getpid", i386());
}

/// What the kernel lets a process do to another of the same user. The first process is the only one of the appliance that a
/// workload can name: who has started it is nobody there.
fn first_process(attempt: &mut impl FnMut(&str, Outcome)) {
    attempt("end the first process", call(&[62, 1, 9]));
    attempt("ask for the first process", call(&[62, 1, 0]));
    attempt("attach to the first process", call(&[101, 16, 1, 0, 0]));
    attempt("seize the first process", call(&[101, 0x4206, 1, 0, 0]));
    let one = [1_u64, 1];
    let one = one.as_ptr() as c_long;
    attempt("place the first process", call(&[203, 1, 8, one]));
    attempt("limit the first process", call(&[302, 1, 7, one, 0]));
    attempt("slow the first process", call(&[141, 0, 1, 19]));
    attempt("slow the first process's disks", call(&[251, 1, 1, 3 << 13]));
    attempt("schedule the first process", call(&[144, 1, 3, [0_u64].as_ptr() as c_long]));
    attempt("move the first process's pages", call(&[256, 1, 8, one, one]));
    let parent = std::fs::read_to_string("/proc/1/status").unwrap_or_default();
    let named = parent.lines().any(|line| line.starts_with("PPid:") && !line.ends_with("\t0"));
    attempt("name who started the first process", if named { Ok(()) } else { Err("ENOENT".to_owned()) });
}

/// The names of the errors that the table shows; others by number.
fn text(error: &std::io::Error) -> String {
    let number = error.raw_os_error().unwrap_or_default();
    let names = [
        (1, "EPERM"),
        (2, "ENOENT"),
        (3, "ESRCH"),
        (5, "EIO"),
        (9, "EBADF"),
        (13, "EACCES"),
        (14, "EFAULT"),
        (20, "ENOTDIR"),
        (22, "EINVAL"),
        (25, "ENOTTY"),
        (30, "EROFS"),
        (38, "ENOSYS"),
        (97, "EAFNOSUPPORT"),
        (99, "EADDRNOTAVAIL"),
        (101, "ENETUNREACH"),
        (104, "ECONNRESET"),
        (111, "ECONNREFUSED"),
    ];
    names
        .iter()
        .find(|(known, _)| *known == number)
        .map_or_else(|| format!("errno {number}"), |(_, name)| (*name).to_owned())
}

fn last(result: c_long) -> Outcome {
    if result < 0 { Err(text(&std::io::Error::last_os_error())) } else { Ok(()) }
}

/// A raw call: its number and up to six arguments.
fn call(words: &[c_long]) -> Outcome {
    let at = |index: usize| words.get(index).copied().unwrap_or_default();
    // SAFETY: numbers and null pointers; no call of the table writes through an argument that is given here. A clone
    // that is let through makes a copy of this process, which ends at once.
    let result = unsafe { syscall(at(0), at(1), at(2), at(3), at(4), at(5), at(6)) };
    if at(0) == 56 && result == 0 {
        leave();
    }
    last(result)
}

fn leave() -> ! {
    // SAFETY: exit_group(2) does not return.
    unsafe { syscall(231, 0 as c_long) };
    std::process::abort()
}

/// Opens and reads: a file that opens and holds nothing (masked by /dev/null) gives nothing away. A directory counts
/// as readable when something is in it.
fn readable(path: &str) -> Outcome {
    if Path::new(path).is_dir() {
        return match std::fs::read_dir(path).map(|mut entries| entries.next()) {
            Ok(Some(Ok(_))) => Ok(()),
            Ok(None) => Err("empty".to_owned()),
            Ok(Some(Err(error))) | Err(error) => Err(text(&error)),
        };
    }
    let name = CString::new(path).unwrap_or_default();
    // SAFETY: the path is terminated. O_RDONLY | O_NONBLOCK | O_CLOEXEC.
    finish(unsafe { open(name.as_ptr(), 0o2_004_000) })
}

fn finish(descriptor: c_int) -> Outcome {
    if descriptor < 0 {
        return last(-1);
    }
    let mut byte = 0_u8;
    // SAFETY: one byte into one byte; the descriptor was just opened and is closed once.
    let count = unsafe { read(descriptor, (&raw mut byte).cast(), 1) };
    let error = std::io::Error::last_os_error();
    // SAFETY: as above.
    unsafe { close(descriptor) };
    match count {
        1 => Ok(()),
        0 => Err("empty".to_owned()),
        _ => Err(text(&error)),
    }
}

fn writable(path: &str) -> Outcome {
    std::fs::OpenOptions::new()
        .write(true)
        .create(path.ends_with("/x"))
        .truncate(false)
        .open(path)
        .map(drop)
        .map_err(|error| text(&error))
}

fn chmod(path: &Path) -> Outcome {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(path, mode).map_err(|error| text(&error))
}

fn by_descriptor(pid: c_long) -> Outcome {
    let directory = CString::new(format!("/proc/{pid}")).unwrap_or_default();
    // SAFETY: both paths are terminated; the descriptors are closed once.
    unsafe {
        let directory = open(directory.as_ptr(), 0o200_000);
        let outcome = finish(openat(directory, c"environ".as_ptr(), 0));
        close(directory);
        outcome
    }
}

fn by_relative_path(pid: c_long) -> Outcome {
    std::env::set_current_dir(format!("/proc/{pid}")).map_err(|error| text(&error))?;
    let outcome = readable("environ");
    let _ = std::env::set_current_dir("/");
    outcome
}

/// Runs an attempt against a child that was forked and did not execute anything.
fn with_child(attempt: impl Fn(c_long) -> Outcome) -> Outcome {
    // SAFETY: fork(2) in a process with one thread; the child only sleeps and is killed.
    let child = unsafe { syscall(57) };
    if child == 0 {
        std::thread::sleep(Duration::from_secs(20));
        leave();
    }
    let outcome = attempt(child);
    let mut status = 0;
    // SAFETY: the child is this process's own; the status is a valid place.
    unsafe {
        syscall(62, child, 9 as c_long);
        waitpid(child as c_int, &raw mut status, 0);
    }
    outcome
}

/// The same against a copy of this program that the workload made itself.
fn with_copy(attempt: impl Fn(c_long) -> Outcome) -> Outcome {
    std::fs::copy("/proc/self/exe", "/copied").map_err(|error| text(&error))?;
    victim("/copied", attempt)
}

/// The same against a program that is a memory file, and in no file system.
fn with_memory(attempt: impl Fn(c_long) -> Outcome) -> Outcome {
    // SAFETY: the name is terminated.
    let descriptor = unsafe { syscall(319, c"program".as_ptr(), 0 as c_long) };
    last(descriptor)?;
    let path = format!("/proc/self/fd/{descriptor}");
    std::fs::copy("/proc/self/exe", &path).map_err(|error| text(&error))?;
    victim(&path, attempt)
}

fn victim(program: &str, attempt: impl Fn(c_long) -> Outcome) -> Outcome {
    let child = Command::new(program)
        .arg("exhaust")
        .env("KEY", "value")
        .stdin(std::fs::File::open("/proc/self/exe").map_err(|error| text(&error))?)
        .stdout(Stdio::null())
        .spawn();
    let mut child = child.map_err(|error| text(&error))?;
    std::thread::sleep(Duration::from_millis(100));
    let outcome = attempt(child.id().into());
    let _ = child.kill();
    let _ = child.wait();
    outcome
}

/// Runs an attempt in a child, whose ids may change.
fn with_child_status(attempt: impl Fn() -> Outcome) -> Outcome {
    let status = died(|| {
        if let Err(error) = attempt() {
            let code = [("EPERM", 1), ("EINVAL", 22)]
                .iter()
                .find(|(name, _)| *name == error)
                .map_or(99, |(_, code)| *code);
            // SAFETY: exit_group(2) with a number.
            unsafe { syscall(231, code as c_long) };
        }
    });
    match status >> 8 & 0xff {
        0 => Ok(()),
        code => Err(text(&std::io::Error::from_raw_os_error(code))),
    }
}

fn opens(path: &str, read: bool) -> Outcome {
    let options = std::fs::OpenOptions::new().read(read).write(!read).open(path);
    options.map(drop).map_err(|error| text(&error))
}

fn lower_oom_score() -> Outcome {
    std::fs::write("/proc/self/oom_score_adj", "-1").map_err(|error| text(&error))
}

fn raise_capabilities() -> Outcome {
    let header = [0x2008_0522_u32, 0];
    let all = [u32::MAX; 6];
    call(&[126, header.as_ptr() as c_long, all.as_ptr() as c_long])
}

fn mount(kind: &str) -> Outcome {
    let kind = CString::new(kind).unwrap_or_default();
    call(&[165, kind.as_ptr() as c_long, c"/dev/shm".as_ptr() as c_long, kind.as_ptr() as c_long, 0, 0])
}

fn interface_down() -> Outcome {
    // SAFETY: numbers only.
    let socket = unsafe { syscall(41, 2 as c_long, 2 as c_long, 0 as c_long) };
    last(socket)?;
    let mut request = [0_u8; 40];
    request[..2].copy_from_slice(b"lo");
    // SIOCSIFFLAGS with no flag.
    call(&[16, socket, 0x8914, request.as_ptr() as c_long])
}

fn vm(number: c_long, pid: c_long) -> Outcome {
    let mut byte = [0_u8; 8];
    let own = [byte.as_mut_ptr() as usize, byte.len()];
    let other = [0x40_0000_usize, 8];
    // SAFETY: both vectors are valid for the call; the local one names eight bytes of this frame.
    last(unsafe { syscall(number, pid, own.as_ptr(), 1 as c_long, other.as_ptr(), 1 as c_long, 0 as c_long) })
}

fn pidfd_getfd(pid: c_long) -> Outcome {
    // SAFETY: numbers only.
    let pidfd = unsafe { syscall(434, pid, 0 as c_long) };
    if pidfd < 0 {
        return last(-1);
    }
    // SAFETY: numbers only.
    last(unsafe { syscall(438, pidfd, 1 as c_long, 0 as c_long) })
}

fn core_limit() -> Outcome {
    let unlimited = [u64::MAX, u64::MAX];
    // SAFETY: setrlimit(2) reads the two numbers.
    last(unsafe { syscall(160, 4 as c_long, unlimited.as_ptr()) })
}

/// A child dies of a segmentation fault; the kernel says whether it wrote a core file.
fn core_dump() -> Outcome {
    let status = died(|| {
        // SAFETY: numbers only; ends this child.
        unsafe {
            let pid = syscall(39);
            syscall(62, pid, 11 as c_long);
        }
    });
    if status & 0x80 == 0 { Err("no core".to_owned()) } else { Ok(()) }
}

/// getpid by the i386 gate. The filter ends the process with SIGSYS; a kernel without the gate with SIGSEGV.
fn i386() -> Outcome {
    let status = died(|| {
        let mut number: u64 = 20;
        // SAFETY: the call takes no argument and changes only the register that it answers in, and flags; the
        // i386 entry may clear r8 to r11.
        unsafe {
            std::arch::asm!("int 0x80", inout("rax") number, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        let _ = number;
    });
    match status & 0x7f {
        0 => Ok(()),
        31 => Err("SIGSYS".to_owned()),
        11 => Err("SIGSEGV".to_owned()),
        signal => Err(format!("signal {signal}")),
    }
}

fn died(how: impl Fn()) -> c_int {
    // SAFETY: fork(2) in a process with one thread; the child runs `how` and ends.
    let child = unsafe { syscall(57) };
    if child == 0 {
        how();
        leave();
    }
    let mut status = 0;
    // SAFETY: the child is this process's own; the status is a valid place.
    unsafe { waitpid(child as c_int, &raw mut status, 0) };
    status
}

fn mknod() -> Outcome {
    // SAFETY: the path is terminated; S_IFCHR with /dev/mem's number.
    last(unsafe { syscall(133, c"/tmp/mem".as_ptr(), 0o020_666 as c_long, 0x101 as c_long) })
}

fn outside() -> Outcome {
    let address = std::net::SocketAddr::from(([192, 0, 2, 1], 80));
    TcpStream::connect_timeout(&address, Duration::from_secs(3)).map(drop).map_err(|error| text(&error))
}
