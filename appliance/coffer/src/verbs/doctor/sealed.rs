//! What an appliance that waits says of its state: what opens it, and what stands in the way.

use cofferdam_protocol::unseal::{Method, PeerStatus, SealDisk, SealStatus};

use super::finding::{About, Finding, Severity};
use crate::failure::Code;

/// That it waits, when nobody who may ask has asked for more.
pub(super) fn closed(about: &About<'_>) -> Finding {
    let finding = Finding::problem("sealed", "the appliance is sealed: it waits for its state to be opened");
    finding.exit(Code::NotReady).remedy("open it").run(about.command("unseal", ""))
}

pub(super) fn findings(about: &About<'_>, status: &SealStatus) -> Vec<Finding> {
    let mut found = vec![disk(about, status)];
    if let Some(why) = status.lineage.as_ref().and_then(|lineage| lineage.needs_statement.as_deref()) {
        found.push(
            problem("statement-needed", "this image opens the state only with a statement of an operator")
                .because(why)
                .remedy("make one where the state is open or known (`coffer seal allow-upgrade`), and give it with the key")
                .run(about.command("unseal", "--upgrade upgrade.json")),
        );
    }
    if let Some(why) = status.unopened.as_deref() {
        found.push(
            problem("key-server-keys", "the key servers' keys do not open the state")
                .because(why)
                .remedy("open it with the recovery key, or with what it was made with")
                .run(about.command("unseal", "--recovery")),
        );
    }
    let enough = majority(&status.peers);
    found.extend(status.peers.iter().filter_map(|peer| key_server(peer, enough)));
    found
}

fn disk(about: &About<'_>, status: &SealStatus) -> Finding {
    match status.disk {
        SealDisk::Blank => {
            problem("state-blank", "the state disk is blank: the appliance waits for a state to be made")
                .because_all(
                    (!status.peers.is_empty())
                        .then_some("the declaration names key servers: with --peer theirs opens it"),
                )
                .remedy("make a state; if there has been one, attach its disk instead")
                .run(about.command("seal init", if status.peers.is_empty() { "" } else { "--peer" }))
        }
        SealDisk::Open => problem("launching", "the state is open, and the appliance has not launched yet")
            .remedy("wait a moment and look again")
            .run(about.command("status", "--wait")),
        SealDisk::Sealed => {
            let ways: Vec<String> = status.methods.iter().map(way).collect();
            let wait = (status.wait_ms > 0).then(|| {
                format!("the next key is looked at in {} s, after a wrong one", status.wait_ms.div_ceil(1000))
            });
            closed(about)
                .because(&format!("opened by: {}", ways.join(", ")))
                .because_all(wait.as_deref())
                .run(about.command("unseal", option(&status.methods)))
        }
    }
}

fn problem(code: &'static str, what: &str) -> Finding {
    Finding::problem(code, what).exit(Code::NotReady)
}

fn way(method: &Method) -> String {
    match method {
        Method::Passphrase => "a passphrase".to_owned(),
        Method::Shares { threshold, shares, given, .. } => {
            format!("{threshold} of {shares} shares ({given} given)")
        }
        Method::Peer => "a key server, by itself".to_owned(),
        Method::Recovery => "the recovery key".to_owned(),
    }
}

/// What `coffer unseal` is called with for the first way that a person has.
fn option(methods: &[Method]) -> &'static str {
    let has = |wanted: fn(&Method) -> bool| methods.iter().any(wanted);
    if has(|method| matches!(method, Method::Passphrase)) {
        ""
    } else if has(|method| matches!(method, Method::Shares { .. })) {
        "--share"
    } else {
        "--recovery"
    }
}

/// Whether more than half of the key servers have answered.
fn majority(peers: &[PeerStatus]) -> bool {
    let answered = peers.iter().filter(|peer| peer.trouble.is_none()).count();
    answered.saturating_mul(2) > peers.len()
}

fn key_server(peer: &PeerStatus, enough: bool) -> Option<Finding> {
    let trouble = peer.trouble.as_deref()?;
    let what = format!("the key server {} gives no answer that helps", peer.server);
    let finding = problem("key-server", &what)
        .because(trouble)
        .remedy("see that it runs and is reached, and what it accepts: `coffer keyserve list` there shows the appliances, its log why it refused");
    Some(if enough { Finding { severity: Severity::Warning, exit: None, ..finding } } else { finding })
}

#[cfg(test)]
#[path = "sealed_tests.rs"]
mod tests;
