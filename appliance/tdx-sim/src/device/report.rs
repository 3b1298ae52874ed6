//! `/sys/kernel/config/tsm/report`: attestation reports on request.
//!
//! ABI: Documentation/ABI/testing/configfs-tsm-report, provider `tdx_guest`. `mkdir NAME` makes a request with four
//! files: `inblob` (write once 64 bytes of report data), `outblob` (read the quote), `generation` (counts writes),
//! `provider`. What the document leaves open follows configfs and the driver:
//! - a write is collected while the file is open and takes effect when it is closed, an error then is lost;
//! - more than 64 bytes are `EFBIG`, reading and writing through one descriptor is `ETXTBSY`;
//! - the first read through a descriptor takes the content, later reads of it see the same bytes;
//! - `outblob` is `EINVAL` without input or when the input is not 64 bytes; it is made when read, and again only after
//!   another write;
//! - `generation` stops counting (the write is dropped, `EBUSY` in the driver) before it could come round to the
//!   generation that was last read;
//! - a file of a removed request is `ENOENT`, also through a descriptor that is still open.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use super::Td;
use super::node::{Node, ROOT, Tree, window};

/// `TSM_REPORT_INBLOB_MAX`.
const INBLOB_MAX: usize = 64;
/// `TSM_REPORT_OUTBLOB_MAX`, what `stat` shows for the quote.
const OUTBLOB_MAX: u64 = 32 * 1024;
/// A text attribute shows as one page.
const PAGE: u64 = 4096;
/// Requests that may exist at once. The appliance has one; without a bound a caller could fill the device's memory.
const MAX_REQUESTS: usize = 64;
/// Descriptors that may be open at once, for the same reason.
const MAX_OPEN: usize = 1024;
/// Longest name: what any Linux file system takes.
const MAX_NAME: usize = 255;

/// Inode numbers of one request: a directory and its four files.
const STRIDE: u64 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum File {
    Inblob,
    Outblob,
    Generation,
    Provider,
}

const FILES: [(File, &str); 4] = [
    (File::Inblob, "inblob"),
    (File::Outblob, "outblob"),
    (File::Generation, "generation"),
    (File::Provider, "provider"),
];

impl File {
    fn node(self, request: u64) -> Node {
        let ino = request.saturating_add(1).saturating_add(self as u64);
        match self {
            Self::Inblob => Node::file(ino, 0o200, INBLOB_MAX as u64),
            Self::Outblob => Node::file(ino, 0o444, OUTBLOB_MAX),
            Self::Generation | Self::Provider => Node::file(ino, 0o444, PAGE),
        }
    }
}

/// One `mkdir`.
struct Request {
    name: String,
    inblob: Vec<u8>,
    outblob: Option<Vec<u8>>,
    write_generation: u64,
    read_generation: u64,
}

/// One open descriptor.
enum Open {
    Untouched,
    Reading(Vec<u8>),
    /// The bytes, and whether some of them are not yet handed to the request.
    Writing(Vec<u8>, bool),
}

#[derive(Default)]
struct State {
    /// By inode number of the directory.
    requests: BTreeMap<u64, Request>,
    open: BTreeMap<u64, Open>,
    /// How many requests there ever were: inode numbers are not used twice.
    made: u64,
}

/// The tree below `/sys/kernel/config/tsm/report`.
pub struct Reports {
    td: Td,
    state: Mutex<State>,
}

impl Reports {
    /// Reports about `td`.
    pub fn new(td: Td) -> Self {
        Self { td, state: Mutex::new(State::default()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands what was written through `handle` to its request.
    fn commit(&self, ino: u64, handle: u64) {
        let state = &mut *self.lock();
        let Some(Open::Writing(bytes, pending @ true)) = state.open.get_mut(&handle) else { return };
        *pending = false;
        if let Some(request) = state.requests.get_mut(&directory_of(ino)) {
            request.write(bytes.clone());
        }
    }
}

impl Request {
    fn write(&mut self, inblob: Vec<u8>) {
        if self.write_generation == self.read_generation.wrapping_sub(1) {
            return; // EBUSY in the driver; configfs drops the error of a closed file
        }
        self.write_generation = self.write_generation.wrapping_add(1);
        self.inblob = inblob;
    }

    fn read(&mut self, file: File, td: &Td) -> Result<Vec<u8>, Errno> {
        match file {
            File::Inblob => Err(Errno::EACCES),
            File::Provider => Ok(b"tdx_guest\n".to_vec()),
            File::Generation => Ok(format!("{}\n", self.write_generation).into_bytes()),
            File::Outblob => {
                let report_data: &[u8; 64] = self.inblob.as_slice().try_into().map_err(|_| Errno::EINVAL)?;
                if self.outblob.is_none() || self.read_generation != self.write_generation {
                    self.outblob = Some(td.quote(report_data));
                    self.read_generation = self.write_generation;
                }
                self.outblob.clone().ok_or(Errno::EINVAL)
            }
        }
    }
}

/// Inode number of the request that `ino` belongs to.
fn directory_of(ino: u64) -> u64 {
    ino - ino % STRIDE
}

fn file_of(ino: u64) -> Result<File, Errno> {
    let number = (ino % STRIDE).checked_sub(1).ok_or(Errno::EISDIR)?;
    let file = usize::try_from(number).ok().and_then(|number| FILES.get(number));
    file.map(|(file, _)| *file).ok_or(Errno::ENOENT)
}

impl Tree for Reports {
    fn lookup(&self, parent: u64, name: &str) -> Result<Node, Errno> {
        let children = self.children(parent)?;
        children.into_iter().find(|(_, child)| child == name).map(|(node, _)| node).ok_or(Errno::ENOENT)
    }

    fn node(&self, ino: u64) -> Result<Node, Errno> {
        if ino == ROOT {
            return Ok(Node::directory(ROOT));
        }
        let directory = directory_of(ino);
        if !self.lock().requests.contains_key(&directory) {
            return Err(Errno::ENOENT);
        }
        if ino == directory { Ok(Node::directory(ino)) } else { Ok(file_of(ino)?.node(directory)) }
    }

    fn children(&self, ino: u64) -> Result<Vec<(Node, String)>, Errno> {
        let state = self.lock();
        if ino == ROOT {
            let requests = state.requests.iter();
            return Ok(requests
                .map(|(ino, request)| (Node::directory(*ino), request.name.clone()))
                .collect());
        }
        if !state.requests.contains_key(&ino) {
            return Err(Errno::ENOENT);
        }
        Ok(FILES.iter().map(|(file, name)| (file.node(ino), (*name).to_owned())).collect())
    }

    fn make_directory(&self, parent: u64, name: &str) -> Result<Node, Errno> {
        if parent != ROOT {
            return Err(Errno::EPERM);
        }
        if name.len() > MAX_NAME {
            return Err(Errno::ENAMETOOLONG);
        }
        let mut state = self.lock();
        if state.requests.values().any(|request| request.name == name) {
            return Err(Errno::EEXIST);
        }
        if state.requests.len() >= MAX_REQUESTS {
            return Err(Errno::ENOMEM);
        }
        state.made = state.made.saturating_add(1);
        let ino = state.made.saturating_mul(STRIDE);
        let request = Request {
            name: name.to_owned(),
            inblob: Vec::new(),
            outblob: None,
            write_generation: 0,
            read_generation: 0,
        };
        state.requests.insert(ino, request);
        Ok(Node::directory(ino))
    }

    fn remove_directory(&self, parent: u64, name: &str) -> Result<(), Errno> {
        if parent != ROOT {
            return Err(Errno::ENOTDIR);
        }
        let mut state = self.lock();
        let found = state.requests.iter().find(|(_, request)| request.name == name).map(|(ino, _)| *ino);
        state.requests.remove(&found.ok_or(Errno::ENOENT)?);
        Ok(())
    }

    fn open(&self, ino: u64, handle: u64) -> Result<(), Errno> {
        let mut state = self.lock();
        if !state.requests.contains_key(&directory_of(ino)) {
            return Err(Errno::ENOENT);
        }
        if state.open.len() >= MAX_OPEN {
            return Err(Errno::ENFILE);
        }
        state.open.insert(handle, Open::Untouched);
        Ok(())
    }

    fn read(&self, ino: u64, handle: u64, offset: u64, size: usize) -> Result<Vec<u8>, Errno> {
        let file = file_of(ino)?;
        let state = &mut *self.lock();
        let request = state.requests.get_mut(&directory_of(ino)).ok_or(Errno::ENOENT)?;
        let open = state.open.get_mut(&handle).ok_or(Errno::EBADF)?;
        match open {
            Open::Writing(..) => return Err(Errno::ETXTBSY),
            Open::Reading(_) => (),
            Open::Untouched => *open = Open::Reading(request.read(file, &self.td)?),
        }
        match open {
            Open::Reading(content) => Ok(window(content, offset, size)),
            _ => Err(Errno::EBADF),
        }
    }

    fn write(&self, ino: u64, handle: u64, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        if file_of(ino)? != File::Inblob {
            return Err(Errno::EACCES);
        }
        let offset = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
        let end = offset.saturating_add(data.len());
        if end > INBLOB_MAX {
            return Err(Errno::EFBIG);
        }
        let state = &mut *self.lock();
        if !state.requests.contains_key(&directory_of(ino)) {
            return Err(Errno::ENOENT);
        }
        let open = state.open.get_mut(&handle).ok_or(Errno::EBADF)?;
        if let Open::Untouched = open {
            *open = Open::Writing(Vec::new(), false);
        }
        let Open::Writing(bytes, pending) = open else { return Err(Errno::ETXTBSY) };
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        for (to, from) in bytes.iter_mut().skip(offset).zip(data) {
            *to = *from;
        }
        *pending = true;
        Ok(data.len())
    }

    fn flush(&self, ino: u64, handle: u64) {
        self.commit(ino, handle);
    }

    fn release(&self, ino: u64, handle: u64) {
        self.commit(ino, handle);
        self.lock().open.remove(&handle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Seed;
    use crate::platform::Platform;

    fn tree() -> Reports {
        let platform = Platform::from_seed(Seed::from_bytes(&[1; 32]).unwrap()).unwrap();
        Reports::new(Td::new(platform, [[1; 48], [2; 48], [3; 48], [4; 48]]))
    }

    fn write(tree: &Reports, directory: &Node, bytes: &[u8]) -> Result<usize, Errno> {
        let file = tree.lookup(directory.ino, "inblob").unwrap();
        tree.open(file.ino, 99).unwrap();
        let written = tree.write(file.ino, 99, 0, bytes);
        tree.flush(file.ino, 99);
        tree.release(file.ino, 99);
        written
    }

    fn read(tree: &Reports, directory: &Node, name: &str) -> Result<Vec<u8>, Errno> {
        let file = tree.lookup(directory.ino, name).unwrap();
        tree.open(file.ino, 98).unwrap();
        let content = tree.read(file.ino, 98, 0, 1 << 20);
        tree.release(file.ino, 98);
        content
    }

    #[test]
    fn a_request_gives_a_quote_over_its_input_and_the_registers() {
        let tree = tree();
        let entry = tree.make_directory(ROOT, "request").unwrap();
        assert_eq!(read(&tree, &entry, "provider").unwrap(), b"tdx_guest\n");
        assert_eq!(read(&tree, &entry, "generation").unwrap(), b"0\n");
        assert_eq!(read(&tree, &entry, "outblob"), Err(Errno::EINVAL));

        assert_eq!(write(&tree, &entry, &[7; 64]), Ok(64));
        assert_eq!(read(&tree, &entry, "generation").unwrap(), b"1\n");
        let quote = cofferdam_attest::quote::parse(&read(&tree, &entry, "outblob").unwrap()).unwrap();
        assert_eq!(quote.report_data, [7; 64]);
        assert_eq!(quote.rtmr, tree.td.rtmr());
        assert_eq!(quote.mrtd, crate::mrtd());
    }

    #[test]
    fn a_quote_is_made_once_per_write() {
        let tree = tree();
        let entry = tree.make_directory(ROOT, "request").unwrap();
        write(&tree, &entry, &[7; 64]).unwrap();
        let first = read(&tree, &entry, "outblob").unwrap();
        assert!(tree.td.extend(3, &[1; 48]));
        assert_eq!(read(&tree, &entry, "outblob").unwrap(), first);
        write(&tree, &entry, &[7; 64]).unwrap();
        let quote = cofferdam_attest::quote::parse(&read(&tree, &entry, "outblob").unwrap()).unwrap();
        assert_eq!(quote.rtmr, tree.td.rtmr());
        assert_eq!(read(&tree, &entry, "generation").unwrap(), b"2\n");
    }

    #[test]
    fn input_is_at_most_64_bytes_and_quotes_need_exactly_that() {
        let tree = tree();
        let entry = tree.make_directory(ROOT, "request").unwrap();
        assert_eq!(write(&tree, &entry, &[7; 65]), Err(Errno::EFBIG));
        assert_eq!(read(&tree, &entry, "generation").unwrap(), b"0\n");
        assert_eq!(write(&tree, &entry, &[7; 32]), Ok(32));
        assert_eq!(read(&tree, &entry, "generation").unwrap(), b"1\n");
        assert_eq!(read(&tree, &entry, "outblob"), Err(Errno::EINVAL));
        for (name, bytes) in [("outblob", 64), ("generation", 1), ("provider", 1)] {
            let file = tree.lookup(entry.ino, name).unwrap();
            tree.open(file.ino, 1).unwrap();
            assert_eq!(tree.write(file.ino, 1, 0, &vec![0; bytes]).unwrap_err(), Errno::EACCES);
        }
    }

    #[test]
    fn a_write_takes_effect_when_the_file_is_closed_and_only_once() {
        let tree = tree();
        let entry = tree.make_directory(ROOT, "request").unwrap();
        let file = tree.lookup(entry.ino, "inblob").unwrap();
        tree.open(file.ino, 5).unwrap();
        assert_eq!(tree.write(file.ino, 5, 0, &[1; 32]).unwrap(), 32);
        assert_eq!(tree.write(file.ino, 5, 32, &[2; 32]).unwrap(), 32);
        assert_eq!(tree.read(file.ino, 5, 0, 1).unwrap_err(), Errno::ETXTBSY);
        assert_eq!(read(&tree, &entry, "generation").unwrap(), b"0\n");
        tree.flush(file.ino, 5);
        tree.flush(file.ino, 5);
        tree.release(file.ino, 5);
        assert_eq!(read(&tree, &entry, "generation").unwrap(), b"1\n");
        let quote = cofferdam_attest::quote::parse(&read(&tree, &entry, "outblob").unwrap()).unwrap();
        assert_eq!((&quote.report_data[..32], &quote.report_data[32..]), (&[1; 32][..], &[2; 32][..]));
    }

    #[test]
    fn the_generation_never_comes_round_to_one_that_was_read() {
        let mut request = Request {
            name: String::new(),
            inblob: vec![1; 64],
            outblob: None,
            write_generation: 4,
            read_generation: 5,
        };
        request.write(vec![2; 64]);
        assert_eq!((request.write_generation, request.inblob[0]), (4, 1));
        request.read_generation = 4;
        request.write(vec![2; 64]);
        assert_eq!((request.write_generation, request.inblob[0]), (5, 2));
    }

    #[test]
    fn requests_come_and_go_and_are_bounded() {
        let tree = tree();
        let entry = tree.make_directory(ROOT, "a").unwrap();
        assert_eq!(tree.make_directory(ROOT, "a").unwrap_err(), Errno::EEXIST);
        assert_eq!(tree.make_directory(entry.ino, "b").unwrap_err(), Errno::EPERM);
        let file = tree.lookup(entry.ino, "provider").unwrap();
        tree.open(file.ino, 3).unwrap();
        tree.remove_directory(ROOT, "a").unwrap();
        assert_eq!(tree.read(file.ino, 3, 0, 99).unwrap_err(), Errno::ENOENT);
        assert_eq!(tree.node(entry.ino).unwrap_err(), Errno::ENOENT);
        assert_eq!(tree.remove_directory(ROOT, "a").unwrap_err(), Errno::ENOENT);
        // The same name again is another request.
        assert_ne!(tree.make_directory(ROOT, "a").unwrap().ino, entry.ino);
        for number in 1..MAX_REQUESTS {
            tree.make_directory(ROOT, &number.to_string()).unwrap();
        }
        assert_eq!(tree.make_directory(ROOT, "more").unwrap_err(), Errno::ENOMEM);
    }
}
