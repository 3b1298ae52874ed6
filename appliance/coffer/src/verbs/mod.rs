//! The verbs: one file each, named as on the command line.

mod allow_upgrade;
mod appraise;
pub(crate) mod check;
mod connect;
mod doctor;
mod events;
mod history;
mod import;
mod init;
mod keyserve;
mod logs;
mod measure;
mod metrics;
mod order;
mod plan;
mod publish;
mod rekey;
mod rollback;
mod seal;
mod sealed;
pub(crate) mod secret;
mod status;
mod token;
mod top;
mod unseal;
mod up;
mod verify;

use std::time::Duration;

use clap::CommandFactory as _;
use cofferdam_github::Requests;
use cofferdam_protocol::operator::Order;
use cofferdam_protocol::{Digest, Repository};
use serde_json::json;
use zeroize::Zeroizing;

use crate::channel::{Channel, Stage};
use crate::cli::{self, Cli, Verb};
use crate::failure::{Code, Failure, Outcome};
use crate::operator_key::OperatorKey;
use crate::progress;
use crate::source::Source;
use crate::trust::Trust;
use crate::ui::{Ui, printable};
use crate::within;

/// The secret that a verb takes, read before anything else is set up: while a person types or a program computes,
/// no connection waits, no time-out runs, and Ctrl-C ends the process as it does any other.
pub(crate) fn secret(cli: &Cli) -> Outcome<Option<Zeroizing<Vec<u8>>>> {
    match &cli.verb {
        Verb::Secret { action: cli::Secret::Put { name: Some(name), keep_newline, .. } } => {
            secret::read_value(name, *keep_newline, cli.global.no_input).map(Some)
        }
        Verb::Secret { action: cli::Secret::Rm { name, yes: false, .. } } => {
            secret::may_be_removed(name, cli.global.no_input).map(|()| None)
        }
        Verb::Seal { action: cli::Seal::Rekey(options) } => {
            rekey::read_keys(options, cli.global.no_input).map(Some)
        }
        Verb::Unseal(options) => unseal::read_key(options, cli.global.no_input).map(Some),
        Verb::Seal { action: cli::Seal::Init(options) } if options.division.is_none() && !options.peer => {
            seal::read_passphrase(options, cli.global.no_input).map(Some)
        }
        _ => Ok(None),
    }
}

/// Runs the verb that was asked for.
pub(crate) async fn run(cli: Cli, ui: &Ui, value: Option<Zeroizing<Vec<u8>>>) -> Outcome {
    let limit = cli.global.timeout.unwrap_or(cli::LIMIT);
    match cli.verb {
        Verb::Init { repository, endpoint, file, key } => init::run(ui, &repository, &endpoint, &file, &key),
        Verb::Import(options) => import::run(ui, &options, limit).await,
        Verb::Check { file, schema } => check::run(ui, &file, schema),
        Verb::Plan(options) => within(limit, plan::run(ui, &options)).await,
        Verb::Rollback(options) => within(limit, rollback::run(ui, &options)).await,
        Verb::History { repository, trust, github } => {
            within(limit, history::run(ui, &repository, &trust, &github)).await
        }
        Verb::Measure(options) => within(limit, measure::run(ui, &options)).await,
        Verb::Appraise(options) => {
            let trust = within(limit, Trust::load(&options.trust, &options.github)).await?;
            appraise::run(ui, &options, &trust)
        }
        Verb::Verify { repository, save, commit, wait, trust, github } => {
            let verify = async || {
                let trust = Trust::load(&trust, &github).await?;
                let source = Source::new(&repository, &github)?;
                verify::run(ui, &repository, save.as_deref(), commit, wait, &trust, &source).await
            };
            within(limit, patiently(wait, &repository, verify)).await
        }
        Verb::Connect { appliance, wait, listen, port, key } => {
            connect::run(ui, appliance, wait, listen, port, &key, limit).await
        }
        Verb::Secret { action } => within(limit, secret::run(ui, action, value)).await,
        Verb::Keyserve(options) => keyserve::run(ui, *options, limit).await,
        Verb::Token { action } => token::run(ui, action),
        Verb::Unseal(options) => unseal::run(ui, &options, value, limit).await,
        Verb::Seal { action: cli::Seal::Rekey(options) } => {
            within(limit, rekey::run(ui, &options, value)).await
        }
        Verb::Seal { action: cli::Seal::Init(options) } => seal::init(ui, &options, value, limit).await,
        Verb::Seal { action: cli::Seal::Status(options) } => {
            within(limit, seal::status(ui, &options.appliance, &options.key)).await
        }
        Verb::Seal { action: cli::Seal::AllowUpgrade(options) } => {
            within(limit, allow_upgrade::run(ui, &options)).await
        }
        Verb::Status { appliance, wait, key } => within(limit, status::run(ui, &appliance, wait, &key)).await,
        Verb::Logs(options) => logs::run(ui, &options, limit).await,
        Verb::Up(options) => up::run(ui, &options, cli.global.timeout.unwrap_or(cli::UP)).await,
        Verb::Down { repository } => up::down(ui, repository.as_ref()),
        Verb::Restart(options) => within(limit, order::run(ui, &options, Order::Restart)).await,
        Verb::Stop(options) => within(limit, order::run(ui, &options, Order::Stop)).await,
        Verb::Start(options) => within(limit, order::run(ui, &options, Order::Start)).await,
        Verb::Top { appliance, wait, key, metrics: None } => {
            top::run(ui, &appliance, wait, &key, limit).await
        }
        Verb::Top { appliance, wait, key, metrics: Some(listen) } => {
            metrics::serve(ui, appliance, wait, OperatorKey::load(&key)?, listen, limit).await
        }
        Verb::Publish { appliance, key } => within(limit, publish::run(ui, &appliance, &key)).await,
        Verb::Doctor(options) => doctor::run(ui, &options, limit).await,
        Verb::Events(options) => events::run(ui, &options, limit).await,
        Verb::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "coffer", &mut script);
            ui.text(&String::from_utf8_lossy(&script));
            Ok(())
        }
        Verb::Man { verb } => man(ui, &verb),
        Verb::Version => {
            let version = env!("CARGO_PKG_VERSION");
            ui.result(&format!("coffer {version}\n"), json!({ "name": "coffer", "version": version }));
            Ok(())
        }
    }
}

/// The manual page of a verb, which is one or more words, or of `coffer`.
fn man(ui: &Ui, verb: &[String]) -> Outcome {
    let mut command = Cli::command();
    command.build();
    let mut page = &command;
    for name in verb {
        page = page.find_subcommand(name).ok_or_else(|| {
            Failure::usage(format!("there is no verb {}", printable(&verb.join(" "))))
                .hint("coffer --help lists them")
        })?;
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(page.clone())
        .render(&mut text)
        .map_err(|error| Failure::failed(format!("cannot make the page: {error}")))?;
    ui.text(&String::from_utf8_lossy(&text));
    Ok(())
}

/// Without a terminal, what is waited for is said after so long, once.
const WORDLESS: Duration = Duration::from_secs(5);

/// What `work` comes to; says `what` when that takes more than a moment.
async fn saying<T>(ui: &Ui, what: &str, work: impl Future<Output = T>) -> T {
    let _doing = progress::doing(what);
    let mut work = std::pin::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = tokio::time::sleep(WORDLESS), if !progress::is_shown() => ui.note(&format!("{what} …")),
    }
    work.await
}

/// Opens the verified channel to an appliance: where to dial comes from the verified release attestation (or
/// `--endpoint`), what answers is verified again on the connection itself, and its declaration is compared with the
/// repository's. `known` is the TLS key that an earlier verification attested there, if there was one.
async fn open(ui: &Ui, options: &cli::Appliance, known: Option<Digest>) -> Outcome<Channel> {
    open_for(ui, options, known, Purpose::Anything).await
}

/// As [`open`]; with `--wait` as often as it takes.
async fn open_patiently(ui: &Ui, options: &cli::Appliance, wait: cli::Wait) -> Outcome<Channel> {
    patiently(wait, &options.repository, async || open(ui, options, None).await).await
}

/// Between two attempts.
const AGAIN: Duration = Duration::from_secs(2);

/// What `attempt` comes to; with `--wait` it is made again while it could not be checked or is not ready. What is false stays false.
async fn patiently<T>(
    wait: cli::Wait,
    repository: &Repository,
    mut attempt: impl AsyncFnMut() -> Outcome<T>,
) -> Outcome<T> {
    let _doing = wait.wait.then(|| progress::doing(format!("waiting for {repository} to be ready")));
    loop {
        match attempt().await {
            Err(failure) if wait.wait && matches!(failure.code, Code::NotReady | Code::CouldNotCheck) => {
                progress::again_because(failure.message.lines().next().unwrap_or_default());
                tokio::time::sleep(failure.retry_after.map_or(AGAIN, |asked| asked.max(AGAIN))).await;
            }
            done => return done,
        }
    }
}

/// Opens a channel to the holder of the attested key for what is only read: no quote is made for it. Without a release attestation, or
/// where another key answers, it is verified as by [`open`], and may wait to be unsealed.
async fn open_to_read(ui: &Ui, options: &cli::Appliance) -> Outcome<Channel> {
    open_for(ui, options, None, Purpose::Reading).await
}

/// What a channel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Secrets among it.
    Anything,
    /// Nothing secret goes to the appliance.
    Reading,
}

async fn open_for(
    ui: &Ui,
    options: &cli::Appliance,
    known: Option<Digest>,
    purpose: Purpose,
) -> Outcome<Channel> {
    let trust = Trust::load(&options.trust, &options.github).await?;
    let source = Source::new(&options.repository, &options.github)?;
    let opened = open_from(ui, options, known, purpose, &trust, &source).await;
    say_requests(ui, trust.requests + source.requests());
    opened.map_err(|failure| Failure { retry_after: failure.retry_after.or(source.retry_after()), ..failure })
}

async fn open_from(
    ui: &Ui,
    options: &cli::Appliance,
    known: Option<Digest>,
    purpose: Purpose,
    trust: &Trust,
    source: &Source,
) -> Outcome<Channel> {
    let release = match &options.endpoint {
        Some(_) => None,
        None => Some(
            verify::verified_release(ui, &options.repository, options.commit.into(), trust, source).await?,
        ),
    };
    let endpoint = match (&options.endpoint, &release) {
        (Some(endpoint), _) => endpoint.clone(),
        (None, Some(release)) => release.claims.endpoint.clone(),
        (None, None) => return Err(Failure::usage("no endpoint")),
    };
    let pinned = match &release {
        Some(release) if purpose == Purpose::Reading => Channel::pinned(&endpoint, release, trust).await?,
        _ => None,
    };
    let channel = match pinned {
        Some(channel) => channel,
        None => {
            let stage = if purpose == Purpose::Reading { Stage::Waiting } else { Stage::Launched };
            let claims = release.as_ref().map(|release| &release.claims);
            Channel::open(&endpoint, &options.repository, trust, claims, known, stage).await?
        }
    };
    source.declaration(&channel.claims, options.commit).await?;
    crate::ui::is_simulated(channel.appraisal.simulated);
    if channel.appraisal.simulated {
        ui.warn("SIMULATED: this appliance runs on a simulated TDX device");
    }
    ui.detail(&format!("verified {} at {endpoint}, commit {}", options.repository, channel.claims.commit));
    ui.detail(trust.inputs.lines().trim_end());
    Ok(channel)
}

/// What GitHub was asked, for those who want to know.
fn say_requests(ui: &Ui, asked: Requests) {
    ui.detail(&format!(
        "GitHub: {} API requests ({} unchanged), {} of git, {} to storage",
        asked.api, asked.unchanged, asked.git, asked.storage
    ));
}
