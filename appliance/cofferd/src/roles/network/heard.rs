//! What the DHCP client tells nobody but its log: that a server refuses (DHCPNAK), that answers are malformed, that none come.
//!
//! The client passes over a refusal of a request or a renewal, and would ask for the refused address until its lease ends (RFC 2131
//! §3.1.5 and §4.4.5 have a client begin anew). It does say so in its log, which this listens to.

use std::sync::{Mutex, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record, SetLoggerError};
use tokio::sync::Notify;

/// How the client's message type of a refusal is written, behind the type that was expected.
const REFUSAL: &str = "got NACK";
/// Bound on a line that is kept, in characters.
const MAX_LINE: usize = 160;

/// The last line, and whether a refusal was among them.
#[derive(Debug, Default)]
pub(super) struct Heard {
    last: Mutex<Option<String>>,
    refused: Notify,
}

/// The one of this process.
pub(super) static HEARD: Heard = Heard { last: Mutex::new(None), refused: Notify::const_new() };

impl Heard {
    /// Listens from now on.
    ///
    /// # Errors
    /// Somebody listens already.
    pub(super) fn listen(&'static self) -> Result<(), SetLoggerError> {
        log::set_logger(self)?;
        log::set_max_level(LevelFilter::Debug);
        Ok(())
    }

    /// Returns when a server has refused, once for any number of times since it was last asked.
    pub(super) async fn refused(&self) {
        self.refused.notified().await;
    }

    /// The last line of note, which is then forgotten.
    pub(super) fn take(&self) -> Option<String> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn hear(&self, level: Level, line: &str) {
        if line.ends_with(REFUSAL) {
            self.refused.notify_one();
        }
        if level <= Level::Info {
            let line = line.chars().filter(|c| !c.is_control()).take(MAX_LINE).collect();
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(line);
        }
    }
}

impl Log for Heard {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("mozim") && metadata.level() <= Level::Debug
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.hear(record.level(), &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_refusal_is_heard_once_and_lines_are_bounded() {
        let heard = Heard::default();
        let refused = async || tokio::time::timeout(Duration::ZERO, heard.refused()).await.is_ok();
        heard.hear(Level::Debug, "Dropping DHCP message due to xid miss-match. Expecting 1, got 2");
        assert!(!refused().await && heard.take().is_none());
        // As the client writes it (`recv_dhcp_lease`), with its own name for the type.
        let kind = mozim::DhcpV4MessageType::Nack;
        for _ in 0..3 {
            heard.hear(
                Level::Debug,
                &format!("Dropping DHCP message due to type miss-match. Expecting ACK, got {kind}"),
            );
        }
        assert!(refused().await && !refused().await);
        heard.hear(Level::Info, &format!("Timeout\u{1b}[31m {}", "x".repeat(1000)));
        let line = heard.take().unwrap();
        assert!(line.len() == MAX_LINE && line.starts_with("Timeout[31m"), "{line}");
        assert!(heard.take().is_none());
    }
}
