//! `coffer keyserve` as an appliance meets it: evidence of the simulated device, over its port.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod world;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::keyserve::{self as sealing, Kek};
use cofferdam_attest::operator::generate_vault_key;
use cofferdam_attest::reference::Half;
use cofferdam_protocol::keyserve::{
    EpochAck, EpochReport, NONCE, NonceReply, RELEASE, REPORT, ReleaseAnswer, Witnessed,
};
use cofferdam_protocol::upgrade::{SignedStatement, Statement, Successor};
use cofferdam_protocol::{Base64Array, Fingerprint, OperatorKey, Repository, base64};
use ed25519_dalek::{Signature, VerifyingKey};
use serde_json::Value;
use tdx_sim::CollateralOptions;
use world::{REPOSITORY, Told, World};
use zeroize::Zeroizing;

/// A world with a repository, and a key server that knows it.
struct Place {
    world: World,
    commit: String,
    server: Option<Child>,
    address: String,
    said: Arc<Mutex<Vec<String>>>,
    more: Vec<&'static str>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A vault that waits.
struct Vault {
    private: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl Vault {
    fn new() -> Self {
        let (private, public) = generate_vault_key();
        Self { private, public }
    }
}

impl Place {
    fn new() -> Option<Self> {
        let mut world = World::new()?;
        let commit = world.declare("alice");
        world.start();
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(world.at("server"))
            .status();
        assert!(made.unwrap().success());
        let mut place = Self {
            world,
            commit,
            server: None,
            address: String::new(),
            said: Arc::default(),
            more: vec!["--root"],
        };
        place.add(&[]);
        place.start();
        Some(place)
    }

    fn keyserve(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coffer"));
        command.env_clear().env("HOME", self.world.at("home")).arg("keyserve").args(words);
        command.arg("--data").arg(self.world.at("keys"));
        command
    }

    fn run(&self, words: &[&str]) -> (i32, String) {
        let output = self.keyserve(words).output().unwrap();
        (output.status.code().unwrap(), world::said(&output))
    }

    fn add(&self, more: &[&str]) {
        let (code, text) = self.run(&[&["add", REPOSITORY], more].concat());
        assert_eq!(code, 0, "{text}");
    }

    fn serving(&self) -> Command {
        let mut command = self.keyserve(&["--json", "--listen", "127.0.0.1:0"]);
        command.arg("--key").arg(self.world.at("server")).args(["--github-api", &self.world.api]);
        command.arg("--github-ca").arg(self.world.at("ca.pem"));
        let references = (0..3).map(|n| self.world.at(&format!("reference-{n}.json")));
        for reference in references.filter(|path| path.exists()) {
            command.arg("--reference").arg(reference);
        }
        for word in &self.more {
            match *word {
                "--root" => command.arg("--root").arg(self.world.at("root.pem")),
                word => command.arg(word),
            };
        }
        command
    }

    fn start(&mut self) {
        let mut server = self.serving().stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
        let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert!(first["error"].is_null(), "{first}");
        self.address = first["address"].as_str().unwrap().to_owned();
        self.server = Some(server);
        let said = self.said.clone();
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| said.lock().unwrap().push(line));
        });
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// The events of this name that the operator has seen.
    fn events(&self, event: &str) -> Vec<Value> {
        // A line is written after its answer was sent.
        std::thread::sleep(Duration::from_millis(100));
        let said = self.said.lock().unwrap().clone();
        let events = said.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.filter(|value| value["event"] == event).collect()
    }

    fn ask(&self, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        ask(&self.address, "POST", path, body)
    }

    fn nonce(&self) -> [u8; 32] {
        let (status, body) = self.ask(NONCE, b"");
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        serde_json::from_slice::<NonceReply>(&body).unwrap().nonce.into()
    }

    /// What an honest appliance that waits tells, with this nonce.
    fn told(&self, vault: &Vault, nonce: [u8; 32]) -> Told {
        Told {
            launched: false,
            vault_key: base64::encode(vault.public),
            nonce: Some(nonce.to_vec()),
            ..self.world.told(&self.commit, "alice", 0)
        }
    }

    fn release(&self, vault: &Vault, change: impl FnOnce(&mut Told)) -> Result<ReleaseAnswer, (u16, String)> {
        let mut told = self.told(vault, self.nonce());
        change(&mut told);
        self.send(&told.document())
    }

    fn send(&self, document: &[u8]) -> Result<ReleaseAnswer, (u16, String)> {
        answered(self.ask(RELEASE, document))
    }

    /// The key, released, verified and opened as a vault does.
    fn key(&self, vault: &Vault) -> (Kek, Option<Witnessed>) {
        let answer = self.release(vault, |_| ()).unwrap();
        let input = answer.signing_input(&repository(), &vault.public.into()).unwrap();
        assert!(self.signed(&input, &answer.signature));
        (sealing::open(&vault.private, &answer.nonce, &answer.key).unwrap(), answer.witnessed)
    }

    fn signed(&self, input: &[u8], signature: &Base64Array<64>) -> bool {
        let line = std::fs::read_to_string(self.world.at("server.pub")).unwrap();
        let public: OperatorKey = line.parse().unwrap();
        let key = VerifyingKey::from_bytes(public.public()).unwrap();
        key.verify_strict(input, &Signature::from_bytes(signature.as_bytes())).is_ok()
    }

    fn report(&self, kek: &Kek, opened: Witnessed, fresh: bool) -> Result<(), (u16, String)> {
        self.report_at(1, kek, opened, fresh)
    }

    fn report_at(
        &self,
        lineage: u64,
        kek: &Kek,
        opened: Witnessed,
        fresh: bool,
    ) -> Result<(), (u16, String)> {
        let mac = [0; 32].into();
        let mut report = EpochReport { repository: repository(), opened, fresh, lineage, mac };
        report.mac = sealing::report_mac(kek, &report).unwrap().into();
        let ack: EpochAck = answered(self.ask(REPORT, &serde_json::to_vec(&report).unwrap()))?;
        assert!(self.signed(&EpochAck::signing_input(&repository(), &opened), &ack.signature));
        Ok(())
    }
}

fn repository() -> Repository {
    REPOSITORY.parse().unwrap()
}

fn answered<T: serde::de::DeserializeOwned>((status, body): (u16, Vec<u8>)) -> Result<T, (u16, String)> {
    if status == 200 {
        return Ok(serde_json::from_slice(&body).unwrap());
    }
    let refused: Value = serde_json::from_slice(&body).unwrap();
    assert!(refused["detail"].as_str().unwrap().len() > 5, "{refused}");
    Err((status, refused["refused"].as_str().unwrap().to_owned()))
}

fn ask(address: &str, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: keys\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    // Who refuses a body may read no more of it.
    let _ = stream.write_all(body);
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let text = String::from_utf8_lossy(&all);
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let at = all.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(all.len(), |at| at + 4);
    (status, all[at..].to_vec())
}

fn state(n: u8, epoch: u64) -> Witnessed {
    Witnessed { state: [n; 16].into(), epoch, root: [epoch as u8; 32].into() }
}

fn name<T>(outcome: Result<T, (u16, String)>) -> String {
    outcome.err().map_or("released".to_owned(), |(_, name)| name)
}

#[test]
fn a_key_goes_to_an_appliance_that_waits_and_is_the_same_after_a_restart() {
    let Some(mut place) = Place::new() else { return };
    let (one, other) = (Vault::new(), Vault::new());
    let (key, known) = place.key(&one);
    assert_eq!((known, *key == [0; 32]), (None, false));
    assert_eq!(place.key(&other), (key.clone(), None), "each boot has another vault key, and the same state");
    place.report(&key, state(1, 7), true).unwrap();
    assert_eq!(place.key(&one).1, Some(state(1, 7)));
    place.restart();
    assert_eq!(place.key(&one), (key, Some(state(1, 7))));
    let released = place.events("released");
    assert_eq!(released.len(), 4);
    assert!(released.iter().all(|event| event["simulated"] == true && event["repository"] == REPOSITORY));
    assert_eq!(place.events("opened")[0]["epoch"], 7);
    // Nothing but the file has the key.
    let said = place.said.lock().unwrap().join("\n");
    let text = std::fs::read_to_string(place.world.at("keys/acme+shop.json")).unwrap();
    let (key, _) = place.key(&one);
    assert!(text.contains(&base64::encode(*key)) && !said.contains(&base64::encode(*key)));
}

#[test]
fn each_refusal_has_its_name() {
    let Some(mut place) = Place::new() else { return };
    let vault = Vault::new();
    let mallory = place.world.told(&place.commit, "mallory", 0).declaration;
    let refused = |change: &dyn Fn(&mut Told)| name(place.release(&vault, change));
    let day = 86_400;
    assert_eq!(refused(&|told| told.repository = "acme/other".into()), "repository");
    assert_eq!(refused(&|told| told.kernel = 9), "measurement");
    assert_eq!(refused(&|told| told.declaration = mallory.clone()), "declaration");
    assert_eq!(refused(&|told| told.commit = "1".repeat(40)), "declaration");
    assert_eq!(refused(&|told| told.options.out_of_date = true), "tcb");
    assert_eq!(refused(&|told| told.options.revoked_tcb = true), "tcb");
    assert_eq!(refused(&|told| told.issued -= 40 * day), "stale");
    assert_eq!(refused(&|told| told.options = CollateralOptions::expired()), "stale");
    assert_eq!(refused(&|told| told.launched = true), "launched");
    for nonce in [None, Some(vec![1; 32]), Some(vec![1; 16]), Some(vec![1; 64])] {
        assert_eq!(refused(&|told| told.nonce = nonce.clone()), "nonce");
    }
    // A document counts once, and one that was refused is spent, too.
    let document = place.told(&vault, place.nonce()).document();
    assert!(place.send(&document).is_ok());
    assert_eq!(name(place.send(&document)), "nonce");
    // Enough for one address: the limit is another test's.
    place.restart();
    for garbage in [&b""[..], b"{}", b"[]", &document[1..], &[0xff; 1000]] {
        assert_eq!(name(place.send(garbage)), "evidence");
    }
    // The claims name another vault key than the quote commits to.
    let (nonce, thief) = (place.nonce(), Vault::new());
    let honest = String::from_utf8(place.told(&vault, nonce).document()).unwrap();
    let stolen = String::from_utf8(place.told(&thief, nonce).document()).unwrap();
    let claims = |document: &str| -> String {
        serde_json::from_str::<Value>(document).unwrap()["claims"].as_str().unwrap().to_owned()
    };
    assert_eq!(name(place.send(honest.replace(&claims(&honest), &claims(&stolen)).as_bytes())), "evidence");

    let named = place.events("refused");
    let what: Vec<&str> = named.iter().map(|event| event["refused"].as_str().unwrap()).collect();
    assert!(
        what.starts_with(&["repository", "measurement", "declaration", "declaration", "tcb"]),
        "{what:?}"
    );
    assert!(named.iter().all(|event| event["advice"].as_str().unwrap().len() > 5));
    assert_eq!(named[1]["repository"], REPOSITORY);
    assert!(place.events("released").len() == 1);

    // Without the development root nothing of the simulated device is genuine.
    place.more.clear();
    place.restart();
    assert_eq!(name(place.release(&vault, |_| ())), "root");
}

#[test]
fn without_github_only_declarations_that_were_given_count() {
    let Some(mut place) = Place::new() else { return };
    let vault = Vault::new();
    place.world.stop();
    assert_eq!(name(place.release(&vault, |_| ())), "could-not-check");
    let file = place.world.at("declared.yaml");
    std::fs::write(&file, place.world.declaration("mallory")).unwrap();
    place.add(&["--declaration", file.to_str().unwrap()]);
    assert_eq!(name(place.release(&vault, |_| ())), "declaration");
    let ours = place.world.at("ours.yaml");
    std::fs::write(&ours, place.world.declaration("alice")).unwrap();
    place.add(&["--declaration", file.to_str().unwrap(), "--declaration", ours.to_str().unwrap()]);
    assert!(place.release(&vault, |_| ()).is_ok(), "without a restart");
}

/// An image with this kernel: the reference of it, and the statement that lets it open the state.
fn next_image(place: &Place, kernel: u8, version: u64) -> SignedStatement {
    let told = Told { kernel, ..place.told(&Vault::new(), [1; 32]) };
    let quote = cofferdam_attest::quote::parse(&Evidence::parse(&told.document()).unwrap().quote).unwrap();
    let [_, rtmr1, rtmr2, _] = quote.rtmr;
    let text = std::fs::read(place.world.at("reference-0.json")).unwrap();
    let Half::Image(mut image) = Half::parse(&text).unwrap() else { panic!() };
    for boot in &mut image.boots {
        (boot.rtmr1, boot.rtmr2) = (rtmr1, rtmr2);
        let measured = Told { kernel: 5, ..told.clone() }.kernel_digest();
        for event in boot.events.iter_mut().filter(|event| event.digest == measured) {
            event.digest = told.kernel_digest();
        }
    }
    std::fs::write(place.world.at("reference-2.json"), Half::Image(image).to_json().unwrap()).unwrap();
    let to = Successor {
        repository: repository(),
        mrtd: quote.mrtd,
        rtmr1,
        rtmr2,
        operators: vec![[4; 32].into()],
    };
    let statement = Statement { version, from: repository(), to };
    SignedStatement { statement, key: Fingerprint::of(&[4; 32]), signature: [6; 64].into() }
}

#[test]
fn a_statement_goes_to_its_image_and_no_key_to_the_one_before_it_afterwards() {
    let Some(mut place) = Place::new() else { return };
    let signed = next_image(&place, 9, 2);
    place.restart();
    let vault = Vault::new();
    let next = |told: &mut Told| told.kernel = 9;
    let (key, _) = place.key(&vault);
    place.report(&key, state(1, 7), false).unwrap();
    assert_eq!(place.release(&vault, next).unwrap().upgrade, None, "none was given");

    let file = place.world.at("upgrade.json");
    let give = |signed: &SignedStatement, repository: &str| {
        std::fs::write(&file, serde_json::to_vec(signed).unwrap()).unwrap();
        place.run(&["upgrade", repository, file.to_str().unwrap()])
    };
    let with = |version, from: &str| {
        let from = from.parse().unwrap();
        let statement = Statement { version, from, ..signed.statement.clone() };
        SignedStatement { statement, ..signed.clone() }
    };
    let (code, text) = give(&with(1, REPOSITORY), REPOSITORY);
    assert!(code == 2 && text.contains("is at version 1 already"), "{text}");
    let (code, text) = give(&with(2, "acme/other"), REPOSITORY);
    assert!(code == 2 && text.contains("a state of acme/other"), "{text}");
    let (code, text) = give(&signed, "acme/other");
    assert!(code == 2 && text.contains("an appliance of acme/shop"), "{text}");
    let (code, text) = place.run(&["upgrade", REPOSITORY, place.world.at("root.pem").to_str().unwrap()]);
    assert!(code == 2 && text.contains("is no statement"), "{text}");
    assert_eq!(place.release(&vault, next).unwrap().upgrade, None, "what is refused changes nothing");
    let (code, text) = give(&signed, REPOSITORY);
    assert_eq!(code, 0, "{text}");

    // Until the next image has opened the state, both get the key; the statement is for the next.
    assert_eq!(place.release(&vault, |_| ()).unwrap().upgrade, None);
    let answer = place.release(&vault, next).unwrap();
    assert_eq!(answer.upgrade.as_ref(), Some(&signed));
    assert!(
        place.signed(&answer.signing_input(&repository(), &vault.public.into()).unwrap(), &answer.signature)
    );
    assert!(place.run(&["list"]).1.contains("a statement for version 2"));
    assert_eq!(place.events("released").last().unwrap()["upgrade"], 2);
    place.report(&key, state(1, 8), false).unwrap();

    place.report_at(2, &key, state(1, 9), false).unwrap();
    assert_eq!(name(place.release(&vault, |_| ())), "lineage", "no way back");
    assert_eq!(name(place.report(&key, state(1, 10), false)), "lineage");
    assert_eq!(place.release(&vault, next).unwrap().upgrade, None, "it counts once");
    let (_, text) = place.run(&["list"]);
    assert!(!text.contains("a statement for"), "{text}");
    let (code, text) = give(&signed, REPOSITORY);
    assert!(code == 2 && text.contains("is at version 2 already"), "{text}");
    place.restart();
    assert_eq!(name(place.release(&vault, |_| ())), "lineage", "also after a restart");
    let advice = place.events("refused").last().unwrap()["advice"].clone();
    assert!(advice.as_str().unwrap().contains("allow-upgrade"), "{advice}");

    // A state that an operator made anew begins with version 1, of whichever image.
    place.report_at(1, &key, state(2, 1), true).unwrap();
    assert!(place.release(&vault, |_| ()).is_ok());
}

#[test]
fn a_state_is_never_older_than_what_was_reported() {
    let Some(place) = Place::new() else { return };
    let (key, _) = place.key(&Vault::new());
    let wrong = Zeroizing::new([9; 32]);
    assert_eq!(name(place.report(&wrong, state(1, 7), false)), "report");
    place.report(&key, state(1, 7), false).unwrap();
    place.report(&key, state(1, 7), false).unwrap();
    assert_eq!(name(place.report(&wrong, state(1, 8), false)), "report");
    assert_eq!(name(place.report(&key, state(1, 6), false)), "epoch");
    assert_eq!(name(place.report(&key, state(1, 6), true)), "epoch", "the same state is not made twice");
    let copy = Witnessed { root: [99; 32].into(), ..state(1, 7) };
    assert_eq!(name(place.report(&key, copy, false)), "state", "two copies of one disk");
    assert_eq!(name(place.report(&key, state(2, 70), false)), "state", "another state");
    place.report(&key, state(1, 9), false).unwrap();
    // An operator of the appliance has made a new one: its vault says so under the key.
    place.report(&key, state(2, 1), true).unwrap();
    assert_eq!(name(place.report(&key, state(1, 10), false)), "state", "the one that was given up");
    assert_eq!(place.key(&Vault::new()).1, Some(state(2, 1)));

    let (code, text) = place.run(&["list"]);
    assert!(code == 0 && text.contains("acme/shop  key since") && text.contains("epoch 1"), "{text}");
    let (code, text) = place.run(&["forget", REPOSITORY]);
    assert!(code == 0 && text.contains("epoch 1 is forgotten"), "{text}");
    assert_eq!(place.key(&Vault::new()), (key.clone(), None));
    place.report(&key, state(1, 3), false).unwrap();
    let (code, _) = place.run(&["forget", "acme/other"]);
    assert_eq!(code, 2);
    let stranger = EpochReport {
        repository: "acme/other".parse().unwrap(),
        opened: state(1, 1),
        fresh: true,
        lineage: 1,
        mac: [0; 32].into(),
    };
    let stranger = answered::<EpochAck>(place.ask(REPORT, &serde_json::to_vec(&stranger).unwrap()));
    assert_eq!(name(stranger), "report", "who asks does not learn which appliances there are");
}

#[test]
fn two_servers_do_not_share_a_directory_and_no_key_is_released_without_reference_values() {
    let Some(place) = Place::new() else { return };
    let second = place.serving().output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(world::said(&second).contains("another key server uses"), "{}", world::said(&second));
    let key = place.world.at("server");
    let (code, text) = place.run(&["--key", key.to_str().unwrap()]);
    assert!(code == 1 && text.contains("another key server uses"), "{text}");
    let elsewhere = place.world.at("elsewhere");
    let mut command = Command::new(env!("CARGO_BIN_EXE_coffer"));
    command.env_clear().arg("keyserve").arg("--data").arg(&elsewhere).arg("--key").arg(&key);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(world::said(&output).contains("no reference values"), "{}", world::said(&output));
    let open = |mode: u32| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(0o644);
    let output = place.serving().output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", world::said(&output));
}

/// Kills at random instants while keys are released and states reported: what was acknowledged is there, and the key is the same.
#[test]
fn a_kill_at_any_instant_loses_nothing_that_was_acknowledged() {
    let Some(mut place) = Place::new() else { return };
    let path = place.world.at("keys/acme+shop.json");
    let mut first: Option<Kek> = None;
    let mut acknowledged = 0;
    for round in 0_u64..60 {
        // On a slow machine the first report takes longer than all of these.
        if round >= 12 && acknowledged > 0 {
            break;
        }
        let vault = Vault::new();
        let document = place.told(&vault, place.nonce()).document();
        let address = place.address.clone();
        let known = first.clone();
        let worker = std::thread::spawn(move || work(&address, &document, &vault, known, acknowledged));
        std::thread::sleep(Duration::from_millis(3 + round * 13));
        place.stop();
        let (key, reported) = worker.join().unwrap();
        if let (Some(before), Some(now)) = (&first, &key) {
            assert_eq!(before, now, "round {round}");
        }
        first = first.or(key);
        acknowledged = acknowledged.max(reported);
        place.start();
        let (key, witnessed) = place.key(&Vault::new());
        assert!(first.as_ref().is_none_or(|first| *first == key), "round {round}");
        first = Some(key);
        let epoch = witnessed.map_or(0, |known| known.epoch);
        assert!(epoch >= acknowledged, "round {round}: {epoch}, {acknowledged} was acknowledged");
        acknowledged = epoch;
        serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()).unwrap();
    }
    assert!(acknowledged > 0, "something was reported");
}

/// Releases and reports until the server is gone; the key, and the last epoch that was acknowledged.
fn work(
    address: &str,
    document: &[u8],
    vault: &Vault,
    known: Option<Kek>,
    mut epoch: u64,
) -> (Option<Kek>, u64) {
    let post = |path: &str, body: &[u8]| -> Option<Vec<u8>> {
        let mut stream = TcpStream::connect(address).ok()?;
        let head = format!("POST {path} HTTP/1.1\r\nhost: keys\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body).ok()?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).ok()?;
        let text = String::from_utf8(all).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| body.as_bytes().to_vec())
    };
    let answer = post(RELEASE, document).and_then(|body| serde_json::from_slice::<ReleaseAnswer>(&body).ok());
    let released = answer.map(|answer| sealing::open(&vault.private, &answer.nonce, &answer.key).unwrap());
    let Some(key) = released.clone().or(known) else { return (None, epoch) };
    for _ in 0..20 {
        let mut report = EpochReport {
            repository: repository(),
            opened: state(1, epoch + 1),
            fresh: false,
            lineage: 1,
            mac: [0; 32].into(),
        };
        report.mac = sealing::report_mac(&key, &report).unwrap().into();
        if post(REPORT, &serde_json::to_vec(&report).unwrap()).is_none() {
            break;
        }
        epoch += 1;
    }
    (released, epoch)
}

#[test]
fn what_is_too_large_too_slow_or_too_much_is_refused_and_others_are_served() {
    let Some(place) = Place::new() else { return };
    let address = place.address.clone();
    let large = vec![b' '; 256 * 1024 + 1];
    assert_eq!(name(place.send(&large)), "request");
    assert_eq!(name(answered::<EpochAck>(place.ask(REPORT, &vec![b' '; 4097]))), "request");
    assert_eq!(name(answered::<NonceReply>(place.ask(NONCE, b"x"))), "request");
    assert_eq!(name(answered::<NonceReply>(place.ask("/v1/else", b""))), "request");
    assert_eq!(ask(&address, "GET", NONCE, b"").0, 400);
    // A length that never comes, and a head that never ends.
    let begun = Instant::now();
    let mut slow = TcpStream::connect(&address).unwrap();
    slow.write_all(b"POST /v1/report HTTP/1.1\r\nhost: k\r\ncontent-length: 100\r\n\r\n{").unwrap();
    let mut head = TcpStream::connect(&address).unwrap();
    head.write_all(b"POST /v1/nonce HTTP/1.1\r\nhost: ").unwrap();
    let mut endless = TcpStream::connect(&address).unwrap();
    endless.write_all(b"POST /v1/nonce HTTP/1.1\r\nx: ").unwrap();
    while endless.write_all(&[b'a'; 4096]).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(10), "a head without an end");
    }
    // Places of this address: the rest is closed, and when they end there are places again.
    let mut held: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let mut closed = 0;
    for stream in &mut held {
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        closed += match stream.read(&mut [0; 1]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            _ => 1,
        };
    }
    assert!((13..=14).contains(&closed), "8 places, of which two or three are taken: {closed} were closed");
    drop(held);
    for (stream, limit) in [(&mut head, 8), (&mut slow, 13)] {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(begun.elapsed() < Duration::from_secs(limit), "{:?}", begun.elapsed());
        if limit == 13 {
            assert!(
                String::from_utf8_lossy(&rest).contains("too slowly"),
                "{}",
                String::from_utf8_lossy(&rest)
            );
        }
    }
    // One address may ask for so much; then it is told to wait, and is served again.
    let mut outcomes = Vec::new();
    for _ in 0..60 {
        outcomes.push(ask(&address, "POST", "/v1/else", b"").0);
    }
    assert!(outcomes.contains(&429) && outcomes.last() == Some(&429), "{outcomes:?}");
    std::thread::sleep(Duration::from_millis(2200));
    assert_eq!(place.ask(NONCE, b"").0, 200);
    // What was refused of a stranger's is not a line each.
    assert!(place.events("refused").len() < 40);
}

#[test]
fn a_server_with_another_key_is_found_out_by_its_signature() {
    let Some(place) = Place::new() else { return };
    let vault = Vault::new();
    let answer = place.release(&vault, |_| ()).unwrap();
    let input = answer.signing_input(&repository(), &vault.public.into()).unwrap();
    assert!(place.signed(&input, &answer.signature));
    // The same answer for another vault, another appliance, another key or another epoch is not signed.
    assert!(!place.signed(
        &answer.signing_input(&repository(), &Vault::new().public.into()).unwrap(),
        &answer.signature
    ));
    let other: Repository = "acme/other".parse().unwrap();
    assert!(!place.signed(&answer.signing_input(&other, &vault.public.into()).unwrap(), &answer.signature));
    let false_key = sealing::seal(&vault.public.into(), &answer.nonce, &Zeroizing::new([1; 32])).unwrap();
    let forged = ReleaseAnswer { key: false_key, ..answer.clone() };
    assert!(
        !place.signed(&forged.signing_input(&repository(), &vault.public.into()).unwrap(), &answer.signature)
    );
    let older = ReleaseAnswer { witnessed: Some(state(1, 1)), ..answer.clone() };
    assert!(
        !place.signed(&older.signing_input(&repository(), &vault.public.into()).unwrap(), &answer.signature)
    );
}
