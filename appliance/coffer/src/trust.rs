//! What this run trusts: roots, policy and reference values, and what it makes of an appraisal.

use std::fmt::Write as _;
use std::path::Path;

use cofferdam_attest::appraise::{self, Appraisal, Check, Expectations, Outcome as CheckOutcome, Verdict};
use cofferdam_attest::dcap::Roots;
use cofferdam_attest::evidence::{Collateral, Evidence};
use cofferdam_attest::policy::Policy;
use cofferdam_attest::reference::ReferenceValues;
use serde_json::{Value, json};

use crate::cli;
use crate::failure::{Code, Failure, Outcome, chain};
use crate::files;
use crate::ui::{Tone, Ui, printable};

/// Reference values list a few dozen events.
const LARGEST_REFERENCE: usize = 1 << 20;
/// A policy, a root certificate.
const LARGEST_TEXT: usize = 256 << 10;

/// The trust of one run.
pub(crate) struct Trust {
    roots: Roots,
    policy: Policy,
    reference: Option<ReferenceValues>,
}

impl Trust {
    /// Reads what the options name.
    pub(crate) fn load(options: &cli::Trust) -> Outcome<Self> {
        let roots = match &options.root {
            Some(path) => Roots::intel()
                .with_pem(&files::read_text(path, LARGEST_TEXT)?)
                .map_err(|error| named(path, &error))?,
            None => Roots::intel(),
        };
        let policy = match &options.policy {
            Some(path) => {
                Policy::parse(&files::read(path, LARGEST_TEXT)?).map_err(|error| named(path, &error))?
            }
            None => Policy::default(),
        };
        let reference = match &options.reference {
            Some(path) => Some(read_reference(path)?),
            None => None,
        };
        Ok(Self { roots, policy, reference })
    }

    /// Expectations with the reference values and nothing else.
    pub(crate) fn expectations(&self) -> Expectations {
        Expectations { reference: self.reference.clone(), ..Expectations::default() }
    }

    pub(crate) fn appraise(&self, evidence: &Evidence, expectations: &Expectations, now: u64) -> Appraisal {
        appraise::appraise(evidence, expectations, &self.policy, &self.roots, now)
    }

    pub(crate) fn appraise_quote(
        &self,
        quote: &[u8],
        collateral: Option<&Collateral>,
        now: u64,
    ) -> Appraisal {
        appraise::appraise_quote(quote, collateral, &self.policy, &self.roots, now)
    }

    /// Success only when the appraisal accepted; otherwise the failure that says why, with the report.
    pub(crate) fn accept(&self, appraisal: &Appraisal, what: &str) -> Outcome {
        verdict_failure(appraisal.verdict(), &appraisal.checks, what).map_or(Ok(()), Err)
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
    let missing = |name: &str| checks.iter().any(|check| check.outcome == wanted && check.name == name);
    Some(match verdict {
        Verdict::CouldNotCheck if ["mrtd", "rtmr1", "rtmr2"].into_iter().any(missing) => failure.hint(
            "name reference values: --reference FILE, made by `coffer measure UKI --mrtd HEX --save FILE`",
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
pub(crate) fn to_json(appraisal: &Appraisal, checks: &[Check], verdict: Verdict) -> Value {
    let refused: Vec<&Check> = checks.iter().filter(|check| check.outcome == CheckOutcome::Fail).collect();
    let refused: Vec<Value> =
        refused.iter().map(|check| json!({ "check": check.name, "reason": check.detail })).collect();
    let mut object = serde_json::to_value(appraisal).unwrap_or_default();
    if let Value::Object(members) = &mut object {
        members.insert("checks".to_owned(), serde_json::to_value(checks).unwrap_or_default());
        members.insert("verdict".to_owned(), verdict_name(verdict).into());
        members.insert("refused_because".to_owned(), refused.into());
    }
    object
}

pub(crate) fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Accepted => "accepted",
        Verdict::Rejected => "rejected",
        Verdict::CouldNotCheck => "could_not_check",
    }
}

/// Reference values as `coffer measure --save` writes them.
fn read_reference(path: &Path) -> Outcome<ReferenceValues> {
    ReferenceValues::parse(&files::read(path, LARGEST_REFERENCE)?).map_err(|error| named(path, &error))
}

fn named(path: &Path, error: &dyn std::error::Error) -> Failure {
    Failure::usage(format!("{}: {}", path.display(), chain(error)))
}

/// Seconds since the Unix epoch by this machine's clock.
pub(crate) fn unix_now() -> Outcome<u64> {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map(|elapsed| elapsed.as_secs())
        .map_err(|_| Failure::could_not_check("this machine's clock is before 1970"))
}
