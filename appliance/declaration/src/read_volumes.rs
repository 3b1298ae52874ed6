//! Reading volumes: those that the file declares, and where a service sees them.
//!
//! A volume is what it is in Compose: a directory that outlives its services, with a name by which they share it. Here each has a size
//! of its own and a place on the state disk, so what Compose leaves to a driver is decided.

use std::collections::BTreeSet;

use cofferdam_protocol::{WordError, is_name, shorten};

use crate::diagnostics::{Collector, Place};
use crate::fields::{self, Fields};
use crate::keys;
use crate::limits::parse_size;
use crate::model::{Volume, VolumeMount};
use crate::read::{bounded, collect};
use crate::read_harmless;
use crate::read_limits::number;
use crate::read_service::{TAKEN, absolute, below, path};
use crate::yaml::{Entry, Kind, Node};

/// Most volumes of a declaration: the vault hands the keys of all of them over in one page.
pub const MAX_VOLUMES: usize = 32;
/// Bytes of a volume that says nothing.
pub const DEFAULT_VOLUME_SIZE: u64 = 1 << 30;
/// Fewest bytes of one: what checks and encrypts it takes a few MiB of that.
pub const LEAST_VOLUME_SIZE: u64 = 64 << 20;
/// Most bytes of one.
pub const MOST_VOLUME_SIZE: u64 = 1 << 40;
/// Volumes are made of pieces of so many bytes.
const UNIT: u64 = 1 << 20;

/// Where a volume would hide what the appliance puts there at each start, beside [`TAKEN`].
const FILES: [&str; 4] = ["/etc", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
const DECLARE: &str =
    "declare a volume beside `services`, `volumes: {data: {}}`, and write data:/path/in/the/container";

/// Whether no volume goes to this path of a container, because the appliance puts something of its own there.
pub fn reserved_path(path: &str) -> bool {
    matches!(path, "/" | "/run") || FILES.contains(&path) || TAKEN.iter().any(|taken| below(path, taken))
}

/// A service's volume, with its place.
pub(crate) type Mounted = (VolumeMount, Place);

/// Reads the file's own `volumes`: the names, each with nothing or a size.
pub(crate) fn declared(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<Volume>> {
    let entries = fields::map(node, "`volumes`", errors)?;
    bounded(node, entries.len(), MAX_VOLUMES, "volumes", errors)?;
    collect(entries.iter().map(|Entry { key, place, value }| {
        let nothing = matches!(&value.kind, Kind::Scalar { text, plain: true, .. } if fields::is_null(text));
        let size = if nothing { Some(DEFAULT_VOLUME_SIZE) } else { size(value, errors) };
        if !is_name(key) {
            errors.error(
                *place,
                "a volume's name is 1 to 63 of a-z 0-9 . _ - and starts with a letter or a digit",
            );
            return None;
        }
        Some(Volume { name: key.clone(), size: size? })
    }))
}

fn size(node: &Node, errors: &mut Collector<'_>) -> Option<u64> {
    let fields = Fields::open(node, "a volume", keys::VOLUME, keys::UNSUPPORTED_VOLUME, errors)?;
    let driver = fields.get("driver").map_or(Some(()), |node| {
        // Docker's own driver, which is what a volume without one has.
        if fields::text(node, "`driver`", errors)? == "local" {
            return Some(());
        }
        errors.hinted(
            node.place,
            "every volume is a part of the state disk",
            "remove it, or write `driver: local`",
        );
        None
    });
    let named = read_harmless::named(&fields, "volume", errors);
    driver?;
    named?;
    fields.get("size").map_or(Some(DEFAULT_VOLUME_SIZE), |node| number(node, "`size`", parse_volume, errors))
}

/// How much of the state disk images are kept in.
pub(crate) fn images(node: &Node, errors: &mut Collector<'_>) -> Option<u64> {
    number(node, "`images`", parse_volume, errors)
}

/// A size that a volume can have, as whole MiB: what is between two is the larger one.
fn parse_volume(text: &str) -> Result<u64, WordError> {
    let bytes = parse_size(text)?;
    if !(LEAST_VOLUME_SIZE..=MOST_VOLUME_SIZE).contains(&bytes) {
        let (least, most) = (LEAST_VOLUME_SIZE >> 20, MOST_VOLUME_SIZE >> 40);
        return Err(WordError::new(format!("a volume has {least} MiB to {most} TiB"))
            .hint("for example 2gb; it cannot be changed later, and takes that much of the state disk"));
    }
    Ok(bytes.next_multiple_of(UNIT))
}

/// Reads where a service sees volumes.
pub(crate) fn mounts(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<Mounted>> {
    let items = fields::list(node, "`volumes`", errors)?;
    bounded(node, items.len(), MAX_VOLUMES, "volumes", errors)?;
    let mut targets = BTreeSet::new();
    collect(items.iter().map(|item| {
        let (mount, place) = match &item.kind {
            Kind::Map(_) => long(item, errors)?,
            _ => (short(item, errors)?, item.place),
        };
        let VolumeMount { target, .. } = &mount;
        if reserved_path(target) {
            let hint = "a volume goes to a directory of the program's own, for example /data";
            errors.hinted(place, "the appliance mounts this path itself", hint);
            return None;
        }
        if !targets.insert(target.clone()) {
            errors.error(place, format!("a second volume goes to {}", shorten(target, 64)));
            return None;
        }
        Some((mount, item.place))
    }))
}

/// `NAME:/target`, with `:ro` or `:rw`.
fn short(node: &Node, errors: &mut Collector<'_>) -> Option<VolumeMount> {
    let text = fields::text(node, "a volume", errors)?;
    let mut refuse = |message: &str, hint: &str| {
        errors.hinted(node.place, message, hint);
        None
    };
    if text.starts_with(['.', '/', '~', '\\']) && text.contains(':') {
        return refuse(
            "a directory of the host is not supported: a service never sees the host's files",
            &format!("{DECLARE}; what never changes belongs into the image"),
        );
    }
    let (source, target, mode) = match text.split(':').collect::<Vec<_>>().as_slice() {
        [_] => {
            return refuse(
                "a volume without a name is not supported: nobody would find its content again",
                &format!("{DECLARE}; for files that may be lost use `tmpfs`"),
            );
        }
        [source, target] => (*source, *target, "rw"),
        [source, target, mode] => (*source, *target, *mode),
        _ => return refuse("not a volume", "write NAME:/target or NAME:/target:ro"),
    };
    let read_only = match mode {
        "ro" => true,
        "rw" => false,
        "nocopy" => {
            return refuse(
                "`nocopy` is not supported: an empty volume takes over what the image has at its target",
                "remove it",
            );
        }
        _ => {
            return refuse(
                "not a mode of a volume",
                "write NAME:/target, or NAME:/target:ro for reading alone",
            );
        }
    };
    // With a slash at its end it is the same directory to Compose.
    let target = target.strip_suffix('/').filter(|target| !target.is_empty()).unwrap_or(target);
    let target = absolute(target.to_owned(), node.place, "the volume's target", errors)?;
    Some(VolumeMount { source: source.to_owned(), target, read_only, exec: false })
}

fn long(node: &Node, errors: &mut Collector<'_>) -> Option<Mounted> {
    let what = "a service's volume";
    let fields = Fields::open(node, what, keys::VOLUME_MOUNT, keys::UNSUPPORTED_VOLUME_MOUNT, errors)?;
    let kind = fields.require("type", "write `type: volume`", errors).and_then(|node| kind(node, errors));
    let source = fields
        .require("source", "write `source: NAME`, a volume that is declared beside `services`", errors)
        .and_then(|node| fields::text(node, "`source`", errors));
    let target = fields
        .require("target", "write `target: /path/in/the/container`", errors)
        .and_then(|node| Some((path(node, "`target`", errors)?, node.place)));
    let mut flag = |key: &'static str| {
        fields.get(key).map_or(Some(false), |node| fields::boolean(node, &format!("`{key}`"), errors))
    };
    let (read_only, exec) = (flag("read_only"), flag("exec"));
    let options = fields.get("volume").map_or(Some(()), |node| {
        Fields::open(node, "`volume`", &[], keys::UNSUPPORTED_VOLUME_OPTIONS, errors).map(drop)
    });
    kind?;
    options?;
    let (target, place) = target?;
    Some((VolumeMount { source: source?, target, read_only: read_only?, exec: exec? }, place))
}

fn kind(node: &Node, errors: &mut Collector<'_>) -> Option<()> {
    let text = fields::text(node, "`type`", errors)?;
    let (message, hint) = match text.as_str() {
        "volume" => return Some(()),
        "bind" => (
            "the type `bind` is not supported: a service never sees the host's files".to_owned(),
            format!("{DECLARE}; what never changes belongs into the image"),
        ),
        "tmpfs" => {
            ("the type `tmpfs` is not supported here".to_owned(), "name the path under `tmpfs`".to_owned())
        }
        other => {
            (format!("`{}` is not a type of volume", shorten(other, 40)), "write `type: volume`".to_owned())
        }
    };
    errors.hinted(node.place, message, hint);
    None
}
