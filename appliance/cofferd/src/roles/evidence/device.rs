//! The quote device: Linux configfs `tsm/report` (Documentation/ABI/testing/configfs-tsm-report).
//!
//! One directory per request: write `inblob` (64 bytes of report_data), read `outblob` (the quote). The kernel
//! counts writes in `generation`; a quote counts only when exactly our one write lies between the count before
//! and the count after, so that a quote over somebody else's report_data is never taken for ours. The directory
//! is removed whatever happens, and what a killed predecessor left is removed at start.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Directories of this program begin with this, so that clearing up never touches another's.
const PREFIX: &str = "cofferdam-";

/// Largest accepted quote in bytes. Real TDX quotes are about 5 KiB; the kernel's own buffer is 32 KiB at most
/// (TSM_OUTBLOB_MAX).
const MAX_QUOTE: u64 = 32 * 1024;

/// Attempts per request. A second one is needed only when another holder of the device wrote in between or the
/// device was busy; more than a few mean that something is wrong.
const ATTEMPTS: u32 = 5;

/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Requests of this program at one time: one, and those that the device has not answered and nobody waits for any more.
const MAX_REQUESTS: u32 = 64;

/// Why no quote came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    /// A step on the request's directory failed.
    #[error("quote device: cannot {step}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// `generation` is not a decimal number.
    #[error("quote device: `generation` is not a number")]
    Generation,
    /// Somebody else wrote to our directory, or the device was busy, at every attempt.
    #[error("quote device: no undisturbed quote in {ATTEMPTS} attempts")]
    Disturbed,
    /// The quote is larger than any real one.
    #[error("quote device: more than {MAX_QUOTE} bytes of quote")]
    TooLarge,
    /// The device gave nothing.
    #[error("quote device: empty quote")]
    Empty,
    /// The attempts did not end in time.
    #[error("quote device: no quote in time")]
    TimedOut,
}

/// The file operations that a request needs. The kernel's are [`Configfs`].
pub(crate) trait Reports: Send + Sync {
    /// Names of the directories that are there.
    ///
    /// # Errors
    /// What the file system says; so with every other operation.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes a request.
    fn create(&self, request: &str) -> io::Result<()>;
    /// Ends a request.
    fn remove(&self, request: &str) -> io::Result<()>;
    /// Writes a request's file in one piece.
    fn write(&self, request: &str, file: &str, bytes: &[u8]) -> io::Result<()>;
    /// Reads a request's file, at most `limit` bytes of it.
    fn read(&self, request: &str, file: &str, limit: u64) -> io::Result<Vec<u8>>;
}

/// The kernel's report directory.
#[derive(Debug)]
pub(crate) struct Configfs {
    root: PathBuf,
}

impl Configfs {
    /// The report directory at `root`.
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }
}

impl Reports for Configfs {
    fn list(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.root)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, request: &str) -> io::Result<()> {
        fs::create_dir(self.root.join(request))
    }

    fn remove(&self, request: &str) -> io::Result<()> {
        // A configfs directory goes with the files that the kernel shows in it.
        fs::remove_dir(self.root.join(request))
    }

    fn write(&self, request: &str, file: &str, bytes: &[u8]) -> io::Result<()> {
        // The kernel takes the whole blob when the file is closed.
        OpenOptions::new().write(true).open(self.root.join(request).join(file))?.write_all(bytes)
    }

    fn read(&self, request: &str, file: &str, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        fs::File::open(self.root.join(request).join(file))?.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// The quote device.
pub(crate) struct Device<R = Configfs> {
    reports: R,
}

impl<R: Reports> Device<R> {
    /// The device behind these reports.
    pub(crate) fn new(reports: R) -> Self {
        Self { reports }
    }

    /// Removes the requests that a killed predecessor left behind; returns how many.
    ///
    /// # Errors
    /// When they cannot be listed or removed.
    pub(crate) fn clear(&self) -> Result<usize, DeviceError> {
        let names =
            self.reports.list().map_err(|source| DeviceError::Io { step: "list the requests", source })?;
        let leftovers: Vec<_> = names.iter().filter(|name| name.starts_with(PREFIX)).collect();
        for name in &leftovers {
            self.reports
                .remove(name)
                .map_err(|source| DeviceError::Io { step: "remove a leftover request", source })?;
        }
        Ok(leftovers.len())
    }

    /// A quote over `report_data`. Blocks: the stock TDX driver polls its quote buffer once a second.
    ///
    /// # Errors
    /// [`DeviceError`]; nothing is left behind in any case.
    pub(crate) fn quote(&self, report_data: &[u8; 64], limit: Duration) -> Result<Vec<u8>, DeviceError> {
        let started = Instant::now();
        for _ in 0..ATTEMPTS {
            if started.elapsed() >= limit {
                return Err(DeviceError::TimedOut);
            }
            if let Some(quote) = self.attempt(report_data)? {
                return Ok(quote);
            }
            std::thread::sleep(PAUSE);
        }
        Err(DeviceError::Disturbed)
    }

    /// One directory, one write, one read; `None` when it is worth another attempt.
    fn attempt(&self, report_data: &[u8; 64]) -> Result<Option<Vec<u8>>, DeviceError> {
        let request = Request::create(&self.reports)?;
        let before = request.generation()?;
        match self.reports.write(&request.name, "inblob", report_data) {
            Err(error) if is_busy(&error) => return Ok(None),
            outcome => outcome.map_err(|source| DeviceError::Io { step: "write `inblob`", source })?,
        }
        let quote = match self.reports.read(&request.name, "outblob", MAX_QUOTE.saturating_add(1)) {
            Err(error) if is_busy(&error) => return Ok(None),
            outcome => outcome.map_err(|source| DeviceError::Io { step: "read `outblob`", source })?,
        };
        if request.generation()? != before.wrapping_add(1) {
            return Ok(None);
        }
        if quote.is_empty() {
            return Err(DeviceError::Empty);
        }
        if u64::try_from(quote.len()).unwrap_or(u64::MAX) > MAX_QUOTE {
            return Err(DeviceError::TooLarge);
        }
        Ok(Some(quote))
    }
}

/// What the kernel answers when the report changed under the reader or the module is occupied.
fn is_busy(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy | io::ErrorKind::Interrupted
    )
}

/// One request's directory; removed on drop.
struct Request<'a, R: Reports> {
    reports: &'a R,
    name: String,
}

impl<'a, R: Reports> Request<'a, R> {
    /// Of the first name that is free: the kernel may remember each name that was asked for, in memory of this role's.
    fn create(reports: &'a R) -> Result<Self, DeviceError> {
        let mut last = io::ErrorKind::AlreadyExists.into();
        for number in 0..MAX_REQUESTS {
            let name = format!("{PREFIX}{}-{number}", std::process::id());
            match reports.create(&name) {
                Ok(()) => return Ok(Self { reports, name }),
                Err(error) => last = error,
            }
            if last.kind() != io::ErrorKind::AlreadyExists {
                break;
            }
        }
        Err(DeviceError::Io { step: "make a request", source: last })
    }

    fn generation(&self) -> Result<u64, DeviceError> {
        let text = self
            .reports
            .read(&self.name, "generation", 32)
            .map_err(|source| DeviceError::Io { step: "read `generation`", source })?;
        std::str::from_utf8(&text)
            .ok()
            .and_then(|text| text.trim_end().parse().ok())
            .ok_or(DeviceError::Generation)
    }
}

impl<R: Reports> Drop for Request<'_, R> {
    fn drop(&mut self) {
        // What cannot be removed now is removed by `Device::clear` at the next start.
        if let Err(error) = self.reports.remove(&self.name) {
            eprintln!("evidence: cannot remove {}: {error}", self.name);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Mutex;

    use super::*;

    /// What a request of the fake holds: the number of writes and the last blob.
    type Requests = BTreeMap<String, (u64, Vec<u8>)>;

    /// A device in memory that quotes with `quote` and misbehaves as `mischief` says, once per entry.
    pub(crate) struct Fake<F> {
        pub(crate) requests: Mutex<Requests>,
        pub(crate) mischief: Mutex<Vec<Mischief>>,
        pub(crate) quote: F,
        /// All that were ever asked for.
        names: Mutex<BTreeSet<String>>,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Mischief {
        /// Somebody else writes between our write and our read.
        Intrude,
        /// The module is occupied.
        Busy,
        /// Reading fails for good.
        Fail,
        /// Reading takes this long.
        Hang(Duration),
    }

    impl<F: Fn(&[u8]) -> Vec<u8>> Fake<F> {
        pub(crate) fn new(quote: F) -> Self {
            Self { requests: Mutex::default(), mischief: Mutex::default(), quote, names: Mutex::default() }
        }

        fn with(self, mischief: &[Mischief]) -> Self {
            *self.mischief.lock().unwrap() = mischief.iter().rev().copied().collect();
            self
        }
    }

    impl<F: Fn(&[u8]) -> Vec<u8> + Send + Sync> Reports for Fake<F> {
        fn list(&self) -> io::Result<Vec<String>> {
            Ok(self.requests.lock().unwrap().keys().cloned().collect())
        }

        fn create(&self, request: &str) -> io::Result<()> {
            let mut requests = self.requests.lock().unwrap();
            if requests.contains_key(request) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            self.names.lock().unwrap().insert(request.to_owned());
            requests.insert(request.to_owned(), (7, Vec::new()));
            Ok(())
        }

        fn remove(&self, request: &str) -> io::Result<()> {
            self.requests.lock().unwrap().remove(request).map(drop).ok_or(io::ErrorKind::NotFound.into())
        }

        fn write(&self, request: &str, file: &str, bytes: &[u8]) -> io::Result<()> {
            assert_eq!(file, "inblob");
            let mut requests = self.requests.lock().unwrap();
            let (generation, blob) = requests.get_mut(request).ok_or(io::ErrorKind::NotFound)?;
            *generation += 1;
            *blob = bytes.to_vec();
            Ok(())
        }

        fn read(&self, request: &str, file: &str, limit: u64) -> io::Result<Vec<u8>> {
            if file == "outblob" {
                let mischief = self.mischief.lock().unwrap().pop();
                match mischief {
                    Some(Mischief::Intrude) => {
                        self.requests.lock().unwrap().get_mut(request).unwrap().0 += 1;
                    }
                    Some(Mischief::Busy) => return Err(io::ErrorKind::ResourceBusy.into()),
                    Some(Mischief::Fail) => return Err(io::ErrorKind::InvalidInput.into()),
                    Some(Mischief::Hang(time)) => std::thread::sleep(time),
                    None => {}
                }
            }
            let (generation, blob) =
                self.requests.lock().unwrap().get(request).cloned().ok_or(io::ErrorKind::NotFound)?;
            let mut bytes = match file {
                "generation" => format!("{generation}\n").into_bytes(),
                "outblob" => (self.quote)(&blob),
                _ => return Err(io::ErrorKind::NotFound.into()),
            };
            bytes.truncate(limit.try_into().unwrap());
            Ok(bytes)
        }
    }

    fn echo(blob: &[u8]) -> Vec<u8> {
        [b"quote over ", blob].concat()
    }

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn a_quote_is_over_what_was_written_and_leaves_nothing() {
        let device = Device::new(Fake::new(echo));
        assert_eq!(device.quote(&[3; 64], LIMIT).unwrap(), echo(&[3; 64]));
        assert!(device.reports.requests.lock().unwrap().is_empty());
    }

    #[test]
    fn a_disturbed_quote_is_made_again() {
        let device = Device::new(Fake::new(echo).with(&[Mischief::Intrude, Mischief::Busy]));
        assert_eq!(device.quote(&[4; 64], LIMIT).unwrap(), echo(&[4; 64]));
        assert!(device.reports.requests.lock().unwrap().is_empty());

        let device = Device::new(Fake::new(echo).with(&[Mischief::Intrude; 5]));
        assert!(matches!(device.quote(&[4; 64], LIMIT), Err(DeviceError::Disturbed)));
        assert!(device.reports.requests.lock().unwrap().is_empty());
    }

    #[test]
    fn a_failure_is_an_error_and_leaves_nothing() {
        let device = Device::new(Fake::new(echo).with(&[Mischief::Fail]));
        assert!(matches!(device.quote(&[5; 64], LIMIT), Err(DeviceError::Io { step: "read `outblob`", .. })));
        assert!(device.reports.requests.lock().unwrap().is_empty());
    }

    #[test]
    fn time_is_bounded() {
        let late = [Mischief::Busy; 5];
        let device = Device::new(Fake::new(echo).with(&late));
        assert!(matches!(device.quote(&[5; 64], Duration::ZERO), Err(DeviceError::TimedOut)));
    }

    #[test]
    fn nothing_and_too_much_are_no_quotes() {
        let empty = Device::new(Fake::new(|_: &[u8]| Vec::new()));
        assert!(matches!(empty.quote(&[0; 64], LIMIT), Err(DeviceError::Empty)));
        let huge = Device::new(Fake::new(|_: &[u8]| vec![0; 1 << 20]));
        assert!(matches!(huge.quote(&[0; 64], LIMIT), Err(DeviceError::TooLarge)));
    }

    #[test]
    fn many_quotes_need_one_name_and_one_that_is_taken_is_passed_over() {
        let device = Device::new(Fake::new(echo));
        for _ in 0..100 {
            device.quote(&[6; 64], LIMIT).unwrap();
        }
        let first = format!("{PREFIX}{}-0", std::process::id());
        assert_eq!(*device.reports.names.lock().unwrap(), [first.clone()].into());
        // Of one that the device has not answered yet.
        device.reports.create(&first).unwrap();
        device.quote(&[6; 64], LIMIT).unwrap();
        assert_eq!(device.reports.names.lock().unwrap().len(), 2);
        assert_eq!(device.reports.list().unwrap(), [first], "it is left alone");
        for number in 1..MAX_REQUESTS {
            device.reports.create(&format!("{PREFIX}{}-{number}", std::process::id())).unwrap();
        }
        let refused = device.quote(&[6; 64], LIMIT);
        assert!(matches!(refused, Err(DeviceError::Io { step: "make a request", .. })), "{refused:?}");
    }

    #[test]
    fn leftovers_of_a_predecessor_are_removed_and_nothing_else() {
        let fake = Fake::new(echo);
        for name in ["cofferdam-17-0", "cofferdam-17-1", "another"] {
            fake.create(name).unwrap();
        }
        let device = Device::new(fake);
        assert_eq!(device.clear().unwrap(), 2);
        assert_eq!(device.reports.list().unwrap(), ["another"]);
    }

    #[test]
    fn the_kernels_files_are_read_and_written_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let reports = Configfs::new(directory.path());
        reports.create("r").unwrap();
        // The kernel makes the files; writing must not.
        assert!(reports.write("r", "inblob", &[1]).is_err());
        fs::write(directory.path().join("r/inblob"), b"").unwrap();
        reports.write("r", "inblob", &[1; 64]).unwrap();
        assert_eq!(reports.read("r", "inblob", 10).unwrap(), [1; 10]);
        assert_eq!(reports.list().unwrap(), ["r"]);
        fs::remove_file(directory.path().join("r/inblob")).unwrap();
        reports.remove("r").unwrap();
        assert!(reports.list().unwrap().is_empty());
    }
}
