//! What the firmware logs beside the digest of a program that it loads: where from, and how long the file is.
//!
//! Nothing of it is measured, so it is a hint and never a proof. Sources: TCG PC Client Platform Firmware Profile 1.06, section
//! 10.2.3 (`UEFI_IMAGE_LOAD_EVENT`); UEFI 2.11, section 10.3 (device paths). edk2 writes the length of the file's buffer into
//! the field for the length in memory (`SecurityPkg/Library/DxeTpm2MeasureBootLib`).

use cofferdam_attest::event_log::Event;

use super::label;
use crate::bytes::{add, slice, u16_at, u64_at};

/// The type of a program that is started as an application.
pub(super) const APPLICATION: &str = "EV_EFI_BOOT_SERVICES_APPLICATION";

/// Location, length, address when linked, length of the device path.
const HEADER: usize = 32;
/// Type, subtype and length of a node.
const NODE: usize = 4;
/// A file's path on a volume: media device path, subtype 4.
const FILE: [u8; 2] = [4, 4];
/// Most nodes; a path to a disk has about eight.
const MOST_NODES: usize = 32;
/// How the name of an addon ends (systemd-stub(7)).
const ADDON: &str = ".addon.efi";

/// The file's length in bytes.
pub(super) fn length(event: &Event) -> Option<u64> {
    u64_at(event.payload.as_deref()?, 8).ok()
}

/// The file's path on its volume, printable; `None` when it is not from a volume.
pub(super) fn path(event: &Event) -> Option<String> {
    if event.event != APPLICATION {
        return None;
    }
    let path = whole_path(event.payload.as_deref()?)?;
    Some(label::printable(&path))
}

/// The path of an addon of the boot stub. Its end counts, so it is looked at before it is cut for printing.
pub(super) fn addon(event: &Event) -> Option<String> {
    if event.event != APPLICATION {
        return None;
    }
    let path = whole_path(event.payload.as_deref()?)?;
    let name = path.rsplit('\\').next().unwrap_or_default().to_owned();
    name.to_ascii_lowercase().ends_with(ADDON).then(|| label::printable(&name))
}

fn whole_path(data: &[u8]) -> Option<String> {
    let length = usize::try_from(u64_at(data, 24).ok()?).ok()?;
    let nodes = slice(data, HEADER, length).ok()?;
    let mut at = 0;
    let mut path = String::new();
    for _ in 0..MOST_NODES {
        let Ok(kind) = slice(nodes, at, 2) else { break };
        let length = usize::from(u16_at(nodes, add(at, 2).ok()?).ok()?);
        let body = slice(nodes, add(at, NODE).ok()?, length.checked_sub(NODE)?).ok()?;
        if kind == FILE {
            let (units, _) = body.as_chunks::<2>();
            let units: Vec<u16> = units.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
            path.push_str(String::from_utf16_lossy(&units).trim_end_matches('\0'));
        }
        at = add(at, length).ok()?;
    }
    (!path.is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(data: &[u8]) -> Event {
        Event { mr: 1, event: APPLICATION.to_owned(), digest: Some([1; 48]), payload: Some(data.to_vec()) }
    }

    fn load(nodes: &[u8]) -> Vec<u8> {
        let mut data = vec![0; 32];
        data[8..16].copy_from_slice(&7_u64.to_le_bytes());
        data[24..32].copy_from_slice(&(nodes.len() as u64).to_le_bytes());
        data.extend_from_slice(nodes);
        data
    }

    fn file(name: &str) -> Vec<u8> {
        let wide: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        let length = u16::try_from(wide.len() + 4).unwrap().to_le_bytes();
        [&FILE[..], &length, &wide].concat()
    }

    #[test]
    fn paths_and_lengths_are_read() {
        let disk = [&[1, 1, 6, 0, 0, 0][..], &file("\\EFI\\BOOT\\X.EFI"), &[0x7f, 0xff, 4, 0]].concat();
        let found = event(&load(&disk));
        assert_eq!((length(&found), path(&found).as_deref()), (Some(7), Some("\\EFI\\BOOT\\X.EFI")));
        assert_eq!(addon(&found), None);
        let found = event(&load(&file("\\EFI\\BOOT\\X.EFI.extra.d\\debug.ADDON.efi")));
        assert_eq!(addon(&found).as_deref(), Some("debug.ADDON.efi"));
        // Long directories do not hide the name.
        let found = event(&load(&[file(&"\\d".repeat(200)), file("\\x.addon.efi")].concat()));
        assert_eq!(addon(&found).as_deref(), Some("x.addon.efi"));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_data_never_panics(data: Vec<u8>, position in 0_usize..64, value: u8) {
            let mut damaged = load(&file("\\x.addon.efi"));
            if let Some(byte) = damaged.get_mut(position) {
                *byte = value;
            }
            for data in [data, damaged] {
                let found = event(&data);
                let _ = (length(&found), path(&found), addon(&found));
            }
        }
    }
}
