//! The certification service as a client meets it: over HTTP, with what a verifier makes of the answers.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{NOW, platform, verify};
use dcap_qvl::QuoteCollateralV3;
use tdx_sim::{TdReport, pccs};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Starts the service on a free port of the loopback.
async fn start(clock: pccs::Clock) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(pccs::serve(listener, None, platform(1), clock));
    address
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> String {
        let (_, value) = self.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name)).unwrap();
        url_decode(value)
    }

    /// The exact bytes of `name` in `{"NAME":…,"signature":"…"}`, and the signature.
    fn signed(&self, name: &str) -> (String, Vec<u8>) {
        let text = String::from_utf8(self.body.clone()).unwrap();
        let rest = text.strip_prefix(&format!("{{\"{name}\":")).unwrap();
        let (json, signature) = rest.rsplit_once(",\"signature\":\"").unwrap();
        (json.to_owned(), hex::decode(signature.strip_suffix("\"}").unwrap()).unwrap())
    }
}

fn url_decode(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                decoded.extend(hex::decode(digits).unwrap());
            }
            other => decoded.push(other),
        }
    }
    String::from_utf8(decoded).unwrap()
}

async fn get(address: std::net::SocketAddr, path: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let split = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let (head, body) = answer.split_at(split);
    let head = std::str::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers =
        lines.map(|line| line.split_once(": ").unwrap()).map(|(n, v)| (n.into(), v.into())).collect();
    Answer { status, headers, body: body.iter().skip(4).copied().collect() }
}

#[tokio::test]
async fn what_it_serves_verifies_a_quote() {
    let address = start(|| NOW).await;
    let crl = get(address, "/sgx/certification/v4/pckcrl?ca=platform&encoding=der").await;
    let root_crl = get(address, "/sgx/certification/v4/rootcacrl").await;
    let tcb = get(address, "/tdx/certification/v4/tcb?fmspc=53494d544458&update=standard").await;
    let identity = get(address, "/tdx/certification/v4/qe/identity?update=standard").await;
    let (tcb_info, tcb_info_signature) = tcb.signed("tcbInfo");
    let (qe_identity, qe_identity_signature) = identity.signed("enclaveIdentity");
    let collateral = QuoteCollateralV3 {
        pck_crl_issuer_chain: crl.header("SGX-PCK-CRL-Issuer-Chain"),
        pck_crl: crl.body.clone(),
        root_ca_crl: hex::decode(&root_crl.body).unwrap(),
        tcb_info_issuer_chain: tcb.header("TCB-Info-Issuer-Chain"),
        tcb_info,
        tcb_info_signature,
        qe_identity_issuer_chain: identity.header("SGX-Enclave-Identity-Issuer-Chain"),
        qe_identity,
        qe_identity_signature,
        pck_certificate_chain: None,
    };
    let quote = platform(1).quote(&TdReport::new([[0; 48]; 4], [0; 64]));
    let verified = verify(platform(1).root_der(), &quote, &collateral, NOW).unwrap();
    assert_eq!(verified.status, "UpToDate");
}

#[tokio::test]
async fn its_dates_are_those_of_the_clock() {
    let path = "/tdx/certification/v4/qe/identity";
    let early = get(start(|| NOW).await, path).await;
    let late = get(start(|| NOW + 365 * 24 * 3600).await, path).await;
    assert!(early.signed("enclaveIdentity").0.contains("\"issueDate\":\"2026-11-2"));
    assert!(late.signed("enclaveIdentity").0.contains("\"issueDate\":\"2027-11-2"));
}

#[tokio::test]
async fn what_it_does_not_have_is_an_error() {
    let address = start(|| NOW).await;
    for (path, status) in [
        ("/tdx/certification/v4/tcb?fmspc=B0C06F000000", 404),
        ("/tdx/certification/v4/tcb?fmspc=xyz", 400),
        ("/tdx/certification/v4/tcb", 400),
        ("/sgx/certification/v4/pckcrl?ca=processor", 404),
        ("/sgx/certification/v4/pckcrl", 400),
        ("/sgx/certification/v4/pckcrl?ca=platform&encoding=xml", 400),
        ("/sgx/certification/v4/tcb?fmspc=53494d544458", 404),
        ("/", 404),
    ] {
        assert_eq!(get(address, path).await.status, status, "{path}");
    }
    let pem = get(address, "/sgx/certification/v4/pckcrl?ca=platform").await;
    assert!(pem.body.starts_with(b"-----BEGIN X509 CRL-----\n"));
}

#[tokio::test]
async fn a_long_head_and_garbage_are_cut_off() {
    let address = start(|| NOW).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(64 * 1024));
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    // Either an error status or a reset: the connection ends, and soon.
    let ended = tokio::time::timeout(Duration::from_secs(5), read).await.unwrap();
    assert!(ended.is_err() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(get(address, "/tdx/certification/v4/qe/identity").await.status, 200);
}
