//! The fast search against the slow one, and streams against whole texts.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::matcher::{Found, Matcher};
use crate::pattern::Patterns;
use crate::{MIN_SECRET, Redactor};

/// Secrets over few characters, so that they overlap each other and themselves, with all that has to be escaped.
fn secret() -> impl Strategy<Value = Vec<u8>> {
    let symbols = prop::sample::select(vec![
        "a", "b", "A", "'", "\\", "%", "4", "1", " ", "\n", "é", "/", "+", "\"", "x", "\x1b",
    ]);
    prop::collection::vec(symbols, 4..24).prop_map(|parts| parts.concat().into_bytes())
}

fn secrets() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(secret(), 1..4).prop_map(|secrets| {
        let usable = |secret: &Vec<u8>| Redactor::new([("s", secret)]).is_ok();
        let usable: Vec<_> = secrets.into_iter().filter(usable).collect();
        if usable.is_empty() { vec![b"abab".to_vec()] } else { usable }
    })
}

/// One way to write one byte.
fn write_byte(byte: u8, how: u8) -> String {
    match how % 12 {
        0 => format!("%{byte:02X}"),
        1 => format!("%{byte:02x}"),
        2 => format!("\\x{byte:02x}"),
        3 if byte < 0x80 => format!("\\u{byte:04X}"),
        4 => format!("\\{byte:03o}"),
        5 if byte == b'\'' => "'\\''".to_owned(),
        6 if byte == b'"' || byte == b'\\' => format!("\\{}", char::from(byte)),
        7 => format!("%25{byte:02X}"),
        _ => String::new(),
    }
}

/// A secret as something might print it, or a part of it.
fn written(secret: &[u8], encoding: u8, how: &[u8], cut: usize) -> Vec<u8> {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    let padded = [&b"xy"[..usize::from(encoding % 3)], secret, b"z"].concat();
    let text: Vec<u8> = match encoding % 9 {
        0 | 1 => secret.to_vec(),
        2 => STANDARD.encode(secret).into_bytes(),
        3 => URL_SAFE_NO_PAD.encode(&padded).into_bytes(),
        4 => STANDARD.encode(STANDARD.encode(&padded)).into_bytes(),
        5 => hex::encode(secret).into_bytes(),
        6 => hex::encode_upper(&padded).into_bytes(),
        7 => secret
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<Vec<_>>()
            .join([":", " ", ", 0x"][usize::from(encoding % 3)])
            .into_bytes(),
        _ => STANDARD.encode(&padded).into_bytes(),
    };
    let mut out = Vec::new();
    for (byte, how) in text.iter().zip(how.iter().cycle()) {
        match how {
            0..=60 => {
                let escaped = write_byte(*byte, *how);
                if escaped.is_empty() { out.push(*byte) } else { out.extend_from_slice(escaped.as_bytes()) }
            }
            61..=66 => out.extend_from_slice(&[b"\x1b[31m", &[*byte][..]].concat()),
            67..=70 => out.extend_from_slice(&[b"\r\n", &[*byte][..]].concat()),
            _ => out.push(*byte),
        }
    }
    out.truncate(out.len().saturating_sub(cut));
    out
}

fn noise() -> impl Strategy<Value = Vec<u8>> {
    let parts = prop::sample::select(vec![
        "a", "b", "abab", "4", "1", "'", "\\", "%", "%4", "\n", "\r\n", "\x1b[0m", "\x1b[", " ", "é", "x",
        "61", "YWJ", "==", "\\u00", "+/", ":",
    ]);
    prop::collection::vec(parts, 0..8).prop_map(|parts| parts.concat().into_bytes())
}

/// Secrets, and a text that has them in many forms.
fn case() -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<u8>)> {
    let piece = (
        any::<prop::sample::Index>(),
        any::<u8>(),
        prop::collection::vec(any::<u8>(), 1..6),
        0_usize..12,
        noise(),
    );
    (secrets(), prop::collection::vec(piece, 1..5)).prop_map(|(secrets, pieces)| {
        let mut text = Vec::new();
        for (which, encoding, how, cut, noise) in pieces {
            let how: Vec<u8> = if encoding > 128 { vec![255] } else { how };
            let cut = cut.saturating_sub(6);
            text.extend(noise);
            text.extend(written(&secrets[which.index(secrets.len())], encoding, &how, cut));
        }
        (secrets, text)
    })
}

fn named(secrets: &[Vec<u8>]) -> Vec<(String, &[u8])> {
    secrets.iter().enumerate().map(|(index, secret)| (format!("s{index}"), secret.as_slice())).collect()
}

/// Cuts a text, but not after a line break: there one or two symbols before it are shown at once.
fn split(text: &[u8], cuts: &[prop::sample::Index]) -> Vec<Vec<u8>> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
    places.retain(|place| *place == 0 || !matches!(text[place - 1], b'\r' | b'\n'));
    places.extend([0, text.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| text[pair[0]..pair[1]].to_vec()).collect()
}

proptest! {
    #[test]
    fn the_fast_search_finds_what_the_slow_one_finds((secrets, text) in case()) {
        let matcher = Matcher::new(Patterns::new(named(&secrets)).unwrap());
        let (mut fast, mut slow) = (Found::default(), Found::default());
        matcher.find(&text, &mut fast);
        matcher.find_slowly(&text, &mut slow);
        prop_assert_eq!(&fast.matches, &slow.matches, "{:?}", String::from_utf8_lossy(&text));
        // Of patterns with one symbol at the end, one stands for all.
        let alone = |found: &Found| found.begun.iter().filter(|begun| begun.symbols == 1).map(|begun| (begun.start, begun.broken)).collect::<BTreeSet<_>>();
        prop_assert_eq!(alone(&fast), alone(&slow), "{:?}", String::from_utf8_lossy(&text));
        fast.begun.retain(|begun| begun.symbols != 1);
        slow.begun.retain(|begun| begun.symbols != 1);
        prop_assert_eq!(&fast.begun, &slow.begun, "{:?}", String::from_utf8_lossy(&text));
    }

    #[test]
    fn it_does_not_matter_how_output_is_cut((secrets, text) in case(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12)) {
        let redactor = Redactor::new(named(&secrets)).unwrap();
        let mut stream = redactor.stream();
        let mut out = Vec::new();
        for part in split(&text, &cuts) {
            stream.push(&part, &mut out);
        }
        stream.finish(&mut out);
        let whole = redactor.redact(&text);
        prop_assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&whole), "{:?}", String::from_utf8_lossy(&text));
    }

    #[test]
    fn byte_by_byte_is_the_same((secrets, mut text) in case()) {
        text.retain(|b| !matches!(b, b'\r' | b'\n'));
        let redactor = Redactor::new(named(&secrets)).unwrap();
        let mut stream = redactor.stream();
        let mut out = Vec::new();
        for byte in &text {
            stream.push(&[*byte], &mut out);
        }
        stream.finish(&mut out);
        let whole = redactor.redact(&text);
        prop_assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&whole), "{:?}", String::from_utf8_lossy(&text));
    }

    #[test]
    fn nothing_is_left_to_find((secrets, text) in case(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let redactor = Redactor::new(named(&secrets)).unwrap();
        let mut stream = redactor.stream();
        let mut parts = Vec::new();
        for part in split(&text, &cuts) {
            stream.push(&part, &mut parts);
        }
        stream.finish(&mut parts);
        // The masks aside, no stretch of the output is a secret in any form.
        let text = String::from_utf8_lossy(&parts).into_owned();
        for stretch in text.split("[redacted:") {
            let stretch = stretch.strip_prefix(|c: char| c == 's').and_then(|rest| rest.split_once(']')).map_or(stretch, |(_, rest)| rest);
            let matcher = Matcher::new(Patterns::new(named(&secrets)).unwrap());
            let mut found = Found::default();
            matcher.find_slowly(stretch.as_bytes(), &mut found);
            prop_assert!(found.matches.is_empty(), "{:?}", stretch);
        }
    }

    #[test]
    fn text_without_secrets_is_untouched(lines in prop::collection::vec("[ -~\u{a0}-\u{ff}\\n\\r\\t\\x1b]{0,60}", 0..20), secret in "[A-Za-z0-9]{16,40}",
            cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..12)) {
        let text = lines.concat().into_bytes();
        let redactor = Redactor::new([("s", &secret)]).unwrap();
        let mut stream = redactor.stream();
        let mut out = Vec::new();
        let (places, idle): (Vec<_>, Vec<_>) = cuts.into_iter().unzip();
        for (part, idle) in split(&text, &places).iter().zip(idle.iter().chain([&false])) {
            stream.push(part, &mut out);
            if *idle {
                stream.idle(&mut out);
            }
        }
        stream.finish(&mut out);
        prop_assert_eq!(out, text);
    }

    #[test]
    fn pauses_show_no_more_than_they_may(secret in "[A-Za-z0-9/+-]{12,40}", at in any::<prop::sample::Index>(), second in any::<prop::sample::Index>()) {
        let redactor = Redactor::new([("s", &secret)]).unwrap();
        let mut stream = redactor.stream();
        let mut out = Vec::new();
        let text = format!("before {secret}").into_bytes();
        for part in split(&text, &[at, second]) {
            stream.push(&part, &mut out);
            stream.idle(&mut out);
            stream.idle(&mut out);
        }
        stream.push(b" after\n", &mut out);
        stream.finish(&mut out);
        let out = String::from_utf8(out).unwrap();
        let shown = out.strip_prefix("before ").and_then(|rest| rest.strip_suffix("[redacted:s] after\n"));
        prop_assert!(shown.is_some_and(|shown| shown.len() <= 2 && secret.starts_with(shown)), "{}", out);
    }
}

#[test]
fn what_is_held_back_is_what_begins_a_secret() {
    let redactor = Redactor::new([("s", "~~secret~~")]).unwrap();
    let mut stream = redactor.stream();
    let mut out = Vec::new();
    stream.push(b"Password: ", &mut out);
    assert_eq!(out, b"Password: ");
    stream.push(b"~~sec", &mut out);
    assert_eq!((out.as_slice(), stream.held()), (&b"Password: "[..], 5));
    stream.push(b"ond\n", &mut out);
    assert_eq!(out, b"Password: ~~second\n");
    assert_eq!(stream.held(), 0);
}

#[test]
fn a_secret_too_short_is_refused_by_name_and_without_its_value() {
    for value in ["", "abc", "a\nb\n", "\n\n\n\n"] {
        let error = Redactor::new([("pin", value)]).unwrap_err();
        assert!(error.to_string().contains("pin"), "{error}");
        assert!(value.len() < 3 || !error.to_string().contains(value.trim()) || value.trim().is_empty());
    }
    assert!(Redactor::new([("pin", "x".repeat(MIN_SECRET))]).is_ok());
}
