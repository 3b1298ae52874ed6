//! Writes a profile into a declaration and leaves every other line as it is.
//!
//! The text is edited as lines, and then read: whatever the lines looked like, the result has to declare what the file declared before,
//! with this profile and nothing else changed, or there is no result.

use cofferdam_declaration::{Declaration, Profile};

/// As many characters as a line of names has.
const WIDTH: usize = 100;

/// The declaration with the profile in it; `None` where a service is not written as lines of its own.
pub(super) fn with_profile(text: &str, service: &str, profile: &Profile) -> Option<String> {
    let mut wanted = Declaration::parse(text.as_bytes()).ok()?;
    wanted.services.iter_mut().find(|known| known.name == service)?.profile = profile.clone();
    let edited = edited(text, service, profile)?;
    (Declaration::parse(edited.as_bytes()).ok()? == wanted).then_some(edited)
}

fn edited(text: &str, service: &str, profile: &Profile) -> Option<String> {
    let lines: Vec<&str> = text.lines().collect();
    let services = lines.iter().position(|line| is_key(line, 0, "services"))?;
    let deeper = |at: usize| block(&lines, at);
    let (start, end) = deeper(services)?;
    let column = indentation(lines.get(start)?);
    let own = (start..end).find(|at| lines.get(*at).is_some_and(|line| is_key(line, column, service)))?;
    let (first, last) = deeper(own)?;
    let inner = indentation(lines.get(first)?);
    let old = (first..last).find(|at| lines.get(*at).is_some_and(|line| is_key_with(line, inner, "profile")));
    let new = rendered(profile, inner);
    let (before, after) = match old {
        Some(at) => (at, deeper(at).map_or(at + 1, |(_, end)| end)),
        None => (last, last),
    };
    let mut all: Vec<&str> = lines.get(..before)?.to_vec();
    all.extend(new.lines());
    all.extend(lines.get(after..)?);
    Some(all.join("\n") + "\n")
}

/// The lines below a key: from the first one that says something to behind the last one.
fn block(lines: &[&str], key: usize) -> Option<(usize, usize)> {
    let column = indentation(lines.get(key)?);
    let says = |at: &usize| lines.get(*at).is_some_and(|line| !is_silent(line));
    let first = (key + 1..lines.len()).find(says)?;
    if indentation(lines.get(first)?) <= column {
        return None;
    }
    let ends = (first..lines.len())
        .find(|at| says(at) && lines.get(*at).is_some_and(|line| indentation(line) <= column));
    let last = (first..ends.unwrap_or(lines.len())).rev().find(says)?;
    Some((first, last + 1))
}

fn is_silent(line: &str) -> bool {
    let text = line.trim_start();
    text.is_empty() || text.starts_with('#')
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

/// Whether a line is this key alone, its value below it.
fn is_key(line: &str, column: usize, key: &str) -> bool {
    let rest =
        line.get(column..).filter(|_| indentation(line) == column).and_then(|rest| rest.strip_prefix(key));
    rest.and_then(|rest| rest.strip_prefix(':')).is_some_and(is_silent)
}

fn is_key_with(line: &str, column: usize, key: &str) -> bool {
    let rest =
        line.get(column..).filter(|_| indentation(line) == column).and_then(|rest| rest.strip_prefix(key));
    rest.is_some_and(|rest| rest.starts_with(':'))
}

/// The key `profile` and what is below it, at this column.
pub(super) fn rendered(profile: &Profile, column: usize) -> String {
    let at = |level: usize| " ".repeat(column + 2 * level);
    let mut text = format!("{}profile:\n", at(0));
    if let Some(calls) = &profile.system_calls {
        text += &format!("{}system_calls: [", at(1));
        let mut used = WIDTH;
        for (index, call) in calls.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            used += call.len() + 2;
            let gap = if used > WIDTH { format!("\n{}", at(2)) } else { " ".to_owned() };
            if used > WIDTH {
                used = column + 4 + call.len();
            }
            text += &format!("{comma}{gap}{call}");
        }
        text += &format!("\n{}]\n", at(1));
    }
    if let Some(paths) = &profile.paths {
        text += &format!("{}paths:\n", at(1));
        for (name, list) in [("read", &paths.read), ("write", &paths.write), ("execute", &paths.execute)] {
            if !list.is_empty() {
                text += &format!("{}{name}:\n", at(2));
            }
            for path in list {
                text += &format!("{}- {}\n", at(3), scalar(path));
            }
        }
    }
    text
}

/// A path as a text that every reader of YAML takes for it.
fn scalar(path: &str) -> String {
    if path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._+-".contains(&byte)) {
        return path.to_owned();
    }
    serde_json::Value::from(path.replace('$', "$$")).to_string()
}

#[cfg(test)]
mod tests {
    use cofferdam_declaration::Paths;

    use super::*;

    const FILE: &str = "# ours
version: 1
repository: acme/app
endpoint: 127.0.0.1:8443
services:   # all of them
  db:
    image: r.example/db@sha256:DIGEST

  # the web
  web:
    image: r.example/web@sha256:DIGEST   # pinned
    command:
      - sh
      - \"profile: no\"
    restart: no

  # the last
  last: {image: \"r.example/last@sha256:DIGEST\"}
";

    fn file() -> String {
        FILE.replace("DIGEST", &"0".repeat(64))
    }

    fn profile(paths: &[&str]) -> Profile {
        let owned: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        Profile {
            system_calls: Some(cofferdam_declaration::known_system_calls().clone()),
            paths: Some(Paths { read: owned.clone(), write: Vec::new(), execute: owned }),
        }
    }

    #[test]
    fn a_profile_is_written_in_its_place_and_every_other_line_stays() {
        let paths = ["/app", "/a b", "/#x", "/d$x", "/ä", "/x: y"];
        let edited = with_profile(&file(), "web", &profile(&paths)).unwrap();
        for line in file().lines() {
            assert!(edited.lines().any(|other| other == line), "{line}");
        }
        assert!(
            edited.contains("    restart: no\n    profile:\n      system_calls: [\n        accept, "),
            "{edited}"
        );
        assert!(edited.lines().all(|line| line.len() <= 110));
        // Once more, with another one: the old is gone.
        let again = with_profile(&edited, "web", &profile(&["/other"])).unwrap();
        assert!(!again.contains("/a b") && again.matches("    profile:\n").count() == 1);
        assert_eq!(with_profile(&again, "web", &profile(&paths)).unwrap(), edited);
        let first = with_profile(&file(), "db", &profile(&["/db"])).unwrap();
        assert!(first.contains("\n  # the web\n  web:\n"), "{first}");
    }

    #[test]
    fn what_is_not_written_as_lines_is_left_alone() {
        assert_eq!(with_profile(&file(), "last", &profile(&["/app"])), None);
        assert_eq!(with_profile(&file(), "missing", &profile(&["/app"])), None);
        assert_eq!(with_profile("services: {}", "web", &profile(&["/app"])), None);
        // A text that looks like a key is none, and what was read before would be another declaration.
        let text = file().replace("    restart: no\n", "    labels:\n      a: |\n    restart: no\n");
        assert!(
            with_profile(&text, "web", &profile(&["/app"])).is_some_and(|edited| edited.contains("a: |"))
        );
    }
}
