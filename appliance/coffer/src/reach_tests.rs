//! Each kind of unreachable, made for real where a machine by itself can make it.

use std::sync::Arc;
use std::time::Duration;

use cofferdam_attest::ratls;
use cofferdam_protocol::Digest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::channel;
use crate::failure::Code;

/// What a server does with each connection.
enum Manner {
    /// Answers with these bytes, whatever it was asked.
    Says(&'static [u8]),
    /// Closes it.
    Closes,
    /// Speaks TLS with a certificate that only an RA-TLS client takes, valid from this time on for an hour.
    Tls(u64),
}

/// A server on loopback; its address.
async fn server(manner: Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let acceptor = match &manner {
        Manner::Tls(from) => Some(acceptor(*from)),
        _ => None,
    };
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            match (&manner, &acceptor) {
                (Manner::Says(bytes), _) => {
                    let _ = tcp.read(&mut [0; 1024]).await;
                    let _ = tcp.write_all(bytes).await;
                }
                (_, Some(acceptor)) => drop(acceptor.accept(tcp).await),
                _ => drop(tcp),
            }
        }
    });
    address
}

fn acceptor(from: u64) -> TlsAcceptor {
    let key = ratls::generate_key().unwrap();
    let certificate = ratls::certificate(&key, b"{}", &["127.0.0.1".to_owned()], from, 3600).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.into()],
            rustls::pki_types::PrivatePkcs8KeyDer::from(key.to_vec()).into(),
        );
    TlsAcceptor::from(Arc::new(config.unwrap()))
}

/// An address of this machine at which nobody listens.
async fn closed() -> String {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
}

/// The GitHub client's error for `https://ADDRESS/`, through `proxy` if one is named.
async fn github(address: &str, proxy: Option<&str>) -> GithubError {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let stranger = ratls::certificate(&ratls::generate_key().unwrap(), b"{}", &[], 0, 3600).unwrap();
    let builder = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_der(&stranger).unwrap()])
        .timeout(Duration::from_secs(20));
    let builder = match proxy {
        Some(proxy) => builder.proxy(reqwest::Proxy::https(format!("http://{proxy}")).unwrap()),
        None => builder.no_proxy(),
    };
    let sent = builder.build().unwrap().get(format!("https://{address}/")).send().await;
    GithubError::Unreachable(sent.unwrap_err().without_url())
}

fn now() -> u64 {
    crate::trust::unix_now().unwrap()
}

#[tokio::test]
async fn each_way_of_not_reaching_github_has_its_hint() {
    let refuses = server(Manner::Says(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")).await;
    let portal =
        server(Manner::Says(b"HTTP/1.1 302 Found\r\nlocation: http://portal.example/\r\n\r\n")).await;
    let (closed, cut) = (closed().await, server(Manner::Closes).await);
    let stranger = server(Manner::Tls(now() - 60)).await;
    for (error, obstacle, hint) in [
        (github("github.invalid", None).await, Obstacle::Name, "getent hosts"),
        (github(&closed, None).await, Obstacle::Closed, "--github-api"),
        (github("github.invalid", Some(&refuses)).await, Obstacle::Proxy, "does the proxy run"),
        (github("github.invalid", Some(&closed)).await, Obstacle::Proxy, "NO_PROXY"),
        (github(&portal, None).await, Obstacle::Tls, "portal"),
        (github(&stranger, None).await, Obstacle::Certificate, "--github-ca"),
        (github(&cut, None).await, Obstacle::Cut, "try again"),
    ] {
        let GithubError::Unreachable(inner) = &error else { panic!("{error:?}") };
        assert_eq!(Obstacle::of(inner), obstacle, "{inner:?}");
        let said = hint_for_github(obstacle, "github.example", None);
        assert!(said.contains(hint), "{obstacle:?}: {said}");
    }
}

#[test]
fn a_proxy_that_is_named_is_the_first_suspect_where_it_may_be_one() {
    for obstacle in [Obstacle::Proxy, Obstacle::Silent] {
        let said = hint_for_github(obstacle, "github.example", Some("ALL_PROXY"));
        assert!(said.contains("ALL_PROXY") && said.contains("NO_PROXY=github.example"), "{said}");
    }
    for obstacle in
        [Obstacle::Name, Obstacle::Closed, Obstacle::NoRoute, Obstacle::Certificate, Obstacle::Tls]
    {
        let named = hint_for_github(obstacle, "github.example", Some("ALL_PROXY"));
        assert_eq!(named, hint_for_github(obstacle, "github.example", None), "{obstacle:?}");
    }
}

#[test]
fn what_github_did_answer_is_not_a_matter_of_reaching_it() {
    let client = Client::new("https://127.0.0.1:1/api/v3", None, None, "coffer").unwrap();
    let outage = GithubError::Server { status: 502, message: String::new() };
    assert_eq!(github_hint(&outage, &client).unwrap(), "127.0.0.1 has an outage: try again in a while");
    // No proxy of the environment stands before this machine.
    let silent = hint_for_github(Obstacle::Silent, "127.0.0.1", None);
    assert_eq!(github_hint(&GithubError::Timeout, &client), Some(silent));
    for answered in [GithubError::NotFound, GithubError::Unrelated, GithubError::Moved] {
        assert_eq!(github_hint(&answered, &client), None);
    }
}

#[test]
fn what_the_system_says_is_read_by_its_kind() {
    for (kind, obstacle) in [
        (io::ErrorKind::ConnectionRefused, Obstacle::Closed),
        (io::ErrorKind::HostUnreachable, Obstacle::NoRoute),
        (io::ErrorKind::NetworkUnreachable, Obstacle::NoRoute),
        (io::ErrorKind::TimedOut, Obstacle::Silent),
        (io::ErrorKind::ConnectionReset, Obstacle::Cut),
        (io::ErrorKind::UnexpectedEof, Obstacle::Cut),
    ] {
        assert_eq!(Obstacle::of(&io::Error::from(kind)), obstacle);
        // Also where it lies inside another error.
        assert_eq!(Obstacle::of(&io::Error::other(io::Error::from(kind))), obstacle);
    }
}

#[tokio::test]
async fn each_way_of_not_reaching_an_appliance_has_its_hint_and_is_could_not_check() {
    let portal =
        server(Manner::Says(b"HTTP/1.1 302 Found\r\nlocation: http://portal.example/\r\n\r\n")).await;
    let (closed, cut) = (closed().await, server(Manner::Closes).await);
    for (endpoint, hint) in [
        ("appliance.invalid:8443", "getent hosts appliance.invalid"),
        (closed.as_str(), "nothing listens on that port"),
        (portal.as_str(), "something else listens there"),
        (cut.as_str(), "no attested certificate yet"),
    ] {
        let dialled: Endpoint = endpoint.parse().unwrap();
        let failure = channel::dial(&dialled, None, false).await.err().unwrap().failure(&dialled, true);
        assert_eq!(failure.code, Code::CouldNotCheck, "{}", failure.message);
        assert!(failure.message.contains(endpoint), "{}", failure.message);
        assert!(
            failure.hint.as_ref().is_some_and(|said| said.contains(hint)),
            "{endpoint}: {:?}",
            failure.hint
        );
    }
    for obstacle in [Obstacle::NoRoute, Obstacle::Silent] {
        assert!(
            endpoint_hint(obstacle, &"appliance.example:8443".parse().unwrap()).contains("appliance.example")
        );
    }
}

#[tokio::test]
async fn a_certificate_outside_its_time_is_false_only_where_a_key_is_attested() {
    for from in [now() - 3600 - 400, now() + 400] {
        let endpoint: Endpoint = server(Manner::Tls(from)).await.parse().unwrap();
        for (expected, code) in [(true, Code::Rejected), (false, Code::CouldNotCheck)] {
            let failure =
                channel::dial(&endpoint, None, false).await.err().unwrap().failure(&endpoint, expected);
            assert_eq!(failure.code, code, "{}", failure.message);
            assert!(failure.message.contains("its certificate"), "{}", failure.message);
            assert!(failure.hint.unwrap().contains("clock"));
        }
    }
}

#[tokio::test]
async fn another_key_than_the_release_attests_is_false() {
    let endpoint: Endpoint = server(Manner::Tls(now() - 60)).await.parse().unwrap();
    let shown = channel::dial(&endpoint, None, false).await.ok().unwrap().peer.tls_key;
    let other = Digest::from([0; 32]);
    let failure = channel::dial(&endpoint, Some(other), false).await.err().unwrap().failure(&endpoint, true);
    assert_eq!(failure.code, Code::Rejected);
    let words = format!("tls_key: {endpoint} shows {shown}, the release attestation says {other}");
    assert_eq!(failure.message, words);
    assert!(channel::dial(&endpoint, Some(shown), false).await.is_ok());
}
