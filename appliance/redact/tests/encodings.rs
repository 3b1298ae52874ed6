//! Random secrets, written by other people's encoders, cut anywhere: nothing but the mask is left.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::string_slice)]

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use cofferdam_redact::Redactor;
use proptest::prelude::*;

/// What the encoders make of a secret that is encoded alone.
fn forms(secret: &str) -> Vec<(&'static str, String)> {
    let json = serde_json::to_string(secret).unwrap();
    let json_in_json = serde_json::to_string(&json).unwrap();
    let hex = hex::encode(secret);
    let each = |f: &dyn Fn(u8) -> String| secret.bytes().map(f).collect::<Vec<_>>();
    let lines = |text: String, columns: usize, end: &str| {
        text.as_bytes()
            .chunks(columns)
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect::<Vec<_>>()
            .join(end)
    };
    vec![
        ("plain", secret.to_owned()),
        ("base64", STANDARD.encode(secret)),
        ("base64 without padding", STANDARD_NO_PAD.encode(secret)),
        ("base64, URL-safe", URL_SAFE.encode(secret)),
        ("base64, URL-safe without padding", URL_SAFE_NO_PAD.encode(secret)),
        ("base64 at 20 columns", lines(STANDARD.encode(secret), 20, "\n")),
        ("hexadecimal", hex.clone()),
        ("hexadecimal, upper case", hex.to_uppercase()),
        ("hexadecimal with colons", each(&|b| format!("{b:02x}")).join(":")),
        ("hexadecimal with commas", each(&|b| format!("{b:02X}")).join(", 0x")),
        ("percent", each(&|b| format!("%{b:02X}")).concat()),
        ("percent, lower case", each(&|b| format!("%{b:02x}")).concat()),
        (
            "percent where needed",
            each(&|b| if b.is_ascii_alphanumeric() { char::from(b).into() } else { format!("%{b:02X}") })
                .concat(),
        ),
        ("backslash x", each(&|b| format!("\\x{b:02x}")).concat()),
        ("octal", each(&|b| format!("\\{b:03o}")).concat()),
        ("JSON", json[1..json.len() - 1].to_owned()),
        ("JSON in JSON", json_in_json[3..json_in_json.len() - 3].to_owned()),
        ("JSON, all escaped", secret.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect()),
        ("shell", secret.replace('\'', "'\\''")),
    ]
}

/// Every form of the secret, cut at these places, comes out as its mask.
fn nothing_but_the_mask_is_left(secret: &str, cuts: &[prop::sample::Index]) -> Result<(), TestCaseError> {
    let redactor = Redactor::new([("name", secret)]).unwrap();
    for (form, text) in forms(secret) {
        let text = format!("<{text}>").into_bytes();
        let mut places: Vec<_> =
            cuts.iter().map(|cut| cut.index(text.len() + 1)).chain([0, text.len()]).collect();
        places.sort_unstable();
        let mut stream = redactor.stream();
        let mut out = Vec::new();
        for pair in places.windows(2) {
            stream.push(&text[pair[0]..pair[1]], &mut out);
        }
        stream.finish(&mut out);
        let out = String::from_utf8(out).unwrap();
        // Where a secret ends in several quotes or backslashes, some of their escapes may be left.
        let left = out.strip_prefix("<[redacted:name]").map(|left| left.trim_start_matches(['\'', '\\']));
        prop_assert_eq!(left, Some(">"), "{} {:?} {:?}", form, String::from_utf8_lossy(&text), out);
    }
    Ok(())
}

/// Secrets in which a terminal's control sequence seems to begin, without an end.
#[test]
fn a_secret_may_look_like_a_control_sequence() {
    for secret in [
        "\\EPa0\u{1f600}\u{1f600} ",
        "\\e]0;correct-horse",
        "\\033[correct-horse",
        "\\x1bP\\x1b]x-horse",
        "%1b]0-horse",
    ] {
        nothing_but_the_mask_is_left(secret, &[]).unwrap();
    }
}

/// Secrets whose last characters begin an escape, in the forms that escape those too.
#[test]
fn the_end_of_a_secret_may_look_like_an_escape() {
    for end in [
        "\\u", "\\U", "\\x", "\\0", "\\u{", "%2", "%", "\\", "\\\\", "\\u00", "\\u005", "\\x5", "%25",
        "\\u005c", "\\n", "\\'",
    ] {
        for secret in [format!("correct-horse{end}"), format!("00\u{20ac}A\u{1f600}\u{1f600}{end}")] {
            nothing_but_the_mask_is_left(&secret, &[]).unwrap();
        }
    }
}

proptest! {
    #[test]
    fn a_secret_in_any_form_and_any_pieces_becomes_its_mask(
        secret in "[ -~\u{e9}\u{20ac}\u{1f600}]{8,60}",
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        nothing_but_the_mask_is_left(&secret, &cuts)?;
    }

    #[test]
    fn a_secret_inside_longer_base64_leaves_nothing_that_decodes_to_it(
        before in "[a-z]{0,7}", secret in "[A-Za-z0-9]{8,60}", after in "[a-z]{0,7}",
    ) {
        let redactor = Redactor::new([("name", &secret)]).unwrap();
        let once = STANDARD.encode(format!("{before}{secret}{after}"));
        for text in [once.clone(), STANDARD.encode(&once), URL_SAFE_NO_PAD.encode(&once)] {
            let out = String::from_utf8(redactor.redact(text.as_bytes())).unwrap();
            let (left, right) = out.split_once("[redacted:name]").unwrap_or_else(|| panic!("{out}"));
            // What is left stands for the neighbours, and for less than two of the secret's bytes on each side.
            let neighbours = |length: usize| if text == once { length * 4 / 3 + 2 } else { length * 16 / 9 + 8 };
            prop_assert!(left.len() <= neighbours(before.len()), "{out}");
            prop_assert!(right.len() <= neighbours(after.len() + 2), "{out}");
        }
    }
}
