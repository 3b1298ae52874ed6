//! The last part of stage `unseal`: each declared volume is made or opened, and mounted where services will get it from.
//!
//! Where volumes lie, what they are sealed with and which of them exist, the vault has in its store and hands over. One that exists is opened and
//! never made; one that does not open parks the appliance, with nothing written to it.

use std::fs::File;
use std::io;
use std::path::Path;

use cofferdam_protocol::error_chain;

use crate::paths;
use crate::system::console::say;
use crate::system::files;
use crate::system::sys::SecretMemory;
use crate::system::volume::{self, Cipher, Region, Volume};

/// One declared volume, where it lies and what it is sealed with.
#[derive(Debug)]
pub(crate) struct Place {
    /// As declared.
    pub(crate) name: String,
    /// On the disk, in bytes.
    pub(crate) offset: u64,
    /// In bytes.
    pub(crate) length: u64,
    /// 32 bytes.
    pub(crate) key: SecretMemory,
    /// Whether it exists.
    pub(crate) made: bool,
}

/// Why the volumes are not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// One of them.
    #[error("the volume {name} cannot be {}", if *.made { "opened" } else { "made" })]
    Volume {
        /// Which one.
        name: String,
        /// Whether it exists.
        made: bool,
        /// Why.
        #[source]
        source: volume::VolumeError,
    },
    /// Its directory.
    #[error("cannot make the directory of the volume {0}")]
    Directory(String, #[source] io::Error),
    /// The key has another length.
    #[error("the vault handed over no key for the volume {0}")]
    Key(String),
}

/// The mounted volumes, until the end of the machine.
#[derive(Debug, Default)]
pub(crate) struct Volumes(Vec<(String, Volume)>);

impl Volumes {
    /// Unmounts them all and says which of them could not be.
    pub(crate) fn close(self) {
        for (name, volume) in self.0 {
            if let Err(error) = volume.close() {
                say(&format!("volume {name}: {}", error_chain(&error)));
            }
        }
    }
}

/// Makes or opens each and mounts it at [`paths::VOLUMES_DIR`]. When this returns all of them are made, and on the disk; the keys
/// are the kernel's alone.
///
/// # Errors
///
/// [`VolumeError`]; nothing stays mounted or mapped.
pub(super) fn establish(disk: &File, places: Vec<Place>) -> Result<Volumes, VolumeError> {
    let directory = |path: &Path| files::directory(path, 0, 0, 0o700);
    let root = Path::new(paths::VOLUMES_DIR);
    directory(root).map_err(|error| VolumeError::Directory(paths::VOLUMES_DIR.to_owned(), error))?;
    let mut volumes = Volumes::default();
    for Place { name, offset, length, key, made } in places {
        let at = root.join(&name);
        directory(&at).map_err(|error| VolumeError::Directory(name.clone(), error))?;
        let key: &[u8; 32] = key.bytes().try_into().map_err(|_| VolumeError::Key(name.clone()))?;
        let region = Region { name: &name, disk, offset, length };
        let volume = if made {
            Volume::open(region, key, Cipher::Aegis, &at)
        } else {
            Volume::make(region, key, Cipher::Aegis, paths::VOLUME_TEMPLATE.as_ref(), &at)
        };
        match volume {
            Ok(volume) => volumes.0.push((name, volume)),
            Err(source) => return Err(VolumeError::Volume { name, made, source }),
        }
    }
    Ok(volumes)
}
