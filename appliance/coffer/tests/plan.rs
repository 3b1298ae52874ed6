//! `coffer plan` and `coffer history` against the development GitHub: what is planned is what comes about, and what is false or could
//! not be checked is no plan.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod world;

use cofferdam_attest::event_log::payload::{Declaration, Image, Payload as _};
use cofferdam_attest::event_log::{Event, replay};
use cofferdam_attest::evidence::Evidence;
use cofferdam_protocol::{Digest, hex};
use serde_json::{Value, json};
use world::simulated::{DIGEST, word};
use world::{REPOSITORY, Told, World, said};

const FILE: &str = "cofferdam.yaml";

/// A declaration whose repository is followed, with an image of this digit for `web`, and more.
fn followed(world: &World, digit: char, more: &str) -> String {
    let plain = world.declaration("alice");
    let key = plain.split("key: ").nth(1).unwrap().lines().next().unwrap();
    let follow = format!(
        "signers: [{key}]\nfollow: {{branch: main}}\ngithub: {{token: 'secret://cofferdam/github/token'}}\nservices:"
    );
    plain.replace("services:", &follow).replace(DIGEST, &digest(digit)) + more
}

fn digest(digit: char) -> String {
    DIGEST.replace('1', &digit.to_string())
}

/// An appliance that runs what `text` declares.
fn running(world: &mut World, text: &str) -> Told {
    let commit = world.commit(FILE, text);
    let told = Told { declaration: Digest::of(text).to_string(), ..world.told(&commit, "alice", 600) };
    world.attest(&told);
    world.start();
    told
}

/// What a command prints as JSON, and its exit code.
fn coffer(world: &World, arguments: &[&str]) -> (i32, Value, String) {
    let output = world.command(&[&["--json"], arguments].concat()).output().unwrap();
    let printed = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap(), printed, said(&output))
}

#[test]
fn what_is_planned_is_what_is_attested_afterwards() {
    let Some(mut world) = World::new() else { return };
    let before = followed(&world, '1', "");
    let told = running(&mut world, &before);
    let after = followed(&world, 'b', &format!("  db:\n    image: registry.example/db@{}\n", digest('d')));
    // The branch has it already, and what runs is still what it was.
    let commit = world.commit(FILE, &after);
    let file = world.repository().join(FILE);
    let (code, plan, said) = coffer(&world, &["plan", REPOSITORY, file.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    let changed = json!([{ "name": "web", "keys": ["image"], "image": true }]);
    let change = json!({ "boot": [], "rest": [], "added": ["db"], "removed": [], "changed": changed });
    assert_eq!(plan["change"], change);
    assert_eq!(plan["applies"], "run-time");
    assert_eq!(plan["signers"], json!(["alice@laptop"]));
    assert_eq!(plan["running"]["commit"], told.commit);
    assert_eq!(
        plan["next"],
        json!({ "file": file.to_str().unwrap(), "declaration": Digest::of(&after), "commit": commit })
    );

    let image = |service: &str, path: &str, digit| Image {
        service: service.into(),
        reference: word(&format!("registry.example/{path}@{}", digest(digit))),
    };
    let declaration = Digest::of(&after);
    let applied: Vec<Event> = [
        Declaration { digest: declaration, source: "github".into(), commit: word(&commit) }.event().unwrap(),
        image("web", "web", 'b').event().unwrap(),
        image("db", "db", 'd').event().unwrap(),
    ]
    .into();
    let now = Told {
        booted: Some((told.commit.clone(), told.declaration.clone())),
        applied,
        declaration: declaration.to_string(),
        ..world.told(&commit, "alice", 60)
    };
    let log = Evidence::parse(&now.document()).unwrap().event_log;
    assert_eq!(plan["rtmr3"], hex::encode(replay(&log, 3)), "{plan}");

    world.stop();
    let tag = world.attest(&now);
    world.start();
    let (code, verified, said) = world.verify(&[]);
    assert_eq!((code, &verified["claims"]["commit"]), (0, &json!(commit)), "{said}");
    assert_eq!(verified["claims"]["declaration"], declaration.to_string());
    let (code, plan, said) = coffer(&world, &["plan", file.to_str().unwrap()]);
    assert_eq!((code, &plan["applies"], &plan["release"]), (0, &json!("nothing"), &Value::Null), "{said}");
    assert_eq!(plan["running"]["release"], tag);

    let path = file.to_str().unwrap();
    let content = || std::fs::read_to_string(&file).unwrap();
    let (code, back, told_back) = coffer(&world, &["rollback", path]);
    assert_eq!((code, content()), (0, before.clone()), "{told_back}");
    assert_eq!((&back["commit"], &back["applies"]), (&json!(told.commit), &json!("run-time")));
    assert_eq!(back["change"]["removed"], json!(["db"]));
    assert_eq!(back["running"]["commit"], commit);
    let (code, _, refused) = coffer(&world, &["rollback", path]);
    assert_eq!((code, content()), (2, before.clone()), "what no commit has is not overwritten: {refused}");
    // A commit that the appliance has not taken: back to what runs.
    let bad = world.commit(FILE, &after.replace(&digest('d'), &digest('e')));
    let (code, back, told_back) = coffer(&world, &["rollback", path]);
    assert_eq!((code, content()), (0, after.clone()), "{told_back}");
    assert_eq!((&back["commit"], &back["applies"]), (&json!(commit), &json!("nothing")));
    let (code, back, _) = coffer(&world, &["rollback", path, "--to", &bad]);
    assert_eq!((code, &back["commit"]), (2, &Value::Null), "it is not committed");
    world.commit(FILE, &after);
    let (code, back, told_back) = coffer(&world, &["rollback", path, "--to", &told.commit]);
    assert_eq!((code, content(), &back["commit"]), (0, before.clone(), &json!(told.commit)), "{told_back}");
    world.commit(FILE, &after);

    let (code, history, said) = coffer(&world, &["history", REPOSITORY]);
    assert_eq!(code, 0, "{said}");
    let booted = json!({ "commit": told.commit, "declaration": told.declaration, "source": "disk" });
    let runs = json!({ "commit": commit, "declaration": declaration, "source": "github" });
    assert_eq!(history["declarations"], json!([booted, runs]));
    let earlier = history["earlier"].as_array().unwrap();
    assert_eq!(earlier.len(), 1, "{history}");
    assert_eq!(
        (&earlier[0]["checked"], &earlier[0]["claims"]["commit"]),
        (&json!(true), &json!(told.commit))
    );
    assert_eq!(history["complete"], true);
}

#[test]
fn what_only_a_boot_can_do_is_said_and_not_predicted() {
    let Some(mut world) = World::new() else { return };
    let before = followed(&world, '1', "");
    running(&mut world, &before);
    let plan = |text: &str| {
        std::fs::write(world.at("next.yaml"), text).unwrap();
        let file = world.at("next.yaml");
        coffer(&world, &["plan", REPOSITORY, file.to_str().unwrap(), "--commit", &"b".repeat(40)])
    };
    let (code, planned, said) = plan(&before.replace("shop.example:8443", "other.example:8443"));
    assert_eq!(code, 0, "{said}");
    assert_eq!((&planned["applies"], &planned["rtmr3"]), (&json!("boot"), &Value::Null), "{planned}");
    assert_eq!(planned["because"], "only a boot changes endpoint");
    // The same declaration in other bytes is another one all the same.
    let (_, planned, _) = plan(&format!("{before}# said differently\n"));
    assert_eq!(planned["applies"], "nothing");
    assert_eq!(planned["rtmr3"].as_str().map(str::len), Some(96));
    let (code, planned, _) = plan("version: 1\nservises: {}\n");
    assert_eq!((code, &planned["valid"]), (2, &json!(false)), "{planned}");
    let told = |error: &Value| error["message"].as_str().unwrap().contains("servises") && error["line"] == 2;
    assert!(planned["errors"].as_array().unwrap().iter().any(told), "{planned}");
}

#[test]
fn an_appliance_that_follows_nothing_applies_nothing() {
    let Some(mut world) = World::new() else { return };
    let before = world.declaration("alice");
    running(&mut world, &before);
    let next = before.replace(DIGEST, &digest('b'));
    std::fs::write(world.at("next.yaml"), &next).unwrap();
    let file = world.at("next.yaml");
    let commit = "b".repeat(40);
    let arguments = ["plan", REPOSITORY, file.to_str().unwrap(), "--commit", commit.as_str()];
    let (code, plan, said) = coffer(&world, &arguments);
    assert_eq!((code, &plan["because"]), (0, &json!("what runs follows no branch")), "{said}");
    assert_eq!(plan["applies"], "boot");
}

#[test]
fn an_appliance_that_only_looks_at_its_branch_applies_nothing() {
    let Some(mut world) = World::new() else { return };
    let before = followed(&world, '1', "").replace("follow: {branch: main}", "follow: {apply: false}");
    running(&mut world, &before);
    std::fs::write(world.at("next.yaml"), before.replace(&digest('1'), &digest('b'))).unwrap();
    let (file, commit) = (world.at("next.yaml"), "b".repeat(40));
    let (code, plan, said) = coffer(&world, &["plan", file.to_str().unwrap(), "--commit", &commit]);
    assert_eq!((code, &plan["applies"], &plan["rtmr3"]), (0, &json!("boot"), &Value::Null), "{said}");
    assert!(plan["because"].as_str().unwrap().contains("apply: false"), "{plan}");
}

#[test]
fn what_is_not_verified_is_no_plan() {
    let Some(mut world) = World::new() else { return };
    let before = followed(&world, '1', "");
    let commit = world.commit(FILE, &before);
    // The host has handed over something else than what the repository has.
    world.attest(&Told { declaration: digest('9'), ..world.told(&commit, "alice", 600) });
    world.start();
    let file = world.repository().join(FILE);
    let (code, plan, said) = coffer(&world, &["plan", file.to_str().unwrap()]);
    assert_eq!((code, &plan["rtmr3"]), (3, &Value::Null), "{said}");
    let (code, ..) = coffer(&world, &["history", REPOSITORY]);
    assert_eq!(code, 3);
    world.stop();
    for verb in [["plan", file.to_str().unwrap()], ["history", REPOSITORY]] {
        let (code, _, said) = coffer(&world, &verb);
        assert_eq!(code, 6, "{said}");
    }
}

#[test]
fn a_release_of_a_token_thief_is_listed_as_what_it_is() {
    let Some(mut world) = World::new() else { return };
    let before = followed(&world, '1', "");
    let told = running(&mut world, &before);
    world.stop();
    // Under the tag of its claims, and with one byte of the log changed.
    let forged = Told { issued: told.issued - 600, ..told.clone() }.document();
    let tag = world::tag_of(&forged);
    let forged =
        String::from_utf8(forged).unwrap().replacen("\"event\":\"launch\"", "\"event\":\"sealed\"", 1);
    world.release(&tag, &[("attestation.json", forged.as_bytes())]);
    world.start();
    let (code, history, said) = coffer(&world, &["history", REPOSITORY]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(history["declarations"].as_array().unwrap().len(), 1);
    let earlier = &history["earlier"][0];
    assert_eq!(
        (&earlier["tag"], &earlier["checked"], &earlier["claims"]),
        (&json!(tag), &json!(false), &Value::Null)
    );
    assert!(earlier["detail"].as_str().unwrap().starts_with("refused: event_log"), "{earlier}");
}
