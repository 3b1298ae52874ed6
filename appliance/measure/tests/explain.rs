//! Every cause that can be named, produced from bytes: images are built, changed and predicted; their logs are what a boot
//! of the changed image measures, with the data that firmware, boot stub and kernel write.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use cofferdam_attest::event_log::payload::{Machine, Payload as _};
use cofferdam_attest::event_log::{Event, MAX_EVENTS, Register, replay};
use cofferdam_attest::quote::Quote;
use cofferdam_attest::reference::{
    Alternative, BootPlatform, Cause, FirmwareInfo, MachineShape, Mrtd, PageOrder, PlatformReference,
    PredictedEvent, Reason, ReferenceValues,
};
use cofferdam_measure::explain::{Certainty, Explanation, Status, explain, summary};
use cofferdam_measure::{image_reference, pe};
use sha2::{Digest as _, Sha384};

// ---------------------------------------------------------------------------------------------------- images

/// A PE32+ image of sections, as a linker lays it out.
fn pe_image(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut image = vec![0_u8; 0x400];
    image[..2].copy_from_slice(b"MZ");
    image[0x3c..0x40].copy_from_slice(&0x80_u32.to_le_bytes());
    image[0x80..0x84].copy_from_slice(b"PE\0\0");
    image[0x86..0x88].copy_from_slice(&u16::try_from(sections.len()).unwrap().to_le_bytes());
    image[0x94..0x96].copy_from_slice(&240_u16.to_le_bytes());
    let optional = 0x98;
    image[optional..optional + 2].copy_from_slice(&0x20b_u16.to_le_bytes());
    image[optional + 60..optional + 64].copy_from_slice(&0x400_u32.to_le_bytes());
    image[optional + 108..optional + 112].copy_from_slice(&16_u32.to_le_bytes());
    for (index, (name, data)) in sections.iter().enumerate() {
        let header = optional + 240 + index * 40;
        let start = u32::try_from(image.len()).unwrap();
        let padded = data.len().next_multiple_of(0x200);
        image[header..header + name.len()].copy_from_slice(name.as_bytes());
        image[header + 8..header + 12].copy_from_slice(&u32::try_from(data.len()).unwrap().to_le_bytes());
        image[header + 16..header + 20].copy_from_slice(&u32::try_from(padded).unwrap().to_le_bytes());
        image[header + 20..header + 24].copy_from_slice(&start.to_le_bytes());
        image.extend_from_slice(data);
        image.resize(start as usize + padded, 0);
    }
    image
}

/// What an image is made of.
#[derive(Clone)]
struct Parts {
    stub: Vec<u8>,
    kernel: Vec<u8>,
    release: &'static str,
    command_line: &'static str,
    uname: &'static str,
    initrd: Vec<u8>,
    sbat: &'static str,
}

impl Parts {
    fn new() -> Self {
        Self {
            stub: b"systemd-stub 257".to_vec(),
            kernel: kernel(b"kernel code"),
            release: "ID=cofferdam\nVERSION_ID=0.1.0\n",
            command_line: "console=ttyS0 quiet",
            uname: "7.3.4",
            initrd: b"070701 initial files".to_vec(),
            sbat: "sbat,1,SBAT Version\n",
        }
    }

    fn uki(&self) -> Vec<u8> {
        pe_image(&[
            (".text", &self.stub),
            (".osrel", self.release.as_bytes()),
            (".cmdline", self.command_line.as_bytes()),
            (".uname", self.uname.as_bytes()),
            (".sbat", self.sbat.as_bytes()),
            (".initrd", &self.initrd),
            (".linux", &self.kernel),
        ])
    }
}

/// A kernel with a setup header (Linux `Documentation/arch/x86/boot.rst`): `HdrS` at 0x202, boot protocol 2.15.
fn kernel(code: &[u8]) -> Vec<u8> {
    let mut kernel = pe_image(&[(".text", code)]);
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    kernel
}

/// What QEMU before 10.2 writes into a setup header (`x86_load_linux`): loader type, heap flag and end, command line.
fn patch_header(kernel: &mut [u8]) {
    kernel[0x210] = 0xb0;
    kernel[0x211] |= 0x80;
    kernel[0x224..0x226].copy_from_slice(&0xfe00_u16.to_le_bytes());
    kernel[0x228..0x22c].copy_from_slice(&0x20000_u32.to_le_bytes());
}

fn authenticode(image: &[u8]) -> Register {
    pe::Image::parse(image).unwrap().authenticode_sha384().unwrap()
}

fn sha384(data: &[u8]) -> Register {
    Sha384::digest(data).into()
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

// ------------------------------------------------------------------------------------------------------ logs

/// An event whose digest is that of its data.
fn of_data(mr: u8, event: &str, data: &[u8]) -> Event {
    Event { mr, event: event.to_owned(), digest: Some(sha384(data)), payload: Some(data.to_vec()) }
}

fn of_digest(mr: u8, event: &str, digest: Register, payload: &[u8]) -> Event {
    Event { mr, event: event.to_owned(), digest: Some(digest), payload: Some(payload.to_vec()) }
}

/// `UEFI_VARIABLE_DATA` for a variable of the global namespace.
fn variable(name: &str, contents: &[u8]) -> Vec<u8> {
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut data = vec![0x61; 16];
    data.extend(((name.len() / 2) as u64).to_le_bytes());
    data.extend((contents.len() as u64).to_le_bytes());
    data.extend(name);
    data.extend(contents);
    data
}

fn tagged(tag: u32, description: &str) -> Vec<u8> {
    let mut data = tag.to_le_bytes().to_vec();
    data.extend(u32::try_from(description.len()).unwrap().to_le_bytes());
    data.extend(description.as_bytes());
    data
}

/// The event that a boot logs where `predicted` comes true.
fn measured(predicted: &PredictedEvent) -> Event {
    let payload = match &predicted.cause {
        Cause::SectionName(name) | Cause::SectionContents(name) => [name.as_bytes(), &[0]].concat(),
        Cause::CommandLine => tagged(0x8f3b_22ed, "LOADED_IMAGE::LoadOptions"),
        Cause::Initrd => tagged(0x8f3b_22ec, "Linux initrd"),
        Cause::Separator => vec![0; 4],
        Cause::BootAttempt => b"Calling EFI Application from Boot Option".to_vec(),
        Cause::SecureBootVariable(name) | Cause::BootVariable(name) => variable(name, &[1]),
        Cause::AcpiLoader | Cause::AcpiRsdp | Cause::AcpiTables => b"ACPI DATA".to_vec(),
        Cause::TdHob => [&[9], &b"TdxTable\0"[..]].concat(),
        _ => vec![0x18, 0xc0, 0xb5, 0xbc],
    };
    of_digest(predicted.mr, &predicted.event, predicted.digest, &payload)
}

/// Evidence and reference values that agree, for tests to take apart.
struct World {
    reference: ReferenceValues,
    log: Vec<Event>,
    mrtd: Register,
    simulated: Option<bool>,
}

const CODE: &str = "firmware code";

/// RTMR0 of a machine, from what its events are made of.
fn platform_events(
    shape: &MachineShape,
    volume: &str,
    secure_boot: u8,
    devices: &str,
) -> Vec<PredictedEvent> {
    let event = |event: &str, data: &[u8], cause: Cause| PredictedEvent {
        mr: 0,
        event: event.to_owned(),
        digest: sha384(data),
        cause,
    };
    let low = shape.memory_mib.min(if shape.memory_mib < 2816 { 2816 } else { 2048 });
    let hob = [low.to_le_bytes(), (shape.memory_mib - low).to_le_bytes()].concat();
    let acpi = |table: &str| format!("{table} {} {devices} {:?}", shape.cpus, shape.qemu).into_bytes();
    let config = "EV_EFI_VARIABLE_DRIVER_CONFIG";
    vec![
        event("EV_EFI_HANDOFF_TABLES2", &hob, Cause::TdHob),
        event("EV_EFI_PLATFORM_FIRMWARE_BLOB2", volume.as_bytes(), Cause::ConfigurationVolume),
        event(
            config,
            &variable("SecureBoot", &[secure_boot]),
            Cause::SecureBootVariable("SecureBoot".into()),
        ),
        event(config, &variable("PK", &[]), Cause::SecureBootVariable("PK".into())),
        event("EV_SEPARATOR", &[0; 4], Cause::Separator),
        event("EV_PLATFORM_CONFIG_FLAGS", &acpi("loader"), Cause::AcpiLoader),
        event("EV_PLATFORM_CONFIG_FLAGS", &acpi("rsdp"), Cause::AcpiRsdp),
        event("EV_PLATFORM_CONFIG_FLAGS", &acpi("tables"), Cause::AcpiTables),
        event(
            "EV_EFI_VARIABLE_BOOT",
            &variable("BootOrder", &[0, 0]),
            Cause::BootVariable("BootOrder".into()),
        ),
        event("EV_EFI_VARIABLE_BOOT", &variable("Boot0000", &[1]), Cause::BootVariable("Boot0000".into())),
    ]
}

fn shape() -> MachineShape {
    MachineShape { memory_mib: 4096, cpus: 2, qemu: Some("10.0".into()) }
}

fn mrtd(code: &str, order: PageOrder) -> Mrtd {
    Mrtd { order, value: sha384(format!("{code} {order:?}").as_bytes()) }
}

fn firmware(code: &str) -> FirmwareInfo {
    let sha256 = format!("sha256:{}", hex::encode(sha2::Sha256::digest(code)));
    FirmwareInfo { sha256, file: "OVMF.fd".into(), package: None, version: None }
}

fn platform(name: &str, code: &str, shape: MachineShape) -> PlatformReference {
    let events = platform_events(&shape, "volume", 0, "virtio");
    PlatformReference {
        name: name.to_owned(),
        simulated: false,
        firmware: Some(firmware(code)),
        machine: Some(shape),
        mrtd: vec![mrtd(code, PageOrder::SinglePass), mrtd(code, PageOrder::TwoPass)],
        rtmr0: Some(cofferdam_attest::reference::replay(&events, 0)),
        events,
        alternatives: Vec::new(),
    }
}

impl World {
    /// `reference` is what was predicted, `booted` what ran.
    fn new(reference: &Parts, booted: &Parts) -> Self {
        let image = image_reference(&reference.uki(), None).unwrap();
        let platforms = vec![platform("acme", CODE, shape())];
        let mut log: Vec<Event> = platforms[0].events.iter().map(measured).collect();
        log.extend(boot_log(booted, BootPlatform::Tdx));
        log.push(Machine { cpus: 2, memory_mib: 3800 }.event());
        let mrtd = platforms[0].mrtd[0].value;
        Self {
            reference: ReferenceValues { images: vec![image], platforms },
            log,
            mrtd,
            simulated: Some(false),
        }
    }

    fn same() -> Self {
        Self::new(&Parts::new(), &Parts::new())
    }

    fn quote(&self) -> Quote {
        Quote {
            version: 4,
            tdx_15: false,
            tee_tcb_svn: [0; 16],
            mr_seam: [0; 48],
            mr_signer_seam: [0; 48],
            seam_attributes: 0,
            td_attributes: 0,
            xfam: 0,
            mrtd: self.mrtd,
            mr_config_id: [0; 48],
            mr_owner: [0; 48],
            mr_owner_config: [0; 48],
            rtmr: [0, 1, 2, 3].map(|mr| replay(&self.log, mr)),
            report_data: [0; 64],
            mr_service_td: None,
            pck_certification: (5, Vec::new()),
        }
    }

    fn explain(&self) -> Explanation {
        explain(&self.reference, &self.quote(), &self.log, self.simulated)
    }

    /// Where in the log the event with this predicted cause is.
    fn at(&self, cause: &Cause) -> usize {
        let boots = self.reference.images.iter().flat_map(|image| &image.boots).flat_map(|boot| &boot.events);
        let all = boots.chain(self.reference.platforms.iter().flat_map(|half| &half.events));
        let digests: Vec<Register> =
            all.filter(|event| event.cause == *cause).map(|event| event.digest).collect();
        self.log.iter().position(|event| digests.contains(&event.register_digest())).unwrap()
    }

    /// Replaces RTMR0's events and what the appliance says about its machine.
    fn machine(mut self, events: &[PredictedEvent], cpus: u32, memory_mib: u64) -> Self {
        self.log.retain(|event| event.mr == 1 || event.mr == 2);
        let mut log: Vec<Event> = events.iter().map(measured).collect();
        log.append(&mut self.log);
        log.push(Machine { cpus, memory_mib }.event());
        self.log = log;
        self
    }
}

fn boot_log(parts: &Parts, platform: BootPlatform) -> Vec<Event> {
    let image = image_reference(&parts.uki(), None).unwrap();
    let boot = image.boots.iter().find(|boot| boot.platform == platform).unwrap();
    boot.events.iter().map(measured).collect()
}

// ----------------------------------------------------------------------------------------------------- table

/// One way of differing, and what has to be said about it.
struct Case {
    name: &'static str,
    world: World,
    /// Reason, certainty and registers of each cause, in order.
    causes: &'static [(Reason, Certainty, &'static [&'static str])],
    /// What the text has to contain; line breaks and indentation do not count.
    says: &'static [&'static str],
    /// How many differences stay without an explanation.
    unexplained: usize,
}

use Certainty::{Certain, Likely};

fn check(case: &Case) {
    let Case { name, .. } = case;
    let explanation = case.world.explain();
    let text = explanation.to_string();
    let causes: Vec<(Reason, Certainty, &[&str])> = explanation
        .causes
        .iter()
        .map(|cause| (cause.reason, cause.certainty, cause.registers.as_slice()))
        .collect();
    assert_eq!(causes, case.causes, "{name}\n{text}");
    assert_eq!(explanation.unexplained.len(), case.unexplained, "{name}\n{text}");
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in case.says {
        assert!(flat.contains(words), "{name}: {words:?} is missing in\n{text}");
    }
    let differs = explanation.registers.iter().any(|register| register.status == Status::Differs);
    assert_eq!(summary(&explanation).is_some(), differs, "{name}");
    well_formed(&explanation);
}

/// What holds for every text: width, printable ASCII, bounded.
fn well_formed(explanation: &Explanation) {
    let text = explanation.to_string();
    for line in text.lines() {
        assert!(line.len() <= 100, "{} columns: {line}", line.len());
        assert!(line.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{line:?}");
    }
    assert!(text.lines().count() < 400, "{} lines", text.lines().count());
    let json = serde_json::to_string(explanation).unwrap();
    assert!(json.len() < 128 * 1024, "{} bytes of JSON", json.len());
    if let Some(line) = summary(explanation) {
        assert!(!line.contains('\n'));
    }
}

#[test]
fn nothing_to_explain() {
    check(&Case {
        name: "equal",
        world: World::same(),
        causes: &[],
        says: &["RTMR1 is as predicted"],
        unexplained: 0,
    });
}

fn changed(change: impl Fn(&mut Parts)) -> World {
    let mut booted = Parts::new();
    change(&mut booted);
    World::new(&Parts::new(), &booted)
}

const BOTH: &[&str] = &["rtmr2", "rtmr1"];

#[test]
fn parts_of_the_image() {
    let cases = [
        Case {
            name: "command line",
            world: changed(|parts| parts.command_line = "console=ttyS0 quiet debug"),
            causes: &[(Reason::CommandLine, Likely, BOTH)],
            says: &[
                "Section .cmdline has other contents",
                ".linux, .osrel, .initrd, .uname and .sbat are as predicted",
                "RTMR1 follows",
                "1. another command line in the image (likely; RTMR2, RTMR1)",
            ],
            unexplained: 0,
        },
        Case {
            name: "initrd",
            world: changed(|parts| parts.initrd.push(b'!')),
            causes: &[(Reason::Initrd, Likely, BOTH)],
            says: &["Section .initrd has other contents"],
            unexplained: 0,
        },
        Case {
            name: "kernel only",
            world: changed(|parts| parts.kernel = kernel(b"another kernel")),
            causes: &[(Reason::OtherKernel, Likely, BOTH)],
            says: &["Section .linux has other contents"],
            unexplained: 0,
        },
        Case {
            name: "kernel and its version",
            world: changed(|parts| {
                parts.kernel = kernel(b"another kernel");
                parts.uname = "7.3.5";
            }),
            causes: &[(Reason::OtherKernel, Likely, BOTH)],
            says: &["Sections .linux and .uname have other contents"],
            unexplained: 0,
        },
        Case {
            name: "another build",
            world: changed(|parts| {
                parts.release = "ID=cofferdam\nVERSION_ID=0.2.0\n";
                parts.initrd = b"070701 other files".to_vec();
                parts.command_line = "quiet";
            }),
            causes: &[(Reason::OtherImage, Likely, BOTH)],
            says: &[
                "Sections .osrel, .cmdline and .initrd have other contents",
                ".linux, .uname and .sbat are as predicted",
            ],
            unexplained: 0,
        },
        Case {
            name: "stub with the same sections",
            world: changed(|parts| parts.stub = b"systemd-stub 258".to_vec()),
            causes: &[
                (Reason::QemuHeaderPatching, Likely, &["rtmr1"]),
                (Reason::StubVersion, Likely, &["rtmr1"]),
            ],
            says: &["every section that the stub measured is as predicted (RTMR2)"],
            unexplained: 0,
        },
    ];
    cases.iter().for_each(check);
}
