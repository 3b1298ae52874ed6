use std::sync::Arc;

use proptest::prelude::*;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;

/// A hello as rustls writes it, in one record.
pub(in crate::roles::egress) fn written(server: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let server = ServerName::try_from(server.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), server).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<Hello, HelloError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(first(&mut &bytes[..]))
}

/// A hello with these extensions, in one record.
fn made(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let sized = |data: &[u8]| [&u16::try_from(data.len()).unwrap().to_be_bytes(), data].concat();
    let all: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, data)| [kind.to_be_bytes().to_vec(), sized(data)].concat())
        .collect();
    let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &sized(&all)].concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[CLIENT_HELLO], &length[1..], &body].concat();
    [&[HANDSHAKE, 3, 1][..], &sized(&message)].concat()
}

fn named(name: &[u8]) -> Vec<u8> {
    let name = [&[0], &u16::try_from(name.len()).unwrap().to_be_bytes()[..], name].concat();
    [&u16::try_from(name.len()).unwrap().to_be_bytes()[..], &name].concat()
}

#[test]
fn the_server_name_of_a_real_client_is_read_and_its_bytes_are_kept() {
    let bytes = written("API.example.org");
    assert_eq!(read(&bytes).unwrap(), Hello { bytes, server: "api.example.org".to_owned() });
    // To an address no name is sent.
    assert!(matches!(read(&written("203.0.113.7")), Err(HelloError::Nameless)));
}

#[test]
fn a_hello_in_many_records_is_one() {
    let whole = written("api.example.org");
    let mut bytes = Vec::new();
    for part in whole[HEADER..].chunks(7) {
        bytes.extend_from_slice(&[HANDSHAKE, 3, 1, 0, u8::try_from(part.len()).unwrap()]);
        bytes.extend_from_slice(part);
    }
    assert_eq!(read(&bytes).unwrap(), Hello { bytes, server: "api.example.org".to_owned() });
}

#[test]
fn what_another_reader_could_take_for_another_name_is_refused() {
    let good = made(&[(43, vec![2, 3, 4]), (0, named(b"api.example.org"))]);
    assert_eq!(read(&good).unwrap().server, "api.example.org");
    let two = named(b"api.example.org").len() - 2;
    let mut pair = named(b"api.example.org");
    pair.extend_from_slice(&named(b"other.example.net")[2..]);
    let length = u16::try_from(pair.len() - 2).unwrap().to_be_bytes();
    pair[..2].copy_from_slice(&length);
    let mut other_kind = named(b"api.example.org");
    other_kind[2] = 1;
    let mut short = named(b"api.example.org");
    short[1] = u8::try_from(two - 1).unwrap();
    for (what, extensions) in [
        ("the extension twice", vec![(0, named(b"api.example.org")), (0, named(b"other.example.net"))]),
        ("two names", vec![(0, pair)]),
        ("another kind of name", vec![(0, other_kind)]),
        ("bytes behind the list", vec![(0, short)]),
        ("no name in the list", vec![(0, vec![0, 0])]),
        ("an empty name", vec![(0, named(b""))]),
        ("a NUL", vec![(0, named(b"api.example.org\0"))]),
        ("a name that is no text", vec![(0, named(&[0xff]))]),
        ("a name that is too long", vec![(0, named(&[b'a'; 254]))]),
    ] {
        assert!(matches!(read(&made(&extensions)), Err(HelloError::Malformed)), "{what}");
    }
    assert!(matches!(read(&made(&[(43, vec![])])), Err(HelloError::Nameless)));
    // A second hello in the same record, which a server that asks for one would take.
    let mut twice = good.clone();
    twice.extend_from_slice(&made(&[(0, named(b"other.example.net"))])[HEADER..]);
    let length = u16::try_from(twice.len() - HEADER).unwrap().to_be_bytes();
    twice[3..5].copy_from_slice(&length);
    assert!(matches!(read(&twice), Err(HelloError::Malformed)));
    // One in a record of its own is not read as part of the first.
    assert_eq!(read(&[good.clone(), good.clone()].concat()).unwrap().bytes, good);
}

#[test]
fn other_protocols_are_not_tls() {
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"SSH-2.0-OpenSSH_9.2\r\n",
        // An alert; a hello of SSLv2; a record without bytes; one that is too long; a ServerHello.
        &[21, 3, 3, 0, 2, 2, 40],
        &[0x80, 0x2e, 1, 3, 1, 0, 0x15],
        &[HANDSHAKE, 3, 1, 0, 0],
        &[HANDSHAKE, 3, 1, 0xff, 0xff],
        &[HANDSHAKE, 3, 3, 0, 4, SERVER_HELLO, 0, 0, 0],
        &[HANDSHAKE, 3, 3, 0, 4, CLIENT_HELLO, 0, 0x7f, 0xff],
        &[CHANGE_CIPHER_SPEC, 3, 3, 0, 1, 1],
    ] {
        assert!(matches!(read(bytes), Err(HelloError::Malformed)), "{bytes:?}");
    }
    // No end: one byte in each record.
    let drip: Vec<u8> = (0..20_000).flat_map(|_| [HANDSHAKE, 3, 1, 0, 1, 1]).collect();
    assert!(matches!(read(&drip), Err(HelloError::Malformed)));
    let whole = written("api.example.org");
    assert!(matches!(read(&whole[..whole.len() - 1]), Err(HelloError::Io(_))));
}

/// A ServerHello with this random in a record of 60 bytes.
pub(in crate::roles::egress) fn server(random: [u8; 32]) -> Vec<u8> {
    [&[HANDSHAKE, 3, 3, 0, 60][..], &[SERVER_HELLO, 0, 0, 56, 3, 3], &random, &[9; 22]].concat()
}

#[tokio::test]
async fn a_server_that_asks_for_another_hello_is_noticed() {
    for (sent, retry, passed) in [
        (server(RETRY), true, 65),
        (server([7; 32]), false, 43),
        // Behind a warning that the name is not known.
        ([&[ALERT, 3, 3, 0, 2, 1, 112][..], &server(RETRY)].concat(), true, 72),
        (b"HTTP/1.1 400".to_vec(), false, 5),
    ] {
        let mut client = Vec::new();
        assert_eq!(answer(&mut &sent[..], &mut client).await.unwrap(), retry);
        assert_eq!(client, sent[..passed]);
    }
    let fatal = [ALERT, 3, 3, 0, 2, 2, 40];
    let mut client = Vec::new();
    assert!(matches!(answer(&mut &fatal[..], &mut client).await, Err(HelloError::Io(_))));
    assert_eq!(client, fatal);
    assert!(matches!(answer(&mut &fatal.repeat(9)[..], &mut client).await, Err(HelloError::Malformed)));
    let short = [HANDSHAKE, 3, 3, 0, 4, SERVER_HELLO, 0, 0, 0];
    assert!(matches!(answer(&mut &short[..], &mut Vec::new()).await, Err(HelloError::Malformed)));
}

#[tokio::test]
async fn before_a_second_hello_only_what_is_never_one_passes() {
    let before = [&[CHANGE_CIPHER_SPEC, 3, 3, 0, 1, 1][..], &[APPLICATION_DATA, 3, 3, 0, 2, 5, 6]].concat();
    let again = made(&[(0, named(b"other.example.net"))]);
    let mut passed = Vec::new();
    let found = second(&mut &[&before[..], &again].concat()[..], &mut passed).await.unwrap();
    assert_eq!((found.server.as_str(), &found.bytes, &passed), ("other.example.net", &again, &before));
    let endless = before.repeat(MAX_BEFORE);
    assert!(matches!(second(&mut &endless[..], &mut Vec::new()).await, Err(HelloError::Malformed)));
    let alert = [21, 3, 3, 0, 2, 1, 0];
    assert!(matches!(second(&mut &alert[..], &mut Vec::new()).await, Err(HelloError::Malformed)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever is changed in a hello: it is refused, or the name is what rustls reads too.
    #[test]
    fn a_changed_hello_is_read_as_another_reader_does(
        at in any::<prop::sample::Index>(), to in any::<u8>(), cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = made(&[(43, vec![2, 3, 4]), (0, named(b"api.example.org")), (13, vec![0, 2, 4, 3]), (10, vec![0, 2, 0, 29])]);
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(hello) = read(&bytes) {
            prop_assert_eq!(&hello.bytes[..], &bytes[..hello.bytes.len()]);
            let mut acceptor = rustls::server::Acceptor::default();
            acceptor.read_tls(&mut &hello.bytes[..]).unwrap();
            if let Ok(Some(accepted)) = acceptor.accept() {
                let other = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
                prop_assert!(other.is_none_or(|other| other == hello.server));
            }
        }
    }
}
