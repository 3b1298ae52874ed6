//! What differs between two images, each difference as the cause that an explanation names.
//!
//! Responsible for comparing two files that somebody has: then what a digest alone cannot say is plain. It never says which of
//! them is genuine, and lists no more than [`MOST`] differences.

use std::collections::BTreeMap;

use cofferdam_attest::reference::Reason;

use crate::pe::{Image, PeError, Section};
use crate::stub::StubVersion;

/// Most differences; an image has about a dozen sections.
pub const MOST: usize = 16;
/// Sections of the boot stub itself.
const STUB: [&str; 8] = [".text", ".rodata", ".data", ".reloc", ".sdmagic", ".dynamic", ".dynsym", ".rela"];

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Which cause it is.
    pub reason: Reason,
    /// A sentence.
    pub sentence: String,
}

/// What `booted` has and `reference` has not, or otherwise.
///
/// # Errors
/// [`PeError`] when one of them is no image.
pub fn differences(reference: &[u8], booted: &[u8]) -> Result<Vec<Difference>, PeError> {
    let (ours, theirs) = (Image::parse(reference)?, Image::parse(booted)?);
    let mut found = Vec::new();
    let mut add = |reason, sentence: String| found.push(Difference { reason, sentence });
    let (own_sections, their_sections) = (by_name(&ours), by_name(&theirs));
    let versions = (StubVersion::of(&ours), StubVersion::of(&theirs));
    let another_stub = versions.0 != versions.1;
    if let ((Some(own), Some(their)), true) = (&versions, another_stub) {
        add(Reason::StubVersion, format!("Its boot stub is {their}, the reference's {own}."));
    }
    // Another stub has other sections of its own.
    let own_part = |name: &str| another_stub && STUB.contains(&name);
    let mut changed = Vec::new();
    for (key @ (name, number), section) in &their_sections {
        let shown = named(name, *number);
        match own_sections.get(key) {
            None if own_part(name) => {}
            None if *number > 0 => add(
                Reason::SectionAdded,
                format!(
                    "It has {shown} ({} bytes), which stubs pass over for the first.",
                    section.virtual_size
                ),
            ),
            None => {
                add(Reason::SectionAdded, format!("It has section {shown} ({} bytes).", section.virtual_size))
            }
            Some(own) if ours.contents(own) != theirs.contents(section) => {
                changed.push((*key, *own, *section))
            }
            Some(_) => {}
        }
    }
    let removed = own_sections.keys().filter(|key| !their_sections.contains_key(*key));
    for (name, number) in removed.filter(|(name, _)| !own_part(name)) {
        add(Reason::SectionRemoved, format!("It lacks section {}.", named(name, *number)));
    }
    for ((name, number), own, their) in &changed {
        let (one, other) =
            (ours.contents(own).unwrap_or_default(), theirs.contents(their).unwrap_or_default());
        let Some(reason) = reason(name, one, other, another_stub) else { continue };
        add(reason, format!("Section {} differs: {}.", named(name, *number), first_difference(one, other)));
    }
    if ours.overlay() != theirs.overlay() {
        let (own, their) = (ours.overlay().len(), theirs.overlay().len());
        add(Reason::Overlay, format!("Behind its last section are {their} bytes, in the reference {own}."));
    }
    if found.is_empty() {
        found.extend(places(&ours, &theirs, reference, booted));
    }
    found.truncate(MOST);
    Ok(found)
}

/// Every section by its name and how many of the same name are before it.
fn by_name<'i>(image: &'i Image<'_>) -> BTreeMap<(&'i str, usize), &'i Section> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut out = BTreeMap::new();
    for section in image.sections() {
        let count = counts.entry(&section.name).or_default();
        out.insert((section.name.as_str(), *count), section);
        *count = count.saturating_add(1);
    }
    out
}

fn named(name: &str, number: usize) -> String {
    if number == 0 { name.to_owned() } else { format!("{name} once more") }
}

/// The cause that other contents of a section are; `None` where they follow from another version of the stub.
fn reason(name: &str, one: &[u8], other: &[u8], another_stub: bool) -> Option<Reason> {
    Some(match name {
        ".cmdline" => Reason::CommandLine,
        ".initrd" => Reason::Initrd,
        ".linux" if same_digest(one, other) => Reason::Checksum,
        ".linux" => Reason::OtherKernel,
        _ if another_stub && (STUB.contains(&name) || name == ".sbat") => return None,
        _ if STUB.contains(&name) => Reason::StubCode,
        _ => Reason::OtherImage,
    })
}

/// Whether two kernels have one digest: then only what it leaves out differs.
fn same_digest(one: &[u8], other: &[u8]) -> bool {
    let digest = |file| Image::parse(file).and_then(|image| image.authenticode_sha384()).ok();
    digest(one).is_some_and(|own| digest(other) == Some(own))
}

/// The first byte that differs, and how many do.
fn first_difference(one: &[u8], other: &[u8]) -> String {
    if one.len() != other.len() {
        return format!("{} bytes where the reference has {}", other.len(), one.len());
    }
    let mut differing = one.iter().zip(other).enumerate().filter(|(_, (own, their))| own != their);
    let first = differing.next().map(|(at, _)| at).unwrap_or_default();
    format!("{} bytes, the first at offset {first:#x}", differing.count().saturating_add(1))
}

/// Differences of images whose sections are the same.
fn places(ours: &Image<'_>, theirs: &Image<'_>, reference: &[u8], booted: &[u8]) -> Option<Difference> {
    let place = |section: &Section| (section.name.clone(), section.address, section.raw.clone());
    let tables: [Vec<_>; 2] = [ours, theirs].map(|image| image.sections().iter().map(place).collect());
    if let [own, their] = &tables
        && own != their
    {
        let moved = their.iter().filter(|section| !own.contains(section)).map(|(name, ..)| name.as_str());
        let moved: Vec<&str> = moved.collect();
        let sentence = format!("Its sections have the same contents at other places: {}.", moved.join(", "));
        return Some(Difference { reason: Reason::ImageLayout, sentence });
    }
    if reference == booted {
        return None;
    }
    let same = same_digest(reference, booted);
    let (reason, sentence) = match (same, ours.unhashed() != theirs.unhashed()) {
        (true, true) => {
            (Reason::Checksum, "Its PE checksum or its certificates differ, which firmware does not measure.")
        }
        (true, false) => (Reason::Tampered, "Bytes differ that neither firmware nor stub measures."),
        (false, _) => (Reason::Tampered, "Its headers, or bytes between its sections, differ."),
    };
    Some(Difference { reason, sentence: sentence.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{MAGIC, OPTIONAL, kernel, pe as build, put};

    fn reasons(one: &[u8], other: &[u8]) -> Vec<Reason> {
        differences(one, other).unwrap().into_iter().map(|difference| difference.reason).collect()
    }

    fn sections<'a>(kernel: &'a [u8], more: &[(&'a str, &'a [u8])]) -> Vec<u8> {
        let own: [(&str, &[u8]); 5] = [
            (".text", b"code"),
            (".sdmagic", MAGIC),
            (".osrel", b"ID=x\n"),
            (".cmdline", b"quiet"),
            (".linux", kernel),
        ];
        build(&[&own[..], more].concat())
    }

    #[test]
    fn each_change_is_its_own_cause() {
        let linux = kernel(b"kernel code");
        let base = sections(&linux, &[]);
        assert_eq!(reasons(&base, &base), []);
        let mut changed = linux.clone();
        put(&mut changed, OPTIONAL + 64, &[1, 2, 3, 4]);
        assert_eq!(reasons(&base, &sections(&changed, &[])), [Reason::Checksum]);
        assert_eq!(reasons(&base, &sections(&kernel(b"another"), &[])), [Reason::OtherKernel]);
        assert_eq!(reasons(&base, &sections(&linux, &[(".ucode", b"u")])), [Reason::SectionAdded]);
        assert_eq!(reasons(&base, &sections(&linux, &[(".cmdline", b"x")])), [Reason::SectionAdded]);
        assert_eq!(reasons(&sections(&linux, &[(".uname", b"7")]), &base), [Reason::SectionRemoved]);
        let with = |edit: &dyn Fn(&mut Vec<u8>)| {
            let mut file = base.clone();
            edit(&mut file);
            reasons(&base, &file)
        };
        assert_eq!(with(&|file| file.push(7)), [Reason::Overlay]);
        assert_eq!(with(&|file| put(file, OPTIONAL + 64, &[9])), [Reason::Checksum]);
        assert_eq!(with(&|file| put(file, OPTIONAL + 4, &[9])), [Reason::Tampered]);
        assert_eq!(with(&|file| put(file, OPTIONAL + 240 + 12, &[9])), [Reason::ImageLayout]);
        let code = base.windows(4).position(|window| window == b"code").unwrap();
        assert_eq!(with(&|file| put(file, code, b"C")), [Reason::StubCode]);
        let version = base.windows(3).position(|window| window == b"257").unwrap();
        let found = with(&|file| {
            put(file, version, b"258");
            put(file, code, b"C");
        });
        assert_eq!(found, [Reason::StubVersion], "code and version of another stub follow from it");
        let older = b"#### LoaderInfo: systemd-stub 252 ####";
        let older = build(&[
            (".text", b"older"),
            (".dynsym", b"symbols"),
            (".sdmagic", older),
            (".osrel", b"ID=x\n"),
            (".cmdline", b"quiet"),
            (".linux", &linux),
        ]);
        assert_eq!(reasons(&base, &older), [Reason::StubVersion], "and so do sections of its own");
        assert!(differences(b"", &base).is_err());
    }
}
