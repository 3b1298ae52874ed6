//! One line per operation: who, what, how it ended; never a value.
//!
//! A line is made of validated parts only (uids, references, fingerprints, fixed words), so a peer can
//! put nothing of its own into it, and it is at most 14 KiB long ([`MAX_REFERENCES`](cofferdam_protocol::vault::MAX_REFERENCES)
//! references of 200 bytes).

use std::fmt;

use cofferdam_protocol::operator::Order;
use cofferdam_protocol::{Fingerprint, SecretRef};

/// What happened. [`fmt::Display`] writes the line, without a line feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit<'a> {
    /// The peer's uid as the kernel reports it.
    pub uid: u32,
    /// The operation.
    pub operation: Operation,
    /// Fingerprint of the operator, once authenticated.
    pub operator: Option<Fingerprint>,
    /// What it was about.
    pub references: &'a [SecretRef],
    /// The declared service that it was about.
    pub service: Option<&'a str>,
    /// How it ended: the HTTP status of the answer.
    pub status: u16,
}

/// What a peer asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A service or role leases secrets.
    Lease,
    /// A service waits for a change of secrets; audited when it is refused.
    Changed,
    /// A role says that an anchor of the state is published.
    Anchored,
    /// A request said to be an operator's that was refused before it was known what it wants.
    Authenticate,
    /// An operator stores a secret.
    Put,
    /// An operator lists the secrets.
    List,
    /// An operator removes a secret.
    Remove,
    /// An operator wants something of a service.
    Order(Order),
    /// An operator asks the front for something that the front serves itself.
    Allow,
    /// An operator asks whether the state is open.
    SealStatus,
    /// An operator sends what does not say yet what they want with the state.
    Unseal,
    /// An operator makes a state.
    CreateState,
    /// An operator opens the state with a passphrase or the recovery key.
    OpenState,
    /// An operator opens the state, or gives a share, with a statement that lets this appliance.
    UpgradeState,
    /// An operator gives a share.
    GiveShare,
    /// An operator replaces what opens the state.
    Rekey,
}

impl Operation {
    /// Its word in audit lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Changed => "changed",
            Self::Anchored => "anchored",
            Self::Authenticate => "authenticate",
            Self::Put => "put",
            Self::List => "list",
            Self::Remove => "remove",
            Self::Order(Order::Start) => "start-service",
            Self::Order(Order::Stop) => "stop-service",
            Self::Order(Order::Restart) => "restart-service",
            Self::Allow => "allow",
            Self::SealStatus => "seal-status",
            Self::Unseal => "unseal",
            Self::CreateState => "create-state",
            Self::OpenState => "open-state",
            Self::UpgradeState => "upgrade-state",
            Self::GiveShare => "give-share",
            Self::Rekey => "replace-key",
        }
    }
}

impl fmt::Display for Audit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "audit: {} uid={} status={}", self.operation.as_str(), self.uid, self.status)?;
        if let Some(operator) = self.operator {
            write!(f, " operator={operator}")?;
        }
        if let Some(service) = self.service {
            write!(f, " service={service}")?;
        }
        for reference in self.references {
            write!(f, " {reference}")?;
        }
        Ok(())
    }
}
