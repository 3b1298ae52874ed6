//! Between the vault of a closed state and its key server.
//!
//! It relays: evidence with the server's nonce there, its signed answer to the vault, the vault's report there, the signed acknowledgement
//! to the vault. It decides nothing; the vault and the server judge what they get. What stands in the way is said on the console once, told to
//! the vault for operators, and tried again for as long as it takes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use cofferdam_attest::evidence::{Evidence, MAX_BYTES};
use cofferdam_protocol::evidence::{EvidenceRequest, Nonce};
use cofferdam_protocol::keyserve::{
    self, EpochAck, EpochReport, MAX_DETAIL, MAX_MESSAGE, NONCE, NonceReply, PEER, PeerNews, PeerReply,
    RELEASE, REPORT, Refused, ReleaseAnswer,
};
use cofferdam_protocol::reply::ErrorReply;
use cofferdam_protocol::unseal::SealDisk;
use cofferdam_protocol::{error_chain, json};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

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

/// Why the state is not open yet.
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
    Refused(keyserve::Refusal, String),
    #[error("{0} and nothing that a key server says: is it one?")]
    Malformed(StatusCode),
    #[error("cannot ask the vault")]
    Vault(#[source] ClientError),
    #[error("{0}")]
    NotTaken(String),
}

/// How a round ended.
enum Round {
    /// The disk is blank, and the key is there.
    Blank,
    /// The state is open.
    Open,
}

/// Asks until the state is open.
pub(super) async fn keep_asking(server: &KeyServerFacts, paths: &Paths, mut known: watch::Receiver<Known>) {
    let mut pause = FIRST_PAUSE;
    let mut said = String::new();
    // The first word about collateral, whatever it is.
    let _ = tokio::time::timeout(LONGEST_PAUSE, known.changed()).await;
    loop {
        let wait = match round(server, paths, &mut known).await {
            Ok(Round::Open) => return,
            Ok(Round::Blank) => {
                if said != BLANK {
                    println!("publish: {BLANK}");
                    said = BLANK.to_owned();
                }
                pause = FIRST_PAUSE;
                LOOK
            }
            Err(error) => {
                let detail = trouble(server, &error);
                if said != detail {
                    eprintln!("publish: {detail}; trying again");
                    said.clone_from(&detail);
                }
                // Whether the vault hears it or not: the next round says it again.
                let _ = tell(&paths.vault, &PeerNews::Trouble { detail }).await;
                let wait = pause;
                pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
                wait
            }
        };
        tokio::time::sleep(wait).await;
    }
}

const BLANK: &str = "the key server's key is there, and the state disk is blank: an operator makes a state with `coffer seal init --peer`";

fn trouble(server: &KeyServerFacts, error: &RoundError) -> String {
    let text = format!("the key server {}: {}", server.url, error_chain(error));
    text.chars().filter(|c| !c.is_control()).take(MAX_DETAIL).collect()
}

async fn round(
    server: &KeyServerFacts,
    paths: &Paths,
    known: &mut watch::Receiver<Known>,
) -> Result<Round, RoundError> {
    let reply = tell(&paths.vault, &PeerNews::Look {}).await?;
    match (reply.disk, reply.has_key, reply.report) {
        (SealDisk::Open, ..) => return Ok(Round::Open),
        (SealDisk::Blank, true, _) => return Ok(Round::Blank),
        // A predecessor of this role was ended in between.
        (_, _, Some(report)) => return acknowledge(server, paths, &report).await,
        _ => {}
    }
    let nonce: NonceReply = say(server, paths, NONCE, Vec::new()).await?;
    let answer: ReleaseAnswer = say(server, paths, RELEASE, document(&nonce, paths, known).await?).await?;
    let reply = tell(&paths.vault, &PeerNews::Answer(answer)).await?;
    match (reply.disk, reply.report) {
        (_, Some(report)) => acknowledge(server, paths, &report).await,
        (SealDisk::Open, None) => Ok(Round::Open),
        (_, None) => Ok(Round::Blank),
    }
}

/// Has the server take down what has opened, and the vault hear of it.
async fn acknowledge(
    server: &KeyServerFacts,
    paths: &Paths,
    report: &EpochReport,
) -> Result<Round, RoundError> {
    let body = json::to_vec(report).map_err(|_| RoundError::Evidence)?;
    let ack: EpochAck = say(server, paths, REPORT, body).await?;
    tell(&paths.vault, &PeerNews::Acknowledged(ack)).await?;
    println!(
        "publish: the key server {} has released the key and knows epoch {}",
        server.url, report.opened.epoch
    );
    Ok(Round::Open)
}

/// Evidence with the server's nonce and collateral.
async fn document(
    nonce: &NonceReply,
    paths: &Paths,
    known: &mut watch::Receiver<Known>,
) -> Result<Vec<u8>, RoundError> {
    let collateral = match &*known.borrow_and_update() {
        Ok((collateral, until)) if clock::unix_now() < *until => Arc::clone(collateral),
        Ok(_) => return Err(RoundError::NoCollateral("what is known is out of date".to_owned())),
        Err(reason) => return Err(RoundError::NoCollateral(reason.clone())),
    };
    let nonce = Nonce::new(nonce.nonce.as_bytes().to_vec()).map_err(|_| RoundError::Evidence)?;
    let request = EvidenceRequest { nonce: Some(nonce), ..EvidenceRequest::default() };
    let (evidence, _) = ask(&paths.evidence, &request).await?;
    let document = Evidence { collateral: Some((*collateral).clone()), ..evidence }.to_json();
    document.ok().filter(|document| document.len() <= MAX_BYTES).ok_or(RoundError::Evidence)
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
