//! What words have in common: how they look in JSON, and the alphabets of names and numbers.

/// serde for words: in JSON each is the text that `Display` writes and `FromStr` reads.
macro_rules! as_text {
    ($($name:ty),* $(,)?) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
pub(crate) use as_text;

/// Whether a text is a name as references and operators use it: `[a-z0-9][a-z0-9._-]{0,62}`.
pub fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// Whether a text is a service's name, `[a-z0-9][a-z0-9_-]{0,30}`: it is a host name and a directory.
pub fn is_service_name(text: &str) -> bool {
    text.len() <= 31 && is_name(text) && !text.contains('.')
}

/// A decimal number without sign, leading zero or separators, so that every reader reads the same.
pub fn parse_decimal(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// At most `max` characters of a text from outside, without control characters, for use in a message.
pub fn shorten(text: &str, max: usize) -> String {
    let mut short: String = text.chars().take(max).map(visible).collect();
    if text.chars().nth(max).is_some() {
        short.push('…');
    }
    short
}

/// Control characters and those that reorder text become a visible stand-in of the same width.
pub fn visible(c: char) -> char {
    if c == '\t' {
        '→'
    } else if c.is_control() || is_deceptive(c) {
        '\u{fffd}'
    } else {
        c
    }
}

/// Characters that change what a person believes a line says, without being visible.
pub fn is_deceptive(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}
