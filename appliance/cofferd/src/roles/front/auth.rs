//! Who may call a published port. No request is passed on to a service before this has let it.
//!
//! Operators sign in once on a connection, over its channel binding, with the key that the declaration names: what comes on that
//! connection from then on is theirs, bodies of any length and tunnels too, and the service gets no signature to see. Clients
//! bring a token with each request; it is compared with the digests of the declaration and taken out before the service
//! gets the request. The front holds neither a token nor a private key, so it cannot call in anybody's name.
//!
//! Wrong requests are answered here: they take no place of a service. A sign-in that fails ends its connection, so that each
//! attempt costs a handshake.

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use cofferdam_declaration::{Auth, Token};
use cofferdam_protocol::operator::{Authorization, SCHEME, SIGN_IN_UPGRADE};
use cofferdam_protocol::{AccessToken, Digest};
use cofferdam_vault::{AuthenticationError, KeyError, Operator, Operators, Signed};
use hyper::body::Body as _;

use super::listen::Peer;
use super::reply;
use super::turns::Turns;
use crate::roles::facts::OperatorFacts;

/// Tells a service who calls: `operator:NAME` or `token:NAME`. The front alone sets it, and not where everybody may call.
pub(crate) const CALLER: HeaderName = HeaderName::from_static("x-cofferdam-caller");

/// Authorization scheme of tokens (RFC 6750 §2.1).
const BEARER: &str = "Bearer";

/// Those who may call ports that are not everybody's.
#[derive(Debug)]
pub(crate) struct Callers {
    operators: Operators,
    tokens: Vec<Token>,
    turns: Arc<Turns>,
}

impl Callers {
    /// Those of the declaration. Where they come from goes first when strangers take `turns`.
    ///
    /// # Errors
    /// [`KeyError`] for a key with which nothing can be verified.
    pub(crate) fn new(
        operators: &[OperatorFacts],
        tokens: &[Token],
        turns: Arc<Turns>,
    ) -> Result<Self, KeyError> {
        let operators =
            Operators::new(operators.iter().map(|operator| (operator.name.as_str(), operator.key)))?;
        Ok(Self { operators, tokens: tokens.to_vec(), turns })
    }

    /// The turns that strangers take.
    pub(crate) fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    /// Lets the operator in whose signature is on this request, for as long as the connection lasts.
    pub(crate) fn sign_in(&self, peer: &Peer, mut request: Request<Body>) -> Response<Body> {
        let refused = |status, text: &str| {
            peer.connection.close();
            refused(status, text)
        };
        if request.method() != Method::POST || !request.body().is_end_stream() {
            return refused(StatusCode::BAD_REQUEST, "an operator signs in with POST and without a body");
        }
        let Some(authorization) = operators(request.headers()) else {
            return refused(StatusCode::UNAUTHORIZED, "an operator's signature is needed");
        };
        match self.authenticate(&authorization, request.method(), request.uri(), b"", peer) {
            Ok(operator) if peer.connection.sign_in(&operator.name) => signed_in(peer, &mut request),
            Ok(_) => refused(StatusCode::FORBIDDEN, "another operator has signed in on this connection"),
            Err(error @ AuthenticationError::UnknownKey) => {
                refused(StatusCode::FORBIDDEN, &error.to_string())
            }
            Err(error) => refused(StatusCode::UNAUTHORIZED, &error.to_string()),
        }
    }

    /// The operator who has signed this request for this very connection.
    ///
    /// # Errors
    /// [`AuthenticationError`].
    pub(crate) fn authenticate(
        &self,
        authorization: &Authorization,
        method: &Method,
        target: &Uri,
        body: &[u8],
        peer: &Peer,
    ) -> Result<&Operator, AuthenticationError> {
        let signed = Signed {
            method: method.as_str(),
            path: target.path_and_query().map_or("", |target| target.as_str()),
            body,
            channel_binding: &peer.channel_binding,
        };
        let operator = self.operators.authenticate(&authorization.key, &authorization.signature, signed)?;
        self.turns.know(peer.connection.source());
        Ok(operator)
    }

    /// Lets a request through to `service`, or answers it. What is returned goes into [`CALLER`]; what let the request
    /// through is no longer in it.
    pub(crate) fn admit(
        &self,
        auth: Auth,
        service: &str,
        peer: &Peer,
        request: &mut Request<Body>,
    ) -> Result<Option<HeaderValue>, Box<Response<Body>>> {
        let caller = match auth {
            Auth::None => return Ok(None),
            Auth::Operators => peer.connection.operator().map(|name| format!("operator:{name}")),
            Auth::Tokens => self.token(request.headers()).map(|name| format!("token:{name}")),
        };
        let Some(caller) = caller.and_then(|caller| HeaderValue::try_from(caller).ok()) else {
            return Err(Box::new(challenge(auth, service, request.headers())));
        };
        if auth == Auth::Tokens {
            self.turns.know(peer.connection.source());
            request.headers_mut().remove(header::AUTHORIZATION);
        }
        Ok(Some(caller))
    }

    /// The name of the token that a request brings.
    fn token(&self, headers: &HeaderMap) -> Option<&str> {
        let (scheme, token) = only(headers)?.split_once(' ')?;
        let token: AccessToken =
            scheme.eq_ignore_ascii_case(BEARER).then(|| token.trim_start_matches(' ').parse().ok())??;
        let hash = token.hash();
        // All are compared, and each to its end: how long it takes tells nothing about any of them.
        let mut found = None;
        for token in &self.tokens {
            if same(&token.hash, &hash) {
                found = Some(token.name.as_str());
            }
        }
        found
    }
}

/// Whether two digests are the same, in a time that does not depend on where they differ.
fn same(one: &Digest, other: &Digest) -> bool {
    verify_slices_are_equal(one.as_bytes(), other.as_bytes()).is_ok()
}

/// The one `Authorization` header. Of two, nobody knows which the service would have believed.
fn only(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// The one `Authorization` header, when it is an operator's.
pub(crate) fn operators(headers: &HeaderMap) -> Option<Authorization> {
    only(headers)?.parse().ok()
}

/// 401 for a request that nobody is known to have sent.
fn challenge(auth: Auth, service: &str, headers: &HeaderMap) -> Response<Body> {
    let brought = headers.contains_key(header::AUTHORIZATION);
    let (text, hint, scheme) = match auth {
        Auth::Tokens if brought => (
            format!("this is no token that service {service} takes"),
            "send one Authorization header, Bearer and a token whose hash the declaration names",
            "Bearer error=\"invalid_token\"",
        ),
        Auth::Tokens => (
            format!("service {service} takes a token"),
            "send the header Authorization: Bearer TOKEN; `coffer token new NAME` makes tokens",
            BEARER,
        ),
        _ => (
            format!("service {service} is for operators, and none has signed in on this connection"),
            "call it through `coffer connect` with the key of an operator that the declaration names",
            SCHEME,
        ),
    };
    let mut response = reply::error(StatusCode::UNAUTHORIZED, &text, Some(hint));
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
    response
}

/// 204, or 101 for a client that wants the connection itself: what it says next is the first thing on it, whatever its
/// port carries.
fn signed_in(peer: &Peer, request: &mut Request<Body>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if request.headers().get(header::UPGRADE).is_some_and(|wanted| wanted == SIGN_IN_UPGRADE) {
        peer.connection.go_on(hyper::upgrade::on(request));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static(SIGN_IN_UPGRADE));
    }
    response
}

/// An error that ends the connection.
fn refused(status: StatusCode, text: &str) -> Response<Body> {
    let hint = "use `coffer connect` with the key of an operator that the declaration names";
    let mut response = reply::error(status, text, Some(hint));
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(SCHEME));
    }
    response
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
