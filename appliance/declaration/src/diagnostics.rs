//! What is wrong with a declaration, where, and what to write instead.
//!
//! A reader of these has the file open in an editor: every error has a line and a column, its source line and
//! a caret, and a hint when there is something better to write. All errors of a run are reported together, in
//! the order of the file, up to [`MAX_DIAGNOSTICS`]. Text that comes from the file is shown without control
//! characters, so a declaration cannot write to the terminal or the console that prints its errors; a value
//! that might be a credential written by mistake is not shown at all.

use std::fmt::{self, Write as _};

use cofferdam_protocol::visible;
use serde::Serialize;

/// More errors than this help nobody; the last one then says how many were left out.
pub const MAX_DIAGNOSTICS: usize = 40;

/// How much a remark weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The file is no declaration.
    Error,
    /// It is one, and hardly does what its author means.
    Warning,
    /// It is one, and something in it has no effect here or another than its reader may expect.
    Note,
}

/// One error or remark at its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How much it weighs.
    pub level: Level,
    /// What is wrong, lower case, without a full stop.
    pub message: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What to write instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The source line and the caret's place under it.
    #[serde(skip)]
    excerpt: Excerpt,
}

/// Everything that is wrong with one declaration; never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Diagnostics(Vec<Diagnostic>);

/// A place in the source: where something starts and how many characters of its line it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) width: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Excerpt {
    text: String,
    caret: usize,
    width: usize,
}

/// Collects errors and remarks while a file is read.
pub(crate) struct Collector<'s> {
    source: &'s str,
    found: Vec<(Place, Diagnostic)>,
    left_out: usize,
    /// Each with how often the same was found again.
    remarks: Vec<(Place, Diagnostic, usize)>,
}

impl Diagnostics {
    /// The one error of a file that is not even text, so without a source line.
    pub(crate) fn single(place: Place, message: String, hint: &str) -> Self {
        let hint = Some(hint.to_owned());
        Self(vec![Diagnostic {
            level: Level::Error,
            message,
            line: place.line,
            column: place.column,
            hint,
            excerpt: Excerpt::default(),
        }])
    }

    /// The errors in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.0.iter()
    }

    /// All errors as a person reads them, each with its place in the file of this name.
    pub fn render(&self, file: &str) -> String {
        self.0.iter().map(|diagnostic| diagnostic.render(file)).collect::<Vec<_>>().join("\n")
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render("cofferdam.yaml"))
    }
}

impl std::error::Error for Diagnostics {}

impl Diagnostic {
    /// `error: what`, `at file:line:column`, the line with a caret, `hint: what to write`; ends in a newline.
    pub fn render(&self, file: &str) -> String {
        let level = self.level.as_str();
        let mut out = format!("{level}: {}\n  at {file}:{}:{}\n", self.message, self.line, self.column);
        if !self.excerpt.text.is_empty() {
            let number = self.line.to_string();
            let margin = " ".repeat(number.len());
            let indent = " ".repeat(self.excerpt.caret);
            let carets = "^".repeat(self.excerpt.width.max(1));
            // Writing to a String cannot fail.
            let _ = writeln!(out, "  {number} | {}", self.excerpt.text);
            let _ = writeln!(out, "  {margin} | {indent}{carets}");
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(out, "  hint: {hint}");
        }
        out
    }
}

impl Level {
    /// The word before the message.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

impl<'s> Collector<'s> {
    pub(crate) fn new(source: &'s str) -> Self {
        Self { source, found: Vec::new(), left_out: 0, remarks: Vec::new() }
    }

    /// Something that has no effect here, or another than its reader may expect. The same is said once, at its first place.
    pub(crate) fn note(&mut self, place: Place, message: impl Into<String>, hint: impl Into<String>) {
        self.remark(Level::Note, place, message.into(), hint.into());
    }

    /// Something that hardly does what its author means. The same is said once, at its first place.
    pub(crate) fn warning(&mut self, place: Place, message: impl Into<String>, hint: impl Into<String>) {
        self.remark(Level::Warning, place, message.into(), hint.into());
    }

    fn remark(&mut self, level: Level, place: Place, message: String, hint: String) {
        if let Some((first, known, again)) =
            self.remarks.iter_mut().find(|(_, known, _)| known.message == message)
        {
            *again = again.saturating_add(1);
            if (place.line, place.column) < (first.line, first.column) {
                let excerpt = Excerpt::of(self.source, place, false);
                *known = Diagnostic { line: place.line, column: place.column, excerpt, ..known.clone() };
                *first = place;
            }
            return;
        }
        if self.remarks.len() >= MAX_DIAGNOSTICS {
            return;
        }
        let hint = Some(hint).filter(|hint| !hint.is_empty());
        let excerpt = Excerpt::of(self.source, place, false);
        let remark = Diagnostic { level, message, line: place.line, column: place.column, hint, excerpt };
        self.remarks.push((place, remark, 0));
    }

    /// The remarks in the order of the file.
    pub(crate) fn take_remarks(&mut self) -> Vec<Diagnostic> {
        let mut remarks = std::mem::take(&mut self.remarks);
        remarks.sort_by_key(|(place, ..)| (place.line, place.column));
        let remarks = remarks.into_iter().map(|(_, mut remark, again)| {
            if again > 0 {
                let _ = write!(remark.message, " (and {again} more)");
            }
            remark
        });
        remarks.collect()
    }

    pub(crate) fn error(&mut self, place: Place, message: impl Into<String>) {
        self.add(place, message.into(), None, false);
    }

    pub(crate) fn hinted(&mut self, place: Place, message: impl Into<String>, hint: impl Into<String>) {
        self.add(place, message.into(), Some(hint.into()), false);
    }

    pub(crate) fn value(&mut self, place: Place, error: cofferdam_protocol::WordError) {
        self.add(place, error.message, error.hint, false);
    }

    /// An error about a value that may be a credential: the source line is shown only up to the value.
    pub(crate) fn hidden(&mut self, place: Place, error: cofferdam_protocol::WordError) {
        self.add(place, error.message, error.hint, true);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The errors, or nothing when there are none.
    pub(crate) fn finish(mut self) -> Option<Diagnostics> {
        self.found.sort_by_key(|(place, _)| (place.line, place.column));
        if self.left_out > 0
            && let Some((_, last)) = self.found.last_mut()
        {
            let _ = write!(last.message, " (and {} more errors)", self.left_out);
        }
        let diagnostics: Vec<_> = self.found.into_iter().map(|(_, diagnostic)| diagnostic).collect();
        if diagnostics.is_empty() { None } else { Some(Diagnostics(diagnostics)) }
    }

    fn add(&mut self, place: Place, message: String, hint: Option<String>, hide: bool) {
        if self.found.len() >= MAX_DIAGNOSTICS {
            self.left_out += 1;
            return;
        }
        let excerpt = Excerpt::of(self.source, place, hide);
        let (level, line, column) = (Level::Error, place.line, place.column);
        let diagnostic = Diagnostic { level, message, line, column, hint, excerpt };
        self.found.push((place, diagnostic));
    }
}

impl Excerpt {
    /// The source line, with a window of it when it is long.
    fn of(source: &str, place: Place, hide: bool) -> Self {
        // What fits beside the line number in a terminal of 100 columns.
        const BEFORE: usize = 50;
        const WINDOW: usize = 90;
        let Some(line) = place.line.checked_sub(1).and_then(|index| source.split('\n').nth(index)) else {
            return Self::default();
        };
        let start = place.column.saturating_sub(1);
        let skipped = if start > WINDOW - 10 { start - BEFORE } else { 0 };
        let mut text: String =
            line.trim_end_matches('\r').chars().skip(skipped).take(WINDOW).map(visible).collect();
        let mut caret = start - skipped;
        let mut width = place.width.min(WINDOW.saturating_sub(caret));
        if hide {
            text = text.chars().take(caret).chain(['…']).collect();
            width = 1;
        }
        if skipped > 0 {
            text.insert(0, '…');
            caret += 1;
        }
        Self { text, caret, width }
    }
}
