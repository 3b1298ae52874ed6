//! Reading what a service may use: limits, resource limits, shared memory, capabilities.
//!
//! Compose has two places for some of them, the service itself and `deploy.resources.limits`. Both are read, and as in
//! Compose they have to agree.

use cofferdam_protocol::WordError;

use crate::diagnostics::Collector;
use crate::fields::{self, Fields};
use crate::keys;
use crate::limits::{
    Capability, CapabilityWord, DEFAULT_SHM_SIZE, LEAST_MEMORY, Limits, MAX_NOFILE, MAX_PIDS, Ulimit,
    Ulimits, capability_names, parse_cpus, parse_pids, parse_size, parse_whole, remaining,
};
use crate::read::{bounded, collect, optional};
use crate::read_harmless;
use crate::yaml::{Kind, Node};

/// More than there are capabilities.
const MAX_CAPABILITIES: usize = 64;

/// What [`crate::Service`] has of them.
pub(crate) struct Resources {
    pub(crate) limits: Limits,
    pub(crate) shm_size: u64,
    pub(crate) ulimits: Ulimits,
    pub(crate) capabilities: std::collections::BTreeSet<Capability>,
}

/// Reads the keys of a service that say what it may use. `None` when anything in them was refused.
pub(crate) fn resources(service: &Fields<'_>, errors: &mut Collector<'_>) -> Option<Resources> {
    let limits = limits(service, errors);
    let shm_size = service.get("shm_size").map_or(Some(DEFAULT_SHM_SIZE), |node| shm_size(node, errors));
    let ulimits = service.get("ulimits").map_or(Some(Ulimits::default()), |node| ulimits(node, errors));
    let add = capabilities(service.get("cap_add"), "`cap_add`", errors);
    let drop = capabilities(service.get("cap_drop"), "`cap_drop`", errors);
    let add = add.and_then(|words| added(service.get("cap_add"), &words, errors));
    Some(Resources {
        limits: limits?,
        shm_size: shm_size?,
        ulimits: ulimits?,
        capabilities: remaining(&add?, &drop?),
    })
}

/// A number with or without quotes, which no reader of YAML takes for another one; the parsers judge its text.
pub(crate) fn number<T>(
    node: &Node,
    what: &str,
    parse: impl FnOnce(&str) -> Result<T, WordError>,
    errors: &mut Collector<'_>,
) -> Option<T> {
    match &node.kind {
        Kind::Scalar { text, plain, .. } if !(*plain && fields::is_null(text)) => {
            fields::checked(node, parse(text), errors)
        }
        _ => {
            fields::mismatch(node, what, "a number", errors);
            None
        }
    }
}

fn limits(service: &Fields<'_>, errors: &mut Collector<'_>) -> Option<Limits> {
    let deployed = deploy(service.get("deploy"), errors);
    let own = Some((service.get("mem_limit"), service.get("cpus"), service.get("pids_limit")));
    let both = [("`mem_limit`", "`cpus`", "`pids_limit`", own), ("`memory`", "`cpus`", "`pids`", deployed)];
    let mut read = both.into_iter().map(|(memory_key, cpus_key, pids_key, nodes)| {
        let (memory, cpus, pids) = nodes?;
        let memory =
            memory.map(|node| number(node, memory_key, parse_memory, errors).map(|value| (value, node)));
        let cpus = cpus.map(|node| number(node, cpus_key, parse_cpus, errors).map(|value| (value, node)));
        let pids = pids.map(|node| number(node, pids_key, parse_pids, errors).map(|value| (value, node)));
        Some((optional(memory)?, optional(cpus)?, optional(pids)?))
    });
    let (own, deployed) = (read.next()?, read.next()?);
    drop(read);
    let (own, deployed) = (own?, deployed?);
    let memory = one(own.0, deployed.0, "mem_limit", "memory", errors);
    let cpus = one(own.1, deployed.1, "cpus", "cpus", errors);
    let pids = one(own.2, deployed.2, "pids_limit", "pids", errors);
    Some(Limits { memory: memory?, cpus: cpus?, pids: pids? })
}

/// A size of memory that a service can live in.
fn parse_memory(text: &str) -> Result<u64, WordError> {
    let bytes = parse_size(text)?;
    if bytes < LEAST_MEMORY {
        let hint = format!("at least {}m; without a limit a service gets an equal share", LEAST_MEMORY >> 20);
        let what = "too little memory for a service: its image and what the appliance runs for it count too";
        return Err(WordError::new(what).hint(hint));
    }
    Ok(bytes)
}

/// The value of a limit that may stand in two places. The outer `None` stands for two that differ.
fn one<T: PartialEq>(
    own: Option<(T, &Node)>,
    deployed: Option<(T, &Node)>,
    own_key: &str,
    key: &str,
    errors: &mut Collector<'_>,
) -> Option<Option<T>> {
    match (own, deployed) {
        (Some((own, _)), Some((deployed, node))) if own != deployed => {
            let message = format!("`{own_key}` and `deploy.resources.limits.{key}` differ");
            errors.hinted(node.place, message, "write one of them");
            None
        }
        (own, deployed) => Some(own.or(deployed).map(|(value, _)| value)),
    }
}

type DeployLimits<'n> = (Option<&'n Node>, Option<&'n Node>, Option<&'n Node>);

/// `deploy.resources.limits`, the only part of `deploy` that says something here.
fn deploy<'n>(node: Option<&'n Node>, errors: &mut Collector<'_>) -> Option<DeployLimits<'n>> {
    let none = Some((None, None, None));
    let Some(node) = node else { return none };
    let deploy = Fields::open(node, "`deploy`", keys::DEPLOY, keys::UNSUPPORTED_DEPLOY, errors)?;
    read_harmless::deploy(&deploy, errors)?;
    let Some(node) = deploy.get("resources") else { return none };
    let resources = Fields::open(node, "`resources`", keys::RESOURCES, keys::UNSUPPORTED_RESOURCES, errors)?;
    let Some(node) = resources.get("limits") else { return none };
    let limits = Fields::open(node, "`limits`", keys::LIMITS, keys::UNSUPPORTED_LIMITS, errors)?;
    Some((limits.get("memory"), limits.get("cpus"), limits.get("pids")))
}

fn shm_size(node: &Node, errors: &mut Collector<'_>) -> Option<u64> {
    let bytes = number(node, "`shm_size`", parse_size, errors)?;
    if bytes == 0 {
        // To the kernel it would mean without end.
        errors.hinted(node.place, "no shared memory at all", "write a size, for example 64m, or remove it");
        return None;
    }
    Some(bytes)
}

fn ulimits(node: &Node, errors: &mut Collector<'_>) -> Option<Ulimits> {
    let fields = Fields::open(node, "`ulimits`", keys::ULIMITS, keys::UNSUPPORTED_ULIMITS, errors)?;
    let mut read = |key: &str, most: u64| fields.get(key).map(|node| ulimit(node, key, most, errors));
    let nofile = read("nofile", MAX_NOFILE);
    let nproc = read("nproc", MAX_PIDS.into());
    let memlock = read("memlock", Ulimit::UNLIMITED);
    let core = read("core", 0);
    optional(core)?;
    Some(Ulimits { nofile: optional(nofile)?, nproc: optional(nproc)?, memlock: optional(memlock)? })
}

/// One number for both, or `{soft, hard}`.
fn ulimit(node: &Node, key: &str, most: u64, errors: &mut Collector<'_>) -> Option<Ulimit> {
    let parse = |text: &str| parse_ulimit(text, key, most);
    let Kind::Map(_) = &node.kind else {
        let both = number(node, "a limit", parse, errors)?;
        return Some(Ulimit { soft: both, hard: both });
    };
    let fields = Fields::open(node, "a limit", keys::ULIMIT, &[], errors)?;
    let hint = "write {soft: 1024, hard: 4096}, or one number for both";
    let mut read = |name: &str| {
        let node = fields.require(name, hint, errors)?;
        number(node, "a limit", parse, errors).map(|value| (value, node))
    };
    let (soft, hard) = (read("soft"), read("hard"));
    let ((soft, node), (hard, _)) = (soft?, hard?);
    if soft > hard {
        errors.error(node.place, "the soft limit is above the hard limit");
        return None;
    }
    Some(Ulimit { soft, hard })
}

fn parse_ulimit(text: &str, key: &str, most: u64) -> Result<u64, WordError> {
    if text == "-1" && most == Ulimit::UNLIMITED {
        return Ok(Ulimit::UNLIMITED);
    }
    let value = parse_whole(text).filter(|value| *value <= most);
    value.ok_or_else(|| match key {
        "core" => WordError::new("a core file would hold the workload's secrets")
            .hint("write `core: 0`, or remove it"),
        "memlock" => {
            WordError::new("not a number of bytes").hint("0 or more, or -1 for all memory of the service")
        }
        _ => WordError::new(format!("not a limit on `{key}` that a service can have"))
            .hint(format!("0 to {most}")),
    })
}

fn capabilities(node: Option<&Node>, what: &str, errors: &mut Collector<'_>) -> Option<Vec<CapabilityWord>> {
    let Some(node) = node else { return Some(Vec::new()) };
    let items = fields::list(node, what, errors)?;
    bounded(node, items.len(), MAX_CAPABILITIES, "capabilities", errors)?;
    let hint = match what {
        "`cap_drop`" => format!("services have {} at most", capability_names()),
        _ => format!("remove it; there are {}", capability_names()),
    };
    let read = items.iter().map(|item| {
        let text = fields::text(item, "a capability", errors)?;
        fields::checked(item, text.parse().map_err(|error: WordError| error.hint(hint.clone())), errors)
    });
    collect(read)
}

/// `ALL` in `cap_add` would be every capability of Linux, which a service never has.
fn added(
    node: Option<&Node>,
    words: &[CapabilityWord],
    errors: &mut Collector<'_>,
) -> Option<Vec<Capability>> {
    let one = |word: &CapabilityWord| match word {
        CapabilityWord::One(capability) => Some(*capability),
        CapabilityWord::All => None,
    };
    let added: Option<Vec<Capability>> = words.iter().map(one).collect();
    if let (None, Some(node)) = (&added, node) {
        errors.hinted(
            node.place,
            "no service has all capabilities: most of them reach beyond it",
            format!("remove ALL; without `cap_drop` a service has {}", capability_names()),
        );
    }
    added
}
