//! From a tree of nodes to a [`Declaration`]: the keys of the file itself.
//!
//! Reading goes on after an error, so that one run reports them all; what could not be read is left out and
//! the declaration with it. Rules that span services (unique ports, dependencies) are in [`crate::rules`].

use std::collections::BTreeSet;

use cofferdam_protocol::keyserve::MAX_SERVERS;
use cofferdam_protocol::state::Rollback;
use cofferdam_protocol::{
    AccessToken, Digest, HttpUrl, HttpsUrl, SecretRef, WordError, base64, is_name, is_service_name, shorten,
};

use crate::diagnostics::{Collector, Place};
use crate::fields::{self, Fields};
use crate::keys;
use crate::model::{
    Attestation, Declaration, Github, KeyServer, Login, Operator, Registry, StateSource, Token,
};
use crate::read_certificate;
use crate::read_configs::{self, Declared};
use crate::read_follow;
use crate::read_network;
use crate::read_service;
use crate::read_volumes;
use crate::rules;
use crate::yaml::{Kind, Node};

/// As many services as the address plan and one small machine hold.
pub const MAX_SERVICES: usize = 64;
/// More people than this share a key management system, not a list in a file.
const MAX_OPERATORS: usize = 32;
/// Each is compared with what every request at a port of tokens brings.
const MAX_TOKENS: usize = 256;
const MAX_REGISTRIES: usize = 32;
/// No registry has longer ones.
const MAX_USERNAME: usize = 255;
/// A few certificates; the whole web's bundle is about 200 KiB and belongs into the image.
const MAX_PEM: usize = 64 * 1024;

const DEFAULT_GITHUB: &str = "https://api.github.com";
const DEFAULT_COLLATERAL: &str = "https://api.trustedservices.intel.com";

/// Reads the whole tree. `None` when anything in it was refused.
pub(crate) fn declaration(root: &Node, errors: &mut Collector<'_>) -> Option<Declaration> {
    let top = Fields::open(root, "the declaration", keys::TOP, keys::UNSUPPORTED_TOP, errors)?;
    version(&top, errors);
    if let Some(node) = top.get("name") {
        fields::text(node, "`name`", errors)?;
        errors.note(node.place, "`name` has no effect: an appliance is named by its repository", "");
    }
    let repository = top
        .require("repository", "write `repository: owner/repo`, the appliance's identity", errors)
        .and_then(|node| fields::parse(node, "`repository`", errors));
    let endpoint = top
        .require("endpoint", "write `endpoint: host:port`, where clients reach the appliance", errors)
        .and_then(|node| fields::parse(node, "`endpoint`", errors));
    let operators = top.get("operators").map_or(Some(Vec::new()), |node| operators(node, errors));
    let tokens = top.get("tokens").map_or(Some(Vec::new()), |node| tokens(node, errors));
    let signers = top.get("signers").map_or(Some(Vec::new()), |node| read_follow::signers(node, errors));
    let follow = top.get("follow").map(|node| read_follow::follow(node, errors));
    let github = github(top.get("github"), errors);
    let attestation = attestation(top.get("attestation"), errors);
    let certificate = top.get("certificate").map(|node| read_certificate::certificate(node, errors));
    let state = top.get("state").map_or(Some(State::default()), |node| state(node, errors));
    let registries = top.get("registries").map_or(Some(Vec::new()), |node| registries(node, errors));
    let networks =
        top.get("networks").map_or(Some(BTreeSet::new()), |node| read_network::declared(node, errors));
    let volumes = top.get("volumes").map_or(Some(Vec::new()), |node| read_volumes::declared(node, errors));
    let configs =
        top.get("configs").map_or(Some(Declared::default()), |node| read_configs::declared(node, errors));
    let services = top
        .require("services", "name at least one: `services: {web: {image: …}}`", errors)
        .and_then(|node| services(node, errors));
    let mut services = services.map(|services| rules::dependencies(services, errors));
    if let (Some(services), Some(configs)) = (&mut services, &configs) {
        read_configs::resolve(services, configs, errors);
    }
    if let (Some(services), Some(operators), Some(tokens)) = (&services, &operators, &tokens) {
        rules::someone_can_call(services, operators, tokens, errors);
    }
    if let (Some(services), Some(endpoint)) = (&services, &endpoint) {
        rules::own_ports(services, endpoint, errors);
    }
    if let (Some(state), Some(operators), Some(node)) = (&state, &operators, top.get("state")) {
        rules::someone_can_unseal(&state.source, operators, node.place, errors);
    }
    if let (Some(services), Some(operators), Some(github), Some(registries)) =
        (&services, &operators, &github, &registries)
    {
        let own = rules::Own { github, github_node: top.get("github"), registries };
        rules::check(services, operators, &own, errors);
    }
    if let (Some(signers), Some(github)) = (&signers, &github) {
        read_follow::rules(top.get("follow"), (top.get("signers"), signers), github, errors);
    }
    if let (Some(services), Some(networks)) = (&services, &networks) {
        rules::networks(services, networks, errors);
        rules::remarks(services, errors);
    }
    if let (Some(services), Some(volumes)) = (&services, &volumes) {
        rules::volumes(services, volumes, errors);
    }
    if let (Some(state), Some(volumes), Some(node)) = (&state, &volumes, top.get("volumes")) {
        rules::volumes_have_a_disk(&state.source, volumes, node.place, errors);
        rules::volumes_and_images(state.images, volumes, node.place, errors);
    }
    let State { source, rollback, images } = state?;
    networks?;
    configs?;
    let declaration = Declaration {
        repository: repository?,
        endpoint: endpoint?,
        operators: operators?,
        tokens: tokens?,
        signers: signers?,
        follow: optional(follow)?,
        github: github?,
        attestation: attestation?,
        certificate: optional(certificate)?,
        state: source,
        rollback,
        images,
        registries: registries?.into_iter().map(|read| read.registry).collect(),
        volumes: volumes?,
        services: services?.into_iter().map(|read| read.service).collect(),
    };
    errors.is_empty().then_some(declaration)
}

fn version(top: &Fields<'_>, errors: &mut Collector<'_>) {
    let hint = "write `version: 1`; it is the version of this format, not of Compose";
    let Some(node) = top.require("version", hint, errors) else { return };
    match &node.kind {
        Kind::Scalar { text, plain: true, .. } if text == "1" => {}
        // A text or a fraction is Compose's, which ignores it; a whole number is this format's.
        Kind::Scalar { text, plain, .. }
            if (!plain || text.contains('.')) && matches!(text.split('.').next(), Some("2" | "3")) =>
        {
            let message =
                "`version` is Compose's and has no effect: this is read as version 1 of a declaration";
            errors.note(node.place, message, "write `version: 1`");
        }
        Kind::Scalar { text, .. } => {
            errors.hinted(node.place, format!("version {} is not known", shorten(text, 20)), hint);
        }
        _ => fields::mismatch(node, "`version`", "1", errors),
    }
}

fn operators(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<Operator>> {
    let items = fields::list(node, "`operators`", errors)?;
    bounded(node, items.len(), MAX_OPERATORS, "operators", errors)?;
    let mut names = BTreeSet::new();
    let mut prints = BTreeSet::new();
    let read = items.iter().map(|item| {
        let fields = Fields::open(item, "an operator", keys::OPERATOR, &[], errors)?;
        let name = fields
            .require("name", "write `name: alice`", errors)
            .and_then(|node| Some((node, fields::text(node, "an operator's name", errors)?)));
        let key = fields
            .require("key", "write `key: ssh-ed25519 AAAA…`, one line of a .pub file", errors)
            .and_then(|node| operator_key(node, errors).map(|key| (node, key)));
        let ((name_node, name), (key_node, key)) = (name?, key?);
        if !is_name(&name) {
            errors.error(
                name_node.place,
                "an operator's name is 1 to 63 of a-z 0-9 . _ - and starts with a letter or a digit",
            );
            return None;
        }
        if !names.insert(name.clone()) {
            errors.error(name_node.place, format!("a second operator is called {name}"));
            return None;
        }
        if !prints.insert(key.fingerprint().to_owned()) {
            errors.hinted(
                key_node.place,
                "a second operator has this key",
                "each operator signs with a key of their own",
            );
            return None;
        }
        Some(Operator { name, key })
    });
    collect(read)
}

fn tokens(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<Token>> {
    let items = fields::list(node, "`tokens`", errors)?;
    bounded(node, items.len(), MAX_TOKENS, "tokens", errors)?;
    let (mut names, mut hashes) = (BTreeSet::new(), BTreeSet::new());
    let read = items.iter().map(|item| {
        let fields = Fields::open(item, "a token", keys::TOKEN, &[], errors)?;
        let name = fields
            .require("name", "write `name: ci`", errors)
            .and_then(|node| Some((node, fields::text(node, "a token's name", errors)?)));
        let hash = fields
            .require("hash", "write `hash: sha256:…`, as `coffer token new NAME` prints it", errors)
            .and_then(|node| token_hash(node, errors).map(|hash| (node, hash)));
        let ((name_node, name), (hash_node, hash)) = (name?, hash?);
        if !is_name(&name) {
            errors.error(
                name_node.place,
                "a token's name is 1 to 63 of a-z 0-9 . _ - and starts with a letter or a digit",
            );
            return None;
        }
        if !names.insert(name.clone()) {
            errors.error(name_node.place, format!("a second token is called {name}"));
            return None;
        }
        if !hashes.insert(hash) {
            errors.hinted(
                hash_node.place,
                "a second token has this hash",
                "each client has a token of its own",
            );
            return None;
        }
        Some(Token { name, hash })
    });
    collect(read)
}

/// The token itself may have been pasted, so the source line is not shown.
fn token_hash(node: &Node, errors: &mut Collector<'_>) -> Option<Digest> {
    let text = fields::text(node, "a token's hash", errors)?;
    let result = if text.contains(AccessToken::PREFIX) {
        Err(WordError::new("this is the token itself, and whoever has seen this file has it now")
            .hint("make another one with `coffer token new NAME`, and write the hash that it prints"))
    } else {
        text.parse().map_err(|_| {
            WordError::new("not a token's hash: it is not sha256: and 64 lower-case hex digits")
                .hint("`coffer token new NAME` prints the token and its hash")
        })
    };
    result.map_err(|error| errors.hidden(node.place, error)).ok()
}

/// A private key may have been pasted, so the source line is not shown.
fn operator_key(node: &Node, errors: &mut Collector<'_>) -> Option<crate::OperatorKey> {
    let text = fields::text(node, "an operator's key", errors)?;
    let result = text.parse();
    match result {
        Err(error) if text.contains("PRIVATE") => {
            errors.hidden(node.place, error);
            None
        }
        result => fields::checked(node, result, errors),
    }
}

fn github(node: Option<&Node>, errors: &mut Collector<'_>) -> Option<Github> {
    let Some(node) = node else {
        return Some(Github { api: DEFAULT_GITHUB.parse().ok()?, token: None, ca: None });
    };
    let fields = Fields::open(node, "`github`", keys::GITHUB, &[], errors)?;
    let api = url(fields.get("api"), "`api`", DEFAULT_GITHUB, errors);
    let token = fields.get("token").map(|node| hidden_reference(node, "token", errors));
    let ca = fields.get("ca").map(|node| pem(node, errors));
    Some(Github { api: api?, token: optional(token)?, ca: optional(ca)? })
}

/// A reference where the secret itself may have been written by mistake, so the source line is not shown.
fn hidden_reference(node: &Node, key: &str, errors: &mut Collector<'_>) -> Option<SecretRef> {
    let Kind::Scalar { text, .. } = &node.kind else {
        fields::mismatch(node, &format!("`{key}`"), "a secret's reference", errors);
        return None;
    };
    let example =
        if key == "token" { "secret://cofferdam/github/token" } else { "secret://registry/example/password" };
    let result = text.parse().map_err(|error: WordError| {
        error.hint(format!(
            "write `{key}: {example}` and put the {key} with `coffer secret put`; revoke it if it stood here"
        ))
    });
    result.map_err(|error| errors.hidden(node.place, error)).ok()
}

fn attestation(node: Option<&Node>, errors: &mut Collector<'_>) -> Option<Attestation> {
    let Some(node) = node else {
        return Some(Attestation { collateral: DEFAULT_COLLATERAL.parse().ok()?, ca: None });
    };
    let fields = Fields::open(node, "`attestation`", keys::ATTESTATION, &[], errors)?;
    let collateral = url(fields.get("collateral"), "`collateral`", DEFAULT_COLLATERAL, errors);
    let ca = fields.get("ca").map(|node| pem(node, errors));
    Some(Attestation { collateral: collateral?, ca: optional(ca)? })
}

/// What the file says of the state.
#[derive(Default)]
struct State {
    source: StateSource,
    rollback: Rollback,
    images: Option<u64>,
}

/// What opens the state. State in memory is what there is without this key, so that one thing is not said in two ways.
fn state(node: &Node, errors: &mut Collector<'_>) -> Option<State> {
    let fields = Fields::open(node, "`state`", keys::STATE, &[], errors)?;
    let rollback = fields.get("rollback").map_or(Some(Rollback::Require), |node| rollback(node, errors));
    let images = fields.get("images").map(|node| read_volumes::images(node, errors));
    Some(State { source: provider(&fields, errors)?, rollback: rollback?, images: optional(images)? })
}

/// What holds where no witness says how new the state has to be.
fn rollback(node: &Node, errors: &mut Collector<'_>) -> Option<Rollback> {
    match fields::text(node, "`rollback`", errors)?.as_str() {
        "require" => return Some(Rollback::Require),
        "warn" => return Some(Rollback::Warn),
        other => errors.hinted(
            node.place,
            format!("`{}` is not what `rollback` can be", shorten(other, 40)),
            "write `require`, which is what holds without it, or `warn`: the state then opens without a witness, and that is said",
        ),
    }
    None
}

fn provider(fields: &Fields<'_>, errors: &mut Collector<'_>) -> Option<StateSource> {
    const OPERATOR: &str = "write `provider: operator`: operators open the state with `coffer unseal`";
    const PEER: &str = "write `peers: [{url: \"http://keys.example.org:7443\", key: ssh-ed25519 AAAA…}]`; `coffer keyserve` prints it";
    let node = fields.require("provider", OPERATOR, errors)?;
    let text = fields::text(node, "`provider`", errors)?;
    let peers = fields.get("peers");
    let (message, hint) = match (text.as_str(), peers) {
        ("operator", None) => return Some(StateSource::Operator),
        ("operator", Some(peers)) => {
            errors.hinted(
                peers.place,
                "`peers` goes with `provider: peer`",
                "remove it, or write `provider: peer`",
            );
            return None;
        }
        ("peer", Some(node)) => return key_servers(node, errors),
        ("peer", None) => ("`provider: peer` names no key server".to_owned(), PEER),
        ("memory", _) => (
            "`memory` is not a provider of state".to_owned(),
            "remove `state`: without it state is in memory, and lost at power-off",
        ),
        (other, _) => (format!("`{}` is not a provider of state", shorten(other, 40)), OPERATOR),
    };
    errors.hinted(node.place, message, hint);
    None
}

/// The key servers that open the state.
fn key_servers(node: &Node, errors: &mut Collector<'_>) -> Option<StateSource> {
    let items = fields::list(node, "`peers`", errors)?;
    if items.is_empty() || items.len() > MAX_SERVERS {
        errors.hinted(
            node.place,
            format!("`peers` has {} key servers instead of 1 to {MAX_SERVERS}", items.len()),
            "name one, or three: with three the state opens while one is away",
        );
        return None;
    }
    let mut servers: Vec<KeyServer> = Vec::with_capacity(items.len());
    let mut whole = true;
    for item in items {
        match key_server(item, errors) {
            Some(server) if servers.iter().any(|other| other.key.public() == server.key.public()) => {
                errors.hinted(
                    item.place,
                    "two key servers have one key",
                    "each has its own: who knows of a state is told by it",
                );
                whole = false;
            }
            Some(server) => servers.push(server),
            None => whole = false,
        }
    }
    whole.then_some(StateSource::Peer(servers))
}

fn key_server(item: &Node, errors: &mut Collector<'_>) -> Option<KeyServer> {
    let fields = Fields::open(item, "a key server", keys::PEER, &[], errors)?;
    let url = fields.require("url", "write `url: \"http://keys.example.org:7443\"`", errors);
    let key = fields
        .require("key", "write `key: ssh-ed25519 AAAA…`, the public half of the key server's `--key`", errors)
        .and_then(|node| operator_key(node, errors));
    let ca_node = fields.get("ca");
    let ca = ca_node.map(|node| pem(node, errors));
    let url = http_url(url?, errors)?;
    if let (Some(node), false) = (ca_node, url.is_https()) {
        errors.hinted(
            node.place,
            "`ca` is for an https URL",
            "remove it: answers bear the server's signature",
        );
        return None;
    }
    Some(KeyServer { url, key: key?, ca: optional(ca)? })
}

fn http_url(node: &Node, errors: &mut Collector<'_>) -> Option<HttpUrl> {
    let text = fields::text(node, "`url`", errors)?;
    match text.parse() {
        // What stands before an @ may be a password.
        Err(error) if text.contains('@') => {
            errors.hidden(node.place, error);
            None
        }
        result => fields::checked(node, result, errors),
    }
}

/// A registry, and where its password is named.
pub(crate) struct ReadRegistry {
    pub(crate) registry: Registry,
    pub(crate) password: Option<Place>,
}

fn registries(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<ReadRegistry>> {
    let items = fields::list(node, "`registries`", errors)?;
    bounded(node, items.len(), MAX_REGISTRIES, "registries", errors)?;
    let mut hosts = BTreeSet::new();
    let read = items.iter().map(|item| {
        let fields = Fields::open(item, "a registry", keys::REGISTRY, &[], errors)?;
        let node = fields.require("host", "write `host: registry.example.org:5000`", errors);
        let ca = fields.get("ca").map(|node| pem(node, errors));
        let login = login(&fields, errors);
        let node = node?;
        let host: crate::RegistryHost = fields::parse(node, "`host`", errors)?;
        if !hosts.insert(host.clone()) {
            errors.error(node.place, format!("the registry {host} is given twice"));
            return None;
        }
        let registry = Registry { host, ca: optional(ca)?, login: login? };
        Some(ReadRegistry { registry, password: fields.get("password").map(|node| node.place) })
    });
    collect(read)
}

/// The user of a registry: both parts or none. The outer `None` stands for a mistake.
fn login(fields: &Fields<'_>, errors: &mut Collector<'_>) -> Option<Option<Login>> {
    let (username, password) = match (fields.get("username"), fields.get("password")) {
        (None, None) => return Some(None),
        (Some(username), Some(password)) => (username, password),
        (Some(node), None) => {
            let hint =
                "write `password: secret://registry/example/password`, and put it with `coffer secret put`";
            errors.hinted(node.place, "there is a `username` and no `password`", hint);
            return None;
        }
        (None, Some(node)) => {
            errors.hinted(node.place, "there is a `password` and no `username`", "write `username: NAME`");
            return None;
        }
    };
    let name = fields::text(username, "`username`", errors)?;
    let visible = |byte: u8| byte.is_ascii_graphic() && byte != b':';
    if !(1..=MAX_USERNAME).contains(&name.len()) || !name.bytes().all(visible) {
        errors.error(username.place, "a user name is 1 to 255 visible ASCII characters without a colon");
        return None;
    }
    Some(Some(Login { username: name, password: hidden_reference(password, "password", errors)? }))
}

fn services(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<read_service::Read>> {
    let entries = fields::map(node, "`services`", errors)?;
    bounded(node, entries.len(), MAX_SERVICES, "services", errors)?;
    if entries.is_empty() {
        errors.error(node.place, "no service is declared");
        return None;
    }
    let read = entries.iter().map(|entry| {
        let service = read_service::service(&entry.key, &entry.value, errors);
        if !is_service_name(&entry.key) {
            errors.hinted(
                entry.place,
                format!("`{}` is not a service's name", shorten(&entry.key, 64)),
                "1 to 31 of a-z 0-9 - and _, starting with a letter or a digit: it becomes a host name",
            );
            return None;
        }
        service
    });
    collect(read)
}

pub(crate) fn url(
    node: Option<&Node>,
    what: &str,
    default: &str,
    errors: &mut Collector<'_>,
) -> Option<HttpsUrl> {
    match node {
        Some(node) => {
            let text = fields::text(node, what, errors)?;
            let result = text.parse();
            match result {
                // What stands before an @ may be a password.
                Err(error) if text.contains('@') => {
                    errors.hidden(node.place, error);
                    None
                }
                result => fields::checked(node, result, errors),
            }
        }
        None => default.parse().ok(),
    }
}

/// One or more certificates in PEM (RFC 7468), and nothing else: a private key here would be published.
pub(crate) fn pem(node: &Node, errors: &mut Collector<'_>) -> Option<String> {
    let text = fields::text(node, "`ca`", errors)?;
    let error = match check_pem(&text) {
        Ok(()) => return Some(text),
        Err(why) => WordError::new(format!("not certificates in PEM: {why}"))
            .hint("write `ca: |` and below it, indented, one or more BEGIN CERTIFICATE blocks"),
    };
    errors.hidden(node.place, error);
    None
}

fn check_pem(text: &str) -> Result<(), &'static str> {
    if text.len() > MAX_PEM {
        return Err("longer than 64 KiB");
    }
    if text.contains("PRIVATE KEY") {
        return Err("this holds a private key, and whoever has seen this file has it now");
    }
    let mut certificates = 0;
    let mut body: Option<String> = None;
    for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        match (line, &mut body) {
            ("-----BEGIN CERTIFICATE-----", None) => body = Some(String::new()),
            ("-----END CERTIFICATE-----", Some(lines)) => {
                // 0x30: a certificate is an ASN.1 SEQUENCE (RFC 5280, 4.1).
                if base64::decode(&*lines).is_none_or(|der| der.first() != Some(&0x30)) {
                    return Err("a block does not decode");
                }
                certificates += 1;
                body = None;
            }
            (line, Some(lines)) if !line.starts_with("-----") => lines.push_str(line),
            _ => return Err("there is something else than certificates"),
        }
    }
    match (certificates, body) {
        (_, Some(_)) => Err("the last block has no end"),
        (0, None) => Err("there is no certificate"),
        (_, None) => Ok(()),
    }
}

/// An error when a list is longer than it may be.
pub(crate) fn bounded(
    node: &Node,
    found: usize,
    most: usize,
    what: &str,
    errors: &mut Collector<'_>,
) -> Option<()> {
    if found > most {
        errors.error(node.place, format!("{found} {what}, and at most {most} are allowed"));
        return None;
    }
    Some(())
}

/// All items, or nothing when one was refused; every item is read either way.
pub(crate) fn collect<T>(items: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    let mut complete = true;
    let read = items.filter_map(|item| {
        complete &= item.is_some();
        item
    });
    let read: Vec<T> = read.collect();
    complete.then_some(read)
}

/// An absent key is fine; a present one has to have been read.
pub(crate) fn optional<T>(read: Option<Option<T>>) -> Option<Option<T>> {
    match read {
        None => Some(None),
        Some(None) => None,
        Some(Some(value)) => Some(Some(value)),
    }
}
