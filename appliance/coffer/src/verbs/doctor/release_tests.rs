use super::*;

fn about<R>(work: impl FnOnce(&About<'_>) -> R) -> R {
    let repository = "acme/shop".parse().unwrap();
    work(&About { repository: &repository, endpoint: None })
}

#[test]
fn what_keeps_the_release_away_is_told_apart() {
    let away = Failure::could_not_check("cannot list releases");
    for (failure, code, exit) in [
        (Failure { cause: Some(Cause::GithubAway), ..away }, "github-away", Code::CouldNotCheck),
        (Failure::could_not_check("x").because_of(Cause::GithubLimit), "github-limit", Code::CouldNotCheck),
        (Failure::could_not_check("x").because_of(Cause::NoRelease), "no-release", Code::CouldNotCheck),
        (Failure::new(Code::NotAllowed, "x"), "github-refuses", Code::NotAllowed),
        (Failure::rejected("x"), "release-refused", Code::Rejected),
        (Failure::could_not_check("x"), "release-unchecked", Code::CouldNotCheck),
    ] {
        let finding = about(|about| unavailable(about, &failure));
        assert_eq!((finding.code, finding.exit), (code, Some(exit)));
        assert!(finding.command.unwrap().starts_with("coffer verify acme/shop"));
    }
}

#[test]
fn what_is_false_of_a_release_has_its_own_finding() {
    let endpoint: Endpoint = "shop.example:8443".parse().unwrap();
    let check = |name, outcome| Check { name, outcome, detail: "it is another".to_owned() };
    let of = |names: &[&'static str], outcome| {
        let checks: Vec<Check> = names
            .iter()
            .map(|name| check(*name, outcome))
            .chain([check("event_log", CheckOutcome::Pass)])
            .collect();
        let failure = crate::trust::verdict_failure(Verdict::of(&checks), &checks, "the release").unwrap();
        let finding = about(|about| refused(about, &failure, &checks, Some(&endpoint)));
        (finding.code, finding.exit.unwrap() as u8, finding.command.unwrap())
    };
    let publish = "coffer publish acme/shop --endpoint shop.example:8443";
    let verify = "coffer verify acme/shop";
    for (names, code, exit, command) in [
        (&["expires_at"][..], "release-expired", 3, publish),
        (&["issued_at", "expires_at"], "release-expired", 3, publish),
        (&["expires_at", "rtmr1"], "release-refused", 3, verify),
        (&["state_anchors"], "anchors-gone", 3, "coffer seal status acme/shop --endpoint shop.example:8443"),
        (&["repository_declaration"], "declaration-differs", 3, verify),
        (&["rtmr2"], "release-refused", 3, verify),
    ] {
        assert_eq!(of(names, CheckOutcome::Fail), (code, exit, command.to_owned()));
    }
    for (names, code, command) in [
        (&["collateral"][..], "collateral-expired", publish),
        (&["rtmr1"], "release-unchecked", verify),
        (&["repository_declaration"], "release-unchecked", verify),
        (
            &["state_anchors"],
            "anchors-unchecked",
            "coffer seal status acme/shop --endpoint shop.example:8443",
        ),
    ] {
        assert_eq!(of(names, CheckOutcome::CouldNotCheck), (code, 6, command.to_owned()));
    }
}

#[test]
fn what_ends_soon_is_a_warning() {
    for (now, soon) in [(1_000, false), (1_500, false), (1_501, true), (1_600, true)] {
        let finding = about(|about| expiry(about, 1_000, 1_600, now));
        assert_eq!(
            finding.map(|finding| (finding.code, finding.exit)),
            soon.then_some(("release-ends-soon", None))
        );
    }
    assert_eq!(about(|about| collateral(about, 2_000_000, 1_000_000)), None);
    assert_eq!(about(|about| collateral(about, 0, 1_000_000)), None);
    let soon = about(|about| collateral(about, 1_086_399, 1_000_000)).unwrap();
    assert_eq!((soon.code, soon.exit), ("collateral-ends-soon", None));
    assert_eq!(soon.command.as_deref(), Some("coffer publish acme/shop"));
}

#[test]
fn newer_releases_that_count_for_nothing_are_named() {
    assert_eq!(passed_over(&[]), None);
    let finding = passed_over(&["attest-x: tls_key: another".to_owned()]).unwrap();
    assert_eq!((finding.code, finding.exit, finding.why.len()), ("newer-releases-refused", None, 1));
}
