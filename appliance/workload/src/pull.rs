//! Fetching one service's image and unpacking it into a directory.
//!
//! What it makes: `image/rootfs`, `image/config.json` ([`RunConfig`]), and last `image/complete`, which holds the
//! image's digest. Without that file the directory counts as empty. It confines nobody: a caller that does not trust the
//! image's publisher runs it in a process that can reach that directory only.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use cofferdam_protocol::{Digest, ImageReference};
use nix::errno::Errno;
use nix::sys::statvfs::statvfs;
use nix::unistd::syncfs;

use crate::files;
use crate::unpack::{Room, UnpackError, Unpacker};
use cofferdam_registry::image::{self, Blob, Compression, ImageError, Manifest, RunConfig};
use cofferdam_registry::{Patience, Registry, RegistryError, base};

pub use cofferdam_registry::{Access, Credentials};

/// Where an image lies: the directories and files of an `image/`.
#[derive(Debug, Clone)]
pub struct ImageDir(PathBuf);

impl ImageDir {
    /// The image directory at `path`.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Makes it anew: throws away what an unfinished pull left.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn prepare(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Nobody but the service's own ids has business in there; the container enters by its own mount.
        fs::DirBuilder::new().create(&self.0)?;
        fs::set_permissions(&self.0, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        fs::DirBuilder::new().create(self.rootfs())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.0.join("rootfs")
    }

    /// How many bytes its file system has left.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn free(&self) -> io::Result<u64> {
        let known = statvfs(&self.0)?;
        Ok(known.fragment_size().saturating_mul(known.blocks_available()))
    }

    /// Brings what was written onto the disk.
    fn sync(&self) -> io::Result<()> {
        Ok(syncfs(File::open(&self.0)?)?)
    }

    fn config(&self) -> PathBuf {
        self.0.join("config.json")
    }

    /// What is there once the image is.
    pub fn complete(&self) -> PathBuf {
        self.0.join("complete")
    }

    /// What an earlier pull of exactly this image left. `None` when there is none that is complete.
    pub fn finished(&self, digest: &Digest) -> Option<RunConfig> {
        let marker = files::read_bounded(self.complete(), 4096).ok()?;
        if marker != digest.to_string().as_bytes() {
            return None;
        }
        let config = files::read_bounded(self.config(), 4 * image::MAX_CONFIG).ok()?;
        serde_json::from_slice(&config).ok()
    }
}

/// Why an image could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A document of the image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A layer.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// Images are one level below an index.
    #[error("an index lists another index")]
    NestedIndex,
    /// There is not so much room where it is to lie.
    #[error("the image needs more than {0}")]
    NoRoom(Room),
    /// The directory cannot be written.
    #[error("cannot write the image")]
    Write(#[source] io::Error),
}

impl PullError {
    /// Whether the file system took no more.
    fn is_full(&self) -> bool {
        let (Self::Write(source) | Self::Unpack(UnpackError::File { source, .. })) = self else {
            return false;
        };
        source.raw_os_error() == Some(Errno::ENOSPC as i32)
    }

    /// Only what depends on the network or on the registry's mood.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Registry(
                RegistryError::Unreachable(_)
                    | RegistryError::Slow(_)
                    | RegistryError::TooShort { .. }
                    | RegistryError::Status { .. }
                    | RegistryError::Missing(_)
            )
        )
    }
}

/// Fetches and unpacks `image` into `directory`, which [`ImageDir::prepare`] has made: no more than `room`. When this returns all of it
/// is on the disk, if there is one. Whether files get the owners that the image names is `own`; it takes CAP_CHOWN.
///
/// # Errors
///
/// [`PullError`]; the directory then counts as empty.
pub async fn pull(
    image: &ImageReference,
    access: Access,
    directory: &ImageDir,
    room: Room,
    own: bool,
) -> Result<(), PullError> {
    let pulled = pull_from(&base(image.registry()), image, access, directory, room, own).await;
    pulled.map_err(|error| if error.is_full() { PullError::NoRoom(room) } else { error })
}

async fn pull_from(
    base: &str,
    image: &ImageReference,
    access: Access,
    directory: &ImageDir,
    room: Room,
    own: bool,
) -> Result<(), PullError> {
    let mut registry = Registry::new(base, image.repository(), access, Patience::default())?;
    let (config, layers) = resolve(&mut registry, image.digest()).await?;
    let promised = layers.iter().fold(0_u64, |sum, (blob, _)| sum.saturating_add(blob.size));
    if promised > room.bytes() {
        return Err(PullError::NoRoom(room));
    }
    if config.size > image::MAX_CONFIG {
        return Err(RegistryError::TooLong { what: "configuration", limit: image::MAX_CONFIG }.into());
    }
    let mut document = Vec::new();
    registry
        .blob(&config, "configuration", &mut document, |sink| {
            sink.clear();
            Ok(())
        })
        .await?;
    let run = image::config(&document)?;
    let mut unpacker = Unpacker::new(&directory.rootfs(), room, own)?;
    for (blob, compression) in &layers {
        // The whole blob is checked before a byte of it reaches a decoder.
        let stored = store(&mut registry, blob, directory).await?;
        unpack(&mut unpacker, stored, *compression)?;
    }
    if unpacker.skipped_devices() > 0 {
        eprintln!("cofferd: {image}: left out {} device nodes", unpacker.skipped_devices());
    }
    let config = serde_json::to_vec(&run).map_err(|error| PullError::Write(error.into()))?;
    files::replace(directory.config(), &config).map_err(PullError::Write)?;
    // Whoever sees the last one after a power cut has all the others.
    directory.sync().map_err(PullError::Write)?;
    files::replace(directory.complete(), image.digest().to_string().as_bytes()).map_err(PullError::Write)?;
    directory.sync().map_err(PullError::Write)
}

async fn resolve(
    registry: &mut Registry,
    pinned: Digest,
) -> Result<(Blob, Vec<(Blob, Compression)>), PullError> {
    let first = image::manifest(&registry.manifest(&pinned, image::MAX_MANIFEST).await?)?;
    let found = match first {
        Manifest::Index(blob) => {
            let limit = blob.size.min(image::MAX_MANIFEST);
            image::manifest(&registry.manifest(&blob.digest, limit).await?)?
        }
        image => image,
    };
    match found {
        Manifest::Image { config, layers } => Ok((config, layers)),
        Manifest::Index(_) => Err(PullError::NestedIndex),
    }
}

async fn store(registry: &mut Registry, blob: &Blob, directory: &ImageDir) -> Result<File, PullError> {
    let path = directory.path().join("blob");
    let mut file =
        File::options().read(true).write(true).create_new(true).open(&path).map_err(PullError::Write)?;
    // Without a name it is gone when it is closed, whatever happens.
    fs::remove_file(&path).map_err(PullError::Write)?;
    let rewind = |file: &mut File| file.set_len(0).and_then(|()| file.rewind());
    registry.blob(blob, "layer", &mut file, rewind).await?;
    file.rewind().map_err(PullError::Write)?;
    Ok(file)
}

fn unpack(unpacker: &mut Unpacker, blob: File, compression: Compression) -> Result<(), UnpackError> {
    let reader = BufReader::with_capacity(64 << 10, unpacker.timed(blob));
    match compression {
        Compression::None => unpacker.layer(reader),
        Compression::Gzip => unpacker.layer(flate2::bufread::MultiGzDecoder::new(reader)),
        Compression::Zstd => unpacker.layer(Frames { reader: Some(reader), decoder: None }),
    }
}

/// All frames of a zstd stream, one after the other (RFC 8878 §3).
struct Frames<R: Read> {
    reader: Option<R>,
    decoder: Option<ruzstd::decoding::StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>,
}

impl<R: io::BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(decoder) = &mut self.decoder {
                let count = decoder.read(buffer)?;
                if count > 0 || buffer.is_empty() {
                    return Ok(count);
                }
            }
            if let Some(decoder) = self.decoder.take() {
                self.reader = Some(decoder.into_inner());
            }
            let Some(mut reader) = self.reader.take() else { return Ok(0) };
            if reader.fill_buf()?.is_empty() {
                return Ok(0);
            }
            let decoder = ruzstd::decoding::StreamingDecoder::new(reader);
            self.decoder = Some(decoder.map_err(|error| io::Error::other(error.to_string()))?);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::sync::Arc;

    use sha2::{Digest as _, Sha256};

    use super::*;

    /// A registry that has these blobs and no others.
    fn serve(blobs: Vec<Vec<u8>>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let blobs = Arc::new(blobs);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    head.push(byte[0]);
                }
                let head = String::from_utf8(head).unwrap();
                let body = blobs.iter().find(|blob| head.contains(&digest(blob)));
                let status = if body.is_some() { "200 OK" } else { "404 Not Found" };
                let body = body.map(Vec::as_slice).unwrap_or_default();
                let line = format!(
                    "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(line.as_bytes()).and_then(|()| stream.write_all(body));
            }
        });
        base
    }

    fn digest(bytes: &[u8]) -> String {
        format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
    }

    fn layer(name: &str, content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        // Like some builders, without an owner: it is root.
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        builder.append_data(&mut header, name, content).unwrap();
        builder.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// One frame of one uncompressed block (RFC 8878 §3.1.1): a single segment, its size in four bytes.
    fn zstd(bytes: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
        frame.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_le_bytes());
        frame.extend_from_slice(&(u32::try_from(bytes.len()).unwrap() << 3 | 1).to_le_bytes()[..3]);
        frame.extend_from_slice(bytes);
        frame
    }

    /// The documents of an image of these layers; the first is the manifest.
    fn image(layers: &[(&str, Vec<u8>)]) -> Vec<Vec<u8>> {
        let config = br#"{"architecture":"amd64","os":"linux","config":{"Cmd":["/app"]}}"#.to_vec();
        let descriptor = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
        let layer = |(kind, bytes): &(&str, Vec<u8>)| {
            descriptor(&format!("application/vnd.oci.image.layer.v1.tar{kind}"), bytes)
        };
        let layers_json: Vec<_> = layers.iter().map(layer).collect();
        let manifest = serde_json::json!({"schemaVersion": 2, "config": descriptor("c", &config), "layers": layers_json});
        let mut documents = vec![serde_json::to_vec(&manifest).unwrap(), config];
        documents.extend(layers.iter().map(|(_, bytes)| bytes.clone()));
        documents
    }

    struct Pulled {
        folder: tempfile::TempDir,
        outcome: Result<(), PullError>,
        reference: ImageReference,
    }

    impl Pulled {
        fn directory(&self) -> ImageDir {
            ImageDir(self.folder.path().join("image"))
        }

        fn read(&self, path: &str) -> Option<Vec<u8>> {
            fs::read(self.directory().rootfs().join(path)).ok()
        }
    }

    async fn attempt(documents: Vec<Vec<u8>>, room: u64) -> Pulled {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let reference: ImageReference =
            format!("registry.example/team/app@{}", digest(&documents[0])).parse().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let directory = ImageDir(folder.path().join("image"));
        directory.prepare().unwrap();
        let base = serve(documents);
        let own = nix::unistd::geteuid().is_root();
        let outcome =
            pull_from(&base, &reference, Access::default(), &directory, Room::Memory(room), own).await;
        Pulled { folder, outcome, reference }
    }

    #[tokio::test]
    async fn an_image_in_every_wrapping_is_unpacked_and_marked_complete_last() {
        let layers = [
            ("", layer("plain", b"1")),
            ("+gzip", gzip(&layer("gzip", b"2"))),
            ("+zstd", zstd(&layer("zstd", b"3"))),
        ];
        let pulled = attempt(image(&layers), 1 << 20).await;
        pulled.outcome.as_ref().unwrap();
        for (name, content) in [("plain", b"1"), ("gzip", b"2"), ("zstd", b"3")] {
            assert_eq!(pulled.read(name).as_deref(), Some(&content[..]), "{name}");
        }
        let config = pulled.directory().finished(&pulled.reference.digest()).unwrap();
        assert_eq!(config.cmd, ["/app"]);
        assert!(!pulled.directory().path().join("blob").exists(), "no blob is left");
        let other = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        assert!(pulled.directory().finished(&other).is_none(), "another image is another pull");
        pulled.directory().prepare().unwrap();
        assert!(pulled.directory().finished(&pulled.reference.digest()).is_none());
    }

    #[tokio::test]
    async fn a_bomb_in_any_wrapping_ends_at_the_bound() {
        let zeros = layer("zeros", &vec![0; 8 << 20]);
        let pulled = attempt(image(&[("+gzip", gzip(&zeros))]), 1 << 20).await;
        assert!(
            matches!(pulled.outcome, Err(PullError::Unpack(UnpackError::TooLarge(_)))),
            "{:?}",
            pulled.outcome
        );
        assert!(pulled.directory().finished(&pulled.reference.digest()).is_none());
        // Without compression the promised size already says so, and nothing is fetched.
        let pulled = attempt(image(&[("", zeros)]), 1 << 20).await;
        assert!(matches!(pulled.outcome, Err(PullError::NoRoom(_))), "{:?}", pulled.outcome);
    }

    #[tokio::test]
    async fn a_layer_under_a_false_digest_is_never_unpacked() {
        let mut documents = image(&[("", layer("evil", b"x"))]);
        // The manifest promises one layer; the registry has another of the same size under its name.
        let manifest = String::from_utf8(documents[0].clone()).unwrap();
        let promised = digest(&documents[2]);
        let other = layer("evil", b"y");
        documents[0] = manifest.replace(&promised, &digest(&other)).into_bytes();
        let pulled = attempt(documents, 1 << 20).await;
        let error = pulled.outcome.unwrap_err();
        assert!(matches!(error, PullError::Registry(RegistryError::Missing("layer"))), "{error}");
        assert!(error.is_transient(), "the registry may still get it");
        assert_eq!(fs::read_dir(pulled.folder.path().join("image/rootfs")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn broken_layers_say_so_and_waiting_would_not_help() {
        for (kind, bytes) in
            [("+gzip", b"no gzip".to_vec()), ("+zstd", b"no zstd".to_vec()), ("", vec![1; 1024])]
        {
            let pulled = attempt(image(&[(kind, bytes)]), 1 << 20).await;
            let error = pulled.outcome.unwrap_err();
            assert!(matches!(error, PullError::Unpack(UnpackError::Archive(_))), "{kind}: {error}");
            assert!(!error.is_transient());
        }
        let pulled = attempt(vec![b"{\"manifests\":[]}".to_vec()], 1 << 20).await;
        assert!(matches!(pulled.outcome, Err(PullError::Image(ImageError::NoPlatform))));
    }

    #[test]
    fn a_stream_of_empty_frames_ends_with_the_time() {
        let folder = tempfile::tempdir().unwrap();
        for (compression, empty) in [(Compression::Gzip, gzip(b"")), (Compression::Zstd, zstd(b""))] {
            let mut blob = tempfile::tempfile().unwrap();
            for _ in 0..64 {
                blob.write_all(&empty.repeat(16 << 10)).unwrap();
            }
            blob.rewind().unwrap();
            let mut unpacker =
                Unpacker::hurried(folder.path(), std::time::Duration::from_millis(50)).unwrap();
            let error = unpack(&mut unpacker, blob, compression).unwrap_err();
            assert!(matches!(error, UnpackError::Slow(_)), "{error}");
        }
    }
}
