//! Any bytes as a PE image: parsed, hashed, every section looked up.

#![no_main]

use cofferdam_measure::pe::Image;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = Image::parse(bytes) else { return };
    // What was accepted can be hashed, and no section has more bytes than the file.
    assert!(image.authenticode_sha384().is_ok());
    for section in image.sections() {
        assert!(image.section(&section.name).is_none_or(|contents| contents.len() <= bytes.len()));
    }
});
