//! The certificate that browsers accept, for clients that dial one of its names.
//!
//! Which certificate a client is shown is decided by its greeting: whoever asks for the attested one (ALPN), or dials another name or none,
//! gets that. So it is while there is no valid other one. `publish` writes the chain of certificates and, while their authority asks about a
//! name, what it is to be answered; both are looked at when a client wants them, and believed as far as they are about the key that is here.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cofferdam_attest::ratls::{self, RatlsError};
use cofferdam_protocol::certificate::{ACME_TLS, ATTESTED, Challenge, Challenges, MAX_BYTES, MAX_CHAIN};
use cofferdam_protocol::{Digest, Timestamp, error_chain};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::ClientHello;
use rustls::sign::SigningKey;

use super::tls::{self, Identity, SIGNS_IN, TlsError};
use super::untrusted_file;
use crate::roles::certificate::{Chain, ChainError};
use crate::roles::clock::{self, Moment};
use crate::roles::facts::CertificateFacts;

/// What tells one version of a file from the next: they are replaced as a whole.
type Version = (u64, i64, i64);

/// The certificate, and what it is for.
pub(crate) struct Browser {
    names: Vec<String>,
    key: Digest,
    signing: Arc<dyn SigningKey>,
    chain: PathBuf,
    challenges: PathBuf,
    shown: Arc<Identity>,
    for_http: Arc<ServerConfig>,
    for_bytes: Arc<ServerConfig>,
    /// The version of the chain that was looked at last.
    seen: Mutex<Option<Version>>,
    /// The last challenge that was answered, and with what.
    answered: Mutex<Option<(Challenge, Timestamp, Arc<ServerConfig>)>>,
}

impl fmt::Debug for Browser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Browser").field("names", &self.names).field("key", &self.key).finish_non_exhaustive()
    }
}

/// Why a challenge has no answer.
#[derive(Debug, thiserror::Error)]
enum AnswerError {
    #[error(transparent)]
    Certificate(#[from] RatlsError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Browser {
    /// For these names with this key. `publish` writes both files.
    ///
    /// # Errors
    /// When the TLS library refuses the configuration.
    pub(crate) fn new(
        facts: &CertificateFacts,
        signing: Arc<dyn SigningKey>,
        chain: &Path,
        challenges: &Path,
    ) -> Result<Self, TlsError> {
        let shown = Arc::new(Identity::default());
        let config = |http| tls::server_config(Arc::clone(&shown), http).map(Arc::new);
        Ok(Self {
            names: facts.declared.names.clone(),
            key: facts.claim.key,
            signing,
            chain: chain.to_owned(),
            challenges: challenges.to_owned(),
            for_http: config(true)?,
            for_bytes: config(false)?,
            shown,
            seen: Mutex::default(),
            answered: Mutex::default(),
        })
    }

    /// How this client is to be spoken to; `None` with the attested certificate.
    pub(crate) fn config(&self, hello: &ClientHello<'_>, http: bool) -> Option<Arc<ServerConfig>> {
        let dialled = hello.server_name()?;
        let name = self.names.iter().find(|name| name.eq_ignore_ascii_case(dialled))?;
        let asked: Vec<&[u8]> = hello.alpn().into_iter().flatten().collect();
        if asked == [ACME_TLS] {
            return self.answer(name);
        }
        if asked.iter().any(|protocol| [ATTESTED, SIGNS_IN].contains(protocol)) {
            return None;
        }
        self.look();
        self.shown.holds().then(|| Arc::clone(if http { &self.for_http } else { &self.for_bytes }))
    }

    /// Takes up a chain that was written since the last look. One that is not for this key and these names changes nothing.
    fn look(&self) {
        let version = version(&self.chain);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if version.is_none() || *seen == version {
            return;
        }
        *seen = version;
        match self.read() {
            Ok(chain) => {
                self.shown.show(chain.certificates, &self.signing, Moment::at(chain.not_after));
                println!("front: browsers are shown a certificate for {}", self.names.join(", "));
            }
            Err(error) => {
                eprintln!("front: the certificate for browsers is not shown: {}", error_chain(&error))
            }
        }
    }

    fn read(&self) -> Result<Chain, ChainError> {
        let pem = untrusted_file::contents(&self.chain, MAX_CHAIN as u64).ok_or(ChainError::Pem)?;
        Chain::read(&pem, self.key, &self.names, clock::unix_now())
    }

    /// What the authority is to be shown, if it is to be shown something about this name now.
    fn answer(&self, name: &str) -> Option<Arc<ServerConfig>> {
        let challenges = untrusted_file::contents(&self.challenges, MAX_BYTES as u64)?;
        let challenges = Challenges::parse(&challenges).ok()?;
        if challenges.until.unix() <= clock::unix_now() {
            return None;
        }
        let challenge = challenges.challenges.into_iter().find(|challenge| challenge.name == name)?;
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            answered.as_ref().filter(|(known, until, _)| (known, *until) == (&challenge, challenges.until));
        if let Some((_, _, config)) = known {
            return Some(Arc::clone(config));
        }
        let made = answer(&challenge, challenges.until);
        let made =
            made.inspect_err(|error| eprintln!("front: cannot answer for {name}: {}", error_chain(error)));
        let config = Arc::new(made.ok()?);
        *answered = Some((challenge, challenges.until, Arc::clone(&config)));
        Some(config)
    }
}

/// A configuration that speaks the challenge's protocol and no other, until the order is over.
fn answer(challenge: &Challenge, until: Timestamp) -> Result<ServerConfig, AnswerError> {
    let (certificate, key) = ratls::answer(&challenge.name, challenge.authorization.as_bytes())?;
    let shown = Arc::new(Identity::default());
    shown.show(vec![CertificateDer::from(certificate)], &tls::signing(&key)?, Moment::at(until.unix()));
    let mut config = tls::server_config(shown, false)?;
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    Ok(config)
}

fn version(path: &Path) -> Option<Version> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}
