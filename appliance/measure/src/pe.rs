//! PE/COFF images as the firmware sees them: sections and the Authenticode digest.
//!
//! Responsible for reading PE32+ images (a UKI, the kernel inside it) within bounds and for hashing them the way
//! UEFI firmware does before it measures them. Never executes or relocates anything.
//!
//! Sources: Microsoft "PE Format"; Microsoft "Windows Authenticode Portable Executable Signature Format" (2008),
//! "Calculating the PE Image Hash".

use std::ops::Range;

use sha2::{Digest as _, Sha384};

use crate::bytes::{CutOff, add, offset_at, slice, u16_at};

/// `MZ`, then the offset of the PE signature at 0x3c.
const DOS_SIGNATURE: &[u8] = b"MZ";
const PE_OFFSET: usize = 0x3c;
const PE_SIGNATURE: &[u8] = b"PE\0\0";
/// Length of the COFF file header behind the signature.
const COFF_LENGTH: usize = 20;
/// Magic of the 64-bit optional header.
const PE32_PLUS: u16 = 0x20b;
/// Offsets within the optional header of PE32+.
const SIZE_OF_HEADERS: usize = 60;
const CHECKSUM: usize = 64;
const NUMBER_OF_DIRECTORIES: usize = 108;
const DIRECTORIES: usize = 112;
/// Index of the certificate table among the data directories, and the size of an entry.
const CERTIFICATE_TABLE: usize = 4;
const DIRECTORY_LENGTH: usize = 8;
/// Length of one section header.
const SECTION_LENGTH: usize = 40;
/// The loader of Windows takes 96 sections; a UKI has about ten.
const MOST_SECTIONS: usize = 96;

/// A section of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its name without padding, ASCII.
    pub name: String,
    /// Its bytes in the file.
    pub raw: Range<usize>,
    /// `VirtualAddress`: where it lies in memory, from the image's beginning.
    pub address: usize,
    /// `VirtualSize`: the bytes that count, which may be fewer than the raw ones (the rest is padding).
    pub virtual_size: usize,
}

/// A parsed image; borrows the file.
#[derive(Debug, Clone)]
pub struct Image<'a> {
    bytes: &'a [u8],
    checksum: usize,
    certificate_entry: Option<usize>,
    certificates: Range<usize>,
    headers: usize,
    sections: Vec<Section>,
}

impl<'a> Image<'a> {
    /// Parses a PE32+ image.
    ///
    /// # Errors
    /// [`PeError`] when the file is no PE32+ image, is cut off, or when two of its sections share bytes of the file.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PeError> {
        if bytes.get(..2) != Some(DOS_SIGNATURE) {
            return Err(PeError::NotPe("no MZ signature"));
        }
        let pe = offset_at(bytes, PE_OFFSET)?;
        if slice(bytes, pe, PE_SIGNATURE.len())? != PE_SIGNATURE {
            return Err(PeError::NotPe("no PE signature"));
        }
        let coff = add(pe, PE_SIGNATURE.len())?;
        let section_count = usize::from(u16_at(bytes, add(coff, 2)?)?);
        let optional_length = usize::from(u16_at(bytes, add(coff, 16)?)?);
        let optional = add(coff, COFF_LENGTH)?;
        slice(bytes, optional, optional_length)?;
        if optional_length < DIRECTORIES || u16_at(bytes, optional)? != PE32_PLUS {
            return Err(PeError::NotPe("no 64-bit optional header"));
        }
        if section_count > MOST_SECTIONS {
            return Err(PeError::TooManySections(section_count));
        }
        let headers = offset_at(bytes, add(optional, SIZE_OF_HEADERS)?)?;
        let checksum = add(optional, CHECKSUM)?;
        let directories = offset_at(bytes, add(optional, NUMBER_OF_DIRECTORIES)?)?;
        let certificate_entry = if directories > CERTIFICATE_TABLE {
            let entry = add(optional, DIRECTORIES + CERTIFICATE_TABLE * DIRECTORY_LENGTH)?;
            if add(entry, DIRECTORY_LENGTH)? > add(optional, optional_length)? {
                return Err(PeError::CutOff(entry));
            }
            Some(entry)
        } else {
            None
        };
        let certificates = match certificate_entry {
            Some(entry) => {
                let start = offset_at(bytes, entry)?;
                let length = offset_at(bytes, add(entry, 4)?)?;
                if length > 0 {
                    slice(bytes, start, length)?;
                }
                start..add(start, length)?
            }
            None => 0..0,
        };
        let table = add(optional, optional_length)?;
        let table_end = add(table, section_count * SECTION_LENGTH)?;
        if headers < table_end || headers > bytes.len() {
            return Err(PeError::Headers(headers));
        }
        let mut sections = Vec::with_capacity(section_count);
        for index in 0..section_count {
            sections.push(section(bytes, add(table, index * SECTION_LENGTH)?)?);
        }
        let image = Self { bytes, checksum, certificate_entry, certificates, headers, sections };
        image.refuse_overlaps()?;
        Ok(image)
    }

    /// The sections in the order of the section table.
    #[must_use]
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The bytes of the first section with this name that count: `min(VirtualSize, SizeOfRawData)` of them.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<&'a [u8]> {
        self.contents(self.sections.iter().find(|section| section.name == name)?)
    }

    /// The bytes of one of its sections that count.
    #[must_use]
    pub fn contents(&self, section: &Section) -> Option<&'a [u8]> {
        let length = section.virtual_size.min(section.raw.len());
        self.bytes.get(section.raw.clone())?.get(..length)
    }

    /// The bytes behind the last section, without the certificates, which are last.
    #[must_use]
    pub fn overlay(&self) -> &'a [u8] {
        let end =
            self.sections.iter().map(|section| section.raw.end).max().unwrap_or_default().max(self.headers);
        let certificates = self.bytes.len().saturating_sub(self.certificates.len());
        self.bytes.get(end..certificates).unwrap_or_default()
    }

    /// What the Authenticode digest leaves out: the checksum, and the certificate table.
    #[must_use]
    pub fn unhashed(&self) -> (&'a [u8], &'a [u8]) {
        let checksum = self.bytes.get(self.checksum..self.checksum.saturating_add(4)).unwrap_or_default();
        (checksum, self.bytes.get(self.certificates.clone()).unwrap_or_default())
    }

    /// The Authenticode digest over SHA-384: everything but the checksum, the certificate table's entry and the
    /// certificate table itself.
    ///
    /// # Errors
    /// [`PeError::CutOff`] when header fields point outside of the file or of the headers.
    pub fn authenticode_sha384(&self) -> Result<[u8; 48], PeError> {
        let mut hash = Sha384::new();
        let mut from = 0;
        let skips = [Some((self.checksum, 4)), self.certificate_entry.map(|entry| (entry, DIRECTORY_LENGTH))];
        for (at, length) in skips.into_iter().flatten() {
            hash.update(self.bytes.get(from..at).ok_or(PeError::CutOff(at))?);
            from = add(at, length)?;
        }
        hash.update(self.bytes.get(from..self.headers).ok_or(PeError::Headers(self.headers))?);
        let mut sorted: Vec<&Section> =
            self.sections.iter().filter(|section| !section.raw.is_empty()).collect();
        sorted.sort_by_key(|section| section.raw.start);
        let mut hashed = self.headers;
        for section in sorted {
            hash.update(self.bytes.get(section.raw.clone()).ok_or(PeError::CutOff(section.raw.start))?);
            hashed = add(hashed, section.raw.len())?;
        }
        // What lies behind the sections counts too, up to the certificates, which are last.
        let end = self
            .bytes
            .len()
            .checked_sub(self.certificates.len())
            .ok_or(PeError::CutOff(self.certificates.start))?;
        if end > hashed {
            hash.update(self.bytes.get(hashed..end).ok_or(PeError::CutOff(hashed))?);
        }
        Ok(hash.finalize().into())
    }

    /// Overlapping sections would be hashed twice by one reader and once by another.
    fn refuse_overlaps(&self) -> Result<(), PeError> {
        let mut sorted: Vec<&Section> =
            self.sections.iter().filter(|section| !section.raw.is_empty()).collect();
        sorted.sort_by_key(|section| section.raw.start);
        let mut end = self.headers;
        for section in sorted {
            if section.raw.start < end {
                return Err(PeError::Overlap(section.name.clone()));
            }
            end = section.raw.end;
        }
        Ok(())
    }
}

fn section(bytes: &[u8], header: usize) -> Result<Section, PeError> {
    let name = slice(bytes, header, 8)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    if !name.iter().all(u8::is_ascii_graphic) {
        return Err(PeError::NotPe("a section's name is not ASCII"));
    }
    let virtual_size = offset_at(bytes, add(header, 8)?)?;
    let length = offset_at(bytes, add(header, 16)?)?;
    let start = offset_at(bytes, add(header, 20)?)?;
    // A section without bytes in the file may point anywhere.
    let raw = if length == 0 { 0..0 } else { start..add(start, length)? };
    slice(bytes, raw.start, raw.len())?;
    let address = offset_at(bytes, add(header, 12)?)?;
    Ok(Section { name: String::from_utf8_lossy(name).into_owned(), raw, address, virtual_size })
}

impl From<CutOff> for PeError {
    fn from(CutOff(at): CutOff) -> Self {
        Self::CutOff(at)
    }
}

/// Why a file is not an image that can be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeError {
    /// A signature or a magic number is missing.
    #[error("not a PE32+ image: {0}")]
    NotPe(&'static str),
    /// A field points past the end of the file.
    #[error("the image is cut off, or a field points outside of it: offset {0}")]
    CutOff(usize),
    /// More sections than any image has.
    #[error("{0} sections are more than an image has")]
    TooManySections(usize),
    /// `SizeOfHeaders` does not cover the headers or exceeds the file.
    #[error("SizeOfHeaders {0} does not fit the image")]
    Headers(usize),
    /// Two sections share bytes of the file.
    #[error("section {0} overlaps another section or the headers")]
    Overlap(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::pe as build;

    #[test]
    fn sections_are_found_without_their_padding() {
        let file = build(&[(".linux", b"kernel"), (".cmdline", b"a=b")]);
        let image = Image::parse(&file).unwrap();
        assert_eq!(image.section(".linux"), Some(&b"kernel"[..]));
        assert_eq!(image.section(".cmdline"), Some(&b"a=b"[..]));
        assert_eq!(image.section(".none"), None);
    }

    #[test]
    fn the_digest_leaves_out_checksum_and_certificates_and_nothing_else() {
        let file = build(&[(".linux", b"kernel")]);
        let digest = |file: &[u8]| Image::parse(file).unwrap().authenticode_sha384().unwrap();
        let plain = digest(&file);
        let optional = 0x84 + COFF_LENGTH;
        let mut changed = file.clone();
        changed[optional + CHECKSUM] ^= 1;
        assert_eq!(digest(&changed), plain, "the checksum does not count");
        let mut signed = file.clone();
        let entry = optional + DIRECTORIES + CERTIFICATE_TABLE * DIRECTORY_LENGTH;
        signed[entry..entry + 4].copy_from_slice(&u32::try_from(file.len()).unwrap().to_le_bytes());
        signed[entry + 4..entry + 8].copy_from_slice(&8_u32.to_le_bytes());
        signed.extend_from_slice(&[9; 8]);
        assert_eq!(digest(&signed), plain, "certificates do not count");
        let mut appended = file.clone();
        appended.push(1);
        assert_ne!(digest(&appended), plain, "what is appended counts");
        for position in (0..file.len()).step_by(7) {
            let mut changed = file.clone();
            changed[position] ^= 0x10;
            if let Ok(image) = Image::parse(&changed)
                && let Ok(digest) = image.authenticode_sha384()
            {
                let skipped = (optional + CHECKSUM..optional + CHECKSUM + 4).contains(&position)
                    || (entry..entry + 8).contains(&position);
                assert!(skipped || digest != plain, "byte {position} does not count");
            }
        }
    }

    #[test]
    fn malformed_images_are_errors_at_every_cut() {
        let file = build(&[(".linux", b"kernel"), (".cmdline", b"a=b")]);
        for length in 0..file.len() {
            assert!(Image::parse(&file[..length]).is_err(), "cut at {length}");
        }
        let optional = 0x84 + COFF_LENGTH;
        let second = optional + 240 + SECTION_LENGTH;
        let mut overlapping = file.clone();
        let first_start = overlapping[second - SECTION_LENGTH + 20..second - SECTION_LENGTH + 24].to_vec();
        overlapping[second + 20..second + 24].copy_from_slice(&first_start);
        assert_eq!(Image::parse(&overlapping).err(), Some(PeError::Overlap(".cmdline".to_owned())));
        let mut huge = file.clone();
        huge[second + 16..second + 20].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(Image::parse(&huge), Err(PeError::CutOff(_))));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_damage_never_panics(position in 0_usize..0x600, value: u32) {
            let mut file = build(&[(".linux", b"kernel"), (".cmdline", b"a=b")]);
            let end = (position + 4).min(file.len());
            let bytes = value.to_le_bytes();
            file[position..end].copy_from_slice(&bytes[..end - position]);
            if let Ok(image) = Image::parse(&file) {
                let _ = image.authenticode_sha384();
            }
        }
    }
}
