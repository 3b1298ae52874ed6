//! A simulated appliance: honest evidence, made with the development PKI, for tests to damage.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use cofferdam_attest::appraise::{Appraisal, Expectations, Outcome, Roots, appraise};
use cofferdam_attest::claims::{Claims, report_data};
use cofferdam_attest::event_log::payload::{
    Appliance, Declaration, Image, Launch, Machine, Payload as _, State,
};
use cofferdam_attest::event_log::{Event, Register, replay};
use cofferdam_attest::evidence::{Collateral, Evidence, ImageInfo};
use cofferdam_attest::policy::Policy;
use cofferdam_attest::reference::{
    Boot, BootPlatform, BootSource, Cause, ImageReference, Mrtd, PageOrder, PlatformReference,
    PredictedEvent, ReferenceValues,
};
use cofferdam_protocol::Timestamp;
use tdx_sim::{CollateralOptions, Platform, Seed, TdReport};

pub const NOW: u64 = 1_800_000_000;
pub const DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
pub const COMMIT: &str = "2222222222222222222222222222222222222222";

/// A word of the protocol from its text.
pub fn word<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

pub fn time(unix: u64) -> Timestamp {
    Timestamp::from_unix(unix).unwrap()
}

/// The digest of the TLS key.
pub fn key() -> cofferdam_protocol::Digest {
    word(&DIGEST.replace('1', "3"))
}

pub fn platform(seed: u8) -> Platform {
    Platform::from_seed(Seed::from_bytes(&[seed; 32]).unwrap()).unwrap()
}

pub fn collateral(platform: &Platform, options: CollateralOptions) -> Collateral {
    let json = platform.collateral(NOW, options).unwrap().to_json().unwrap();
    Collateral::parse(json.as_bytes()).unwrap()
}

pub fn roots(platform: &Platform) -> Roots {
    Roots::intel().with_pem(&platform.root_pem()).unwrap()
}

pub fn firmware_events() -> Vec<Event> {
    let event = |mr, name: &str, byte, payload: &str| Event {
        mr,
        event: name.to_owned(),
        digest: Some([byte; 48]),
        payload: Some(payload.as_bytes().to_vec()),
    };
    vec![
        event(0, "EV_EFI_PLATFORM_FIRMWARE_BLOB2", 1, "firmware"),
        event(0, "EV_SEPARATOR", 2, "\0\0\0\0"),
        event(1, "EV_EFI_BOOT_SERVICES_APPLICATION", 3, "BOOTX64.EFI"),
        event(1, "EV_EFI_ACTION", 4, "Exit Boot Services Invocation"),
        event(2, "EV_IPL", 5, ".linux"),
        event(2, "EV_IPL", 6, ".initrd"),
    ]
}

pub fn appliance(declaration: &str) -> Appliance {
    Appliance {
        repository: word("acme/shop"),
        declaration: word(declaration),
        endpoint: word("shop.example:8443"),
    }
}

pub fn own_events() -> Vec<Event> {
    [
        Declaration { digest: word(DIGEST), source: "disk".into(), commit: word(COMMIT) }.event(),
        appliance(DIGEST).event(),
        Machine { cpus: 2, memory_mib: 2048, network: None }.event(),
        State::memory().event(),
        Image { service: "web".into(), reference: word(&format!("registry.example/web@{DIGEST}")) }.event(),
        Launch { services: vec!["web".into()], tls_key: key() }.event(),
    ]
    .map(Result::unwrap)
    .into()
}

pub fn claims() -> Claims {
    Claims {
        version: 1,
        repository: word("acme/shop"),
        commit: word(COMMIT),
        declaration: word(DIGEST),
        endpoint: word("shop.example:8443"),
        tls_key: key(),
        vault_key: [0; 32].into(),
        issued_at: time(NOW - 600),
        expires_at: time(NOW - 600 + 86_400),
        sealed: false,
        state_epoch: 0,
        state_continuity: None,
        certificate: None,
        nonce: None,
        channel_binding: None,
        challenges: None,
    }
}

pub fn registers(events: &[Event]) -> [Register; 4] {
    [0, 1, 2, 3].map(|mr| replay(events, mr))
}

/// Both halves as an honest verifier has them for [`firmware_events`].
pub fn reference() -> ReferenceValues {
    let events = firmware_events();
    let [rtmr0, rtmr1, rtmr2, _] = registers(&events);
    let predicted = |wanted: &[u8]| -> Vec<PredictedEvent> {
        let of_half = events.iter().filter(|event| wanted.contains(&event.mr));
        of_half
            .map(|event| PredictedEvent {
                mr: event.mr,
                event: event.event.clone(),
                digest: event.register_digest(),
                cause: Cause::Firmware(
                    String::from_utf8_lossy(event.payload.as_deref().unwrap_or_default()).into_owned(),
                ),
            })
            .collect()
    };
    let boot = Boot {
        platform: BootPlatform::Simulator,
        source: BootSource::Disk,
        rtmr1,
        rtmr2,
        events: predicted(&[1, 2]),
    };
    let image =
        ImageReference { image: image(), length: None, build: None, boots: vec![boot], alternatives: vec![] };
    let platform = PlatformReference {
        name: "simulator".into(),
        simulated: true,
        firmware: None,
        machine: None,
        mrtd: vec![Mrtd { order: PageOrder::Stated, value: tdx_sim::mrtd() }],
        rtmr0: Some(rtmr0),
        events: predicted(&[0]),
        alternatives: vec![],
    };
    ReferenceValues { images: vec![image], platforms: vec![platform] }
}

pub fn image() -> ImageInfo {
    ImageInfo { name: "cofferdam".into(), release: "0.1.0".into(), digests: Default::default() }
}

/// An appliance that tests can change before it makes its evidence.
pub struct Fixture {
    pub platform: Platform,
    pub claims: Claims,
    pub events: Vec<Event>,
    pub options: CollateralOptions,
    pub change_report: fn(&mut TdReport),
}

impl Default for Fixture {
    fn default() -> Self {
        Self {
            platform: platform(1),
            claims: claims(),
            events: [firmware_events(), own_events()].concat(),
            options: CollateralOptions::default(),
            change_report: |_| {},
        }
    }
}

impl Fixture {
    pub fn report(&self) -> TdReport {
        let mut report = TdReport::new(registers(&self.events), report_data(&self.claims.encode().unwrap()));
        (self.change_report)(&mut report);
        report
    }

    pub fn evidence(&self) -> Evidence {
        Evidence {
            claims: self.claims.encode().unwrap(),
            quote: self.platform.quote(&self.report()),
            event_log: self.events.clone(),
            collateral: Some(collateral(&self.platform, self.options)),
            image: image(),
            challenge: None,
        }
    }

    pub fn expectations(&self) -> Expectations {
        Expectations {
            repository: Some(word("acme/shop")),
            commit: Some(word(COMMIT)),
            endpoint: Some(word("shop.example:8443")),
            tls_key: Some(key()),
            declaration: Some(word(DIGEST)),
            reference: reference(),
            ..Expectations::default()
        }
    }

    pub fn appraise(&self, evidence: &Evidence) -> Appraisal {
        self.appraise_with(evidence, &self.expectations())
    }

    pub fn appraise_with(&self, evidence: &Evidence, expected: &Expectations) -> Appraisal {
        appraise(evidence, expected, &Policy::default(), &roots(&self.platform), NOW)
    }
}

/// Names of the checks with this outcome.
pub fn names(appraisal: &Appraisal, outcome: Outcome) -> Vec<&'static str> {
    appraisal.checks.iter().filter(|check| check.outcome == outcome).map(|check| check.name).collect()
}

pub fn failed(appraisal: &Appraisal) -> Vec<&'static str> {
    names(appraisal, Outcome::Fail)
}

pub fn detail<'a>(appraisal: &'a Appraisal, name: &str) -> &'a str {
    &appraisal.check(name).unwrap_or_else(|| panic!("no check {name}: {:#?}", appraisal.checks)).detail
}
