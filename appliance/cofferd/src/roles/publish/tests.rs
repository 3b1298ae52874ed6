//! The role as a whole: evidence and vault on Unix sockets, a provisioning service and a GitHub over TLS.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::{Body, Bytes};
use axum::http::{Method, Request, Response, StatusCode, header};
use cofferdam_attest::appraise::{self, Expectations, Outcome};
use cofferdam_attest::dcap::Roots;
use cofferdam_attest::policy::Policy;
use cofferdam_protocol::state::Continuity;
use cofferdam_protocol::status::PublishStatus;
use cofferdam_protocol::{Digest, base64};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;
use crate::roles::evidence::tests::start as start_evidence;
use crate::roles::testing::{TlsServer, appliance, platform, quote as quoted, respond, serve_unix};

pub(super) const TOKEN: &str = "ghp_nobody_may_see_this";
pub(super) const REFERENCE: &str = "secret://cofferdam/github/token";

/// A release as the fake GitHub holds it.
#[derive(Clone, Debug)]
struct Held {
    id: u64,
    tag: String,
    draft: bool,
    request: Value,
    assets: Vec<(String, Bytes)>,
}

/// GitHub as far as this role uses it.
#[derive(Default)]
struct Github {
    root: String,
    releases: Mutex<Vec<Held>>,
    /// Answers that come first, in order, whatever is asked.
    first: Mutex<Vec<Response<Body>>>,
    /// Every request: method and path.
    log: Mutex<Vec<String>>,
    /// Whether tags of anchors are refused, as by a rule of the repository.
    refuses_tags: AtomicBool,
}

impl Github {
    fn answer(&self, request: &Request<Bytes>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        self.log.lock().unwrap().push(format!("{} {path}", request.method()));
        if request.headers().get(header::AUTHORIZATION) != Some(&format!("Bearer {TOKEN}").parse().unwrap()) {
            return respond(401, json!({"message": "Bad credentials"}));
        }
        let mut first = self.first.lock().unwrap();
        if !first.is_empty() {
            return first.remove(0);
        }
        let parts: Vec<&str> =
            path.strip_prefix("/repos/acme/room/releases").unwrap().split('/').skip(1).collect();
        let mut releases = self.releases.lock().unwrap();
        let missing = || respond(404, json!({"message": "Not Found"}));
        let find = |releases: &[Held], id: &str| releases.iter().position(|held| held.id.to_string() == id);
        match (request.method(), parts.as_slice()) {
            (&Method::GET, []) => {
                let page = if request.uri().query().unwrap().ends_with("page=1") {
                    releases.as_slice()
                } else {
                    &[]
                };
                respond(200, page.iter().rev().map(|held| self.show(held)).collect())
            }
            (&Method::POST, []) => {
                let body: Value = serde_json::from_slice(request.body()).unwrap();
                let anchor = body["tag_name"].as_str().unwrap().starts_with("state-");
                if anchor && self.refuses_tags.load(Ordering::Relaxed) {
                    return respond(
                        422,
                        json!({"message": "Cannot create ref due to creations being restricted."}),
                    );
                }
                let held = Held {
                    id: releases.len() as u64 + 100,
                    tag: body["tag_name"].as_str().unwrap().to_owned(),
                    draft: body["draft"].as_bool().unwrap(),
                    request: body,
                    assets: Vec::new(),
                };
                releases.push(held.clone());
                respond(201, self.show(&held))
            }
            (&Method::GET, ["tags", tag]) => {
                match releases.iter().find(|held| !held.draft && held.tag == *tag) {
                    Some(held) => respond(200, self.show(held)),
                    None => missing(),
                }
            }
            (&Method::GET, ["assets", id]) => {
                let (_, bytes) = &releases[find(&releases, id).unwrap()].assets[0];
                Response::new(Body::from(bytes.clone()))
            }
            (&Method::GET, [id]) => {
                find(&releases, id).map_or_else(missing, |at| respond(200, self.show(&releases[at])))
            }
            (&Method::DELETE, [id]) => match find(&releases, id) {
                Some(at) => {
                    assert!(releases.remove(at).draft, "a published release is never deleted");
                    respond(204, json!({}))
                }
                None => missing(),
            },
            (&Method::PATCH, [id]) => {
                let at = find(&releases, id).unwrap();
                assert_eq!(
                    serde_json::from_slice::<Value>(request.body()).unwrap(),
                    json!({"draft": false, "make_latest": "false"})
                );
                releases[at].draft = false;
                respond(200, self.show(&releases[at]))
            }
            (&Method::POST, [id, "assets"]) => {
                let at = find(&releases, id).unwrap();
                assert!(releases[at].draft, "assets come before publishing");
                let name = request.uri().query().unwrap().strip_prefix("name=").unwrap().to_owned();
                releases[at].assets.push((name, request.body().clone()));
                let asset = self.show(&releases[at])["assets"].as_array().unwrap().last().unwrap().clone();
                respond(201, asset)
            }
            other => panic!("{other:?}"),
        }
    }

    fn show(&self, held: &Held) -> Value {
        let assets: Vec<Value> = (held.assets.iter())
            .map(|(name, bytes)| {
                let digest = Digest::of(bytes);
                json!({"id": held.id, "name": name, "size": bytes.len(), "digest": digest, "state": "uploaded"})
            })
            .collect();
        json!({
            "id": held.id, "tag_name": held.tag, "target_commitish": held.request["target_commitish"],
            "draft": held.draft, "created_at": "2026-01-01T00:00:00Z", "published_at": null,
            "html_url": format!("{}/acme/room/releases/{}", self.root, held.tag),
            "upload_url": format!("{}/repos/acme/room/releases/{}/assets{{?name,label}}", self.root, held.id),
            "assets": assets,
        })
    }

    fn published(&self) -> Vec<Held> {
        self.releases.lock().unwrap().iter().filter(|held| !held.draft).cloned().collect()
    }
}

/// Everything around the role.
pub(super) struct World {
    directory: TempDir,
    pub(super) settings: Settings,
    pub(super) paths: Paths,
    github: Arc<Github>,
    token: Arc<AtomicBool>,
    /// The anchors that the vault was told of.
    anchored: Arc<Mutex<Vec<u64>>>,
    /// What an operator's request is.
    asked: Arc<Notify>,
    facts: ApplianceFacts,
}

impl World {
    pub(super) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::create_dir(root.join("publish")).unwrap();
        let facts = appliance(&Digest::from([0xcd; 32]));
        std::fs::write(root.join("appliance.json"), serde_json::to_vec(&facts).unwrap()).unwrap();
        let (machine, events) = (platform(), facts.event_log.clone());
        let me = nix::unistd::getuid().as_raw();
        let evidence = start_evidence(root, &[], vec![me], move |data| quoted(&machine, &events, data));

        let token = Arc::new(AtomicBool::new(true));
        let granted = Arc::clone(&token);
        let anchored = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&anchored);
        serve_unix(&root.join("vault.sock"), move |request| {
            let asked: Value = serde_json::from_slice(request.body()).unwrap();
            let number = asked["number"].as_u64();
            assert_eq!(request.uri().path() == "/v1/anchored", number.is_some());
            assert!(number.is_some() || asked["references"] == json!([REFERENCE]), "{asked}");
            heard.lock().unwrap().extend(number);
            let granted = Arc::clone(&granted);
            async move {
                if number.is_some() {
                    return respond(204, json!({}));
                }
                // As the vault does: wait for what is missing, as long as was asked for, in small steps here.
                for _ in 0..asked["wait_ms"].as_u64().unwrap() / 20 {
                    if granted.load(Ordering::Relaxed) {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                match granted.load(Ordering::Relaxed) {
                    true => {
                        respond(200, json!({"values": {REFERENCE: base64::encode(format!("{TOKEN}\n"))}}))
                    }
                    false => respond(409, json!({"missing": [REFERENCE]})),
                }
            }
        });

        let server = TlsServer::bind().await;
        let pcs = (server.root.clone(), server.ca.clone());
        tokio::spawn(tdx_sim::pccs::serve(
            server.listener,
            Some(server.acceptor),
            platform(),
            clock::unix_now,
        ));
        let server = TlsServer::bind().await;
        let github = Arc::new(Github { root: server.root.clone(), ..Github::default() });
        let settings = Settings {
            github: server.root.clone(),
            github_ca: Some(server.ca.clone()),
            token: Some(REFERENCE.parse().unwrap()),
            pcs: pcs.0,
            pcs_ca: Some(pcs.1),
            key_servers: Vec::new(),
            follow: None,
            look_every: Duration::from_secs(3600),
        };
        let answering = Arc::clone(&github);
        server.serve(move |request| {
            let response = answering.answer(&request);
            async move { response }
        });
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let paths = Paths {
            appliance: root.join("appliance.json"),
            changes: root.join("changes.json"),
            directory: root.join("publish"),
            evidence,
            vault: root.join("vault.sock"),
            bundle: root.join("no-bundle"),
        };
        Self { directory, settings, paths, github, token, anchored, asked: Arc::default(), facts }
    }

    /// The same with a state on a disk, whose anchor of this boot has this number.
    async fn with_anchor(anchor: u64) -> Self {
        let mut world = Self::new().await;
        let number = |number: u64| number.try_into().unwrap();
        let continuity = Continuity {
            anchor: number(anchor),
            first_anchor: number(1),
            unwitnessed: false,
            accepted_loss: None,
        };
        world.facts.state = State::Open { epoch: 7, continuity };
        let facts = serde_json::to_vec(&world.facts).unwrap();
        std::fs::write(world.directory.path().join("appliance.json"), facts).unwrap();
        world
    }

    /// Waits until the role has done with this boot's anchor.
    async fn until_anchored(&self) {
        for _ in 0..3000 {
            if self.paths.own("anchored").exists() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not in time: {:?}, {:?}", self.status(), self.github.log.lock().unwrap());
    }

    fn tags(&self) -> Vec<String> {
        self.github.published().into_iter().map(|held| held.tag).collect()
    }

    fn start(&self) -> JoinHandle<()> {
        self.start_with(Steps::made().1)
    }

    fn start_with(&self, steps: Steps) -> JoinHandle<()> {
        let time = Time { clock: None, steps };
        tokio::spawn(serve(self.settings.clone(), self.paths.clone(), Arc::clone(&self.asked), None, time))
    }

    fn status(&self) -> Option<PublishStatus> {
        serde_json::from_slice(&std::fs::read(self.paths.own("status.json")).ok()?).ok()
    }

    /// Waits until the status is as wanted.
    async fn until(&self, wanted: impl Fn(&PublishStatus) -> bool) -> PublishStatus {
        for _ in 0..3000 {
            if let Some(status) = self.status().filter(|status| wanted(status)) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not in time: {:?}, {:?}", self.status(), self.github.log.lock().unwrap());
    }

    async fn until_published(&self) -> PublishStatus {
        self.until(|status| status.state == PublishState::Published).await
    }

    fn published(&self) -> Attestation {
        Attestation::read(&self.paths.own("attestation.json")).unwrap()
    }

    /// A document as a predecessor would have made it.
    async fn document(&self) -> Attestation {
        let (evidence, _) = ask(&self.paths.evidence, &EvidenceRequest::default()).await.unwrap();
        Attestation::parse(evidence.to_json().unwrap()).unwrap()
    }

    fn hold(&self, tag: &str, draft: bool, assets: Vec<(String, Bytes)>) {
        let mut releases = self.github.releases.lock().unwrap();
        let id = releases.len() as u64 + 1;
        releases.push(Held {
            id,
            tag: tag.to_owned(),
            draft,
            request: json!({"target_commitish": "main"}),
            assets,
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attestation_is_published_as_soon_as_the_token_is_there() {
    let world = World::new().await;
    world.token.store(false, Ordering::Relaxed);
    let role = world.start();
    let waiting = world.until(|status| status.detail.is_some()).await;
    assert_eq!(waiting.state, PublishState::Waiting);
    assert!(waiting.detail.unwrap().contains(REFERENCE));
    assert!(world.github.log.lock().unwrap().is_empty());

    world.token.store(true, Ordering::Relaxed);
    let status = world.until_published().await;
    let releases = world.github.published();
    assert_eq!(releases.len(), 1);
    let attestation = world.published();
    assert_eq!(releases[0].tag, attestation.tag.to_string());
    assert_eq!(
        releases[0].assets,
        [("attestation.json".to_owned(), Bytes::from(attestation.document.clone()))]
    );
    let request = &releases[0].request;
    assert_eq!(request["target_commitish"], world.facts.commit.to_string());
    assert!(request["body"].as_str().unwrap().contains("coffer verify acme/room"));
    assert_eq!(
        (&request["draft"], &request["make_latest"]),
        (&json!(true), &json!("false")),
        "a draft first"
    );
    assert_eq!(status.tag.as_deref(), Some(attestation.tag.to_string().as_str()));
    assert_eq!(
        status.release_url.unwrap(),
        format!("{}/acme/room/releases/{}", world.github.root, attestation.tag)
    );
    assert_eq!(status.expires_at, Some(attestation.claims.expires_at));
    assert!(!world.paths.own("pending.json").exists());

    // What is published is complete: everything but the firmware's reference values is checked, and holds.
    let roots = Roots::intel().with_pem(&platform().root_pem()).unwrap();
    let evidence = Evidence::parse(&attestation.document).unwrap();
    let expected = Expectations { repository: Some("acme/room".parse().unwrap()), ..Expectations::default() };
    let appraisal = appraise::appraise(&evidence, &expected, &Policy::default(), &roots, clock::unix_now());
    assert_eq!(appraisal.failures().count(), 0, "{:#?}", appraisal.checks);
    for name in ["collateral", "quote_chain", "tcb_status", "report_data", "event_log"] {
        assert_eq!(appraisal.check(name).unwrap().outcome, Outcome::Pass, "{name}");
    }
    assert_eq!(read_collateral(&world.paths.own("collateral.json")), evidence.collateral);

    // The token is nowhere but in the request.
    for entry in std::fs::read_dir(&world.paths.directory).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes()));
    }
    role.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_boot_publishes_one_anchor_of_its_state() {
    let world = World::with_anchor(123).await;
    let role = world.start();
    world.until_anchored().await;
    let attestation = world.published();
    assert_eq!(world.tags(), [attestation.tag.to_string(), "state-0000123".to_owned()]);
    let anchor = world.github.published().remove(1);
    assert_eq!(anchor.assets, [("attestation.json".to_owned(), Bytes::from(attestation.document))]);
    assert_eq!(attestation.claims.state_continuity.unwrap().anchor.get(), 123, "nobody can move it");
    assert!(anchor.request["body"].as_str().unwrap().contains("at epoch 7"));
    assert_eq!(*world.anchored.lock().unwrap(), [123]);
    role.abort();
    let _ = role.await;

    // A successor of the role in the same boot has nothing to do.
    let role = world.start();
    world.until_published().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.tags().len(), 2);
    // One that does not know whether its predecessor's was published finds it, and says so to the vault once more.
    std::fs::remove_file(world.paths.own("anchored")).unwrap();
    role.abort();
    let _ = role.await;
    let role = world.start();
    world.until_anchored().await;
    assert_eq!(world.tags().len(), 2);
    assert_eq!(*world.anchored.lock().unwrap(), [123, 123]);
    role.abort();
}

/// Of a boot that was cut off before it had told the vault, or of somebody with the token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_that_is_taken_is_told_to_the_vault_and_left_alone() {
    let world = World::with_anchor(4).await;
    let junk = vec![("attestation.json".to_owned(), Bytes::from_static(b"{}"))];
    world.hold("state-0000004", false, junk.clone());
    let role = world.start();
    world.until_anchored().await;
    let published = world.github.published();
    assert_eq!((published.len(), &published[0].assets), (2, &junk));
    assert!(published[1].tag.starts_with("attest-"));
    assert_eq!(*world.anchored.lock().unwrap(), [4], "the next boot has the next number");
    role.abort();
}

/// Where GitHub takes no such tag there is an attestation all the same, and the number stays the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_anchor_that_is_refused_leaves_the_attestation_and_the_number() {
    let world = World::with_anchor(4).await;
    world.github.refuses_tags.store(true, Ordering::Relaxed);
    let role = world.start();
    world.until_anchored().await;
    let tags = world.tags();
    assert!(tags.len() == 1 && tags[0].starts_with("attest-"), "{tags:?}");
    assert!(world.anchored.lock().unwrap().is_empty());
    assert_eq!(world.status().unwrap().state, PublishState::Published);
    role.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_role_keeps_what_is_still_true() {
    let world = World::new().await;
    let role = world.start();
    let before = world.until_published().await;
    role.abort();
    let _ = role.await;
    let requests = world.github.log.lock().unwrap().len();
    std::fs::write(
        world.paths.own("status.json"),
        serde_json::to_vec(&PublishStatus { state: PublishState::Failed, ..before.clone() }).unwrap(),
    )
    .unwrap();
    let role = world.start();
    let after = world.until_published().await;
    assert_eq!((after.tag, after.release_url), (before.tag, before.release_url));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.github.log.lock().unwrap().len(), requests, "GitHub is not asked");
    role.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attestation_of_a_clock_that_was_ahead_is_made_anew_when_that_is_set() {
    let world = World::new().await;
    let (set, steps) = Steps::made();
    let role = world.start_with(steps);
    world.until_published().await;
    set.send_modify(|count| *count += 1);
    // In another second, so that another one would have another tag.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(world.tags().len(), 1, "its dates are right");

    let ours = world.published();
    let mut claims = ours.claims.clone();
    for time in [&mut claims.issued_at, &mut claims.expires_at] {
        *time = cofferdam_protocol::Timestamp::from_unix(time.unix() + 3600).unwrap();
    }
    let evidence = Evidence::parse(&ours.document).unwrap();
    let ahead = Evidence { claims: claims.encode().unwrap(), ..evidence }.to_json().unwrap();
    std::fs::write(world.paths.own("attestation.json"), ahead).unwrap();
    set.send_modify(|count| *count += 1);
    let again = ours.tag.to_string();
    world.until(|status| status.tag.as_ref().is_some_and(|tag| *tag != again)).await;
    assert_eq!(world.tags().len(), 2);
    role.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attestation_of_another_boot_is_replaced() {
    let world = World::new().await;
    let mut other = world.document().await;
    let evidence = Evidence::parse(&other.document).unwrap();
    let claims = cofferdam_attest::claims::Claims { tls_key: [0xef; 32].into(), ..other.claims.clone() };
    other.document = Evidence { claims: claims.encode().unwrap(), ..evidence }.to_json().unwrap();
    std::fs::write(world.paths.own("attestation.json"), &other.document).unwrap();
    std::fs::write(world.paths.own("pending.json"), &other.document).unwrap();
    let role = world.start();
    world.until_published().await;
    assert_eq!(world.published().claims.tls_key, world.facts.tls_key);
    role.abort();
}

#[tokio::test]
async fn an_attestation_holds_for_two_thirds_of_its_validity() {
    let world = World::new().await;
    let attestation = world.document().await;
    let issued = attestation.claims.issued_at.unix();
    assert_eq!(attestation.renew_at(), Some(issued + 16 * 3600));
    let holds = |now| attestation.holds(&world.facts, now);
    assert!(holds(issued) && holds(issued + 16 * 3600 - 1));
    assert!(!holds(issued + 16 * 3600) && !holds(issued - 1));
    let mut changed = world.facts.clone();
    changed.event_log.pop();
    assert!(!attestation.holds(&changed, issued), "another event log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_made_draft_is_removed_and_nothing_else_is_touched() {
    let world = World::new().await;
    let pending = world.document().await;
    std::fs::write(world.paths.own("pending.json"), &pending.document).unwrap();
    world.hold("v1.0.0", false, Vec::new());
    world.hold("attest-20260101T000000Z-00000000", true, Vec::new());
    world.hold(
        &pending.tag.to_string(),
        true,
        vec![("attestation.json".into(), Bytes::from_static(b"half"))],
    );
    let role = world.start();
    world.until_published().await;
    let releases = world.github.releases.lock().unwrap().clone();
    let shown: Vec<_> = releases.iter().map(|held| (held.tag.as_str(), held.draft)).collect();
    let tag = pending.tag.to_string();
    let expected = [("v1.0.0", false), ("attest-20260101T000000Z-00000000", true), (tag.as_str(), false)];
    assert_eq!(shown, expected);
    assert_eq!(releases[2].assets[0].1, pending.document, "the very document that was under way");
    assert_eq!(world.published().document, pending.document);
    role.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_was_published_before_the_crash_is_taken_as_done() {
    let world = World::new().await;
    let pending = world.document().await;
    std::fs::write(world.paths.own("pending.json"), &pending.document).unwrap();
    world.hold(
        &pending.tag.to_string(),
        false,
        vec![("attestation.json".into(), pending.document.clone().into())],
    );
    let role = world.start();
    let status = world.until_published().await;
    assert_eq!(status.tag.as_deref(), Some(pending.tag.to_string().as_str()));
    assert_eq!(world.github.published().len(), 1);
    let writes = world.github.log.lock().unwrap().iter().filter(|line| !line.starts_with("GET")).count();
    assert_eq!(writes, 0);
    role.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_github_that_misbehaves_is_said_so_and_tried_again() {
    let world = World::new().await;
    let mut limited = respond(403, json!({"message": "API rate limit exceeded"}));
    limited.headers_mut().insert(header::RETRY_AFTER, "1".parse().unwrap());
    *world.github.first.lock().unwrap() = vec![
        respond(403, json!({"message": "Resource not accessible by personal access token"})),
        Response::new(Body::from("<html>garbage")),
        respond(500, json!({"message": "oops"})),
        limited,
    ];
    let role = world.start();
    let failed = world.until(|status| status.state == PublishState::Failed).await;
    let detail = failed.detail.unwrap();
    assert!(detail.contains("GitHub") && detail.contains("Resource not accessible"), "{detail}");
    let failed = world.until(|s| s.detail.as_ref().is_some_and(|detail| detail.contains("malformed"))).await;
    assert_eq!((failed.state, failed.tag), (PublishState::Failed, None));
    world.until_published().await;
    assert_eq!(world.github.published().len(), 1);
    assert!(!world.github.releases.lock().unwrap().iter().any(|held| held.draft));
    role.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_token_in_the_declaration_collateral_is_fetched_all_the_same() {
    let mut world = World::new().await;
    world.settings.token = None;
    let role = world.start();
    let status = world.until(|status| status.detail.is_some()).await;
    assert_eq!(status.state, PublishState::Waiting);
    assert!(status.detail.unwrap().contains("github.token"));
    for _ in 0..3000 {
        if read_collateral(&world.paths.own("collateral.json")).is_some() {
            role.abort();
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no collateral");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_declared_authority_is_believed() {
    let mut world = World::new().await;
    let github_ca = world.settings.github_ca.clone();
    // Each server with the other's authority.
    world.settings.github_ca = world.settings.pcs_ca.clone();
    let role = world.start();
    let failed = world.until(|status| status.state == PublishState::Failed).await;
    assert!(failed.detail.unwrap().contains("unreachable"));
    role.abort();
    let _ = role.await;
    std::fs::remove_file(world.paths.own("collateral.json")).unwrap();
    world.settings.pcs_ca = github_ca;
    std::fs::remove_file(world.paths.own("status.json")).unwrap();
    std::fs::remove_file(world.paths.own("pending.json")).unwrap();
    let role = world.start();
    let waiting =
        world.until(|s| s.detail.as_ref().is_some_and(|detail| detail.contains("cannot fetch"))).await;
    assert_eq!(waiting.state, PublishState::Waiting);
    assert!(waiting.detail.unwrap().contains("waiting for collateral"));
    role.abort();
    assert!(world.directory.path().join("publish").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provisioning_service_that_misbehaves_gives_no_collateral() {
    let made = platform().collateral(clock::unix_now(), Default::default()).unwrap();
    let chain: String = platform().root_pem().bytes().map(|b| format!("%{b:02x}")).collect();
    let pck = Pck { fmspc: hex::encode_upper(tdx_sim::FMSPC), ca: "platform" };
    let tcb =
        format!(r#"{{"tcbInfo":{},"signature":"{}"}}"#, made.tcb_info, hex::encode(&made.tcb_info_signature));
    let good: Vec<(&str, Vec<u8>)> = vec![
        ("pckcrl", made.pck_crl.clone()),
        ("tcb", tcb.into_bytes()),
        (
            "identity",
            format!(
                r#"{{"enclaveIdentity":{},"signature":"{}"}}"#,
                made.qe_identity,
                hex::encode(&made.qe_identity_signature)
            )
            .into_bytes(),
        ),
        ("rootcacrl", hex::encode(&made.root_ca_crl).into_bytes()),
    ];
    let serve_with = async |change: &'static str, to: Option<Vec<u8>>| {
        let server = TlsServer::bind().await;
        let client = web::client(&server.ca).unwrap();
        let pcs = Pcs::new(&server.root, client);
        let (good, chain) = (good.clone(), chain.clone());
        server.serve(move |request| {
            let name = request.uri().path().rsplit('/').next().unwrap().to_owned();
            let body = match (&to, name == change) {
                (Some(to), true) => Some(to.clone()),
                (None, true) => None,
                _ => good.iter().find(|(known, _)| *known == name).map(|(_, body)| body.clone()),
            };
            let mut response = Response::new(Body::from(body.clone().unwrap_or_default()));
            if body.is_none() {
                *response.status_mut() = StatusCode::NOT_FOUND;
            }
            for name in
                ["sgx-pck-crl-issuer-chain", "tcb-info-issuer-chain", "sgx-enclave-identity-issuer-chain"]
            {
                response.headers_mut().insert(name, chain.parse().unwrap());
            }
            async move { response }
        });
        pcs.fetch(&pck, clock::unix_now()).await
    };
    let fetched = serve_with("nothing", None).await.unwrap();
    assert_eq!(
        (&fetched.tcb_info, &fetched.qe_identity),
        (&made.tcb_info, &made.qe_identity),
        "the signed bytes"
    );
    assert_eq!((&fetched.pck_crl, &fetched.root_ca_crl), (&made.pck_crl, &made.root_ca_crl));

    for part in ["pckcrl", "tcb", "identity"] {
        let missing = serve_with(part, None).await.unwrap_err();
        assert!(matches!(missing, CollateralError::Fetch { .. }), "{part}: {missing}");
        for garbage in [&b""[..], b"{}", b"<html>", b"\x30\x03\x02\x01\x00"] {
            let error = serve_with(part, Some(garbage.to_vec())).await.unwrap_err();
            assert!(matches!(error, CollateralError::Malformed { .. }), "{part}: {error}");
        }
        let endless = serve_with(part, Some(vec![b' '; 1 << 20])).await.unwrap_err();
        assert!(error_chain(&endless).contains("more than"), "{part}: {endless}");
    }
    // Without the list of its own a service is taken for Intel's, and the root says where the list is.
    let elsewhere = serve_with("rootcacrl", None).await.unwrap_err();
    assert!(error_chain(&elsewhere).contains("simulated.invalid"), "{elsewhere}");
}

#[test]
fn the_images_bundle_is_used_when_the_declaration_names_no_authority() {
    let directory = tempfile::tempdir().unwrap();
    let bundle = directory.path().join("bundle.pem");
    assert!(matches!(web::authorities(None, &bundle), Err(WebError::Bundle(_))));
    assert_eq!(web::authorities(Some("declared"), &bundle).unwrap(), "declared");
    std::fs::write(&bundle, platform().root_pem()).unwrap();
    let pem = web::authorities(None, &bundle).unwrap();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    assert!(web::client(&pem).is_ok());
    for bad in ["", "no certificate"] {
        assert!(matches!(web::client(bad), Err(WebError::Authorities)), "{bad}");
    }
}

// What should be the newest release, and what is.

/// A world in which the releases are looked at all the time, with the role's first attestation.
async fn watched() -> (World, JoinHandle<()>, PublishStatus) {
    let mut world = World::new().await;
    world.settings.look_every = Duration::from_millis(50);
    let role = world.start();
    let first = world.until_published().await;
    (world, role, first)
}

/// A tag with this time from now and a digest of nothing.
fn tag_at(ahead: i64) -> String {
    let at = clock::unix_now().checked_add_signed(ahead).unwrap();
    format!("attest-{}-00000000", cofferdam_protocol::Timestamp::from_unix(at).unwrap().compact())
}

/// The document of another machine that claims the repository, its claims changed, and its tag.
async fn foreign(
    world: &World,
    change: impl FnOnce(&mut cofferdam_attest::claims::Claims),
) -> (String, Bytes) {
    let ours = world.document().await;
    let mut claims = ours.claims.clone();
    claims.tls_key = [0xef; 32].into();
    claims.endpoint = "elsewhere.example:443".parse().unwrap();
    // Whoever is later in the same second is not above.
    claims.issued_at = cofferdam_protocol::Timestamp::from_unix(claims.issued_at.unix() + 2).unwrap();
    change(&mut claims);
    let claims = claims.encode().unwrap();
    let tag = cofferdam_attest::release::Tag::for_claims(&claims).unwrap().to_string();
    let evidence = Evidence { claims, ..Evidence::parse(&ours.document).unwrap() };
    (tag, evidence.to_json().unwrap().into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_attestation_is_published_again_and_a_newest_one_left_alone() {
    let (world, role, first) = watched().await;
    let looks = || world.github.log.lock().unwrap().iter().filter(|line| line.starts_with("GET")).count();
    let before = looks();
    while looks() < before + 5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.tags().len(), 1, "what is there is left alone");
    // Releases that are none, of the past, or of a time that nobody believes are nothing to it.
    for tag in ["v1.0.0".to_owned(), tag_at(-3600), tag_at(3600)] {
        world.hold(&tag, false, Vec::new());
    }
    let before = looks();
    while looks() < before + 5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.status().unwrap().tag, first.tag);

    let gone = first.tag.clone().unwrap();
    world.github.releases.lock().unwrap().retain(|held| held.tag != gone);
    let again = world.until(|status| status.tag != first.tag).await;
    assert_eq!(again.state, PublishState::Published);
    assert!(world.tags().contains(&again.tag.unwrap()));
    role.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attestation_with_another_asset_is_published_again() {
    let (world, role, first) = watched().await;
    for held in world.github.releases.lock().unwrap().iter_mut() {
        for (_, document) in &mut held.assets {
            *document = Bytes::from(vec![b'x'; document.len()]);
        }
    }
    world.until(|status| status.tag != first.tag).await;
    role.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_covers_it_and_is_no_attestation_is_covered_in_turn_and_not_for_ever() {
    let (world, role, first) = watched().await;
    let asset = |bytes: &'static [u8]| vec![("attestation.json".to_owned(), Bytes::from_static(bytes))];
    tokio::time::sleep(Duration::from_millis(1100)).await;
    world.hold(&tag_at(0), false, asset(b"{}"));
    let again = world.until(|status| status.tag != first.tag).await;
    // Whoever goes on with that does not make this machine publish without end.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    world.hold(&tag_at(1), false, asset(b"nothing"));
    let said = world.until(|status| status.detail.is_some()).await;
    assert!(said.detail.unwrap().contains("published again soon"));
    assert_eq!(said.tag, again.tag);
    // An operator who asks is not kept waiting.
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.asked.notify_one();
    world.until(|status| status.tag != again.tag).await;
    role.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_machine_that_claims_the_repository_is_an_alarm_and_no_race() {
    let (world, role, first) = watched().await;
    let asset = |document: &Bytes| vec![("attestation.json".to_owned(), document.clone())];
    let (tag, document) = foreign(&world, |_| ()).await;
    world.hold(&tag, false, asset(&document));
    // One that is newer and has expired claims nothing.
    let ended = |claims: &mut cofferdam_attest::claims::Claims| {
        claims.issued_at = cofferdam_protocol::Timestamp::from_unix(claims.issued_at.unix() + 1).unwrap();
        claims.expires_at = cofferdam_protocol::Timestamp::from_unix(claims.issued_at.unix() - 60).unwrap();
    };
    let (expired, document) = foreign(&world, ended).await;
    world.hold(&expired, false, asset(&document));
    let said = world.until(|status| status.state == PublishState::Contested).await;
    let detail = said.detail.unwrap();
    assert!(
        detail.contains(&tag) && detail.contains("elsewhere.example:443") && detail.contains("efef"),
        "{detail}"
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    let own = |world: &World| {
        let published = world.github.published();
        published.iter().filter(|held| held.request["target_commitish"] != "main").count()
    };
    assert_eq!((own(&world), said.tag), (1, first.tag.clone()), "nothing is published against it");
    tokio::time::sleep(Duration::from_secs(4)).await;
    world.asked.notify_one();
    let again = world.until(|status| status.tag != first.tag).await;
    assert_eq!(own(&world), 2);
    // It is the newest now, for as long as nobody else publishes.
    world.until(|status| status.state == PublishState::Published && status.tag == again.tag).await;
    role.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_github_that_cannot_be_asked_leaves_what_is_published_as_it_was() {
    let (world, role, first) = watched().await;
    let away = (0..20).map(|_| respond(500, json!({"message": "away"})));
    world.github.first.lock().unwrap().extend(away);
    let said = world.until(|status| status.detail.is_some()).await;
    assert_eq!((said.state, said.tag), (PublishState::Published, first.tag.clone()));
    assert!(said.detail.unwrap().contains("cannot see whether"));
    world.github.first.lock().unwrap().clear();
    world.until(|status| status.detail.is_none()).await;
    assert_eq!(world.tags().len(), 1);
    role.abort();
}

#[tokio::test]
async fn only_the_front_asks() {
    let directory = tempfile::tempdir().unwrap();
    let me = nix::unistd::getuid().as_raw();
    for (uid, heard) in [(me, true), (me + 1, false)] {
        let socket = directory.path().join(uid.to_string());
        let asked = Arc::new(Notify::new());
        let role = tokio::spawn(asked::listen(bind(&socket).unwrap(), uid, Arc::clone(&asked)));
        drop(tokio::net::UnixStream::connect(&socket).await.unwrap());
        let told = tokio::time::timeout(Duration::from_millis(300), asked.notified()).await;
        assert_eq!(told.is_ok(), heard);
        role.abort();
    }
}
