//! Compose files as people write them, and as an attacker would.

use cofferdam_declaration::{Part, Value};

use super::*;

/// Converts with every image known, and checks the outcome as a declaration.
fn import(source: &str, folder: &Path, env: &str) -> (String, Imported) {
    let variables = env_file(env, &BTreeMap::new(), is_name).unwrap().into_iter().collect();
    let compose = Compose::read(&[source], folder, variables).unwrap();
    let digest = format!("sha256:{}", "1".repeat(64));
    let resolved = compose.images().into_iter().map(|image| {
        let reference = image.at(&digest);
        (image, Ok(reference))
    });
    let mut imported = compose.convert(&resolved.collect(), &Logins::default());
    let head = "version: 1\nrepository: acme/app\nendpoint: 127.0.0.1:8443\noperators:\n  - name: me\n    key: ssh-ed25519 \
                AAAAC3NzaC1lZDI1NTE5AAAAICyX0eyQaT2Xashj0uUd3xx2oTMlmdpFery3R+dPA9yz\n";
    let text = head.to_owned() + &imported.body;
    judge(&text, &mut imported);
    (text, imported)
}

fn said(remarks: &[Remark]) -> String {
    remarks.iter().map(|one| format!("{}: {}\n", one.line, one.what)).collect()
}

fn values(imported: &Imported) -> BTreeMap<String, Option<String>> {
    let pair = |secret: &Secret| {
        (secret.reference.path().to_owned(), secret.value.as_ref().map(|value| value.to_string()))
    };
    imported.secrets.iter().map(pair).collect()
}

const BLOG: &str = r#"version: "3.8"
name: blog
x-logging: &logging
  logging: {driver: json-file}
services:
  db:
    <<: *logging
    image: mariadb:${MARIADB_TAG:-11}
    restart: unless-stopped
    environment:
      MYSQL_DATABASE: wordpress
      MYSQL_USER: wordpress
      MYSQL_PASSWORD: ${DB_PASSWORD}
      MYSQL_ROOT_PASSWORD: "it's $$4 a \"root\""
    volumes: [db_data:/var/lib/mysql]
  wordpress:
    <<: *logging
    image: wordpress
    depends_on: [db]
    ports: ["8080:80", "9000:9000/udp"]
    environment:
      - WORDPRESS_DB_HOST=db
      - WORDPRESS_DB_PASSWORD=${DB_PASSWORD}
      - DATABASE_URL=mysql://wordpress:${DB_PASSWORD}@db/wordpress
      - WORDPRESS_DEBUG=$$off
    volumes:
      - ./html:/var/www/html
      - /etc/localtime:/etc/localtime:ro
    networks: {front: {ipv4_address: 10.0.0.2, aliases: [www]}, default: {}}
    devices: [/dev/fuse]
  adminer: {image: adminer, profiles: [debug]}
volumes: {db_data: {driver: local}}
networks: {front: {driver: bridge}}
"#;

#[test]
fn a_typical_file_becomes_a_declaration_without_its_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let (text, imported) = import(BLOG, folder.path(), "DB_PASSWORD='s3cr$t'\n");
    assert_eq!(said(&imported.decide), "", "{text}");
    let declared = Declaration::parse(text.as_bytes()).unwrap();
    assert!(!text.contains("s3cr") && !text.contains("root\\\""), "{text}");
    let digest = "1".repeat(64);
    let db = declared.service("db").unwrap();
    assert_eq!(db.image.to_string(), format!("docker.io/library/mariadb@sha256:{digest}"));
    let web = declared.service("wordpress").unwrap();
    let variable = |name: &str| {
        let found = web.environment.iter().find(|(key, _)| key == name);
        format!("{:?}", found.unwrap().1)
    };
    assert!(variable("WORDPRESS_DB_PASSWORD").contains("blog/env/db_password"), "{text}");
    let address = "DATABASE_URL: \"mysql://wordpress:${secret://blog/env/db_password}@db/wordpress\"";
    assert!(text.contains(address), "{text}");
    assert!(variable("WORDPRESS_DEBUG").contains("\"$off\""), "{text}");
    assert_eq!(web.ports.len(), 1);
    assert_eq!(web.networks.len(), 2);
    assert_eq!(declared.volumes.len(), 2);
    let expected =
        [("blog/db/mysql_root_password", "it's $4 a \"root\""), ("blog/env/db_password", "s3cr$t")];
    let expected = expected.map(|(name, value)| (name.to_owned(), Some(value.to_owned())));
    assert_eq!(values(&imported), expected.into());
    let dropped = said(&imported.dropped);
    for what in ["adminer", "udp", "UDP", "devices", "ipv4_address", "localtime", "driver"] {
        assert!(dropped.contains(what) || what == "udp", "{what}: {dropped}");
    }
}

#[test]
fn what_a_person_has_to_decide_is_said_at_its_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("nginx.conf"), [0xff, 0xfe]).unwrap();
    let source = "services:\n  web:\n    build: .\n    environment: {MODE: \"${MODE}\", PLAIN: }\n    volumes:\n      \
                  - ./nginx.conf:/etc/nginx/nginx.conf:ro\n      - /var/run/docker.sock:/var/run/docker.sock\n    \
                  command: server --password ${ADMIN_PASSWORD}\n";
    let (text, imported) = import(source, folder.path(), "ADMIN_PASSWORD=hunter2");
    let said = said(&imported.decide);
    for what in [
        "3: services.web: nothing is built",
        "4: MODE is not set",
        "4: services.web.environment: PLAIN has no value",
        "6: services.web: put `./nginx.conf` into its image at /etc/nginx/nginx.conf: `./nginx.conf`: `./nginx.conf` is not UTF-8",
        "7: services.web: what needs Docker's socket",
        "8: a secret outside of `environment`",
    ] {
        assert!(said.contains(what), "{what}\n{said}");
    }
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn a_strangers_file_reads_nothing_outside_of_its_directory() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("key"), "PLAIN=private").unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path().join("key"), folder.path().join("link")).unwrap();
    let key = outside.path().join("key");
    for path in [key.to_str().unwrap(), "link", "../../../../../../etc/passwd", "/proc/self/environ", "."] {
        let source = format!(
            "services:\n  web:\n    image: a\n    env_file: [{path:?}]\n    secrets: [one]\nsecrets: {{one: {{file: {path:?}}}}}\n"
        );
        let (text, imported) = import(&source, folder.path(), "");
        assert!(!text.contains("private") && !text.contains("root:"), "{text}");
        assert_eq!(imported.decide.len(), 2, "{path}: {}", said(&imported.decide));
        assert!(values(&imported).values().all(Option::is_none));
    }
}

#[test]
fn one_value_is_one_secret_and_two_values_are_never_one() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("pw.txt"), "from a file").unwrap();
    let source = "services:\n  a:\n    image: x\n    environment: {API_TOKEN: first, OTHER_TOKEN: first, TOKEN_TTL: \"60\", SECRET_FILE: /run/x}\n    \
                  secrets: [pw, {source: pw, target: again}]\n  b:\n    image: x\n    environment: [API_TOKEN=second, DB_PASS, MAX_TOKENS=512, 'ADMIN_TOKEN=${ADMIN_TOKEN:?set it}']\n\
                  secrets: {pw: {file: pw.txt}}\n";
    let (text, imported) = import(source, folder.path(), "");
    assert_eq!(said(&imported.decide), "", "{text}");
    let values = values(&imported);
    assert_eq!(values.len(), 5, "{values:?}");
    assert!(values.values().filter(|value| value.as_deref() == Some("first")).count() == 1);
    assert!(values.values().any(|value| value.as_deref() == Some("from a file")));
    // A variable that nobody set is a secret whose value is still to be put.
    assert_eq!(values.values().filter(|value| value.is_none()).count(), 2);
    let declared = Declaration::parse(text.as_bytes()).unwrap();
    assert_eq!(declared.service("a").unwrap().secrets.len(), 2);
    assert!(text.contains("SECRET_FILE: /run/x") && text.contains("MAX_TOKENS"), "{text}");
}

#[test]
fn names_of_images_are_read_as_docker_reads_them() {
    for (text, shown) in [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27-alpine", "docker.io/library/nginx:1.27-alpine"),
        ("grafana/grafana:11", "docker.io/grafana/grafana:11"),
        ("ghcr.io/acme/app:v1", "ghcr.io/acme/app:v1"),
        ("localhost/app", "localhost/app:latest"),
        ("registry.example.org:5000/app", "registry.example.org:5000/app:latest"),
    ] {
        assert_eq!(Image::read(text).to_string(), shown);
    }
    let digest = format!("sha256:{}", "2".repeat(64));
    let pinned = Image::read(&format!("nginx:1@{digest}")).pinned().unwrap();
    assert_eq!(pinned, format!("docker.io/library/nginx:1@{digest}"));
}

#[test]
fn no_compose_file_is_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    for source in ["", "a: [", "services: {}", "services:", "[1]", "a: &a [*a]"] {
        assert!(Compose::read(&[source], folder.path(), BTreeMap::new()).is_err(), "{source}");
    }
    // Shapes that nobody means are no panic, and no declaration.
    for source in [
        "services: {web: [1]}",
        "services: {web: {image: [a], ports: x, volumes: {a: b}, environment: 7, depends_on: 1, networks: 3}}",
        "services: {web: {image: a, deploy: [], secrets: {a: b}, links: x, env_file: {}}}",
    ] {
        let (_, imported) = import(source, folder.path(), "");
        assert!(!imported.decide.is_empty(), "{source}");
    }
}

#[test]
fn variables_that_grow_are_cut_off_and_said() {
    let folder = tempfile::tempdir().unwrap();
    let many = "      - A$A\n".repeat(2000);
    let source = format!("services:\n  web:\n    image: a\n    command:\n{many}");
    let (text, imported) = import(&source, folder.path(), &format!("A={}", "x".repeat(60_000)));
    assert!(text.len() < 10 << 20, "{}", text.len());
    assert!(said(&imported.decide).contains("more than 8 MiB"));
}

#[test]
fn many_keys_are_merged_in_reasonable_time_and_a_pipe_is_not_waited_for() {
    let keys: String = (0..15_000).map(|key| format!("k{key}: , ")).collect();
    let source = format!("x: &a {{{keys}}}\nservices: {{web: {{<<: *a, image: a}}}}\n");
    assert!(yaml::read(&source).is_ok());
    let folder = tempfile::tempdir().unwrap();
    nix::unistd::mkfifo(&folder.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let source = "services: {web: {image: a, env_file: pipe}}";
    let (_, imported) = import(source, folder.path(), "");
    assert!(said(&imported.decide).contains("`pipe` is no file"));
}

/// What a service gets in its environment, with the values of the secrets in place: what Compose would have given it.
fn environment_of(text: &str, imported: &Imported, service: &str) -> BTreeMap<String, String> {
    let declared = Declaration::parse(text.as_bytes()).unwrap_or_else(|errors| panic!("{text}\n{errors}"));
    let values = values(imported);
    let value = |secret: &cofferdam_protocol::SecretRef| values[secret.path()].clone().unwrap_or_default();
    let part = |part: &Part| match part {
        Part::Text(text) => text.clone(),
        Part::Secret(secret) => value(secret),
        Part::Url(secret) => secrets::url_encoded(&value(secret)),
    };
    let filled = |declared: &Value| match declared {
        Value::Plain(text) => text.clone(),
        Value::Secret(secret) => value(secret),
        Value::Composed(parts) => parts.iter().map(part).collect(),
    };
    let service = declared.service(service).unwrap();
    service.environment.iter().map(|(name, declared)| (name.clone(), filled(declared))).collect()
}

#[test]
fn an_address_keeps_all_but_its_password_which_is_the_databases_own_secret() {
    let folder = tempfile::tempdir().unwrap();
    let source = r#"name: shop
services:
  app:
    image: a
    environment:
      PLAIN: postgres://app:hunter2hunter2@db/app?sslmode=disable
      ENCODED: postgres://app:p%40ss%2Fword@db/app
      ODD: amqp://app:a$$b&c@q
      VARIABLE: redis://:${REDIS_PASSWORD}@cache:6379/0
      NUMBERED: "mysql://u:${REDIS_PASSWORD}@h:${PORT:-3306}/$$x"
      UNKNOWN: postgres://app:${UNSET_PASSWORD}@db/app
      ALSO: "${UNSET_PASSWORD}"
      WHOLE: ${WHOLE_URL}
      SPLIT: http://u:${A}${B}@h
      NONE: postgres://app@db/app
      JWT_SECRET: pre-${REDIS_PASSWORD}
  db:
    image: b
    environment: {POSTGRES_PASSWORD: hunter2hunter2}
"#;
    let env = "REDIS_PASSWORD=safe-word\nWHOLE_URL=http://me:wholepassword@h/\nA=one\nB=two\n";
    let (text, imported) = import(source, folder.path(), env);
    assert_eq!(said(&imported.decide), "", "{text}");
    for line in [
        "PLAIN: \"postgres://app:${secret://shop/db/postgres_password|url}@db/app?sslmode=disable\"",
        "POSTGRES_PASSWORD: \"secret://shop/db/postgres_password\"",
        "ENCODED: \"postgres://app:${secret://shop/app/encoded|url}@db/app\"",
        "ODD: \"amqp://app:${secret://shop/app/odd}@q\"",
        "VARIABLE: \"redis://:${secret://shop/env/redis_password|url}@cache:6379/0\"",
        "NUMBERED: \"mysql://u:${secret://shop/env/redis_password|url}@h:3306/$$x\"",
        "UNKNOWN: \"postgres://app:${secret://shop/env/unset_password|url}@db/app\"",
        "ALSO: \"secret://shop/env/unset_password\"",
        "WHOLE: \"http://me:${secret://shop/app/whole|url}@h/\"",
        "SPLIT: \"secret://shop/app/split\"",
        "NONE: \"postgres://app@db/app\"",
        "JWT_SECRET: \"secret://shop/app/jwt_secret\"",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    // Byte for byte what Compose fills in, where that is known.
    let environment = environment_of(&text, &imported, "app");
    for (name, value) in [
        ("PLAIN", "postgres://app:hunter2hunter2@db/app?sslmode=disable"),
        ("ENCODED", "postgres://app:p%40ss%2Fword@db/app"),
        ("ODD", "amqp://app:a$b&c@q"),
        ("VARIABLE", "redis://:safe-word@cache:6379/0"),
        ("NUMBERED", "mysql://u:safe-word@h:3306/$x"),
        ("WHOLE", "http://me:wholepassword@h/"),
        ("SPLIT", "http://u:onetwo@h"),
        ("JWT_SECRET", "pre-safe-word"),
    ] {
        assert_eq!(environment[name], value, "{name}");
    }
    for secret in ["hunter2", "p%40ss", "a$b&c", "safe-word", "wholepassword", "onetwo"] {
        assert!(!text.contains(secret), "{secret}\n{text}");
    }
    let encoded = values(&imported)["shop/app/encoded"].clone();
    assert_eq!(encoded.as_deref(), Some("p@ss/word"));
}

#[test]
fn small_files_become_configs_and_one_with_a_secret_in_it_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let nginx = "server {\n\tlisten 80;\n\tset $x ${y};\n}\n";
    let script = "#!/bin/sh\n  echo \"$1\"\n\n";
    write("nginx.conf", nginx.as_bytes());
    write("init/b/two.sh", script.as_bytes());
    write("init/one.sql", b"CREATE TABLE t (n int);");
    write("redis.conf", b"requirepass hunter2hunter2\n");
    write("large", &[b'x'; 70_000]);
    write("many/0", b"x");
    (0..40).for_each(|file| write(&format!("many/{file}"), b"x"));
    std::fs::set_permissions(
        folder.path().join("init/b/two.sh"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let source = "name: p\nconfigs:\n  inline: {content: \"port=${PORT}\\npw=${DB_PASSWORD}\\n\"}\n  file: {file: nginx.conf}\n\
                  services:\n  web:\n    image: a\n    configs: [inline, {source: file, target: /x, mode: \"440\"}]\n    volumes:\n\
                  \x20     - ./nginx.conf:/etc/nginx/nginx.conf:ro\n      - ./init:/docker-entrypoint-initdb.d\n\
                  \x20     - ./redis.conf:/etc/redis.conf\n      - ./large:/large.txt\n      - ./many:/many\n      - ./nginx.conf:/etc/hosts\n";
    let (text, imported) = import(source, folder.path(), "PORT=1\nDB_PASSWORD=hunter3\n");
    let decide = said(&imported.decide);
    for what in
        ["`./large` has more than 64 KiB", "it has more than 32 files", "a file of its own at /etc/hosts"]
    {
        assert!(decide.contains(what), "{what}: {decide}");
    }
    assert_eq!(imported.decide.len(), 3, "{decide}");
    assert!(!text.contains("hunter"), "{text}");
    let declared = Declaration::parse(text.as_bytes()).unwrap_or_else(|errors| panic!("{text}\n{errors}"));
    let web = declared.service("web").unwrap();
    let configs: BTreeMap<_, _> = web.configs.iter().map(|one| (one.target.as_str(), one)).collect();
    let plain = |target: &str| match &configs[target].content {
        Value::Plain(text) => text.clone(),
        other => panic!("{other:?}"),
    };
    for target in ["/etc/nginx/nginx.conf", "/x"] {
        assert_eq!(plain(target), nginx, "{target}");
    }
    assert_eq!(configs["/x"].mode, 0o440);
    assert_eq!(plain("/docker-entrypoint-initdb.d/b/two.sh"), script);
    assert_eq!(configs["/docker-entrypoint-initdb.d/b/two.sh"].mode, 0o555);
    assert_eq!(plain("/docker-entrypoint-initdb.d/one.sql"), "CREATE TABLE t (n int);");
    assert!(
        matches!(&configs["/inline"].content, Value::Composed(parts) if parts[0] == Part::Text("port=1\npw=".into()))
    );
    let whole = "secret://p/web/redis.conf".parse().unwrap();
    assert_eq!(configs["/etc/redis.conf"].content, Value::Secret(whole));
    assert_eq!(values(&imported)["p/web/redis.conf"].as_deref(), Some("requirepass hunter2hunter2\n"));
    assert!(text.matches("listen 80").count() == 1, "{text}");
}

#[test]
fn a_link_in_a_directory_leads_a_strangers_file_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("key"), "private").unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("conf")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("key"), folder.path().join("conf/link")).unwrap();
    std::os::unix::fs::symlink(outside.path(), folder.path().join("dir")).unwrap();
    for source in ["./conf", "./dir", "/etc/ssl", "./conf/link", "../x/key.pem"] {
        let source = format!("services: {{web: {{image: a, volumes: [\"{source}:/etc/x.d:ro\"]}}}}\n");
        let (text, imported) = import(&source, folder.path(), "");
        assert!(!text.contains("private") && !text.contains("configs"), "{source}: {text}");
        assert!(values(&imported).is_empty());
    }
}

#[test]
fn what_has_no_effect_is_left_out_and_names_are_in_lower_case() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("backend")).unwrap();
    std::fs::write(folder.path().join("backend/package-lock.json"), "x".repeat(70_000)).unwrap();
    let source = "services:\n  initDb: {image: a, stdin_open: true, tty: true, volumes: ['/etc/app.d/:/etc/app.d/', '/srv/n8n/.n8n:/home/node/.n8n']}\n  \
                  web:\n    image: b\n    depends_on: {initDb: {condition: service_started}}\n    environment: {A: $NO, B: $NO}\n  \
                  back: {build: backend, depends_on: [initDb], volumes: ['./backend/package-lock.json:/code/package-lock.json']}\n";
    let (text, imported) = import(source, folder.path(), "");
    let decide = said(&imported.decide);
    assert_eq!(imported.decide.len(), 2, "{decide}");
    assert!(
        decide.contains("7: services.back: nothing is built") && decide.contains("6: NO is not set"),
        "{decide}"
    );
    let declared = Declaration::parse(text.as_bytes()).unwrap_or_else(|errors| panic!("{text}\n{errors}"));
    assert_eq!(declared.service("initdb").unwrap().volumes.len(), 2);
    assert_eq!(declared.service("web").unwrap().depends_on[0].service, "initdb");
}

#[test]
fn a_later_file_is_merged_into_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let base = "services:\n  web:\n    image: a\n    environment: [A=1]\n    privileged: true\n";
    let over = "\n\n\n\n\n\nservices: {web: {environment: {A: '2'}, devices: [/dev/x]}, db: {image: b}}\n";
    let compose = Compose::read(&[base, over], folder.path(), BTreeMap::new()).unwrap();
    let imported = compose.convert(&BTreeMap::new(), &Logins::default());
    assert_eq!(imported.services, ["web", "db"]);
    assert!(imported.body.contains("A: \"2\""), "{}", imported.body);
    let lines: Vec<_> = imported.dropped.iter().map(|one| one.line).collect();
    assert_eq!(lines, [5, 0], "a line is one of the first file");
    for over in [
        "services: {web: {ports: !reset []}}",
        "services: {web: {ports: !override [a]}}",
        "services: {web: {image: !reset x}}",
    ] {
        let Err(error) = Compose::read(&[base, over], folder.path(), BTreeMap::new()) else {
            panic!("{over}")
        };
        assert!(error.contains("docker compose config"), "{error}");
    }
}

#[test]
fn a_login_goes_along_as_a_secret_for_the_registries_that_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let auth = cofferdam_protocol::base64::encode("deploy:hunter2hunter2");
    let json = format!(
        "{{\"auths\": {{\"r.example:5000\": {{\"auth\": \"{auth}\"}}, \"other.example\": {{\"auth\": \"{auth}\"}}}}}}"
    );
    let logins = Logins::read(json.as_bytes()).unwrap();
    let digest = "1".repeat(64);
    let source = format!(
        "name: p\nservices: {{web: {{image: 'r.example:5000/a@sha256:{digest}'}}, db: {{image: 'x@sha256:{digest}'}}}}\n"
    );
    let compose = Compose::read(&[&source], folder.path(), BTreeMap::new()).unwrap();
    let imported = compose.convert(&BTreeMap::new(), &logins);
    let expected = "registries:\n  - host: \"r.example:5000\"\n    username: deploy\n    password: \"secret://p/r.example-5000/password\"\n";
    assert!(imported.body.starts_with(expected), "{}", imported.body);
    assert!(!imported.body.contains("hunter2") && !imported.body.contains("other.example"));
    assert_eq!(values(&imported)["p/r.example-5000/password"].as_deref(), Some("hunter2hunter2"));
}
