//! The loop that keeps the certificate that browsers accept.
//!
//! The key of the certificate is `front`'s, who shows what this loop writes down; here is the account's. Account and chain are kept in the
//! vault, so that whoever opens the state again, or starts this role again, orders nothing that is there: authorities count. It is renewed at
//! two thirds of its validity. Every failure is in `certificate.json`, is tried again with growing pauses, not before the authority wants it,
//! and changes nothing for those who are shown the attested certificate.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cofferdam_protocol::certificate::{CertificateState, CertificateStatus, Challenges, KeptCertificate};
use cofferdam_protocol::events::{self, Happened};
use cofferdam_protocol::json::{self, JsonError};
use cofferdam_protocol::{HttpsUrl, Timestamp, error_chain};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::Paths;
use super::acme::{AccountKey, Acme, AcmeError, Order};
use super::web::{self, WebError};
use crate::roles::certificate::{self, Chain, ChainError};
use crate::roles::clock::{self, Moment};
use crate::roles::facts::CertificateFacts;
use crate::system::client::vault::{self, LeaseError};
use crate::system::files;
use crate::system::ring::Ring;

/// First and longest pause after a failure. Authorities let a name fail a few times in an hour.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Longest wait that an authority can impose: its limits are per week at most, and somebody may be wrong about it.
const LONGEST_IMPOSED: Duration = Duration::from_secs(24 * 60 * 60);

/// Where `front` takes connections, and how long an order waits until it does.
const FRONT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 443);
const SERVED_WITHIN: Duration = Duration::from_secs(60);

/// How long one attempt may take, whatever the authority does.
const ATTEMPT: Duration = Duration::from_secs(10 * 60);

/// How long a challenge is answered beyond that: nothing.
const ANSWERED: u64 = ATTEMPT.as_secs();

/// Bound on the detail in characters.
const MAX_DETAIL: usize = 500;

/// Why an attempt came to nothing.
#[derive(Debug, thiserror::Error)]
enum OrderError {
    #[error(transparent)]
    Acme(#[from] AcmeError),
    #[error(transparent)]
    Web(#[from] WebError),
    #[error("the authority's certificate is refused")]
    Chain(#[from] ChainError),
    #[error("it took longer than {} s", ATTEMPT.as_secs())]
    Late,
    #[error("cannot write it down")]
    Write(#[source] std::io::Error),
    #[error("cannot write it down")]
    Encode(#[from] JsonError),
}

/// What keeps the certificate.
pub(crate) struct Keeper {
    facts: CertificateFacts,
    key: Arc<AccountKey>,
    paths: Paths,
    status: CertificateStatus,
    events: Arc<Ring>,
    account: watch::Sender<Option<HttpsUrl>>,
    front: SocketAddr,
    first_pause: Duration,
}

impl Keeper {
    /// Keeps one as these facts say. Who wants to know the account looks at `account`.
    pub(crate) fn new(
        facts: CertificateFacts,
        key: AccountKey,
        paths: Paths,
        events: Arc<Ring>,
        account: watch::Sender<Option<HttpsUrl>>,
    ) -> Self {
        let claim = certificate::claim(Some(facts.claim.clone()), &paths.own("certificate.json"));
        let claim = claim.unwrap_or_else(|| facts.claim.clone());
        account.send_replace(claim.account.clone());
        let status = CertificateStatus {
            state: CertificateState::Ordering,
            detail: None,
            names: facts.declared.names.clone(),
            claim,
            at: now(),
            expires_at: None,
        };
        // What a predecessor left under way, nobody waits for any more.
        let _ = std::fs::remove_file(paths.own("challenges.json"));
        Self {
            facts,
            key: Arc::new(key),
            paths,
            status,
            events,
            account,
            front: FRONT,
            first_pause: FIRST_PAUSE,
        }
    }

    /// For tests, whose front is elsewhere, and which do not wait for a minute.
    #[cfg(test)]
    pub(crate) fn with(mut self, front: SocketAddr, pause: Duration) -> Self {
        (self.front, self.first_pause) = (front, pause);
        self
    }

    /// Keeps it, for ever.
    pub(crate) async fn keep(mut self) {
        let mut until = self.restore().await;
        let mut pause = self.first_pause;
        loop {
            if let Some(moment) = until {
                moment.wait().await;
            }
            self.say(CertificateState::Ordering, "");
            served(self.front).await;
            match tokio::time::timeout(ATTEMPT, self.order()).await.unwrap_or(Err(OrderError::Late)) {
                Ok(moment) => {
                    until = Some(moment);
                    pause = self.first_pause;
                }
                Err(error) => {
                    self.say(CertificateState::Failed, &error_chain(&error));
                    tokio::time::sleep(wait(&error, pause)).await;
                    pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
                    until = None;
                }
            }
        }
    }

    /// Takes up what the vault has kept; says when that has to be renewed. A vault that does not answer yet is asked again.
    async fn restore(&mut self) -> Option<Moment> {
        let kept = loop {
            match vault::certificate(&self.paths.vault).await {
                Ok(kept) => break kept?,
                Err(LeaseError::Malformed) => return None,
                Err(error) => {
                    eprintln!("publish: no answer about the certificate: {}", error_chain(&error));
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        };
        // An account of another authority is none here; a chain may be of a declaration with other names.
        if kept.directory != self.facts.claim.directory {
            return None;
        }
        self.has_account(kept.account);
        self.show(kept.chain.as_bytes()).ok()
    }

    /// Orders a certificate and shows it; says when it has to be renewed.
    async fn order(&mut self) -> Result<Moment, OrderError> {
        let declared = self.facts.declared.clone();
        let authorities = web::authorities(declared.ca.as_deref(), &self.paths.bundle)?;
        let client = web::client(&authorities)?;
        let key = Arc::clone(&self.key);
        let mut acme = Acme::open(client, &declared.directory, &key).await?;
        let account = acme.account(&declared.contact).await?;
        self.has_account(account.clone());
        let order = acme.order(&declared.names).await?;
        let answered = Answered::write(&self.paths, &order)?;
        let chain = acme.finish(order, &self.facts.request).await;
        drop(answered);
        let chain = chain?;
        let until = self.show(&chain)?;
        self.remember(account, &chain).await;
        Ok(until)
    }

    /// Has the vault keep it. Without that the certificate is as good, until the next boot.
    async fn remember(&self, account: HttpsUrl, chain: &[u8]) {
        // PEM is text, and this was read as PEM.
        let chain = String::from_utf8_lossy(chain).into_owned();
        let kept = KeptCertificate { directory: self.facts.claim.directory.clone(), account, chain };
        if let Err(error) = vault::keep_certificate(&self.paths.vault, &kept).await {
            eprintln!("publish: the vault does not keep the certificate: {}", error_chain(&error));
        }
    }

    /// Writes a chain down for `front`, if it is one for this key and these names.
    fn show(&mut self, pem: &[u8]) -> Result<Moment, OrderError> {
        let chain = Chain::read(pem, self.facts.claim.key, &self.facts.declared.names, clock::unix_now())?;
        files::replace(self.paths.own("chain.pem"), pem).map_err(OrderError::Write)?;
        self.status.expires_at = Timestamp::from_unix(chain.not_after);
        self.say(CertificateState::Valid, "");
        Ok(Moment::at(chain.renew_at()))
    }

    /// The authority's name for the account is known: from now on it is claimed.
    fn has_account(&mut self, account: HttpsUrl) {
        if self.status.claim.account.as_ref() != Some(&account) {
            self.status.claim.account = Some(account.clone());
            self.write();
            self.account.send_replace(Some(account));
        }
    }

    fn say(&mut self, state: CertificateState, detail: &str) {
        let detail: String = detail.chars().filter(|c| !c.is_control()).take(MAX_DETAIL).collect();
        let detail = Some(detail).filter(|detail| !detail.is_empty());
        if self.status.state != state || self.status.detail != detail {
            let words = detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
            println!("publish: the certificate for browsers is {}{words}", state.as_str());
            let told = detail.as_deref().map(events::bounded);
            self.events.tell(Happened::Certificate { state, detail: told });
            self.status.at = now();
        }
        (self.status.state, self.status.detail) = (state, detail);
        self.write();
    }

    fn write(&self) {
        let path = self.paths.own("certificate.json");
        let written = json::to_vec(&self.status).map_err(std::io::Error::other);
        if let Err(error) = written.and_then(|bytes| files::replace(&path, &bytes)) {
            eprintln!("publish: cannot write {}: {error}", path.display());
        }
    }
}

/// What the authority is to be answered, for as long as this lives.
struct Answered(PathBuf);

impl Answered {
    fn write(paths: &Paths, order: &Order) -> Result<Self, OrderError> {
        let until =
            Timestamp::from_unix(clock::unix_now().saturating_add(ANSWERED)).unwrap_or(Timestamp::EPOCH);
        let challenges = Challenges { challenges: order.challenges.clone(), until };
        let answered = Self(paths.own("challenges.json"));
        files::replace(&answered.0, &json::to_vec(&challenges)?).map_err(OrderError::Write)?;
        Ok(answered)
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Returns when `front` takes connections, or has not for so long that it is no reason any more. Before it does, an authority could only
/// count a failure.
async fn served(front: SocketAddr) {
    let serving = async {
        while TcpStream::connect(front).await.is_err() {
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    };
    let _ = tokio::time::timeout(SERVED_WITHIN, serving).await;
}

/// How long to wait after this failure.
fn wait(error: &OrderError, pause: Duration) -> Duration {
    let OrderError::Acme(error) = error else { return pause };
    let imposed = error.retry_after().map(Duration::from_secs);
    let imposed = imposed.or_else(|| error.is_limit().then_some(LONGEST_PAUSE)).unwrap_or_default();
    imposed.max(pause).min(LONGEST_IMPOSED)
}

fn now() -> Timestamp {
    Timestamp::from_clock(SystemTime::now()).unwrap_or(Timestamp::EPOCH)
}

#[cfg(test)]
#[path = "certificate_tests.rs"]
mod tests;
