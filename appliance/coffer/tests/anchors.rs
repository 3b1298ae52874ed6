//! Anchors of the state among a repository's releases: believed, missing, newer than what runs, and those that are none.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod world;

use std::io::Write as _;
use std::process::{Command, Stdio};

use cofferdam_attest::release::AnchorTag;
use cofferdam_protocol::state::Continuity;
use cofferdam_protocol::unseal::{GivenUp, Witness};
use world::appliance::Simulated;
use world::seal::{PASSPHRASE, Seal};
use world::{REPOSITORY, Told, World, said};

fn continuity(first: u64, anchor: u64) -> Continuity {
    let number = |number: u64| number.try_into().unwrap();
    Continuity {
        anchor: number(anchor),
        first_anchor: number(first),
        unwitnessed: false,
        accepted_loss: None,
    }
}

fn tag(number: u64) -> String {
    AnchorTag::new(number.try_into().unwrap()).unwrap().to_string()
}

/// What the boot with this anchor tells, whose state was opened at this epoch.
fn boot(told: &Told, number: u64, epoch: u64) -> Told {
    Told { epoch, continuity: Some(continuity(1, number)), ..told.clone() }
}

fn anchor(world: &mut World, number: u64, told: &Told) {
    world.release(&tag(number), &[("attestation.json", &told.document())]);
}

/// A repository whose appliance has opened its state three times, at the epochs 3, 5 and 7, without the anchors that are `left_out`.
fn world(left_out: &[u64], more: impl FnOnce(&mut World, &Told)) -> Option<World> {
    let mut world = World::new()?;
    let commit = world.declare("alice");
    let told = world.told(&commit, "alice", 600);
    for number in (1..=3).filter(|number| !left_out.contains(number)) {
        anchor(&mut world, number, &boot(&told, number, 1 + 2 * number));
    }
    world.attest(&boot(&told, 3, 7));
    more(&mut world, &told);
    world.start();
    Some(world)
}

#[test]
fn all_anchors_are_there_and_none_is_newer() {
    let Some(world) = world(&[], |_, _| {}) else { return };
    let (code, json, text) = world.verify(&[]);
    assert_eq!(code, 0, "{text}");
    let checks = json["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == "state_anchors").unwrap();
    assert_eq!(check["outcome"], "pass", "{check}");
    // They are in the list that is read anyway, and none is downloaded: the attestation takes a redirection and an answer.
    let [api, _, storage] = world.counted();
    assert!(api <= 4 && storage == 2, "{api} {storage}");
    // The last one need not be published yet.
    let Some(world) = self::world(&[3], |_, _| {}) else { return };
    assert_eq!(world.verify(&[]).0, 0);
}

#[test]
fn an_anchor_that_is_gone_is_noticed() {
    for (left_out, expected) in [
        (&[2][..], "the anchor state-0000002 of the state was published and is gone:"),
        (&[1, 2], "the anchor state-0000001 of the state was published and is gone, and 1 more:"),
    ] {
        let Some(world) = world(left_out, |_, _| {}) else { return };
        let (code, _, text) = world.verify(&[]);
        assert!(code == 3 && text.contains(expected), "{code} {text}");
    }
    // Those before a loss that was accepted are of another state.
    let Some(mut world) = World::new() else { return };
    let commit = world.declare("alice");
    let told = world.told(&commit, "alice", 600);
    for number in 7..=8 {
        anchor(
            &mut world,
            number,
            &Told { continuity: Some(continuity(7, number)), ..boot(&told, number, 40) },
        );
    }
    world.attest(&Told { continuity: Some(continuity(7, 8)), ..boot(&told, 8, 40) });
    world.start();
    let (code, _, text) = world.verify(&[]);
    assert_eq!(code, 0, "{text}");
}

#[test]
fn a_newer_anchor_shows_that_what_runs_is_an_older_copy() {
    let newer = |world: &mut World, told: &Told| anchor(world, 4, &boot(told, 4, 9));
    let Some(world) = world(&[], newer) else { return };
    let (code, _, text) = world.verify(&[]);
    assert_eq!(code, 3, "{text}");
    assert!(
        text.contains("the state is an older copy: epoch 7, and the anchor of epoch 9 is newer"),
        "{text}"
    );
}

/// Whoever may write releases adds what looks like a newer anchor: nothing of it is believed, and nothing hidden by it.
#[test]
fn what_is_no_anchor_is_passed_over() {
    let Some(world) = world(&[], |world, told| {
        world.release(&tag(4), &[("attestation.json", b"{}")]);
        world.release(&tag(5), &[]);
        world.release(&tag(6), &[("attestation.json", &vec![b' '; 300 << 10])]);
        // An older one, moved; one that has no number; another repository's; another image's.
        world.release(&tag(7), &[("attestation.json", &boot(told, 2, 5).document())]);
        world.release(&tag(8), &[("attestation.json", &Told { epoch: 9, ..told.clone() }.document())]);
        let stranger = Told { repository: "mallory/shop".to_owned(), ..boot(told, 9, 90) };
        anchor(world, 9, &stranger);
        anchor(world, 10, &Told { kernel: 6, ..boot(told, 10, 100) });
        // One of an appliance that waits has opened nothing.
        anchor(world, 11, &Told { launched: false, ..boot(told, 11, 110) });
        anchor(world, 9_999_999, &Told { kernel: 6, ..boot(told, 9_999_999, 1 << 40) });
        for wrong in
            ["state-10000000", "state-99999999999999999999999", "state-0000000", "state-12", "state-0x00012"]
        {
            world.release(wrong, &[("attestation.json", &boot(told, 12, 120).document())]);
        }
    }) else {
        return;
    };
    let (code, _, text) = world.verify(&[]);
    assert_eq!(code, 0, "{text}");
}

#[test]
fn behind_too_many_that_are_none_nobody_knows() {
    let Some(world) = world(&[], |world, told| {
        anchor(world, 4, &boot(told, 4, 9));
        for number in 5..=21 {
            world.release(&tag(number), &[("attestation.json", b"{}")]);
        }
    }) else {
        return;
    };
    let (code, _, text) = world.verify(&[]);
    assert_eq!(code, 6, "{text}");
    assert!(text.contains("16 anchors of the state of acme/shop are none"), "{text}");
}

/// An appliance that waits with a state of this epoch, where nothing but anchors is left of its releases.
struct Place {
    appliance: Simulated,
    world: World,
}

impl Place {
    fn new(epoch: u64, change: impl FnOnce(&mut World, &Told)) -> Option<Self> {
        let appliance = Simulated::start();
        let mut world = appliance.sealed_world(Seal::passphrase(epoch), 7)?;
        let key = world.at("key");
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        assert!(made.unwrap().success());
        world.stop();
        world.forget_releases();
        let waits = appliance.told.lock().unwrap().clone().unwrap();
        let told =
            Told { nonce: None, binding: None, launched: true, ..world.told(&waits.commit, "alice", 600) };
        change(&mut world, &told);
        world.start();
        Some(Self { appliance, world })
    }

    fn run(&self, words: &[&str], more: &[&str]) -> (i32, String) {
        let mut command = self.world.command(&[words, &[REPOSITORY, "--timeout", "20s"], more].concat());
        command.arg("--key").arg(self.world.at("key"));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(PASSPHRASE.as_bytes());
        let output = child.wait_with_output().unwrap();
        (output.status.code().unwrap(), said(&output))
    }

    fn told(&self) -> Option<Witness> {
        self.appliance.seal.lock().unwrap().as_ref().unwrap().told
    }
}

/// The release attestation was removed: its anchor still says how new the state has to be.
#[test]
fn an_anchor_is_a_witness_where_no_attestation_is_left() {
    let anchors = |world: &mut World, told: &Told| {
        (1..=2).for_each(|number| anchor(world, number, &boot(told, number, 4 + 4 * number)));
    };
    let Some(place) = Place::new(9, anchors) else { return };
    let (code, text) = place.run(&["seal", "status"], &[]);
    assert!(code == 5 && text.contains("witness: the releases know epoch 12, anchor 2"), "{code} {text}");
    let (code, text) = place.run(&["unseal"], &[]);
    assert!(code == 3 && text.contains("an older copy"), "{code} {text}");
    let (code, text) = place.run(&["unseal"], &["--accept-loss"]);
    assert!(code == 0 && text.contains("open at epoch 13"), "{code} {text}");
    let gives_up = Some(GivenUp { epoch: 12.try_into().unwrap(), anchor: 2 });
    assert_eq!(place.told(), Some(Witness { unwitnessed: false, gives_up }));
}

#[test]
fn with_an_anchor_that_is_gone_nothing_opens_until_that_is_accepted() {
    let anchors = |world: &mut World, told: &Told| {
        [1, 3].into_iter().for_each(|number| anchor(world, number, &boot(told, number, 2 * number)));
    };
    let Some(place) = Place::new(9, anchors) else { return };
    for words in [&["unseal"][..], &["seal", "status"]] {
        let (code, text) = place.run(words, &[]);
        assert_eq!(code, 3, "{text}");
        assert!(text.contains("state-0000002") && text.contains("is gone"), "{text}");
        assert!(text.contains("--accept-loss"), "{text}");
    }
    assert_eq!(place.told(), None, "no key was sent");
    let (code, text) = place.run(&["unseal"], &["--accept-loss"]);
    assert_eq!(code, 0, "{text}");
    let gives_up = Some(GivenUp { epoch: 6.try_into().unwrap(), anchor: 3 });
    assert_eq!(place.told(), Some(Witness { unwitnessed: false, gives_up }));
}
