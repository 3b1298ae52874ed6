//! Properties of every parser: no input makes it panic, and what is written is what is read.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::sync::LazyLock;

use cofferdam_attest::appraise::{Expectations, Roots, Verdict, appraise};
use cofferdam_attest::ccel::{self, LogEntry};
use cofferdam_attest::claims::Claims;
use cofferdam_attest::event_log::{Event, is_name, replay};
use cofferdam_attest::evidence::{Collateral, Evidence};
use cofferdam_attest::operator::{generate_vault_key, open_secret, seal_secret, vault_public_key};
use cofferdam_attest::policy::Policy;
use cofferdam_attest::reference::{Half, ImageReference, PlatformReference, ReferenceError};
use cofferdam_attest::release::Tag;
use cofferdam_attest::{quote, ratls};
use cofferdam_protocol::operator::{Authorization, SealedSecret, signing_input};
use cofferdam_protocol::{Base64Bytes, Fingerprint, SecretRef};
use common::{Fixture, word};
use proptest::prelude::*;

static HONEST: LazyLock<Evidence> = LazyLock::new(|| Fixture::default().evidence());
static ROOTS: LazyLock<Roots> = LazyLock::new(|| common::roots(&common::platform(1)));
static CERTIFICATE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let key = ratls::generate_key().unwrap();
    ratls::certificate(&key, b"{}", &[], common::NOW, 3600).unwrap()
});

/// Feeds bytes to everything that reads bytes from outside.
fn read_everything(bytes: &[u8]) {
    let _ = quote::parse(bytes);
    let _ = quote::trim_padding(bytes);
    let _ = ccel::parse(bytes);
    let _ = ccel::parse_tpm(bytes);
    let _ = Evidence::parse(bytes);
    let _ = Collateral::parse(bytes);
    let _ = Claims::decode(bytes);
    let _ = Policy::parse(bytes);
    let _ = Half::parse(bytes);
    let _ = ratls::evidence_from_certificate(bytes);
    let _ = ratls::spki_sha256(bytes);
    let _ = ratls::key_sha256(bytes);
    let _ = serde_json::from_slice::<SealedSecret>(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = (Tag::parse(text), text.parse::<Authorization>(), is_name(text));
    }
}

fn damage(honest: &[u8], at: prop::sample::Index, with: &[u8], cut: usize) -> Vec<u8> {
    let at = at.index(honest.len() + 1);
    let rest = honest.get(at + cut.min(honest.len() - at)..).unwrap_or_default();
    [&honest[..at], with, rest].concat()
}

fn register() -> impl Strategy<Value = [u8; 48]> {
    prop::collection::vec(any::<u8>(), 48).prop_map(|bytes| bytes.try_into().unwrap())
}

fn own_event() -> impl Strategy<Value = Event> {
    ("[a-z][a-z0-9-]{0,31}", prop::collection::vec(any::<u8>(), 0..300))
        .prop_map(|(name, payload)| Event::new(name, payload))
}

fn firmware_event() -> impl Strategy<Value = Event> {
    let payload = prop::option::of(prop::collection::vec(any::<u8>(), 0..1024));
    (0..3u8, "EV_[A-Z0-9_]{1,40}", register(), payload).prop_map(|(mr, event, digest, payload)| Event {
        mr,
        event,
        digest: Some(digest),
        payload,
    })
}

fn log_entry() -> impl Strategy<Value = LogEntry> {
    // EV_NO_ACTION (3) extends nothing and is not read back.
    let event_type = any::<u32>().prop_filter("EV_NO_ACTION", |kind| *kind != 3);
    (0..4u8, event_type, register(), prop::collection::vec(any::<u8>(), 0..2000))
        .prop_map(|(mr, event_type, digest, data)| LogEntry { mr, event_type, digest, data })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        read_everything(&bytes);
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in ".{0,200}") {
        read_everything(text.as_bytes());
    }

    #[test]
    fn no_damage_makes_a_parser_panic(
        which in 0..5usize,
        at: prop::sample::Index,
        with in prop::collection::vec(any::<u8>(), 0..16),
        cut in 0..64usize,
    ) {
        let log = ccel::write(&[LogEntry { mr: 1, event_type: 13, digest: [1; 48], data: vec![7; 40] }]);
        let document = HONEST.to_json().unwrap();
        let honest: [&[u8]; 5] = [&HONEST.quote, &document, &HONEST.claims, &log, &CERTIFICATE];
        read_everything(&damage(honest[which], at, &with, cut));
    }

    #[test]
    fn a_quote_has_one_length(extra in prop::collection::vec(any::<u8>(), 1..200), cut in 1..4000usize) {
        let longer = [HONEST.quote.as_slice(), &extra].concat();
        prop_assert_eq!(quote::parse(&longer), Err(quote::QuoteError::Trailing(extra.len())));
        let shorter = &HONEST.quote[..HONEST.quote.len().saturating_sub(cut)];
        prop_assert!(quote::parse(shorter).is_err());
        let padded = [HONEST.quote.as_slice(), &vec![0; extra.len()]].concat();
        prop_assert_eq!(quote::trim_padding(&padded).unwrap(), HONEST.quote.as_slice());
    }

    #[test]
    fn events_survive_json(own in prop::collection::vec(own_event(), 0..6), theirs in prop::collection::vec(firmware_event(), 0..6)) {
        let events = [theirs, own].concat();
        let json = serde_json::to_vec(&events).unwrap();
        prop_assert_eq!(&serde_json::from_slice::<Vec<Event>>(&json).unwrap(), &events);
    }

    #[test]
    fn firmware_logs_survive_their_binary_form(entries in prop::collection::vec(log_entry(), 0..12), ones: bool, filling in 0..64usize) {
        let mut log = ccel::write(&entries);
        prop_assert_eq!(&ccel::parse_entries(&log).unwrap(), &entries);
        log.extend(vec![if ones { 0xff } else { 0 }; filling]);
        let events = ccel::parse(&log).unwrap();
        prop_assert_eq!(events.len(), entries.len());
        for mr in 0..4 {
            let direct = entries.iter().filter(|entry| entry.mr == mr);
            let direct = direct.fold([0; 48], |register, entry| cofferdam_attest::event_log::extend(&register, &entry.digest));
            prop_assert_eq!(replay(&events, mr), direct);
        }
        for entry in &entries {
            prop_assert_eq!(ccel::type_number(&ccel::type_name(entry.event_type)), Some(entry.event_type));
        }
    }

    #[test]
    fn an_authorization_survives_its_header(key in any::<[u8; 32]>(), signature in prop::collection::vec(any::<u8>(), 64)) {
        let signature: [u8; 64] = signature.try_into().unwrap();
        let header = Authorization { key: Fingerprint::of(&key), signature: signature.into() };
        prop_assert_eq!(header.to_string().parse::<Authorization>().unwrap(), header);
    }

    #[test]
    fn signing_inputs_of_different_requests_differ(a in "[A-Z]{1,4}", b in "/[a-z]{0,8}", body in prop::collection::vec(any::<u8>(), 0..20)) {
        let input = signing_input(&a, &b, &body, &[1; 32]);
        prop_assert_ne!(&input, &signing_input(&a, &format!("{b}x"), &body, &[1; 32]));
        prop_assert_ne!(&input, &signing_input(&format!("{a}X"), &b, &body, &[1; 32]));
        prop_assert_ne!(&input, &signing_input(&a, &b, &[body.as_slice(), b"x"].concat(), &[1; 32]));
        prop_assert_ne!(&input, &signing_input(&a, &b, &body, &[2; 32]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn a_sealed_secret_opens_only_as_what_it_was_sealed(value in prop::collection::vec(any::<u8>(), 0..500), at: prop::sample::Index) {
        let (private, public) = generate_vault_key();
        prop_assert_eq!(vault_public_key(&private).unwrap(), public);
        let (here, there): (SecretRef, SecretRef) = (word("secret://a/b/c"), word("secret://a/b/d"));
        let sealed = seal_secret(&public, &here, &value).unwrap();
        prop_assert_eq!(&*open_secret(&private, &here, &sealed).unwrap(), &value);
        prop_assert!(open_secret(&private, &there, &sealed).is_err());
        prop_assert!(open_secret(&generate_vault_key().0, &here, &sealed).is_err());
        let mut ciphertext = sealed.ciphertext.as_bytes().to_vec();
        let at = at.index(ciphertext.len());
        ciphertext[at] ^= 1;
        let damaged = SealedSecret { ciphertext: Base64Bytes::new(ciphertext).unwrap(), ..sealed.clone() };
        prop_assert!(open_secret(&private, &here, &damaged).is_err());
        let json = serde_json::to_vec(&sealed).unwrap();
        prop_assert_eq!(serde_json::from_slice::<SealedSecret>(&json).unwrap(), sealed);
    }
}

#[test]
fn a_secret_that_is_too_long_is_refused() {
    let (_, public) = generate_vault_key();
    let reference = word("secret://a/b/c");
    assert!(seal_secret(&public, &reference, &vec![0; 64 * 1024]).is_ok());
    assert!(seal_secret(&public, &reference, &vec![0; 64 * 1024 + 1]).is_err());
    // The all-zero point has small order: no shared secret comes of it.
    assert!(seal_secret(&[0; 32], &reference, b"x").is_err());
}

#[test]
fn reference_values_survive_their_file_and_contradictions_do_not() {
    let honest = common::reference();
    let (image, platform) = (honest.images[0].clone(), honest.platforms[0].clone());
    for half in [Half::Image(image.clone()), Half::Platform(platform.clone())] {
        assert_eq!(Half::parse(&half.to_json().unwrap()).unwrap(), half);
        let text = String::from_utf8(half.to_json().unwrap()).unwrap();
        for (from, to) in [
            ("{\n", "{\n\"surprise\": 1,"),
            ("/v1\"", "/v2\""),
            ("\"events\"", "\"events\": [], \"events\""),
            ("\"kind\"", "\"kind\": \"cofferdam-image/v1\", \"kind\""),
        ] {
            assert!(text.contains(from));
            assert!(Half::parse(text.replacen(from, to, 1).as_bytes()).is_err(), "{to}");
        }
        assert!(Half::parse(format!("{text}x").as_bytes()).is_err());
    }
    let mut wrong = image.clone();
    wrong.boots[0].rtmr1 = [1; 48];
    assert!(matches!(
        Half::parse(&Half::Image(wrong).to_json().unwrap()),
        Err(ReferenceError::Replay { name: "rtmr1" })
    ));
    let mut foreign = image.clone();
    foreign.boots[0].events.push(platform.events[0].clone());
    assert!(matches!(Half::parse(&Half::Image(foreign).to_json().unwrap()), Err(ReferenceError::Events)));
    let empty = ImageReference { boots: vec![], ..image };
    assert!(matches!(Half::parse(&Half::Image(empty).to_json().unwrap()), Err(ReferenceError::TooMany(_))));
    let wrong = PlatformReference { rtmr0: Some([1; 48]), ..platform.clone() };
    assert!(matches!(
        Half::parse(&Half::Platform(wrong).to_json().unwrap()),
        Err(ReferenceError::Replay { name: "rtmr0" })
    ));
    let empty = PlatformReference { mrtd: vec![], ..platform };
    assert!(matches!(
        Half::parse(&Half::Platform(empty).to_json().unwrap()),
        Err(ReferenceError::TooMany(_))
    ));
}

#[test]
fn claims_are_read_strictly() {
    let honest = String::from_utf8(common::claims().encode().unwrap()).unwrap();
    assert_eq!(Claims::decode(honest.as_bytes()).unwrap(), common::claims());
    let bad = [
        ("\"version\":1", "\"version\":2"),
        ("\"version\":1", "\"version\":1,\"version\":1"),
        ("\"version\":1", "\"version\":1,\"extra\":1"),
        ("acme/shop", "acme"),
        ("acme/shop", "acme/.."),
        ("\"commit\":\"2", "\"commit\":\"g"),
        ("\"commit\":\"2", "\"commit\":\""),
        ("sha256:1", "sha512:1"),
        ("sha256:1", "sha256:A"),
        ("shop.example:8443", "shop.example"),
        ("shop.example:8443", "shop.example:0"),
        ("shop.example:8443", "shop.example:08443"),
        ("shop.example:8443", "shop.example:70000"),
        ("shop.example:8443", "Shop.Example:8443"),
        ("acme/shop", "ac--me/shop"),
        ("shop.example:8443", "-shop.example:1"),
        ("shop.example:8443", "[::1:1"),
        ("shop.example:8443", "a b:1"),
        ("AAAA=\"", "AAA=\""),
        ("Z\",\"expires_at", "+00:00\",\"expires_at"),
        ("\"sealed\":false", "\"sealed\":0"),
        ("\"state_epoch\":0", "\"state_epoch\":-1"),
        ("\"state_epoch\":0", "\"state_epoch\":0,\"nonce\":\"AAAA\""),
        ("\"state_epoch\":0", "\"state_epoch\":0,\"nonce\":null,\"nonce\":null"),
        ("\"state_epoch\":0", "\"state_epoch\":0,\"channel_binding\":\"AAAA\""),
    ];
    for (from, to) in bad {
        let text = honest.replacen(from, to, 1);
        assert_ne!(text, honest, "{from}");
        assert!(Claims::decode(text.as_bytes()).is_err(), "{to}");
    }
    assert!(Claims::decode(format!("{honest}{}", " ".repeat(20_000)).as_bytes()).is_err());
    for endpoint in ["127.0.0.1:8443", "[::1]:443", "localhost:1", "a-b.c1:65535"] {
        let text = honest.replacen("shop.example:8443", endpoint, 1);
        assert_eq!(Claims::decode(text.as_bytes()).unwrap().endpoint.to_string(), endpoint);
    }
}

/// A version 5 quote with the parts of the honest one around a body of another type.
fn version_5(kind: u16, size: u32, body: &[u8]) -> Vec<u8> {
    let (header, rest) = HONEST.quote.split_at(48);
    let (body_10, signature) = rest.split_at(584);
    let mut quote = header.to_vec();
    quote[0] = 5;
    quote.extend(kind.to_le_bytes());
    quote.extend(size.to_le_bytes());
    quote.extend(body_10);
    quote.extend(body);
    quote.extend(signature);
    quote
}

#[test]
fn version_5_says_what_its_body_is() {
    let four = quote::parse(&HONEST.quote).unwrap();
    let ten = quote::parse(&version_5(2, 584, &[])).unwrap();
    assert_eq!((ten.version, ten.mr_service_td), (5, None));
    assert_eq!((ten.mrtd, ten.rtmr, ten.report_data), (four.mrtd, four.rtmr, four.report_data));
    let mut body = [0; 64];
    body[16..].fill(7);
    let fifteen = quote::parse(&version_5(3, 648, &body)).unwrap();
    assert_eq!((fifteen.tdx_15, fifteen.mr_service_td), (true, Some([7; 48])));
    assert_eq!(fifteen.rtmr, four.rtmr);
    let extended = quote::parse(&version_5(4, 885, &[body.as_slice(), &[0; 237]].concat())).unwrap();
    assert_eq!(extended.mr_service_td, Some([7; 48]));
    for (kind, size) in [(2, 648), (3, 584), (1, 384), (5, 648), (3, 649), (4, u32::MAX)] {
        assert!(quote::parse(&version_5(kind, size, &body)).is_err(), "{kind} {size}");
    }
    let mut six = HONEST.quote.clone();
    six[0] = 6;
    assert_eq!(quote::parse(&six), Err(quote::QuoteError::Version(6)));
    let mut sgx = HONEST.quote.clone();
    sgx[4] = 0;
    assert_eq!(quote::parse(&sgx), Err(quote::QuoteError::NotTdx(0)));
}

/// What reference values may be given: image halves, platform halves and, of each, which fit the honest machine.
fn halves() -> Vec<Half> {
    let reference = common::reference();
    let (image, platform) = (&reference.images[0], &reference.platforms[0]);
    let image_with = |mr: u8| {
        let mut image = image.clone();
        let boot = &mut image.boots[0];
        boot.events.iter_mut().filter(|event| event.mr == mr).for_each(|event| event.digest = [9; 48]);
        Half::Image(image)
    };
    let platform_with = |change: &dyn Fn(&mut PlatformReference)| {
        let mut platform = platform.clone();
        change(&mut platform);
        Half::Platform(platform)
    };
    let partial = |platform: &mut PlatformReference| platform.rtmr0 = None;
    let elsewhere = |platform: &mut PlatformReference| platform.events[0].digest = [7; 48];
    let mut wrong = image_with(1);
    if let Half::Image(image) = &mut wrong {
        image.boots[0].rtmr1 = [1; 48];
    }
    vec![
        Half::Image(image.clone()),
        wrong,
        image_with(2),
        Half::Platform(platform.clone()),
        platform_with(&|p| p.rtmr0 = Some([2; 48])),
        platform_with(&partial),
        platform_with(&|p| {
            partial(p);
            elsewhere(p);
        }),
        platform_with(&|p| {
            partial(p);
            p.events.remove(0);
        }),
        platform_with(&|p| {
            partial(p);
            p.events.clear();
        }),
        platform_with(&|p| p.mrtd[0].value = [3; 48]),
        platform_with(&|p| p.simulated = false),
        platform_with(&|p| {
            p.mrtd[0].value = [3; 48];
            partial(p);
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    /// Adding a reference never turns an acceptance into a refusal, nor into an answer of "could not check": whatever was
    /// compared already, in whichever order, with a firmware log or without one, and whatever the policy requires. (The
    /// very first half of a kind begins a comparison that a policy may not have asked for: it can refuse.)
    #[test]
    fn acceptance_is_monotone_in_the_references(
        order in Just((0..12usize).collect::<Vec<_>>()).prop_shuffle(),
        with_log: bool,
        required in prop::sample::subsequence(vec!["mrtd", "rtmr0", "rtmr1", "rtmr2"], 0..=4),
    ) {
        let mut evidence = HONEST.clone();
        if !with_log {
            evidence.event_log.retain(|event| event.mr == 3);
        }
        let required = required.into_iter().map(str::to_owned).collect();
        let policy = Policy { required_registers: required, ..Policy::default() };
        let (fixture, all) = (Fixture::default(), halves());
        let mut expected = Expectations { reference: Default::default(), ..fixture.expectations() };
        let (mut accepted, mut image, mut platform) = (false, false, false);
        for at in order {
            expected.reference.add(all[at].clone()).unwrap();
            let verdict = appraise(&evidence, &expected, &policy, &ROOTS, common::NOW).verdict();
            let begins = match &all[at] {
                Half::Image(_) => !std::mem::replace(&mut image, true),
                Half::Platform(half) => half.simulated && !std::mem::replace(&mut platform, true),
            };
            prop_assert!(!accepted || begins || verdict == Verdict::Accepted, "{} after an acceptance", at);
            accepted = verdict == Verdict::Accepted;
        }
        // All of them together hold those that fit.
        prop_assert!(accepted);
    }
}
