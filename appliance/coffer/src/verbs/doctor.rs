//! `coffer doctor`: what is wrong, and what helps.
//!
//! Goes the way that every verb goes (GitHub, the verified connection, the operator's answers), and as far on it as it can: a step that fails is
//! a finding instead of the end, and the next one begins with what is left. No step does with less than the other verbs ask for: where GitHub
//! does not vouch for what an appliance runs, it is not asked anything, and nothing that it says is shown.
//!
//! Each step has a part of the time limit, so that one that hangs leaves the others theirs.

use std::pin::pin;
use std::time::Duration;

use cofferdam_attest::appraise::Verdict;
use cofferdam_protocol::Endpoint;
use cofferdam_protocol::operator::EventsQuery;
use cofferdam_protocol::status::{RoleState, ServiceState, StatusReply};
use cofferdam_protocol::unseal::SEAL;

use crate::channel::{Channel, Stage};
use crate::cli;
use crate::failure::{Cause, Code, Failure, Outcome};
use crate::newest::{self, Verified};
use crate::operator_key::OperatorKey;
use crate::source::Source;
use crate::trust::{Trust, unix_now};
use crate::ui::{Ui, width_of};
use crate::{gave_up, within};

mod finding;
mod follow;
mod happened;
mod release;
mod sealed;
mod status;

use finding::{About, Finding, Report};

/// The parts of the time limit, together all of it: reference values, GitHub, the declaration (twice), evidence, the key alone, three answers.
const PARTS: u32 = 14;
const REFERENCES: u32 = 2;
const GITHUB: u32 = 3;
const DECLARED: u32 = 1;
const EVIDENCE: u32 = 3;
const PINNED: u32 = 1;
const ANSWER: u32 = 1;

pub(crate) async fn run(ui: &Ui, options: &cli::Doctor, limit: Duration) -> Outcome {
    let findings = Examination::new(options, limit).of(ui).await?;
    let repository = &options.appliance.repository;
    let report = Report::new(findings);
    ui.result(&report.text(ui, repository, width_of(&std::io::stdout())), report.to_json(repository));
    match report.exit() {
        None => Ok(()),
        // All that there is to say has been said.
        Some(code) => Err(Failure::new(code, "").rendered("")),
    }
}

/// One run, with what it has found so far.
struct Examination<'a> {
    options: &'a cli::Doctor,
    about: About<'a>,
    limit: Duration,
    found: Vec<Finding>,
    said_simulated: bool,
}

impl<'a> Examination<'a> {
    fn new(options: &'a cli::Doctor, limit: Duration) -> Self {
        let cli::Appliance { repository, endpoint, .. } = &options.appliance;
        let about = About { repository, endpoint: endpoint.as_ref() };
        Self { options, about, limit, found: Vec::new(), said_simulated: false }
    }

    fn part(&self, parts: u32) -> Duration {
        self.limit.saturating_mul(parts) / PARTS
    }

    /// Everything that is found. A failure is one of the command line: then nothing was looked at.
    async fn of(mut self, ui: &Ui) -> Outcome<Vec<Finding>> {
        let cli::Appliance { repository, trust, github, .. } = &self.options.appliance;
        let source = Source::new(repository, github)?;
        let key = self.key()?;
        let trust = match within(self.part(REFERENCES), Trust::load(trust, github)).await {
            Ok(trust) => trust,
            Err(failure) if failure.code == Code::Usage => return Err(failure),
            Err(failure) => {
                self.found.push(
                    Finding::of("references-away", "the reference values are not to be had", &failure)
                        .or_remedy("name them as files, or mend what keeps them away")
                        .run(self.about.command("doctor", "--reference measurements")),
                );
                self.not_asked("nothing can be verified without reference values");
                return Ok(self.found);
            }
        };
        let release = self.github(ui, &trust, &source).await?;
        if trust.has_no_reference() {
            self.found.push(
                Finding::unknown(
                    "no-reference-values",
                    "no reference values were named: nothing is verified without them",
                )
                .remedy("name what genuine appliances measure: --reference measurements, or COFFER_REFERENCE")
                .run(self.about.command("doctor", "--reference measurements")),
            );
            self.not_asked("nothing can be verified without reference values");
            return Ok(self.found);
        }
        let Some((verified, endpoint)) = release else { return Ok(self.found) };
        if let Some(channel) = self.connect(ui, &trust, &source, verified.as_ref(), &endpoint).await {
            self.ask(channel, key.as_ref()).await;
        }
        super::say_requests(ui, trust.requests + source.requests());
        Ok(self.found)
    }

    /// The operator's key. Without one there is less to be asked.
    fn key(&mut self) -> Outcome<Option<OperatorKey>> {
        match OperatorKey::load(&self.options.key) {
            Ok(key) => Ok(Some(key)),
            Err(failure) if failure.code == Code::NotAllowed => {
                let what = "without an operator's key the appliance is not asked for its status and events";
                self.found.push(
                    Finding::of("no-operator-key", what, &failure)
                        .or_remedy("name one with --key FILE")
                        .run(self.about.command("doctor", "--key operator.key")),
                );
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    /// What GitHub vouches for: the release attestation, if one is accepted, and where to dial. `None` where nobody knows that.
    async fn github(
        &mut self,
        ui: &Ui,
        trust: &Trust,
        source: &Source,
    ) -> Outcome<Option<(Option<Verified>, Endpoint)>> {
        let options = &self.options.appliance;
        let search = newest::newest(&options.repository, options.commit.into(), trust, source);
        let (limit, waiting) = (self.part(GITHUB), source.waiting());
        let mut search = pin!(super::saying(ui, &waiting, search));
        let found = match tokio::time::timeout(limit, &mut search).await {
            Ok(found) => found,
            // Nobody else is waited for.
            Err(_) => Err(gave_up(limit).because_of(Cause::GithubAway)),
        };
        let accepted = found.as_ref().ok().filter(|found| found.verdict == Verdict::Accepted);
        let known = options.endpoint.clone().or(accepted.map(|found| found.verified.claims.endpoint.clone()));
        let away = matches!(&found, Err(failure) if matches!(failure.cause, Some(Cause::GithubAway | Cause::GithubLimit)));
        let endpoint = match known {
            Some(endpoint) => Ok(endpoint),
            None if away => Err(None),
            None => {
                let declared = within(self.part(DECLARED), source.declared(options.commit)).await;
                declared
                    .and_then(|bytes| super::sealed::declared(&bytes))
                    .map(|declared| declared.endpoint)
                    .map_err(Some)
            }
        };
        let now = unix_now()?;
        match &found {
            Ok(found) => {
                self.found.extend(release::findings(&self.about, found, endpoint.as_ref().ok(), now));
            }
            Err(failure) => self.found.push(release::unavailable(&self.about, failure)),
        }
        let endpoint = match endpoint {
            Ok(endpoint) => endpoint,
            Err(failure) => {
                if let Some(failure) = failure {
                    self.found.push(
                        Finding::of(
                            "no-declaration",
                            "where the appliance answers is not declared",
                            &failure,
                        )
                        .or_remedy(
                            "have a valid cofferdam.yaml on the default branch, or name where it answers",
                        )
                        .run(self.about.command("doctor", "--endpoint HOST:PORT")),
                    );
                }
                self.not_asked("where it answers, and what it has to run, nobody vouches for");
                return Ok(None);
            }
        };
        let verified =
            found.ok().filter(|found| found.verdict == Verdict::Accepted).map(|found| found.verified);
        if let Some(verified) = &verified {
            self.simulated(ui, verified.judged.appraisal.simulated);
        }
        // Who names an endpoint begins anew, as with every verb: what answers there proves itself, whatever was released.
        let verified = verified.filter(|_| options.endpoint.is_none());
        Ok(Some((verified, endpoint)))
    }

    /// A connection to what GitHub vouches for, and nothing else.
    async fn connect(
        &mut self,
        ui: &Ui,
        trust: &Trust,
        source: &Source,
        release: Option<&Verified>,
        endpoint: &Endpoint,
    ) -> Option<Channel> {
        let (channel, is_fresh) = self.open(trust, release, endpoint).await?;
        let options = &self.options.appliance;
        match within(self.part(DECLARED), source.declaration(&channel.claims, options.commit)).await {
            Ok(_) => {}
            Err(failure) => {
                let (code, what) = match failure.code {
                    Code::Rejected => (
                        "declaration-differs",
                        "the appliance runs another declaration than the repository's",
                    ),
                    _ => (
                        "declaration-unchecked",
                        "what the appliance runs could not be compared with the repository: it is not asked further",
                    ),
                };
                self.found.push(
                    Finding::of(code, what, &failure)
                        .or_remedy(
                            "boot it with the declaration of the default branch, once GitHub tells that one",
                        )
                        .run(self.about.at(None, "verify", "")),
                );
                return None;
            }
        }
        if is_fresh {
            self.found.push(Finding::ok(
                "evidence",
                &format!("{endpoint} has proved by fresh evidence what it is"),
            ));
        }
        self.simulated(ui, channel.appraisal.simulated);
        Some(channel)
    }

    /// A verified connection, and whether it was verified by evidence of now. While there is none, the holder of the key that a release
    /// vouches for may be asked what is only read, as by `coffer status`.
    async fn open(
        &mut self,
        trust: &Trust,
        release: Option<&Verified>,
        endpoint: &Endpoint,
    ) -> Option<(Channel, bool)> {
        let repository = self.about.repository;
        let (claims, released) = (release.map(|release| &release.claims), release.is_some());
        let opened = Channel::open(endpoint, repository, trust, claims, None, Stage::Waiting);
        let failure = match within(self.part(EVIDENCE), opened).await {
            Ok(channel) => return Some((channel, true)),
            Err(failure) => failure,
        };
        let Some(release) = release.filter(|_| may_be_evidence_alone(&failure)) else {
            self.unreached(endpoint, &failure, released);
            return None;
        };
        match within(self.part(PINNED), Channel::pinned(endpoint, release, trust)).await {
            Ok(Some(channel)) => {
                let what = format!(
                    "no fresh evidence of {endpoint} could be checked: clients that verify anew are turned away"
                );
                self.found.push(
                    Finding::of("evidence-away", &what, &failure)
                        .remedy("the role evidence may be starting again, or asked by too many: the events say more")
                        .run(self.about.command("events", "--since 10m")),
                );
                Some((channel, false))
            }
            Err(refused) if refused.code == Code::Rejected => {
                self.unreached(endpoint, &refused, released);
                None
            }
            // What could not be checked is whether anybody is there.
            _ => {
                self.unreached(endpoint, &failure, released);
                None
            }
        }
    }

    /// Says once what kind of device it is.
    fn simulated(&mut self, ui: &Ui, simulated: bool) {
        crate::ui::is_simulated(simulated);
        if simulated && !self.said_simulated {
            self.said_simulated = true;
            ui.warn("SIMULATED: this appliance runs on a simulated TDX device");
        }
    }

    /// Nobody is there, or nobody who proves what they are.
    fn unreached(&mut self, endpoint: &Endpoint, failure: &Failure, released: bool) {
        let (code, what) = match (failure.cause, failure.code) {
            _ if failure.after_reboot => {
                ("another-key", format!("{endpoint} holds another key than the release attestation says"))
            }
            (Some(Cause::Times), _) => ("times-refused", format!("{endpoint} shows times that are not now")),
            (_, Code::Rejected) => {
                ("evidence-refused", format!("{endpoint} is not the appliance, or no genuine one"))
            }
            _ => ("appliance-away", format!("{endpoint} does not answer as an appliance")),
        };
        let finding = Finding::of(code, &what, failure);
        // Where a release says it, it need not be named, and is better not: then its key is known as well.
        let named = if released { self.about.endpoint } else { Some(endpoint) };
        self.found.push(match failure.cause {
            _ if failure.after_reboot => {
                // Its own evidence tells whether it was a reboot.
                finding
                    .remedy("after a reboot the next release attestation settles it; until then its own evidence tells, at the endpoint that is named")
                    .run(self.about.at(Some(endpoint), "doctor", ""))
            }
            Some(Cause::Times) => finding
                .or_remedy("compare the clock here with that of the appliance's host")
                .run("date -u".to_owned()),
            _ => finding.or_remedy("see what answers there, and whether it is the appliance").run(self.about.at(named, "status", "--wait")),
        });
    }

    /// What the appliance says to its operators. One answer that does not come says nothing about the next one; a connection that is gone does.
    async fn ask(&mut self, mut channel: Channel, key: Option<&OperatorKey>) {
        let is_sealed = channel.appraisal.is_before_launch();
        let Some(key) = key else {
            self.found.extend(is_sealed.then(|| sealed::closed(&self.about)));
            return;
        };
        if is_sealed {
            let asked = within(self.part(ANSWER), async {
                let reply = channel.request(key, "GET", SEAL, Vec::new()).await?;
                super::sealed::status_in(&reply, "the appliance says nothing of its state")
            });
            match asked.await {
                Ok(status) => self.found.extend(sealed::findings(&self.about, &status)),
                Err(failure) => {
                    self.found.push(sealed::closed(&self.about));
                    self.unanswered("seal-unanswered", "what opens the state is not said", &failure);
                }
            }
        }
        let asked = within(self.part(ANSWER), super::status::ask(&mut channel, key));
        let status = match asked.await {
            Ok(status) => status,
            Err(failure) => {
                return self.unanswered("status-unanswered", "the appliance tells no status", &failure);
            }
        };
        let now = unix_now().unwrap_or_default();
        self.found.extend(status::findings(&self.about, &status, is_sealed, now));
        let query = EventsQuery::Last(happened::LAST_MS);
        match within(self.part(ANSWER), super::events::ask(&mut channel, key, query)).await {
            Ok(events) => {
                let told = |name: &str| is_told(&status, name);
                self.found.extend(happened::findings(&self.about, &events, told));
            }
            Err(failure) => self.unanswered("events-unanswered", "the appliance tells no events", &failure),
        }
    }

    fn unanswered(&mut self, code: &'static str, what: &str, failure: &Failure) {
        let finding = match failure.code {
            Code::NotAllowed => Finding::of(
                "not-an-operator",
                "the appliance knows no operator with this key",
                failure,
            )
            .remedy(
                "use the key that the declaration names, or have yours added to `operators` and boot with it",
            )
            .run(self.about.command("doctor", "--key operator.key")),
            _ => Finding::of(code, what, failure)
                .or_remedy("wait a moment and ask again")
                .run(self.about.command("status", "--wait")),
        };
        self.found.push(finding);
    }

    fn not_asked(&mut self, why: &str) {
        self.found.push(
            Finding::unknown("appliance-not-asked", "the appliance was not asked")
                .because(why)
                .remedy("mend that first, then look again")
                .run(self.about.command("doctor", "")),
        );
    }
}

/// Whether the appliance may be there all the same: what failed was no reach, and nothing was false.
fn may_be_evidence_alone(failure: &Failure) -> bool {
    failure.code == Code::CouldNotCheck && failure.cause.is_none()
}

/// Whether the status has said about this role or service that it does not run.
fn is_told(status: &StatusReply, name: &str) -> bool {
    let role = status.roles.iter().flatten().find(|role| role.name == name);
    let service = status.services.iter().find(|service| service.name == name);
    role.is_some_and(|role| role.state != RoleState::Running)
        || service.is_some_and(|service| service.state != ServiceState::Running)
}
