//! Fresh evidence for many who ask at the same time: one quote over all of them.
//!
//! While a quote is being made, who else asks waits; then all of them get the next one, over the root of their challenges
//! (`cofferdam_attest::challenge`). So how many are answered depends on the processor and not on the device, and nobody's place in a queue
//! for the device can be taken by others. Who asks alone gets a quote over their nonce itself.
//!
//! How many wait is bounded by the places of connections that ask for evidence, of which each source loses its own first (`site`).

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cofferdam_attest::challenge::{Challenge, MAX_CHALLENGES, Tree, leaf};
use cofferdam_attest::evidence::Template;
use cofferdam_protocol::evidence::{ChannelBinding, EvidenceRequest, Nonce};
use cofferdam_protocol::json::JsonError;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::counts::Counts;
use super::evidence::CollateralFile;
use crate::roles::evidence::{AskError, ask};

/// Shortest time from one quote to the next: strangers who ask without end leave the device free most of the time, and share a quote.
const EVERY: Duration = Duration::from_millis(50);

/// Why there is no fresh evidence.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum BatchError {
    /// The evidence role has none.
    #[error("{0}")]
    Ask(Arc<AskError>),
    /// The document cannot be written.
    #[error("the document cannot be written")]
    Write(Arc<JsonError>),
    /// The batch was given up.
    #[error("the quote was abandoned")]
    Abandoned,
}

/// Somebody who waits, and where their document goes.
#[derive(Debug)]
struct Waiting {
    nonce: Nonce,
    channel_binding: ChannelBinding,
    answer: oneshot::Sender<Result<Vec<u8>, BatchError>>,
}

/// Those who wait for the next quote, and the quote that is being made.
#[derive(Debug)]
pub(crate) struct Batches {
    socket: PathBuf,
    collateral: CollateralFile,
    counts: Arc<Counts>,
    waiting: Mutex<Vec<Waiting>>,
    /// Held by the batch that is under way; when the last one was done.
    device: Arc<tokio::sync::Mutex<Option<Instant>>>,
}

impl Batches {
    /// Asks the evidence role at `socket`.
    pub(crate) fn new(socket: PathBuf, collateral: CollateralFile, counts: Arc<Counts>) -> Arc<Self> {
        Arc::new(Self { socket, collateral, counts, waiting: Mutex::default(), device: Arc::default() })
    }

    /// A document over this nonce and this connection's binding.
    ///
    /// # Errors
    /// [`BatchError`].
    pub(crate) async fn document(
        self: &Arc<Self>,
        nonce: Nonce,
        channel_binding: ChannelBinding,
    ) -> Result<Vec<u8>, BatchError> {
        let (answer, mut answered) = oneshot::channel();
        self.lock().push(Waiting { nonce, channel_binding, answer });
        loop {
            tokio::select! {
                biased;
                document = &mut answered => return document.unwrap_or(Err(BatchError::Abandoned)),
                // Whoever finds nobody at it makes the next batch, in a task of its own: it is not theirs alone.
                last = Arc::clone(&self.device).lock_owned() => {
                    let batches = Arc::clone(self);
                    tokio::spawn(async move { batches.next(last).await });
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers everybody who waits by now.
    async fn next(&self, mut last: tokio::sync::OwnedMutexGuard<Option<Instant>>) {
        if let Some(last) = *last {
            tokio::time::sleep_until(last + EVERY).await;
        }
        let mut batch: Vec<Waiting> = {
            let mut waiting = self.lock();
            waiting.retain(|waiting| !waiting.answer.is_closed());
            let count = waiting.len().min(MAX_CHALLENGES);
            waiting.drain(..count).collect()
        };
        match batch.pop() {
            None => return,
            Some(only) if batch.is_empty() => self.answer_one(only).await,
            Some(other) => {
                batch.push(other);
                self.answer_all(batch).await;
            }
        }
        *last = Some(Instant::now());
    }

    async fn answer_one(&self, waiting: Waiting) {
        let Waiting { nonce, channel_binding, answer } = waiting;
        let request =
            EvidenceRequest { nonce: Some(nonce), channel_binding: Some(channel_binding), challenges: None };
        let document = match ask(&self.socket, &request).await {
            Ok((evidence, _)) => {
                self.counts.quoted(1);
                self.collateral.add(evidence).and_then(|evidence| evidence.to_json()).map_err(write)
            }
            Err(error) => Err(BatchError::Ask(Arc::new(error))),
        };
        // Who has gone away meanwhile needs none.
        let _ = answer.send(document);
    }

    async fn answer_all(&self, batch: Vec<Waiting>) {
        let leaves =
            batch.iter().map(|waiting| leaf(&waiting.nonce, Some(&waiting.channel_binding))).collect();
        let Some(tree) = Tree::new(leaves) else { return };
        let request = EvidenceRequest { challenges: Some(tree.root()), ..EvidenceRequest::default() };
        let template = match ask(&self.socket, &request).await {
            Ok((evidence, _)) => {
                self.counts.quoted(batch.len());
                self.collateral.add(evidence).and_then(Template::new).map_err(write)
            }
            Err(error) => Err(BatchError::Ask(Arc::new(error))),
        };
        for (index, Waiting { nonce, channel_binding, answer }) in (0_u32..).zip(batch) {
            let challenge =
                Challenge { nonce, channel_binding: Some(channel_binding), index, path: tree.path(index) };
            let document = template
                .as_ref()
                .map_err(Clone::clone)
                .and_then(|template| template.with(&challenge).map_err(write));
            let _ = answer.send(document);
        }
    }
}

fn write(error: JsonError) -> BatchError {
    BatchError::Write(Arc::new(error))
}
