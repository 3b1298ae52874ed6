//! The options of `coffer keyserve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use cofferdam_protocol::{Digest, Repository, WordError};

use super::{Github, OWN, Trust};

/// A server, or a change of what it keeps.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Keyserve {
    #[command(subcommand)]
    pub(crate) action: Option<KeyserveAction>,
    #[command(flatten)]
    pub(crate) serve: Serve,
}

/// The server.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where appliances ask (plain HTTP: the keys are sealed to the appliance, and the answers signed)
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7443", help_heading = OWN)]
    pub(crate) listen: SocketAddr,
    /// The directory of the keys, which is this user's alone
    #[arg(long, value_name = "DIR", required = true, help_heading = OWN)]
    pub(crate) data: Option<PathBuf>,
    /// The server's private key: Ed25519 in OpenSSH's format. The declaration names its public half
    #[arg(long, value_name = "FILE", required = true, help_heading = OWN)]
    pub(crate) key: Option<PathBuf>,
    /// An appliance to add at the start, as `coffer keyserve add` does: it gets its key with what the default branch declares, or with
    /// the declaration of this digest (sha256:…). May be repeated
    #[arg(long, value_name = "OWNER/REPO[=DIGEST]", help_heading = OWN)]
    pub(crate) add: Vec<Added>,
    #[command(flatten)]
    pub(crate) trust: Trust,
    #[command(flatten)]
    pub(crate) github: Github,
}

/// An appliance, and perhaps the declaration that gets its key.
#[derive(Debug, Clone)]
pub(crate) struct Added {
    pub(crate) repository: Repository,
    pub(crate) declaration: Option<Digest>,
}

impl FromStr for Added {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let (repository, digest) = match text.split_once('=') {
            Some((repository, digest)) => (repository, Some(digest.parse()?)),
            None => (text, None),
        };
        Ok(Self { repository: repository.parse()?, declaration: digest })
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyserveAction {
    /// Add an appliance that may get a key, or change which declarations it may run
    #[command(after_help = "Example:\n  coffer keyserve add acme/app --data keys")]
    Add {
        /// The repository that is the appliance's identity
        #[arg(value_name = "OWNER/REPO")]
        repository: Repository,
        /// A declaration that gets the key (a file), instead of what the repository's default branch declares; may be repeated
        #[arg(long, value_name = "FILE")]
        declaration: Vec<PathBuf>,
        #[command(flatten)]
        data: Data,
    },
    /// Show the appliances and what is known of their states
    #[command(after_help = "Example:\n  coffer keyserve list --data keys")]
    List {
        #[command(flatten)]
        data: Data,
    },
    /// Give the statement of another image, which then opens the state without an operator, and no earlier image after it
    #[command(
        after_help = "Example:\n  coffer seal allow-upgrade acme/app --image next.efi --key operator.key --output upgrade.json\n  \
                            coffer keyserve upgrade acme/app upgrade.json --data keys"
    )]
    Upgrade {
        /// The repository that is the appliance's identity
        #[arg(value_name = "OWNER/REPO")]
        repository: Repository,
        /// The statement, as `coffer seal allow-upgrade` writes it
        #[arg(value_name = "FILE")]
        statement: PathBuf,
        #[command(flatten)]
        data: Data,
    },
    /// Forget how new an appliance's state was, and keep its key: an older copy of its disk opens then
    #[command(after_help = "Example:\n  coffer keyserve forget acme/app --data keys")]
    Forget {
        /// The repository that is the appliance's identity
        #[arg(value_name = "OWNER/REPO")]
        repository: Repository,
        #[command(flatten)]
        data: Data,
    },
}

/// Where the keys are.
#[derive(Debug, Args)]
pub(crate) struct Data {
    /// The directory of the keys
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
}
