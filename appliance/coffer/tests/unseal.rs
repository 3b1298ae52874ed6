//! What has to hold before an appliance gets a key: who answers, under which declaration, with how new a state.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod world;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::reference::{BootPlatform, Half};
use cofferdam_declaration::Declaration;
use cofferdam_protocol::state::Rollback;
use cofferdam_protocol::unseal::{GivenUp, Lineage, Witness};
use cofferdam_protocol::upgrade::{SignedStatement, Statement};
use cofferdam_protocol::{Fingerprint, OperatorKey};
use ed25519_dalek::{Signature, VerifyingKey};
use world::appliance::{Mood, Simulated};
use world::seal::{PASSPHRASE, Seal};
use world::{REPOSITORY, Told, World, now, said, tag_at};

const SEALED_AT: u64 = 9;

/// An appliance that waits with a state of epoch 9, and its world.
struct Place {
    appliance: Simulated,
    world: World,
}

impl Place {
    fn with(seal: Seal, attested: u64) -> Option<Self> {
        let appliance = Simulated::start();
        let world = appliance.sealed_world(seal, attested)?;
        let key = world.at("key");
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        assert!(made.unwrap().success());
        Some(Self { appliance, world })
    }

    fn sealed() -> Option<Self> {
        Self::with(Seal::passphrase(SEALED_AT), 7)
    }

    fn command(&self, words: &[&str], more: &[&str]) -> Command {
        let mut command = self.world.command(&[words, &[REPOSITORY, "--timeout", "20s"], more].concat());
        command.arg("--key").arg(self.world.at("key"));
        command
    }

    /// Runs `coffer` with the passphrase on its standard input.
    fn run(&self, words: &[&str], more: &[&str]) -> (i32, String) {
        let output = fed(&mut self.command(words, more), PASSPHRASE);
        (output.status.code().unwrap(), said(&output))
    }

    fn unseal(&self, more: &[&str]) -> (i32, String) {
        self.run(&["unseal"], more)
    }

    fn told(&self, change: impl FnOnce(&mut Told)) {
        change(self.appliance.told.lock().unwrap().as_mut().unwrap());
    }

    /// How many keys the appliance was sent.
    fn keys(&self) -> usize {
        self.appliance.seal.lock().unwrap().as_ref().unwrap().keys
    }
}

fn fed(command: &mut Command, text: &str) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Whoever refuses the command line reads nothing.
    let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn without_github_nothing_is_opened_unless_everything_it_says_is_given() {
    let Some(mut place) = Place::sealed() else { return };
    let declared = place.world.at("declared.yaml");
    std::fs::write(&declared, place.world.declaration("alice")).unwrap();
    let other = place.world.at("other.yaml");
    std::fs::write(&other, place.world.declaration("mallory")).unwrap();
    place.world.stop();
    let given = |path: &Path| ["--declaration", path.to_str().unwrap()].map(str::to_owned);
    let (ours, others) = (given(&declared), given(&other));
    let (ours, others) = ([&*ours[0], &*ours[1]], [&*others[0], &*others[1]]);
    for more in [&[][..], &["--without-witness"], &ours] {
        let (code, text) = place.unseal(more);
        assert_eq!((code, place.keys()), (6, 0), "{more:?}: {text}");
    }
    let (_, text) = place.unseal(&ours);
    assert!(text.contains("`state: {rollback: warn}`"), "{text}");
    // The declaration requires a witness, whatever the command line says.
    let without = [&ours[..], &["--without-witness"]].concat();
    let (code, text) = place.unseal(&without);
    assert_eq!((code, place.keys()), (7, 0), "{text}");
    place.appliance.seal.lock().unwrap().as_mut().unwrap().rollback = Rollback::Warn;
    let (code, text) = place.unseal(&[&others[..], &["--without-witness"]].concat());
    assert_eq!((code, place.keys()), (3, 0), "{text}");
    assert!(text.contains("declaration: the appliance measured"), "{text}");
    let (code, text) = place.unseal(&ours);
    assert_eq!((code, place.keys()), (0, 1), "{text}");
    assert!(text.contains("UNWITNESSED: an older copy of the state disk is not noticed"), "{text}");
    let told = place.appliance.seal.lock().unwrap().as_ref().unwrap().told;
    assert_eq!(told, Some(Witness { unwitnessed: true, gives_up: None }), "the appliance measures that");
}

/// `warn` is for witnesses that are out of reach: one that can be asked is believed.
#[test]
fn an_older_copy_is_refused_also_where_a_witness_is_not_required() {
    let mut seal = Seal::passphrase(SEALED_AT);
    seal.rollback = Rollback::Warn;
    let Some(place) = Place::with(seal, 12) else { return };
    let (code, text) = place.unseal(&[]);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("an older copy"), "{text}");
    let told = || place.appliance.seal.lock().unwrap().as_ref().unwrap().told;
    assert_eq!(told(), Some(Witness::default()));
    // On purpose: what opens comes after what is lost, and the appliance is told so.
    let (code, text) = place.unseal(&["--accept-loss"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("open at epoch 13"), "{text}");
    let gives_up = Some(GivenUp { epoch: 12.try_into().unwrap(), anchor: 0 });
    assert_eq!(told(), Some(Witness { unwitnessed: false, gives_up }));
}

#[test]
fn who_answers_with_other_evidence_gets_no_key() {
    let Some(place) = Place::sealed() else { return };
    for (mood, expected) in [(Mood::OtherChannel, 3), (Mood::Html, 6), (Mood::Busy, 6)] {
        place.appliance.set(mood);
        let (code, text) = place.unseal(&[]);
        assert_eq!((code, place.keys()), (expected, 0), "{mood:?}: {text}");
    }
    place.appliance.set(Mood::Honest);
    let honest = place.appliance.told.lock().unwrap().clone().unwrap();
    // The host has started the same image with operators of its own, on the same disk.
    let mallory = place.world.told(&honest.commit, "mallory", 0).declaration;
    place.told(|told| told.declaration = mallory);
    let (code, text) = place.unseal(&[]);
    assert_eq!((code, place.keys()), (3, 0), "{text}");
    place.told(|told| told.declaration = honest.declaration);
    // The key of the claims is not the one of whoever answers.
    place.told(|told| told.tls_key = world::simulated::key().to_string());
    let (code, text) = place.unseal(&[]);
    assert_eq!((code, place.keys()), (3, 0), "{text}");
    assert!(text.contains("tls_key"), "{text}");
    place.told(|told| told.tls_key = honest.tls_key);
    assert_eq!(place.unseal(&[]).0, 0);
}

#[test]
fn a_release_is_a_witness_after_it_has_expired_and_false_ones_are_passed_over() {
    let Some(mut place) = Place::sealed() else { return };
    let day = 86_400;
    let expired = {
        let now = place.appliance.told.lock().unwrap().clone().unwrap();
        Told { epoch: SEALED_AT + 3, ..place.world.told(&now.commit, "alice", 40 * day) }
    };
    let world = &mut place.world;
    world.stop();
    world.forget_releases();
    let tag = world.attest(&expired);
    world.release(&tag_at(now() - 60, 1), &[("attestation.json", b"{}")]);
    world.start();
    let (code, text) = place.unseal(&["-v"]);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("an older copy"), "{text}");
    assert!(text.contains(&format!("{tag} attests epoch 12")), "{text}");
    assert!(text.contains("no witness: attest-"), "{text}");

    let world = &mut place.world;
    world.stop();
    world.forget_releases();
    world.release(&tag_at(now() - 60, 1), &[("attestation.json", b"{}")]);
    world.start();
    let keys = place.keys();
    let (code, text) = place.unseal(&[]);
    assert_eq!((code, place.keys()), (6, keys), "{text}");
    assert!(text.contains("-v shows why") && text.contains("rollback: warn"), "{text}");

    // Nobody has seen a state: this one may be as old as it is.
    place.world.stop();
    place.world.forget_releases();
    place.world.start();
    let (code, text) = place.unseal(&[]);
    assert_eq!(code, 0, "{text}");
}

#[test]
fn evidence_of_an_appliance_that_waits_is_no_release_attestation() {
    let Some(mut place) = Place::sealed() else { return };
    let waits = Told { nonce: None, binding: None, ..place.appliance.told.lock().unwrap().clone().unwrap() };
    assert!(!waits.launched);
    let world = &mut place.world;
    world.stop();
    world.forget_releases();
    world.attest(&waits);
    world.start();
    let (code, _, text) = world.verify(&[]);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("no `launch` event"), "{text}");
    // Nor is it a witness, and who has no other one does not connect on its word.
    let (code, text) = place.unseal(&[]);
    assert_eq!((code, place.keys()), (6, 0), "{text}");
    let (code, text) = place.run(&["status"], &[]);
    assert_eq!(code, 3, "{text}");
}

#[test]
fn only_an_appliance_that_proves_it_is_called_sealed() {
    let Some(place) = Place::sealed() else { return };
    assert_eq!(place.run(&["status"], &[]).0, 5);
    assert_eq!(place.run(&["secret", "list"], &[]).0, 5);
    let commit = place.appliance.told.lock().unwrap().clone().unwrap().commit;
    let mallory = place.world.told(&commit, "mallory", 0).declaration;
    place.told(|told| told.declaration = mallory);
    for words in [&["status"][..], &["secret", "list"]] {
        let (code, text) = place.run(words, &[]);
        assert_eq!(code, 3, "{text}");
        assert!(text.contains("the release attestation says") && !text.contains("sealed"), "{text}");
    }
    place.appliance.set(Mood::OtherChannel);
    assert_eq!(place.run(&["status"], &[]).0, 3);
}

#[test]
fn an_answer_that_is_lost_is_found_out_from_the_appliance() {
    let Some(place) = Place::sealed() else { return };
    place.appliance.seal.lock().unwrap().as_mut().unwrap().breaks = true;
    let (code, text) = place.unseal(&[]);
    assert_eq!((code, place.keys()), (0, 1), "{text}");
    assert!(text.contains("no answer came") && text.contains("open at epoch 10"), "{text}");
}

/// On a slow machine the state can be made after `front` has given up: the printed keys are the only ones that open it.
#[test]
fn an_answer_that_is_late_does_not_say_that_nothing_was_made() {
    let Some(place) = Place::with(Seal::blank(), 0) else { return };
    place.appliance.seal.lock().unwrap().as_mut().unwrap().late = true;
    let (code, text) = place.run(&["seal", "init"], &[]);
    assert_eq!((code, place.keys()), (0, 1), "{text}");
    assert!(text.contains("keep the printed keys") && !text.contains("open nothing"), "{text}");
}

#[test]
fn keys_that_nobody_gets_seal_nothing() {
    let Some(place) = Place::with(Seal::blank(), 0) else { return };
    for more in [&[][..], &["--json"], &["--shares", "3", "--threshold", "2"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (reader, closed) = std::io::pipe().unwrap();
        drop(reader);
        for stdout in [Stdio::from(full), Stdio::from(closed)] {
            let mut command = place.command(&["seal", "init"], more);
            command.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let _ = child.stdin.take().unwrap().write_all(PASSPHRASE.as_bytes());
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{}", said(&output));
            assert!(said(&output).contains("nothing was sealed"), "{}", said(&output));
            assert_eq!(place.keys(), 0);
        }
    }
    let missing = place.world.at("no").join("folder");
    std::fs::write(place.world.at("no"), "a file").unwrap();
    let (code, text) = place.run(&["seal", "init"], &["--recovery-out", missing.to_str().unwrap()]);
    assert_eq!((code, place.keys()), (1, 0), "{text}");
    let (code, text) = place.run(&["seal", "init"], &["--json"]);
    assert_eq!((code, place.keys()), (0, 1), "{text}");
    let object: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert!(object["recovery"].as_str().unwrap().starts_with("cofferdam-recovery-1-"), "{object}");
}

/// The state was left to another image: it gets no key, and the statement is about what runs.
#[test]
fn a_state_of_another_image_is_opened_with_a_statement_only() {
    let Some(place) = Place::sealed() else { return };
    let why = "the state was sealed by another image, v0.1.0: its RTMR2 is not this one's";
    place.appliance.seal.lock().unwrap().as_mut().unwrap().lineage = Some(lineage(Some(why)));
    let (code, text) = place.unseal(&[]);
    assert_eq!((code, place.keys()), (5, 0), "{text}");
    assert!(text.contains(why) && text.contains("coffer seal allow-upgrade acme/shop"), "{text}");
    let (code, text) = place.run(&["seal", "status"], &[]);
    assert_eq!(code, 5, "{text}");
    for part in ["lineage 4 of acme/shop, image v0.1.0", why, "allow-upgrade", &"22".repeat(48)] {
        assert!(text.contains(part), "{part}: {text}");
    }

    let file = place.world.at("upgrade.json");
    let path = file.to_str().unwrap();
    let (code, text) = place.run(&["seal", "allow-upgrade"], &["-o", path]);
    assert_eq!((code, place.keys()), (0, 0), "{text}");
    let (code, text) = place.unseal(&["--upgrade", path]);
    assert_eq!((code, place.keys()), (0, 1), "{text}");
    let sent = place.appliance.seal.lock().unwrap().as_ref().unwrap().upgrade.clone().unwrap();
    assert_eq!(sent, SignedStatement::parse(&std::fs::read(&file).unwrap()).unwrap());
    let Statement { version, from, to } = &sent.statement;
    assert_eq!(
        (*version, from.to_string(), to.repository.to_string()),
        (5, REPOSITORY.into(), REPOSITORY.into())
    );
    let quote = place.appliance.told.lock().unwrap().as_ref().unwrap().document();
    let quote = cofferdam_attest::quote::parse(&Evidence::parse(&quote).unwrap().quote).unwrap();
    assert_eq!((to.mrtd, [to.rtmr1, to.rtmr2]), (quote.mrtd, [quote.rtmr[1], quote.rtmr[2]]));
    let declared = Declaration::parse(place.world.declaration("alice").as_bytes()).unwrap();
    assert_eq!(
        to.operators.iter().map(|key| *key.as_bytes()).collect::<Vec<_>>(),
        [*declared.operators[0].key.public()]
    );
    let public = std::fs::read_to_string(place.world.at("key.pub")).unwrap();
    let public: OperatorKey = public.parse().unwrap();
    assert_eq!(sent.key, public.fingerprint());
    let key = VerifyingKey::from_bytes(public.public()).unwrap();
    let input = sent.statement.signing_input().unwrap();
    key.verify_strict(&input, &Signature::from_bytes(sent.signature.as_bytes())).unwrap();
}

/// From a running appliance, and from nothing but files.
#[test]
fn a_statement_is_made_before_the_next_image_starts() {
    let Some(mut place) = Place::sealed() else { return };
    let (image, platform) = (place.world.at("reference-0.json"), place.world.at("reference-1.json"));
    let (image, platform) = (image.to_str().unwrap(), platform.to_str().unwrap());
    let next = ["--measurements", image, "--boot", "simulator"];
    place.told(|told| (told.launched, told.epoch, told.lineage) = (true, 7, 6));
    let read = |text: &str| {
        let end = text.rfind('}').unwrap();
        let start = text.find('{').unwrap();
        SignedStatement::parse(&text.as_bytes()[start..=end]).unwrap().statement
    };
    let (code, text) = place.run(&["seal", "allow-upgrade"], &next);
    assert_eq!(code, 0, "{text}");
    let online = read(&text);
    let half = Half::parse(&std::fs::read(image).unwrap()).unwrap();
    let Half::Image(half) = half else { panic!("no image") };
    let boot = half.boots.iter().find(|boot| boot.platform == BootPlatform::Simulator).unwrap();
    assert_eq!((online.version, [online.to.rtmr1, online.to.rtmr2]), (7, [boot.rtmr1, boot.rtmr2]));
    let (code, text) = place.run(&["seal", "status"], &[]);
    assert!(code == 0 && text.contains("lineage 6"), "{text}");
    place.told(|told| told.epoch = 0);
    let (code, text) = place.run(&["seal", "allow-upgrade"], &next);
    assert!(code == 1 && text.contains("in memory"), "{text}");

    place.world.stop();
    let declared = place.world.at("declared.yaml");
    std::fs::write(&declared, place.world.declaration("alice")).unwrap();
    let renamed = place.world.at("renamed.yaml");
    std::fs::write(&renamed, place.world.declaration("alice").replacen("acme/shop", "acme/store", 1))
        .unwrap();
    let offline = [&next[..], &["--from-version", "6", "--measurements", platform]].concat();
    let (code, text) = place.run(&["seal", "allow-upgrade"], &offline);
    assert_eq!(code, 6, "the operators are not known: {text}");
    let with = |more: &[&str]| place.run(&["seal", "allow-upgrade"], &[&offline[..], more].concat());
    let (code, text) = with(&["--operators", declared.to_str().unwrap()]);
    assert_eq!((code, read(&text)), (0, online), "{text}");
    let (code, text) = with(&["--operators", renamed.to_str().unwrap(), "--repository", "acme/store"]);
    assert_eq!(code, 0, "{text}");
    let moved = read(&text);
    assert_eq!(
        (moved.from.to_string(), moved.to.repository.to_string()),
        (REPOSITORY.into(), "acme/store".into())
    );
    for (more, why) in [
        (&["--operators", renamed.to_str().unwrap()][..], "is of acme/store, not of acme/shop"),
        (&["--operators", image], "is not valid"),
        (
            &["--operators", declared.to_str().unwrap(), "--measurements", image],
            "one statement is for one image",
        ),
        (
            &["--operators", declared.to_str().unwrap(), "--mrtd", &"77".repeat(48)],
            "one statement is for one MRTD",
        ),
    ] {
        let (code, text) = with(more);
        assert!(code == 2 && text.contains(why), "{why}: {text}");
    }
    for (file, code) in [(image, 2), (declared.to_str().unwrap(), 2), ("/nothing", 2)] {
        assert_eq!(place.unseal(&["--upgrade", file]).0, code, "{file}");
    }
    assert_eq!(place.keys(), 0);
}

fn lineage(needs_statement: Option<&str>) -> Lineage {
    Lineage {
        version: 4,
        repository: REPOSITORY.parse().unwrap(),
        release: "v0.1.0".into(),
        mrtd: [0x11; 48],
        rtmr1: [0x22; 48],
        rtmr2: [0x33; 48],
        operators: vec![Fingerprint::of(&[4; 32])],
        needs_statement: needs_statement.map(str::to_owned),
    }
}

/// On a terminal the passphrase is asked for, a new one twice, and what is typed does not show.
#[test]
fn what_is_typed_does_not_show() {
    let Some(place) = Place::with(Seal::blank(), 0) else { return };
    let typed = |command: &Command, answers: &[&str]| {
        let words: Vec<&str> = [command.get_program()]
            .into_iter()
            .chain(command.get_args())
            .map(|word| word.to_str().unwrap())
            .collect();
        let script = place.world.at("terminal.py");
        std::fs::write(&script, TERMINAL).unwrap();
        let home = place.world.at("home");
        let input = serde_json::json!({ "words": words, "answers": answers, "home": home }).to_string();
        let output = Command::new("python3").arg(&script).arg(input).output().unwrap();
        (output.status.code().unwrap(), said(&output))
    };
    let init = place.command(&["seal", "init"], &[]);
    let (code, text) = typed(&init, &[PASSPHRASE, "another passphrase"]);
    assert_eq!((code, place.keys()), (2, 0), "{text}");
    assert!(text.contains("once more") && text.contains("two passphrases"), "{text}");
    let (code, text) = typed(&init, &[PASSPHRASE, PASSPHRASE]);
    assert_eq!((code, place.keys()), (0, 1), "{text}");
    assert!(text.contains("new passphrase of acme/shop:"), "{text}");
    assert!(!text.contains(PASSPHRASE) && !text.contains("another passphrase"), "{text}");
    let (code, text) = typed(&place.command(&["unseal"], &["--no-input"]), &[]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("read from standard input"), "{text}");
}

/// Runs a program on a terminal of its own, and types each answer when something is asked.
const TERMINAL: &str = r#"
import fcntl, json, os, pty, subprocess, sys, termios, threading, time
about = json.loads(sys.argv[1])
terminal, slave = pty.openpty()
child = subprocess.Popen(about["words"], env={"HOME": about["home"]}, stdin=slave, stdout=slave, stderr=slave,
                         start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
# The end is marked by a byte: a terminal that everybody closed may give an error before its last bytes.
END = b"\x1e"
threading.Thread(target=lambda: (child.wait(), os.write(slave, END))).start()
seen, answers = b"", list(about["answers"])
while not seen.endswith(END):
    seen += os.read(terminal, 4096)
    if answers and seen.rstrip(b" ").endswith(b":"):
        # A person takes longer to read than the program to turn the echo off.
        time.sleep(0.5)
        os.write(terminal, answers.pop(0).encode() + b"\n")
sys.stdout.buffer.write(seen[:-1])
sys.stdout.flush()
os._exit(child.returncode)
"#;
