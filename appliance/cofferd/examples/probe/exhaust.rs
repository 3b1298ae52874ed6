//! Taking all that there is of one kind, and keeping it: what a workload must not be able to do to others.
//!
//! Each kind runs in a process of its own. When a bound stops it, or after a number that no service needs, it prints how much
//! it holds and what stopped it, and then holds on until it is ended.

use std::ffi::{c_int, c_long};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

/// Processes that hold at the same time where one process has too small a bound of its own.
const PROCESSES: usize = 48;
/// Enough to know that nothing stops it.
const ENOUGH: usize = 4_000_000;

/// How much it holds and what stopped it.
type Held = (usize, String);

/// Every kind, in the order in which the tests try them.
pub(crate) const KINDS: [&str; 30] = [
    "memory",
    "memfd",
    "dev-shm",
    "root",
    "processes",
    "threads",
    "descriptors",
    "pipes",
    "socket-pairs",
    "descriptors-in-flight",
    "netlink",
    "ofd-locks",
    "posix-locks",
    "filters",
    "inotify",
    "epoll",
    "timers",
    "signals",
    "ptys",
    "shared-memory",
    "semaphores",
    "message-queues",
    "posix-queues",
    "tcp",
    "backlog",
    "udp",
    "neighbours",
    "files",
    "output",
    "processor",
];

/// Takes all of `kind`, says so and holds it.
pub(crate) fn run(kind: &str) {
    let (count, why) = match kind {
        "memory" => memory(),
        "memfd" => memfd(),
        "dev-shm" => file("/dev/shm/x"),
        "root" => file("/x"),
        "processes" => fill(4 * ENOUGH, || sleeper(&[])),
        "threads" => fill(ENOUGH, || {
            std::thread::Builder::new()
                .stack_size(16 << 10)
                .spawn(|| std::thread::sleep(Duration::from_secs(900)))
        }),
        "descriptors" | "pipes" | "socket-pairs" | "netlink" | "filters" | "epoll" | "tcp" | "backlog"
        | "udp" => in_processes(kind),
        "one-descriptors" => fill(ENOUGH, || File::open("/dev/null")),
        "one-pipes" => fill(ENOUGH, pipe),
        "one-socket-pairs" => fill(ENOUGH, socket_pair),
        "one-netlink" => fill(ENOUGH, netlink),
        "one-filters" => fill(ENOUGH, filter),
        "one-epoll" => fill(ENOUGH, epoll),
        "one-tcp" => tcp(),
        "one-backlog" => backlog(),
        "one-udp" => fill(ENOUGH, udp),
        "descriptors-in-flight" => in_flight(),
        "ofd-locks" => locks(37),
        "posix-locks" => locks(6),
        "inotify" => inotify(),
        "timers" => fill(ENOUGH, timer),
        "signals" => fill(ENOUGH, signal),
        "ptys" => fill(ENOUGH, || File::options().read(true).write(true).open("/dev/ptmx")),
        "shared-memory" => fill(ENOUGH, || number(29, &[0, 1 << 20, 0o1600])),
        "semaphores" => fill(ENOUGH, || number(64, &[0, 250, 0o1600])),
        "message-queues" => fill(ENOUGH, message_queue),
        "posix-queues" => posix_queues(),
        "neighbours" => neighbours(),
        "files" => files(),
        "output" => output(),
        "processor" => fill(64, || {
            Ok(std::thread::spawn(|| {
                loop {
                    std::hint::spin_loop()
                }
            }))
        }),
        _ => (0, "no such kind".to_owned()),
    };
    println!("{count} {why}");
    let _ = io::stdout().flush();
    std::thread::sleep(Duration::from_secs(900));
}

/// Makes one after the other and keeps all, until one is refused.
fn fill<T>(most: usize, mut make: impl FnMut() -> io::Result<T>) -> Held {
    let mut count = 0;
    while count < most {
        match make() {
            Ok(one) => std::mem::forget(one),
            Err(error) => return (count, crate::text(&error)),
        }
        count += 1;
    }
    (count, "nothing".to_owned())
}

/// A raw call that answers with a number.
fn number(call: c_long, words: &[c_long]) -> io::Result<c_long> {
    let at = |index: usize| words.get(index).copied().unwrap_or_default();
    // SAFETY: numbers, or pointers to values that outlive the call and have the size that it reads or writes.
    let outcome = unsafe { syscall(call, at(0), at(1), at(2), at(3), at(4), at(5)) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}

/// The same for a call that makes a descriptor.
fn descriptor(call: c_long, words: &[c_long]) -> io::Result<OwnedFd> {
    let fd = number(call, words)?;
    // SAFETY: the call made it just now and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

fn sleeper(arguments: &[&str]) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg("exhaust")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
}

/// Many processes that do the same, and time for them to do it.
fn in_processes(kind: &str) -> Held {
    let held = fill(PROCESSES, || sleeper(&[&format!("one-{kind}")]));
    std::thread::sleep(Duration::from_secs(4));
    held
}

fn memory() -> Held {
    fill(ENOUGH, || {
        let mut block = vec![0_u8; 1 << 20];
        block.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        Ok(std::hint::black_box(block))
    })
}

fn memfd() -> Held {
    let made = descriptor(319, &[c"x".as_ptr() as c_long, 0]);
    made.map_or_else(|error| (0, crate::text(&error)), |file| write_all(File::from(file)))
}

fn file(path: &str) -> Held {
    File::create(path).map_or_else(|error| (0, crate::text(&error)), write_all)
}

fn write_all(mut file: File) -> Held {
    let block = vec![1_u8; 1 << 20];
    let held = fill(ENOUGH, || file.write_all(&block));
    std::mem::forget(file);
    held
}

fn pipe() -> io::Result<()> {
    let mut ends = [0 as c_int; 2];
    number(293, &[ends.as_mut_ptr() as c_long, 0o4000])?;
    // Its default capacity.
    let _ = number(1, &[c_long::from(ends[1]), [0_u8; 65536].as_ptr() as c_long, 65536]);
    Ok(())
}

fn socket_pair() -> io::Result<(UnixStream, UnixStream)> {
    let (mut ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    while ours.write(&[0_u8; 65536]).is_ok() {}
    Ok((ours, theirs))
}

/// A routing socket whose answers are never read.
fn netlink() -> io::Result<OwnedFd> {
    let socket = descriptor(41, &[16, 3, 0])?;
    let size: c_int = 64 << 20;
    // SOL_SOCKET, SO_RCVBUF.
    number(54, &[c_long::from(socket.as_raw_fd()), 1, 8, (&raw const size) as c_long, 4])?;
    // A header alone, of a type that there is not, that wants an acknowledgement.
    let message: [u32; 4] = [16, 0x0005_0010 | 0x0fff, 1, 0];
    for _ in 0..200_000 {
        let sent =
            number(44, &[c_long::from(socket.as_raw_fd()), message.as_ptr() as c_long, 16, 0x40, 0, 0]);
        if sent.is_err() {
            break;
        }
    }
    Ok(socket)
}

/// A socket with the longest filter that there is. The kernel keeps what it was given and what it made of it, some 100 KiB, and
/// charges nobody for that.
fn filter() -> io::Result<OwnedFd> {
    let socket = descriptor(41, &[1, 2, 0])?;
    // struct sock_filter: BPF_RET | BPF_K, no jumps, 0. struct sock_fprog: how many, and where.
    let program = [6_u64; 4096];
    let given = [program.len(), program.as_ptr() as usize];
    // SOL_SOCKET, SO_ATTACH_FILTER.
    number(54, &[c_long::from(socket.as_raw_fd()), 1, 26, given.as_ptr() as c_long, 16])?;
    Ok(socket)
}

fn epoll() -> io::Result<OwnedFd> {
    let events = descriptor(291, &[0])?;
    let watched = descriptor(290, &[0, 0])?;
    let mut event = [1_u32, 0, 0];
    let words = [events.as_raw_fd().into(), 1, watched.as_raw_fd().into(), event.as_mut_ptr() as c_long];
    number(233, &words)?;
    std::mem::forget(watched);
    Ok(events)
}

/// Connections to itself with all that they take unread.
fn tcp() -> Held {
    let bound = TcpListener::bind("127.0.0.1:0");
    let (listener, address) =
        match bound.and_then(|listener| listener.local_addr().map(|address| (listener, address))) {
            Ok(both) => both,
            Err(error) => return (0, crate::text(&error)),
        };
    fill(ENOUGH, || {
        let mut ours = TcpStream::connect(address)?;
        let theirs = listener.accept()?;
        ours.set_nonblocking(true)?;
        while ours.write(&[0_u8; 65536]).is_ok() {}
        Ok((ours, theirs))
    })
}

/// Connections that nobody accepts, with all that they take unread: what waits there belongs to no process yet.
fn backlog() -> Held {
    let listeners = std::cell::RefCell::new(Vec::new());
    fill(ENOUGH, || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        listeners.borrow_mut().push(listener);
        for _ in 0..100 {
            let mut ours = TcpStream::connect(address)?;
            ours.set_nonblocking(true)?;
            while ours.write(&[0_u8; 65536]).is_ok() {}
            std::mem::forget(ours);
        }
        Ok(())
    })
}

fn udp() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?;
    socket.set_nonblocking(true)?;
    for _ in 0..64 {
        let _ = socket.send_to(&[0_u8; 32768], address);
    }
    Ok(socket)
}

/// A datagram to each address of each network that it is in (10.n.0.0/16): the table of those that the kernel has sent to is one for
/// the machine.
fn neighbours() -> Held {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    // Interface, destination: four bytes of the address as one number of this machine's.
    let networks: Vec<[u8; 4]> = routes
        .lines()
        .filter_map(|line| u32::from_str_radix(line.split_whitespace().nth(1)?, 16).ok())
        .map(u32::to_le_bytes)
        .filter(|network| network[0] == 10)
        .collect();
    let Ok(socket) = UdpSocket::bind("0.0.0.0:0") else { return (0, "no socket".to_owned()) };
    let mut count = 0;
    for [a, b, _, _] in networks {
        for host in 1..u16::MAX {
            let [c, d] = host.to_be_bytes();
            match socket.send_to(b"x", (std::net::Ipv4Addr::new(a, b, c, d), 9)) {
                Ok(_) => count += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return (count, crate::text(&error)),
            }
        }
    }
    (count, "nothing".to_owned())
}

/// Descriptors that are in no process: sent over sockets that nobody reads and that are themselves sent.
fn in_flight() -> Held {
    fill(ENOUGH, || {
        let (ours, theirs) = UnixStream::pair()?;
        for _ in 0..64 {
            send_descriptor(&ours, theirs.as_raw_fd())?;
        }
        Ok(())
    })
}

fn send_descriptor(socket: &UnixStream, sent: c_int) -> io::Result<c_long> {
    let mut byte = 0_u8;
    let part = [(&raw mut byte) as usize, 1];
    // struct cmsghdr: length, SOL_SOCKET and SCM_RIGHTS, the descriptor.
    let control = [20_usize, 1 | 1 << 32, sent as usize];
    let header = [0_usize, 0, part.as_ptr() as usize, 1, control.as_ptr() as usize, 24, 0];
    number(46, &[socket.as_raw_fd().into(), header.as_ptr() as c_long, 0x40])
}

/// A lock on every second byte of many files: in one file each lock is found by passing all before it.
fn locks(command: c_long) -> Held {
    fill(ENOUGH, || {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open("/dev/shm/locked")?;
        for index in 0..1000_i64 {
            // struct flock: type and whence, start, length, pid.
            let lock: [i64; 4] = [1, index * 2, 1, 0];
            number(72, &[file.as_raw_fd().into(), command, lock.as_ptr() as c_long])?;
        }
        let _ = std::fs::remove_file("/dev/shm/locked");
        Ok(file)
    })
}

fn inotify() -> Held {
    let _ = std::fs::create_dir("/dev/shm/watched");
    fill(ENOUGH, || {
        let instance = descriptor(294, &[0])?;
        for index in 0..4096 {
            let path = std::ffi::CString::new(format!("/dev/shm/watched/{index}"))?;
            let _ = File::create(path.to_str().unwrap_or_default());
            number(254, &[instance.as_raw_fd().into(), path.as_ptr() as c_long, 0xfff])?;
        }
        Ok(instance)
    })
}

fn timer() -> io::Result<()> {
    let mut id = 0 as c_int;
    number(222, &[1, 0, (&raw mut id) as c_long]).map(drop)
}

/// Signals that wait, since they are blocked.
fn signal() -> io::Result<()> {
    let all = u64::MAX;
    number(14, &[0, (&raw const all) as c_long, 0, 8])?;
    // siginfo_t: signo, errno, code SI_QUEUE.
    let mut information = [0_i32; 32];
    (information[0], information[2]) = (40, -1);
    number(129, &[std::process::id().into(), 40, information.as_ptr() as c_long]).map(drop)
}

fn message_queue() -> io::Result<()> {
    let queue = number(68, &[0, 0o1600])?;
    let message = [1_u8; 8192 + 8];
    // IPC_NOWAIT.
    while number(69, &[queue, message.as_ptr() as c_long, 8192, 0o4000]).is_ok() {}
    Ok(())
}

fn posix_queues() -> Held {
    let mut index = 0;
    fill(ENOUGH, || {
        index += 1;
        let name = std::ffi::CString::new(format!("q{index}"))?;
        // O_RDWR | O_CREAT | O_NONBLOCK.
        let queue = descriptor(240, &[name.as_ptr() as c_long, 0o4102, 0o600, 0])?;
        let message = [1_u8; 8192];
        while number(242, &[queue.as_raw_fd().into(), message.as_ptr() as c_long, 8192, 0, 0]).is_ok() {}
        Ok(queue)
    })
}

fn files() -> Held {
    let mut index = 0;
    fill(ENOUGH, || {
        index += 1;
        File::create(format!("/dev/shm/file-{index}")).map(drop)
    })
}

/// Prints as fast as it can for a while.
fn output() -> Held {
    let begun = std::time::Instant::now();
    let line = [b"x".repeat(1000), b"\n".to_vec()].concat();
    let mut stderr = io::stderr().lock();
    let mut count = 0;
    while begun.elapsed() < Duration::from_secs(5) {
        if stderr.write_all(&line).is_err() {
            break;
        }
        count += 1;
    }
    (count, "time".to_owned())
}
