//! Causes in the platform's half: MRTD (the firmware's initial contents) and RTMR0 (firmware settings, machine shape).

use cofferdam_attest::event_log::payload::Machine;
use cofferdam_attest::quote::Quote;
use cofferdam_attest::reference::{
    Cause, MachineShape, PageOrder, PlatformReference, Reason, ReferenceValues,
};
use cofferdam_protocol::hex;

use super::align::Pair;
use super::analysis::Analysis;
use super::events::other_events;
use super::findings::Findings;
use super::image::{is, known};
use super::{RegisterComparison, Status, label};

/// From this much memory on, QEMU's q35 machine puts only 2 GiB of it below 4 GiB; else up to this much (2.75 GiB).
const LOW_MEMORY_MIB: u64 = 2816;

/// Files of the hypervisor that decide what is booted, and from what; newer firmware measures them by themselves.
const BOOT_FILES: [&str; 3] = ["bootorder", "BootMenu", "etc/boot-menu-wait"];

pub(super) struct Rules<'a> {
    pub(super) reference: &'a ReferenceValues,
    pub(super) platform: Option<&'a PlatformReference>,
    pub(super) simulated: Option<bool>,
    pub(super) quote: &'a Quote,
    /// The machine as the appliance saw it, from RTMR3.
    pub(super) machine: Option<Machine>,
    pub(super) zero: Analysis<'a>,
}

impl Rules<'_> {
    /// Applies every rule and compares MRTD.
    pub(super) fn apply(&mut self, findings: &mut Findings) -> RegisterComparison {
        let mrtd = self.mrtd(findings);
        if self.zero.status() == Status::Differs {
            self.known_machine(findings);
            self.secure_boot(findings);
            self.alternatives(findings);
            self.memory(mrtd.status, findings);
            self.acpi(findings);
            self.boot_entries(findings);
            self.firmware(mrtd.status, findings);
            other_events(&mut self.zero, findings);
        }
        mrtd
    }

    fn mrtd(&self, findings: &mut Findings) -> RegisterComparison {
        let found = &self.quote.mrtd;
        let mut comparison = RegisterComparison {
            name: "mrtd",
            status: Status::NoReference,
            measured: hex::encode(found),
            expected: Vec::new(),
            first_divergence: None,
            rows: Vec::new(),
            omitted_rows: 0,
        };
        let Some(platform) = self.platform else {
            self.other_kind(findings);
            return comparison;
        };
        comparison.expected = platform.mrtd.iter().map(|mrtd| hex::encode(mrtd.value)).collect();
        if platform.order(found).is_some() {
            comparison.status = Status::Equal;
            return comparison;
        }
        comparison.status = Status::Differs;
        let words = "MRTD has no log: its value is not one of the reference's, what of the firmware differs cannot be told";
        comparison.first_divergence = Some(words.to_owned());
        self.unknown_mrtd(platform, findings);
        comparison
    }

    /// Platform halves were given, and all are for the other kind of machine.
    fn other_kind(&self, findings: &mut Findings) {
        let (Some(simulated), false) = (self.simulated, self.reference.platforms.is_empty()) else { return };
        let (proved, given) = if simulated {
            ("the simulated device", "hardware")
        } else {
            ("hardware", "the simulated device")
        };
        let sentence = format!(
            "The evidence's certificate chain is that of {proved}, and the only platform values given are for {given}."
        );
        findings.proved(findings.proof.chain, Reason::BootPlatform, &["mrtd", "rtmr0"], sentence);
    }

    /// MRTD is none of the compared half's: by value it may be known otherwise.
    fn unknown_mrtd(&self, platform: &PlatformReference, findings: &mut Findings) {
        let found = &self.quote.mrtd;
        for half in &self.reference.platforms {
            let listed = half.alternatives.iter().find(|alternative| alternative.digest == *found);
            if let Some(alternative) = listed {
                let name = label::printable(&half.name);
                let why = known(alternative.reason);
                let sentence = format!("MRTD is exactly what {name} lists for this case: {why}.");
                return findings.proved(findings.proof.chain, alternative.reason, &["mrtd"], sentence);
            }
            // A half of this kind of machine with this value would be the compared one.
            if half.order(found).is_some() {
                let name = label::printable(&half.name);
                let sentence = format!("MRTD is that of {name}, which is for another kind of machine.");
                return findings.proved(findings.proof.chain, Reason::BootPlatform, &["mrtd"], sentence);
            }
        }
        let has = |order| platform.mrtd.iter().any(|mrtd| mrtd.order == order);
        let both = has(PageOrder::SinglePass) && has(PageOrder::TwoPass);
        let volume = self.zero.pairs.iter().find(|pair| is(pair, &Cause::ConfigurationVolume));
        let firmware_differs = volume.is_some_and(|pair| !pair.same());
        let rest = match self.zero.status() {
            Status::Equal | Status::PartlyPredicted => "RTMR0 is as predicted",
            _ if volume.is_some() && !firmware_differs => {
                "the firmware's variable store in RTMR0 is as predicted"
            }
            _ if firmware_differs => "the firmware's variable store in RTMR0 differs as well",
            _ => "RTMR0 cannot say more",
        };
        if !both && !firmware_differs {
            let sentence = format!(
                "The reference knows MRTD for one page-add order only, and {rest}: the same firmware, added in \
                 another order, has another MRTD."
            );
            findings.likely(Reason::PageAddOrder, &["mrtd"], sentence);
        }
        let orders = if both { " in either page-add order" } else { "" };
        let sentence = format!("MRTD is that of no known firmware{orders}, and {rest}.");
        findings.likely(Reason::FirmwareBuild, &["mrtd"], sentence);
    }

    /// RTMR0 as a whole is another half's.
    fn known_machine(&mut self, findings: &mut Findings) {
        let found = self.zero.found;
        let mut halves = self.reference.platforms.iter();
        let Some(half) = halves.find(|half| half.rtmr0 == Some(found)) else { return };
        let name = label::printable(&half.name);
        let shape = half.machine.as_ref().map(describe).unwrap_or_default();
        let same_firmware = self.same_firmware(half);
        // RTMR0 holds nothing of the firmware's code, so another machine comes before another firmware.
        let reason = match (self.shape(), half.machine.as_ref()) {
            (Some(wanted), Some(other)) if wanted.memory_mib != other.memory_mib => {
                if low(wanted.memory_mib) == low(other.memory_mib) {
                    Reason::MemorySize
                } else {
                    Reason::LowMemory
                }
            }
            (Some(wanted), Some(other)) if wanted.cpus != other.cpus => Reason::CpuCount,
            _ if !same_firmware => Reason::FirmwareBuild,
            _ => Reason::Machine,
        };
        self.zero.take(|_| true);
        let which = if same_firmware { "the same firmware, but not this MRTD" } else { "another firmware" };
        let sentence = format!("RTMR0 is that of {name}{shape}: {which}.");
        findings.proved(findings.proof.firmware && same_firmware, reason, &["rtmr0"], sentence);
    }

    fn alternatives(&mut self, findings: &mut Findings) {
        let Some(platform) = self.platform else { return };
        for alternative in &platform.alternatives {
            let hit = self.zero.take(|pair| {
                is(pair, &alternative.of)
                    && pair.measured.is_some_and(|(_, event)| event.register_digest() == alternative.digest)
            });
            if hit {
                let of = label::printable(&alternative.of.to_string());
                let why = known(alternative.reason);
                let sentence = format!(
                    "What was measured for \"{of}\" is exactly what the reference lists for this case: {why}.{}",
                    self.saw()
                );
                findings.proved(findings.proof.firmware, alternative.reason, &["rtmr0"], sentence);
            }
        }
    }

    /// The TD HOB lists the machine's memory.
    fn memory(&mut self, mrtd: Status, findings: &mut Findings) {
        if !self.zero.open().any(|pair| is(pair, &Cause::TdHob) && pair.measured.is_some()) {
            return;
        }
        self.zero.take(|pair| is(pair, &Cause::TdHob));
        let seen = "The TD HOB, which lists the memory, differs (RTMR0)";
        if mrtd == Status::Differs {
            // The list also says where the firmware itself lies, so another firmware has another list.
            let sentence = format!("{seen}; it also lists the firmware's own memory, and MRTD differs.");
            findings.likely(Reason::FirmwareBuild, &["rtmr0"], sentence);
        }
        let (Some(shape), Some(machine)) = (self.shape().cloned(), self.machine.clone()) else {
            if mrtd != Status::Differs {
                let sentence = format!("{seen}, and nothing says how much memory the machine has.");
                findings.likely(Reason::MemorySize, &["rtmr0"], sentence);
            }
            return;
        };
        // Linux reports what is left after its own reservations and, in a TD, bounce buffers of at most 6 %.
        let most = machine.memory_mib.saturating_add(machine.memory_mib / 8).saturating_add(256);
        if (machine.memory_mib..=most).contains(&shape.memory_mib) {
            if mrtd != Status::Differs {
                let sentence = format!(
                    "{seen}, although the {} MiB usable that the appliance saw fit the reference's {} MiB: slightly \
                     another size, or another QEMU that lays it out in another way.",
                    machine.memory_mib, shape.memory_mib
                );
                findings.likely(Reason::MemorySize, &["rtmr0"], sentence);
            }
            return;
        }
        let sentence = format!(
            "{seen}; the appliance saw {} MiB usable, the reference is for {} MiB",
            machine.memory_mib, shape.memory_mib
        );
        let crossed =
            if low(shape.memory_mib) { machine.memory_mib >= LOW_MEMORY_MIB } else { most < LOW_MEMORY_MIB };
        if crossed {
            let sentence =
                format!("{sentence}: on the other side of 2.75 GiB memory is laid out in another way.");
            findings.likely(Reason::LowMemory, &["rtmr0"], sentence);
        } else {
            findings.likely(Reason::MemorySize, &["rtmr0"], format!("{sentence}."));
        }
    }

    /// The ACPI tables list processors and devices; the hypervisor writes them and its other files.
    fn acpi(&mut self, findings: &mut Findings) {
        let concerned = |pair: &Pair<'_>| match pair.predicted.map(|(_, event)| &event.cause) {
            Some(Cause::AcpiLoader | Cause::AcpiRsdp | Cause::AcpiTables) => true,
            Some(Cause::Firmware(name)) => is_file(name) && !BOOT_FILES.contains(&name.as_str()),
            _ => false,
        };
        let differing: Vec<String> = self
            .zero
            .open()
            .filter(|pair| concerned(pair))
            .filter_map(|pair| pair.predicted)
            .take(super::MAX_LISTED)
            .map(|(_, event)| label::printable(&event.cause.to_string()))
            .collect();
        if !self.zero.take(concerned) {
            return;
        }
        let what = format!("RTMR0 differs in: {}", differing.join(", "));
        let qemu = self.shape().and_then(|shape| shape.qemu.as_deref()).map(label::printable);
        let qemu = qemu.map(|version| format!(" (the reference is for QEMU {version})")).unwrap_or_default();
        match (self.shape(), &self.machine) {
            (Some(shape), Some(machine)) if shape.cpus != machine.cpus => {
                let sentence = format!(
                    "{what}; the appliance saw {} processors, the reference is for {}.",
                    machine.cpus, shape.cpus
                );
                findings.likely(Reason::CpuCount, &["rtmr0"], sentence);
            }
            (Some(shape), Some(_)) => {
                let sentence = format!(
                    "{what}; the number of processors, {}, is the reference's: another version of QEMU{qemu}, machine \
                     type or devices.",
                    shape.cpus
                );
                findings.likely(Reason::Machine, &["rtmr0"], sentence);
            }
            _ => {
                let sentence = format!(
                    "{what}: another version of QEMU{qemu}, machine type, devices or number of processors; nothing \
                     says how many it has."
                );
                findings.likely(Reason::Machine, &["rtmr0"], sentence);
            }
        }
    }

    /// Keys and switch of Secure Boot. They lie in the firmware's variable store, and what they let start is measured against them.
    fn secure_boot(&mut self, findings: &mut Findings) {
        let variable = |pair: &Pair<'_>| match pair.predicted.map(|(_, event)| &event.cause) {
            Some(Cause::SecureBootVariable(name)) => Some(label::printable(name)),
            _ => None,
        };
        let mut names: Vec<String> = self.zero.open().filter_map(variable).collect();
        if names.is_empty() {
            return;
        }
        names.truncate(super::MAX_LISTED);
        self.zero.take(|pair| variable(pair).is_some());
        let store = self.zero.take(|pair| is(pair, &Cause::ConfigurationVolume));
        self.zero.take(|pair| {
            let added = pair.measured.filter(|_| pair.predicted.is_none());
            added.is_some_and(|(_, event)| event.event == "EV_EFI_VARIABLE_AUTHORITY")
        });
        let store = if store { " The variable store, which holds them, differs with them." } else { "" };
        let sentence = format!("Variables of Secure Boot differ (RTMR0): {}.{store}", names.join(", "));
        findings.likely(Reason::SecureBoot, &["rtmr0"], sentence);
    }

    fn boot_entries(&mut self, findings: &mut Findings) {
        let mut boot = Vec::new();
        for pair in self.zero.open() {
            match pair.predicted.map(|(_, event)| &event.cause) {
                Some(Cause::BootVariable(name)) => boot.push(label::printable(name)),
                Some(Cause::Firmware(name)) if BOOT_FILES.contains(&name.as_str()) => {
                    boot.push(label::printable(name));
                }
                _ => {}
            }
        }
        boot.truncate(super::MAX_LISTED);
        self.zero.take(|pair| match pair.predicted.map(|(_, event)| &event.cause) {
            Some(Cause::BootVariable(_)) => true,
            Some(Cause::Firmware(name)) => BOOT_FILES.contains(&name.as_str()),
            _ => false,
        });
        // Entries beyond the predicted ones belong to the same cause.
        let added = self.zero.take(|pair| {
            let measured = pair.measured.filter(|_| pair.predicted.is_none());
            measured.is_some_and(|(_, event)| event.event.starts_with("EV_EFI_VARIABLE_BOOT"))
        });
        if !boot.is_empty() || added {
            let which = if boot.is_empty() { "entries were added".to_owned() } else { boot.join(", ") };
            let added = if added && !boot.is_empty() { "; entries were added" } else { "" };
            let sentence = format!("Boot entries of the firmware differ (RTMR0): {which}{added}.");
            findings.likely(Reason::BootEntries, &["rtmr0"], sentence);
        }
    }

    /// What firmware brings along itself.
    fn firmware(&mut self, mrtd: Status, findings: &mut Findings) {
        let of_firmware = |pair: &Pair<'_>| {
            let cause = pair.predicted.map(|(_, event)| &event.cause);
            matches!(cause, Some(Cause::ConfigurationVolume | Cause::Firmware(_)))
        };
        let what: Vec<String> = self
            .zero
            .open()
            .filter(|pair| of_firmware(pair))
            .filter_map(|pair| pair.predicted)
            .take(super::MAX_LISTED)
            .map(|(_, event)| label::printable(&event.cause.to_string()))
            .collect();
        if !self.zero.take(of_firmware) {
            return;
        }
        let mrtd = match mrtd {
            Status::Equal => {
                "MRTD is as predicted, so it is the same code with another variable store or settings"
            }
            Status::Differs => "MRTD differs as well",
            _ => "MRTD has no reference value",
        };
        let sentence = format!("RTMR0 differs in: {}; {mrtd}.", what.join(", "));
        findings.likely(Reason::FirmwareBuild, &["rtmr0"], sentence);
    }

    /// Whether a half is for the firmware of the compared one.
    fn same_firmware(&self, half: &PlatformReference) -> bool {
        let firmware = |half: &PlatformReference| half.firmware.as_ref().map(|file| file.sha256);
        let own = self.platform.and_then(firmware);
        own.is_some() && own == firmware(half)
    }

    fn shape(&self) -> Option<&MachineShape> {
        self.platform?.machine.as_ref()
    }

    /// What the appliance saw of its machine.
    fn saw(&self) -> String {
        let saw = self.machine.as_ref();
        saw.map(|machine| {
            format!(" The appliance saw {} processors and {} MiB usable.", machine.cpus, machine.memory_mib)
        })
        .unwrap_or_default()
    }
}

/// Whether a firmware event is named after a file that the hypervisor provides.
fn is_file(name: &str) -> bool {
    BOOT_FILES.contains(&name) || name.starts_with("etc/") || name.starts_with("opt/")
}

/// Whether all memory lies below 4 GiB in one piece.
fn low(memory_mib: u64) -> bool {
    memory_mib < LOW_MEMORY_MIB
}

fn describe(shape: &MachineShape) -> String {
    format!(" ({} MiB, {} processors)", shape.memory_mib, shape.cpus)
}
