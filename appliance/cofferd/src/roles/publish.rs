//! Role `publish`: collateral from the provisioning certification service, release attestations to GitHub, and the way to the state's
//! key servers.
//!
//! Outbound only: it opens no port, and the one socket on which `front` says that an operator asks says nothing else. It holds the GitHub token for as long as one release takes, or a branch is followed, and no
//! other secret. What it writes for others is public: the collateral that `front` adds to evidence,
//! the document last published, and what it is doing. Whether a quote verifies is not its business but the
//! relying parties', who have the roots; it only sees to it that the collateral is about this platform and in date.
//!
//! It orders the certificate that browsers accept, too, with an account whose key it holds (`certificate`); the key of the certificate is `front`'s.
//!
//! Loops that fail by themselves: one keeps the collateral fresh, also when nothing is published; one tells key servers how new the state is; the other
//! publishes an attestation, keeps it while it is true (also over a restart of this role) and replaces it at
//! two thirds of its validity, and when the clock is set; the first one of a boot is published once more as the anchor of its state. In between it looks whether what it
//! has published is still there and still the newest (`reconcile`). A further one asks what time it is elsewhere (`dates`) and tells PID 1, which
//! sets the clock; and one says what the followed branch has that does not run (`follow`). Every failure is in `status.json`, is tried again with growing pauses or when the
//! server says so, and stops nothing else.

pub(super) mod acme;
mod asked;
pub(super) mod certificate;
mod collateral;
mod dates;
mod follow;
mod key_server;
mod offer;
mod pck;
mod reconcile;
mod release;
mod status;
mod web;

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cofferdam_attest::evidence::{Collateral, Evidence, MAX_BYTES};
use cofferdam_attest::quote;
use cofferdam_attest::release::AnchorTag;
use cofferdam_github::{Client, GithubError};
use cofferdam_protocol::evidence::EvidenceRequest;
use cofferdam_protocol::facts::ApplianceFacts;
use cofferdam_protocol::json::JsonError;
use cofferdam_protocol::state::State;
use cofferdam_protocol::status::PublishState;
use cofferdam_protocol::{HttpsUrl, SecretRef, error_chain};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use zeroize::Zeroizing;

use self::acme::AccountKey;
use self::certificate::Keeper;
use self::collateral::{CollateralError, Pcs};
use self::dates::Dates;
use self::follow::Follower;
use self::pck::{Pck, PckError};
use self::reconcile::{Found, Memory};
use self::release::{Anchoring, Attestation, ReleaseFiles};
use self::status::StatusFile;
use self::web::WebError;
use crate::paths;
use crate::roles::certificate::claim;
use crate::roles::clock::{self, Moment, Steps};
use crate::roles::evidence::{AskError, ask};
use crate::roles::facts::{self, CertificateFacts, Facts, FactsError, FollowFacts, KeyServerFacts};
use crate::roles::{FRONT, Role};
use crate::system::client::vault::{self, LeaseError};
use crate::system::ring::Ring;
use crate::system::sys::{self, SecretMemory};
use crate::system::unix::bind;
use crate::system::{confine, files};

/// What the requests call themselves.
const USER_AGENT: &str = concat!("cofferdam/", env!("CARGO_PKG_VERSION"));

/// Longest time between two fetches of collateral: revocations should be seen within a day.
const COLLATERAL_AGE: u64 = 24 * 60 * 60;

/// First and longest pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Longest wait that a server can impose: GitHub's limits are per hour.
const LONGEST_IMPOSED: Duration = Duration::from_secs(2 * 60 * 60);

/// How often it looks whether what is published is still the newest. What has not changed costs GitHub's limit nothing.
const LOOK_EVERY: Duration = Duration::from_secs(5 * 60);

/// Shortest time between two attestations that are published for another reason than time, unless an operator asks.
const AGAIN_AFTER: Duration = Duration::from_secs(15 * 60);

/// How long one question to the vault waits for the token.
const LEASE_WAIT: Duration = Duration::from_secs(25);

/// How long the first attestation waits for the account that it claims.
const ACCOUNT_WAIT: Duration = Duration::from_secs(10);

/// How long the first attestation waits for a clock that is right, so that it is not made anew at once.
const CLOCK_WAIT: Duration = Duration::from_secs(10);

/// Runs the role until it is killed.
///
/// # Errors
/// When the role cannot be confined, or the facts of this boot cannot be read.
pub(crate) fn run(role: &Role) -> anyhow::Result<()> {
    // Before the key is in this process's memory.
    confine::undumpable().context("cannot become unreadable for others")?;
    let account = sys::inherited(paths::KEY_FD).ok().map(SecretMemory::open).transpose();
    let account = account.context("what was handed over is no key")?;
    let clock = sys::inherited(paths::CLOCK_FD).ok().map(UnixDatagram::from);
    role.confine().context("cannot confine the role")?;
    // The HTTP client takes the process's provider.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let facts = Facts::read(Path::new(paths::FACTS))?;
    let certificate = certificate(&facts, account)?;
    let settings = Settings::of(facts);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    // What is attested before the state is open says nothing that clients may rely on: it is never published.
    let waits = facts::appliance(Path::new(paths::APPLIANCE))?.state == State::Sealed;
    runtime.block_on(async {
        let listener = bind(Path::new(paths::PUBLISH_SOCKET))
            .with_context(|| format!("cannot listen on {}", paths::PUBLISH_SOCKET))?;
        let time = Time { clock, steps: Steps::watch().context("cannot watch the clock")? };
        let asked = Arc::new(Notify::new());
        let listening = asked::listen(listener, FRONT.uid().unwrap_or_default(), Arc::clone(&asked));
        let working = async {
            if waits {
                wait(settings, Paths::default(), time).await;
            } else {
                serve(settings, Paths::default(), asked, certificate, time).await;
            }
        };
        tokio::join!(listening, working);
        Ok(())
    })
}

/// What the certificate that browsers accept is ordered with, where the declaration has names for it.
fn certificate(
    facts: &Facts,
    account: Option<SecretMemory>,
) -> anyhow::Result<Option<(CertificateFacts, AccountKey)>> {
    let (Some(facts), Some(account)) = (&facts.certificate, account) else { return Ok(None) };
    let key = AccountKey::new(account.bytes()).context("the account's key cannot be used")?;
    Ok(Some((facts.clone(), key)))
}

/// The machine's clock.
#[derive(Debug)]
struct Time {
    /// Where PID 1 hears what it should be.
    clock: Option<UnixDatagram>,
    /// When it is set.
    steps: Steps,
}

/// What the declaration says about this role.
#[derive(Debug, Clone)]
struct Settings {
    github: String,
    github_ca: Option<String>,
    token: Option<SecretRef>,
    pcs: String,
    pcs_ca: Option<String>,
    key_servers: Vec<KeyServerFacts>,
    follow: Option<FollowFacts>,
    look_every: Duration,
}

impl Settings {
    fn of(facts: Facts) -> Self {
        Self {
            github: facts.github.api.to_string(),
            github_ca: facts.github.ca,
            token: facts.github.token,
            pcs: facts.attestation.collateral.to_string(),
            pcs_ca: facts.attestation.ca,
            key_servers: facts.key_servers,
            follow: facts.follow,
            look_every: LOOK_EVERY,
        }
    }
}

/// The files and sockets of the role.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    pub(super) appliance: PathBuf,
    pub(super) changes: PathBuf,
    pub(super) directory: PathBuf,
    pub(super) evidence: PathBuf,
    pub(super) vault: PathBuf,
    pub(super) bundle: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            appliance: PathBuf::from(paths::APPLIANCE),
            changes: PathBuf::from(paths::CHANGES),
            directory: PathBuf::from(paths::PUBLISH_DIR),
            evidence: PathBuf::from(paths::EVIDENCE_SOCKET),
            vault: PathBuf::from(paths::VAULT_SOCKET),
            bundle: PathBuf::from(web::BUNDLE),
        }
    }
}

impl Paths {
    /// A file of the role's own directory.
    fn own(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// Collateral as far as it is known: the thing itself and until when it is in date (seconds since the Unix epoch), or
/// why there is none.
type Known = Result<(Arc<Collateral>, u64), String>;

/// While the state is closed: collateral for operators' evidence and for the key servers', if there are some; and what time it is.
async fn wait(settings: Settings, paths: Paths, time: Time) {
    let (sender, known) = watch::channel(Err("it has not been fetched yet".to_owned()));
    let servers = servers(&settings, &paths);
    let dates = Dates::new(paths.own("clock.json"), time.clock, servers.is_some());
    let asking = async {
        if !settings.key_servers.is_empty() {
            key_server::keep_asking(&settings.key_servers, &paths, known).await;
        }
    };
    let collateral = keep_collateral(&settings, &paths, sender, &dates);
    tokio::join!(collateral, asking, keep_time(servers, &dates, time.steps));
}

/// The two that are asked for the time; `None` where they are one, who would be believed alone.
fn servers(settings: &Settings, paths: &Paths) -> Option<(Client, Pcs)> {
    let authorities = |ca: Option<&str>| web::authorities(ca, &paths.bundle);
    let made = || -> Result<_, PublishError> {
        let trusted = authorities(settings.github_ca.as_deref())?;
        let github = Client::new(&settings.github, None, Some(&trusted), USER_AGENT)?;
        let pcs = web::client(&authorities(settings.pcs_ca.as_deref())?)?;
        Ok((github, Pcs::new(&settings.pcs, pcs)))
    };
    let made = made();
    let made =
        made.inspect_err(|error| eprintln!("publish: cannot ask for the time: {}", error_chain(error)));
    made.ok().filter(|(github, pcs)| github.host() != pcs.host())
}

/// Sees to it that what time it is elsewhere is known, for ever.
async fn keep_time(servers: Option<(Client, Pcs)>, dates: &Dates, mut steps: Steps) {
    let looking = async {
        loop {
            steps.next().await;
            dates.look();
        }
    };
    let asking = async {
        if let Some((github, pcs)) = servers {
            dates.keep_asking(&github, &pcs).await;
        }
    };
    tokio::join!(looking, asking);
}

/// All loops, until the task is dropped.
async fn serve(
    settings: Settings,
    paths: Paths,
    asked: Arc<Notify>,
    certificate: Option<(CertificateFacts, AccountKey)>,
    time: Time,
) {
    let (sender, known) = watch::channel(Err("it has not been fetched yet".to_owned()));
    let servers = servers(&settings, &paths);
    let dates = Arc::new(Dates::new(paths.own("clock.json"), time.clock, servers.is_some()));
    let events = Arc::new(Ring::at(paths.own("events")));
    let (found, account) = watch::channel(None);
    let account = certificate.is_some().then_some(account);
    let ordering = async {
        if let Some((facts, key)) = certificate {
            Keeper::new(facts, key, paths.clone(), Arc::clone(&events), found).keep().await;
        }
    };
    let publisher = Publisher::new(
        settings.clone(),
        paths.clone(),
        known,
        asked,
        (Arc::clone(&dates), time.steps.clone()),
        account,
        Arc::clone(&events),
    );
    let telling = async {
        if !settings.key_servers.is_empty() {
            key_server::keep_told(&settings.key_servers, &paths).await;
        }
    };
    let following = async {
        if let (Some(follow), Some(token)) = (settings.follow.clone(), settings.token.clone()) {
            let (dates, events) = (Arc::clone(&dates), Arc::clone(&events));
            Follower::new(follow, settings.clone(), paths.clone(), dates, events).keep_looking(&token).await;
        }
    };
    let collateral = keep_collateral(&settings, &paths, sender, &dates);
    let knowing = keep_time(servers, &dates, time.steps);
    tokio::join!(telling, ordering, following, collateral, knowing, publisher.keep_published());
}

/// Why collateral could not be fetched.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("there is no quote to fetch collateral for")]
    Ask(#[from] AskError),
    #[error("the evidence role's quote does not parse")]
    Quote(#[from] quote::QuoteError),
    #[error(transparent)]
    Pck(#[from] PckError),
    #[error(transparent)]
    Collateral(#[from] CollateralError),
    #[error(transparent)]
    Web(#[from] WebError),
    #[error("the collateral cannot be written down")]
    Write(#[source] std::io::Error),
    #[error(transparent)]
    Encode(#[from] JsonError),
}

/// Keeps collateral in date, for ever.
async fn keep_collateral(settings: &Settings, paths: &Paths, known: watch::Sender<Known>, dates: &Dates) {
    let mut pause = FIRST_PAUSE;
    let mut stored = true;
    loop {
        match refresh(settings, paths, std::mem::take(&mut stored), &known, dates).await {
            Ok(until) => {
                pause = FIRST_PAUSE;
                Moment::at(until).wait().await;
            }
            Err(error) => {
                let text = error_chain(&error);
                eprintln!("publish: no fresh collateral: {text}");
                // What is known stays in use until it is out of date.
                known.send_if_modified(|known| {
                    let absent = known.is_err();
                    if absent {
                        *known = Err(text);
                    }
                    absent
                });
                tokio::time::sleep(pause).await;
                pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Gets collateral, from a predecessor's file when that is in date, and says when to do it again.
async fn refresh(
    settings: &Settings,
    paths: &Paths,
    stored: bool,
    known: &watch::Sender<Known>,
    dates: &Dates,
) -> Result<u64, KeepError> {
    let (evidence, _) = ask(&paths.evidence, &EvidenceRequest::default()).await?;
    let pck = Pck::of(&quote::parse(&evidence.quote)?)?;
    let path = paths.own("collateral.json");
    let now = clock::unix_now();
    let previous = if stored { read_collateral(&path) } else { None };
    let previous = previous
        .and_then(|collateral| Some((collateral::valid_until(&collateral, &pck, now).ok()?, collateral)));
    let (until, collateral) = match previous {
        Some(previous) => previous,
        None => {
            let authorities = web::authorities(settings.pcs_ca.as_deref(), &paths.bundle)?;
            let pcs = Pcs::new(&settings.pcs, web::client(&authorities)?);
            let fetched = pcs.fetch(&pck, now).await;
            dates.note(pcs.host(), pcs.date());
            let collateral = fetched?;
            files::replace(&path, &collateral.to_json()?).map_err(KeepError::Write)?;
            (collateral::valid_until(&collateral, &pck, now)?, collateral)
        }
    };
    let _ = known.send_replace(Ok((Arc::new(collateral), until)));
    // Well before it is out of date, so that an outage of the service can pass; never in a tight loop.
    Ok(now.saturating_add((until.saturating_sub(now) / 2).clamp(10, COLLATERAL_AGE)))
}

fn read_collateral(path: &Path) -> Option<Collateral> {
    Collateral::parse(&files::read_bounded(path, u64::try_from(MAX_BYTES).ok()?).ok()?).ok()
}

/// Why there is no published attestation now.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("the facts of this boot are not available")]
    Appliance(#[from] FactsError),
    #[error("there is no evidence")]
    Ask(#[from] AskError),
    #[error("waiting for the GitHub token: no secret yet for {0}")]
    NoToken(SecretRef),
    #[error("waiting for the vault")]
    Vault(#[source] LeaseError),
    #[error("the GitHub token is not text")]
    TokenText,
    #[error("waiting for collateral: {0}")]
    NoCollateral(String),
    #[error("the evidence with its collateral is {0} bytes, at most {MAX_BYTES} can be published")]
    TooLarge(usize),
    #[error("the evidence role's answer does not make an attestation")]
    Malformed,
    #[error("cannot write down what is being published")]
    Write(#[source] std::io::Error),
    #[error("the evidence cannot be written")]
    Encode(#[from] JsonError),
    #[error(transparent)]
    Authorities(#[from] WebError),
    #[error("cannot publish")]
    Github(#[from] GithubError),
    #[error("the release attestation is published, the anchor {0} is not")]
    Anchor(AnchorTag, #[source] GithubError),
    #[error("cannot see whether the release attestation is still the newest")]
    Look(#[source] GithubError),
    #[error("the vault does not hear that the anchor {0} is published")]
    Untold(AnchorTag, #[source] LeaseError),
}

impl PublishError {
    /// Whether it is somebody else's turn; `None` when what is published is what it was.
    fn state(&self) -> Option<PublishState> {
        match self {
            Self::NoToken(_) | Self::Vault(_) | Self::NoCollateral(_) | Self::Ask(_) => {
                Some(PublishState::Waiting)
            }
            Self::Look(_) => None,
            _ => Some(PublishState::Failed),
        }
    }
}

/// Why the loop goes round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// The attestation has to be replaced, or it is the first time.
    Time,
    /// It is time to look.
    Look,
    /// An operator asks.
    Asked,
}

/// The loop that publishes.
struct Publisher {
    settings: Settings,
    paths: Paths,
    known: watch::Receiver<Known>,
    status: StatusFile,
    files: ReleaseFiles,
    /// An operator wants it to be looked at now, and published if it is not the newest.
    asked: Arc<Notify>,
    /// What GitHub has said.
    memory: Arc<Memory>,
    /// When one was published for another reason than time.
    again: Option<Instant>,
    /// What servers say about the time.
    dates: Arc<Dates>,
    /// The account that certificates for browsers are ordered with, as soon as it is known; where there are any.
    account: Option<watch::Receiver<Option<HttpsUrl>>>,
    /// When the clock is set.
    steps: Steps,
}

impl Publisher {
    fn new(
        settings: Settings,
        paths: Paths,
        known: watch::Receiver<Known>,
        asked: Arc<Notify>,
        (dates, steps): (Arc<Dates>, Steps),
        account: Option<watch::Receiver<Option<HttpsUrl>>>,
        events: Arc<Ring>,
    ) -> Self {
        let status = StatusFile::open(paths.own("status.json"), events);
        let files =
            ReleaseFiles { pending: paths.own("pending.json"), published: paths.own("attestation.json") };
        Self {
            settings,
            paths,
            known,
            status,
            files,
            asked,
            memory: Arc::default(),
            again: None,
            dates,
            account,
            steps,
        }
    }

    /// Keeps a true attestation published, for ever.
    async fn keep_published(mut self) {
        let Some(token) = self.settings.token.clone() else {
            let detail = "the declaration names no GitHub token (github.token): nothing is published";
            self.status.set(PublishState::Waiting, detail);
            return;
        };
        if let Some(account) = &mut self.account {
            // One attestation instead of two within seconds.
            let _ = tokio::time::timeout(ACCOUNT_WAIT, account.wait_for(Option::is_some)).await;
        }
        self.dates.settled(CLOCK_WAIT).await;
        let mut pause = FIRST_PAUSE;
        let mut reason = Reason::Time;
        loop {
            match self.ensure(&token, reason).await {
                Ok(until) => {
                    pause = FIRST_PAUSE;
                    reason = self.rest(Moment::at(until)).await;
                }
                Err(error) => {
                    let wait = self.after(&error, pause).await;
                    pause = if wait { pause.saturating_mul(2).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
                }
            }
        }
    }

    /// Waits until it is time to publish, to look, or until an operator asks.
    async fn rest(&mut self, until: Moment) -> Reason {
        let account = async {
            let changed = match &mut self.account {
                Some(account) => account.changed().await.is_ok(),
                None => false,
            };
            if !changed {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = account => Reason::Time,
            () = until.wait() => Reason::Time,
            () = self.steps.next() => Reason::Time,
            () = tokio::time::sleep(self.settings.look_every) => Reason::Look,
            () = self.asked.notified() => Reason::Asked,
        }
    }

    /// Says what went wrong and waits until another attempt makes sense. False when the wait was for something that
    /// has come, so that the next pause is short.
    async fn after(&mut self, error: &PublishError, pause: Duration) -> bool {
        let state = error.state().unwrap_or(self.status.status().state);
        self.status.set(state, &error_chain(error));
        match error {
            // The vault has waited already.
            PublishError::NoToken(_) => false,
            PublishError::NoCollateral(_) => {
                // A changed reason is news too: it is shown at once.
                let _ = tokio::time::timeout(LONGEST_PAUSE, self.known.changed()).await;
                false
            }
            PublishError::Github(GithubError::RateLimited { retry_after, .. })
            | PublishError::Look(GithubError::RateLimited { retry_after, .. })
            | PublishError::Anchor(_, GithubError::RateLimited { retry_after, .. }) => {
                tokio::time::sleep((*retry_after).clamp(pause, LONGEST_IMPOSED)).await;
                true
            }
            _ => {
                tokio::time::sleep(pause).await;
                true
            }
        }
    }

    /// Makes sure that a true attestation is published, and this boot's anchor, and that it is the newest where there is a reason to look;
    /// returns when to replace it.
    async fn ensure(&mut self, token: &SecretRef, reason: Reason) -> Result<u64, PublishError> {
        let mut appliance = facts::appliance(&self.paths.appliance)?;
        appliance.certificate = claim(appliance.certificate.take(), &self.paths.own("certificate.json"));
        let (kept, until) = match self.kept(&appliance) {
            Some(kept) => (true, kept),
            None => (false, self.publish(&appliance, token).await?),
        };
        self.anchor(&appliance, token).await?;
        if !kept || reason == Reason::Time {
            return Ok(until);
        }
        let again = self.reconcile(&appliance, token, reason).await?;
        Ok(again.unwrap_or(until))
    }

    /// Looks whether the attestation is the newest release, and publishes another where that helps; then says when to replace that one.
    async fn reconcile(
        &mut self,
        appliance: &ApplianceFacts,
        token: &SecretRef,
        reason: Reason,
    ) -> Result<Option<u64>, PublishError> {
        let ours = Attestation::read(&self.files.published).ok_or(PublishError::Malformed)?;
        let client = self.client(token).await?;
        let found = reconcile::look(&client, &ours, clock::unix_now()).await;
        self.heard(&client);
        let found = found.map_err(PublishError::Look)?;
        let lately = self.again.is_some_and(|again| again.elapsed() < AGAIN_AFTER);
        match found {
            Found::Newest => self.status.looked(PublishState::Published, ""),
            Found::Claimed(alarm) if reason != Reason::Asked => {
                self.status.looked(PublishState::Contested, &alarm);
            }
            Found::Gone(what) | Found::Covered(what) if lately && reason != Reason::Asked => {
                self.status.looked(PublishState::Published, &format!("{what}; published again soon"));
            }
            Found::Gone(what) | Found::Covered(what) | Found::Claimed(what) => {
                println!("publish: again: {what}");
                let until = self.publish(appliance, token).await?;
                self.again = Some(Instant::now());
                return Ok(Some(until));
            }
        }
        Ok(None)
    }

    /// Publishes the anchor of this boot's opening of the state, once, and lets the vault know, whose next boot then has the next number.
    async fn anchor(&mut self, appliance: &ApplianceFacts, token: &SecretRef) -> Result<(), PublishError> {
        let done = self.paths.own("anchored");
        let tag = appliance.state.continuity().and_then(|continuity| AnchorTag::new(continuity.anchor));
        let Some(tag) = tag.filter(|_| !done.exists()) else { return Ok(()) };
        // The attestation of this boot, whichever it is by now.
        let attestation = Attestation::read(&self.files.published).ok_or(PublishError::Malformed)?;
        let client = self.client(token).await?;
        let words = match release::anchor(&client, &attestation, tag).await {
            Ok(Anchoring::Published) => format!("the anchor {tag} is published"),
            Ok(Anchoring::Taken) => format!("another release is the anchor {tag}; this boot has none"),
            Err(error) if error.is_transient() => return Err(PublishError::Anchor(tag, error)),
            // Trying again would be the same: its number stays the next one.
            Err(error) => {
                eprintln!("publish: the anchor {tag} cannot be published: {}", error_chain(&error));
                return files::replace(&done, b"").map_err(PublishError::Write);
            }
        };
        let told = vault::anchored(&self.paths.vault, tag.number()).await;
        told.map_err(|error| PublishError::Untold(tag, error))?;
        println!("publish: {words}");
        files::replace(&done, b"").map_err(PublishError::Write)
    }

    /// GitHub, with the token.
    async fn client(&mut self, token: &SecretRef) -> Result<Client, PublishError> {
        let token = self.token(token).await?;
        github(&self.settings, &self.paths, token, Arc::clone(&self.memory))
    }

    /// What GitHub has said about the time.
    fn heard(&self, client: &Client) {
        self.dates.note(client.host(), client.date());
    }

    /// Publishes a new attestation; returns when to replace it.
    async fn publish(&mut self, appliance: &ApplianceFacts, token: &SecretRef) -> Result<u64, PublishError> {
        // In this order, so that a person who looks sees first what they can do something about.
        let client = self.client(token).await?;
        let attestation = self.attestation(appliance).await?;
        self.status.set(PublishState::Publishing, &format!("release {}", attestation.tag));
        let published = release::publish(&client, &attestation).await;
        self.heard(&client);
        let release = match published {
            Ok(release) => release,
            Err(error) => {
                if !error.is_transient() {
                    // It may be the document or the tag that is refused: the next attempt has others.
                    self.files.discard();
                }
                return Err(error.into());
            }
        };
        self.files.finish().map_err(PublishError::Write)?;
        let until = attestation.renew_at().ok_or(PublishError::Malformed)?;
        self.status.published(
            attestation.tag.to_string(),
            Some(release.html_url),
            attestation.claims.expires_at,
        );
        Ok(until)
    }

    /// When the attestation that is published has to be replaced; `None` when there is none or it is not true any more.
    fn kept(&mut self, appliance: &ApplianceFacts) -> Option<u64> {
        let published = Attestation::read(&self.files.published)?;
        if !published.holds(appliance, clock::unix_now()) {
            return None;
        }
        let until = published.renew_at()?;
        let previous = self.status.status();
        let tag = published.tag.to_string();
        let same = previous.tag.as_ref() == Some(&tag);
        let url = previous.release_url.clone().filter(|_| same);
        self.status.kept(tag, url, published.claims.expires_at);
        Some(until)
    }

    /// The document to publish: the one that a killed predecessor was publishing if it is still true, else a new one.
    async fn attestation(&mut self, appliance: &ApplianceFacts) -> Result<Attestation, PublishError> {
        let pending = Attestation::read(&self.files.pending);
        if let Some(pending) = pending.filter(|pending| pending.holds(appliance, clock::unix_now())) {
            return Ok(pending);
        }
        let collateral = match &*self.known.borrow_and_update() {
            Ok((collateral, until)) if clock::unix_now() < *until => Arc::clone(collateral),
            Ok(_) => return Err(PublishError::NoCollateral("what is known is out of date".to_owned())),
            Err(reason) => return Err(PublishError::NoCollateral(reason.clone())),
        };
        let (evidence, _) = ask(&self.paths.evidence, &EvidenceRequest::default()).await?;
        let document = Evidence { collateral: Some((*collateral).clone()), ..evidence }.to_json()?;
        if document.len() > MAX_BYTES {
            return Err(PublishError::TooLarge(document.len()));
        }
        let attestation = Attestation::parse(document).ok_or(PublishError::Malformed)?;
        self.files.begin(&attestation).map_err(PublishError::Write)?;
        Ok(attestation)
    }

    /// Leases the token.
    async fn token(&mut self, reference: &SecretRef) -> Result<Zeroizing<String>, PublishError> {
        match lease(&self.paths, reference, Duration::ZERO).await {
            Err(missing @ PublishError::NoToken(_)) => {
                // Said before the wait, not after it.
                self.status.set(PublishState::Waiting, &missing.to_string());
                lease(&self.paths, reference, LEASE_WAIT).await
            }
            leased => leased,
        }
    }
}

/// GitHub with a token, and with what was heard from it before.
fn github(
    settings: &Settings,
    paths: &Paths,
    token: Zeroizing<String>,
    memory: Arc<Memory>,
) -> Result<Client, PublishError> {
    let authorities = web::authorities(settings.github_ca.as_deref(), &paths.bundle)?;
    let client = Client::new(&settings.github, Some(token), Some(&authorities), USER_AGENT)?;
    Ok(client.with_cache(memory))
}

/// Leases the token, and waits so long when there is no value yet.
async fn lease(
    paths: &Paths,
    reference: &SecretRef,
    wait: Duration,
) -> Result<Zeroizing<String>, PublishError> {
    let leased = vault::lease_at(&paths.vault, std::slice::from_ref(reference), wait).await;
    let leased = leased.map_err(|error| match error {
        LeaseError::Missing(_) => PublishError::NoToken(reference.clone()),
        error => PublishError::Vault(error),
    })?;
    let value = leased.get(reference).map(|value| value.expose()).unwrap_or_default();
    let text = std::str::from_utf8(value).map_err(|_| PublishError::TokenText)?;
    Ok(Zeroizing::new(text.trim().to_owned()))
}

#[cfg(test)]
mod tests;
