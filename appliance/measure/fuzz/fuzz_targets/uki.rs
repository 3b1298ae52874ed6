//! Any bytes as a UKI: what is accepted yields a reference that can be written and read again, and does not differ from itself.

#![no_main]

use cofferdam_attest::reference::Half;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(reference) = cofferdam_measure::image_reference(bytes, None) {
        let half = Half::Image(reference);
        assert_eq!(Half::parse(&half.to_json().unwrap()).ok(), Some(half));
    }
    if let Ok(found) = cofferdam_measure::difference::differences(bytes, bytes) {
        assert!(found.is_empty());
    }
});
