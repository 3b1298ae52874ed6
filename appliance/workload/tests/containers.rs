//! Makes real containers on this machine's kernel, from the unpacking of a layer to the end of the workload, out of a
//! process that no PID 1 started.
//!
//! Without libtest, because whoever makes containers has one thread: the tests' process starts this program again and gives
//! it a user namespace. Needs root, busybox (static) and bash (dynamic); says what is missing and passes otherwise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use caps::CapSet;
use cofferdam_declaration::{Paths, Profile as Declared, Ulimit, known_system_calls};
use cofferdam_workload::config::Config;
use cofferdam_workload::delivery::{Delivery, Plan};
use cofferdam_workload::dns::Names;
use cofferdam_workload::health::Test;
use cofferdam_workload::init;
use cofferdam_workload::launch::{self, LaunchError};
use cofferdam_workload::network::Network;
use cofferdam_workload::probe::{Prober, probe};
use cofferdam_workload::resolver::{self, Resolver};
use cofferdam_workload::restart::End;
use cofferdam_workload::seccomp::Profile;
use cofferdam_workload::unpack::{Room, Unpacker};
use cofferdam_workload::volume::Volume;
use cofferdam_workload::{OUTSIDE_ID, SHIM_ID};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use tokio::io::AsyncReadExt;
use zeroize::Zeroizing;

const BUSYBOX: &str = "/bin/busybox";
const BASH: &str = "/bin/bash";
const BASE: u32 = 100_000 + 7 * 65_537;
const SECRET: &str = "correct horse";
/// argv of this program as the first process of a container.
const INIT: &[&str] = &["containers", "container"];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        // What the launcher executes.
        (Some("container"), None) => init::run().unwrap(),
        (Some("shim"), Some(folder)) => shim(Path::new(&folder), cases),
        (Some("sleeping-shim"), Some(folder)) => shim(Path::new(&folder), sleeper),
        (Some("starting-shim"), Some(folder)) => shim(Path::new(&folder), starts),
        // For ci/bench.
        (Some("starts"), None) => return measure(),
        // libtest's options, and its listing.
        (Some("--list"), _) => {}
        _ => return tests(),
    }
    ExitCode::SUCCESS
}

fn tests() -> ExitCode {
    if !Uid::effective().is_root() {
        println!("SKIPPED: making containers needs root");
        return ExitCode::SUCCESS;
    }
    for program in [BUSYBOX, BASH] {
        if !Path::new(program).exists() {
            println!("SKIPPED: making containers needs {program}");
            return ExitCode::SUCCESS;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(start("shim", folder.path()).wait().unwrap().success());

    let mut shim = start("sleeping-shim", folder.path());
    let noted = folder.path().join("pid");
    let pid = within(|| fs::read_to_string(&noted).ok()?.parse::<i32>().ok());
    shim.kill().unwrap();
    shim.wait().unwrap();
    within(|| (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    println!("ok: a container dies with its shim");
    ExitCode::SUCCESS
}

/// Starts this program again and maps the ids of the user namespace that it makes.
fn start(mode: &str, folder: &Path) -> Child {
    let mut command = Command::new("/proc/self/exe");
    command.arg(mode).arg(folder).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut [0]).unwrap();
    for map in ["uid_map", "gid_map"] {
        let ids = format!("0 {} 65536\n{SHIM_ID} {BASE} 1\n", BASE + 1);
        fs::write(format!("/proc/{}/{map}", child.id()), ids).unwrap();
    }
    child.stdin.take().unwrap().write_all(b"g").unwrap();
    std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::stdout()));
    child
}

/// Becomes root of a new user namespace with its own view of mounts.
fn enter_namespace() {
    let namespaces = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC;
    unshare(namespaces).unwrap();
    std::io::stdout().write_all(b"u").unwrap();
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_exact(&mut [0]).unwrap();
    setgroups(&[]).unwrap();
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(group, group, group).unwrap();
    setresuid(user, user, user).unwrap();
    nix::sys::prctl::set_no_new_privs().unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
}

fn within<T>(attempt: impl Fn() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < end, "nothing happened");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Gives up being root of the namespace, as which the image was unpacked, for the id of a shim, with all capabilities.
fn become_shim() {
    let all = caps::read(None, CapSet::Permitted).unwrap();
    caps::securebits::set_keepcaps(true).unwrap();
    let (user, group) = (Uid::from_raw(SHIM_ID), Gid::from_raw(SHIM_ID));
    setresgid(group, group, group).unwrap();
    setresuid(user, user, user).unwrap();
    for set in [CapSet::Effective, CapSet::Inheritable, CapSet::Ambient] {
        caps::set(None, set, &all).unwrap();
    }
}

/// What PID 1 would have started: a shim in its own user namespace, one thread.
fn shim(folder: &Path, run: fn(&tokio::runtime::Runtime, &Shim)) {
    enter_namespace();
    Profile::parse(include_str!("../../../policy/seccomp/shim.json")).unwrap().apply().unwrap();
    let root = folder.join("root");
    let _ = fs::create_dir(&root);
    mount(Some("root"), &root, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, None::<&str>).unwrap();
    let mut unpacker = Unpacker::new(&root, Room::Memory(1 << 30), true).unwrap();
    unpacker.layer(image().as_slice()).unwrap();
    become_shim();
    fs::write(root.join("of-the-shim"), "x").unwrap();
    fs::set_permissions(root.join("of-the-shim"), fs::Permissions::from_mode(0o600)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _network = Network::create().unwrap();
    run(&runtime, &Shim { root, folder: folder.to_owned() });
}

struct Shim {
    root: PathBuf,
    folder: PathBuf,
}

/// A layer with a static busybox, a dynamic bash, and what bash is loaded with.
fn image() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut put = |name: &str, content: &[u8], mode: u32| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, name, content).unwrap();
    };
    put("bin/busybox", &fs::read(BUSYBOX).unwrap(), 0o4755);
    put("bin/bash", &fs::read(BASH).unwrap(), 0o755);
    put("etc/passwd", b"root:x:0:0::/:/bin/sh\napp:x:1000:1001::/:/bin/sh\n", 0o644);
    put("script", b"#!/bin/bash\necho a script\n", 0o755);
    volume_files(&mut put);
    let needed = Command::new("ldd").arg(BASH).output().unwrap();
    for path in
        String::from_utf8(needed.stdout).unwrap().split_whitespace().filter(|word| word.starts_with('/'))
    {
        put(path.trim_start_matches('/'), &fs::read(path).unwrap(), 0o755);
    }
    for (name, mode, owner) in [("had/", 0o750, 1000), ("had/sub/", 0o700, 1000), ("had2/", 0o755, 0)] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        builder.append_data(&mut header, name, &b""[..]).unwrap();
    }
    for (link, target) in
        [("had/link", "a"), ("linked", "/had2"), ("to-proc", "/proc/sys"), ("up", "../../../..")]
    {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_uid(1000);
        header.set_gid(1001);
        builder.append_link(&mut header, link, target).unwrap();
    }
    for applet in ["sh", "cat", "sleep", "id", "stat", "ps", "chmod", "cp"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    builder.into_inner().unwrap()
}

/// What a volume takes over from the image.
fn volume_files(put: &mut impl FnMut(&str, &[u8], u32)) {
    put("had/a", b"of the image", 0o640);
    put("had/sub/x", b"below", 0o755);
}

impl Shim {
    fn plan(&self, words: &[&str]) -> Plan {
        Plan {
            rootfs: self.root.clone(),
            hostname: "web".into(),
            hosts: "127.0.0.1 localhost web\n".into(),
            read_only: false,
            writable: 8 << 20,
            memory: 256 << 20,
            shm_size: 64 << 20,
            ulimits: Default::default(),
            tmpfs: vec!["/tmp".into()],
            volumes: Vec::new(),
            configs: Vec::new(),
            arguments: words.iter().map(|word| (*word).to_owned()).collect(),
            probe: None,
            working_dir: "/work".into(),
            uid: 1000,
            gid: 1001,
            capabilities: cofferdam_declaration::Capability::ALL.into(),
            groups: vec![4, 1001],
            profile: Default::default(),
        }
    }

    fn delivery(&self) -> Delivery {
        let value = |text: &str| Zeroizing::new(text.as_bytes().to_vec());
        Delivery {
            environment: vec![("PATH".into(), value("/bin")), ("TOKEN".into(), value(SECRET))],
            files: vec![("token".into(), value(SECRET))],
            configs: Vec::new(),
        }
    }

    async fn run(&self, plan: &Plan) -> Result<(End, String), LaunchError> {
        self.deliver(plan, &self.delivery()).await
    }

    async fn deliver(&self, plan: &Plan, delivery: &Delivery) -> Result<(End, String), LaunchError> {
        let (mut container, mut output) = launch::start(INIT, plan, delivery, None).await?;
        let mut text = String::new();
        output.stdout.read_to_string(&mut text).await.unwrap();
        output.stderr.read_to_string(&mut text).await.unwrap();
        Ok((container.ended().await?, text))
    }

    async fn sh(&self, script: &str) -> String {
        let (end, text) = self.run(&self.plan(&["sh", "-c", script])).await.unwrap();
        assert_eq!(end, End::Exited(0), "{script}: {text}");
        text
    }
}

/// How often the bench starts a container.
const STARTS: usize = 20;

/// Prints how many microseconds each start of a container took that executes `true`, one on each line.
fn measure() -> ExitCode {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(start("starting-shim", folder.path()).wait().unwrap().success());
    print!("{}", fs::read_to_string(folder.path().join("starts")).unwrap());
    ExitCode::SUCCESS
}

/// From the plan to the end of the workload, as a shim does it.
fn starts(runtime: &tokio::runtime::Runtime, shim: &Shim) {
    let mut lines = String::new();
    for _ in 0..STARTS {
        let begun = Instant::now();
        let (end, _) = runtime.block_on(shim.run(&shim.plan(&["busybox", "true"]))).unwrap();
        lines += &format!("{}\n", begun.elapsed().as_micros());
        assert_eq!(end, End::Exited(0));
    }
    fs::write(shim.folder.join("starts"), lines).unwrap();
}

fn cases(runtime: &tokio::runtime::Runtime, shim: &Shim) {
    runtime.block_on(async {
        root_is_root_of_its_own_files(shim).await;
        println!("ok: root changes files and ids of its container and nothing else");
        each_start_finds_the_image_as_it_is(shim).await;
        println!("ok: each start finds the image as it was pulled");
        output_is_the_shims_alone(shim).await;
        println!("ok: no process of a container reads what is printed");
        secrets_arrive(shim).await;
        println!("ok: secrets arrive as a variable and as a file for their user only");
        secrets_change(shim).await;
        println!("ok: a secret file is replaced whole, by the shim alone");
        ends_are_told(shim).await;
        println!("ok: exit codes, signals and what cannot be executed are told apart");
        network(shim).await;
        println!("ok: names are told by the resolver, whose port nobody takes, and every other port is free");
        probes(shim).await;
        println!("ok: a probe can do what its workload can and nothing more, and ends in time");
        declared_limits_hold(shim).await;
        println!("ok: resource limits and shared memory are what the plan says");
        volumes(shim).await;
        println!("ok: an empty volume takes over what the image has, and any other is as it was left");
        walls_of_volumes(shim).await;
        println!("ok: a volume leads nobody astray, and root in it is root of nothing else");
        configs(shim).await;
        println!("ok: a config is what was delivered, nobody writes to it, and it leads nobody astray");
        profiles(shim).await;
        println!("ok: a profile closes what it does not name, by whatever way, and opens nothing");
        walls(shim).await;
        println!("ok: the root is what the plan says, and the rest is not there");
    });
}

/// A probe is a program of the workload's: the same user, variables, walls. It is bounded in time and in what it prints, it takes
/// nothing from the workload and holds nothing of it, and neither ends the other.
async fn probes(shim: &Shim) {
    const LIMIT: Duration = Duration::from_secs(20);
    let start = async |workload: &str, script: &str| {
        let words = ["sh", "-c", script].map(str::to_owned);
        let plan = Plan { probe: Some(words.into()), ..shim.plan(&["sh", "-c", workload]) };
        let (mut container, output) = launch::start(INIT, &plan, &shim.delivery(), None).await.unwrap();
        let prober = container.prober().unwrap();
        (container, output, prober)
    };
    let test = Test::Program(Vec::new());
    let ask = async |prober: &mut Prober, limit: Duration| {
        let answer = probe(&test, Some(prober), None, limit).await;
        (answer.succeeded, String::from_utf8(answer.output).unwrap())
    };
    let script = "id -u; id -g; echo $TOKEN; cat /run/secrets/token; echo; pwd; \
                  busybox grep -E '^(CapPrm|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; \
                  cat /proc/1/environ; touch /run/secrets/x; busybox test -e /proc/self/fd/3 && echo stray; exit 3";
    let (mut container, mut output, mut prober) = start("busybox sleep 99", script).await;
    let (succeeded, said) = ask(&mut prober, LIMIT).await;
    assert!(!succeeded && said.starts_with("exit code 3: 1000\n1001\n"), "{said}");
    let (_, own) = shim.run(&shim.plan(&["sh", "-c", script])).await.unwrap();
    let own = own.lines().filter(|line| !line.contains("denied")).collect::<Vec<_>>();
    let probed = said.trim_start_matches("exit code 3: ").lines().filter(|line| !line.contains("denied"));
    let probed: Vec<_> = probed.filter(|line| !line.contains("Read-only")).collect();
    let own: Vec<_> = own.into_iter().filter(|line| !line.contains("Read-only")).collect();
    assert_eq!(probed, own, "what a program of the workload sees");
    assert!(
        said.contains("NoNewPrivs:\t1") && said.contains("Seccomp:\t2") && !said.contains("stray"),
        "{said}"
    );
    assert!(said.contains("denied") && said.contains("Read-only"), "{said}");
    // The workload's output ends with the workload: nobody else holds it.
    container.kill();
    container.ended().await.unwrap();
    output.stdout.read_to_string(&mut String::new()).await.unwrap();
    let (succeeded, said) = ask(&mut prober, LIMIT).await;
    assert_eq!((succeeded, said.as_str()), (false, "the process that runs the probe has ended"));

    let (_container, _output, mut prober) =
        start("busybox sleep 99", "busybox sleep 98 & busybox sleep 97").await;
    let begun = Instant::now();
    let (succeeded, said) = ask(&mut prober, Duration::from_millis(300)).await;
    assert_eq!((succeeded, said.as_str()), (false, "no answer within 300ms"));
    assert!(begun.elapsed() < LIMIT);
    let (_container, _output, mut prober) = start("busybox sleep 99", "busybox yes").await;
    let (succeeded, said) = ask(&mut prober, Duration::from_millis(300)).await;
    assert!(!succeeded && said.len() <= 4096 + 64 && said.starts_with("no answer"), "{}", said.len());
    // One that leaves something running does not wait for it, and takes it along.
    let (_container, _output, mut prober) = start("busybox sleep 99", "busybox sleep 98 & ps").await;
    for _ in 0..3 {
        let (succeeded, said) = ask(&mut prober, LIMIT).await;
        let left = said.lines().filter(|line| line.ends_with("busybox sleep 98")).count();
        assert!(succeeded && left <= 1, "{said}");
    }
    // Each is in a Landlock domain of its own: neither sends the other a signal, although they are the same user.
    let kill_all = "for p in /proc/[0-9]*; do [ ${p#/proc/} = $$ ] || kill -9 ${p#/proc/}; done";
    let workload = format!("{kill_all}; echo tried; busybox sleep 99");
    let (_container, mut output, mut prober) = start(&workload, ":").await;
    output.stdout.read_exact(&mut [0; 6]).await.unwrap();
    assert_eq!(
        ask(&mut prober, LIMIT).await,
        (true, "exit code 0".to_owned()),
        "a workload ended what probes it"
    );
    let (container, _output, mut prober) = start("busybox sleep 99", kill_all).await;
    // It may end the process that runs it, which is its own.
    ask(&mut prober, LIMIT).await;
    assert!(container.pid().is_some(), "a probe ended its workload");
}

/// What the declaration gives, and what a workload cannot give itself.
async fn declared_limits_hold(shim: &Shim) {
    let script = "ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hc; grep /dev/shm /proc/mounts";
    let text = shim.sh(script).await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[2..4], ["0", "0"], "{text}");
    assert!(lines[1].parse::<u64>().unwrap() <= 4096, "{text}");
    assert!(lines[4].contains("size=65536k"), "{text}");
    let mut plan = shim.plan(&["sh", "-c", &format!("{script}; ulimit -Hn 65")]);
    plan.ulimits.nofile = Some(Ulimit { soft: 32, hard: 64 });
    plan.shm_size = 1 << 20;
    let (end, text) = shim.run(&plan).await.unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["32", "64"], "{text}");
    assert!(lines[4].contains("size=1024k"), "{text}");
    assert_ne!(end, End::Exited(0), "a hard limit was raised: {text}");
}

/// Root as official images know it: files and ids of the container, and nothing of what holds it.
async fn root_is_root_of_its_own_files(shim: &Shim) {
    let root = |script: &str| {
        let mut plan = shim.plan(&["sh", "-c", script]);
        (plan.uid, plan.gid) = (0, 0);
        plan
    };
    let script = "mkdir /data; chown 1000:1001 /data; chmod 700 /data; echo x >/data/x && stat -c '%u %g %a' /data; \
                  busybox su app -c 'id -u; id -g'; id -u";
    let (_, text) = shim.run(&root(script)).await.unwrap();
    assert_eq!(text, "1000 1001 700\n1000\n1001\n0\n");
    let (_, text) = shim.run(&root("cat /proc/self/status")).await.unwrap();
    let nine = "00000000000005fb";
    for line in [
        format!("CapPrm:\t{nine}"),
        format!("CapEff:\t{nine}"),
        format!("CapBnd:\t{nine}"),
        "NoNewPrivs:\t1".into(),
    ] {
        assert!(text.contains(&line), "{line}: {text}");
    }
    let refused = "for call in 'mount -t tmpfs none /tmp' 'chroot / /bin/sh' 'hostname x' 'mknod /tmp/null c 1 3' \
                   'umount /proc' 'chown 65535 /tmp' 'kill -9 1'; do busybox $call 2>/dev/null && echo $call; done; :";
    assert_eq!(shim.run(&root(refused)).await.unwrap().1, "");
    let (_, text) = shim.run(&shim.plan(&["cat", "/proc/self/status"])).await.unwrap();
    assert!(
        text.contains("CapPrm:\t0000000000000000") && text.contains("CapEff:\t0000000000000000"),
        "{text}"
    );
    let mut plan = root("cat /proc/self/status; chown 1000 /tmp 2>/dev/null || echo refused");
    plan.capabilities.clear();
    let (_, text) = shim.run(&plan).await.unwrap();
    assert!(text.contains("CapBnd:\t0000000000000000") && text.ends_with("refused\n"), "{text}");
    // The shim's own id is nobody's: no capability reaches what belongs to it, and nobody becomes it.
    let script = "stat -c '%u %g' /of-the-shim; for call in 'cat /of-the-shim' 'chmod 666 /of-the-shim' 'chown 0 /of-the-shim' \
                  'dd if=/dev/null of=/of-the-shim' 'chown 65536 /bin' 'setpriv --reuid 65536 true' 'touch /of-the-shim'; do \
                  busybox $call 2>/dev/null && echo $call; done; cat /proc/self/uid_map; ls /proc | busybox grep -c '^[0-9]'";
    let (_, text) = shim.run(&root(script)).await.unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words[..5], ["65534", "65534", "0", "0", "65535"], "{text}");
    // Whom root becomes later reads the secrets, too.
    let later = "busybox su app -c 'cat /run/secrets/token'";
    assert_eq!(shim.run(&root(later)).await.unwrap().1, SECRET);
}

async fn each_start_finds_the_image_as_it_is(shim: &Shim) {
    let mut plan = shim.plan(&[
        "sh",
        "-c",
        "busybox ls /lib64 /bin | busybox md5sum; cp /bin/busybox /bin/new && busybox mv /bin/new /bin/bash && \
         busybox mv /lib64 /lib65 && echo x >/kept && busybox rm /script && echo changed",
    ]);
    (plan.uid, plan.gid) = (0, 0);
    let (_, first) = shim.run(&plan).await.unwrap();
    assert!(first.ends_with("changed\n"), "{first}");
    assert_eq!(shim.run(&plan).await.unwrap().1, first, "nothing of the first run is left");
    // What is written is bounded.
    plan.arguments =
        ["sh", "-c", "busybox dd if=/dev/zero of=/big bs=1M count=99 2>&1 | busybox grep -c 'No space'"]
            .map(str::to_owned)
            .to_vec();
    assert_eq!(shim.run(&plan).await.unwrap().1, "1\n");
}

/// What another process prints is not redacted yet: only the shim reads it.
async fn output_is_the_shims_alone(shim: &Shim) {
    let script = "for fd in /proc/self/fd/1 /proc/$$/fd/1 /dev/stdout /dev/stderr; do \
                  busybox timeout 2 busybox head -c1 <$fd >/tmp/stolen 2>/dev/null && echo read $fd; done; \
                  busybox chmod 666 /dev/stdout 2>/dev/null && echo opened; echo printed >>/dev/stdout";
    for id in [0, 1000] {
        let mut plan = shim.plan(&["sh", "-c", script]);
        (plan.uid, plan.gid) = (id, id);
        let text = shim.run(&plan).await.unwrap().1;
        let lines: Vec<&str> = text.lines().filter(|line| !line.contains("can't open")).collect();
        assert_eq!(lines, ["printed"], "uid {id}");
    }
}

async fn secrets_arrive(shim: &Shim) {
    assert_eq!(shim.sh("echo $TOKEN; cat /run/secrets/token").await, format!("{SECRET}\n{SECRET}"));
    let rights = shim.sh("stat -c '%a %u %g' /run/secrets /run/secrets/token; id -u; id -G").await;
    assert_eq!(rights, "500 1000 1001\n400 1000 1001\n1000\n1001 4\n");
    assert_eq!(shim.sh("chmod 644 /run/secrets/token 2>/dev/null || echo locked").await, "locked\n");
}

/// A workload of either kind tries to be there before the new file, to keep the old one and to find a way to where files are written.
async fn secrets_change(shim: &Shim) {
    let script = "cd /run/secrets; exec 3<token; \
                  for call in 'ln -s /tmp .new' 'cp /bin/cat .new' 'rm -f token' 'mv token other' 'touch .new' \
                  'mount -o remount,rw /run/secrets' 'chmod 777 .'; do busybox $call 2>/dev/null && echo $call; done; \
                  echo ready; until [ -s later ]; do busybox usleep 20000; done; \
                  read line <&3; echo kept $line; cat token; echo; stat -c '%n %a %u %g' *; busybox ls -A; \
                  busybox find / -xdev -name .new 2>/dev/null; (echo x >token) 2>/dev/null || echo locked";
    for (uid, mode) in [(0, 444), (1000, 400)] {
        let mut plan = shim.plan(&["sh", "-c", script]);
        (plan.uid, plan.gid) = (uid, uid);
        let mut delivery = shim.delivery();
        delivery.files.push(("later".into(), Zeroizing::default()));
        let (mut container, mut output) = launch::start(INIT, &plan, &delivery, None).await.unwrap();
        let mut ready = [0; 6];
        output.stdout.read_exact(&mut ready).await.unwrap();
        assert_eq!(&ready, b"ready\n", "{uid}");
        for content in ["short", "a longer value than that one was"] {
            container.replace_secret("token", content.as_bytes()).unwrap();
        }
        // It is no file that a container may have.
        assert!(container.replace_secret("none/such", b"x").is_err());
        container.replace_secret("later", b"go on").unwrap();
        let mut text = String::new();
        output.stdout.read_to_string(&mut text).await.unwrap();
        assert_eq!(container.ended().await.unwrap(), End::Exited(0), "{text}");
        let expected = format!(
            "kept {SECRET}\na longer value than that one was\nlater {mode} {uid} {uid}\ntoken {mode} {uid} {uid}\nlater\ntoken\nlocked\n"
        );
        assert_eq!(text, expected, "{uid}");
    }
}

async fn ends_are_told(shim: &Shim) {
    let end = async |words: &[&str]| shim.run(&shim.plan(words)).await.map(|(end, _)| end);
    assert_eq!(end(&["sh", "-c", "exit 7"]).await.unwrap(), End::Exited(7));
    assert_eq!(end(&["sh", "-c", "kill -9 $$"]).await.unwrap(), End::Signalled(9));
    for (program, expected) in [("nothing", 127), ("/nothing", 127), ("/run", 126)] {
        let failed = end(&[program]).await.unwrap_err();
        assert!(
            matches!(&failed, LaunchError::Failed { code, .. } if *code == expected),
            "{program}: {failed}"
        );
    }
    // What the workload leaves behind ends with it.
    let text = shim.sh("sleep 99 & (sleep 0.1 & :); sleep 0.5; ps | busybox grep -c '\\[sleep\\]'; :").await;
    assert_eq!(text, "0\n", "orphans are taken in");
    let plan = shim.plan(&["sleep", "99"]);
    let (mut container, _output) = launch::start(INIT, &plan, &shim.delivery(), None).await.unwrap();
    assert!(Path::new(&format!("/proc/{}", container.pid().unwrap())).exists());
    container.signal(15);
    assert_eq!(container.ended().await.unwrap(), End::Signalled(15));
    assert_eq!(container.pid(), None);
    let (mut container, _output) = launch::start(INIT, &plan, &shim.delivery(), None).await.unwrap();
    container.kill();
    assert_eq!(container.ended().await.unwrap(), End::Signalled(9));
}

async fn network(shim: &Shim) {
    let resolver = Resolver::bind(resolver::ADDRESS).await.unwrap();
    let mut names = Names::default();
    names.add("db", "10.1.1.2".parse().unwrap());
    resolver.serve(tokio::sync::watch::channel(names).1, None);
    let resolv_conf = shim.sh("cat /etc/resolv.conf").await;
    assert_eq!(resolv_conf, "nameserver 127.0.0.11\noptions ndots:0\n");
    let lookup = async |name: &str| {
        let script = format!("busybox nslookup -type=a {name} | busybox grep -v '#53\\|:53'; :");
        shim.sh(&script).await
    };
    assert!(lookup("db").await.contains("Address: 10.1.1.2"), "{}", lookup("db").await);
    assert!(lookup("DB").await.contains("Address: 10.1.1.2"));
    let unknown = lookup("web").await;
    assert!(unknown.contains("NXDOMAIN") && !unknown.contains("Address"), "{unknown}");
    // Any user listens at any port, but not at the resolver's.
    let listen = async |address: &str| {
        let serve = format!(
            "(busybox httpd -f -p {address} -h /run 2>&1 & sleep 0.5; kill $! 2>/dev/null && echo listens)"
        );
        shim.sh(&format!("{serve}; :")).await
    };
    assert_eq!(listen("127.0.0.1:80").await, "listens\n");
    for taken in ["53", "127.0.0.11:53"] {
        let said = listen(taken).await;
        assert!(said.contains("Address already in use"), "{taken}: {said}");
    }
    // And nobody brings another interface or address about.
    for attempt in [
        "ip link add x type dummy",
        "ip address add 10.9.9.9/8 dev lo",
        "ifconfig lo down",
        "route add default lo",
    ] {
        let said = shim.sh(&format!("busybox {attempt} 2>&1 && echo done; :")).await;
        assert!(said.contains("not permitted"), "{attempt}: {said}");
    }
}

async fn walls(shim: &Shim) {
    let text = shim.sh("busybox pwd; busybox hostname; cat /etc/hosts; echo x >/tmp/x && echo tmp; echo again >/dev/stdout").await;
    assert_eq!(text, "/work\nweb\n127.0.0.1 localhost web\ntmp\nagain\n");
    assert_eq!(
        shim.sh("busybox ls /sys /sys/devices/system").await,
        "/sys:\ndevices\n\n/sys/devices/system:\ncpu\n"
    );
    let devices = shim.sh("busybox ls /dev; busybox ls /proc >/tmp/p; busybox grep -c '^[0-9]' /tmp/p").await;
    assert!(
        devices.starts_with(
            "fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n"
        ),
        "{devices}"
    );
    assert!(devices.ends_with("\n3\n"), "init, the shell and ls are all there is: {devices}");
    assert_eq!(
        shim.sh("cat /proc/keys /proc/kallsyms /proc/vmstat; busybox ls /proc/acpi /proc/driver")
            .await
            .replace("/proc/acpi:\n\n/proc/driver:\n", ""),
        ""
    );
    let memory = shim.sh("grep ^Mem /proc/meminfo; (echo x >/proc/meminfo) 2>/dev/null || echo locked").await;
    assert_eq!(
        memory,
        "MemTotal:         262144 kB\nMemFree:          262144 kB\nMemAvailable:     262144 kB\nlocked\n"
    );
    let mut plan =
        shim.plan(&["sh", "-c", "(echo x >/new) 2>/dev/null || echo locked; echo x >/tmp/x && echo tmp"]);
    (plan.uid, plan.gid, plan.read_only) = (0, 0, true);
    assert_eq!(shim.run(&plan).await.unwrap().1, "locked\ntmp\n");
}

/// The plan of a shell of root's under a profile.
fn profiled(shim: &Shim, profile: Declared, script: &str) -> Plan {
    Plan { uid: 0, gid: 0, profile, ..shim.plan(&["sh", "-c", script]) }
}

async fn profiles(shim: &Shim) {
    let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let paths = |read: &[&str], write: &[&str], execute: &[&str]| Declared {
        system_calls: None,
        paths: Some(Paths { read: owned(read), write: owned(write), execute: owned(execute) }),
    };
    let usual = || {
        let read = ["/etc/passwd", "/tmp", "/work", "/proc", "/dev/null"];
        paths(&read, &["/tmp", "/work", "/dev/null"], &["/bin/busybox"])
    };
    let run = async |profile: Declared, script: &str| {
        let (end, text) = shim.run(&profiled(shim, profile, script)).await.unwrap();
        assert_eq!(end, End::Exited(0), "{script}: {text}");
        text
    };
    // What it names works, in what the program starts, too.
    let script = "busybox head -c 5 /etc/passwd; echo x >/tmp/x; (cat /tmp/x &) | cat; exec 3</etc/passwd; \
                  busybox head -c 4 /proc/self/fd/3; busybox rm /tmp/x; busybox mkdir /tmp/d && echo made";
    assert_eq!(run(usual(), script).await, "root:x\nrootmade\n");
    // And nothing else does, however it is called: links of both kinds, /proc, renaming, a loader, a child.
    let attacks = [
        "cat /etc/hosts",
        "cat /tmp/../etc/hosts",
        "cat /proc/self/root/etc/hosts",
        "cat /proc/1/root/etc/hosts",
        "cat /proc/self/cwd/../etc/hosts",
        "busybox ln -s /etc/hosts /tmp/s && cat /tmp/s",
        "busybox ln /etc/hosts hard && cat hard",
        "busybox ln /etc/passwd /etc/again",
        "busybox mv /script moved && cat moved",
        "busybox mount --bind /etc /tmp && cat /tmp/hosts",
        "busybox unshare -m busybox true",
        "busybox chroot / busybox cat /etc/hosts",
        "busybox ls /etc",
        "(cat /etc/hosts & wait $!)",
        "busybox setsid cat /etc/hosts",
        "echo x >/etc/passwd",
        "echo x >/new",
        "busybox truncate -s 0 /etc/passwd",
        "busybox rm /etc/passwd",
        "busybox mkdir /had2/d",
        "/bin/bash -c :",
        "/lib64/ld-linux-x86-64.so.2 /bin/bash -c :",
        "cp /bin/busybox /tmp/b && /tmp/b true",
        "busybox mknod /tmp/n c 1 3",
        "cat /run/secrets/token",
    ];
    for attack in attacks {
        let text = run(usual(), &format!("{{ {attack}; }} >/dev/null 2>/dev/null && echo done; :")).await;
        assert_eq!(text, "", "{attack}");
        // The same is possible without a profile, unless it is closed to all.
        let closed = ["mount", "unshare", "chroot / ", "/tmp/b", "mknod", "/1/root"];
        if !closed.iter().any(|word| attack.contains(word)) {
            let script = format!("{{ {attack}; }} >/dev/null 2>/dev/null && echo done; :");
            assert_eq!(run(Declared::default(), &script).await, "done\n", "{attack}");
        }
    }
    // Two services of one image: each has its own.
    let one = run(paths(&["/script"], &[], &["/bin/busybox"]), "cat /script | busybox wc -l");
    let other = run(paths(&["/etc/hosts"], &[], &["/bin/busybox"]), "cat /script; cat /etc/hosts");
    let (one, other) = tokio::join!(one, other);
    assert_eq!(one, "2\n");
    assert!(other.contains("/script") && other.contains("127.0.0.1 localhost web\n"), "{other}");

    system_calls(shim, &run).await;

    // A profile that names too little is told, and starts nothing.
    let failed = async |profile: Declared, words: &[&str]| {
        let plan = Plan { profile, ..shim.plan(words) };
        match shim.run(&plan).await {
            Err(LaunchError::Failed { code, reason }) => (code, reason),
            other => panic!("{words:?}: {other:?}"),
        }
    };
    let none = || Some(std::collections::BTreeSet::new());
    let (code, said) = failed(Declared { system_calls: none(), ..Declared::default() }, &["missing"]).await;
    assert!(code == 127 && said.contains("missing"), "{code} {said}");
    let (code, said) = failed(paths(&["/"], &[], &["/bin/busybox"]), &["bash", "-c", ":"]).await;
    assert!(code == 126 && said.contains("Permission denied"), "{code} {said}");
    let closed = Declared { system_calls: none(), ..usual() };
    let (end, _) = shim.run(&profiled(shim, closed, "echo alive")).await.unwrap();
    assert_ne!(end, End::Exited(0));
    // What is not there stays closed, and a link, which a workload can make in a volume, opens nothing elsewhere.
    let text = run(paths(&["/new"], &["/new"], &["/bin/busybox"]), "echo x >/new || echo no").await;
    assert!(text.contains("Permission denied") && text.lines().any(|line| line == "no"), "{text}");
    let data = volume(shim, "profiled", MsFlags::empty(), "1m");
    let script = "busybox ln -s /etc /data/up; busybox ln -s /etc/hosts /data/file; echo linked";
    let mut plan = seeing(shim, &[(&data, "/data", false)], script);
    assert_eq!(shim.run(&plan).await.unwrap().1, "linked\n");
    for path in ["/data/up", "/data/up/hosts", "/data/file"] {
        plan.profile = paths(&[path], &[], &["/bin/busybox"]);
        let Err(LaunchError::Failed { code: 126, reason }) = shim.run(&plan).await else { panic!("{path}") };
        assert!(reason.contains(path) && reason.contains("a symbolic link"), "{reason}");
    }
    // A probe is under it as well.
    let words = ["sh", "-c", "cat /etc/hosts"].map(str::to_owned);
    let plan = Plan { probe: Some(words.into()), ..profiled(shim, usual(), "busybox sleep 99") };
    let (mut container, _output) = launch::start(INIT, &plan, &shim.delivery(), None).await.unwrap();
    let mut prober = container.prober().unwrap();
    let answer = probe(&Test::Program(Vec::new()), Some(&mut prober), None, Duration::from_secs(20)).await;
    let said = String::from_utf8(answer.output).unwrap();
    assert!(!answer.succeeded && said.contains("Permission denied"), "{said}");
}

/// The calls of a profile: all that services have but some, and some that no service has.
async fn system_calls(shim: &Shim, run: &impl AsyncFn(Declared, &str) -> String) {
    let without = |names: &[&str], more: &[&str]| {
        let kept = known_system_calls().iter().filter(|call| !names.contains(&call.as_str())).cloned();
        let calls = kept.chain(more.iter().map(|call| (*call).to_owned())).collect();
        Declared { system_calls: Some(calls), paths: None }
    };
    let script =
        "busybox mkdir /tmp/d 2>&1; busybox nc 127.0.0.1 1 2>&1 </dev/null; echo x >/tmp/x && cat /tmp/x";
    let text = run(without(&["mkdir", "mkdirat", "socket"], &[]), script).await;
    assert_eq!(text.matches("Operation not permitted").count(), 2, "{text}");
    assert!(text.ends_with("x\n"), "{text}");
    let text = run(without(&[], &[]), script).await;
    assert!(!text.contains("not permitted") && text.contains("refused"), "{text}");
    // Names that somebody put there past the declaration open nothing.
    let wide = || without(&[], &["mount", "bpf", "unshare", "clone3", "io_uring_setup", "ptrace"]);
    for script in ["busybox mount -t tmpfs none /tmp", "busybox unshare -r busybox true"] {
        let text = run(wide(), &format!("{script} 2>&1 || :")).await;
        // busybox has words of its own for it.
        let refused = ["not permitted", "permission denied (are you root?)"];
        assert!(refused.iter().any(|words| text.contains(words)), "{text}");
    }
    // What is started goes on under it, whoever starts it.
    let plan =
        Plan { uid: 1000, ..profiled(shim, without(&["chdir"], &[]), "busybox setsid sh -c 'cd /; pwd'") };
    assert_ne!(shim.run(&plan).await.unwrap().1, "/\n");
}

/// A file system in the role of a volume, as PID 1 mounts one.
fn volume(shim: &Shim, name: &str, flags: MsFlags, size: &str) -> PathBuf {
    let path = shim.folder.join(name);
    fs::create_dir(&path).unwrap();
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | flags;
    let options = format!("mode=755,uid=0,gid=0,size={size}");
    mount(Some("volume"), &path, Some("tmpfs"), flags, Some(options.as_str())).unwrap();
    path
}

/// The same once more, read-only.
fn again(shim: &Shim, of: &Path, name: &str) -> PathBuf {
    let path = shim.folder.join(name);
    fs::create_dir(&path).unwrap();
    let none = None::<&str>;
    mount(Some(of), &path, none, MsFlags::MS_BIND, none).unwrap();
    let flags =
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(none, &path, none, flags, none).unwrap();
    path
}

/// The plan of a service that sees these, as root.
fn seeing(shim: &Shim, volumes: &[(&Path, &str, bool)], script: &str) -> Plan {
    let mut plan = shim.plan(&["sh", "-c", script]);
    (plan.uid, plan.gid) = (0, 0);
    let volume = |(source, target, read_only): &(&Path, &str, bool)| Volume {
        source: source.to_path_buf(),
        target: (*target).to_owned(),
        read_only: *read_only,
    };
    plan.volumes = volumes.iter().map(volume).collect();
    plan
}

async fn volumes(shim: &Shim) {
    let path = volume(shim, "volume", MsFlags::empty(), "1m");
    let reader = again(shim, &path, "reader");
    let run = async |volumes: &[(&Path, &str, bool)], script: &str| {
        let (end, text) = shim.run(&seeing(shim, volumes, script)).await.unwrap();
        assert_eq!(end, End::Exited(0), "{script}: {text}");
        text
    };
    let data: &[(&Path, &str, bool)] = &[(&path, "/had", false)];
    let look = "cd /; stat -c '%n %u:%g %a' had had/a had/sub had/sub/x; busybox readlink had/link; \
                cat had/link; busybox ls -A had";
    let taken = run(data, look).await;
    let expected = "had 1000:1000 750\nhad/a 0:0 640\nhad/sub 1000:1000 700\nhad/sub/x 0:0 755\na\n\
                    of the imagea\nlink\nsub\n";
    assert_eq!(taken, expected);
    // What is changed stays, and comes from the image no more.
    run(data, "echo mine >/had/a; busybox rm -r /had/sub; echo new >/had/new; busybox chmod 711 /had").await;
    assert_eq!(
        run(data, "cat /had/a /had/new; busybox ls -A /had; stat -c %a /had").await,
        "mine\nnew\na\nlink\nnew\n711\n"
    );
    // Shared: the other service sees it at its own path, and what it may not write to it does not.
    let both: &[(&Path, &str, bool)] = &[(&reader, "/srv/made/here", true)];
    let script = "cat /srv/made/here/a; (echo x >/srv/made/here/a) 2>/dev/null || echo refused; \
                  busybox mount -o remount,rw /srv/made/here 2>/dev/null || echo refused; cat /had/a";
    assert_eq!(run(both, script).await, "mine\nrefused\nrefused\nof the image");
    // A service without it sees the image's own directory, and the place outside is not there.
    let outside = format!("cat /had/a; cat {}/a 2>/dev/null || echo nothing", path.display());
    assert_eq!(run(&[], &outside).await, "of the imagenothing\n");

    // A copy that was cut off is made anew; a mark that a workload made is no mark.
    let cut = volume(shim, "cut", MsFlags::empty(), "1m");
    let mark = cut.join(".cofferdam-unfinished");
    for (owner, expected) in [(OUTSIDE_ID, "a\nlink\nsub\n"), (1000, ".cofferdam-unfinished\nhalf\n")] {
        run(&[(&cut, "/cut", false)], "busybox rm -rf /cut/* /cut/.[!.]*; echo x >/cut/half").await;
        fs::create_dir(&mark).unwrap();
        chown(&mark, Some(owner), Some(owner)).unwrap();
        assert_eq!(run(&[(&cut, "/had", false)], "busybox ls -A /had").await, expected, "{owner}");
    }
    fs::remove_dir(&mark).unwrap();
    fs::remove_file(cut.join("half")).unwrap();
    fs::create_dir(&mark).unwrap();
    let empty = run(&[(&cut, "/had", false)], "busybox ls -A /had").await;
    assert_eq!(empty, "a\nlink\nsub\n", "a mark alone, whose owner was not set yet");

    // One that is too small says so, and half of it never counts.
    let small = volume(shim, "small", MsFlags::empty(), "12k");
    for _ in 0..2 {
        let failed = shim.run(&seeing(shim, &[(&small, "/bin", false)], "")).await.unwrap_err();
        assert!(
            matches!(&failed, LaunchError::Failed { code: 126, reason } if reason.contains("volume at /bin") && reason.contains("No space")),
            "{failed}"
        );
    }
    assert!(small.join(".cofferdam-unfinished").exists());
}

async fn walls_of_volumes(shim: &Shim) {
    let path = volume(shim, "walls", MsFlags::empty(), "4m");
    let script = "cd /v; for call in 'mknod null c 1 3' 'mknod disk b 252 0' 'mount -o remount,suid,dev /v' 'umount /v' \
                  'chown 65535 .' 'mount -t tmpfs none /v'; do busybox $call 2>/dev/null && echo $call; done; \
                  cp /bin/busybox . && busybox chmod 6755 busybox; grep ' /v ' /proc/mounts";
    let (_, text) = shim.run(&seeing(shim, &[(&path, "/v", false)], script)).await.unwrap();
    assert!(text.starts_with("volume /v tmpfs rw,nosuid,nodev,") && text.lines().count() == 1, "{text}");
    // A program that would be root's is its caller's, for whoever executes it.
    let mut plan =
        seeing(shim, &[(&path, "/v", false)], "/v/busybox id -u; /v/busybox grep Cap /proc/self/status");
    (plan.uid, plan.gid) = (1000, 1001);
    let (_, text) = shim.run(&plan).await.unwrap();
    assert!(text.starts_with("1000\n") && !text.contains("CapPrm:\t00000000000005fb"), "{text}");
    // Without leave nothing in it is executed, not by its interpreter's or loader's name either.
    let none = volume(shim, "noexec", MsFlags::MS_NOEXEC, "4m");
    let script = "cp /bin/busybox /bin/bash /script /v; for it in '/v/busybox true' /v/script '/lib64/ld-linux-x86-64.so.2 /v/bash'; do \
                  $it 2>/dev/null && echo $it; done; :";
    assert_eq!(shim.run(&seeing(shim, &[(&none, "/v", false)], script)).await.unwrap().1, "");

    // Links of the image lead to the image's own directories and no further.
    let text = shim
        .run(&seeing(shim, &[(&path, "/linked/below", false)], "busybox ls /had2/below /linked/below"))
        .await
        .unwrap()
        .1;
    assert_eq!(text, "/had2/below:\nbusybox\n\n/linked/below:\nbusybox\n");
    let reason = async |volumes: &[(&Path, &str, bool)]| match shim
        .run(&seeing(shim, volumes, "echo started"))
        .await
    {
        Err(LaunchError::Failed { code: 126, reason }) => reason,
        other => panic!("{other:?}"),
    };
    for target in ["/to-proc", "/up", "/up/dev/shm", "/up/run/secrets"] {
        let said = reason(&[(&path, target, false)]).await;
        assert!(said.contains(target) && said.contains("a path of the appliance's own"), "{said}");
    }
    // A link that lies in a volume is not followed to another: whoever shares that volume may have made it.
    run_ok(shim, &seeing(shim, &[(&path, "/v", false)], "busybox ln -s /bin /v/inner")).await;
    let said = reason(&[(&path, "/v", false), (&none, "/v/inner", false)]).await;
    assert!(said.contains("/v/inner") && said.contains("symbolic links"), "{said}");
    let script = "busybox rm /v/inner; busybox mkdir /v/inner";
    run_ok(shim, &seeing(shim, &[(&path, "/v", false)], script)).await;
    let nested = [(path.as_path(), "/v", false), (none.as_path(), "/v/inner", false)];
    assert_eq!(run_ok(shim, &seeing(shim, &nested, "busybox ls /v/inner")).await, "bash\nbusybox\nscript\n");
    // Secrets lie above everything.
    let script = "cat /run/secrets/token; busybox ls /v";
    let text = run_ok(shim, &seeing(shim, &[(&path, "/run/v", false), (&path, "/v", false)], script)).await;
    assert_eq!(text, format!("{SECRET}busybox\ninner\n"));
}

/// A plan and a delivery with these configs: target, mode, content.
fn configured(shim: &Shim, plan: Plan, configs: &[(&str, u32, &str)]) -> (Plan, Delivery) {
    let config = |(target, mode, _): &(&str, u32, &str)| Config {
        target: (*target).to_owned(),
        uid: 1000,
        gid: 1001,
        mode: *mode,
    };
    let content = |(target, _, text): &(&str, u32, &str)| {
        ((*target).to_owned(), Zeroizing::new(text.as_bytes().to_vec()))
    };
    let delivery = Delivery { configs: configs.iter().map(content).collect(), ..shim.delivery() };
    (Plan { configs: configs.iter().map(config).collect(), ..plan }, delivery)
}

async fn configs(shim: &Shim) {
    let run = async |plan: Plan, configs: &[(&str, u32, &str)]| {
        let (plan, delivery) = configured(shim, plan, configs);
        shim.deliver(&plan, &delivery).await
    };
    let ok = async |plan: Plan, configs: &[(&str, u32, &str)]| {
        let (end, text) = run(plan, configs).await.unwrap();
        assert_eq!(end, End::Exited(0), "{text}");
        text
    };
    let data = volume(shim, "configured", MsFlags::empty(), "1m");
    let three = [
        ("/etc/passwd", 0o444, "of the config\n"),
        ("/new/dir/run.sh", 0o555, "#!/bin/sh\necho ran\n"),
        ("/data/c", 0o400, SECRET),
    ];
    let script = "cat /etc/passwd; /new/dir/run.sh; cat /data/c; stat -c ' %u:%g %a' /data/c /etc/passwd; busybox ls /run/secrets";
    let expected = format!("of the config\nran\n{SECRET} 1000:1001 400\n 1000:1001 444\ntoken\n");
    assert_eq!(ok(seeing(shim, &[(&data, "/data", false)], script), &three).await, expected);
    // As the workload's user, in a root that is read-only, and where there is no volume.
    let mut plan = shim.plan(&["sh", "-c", "cat /etc/passwd; /new/dir/run.sh"]);
    plan.read_only = true;
    plan.working_dir = "/".into();
    assert_eq!(ok(plan, &three[..2]).await, "of the config\nran\n");
    // In the volume there is a place and nothing of the content.
    assert_eq!(fs::read(data.join("c")).unwrap(), b"");
    // Root of the container writes to none, moves none away, and mounts nothing over it.
    let attack = "for it in 'busybox cp /bin/sh /etc/passwd' 'busybox rm -f /etc/passwd' 'busybox mv /etc/passwd /x' 'chmod 777 /etc/passwd' \
                  'busybox chown 0 /data/c' 'busybox umount /etc/passwd' 'busybox mount -o remount,rw /etc/passwd' 'busybox rm -f /data/c'; do \
                  $it 2>/dev/null && echo $it; done; (echo x >>/etc/passwd) 2>/dev/null && echo appended; cat /etc/passwd";
    assert_eq!(ok(seeing(shim, &[(&data, "/data", false)], attack), &three).await, "of the config\n");

    let reason = async |plan: Plan, target: &str| match run(plan, &[(target, 0o444, SECRET)]).await {
        Err(LaunchError::Failed { code: 126, reason }) => reason,
        other => panic!("{target}: {other:?}"),
    };
    let plain = || seeing(shim, &[], "echo started");
    for (target, why) in [
        ("/to-proc/kernel/core_pattern", "a path of the appliance's own"),
        ("/up/dev/null", "a path of the appliance's own"),
        ("/up/etc/hosts", "a path of the appliance's own"),
        ("/had", "is no file"),
        ("/etc/passwd/x", "File exists"),
    ] {
        let said = reason(plain(), target).await;
        assert!(said.contains(target.rsplit_once('/').unwrap().0) && said.contains(why), "{target}: {said}");
        assert!(!said.contains(SECRET));
    }
    // Whoever shares a volume lays links and pipes where the config goes.
    let with_data = || seeing(shim, &[(&data, "/data", false)], "echo started");
    run_ok(
        shim,
        &seeing(
            shim,
            &[(&data, "/data", false)],
            "cd /data; busybox ln -s /bin l; busybox ln -s /bin/sh f; busybox mkfifo p",
        ),
    )
    .await;
    for (target, why) in
        [("/data/l/sh", "symbolic links"), ("/data/f", "symbolic links"), ("/data/p", "is no file")]
    {
        let said = reason(with_data(), target).await;
        assert!(said.contains(why), "{target}: {said}");
    }
    // A content that was not delivered is no empty file.
    let (plan, delivery) = configured(shim, plain(), &[("/c", 0o444, "x")]);
    let delivery = Delivery { configs: Vec::new(), ..delivery };
    let missing = shim.deliver(&plan, &delivery).await;
    assert!(
        matches!(&missing, Err(LaunchError::Failed { reason, .. }) if reason.contains("not delivered")),
        "{missing:?}"
    );
}

async fn run_ok(shim: &Shim, plan: &Plan) -> String {
    let (end, text) = shim.run(plan).await.unwrap();
    assert_eq!(end, End::Exited(0), "{text}");
    text
}

/// Starts a container, says which process it is, and waits to be killed.
fn sleeper(runtime: &tokio::runtime::Runtime, shim: &Shim) {
    runtime.block_on(async {
        let plan = shim.plan(&["sleep", "99"]);
        let (container, _output) = launch::start(INIT, &plan, &shim.delivery(), None).await.unwrap();
        let noted = shim.folder.join("pid.new");
        fs::write(&noted, container.pid().unwrap().to_string()).unwrap();
        fs::rename(noted, shim.folder.join("pid")).unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
    });
}
