//! The command line. Data goes to standard output, everything else to standard error.

use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tdx_sim::{
    CollateralOptions, Platform, QuoteFlaw, ROOT_FILE, SEED_DISK_SERIAL, SEED_FILE, TdReport, pccs,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

/// Longest quote file that is read: a real one is about 5 KB, padded to 8 KB at most.
const MAX_QUOTE: u64 = 64 * 1024;
/// Longest certificate chain or key that is read; a chain of a server is a few KB.
const MAX_PEM: u64 = 256 * 1024;

/// A SIMULATED TDX platform for development: its quotes prove nothing about any hardware.
#[derive(Parser)]
#[command(name = "tdx-sim", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make and look at simulated machines
    #[command(subcommand)]
    Platform(PlatformCommand),
    /// Serve a machine's collateral as Intel's provisioning certification service does
    Pccs(PccsArguments),
    /// Write a quote to standard output, good or broken in one way
    Quote(QuoteArguments),
    /// Write collateral as JSON to standard output, good or broken
    Collateral(CollateralArguments),
    /// Print the MRTD of every simulated TD in hexadecimal
    Mrtd,
    /// The device process; started by tdx-sim as PID 1 only
    #[command(name = tdx_sim::init::DEVICE_ARGUMENT, hide = true)]
    Device,
}

#[derive(Subcommand)]
enum PlatformCommand {
    /// Make a new machine: a directory with its seed and its root certificate
    New {
        /// Where
        directory: PathBuf,
    },
}

#[derive(Args)]
struct PccsArguments {
    /// Address to listen on; port 0 takes any free one
    #[arg(long)]
    listen: SocketAddr,
    /// Directory of the machine
    #[arg(long)]
    platform: PathBuf,
    /// Serve over TLS with this certificate chain (PEM)
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate (PEM)
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

#[derive(Args)]
struct QuoteArguments {
    /// Directory of the machine
    #[arg(long)]
    platform: PathBuf,
    /// Quote (raw bytes) whose registers, attributes and report data are taken over
    #[arg(long)]
    like: Option<PathBuf>,
    /// Report data: 64 bytes in hexadecimal
    #[arg(long, conflicts_with = "like")]
    report_data: Option<String>,
    /// Set the DEBUG attribute
    #[arg(long)]
    debug: bool,
    /// Break the quote
    #[arg(long)]
    flaw: Option<Flaw>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Flaw {
    ForeignPck,
    ForeignPckKey,
    BrokenQeBinding,
    ForeignAttestationKey,
    TamperedBody,
    DebugQe,
}

impl From<Flaw> for QuoteFlaw {
    fn from(flaw: Flaw) -> Self {
        match flaw {
            Flaw::ForeignPck => Self::ForeignPck,
            Flaw::ForeignPckKey => Self::ForeignPckKey,
            Flaw::BrokenQeBinding => Self::BrokenQeBinding,
            Flaw::ForeignAttestationKey => Self::ForeignAttestationKey,
            Flaw::TamperedBody => Self::TamperedBody,
            Flaw::DebugQe => Self::DebugQe,
        }
    }
}

#[derive(Args)]
struct CollateralArguments {
    /// Directory of the machine
    #[arg(long)]
    platform: PathBuf,
    /// Time at which it is fetched, RFC 3339; now when absent
    #[arg(long)]
    at: Option<String>,
    /// Everything with a date ended the day before
    #[arg(long)]
    expired: bool,
    /// The machine's PCK certificate is revoked
    #[arg(long)]
    revoked_pck: bool,
    /// The machine's TCB level is revoked
    #[arg(long)]
    revoked_tcb: bool,
    /// The machine's TCB level is out of date
    #[arg(long)]
    out_of_date: bool,
}

impl Cli {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Platform(PlatformCommand::New { directory }) => new_platform(&directory),
            Command::Pccs(arguments) => serve(&arguments),
            Command::Quote(arguments) => quote(&arguments),
            Command::Collateral(arguments) => collateral(&arguments),
            Command::Mrtd => print(format!("{}\n", hex::encode(tdx_sim::mrtd())).as_bytes()),
            Command::Device => Ok(tdx_sim::init::device()?),
        }
    }
}

fn print(bytes: &[u8]) -> anyhow::Result<()> {
    io::stdout().write_all(bytes).context("standard output")
}

fn load(directory: &Path) -> anyhow::Result<Platform> {
    Platform::load(directory).with_context(|| format!("no simulated machine in {}", directory.display()))
}

fn new_platform(directory: &Path) -> anyhow::Result<()> {
    Platform::create(directory)?;
    eprintln!("made a SIMULATED machine:");
    eprintln!(
        "  {}  its secret: attach it as a read-only virtio-blk disk, serial {SEED_DISK_SERIAL}",
        directory.join(SEED_FILE).display()
    );
    eprintln!(
        "  {}  its root certificate: name it where its quotes are to be accepted",
        directory.join(ROOT_FILE).display()
    );
    Ok(())
}

fn serve(arguments: &PccsArguments) -> anyhow::Result<()> {
    let platform = load(&arguments.platform)?;
    let tls = match (&arguments.tls_cert, &arguments.tls_key) {
        (Some(certificate), Some(key)) => Some(acceptor(certificate, key)?),
        _ => None,
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(arguments.listen)
            .await
            .with_context(|| format!("cannot listen on {}", arguments.listen))?;
        print(format!("SIMULATED collateral at {scheme}://{}\n", listener.local_addr()?).as_bytes())?;
        tokio::select! {
            served = pccs::serve(listener, tls, platform, pccs::system_clock) => Ok(served?),
            stopped = tokio::signal::ctrl_c() => Ok(stopped?),
        }
    })
}

fn acceptor(certificate: &Path, key: &Path) -> anyhow::Result<TlsAcceptor> {
    let chain = CertificateDer::pem_slice_iter(&read(certificate, MAX_PEM)?)
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("no certificate chain in {}", certificate.display()))?;
    let key = PrivateKeyDer::from_pem_slice(&read(key, MAX_PEM)?)
        .with_context(|| format!("no private key in {}", key.display()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("the certificate and the key do not fit")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn quote(arguments: &QuoteArguments) -> anyhow::Result<()> {
    let platform = load(&arguments.platform)?;
    let mut report = match &arguments.like {
        Some(path) => like(path)?,
        None => {
            let mut report_data = [0; 64];
            if let Some(text) = &arguments.report_data {
                hex::decode_to_slice(text, &mut report_data).context("--report-data is not 64 bytes")?;
            }
            TdReport::new([[0; 48]; 4], report_data)
        }
    };
    if arguments.debug {
        report = report.with_debug();
    }
    let quote = match arguments.flaw {
        None => platform.quote(&report),
        Some(flaw) => platform.flawed_quote(&report, flaw.into())?,
    };
    print(&quote)
}

/// Reads a file of at most `limit` bytes. A regular one is refused before it is read.
fn read(path: &Path, limit: u64) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let named = || path.display().to_string();
    let file = File::open(path).with_context(named)?;
    let about = file.metadata().with_context(named)?;
    let mut bytes = Zeroizing::new(Vec::new());
    if !about.is_file() || about.len() <= limit {
        match cofferdam_protocol::read::bounded_into(file, limit, &mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {}
            other => return other.with_context(named).map(|()| bytes),
        }
    }
    anyhow::bail!("{} has more than {limit} bytes", path.display())
}

fn like(path: &Path) -> anyhow::Result<TdReport> {
    let bytes = read(path, MAX_QUOTE)?;
    let quote = cofferdam_attest::quote::parse(&bytes).with_context(|| path.display().to_string())?;
    Ok(TdReport {
        mrtd: quote.mrtd,
        rtmr: quote.rtmr,
        report_data: quote.report_data,
        td_attributes: quote.td_attributes,
        xfam: quote.xfam,
        mr_config_id: quote.mr_config_id,
        mr_owner: quote.mr_owner,
        mr_owner_config: quote.mr_owner_config,
    })
}

fn collateral(arguments: &CollateralArguments) -> anyhow::Result<()> {
    let platform = load(&arguments.platform)?;
    let now = match &arguments.at {
        None => pccs::system_clock(),
        Some(text) => {
            let at = OffsetDateTime::parse(text, &Rfc3339).context("--at is not a time as in RFC 3339")?;
            u64::try_from(at.unix_timestamp()).context("--at is before 1970")?
        }
    };
    let base = if arguments.expired { CollateralOptions::expired() } else { CollateralOptions::default() };
    let options = CollateralOptions {
        revoked_pck: arguments.revoked_pck,
        revoked_tcb: arguments.revoked_tcb,
        out_of_date: arguments.out_of_date,
        ..base
    };
    print(platform.collateral(now, options)?.to_json()?.as_bytes())
}
