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

mod change;
mod composed;
mod depends;
mod diagnostics;
mod egress;
mod fields;
mod health;
mod keys;
mod limits;
mod model;
mod on_change;
mod profile;
mod read;
mod read_certificate;
mod read_configs;
mod read_follow;
mod read_harmless;
mod read_limits;
mod read_network;
mod read_ports;
mod read_service;
mod read_volumes;
mod rules;
mod schema;
mod shell_words;
mod value;
mod variables;
mod yaml;

pub use change::{Change, Changed};
pub use cofferdam_protocol::{
    Branch, Endpoint, HttpUrl, HttpsUrl, ImageReference, OperatorKey, RegistryHost, Repository,
    SECRET_SCHEME, SecretRef, SignerKey,
};
pub use composed::{Part, Value};
pub use depends::{Condition, Dependency};
pub use diagnostics::{Diagnostic, Diagnostics, Level, MAX_DIAGNOSTICS};
pub use egress::{Carries, Egress, MAX_EGRESS, MAX_EGRESS_PORTS, is_destination};
pub use health::{Healthcheck, OnUnhealthy, Probe};
pub use keys::unsupported_in_service;
pub use limits::{
    Capability, DEFAULT_PIDS, DEFAULT_SHM_SIZE, LEAST_MEMORY, Limits, MAX_NOFILE, MAX_PIDS, Ulimit, Ulimits,
};
pub use model::{
    Attestation, Auth, Certificate, ConfigFile, DEFAULT_STOP_GRACE_PERIOD, Declaration, Follow, Github,
    KeyServer, Login, Membership, Operator, Port, Registry, Restart, SecretFile, Service, Speaks,
    StateSource, Token, Volume, VolumeMount, images_volume,
};
pub use on_change::OnChange;
pub use profile::{MAX_PROFILE_PATHS, Paths, Profile, known_system_calls};
pub use read::MAX_SERVICES;
pub use read_configs::{MAX_CONFIG, MAX_CONFIGS, MAX_CONFIGS_TOTAL};
pub use read_volumes::{
    DEFAULT_VOLUME_SIZE, LEAST_VOLUME_SIZE, MAX_VOLUMES, MOST_VOLUME_SIZE, reserved_path,
};
pub use rules::APPLIANCE_NAMESPACE;
pub use schema::{SCHEMA_ID, json_schema};
pub use value::{IdOrName, Signal, User};
pub use yaml::{MAX_BYTES, MAX_DEPTH};

/// What there is to say about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// What it declares, or everything that is wrong with it, in the order of the file.
    pub declaration: Result<Declaration, Diagnostics>,
    /// Warnings and notes in the order of the file: what has no effect here, and what hardly does what its author means.
    pub remarks: Vec<Diagnostic>,
}

impl Declaration {
    /// Reads the bytes of a declaration.
    ///
    /// # Errors
    /// Everything that is wrong with them, in the order of the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, Diagnostics> {
        Self::check(bytes).declaration
    }

    /// Reads the bytes of a declaration, for somebody who can still change them.
    pub fn check(bytes: &[u8]) -> Checked {
        let source = match yaml::text(bytes) {
            Ok(source) => source,
            Err(diagnostics) => return Checked { declaration: Err(diagnostics), remarks: Vec::new() },
        };
        let mut errors = diagnostics::Collector::new(source);
        let declaration = match yaml::read(source, &mut errors) {
            // What was refused in the structure would only be reported again as missing.
            Some(mut root) if errors.is_empty() => {
                variables::fill(&mut root, &mut errors);
                read::declaration(&root, &mut errors)
            }
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
        let remarks = errors.take_remarks();
        let declaration = match (declaration, errors.finish()) {
            (Some(declaration), None) => Ok(declaration),
            (_, Some(diagnostics)) => Err(diagnostics),
            // Whoever returns nothing has said why; should that ever fail, the answer is still no.
            (None, None) => Err(Diagnostics::single(
                diagnostics::Place { line: 1, column: 1, width: 1 },
                "the declaration could not be read".into(),
                "please report this file",
            )),
        };
        Checked { declaration, remarks }
    }
}
