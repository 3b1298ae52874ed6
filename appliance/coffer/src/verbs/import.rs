//! `coffer import`: a declaration from a compose file, and a list of all that became of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use zeroize::Zeroizing;

use crate::cli;
use crate::failure::{Code, Failure, Outcome};
use crate::files;
use crate::import::{
    Compose, Image, Imported, Logins, MAX_COMPOSE, Remark, Secret, env_file, is_name, judge, resolve,
    text_inside,
};
use crate::operator_key::OperatorKey;
use crate::ui::{Ui, printable};
use crate::verbs::init::head;
use crate::within;

/// Where Compose looks.
const NAMES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];
/// What Compose merges into one of these, when nothing else is named.
const OVERRIDES: [&str; 4] = [
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
];
/// More files are merged by a program.
const MAX_FILES: usize = 16;
/// A file of variables.
const MAX_VARIABLES: usize = 256 << 10;
const MAX_CA: usize = 1 << 20;
/// Docker's `config.json`.
const MAX_LOGINS: usize = 1 << 20;

pub(crate) async fn run(ui: &Ui, options: &cli::Import, limit: Duration) -> Outcome {
    if options.file.exists() {
        return Err(Failure::usage(format!("{} already exists", options.file.display()))
            .hint("name another one with `--file`, or remove it"));
    }
    let paths = compose_files(options)?;
    let mut sources = Vec::new();
    let wrong = |path: &Path, why: &str| Failure::usage(format!("{}: {}", path.display(), printable(why)));
    for path in &paths {
        let bytes = files::read_or_stdin(path, MAX_COMPOSE)?;
        sources.push(String::from_utf8(bytes.to_vec()).map_err(|_| wrong(path, "it is not UTF-8"))?);
    }
    let path = paths.first().map_or(Path::new("-"), PathBuf::as_path);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty() && path != Path::new("-"));
    let folder = folder.unwrap_or(Path::new("."));
    let texts: Vec<&str> = sources.iter().map(String::as_str).collect();
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    let compose = Compose::read(&texts, folder, variables(options, folder)?)
        .map_err(|why| Failure::usage(format!("{}: {}", names.join(", "), printable(&why))))?;
    let logins = logins(options)?;
    let resolved = digests(ui, options, &compose, &logins, limit).await?;
    let mut imported = compose.convert(&resolved, &logins);
    let (key, key_path, new) = OperatorKey::load_or_create(&options.key)?;
    let text = head(&options.repository, &options.endpoint, &key.public_line) + &imported.body;
    judge(&text, &mut imported);
    if let Some(secrets) = &options.secrets {
        files::write_new(secrets, secrets_file(&imported.secrets).as_bytes())?;
    }
    let failed =
        |error: std::io::Error| Failure::failed(format!("cannot write {}: {error}", options.file.display()));
    let mut out =
        std::fs::OpenOptions::new().write(true).create_new(true).open(&options.file).map_err(failed)?;
    out.write_all(text.as_bytes()).map_err(failed)?;
    if new {
        ui.note(&format!("made the operator's key {} ({})", key_path.display(), key.fingerprint()));
    }
    report(ui, options, &paths, &imported);
    match imported.decide.len() {
        0 => Ok(()),
        // The one object that `--json` prints says it already.
        count => Err(Failure::new(Code::Usage, "there is something to decide")
            .rendered(format!("error: {count} left for you to decide"))
            .hint(format!("edit {}, then `coffer check {0}`", options.file.display()))),
    }
}

fn compose_files(options: &cli::Import) -> Outcome<Vec<PathBuf>> {
    if options.compose.len() > MAX_FILES {
        return Err(Failure::usage(format!("more than {MAX_FILES} compose files")));
    }
    if !options.compose.is_empty() {
        return Ok(options.compose.clone());
    }
    let there = |names: [&str; 4]| names.iter().map(PathBuf::from).find(|path| path.exists());
    let first = there(NAMES).ok_or_else(|| {
        Failure::usage("there is no compose file in this directory")
            .hint(format!("it may be one of {}", NAMES.join(", ")))
    })?;
    Ok(std::iter::once(first).chain(there(OVERRIDES)).collect())
}

/// What fills `${…}`: files that are named, or `.env`. Never the environment of whoever imports: nobody could tell later what it was.
fn variables(options: &cli::Import, folder: &Path) -> Outcome<BTreeMap<String, String>> {
    let wrong = |path: &Path, why: String| Failure::usage(format!("{}: {}", path.display(), printable(&why)));
    let usual = folder.join(".env");
    if options.env_file.is_empty() {
        if usual.symlink_metadata().is_err() {
            return Ok(BTreeMap::new());
        }
        // It comes with the compose file, from whoever wrote that.
        let read = folder
            .canonicalize()
            .map_err(|error| error.to_string())
            .and_then(|folder| text_inside(&folder, ".env", MAX_VARIABLES as u64))
            .and_then(|text| env_file(&text, &BTreeMap::new(), is_name));
        return Ok(read.map_err(|why| wrong(&usual, why))?.into_iter().collect());
    }
    let mut variables = BTreeMap::new();
    for path in &options.env_file {
        let text = files::read_text(path, MAX_VARIABLES)?;
        variables.extend(env_file(&text, &variables, is_name).map_err(|why| wrong(path, why))?);
    }
    Ok(variables)
}

/// As whom registries are asked: nobody, unless the file is named.
fn logins(options: &cli::Import) -> Outcome<Logins> {
    let Some(path) = &options.docker_config else { return Ok(Logins::default()) };
    let json = files::read_secret(path, MAX_LOGINS)?;
    Logins::read(&json).map_err(|why| Failure::usage(format!("{}: {why}", path.display())))
}

async fn digests(
    ui: &Ui,
    options: &cli::Import,
    compose: &Compose,
    logins: &Logins,
    limit: Duration,
) -> Outcome<BTreeMap<Image, Result<String, String>>> {
    let mut resolved = BTreeMap::new();
    if options.offline {
        return Ok(resolved);
    }
    let ca = options.registry_ca.as_deref().map(|path| files::read_text(path, MAX_CA)).transpose()?;
    for image in compose.images() {
        ui.note(&format!("asking for {}", printable(&image.to_string())));
        let found = within(limit, async { Ok(resolve(&image, ca.as_deref(), logins).await) }).await;
        let found = found.unwrap_or_else(|failure| Err(failure.message));
        resolved.insert(image, found);
    }
    Ok(resolved)
}

/// A line for each secret; one whose value is not known is a comment.
fn secrets_file(secrets: &[Secret]) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::new());
    for secret in secrets {
        let name = secret.reference.path();
        match &secret.value {
            Some(value) if !value.contains('\'') => {
                let _ = writeln!(out, "{name}='{}'", value.as_str());
            }
            Some(value) => {
                let quoted = value.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$");
                let _ = writeln!(out, "{name}=\"{quoted}\"");
            }
            None => {
                let _ = writeln!(out, "# {name}=");
            }
        }
    }
    out
}

fn report(ui: &Ui, options: &cli::Import, paths: &[PathBuf], imported: &Imported) {
    let secrets: Vec<_> = imported.secrets.iter().map(|secret| &secret.reference).collect();
    let mut text = format!("wrote {}: {}\n", options.file.display(), imported.services.join(", "));
    if let [first, further @ ..] = paths
        && !further.is_empty()
    {
        let further: Vec<_> = further.iter().map(|path| path.display().to_string()).collect();
        let _ = writeln!(
            text,
            "from {}, with {} merged into it; lines are those of the first",
            first.display(),
            further.join(", ")
        );
    }
    for (title, remarks) in [
        ("changed", &imported.changed),
        ("left out", &imported.dropped),
        ("for you to decide", &imported.decide),
    ] {
        if !remarks.is_empty() {
            let _ = writeln!(text, "\n{title}");
        }
        for Remark { line, what } in remarks {
            let place = if *line == 0 { String::new() } else { format!("line {line}: ") };
            let _ = writeln!(text, "  {place}{}", printable(what));
        }
    }
    if !secrets.is_empty() {
        let _ = writeln!(text, "\nsecrets to put");
        secrets.iter().for_each(|reference| {
            let _ = writeln!(text, "  {}", reference.path());
        });
        let repository = &options.repository;
        let _ = match &options.secrets {
            Some(path) => {
                writeln!(text, "  with `coffer secret put {repository} --env-file {}`", path.display())
            }
            None => writeln!(
                text,
                "  `--secrets FILE` writes their values for `coffer secret put --env-file FILE`"
            ),
        };
    }
    let _ = writeln!(text, "\nservices reach nothing outside without `egress: [\"api.example.org:443\"]`");
    ui.result(
        &text,
        json!({
            "declaration": options.file, "services": imported.services, "changed": imported.changed,
            "dropped": imported.dropped, "decide": imported.decide, "secrets": secrets,
        }),
    );
}
