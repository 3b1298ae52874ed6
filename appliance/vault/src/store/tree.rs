//! The tree over the pages: where each block is, and what proves that it is the one last written.
//!
//! It is responsible for the tree in memory and the bytes of a node; it reads and writes nothing itself.
//! A parent holds a child's nonce and tag. No two blocks ever have the same nonce, so what opens with them is that
//! child as it was last written, and no other block that this key ever sealed. Everything hangs from one entry.

use std::collections::BTreeSet;

use super::seal::{NONCE, TAG};

/// Length of a block, a page and a node in bytes: redb's page, and what disks write at once.
pub(super) const BLOCK: usize = 4096;
/// Length of an entry in a node. Of its 64 bytes the last 8 are zero.
pub(super) const ENTRY: usize = 64;
/// Children of a node: as many as fill a block.
pub(super) const FANOUT: usize = BLOCK / ENTRY;
/// The level of the one node at the top; the pages are level 0.
pub(super) const TOP: usize = 3;
/// Most pages: 1 GiB. The tree always has the same height, so that there is nothing about its shape to believe.
pub(super) const MAX_PAGES: u64 = (FANOUT * FANOUT * FANOUT) as u64;

/// What a parent knows of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The block of the disk that holds it. Never 0, which is a block of roots.
    pub(super) block: u64,
    /// The commit that wrote it.
    pub(super) epoch: u64,
    pub(super) nonce: [u8; NONCE],
    pub(super) tag: [u8; TAG],
}

/// `block (8, big endian) ‖ epoch (8, big endian) ‖ nonce (24) ‖ tag (16) ‖ 00 (8)`; zeros for a child that there is not.
pub(super) fn encode(entry: Option<&Entry>) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    if let Some(entry) = entry {
        let fields = entry.block.to_be_bytes().into_iter().chain(entry.epoch.to_be_bytes());
        let fields = fields.chain(entry.nonce).chain(entry.tag);
        bytes.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
    }
    bytes
}

/// Undoes [`encode`], for bytes that authenticated.
pub(super) fn decode(bytes: &[u8; ENTRY]) -> Option<Entry> {
    let (block, rest) = bytes.split_first_chunk()?;
    let (epoch, rest) = rest.split_first_chunk()?;
    let (nonce, rest) = rest.split_first_chunk()?;
    let (tag, _) = rest.split_first_chunk()?;
    let block = u64::from_be_bytes(*block);
    let epoch = u64::from_be_bytes(*epoch);
    (block != 0).then_some(Entry { block, epoch, nonce: *nonce, tag: *tag })
}

/// The entries of a node that authenticated, in order.
pub(super) fn children(node: &[u8; BLOCK]) -> impl Iterator<Item = Option<Entry>> {
    node.as_chunks::<ENTRY>().0.iter().map(decode)
}

/// All entries, by level and index. Level [`TOP`] has one.
#[derive(Debug, Default)]
pub(super) struct Tree {
    levels: [Vec<Option<Entry>>; TOP + 1],
}

impl Tree {
    pub(super) fn get(&self, level: usize, index: u64) -> Option<&Entry> {
        self.levels.get(level)?.get(usize::try_from(index).ok()?)?.as_ref()
    }

    /// The entry of everything.
    pub(super) fn top(&self) -> Option<&Entry> {
        self.get(TOP, 0)
    }

    /// Sets an entry and returns the former one.
    pub(super) fn set(&mut self, level: usize, index: u64, entry: Option<Entry>) -> Option<Entry> {
        let entries = self.levels.get_mut(level)?;
        let index = usize::try_from(index).ok()?;
        if index >= entries.len() {
            entry?;
            entries.resize(index.saturating_add(1), None);
        }
        entries.get_mut(index).and_then(|place| std::mem::replace(place, entry))
    }

    /// How many pages there have been: the length of level 0.
    pub(super) fn pages(&self) -> u64 {
        self.levels.first().map_or(0, Vec::len) as u64
    }

    /// The bytes of a node, or `None` when it has no child.
    pub(super) fn node(&self, level: usize, index: u64) -> Option<Box<[u8; BLOCK]>> {
        let children = self.levels.get(level.checked_sub(1)?)?;
        let start = usize::try_from(index).ok()?.checked_mul(FANOUT)?;
        let children = children.get(start..)?;
        let children = children.get(..FANOUT).unwrap_or(children);
        let mut node = Box::new([0; BLOCK]);
        let places = node.as_chunks_mut::<ENTRY>().0;
        places.iter_mut().zip(children).for_each(|(place, child)| *place = encode(child.as_ref()));
        children.iter().any(Option::is_some).then_some(node)
    }

    /// Every block that an entry names.
    pub(super) fn blocks(&self) -> BTreeSet<u64> {
        self.levels.iter().flatten().flatten().map(|entry| entry.block).collect()
    }
}

/// The nodes over these children.
pub(super) fn parents(children: &BTreeSet<u64>) -> BTreeSet<u64> {
    children.iter().map(|child| child / FANOUT as u64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_what_was_written() {
        let entry = Entry { block: 3, epoch: u64::MAX, nonce: [7; NONCE], tag: [9; TAG] };
        assert_eq!(decode(&encode(Some(&entry))), Some(entry));
        assert_eq!(decode(&encode(None)), None);
    }

    #[test]
    fn a_node_holds_its_children_and_nothing_else() {
        let mut tree = Tree::default();
        let entry = |block| Entry { block, epoch: 1, nonce: [7; NONCE], tag: [9; TAG] };
        for page in [0, 63, 64, 200] {
            assert_eq!(tree.set(0, page, Some(entry(page + 3))), None);
        }
        let held = |index| -> Vec<u64> {
            tree.node(1, index)
                .map_or(Vec::new(), |node| children(&node).flatten().map(|e| e.block).collect())
        };
        assert_eq!(
            [held(0), held(1), held(2), held(3), held(4)],
            [vec![3, 66], vec![67], vec![], vec![203], vec![]]
        );
        assert_eq!(parents(&BTreeSet::from([0, 63, 64, 200])), BTreeSet::from([0, 1, 3]));
        assert_eq!(tree.set(0, 63, None), Some(entry(66)));
        assert_eq!(tree.blocks(), BTreeSet::from([3, 67, 203]));
    }
}
