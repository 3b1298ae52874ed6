//! What a measured event says about itself, made safe to print.
//!
//! An event's data comes from the machine under appraisal. It is decoded within bounds, and whatever is not printable
//! ASCII becomes `?`; nothing of it decides on trust. A label is proved when the event's digest is the digest of the
//! bytes that it was read from, as with names of sections; else the log merely says so.
//!
//! Sources: UEFI 2.11, section 38.4 and TCG PC Client Platform Firmware Profile 1.06, section 10.4 (`UEFI_VARIABLE_DATA`,
//! `EV_EVENT_TAG`); systemd-stub(7) and Linux `drivers/firmware/efi/libstub` for who writes which description.

use cofferdam_attest::event_log::{Event, Register};
use cofferdam_attest::reference::Cause;
use sha2::{Digest as _, Sha384};

use super::loaded;

/// Longest text taken from evidence, in characters.
pub(super) const MAX_TEXT: usize = 60;
/// Most bytes of an event's data that are looked at.
const MAX_DATA: usize = 1024;

/// Every section that some version of systemd-stub measures (`unified_sections` up to version 259).
const SECTIONS: [&str; 15] = [
    ".profile", ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".dtbauto", ".hwids",
    ".uname", ".sbat", ".pcrsig", ".pcrpkey", ".efifw",
];

/// The tags under which Linux' EFI stub measures, with its descriptions (`drivers/firmware/efi/libstub/efistub.h`).
const LOAD_OPTIONS: (u32, &str) = (0x8f3b_22ed, "LOADED_IMAGE::LoadOptions");
const INITRD: (u32, &str) = (0x8f3b_22ec, "Linux initrd");

/// Text that came from outside, cut to [`MAX_TEXT`] characters, everything but printable ASCII replaced.
pub(super) fn printable(text: &str) -> String {
    let mut out: String =
        text.chars().take(MAX_TEXT).map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
    if text.chars().nth(MAX_TEXT).is_some() {
        out.push_str("...");
    }
    out
}

/// The digests of the sections' names as they are measured, with the terminating zero.
pub(super) fn section_names() -> Vec<(Register, &'static str)> {
    SECTIONS.iter().map(|name| (Sha384::digest([name.as_bytes(), &[0]].concat()).into(), *name)).collect()
}

/// The log's own word for an event, in quotes.
pub(super) fn quoted(event: &Event) -> Option<String> {
    of(event).map(|label| format!("\"{label}\""))
}

/// What the event's data calls it: the name of a variable, a text, the description of a tagged event.
pub(super) fn of(event: &Event) -> Option<String> {
    let data = event.payload.as_deref()?;
    let data = data.get(..data.len().min(MAX_DATA))?;
    let text = match event.event.as_str() {
        "EV_EFI_VARIABLE_DRIVER_CONFIG"
        | "EV_EFI_VARIABLE_BOOT"
        | "EV_EFI_VARIABLE_BOOT2"
        | "EV_EFI_VARIABLE_AUTHORITY" => variable_name(data),
        "EV_EVENT_TAG" => tagged(data),
        loaded::APPLICATION => return loaded::path(event),
        "EV_EFI_PLATFORM_FIRMWARE_BLOB2" | "EV_EFI_HANDOFF_TABLES2" => {
            let length = usize::from(*data.first()?);
            text(data.get(1..)?.get(..length)?)
        }
        _ => text(data),
    }?;
    let text = printable(&text);
    (!text.is_empty()).then_some(text)
}

/// The data as text, where the event's digest proves that this text was measured.
pub(super) fn proved_text(event: &Event) -> Option<String> {
    let data = event.payload.as_deref().filter(|data| data.len() <= MAX_DATA)?;
    let digest: Register = Sha384::digest(data).into();
    (digest == event.register_digest()).then(|| text(data)).flatten()
}

/// The digest of a text as boot stub and kernel measure it: UTF-16 with its end.
pub(super) fn text_digest(text: &str) -> Register {
    let wide: Vec<u8> = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    Sha384::digest(wide).into()
}

/// The variable or section that a predicted event is about: where both sides name one, they have to be equal.
pub(super) fn of_cause(cause: &Cause) -> Option<&str> {
    match cause {
        Cause::SecureBootVariable(name)
        | Cause::BootVariable(name)
        | Cause::SectionName(name)
        | Cause::SectionContents(name) => Some(name),
        Cause::CommandLine => Some(LOAD_OPTIONS.1),
        Cause::Initrd => Some(INITRD.1),
        _ => None,
    }
}

/// `UEFI_VARIABLE_DATA`: a GUID, the lengths of name (in characters) and contents, the name in UTF-16.
fn variable_name(data: &[u8]) -> Option<String> {
    let length = u64::from_le_bytes(data.get(16..24)?.try_into().ok()?);
    let length = usize::try_from(length).ok()?.checked_mul(2)?;
    text(data.get(32..)?.get(..length)?)
}

/// A tagged event: the tag, the length of its description, the description. Linux' own are known by their tags.
fn tagged(data: &[u8]) -> Option<String> {
    let tag = u32::from_le_bytes(data.get(..4)?.try_into().ok()?);
    let known = [LOAD_OPTIONS, INITRD].into_iter().find(|(number, _)| *number == tag);
    known.map(|(_, name)| name.to_owned()).or_else(|| text(data.get(8..)?))
}

/// UTF-16 when every second byte is zero, else UTF-8; without terminating zeros. `None` when it is no text.
fn text(data: &[u8]) -> Option<String> {
    let (pairs, rest) = data.as_chunks::<2>();
    let wide = rest.is_empty() && !pairs.is_empty() && pairs.iter().all(|[_, high]| *high == 0);
    let text: String = if wide {
        pairs.iter().map(|[low, _]| char::from(*low)).collect()
    } else {
        std::str::from_utf8(data).ok()?.to_owned()
    };
    let text = text.trim_end_matches('\0');
    let is_text = !text.is_empty() && text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t'));
    is_text.then(|| text.to_owned())
}
