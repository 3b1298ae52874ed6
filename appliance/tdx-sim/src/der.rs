//! Just enough DER (X.690) to write the SGX extension of a PCK certificate.
//!
//! Shape: Intel "SGX PCK Certificate and Certificate Revocation List Profile Specification" 1.5 §2.3.5: a SEQUENCE of
//! `SEQUENCE { OID, value }` below 1.2.840.113741.1.13.1. It only writes; what it writes is read back by the
//! verifier in the tests.

use crate::machine::{self, Machine};

/// 1.2.840.113741.1.13.1, the arc of Intel's SGX extensions, for rcgen.
pub(crate) const SGX_EXTENSION: &[u64] = &[1, 2, 840, 113_741, 1, 13, 1];
/// The same arc as DER contents.
const SGX_ARC: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01];

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const ENUMERATED: u8 = 0x0a;
const SEQUENCE: u8 = 0x30;

/// The contents of the SGX extension that describes `machine`.
pub(crate) fn sgx_extension(machine: &Machine) -> Vec<u8> {
    let mut tcb = Vec::new();
    for (number, svn) in (1u8..).zip(machine::CPU_SVN) {
        tcb.extend(entry(&[2, number], integer(u16::from(svn))));
    }
    tcb.extend(entry(&[2, 17], integer(machine::PCE_SVN)));
    tcb.extend(entry(&[2, 18], tlv(OCTET_STRING, &machine::CPU_SVN)));

    // Whether packages can be added, whether keys are cached by the registration service, whether SMT is on. All
    // false, which is the most that a policy can ask for.
    let configuration: Vec<u8> = (1u8..=3).flat_map(|flag| entry(&[7, flag], tlv(BOOLEAN, &[0]))).collect();

    let mut extension = Vec::new();
    extension.extend(entry(&[1], tlv(OCTET_STRING, &machine.ppid)));
    extension.extend(entry(&[2], tlv(SEQUENCE, &tcb)));
    extension.extend(entry(&[3], tlv(OCTET_STRING, &machine::PCE_ID)));
    extension.extend(entry(&[4], tlv(OCTET_STRING, &machine::FMSPC)));
    // SGX type 1: "scalable", what a TDX server has.
    extension.extend(entry(&[5], tlv(ENUMERATED, &[1])));
    extension.extend(entry(&[6], tlv(OCTET_STRING, &machine.platform_instance)));
    extension.extend(entry(&[7], tlv(SEQUENCE, &configuration)));
    tlv(SEQUENCE, &extension)
}

/// `SEQUENCE { arc ‖ suffix, value }`; every arc here is below 128 and so is one byte.
fn entry(suffix: &[u8], value: Vec<u8>) -> Vec<u8> {
    let oid = tlv(OID, &[SGX_ARC, suffix].concat());
    tlv(SEQUENCE, &[oid, value].concat())
}

fn integer(value: u16) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    match bytes {
        [0, low] if low < 0x80 => tlv(INTEGER, &[low]),
        [high, _] if high < 0x80 => tlv(INTEGER, &bytes),
        [high, low] => tlv(INTEGER, &[0, high, low]),
    }
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant: Vec<u8> = length.iter().copied().skip_while(|byte| *byte == 0).collect();
    let mut out = vec![tag];
    match significant.as_slice() {
        [] => out.push(0),
        [short] if *short < 0x80 => out.push(*short),
        long => {
            // At most 8 length bytes, so the sum fits.
            out.push(0x80 | u8::try_from(long.len()).unwrap_or(8));
            out.extend_from_slice(long);
        }
    }
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_integers_are_minimal() {
        assert_eq!(tlv(OCTET_STRING, &[]), [4, 0]);
        assert_eq!(tlv(OCTET_STRING, &[9; 127])[..2], [4, 127]);
        assert_eq!(tlv(OCTET_STRING, &[9; 128])[..3], [4, 0x81, 128]);
        assert_eq!(tlv(OCTET_STRING, &[9; 300])[..4], [4, 0x82, 1, 44]);
        assert_eq!(integer(0), [2, 1, 0]);
        assert_eq!(integer(128), [2, 2, 0, 128]);
        assert_eq!(integer(0x8000), [2, 3, 0, 0x80, 0]);
    }
}
