//! `coffer check`: a declaration, with every mistake at its place.

use std::path::Path;

use cofferdam_declaration::{Declaration, MAX_BYTES, Service, StateSource, Volume};
use serde_json::{Value, json};

use crate::failure::{Code, Failure, Outcome};
use crate::files;
use crate::ui::Ui;

pub(crate) fn run(ui: &Ui, path: &Path, schema: bool) -> Outcome {
    if schema {
        let text = format!("{:#}\n", cofferdam_declaration::json_schema());
        ui.result(&text, cofferdam_declaration::json_schema());
        return Ok(());
    }
    let bytes = files::read(path, MAX_BYTES)?;
    match Declaration::parse(&bytes) {
        Ok(declaration) => {
            let services: Vec<&str> =
                declaration.services.iter().map(|service| service.name.as_str()).collect();
            let text = format!(
                "{}: {} with {} service{}: {}\nstate: {}\n",
                path.display(),
                declaration.repository,
                services.len(),
                if services.len() == 1 { "" } else { "s" },
                services.join(", "),
                match declaration.state {
                    StateSource::Memory => "in memory only, lost at power-off",
                    StateSource::Operator => "on the state disk, opened by an operator at each boot",
                }
            );
            let volumes = volumes(&declaration);
            let (repository, state) = (declaration.repository.to_string(), declaration.state);
            ui.result(
                &(text + &volumes),
                json!({
                    "valid": true, "repository": repository, "services": services, "state": state,
                    "volumes": declaration.volumes,
                }),
            );
            Ok(())
        }
        Err(diagnostics) => {
            let rendered = diagnostics.render(&path.display().to_string());
            if ui.json {
                let found: Vec<Value> = diagnostics
                    .iter()
                    .map(|one| json!({ "message": one.message, "line": one.line, "column": one.column, "hint": one.hint }))
                    .collect();
                ui.result("", json!({ "valid": false, "errors": found }));
            }
            Err(Failure::new(Code::Usage, "the declaration is not valid").rendered(rendered))
        }
    }
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
