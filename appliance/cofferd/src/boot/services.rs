//! The table of services: everything about a service that is not in the declaration itself is decided here, once.

use std::net::Ipv4Addr;
use std::path::Path;

use cofferdam_declaration::{Declaration, Service, StateSource};

use super::numbers::{Exhausted, Numbers};
use super::partition::{self, TooLittle};
use crate::paths;
use crate::roles::PUBLISH;
use crate::roles::facts::{Facts, FollowFacts, Grant, KeyServerFacts, OperatorFacts, Place, ServiceFacts};
use crate::system::cgroup;

/// Why a declaration cannot run on this machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    /// There is no number left for one of the services or networks.
    #[error("cannot number the services")]
    Numbers(#[from] Exhausted),
    /// There is not enough memory for them.
    #[error(transparent)]
    Memory(#[from] TooLittle),
}

/// Resolves a declaration: numbers its services and networks, divides `memory` (what all services may use together, in bytes)
/// among the services, and says who may lease what.
///
/// # Errors
///
/// [`ResolveError`].
pub(super) fn resolve(
    declaration: &Declaration,
    numbers: &mut Numbers,
    memory: u64,
) -> Result<Facts, ResolveError> {
    let limits: Vec<_> = declaration.services.iter().map(|service| service.limits.memory).collect();
    let shares = partition::divide(memory, &limits)?;
    let puller = |of: &Service| {
        let same = |other: &&Service| other.image.digest() == of.image.digest();
        declaration.services.iter().find(same).unwrap_or(of).name.clone()
    };
    let services = declaration.services.iter().zip(shares).map(|(service, memory)| {
        let number = numbers.of(&service.name)?;
        let networks = service.networks.iter().map(|at| {
            let address = number.address(numbers.of_network(&at.network)?);
            Ok(Place { network: at.network.clone(), address, others: Vec::new() })
        });
        Ok(ServiceFacts {
            uid: number.uid(),
            networks: networks.collect::<Result<_, Exhausted>>()?,
            cgroup: cgroup::of_service(&instance(service)),
            memory,
            // Names are validated by the declaration: they cannot leave the directory.
            directory: Path::new(paths::SERVICES_DIR).join(&service.name),
            rootfs: Path::new(paths::ROOTFS_DIR).join(instance(service)),
            image_on_disk: declaration.images.is_some(),
            puller: puller(service),
            declared: service.clone(),
        })
    });
    let mut services = services.collect::<Result<Vec<_>, Exhausted>>()?;
    introduce(&mut services);
    let leased = services.iter().flat_map(|service| {
        let registry = declaration.registry_of(&service.declared.image).filter(|_| service.pulls());
        let login = registry.and_then(|registry| registry.login.as_ref());
        let references = service.declared.references().into_iter().chain(login.map(|login| &login.password));
        references.map(|secret| Grant { uid: service.uid, secret: secret.clone() })
    });
    let token = declaration.github.token.iter().filter_map(|secret| {
        let uid = PUBLISH.uid()?;
        Some(Grant { uid, secret: secret.clone() })
    });
    Ok(Facts {
        operators: operators(declaration),
        tokens: declaration.tokens.clone(),
        follow: follow(declaration),
        github: declaration.github.clone(),
        attestation: declaration.attestation.clone(),
        certificate: None,
        key_servers: key_servers(declaration),
        rollback: declaration.rollback,
        registries: declaration.registries.clone(),
        grants: leased.chain(token).collect(),
        networks: declaration.networks().into_iter().map(str::to_owned).collect(),
        volumes: declaration.sealed_volumes(),
        services,
    })
}

/// What is a service's with this image, and another one's with the next: its name and the digest, so that both are there while one
/// takes the other's place. The whole digest, or two images whose digests somebody has made begin alike would be taken for one. No two
/// services have the same, whatever they are called: what comes behind the name has one length.
fn instance(service: &Service) -> String {
    format!("{}-{}", service.name, service.image.digest().hex())
}

/// What the roles read while the state is not open: whose signatures count, and which volumes need a place. There is nobody else, and
/// nothing to lease.
pub(super) fn before_launch(declaration: &Declaration) -> Facts {
    Facts {
        operators: operators(declaration),
        tokens: Vec::new(),
        follow: None,
        github: declaration.github.clone(),
        attestation: declaration.attestation.clone(),
        certificate: None,
        key_servers: key_servers(declaration),
        rollback: declaration.rollback,
        registries: Vec::new(),
        grants: Vec::new(),
        networks: Vec::new(),
        volumes: declaration.sealed_volumes(),
        services: Vec::new(),
    }
}

fn follow(declaration: &Declaration) -> Option<FollowFacts> {
    let declared = declaration.follow.clone()?;
    Some(FollowFacts { declared, signers: declaration.signers.clone() })
}

fn key_servers(declaration: &Declaration) -> Vec<KeyServerFacts> {
    let StateSource::Peer(servers) = &declaration.state else { return Vec::new() };
    let facts = servers.iter().map(|server| KeyServerFacts {
        url: server.url.clone(),
        key: *server.key.public(),
        ca: server.ca.clone(),
    });
    facts.collect()
}

fn operators(declaration: &Declaration) -> Vec<OperatorFacts> {
    let facts = declaration.operators.iter();
    facts.map(|operator| OperatorFacts { name: operator.name.clone(), key: *operator.key.public() }).collect()
}

/// Tells every service the addresses of the other members of its networks.
fn introduce(services: &mut [ServiceFacts]) {
    let places = services.iter().flat_map(|service| &service.networks);
    let all: Vec<(String, Ipv4Addr)> = places.map(|place| (place.network.clone(), place.address)).collect();
    for place in services.iter_mut().flat_map(|service| &mut service.networks) {
        let others =
            all.iter().filter(|(network, address)| *network == place.network && *address != place.address);
        place.others = others.map(|(_, address)| *address).collect();
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_declaration::{Auth, Port, Speaks};

    use super::*;
    use crate::roles::testing::declaration;

    const MEMORY: u64 = 1 << 30;

    fn services(names: &[&str]) -> Declaration {
        let digest = "0".repeat(64);
        let service = |name: &&str| {
            format!(
                "  {name}:\n    image: r.example:5000/{name}@sha256:{digest}\n    secrets: [secret://app/{name}/key]\n"
            )
        };
        let text: String = names.iter().map(service).collect();
        declaration(&format!(
            "registries:\n  - host: r.example:5000\n    ca: |\n{}services:\n{text}",
            certificate()
        ))
    }

    /// A certificate as a declaration holds it: indented.
    fn certificate() -> String {
        let key = cofferdam_attest::ratls::generate_key().unwrap();
        let names = ["r.example".to_owned()];
        let der = cofferdam_attest::ratls::certificate(&key, b"{}", &names, 1_700_000_000, 3600).unwrap();
        let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
        format!("      -----BEGIN CERTIFICATE-----\n      {body}\n      -----END CERTIFICATE-----\n")
    }

    fn known(facts: &Facts) -> Vec<(String, u32, Ipv4Addr)> {
        let of =
            |service: &ServiceFacts| (service.declared.name.clone(), service.uid, service.address().unwrap());
        facts.services.iter().map(of).collect()
    }

    #[test]
    fn a_service_keeps_its_ids_address_and_grants_when_others_come_go_and_move() {
        let mut numbers = Numbers::default();
        let first = resolve(&services(&["web", "db"]), &mut numbers, MEMORY).unwrap();
        let later = resolve(&services(&["cache", "db", "queue", "web"]), &mut numbers, MEMORY).unwrap();
        for service in &first.services {
            let same = later.service(&service.declared.name).unwrap();
            assert_eq!(
                (same.uid, same.address(), &same.cgroup),
                (service.uid, service.address(), &service.cgroup)
            );
        }
        for grant in &first.grants {
            assert!(later.grants.contains(grant), "{grant:?}");
        }
        // A name that was away comes back as itself; its number was nobody's meanwhile.
        let without = resolve(&services(&["queue", "new"]), &mut numbers, MEMORY).unwrap();
        let back = resolve(&services(&["web"]), &mut numbers, MEMORY).unwrap();
        assert_eq!(known(&back)[0], known(&first)[0]);
        assert!(
            known(&without)
                .iter()
                .all(|new| known(&first).iter().all(|old| old.1 != new.1 && old.2 != new.2))
        );
    }

    #[test]
    fn each_service_has_its_own_memory_and_one_that_is_too_large_for_the_machine_none() {
        let text = "services:\n  db:\n    image: r.example/a@sha256:DIGEST\n    mem_limit: LIMITm\n  \
                    web:\n    image: r.example/a@sha256:DIGEST\n"
            .replace("DIGEST", &"0".repeat(64));
        let of = |limit: &str| {
            resolve(&declaration(&text.replace("LIMIT", limit)), &mut Numbers::default(), MEMORY)
        };
        let facts = of("512").unwrap();
        let memory = |name: &str| facts.service(name).unwrap().memory;
        assert_eq!(memory("db"), 512 << 20);
        assert_eq!(memory("web"), (1024 - 512 - 2 * 16 - 8) << 20);
        assert!(matches!(of("1000"), Err(ResolveError::Memory(_))));
    }

    #[test]
    fn the_first_declaration_is_numbered_in_its_own_order() {
        let facts = resolve(&services(&["web", "db"]), &mut Numbers::default(), MEMORY).unwrap();
        let expected = [("web", 100_000, 1), ("db", 165_537, 2)];
        for ((name, uid, address), (expected, base, last)) in known(&facts).iter().zip(expected) {
            assert_eq!((name.as_str(), *uid, address.octets()), (expected, base, [10, 1, 1, last]));
        }
        let web = facts.service("web").unwrap();
        let (speaks, auth) = (Speaks::Http, Auth::None);
        let port = Port { published: 443, target: 8080, speaks, auth, redact_responses: false };
        let socket = |port| web.socket(&port).strip_prefix("/run/cofferdam/services/web").unwrap().to_owned();
        assert_eq!(socket(port), Path::new("port-8080"));
        assert_eq!(socket(Port { redact_responses: true, ..port }), Path::new("port-8080-redacted"));
        let instance = format!("web-{}", "0".repeat(64));
        assert_eq!(web.rootfs, Path::new("/run/cofferdam/rootfs").join(&instance));
        assert_eq!(web.cgroup, Path::new(cgroup::SERVICES).join(&instance));
        assert_eq!(facts.registries.len(), 1);
        assert!(facts.service("other").is_err());
    }

    #[test]
    fn a_secret_is_granted_to_the_services_that_name_it_and_the_token_to_publish() {
        let text = "github:\n  token: secret://cofferdam/github/token\nservices:\n  web:\n    image: r.example/a@sha256:DIGEST\n    \
                    environment:\n      A: secret://app/x/y\n      B: plain\n  db:\n    image: r.example/a@sha256:DIGEST\n    \
                    secrets: [secret://app/x/y, secret://app/x/z]\n";
        let declared = declaration(&text.replace("DIGEST", &"0".repeat(64)));
        let facts = resolve(&declared, &mut Numbers::default(), MEMORY).unwrap();
        let grants: Vec<(u32, String)> =
            facts.grants.iter().map(|grant| (grant.uid, grant.secret.to_string())).collect();
        let expected = [
            (100_000, "secret://app/x/y"),
            (165_537, "secret://app/x/y"),
            (165_537, "secret://app/x/z"),
            (103, "secret://cofferdam/github/token"),
        ];
        assert_eq!(grants, expected.map(|(uid, secret)| (uid, secret.to_owned())));
    }

    #[test]
    fn a_registrys_password_is_granted_to_the_services_that_have_images_there() {
        let text = "registries:\n  - host: private.example\n    username: deploy\n    password: secret://registry/x/password\n\
                    services:\n  web:\n    image: private.example/a@sha256:DIGEST\n  db:\n    image: r.example/a@sha256:DIGEST\n";
        let declared = declaration(&text.replace("DIGEST", &"0".repeat(64)));
        let facts = resolve(&declared, &mut Numbers::default(), MEMORY).unwrap();
        let grants: Vec<(u32, String)> =
            facts.grants.iter().map(|grant| (grant.uid, grant.secret.to_string())).collect();
        assert_eq!(grants, [(100_000, "secret://registry/x/password".to_owned())]);
        let login =
            |name: &str| facts.registry(facts.service(name).unwrap()).and_then(|found| found.login.clone());
        assert_eq!(login("web").unwrap().username, "deploy");
        assert_eq!(login("db"), None);
    }

    #[test]
    fn the_first_service_with_a_digest_pulls_for_all_and_it_alone_is_granted_the_registrys_password() {
        let [one, two] = ["1", "2"].map(|digit| digit.repeat(64));
        let text = format!(
            "registries:\n  - host: private.example\n    username: deploy\n    password: secret://registry/x/password\nservices:\n  \
             web:\n    image: private.example/a@sha256:{one}\n  db:\n    image: private.example/a@sha256:{two}\n  \
             worker:\n    image: r.example/mirror/a@sha256:{one}\n  last:\n    image: private.example/b@sha256:{two}\n"
        );
        let facts = resolve(&declaration(&text), &mut Numbers::default(), MEMORY).unwrap();
        let pullers: Vec<_> =
            facts.services.iter().map(|service| (service.puller.as_str(), service.pulls())).collect();
        assert_eq!(pullers, [("web", true), ("db", true), ("web", false), ("db", false)]);
        let [web, db, worker, last] = [0, 1, 2, 3].map(|index| &facts.services[index]);
        assert_eq!((web.seal(), db.seal()), (worker.seal(), last.seal()));
        assert_eq!(web.seal(), Path::new("/run/cofferdam/seals").join(one));
        let granted: Vec<u32> = facts.grants.iter().map(|grant| grant.uid).collect();
        assert_eq!(granted, [web.uid, db.uid]);
        assert_eq!(web.memory, worker.memory, "the image is taken from the share of whoever pulls it");
    }

    #[test]
    fn a_service_has_an_address_of_its_own_in_each_network_and_knows_whom_it_shares_one_with() {
        let text = "networks: {back: {}, lone: {}}\nservices:\n  web:\n    image: r.example/a@sha256:DIGEST\n    \
                    networks: {default: {aliases: [www]}, back: {}}\n  db:\n    image: r.example/a@sha256:DIGEST\n    \
                    networks: {back: {aliases: [postgres, app]}}\n  cache:\n    image: r.example/a@sha256:DIGEST\n    \
                    networks: {back: {aliases: [app]}}\n  other:\n    image: r.example/a@sha256:DIGEST\n  \
                    alone:\n    image: r.example/a@sha256:DIGEST\n    network_mode: none\n";
        let declared = declaration(&text.replace("DIGEST", &"0".repeat(64)));
        let facts = resolve(&declared, &mut Numbers::default(), MEMORY).unwrap();
        assert_eq!(facts.networks, ["back", "default"], "a network without members is none");
        let addresses =
            facts.services.iter().flat_map(|service| &service.networks).map(|place| place.address);
        let addresses: Vec<_> = addresses.collect();
        assert_eq!(addresses.iter().collect::<std::collections::BTreeSet<_>>().len(), 5);
        let names = |of: &str| {
            let names = facts.names(facts.service(of).unwrap());
            let text = |name: &str| {
                let addresses = names.addresses(name).iter().map(ToString::to_string);
                addresses.collect::<Vec<_>>().join(" ")
            };
            ["web", "www", "db", "postgres", "app", "cache", "other", "alone"].map(text)
        };
        let (default, back) = ("10.1.1.1", "10.2.1.1");
        assert_eq!(
            names("web"),
            [
                format!("{default} {back}").as_str(),
                default,
                "10.2.1.2",
                "10.2.1.2",
                "10.2.1.2 10.2.1.3",
                "10.2.1.3",
                "10.1.1.4",
                ""
            ]
        );
        assert_eq!(
            names("db"),
            [back, "", "10.2.1.2", "10.2.1.2", "10.2.1.2 10.2.1.3", "10.2.1.3", "", ""],
            "an alias is known where it is declared"
        );
        assert_eq!(names("other"), [default, default, "", "", "", "", "10.1.1.4", ""]);
        assert_eq!(names("alone"), [""; 8]);
        assert_eq!(facts.service("alone").unwrap().address(), None);
        let others = |name: &str| {
            let places = facts.service(name).unwrap().networks.iter();
            places
                .map(|place| place.others.iter().map(ToString::to_string).collect())
                .collect::<Vec<Vec<String>>>()
        };
        assert_eq!(others("web"), [vec!["10.1.1.4"], vec!["10.2.1.2", "10.2.1.3"]]);
        assert_eq!(others("db"), [vec!["10.2.1.1", "10.2.1.3"]]);
    }

    #[test]
    fn what_pid_1_writes_is_what_a_role_reads() {
        let facts = resolve(&services(&["web", "db"]), &mut Numbers::default(), MEMORY).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("facts.json");
        std::fs::write(&path, serde_json::to_vec(&facts).unwrap()).unwrap();
        assert_eq!(Facts::read(&path).unwrap(), facts);
        std::fs::write(&path, b"{}").unwrap();
        assert!(Facts::read(&path).is_err());
        assert!(Facts::read(&folder.path().join("none")).is_err());
    }
}
