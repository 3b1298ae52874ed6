//! Which of the refusals an appraisal comes to.

use cofferdam_attest::appraise::{Appraisal, Check, Outcome, Verdict};
use cofferdam_protocol::keyserve::{Refusal, Refused};

use crate::ui::printable;

/// The refusal, or nothing when the evidence is accepted and of an appliance that waits.
pub(super) fn refusal(appraisal: &Appraisal) -> Option<Refused> {
    let (wanted, unknown) = match appraisal.verdict() {
        Verdict::Accepted if appraisal.is_before_launch() => return None,
        Verdict::Accepted => {
            let detail = "it has launched; a key goes to one that waits for it alone".to_owned();
            return Some(Refused { refused: Refusal::Launched, detail });
        }
        Verdict::Rejected => (Outcome::Fail, false),
        Verdict::CouldNotCheck => (Outcome::CouldNotCheck, true),
    };
    let mut found: Vec<&Check> = appraisal.checks.iter().filter(|check| check.outcome == wanted).collect();
    // What counts most first: on what is not genuine nothing else says much.
    found.sort_by_key(|check| rank(name(check.name, unknown)));
    let first = found.first()?;
    let detail = format!("{}: {}", first.name, printable(&first.detail));
    Some(Refused { refused: name(first.name, unknown), detail })
}

fn name(check: &str, unknown: bool) -> Refusal {
    match check {
        "trust_root" => Refusal::Root,
        // Where there is nothing to compare with, nobody has said that this image or platform is trusted.
        "mrtd" | "rtmr0" | "rtmr1" | "rtmr2" | "firmware_log" => Refusal::Measurement,
        "collateral" | "issued_at" | "expires_at" => Refusal::Stale,
        _ if unknown => Refusal::CouldNotCheck,
        "nonce" => Refusal::Nonce,
        "repository" => Refusal::Repository,
        "declaration" | "commit" => Refusal::Declaration,
        "tcb_level" | "tcb_status" | "tcb_date" | "tcb_evaluation" | "advisories" | "tee_tcb_svn"
        | "mr_seam" | "qe_svn" | "pce_svn" | "quoting_enclave" | "platform_flags" | "device"
        | "td_attributes" | "xfam" | "mr_config_id" | "mr_owner" | "mr_owner_config" | "service_td" => {
            Refusal::Tcb
        }
        _ => Refusal::Evidence,
    }
}

fn rank(refusal: Refusal) -> usize {
    use Refusal as R;
    let order = [R::Root, R::Evidence, R::Nonce, R::Tcb, R::Measurement, R::Stale, R::Declaration];
    order.iter().position(|known| *known == refusal).unwrap_or(order.len())
}
