//! Declarations that were applied after launch: which of them holds, and what may not follow the boundary.

use cofferdam_attest::event_log::Event;
use cofferdam_attest::event_log::payload::{Declaration, Image, Payload};
use serde_json::{Value, json};

use super::common::{self, Fixture, own_events};
use super::{Case, unique};

/// An appliance that has applied one further declaration, which has another image for its service.
pub(crate) fn fixture() -> Fixture {
    with(one(), 'b')
}

pub(crate) fn cases(honest: &Value) -> Vec<Case> {
    let cases = [accepted(honest), order(honest), payloads(honest), claims(honest)].concat();
    unique(&cases);
    cases
}

fn accepted(honest: &Value) -> Vec<Case> {
    let case = |name: &str, about: &str, fixture: Fixture| {
        Case::new(honest, &format!("applied/{name}"), about).evidence(&fixture.evidence())
    };
    let two = vec![declaration('c', "github"), image("web", 'c'), image("db", 'd')];
    let back = vec![declaration('1', "github"), image("web", '1')];
    let mut sealed = with([one(), vec![Event::new("sealed", "{}")]].concat(), 'b');
    sealed.claims.sealed = true;
    vec![
        case("one", "a declaration that was applied after launch", fixture()),
        case("two", "another one, which has a service more", with([one(), two].concat(), 'c')),
        case(
            "back",
            "what booted, measured again since what came after it failed",
            with([one(), back].concat(), '1'),
        ),
        case("sealed", "the last one before there is no further", sealed),
    ]
}

/// Measured so, but against the rules.
fn order(honest: &Value) -> Vec<Case> {
    let refused = |name: &str, about: &str, fixture: Fixture, failed: &[&'static str], reason| {
        Case::new(honest, &format!("applied/{name}"), about)
            .evidence(&fixture.evidence())
            .fails(failed, reason)
    };
    let only = &["event_order"][..];
    let sealed = || Event::new("sealed", "{}");
    let after_sealed = |mut later: Vec<Event>, at: usize, digit: char| {
        later.insert(at, sealed());
        let mut fixture = with(later, digit);
        fixture.claims.sealed = true;
        fixture
    };
    let also = |event: Event| with([one(), vec![event]].concat(), 'b');
    vec![
        refused(
            "image-without-declaration",
            "a workload that no declaration has brought",
            with(vec![image("web", 'b')], '1'),
            &["event_order", "event_payloads"],
            "`image` after the launch boundary",
        ),
        refused(
            "declaration-after-sealed",
            "a declaration where there is none any more",
            after_sealed(one(), 0, 'b'),
            only,
            "`declaration` after `sealed`",
        ),
        refused(
            "image-after-sealed",
            "a workload that came when all had ended",
            after_sealed([one(), vec![image("db", 'd')]].concat(), 2, 'b'),
            only,
            "`image` after `sealed`",
        ),
        refused(
            "sealed-before-its-images",
            "sealed between a declaration and its images",
            after_sealed(one(), 1, 'b'),
            only,
            "`image` after `sealed`",
        ),
        refused(
            "another-appliance",
            "an identity after launch",
            also(common::appliance(&digest('b')).event().unwrap()),
            only,
            "`appliance` after the launch boundary",
        ),
        refused(
            "another-launch",
            "a second boundary",
            also(own_events()[5].clone()),
            only,
            "`launch` after the launch boundary",
        ),
        refused(
            "another-state",
            "other state after launch",
            also(own_events()[3].clone()),
            only,
            "`state` after the launch boundary",
        ),
        refused(
            "allowed-elsewhere",
            "a foreign event that the policy allows",
            also(Event::new("debug", "{}")),
            only,
            "`debug` after the launch boundary",
        )
        .set("/policy/allowed_events", json!(["debug"])),
        refused(
            "before-launch",
            "a second declaration before the boundary",
            boot(|own| own.insert(5, declaration('b', "github")), 'b'),
            only,
            "`declaration` in the wrong place",
        ),
    ]
}

/// In the right order, but malformed or contradictory.
fn payloads(honest: &Value) -> Vec<Case> {
    let refused = |name: &str, about: &str, fixture: Fixture, reason| {
        Case::new(honest, &format!("applied/{name}"), about)
            .evidence(&fixture.evidence())
            .fails(&["event_payloads"], reason)
    };
    let raw =
        |value: Value| with(vec![Event::new(Declaration::NAME, value.to_string()), image("web", 'b')], 'b');
    let (digest_b, commit_b) = (digest('b'), commit('b'));
    let malformed = "payload of `declaration` is malformed";
    vec![
        refused(
            "from-disk",
            "the host's disk is read at boot alone",
            with(vec![declaration('b', "disk"), image("web", 'b')], 'b'),
            "from `disk` instead of `github`",
        ),
        refused(
            "from-elsewhere",
            "a source that nobody knows",
            with(vec![declaration('b', "operator"), image("web", 'b')], 'b'),
            "from `operator` instead of `github`",
        ),
        refused(
            "boot-from-github",
            "nobody has verified what booted",
            boot(|own| own[0] = declaration('1', "github"), '1'),
            "from `github` instead of `disk`",
        ),
        refused(
            "without-images",
            "a declaration that starts nothing",
            with(vec![declaration('b', "github")], 'b'),
            "starts nothing",
        ),
        refused(
            "service-twice",
            "a service with two images",
            with([one(), vec![image("web", 'c')]].concat(), 'b'),
            "a service with two images",
        ),
        refused(
            "appliance-of-the-last",
            "`appliance` names what came later",
            boot(|own| own[1] = common::appliance(&digest('b')).event().unwrap(), 'b'),
            "another declaration",
        ),
        refused(
            "with-more",
            "an unknown member",
            raw(json!({ "digest": digest_b, "source": "github", "commit": commit_b, "signer": "alice" })),
            malformed,
        ),
        refused(
            "without-source",
            "nobody knows where it is from",
            raw(json!({ "digest": digest_b, "commit": commit_b })),
            malformed,
        ),
        refused(
            "commit-abbreviated",
            "an abbreviated commit",
            raw(json!({ "digest": digest_b, "source": "github", "commit": "bbbbbbb" })),
            malformed,
        )
        .fails(&["event_payloads", "commit"], malformed),
        refused(
            "not-json",
            "a payload that is not JSON, and claims of what booted",
            with(vec![Event::new(Declaration::NAME, "the next one"), image("web", 'b')], '1'),
            malformed,
        ),
        refused(
            "image-by-tag",
            "an image that is not named by its digest",
            with(
                [
                    one(),
                    vec![Event::new(
                        Image::NAME,
                        json!({ "service": "db", "reference": "registry.example/db:latest" }).to_string(),
                    )],
                ]
                .concat(),
                'b',
            ),
            "payload of `image` is malformed",
        ),
    ]
}

/// What is claimed of it.
fn claims(honest: &Value) -> Vec<Case> {
    let case = |name: &str, about: &str, fixture: Fixture| {
        Case::new(honest, &format!("applied/{name}"), about).evidence(&fixture.evidence())
    };
    let both = &["commit", "declaration"];
    let logged = &["event_log", "commit", "declaration"];
    let mut commit_alone = fixture();
    commit_alone.claims.commit = common::word(common::COMMIT);
    let mut cut = fixture().evidence();
    cut.event_log.truncate(cut.event_log.len() - 2);
    let mut extended = with(vec![], '1').evidence();
    extended.event_log.extend(one());
    let changed = "the log was changed, reordered, cut or extended";
    vec![
        case("claims-of-the-earlier", "claims of what booted, when something else runs", with(one(), '1'))
            .fails(both, "the event log says sha256:bbbb"),
        case("claims-of-the-later", "claims of what was not applied", with(vec![], 'b'))
            .fails(both, "the event log says sha256:1111"),
        case("commit-of-the-earlier", "the right bytes under the commit of what booted", commit_alone)
            .fails(&["commit"], "the event log says bbbb"),
        Case::new(honest, "applied/log-cut", "what was applied is left out")
            .evidence(&cut)
            .fails(logged, changed),
        Case::new(honest, "applied/log-extended", "what was not applied is added")
            .evidence(&extended)
            .fails(logged, changed),
        case("another-than-expected", "the repository has what booted at the claimed commit", fixture())
            .set("/expected/declaration", common::DIGEST)
            .fails(&["declaration"], "expected sha256:1111"),
        case("as-expected", "the repository has what was applied at the claimed commit", fixture())
            .set("/expected/declaration", digest('b'))
            .set("/expected/commit", commit('b')),
    ]
}

/// What one further declaration measures.
fn one() -> Vec<Event> {
    vec![declaration('b', "github"), image("web", 'b')]
}

/// An appliance with these events after launch, which claims what is called by the digit.
fn with(later: Vec<Event>, claimed: char) -> Fixture {
    let events = [common::firmware_events(), own_events(), later].concat();
    claiming(events, claimed)
}

/// One whose boot was otherwise, and which has applied a declaration since unless it claims what booted.
fn boot(change: impl FnOnce(&mut Vec<Event>), claimed: char) -> Fixture {
    let mut own = own_events();
    change(&mut own);
    let later = if claimed == '1' { vec![] } else { one() };
    claiming([common::firmware_events(), own, later].concat(), claimed)
}

fn claiming(events: Vec<Event>, claimed: char) -> Fixture {
    let mut fixture = Fixture { events, ..Fixture::default() };
    fixture.claims.declaration = common::word(&digest(claimed));
    fixture.claims.commit = common::word(&commit(claimed));
    fixture
}

/// What booted is called 1.
fn digest(digit: char) -> String {
    common::DIGEST.replace('1', &digit.to_string())
}

fn commit(digit: char) -> String {
    match digit {
        '1' => common::COMMIT.to_owned(),
        digit => digit.to_string().repeat(40),
    }
}

fn declaration(digit: char, source: &str) -> Event {
    let (digest, commit) = (common::word(&digest(digit)), common::word(&commit(digit)));
    Declaration { digest, source: source.to_owned(), commit }.event().unwrap()
}

fn image(service: &str, digit: char) -> Event {
    let reference = common::word(&format!("registry.example/web@{}", digest(digit)));
    Image { service: service.into(), reference }.event().unwrap()
}
