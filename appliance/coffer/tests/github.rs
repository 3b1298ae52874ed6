//! `coffer verify` against the development GitHub: what a thief of the token can do, what GitHub is asked, and what is said
//! when it does not answer.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod world;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cofferdam_protocol::{Digest, Timestamp};
use serde_json::{Value, json};
use world::{REPOSITORY, TOKEN, Told, World, now, said, tag_at, tag_of};

const DOCUMENT: &str = "attestation.json";

/// A repository with one honest attestation, ten minutes old, behind a change of another file.
fn honest() -> Option<(World, Told)> {
    let mut world = World::new()?;
    let commit = world.declare("alice");
    world.commit("README.md", "moved on\n");
    let told = world.told(&commit, "alice", 600);
    world.attest(&told);
    Some((world, told))
}

#[test]
fn verify_asks_at_most_four_times_cold_and_once_warm() {
    for token in [None, Some(TOKEN)] {
        let Some((mut world, _)) = honest() else { return };
        world.token = token;
        world.start();
        let (code, printed, said) = world.verify(&[]);
        assert_eq!(code, 0, "{said}");
        let cold = world.counted();
        assert!(cold[0] <= 4, "{cold:?}");
        assert_eq!(cold[1], 1);
        let counted = |printed: &Value| {
            ["api", "git", "storage"].map(|kind| printed["requests"][kind].as_u64().unwrap() as usize)
        };
        assert_eq!(counted(&printed), cold, "as GitHub's own log has it");
        let (code, printed, said) = world.verify(&[]);
        assert_eq!(code, 0, "{said}");
        let asked = world.asked();
        let warm: Vec<&Value> = asked.iter().filter(|entry| entry["kind"] == "api").collect();
        assert_eq!(warm.len(), 1, "{asked:?}");
        assert_eq!((&warm[0]["status"], &warm[0]["conditional"]), (&json!(304), &json!(true)));
        assert_eq!(counted(&printed), [1, 1, 0]);
        assert_eq!(printed["requests"]["unchanged"], 1);
        // For a person too.
        let output = world.command(&["verify", REPOSITORY, "-v"]).output().unwrap();
        assert!(crate::said(&output).contains("1 API requests (1 unchanged), 1 of git, 0 to storage"));
        eprintln!("cold {cold:?}, warm [1, 1, 0] (API, git, storage), token: {}", token.is_some());
    }
}

#[test]
fn a_year_of_releases_costs_no_more_requests() {
    for token in [None, Some(TOKEN)] {
        let Some((mut world, told)) = honest() else { return };
        world.token = token;
        for n in 1..550 {
            world.release(&tag_at(told.issued - n as u64 * 57_600, n), &[(DOCUMENT, b"expired")]);
        }
        world.release(&tag_at(now() + 86_400, 0), &[(DOCUMENT, b"{}")]);
        world.judged = false;
        world.start();
        // The honest one on the first page, as the newest is on GitHub at most times.
        world.scenario(json!({ "order": "oldest" }));
        let (code, _, said) = world.verify(&[]);
        assert_eq!(code, 0, "{said}");
        let cold = world.counted();
        assert_eq!(world.verify(&[]).0, 0);
        let warm = world.counted();
        assert!(cold[0] <= 4 && warm[0] == 1, "{cold:?} {warm:?}");
    }
}

#[test]
fn without_the_network_the_answer_is_could_not_check_cached_or_not() {
    let Some((mut world, _)) = honest() else { return };
    world.start();
    world.stop();
    assert_eq!(world.verify(&["--timeout", "3s"]).0, 6, "nothing cached");
    world.start();
    assert_eq!(world.verify(&[]).0, 0);
    world.stop();
    assert_eq!(world.verify(&["--timeout", "3s"]).0, 6, "everything cached");
}

#[test]
fn a_cache_that_cannot_be_written_is_no_error() {
    let Some((mut world, _)) = honest() else { return };
    world.start();
    std::fs::write(world.at("home"), "a file in the way").unwrap();
    let (code, _, said) = world.verify(&[]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn a_tampered_cache_makes_nothing_accepted() {
    let Some((mut world, told)) = honest() else { return };
    world.start();
    assert_eq!(world.verify(&[]).0, 0);
    // Entries that are whole, and vouched for by another key.
    let Some(mut other) = World::new() else { return };
    other.clone_of(&world);
    other.release(&tag_of(&told.document()), &[(DOCUMENT, &told.document())]);
    other.start();
    assert_eq!(other.verify(&[]).0, 0);
    let entries = world.cached();
    assert!(entries.len() >= 4, "{entries:?}");
    let good: Vec<Vec<u8>> = entries.iter().map(|path| std::fs::read(path).unwrap()).collect();
    let restore = || {
        for (path, bytes) in entries.iter().zip(&good) {
            std::fs::write(path, bytes).unwrap();
        }
    };
    for round in 0..4 {
        restore();
        for (at, path) in entries.iter().enumerate() {
            let mut bytes = good[at].clone();
            match round {
                0 => bytes.truncate(bytes.len() / 2),
                1 => bytes.iter_mut().skip(32).for_each(|byte| *byte ^= 1),
                2 => bytes.clone_from(&good[(at + 1) % good.len()]),
                _ => bytes = std::fs::read(&other.cached()[at % other.cached().len()]).unwrap(),
            }
            std::fs::write(path, bytes).unwrap();
        }
        world.asked();
        let (code, _, said) = world.verify(&[]);
        assert_eq!(code, 0, "{said}");
        assert!(world.counted()[0] > 1, "round {round}: what does not prove itself is asked for again");
    }
    // What is false stays false with whatever the cache holds.
    restore();
    world.declare("mallory");
    assert_eq!(world.verify(&[]).0, 3, "the default branch declares something else");
    for path in world.cached() {
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.rotate_left(32);
        std::fs::write(path, bytes).unwrap();
    }
    assert_eq!(world.verify(&[]).0, 3);
}

#[test]
fn an_old_declaration_behind_a_symbolic_link_is_refused() {
    let Some(mut world) = World::new() else { return };
    std::fs::create_dir(world.repository().join("deploy")).unwrap();
    std::os::unix::fs::symlink("deploy/app.yaml", world.repository().join("cofferdam.yaml")).unwrap();
    world.git(&["add", "cofferdam.yaml"]);
    let commit = world.commit("deploy/app.yaml", &world.declaration("alice"));
    let told = world.told(&commit, "alice", 600);
    world.attest(&told);
    world.start();
    assert_eq!(world.verify(&[]).0, 0);
    world.commit("README.md", "moved on\n");
    let (code, _, said) = world.verify(&[]);
    assert_eq!(code, 0, "{said}");
    // Only the target of the link changes, and a comparison names only that.
    world.commit("deploy/app.yaml", &world.declaration("mallory"));
    let (code, _, said) = world.verify(&[]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("is not what the default branch"), "{said}");
    assert_eq!(world.verify(&["--commit", &commit]).0, 0, "named on purpose");
    // And back to what it was.
    world.commit("deploy/app.yaml", &world.declaration("alice"));
    assert_eq!(world.verify(&[]).0, 0);
}

#[test]
fn measured_bytes_that_the_claimed_commit_does_not_declare_are_refused() {
    // Those of the head, under the name of a commit before it.
    let Some(mut world) = World::new() else { return };
    let commit = world.declare("alice");
    world.declare("mallory");
    let told = world.told(&commit, "mallory", 600);
    world.attest(&told);
    world.start();
    let (code, _, said) = world.verify(&[]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("declaration: the appliance measured"), "{said}");
}

/// What a thief of the token can put on top, each with a name.
fn junk(world: &World, told: &Told) -> Vec<(&'static str, String, Vec<u8>)> {
    let honest = Told { issued: now(), ..told.clone() }.document();
    let mut forged: Value = serde_json::from_slice(&honest).unwrap();
    let claims = STANDARD.decode(forged["claims"].as_str().unwrap()).unwrap();
    let claims = String::from_utf8(claims).unwrap().replace("shop.example:8443", "thief.example:443");
    forged["claims"] = STANDARD.encode(&claims).into();
    let forged = forged.to_string().into_bytes();
    let foreign = Told {
        commit: world.git(&["rev-parse", "fork"]),
        declaration: Digest::of(world.declaration("mallory").as_bytes()).to_string(),
        issued: now(),
        ..told.clone()
    };
    let unknown = Told { commit: "0".repeat(40), issued: now(), ..told.clone() };
    let mut no_collateral: Value = serde_json::from_slice(&honest).unwrap();
    no_collateral.as_object_mut().unwrap().remove("collateral");
    let no_collateral = no_collateral.to_string().into_bytes();
    vec![
        ("html", tag_at(now(), 1), b"<html>".to_vec()),
        ("empty", tag_at(now(), 2), Vec::new()),
        ("too large", tag_at(now(), 3), vec![b' '; 256 * 1024 + 1]),
        ("another tag's", tag_at(now(), 4), honest.clone()),
        ("from the future", tag_at(now() + 86_400, 5), b"{}".to_vec()),
        ("forged claims", tag_of(&forged), forged),
        ("a fork's", tag_of(&foreign.document()), foreign.document()),
        ("unknown commit", tag_of(&unknown.document()), unknown.document()),
        ("without collateral", tag_of(&honest), no_collateral),
    ]
}

fn with_fork(world: &World) {
    world.git(&["checkout", "-q", "-b", "fork"]);
    world.declare("mallory");
    world.git(&["checkout", "-q", "main"]);
}

#[test]
fn no_junk_release_on_top_decides_the_answer_and_each_is_said() {
    let Some((mut world, told)) = honest() else { return };
    with_fork(&world);
    let tag = tag_of(&told.document());
    for (name, junk_tag, document) in junk(&world, &told) {
        world.release(&junk_tag, &[(DOCUMENT, &document)]);
        eprintln!("{name}: {junk_tag}");
    }
    world.release(&tag_at(now(), 6), &[("other.json", b"{}")]);
    world.release("v1.0.0", &[(DOCUMENT, b"{}")]);
    world.start();
    for order in ["newest", "oldest", "shuffled"] {
        world.scenario(json!({ "order": order }));
        let (code, printed, said) = world.verify(&[]);
        assert_eq!(code, 0, "{said}");
        assert_eq!(printed["release"]["tag"], tag.as_str());
        let skipped = &printed["skipped"];
        assert_eq!(skipped["from_the_future"], 1, "{skipped}");
        assert_eq!(skipped["without_document"], 3, "{skipped}");
        assert_eq!((&skipped["rejected"], &skipped["could_not_check"]), (&json!(5), &json!(1)), "{skipped}");
        let named = skipped["attestations"].to_string();
        for reason in ["malformed", "tag:", "not in the history", "quote_chain"] {
            assert!(named.contains(reason), "{reason}: {named}");
        }
    }
    let output = world.command(&["verify", REPOSITORY]).output().unwrap();
    let text = crate::said(&output);
    assert!(text.contains("passed over") && text.contains("1 with a tag from the future"), "{text}");
}

#[test]
fn one_of_each_junk_alone_on_top_decides_nothing() {
    let Some((world, told)) = honest() else { return };
    with_fork(&world);
    let kinds = junk(&world, &told).len();
    for kind in 0..kinds {
        let Some((mut world, told)) = honest() else { return };
        with_fork(&world);
        let (name, tag, document) = junk(&world, &told).remove(kind);
        world.release(&tag, &[(DOCUMENT, &document)]);
        world.start();
        let (code, printed, said) = world.verify(&[]);
        assert_eq!(code, 0, "{name}: {said}");
        assert_eq!(printed["release"]["tag"], tag_of(&told.document()).as_str(), "{name}");
    }
}

#[test]
fn with_nothing_but_junk_no_is_said_when_all_was_judged_and_could_not_check_otherwise() {
    let Some((world, told)) = honest() else { return };
    with_fork(&world);
    let codes: Vec<(&str, i32)> = junk(&world, &told)
        .into_iter()
        .map(|(name, tag, document)| {
            let Some(mut only) = World::new() else { return (name, 0) };
            only.clone_of(&world);
            only.release(&tag, &[(DOCUMENT, &document)]);
            only.start();
            (name, only.verify(&[]).0)
        })
        .collect();
    assert_eq!(
        codes,
        [
            ("html", 3),
            ("empty", 6),
            ("too large", 6),
            ("another tag's", 3),
            ("from the future", 6),
            ("forged claims", 3),
            ("a fork's", 3),
            ("unknown commit", 3),
            ("without collateral", 6),
        ]
    );
}

#[test]
fn a_thousand_junk_releases_do_not_hide_the_attestation() {
    let Some((mut world, told)) = honest() else { return };
    let tag = tag_of(&told.document());
    let honest = Told { issued: now(), ..told.clone() }.document();
    for n in 0..1_000 {
        // All of them newer than the honest one, within the tolerance for clocks.
        let junk_tag = tag_at(now() - 500 + n as u64 / 2, n);
        match n % 5 {
            0 => world.release(&format!("v{n}"), &[(DOCUMENT, b"{}")]),
            1 => world.release(&junk_tag, &[("junk", b"{}")]),
            2 => world.release(&junk_tag, &[(DOCUMENT, &honest)]),
            3 => world.release(&junk_tag, &[(DOCUMENT, b"{\"version\":1}")]),
            _ => world.release(&junk_tag, &[(DOCUMENT, format!("junk {n}").as_bytes())]),
        }
    }
    // A thousand answers are a lot to hold against a description.
    world.judged = false;
    for order in ["newest", "shuffled"] {
        world.scenario(json!({ "order": order }));
        world.start();
        let begun = std::time::Instant::now();
        let (code, printed, said) = world.verify(&["--timeout", "10m"]);
        let took = begun.elapsed();
        world.stop();
        assert_eq!(code, 0, "{said}");
        assert_eq!(printed["release"]["tag"], tag.as_str());
        let skipped = &printed["skipped"];
        assert_eq!((&skipped["rejected"], &skipped["without_document"]), (&json!(600), &json!(200)));
        assert_eq!(skipped["attestations"].as_array().unwrap().len(), 20);
        eprintln!("{order}: {took:?}, {}", printed["requests"]);
        assert!(printed["requests"]["api"].as_u64().unwrap() <= 11 + 3, "{}", printed["requests"]);
        world.forget();
    }
}

#[test]
fn a_thousand_releases_of_claims_that_their_quote_does_not_commit_to_do_not_hide_the_attestation() {
    let Some((mut world, told)) = honest() else { return };
    let tag = tag_of(&told.document());
    let evidence: Value = serde_json::from_slice(&told.document()).unwrap();
    let claims = String::from_utf8(STANDARD.decode(evidence["claims"].as_str().unwrap()).unwrap()).unwrap();
    for n in 0..1_000_u64 {
        // Well formed, of their tag, newer, and without a change that a search for one would find.
        let issued = Timestamp::shown(now() - 500 + n / 2);
        let key = format!("sha256:{n:064x}");
        let changed = claims
            .replace(&Timestamp::shown(told.issued), &issued)
            .replace(&told.tls_key, &key)
            .replace(&told.endpoint, "thief.example:443")
            .replace(&told.vault_key, &STANDARD.encode([(n % 255) as u8 + 1; 32]));
        let mut forged = evidence.clone();
        forged["claims"] = STANDARD.encode(changed).into();
        let forged = forged.to_string().into_bytes();
        world.release(&tag_of(&forged), &[(DOCUMENT, &forged)]);
    }
    world.judged = false;
    world.start();
    let begun = std::time::Instant::now();
    let (code, printed, said) = world.verify(&[]);
    assert_eq!(code, 0, "within the default limit: {said}");
    assert_eq!(printed["release"]["tag"], tag.as_str());
    assert_eq!(printed["skipped"]["rejected"], 1_000);
    eprintln!("{:?}, {}", begun.elapsed(), printed["requests"]);
}

#[test]
fn the_refusal_that_is_shown_names_the_claim_that_was_changed() {
    let Some((world, told)) = honest() else { return };
    with_fork(&world);
    let (_, tag, forged) = junk(&world, &told).remove(5);
    let Some(mut only) = World::new() else { return };
    only.clone_of(&world);
    only.release(&tag, &[(DOCUMENT, &forged)]);
    only.start();
    let (code, printed, said) = only.verify(&[]);
    assert_eq!(code, 3, "{said}");
    let refused = printed["refused_because"].to_string();
    assert!(refused.contains("endpoint was changed"), "{refused}");
}

#[test]
fn more_documents_than_are_downloaded_leave_the_answer_open() {
    let Some((mut world, _)) = honest() else { return };
    for n in 0..1_100 {
        world.release(&tag_at(now() - 590 + n as u64 / 2, n), &[(DOCUMENT, b"junk")]);
    }
    world.judged = false;
    world.start();
    let (code, _, said) = world.verify(&["--timeout", "10m"]);
    assert_eq!(code, 6, "{said}");
    // The first by itself, then eight at a time: 1,017 of 1,101.
    assert!(said.contains("84 not looked at: too many"), "{said}");
}

#[test]
fn more_releases_than_are_looked_at_are_said_and_leave_the_answer_open() {
    let Some(mut world) = World::new() else { return };
    world.declare("alice");
    for n in 0..2_001 {
        world.release(&format!("v{n}"), &[]);
    }
    // A tag that has no release: it might be on any page.
    world.git(&["tag", &tag_at(now(), 1)]);
    world.judged = false;
    world.start();
    let (code, _, said) = world.verify(&[]);
    assert_eq!(code, 6, "{said}");
    assert!(said.contains("2000 releases were looked at, there are more"), "{said}");
    assert_eq!(world.counted()[0], 20);
}

#[test]
fn the_newest_claim_is_taken_in_whatever_order_the_list_comes() {
    let Some((mut world, told)) = honest() else { return };
    let newest = world.attest(&Told { issued: told.issued + 300, ..told.clone() });
    world.attest(&Told { issued: told.issued - 3000, ..told });
    world.start();
    for order in ["newest", "oldest", "shuffled"] {
        world.scenario(json!({ "order": order }));
        let (code, printed, said) = world.verify(&[]);
        assert_eq!((code, &printed["release"]["tag"]), (0, &json!(newest)), "{said}");
    }
}

#[test]
fn an_expired_attestation_is_refused_and_said_to_be() {
    let Some(mut world) = World::new() else { return };
    let commit = world.declare("alice");
    for days in [9, 12, 20] {
        let told = world.told(&commit, "alice", days * 86_400);
        world.attest(&told);
    }
    world.start();
    let (code, printed, said) = world.verify(&[]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("expires_at") || said.contains("issued_at"), "{said}");
    assert_eq!(printed["skipped"]["too_old"], 2);
}

#[test]
fn a_commit_behind_four_hundred_others_is_in_the_history() {
    let Some(mut world) = World::new() else { return };
    let commit = world.declare("alice");
    // All of the same date: what hides a commit in a list by date.
    let date = world.git(&["show", "-s", "--format=%ct"]);
    let mut stream = String::new();
    for n in 1..=400 {
        let from = if n == 1 { "from refs/heads/main^0\n" } else { "" };
        stream.push_str(&format!(
            "commit refs/heads/main\ncommitter T <t@example.org> {date} +0000\ndata 1\nx\n{from}\
             M 100644 inline file\ndata 3\n{n:03}\n"
        ));
    }
    std::fs::write(world.at("stream"), stream).unwrap();
    let import = std::process::Command::new("git")
        .args(["fast-import", "--quiet"])
        .current_dir(world.repository())
        .stdin(std::fs::File::open(world.at("stream")).unwrap())
        .status();
    assert!(import.unwrap().success());
    let told = world.told(&commit, "alice", 60);
    world.attest(&told);
    world.start();
    let (code, _, said) = world.verify(&[]);
    assert_eq!(code, 0, "{said}");
    assert!(world.counted()[0] <= 4);
}

#[test]
fn where_github_does_not_tell_the_history_the_answer_is_could_not_check() {
    for (fault, words) in [
        (json!({ "status": 404, "body": "{\"message\":\"Not Found\"}" }), "not found"),
        (json!({ "status": 500, "body": "{\"message\":\"broken\"}" }), "500"),
        (json!({ "status": 200, "body": "<html>" }), "malformed"),
        (json!({ "status": 403, "body": "{}", "headers": { "Retry-After": "3600" } }), "wait 3600 s"),
    ] {
        let Some((mut world, _)) = honest() else { return };
        let mut fault = fault;
        (fault["path"], fault["times"]) = (json!("/compare/"), json!(100));
        world.faults(json!([fault]));
        world.start();
        let (code, _, said) = world.verify(&["--timeout", "20s"]);
        assert_eq!(code, 6, "{said}");
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn no_name_that_a_thief_can_give_to_a_ref_is_asked_for() {
    let Some((mut world, told)) = honest() else { return };
    with_fork(&world);
    let fork = world.git(&["rev-parse", "fork"]);
    for name in [
        "refs/heads/HEAD",
        "refs/tags/HEAD",
        "refs/tags/main",
        "refs/heads/heads/main",
        "refs/tags/heads/main",
    ] {
        world.git(&["update-ref", name, &fork]);
    }
    // Even two ways of learning where the default branch stands.
    for git in [true, false] {
        if !git {
            world.faults(json!([{ "path": "git-upload-pack", "status": 404, "times": 100 }]));
        }
        world.forget();
        world.start();
        let (code, _, said) = world.verify(&[]);
        world.stop();
        assert_eq!(code, 0, "{said}");
        let asked = world.asked();
        assert_eq!(
            asked.iter().any(|entry| entry["path"].as_str().unwrap().contains("/git/ref/heads/main")),
            !git
        );
        for entry in asked {
            let (path, query) = (entry["path"].as_str().unwrap(), entry["query"].as_str().unwrap());
            let by_name = query.contains("ref=main") || query.contains("HEAD") || path.contains("HEAD");
            assert!(!by_name && !path.contains("commits/main"), "{path}?{query}");
        }
    }
    // And evidence for what those refs point to is refused.
    let Some(mut thief) = World::new() else { return };
    thief.clone_of(&world);
    for name in ["refs/heads/HEAD", "refs/tags/HEAD", "refs/tags/main"] {
        thief.git(&["update-ref", name, &fork]);
    }
    let declaration = Digest::of(world.declaration("mallory").as_bytes()).to_string();
    thief.attest(&Told { commit: fork, declaration, ..told });
    thief.start();
    let (code, _, said) = thief.verify(&[]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("default branch"), "{said}");
}

#[test]
fn git_that_does_not_answer_leaves_the_api() {
    let Some((mut world, _)) = honest() else { return };
    world.faults(json!([{ "path": "git-upload-pack", "delay": 50, "times": 9 }]));
    world.start();
    let (code, printed, said) = world.verify(&[]);
    assert_eq!(code, 0, "{said}");
    assert_eq!((&printed["requests"]["git"], &printed["requests"]["api"]), (&json!(1), &json!(6)));
}

#[test]
fn reference_values_of_a_release_are_counted_and_too_many_of_them_are_could_not_check() {
    let Some((mut world, _)) = honest() else { return };
    let halves: Vec<(String, Vec<u8>)> = (0..2)
        .map(|n| format!("reference-{n}.json"))
        .map(|name| (name.clone(), std::fs::read(world.at(&name)).unwrap()))
        .collect();
    let assets: Vec<(&str, &[u8])> =
        halves.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    world.release("v1.0.0", &assets);
    let names: Vec<String> = (0..257).map(|n| format!("reference-{n}.json")).collect();
    let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), b"{}".as_slice())).collect();
    world.release("v2.0.0", &many);
    world.start();
    let (code, printed, said) = world.verify(&["--reference", "github:acme/shop@v1.0.0"]);
    assert_eq!(code, 0, "{said}");
    let counted = world.counted();
    let told = ["api", "git", "storage"].map(|kind| printed["requests"][kind].as_u64().unwrap() as usize);
    // Three assets, each behind a redirect.
    assert_eq!((told, counted), ([5, 1, 6], [5, 1, 6]));
    let (code, _, said) = world.verify(&["--reference", "github:acme/shop@v2.0.0"]);
    assert_eq!(code, 6, "{said}");
    assert!(said.contains("257 such files"), "{said}");
}

#[test]
fn a_used_up_rate_limit_says_when_it_resets_and_what_helps() {
    for status in [403, 429] {
        let Some((mut world, _)) = honest() else { return };
        world.scenario(json!({ "limits": { "anonymous": 2 }, "limited": status }));
        world.start();
        let (code, _, said) = world.verify(&["--timeout", "20s"]);
        assert_eq!(code, 6, "{said}");
        assert!(said.contains("rate limit is used up; it resets at 20"), "{said}");
        assert!(said.contains("COFFER_GITHUB_TOKEN"), "{said}");
        assert_eq!(world.asked().iter().filter(|entry| entry["status"] == status).count(), 1, "asked once");
    }
}

#[test]
fn retry_after_is_waited_for_when_there_is_time() {
    let Some((mut world, _)) = honest() else { return };
    world.faults(json!([{ "path": "/releases$", "status": 403, "times": 1, "body": "{}", "headers": { "Retry-After": "2" } }]));
    world.start();
    let begun = std::time::Instant::now();
    let (code, _, said) = world.verify(&[]);
    assert_eq!(code, 0, "{said}");
    assert!(begun.elapsed().as_secs() >= 2);
}

#[test]
fn storage_or_a_portal_that_refuses_is_no_token_refused() {
    let Some((mut world, told)) = honest() else { return };
    world.release(&tag_at(told.issued + 60, 1), &[(DOCUMENT, b"{}")]);
    world.start();
    for status in [401, 403] {
        world.forget();
        let refused = json!({ "path": "/releases/download/", "status": status, "times": 1, "body": "<Error>AccessDenied</Error>" });
        world.faults(json!([refused]));
        let (code, printed, said) = world.verify(&[]);
        assert_eq!(code, 0, "the older one: {said}");
        assert!(printed["skipped"].to_string().contains(&status.to_string()), "{}", printed["skipped"]);

        world.forget();
        let portal =
            json!({ "path": "/releases$", "status": status, "times": 9, "body": "<html>sign in</html>" });
        world.faults(json!([portal]));
        let (code, _, said) = world.verify(&["--timeout", "20s"]);
        assert_eq!(code, 6, "{said}");
        assert!(!said.contains("sign in"), "{said}");
        // What GitHub itself says of a token is another thing.
        world.faults(json!([{ "path": "/releases$", "status": status, "times": 9 }]));
        assert_eq!(world.verify(&[]).0, 4);
    }
}

#[test]
fn immutable_of_a_release_is_read_and_shown() {
    let Some((mut world, _)) = honest() else { return };
    world.start();
    for (immutable, words) in [(true, "(immutable)"), (false, "(not immutable: ")] {
        world.scenario(json!({ "immutable": immutable }));
        assert_eq!(world.verify(&[]).1["release"]["immutable"], immutable);
        let output = world.command(&["verify", REPOSITORY]).output().unwrap();
        assert!(said(&output).contains(words), "{}", said(&output));
    }
}

#[test]
fn an_endpoint_that_nothing_vouches_for_cannot_choose_the_answer() {
    let Some((mut world, _)) = honest() else { return };
    world.start();
    let endpoint = world.api.trim_start_matches("https://").split('/').next().unwrap().to_owned();
    for fault in [
        json!({ "path": "well-known", "status": 200, "times": 9, "body": "<html>sign in to the network</html>" }),
        json!({ "path": "well-known", "status": 404, "times": 9, "body": "<html>" }),
    ] {
        world.faults(json!([fault]));
        let key = world.at("operator.key");
        if !key.exists() {
            let made = std::process::Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(&key)
                .status();
            assert!(made.unwrap().success());
        }
        let arguments = ["status", REPOSITORY, "--endpoint", &endpoint, "--key", key.to_str().unwrap()];
        let output = world.command(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(6), "{}", said(&output));
        assert!(!said(&output).contains("sign in"), "{}", said(&output));
    }
}
