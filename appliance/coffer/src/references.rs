//! Reference values as the command line names them: files, directories, releases.
//!
//! What is named is read whole or not at all: a directory with one bad file is an error, so that a verifier never
//! compares with less than its user thinks.

use std::path::{Path, PathBuf};

use cofferdam_attest::reference::{Half, MAX_BYTES, MAX_HALVES, ReferenceValues};
use cofferdam_github::Requests;
use cofferdam_protocol::Repository;

use crate::cli;
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::source::Source;
use crate::trust::named;

/// What names a release instead of a path.
const RELEASE: &str = "github:";
/// Names of a release's assets that are reference values.
const ASSET_PREFIX: &str = "reference-";
const SUFFIX: &str = ".json";
/// `measurements/` has its releases one level down.
const DEPTH: usize = 2;
/// Most entries of a directory that are looked at.
const MAX_ENTRIES: usize = 4096;

/// Reads everything that `--reference` names; with what GitHub was asked for it.
pub(crate) async fn load(names: &[String], github: &cli::Github) -> Outcome<(ReferenceValues, Requests)> {
    let mut values = ReferenceValues::default();
    let mut requests = Requests::default();
    for name in names {
        match name.strip_prefix(RELEASE) {
            Some(release) => requests = requests + from_release(&mut values, release, github).await?,
            None => from_path(&mut values, Path::new(name))?,
        }
    }
    Ok((values, requests))
}

fn from_path(values: &mut ReferenceValues, path: &Path) -> Outcome {
    if !path.is_dir() {
        return add(values, path, &files::read(path, MAX_BYTES)?);
    }
    let mut found = Vec::new();
    list(path, DEPTH, &mut found)?;
    found.sort();
    if found.is_empty() {
        return Err(Failure::usage(format!("{} holds no reference values (*.json)", path.display())));
    }
    found.iter().try_for_each(|file| add(values, file, &files::read(file, MAX_BYTES)?))
}

/// The `*.json` of a directory and, `depth - 1` levels deep, of those in it. What else could hold values is an error, and
/// a symbolic link could whatever its name is.
fn list(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Outcome {
    let failed =
        |error: std::io::Error| Failure::usage(format!("cannot read {}: {error}", directory.display()));
    for (count, entry) in std::fs::read_dir(directory).map_err(failed)?.enumerate() {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        if count >= MAX_ENTRIES || found.len() >= MAX_HALVES {
            return Err(Failure::usage(format!("{} holds too many files", directory.display())));
        }
        let path = entry.path();
        if kind.is_symlink() {
            return Err(Failure::usage(format!("{} is a symbolic link", path.display()))
                .hint("name what it points to by itself"));
        }
        let named = entry.file_name().to_string_lossy().to_ascii_lowercase().ends_with(SUFFIX);
        match (kind.is_dir(), named) {
            (true, _) if depth > 1 => list(&path, depth - 1, found)?,
            (false, true) if kind.is_file() => found.push(path),
            (true, _) => {
                return Err(
                    Failure::usage(format!("{} lies too deep", path.display())).hint("name it by itself")
                );
            }
            (false, true) => {
                return Err(Failure::usage(format!("{} is no regular file", path.display()))
                    .hint("name it by itself"));
            }
            (false, false) => {}
        }
    }
    Ok(())
}

/// The assets `reference-*.json` of `OWNER/REPO@TAG`.
async fn from_release(
    values: &mut ReferenceValues,
    release: &str,
    github: &cli::Github,
) -> Outcome<Requests> {
    let parsed = release.split_once('@').filter(|(_, tag)| !tag.is_empty() && !tag.starts_with('-'));
    let (repository, tag) = parsed
        .and_then(|(repository, tag)| Some((repository.parse::<Repository>().ok()?, tag)))
        .ok_or_else(|| Failure::usage(format!("{RELEASE}{release} is not {RELEASE}OWNER/REPO@TAG")))?;
    let source = Source::new(&repository, github)?;
    let wanted = |name: &str| name.starts_with(ASSET_PREFIX) && name.ends_with(SUFFIX);
    let assets = source.assets(tag, wanted, MAX_BYTES, MAX_HALVES).await?;
    if assets.is_empty() {
        return Err(Failure::could_not_check(format!(
            "release {tag} of {repository} has no reference values ({ASSET_PREFIX}*{SUFFIX})"
        )));
    }
    for (name, bytes) in &assets {
        // What a release holds is not the caller's doing: nothing could be checked with it.
        let place = Path::new(release).join(name);
        add(values, &place, bytes).map_err(|failure| Failure::could_not_check(failure.message))?;
    }
    Ok(source.requests())
}

fn add(values: &mut ReferenceValues, path: &Path, bytes: &[u8]) -> Outcome {
    let half = Half::parse(bytes).map_err(|error| named(path, &error))?;
    values.add(half).map_err(|error| named(path, &error))
}
