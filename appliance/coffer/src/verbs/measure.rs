//! `coffer measure`: what an image will make the registers say, from its bytes alone.

use std::fmt::Write as _;
use std::path::Path;

use crate::cli::Platform;
use crate::failure::{Failure, Outcome, chain};
use crate::files;
use crate::ui::Ui;

/// Our UKI is 20 MiB at most; others' may be larger.
const LARGEST_IMAGE: usize = 512 << 20;

pub(crate) fn run(
    ui: &Ui,
    image: &Path,
    mrtd: Option<&str>,
    platform: Platform,
    save: Option<&Path>,
) -> Outcome {
    let platform = match platform {
        Platform::Tdx => cofferdam_measure::Platform::Tdx,
        Platform::Simulator => cofferdam_measure::Platform::Simulator,
    };
    let bytes = files::read(image, LARGEST_IMAGE)?;
    let mut reference = cofferdam_measure::reference_values(&bytes, platform)
        .map_err(|error| Failure::failed(format!("{}: {}", image.display(), chain(&error))))?;
    if let Some(text) = mrtd {
        let register = hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        reference.mrtd = Some(register.ok_or_else(|| Failure::usage("an MRTD is 96 hex digits"))?);
    }
    if let Some(path) = save {
        std::fs::write(path, reference.to_json())
            .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))?;
    }
    let mut text = String::new();
    let registers = [
        ("MRTD", &reference.mrtd),
        ("RTMR0", &reference.rtmr0),
        ("RTMR1", &reference.rtmr1),
        ("RTMR2", &reference.rtmr2),
    ];
    for (name, register) in registers {
        let shown = register.as_ref().map_or_else(|| "not determined by the image".to_owned(), hex::encode);
        let _ = writeln!(text, "{name}  {shown}");
    }
    for event in &reference.events {
        let digest = event.digest.map(hex::encode).unwrap_or_default();
        let _ = writeln!(text, "  RTMR{}  {digest:.16}…  {}", event.mr, event.event);
    }
    let object = serde_json::from_slice(&reference.to_json())
        .map_err(|error| Failure::failed(format!("cannot encode the reference values: {error}")))?;
    ui.result(&text, object);
    Ok(())
}
