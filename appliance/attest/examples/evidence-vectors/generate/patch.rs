//! The difference of two JSON values as a JSON Patch (RFC 6902) of `add`, `remove` and `replace`.

use serde::Serialize;
use serde_json::Value;

/// A list that grows by more than this is replaced as a whole.
const MOST_ADDED: usize = 16;

/// One operation.
#[derive(Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Operation {
    Add { path: String, value: Value },
    Remove { path: String },
    Replace { path: String, value: Value },
}

/// What makes `from` into `to`, in the order of sorted keys.
pub(crate) fn between(from: &Value, to: &Value) -> Vec<Operation> {
    let mut out = Vec::new();
    difference("", from, to, &mut out);
    out
}

fn difference(path: &str, from: &Value, to: &Value, out: &mut Vec<Operation>) {
    match (from, to) {
        _ if from == to => {}
        (Value::Object(old), Value::Object(new)) => {
            let mut keys: Vec<&String> =
                old.keys().chain(new.keys().filter(|key| !old.contains_key(*key))).collect();
            keys.sort();
            for key in keys {
                let path = format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
                match (old.get(key), new.get(key)) {
                    (Some(old), Some(new)) => difference(&path, old, new, out),
                    (Some(_), None) => out.push(Operation::Remove { path }),
                    (None, Some(new)) => out.push(Operation::Add { path, value: sorted(new) }),
                    (None, None) => {}
                }
            }
        }
        (Value::Array(old), Value::Array(new)) => list(path, old, new, out),
        _ => out.push(Operation::Replace { path: path.to_owned(), value: sorted(to) }),
    }
}

/// Lists of one length element by element; else what is between their common beginning and end is replaced.
fn list(path: &str, old: &[Value], new: &[Value], out: &mut Vec<Operation>) {
    if old.len() == new.len() {
        for (at, (old, new)) in old.iter().zip(new).enumerate() {
            difference(&format!("{path}/{at}"), old, new, out);
        }
        return;
    }
    if new.len() > old.len() + MOST_ADDED {
        out.push(Operation::Replace { path: path.to_owned(), value: sorted(&Value::Array(new.to_vec())) });
        return;
    }
    let same = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let (old, new) = (&old[same..], &new[same..]);
    let end = old.iter().rev().zip(new.iter().rev()).take_while(|(old, new)| old == new).count();
    for _ in 0..old.len() - end {
        out.push(Operation::Remove { path: format!("{path}/{same}") });
    }
    for (at, value) in new[..new.len() - end].iter().enumerate() {
        out.push(Operation::Add { path: format!("{path}/{}", same + at), value: sorted(value) });
    }
}

fn sorted(value: &Value) -> Value {
    let mut value = value.clone();
    value.sort_all_objects();
    value
}
