//! A key server: it releases the key of an appliance's state to evidence that its operator's policy accepts, and remembers how new that
//! state was.
//!
//! It is responsible for one key for each appliance that an operator has added, for who gets it, and for the newest epoch and root of that
//! appliance's state. It appraises as `coffer verify` does, the declaration included: a genuine image that runs somebody else's declaration under
//! the repository's name is refused. It never releases a key to an appliance that nobody added, never to one that has launched, and never
//! forgets an epoch unless it is told to.
//!
//! The key goes sealed to the vault in the evidence, and answers are signed: what carries them need not be secret, and the server speaks
//! plain HTTP. Whoever wants more in between puts a proxy there.

mod judge;
mod limits;
mod server;
mod store;

use std::time::Instant;

use cofferdam_attest::appraise::{Expectations, QuoteFacts};
use cofferdam_attest::claims::Claims;
use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::keyserve::{self, Kek};
use cofferdam_protocol::evidence::Nonce;
use cofferdam_protocol::keyserve::{
    EpochAck, EpochReport, NonceReply, Refusal, Refused, ReleaseAnswer, ServerNonce,
};
use cofferdam_protocol::upgrade::SignedStatement;
use cofferdam_protocol::{Digest, Repository, Timestamp};
use zeroize::Zeroizing;

use self::limits::{Address, Nonces};
use crate::cli;
use crate::failure::{Code, Failure, Outcome};
use crate::operator_key::OperatorKey;
use crate::source::Source;
use crate::trust::{Trust, unix_now};
use crate::ui::printable;

pub(crate) use self::server::{Notice, serve};
pub(crate) use self::store::{Appliance, MOST_DECLARATIONS, Store};

/// What a server decides with.
pub(crate) struct Server {
    pub(crate) trust: Trust,
    pub(crate) github: cli::Github,
    pub(crate) key: OperatorKey,
    pub(crate) store: Store,
    nonces: Nonces,
}

/// What came of evidence.
struct Released {
    repository: Repository,
    answer: ReleaseAnswer,
    simulated: bool,
}

/// A refusal, and whose it is as far as that is known.
struct No {
    repository: Option<Repository>,
    refused: Refused,
}

type Answered<T> = Result<T, No>;

impl Server {
    pub(crate) fn new(trust: Trust, github: cli::Github, key: OperatorKey, store: Store) -> Self {
        Self { trust, github, key, store, nonces: Nonces::default() }
    }

    fn nonce(&self, address: Address, now: Instant) -> Answered<NonceReply> {
        let nonce = *random().map_err(|failure| unknown(None, &failure))?;
        if !self.nonces.add(nonce, address, now) {
            return Err(no(None, Refusal::Busy, "too many nonces are out"));
        }
        Ok(NonceReply { nonce: nonce.into() })
    }

    /// Appraises evidence, and releases the key when it is accepted.
    async fn release(&self, document: &[u8], now: Instant) -> Answered<Released> {
        let evidence = Evidence::parse(document)
            .map_err(|error| no(None, Refusal::Evidence, crate::failure::chain(&error)))?;
        let claims = Claims::decode(&evidence.claims)
            .map_err(|error| no(None, Refusal::Evidence, crate::failure::chain(&error)))?;
        let repository = claims.repository.clone();
        let nonce = claims.nonce.as_ref().and_then(|nonce| <[u8; 32]>::try_from(nonce.as_bytes()).ok());
        let Some(nonce) = nonce.filter(|nonce| self.nonces.take(nonce, now)) else {
            let why = "the nonce is none of this server's, was used, or is older than a minute";
            return Err(no(Some(repository), Refusal::Nonce, why));
        };
        let expected = Expectations {
            repository: Some(repository.clone()),
            nonce: Nonce::new(nonce.to_vec()).ok(),
            before_launch: true,
            sealed_to_vault_key: true,
            ..self.trust.expectations()
        };
        let unix = unix_now().map_err(|failure| unknown(Some(&repository), &failure))?;
        let judged = self.trust.appraise(&evidence, &expected, unix);
        if let Some(refused) = judge::refusal(&judged.appraisal) {
            return Err(No { repository: Some(repository), refused });
        }
        let added = self.store.read(&repository).map_err(|failure| unknown(Some(&repository), &failure))?;
        let Some(added) = added else {
            return Err(no(
                Some(repository),
                Refusal::Repository,
                "the operator has not added this repository",
            ));
        };
        self.declared(&claims, &added.declarations)
            .await
            .map_err(|refused| No { repository: Some(repository.clone()), refused })?;
        // What is accepted has them.
        let Some(quote) = &judged.appraisal.quote else {
            return Err(no(Some(repository), Refusal::Evidence, "the quote has no registers"));
        };
        let answer = self.answer(&claims, quote, nonce.into())?;
        Ok(Released { repository, answer, simulated: judged.appraisal.simulated })
    }

    /// Insists that the appliance runs a declaration of its operators': whoever starts the image under another one names other services.
    async fn declared(&self, claims: &Claims, given: &[Digest]) -> Result<(), Refused> {
        if !given.is_empty() {
            if given.contains(&claims.declaration) {
                return Ok(());
            }
            let detail = format!("{} is none of the declarations that were given", claims.declaration);
            return Err(Refused { refused: Refusal::Declaration, detail });
        }
        let source = Source::new(&claims.repository, &self.github);
        let found = match &source {
            Ok(source) => source.declaration(claims, None).await.map(|_| ()),
            Err(failure) => Err(Failure::failed(failure.message.clone())),
        };
        found.map_err(|failure| {
            let refused = match failure.code {
                Code::Rejected => Refusal::Declaration,
                _ => Refusal::CouldNotCheck,
            };
            Refused { refused, detail: printable(&failure.message) }
        })
    }

    fn answer(&self, claims: &Claims, quote: &QuoteFacts, nonce: ServerNonce) -> Answered<ReleaseAnswer> {
        let repository = &claims.repository;
        let failed = |failure: Failure| unknown(Some(repository), &failure);
        let fresh: Kek = random().map_err(failed)?;
        let known = self.store.update(repository, |appliance| {
            let upgrade = match successor(appliance, quote) {
                Ok(upgrade) => upgrade,
                Err(why) => return Ok((false, Err(no(Some(repository.clone()), Refusal::Lineage, why)))),
            };
            let (new, key) = match appliance.key() {
                Some(key) => (false, key),
                None => {
                    appliance.set_key(&fresh, Timestamp::from_clock(std::time::SystemTime::now()));
                    (true, fresh.clone())
                }
            };
            Ok((new, Ok((key, appliance.witnessed, upgrade))))
        });
        let Some(known) = known.map_err(failed)? else {
            let why = "the operator has taken this repository away";
            return Err(no(Some(repository.clone()), Refusal::Repository, why));
        };
        let (key, witnessed, upgrade) = known?;
        let sealed = keyserve::seal(&claims.vault_key, &nonce, &key)
            .map_err(|error| no(Some(repository.clone()), Refusal::Evidence, error.to_string()))?;
        let mut answer = ReleaseAnswer { nonce, key: sealed, witnessed, upgrade, signature: [0; 64].into() };
        let input = answer
            .signing_input(repository, &claims.vault_key)
            .map_err(|error| unknown(Some(repository), &Failure::failed(crate::failure::chain(&error))))?;
        answer.signature = self.key.sign(&input);
        Ok(answer)
    }

    /// Takes down what has opened.
    fn report(&self, report: &EpochReport) -> Answered<EpochAck> {
        let repository = &report.repository;
        let refuse = |refused, detail: String| no(Some(repository.clone()), refused, detail);
        let known = self.store.update(repository, |appliance| {
            let authentic = appliance.key().is_some_and(|key| keyserve::is_authentic(&key, report));
            if !authentic {
                let why = "it does not bear the mark of this appliance's key".to_owned();
                return Ok((false, Err(refuse(Refusal::Report, why))));
            }
            if let Err((refused, why)) = follows(appliance, report) {
                return Ok((false, Err(refuse(refused, why))));
            }
            let (opened, lineage) = (Some(report.opened), Some(report.lineage));
            let changed = (appliance.witnessed, appliance.lineage) != (opened, lineage);
            (appliance.witnessed, appliance.lineage) = (opened, lineage);
            appliance.reported = Timestamp::from_clock(std::time::SystemTime::now());
            Ok((changed, Ok(())))
        });
        match known.map_err(|failure| unknown(Some(repository), &failure))? {
            Some(taken) => taken?,
            // Who asks learns no more than with a wrong mark.
            None => {
                return Err(refuse(
                    Refusal::Report,
                    "it does not bear the mark of this appliance's key".into(),
                ));
            }
        }
        let signature = self.key.sign(&EpochAck::signing_input(repository, &report.opened));
        Ok(EpochAck { signature })
    }
}

/// The statement that the image of this quote opens the state with, where it still has to.
///
/// # Errors
/// The state has been opened with a statement for another image: this one comes before it.
fn successor(appliance: &Appliance, quote: &QuoteFacts) -> Result<Option<SignedStatement>, String> {
    let Some(signed) = &appliance.upgrade else { return Ok(None) };
    let (to, version) = (&signed.statement.to, signed.statement.version);
    let named = (to.mrtd, to.rtmr1, to.rtmr2) == (quote.mrtd, quote.rtmr1, quote.rtmr2);
    let used = appliance.lineage.is_some_and(|lineage| lineage >= version);
    match (named, used) {
        (false, true) => Err(format!("the state is at version {version}, which another image has")),
        (true, false) => Ok(Some(signed.clone())),
        _ => Ok(None),
    }
}

/// Whether what has opened may come after what is known.
fn follows(appliance: &Appliance, report: &EpochReport) -> Result<(), (Refusal, String)> {
    let opened = &report.opened;
    let known = appliance.witnessed.as_ref();
    let same = known.is_some_and(|known| known.state == opened.state);
    if let Some(lineage) = appliance.lineage.filter(|lineage| same && report.lineage < *lineage) {
        let why = format!("it was opened at version {}, and version {lineage} is known", report.lineage);
        return Err((Refusal::Lineage, why));
    }
    match known {
        None => Ok(()),
        Some(known) if known == opened => Ok(()),
        Some(known) if known.state != opened.state && report.fresh => Ok(()),
        Some(known) if known.state != opened.state => Err((
            Refusal::State,
            format!("another state has opened than the one of epoch {} that is known", known.epoch),
        )),
        Some(known) if opened.epoch < known.epoch => {
            Err((Refusal::Epoch, format!("epoch {} has opened, and {} is known", opened.epoch, known.epoch)))
        }
        Some(known) if opened.epoch == known.epoch => Err((
            Refusal::State,
            format!("two copies of the state have reached epoch {}: the disk was copied", known.epoch),
        )),
        Some(_) => Ok(()),
    }
}

fn no(repository: Option<Repository>, refused: Refusal, detail: impl Into<String>) -> No {
    No { repository, refused: Refused { refused, detail: detail.into() } }
}

fn unknown(repository: Option<&Repository>, failure: &Failure) -> No {
    no(repository.cloned(), Refusal::CouldNotCheck, printable(&failure.message))
}

fn random() -> Outcome<Kek> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice())
        .map_err(|_| Failure::failed("the system gives no random numbers"))?;
    Ok(bytes)
}
