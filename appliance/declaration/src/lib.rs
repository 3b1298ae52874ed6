//! The declaration of an appliance: the YAML file that says what it runs, `cofferdam.yaml`.
//!
//! This crate turns the exact bytes of that file into a [`Declaration`], or says at which line and column
//! it is wrong and what to write instead. It does no I/O, starts nothing and fills in nothing from outside: the same
//! bytes give the same answer in the appliance, on an operator's machine and in a test. It takes Compose's
//! words where Compose has one, and refuses every Compose key it does not honour, with the reason.
//!
//! Measuring comes first and is not this crate's work: the digest of the bytes is in the event log before anything here
//! looks at them. The words that other rooms share (repository, endpoint, references, …) are `cofferdam_protocol`'s.
//!
//! ```
//! use cofferdam_declaration::Declaration;
//!
//! let wrong = Declaration::parse(b"version: 1\nservises: {}\n").unwrap_err();
//! assert!(wrong.to_string().contains("did you mean `services`?"));
//! ```

mod diagnostics;
mod egress;
mod fields;
mod keys;
mod limits;
mod model;
mod read;
mod read_limits;
mod read_network;
mod read_service;
mod read_volumes;
mod rules;
mod schema;
mod value;
mod yaml;

pub use cofferdam_protocol::{
    Endpoint, HttpUrl, HttpsUrl, ImageReference, OperatorKey, RegistryHost, Repository, SECRET_SCHEME,
    SecretRef,
};
pub use diagnostics::{Diagnostic, Diagnostics, MAX_DIAGNOSTICS};
pub use egress::{Carries, Egress, MAX_EGRESS, MAX_EGRESS_PORTS, is_destination};
pub use limits::{
    Capability, DEFAULT_PIDS, DEFAULT_SHM_SIZE, LEAST_MEMORY, Limits, MAX_NOFILE, MAX_PIDS, Ulimit, Ulimits,
};
pub use model::{
    Attestation, Auth, DEFAULT_STOP_GRACE_PERIOD, Declaration, Github, KeyServer, Login, Membership,
    Operator, Port, Registry, Restart, SecretFile, Service, StateSource, Token, Value, Volume, VolumeMount,
};
pub use read::MAX_SERVICES;
pub use read_volumes::{
    DEFAULT_VOLUME_SIZE, LEAST_VOLUME_SIZE, MAX_VOLUMES, MOST_VOLUME_SIZE, reserved_path,
};
pub use rules::APPLIANCE_NAMESPACE;
pub use schema::json_schema;
pub use value::{IdOrName, Signal, User};
pub use yaml::{MAX_BYTES, MAX_DEPTH};

impl Declaration {
    /// Reads the bytes of a declaration.
    ///
    /// # Errors
    /// Everything that is wrong with them, in the order of the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, Diagnostics> {
        let source = yaml::text(bytes)?;
        let mut errors = diagnostics::Collector::new(source);
        let declaration = match yaml::read(source, &mut errors) {
            // What was refused in the structure would only be reported again as missing.
            Some(root) if errors.is_empty() => read::declaration(&root, &mut errors),
            Some(_) => None,
            None => {
                if errors.is_empty() {
                    errors.error(
                        diagnostics::Place { line: 1, column: 1, width: 1 },
                        "the declaration is empty",
                    );
                }
                None
            }
        };
        match (declaration, errors.finish()) {
            (Some(declaration), None) => Ok(declaration),
            (_, Some(diagnostics)) => Err(diagnostics),
            // Whoever returns nothing has said why; should that ever fail, the answer is still no.
            (None, None) => Err(Diagnostics::single(
                diagnostics::Place { line: 1, column: 1, width: 1 },
                "the declaration could not be read".into(),
                "please report this file",
            )),
        }
    }
}
