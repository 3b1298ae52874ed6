//! `coffer measure`: what an image and a firmware will make the registers say, from their bytes alone, and why a machine
//! says something else.

use std::fmt::Write as _;
use std::path::Path;

use cofferdam_attest::appraise;
use cofferdam_attest::dcap::Roots;
use cofferdam_attest::evidence::{self, Evidence};
use cofferdam_attest::policy::Policy;
use cofferdam_attest::quote;
use cofferdam_attest::reference::{
    BootPlatform, BootSource, Build, Cause, Half, ImageReference, MachineShape, Mrtd, PageOrder,
    PlatformReference, PredictedEvent, ReferenceValues,
};
use cofferdam_measure::MeasureError;
use cofferdam_measure::acpi::AcpiTables;
use cofferdam_measure::disk;
use cofferdam_measure::explain::{self, Candidate, Status};
use cofferdam_measure::firmware::{self, Prediction};
use serde_json::{Value, json};

use crate::cli::{Boot, Measure};
use crate::failure::{Failure, Outcome, chain};
use crate::trust::{self, unix_now};
use crate::ui::{Ui, printable};
use crate::{files, references};

/// Our UKI is 20 MiB at most; others' may be larger.
pub(super) const LARGEST_IMAGE: usize = 512 << 20;
/// A firmware is 2 to 16 MiB.
const LARGEST_FIRMWARE: usize = 64 << 20;
/// Stands for the machine's memory where what depends on it is left out afterwards.
const ANY_MEMORY_MIB: u64 = 4096;
/// The versions of a few hundred packages.
const LARGEST_BUILD: usize = 256 << 10;

pub(crate) async fn run(ui: &Ui, options: &Measure) -> Outcome {
    let _doing = crate::progress::doing("measuring");
    let uki = options.image.as_deref().map(|path| files::read(path, LARGEST_IMAGE)).transpose()?;
    let image = image(options, uki.as_deref())?;
    let (platform, open) = platform(ui, options)?.unzip();
    if let (Some(path), Some(image)) = (&options.save, &image) {
        save(path, &Half::Image(image.clone()))?;
    }
    if let Some(path) = &options.platform.save_platform {
        let platform = platform
            .as_ref()
            .ok_or_else(|| Failure::usage("--save-platform needs --firmware FD or --mrtd HEX"))?;
        save(path, &Half::Platform(platform.clone()))?;
    }
    let mut text = String::new();
    let mut object = json!({});
    if let Some(image) = &image {
        show_image(&mut text, image);
        insert(&mut object, "image", Half::Image(image.clone()));
    }
    if let Some(platform) = &platform {
        show_platform(&mut text, platform);
        insert(&mut object, "platform", Half::Platform(platform.clone()));
        // Why RTMR0 is not determined, where it is not.
        insert(&mut object, "open", open.unwrap_or_default());
    }
    let Some(path) = &options.explain else {
        ui.result(&text, object);
        return Ok(());
    };
    let (mut values, _) = references::load(&options.reference, &options.github).await?;
    let halves = image.map(Half::Image).into_iter().chain(platform.map(Half::Platform));
    for half in halves {
        values.add(half).map_err(|error| Failure::usage(chain(&error)))?;
    }
    let booted = booted(options, uki.as_deref())?;
    explain_evidence(ui, path, &values, booted.as_ref(), &trust::roots(options.root.as_deref())?)
}

/// Writes a half that every verifier will read again.
fn save(path: &Path, half: &Half) -> Outcome {
    let json = half.to_json().map_err(|error| Failure::failed(chain(&error)))?;
    Half::parse(&json)
        .map_err(|error| Failure::failed(format!("cannot save {}: {}", path.display(), chain(&error))))?;
    files::write(path, &json)
}

/// The image half for the ways of booting that were asked for.
fn image(options: &Measure, uki: Option<&[u8]>) -> Outcome<Option<ImageReference>> {
    let (Some(path), Some(uki)) = (&options.image, uki) else { return Ok(None) };
    let build = options.build.as_deref().map(read_build).transpose()?;
    let mut image = cofferdam_measure::image_reference(uki, build).map_err(|error| {
        let failure = Failure::failed(format!("{}: {}", path.display(), chain(&error)));
        match error {
            MeasureError::Stub(_) => {
                failure.hint("build the image with the systemd-boot-efi of Debian 13 (257); another version measures otherwise")
            }
            _ => failure,
        }
    })?;
    if let Some(path) = &options.disk {
        disk::start_from(&mut image, &files::read_beginning(path, disk::BEGINNING)?)
            .map_err(|error| Failure::failed(format!("{}: {}", path.display(), chain(&error))))?;
    }
    let wanted: Vec<(BootPlatform, BootSource)> = options.boot.iter().copied().map(way).collect();
    image.boots.retain(|boot| wanted.contains(&(boot.platform, boot.source)));
    Ok(Some(image))
}

pub(super) fn way(boot: Boot) -> (BootPlatform, BootSource) {
    match boot {
        Boot::Tdx => (BootPlatform::Tdx, BootSource::Disk),
        Boot::Simulator => (BootPlatform::Simulator, BootSource::Disk),
        Boot::TdxKernel => (BootPlatform::Tdx, BootSource::Hypervisor),
        Boot::SimulatorKernel => (BootPlatform::Simulator, BootSource::Hypervisor),
    }
}

/// The image that somebody thinks was started.
fn booted(options: &Measure, uki: Option<&[u8]>) -> Outcome<Option<Candidate>> {
    let (Some(path), Some(uki)) = (&options.booted, uki) else { return Ok(None) };
    let file = files::read(path, LARGEST_IMAGE)?;
    let candidate = Candidate::new(uki, &file)
        .map_err(|error| Failure::failed(format!("{}: {}", path.display(), chain(&error))))?;
    Ok(Some(candidate))
}

fn read_build(path: &Path) -> Outcome<Build> {
    serde_json::from_slice(&files::read(path, LARGEST_BUILD)?)
        .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}

/// The platform half: computed from a firmware, or with an MRTD that somebody states.
fn platform(ui: &Ui, options: &Measure) -> Outcome<Option<(PlatformReference, Vec<String>)>> {
    let given = &options.platform;
    if let Some(value) = given.mrtd {
        let simulated = options.boot.iter().any(|boot| way(*boot).0 == BootPlatform::Simulator);
        let name =
            given.name.clone().unwrap_or_else(|| if simulated { "simulator" } else { "stated" }.to_owned());
        let platform = PlatformReference {
            name,
            simulated,
            firmware: None,
            machine: None,
            mrtd: vec![Mrtd { order: PageOrder::Stated, value }],
            rtmr0: None,
            events: Vec::new(),
            alternatives: Vec::new(),
        };
        return Ok(Some((platform, Vec::new())));
    }
    let Some(path) = &given.firmware else { return Ok(None) };
    let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let bytes = files::read(path, LARGEST_FIRMWARE)?;
    let memory_mib = given.memory.unwrap_or(ANY_MEMORY_MIB);
    let shape =
        MachineShape { memory_mib, cpus: given.cpus, qemu: given.qemu.clone(), processor: given.processor };
    let tables = given.acpi.as_deref().map(read_tables).transpose()?;
    let name = given.name.as_ref().unwrap_or(&file);
    let Prediction { reference: mut platform, open } =
        firmware::predict(&bytes, name, &shape, tables.as_ref())
            .map_err(|error| Failure::failed(format!("{}: {}", path.display(), chain(&error))))?;
    let mut open: Vec<String> = open.iter().map(ToString::to_string).collect();
    if given.memory.is_none() {
        for_any_machine(&mut platform);
        open.push("the machine's --memory is not given, so neither is its memory map".to_owned());
    }
    for reason in &open {
        ui.note(&format!("RTMR0 is not determined: {reason}"));
    }
    if let Some(firmware) = &mut platform.firmware {
        firmware.file = file;
        if let Some(package) = &given.package {
            let (name, version) = package.split_once('=').ok_or_else(|| {
                Failure::usage("--package is NAME=VERSION, as the distribution writes them")
            })?;
            firmware.package = Some(name.to_owned());
            firmware.version = Some(version.to_owned());
        }
    }
    Ok(Some((platform, open)))
}

/// Leaves what firmware alone determines: MRTD, and of RTMR0 everything but the memory map.
fn for_any_machine(platform: &mut PlatformReference) {
    platform.machine = None;
    platform.rtmr0 = None;
    platform.events.retain(|event| event.cause != Cause::TdHob);
    platform.alternatives.retain(|known| known.of != Cause::TdHob);
}

/// The directory that `ci/acpi-tables` writes.
fn read_tables(directory: &Path) -> Outcome<AcpiTables> {
    AcpiTables::read(directory)
        .map_err(|error| Failure::usage(format!("{}: {}", directory.display(), chain(&error))))
}

/// Says how the registers of an evidence document differ from `values`: 0 when they do not, 3 when they do.
fn explain_evidence(
    ui: &Ui,
    path: &Path,
    values: &ReferenceValues,
    booted: Option<&Candidate>,
    roots: &Roots,
) -> Outcome {
    let document = files::read(path, evidence::MAX_BYTES)?;
    let refused =
        |error: &dyn std::error::Error| Failure::rejected(format!("{}: {}", path.display(), chain(error)));
    let evidence = Evidence::parse(&document).map_err(|error| refused(&error))?;
    let quote = quote::parse(&evidence.quote).map_err(|error| refused(&error))?;
    if values.images.is_empty() && values.platforms.is_empty() {
        return Err(Failure::usage("nothing to compare with")
            .hint("name an image, a --firmware or --reference values to explain the difference from"));
    }
    // What is certain depends on the quote's chain; whether a policy accepts the machine is for `coffer appraise` to say.
    let collateral = evidence.collateral.as_ref();
    let judged =
        appraise::appraise_quote(&evidence.quote, collateral, &Policy::default(), roots, unix_now()?);
    let simulated = judged.platform.is_some().then_some(judged.simulated);
    let explanation = explain::explain_booted(values, &quote, &evidence.event_log, simulated, booted);
    let same = explanation.registers.iter().all(|register| register.status != Status::Differs);
    ui.result(&explanation.to_string(), json!({ "same": same, "explanation": explanation }));
    if simulated.is_none() {
        ui.note("the quote is not verified: `coffer appraise` says why, --root names a further root");
    }
    if same {
        Ok(())
    } else {
        Err(Failure::rejected(format!("{} differs from the prediction", path.display())).rendered(""))
    }
}

fn show_image(text: &mut String, image: &ImageReference) {
    let _ = writeln!(text, "image {} {}", printable(&image.image.name), printable(&image.image.release));
    for (name, digest) in &image.image.digests {
        let _ = writeln!(text, "  {name:14} {digest}");
    }
    for boot in &image.boots {
        let (way, note) = match boot.platform {
            BootPlatform::Tdx => ("tdx", ""),
            BootPlatform::Simulator => ("simulator", "  (SIMULATED)"),
        };
        let source = match boot.source {
            BootSource::Disk => "",
            BootSource::Hypervisor => "-kernel",
        };
        let _ = writeln!(text, "booted by {way}{source}{note}");
        let _ = writeln!(text, "  RTMR1  {}\n  RTMR2  {}", hex::encode(boot.rtmr1), hex::encode(boot.rtmr2));
        show_events(text, &boot.events);
    }
}

fn show_platform(text: &mut String, platform: &PlatformReference) {
    let simulated = if platform.simulated { "  (SIMULATED)" } else { "" };
    let _ = writeln!(text, "platform {}{simulated}", printable(&platform.name));
    if let Some(firmware) = &platform.firmware {
        let _ = writeln!(text, "  firmware       {}", firmware.sha256);
    }
    if let Some(machine) = &platform.machine {
        let processor = machine.processor.map(|id| format!(" ({id})")).unwrap_or_default();
        let _ = writeln!(
            text,
            "  machine        {} MiB, {} processors{processor}",
            machine.memory_mib, machine.cpus
        );
    }
    for mrtd in &platform.mrtd {
        let _ = writeln!(text, "  MRTD   {}  {}", hex::encode(mrtd.value), mrtd.order.describe());
    }
    let rtmr0 = platform.rtmr0.as_ref().map_or_else(|| "not determined".to_owned(), hex::encode);
    let _ = writeln!(text, "  RTMR0  {rtmr0}");
    show_events(text, &platform.events);
}

fn show_events(text: &mut String, events: &[PredictedEvent]) {
    for event in events {
        let digest = hex::encode(event.digest);
        let cause = printable(&event.cause.to_string());
        let _ = writeln!(text, "    RTMR{}  {digest:.16}…  {:34}  {cause}", event.mr, event.event);
    }
}

fn insert(object: &mut Value, name: &str, value: impl serde::Serialize) {
    if let Value::Object(members) = object {
        members.insert(name.to_owned(), serde_json::to_value(value).unwrap_or_default());
    }
}
