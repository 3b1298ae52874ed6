//! `coffer connect`: a local port whose traffic reaches only the verified appliance.
//!
//! The appliance is verified once, on a connection of its own. Every connection after that has to show the attested
//! TLS key, so it ends in the same TD; the evidence is taken anew before its claims expire.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::RwLock;

use crate::channel::{self, Channel};
use crate::cli;
use crate::failure::{Failure, Outcome};
use crate::trust::unix_now;
use crate::ui::Ui;
use crate::within;

/// The attested peer, as of the last verification.
struct Peer {
    endpoint: String,
    tls_key: String,
    renew_unix: u64,
    expires_unix: u64,
    simulated: bool,
}

pub(crate) async fn run(
    ui: &Ui,
    options: &cli::Appliance,
    listen: SocketAddr,
    port: Option<u16>,
    limit: Duration,
) -> Outcome {
    let peer = within(limit, verify(ui, options, port)).await?;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|error| Failure::failed(format!("cannot listen on {listen}: {error}")))?;
    let bound = listener
        .local_addr()
        .map_err(|error| Failure::failed(format!("cannot listen on {listen}: {error}")))?;
    let event = json!({ "event": "listening", "address": bound.to_string(), "endpoint": peer.endpoint, "tls_key": peer.tls_key, "simulated": peer.simulated });
    if ui.json {
        let _ = ui.line(&crate::ui::with_schema_version(event).to_string());
    } else {
        ui.note(&format!(
            "http://{bound} reaches {} ({}) and nothing else; ends with Ctrl-C",
            peer.endpoint, peer.tls_key
        ));
    }
    let peer = Arc::new(RwLock::new(peer));
    loop {
        let accepted = listener.accept().await;
        let Ok((local, _)) = accepted else {
            // Out of descriptors, most likely: those in use come back.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // Renewed at two thirds of the validity, so that an outage has a third of it to pass.
        let now = unix_now()?;
        if peer.read().await.renew_unix <= now {
            match within(limit, verify(ui, options, port)).await {
                Ok(fresh) => *peer.write().await = fresh,
                Err(failure) => {
                    ui.failure(&failure);
                    if peer.read().await.expires_unix <= now {
                        continue;
                    }
                }
            }
        }
        let (peer, ui) = (Arc::clone(&peer), *ui);
        tokio::spawn(async move {
            if let Err(failure) = within(limit, attach(&peer)).await.map(|remote| relay(local, remote)) {
                ui.failure(&failure);
            }
        });
    }
}

async fn verify(ui: &Ui, options: &cli::Appliance, port: Option<u16>) -> Outcome<Peer> {
    let channel: Channel = super::open(ui, options).await?;
    let claims = &channel.claims;
    let dialled = options.endpoint.as_ref().unwrap_or(&claims.endpoint);
    let endpoint = match (port, dialled.rsplit_once(':')) {
        (Some(port), Some((host, _))) => format!("{host}:{port}"),
        _ => dialled.clone(),
    };
    let (issued, expires_unix) = (claims.issued_unix().unwrap_or(0), claims.expires_unix().unwrap_or(0));
    let renew_unix = expires_unix.saturating_sub(expires_unix.saturating_sub(issued) / 3);
    Ok(Peer {
        endpoint,
        tls_key: claims.tls_key.clone(),
        renew_unix,
        expires_unix,
        simulated: channel.appraisal.simulated,
    })
}

async fn attach(peer: &RwLock<Peer>) -> Outcome<channel::Dialled> {
    let (endpoint, tls_key) = {
        let peer = peer.read().await;
        (peer.endpoint.clone(), peer.tls_key.clone())
    };
    let dialled = channel::dial(&endpoint).await?;
    if dialled.tls_key != tls_key {
        return Err(Failure::rejected(format!(
            "tls_key: {endpoint} now shows {}, attested is {tls_key}",
            dialled.tls_key
        )));
    }
    Ok(dialled)
}

fn relay(mut local: TcpStream, mut remote: channel::Dialled) {
    let _ = local.set_nodelay(true);
    tokio::spawn(async move {
        if copy_bidirectional(&mut local, &mut remote.stream).await.is_err() {
            // Cut off, perhaps by somebody in the middle: a plain end would make half an answer look whole.
            let _ = local.set_zero_linger();
        }
    });
}
