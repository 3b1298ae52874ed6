//! Compose files as people write them, with what `coffer check` says of each: `tests/compose/NAME.yaml` and `NAME.txt`.
//!
//! They are made up in the style of the apps that they are named after. Each has the lines that a declaration needs and no compose
//! file has (`repository`, `endpoint`, `operators`), and is otherwise as a person would bring it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};

use cofferdam_declaration::{Declaration, json_schema};

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compose");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(files.len() >= 12);
    files
}

fn verdict(bytes: &[u8]) -> String {
    let checked = Declaration::check(bytes);
    let mut out = match &checked.declaration {
        Ok(declaration) => {
            let services = declaration.services.iter().map(|service| service.name.as_str());
            format!("accepted: {}\n", services.collect::<Vec<_>>().join(", "))
        }
        Err(_) => "refused\n".to_owned(),
    };
    for remark in &checked.remarks {
        out = out + "\n" + &remark.render("compose.yaml");
    }
    if let Err(errors) = &checked.declaration {
        out = out + "\n" + &errors.render("compose.yaml");
    }
    out
}

#[test]
fn compose_files_get_the_verdict_that_is_written_beside_them() {
    let mut wrong = Vec::new();
    for file in files() {
        let found = verdict(&std::fs::read(&file).unwrap());
        let written = std::fs::read_to_string(file.with_extension("txt")).unwrap_or_default();
        if found != written {
            wrong.push(format!("{}:\n{found}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_schema_takes_the_compose_files_that_are_accepted() {
    let schema = jsonschema::validator_for(&json_schema()).unwrap();
    let mut accepted = 0;
    for file in files() {
        let text = std::fs::read_to_string(&file).unwrap();
        if Declaration::parse(text.as_bytes()).is_err() {
            continue;
        }
        accepted += 1;
        let options = serde_saphyr::options! { strict_booleans: true };
        let json: serde_json::Value = serde_saphyr::from_str_with_options(&text, options).unwrap();
        if let Err(error) = schema.validate(&json) {
            panic!("{}: {error} at {}", file.display(), error.instance_path());
        }
    }
    assert!(accepted >= 5, "{accepted}");
}
