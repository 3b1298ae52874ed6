//! Real sockets on both sides: a service on TCP, the shim's Unix socket, a caller there.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;

use super::*;
use crate::relay::{self, Connections};

const SECRET: &str = "correct-horse/battery+9";
const NAME: &str = "secret://app/x/y";
const MASK: &str = "[redacted:secret://app/x/y]";
/// Between two pieces, so that they arrive one after the other.
const PAUSE: Duration = Duration::from_millis(15);
/// For what happens at once on a busy machine.
const LONG: Duration = Duration::from_secs(60);

fn redactor(secret: &str) -> Redactor {
    Redactor::new([(NAME, secret)]).unwrap()
}

/// A service whose answers are redacted, and whoever calls it.
struct Room {
    directory: TempDir,
    answers: Answers,
    /// What the service was asked, a text for each connection.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Room {
    /// A service that has its secrets and does this with each connection.
    async fn with<H, F>(handle: H) -> Self
    where
        H: Fn(TcpStream, Arc<Mutex<Vec<String>>>) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (directory, answers) = (tempfile::tempdir().unwrap(), Answers::default());
        answers.redact_with(redactor(SECRET));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                tokio::spawn(handle(stream, Arc::clone(&heard)));
            }
        });
        let room = Self { directory, answers, asked };
        let connections = Connections::default();
        relay::publish(&room.path("redacted"), port, None, &connections, Some(&room.answers)).unwrap();
        relay::publish(&room.path("plain"), port, None, &connections, None).unwrap();
        room
    }

    /// A service that answers each request with these pieces and hangs up.
    async fn answering<P: AsRef<[u8]>>(pieces: &[P]) -> Self {
        let pieces: Arc<Vec<Vec<u8>>> = Arc::new(pieces.iter().map(|piece| piece.as_ref().into()).collect());
        Self::with(move |mut stream, asked| {
            let pieces = Arc::clone(&pieces);
            async move {
                let head = head(&mut stream).await;
                asked.lock().unwrap().push(head);
                for piece in pieces.iter() {
                    if stream.write_all(piece).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        })
        .await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn dial(&self) -> UnixStream {
        UnixStream::connect(self.path("redacted")).await.unwrap()
    }

    /// All that a caller gets who says this.
    async fn raw(&self, request: impl AsRef<[u8]>) -> String {
        let mut caller = self.dial().await;
        caller.write_all(request.as_ref()).await.unwrap();
        let mut answer = Vec::new();
        // Whoever is hung up on may be told so.
        let _ = timeout(LONG, caller.read_to_end(&mut answer)).await.expect("an end");
        String::from_utf8(answer).unwrap()
    }

    /// The answer to a request that is the only one on its connection.
    async fn ask(&self, request: &str) -> String {
        self.raw(format!("{request}Host: x\r\nConnection: close\r\n\r\n")).await
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// The head of a request.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap().to_lowercase()
}

/// What a caller gets to a plain question from a service that answers so.
async fn answer_of<P: AsRef<[u8]>>(pieces: &[P]) -> String {
    Room::answering(pieces).await.ask("GET / HTTP/1.1\r\n").await
}

/// The chunks of a body put together; panics unless it has its end.
fn body(answer: &str) -> String {
    let (head, mut rest) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.to_lowercase().contains("transfer-encoding: chunked"), "{answer}");
    let mut body = String::new();
    loop {
        let (size, tail) = rest.split_once("\r\n").expect("a size");
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            assert_eq!(tail, "\r\n", "no trailers");
            return body;
        }
        let (piece, tail) = tail.split_at(size);
        body.push_str(piece);
        rest = tail.strip_prefix("\r\n").unwrap();
    }
}

#[tokio::test]
async fn a_secret_is_masked_in_bodies_of_any_framing_and_in_headers() {
    let (half, rest) = SECRET.split_at(9);
    let whole = format!("HTTP/1.1 200 OK\r\nContent-Length: 29\r\n\r\nkey={SECRET}.\n");
    let until_close = format!("HTTP/1.1 200 {SECRET}\r\nX-Key: a {SECRET} b\r\n\r\nkey={half}");
    let chunked =
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-key\r\n\r\nd\r\nkey={half}\r\n");
    let last = format!("e\r\n{rest}\r\n2\r\n.\n\r\n0\r\nx-key: {SECRET}\r\n\r\n");
    let old = format!("HTTP/1.0 200 OK\r\n\r\nkey={SECRET}.\n");
    let until_close_rest = format!("{rest}.\n");
    for pieces in [&[whole.as_str()][..], &[&until_close, &until_close_rest], &[&chunked, &last], &[&old]] {
        let answer = answer_of(pieces).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert_eq!(body(&answer), format!("key={MASK}.\n"));
        let lower = answer.to_lowercase();
        assert!(!lower.contains("content-length") && !lower.contains("trailer"), "{answer}");
    }
    let answer = answer_of(&[until_close.as_str(), rest]).await;
    assert!(answer.contains(&format!("x-key: a {MASK} b\r\n")), "{answer}");
}

#[tokio::test]
async fn a_secret_is_found_wherever_it_is_split() {
    for at in 1..SECRET.len() {
        let (first, second) = SECRET.split_at(at);
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let first = format!("{head}{:x}\r\n{first}\r\n", first.len());
        let second = format!("{:x}\r\n{second}\r\n0\r\n\r\n", second.len());
        assert_eq!(body(&answer_of(&[first, second]).await), MASK, "{at}");
    }
    let bytes: String = SECRET.chars().map(|c| format!("1\r\n{c}\r\n")).collect();
    let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{bytes}0\r\n\r\n");
    assert_eq!(body(&answer_of(&[answer]).await), MASK);
}

#[tokio::test]
async fn what_the_redactor_finds_in_output_it_finds_in_answers() {
    let hex = hex::encode(SECRET);
    let percent = SECRET.replace('/', "%2F").replace('+', "%2B");
    let json = SECRET.replace('/', "\\/").replace('c', "\\u0063");
    for written in [SECRET, &hex, &percent, &json, "Y29ycmVjdC1ob3JzZS9iYXR0ZXJ5Kzk="] {
        let answer = format!(
            "HTTP/1.1 200 OK\r\nSet-Cookie: k={written}\r\nLocation: /?k={written}\r\n\r\n<{written}>"
        );
        let answer = answer_of(&[answer]).await;
        assert_eq!(body(&answer), format!("<{MASK}>"), "{written}");
        assert!(answer.contains(&format!("set-cookie: k={MASK}\r\n")), "{answer}");
        assert!(answer.contains(&format!("location: /?k={MASK}\r\n")), "{answer}");
    }
}

#[tokio::test]
async fn headers_that_hold_for_the_services_body_alone_are_left_out_and_its_tag_is_a_weak_one() {
    let answer = answer_of(&[
        "HTTP/1.1 200 OK\r\nETag: \"a1\"\r\nDigest: sha-256=x\r\nContent-MD5: x\r\nContent-Digest: x\r\nRepr-Digest: x\r\n\
         Accept-Ranges: bytes\r\nContent-Range: bytes 0-1/2\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
         Content-Encoding: Identity\r\nContent-Type: text/plain\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\nok",
    ])
    .await;
    let (head, _) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<&str> = head.lines().skip(1).filter(|line| !line.starts_with("date: ")).collect();
    lines.sort_unstable();
    let left = [
        "connection: close",
        "content-type: text/plain",
        "etag: W/\"a1\"",
        "set-cookie: a=1",
        "set-cookie: b=2",
        "transfer-encoding: chunked",
    ];
    assert_eq!(lines, left);
    let answer = answer_of(&["HTTP/1.1 200 OK\r\nETag: W/\"a1\"\r\nX-Correct: 1\r\n\r\nok"]).await;
    assert!(answer.contains("\r\netag: W/\"a1\"\r\n") && answer.contains("\r\nx-correct: 1\r\n"), "{answer}");
}

#[tokio::test]
async fn a_header_whose_name_is_a_secret_is_left_out() {
    let room = Room::answering(&["HTTP/1.1 200 OK\r\nX-Key-abcdef: 1\r\nX-Other: 2\r\n\r\n"]).await;
    room.answers.redact_with(redactor("key-abcdef"));
    let answer = room.ask("GET / HTTP/1.1\r\n").await;
    assert!(!answer.contains("abcdef") && answer.contains("x-other: 2"), "{answer}");
}

#[tokio::test]
async fn nothing_is_asked_for_that_could_not_be_read() {
    let room = Room::answering(&["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"]).await;
    let answer = room
        .ask("GET /x?y HTTP/1.1\r\nAccept-Encoding: gzip, br\r\nRange: bytes=0-8\r\nIf-Range: \"a\"\r\nTE: trailers\r\nX-Own: kept\r\n")
        .await;
    assert_eq!(body(&answer), "ok");
    let mut asked: Vec<String> = room.asked()[0].lines().map(str::to_owned).collect();
    asked.sort_unstable();
    assert_eq!(asked, ["", "accept-encoding: identity", "get /x?y http/1.1", "host: x", "x-own: kept"]);
}

#[tokio::test]
async fn what_cannot_be_redacted_becomes_an_error_that_says_so() {
    for (head, why) in [
        ("200 OK\r\nContent-Encoding: gzip", "encoded"),
        ("200 OK\r\nContent-Encoding: identity\r\nContent-Encoding: br", "encoded"),
        ("200 OK\r\nContent-Encoding: identity, br", "encoded"),
        ("200 OK\r\nTransfer-Encoding: gzip, chunked", "encoded"),
        ("200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "encoded"),
        ("200 OK\r\nTransfer-Encoding: gzip", "encoded"),
        ("206 Partial Content\r\nContent-Range: bytes 0-1/9", "a part"),
        ("101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket", "another protocol"),
    ] {
        let answer = answer_of(&[format!("HTTP/1.1 {head}\r\n\r\n2\r\nxx\r\n0\r\n\r\n")]).await;
        assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{head}: {answer}");
        let (_, said) = answer.split_once("\r\n\r\n").unwrap();
        let error = ErrorReply::parse(said.as_bytes()).unwrap();
        assert!(error.error.contains(why) && error.hint.as_deref() == Some(HINT), "{head}: {error:?}");
    }
}

#[tokio::test]
async fn a_websocket_never_reaches_the_service() {
    let room = Room::answering(&["HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"]).await;
    for request in [
        "GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n",
        "GET / HTTP/1.1\r\nUpgrade: h2c\r\n",
        "CONNECT x:80 HTTP/1.1\r\n",
    ] {
        let answer = room.ask(request).await;
        assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("WebSocket"), "{answer}");
    }
    assert!(room.asked().is_empty());
}

#[tokio::test]
async fn a_service_that_lies_about_its_length_gains_nothing() {
    let more = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{SECRET}");
    assert_eq!(body(&answer_of(&[more]).await), "ok");
    // Less than it said: the caller sees that the end is not there, and nothing that was held back.
    for framing in ["Content-Length: 99\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n63\r\n"] {
        for sent in [SECRET, SECRET.split_at(12).0] {
            let answer = answer_of(&[format!("HTTP/1.1 200 OK\r\n{framing}long {sent}")]).await;
            assert!(!answer.ends_with("0\r\n\r\n") && !answer.contains("correct"), "{answer}");
        }
    }
}

#[tokio::test]
async fn answers_without_a_body_have_none_and_the_connection_goes_on() {
    let room = Room::with(|mut stream, asked| async move {
        let head = head(&mut stream).await;
        let answer = match head.split(' ').nth(1).unwrap() {
            "/none" => "204 No Content\r\nX: 1\r\n\r\n",
            "/same" => "304 Not Modified\r\nContent-Length: 9\r\nETag: \"a\"\r\n\r\n",
            "/empty" => "200 OK\r\nContent-Length: 0\r\n\r\n",
            "/head" => "200 OK\r\nContent-Length: 12\r\n\r\n",
            _ => "200 OK\r\nContent-Length: 4\r\n\r\nlast",
        };
        asked.lock().unwrap().push(head);
        stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await.unwrap();
        // It waits for the next request, which comes on another connection.
        let _ = stream.read_u8().await;
    })
    .await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let (none, same, empty) = (get("/none"), get("/same"), get("/empty"));
    let last = "GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    // All at once: pipelined.
    let answers = room.raw(format!("{none}{same}HEAD /head HTTP/1.1\r\nHost: x\r\n\r\n{empty}{last}")).await;
    let heads: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).collect();
    let [none, same, head, empty, last] = heads[..] else { panic!("{answers}") };
    for (answer, status) in [(none, "204 "), (same, "304 "), (head, "200 ")] {
        assert!(answer.starts_with(status) && answer.ends_with("\r\n\r\n"), "{answer}");
        assert_eq!(answer.matches("\r\n\r\n").count(), 1, "{answer}");
        assert!(!answer.contains("content-length") && !answer.contains("transfer-encoding"), "{answer}");
    }
    assert!(same.contains("etag: W/\"a\""), "{same}");
    assert!(empty.contains("content-length: 0\r\n") && empty.ends_with("\r\n\r\n"), "{empty}");
    assert_eq!(body(last), "last");
    assert_eq!(room.asked().len(), 5, "a connection for each");
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_is_nobodys() {
    let room = Room::answering(&[
        "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst",
        "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond",
    ])
    .await;
    let request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let answers =
        room.raw(format!("{request}{request}GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3, "{answers}");
    assert!(answers.matches("first").count() == 3 && !answers.contains("second"), "{answers}");
    assert!(!answers.contains("103"), "{answers}");
}

#[tokio::test]
async fn a_request_is_one_request_however_it_is_written() {
    let room = Room::answering(&["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"]).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    // Refused: the service hears nothing.
    for headers in [
        "Content-Length: 0\r\nContent-Length: 36\r\n\r\n",
        "Content-Length: 0, 36\r\n\r\n",
        "Transfer-Encoding: chunked, identity\r\nContent-Length: 0\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n",
        "X: 1\r\n Content-Length: 36\r\n\r\n",
        "Content-Length : 36\r\n\r\n",
        "X: 1\rContent-Length: 36\r\n\r\n",
    ] {
        let answer = room.raw(format!("POST / HTTP/1.1\r\nHost: x\r\n{headers}{smuggled}")).await;
        assert!(!answer.contains(" 200 "), "{headers}: {answer}");
        assert!(room.asked().is_empty(), "{headers}: {:?}", room.asked());
    }
    // Read by the one rule there is, and written anew in the one way there is.
    let both = format!(
        "POST /both HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
    );
    let answer = room.raw(both).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "the connection ends: {answer}");
    let answer = room.raw("GET /bare HTTP/1.1\nHost: x\nConnection: close\n\n").await;
    assert_eq!(body(&answer), "ok");
    let [both, bare] = &room.asked()[..] else { panic!("{:?}", room.asked()) };
    assert!(both.starts_with("post /both http/1.1\r\n") && !both.contains("content-length: 4"), "{both}");
    assert_eq!(bare, "get /bare http/1.1\r\nhost: x\r\naccept-encoding: identity\r\n\r\n");
}

#[tokio::test]
async fn an_answer_is_one_answer_however_it_is_written() {
    for refused in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok\n",
        "HTTP/1.1 200 OK\r\nX: 1\r\n folded\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: 1\rY: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "ok\r\n\r\n",
        SECRET,
    ] {
        assert_eq!(answer_of(&[refused]).await, "", "{refused}");
    }
    let both =
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    assert_eq!(body(&answer_of(&[both]).await), "ok");
    let bare = answer_of(&["HTTP/1.1 200 OK\nX: 1\nContent-Length: 2\n\nok"]).await;
    assert!(bare.contains("\r\nx: 1\r\n") && body(&bare) == "ok", "{bare}");
}

#[tokio::test]
async fn heads_are_bounded_both_ways() {
    let long = "a".repeat(HEAD);
    let room = Room::answering(&["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"]).await;
    let answer = room.ask(&format!("GET / HTTP/1.1\r\nX: {long}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431") && room.asked().is_empty(), "{answer}");
    assert_eq!(answer_of(&[format!("HTTP/1.1 200 OK\r\nX: {long}\r\n\r\nok")]).await, "");
    let nearly = long.split_at(HEAD - 200).0;
    let answer = answer_of(&[format!("HTTP/1.1 200 OK\r\nX: {nearly}\r\n\r\nok")]).await;
    assert!(answer.contains(nearly) && body(&answer) == "ok");
}

#[tokio::test]
async fn nothing_passes_before_there_are_secrets_and_after_they_are_gone() {
    let old = format!("HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n{SECRET} new-pw");
    let room = Room::answering(&[old]).await;
    let mut lasting = room.dial().await;
    let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut first = [0; 4096];
    lasting.write_all(request).await.unwrap();
    assert!(timeout(LONG, lasting.read(&mut first)).await.unwrap().unwrap() > 0);

    room.answers.forget();
    let before = room.asked().len();
    assert_eq!(room.ask("GET / HTTP/1.1\r\n").await, "");
    assert_eq!(room.asked()[before..].concat(), "", "the service is asked nothing");

    room.answers.redact_with(redactor("new-pw"));
    assert_eq!(body(&room.ask("GET / HTTP/1.1\r\n").await), format!("{SECRET} {MASK}"));
}

#[tokio::test]
async fn events_flow_while_a_beginning_is_held_back_and_let_go_after_a_second() {
    let (half, rest) = SECRET.split_at(12);
    let pieces =
        ["data: 1\n\n".to_owned(), "name? co".to_owned(), format!("key {half}"), format!("{rest}\n")];
    let (next, turn) = tokio::sync::mpsc::channel::<()>(8);
    let turn = Arc::new(tokio::sync::Mutex::new(turn));
    let room = Room::with(move |mut stream, _| {
        let (pieces, turn) = (pieces.clone(), Arc::clone(&turn));
        async move {
            head(&mut stream).await;
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            for piece in pieces {
                let _ = turn.lock().await.recv().await;
                stream.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await.unwrap();
            }
            let _ = stream.read_u8().await;
        }
    })
    .await;
    let mut caller = room.dial().await;
    caller.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    for (tail, held) in
        [("data: 1\n\n\r\n", false), ("co\r\n", true), ("key \r\n", false), ("{MASK}\n\r\n", false)]
    {
        let tail = tail.replace("{MASK}", MASK);
        let started = Instant::now();
        next.send(()).await.unwrap();
        while !seen.ends_with(&tail) {
            let count = timeout(LONG, caller.read(&mut buffer)).await.expect(&tail).unwrap();
            assert!(count > 0, "{seen}");
            seen.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        assert_eq!(
            started.elapsed() >= IDLE - Duration::from_millis(50),
            held,
            "{tail}: {:?}",
            started.elapsed()
        );
    }
    // Half a secret is held back for as long as there may be a rest.
    assert!(!seen.contains(half), "{seen}");
}

#[tokio::test]
async fn a_request_has_its_body_whole_and_long_answers_flow_both_ways_at_once() {
    let room = Room::with(|mut stream, asked| async move {
        let head = head(&mut stream).await;
        asked.lock().unwrap().push(head);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            if stream.write_all(&buffer[..count]).await.is_err() || buffer[..count].ends_with(b"end") {
                return;
            }
        }
    })
    .await;
    let text = format!("{}{SECRET}{}end", "a".repeat(300_000), "b".repeat(300_000));
    let expected = text.replace(SECRET, MASK);
    let mut caller = room.dial().await;
    let (mut reader, mut writer) = caller.split();
    let head =
        format!("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", text.len());
    let mut answer = String::new();
    let send = async {
        writer.write_all(head.as_bytes()).await.unwrap();
        // The rest of a body for whoever has its answer may be refused.
        let _ = writer.write_all(text.as_bytes()).await;
    };
    let (_, read) = tokio::join!(send, timeout(LONG, reader.read_to_string(&mut answer)));
    read.expect("an end").unwrap();
    assert!(body(&answer) == expected, "{} bytes", answer.len());
    assert!(room.asked()[0].contains(&format!("content-length: {}\r\n", text.len())));
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_its_request() {
    let (told, mut ended) = tokio::sync::mpsc::channel(1);
    let room = Room::with(move |mut stream, _| {
        let told = told.clone();
        async move {
            head(&mut stream).await;
            // Never answers, and sees the other side go.
            let end = stream.read(&mut [0]).await;
            told.send(matches!(end, Ok(0) | Err(_))).await.unwrap();
        }
    })
    .await;
    let mut caller = room.dial().await;
    caller.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    tokio::time::sleep(PAUSE * 10).await;
    drop(caller);
    assert_eq!(timeout(LONG, ended.recv()).await.expect("it is told"), Some(true));
}

#[tokio::test]
async fn what_is_held_back_of_an_answer_is_bounded_whatever_the_service_says() {
    // All but the last letter, each with the longest that may stand between two of them, again and again.
    let gap = format!("{}\u{1b}[{}m", "\r\n".repeat(64), "1".repeat(125));
    let begun: String =
        SECRET.chars().take(SECRET.len() - 1).flat_map(|letter| [letter.to_string(), gap.clone()]).collect();
    let said = format!("{begun}!").repeat(100) + &begun;
    let text = said.clone();
    let room = Room::with(move |mut stream, _| {
        let text = text.clone();
        async move {
            head(&mut stream).await;
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n{text}");
            stream.write_all(answer.as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        }
    })
    .await;
    let mut caller = room.dial().await;
    caller.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let (mut got, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    let passed = |got: &[u8]| {
        let body = got.windows(4).position(|end| end == b"\r\n\r\n").map_or(got.len(), |end| end + 4);
        got.len() - body
    };
    // The service says no more, and does not end either.
    while passed(&got) + cofferdam_redact::MAX_HELD < said.len() {
        let count =
            timeout(LONG, caller.read(&mut buffer)).await.expect("all but what may be held back").unwrap();
        assert!(count > 0, "it does not end");
        got.extend_from_slice(&buffer[..count]);
    }
    assert!(!got.windows(4).any(|word| word == b"[red"), "no secret was there");
}

#[tokio::test]
async fn a_port_that_redacts_and_one_that_does_not_stay_apart() {
    let room = Room::answering(&[format!("HTTP/1.1 200 OK\r\n\r\n<{SECRET}>")]).await;
    for _ in 0..4 {
        let mut caller = UnixStream::connect(room.path("plain")).await.unwrap();
        caller.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut plain = String::new();
        caller.read_to_string(&mut plain).await.unwrap();
        assert!(plain.ends_with(&format!("<{SECRET}>")), "{plain}");
        assert_eq!(body(&room.ask("GET / HTTP/1.1\r\n").await), format!("<{MASK}>"));
    }
}

#[tokio::test]
async fn the_documents_have_the_bounds_of_the_code() {
    let of = |count: usize| format!("HTTP/1.1 200 OK\r\n{}\r\nok", "X: 1\r\n".repeat(count));
    assert_eq!(body(&answer_of(&[of(100)]).await), "ok");
    assert_eq!(answer_of(&[of(101)]).await, "");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/network.md");
    let said = format!("Heads have at most {} KiB and 100 headers", HEAD >> 10);
    assert!(std::fs::read_to_string(path).unwrap().contains(&said), "{said}");
}
