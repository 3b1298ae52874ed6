//! What a service may use, and the texts that say it: sizes, processors, counts, resource limits, capabilities.
//!
//! The bounds here are those of the appliance: whatever a declaration asks for within them is granted, and what
//! lies outside is an error of the declaration and never a surprise at the start of a service.

use std::collections::BTreeSet;
use std::str::FromStr;

use cofferdam_protocol::{WordError, parse_decimal, shorten};
use serde::{Deserialize, Serialize};

/// The least memory that a service can live in, in bytes: its shim takes some 8 MiB, and its image lies in memory too.
pub const LEAST_MEMORY: u64 = 32 << 20;
/// More than any machine of this decade has, in bytes; it keeps every sum over 64 services far from the end of 64 bits.
const MOST_MEMORY: u64 = 64 << 40;
/// `/dev/shm` of a service that does not say, in bytes: Docker's.
pub const DEFAULT_SHM_SIZE: u64 = 64 << 20;
/// Processes and threads of a service that does not say: a database with one for each connection fits.
pub const DEFAULT_PIDS: u32 = 4096;
/// The most that can be declared: 32 times this stays below what the kernel can number (4,194,304).
pub const MAX_PIDS: u32 = 32_768;
/// Thousandths of a processor: below this the kernel's period of 100 ms leaves less than its least slice of 1 ms.
const LEAST_CPUS: u32 = 10;
/// Thousandths of a processor: more than a machine has.
const MOST_CPUS: u32 = 4_096_000;
/// Open files of one process: the kernel's own bound (`fs.nr_open`).
pub const MAX_NOFILE: u64 = 1 << 20;

/// What a service may use together with its shim and its image. `None` leaves it to the appliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes, at least [`LEAST_MEMORY`]. Without it a service gets an equal share of what the others leave.
    pub memory: Option<u64>,
    /// Processor time in thousandths of one processor. Without it, what the others leave.
    pub cpus: Option<u32>,
    /// Processes and threads of the workload, at most [`MAX_PIDS`]. [`DEFAULT_PIDS`] without it.
    pub pids: Option<u32>,
}

impl Limits {
    /// Processes and threads of the workload.
    pub fn processes(&self) -> u32 {
        self.pids.unwrap_or(DEFAULT_PIDS)
    }
}

/// Resource limits of each process of a workload (`getrlimit(2)`). `None` keeps the appliance's. Core files there are never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ulimits {
    /// Open files, at most [`MAX_NOFILE`].
    pub nofile: Option<Ulimit>,
    /// Processes and threads of the user that the workload runs as, at most [`MAX_PIDS`].
    pub nproc: Option<Ulimit>,
    /// Bytes that stay in memory; [`Ulimit::UNLIMITED`] for all that the service has.
    pub memlock: Option<Ulimit>,
}

/// A soft limit and the hard limit up to which a process may raise it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// What holds at first; at most `hard`.
    pub soft: u64,
    /// What holds at most.
    pub hard: u64,
}

impl Ulimit {
    /// The kernel's RLIM_INFINITY.
    pub const UNLIMITED: u64 = u64::MAX;
}

/// A capability that a service can have inside its own user namespace (`capabilities(7)`): those that the entrypoints of
/// public images need to give files to their user and to become that user. None of them reaches beyond the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Capability {
    /// Change the owner of any file of its own.
    Chown,
    /// Read and write any file of its own.
    DacOverride,
    /// Act as the owner of any file of its own.
    Fowner,
    /// Keep set-id bits when a file changes.
    Fsetid,
    /// Signal any process of its own.
    Kill,
    /// Become any group of its own.
    Setgid,
    /// Become any user of its own.
    Setuid,
    /// Give up capabilities for what it starts.
    Setpcap,
    /// Listen below port 1024 in its own network.
    NetBindService,
}

impl Capability {
    /// All of them, which a service has unless it says otherwise.
    pub const ALL: [Self; 9] = [
        Self::Chown,
        Self::DacOverride,
        Self::Fowner,
        Self::Fsetid,
        Self::Kill,
        Self::Setgid,
        Self::Setuid,
        Self::Setpcap,
        Self::NetBindService,
    ];

    /// As Compose and Docker write it, without `CAP_`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chown => "CHOWN",
            Self::DacOverride => "DAC_OVERRIDE",
            Self::Fowner => "FOWNER",
            Self::Fsetid => "FSETID",
            Self::Kill => "KILL",
            Self::Setgid => "SETGID",
            Self::Setuid => "SETUID",
            Self::Setpcap => "SETPCAP",
            Self::NetBindService => "NET_BIND_SERVICE",
        }
    }
}

/// What stands in `cap_add` and `cap_drop`: some capabilities, or all that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CapabilityWord {
    All,
    One(Capability),
}

/// What is left of the default set: first `cap_drop` takes away, then `cap_add` gives, as with Docker.
pub(crate) fn remaining(add: &[Capability], drop: &[CapabilityWord]) -> BTreeSet<Capability> {
    let kept = |capability: &Capability| {
        !drop.contains(&CapabilityWord::All) && !drop.contains(&CapabilityWord::One(*capability))
    };
    Capability::ALL.into_iter().filter(kept).chain(add.iter().copied()).collect()
}

/// Why a service cannot have one of Linux' other capabilities, for those that people ask for.
const REFUSED: [(&str, &str); 12] = [
    ("SYS_ADMIN", "it steers a machine and not a service"),
    ("SYS_PTRACE", "a process that reads another's memory reads its secrets"),
    ("NET_ADMIN", "a service's network is made by the appliance"),
    ("NET_RAW", "a service sends no packets of its own making"),
    ("SYS_MODULE", "the kernel is part of the image and loads nothing"),
    ("SYS_RAWIO", "a workload never sees a device"),
    ("MKNOD", "a workload never sees a device"),
    ("SYS_TIME", "the clock is the whole machine's"),
    ("SYS_NICE", "processor time is shared out by `cpus`"),
    ("SYS_RESOURCE", "limits are declared under `ulimits`"),
    ("SYS_CHROOT", "the container is the only root that a service has"),
    ("IPC_LOCK", "how much may be locked is declared under `ulimits`: memlock"),
];

impl FromStr for CapabilityWord {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let lower = text.bytes().all(|byte| !byte.is_ascii_uppercase());
        let upper = if lower { text.to_ascii_uppercase() } else { text.to_owned() };
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if upper == "ALL" {
            return Ok(Self::All);
        }
        if let Some(found) = Capability::ALL.into_iter().find(|capability| capability.name() == bare) {
            return Ok(Self::One(found));
        }
        let why = REFUSED.iter().find(|(name, _)| *name == bare).map(|(_, why)| *why);
        let why = why.unwrap_or("it is not one of those that stay inside a service");
        Err(WordError::new(format!("no service has the capability {}: {why}", shorten(bare, 32))))
    }
}

/// The names that there are, for a hint.
pub(crate) fn capability_names() -> String {
    Capability::ALL.map(Capability::name).join(", ")
}

/// Reads a size as Docker does: bytes, or a number and `b`, `k`, `m`, `g`, `t` for powers of 1024, with or
/// without a fraction and with or without a `b` or `ib` at the end.
pub(crate) fn parse_size(text: &str) -> Result<u64, WordError> {
    let wrong = |why: &str| {
        WordError::new(format!("not a size: {why}")).hint("for example 512m, 1.5g or 65536 (bytes)")
    };
    let digits = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = text.split_at_checked(digits).ok_or_else(|| wrong("it does not read"))?;
    let unit = unit.to_ascii_lowercase();
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong("its unit is none of b, k, m, g, t")),
    };
    let parts = decimal(number).ok_or_else(|| wrong("it does not begin with a number such as 512 or 1.5"))?;
    if shift == 0 && parts.thousandths != 0 {
        return Err(wrong("there is no part of a byte"));
    }
    let unit = 1_u64 << shift;
    let bytes = parts
        .whole
        .checked_mul(unit)
        .and_then(|whole| whole.checked_add(u64::from(parts.thousandths) * unit / 1000));
    bytes.filter(|bytes| *bytes <= MOST_MEMORY).ok_or_else(|| wrong("it is larger than any machine"))
}

/// Reads a number of processors, such as `2` or `0.5`, as thousandths of one.
pub(crate) fn parse_cpus(text: &str) -> Result<u32, WordError> {
    let wrong = |why: &str| WordError::new(why).hint("for example \"0.5\" for half of one processor, or 2");
    let parts = decimal(text).ok_or_else(|| wrong("not a number of processors"))?;
    let whole = u32::try_from(parts.whole).ok().and_then(|whole| whole.checked_mul(1000));
    let total = whole.and_then(|whole| whole.checked_add(parts.thousandths));
    match total {
        Some(total) if total > MOST_CPUS => Err(wrong("more processors than any machine has")),
        Some(total) if total >= LEAST_CPUS => Ok(total),
        Some(_) => Err(wrong("less than a hundredth of a processor, which no service can live on")),
        None => Err(wrong("more processors than any machine has")),
    }
}

/// Reads a number of processes and threads.
pub(crate) fn parse_pids(text: &str) -> Result<u32, WordError> {
    let hint = format!("1 to {MAX_PIDS}; without it {DEFAULT_PIDS}");
    match text {
        "-1" | "0" => {
            Err(WordError::new("a service without a limit could take every process of the machine")
                .hint(hint))
        }
        _ => parse_decimal(text)
            .filter(|pids| (1..=MAX_PIDS).contains(pids))
            .ok_or_else(|| WordError::new("not a number of processes that a service can have").hint(hint)),
    }
}

/// A decimal number without sign, leading zero or separators.
pub(crate) fn parse_whole(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// A number with at most three digits after the point: what YAML, Compose and this crate read alike, exactly.
struct Decimal {
    whole: u64,
    thousandths: u32,
}

fn decimal(text: &str) -> Option<Decimal> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let whole = parse_whole(whole)?;
    if fraction.is_empty() || fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let scale = 10_u32.checked_pow(3_u32.checked_sub(u32::try_from(fraction.len()).ok()?)?)?;
    Some(Decimal { whole, thousandths: fraction.parse::<u32>().ok()?.checked_mul(scale)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_docker_reads_them() {
        for (text, bytes) in [
            ("512m", 512 << 20),
            ("512M", 512 << 20),
            ("512mb", 512 << 20),
            ("512MiB", 512 << 20),
            ("1.5g", 3 << 29),
            ("0.5k", 512),
            ("65536", 65_536),
            ("65536b", 65_536),
            ("0", 0),
            ("1t", 1 << 40),
            ("6442450944", 6 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "m",
            "-1",
            "1.5",
            "1.2345g",
            "1.g",
            ".5g",
            "01m",
            "1e9",
            "1 m",
            "5x",
            "65t",
            "99999999999999999999",
            "1..5g",
            "+1m",
            "1_000k",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn processors_read_in_thousandths() {
        for (text, thousandths) in
            [("1", 1000), ("0.5", 500), ("0.50", 500), ("1.125", 1125), ("0.01", 10), ("4096", 4_096_000)]
        {
            assert_eq!(parse_cpus(text), Ok(thousandths), "{text}");
        }
        for text in ["", "0", "0.001", "-1", "1.", ".5", "1.2345", "4097", "4294968", "1e3", "half", "01"] {
            assert!(parse_cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_number_of_processes_is_bounded_on_both_sides() {
        assert_eq!((parse_pids("1"), parse_pids("32768")), (Ok(1), Ok(32_768)));
        for text in ["0", "-1", "32769", "", "1.5", "many"] {
            assert!(parse_pids(text).is_err(), "{text}");
        }
        const { assert!(MAX_PIDS as u64 * crate::MAX_SERVICES as u64 <= 4_194_304) };
    }

    #[test]
    fn capabilities_are_dropped_first_and_then_added() {
        let one = CapabilityWord::One;
        let all: BTreeSet<Capability> = Capability::ALL.into();
        assert_eq!(remaining(&[], &[]), all);
        assert!(remaining(&[], &[CapabilityWord::All]).is_empty());
        assert_eq!(remaining(&[Capability::Chown], &[CapabilityWord::All]), [Capability::Chown].into());
        assert_eq!(remaining(&[Capability::Kill], &[one(Capability::Kill)]), all);
        let without = remaining(&[], &[one(Capability::Setuid), one(Capability::Setgid)]);
        assert_eq!(without.len(), 7);
        assert!(!without.contains(&Capability::Setuid));
    }

    #[test]
    fn capabilities_read_with_and_without_their_prefix() {
        for text in ["NET_BIND_SERVICE", "CAP_NET_BIND_SERVICE", "net_bind_service", "cap_net_bind_service"] {
            assert_eq!(text.parse(), Ok(CapabilityWord::One(Capability::NetBindService)), "{text}");
        }
        assert_eq!("ALL".parse(), Ok(CapabilityWord::All));
        for (text, why) in [
            ("SYS_ADMIN", "steers a machine"),
            ("CAP_SYS_PTRACE", "reads its secrets"),
            ("NET_RAW", "packets"),
            ("CAP_ALL", "not one of those"),
            ("Chown", "not one of those"),
            ("", "not one of those"),
        ] {
            let error = text.parse::<CapabilityWord>().unwrap_err();
            assert!(error.message.contains(why), "{text}: {error}");
        }
        // Each refused name is refused, and the words of a capability are those that serde writes.
        for (name, _) in REFUSED {
            assert!(name.parse::<CapabilityWord>().is_err(), "{name}");
        }
        for capability in Capability::ALL {
            assert_eq!(serde_json::to_value(capability).unwrap(), capability.name());
        }
    }
}
