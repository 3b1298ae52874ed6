//! The attested TLS identity: one key for the life of the boot, a certificate with evidence that is renewed.
//!
//! The private key is made by PID 1, arrives on an inherited descriptor and lives in this process's memory only: as it came in
//! memory that the kernel does not map, and ready for handshakes where the TLS library keeps it.
//! A handshake is served only while the certificate's evidence is valid: an expired certificate is not shown, the
//! connection is refused. Sessions are never resumed, so that every client sees the certificate that holds now.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, RwLock};

use axum::http::HeaderValue;
use cofferdam_attest::ratls;
use cofferdam_protocol::certificate::ATTESTED;
use cofferdam_protocol::evidence::CHANNEL_BINDING_LABEL;
use cofferdam_protocol::operator::SIGN_IN_UPGRADE;
use nix::errno::Errno;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{ServerConfig, ServerConnection};

use crate::roles::clock::Moment;
use crate::system::sys::SecretMemory;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// The inherited descriptor cannot be read.
    #[error("cannot read the TLS key")]
    ReadKey(#[source] Errno),
    /// What came over the descriptor is not a P-256 key in PKCS#8.
    #[error("the TLS key is not PKCS#8")]
    Key,
    /// The TLS library refused the configuration.
    #[error("cannot configure TLS")]
    Configure(#[source] rustls::Error),
}

/// The private key: as bytes, for signing certificates, and ready for handshakes.
pub(crate) struct TlsKey {
    /// PKCS#8, and behind it that of the key that browsers are shown, if there is one.
    memory: SecretMemory,
    /// Where the first one ends.
    end: usize,
    signing: Arc<dyn SigningKey>,
}

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted:tls-key]")
    }
}

impl TlsKey {
    /// The key that PID 1 handed over.
    ///
    /// # Errors
    /// When the descriptor is not memory for keys, or what lies there is not a key in PKCS#8.
    pub(crate) fn inherited(descriptor: OwnedFd) -> Result<Self, TlsError> {
        Self::from_pkcs8(SecretMemory::open(descriptor).map_err(TlsError::ReadKey)?)
    }

    /// A key from its PKCS#8 encoding, perhaps with another one behind it.
    ///
    /// # Errors
    /// When it is not PKCS#8.
    pub(crate) fn from_pkcs8(pkcs8: SecretMemory) -> Result<Self, TlsError> {
        let end = der_length(pkcs8.bytes()).ok_or(TlsError::Key)?;
        let signing = signing(pkcs8.bytes().get(..end).unwrap_or_default())?;
        Ok(Self { memory: pkcs8, end, signing })
    }

    /// The PKCS#8 encoding, for signing a certificate.
    pub(crate) fn pkcs8(&self) -> &[u8] {
        self.memory.bytes().get(..self.end).unwrap_or_default()
    }

    /// The key that browsers are shown, ready for handshakes.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn for_browsers(&self) -> Result<Arc<dyn SigningKey>, TlsError> {
        signing(self.memory.bytes().get(self.end..).unwrap_or_default())
    }

    /// What answers say of the attested key: the digest of its SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// When it is not a key of P-256.
    pub(crate) fn digest(&self) -> Result<HeaderValue, TlsError> {
        let digest = ratls::key_sha256(self.pkcs8()).map_err(|_| TlsError::Key)?;
        HeaderValue::try_from(digest.to_string()).map_err(|_| TlsError::Key)
    }
}

/// A key of P-256 from its PKCS#8 encoding, ready for handshakes.
///
/// # Errors
/// When it is none.
pub(super) fn signing(pkcs8: &[u8]) -> Result<Arc<dyn SigningKey>, TlsError> {
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8));
    aws_lc_rs::sign::any_ecdsa_type(&der).map_err(|_| TlsError::Key)
}

/// How many bytes the first value of DER takes. A key of P-256 has more than 127 and less than 256 (X.690 §8.1.3.5).
fn der_length(bytes: &[u8]) -> Option<usize> {
    match *bytes {
        [0x30, 0x81, length, ..] => {
            Some(usize::from(length).saturating_add(3)).filter(|end| *end <= bytes.len())
        }
        _ => None,
    }
}

/// The certificate that holds now, if one does.
#[derive(Debug, Default)]
pub(crate) struct Identity {
    current: RwLock<Option<Held>>,
}

#[derive(Debug)]
struct Held {
    key: Arc<CertifiedKey>,
    expires: Moment,
}

impl Identity {
    /// Shows `certificate` from now on, until `expires`.
    pub(crate) fn replace(&self, certificate: Vec<u8>, key: &TlsKey, expires: Moment) {
        self.show(vec![CertificateDer::from(certificate)], &key.signing, expires);
    }

    /// The same with a chain of certificates and any key.
    pub(crate) fn show(
        &self,
        chain: Vec<CertificateDer<'static>>,
        signing: &Arc<dyn SigningKey>,
        expires: Moment,
    ) {
        let key = Arc::new(CertifiedKey::new(chain, Arc::clone(signing)));
        // A poisoned lock is taken anyway: the value is replaced whole.
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) =
            Some(Held { key, expires });
    }

    /// Whether there is a certificate to show.
    pub(crate) fn holds(&self) -> bool {
        self.present().is_some()
    }

    fn present(&self) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        current.as_ref().filter(|held| !held.expires.has_come()).map(|held| Arc::clone(&held.key))
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.present()
    }
}

/// ALPN's name of HTTP/2 (RFC 9113 §3.2).
pub(crate) const HTTP_2: &[u8] = b"h2";

/// Chosen by who signs in before anything else, whatever the port carries.
pub(crate) const SIGNS_IN: &[u8] = SIGN_IN_UPGRADE.as_bytes();

/// PostgreSQL's, without which its clients do not begin with TLS.
const POSTGRESQL: &[u8] = b"postgresql";

/// TLS 1.3 only, no resumption, no early data. For `http` clients choose between HTTP/2 and HTTP/1.1, which is also what they speak
/// who do not ask.
///
/// # Errors
/// When the TLS library refuses it.
pub(crate) fn server_config(identity: Arc<Identity>, http: bool) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Configure)?
        .with_no_client_auth()
        .with_cert_resolver(identity);
    let spoken = if http { [HTTP_2, b"http/1.1"].as_slice() } else { &[POSTGRESQL] };
    config.alpn_protocols = spoken.iter().chain([&SIGNS_IN, &ATTESTED]).map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The `tls-exporter` channel binding of RFC 9266 §2: label, zero-length context, 32 bytes. `None` before the
/// handshake is complete.
pub(crate) fn channel_binding(connection: &ServerConnection) -> Option<[u8; 32]> {
    connection.export_keying_material([0; 32], CHANNEL_BINDING_LABEL, Some(b"")).ok()
}
