//! `coffer seal allow-upgrade`: signs the statement that lets another image, repository or other operators open a state.
//!
//! What it allows comes from what the caller names; what they do not name is what the appliance has now, which is asked for it and appraised on
//! that connection. Nothing is sent but the question: the statement is a file, and `coffer unseal --upgrade` gives it.

use std::fmt::Write as _;
use std::path::Path;

use cofferdam_attest::appraise::QuoteFacts;
use cofferdam_attest::event_log::payload::State;
use cofferdam_attest::reference::{self, BootPlatform, BootSource, Half, ImageReference};
use cofferdam_declaration::{Declaration, MAX_BYTES};
use cofferdam_protocol::unseal::SealDisk;
use cofferdam_protocol::upgrade::{self, MAX_OPERATORS, SignedStatement, Statement, Successor};
use cofferdam_protocol::{Fingerprint, Repository, hex, json as strict};
use serde_json::json;

use super::measure::{LARGEST_IMAGE, way};
use super::sealed::{Found, Target};
use crate::cli::{self, AllowUpgrade};
use crate::failure::{Code, Failure, Outcome, chain};
use crate::files;
use crate::operator_key::OperatorKey;
use crate::source::Source;
use crate::ui::Ui;

/// The registers that a statement names.
struct Registers {
    mrtd: Option<cli::Register>,
    /// RTMR1 and RTMR2, with what the image calls itself.
    image: Option<([cli::Register; 2], String)>,
}

/// What the appliance says of itself.
struct Present {
    version: u64,
    quote: QuoteFacts,
}

pub(super) async fn run(ui: &Ui, options: &AllowUpgrade) -> Outcome {
    let key = OperatorKey::load(&options.key)?;
    let given = registers(options)?;
    let known = (options.from_version, given.mrtd, &given.image);
    let present = match known {
        (Some(_), Some(_), Some(_)) => None,
        _ => Some(present(ui, options, &key).await?),
    };
    let version = options.from_version.or(present.as_ref().map(|present| present.version));
    let version = version.and_then(|version| version.checked_add(1));
    let version = version.ok_or_else(|| Failure::usage("there is no version above that"))?;
    let mrtd = given.mrtd.or(present.as_ref().map(|present| present.quote.mrtd));
    let running = || {
        let quote = present.as_ref().map(|present| &present.quote)?;
        Some(([quote.rtmr1, quote.rtmr2], "the one that runs there".to_owned()))
    };
    let (Some(mrtd), Some(([rtmr1, rtmr2], image))) = (mrtd, given.image.or_else(running)) else {
        return Err(Failure::failed("the appliance shows no registers"));
    };
    let repository = options.to.clone().unwrap_or_else(|| options.appliance.repository.clone());
    let operators = operators(ui, options, &repository).await?;
    let to = Successor {
        repository,
        mrtd,
        rtmr1,
        rtmr2,
        operators: operators.iter().map(|key| (*key).into()).collect(),
    };
    if !to.is_ordered() {
        return Err(Failure::usage(format!(
            "a declaration with a state names 1 to {MAX_OPERATORS} operators"
        )));
    }
    let statement = Statement { version, from: options.appliance.repository.clone(), to };
    let input = statement.signing_input().map_err(|error| Failure::failed(chain(&error)))?;
    let signed = SignedStatement { key: key.fingerprint(), signature: key.sign(&input), statement };
    hand_over(ui, options.output.as_deref(), &signed, &image)
}

/// What the command line says of the next image.
fn registers(options: &AllowUpgrade) -> Outcome<Registers> {
    let mut found = Registers { mrtd: options.mrtd, image: None };
    if let Some(path) = &options.image {
        let uki = files::read(path, LARGEST_IMAGE)?;
        let image = cofferdam_measure::image_reference(&uki, None)
            .map_err(|error| Failure::failed(format!("{}: {}", path.display(), chain(&error))))?;
        found.image = Some(of_boot(&image, options.boot, path)?);
    }
    for path in &options.measurements {
        let half = Half::parse(&files::read(path, reference::MAX_BYTES)?)
            .map_err(|error| Failure::usage(format!("{}: {}", path.display(), chain(&error))))?;
        match half {
            Half::Image(_) if found.image.is_some() => {
                return Err(Failure::usage("one statement is for one image"));
            }
            Half::Image(image) => found.image = Some(of_boot(&image, options.boot, path)?),
            Half::Platform(platform) => match platform.mrtd.as_slice() {
                [only] if found.mrtd.is_none_or(|mrtd| mrtd == only.value) => found.mrtd = Some(only.value),
                [_] => return Err(Failure::usage("one statement is for one MRTD")),
                _ => {
                    return Err(Failure::usage(format!("{} has not one MRTD", path.display()))
                        .hint("name the one of your machine with --mrtd HEX"));
                }
            },
        }
    }
    Ok(found)
}

/// RTMR1 and RTMR2 of the one way of booting.
fn of_boot(image: &ImageReference, boot: cli::Boot, path: &Path) -> Outcome<([cli::Register; 2], String)> {
    let wanted: (BootPlatform, BootSource) = way(boot);
    let found = image.boots.iter().find(|boot| (boot.platform, boot.source) == wanted);
    let found = found.ok_or_else(|| {
        Failure::usage(format!("{} does not say what this way of booting measures", path.display()))
            .hint("--boot names the way, as with `coffer measure`")
    })?;
    Ok(([found.rtmr1, found.rtmr2], format!("{} {}", image.image.name, image.image.release)))
}

/// Asks the appliance for what is not given.
async fn present(ui: &Ui, options: &AllowUpgrade, key: &OperatorKey) -> Outcome<Present> {
    let target = Target::find(ui, &options.appliance, None).await?;
    let found = target.look(key).await?;
    target.introduce(&found);
    let (channel, version) = match &found {
        Found::Launched { channel, .. } => match &channel.appraisal.state {
            Some(State::Disk { lineage, .. }) => (&**channel, lineage.get()),
            _ => {
                return Err(Failure::failed(
                    "the appliance keeps its state in memory: there is none to leave",
                ));
            }
        },
        Found::Waiting(waiting) => match &waiting.status.lineage {
            Some(lineage) if lineage.repository.is_same(&options.appliance.repository) => {
                (&waiting.channel, lineage.version)
            }
            Some(lineage) => {
                return Err(Failure::rejected(format!("the state is of {}", lineage.repository)).hint(
                    "name that repository, the next one with --repository, and what the appliance is not asked for: --from-version, \
                    --mrtd, --image or --measurements",
                ));
            }
            None if waiting.status.disk == SealDisk::Blank => {
                return Err(Failure::new(
                    Code::NotReady,
                    "the state disk is blank: there is no state to leave",
                ));
            }
            None => return Err(Failure::new(Code::NotReady, "the state is being opened")),
        },
    };
    let quote = channel.appraisal.quote.clone().ok_or_else(|| Failure::failed("no quote"))?;
    Ok(Present { version, quote })
}

/// The operators of the next declaration, ascending.
async fn operators(ui: &Ui, options: &AllowUpgrade, repository: &Repository) -> Outcome<Vec<[u8; 32]>> {
    let (bytes, what) = match &options.operators {
        Some(path) => (files::read(path, MAX_BYTES)?, path.display().to_string()),
        None => {
            let source = Source::new(repository, &options.appliance.github)?;
            let asked = source.declared(options.appliance.commit);
            (super::saying(ui, &source.waiting(), asked).await?, format!("the declaration of {repository}"))
        }
    };
    let declaration = Declaration::parse(&bytes)
        .map_err(|_| Failure::usage(format!("{what} is not valid")).hint("coffer check shows why"))?;
    if !declaration.repository.is_same(repository) {
        return Err(Failure::usage(format!("{what} is of {}, not of {repository}", declaration.repository))
            .hint("--repository names another one than the state is of now"));
    }
    let mut keys: Vec<[u8; 32]> =
        declaration.operators.iter().map(|operator| *operator.key.public()).collect();
    keys.sort_unstable();
    keys.dedup();
    Ok(keys)
}

fn hand_over(ui: &Ui, output: Option<&Path>, signed: &SignedStatement, image: &str) -> Outcome {
    let failed = |error: strict::JsonError| Failure::failed(chain(&error));
    let file = strict::to_vec_pretty(signed).map_err(failed)?;
    let digest = signed.statement.digest().map_err(failed)?;
    let Statement { version, from, to } = &signed.statement;
    ui.note(&format!(
        "version {version} of the state of {from}, for {} and the image {image}:",
        to.repository
    ));
    for (name, value) in [("MRTD", &to.mrtd), ("RTMR1", &to.rtmr1), ("RTMR2", &to.rtmr2)] {
        ui.note(&format!("  {name:5}  {}", hex::encode(value)));
    }
    let mut text = String::new();
    for key in &to.operators {
        let _ = write!(text, " {}", Fingerprint::of(key.as_bytes()));
    }
    ui.note(&format!("  operators{text}"));
    let Some(path) = output else {
        let value = json!({ "file": signed, "digest": digest });
        ui.result(&String::from_utf8_lossy(&file), value);
        return Ok(());
    };
    files::write(path, &file)?;
    ui.result("", json!({ "written": path, "digest": digest }));
    ui.note(&format!("give it with `coffer unseal {} --upgrade {}`", to.repository, path.display()));
    Ok(())
}

/// Reads the file that [`run`] has written.
pub(super) fn read(path: &Path) -> Outcome<Box<SignedStatement>> {
    let bytes = files::read(path, upgrade::MAX_BYTES)?;
    SignedStatement::parse(&bytes).map(Box::new).map_err(|error| {
        Failure::usage(format!("{} is no statement: {}", path.display(), chain(&error)))
            .hint("coffer seal allow-upgrade makes one")
    })
}
