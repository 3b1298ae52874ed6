//! The command line as scripts use it.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use common::verify;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tdx-sim")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn ok(arguments: &[&str]) -> Vec<u8> {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn machine(directory: &Path) -> String {
    let path = directory.join("machine").to_str().unwrap().to_owned();
    assert!(ok(&["platform", "new", &path]).is_empty());
    path
}

const AT: &str = "2026-11-22T00:00:00Z";

#[test]
fn a_machine_is_made_and_speaks() {
    let directory = tempfile::tempdir().unwrap();
    let machine = machine(directory.path());
    let root = tdx_sim::Platform::load(Path::new(&machine)).unwrap().root_der();
    let report_data = "ab".repeat(64);
    let quote = ok(&["quote", "--platform", &machine, "--report-data", &report_data]);
    let collateral = ok(&["collateral", "--platform", &machine, "--at", AT]);
    let collateral = serde_json::from_slice(&collateral).unwrap();
    let verified = verify(root.clone(), &quote, &collateral, common::NOW).unwrap();
    assert_eq!(verified.report.as_td10().unwrap().report_data, [0xab; 64]);
    let mrtd = String::from_utf8(ok(&["mrtd"])).unwrap();
    assert_eq!(mrtd.trim_end(), hex::encode(verified.report.as_td10().unwrap().mr_td));

    // Another quote like it, unbroken: the same bytes. Broken: refused.
    let file = directory.path().join("quote");
    fs::write(&file, &quote).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(ok(&["quote", "--platform", &machine, "--like", file]), quote);
    for broken in [
        &["--debug"][..],
        &["--flaw", "foreign-pck"],
        &["--flaw", "foreign-pck-key"],
        &["--flaw", "broken-qe-binding"],
        &["--flaw", "foreign-attestation-key"],
        &["--flaw", "tampered-body"],
        &["--flaw", "debug-qe"],
    ] {
        let quote = ok(&[&["quote", "--platform", &machine, "--like", file], broken].concat());
        assert!(verify(root.clone(), &quote, &collateral, common::NOW).is_err(), "{broken:?}");
    }
    for broken in ["--expired", "--revoked-pck", "--revoked-tcb"] {
        let collateral = ok(&["collateral", "--platform", &machine, "--at", AT, broken]);
        let collateral = serde_json::from_slice(&collateral).unwrap();
        assert!(verify(root.clone(), &quote, &collateral, common::NOW).is_err(), "{broken}");
    }
}

#[test]
fn mistakes_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let machine = machine(directory.path());
    let none = directory.path().join("none").to_str().unwrap().to_owned();
    let garbage = directory.path().join("garbage");
    fs::write(&garbage, "not a quote").unwrap();
    for (arguments, said) in [
        (&["platform", "new", &machine][..], "platform.seed"),
        (&["quote", "--platform", &none], "no simulated machine in"),
        (&["quote", "--platform", &machine, "--report-data", "abcd"], "--report-data is not 64 bytes"),
        (&["quote", "--platform", &machine, "--like", garbage.to_str().unwrap()], "garbage"),
        (&["collateral", "--platform", &machine, "--at", "yesterday"], "--at is not a time"),
        (&["pccs", "--platform", &machine, "--listen", "203.0.113.1:1"], "cannot listen on"),
    ] {
        let output = run(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(error.starts_with("error: ") && error.contains(said), "{arguments:?}: {error}");
    }
    assert_eq!(run(&["frobnicate"]).status.code(), Some(2));
}

/// A file of 1 TiB without contents, and a device without an end.
#[test]
fn inputs_that_are_too_large_are_refused_before_they_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let machine = machine(directory.path());
    let sparse = directory.path().join("sparse");
    fs::File::create(&sparse).unwrap().set_len(1 << 40).unwrap();
    let sparse = sparse.to_str().unwrap();
    let large = directory.path().join("large");
    fs::create_dir(&large).unwrap();
    fs::File::create(large.join("platform.seed")).unwrap().set_len(1 << 40).unwrap();
    for (input, limit) in [(sparse, "sparse has more than"), ("/dev/zero", "/dev/zero has more than")] {
        for arguments in [
            &["quote", "--platform", &machine, "--like", input][..],
            &[
                "pccs",
                "--platform",
                &machine,
                "--listen",
                "127.0.0.1:0",
                "--tls-cert",
                input,
                "--tls-key",
                input,
            ],
        ] {
            let output = run(arguments);
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{arguments:?}");
            assert!(error.contains(limit), "{arguments:?}: {error}");
        }
    }
    let output = run(&["quote", "--platform", large.to_str().unwrap()]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("more than 4096 bytes"), "{error}");
}

#[test]
fn the_device_process_without_its_registers_does_nothing() {
    let output = run(&["device"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
}

/// `ci/tls` makes the certificates as the demo does; it needs bash and openssl.
#[tokio::test]
async fn the_collateral_service_speaks_tls() {
    let directory = tempfile::tempdir().unwrap();
    let machine = machine(directory.path());
    let tls = directory.path().join("tls");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ci/tls");
    if !Command::new(script).arg(&tls).stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: {script} cannot make certificates here");
        return;
    }
    let file = |name: &str| tls.join(name).to_str().unwrap().to_owned();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tdx-sim"))
        .args(["pccs", "--listen", "127.0.0.1:0", "--platform", &machine])
        .args(["--tls-cert", &file("server.pem"), "--tls-key", &file("server.key")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim_end().rsplit_once("https://").unwrap().1.to_owned();

    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    let request =
        "GET /tdx/certification/v4/qe/identity HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // The server may end the connection without a TLS goodbye; what counts has arrived by then.
    let _ = stream.read_to_string(&mut answer).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("\"id\":\"TD_QE\""), "{answer}");
}
