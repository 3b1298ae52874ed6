//! Whatever the bytes are: an answer, in bounded time, with every place inside the file.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use cofferdam_declaration::{Declaration, MAX_BYTES, MAX_DIAGNOSTICS};
use proptest::prelude::*;

const VALID: &str = "version: 1
repository: octo-org/payments
endpoint: 127.0.0.1:8443
operators: [{name: alice, key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL3eMexUl4rWPV2mlvLRouVrCagc04WaQr3bjVft2JOy}]
tokens: [{name: ci, hash: sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef}]
services:
  web:
    image: registry.example:5000/app@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
    command: [run, \"a b\"]
    environment: {A: 'x', B: \"y\", C: 8080}
    ports: ['443:8080', {published: 444, target: 80, auth: tokens}]
    depends_on: [db]
    restart: on-failure:3
    deploy: {resources: {limits: {cpus: '0.5', memory: 64m, pids: 9}}}
    ulimits: {nofile: {soft: 1, hard: 2}, core: 0}
    cap_drop: [ALL]
    cap_add: [CHOWN]
  db: {image: 'registry.example:5000/db@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef'}
";

fn check(bytes: &[u8]) {
    if let Err(errors) = Declaration::parse(bytes) {
        let lines = bytes.split(|b| *b == b'\n').count();
        let count = errors.iter().count();
        assert!((1..=MAX_DIAGNOSTICS).contains(&count));
        for error in errors.iter() {
            assert!(error.line >= 1 && error.line <= lines, "{error:?}");
            assert!(error.column >= 1, "{error:?}");
            assert!(!error.message.contains(char::is_control), "{error:?}");
            assert!(!error.message.ends_with('.') && !error.message.is_empty(), "{error:?}");
        }
        let controls = errors.render("f").chars().filter(|c| c.is_control() && *c != '\n').count();
        assert_eq!(controls, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        check(&bytes);
    }

    #[test]
    fn any_text_gets_an_answer(text in "[ -~\\n\u{e9}\u{202e}]{0,300}") {
        check(text.as_bytes());
    }

    #[test]
    fn yaml_like_text_gets_an_answer(parts in prop::collection::vec(prop::sample::select(vec![
        "version: 1\n", "services:\n", "  web:\n", "    image: a\n", "- ", "? ", ": ", "&a ", "*a ", "!!str ", "[", "]", "{", "}",
        ", ", "'", "\"", "|\n", ">-\n", "#", "---\n", "...\n", "%YAML\n", "<<: ", "\n", "  ", "\t", "\\x00", "~", "0x1", "$A", "é",
    ]), 0..60)) {
        check(parts.concat().as_bytes());
    }

    #[test]
    fn a_valid_file_with_one_change_gets_an_answer(at in 0..VALID.len(), cut in 0_usize..30, new in "[ -~\\n]{0,6}") {
        let mut text = VALID.as_bytes().to_vec();
        let end = (at + cut).min(text.len());
        text.splice(at..end, new.bytes());
        check(&text);
    }

    #[test]
    fn what_is_accepted_has_a_complete_start_order(services in prop::collection::vec(prop::collection::vec(0_usize..8, 0..4), 1..8)) {
        let mut yaml = VALID.split("services:").next().unwrap().to_owned() + "services:\n";
        for (index, needs) in services.iter().enumerate() {
            let needs: Vec<_> = needs.iter().filter(|n| **n < services.len()).map(|n| format!("s{n}")).collect();
            yaml += &format!("  s{index}: {{image: 'r.example/a@sha256:{}', depends_on: [{}]}}\n", "0".repeat(64), needs.join(", "));
        }
        if let Ok(declaration) = Declaration::parse(yaml.as_bytes()) {
            let order = declaration.start_order();
            prop_assert_eq!(order.len(), services.len());
            for (place, service) in order.iter().enumerate() {
                for need in &service.depends_on {
                    prop_assert!(order[..place].iter().any(|earlier| earlier.name == need.service));
                }
            }
        } else {
            // Refused only for a cycle: following dependencies from somewhere never ends.
            let mut left: Vec<_> = (0..services.len()).collect();
            loop {
                let before = left.len();
                let waiting = left.clone();
                left.retain(|s| services[*s].iter().any(|n| *n < services.len() && waiting.contains(n)));
                if left.len() == before { break; }
            }
            prop_assert!(!left.is_empty());
        }
    }
}

#[test]
fn the_valid_file_is_valid() {
    Declaration::parse(VALID.as_bytes()).unwrap();
}

#[test]
fn too_large_is_refused_before_it_is_read() {
    let comment = format!("{VALID}# {}\n", "x".repeat(MAX_BYTES - VALID.len() - 3));
    assert_eq!(comment.len(), MAX_BYTES);
    Declaration::parse(comment.as_bytes()).unwrap();
    let errors = Declaration::parse(&[comment.as_bytes(), b"\n"].concat()).unwrap_err();
    assert!(errors.to_string().contains("1048577 bytes"), "{errors}");
}

#[test]
fn bytes_that_are_not_text_are_refused_at_their_place() {
    let errors = Declaration::parse(b"version: 1\nrepository: caf\xe9\n").unwrap_err();
    let error = errors.iter().next().unwrap();
    assert_eq!((error.line, error.column), (2, 16));
}

#[test]
fn a_mebibyte_of_anything_is_answered_quickly() {
    let inputs = [
        "[", "[,", "- ", "a: ", "? ", "\"", "{a: ", "&a ", "*a ", "!", "#\n", "\n", "- a\n", "|\n", "'",
        "a\n", "[[],", "%",
    ];
    for input in inputs {
        let text = input.repeat(MAX_BYTES / input.len());
        let start = std::time::Instant::now();
        check(text.as_bytes());
        assert!(start.elapsed() < std::time::Duration::from_secs(20), "{input:?} took {:?}", start.elapsed());
    }
    let keys: String = (0..60_000).map(|n| format!("k{n}: v\n")).collect();
    check(keys.as_bytes());
}

#[test]
fn more_errors_than_help_are_counted() {
    let keys: String = (0..100).map(|n| format!("k{n}: v\n")).collect();
    let errors = Declaration::parse(format!("{VALID}{keys}").as_bytes()).unwrap_err();
    assert_eq!(errors.iter().count(), MAX_DIAGNOSTICS);
    assert!(errors.to_string().contains("(and 60 more errors)"));
}
