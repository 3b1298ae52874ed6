//! Streaming redaction: no secret that a workload was given leaves the appliance in what it prints.
//!
//! A [`Redactor`] is made from the secrets of one service; each of the service's streams then passes through a
//! [`Stream`] of it. A secret is replaced by `[redacted:NAME]` wherever it stands
//!
//! - as it is; on one line or broken over several by a terminal, with LF or CRLF, with colours inside;
//! - line by line, when it has several;
//! - percent-encoded, in JSON, in C or a shell's quotes, each of its bytes escaped or not;
//! - in base64, standard or URL-safe, padded or not, wrapped or not, at any offset of a longer encoded text,
//!   and in base64 of that;
//! - in hexadecimal of either case, with the separators that common programs write;
//!
//! in one piece or in any number of pieces with any pauses between them. Everything else comes out byte for byte.
//!
//! Three bounds: what stands between two bytes of a secret is read up to [`MAX_GAP`] bytes of it, base64 of base64 for secrets of up
//! to [`MAX_TWICE`] bytes, and no more than [`MAX_HELD`] bytes are ever held back. What is beyond the first two is not found.
//!
//! What it does not do: it knows nothing of processes, files or time (the caller says when nothing has come for
//! a while), and it is no defence against a program that means to disguise a secret: a secret reversed, encrypted
//! or printed one byte per line with words between is not found. It stops accidents and talked-into agents that print
//! what they see; what may leave at all is the network policy's business.
//!
//! ```
//! let redactor = cofferdam_redact::Redactor::new([("api-token", "hunter2-hunter2")])?;
//! let mut stream = redactor.stream();
//! let mut out = Vec::new();
//! stream.push(b"token=hunter2-", &mut out);
//! stream.push(b"hunter2\n", &mut out);
//! stream.finish(&mut out);
//! assert_eq!(out, b"token=[redacted:api-token]\n");
//! # Ok::<(), cofferdam_redact::RedactError>(())
//! ```

mod base64;
mod decode;
mod index;
mod matcher;
mod pattern;
mod stream;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

pub use decode::MAX_GAP;
pub use pattern::MAX_TWICE;
pub use stream::{MAX_HELD, Stream};

use matcher::Matcher;
use pattern::Patterns;

/// The shortest secret, in bytes without line breaks. Three bytes stand by chance in every few kilobytes of numbers or
/// base64, so masking them would shred all output and show where they are.
pub const MIN_SECRET: usize = 4;
/// The longest secret, in bytes; the vault takes no longer ones either.
pub const MAX_SECRET: usize = 64 * 1024;
/// The most secrets of one redactor.
pub const MAX_SECRETS: usize = 1024;

/// Why no redactor can be made. Never holds a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedactError {
    /// Fewer than [`MIN_SECRET`] bytes.
    #[error("the secret {name} has fewer than {MIN_SECRET} bytes, too few to tell from other text")]
    TooShort {
        /// The secret's name.
        name: String,
    },
    /// More than [`MAX_SECRET`] bytes.
    #[error("the secret {name} has more than {MAX_SECRET} bytes")]
    TooLong {
        /// The secret's name.
        name: String,
    },
    /// More than [`MAX_SECRETS`] secrets.
    #[error("more than {MAX_SECRETS} secrets")]
    TooMany,
    /// A name that is empty, longer than 256 bytes, or has brackets or control characters.
    #[error("a secret's name cannot be shown")]
    Name,
}

/// The secrets of one service, ready to be searched for. Cheap to clone; its memory is zeroized with the last clone and stream.
#[derive(Clone)]
pub struct Redactor {
    matcher: Arc<RwLock<Arc<Matcher>>>,
}

impl Redactor {
    /// Prepares the secrets, each with the name that is shown in its place. No secrets at all are fine: then
    /// everything passes.
    ///
    /// # Errors
    /// When a secret is too short or too long to be searched for, or a name cannot be shown.
    pub fn new<N: Into<String>, V: AsRef<[u8]>>(
        secrets: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self, RedactError> {
        let matcher = Arc::new(Matcher::new(Patterns::new(secrets)?));
        Ok(Self { matcher: Arc::new(RwLock::new(matcher)) })
    }

    /// Searches for these from now on, in all streams of it and of its clones, from the next byte that is pushed. What a workload
    /// may still print has to be among them.
    ///
    /// # Errors
    /// As [`Redactor::new`]; then nothing changes.
    pub fn replace<N: Into<String>, V: AsRef<[u8]>>(
        &self,
        secrets: impl IntoIterator<Item = (N, V)>,
    ) -> Result<(), RedactError> {
        let matcher = Arc::new(Matcher::new(Patterns::new(secrets)?));
        *self.matcher.write().unwrap_or_else(PoisonError::into_inner) = matcher;
        Ok(())
    }

    /// Begins a stream. Streams of one redactor know nothing of each other.
    pub fn stream(&self) -> Stream {
        Stream::new(self.clone())
    }

    pub(crate) fn matcher(&self) -> Arc<Matcher> {
        Arc::clone(&self.matcher.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Redacts a text that is there as a whole.
    pub fn redact(&self, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len());
        let mut stream = self.stream();
        stream.push(text, &mut out);
        stream.finish(&mut out);
        out
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redactor").field("names", &self.matcher().patterns.names()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("held", &self.held()).finish_non_exhaustive()
    }
}
