//! Secrets inside of values, and configs.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use cofferdam_declaration::*;

const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL3eMexUl4rWPV2mlvLRouVrCagc04WaQr3bjVft2JOy";

/// A declaration with one service, whose further keys and what stands beside the services are given.
fn declaration(service: &str, beside: &str) -> String {
    format!(
        "version: 1\nrepository: octo/app\nendpoint: 127.0.0.1:8443\noperators: [{{name: a, key: {KEY}}}]\n\
         state: {{provider: operator}}\n{beside}services:\n  web:\n    image: registry.example/app@{DIGEST}\n{service}"
    )
}

fn web(service: &str, beside: &str) -> Service {
    let text = declaration(service, beside);
    let declared = Declaration::parse(text.as_bytes());
    declared.unwrap_or_else(|errors| panic!("{text}\n{errors}")).services.remove(0)
}

fn errors(service: &str, beside: &str) -> String {
    let text = declaration(service, beside);
    match Declaration::parse(text.as_bytes()) {
        Ok(_) => panic!("accepted: {text}"),
        Err(errors) => errors.render("f"),
    }
}

fn secret(text: &str) -> SecretRef {
    text.parse().unwrap()
}

#[test]
fn a_value_has_its_texts_and_secrets_in_order_in_both_forms() {
    let expected = Value::Composed(vec![
        Part::Text("postgres://app:".into()),
        Part::Url(secret("secret://acme/db/password")),
        Part::Text("@db/".into()),
        Part::Secret(secret("secret://acme/db/name")),
        Part::Text("?x=$y".into()),
    ]);
    let url = "postgres://app:${secret://acme/db/password|url}@db/${secret://acme/db/name}?x=$$y";
    for service in
        [format!("    environment: {{URL: \"{url}\"}}\n"), format!("    environment: [\"URL={url}\"]\n")]
    {
        let web = web(&service, "");
        assert_eq!(web.environment, [("URL".to_owned(), expected.clone())]);
        let references: Vec<_> = web.references().into_iter().map(SecretRef::path).collect();
        assert_eq!(references, ["acme/db/name", "acme/db/password"]);
    }
    // Alone it is what it is without braces.
    for whole in ["A: \"${secret://a/b/c}\"", "A: secret://a/b/c"] {
        let web = web(&format!("    environment: {{{whole}}}\n"), "");
        assert_eq!(web.environment, [("A".to_owned(), Value::Secret(secret("secret://a/b/c")))]);
    }
    let list = web("    environment: [\"A=${secret://a/b/c}\", \"B=$${secret}\"]\n", "");
    assert_eq!(list.environment[0].1, Value::Secret(secret("secret://a/b/c")));
    assert_eq!(list.environment[1].1, Value::Plain("${secret}".into()));
    let json = serde_json::to_string(&web(&format!("    environment: {{URL: \"{url}\"}}\n"), "")).unwrap();
    assert_eq!(serde_json::from_str::<Service>(&json).unwrap().environment[0].1, expected);
}

#[test]
fn a_secret_stands_in_variables_and_configs_and_nowhere_else() {
    let argument = "a secret in an argument, which every process can read";
    for (service, beside, why) in [
        ("    command: run --password ${secret://a/b/c}\n", "", argument),
        ("    command: [run, \"x${secret://a/b/c}\"]\n", "", argument),
        ("    entrypoint: \"${secret://a/b/c}\"\n", "", argument),
        ("    healthcheck: {test: [CMD, probe, \"-p${secret://a/b/c}\"]}\n", "", argument),
        ("    working_dir: /x/${secret://a/b/c}\n", "", "here is a text with a secret in it"),
        ("    container_name: \"x${secret://a/b/c}\"\n", "", "here is a text with a secret in it"),
        ("    labels: {a: \"x${secret://a/b/c}\"}\n", "", ""),
        ("    secrets: [\"x${secret://a/b/c}\"]\n", "", "here is a text with a secret in it"),
        ("    environment: {A: \"x secret://a/b/c\"}\n", "", "inside a longer value"),
        ("    environment: {A: \"secret://a/b/c${secret://a/b/c}\"}\n", "", "inside a longer value"),
        ("    environment: {A: \"$${secret://a/b/c}\"}\n", "", "inside a longer value"),
        ("    environment: {A: \"${secret://a/b}\"}\n", "", "not a secret's reference"),
        ("    environment: {A: \"x${secret://a/b/c|hex}\"}\n", "", "`|hex` is nothing that can be done"),
        ("    environment: [\"${secret://a/b/c}=x\"]\n", "", "has no value"),
        ("    environment: [\"A${secret://a/b/c}\"]\n", "", "has no value"),
        ("    environment: {A: \"x${secret://cofferdam/github/token}\"}\n", "", "the appliance's own"),
        (
            "    configs: [c]\n",
            "configs: {c: {content: \"x${secret://cofferdam/a/b}\"}}\n",
            "the appliance's own",
        ),
    ] {
        if why.is_empty() {
            web(service, beside);
        } else {
            let said = errors(service, beside);
            assert!(said.contains(why), "{service}: {said}");
        }
    }
    let many = "${secret://a/b/c}".repeat(33);
    assert!(errors(&format!("    environment: {{A: \"{many}\"}}\n"), "").contains("more than 32 secrets"));
    let long = format!("    environment: {{A: \"{}${{secret://a/b/c}}\"}}\n", "x".repeat(65 << 10));
    assert!(errors(&long, "").contains("longer than 64 KiB"));
}

const CONFIGS: &str = "configs:\n  conf:\n    content: |\n      listen $$port;\n      pass ${secret://a/b/c};\n  plain: {content: x}\n";

#[test]
fn a_config_has_its_content_owner_and_mode() {
    let service = "    configs:\n      - plain\n      - {source: conf, target: /etc/app/app.conf, uid: \"101\", gid: 5, mode: 0440}\n";
    let web = web(service, CONFIGS);
    let [plain, conf] = web.configs.as_slice() else { panic!() };
    assert_eq!((plain.target.as_str(), plain.uid, plain.gid, plain.mode), ("/plain", 0, 0, 0o444));
    assert_eq!(plain.content, Value::Plain("x".into()));
    assert_eq!((conf.target.as_str(), conf.uid, conf.gid, conf.mode), ("/etc/app/app.conf", 101, 5, 0o440));
    let parts = vec![
        Part::Text("listen $port;\npass ".into()),
        Part::Secret(secret("secret://a/b/c")),
        Part::Text(";\n".into()),
    ];
    assert_eq!(conf.content, Value::Composed(parts));
    assert_eq!(web.references(), [&secret("secret://a/b/c")]);
}

#[test]
fn a_config_that_cannot_be_is_refused_where_it_stands() {
    for (service, beside, why) in [
        ("    configs: [cnof]\n", CONFIGS, "did you mean `conf`?"),
        ("    configs: [other]\n", "", "there is no config `other`"),
        ("    configs: [conf, {source: plain, target: /conf}]\n", CONFIGS, "a second config goes to /conf"),
        ("    configs: [{source: conf, target: etc/x}]\n", CONFIGS, "not an absolute path"),
        ("    configs: [{source: conf, target: /etc/../x}]\n", CONFIGS, "not an absolute path"),
        ("    configs: [{source: conf, target: /etc/hosts}]\n", CONFIGS, "a file of its own there"),
        ("    configs: [{source: conf, target: /run/secrets/x}]\n", CONFIGS, "a file of its own there"),
        ("    configs: [{source: conf, target: /proc/sys/x}]\n", CONFIGS, "a file of its own there"),
        ("    configs: [{source: conf, mode: 444}]\n", CONFIGS, "not the permission bits"),
        ("    configs: [{source: conf, mode: 04755}]\n", CONFIGS, "not the permission bits"),
        ("    configs: [{source: conf, uid: 65535}]\n", CONFIGS, "not a number of 0 to 65534"),
        ("    configs: [{source: conf, uid: app}]\n", CONFIGS, "not a number of 0 to 65534"),
        ("    configs: [conf]\n    tmpfs: [/conf/x]\n", CONFIGS, "a file is no directory"),
        (
            "    configs: [conf]\n    volumes: [\"v:/conf\"]\n",
            &format!("{CONFIGS}volumes: {{v: {{}}}}\n"),
            "a file is no directory",
        ),
        ("", "configs: {c: {file: ./x}}\n", "`file` is not supported"),
        ("", "configs: {c: {environment: X}}\n", "takes nothing from an environment"),
        ("", "configs: {c: {external: true, content: x}}\n", "`external` is not supported"),
        ("", "configs: {C: {content: x}}\n", "a config's name is"),
        ("", "configs: {c: {content: \"a$b\"}}\n", "`b` would come from"),
        ("", "configs: {c: {}}\n", "has no `content`"),
    ] {
        let said = errors(service, beside);
        assert!(said.contains(why), "{service}{beside}: {said}");
    }
    let large = format!("configs: {{c: {{content: \"{}\"}}}}\n", "x".repeat(65 << 10));
    assert!(errors("    configs: [c]\n", &large).contains("longer than 64 KiB"));
    // Counted for each service and each place that sees it.
    let large = format!("configs: {{c: {{content: \"{}\"}}}}\n", "x".repeat(60 << 10));
    let seen: String = (0..9).map(|at| format!("      - {{source: c, target: /c{at}}}\n")).collect();
    assert!(errors(&format!("    configs:\n{seen}"), &large).contains("more than 512 KiB"));
    let many: String = (0..65).map(|at| format!("  c{at}: {{content: x}}\n")).collect();
    assert!(errors("", &format!("configs:\n{many}")).contains("at most 64 are allowed"));
    let checked = Declaration::check(declaration("", CONFIGS).as_bytes());
    assert!(checked.remarks.iter().any(|one| one.message.contains("no service has the config `conf`")));
}
