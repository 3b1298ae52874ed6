//! How an explanation reads: rows, sentences, remedies, and the text for a terminal.
//!
//! Everything here is ASCII of at most [`COLUMNS`] columns without colours. Texts from evidence or from reference files
//! pass [`label::printable`] before they get here.

use std::fmt;

use cofferdam_attest::reference::Reason;
use cofferdam_protocol::hex;

use super::align::Pair;
use super::analysis::{Analysis, LogState};
use super::{Certainty, Explanation, MAX_ROWS, Mark, RegisterComparison, Row, Side, Status};
use super::{label, upper};

const COLUMNS: usize = 100;
/// Widths of a table's columns: type (the longest is that of a boot service's application), what, digest.
const TYPE: usize = 32;
const WHAT: usize = 33;
const DIGEST: usize = 12;
/// Equal rows that stay before and behind a differing one when there are too many.
const CONTEXT: usize = 2;

pub(super) fn certainty(certainty: Certainty) -> &'static str {
    match certainty {
        Certainty::Certain => "certain",
        Certainty::Likely => "likely",
    }
}

/// What to do about a reason.
pub(super) fn remedy(reason: Reason) -> &'static str {
    match reason {
        Reason::QemuHeaderPatching => {
            "boot the image from a disk (EFI/BOOT/BOOTX64.EFI) instead of its kernel with -kernel"
        }
        Reason::PageAddOrder => {
            "make the platform half with `coffer measure --firmware`, which writes MRTD for both orders, or \
             name this order's value with --mrtd"
        }
        Reason::LowMemory => {
            "give the machine the memory of the reference, or make a platform half for this size with --memory"
        }
        Reason::MemorySize => {
            "make a platform half for this size with --memory, or give the machine the reference's memory"
        }
        Reason::CpuCount => {
            "make a platform half for this many processors with --cpus, or start the machine with the reference's"
        }
        Reason::Machine => {
            "compare QEMU's version, machine type and devices with the reference's; make a platform half for them \
             with --qemu and --acpi. ACPI tables hold code that the kernel runs: do not accept them unseen"
        }
        Reason::StubVersion => {
            "build with the systemd-boot-efi version that the reference names under packages, or predict the \
             image's values anew with a coffer that knows this version"
        }
        Reason::CommandLine => {
            "compare the command lines (`ukify inspect`); boot the released image, or take reference values from \
             the build that was booted"
        }
        Reason::LoaderCommandLine => {
            "remove the options from the boot entry, the loader's configuration, QEMU's -append and SMBIOS strings"
        }
        Reason::Initrd => {
            "remove what lies beside the image on the EFI system partition (credentials, addons, extensions) and \
             QEMU's -initrd; else boot the image that was released, or take the values of the one that was booted"
        }
        Reason::FirmwareBuild => {
            "find out which firmware the host starts; make a platform half from that very file if it is to be trusted"
        }
        Reason::OtherImage | Reason::OtherKernel => {
            "boot the released image, or take the reference values of the build that was booted; `ci/reproduce` \
             shows whether a build makes the same bits"
        }
        Reason::SectionAdded
        | Reason::SectionRemoved
        | Reason::ImageLayout
        | Reason::Overlay
        | Reason::StubCode => {
            "boot the released image; if the change was meant, take the reference values of the image that was booted"
        }
        Reason::Checksum => {
            "boot the released image; a checksum or a signature that was added to its kernel changes what is measured"
        }
        Reason::Tampered => {
            "compare the file that the machine was started with: `coffer measure UKI --explain EVIDENCE --booted FILE` \
             says what differs, `ci/reproduce` whether a build makes the same bits"
        }
        Reason::Addon => {
            "remove what lies beside the image on the EFI system partition (IMAGE.extra.d) and in loader/addons"
        }
        Reason::EventMoved => {
            "look at what starts the image: a boot loader or another firmware measures in another order"
        }
        Reason::KernelBoot => {
            "start the image from a disk, or accept this way with reference values of `coffer measure --boot tdx-kernel` \
             (`simulator-kernel` for the simulated device)"
        }
        Reason::SecureBoot => "start the firmware with the variable store that the reference was made for",
        Reason::BootEntries => {
            "boot with a fresh variable store and the devices of the reference: the firmware makes entries for the \
             devices that it finds"
        }
        Reason::OtherEvent => {
            "look at the event: if it belongs to the way this host boots, make reference values for that way"
        }
        Reason::BootPlatform => {
            "take reference values of the other kind: the simulator's for the simulated device, those of a trust \
             domain for hardware"
        }
    }
}

/// The rows of a register: all when they are few, else those around differences. The second is how many are left out.
pub(super) fn rows(pairs: &[Pair<'_>]) -> (Vec<Row>, usize) {
    let near = |at: usize| {
        let from = at.saturating_sub(CONTEXT);
        let around = pairs.iter().skip(from).take(CONTEXT.saturating_mul(2).saturating_add(1));
        around.into_iter().any(|pair| !pair.same())
    };
    let all = pairs.len() <= MAX_ROWS;
    let rows: Vec<Row> = pairs
        .iter()
        .enumerate()
        .filter(|(at, _)| all || near(*at))
        .take(MAX_ROWS)
        .map(|(_, pair)| row(pair))
        .collect();
    let omitted = pairs.len().saturating_sub(rows.len());
    (rows, omitted)
}

fn row(pair: &Pair<'_>) -> Row {
    let mark = match (pair.measured, pair.predicted) {
        _ if pair.same() => Mark::Same,
        (Some(_), Some(_)) => Mark::Changed,
        (Some(_), None) => Mark::Extra,
        _ => Mark::Missing,
    };
    let measured = pair.measured.map(|(at, event)| Side {
        index: at.saturating_add(1),
        event: label::printable(&event.event),
        label: label::of(event),
        digest: short(&event.register_digest()),
    });
    let predicted = pair.predicted.map(|(at, event)| Side {
        index: at.saturating_add(1),
        event: label::printable(&event.event),
        label: Some(label::printable(&event.cause.to_string())),
        digest: short(&event.digest),
    });
    Row { mark, measured, predicted }
}

/// The first 12 hex digits.
fn short(digest: &[u8]) -> String {
    hex::encode(digest).chars().take(DIGEST).collect()
}

/// A difference in words.
pub(super) fn pair(pair: &Pair<'_>) -> String {
    let row = row(pair);
    match (&row.measured, &row.predicted) {
        (Some(measured), Some(predicted)) => format!(
            "event {} {} ({}) is {} where {} was predicted",
            measured.index,
            predicted.event,
            predicted.label.as_deref().unwrap_or_default(),
            measured.digest,
            predicted.digest
        ),
        (Some(measured), None) => {
            let label = measured.label.as_ref().map(|label| format!("\"{label}\""));
            format!("event {} {} was not predicted", measured.index, named(&measured.event, &label))
        }
        (None, Some(predicted)) => format!(
            "the predicted event {} {} is missing",
            predicted.index,
            named(&predicted.event, &predicted.label)
        ),
        (None, None) => String::new(),
    }
}

fn named(event: &str, label: &Option<String>) -> String {
    match label {
        Some(label) => format!("{event} ({label})"),
        None => event.to_owned(),
    }
}

/// The first divergence, or why none can be named.
pub(super) fn first_divergence(analysis: &Analysis<'_>) -> String {
    match analysis.pairs.iter().find(|pair| !pair.same()) {
        Some(first) => pair(first),
        None => no_event(analysis),
    }
}

/// Why no event can be named.
pub(super) fn no_event(analysis: &Analysis<'_>) -> String {
    match analysis.log {
        LogState::Absent => "the evidence carries no log of this register, so no event can be named",
        LogState::Contradicts => {
            "the log does not replay to the quote's register, so it is not believed and no event can be named"
        }
        LogState::NothingPredicted => "the reference holds no events to compare the log with",
        LogState::Replays => "the logs agree, the reference's value does not follow from its events",
    }
    .to_owned()
}

impl fmt::Display for Explanation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image = self.image.as_deref().unwrap_or("no image (no reference values)");
        let platform = self.platform.as_deref().unwrap_or("no platform (no reference values)");
        wrapped(out, "compared with ", &format!("{image}; {platform}"))?;
        for register in &self.registers {
            register_text(out, register)?;
        }
        if !self.causes.is_empty() {
            out.write_str("\nLIKELY CAUSES\n")?;
        }
        for (number, cause) in (1..).zip(&self.causes) {
            let registers = upper(&cause.registers).join(", ");
            let title = format!("{} ({}; {registers})", cause.reason, certainty(cause.certainty));
            wrapped(out, &format!("  {number}. "), &title)?;
            wrapped(out, "     why: ", &cause.sentence)?;
            wrapped(out, "     do:  ", &cause.remedy)?;
        }
        list(out, "NOT EXPLAINED by anything known", &self.unexplained)?;
        list(out, "NOTE", &self.notes)
    }
}

fn list(out: &mut fmt::Formatter<'_>, title: &str, lines: &[String]) -> fmt::Result {
    if !lines.is_empty() {
        write!(out, "\n{title}\n")?;
    }
    lines.iter().try_for_each(|line| wrapped(out, "  - ", line))
}

fn register_text(out: &mut fmt::Formatter<'_>, register: &RegisterComparison) -> fmt::Result {
    let name = register.name.to_ascii_uppercase();
    let cut = |value: &String| value.chars().take(32).collect::<String>();
    match register.status {
        Status::Equal => return writeln!(out, "\n{name} is as predicted"),
        Status::PartlyPredicted => {
            return writeln!(out, "\n{name}: the predicted events are there, the others are not determined");
        }
        Status::NoReference => return writeln!(out, "\n{name} has no reference value"),
        Status::Differs => {}
    }
    writeln!(out, "\n{name} differs")?;
    writeln!(out, "  measured   {}...", cut(&register.measured))?;
    for value in &register.expected {
        writeln!(out, "  reference  {}...", cut(value))?;
    }
    if !register.rows.is_empty() {
        let (event, what) = ("event", "what");
        writeln!(out, "     #  {event:TYPE$} {what:WHAT$} {:DIGEST$} measured", "reference")?;
    }
    let mut first = true;
    let mut last = None;
    for row in &register.rows {
        let position = row.measured.as_ref().or(row.predicted.as_ref()).map(|side| side.index);
        if let (Some(last), Some(position)) = (last, position)
            && position > last + 1
        {
            writeln!(out, "        ...")?;
        }
        row_text(out, row, row.mark != Mark::Same && std::mem::take(&mut first))?;
        last = position.or(last);
    }
    if register.omitted_rows > 0 {
        writeln!(out, "        ({} rows left out)", register.omitted_rows)?;
    }
    match &register.first_divergence {
        Some(words) if register.rows.is_empty() => wrapped(out, "  ", words),
        Some(words) => wrapped(out, "  first divergence: ", words),
        None => Ok(()),
    }
}

fn row_text(out: &mut fmt::Formatter<'_>, row: &Row, first: bool) -> fmt::Result {
    let mark = match (first, row.mark) {
        (true, _) => '>',
        (false, Mark::Same) => ' ',
        (false, Mark::Changed) => '!',
        (false, Mark::Extra) => '+',
        (false, Mark::Missing) => '-',
    };
    let side = row.predicted.as_ref().or(row.measured.as_ref());
    let index = row.measured.as_ref().map_or_else(|| "-".to_owned(), |side| side.index.to_string());
    let event: String = side.map(|side| side.event.chars().take(TYPE).collect()).unwrap_or_default();
    let what = side.and_then(|side| side.label.as_deref()).unwrap_or_default();
    let what: String = what.chars().take(WHAT).collect();
    let digest =
        |side: &Option<Side>| side.as_ref().map_or_else(|| "-".to_owned(), |side| side.digest.clone());
    let (wanted, found) = (digest(&row.predicted), digest(&row.measured));
    writeln!(out, "{mark} {index:>4}  {event:TYPE$} {what:WHAT$} {wanted:DIGEST$} {found}")
}

/// Words after a lead, broken between words; further lines are indented to the lead's length.
fn wrapped(out: &mut fmt::Formatter<'_>, lead: &str, words: &str) -> fmt::Result {
    let indent = lead.len().min(COLUMNS / 2);
    let mut line = lead.to_owned();
    let mut empty = true;
    for word in words.split(' ').filter(|word| !word.is_empty()) {
        let needed = line.len().saturating_add(word.len()).saturating_add(usize::from(!empty));
        if needed > COLUMNS && !empty {
            writeln!(out, "{line}")?;
            line = " ".repeat(indent);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    writeln!(out, "{line}")
}
