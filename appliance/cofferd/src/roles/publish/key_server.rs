//! Between the vault and the state's key servers.
//!
//! It relays: evidence with a server's nonce there, its signed answer to the vault, the vault's report there, the signed acknowledgement
//! to the vault. It decides nothing; the vault and the servers judge what they get. What stands in the way is said on the console once, told to
//! the vault for operators, and tried again for as long as it takes.
//!
//! While the state is closed all servers are asked in each round, and each is waited for, so that whichever can be reached has its say before
//! the state opens. Afterwards the vault says who has to be told of its last commit.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use cofferdam_attest::evidence::{Collateral, Evidence, MAX_BYTES};
use cofferdam_protocol::evidence::{EvidenceRequest, Nonce};
use cofferdam_protocol::keyserve::{
    self, EpochAck, EpochReport, MAX_DETAIL, MAX_MESSAGE, NONCE, NonceReply, PEER, PeerNews, PeerReply,
    PeerReport, RELEASE, REPORT, Refusal, Refused, ReleaseAnswer, ServerId,
};
use cofferdam_protocol::reply::ErrorReply;
use cofferdam_protocol::unseal::SealDisk;
use cofferdam_protocol::{error_chain, json};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::web::{self, WebError};
use super::{FIRST_PAUSE, Known, LONGEST_PAUSE, Paths};
use crate::roles::clock;
use crate::roles::evidence::{AskError, ask};
use crate::roles::facts::KeyServerFacts;
use crate::system::client::{self, ClientError};

/// How long the vault may take: it reads the whole store.
const VAULT: Duration = Duration::from_secs(120);
/// Between two looks at a disk on which an operator has to make a state.
const LOOK: Duration = Duration::from_secs(2);
/// Between two looks at whether there is a commit that a server does not know of.
const TELL: Duration = Duration::from_secs(10);

/// Why a server's key is not there, the state not open, or a server not told.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error("waiting for collateral: {0}")]
    NoCollateral(String),
    #[error("there is no evidence")]
    Ask(#[from] AskError),
    #[error("the evidence with its collateral cannot be written, or is too large")]
    Evidence,
    #[error(transparent)]
    Web(#[from] WebError),
    #[error("refused: {0}: {1}")]
    Refused(Refusal, String),
    #[error("{0} and nothing that a key server says: is it one?")]
    Malformed(StatusCode),
    #[error("cannot ask the vault")]
    Vault(#[source] ClientError),
    #[error("{0}")]
    NotTaken(String),
}

/// How a round ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// The disk is blank, and the keys are there.
    Blank,
    /// The state is open.
    Open,
    /// Neither: a server is away or refuses.
    Waits,
}

/// What was last said on the console of each server, and of the whole.
#[derive(Default)]
struct Lines(BTreeMap<Option<ServerId>, String>);

impl Lines {
    /// Says it, unless it was the last thing that was said of this server.
    fn say(&mut self, about: Option<ServerId>, text: &str) {
        if self.0.get(&about).is_none_or(|last| last != text) {
            println!("publish: {text}");
            self.0.insert(about, text.to_owned());
        }
    }

    /// Says that a server knows of the state; once, and after each trouble, not of each commit.
    fn known(&mut self, server: &KeyServerFacts, epoch: u64) {
        let last = self.0.insert(Some(server.id()), String::new());
        if last.is_none_or(|last| !last.is_empty()) {
            println!("publish: the key server {} knows epoch {epoch}", server.url);
        }
    }
}

/// Asks until the state is open.
pub(super) async fn keep_asking(
    servers: &[KeyServerFacts],
    paths: &Paths,
    mut known: watch::Receiver<Known>,
) {
    let (mut pause, mut lines) = (FIRST_PAUSE, Lines::default());
    // The first word about collateral, whatever it is.
    let _ = tokio::time::timeout(LONGEST_PAUSE, known.changed()).await;
    loop {
        let wait = match round(servers, paths, &mut known, &mut lines).await {
            Ok(Round::Open) => return,
            Ok(Round::Blank) => {
                lines.say(None, BLANK);
                pause = FIRST_PAUSE;
                LOOK
            }
            other => {
                if let Err(error) = other {
                    lines.say(None, &format!("the state is not open: {}; trying again", error_chain(&error)));
                }
                let wait = pause;
                pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
                wait
            }
        };
        tokio::time::sleep(wait).await;
    }
}

const BLANK: &str = "the key servers' keys are there, and the state disk is blank: an operator makes a state with `coffer seal init --peer`";

/// Tells each server of the open state's last commit, for ever.
pub(super) async fn keep_told(servers: &[KeyServerFacts], paths: &Paths) {
    let (mut pause, mut lines) = (TELL, Lines::default());
    loop {
        let told = match tell(&paths.vault, &PeerNews::Look {}).await {
            Ok(reply) => report(servers, paths, reply, &mut lines).await,
            Err(error) => Err(error),
        };
        let behind = match told {
            Ok(reply) => !reply.reports.is_empty(),
            Err(error) => {
                lines.say(None, &format!("key servers are not told: {}", error_chain(&error)));
                true
            }
        };
        pause = if behind { pause.saturating_mul(2).min(LONGEST_PAUSE) } else { TELL };
        tokio::time::sleep(pause).await;
    }
}

async fn round(
    servers: &[KeyServerFacts],
    paths: &Paths,
    known: &mut watch::Receiver<Known>,
    lines: &mut Lines,
) -> Result<Round, RoundError> {
    let reply = tell(&paths.vault, &PeerNews::Look {}).await?;
    match reply.disk {
        SealDisk::Open => return Ok(Round::Open),
        SealDisk::Blank if reply.ask.is_empty() => return Ok(Round::Blank),
        _ => {}
    }
    let collateral = match &*known.borrow_and_update() {
        Ok((collateral, until)) if clock::unix_now() < *until => Ok(Arc::clone(collateral)),
        Ok(_) => Err("what is known is out of date".to_owned()),
        Err(reason) => Err(reason.clone()),
    };
    let mut asked = JoinSet::new();
    for server in servers.iter().filter(|server| reply.ask.contains(&server.id())).cloned() {
        let (paths, collateral) = (paths.clone(), collateral.clone());
        asked.spawn(async move { (answer(&server, &paths, &collateral).await, server) });
    }
    while let Some(Ok((answer, server))) = asked.join_next().await {
        let id = server.id();
        let told = match answer {
            Ok(answer) => {
                let news = PeerNews::Answer { server: id, answer: Box::new(answer) };
                tell(&paths.vault, &news).await.map(drop)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = told {
            trouble(&server, paths, &error, lines).await;
        }
    }
    let reply = tell(&paths.vault, &PeerNews::Open {}).await?;
    let reply = report(servers, paths, reply, lines).await?;
    Ok(match reply.disk {
        SealDisk::Open => Round::Open,
        SealDisk::Blank if reply.ask.is_empty() => Round::Blank,
        _ => Round::Waits,
    })
}

/// Says what stands in a server's way, here and to the vault. Whether that hears it or not: the next round says it again.
async fn trouble(server: &KeyServerFacts, paths: &Paths, error: &RoundError, lines: &mut Lines) {
    let detail: String = error_chain(error).chars().filter(|c| !c.is_control()).take(MAX_DETAIL).collect();
    let aged = match error {
        RoundError::Refused(Refusal::Epoch | Refusal::State, _) => "; this state may be an OLDER COPY",
        _ => "",
    };
    lines.say(Some(server.id()), &format!("the key server {}: {detail}{aged}; trying again", server.url));
    let _ = tell(&paths.vault, &PeerNews::Trouble { server: server.id(), detail }).await;
}

/// Has the servers take down what they have to, and the vault hear of it; what it says then.
async fn report(
    servers: &[KeyServerFacts],
    paths: &Paths,
    mut reply: PeerReply,
    lines: &mut Lines,
) -> Result<PeerReply, RoundError> {
    let mut told = JoinSet::new();
    for PeerReport { server, report } in reply.reports.clone() {
        let Some(server) = servers.iter().find(|known| known.id() == server).cloned() else { continue };
        let paths = paths.clone();
        let epoch = report.opened.epoch;
        told.spawn(async move { (acknowledged(&server, &paths, &report).await, server, epoch) });
    }
    while let Some(Ok((ack, server, epoch))) = told.join_next().await {
        let heard = match ack {
            Ok(ack) => tell(&paths.vault, &PeerNews::Acknowledged { server: server.id(), ack }).await,
            Err(error) => Err(error),
        };
        match heard {
            Ok(now) => {
                reply = now;
                lines.known(&server, epoch);
            }
            Err(error) => trouble(&server, paths, &error, lines).await,
        }
    }
    Ok(reply)
}

async fn acknowledged(
    server: &KeyServerFacts,
    paths: &Paths,
    report: &EpochReport,
) -> Result<EpochAck, RoundError> {
    let body = json::to_vec(report).map_err(|_| RoundError::Evidence)?;
    say(server, paths, REPORT, body).await
}

/// The server's key, for evidence with its nonce.
async fn answer(
    server: &KeyServerFacts,
    paths: &Paths,
    collateral: &Result<Arc<Collateral>, String>,
) -> Result<ReleaseAnswer, RoundError> {
    let nonce: NonceReply = say(server, paths, NONCE, Vec::new()).await?;
    // After the nonce: that a server is away is what can be mended.
    let collateral = collateral.as_ref().map_err(|reason| RoundError::NoCollateral(reason.clone()))?;
    let nonce = Nonce::new(nonce.nonce.as_bytes().to_vec()).map_err(|_| RoundError::Evidence)?;
    let request = EvidenceRequest { nonce: Some(nonce), ..EvidenceRequest::default() };
    let (evidence, _) = ask(&paths.evidence, &request).await?;
    let document = Evidence { collateral: Some((**collateral).clone()), ..evidence }.to_json();
    let document = document.ok().filter(|document| document.len() <= MAX_BYTES);
    say(server, paths, RELEASE, document.ok_or(RoundError::Evidence)?).await
}

/// Says something to the server.
async fn say<T: DeserializeOwned + Serialize>(
    server: &KeyServerFacts,
    paths: &Paths,
    path: &str,
    body: Vec<u8>,
) -> Result<T, RoundError> {
    let client = match server.url.is_https() {
        true => web::client(&web::authorities(server.ca.as_deref(), &paths.bundle)?)?,
        false => web::plain_client()?,
    };
    let (status, body) = web::post(&client, &format!("{}{path}", server.url), body, MAX_MESSAGE).await?;
    if status == StatusCode::OK {
        return keyserve::parse(&body).map_err(|_| RoundError::Malformed(status));
    }
    let refused: Refused = keyserve::parse(&body).map_err(|_| RoundError::Malformed(status))?;
    Err(RoundError::Refused(refused.refused, refused.detail))
}

/// Says something to the vault.
async fn tell(vault: &Path, news: &PeerNews) -> Result<PeerReply, RoundError> {
    let body = json::to_vec(news).map_err(|_| RoundError::Evidence)?;
    let (status, body) = client::request(vault, Method::POST, PEER, body, MAX_MESSAGE, VAULT)
        .await
        .map_err(RoundError::Vault)?;
    if status != StatusCode::OK {
        let refusal = ErrorReply::parse(&body);
        return Err(RoundError::NotTaken(
            refusal.map_or_else(|_| status.to_string(), |refusal| refusal.error),
        ));
    }
    keyserve::parse(&body).map_err(|_| RoundError::Malformed(status))
}

#[cfg(test)]
mod tests;
