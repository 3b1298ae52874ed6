//! From a compose file to a declaration: what is kept, what is changed, what is left out and why.
//!
//! Nothing here decides what a declaration may say: what was converted is checked by [`cofferdam_declaration`], and what that refuses is
//! what a person has to decide. A compose file is a stranger's: it reads no file outside its own directory, and what looks like a secret is
//! never written into the declaration.

mod convert;
mod images;
mod logins;
mod merge;
mod mounts;
mod secrets;
mod values;
mod variables;
mod yaml;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use cofferdam_declaration::Declaration;
use serde::Serialize;

pub(crate) use images::{Image, resolve};
pub(crate) use logins::Logins;
pub(crate) use secrets::Secret;
pub(crate) use variables::{env_file, is_name};

/// A compose file is a page or two.
pub(crate) const MAX_COMPOSE: usize = 1 << 20;

/// One thing that was done, at its line of the compose file; line 0 is the whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Remark {
    pub(crate) line: usize,
    pub(crate) what: String,
}

/// What was made of a compose file.
#[derive(Debug)]
pub(crate) struct Imported {
    /// `volumes`, `networks` and `services` as a declaration has them, and the state that volumes need.
    pub(crate) body: String,
    pub(crate) services: Vec<String>,
    pub(crate) changed: Vec<Remark>,
    pub(crate) dropped: Vec<Remark>,
    pub(crate) decide: Vec<Remark>,
    pub(crate) secrets: Vec<Secret>,
}

/// A compose file that was read, before anything of it is converted.
pub(crate) struct Compose {
    root: yaml::Node,
    folder: PathBuf,
    variables: BTreeMap<String, String>,
    project: String,
}

impl Compose {
    /// Reads compose files, of which each is merged into those before it. `folder` is the first one's directory; `variables` fill its `${…}`.
    ///
    /// # Errors
    ///
    /// A sentence.
    pub(crate) fn read(
        sources: &[&str],
        folder: &Path,
        variables: BTreeMap<String, String>,
    ) -> Result<Self, String> {
        let mut read = sources.iter().map(|source| yaml::read(source));
        let first = read.next().unwrap_or_else(|| Err("there is no file".to_owned()))?;
        // Lines are those of the first file.
        let root = read
            .try_fold(first, |all, further| Ok::<_, String>(merge::merge(all, further?.without_lines())))?;
        if root.get("services").is_none_or(|services| services.entries().is_empty()) {
            return Err("it has no `services`".to_owned());
        }
        let folder = folder.canonicalize().map_err(|error| format!("{}: {error}", folder.display()))?;
        let named = root.get("name").and_then(yaml::Node::as_text).map(str::to_owned);
        let directory = || folder.file_name().map(|name| name.to_string_lossy().into_owned());
        let project = convert::name(&named.or_else(directory).unwrap_or_default(), "app");
        Ok(Self { root, folder, variables, project })
    }

    /// The images that it names without a digest, each once.
    pub(crate) fn images(&self) -> Vec<Image> {
        let named = convert::images(&self.root, &self.variables);
        named.into_iter().filter(|image| image.pinned().is_none()).collect()
    }

    /// Converts it, with what is known of its images and registries.
    pub(crate) fn convert(
        &self,
        resolved: &BTreeMap<Image, Result<String, String>>,
        logins: &Logins,
    ) -> Imported {
        convert::compose(self, resolved, logins)
    }
}

/// Adds what a declaration's reader says of the whole: what it refuses is for a person to decide.
pub(crate) fn judge(text: &str, imported: &mut Imported) {
    if let Err(diagnostics) = Declaration::parse(text.as_bytes()) {
        let said = diagnostics.iter().map(|one| {
            let hint = one.hint.as_ref().map(|hint| format!(": {hint}")).unwrap_or_default();
            Remark { line: 0, what: format!("line {} of the declaration: {}{hint}", one.line, one.message) }
        });
        imported.decide.extend(said);
    }
}

/// A file that a compose file names, if it lies in the compose file's own directory.
fn inside(folder: &Path, path: &str) -> Result<PathBuf, String> {
    let full =
        folder.join(path).canonicalize().map_err(|error| format!("`{path}` cannot be read: {error}"))?;
    if !full.starts_with(folder) {
        return Err(format!("`{path}` lies outside of the compose file's directory and was not read"));
    }
    Ok(full)
}

/// The text of such a file.
pub(crate) fn text_inside(folder: &Path, path: &str, limit: u64) -> Result<String, String> {
    read_bounded(&inside(folder, path)?, path, limit)
}

/// The text of a file that is called `name` where it is named.
fn read_bounded(full: &Path, name: &str, limit: u64) -> Result<String, String> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::FileTooLarge => format!("`{name}` has more than {} KiB", limit >> 10),
        _ => format!("`{name}` cannot be read: {error}"),
    };
    // Before it is opened, since opening a pipe waits for its other end.
    if !full.metadata().map_err(failed)?.is_file() {
        return Err(format!("`{name}` is no file"));
    }
    let file = File::open(full).map_err(failed)?;
    let mut bytes = Vec::new();
    cofferdam_protocol::read::bounded_into(file, limit, &mut bytes).map_err(failed)?;
    String::from_utf8(bytes).map_err(|_| format!("`{name}` is not UTF-8"))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
