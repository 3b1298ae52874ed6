//! RTMR3: the appliance's own events.

use cofferdam_attest::event_log::Event;
use cofferdam_attest::event_log::payload::{
    Appliance, Declaration, Image, Launch, Machine, Payload, State, Upgrade,
};
use serde_json::{Value, json};

use super::Case;
use super::common::{self, Fixture, own_events};

pub(super) fn cases(honest: &Value) -> Vec<Case> {
    [replay(honest), order(honest), payloads(honest), states(honest), allowed(honest)].concat()
}

/// A log that is not what was measured.
fn replay(honest: &Value) -> Vec<Case> {
    let evidence = Fixture::default().evidence();
    let log = |name: &str, about: &str, change: &dyn Fn(&mut Vec<Event>), failed: &[&'static str]| {
        let mut evidence = evidence.clone();
        change(&mut evidence.event_log);
        Case::new(honest, &format!("event-log/{name}"), about)
            .evidence(&evidence)
            .fails(failed, "the log was changed, reordered, cut or extended")
    };
    vec![
        log("cut", "the launch boundary is missing", &|l| drop(l.pop()), &["event_log", "event_order"]),
        log(
            "extended",
            "an event was added",
            &|l| l.push(Event::new("sealed", "{}")),
            &["event_log", "sealed"],
        ),
        log(
            "payload-changed",
            "a space behind a payload",
            &|l| l[8].payload.as_mut().unwrap().push(b' '),
            &["event_log"],
        ),
        log(
            "image-exchanged",
            "another image than the measured one",
            &|l| l[10] = image("web", '9'),
            &["event_log"],
        ),
        log("reordered", "two events in another order", &|l| l.swap(8, 9), &["event_log", "event_order"]),
        log("empty", "no event of the appliance", &|l| l.truncate(6), &["event_log", "event_order"]),
        log(
            "renamed",
            "the right payload under another name",
            &|l| l[11].event = "sealed".into(),
            &["event_log", "event_order", "sealed"],
        ),
    ]
}

/// Measured so, but against the rules.
fn order(honest: &Value) -> Vec<Case> {
    let with = |name: &str, about: &str, own: Vec<Event>, reason| {
        measured(honest, &format!("event-order/{name}"), about, own).fails(&["event_order"], reason)
    };
    let own = own_events();
    let (launch, image) = (own[5].clone(), own[4].clone());
    let moved = |from: usize, to: usize| {
        let mut own = own.clone();
        let event = own.remove(from);
        own.insert(to, event);
        own
    };
    let also = |at: usize, event: Event| {
        let mut own = own.clone();
        own.insert(at, event);
        own
    };
    vec![
        with("no-launch", "the boundary was not reached", own[..5].to_vec(), "no `launch`"),
        with("two-launches", "the boundary twice", also(6, launch), "`launch` after the launch boundary"),
        with(
            "image-after-launch",
            "a workload that came later",
            also(6, image),
            "`image` after the launch boundary",
        )
        .fails(&["event_order", "event_payloads"], "`image` after the launch boundary"),
        with(
            "unknown-after-launch",
            "an unknown event after the boundary",
            also(6, Event::new("debug", "{}")),
            "`debug` after the launch boundary",
        ),
        with(
            "upgrade-after-launch",
            "a statement that nobody has used before the boundary",
            also(6, Event::new("upgrade", "{}")),
            "`upgrade` after the launch boundary",
        )
        .fails(&["event_order", "event_payloads"], "`upgrade` after the launch boundary"),
        with(
            "unknown",
            "an event that nobody knows",
            also(4, Event::new("debug", "{}")),
            "unknown event `debug`",
        ),
        with(
            "launch-first",
            "workloads started before anything was measured",
            moved(5, 0),
            "`launch` before `declaration`",
        ),
        with(
            "appliance-before-declaration",
            "the opening in another order",
            moved(1, 0),
            "where `declaration` belongs",
        ),
        with(
            "declaration-twice",
            "a second declaration",
            also(1, own[0].clone()),
            "where `appliance` belongs",
        ),
        with(
            "machine-in-the-wrong-place",
            "a second machine",
            also(4, own[2].clone()),
            "`machine` in the wrong place",
        ),
        with(
            "without-state",
            "nobody knows what state it runs on",
            [&own[..3], &own[4..]].concat(),
            "before `state`",
        ),
    ]
}

/// Measured so, in the right order, but malformed or contradictory.
fn payloads(honest: &Value) -> Vec<Case> {
    let with = |name: &str, about: &str, at: usize, event: Event, failed: &[&'static str], reason| {
        let mut own = own_events();
        own[at] = event;
        measured(honest, &format!("event-payload/{name}"), about, own).fails(failed, reason)
    };
    let only = &["event_payloads"];
    let json = |name: &'static str, value: Value| Event::new(name, value.to_string());
    let declaration = |digest: &str, commit: &str| {
        json(Declaration::NAME, json!({ "digest": digest, "source": "disk", "commit": commit }))
    };
    let appliance = |repository: &str, endpoint: &str| {
        json(
            Appliance::NAME,
            json!({ "repository": repository, "declaration": common::DIGEST, "endpoint": endpoint }),
        )
    };
    let launch = |services: Value, tls_key: &str| {
        json(Launch::NAME, json!({ "services": services, "tls_key": tls_key }))
    };
    let (commit, key) = (common::COMMIT, common::DIGEST.replace('1', "3"));
    let of = |name: &'static str| match name {
        Declaration::NAME => "payload of `declaration` is malformed",
        Appliance::NAME => "payload of `appliance` is malformed",
        Machine::NAME => "payload of `machine` is malformed",
        Image::NAME => "payload of `image` is malformed",
        _ => "payload of `launch` is malformed",
    };
    let digest = common::DIGEST;
    let state = |name, about, value| {
        with(name, about, 3, json("state", value), only, "payload of `state` is malformed")
    };
    vec![
        with(
            "declaration-digest",
            "a digest that is none",
            0,
            declaration("sha256:11", commit),
            &["event_payloads", "declaration"],
            of(Declaration::NAME),
        ),
        with(
            "declaration-commit",
            "an abbreviated commit",
            0,
            declaration(digest, "2222222"),
            &["event_payloads", "commit"],
            of(Declaration::NAME),
        ),
        with(
            "appliance-repository",
            "no repository's name",
            1,
            appliance("acme", "shop.example:8443"),
            &["event_payloads", "repository"],
            of(Appliance::NAME),
        ),
        with(
            "appliance-endpoint",
            "an endpoint without a port",
            1,
            appliance("acme/shop", "shop.example"),
            &["event_payloads", "endpoint"],
            of(Appliance::NAME),
        ),
        with(
            "another-declaration",
            "`appliance` names another declaration",
            1,
            common::appliance(&digest.replace('1', "4")).event().unwrap(),
            only,
            "another declaration",
        ),
        with(
            "machine-with-more",
            "an unknown member",
            2,
            json(Machine::NAME, json!({ "cpus": 2, "memory_mib": 2048, "extra": 1 })),
            only,
            of(Machine::NAME),
        ),
        with(
            "machine-twice-cpus",
            "a member twice",
            2,
            Event::new(Machine::NAME, r#"{"cpus":2,"cpus":2,"memory_mib":2048}"#),
            only,
            of(Machine::NAME),
        ),
        with(
            "machine-cpus-negative",
            "a number below zero",
            2,
            json(Machine::NAME, json!({ "cpus": -1, "memory_mib": 2048 })),
            only,
            of(Machine::NAME),
        ),
        with(
            "state-without-kind",
            "a member is missing",
            3,
            json("state", json!({ "fresh": true })),
            only,
            "payload of `state` is malformed",
        ),
        state("memory-not-fresh", "state in memory from before", json!({ "kind": "memory", "fresh": false })),
        state(
            "memory-with-epoch",
            "state in memory is no commit of a disk's",
            json!({ "kind": "memory", "fresh": true, "epoch": 7 }),
        )
        .fails(&["event_payloads", "state_epoch"], "payload of `state` is malformed"),
        state(
            "disk-without-key",
            "nobody knows what opened it",
            json!({ "kind": "disk", "fresh": false, "epoch": 7, "lineage": 1 }),
        )
        .fails(&["event_payloads", "state_epoch"], "payload of `state` is malformed"),
        state(
            "disk-without-epoch",
            "an older copy could not be told",
            json!({ "kind": "disk", "fresh": false, "key": digest, "lineage": 1 }),
        ),
        state(
            "disk-epoch-0",
            "the epoch of state in memory",
            json!({ "kind": "disk", "fresh": true, "key": digest, "epoch": 0, "lineage": 1 }),
        ),
        state(
            "disk-without-lineage",
            "nobody knows how often it was left to a successor",
            json!({ "kind": "disk", "fresh": false, "key": digest, "epoch": 7 }),
        )
        .fails(&["event_payloads", "state_epoch"], "payload of `state` is malformed"),
        state(
            "disk-lineage-0",
            "a version that no lineage has",
            json!({ "kind": "disk", "fresh": false, "key": digest, "epoch": 7, "lineage": 0 }),
        )
        .fails(&["event_payloads", "state_epoch"], "payload of `state` is malformed"),
        state("another-kind", "state that nobody knows", json!({ "kind": "network", "fresh": true })),
        with(
            "image-by-tag",
            "an image that is not named by its digest",
            4,
            json(Image::NAME, json!({ "service": "web", "reference": "registry.example/web:latest" })),
            only,
            of(Image::NAME),
        ),
        with(
            "other-services",
            "services without a measured image",
            5,
            launch(json!(["web", "db"]), &key),
            only,
            "other services",
        ),
        with(
            "launch-key",
            "a TLS key that is no digest",
            5,
            launch(json!(["web"]), "sha256:33"),
            &["event_payloads", "tls_key"],
            of(Launch::NAME),
        ),
        with(
            "declaration-as-a-list",
            "the values of its members",
            0,
            json(Declaration::NAME, json!([digest, "disk", commit])),
            only,
            of(Declaration::NAME),
        ),
        with(
            "machine-as-a-list",
            "the values of its members",
            2,
            json(Machine::NAME, json!([2, 2048])),
            only,
            of(Machine::NAME),
        ),
        with(
            "not-json",
            "a payload that is not JSON",
            2,
            Event::new(Machine::NAME, "two processors"),
            only,
            of(Machine::NAME),
        ),
    ]
}

/// The fingerprint of RFC 8032's first test key.
const SIGNER: &str = "SHA256:bbXpuKG6zhzdmnxq256TlqzFBzRl2f6OOg722cYNbU8";

fn upgrade(version: u64) -> Event {
    let (statement, signer) = (common::word(common::DIGEST), common::word(SIGNER));
    Upgrade { statement, version: version.try_into().unwrap(), signer }.event().unwrap()
}

fn disk(fresh: bool) -> Event {
    let (key, epoch, lineage) = (common::word(common::DIGEST), 7.try_into().unwrap(), 2.try_into().unwrap());
    State::Disk { fresh, key, epoch, lineage, continuity: None }.event().unwrap()
}

/// State on a disk, and evidence from before there is any.
fn states(honest: &Value) -> Vec<Case> {
    let upgraded = |name: &str, about: &str, change: &dyn Fn(&mut Vec<Event>)| {
        let mut own = own_events();
        own.splice(3..4, [upgrade(2), disk(false)]);
        change(&mut own);
        let mut fixture = Fixture { events: [common::firmware_events(), own].concat(), ..Fixture::default() };
        fixture.claims.state_epoch = 7;
        Case::new(honest, name, about).evidence(&fixture.evidence())
    };
    let with = |name: &str, about: &str, epoch: u64, claimed: u64| {
        let mut own = own_events();
        let key = common::word(common::DIGEST);
        let lineage = 2.try_into().unwrap();
        own[3] =
            State::Disk { fresh: false, key, epoch: epoch.try_into().unwrap(), lineage, continuity: None }
                .event()
                .unwrap();
        let mut fixture = Fixture { events: [common::firmware_events(), own].concat(), ..Fixture::default() };
        fixture.claims.state_epoch = claimed;
        Case::new(honest, name, about).evidence(&fixture.evidence())
    };
    vec![
        with("state/disk", "state on a disk, which this boot opened", 7, 7),
        with("state/another-epoch", "the claim is not what was measured", 7, 8)
            .fails(&["state_epoch"], "the event log says 7"),
        upgraded("state/upgraded", "a statement let this boot open the state", &|_| {}),
        upgraded(
            "state/upgrade-of-another-version",
            "the state is not what the statement made of it",
            &|own| {
                own[3] = upgrade(3);
            },
        )
        .fails(&["event_payloads"], "`state` is not what `upgrade` opened"),
        upgraded("state/upgrade-of-memory", "no statement is about state in memory", &|own| {
            own[4] = State::memory().event().unwrap();
        })
        .fails(&["event_payloads"], "`state` is not what `upgrade` opened"),
        upgraded("state/upgrade-of-fresh", "a new state is opened without a statement", &|own| {
            own[4] = disk(true);
        })
        .fails(&["event_payloads"], "`state` is not what `upgrade` opened"),
        upgraded("state/upgrade-after", "measured when the state was in use already", &|own| own.swap(3, 4))
            .fails(&["event_order"], "`upgrade` in the wrong place"),
        upgraded("state/upgrade-before-machine", "in another place", &|own| own.swap(2, 3))
            .fails(&["event_order"], "`upgrade` in the wrong place"),
        upgraded("state/upgrade-twice", "two statements", &|own| own.insert(3, upgrade(2)))
            .fails(&["event_order"], "`upgrade` between `upgrade` and `state`"),
        upgraded("state/upgrade-after-launch", "a statement after the boundary", &|own| own.push(upgrade(2)))
            .fails(&["event_order"], "`upgrade` after the launch boundary"),
        upgraded("state/upgrade-without-signer", "nobody knows who allowed it", &|own| {
            own[3] = Event::new("upgrade", json!({ "statement": common::DIGEST, "version": 2 }).to_string());
        })
        .fails(&["event_payloads"], "payload of `upgrade` is malformed"),
        upgraded("state/upgrade-to-version-0", "a version that no lineage has", &|own| {
            let payload = json!({ "statement": common::DIGEST, "version": 0, "signer": SIGNER });
            own[3] = Event::new("upgrade", payload.to_string());
        })
        .fails(&["event_payloads"], "payload of `upgrade` is malformed"),
        measured(
            honest,
            "state/waiting",
            "an appliance that waits to be unsealed",
            own_events()[..3].to_vec(),
        )
        .fails(&["event_order"], "no `launch`"),
    ]
}

/// Foreign events that a policy allows, before the boundary only.
fn allowed(honest: &Value) -> Vec<Case> {
    let with = |name: &str, about: &str, at: usize| {
        let mut own = own_events();
        own.insert(at, Event::new("debug", "{}"));
        measured(honest, &format!("event-order/{name}"), about, own)
            .set("/policy/allowed_events", json!(["debug"]))
    };
    let upgrade = {
        let own = [own_events(), vec![Event::new("upgrade", "{}")]].concat();
        measured(honest, "event-order/upgrade-allowed-but-late", "no policy allows it there", own)
            .set("/policy/allowed_events", json!(["upgrade"]))
            .fails(&["event_order", "event_payloads"], "`upgrade` after the launch boundary")
    };
    vec![
        upgrade,
        with("allowed", "a foreign event that the policy allows", 4),
        with("allowed-but-late", "the same after the boundary", 6)
            .fails(&["event_order"], "`debug` after the launch boundary"),
    ]
}

/// Evidence of an appliance that measured these events of its own.
fn measured(honest: &Value, name: &str, about: &str, own: Vec<Event>) -> Case {
    let fixture = Fixture { events: [common::firmware_events(), own].concat(), ..Fixture::default() };
    Case::new(honest, name, about).evidence(&fixture.evidence())
}

fn image(service: &str, digit: char) -> Event {
    let digest = common::DIGEST.replace('1', &digit.to_string());
    let reference = common::word(&format!("registry.example/web@{digest}"));
    Image { service: service.into(), reference }.event().unwrap()
}
