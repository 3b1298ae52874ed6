//! Appraisal: evidence in, one named check after the other out, and a verdict that follows from them.
//!
//! Every check says what it compared and, when it fails, what differs. "Checked and false" ([`Outcome::Fail`]) and "could
//! not check" ([`Outcome::CouldNotCheck`]) are different answers everywhere: the first rejects, the second never accepts. A comparison
//! that nobody asked for is [`Outcome::NotChecked`] and is reported, not hidden.

use cofferdam_protocol::evidence::{ChannelBinding, Nonce};
use cofferdam_protocol::{Commit, Digest, Endpoint, Repository, error_chain, hex};
use serde::{Serialize, Serializer};

use crate::claims::Claims;
use crate::dcap::{self, Platform};
use crate::event_log::Register;
use crate::event_log::payload::{Declaration, State, Upgrade};
use crate::evidence::{Collateral, Evidence};
use crate::policy::Policy;
use crate::quote::{self, Quote};
use crate::reference::ReferenceValues;

pub use crate::dcap::{RootError, Roots};

mod claims;
mod log;
mod platform;
mod registers;

/// How one check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Compared and true.
    Pass,
    /// Compared and false.
    Fail,
    /// Not asked for: no expectation, or nothing there to compare.
    NotChecked,
    /// Asked for, but something needed is missing (collateral, a reference value).
    CouldNotCheck,
}

/// The answer of an appraisal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that had to be checked was checked and is true.
    Accepted,
    /// At least one check is false.
    Rejected,
    /// Nothing is false, but something that had to be checked could not be.
    CouldNotCheck,
}

impl Verdict {
    /// What checks add up to: this is the only place where it is decided. False outweighs unknown, and where nothing was
    /// compared nothing is accepted.
    #[must_use]
    pub fn of(checks: &[Check]) -> Self {
        let any = |outcome| checks.iter().any(|check| check.outcome == outcome);
        if any(Outcome::Fail) || !any(Outcome::Pass) {
            Self::Rejected
        } else if any(Outcome::CouldNotCheck) {
            Self::CouldNotCheck
        } else {
            Self::Accepted
        }
    }

    /// As it is written in JSON and shown to people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Rejected => "rejected",
            Self::CouldNotCheck => "could_not_check",
        }
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// One comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable name, `snake_case`; a claim's check bears the claim's name.
    pub name: &'static str,
    /// How it came out.
    pub outcome: Outcome,
    /// What was found and, on failure, what differs.
    pub detail: String,
}

/// The result of an appraisal.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Appraisal {
    /// All checks in the order in which they were made.
    pub checks: Vec<Check>,
    /// Registers and attributes of the quote, when it parses. True only if the verdict is not `Rejected`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quote: Option<QuoteFacts>,
    /// TCB status and flags, when the chain verifies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The claims, when they decode. True only if the verdict is `Accepted`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claims: Option<Claims>,
    /// The nonce that the quote was asked over: a claim, or part of the document's challenge. True only if the verdict is `Accepted`.
    #[serde(skip)]
    pub nonce: Option<Nonce>,
    /// How the state is kept, as it was measured. True only if the verdict is `Accepted`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// The statement that let this boot open the state, as it was measured. True only if the verdict is `Accepted`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<Upgrade>,
    /// The declarations that were applied after launch, in order, as they were measured; the last one holds. Empty while the one that
    /// booted does. True only if the verdict is `Accepted`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub applied: Vec<Declaration>,
    /// Whether the chain ends in a root that is not Intel's: a simulated TD, which proves nothing about hardware.
    pub simulated: bool,
}

/// What a quote states, in printable form (registers as 96 hex digits).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuoteFacts {
    /// Quote format version.
    pub version: u16,
    /// MRTD.
    #[serde(serialize_with = "hex_bytes")]
    pub mrtd: Register,
    /// RTMR0.
    #[serde(serialize_with = "hex_bytes")]
    pub rtmr0: Register,
    /// RTMR1.
    #[serde(serialize_with = "hex_bytes")]
    pub rtmr1: Register,
    /// RTMR2.
    #[serde(serialize_with = "hex_bytes")]
    pub rtmr2: Register,
    /// RTMR3.
    #[serde(serialize_with = "hex_bytes")]
    pub rtmr3: Register,
    /// MRSEAM, the TDX module.
    #[serde(serialize_with = "hex_bytes")]
    pub mr_seam: Register,
    /// MRCONFIGID.
    #[serde(serialize_with = "hex_bytes")]
    pub mr_config_id: Register,
    /// MROWNER.
    #[serde(serialize_with = "hex_bytes")]
    pub mr_owner: Register,
    /// MROWNERCONFIG.
    #[serde(serialize_with = "hex_bytes")]
    pub mr_owner_config: Register,
    /// Report data.
    #[serde(serialize_with = "hex_bytes")]
    pub report_data: [u8; 64],
    /// TEE_TCB_SVN.
    #[serde(serialize_with = "hex_bytes")]
    pub tee_tcb_svn: [u8; 16],
    /// TD attributes as a number in hex, `0x10000000`.
    pub td_attributes: String,
    /// Their names.
    pub td_attribute_names: String,
    /// XFAM as a number in hex.
    pub xfam: String,
    /// Its names.
    pub xfam_names: String,
}

/// What a relying party expects. Everything is optional; what is absent is reported as not checked.
#[derive(Debug, Clone, Default)]
pub struct Expectations {
    /// Repository that was asked for.
    pub repository: Option<Repository>,
    /// Commit of the declaration.
    pub commit: Option<Commit>,
    /// Endpoint, as the declaration in the repository says.
    pub endpoint: Option<Endpoint>,
    /// Digest of the SubjectPublicKeyInfo seen on the connection.
    pub tls_key: Option<Digest>,
    /// Nonce that was sent.
    pub nonce: Option<Nonce>,
    /// RFC 9266 channel binding of the connection that the evidence came over.
    pub channel_binding: Option<ChannelBinding>,
    /// Digest of `cofferdam.yaml` in the repository at the claimed commit.
    pub declaration: Option<Digest>,
    /// Tag of the release that carried the document.
    pub tag: Option<crate::release::Tag>,
    /// Reference values of images and platforms; empty when there are none.
    pub reference: ReferenceValues,
    /// Whether evidence from before the launch boundary is acceptable as well: that of an appliance that waits to be unsealed and runs
    /// nothing yet. Its TLS key is in no event, so the quote binds it through nonce and channel binding alone: such evidence is refused
    /// unless `nonce`, `channel_binding` and `tls_key` are those of the connection that it came over, and in a release always.
    pub before_launch: bool,
    /// With `before_launch`: whether what the evidence is asked for travels sealed to its claim `vault_key`. Then `nonce` suffices, since
    /// it does not matter who relays it or which connection it came over.
    pub sealed_to_vault_key: bool,
    /// Whether to leave out what only explains: for a caller who goes through many documents. Which claim was changed is not searched
    /// for, and where the quote does not commit to the claims nothing else is looked at. The verdict does not depend on it.
    pub brief: bool,
}

/// Appraises an evidence document from its bytes: [`Evidence::parse`] as the check `document`, then [`appraise`].
pub fn appraise_document(
    json: &[u8],
    expected: &Expectations,
    policy: &Policy,
    roots: &Roots,
    now_unix: u64,
) -> Appraisal {
    match Evidence::parse(json) {
        Ok(evidence) => {
            let mut appraisal = Appraisal::default();
            appraisal.pass("document", format!("{} bytes, strict", json.len()));
            appraisal.evidence(&evidence, expected, policy, roots, now_unix);
            appraisal
        }
        Err(error) => {
            let mut appraisal = Appraisal::default();
            appraisal.fail("document", error_chain(&error));
            appraisal
        }
    }
}

/// Appraises evidence at `now_unix` (seconds since the Unix epoch).
pub fn appraise(
    evidence: &Evidence,
    expected: &Expectations,
    policy: &Policy,
    roots: &Roots,
    now_unix: u64,
) -> Appraisal {
    let mut appraisal = Appraisal::default();
    appraisal.evidence(evidence, expected, policy, roots, now_unix);
    appraisal
}

/// Appraises a bare quote: chain, TCB and attributes. It says nothing about what runs in the TD. Zero bytes after the quote
/// are dropped, because guest interfaces deliver quotes in a padded buffer; any other byte is refused.
pub fn appraise_quote(
    raw: &[u8],
    collateral: Option<&Collateral>,
    policy: &Policy,
    roots: &Roots,
    now_unix: u64,
) -> Appraisal {
    let mut appraisal = Appraisal::default();
    match quote::trim_padding(raw).and_then(|exact| Ok((exact, quote::parse(exact)?))) {
        Ok((exact, quote)) => {
            let padding = raw.len() - exact.len();
            let padded = if padding > 0 {
                format!(", {padding} zero bytes of padding dropped")
            } else {
                String::new()
            };
            appraisal.quote_parsed(&quote, exact.len(), &padded);
            appraisal.quote_itself(exact, &quote, collateral, policy, roots, now_unix);
        }
        Err(error) => appraisal.fail("quote_format", error.to_string()),
    }
    appraisal
}

impl Appraisal {
    /// What its checks add up to.
    pub fn verdict(&self) -> Verdict {
        Verdict::of(&self.checks)
    }

    /// The check of this name.
    pub fn check(&self, name: &str) -> Option<&Check> {
        self.checks.iter().find(|check| check.name == name)
    }

    /// Whether the evidence is from before the launch boundary, and [`Expectations::before_launch`] allowed that: nothing runs there yet.
    pub fn is_before_launch(&self) -> bool {
        self.check(log::BEFORE_LAUNCH).is_some()
    }

    /// The checks that are false.
    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.outcome == Outcome::Fail)
    }

    /// One line for a person: the verdict, `SIMULATED` where it applies, and the first reason against it.
    pub fn headline(&self) -> String {
        let simulated = if self.simulated { "SIMULATED: " } else { "" };
        let reason = |outcome| {
            let check = self.checks.iter().find(|check| check.outcome == outcome);
            check.map(|check| format!("{}: {}", check.name, check.detail)).unwrap_or_default()
        };
        match self.verdict() {
            Verdict::Accepted => format!("{simulated}accepted"),
            Verdict::Rejected => format!("{simulated}rejected: {}", reason(Outcome::Fail)),
            Verdict::CouldNotCheck => {
                format!("{simulated}could not check: {}", reason(Outcome::CouldNotCheck))
            }
        }
    }

    fn evidence(
        &mut self,
        evidence: &Evidence,
        expected: &Expectations,
        policy: &Policy,
        roots: &Roots,
        now: u64,
    ) {
        let quote = match quote::parse(&evidence.quote) {
            // Whoever publishes releases can make many such documents out of one, and a chain costs far more than this.
            Ok(quote) if expected.brief && !claims::bound(&quote, evidence) => {
                return self.fail("report_data", claims::UNBOUND);
            }
            Ok(quote) => {
                self.quote_parsed(&quote, evidence.quote.len(), "");
                self.quote_itself(&evidence.quote, &quote, evidence.collateral.as_ref(), policy, roots, now);
                Some(quote)
            }
            Err(error) => {
                self.fail("quote_format", error.to_string());
                None
            }
        };
        if let Some(quote) = &quote {
            registers::check(self, quote, &evidence.event_log, &expected.reference, policy);
        }
        log::check(self, quote.as_ref(), &evidence.event_log, expected, policy);
        claims::check(self, quote.as_ref(), evidence, expected, policy, now);
    }

    fn quote_parsed(&mut self, quote: &Quote, length: usize, note: &str) {
        self.quote = Some(QuoteFacts::new(quote));
        self.pass("quote_format", format!("TDX quote version {}, {length} bytes{note}", quote.version));
    }

    /// Everything that a quote shows by itself.
    fn quote_itself(
        &mut self,
        raw: &[u8],
        quote: &Quote,
        collateral: Option<&Collateral>,
        policy: &Policy,
        roots: &Roots,
        now: u64,
    ) {
        platform::attributes(self, quote, policy);
        let Some(collateral) = collateral else {
            let unknown = "no collateral: neither in the evidence nor given";
            return match dcap::signatures(raw, quote, roots, now) {
                Ok(()) => self.push("quote_chain", Outcome::CouldNotCheck, unknown),
                Err(error) => platform::refused(self, &error),
            };
        };
        match dcap::verify(raw, quote, collateral, roots, now) {
            Ok(found) => platform::check(self, found, policy, now),
            Err(error) => platform::refused(self, &error),
        }
    }

    fn push(&mut self, name: &'static str, outcome: Outcome, detail: impl Into<String>) {
        self.checks.push(Check { name, outcome, detail: detail.into() });
    }

    fn pass(&mut self, name: &'static str, detail: impl Into<String>) {
        self.push(name, Outcome::Pass, detail);
    }

    fn fail(&mut self, name: &'static str, detail: impl Into<String>) {
        self.push(name, Outcome::Fail, detail);
    }

    /// Passes with `detail`, or fails with the first of `problems`.
    fn require(&mut self, name: &'static str, detail: impl Into<String>, problems: &[String]) {
        if problems.is_empty() { self.pass(name, detail) } else { self.fail(name, problems.join("; ")) }
    }

    /// As [`Self::require`] where the policy demands something; what was found is shown otherwise.
    fn demand(&mut self, name: &'static str, demanded: bool, detail: String, problems: &[String]) {
        if demanded {
            self.require(name, detail, problems);
        } else {
            self.push(name, Outcome::NotChecked, format!("{detail}; none is demanded"));
        }
    }
}

impl QuoteFacts {
    fn new(quote: &Quote) -> Self {
        let [rtmr0, rtmr1, rtmr2, rtmr3] = quote.rtmr;
        Self {
            version: quote.version,
            mrtd: quote.mrtd,
            rtmr0,
            rtmr1,
            rtmr2,
            rtmr3,
            mr_seam: quote.mr_seam,
            mr_config_id: quote.mr_config_id,
            mr_owner: quote.mr_owner,
            mr_owner_config: quote.mr_owner_config,
            report_data: quote.report_data,
            tee_tcb_svn: quote.tee_tcb_svn,
            td_attributes: format!("{:#x}", quote.td_attributes),
            td_attribute_names: quote::attributes::describe(quote.td_attributes),
            xfam: format!("{:#x}", quote.xfam),
            xfam_names: quote::xfam::describe(quote.xfam),
        }
    }
}

fn hex_bytes<S: Serializer, const N: usize>(bytes: &[u8; N], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn false_outweighs_unknown_and_nothing_compared_is_nothing_accepted() {
        use Outcome::{CouldNotCheck, Fail, NotChecked, Pass};
        for (outcomes, verdict) in [
            (&[][..], Verdict::Rejected),
            (&[NotChecked], Verdict::Rejected),
            (&[CouldNotCheck], Verdict::Rejected),
            (&[Pass], Verdict::Accepted),
            (&[Pass, NotChecked], Verdict::Accepted),
            (&[Pass, CouldNotCheck, NotChecked], Verdict::CouldNotCheck),
            (&[Pass, CouldNotCheck, Fail], Verdict::Rejected),
            (&[Fail, Pass], Verdict::Rejected),
        ] {
            let check = |outcome: &Outcome| Check { name: "check", outcome: *outcome, detail: String::new() };
            let checks: Vec<Check> = outcomes.iter().map(check).collect();
            assert_eq!(Verdict::of(&checks), verdict, "{outcomes:?}");
            assert_eq!(Appraisal { checks, ..Appraisal::default() }.verdict(), verdict);
        }
    }
}
