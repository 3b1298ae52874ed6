//! What one byte of output may stand for: itself, or the start of an escape.
//!
//! An escape is read in every way that some program writes: percent-encoding (RFC 3986), JSON (RFC 8259), C and
//! shell backslashes, and these again inside a quoted text, where each backslash is doubled. Several readings can be
//! right at one place (`%41` is a percent sign, or an `A`), and all are reported; which one fits is known
//! only to whoever knows the next symbol of a secret.

/// How many bytes may stand between two bytes of a secret, so that it is still found: hyperlinks, colours with their parameters, line
/// breaks.
pub const MAX_GAP: usize = 128;
/// Backslashes double with each level of quoting; this is three levels.
const MAX_BACKSLASHES: usize = 8;

/// One reading of the output at a place: the bytes it stands for and where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    bytes: [u8; 4],
    len: usize,
    pub(crate) next: usize,
}

impl Reading {
    fn new(text: &[u8], next: usize) -> Self {
        let mut bytes = [0; 4];
        let mut len = 0;
        for (to, from) in bytes.iter_mut().zip(text) {
            *to = *from;
            len += 1;
        }
        Self { bytes, len, next }
    }

    /// 1 to 4 bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// What was found at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Skip {
    /// Nothing that can be skipped.
    No,
    /// It ends here.
    To(usize),
    /// The output ends inside it.
    Cut,
}

/// Whether a byte can begin anything but itself.
pub(crate) fn is_special(byte: u8) -> bool {
    matches!(byte, b'%' | b'\\' | 0x1b | b'\r' | b'\n')
}

/// Calls `read` with every reading at `at` except the byte itself. `true` when the output ends inside an escape.
pub(crate) fn escapes(data: &[u8], at: usize, read: &mut impl FnMut(Reading)) -> bool {
    match data.get(at) {
        Some(b'%') => percent(data, at, read),
        Some(b'\\') => backslash(data, at, read),
        Some(b'\'') => quote(data, at, read),
        _ => false,
    }
}

/// Whether something stands at `at` that prints nothing or breaks a line, raw or escaped.
pub(crate) fn skip(data: &[u8], at: usize) -> Skip {
    match data.get(at) {
        Some(b'\r' | b'\n') => return Skip::To(at + 1),
        Some(0x1b) => return control_sequence(data, at + 1),
        Some(b'%' | b'\\') => {}
        _ => return Skip::No,
    }
    let mut found = Skip::No;
    let cut = escapes(data, at, &mut |reading| match reading.bytes() {
        b"\r" | b"\n" => found = Skip::To(reading.next),
        b"\x1b" => found = control_sequence(data, reading.next),
        _ => {}
    });
    // Only one reading of an escape is a break, so the order in which they came does not matter.
    if found == Skip::No && cut { Skip::Cut } else { found }
}

/// The rest of a terminal's control sequence (ECMA-48) after its ESC.
fn control_sequence(data: &[u8], at: usize) -> Skip {
    let rest = data.get(at..data.len().min(at + MAX_GAP)).unwrap_or_default();
    let complete = data.len() > at + MAX_GAP;
    let ended = |length: Option<usize>| match length {
        Some(length) => Skip::To(at + length),
        None if complete => Skip::No,
        None => Skip::Cut,
    };
    match rest.first() {
        None => Skip::Cut,
        // CSI: parameters and intermediates, then one final byte.
        Some(b'[') => {
            let body = rest.iter().skip(1).take_while(|b| matches!(b, 0x20..=0x3f)).count() + 1;
            match rest.get(body) {
                Some(0x40..=0x7e) => ended(Some(body + 1)),
                Some(_) => Skip::No,
                None => ended(None),
            }
        }
        // OSC, DCS, SOS, PM, APC: a string that ends in BEL or ESC backslash.
        Some(b']' | b'P' | b'X' | b'^' | b'_') => {
            let bell = rest.iter().position(|b| *b == 0x07).map(|end| end + 1);
            let terminator = rest.windows(2).position(|pair| pair == b"\x1b\\").map(|end| end + 2);
            ended(bell.into_iter().chain(terminator).min())
        }
        // Character sets and the like: intermediates, then one final byte.
        Some(0x20..=0x2f) => {
            let body = rest.iter().take_while(|b| matches!(b, 0x20..=0x2f)).count();
            match rest.get(body) {
                Some(0x30..=0x7e) => ended(Some(body + 1)),
                Some(_) => Skip::No,
                None => ended(None),
            }
        }
        Some(0x30..=0x7e) => ended(Some(1)),
        Some(_) => Skip::No,
    }
}

/// `%HH`, and `%25HH` where a URL was put into a URL.
fn percent(data: &[u8], at: usize, read: &mut impl FnMut(Reading)) -> bool {
    match hex(data, at + 1, 2, 2) {
        Digits::Value(value, next) => {
            plain(value.to_le_bytes()[0], next, read);
            if value != u32::from(b'%') {
                return false;
            }
            match hex(data, next, 2, 2) {
                Digits::Value(value, next) => plain(value.to_le_bytes()[0], next, read),
                Digits::Cut => true,
                Digits::None => false,
            }
        }
        Digits::Cut => true,
        Digits::None => false,
    }
}

fn backslash(data: &[u8], at: usize, read: &mut impl FnMut(Reading)) -> bool {
    let rest = data.get(at..).unwrap_or_default();
    let run = rest.iter().take(MAX_BACKSLASHES).take_while(|b| **b == b'\\').count();
    for doubled in [2, 4, 8] {
        if doubled <= run {
            read(Reading::new(b"\\", at + doubled));
        }
    }
    let code = at + run;
    let Some(letter) = data.get(code) else { return true };
    let next = code + 1;
    let mut scalar = |digits: Digits, close: Option<u8>| -> bool {
        match digits {
            Digits::Value(value, next) => {
                let next = match close {
                    None => next,
                    Some(close) => match data.get(next) {
                        Some(byte) if *byte == close => next + 1,
                        Some(_) => return false,
                        None => return true,
                    },
                };
                if (0xd800..0xdc00).contains(&value) {
                    return low_surrogate(data, next, value, read);
                }
                if let Some(c) = char::from_u32(value) {
                    let mut bytes = [0; 4];
                    read(Reading::new(c.encode_utf8(&mut bytes).as_bytes(), next));
                }
                false
            }
            Digits::Cut => true,
            Digits::None => false,
        }
    };
    match letter {
        b'\\' => false,
        b'n' => plain(b'\n', next, read),
        b'r' => plain(b'\r', next, read),
        b't' => plain(b'\t', next, read),
        b'a' => plain(0x07, next, read),
        b'b' => plain(0x08, next, read),
        b'v' => plain(0x0b, next, read),
        b'f' => plain(0x0c, next, read),
        b'e' | b'E' => plain(0x1b, next, read),
        // A byte, not a character: \xc3\xa9 is two of these.
        b'x' => match hex(data, next, 1, 2) {
            Digits::Value(value, next) => plain(value.to_le_bytes()[0], next, read),
            Digits::Cut => true,
            Digits::None => false,
        },
        b'u' if data.get(next) == Some(&b'{') => scalar(hex(data, next + 1, 1, 6), Some(b'}')),
        b'u' => scalar(hex(data, next, 4, 4), None),
        b'U' => scalar(hex(data, next, 8, 8), None),
        b'0'..=b'7' => {
            let digits = data.get(code..).unwrap_or_default();
            let count = digits.iter().take(3).take_while(|b| matches!(b, b'0'..=b'7')).count();
            let value = digits.iter().take(count).fold(0_u16, |value, b| value * 8 + u16::from(b - b'0'));
            // With fewer than three digits at the end, more may follow, and it is another byte then.
            if count < 3 && code + count == data.len() {
                return true;
            }
            u8::try_from(value).is_ok_and(|byte| plain(byte, code + count, read))
        }
        // A shell escapes any other character by writing it.
        other if other.is_ascii_punctuation() || *other == b' ' => plain(*other, next, read),
        _ => false,
    }
}

fn plain(byte: u8, next: usize, read: &mut impl FnMut(Reading)) -> bool {
    read(Reading::new(&[byte], next));
    false
}

/// The second half of a character beyond U+FFFF in JSON: `\uD83D\uDE00`.
fn low_surrogate(data: &[u8], at: usize, high: u32, read: &mut impl FnMut(Reading)) -> bool {
    let rest = data.get(at..).unwrap_or_default();
    let run = rest.iter().take(MAX_BACKSLASHES).take_while(|b| **b == b'\\').count();
    match (run, rest.get(run)) {
        (_, None) => true,
        (1.., Some(b'u')) => match hex(data, at + run + 1, 4, 4) {
            Digits::Value(low, next) if (0xdc00..0xe000).contains(&low) => {
                if let Some(c) = char::from_u32(0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00)) {
                    let mut bytes = [0; 4];
                    read(Reading::new(c.encode_utf8(&mut bytes).as_bytes(), next));
                }
                false
            }
            Digits::Cut => true,
            _ => false,
        },
        _ => false,
    }
}

/// A quote inside a single-quoted text of a shell: `'\''` or `'"'"'`.
fn quote(data: &[u8], at: usize, read: &mut impl FnMut(Reading)) -> bool {
    let mut cut = false;
    for form in [&b"'\\''"[..], &b"'\"'\"'"[..]] {
        let rest = data.get(at..data.len().min(at + form.len())).unwrap_or_default();
        if rest == form {
            read(Reading::new(b"'", at + form.len()));
        } else if form.starts_with(rest) {
            cut = true;
        }
    }
    cut
}

enum Digits {
    Value(u32, usize),
    /// The output ends before there were enough.
    Cut,
    None,
}

/// From `least` to `most` hexadecimal digits.
fn hex(data: &[u8], at: usize, least: usize, most: usize) -> Digits {
    let rest = data.get(at..).unwrap_or_default();
    let mut value = 0_u32;
    let mut count = 0;
    for byte in rest.iter().take(most) {
        let Some(digit) = char::from(*byte).to_digit(16) else { break };
        value = value * 16 + digit;
        count += 1;
    }
    if count < most && count == rest.len() {
        Digits::Cut
    } else if count >= least {
        Digits::Value(value, at + count)
    } else {
        Digits::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<(String, usize)>, bool) {
        let mut readings = Vec::new();
        let cut = escapes(text.as_bytes(), 0, &mut |reading| {
            readings.push((String::from_utf8_lossy(reading.bytes()).into_owned(), reading.next));
        });
        (readings, cut)
    }

    #[test]
    fn escapes_are_read_as_the_programs_that_write_them_mean_them() {
        for (text, expected) in [
            ("%41x", "A"),
            ("%2541x", "A"),
            ("\\nx", "\n"),
            ("\\\\nx", "\n"),
            ("\\\"x", "\""),
            ("\\/x", "/"),
            ("\\u0041x", "A"),
            ("\\u00e9x", "é"),
            ("\\uD83D\\uDE00x", "😀"),
            ("\\x41x", "A"),
            ("\\101x", "A"),
            ("\\u{1F600}x", "😀"),
            ("\\U0001F600x", "😀"),
            ("\\$x", "$"),
            ("'\\''x", "'"),
            ("'\"'\"'x", "'"),
        ] {
            let (readings, cut) = read(text);
            assert!(readings.contains(&(expected.to_owned(), text.len() - 1)), "{text} {readings:?}");
            assert!(!cut, "{text}");
        }
    }

    #[test]
    fn an_escape_that_the_end_cuts_is_known() {
        for text in [
            "%",
            "%4",
            "\\",
            "\\\\",
            "\\u00",
            "\\x",
            "\\x4",
            "\\u{1F",
            "\\uD83D",
            "\\uD83D\\u",
            "\\10",
            "'",
            "'\\'",
        ] {
            assert!(read(text).1, "{text}");
        }
        for text in ["%4x", "%x", "\\xg", "\\ug", "a"] {
            assert!(!read(text).1, "{text}");
        }
    }

    #[test]
    fn control_sequences_end_where_a_terminal_ends_them() {
        for (text, end) in [
            ("\x1b[31mx", 5),
            ("\x1b[38;2;1;2;3mx", 13),
            ("\x1b]8;;http://a\x07x", 14),
            ("\x1b]0;t\x1b\\x", 7),
            ("\x1b(Bx", 3),
            ("\x1bMx", 2),
            ("\\u001b[0mx", 9),
            ("\\e[0mx", 5),
            ("\\033[1mx", 7),
        ] {
            assert_eq!(skip(text.as_bytes(), 0), Skip::To(end), "{text:?}");
        }
        for text in ["\n", "\r"] {
            assert_eq!(skip(text.as_bytes(), 0), Skip::To(1), "{text:?}");
        }
        for text in ["\\n", "\\r", "%0A", "%0d", "\\u000a"] {
            assert_eq!(skip(text.as_bytes(), 0), Skip::To(text.len()), "{text:?}");
        }
        for text in ["\x1b", "\x1b[", "\x1b[3", "\x1b]0;title", "%0", "\\", "\\u00"] {
            assert_eq!(skip(text.as_bytes(), 0), Skip::Cut, "{text:?}");
        }
        assert_eq!(skip(b"a", 0), Skip::No);
    }
}
