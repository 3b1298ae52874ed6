//! A finding, and how all of them are shown.
//!
//! Each has a code, which scripts may rely on, and says what is so, why, what helps and which command does it. All text from outside becomes
//! printable and bounded here. Commands are made of typed words only: they are there to be pasted into a shell.

use std::fmt::Write as _;

use cofferdam_protocol::{Endpoint, Repository};
use serde_json::{Value, json};

use crate::failure::{Code, Failure};
use crate::ui::{Tone, Ui, printable};

/// Lines that say why.
const MAX_WHY: usize = 8;
/// Characters of one text: a chain of causes has some hundred.
const MAX_TEXT: usize = 600;
/// Where the words of a finding begin, below its first line.
const COLUMN: usize = 10;

/// The exit codes of findings, the gravest first: what is false or forbidden, then what is closed, then what is wrong, then what nobody knows.
const GRAVITY: [Code; 5] =
    [Code::Rejected, Code::NotAllowed, Code::NotReady, Code::Failed, Code::CouldNotCheck];

/// How bad it is, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    /// Something does not work, or is not what it has to be.
    Problem,
    /// Nobody knows.
    CouldNotCheck,
    /// It works, and somebody should look at it.
    Warning,
    /// It is as it should be.
    Ok,
}

impl Severity {
    /// The word in JSON.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Problem => "problem",
            Self::CouldNotCheck => "could-not-check",
            Self::Warning => "warning",
            Self::Ok => "ok",
        }
    }

    const fn tone(self) -> Tone {
        match self {
            Self::Problem => Tone::Bad,
            Self::CouldNotCheck | Self::Warning => Tone::Unsure,
            Self::Ok => Tone::Good,
        }
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) code: &'static str,
    pub(super) severity: Severity,
    /// What it counts for in the exit code.
    pub(super) exit: Option<Code>,
    pub(super) what: String,
    pub(super) why: Vec<String>,
    pub(super) remedy: Option<String>,
    pub(super) command: Option<String>,
}

impl Finding {
    pub(super) fn problem(code: &'static str, what: &str) -> Self {
        Self::new(code, Severity::Problem, Some(Code::Failed), what)
    }

    pub(super) fn unknown(code: &'static str, what: &str) -> Self {
        Self::new(code, Severity::CouldNotCheck, Some(Code::CouldNotCheck), what)
    }

    pub(super) fn warning(code: &'static str, what: &str) -> Self {
        Self::new(code, Severity::Warning, None, what)
    }

    pub(super) fn ok(code: &'static str, what: &str) -> Self {
        Self::new(code, Severity::Ok, None, what)
    }

    fn new(code: &'static str, severity: Severity, exit: Option<Code>, what: &str) -> Self {
        Self { code, severity, exit, what: bounded(what), why: Vec::new(), remedy: None, command: None }
    }

    /// What a step's failure says: its message is the cause, its hint the remedy, its exit code the finding's.
    pub(super) fn of(code: &'static str, what: &str, failure: &Failure) -> Self {
        let severity = match failure.code {
            Code::CouldNotCheck => Severity::CouldNotCheck,
            _ => Severity::Problem,
        };
        let mut finding = Self::new(code, severity, Some(failure.code), what);
        for line in failure.message.lines() {
            finding = finding.because(line.trim_start());
        }
        finding.remedy = failure.hint.as_deref().map(bounded);
        finding
    }

    /// One more cause, the nearest first.
    pub(super) fn because(mut self, why: &str) -> Self {
        if self.why.len() < MAX_WHY && !why.is_empty() {
            self.why.push(bounded(why));
        }
        self
    }

    pub(super) fn because_all<'a>(self, why: impl IntoIterator<Item = &'a str>) -> Self {
        why.into_iter().fold(self, Self::because)
    }

    pub(super) fn remedy(mut self, remedy: &str) -> Self {
        self.remedy = Some(bounded(remedy));
        self
    }

    /// The same where the failure has had no hint.
    pub(super) fn or_remedy(self, remedy: &str) -> Self {
        if self.remedy.is_none() { self.remedy(remedy) } else { self }
    }

    pub(super) fn run(mut self, command: String) -> Self {
        self.command = Some(command);
        self
    }

    pub(super) fn exit(mut self, code: Code) -> Self {
        self.exit = Some(code);
        self
    }

    fn to_json(&self) -> Value {
        json!({
            "code": self.code, "severity": self.severity.as_str(), "what": self.what, "why": self.why,
            "remedy": self.remedy, "command": self.command, "exit_code": self.exit.map_or(0, |code| code as u8),
        })
    }

    fn write(&self, out: &mut String, ui: &Ui, width: Option<usize>) {
        let Self { code, severity, what, why, remedy, command, .. } = self;
        let word = ui.tone(severity.tone(), severity.as_str());
        let code = ui.tone(Tone::Faint, &format!("[{code}]"));
        let _ = writeln!(out, "{word}: {what} {code}");
        let mut line = |label: &str, text: &str| {
            let _ = writeln!(out, "  {label:6}  {text}");
        };
        for (n, why) in why.iter().enumerate() {
            line(if n == 0 { "why" } else { "" }, why);
        }
        remedy.iter().for_each(|remedy| line("remedy", remedy));
        command.iter().for_each(|command| line("run", &fitted(command, width)));
    }
}

/// The appliance that commands are about.
pub(super) struct About<'a> {
    pub(super) repository: &'a Repository,
    /// Where it answers, if that was given on the command line.
    pub(super) endpoint: Option<&'a Endpoint>,
}

impl About<'_> {
    /// `coffer VERB OWNER/REPO REST`, with the endpoint that was given.
    pub(super) fn command(&self, verb: &str, rest: &str) -> String {
        self.at(self.endpoint, verb, rest)
    }

    /// The same with another endpoint, if one is known.
    pub(super) fn at(&self, endpoint: Option<&Endpoint>, verb: &str, rest: &str) -> String {
        let mut command = format!("coffer {verb} {}", self.repository);
        if !rest.is_empty() {
            let _ = write!(command, " {rest}");
        }
        if let Some(endpoint) = endpoint {
            let _ = write!(command, " --endpoint {endpoint}");
        }
        command
    }
}

/// All that was found.
pub(super) struct Report(Vec<Finding>);

impl Report {
    pub(super) fn new(mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| (finding.severity, rank(finding.exit)));
        Self(findings)
    }

    /// The exit code of the gravest finding; `None` when nothing is wrong.
    pub(super) fn exit(&self) -> Option<Code> {
        self.0.iter().filter_map(|finding| finding.exit).min_by_key(|code| rank(Some(*code)))
    }

    fn verdict(&self) -> Severity {
        self.0.iter().map(|finding| finding.severity).min().unwrap_or(Severity::Ok)
    }

    fn count(&self, severity: Severity) -> usize {
        self.0.iter().filter(|finding| finding.severity == severity).count()
    }

    pub(super) fn to_json(&self, repository: &Repository) -> Value {
        let findings: Vec<Value> = self.0.iter().map(Finding::to_json).collect();
        json!({
            "repository": repository, "verdict": self.verdict().as_str(),
            "exit_code": self.exit().map_or(0, |code| code as u8), "findings": findings,
        })
    }

    /// The verdict, then each finding, the worst first. What is well is a line each, and left out with `-q`.
    pub(super) fn text(&self, ui: &Ui, repository: &Repository, width: Option<usize>) -> String {
        let verdict = self.verdict();
        let mut out = format!("{}: {repository}: ", ui.tone(verdict.tone(), verdict.as_str()));
        let plural = |count, one: &str, many: &str| match count {
            0 => None,
            1 => Some(format!("1 {one}")),
            count => Some(format!("{count} {many}")),
        };
        let counts = [
            plural(self.count(Severity::Problem), "problem", "problems"),
            plural(self.count(Severity::CouldNotCheck), "could not be checked", "could not be checked"),
            plural(self.count(Severity::Warning), "warning", "warnings"),
            plural(self.count(Severity::Ok), "is well", "are well"),
        ];
        let counts: Vec<String> = counts.into_iter().flatten().collect();
        let _ = writeln!(out, "{}", counts.join(", "));
        let mut well = false;
        for finding in &self.0 {
            let is_well = finding.severity == Severity::Ok;
            if is_well && ui.quiet {
                continue;
            }
            if !(is_well && well) {
                out.push('\n');
            }
            well = is_well;
            finding.write(&mut out, ui, width);
        }
        out
    }
}

/// Where a code stands among the others.
fn rank(code: Option<Code>) -> usize {
    let known = GRAVITY.iter().position(|known| Some(*known) == code);
    known.unwrap_or(GRAVITY.len())
}

/// A command on as many lines as the width needs, each of which but the last goes on below for a shell, too.
fn fitted(command: &str, width: Option<usize>) -> String {
    let room = width.unwrap_or(usize::MAX).saturating_sub(COLUMN);
    if command.len() <= room {
        return command.to_owned();
    }
    let indent = " ".repeat(COLUMN + 2);
    command.replace(" --", &format!(" \\\n{indent}--"))
}

fn bounded(text: &str) -> String {
    let text = printable(text);
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}…", text.split_at_checked(end).map_or("", |(head, _)| head)),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(exits: &[Option<Code>]) -> Report {
        let finding = |exit: &Option<Code>| Finding { exit: *exit, ..Finding::ok("a", "b") };
        Report::new(exits.iter().map(finding).collect())
    }

    #[test]
    fn the_exit_code_is_the_gravest() {
        use Code::{CouldNotCheck, Failed, NotAllowed, NotReady, Rejected};
        for (exits, exit) in [
            (&[][..], None),
            (&[None], None),
            (&[Some(CouldNotCheck), None], Some(CouldNotCheck)),
            (&[Some(CouldNotCheck), Some(Failed)], Some(Failed)),
            (&[Some(Failed), Some(NotReady)], Some(NotReady)),
            (&[Some(NotReady), Some(NotAllowed)], Some(NotAllowed)),
            (&[Some(CouldNotCheck), Some(Rejected), Some(NotAllowed)], Some(Rejected)),
        ] {
            assert_eq!(report(exits).exit(), exit, "{exits:?}");
        }
    }

    #[test]
    fn what_comes_from_outside_is_printable_and_bounded() {
        let finding = Finding::problem("x", "a\u{1b}[2Jb\nc")
            .because(&"é".repeat(5000))
            .because_all((0..20).map(|_| "again"))
            .remedy("\u{202e}r");
        assert_eq!(finding.what, "a\\u{1b}[2Jb\\nc");
        assert_eq!(finding.why[0].chars().count(), MAX_TEXT + 1);
        assert_eq!(finding.why.len(), MAX_WHY);
        assert_eq!(finding.remedy.as_deref(), Some("\\u{202e}r"));
    }

    #[test]
    fn a_failure_keeps_its_exit_code_its_lines_and_its_hint() {
        let failure = Failure::rejected("refused\n  rtmr1: another").hint("measure it");
        let finding = Finding::of("release-refused", "it is refused", &failure);
        assert_eq!((finding.severity, finding.exit), (Severity::Problem, Some(Code::Rejected)));
        assert_eq!(finding.why, ["refused", "rtmr1: another"]);
        assert_eq!(finding.remedy.as_deref(), Some("measure it"));
        let finding = Finding::of("x", "y", &Failure::could_not_check("away"));
        assert_eq!(finding.severity, Severity::CouldNotCheck);
    }

    #[test]
    fn a_command_is_one_for_a_shell_at_every_width() {
        let command = "coffer publish acme/shop --endpoint shop.example:8443";
        assert_eq!(fitted(command, None), command);
        assert_eq!(fitted(command, Some(80)), command);
        let folded = fitted(command, Some(40));
        assert_eq!(folded, "coffer publish acme/shop \\\n            --endpoint shop.example:8443");
        assert_eq!(folded.replace("\\\n", "").split_whitespace().collect::<Vec<_>>().join(" "), command);
    }

    /// What stands between quotes or backticks and looks like a code.
    fn codes(text: &str, mark: char) -> std::collections::BTreeSet<&str> {
        let is_code = |word: &&str| {
            word.contains('-')
                && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
                && !word.starts_with('-')
        };
        text.split(mark).filter(is_code).filter(|word| *word != "could-not-check").collect()
    }

    #[test]
    fn every_code_is_documented_and_every_documented_one_exists() {
        let sources = [
            include_str!("../doctor.rs"),
            include_str!("release.rs"),
            include_str!("sealed.rs"),
            include_str!("status.rs"),
            include_str!("follow.rs"),
            include_str!("happened.rs"),
        ];
        let page = include_str!("../../../../../docs/operating.md");
        let section = page.split("\n## ").find(|part| part.starts_with("coffer doctor")).unwrap();
        let made: std::collections::BTreeSet<&str> =
            sources.iter().flat_map(|text| codes(text, '"')).collect();
        assert_eq!(made, codes(section, '`'));
        assert!(made.len() > 40, "{made:?}");
    }
}
