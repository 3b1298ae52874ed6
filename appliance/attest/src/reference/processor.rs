//! The processor's identification as SMBIOS tells it.

use serde::{Deserialize, Serialize};

/// "Processor ID" of an x86 processor: EAX and EDX of CPUID leaf 1, little-endian (DMTF DSP0134, 7.5.3.1).
///
/// QEMU writes that of the processor that the guest sees into the SMBIOS tables. A trust domain sees the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProcessorId(pub [u8; 8]);

/// Bits of the second and the fourth byte that are zero in every signature; they are not when somebody writes EAX as a number.
const RESERVED: (u8, u8) = (0xc0, 0xf0);

impl std::fmt::Display for ProcessorId {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&hex::encode(self.0))
    }
}

/// The eight bytes in hexadecimal, with spaces between them or without: `F2 06 0C 00 FF FB AB 1F` is how `dmidecode` prints them.
impl std::str::FromStr for ProcessorId {
    type Err = ProcessorIdError;

    fn from_str(text: &str) -> Result<Self, ProcessorIdError> {
        let digits: String = text.split(' ').collect();
        let mut bytes = [0; 8];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| ProcessorIdError::Form)?;
        let [_, second, _, fourth, ..] = bytes;
        if second & RESERVED.0 | fourth & RESERVED.1 == 0 {
            Ok(Self(bytes))
        } else {
            Err(ProcessorIdError::Order)
        }
    }
}

impl From<ProcessorId> for String {
    fn from(id: ProcessorId) -> Self {
        id.to_string()
    }
}

/// In documents there is one way to write it.
impl TryFrom<String> for ProcessorId {
    type Error = ProcessorIdError;

    fn try_from(text: String) -> Result<Self, ProcessorIdError> {
        let id: Self = text.parse()?;
        if id.to_string() == text { Ok(id) } else { Err(ProcessorIdError::Form) }
    }
}

/// Not an identification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProcessorIdError {
    /// Not eight bytes.
    #[error("a processor's identification is 8 bytes in hexadecimal")]
    Form,
    /// A signature that no processor has.
    #[error(
        "no processor has this identification: the bytes come in the order in which `dmidecode` prints them"
    )]
    Order,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_write_it_in_several_ways_and_documents_in_one() {
        let id = ProcessorId([0xf2, 6, 0x0c, 0, 0xff, 0xfb, 0xab, 0x1f]);
        for text in ["F2 06 0C 00 FF FB AB 1F", "f2060c00fffbab1f", "F2060C00 fffbab1f"] {
            assert_eq!(text.parse(), Ok(id), "{text}");
        }
        for text in [
            "",
            "f2060c00fffbab1",
            "f2060c00fffbab1f00",
            "0xf2060c00fffbab1f",
            "f2:06:0c:00:ff:fb:ab:1f",
            "g2060c00fffbab1f",
        ] {
            assert_eq!(text.parse::<ProcessorId>(), Err(ProcessorIdError::Form), "{text}");
        }
        for text in ["000C06F2 1FABFBFF", "1FABFBFF 000C06F2", "FF FB AB 1F F2 06 0C 00"] {
            assert_eq!(text.parse::<ProcessorId>(), Err(ProcessorIdError::Order), "{text}");
        }
        let json = serde_json::to_string(&id).ok();
        assert_eq!(json.as_deref(), Some(r#""f2060c00fffbab1f""#));
        assert_eq!(serde_json::from_str(r#""f2060c00fffbab1f""#).ok(), Some(id));
        assert!(serde_json::from_str::<ProcessorId>(r#""F2 06 0C 00 FF FB AB 1F""#).is_err());
    }
}
