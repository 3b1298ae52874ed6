//! A command line as one text, split into arguments as Compose splits it.
//!
//! Compose knows quotes and backslashes and starts no shell: `$(…)`, pipes and redirections mean nothing to it. It leaves out what
//! follows a `;`, `&`, `|`, `<` or `>` without a word. Here that is an error, since nobody means it.

use cofferdam_protocol::WordError;

/// The arguments. An empty text has none.
///
/// # Errors
/// A quote or backslash that is not closed, or a character that would take a shell.
pub(crate) fn split(line: &str) -> Result<Vec<String>, WordError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some('"') | None, '\\') => {
                let next = characters.next().ok_or_else(|| unclosed("a backslash that escapes nothing"))?;
                word.get_or_insert_default().push(next);
            }
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_ascii_whitespace() => words.extend(word.take()),
            (None, ';' | '&' | '|' | '<' | '>' | '(' | ')' | '`') => return Err(for_a_shell(c)),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(unclosed("a quote that is not closed"));
    }
    words.extend(word);
    Ok(words)
}

fn unclosed(what: &str) -> WordError {
    WordError::new(format!("not a command line: {what}")).hint("write a list: [\"program\", \"argument\"]")
}

fn for_a_shell(c: char) -> WordError {
    WordError::new(format!("`{c}` takes a shell, and none is started"))
        .hint("quote it, or name the image's own shell: [\"sh\", \"-c\", \"…\"]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_split_as_compose_splits_it() {
        for (line, words) in [
            ("", vec![]),
            ("  ", vec![]),
            ("nginx -g 'daemon off;'", vec!["nginx", "-g", "daemon off;"]),
            ("a  b\tc\nd", vec!["a", "b", "c", "d"]),
            (r#"sh -c "echo \"a b\" && true""#, vec!["sh", "-c", "echo \"a b\" && true"]),
            (r#"a\ b 'c\d' "e\f""#, vec!["a b", r"c\d", "ef"]),
            (r#"--x="a b"c"#, vec!["--x=a bc"]),
            ("a '' \"\"", vec!["a", "", ""]),
            ("ls *.txt ~ #x {a,b} [c] !d ?", vec!["ls", "*.txt", "~", "#x", "{a,b}", "[c]", "!d", "?"]),
            ("--save 60 1 --loglevel warning", vec!["--save", "60", "1", "--loglevel", "warning"]),
        ] {
            assert_eq!(split(line), Ok(words.into_iter().map(String::from).collect()), "{line}");
        }
    }

    #[test]
    fn what_compose_would_leave_out_or_a_shell_would_do_is_refused() {
        for line in ["a; b", "a && b", "a | b", "a > b", "a < b", "a $(b)", "a `b`", "a &", "(a)"] {
            assert!(split(line).unwrap_err().message.contains("takes a shell"), "{line}");
        }
        for line in ["a 'b", "a \"b", "a \\", "\"a\\"] {
            assert!(split(line).unwrap_err().message.starts_with("not a command line"), "{line}");
        }
    }
}
