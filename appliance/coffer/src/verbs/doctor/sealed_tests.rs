use cofferdam_protocol::state::Rollback;

use super::*;

fn status(disk: SealDisk) -> SealStatus {
    SealStatus {
        disk,
        methods: Vec::new(),
        wait_ms: 0,
        lineage: None,
        peers: Vec::new(),
        unopened: None,
        rollback: Rollback::Require,
    }
}

fn found(status: &SealStatus) -> Vec<(&'static str, Option<Code>, Option<String>)> {
    let repository = "acme/shop".parse().unwrap();
    let about = About { repository: &repository, endpoint: None };
    let found = findings(&about, status);
    assert!(found.iter().all(|finding| finding.remedy.is_some()));
    found.into_iter().map(|finding| (finding.code, finding.exit, finding.command)).collect()
}

fn peer(trouble: Option<&str>) -> PeerStatus {
    PeerStatus {
        server: "http://keys.example:7443".to_owned(),
        has_key: trouble.is_none(),
        epoch: None,
        trouble: trouble.map(str::to_owned),
    }
}

#[test]
fn what_opens_it_is_the_command() {
    let shares = Method::Shares { set: [1; 8].into(), threshold: 2, shares: 3, given: 1 };
    for (disk, methods, code, command) in [
        (SealDisk::Blank, vec![], "state-blank", "coffer seal init acme/shop"),
        (SealDisk::Open, vec![], "launching", "coffer status acme/shop --wait"),
        (SealDisk::Sealed, vec![Method::Passphrase, Method::Recovery], "sealed", "coffer unseal acme/shop"),
        (SealDisk::Sealed, vec![shares, Method::Recovery], "sealed", "coffer unseal acme/shop --share"),
        (
            SealDisk::Sealed,
            vec![Method::Peer, Method::Recovery],
            "sealed",
            "coffer unseal acme/shop --recovery",
        ),
    ] {
        let found = found(&SealStatus { methods, ..status(disk) });
        assert_eq!(found, [(code, Some(Code::NotReady), Some(command.to_owned()))]);
    }
}

#[test]
fn a_key_server_that_refuses_is_a_problem_only_when_too_few_are_left() {
    let of = |peers: Vec<PeerStatus>| {
        let found = found(&SealStatus { peers, ..status(SealDisk::Sealed) });
        found
            .into_iter()
            .filter(|(code, ..)| *code == "key-server")
            .map(|(_, exit, _)| exit)
            .collect::<Vec<_>>()
    };
    assert_eq!(of(vec![peer(None)]), []);
    assert_eq!(of(vec![peer(Some("refused: measurement"))]), [Some(Code::NotReady)]);
    assert_eq!(of(vec![peer(None), peer(Some("away"))]), [Some(Code::NotReady)]);
    assert_eq!(of(vec![peer(None), peer(None), peer(Some("away"))]), [None]);
}

#[test]
fn keys_that_do_not_open_it_have_a_finding_of_their_own() {
    let sealed = SealStatus { unopened: Some("another set".to_owned()), ..status(SealDisk::Sealed) };
    assert_eq!(found(&sealed)[1].0, "key-server-keys");
}
