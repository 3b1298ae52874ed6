//! GUIDs as EFI writes them into files: the first three groups little-endian, the rest as they are printed.
//!
//! Source: UEFI 2.11, appendix A.

/// The 16 bytes of a GUID in its printed groups: `guid(0x96b582de, 0x1fb2, 0x45f7, *b"…")`.
pub(crate) const fn guid(first: u32, second: u16, third: u16, rest: [u8; 8]) -> [u8; 16] {
    let a = first.to_le_bytes();
    let b = second.to_le_bytes();
    let c = third.to_le_bytes();
    let [d0, d1, d2, d3, d4, d5, d6, d7] = rest;
    let [a0, a1, a2, a3] = a;
    let [b0, b1] = b;
    let [c0, c1] = c;
    [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7]
}
