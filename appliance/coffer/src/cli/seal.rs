//! The options of `coffer unseal` and `coffer seal`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use cofferdam_protocol::Repository;

use super::{Appliance, Boot, OWN, OperatorKey, Register};

#[derive(Debug, Subcommand)]
pub(crate) enum Seal {
    /// Make the state of an appliance whose disk is blank
    #[command(
        after_help = "The recovery key is printed first, once: keep it. The passphrase is prompted for, or read from standard \
        input.\n\nExamples:\n  coffer seal init acme/app > recovery.txt\n  \
        coffer seal init acme/app --shares 3 --threshold 2 --recovery-out recovery.txt\n  \
        coffer seal init acme/app --peer > recovery.txt"
    )]
    Init(Box<SealInit>),
    /// Show whether the state is open, and what opens it
    #[command(
        after_help = "Exit code 0 when it is open or in memory, 5 when it is sealed or the disk is blank.\n\nExample:\n  \
        coffer seal status acme/app"
    )]
    Status(Box<SealStatus>),
    /// Sign the statement that lets another image, repository or other operators open the state
    #[command(
        after_help = "Without --image or --measurements it is for the image that runs there. What is not given is asked of the appliance and \
        of its repository.\nThe state takes each statement once, from an operator that it knows; then the image before it opens nothing any \
        more.\n\nExamples:\n  coffer seal allow-upgrade acme/app --image cofferdam.efi -o upgrade.json\n  \
        coffer seal allow-upgrade acme/app --measurements image.json --operators cofferdam.yaml -o upgrade.json\n  \
        coffer unseal acme/app --upgrade upgrade.json"
    )]
    AllowUpgrade(Box<AllowUpgrade>),
    /// Replace what opens the state while it is open: the passphrase or the shares, or the recovery key
    #[command(
        after_help = "It takes the passphrase or the recovery key that opens the state now, and then a new passphrase where one is wanted: both \
        are prompted for, or are two lines of standard input. What was replaced opens nothing afterwards.\n\nExamples:\n  \
        coffer seal rekey acme/app\n  \
        coffer seal rekey acme/app --shares 3 --threshold 2\n  \
        coffer seal rekey acme/app --recovery --recovery-out recovery.txt"
    )]
    Rekey(Box<Rekey>),
}

/// What takes the place of what opens the state.
#[derive(Debug, Args)]
pub(crate) struct Rekey {
    #[command(flatten)]
    pub(crate) appliance: Appliance,
    #[command(flatten)]
    pub(crate) division: Option<Division>,
    /// Replace the recovery key by a new one, which is printed once
    #[arg(long, conflicts_with_all = ["shares", "threshold"], help_heading = OWN)]
    pub(crate) recovery: bool,
    /// Write the new recovery key to a new file that only you can read, instead of printing it
    #[arg(long, value_name = "FILE", requires = "recovery", help_heading = OWN)]
    pub(crate) recovery_out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) key: OperatorKey,
}

/// Who may open the state next.
#[derive(Debug, Args)]
pub(crate) struct AllowUpgrade {
    #[command(flatten)]
    pub(crate) appliance: Appliance,
    /// The next image, measured as `coffer measure` does
    #[arg(long, value_name = "UKI", conflicts_with = "measurements", help_heading = OWN)]
    pub(crate) image: Option<PathBuf>,
    /// The next image's reference values, or the next firmware's, as a release has them; may be repeated
    #[arg(long, value_name = "FILE", help_heading = OWN)]
    pub(crate) measurements: Vec<PathBuf>,
    /// How the next image is booted
    #[arg(long, value_enum, value_name = "WAY", default_value = "tdx", help_heading = OWN)]
    pub(crate) boot: Boot,
    /// The next firmware's MRTD, 96 hex digits (default: the appliance's)
    #[arg(long, value_name = "HEX", value_parser = super::register, help_heading = OWN)]
    pub(crate) mrtd: Option<Register>,
    /// The repository of the next declaration, where it is another one
    #[arg(long = "repository", value_name = "OWNER/REPO", help_heading = OWN)]
    pub(crate) to: Option<Repository>,
    /// The next declaration, of which the operators count (default: what the repository declares now)
    #[arg(long, value_name = "FILE", help_heading = OWN)]
    pub(crate) operators: Option<PathBuf>,
    /// The version that the state's lineage has now (default: the appliance's)
    #[arg(long, value_name = "N", help_heading = OWN)]
    pub(crate) from_version: Option<u64>,
    /// Write the statement to a file instead of printing it
    #[arg(short, long, value_name = "FILE", help_heading = OWN)]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) key: OperatorKey,
}

/// Whose state to look at.
#[derive(Debug, Args)]
pub(crate) struct SealStatus {
    #[command(flatten)]
    pub(crate) appliance: Appliance,
    #[command(flatten)]
    pub(crate) key: OperatorKey,
}

/// What opens the state, and what has to hold before it is given.
#[derive(Debug, Args)]
pub(crate) struct Unseal {
    #[command(flatten)]
    pub(crate) appliance: Appliance,
    /// Open it with the recovery key
    #[arg(long, conflicts_with = "share", help_heading = OWN)]
    pub(crate) recovery: bool,
    /// Give one share of the key; with enough of them the state opens
    #[arg(long, help_heading = OWN)]
    pub(crate) share: bool,
    /// Give the statement that lets this image, repository or its operators open the state (`coffer seal allow-upgrade`); with --share
    /// it is given with each share
    #[arg(long, value_name = "FILE", help_heading = OWN)]
    pub(crate) upgrade: Option<PathBuf>,
    /// Open it although it is older than what a witness knows: what was changed since is given up, and that is measured and attested
    #[arg(long, help_heading = OWN)]
    pub(crate) accept_loss: bool,
    #[command(flatten)]
    pub(crate) elsewhere: Elsewhere,
    #[command(flatten)]
    pub(crate) key: OperatorKey,
}

/// The state to make.
#[derive(Debug, Args)]
pub(crate) struct SealInit {
    #[command(flatten)]
    pub(crate) appliance: Appliance,
    #[command(flatten)]
    pub(crate) division: Option<Division>,
    /// Open it with the key of the declared key server from now on, instead of asking for a passphrase
    #[arg(long, conflicts_with_all = ["shares", "threshold"], help_heading = OWN)]
    pub(crate) peer: bool,
    /// Write the recovery key to a new file that only you can read, instead of printing it
    #[arg(long, value_name = "FILE", help_heading = OWN)]
    pub(crate) recovery_out: Option<PathBuf>,
    /// Make it although a witness knows of a state: what that held is given up, and that is measured and attested
    #[arg(long, help_heading = OWN)]
    pub(crate) accept_loss: bool,
    #[command(flatten)]
    pub(crate) elsewhere: Elsewhere,
    #[command(flatten)]
    pub(crate) key: OperatorKey,
}

/// A key in shares instead of a passphrase.
#[derive(Debug, Args)]
pub(crate) struct Division {
    /// Print so many shares of a key, each for somebody else, instead of asking for a passphrase
    #[arg(long, value_name = "N", requires = "threshold", required = false, value_parser = shares(), help_heading = OWN)]
    pub(crate) shares: u8,
    /// How many shares open the state
    #[arg(long, value_name = "M", requires = "shares", required = false, value_parser = shares(), help_heading = OWN)]
    pub(crate) threshold: u8,
}

/// What is known of the appliance from elsewhere before it gets a key.
#[derive(Debug, Args)]
pub(crate) struct Elsewhere {
    /// Go on without asking the releases how new the state has to be, where the declaration says `rollback: warn`: an older copy of the disk
    /// is then not noticed
    #[arg(long, help_heading = OWN)]
    pub(crate) without_witness: bool,
    /// The declaration that the appliance must run (a file), instead of the repository's: for when GitHub is out of reach
    #[arg(long, value_name = "FILE", conflicts_with = "commit", help_heading = OWN)]
    pub(crate) declaration: Option<PathBuf>,
}

/// Two at least: one share of one would be a key with another name.
fn shares() -> clap::builder::RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(2..=i64::from(cofferdam_protocol::unseal::MAX_SHARES))
}
