//! What decided the verdict besides the evidence, and who named it: the command line, the environment, or nobody.

use std::fmt::Write as _;

use cofferdam_attest::ear::policy_id;
use cofferdam_attest::policy::Policy;
use cofferdam_github::DEFAULT_API;
use cofferdam_protocol::json::JsonError;
use serde_json::{Value, json};

use crate::cache;
use crate::cli;
use crate::ui::printable;

/// The policy when no `--policy` names one.
const BUILT_IN: &str = "built-in";

/// One thing that is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Input {
    /// Its name in `--json`.
    member: &'static str,
    /// Its name for a person.
    words: &'static str,
    value: String,
    /// `flag`, `environment` or `default`.
    from: &'static str,
    variable: &'static str,
}

/// Everything that this run trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inputs {
    inputs: Vec<Input>,
    policy_id: String,
}

impl Inputs {
    pub(crate) fn new(trust: &cli::Trust, github: &cli::Github, policy: &Policy) -> Result<Self, JsonError> {
        let input =
            |member, words, value: String, from, variable| Input { member, words, value, from, variable };
        let path = |path: &std::path::Path| path.display().to_string();
        let given = |given: bool| if given { "flag" } else { "default" };
        let mut inputs = vec![input(
            "policy",
            "policy",
            trust.policy.as_deref().map_or(BUILT_IN.to_owned(), path),
            given(trust.policy.is_some()),
            "",
        )];
        inputs.extend(trust.root.as_deref().map(|root| input("root", "root", path(root), "flag", "")));
        let from = trust.origins.of("reference", true);
        inputs.extend(
            trust
                .reference
                .iter()
                .map(|value| input("reference", "reference values", value.clone(), from, "COFFER_REFERENCE")),
        );
        let api = github.github_api.as_ref();
        inputs.push(input(
            "github_api",
            "GitHub",
            api.map_or(DEFAULT_API.to_owned(), String::clone),
            github.origins.of("github_api", api.is_some()),
            "COFFER_GITHUB_API",
        ));
        let from = github.origins.of("github_ca", true);
        inputs.extend(github.github_ca.as_deref().map(|ca| {
            input("github_ca", "GitHub's certificate authority", path(ca), from, "COFFER_GITHUB_CA")
        }));
        inputs.extend(cache::key_place().map(|(key, named)| {
            let from = if named { "environment" } else { "default" };
            input("cache_key", "key of what GitHub said earlier", path(&key), from, "XDG_STATE_HOME")
        }));
        Ok(Self { inputs, policy_id: policy_id(policy)? })
    }

    /// What was named, a line each; what is built in is not.
    pub(crate) fn lines(&self) -> String {
        let mut text = String::new();
        for Input { words, value, from, variable, .. } in &self.inputs {
            let value = printable(value);
            let _ = match *from {
                "environment" => writeln!(text, "  trusted: {words} {value} (from {variable})"),
                "flag" => writeln!(text, "  trusted: {words} {value}"),
                _ => Ok(()),
            };
        }
        text
    }

    /// For `--json`: each with its `value` and where it is `from`; what may be repeated is a list.
    pub(crate) fn to_json(&self) -> Value {
        let mut object = serde_json::Map::new();
        for Input { member, value, from, .. } in &self.inputs {
            let entry = json!({ "value": value, "from": from });
            match *member {
                "reference" | "root" => match object.entry(*member).or_insert_with(|| json!([])) {
                    Value::Array(list) => list.push(entry),
                    other => *other = entry,
                },
                "policy" => {
                    let entry = json!({ "value": value, "from": from, "id": self.policy_id });
                    object.insert((*member).to_owned(), entry);
                }
                _ => drop(object.insert((*member).to_owned(), entry)),
            }
        }
        object.into()
    }
}
