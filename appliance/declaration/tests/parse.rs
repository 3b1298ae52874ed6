//! What is accepted and how it reads.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use cofferdam_declaration::*;
use cofferdam_protocol::state::Rollback;
use cofferdam_protocol::{AccessToken, Digest};

const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL3eMexUl4rWPV2mlvLRouVrCagc04WaQr3bjVft2JOy alice@laptop";

fn full() -> String {
    format!(
        r#"version: 1
repository: octo-org/payments
endpoint: 127.0.0.1:8443
operators:
  - name: alice
    key: {KEY}
github:
  api: https://ghe.example.org/api/v3/
  token: secret://cofferdam/github/token
state: {{provider: operator}}
tokens:
  - {{name: ci, hash: sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}}
registries:
  - host: registry.example:5000
services:
  web:
    image: registry.example:5000/team/web:1.27@{DIGEST}
    command: [serve, --port, "8080", "a$$b"]
    entrypoint: /bin/web
    environment:
      PORT: 8080
      TOKEN: secret://prod/api/token
      EMPTY: ""
    secrets:
      - secret://prod/tls/key
      - {{source: secret://prod/api/token, target: api_token}}
    ports:
      - "443:8080"
      - {{published: 8444, target: 8081}}
      - {{published: 8445, target: 8080, auth: operators}}
      - {{published: 8446, target: 8080, auth: tokens}}
      - {{published: 8447, target: 8080, auth: none}}
    egress: ["api.openai.com:443", "*.example.org:443", "db.example.net:5432/tcp"]
    depends_on: [db]
    restart: on-failure:3
    user: "1000:www-data"
    group_add: [44, ssl-cert]
    working_dir: /srv
    read_only: true
    tmpfs: [/tmp, /var/cache]
    stop_signal: SIGINT
    stop_grace_period: 1m30s
    deploy: {{resources: {{limits: {{cpus: "1.5", memory: 512M}}}}}}
    mem_limit: 0.5g
    pids_limit: 100
    shm_size: 128m
    ulimits: {{nofile: {{soft: 1024, hard: 65536}}, nproc: 50, memlock: -1, core: 0}}
    cap_drop: [ALL]
    cap_add: [CAP_SETUID, setgid]
  db:
    image: registry.example:5000/db@{DIGEST}
    environment: [A=b=c, "B="]
    restart: no
"#
    )
}

/// Without the key, and with its first word, no state opens unwitnessed.
#[test]
fn a_state_opens_without_a_witness_only_where_that_is_declared() {
    let read =
        |state: &str| Declaration::parse(full().replacen("state: {provider: operator}", state, 1).as_bytes());
    for (state, expected) in [
        ("state: {provider: operator}", Rollback::Require),
        ("state: {provider: operator, rollback: require}", Rollback::Require),
        ("state: {provider: operator, rollback: warn}", Rollback::Warn),
    ] {
        assert_eq!(read(state).unwrap().rollback, expected, "{state}");
    }
    for wrong in ["Warn", "true", "off", "''", "[warn]", "{}"] {
        let state = format!("state: {{provider: operator, rollback: {wrong}}}");
        let errors = read(&state).unwrap_err().to_string();
        assert!(errors.contains("rollback"), "{wrong}: {errors}");
    }
}

#[test]
fn images_lie_on_the_state_disk_where_that_is_declared_in_a_volume_that_nobody_else_can_name() {
    let read = |state: &str, volumes: usize| {
        let head = full().replacen("state: {provider: operator}", state, 1);
        let head = head.split("tokens:").next().unwrap().to_owned();
        let names: String = (0..volumes).map(|number| format!("  v{number}: {{size: 64m}}\n")).collect();
        let volumes = if volumes == 0 { String::new() } else { format!("volumes:\n{names}") };
        let text = format!("{head}{volumes}services:\n  web:\n    image: registry.example/web@{DIGEST}\n");
        Declaration::parse(text.as_bytes())
    };
    let none = read("state: {provider: operator}", 1).unwrap();
    assert_eq!((none.images, none.sealed_volumes().len()), (None, 1));
    let some = read("state: {provider: operator, images: 2gb}", 1).unwrap();
    assert_eq!(some.images, Some(2 << 30));
    let volumes = some.sealed_volumes();
    let named: Vec<_> = volumes.iter().map(|volume| (volume.name.as_str(), volume.size)).collect();
    assert_eq!(named, [("v0", 64 << 20), (".images-2048m", 2 << 30)]);
    read("state: {provider: operator, images: 64m}", 31).unwrap();
    for (state, volumes, expected) in [
        ("state: {provider: operator, images: 63m}", 0, "64 MiB to 1 TiB"),
        ("state: {provider: operator, images: 2t}", 0, "64 MiB to 1 TiB"),
        ("state: {provider: operator, images: yes}", 0, "images"),
        ("state: {images: 2gb}", 0, "provider"),
        ("state: {provider: operator, images: 64m}", 32, "at most 31 volumes"),
    ] {
        let errors = read(state, volumes).unwrap_err().to_string();
        assert!(errors.contains(expected), "{state}: {errors}");
    }
}

#[test]
fn everything_that_is_supported_reads_into_its_type() {
    let declaration = Declaration::parse(full().as_bytes()).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(declaration.repository.to_string(), "octo-org/payments");
    assert_eq!(declaration.endpoint.to_string(), "127.0.0.1:8443");
    assert_eq!(declaration.operators[0].name, "alice");
    assert_eq!(declaration.operators[0].key.comment(), "alice@laptop");
    assert_eq!(declaration.github.api.as_str(), "https://ghe.example.org/api/v3");
    assert_eq!(declaration.attestation.collateral.as_str(), "https://api.trustedservices.intel.com");
    assert_eq!((&declaration.state, declaration.rollback), (&StateSource::Operator, Rollback::Require));
    let web = declaration.service("web").unwrap();
    assert_eq!(web.image.to_string(), format!("registry.example:5000/team/web@{DIGEST}"));
    assert_eq!(web.command.as_deref(), Some(&["serve", "--port", "8080", "a$b"].map(String::from)[..]));
    assert_eq!(web.entrypoint.as_deref(), Some(&["/bin/web".to_owned()][..]));
    assert_eq!(web.environment[0], ("PORT".into(), Value::Plain("8080".into())));
    assert_eq!(
        web.environment[1],
        ("TOKEN".into(), Value::Secret("secret://prod/api/token".parse().unwrap()))
    );
    assert_eq!(web.environment[2], ("EMPTY".into(), Value::Plain(String::new())));
    assert_eq!(web.secrets[0].target, "tls.key");
    assert_eq!(web.secrets[1].target, "api_token");
    let ports = web.ports.iter().map(|port| (port.published, port.target, port.auth)).collect::<Vec<_>>();
    let expected = [
        (443, 8080, Auth::Operators),
        (8444, 8081, Auth::Operators),
        (8445, 8080, Auth::Operators),
        (8446, 8080, Auth::Tokens),
        (8447, 8080, Auth::None),
    ];
    assert_eq!(ports, expected);
    assert_eq!(declaration.tokens, [Token { name: "ci".into(), hash: Digest::of("") }]);
    assert_eq!(
        web.egress.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["api.openai.com:443", "*.example.org:443", "db.example.net:5432/tcp"]
    );
    assert_eq!(web.restart, Restart::OnFailure { max_retries: Some(3) });
    assert_eq!(
        web.user,
        Some(User { user: IdOrName::Id(1000), group: Some(IdOrName::Name("www-data".into())) })
    );
    assert_eq!(web.group_add, [IdOrName::Id(44), IdOrName::Name("ssl-cert".into())]);
    assert_eq!(web.working_dir.as_deref(), Some("/srv"));
    assert!(web.read_only);
    assert_eq!(web.tmpfs, ["/tmp", "/var/cache"]);
    assert_eq!(web.stop_signal.map(Signal::number), Some(2));
    assert_eq!(web.stop_grace_period.as_secs(), 90);
    assert_eq!(web.limits, Limits { memory: Some(512 << 20), cpus: Some(1500), pids: Some(100) });
    assert_eq!(web.shm_size, 128 << 20);
    let both = |value| Some(Ulimit { soft: value, hard: value });
    let nofile = Some(Ulimit { soft: 1024, hard: 65_536 });
    assert_eq!(web.ulimits, Ulimits { nofile, nproc: both(50), memlock: both(Ulimit::UNLIMITED) });
    assert_eq!(web.capabilities, [Capability::Setgid, Capability::Setuid].into());
    let db = declaration.service("db").unwrap();
    assert_eq!(
        db.environment,
        [("A".into(), Value::Plain("b=c".into())), ("B".into(), Value::Plain(String::new()))]
    );
    assert_eq!(db.egress, []);
    assert_eq!(db.restart, Restart::No);
    assert_eq!(db.command, None);
    assert_eq!(
        (db.limits, db.shm_size, db.ulimits),
        (Limits::default(), DEFAULT_SHM_SIZE, Ulimits::default())
    );
    assert_eq!(db.capabilities, Capability::ALL.into());
}

#[test]
fn the_destinations_in_the_documents_are_a_declaration_and_its_bounds_are_said() {
    let page = include_str!("../../../docs/network.md");
    let block = page.split("```").find(|block| block.contains("    egress:")).unwrap();
    let block = block.strip_prefix("yaml\n").unwrap().replace("sha256:…", DIGEST);
    let text = format!("version: 1\nrepository: o/r\nendpoint: 127.0.0.1:1\n{block}");
    let declaration = Declaration::parse(text.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"));
    let web = declaration.service("web").unwrap();
    assert_eq!(
        web.egress.iter().map(|egress| (egress.port(), egress.carries())).collect::<Vec<_>>(),
        [(443, Carries::Tls), (443, Carries::Tls), (5432, Carries::Tcp)]
    );
    assert!(
        page.contains(&format!("at most {MAX_EGRESS} entries and {MAX_EGRESS_PORTS} ports for one service"))
    );
}

#[test]
fn the_limits_in_the_documents_are_a_declaration_and_its_table_says_the_bounds() {
    let page = include_str!("../../../docs/declaration.md");
    let block = page.split("```").find(|block| block.contains("    mem_limit:")).unwrap();
    let block = block.strip_prefix("yaml\n").unwrap();
    let text = format!(
        "version: 1\nrepository: o/r\nendpoint: 127.0.0.1:1\nservices:\n  web:\n    image: r.example/a@{DIGEST}\n{block}"
    );
    let declaration = Declaration::parse(text.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"));
    let web = declaration.service("web").unwrap();
    assert_eq!(web.limits, Limits { memory: Some(512 << 20), cpus: Some(500), pids: Some(200) });
    assert_eq!(web.capabilities.len(), 2);
    let row = |key: &str| page.lines().find(|line| line.starts_with(&format!("| `{key}`"))).unwrap();
    let least = LEAST_MEMORY >> 20;
    assert!(row("mem_limit").contains(&format!("at least {least}m;")));
    assert!(row("mem_limit").contains(&format!("at least {least} MiB")));
    assert!(row("pids_limit").contains(&format!("at most {MAX_PIDS} | {DEFAULT_PIDS} |")));
    assert!(row("shm_size").contains(&format!("| {}m |", DEFAULT_SHM_SIZE >> 20)));
    assert!(row("ulimits").contains(&format!("up to {MAX_NOFILE}")));
    assert!(Capability::ALL.iter().all(|capability| row("cap_drop").contains(capability.name())));
}

#[test]
fn a_service_is_granted_what_it_names_and_no_more() {
    let declaration = Declaration::parse(full().as_bytes()).unwrap();
    let of = |service| declaration.references_of(service).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(of("web"), ["secret://prod/api/token", "secret://prod/tls/key"]);
    assert!(of("db").is_empty());
    assert!(of("nobody").is_empty());
    assert_eq!(declaration.references().len(), 3);
}

#[test]
fn services_start_after_what_they_depend_on() {
    let declaration = Declaration::parse(full().as_bytes()).unwrap();
    let order: Vec<_> = declaration.start_order().iter().map(|service| service.name.as_str()).collect();
    assert_eq!(order, ["db", "web"]);
    assert_eq!(declaration.published()[&443].0.name, "web");
}

#[test]
fn a_fingerprint_is_the_one_that_ssh_keygen_prints() {
    let key: OperatorKey = KEY.parse().unwrap();
    assert_eq!(key.fingerprint().to_string(), "SHA256:FUpPB8Yt+27pXaYVpX/7AA0zsPCNk1u40XQHJy0g1Hs");
}

#[test]
fn a_service_is_in_the_networks_that_it_names_or_else_in_the_default_one() {
    let networks = "networks:\n  back:\n    internal: true\nservices:\n";
    let body = format!("image: registry.example:5000/app@{DIGEST}");
    let text = full().split("services:").next().unwrap().to_owned()
        + networks
        + &format!(
            "  web: {{{body}, networks: {{back: {{aliases: [www, www]}}, default: }}, expose: [80]}}\n"
        )
        + &format!(
            "  db: {{{body}, networks: [back]}}\n  plain: {{{body}}}\n  alone: {{{body}, network_mode: none}}\n"
        );
    let declaration = Declaration::parse(text.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"));
    let of = |name: &str| {
        let memberships = declaration.service(name).unwrap().networks.iter();
        memberships.map(|at| (at.network.as_str(), at.aliases.join(" "))).collect::<Vec<_>>()
    };
    assert_eq!(of("web"), [("back", "www".to_owned()), ("default", String::new())]);
    assert_eq!(of("db"), [("back", String::new())]);
    assert_eq!(of("plain"), [("default", String::new())]);
    assert_eq!(of("alone"), []);
    assert_eq!(declaration.networks().into_iter().collect::<Vec<_>>(), ["back", "default"]);
}

#[test]
fn the_documents_say_who_may_call_a_port() {
    let page = include_str!("../../../docs/network.md");
    let block = page.split("```").find(|block| block.contains("auth: tokens")).unwrap();
    let block = block.strip_prefix("yaml\n").unwrap().replace("sha256:…", DIGEST);
    let head = full().split("tokens:").next().unwrap().to_owned();
    let declaration =
        Declaration::parse((head + &block).as_bytes()).unwrap_or_else(|errors| panic!("{errors}"));
    let ports = declaration.service("web").unwrap().ports.iter();
    let kinds: Vec<_> = ports.map(|port| (port.published, port.auth)).collect();
    assert_eq!(kinds, [(443, Auth::Operators), (8443, Auth::Tokens), (8444, Auth::None)]);
    assert!(page.contains(AccessToken::PREFIX));
}

#[test]
fn the_documents_say_what_a_port_carries() {
    let page = include_str!("../../../docs/network.md");
    let block = page.split("```").find(|block| block.contains("app_protocol: h2c")).unwrap();
    let body = format!(
        "services:\n  web:\n    image: r.example/app@{DIGEST}\n{}",
        block.strip_prefix("yaml\n").unwrap()
    );
    let head = full().split("services:").next().unwrap().to_owned();
    let declaration =
        Declaration::parse((head + &body).as_bytes()).unwrap_or_else(|errors| panic!("{errors}"));
    let ports = declaration.service("web").unwrap().ports.iter();
    let kinds: Vec<_> = ports.map(|port| (port.published, port.speaks, port.auth)).collect();
    let expected = [
        (8443, Speaks::H2c, Auth::Tokens),
        (5432, Speaks::Tcp, Auth::Operators),
        (9443, Speaks::Tls, Auth::None),
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn a_port_carries_what_can_be_held_to_what_it_says_and_bytes_for_everybody_are_warned_of() {
    let check = |port: &str| {
        let body = format!("services:\n  web:\n    image: r.example/app@{DIGEST}\n    ports: [{{{port}}}]\n");
        Declaration::check((full().split("services:").next().unwrap().to_owned() + &body).as_bytes())
    };
    for (port, message) in [
        ("published: 1, target: 2, app_protocol: grpc", "not what a published port can carry"),
        ("published: 1, target: 2, app_protocol: tcp, auth: tokens", "`tcp` has no place for a token"),
        ("published: 1, target: 2, app_protocol: h2c, redact_responses: true", "only answers in HTTP/1.1"),
        ("published: 1, target: 2, app_protocol: tcp, redact_responses: true", "only answers in HTTP/1.1"),
        ("published: 1, target: 2, tls: passthrough, auth: none", "what is passed through is not read"),
        ("published: 1, target: 2, app_protocol: tcp, tls: passthrough", "nobody is asked who they are"),
        ("published: 1, target: 2, app_protocol: tcp, tls: none", "not a way to end TLS"),
        ("published: 443, target: 2, app_protocol: tcp, auth: none", "port 443 is where the appliance shows"),
        ("published: 8443, target: 2, app_protocol: tcp, tls: passthrough, auth: none", "port 8443 is where"),
    ] {
        let errors = check(port).declaration.unwrap_err().to_string();
        assert!(errors.contains(message), "{port}: {errors}");
    }
    for (port, warning) in [
        ("published: 443, target: 6379, app_protocol: tcp", None),
        (
            "published: 1, target: 2, app_protocol: tcp, auth: none",
            Some("everybody can connect to port 2 of web"),
        ),
        (
            "published: 1, target: 2, app_protocol: tcp, tls: passthrough, auth: none",
            Some("everybody can connect to port 2 of web, and nobody attests the key that it shows"),
        ),
    ] {
        let checked = check(port);
        assert!(checked.declaration.is_ok(), "{port}");
        let said = checked.remarks.iter().map(|one| one.message.as_str()).collect::<Vec<_>>();
        assert_eq!(said, warning.into_iter().collect::<Vec<_>>(), "{port}");
    }
}

#[test]
fn a_volume_has_a_size_of_whole_mebibytes_and_a_service_sees_it_without_executing_unless_it_says_so() {
    let text = full().split("services:").next().unwrap().to_owned()
        + "volumes: {data: {size: 67108865}, cache: }\nservices:\n  web:\n    image: r.example/app@DIGEST\n    volumes:\n      \
           - data:/var/lib/data\n      - {type: volume, source: cache, target: /c, read_only: true, exec: true}\n";
    let declaration = Declaration::parse(text.replace("DIGEST", DIGEST).as_bytes());
    let declaration = declaration.unwrap_or_else(|errors| panic!("{errors}"));
    let volume = |name: &str, size| Volume { name: name.to_owned(), size };
    assert_eq!(declaration.volumes, [volume("data", 65 << 20), volume("cache", DEFAULT_VOLUME_SIZE)]);
    let mount = |source: &str, target: &str, both| VolumeMount {
        source: source.into(),
        target: target.into(),
        read_only: both,
        exec: both,
    };
    let expected = [mount("data", "/var/lib/data", false), mount("cache", "/c", true)];
    assert_eq!(declaration.service("web").unwrap().volumes, expected);
}

#[test]
fn the_volumes_in_the_documents_are_a_declaration_and_its_text_says_the_bounds() {
    let page = include_str!("../../../docs/state.md");
    let block = page.split("```").find(|block| block.contains("pgdata: {size")).unwrap();
    let block = block.strip_prefix("yaml\n").unwrap().replace("sha256:…", DIGEST);
    let head = full().split("tokens:").next().unwrap().to_owned();
    let declaration =
        Declaration::parse((head + &block).as_bytes()).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(declaration.volumes.iter().map(|volume| volume.size >> 30).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(declaration.services[0].volumes.len(), 2);
    let (least, most) = (LEAST_VOLUME_SIZE >> 20, MOST_VOLUME_SIZE >> 40);
    assert!(
        block.contains(&format!("# {least}m to {most}t; without a size {} GiB", DEFAULT_VOLUME_SIZE >> 30))
    );
    assert!(page.contains(&format!("There are at most {MAX_VOLUMES}.")));
}

#[test]
fn composes_words_read_as_compose_reads_them() {
    let body = format!(
        "services:\n  my_web:\n    image: nginx:1.27@{DIGEST}\n    container_name: front\n    command: run 'a b' --x\n    entrypoint: \"\"\n    \
           environment: [my-app.mode=a=b, 'B=${{B:-false}}']\n    read_only: ${{RO:-true}}\n    ports: ['127.0.0.1:8000-8001:80-81']\n    \
           extra_hosts: [\"idp:127.0.0.1\", 'v6=[::1]']\n  api:\n    image: gitea/gitea@{DIGEST}\n    command:\n    environment: {{DEBUG: true}}\n"
    );
    let text = full().split("services:").next().unwrap().to_owned() + &body;
    let declaration = Declaration::parse(text.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"));
    let web = declaration.service("my_web").unwrap();
    assert_eq!(web.image.to_string(), format!("docker.io/library/nginx@{DIGEST}"));
    assert_eq!(web.command.as_deref(), Some(&["run", "a b", "--x"].map(String::from)[..]));
    assert_eq!(web.entrypoint.as_deref(), Some(&[][..]), "an empty one is none, as in Compose");
    let plain = |name: &str, value: &str| (name.to_owned(), Value::Plain(value.to_owned()));
    assert_eq!(web.environment, [plain("my-app.mode", "a=b"), plain("B", "false")]);
    assert!(web.read_only);
    let ports: Vec<_> = web.ports.iter().map(|port| (port.published, port.target, port.auth)).collect();
    assert_eq!(ports, [(8000, 80, Auth::Operators), (8001, 81, Auth::Operators)]);
    assert_eq!(web.networks[0].aliases, ["front"]);
    let hosts = [("idp".to_owned(), "127.0.0.1".parse().unwrap()), ("v6".to_owned(), "::1".parse().unwrap())];
    assert_eq!(web.extra_hosts, hosts);
    let api = declaration.service("api").unwrap();
    assert_eq!(api.image.to_string(), format!("docker.io/gitea/gitea@{DIGEST}"));
    assert_eq!((&api.command, &api.environment[0]), (&None, &plain("DEBUG", "true")));
}

#[test]
fn what_hardly_does_what_its_author_means_is_a_warning_and_no_error() {
    let zeros = format!("sha256:{}", "0".repeat(64));
    let body = format!(
        "networks: {{a: , b: }}\nservices:\n  web:\n    image: r.example/w@{zeros}\n    networks: [a]\n    depends_on: [db]\n    \
           ports: ['8080:6379']\n    environment: {{DB_PASSWORD: '${{DB_PASSWORD:-x}}'}}\n  db:\n    image: r.example/d@{DIGEST}\n    networks: [b]\n"
    );
    let text = full().split("services:").next().unwrap().to_owned() + &body;
    let checked = Declaration::check(text.as_bytes());
    assert!(checked.declaration.is_ok());
    let found: Vec<_> = checked.remarks.iter().map(|one| (one.level, one.message.as_str())).collect();
    assert_eq!(
        found,
        [
            (Level::Warning, "the image's digest is all zeros, which no image has"),
            (Level::Warning, "web cannot reach db: they share no network"),
            (
                Level::Warning,
                "a published port is TLS outside and HTTP inside, which port 6379 rarely speaks"
            ),
            (Level::Warning, "`DB_PASSWORD` is its default, which everybody knows who reads the declaration"),
        ]
    );
    // The same is said once.
    let again = text.clone() + "  db_2: {image: 'r.example/d@" + &zeros + "'}\n";
    let remarks = Declaration::check(again.as_bytes()).remarks;
    assert_eq!(remarks[0].message, "the image's digest is all zeros, which no image has (and 1 more)");
}

#[test]
fn a_credential_with_a_dollar_is_not_shown() {
    let text = full().replace("secret://cofferdam/github/token", "ghp_abc$def");
    let errors = Declaration::parse(text.as_bytes()).unwrap_err();
    assert!(!errors.to_string().contains("ghp_"), "{errors}");
}

#[test]
fn the_schema_for_editors_is_the_one_that_lies_at_its_address() {
    let committed = include_str!("../../../policy/declaration.schema.json");
    // The order of members is whatever serde_json was built with.
    let committed: serde_json::Value = serde_json::from_str(committed).unwrap();
    assert!(
        committed == json_schema(),
        "write what `coffer check --schema` prints to policy/declaration.schema.json"
    );
    assert!(SCHEMA_ID.ends_with("/policy/declaration.schema.json"));
}

#[test]
fn the_health_in_the_documents_is_a_declaration_and_means_what_it_says() {
    use std::time::Duration;
    let page = include_str!("../../../docs/declaration.md");
    let block = page.split("```").find(|block| block.contains("on_unhealthy: restart")).unwrap();
    let block = block.strip_prefix("yaml\n").unwrap().replace("sha256:…", DIGEST);
    let head = full().split("tokens:").next().unwrap().to_owned();
    let checked = Declaration::check((head + &block).as_bytes());
    assert_eq!(checked.remarks, []);
    let declaration = checked.declaration.unwrap_or_else(|errors| panic!("{errors}"));
    let [db, migrate, web] = ["db", "migrate", "web"].map(|name| declaration.service(name).unwrap());
    assert_eq!(db.healthcheck.probe, Probe::Tcp { port: 5432 });
    assert_eq!(db.healthcheck.interval, Some(Duration::from_secs(5)));
    assert_eq!((db.on_unhealthy, db.restart), (OnUnhealthy::Restart, Restart::Always));
    let on = |service: &str, condition, restart| Dependency {
        service: service.to_owned(),
        condition,
        required: true,
        restart,
    };
    assert_eq!(migrate.depends_on, [on("db", Condition::Healthy, false)]);
    assert_eq!(migrate.restart, Restart::OnFailure { max_retries: None }, "it is tried until it completes");
    assert_eq!(
        web.depends_on,
        [on("db", Condition::Healthy, true), on("migrate", Condition::Completed, false)]
    );
    assert_eq!(web.healthcheck.probe, Probe::Http { port: 8080, path: "/healthz".into() });
    assert_eq!(
        declaration.start_order().iter().map(|service| &service.name).collect::<Vec<_>>(),
        ["db", "migrate", "web"]
    );
}

#[test]
fn there_are_as_many_services_as_a_certificate_has_room_for() {
    let head = full().split("services:").next().unwrap().to_owned() + "services:\n";
    let of = |count: usize, length: usize| {
        let service = |number: usize| {
            let name = format!("s{number:02}");
            let repository = "r".repeat(length - name.len() - "r.example/@".len() - DIGEST.len());
            format!("  {name}:\n    image: r.example/{repository}@{DIGEST}\n")
        };
        Declaration::parse((head.clone() + &(0..count).map(service).collect::<String>()).as_bytes())
    };
    assert_eq!(of(MAX_SERVICES, 160).unwrap_or_else(|errors| panic!("{errors}")).services.len(), 64);
    assert!(
        of(MAX_SERVICES + 1, 100)
            .unwrap_err()
            .to_string()
            .contains("65 services, and at most 64 are allowed")
    );
    assert!(of(MAX_SERVICES, 161).unwrap_err().to_string().contains("more than 10 KiB together"));
}

#[test]
fn what_a_change_of_a_secret_cannot_do_is_a_warning_and_the_page_says_what_it_can() {
    let page = include_str!("../../../docs/declaration.md");
    let block = page.split("```").find(|block| block.contains("on_change: signal HUP")).unwrap();
    let block = block.strip_prefix("yaml\n").unwrap().replace("sha256:…", DIGEST);
    let head = full().split("tokens:").next().unwrap().to_owned();
    let checked = Declaration::check((head.clone() + &block).as_bytes());
    assert_eq!(checked.remarks, []);
    let proxy = checked.declaration.unwrap_or_else(|errors| panic!("{errors}")).services.remove(0);
    assert_eq!(proxy.on_change.to_string(), "signal HUP");
    assert!(proxy.on_change.rewrites());
    let service = |more: &str| format!("services:\n  web:\n    image: r.example/w@{DIGEST}\n    {more}\n");
    for (more, expected) in [
        ("on_change: restart", "it has no secrets that could change"),
        (
            "environment: {A: secret://app/x/y}\n    on_change: notify",
            "its secrets are in variables or configs, which a running program keeps",
        ),
        ("environment: {A: secret://app/x/y}\n    on_change: restart", ""),
    ] {
        let remarks = Declaration::check((head.clone() + &service(more)).as_bytes()).remarks;
        let found = remarks.iter().map(|one| one.message.as_str()).collect::<Vec<_>>().join("; ");
        assert_eq!(found, expected, "{more}");
    }
    let plain = Declaration::parse((head + &service("read_only: true")).as_bytes()).unwrap();
    assert_eq!(plain.services[0].on_change, OnChange::Nothing);
}

#[test]
fn a_missing_health_gate_is_a_warning_and_what_need_not_be_there_is_left_out() {
    let body = format!(
        "services:\n  web:\n    image: r.example/w@{DIGEST}\n    depends_on:\n      db: {{condition: service_healthy, restart: true}}\n      \
           gone: {{condition: service_started, required: false}}\n  db:\n    image: r.example/d@{DIGEST}\n"
    );
    let text = full().split("services:").next().unwrap().to_owned() + &body;
    let checked = Declaration::check(text.as_bytes());
    let found: Vec<_> = checked.remarks.iter().map(|one| (one.level, one.message.as_str())).collect();
    assert_eq!(
        found,
        [
            (Level::Warning, "db has no `healthcheck`: web waits for ever if its image has none either"),
            (Level::Note, "there is no service `gone`, and none is required"),
        ]
    );
    let declaration = checked.declaration.unwrap_or_else(|errors| panic!("{errors}"));
    let [on] = &*declaration.service("web").unwrap().depends_on else { panic!("one is left") };
    assert_eq!((on.service.as_str(), on.restart, on.required), ("db", true, true));
}
