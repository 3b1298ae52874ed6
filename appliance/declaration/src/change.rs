//! What differs between two declarations: what the appliance that runs the one can become without a boot, and what not.
//!
//! The appliance decides by this what it applies, and `coffer plan` shows it beforehand: both say the same because it is the
//! same. Keys are called as the file writes them. Every field of a declaration is looked at by name, so that one that is added
//! later does not compile until somebody has decided what its change takes.

use serde::Serialize;

use crate::limits::Limits;
use crate::model::{Declaration, Github, Service};

/// How the next declaration differs from the one that runs. It is empty exactly when both declare the same.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Change {
    /// Keys that are measured or laid out while the appliance boots, in the order of the file: `state.images` for example. Only a boot
    /// changes them.
    pub boot: Vec<&'static str>,
    /// The other keys outside of services. `services` is among them when those that stay are in another order, `networks` when one has
    /// its first member or lost its last.
    pub rest: Vec<&'static str>,
    /// Services that there are not yet, in the order of the next declaration.
    pub added: Vec<String>,
    /// Services that there are no more, in the order of the one that runs.
    pub removed: Vec<String>,
    /// Services that are declared otherwise, in the order of the next declaration.
    pub changed: Vec<Changed>,
}

/// A service that both have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// Its name.
    pub name: String,
    /// The keys that differ; at least one.
    pub keys: Vec<&'static str>,
    /// Whether another image runs then: another digest, wherever it comes from.
    pub image: bool,
}

impl Change {
    /// What it takes to get from `running` to `next`.
    #[must_use]
    pub fn between(running: &Declaration, next: &Declaration) -> Self {
        let Declaration {
            repository,
            endpoint,
            operators,
            tokens,
            signers,
            follow,
            github,
            attestation,
            certificate,
            state,
            rollback,
            registries,
            images,
            volumes,
            services,
        } = running;
        let Github { api, token, ca } = github;
        let is_in = |list: &[Service], name: &str| list.iter().any(|service| service.name == name);
        let both = |one: &[Service], other: &[Service]| -> Vec<String> {
            one.iter().map(|service| service.name.clone()).filter(|name| is_in(other, name)).collect()
        };
        let only = |one: &[Service], other: &[Service]| -> Vec<String> {
            one.iter().map(|service| service.name.clone()).filter(|name| !is_in(other, name)).collect()
        };
        let pairs =
            next.services.iter().filter_map(|service| Some((running.service(&service.name)?, service)));
        Self {
            // The identity, what was sealed or laid out on the disk, and the request that the certificate's key was measured in.
            boot: different([
                ("repository", *repository != next.repository),
                ("endpoint", *endpoint != next.endpoint),
                ("attestation", *attestation != next.attestation),
                ("certificate", *certificate != next.certificate),
                ("state", *state != next.state),
                ("state.rollback", *rollback != next.rollback),
                ("state.images", *images != next.images),
                ("volumes", *volumes != next.volumes),
            ]),
            rest: different([
                ("operators", *operators != next.operators),
                ("tokens", *tokens != next.tokens),
                ("signers", *signers != next.signers),
                ("follow", *follow != next.follow),
                ("github.api", *api != next.github.api),
                ("github.token", *token != next.github.token),
                ("github.ca", *ca != next.github.ca),
                ("registries", *registries != next.registries),
                ("networks", running.networks() != next.networks()),
                ("services", both(services, &next.services) != both(&next.services, services)),
            ]),
            added: only(&next.services, services),
            removed: only(services, &next.services),
            changed: pairs.filter_map(|(running, next)| Changed::between(running, next)).collect(),
        }
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { boot, rest, added, removed, changed } = self;
        boot.is_empty() && rest.is_empty() && added.is_empty() && removed.is_empty() && changed.is_empty()
    }
}

impl Changed {
    fn between(running: &Service, next: &Service) -> Option<Self> {
        let keys = keys(running, next);
        let image = running.image.digest() != next.image.digest();
        (!keys.is_empty()).then(|| Self { name: next.name.clone(), keys, image })
    }
}

/// The keys of a service that differ, as the file writes them.
fn keys(running: &Service, next: &Service) -> Vec<&'static str> {
    let Service {
        // Both have the same: by it they were found.
        name: _,
        image,
        command,
        entrypoint,
        environment,
        secrets,
        configs,
        ports,
        networks,
        extra_hosts,
        egress,
        depends_on,
        healthcheck,
        on_unhealthy,
        on_change,
        restart,
        user,
        group_add,
        working_dir,
        read_only,
        tmpfs,
        volumes,
        stop_signal,
        stop_grace_period,
        limits,
        shm_size,
        ulimits,
        capabilities,
        profile,
    } = running;
    let Limits { memory, cpus, pids } = limits;
    different([
        ("image", *image != next.image),
        ("command", *command != next.command),
        ("entrypoint", *entrypoint != next.entrypoint),
        ("environment", *environment != next.environment),
        ("secrets", *secrets != next.secrets),
        ("configs", *configs != next.configs),
        ("ports", *ports != next.ports),
        ("networks", *networks != next.networks),
        ("extra_hosts", *extra_hosts != next.extra_hosts),
        ("egress", *egress != next.egress),
        ("depends_on", *depends_on != next.depends_on),
        ("healthcheck", *healthcheck != next.healthcheck),
        ("on_unhealthy", *on_unhealthy != next.on_unhealthy),
        ("on_change", *on_change != next.on_change),
        ("restart", *restart != next.restart),
        ("user", *user != next.user),
        ("group_add", *group_add != next.group_add),
        ("working_dir", *working_dir != next.working_dir),
        ("read_only", *read_only != next.read_only),
        ("tmpfs", *tmpfs != next.tmpfs),
        ("volumes", *volumes != next.volumes),
        ("stop_signal", *stop_signal != next.stop_signal),
        ("stop_grace_period", *stop_grace_period != next.stop_grace_period),
        ("mem_limit", *memory != next.limits.memory),
        ("cpus", *cpus != next.limits.cpus),
        ("pids_limit", *pids != next.limits.pids),
        ("shm_size", *shm_size != next.shm_size),
        ("ulimits", *ulimits != next.ulimits),
        ("cap_add", !next.capabilities.is_subset(capabilities)),
        ("cap_drop", !capabilities.is_subset(&next.capabilities)),
        ("profile", *profile != next.profile),
    ])
}

fn different<const N: usize>(keys: [(&'static str, bool); N]) -> Vec<&'static str> {
    keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::keys as known;

    const ZEROS: &str =
        "registry.example/app@sha256:0000000000000000000000000000000000000000000000000000000000000000";
    const ONES: &str =
        "registry.example/app@sha256:1111111111111111111111111111111111111111111111111111111111111111";
    const ELSEWHERE: &str =
        "mirror.example/app@sha256:0000000000000000000000000000000000000000000000000000000000000000";
    const ALICE: &str = "{name: alice, key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL3eMexUl4rWPV2mlvLRouVrCagc04WaQr3bjVft2JOy}";

    /// Lines of the file itself behind what every declaration has, and lines of its service `web`.
    fn declaration(top: &str, web: &str) -> Declaration {
        let has = |key: &str| top.lines().any(|line| line.starts_with(key));
        let mut text = String::from("version: 1\n");
        for (key, line) in [
            ("repository", "repository: octo-org/payments"),
            ("endpoint", "endpoint: app.example.org:8443"),
            ("operators", &format!("operators: [{ALICE}]")),
            ("state", "state: {provider: operator}"),
            ("volumes", "volumes: {data: }"),
        ] {
            if !has(key) {
                text += &format!("{line}\n");
            }
        }
        let image = if web.starts_with("image") { "" } else { &format!("image: {ZEROS}") };
        text += &format!("{top}\nservices:\n  db: {{image: '{ZEROS}'}}\n  web:\n");
        for line in [image, web] {
            text += &format!("    {line}\n");
        }
        Declaration::parse(text.as_bytes()).unwrap_or_else(|wrong| panic!("{text}\n{wrong}"))
    }

    #[test]
    fn each_key_of_the_file_is_told_by_its_name_and_by_what_it_takes() {
        let plain = declaration("", "");
        let token = "github: {token: 'secret://cofferdam/github/token'}";
        let signers = "signers: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL3eMexUl4rWPV2mlvLRouVrCagc04WaQr3bjVft2JOy alice]";
        let boot: [(&str, &[&str]); 7] = [
            ("repository: octo-org/other", &["repository"]),
            ("endpoint: other.example.org:8443", &["endpoint"]),
            ("attestation: {collateral: 'https://pccs.example.org'}", &["attestation"]),
            ("certificate: {names: [app.example.org], terms_agreed: true}", &["certificate"]),
            ("state: {provider: operator, rollback: warn}", &["state.rollback"]),
            ("state: {provider: operator, images: 2g}", &["state.images"]),
            ("volumes: {data: {size: 2g}}", &["volumes"]),
        ];
        let page = include_str!("../../../docs/gitops.md");
        let page = page.split("## What takes a boot").nth(1).unwrap().split("\n\n").nth(1).unwrap();
        for (top, keys) in boot {
            let named = keys.iter().filter_map(|key| key.split('.').next());
            named.for_each(|key| assert!(page.contains(&format!("`{key}`")), "{key}"));
            let change = Change::between(&plain, &declaration(top, ""));
            assert_eq!(change, Change { boot: keys.to_vec(), ..Change::default() }, "{top}");
        }
        let hash = format!("sha256:{}", "0".repeat(64));
        let rest: [(&str, &[&str]); 6] = [
            (&format!("tokens: [{{name: ci, hash: '{hash}'}}]"), &["tokens"]),
            (&format!("{signers}\n{token}"), &["signers", "github.token"]),
            (
                &format!("{signers}\n{token}\nfollow: {{interval: 1h}}"),
                &["signers", "follow", "github.token"],
            ),
            ("github: {api: 'https://ghe.example.org/api/v3'}", &["github.api"]),
            (token, &["github.token"]),
            ("registries: [{host: registry.example}]", &["registries"]),
        ];
        for (top, keys) in rest {
            let change = Change::between(&plain, &declaration(top, ""));
            assert_eq!(change, Change { rest: keys.to_vec(), ..Change::default() }, "{top}");
        }
    }

    #[test]
    fn each_key_of_a_service_is_told_by_its_name() {
        let plain = declaration("", "");
        let mut told = BTreeSet::new();
        for (web, keys) in [
            (format!("image: {ONES}"), vec!["image"]),
            (format!("image: {ELSEWHERE}"), vec!["image"]),
            ("command: [serve]".into(), vec!["command"]),
            ("entrypoint: [/bin/web]".into(), vec!["entrypoint"]),
            ("environment: {A: b}".into(), vec!["environment"]),
            ("secrets: [{source: 'secret://prod/tls/key'}]".into(), vec!["secrets"]),
            ("ports: ['443:8080']".into(), vec!["ports"]),
            ("networks: {default: {aliases: [www]}}".into(), vec!["networks"]),
            ("extra_hosts: ['a.example:192.0.2.1']".into(), vec!["extra_hosts"]),
            ("egress: ['api.example.org:443']".into(), vec!["egress"]),
            ("depends_on: [db]".into(), vec!["depends_on"]),
            ("healthcheck: {tcp: 80}".into(), vec!["healthcheck"]),
            ("on_unhealthy: restart\n    healthcheck: {tcp: 80}".into(), vec!["healthcheck", "on_unhealthy"]),
            (
                "on_change: restart\n    secrets: [{source: 'secret://prod/tls/key'}]".into(),
                vec!["secrets", "on_change"],
            ),
            ("restart: on-failure:3".into(), vec!["restart"]),
            ("user: '1000'".into(), vec!["user"]),
            ("group_add: [44]".into(), vec!["group_add"]),
            ("working_dir: /srv".into(), vec!["working_dir"]),
            ("read_only: true".into(), vec!["read_only"]),
            ("tmpfs: [/tmp]".into(), vec!["tmpfs"]),
            ("volumes: ['data:/data']".into(), vec!["volumes"]),
            ("stop_signal: SIGINT".into(), vec!["stop_signal"]),
            ("stop_grace_period: 3s".into(), vec!["stop_grace_period"]),
            ("mem_limit: 64m".into(), vec!["mem_limit"]),
            ("deploy: {resources: {limits: {memory: 64m}}}".into(), vec!["mem_limit"]),
            ("cpus: 0.5".into(), vec!["cpus"]),
            ("pids_limit: 9".into(), vec!["pids_limit"]),
            ("shm_size: 1m".into(), vec!["shm_size"]),
            ("ulimits: {nofile: 9}".into(), vec!["ulimits"]),
            ("cap_drop: [CHOWN]".into(), vec!["cap_drop"]),
            ("profile: {paths: {read: [/], execute: [/bin]}}".into(), vec!["profile"]),
        ] {
            let other = declaration("", &web);
            let change = Change::between(&plain, &other);
            told.extend(keys.clone());
            let changed = Changed { name: "web".into(), keys, image: web.contains("111") };
            assert_eq!(change, Change { changed: vec![changed], ..Change::default() }, "{web}");
            let back = Change::between(&other, &plain);
            assert_eq!(back.changed.len(), 1, "{web}");
        }
        let added = Change::between(&declaration("", "cap_drop: [CHOWN]"), &plain);
        assert_eq!(added.changed.first().unwrap().keys, ["cap_add"]);
        let with_config =
            declaration("configs: {motd: {content: hello}}", "configs: [{source: motd, target: /etc/motd}]");
        assert_eq!(Change::between(&plain, &with_config).changed.first().unwrap().keys, ["configs"]);
        told.extend(["cap_add", "configs"]);
        assert!(told.iter().all(|key| known::SERVICE.contains(key)), "{told:?}");
    }

    #[test]
    fn services_come_go_and_change_places() {
        let plain = declaration("", "");
        let mut next = plain.clone();
        next.services.reverse();
        let change = Change::between(&plain, &next);
        assert_eq!(change, Change { rest: vec!["services"], ..Change::default() });

        let mut next = plain.clone();
        next.services.first_mut().unwrap().name = "cache".into();
        let change = Change::between(&plain, &next);
        let expected =
            Change { added: vec!["cache".into()], removed: vec!["db".into()], ..Change::default() };
        assert_eq!(change, expected);

        let alone = declaration("networks: {back: }", "networks: [back]");
        let change = Change::between(&plain, &alone);
        assert_eq!(change.rest, ["networks"]);
        assert_eq!(change.changed.first().unwrap().keys, ["networks"]);
    }

    /// Lines for the file and for its service, of which any may be there or not.
    const TOP: [&str; 6] = [
        "repository: octo-org/other",
        "endpoint: other.example.org:8443",
        "state: {provider: operator, images: 2g}",
        "registries: [{host: registry.example}]",
        "volumes: {data: {size: 2g}}",
        "github: {token: 'secret://cofferdam/github/token'}",
    ];
    const WEB: [&str; 6] = [
        "command: [serve]",
        "environment: {A: b}",
        "ports: ['443:8080']",
        "depends_on: [db]",
        "mem_limit: 64m",
        "cap_drop: [ALL]",
    ];

    fn any_declaration() -> impl Strategy<Value = Declaration> {
        (proptest::sample::subsequence(&TOP, 0..=6), proptest::sample::subsequence(&WEB, 0..=6), 0..4_usize)
            .prop_map(|(top, web, services)| {
                let mut declaration = declaration(&top.join("\n"), &web.join("\n    "));
                match services {
                    0 => declaration.services.reverse(),
                    1 => declaration.services.truncate(1),
                    _ => {}
                }
                declaration
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

        #[test]
        fn it_is_empty_exactly_when_both_declare_the_same(one in any_declaration(), other in any_declaration()) {
            prop_assert!(Change::between(&one, &one).is_empty());
            prop_assert_eq!(Change::between(&one, &other).is_empty(), one == other);
        }

        #[test]
        fn the_way_back_takes_the_same(one in any_declaration(), other in any_declaration()) {
            let (there, back) = (Change::between(&one, &other), Change::between(&other, &one));
            prop_assert_eq!(&there.boot, &back.boot);
            prop_assert_eq!(&there.rest, &back.rest);
            prop_assert_eq!(&there.added, &back.removed);
            prop_assert_eq!(there.changed.len(), back.changed.len());
        }
    }
}
