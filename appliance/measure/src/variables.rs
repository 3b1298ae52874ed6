//! The variables that a firmware is delivered with: the authenticated variable store inside the configuration firmware volume.
//!
//! Responsible for reading that store within bounds and for the bytes that firmware hashes of a variable. It decides nothing
//! about keys and signatures. Sources: UEFI Platform Initialization 1.8, volume 3, section 3.2.1 (firmware volume header); edk2
//! `MdeModulePkg/Include/Guid/VariableFormat.h` (store and variable headers, states); TCG PC Client Platform Firmware
//! Profile 1.06, section 10.4.2 (UEFI_VARIABLE_DATA).

use crate::bytes::{CutOff, add, array, offset_at, slice, u16_at, u64_at};
use crate::guid::guid;

/// EFI_GLOBAL_VARIABLE: PK, KEK, SecureBoot, BootOrder.
pub(crate) const GLOBAL: [u8; 16] =
    guid(0x8be4_df61, 0x93ca, 0x11d2, [0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c]);
/// EFI_IMAGE_SECURITY_DATABASE_GUID: db, dbx, dbt.
pub(crate) const DATABASE: [u8; 16] =
    guid(0xd719_b2cb, 0x3d3a, 0x4596, [0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f]);
/// Owner of `SecureBootEnable`, the switch of edk2's setup.
pub(crate) const ENABLE: [u8; 16] =
    guid(0xf0a3_0bc7, 0xaf08, 0x4556, [0x99, 0xc4, 0x00, 0x10, 0x09, 0xc9, 0x3a, 0x44]);

/// EFI_SYSTEM_NV_DATA_FV_GUID: a volume of variables.
const VOLUME: [u8; 16] = guid(0xfff1_2b8d, 0x7696, 0x4c8b, [0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50]);
const VOLUME_SIGNATURE: &[u8] = b"_FVH";
/// EFI_AUTHENTICATED_VARIABLE_GUID.
const STORE: [u8; 16] = guid(0xaaf3_2c78, 0x947b, 0x439a, [0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92]);
const STORE_HEADER: usize = 28;
/// "Formatted" and "healthy".
const STORE_STATE: [u8; 2] = [0x5a, 0xfe];
/// What begins every variable.
const START: u16 = 0x55aa;
/// id 2, state 1, reserved 1, attributes 4, count 8, time 16, key 4, name size 4, data size 4, owner 16.
const HEADER: usize = 60;
/// Variables follow each other at multiples of this.
const ALIGNMENT: usize = 4;
/// The state is a row of bits that are cleared in turn.
const ADDED: u8 = 0x3f;
const IN_DELETED_TRANSITION: u8 = 0x3e;

/// A variable that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable<'a> {
    /// Its name.
    pub name: String,
    /// Its owner, a GUID as EFI writes it.
    pub owner: [u8; 16],
    /// Its value, without any authentication header.
    pub data: &'a [u8],
}

/// Reads the variables out of a configuration firmware volume, in the order of the store.
///
/// # Errors
/// [`VariablesError`] when it holds no authenticated variable store, or one that firmware would not read in one way.
pub fn parse(volume: &[u8]) -> Result<Vec<Variable<'_>>, VariablesError> {
    if array::<16>(volume, 16)? != VOLUME || slice(volume, 40, 4)? != VOLUME_SIGNATURE {
        return Err(VariablesError::NoVolume);
    }
    let length = usize::try_from(u64_at(volume, 32)?).map_err(|_| VariablesError::NoVolume)?;
    let volume = slice(volume, 0, length)?;
    let store = usize::from(u16_at(volume, 48)?);
    if array::<16>(volume, store)? != STORE || array::<2>(volume, add(store, 20)?)? != STORE_STATE {
        return Err(VariablesError::NoStore);
    }
    let size = offset_at(volume, add(store, 16)?)?;
    let store = slice(volume, store, size)?;
    let mut found: Vec<Variable<'_>> = Vec::new();
    let mut moving: Vec<Variable<'_>> = Vec::new();
    let mut at = STORE_HEADER;
    // Every round moves on by a header at least, so the store's size bounds them.
    while at.saturating_add(HEADER) <= store.len() && u16_at(store, at)? == START {
        let [state] = array(store, add(at, 2)?)?;
        let name_size = offset_at(store, add(at, 36)?)?;
        let data_size = offset_at(store, add(at, 40)?)?;
        let name_start = add(at, HEADER)?;
        let data_start = add(name_start, name_size)?;
        let data = slice(store, data_start, data_size)?;
        if state == ADDED || state == IN_DELETED_TRANSITION {
            let name = name(slice(store, name_start, name_size)?)?;
            let variable = Variable { name, owner: array(store, add(at, 44)?)?, data };
            if state == ADDED { found.push(variable) } else { moving.push(variable) }
        }
        at = add(data_start, data_size)?.checked_next_multiple_of(ALIGNMENT).ok_or(CutOff(at))?;
    }
    if found.len().saturating_add(moving.len()) > MOST {
        return Err(VariablesError::TooMany);
    }
    // A variable that was being replaced counts where its replacement is missing.
    for variable in moving {
        if get(&found, &variable.name, &variable.owner).is_none() {
            found.push(variable);
        }
    }
    for (index, variable) in found.iter().enumerate() {
        if found
            .iter()
            .skip(index.saturating_add(1))
            .any(|other| same(other, &variable.name, &variable.owner))
        {
            return Err(VariablesError::Twice(variable.name.clone()));
        }
    }
    Ok(found)
}

/// Most variables; a delivered store has four. Bounds the search for duplicates.
const MOST: usize = 256;

/// The value of a variable.
#[must_use]
pub fn get<'a>(variables: &[Variable<'a>], name: &str, owner: &[u8; 16]) -> Option<&'a [u8]> {
    variables.iter().find(|variable| same(variable, name, owner)).map(|variable| variable.data)
}

/// UEFI_VARIABLE_DATA, which is what firmware hashes of a Secure Boot variable; a missing variable has no data.
#[must_use]
pub fn event_data(name: &str, owner: &[u8; 16], data: &[u8]) -> Vec<u8> {
    let wide: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let units = u64::try_from(wide.len() / 2).unwrap_or(u64::MAX);
    let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
    [&owner[..], &units.to_le_bytes(), &length.to_le_bytes(), &wide, data].concat()
}

fn same(variable: &Variable<'_>, name: &str, owner: &[u8; 16]) -> bool {
    variable.name == name && variable.owner == *owner
}

/// A name: UTF-16 with a final NUL.
fn name(bytes: &[u8]) -> Result<String, VariablesError> {
    let units: Vec<u16> =
        bytes.chunks_exact(2).filter_map(|pair| pair.try_into().ok().map(u16::from_le_bytes)).collect();
    match units.split_last() {
        Some((0, name)) if bytes.len().is_multiple_of(2) && !name.contains(&0) => {
            String::from_utf16(name).map_err(|_| VariablesError::Name)
        }
        _ => Err(VariablesError::Name),
    }
}

impl From<CutOff> for VariablesError {
    fn from(CutOff(at): CutOff) -> Self {
        Self::CutOff(at)
    }
}

/// Why a volume's variables are not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VariablesError {
    /// Not a firmware volume for variables.
    #[error("the configuration volume is no volume of variables")]
    NoVolume,
    /// Not formatted, or not authenticated.
    #[error("the configuration volume holds no authenticated variable store")]
    NoStore,
    /// A size points out of the store.
    #[error("the variable store is cut off, or a size points outside of it: offset {0}")]
    CutOff(usize),
    /// A name that is no UTF-16 text with a final NUL.
    #[error("a variable's name is malformed")]
    Name,
    /// Two variables of the same name and owner.
    #[error("variable {0} is there twice")]
    Twice(String),
    /// More than [`MOST`].
    #[error("the variable store holds more variables than a firmware is delivered with")]
    TooMany,
}
