//! The identity of an appliance: one GitHub repository.

use std::fmt;
use std::str::FromStr;

use super::error::WordError;
use super::text::as_text;

as_text!(Repository);

/// A GitHub repository, `owner/repo`: names that GitHub gives today, bounded and free of path tricks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    owner: String,
    name: String,
}

impl Repository {
    /// The account that owns the repository.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The repository's name without its owner.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether GitHub takes both for the same repository: names there do not depend on case.
    pub fn is_same(&self, other: &Self) -> bool {
        self.owner.eq_ignore_ascii_case(&other.owner) && self.name.eq_ignore_ascii_case(&other.name)
    }
}

impl FromStr for Repository {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let wrong = |why: &str| {
            WordError::new(format!("not a GitHub repository: {why}"))
                .hint("write it as owner/repo, for example octo-org/payments")
        };
        if text.starts_with("https://") || text.starts_with("git@") {
            return Err(wrong("a URL"));
        }
        let (owner, name) = text.split_once('/').ok_or_else(|| wrong("there is no `/`"))?;
        // GitHub's own rules: 39 characters, letters, digits and single inner hyphens.
        let owner_ok = (1..=39).contains(&owner.len())
            && owner.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !owner.starts_with('-')
            && !owner.ends_with('-')
            && !owner.contains("--");
        if !owner_ok {
            return Err(wrong("the owner is not an account name"));
        }
        let name_ok = (1..=100).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && name != "."
            && name != ".."
            && !name.ends_with(".git");
        if !name_ok {
            return Err(wrong("the name is not a repository name"));
        }
        Ok(Self { owner: owner.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_github_gives_are_repositories() {
        for right in ["acme/shop", "Octo-Org/.github", "a/b_c.d", &format!("{}/x", "a".repeat(39))] {
            assert_eq!(right.parse::<Repository>().unwrap().to_string(), right);
        }
        for wrong in [
            "",
            "/",
            "acme",
            "acme/",
            "/shop",
            "acme/.",
            "acme/..",
            "acme/a/b",
            "-a/b",
            "a-/b",
            "a--b/c",
            "a_b/c",
            "a/b.git",
            "a/b c",
            "a/b?c",
            "a/b%2f",
            "ä/b",
            "https://github.com/a/b",
            "a/b\n",
            &format!("{}/x", "a".repeat(40)),
            &format!("a/{}", "x".repeat(101)),
        ] {
            assert!(wrong.parse::<Repository>().is_err(), "{wrong:?}");
        }
    }
}
