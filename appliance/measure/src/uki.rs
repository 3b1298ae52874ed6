//! The events that booting a UKI measures, in order.
//!
//! Sources: TCG PC Client Platform Firmware Profile 1.06, section 3.3.4 (PCR 4 and 5) and 10.4 (event types); UEFI 2.11,
//! section 38 (confidential computing: PCR 2-6 are RTMR1, 8-15 are RTMR2); the UAPI Group's "Unified Kernel Image"
//! specification with systemd-stub(7) (PCR 11); Linux `drivers/firmware/efi/libstub` (PCR 9).

use std::collections::BTreeMap;

use cofferdam_attest::event_log::Register;
use cofferdam_attest::evidence::ImageInfo;
use cofferdam_attest::reference::{
    Alternative, Boot, BootPlatform, BootSource, Build, Cause, ImageReference, PredictedEvent, Reason, replay,
};
use sha2::{Digest as _, Sha384};

use crate::pe::{Image, PeError};
use crate::qemu;
use crate::stub::{self, StubError};

/// What the firmware announces before it starts the first boot option, and around ExitBootServices.
const CALLING: &str = "Calling EFI Application from Boot Option";
const EXIT_INVOKED: &str = "Exit Boot Services Invocation";
const EXIT_DONE: &str = "Exit Boot Services Returned with Success";
/// The data of `EV_SEPARATOR`: the firmware's part ends here, without an error.
const SEPARATOR: [u8; 4] = [0; 4];

/// The sections that systemd-stub 257 measures into PCR 11, in its order.
const MEASURED_SECTIONS: [&str; 6] = [".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat"];
/// Sections that would change what the stub measures or hands to the kernel in ways that are not predicted here. Our
/// image has none of them; an image that has is refused instead of predicted wrongly.
const UNPREDICTED_SECTIONS: [&str; 9] =
    [".ucode", ".splash", ".dtb", ".dtbauto", ".hwids", ".efifw", ".pcrsig", ".pcrpkey", ".profile"];

/// The portable half of an image's reference values: RTMR1 and RTMR2 with their events, for every way of booting it.
///
/// # Errors
/// [`MeasureError`] when the file is no UKI.
pub fn image_reference(uki: &[u8], build: Option<Build>) -> Result<ImageReference, MeasureError> {
    let image = Image::parse(uki).map_err(MeasureError::Uki)?;
    stub::check(&image).map_err(MeasureError::Stub)?;
    let loaded = Loaded::new(&image)?;
    let from_stub = stub_events(&image)?;
    let mut boots = Vec::new();
    for source in [BootSource::Disk, BootSource::Hypervisor] {
        for platform in [BootPlatform::Tdx, BootPlatform::Simulator] {
            let mut events = loaded.events(platform, source);
            events.extend(from_stub.iter().cloned());
            let (rtmr1, rtmr2) = (replay(&events, 1), replay(&events, 2));
            boots.push(Boot { platform, source, rtmr1, rtmr2, events });
        }
    }
    let info = ImageInfo {
        name: "cofferdam".to_owned(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        digests: digests(uki, &image),
    };
    let length = u64::try_from(uki.len()).ok();
    Ok(ImageReference { image: info, length, build, boots, alternatives: alternatives(&image) })
}

/// Digests that differ from the predicted ones in known ways.
fn alternatives(image: &Image<'_>) -> Vec<Alternative> {
    let mut found = Vec::new();
    let initrd = image.section(".initrd").map(<[u8]>::len);
    for initrd in [initrd, None] {
        let digest = image.section(".linux").and_then(|kernel| qemu::patched_digest(kernel, initrd));
        found.extend(digest.map(|digest| Alternative {
            of: Cause::Kernel,
            digest,
            reason: Reason::QemuHeaderPatching,
        }));
    }
    // Without .osrel the stub adds no archive of its own.
    if let Ok(digest) = initrd_digest(image, false) {
        found.push(Alternative { of: Cause::Initrd, digest, reason: Reason::SectionRemoved });
    }
    found
}

/// SHA-256 of the image and of its parts.
fn digests(uki: &[u8], image: &Image<'_>) -> BTreeMap<String, cofferdam_protocol::Digest> {
    let parts = [("kernel", ".linux"), ("initrd", ".initrd"), ("command_line", ".cmdline")];
    let parts = parts.into_iter().filter_map(|(name, section)| Some((name, image.section(section)?)));
    [("uki", uki)]
        .into_iter()
        .chain(parts)
        .map(|(name, bytes)| (name.to_owned(), cofferdam_protocol::Digest::of(bytes)))
        .collect()
}

/// What the firmware loads: digests of the image and of the kernel that its stub starts.
struct Loaded {
    uki: Register,
    kernel: Register,
}

impl Loaded {
    fn new(image: &Image<'_>) -> Result<Self, MeasureError> {
        let linux = image.section(".linux").ok_or(MeasureError::Missing(".linux"))?;
        let kernel = Image::parse(linux).map_err(MeasureError::Kernel)?;
        Ok(Self {
            uki: image.authenticode_sha384().map_err(MeasureError::Uki)?,
            kernel: kernel.authenticode_sha384().map_err(MeasureError::Kernel)?,
        })
    }

    /// RTMR1: what the firmware does and loads. An image from the hypervisor is loaded before the firmware announces that it boots.
    fn events(&self, platform: BootPlatform, source: BootSource) -> Vec<PredictedEvent> {
        let separators = match platform {
            BootPlatform::Tdx => 1,
            BootPlatform::Simulator => 5,
        };
        let application = "EV_EFI_BOOT_SERVICES_APPLICATION";
        let image = of_digest(1, application, self.uki, Cause::Uki);
        let mut events = vec![of_data(1, "EV_EFI_ACTION", CALLING.as_bytes(), Cause::BootAttempt)];
        for _ in 0..separators {
            events.push(of_data(1, "EV_SEPARATOR", &SEPARATOR, Cause::Separator));
        }
        match source {
            BootSource::Disk => events.push(image),
            BootSource::Hypervisor => events.insert(0, image),
        }
        events.push(of_digest(1, application, self.kernel, Cause::Kernel));
        events.push(of_data(1, "EV_EFI_ACTION", EXIT_INVOKED.as_bytes(), Cause::ExitBootServices));
        events.push(of_data(1, "EV_EFI_ACTION", EXIT_DONE.as_bytes(), Cause::ExitBootServices));
        events
    }
}

/// RTMR2: the sections that systemd-stub measures (the name with its NUL, then the contents), then the command line
/// and the initrd as the kernel's EFI stub receives them.
fn stub_events(image: &Image<'_>) -> Result<Vec<PredictedEvent>, MeasureError> {
    if let Some(section) =
        image.sections().iter().find(|section| UNPREDICTED_SECTIONS.contains(&section.name.as_str()))
    {
        return Err(MeasureError::Unpredicted(section.name.clone()));
    }
    refuse_ambiguous(image)?;
    let mut events = Vec::new();
    for name in MEASURED_SECTIONS {
        if let Some(contents) = image.section(name) {
            let terminated = [name.as_bytes(), &[0]].concat();
            events.push(of_data(2, "EV_IPL", &terminated, Cause::SectionName(name.to_owned())));
            events.push(of_data(2, "EV_IPL", contents, Cause::SectionContents(name.to_owned())));
        }
    }
    let cmdline = image.section(".cmdline").ok_or(MeasureError::Missing(".cmdline"))?;
    let cmdline = std::str::from_utf8(cmdline).map_err(|_| MeasureError::CommandLine)?;
    let cmdline = cmdline.trim_end_matches(['\0', '\n']);
    let wide: Vec<u8> = cmdline.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    events.push(of_data(2, "EV_EVENT_TAG", &wide, Cause::CommandLine));
    events.push(of_digest(2, "EV_EVENT_TAG", initrd_digest(image, true)?, Cause::Initrd));
    Ok(events)
}

/// A section that is there twice, or that is longer in memory than in the file, is read by the stub as nobody predicts.
fn refuse_ambiguous(image: &Image<'_>) -> Result<(), MeasureError> {
    for name in MEASURED_SECTIONS {
        let mut of_name = image.sections().iter().filter(|section| section.name == name);
        let longer = of_name.next().is_some_and(|section| section.virtual_size > section.raw.len());
        if longer || of_name.next().is_some() {
            return Err(MeasureError::Unpredicted(name.to_owned()));
        }
    }
    Ok(())
}

/// What the kernel's EFI stub measures as its initrd: the section, padded, and the stub's archive behind it.
fn initrd_digest(image: &Image<'_>, with_archive: bool) -> Result<Register, MeasureError> {
    let initrd = image.section(".initrd").ok_or(MeasureError::Missing(".initrd"))?;
    let mut hash = Sha384::new();
    hash.update(initrd);
    if let Some(release) = image.section(".osrel").filter(|_| with_archive) {
        hash.update(padding(initrd.len()));
        hash.update(os_release_archive(release));
    }
    Ok(hash.finalize().into())
}

/// The cpio archive that systemd-stub appends to the initrd: `/.extra/os-release`, read-only, in the "newc" format of
/// Linux `Documentation/driver-api/early-userspace/buffer-format.rst`.
fn os_release_archive(release: &[u8]) -> Vec<u8> {
    /// `S_IFDIR | 0555` and `S_IFREG | 0444`.
    const DIRECTORY: u32 = 0o40_555;
    const FILE: u32 = 0o100_444;
    let mut archive = Vec::new();
    cpio_entry(&mut archive, 1, DIRECTORY, ".extra", &[]);
    cpio_entry(&mut archive, 2, FILE, ".extra/os-release", release);
    // The trailer is a constant in the stub, with its one hexadecimal letter in upper case.
    archive.extend_from_slice(b"070701");
    for field in
        ["00000000"; 4].into_iter().chain(["00000001"]).chain(["00000000"; 6]).chain(["0000000B", "00000000"])
    {
        archive.extend_from_slice(field.as_bytes());
    }
    archive.extend_from_slice(b"TRAILER!!!\0\0\0\0");
    archive
}

fn cpio_entry(archive: &mut Vec<u8>, inode: u32, mode: u32, name: &str, content: &[u8]) {
    let name_length = name.len().saturating_add(1);
    // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    let header = format!(
        "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{2:08x}{0:08x}{0:08x}{0:08x}{0:08x}{name_length:08x}{0:08x}",
        0,
        1,
        content.len()
    );
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.extend_from_slice(padding(archive.len()));
    archive.extend_from_slice(content);
    archive.extend_from_slice(padding(content.len()));
}

/// The zero bytes that bring `length` to a multiple of four.
fn padding(length: usize) -> &'static [u8] {
    match length % 4 {
        1 => &[0; 3],
        2 => &[0; 2],
        3 => &[0; 1],
        _ => &[],
    }
}

/// An event whose digest is that of the data.
fn of_data(mr: u8, event: &str, data: &[u8], cause: Cause) -> PredictedEvent {
    of_digest(mr, event, Sha384::digest(data).into(), cause)
}

fn of_digest(mr: u8, event: &str, digest: Register, cause: Cause) -> PredictedEvent {
    PredictedEvent { mr, event: event.to_owned(), digest, cause }
}

/// Why a file's registers cannot be predicted.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The file itself.
    #[error("not a unified kernel image")]
    Uki(#[source] PeError),
    /// The kernel inside.
    #[error("section .linux holds no kernel")]
    Kernel(#[source] PeError),
    /// Its boot stub.
    #[error("what the image measures cannot be predicted")]
    Stub(#[source] StubError),
    /// A section that every UKI of ours has.
    #[error("the image has no section {0}")]
    Missing(&'static str),
    /// A section whose effect on the registers is not predicted.
    #[error("section {0} changes what is measured in a way that is not predicted")]
    Unpredicted(String),
    /// The command line.
    #[error("section .cmdline is not UTF-8")]
    CommandLine,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{MAGIC, pe as build, uki};

    fn boot(uki: &[u8], platform: BootPlatform) -> Boot {
        let reference = image_reference(uki, None).unwrap();
        let from_disk = |boot: &Boot| boot.platform == platform && boot.source == BootSource::Disk;
        reference.boots.into_iter().find(from_disk).unwrap()
    }

    fn registers(uki: &[u8], platform: BootPlatform) -> (Register, Register) {
        let boot = boot(uki, platform);
        (boot.rtmr1, boot.rtmr2)
    }

    #[test]
    fn every_part_of_the_image_counts() {
        let base = uki(b"console=ttyS0\0", b"initrd");
        let plain = registers(&base, BootPlatform::Tdx);
        for changed in [uki(b"console=ttyS1\0", b"initrd"), uki(b"console=ttyS0\0", b"initre")] {
            let (rtmr1, rtmr2) = registers(&changed, BootPlatform::Tdx);
            assert_ne!(rtmr1, plain.0);
            assert_ne!(rtmr2, plain.1);
        }
        assert_ne!(registers(&base, BootPlatform::Simulator).0, plain.0, "separators differ");
        assert_eq!(registers(&base, BootPlatform::Simulator).1, plain.1);
    }

    #[test]
    fn the_order_is_that_of_the_stub_not_of_the_section_table() {
        let events = boot(&uki(b"a\0", b"initrd"), BootPlatform::Tdx).events;
        let names: Vec<Register> = MEASURED_SECTIONS
            .iter()
            .map(|name| Sha384::digest([name.as_bytes(), &[0]].concat()).into())
            .collect();
        let measured: Vec<Register> = events
            .iter()
            .filter(|event| event.event == "EV_IPL")
            .step_by(2)
            .map(|event| event.digest)
            .collect();
        assert_eq!(measured, names);
        let rtmr1: Vec<&str> =
            events.iter().filter(|event| event.mr == 1).map(|event| event.event.as_str()).collect();
        let application = "EV_EFI_BOOT_SERVICES_APPLICATION";
        let action = "EV_EFI_ACTION";
        assert_eq!(rtmr1, [action, "EV_SEPARATOR", application, application, action, action]);
    }

    #[test]
    fn the_command_line_is_measured_as_utf16_with_its_terminator() {
        let events = boot(&uki("a=\u{e9}\0".as_bytes(), b"initrd"), BootPlatform::Tdx).events;
        let tagged: Vec<Register> =
            events.iter().filter(|event| event.event == "EV_EVENT_TAG").map(|event| event.digest).collect();
        let wide: &[u8] = &[b'a', 0, b'=', 0, 0xe9, 0, 0, 0];
        assert_eq!(tagged.first(), Some(&Register::from(Sha384::digest(wide))));
    }

    #[test]
    fn the_stubs_archive_is_a_cpio_of_aligned_entries() {
        let archive = os_release_archive(b"ID=cofferdam\n");
        assert_eq!(archive.len() % 4, 0);
        let text = String::from_utf8_lossy(&archive);
        assert_eq!(text.matches("070701").count(), 3);
        assert!(text.starts_with("070701000000010000416d000000000000000000000001"));
        assert!(text.contains(".extra/os-release\0"));
        assert!(text.ends_with("0000000B00000000TRAILER!!!\0\0\0\0"));
    }

    #[test]
    fn a_section_that_readers_could_take_differently_is_refused() {
        let kernel = build(&[]);
        let sections: [(&str, &[u8]); 5] = [
            (".sdmagic", MAGIC),
            (".linux", &kernel),
            (".cmdline", b"a"),
            (".initrd", b"i"),
            (".cmdline", b"b"),
        ];
        let refused = |uki: &[u8]| matches!(image_reference(uki, None), Err(MeasureError::Unpredicted(name)) if name == ".cmdline");
        assert!(refused(&build(&sections)), "twice");
        let mut longer = build(&sections[..4]);
        let name = longer.windows(9).position(|bytes| bytes == b".cmdline\x01").unwrap();
        // VirtualSize behind SizeOfRawData, 0x200.
        longer[name + 8..name + 12].copy_from_slice(&0x201_u32.to_le_bytes());
        assert!(refused(&longer), "longer in memory");
    }

    #[test]
    fn what_is_no_uki_is_an_error() {
        assert!(matches!(image_reference(b"", None), Err(MeasureError::Uki(_))));
        let no_kernel = build(&[(".sdmagic", MAGIC), (".linux", b"not a PE")]);
        assert!(matches!(image_reference(&no_kernel, None), Err(MeasureError::Kernel(_))));
        let kernel = build(&[]);
        let stub = (".sdmagic", MAGIC);
        assert!(matches!(image_reference(&kernel, None), Err(MeasureError::Stub(StubError::None))));
        let bare = build(&[stub, (".linux", &kernel)]);
        assert!(matches!(image_reference(&bare, None), Err(MeasureError::Missing(".cmdline"))));
        let splash =
            build(&[stub, (".linux", &kernel), (".cmdline", b"a"), (".initrd", b"i"), (".splash", b"s")]);
        assert!(
            matches!(image_reference(&splash, None), Err(MeasureError::Unpredicted(name)) if name == ".splash")
        );
        let binary = build(&[stub, (".linux", &kernel), (".cmdline", b"\xff"), (".initrd", b"i")]);
        assert!(matches!(image_reference(&binary, None), Err(MeasureError::CommandLine)));
    }

    #[test]
    fn known_differences_have_digests_of_their_own() {
        let reference = image_reference(&uki(b"a\0", b"initrd"), None).unwrap();
        let of = |reason| reference.alternatives.iter().filter(move |found| found.reason == reason);
        // With and without an initrd; both differ from the predicted kernel and from each other.
        let patched: Vec<Register> = of(Reason::QemuHeaderPatching).map(|found| found.digest).collect();
        let events = &reference.boots.first().unwrap().events;
        let predicted = |cause: Cause| events.iter().find(|event| event.cause == cause).unwrap().digest;
        assert_eq!(patched.len(), 2);
        assert_ne!(patched[0], patched[1]);
        assert!(!patched.contains(&predicted(Cause::Kernel)));
        let bare: Vec<Register> = of(Reason::SectionRemoved).map(|found| found.digest).collect();
        assert_eq!(bare, [Register::from(Sha384::digest(b"initrd"))]);
        assert_ne!(bare[0], predicted(Cause::Initrd));
    }
}
