//! What happened in an appliance: the entries of its roles' rings, and the lines that an operator gets of all of them.
//!
//! No entry holds a value of a secret. Text that is not the appliance's own (names that a service dialled, what GitHub said) is bounded and
//! visible before it is written.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::certificate::CertificateState;
use super::change::Change;
use super::follow::Found;
use super::status::{ClockChange, DeniedWhy, HealthState, Killed, PublishState, ServiceState};
use crate::json::{self, JsonError};
use crate::{Fingerprint, SecretRef, TimestampMillis};

/// Bound on one entry, and on one line of the reply, in bytes.
pub const MAX_ENTRY: usize = 8 * 1024;
/// Secrets that an entry names; the others are counted.
pub const MAX_REFERENCES: usize = 8;
/// Bound on a text in an entry, in bytes before JSON's escapes.
pub const MAX_TEXT: usize = 512;

/// One entry of a ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Counts the entries of this ring, from 1: what is missing between two has been overwritten.
    pub number: u64,
    /// When, by the host's clock.
    pub at: TimestampMillis,
    /// Milliseconds since the kernel started, which the host's clock does not change.
    pub up_ms: u64,
    /// What.
    pub event: Happened,
}

/// A line of the reply to `GET` [`super::operator::EVENTS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// The role whose ring it is from; `init` is PID 1.
    pub role: String,
    /// The service that it is about, where there is a ring for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// As [`Entry::number`].
    pub number: u64,
    /// As [`Entry::at`].
    pub at: TimestampMillis,
    /// As [`Entry::up_ms`].
    pub up_ms: u64,
    /// As [`Entry::event`].
    pub event: Happened,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Happened {
    /// A role or a shim ended.
    RoleEnded {
        /// Its name as on the command line.
        name: String,
        /// Its exit code or signal, in words.
        how: String,
        /// When it starts again, in milliseconds; absent while the machine ends.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        again_ms: Option<u64>,
    },
    /// PID 1 ended a service because the machine ran out of memory.
    OutOfMemory {
        /// The shim's name as on the command line.
        name: String,
        /// Why this one.
        killed: Killed,
    },
    /// A service came to another state.
    Service {
        /// Which.
        state: ServiceState,
        /// How its workload last ended, when it has.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        /// Why, when it was for want of memory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        killed: Option<Killed>,
        /// What the shim says about it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// The probes of a service came to something else.
    Health {
        /// What.
        state: HealthState,
    },
    /// Secrets of a running service were put again.
    SecretsChanged {
        /// What happens to it, as its declaration says it.
        on_change: String,
    },
    /// Somebody asked the vault for something.
    Audit {
        /// For what.
        operation: String,
        /// The uid of the role or service that asked, or that relayed.
        uid: u32,
        /// The operator who signed, where one did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        operator: Option<Fingerprint>,
        /// The secrets that it was about, at most [`MAX_REFERENCES`].
        references: Vec<SecretRef>,
        /// Further ones.
        further: usize,
        /// The declared service that it was about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<String>,
        /// The status of the answer.
        status: u16,
    },
    /// Further requests were refused, too many to be listed one by one.
    Refused {
        /// How many.
        count: u32,
    },
    /// The appliance's address is another, or there is none.
    Address {
        /// With the length of its prefix.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<String>,
        /// What went wrong.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// The role `publish` came to another state.
    Publish {
        /// Which.
        state: PublishState,
        /// Why, or what for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// The certificate that browsers accept came to another state.
    Certificate {
        /// Which.
        state: CertificateState,
        /// Why, or what for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// The head of the followed branch is another one, or is judged otherwise.
    Follow {
        /// What it is to what runs.
        found: Found,
    },
    /// Another declaration was to run, and what became of it.
    Change {
        /// That.
        change: Change,
    },
    /// PID 1 set the clock, as servers say, or did not because that would be too far.
    Clock {
        /// What it did.
        change: ClockChange,
    },
    /// A service did not get what it wanted outside; at most one in a second.
    Denied {
        /// What it wanted last: the service's own choice.
        target: String,
        /// Why it did not get it.
        why: DeniedWhy,
        /// How many attempts came to nothing since the last such event.
        count: u64,
        /// The entry of `egress` that would allow it, where there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        allow: Option<String>,
    },
}

impl Entry {
    /// Reads one line of a ring.
    ///
    /// # Errors
    /// It is too long or not of this shape.
    pub fn parse(line: &[u8]) -> Result<Self, JsonError> {
        json::from_json(line, MAX_ENTRY)
    }
}

impl Event {
    /// Reads one line of the reply.
    ///
    /// # Errors
    /// It is too long or not of this shape.
    pub fn parse(line: &[u8]) -> Result<Self, JsonError> {
        json::from_json(line, MAX_ENTRY)
    }
}

/// A text as an entry may hold it: visible, and of at most [`MAX_TEXT`] bytes.
pub fn bounded(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars().map(|c| if c.is_control() { '?' } else { c }) {
        if out.len().saturating_add(character.len_utf8()) > MAX_TEXT {
            break;
        }
        out.push(character);
    }
    out
}

impl fmt::Display for Happened {
    /// For people, in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RoleEnded { name, how, again_ms: Some(ms) } => {
                write!(f, "{name} ended ({how}), again in {ms} ms")
            }
            Self::RoleEnded { name, how, again_ms: None } => write!(f, "{name} ended ({how})"),
            Self::OutOfMemory { name, killed } => {
                write!(f, "the machine ran out of memory: {name} ended: {killed}")
            }
            Self::Service { state, exit_code, killed, detail } => {
                f.write_str(state.as_str())?;
                if let Some(code) = exit_code {
                    write!(f, ", last exit code {code}")?;
                }
                if let Some(killed) = killed {
                    write!(f, ", killed: {killed}")?;
                }
                detail.iter().try_for_each(|detail| write!(f, ": {detail}"))
            }
            Self::Health { state } => f.write_str(state.as_str()),
            Self::SecretsChanged { on_change } => write!(f, "secrets were put again: {on_change}"),
            Self::Audit { operation, uid, operator, references, further, service, status } => {
                write!(f, "{operation} uid={uid} status={status}")?;
                operator.iter().try_for_each(|operator| write!(f, " operator={operator}"))?;
                service.iter().try_for_each(|service| write!(f, " service={service}"))?;
                references.iter().try_for_each(|reference| write!(f, " {reference}"))?;
                if *further > 0 { write!(f, " and {further} more") } else { Ok(()) }
            }
            Self::Refused { count } => write!(f, "{count} further requests were refused"),
            Self::Address { address, detail } => {
                f.write_str(address.as_deref().unwrap_or("no address"))?;
                detail.iter().try_for_each(|detail| write!(f, ": {detail}"))
            }
            Self::Publish { state, detail } => {
                f.write_str(state.as_str())?;
                detail.iter().try_for_each(|detail| write!(f, ": {detail}"))
            }
            Self::Certificate { state, detail } => {
                write!(f, "certificate {}", state.as_str())?;
                detail.iter().try_for_each(|detail| write!(f, ": {detail}"))
            }
            Self::Follow { found } => write!(f, "follow: {found}"),
            Self::Change { change } => write!(f, "{change}"),
            Self::Clock { change } => write!(f, "the clock {change}"),
            Self::Denied { target, why, count, allow } => {
                write!(f, "denied {target} ({})", why.as_str())?;
                if *count > 1 {
                    write!(f, " and {} more", count.saturating_sub(1))?;
                }
                allow.iter().try_for_each(|allow| write!(f, "; egress: [{allow:?}] would allow it"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::change::Outcome;
    use super::super::follow::Why;
    use super::super::status::ClockHow;
    use super::*;
    use crate::{Commit, Digest, Timestamp};

    #[test]
    fn a_change_of_the_clock_is_said_with_its_direction() {
        let said = |how, by_ms| Happened::Clock { change: ClockChange { how, by_ms } }.to_string();
        assert_eq!(said(ClockHow::Stepped, -3_600_250), "the clock was set back by 3600.2 s");
        assert_eq!(said(ClockHow::Slewed, 4_900), "the clock is slewed forward by 4.9 s");
        let far = "the clock is 90000 s ahead, too far from what the host said at boot to be set";
        assert_eq!(said(ClockHow::TooFar, -90_000_000), far);
        assert!(said(ClockHow::Stepped, i64::MIN).contains("back by 9223372036854775.8 s"));
    }

    #[test]
    fn a_text_is_visible_and_bounded() {
        assert_eq!(bounded("a\n\u{1b}b"), "a??b");
        assert_eq!(bounded(&"é".repeat(1000)).len(), MAX_TEXT);
    }

    #[test]
    fn the_largest_entry_is_within_its_bound_and_every_line_is_read_as_it_was_written() {
        let reference: SecretRef = format!("secret://{0}/{0}/{0}", "a".repeat(63)).parse().unwrap();
        let text = bounded(&"\"".repeat(1000));
        let events = [
            Happened::RoleEnded { name: "shim web".into(), how: "SIGKILL".into(), again_ms: Some(100) },
            Happened::OutOfMemory { name: "shim web".into(), killed: Killed::UncountedMemory },
            Happened::Service {
                state: ServiceState::Restarting,
                exit_code: Some(137),
                killed: Some(Killed::OutOfMemory { limit: 1 << 29 }),
                detail: Some(text.clone()),
            },
            Happened::Audit {
                operation: "lease".into(),
                uid: u32::MAX,
                operator: Some(Fingerprint::of(&[7; 32])),
                references: vec![reference; MAX_REFERENCES],
                further: 56,
                service: Some("a".repeat(31)),
                status: 200,
            },
            Happened::Publish { state: PublishState::Failed, detail: Some(text.clone()) },
            Happened::Certificate { state: CertificateState::Ordering, detail: Some(text.clone()) },
            Happened::Follow {
                found: Found::Refused {
                    commit: Commit::from([7; 20]),
                    why: Why::OtherSignature,
                    detail: text.clone(),
                },
            },
            Happened::Change {
                change: Change {
                    commit: Commit::from([7; 20]),
                    declaration: Digest::of(b""),
                    at: Timestamp::EPOCH,
                    outcome: Outcome::RolledBack,
                    detail: Some(text.clone()),
                },
            },
            Happened::Clock { change: ClockChange { how: ClockHow::Stepped, by_ms: i64::MIN } },
            Happened::Denied {
                target: text.clone(),
                why: DeniedWhy::TooManyNames,
                count: u64::MAX,
                allow: Some(text),
            },
        ];
        for event in events {
            let at = TimestampMillis::from_clock(std::time::UNIX_EPOCH);
            let entry = Entry { number: u64::MAX, at, up_ms: u64::MAX, event: event.clone() };
            let line = json::to_vec(&entry).unwrap();
            assert!(line.len() < MAX_ENTRY / 2, "{}", line.len());
            assert_eq!(Entry::parse(&line).unwrap(), entry);
            let service = Some("a".repeat(31));
            let event = Event { role: "egress".into(), service, number: 1, at, up_ms: 2, event };
            let line = json::to_vec(&event).unwrap();
            assert_eq!(Event::parse(&line).unwrap(), event);
            assert!(!event.event.to_string().contains('\n'));
        }
    }
}
