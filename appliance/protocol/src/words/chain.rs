//! An error with its causes on one line, for a person, a log or a reply.

/// The error and its sources, outermost first. A source whose words already end the text is not said twice.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let cause = inner.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = inner.source();
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
