//! An error with its causes on one line, for a person, a log or a reply.

/// The error and its sources, outermost first. A source whose words already end the text is not said twice.
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    for source in std::iter::successors(error.source(), |error| error.source()) {
        let cause = source.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Example {
        #[error("cannot start")]
        Outer(#[source] Box<Example>),
        #[error("cannot read: no such file")]
        Repeats(#[source] std::io::Error),
    }

    #[test]
    fn causes_follow_and_are_not_repeated() {
        let source = std::io::Error::other("no such file");
        let error = Example::Outer(Box::new(Example::Repeats(source)));
        assert_eq!(error_chain(&error), "cannot start: cannot read: no such file");
    }
}
