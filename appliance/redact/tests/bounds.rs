//! Up to what the redactor finds a secret, and what it holds back at most: the bounds that its documentation gives, each from both sides.
#![allow(clippy::unwrap_used, clippy::string_slice)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cofferdam_redact::{MAX_GAP, MAX_HELD, MAX_TWICE, Redactor};

/// Letters without a pattern that repeats (xorshift64).
fn letters(count: usize) -> String {
    let mut state = 0x0123_4567_89ab_cdef_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'a' + u8::try_from((state >> 16) % 26).unwrap())
    };
    (0..count).map(|_| next()).collect()
}

/// A colour of so many bytes.
fn colour(bytes: usize) -> String {
    format!("\x1b[{}m", "1;".repeat(bytes).get(..bytes - 3).unwrap())
}

fn between(text: &str, gap: &str) -> String {
    text.chars().flat_map(|letter| [letter.to_string(), gap.to_owned()]).collect::<Vec<_>>().concat()
}

/// What comes out, in pieces of so many bytes, and the most that was held back meanwhile.
fn pushed(secret: &str, text: &str, piece: usize) -> (String, usize) {
    let redactor = Redactor::new([("name", secret)]).unwrap();
    let (mut stream, mut out, mut held) = (redactor.stream(), Vec::new(), 0);
    for part in text.as_bytes().chunks(piece) {
        stream.push(part, &mut out);
        held = held.max(stream.held());
    }
    stream.finish(&mut out);
    (String::from_utf8(out).unwrap(), held)
}

/// Whether anything of it was found, in pieces of so many bytes.
fn is_found(secret: &str, text: &str, piece: usize) -> bool {
    let out = pushed(secret, text, piece).0;
    assert!(out.contains("[redacted:name]") || out == text, "all or nothing");
    out != text
}

#[test]
fn a_long_secret_with_a_long_colour_after_each_letter_is_found() {
    let gaps = [colour(103), colour(MAX_GAP), "\x1b[0m".repeat(25)];
    for (secret, piece, gaps) in
        [(letters(16_000), 1 << 20, &gaps[..1]), (letters(300), 64, &gaps), ("a".repeat(300), 1000, &gaps)]
    {
        for gap in gaps {
            let (out, held) = pushed(&secret, &between(&secret, gap), piece);
            // The colours stay.
            assert_eq!(out.replace(gap, ""), "[redacted:name]", "{} {}", secret.len(), gap.len());
            assert!(held <= MAX_HELD, "{held}");
        }
    }
}

#[test]
fn what_stands_between_two_bytes_is_read_up_to_its_bound() {
    let secret = letters(54);
    let breaks = |count: usize| "\r\n".repeat(count / 2);
    for (found, gaps) in [
        (true, [colour(MAX_GAP), breaks(MAX_GAP), "\x1b[0m".repeat(MAX_GAP / 4)]),
        (false, [colour(MAX_GAP + 2), breaks(MAX_GAP + 2), "\x1b[0m".repeat(MAX_GAP / 4 + 2)]),
    ] {
        for gap in gaps {
            for piece in [100, 65_536] {
                assert_eq!(is_found(&secret, &between(&secret, &gap), piece), found, "{} {gap:?}", gap.len());
            }
        }
    }
}

#[test]
fn base64_of_base64_is_read_up_to_its_bound() {
    for (length, found) in [(MAX_TWICE, true), (MAX_TWICE + 1, false)] {
        let secret = letters(length);
        assert!(is_found(&secret, &STANDARD.encode(&secret), 65_536));
        assert_eq!(is_found(&secret, &STANDARD.encode(STANDARD.encode(&secret)), 65_536), found, "{length}");
    }
}

#[test]
fn no_more_is_held_back_than_the_bound_whatever_comes() {
    let escape = |byte: u8| format!("\\\\\\\\\\\\\\\\U{byte:08x}");
    let gap = format!(
        "{}{}{}",
        "\r\n".repeat(MAX_GAP / 2),
        escape(0x1b),
        colour(MAX_GAP).trim_start_matches('\x1b')
    );
    let secret = letters(54);
    // All of the longest pattern but its last digit, each symbol as long as it can be and as far from the last; and then no secret.
    let digits = hex::encode(&secret);
    let begun: String = digits.bytes().take(107).map(|digit| escape(digit) + &gap).collect();
    let (out, held) = pushed(&secret, &(begun.clone() + "!"), 512);
    assert!(out == begun + "!" && held > MAX_HELD * 3 / 4 && held <= MAX_HELD, "{held} of {MAX_HELD}");
    // Line breaks alone, and what never ends.
    for text in ["\n".repeat(100_000), "\x1b]8;;".to_owned() + &"x".repeat(100_000), "\\".repeat(20_000)] {
        let (out, held) = pushed(&secret, &(secret[..53].to_owned() + &text), 4096);
        assert!(out.len() == 53 + text.len() && held <= 2 * MAX_GAP + 54, "{held}");
    }
}

#[test]
fn the_documents_have_the_bounds_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/security.md");
    let page = std::fs::read_to_string(path).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    for said in [
        format!("more than {MAX_GAP} bytes of colours and line breaks between two of its bytes"),
        format!("base64 of base64 when it is longer than {} KiB", MAX_TWICE >> 10),
        format!("At most {} KiB of an output or an answer are held back", MAX_HELD >> 10),
    ] {
        assert!(page.contains(&said), "{said}");
    }
}
