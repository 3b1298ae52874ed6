//! What `unseal` and `seal` have in common: finding an appliance that waits for its state, verifying it on each connection, and waiting
//! until it has launched.
//!
//! No release can attest the keys of an appliance that waits, so where to dial comes from the declaration in the repository, and who
//! answers is known by evidence taken on that very connection, with the declaration that the repository has. That matters here more than
//! elsewhere: whoever gets the state under another declaration names other operators and other services.

use std::time::Duration;

use cofferdam_attest::operator;
use cofferdam_declaration::{Declaration, MAX_BYTES};
use cofferdam_protocol::operator::MAX_REPLY;
use cofferdam_protocol::state::Rollback;
use cofferdam_protocol::unseal::{SEAL, SealDisk, SealStatus, Sealable, UNSEAL, UnsealRequest};
use cofferdam_protocol::{Digest, Endpoint, json as strict};
use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::channel::{Channel, Stage, refusal};
use crate::cli::{self, Elsewhere};
use crate::failure::{Code, Failure, Outcome, chain};
use crate::files;
use crate::operator_key::OperatorKey;
use crate::source::Source;
use crate::trust::Trust;
use crate::ui::{Ui, printable};
use crate::witness::{self, Witness};

/// Between two looks at an appliance that is about to launch.
const LOOK: Duration = Duration::from_secs(1);

/// One appliance, and what is believed of it.
pub(super) struct Target<'a> {
    ui: &'a Ui,
    options: &'a cli::Appliance,
    trust: Trust,
    source: Source,
    endpoint: Endpoint,
    /// The digest of a declaration that was given, instead of the repository's.
    given: Option<Digest>,
}

/// What an appliance was found to be, verified.
pub(super) enum Found {
    /// It runs, on this state: 0 for one in memory.
    Launched { epoch: u64, channel: Box<Channel> },
    /// It waits.
    Waiting(Box<Waiting>),
}

/// An appliance that waits, and what it says of its state.
pub(super) struct Waiting {
    pub(super) channel: Channel,
    pub(super) status: SealStatus,
}

impl<'a> Target<'a> {
    /// Learns where to dial and what has to answer.
    pub(super) async fn find(
        ui: &'a Ui,
        options: &'a cli::Appliance,
        declaration: Option<&std::path::Path>,
    ) -> Outcome<Self> {
        let trust = Trust::load(&options.trust, &options.github).await?;
        let source = Source::new(&options.repository, &options.github)?;
        let given = declaration.map(|path| files::read(path, MAX_BYTES)).transpose()?;
        let endpoint = match (&options.endpoint, &given) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, Some(bytes)) => declared(bytes)?.endpoint,
            (None, None) => {
                let asked = source.declared(options.commit);
                declared(&super::saying(ui, &source.waiting(), asked).await?)?.endpoint
            }
        };
        Ok(Self { ui, options, trust, source, endpoint, given: given.map(Digest::of) })
    }

    /// What the releases know of the state. Nothing, where that was asked for or they cannot be asked, and the declaration allows it: then it
    /// is said.
    pub(super) async fn witness(&self, elsewhere: &Elsewhere, rollback: Rollback) -> Outcome<Witness> {
        if elsewhere.without_witness {
            if rollback == Rollback::Require {
                return Err(Failure::new(
                    Code::Policy,
                    "the declaration requires a witness (`rollback: require`)",
                )
                .hint("leave out --without-witness, or declare `state: {rollback: warn}`"));
            }
            self.ui.warn("no witness is asked: an older copy of the state disk is not noticed");
            return Ok(Witness::NONE);
        }
        match self.releases().await {
            Err(failure) if failure.code == Code::CouldNotCheck && rollback == Rollback::Warn => {
                self.ui.warn(&format!(
                    "UNWITNESSED: an older copy of the state disk is not noticed: {}",
                    failure.message
                ));
                Ok(Witness::NONE)
            }
            Err(failure) if failure.code == Code::CouldNotCheck => {
                let hint = failure.hint.clone().unwrap_or_else(|| "-v shows what was asked".to_owned());
                Err(failure.hint(format!(
                    "{hint}; with `state: {{rollback: warn}}` in the declaration it opens all the same"
                )))
            }
            other => other,
        }
    }

    /// What the releases know of the state.
    pub(super) async fn releases(&self) -> Outcome<Witness> {
        let asked = witness::newest(self.ui, &self.options.repository, &self.trust, &self.source);
        super::saying(self.ui, &self.source.waiting(), asked).await
    }

    /// A connection to the appliance, in whatever stage it is, verified on it.
    async fn open(&self) -> Outcome<Channel> {
        let repository = &self.options.repository;
        let channel =
            Channel::open(&self.endpoint, repository, &self.trust, None, None, Stage::Waiting).await?;
        match self.given {
            Some(given) if given != channel.claims.declaration => Err(Failure::rejected(format!(
                "declaration: the appliance measured {}, the given one is {given}",
                channel.claims.declaration
            ))),
            Some(_) => Ok(channel),
            None => self.source.declaration(&channel.claims, self.options.commit).await.map(|_| channel),
        }
    }

    /// Looks at the appliance, and asks it about its state when it waits.
    pub(super) async fn look(&self, key: &OperatorKey) -> Outcome<Found> {
        let mut channel = self.open().await?;
        if !channel.appraisal.is_before_launch() {
            return Ok(Found::Launched { epoch: channel.claims.state_epoch, channel: Box::new(channel) });
        }
        let reply = channel.request(key, "GET", SEAL, Vec::new()).await?;
        let status = status_in(&reply, "the appliance says nothing of its state")?;
        Ok(Found::Waiting(Box::new(Waiting { channel, status })))
    }

    /// Says once what is believed of who answered.
    pub(super) fn introduce(&self, found: &Found) {
        let (channel, stage) = match found {
            Found::Launched { channel, .. } => (&**channel, "it has launched"),
            Found::Waiting(waiting) => (&waiting.channel, "it waits to be unsealed"),
        };
        if channel.appraisal.simulated {
            self.ui.warn("SIMULATED: this appliance runs on a simulated TDX device");
        }
        let (repository, endpoint, commit) =
            (&self.options.repository, &self.endpoint, channel.claims.commit);
        self.ui.detail(&format!("verified {repository} at {endpoint}, commit {commit}: {stage}"));
        self.ui.detail(self.trust.inputs.lines().trim_end());
    }

    /// Waits until the appliance has launched, at most `limit`; the epoch of its state. While its roles start anew it may be out of
    /// reach; a refusal ends the wait.
    /// With `by_peer` a key server opens it meanwhile.
    pub(super) async fn launched(&self, key: &OperatorKey, by_peer: bool, limit: Duration) -> Outcome<u64> {
        let until = Instant::now() + limit;
        loop {
            let last = match tokio::time::timeout_at(until, self.look(key)).await {
                Ok(Ok(Found::Launched { epoch, .. })) => return Ok(epoch),
                Ok(Ok(Found::Waiting(waiting))) if waiting.status.disk == SealDisk::Sealed && by_peer => {
                    let SealStatus { peers, unopened, .. } = waiting.status;
                    let trouble = unopened.or_else(|| peers.into_iter().find_map(|peer| peer.trouble));
                    printable(trouble.as_deref().unwrap_or("its key servers open it"))
                }
                Ok(Ok(Found::Waiting(waiting))) if waiting.status.disk != SealDisk::Open => {
                    return Err(Failure::new(Code::NotReady, "the state is not open")
                        .hint(format!("coffer seal status {}", self.options.repository)));
                }
                Ok(Ok(Found::Waiting(_))) => "it has not launched".to_owned(),
                Ok(Err(failure)) if failure.code == Code::Rejected => return Err(failure),
                Ok(Err(failure)) => failure.message,
                Err(_) => "it does not answer".to_owned(),
            };
            if Instant::now() + LOOK >= until {
                return Err(Failure::new(
                    Code::NotReady,
                    format!("the appliance has not launched within {limit:?}: {last}"),
                )
                .hint(format!("coffer status {}; --timeout sets the limit", self.options.repository)));
            }
            sleep(LOOK).await;
        }
    }
}

impl Waiting {
    /// Sends a request that is sealed to the key of this start. `None` when the connection was lost meanwhile or no answer came in time: then the
    /// state may be open.
    pub(super) async fn send(
        &mut self,
        key: &OperatorKey,
        request: &UnsealRequest,
        what: &str,
    ) -> Outcome<Option<SealStatus>> {
        let text = request.write().map_err(|error| Failure::failed(chain(&error)))?;
        let sealed = operator::seal_key(self.channel.claims.vault_key.as_bytes(), &text)
            .map_err(|error| Failure::failed(format!("cannot seal the request: {}", chain(&error))))?;
        let body = strict::to_vec(&sealed).map_err(|error| Failure::failed(chain(&error)))?;
        match self.channel.request(key, "POST", UNSEAL, body).await {
            Ok(reply) if reply.status == StatusCode::GATEWAY_TIMEOUT => Ok(None),
            Ok(reply) => status_in(&reply, what).map(Some),
            Err(failure) if failure.code == Code::CouldNotCheck => Ok(None),
            Err(failure) => Err(failure),
        }
    }
}

/// A failure after a result that says it all: in JSON it is no second object.
pub(super) fn printed(ui: &Ui, failure: Failure) -> Failure {
    if ui.json { failure.rendered("") } else { failure }
}

/// The result of a state that is open.
pub(super) fn open_result(epoch: u64) -> (String, Value) {
    match epoch {
        0 => ("in memory: there is nothing to open\n".to_owned(), json!({ "state": "memory" })),
        epoch => (format!("open at epoch {epoch}\n"), json!({ "state": "open", "epoch": epoch })),
    }
}

pub(super) fn declared(bytes: &[u8]) -> Outcome<Declaration> {
    Declaration::parse(bytes).map_err(|_| {
        Failure::rejected("the declaration that names the endpoint is not valid")
            .hint("coffer check shows why")
    })
}

pub(super) fn status_in(reply: &crate::channel::Reply, what: &str) -> Outcome<SealStatus> {
    if reply.status != StatusCode::OK {
        return Err(refusal(reply, what));
    }
    strict::from_json(&reply.body, MAX_REPLY).map_err(|error| {
        Failure::failed(format!("what the appliance says of its state is malformed: {}", chain(&error)))
    })
}
