//! The command line: one definition that generates parsing, help, completions and man pages.

use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Command, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use cofferdam_attest::reference::ProcessorId;
use cofferdam_protocol::{Commit, Endpoint, Repository, SECRET_SCHEME, SecretRef, WordError, hex};

mod appraise;
mod keyserve;
mod origin;
mod seal;

pub(crate) use appraise::{Appraise, Expected, Format};
pub(crate) use keyserve::{Keyserve, KeyserveAction, Serve};
use origin::Origins;
pub(crate) use seal::{AllowUpgrade, Division, Elsewhere, Rekey, Seal, SealInit, Unseal};

/// The heading of what stands after a group with a heading of its own: none, as before the group.
const OWN: Option<&'static str> = None;

/// Verify a Cofferdam appliance and talk to exactly that machine.
#[derive(Debug, Parser)]
#[command(name = "coffer", version, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 usage or declaration error, 3 verification says no, \
    4 not allowed,\n5 sealed or not ready, 6 could not check or reach, 7 a policy forbids it, 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Reads the command line and the environment.
pub(crate) fn parse() -> Result<Cli, clap::Error> {
    let mut command = without_empty(Cli::command());
    let mut matches = command.try_get_matches_from_mut(std::env::args_os())?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// A variable that is empty is one that is not set.
fn without_empty(command: Command) -> Command {
    let empty = |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| if arg.get_env().is_some_and(empty) { arg.env(None::<&str>) } else { arg })
        .mut_subcommands(without_empty)
}

/// Whether an object was asked for on a command line that cannot be read.
pub(crate) fn wants_json() -> bool {
    let short = |word: &str| {
        let letters = word.strip_prefix('-').filter(|letters| !letters.starts_with('-'));
        letters
            .is_some_and(|letters| letters.contains('j') && letters.chars().all(|one| "jqvhV".contains(one)))
    };
    let mut words: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .take_while(|word| word != "--")
        .collect();
    words.retain(|word| word.starts_with("--json") || short(word));
    match words.last().map(String::as_str) {
        Some("--json=false") => false,
        Some(_) => true,
        None => std::env::var("COFFER_JSON").is_ok_and(|value| is_true(&value)),
    }
}

fn is_true(value: &str) -> bool {
    ["1", "y", "yes", "t", "true", "on"].contains(&value.to_ascii_lowercase().as_str())
}

/// How long a command may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// The same for `up`: a machine boots, under emulation perhaps.
pub(crate) const UP: Duration = Duration::from_secs(600);

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Print one JSON object (JSON lines for streams)
    #[arg(short, long, global = true, env = "COFFER_JSON", value_parser = clap::builder::BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "true", default_value = "false", require_equals = true, hide_default_value = true)]
    pub(crate) json: bool,
    /// Print the result and errors only
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Print more detail
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
    /// Never prompt; fail where an answer would be needed
    #[arg(long, global = true)]
    pub(crate) no_input: bool,
    /// Give up after this long (30s, 2m; default: 60s, and 10m for `up`)
    #[arg(long, global = true, env = "COFFER_TIMEOUT", value_name = "TIME", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Write a first declaration and make an operator's key
    #[command(after_help = "Example:\n  coffer init acme/app --endpoint app.example.org:443")]
    Init {
        /// The repository that is the appliance's identity
        #[arg(value_name = "OWNER/REPO")]
        repository: Repository,
        /// Where clients connect
        #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8443")]
        endpoint: Endpoint,
        /// The declaration to write
        #[arg(long, value_name = "FILE", default_value = "cofferdam.yaml")]
        file: PathBuf,
        #[command(flatten)]
        key: OperatorKey,
    },
    /// Turn a compose file into a declaration
    #[command(
        after_help = "Tags become digests, what looks like a secret becomes a reference, and everything that was changed, left out or is \
        for you to\ndecide is listed. Exit code 2 when there is something to decide.\n\nExamples:\n  coffer import acme/app compose.yaml\n  \
        coffer import acme/app --env-file prod.env --secrets secrets.env\n  \
        coffer secret put acme/app --env-file secrets.env"
    )]
    Import(Box<Import>),
    /// Check a declaration and point at each mistake
    #[command(after_help = "Examples:\n  coffer check cofferdam.yaml\n  \
        git show HEAD:cofferdam.yaml | coffer check -")]
    Check {
        /// The declaration; - reads standard input
        #[arg(default_value = "cofferdam.yaml")]
        file: PathBuf,
        /// Print the JSON Schema of declarations instead of checking one
        #[arg(long, conflicts_with = "file")]
        schema: bool,
    },
    /// Show what a declaration would change, and the register that it leads to
    #[command(
        after_help = "What runs is what the newest release attestation proves, with the declaration that the repository has at its commit. RTMR3 is \
        predicted for what is applied at run time. It depends on the commit: HEAD where that has the file as it is, or --commit.\n\n\
        Examples:\n  coffer plan\n  coffer plan acme/app next.yaml --commit 0123456789abcdef0123456789abcdef01234567\n  \
        git show HEAD~:cofferdam.yaml > before.yaml; coffer plan --running before.yaml"
    )]
    Plan(Box<Plan>),
    /// Make the declaration what it was before, to be signed and pushed
    #[command(
        after_help = "The way back is a commit like any other. Where the file is not what runs, because that commit was refused or did not come up, it \
        becomes what runs; else what ran before that in this boot, or what the commit has that --to names. The file is replaced if the \
        last commit has it as it is; the commit is yours to sign.\n\nExamples:\n  coffer rollback && git commit -S -a -m 'Back' && git push\n  \
        coffer rollback --to 0123456789abcdef0123456789abcdef01234567"
    )]
    Rollback(Box<Rollback>),
    /// List the declarations of this boot, and what was published before
    #[command(
        after_help = "The declarations of this boot are in the log of the newest release attestation that verifies. Earlier releases are listed as \
        GitHub has them; the newest of those are appraised, each at the time that it claims. Who holds the appliance's token can remove \
        releases: that one is missing says nothing.\n\nExample:\n  coffer history acme/app"
    )]
    History {
        /// The repository
        #[arg(value_name = "OWNER/REPO")]
        repository: Repository,
        #[command(flatten)]
        trust: Trust,
        #[command(flatten)]
        github: Github,
    },
    /// Boot an appliance on this machine, verify it, and say how to go on
    #[command(
        after_help = "With --simulate nothing but this machine is needed: what the declaration says about GitHub, collateral and the \
        endpoint is\nreplaced by a development GitHub and a simulated TDX device here. Everything then says SIMULATED.\n\nExamples:\n  \
        coffer up --simulate\n  coffer up --simulate --secrets secrets.env --listen 127.0.0.1:8080"
    )]
    Up(Box<Up>),
    /// End the appliance that `coffer up` has started, and remove what it left, its state too
    Down {
        /// Which one, if there are several
        #[arg(value_name = "OWNER/REPO")]
        repository: Option<Repository>,
    },
    /// Predict what an image and a firmware will measure, and explain a difference
    #[command(after_help = "Examples:\n  coffer measure cofferdam.efi --save image.json\n  \
        coffer measure --firmware OVMF.inteltdx.ms.fd --memory 4G --cpus 2 --save-platform platform.json\n  \
        coffer measure cofferdam.efi --explain attestation.json")]
    Measure(Box<Measure>),
    /// Appraise an evidence document or a bare quote, offline
    #[command(after_help = "Examples:\n  coffer appraise attestation.json --reference measurements\n  \
        coffer appraise --quote quote.bin --collateral collateral.json --at 2025-07-01T00:00:00Z\n  \
        coffer appraise answer.json --reference measurements --repository acme/app --nonce \"$NONCE\" \\\n    \
        --tls-key sha256:... --channel-binding \"$BINDING\" --format ear\n  \
        coffer appraise --show-policy --policy policy.json")]
    Appraise(Box<Appraise>),
    /// Fetch and verify a repository's release attestation
    #[command(after_help = "Example:\n  coffer verify acme/app --reference measurements")]
    Verify {
        /// The repository
        #[arg(value_name = "OWNER/REPO")]
        repository: Repository,
        /// Also write the verified evidence document to a file
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
        /// The commit that the appliance must run, if it is not the one that the default branch declares now
        #[arg(long, value_name = "SHA")]
        commit: Option<Commit>,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        trust: Trust,
        #[command(flatten)]
        github: Github,
    },
    /// Open a local port whose traffic reaches only the verified appliance
    #[command(
        after_help = "With an operator's key it signs in: whoever reaches the local port calls the services as that \
        operator.\n\nExample:\n  coffer connect acme/app --listen 127.0.0.1:8080 --reference measurements"
    )]
    Connect {
        #[command(flatten)]
        appliance: Appliance,
        #[command(flatten)]
        wait: Wait,
        /// The local address
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0", help_heading = OWN)]
        listen: std::net::SocketAddr,
        /// The published port to reach, if it is not the endpoint's own
        #[arg(long, value_name = "PORT", help_heading = OWN)]
        port: Option<NonZeroU16>,
        #[command(flatten)]
        key: OperatorKey,
    },
    /// Put, list and remove secrets over a verified connection
    Secret {
        #[command(subcommand)]
        action: Secret,
    },
    /// Open the state of an appliance that waits for it
    #[command(
        after_help = "The passphrase is prompted for, or read from standard input.\n\nExamples:\n  coffer unseal acme/app\n  \
        coffer unseal acme/app --share < share.txt\n  coffer unseal acme/app --upgrade upgrade.json"
    )]
    Unseal(Box<Unseal>),
    /// Make a state on a blank disk, see what opens it, leave it to another image
    Seal {
        #[command(subcommand)]
        action: Seal,
    },
    /// Serve the keys of appliances' states to evidence that is accepted
    #[command(
        after_help = "Keys are released to appliances that were added, that wait for them, and whose evidence verifies as with `coffer \
        verify`.\nThe server remembers how new each state was: an older copy of a disk is refused.\n\nExamples:\n  \
        ssh-keygen -t ed25519 -N '' -f keyserve.key\n  coffer keyserve add acme/app --data keys\n  \
        coffer keyserve --data keys --key keyserve.key --listen 0.0.0.0:7443 --reference measurements"
    )]
    Keyserve(Box<Keyserve>),
    /// Make tokens for clients that are no operators
    Token {
        #[command(subcommand)]
        action: Token,
    },
    /// Show what the appliance and its services are doing; with --wait, once all of them run
    Status {
        #[command(flatten)]
        appliance: Appliance,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        key: OperatorKey,
    },
    /// Have the release attestation looked at now, and published again unless it is the newest release
    #[command(
        after_help = "The appliance looks by itself every few minutes. Where another machine has published for the same repository \
        (`coffer status`\nsays \"contested\"), it publishes against it only when an operator asks.\n\nExample:\n  coffer publish acme/app"
    )]
    Publish {
        #[command(flatten)]
        appliance: Appliance,
        #[command(flatten)]
        key: OperatorKey,
    },
    /// Show a service's redacted output
    #[command(
        after_help = "Examples:\n  coffer logs acme/app web --tail 20\n  coffer logs acme/app web -f --since 10m"
    )]
    Logs(Box<Logs>),
    /// Start a service again, with the secrets that it has by now
    #[command(after_help = "Example:\n  coffer restart acme/app web --wait")]
    Restart(Box<Order>),
    /// Stop a service until it is started, or until the next boot
    Stop(Box<Order>),
    /// Start a service that was stopped, or that has ended
    Start(Box<Order>),
    /// Show what each service uses, again and again on a terminal, or as metrics for Prometheus
    #[command(
        after_help = "Examples:\n  coffer top acme/app\n  coffer top acme/app --metrics 127.0.0.1:9464"
    )]
    Top {
        #[command(flatten)]
        appliance: Appliance,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        key: OperatorKey,
        /// Serve /metrics at this address in OpenMetrics instead, each scrape from the verified appliance
        #[arg(long, value_name = "ADDRESS")]
        metrics: Option<std::net::SocketAddr>,
    },
    /// Look for what is wrong, and say for each thing what helps
    #[command(
        after_help = "The exit code is that of the gravest finding, in this order: 3 verification says no, 4 not allowed or no operator's key, \
        5 sealed, 1 the appliance's own answers show a problem, 6 something could not be checked or reached. It is 0 without any of them, also \
        with warnings. Nothing is shown as a fact that was not verified.\n\nExamples:\n  coffer doctor acme/app\n  \
        coffer doctor acme/app --endpoint app.example.org:443\n  coffer doctor acme/app --json | jq -r '.findings[].code'"
    )]
    Doctor(Box<Doctor>),
    /// Show what happened in the appliance
    #[command(
        after_help = "Each event has the number that its role gave it: a gap was overwritten.\n\nExamples:\n  \
        coffer events acme/app --since 10m\n  coffer events acme/app -f --json"
    )]
    Events(Box<Events>),
    /// Print a completion script
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man {
        /// The verb whose page to print, as `secret put` (default: coffer's own page)
        verb: Vec<String>,
    },
    /// Print the version
    Version,
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// The repository of the appliance, or the declaration (default: the repository that FILE declares)
    #[arg(value_name = "OWNER/REPO|FILE")]
    pub(crate) first: Option<String>,
    /// The declaration; - reads standard input (default: cofferdam.yaml)
    #[arg(value_name = "FILE", conflicts_with = "running")]
    pub(crate) file: Option<PathBuf>,
    /// Compare with this declaration, and ask nobody
    #[arg(long, value_name = "FILE", conflicts_with = "commit")]
    pub(crate) running: Option<PathBuf>,
    /// The commit that has the declaration (default: HEAD, where that has it)
    #[arg(long, value_name = "SHA")]
    pub(crate) commit: Option<Commit>,
    #[command(flatten)]
    pub(crate) trust: Trust,
    #[command(flatten)]
    pub(crate) github: Github,
}

#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The declaration in its working tree (default: cofferdam.yaml)
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// The commit that has it as it is to be
    #[arg(long, value_name = "SHA")]
    pub(crate) to: Option<Commit>,
    #[command(flatten)]
    pub(crate) trust: Trust,
    #[command(flatten)]
    pub(crate) github: Github,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub(crate) appliance: Appliance,
    #[command(flatten)]
    pub(crate) key: OperatorKey,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    #[command(flatten)]
    pub(crate) appliance: Appliance,
    #[command(flatten)]
    pub(crate) wait: Wait,
    /// Go on with what happens from now on, until it is interrupted
    #[arg(short, long, help_heading = OWN)]
    pub(crate) follow: bool,
    /// Only what happened in the last so long (30s, 10m, 2h)
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = OWN)]
    pub(crate) since: Option<Duration>,
    #[command(flatten)]
    pub(crate) key: OperatorKey,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The repository that is the appliance's identity
    #[arg(value_name = "OWNER/REPO")]
    pub(crate) repository: Repository,
    /// The compose file, and those that are merged into it in this order; - reads standard input (default: the one in this directory
    /// with its override file)
    #[arg(value_name = "COMPOSE")]
    pub(crate) compose: Vec<PathBuf>,
    /// Where clients connect
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8443")]
    pub(crate) endpoint: Endpoint,
    /// The declaration to write
    #[arg(long, value_name = "FILE", default_value = "cofferdam.yaml")]
    pub(crate) file: PathBuf,
    /// Variables for `${…}`; may be repeated, the last one counts (default: .env beside the compose file)
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Also write the secrets' values to this file, for `coffer secret put --env-file`
    #[arg(long, value_name = "FILE")]
    pub(crate) secrets: Option<PathBuf>,
    /// Certificates (PEM) that alone are trusted for registries
    #[arg(long, value_name = "FILE")]
    pub(crate) registry_ca: Option<PathBuf>,
    /// Docker's config.json, for the logins at private registries; their passwords become secrets of the appliance, too
    #[arg(long, value_name = "FILE")]
    pub(crate) docker_config: Option<PathBuf>,
    /// Ask no registry: images by tag are left to decide
    #[arg(long)]
    pub(crate) offline: bool,
    #[command(flatten)]
    pub(crate) key: OperatorKey,
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// The declaration
    #[arg(value_name = "FILE", default_value = "cofferdam.yaml")]
    pub(crate) declaration: PathBuf,
    /// Simulate the TDX device; without this the machine is a trust domain on a TDX host
    #[arg(long, group = "here")]
    pub(crate) simulate: bool,
    /// Run this service alone, as a container without an appliance, record the system calls and files that it uses, and write them into the declaration as its `profile`
    #[arg(long, value_name = "SERVICE", group = "here")]
    pub(crate) learn: Option<String>,
    /// With --learn: print the profile, and leave the declaration as it is
    #[arg(long, requires = "learn")]
    pub(crate) print: bool,
    /// With --learn: what uses the service; the recording ends with it, and without it with Enter
    #[arg(last = true, value_name = "COMMAND", requires = "learn")]
    pub(crate) command: Vec<String>,
    /// The image (default: the one in the checkout, or beside this program)
    #[arg(long, value_name = "UKI")]
    pub(crate) image: Option<PathBuf>,
    /// A checkout of Cofferdam, whose scripts start the machine (default: the one that this program or this directory is in)
    #[arg(long, value_name = "DIR", env = "COFFER_CHECKOUT")]
    pub(crate) checkout: Option<PathBuf>,
    /// The port of this machine that is the appliance's 443 (default: the endpoint's, or 8443)
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<NonZeroU16>,
    /// With --simulate: where `coffer connect` listens afterwards (default: 127.0.0.1:8080, or the next port that is free)
    #[arg(long, value_name = "ADDR", requires = "simulate")]
    pub(crate) listen: Option<std::net::SocketAddr>,
    /// With --simulate or --learn: secrets to put, as `coffer import --secrets` writes them
    #[arg(long, value_name = "FILE", requires = "here")]
    pub(crate) secrets: Option<PathBuf>,
    /// With --simulate or --learn: trust this authority (PEM) for a registry, as `10.0.2.2:5000=ca.pem` for one on this machine
    #[arg(long, value_name = "HOST=PEM", requires = "here")]
    pub(crate) registry: Vec<String>,
    /// The machine's memory
    #[arg(long, value_name = "SIZE", default_value = "2G")]
    pub(crate) memory: String,
    /// The machine's processors
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) cpus: u32,
    #[command(flatten)]
    pub(crate) key: OperatorKey,
    #[command(flatten)]
    pub(crate) trust: Trust,
    #[command(flatten)]
    pub(crate) github: Github,
}

/// An order for a service.
#[derive(Debug, Args)]
pub(crate) struct Order {
    #[command(flatten)]
    pub(crate) appliance: Appliance,
    #[command(flatten)]
    pub(crate) wait: Wait,
    /// The service
    #[arg(help_heading = OWN)]
    pub(crate) service: String,
    #[command(flatten)]
    pub(crate) key: OperatorKey,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    pub(crate) appliance: Appliance,
    #[command(flatten)]
    pub(crate) wait: Wait,
    /// The service
    #[arg(help_heading = OWN)]
    pub(crate) service: String,
    /// Go on with what the service prints from now on
    #[arg(short, long, help_heading = OWN)]
    pub(crate) follow: bool,
    /// Only lines of the last so long (30s, 10m, 2h)
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = OWN)]
    pub(crate) since: Option<Duration>,
    /// How many lines to show at most, counted from the end (default: 100; with --since, 10000)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), help_heading = OWN)]
    pub(crate) tail: Option<u32>,
    #[command(flatten)]
    pub(crate) key: OperatorKey,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Secret {
    /// Store a secret; its value is read from standard input or prompted for
    #[command(
        after_help = "Examples:\n  printf %s \"$TOKEN\" | coffer secret put acme/app cofferdam/github/token\n  \
        coffer secret put acme/app secret://demo/greeting/value\n  \
        coffer secret put acme/app --env-file secrets.env"
    )]
    Put {
        #[command(flatten)]
        appliance: Appliance,
        #[command(flatten)]
        wait: Wait,
        /// The secret's name
        #[arg(value_name = "NAMESPACE/NAME/FIELD", help_heading = OWN, value_parser = secret, required_unless_present = "env_file")]
        name: Option<SecretRef>,
        /// Store each NAMESPACE/NAME/FIELD=value of a file, as `coffer import --secrets` writes it
        #[arg(long, value_name = "FILE", help_heading = OWN, conflicts_with_all = ["name", "keep_newline"])]
        env_file: Option<PathBuf>,
        /// Keep a trailing newline in the value (one is removed by default)
        #[arg(long, help_heading = OWN)]
        keep_newline: bool,
        #[command(flatten)]
        key: OperatorKey,
    },
    /// List the secrets' names and versions
    List {
        #[command(flatten)]
        appliance: Appliance,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        key: OperatorKey,
    },
    /// Remove a secret
    Rm {
        #[command(flatten)]
        appliance: Appliance,
        #[command(flatten)]
        wait: Wait,
        /// The secret's name
        #[arg(value_name = "NAMESPACE/NAME/FIELD", help_heading = OWN, value_parser = secret)]
        name: SecretRef,
        /// Remove it without a question, also one that the appliance itself needs
        #[arg(short, long, help_heading = OWN)]
        yes: bool,
        #[command(flatten)]
        key: OperatorKey,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token; it is printed once, and its hash goes into the declaration
    #[command(after_help = "Example:\n  coffer token new ci > ci.token")]
    New {
        /// The client's name, which services are told
        #[arg(value_name = "NAME", value_parser = name)]
        name: String,
    },
}

/// What to measure and what to make of it.
#[derive(Debug, Args)]
pub(crate) struct Measure {
    /// The unified kernel image: gives RTMR1 and RTMR2
    #[arg(value_name = "UKI", required_unless_present_any = ["firmware", "mrtd", "explain"])]
    pub(crate) image: Option<PathBuf>,
    /// How the image is booted, which RTMR1 and RTMR2 depend on; may be repeated
    #[arg(long, value_enum, value_name = "WAY", default_value = "tdx")]
    pub(crate) boot: Vec<Boot>,
    /// The disk that it is started from (cofferdam-gce.raw), when that has a partition table: firmware measures the table into RTMR1
    #[arg(long, value_name = "RAW", requires = "image")]
    pub(crate) disk: Option<PathBuf>,
    /// What the image was built from and with (JSON from `ci/measurements`), to store with its values
    #[arg(long, value_name = "FILE", requires = "image")]
    pub(crate) build: Option<PathBuf>,
    /// Write the image's reference values to a file
    #[arg(long, value_name = "FILE", requires = "image")]
    pub(crate) save: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) platform: MeasurePlatform,
    /// Explain how the registers in this evidence document differ from the values given on the command line
    #[arg(long, value_name = "EVIDENCE", help_heading = OWN)]
    pub(crate) explain: Option<PathBuf>,
    /// With --explain, an image that the machine may have been booted from: differences between the two are then proved
    #[arg(long, value_name = "UKI", requires_all = ["image", "explain"], help_heading = OWN)]
    pub(crate) booted: Option<PathBuf>,
    /// An additional attestation root (PEM) that may have signed the evidence, such as a simulated device's; Intel's is built in. Only
    /// what a verified chain proves is called certain. Never taken from the environment
    #[arg(long, value_name = "PEM", requires = "explain", help_heading = OWN)]
    pub(crate) root: Option<PathBuf>,
    /// Further reference values to explain with: a file, a directory or github:OWNER/REPO@TAG; may be repeated. Never
    /// taken from the environment
    #[arg(long, value_name = "PATH", requires = "explain", help_heading = OWN)]
    pub(crate) reference: Vec<String>,
    #[command(flatten)]
    pub(crate) github: Github,
}

/// Firmware and machine: MRTD and RTMR0.
#[derive(Debug, Args)]
#[command(next_help_heading = "Platform")]
pub(crate) struct MeasurePlatform {
    /// The TDVF firmware (.fd): gives MRTD and, as far as it is determined, RTMR0
    #[arg(long, value_name = "FD")]
    pub(crate) firmware: Option<PathBuf>,
    /// A stated MRTD, 96 hex digits, instead of a firmware to compute it from
    #[arg(long, value_name = "HEX", conflicts_with = "firmware", value_parser = register)]
    pub(crate) mrtd: Option<Register>,
    /// The machine's memory (4G, 2816M); without it, those events of RTMR0 that depend on the machine are left out
    #[arg(long, value_name = "SIZE", requires = "firmware", value_parser = mebibytes)]
    pub(crate) memory: Option<u64>,
    /// The machine's processors
    #[arg(long, value_name = "N", requires = "memory", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) cpus: u32,
    /// QEMU's version (10.0)
    #[arg(long, value_name = "VERSION")]
    pub(crate) qemu: Option<String>,
    /// The host's processor as SMBIOS names it: 8 bytes in hexadecimal, the ID that `dmidecode -t processor` prints in a trust domain
    /// on such a host; only firmware since 2025-05 measures it
    #[arg(long, value_name = "ID", requires = "memory")]
    pub(crate) processor: Option<ProcessorId>,
    /// The machine's ACPI and SMBIOS tables and boot variables, as `ci/acpi-tables` writes them
    #[arg(long, value_name = "DIR", requires = "memory")]
    pub(crate) acpi: Option<PathBuf>,
    /// What to call the platform (default: the firmware's file name)
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// The distribution's package that the firmware is from
    #[arg(long, value_name = "NAME=VERSION", requires = "firmware")]
    pub(crate) package: Option<String>,
    /// Write the platform's reference values to a file
    #[arg(long, value_name = "FILE")]
    pub(crate) save_platform: Option<PathBuf>,
}

/// 48 bytes, which clap shall not take for a list of values.
pub(crate) type Register = [u8; 48];

/// What extends the registers, and from where it has the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Boot {
    /// A TDX host with a TDVF firmware
    Tdx,
    /// OVMF and a TPM underneath the simulated TDX device
    Simulator,
    /// A TDX host whose hypervisor hands the image to the firmware (QEMU's -kernel)
    TdxKernel,
    /// The same with the simulated TDX device
    SimulatorKernel,
}

/// Which appliance, and what is trusted about it.
#[derive(Debug, Args)]
pub(crate) struct Appliance {
    /// The repository that is the appliance's identity
    #[arg(value_name = "OWNER/REPO")]
    pub(crate) repository: Repository,
    /// Connect here instead of to the published endpoint (before the first release attestation); the evidence is
    /// verified all the same
    #[arg(long, value_name = "HOST:PORT", env = "COFFER_ENDPOINT")]
    pub(crate) endpoint: Option<Endpoint>,
    /// The commit that the appliance must run, if it is not the one that the default branch declares now
    #[arg(long, value_name = "SHA")]
    pub(crate) commit: Option<Commit>,
    #[command(flatten)]
    pub(crate) trust: Trust,
    #[command(flatten)]
    pub(crate) github: Github,
}

/// Whether to ask again.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Wait {
    /// Ask again while it cannot be reached or is not ready, until --timeout is over
    #[arg(long, help_heading = OWN)]
    pub(crate) wait: bool,
}

/// What the evidence is appraised against.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Appraisal")]
pub(crate) struct Trust {
    #[command(flatten)]
    pub(crate) origins: Origins,
    /// Reference values of images and platforms: a file, a directory, or a release as github:OWNER/REPO@TAG; may be
    /// repeated
    #[arg(long, value_name = "PATH", env = "COFFER_REFERENCE")]
    pub(crate) reference: Vec<String>,
    /// An additional attestation root to accept (PEM); Intel's is built in. What it vouches for is SIMULATED. Never
    /// taken from the environment
    #[arg(long, value_name = "PEM")]
    pub(crate) root: Option<PathBuf>,
    /// The appraisal policy, instead of the built-in one
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
}

/// Where releases and declarations are read.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "GitHub")]
pub(crate) struct Github {
    #[command(flatten)]
    pub(crate) origins: Origins,
    /// The root of GitHub's API; on a GitHub Enterprise Server, https://HOST/api/v3
    #[arg(long, value_name = "URL", env = "COFFER_GITHUB_API")]
    pub(crate) github_api: Option<String>,
    /// The only certificate authority to trust for GitHub (PEM), instead of the system's
    #[arg(long, value_name = "PEM", env = "COFFER_GITHUB_CA")]
    pub(crate) github_ca: Option<PathBuf>,
}

/// The operator's private key.
#[derive(Debug, Args)]
pub(crate) struct OperatorKey {
    /// The operator's private key: Ed25519 in OpenSSH's format (default: operator.key in the user's
    /// configuration, then ~/.ssh/id_ed25519)
    #[arg(long, value_name = "FILE", env = "COFFER_KEY", help_heading = OWN)]
    pub(crate) key: Option<PathBuf>,
}

/// A secret's reference, given as `ns/name/field` or `secret://ns/name/field`.
fn secret(text: &str) -> Result<SecretRef, WordError> {
    if text.starts_with(SECRET_SCHEME) { text.parse() } else { format!("{SECRET_SCHEME}{text}").parse() }
}

/// A name as declarations have them.
fn name(text: &str) -> Result<String, &'static str> {
    let wrong = "a name is 1 to 63 of a-z 0-9 . _ - and starts with a letter or a digit";
    cofferdam_protocol::is_name(text).then(|| text.to_owned()).ok_or(wrong)
}

fn register(text: &str) -> Result<Register, String> {
    hex::decode_array(&text.to_ascii_lowercase()).ok_or_else(|| "a register is 96 hex digits".to_owned())
}

/// `4G`, `2816M`; in MiB.
fn mebibytes(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).unwrap_or((text, ""));
    let factor = match unit {
        "M" => 1,
        "G" => 1024,
        _ => return Err("a size ends in M or G".to_owned()),
    };
    let size = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    match size {
        Some(size) if (1..=16 << 20).contains(&size) && !number.starts_with('+') => Ok(size),
        _ => Err("a size is between 1M and 16384G".to_owned()),
    }
}

/// `30s`, `2m`, `1h`, `500ms`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at_checked(digits).unwrap_or((text, ""));
    let number: u64 = number.parse().map_err(|_| "a time looks like 30s, 2m or 500ms".to_owned())?;
    let milliseconds = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("a time ends in ms, s, m or h".to_owned()),
    };
    match number.checked_mul(milliseconds) {
        Some(total) if (1..=86_400_000).contains(&total) => Ok(Duration::from_millis(total)),
        _ => Err("a time is between 1ms and 24h".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_bounded_and_have_units() {
        assert_eq!(mebibytes("4G"), Ok(4096));
        assert_eq!(mebibytes("2816M"), Ok(2816));
        for bad in ["", "4", "G", "0G", "+4G", "-1M", "4.5G", "4T", "16385G", "99999999999999999999G", "é"] {
            assert!(mebibytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_positive_bounded_and_have_units() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        for bad in ["", "s", "-1s", "0s", "25h", "1d", "1.5s", "99999999999999999999s", "99999999999999999h"]
        {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
