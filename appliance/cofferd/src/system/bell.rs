//! A bell: somebody says that there is something, and nothing else.
//!
//! A FIFO in the directory of whoever rings. PID 1 has both of its ends open, so that it never comes to an end, empties it, and looks at
//! no byte. Whoever rings all the time is heard once in [`PAUSE`].

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{OpenOptionsExt as _, chown};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc::O_NONBLOCK;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// Shortest time between two times that it is heard: what follows starts a process.
const PAUSE: Duration = Duration::from_secs(5);
/// What is read at one look. More means the same.
const AT_ONCE: usize = 4096;

/// PID 1's side.
#[derive(Debug)]
pub(crate) struct Bell {
    heard: File,
    deaf_until: Option<Instant>,
}

impl Bell {
    /// Makes it for `owner`, who alone rings.
    ///
    /// # Errors
    ///
    /// The file cannot be made: there is another one of that name.
    pub(crate) fn hang(path: &Path, owner: u32) -> io::Result<Self> {
        mkfifo(path, Mode::S_IWUSR)?;
        chown(path, Some(owner), Some(owner))?;
        let heard = OpenOptions::new().read(true).write(true).custom_flags(O_NONBLOCK).open(path)?;
        Ok(Self { heard, deaf_until: None })
    }

    /// What to wait for; `None` while it is not listened to.
    pub(crate) fn descriptor(&self, now: Instant) -> Option<BorrowedFd<'_>> {
        self.deaf_for(now).is_none().then(|| self.heard.as_fd())
    }

    /// How long it is not listened to yet.
    pub(crate) fn deaf_for(&self, now: Instant) -> Option<Duration> {
        self.deaf_until.and_then(|until| until.checked_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Whether somebody has rung since the last time.
    pub(crate) fn rang(&mut self, now: Instant) -> bool {
        if self.deaf_for(now).is_some() {
            return false;
        }
        let rang = (&self.heard).read(&mut [0; AT_ONCE]).is_ok_and(|read| read > 0);
        if rang {
            self.deaf_until = now.checked_add(PAUSE);
        }
        rang
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn it_is_heard_once_however_often_it_rings() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bell");
        let mut bell = Bell::hang(&path, nix::unistd::getuid().as_raw()).unwrap();
        assert!(Bell::hang(&path, 0).is_err(), "one that somebody else has put there is none");
        let begin = Instant::now();
        assert!(!bell.rang(begin));
        let ring = |bytes: usize| {
            let mut rope = OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(&path).unwrap();
            rope.write(&vec![0; bytes]).unwrap()
        };
        // It is full at some point, and whoever rings does not wait.
        ring(1);
        ring(1 << 20);
        assert!(bell.descriptor(begin).is_some());
        assert!(bell.rang(begin));
        assert!(!bell.rang(begin));
        assert!(bell.descriptor(begin).is_none());
        assert_eq!(bell.deaf_for(begin), Some(PAUSE));
        let later = begin + PAUSE;
        assert!(bell.descriptor(later).is_some());
        while bell.rang(begin + 10 * PAUSE) {
            bell.deaf_until = None;
        }
        assert!(!bell.rang(later), "and not without somebody who rings");
    }
}
