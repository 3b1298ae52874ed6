//! The pages of redb on an untrusted disk: encrypted, authenticated, and changed by whole commits.
//!
//! # What it gives
//!
//! - redb reads the pages as the present commit left them, or an error: every block is opened with the nonce and the tag
//!   that its parent in the tree holds, so an older block, another page's, zeros or garbage do not open.
//! - [`Pages::commit`] is atomic: after a power cut at any moment the store is as some commit left it, and as the last
//!   one that returned left it or the one after that. One `fdatasync` for each.
//! - Opening reads and authenticates everything before anything is used, and writes nothing.
//!
//! What it cannot see by itself is that the *whole* disk is an older copy: for that [`Pages::open`] takes the [`Root`] that
//! somebody else kept.
//!
//! # The disk
//!
//! ```text
//! block 0, 1   records of commits (see `root`), in turns: one of them is the present commit's
//! block 2      a copy of the present record, written without waiting once its commit is known to be durable
//! block 3 ...  pages and nodes, each where its parent says
//! ```
//!
//! A block is 4096 bytes of ciphertext; nonce and tag are in the parent's entry (see `tree`), so that blocks
//! are aligned and a torn one damages no other. A page or node is sealed (see `seal`) with the associated data
//! `"cofferdam/vault/store/block/v1" 00 ‖ identity of the store (16) ‖ level (1) ‖ index (8) ‖ epoch (8)`, numbers
//! big endian. A page that was never written has no entry and no block; redb reads it as zeros. No block reads as anything
//! because of what is in it.
//!
//! # Why a commit survives a power cut
//!
//! Nothing of the present commit is ever overwritten: changed pages, and the nodes over them, go to blocks that it does not
//! use, and the new record goes over the record before the present one. Then everything is made durable at once. Until
//! that is done, any part of the new commit may be on the disk, torn anywhere; the present one is whole.
//!
//! A small change is a commit of its record alone ([`Pages::append`]): the record leads to the pages of the commit before and
//! holds, in its journal, what has changed since then. The next commit of pages has to hold these changes, and begins an empty journal.
//!
//! So when a store is opened and the newest record leads to a block *of its own epoch* that does not open, its commit was
//! never acknowledged and the record before it is the present one. This excuse ends as soon as it can: when the copy in
//! block 2 or the expected root says that the commit was durable, and for every block of an earlier epoch, a damaged
//! block is an alteration and the store does not open. Whoever damages block 2 and a block of the last commit brings back
//! the commit before, which is no more than the host can do with a copy of the disk.
//!
//! Epochs are never used twice on one disk, not by commits that failed either.
//!
//! # Bounds
//!
//! The disk's length is fixed when the store is made. A commit that takes more blocks than it gives back is refused when it
//! would leave less than a reserve free, before anything is written; the commit before stays in force. A removal may use the
//! reserve, so that a full store can be emptied. redb keeps the pages that it frees and uses them again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use super::DiskError;
use super::disk::Disk;
use super::free::Free;
use super::root::{self, Fields, JOURNAL, Root};
use super::seal::{NONCE, Sealer};
use super::tree::{self, BLOCK, Entry, MAX_PAGES, TOP, Tree};
use crate::Keys;

/// The block that holds the copy of the present record.
pub(super) const SETTLED: u64 = 2;
/// The first block of pages and nodes.
pub(super) const FIRST: u64 = 3;
/// Fewest blocks of a disk: what an empty store and its reserve need, with room for some secrets.
const MIN_BLOCKS: u64 = 256;
/// Most blocks of a disk: more could not be filled.
const MAX_BLOCKS: u64 = FIRST + MAX_PAGES;
/// Blocks that stay free for removals: several times what one writes at once.
const RESERVE: u64 = 96;
/// Blocks that have to be free beside the reserve when a change goes to the journal: twice what a full one can take when it goes to the pages.
/// 3,928 bytes are at most 78 changes of names in pages of their own, each with a node and a part of a branch over it.
const HEADROOM: u64 = 512;
/// Longest single write in bytes; neighbouring blocks are written together.
const MAX_WRITE: usize = 1024 * 1024;

const BLOCK_DOMAIN: &[u8] = b"cofferdam/vault/store/block/v1";

type Block = Box<[u8; BLOCK]>;

/// The open pages.
pub(super) struct Pages {
    disk: Box<dyn Disk>,
    keys: Arc<Keys>,
    state: Mutex<State>,
}

/// The present commit, and what redb has changed since.
pub(super) struct State {
    pub(super) tree: Tree,
    pub(super) root: Root,
    /// The block of the present record: 0 or 1.
    pub(super) slot: u64,
    /// Of the next commit: higher than any that may be on the disk.
    pub(super) next_epoch: u64,
    /// Blocks of the disk.
    pub(super) blocks: u64,
    /// Length of what redb sees, in the present commit.
    pub(super) length: u64,
    /// What the present commit says beside the pages.
    journal: Vec<u8>,
    /// The blocks that it does not use.
    free: Free,
    /// Page 0 in the present commit, once it is known: redb changes a part of it with each commit.
    first: Option<Block>,
    change: Change,
}

/// Whether a commit may use the blocks that are kept free.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reserve {
    Stays,
    Used,
}

/// What redb has written since the present commit.
#[derive(Default)]
struct Change {
    length: u64,
    pages: BTreeMap<u64, Block>,
    /// Pages from this one on are not those of the present commit: redb has cut them off.
    cut: u64,
}

/// A commit in the making.
#[derive(Default)]
struct Staged {
    blocks: BTreeMap<u64, Block>,
    /// Entries to put back if it fails, in the order in which they were replaced.
    former: Vec<(usize, u64, Option<Entry>)>,
    /// Blocks that it has taken and not written to, the lowest last.
    unused: Vec<u64>,
}

impl Pages {
    /// Makes a store of no pages where every byte is zero. Nothing is written before the first commit.
    pub(super) fn create(disk: Box<dyn Disk>, keys: Arc<Keys>) -> Result<Self, DiskError> {
        let blocks = blocks(disk.len().map_err(DiskError::Io)?)?;
        if !disk.is_blank().map_err(DiskError::Io)? {
            return Err(DiskError::Occupied);
        }
        let mut store = [0; 16];
        getrandom::fill(&mut store).map_err(|_| DiskError::Random)?;
        let root = Root { store, epoch: 0, digest: [0; 32] };
        Ok(Self::new(disk, keys, State::new(Tree::default(), root, 1, 1, blocks, 0)))
    }

    pub(super) fn new(disk: Box<dyn Disk>, keys: Arc<Keys>, state: State) -> Self {
        Self { disk, keys, state: Mutex::new(state) }
    }

    /// The present commit.
    pub(super) fn root(&self) -> Root {
        self.lock().root
    }

    /// Bytes of the blocks that the present commit uses, and of all blocks.
    pub(super) fn used(&self) -> (u64, u64) {
        let state = self.lock();
        let used = state.blocks.saturating_sub(state.free.count());
        (used.saturating_mul(BLOCK as u64), state.blocks.saturating_mul(BLOCK as u64))
    }

    /// Lets the next commit have a higher epoch than this one.
    ///
    /// # Errors
    /// [`DiskError::Exhausted`] when there is none.
    pub(super) fn skip_past(&self, epoch: u64) -> Result<(), DiskError> {
        let mut state = self.lock();
        state.next_epoch = state.next_epoch.max(epoch.checked_add(1).ok_or(DiskError::Exhausted)?);
        Ok(())
    }

    /// Makes everything that redb has written durable as one commit. Only what removes something may use the reserve.
    ///
    /// # Errors
    /// [`DiskError::Full`] and [`DiskError::Write`]. The commit before is in force then; what redb wrote stays for
    /// another try until [`Pages::discard`].
    pub(super) fn commit(&self, reserve: Reserve) -> Result<(), DiskError> {
        let mut state = self.lock();
        let state = &mut *state;
        let epoch = state.next_epoch;
        state.next_epoch = epoch.checked_add(1).ok_or(DiskError::Exhausted)?;
        let sealer = Sealer::new(self.keys.pages());
        let slot = 1 - state.slot.min(1);
        let mut staged = Staged::default();
        let written = state.stage(&sealer, epoch, &mut staged).and_then(|()| {
            state.leaves_enough(&staged, reserve)?;
            let record = state.record(&sealer, &self.keys, epoch, state.change.length, &[])?;
            self.write(&staged, slot, &record)?;
            Ok(record)
        });
        let record = match written {
            Ok(record) => record,
            Err(error) => {
                state.undo(staged);
                return Err(error);
            }
        };
        state.settle(staged, slot, Root { epoch, digest: root::digest(&record, 0), ..state.root });
        self.copy(&record);
        Ok(())
    }

    /// Makes one commit of a change that goes to the record alone. `false` when that has no room for it, or the disk none for the pages
    /// that all of them need later: then nothing has happened, and it is a matter of [`Pages::commit`].
    ///
    /// # Errors
    /// [`DiskError::Write`], as there.
    pub(super) fn append(&self, change: &[u8]) -> Result<bool, DiskError> {
        let mut state = self.lock();
        let room = JOURNAL.checked_sub(state.journal.len());
        if room.is_none_or(|room| room < change.len()) || state.free.count() < RESERVE + HEADROOM {
            return Ok(false);
        }
        let epoch = state.next_epoch;
        state.next_epoch = epoch.checked_add(1).ok_or(DiskError::Exhausted)?;
        let journal = [&state.journal, change].concat();
        let sealer = Sealer::new(self.keys.pages());
        let record = state.record(&sealer, &self.keys, epoch, state.length, &journal)?;
        let slot = 1 - state.slot.min(1);
        self.write_record(slot, &record)?;
        state.root = Root { epoch, digest: root::digest(&record, journal.len()), ..state.root };
        state.slot = slot;
        state.journal = journal;
        self.copy(&record);
        Ok(true)
    }

    /// What the present commit says beside the pages.
    pub(super) fn journal(&self) -> Vec<u8> {
        self.lock().journal.clone()
    }

    /// Nothing waits for it: without it a damaged commit is taken for an unfinished one.
    fn copy(&self, record: &[u8; BLOCK]) {
        let _ = self.disk.write_at(SETTLED * BLOCK as u64, record);
    }

    /// Forgets what redb has written since the present commit.
    pub(super) fn discard(&self) {
        let mut state = self.lock();
        state.change = Change::after(state.length);
    }

    fn write(&self, staged: &Staged, slot: u64, record: &[u8; BLOCK]) -> Result<(), DiskError> {
        let mut run: Vec<u8> = Vec::new();
        let mut start = 0;
        for (block, bytes) in &staged.blocks {
            let offset = block.saturating_mul(BLOCK as u64);
            if offset != start + run.len() as u64 || run.len() >= MAX_WRITE {
                self.write_run(start, &run)?;
                run.clear();
                start = offset;
            }
            run.extend_from_slice(&bytes[..]);
        }
        self.write_run(start, &run)?;
        self.write_record(slot, record)
    }

    fn write_record(&self, slot: u64, record: &[u8; BLOCK]) -> Result<(), DiskError> {
        self.disk.write_at(slot * BLOCK as u64, record).map_err(DiskError::Write)?;
        self.disk.sync().map_err(DiskError::Write)
    }

    fn write_run(&self, start: u64, run: &[u8]) -> Result<(), DiskError> {
        if run.is_empty() { Ok(()) } else { self.disk.write_at(start, run).map_err(DiskError::Write) }
    }

    /// One page as redb sees it now.
    fn page(&self, state: &State, index: u64) -> Result<Block, DiskError> {
        if let Some(page) = state.change.pages.get(&index) {
            return Ok(page.clone());
        }
        match (state.tree.get(0, index).filter(|_| index < state.change.cut), &state.first) {
            (None, _) => Ok(Box::new([0; BLOCK])),
            (Some(_), Some(first)) if index == 0 => Ok(first.clone()),
            (Some(entry), _) => {
                let sealer = Sealer::new(self.keys.pages());
                read(&*self.disk, &sealer, &state.root.store, 0, index, entry)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A commit changes the state by assignments that do not fail, or undoes what it changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl State {
    pub(super) fn new(tree: Tree, root: Root, slot: u64, next_epoch: u64, blocks: u64, length: u64) -> Self {
        let free = Free::between(&tree.blocks(), FIRST..blocks);
        Self {
            tree,
            root,
            slot,
            next_epoch,
            blocks,
            length,
            journal: Vec::new(),
            free,
            first: None,
            change: Change::after(length),
        }
    }

    /// With what the present commit says beside the pages.
    pub(super) fn with_journal(self, journal: Vec<u8>) -> Self {
        Self { journal, ..self }
    }

    /// Seals the changed pages and the nodes over them into free blocks, and enters them into the tree.
    fn stage(&mut self, sealer: &Sealer, epoch: u64, staged: &mut Staged) -> Result<(), DiskError> {
        let mut changed = BTreeSet::new();
        for index in self.change.cut..self.tree.pages() {
            if !self.change.pages.contains_key(&index) && self.tree.get(0, index).is_some() {
                staged.former.push((0, index, self.tree.set(0, index, None)));
                changed.insert(index);
            }
        }
        let pages = std::mem::take(&mut self.change.pages);
        staged.unused = self.free.take(blocks_of(&changed, pages.keys()));
        let outcome = pages
            .iter()
            .try_for_each(|(index, page)| self.place(sealer, epoch, staged, 0, *index, page.clone()));
        changed.extend(pages.keys());
        self.change.pages = pages;
        outcome?;
        for level in 1..=TOP {
            changed = tree::parents(&changed);
            for index in &changed {
                match self.tree.node(level, *index) {
                    Some(node) => self.place(sealer, epoch, staged, level, *index, node)?,
                    None => staged.former.push((level, *index, self.tree.set(level, *index, None))),
                }
            }
        }
        Ok(())
    }

    fn place(
        &mut self,
        sealer: &Sealer,
        epoch: u64,
        staged: &mut Staged,
        level: usize,
        index: u64,
        mut bytes: Block,
    ) -> Result<(), DiskError> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|_| DiskError::Random)?;
        let block = staged.unused.pop().ok_or(DiskError::Full)?;
        let data = associated_data(&self.root.store, level, index, epoch);
        let tag = sealer.seal(&nonce, &data, &mut bytes[..]).map_err(|_| DiskError::Seal)?;
        staged.blocks.insert(block, bytes);
        let entry = Entry { block, epoch, nonce, tag };
        staged.former.push((level, index, self.tree.set(level, index, Some(entry))));
        Ok(())
    }

    /// Whether a commit may be made: it does not grow, or leaves the reserve, or is what the reserve is for.
    fn leaves_enough(&self, staged: &Staged, reserve: Reserve) -> Result<(), DiskError> {
        let freed = staged.former.iter().filter(|(_, _, entry)| entry.is_some()).count();
        let left = self.free.count() + staged.unused.len() as u64 + freed as u64;
        let grows = staged.blocks.len() > freed;
        if grows && left < RESERVE && reserve == Reserve::Stays { Err(DiskError::Full) } else { Ok(()) }
    }

    fn record(
        &self,
        sealer: &Sealer,
        keys: &Keys,
        epoch: u64,
        length: u64,
        journal: &[u8],
    ) -> Result<Block, DiskError> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|_| DiskError::Random)?;
        let (store, blocks, top) = (self.root.store, self.blocks, self.tree.top());
        Fields { key_id: keys.id(), store, epoch, blocks, length, top, journal }.seal(sealer, nonce)
    }

    /// The staged commit is the present one.
    fn settle(&mut self, staged: Staged, slot: u64, root: Root) {
        let former = staged.former.iter().filter_map(|(_, _, entry)| entry.map(|entry| entry.block));
        self.free.give(former.chain(staged.unused));
        if let Some(first) = self.change.pages.remove(&0) {
            self.first = Some(first);
        }
        self.root = root;
        self.slot = slot;
        self.length = self.change.length;
        self.journal.clear();
        self.change = Change::after(self.length);
    }

    fn undo(&mut self, staged: Staged) {
        for (level, index, entry) in staged.former.into_iter().rev() {
            self.tree.set(level, index, entry);
        }
        self.free.give(staged.blocks.into_keys().chain(staged.unused));
    }
}

impl Change {
    /// None yet, after a commit of this length.
    fn after(length: u64) -> Self {
        Self { length, pages: BTreeMap::new(), cut: length.div_ceil(BLOCK as u64) }
    }
}

/// What redb is given: the pages, which it shares with the store that commits them.
#[derive(Debug)]
pub(super) struct Backend(pub(super) Arc<Pages>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().change.length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.lock();
        within(&state, offset, out.len())?;
        for (index, start, part) in split(offset, out.len()) {
            let page = self.0.page(&state, index).map_err(io::Error::other)?;
            let to = out.get_mut(part.clone()).ok_or(io::ErrorKind::InvalidInput)?;
            let from = page.get(start..).and_then(|rest| rest.get(..to.len()));
            to.copy_from_slice(from.ok_or(io::ErrorKind::InvalidInput)?);
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        if length > MAX_PAGES * BLOCK as u64 {
            return Err(io::Error::other(DiskError::Full));
        }
        let mut state = self.0.lock();
        if length < state.change.length {
            let whole = length / BLOCK as u64;
            let rest = usize::try_from(length % BLOCK as u64).map_err(io::Error::other)?;
            if rest != 0 {
                let mut page = self.0.page(&state, whole).map_err(io::Error::other)?;
                page.iter_mut().skip(rest).for_each(|byte| *byte = 0);
                state.change.pages.insert(whole, page);
            }
            let pages = length.div_ceil(BLOCK as u64);
            state.change.pages.split_off(&pages);
            state.change.cut = state.change.cut.min(pages);
        }
        state.change.length = length;
        Ok(())
    }

    /// Nothing: what redb has written becomes durable with [`Pages::commit`], all of it or nothing of it. Until
    /// then a power cut leaves the commit before, which asks less of redb than a disk does.
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock();
        within(&state, offset, data.len())?;
        for (index, start, part) in split(offset, data.len()) {
            let from = data.get(part).ok_or(io::ErrorKind::InvalidInput)?;
            let mut page = match from.try_into() {
                Ok(whole) => Box::new(whole),
                Err(_) => self.0.page(&state, index).map_err(io::Error::other)?,
            };
            let to = page.get_mut(start..).and_then(|rest| rest.get_mut(..from.len()));
            to.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(from);
            state.change.pages.insert(index, page);
        }
        Ok(())
    }
}

fn within(state: &State, offset: u64, length: usize) -> io::Result<()> {
    match offset.checked_add(length as u64) {
        Some(end) if end <= state.change.length => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The pages under a range of bytes: index, first byte within the page, and where in the range that part is.
fn split(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset.saturating_add(done as u64);
        let start = usize::try_from(at % BLOCK as u64).ok()?;
        let end = length.min(done + (BLOCK - start));
        let part = done..end;
        done = end;
        (!part.is_empty()).then_some((at / BLOCK as u64, start, part))
    })
}

/// Reads a page or node and opens it as what its parent says it is.
pub(super) fn read(
    disk: &dyn Disk,
    sealer: &Sealer,
    store: &[u8; 16],
    level: usize,
    index: u64,
    entry: &Entry,
) -> Result<Block, DiskError> {
    let mut bytes = Box::new([0; BLOCK]);
    disk.read_at(entry.block.saturating_mul(BLOCK as u64), &mut bytes[..])
        .map_err(|source| DiskError::Unreadable { block: entry.block, source })?;
    let data = associated_data(store, level, index, entry.epoch);
    match sealer.open(&entry.nonce, &entry.tag, &data, &mut bytes[..]) {
        Ok(()) => Ok(bytes),
        Err(_) if level == 0 => Err(DiskError::PageChanged { index, block: entry.block }),
        Err(_) => Err(DiskError::NodeChanged { level, index, block: entry.block }),
    }
}

/// How many blocks a commit may need: one for each page, and for each node over these and the removed ones.
fn blocks_of<'a>(removed: &'a BTreeSet<u64>, pages: impl ExactSizeIterator<Item = &'a u64>) -> usize {
    let mut all = pages.len();
    let mut changed = removed.iter().chain(pages).copied().collect();
    for _ in 1..=TOP {
        changed = tree::parents(&changed);
        all = all.saturating_add(changed.len());
    }
    all
}

/// The whole blocks of a disk, when a store can be on it.
fn blocks(length: u64) -> Result<u64, DiskError> {
    match length / BLOCK as u64 {
        0..MIN_BLOCKS => Err(DiskError::TooSmall(length)),
        blocks @ MIN_BLOCKS..=MAX_BLOCKS => Ok(blocks),
        _ => Err(DiskError::TooLarge(length)),
    }
}

pub(super) fn associated_data(store: &[u8; 16], level: usize, index: u64, epoch: u64) -> Vec<u8> {
    let level = u8::try_from(level).unwrap_or(u8::MAX);
    [BLOCK_DOMAIN, &[0], store, &[level], &index.to_be_bytes(), &epoch.to_be_bytes()].concat()
}
