//! Git's own objects: what they are called, so that what GitHub sends is compared with the name that was asked for.
//!
//! A name is the SHA-1 of `<kind> <length>\0<bytes>`. What has the marks of a known attack on SHA-1 has no name here, as git itself
//! refuses it. GitHub sends trees taken apart. They are put together again, and what is read is the object that has the name: so an
//! entry with what ends a mode or a path inside of it is read as git reads it, or not at all.

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
    /// Git's object of it, when no entry is missing.
    pub(crate) fn object(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for entry in &self.tree {
            // Git writes modes without a zero in front, GitHub shows them with one.
            bytes.extend_from_slice(entry.mode.trim_start_matches('0').as_bytes());
            bytes.push(b' ');
            bytes.extend_from_slice(entry.path.as_bytes());
            bytes.push(0);
            bytes.extend_from_slice(entry.sha.as_bytes());
        }
        (!self.truncated).then_some(bytes)
    }
}

/// What a directory has under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    /// No regular file.
    None,
    /// A regular file, which is this object.
    File(ObjectId),
    /// More than one entry, which git never writes: one reader would take the first and another one the last.
    Several,
}

/// What the object of a directory has under a name; `None` when it is not one that git would write.
pub(crate) fn named(mut tree: &[u8], name: &str) -> Option<Named> {
    let mut found = Named::None;
    let mut seen = false;
    while !tree.is_empty() {
        let (mode, rest) = split(tree, b' ')?;
        let (path, rest) = split(rest, 0)?;
        let (id, rest) = rest.split_first_chunk::<20>()?;
        let octal = mode.iter().all(|digit| matches!(digit, b'0'..=b'7')) && !mode.starts_with(b"0");
        if !octal || !matches!(mode.len(), 5 | 6) || path.is_empty() || path.contains(&b'/') {
            return None;
        }
        if path == name.as_bytes() {
            found = match mode {
                _ if seen => Named::Several,
                b"100644" | b"100755" => Named::File(ObjectId::from(*id)),
                _ => Named::None,
            };
            seen = true;
        }
        tree = rest;
    }
    Some(found)
}

/// What is before the first `end`, and what is behind it.
fn split(bytes: &[u8], end: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == end)?;
    let (before, rest) = bytes.split_at_checked(at)?;
    Some((before, rest.get(1..)?))
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
        let named_as = |tree: &Tree| name("tree", &tree.object().unwrap()).unwrap();
        // `git mktree` of an empty file `a` and the same as a program in `b/c`.
        let below = Tree { truncated: false, tree: vec![entry("100755", "c")] };
        let below = TreeEntry { mode: "040000".into(), path: "b".into(), sha: named_as(&below) };
        let mut tree = Tree { truncated: false, tree: vec![entry("100644", "a"), below] };
        assert_eq!(named_as(&tree).to_string(), "e88553e828fd37275412bda822a7a6798a1d5999");
        let object = tree.object().unwrap();
        let found = ["a", "b", "c"].map(|name| named(&object, name).unwrap());
        assert_eq!(found, [Named::File(empty), Named::None, Named::None]);
        tree.truncated = true;
        assert_eq!(tree.object(), None, "what is missing could have been anything");
    }

    #[test]
    fn a_directory_is_read_as_git_reads_it_or_not_at_all() {
        let sha = name("blob", b"").unwrap();
        let other = name("blob", b"x").unwrap();
        let entry = |mode: &str, path: &str, sha| TreeEntry { mode: mode.into(), path: path.into(), sha };
        let object = |tree: Vec<TreeEntry>| Tree { truncated: false, tree }.object().unwrap();
        for (mode, path) in [("100644", "a/b"), ("100644", ""), ("10064x", "a"), ("", "a"), ("1006444", "a")]
        {
            assert_eq!(named(&object(vec![entry(mode, path, sha)]), "a"), None, "{mode} {path:?}");
        }
        let whole = object(vec![entry("100644", "a", sha), entry("120000", "b", sha)]);
        assert_eq!(named(&whole, "a"), Some(Named::File(sha)));
        assert_eq!(named(&whole, "b"), Some(Named::None), "a link");
        for cut in 1..whole.len() {
            let cut = whole.get(..cut).unwrap();
            assert!(named(cut, "a").is_none() || cut.len() == whole.len() / 2, "{}", cut.len());
        }
        // What ends a path inside of a path: the object is the one that git has, and is read as git reads it.
        let mut inner = b"a\0".to_vec();
        inner.extend_from_slice(&[b'1'; 20]);
        inner.extend_from_slice(b"100644 b");
        let odd = object(vec![entry("100644", std::str::from_utf8(&inner).unwrap(), other)]);
        assert_eq!(named(&odd, "a"), Some(Named::File(ObjectId::from([b'1'; 20]))));
        assert_eq!(named(&odd, "b"), Some(Named::File(other)));
        for twice in [("100644", "100644"), ("40000", "100644"), ("100644", "40000")] {
            let tree = object(vec![entry(twice.0, "a", sha), entry(twice.1, "a", other)]);
            assert_eq!(named(&tree, "a"), Some(Named::Several));
        }
    }
}
