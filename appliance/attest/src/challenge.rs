//! Many nonces in one quote: a Merkle tree whose root is a claim.
//!
//! A quote costs the device up to a second, a hash nothing. So the challenges of many relying parties become the leaves of a tree, the
//! claims carry its root ([`crate::claims::Claims::challenges`]), and each party's document carries its own challenge with the path from
//! there to the root. Who finds their nonce and their connection's binding under the root of a quote knows that the quote was made after
//! they had asked, as if it had been made for them alone.
//!
//! - leaf: SHA-256 of `cofferdam/challenge/v1`, a zero byte, then 0 or, with a channel binding, 1 and its 32 bytes, then the nonce
//! - node: SHA-256 of `cofferdam/challenge-node/v1`, a zero byte, the left and the right child
//! - the leaves are filled up to a power of two with 32 zero bytes each, which no known leaf is
//! - path: the siblings from the leaf upwards; bit `n` of the index says whether the node of level `n` is the right one
//!
//! Leaves and nodes have domains of their own, so that neither is taken for the other; and a path is as long as the tree is high, at most
//! [`MAX_PATH`].

use cofferdam_protocol::Base64Array;
use cofferdam_protocol::evidence::{ChannelBinding, Nonce};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Most challenges of one tree.
pub const MAX_CHALLENGES: usize = 1 << MAX_PATH;
/// Longest path.
pub const MAX_PATH: usize = 10;

const LEAF: &[u8] = b"cofferdam/challenge/v1";
const NODE: &[u8] = b"cofferdam/challenge-node/v1";

/// The root of a tree, as the claims carry it.
pub type Root = Base64Array<32>;

/// One relying party's challenge, and where it is in the tree: the member `challenge` of an evidence document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// What the party has sent.
    pub nonce: Nonce,
    /// The binding of the connection that it came over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel_binding: Option<ChannelBinding>,
    /// Which leaf it is.
    pub index: u32,
    /// Its siblings from the leaf upwards.
    pub path: Vec<Base64Array<32>>,
}

impl Challenge {
    /// The root that this leads to; `None` when the path is too long, or the index none of so high a tree.
    pub fn root(&self) -> Option<Root> {
        let leaves = 1_u32.checked_shl(u32::try_from(self.path.len()).ok()?)?;
        if self.path.len() > MAX_PATH || self.index >= leaves {
            return None;
        }
        let mut index = self.index;
        let mut hash = leaf(&self.nonce, self.channel_binding.as_ref());
        for sibling in &self.path {
            let sibling = *sibling.as_bytes();
            hash = if index & 1 == 0 { node(&hash, &sibling) } else { node(&sibling, &hash) };
            index >>= 1;
        }
        Some(hash.into())
    }
}

/// The leaf of a challenge.
pub fn leaf(nonce: &Nonce, channel_binding: Option<&ChannelBinding>) -> [u8; 32] {
    let hash = Sha256::new().chain_update(LEAF).chain_update([0]);
    let hash = match channel_binding {
        Some(binding) => hash.chain_update([1]).chain_update(binding.as_bytes()),
        None => hash.chain_update([0]),
    };
    hash.chain_update(nonce.as_bytes()).finalize().into()
}

fn node(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    Sha256::new()
        .chain_update(NODE)
        .chain_update([0])
        .chain_update(left)
        .chain_update(right)
        .finalize()
        .into()
}

/// A tree.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The leaves, then each level above them, up to the root alone.
    levels: Vec<Vec<[u8; 32]>>,
}

impl Tree {
    /// The tree over these leaves; `None` when there are none or more than [`MAX_CHALLENGES`].
    pub fn new(mut leaves: Vec<[u8; 32]>) -> Option<Self> {
        if leaves.is_empty() || leaves.len() > MAX_CHALLENGES {
            return None;
        }
        leaves.resize(leaves.len().next_power_of_two(), [0; 32]);
        let mut levels = vec![leaves];
        while let Some(level) = levels.last().filter(|level| level.len() > 1) {
            let above = level.chunks_exact(2).filter_map(|pair| match pair {
                [left, right] => Some(node(left, right)),
                _ => None,
            });
            let above = above.collect();
            levels.push(above);
        }
        Some(Self { levels })
    }

    /// Its root.
    pub fn root(&self) -> Root {
        self.levels.last().and_then(|level| level.first()).copied().unwrap_or_default().into()
    }

    /// The siblings from the leaf with this number upwards; shorter than the tree is high for a number that is none.
    pub fn path(&self, index: u32) -> Vec<Base64Array<32>> {
        let below_root = self.levels.len().saturating_sub(1);
        let levels = self.levels.iter().take(below_root).enumerate();
        let sibling = |(height, level): (usize, &Vec<[u8; 32]>)| {
            let at = usize::try_from(index >> height).ok()? ^ 1;
            level.get(at).copied().map(Base64Array::from)
        };
        levels.map_while(sibling).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenges(count: u8) -> Vec<(Nonce, Option<ChannelBinding>)> {
        let one = |number: u8| {
            (Nonce::new(vec![number; 16]).unwrap(), number.is_multiple_of(2).then_some([number; 32].into()))
        };
        (0..count).map(one).collect()
    }

    fn tree(challenges: &[(Nonce, Option<ChannelBinding>)]) -> Tree {
        Tree::new(challenges.iter().map(|(nonce, binding)| leaf(nonce, binding.as_ref())).collect()).unwrap()
    }

    fn proofs(challenges: &[(Nonce, Option<ChannelBinding>)]) -> (Root, Vec<Challenge>) {
        let tree = tree(challenges);
        let proof = |(index, (nonce, channel_binding)): (usize, &(Nonce, Option<ChannelBinding>))| {
            let index = u32::try_from(index).unwrap();
            Challenge {
                nonce: nonce.clone(),
                channel_binding: *channel_binding,
                index,
                path: tree.path(index),
            }
        };
        (tree.root(), challenges.iter().enumerate().map(proof).collect())
    }

    #[test]
    fn every_challenge_leads_to_the_root() {
        for count in 1..=33 {
            let (root, proofs) = proofs(&challenges(count));
            for proof in proofs {
                assert_eq!(proof.root(), Some(root), "{count} {}", proof.index);
                assert_eq!(1 << proof.path.len(), u32::from(count).next_power_of_two());
            }
        }
        assert!(Tree::new(Vec::new()).is_none());
        assert!(Tree::new(vec![[1; 32]; MAX_CHALLENGES]).is_some());
        assert!(Tree::new(vec![[1; 32]; MAX_CHALLENGES + 1]).is_none());
    }

    #[test]
    fn no_other_path_does() {
        let (root, proofs) = proofs(&challenges(11));
        for proof in &proofs {
            let refused = |what: &str, forged: Challenge| assert_ne!(forged.root(), Some(root), "{what}");
            for other in 0..64 {
                if other != proof.index {
                    refused("index", Challenge { index: other, ..proof.clone() });
                }
            }
            for at in 0..proof.path.len() {
                for bit in 0..256 {
                    let mut path = proof.path.clone();
                    let mut node = *path[at].as_bytes();
                    node[bit / 8] ^= 1 << (bit % 8);
                    path[at] = node.into();
                    refused("sibling", Challenge { path, ..proof.clone() });
                }
                let mut path = proof.path.clone();
                path.remove(at);
                refused("shorter", Challenge { path, ..proof.clone() });
                let mut path = proof.path.clone();
                path.insert(at, [0; 32].into());
                refused("longer", Challenge { path, ..proof.clone() });
                let mut path = proof.path.clone();
                path.rotate_left(1);
                refused("order", Challenge { path, ..proof.clone() });
            }
            refused("nonce", Challenge { nonce: Nonce::new(vec![99; 16]).unwrap(), ..proof.clone() });
            refused("binding", Challenge { channel_binding: Some([99; 32].into()), ..proof.clone() });
            let without = Challenge { channel_binding: None, ..proof.clone() };
            assert_eq!(without.root() == Some(root), proof.channel_binding.is_none());
            refused("too long", Challenge { path: vec![[0; 32].into(); MAX_PATH + 1], ..proof.clone() });
            refused("endless", Challenge { path: vec![[0; 32].into(); 64], ..proof.clone() });
        }
    }

    #[test]
    fn a_nonce_that_reads_like_a_binding_or_a_node_is_neither() {
        // With a binding the nonce follows it: the same bytes without one are another leaf.
        let (nonce, binding) = (Nonce::new(vec![7; 16]).unwrap(), ChannelBinding::from([7; 32]));
        let joined = Nonce::new(vec![7; 48]).unwrap();
        assert_ne!(leaf(&nonce, Some(&binding)), leaf(&joined, None));
        // A nonce made of two children is not their node.
        let children = Nonce::new([[1; 32], [2; 32]].concat()).unwrap();
        assert_ne!(leaf(&children, None), node(&[1; 32], &[2; 32]));
        // What fills the tree up is nobody's challenge.
        let (root, _) = proofs(&challenges(3));
        let padding = tree(&challenges(3)).path(3);
        let filled = Challenge { nonce, channel_binding: None, index: 3, path: padding };
        assert_ne!(filled.root(), Some(root));
    }
}
