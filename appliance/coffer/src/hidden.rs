//! Secrets that a person types or a program writes: never an argument, never shown.
//!
//! On a terminal they are asked for without an echo; everything else on standard input is the secret itself.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};

use cofferdam_protocol::read;
use zeroize::Zeroizing;

use crate::failure::{Failure, Outcome};

/// Bytes of an answer that are looked at.
const LONGEST_ANSWER: u64 = 80;

/// Whether there is somebody to ask.
pub(crate) fn is_asked() -> bool {
    std::io::stdin().is_terminal()
}

/// A question on the terminal to which only `y` or `yes` is a yes.
pub(crate) fn yes(question: &str) -> Outcome<bool> {
    // On stderr, as everything that is no result.
    let _ = write!(std::io::stderr(), "{question} [y/N] ");
    let mut answer = Vec::new();
    let most = LONGEST_ANSWER;
    let mut line = std::io::BufReader::new(std::io::stdin().lock()).take(most);
    line.read_until(b'\n', &mut answer)
        .map_err(|error| Failure::failed(format!("cannot read the answer: {error}")))?;
    let answer = answer.trim_ascii().to_ascii_lowercase();
    Ok(answer == b"y" || answer == b"yes")
}

/// The bytes: of a program with the line feed at their end, if it writes one. More than `limit` bytes are the caller's to refuse: two more
/// are read at most. `hint` is the way without a terminal.
pub(crate) fn read(what: &str, limit: usize, no_input: bool, hint: &str) -> Outcome<Zeroizing<Vec<u8>>> {
    if is_asked() {
        if no_input {
            return Err(
                Failure::usage(format!("the {} is read from standard input", first_word(what))).hint(hint)
            );
        }
        let typed = rpassword::prompt_password(format!("{what}: "))
            .map_err(|error| Failure::failed(format!("cannot ask for the {}: {error}", first_word(what))))?;
        return Ok(Zeroizing::new(typed.into_bytes()));
    }
    // With a line feed at the end. What is longer still is cut here and refused by the caller.
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit.saturating_add(2)));
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    match read::bounded_into(std::io::stdin().lock(), most, &mut bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::FileTooLarge => {
            Err(Failure::failed(format!("cannot read the {}: {error}", first_word(what))))
        }
        _ => Ok(bytes),
    }
}

/// As [`read`], as text of one line without its line feed, of at most `limit` bytes.
pub(crate) fn line(what: &str, limit: usize, no_input: bool, hint: &str) -> Outcome<Zeroizing<Vec<u8>>> {
    let mut bytes = read(what, limit, no_input, hint)?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    let wrong = |why: &str| Err(Failure::usage(format!("the {} {why}", first_word(what))));
    match std::str::from_utf8(&bytes) {
        _ if bytes.len() > limit => wrong(&format!("has more than {limit} bytes")),
        Ok("") => wrong("is empty"),
        Ok(text) if text.contains(['\n', '\r', '\0']) => wrong("is more than one line"),
        Ok(_) => Ok(bytes),
        Err(_) => wrong("is not UTF-8"),
    }
}

/// What opens something now, and what shall open it: two lines on standard input, or asked for one after the other, the second twice and only where
/// there is a `new` one.
pub(crate) fn pair(
    now: &str,
    new: Option<&str>,
    limit: usize,
    no_input: bool,
    hint: &str,
) -> Outcome<Zeroizing<Vec<u8>>> {
    let Some(new) = new else { return line(now, limit, no_input, hint) };
    if !is_asked() {
        // The caller looks at the lines.
        let mut both = read(now, limit.saturating_mul(2).saturating_add(1), no_input, hint)?;
        if both.last() == Some(&b'\n') {
            both.pop();
        }
        return Ok(both);
    }
    let (now, first) = (line(now, limit, no_input, hint)?, line(new, limit, no_input, hint)?);
    if *line("once more", limit, no_input, hint)? != *first {
        return Err(Failure::usage("these were two passphrases"));
    }
    // Of full length from the start, so that growing leaves no copy behind.
    let mut both =
        Zeroizing::new(Vec::with_capacity(now.len().saturating_add(first.len()).saturating_add(1)));
    both.extend_from_slice(&now);
    both.push(b'\n');
    both.extend_from_slice(&first);
    Ok(both)
}

/// `value` of `value of secret://…`.
fn first_word(what: &str) -> &str {
    what.split(" of ").next().unwrap_or(what)
}
