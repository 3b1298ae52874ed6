//! The follower against the development GitHub, with real git and real SSH keys.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;

use cofferdam_declaration::MAX_BYTES;
use cofferdam_protocol::change::{Change, Changes, Outcome};
use cofferdam_protocol::facts::ApplianceFacts;

use super::super::tests::{REFERENCE, TOKEN, World};
use super::*;
use crate::roles::facts;
use nix::libc::O_NONBLOCK;

#[path = "../../../../github/tests/development/mod.rs"]
mod development;

use development::Development;

/// A declaration of the repository, with one figure in it.
fn declaration(repository: &str, retries: u32) -> String {
    format!(
        "version: 1\nrepository: {repository}\nendpoint: app.example.org:443\nservices:\n  web:\n    image: registry.example.org/acme/web@sha256:{}\n    restart: on-failure:{retries}\n",
        "1".repeat(64)
    )
}

/// An appliance that runs the first commit, and follows `main`.
struct Room {
    github: Development,
    world: World,
    follower: Follower,
    events: Arc<Ring>,
    /// As PID 1 holds it.
    bell: File,
}

fn declares(retries: u32) -> String {
    declaration("acme/room", retries)
}

impl Room {
    async fn new() -> Option<Self> {
        let github = Development::start("acme/room", TOKEN, &declares(0))?;
        let mut world = World::new().await;
        let running: ApplianceFacts = facts::appliance(&world.paths.appliance).unwrap();
        let running = ApplianceFacts {
            commit: github.git(&["rev-parse", "HEAD"]).parse().unwrap(),
            declaration: Digest::of(declares(0).as_bytes()),
            ..running
        };
        std::fs::write(&world.paths.appliance, serde_json::to_vec(&running).unwrap()).unwrap();
        for (name, kind) in
            [("alice", "ed25519"), ("bob", "ecdsa"), ("mallory", "ed25519"), ("retired", "ed25519")]
        {
            github.key(name, kind);
        }
        let signers = ["alice", "bob"].map(|name| {
            let line =
                std::fs::read_to_string(github.files().join("../../..").join(name).with_extension("pub"));
            line.unwrap().parse().unwrap()
        });
        let declared = cofferdam_declaration::Follow {
            branch: "main".parse().unwrap(),
            interval: Duration::from_millis(50),
            apply: true,
        };
        world.settings.github = github.root.clone();
        world.settings.github_ca = Some(github.ca.clone());
        world.settings.follow = Some(FollowFacts { declared, signers: signers.to_vec() });
        let bell = world.paths.directory.join("bell");
        nix::unistd::mkfifo(&bell, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let bell =
            std::fs::OpenOptions::new().read(true).write(true).custom_flags(O_NONBLOCK).open(bell).unwrap();
        let events = Arc::new(Ring::at(world.paths.directory.join("events")));
        let follower = follower(&world, &events);
        Some(Self { github, world, follower, events, bell })
    }

    /// One look, said as the loop says it.
    async fn look(&mut self) -> Result<Found, FollowError> {
        self.follower.turn(&REFERENCE.parse().unwrap()).await?;
        Ok(self.follower.status.status.found.clone())
    }

    /// Why the head, which is `commit`, does not count.
    async fn refused(&mut self, commit: &str) -> (Why, String) {
        let Found::Refused { commit: at, why, detail } = self.look().await.unwrap() else {
            panic!("{:?}", self.follower.status.status)
        };
        assert_eq!(at.to_string(), commit);
        (why, detail)
    }

    /// Who signed the head, which is `commit` and counts.
    async fn newer(&mut self, commit: &str) -> String {
        let Found::Newer { commit: at, signer, .. } = self.look().await.unwrap() else {
            panic!("{:?}", self.follower.status.status)
        };
        assert_eq!(at.to_string(), commit);
        signer
    }

    /// Whether it has rung since the last time.
    fn rang(&mut self) -> usize {
        self.bell.read(&mut [0; 64]).unwrap_or_default()
    }

    /// What lies there for PID 1's role, judged as that judges it.
    fn offered(&self) -> Option<(String, Vec<u8>)> {
        let bytes = std::fs::read(self.world.paths.directory.join("candidate")).ok()?;
        let signers = &self.world.settings.follow.as_ref().unwrap().signers;
        let (commit, declaration) = judge(&Candidate::parse(&bytes).unwrap(), DECLARATION, signers).unwrap();
        Some((commit.id.to_string(), declaration))
    }

    /// This runs from now on, and `publish` is started again.
    fn runs(&mut self, commit: &str, declaration: &str) {
        let running: ApplianceFacts = facts::appliance(&self.world.paths.appliance).unwrap();
        let (commit, declaration) = (commit.parse().unwrap(), Digest::of(declaration));
        let running = ApplianceFacts { commit, declaration, ..running };
        std::fs::write(&self.world.paths.appliance, serde_json::to_vec(&running).unwrap()).unwrap();
        self.follower = follower(&self.world, &self.events);
    }

    /// PID 1 says what became of a commit.
    fn became(&self, commit: &str, outcome: Outcome) {
        let mut changes = std::fs::read(&self.world.paths.changes)
            .map_or_else(|_| Changes::default(), |bytes| Changes::parse(&bytes).unwrap());
        let commit = commit.parse().unwrap();
        changes.add(Change { commit, declaration: Digest::of(b""), at: now(), outcome, detail: None });
        std::fs::write(&self.world.paths.changes, serde_json::to_vec(&changes).unwrap()).unwrap();
    }

    fn requests(&self) -> Vec<serde_json::Value> {
        self.github.written("log").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn written(&self) -> FollowStatus {
        FollowStatus::parse(&std::fs::read(self.world.paths.directory.join("follow.json")).unwrap()).unwrap()
    }
}

fn follower(world: &World, events: &Arc<Ring>) -> Follower {
    let follow = world.settings.follow.clone().unwrap();
    let dates = Arc::new(Dates::new(world.paths.directory.join("clock.json"), None, false));
    Follower::new(follow, world.settings.clone(), world.paths.clone(), dates, Arc::clone(events))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_counts_when_a_signer_signed_it_whatever_github_says_of_it() {
    let Some(mut room) = Room::new().await else { return };
    let begin = room.github.git(&["rev-parse", "HEAD"]);
    assert_eq!(room.look().await.unwrap().commit().unwrap().to_string(), begin);
    room.github.write("scenario", r#"{"verified": true}"#);
    let unsigned = room.github.commit(&declares(1), None);
    assert_eq!(room.refused(&unsigned).await.0, Why::Unsigned);
    for stranger in ["mallory", "retired"] {
        let commit = room.github.commit(&declares(2), Some(stranger));
        let (why, detail) = room.refused(&commit).await;
        assert_eq!(why, Why::Stranger);
        assert!(detail.contains("SHA256:"), "{detail}");
    }
    // As GitHub makes a merge on its pages, but for the signature itself.
    let text = room.github.git(&["cat-file", "commit", &unsigned]) + "\n";
    let pgp = "gpgsig -----BEGIN PGP SIGNATURE-----\n \n wsFcBAABCAAQBQJ\n -----END PGP SIGNATURE-----\n\n";
    let merge = room.github.store(&text.replacen("\n\n", &format!("\n{pgp}"), 1));
    room.github.git(&["reset", "-q", "--hard", &merge]);
    let (why, detail) = room.refused(&merge).await;
    assert_eq!(why, Why::OtherSignature);
    assert!(detail.contains("merged on its pages"), "{detail}");
    // What the words say helps: a signed commit on top, of whatever is below.
    let approved = room.github.commit_index(Some("alice"));
    assert_eq!(room.newer(&approved).await, "alice");
    let by_bob = room.github.commit(&declares(3), Some("bob"));
    assert_eq!(room.newer(&by_bob).await, "bob");
    // Signed, and declares what runs.
    let same = room.github.commit(&declares(0), Some("alice"));
    assert_eq!(room.look().await.unwrap(), Found::Current { commit: same.parse().unwrap() });
    let written = room.written();
    assert_eq!(
        (written.found.commit(), written.newest.map(|it| it.to_string())),
        (same.parse().ok(), Some(same))
    );
    assert_eq!(room.github.written("violations"), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_head_has_to_declare_this_appliance_in_a_file_of_its_own() {
    let Some(mut room) = Room::new().await else { return };
    let broken = room.github.commit(&(declares(1) + "servises: {}\n"), Some("alice"));
    let (why, detail) = room.refused(&broken).await;
    assert_eq!(why, Why::Declaration);
    assert!(detail.starts_with("cofferdam.yaml:8:1: "), "{detail}");
    let other = room.github.commit(&declaration("acme/other", 1), Some("alice"));
    assert_eq!(
        room.refused(&other).await,
        (Why::Declaration, "it declares another repository, acme/other".into())
    );
    room.github.git(&["mv", "cofferdam.yaml", "real.yaml"]);
    let gone = room.github.commit_index(Some("alice"));
    assert_eq!(room.refused(&gone).await.0, Why::Declaration);
    std::os::unix::fs::symlink("real.yaml", room.github.files().join("cofferdam.yaml")).unwrap();
    room.github.git(&["add", "-A"]);
    let link = room.github.commit_index(Some("alice"));
    assert_eq!(room.refused(&link).await.0, Why::Declaration);
    std::fs::remove_file(room.github.files().join("cofferdam.yaml")).unwrap();
    let large = room.github.commit(&format!("{}#{}\n", declares(1), "x".repeat(MAX_BYTES)), Some("alice"));
    let found = room.look().await;
    assert!(!matches!(found, Ok(Found::Newer { .. } | Found::Current { .. })), "{large}: {found:?}");
    let mended = room.github.commit(&declares(1), Some("alice"));
    assert_eq!(room.newer(&mended).await, "alice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_branch_moves_forward_only() {
    let Some(mut room) = Room::new().await else { return };
    let begin = room.github.git(&["rev-parse", "HEAD"]);
    let first = room.github.commit(&declares(1), Some("alice"));
    assert_eq!(room.newer(&first).await, "alice");
    let second = room.github.commit(&declares(2), Some("alice"));
    assert_eq!(room.newer(&second).await, "alice");
    // Signed, genuine, and older than what counted.
    for back in [&first, &begin] {
        room.github.git(&["reset", "-q", "--hard", back]);
        let (why, _) = match room.look().await.unwrap() {
            Found::Refused { why, detail, .. } => (why, detail),
            other => panic!("{back}: {other:?}"),
        };
        // The first commit of all is not signed, which is found first.
        assert_eq!(why, if *back == begin { Why::Unsigned } else { Why::NotForward });
    }
    // A history without what runs.
    room.github.git(&["checkout", "-q", "--orphan", "aside"]);
    let aside = room.github.commit(&declares(3), Some("alice"));
    room.github.git(&["branch", "-q", "-f", "main", &aside]);
    assert_eq!(room.refused(&aside).await.0, Why::NotForward);
    // Nothing of it is forgotten when the role starts again.
    room.follower = follower(&room.world, &room.events);
    room.github.git(&["branch", "-q", "-f", "main", &first]);
    assert_eq!(room.refused(&first).await.0, Why::NotForward);
    // Refs that bear the names of others are not what is followed.
    room.github.git(&["branch", "-q", "-f", "main", &second]);
    for name in ["refs/heads/HEAD", "refs/tags/main", "refs/heads/heads/main", "refs/tags/heads/main"] {
        room.github.git(&["update-ref", name, &aside]);
    }
    assert_eq!(room.newer(&second).await, "alice");
    let kinds: Vec<_> = events_of(&room);
    assert!(kinds.iter().filter(|state| *state == "refused").count() >= 4, "{kinds:?}");
    assert_eq!(room.github.written("violations"), "");
}

/// The states that events told of, the oldest first.
fn events_of(room: &Room) -> Vec<String> {
    let text = std::fs::read_to_string(room.world.paths.directory.join("events")).unwrap();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line.trim()).ok());
    lines.filter_map(|line| Some(line["event"]["found"]["state"].as_str()?.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_stays_costs_nothing_and_lies_on_the_way_make_nothing_count() {
    let Some(mut room) = Room::new().await else { return };
    let first = room.github.commit(&declares(1), Some("alice"));
    assert_eq!(room.newer(&first).await, "alice");
    let before = room.requests().len();
    for _ in 0..3 {
        assert_eq!(room.newer(&first).await, "alice");
    }
    let again = room.requests().split_off(before);
    let asked: Vec<_> =
        again.iter().map(|it| (it["path"].as_str().unwrap(), it["status"].as_u64())).collect();
    assert_eq!(asked, [("/api/v3/repos/acme/room/git/ref/heads/main", Some(304)); 3]);

    // The text of a commit that counts, for one that does not.
    let unsigned = room.github.commit(&declares(2), None);
    let (payload, signature) = take_apart(&(room.github.git(&["cat-file", "commit", &first]) + "\n"));
    let lie = serde_json::json!({"sha": unsigned, "verification": {"verified": true, "payload": payload, "signature": signature}});
    let fault = |path: &str, body: String| {
        serde_json::json!([{"path": path, "status": 200, "body": body}]).to_string()
    };
    room.github.write("faults", &fault("/git/commits/", lie.to_string()));
    let (why, detail) = room.refused(&unsigned).await;
    assert_eq!(why, Why::Signature, "{detail}");
    // Who lied once is asked again.
    assert_eq!(room.refused(&unsigned).await.0, Why::Unsigned);

    // Another directory, and another file, than the commit has.
    let third = room.github.commit(&declares(3), Some("alice"));
    let tree = serde_json::json!({"sha": "x", "truncated": false, "tree": []}).to_string();
    room.github.write("faults", &fault("/git/trees/", tree));
    let found = room.look().await;
    assert!(matches!(&found, Err(FollowError::Other(JudgeError::OtherTree))), "{found:?}");
    let other = declares(9);
    let file = serde_json::json!({"type": "file", "size": other.len(), "encoding": "base64",
        "content": cofferdam_protocol::base64::encode(other.as_bytes())});
    room.github.write("faults", &fault("/contents/", file.to_string()));
    let found = room.look().await;
    assert!(matches!(&found, Err(FollowError::Other(JudgeError::OtherFile(_)))), "{found:?}");
    assert_eq!(room.written().found.commit().unwrap().to_string(), unsigned, "what was found before stands");
    // Whose word was kept is asked again.
    assert_eq!(room.newer(&third).await, "alice");
}

/// The signed text and the signature of an object, as GitHub says them.
fn take_apart(object: &str) -> (String, String) {
    let (before, rest) = object.split_once("gpgsig ").unwrap();
    let (signature, message) = rest.split_once("\n\n").unwrap();
    (format!("{before}\n{message}"), signature.replace("\n ", "\n") + "\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loop_says_what_it_finds_and_why_it_finds_nothing() {
    let Some(mut room) = Room::new().await else { return };
    let token: SecretRef = REFERENCE.parse().unwrap();
    let looking = follower(&room.world, &room.events);
    let task = tokio::spawn(async move { looking.keep_looking(&token).await });
    let until = async |room: &Room, wanted: &dyn Fn(&FollowStatus) -> bool| {
        for _ in 0..1500 {
            let status = room.written();
            if wanted(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not in time: {:?}", room.written())
    };
    until(&room, &|status| matches!(status.found, Found::Current { .. })).await;
    let commit = room.github.commit(&declares(1), Some("alice"));
    let status = until(&room, &|status| matches!(status.found, Found::Newer { .. })).await;
    assert_eq!(status.found.commit().unwrap().to_string(), commit);
    assert_eq!(status.problem, None);
    // GitHub asks for patience, and gets it.
    room.github.write(
        "faults",
        r#"[{"path": "/git/ref/", "status": 403, "headers": {"Retry-After": "3600"}, "times": 1}]"#,
    );
    let status = until(&room, &|status| status.problem.is_some()).await;
    assert!(matches!(status.found, Found::Newer { .. }), "{status:?}");
    let asked = room.requests().len();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(room.requests().len(), asked);
    task.abort();
    // GitHub goes away in the middle; what was found stands, and it is said.
    room.github.stop();
    let token: SecretRef = REFERENCE.parse().unwrap();
    let looking = follower(&room.world, &room.events);
    let task = tokio::spawn(async move { looking.keep_looking(&token).await });
    let status =
        until(&room, &|status| status.problem.as_deref().is_some_and(|it| it.contains("unreachable"))).await;
    assert!(matches!(status.found, Found::Newer { .. }), "{status:?}");
    task.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_counts_is_offered_once_with_its_proof_and_not_again_when_it_runs() {
    let Some(mut room) = Room::new().await else { return };
    room.look().await.unwrap();
    assert_eq!((room.rang(), room.offered()), (0, None), "what runs is not offered");
    let unsigned = room.github.commit(&declares(1), None);
    room.refused(&unsigned).await;
    let stranger = room.github.commit(&declares(1), Some("mallory"));
    room.refused(&stranger).await;
    assert_eq!((room.rang(), room.offered()), (0, None), "what does not count is not offered");
    let first = room.github.commit(&declares(1), Some("alice"));
    for _ in 0..3 {
        room.newer(&first).await;
    }
    assert_eq!(room.rang(), 1);
    assert_eq!(room.offered(), Some((first.clone(), declares(1).into_bytes())));
    // Before PID 1 has come to it another one counts: the later one lies there.
    let second = room.github.commit(&declares(2), Some("bob"));
    room.newer(&second).await;
    assert_eq!(room.rang(), 1);
    assert_eq!(room.offered(), Some((second.clone(), declares(2).into_bytes())));
    room.became(&second, Outcome::Applied);
    room.runs(&second, &declares(2));
    for _ in 0..2 {
        let found = room.look().await.unwrap();
        assert_eq!(found, Found::Current { commit: second.parse().unwrap() });
    }
    assert_eq!(room.rang(), 0, "it runs");
    // The next one counts, since what runs is in its history, and so on.
    let third = room.github.commit(&declares(3), Some("alice"));
    room.newer(&third).await;
    assert_eq!((room.rang(), room.offered().unwrap().0), (1, third));
    assert_eq!(room.github.written("violations"), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_refused_or_rolled_back_is_said_and_not_offered_again() {
    let Some(mut room) = Room::new().await else { return };
    let begin = room.github.git(&["rev-parse", "HEAD"]);
    let refused = room.github.commit(&declares(1), Some("alice"));
    room.newer(&refused).await;
    assert_eq!(room.rang(), 1);
    room.became(&refused, Outcome::Refused);
    room.runs(&begin, &declares(0));
    room.newer(&refused).await;
    assert_eq!(room.rang(), 0);
    // It ran for a moment, so that it was the head that is current, and what ran before runs again.
    let rolled_back = room.github.commit(&declares(2), Some("alice"));
    room.newer(&rolled_back).await;
    assert_eq!(room.rang(), 1);
    room.runs(&rolled_back, &declares(2));
    assert!(matches!(room.look().await.unwrap(), Found::Current { .. }));
    room.became(&rolled_back, Outcome::RolledBack);
    room.runs(&begin, &declares(0));
    room.newer(&rolled_back).await;
    assert_eq!(room.rang(), 0);
    // A commit that goes back to what runs changes nothing, and one that mends it is offered.
    let back = room.github.commit(&declares(0), Some("alice"));
    assert_eq!(room.look().await.unwrap(), Found::Current { commit: back.parse().unwrap() });
    let mended = room.github.commit(&declares(3), Some("alice"));
    room.newer(&mended).await;
    assert_eq!((room.rang(), room.offered().unwrap().0), (1, mended));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_to_be_applied_is_said_and_a_bell_that_nobody_hears_is_an_error() {
    let Some(mut room) = Room::new().await else { return };
    room.world.settings.follow.as_mut().unwrap().declared.apply = false;
    room.follower = follower(&room.world, &room.events);
    let first = room.github.commit(&declares(1), Some("alice"));
    room.newer(&first).await;
    assert_eq!((room.rang(), room.offered()), (0, None));
    room.world.settings.follow.as_mut().unwrap().declared.apply = true;
    let offer_fails = async |room: &mut Room| {
        let found = room.look().await;
        assert!(matches!(found, Err(FollowError::Offer(_))), "{found:?}");
        assert!(matches!(room.written().found, Found::Newer { .. }), "it is said all the same");
    };
    room.follower = follower(&room.world, &room.events);
    std::fs::write(&room.world.paths.changes, "{}").unwrap();
    offer_fails(&mut room).await;
    assert_eq!(room.rang(), 0, "what cannot be read may have refused it");
    std::fs::remove_file(&room.world.paths.changes).unwrap();
    let bell = room.world.paths.directory.join("bell");
    let away = room.world.paths.directory.join("away");
    std::fs::rename(&bell, &away).unwrap();
    offer_fails(&mut room).await;
    std::fs::write(&bell, "").unwrap();
    offer_fails(&mut room).await;
    assert_eq!(std::fs::read(&bell).unwrap(), b"");
    // As soon as somebody hears it, it rings, however full it is.
    std::fs::rename(&away, &bell).unwrap();
    room.newer(&first).await;
    assert_eq!(room.rang(), 1);
    while std::io::Write::write(&mut room.bell, &[0; 4096]).is_ok() {}
    let second = room.github.commit(&declares(2), Some("alice"));
    room.newer(&second).await;
    assert_eq!(room.offered().unwrap().0, second);
}
