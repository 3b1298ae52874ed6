//! Any bytes as a firmware, as a volume of variables and as SMBIOS tables: what is accepted as firmware yields a reference
//! that can be written and read again.

#![no_main]

use cofferdam_attest::reference::{Half, MachineShape};
use cofferdam_measure::{firmware, smbios::Smbios, variables};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = variables::parse(bytes);
    let _ = Smbios::parse(bytes);
    let memory_mib = u64::from(bytes.first().copied().unwrap_or_default()) << 5;
    let shape = MachineShape { memory_mib, cpus: 2, qemu: None, processor: None };
    if let Ok(prediction) = firmware::predict(bytes, "fuzzed", &shape, None) {
        assert_eq!(prediction.reference.rtmr0.is_some(), prediction.open.is_empty());
        let half = Half::Platform(prediction.reference);
        assert_eq!(Half::parse(&half.to_json().unwrap()).ok(), Some(half));
    }
});
