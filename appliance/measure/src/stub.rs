//! Which boot stub an image was built with, and whether it is one whose measurements are known.
//!
//! Responsible for reading the version that systemd-stub carries in its section `.sdmagic` and for refusing every other one: what a
//! stub measures and hands to the kernel changes between versions, so a prediction for an unknown one would be a guess. It never
//! judges whether a stub is genuine: only its digest can. Sources: systemd `src/boot/stub.c` (`.sdmagic`, "LoaderInfo");
//! systemd-stub(7); the shim's SBAT.md (`.sbat`: component, generation, vendor, package, version, address).

use std::fmt;

use crate::pe::Image;

/// What stands around the version in `.sdmagic`.
const BEFORE: &str = "#### LoaderInfo: systemd-stub ";
const AFTER: &str = " ####";
/// Longest version that is read; Debian's are about 20 bytes.
const LONGEST: usize = 64;
/// Components of `.sbat` that name the stub: since 255, and before.
const COMPONENTS: [&str; 2] = ["systemd-stub", "systemd"];
/// Major versions whose measurements were compared with real boots. 252 measures neither `.uname` nor `.sbat`, it and 254 add no
/// `os-release` to the initrd, 262 starts the kernel without the firmware, which then measures nothing of it into RTMR1.
pub(crate) const KNOWN: [u32; 1] = [257];

/// A version of systemd-stub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StubVersion {
    /// `257` of `257.13-1~deb13u1`.
    pub major: u32,
    /// The whole text, printable ASCII.
    pub text: String,
}

impl StubVersion {
    /// The version that an image's stub carries; `None` when there is none that can be read.
    #[must_use]
    pub fn of(image: &Image<'_>) -> Option<Self> {
        let magic = std::str::from_utf8(image.section(".sdmagic")?).ok()?;
        let (_, rest) = magic.split_once(BEFORE)?;
        let (text, _) = rest.split_once(AFTER)?;
        if text.len() > LONGEST || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        Some(Self { major: major(text)?, text: text.to_owned() })
    }

    /// Whether its measurements are known.
    pub(crate) fn known(&self) -> bool {
        KNOWN.contains(&self.major)
    }
}

impl fmt::Display for StubVersion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "systemd-stub {}", self.text)
    }
}

/// Checks that the stub is a known one and that `.sbat` does not name another.
///
/// # Errors
/// [`StubError`] when what it measures is not known.
pub(crate) fn check(image: &Image<'_>) -> Result<StubVersion, StubError> {
    let version = StubVersion::of(image).ok_or(StubError::None)?;
    if !version.known() {
        return Err(StubError::Unknown(version));
    }
    let sbat =
        image.section(".sbat").and_then(|contents| std::str::from_utf8(contents).ok()).unwrap_or_default();
    for line in sbat.lines() {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let [component, _, _, _, other, ..] = fields.as_slice() else { continue };
        if COMPONENTS.contains(component) && major(other).is_some_and(|other| other != version.major) {
            return Err(StubError::Contradicts(version));
        }
    }
    Ok(version)
}

/// The leading number of a version.
fn major(text: &str) -> Option<u32> {
    text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Why what a stub measures is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StubError {
    /// No `.sdmagic` of systemd-stub.
    #[error("no systemd-stub: section .sdmagic is missing or names no version")]
    None,
    /// Another version than [`KNOWN`].
    #[error("{0} is no version that was compared with a real boot (257)")]
    Unknown(StubVersion),
    /// `.sbat` names another version.
    #[error("section .sbat names another version than {0}")]
    Contradicts(StubVersion),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::pe as build;

    fn checked(magic: &[u8], sbat: &[u8]) -> Result<StubVersion, StubError> {
        let file = build(&[(".sdmagic", magic), (".sbat", sbat)]);
        check(&Image::parse(&file).unwrap())
    }

    #[test]
    fn only_the_known_version_passes() {
        let good = checked(b"#### LoaderInfo: systemd-stub 257.13-1~deb13u1 ####\0", b"sbat,1\n").unwrap();
        assert_eq!((good.major, good.text.as_str()), (257, "257.13-1~deb13u1"));
        for other in ["252.39-1~deb12u2", "254.26-1~bpo12+1", "256", "258~rc1", "262.1-1", "25", "2570"] {
            let magic = format!("#### LoaderInfo: systemd-stub {other} ####");
            assert!(matches!(checked(magic.as_bytes(), b""), Err(StubError::Unknown(_))), "{other}");
        }
        for none in [
            &b""[..],
            b"#### LoaderInfo: systemd-boot 257 ####",
            b"#### LoaderInfo: systemd-stub  ####",
            b"#### LoaderInfo: systemd-stub x257 ####",
            b"#### LoaderInfo: systemd-stub 257",
            b"#### LoaderInfo: systemd-stub 257\x1b ####",
            b"\xff",
        ] {
            assert_eq!(checked(none, b""), Err(StubError::None), "{none:?}");
        }
    }

    #[test]
    fn an_sbat_of_another_version_is_a_contradiction() {
        let magic = b"#### LoaderInfo: systemd-stub 257.13 ####";
        let line = |component: &str, version: &str| {
            format!(
                "sbat,1,SBAT Version,sbat,1,x\n{component},1,The systemd Developers,systemd,{version},https://x\n"
            )
        };
        assert!(checked(magic, line("systemd-stub", "257").as_bytes()).is_ok());
        assert!(checked(magic, line("linux", "7.3.4").as_bytes()).is_ok());
        for component in COMPONENTS {
            let found = checked(magic, line(component, "262").as_bytes());
            assert!(matches!(found, Err(StubError::Contradicts(_))), "{component}");
        }
    }
}
