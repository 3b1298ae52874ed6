//! Several compose files become one, as Compose merges them: what a later file says counts, lists of things with names are merged by these
//! names, other lists are joined, and command lines are replaced.

use super::yaml::{Kind, Node};

/// Merges a further file into the first.
pub(super) fn merge(base: Node, over: Node) -> Node {
    maps(base, over, |key, base, over| match key {
        "services" => maps(base, over, |_, base, over| maps(base, over, in_service)),
        _ => either(base, over),
    })
}

fn in_service(key: &str, base: Node, over: Node) -> Node {
    match key {
        "command" | "entrypoint" => over,
        "healthcheck" => maps(base, over, |_, _, over| over),
        "environment" | "labels" | "annotations" | "extra_hosts" => {
            maps(assignments(base), assignments(over), |_, _, over| over)
        }
        "depends_on" | "networks" => {
            maps(named(key, base), named(key, over), |_, base, over| either(base, over))
        }
        "volumes" | "secrets" | "configs" => by_target(base, over),
        _ => either(base, over),
    }
}

/// What stands under no key of its own meaning: mappings are merged, lists joined, all else replaced.
fn either(base: Node, over: Node) -> Node {
    match (&base.kind, &over.kind) {
        (Kind::Map(_), Kind::Map(_)) => maps(base, over, |_, base, over| either(base, over)),
        (Kind::List(ours), Kind::List(theirs)) => {
            let same = |item: &&Node| !ours.iter().any(|own| own.kind == item.kind);
            let further = theirs.iter().filter(same).cloned();
            Node::list(ours.iter().cloned().chain(further).collect(), base.line)
        }
        // A key without a value says nothing.
        _ if over.is_nothing() => base,
        _ => over,
    }
}

fn maps(base: Node, over: Node, inner: impl Fn(&str, Node, Node) -> Node) -> Node {
    let (line, base, over) = match (base.kind, over.kind) {
        (Kind::Map(ours), Kind::Map(theirs)) => (base.line, ours, theirs),
        (ours, theirs) => {
            let over = Node { line: over.line, kind: theirs };
            return if over.is_nothing() { Node { line: base.line, kind: ours } } else { over };
        }
    };
    let mut out = base;
    for (key, value) in over {
        match out.iter_mut().find(|(name, _)| *name == key) {
            Some((name, old)) => {
                let ours = std::mem::replace(old, Node::plain("", line));
                *old = inner(name, ours, value);
            }
            None => out.push((key, value)),
        }
    }
    Node::map(out, line)
}

/// A list of `KEY=value` as a mapping.
fn assignments(node: Node) -> Node {
    if node.items().is_empty() {
        return node;
    }
    let entry = |item: &Node| {
        let text = item.as_text()?;
        Some(match text.split_once('=') {
            Some((key, value)) => (key.to_owned(), Node::text(value, item.line)),
            None => (text.to_owned(), Node::plain("~", item.line)),
        })
    };
    let mut entries: Vec<(String, Node)> = Vec::new();
    for (key, value) in node.items().iter().filter_map(entry) {
        match entries.iter_mut().find(|(name, _)| *name == key) {
            Some((_, old)) => *old = value,
            None => entries.push((key, value)),
        }
    }
    Node::map(entries, node.line)
}

/// A list of names as the mapping that it is short for.
fn named(key: &str, node: Node) -> Node {
    if node.items().is_empty() {
        return node;
    }
    let described = |line| match key {
        "depends_on" => Node::map(vec![("condition".to_owned(), Node::text("service_started", line))], line),
        _ => Node::map(Vec::new(), line),
    };
    let names =
        node.items().iter().filter_map(|item| Some((item.as_text()?.to_owned(), described(item.line))));
    Node::map(names.collect(), node.line)
}

/// Two lists of what goes to a path of the container: the later one counts.
fn by_target(base: Node, over: Node) -> Node {
    if base.items().is_empty() || over.items().is_empty() {
        return either(base, over);
    }
    let target = |item: &Node| {
        let long = item.get("target").or_else(|| item.get("source")).and_then(Node::as_text);
        let short = item.as_text().map(|text| text.split(':').nth(1).unwrap_or(text));
        long.or(short).map(str::to_owned)
    };
    let kept =
        base.items().iter().filter(|item| !over.items().iter().any(|later| target(later) == target(item)));
    Node::list(kept.chain(over.items()).cloned().collect(), base.line)
}

#[cfg(test)]
mod tests {
    use super::super::yaml;
    use super::*;

    fn merged(base: &str, over: &str) -> String {
        let merged = merge(yaml::read(base).unwrap(), yaml::read(over).unwrap());
        let mut out = String::new();
        yaml::write(merged.entries(), 0, &mut out);
        out
    }

    #[test]
    fn a_later_file_counts_as_composes_does() {
        let base = "services:\n  test:\n    image: a:1\n    command: [one, two]\n    ports: ['80:80']\n    environment: [A=1, B=2, C]\n    \
                    volumes: ['data:/data', './x:/x:ro']\n    depends_on: [db]\n    healthcheck: {test: [CMD, a], interval: 5s}\n    \
                    networks: [front]\n    dns: [1.1.1.1]\n  db: {image: d}\nvolumes: {data: {}}\n";
        let over = "services:\n  test:\n    image: a:2\n    command: [three]\n    ports: ['80:80', '443:443']\n    environment: {B: x, D: y}\n    \
                    volumes: ['other:/data']\n    depends_on: {db: {condition: service_healthy}, cache: {condition: service_started}}\n    \
                    healthcheck: {test: [CMD, b]}\n    networks: {front: {aliases: [w]}, back: {}}\n    dns: [8.8.8.8]\n  cache: {image: c}\n  db:\n\
                    volumes: {other: {}}\n";
        let expected = "services:\n  test:\n    image: a:2\n    command: [three]\n    ports: ['80:80', '443:443']\n    \
                        environment: {A: '1', B: x, C: , D: y}\n    volumes: ['./x:/x:ro', 'other:/data']\n    \
                        depends_on: {db: {condition: service_healthy}, cache: {condition: service_started}}\n    \
                        healthcheck: {test: [CMD, b], interval: 5s}\n    networks: {front: {aliases: [w]}, back: {}}\n    \
                        dns: [1.1.1.1, 8.8.8.8]\n  db: {image: d}\n  cache: {image: c}\nvolumes: {data: {}, other: {}}\n";
        assert_eq!(merged(base, over), merged(expected, "{}"));
    }

    #[test]
    fn shapes_that_do_not_fit_are_replaced() {
        assert_eq!(
            merged(
                "services: {a: {environment: 1, volumes: x}}",
                "services: {a: {environment: {A: b}, volumes: [y]}}"
            ),
            merged("services: {a: {environment: {A: b}, volumes: [y]}}", "{}")
        );
        assert_eq!(
            merged("services: {a: {image: x}}", "services: {a: [1]}"),
            merged("services: {a: [1]}", "{}")
        );
    }
}
