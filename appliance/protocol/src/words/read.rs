//! Reading what others made, in bounded memory.

use std::io::{self, Read};

/// Reads all of it, at most `limit` bytes.
///
/// # Errors
/// What the reader says; [`io::ErrorKind::FileTooLarge`] when there is more.
pub fn bounded(reader: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bounded_into(reader, limit, &mut bytes)?;
    Ok(bytes)
}

/// As [`bounded`], into a buffer of the caller's: for secrets, whose buffer is cleared and does not grow.
///
/// # Errors
/// As [`bounded`]; the buffer then holds what was read.
pub fn bounded_into(reader: impl Read, limit: u64, buffer: &mut Vec<u8>) -> io::Result<()> {
    let read = reader.take(limit.saturating_add(1)).read_to_end(buffer)?;
    if u64::try_from(read).is_ok_and(|read| read <= limit) {
        Ok(())
    } else {
        Err(io::ErrorKind::FileTooLarge.into())
    }
}

/// Reads the first `most` bytes, or all when there are fewer.
///
/// # Errors
/// What the reader says.
pub fn beginning(reader: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_more_than_the_limit_is_an_error_and_no_more_is_read() {
        assert_eq!(bounded(&b"1234"[..], 4).unwrap(), b"1234");
        assert_eq!(bounded(&b"1234"[..], 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(beginning(&b"1234"[..], 3).unwrap(), b"123");
        let mut endless = io::repeat(7);
        let mut buffer = Vec::new();
        assert!(bounded_into(&mut endless, 10, &mut buffer).is_err());
        assert_eq!(buffer.len(), 11);
    }
}
