//! `coffer plan`: what a declaration would change of what runs, what that takes, and the register that it would lead to.
//!
//! What changes is decided by the same code as in the appliance ([`Change`]), and the events are those that it measures
//! ([`payload::applied`]). Nothing is asked of the appliance and nothing is changed.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use cofferdam_attest::event_log::{Event, has_room, payload, replay};
use cofferdam_attest::evidence::Evidence;
use cofferdam_declaration::{Change, Declaration, MAX_BYTES, SignerKey};
use cofferdam_protocol::{Commit, Digest, Repository, hex};
use serde_json::{Value, json};

use super::{check, up, verify};
use crate::cli;
use crate::failure::{Failure, Outcome, chain};
use crate::files;
use crate::newest::{Verified, Wanted};
use crate::source::{DECLARATION, Source};
use crate::trust::Trust;
use crate::ui::{Tone, Ui, printable};

pub(crate) async fn run(ui: &Ui, options: &cli::Plan) -> Outcome {
    let (repository, file) = named(options)?;
    let next = Next::read(ui, &file)?;
    if let Some(path) = &options.running {
        let running = Next::read(ui, path)?;
        let change = Change::between(&running.declaration, &next.declaration);
        let outlook = Outlook::of(&change, &running.declaration, None, Err(OFFLINE.to_owned()));
        let text = format!("{} instead of {}\n", next.name, running.name) + &lines(ui, &change, &outlook);
        let running = json!({ "file": running.name, "declaration": running.digest });
        ui.result(&text, object((&next, None), running, &change, &outlook));
        return Ok(());
    }
    let repository = repository.unwrap_or_else(|| next.declaration.repository.clone());
    let running = Running::of(ui, &repository, &options.trust, &options.github).await?;
    let change = Change::between(&running.declaration, &next.declaration);
    let commit = match options.commit {
        Some(commit) => Ok(commit),
        None if file == Path::new("-") => {
            Err("RTMR3 depends on the commit: name it with --commit".to_owned())
        }
        None => up::committed(&file, &next.bytes)
            .map_err(|failure| format!("RTMR3 depends on the commit: {}", failure.message)),
    };
    let events = match &commit {
        // The same bytes are not measured again, whichever commit has them.
        _ if next.digest == running.verified.claims.declaration => Ok(Vec::new()),
        Ok(commit) => measures(&next.declaration, next.digest, *commit).map(Ok)?,
        Err(why) => Err(why.clone()),
    };
    let claims = &running.verified.claims;
    // The appliance keeps room for the way back.
    let back = measures(&running.declaration, claims.declaration, claims.commit)?;
    let outlook = Outlook::of(&change, &running.declaration, Some((&running.log, &back)), events);
    let text = format!(
        "{} instead of commit {}, which {repository} runs as of {}\n",
        next.name, claims.commit, claims.issued_at
    ) + &lines(ui, &change, &outlook);
    let described = json!({
        "repository": claims.repository, "commit": claims.commit, "declaration": claims.declaration,
        "release": running.verified.tag.to_string(), "sealed": claims.sealed,
        "simulated": running.verified.judged.appraisal.simulated,
    });
    ui.result(&text, object((&next, commit.ok()), described, &change, &outlook));
    Ok(())
}

/// Why nothing is predicted from two files.
const OFFLINE: &str = "RTMR3 depends on what the appliance has measured: plan against OWNER/REPO";

/// The repository, if it is named, and the declaration's file.
fn named(options: &cli::Plan) -> Outcome<(Option<Repository>, PathBuf)> {
    let is_file = |word: &str| word == "-" || word.ends_with(".yaml") || word.ends_with(".yml");
    let (repository, file) = match (&options.first, &options.file) {
        (None, _) => (None, DECLARATION.into()),
        (Some(one), None) if options.running.is_some() || is_file(one) => (None, one.into()),
        (Some(one), file) => (Some(one), file.clone().unwrap_or_else(|| DECLARATION.into())),
    };
    let repository = repository.map(|word| {
        word.parse::<Repository>().map_err(|error| {
            Failure::usage(format!("{}: {error}", printable(word)))
                .hint("coffer plan OWNER/REPO FILE; a declaration alone ends in .yaml")
        })
    });
    Ok((repository.transpose()?, file))
}

/// A declaration from a file.
pub(super) struct Next {
    /// The file's.
    pub(super) name: String,
    /// As they stand in it.
    pub(super) bytes: Vec<u8>,
    /// Of the bytes.
    pub(super) digest: Digest,
    /// What they say.
    pub(super) declaration: Declaration,
}

impl Next {
    /// Reads it, and points at each mistake.
    pub(super) fn read(ui: &Ui, path: &Path) -> Outcome<Self> {
        let bytes = files::read_or_stdin(path, MAX_BYTES)?;
        let name = if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() };
        let declaration =
            Declaration::parse(&bytes).map_err(|mistakes| check::refused(ui, &mistakes, &name))?;
        Ok(Self { name: printable(&name), digest: Digest::of(&bytes), bytes, declaration })
    }
}

/// What a declaration measures when it is applied at run time.
fn measures(declaration: &Declaration, digest: Digest, commit: Commit) -> Outcome<Vec<Event>> {
    let services = declaration.services.iter().map(|service| (service.name.as_str(), &service.image));
    payload::applied(digest, commit, services).map_err(|error| Failure::failed(chain(&error)))
}

/// What an appliance runs.
pub(super) struct Running {
    /// What says so.
    pub(super) verified: Verified,
    /// As the repository has it.
    pub(super) declaration: Declaration,
    /// What was measured up to then.
    pub(super) log: Vec<Event>,
}

impl Running {
    /// As the newest release attestation that verifies says it, whether or not the default branch declares it still.
    pub(super) async fn of(
        ui: &Ui,
        repository: &Repository,
        trust: &cli::Trust,
        github: &cli::Github,
    ) -> Outcome<Self> {
        let trust = Trust::load(trust, github).await?;
        let source = Source::new(repository, github)?;
        let verified = verify::verified_release(ui, repository, Wanted::Any, &trust, &source).await;
        super::say_requests(ui, trust.requests + source.requests());
        let verified = verified?;
        crate::ui::is_simulated(verified.judged.appraisal.simulated);
        if verified.judged.appraisal.simulated {
            ui.warn("SIMULATED: this appliance runs on a simulated TDX device");
        }
        // It was compared just now; what GitHub says this time has to be the same bytes.
        let commit = verified.claims.commit;
        let bytes = source.declared(Some(commit)).await?;
        if Digest::of(&bytes) != verified.claims.declaration {
            return Err(Failure::could_not_check(format!(
                "GitHub gave two answers for {DECLARATION} at {commit}"
            )));
        }
        let declaration = Declaration::parse(&bytes).map_err(|_| {
            Failure::could_not_check(format!(
                "{DECLARATION} at {commit} is nothing that this coffer can read"
            ))
            .hint("a newer version of coffer may")
        })?;
        let log =
            Evidence::parse(&verified.document).map_err(|error| Failure::failed(chain(&error)))?.event_log;
        Ok(Self { verified, declaration, log })
    }
}

/// How a change can come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Applies {
    /// There is nothing to change.
    Nothing,
    /// The appliance that runs applies it.
    RunTime,
    /// Only a boot with this declaration does.
    Boot,
    /// The appliance that runs takes no declaration any more; only a boot does.
    Sealed,
}

/// What follows from a change.
pub(super) struct Outlook {
    applies: Applies,
    /// Whose signature its commit needs.
    pub(super) signers: Vec<String>,
    /// Why it takes a boot.
    pub(super) because: Option<String>,
    /// RTMR3 afterwards, or why it is not predicted.
    rtmr3: Result<String, String>,
}

impl Outlook {
    /// What `running` becomes by a change: with the log so far and what the way back would measure, and with the events of the change, or
    /// why there are none.
    pub(super) fn of(
        change: &Change,
        running: &Declaration,
        log: Option<(&[Event], &[Event])>,
        events: Result<Vec<Event>, String>,
    ) -> Self {
        let sealed =
            log.is_some_and(|(log, _)| log.iter().any(|event| event.mr == 3 && event.event == "sealed"));
        let full = match (log, &events) {
            (Some((log, back)), Ok(events)) => !has_room(log, &[events, back].concat()),
            _ => false,
        };
        let because = if sealed {
            Some("the appliance is sealed".to_owned())
        } else if !change.boot.is_empty() {
            Some(format!("only a boot changes {}", change.boot.join(", ")))
        } else if running.follow.is_none() {
            Some("what runs follows no branch".to_owned())
        } else if running.follow.as_ref().is_some_and(|follow| !follow.apply) {
            Some("what runs follows its branch without applying it (`apply: false`)".to_owned())
        } else if full {
            Some("the event log of this boot has no room for another declaration".to_owned())
        } else {
            None
        };
        let applies = match &because {
            _ if change.is_empty() => Applies::Nothing,
            None => Applies::RunTime,
            Some(_) if sealed => Applies::Sealed,
            Some(_) => Applies::Boot,
        };
        let rtmr3 = match (applies, events, log) {
            (Applies::Boot | Applies::Sealed, ..) => {
                Err("RTMR3 is not predicted: a boot begins another log, with a key that is made then"
                    .to_owned())
            }
            (_, Ok(events), Some((log, _))) => Ok(hex::encode(replay(&[log, &events].concat(), 3))),
            (_, Err(why), _) => Err(why),
            (_, Ok(_), None) => Err(OFFLINE.to_owned()),
        };
        let signers = running.signers.iter().map(|signer: &SignerKey| printable(&signer.name())).collect();
        let because = because.filter(|_| applies != Applies::Nothing);
        Self { applies, signers, because, rtmr3 }
    }

    /// Its word in JSON.
    pub(super) fn name(&self) -> &'static str {
        match self.applies {
            Applies::Nothing => "nothing",
            Applies::RunTime => "run-time",
            Applies::Boot => "boot",
            Applies::Sealed => "sealed",
        }
    }
}

/// For people: a line for each thing that changes, and what that takes.
pub(super) fn lines(ui: &Ui, change: &Change, outlook: &Outlook) -> String {
    let mut text = String::new();
    for name in &change.added {
        let _ = writeln!(text, "{} service {name}", ui.tone(Tone::Good, "+"));
    }
    for name in &change.removed {
        let _ = writeln!(text, "{} service {name}", ui.tone(Tone::Bad, "-"));
    }
    let changed = ui.tone(Tone::Unsure, "~");
    for service in &change.changed {
        let moved = service.keys.contains(&"image") && !service.image;
        let same = if moved { " (the same image from elsewhere)" } else { "" };
        let _ = writeln!(text, "{changed} service {}: {}{same}", service.name, service.keys.join(", "));
    }
    if !change.boot.is_empty() {
        let _ = writeln!(text, "{changed} at boot only: {}", change.boot.join(", "));
    }
    if !change.rest.is_empty() {
        let _ = writeln!(text, "{changed} for the appliance itself: {}", change.rest.join(", "));
    }
    let because = outlook.because.as_deref().unwrap_or_default();
    let _ = match outlook.applies {
        Applies::Nothing => writeln!(text, "nothing changes: both declare the same"),
        Applies::RunTime => {
            writeln!(text, "applied at run time, when {} has signed its commit", outlook.signers.join(" or "))
        }
        Applies::Boot | Applies::Sealed => writeln!(text, "takes a boot with this declaration: {because}"),
    };
    let _ = match &outlook.rtmr3 {
        Ok(value) => writeln!(text, "RTMR3 afterwards: {value}"),
        Err(_) if outlook.applies == Applies::Nothing => Ok(()),
        Err(why) => writeln!(text, "{why}"),
    };
    text
}

fn object(
    (next, commit): (&Next, Option<Commit>),
    running: Value,
    change: &Change,
    outlook: &Outlook,
) -> Value {
    json!({
        "running": running,
        "next": { "file": next.name, "declaration": next.digest, "commit": commit },
        "change": change, "applies": outlook.name(), "because": outlook.because, "signers": outlook.signers,
        "rtmr3": outlook.rtmr3.as_ref().ok(), "not_predicted": outlook.rtmr3.as_ref().err(),
    })
}

#[cfg(test)]
mod tests {
    use cofferdam_attest::event_log::MAX_LOG;

    use super::*;

    const TEXT: &str = "version: 1
repository: acme/app
endpoint: app.example.org:443
signers: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL3eMexUl4rWPV2mlvLRouVrCagc04WaQr3bjVft2JOy alice]
follow: {branch: main}
operators: [{name: alice, key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL3eMexUl4rWPV2mlvLRouVrCagc04WaQr3bjVft2JOy}]
github: {token: 'secret://cofferdam/github/token'}
services:
  web: {image: 'r.example/a@sha256:1111111111111111111111111111111111111111111111111111111111111111'}
";

    fn outlook(change: &Change, log: &[Event]) -> Outlook {
        let running = Declaration::parse(TEXT.as_bytes()).unwrap();
        let commit = "b".repeat(40).parse().unwrap();
        let events = measures(&running, Digest::of(TEXT), commit).unwrap();
        Outlook::of(change, &running, Some((log, &events)), Ok(events.clone()))
    }

    #[test]
    fn a_sealed_appliance_and_a_full_log_take_a_boot() {
        let change = Change { removed: vec!["web".to_owned()], ..Change::default() };
        let planned = outlook(&change, &[]);
        assert_eq!((planned.applies, planned.because), (Applies::RunTime, None));
        assert!(planned.rtmr3.is_ok());

        let sealed = outlook(&change, &[Event::new("sealed", "{}")]);
        assert_eq!((sealed.applies, sealed.name()), (Applies::Sealed, "sealed"));
        assert!(sealed.rtmr3.is_err());

        let long = vec![b' '; MAX_LOG];
        let full = outlook(&change, &[Event::new("declaration", long)]);
        assert_eq!(full.applies, Applies::Boot);
        assert!(full.because.unwrap().contains("no room"));

        let nothing = outlook(&Change::default(), &[Event::new("sealed", "{}")]);
        assert_eq!((nothing.applies, nothing.because), (Applies::Nothing, None));
    }
}
