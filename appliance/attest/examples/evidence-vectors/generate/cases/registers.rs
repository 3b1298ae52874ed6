//! MRTD, RTMR0-2 and the firmware's log against reference values.

use cofferdam_attest::event_log::Event;
use cofferdam_attest::evidence::Evidence;
use serde_json::{Value, json};
use tdx_sim::TdReport;

use super::Case;
use super::common::{self, Fixture};

pub(super) fn cases(honest: &Value) -> Vec<Case> {
    [measured(honest), firmware_log(honest), references(honest), mixed(honest)].concat()
}

fn case(honest: &Value, name: &str, about: &str) -> Case {
    Case::new(honest, &format!("registers/{name}"), about)
}

/// Evidence of a machine that measured other events.
fn with(change: impl FnOnce(&mut Vec<Event>)) -> Evidence {
    let mut fixture = Fixture::default();
    change(&mut fixture.events);
    fixture.evidence()
}

/// Another firmware, machine or image booted.
fn measured(honest: &Value) -> Vec<Case> {
    let event =
        |name: &str, about: &str, change: &dyn Fn(&mut Vec<Event>), failed: &[&'static str], reason| {
            case(honest, name, about).evidence(&with(change)).fails(failed, reason)
        };
    let mrtd: fn(&mut TdReport) = |report| report.mrtd = [0x11; 48];
    let extra = |events: &mut Vec<Event>| {
        let event = Event { digest: Some([9; 48]), payload: Some(b".cmdline".to_vec()), ..events[5].clone() };
        events.insert(6, event);
    };
    let other_type = |events: &mut Vec<Event>| {
        events[3] =
            Event { event: "EV_IPL".into(), payload: None, digest: Some([9; 48]), ..events[3].clone() };
    };
    vec![
        case(honest, "mrtd-differs", "another firmware")
            .evidence(&Fixture { change_report: mrtd, ..Fixture::default() }.evidence())
            .fails(&["mrtd"], "is 1111"),
        event(
            "rtmr0-differs",
            "another firmware or machine",
            &|e| e[0].digest = Some([0x99; 48]),
            &["rtmr0"],
            "event 1 of RTMR0: EV_EFI_PLATFORM_FIRMWARE_BLOB2",
        ),
        event(
            "rtmr1-differs",
            "another image",
            &|e| e[2].digest = Some([0x33; 48]),
            &["rtmr1"],
            "event 1 of RTMR1: EV_EFI_BOOT_SERVICES_APPLICATION (firmware: BOOTX64.EFI)",
        ),
        event(
            "rtmr2-differs",
            "another initrd",
            &|e| e[5].digest = Some([0x66; 48]),
            &["rtmr2"],
            "event 2 of RTMR2: EV_IPL (firmware: .initrd)",
        ),
        event(
            "event-missing",
            "no initrd",
            &|e| drop(e.remove(5)),
            &["rtmr2"],
            "event 2 of RTMR2 is missing: EV_IPL (firmware: .initrd)",
        ),
        event(
            "event-extra",
            "an event more",
            &extra,
            &["rtmr2"],
            "event 3 of RTMR2 was not predicted: EV_IPL (.cmdline)",
        ),
        event(
            "events-swapped",
            "the right events in another order",
            &|e| e.swap(4, 5),
            &["rtmr2"],
            "event 1 of RTMR2",
        ),
        event(
            "event-of-another-type",
            "an event of another type",
            &other_type,
            &["rtmr1"],
            "EV_IPL where EV_EFI_ACTION",
        ),
        event(
            "all-differ",
            "another image on another firmware",
            &|e| e[..6].iter_mut().for_each(|e| e.digest = Some([9; 48])),
            &["rtmr0", "rtmr1", "rtmr2"],
            "event 1 of RTMR0",
        ),
    ]
}

/// The log is the host's to change; it explains and never vouches.
fn firmware_log(honest: &Value) -> Vec<Case> {
    let evidence = Fixture::default().evidence();
    let log = |name: &str, about: &str, change: &dyn Fn(&mut Vec<Event>)| {
        let mut evidence = evidence.clone();
        change(&mut evidence.event_log);
        Case::new(honest, &format!("firmware-log/{name}"), about).evidence(&evidence)
    };
    let hidden = {
        let mut evidence = with(|events| events[2].digest = Some([0x33; 48]));
        evidence.event_log[2].digest = Some([3; 48]);
        evidence
    };
    let absent = {
        let mut evidence = with(|events| events[2].digest = Some([0x33; 48]));
        evidence.event_log.drain(..6);
        evidence
    };
    let fails = |case: Case, reason| case.fails(&["firmware_log"], reason);
    vec![
        log("absent", "no firmware log: the registers are compared all the same", &|l| drop(l.drain(..6))),
        log(
            "payload-changed",
            "data that no digest covers: it proves nothing, and nothing relies on it",
            &|l| l[4].payload = Some(b".evil".to_vec()),
        ),
        fails(
            log("digest-changed", "an event that was not measured", &|l| l[0].digest = Some([9; 48])),
            "does not replay to RTMR0",
        ),
        fails(log("event-removed", "an event was cut", &|l| drop(l.remove(2))), "does not replay to RTMR1"),
        fails(
            log("event-added", "an event was added", &|l| l.insert(6, l[5].clone())),
            "does not replay to RTMR2",
        ),
        fails(
            log("events-swapped", "two events of one register in another order", &|l| l.swap(0, 1)),
            "does not replay to RTMR0",
        ),
        log("event-after-our-own", "a firmware event behind the appliance's own", &|l| l.swap(5, 6))
            .fails(&["event_order"], "a firmware event follows"),
        case(honest, "difference-hidden", "another image with the right image's log")
            .evidence(&hidden)
            .fails(&["firmware_log", "rtmr1"], "no event can be named"),
        case(honest, "difference-without-log", "another image without a log")
            .evidence(&absent)
            .fails(&["rtmr1"], "no firmware log"),
    ]
}

/// Reference values that are missing, or for something else.
fn references(honest: &Value) -> Vec<Case> {
    let case = |name: &str, about: &str| Case::new(honest, &format!("reference/{name}"), about);
    let image = || honest["references"][0].clone();
    let platform = || honest["references"][1].clone();
    let two_orders = {
        let mut case = case("another-page-order", "the second of two MRTDs of one firmware");
        let right = case.input["references"][1]["mrtd"][0].clone();
        let other = json!({ "order": "two_pass", "value": "11".repeat(48) });
        case.input["references"][1]["mrtd"] = json!([other, right]);
        case
    };
    let partly = {
        let mut case = case("platform-in-part", "an event that was predicted did not happen");
        case.input["references"][1].as_object_mut().unwrap().remove("rtmr0");
        case.input["references"][1]["events"][0]["digest"] = json!("07".repeat(48));
        case
    };
    vec![
        two_orders,
        case("none", "no reference values")
            .set("/references", json!([]))
            .unknown(&["mrtd", "rtmr1", "rtmr2"], "no reference value"),
        case("image-only", "nothing about the platform")
            .set("/references", vec![image()])
            .unknown(&["mrtd"], "no reference value"),
        case("platform-only", "nothing about the image")
            .set("/references", vec![platform()])
            .unknown(&["rtmr1", "rtmr2"], "no reference value"),
        case("platform-of-hardware", "a simulated TD is never compared with hardware's values")
            .without("/references/1/simulated")
            .unknown(&["mrtd"], "no reference value"),
        case("image-on-hardware", "a simulated TD is never compared with hardware's values")
            .set("/references/0/boots/0/platform", "tdx")
            .unknown(&["rtmr1", "rtmr2"], "no reference value"),
        case("another-mrtd", "the value of another firmware")
            .set("/references/1/mrtd/0/value", "11".repeat(48))
            .fails(&["mrtd"], "reference for simulator is 1111"),
        partly.fails(&["rtmr0"], "lacks the predicted"),
    ]
}

/// Halves of several images and platforms never add up to one.
fn mixed(honest: &Value) -> Vec<Case> {
    let reference = common::reference();
    let rewritten = |mr: u8, digest: u8| {
        let mut boot = reference.images[0].boots[0].clone();
        boot.events.iter_mut().filter(|event| event.mr == mr).for_each(|event| event.digest = [digest; 48]);
        let value = cofferdam_attest::reference::replay(&boot.events, mr);
        if mr == 1 {
            boot.rtmr1 = value
        } else {
            boot.rtmr2 = value
        }
        let mut half = honest["references"][0].clone();
        half["boots"][0] = serde_json::to_value(boot).unwrap();
        half
    };
    let machine = |mrtd: Option<&str>, digest: Option<u8>| {
        let mut half = honest["references"][1].clone();
        if let Some(mrtd) = mrtd {
            half["mrtd"][0]["value"] = json!(mrtd.repeat(48));
        }
        if let Some(digest) = digest {
            let mut platform = reference.platforms[0].clone();
            platform.events.iter_mut().for_each(|event| event.digest = [digest; 48]);
            half["rtmr0"] = json!(hex::encode(cofferdam_attest::reference::replay(&platform.events, 0)));
            half["events"] = serde_json::to_value(platform.events).unwrap();
        }
        half
    };
    let image = honest["references"][0].clone();
    let platform = honest["references"][1].clone();
    let part = {
        let mut half = platform.clone();
        half.as_object_mut().unwrap().remove("rtmr0");
        half
    };
    let shape = machine(None, Some(9));
    let case = |name: &str, about: &str, halves: Vec<Value>| {
        Case::new(honest, &format!("reference/{name}"), about).set("/references", halves)
    };
    vec![
        case(
            "another-shape-and-in-part",
            "one half is for another machine, another is known in part and fits",
            vec![image.clone(), shape.clone(), part.clone()],
        ),
        case(
            "another-shape-and-in-part-required",
            "the same, and RTMR0 is required",
            vec![image.clone(), part, shape.clone()],
        )
        .set("/policy/required_registers", json!(["mrtd", "rtmr0", "rtmr1", "rtmr2"]))
        .unknown(&["rtmr0"], "not determined"),
        case("another-shape", "the only half is for another machine", vec![image.clone(), shape])
            .fails(&["rtmr0"], "reference is"),
        case(
            "two-images",
            "one has the right RTMR1, the other the right RTMR2",
            vec![rewritten(2, 9), rewritten(1, 9), platform.clone()],
        )
        .fails(&["rtmr1"], "reference is"),
        case(
            "two-platforms",
            "one has the right MRTD, the other the right RTMR0",
            vec![image.clone(), machine(None, Some(9)), machine(Some("11"), None)],
        )
        .fails(&["rtmr0"], "reference is"),
        case(
            "the-right-ones-among-others",
            "each half is found wherever it stands",
            vec![
                rewritten(1, 7),
                machine(Some("22"), Some(7)),
                image,
                rewritten(2, 8),
                platform,
                machine(Some("33"), None),
            ],
        ),
    ]
}
