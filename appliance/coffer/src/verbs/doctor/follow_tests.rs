use serde_json::{Value, json};

use super::*;
use crate::verbs::doctor::finding::Severity;

fn of(found: Value, problem: Option<&str>) -> Vec<Finding> {
    after(found, problem, false, None)
}

/// The same of an appliance that applies what counts, or not, after these changes.
fn after(found: Value, problem: Option<&str>, apply: bool, changes: Option<&Changes>) -> Vec<Finding> {
    let status = json!({"branch": "main", "apply": apply, "found": found, "at": "2026-01-02T03:04:05Z", "problem": problem});
    let repository = "acme/shop".parse().unwrap();
    let about = About { repository: &repository, endpoint: None };
    findings(&about, &FollowStatus::parse(status.to_string().as_bytes()).unwrap(), changes)
}

#[test]
fn what_is_newer_is_to_be_booted_and_each_refusal_has_its_own_remedy() {
    let commit = "01".repeat(20);
    assert!(of(json!({"state": "unknown"}), None).is_empty());
    let current = of(json!({"state": "current", "commit": commit}), None);
    assert_eq!((current[0].code, current[0].severity), ("branch", Severity::Ok));
    let digest = format!("sha256:{}", "02".repeat(32));
    let newer = json!({"state": "newer", "commit": commit, "signer": "al\u{1b}ice", "declaration": digest});
    let newer = &of(newer, None)[0];
    assert_eq!((newer.code, newer.severity), ("newer-declaration", Severity::Warning));
    assert_eq!(newer.command.as_deref(), Some(format!("git show {commit}:cofferdam.yaml").as_str()));
    assert!(newer.why[0].contains("ice") && !newer.why[0].contains('\u{1b}'), "{newer:?}");
    let mut remedies = std::collections::BTreeSet::new();
    for why in ["unsigned", "other-signature", "stranger", "signature", "not-forward", "declaration"] {
        let refused = json!({"state": "refused", "commit": commit, "why": why, "detail": "so it is"});
        let refused = of(refused, None).remove(0);
        assert_eq!((refused.code, refused.severity), ("commit-refused", Severity::Problem));
        assert!(refused.why[0].ends_with("so it is"), "{refused:?}");
        remedies.insert(refused.remedy.unwrap());
    }
    assert_eq!(remedies.len(), 6);
}

#[test]
fn a_look_without_an_answer_is_said_beside_what_was_found_before() {
    let found = of(json!({"state": "current", "commit": "01".repeat(20)}), Some("GitHub is away"));
    let codes: Vec<_> = found.iter().map(|finding| (finding.code, finding.severity)).collect();
    assert_eq!(codes, [("branch", Severity::Ok), ("branch-unchecked", Severity::CouldNotCheck)]);
    assert_eq!(found[1].why, ["GitHub is away"]);
}

#[test]
fn what_was_tried_in_vain_is_a_problem_and_what_is_being_applied_is_none() {
    let commit = "01".repeat(20);
    let digest = format!("sha256:{}", "02".repeat(32));
    let newer = json!({"state": "newer", "commit": commit, "signer": "alice", "declaration": digest});
    let mut changes = Changes::default();
    let found = |changes: &Changes| after(newer.clone(), None, true, Some(changes)).remove(0);
    let applying = found(&changes);
    assert_eq!((applying.code, applying.severity), ("newer-declaration", Severity::Warning));
    assert!(applying.remedy.unwrap().contains("by itself"));
    for (outcome, code) in [
        ("refused", "change-refused"),
        ("rolled-back", "change-rolled-back"),
        ("applied", "newer-declaration"),
    ] {
        let change = json!({"commit": commit, "declaration": digest, "at": "2026-01-02T03:04:05Z", "outcome": outcome,
            "detail": "service web is \u{1b}unhealthy"});
        changes.add(serde_json::from_value(change).unwrap());
        let finding = found(&changes);
        assert_eq!(finding.code, code);
        if code != "newer-declaration" {
            assert_eq!(finding.severity, Severity::Problem);
            assert!(
                finding.why[0].contains("unhealthy") && !finding.why[0].contains('\u{1b}'),
                "{finding:?}"
            );
            assert!(finding.remedy.is_some() && finding.command.is_some());
        }
    }
    // It was another commit.
    let other = json!({"commit": "03".repeat(20), "declaration": digest, "at": "2026-01-02T03:04:05Z",
        "outcome": "refused"});
    changes.add(serde_json::from_value(other).unwrap());
    assert_eq!(found(&changes).code, "newer-declaration");
    let current = after(json!({"state": "current", "commit": "03".repeat(20)}), None, true, Some(&changes));
    assert_eq!(current[0].code, "branch", "it declares what runs, whatever became of it before");
}
