//! The declaration disk: how the host hands over a declaration.
//!
//! Exactly one disk ([`attached`]). Its bytes: one line
//! `cofferdam-declaration/v1 <commit, 40 hex digits> <length, decimal>`, on it perhaps a space and the address that the host sets
//! ([`Ipv4Settings`]), which the event `machine` measures; then exactly that many bytes of declaration, then zeros up to a multiple of 512, and nothing else. A cloud decides itself how large an
//! NVMe disk is: there zeros go on to the end of what is read, which is as much as the longest declaration needs. There is no file system: the
//! host's bytes meet no parser but this one before they are measured.
//!
//! The disk is read once. A host that changes it afterwards changes nothing.

use std::fs::File;
use std::io;

use cofferdam_protocol::network::{Ipv4Settings, MAX_TEXT};
use cofferdam_protocol::{Commit, WordError, read};

use super::attached::{self, AttachedError, Bus, Purpose};

/// First word of the header.
pub(super) const MAGIC: &str = "cofferdam-declaration/v1";
/// The longest declaration in bytes.
const MAX_LENGTH: usize = 1 << 20;
/// Magic, commit, length of seven digits, address, three spaces and the line's end.
const MAX_HEADER: usize = 24 + 1 + 40 + 1 + 7 + 1 + MAX_TEXT + 1;
const SECTOR: usize = 512;
/// The longest disk in bytes.
const MAX_DISK: usize = MAX_HEADER + MAX_LENGTH + SECTOR;
/// What is read of a disk: a sector more than the longest has, so that a longer one is seen.
const MAX_READ: u64 = ((MAX_DISK / SECTOR + 1) * SECTOR) as u64;

/// Why there is no declaration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// Which disk it is.
    #[error(transparent)]
    Attached(#[from] AttachedError),
    /// The disk cannot be read.
    #[error("cannot read the declaration disk")]
    Read(#[source] io::Error),
    /// Its first line is not as it must be.
    #[error("the declaration disk does not begin with a line \"{MAGIC} COMMIT LENGTH\"")]
    Header,
    /// The address on it is not one.
    #[error("the address on the declaration disk is wrong")]
    Network(#[from] WordError),
    /// The length is zero or above 1 MiB.
    #[error("the declaration's length is not between 1 and {MAX_LENGTH} bytes")]
    Length,
    /// The disk is shorter or longer than the header says, or not filled up with zeros.
    #[error("the declaration disk is not {0} bytes followed by zeros up to a multiple of {SECTOR}")]
    Padding(usize),
    /// A virtio disk that no declaration needs.
    #[error("the declaration disk has more than {MAX_DISK} bytes")]
    Long,
}

/// A declaration as the host handed it over: not parsed, and not to be before it is measured.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Delivered {
    /// The commit that it claims to come from.
    pub(crate) commit: Commit,
    /// Its exact bytes.
    pub(crate) bytes: Vec<u8>,
    /// The address that the host has set, if it has.
    pub(crate) network: Option<Ipv4Settings>,
}

/// Finds the disk, reads it once and takes the declaration out of it.
///
/// # Errors
///
/// [`DiskError`].
pub(crate) fn declaration() -> Result<Delivered, DiskError> {
    let disk = attached::find(Purpose::Declaration)?;
    let device = File::open(disk.device).map_err(DiskError::Read)?;
    let bytes = read::beginning(device, MAX_READ).map_err(DiskError::Read)?;
    take_apart(&bytes, disk.bus)
}

fn take_apart(disk: &[u8], bus: Bus) -> Result<Delivered, DiskError> {
    if bus == Bus::Virtio && disk.len() > MAX_DISK {
        return Err(DiskError::Long);
    }
    let end = disk.iter().take(MAX_HEADER).position(|byte| *byte == b'\n').ok_or(DiskError::Header)?;
    let (header, rest) = disk.split_at_checked(end).ok_or(DiskError::Header)?;
    let body = rest.get(1..).ok_or(DiskError::Header)?;
    let (commit, length, network) = parse_header(header).ok_or(DiskError::Header)?;
    let network = network.map(str::parse).transpose()?;
    if !(1..=MAX_LENGTH).contains(&length) {
        return Err(DiskError::Length);
    }
    let (bytes, padding) = body.split_at_checked(length).ok_or(DiskError::Padding(length))?;
    let whole = disk.len().is_multiple_of(SECTOR) && (bus == Bus::Nvme || padding.len() < SECTOR);
    if !whole || padding.iter().any(|byte| *byte != 0) {
        return Err(DiskError::Padding(length));
    }
    Ok(Delivered { commit, bytes: bytes.to_vec(), network })
}

/// Three words with one space between them, and what is behind a third space.
fn parse_header(header: &[u8]) -> Option<(Commit, usize, Option<&str>)> {
    let header = std::str::from_utf8(header).ok()?;
    let mut words = header.splitn(4, ' ');
    let (magic, commit, length) = (words.next()?, words.next()?, words.next()?);
    // One way to write a number: digits, no leading zero.
    let decimal = length.bytes().all(|byte| byte.is_ascii_digit()) && !length.starts_with('0');
    if magic != MAGIC || !decimal {
        return None;
    }
    Some((commit.parse().ok()?, length.parse().ok()?, words.next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn take_apart(disk: &[u8]) -> Result<Delivered, DiskError> {
        super::take_apart(disk, Bus::Virtio)
    }

    fn disk(header: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        bytes
    }

    fn header(length: &str) -> String {
        format!("{MAGIC} {COMMIT} {length}\n")
    }

    #[test]
    fn a_disk_gives_back_the_exact_bytes() {
        let body = b"version: 1\n\0\0";
        let delivered = take_apart(&disk(&header("13"), body)).unwrap();
        assert_eq!(
            delivered,
            Delivered { commit: COMMIT.parse().unwrap(), bytes: body.to_vec(), network: None }
        );
        // A body that ends exactly at a sector's end has no padding.
        let exact = vec![b'x'; SECTOR * 2 - header("954").len()];
        assert_eq!(exact.len(), 954);
        assert_eq!(take_apart(&disk(&header("954"), &exact)).unwrap().bytes, exact);
        let longest = vec![b'y'; MAX_LENGTH];
        let bytes = disk(&header("1048576"), &longest);
        assert!(bytes.len() <= MAX_DISK);
        assert_eq!(take_apart(&bytes).unwrap().bytes.len(), MAX_LENGTH);
    }

    #[test]
    fn the_host_sets_an_address_in_one_way_or_not_at_all() {
        let with = |network: &str| take_apart(&disk(&format!("{MAGIC} {COMMIT} 4{network}\n"), b"abcd"));
        let text = "address=10.0.2.15/24 gateway=10.0.2.2 resolvers=10.0.2.3 mtu=1400";
        let delivered = with(&format!(" {text}")).unwrap();
        assert_eq!(delivered.network.unwrap().to_string(), text);
        for wrong in
            [" ", " 1", "  address=10.0.2.15/24", " address=10.0.2.15/24 x=1", " address=127.0.0.1/8"]
        {
            assert!(matches!(with(wrong), Err(DiskError::Network(_))), "{wrong:?}");
        }
        let longest = " address=110.120.130.140/24".to_owned() + &" ".repeat(MAX_TEXT);
        assert!(matches!(with(&longest), Err(DiskError::Header | DiskError::Network(_))));
    }

    #[test]
    fn every_other_header_is_refused() {
        let upper = COMMIT.to_uppercase();
        let wrong = [
            format!("cofferdam-declaration/v2 {COMMIT} 1\n"),
            format!("{MAGIC} {upper} 1\n"),
            format!("{MAGIC} {} 1\n", COMMIT.trim_start_matches('0')),
            format!("{MAGIC}  {COMMIT} 1\n"),
            format!("{MAGIC} {COMMIT} +1\n"),
            format!("{MAGIC} {COMMIT} 01\n"),
            format!("{MAGIC} {COMMIT} 0x1\n"),
            format!("{MAGIC} {COMMIT} \n"),
            format!("{MAGIC} {COMMIT} 1\r\n"),
            format!(" {MAGIC} {COMMIT} 1\n"),
            format!("{MAGIC} {COMMIT} 1"),
            String::new(),
        ];
        for header in wrong {
            let refused = take_apart(&disk(&header, b"x")).unwrap_err();
            assert!(matches!(refused, DiskError::Header), "{header:?}: {refused}");
        }
        assert!(matches!(take_apart(&disk(&header("99999999999999999999"), b"x")), Err(DiskError::Header)));
        assert!(matches!(take_apart(&disk(&header("1048577"), b"x")), Err(DiskError::Length)));
        // "0" begins with a zero.
        assert!(matches!(take_apart(&disk(&header("0"), b"")), Err(DiskError::Header)));
    }

    #[test]
    fn every_other_padding_is_refused() {
        let good = disk(&header("4"), b"abcd");
        let mut longer = good.clone();
        longer.extend([0; SECTOR]);
        let mut dirty = good.clone();
        *dirty.last_mut().unwrap() = 1;
        let shorter = good[..good.len() - 1].to_vec();
        let cut = disk(&header("600"), b"abcd");
        for wrong in [longer, dirty, shorter, cut] {
            assert!(matches!(take_apart(&wrong), Err(DiskError::Padding(_))), "{} bytes", wrong.len());
        }
    }

    #[test]
    fn a_disk_that_a_cloud_has_made_is_longer_and_empty_behind_the_declaration() {
        let longest = usize::try_from(MAX_READ).unwrap();
        let mut cloud = disk(&header("4"), b"abcd");
        cloud.resize(longest, 0);
        assert_eq!(super::take_apart(&cloud, Bus::Nvme).unwrap().bytes, b"abcd");
        assert!(matches!(take_apart(&cloud), Err(DiskError::Long)));
        *cloud.last_mut().unwrap() = 1;
        assert!(matches!(super::take_apart(&cloud, Bus::Nvme), Err(DiskError::Padding(4))));
        // The longest declaration is read whole.
        let mut full = disk(&header("1048576"), &vec![b'y'; MAX_LENGTH]);
        assert!(full.len() <= longest);
        full.resize(longest, 0);
        assert_eq!(super::take_apart(&full, Bus::Nvme).unwrap().bytes.len(), MAX_LENGTH);
    }

    proptest::proptest! {
        /// There is one way to write a disk: whatever is accepted is exactly what its parts give again.
        #[test]
        fn an_accepted_disk_is_the_only_one_for_its_declaration(
            body in proptest::collection::vec(proptest::num::u8::ANY, 1..2000),
            at in 0_usize..4096,
            byte in proptest::num::u8::ANY,
        ) {
            let mut bytes = disk(&header(&body.len().to_string()), &body);
            assert_eq!(take_apart(&bytes).unwrap().bytes, body);
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            if let Ok(Delivered { commit, bytes: again, network }) = take_apart(&bytes) {
                let network = network.map(|network| format!(" {network}")).unwrap_or_default();
                assert_eq!(disk(&format!("{MAGIC} {commit} {}{network}\n", again.len()), &again), bytes);
            }
        }
    }
}
