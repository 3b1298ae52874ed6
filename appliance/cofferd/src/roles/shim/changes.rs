//! What happens when secrets of the running service are put again.

use std::time::Duration;

use cofferdam_declaration::Service;
use cofferdam_protocol::{Digest, SecretRef, SecretValue};
use cofferdam_redact::{RedactError, Redactor};
use cofferdam_workload::environment::{self, EnvironmentError, Shown};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::leased;
use crate::system::client::vault::{Lease, LeaseError, changed, lease};

/// Puts within this time of each other are one change: an operator who puts a file of secrets wants one restart.
const SETTLE: Duration = Duration::from_secs(2);
/// How often a change may go on before it is acted upon.
const MAX_SETTLES: u32 = 10;
/// Between two questions when the vault cannot answer.
const PAUSE: Duration = Duration::from_secs(5);
/// Former values that are still taken out of what the service prints. One more, and it has to start anew, since each makes the search
/// longer.
const MAX_FORMER: usize = 64;

/// Brings the secrets of a service whenever one of them was put again. It ends with this.
pub(super) struct Changes {
    said: mpsc::Receiver<Lease>,
    task: JoinHandle<()>,
}

impl Changes {
    /// Waits for something else than what was `known` when they were leased.
    pub(super) fn watch(references: Vec<SecretRef>, known: Digest) -> Self {
        let (says, said) = mpsc::channel(1);
        Self { said, task: tokio::spawn(watch(references, known, says)) }
    }

    /// The secrets as they are now; never, when nobody waits for that.
    pub(super) async fn next(changes: &mut Option<Self>) -> Lease {
        match changes {
            Some(changes) => match changes.said.recv().await {
                Some(lease) => lease,
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn watch(references: Vec<SecretRef>, mut known: Digest, says: mpsc::Sender<Lease>) {
    loop {
        match changed(&references, Some(&known)).await {
            Ok(revision) if known == revision => {}
            Ok(revision) => {
                known = settled(&references, revision).await;
                // One that was removed is no change: a service keeps what it has until it starts again.
                if let Some(lease) = again(&references).await
                    && says.send(lease).await.is_err()
                {
                    return;
                }
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// Waits until nothing was put for a while.
async fn settled(references: &[SecretRef], mut revision: Digest) -> Digest {
    for _ in 0..MAX_SETTLES {
        sleep(SETTLE).await;
        match changed(references, None).await {
            Ok(now) if now == revision => break,
            Ok(now) => revision = now,
            Err(_) => {}
        }
    }
    revision
}

/// All of them, unless one is missing.
async fn again(references: &[SecretRef]) -> Option<Lease> {
    loop {
        match lease(references, Duration::ZERO).await {
            Ok(lease) => return Some(lease),
            Err(LeaseError::Missing(_)) => return None,
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// The secrets that a running workload was given: those that count, and former ones that it may still print.
pub(super) struct Given {
    present: Lease,
    /// What is searched for.
    shown: Vec<Shown>,
    /// How many of these it was started with.
    first: usize,
    redactor: Redactor,
}

/// Why new secrets are not given to a running workload.
#[derive(Debug, thiserror::Error)]
pub(super) enum GivenError {
    /// It was given so many that it has to start anew.
    #[error("it was given {MAX_FORMER} values that changed since it started")]
    TooMany,
    /// One cannot be told from other text.
    #[error(transparent)]
    Redact(#[from] RedactError),
    /// One is missing.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
}

impl Given {
    /// The first ones.
    ///
    /// # Errors
    ///
    /// A value cannot be told from other text.
    pub(super) fn new(present: Lease, service: &Service) -> Result<Self, GivenError> {
        let shown = environment::redacted(service, |name| leased(&present, name))?;
        let redactor = Redactor::new(shown.iter().map(pair))?;
        Ok(Self { present, first: shown.len(), shown, redactor })
    }

    /// What takes all of them out of what the workload prints.
    pub(super) fn redactor(&self) -> &Redactor {
        &self.redactor
    }

    /// The value that counts.
    pub(super) fn value(&self, reference: &SecretRef) -> Option<&SecretValue> {
        self.present.get(reference)
    }

    /// Takes others, which from now on are searched for, too, and says whose values are new.
    ///
    /// # Errors
    ///
    /// [`GivenError`]; nothing has changed then.
    pub(super) fn change(&mut self, next: Lease, service: &Service) -> Result<Vec<SecretRef>, GivenError> {
        let mut shown = self.shown.clone();
        let more = environment::redacted(service, |name| leased(&next, name))?;
        shown.extend(more.into_iter().filter(|one| !self.shown.contains(one)));
        if shown.len() > self.first.saturating_add(MAX_FORMER) {
            return Err(GivenError::TooMany);
        }
        self.redactor.replace(shown.iter().map(pair))?;
        self.shown = shown;
        let is_new = |(reference, value): (&SecretRef, &SecretValue)| {
            let same = self.present.get(reference).is_some_and(|old| old.expose() == value.expose());
            (!same).then(|| reference.clone())
        };
        let new = next.iter().filter_map(is_new).collect();
        self.present = next;
        Ok(new)
    }
}

/// A value with the name that stands in its place.
fn pair((name, value): &Shown) -> (&str, &[u8]) {
    (name.as_str(), value.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::testing::declaration;

    fn secrets(values: &[(&str, &str)]) -> Lease {
        let secret = |(name, value): &(&str, &str)| {
            let reference: SecretRef = format!("secret://app/{name}/value").parse().unwrap();
            (reference.clone(), SecretValue::new(reference, value.as_bytes().to_vec()))
        };
        values.iter().map(secret).collect()
    }

    fn service() -> Service {
        let digest = "0".repeat(64);
        let text = format!(
            "services:\n  web:\n    image: r.example/a@sha256:{digest}\n    \
             secrets: [secret://app/a/value, secret://app/b/value]\n"
        );
        declaration(&text).services.remove(0)
    }

    #[test]
    fn a_former_value_is_searched_for_as_long_as_the_workload_may_print_it() {
        let mut given = Given::new(secrets(&[("a", "first-value"), ("b", "unchanged")]), &service()).unwrap();
        let mut stream = given.redactor().stream();
        let mut out = Vec::new();
        // Half a secret is on its way when it changes.
        stream.push(b"first-", &mut out);
        let new = given.change(secrets(&[("a", "second-value"), ("b", "unchanged")]), &service()).unwrap();
        assert_eq!(new, [secrets(&[("a", "")]).into_keys().next().unwrap()]);
        stream.push(b"value second-value unchanged plain\n", &mut out);
        stream.finish(&mut out);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "[redacted:secret://app/a/value] [redacted:secret://app/a/value] [redacted:secret://app/b/value] plain\n"
        );
        assert_eq!(given.value(&new[0]).unwrap().expose(), b"second-value");
    }

    #[test]
    fn what_cannot_be_searched_for_is_not_given() {
        let with = |value: &str| secrets(&[("a", value), ("b", "unchanged")]);
        let mut given = Given::new(with("first-value"), &service()).unwrap();
        let reference = with("").into_keys().next().unwrap();
        assert!(matches!(given.change(with("x"), &service()), Err(GivenError::Redact(_))));
        assert!(matches!(given.change(Lease::new(), &service()), Err(GivenError::Environment(_))));
        assert_eq!(given.value(&reference).unwrap().expose(), b"first-value");
        for number in 0..MAX_FORMER {
            given.change(with(&format!("value number {number}")), &service()).unwrap();
        }
        assert!(matches!(given.change(with("one more"), &service()), Err(GivenError::TooMany)));
        assert!(given.change(with("value number 63"), &service()).unwrap().is_empty());
        let text = given.redactor().redact(b"first-value, value number 9 and value number 63");
        assert_eq!(String::from_utf8(text).unwrap().matches("[redacted:").count(), 3);
    }
}
