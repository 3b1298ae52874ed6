//! The power buttons: input devices that can send KEY_POWER.
//!
//! The host's request to end the machine arrives as an ACPI power button. Which devices have such
//! a key is read from sysfs; the events are fixed-size records (Documentation/input/input.rst).
//! A host that presses it could as well kill the machine: there is nothing to authenticate.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::O_NONBLOCK;

/// `struct input_event` on a 64-bit kernel: two words of time, type, code, value.
const EVENT_BYTES: usize = 24;
/// include/uapi/linux/input-event-codes.h.
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const PRESSED: i32 = 1;
/// A machine has one or two. A host that presents hundreds gets the first few listened to.
const MAX_BUTTONS: usize = 8;

/// The open devices.
#[derive(Debug)]
pub(crate) struct PowerButtons {
    devices: Vec<fs::File>,
}

impl PowerButtons {
    /// Before /dev is there.
    pub(crate) fn none() -> Self {
        Self { devices: Vec::new() }
    }

    /// Opens every input device below `class` (normally `/sys/class/input`) that has the key. One that
    /// cannot be opened is left out: a machine without a button still ends on SIGTERM.
    pub(crate) fn find(class: &Path, devices: &Path) -> Self {
        let entries = fs::read_dir(class).into_iter().flatten().flatten();
        let names =
            entries.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().starts_with("event"));
        let capable = names.filter(|name| {
            fs::read_to_string(class.join(name).join("device/capabilities/key"))
                .is_ok_and(|map| has_key(&map, KEY_POWER))
        });
        let open =
            |name| fs::OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(devices.join(name)).ok();
        Self { devices: capable.filter_map(open).take(MAX_BUTTONS).collect() }
    }

    /// What to poll.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.devices.iter().map(AsFd::as_fd)
    }

    /// Reads what has arrived. True when a button went down. A device that fails is dropped.
    pub(crate) fn pressed(&mut self) -> bool {
        let mut pressed = false;
        self.devices.retain_mut(|device| {
            let mut events = [0_u8; EVENT_BYTES * 16];
            match device.read(&mut events) {
                Ok(0) => false,
                Ok(length) => {
                    pressed |= events
                        .get(..length)
                        .is_some_and(|bytes| bytes.chunks_exact(EVENT_BYTES).any(is_press));
                    true
                }
                Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
            }
        });
        pressed
    }
}

/// Whether a sysfs key bitmap (64-bit words in hex, the most significant first) has bit `key`.
fn has_key(map: &str, key: u16) -> bool {
    let word = map.split_whitespace().rev().nth(usize::from(key / 64));
    word.and_then(|word| u64::from_str_radix(word, 16).ok()).is_some_and(|word| word >> (key % 64) & 1 == 1)
}

fn is_press(event: &[u8]) -> bool {
    let Some((kind, rest)) = event.get(16..).and_then(|tail| tail.split_first_chunk::<2>()) else {
        return false;
    };
    let Some((code, rest)) = rest.split_first_chunk::<2>() else { return false };
    let Some((value, _)) = rest.split_first_chunk::<4>() else { return false };
    u16::from_le_bytes(*kind) == EV_KEY
        && u16::from_le_bytes(*code) == KEY_POWER
        && i32::from_le_bytes(*value) == PRESSED
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut bytes = vec![0xAA; 16];
        bytes.extend(kind.to_le_bytes());
        bytes.extend(code.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        bytes
    }

    #[test]
    fn the_key_is_found_in_the_bitmap_of_a_power_button() {
        // As the kernel prints it for an ACPI power button, and for one with the key WAKEUP (143) too.
        assert!(has_key("10000000000000 0\n", KEY_POWER));
        assert!(has_key("8000 10000000000000 0\n", KEY_POWER));
        assert!(!has_key("0\n", KEY_POWER));
        assert!(!has_key("zz 0\n", KEY_POWER));
        assert!(!has_key("8000000000000 0", KEY_POWER));
    }

    #[test]
    fn only_a_press_of_the_power_key_counts() {
        assert!(is_press(&event(EV_KEY, KEY_POWER, 1)));
        assert!(!is_press(&event(EV_KEY, KEY_POWER, 0)));
        assert!(!is_press(&event(EV_KEY, 30, 1)));
        assert!(!is_press(&event(2, KEY_POWER, 1)));
        assert!(!is_press(&[0; 10]));
    }

    #[test]
    fn devices_without_the_key_are_not_opened_and_a_press_is_read() {
        let root = tempfile::tempdir().unwrap();
        let (class, devices) = (root.path().join("class"), root.path().join("dev"));
        fs::create_dir(&devices).unwrap();
        for (name, map) in [("event0", "10000000000000 0"), ("event1", "1 0"), ("mouse0", "10000000000000 0")]
        {
            fs::create_dir_all(class.join(name).join("device/capabilities")).unwrap();
            fs::write(class.join(name).join("device/capabilities/key"), map).unwrap();
            fs::write(devices.join(name), event(EV_KEY, KEY_POWER, 1)).unwrap();
        }
        let mut buttons = PowerButtons::find(&class, &devices);
        assert_eq!(buttons.descriptors().count(), 1);
        assert!(buttons.pressed());
        // The file has ended, as a device that went away: it is dropped, not polled for ever.
        assert!(!buttons.pressed());
        assert_eq!(buttons.descriptors().count(), 0);
    }
}
