//! The operator's Ed25519 key: finding it, making it, signing with it.
//!
//! The private key never leaves this process and never shows in a message. An encrypted key is refused with a hint:
//! asking for its passphrase would bring a whole family of ciphers along.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use cofferdam_protocol::operator::{self, Authorization, Signature};
use cofferdam_protocol::{Fingerprint, OperatorKey as PublicKey, WordError};
use ed25519_dalek::{Signer as _, SigningKey};
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{LineEnding, PrivateKey};
use zeroize::Zeroizing;

use crate::cli;
use crate::failure::{Code, Failure, Outcome};

/// An OpenSSH Ed25519 private key is about 400 bytes.
const LARGEST_KEY_FILE: usize = 16 * 1024;

/// A key that can sign requests to the operator API.
pub(crate) struct OperatorKey {
    signing: SigningKey,
    /// The line that a declaration names: `ssh-ed25519 AAAA… comment`.
    pub(crate) public_line: String,
    public: PublicKey,
}

impl OperatorKey {
    /// Loads the key that was named, or the first that exists of the usual places.
    pub(crate) fn load(options: &cli::OperatorKey) -> Outcome<Self> {
        let path = match &options.key {
            Some(path) => path.clone(),
            None => usual_places().into_iter().find(|path| path.exists()).ok_or_else(|| {
                Failure::new(Code::NotAllowed, "no operator's key was found")
                    .hint("name one with --key FILE, or make one with `coffer init OWNER/REPO`")
            })?,
        };
        let mode = std::fs::metadata(&path).map(|found| found.permissions().mode()).unwrap_or(0);
        if mode & 0o077 != 0 {
            let message = format!("{} can be read by others (mode {:03o})", path.display(), mode & 0o777);
            return Err(Failure::new(Code::NotAllowed, message).hint(format!("chmod 600 {}", path.display())));
        }
        let text = crate::files::read_secret(&path, LARGEST_KEY_FILE)?;
        Self::from_openssh(&text).map_err(|why| {
            Failure::new(Code::NotAllowed, format!("{}: {why}", path.display())).hint(KEY_HINT)
        })
    }

    /// Loads the key from `path`, or makes one there (mode 0600) when nothing is there yet.
    pub(crate) fn load_or_create(options: &cli::OperatorKey) -> Outcome<(Self, PathBuf, bool)> {
        let path = match &options.key {
            Some(path) => path.clone(),
            None => usual_places()
                .into_iter()
                .next()
                .ok_or_else(|| Failure::failed("HOME is not set").hint("name the key with --key FILE"))?,
        };
        if path.exists() {
            return Ok((Self::load(&cli::OperatorKey { key: Some(path.clone()) })?, path, false));
        }
        let text = generate()?;
        crate::files::write_new(&path, text.as_bytes())?;
        let key = Self::from_openssh(text.as_bytes()).map_err(Failure::failed)?;
        Ok((key, path, true))
    }

    fn from_openssh(text: &[u8]) -> Result<Self, String> {
        let private = PrivateKey::from_openssh(text)
            .map_err(|_| "not an Ed25519 private key in OpenSSH's format".to_owned())?;
        if private.is_encrypted() {
            return Err("the key is encrypted with a passphrase".to_owned());
        }
        let KeypairData::Ed25519(pair) = private.key_data() else {
            return Err("not an Ed25519 key".to_owned());
        };
        let seed = Zeroizing::new(pair.private.to_bytes());
        let public_line = private.public_key().to_openssh().map_err(|_| "no public half".to_owned())?;
        let public = public_line.parse().map_err(|error: WordError| error.message)?;
        Ok(Self { signing: SigningKey::from_bytes(&seed), public_line, public })
    }

    /// As `ssh-keygen -l` shows it.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.public.fingerprint()
    }

    /// The signature of bytes that bear a domain of their own.
    pub(crate) fn sign(&self, input: &[u8]) -> Signature {
        self.signing.sign(input).to_bytes().into()
    }

    /// The `Authorization` header of one request on one TLS connection.
    pub(crate) fn authorization(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
        channel_binding: &[u8; 32],
    ) -> String {
        let input = operator::signing_input(method, path, body, channel_binding);
        let signature = self.sign(&input);
        Authorization { key: self.fingerprint(), signature }.to_string()
    }
}

const KEY_HINT: &str =
    "an operator's key is an Ed25519 key without passphrase: ssh-keygen -t ed25519 -N '' -f operator.key";

fn usual_places() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let configuration = std::env::var_os("XDG_CONFIG_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or_else(|| home.as_ref().map(|home| home.join(".config")));
    let own = configuration.map(|path| path.join("coffer").join("operator.key"));
    own.into_iter().chain(home.map(|home| home.join(".ssh").join("id_ed25519"))).collect()
}

fn generate() -> Outcome<Zeroizing<String>> {
    let mut seed = Zeroizing::new([0_u8; 32]);
    getrandom::fill(seed.as_mut_slice())
        .map_err(|_| Failure::failed("the system gives no random numbers"))?;
    let pair = Ed25519Keypair::from_seed(&seed);
    PrivateKey::new(KeypairData::from(pair), "cofferdam operator")
        .and_then(|key| key.to_openssh(LineEnding::LF))
        .map_err(|_| Failure::failed("cannot encode the new key"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::Verifier as _;

    #[test]
    fn a_made_key_loads_again_signs_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let options = cli::OperatorKey { key: Some(folder.path().join("sub/operator.key")) };
        let (made, path, new) = OperatorKey::load_or_create(&options).unwrap();
        assert!(new);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (again, _, new) = OperatorKey::load_or_create(&options).unwrap();
        assert!(!new);
        assert_eq!((made.fingerprint(), &made.public_line), (again.fingerprint(), &again.public_line));
        let header = made.authorization("PUT", "/p", b"body", &[7; 32]);
        let parsed: Authorization = header.parse().unwrap();
        assert_eq!(parsed.key, made.fingerprint());
        let input = operator::signing_input("PUT", "/p", b"body", &[7; 32]);
        let signature = ed25519_dalek::Signature::from_bytes(parsed.signature.as_bytes());
        assert!(made.signing.verifying_key().verify(&input, &signature).is_ok());
    }

    #[test]
    fn what_is_no_key_is_refused_without_showing_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k");
        std::fs::write(&path, "hunter2hunter2").unwrap();
        let options = cli::OperatorKey { key: Some(path.clone()) };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(OperatorKey::load(&options).err().unwrap().message.contains("can be read by others"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let failure = OperatorKey::load(&cli::OperatorKey { key: Some(path) }).err().unwrap();
        assert_eq!(failure.code, Code::NotAllowed);
        assert!(!failure.message.contains("hunter2"));
    }
}
