//! Compose files as people write them, and as an attacker would.

use super::*;

/// Converts with every image known, and checks the outcome as a declaration.
fn import(source: &str, folder: &Path, env: &str) -> (String, Imported) {
    let variables = env_file(env, &BTreeMap::new(), is_name).unwrap().into_iter().collect();
    let compose = Compose::read(source, folder, variables).unwrap();
    let digest = format!("sha256:{}", "1".repeat(64));
    let resolved = compose.images().into_iter().map(|image| {
        let reference = image.at(&digest);
        (image, Ok(reference))
    });
    let mut imported = compose.convert(&resolved.collect());
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
    assert!(variable("DATABASE_URL").contains("blog/wordpress/database_url"), "{text}");
    assert!(variable("WORDPRESS_DEBUG").contains("\"$off\""), "{text}");
    assert_eq!(web.ports.len(), 1);
    assert_eq!(web.networks.len(), 2);
    assert_eq!(declared.volumes.len(), 2);
    let expected = [
        ("blog/db/mysql_root_password", "it's $4 a \"root\""),
        ("blog/env/db_password", "s3cr$t"),
        ("blog/wordpress/database_url", "mysql://wordpress:s3cr$t@db/wordpress"),
    ];
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
    std::fs::write(folder.path().join("nginx.conf"), "x").unwrap();
    let source = "services:\n  web:\n    build: .\n    environment: {MODE: \"${MODE}\", PLAIN: }\n    volumes:\n      \
                  - ./nginx.conf:/etc/nginx/nginx.conf:ro\n      - /var/run/docker.sock:/var/run/docker.sock\n    \
                  command: server --password ${ADMIN_PASSWORD}\n";
    let (text, imported) = import(source, folder.path(), "ADMIN_PASSWORD=hunter2");
    let said = said(&imported.decide);
    for what in [
        "3: services.web: nothing is built",
        "4: MODE is not set",
        "4: services.web.environment: PLAIN has no value",
        "6: services.web: put `./nginx.conf` into its image",
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
    let source = "services:\n  a:\n    image: x\n    environment: {API_TOKEN: one, OTHER_TOKEN: one, TOKEN_TTL: \"60\", SECRET_FILE: /run/x}\n    \
                  secrets: [pw, {source: pw, target: again}]\n  b:\n    image: x\n    environment: [API_TOKEN=two, DB_PASS, MAX_TOKENS=512, 'ADMIN_TOKEN=${ADMIN_TOKEN:?set it}']\n\
                  secrets: {pw: {file: pw.txt}}\n";
    let (text, imported) = import(source, folder.path(), "");
    assert_eq!(said(&imported.decide), "", "{text}");
    let values = values(&imported);
    assert_eq!(values.len(), 5, "{values:?}");
    assert!(values.values().filter(|value| value.as_deref() == Some("one")).count() == 1);
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
        assert!(Compose::read(source, folder.path(), BTreeMap::new()).is_err(), "{source}");
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
