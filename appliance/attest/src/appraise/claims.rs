//! The claims: bound to the quote, agreeing with the measured events, with what the relying party expects, and with the clock.
//!
//! Changing any byte of the claims breaks `report_data`. So that a person learns which claim was changed, every claim is also
//! compared with each independent source of it: the measured events, the release's tag, the caller's expectations.

use crate::appraise::{Appraisal, Expectations, Outcome, causes};
use crate::claims::{Claims, format_time, parse_time, report_data};
use crate::event_log::Event;
use crate::event_log::payload::{Appliance, Declaration, Launch, Payload as _};
use crate::evidence::Evidence;
use crate::policy::Policy;
use crate::quote::Quote;
use crate::{release, strict};

/// Claims that are compared by value: name, value in the claims, where else the value is known.
struct Comparison {
    name: &'static str,
    claimed: Option<String>,
    sources: Vec<(&'static str, String)>,
}

pub(super) fn check(
    appraisal: &mut Appraisal,
    quote: Option<&Quote>,
    evidence: &Evidence,
    expected: &Expectations,
    policy: &Policy,
    now: u64,
) {
    let bound = quote.map(|quote| quote.report_data == report_data(&evidence.claims));
    let claims = match Claims::decode(&evidence.claims) {
        Ok(claims) => claims,
        Err(error) => {
            if bound == Some(false) {
                appraisal.fail("report_data", "the quote does not commit to these claims");
            }
            appraisal.fail("claims", causes(&error));
            return;
        }
    };
    let comparisons = comparisons(&claims, &evidence.event_log, expected);
    match (bound, quote) {
        (Some(true), _) => appraisal.pass("report_data", "the quote commits to exactly these claims"),
        (Some(false), Some(_)) if expected.brief => {
            appraisal.fail("report_data", "the quote does not commit to these claims");
        }
        (Some(false), Some(quote)) => {
            let why = name_the_change(&claims, &comparisons, quote, policy);
            appraisal.fail("report_data", format!("the quote does not commit to these claims: {why}"));
        }
        _ => appraisal.fail("report_data", "no quote to compare with"),
    }
    if let Some(tag) = &expected.tag {
        let prefix = release::digest_prefix(&evidence.claims);
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

fn comparisons(claims: &Claims, events: &[Event], expected: &Expectations) -> Vec<Comparison> {
    let declaration = events.iter().find_map(Declaration::read);
    let appliance = events.iter().find_map(Appliance::read);
    let launch = events.iter().find_map(Launch::read);
    let logged = |value: Option<String>| value.map(|value| ("the event log says", value));
    let wanted = |value: &Option<String>| value.clone().map(|value| ("expected", value));
    let comparison = |name, claimed: &str, sources: [Option<(&'static str, String)>; 2]| Comparison {
        name,
        claimed: Some(claimed.to_owned()),
        sources: sources.into_iter().flatten().collect(),
    };
    let on_request = |name, claimed: &Option<String>, wanted: Option<String>| Comparison {
        name,
        claimed: claimed.clone(),
        sources: wanted.map(|value| ("expected", value)).into_iter().collect(),
    };
    vec![
        comparison(
            "repository",
            &claims.repository,
            [logged(appliance.as_ref().map(|a| a.repository.clone())), wanted(&expected.repository)],
        ),
        comparison(
            "commit",
            &claims.commit,
            [logged(declaration.as_ref().map(|d| d.commit.clone())), wanted(&expected.commit)],
        ),
        comparison(
            "declaration",
            &claims.declaration,
            [logged(declaration.map(|d| d.digest)), wanted(&expected.declaration)],
        ),
        comparison(
            "endpoint",
            &claims.endpoint,
            [logged(appliance.map(|a| a.endpoint)), wanted(&expected.endpoint)],
        ),
        comparison(
            "tls_key",
            &claims.tls_key,
            [logged(launch.map(|launch| launch.tls_key)), wanted(&expected.tls_key)],
        ),
        on_request("nonce", &claims.nonce, expected.nonce.as_deref().map(strict::b64)),
        on_request(
            "channel_binding",
            &claims.channel_binding,
            expected.channel_binding.as_ref().map(|bytes| strict::b64(bytes)),
        ),
    ]
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
    claimed.is_some_and(|claimed| {
        claimed == value || (name == "repository" && claimed.eq_ignore_ascii_case(value))
    })
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
    let (Some(issued), Some(expires)) = (claims.issued_unix(), claims.expires_unix()) else {
        appraisal.fail("issued_at", "not a time");
        return;
    };
    let at = format_time(now).unwrap_or_default();
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
    appraisal.require("expires_at", claims.expires_at.clone(), &problems);
}

/// Which claim was changed after the quote was made? The sources' values are put instead of the claimed ones: when the
/// quote commits to the result, the culprit is proven, else suspects are named.
fn name_the_change(claims: &Claims, comparisons: &[Comparison], quote: &Quote, policy: &Policy) -> String {
    let mut restored = claims.clone();
    let mut differing = Vec::new();
    let mut unknown = vec!["vault_key", "state_epoch"];
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
    let commits = |candidate: &Claims| report_data(&candidate.encode()) == quote.report_data;
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

fn put(claims: &mut Claims, name: &str, value: &str) {
    let value = value.to_owned();
    match name {
        "repository" => claims.repository = value,
        "commit" => claims.commit = value,
        "declaration" => claims.declaration = value,
        "endpoint" => claims.endpoint = value,
        "tls_key" => claims.tls_key = value,
        "nonce" => claims.nonce = Some(value),
        "channel_binding" => claims.channel_binding = Some(value),
        _ => {}
    }
}

/// The validity is a whole number of minutes, so one changed time can be found from the other: at most
/// `max_validity_s / 60` candidates each (about 10,000 hashes for a week).
fn search_times(claims: &Claims, policy: &Policy, commits: &dyn Fn(&Claims) -> bool) -> Option<&'static str> {
    let issued = parse_time(&claims.issued_at)?;
    let expires = parse_time(&claims.expires_at)?;
    let steps = (policy.max_validity_s / 60).min(MAX_SEARCH);
    (1..=steps).find_map(|minutes| {
        let span = minutes * 60;
        let later = Claims { expires_at: format_time(issued.checked_add(span)?)?, ..claims.clone() };
        let earlier = Claims { issued_at: format_time(expires.saturating_sub(span))?, ..claims.clone() };
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
