//! Volumes, directories and files of the host, and Compose's own configs: data becomes a volume, a small text file a config that is
//! measured with the declaration.

use std::collections::BTreeSet;
use std::path::Path;

use cofferdam_declaration::{MAX_CONFIG, MAX_CONFIGS, MAX_CONFIGS_TOTAL, reserved_path};

use super::convert::{Converter, Entries, name};
use super::secrets::{looks_secret, secretive};
use super::yaml::{Kind, Node};
use super::{inside, read_bounded, text_inside};

/// Files of one directory that are taken as configs. More are data or a program.
const MAX_FILES: usize = 32;
/// Directories in such a directory.
const MAX_DEPTH: usize = 4;

/// The configs of a declaration in the making, and where services see them.
#[derive(Default)]
pub(super) struct Configs {
    /// By name, with their content.
    found: Vec<(String, Node)>,
    /// Bytes, counted for each service that sees them.
    total: usize,
}

/// A file of the host.
struct HostFile {
    /// As the compose file would name it.
    path: String,
    target: String,
    text: Result<String, String>,
    executable: bool,
}

impl Configs {
    pub(super) fn into_entries(self) -> Entries {
        let content = |node: Node| Node::map(vec![("content".to_owned(), node)], 0);
        self.found.into_iter().map(|(name, node)| (name, content(node))).collect()
    }

    /// The name of a config with this content, an old one's if there is one.
    fn named(&mut self, wanted: &str, content: Node) -> String {
        if let Some((known, _)) = self.found.iter().find(|(_, known)| known.kind == content.kind) {
            return known.clone();
        }
        let taken: BTreeSet<&str> = self.found.iter().map(|(name, _)| name.as_str()).collect();
        let numbered = (2..).map(|count| format!("{wanted}-{count}"));
        let free =
            std::iter::once(wanted.to_owned()).chain(numbered).find(|name| !taken.contains(name.as_str()));
        let name = free.unwrap_or_default();
        self.found.push((name.clone(), content));
        name
    }
}

impl Converter<'_> {
    /// A service's `volumes`; configs among them go to `configs`, file systems in memory to `tmpfs`.
    pub(super) fn mounts(
        &mut self,
        service: &str,
        built: bool,
        node: &Node,
        tmpfs: &mut Vec<Node>,
        configs: &mut Vec<Node>,
    ) -> Node {
        let at = format!("services.{service}.volumes");
        let mut out = Vec::new();
        for item in node.items() {
            let item = self.filled(item);
            let get = |key: &str| item.get(key).and_then(Node::as_text).unwrap_or_default().to_owned();
            let (kind, source, target, read_only) = match item.as_text() {
                Some(text) => {
                    let parts: Vec<_> = text.split(':').collect();
                    match parts.as_slice() {
                        [target] => (String::new(), String::new(), (*target).to_owned(), false),
                        [source, target, options @ ..] => {
                            let read_only = options.iter().any(|list| list.split(',').any(|one| one == "ro"));
                            (String::new(), (*source).to_owned(), (*target).to_owned(), read_only)
                        }
                        [] => continue,
                    }
                }
                None => (get("type"), get("source"), get("target"), get("read_only") == "true"),
            };
            let line = item.line;
            if kind == "tmpfs" || source.is_empty() {
                let what = format!(
                    "{at}: {target} is a tmpfs: a volume without a name does not outlive its container"
                );
                self.change(line, what);
                tmpfs.push(Node::text(target, line));
            } else if kind == "bind" || source.starts_with(['.', '/', '~', '$']) {
                match self.bind(service, built, &source, &target, line) {
                    Bound::Volume(volume) => out.push(mount(&volume, &target, read_only, line)),
                    Bound::Configs(files) => configs.extend(files),
                    Bound::Nothing => {}
                }
            } else {
                let volume = self.volume(&at, &source, line);
                out.push(mount(&volume, &target, read_only, line));
            }
        }
        Node::list(out, node.line)
    }

    fn volume(&mut self, at: &str, source: &str, line: usize) -> String {
        let volume = name(source, "data");
        if volume != source {
            self.change(line, format!("{at}: the volume {source} is called {volume}"));
        }
        self.volumes.insert(volume.clone());
        volume
    }

    /// A path of the host.
    fn bind(&mut self, service: &str, built: bool, source: &str, target: &str, line: usize) -> Bound {
        let at = format!("services.{service}.volumes");
        if matches!(source, "/etc/localtime" | "/etc/timezone") {
            self.drop(line, format!("{at}: {source}: set the variable TZ instead"));
            return Bound::Nothing;
        }
        if source.ends_with("docker.sock") {
            self.drop(line, format!("{at}: {source}: there is no container engine inside"));
            self.decide(line, format!("services.{service}: what needs Docker's socket does not work here"));
            return Bound::Nothing;
        }
        let last = source.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
        let found = inside(&self.compose.folder, source).ok();
        let is_directory = found.as_ref().is_some_and(|path| path.is_dir());
        let full =
            found.as_ref().is_some_and(|path| path.read_dir().is_ok_and(|mut files| files.next().is_some()));
        let named_file = |name: &str| name.trim_start_matches('.').contains('.') && !name.ends_with(".d");
        let looks_like_a_file =
            !source.ends_with('/') && (named_file(last) || target.rsplit('/').next().is_some_and(named_file));
        if built && source.starts_with('.') && (is_directory || found.is_none() || large(found.as_deref())) {
            let what = format!("{at}: {source}: the image that is built has what belongs to it at {target}");
            self.drop(line, what);
            return Bound::Nothing;
        }
        let files = match &found {
            Some(path) if is_directory && full => directory(path, source, target),
            Some(path) if !is_directory => Ok(vec![file(path, source, target)]),
            None if looks_like_a_file => Err("it is not there".to_owned()),
            _ => {
                let volume = name(&format!("{service}-{}", last.trim_start_matches(['.', '~'])), "data");
                self.change(line, format!("{at}: {source} becomes the volume {volume}, empty at first"));
                self.volumes.insert(volume.clone());
                return Bound::Volume(volume);
            }
        };
        let files = files.and_then(|files| self.configs(service, files, line));
        match files {
            Ok(files) => Bound::Configs(files),
            Err(why) => {
                self.drop(line, format!("{at}: {source}: a service never sees the host's files"));
                self.decide(
                    line,
                    format!("services.{service}: put `{source}` into its image at {target}: {why}"),
                );
                Bound::Nothing
            }
        }
    }

    /// Files become configs, all or none.
    fn configs(&mut self, service: &str, files: Vec<HostFile>, line: usize) -> Result<Vec<Node>, String> {
        let texts =
            files.iter().map(|file| file.text.as_ref().map_err(|why| format!("`{}`: {why}", file.path)));
        let size = texts.map(|text| text.map(String::len)).sum::<Result<usize, String>>()?;
        if self.configs.found.len() + files.len() > MAX_CONFIGS
            || self.configs.total + size > MAX_CONFIGS_TOTAL
        {
            return Err("a declaration has at most 64 configs of 512 KiB together".to_owned());
        }
        if let Some(file) = files.iter().find(|file| reserved_path(&file.target)) {
            return Err(format!("the appliance puts a file of its own at {}", file.target));
        }
        let mut out = Vec::new();
        for HostFile { path, target, text, executable } in files {
            let text = text?;
            let last = target.rsplit('/').next().unwrap_or_default();
            let wanted = name(&format!("{service}-{last}"), "config");
            let at = format!("services.{service}: `{path}`");
            let content = match looks_secret(&text) {
                Some(secret) => {
                    let field = name(last, "config");
                    let Some(reference) =
                        self.secrets.reference(&self.compose.project, (service, &field), &path, Some(text))
                    else {
                        return Err("it holds a secret that has no name here".to_owned());
                    };
                    self.change(line, format!("{at} holds a secret in its line {secret}: all of it is {reference}, at {target}; to have the rest in the declaration, write it there with ${{secret://…}} for the secret alone"));
                    Node::ready(format!("${{{reference}}}"), line)
                }
                None => {
                    self.change(
                        line,
                        format!("{at} is measured with the declaration, read-only at {target}"),
                    );
                    self.configs.total += text.len();
                    Node::ready(text.replace('$', "$$"), line)
                }
            };
            let source = self.configs.named(&wanted, content);
            out.push(seen(&source, &target, executable.then_some("0555"), line));
        }
        Ok(out)
    }

    /// A service's own `configs`.
    pub(super) fn service_configs(&mut self, service: &str, node: &Node) -> Vec<Node> {
        let mut out = Vec::new();
        for item in node.items() {
            let get = |key: &str| item.get(key).and_then(Node::as_text);
            let Some(source) = item.as_text().or_else(|| get("source")).map(str::to_owned) else { continue };
            let target = get("target").unwrap_or(&source);
            let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
            let Some(content) = self.config_content(service, &source, item.line) else { continue };
            let name = self.configs.named(&name(&source, "config"), content);
            let mode = get("mode")
                .map(|mode| if mode.starts_with('0') { mode.to_owned() } else { format!("0{mode}") });
            let Kind::Map(mut entries) = seen(&name, &target, mode.as_deref(), item.line).kind else {
                continue;
            };
            let owners =
                ["uid", "gid"].into_iter().filter_map(|key| Some((key.to_owned(), item.get(key)?.clone())));
            entries.extend(owners);
            out.push(Node::map(entries, item.line));
        }
        out
    }

    /// What is in a config of the whole file.
    fn config_content(&mut self, service: &str, source: &str, line: usize) -> Option<Node> {
        let declared = self.compose.root.get("configs").and_then(|configs| configs.get(source)).cloned();
        let Some(declared) = declared else {
            self.decide(line, format!("services.{service}: there is no config `{source}` under `configs`"));
            return None;
        };
        let at = format!("configs.{source}");
        let get = |key: &str| declared.get(key).and_then(Node::as_text);
        if let Some(content) = get("content") {
            let filled = self.text_of(content, &at, declared.line)?;
            self.configs.total += content.len();
            return Some(filled);
        }
        let text = if let Some(variable) = get("environment") {
            if secretive(variable) {
                let value = self.compose.variables.get(variable).cloned();
                let raw = format!("${{{variable}}}");
                let names = ("env", variable);
                let reference = self.secrets.reference(&self.compose.project, names, &raw, value)?;
                self.change(declared.line, format!("{at}: {reference}"));
                return Some(Node::ready(format!("${{{reference}}}"), declared.line));
            }
            self.compose.variables.get(variable).cloned().ok_or_else(|| format!("{variable} is not set"))
        } else if let Some(path) = get("file") {
            let path = self.fill(path, declared.line).text;
            text_inside(&self.compose.folder, &path, MAX_CONFIG as u64)
        } else {
            Err("a config from outside: write its `content`".to_owned())
        };
        match text {
            Ok(text) if looks_secret(&text).is_some() => {
                let names = (source, "content");
                let reference = self.secrets.reference(&self.compose.project, names, source, Some(text))?;
                self.change(declared.line, format!("{at} holds a secret: all of it is {reference}"));
                Some(Node::ready(format!("${{{reference}}}"), declared.line))
            }
            Ok(text) => {
                self.change(declared.line, format!("{at}: its text stands in the declaration"));
                self.configs.total += text.len();
                Some(Node::ready(text.replace('$', "$$"), declared.line))
            }
            Err(why) => {
                self.decide(declared.line, format!("{at}: {why}"));
                None
            }
        }
    }
}

/// Whether a file can be no config for its size alone.
fn large(path: Option<&Path>) -> bool {
    path.and_then(|path| path.metadata().ok()).is_some_and(|about| about.len() > MAX_CONFIG as u64)
}

/// What becomes of a path of the host.
enum Bound {
    Volume(String),
    Configs(Vec<Node>),
    Nothing,
}

/// One file, with its text if it can be a config.
fn file(path: &Path, source: &str, target: &str) -> HostFile {
    use std::os::unix::fs::PermissionsExt as _;
    let executable = path.metadata().is_ok_and(|about| about.permissions().mode() & 0o111 != 0);
    let text = read_bounded(path, source, MAX_CONFIG as u64);
    let text =
        text.and_then(|text| if text.contains('\0') { Err("it is no text".to_owned()) } else { Ok(text) });
    HostFile { path: source.to_owned(), target: target.trim_end_matches('/').to_owned(), text, executable }
}

/// The files of a directory and of those in it, in order. Links are not followed: they lead elsewhere.
fn directory(path: &Path, source: &str, target: &str) -> Result<Vec<HostFile>, String> {
    let mut found = Vec::new();
    let mut open = vec![(
        path.to_owned(),
        source.trim_end_matches('/').to_owned(),
        target.trim_end_matches('/').to_owned(),
        0,
    )];
    while let Some((path, source, target, depth)) = open.pop() {
        let failed = |error: std::io::Error| format!("`{source}` cannot be read: {error}");
        for entry in path.read_dir().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            let name = entry.file_name();
            let name = name.to_str().ok_or("a file's name is not UTF-8")?;
            let (source, target) = (format!("{source}/{name}"), format!("{target}/{name}"));
            match (kind.is_dir(), kind.is_file()) {
                (true, _) if depth < MAX_DEPTH => open.push((entry.path(), source, target, depth + 1)),
                (_, true) => found.push(file(&entry.path(), &source, &target)),
                (true, _) => return Err(format!("`{source}` is deeper than {MAX_DEPTH} directories")),
                _ => return Err(format!("`{source}` is a link, or no file")),
            }
            if found.len() + open.len() > MAX_FILES {
                return Err(format!("it has more than {MAX_FILES} files"));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn seen(source: &str, target: &str, mode: Option<&str>, line: usize) -> Node {
    let entry = |key: &str, text: &str| (key.to_owned(), Node::text(text, line));
    let mut entries = vec![entry("source", source), entry("target", target)];
    entries.extend(mode.map(|mode| entry("mode", mode)));
    Node::map(entries, line)
}

fn mount(volume: &str, target: &str, read_only: bool, line: usize) -> Node {
    Node::text(format!("{volume}:{target}{}", if read_only { ":ro" } else { "" }), line)
}
