//! `coffer top --metrics ADDRESS`: what `coffer status` knows as OpenMetrics, for Prometheus to scrape.
//!
//! The appliance has no port for this and knows no scraper: each scrape asks it as the operator whose key is here, over a channel
//! that was verified. While that is not to be had, a scrape is answered with 503 and the reason, and never with figures
//! that were true before.

mod openmetrics;

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use cofferdam_protocol::status::StatusReply;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::http::uri::Authority;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use super::{logs, status};
use crate::channel::Channel;
use crate::cli;
use crate::failure::{Failure, Outcome};
use crate::operator_key::OperatorKey;
use crate::trust::unix_now;
use crate::ui::Ui;
use crate::within;

/// What a scraper asks for.
const PATH: &str = "/metrics";
/// OpenMetrics 1.0, "Content-Type".
const OPENMETRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// Connections at once: more than a pair of scrapers have.
const CONNECTIONS: usize = 16;
/// For the head of a request, and for a connection that says nothing.
const HEAD: Duration = Duration::from_secs(30);
/// Pause after accept(2) failed.
const PAUSE: Duration = Duration::from_millis(100);

/// The appliance as one scrape after the other sees it.
struct Source {
    ui: Ui,
    appliance: cli::Appliance,
    key: OperatorKey,
    limit: Duration,
    /// Whether nobody but this machine can reach it.
    local: bool,
    /// Taken by one scrape at a time; what comes meanwhile waits for it.
    channel: Mutex<Option<Channel>>,
    /// Why the last scrape had no figures: said once, until it is another reason.
    said: RefCell<Option<String>>,
}

/// Serves until it is interrupted.
pub(crate) async fn serve(
    ui: &Ui,
    appliance: cli::Appliance,
    wait: cli::Wait,
    key: OperatorKey,
    listen: SocketAddr,
    limit: Duration,
) -> Outcome {
    // Whoever may not ask, or asks another appliance, hears that at once and not from the scraper.
    let first = async {
        let mut channel = logs::open(ui, &appliance, wait).await?;
        status::ask(&mut channel, &key).await?;
        Ok(channel)
    };
    let channel = within(limit, first).await?;
    let unusable = |error: std::io::Error| Failure::failed(format!("cannot listen on {listen}: {error}"));
    let listener = TcpListener::bind(listen).await.map_err(unusable)?;
    let bound = listener.local_addr().map_err(unusable)?;
    if ui.json {
        let event = json!({ "event": "listening", "address": bound.to_string(), "path": PATH });
        let _ = ui.line(&crate::ui::with_schema_version(event).to_string());
    } else {
        ui.note(&format!(
            "http://{bound}{PATH} has the metrics of {}; ends with Ctrl-C",
            appliance.repository
        ));
    }
    let local = bound.ip().is_loopback();
    if !local {
        ui.warn(&format!("whoever reaches {bound} reads them"));
    }
    let channel = Mutex::new(Some(channel));
    let source = Rc::new(Source { ui: *ui, appliance, key, limit, local, channel, said: RefCell::new(None) });
    let places = Rc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    let accepting = async {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let (source, places) = (Rc::clone(&source), Rc::clone(&places));
            tokio::task::spawn_local(async move {
                // Beyond its share a connection is closed.
                if let Ok(_place) = places.try_acquire() {
                    converse(stream, source).await;
                }
            });
        }
    };
    tokio::task::LocalSet::new().run_until(accepting).await
}

async fn converse(stream: TcpStream, source: Rc<Source>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let source = Rc::clone(&source);
        async move { Ok::<_, Infallible>(answer(&request, &source).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(request: &Request<Incoming>, source: &Source) -> Response<Full<Bytes>> {
    // A page in a browser reaches this machine by a name of its own that is resolved to it (DNS rebinding).
    if source.local && !names_this_machine(request.headers().get(HOST)) {
        let text = "ask for localhost, 127.0.0.1 or [::1]\n".to_owned();
        return response(StatusCode::MISDIRECTED_REQUEST, TEXT, text);
    }
    if request.uri().path() != PATH {
        return response(StatusCode::NOT_FOUND, TEXT, format!("the metrics are at {PATH}\n"));
    }
    if request.method() != Method::GET {
        return response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET is all there is\n".to_owned());
    }
    match source.scrape().await {
        Ok(text) => response(StatusCode::OK, OPENMETRICS, text),
        Err(failure) => {
            source.say(&failure);
            response(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{}\n", failure.message))
        }
    }
}

/// Whether a `Host` (RFC 9110, 7.2) is one that nobody else can resolve to this machine.
fn names_this_machine(host: Option<&HeaderValue>) -> bool {
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    authority.is_some_and(|authority| {
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    })
}

fn response(status: StatusCode, kind: HeaderValue, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

impl Source {
    async fn scrape(&self) -> Outcome<String> {
        let mut channel = self.channel.lock().await;
        let (status, expires) = match self.once(&mut channel).await {
            Ok(seen) => seen,
            // A connection that was kept may have ended meanwhile, and the appliance may have begun anew.
            Err(failure) => {
                self.ui.detail(&format!("connecting again: {}", failure.message));
                *channel = None;
                self.once(&mut channel).await?
            }
        };
        *self.said.borrow_mut() = None;
        openmetrics::text(&status, expires)
            .map_err(|_| Failure::failed("the figures cannot be written as OpenMetrics"))
    }

    /// The status over the channel that is there, or over a new one.
    async fn once(&self, kept: &mut Option<Channel>) -> Outcome<(StatusReply, u64)> {
        let now = unix_now()?;
        // One that fails is not used again.
        let mut channel = match kept.take().filter(|channel| now < channel.expires_unix) {
            Some(channel) => channel,
            None => {
                let open = logs::open(&self.ui, &self.appliance, cli::Wait { wait: false });
                within(self.limit, open).await?
            }
        };
        let status = within(self.limit, status::ask(&mut channel, &self.key)).await?;
        let expires = channel.expires_unix;
        *kept = Some(channel);
        Ok((status, expires))
    }

    fn say(&self, failure: &Failure) {
        let mut said = self.said.borrow_mut();
        if said.as_deref() != Some(failure.message.as_str()) {
            self.ui.warn(&format!("no metrics: {}", failure.message));
            *said = Some(failure.message.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_others_resolve_is_not_this_machine() {
        let names = |host: &str| names_this_machine(Some(&HeaderValue::from_str(host).unwrap()));
        for host in ["localhost", "LocalHost:9464", "127.0.0.1:9464", "127.8.0.1", "[::1]:9464", "[::1]"] {
            assert!(names(host), "{host}");
        }
        for host in [
            "",
            "evil.example:9464",
            "127.0.0.1.evil.example",
            "192.0.2.1",
            "[::ffff:127.0.0.1",
            "localhost.evil.example",
            "a b",
        ] {
            assert!(!names(host), "{host}");
        }
        assert!(!names_this_machine(None));
    }
}
