//! The command line as people see it: one file for each case under `transcripts/`, a few words and the transcript.
//!
//! A line `$ …` is run by bash, in a folder of its own that holds the files after `-- NAME --`. Below it stand what `coffer`
//! printed (`> `), what it said on stderr (`! `) and the exit code (`= `). The first words of a file may be `world: github`
//! or `world: appliance`: then a development GitHub has a release attestation of acme/shop, and an appliance answers; a word behind it says
//! how it is ([`Scene`]), that it is `busy` and gives no evidence, that it knows no operator (`strange`), that its release has `expired`, or that it
//! is `away`. With `world: sealed
//! DISK ATTESTED EPOCH` the release is of an earlier boot, on a state of epoch ATTESTED, and the appliance waits: with a blank disk, or with
//! one whose state is of epoch EPOCH and opens with a passphrase or shares. With `peer` it is blank and there is a key server that knows EPOCH,
//! with `refused-peer` one that refuses.
//! A line `$60 …` is run on a terminal of 60 columns; what comes out there (`| `) is stdout and stderr.
//! Nothing of this environment reaches `coffer`. `SNAPSHOTS=overwrite cargo test -p coffer --test transcripts` writes what
//! is printed now.

#![allow(clippy::string_slice, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod world;

use std::fmt::Write as _;
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use cofferdam_protocol::state::Rollback;
use snapbox::Data;
use world::World;
use world::appliance::{Mood, Scene, Simulated};
use world::seal::Seal;

/// What no command prints; after it, nothing of the command's output is to come.
const RECORD_SEPARATOR: u8 = 0x1e;

/// What surrounds a case.
struct Place {
    folder: PathBuf,
    environment: Vec<(&'static str, String)>,
    /// What differs from run to run, and its name in the transcript.
    names: Vec<(String, &'static str)>,
}

impl Place {
    fn empty(folder: &Path) -> Self {
        let names = vec![
            (folder.to_str().unwrap().to_owned(), "[FOLDER]"),
            (format!("coffer {}", env!("CARGO_PKG_VERSION")), "coffer [VERSION]"),
        ];
        Self { folder: folder.to_owned(), environment: Vec::new(), names }
    }

    fn of(world: &World) -> Self {
        let mut place = Self::empty(world.folder.path());
        let references = place.folder.join("references");
        std::fs::create_dir(&references).unwrap();
        for n in 0..2 {
            let name = format!("reference-{n}.json");
            std::fs::rename(world.at(&name), references.join(name)).unwrap();
        }
        place.environment = vec![
            ("COFFER_REFERENCE", "references".to_owned()),
            ("COFFER_GITHUB_API", world.api.clone()),
            ("COFFER_GITHUB_CA", "ca.pem".to_owned()),
        ];
        place.names.push((world.api.clone(), "[GITHUB]"));
        place.names.push((world.endpoint.clone(), "[ENDPOINT]"));
        place
    }

    fn command(&self, line: &str) -> Command {
        let program = Path::new(env!("CARGO_BIN_EXE_coffer")).parent().unwrap();
        let mut command = Command::new("bash");
        command
            .args(["-o", "pipefail", "-c", line])
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", program.display()))
            .env("HOME", self.folder.join("home"))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs one line; what it printed, what it said, and the exit code.
    fn run(&self, line: &str) -> String {
        let output = self.command(line).output().unwrap();
        let mut out = String::new();
        for (mark, bytes) in [(">", &output.stdout), ("!", &output.stderr)] {
            for line in std::str::from_utf8(bytes).unwrap().lines() {
                let _ = writeln!(out, "{}", format!("{mark} {line}").trim_end());
            }
        }
        self.ended(out, output.status)
    }

    /// The same on a terminal that has so many columns and knows no escape sequences.
    fn run_on_a_terminal(&self, columns: u16, line: &str) -> String {
        let size = nix::pty::Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = nix::pty::openpty(Some(&size), None).unwrap();
        let terminal = || Stdio::from(pair.slave.try_clone().unwrap());
        let mut command = self.command(line);
        command.env("TERM", "dumb").stdin(terminal()).stdout(terminal()).stderr(terminal());
        let mut child = command.spawn().unwrap();
        // The end is marked by a byte: a terminal that everybody closed may give an error before its last bytes.
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            std::io::BufReader::new(std::fs::File::from(pair.master))
                .read_until(RECORD_SEPARATOR, &mut bytes)
                .unwrap();
            assert_eq!(bytes.pop(), Some(RECORD_SEPARATOR));
            bytes
        });
        let status = child.wait().unwrap();
        let mut slave = std::fs::File::from(pair.slave);
        slave.write_all(&[RECORD_SEPARATOR]).unwrap();
        let bytes = reader.join().unwrap();
        let mut out = String::new();
        for line in std::str::from_utf8(&bytes).unwrap().lines() {
            let _ = writeln!(out, "{}", format!("| {line}").trim_end());
        }
        self.ended(out, status)
    }

    fn ended(&self, mut out: String, status: ExitStatus) -> String {
        let _ = writeln!(out, "= {}", status.code().map_or("a signal".to_owned(), |code| code.to_string()));
        self.names.iter().fold(out, |text, (value, name)| text.replace(value, name))
    }
}

/// A file's parts: the words and commands, and the files that follow.
fn parts(text: &str) -> (&str, Vec<(&str, &str)>) {
    let heading = |line: &str| line.starts_with("-- ") && line.trim_end().ends_with(" --");
    let mut starts: Vec<usize> = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if heading(line) {
            starts.push(at);
        }
        at += line.len();
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    let files = starts.iter().zip(ends).map(|(start, end)| {
        let (head, content) = text[*start..end].split_once('\n').unwrap();
        (head.trim_start_matches("-- ").trim_end().trim_end_matches(" --"), content)
    });
    (&text[..starts.first().copied().unwrap_or(text.len())], files.collect())
}

/// The case with what its commands print now; `None` where the world cannot be had.
fn replayed(text: &str) -> Option<String> {
    let (transcript, files) = parts(text);
    let folder = tempfile::tempdir().unwrap();
    let appliance;
    let mut world = None;
    let (place, varying) = match text.lines().next() {
        Some("world: github") => {
            let mut github = World::new()?;
            let commit = github.declare("alice");
            github.attest(&github.told(&commit, "alice", 600));
            github.start();
            (Place::of(world.insert(github)), true)
        }
        Some("world: appliance away") => {
            let mut github = World::new()?;
            // A port at which nobody listens.
            github.endpoint = "127.0.0.1:1".to_owned();
            let commit = github.declare("alice");
            github.attest(&github.told(&commit, "alice", 600));
            github.start();
            (Place::of(world.insert(github)), true)
        }
        Some(words) if words == "world: appliance" || words.starts_with("world: appliance ") => {
            appliance = Simulated::start();
            let mut age = 60;
            match words.trim_start_matches("world: appliance").trim() {
                "" => {}
                "well" => *appliance.scene.lock().unwrap() = Scene::Well,
                "clock" => *appliance.scene.lock().unwrap() = Scene::Clock,
                "loop" => *appliance.scene.lock().unwrap() = Scene::Loop,
                "trouble" => *appliance.scene.lock().unwrap() = Scene::Trouble,
                "busy" => appliance.set(Mood::Busy),
                "strange" => appliance.set(Mood::Strange),
                "expired" => age = 2 * 86_400,
                other => panic!("{other}"),
            }
            if words != "world: appliance" && *appliance.scene.lock().unwrap() == Scene::Usual {
                *appliance.scene.lock().unwrap() = Scene::Well;
            }
            (Place::of(world.insert(appliance.world_since(age, 3600)?)), true)
        }
        Some(words) if words.starts_with("world: sealed ") => {
            let mut words = words.split(' ').skip(2);
            let (what, attested) = (words.next().unwrap(), words.next().unwrap().parse().unwrap());
            let epoch = words.next().map_or(0, |epoch| epoch.parse().unwrap());
            let rollback = match words.next() {
                Some("warn") => Rollback::Warn,
                _ => Rollback::Require,
            };
            let mut seal = match what {
                "blank" => Seal::blank(),
                "passphrase" => Seal::passphrase(epoch),
                "shares" => Seal::shares(epoch),
                "peer" => Seal::peer(Ok(epoch)),
                "refused-peer" => Seal::peer(Err("refused: measurement: rtmr2: is another")),
                other => panic!("{other}"),
            };
            seal.rollback = rollback;
            appliance = Simulated::start();
            (Place::of(world.insert(appliance.sealed_world(seal, attested)?)), true)
        }
        _ => (Place::empty(folder.path()), false),
    };
    for (name, content) in &files {
        let path = place.folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let mut out = String::new();
    for line in transcript.lines().filter(|line| !line.starts_with(['>', '!', '=', '|'])) {
        let _ = writeln!(out, "{line}");
        if let Some((columns, command)) = line.strip_prefix('$').and_then(|line| line.split_once(' ')) {
            let said = match columns {
                "" => place.run(command),
                columns => place.run_on_a_terminal(columns.parse().unwrap(), command),
            };
            let said: String = said.split_inclusive('\n').map(without_seconds).collect();
            out.push_str(&if varying { without_what_varies(&said) } else { said });
        }
    }
    out.push_str(&text[transcript.len()..]);
    Some(out)
}

/// What `-v` says last differs from run to run.
fn without_seconds(line: &str) -> &str {
    if line.starts_with("! took ") { "! took [SECONDS]\n" } else { line }
}

/// Times, ages, long hexadecimal numbers and ports replaced by their names.
fn without_what_varies(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        let hex = |word: &str, least: usize| {
            word.len() >= least && word.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        if let Some(length) = time(rest) {
            out.push_str("[TIME]");
            rest = &rest[length..];
        } else if let Some(port) = rest.strip_prefix("127.0.0.1:") {
            out.push_str("127.0.0.1:[PORT]");
            rest = port.trim_start_matches(|c: char| c.is_ascii_digit());
        } else if first.is_ascii_digit()
            && (rest[word..].starts_with(" s ago") || (word > 1 && rest[word..].starts_with(" s\n")))
        {
            out.push_str("[AGE]");
            rest = &rest[word..];
        } else if hex(&rest[..word], 8) {
            out.push_str("[HEX]");
            rest = &rest[word..];
        } else {
            let length = word.max(first.len_utf8());
            out.push_str(&rest[..length]);
            rest = &rest[length..];
        }
    }
    out
}

/// RFC 3339 in UTC, and as it stands in a tag; `d` is a digit.
const TIMES: [&str; 2] = ["dddd-dd-ddTdd:dd:ddZ", "ddddddddTddddddZ"];

/// The length of a time at the beginning.
fn time(text: &str) -> Option<usize> {
    TIMES.into_iter().map(str::len).zip(TIMES).find_map(|(length, shape)| {
        let found = text.as_bytes().get(..length)?;
        let fits = found.iter().zip(shape.bytes()).all(|(byte, wanted)| match wanted {
            b'd' => byte.is_ascii_digit(),
            other => *byte == other,
        });
        fits.then_some(length)
    })
}

/// Every file below a folder.
fn cases(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(cases(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Replays the files below `transcripts/NAME`.
fn replay(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts").join(name);
    let assert = snapbox::Assert::new().action_env(snapbox::assert::DEFAULT_ACTION_ENV);
    let mut differing = Vec::new();
    let cases = cases(&folder);
    assert!(!cases.is_empty(), "{}", folder.display());
    for path in cases {
        let text = std::fs::read_to_string(&path).unwrap();
        let Some(now) = replayed(&text) else { continue };
        let expected = Data::read_from(&path, Some(snapbox::data::DataFormat::Text)).raw();
        if let Err(error) = assert.try_eq(None, Data::text(now).raw(), expected) {
            eprintln!("{}\n{error}", path.display());
            differing.push(path);
        }
    }
    assert!(differing.is_empty(), "{} cases differ", differing.len());
}

#[test]
fn help() {
    replay("help");
}

#[test]
fn on_files() {
    replay("files");
}

#[test]
fn with_a_github_and_an_appliance() {
    replay("network");
}

#[test]
fn at_60_80_and_120_columns() {
    replay("widths");
}

#[test]
fn output_that_cannot_be_written_is_an_error_and_a_reader_that_went_away_is_none() {
    for words in [&["version"][..], &["version", "--json"], &["completion", "bash"], &["man"], &["--help"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (reader, closed) = std::io::pipe().unwrap();
        drop(reader);
        for (stdout, code) in [(Stdio::from(full), 1), (Stdio::from(closed), 0)] {
            let done =
                Command::new(env!("CARGO_BIN_EXE_coffer")).args(words).stdout(stdout).output().unwrap();
            let said = String::from_utf8(done.stderr).unwrap();
            assert_eq!((done.status.code(), said.is_empty()), (Some(code), code == 0), "{words:?}: {said}");
        }
    }
}

#[test]
fn a_token_that_nobody_gets_is_an_error() {
    for words in [&["token", "new", "ci"][..], &["token", "new", "ci", "--json"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (reader, closed) = std::io::pipe().unwrap();
        drop(reader);
        for stdout in [Stdio::from(full), Stdio::from(closed)] {
            let done =
                Command::new(env!("CARGO_BIN_EXE_coffer")).args(words).stdout(stdout).output().unwrap();
            let said = String::from_utf8(done.stderr).unwrap();
            assert_eq!(done.status.code(), Some(1), "{said}");
            assert!(said.contains("is lost") && !said.contains("sha256:"), "{said}");
        }
    }
}
