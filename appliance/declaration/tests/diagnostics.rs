//! What a person sees: the text of `tests/diagnostics.txt`, which is a declaration's errors in full.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use cofferdam_declaration::Declaration;

const WRONG: &str = "version: 1
repository: octo-org/payments
endpoint: api.example.org
operators:
  - name: alice
    key: ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC7
github:
  token: ghp_0123456789abcdefghijABCDEFGHIJ012345
services:
  web:
    image: nginx:1.27
    privileged: true
    enviroment: {DEBUG: on}
    ports: [22:22]
    depends_on: [db, cache]
  db:
    image: docker.io/library/postgres@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
    environment:
      POSTGRES_PASSWORD: ${PASSWORD}
      MODE: 0644
    depends_on: [web]
";

#[test]
fn errors_read_as_written_down() {
    let errors = Declaration::parse(WRONG.as_bytes()).unwrap_err();
    let expected = include_str!("diagnostics.txt");
    assert_eq!(errors.render("cofferdam.yaml"), expected, "\n{errors}");
}

#[test]
fn a_credential_written_by_mistake_is_not_repeated() {
    let errors = Declaration::parse(WRONG.as_bytes()).unwrap_err();
    assert!(!errors.to_string().contains("ghp_"));
    assert!(!format!("{errors:?}").contains("ghp_"));
}
