//! How a case of `policy/vectors/evidence.json` is made: a JSON Patch on the honest input, then steps on the document's bytes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use serde_json::Value;

/// `input` after the operations of a JSON Patch (RFC 6902): `add`, `remove` and `replace` are used, nothing else.
pub(crate) fn patched(input: &Value, patch: &Value) -> Value {
    let mut out = input.clone();
    for operation in patch.as_array().unwrap() {
        let path = operation["path"].as_str().unwrap();
        let (parent, key) = path.rsplit_once('/').unwrap();
        let key = key.replace("~1", "/").replace("~0", "~");
        let value = || operation["value"].clone();
        match (operation["op"].as_str().unwrap(), out.pointer_mut(parent).unwrap()) {
            ("add", Value::Array(list)) => list.insert(key.parse().unwrap(), value()),
            ("add", Value::Object(members)) => drop(members.insert(key, value())),
            ("remove", Value::Array(list)) => drop(list.remove(key.parse().unwrap())),
            ("remove", Value::Object(members)) => drop(members.remove(&key).unwrap()),
            ("replace", Value::Array(list)) => list[key.parse::<usize>().unwrap()] = value(),
            ("replace", Value::Object(members)) => *members.get_mut(&key).unwrap() = value(),
            (other, _) => panic!("operation {other} at {path}"),
        }
    }
    out
}

/// The document's bytes: its members and its quote as JSON without white space, then the steps of `text`.
pub(crate) fn document(input: &Value, steps: &Value) -> Vec<u8> {
    let mut document = input["document"].clone();
    if let (Value::Object(members), Value::Array(parts)) = (&mut document, &input["quote"]) {
        let quote: String = parts.iter().map(|part| part.as_str().unwrap()).collect();
        members.insert("quote".to_owned(), quote.into());
    }
    let mut out = document.to_string();
    for step in steps.as_array().into_iter().flatten() {
        let (name, argument) = step.as_object().unwrap().iter().next().unwrap();
        match name.as_str() {
            "replace" => {
                let [from, with] = ["text", "with"].map(|member| argument[member].as_str().unwrap());
                assert!(out.contains(from), "{from}");
                out = out.replacen(from, with, 1);
            }
            "prepend" => out.insert_str(0, argument.as_str().unwrap()),
            "append" => out.push_str(argument.as_str().unwrap()),
            "cut" => out.truncate(out.len() - usize::try_from(argument.as_u64().unwrap()).unwrap()),
            "pad_to" => {
                let wanted = usize::try_from(argument.as_u64().unwrap()).unwrap();
                out.push_str(&" ".repeat(wanted - out.len()));
            }
            other => panic!("step {other}"),
        }
    }
    out.into_bytes()
}
