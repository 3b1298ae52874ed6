//! A firmware's event log, of a TD and of a TPM.

#![no_main]

use cofferdam_attest::ccel;
use cofferdam_attest::event_log::Event;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = ccel::parse_tpm(bytes);
    let Ok(entries) = ccel::parse_entries(bytes) else {
        assert!(ccel::parse(bytes).is_err());
        return;
    };
    let written = ccel::write(&entries);
    if written.len() <= ccel::MAX_BYTES {
        assert_eq!(ccel::parse_entries(&written).unwrap(), entries);
    }
    for entry in &entries {
        assert_eq!(ccel::type_number(&ccel::type_name(entry.event_type)), Some(entry.event_type));
        // Whatever a firmware logs travels in an evidence document, and comes out as it went in.
        if entry.mr < 3 {
            let event = entry.event();
            let json = serde_json::to_vec(&event).unwrap();
            assert_eq!(serde_json::from_slice::<Event>(&json).unwrap(), event);
        }
    }
});
