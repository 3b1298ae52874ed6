//! A branch of a Git repository, by its name below `refs/heads/`.

use std::fmt;
use std::str::FromStr;

use super::error::WordError;
use super::text::{as_text, is_deceptive};

as_text!(Branch);

/// Longest name in bytes: it goes into a path, a status and onto a terminal.
const MAX: usize = 200;

/// A name that `git check-ref-format --branch` takes, of visible characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Branch(String);

impl Branch {
    /// The name without `refs/heads/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Branch {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let wrong = |why: &str| WordError::new(format!("not a branch: {why}"));
        if text.starts_with("refs/") {
            return Err(wrong("it is the whole name of a ref").hint("write its name alone, as `main`"));
        }
        if text == "HEAD" {
            return Err(wrong("HEAD is whatever the server says").hint("write the branch's name, as `main`"));
        }
        if !(1..=MAX).contains(&text.len()) {
            return Err(wrong("it is empty, or longer than 200 bytes"));
        }
        let plain = |c: char| {
            !c.is_control()
                && !c.is_whitespace()
                && !is_deceptive(c)
                && !matches!(c, '~' | '^' | ':' | '?' | '*' | '[' | '\\')
        };
        let part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
        let fine = text.chars().all(plain)
            && text.split('/').all(part)
            && !text.starts_with('-')
            && !text.ends_with('.')
            && !text.contains("..")
            && !text.contains("@{")
            && text != "@";
        if fine {
            Ok(Self(text.to_owned()))
        } else {
            Err(wrong("git has no branch of such a name").hint("write it as `git branch` shows it"))
        }
    }
}

impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_is_a_name_that_git_takes_and_that_a_person_can_read() {
        for name in ["main", "release/1.2", "feature/é", "a@b", "1", "head", "x.y"] {
            assert_eq!(name.parse::<Branch>().unwrap().as_str(), name);
        }
        for wrong in [
            "",
            "HEAD",
            "refs/heads/main",
            "a..b",
            "../x",
            "/a",
            "a/",
            "a//b",
            ".a",
            "a/.b",
            "a.lock",
            "a.lock/b",
            "-a",
            "a.",
            "a b",
            "a\tb",
            "a\nb",
            "a~1",
            "a^",
            "a:b",
            "v*",
            "a?",
            "a[b",
            "a\\b",
            "a@{1}",
            "@",
            "a\u{202e}b",
        ] {
            assert!(wrong.parse::<Branch>().is_err(), "{wrong}");
        }
        assert!("a".repeat(200).parse::<Branch>().is_ok());
        assert!("a".repeat(201).parse::<Branch>().is_err());
    }
}
