//! Reading little-endian fields out of bytes from outside.
//!
//! The one place where an offset of a file becomes a slice: every access is checked against the bytes that are there, and
//! an addition that would wrap is an access outside of them. It never interprets what it reads.

/// An access outside of the bytes, with the offset at which it was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CutOff(pub(crate) usize);

/// `length` bytes from offset `at`.
pub(crate) fn slice(bytes: &[u8], at: usize, length: usize) -> Result<&[u8], CutOff> {
    bytes.get(at..add(at, length)?).ok_or(CutOff(at))
}

/// `N` bytes from offset `at`.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], CutOff> {
    slice(bytes, at, N)?.try_into().map_err(|_| CutOff(at))
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Result<u16, CutOff> {
    array(bytes, at).map(u16::from_le_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Result<u32, CutOff> {
    array(bytes, at).map(u32::from_le_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Result<u64, CutOff> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// A 32-bit field as an offset or a length.
pub(crate) fn offset_at(bytes: &[u8], at: usize) -> Result<usize, CutOff> {
    usize::try_from(u32_at(bytes, at)?).map_err(|_| CutOff(at))
}

/// The sum of an offset and a length.
pub(crate) fn add(one: usize, other: usize) -> Result<usize, CutOff> {
    one.checked_add(other).ok_or(CutOff(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_read_outside() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(u16_at(&bytes, 6), Ok(0x0807));
        assert_eq!(u16_at(&bytes, 7), Err(CutOff(7)));
        assert_eq!(u64_at(&bytes, 0), Ok(0x0807_0605_0403_0201));
        assert_eq!(u64_at(&bytes, 1), Err(CutOff(1)));
        assert_eq!(slice(&bytes, 8, 0), Ok(&[][..]));
        assert_eq!(slice(&bytes, usize::MAX, 1), Err(CutOff(usize::MAX)));
        assert_eq!(slice(&bytes, 1, usize::MAX), Err(CutOff(1)));
    }
}
