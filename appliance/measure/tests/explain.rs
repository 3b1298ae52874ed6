//! Every cause that can be named, produced from bytes: images are built, changed and predicted; their logs are what a boot
//! of the changed image measures, with the data that firmware, boot stub and kernel write.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use cofferdam_attest::event_log::payload::{Machine, Payload as _};
use cofferdam_attest::event_log::{Event, MAX_EVENTS, Register, replay};
use cofferdam_attest::quote::Quote;
use cofferdam_attest::reference::{
    Alternative, Boot, BootPlatform, BootSource, Cause, MachineShape, Mrtd, PageOrder, PlatformReference,
    PredictedEvent, Reason, ReferenceValues,
};
use cofferdam_measure::explain::{
    Candidate, Certainty, Explanation, Mark, Status, explain, explain_booted, summary,
};
use cofferdam_measure::tdvf::Tdvf;
use cofferdam_measure::{AcpiTables, hob, image_reference, pe, platform_reference};
use sha2::{Digest as _, Sha384};

#[path = "common/synthetic.rs"]
mod synthetic;

use synthetic::{DATABASE, GLOBAL, MAGIC, OPTIONAL, Variable, kernel, put};

// ---------------------------------------------------------------------------------------------------- images

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
        synthetic::pe(&[
            (".text", &self.stub),
            (".sdmagic", MAGIC),
            (".osrel", self.release.as_bytes()),
            (".cmdline", self.command_line.as_bytes()),
            (".uname", self.uname.as_bytes()),
            (".sbat", self.sbat.as_bytes()),
            (".initrd", &self.initrd),
            (".linux", &self.kernel),
        ])
    }
}

/// What QEMU before 10.2 writes into a setup header (`x86_load_linux`): loader type, heap flag and end, command line.
fn patch_header(kernel: &mut [u8]) {
    kernel[0x210] = 0xb0;
    kernel[0x211] |= 0x80;
    put(kernel, 0x224, &0xfe00_u16.to_le_bytes());
    put(kernel, 0x228, &0x20000_u32.to_le_bytes());
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

/// The machine of the reference.
fn shape() -> MachineShape {
    MachineShape { memory_mib: 4096, cpus: 2, qemu: Some("10.0".to_owned()), processor: None }
}

fn firmware(variables: &[Variable<'_>]) -> Vec<u8> {
    synthetic::firmware(variables, &synthetic::sections(), false)
}

/// What `ci/acpi-tables` takes from a machine: `devices` stands for everything but its processors that the tables tell.
fn tables(shape: &MachineShape, devices: &str, secure_boot: &[u8], options: u8) -> AcpiTables {
    let machine = serde_json::json!({
        "qemu": shape.qemu.as_deref().unwrap_or("10.0"),
        "memory_mib": shape.memory_mib,
        "cpus": shape.cpus,
        "arguments": [],
    });
    let table = |name: &str| format!("{name} {} {devices} {:?}", shape.cpus, shape.qemu).into_bytes();
    let mut files = BTreeMap::from([
        ("etc/table-loader".to_owned(), synthetic::loader(&["etc/acpi/rsdp", "etc/acpi/tables"])),
        ("etc/acpi/rsdp".to_owned(), b"RSD PTR ".to_vec()),
        ("etc/acpi/tables".to_owned(), table("DSDT APIC")),
        ("SecureBoot".to_owned(), secure_boot.to_vec()),
        ("BootOrder".to_owned(), (0..options).flat_map(|number| [number, 0]).collect()),
    ]);
    for number in 0..options {
        files.insert(format!("Boot{number:04X}"), vec![1, number]);
    }
    AcpiTables::new(machine.to_string().as_bytes(), files).unwrap()
}

/// The platform half of a machine.
fn platform(name: &str, firmware: &[u8], shape: &MachineShape, devices: &str) -> PlatformReference {
    let acpi = tables(shape, devices, &[], 1);
    let half = platform_reference(firmware, name, shape, Some(&acpi)).unwrap();
    assert!(half.rtmr0.is_some(), "RTMR0 of {name} is determined");
    half
}

impl World {
    /// `reference` is what was predicted, `booted` what ran.
    fn new(reference: &Parts, booted: &Parts) -> Self {
        let mut image = image_reference(&reference.uki(), None).unwrap();
        image.boots.retain(|boot| boot.source == BootSource::Disk);
        let platforms = vec![platform("acme", &firmware(&[]), &shape(), "virtio")];
        let mut log: Vec<Event> = platforms[0].events.iter().map(measured).collect();
        log.extend(boot_log(booted, BootPlatform::Tdx));
        log.push(Machine { cpus: 2, memory_mib: 3800, network: None }.event().unwrap());
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

    /// Runs the same image on another machine. Linux sees about 7 % less memory than the machine has.
    fn on(self, half: &PlatformReference) -> Self {
        let shape = half.machine.clone().unwrap();
        let mut world = self.machine(&half.events, shape.cpus, shape.memory_mib * 93 / 100);
        world.mrtd = half.mrtd[0].value;
        world
    }

    /// Replaces RTMR0's events and what the appliance says about its machine.
    fn machine(mut self, events: &[PredictedEvent], cpus: u32, memory_mib: u64) -> Self {
        self.log.retain(|event| event.mr == 1 || event.mr == 2);
        let mut log: Vec<Event> = events.iter().map(measured).collect();
        log.append(&mut self.log);
        log.push(Machine { cpus, memory_mib, network: None }.event().unwrap());
        self.log = log;
        self
    }
}

fn boot_log(parts: &Parts, platform: BootPlatform) -> Vec<Event> {
    let image = image_reference(&parts.uki(), None).unwrap();
    let from_disk = |boot: &&Boot| boot.platform == platform && boot.source == BootSource::Disk;
    let boot = image.boots.iter().find(from_disk).unwrap();
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
    if let Some(summary) = summary(explanation) {
        assert!(summary.lines().count() <= 4, "{summary}");
        assert!(summary.len() <= 2048, "{summary}");
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
            name: "end of the command line",
            world: changed(|parts| parts.command_line = "console=ttyS0 quiet\n"),
            causes: &[(Reason::CommandLine, Likely, BOTH)],
            says: &["only what ends the text differs"],
            unexplained: 0,
        },
        Case {
            name: "checksum of the kernel",
            world: changed(|parts| put(&mut parts.kernel, OPTIONAL + 64, &[1, 2, 3, 4])),
            causes: &[(Reason::Checksum, Likely, BOTH)],
            says: &["Section .linux has other contents", "leaves out its PE checksum and its certificates"],
            unexplained: 0,
        },
        Case {
            name: "generations of the stub",
            world: changed(|parts| {
                parts.stub = b"systemd-stub 258".to_vec();
                parts.sbat = "sbat,1,SBAT Version\nsystemd-stub,1,systemd 258\n";
            }),
            causes: &[(Reason::StubVersion, Likely, BOTH)],
            says: &["Section .sbat has other contents"],
            unexplained: 0,
        },
        Case {
            name: "release only",
            world: changed(|parts| parts.release = "ID=cofferdam\nVERSION_ID=0.1.1\n"),
            causes: &[(Reason::OtherImage, Likely, BOTH)],
            says: &["Section .osrel has other contents"],
            unexplained: 0,
        },
        Case {
            name: "two sections",
            world: changed(|parts| {
                parts.command_line = "quiet";
                parts.initrd.push(b'!');
            }),
            causes: &[(Reason::OtherImage, Likely, BOTH)],
            says: &["Sections .cmdline and .initrd have other contents"],
            unexplained: 0,
        },
        Case {
            name: "all sections",
            world: changed(|parts| {
                parts.kernel = kernel(b"another kernel");
                parts.release = "ID=other\n";
                parts.command_line = "quiet";
                parts.uname = "8";
                parts.initrd = b"other".to_vec();
                parts.sbat = "sbat,2\n";
            }),
            causes: &[(Reason::OtherImage, Likely, BOTH)],
            says: &[
                "Sections .linux, .osrel, .cmdline, .initrd, .uname and .sbat have other contents (RTMR2).",
            ],
            unexplained: 0,
        },
    ];
    cases.iter().for_each(check);
}

/// A log whose events of `mr` were edited.
fn edited(mut world: World, edit: impl Fn(&mut World)) -> World {
    edit(&mut world);
    world
}

/// The host of a TD that is open to debugging may have changed what ran in it.
#[test]
fn nothing_is_certain_of_a_debuggable_machine() {
    let world = edited(World::same(), |world| loader_options(world, "init=/bin/sh", true));
    for (attributes, certainty) in [(0, Certain), (1 << 28, Certain), (1, Likely)] {
        let quote = Quote { td_attributes: attributes, ..world.quote() };
        let explanation = explain(&world.reference, &quote, &world.log, world.simulated);
        assert_eq!(explanation.causes[0].certainty, certainty, "{explanation}");
    }
}

/// The boot stub is handed `options` and, with Secure Boot off, passes them on in place of the image's.
fn loader_options(world: &mut World, options: &str, whole: bool) {
    let at = world.at(&Cause::CommandLine);
    let received =
        if whole { options.to_owned() } else { format!("{} {options}", Parts::new().command_line) };
    world.log[at].digest = Some(sha384(&wide(&received)));
    world.log.insert(at, of_data(2, "EV_IPL", &wide(options)));
}

/// The data of an event for a loaded program: the length of its file, and its path.
fn load_event(length: u64, path: &str) -> Vec<u8> {
    let path = wide(path);
    let node = [&[4, 4][..], &u16::try_from(path.len() + 4).unwrap().to_le_bytes(), &path].concat();
    let mut data = vec![0; 32];
    put(&mut data, 8, &length.to_le_bytes());
    put(&mut data, 24, &(node.len() as u64).to_le_bytes());
    data.extend(node);
    data
}

/// The boot stub has the firmware load an addon before the kernel.
fn load_addon(world: &mut World) {
    let at = world.at(&Cause::Kernel);
    let data = load_event(1024, "\\EFI\\BOOT\\BOOTX64.EFI.extra.d\\debug.addon.efi");
    world.log.insert(at, of_digest(1, "EV_EFI_BOOT_SERVICES_APPLICATION", sha384(b"addon"), &data));
}

#[test]
fn what_the_boot_passes_besides_the_image() {
    const RTMR2: &[&str] = &["rtmr2"];
    let appended = |world: &mut World| {
        let at = world.at(&Cause::Initrd);
        world.log[at].digest = Some(sha384(b"initrd and more"));
        at
    };
    let cases = [
        Case {
            name: "command line of the boot entry",
            world: edited(World::same(), |world| loader_options(world, "init=/bin/sh", true)),
            causes: &[(Reason::LoaderCommandLine, Certain, RTMR2)],
            says: &[
                "The stub measured the one it was passed: \"init=/bin/sh\"",
                "section .cmdline of the image is as predicted",
            ],
            unexplained: 0,
        },
        Case {
            name: "command line of an SMBIOS string",
            world: edited(World::same(), |world| loader_options(world, "debug", false)),
            causes: &[(Reason::LoaderCommandLine, Certain, RTMR2)],
            says: &["The stub measured additions that it was passed: \"debug\""],
            unexplained: 0,
        },
        Case {
            name: "command line without a trace",
            world: edited(World::same(), |world| {
                let at = world.at(&Cause::CommandLine);
                world.log[at].digest = Some(sha384(&wide("other")));
            }),
            causes: &[(Reason::LoaderCommandLine, Certain, RTMR2)],
            says: &["The log does not show the text"],
            unexplained: 0,
        },
        Case {
            name: "an addon beside the image",
            world: edited(World::same(), |world| {
                loader_options(world, "debug", false);
                load_addon(world);
            }),
            causes: &[(Reason::Addon, Likely, &["rtmr1", "rtmr2"])],
            says: &[
                "The boot stub had the firmware load debug.addon.efi (RTMR1)",
                "It added to the command line, as the stub measured: \"debug\"",
            ],
            unexplained: 0,
        },
        Case {
            name: "an addon and a command line of the boot entry",
            world: edited(World::same(), |world| {
                loader_options(world, "init=/bin/sh debug", true);
                let at = world.at(&Cause::SectionName(".sbat".to_owned())) + 2;
                world.log[at] = of_data(2, "EV_IPL", &wide("init=/bin/sh"));
                world.log.insert(at + 1, of_data(2, "EV_IPL", &wide("debug")));
                load_addon(world);
            }),
            causes: &[(Reason::Addon, Likely, &["rtmr1"]), (Reason::LoaderCommandLine, Likely, RTMR2)],
            says: &["The stub measured the one it was passed: \"init=/bin/sh\", \"debug\""],
            unexplained: 0,
        },
        Case {
            name: "a command line, and something else ran",
            world: edited(World::same(), |world| {
                loader_options(world, "init=/bin/sh", true);
                let at = world.at(&Cause::Uki);
                world.log.insert(at, of_digest(1, "EV_EFI_BOOT_SERVICES_DRIVER", sha384(b"rom"), b"\x18"));
            }),
            causes: &[(Reason::LoaderCommandLine, Likely, RTMR2), (Reason::OtherEvent, Likely, &["rtmr1"])],
            says: &["the option ROM of a network card"],
            unexplained: 0,
        },
        Case {
            name: "a command line, and an unknown firmware",
            world: edited(World::same(), |world| {
                loader_options(world, "init=/bin/sh", true);
                world.mrtd = [9; 48];
            }),
            causes: &[(Reason::LoaderCommandLine, Likely, RTMR2), (Reason::FirmwareBuild, Likely, &["mrtd"])],
            says: &["MRTD is not a known one"],
            unexplained: 0,
        },
        Case {
            name: "a command line, and nothing to compare MRTD with",
            world: edited(World::same(), |world| {
                loader_options(world, "init=/bin/sh", true);
                world.reference.platforms.clear();
            }),
            causes: &[(Reason::LoaderCommandLine, Likely, RTMR2)],
            says: &["MRTD was compared with nothing"],
            unexplained: 0,
        },
        Case {
            name: "a command line, and no verified chain",
            world: edited(World::same(), |world| {
                loader_options(world, "init=/bin/sh", true);
                world.simulated = None;
            }),
            causes: &[(Reason::LoaderCommandLine, Likely, RTMR2)],
            says: &["certificate chain was not verified, so no cause is certain"],
            unexplained: 0,
        },
        Case {
            name: "credentials beside the image",
            world: edited(World::same(), |world| {
                let at = appended(world);
                let event = of_digest(2, "EV_IPL", sha384(b"archive"), &wide("Credentials initrd"));
                world.log.insert(at - 1, event);
            }),
            causes: &[(Reason::Initrd, Certain, RTMR2)],
            says: &["the log names archives that were added, \"Credentials initrd\""],
            unexplained: 0,
        },
        Case {
            name: "initrd without a trace",
            world: edited(World::same(), |world| _ = appended(world)),
            causes: &[(Reason::Initrd, Certain, RTMR2)],
            says: &["something was appended to it, or it was replaced"],
            unexplained: 0,
        },
    ];
    cases.iter().for_each(check);
}

/// The same image whose stub measures other sections: `edit` gets the names and contents in their order.
fn stub(booted: &Parts, edit: impl Fn(&mut Vec<(String, Vec<u8>)>)) -> World {
    let mut world = World::new(&Parts::new(), booted);
    let mut sections: Vec<(String, Vec<u8>)> = [
        (".linux", booted.kernel.as_slice()),
        (".osrel", booted.release.as_bytes()),
        (".cmdline", booted.command_line.as_bytes()),
        (".initrd", &booted.initrd),
        (".uname", booted.uname.as_bytes()),
        (".sbat", booted.sbat.as_bytes()),
    ]
    .map(|(name, contents)| (name.to_owned(), contents.to_vec()))
    .to_vec();
    edit(&mut sections);
    let from = world.log.iter().position(|event| event.mr == 2).unwrap();
    world.log.retain(|event| event.event != "EV_IPL");
    let events = sections.iter().flat_map(|(name, contents)| {
        let label = [name.as_bytes(), &[0]].concat();
        [of_data(2, "EV_IPL", &label), of_digest(2, "EV_IPL", sha384(contents), &label)]
    });
    let events: Vec<Event> = events.collect();
    world.log.splice(from..from, events);
    world
}

#[test]
fn sections_that_come_and_go() {
    let mut rebuilt = Parts::new();
    rebuilt.stub = b"code of another stub".to_vec();
    let other_initrd = |mut world: World| {
        let at = world.at(&Cause::Initrd);
        world.log[at].digest = Some(sha384(b"section and other files"));
        world
    };
    let gone = |names: &'static [&'static str]| {
        stub(&rebuilt, move |sections| sections.retain(|(name, _)| !names.contains(&name.as_str())))
    };
    let added = |name: &'static str| {
        stub(&rebuilt, move |sections| sections.push((name.to_owned(), b"contents".to_vec())))
    };
    const ADDED: &[(Reason, Certainty, &[&str])] = &[(Reason::SectionAdded, Likely, &["rtmr2", "rtmr1"])];
    let cases = [
        Case {
            name: ".ucode was added",
            world: other_initrd(stub(&rebuilt, |sections| {
                sections.insert(4, (".ucode".to_owned(), b"microcode".to_vec()))
            })),
            causes: ADDED,
            says: &["measured .ucode in addition (RTMR2)", "initrd that the kernel received follows"],
            unexplained: 0,
        },
        Case {
            name: ".pcrpkey was added",
            world: other_initrd(added(".pcrpkey")),
            causes: ADDED,
            says: &["measured .pcrpkey in addition"],
            unexplained: 0,
        },
        Case {
            name: ".splash was added, which leaves the initrd alone",
            world: added(".splash"),
            causes: ADDED,
            says: &["measured .splash in addition"],
            unexplained: 0,
        },
        Case {
            name: ".osrel was removed",
            world: edited(gone(&[".osrel"]), |world| {
                let at = world.at(&Cause::Initrd);
                world.log[at].digest = Some(sha384(&Parts::new().initrd));
            }),
            causes: &[(Reason::SectionRemoved, Likely, &["rtmr2", "rtmr1"])],
            says: &["did not measure .osrel (RTMR2)", "initrd that the kernel received follows"],
            unexplained: 0,
        },
        Case {
            name: ".pcrsig was added, which no stub measures",
            world: other_initrd(World::new(&Parts::new(), &rebuilt)),
            causes: &[(Reason::Tampered, Likely, &["rtmr1", "rtmr2"])],
            says: &["not measured but handed over (.pcrsig), or other code in the stub"],
            unexplained: 0,
        },
        Case {
            name: "neither .uname nor .sbat",
            world: gone(&[".uname", ".sbat"]),
            causes: &[(Reason::Tampered, Likely, &["rtmr2", "rtmr1"])],
            says: &["other stubs leave these out, and an image without them looks the same"],
            unexplained: 0,
        },
        Case {
            name: "one came, one went",
            world: stub(&rebuilt, |sections| {
                sections.pop();
                sections.push((".hwids".to_owned(), b"ids".to_vec()));
            }),
            causes: &[(Reason::Tampered, Likely, &["rtmr2", "rtmr1"])],
            says: &["measured .hwids in addition and did not measure .sbat"],
            unexplained: 0,
        },
        Case {
            name: "another order and other generations",
            world: stub(
                &Parts { sbat: "sbat,1\nsystemd-stub,2,x,systemd,257,y\n", ..rebuilt.clone() },
                |sections| {
                    sections.rotate_left(2);
                },
            ),
            causes: &[(Reason::StubVersion, Likely, &["rtmr2", "rtmr1"])],
            says: &["measured the same sections in another order (RTMR2), and .sbat, which names versions"],
            unexplained: 0,
        },
        Case {
            name: "other generations and other files of the stub's own",
            world: other_initrd(World::new(
                &Parts::new(),
                &Parts { sbat: "sbat,1\nsystemd-stub,2,x,systemd,257,y\n", ..rebuilt.clone() },
            )),
            causes: &[(Reason::StubVersion, Likely, &["rtmr2", "rtmr1"])],
            says: &["Section .sbat has other contents"],
            unexplained: 0,
        },
        Case {
            name: "other generations, and a kernel that the firmware did not load",
            world: edited(
                World::new(
                    &Parts::new(),
                    &Parts { sbat: "sbat,1\nsystemd-stub,2,x,systemd,257,y\n", ..rebuilt.clone() },
                ),
                |world| {
                    let at = world.at(&Cause::Kernel);
                    world.log.remove(at);
                },
            ),
            causes: &[(Reason::StubVersion, Likely, &["rtmr2", "rtmr1"])],
            says: &["none of the kernel, which this stub starts without the firmware"],
            unexplained: 0,
        },
        Case {
            name: "another command line, and another initrd than the image's",
            world: other_initrd(World::new(
                &Parts::new(),
                &Parts { command_line: "debug", ..rebuilt.clone() },
            )),
            causes: &[(Reason::CommandLine, Likely, BOTH), (Reason::Tampered, Likely, &["rtmr2"])],
            says: &["not measured but handed over (.pcrsig), or other code in the stub"],
            unexplained: 0,
        },
        Case {
            name: "another order in another image",
            world: stub(&rebuilt, |sections| sections.rotate_left(2)),
            causes: &[(Reason::Tampered, Likely, &["rtmr2", "rtmr1"])],
            says: &["tampered or another build", "measured the same sections in another order"],
            unexplained: 0,
        },
        Case {
            name: "another section and another command line",
            world: other_initrd(stub(&Parts { command_line: "debug", ..rebuilt.clone() }, |sections| {
                sections.insert(0, (".profile".to_owned(), b"ID=main".to_vec()));
            })),
            causes: &[(Reason::SectionAdded, Likely, &["rtmr2"]), (Reason::CommandLine, Likely, BOTH)],
            says: &["measured .profile in addition", "Section .cmdline has other contents"],
            unexplained: 0,
        },
    ];
    cases.iter().for_each(check);
}

/// The predicted image has the predicted stub: what RTMR2 then shows beyond it is nobody's known doing.
#[test]
fn a_predicted_image_is_never_blamed_for_its_sections() {
    let parts = Parts::new();
    let of_older = |world: &mut World| {
        let at = world.at(&Cause::Initrd);
        world.log[at].digest = Some(sha384(&Parts::new().initrd));
    };
    let cases = [
        Case {
            name: "one section fewer",
            world: stub(&parts, |sections| drop(sections.pop())),
            causes: &[(Reason::OtherEvent, Likely, &["rtmr2"])],
            says: &["RTMR2 lacks EV_IPL (name of section .sbat, section .sbat)"],
            unexplained: 0,
        },
        Case {
            name: "another order",
            world: stub(&parts, |sections| sections.rotate_left(1)),
            causes: &[(Reason::EventMoved, Likely, &["rtmr2"])],
            says: &["RTMR2 has name of section .linux and section .linux in another place than predicted"],
            unexplained: 0,
        },
        Case {
            name: "a section twice",
            world: stub(&parts, |sections| sections.push(sections[4].clone())),
            causes: &[(Reason::OtherEvent, Likely, &["rtmr2"])],
            says: &["RTMR2 has EV_IPL (\".uname\", \".uname\"), which was not predicted"],
            unexplained: 0,
        },
        Case {
            name: "other contents",
            world: stub(&parts, |sections| sections[5].1.push(0)),
            causes: &[],
            says: &["NOT EXPLAINED by anything known", "EV_IPL (section .sbat) is"],
            unexplained: 1,
        },
        Case {
            name: "an initrd without the stub's own files",
            world: edited(World::same(), of_older),
            causes: &[(Reason::Initrd, Certain, &["rtmr2"])],
            says: &["something was appended to it, or it was replaced"],
            unexplained: 0,
        },
        Case {
            name: "a kernel that is not in it",
            world: edited(World::same(), |world| {
                let at = world.at(&Cause::Kernel);
                world.log[at].digest = Some(sha384(b"another kernel"));
            }),
            causes: &[],
            says: &["NOT EXPLAINED by anything known", "(kernel (.linux) of the image) is"],
            unexplained: 1,
        },
    ];
    cases.iter().for_each(check);
}

/// The image has another digest, and RTMR2 is as predicted: what the firmware logs beside the digest is all there is.
#[test]
fn images_that_differ_where_no_stub_measures() {
    const TAMPERED: &[(Reason, Certainty, &[&str])] = &[(Reason::Tampered, Likely, &["rtmr1"])];
    let length = Parts::new().uki().len() as u64;
    let with = |logged: Option<u64>, edit: &dyn Fn(&mut Vec<u8>)| {
        let mut file = Parts::new().uki();
        edit(&mut file);
        let mut world = World::same();
        let at = world.at(&Cause::Uki);
        let data = logged.map_or_else(|| vec![0x18], |length| load_event(length, "\\EFI\\BOOT\\BOOTX64.EFI"));
        world.log[at] = of_digest(1, "EV_EFI_BOOT_SERVICES_APPLICATION", authenticode(&file), &data);
        world
    };
    let stub_byte = |file: &mut Vec<u8>| {
        let at = file.windows(12).position(|bytes| bytes == b"systemd-stub").unwrap();
        file[at] ^= 1;
    };
    let cases = [
        Case {
            name: "a byte of the stub",
            world: with(Some(length), &stub_byte),
            causes: TAMPERED,
            says: &["tampered or another build", "its file has the same length: bytes were changed in place"],
            unexplained: 0,
        },
        Case {
            name: "a byte of the stub, and no data in the log",
            world: with(None, &stub_byte),
            causes: TAMPERED,
            says: &["the stub's own code, the headers, where the sections lie"],
            unexplained: 0,
        },
        Case {
            name: "an overlay",
            world: with(Some(length + 9), &|file| file.extend([7; 9])),
            causes: &[(Reason::Overlay, Likely, &["rtmr1"])],
            says: &["its file is 9 bytes longer, which no section can be"],
            unexplained: 0,
        },
        Case {
            name: "an overlay that looks like a section",
            world: with(Some(length + 512), &|file| file.extend([7; 512])),
            causes: TAMPERED,
            says: &["512 bytes longer: one more section, or bytes behind the last one"],
            unexplained: 0,
        },
        Case {
            name: "moved sections",
            world: with(Some(length), &|file| put(file, OPTIONAL + 240 + 3 * 40 + 12, &[1])),
            causes: TAMPERED,
            says: &["where the sections lie"],
            unexplained: 0,
        },
        Case {
            name: "a checksum, which the firmware does not measure",
            world: with(Some(length), &|file| put(file, OPTIONAL + 64, &[1, 2, 3, 4])),
            causes: &[],
            says: &["RTMR1 is as predicted"],
            unexplained: 0,
        },
    ];
    cases.iter().for_each(check);
}

/// Where somebody has the file that was started, its digest in RTMR1 proves it, and the two files are compared.
#[test]
fn with_the_image_that_was_started() {
    let base = Parts::new();
    let explained = |booted: &[u8], given: &[u8]| {
        let mut world = World::same();
        let at = world.at(&Cause::Uki);
        world.log[at].digest = Some(authenticode(booted));
        let candidate = Candidate::new(&base.uki(), given).unwrap();
        let explanation =
            explain_booted(&world.reference, &world.quote(), &world.log, world.simulated, Some(&candidate));
        well_formed(&explanation);
        explanation
    };
    let causes = |explanation: &Explanation| {
        explanation.causes.iter().map(|cause| (cause.reason, cause.certainty)).collect::<Vec<_>>()
    };
    let changed = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut file = base.uki();
        edit(&mut file);
        let explanation = explained(&file, &file);
        assert!(explanation.unexplained.is_empty(), "{explanation}");
        causes(&explanation)
    };
    assert_eq!(changed(&|file| file.extend([7; 512])), [(Reason::Overlay, Certain)]);
    assert_eq!(
        changed(&|file| put(file, OPTIONAL + 240 + 3 * 40 + 12, &[1])),
        [(Reason::ImageLayout, Certain)]
    );
    assert_eq!(changed(&|file| put(file, OPTIONAL + 4, &[1])), [(Reason::Tampered, Certain)]);
    let stub_byte = |file: &mut Vec<u8>| {
        let at = file.windows(12).position(|bytes| bytes == b"systemd-stub").unwrap();
        file[at] ^= 1;
    };
    assert_eq!(changed(&stub_byte), [(Reason::StubCode, Certain)]);
    // Another file than the one that ran explains nothing.
    let mut other = base.uki();
    stub_byte(&mut other);
    let mut overlaid = base.uki();
    overlaid.push(1);
    let explanation = explained(&other, &overlaid);
    assert_eq!(causes(&explanation), [(Reason::Tampered, Likely)], "{explanation}");
    assert!(
        explanation.notes.iter().any(|note| note.contains("is not the one that was started")),
        "{explanation}"
    );
    // Nor does one that the firmware cannot tell from the reference's.
    let mut checksum = base.uki();
    put(&mut checksum, OPTIONAL + 64, &[1, 2, 3, 4]);
    let explanation = explained(&other, &checksum);
    assert_eq!(causes(&explanation), [(Reason::Tampered, Likely)], "{explanation}");
}

/// As [`with_the_image_that_was_started`], where RTMR2 differs too: all of it follows from the file.
#[test]
fn with_another_image_that_was_started() {
    let (base, mut booted) = (Parts::new(), Parts::new());
    booted.command_line = "console=ttyS0 debug";
    booted.kernel = kernel(b"another kernel");
    let world = World::new(&base, &booted);
    let candidate = Candidate::new(&base.uki(), &booted.uki()).unwrap();
    let explanation =
        explain_booted(&world.reference, &world.quote(), &world.log, world.simulated, Some(&candidate));
    well_formed(&explanation);
    let causes: Vec<_> = explanation.causes.iter().map(|cause| (cause.reason, cause.certainty)).collect();
    assert_eq!(causes, [(Reason::CommandLine, Certain), (Reason::OtherKernel, Certain)], "{explanation}");
    assert!(explanation.unexplained.is_empty(), "{explanation}");
    // What a host adds to it stays visible.
    let mut world = world;
    let at = world.log.iter().position(|event| event.event == "EV_EVENT_TAG").unwrap();
    world.log[at].digest = Some(sha384(&wide("init=/bin/sh")));
    let explanation =
        explain_booted(&world.reference, &world.quote(), &world.log, world.simulated, Some(&candidate));
    assert!(!explanation.unexplained.is_empty(), "{explanation}");
}

/// The hypervisor hands the whole image to the firmware.
#[test]
fn started_by_the_hypervisor() {
    let first = |world: &mut World| {
        let at = world.at(&Cause::Uki);
        let event = world.log.remove(at);
        let first = world.log.iter().position(|event| event.mr == 1).unwrap();
        world.log.insert(first, event);
    };
    const MOVED: &[(Reason, Certainty, &[&str])] = &[(Reason::KernelBoot, Likely, &["rtmr1"])];
    let cases = [
        Case {
            name: "-kernel",
            world: edited(World::same(), first),
            causes: MOVED,
            says: &["loaded before the firmware announced that it boots (RTMR1)", "--boot tdx-kernel"],
            unexplained: 0,
        },
        Case {
            name: "-kernel on the simulated device",
            world: edited(World::same(), |world| {
                world.log.retain(|event| event.mr == 0 || event.mr == 3);
                world.log.extend(boot_log(&Parts::new(), BootPlatform::Simulator));
                world.simulated = None;
                first(world);
            }),
            causes: MOVED,
            says: &["started with -kernel and not from a disk"],
            unexplained: 0,
        },
        Case {
            name: "-kernel and -append",
            world: edited(World::same(), |world| {
                first(world);
                loader_options(world, "init=/bin/sh", true);
            }),
            causes: &[
                (Reason::KernelBoot, Likely, &["rtmr1"]),
                (Reason::LoaderCommandLine, Likely, &["rtmr2"]),
            ],
            says: &["The stub measured the one it was passed: \"init=/bin/sh\""],
            unexplained: 0,
        },
        Case {
            name: "another event moved",
            world: edited(World::same(), |world| {
                let from = world.log.iter().rposition(|event| event.event == "EV_EFI_ACTION").unwrap();
                let event = world.log.remove(from);
                let at = world.at(&Cause::Uki);
                world.log.insert(at, event);
            }),
            causes: &[(Reason::EventMoved, Likely, &["rtmr1"])],
            says: &["RTMR1 has exit of boot services in another place than predicted"],
            unexplained: 0,
        },
        Case {
            name: "the image twice is no image that moved",
            world: edited(World::same(), |world| {
                let at = world.at(&Cause::Uki);
                let event = world.log[at].clone();
                world.log.insert(at, event);
            }),
            causes: &[(Reason::OtherEvent, Likely, &["rtmr1"])],
            says: &["another program ran before or beside the image"],
            unexplained: 0,
        },
    ];
    cases.iter().for_each(check);
    // With reference values for this way there is nothing to explain.
    let mut world = edited(World::same(), first);
    world.reference.images = vec![image_reference(&Parts::new().uki(), None).unwrap()];
    assert!(world.explain().causes.is_empty());
}

/// The kernel out of the image without it: nothing of the image around it is measured.
fn bare_kernel(patched: bool, by_hypervisor: bool) -> World {
    let mut world = World::same();
    let mut parts = Parts::new();
    let uki = world.at(&Cause::Uki);
    world.log.remove(uki);
    let at = world.at(&Cause::Kernel);
    if patched {
        patch_header(&mut parts.kernel);
        world.log[at].digest = Some(authenticode(&parts.kernel));
    }
    if by_hypervisor {
        let event = world.log.remove(at);
        let first = world.log.iter().position(|event| event.mr == 1).unwrap();
        world.log.insert(first, event);
    }
    world.log.retain(|event| event.event != "EV_IPL");
    let at = world.at(&Cause::CommandLine);
    world.log[at].digest = Some(sha384(&wide("console=ttyS0 initrd=initrd")));
    let at = world.at(&Cause::Initrd);
    world.log[at].digest = Some(sha384(b"another initrd"));
    world
}

#[test]
fn header_patching() {
    let patched_inside = |booted: &mut World| {
        let mut kernel = Parts::new().kernel;
        patch_header(&mut kernel);
        let at = booted.at(&Cause::Kernel);
        booted.log[at].digest = Some(authenticode(&kernel));
    };
    let cases = [
        Case {
            name: "a patched kernel inside a predicted image",
            world: edited(World::same(), patched_inside),
            causes: &[],
            says: &["NOT EXPLAINED by anything known"],
            unexplained: 1,
        },
        Case {
            name: "an image with a patched kernel",
            world: changed(|parts| patch_header(&mut parts.kernel)),
            causes: &[(Reason::OtherKernel, Likely, BOTH)],
            says: &["Section .linux has other contents"],
            unexplained: 0,
        },
        Case {
            name: "kernel by itself, patched, from the hypervisor",
            world: bare_kernel(true, true),
            causes: &[(Reason::QemuHeaderPatching, Likely, &["rtmr1", "rtmr2"])],
            says: &[
                "The kernel out of the image was started without the image",
                "a kernel whose setup header QEMU before 10.2 rewrote",
            ],
            unexplained: 0,
        },
        Case {
            name: "kernel by itself, patched, from a disk",
            world: bare_kernel(true, false),
            causes: &[(Reason::OtherImage, Likely, &["rtmr1", "rtmr2"])],
            says: &["Its setup header was changed"],
            unexplained: 0,
        },
        Case {
            name: "kernel by itself",
            world: bare_kernel(false, false),
            causes: &[(Reason::OtherImage, Likely, &["rtmr1", "rtmr2"])],
            says: &["with another command line or initrd than the image's"],
            unexplained: 0,
        },
        Case {
            name: "kernel by itself, from the hypervisor",
            world: bare_kernel(false, true),
            causes: &[(Reason::OtherImage, Likely, &["rtmr1", "rtmr2"])],
            says: &["RTMR1 holds no image, RTMR2 no sections"],
            unexplained: 0,
        },
        Case {
            name: "what a reference lists, in a known firmware's word",
            world: edited(World::same(), |world| {
                let (of, digest) = (Cause::Uki, sha384(b"known variant"));
                world.reference.images[0].alternatives.push(Alternative {
                    of,
                    digest,
                    reason: Reason::Overlay,
                });
                let at = world.at(&Cause::Uki);
                world.log[at].digest = Some(digest);
            }),
            causes: &[(Reason::Overlay, Certain, &["rtmr1"])],
            says: &["What was measured for \"the image\" is exactly what the reference lists"],
            unexplained: 0,
        },
        Case {
            name: "what a reference lists, in an unknown firmware's word",
            world: edited(World::same(), |world| {
                let (of, digest) = (Cause::Uki, sha384(b"known variant"));
                world.reference.images[0].alternatives.push(Alternative {
                    of,
                    digest,
                    reason: Reason::Overlay,
                });
                let at = world.at(&Cause::Uki);
                world.log[at].digest = Some(digest);
                world.mrtd = [9; 48];
            }),
            causes: &[(Reason::Overlay, Likely, &["rtmr1"]), (Reason::FirmwareBuild, Likely, &["mrtd"])],
            says: &[],
            unexplained: 0,
        },
    ];
    cases.iter().for_each(check);
}

#[test]
fn events_too_many_or_too_few() {
    const RTMR1: &[(Reason, Certainty, &[&str])] = &[(Reason::OtherEvent, Likely, &["rtmr1"])];
    let before_image = |event: &'static str, payload: &'static [u8]| {
        edited(World::same(), move |world| {
            let at = world.at(&Cause::Uki);
            world.log.insert(at, of_digest(1, event, sha384(payload), payload));
        })
    };
    let cases = [
        Case {
            name: "partition table",
            world: before_image("EV_EFI_GPT_EVENT", b"EFI PART\0\0\x01\0"),
            causes: RTMR1,
            says: &["boots from a disk with a partition table", "event 3 EV_EFI_GPT_EVENT"],
            unexplained: 0,
        },
        Case {
            name: "option ROM",
            world: before_image("EV_EFI_BOOT_SERVICES_DRIVER", b"\x18\xc0"),
            causes: RTMR1,
            says: &["the option ROM of a network card"],
            unexplained: 0,
        },
        Case {
            name: "boot menu",
            world: before_image("EV_EFI_ACTION", b"Returning from EFI Application from Boot Option"),
            causes: RTMR1,
            says: &[
                "EV_EFI_ACTION (\"Returning from EFI Application from Boot Option\")",
                "tried another boot option",
            ],
            unexplained: 0,
        },
        Case {
            name: "boot loader",
            world: before_image("EV_EFI_BOOT_SERVICES_APPLICATION", b"\x18\xc0"),
            causes: RTMR1,
            says: &["another program ran before or beside the image"],
            unexplained: 0,
        },
        Case {
            name: "boot services not left",
            world: edited(World::same(), |world| {
                world.log.retain(|event| event.mr != 1 || event.event != "EV_EFI_ACTION");
            }),
            causes: RTMR1,
            says: &[
                "RTMR1 lacks EV_EFI_ACTION (start of the boot option, exit of boot services, exit of boot services)",
            ],
            unexplained: 0,
        },
        Case {
            name: "another separator",
            world: edited(World::same(), |world| {
                let at = world
                    .log
                    .iter()
                    .position(|event| event.mr == 1 && event.event == "EV_SEPARATOR")
                    .unwrap();
                world.log[at] = of_data(1, "EV_SEPARATOR", &1_u32.to_le_bytes());
            }),
            causes: &[],
            says: &["NOT EXPLAINED", "RTMR1: event 2 EV_SEPARATOR (separator) is"],
            unexplained: 1,
        },
    ];
    cases.iter().for_each(check);
}

#[test]
fn machines() {
    const RTMR0: &[&str] = &["rtmr0"];
    let with = |memory_mib, cpus, devices: &str| {
        let shape = MachineShape { memory_mib, cpus, ..shape() };
        World::same().on(&platform("other", &firmware(&[]), &shape, devices))
    };
    let layout = |world: &mut World| {
        let file = firmware(&[]);
        let list = hob::other_class(&Tdvf::parse(&file).unwrap(), 4096 << 20).unwrap();
        let at = world.at(&Cause::TdHob);
        world.log[at].digest = Some(sha384(&list));
    };
    let unseen = |mut world: World| {
        world.log.retain(|event| event.mr != 3);
        world
    };
    let cases = [
        Case {
            name: "below 2.75 GiB",
            world: with(2048, 2, "virtio"),
            causes: &[(Reason::LowMemory, Likely, RTMR0)],
            says: &[
                "the appliance saw 1904 MiB usable, the reference is for 4096 MiB: on the other side of 2.75 GiB",
            ],
            unexplained: 0,
        },
        Case {
            name: "the other layout",
            world: edited(World::same(), layout),
            causes: &[(Reason::LowMemory, Certain, RTMR0)],
            says: &["memory laid out as on a machine on the other side of 2.75 GiB"],
            unexplained: 0,
        },
        Case {
            name: "more memory",
            world: with(8192, 2, "virtio"),
            causes: &[(Reason::MemorySize, Likely, RTMR0)],
            says: &["the appliance saw 7618 MiB usable, the reference is for 4096 MiB."],
            unexplained: 0,
        },
        Case {
            name: "memory, and nothing says how much",
            world: unseen(with(8192, 2, "virtio")),
            causes: &[(Reason::MemorySize, Likely, RTMR0)],
            says: &[
                "nothing says how much memory the machine has",
                "event 1 EV_EFI_HANDOFF_TABLES2 (TD HOB (memory map)) is",
            ],
            unexplained: 0,
        },
        Case {
            name: "slightly more memory",
            world: with(4224, 2, "virtio"),
            causes: &[(Reason::MemorySize, Likely, RTMR0)],
            says: &["although the 3928 MiB usable that the appliance saw fit the reference's 4096 MiB"],
            unexplained: 0,
        },
        Case {
            name: "processors",
            world: with(4096, 8, "virtio"),
            causes: &[(Reason::CpuCount, Likely, RTMR0)],
            says: &["RTMR0 differs in: ACPI tables; the appliance saw 8 processors, the reference is for 2."],
            unexplained: 0,
        },
        Case {
            name: "processors and memory",
            world: with(2048, 8, "virtio"),
            causes: &[(Reason::LowMemory, Likely, RTMR0), (Reason::CpuCount, Likely, RTMR0)],
            says: &[],
            unexplained: 0,
        },
        Case {
            name: "devices",
            world: with(4096, 2, "virtio and a network card"),
            causes: &[(Reason::Machine, Likely, RTMR0)],
            says: &[
                "the number of processors, 2, is the reference's: another version of QEMU (the reference is for QEMU 10.0)",
            ],
            unexplained: 0,
        },
        Case {
            name: "tables, and nothing says how many processors",
            world: unseen(with(4096, 8, "virtio")),
            causes: &[(Reason::Machine, Likely, RTMR0)],
            says: &["nothing says how many it has"],
            unexplained: 0,
        },
    ];
    cases.iter().for_each(check);
}

#[test]
fn firmware_settings() {
    const RTMR0: &[&str] = &["rtmr0"];
    // Newer firmware measures files of the hypervisor by themselves.
    let newer = synthetic::firmware(&[], &synthetic::sections(), true);
    let files = |name: &str, contents: &[u8]| {
        let machine = br#"{"qemu":"10.0","memory_mib":4096,"cpus":2,"arguments":[]}"#;
        let files = [
            ("etc/table-loader", synthetic::loader(&["etc/acpi/tables"])),
            ("etc/acpi/tables", b"DSDT".to_vec()),
            (name, contents.to_vec()),
        ];
        let files = files.map(|(name, contents)| (name.to_owned(), contents));
        let acpi = AcpiTables::new(machine, BTreeMap::from(files)).unwrap();
        platform_reference(&newer, "newer", &shape(), Some(&acpi)).unwrap()
    };
    let file = |name: &str, wanted: &[u8], found: &[u8]| {
        let mut world = World::same().on(&files(name, found));
        world.reference.platforms = vec![files(name, wanted)];
        world
    };
    let cases = [
        Case {
            name: "order of booting",
            world: file("bootorder", b"/pci/disk", b"/pci/ethernet"),
            causes: &[(Reason::BootEntries, Likely, RTMR0)],
            says: &["Boot entries of the firmware differ (RTMR0): bootorder."],
            unexplained: 0,
        },
        Case {
            name: "end of reserved memory",
            world: file("etc/reserved-memory-end", &[0; 8], &[1; 8]),
            causes: &[(Reason::Machine, Likely, RTMR0)],
            says: &["RTMR0 differs in: firmware: etc/reserved-memory-end; the number of processors"],
            unexplained: 0,
        },
    ];
    cases.iter().for_each(check);
    let file = firmware(&[]);
    let settings = |secure_boot: &[u8], options| {
        let acpi = tables(&shape(), "virtio", secure_boot, options);
        World::same().on(&platform_reference(&file, "other", &shape(), Some(&acpi)).unwrap())
    };
    let cases = [
        Case {
            name: "Secure Boot",
            world: settings(&[0], 1),
            causes: &[(Reason::SecureBoot, Likely, RTMR0)],
            says: &["Variables of Secure Boot differ (RTMR0): SecureBoot."],
            unexplained: 0,
        },
        Case {
            name: "boot entries",
            world: settings(&[], 2),
            causes: &[(Reason::BootEntries, Likely, RTMR0)],
            says: &["Boot entries of the firmware differ (RTMR0): BootOrder; entries were added."],
            unexplained: 0,
        },
    ];
    cases.iter().for_each(check);
}

#[test]
fn firmware_builds_and_page_orders() {
    let known = |edit: &dyn Fn(&mut World)| {
        let mut world = World::same();
        edit(&mut world);
        world
    };
    let single = |world: &mut World| {
        world.reference.platforms[0].mrtd.truncate(1);
        assert_eq!(world.reference.platforms[0].mrtd[0].order, PageOrder::SinglePass);
    };
    let two_pass = platform("x", &firmware(&[]), &shape(), "virtio").mrtd[1].value;
    let other = platform("other", &firmware(&[("Other", GLOBAL, b"value", 0x3f)]), &shape(), "virtio");
    let keys = firmware(&[("KEK", GLOBAL, b"key", 0x3f), ("db", DATABASE, b"key", 0x3f)]);
    let acpi = tables(&shape(), "virtio", &[0], 1);
    let enrolled = platform_reference(&keys, "enrolled", &shape(), Some(&acpi)).unwrap();
    let listed =
        Alternative { of: Cause::Firmware("MRTD".into()), digest: two_pass, reason: Reason::PageAddOrder };
    let constant = PlatformReference {
        name: "simulator".to_owned(),
        simulated: true,
        firmware: None,
        machine: None,
        mrtd: vec![Mrtd { order: PageOrder::Stated, value: [7; 48] }],
        rtmr0: None,
        events: Vec::new(),
        alternatives: Vec::new(),
    };
    let cases = [
        Case {
            name: "both orders are known",
            world: known(&|world| world.mrtd = two_pass),
            causes: &[],
            says: &["MRTD is as predicted"],
            unexplained: 0,
        },
        Case {
            name: "one order is known",
            world: known(&|world| {
                single(world);
                world.mrtd = two_pass;
            }),
            causes: &[(Reason::PageAddOrder, Likely, &["mrtd"]), (Reason::FirmwareBuild, Likely, &["mrtd"])],
            says: &["for one page-add order only, and RTMR0 is as predicted", "MRTD is not a known one"],
            unexplained: 0,
        },
        Case {
            name: "the other order is listed",
            world: known(&|world| {
                single(world);
                world.mrtd = two_pass;
                world.reference.platforms[0].alternatives.push(listed.clone());
            }),
            causes: &[(Reason::PageAddOrder, Certain, &["mrtd"])],
            says: &["MRTD is exactly what acme lists for this case"],
            unexplained: 0,
        },
        Case {
            name: "another machine's half has the other order",
            world: known(&|world| {
                single(world);
                let shape = MachineShape { cpus: 4, ..shape() };
                let mut half = platform("four", &firmware(&[]), &shape, "virtio");
                half.mrtd.remove(0);
                world.mrtd = half.mrtd[0].value;
                world.reference.platforms.push(half);
            }),
            causes: &[(Reason::CpuCount, Certain, &["rtmr0"])],
            says: &["RTMR0 is that of acme (4096 MiB, 2 processors): the same firmware, but not this MRTD."],
            unexplained: 0,
        },
        Case {
            name: "another firmware",
            world: known(&|world| world.mrtd = [9; 48]),
            causes: &[(Reason::FirmwareBuild, Likely, &["mrtd"])],
            says: &["that of no known firmware in either page-add order, and RTMR0 is as predicted"],
            unexplained: 0,
        },
        Case {
            name: "another firmware with another store",
            world: edited(World::same().on(&other), |world| world.mrtd = [9; 48]),
            causes: &[(Reason::FirmwareBuild, Likely, &["mrtd", "rtmr0"])],
            says: &[
                "the firmware's variable store in RTMR0 differs as well",
                "configuration firmware volume; MRTD differs",
            ],
            unexplained: 0,
        },
        Case {
            name: "the same code with another store",
            world: edited(World::same().on(&other), |world| world.mrtd = two_pass),
            causes: &[(Reason::FirmwareBuild, Likely, &["rtmr0"])],
            says: &["MRTD is as predicted, so it is the same code with another variable store"],
            unexplained: 0,
        },
        Case {
            name: "a store with keys",
            world: edited(World::same().on(&enrolled), |world| world.mrtd = two_pass),
            causes: &[(Reason::SecureBoot, Likely, &["rtmr0"])],
            says: &[
                "Variables of Secure Boot differ (RTMR0): SecureBoot, KEK, db. The variable store, which holds them",
            ],
            unexplained: 0,
        },
        Case {
            name: "the simulator's constant",
            world: known(&|world| {
                world.mrtd = [7; 48];
                world.reference.platforms.push(constant.clone());
            }),
            causes: &[(Reason::BootPlatform, Certain, &["mrtd"])],
            says: &["MRTD is that of simulator, which is for another kind of machine"],
            unexplained: 0,
        },
    ];
    cases.iter().for_each(check);
}

#[test]
fn kinds_of_machines() {
    let simulator = |world: &mut World| {
        world.log.retain(|event| event.mr == 0 || event.mr == 3);
        world.log.extend(boot_log(&Parts::new(), BootPlatform::Simulator));
        world.reference.images[0].boots.retain(|boot| boot.platform == BootPlatform::Tdx);
    };
    let cases = [
        Case {
            name: "values of a trust domain, simulated evidence",
            world: edited(World::same(), |world| {
                simulator(world);
                world.simulated = Some(true);
            }),
            causes: &[(Reason::BootPlatform, Certain, &["rtmr1", "mrtd", "rtmr0"])],
            says: &[
                "is that of the simulated device, and the only reference values given are for a trust domain",
            ],
            unexplained: 0,
        },
        Case {
            name: "the same without a verified chain",
            world: edited(World::same(), |world| {
                simulator(world);
                world.simulated = None;
            }),
            causes: &[(Reason::BootPlatform, Likely, &["rtmr1"])],
            says: &["5 separators where 1 were predicted, as the simulated device measures them"],
            unexplained: 0,
        },
        Case {
            name: "values of the simulator, evidence from hardware",
            world: edited(World::same(), |world| {
                world.reference.images[0].boots.retain(|boot| boot.platform == BootPlatform::Simulator);
                world.simulated = None;
            }),
            causes: &[(Reason::BootPlatform, Likely, &["rtmr1"])],
            says: &["1 separators where 5 were predicted, as a trust domain measures them"],
            unexplained: 0,
        },
    ];
    cases.iter().for_each(check);
}

#[test]
fn a_log_that_does_not_replay_names_nothing() {
    let mut world = changed(|parts| parts.command_line = "debug");
    let mut quote = world.quote();
    quote.rtmr[1] = [1; 48];
    quote.rtmr[2] = [2; 48];
    let explanation = explain(&world.reference, &quote, &world.log, world.simulated);
    well_formed(&explanation);
    assert!(explanation.causes.is_empty(), "{explanation}");
    assert_eq!(explanation.unexplained.len(), 2);
    assert!(explanation.unexplained[0].contains("does not replay"), "{explanation}");
    assert!(explanation.registers.iter().all(|register| register.rows.is_empty()));
    assert!(summary(&explanation).unwrap().starts_with("RTMR1, RTMR2 differ: the log does not replay"));

    world.log.clear();
    let explanation = explain(&world.reference, &quote, &world.log, world.simulated);
    assert!(explanation.unexplained[0].contains("carries no log"), "{explanation}");

    // The sections are named even where RTMR1's log is worthless.
    let world = changed(|parts| parts.command_line = "debug");
    let mut quote = world.quote();
    quote.rtmr[1] = [1; 48];
    let explanation = explain(&world.reference, &quote, &world.log, world.simulated);
    assert_eq!(explanation.causes[0].reason, Reason::CommandLine);
    assert_eq!(explanation.causes[0].registers, ["rtmr2", "rtmr1"]);
    // And where RTMR2's is, the image is another one.
    let mut quote = world.quote();
    quote.rtmr[2] = [1; 48];
    let explanation = explain(&world.reference, &quote, &world.log, world.simulated);
    assert_eq!(explanation.causes[0].reason, Reason::Tampered);
    assert!(explanation.causes[0].sentence.contains("RTMR2 cannot say"), "{explanation}");
}

/// Each root is reported once, and what an unknown image says about its machine is marked.
#[test]
fn several_causes_at_once() {
    let shape = MachineShape { cpus: 8, ..shape() };
    let world = changed(|parts| parts.command_line = "debug");
    let mut world = world.on(&platform("other", &firmware(&[]), &shape, "virtio"));
    world.mrtd = [9; 48];
    let case = Case {
        name: "command line, processors and firmware",
        world,
        causes: &[
            (Reason::CommandLine, Likely, BOTH),
            (Reason::FirmwareBuild, Likely, &["mrtd"]),
            (Reason::CpuCount, Likely, &["rtmr0"]),
        ],
        says: &[
            "the machine's shape is what an image said that is not the predicted one",
            "MRTD is not a known one: unknown firmware measured RTMR0-2",
        ],
        unexplained: 0,
    };
    check(&case);
    let lines = summary(&case.world.explain()).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(
        lines[0].starts_with("likely cause: another command line in the image (RTMR2, RTMR1): "),
        "{lines:?}"
    );
    assert!(lines[2].contains("RTMR0"), "{lines:?}");
}

#[test]
fn a_forged_machine_event_is_not_believed() {
    let shape = MachineShape { cpus: 8, ..shape() };
    let world = World::same().on(&platform("other", &firmware(&[]), &shape, "virtio"));
    let mut quote = world.quote();
    quote.rtmr[3] = [3; 48];
    let explanation = explain(&world.reference, &quote, &world.log, world.simulated);
    assert_eq!(explanation.causes[0].reason, Reason::Machine);
    assert!(explanation.causes[0].sentence.contains("nothing says how many"), "{explanation}");
}

#[test]
fn a_partly_determined_register_is_compared_as_far_as_it_goes() {
    let mut world = World::same();
    world.reference.platforms = vec![platform_reference(&firmware(&[]), "acme", &shape(), None).unwrap()];
    assert!(world.reference.platforms[0].rtmr0.is_none());
    let explanation = world.explain();
    assert_eq!(explanation.registers[1].status, Status::PartlyPredicted, "{explanation}");
    let shape = MachineShape { memory_mib: 2048, ..shape() };
    let half = platform("other", &firmware(&[]), &shape, "virtio");
    let explanation = world.on(&half).explain();
    assert_eq!(explanation.registers[1].status, Status::Differs, "{explanation}");
    assert_eq!(explanation.causes[0].reason, Reason::LowMemory, "{explanation}");
    assert!(explanation.unexplained.is_empty(), "{explanation}");
}

#[test]
fn without_reference_values_nothing_is_said() {
    let mut world = World::same();
    world.reference = ReferenceValues::default();
    let explanation = world.explain();
    assert!(explanation.registers.iter().all(|register| register.status == Status::NoReference));
    assert_eq!(summary(&explanation), None);
    well_formed(&explanation);
}

#[test]
fn the_first_divergence_is_marked_and_numbered() {
    let explanation = changed(|parts| parts.command_line = "debug").explain();
    let rtmr2 = &explanation.registers[3];
    let first = rtmr2.rows.iter().find(|row| row.mark != Mark::Same).unwrap();
    assert_eq!(first.measured.as_ref().unwrap().index, 6);
    assert_eq!(first.predicted.as_ref().unwrap().label.as_deref(), Some("section .cmdline"));
    let text = explanation.to_string();
    assert_eq!(text.lines().filter(|line| line.starts_with('>')).count(), 2, "{text}");
    assert!(text.contains("\n>    6  EV_IPL"), "{text}");
    let summary = summary(&explanation).unwrap();
    assert!(
        summary.starts_with("likely cause: another command line in the image (RTMR2, RTMR1): "),
        "{summary}"
    );
    assert!(summary.contains(".cmdline"), "{summary}");
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["causes"][0]["reason"], "command_line");
    assert_eq!(json["causes"][0]["certainty"], "likely");
    assert_eq!(json["registers"][3]["rows"][5]["mark"], "changed");
}

/// A log as large as is accepted, made to confuse: escape sequences, overlong texts, repeated digests, unknown types.
fn hostile(seed: u64) -> World {
    let mut world = World::same();
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap()
    };
    let names =
        ["EV_IPL", "EV_EVENT_TAG", "EV_SEPARATOR", "EV_EFI_VARIABLE_BOOT", "EV_\x1b[2J", "EV_EFI_ACTION"];
    let payloads: [&[u8]; 6] = [
        b"\x1b[31mred\x1b[0m\r\n",
        &[0xff; 1024],
        b".linux\0",
        "\u{202e}gnp.exe".as_bytes(),
        &[b'a'; 1024],
        &[0; 40],
    ];
    while world.log.len() < MAX_EVENTS {
        let at = next() % world.log.len();
        let digest = if next() % 3 == 0 {
            world.log[next() % world.log.len()].register_digest()
        } else {
            sha384(&next().to_le_bytes()[..1 + next() % 2])
        };
        let mr = u8::try_from(next() % 3).unwrap();
        let mut event = of_digest(mr, names[next() % names.len()], digest, payloads[next() % payloads.len()]);
        if next() % 5 == 0 {
            event.event = "EV_LONG".repeat(1000);
        }
        world.log.insert(at, event);
    }
    world
}

#[test]
fn hostile_logs_stay_bounded_and_printable() {
    for seed in 0..20 {
        let world = hostile(seed);
        let started = std::time::Instant::now();
        let explanation = world.explain();
        well_formed(&explanation);
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
        assert!(explanation.registers.iter().all(|register| register.rows.len() <= 40));
    }
    let mut world = hostile(1);
    world.log.push(of_data(1, "EV_IPL", b"one too many"));
    let explanation = world.explain();
    assert!(explanation.unexplained[0].contains("does not replay"), "{explanation}");
}

#[test]
fn hostile_reference_values_stay_printable() {
    let mut world = changed(|parts| parts.command_line = "debug");
    world.reference.platforms[0].name = "\x1b[2Jevil".repeat(100);
    let image = &mut world.reference.images[0];
    image.image.name = "\u{7}".repeat(1000);
    for event in &mut image.boots[0].events {
        if event.cause == Cause::CommandLine {
            event.cause = Cause::Firmware("\r\n\x1b".repeat(1000));
        }
    }
    well_formed(&world.explain());
}

/// The log of a confidential virtual machine of another kind: everything differs, and that is said in bounds.
#[test]
fn a_foreign_machines_evidence() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/fixtures/tdx-hardware/google-cos-113");
    let Ok(ccel) = std::fs::read(format!("{folder}/ccel_data.dat")) else {
        println!("skipped: no log of hardware beside the checkout");
        return;
    };
    let mut world = World::same();
    world.log = cofferdam_attest::ccel::parse(&ccel).unwrap();
    world.mrtd = [9; 48];
    let explanation = world.explain();
    println!("{explanation}");
    well_formed(&explanation);
    assert_eq!(explanation.causes[0].reason, Reason::OtherImage, "{explanation}");
    assert!(explanation.causes[0].sentence.contains("\"/efi/boot/grub.cfg\""), "{explanation}");
    assert!(explanation.unexplained.is_empty(), "{explanation}");
    assert!(explanation.causes.iter().all(|cause| cause.certainty == Likely), "{explanation}");
}

/// The image that was built last, where there is one: one byte of a section changed, and its kernel as QEMU changes it.
#[test]
fn a_real_image() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let files =
        ["cofferdam.efi", "cofferdam-simulator.efi"].map(|name| std::fs::read(format!("{root}/{name}")));
    let Some(uki) = files.into_iter().find_map(Result::ok) else {
        println!("skipped: no image was built");
        return;
    };
    let sections = pe::Image::parse(&uki).unwrap().sections().to_vec();
    let section = |name: &str| sections.iter().find(|section| section.name == name).unwrap().raw.clone();
    let reference = image_reference(&uki, None).unwrap();
    let boot = |file: &[u8]| {
        let image = image_reference(file, None).unwrap();
        image.boots.iter().find(|boot| boot.platform == BootPlatform::Tdx).unwrap().clone()
    };
    let explained = |events: &[PredictedEvent]| {
        let mut world = World::same();
        world.reference = ReferenceValues { images: vec![reference.clone()], platforms: Vec::new() };
        world.log = events.iter().map(measured).collect();
        let explanation = world.explain();
        well_formed(&explanation);
        assert!(explanation.unexplained.is_empty(), "{explanation}");
        explanation.causes.iter().map(|cause| (cause.reason, cause.certainty)).collect::<Vec<_>>()
    };
    assert_eq!(explained(&boot(&uki).events), []);
    for (name, reason) in [(".cmdline", Reason::CommandLine), (".initrd", Reason::Initrd)] {
        let mut changed = uki.clone();
        changed[section(name).start] ^= 1;
        assert_eq!(explained(&boot(&changed).events), [(reason, Likely)], "{name}");
    }
    let mut linux = pe::Image::parse(&uki).unwrap().section(".linux").unwrap().to_vec();
    patch_header(&mut linux);
    let mut events = boot(&uki).events;
    events.iter_mut().find(|event| event.cause == Cause::Kernel).unwrap().digest = authenticode(&linux);
    // An image's own stub starts its kernel: no hypervisor writes into that.
    let mut world = World::same();
    world.reference = ReferenceValues { images: vec![reference.clone()], platforms: Vec::new() };
    world.log = events.iter().map(measured).collect();
    let explanation = world.explain();
    assert!(explanation.causes.is_empty() && explanation.unexplained.len() == 1, "{explanation}");
}
