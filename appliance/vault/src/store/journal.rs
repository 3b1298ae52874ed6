//! The changes that a commit's record holds itself, so that a small one is one write.
//!
//! It is responsible for the bytes of one change. Where they lie and what proves them is the record's matter (`root`), and what they do is
//! the store's. They hold names and sealed records, as the pages do, and no value.
//!
//! ```text
//! offset  length
//!      0      32  digest of the request
//!     32       2  length of the name
//!     34       n  name of the secret
//!   34+n       2  length of the sealed record; 0 removes it
//!   36+n       m  the sealed record (see `record`)
//! ```
//!
//! Numbers are big endian. Changes follow each other in the order in which they were made.

use cofferdam_protocol::SecretRef;

use super::RequestId;

/// One change, as it was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    pub(super) request: RequestId,
    pub(super) reference: SecretRef,
    /// The record that is there from now on, or none.
    pub(super) sealed: Option<Box<[u8]>>,
}

impl Operation {
    /// Its bytes, or none when the record is longer than a length can say.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let name = self.reference.as_str().as_bytes();
        let sealed = self.sealed.as_deref().unwrap_or_default();
        let lengths = [name.len(), sealed.len()].map(|length| u16::try_from(length).map(u16::to_be_bytes));
        let [Ok(name_length), Ok(sealed_length)] = lengths else { return None };
        Some([&self.request[..], &name_length, name, &sealed_length, sealed].concat())
    }
}

/// The changes in these bytes, or none when they are not changes, one after the other, and nothing else.
pub(super) fn decode(mut bytes: &[u8]) -> Option<Vec<Operation>> {
    let mut operations = Vec::new();
    while !bytes.is_empty() {
        let (request, rest) = bytes.split_first_chunk()?;
        let (name, rest) = prefixed(rest)?;
        let (sealed, rest) = prefixed(rest)?;
        let reference = std::str::from_utf8(name).ok()?.parse().ok()?;
        let sealed = (!sealed.is_empty()).then(|| sealed.into());
        operations.push(Operation { request: *request, reference, sealed });
        bytes = rest;
    }
    Some(operations)
}

/// Bytes behind their length, and the rest.
fn prefixed(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u16::from_be_bytes(*length).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operations() -> Vec<Operation> {
        let operation = |name: &str, sealed: Option<&[u8]>| Operation {
            request: [7; 32],
            reference: format!("secret://a/{name}/f").parse().unwrap(),
            sealed: sealed.map(Into::into),
        };
        vec![operation("b", Some(b"sealed")), operation("c", None), operation("b", Some(&[0; 3000]))]
    }

    fn bytes() -> Vec<u8> {
        operations().iter().flat_map(|operation| operation.encode().unwrap()).collect()
    }

    #[test]
    fn changes_are_read_as_they_were_written() {
        assert_eq!(decode(&bytes()), Some(operations()));
        assert_eq!(decode(&[]), Some(Vec::new()));
        let long = Operation { sealed: Some(vec![0; 65_536].into()), ..operations().remove(0) };
        assert_eq!(long.encode(), None);
    }

    #[test]
    fn what_is_cut_off_or_no_name_is_no_change() {
        let bytes = bytes();
        let whole: Vec<_> = (0..=bytes.len()).filter(|length| decode(&bytes[..*length]).is_some()).collect();
        assert_eq!(whole.len(), 4, "nothing, one, two and three changes: {whole:?}");
        let mut other = bytes.clone();
        other[34] = b'/';
        assert_eq!(decode(&other), None);
    }
}
