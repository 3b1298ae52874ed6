//! Git's own objects: what they are called, so that what GitHub sends is compared with the name that was asked for.
//!
//! A name is the SHA-1 of `<kind> <length>\0<bytes>`. What has the marks of a known attack on SHA-1 has no name here, as git itself
//! refuses it. GitHub sends trees taken apart; they are put together again.

use serde::Deserialize;
use sha1_checked::Sha1;

use cofferdam_protocol::Commit as ObjectId;

/// The name of an object; `None` when its bytes were made to collide with others.
pub(crate) fn name(kind: &str, bytes: &[u8]) -> Option<ObjectId> {
    let object = [format!("{kind} {}\0", bytes.len()).as_bytes(), bytes].concat();
    let found = Sha1::try_digest(object);
    let digest: [u8; 20] = found.hash().as_slice().try_into().ok()?;
    (!found.has_collision()).then(|| ObjectId::from(digest))
}

/// A directory of a commit.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Tree {
    /// Whether entries are missing.
    pub(crate) truncated: bool,
    /// Its entries in git's order.
    pub(crate) tree: Vec<TreeEntry>,
}

/// One entry of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct TreeEntry {
    /// Octal: `100644`, `040000`, …
    pub(crate) mode: String,
    /// Its name.
    pub(crate) path: String,
    /// The object.
    pub(crate) sha: ObjectId,
}

impl Tree {
    /// Its name, when it is whole. An entry with what ends a mode or a path inside of it could be read as others, and has none.
    pub(crate) fn name(&self) -> Option<ObjectId> {
        let plain = |entry: &TreeEntry| {
            let path = &entry.path;
            entry.mode.bytes().all(|byte| byte.is_ascii_digit())
                && !path.is_empty()
                && !path.contains(['\0', '/'])
        };
        if !self.tree.iter().all(plain) {
            return None;
        }
        let mut bytes = Vec::new();
        for entry in &self.tree {
            // Git writes modes without a zero in front, GitHub shows them with one.
            bytes.extend_from_slice(entry.mode.trim_start_matches('0').as_bytes());
            bytes.push(b' ');
            bytes.extend_from_slice(entry.path.as_bytes());
            bytes.push(0);
            bytes.extend_from_slice(entry.sha.as_bytes());
        }
        name("tree", &bytes).filter(|_| !self.truncated)
    }

    /// The regular file of a name.
    pub(crate) fn file(&self, name: &str) -> Option<ObjectId> {
        let found = self.tree.iter().find(|entry| entry.path == name)?;
        matches!(found.mode.as_str(), "100644" | "100755").then_some(found.sha)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_called_what_git_calls_them() {
        let empty = name("blob", b"").unwrap();
        assert_eq!(empty.to_string(), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(name("tree", b"").unwrap().to_string(), "4b825dc642cb6eb9a060e54bf8d69288fbee4904");
        let entry = |mode: &str, path: &str| TreeEntry { mode: mode.into(), path: path.into(), sha: empty };
        // `git mktree` of an empty file `a` and the same as a program in `b/c`.
        let below = Tree { truncated: false, tree: vec![entry("100755", "c")] };
        let below = TreeEntry { mode: "040000".into(), path: "b".into(), sha: below.name().unwrap() };
        let mut tree = Tree { truncated: false, tree: vec![entry("100644", "a"), below] };
        assert_eq!(tree.name().unwrap().to_string(), "e88553e828fd37275412bda822a7a6798a1d5999");
        assert_eq!((tree.file("a"), tree.file("b"), tree.file("c")), (Some(empty), None, None));
        for (mode, path) in [("100644", "a\0b"), ("100644", "a/b"), ("100644", ""), ("100644 x", "a")] {
            let odd = Tree { truncated: false, tree: vec![entry(mode, path)] };
            assert_eq!(odd.name(), None, "{mode} {path:?}");
        }
        tree.truncated = true;
        assert_eq!(tree.name(), None, "what is missing could have been anything");
    }
}
