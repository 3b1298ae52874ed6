//! Quotes and logs of real hardware, kept beside the checkout; a test that needs them says so when they are absent.

use std::path::{Path, PathBuf};

fn read(parts: &[&str]) -> Option<Vec<Vec<u8>>> {
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures/tdx-hardware");
    let files: Option<Vec<_>> = parts.iter().map(|part| std::fs::read(root.join(part)).ok()).collect();
    if files.is_none() {
        eprintln!("skipped: {} absent", parts.join(", "));
    }
    files
}

/// CCEL area and quote (padded by the guest interface) of a Google Container-Optimized OS machine.
pub(crate) fn cos_113() -> Option<(Vec<u8>, Vec<u8>)> {
    let mut files =
        read(&["google-cos-113/ccel_data.dat", "google-cos-113/cos-113-tdx-quote.dat"])?.into_iter();
    Some((files.next()?, files.next()?))
}

/// Quote (padded by the guest interface) and collateral of a machine in production, valid at [`PHALA_AT`].
pub(crate) fn phala() -> Option<(Vec<u8>, Vec<u8>)> {
    let mut files = read(&["phala-sample/tdx_quote", "phala-sample/tdx_quote_collateral.json"])?.into_iter();
    Some((files.next()?, files.next()?))
}

/// 2025-07-01T00:00:00Z.
pub(crate) const PHALA_AT: u64 = 1_751_328_000;
