//! One simulated machine: its seed, its certificates, its quotes and its collateral.
//!
//! A machine is 32 secret bytes. On a real one they are fuses in the processor, owned by whoever owns the host; here
//! they are a file that the host attaches to the guest as a read-only virtio-blk disk with the serial
//! [`SEED_DISK_SERIAL`]. Only the simulated device reads that disk: to the appliance it does not exist, just as the
//! fuses do not.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

use crate::certificates::Certificates;
use crate::collateral::{self, Collateral, CollateralOptions};
use crate::keys::{Key, KeyError, SEED_LENGTH, Seed};
use crate::machine::Machine;
use crate::quote::{QuoteFlaw, Signer, TdReport};

/// Serial number of the virtio-blk disk that carries the seed into the simulator's guest (at most 20 bytes, virtio 1.2 §5.2.6).
pub const SEED_DISK_SERIAL: &str = "tdx-sim-seed";
/// The seed's file in a platform directory: 32 bytes, 0600.
pub const SEED_FILE: &str = "platform.seed";
/// The development root's file in a platform directory: PEM.
pub const ROOT_FILE: &str = "root.pem";
/// Longest seed file or disk that is read: the seed and what fills a disk's sector.
const SEED_FILE_LIMIT: u64 = 4096;

/// Why a machine cannot be made or cannot speak.
#[derive(Debug, Error)]
pub enum PlatformError {
    /// The seed is unusable.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A certificate or revocation list cannot be written.
    #[error("a certificate cannot be made")]
    Certificate(#[from] rcgen::Error),
    /// A time outside what a certificate can hold.
    #[error("the time is out of range")]
    Time,
    /// The collateral cannot be written as JSON.
    #[error("the collateral cannot be written")]
    Json(#[from] serde_json::Error),
    /// A file of the platform directory.
    #[error("{path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system has no randomness for a new seed.
    #[error("no randomness for a new seed")]
    Random,
}

impl From<time::error::ComponentRange> for PlatformError {
    fn from(_: time::error::ComponentRange) -> Self {
        Self::Time
    }
}

impl From<time::error::Format> for PlatformError {
    fn from(_: time::error::Format) -> Self {
        Self::Time
    }
}

/// A simulated machine.
pub struct Platform {
    seed: Seed,
    machine: Machine,
    certificates: Certificates,
    attestation_key: Key,
}

impl Platform {
    /// The machine that `seed` is. The same seed gives the same certificates and, for the same input, the same quotes
    /// and collateral, to the byte.
    pub fn from_seed(seed: Seed) -> Result<Self, PlatformError> {
        let machine = Machine::new(&seed);
        let certificates = Certificates::new(&seed, &machine)?;
        let attestation_key = seed.key("attestation")?;
        Ok(Self { seed, machine, certificates, attestation_key })
    }

    /// Makes a new machine: writes `platform.seed` and `root.pem` into `directory`, which is created. An existing seed is
    /// never overwritten: it would be another machine under the same name.
    pub fn create(directory: &Path) -> Result<Self, PlatformError> {
        let mut seed = Zeroizing::new([0u8; SEED_LENGTH]);
        getrandom::fill(seed.as_mut()).map_err(|_| PlatformError::Random)?;
        let platform = Self::from_seed(Seed::from_bytes(seed.as_ref())?)?;

        std::fs::create_dir_all(directory).map_err(at(directory))?;
        write_new(&directory.join(SEED_FILE), 0o600, seed.as_ref())?;
        let root = directory.join(ROOT_FILE);
        std::fs::write(&root, platform.root_pem()).map_err(at(&root))?;
        Ok(platform)
    }

    /// The machine whose seed lies in `directory`.
    pub fn load(directory: &Path) -> Result<Self, PlatformError> {
        Self::from_seed(read_seed(&directory.join(SEED_FILE))?)
    }

    /// The development root certificate, DER.
    pub fn root_der(&self) -> Vec<u8> {
        self.certificates.root.der().to_vec()
    }

    /// The development root certificate, PEM: what `--root` takes.
    pub fn root_pem(&self) -> String {
        self.certificates.root.pem()
    }

    /// PCK, platform CA and root as PEM.
    pub fn pck_chain_pem(&self) -> String {
        self.certificates.pck_chain()
    }

    /// The collateral that a verifier would fetch at `now` (Unix seconds).
    pub fn collateral(&self, now: u64, options: CollateralOptions) -> Result<Collateral, PlatformError> {
        collateral::collateral(&self.certificates, now, options)
    }

    /// A quote over `report`.
    pub fn quote(&self, report: &TdReport) -> Vec<u8> {
        self.signer(None).quote(report, None)
    }

    /// A quote over `report` that a verifier must refuse.
    pub fn flawed_quote(&self, report: &TdReport, flaw: QuoteFlaw) -> Result<Vec<u8>, PlatformError> {
        let foreign =
            Self::from_seed(Seed::from_bytes(&self.seed.identifier::<SEED_LENGTH>("foreign machine"))?)?;
        let signer = self.signer(Some((&foreign.certificates, &foreign.attestation_key)));
        Ok(signer.quote(report, Some(flaw)))
    }

    fn signer<'a>(&'a self, foreign: Option<(&'a Certificates, &'a Key)>) -> Signer<'a> {
        Signer {
            machine: &self.machine,
            certificates: &self.certificates,
            attestation_key: &self.attestation_key,
            foreign,
        }
    }
}

/// Reads a seed from a file, or from the beginning of a block device.
pub fn read_seed(path: &Path) -> Result<Seed, PlatformError> {
    let file = std::fs::File::open(path).map_err(at(path))?;
    let about = file.metadata().map_err(at(path))?;
    if about.is_file() && about.len() > SEED_FILE_LIMIT {
        let what = format!("more than {SEED_FILE_LIMIT} bytes");
        return Err(at(path)(io::Error::new(io::ErrorKind::FileTooLarge, what)));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(SEED_FILE_LIMIT).read_to_end(&mut bytes).map_err(at(path))?;
    Ok(Seed::from_bytes(&bytes)?)
}

fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), PlatformError> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(at(path))?;
    file.write_all(bytes).map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> PlatformError {
    let path = path.to_owned();
    move |source| PlatformError::File { path, source }
}
