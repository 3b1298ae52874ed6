//! What this run trusts: roots, policy and reference values, and what it makes of an appraisal.

use std::fmt::Write as _;
use std::path::Path;

use cofferdam_attest::appraise::{self, Appraisal, Check, Expectations, Outcome as CheckOutcome, Verdict};
use cofferdam_attest::claims::Claims;
use cofferdam_attest::dcap::Roots;
use cofferdam_attest::evidence::{Collateral, Evidence};
use cofferdam_attest::policy::Policy;
use cofferdam_attest::quote;
use cofferdam_attest::reference::ReferenceValues;
use cofferdam_github::Requests;
use cofferdam_measure::explain::{self, Explanation};
use cofferdam_protocol::unix_seconds;
use serde_json::{Value, json};

use crate::cli;
use crate::failure::{Cause, Code, Failure, Outcome, chain};
use crate::files;
use crate::references;
use crate::ui::{Tone, Ui, printable};

mod inputs;

pub(crate) use inputs::Inputs;

/// A policy, a root certificate.
const LARGEST_TEXT: usize = 256 << 10;

/// The registers that reference values are for, by the names of their checks.
const REGISTERS: [&str; 4] = ["mrtd", "rtmr0", "rtmr1", "rtmr2"];

/// What an appraisal came to, and why registers differ when that is so.
pub(crate) struct Judged {
    pub(crate) appraisal: Appraisal,
    explanation: Option<Explanation>,
    inputs: Inputs,
}

/// The trust of one run.
pub(crate) struct Trust {
    roots: Roots,
    pub(crate) policy: Policy,
    reference: ReferenceValues,
    pub(crate) inputs: Inputs,
    /// What GitHub was asked for reference values.
    pub(crate) requests: Requests,
}

impl Trust {
    /// Reads what the options name.
    pub(crate) async fn load(options: &cli::Trust, github: &cli::Github) -> Outcome<Self> {
        let roots = roots(options.root.as_deref())?;
        let policy = match &options.policy {
            Some(path) => {
                Policy::parse(&files::read(path, LARGEST_TEXT)?).map_err(|error| named(path, &error))?
            }
            None => Policy::default(),
        };
        let (reference, requests) = references::load(&options.reference, github).await?;
        let inputs = Inputs::new(options, github, &policy).map_err(|error| Failure::failed(chain(&error)))?;
        Ok(Self { roots, policy, reference, inputs, requests })
    }

    /// Greatest age of claims that the policy accepts, in seconds.
    pub(crate) fn max_age_s(&self) -> u64 {
        self.policy.max_age_s
    }

    /// Whether no reference values were named: then nothing is ever accepted.
    pub(crate) fn has_no_reference(&self) -> bool {
        self.reference.images.is_empty() || self.reference.platforms.is_empty()
    }

    /// Expectations with the reference values and nothing else.
    pub(crate) fn expectations(&self) -> Expectations {
        Expectations { reference: self.reference.clone(), ..Expectations::default() }
    }

    pub(crate) fn appraise(&self, evidence: &Evidence, expectations: &Expectations, now: u64) -> Judged {
        let appraisal = appraise::appraise(evidence, expectations, &self.policy, &self.roots, now);
        let explanation = if expectations.brief { None } else { self.explain(evidence, &appraisal) };
        Judged { appraisal, explanation, inputs: self.inputs.clone() }
    }

    /// For a document that may not even be one: then that is what is refused.
    pub(crate) fn appraise_document(&self, document: &[u8], expectations: &Expectations, now: u64) -> Judged {
        let appraisal = appraise::appraise_document(document, expectations, &self.policy, &self.roots, now);
        Judged { appraisal, explanation: None, inputs: self.inputs.clone() }
    }

    /// Why registers differ from the reference values, when they do.
    fn explain(&self, evidence: &Evidence, appraisal: &Appraisal) -> Option<Explanation> {
        REGISTERS
            .iter()
            .any(|name| appraisal.check(name).is_some_and(|check| check.outcome == CheckOutcome::Fail))
            .then_some(())?;
        let quote = quote::parse(&evidence.quote).ok()?;
        let simulated = appraisal.platform.is_some().then_some(appraisal.simulated);
        Some(explain::explain(&self.reference, &quote, &evidence.event_log, simulated))
    }

    pub(crate) fn appraise_quote(&self, quote: &[u8], collateral: Option<&Collateral>, now: u64) -> Judged {
        let appraisal = appraise::appraise_quote(quote, collateral, &self.policy, &self.roots, now);
        Judged { appraisal, explanation: None, inputs: self.inputs.clone() }
    }
}

/// Intel's root, and those of a PEM file.
pub(crate) fn roots(further: Option<&Path>) -> Outcome<Roots> {
    match further {
        Some(path) => Roots::intel()
            .with_pem(&files::read_text(path, LARGEST_TEXT)?)
            .map_err(|error| named(path, &error)),
        None => Ok(Roots::intel()),
    }
}

/// Until when what was accepted holds, seconds since the Unix epoch: the claims expire, they reach the age that the policy
/// accepts, or a part of the collateral expires.
pub(crate) fn holds_until(claims: &Claims, appraisal: &Appraisal, max_age_s: u64) -> u64 {
    let (issued, expires) = (claims.issued_at.unix(), claims.expires_at.unix());
    let collateral = appraisal.platform.as_ref().map(|platform| platform.collateral_expires);
    let collateral = collateral.filter(|expires| *expires > 0).unwrap_or(u64::MAX);
    expires.min(issued.saturating_add(max_age_s)).min(collateral)
}

impl Judged {
    /// Success only when the appraisal accepted; otherwise the failure that says why.
    pub(crate) fn accept(&self, what: &str) -> Outcome {
        let failure = verdict_failure(self.appraisal.verdict(), &self.appraisal.checks, what);
        failure.map_or(Ok(()), |failure| Err(self.explained(failure)))
    }

    /// `failure` with the causes of the difference.
    pub(crate) fn explained(&self, mut failure: Failure) -> Failure {
        for line in self.explanation.as_ref().and_then(explain::summary).unwrap_or_default().lines() {
            let _ = write!(failure.message, "\n  {}", printable(line));
        }
        failure
    }

    /// What is printed below the checks: what was trusted, and the explanation.
    pub(crate) fn paragraphs(&self) -> String {
        let explanation = self.explanation.as_ref().map(|explanation| format!("\n{explanation}"));
        format!("{}{}", self.inputs.lines(), explanation.unwrap_or_default())
    }
}

/// The failure for a verdict, `None` for an accepted one.
pub(crate) fn verdict_failure(verdict: Verdict, checks: &[Check], what: &str) -> Option<Failure> {
    let (code, wanted, words) = match verdict {
        Verdict::Accepted => return None,
        Verdict::Rejected => (Code::Rejected, CheckOutcome::Fail, "is refused"),
        Verdict::CouldNotCheck => (Code::CouldNotCheck, CheckOutcome::CouldNotCheck, "could not be checked"),
    };
    let mut message = format!("{what} {words}");
    for check in checks.iter().filter(|check| check.outcome == wanted) {
        let _ = write!(message, "\n  {}: {}", check.name, printable(&check.detail));
    }
    let failure = Failure::new(code, message);
    let times = ["issued_at", "expires_at"];
    let mut false_ones = checks.iter().filter(|check| check.outcome == wanted);
    if verdict == Verdict::Rejected && false_ones.all(|check| times.contains(&check.name)) {
        return Some(failure.because_of(Cause::Times).hint(
            "only times are wrong: one of the clocks may be; compare `date -u` here with the clock of the appliance's host",
        ));
    }
    let missing = |name: &str| checks.iter().any(|check| check.outcome == wanted && check.name == name);
    Some(match verdict {
        Verdict::CouldNotCheck if REGISTERS.into_iter().any(missing) => failure.hint(
            "name reference values with --reference: a file or directory (measurements/), or github:OWNER/REPO@TAG; \
             `coffer measure` makes them",
        ),
        _ => failure,
    })
}

/// The checks as lines, for a person.
pub(crate) fn report(ui: &Ui, checks: &[Check]) -> String {
    let mut text = String::new();
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in checks {
        let mark = match check.outcome {
            CheckOutcome::Pass => ui.tone(Tone::Good, "ok  "),
            CheckOutcome::Fail => ui.tone(Tone::Bad, "FAIL"),
            CheckOutcome::NotChecked => ui.tone(Tone::Faint, "--  "),
            CheckOutcome::CouldNotCheck => ui.tone(Tone::Unsure, "??  "),
        };
        let _ = writeln!(text, "  {mark} {:width$}  {}", check.name, printable(&check.detail));
    }
    text
}

/// The appraisal as the object that `--json` prints; `refused_because` repeats what is false, by name.
pub(crate) fn to_json(judged: &Judged, checks: &[Check], verdict: Verdict) -> Value {
    let refused: Vec<&Check> = checks.iter().filter(|check| check.outcome == CheckOutcome::Fail).collect();
    let refused: Vec<Value> =
        refused.iter().map(|check| json!({ "check": check.name, "reason": check.detail })).collect();
    let mut object = serde_json::to_value(&judged.appraisal).unwrap_or_default();
    if let Value::Object(members) = &mut object {
        members.insert("checks".to_owned(), serde_json::to_value(checks).unwrap_or_default());
        members.insert("verdict".to_owned(), verdict.name().into());
        members.insert("refused_because".to_owned(), refused.into());
        members.insert("trust".to_owned(), judged.inputs.to_json());
        if let Some(explanation) = &judged.explanation {
            members.insert("explanation".to_owned(), serde_json::to_value(explanation).unwrap_or_default());
        }
    }
    object
}

pub(crate) fn named(path: &Path, error: &dyn std::error::Error) -> Failure {
    Failure::usage(printable(&format!("{}: {}", path.display(), chain(error))))
}

/// Seconds since the Unix epoch by this machine's clock.
pub(crate) fn unix_now() -> Outcome<u64> {
    match unix_seconds(std::time::SystemTime::now()) {
        0 => Err(Failure::could_not_check("this machine's clock is before 1970")),
        now => Ok(now),
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_attest::dcap::Platform;

    use super::*;

    fn platform(collateral_expires: u64) -> Platform {
        let word = String::new;
        Platform {
            tcb_status: word(),
            advisories: Vec::new(),
            tcb_evaluation_data_number: 0,
            tcb_date: word(),
            fmspc: word(),
            ppid: word(),
            platform_instance_id: None,
            cpu_svn: word(),
            pce_svn: 0,
            qe_svn: 0,
            qe_tcb_status: word(),
            qe_tcb_date: word(),
            dynamic_platform: None,
            cached_keys: None,
            smt_enabled: None,
            collateral_expires,
            expired: None,
            root: word(),
            simulated: true,
        }
    }

    #[test]
    fn an_appraisal_holds_until_the_first_of_expiry_age_and_collateral_ends() {
        let claims = Claims {
            version: 1,
            repository: "acme/shop".parse().unwrap(),
            commit: [0x22; 20].into(),
            declaration: [0x11; 32].into(),
            endpoint: "shop.example:8443".parse().unwrap(),
            tls_key: [0x33; 32].into(),
            vault_key: [0; 32].into(),
            issued_at: "2026-01-02T00:00:00Z".parse().unwrap(),
            expires_at: "2026-01-03T00:00:00Z".parse().unwrap(),
            sealed: false,
            state_epoch: 0,
            state_continuity: None,
            certificate: None,
            nonce: None,
            channel_binding: None,
            challenges: None,
        };
        let issued = claims.issued_at.unix();
        for (max_age_s, collateral, after_s) in [
            (u64::MAX, None, 86_400),
            (172_800, Some(issued + 172_800), 86_400),
            (3_600, Some(issued + 7_200), 3_600),
            (3_600, Some(issued + 60), 60),
            (3_600, Some(0), 3_600),
            (0, None, 0),
        ] {
            let platform = collateral.map(platform);
            let appraisal = Appraisal { platform, ..Appraisal::default() };
            let holds = holds_until(&claims, &appraisal, max_age_s);
            assert_eq!(holds - issued, after_s, "{max_age_s} {collateral:?}");
        }
    }
}
