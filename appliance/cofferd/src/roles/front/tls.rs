//! The attested TLS identity: one key for the life of the boot, a certificate with evidence that is renewed.
//!
//! The private key is made by PID 1, arrives on an inherited descriptor and lives in this process's memory only: as it came in
//! memory that the kernel does not map, and ready for handshakes where the TLS library keeps it.
//! A handshake is served only while the certificate's evidence is valid: an expired certificate is not shown, the
//! connection is refused. Sessions are never resumed, so that every client sees the certificate that holds now.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, RwLock};

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
    pkcs8: SecretMemory,
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

    /// A key from its PKCS#8 encoding.
    ///
    /// # Errors
    /// When it is not PKCS#8.
    pub(crate) fn from_pkcs8(pkcs8: SecretMemory) -> Result<Self, TlsError> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.bytes()));
        let signing = aws_lc_rs::sign::any_ecdsa_type(&der).map_err(|_| TlsError::Key)?;
        Ok(Self { pkcs8, signing })
    }

    /// The PKCS#8 encoding, for signing a certificate.
    pub(crate) fn pkcs8(&self) -> &[u8] {
        self.pkcs8.bytes()
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
        let key =
            Arc::new(CertifiedKey::new(vec![CertificateDer::from(certificate)], Arc::clone(&key.signing)));
        // A poisoned lock is taken anyway: the value is replaced whole.
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) =
            Some(Held { key, expires });
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        current.as_ref().filter(|held| !held.expires.has_come()).map(|held| Arc::clone(&held.key))
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
    config.alpn_protocols = spoken.iter().chain([&SIGNS_IN]).map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The `tls-exporter` channel binding of RFC 9266 §2: label, zero-length context, 32 bytes. `None` before the
/// handshake is complete.
pub(crate) fn channel_binding(connection: &ServerConnection) -> Option<[u8; 32]> {
    connection.export_keying_material([0; 32], CHANNEL_BINDING_LABEL, Some(b"")).ok()
}
