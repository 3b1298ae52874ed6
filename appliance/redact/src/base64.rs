//! Base64 (RFC 4648) of a text that stands somewhere inside a longer one.

use zeroize::Zeroizing;

/// Which characters stand for 62 and 63.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alphabet {
    /// `+` and `/`.
    Standard,
    /// `-` and `_`.
    UrlSafe,
}

/// The bits of a text that fall into the base64 character after its last whole one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tail {
    /// Their value, in the high bits of six.
    bits: u8,
    /// 2 or 4.
    count: u8,
}

impl Tail {
    /// Whether a character begins with these bits.
    pub(crate) fn begins(self, character: u8) -> bool {
        value(character).is_some_and(|value| value >> (6 - self.count) == self.bits >> (6 - self.count))
    }
}

/// The characters that depend on `bytes` alone when `alignment` bytes (mod 3) stand before them.
pub(crate) fn middle(bytes: &[u8], alignment: u8, alphabet: Alphabet) -> (Zeroizing<Vec<u8>>, Option<Tail>) {
    // The first bits share a character with the byte before: 4 bits after one byte, 2 after two.
    let mut skip = match alignment % 3 {
        0 => 0_u8,
        1 => 4,
        _ => 2,
    };
    let mut symbols = Zeroizing::new(Vec::with_capacity(bytes.len() * 4 / 3 + 1));
    let (mut held, mut count) = (0_u16, 0_u8);
    for byte in bytes {
        held = (held << 8) | u16::from(*byte);
        count += 8;
        if skip > 0 {
            count -= skip;
            skip = 0;
        }
        held &= (1 << count) - 1;
        while count >= 6 {
            count -= 6;
            symbols.push(character(held >> count, alphabet));
            held &= (1 << count) - 1;
        }
    }
    let tail = (count > 0).then(|| Tail { bits: (held << (6 - count)).to_le_bytes()[0], count });
    (symbols, tail)
}

/// The standard alphabet's character for either alphabet's.
pub(crate) fn fold(byte: u8) -> u8 {
    match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => other,
    }
}

fn character(value: u16, alphabet: Alphabet) -> u8 {
    let value = value.to_le_bytes()[0] & 63;
    match (value, alphabet) {
        (0..=25, _) => b'A' + value,
        (26..=51, _) => b'a' + value - 26,
        (52..=61, _) => b'0' + value - 52,
        (62, Alphabet::Standard) => b'+',
        (62, Alphabet::UrlSafe) => b'-',
        (_, Alphabet::Standard) => b'/',
        (_, Alphabet::UrlSafe) => b'_',
    }
}

fn value(character: u8) -> Option<u8> {
    Some(match fold(character) {
        c @ b'A'..=b'Z' => c - b'A',
        c @ b'a'..=b'z' => c - b'a' + 26,
        c @ b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_in_every_encoding_and_nothing_longer_is() {
        // Checked by hand: `printf 'Xsecret' | base64` is WHNlY3JldA==, and so on.
        for (alignment, encoded, expected) in
            [(0, "c2VjcmV0", "c2VjcmV0"), (1, "WHNlY3JldA==", "NlY3Jld"), (2, "WFhzZWNyZXQ=", "zZWNyZX")]
        {
            let (symbols, _) = middle(b"secret", alignment, Alphabet::Standard);
            assert_eq!(std::str::from_utf8(&symbols).unwrap(), expected);
            assert!(encoded.contains(expected));
        }
    }

    #[test]
    fn the_tail_is_the_beginning_of_the_next_character() {
        // `printf s | base64` is cw==: `w` begins with the last two bits of `s`.
        let (symbols, tail) = middle(b"s", 0, Alphabet::Standard);
        assert_eq!(&symbols[..], b"c");
        let tail = tail.unwrap();
        assert!(tail.begins(b'w') && tail.begins(b'z') && !tail.begins(b'g') && !tail.begins(b'='));
        assert_eq!(middle(b"abc", 0, Alphabet::Standard).1, None);
    }
}
