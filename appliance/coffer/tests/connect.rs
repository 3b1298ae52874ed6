//! `coffer connect`, and the requests of the verbs that dial, with an appliance and a GitHub on loopback, in real time.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod world;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use world::appliance::{Mood, Simulated};
use world::{REPOSITORY, World, said};

/// `coffer connect` and where it listens.
struct Connect {
    process: Child,
    address: String,
}

impl Drop for Connect {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Connect {
    fn start(world: &World, more: &[&str]) -> Self {
        let mut command = world.command(&[&["connect", REPOSITORY, "--json"], more].concat());
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        let Some(address) = event["address"].as_str() else {
            let mut said = String::new();
            process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("{line}{said}");
        };
        Self { address: address.to_owned(), process }
    }

    /// One request on a connection of its own: whether it is answered.
    fn request(&self) -> bool {
        self.open().is_some_and(|mut stream| ask(&mut stream))
    }

    fn open(&self) -> Option<TcpStream> {
        let stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Some(stream)
    }

    /// Waits for the end; the exit code and what was said on stderr.
    fn ended(&mut self, within: Duration) -> (i32, String) {
        let end = Instant::now() + within;
        while self.process.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "connect does not end");
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut said = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.process.wait().unwrap().code().unwrap(), said)
    }
}

fn ask(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 64];
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").is_ok()
        && stream.read(&mut answer).is_ok_and(|count| answer[..count].starts_with(b"HTTP/1.1 200"))
}

fn sleep(seconds: u64) {
    std::thread::sleep(Duration::from_secs(seconds));
}

#[test]
fn a_hanging_github_delays_no_client_and_a_changed_default_branch_ends_it() {
    let appliance = Simulated::start();
    let Some(world) = appliance.world(36) else { return };
    let mut connect = Connect::start(&world, &["--timeout", "5s"]);
    let begun = Instant::now();
    let mut open = connect.open().unwrap();
    assert!(ask(&mut open) && connect.request());
    world.faults(json!([{ "path": ".", "delay": 600, "times": 1000 }]));
    // Renewed at 24 s: that hangs now.
    while begun.elapsed() < Duration::from_secs(25) {
        assert!(connect.request());
        sleep(1);
    }
    let before = Instant::now();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(|| connect.request())).collect();
        assert!(clients.into_iter().all(|client| client.join().unwrap()));
    });
    assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
    // It comes back, and says that the default branch declares something else.
    world.declare("bob");
    world.faults(json!([]));
    let (code, said) = connect.ended(Duration::from_secs(25));
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("gave up") || said.contains("no answer in"), "{said}");
    assert!(said.contains("is served on the last evidence"), "{said}");
    assert!(said.contains("default branch"), "{said}");
    assert!(!connect.request(), "nobody listens");
    assert!(!ask(&mut open), "the stream is cut");
}

#[test]
fn evidence_that_is_none_or_of_another_channel_ends_it() {
    for (mood, words) in [(Mood::Html, "malformed"), (Mood::OtherChannel, "channel_binding")] {
        let appliance = Simulated::start();
        let Some(world) = appliance.world(6) else { return };
        for more in [&[][..], &["--endpoint", &appliance.endpoint]] {
            appliance.set(Mood::Honest);
            let mut connect = Connect::start(&world, more);
            assert!(connect.request());
            appliance.set(mood);
            let (code, said) = connect.ended(Duration::from_secs(15));
            assert_eq!(code, 3, "{mood:?} {more:?}: {said}");
            assert!(said.contains(words), "{mood:?}: {said}");
        }
    }
}

#[test]
fn a_commit_that_is_gone_from_the_history_ends_it() {
    let appliance = Simulated::start();
    let Some(world) = appliance.world(6) else { return };
    let mut connect = Connect::start(&world, &[]);
    assert!(connect.request());
    world.git(&["checkout", "-q", "--orphan", "rewritten"]);
    world.declare("alice");
    world.git(&["branch", "-q", "-M", "rewritten", "main"]);
    let (code, said) = connect.ended(Duration::from_secs(15));
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("not in the history"), "{said}");
}

#[test]
fn an_appliance_that_is_busy_is_an_outage_and_ends_nothing_but_what_has_expired() {
    let appliance = Simulated::start();
    let Some(world) = appliance.world(18) else { return };
    let mut connect = Connect::start(&world, &["--timeout", "3s"]);
    let mut open = connect.open().unwrap();
    assert!(ask(&mut open));
    appliance.set(Mood::Busy);
    sleep(13);
    assert!(ask(&mut open) && connect.request(), "within the validity");
    sleep(7);
    assert!(!ask(&mut open), "the evidence has expired");
    assert!(!connect.request());
    appliance.set(Mood::Honest);
    let end = Instant::now() + Duration::from_secs(30);
    while !connect.request() {
        assert!(Instant::now() < end, "it serves again when it is renewed");
        sleep(1);
    }
    connect.process.kill().unwrap();
    let mut said = String::new();
    connect.process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("expires in") && said.contains("1 open streams end then"), "{said}");
}

#[test]
fn evidence_is_served_on_no_longer_than_the_policy_accepts_its_age() {
    let appliance = Simulated::start();
    // Its claims are valid for an hour.
    let Some(world) = appliance.world(3600) else { return };
    let policy = world.at("policy.json");
    std::fs::write(&policy, r#"{ "version": 1, "extends": "default", "max_age_s": 12 }"#).unwrap();
    let policy = policy.to_str().unwrap();
    let connect =
        Connect::start(&world, &["--timeout", "3s", "--endpoint", &appliance.endpoint, "--policy", policy]);
    let mut open = connect.open().unwrap();
    assert!(ask(&mut open));
    appliance.set(Mood::Busy);
    sleep(8);
    assert!(ask(&mut open) && connect.request(), "younger than the policy accepts");
    sleep(6);
    assert!(!ask(&mut open) && !connect.request(), "older");
    appliance.set(Mood::Honest);
    let end = Instant::now() + Duration::from_secs(30);
    while !connect.request() {
        assert!(Instant::now() < end, "it serves again when it is renewed");
        sleep(1);
    }
}

#[test]
fn github_is_not_asked_again_before_the_time_that_it_named() {
    let appliance = Simulated::start();
    let Some(world) = appliance.world(12) else { return };
    let mut connect = Connect::start(&world, &[]);
    world.asked();
    let limited = json!({ "path": "/releases$", "status": 403, "times": 1, "body": "{}", "headers": { "Retry-After": "100" } });
    world.faults(json!([limited]));
    // Renewed at 8 s; from then on it would answer again.
    sleep(11);
    assert!(world.asked().iter().any(|entry| entry["status"] == 403));
    sleep(12);
    let asked = world.asked();
    assert!(asked.is_empty(), "{asked:?}");
    assert!(connect.process.try_wait().unwrap().is_none(), "an outage ends nothing");
}

#[test]
fn secret_put_asks_what_verify_asks_and_not_twice() {
    let appliance = Simulated::start();
    let Some(world) = appliance.world(3600) else { return };
    let key = world.at("operator.key");
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key)
        .status();
    assert!(made.unwrap().success());
    let key = key.to_str().unwrap();
    let put = |more: &[&str]| {
        let arguments = ["secret", "put", REPOSITORY, "demo/greeting/value", "-v", "--key", key];
        let mut command = world.command(&[&arguments, more].concat());
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        process.stdin.take().unwrap().write_all(b"value").unwrap();
        let output = process.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert!(said(&output).contains("API requests"), "{}", said(&output));
        world.counted()
    };
    let (cold, warm) = (put(&[]), put(&[]));
    assert!(cold[0] <= 4 && warm[0] == 1, "{cold:?} {warm:?}");
    assert_eq!((cold[1], warm[1], warm[2]), (1, 1, 0));
    world.forget();
    let endpoint = ["--endpoint", &appliance.endpoint];
    let (cold_at, warm_at) = (put(&endpoint), put(&endpoint));
    // How the commit is related to the branch's head, and the declaration at both.
    assert!(cold_at[0] == 3 && warm_at[0] == 0, "{cold_at:?} {warm_at:?}");
    eprintln!(
        "secret put: cold {cold:?}, warm {warm:?}; with --endpoint {cold_at:?}, {warm_at:?} (API, git, storage)"
    );
}

#[test]
fn with_a_key_services_know_who_calls_and_an_appliance_that_does_not_is_called_all_the_same() {
    let appliance = Simulated::start();
    let Some(world) = appliance.world(600) else { return };
    let key = world.at("operator.key");
    let mut ssh_keygen = std::process::Command::new("ssh-keygen");
    let made = ssh_keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key);
    assert!(made.status().unwrap().success());
    let key = key.to_str().unwrap();
    let answer = |connect: &Connect| {
        let mut stream = connect.open().unwrap();
        assert!(ask(&mut stream));
        stream.write_all(b"GET /two HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    let signed = Connect::start(&world, &["--key", key]);
    assert!(answer(&signed).contains("hello an operator"), "the whole connection is theirs");
    let anybody = Connect::start(&world, &[]);
    assert!(answer(&anybody).contains("hello nobody"));
    appliance.set(Mood::Strange);
    let mut stranger = Connect::start(&world, &["--key", key]);
    for _ in 0..2 {
        assert!(answer(&stranger).contains("hello nobody"));
    }
    let _ = stranger.process.kill();
    let mut said = String::new();
    stranger.process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said.matches("nobody is signed in from now on").count(), 1, "{said}");
}
