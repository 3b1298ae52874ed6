//! The client's side of RA-TLS: the one verifier of certificates that anything of ours uses.
//!
//! Responsible for what a handshake can show: that the other end holds the certificate's key, that the certificate is valid
//! now, and that its key is the attested one where that is known. It never looks at names and issuers, and it never takes a
//! resumed session, in which no certificate is shown: each connection stands by itself. What it refuses it gives a reason
//! for ([`Refusal`]), because an alert alone tells nobody what to do.

use std::error::Error;
use std::sync::Arc;

use cofferdam_protocol::evidence::{CHANNEL_BINDING_LABEL, ChannelBinding};
use cofferdam_protocol::{Digest, Timestamp};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, OtherError,
    SignatureScheme,
};

use super::{RatlsError, spki_sha256, validity};

/// Tolerated difference between the client's clock and a certificate's dates, seconds.
const SKEW: u64 = 300;

/// A TLS 1.3 client that accepts a self-signed certificate by its key. With `pin` only the key with that
/// digest passes. Without, any key passes that the peer proves to hold: use that connection for nothing
/// but fetching evidence whose claims bind its channel and its key.
///
/// # Errors
/// [`RatlsError::Tls`] when the provider cannot do TLS 1.3.
pub fn client_config(pin: Option<Digest>) -> Result<ClientConfig, RatlsError> {
    let crypto = Arc::new(provider::default_provider());
    let verifier = Arc::new(KeyVerifier { pin, crypto: Arc::clone(&crypto) });
    let mut config = ClientConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(RatlsError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Who is at the other end of a connection after its handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Digest of the SubjectPublicKeyInfo of the key that it proved to hold.
    pub tls_key: Digest,
    /// RFC 9266 channel binding of the connection (`tls-exporter`).
    pub channel_binding: ChannelBinding,
}

/// Reads the other end's key and the channel's binding from a connection made with [`client_config`].
///
/// # Errors
/// [`Refusal`] when the handshake is not over, was not a full one, or showed no certificate.
pub fn peer(connection: &ClientConnection) -> Result<Peer, Refusal> {
    match connection.handshake_kind() {
        Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest) => {}
        Some(_) => return Err(Refusal::Resumed),
        None => return Err(Refusal::NoCertificate),
    }
    let certificate = connection.peer_certificates().and_then(<[_]>::first).ok_or(Refusal::NoCertificate)?;
    let tls_key = spki_sha256(certificate).map_err(|_| Refusal::Malformed)?;
    let channel_binding = connection
        .export_keying_material([0; 32], CHANNEL_BINDING_LABEL, Some(&[]))
        .map(ChannelBinding::from)
        .map_err(|_| Refusal::NoBinding)?;
    Ok(Peer { tls_key, channel_binding })
}

/// Why a connection is not one to an appliance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No certificate was shown.
    #[error("it shows no certificate")]
    NoCertificate,
    /// What was shown is not X.509.
    #[error("its certificate is malformed")]
    Malformed,
    /// The certificate's time has not come.
    #[error("its certificate is valid from {} on, and it is {}", Timestamp::shown(*from), Timestamp::shown(*now))]
    NotYetValid {
        /// Begin of its validity, seconds since the Unix epoch.
        from: u64,
        /// The time of this machine.
        now: u64,
    },
    /// The certificate's time is over.
    #[error("its certificate was valid until {}, and it is {}", Timestamp::shown(*until), Timestamp::shown(*now))]
    Expired {
        /// End of its validity, seconds since the Unix epoch.
        until: u64,
        /// The time of this machine.
        now: u64,
    },
    /// It holds another key.
    #[error("it shows the key {found}, {pinned} is attested")]
    OtherKey {
        /// Digest of the key that was shown.
        found: Digest,
        /// That of the attested one.
        pinned: Digest,
    },
    /// The session was resumed, which shows no certificate.
    #[error("it resumed a session instead of showing its certificate")]
    Resumed,
    /// The connection has nothing to bind evidence to.
    #[error("its connection has no channel binding")]
    NoBinding,
}

impl Refusal {
    /// The refusal behind an error of a handshake, when there is one: TLS libraries wrap it.
    #[must_use]
    pub fn behind(error: &std::io::Error) -> Option<&Self> {
        let inner: &(dyn Error + 'static) = error.get_ref()?;
        match inner.downcast_ref::<rustls::Error>()? {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) => {
                reason.downcast_ref()
            }
            _ => None,
        }
    }

    /// Whether it speaks of the time: then a clock may be wrong.
    #[must_use]
    pub fn is_about_time(&self) -> bool {
        matches!(self, Self::NotYetValid { .. } | Self::Expired { .. })
    }
}

impl From<Refusal> for rustls::Error {
    fn from(refusal: Refusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

/// Accepts certificates by key and dates, never by issuer or name.
#[derive(Debug)]
struct KeyVerifier {
    pin: Option<Digest>,
    crypto: Arc<CryptoProvider>,
}

impl KeyVerifier {
    /// The key first: where another machine answers, that is the reason, whatever its clock says.
    fn judge(&self, certificate: &[u8], now: u64) -> Result<(), Refusal> {
        let found = spki_sha256(certificate).map_err(|_| Refusal::Malformed)?;
        if let Some(pinned) = self.pin.filter(|pin| *pin != found) {
            return Err(Refusal::OtherKey { found, pinned });
        }
        let (from, until) = validity(certificate).map_err(|_| Refusal::Malformed)?;
        if now.saturating_add(SKEW) < from {
            return Err(Refusal::NotYetValid { from, now });
        }
        if now > until.saturating_add(SKEW) {
            return Err(Refusal::Expired { until, now });
        }
        Ok(())
    }
}

impl ServerCertVerifier for KeyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(end_entity, now.as_secs())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.crypto.signature_verification_algorithms)
    }

    /// All that the provider knows, and not the appliance's alone: a stranger is refused for its key, in words.
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.crypto.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
