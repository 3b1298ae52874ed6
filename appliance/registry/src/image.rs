//! The documents of an image: index, manifest and configuration, OCI and Docker alike.
//!
//! Only what a single linux/amd64 container needs is read; what is read is bounded. Everything here is
//! reached from a digest that the measured declaration holds, so a document is what its publisher made,
//! but the publisher is not trusted to be careful or kind.

use cofferdam_protocol::Digest;
use serde::{Deserialize, Serialize};

/// Manifests and indexes: the size that registries commonly accept.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// An image's configuration; real ones are some KiB.
pub const MAX_CONFIG: u64 = 4 << 20;
/// What container engines stack at most.
pub const MAX_LAYERS: usize = 127;
/// Far above any real image; keeps what the shim reads back in proportion.
const MAX_WORDS: usize = 4096;

/// The media types that a manifest request accepts (OCI image-spec 1.1, Docker image manifest v2 schema 2).
pub const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Why a document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not the JSON that it should be.
    #[error("the {0} does not parse")]
    Parse(&'static str, #[source] serde_json::Error),
    /// The digest is not `sha256:` and 64 lower-case hexadecimal digits.
    #[error("the digest of the {0} is not a sha256 digest")]
    Digest(&'static str),
    /// The index lists no image for this machine.
    #[error("the index has no image for linux/amd64")]
    NoPlatform,
    /// An index inside an index, or something that is no image at all.
    #[error("the manifest is of the type {0}, which is not an image's")]
    NotAnImage(String),
    /// The configuration is for another machine.
    #[error("the image is for {0}, not for linux/amd64")]
    OtherPlatform(String),
    /// Too much of something.
    #[error("the image has more than {0}")]
    TooMany(&'static str),
    /// Docker's manifest of before 2016, which does not name the image's configuration by its digest.
    #[error(
        "the image has a manifest of Docker's schema 1, which is not supported; push it again with a current tool, \
         for example with `skopeo copy --format oci`, and declare the new digest"
    )]
    Schema1,
    /// A layer that registries do not hold, because its publisher does not let them.
    #[error(
        "a layer is of the type {0}, which registries do not hold; build the image on a base whose layers may be \
         distributed, push it and declare the new digest"
    )]
    Foreign(String),
    /// A layer that this appliance cannot unpack.
    #[error(
        "a layer is of the type {0}, which is not supported; push the image again with layers that are tar archives, plain \
         or packed by gzip or zstd, for example with `skopeo copy --format oci`, and declare the new digest"
    )]
    LayerType(String),
    /// A value that cannot be an argument or a variable.
    #[error("the image's configuration holds a zero byte in its {0}")]
    ZeroByte(&'static str),
}

/// A blob that is still to be fetched: its digest and its exact size in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// What its bytes hash to.
    pub digest: Digest,
    /// How many there are.
    pub size: u64,
}

/// How a layer's tar archive is wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// What a reference's digest leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum Manifest {
    /// One image per platform; this is ours.
    Index(Blob),
    /// The image.
    Image {
        /// Its configuration.
        config: Blob,
        /// Its layers, lowest first.
        layers: Vec<(Blob, Compression)>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    schema_version: u64,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

impl Descriptor {
    fn blob(&self, what: &'static str) -> Result<Blob, ImageError> {
        let digest = self.digest.parse().map_err(|_| ImageError::Digest(what))?;
        Ok(Blob { digest, size: self.size })
    }
}

/// Reads an index or a manifest.
///
/// # Errors
///
/// Not such a document, or one without an image for this machine.
pub fn manifest(bytes: &[u8]) -> Result<Manifest, ImageError> {
    let document: Document = serde_json::from_slice(bytes).map_err(|e| ImageError::Parse("manifest", e))?;
    match (document.manifests, document.config, document.layers) {
        (Some(manifests), None, None) => {
            let ours = manifests.iter().find(|descriptor| {
                descriptor.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == "amd64")
            });
            Ok(Manifest::Index(ours.ok_or(ImageError::NoPlatform)?.blob("image in the index")?))
        }
        (None, Some(config), Some(layers)) => {
            if layers.len() > MAX_LAYERS {
                return Err(ImageError::TooMany("127 layers"));
            }
            let layers =
                layers.iter().map(|layer| Ok((layer.blob("layer")?, compression(&layer.media_type)?)));
            Ok(Manifest::Image {
                config: config.blob("configuration")?,
                layers: layers.collect::<Result<_, _>>()?,
            })
        }
        _ if document.schema_version == 1 => Err(ImageError::Schema1),
        _ => Err(ImageError::NotAnImage(short(&document.media_type.unwrap_or_default()))),
    }
}

fn compression(media_type: &str) -> Result<Compression, ImageError> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
            Ok(Compression::None)
        }
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Compression::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Compression::Zstd),
        foreign
            if foreign.starts_with("application/vnd.oci.image.layer.nondistributable.")
                || foreign.starts_with("application/vnd.docker.image.rootfs.foreign.") =>
        {
            Err(ImageError::Foreign(short(foreign)))
        }
        other => Err(ImageError::LayerType(short(other))),
    }
}

/// A foreign text for an error message: bounded, and without anything that a terminal would obey.
pub fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(120).collect()
}

/// What the image says about running it; the shim reads it back from `config.json` after the pull.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// `KEY=value`.
    pub env: Vec<String>,
    /// Empty means none.
    pub entrypoint: Vec<String>,
    /// Empty means none.
    pub cmd: Vec<String>,
    /// `user[:group]`, names or numbers; empty means root.
    pub user: String,
    /// Empty means `/`.
    pub working_dir: String,
    /// A signal's name or number; empty means SIGTERM.
    pub stop_signal: String,
    /// How its health is found out.
    #[serde(default)]
    pub health: ImageHealth,
}

/// What an image says about its health (`HEALTHCHECK`). Times are nanoseconds, and 0 leaves them to the default, as does no number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageHealth {
    /// `NONE`, `CMD` with arguments, or `CMD-SHELL` with a text; empty says nothing.
    pub test: Vec<String>,
    /// Between two probes.
    pub interval: u64,
    /// Of one probe.
    pub timeout: u64,
    /// How long failures do not count.
    pub start_period: u64,
    /// Between two probes in that time.
    pub start_interval: u64,
    /// Failures in a row.
    pub retries: u32,
}

#[derive(Deserialize)]
struct ConfigDocument {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    config: Option<ConfigSection>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigSection {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    // Docker's, which OCI does not know and keeps.
    healthcheck: Option<ImageHealth>,
}

/// Reads an image's configuration.
///
/// # Errors
///
/// Not a configuration, one for another platform, or one that is out of bounds.
pub fn config(bytes: &[u8]) -> Result<RunConfig, ImageError> {
    let document: ConfigDocument =
        serde_json::from_slice(bytes).map_err(|e| ImageError::Parse("image's configuration", e))?;
    if document.os != "linux" || document.architecture != "amd64" {
        let platform = format!("{}/{}", document.os, document.architecture);
        return Err(ImageError::OtherPlatform(short(&platform)));
    }
    let section = document.config.unwrap_or_default();
    Ok(RunConfig {
        env: words(section.env, "environment")?,
        entrypoint: words(section.entrypoint, "entrypoint")?,
        cmd: words(section.cmd, "command")?,
        user: word(section.user, "user")?,
        working_dir: word(section.working_dir, "working directory")?,
        stop_signal: word(section.stop_signal, "stop signal")?,
        health: health(section.healthcheck.unwrap_or_default())?,
    })
}

fn health(health: ImageHealth) -> Result<ImageHealth, ImageError> {
    Ok(ImageHealth { test: words(Some(health.test), "health check")?, ..health })
}

fn words(list: Option<Vec<String>>, what: &'static str) -> Result<Vec<String>, ImageError> {
    let list = list.unwrap_or_default();
    if list.len() > MAX_WORDS {
        return Err(ImageError::TooMany("4096 variables or arguments"));
    }
    list.into_iter().map(|text| word(Some(text), what)).collect()
}

fn word(text: Option<String>, what: &'static str) -> Result<String, ImageError> {
    let text = text.unwrap_or_default();
    if text.contains('\0') { Err(ImageError::ZeroByte(what)) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn descriptor(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{HEX}","size":7}}"#)
    }

    #[test]
    fn an_index_leads_to_the_image_for_this_machine() {
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[
            {{"mediaType":"x","digest":"sha256:{}","size":1,"platform":{{"architecture":"arm64","os":"linux"}}}},
            {{"mediaType":"x","digest":"sha256:{HEX}","size":2,"platform":{{"architecture":"amd64","os":"linux"}}}}]}}"#,
            HEX.replace('0', "f"),
        );
        let Manifest::Index(blob) = manifest(index.as_bytes()).unwrap() else { panic!("not an index") };
        assert_eq!((blob.digest.to_string(), blob.size), (format!("sha256:{HEX}"), 2));
        let other = index.replace("amd64", "riscv64");
        assert!(matches!(manifest(other.as_bytes()), Err(ImageError::NoPlatform)));
    }

    #[test]
    fn layers_keep_their_order_and_say_how_they_are_wrapped() {
        let layers = [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.diff.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
        ];
        let list = layers.map(descriptor).join(",");
        let text = format!(r#"{{"schemaVersion":2,"config":{},"layers":[{list}]}}"#, descriptor("c"));
        let Manifest::Image { layers, .. } = manifest(text.as_bytes()).unwrap() else {
            panic!("not an image")
        };
        let kinds: Vec<_> = layers.iter().map(|(_, kind)| *kind).collect();
        let each = [Compression::None, Compression::Gzip, Compression::Zstd];
        assert_eq!(kinds, [each, each].concat());
    }

    #[test]
    fn what_is_no_image_is_refused_with_its_reason() {
        let layer = |kind: &str| {
            let text = format!(r#"{{"config":{},"layers":[{}]}}"#, descriptor("c"), descriptor(kind));
            manifest(text.as_bytes()).unwrap_err()
        };
        for foreign in [
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        ] {
            let error = layer(foreign);
            assert!(
                matches!(&error, ImageError::Foreign(_)) && error.to_string().contains("build the image"),
                "{error}"
            );
        }
        let encrypted = layer("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
        assert!(encrypted.to_string().contains("skopeo copy --format oci"), "{encrypted}");
        let old = br#"{"schemaVersion":1,"name":"a/b","tag":"1","architecture":"amd64",
            "fsLayers":[{"blobSum":"sha256:00"}],"history":[{"v1Compatibility":"{}"}],"signatures":[]}"#;
        let error = manifest(old).unwrap_err();
        assert!(
            matches!(error, ImageError::Schema1) && error.to_string().contains("skopeo copy --format oci")
        );
        let many = vec![descriptor("application/vnd.oci.image.layer.v1.tar"); 128].join(",");
        let many = format!(r#"{{"config":{},"layers":[{many}]}}"#, descriptor("c"));
        assert!(matches!(manifest(many.as_bytes()), Err(ImageError::TooMany(_))));
        assert!(matches!(manifest(b"{}"), Err(ImageError::NotAnImage(_))));
        assert!(matches!(manifest(b"<html>"), Err(ImageError::Parse("manifest", _))));
        let md5 = format!(r#"{{"config":{},"layers":[]}}"#, descriptor("c")).replace("sha256", "md5");
        assert!(matches!(manifest(md5.as_bytes()), Err(ImageError::Digest("configuration"))));
    }

    #[test]
    fn a_configuration_says_what_runs() {
        let text =
            br#"{"architecture":"amd64","os":"linux","config":{"Env":["A=1"],"Cmd":["x"],"Entrypoint":null,
            "User":"app","WorkingDir":"/srv","StopSignal":"SIGQUIT","Labels":{"a":"b"},
            "Healthcheck":{"Test":["CMD","ok"],"Interval":5000000000,"Retries":2}},"rootfs":{}}"#;
        let run = config(text).unwrap();
        let health = ImageHealth { interval: 5_000_000_000, retries: 2, ..ImageHealth::default() };
        assert_eq!(run.health, ImageHealth { test: ["CMD", "ok"].map(String::from).into(), ..health });
        assert_eq!((run.env, run.cmd), (vec!["A=1".to_owned()], vec!["x".to_owned()]));
        assert_eq!(
            (run.user.as_str(), run.working_dir.as_str(), run.stop_signal.as_str()),
            ("app", "/srv", "SIGQUIT")
        );
        assert!(run.entrypoint.is_empty());
        assert_eq!(config(br#"{"architecture":"amd64","os":"linux"}"#).unwrap(), RunConfig::default());
        let arm = config(br#"{"architecture":"arm64","os":"linux"}"#).unwrap_err();
        assert_eq!(arm.to_string(), "the image is for linux/arm64, not for linux/amd64");
        let zero = config(br#"{"architecture":"amd64","os":"linux","config":{"Cmd":["a\u0000b"]}}"#);
        assert!(matches!(zero, Err(ImageError::ZeroByte("command"))));
    }
}
