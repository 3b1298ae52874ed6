//! A client of certificate authorities that speak ACME (RFC 8555), as far as one certificate with proofs over TLS takes it.
//!
//! The authority is believed as little as anybody outside: it is asked at the origin of its directory only, each answer has a bound and
//! the media type that it has to have, no redirect is followed, and one order takes so many requests and no more.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use axum::http::{HeaderMap, Method, header};
use cofferdam_attest::ratls::{self, RatlsError};
use cofferdam_protocol::certificate::{Challenge, MAX_CHAIN};
use cofferdam_protocol::json::{self, JsonError};
use cofferdam_protocol::{Digest, HttpsUrl, Thumbprint, Timestamp, base64, shorten};
use reqwest::{Client, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::web::{self, WebError};
use crate::roles::certificate::of_authority;
use crate::roles::clock;

/// Largest answer in bytes that is not a chain of certificates.
const MAX_ANSWER: usize = 32 * 1024;

/// Requests of one attempt: an account, an order, three for each of eight names, and patience for the rest.
const REQUESTS: u32 = 150;

/// How often one request is sent again because its nonce was not good (RFC 8555 §6.5).
const NONCES: u32 = 3;

/// Longest nonce and token in characters.
const MAX_WORD: usize = 256;

/// Longest part of an authority's own words in characters.
const MAX_WORDS: usize = 300;

/// Seconds between two looks at an order.
const LOOK_AFTER: u64 = 2;

/// How long the authority may let one look wait, in seconds.
const MOST_BETWEEN: u64 = 30;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcmeError {
    /// No answer, or one that is too large.
    #[error(transparent)]
    Web(#[from] WebError),
    /// The authority says why.
    #[error("the authority answers {status}: {words}")]
    Problem {
        /// Its HTTP status.
        status: StatusCode,
        /// The kind of problem, without the prefix that all have, and what it says about it.
        words: String,
        /// Seconds after which it wants to be asked again.
        retry_after: Option<u64>,
        /// Whether it is about too many requests.
        limited: bool,
        /// Whether it is about the nonce.
        nonce: bool,
    },
    /// An answer that is not what was asked for.
    #[error("the authority's answer about {0} is not of its media type")]
    MediaType(&'static str),
    /// An answer of another shape.
    #[error("the authority's answer about {0} cannot be read")]
    Shape(&'static str, #[source] JsonError),
    /// Something that has to be in an answer.
    #[error("the authority's answer has no {0}, or not a usable one")]
    Missing(&'static str),
    /// A URL of somebody else.
    #[error("the authority sends to {0}, which is not at its directory's origin")]
    Elsewhere(String),
    /// It asks for another proof, or about another name.
    #[error("the authority does not ask for a proof over TLS (tls-alpn-01) of {0}")]
    NoChallenge(String),
    /// The proof failed.
    #[error("the authority could not check {name}: {words}")]
    Refused {
        /// The name.
        name: String,
        /// Its reason.
        words: String,
    },
    /// The order ended otherwise.
    #[error("the order is {0}")]
    Order(String),
    /// It goes round in circles.
    #[error("the authority takes more than {REQUESTS} requests")]
    Endless,
    /// The account's key.
    #[error("the account's key is not usable")]
    Key(#[from] RatlsError),
    /// A signature could not be made.
    #[error("cannot sign")]
    Sign,
    /// A request could not be written.
    #[error("cannot write a request")]
    Write(#[source] JsonError),
}

impl AcmeError {
    /// Seconds before which the authority is not to be asked again, if it says so.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Problem { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether it says that it was asked too often.
    pub(crate) fn is_limit(&self) -> bool {
        matches!(self, Self::Problem { limited: true, .. })
    }
}

/// The key of the account.
pub(crate) struct AccountKey {
    pair: EcdsaKeyPair,
    jwk: Value,
    thumbprint: Thumbprint,
}

impl AccountKey {
    /// A P-256 key from its PKCS#8 encoding.
    ///
    /// # Errors
    ///
    /// [`AcmeError`] when it is none.
    pub(crate) fn new(pkcs8: &[u8]) -> Result<Self, AcmeError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8)
            .map_err(|_| AcmeError::Key(RatlsError::Key))?;
        let jwk = serde_json::from_str(&ratls::jwk(pkcs8)?).map_err(|_| AcmeError::Key(RatlsError::Key))?;
        Ok(Self { pair, jwk, thumbprint: ratls::thumbprint(pkcs8)? })
    }

    /// A signed request (RFC 8555 §6.2): flattened JWS.
    fn sign(
        &self,
        account: Option<&str>,
        nonce: &str,
        url: &str,
        payload: &str,
    ) -> Result<Vec<u8>, AcmeError> {
        let header = match account {
            Some(account) => json!({ "alg": "ES256", "kid": account, "nonce": nonce, "url": url }),
            None => json!({ "alg": "ES256", "jwk": self.jwk, "nonce": nonce, "url": url }),
        };
        let (header, payload) = (base64::encode_url(header.to_string()), base64::encode_url(payload));
        let signed = self.pair.sign(&SystemRandom::new(), format!("{header}.{payload}").as_bytes());
        let signature = base64::encode_url(signed.map_err(|_| AcmeError::Sign)?);
        let body = json!({ "protected": header, "payload": payload, "signature": signature });
        json::to_vec(&body).map_err(AcmeError::Write)
    }
}

/// RFC 8555 §7.1.1.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Directory {
    new_nonce: String,
    new_account: String,
    new_order: String,
}

/// RFC 8555 §7.1.3.
#[derive(Debug, Serialize, Deserialize)]
struct OrderState {
    status: String,
    #[serde(default)]
    error: Option<Problem>,
    #[serde(default)]
    authorizations: Vec<String>,
    finalize: String,
    #[serde(default)]
    certificate: Option<String>,
}

/// RFC 8555 §7.1.4.
#[derive(Debug, Serialize, Deserialize)]
struct Authorization {
    identifier: Identifier,
    status: String,
    #[serde(default)]
    challenges: Vec<Asked>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Identifier {
    #[serde(rename = "type")]
    kind: String,
    value: String,
}

/// RFC 8555 §7.1.5.
#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    #[serde(rename = "type")]
    kind: String,
    url: String,
    #[serde(default)]
    token: String,
    #[serde(default)]
    error: Option<Problem>,
}

/// RFC 7807.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Problem {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    detail: String,
}

impl Problem {
    fn words(&self) -> String {
        let kind = self.kind.strip_prefix("urn:ietf:params:acme:error:").unwrap_or(&self.kind);
        format!("{}: {}", shorten(kind, 60), shorten(&self.detail, MAX_WORDS))
    }
}

/// What has to be shown for an order, and whom to tell when it is.
#[derive(Debug)]
pub(crate) struct Order {
    url: String,
    /// What the authority will ask for, of the names for which it does not know already.
    pub(crate) challenges: Vec<Challenge>,
    ready: Vec<String>,
    authorizations: Vec<String>,
}

/// One attempt with an authority.
pub(crate) struct Acme<'a> {
    client: Client,
    origin: &'a HttpsUrl,
    key: &'a AccountKey,
    directory: Directory,
    account: Option<String>,
    nonce: Option<String>,
    left: u32,
    /// Between two looks at an order, in seconds.
    patience: u64,
}

/// What came back.
struct Answer {
    headers: HeaderMap,
    body: Vec<u8>,
}

impl<'a> Acme<'a> {
    /// Reads the authority's directory.
    ///
    /// # Errors
    ///
    /// [`AcmeError`].
    pub(crate) async fn open(
        client: Client,
        directory: &'a HttpsUrl,
        key: &'a AccountKey,
    ) -> Result<Self, AcmeError> {
        let empty =
            Directory { new_nonce: String::new(), new_account: String::new(), new_order: String::new() };
        let (origin, account, nonce) = (directory, None, None);
        let mut acme = Self {
            client,
            origin,
            key,
            directory: empty,
            account,
            nonce,
            left: REQUESTS,
            patience: LOOK_AFTER,
        };
        let answer = acme.send(Method::GET, directory.as_str(), Vec::new(), MAX_ANSWER).await?;
        acme.directory = answer.json("its directory")?;
        Ok(acme)
    }

    /// The account of this key, which is made if there is none: its URL.
    ///
    /// # Errors
    ///
    /// [`AcmeError`].
    pub(crate) async fn account(&mut self, contact: &[String]) -> Result<HttpsUrl, AcmeError> {
        let payload = json!({ "termsOfServiceAgreed": true, "contact": contact }).to_string();
        let url = self.directory.new_account.clone();
        let answer = self.post(&url, &payload, MAX_ANSWER).await?;
        let account = answer.location(self.origin)?;
        // Another spelling than the authority's would be another account in a CAA record.
        let parsed: HttpsUrl = account.parse().map_err(|_| AcmeError::Missing("URL of the account"))?;
        if parsed.as_str() != account {
            return Err(AcmeError::Missing("URL of the account"));
        }
        self.account = Some(account);
        Ok(parsed)
    }

    /// A new order for these names.
    ///
    /// # Errors
    ///
    /// [`AcmeError`].
    pub(crate) async fn order(&mut self, names: &[String]) -> Result<Order, AcmeError> {
        let identifiers: Vec<_> = names.iter().map(|name| json!({ "type": "dns", "value": name })).collect();
        let url = self.directory.new_order.clone();
        let answer = self.post(&url, &json!({ "identifiers": identifiers }).to_string(), MAX_ANSWER).await?;
        let url = answer.location(self.origin)?;
        let state: OrderState = answer.json("the order")?;
        if state.authorizations.len() > names.len() {
            return Err(AcmeError::Missing("bounded list of authorizations"));
        }
        let (mut challenges, mut ready) = (Vec::new(), Vec::new());
        for url in &state.authorizations {
            let authorization: Authorization = self.post(url, "", MAX_ANSWER).await?.json("a name")?;
            let name = authorization.identifier.value.to_ascii_lowercase();
            if authorization.identifier.kind != "dns" || !names.contains(&name) {
                return Err(AcmeError::NoChallenge(shorten(&name, 80)));
            }
            if authorization.status == "valid" {
                continue;
            }
            let asked = authorization.challenges.into_iter().find(|asked| asked.kind == "tls-alpn-01");
            let asked = asked.ok_or_else(|| AcmeError::NoChallenge(name.clone()))?;
            if !is_word(&asked.token) {
                return Err(AcmeError::Missing("token of a challenge"));
            }
            let authorization = Digest::of(format!("{}.{}", asked.token, self.key.thumbprint).as_bytes());
            challenges.push(Challenge { name, authorization });
            ready.push(asked.url);
        }
        Ok(Order { url, challenges, ready, authorizations: state.authorizations })
    }

    /// Has the names checked, now that the challenges are answered, and asks for the certificate: its chain in PEM.
    ///
    /// # Errors
    ///
    /// [`AcmeError`].
    pub(crate) async fn finish(&mut self, order: Order, request: &[u8]) -> Result<Vec<u8>, AcmeError> {
        for url in &order.ready {
            self.post(url, "{}", MAX_ANSWER).await?;
        }
        let checked = self.until(&order, &["ready", "valid"], "pending").await?;
        if checked.status == "ready" {
            let payload = json!({ "csr": base64::encode_url(request) }).to_string();
            self.post(&checked.finalize, &payload, MAX_ANSWER).await?;
        }
        let made = self.until(&order, &["valid"], "processing").await?;
        let url = made.certificate.ok_or(AcmeError::Missing("certificate"))?;
        let answer = self.post(&url, "", MAX_CHAIN).await?;
        answer.is_of("application/pem-certificate-chain", "the certificate")?;
        Ok(answer.body)
    }

    /// Looks at an order until it is in one of these states, for as long as it is in the one before.
    async fn until(&mut self, order: &Order, wanted: &[&str], before: &str) -> Result<OrderState, AcmeError> {
        loop {
            let answer = self.post(&order.url, "", MAX_ANSWER).await?;
            let wait = retry_after(&answer.headers).unwrap_or(self.patience).clamp(1, MOST_BETWEEN);
            let state: OrderState = answer.json("the order")?;
            if wanted.contains(&state.status.as_str()) {
                return Ok(state);
            }
            if state.status != before {
                return Err(self.why(order, &state).await);
            }
            tokio::time::sleep(std::time::Duration::from_secs(wait)).await;
        }
    }

    /// Why an order came to nothing: what the authority says of the names, or of the order.
    async fn why(&mut self, order: &Order, state: &OrderState) -> AcmeError {
        for url in &order.authorizations {
            let Ok(answer) = self.post(url, "", MAX_ANSWER).await else { continue };
            let Ok(authorization) = answer.json::<Authorization>("a name") else { continue };
            if let Some(problem) = authorization.challenges.into_iter().find_map(|asked| asked.error) {
                let name = shorten(&authorization.identifier.value, 80);
                return AcmeError::Refused { name, words: problem.words() };
            }
        }
        let why = state.error.as_ref().map(|problem| format!(" ({})", problem.words())).unwrap_or_default();
        AcmeError::Order(format!("{}{why}", shorten(&state.status, 20)))
    }

    /// A signed request; an empty payload reads (RFC 8555 §6.3).
    async fn post(&mut self, url: &str, payload: &str, limit: usize) -> Result<Answer, AcmeError> {
        let mut attempt = 1;
        loop {
            let nonce = match self.nonce.take() {
                Some(nonce) => nonce,
                None => self.fresh().await?,
            };
            let body = self.key.sign(self.account.as_deref(), &nonce, url, payload)?;
            match self.send(Method::POST, url, body, limit).await {
                Err(AcmeError::Problem { nonce: true, .. }) if attempt < NONCES => attempt += 1,
                answer => return answer,
            }
        }
    }

    async fn fresh(&mut self) -> Result<String, AcmeError> {
        let url = self.directory.new_nonce.clone();
        self.send(Method::HEAD, &url, Vec::new(), 0).await?;
        self.nonce.take().ok_or(AcmeError::Missing("nonce"))
    }

    async fn send(
        &mut self,
        method: Method,
        url: &str,
        body: Vec<u8>,
        limit: usize,
    ) -> Result<Answer, AcmeError> {
        if !of_authority(self.origin, url) {
            return Err(AcmeError::Elsewhere(shorten(url, 120)));
        }
        self.left = self.left.checked_sub(1).ok_or(AcmeError::Endless)?;
        let mut request = self.client.request(method, url);
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/jose+json").body(body);
        }
        let (response, host) = web::send(request, url).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let nonce = headers.get("replay-nonce").and_then(|nonce| nonce.to_str().ok());
        self.nonce = nonce.filter(|nonce| is_word(nonce)).map(str::to_owned);
        let answer = Answer { body: web::read(response, host, limit.max(MAX_ANSWER)).await?, headers };
        if status.is_success() {
            return Ok(answer);
        }
        Err(answer.problem(status))
    }
}

impl Answer {
    fn is_of(&self, media_type: &str, what: &'static str) -> Result<(), AcmeError> {
        let said =
            self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let said = said.split(';').next().unwrap_or_default().trim();
        if said.eq_ignore_ascii_case(media_type) { Ok(()) } else { Err(AcmeError::MediaType(what)) }
    }

    fn json<T: DeserializeOwned + Serialize>(&self, what: &'static str) -> Result<T, AcmeError> {
        self.is_of("application/json", what)?;
        json::from_json(&self.body, MAX_ANSWER).map_err(|error| AcmeError::Shape(what, error))
    }

    fn location(&self, origin: &HttpsUrl) -> Result<String, AcmeError> {
        let location = self.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or(AcmeError::Missing("Location"))?;
        if !of_authority(origin, location) {
            return Err(AcmeError::Elsewhere(shorten(location, 120)));
        }
        Ok(location.to_owned())
    }

    /// What is not a success. A page of somebody in between is as good as no words.
    fn problem(&self, status: StatusCode) -> AcmeError {
        let typed = self.is_of("application/problem+json", "a problem").is_ok();
        let problem: Problem =
            json::from_json(&self.body, MAX_ANSWER).ok().filter(|_| typed).unwrap_or_default();
        let is = |kind: &str| problem.kind.ends_with(kind);
        AcmeError::Problem {
            status,
            words: problem.words(),
            retry_after: retry_after(&self.headers),
            limited: status == StatusCode::TOO_MANY_REQUESTS || is(":rateLimited"),
            nonce: is(":badNonce"),
        }
    }
}

/// The header `Retry-After` (RFC 9110 §10.2.3) in seconds from now.
fn retry_after(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    let date = || Some(Timestamp::from_http_date(text)?.unix().saturating_sub(clock::unix_now()));
    text.parse().ok().or_else(date)
}

/// Whether it is of base64url, as nonces and tokens are (RFC 8555 §6.5.1 and §8.3).
fn is_word(text: &str) -> bool {
    (1..=MAX_WORD).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}
