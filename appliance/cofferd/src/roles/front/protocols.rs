//! What is spoken on both sides of the front: HTTP of both versions, connections that are used again, and bytes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use cofferdam_attest::ratls;
use cofferdam_protocol::Fingerprint;
use cofferdam_protocol::operator::{Authorization, PREFIX, SIGN_IN, SIGN_IN_UPGRADE, signing_input};
use ed25519_dalek::{Signer as _, SigningKey};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::attacks::{hanging, hasty, soon, the_appliance_answers, until};
use super::listen::Limits;
use super::requests::Bounds;
use super::tests::{
    BYTES, BYTES_FOR_OPERATORS, Client, FOR_OPERATORS, H2C, PASSED, Room, dial, mirror, operator, raw,
};
use super::upstream::KEPT;

/// A body of these frames, which then ends, or breaks off.
struct Frames(Vec<Option<Frame<Bytes>>>);

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let next = (!self.0.is_empty()).then(|| self.0.remove(0));
        std::task::Poll::Ready(next.map(|frame| frame.ok_or_else(|| std::io::ErrorKind::BrokenPipe.into())))
    }
}

fn data(bytes: &'static str) -> Option<Frame<Bytes>> {
    Some(Frame::data(Bytes::from_static(bytes.as_bytes())))
}

fn trailers(pairs: &[(&'static str, &'static str)]) -> Option<Frame<Bytes>> {
    let pair = |(name, value): &(&'static str, &'static str)| (name.parse().unwrap(), value.parse().unwrap());
    Some(Frame::trailers(pairs.iter().map(pair).collect()))
}

/// Everything of a body: its bytes and its trailers.
async fn whole(mut body: Body) -> Result<(Vec<u8>, HeaderMap), axum::Error> {
    let (mut bytes, mut trailers) = (Vec::new(), HeaderMap::new());
    while let Some(frame) =
        std::future::poll_fn(|context| hyper::body::Body::poll_frame(std::pin::Pin::new(&mut body), context))
            .await
    {
        match frame?.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers.extend(frame.into_trailers().unwrap()),
        }
    }
    Ok((bytes, trailers))
}

async fn offering(address: SocketAddr, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
    let mut config = ratls::client_config(None).unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    soon(TlsConnector::from(Arc::new(config)).connect(name, stream)).await.unwrap()
}

/// A client that speaks HTTP/2, and its channel binding.
async fn h2(address: SocketAddr, window: u32) -> (http2::SendRequest<Body>, [u8; 32]) {
    let stream = offering(address, &[b"h2", b"http/1.1"]).await;
    let connection = stream.get_ref().1;
    assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]));
    let binding = connection.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(b"")).unwrap();
    let mut builder = http2::Builder::new(TokioExecutor::new());
    let builder = builder.initial_stream_window_size(window).max_header_list_size(1 << 20);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    (sender, binding)
}

fn get(path: &str) -> Request<Body> {
    let uri = format!("https://room.example{path}");
    Request::get(uri).version(Version::HTTP_2).body(Body::empty()).unwrap()
}

async fn json(response: Response<Incoming>) -> serde_json::Value {
    serde_json::from_slice(&whole(Body::new(response.into_body())).await.unwrap().0).unwrap()
}

/// A service that speaks HTTP/2 alone.
fn h2c_service<F, A>(room: &Room, answer: F)
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = UnixListener::bind(room.path("services/web/port-8080")).unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
}

// HTTP/1.1.

#[tokio::test]
async fn a_body_that_is_no_body_is_the_clients_fault() {
    let room = Room::open().await;
    room.workload(mirror);
    let head = "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    for body in ["zz\r\n", "3\r\nabcd\r\n", "ffffffffffffffffff\r\n", "3;x\r\nabc\r\n-1\r\n"] {
        let answer = raw(&room, format!("{head}{body}").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{body}: {answer}");
        assert!(answer.contains("application/json"), "{answer}");
    }
}

#[tokio::test]
async fn trailers_pass_both_ways_and_say_nothing_that_headers_may_not() {
    let room = Room::open().await;
    let seen = Arc::new(Mutex::new(HeaderMap::new()));
    let got = Arc::clone(&seen);
    let listener = UnixListener::bind(room.path("services/web/port-8080")).unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service_fn(move |request: Request<Incoming>| {
            let got = Arc::clone(&got);
            async move {
                let (_, trailers) = whole(Body::new(request.into_body())).await.unwrap();
                *got.lock().unwrap() = trailers;
                let frames = vec![data("abc"), self::trailers(&[("x-sum", "7"), ("x-other", "8")])];
                let answer = Response::builder().header(header::TRAILER, "x-sum, x-other");
                Ok::<_, Infallible>(answer.body(Body::new(Frames(frames))).unwrap())
            }
        });
        let _ =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    });
    let (mut sender, connection) = http1::handshake(TokioIo::new(room.dial().await)).await.unwrap();
    tokio::spawn(connection);
    let named = "x-mine, x-forwarded-for, x_cofferdam_caller, authorization, x-cofferdam-caller";
    let own = [
        ("x-mine", "1"),
        ("x-forwarded-for", "6.6.6.6"),
        ("authorization", "Bearer x"),
        ("x-cofferdam-caller", "operator:alice"),
        ("x_cofferdam_caller", "operator:alice"),
    ];
    let request = Request::post("/")
        .header(header::HOST, "x")
        .header(header::TE, "trailers")
        .header(header::TRAILER, named)
        .body(Body::new(Frames(vec![data("hello"), trailers(&own)])))
        .unwrap();
    let response = soon(sender.send_request(request)).await.unwrap();
    let (bytes, trailers) = soon(whole(Body::new(response.into_body()))).await.unwrap();
    assert_eq!(bytes, b"abc");
    assert!(trailers["x-sum"] == "7" && trailers["x-other"] == "8", "{trailers:?}");
    let seen = seen.lock().unwrap();
    assert_eq!(seen.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["x-mine"]);
}

// Connections to services.

/// A service that counts its connections and names each in its answers. It closes one after so many requests.
fn counting(room: &Room, requests: usize) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let connections = Arc::clone(&count);
    let listener = UnixListener::bind(room.path("services/web/port-8080")).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let number = connections.fetch_add(1, Ordering::Relaxed);
            // Below HTTP's notice: it takes everything that arrives at once for one request and reads no body.
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 * 1024];
                for _ in 0..requests {
                    match stream.read(&mut buffer).await {
                        Ok(length) if length > 0 => {}
                        _ => return,
                    }
                    let body = number.to_string();
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    count
}

async fn number(client: &mut Client) -> usize {
    let answer = soon(client.get("/")).await;
    assert_eq!(answer.status, StatusCode::OK);
    String::from_utf8_lossy(&answer.body).parse().unwrap()
}

#[tokio::test]
async fn a_client_s_requests_use_one_connection_to_the_service_again_and_nobody_else_s_do() {
    let room = Room::open().await;
    let connections = counting(&room, usize::MAX);
    let (mut one, mut other) = (room.client().await, room.client().await);
    for _ in 0..20 {
        assert_eq!(number(&mut one).await, 0);
    }
    for _ in 0..20 {
        assert_eq!(number(&mut other).await, 1);
    }
    // A request with a body has one of its own, before which nothing was said and after which nothing is.
    for _ in 0..2 {
        let post = Request::post("/").header(header::HOST, "x").body(Body::from("GET /smuggled")).unwrap();
        let answer = soon(one.send(post)).await;
        assert_eq!(answer.body, connections.load(Ordering::Relaxed).saturating_sub(1).to_string());
    }
    assert_eq!(number(&mut one).await, 0);
    assert_eq!(connections.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn a_kept_connection_ends_with_its_client_s_and_soon_when_it_is_not_used() {
    let room = Room::open().await;
    let listener = UnixListener::bind(room.path("services/web/port-8080")).unwrap();
    let mut client = room.client().await;
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4096];
        assert!(stream.read(&mut buffer).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        stream
    };
    let (answer, mut stream) = tokio::join!(soon(client.get("/")), soon(serve));
    assert_eq!(answer.body, "ok");
    let start = tokio::time::Instant::now();
    assert_eq!(soon(stream.read(&mut [0])).await.unwrap(), 0, "closed without a second request");
    assert!(start.elapsed() < KEPT * 10);

    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        stream
    };
    let (answer, mut stream) = tokio::join!(soon(client.get("/")), soon(serve));
    assert_eq!(answer.status, StatusCode::OK, "and the next request has a new one");
    drop(client);
    assert_eq!(soon(stream.read(&mut [0])).await.unwrap(), 0);
}

#[tokio::test]
async fn a_service_that_closes_after_each_answer_without_saying_so_fails_no_request() {
    let room = Room::open().await;
    let connections = counting(&room, 1);
    let mut client = room.client().await;
    for round in 0..200 {
        assert_eq!(number(&mut client).await, round);
    }
    assert_eq!(connections.load(Ordering::Relaxed), 200);
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_reaches_nobody_else() {
    let room = Room::open().await;
    let listener = UnixListener::bind(room.path("services/web/port-8080")).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                while stream.read(&mut [0; 4096]).await.is_ok_and(|length| length > 0) {
                    let two = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nmine\
                               HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
                    let _ = stream.write_all(two.as_bytes()).await;
                }
            });
        }
    });
    for _ in 0..50 {
        let (mut one, mut other) = (room.client().await, room.client().await);
        for client in [&mut one, &mut other] {
            let answer = soon(client.get("/")).await;
            assert!(answer.status == StatusCode::OK && answer.body == "mine", "{:?}", answer.body);
        }
    }
}

// HTTP/2 outside.

#[tokio::test]
async fn http_2_reaches_services_and_the_appliance_as_http_1_does() {
    let room = Room::open().await;
    room.workload(mirror);
    let (mut sender, binding) = h2(room.address, 65_535).await;
    let mut request = get("/a?b");
    for cookie in ["one=1", "two=2"] {
        request.headers_mut().append(header::COOKIE, HeaderValue::from_static(cookie));
    }
    request.headers_mut().insert("x-forwarded-for", HeaderValue::from_static("6.6.6.6"));
    let response = soon(sender.send_request(request)).await.unwrap();
    assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
    assert!(!response.headers().contains_key("x-private"));
    let seen = json(response).await;
    assert_eq!(seen["target"], "/a?b");
    let header = |name: &str| -> Vec<String> {
        let all = seen["headers"].as_array().unwrap().iter().filter(|pair| pair[0] == name);
        all.map(|pair| pair[1].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(header("cookie"), ["one=1; two=2"]);
    assert_eq!(header("host"), ["room.example"]);
    assert_eq!(header("x-forwarded-for"), ["127.0.0.1"]);

    // The words of an error are a body, which an answer to HEAD has none of.
    for (method, words) in [(Method::GET, true), (Method::HEAD, false)] {
        let mut request = get("/.well-known/cofferdam/none");
        *request.method_mut() = method;
        let response = soon(sender.send_request(request)).await.unwrap();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        let (body, _) = soon(whole(Body::new(response.into_body()))).await.unwrap();
        assert_eq!(!body.is_empty(), words);
    }

    // Evidence is about this very connection, and an operator signs in on it.
    let nonce = cofferdam_protocol::base64::encode_url([7; 32]);
    let evidence = soon(sender.send_request(get(&format!("{PREFIX}/evidence?nonce={nonce}")))).await.unwrap();
    let (evidence, _) = whole(Body::new(evidence.into_body())).await.unwrap();
    let evidence = cofferdam_attest::evidence::Evidence::parse(&evidence).unwrap();
    let claims = cofferdam_attest::claims::Claims::decode(&evidence.claims).unwrap();
    assert_eq!(claims.channel_binding, Some(binding.into()));

    let closed = room.listen(FOR_OPERATORS, &room.site).await;
    let (mut sender, binding) = h2(closed, 65_535).await;
    let refused = soon(sender.send_request(get("/"))).await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    let mut request = get(&format!("{PREFIX}{SIGN_IN}"));
    *request.method_mut() = Method::POST;
    request.headers_mut().insert(header::AUTHORIZATION, authorization(&operator(), &binding));
    assert_eq!(soon(sender.send_request(request)).await.unwrap().status(), StatusCode::NO_CONTENT);
    assert_eq!(soon(sender.send_request(get("/"))).await.unwrap().status(), StatusCode::OK);
}

fn authorization(key: &SigningKey, binding: &[u8; 32]) -> HeaderValue {
    let path = format!("{PREFIX}{SIGN_IN}");
    let signature = key.sign(&signing_input("POST", &path, b"", binding)).to_bytes().into();
    let key = Fingerprint::of(&key.verifying_key().to_bytes());
    Authorization { key, signature }.to_string().try_into().unwrap()
}

#[tokio::test]
async fn heads_have_the_same_bounds_in_http_2() {
    let room = Room::open().await;
    let got = hanging(&room, "web");
    let with = |count: usize, bytes: usize| {
        let mut request = get("/");
        for number in 0..count {
            let name: header::HeaderName = format!("x-{number}").parse().unwrap();
            request.headers_mut().insert(name, HeaderValue::from_bytes(&vec![b'v'; bytes]).unwrap());
        }
        request
    };
    let mut authority = get("/");
    authority.headers_mut().insert(header::HOST, HeaderValue::from_static("other.example"));
    let mut connect = Request::connect("evil.example:443").body(Body::empty()).unwrap();
    *connect.version_mut() = Version::HTTP_2;
    for (request, expected) in [
        (with(101, 1), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        (with(8, 4096), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        (authority, StatusCode::BAD_REQUEST),
        (connect, StatusCode::BAD_REQUEST),
    ] {
        let (mut sender, _) = h2(room.address, 65_535).await;
        match soon(sender.send_request(request)).await {
            Ok(response) => assert_eq!(response.status(), expected),
            // Told so by the stream's end, which is as good.
            Err(error) => assert_ne!(expected, StatusCode::BAD_REQUEST, "{error}"),
        }
    }
    assert_eq!(got.load(Ordering::Relaxed), 0);
    the_appliance_answers(&room).await;
}

#[tokio::test]
async fn who_takes_nothing_of_an_answer_in_http_2_loses_its_place_and_gets_no_end() {
    let bounds = Bounds { own: 1, own_by_source: 1, shared: 0, ..Bounds::default() };
    let room = Room::with(hasty(), bounds).await;
    room.workload(|_| Response::new(Body::from(vec![b'x'; 100_000])));
    let (mut sender, _) = h2(room.address, 16).await;
    let response = soon(sender.send_request(get("/"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    // It holds the only place until patience with it has run out.
    let mut client = room.client().await;
    assert_eq!(soon(client.get("/")).await.status, StatusCode::SERVICE_UNAVAILABLE);
    soon(async {
        while room.client().await.get("/").await.status != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(soon(whole(Body::new(response.into_body()))).await.is_err(), "cut off, and not ended");
}

#[tokio::test]
async fn who_resets_a_request_or_loses_the_connection_gives_its_place_back() {
    let bounds = Bounds { own: 2, own_by_source: 2, shared: 0, ..Bounds::default() };
    let room = Room::with(Limits::default(), bounds).await;
    let got = hanging(&room, "web");
    for round in 1..4 {
        let (mut sender, _) = h2(room.address, 65_535).await;
        let (one, mut two) = (sender.send_request(get("/")), sender.clone());
        let first = tokio::spawn(one);
        let second = tokio::spawn(async move { two.send_request(get("/")).await });
        until(|| got.load(Ordering::Relaxed) == 2 * round).await;
        let refused = soon(sender.send_request(get("/"))).await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        // One by itself, the other with the connection.
        first.abort();
        second.abort();
        drop(sender);
        until(|| room.waiting.taken() <= 1).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn who_asks_and_gives_up_again_and_again_is_hung_up_on() {
    let room = Room::open().await;
    let got = hanging(&room, "web");
    let (sender, _) = h2(room.address, 65_535).await;
    let asked = soon(async {
        for asked in 1.. {
            let mut sender = sender.clone();
            if sender.ready().await.is_err() {
                return asked;
            }
            let request = tokio::spawn(async move { sender.send_request(get("/")).await.map(|_| ()) });
            let before = got.load(Ordering::Relaxed);
            while got.load(Ordering::Relaxed) == before && !request.is_finished() {
                tokio::task::yield_now().await;
            }
            request.abort();
        }
        0
    })
    .await;
    assert!(asked > super::http2::GIVEN_UP, "{asked}");
    the_appliance_answers(&room).await;
}

#[tokio::test]
async fn a_silent_connection_in_http_2_is_ended_and_a_call_on_one_is_not() {
    let room = Room::with(hasty(), Bounds::default()).await;
    let got = hanging(&room, "web");
    let (mut sender, _) = h2(room.address, 65_535).await;
    let (mut calling, _) = h2(room.address, 65_535).await;
    let call = tokio::spawn(async move { calling.send_request(get("/")).await.map(|_| ()) });
    until(|| got.load(Ordering::Relaxed) == 1).await;
    soon(async {
        while sender.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(!call.is_finished());
    assert_eq!(room.waiting.taken(), 0);
}

// HTTP/2 inside.

#[tokio::test]
async fn calls_with_trailers_and_streams_in_both_directions_reach_a_service_that_speaks_h2c() {
    let room = Room::open().await;
    h2c_service(&room, |request| async move {
        assert_eq!(request.version(), Version::HTTP_2);
        assert_eq!(request.headers()[header::TE], "trailers");
        assert_eq!(request.uri().authority().unwrap(), "room.example");
        // Repeats each piece as it comes, and says at last how it went.
        let (frames, body) = tokio::sync::mpsc::channel::<Frame<Bytes>>(1);
        tokio::spawn(async move {
            let mut said = Body::new(request.into_body());
            while let Some(Ok(frame)) = std::future::poll_fn(|context| {
                hyper::body::Body::poll_frame(std::pin::Pin::new(&mut said), context)
            })
            .await
            {
                let _ = frames.send(frame).await;
            }
            let _ = frames.send(trailers(&[("grpc-status", "0")]).unwrap()).await;
        });
        Response::builder().header("content-type", "application/grpc").body(Body::new(Relay(body))).unwrap()
    });
    let address = room.listen(H2C, &room.site).await;
    let (mut sender, _) = h2(address, 65_535).await;
    let (say, said) = tokio::sync::mpsc::channel(1);
    let mut request = get("/room.Echo/Talk");
    *request.method_mut() = Method::POST;
    request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    let response = sender.send_request(request.map(|_| Body::new(Relay(said))));
    say.send(Frame::data(Bytes::from_static(b"one"))).await.unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/grpc");
    let mut body = response.into_body();
    for piece in ["one", "two", "three"] {
        if piece != "one" {
            say.send(Frame::data(Bytes::from_static(piece.as_bytes()))).await.unwrap();
        }
        let frame = soon(std::future::poll_fn(|context| {
            hyper::body::Body::poll_frame(std::pin::Pin::new(&mut body), context)
        }))
        .await;
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), piece);
    }
    drop(say);
    let (rest, trailers) = soon(whole(Body::new(body))).await.unwrap();
    assert!(rest.is_empty());
    assert_eq!(trailers["grpc-status"], "0");
}

/// A body whose frames come over a channel.
struct Relay(tokio::sync::mpsc::Receiver<Frame<Bytes>>);

impl hyper::body::Body for Relay {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|frame| frame.map(Ok))
    }
}

#[tokio::test]
async fn a_client_with_http_1_reaches_a_service_that_speaks_h2c_and_one_that_does_not_is_said() {
    let room = Room::open().await;
    let address = room.listen(H2C, &room.site).await;
    let mut client = Client::over(dial(address, None).await.unwrap()).await;
    assert_eq!(soon(client.get("/")).await.status, StatusCode::SERVICE_UNAVAILABLE);
    h2c_service(&room, |request| async move { Response::new(Body::from(request.uri().to_string())) });
    let answer = soon(client.get("/a")).await;
    assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"http://room.example/a"[..]));

    let room = Room::open().await;
    let address = room.listen(H2C, &room.site).await;
    room.workload(mirror);
    let running =
        r#"{"state":"running","missing":[],"pid":9,"restarts":0,"since":"2026-01-01T00:00:00.000Z"}"#;
    std::fs::write(room.path("services/web/status.json"), running).unwrap();
    let mut client = Client::over(dial(address, None).await.unwrap()).await;
    assert_eq!(soon(client.get("/")).await.status, StatusCode::BAD_GATEWAY);
}

// Bytes.

/// A service that greets and then repeats what it hears.
fn greeting(room: &Room) {
    let listener = UnixListener::bind(room.path("services/web/port-8080")).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let _ = stream.write_all(b"220 hello\r\n").await;
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
}

async fn greeted(stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin)) {
    let mut heard = [0; 11];
    soon(stream.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"220 hello\r\n");
    stream.write_all(b"\0ping\xff").await.unwrap();
    let mut heard = [0; 6];
    soon(stream.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"\0ping\xff");
}

/// Signs in as an operator for the connection itself; `None` when that is refused.
async fn signed_in(address: SocketAddr, key: &SigningKey) -> Option<TokioIo<hyper::upgrade::Upgraded>> {
    let stream = offering(address, &[super::tls::SIGNS_IN]).await;
    let binding =
        stream.get_ref().1.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(b"")).unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let request = Request::post(format!("{PREFIX}{SIGN_IN}"))
        .header(header::HOST, "x")
        .header(header::AUTHORIZATION, authorization(key, &binding))
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, SIGN_IN_UPGRADE)
        .body(Body::empty())
        .unwrap();
    let mut response = soon(sender.send_request(request)).await.unwrap();
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return None;
    }
    Some(TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap()))
}

#[tokio::test]
async fn bytes_are_carried_for_operators_who_have_signed_in_and_for_nobody_else() {
    let room = Room::open().await;
    greeting(&room);
    let address = room.listen(BYTES_FOR_OPERATORS, &room.site).await;
    let mut stream = signed_in(address, &operator()).await.unwrap();
    greeted(&mut stream).await;
    assert!(signed_in(address, &SigningKey::from_bytes(&[6; 32])).await.is_none());

    // Whatever a stranger says, the service does not hear of it; evidence is there as at every port.
    let mut stranger = dial(address, None).await.unwrap();
    stranger.write_all(b"\0\0\0\x08\x04\xd2\x16\x2f").await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(stranger.read_to_end(&mut answer)).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
    let mut client = Client::over(dial(address, None).await.unwrap()).await;
    assert_eq!(soon(client.get("/")).await.status, StatusCode::NOT_FOUND);
    assert_eq!(soon(client.get(&format!("{PREFIX}/evidence"))).await.status, StatusCode::OK);
}

#[tokio::test]
async fn who_signs_in_for_the_connection_may_go_on_with_either_version_of_http() {
    let room = Room::open().await;
    room.workload(mirror);
    let address = room.listen(FOR_OPERATORS, &room.site).await;
    let stream = signed_in(address, &operator()).await.unwrap();
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let seen = json(soon(sender.send_request(get("/"))).await.unwrap()).await;
    assert!(seen["headers"].to_string().contains("operator:alice"), "{seen}");

    let stream = signed_in(address, &operator()).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/").header(header::HOST, "x").body(Body::empty()).unwrap();
    let seen = json(soon(sender.send_request(request)).await.unwrap()).await;
    assert!(seen["headers"].to_string().contains("operator:alice"), "{seen}");
}

#[tokio::test]
async fn bytes_for_everybody_are_carried_in_the_attested_tls_or_as_they_come() {
    let room = Room::open().await;
    greeting(&room);
    let address = room.listen(BYTES, &room.site).await;
    greeted(&mut dial(address, None).await.unwrap()).await;
    // An operator may sign in there all the same, and the service hears nothing of it.
    greeted(&mut signed_in(address, &operator()).await.unwrap()).await;
    let passed = room.listen(PASSED, &room.site).await;
    greeted(&mut TcpStream::connect(passed).await.unwrap()).await;
    the_appliance_answers(&room).await;
}

#[tokio::test]
async fn connections_without_end_at_one_port_keep_nobody_out_of_it_or_of_another() {
    let room = Room::open().await;
    greeting(&room);
    let address = room.listen(PASSED, &room.site).await;
    let mut held = Vec::new();
    for _ in 0..super::tcp::CONNECTIONS + 20 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        greeted(&mut stream).await;
        held.push(stream);
    }
    assert_eq!(super::attacks::ended(&mut held).await, 20, "the longest silent ones");
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
    let mut other = socket.connect(address).await.unwrap();
    greeted(&mut other).await;
    for _ in 0..10 {
        held.push(TcpStream::connect(address).await.unwrap());
        greeted(held.last_mut().unwrap()).await;
    }
    greeted_again(&mut other).await;
    the_appliance_answers(&room).await;
}

async fn greeted_again(stream: &mut TcpStream) {
    stream.write_all(b"still").await.unwrap();
    let mut heard = [0; 5];
    soon(stream.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"still");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_clients_of_websockets_and_grpc_reach_real_services() {
    let room = Room::open().await;
    let calls = room.listen(H2C, &room.site).await;
    let shown = room.dial().await.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let shown = cofferdam_protocol::base64::encode(&shown);
    let certificate = format!("-----BEGIN CERTIFICATE-----\n{shown}\n-----END CERTIFICATE-----\n");
    std::fs::write(room.path("certificate.pem"), certificate).unwrap();
    let mut clients = tokio::process::Command::new("/usr/bin/python3");
    clients
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../ci/tests/clients.py"))
        .args([room.path("services/web/port-8080"), room.path("certificate.pem")])
        .args([room.address.port().to_string(), calls.port().to_string()])
        .kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(180), clients.output()).await.unwrap().unwrap();
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.ends_with("all\n"), "{said}{failed}");
}
