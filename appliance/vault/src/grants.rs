//! Who may lease what.
//!
//! The declaration decides, the kernel identifies (SO_PEERCRED): a grant is a uid and a reference.
//! Nothing is granted by default, nothing by pattern, and nothing while the vault runs.

use std::collections::BTreeSet;

use cofferdam_protocol::SecretRef;

/// The set of grants. Built once, before the vault serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants(BTreeSet<(u32, SecretRef)>);

impl Grants {
    /// Lets the peer with this uid lease this reference.
    pub fn allow(&mut self, uid: u32, reference: SecretRef) {
        self.0.insert((uid, reference));
    }

    /// Whether the peer with this uid may lease this reference.
    pub fn allows(&self, uid: u32, reference: &SecretRef) -> bool {
        self.0.contains(&(uid, reference.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_one_uid_and_one_reference() {
        let (a, b) =
            ("secret://a/b/c".parse::<SecretRef>().unwrap(), "secret://a/b/cc".parse::<SecretRef>().unwrap());
        let mut grants = Grants::default();
        assert!(!grants.allows(0, &a), "root is granted nothing by itself");
        grants.allow(100_000, a.clone());
        assert!(grants.allows(100_000, &a));
        assert!(!grants.allows(100_000, &b));
        assert!(!grants.allows(165_536, &a));
        assert!(!grants.allows(0, &a));
    }
}
