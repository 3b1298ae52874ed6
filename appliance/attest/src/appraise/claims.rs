//! The claims: bound to the quote, agreeing with the measured events, with what the relying party expects, and with the clock.
//!
//! Changing any byte of the claims breaks `report_data`. So that a person learns which claim was changed, every claim is also
//! compared with each independent source of it: the measured events, the release's tag, the caller's expectations.

use std::str::FromStr;

use cofferdam_protocol::evidence::{ChannelBinding, Nonce};
use cofferdam_protocol::{Repository, Timestamp, error_chain, json};

use crate::appraise::{Appraisal, Expectations, Outcome};
use crate::challenge::Challenge;
use crate::claims::{Claims, report_data};
use crate::event_log::payload::{Appliance, Declaration, Launch, Payload, State};
use crate::event_log::{Event, MAX_PAYLOAD};
use crate::evidence::Evidence;
use crate::policy::Policy;
use crate::quote::Quote;
use crate::release;

/// Claims that are compared by value: name, value in the claims, where else the value is known.
struct Comparison {
    name: &'static str,
    claimed: Option<String>,
    sources: Vec<(&'static str, String)>,
}

/// Why claims are refused that their quote does not commit to.
pub(super) const UNBOUND: &str = "the quote does not commit to these claims";

/// Whether the quote commits to the exact bytes of the claims.
pub(super) fn bound(quote: &Quote, evidence: &Evidence) -> bool {
    quote.report_data == report_data(&evidence.claims)
}

pub(super) fn check(
    appraisal: &mut Appraisal,
    quote: Option<&Quote>,
    evidence: &Evidence,
    expected: &Expectations,
    policy: &Policy,
    now: u64,
) {
    let bound = quote.map(|quote| bound(quote, evidence));
    let claims = match Claims::decode(&evidence.claims) {
        Ok(claims) => claims,
        Err(error) => {
            if bound == Some(false) {
                appraisal.fail("report_data", UNBOUND);
            }
            appraisal.fail("claims", error_chain(&error));
            return;
        }
    };
    let challenged = challenged(appraisal, &claims, evidence.challenge.as_ref());
    appraisal.nonce.clone_from(&challenged.nonce);
    let comparisons = comparisons(&claims, &challenged, &evidence.event_log, expected);
    match (bound, quote) {
        (Some(true), _) => appraisal.pass("report_data", "the quote commits to exactly these claims"),
        (Some(false), Some(quote)) => {
            let why = name_the_change(&claims, &comparisons, quote, policy);
            appraisal.fail("report_data", format!("{UNBOUND}: {why}"));
        }
        _ => appraisal.fail("report_data", "no quote to compare with"),
    }
    if let Some(tag) = &expected.tag {
        let prefix = release::DigestPrefix::of(&evidence.claims);
        if prefix == tag.digest {
            appraisal.pass("claims", format!("digest begins with {prefix}, as the release's tag says"));
        } else {
            appraisal.fail(
                "claims",
                format!("digest begins with {prefix}, the release's tag says {}", tag.digest),
            );
        }
    } else {
        appraisal.pass("claims", "well formed");
    }
    for comparison in comparisons {
        compare(appraisal, comparison);
    }
    seal_flags(appraisal, &claims, &evidence.event_log);
    times(appraisal, &claims, expected, policy, now);
    appraisal.claims = Some(claims);
}

/// What the quote was asked over: the claims' own nonce and channel binding, or those of a challenge that leads to the claims' root.
struct Challenged {
    nonce: Option<Nonce>,
    channel_binding: Option<ChannelBinding>,
}

/// A challenge counts only where the claims carry the root that it leads to, and such claims are for nobody without one.
fn challenged(appraisal: &mut Appraisal, claims: &Claims, challenge: Option<&Challenge>) -> Challenged {
    let none = Challenged { nonce: None, channel_binding: None };
    match (&claims.challenges, challenge) {
        (None, None) => {
            let Claims { nonce, channel_binding, .. } = claims.clone();
            Challenged { nonce, channel_binding }
        }
        (Some(root), Some(challenge)) if challenge.root() == Some(*root) => {
            appraisal.pass(
                "challenge",
                format!("number {} under the root that the claims carry", challenge.index),
            );
            let Challenge { nonce, channel_binding, .. } = challenge.clone();
            Challenged { nonce: Some(nonce), channel_binding }
        }
        (Some(_), Some(_)) => {
            appraisal.fail("challenge", "its path does not lead to the root that the claims carry");
            none
        }
        (Some(_), None) => {
            appraisal.fail("challenge", "the claims carry the root of many, and the document none of them");
            none
        }
        (None, Some(_)) => {
            appraisal
                .fail("challenge", "the document carries one, and the claims no root that it could lead to");
            none
        }
    }
}

fn comparisons(
    claims: &Claims,
    challenged: &Challenged,
    events: &[Event],
    expected: &Expectations,
) -> Vec<Comparison> {
    fn comparison<T: ToString>(
        name: &'static str,
        claimed: Option<&T>,
        logged: Option<String>,
        wanted: Option<&T>,
    ) -> Comparison {
        let logged = logged.map(|value| ("the event log says", value));
        let wanted = wanted.map(|value| ("expected", value.to_string()));
        Comparison {
            name,
            claimed: claimed.map(T::to_string),
            sources: logged.into_iter().chain(wanted).collect(),
        }
    }
    let mut comparisons = vec![
        comparison(
            "repository",
            Some(&claims.repository),
            logged::<Appliance>(events, "repository"),
            expected.repository.as_ref(),
        ),
        comparison("commit", Some(&claims.commit), in_force(events, "commit"), expected.commit.as_ref()),
        comparison(
            "declaration",
            Some(&claims.declaration),
            in_force(events, "digest"),
            expected.declaration.as_ref(),
        ),
        comparison(
            "endpoint",
            Some(&claims.endpoint),
            logged::<Appliance>(events, "endpoint"),
            expected.endpoint.as_ref(),
        ),
        comparison(
            "tls_key",
            Some(&claims.tls_key),
            logged::<Launch>(events, "tls_key"),
            expected.tls_key.as_ref(),
        ),
        comparison("nonce", challenged.nonce.as_ref(), None, expected.nonce.as_ref()),
        comparison(
            "channel_binding",
            challenged.channel_binding.as_ref(),
            None,
            expected.channel_binding.as_ref(),
        ),
    ];
    // State in memory has no epoch, and no event that says one.
    if let Some(epoch) = logged::<State>(events, "epoch") {
        comparisons.push(comparison("state_epoch", Some(&claims.state_epoch), Some(epoch), None));
    }
    let claimed =
        claims.state_continuity.and_then(|claim| Some(serde_json::to_value(claim).ok()?.to_string()));
    let logged = logged::<State>(events, "continuity");
    if claimed.is_some() || logged.is_some() {
        let absent = || "absent".to_owned();
        comparisons.push(comparison(
            "state_continuity",
            Some(&claimed.unwrap_or_else(absent)),
            Some(logged.unwrap_or_else(absent)),
            None,
        ));
    }
    comparisons
}

/// What the first event of this name says about `member`, as text: a payload that is malformed is refused elsewhere, and what it
/// says still differs from the claim.
fn logged<P: Payload>(events: &[Event], member: &str) -> Option<String> {
    named::<P>(events).find_map(|event| told(event, member))
}

/// What the last declaration's event says about `member`: a declaration that was applied at run time takes the place of those before
/// it, and one that cannot be read is no reason to go by an earlier one.
fn in_force(events: &[Event], member: &str) -> Option<String> {
    told(named::<Declaration>(events).next_back()?, member)
}

fn named<P: Payload>(events: &[Event]) -> impl DoubleEndedIterator<Item = &Event> {
    events.iter().filter(|event| event.mr == 3 && event.event == P::NAME)
}

fn told(event: &Event, member: &str) -> Option<String> {
    let payload: serde_json::Value = json::from_json(event.payload.as_deref()?, MAX_PAYLOAD).ok()?;
    let value = payload.get(member)?;
    let object = || value.is_object().then(|| value.to_string());
    value.as_str().map(str::to_owned).or_else(|| Some(value.as_u64()?.to_string())).or_else(object)
}

fn compare(appraisal: &mut Appraisal, comparison: Comparison) {
    let Comparison { name, claimed, sources } = comparison;
    let shown = claimed.as_deref().unwrap_or("absent").to_owned();
    let problems: Vec<String> = sources
        .iter()
        .filter(|(_, value)| !same(name, claimed.as_deref(), value))
        .map(|(source, value)| format!("is {shown}, {source} {value}"))
        .collect();
    match (problems.is_empty(), sources.is_empty()) {
        (true, true) => {
            appraisal.push(name, Outcome::NotChecked, format!("{shown}; nothing to compare with"))
        }
        _ => appraisal.require(name, shown, &problems),
    }
}

/// Equality of a claim with a source; GitHub's names do not depend on case.
fn same(name: &str, claimed: Option<&str>, value: &str) -> bool {
    let same_repository = |claimed: &str| {
        let parsed = |text: &str| text.parse::<Repository>().ok();
        parsed(claimed).zip(parsed(value)).is_some_and(|(one, other)| one.is_same(&other))
    };
    claimed.is_some_and(|claimed| claimed == value || (name == "repository" && same_repository(claimed)))
}

/// `sealed` has to be what was measured.
fn seal_flags(appraisal: &mut Appraisal, claims: &Claims, events: &[Event]) {
    let measured = events.iter().any(|event| event.mr == 3 && event.event == "sealed");
    let problem = (measured != claims.sealed)
        .then(|| format!("claimed {}, the event log says {measured}", claims.sealed));
    appraisal.require("sealed", claims.sealed.to_string(), problem.as_slice());
}

/// Not from the future, not too old, not expired, not valid for too long, and of the time that the release's tag says.
fn times(appraisal: &mut Appraisal, claims: &Claims, expected: &Expectations, policy: &Policy, now: u64) {
    let (issued, expires) = (claims.issued_at.unix(), claims.expires_at.unix());
    let at = Timestamp::shown(now);
    let mut problems = Vec::new();
    if issued > now.saturating_add(policy.clock_skew_s) {
        problems.push(format!("{} is in the future at {at}", claims.issued_at));
    }
    let age = now.saturating_sub(issued);
    if age > policy.max_age_s {
        problems.push(format!("{} is {age} s ago, at most {} s allowed", claims.issued_at, policy.max_age_s));
    }
    if let Some(tag) = expected.tag.as_ref().filter(|tag| tag.issued_at != claims.issued_at) {
        problems.push(format!("is {}, the release's tag says {}", claims.issued_at, tag.issued_at));
    }
    appraisal.require("issued_at", format!("{}, {age} s ago", claims.issued_at), &problems);

    let mut problems = Vec::new();
    if now > expires.saturating_add(policy.clock_skew_s) {
        problems.push(format!("{} has passed at {at}", claims.expires_at));
    }
    if expires <= issued {
        problems.push(format!("{} is not after issued_at {}", claims.expires_at, claims.issued_at));
    } else if expires - issued > policy.max_validity_s {
        problems.push(format!(
            "valid for {} s, at most {} s allowed",
            expires - issued,
            policy.max_validity_s
        ));
    }
    appraisal.require("expires_at", claims.expires_at.to_string(), &problems);
}

/// Which claim was changed after the quote was made? The sources' values are put instead of the claimed ones: when the
/// quote commits to the result, the culprit is proven, else suspects are named.
fn name_the_change(claims: &Claims, comparisons: &[Comparison], quote: &Quote, policy: &Policy) -> String {
    let mut restored = claims.clone();
    let mut differing = Vec::new();
    let mut unknown = vec!["vault_key"];
    if !comparisons.iter().any(|comparison| comparison.name == "state_epoch") {
        unknown.push("state_epoch");
    }
    for Comparison { name, claimed, sources } in comparisons {
        match sources.iter().find(|(_, value)| !same(name, claimed.as_deref(), value)) {
            Some((_, value)) => {
                differing.push(*name);
                put(&mut restored, name, value);
            }
            None if sources.is_empty() && claimed.is_some() => unknown.push(name),
            None => {}
        }
    }
    let commits =
        |candidate: &Claims| candidate.encode().is_ok_and(|bytes| report_data(&bytes) == quote.report_data);
    if !differing.is_empty() && commits(&restored) {
        return format!("{} was changed", differing.join(" and "));
    }
    if let Some(field) = search_times(&restored, policy, &commits) {
        differing.push(field);
        return format!("{} was changed", differing.join(" and "));
    }
    if differing.is_empty() {
        format!(
            "none of the claims with an independent source differs, so one of {} was changed",
            unknown.join(", ")
        )
    } else {
        format!("{} differs; not compared: {}", differing.join(" and "), unknown.join(", "))
    }
}

/// Puts a source's value into the claim of this name; what is no such value could not have been claimed.
fn put(claims: &mut Claims, name: &str, value: &str) {
    fn set<T: FromStr>(claim: &mut T, value: &str) {
        if let Ok(value) = value.parse() {
            *claim = value;
        }
    }
    match name {
        "repository" => set(&mut claims.repository, value),
        "commit" => set(&mut claims.commit, value),
        "declaration" => set(&mut claims.declaration, value),
        "endpoint" => set(&mut claims.endpoint, value),
        "tls_key" => set(&mut claims.tls_key, value),
        "state_epoch" => set(&mut claims.state_epoch, value),
        "state_continuity" => claims.state_continuity = serde_json::from_str(value).ok(),
        "nonce" => claims.nonce = value.parse().ok(),
        "channel_binding" => claims.channel_binding = value.parse().ok(),
        _ => {}
    }
}

/// The validity is a whole number of minutes, so one changed time can be found from the other: at most
/// `max_validity_s / 60` candidates each (about 10,000 hashes for a week).
fn search_times(claims: &Claims, policy: &Policy, commits: &dyn Fn(&Claims) -> bool) -> Option<&'static str> {
    let (issued, expires) = (claims.issued_at.unix(), claims.expires_at.unix());
    let steps = (policy.max_validity_s / 60).min(MAX_SEARCH);
    (1..=steps).find_map(|minutes| {
        let span = minutes * 60;
        let later = Claims { expires_at: Timestamp::from_unix(issued.checked_add(span)?)?, ..claims.clone() };
        let earlier =
            Claims { issued_at: Timestamp::from_unix(expires.saturating_sub(span))?, ..claims.clone() };
        if commits(&later) {
            Some("expires_at")
        } else if commits(&earlier) {
            Some("issued_at")
        } else {
            None
        }
    })
}

/// Bound of [`search_times`] whatever the policy says: a month of minutes.
const MAX_SEARCH: u64 = 31 * 24 * 60;
