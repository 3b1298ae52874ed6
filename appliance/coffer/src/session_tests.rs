//! The session under paused time: a GitHub that hangs, refuses, lies and returns.

use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::*;

const MINUTE: u64 = 60;
/// The evidence of these tests: a quarter of an hour, renewed after ten minutes.
const VALIDITY: u64 = 15 * MINUTE;
const RENEW: u64 = 10 * MINUTE;
const BEGIN: u64 = 1_800_000_000;
const LIMIT: Duration = Duration::from_secs(60);

/// How verifying goes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weather {
    Good,
    /// No answer, ever.
    Hangs,
    /// An answer that is a failure with this code.
    Fails(Code),
    /// The newest attestation is for another key than the one that answers.
    Rebooted,
    /// A rate limit: nobody is to ask again for so many seconds.
    Limited(u64),
    /// Good, but only for so many seconds.
    Short(u64),
}

struct Sky {
    begun: Instant,
    weather: Mutex<Weather>,
    key: Mutex<String>,
    attested: Mutex<String>,
    said: Mutex<Vec<(u64, String)>>,
    verified: AtomicUsize,
    /// Whether the peer wants to know who is calling.
    curious: AtomicBool,
    /// To how many connections it was said, or would have been.
    introduced: AtomicUsize,
}

impl Sky {
    fn minute(&self) -> f64 {
        self.begun.elapsed().as_secs_f64() / 60.0
    }

    fn set(&self, weather: Weather) {
        *self.weather.lock().unwrap() = weather;
    }

    fn said(&self, words: &str) -> Vec<u64> {
        let said = self.said.lock().unwrap();
        said.iter().filter(|(_, text)| text.contains(words)).map(|(at, _)| *at).collect()
    }
}

struct Fake {
    sky: Arc<Sky>,
    incoming: tokio::sync::Mutex<mpsc::Receiver<Pipe>>,
}

struct Pipe {
    stream: DuplexStream,
    cut: Arc<AtomicBool>,
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Local for Pipe {
    fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }
}

fn peer(key: &str, now: u64) -> Peer {
    Peer {
        endpoint: "appliance:443".parse().unwrap(),
        tls_key: Digest::of(key),
        renew_unix: now + RENEW,
        expires_unix: now + VALIDITY,
        simulated: false,
    }
}

impl World for Fake {
    type Local = Pipe;
    type Remote = DuplexStream;

    fn now(&self) -> u64 {
        BEGIN + self.sky.begun.elapsed().as_secs()
    }

    async fn accept(&self) -> io::Result<Pipe> {
        match self.incoming.lock().await.recv().await {
            Some(pipe) => Ok(pipe),
            None => std::future::pending().await,
        }
    }

    async fn verify(&self, _last: &Peer) -> Outcome<Peer> {
        self.sky.verified.fetch_add(1, Ordering::Relaxed);
        let weather = *self.sky.weather.lock().unwrap();
        match weather {
            Weather::Good => Ok(peer(&self.sky.attested.lock().unwrap(), self.now())),
            Weather::Hangs => std::future::pending().await,
            Weather::Fails(code) => Err(Failure::new(code, "bad weather")),
            Weather::Rebooted => Err(Failure::rejected("tls_key").after_reboot()),
            Weather::Limited(seconds) => Err(Failure {
                retry_after: Some(Duration::from_secs(seconds)),
                ..Failure::could_not_check("asked too often")
            }),
            Weather::Short(seconds) => Ok(Peer {
                renew_unix: self.now(),
                expires_unix: self.now() + seconds,
                ..peer(&self.sky.attested.lock().unwrap(), self.now())
            }),
        }
    }

    /// Answers each byte with the same byte.
    async fn dial(&self, _endpoint: &Endpoint) -> Outcome<(DuplexStream, Digest)> {
        let (near, mut far) = duplex(64);
        tokio::spawn(async move {
            let mut byte = [0];
            while far.read_exact(&mut byte).await.is_ok() && far.write_all(&byte).await.is_ok() {}
        });
        Ok((near, Digest::of(self.sky.key.lock().unwrap().as_bytes())))
    }

    async fn introduce(&self, remote: DuplexStream, _endpoint: &Endpoint) -> Outcome<Option<DuplexStream>> {
        self.sky.introduced.fetch_add(1, Ordering::Relaxed);
        // As the real one: who did not want to know is not told again.
        Ok(self.sky.curious.swap(true, Ordering::Relaxed).then_some(remote))
    }

    fn warn(&self, text: &str) {
        self.sky.said.lock().unwrap().push((self.now() - BEGIN, text.to_owned()));
    }

    fn failed(&self, failure: &Failure) {
        self.warn(&format!("error: {failure}"));
    }
}

/// A session with its sky and its door.
struct Session {
    sky: Arc<Sky>,
    door: mpsc::Sender<Pipe>,
    running: JoinHandle<Failure>,
}

impl Session {
    fn start() -> Self {
        let (door, incoming) = mpsc::channel(64);
        let sky = Arc::new(Sky {
            begun: Instant::now(),
            weather: Mutex::new(Weather::Good),
            key: Mutex::new("one".to_owned()),
            attested: Mutex::new("one".to_owned()),
            said: Mutex::default(),
            verified: AtomicUsize::new(0),
            curious: AtomicBool::new(true),
            introduced: AtomicUsize::new(0),
        });
        let world = Fake { sky: Arc::clone(&sky), incoming: tokio::sync::Mutex::new(incoming) };
        let running = tokio::spawn(serve(world, peer("one", BEGIN), LIMIT));
        Self { sky, door, running }
    }

    /// A connection, as a client has it.
    async fn connect(&self) -> Option<Client> {
        let (near, far) = duplex(64);
        let cut = Arc::new(AtomicBool::new(false));
        self.door.send(Pipe { stream: far, cut: Arc::clone(&cut) }).await.ok()?;
        Some(Client { stream: near, cut })
    }

    /// Whether one request on a connection of its own is answered.
    async fn request(&self) -> bool {
        match self.connect().await {
            Some(mut client) => client.request().await,
            None => false,
        }
    }

    /// Until this minute since the beginning.
    async fn at(&self, minute: u64) {
        sleep_until(self.sky.begun + Duration::from_secs(minute * MINUTE)).await;
    }
}

struct Client {
    stream: DuplexStream,
    cut: Arc<AtomicBool>,
}

impl Client {
    async fn request(&mut self) -> bool {
        let mut answer = [0];
        self.stream.write_all(b"?").await.is_ok()
            && self.stream.read_exact(&mut answer).await.is_ok()
            && answer == *b"?"
    }

    async fn ended(&mut self) -> bool {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).await.is_ok() && self.cut.load(Ordering::Relaxed)
    }
}

/// Sets the weather at each minute that is named, and asks every two seconds for half an hour.
async fn half_an_hour(plan: &[(u64, Weather)]) -> (Session, Vec<(f64, bool)>) {
    let session = Session::start();
    let mut answers = Vec::new();
    for second in (0..30 * MINUTE).step_by(2) {
        sleep_until(session.sky.begun + Duration::from_secs(second)).await;
        if let Some((_, weather)) = plan.iter().rev().find(|(minute, _)| minute * MINUTE <= second) {
            session.sky.set(*weather);
        }
        let at = session.sky.minute();
        answers.push((at, session.request().await));
    }
    (session, answers)
}

#[tokio::test(start_paused = true)]
async fn who_is_calling_is_said_to_the_attested_peer_alone_and_a_peer_that_does_not_care_is_served_all_the_same()
 {
    let session = Session::start();
    session.sky.curious.store(false, Ordering::Relaxed);
    assert!(session.request().await, "on another connection than the one that was spent");
    assert_eq!(session.sky.introduced.load(Ordering::Relaxed), 2);
    "two".clone_into(&mut session.sky.key.lock().unwrap());
    assert!(!session.request().await);
    assert_eq!(session.sky.introduced.load(Ordering::Relaxed), 2, "nothing is said to another key");
}

#[tokio::test(start_paused = true)]
async fn no_request_is_lost_to_half_an_hour_of_mere_outages_within_the_validity() {
    let (session, answers) = half_an_hour(&[
        (9, Weather::Hangs),
        (12, Weather::Fails(Code::CouldNotCheck)),
        (14, Weather::Good),
        (20, Weather::Fails(Code::CouldNotCheck)),
        (25, Weather::Hangs),
        (27, Weather::Good),
    ])
    .await;
    assert_eq!(answers.len(), 900);
    let lost: Vec<_> = answers.iter().filter(|(_, served)| !served).collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert!(session.sky.verified.load(Ordering::Relaxed) >= 5, "the renewals were tried");
    assert!(!session.running.is_finished());
}

#[tokio::test(start_paused = true)]
async fn no_request_is_served_after_a_refusal_whatever_follows() {
    // Hangs, then lies, then returns as if nothing had been.
    let (session, answers) =
        half_an_hour(&[(9, Weather::Hangs), (12, Weather::Fails(Code::Rejected)), (14, Weather::Good)]).await;
    let failure = session.running.await.unwrap();
    assert_eq!((failure.code, failure.message.as_str()), (Code::Rejected, "bad weather"));
    let last = answers.iter().filter(|(_, served)| *served).map(|(at, _)| *at).fold(0.0, f64::max);
    assert!((12.0..13.5).contains(&last), "{last}");
    for (at, served) in answers {
        assert_eq!(served, at <= last, "{at}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_refusal_ends_the_session_and_its_streams_and_what_may_pass_does_not() {
    for code in [Code::Failed, Code::Usage, Code::Rejected, Code::NotAllowed, Code::Policy] {
        let session = Session::start();
        let mut open = session.connect().await.unwrap();
        assert!(open.request().await);
        session.sky.set(Weather::Fails(code));
        session.at(9).await;
        assert!(open.request().await && session.request().await);
        let failure = session.running.await.unwrap();
        assert_eq!(failure.code, code);
        assert!((session.sky.minute() - 10.0).abs() < 0.1, "{}", session.sky.minute());
        assert!(open.ended().await, "the stream is cut, not ended");
    }
    for weather in [Weather::Fails(Code::CouldNotCheck), Weather::Fails(Code::NotReady), Weather::Rebooted] {
        let session = Session::start();
        session.sky.set(weather);
        session.at(14).await;
        assert!(session.request().await);
    }
}

#[tokio::test(start_paused = true)]
async fn an_appliance_that_boots_again_gets_nothing_until_its_new_key_is_attested_and_is_served_then() {
    let session = Session::start();
    session.at(1).await;
    *session.sky.key.lock().unwrap() = "two".to_owned();
    for weather in [Weather::Fails(Code::NotReady), Weather::Rebooted] {
        session.sky.set(weather);
        for _ in 0..60 {
            assert!(!session.request().await, "{weather:?}");
            sleep(Duration::from_secs(1)).await;
        }
    }
    assert!(session.sky.verified.load(Ordering::Relaxed) <= 120 / 5 + 1, "asks every five seconds at most");
    session.sky.set(Weather::Good);
    *session.sky.attested.lock().unwrap() = "two".to_owned();
    // The last request has asked for the evidence.
    sleep(FIRST_PAUSE * 2).await;
    assert!(session.request().await);
    // Longer than the evidence for the old key counts.
    session.sky.set(Weather::Rebooted);
    *session.sky.key.lock().unwrap() = "three".to_owned();
    session.at(30).await;
    assert!(!session.request().await && !session.running.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_github_that_hangs_delays_no_client() {
    let session = Session::start();
    session.sky.set(Weather::Hangs);
    sleep_until(session.sky.begun + Duration::from_secs(10 * MINUTE + 5)).await;
    assert_eq!(session.sky.verified.load(Ordering::Relaxed), 1, "the renewal hangs");
    let before = Instant::now();
    let four = [session.request(), session.request(), session.request(), session.request()];
    let [a, b, c, d] = four;
    let (a, b, c, d) = tokio::join!(a, b, c, d);
    assert!(a && b && c && d);
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn streams_end_when_their_evidence_expires_and_a_warning_comes_before() {
    let session = Session::start();
    session.sky.set(Weather::Fails(Code::CouldNotCheck));
    session.at(5).await;
    let mut open = session.connect().await.unwrap();
    assert!(open.request().await);
    sleep_until(session.sky.begun + Duration::from_secs(VALIDITY - 1)).await;
    assert!(open.request().await && session.request().await, "to the last second");
    let warnings = session.sky.said("expires in");
    assert_eq!(warnings, [VALIDITY - WARNING_S], "{:?}", session.sky.said);
    assert_eq!(session.sky.said("1 open streams end then").len(), 1);
    sleep_until(session.sky.begun + Duration::from_secs(VALIDITY + 1)).await;
    assert!(open.ended().await);
    assert!(!session.request().await);
    assert!(!session.sky.said("has expired").is_empty());
    // It comes back by itself.
    session.sky.set(Weather::Good);
    sleep(LONGEST_PAUSE + CLOCK_CHECK).await;
    assert!(session.request().await);
    assert!(!session.running.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_warning_comes_also_while_a_renewal_hangs() {
    let session = Session::start();
    session.sky.set(Weather::Hangs);
    session.at(15).await;
    assert_eq!(session.sky.said("expires in").len(), 1, "{:?}", session.sky.said);
}

#[tokio::test(start_paused = true)]
async fn a_stream_lives_on_evidence_for_its_own_key() {
    let session = Session::start();
    let mut open = session.connect().await.unwrap();
    for minute in 1..30 {
        session.at(minute).await;
        assert!(open.request().await, "renewed, in minute {minute}");
    }
    // Renewed at 10, 20 and 30; then the appliance comes back with another key.
    session.at(31).await;
    for key in [&session.sky.key, &session.sky.attested] {
        *key.lock().unwrap() = "two".to_owned();
    }
    session.at(44).await;
    assert!(open.request().await);
    assert_eq!(session.sky.said("has another key now").len(), 1, "{:?}", session.sky.said);
    session.at(46).await;
    assert!(open.ended().await, "the evidence of minute 30 is over");
    assert!(session.request().await, "with the new key");
}

#[tokio::test(start_paused = true)]
async fn another_key_at_the_endpoint_is_verified_at_once_and_served_only_then() {
    let session = Session::start();
    session.at(1).await;
    *session.sky.key.lock().unwrap() = "two".to_owned();
    *session.sky.attested.lock().unwrap() = "two".to_owned();
    assert!(!session.request().await, "not attested yet");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(session.sky.verified.load(Ordering::Relaxed), 1);
    assert!(session.request().await);
    // Somebody who cannot prove it is met once in a while, and asks for no more than that.
    *session.sky.key.lock().unwrap() = "thief".to_owned();
    for _ in 0..100 {
        assert!(!session.request().await);
        sleep(Duration::from_millis(100)).await;
    }
    assert!(session.sky.verified.load(Ordering::Relaxed) <= 4);
    session.sky.set(Weather::Fails(Code::Rejected));
    assert!(!session.request().await);
    assert_eq!(session.running.await.unwrap().code, Code::Rejected);
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_is_kept_across_renewals_also_when_another_key_is_met() {
    let session = Session::start();
    session.sky.set(Weather::Limited(17 * MINUTE));
    let verified = || session.sky.verified.load(Ordering::Relaxed);
    session.at(11).await;
    assert_eq!(verified(), 1, "the renewal of minute 10");
    session.sky.set(Weather::Good);
    assert!(session.request().await, "on the last evidence");
    // Neither time nor a stranger at the endpoint makes it ask before minute 27.
    *session.sky.key.lock().unwrap() = "two".to_owned();
    assert!(!session.request().await);
    *session.sky.key.lock().unwrap() = "one".to_owned();
    session.at(26).await;
    assert_eq!(verified(), 1);
    assert!(!session.request().await, "the evidence has expired");
    sleep_until(session.sky.begun + Duration::from_secs(27 * MINUTE) + CLOCK_CHECK).await;
    assert_eq!(verified(), 2);
    assert!(session.request().await);
    // A wait that is shorter than the pauses changes nothing.
    session.sky.set(Weather::Limited(1));
    session.at(41).await;
    assert!((5..=9).contains(&(verified() - 2)), "{}", verified());
}

#[tokio::test(start_paused = true)]
async fn renewals_that_succeed_with_short_evidence_keep_a_least_pause() {
    let session = Session::start();
    session.at(9).await;
    session.sky.set(Weather::Short(8));
    session.at(12).await;
    // From minute 10 on, every five seconds.
    let verified = session.sky.verified.load(Ordering::Relaxed);
    assert!((20..=25).contains(&verified), "{verified}");
    assert!(session.request().await);
}
