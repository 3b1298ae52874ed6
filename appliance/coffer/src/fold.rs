//! Lines that fit a terminal.
//!
//! What is too long goes on below, under the beginning of its last column, so that a table stays one. Words are never cut: what is
//! copied from a terminal, as a digest or a command, has to be whole.

/// Columns to the left of what goes on below, where a line has no columns of its own.
const HANGING: usize = 2;

/// `text` with each line in at most `width` columns, as far as its words allow.
pub(crate) fn fold(text: &str, width: usize) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        if columns(line) <= width {
            out.push_str(line);
        } else {
            push(&mut out, line, width);
        }
        out.push_str(end);
    }
    out
}

fn push(out: &mut String, line: &str, width: usize) {
    let under = hanging(line, width);
    let mut at = 0;
    // Words with the spaces before them, which a new line swallows.
    let mut rest = line;
    while !rest.is_empty() {
        let spaces = rest.len() - rest.trim_start_matches(' ').len();
        let (gap, after) = rest.split_at_checked(spaces).unwrap_or(("", rest));
        let (word, after) =
            after.split_at_checked(after.find(' ').unwrap_or(after.len())).unwrap_or((after, ""));
        let length = columns(word);
        if at > under && at + spaces + length > width {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', under));
            at = under;
        } else {
            out.push_str(gap);
            at += spaces;
        }
        out.push_str(word);
        at += length;
        rest = after;
    }
}

/// Where the line's last column begins, if that leaves half of the width; else a little more than its own indentation.
fn hanging(line: &str, width: usize) -> usize {
    let indent = line.len() - line.trim_start_matches(' ').len();
    let mut column = None;
    let (mut at, mut spaces) = (0, 0);
    for (character, shown) in shown(line) {
        if !shown {
            continue;
        }
        if character == ' ' {
            spaces += 1;
        } else {
            if spaces > 1 && at > indent && at <= width / 2 {
                column = Some(at);
            }
            spaces = 0;
        }
        at += 1;
    }
    column.unwrap_or((indent + HANGING).min(width / 2))
}

/// How many columns a text takes: characters, without what colours it.
fn columns(text: &str) -> usize {
    shown(text).filter(|(_, shown)| *shown).count()
}

/// Each character, and whether it takes a column. Ours are the only escapes: those from outside were made printable.
fn shown(text: &str) -> impl Iterator<Item = (char, bool)> {
    let mut escape = false;
    text.chars().map(move |character| {
        let inside = escape || character == '\u{1b}';
        escape = inside && character != 'm';
        (character, !inside)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_long_line_goes_on_under_its_last_column() {
        let line = "  ok   tcb_status  the level is of a date that is long ago\nshort\n";
        assert_eq!(
            fold(line, 40),
            "  ok   tcb_status  the level is of a\n                   date that is long ago\nshort\n"
        );
        assert_eq!(fold("a sentence of some words", 12), "a sentence\n  of some\n  words");
    }

    #[test]
    fn colours_take_no_columns_and_words_stay_whole() {
        let green = "\u{1b}[32mok\u{1b}[0m  name";
        assert_eq!(fold(green, 8), green);
        assert_eq!(fold("is at sha256:0123456789abcdef now", 10), "is at\n  sha256:0123456789abcdef\n  now");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_what_can_fit_does(text in "([a-zé]{1,12} {1,3}){0,20}[a-z]{0,5}", width in 30usize..80) {
            let folded = fold(&text, width);
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            prop_assert_eq!(words(&text), words(&folded));
            prop_assert!(folded.lines().all(|line| columns(line.trim_end()) <= width), "{}", folded);
        }
    }
}
