//! `coffer check`: a declaration, with every mistake at its place.

use std::path::Path;

use cofferdam_declaration::{
    Declaration, Diagnostic, Diagnostics, MAX_BYTES, Service, SignerKey, StateSource, Volume,
};
use serde_json::{Value, json};

use crate::failure::{Code, Failure, Outcome};
use crate::files;
use crate::ui::{Ui, printable};

pub(crate) fn run(ui: &Ui, path: &Path, schema: bool) -> Outcome {
    if schema {
        let text = format!("{:#}\n", cofferdam_declaration::json_schema());
        ui.result(&text, cofferdam_declaration::json_schema());
        return Ok(());
    }
    let bytes = files::read_or_stdin(path, MAX_BYTES)?;
    let name = if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() };
    let checked = Declaration::check(&bytes);
    let remarks: String = checked.remarks.iter().map(|remark| remark.render(&name) + "\n").collect();
    let shown: Vec<Value> = checked.remarks.iter().map(json).collect();
    match checked.declaration {
        Ok(declaration) => {
            if !remarks.is_empty() {
                ui.note(remarks.trim_end());
            }
            let services: Vec<&str> =
                declaration.services.iter().map(|service| service.name.as_str()).collect();
            let (state, kept) = match declaration.state {
                StateSource::Memory => ("memory", "in memory only, lost at power-off"),
                StateSource::Operator => {
                    ("operator", "on the state disk, opened by an operator at each boot")
                }
                StateSource::Peer(_) => ("peer", "on the state disk, opened by key servers at each boot"),
            };
            let text = format!(
                "{}: {} with {} service{}: {}\nstate: {}\n",
                name,
                declaration.repository,
                services.len(),
                if services.len() == 1 { "" } else { "s" },
                services.join(", "),
                kept
            );
            let (follow, volumes) = (follow(&declaration), volumes(&declaration));
            let signers: Vec<String> = declaration.signers.iter().map(SignerKey::name).collect();
            let followed = declaration
                .follow
                .as_ref()
                .map(|follow| json!({ "branch": follow.branch, "interval_s": follow.interval.as_secs(), "apply": follow.apply }));
            let repository = declaration.repository.to_string();
            ui.result(
                &(text + &follow + &volumes),
                json!({
                    "valid": true, "repository": repository, "services": services, "state": state,
                    "signers": signers, "follow": followed,
                    "volumes": declaration.volumes, "remarks": shown,
                }),
            );
            Ok(())
        }
        Err(diagnostics) => {
            let remarks = if ui.quiet { String::new() } else { remarks };
            let rendered = remarks + &diagnostics.render(&name);
            if ui.json {
                let found: Vec<Value> = diagnostics.iter().map(json).collect();
                ui.result("", json!({ "valid": false, "errors": found, "remarks": shown }));
            }
            Err(Failure::new(Code::Usage, "the declaration is not valid").rendered(rendered))
        }
    }
}

/// The failure of a declaration with mistakes, each at its place.
pub(crate) fn not_valid(mistakes: &Diagnostics, name: &str) -> Failure {
    Failure::new(Code::Usage, "the declaration is not valid").rendered(mistakes.render(name))
}

/// The same for a verb whose result that is: a script gets the mistakes as from `coffer check`.
pub(crate) fn refused(ui: &Ui, mistakes: &Diagnostics, name: &str) -> Failure {
    if ui.json {
        let found: Vec<Value> = mistakes.iter().map(json).collect();
        ui.result("", json!({ "valid": false, "errors": found }));
    }
    not_valid(mistakes, name)
}

fn json(one: &Diagnostic) -> Value {
    json!({ "level": one.level, "message": one.message, "line": one.line, "column": one.column, "hint": one.hint })
}

/// Which branch is followed, and what counts there.
fn follow(declaration: &Declaration) -> String {
    let Some(follow) = &declaration.follow else { return String::new() };
    let signers: Vec<String> = declaration.signers.iter().map(|signer| printable(&signer.name())).collect();
    let applies =
        if follow.apply { "it is applied while the appliance runs" } else { "it is said and not applied" };
    format!(
        "follow: branch {}, every {} s; its head counts when {} signed it with their SSH key,\n\
         \x20 and {applies}\n\
         \x20 (what is merged on GitHub's pages is signed by GitHub: put a signed commit on top)\n",
        follow.branch,
        follow.interval.as_secs(),
        signers.join(" or ")
    )
}

/// A line for each volume, with the services that see it.
fn volumes(declaration: &Declaration) -> String {
    let line = |volume: &Volume| {
        let sees = |service: &&Service| service.volumes.iter().any(|mount| mount.source == volume.name);
        let services = declaration.services.iter().filter(sees).map(|service| service.name.as_str());
        let services = services.collect::<Vec<_>>().join(", ");
        let services = if services.is_empty() { "no service".to_owned() } else { services };
        format!("volume {}: {} MiB, for {services}\n", volume.name, volume.size >> 20)
    };
    declaration.volumes.iter().map(line).collect()
}
