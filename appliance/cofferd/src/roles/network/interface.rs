//! The interface that is used: as sysfs describes it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// An interface as sysfs describes it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) mac: [u8; 6],
}

/// The Ethernet interface with the lowest index. Waits for one to appear.
pub(super) fn find(class: &Path, limit: Duration) -> anyhow::Result<Interface> {
    let deadline = Instant::now() + limit;
    loop {
        let mut found = ethernets(class).context("cannot list the network interfaces")?;
        found.sort_by_key(|interface| interface.index);
        match found.into_iter().next() {
            Some(interface) => return Ok(interface),
            None if Instant::now() < deadline => std::thread::sleep(LOOK_EVERY),
            None => anyhow::bail!("no network interface"),
        }
    }
}

fn ethernets(class: &Path) -> std::io::Result<Vec<Interface>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(class)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let read = |file: &str| fs::read_to_string(class.join(&name).join(file)).unwrap_or_default();
        // ARPHRD_ETHER (include/uapi/linux/if_arp.h); the loopback is 772.
        let (kind, index, mac) = (read("type"), read("ifindex"), read("address"));
        let (Ok(index), Some(mac)) = (index.trim().parse(), parse_mac(mac.trim())) else { continue };
        if kind.trim() == "1" {
            found.push(Interface { name, index, mac });
        }
    }
    Ok(found)
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|pair| u8::from_str_radix(pair, 16).ok()).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_ethernet_interface_is_chosen() {
        let root = tempfile::tempdir().unwrap();
        let add = |name: &str, kind: &str, index: &str, mac: &str| {
            let path = root.path().join(name);
            fs::create_dir(&path).unwrap();
            for (file, text) in [("type", kind), ("ifindex", index), ("address", mac)] {
                fs::write(path.join(file), format!("{text}\n")).unwrap();
            }
        };
        add("lo", "772", "1", "00:00:00:00:00:00");
        assert!(find(root.path(), Duration::ZERO).is_err());
        add("eth1", "1", "10", "52:54:00:00:00:02");
        add("eth0", "1", "9", "52:54:00:12:34:56");
        add("bad0", "1", "2", "52:54:00:12:34");
        let found = find(root.path(), Duration::ZERO).unwrap();
        assert_eq!(
            (found.name.as_str(), found.index, found.mac),
            ("eth0", 9, [0x52, 0x54, 0, 0x12, 0x34, 0x56])
        );
    }
}
