//! `coffer init`: a first declaration and an operator's key.

use std::io::Write as _;
use std::path::Path;

use serde_json::json;

use crate::cli;
use crate::failure::{Failure, Outcome};
use crate::operator_key::OperatorKey;
use crate::ui::Ui;

pub(crate) fn run(ui: &Ui, repository: &str, endpoint: &str, file: &Path, key: &cli::OperatorKey) -> Outcome {
    if cofferdam_attest::claims::Repository::parse(repository).is_none() {
        return Err(Failure::usage(format!("{repository} is not OWNER/REPO")));
    }
    if !cofferdam_attest::claims::is_endpoint(endpoint) {
        return Err(Failure::usage(format!("{endpoint} is not HOST:PORT")));
    }
    if file.exists() {
        return Err(
            Failure::usage(format!("{} already exists", file.display())).hint("`coffer check` checks it")
        );
    }
    let (key, path, new) = OperatorKey::load_or_create(key)?;
    let text = format!(
        "version: 1\n\
         repository: {repository}\n\
         # Where clients dial.\n\
         endpoint: {endpoint}\n\
         # Who may put secrets and read status and logs.\n\
         operators:\n\
         \x20 - name: me\n\
         \x20   key: {}\n\
         # With a token the appliance publishes its release attestations.\n\
         github:\n\
         \x20 token: secret://cofferdam/github/token\n\
         services:\n\
         \x20 web:\n\
         \x20   # By digest: `skopeo inspect docker://IMAGE --format '{{{{.Digest}}}}'`\n\
         \x20   image: registry.example.org/{repository}@sha256:0000000000000000000000000000000000000000000000000000000000000000\n\
         \x20   ports: [\"443:8080\"]\n",
        key.public_line
    );
    let failed = |error: std::io::Error| Failure::failed(format!("cannot write {}: {error}", file.display()));
    let mut out = std::fs::OpenOptions::new().write(true).create_new(true).open(file).map_err(failed)?;
    out.write_all(text.as_bytes()).map_err(failed)?;
    let made = if new { "made" } else { "using" };
    ui.result(
        &format!(
            "wrote {}\n{made} the operator's key {} ({})\n",
            file.display(),
            path.display(),
            key.fingerprint
        ),
        json!({ "declaration": file, "key": path, "key_is_new": new, "fingerprint": key.fingerprint }),
    );
    Ok(())
}
